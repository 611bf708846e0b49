//! Settings of buckets that cannot be changed here and have a true answer all the same: encryption is as it is, and
//! websites, replication, logs, notifications and acceleration are off. Switching them on answers 501.

use std::sync::Arc;

use http::StatusCode;
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::buckets::existing;
use super::document;
use crate::gateway::Core;
use crate::meta::Bucket;

const AES256: &str = ServerSideEncryption::AES256;

/// What is said of an object's encryption: private ones are enciphered with AES-256.
pub(super) fn encryption_of(bucket: &Bucket) -> Option<ServerSideEncryption> {
    (!bucket.public).then(|| ServerSideEncryption::from_static(AES256))
}

pub(super) async fn encryption(
    core: &Arc<Core>,
    request: S3Request<GetBucketEncryptionInput>,
) -> S3Result<S3Response<GetBucketEncryptionOutput>> {
    let bucket = existing(core, &request.input.bucket).await?;
    let algorithm = encryption_of(&bucket).ok_or_else(|| {
        document::missing(
            "ServerSideEncryptionConfigurationNotFoundError",
            "The bucket is public: its objects are not encrypted",
        )
    })?;
    let default = ServerSideEncryptionByDefault { kms_master_key_id: None, sse_algorithm: algorithm };
    let rule = ServerSideEncryptionRule {
        apply_server_side_encryption_by_default: Some(default),
        bucket_key_enabled: Some(false),
    };
    let configuration = ServerSideEncryptionConfiguration { rules: vec![rule] };
    Ok(S3Response::new(GetBucketEncryptionOutput {
        server_side_encryption_configuration: Some(configuration),
    }))
}

/// Takes what is so already.
pub(super) async fn put_encryption(
    core: &Arc<Core>,
    request: S3Request<PutBucketEncryptionInput>,
) -> S3Result<S3Response<PutBucketEncryptionOutput>> {
    let input = request.input;
    let bucket = existing(core, &input.bucket).await?;
    let [rule] = &input.server_side_encryption_configuration.rules[..] else {
        return Err(document::malformed("An encryption configuration has one rule"));
    };
    let Some(default) = &rule.apply_server_side_encryption_by_default else {
        return Err(document::malformed("The rule names no algorithm"));
    };
    if default.sse_algorithm.as_str() != AES256 || default.kms_master_key_id.is_some() {
        return Err(s3_error!(
            NotImplemented,
            "Server-side encryption by {} is not implemented; there is AES256",
            default.sse_algorithm.as_str()
        ));
    }
    if bucket.public {
        return Err(s3_error!(InvalidRequest, "The bucket is public: its objects are not encrypted"));
    }
    Ok(S3Response::new(PutBucketEncryptionOutput::default()))
}

/// Back to the default, which is what there is.
pub(super) async fn delete_encryption(
    core: &Arc<Core>,
    request: S3Request<DeleteBucketEncryptionInput>,
) -> S3Result<S3Response<DeleteBucketEncryptionOutput>> {
    existing(core, &request.input.bucket).await?;
    Ok(S3Response::with_status(DeleteBucketEncryptionOutput::default(), StatusCode::NO_CONTENT))
}

pub(super) async fn logging(
    core: &Arc<Core>,
    request: S3Request<GetBucketLoggingInput>,
) -> S3Result<S3Response<GetBucketLoggingOutput>> {
    existing(core, &request.input.bucket).await?;
    Ok(S3Response::new(GetBucketLoggingOutput::default()))
}

pub(super) async fn payer(
    core: &Arc<Core>,
    request: S3Request<GetBucketRequestPaymentInput>,
) -> S3Result<S3Response<GetBucketRequestPaymentOutput>> {
    existing(core, &request.input.bucket).await?;
    let payer = Some(Payer::from_static(Payer::BUCKET_OWNER));
    Ok(S3Response::new(GetBucketRequestPaymentOutput { payer }))
}

pub(super) async fn acceleration(
    core: &Arc<Core>,
    request: S3Request<GetBucketAccelerateConfigurationInput>,
) -> S3Result<S3Response<GetBucketAccelerateConfigurationOutput>> {
    existing(core, &request.input.bucket).await?;
    Ok(S3Response::new(GetBucketAccelerateConfigurationOutput::default()))
}

pub(super) async fn notifications(
    core: &Arc<Core>,
    request: S3Request<GetBucketNotificationConfigurationInput>,
) -> S3Result<S3Response<GetBucketNotificationConfigurationOutput>> {
    existing(core, &request.input.bucket).await?;
    Ok(S3Response::new(GetBucketNotificationConfigurationOutput::default()))
}

pub(super) async fn website(
    core: &Arc<Core>,
    request: S3Request<GetBucketWebsiteInput>,
) -> S3Result<S3Response<GetBucketWebsiteOutput>> {
    existing(core, &request.input.bucket).await?;
    Err(document::missing(
        "NoSuchWebsiteConfiguration",
        "The specified bucket does not have a website configuration",
    ))
}

pub(super) async fn delete_website(
    core: &Arc<Core>,
    request: S3Request<DeleteBucketWebsiteInput>,
) -> S3Result<S3Response<DeleteBucketWebsiteOutput>> {
    existing(core, &request.input.bucket).await?;
    Ok(S3Response::with_status(DeleteBucketWebsiteOutput::default(), StatusCode::NO_CONTENT))
}

pub(super) async fn replication(
    core: &Arc<Core>,
    request: S3Request<GetBucketReplicationInput>,
) -> S3Result<S3Response<GetBucketReplicationOutput>> {
    existing(core, &request.input.bucket).await?;
    Err(document::missing(
        "ReplicationConfigurationNotFoundError",
        "The replication configuration was not found",
    ))
}

pub(super) async fn delete_replication(
    core: &Arc<Core>,
    request: S3Request<DeleteBucketReplicationInput>,
) -> S3Result<S3Response<DeleteBucketReplicationOutput>> {
    existing(core, &request.input.bucket).await?;
    Ok(S3Response::with_status(DeleteBucketReplicationOutput::default(), StatusCode::NO_CONTENT))
}
