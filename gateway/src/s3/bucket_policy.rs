//! Bucket policies and what is said of access lists: what a policy adds to and takes from the rules of keys.

use std::sync::Arc;

use s3s::access::S3AccessContext;
use s3s::dto::*;
use s3s::path::S3Path;
use s3s::{S3Error, S3Request, S3Response, S3Result, s3_error};

use super::buckets::existing;
use super::policy::{Asked, Policy, PolicyError, Verdict, action_of};
use super::session::Session;
use super::{document, error};
use crate::gateway::Core;
use crate::meta::{Bucket, BucketSetting};

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
    let asked = Asked { access_key, action: &action, bucket: name, key };
    let verdict = match policy_of(core, &bucket).await? {
        Some(policy) => policy.decide(&asked),
        None => Verdict::Silent,
    };
    Ok(Some((verdict, bucket.public && !has_version)))
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
    Policy::parse(&text, &bucket.name)
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
    let action = action_of(operation, false);
    let asked = Asked { access_key, action: &action, bucket: &bucket.name, key };
    Ok(policy_of(core, bucket).await?.map_or(Verdict::Silent, |policy| policy.decide(&asked)))
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
    Policy::parse(&input.policy, &bucket.name).map_err(|error| match &error {
        PolicyError::Malformed(_) => s3_error!(MalformedPolicy, "{error}"),
        PolicyError::NotImplemented(_) => s3_error!(NotImplemented, "{error}"),
    })?;
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

fn grants(core: &Core, is_public: bool) -> Vec<Grant> {
    let owner = super::buckets::owner(core);
    let grantee = |kind: &'static str| Grantee {
        display_name: None,
        email_address: None,
        id: None,
        uri: None,
        type_: Type::from_static(kind),
    };
    let mut grants = vec![Grant {
        grantee: Some(Grantee {
            id: owner.id,
            display_name: owner.display_name,
            ..grantee(Type::CANONICAL_USER)
        }),
        permission: Some(Permission::from_static(Permission::FULL_CONTROL)),
    }];
    if is_public {
        grants.push(Grant {
            grantee: Some(Grantee {
                uri: Some("http://acs.amazonaws.com/groups/global/AllUsers".to_owned()),
                ..grantee(Type::GROUP)
            }),
            permission: Some(Permission::from_static(Permission::READ)),
        });
    }
    grants
}

/// There are no access control lists: what is said of a bucket is what public buckets mean.
pub(super) async fn bucket_acl(
    core: &Arc<Core>,
    request: S3Request<GetBucketAclInput>,
) -> S3Result<S3Response<GetBucketAclOutput>> {
    let bucket = existing(core, &request.input.bucket).await?;
    let owner = Some(super::buckets::owner(core));
    Ok(S3Response::new(GetBucketAclOutput { grants: Some(grants(core, bucket.public)), owner }))
}

pub(super) async fn object_acl(
    core: &Arc<Core>,
    request: S3Request<GetObjectAclInput>,
) -> S3Result<S3Response<GetObjectAclOutput>> {
    let input = request.input;
    let (bucket, _) =
        super::read::existing_object(core, &input.bucket, &input.key, input.version_id.as_deref()).await?;
    let owner = Some(super::buckets::owner(core));
    Ok(S3Response::new(GetObjectAclOutput {
        grants: Some(grants(core, bucket.public)),
        owner,
        ..GetObjectAclOutput::default()
    }))
}
