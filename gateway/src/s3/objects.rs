//! Objects in one PUT, and the commit that every way of writing an object ends in.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use s3s::dto::{ETag, PutObjectInput, PutObjectOutput};
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::attributes::{self, Checksums};
use super::bucket_settings::encryption_of;
use super::buckets::existing;
use super::checksum::Algorithm;
use super::put::{BodyFacts, Received, receive};
use super::{asked, conditions, error, etag, lock, tagging, versions};
use crate::gateway::Core;
use crate::meta::{Attributes, Bucket, NewObject, Object, PutCondition};

/// The root CID, on every answer about one object.
pub(crate) const CID_HEADER: HeaderName = HeaderName::from_static("x-holdfast-cid");

pub(super) async fn put(
    core: &Arc<Core>,
    request: S3Request<PutObjectInput>,
) -> S3Result<S3Response<PutObjectOutput>> {
    let S3Request { input, headers, trailing_headers, extensions: _held, .. } = request;
    let bucket = existing(core, &input.bucket).await?;
    asked::check(&bucket, &headers)?;
    let condition = conditions::of_put(input.if_match.as_ref(), input.if_none_match.as_ref())?;
    let mut attributes = attributes::from_request(&headers, input.metadata.as_ref())?;
    attributes.tags = tagging::of_header(input.tagging.as_deref())?;
    attributes.lock = lock::of_new(
        &bucket,
        input.object_lock_mode.as_ref().map(|mode| mode.as_str()),
        input.object_lock_retain_until_date.as_ref(),
        input.object_lock_legal_hold_status.as_ref(),
        core.config.clock.now_ms(),
    )?;
    check_early(core, &bucket, &input.key, &condition).await?;
    let facts = BodyFacts {
        content_length: input.content_length,
        headers: &headers,
        trailers: trailing_headers,
        kept: default_checksum(&headers),
    };
    let received = receive(core, &bucket, input.body, facts).await?;
    let object = commit(core, bucket.clone(), input.key, attributes, received, condition).await?;
    lock::retain(core, &object).await;
    let checksums = Checksums::of(&object.attributes.checksums);
    let output = PutObjectOutput {
        server_side_encryption: encryption_of(&bucket),
        e_tag: Some(ETag::Strong(object.attributes.etag.clone())),
        checksum_crc32: checksums.crc32,
        checksum_crc32c: checksums.crc32c,
        checksum_crc64nvme: checksums.crc64nvme,
        checksum_sha1: checksums.sha1,
        checksum_sha256: checksums.sha256,
        checksum_type: checksums.kind,
        version_id: versions::id_of(&bucket, &object),
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

/// A condition that fails already is answered before the body is sent; the commit decides again.
pub(super) async fn check_early(
    core: &Core,
    bucket: &Bucket,
    key: &str,
    condition: &PutCondition,
) -> S3Result<()> {
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

/// `x-holdfast-cid`.
pub(crate) fn cid_header(object: &Object) -> HeaderMap {
    cid_headers(&object.root_cid)
}

/// The same, of a CID alone.
pub(super) fn cid_headers(root_cid: &cid::Cid) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::try_from(root_cid.to_string()) {
        headers.insert(CID_HEADER, value);
    }
    headers
}
