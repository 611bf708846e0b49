//! CopyObject and UploadPartCopy.
//!
//! A copy moves no bytes: it is another object over the same blocks ([`crate::meta`] says how). Only between a public and a
//! private bucket, or buckets of different policies, and where another checksum is asked for, the bytes are read,
//! deciphered, enciphered under a fresh key and stored again.

use std::ops::Range;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream;
use s3s::dto::{
    CopyObjectInput, CopyObjectOutput, CopyObjectResult, CopyPartResult, CopySource, ETag, MetadataDirective,
    TaggingDirective, UploadPartCopyInput, UploadPartCopyOutput,
};
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::attributes::{self, Checksums, wanted_of};
use super::bucket_settings::encryption_of;
use super::buckets::existing;
use super::checksum::{Algorithm, Announced};
use super::conditions::{self, Conditions, timestamp};
use super::get::ObjectStream;
use super::put::{BodyStreamError, PUT_BYTES_MAX, Received, store};
use super::read::existing_object;
use super::{access, asked, bucket_policy, error, lock, multipart, objects, rename, tagging, versions};
use crate::gateway::Core;
use crate::meta::{Attributes, Bucket, NewCopy, Object, PutCondition, is_shareable};

/// The source that a request names, if the key may read it.
async fn source_of(
    core: &Core,
    source: &CopySource,
    access_key: &str,
    conditions: Conditions,
) -> S3Result<(Bucket, Object)> {
    let CopySource::Bucket { bucket, key, version_id } = source else {
        return Err(s3_error!(
            NotImplemented,
            "The copy source is BUCKET/KEY; access points do not exist here"
        ));
    };
    if key.is_empty() {
        return Err(s3_error!(InvalidArgument, "Invalid copy source object key"));
    }
    let (bucket, object) = existing_object(core, bucket, key, version_id.as_deref()).await?;
    bucket_policy::may(core, &bucket, access_key, "GetObject", key).await?;
    conditions
        .check(&object.attributes.etag, object.modified_ms)
        .map_err(|_| s3_error!(PreconditionFailed, "A condition on the copy source did not hold"))?;
    Ok((bucket, object))
}

/// Reads `range` of an object and stores it again.
async fn restore(
    core: &Core,
    source: &Object,
    range: Range<u64>,
    bucket: &Bucket,
    kept: Algorithm,
) -> S3Result<Received> {
    core.plane.writable(&error::policy_of(bucket)?).map_err(error::not_writable)?;
    let size = range.end - range.start;
    let hashers = Announced::default().hashers(Some(kept));
    if size == 0 {
        return store(core, bucket, stream::empty(), 0, hashers, None).await;
    }
    let pieces = ObjectStream::new(core, source, range);
    let bytes = stream::try_unfold(pieces, |mut pieces| async move {
        let next = pieces.next().await.map_err(|error| Box::new(error) as BodyStreamError)?;
        Ok(next.map(|bytes| (bytes, pieces)))
    });
    store(core, bucket, Box::pin(bytes.fuse()), size, hashers, None).await
}

pub(super) async fn copy(
    core: &Arc<Core>,
    request: S3Request<CopyObjectInput>,
) -> S3Result<S3Response<CopyObjectOutput>> {
    let S3Request { input, headers, extensions, .. } = request;
    if rename::is_asked(&headers) {
        return rename::rename(core, &input, &headers).await;
    }
    check_directives(&input)?;
    let conditions = Conditions {
        if_match: input.copy_source_if_match.clone(),
        if_none_match: input.copy_source_if_none_match.clone(),
        if_modified_since: input.copy_source_if_modified_since.clone(),
        if_unmodified_since: input.copy_source_if_unmodified_since.clone(),
    };
    let access_key = access::key_of(&extensions);
    let (source_bucket, source) = source_of(core, &input.copy_source, &access_key, conditions).await?;
    let bucket = existing(core, &input.bucket).await?;
    let kept = copied_attributes(core, &input, &headers, (&bucket, &source))?;
    // The library has no fields for conditions on the destination, so they are read where they stand.
    let condition = destination_condition(&headers)?;
    objects::check_early(core, &bucket, &input.key, &condition).await?;
    let is_itself =
        source_bucket.id == bucket.id && source.key == input.key && names_no_version(&input.copy_source);
    if is_itself && !replaces_metadata(&input) && !replaces_tags(&input) && input.storage_class.is_none() {
        return Err(s3_error!(
            InvalidRequest,
            "This copy request is illegal because it is trying to copy an object to itself without changing the object's metadata, storage class, website redirect location or encryption attributes."
        ));
    }
    if source.size > PUT_BYTES_MAX {
        return Err(s3_error!(
            InvalidRequest,
            "The specified copy source is larger than the maximum allowable size for a copy source: {PUT_BYTES_MAX}"
        ));
    }
    let wanted_sum = input.checksum_algorithm.as_ref().and_then(|name| Algorithm::by_name(name.as_str()));
    let keeps_sum = wanted_sum
        .is_none_or(|algorithm| source.attributes.checksums.iter().any(|(name, _)| name == algorithm.name()));
    let copied = if is_shareable(&source_bucket, &bucket) && keeps_sum {
        share(
            core,
            (&source_bucket, &source),
            &bucket,
            NewCopy { key: input.key, attributes: kept, condition },
        )
        .await?
    } else {
        let sum = wanted_sum.unwrap_or(Algorithm::Crc64Nvme);
        let received = restore(core, &source, 0..source.size, &bucket, sum).await?;
        objects::commit(core, bucket.clone(), input.key, kept, received, condition).await?
    };
    lock::retain(core, &copied).await;
    let checksums = Checksums::of(&copied.attributes.checksums);
    let result = CopyObjectResult {
        e_tag: Some(ETag::Strong(copied.attributes.etag.clone())),
        last_modified: Some(timestamp(copied.modified_ms)),
        checksum_crc32: checksums.crc32,
        checksum_crc32c: checksums.crc32c,
        checksum_crc64nvme: checksums.crc64nvme,
        checksum_sha1: checksums.sha1,
        checksum_sha256: checksums.sha256,
        checksum_type: checksums.kind,
    };
    let output = CopyObjectOutput {
        server_side_encryption: encryption_of(&bucket),
        copy_object_result: Some(result),
        copy_source_version_id: versions::id_of(&source_bucket, &source),
        version_id: versions::id_of(&bucket, &copied),
        ..CopyObjectOutput::default()
    };
    Ok(S3Response::with_headers(output, objects::cid_header(&copied)))
}

/// The copy that moves no bytes, in a task of its own.
async fn share(
    core: &Arc<Core>,
    (source_bucket, source): (&Bucket, &Object),
    bucket: &Bucket,
    copy: NewCopy,
) -> S3Result<Object> {
    let meta = Arc::clone(&core.meta);
    let (source_bucket, source, bucket) = (source_bucket.clone(), source.clone(), bucket.clone());
    let copied = tokio::spawn(async move { meta.copy_object(&source_bucket, &source, &bucket, &copy).await });
    let object = copied.await.map_err(|failed| multipart::unfinished(&failed))?.map_err(error::put)?;
    core.wake_deliveries();
    Ok(object)
}

fn names_no_version(source: &CopySource) -> bool {
    matches!(source, CopySource::Bucket { version_id: None, .. })
}

fn check_directives(input: &CopyObjectInput) -> S3Result<()> {
    let metadata = input.metadata_directive.as_ref().map(MetadataDirective::as_str);
    let tagging = input.tagging_directive.as_ref().map(TaggingDirective::as_str);
    for (what, directive) in [("metadata", metadata), ("tagging", tagging)] {
        if directive.is_some_and(|directive| !["COPY", "REPLACE"].contains(&directive)) {
            return Err(s3_error!(InvalidArgument, "Unknown {what} directive."));
        }
    }
    Ok(())
}

fn replaces_metadata(input: &CopyObjectInput) -> bool {
    let directive = input.metadata_directive.as_ref().map(MetadataDirective::as_str);
    directive == Some(MetadataDirective::REPLACE)
}

fn replaces_tags(input: &CopyObjectInput) -> bool {
    input.tagging_directive.as_ref().map(TaggingDirective::as_str) == Some(TaggingDirective::REPLACE)
}

/// What the copy carries: the source's, or the request's where it says so.
fn copied_attributes(
    core: &Core,
    input: &CopyObjectInput,
    headers: &http::HeaderMap,
    (bucket, source): (&Bucket, &Object),
) -> S3Result<Attributes> {
    asked::check(bucket, headers)?;
    let mut kept = if replaces_metadata(input) {
        attributes::from_request(headers, input.metadata.as_ref())?
    } else {
        source.attributes.clone()
    };
    kept.tags = if replaces_tags(input) {
        tagging::of_header(input.tagging.as_deref())?
    } else {
        source.attributes.tags.clone()
    };
    // A lock is never copied.
    kept.lock = lock::of_new(
        bucket,
        input.object_lock_mode.as_ref().map(|mode| mode.as_str()),
        input.object_lock_retain_until_date.as_ref(),
        input.object_lock_legal_hold_status.as_ref(),
        core.config.clock.now_ms(),
    )?;
    Ok(kept)
}

fn destination_condition(headers: &http::HeaderMap) -> S3Result<PutCondition> {
    let parse = |name: http::HeaderName| {
        let Some(value) = headers.get(&name) else { return Ok(None) };
        let text = value.to_str().ok().and_then(|text| text.parse().ok());
        text.map(Some).ok_or_else(|| s3_error!(InvalidArgument, "The header {name} is not an entity tag"))
    };
    let (matched, unmatched) = (parse(http::header::IF_MATCH)?, parse(http::header::IF_NONE_MATCH)?);
    conditions::of_put(matched.as_ref(), unmatched.as_ref())
}

pub(super) async fn part(
    core: &Arc<Core>,
    request: S3Request<UploadPartCopyInput>,
) -> S3Result<S3Response<UploadPartCopyOutput>> {
    let S3Request { input, extensions, .. } = request;
    let number = multipart::part_number(input.part_number)?;
    let (bucket, upload) =
        multipart::existing_upload(core, &input.bucket, &input.key, &input.upload_id).await?;
    let conditions = Conditions {
        if_match: input.copy_source_if_match,
        if_none_match: input.copy_source_if_none_match,
        if_modified_since: input.copy_source_if_modified_since,
        if_unmodified_since: input.copy_source_if_unmodified_since,
    };
    let access_key = access::key_of(&extensions);
    let (source_bucket, source) = source_of(core, &input.copy_source, &access_key, conditions).await?;
    let range = source_range(input.copy_source_range.as_deref(), source.size)?;
    if range.end - range.start > PUT_BYTES_MAX {
        return Err(s3_error!(EntityTooLarge, "A part has at most {PUT_BYTES_MAX} bytes"));
    }
    let kept =
        wanted_of(&upload.attributes.checksums).map_or(Algorithm::Crc64Nvme, |(algorithm, _)| algorithm);
    let received = restore(core, &source, range, &bucket, kept).await?;
    let encryption = encryption_of(&bucket);
    let part = multipart::commit_part(core, bucket, (input.key, upload.id, number), received).await?;
    let checksums = Checksums::of(&part.checksums);
    let result = CopyPartResult {
        e_tag: Some(ETag::Strong(part.etag)),
        last_modified: Some(timestamp(part.modified_ms)),
        checksum_crc32: checksums.crc32,
        checksum_crc32c: checksums.crc32c,
        checksum_crc64nvme: checksums.crc64nvme,
        checksum_sha1: checksums.sha1,
        checksum_sha256: checksums.sha256,
    };
    Ok(S3Response::new(UploadPartCopyOutput {
        server_side_encryption: encryption,
        copy_part_result: Some(result),
        copy_source_version_id: versions::id_of(&source_bucket, &source),
        ..UploadPartCopyOutput::default()
    }))
}

/// `x-amz-copy-source-range`, which has a first and a last byte and must lie within the source.
fn source_range(header: Option<&str>, size: u64) -> S3Result<Range<u64>> {
    let Some(text) = header else { return Ok(0..size) };
    let malformed = || {
        s3_error!(
            InvalidArgument,
            "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the zero-based offsets of the first and last bytes to copy"
        )
    };
    let (first, last) =
        text.strip_prefix("bytes=").and_then(|text| text.split_once('-')).ok_or_else(malformed)?;
    let (first, last): (u64, u64) =
        (first.parse().map_err(|_| malformed())?, last.parse().map_err(|_| malformed())?);
    if first > last {
        return Err(malformed());
    }
    if last >= size {
        return Err(s3_error!(
            InvalidRange,
            "Range specified is not valid for source object of size: {size}"
        ));
    }
    Ok(first..last + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_sources_are_exact() {
        assert_eq!(source_range(None, 10).unwrap(), 0..10);
        assert_eq!(source_range(Some("bytes=2-9"), 10).unwrap(), 2..10);
        for text in ["bytes=2-10", "bytes=5-", "bytes=-5", "2-3", "bytes=4-3", "bytes=a-b"] {
            assert!(source_range(Some(text), 10).is_err(), "{text}");
        }
    }

    #[test]
    fn conditions_on_the_destination_are_read_from_the_headers() {
        let mut headers = http::HeaderMap::new();
        assert_eq!(destination_condition(&headers).unwrap(), PutCondition::Any);
        headers.insert("if-none-match", "*".parse().unwrap());
        assert_eq!(destination_condition(&headers).unwrap(), PutCondition::Absent);
        headers.remove("if-none-match");
        headers.insert("if-match", "\"tag\"".parse().unwrap());
        assert_eq!(destination_condition(&headers).unwrap(), PutCondition::Etag("tag".to_owned()));
    }
}
