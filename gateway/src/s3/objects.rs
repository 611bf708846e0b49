//! Objects in one PUT: put, get, head, delete.

use std::ops::Range;
use std::sync::Arc;

use http::header::{CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, EXPIRES};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use s3s::dto::{
    ChecksumMode, DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput,
    DeletedObject, ETag, Error as DeleteError, GetObjectInput, GetObjectOutput, HeadObjectInput,
    HeadObjectOutput, PutObjectInput, PutObjectOutput,
};
use s3s::{S3Error, S3Request, S3Response, S3Result, s3_error};

use super::attributes::{self, Checksums};
use super::buckets::existing;
use super::checksum::Algorithm;
use super::conditions::{self, Conditions, timestamp};
use super::put::{BodyFacts, Received, receive};
use super::{error, etag, get};
use crate::gateway::Core;
use crate::meta::{Attributes, Bucket, NewObject, Object, PutCondition};

/// The root CID, on every answer about one object.
pub(crate) const CID_HEADER: HeaderName = HeaderName::from_static("x-holdfast-cid");
/// Keys that one DeleteObjects may name: S3's limit.
const DELETE_KEYS_MAX: usize = 1000;

pub(super) async fn put(
    core: &Arc<Core>,
    request: S3Request<PutObjectInput>,
) -> S3Result<S3Response<PutObjectOutput>> {
    let S3Request { input, headers, trailing_headers, .. } = request;
    refuse_unsupported(&input)?;
    let bucket = existing(core, &input.bucket).await?;
    let condition = conditions::of_put(input.if_match.as_ref(), input.if_none_match.as_ref())?;
    let attributes = attributes::from_request(&headers, input.metadata.as_ref())?;
    check_early(core, &bucket, &input.key, &condition).await?;
    let facts = BodyFacts {
        content_length: input.content_length,
        headers: &headers,
        trailers: trailing_headers,
        kept: default_checksum(&headers),
    };
    let received = receive(core, &bucket, input.body, facts).await?;
    let object = commit(core, bucket, input.key, attributes, received, condition).await?;
    let checksums = Checksums::of(&object.attributes.checksums);
    let output = PutObjectOutput {
        e_tag: Some(ETag::Strong(object.attributes.etag.clone())),
        checksum_crc32: checksums.crc32,
        checksum_crc32c: checksums.crc32c,
        checksum_crc64nvme: checksums.crc64nvme,
        checksum_sha1: checksums.sha1,
        checksum_sha256: checksums.sha256,
        checksum_type: checksums.kind,
        ..PutObjectOutput::default()
    };
    Ok(S3Response::with_headers(output, cid_header(&object)))
}

/// The checksum kept when the client brings none: the one that S3 computes, at no cost worth naming (59 GB/s).
fn default_checksum(headers: &HeaderMap) -> Option<Algorithm> {
    let brings_one = headers.keys().any(|name| name.as_str().starts_with("x-amz-checksum-"))
        || headers.contains_key("x-amz-trailer")
        || headers.contains_key("x-amz-sdk-checksum-algorithm");
    (!brings_one).then_some(Algorithm::Crc64Nvme)
}

fn refuse_unsupported(input: &PutObjectInput) -> S3Result<()> {
    let what = if input.sse_customer_algorithm.is_some() || input.sse_customer_key.is_some() {
        "Encryption with customer-provided keys"
    } else if input.write_offset_bytes.is_some() {
        "Appending to objects"
    } else if input.object_lock_mode.is_some() || input.object_lock_legal_hold_status.is_some() {
        "Object lock"
    } else if input.tagging.is_some() {
        "Object tagging"
    } else {
        return Ok(());
    };
    Err(s3_error!(NotImplemented, "{what} is not implemented"))
}

/// A condition that fails already is answered before the body is sent; the commit decides again.
async fn check_early(core: &Core, bucket: &Bucket, key: &str, condition: &PutCondition) -> S3Result<()> {
    let failed =
        || s3_error!(PreconditionFailed, "At least one of the pre-conditions you specified did not hold");
    let holds = match condition {
        PutCondition::Any => return Ok(()),
        PutCondition::Absent => core.meta.object(bucket, key).await.map_err(error::meta)?.is_none(),
        PutCondition::Etag(wanted) => match core.meta.object(bucket, key).await.map_err(error::meta)? {
            Some(object) => object.attributes.etag == *wanted,
            None => return Err(error::no_such_key(key)),
        },
    };
    if holds { Ok(()) } else { Err(failed()) }
}

/// Commits in a task of its own: a client that hangs up now cannot leave the transaction half waited for.
pub(super) async fn commit(
    core: &Arc<Core>,
    bucket: Bucket,
    key: String,
    mut attributes: Attributes,
    received: Received,
    condition: PutCondition,
) -> S3Result<Object> {
    attributes.etag = etag::of_object(&received.root_cid);
    attributes.checksums = received.checksums;
    let new = NewObject { key, attributes, root_cid: received.root_cid, stored: received.stored, condition };
    let meta = Arc::clone(&core.meta);
    let committed = tokio::spawn(async move { meta.put_object(&bucket, new).await });
    let object = match committed.await {
        Ok(result) => result.map_err(error::put)?,
        Err(failed) => {
            tracing::error!(error = %failed, "a commit did not finish");
            return Err(s3_error!(InternalError, "We encountered an internal error. Please try again."));
        }
    };
    core.wake_deliveries();
    Ok(object)
}

/// The object and its bucket, or 404.
pub(super) async fn existing_object(core: &Core, bucket: &str, key: &str) -> S3Result<(Bucket, Object)> {
    let bucket = existing(core, bucket).await?;
    let object = core.meta.object(&bucket, key).await.map_err(error::meta)?;
    let object = object.ok_or_else(|| error::no_such_key(key))?;
    Ok((bucket, object))
}

/// What GET and HEAD share.
struct Selected {
    object: Object,
    /// `None` is all of it.
    range: Option<Range<u64>>,
    checksums: Checksums,
}

impl Selected {
    fn len(&self) -> u64 {
        self.range.as_ref().map_or(self.object.size, |range| range.end - range.start)
    }

    fn content_range(&self) -> Option<String> {
        let range = self.range.as_ref()?;
        Some(format!("bytes {}-{}/{}", range.start, range.end - 1, self.object.size))
    }

    fn status(&self) -> Option<StatusCode> {
        self.range.as_ref().map(|_| StatusCode::PARTIAL_CONTENT)
    }

    fn part_count(&self) -> Option<i32> {
        i32::try_from(self.object.part_count).ok().filter(|count| *count > 0)
    }
}

/// Which object and which bytes of it a GET or HEAD wants.
struct Selection<'a> {
    bucket: &'a str,
    key: &'a str,
    version: Option<&'a str>,
    part_number: Option<i32>,
    range: Option<&'a s3s::dto::Range>,
    conditions: Conditions,
    checksum_mode: Option<&'a ChecksumMode>,
}

async fn select(core: &Core, wanted: Selection<'_>) -> S3Result<Selected> {
    let (_, object) = existing_object(core, wanted.bucket, wanted.key).await?;
    if wanted.version.is_some_and(|version| version != "null") {
        return Err(s3_error!(NoSuchVersion, "Objects have no versions here; leave versionId out"));
    }
    wanted.conditions.check(&object.attributes.etag, object.modified_ms)?;
    let range = match wanted.part_number {
        None => get::requested(wanted.range, object.size)?,
        Some(_) if wanted.range.is_some() => {
            return Err(s3_error!(
                InvalidRequest,
                "Cannot specify both Range header and partNumber query parameter"
            ));
        }
        Some(1) if object.part_count <= 1 => None,
        Some(_) => {
            return Err(s3_error!(NotImplemented, "Reading by part number is not implemented; use a Range"));
        }
    };
    let asked = wanted.checksum_mode.is_some_and(|mode| mode.as_str() == ChecksumMode::ENABLED);
    // A checksum of the whole says nothing about a part of it.
    let checksums = if asked && range.is_none() {
        Checksums::of(&object.attributes.checksums)
    } else {
        Checksums::default()
    };
    Ok(Selected { object, range, checksums })
}

pub(super) async fn get(
    core: &Arc<Core>,
    request: S3Request<GetObjectInput>,
) -> S3Result<S3Response<GetObjectOutput>> {
    let input = request.input;
    let selected = select(
        core,
        Selection {
            bucket: &input.bucket,
            key: &input.key,
            version: input.version_id.as_deref(),
            part_number: input.part_number,
            range: input.range.as_ref(),
            conditions: Conditions {
                if_match: input.if_match,
                if_none_match: input.if_none_match,
                if_modified_since: input.if_modified_since,
                if_unmodified_since: input.if_unmodified_since,
            },
            checksum_mode: input.checksum_mode.as_ref(),
        },
    )
    .await?;
    let object = &selected.object;
    let range = selected.range.clone().unwrap_or(0..object.size);
    let body = get::body(core, object, range).await?;
    let kept = &object.attributes;
    let checksums = selected.checksums.clone();
    let output = GetObjectOutput {
        accept_ranges: Some("bytes".to_owned()),
        body: Some(body),
        content_length: i64::try_from(selected.len()).ok(),
        content_range: selected.content_range(),
        content_type: Some(attributes::content_type(kept)),
        content_encoding: attributes::header(kept, &CONTENT_ENCODING),
        content_disposition: attributes::header(kept, &CONTENT_DISPOSITION),
        content_language: attributes::header(kept, &CONTENT_LANGUAGE),
        cache_control: attributes::header(kept, &CACHE_CONTROL),
        e_tag: Some(ETag::Strong(kept.etag.clone())),
        last_modified: Some(timestamp(object.modified_ms)),
        metadata: attributes::user_metadata(kept),
        checksum_crc32: checksums.crc32,
        checksum_crc32c: checksums.crc32c,
        checksum_crc64nvme: checksums.crc64nvme,
        checksum_sha1: checksums.sha1,
        checksum_sha256: checksums.sha256,
        checksum_type: checksums.kind,
        parts_count: input.part_number.and(selected.part_count()),
        ..GetObjectOutput::default()
    };
    let mut response = S3Response::with_headers(output, cid_header(object));
    if input.response_expires.is_none()
        && let Some(expires) = attributes::expires(kept)
    {
        response.headers.insert(EXPIRES, expires);
    }
    response.status = selected.status();
    Ok(response)
}

pub(super) async fn head(
    core: &Arc<Core>,
    request: S3Request<HeadObjectInput>,
) -> S3Result<S3Response<HeadObjectOutput>> {
    let input = request.input;
    let selected = select(
        core,
        Selection {
            bucket: &input.bucket,
            key: &input.key,
            version: input.version_id.as_deref(),
            part_number: input.part_number,
            range: input.range.as_ref(),
            conditions: Conditions {
                if_match: input.if_match,
                if_none_match: input.if_none_match,
                if_modified_since: input.if_modified_since,
                if_unmodified_since: input.if_unmodified_since,
            },
            checksum_mode: input.checksum_mode.as_ref(),
        },
    )
    .await?;
    let kept = &selected.object.attributes;
    let checksums = selected.checksums.clone();
    let output = HeadObjectOutput {
        accept_ranges: Some("bytes".to_owned()),
        content_length: i64::try_from(selected.len()).ok(),
        content_range: selected.content_range(),
        content_type: Some(attributes::content_type(kept)),
        content_encoding: attributes::header(kept, &CONTENT_ENCODING),
        content_disposition: attributes::header(kept, &CONTENT_DISPOSITION),
        content_language: attributes::header(kept, &CONTENT_LANGUAGE),
        cache_control: attributes::header(kept, &CACHE_CONTROL),
        e_tag: Some(ETag::Strong(kept.etag.clone())),
        last_modified: Some(timestamp(selected.object.modified_ms)),
        metadata: attributes::user_metadata(kept),
        checksum_crc32: checksums.crc32,
        checksum_crc32c: checksums.crc32c,
        checksum_crc64nvme: checksums.crc64nvme,
        checksum_sha1: checksums.sha1,
        checksum_sha256: checksums.sha256,
        checksum_type: checksums.kind,
        parts_count: input.part_number.and(selected.part_count()),
        ..HeadObjectOutput::default()
    };
    let mut response = S3Response::with_headers(output, cid_header(&selected.object));
    if let Some(expires) = attributes::expires(kept) {
        response.headers.insert(EXPIRES, expires);
    }
    response.status = selected.status();
    Ok(response)
}

pub(super) async fn delete(
    core: &Arc<Core>,
    request: S3Request<DeleteObjectInput>,
) -> S3Result<S3Response<DeleteObjectOutput>> {
    let input = request.input;
    let bucket = existing(core, &input.bucket).await?;
    if input.if_match.is_some() {
        return Err(s3_error!(NotImplemented, "Conditional deletes are not implemented"));
    }
    remove(core, &bucket, &input.key, input.version_id.as_deref()).await?;
    Ok(S3Response::with_status(DeleteObjectOutput::default(), StatusCode::NO_CONTENT))
}

/// Deletes what is there; that nothing was there is no error.
async fn remove(core: &Arc<Core>, bucket: &Bucket, key: &str, version: Option<&str>) -> S3Result<()> {
    if version.is_some_and(|version| version != "null") {
        return Err(s3_error!(NoSuchVersion, "Objects have no versions here; leave versionId out"));
    }
    let (meta, bucket, key) = (Arc::clone(&core.meta), bucket.clone(), key.to_owned());
    let removed = tokio::spawn(async move { meta.delete_object(&bucket, &key).await });
    match removed.await {
        Ok(result) => result.map_err(error::meta)?,
        Err(failed) => {
            tracing::error!(error = %failed, "a deletion did not finish");
            return Err(s3_error!(InternalError, "We encountered an internal error. Please try again."));
        }
    };
    core.wake_deliveries();
    Ok(())
}

pub(super) async fn delete_many(
    core: &Arc<Core>,
    request: S3Request<DeleteObjectsInput>,
) -> S3Result<S3Response<DeleteObjectsOutput>> {
    let input = request.input;
    let bucket = existing(core, &input.bucket).await?;
    if input.delete.objects.is_empty() || input.delete.objects.len() > DELETE_KEYS_MAX {
        return Err(s3_error!(MalformedXML, "DeleteObjects names 1 to 1000 keys"));
    }
    let quiet = input.delete.quiet.unwrap_or(false);
    let (mut deleted, mut errors) = (Vec::new(), Vec::new());
    for wanted in input.delete.objects {
        match remove(core, &bucket, &wanted.key, wanted.version_id.as_deref()).await {
            Ok(()) if quiet => {}
            Ok(()) => {
                deleted.push(DeletedObject { key: Some(wanted.key), ..DeletedObject::default() });
            }
            Err(error) => errors.push(delete_error(wanted.key, &error)),
        }
    }
    Ok(S3Response::new(DeleteObjectsOutput {
        deleted: Some(deleted),
        errors: Some(errors),
        ..DeleteObjectsOutput::default()
    }))
}

fn delete_error(key: String, error: &S3Error) -> DeleteError {
    DeleteError {
        code: Some(error.code().as_str().to_owned()),
        key: Some(key),
        message: error.message().map(str::to_owned),
        version_id: None,
    }
}

/// `x-holdfast-cid`.
pub(crate) fn cid_header(object: &Object) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::try_from(object.root_cid.to_string()) {
        headers.insert(CID_HEADER, value);
    }
    headers
}
