//! Access control lists, which do not exist here: the owner of a bucket owns everything in it, as with S3's
//! `BucketOwnerEnforced`. What is said of a bucket is what public buckets mean; what says the same is taken, and whatever
//! would change it is refused.

use std::sync::Arc;

use s3s::dto::*;
use s3s::{S3Error, S3Request, S3Response, S3Result, s3_error};

use super::buckets::existing;
use super::{document, error};
use crate::gateway::Core;
use crate::meta::Bucket;

const EVERYBODY: &str = "http://acs.amazonaws.com/groups/global/AllUsers";
/// Canned lists that change nothing: there is one owner, who may do everything.
pub(super) const HARMLESS: [&str; 3] = ["private", "bucket-owner-full-control", "bucket-owner-read"];

/// The refusal of a list.
pub(super) fn unsupported() -> S3Error {
    error::custom(
        "AccessControlListNotSupported",
        http::StatusCode::BAD_REQUEST,
        "The bucket does not allow ACLs; use a bucket policy, or a bucket that is public from its start",
    )
}

/// Whether a canned list says what is so already.
fn says_so(canned: &str, bucket: &Bucket) -> bool {
    if bucket.public { canned == ObjectCannedACL::PUBLIC_READ } else { HARMLESS.contains(&canned) }
}

/// Whether the grants of a document are those of the bucket.
fn is_the_same(policy: &AccessControlPolicy, bucket: &Bucket, owner: &Owner) -> bool {
    let mut open = false;
    let all_fit = policy.grants.iter().flatten().all(|grant| {
        let Some(grantee) = &grant.grantee else { return false };
        let permission = grant.permission.as_ref().map(Permission::as_str);
        if grantee.uri.as_deref() == Some(EVERYBODY) && permission == Some(Permission::READ) {
            open = true;
            return bucket.public;
        }
        grantee.id == owner.id && permission == Some(Permission::FULL_CONTROL)
    });
    all_fit && open == bucket.public
}

fn check(
    core: &Core,
    bucket: &Bucket,
    canned: Option<&str>,
    policy: Option<&AccessControlPolicy>,
    has_grants: bool,
) -> S3Result<()> {
    let holds = match (canned, policy) {
        _ if has_grants => false,
        (Some(canned), None) => says_so(canned, bucket),
        (None, Some(policy)) => is_the_same(policy, bucket, &super::buckets::owner(core)),
        (Some(_), Some(_)) => {
            return Err(s3_error!(UnexpectedContent, "This request does not support content"));
        }
        (None, None) => {
            return Err(s3_error!(MissingSecurityHeader, "Your request was missing a required header"));
        }
    };
    if holds { Ok(()) } else { Err(unsupported()) }
}

pub(super) async fn put_bucket(
    core: &Arc<Core>,
    request: S3Request<PutBucketAclInput>,
) -> S3Result<S3Response<PutBucketAclOutput>> {
    let input = request.input;
    let bucket = existing(core, &input.bucket).await?;
    let has_grants = has_grants(&request.headers);
    let canned = input.acl.as_ref().map(BucketCannedACL::as_str);
    check(core, &bucket, canned, input.access_control_policy.as_ref(), has_grants)?;
    Ok(S3Response::new(PutBucketAclOutput::default()))
}

pub(super) async fn put_object(
    core: &Arc<Core>,
    request: S3Request<PutObjectAclInput>,
) -> S3Result<S3Response<PutObjectAclOutput>> {
    let input = request.input;
    let (bucket, _) =
        super::read::existing_object(core, &input.bucket, &input.key, input.version_id.as_deref()).await?;
    let has_grants = has_grants(&request.headers);
    let canned = input.acl.as_ref().map(ObjectCannedACL::as_str);
    check(core, &bucket, canned, input.access_control_policy.as_ref(), has_grants)?;
    Ok(S3Response::new(PutObjectAclOutput::default()))
}

fn has_grants(headers: &http::HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().starts_with("x-amz-grant-"))
}

/// Whoever puts an object owns nothing of it.
pub(super) async fn ownership(
    core: &Arc<Core>,
    request: S3Request<GetBucketOwnershipControlsInput>,
) -> S3Result<S3Response<GetBucketOwnershipControlsOutput>> {
    existing(core, &request.input.bucket).await?;
    let rule = OwnershipControlsRule {
        object_ownership: ObjectOwnership::from_static(ObjectOwnership::BUCKET_OWNER_ENFORCED),
    };
    let controls = OwnershipControls { rules: vec![rule] };
    Ok(S3Response::new(GetBucketOwnershipControlsOutput { ownership_controls: Some(controls) }))
}

pub(super) async fn put_ownership(
    core: &Arc<Core>,
    request: S3Request<PutBucketOwnershipControlsInput>,
) -> S3Result<S3Response<PutBucketOwnershipControlsOutput>> {
    let input = request.input;
    existing(core, &input.bucket).await?;
    let [rule] = &input.ownership_controls.rules[..] else {
        return Err(document::malformed("Ownership controls have one rule"));
    };
    if rule.object_ownership.as_str() != ObjectOwnership::BUCKET_OWNER_ENFORCED {
        return Err(s3_error!(
            NotImplemented,
            "Objects belong to the owner of their bucket; there is only BucketOwnerEnforced"
        ));
    }
    Ok(S3Response::new(PutBucketOwnershipControlsOutput::default()))
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
            grantee: Some(Grantee { uri: Some(EVERYBODY.to_owned()), ..grantee(Type::GROUP) }),
            permission: Some(Permission::from_static(Permission::READ)),
        });
    }
    grants
}

pub(super) async fn bucket(
    core: &Arc<Core>,
    request: S3Request<GetBucketAclInput>,
) -> S3Result<S3Response<GetBucketAclOutput>> {
    let bucket = existing(core, &request.input.bucket).await?;
    let owner = Some(super::buckets::owner(core));
    Ok(S3Response::new(GetBucketAclOutput { grants: Some(grants(core, bucket.public)), owner }))
}

pub(super) async fn object(
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
