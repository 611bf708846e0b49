//! Documents of buckets as they are kept: JSON of our own types, sealed by the metadata.

use s3s::{S3Error, S3Result, s3_error};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error;
use crate::gateway::Core;
use crate::meta::{Bucket, BucketSetting};

/// The bytes of a document.
pub(super) fn encode(document: &impl Serialize) -> S3Result<Vec<u8>> {
    serde_json::to_vec(document)
        .map_err(|error| s3_error!(InternalError, "The document cannot be kept: {error}"))
}

/// A document of a bucket's, if it has it.
pub(super) async fn read<T: DeserializeOwned>(
    core: &Core,
    bucket: &Bucket,
    setting: BucketSetting,
) -> S3Result<Option<T>> {
    let Some(bytes) = core.meta.bucket_setting(bucket, setting).await.map_err(error::meta)? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|source| {
        tracing::error!(bucket = bucket.name, ?setting, error = %source, "a bucket's document cannot be read");
        s3_error!(InternalError, "A setting of the bucket cannot be read")
    })
}

/// 400 for a document that says nothing that is understood.
pub(super) fn malformed(message: &'static str) -> S3Error {
    s3_error!(MalformedXML, "{message}")
}

/// 404 for a document that the bucket does not have.
pub(super) fn missing(code: &'static str, message: &'static str) -> S3Error {
    error::custom(code, http::StatusCode::NOT_FOUND, message)
}
