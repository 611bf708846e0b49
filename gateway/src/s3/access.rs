//! Who may do what. With an access key: what its rules grant, and what every check of its token lets through. Without:
//! reading and listing public buckets, and what policies open. A policy may deny a key what its rules grant.
//!
//! A key learns nothing of what it has no grant on: the answer is the same whether a bucket exists or not, and it is given
//! before anything is looked up.

use std::sync::Arc;
use std::time::Instant;

use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::dto::{
    CopyObjectInput, CopySource, DeleteObjectsInput, ListMultipartUploadsInput, ListObjectVersionsInput,
    ListObjectsInput, ListObjectsV2Input, UploadPartCopyInput,
};
use s3s::path::S3Path;
use s3s::{S3Error, S3ErrorCode, S3Request, S3Result, s3_error};

use super::policy::Verdict;
use super::session::Session;
use super::snapshots::Through;
use super::{bucket_policy, error, rename};
use crate::gateway::Core;
use crate::keys::{AccessKey, AccessKeyError, Asked, Operation, Presented, Token};
use crate::snapshot::is_snapshot_bucket;

/// What anybody may do with a public bucket.
const PUBLIC_OPERATIONS: [&str; 6] =
    ["GetObject", "HeadObject", "ListObjects", "ListObjectsV2", "HeadBucket", "GetBucketLocation"];

/// Under which name requests without a key share their places.
const ANYBODY: &str = "";

/// Looks secrets up, and decides about every request.
#[derive(Clone)]
pub(crate) struct Gatekeeper {
    pub(crate) core: Arc<Core>,
}

/// Whoever a request is made for.
pub(crate) struct Caller {
    key: Arc<AccessKey>,
    token: Option<Arc<Token>>,
    presented: Presented,
    core: Arc<Core>,
}

impl Caller {
    /// Whether the operation is allowed on this object, or on the bucket as a whole.
    pub(crate) fn may(&self, operation: Operation, bucket: &str, object: Option<&str>) -> bool {
        self.key.rules.allow(operation, bucket, object) && self.token_lets(operation, bucket, object)
    }

    fn token_lets(&self, operation: Operation, bucket: &str, object: Option<&str>) -> bool {
        self.token.as_ref().is_none_or(|token| {
            let now_ms = self.core.config.clock.now_ms();
            token.allow(&Asked { operation, bucket, object, now_ms, presented: self.presented })
        })
    }

    /// The access key.
    pub(super) fn id(&self) -> &str {
        self.key.id()
    }

    /// Whether everything is theirs.
    pub(super) fn is_owner(&self) -> bool {
        self.key.rules.is_owner()
    }

    fn require(&self, operation: Operation, bucket: &str, object: Option<&str>) -> S3Result<()> {
        if self.may(operation, bucket, object) { Ok(()) } else { Err(denied()) }
    }
}

/// The access key that a request is made for; empty without one.
pub(super) fn key_of(extensions: &http::Extensions) -> String {
    extensions.get::<Arc<Caller>>().map(|caller| caller.key.id().to_owned()).unwrap_or_default()
}

/// The key that signed a form, and its secret.
pub(super) async fn form_key(core: &Arc<Core>, access_key: &str) -> S3Result<Arc<AccessKey>> {
    Gatekeeper { core: Arc::clone(core) }.live(access_key).await?.ok_or_else(unknown_key)
}

/// Whether the key of a form may write this object of this many bytes.
pub(super) async fn may_post(
    core: &Arc<Core>,
    key: &Arc<AccessKey>,
    (bucket, object): (&str, &str),
    bytes: u64,
) -> S3Result<()> {
    if is_snapshot_bucket(bucket) {
        return Err(denied());
    }
    if let Some(session) = Session::current() {
        session.asks_for("PostObject", bucket, object);
        session.belongs_to(Arc::clone(key));
        let place = core.key_limits.enter(key.id(), &key.rules, Instant::now());
        session.holds(place.map_err(|too_fast| s3_error!(SlowDown, "{too_fast}"))?);
    }
    let (core, key) = (Arc::clone(core), Arc::clone(key));
    let caller = Caller { key, token: None, presented: Presented::Signed, core: Arc::clone(&core) };
    caller.require(Operation::Write, bucket, Some(object))?;
    Gatekeeper { core }.check_quota(&caller, bytes).await
}

/// Whether whoever makes this request may know that the bucket exists: what a list of buckets shows.
pub(crate) fn may_know(extensions: &http::Extensions, bucket: &str) -> bool {
    let caller = extensions.get::<Arc<Caller>>();
    caller.is_some_and(|caller| {
        caller.key.rules.know(bucket) && caller.token_lets(Operation::List, bucket, None)
    })
}

/// What an operation needs before its input is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// A key; the answer shows only what it may see.
    Key,
    /// A grant of any kind on the bucket.
    Known,
    /// This, on the object.
    Object(Operation),
    /// This, on the bucket as a whole.
    Bucket(Operation),
    /// This, on something in the bucket; on what exactly is checked when the input is read.
    Within(Operation),
}

fn need(operation: &str) -> Need {
    match operation {
        "ListBuckets" => Need::Key,
        "HeadBucket" | "GetBucketLocation" | "GetBucketVersioning" => Need::Known,
        "GetObject"
        | "HeadObject"
        | "GetObjectAttributes"
        | "GetObjectTagging"
        | "GetObjectAcl"
        | "GetObjectRetention"
        | "GetObjectLegalHold"
        | "GetObjectTorrent"
        | "SelectObjectContent" => Need::Object(Operation::Read),
        "PutObject"
        | "CopyObject"
        | "CreateMultipartUpload"
        | "UploadPart"
        | "UploadPartCopy"
        | "CompleteMultipartUpload"
        | "AbortMultipartUpload"
        | "ListParts"
        | "PutObjectTagging"
        | "DeleteObjectTagging"
        | "PutObjectAcl"
        | "PutObjectRetention"
        | "PutObjectLegalHold" => Need::Object(Operation::Write),
        "PostObject" => Need::Within(Operation::Write),
        "DeleteObject" => Need::Object(Operation::Delete),
        "DeleteObjects" => Need::Within(Operation::Delete),
        "ListObjects" | "ListObjectsV2" | "ListObjectVersions" | "ListMultipartUploads" => {
            Need::Within(Operation::List)
        }
        // Making, configuring and removing buckets, and whatever comes to be that is not named here.
        _ => Need::Bucket(Operation::Manage),
    }
}

/// Whether a request asks to pass a governance lock.
fn asks_to_bypass(operation: &str, headers: &http::HeaderMap) -> bool {
    matches!(operation, "DeleteObject" | "DeleteObjects" | "PutObjectRetention")
        && headers
            .get("x-amz-bypass-governance-retention")
            .is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"false"))
}

/// Operations whose body counts against a quota. Copies bring nothing and count what they copy.
fn brings_bytes(operation: &str) -> bool {
    matches!(operation, "PutObject" | "PostObject" | "UploadPart")
}

#[async_trait::async_trait]
impl S3Auth for Gatekeeper {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let key = self.live(access_key).await?.ok_or_else(unknown_key)?;
        let secret = key.credentials.secret_key.as_str();
        let Some(session) = Session::current() else { return Ok(SecretKey::from(secret)) };
        let Some(text) = &session.signed_token else { return Ok(SecretKey::from(secret)) };
        let token = self.open_token(text).await?;
        if token.access_key() != access_key {
            return Err(bad_token());
        }
        let secret = token.secret(secret);
        session.set_token(token);
        Ok(SecretKey::from(secret.as_str()))
    }
}

impl Gatekeeper {
    async fn live(&self, access_key: &str) -> S3Result<Option<Arc<AccessKey>>> {
        let now_ms = self.core.config.clock.now_ms();
        self.core.access_keys.live(access_key, now_ms).await.map_err(key_failed)
    }

    async fn open_token(&self, text: &str) -> S3Result<Arc<Token>> {
        let token = self.core.tokens.open(text).map_err(|_| bad_token())?;
        if self.core.access_keys.is_token_revoked(&token).await.map_err(key_failed)? {
            return Err(bad_token());
        }
        Ok(token)
    }

    /// Whoever makes the request; `None` when it names nobody.
    async fn caller(&self, access_key: Option<&str>, session: Option<&Session>) -> S3Result<Option<Caller>> {
        let core = Arc::clone(&self.core);
        if let Some(access_key) = access_key {
            let key = self.live(access_key).await?.ok_or_else(unknown_key)?;
            let token = session.and_then(Session::token);
            return Ok(Some(Caller { key, token, presented: Presented::Signed, core }));
        }
        let Some(text) = session.and_then(|session| session.bearer_token.as_deref()) else { return Ok(None) };
        let token = self.open_token(text).await?;
        let key = self.live(token.access_key()).await?.ok_or_else(bad_token)?;
        Ok(Some(Caller { key, token: Some(token), presented: Presented::Bearer, core }))
    }

    /// Lets the caller in at the pace of its key.
    fn admit(&self, caller: &Caller, session: Option<&Session>) -> S3Result<()> {
        if let Some(session) = session {
            session.belongs_to(Arc::clone(&caller.key));
        }
        let place = self.core.key_limits.enter(caller.key.id(), &caller.key.rules, Instant::now());
        let place = place.map_err(|too_fast| s3_error!(SlowDown, "{too_fast}"))?;
        if let Some(session) = session {
            session.holds(place);
        }
        Ok(())
    }

    /// Whether a ticket for direct reads may be given out: the library does not ask [`S3Access`] about routes of our own.
    ///
    /// A ticket's grant runs for an hour and opens the ciphertext of the whole bucket at the nodes, which no check of a
    /// token can narrow; so tokens get none.
    pub(super) async fn check_ticket(
        &self,
        access_key: Option<&str>,
        bucket: &str,
        object: &str,
    ) -> S3Result<()> {
        let session = Session::current();
        let session = session.as_deref();
        if let Some(session) = session {
            session.asks_for("GetReadTicket", bucket, object);
        }
        let caller = self.caller(access_key, session).await?;
        if let Some(caller) = &caller {
            self.admit(caller, session)?;
            if caller.token.is_some() {
                return Err(denied());
            }
            match Through::find(&self.core, caller, bucket).await? {
                Some(through) if through.lets(caller, Operation::Read, object) => {}
                _ => caller.require(Operation::Read, bucket, Some(object))?,
            }
        }
        let Some(bucket) = self.core.meta.bucket(bucket).await.map_err(error::meta)? else {
            return if caller.is_some() { Ok(()) } else { Err(denied_stranger()) };
        };
        let known = caller.as_ref().map(|caller| caller.key.id());
        match bucket_policy::decide(&self.core, &bucket, known, "GetObject", object).await? {
            Verdict::Denied if caller.is_some() => Err(bucket_policy::denied()),
            Verdict::Allowed => Ok(()),
            Verdict::Silent if caller.is_some() || bucket.public => Ok(()),
            _ => Err(denied_stranger()),
        }
    }

    /// Lets in whoever makes a request of our own that only keys may make.
    pub(super) async fn enter(
        &self,
        access_key: Option<&str>,
        operation: &'static str,
        bucket: &str,
    ) -> S3Result<Caller> {
        let session = Session::current();
        let session = session.as_deref();
        if let Some(session) = session {
            session.asks_for(operation, bucket, "");
        }
        let caller = self.caller(access_key, session).await?.ok_or_else(denied)?;
        self.admit(&caller, session)?;
        Ok(caller)
    }

    /// What anybody may do.
    async fn check_stranger(&self, context: &S3AccessContext<'_>) -> S3Result<()> {
        let is_for_all = PUBLIC_OPERATIONS.contains(&context.s3_op().name());
        match bucket_policy::verdict(&self.core, context, None).await? {
            Some((Verdict::Allowed, _)) => Ok(()),
            Some((Verdict::Silent, true)) if is_for_all => Ok(()),
            // Whether a private bucket exists is nobody's business.
            _ => Err(denied_stranger()),
        }
    }

    /// Waits for a place among the requests of this key; the request holds it until its operation has answered.
    async fn share(&self, context: &mut S3AccessContext<'_>, key: &str) -> S3Result<()> {
        let place = self.core.fair.enter(key).await;
        let place =
            place.map_err(|_| error::slow_down("Too many requests of this key wait already".to_owned()))?;
        context.extensions_mut().insert(Arc::new(place));
        Ok(())
    }

    async fn check_quota(&self, caller: &Caller, coming: u64) -> S3Result<()> {
        let Some(quota) = caller.key.rules.quota_bytes else { return Ok(()) };
        let used = self.core.key_usage.stored(&self.core.meta, &caller.key).await.map_err(error::meta)?;
        if used.saturating_add(coming) <= quota {
            self.core.key_usage.coming(&caller.key, coming);
            return Ok(());
        }
        let mut error = S3Error::with_message(
            S3ErrorCode::Custom("QuotaExceeded".into()),
            format!(
                "The buckets of this access key hold {used} bytes of {quota}; {coming} more would be too many"
            ),
        );
        error.set_status_code(http::StatusCode::FORBIDDEN);
        Err(error)
    }

    /// Whether the source of a copy may be read, and whether what it holds fits into the quota. Of a part of it the whole
    /// counts: the part's range is not known here.
    async fn may_copy(
        &self,
        extensions: &http::Extensions,
        source: &CopySource,
        is_rename: bool,
    ) -> S3Result<()> {
        let Some(caller) = extensions.get::<Arc<Caller>>() else { return Err(denied()) };
        let CopySource::Bucket { bucket, key, .. } = source else { return Err(denied()) };
        caller.require(Operation::Read, bucket, Some(key))?;
        if is_rename {
            // The source is gone afterwards, and no byte is added.
            return caller.require(Operation::Delete, bucket, Some(key));
        }
        if caller.key.rules.quota_bytes.is_none() {
            return Ok(());
        }
        let Some(bucket) = self.core.meta.bucket(bucket).await.map_err(error::meta)? else { return Ok(()) };
        let object = self.core.meta.object(&bucket, key).await.map_err(error::meta)?;
        self.check_quota(caller, object.map_or(0, |object| object.size)).await
    }
}

#[async_trait::async_trait]
impl S3Access for Gatekeeper {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        refuse_changed_snapshot(context)?;
        let operation = context.s3_op().name();
        let (bucket, object) = match context.s3_path() {
            S3Path::Root => ("", None),
            S3Path::Bucket { bucket } => (&**bucket, None),
            S3Path::Object { bucket, key } => (&**bucket, Some(&**key)),
        };
        let session = Session::current();
        let session = session.as_deref();
        if let Some(session) = session {
            session.asks_for(operation, bucket, object.unwrap_or_default());
        }
        let access_key = context.credentials().map(|credentials| credentials.access_key.as_str());
        let Some(caller) = self.caller(access_key, session).await? else {
            self.check_stranger(context).await?;
            return self.share(context, ANYBODY).await;
        };
        self.admit(&caller, session)?;
        let rules = &caller.key.rules;
        let through = Through::find(&self.core, &caller, bucket).await?;
        let lets = |operation| {
            through.as_ref().is_some_and(|it| it.lets(&caller, operation, object.unwrap_or_default()))
        };
        match need(operation) {
            Need::Key => {}
            Need::Object(operation) if lets(operation) => {}
            // What exactly is listed is checked when the input is read.
            Need::Known | Need::Within(Operation::List) if through.is_some() => {}
            Need::Known if rules.know(bucket) && caller.token_lets(Operation::List, bucket, None) => {}
            Need::Within(operation) if rules.allow_some(operation, bucket) => {}
            Need::Object(operation) => caller.require(operation, bucket, object)?,
            Need::Bucket(operation) => caller.require(operation, bucket, None)?,
            Need::Known | Need::Within(_) => return Err(denied()),
        }
        if asks_to_bypass(operation, context.headers()) {
            // Taking a lock back is for whoever manages the bucket, not for everybody who may delete in it.
            caller.require(Operation::Manage, bucket, object)?;
            let may =
                bucket_policy::may_bypass(&self.core, bucket, caller.key.id(), object.unwrap_or_default());
            may.await?;
        }
        if brings_bytes(operation) {
            self.check_quota(&caller, session.map_or(0, Session::bytes_in)).await?;
        }
        bucket_policy::check_owner(&self.core, context)?;
        let key = caller.key.id().to_owned();
        if let Some((Verdict::Denied, _)) = bucket_policy::verdict(&self.core, context, Some(&key)).await? {
            return Err(bucket_policy::denied());
        }
        context.extensions_mut().insert(Arc::new(caller));
        if let Some(through) = through {
            context.extensions_mut().insert(Arc::new(through));
        }
        self.share(context, &key).await
    }

    async fn list_objects(&self, request: &mut S3Request<ListObjectsInput>) -> S3Result<()> {
        let input = &request.input;
        may_list(&request.extensions, &input.bucket, input.prefix.as_deref())
    }

    async fn list_objects_v2(&self, request: &mut S3Request<ListObjectsV2Input>) -> S3Result<()> {
        let input = &request.input;
        may_list(&request.extensions, &input.bucket, input.prefix.as_deref())
    }

    async fn list_object_versions(&self, request: &mut S3Request<ListObjectVersionsInput>) -> S3Result<()> {
        let input = &request.input;
        may_list(&request.extensions, &input.bucket, input.prefix.as_deref())
    }

    async fn list_multipart_uploads(
        &self,
        request: &mut S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<()> {
        let input = &request.input;
        may_list(&request.extensions, &input.bucket, input.prefix.as_deref())
    }

    async fn delete_objects(&self, request: &mut S3Request<DeleteObjectsInput>) -> S3Result<()> {
        let Some(caller) = request.extensions.get::<Arc<Caller>>() else { return Ok(()) };
        let input = &request.input;
        for object in &input.delete.objects {
            caller.require(Operation::Delete, &input.bucket, Some(&object.key))?;
        }
        Ok(())
    }

    async fn copy_object(&self, request: &mut S3Request<CopyObjectInput>) -> S3Result<()> {
        let is_rename = rename::is_asked(&request.headers);
        self.may_copy(&request.extensions, &request.input.copy_source, is_rename).await
    }

    async fn upload_part_copy(&self, request: &mut S3Request<UploadPartCopyInput>) -> S3Result<()> {
        self.may_copy(&request.extensions, &request.input.copy_source, false).await
    }
}

/// Without a caller it is a stranger in a public bucket.
fn may_list(extensions: &http::Extensions, bucket: &str, prefix: Option<&str>) -> S3Result<()> {
    let prefix = prefix.unwrap_or_default();
    let through = extensions.get::<Arc<Through>>();
    match extensions.get::<Arc<Caller>>() {
        Some(caller) if through.is_some_and(|it| it.lets(caller, Operation::List, prefix)) => Ok(()),
        Some(caller) => caller.require(Operation::List, bucket, Some(prefix)),
        None => Ok(()),
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

pub(super) fn denied() -> S3Error {
    s3_error!(AccessDenied, "Access Denied")
}

fn denied_stranger() -> S3Error {
    s3_error!(AccessDenied, "Access Denied: the request is not signed and the bucket is not public")
}

fn unknown_key() -> S3Error {
    s3_error!(InvalidAccessKeyId, "The AWS Access Key Id you provided does not exist in our records.")
}

fn bad_token() -> S3Error {
    s3_error!(InvalidToken, "The provided token is malformed, has ended, or belongs to another access key.")
}

fn key_failed(failure: AccessKeyError) -> S3Error {
    if failure.is_retryable() {
        return s3_error!(ServiceUnavailable, "The access key cannot be looked up now; try again");
    }
    tracing::error!(error = %failure, "an access key cannot be used");
    s3_error!(InternalError, "The access key cannot be used")
}

#[cfg(test)]
mod tests;
