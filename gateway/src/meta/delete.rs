//! Deleting: an object, one version of it, or, where versions are kept, setting a delete marker. And changing what a
//! version carries beside its bytes: tags and locks.

use holdfast_protocol::time::UnixMs;

use super::error::{Attempt, MaybeTorn, MetaError, PutError};
use super::features::Versioning;
use super::history::{Marker, Past, Standing, VersionName};
use super::model::{Attributes, Bucket, Object, VersionId};
use super::object::{Place, check_attributes, object_of};
use super::refs::{Brought, RefChanges};
use super::store::Transaction;
use super::{Meta, Sealer, random, schema};

/// What must be there for a deletion to happen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteCondition {
    /// The entity tag; `*` is any.
    pub etag: Option<String>,
    /// The time of its last change, in whole seconds.
    pub modified_s: Option<u64>,
    /// Its bytes.
    pub size: Option<u64>,
}

/// A deletion.
#[derive(Clone, Debug, Default)]
pub struct Deletion {
    /// Which version; without it the current one, or a delete marker is set.
    pub version: Option<VersionName>,
    /// What must be there.
    pub condition: DeleteCondition,
    /// Whether a governance lock may be passed.
    pub bypass_governance: bool,
}

/// What a deletion did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Whether there was anything.
    pub existed: bool,
    /// The version that was removed, when one was named.
    pub removed: Option<VersionName>,
    /// The delete marker that was set, or that was removed.
    pub marker: Option<VersionName>,
}

/// Why nothing was deleted or changed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum DeleteError {
    /// The bucket was removed meanwhile.
    #[error("the bucket was removed meanwhile")]
    NoSuchBucket,
    /// The condition does not hold.
    #[error("the condition on what is there does not hold")]
    PreconditionFailed,
    /// A retention or a legal hold.
    #[error("the version is locked")]
    Locked,
    /// There is no such object or version.
    #[error("there is no such version")]
    NoSuchVersion,
    /// The version is a delete marker, which carries nothing.
    #[error("the version is a delete marker")]
    IsMarker,
    /// A lock may only be made longer, unless it is one that may be bypassed.
    #[error("the lock may not be made shorter")]
    LockShrinks,
    /// Metadata.
    #[error(transparent)]
    Meta(#[from] MetaError),
}

impl DeleteError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Meta(error) if error.is_retryable())
    }
}

impl MaybeTorn for DeleteError {
    fn may_be_torn(&self) -> bool {
        matches!(self, Self::Meta(error) if error.may_be_torn())
    }
}

impl From<DeleteError> for Attempt<DeleteError> {
    fn from(error: DeleteError) -> Self {
        Self::Failed(error)
    }
}

/// The error of a step that deletions share with PUTs. What is about the bytes a PUT brings cannot come up.
fn narrow(attempt: Attempt<PutError>) -> Attempt<DeleteError> {
    match attempt {
        Attempt::Conflict => Attempt::Conflict,
        Attempt::Failed(PutError::NoSuchBucket) => Attempt::Failed(DeleteError::NoSuchBucket),
        Attempt::Failed(PutError::Meta(error)) => Attempt::Failed(DeleteError::Meta(error)),
        Attempt::Failed(_) => Attempt::Failed(DeleteError::Meta(MetaError::Corrupt { what: "object" })),
    }
}

impl DeleteCondition {
    fn is_any(&self) -> bool {
        *self == Self::default()
    }

    fn holds(&self, found: Option<&Past>) -> bool {
        if self.is_any() {
            return true;
        }
        let Some(Past::Object(object)) = found else { return false };
        self.etag.as_ref().is_none_or(|etag| etag == "*" || *etag == object.attributes.etag)
            && self.modified_s.is_none_or(|second| second == object.modified_ms / 1000)
            && self.size.is_none_or(|size| size == object.size)
    }
}

impl Meta {
    /// Deletes the object at `key`, or sets a delete marker; says whether there was an object.
    pub async fn delete_object(&self, bucket: &Bucket, key: &str) -> Result<bool, MetaError> {
        match self.delete(bucket, key, &Deletion::default()).await {
            Ok(deleted) => Ok(deleted.existed),
            Err(DeleteError::Meta(error)) => Err(error),
            // A bucket that is gone has no objects; the rest is about versions and conditions, and none was named.
            Err(_) => Ok(false),
        }
    }

    /// Deletes as `deletion` says.
    pub async fn delete(
        &self,
        bucket: &Bucket,
        key: &str,
        deletion: &Deletion,
    ) -> Result<Deleted, DeleteError> {
        let guard = self.reads.delete(bucket.id, key);
        self.retry(|| self.try_delete(bucket, key, deletion, guard.is_read)).await
    }

    async fn try_delete(
        &self,
        bucket: &Bucket,
        key: &str,
        deletion: &Deletion,
        is_read: bool,
    ) -> Result<Deleted, Attempt<DeleteError>> {
        let mut transaction = Transaction::default();
        let bucket = self.expect_bucket(bucket, &mut transaction).await.map_err(narrow)?;
        let at = Place { bucket: &bucket, key, is_read };
        let standing = self.standing(&bucket, key, deletion.version.as_ref()).await?;
        if !deletion.condition.holds(standing.as_ref().map(|standing| &standing.past)) {
            return Err(Attempt::Failed(DeleteError::PreconditionFailed));
        }
        if deletion.version.is_none() && bucket.features.versioning != Versioning::Off {
            return self.set_marker(&at, standing, transaction).await;
        }
        let Some(standing) = standing else {
            return Ok(Deleted { removed: deletion.version, ..Deleted::default() });
        };
        if let Past::Object(object) = &standing.past
            && !object.attributes.lock.permits_deletion(self.now_ms(), deletion.bypass_governance)
        {
            return Err(Attempt::Failed(DeleteError::Locked));
        }
        self.remove_version(&at, standing, deletion.version, transaction).await
    }

    async fn remove_version(
        &self,
        at: &Place<'_>,
        standing: Standing,
        named: Option<VersionName>,
        mut transaction: Transaction,
    ) -> Result<Deleted, Attempt<DeleteError>> {
        let mut changes = RefChanges::default();
        let mut usage = [0i64; 2];
        transaction.expect(standing.row.key.clone(), Some(standing.row.value.clone()));
        transaction.delete(standing.row.key.clone());
        if let Past::Object(object) = &standing.past {
            self.retire(at, object, &mut usage, (&mut changes, &mut transaction)).await?;
        }
        if standing.is_current {
            self.promote(at, &standing, &mut transaction).await?;
        } else if at.bucket.features.versioning != Versioning::Off {
            // Whoever changes the history relies on its newest row, so that two deletions cannot both leave it to the
            // other to bring an object back.
            if let Some((newest, _)) = self.newest_past(at.bucket, at.key).await?
                && newest.key != standing.row.key
            {
                transaction.expect(newest.key, Some(newest.value));
            }
        }
        transaction.add(schema::usage(at.bucket.id), usage.to_vec());
        self.change_refs(&changes, &Brought::new(), &mut transaction).await.map_err(narrow)?;
        self.store.transact(transaction).await?;
        let is_marker = matches!(standing.past, Past::Marker(_));
        let marker = is_marker.then(|| standing.past.name());
        Ok(Deleted { existed: true, removed: named, marker })
    }

    /// The newest row of the history becomes the current version, if it is an object.
    async fn promote(
        &self,
        at: &Place<'_>,
        gone: &Standing,
        transaction: &mut Transaction,
    ) -> Result<(), Attempt<DeleteError>> {
        if at.bucket.features.versioning == Versioning::Off {
            return Ok(());
        }
        let rows = self.pasts(at.bucket, at.key, None, 2).await?;
        let row_key = schema::object(at.bucket.id, at.key);
        if gone.row.key != row_key {
            transaction.expect(row_key.clone(), None);
        }
        let Some(next) = rows.into_iter().find(|row| row.key != gone.row.key) else { return Ok(()) };
        let past = self.open_past(at.bucket.id, &next)?;
        transaction.expect(next.key.clone(), Some(next.value));
        if let Past::Object(object) = past {
            let value = self.seal(&Sealer::from(at.bucket), &row_key, object.encode())?;
            transaction.delete(next.key);
            transaction.put(row_key, value);
        }
        Ok(())
    }

    async fn set_marker(
        &self,
        at: &Place<'_>,
        standing: Option<Standing>,
        mut transaction: Transaction,
    ) -> Result<Deleted, Attempt<DeleteError>> {
        let mut changes = RefChanges::default();
        let mut usage = [0i64; 2];
        let row_key = schema::object(at.bucket.id, at.key);
        let (old, found) = match standing {
            Some(Standing { row, past: Past::Object(object), .. }) => (Some(object), Some(row.value)),
            _ => (None, None),
        };
        let existed = old.is_some();
        transaction.expect(row_key.clone(), found);
        if existed {
            transaction.delete(row_key);
        }
        let stamp = self.shelve(at, old, &mut usage, (&mut changes, &mut transaction)).await?;
        let version = VersionId(random()?);
        let marker = Past::Marker(Marker { version, modified_ms: stamp.modified_ms, is_null: stamp.is_null });
        self.put_past(at.bucket, at.key, &marker, &mut transaction)?;
        transaction.add(schema::usage(at.bucket.id), usage.to_vec());
        self.change_refs(&changes, &Brought::new(), &mut transaction).await.map_err(narrow)?;
        self.store.transact(transaction).await?;
        Ok(Deleted { existed, removed: None, marker: Some(marker.name()) })
    }

    /// Changes what a version carries. `change` is called again when another writer was faster.
    pub async fn update_version(
        &self,
        bucket: &Bucket,
        key: &str,
        name: Option<&VersionName>,
        change: impl Fn(&mut Attributes, UnixMs) -> Result<(), DeleteError> + Send + Sync,
    ) -> Result<Object, DeleteError> {
        self.retry(|| self.try_update(bucket, key, name, &change)).await
    }

    async fn try_update(
        &self,
        bucket: &Bucket,
        key: &str,
        name: Option<&VersionName>,
        change: &(impl Fn(&mut Attributes, UnixMs) -> Result<(), DeleteError> + Send + Sync),
    ) -> Result<Object, Attempt<DeleteError>> {
        let standing = self.standing(bucket, key, name).await?.ok_or(DeleteError::NoSuchVersion)?;
        let Past::Object(mut object) = standing.past else {
            return Err(Attempt::Failed(DeleteError::IsMarker));
        };
        let lock_before = object.attributes.lock;
        change(&mut object.attributes, self.now_ms())?;
        check_attributes(&object.attributes)?;
        let body = if standing.row.key.starts_with(&schema::sub_table(schema::HISTORY)) {
            Past::Object(object.clone()).encode()
        } else {
            object.encode()
        };
        let value = self.seal(&Sealer::from(bucket), &standing.row.key, body)?;
        let mut transaction = Transaction::default();
        transaction.expect(standing.row.key.clone(), Some(standing.row.value));
        transaction.put(standing.row.key, value);
        if object.attributes.lock != lock_before {
            self.queue_lock(bucket.id, &object, &mut transaction);
        }
        self.store.transact(transaction).await?;
        Ok(object_of(bucket.id, key.to_owned(), object))
    }
}
