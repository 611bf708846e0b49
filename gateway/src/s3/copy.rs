//! CopyObject: read, decipher, encipher under a fresh key, store. A key never serves two objects, so a private copy
//! cannot share its blocks with its source.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream;
use s3s::dto::{CopyObjectInput, CopyObjectOutput, CopyObjectResult, CopySource, ETag, MetadataDirective};
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::attributes::{self, Checksums};
use super::buckets::existing;
use super::checksum::{Algorithm, Announced};
use super::conditions::{Conditions, timestamp};
use super::get::ObjectStream;
use super::put::{BodyStreamError, PUT_BYTES_MAX, store};
use super::{error, objects, rename};
use crate::gateway::Core;
use crate::meta::PutCondition;

pub(super) async fn copy(
    core: &Arc<Core>,
    request: S3Request<CopyObjectInput>,
) -> S3Result<S3Response<CopyObjectOutput>> {
    let S3Request { input, headers, .. } = request;
    if rename::is_asked(&headers) {
        return rename::rename(core, &input, &headers).await;
    }
    let (source_bucket, source_key) = match &input.copy_source {
        CopySource::Bucket { bucket, key, version_id } if version_id.is_none() => (bucket, key),
        _ => return Err(s3_error!(NotImplemented, "The copy source is BUCKET/KEY, without a version")),
    };
    let (_, source) = objects::existing_object(core, source_bucket, source_key).await?;
    Conditions {
        if_match: input.copy_source_if_match,
        if_none_match: input.copy_source_if_none_match,
        if_modified_since: input.copy_source_if_modified_since,
        if_unmodified_since: input.copy_source_if_unmodified_since,
    }
    .check(&source.attributes.etag, source.modified_ms)
    .map_err(|_| s3_error!(PreconditionFailed, "A condition on the copy source did not hold"))?;
    let replaces = input
        .metadata_directive
        .as_ref()
        .is_some_and(|directive| directive.as_str() == MetadataDirective::REPLACE);
    if !replaces && **source_bucket == *input.bucket && **source_key == *input.key {
        return Err(s3_error!(
            InvalidRequest,
            "This copy request is illegal because it is trying to copy an object to itself without changing its metadata."
        ));
    }
    if source.size > PUT_BYTES_MAX {
        return Err(s3_error!(
            InvalidRequest,
            "The copy source is larger than the 5 GiB that one CopyObject may copy"
        ));
    }
    let kept = if replaces {
        attributes::from_request(&headers, input.metadata.as_ref())?
    } else {
        source.attributes.clone()
    };
    let bucket = existing(core, &input.bucket).await?;
    core.plane.writable(&error::policy_of(&bucket)?).map_err(error::not_writable)?;
    let pieces = ObjectStream::new(core, &source, 0..source.size);
    let bytes = stream::try_unfold(pieces, |mut pieces| async move {
        let next = pieces.next().await.map_err(|error| Box::new(error) as BodyStreamError)?;
        Ok(next.map(|bytes| (bytes, pieces)))
    });
    let hashers = Announced::default().hashers(Some(Algorithm::Crc64Nvme));
    let received = store(core, &bucket, Box::pin(bytes.fuse()), source.size, hashers, None).await?;
    let copied = objects::commit(core, bucket, input.key, kept, received, PutCondition::Any).await?;
    let checksums = Checksums::of(&copied.attributes.checksums);
    let result = CopyObjectResult {
        e_tag: Some(ETag::Strong(copied.attributes.etag.clone())),
        last_modified: Some(timestamp(copied.modified_ms)),
        checksum_crc64nvme: checksums.crc64nvme,
        checksum_type: checksums.kind,
        ..CopyObjectResult::default()
    };
    let output = CopyObjectOutput { copy_object_result: Some(result), ..CopyObjectOutput::default() };
    Ok(S3Response::with_headers(output, objects::cid_header(&copied)))
}
