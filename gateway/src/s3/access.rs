//! Who may do what: our access keys everything, everybody else reading and listing public buckets.

use std::sync::Arc;

use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::path::S3Path;
use s3s::{S3Error, S3Result, s3_error};

use super::error;
use crate::gateway::Core;
use crate::snapshot::is_snapshot_bucket;

/// What anybody may do with a public bucket.
const PUBLIC_OPERATIONS: [&str; 6] =
    ["GetObject", "HeadObject", "ListObjects", "ListObjectsV2", "HeadBucket", "GetBucketLocation"];

/// Looks secrets up, and decides about requests without one.
#[derive(Clone)]
pub(crate) struct Gatekeeper {
    pub(crate) core: Arc<Core>,
}

#[async_trait::async_trait]
impl S3Auth for Gatekeeper {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        self.core.access_keys.secret(access_key).map(SecretKey::from).ok_or_else(|| {
            s3_error!(InvalidAccessKeyId, "The AWS Access Key Id you provided does not exist in our records.")
        })
    }
}

#[async_trait::async_trait]
impl S3Access for Gatekeeper {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        refuse_changed_snapshot(context)?;
        if context.credentials().is_some() {
            return Ok(());
        }
        let bucket = match context.s3_path() {
            S3Path::Root => return Err(denied()),
            S3Path::Bucket { bucket } | S3Path::Object { bucket, .. } => bucket,
        };
        if !PUBLIC_OPERATIONS.contains(&context.s3_op().name()) {
            return Err(denied());
        }
        match self.core.meta.bucket(bucket).await.map_err(error::meta)? {
            Some(bucket) if bucket.public => Ok(()),
            // Whether a private bucket exists is nobody's business.
            _ => Err(denied()),
        }
    }
}

/// A snapshot is read like any bucket, and nobody changes it.
fn refuse_changed_snapshot(context: &S3AccessContext<'_>) -> S3Result<()> {
    let (S3Path::Bucket { bucket } | S3Path::Object { bucket, .. }) = context.s3_path() else {
        return Ok(());
    };
    let reads = ["Get", "Head", "List"];
    if is_snapshot_bucket(bucket) && !reads.iter().any(|verb| context.s3_op().name().starts_with(verb)) {
        return Err(s3_error!(
            AccessDenied,
            "{bucket} is a snapshot: it never changes. Remove it with `holdfast snapshot rm`"
        ));
    }
    Ok(())
}

fn denied() -> S3Error {
    s3_error!(AccessDenied, "Access Denied: the request is not signed and the bucket is not public")
}
