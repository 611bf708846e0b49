//! Bucket policies: what a policy adds to and takes from the rules of keys.

use std::sync::Arc;

use s3s::access::S3AccessContext;
use s3s::dto::*;
use s3s::path::S3Path;
use s3s::{S3Error, S3Request, S3Response, S3Result, s3_error};

use super::buckets::existing;
use super::condition::{self, Facts};
use super::policy::{Asked, Policy, PolicyError, Verdict, action_of};
use super::session::Session;
use super::{document, error, public_access, versions};
use crate::gateway::Core;
use crate::meta::{Bucket, BucketSetting, Found};

/// Headers that name whom the client believes to own a bucket.
const EXPECTED_OWNERS: [&str; 2] = ["x-amz-expected-bucket-owner", "x-amz-source-expected-bucket-owner"];

/// Refuses a request whose client believes the bucket to be somebody else's.
pub(super) fn check_owner(core: &Core, context: &S3AccessContext<'_>) -> S3Result<()> {
    let owner = core.config.keys.namespace_id().to_string();
    let is_other = |name: &&str| {
        context.headers().get(*name).is_some_and(|expected| expected.as_bytes() != owner.as_bytes())
    };
    if EXPECTED_OWNERS.iter().any(is_other) {
        return Err(s3_error!(AccessDenied, "The bucket belongs to another owner than the one you expect"));
    }
    Ok(())
}

/// What the policy of the request's bucket says, and whether the bucket is public; nothing when there is no bucket.
pub(super) async fn verdict(
    core: &Core,
    context: &S3AccessContext<'_>,
    access_key: Option<&str>,
) -> S3Result<Option<(Verdict, bool)>> {
    let (name, key) = match context.s3_path() {
        S3Path::Root => return Ok(None),
        S3Path::Bucket { bucket } => (bucket, ""),
        S3Path::Object { bucket, key } => (bucket, &**key),
    };
    let Some(bucket) = core.meta.bucket(name).await.map_err(error::meta)? else { return Ok(None) };
    if let Some(session) = Session::current() {
        session.decided_on(&bucket);
    }
    let operation = context.s3_op().name();
    // Whoever manages the bucket must be able to take a policy back.
    if access_key.is_some() && operation.ends_with("BucketPolicy") {
        return Ok(Some((Verdict::Silent, bucket.public)));
    }
    let has_version = context.uri().query().is_some_and(|query| query.contains("versionId="));
    let action = action_of(operation, has_version);
    let verdict = verdict_on(core, &bucket, access_key, &action, key).await?;
    Ok(Some((verdict, bucket.public && !has_version)))
}

/// What the bucket's policy says of an action.
async fn verdict_on(
    core: &Core,
    bucket: &Bucket,
    access_key: Option<&str>,
    action: &str,
    key: &str,
) -> S3Result<Verdict> {
    let Some(policy) = policy_of(core, bucket).await? else { return Ok(Verdict::Silent) };
    let session = Session::current();
    let none = Facts::default();
    let facts = session.as_deref().map_or(&none, Session::facts);
    let tags = if policy.needs_tags() && !key.is_empty() {
        tags_of(core, bucket, key, facts).await?
    } else {
        Vec::new()
    };
    let conditions = condition::Asked { facts, now_ms: core.config.clock.now_ms(), tags: &tags };
    let asked = Asked { access_key, action, bucket: &bucket.name, key, conditions };
    let verdict = policy.decide(&asked);
    let opens_to_all = verdict == Verdict::Allowed && access_key.is_none() && policy.is_public();
    if opens_to_all && public_access::of(core, bucket).await?.restricts_policies() {
        return Ok(Verdict::Silent);
    }
    Ok(verdict)
}

/// The tags of the object that is asked for, of the version that is named; none when there is none.
async fn tags_of(core: &Core, bucket: &Bucket, key: &str, facts: &Facts) -> S3Result<Vec<(String, String)>> {
    let Ok(name) = versions::named(facts.version().as_deref()) else { return Ok(Vec::new()) };
    match core.meta.version(bucket, key, name.as_ref()).await.map_err(error::meta)? {
        Some(Found::Object(object)) => Ok(object.attributes.tags),
        _ => Ok(Vec::new()),
    }
}

/// Whether the bucket's policy lets a key pass governance locks.
pub(super) async fn may_bypass(core: &Core, bucket: &str, access_key: &str, key: &str) -> S3Result<()> {
    let Some(bucket) = core.meta.bucket(bucket).await.map_err(error::meta)? else { return Ok(()) };
    let verdict = verdict_on(core, &bucket, Some(access_key), "s3:BypassGovernanceRetention", key).await?;
    if verdict == Verdict::Denied { Err(denied()) } else { Ok(()) }
}

pub(super) fn denied() -> S3Error {
    s3_error!(AccessDenied, "Access Denied by the bucket's policy")
}

/// The policy of a bucket, if it has one.
async fn policy_of(core: &Core, bucket: &Bucket) -> S3Result<Option<Policy>> {
    let text = core.meta.bucket_setting(bucket, BucketSetting::Policy).await.map_err(error::meta)?;
    let Some(text) = text else { return Ok(None) };
    let text = String::from_utf8_lossy(&text);
    // What was put was understood; should a later release put more, nothing is guessed.
    Policy::parse_kept(&text, &bucket.name)
        .map(Some)
        .map_err(|_| s3_error!(AccessDenied, "The bucket's policy cannot be read"))
}

/// Whether a key may do what its request does beside what was checked before: read the source of a copy, delete one of
/// many keys, post a form.
pub(super) async fn may(
    core: &Core,
    bucket: &Bucket,
    access_key: &str,
    operation: &str,
    key: &str,
) -> S3Result<()> {
    match decide(core, bucket, Some(access_key), operation, key).await? {
        Verdict::Denied => Err(denied()),
        _ => Ok(()),
    }
}

/// What the bucket's policy says of an operation on the current version of a key.
pub(super) async fn decide(
    core: &Core,
    bucket: &Bucket,
    access_key: Option<&str>,
    operation: &str,
    key: &str,
) -> S3Result<Verdict> {
    verdict_on(core, bucket, access_key, &action_of(operation, false), key).await
}

fn no_policy() -> S3Error {
    document::missing("NoSuchBucketPolicy", "The bucket policy does not exist")
}

pub(super) async fn put_policy(
    core: &Arc<Core>,
    request: S3Request<PutBucketPolicyInput>,
) -> S3Result<S3Response<PutBucketPolicyOutput>> {
    let input = request.input;
    let bucket = existing(core, &input.bucket).await?;
    let policy = Policy::parse(&input.policy, &bucket.name).map_err(|error| match &error {
        PolicyError::Malformed(_) => s3_error!(MalformedPolicy, "{error}"),
        PolicyError::NotImplemented(_) => s3_error!(NotImplemented, "{error}"),
    })?;
    if policy.is_public() && public_access::of(core, &bucket).await?.blocks_policies() {
        return Err(s3_error!(AccessDenied, "The bucket's public access block refuses policies for anybody"));
    }
    let put = core.meta.put_bucket_setting(&bucket, BucketSetting::Policy, Some(input.policy.as_bytes()));
    put.await.map_err(error::bucket)?;
    Ok(S3Response::with_status(PutBucketPolicyOutput::default(), http::StatusCode::NO_CONTENT))
}

pub(super) async fn get_policy(
    core: &Arc<Core>,
    request: S3Request<GetBucketPolicyInput>,
) -> S3Result<S3Response<GetBucketPolicyOutput>> {
    let bucket = existing(core, &request.input.bucket).await?;
    let text = core.meta.bucket_setting(&bucket, BucketSetting::Policy).await.map_err(error::meta)?;
    let text = text.ok_or_else(no_policy)?;
    let policy = Some(String::from_utf8_lossy(&text).into_owned());
    Ok(S3Response::new(GetBucketPolicyOutput { policy }))
}

pub(super) async fn delete_policy(
    core: &Arc<Core>,
    request: S3Request<DeleteBucketPolicyInput>,
) -> S3Result<S3Response<DeleteBucketPolicyOutput>> {
    let bucket = existing(core, &request.input.bucket).await?;
    core.meta.put_bucket_setting(&bucket, BucketSetting::Policy, None).await.map_err(error::bucket)?;
    Ok(S3Response::with_status(DeleteBucketPolicyOutput::default(), http::StatusCode::NO_CONTENT))
}

pub(super) async fn policy_status(
    core: &Arc<Core>,
    request: S3Request<GetBucketPolicyStatusInput>,
) -> S3Result<S3Response<GetBucketPolicyStatusOutput>> {
    let bucket = existing(core, &request.input.bucket).await?;
    let policy = policy_of(core, &bucket).await?.ok_or_else(no_policy)?;
    let status = PolicyStatus { is_public: Some(policy.is_public()) };
    Ok(S3Response::new(GetBucketPolicyStatusOutput { policy_status: Some(status) }))
}
