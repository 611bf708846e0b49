//! Renaming: a copy within a bucket that carries `x-holdfast-rename: true` moves the object instead, in one metadata
//! transaction, whatever its size. The answer repeats the header, so that a client can tell it from a copy.

use std::sync::Arc;

use http::header::IF_NONE_MATCH;
use http::{HeaderMap, HeaderName, HeaderValue};
use s3s::dto::{CopyObjectInput, CopyObjectOutput, CopyObjectResult, CopySource, ETag};
use s3s::{S3Response, S3Result, s3_error};

use super::buckets::existing;
use super::conditions::timestamp;
use super::{error, objects};
use crate::gateway::Core;
use crate::meta::{PutCondition, Versioning};

const RENAME: HeaderName = HeaderName::from_static("x-holdfast-rename");

/// Whether a copy is to be a rename.
pub(super) fn is_asked(headers: &HeaderMap) -> bool {
    headers.get(RENAME).is_some_and(|value| value.as_bytes() == b"true")
}

pub(super) async fn rename(
    core: &Arc<Core>,
    input: &CopyObjectInput,
    headers: &HeaderMap,
) -> S3Result<S3Response<CopyObjectOutput>> {
    let (source_bucket, source_key) = match &input.copy_source {
        CopySource::Bucket { bucket, key, version_id } if version_id.is_none() => (bucket, key),
        _ => {
            return Err(s3_error!(NotImplemented, "The source of a rename is BUCKET/KEY, without a version"));
        }
    };
    if **source_bucket != *input.bucket {
        return Err(s3_error!(InvalidRequest, "An object is renamed within its bucket; copy it to another"));
    }
    if input.copy_source_if_match.is_some() || input.copy_source_if_none_match.is_some() {
        return Err(s3_error!(NotImplemented, "A rename takes no condition on its source"));
    }
    let condition = match headers.get(IF_NONE_MATCH).map(HeaderValue::as_bytes) {
        None => PutCondition::Any,
        Some(b"*") => PutCondition::Absent,
        Some(_) => return Err(s3_error!(NotImplemented, "If-None-Match of a rename takes only the value *")),
    };
    let bucket = existing(core, &input.bucket).await?;
    if bucket.features.versioning != Versioning::Off {
        return Err(s3_error!(
            NotImplemented,
            "Renaming is not implemented in a bucket that keeps versions; copy and delete"
        ));
    }
    let renamed = core.meta.rename_object(&bucket, source_key, &input.key, condition).await;
    let object = renamed.map_err(error::put)?.ok_or_else(|| error::no_such_key(source_key))?;
    core.wake_deliveries();
    let result = CopyObjectResult {
        e_tag: Some(ETag::Strong(object.attributes.etag.clone())),
        last_modified: Some(timestamp(object.modified_ms)),
        ..CopyObjectResult::default()
    };
    let output = CopyObjectOutput { copy_object_result: Some(result), ..CopyObjectOutput::default() };
    let mut headers = objects::cid_header(&object);
    headers.insert(RENAME, HeaderValue::from_static("true"));
    Ok(S3Response::with_headers(output, headers))
}
