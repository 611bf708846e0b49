//! Buckets: private and enciphered unless their creator asks for a public one.

use std::sync::Arc;

use http::HeaderValue;
use s3s::dto::{
    Bucket as BucketLine, BucketCannedACL, BucketLocationConstraint, CreateBucketInput, CreateBucketOutput,
    DeleteBucketInput, DeleteBucketOutput, GetBucketLocationInput, GetBucketLocationOutput, HeadBucketInput,
    HeadBucketOutput, ListBucketsInput, ListBucketsOutput, Owner,
};
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::conditions::timestamp;
use super::session::Session;
use super::{access, error};
use crate::gateway::Core;
use crate::meta::{Bucket, Features, NewBucket, Versioning};
use crate::snapshot::is_snapshot_bucket;

/// The one region; requests signed for another are served too, since the signature binds them to what they name.
pub(crate) const REGION: &str = "us-east-1";
/// Buckets of one page of ListBuckets: S3's limit.
const MAX_BUCKETS: usize = 10_000;
/// `true` on CreateBucket makes the bucket public.
const PUBLIC_HEADER: &str = "x-holdfast-public";

/// The bucket, or 404. What the request's access was decided on is not read again.
pub(crate) async fn existing(core: &Core, name: &str) -> S3Result<Bucket> {
    if let Some(bucket) = Session::current().and_then(|session| session.take_bucket(name)) {
        return Ok(bucket);
    }
    core.meta.bucket(name).await.map_err(error::meta)?.ok_or_else(|| error::no_such_bucket(name))
}

pub(super) async fn create(
    core: &Arc<Core>,
    request: S3Request<CreateBucketInput>,
) -> S3Result<S3Response<CreateBucketOutput>> {
    let input = request.input;
    let asked = request.headers.get(PUBLIC_HEADER).map(HeaderValue::as_bytes);
    let public = match (asked, input.acl.as_ref().map(BucketCannedACL::as_str)) {
        (Some(b"true"), _) | (None, Some(BucketCannedACL::PUBLIC_READ)) => true,
        (Some(b"false") | None, None | Some(BucketCannedACL::PRIVATE)) => false,
        (Some(_), None) => {
            return Err(s3_error!(InvalidArgument, "x-holdfast-public is true or false"));
        }
        (_, Some(_)) => return Err(super::bucket_acl::unsupported()),
    };
    let lock = input.object_lock_enabled_for_bucket == Some(true);
    let versioning = if lock { Versioning::Enabled } else { Versioning::Off };
    let features = Features { lock, versioning, ..Features::default() };
    let new = NewBucket { name: input.bucket.clone(), public, policy: core.config.policy.name, features };
    core.meta.create_bucket(new).await.map_err(error::bucket)?;
    Ok(S3Response::new(CreateBucketOutput { location: Some(format!("/{}", input.bucket)) }))
}

pub(super) async fn list(
    core: &Arc<Core>,
    request: S3Request<ListBucketsInput>,
) -> S3Result<S3Response<ListBucketsOutput>> {
    let prefix = request.input.prefix.unwrap_or_default();
    let after = request.input.continuation_token.unwrap_or_default();
    let most = match request.input.max_buckets {
        None => usize::MAX,
        Some(most) => usize::try_from(most)
            .ok()
            .filter(|most| (1..=MAX_BUCKETS).contains(most))
            .ok_or_else(|| s3_error!(InvalidArgument, "max-buckets is a number from 1 to {MAX_BUCKETS}"))?,
    };
    let mut buckets = core.meta.buckets().await.map_err(error::meta)?;
    buckets.retain(|bucket| {
        // Snapshots have a list of their own.
        bucket.name.starts_with(&prefix)
            && bucket.name > after
            && access::may_know(&request.extensions, &bucket.name)
            && !is_snapshot_bucket(&bucket.name)
    });
    let is_truncated = buckets.len() > most;
    buckets.truncate(most);
    let next = buckets.last().filter(|_| is_truncated).map(|bucket| bucket.name.clone());
    let lines = buckets
        .into_iter()
        .map(|bucket| BucketLine {
            creation_date: Some(timestamp(bucket.created_ms)),
            name: Some(bucket.name),
            ..BucketLine::default()
        })
        .collect();
    Ok(S3Response::new(ListBucketsOutput {
        buckets: Some(lines),
        owner: Some(owner(core)),
        continuation_token: next,
        prefix: (!prefix.is_empty()).then_some(prefix),
    }))
}

pub(super) async fn head(
    core: &Arc<Core>,
    request: S3Request<HeadBucketInput>,
) -> S3Result<S3Response<HeadBucketOutput>> {
    existing(core, &request.input.bucket).await?;
    Ok(S3Response::new(HeadBucketOutput {
        bucket_region: Some(REGION.to_owned()),
        ..HeadBucketOutput::default()
    }))
}

pub(super) async fn delete(
    core: &Arc<Core>,
    request: S3Request<DeleteBucketInput>,
) -> S3Result<S3Response<DeleteBucketOutput>> {
    core.meta.delete_bucket(&request.input.bucket).await.map_err(error::bucket)?;
    Ok(S3Response::with_status(DeleteBucketOutput::default(), http::StatusCode::NO_CONTENT))
}

pub(super) async fn location(
    core: &Arc<Core>,
    request: S3Request<GetBucketLocationInput>,
) -> S3Result<S3Response<GetBucketLocationOutput>> {
    existing(core, &request.input.bucket).await?;
    // An empty constraint is how S3 says us-east-1.
    let location = BucketLocationConstraint::from_static("");
    Ok(S3Response::new(GetBucketLocationOutput { location_constraint: Some(location) }))
}

/// The namespace owns everything.
pub(crate) fn owner(core: &Core) -> Owner {
    let id = core.config.keys.namespace_id().to_string();
    Owner { display_name: Some("holdfast".to_owned()), id: Some(id) }
}
