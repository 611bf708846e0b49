//! The public access block of a bucket: which policies it refuses, and which it does not obey for anybody.
//!
//! Whether a bucket is public is decided when it is made, and its blocks are plain at the nodes from then on; so a block
//! that would close a public bucket is refused rather than pretended.

use std::sync::Arc;

use http::StatusCode;
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};
use serde::{Deserialize, Serialize};

use super::buckets::existing;
use super::{document, error};
use crate::gateway::Core;
use crate::meta::{Bucket, BucketSetting};

/// The four switches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PublicAccess {
    block_acls: bool,
    ignore_acls: bool,
    block_policy: bool,
    restrict: bool,
}

impl PublicAccess {
    /// Whether policies that open the bucket to anybody are refused.
    pub(super) fn blocks_policies(self) -> bool {
        self.block_policy
    }

    /// Whether a policy that is open to anybody opens the bucket to nobody without a key.
    pub(super) fn restricts_policies(self) -> bool {
        self.restrict
    }
}

/// The switches of a bucket; all are off where none were set.
pub(super) async fn of(core: &Core, bucket: &Bucket) -> S3Result<PublicAccess> {
    Ok(document::read(core, bucket, BucketSetting::PublicAccess).await?.unwrap_or_default())
}

pub(super) async fn put(
    core: &Arc<Core>,
    request: S3Request<PutPublicAccessBlockInput>,
) -> S3Result<S3Response<PutPublicAccessBlockOutput>> {
    let input = request.input;
    let bucket = existing(core, &input.bucket).await?;
    let asked = input.public_access_block_configuration;
    let is_set = |switch: Option<bool>| switch == Some(true);
    let wanted = PublicAccess {
        block_acls: is_set(asked.block_public_acls),
        ignore_acls: is_set(asked.ignore_public_acls),
        block_policy: is_set(asked.block_public_policy),
        restrict: is_set(asked.restrict_public_buckets),
    };
    if bucket.public && (wanted.ignore_acls || wanted.restrict) {
        return Err(s3_error!(
            InvalidRequest,
            "The bucket was made public and its objects are not enciphered: it cannot be closed. Copy them to a private bucket"
        ));
    }
    let bytes = document::encode(&wanted)?;
    let put = core.meta.put_bucket_setting(&bucket, BucketSetting::PublicAccess, Some(&bytes));
    put.await.map_err(error::bucket)?;
    Ok(S3Response::new(PutPublicAccessBlockOutput::default()))
}

pub(super) async fn get(
    core: &Arc<Core>,
    request: S3Request<GetPublicAccessBlockInput>,
) -> S3Result<S3Response<GetPublicAccessBlockOutput>> {
    let bucket = existing(core, &request.input.bucket).await?;
    let kept: Option<PublicAccess> = document::read(core, &bucket, BucketSetting::PublicAccess).await?;
    let kept = kept.ok_or_else(|| {
        document::missing(
            "NoSuchPublicAccessBlockConfiguration",
            "The public access block configuration was not found",
        )
    })?;
    let configuration = PublicAccessBlockConfiguration {
        block_public_acls: Some(kept.block_acls),
        ignore_public_acls: Some(kept.ignore_acls),
        block_public_policy: Some(kept.block_policy),
        restrict_public_buckets: Some(kept.restrict),
    };
    Ok(S3Response::new(GetPublicAccessBlockOutput { public_access_block_configuration: Some(configuration) }))
}

pub(super) async fn delete(
    core: &Arc<Core>,
    request: S3Request<DeletePublicAccessBlockInput>,
) -> S3Result<S3Response<DeletePublicAccessBlockOutput>> {
    let bucket = existing(core, &request.input.bucket).await?;
    let deleted = core.meta.put_bucket_setting(&bucket, BucketSetting::PublicAccess, None);
    deleted.await.map_err(error::bucket)?;
    Ok(S3Response::with_status(DeletePublicAccessBlockOutput::default(), StatusCode::NO_CONTENT))
}
