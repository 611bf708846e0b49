//! Objects: put, head, delete. Each is one transaction.

use bytes::Bytes;

use super::bucket::{USAGE_BYTES, USAGE_OBJECTS, delta};
use super::error::{Attempt, MetaError, PutError};
use super::model::{Bucket, BucketId, NewObject, Object, PutCondition, Stored, VersionId};
use super::refs::{Brought, RefChanges};
use super::row::{ObjectRow, from_record};
use super::store::Transaction;
use super::{Meta, Sealer, random, schema};
use crate::crypt::WrapContext;
use crate::layout::{Layout, PartLayout, total_len};

impl Meta {
    /// Commits a PUT: the object, its references, its stripes and the work that follows, or nothing.
    pub async fn put_object(&self, bucket: &Bucket, new: NewObject) -> Result<Object, PutError> {
        check_key(&new.key)?;
        check_attributes(&new.attributes)?;
        let brought = self.bring(&new.stored).await?;
        self.retry(|| self.try_put_object(bucket, &new, &brought)).await
    }

    /// Checks that blocks and size agree, and gives every node of the stripes its number.
    pub(super) async fn bring(&self, stored: &Stored) -> Result<Brought, PutError> {
        let found = total_len(&stored.blocks);
        if found != stored.size {
            return Err(PutError::Size { found, expected: stored.size });
        }
        for stripe in &stored.stripes {
            self.intern_nodes(stripe).await?;
        }
        let mut brought = Brought::new();
        for stripe in &stored.stripes {
            let row = from_record(stripe, |node| self.nodes.number(node));
            brought.insert(stripe.id, row.ok_or(MetaError::Corrupt { what: "node number" })?);
        }
        Ok(brought)
    }

    async fn try_put_object(
        &self,
        bucket: &Bucket,
        new: &NewObject,
        brought: &Brought,
    ) -> Result<Object, Attempt<PutError>> {
        let mut transaction = Transaction::default();
        self.expect_bucket(bucket, &mut transaction).await?;
        let sealer = Sealer::from(bucket);
        let version = VersionId(random()?);
        let stored = &new.stored;
        let layout = if stored.blocks.is_empty() {
            Layout::Empty
        } else {
            let root_cid = new.root_cid.to_bytes();
            let context =
                WrapContext { object: &new.key, version, offset: 0, size: stored.size, root_cid: &root_cid };
            Layout::Single(PartLayout {
                offset: 0,
                len: stored.size,
                key: self.wrap(&sealer, stored, &context)?,
                iv_nonce: stored.secret.as_ref().map_or(0, |secret| secret.nonce()),
                blocks: self.put_run(&sealer, stored.blocks.clone(), &mut transaction)?,
            })
        };
        let row = ObjectRow {
            version,
            size: stored.size,
            block_count: stored.blocks.len() as u64,
            modified_ms: self.now_ms(),
            part_count: 0,
            encryption: bucket.encryption,
            root_cid: new.root_cid,
            attributes: new.attributes.clone(),
            layout,
        };
        let mut changes = RefChanges::of(bucket.id);
        changes.take(&stored.blocks);
        self.replace_object(bucket, &new.key, &row, &new.condition, (&mut changes, &mut transaction)).await?;
        self.change_refs(&changes, brought, &mut transaction).await?;
        self.store.transact(transaction).await?;
        Ok(object_of(bucket.id, new.key.clone(), row))
    }

    /// Puts `row` in the place of whatever is at `key`, and unlinks that.
    pub(super) async fn replace_object(
        &self,
        bucket: &Bucket,
        key: &str,
        row: &ObjectRow,
        condition: &PutCondition,
        (changes, transaction): (&mut RefChanges, &mut Transaction),
    ) -> Result<(), Attempt<PutError>> {
        let sealer = Sealer::from(bucket);
        let row_key = schema::object(bucket.id, key);
        let found = self.store.get(&row_key).await?;
        let old = found.as_ref().map(|value| self.open_object(bucket.id, &row_key, value)).transpose()?;
        let holds = match condition {
            PutCondition::Any => true,
            PutCondition::Absent => old.is_none(),
            PutCondition::Etag(etag) => old.as_ref().is_some_and(|old| old.attributes.etag == *etag),
        };
        if !holds {
            return Err(Attempt::Failed(PutError::PreconditionFailed));
        }
        let mut usage = [0i64; 2];
        usage[USAGE_OBJECTS] = i64::from(old.is_none());
        usage[USAGE_BYTES] = delta(row.size) - old.as_ref().map_or(0, |old| delta(old.size));
        if let Some(old) = &old {
            self.unlink_object(&sealer, old, changes, transaction).await?;
        }
        transaction.expect(row_key.clone(), found);
        let value = self.seal(&sealer, &row_key, row.encode())?;
        transaction.put(row_key, value);
        transaction.add(schema::usage(bucket.id), usage.to_vec());
        Ok(())
    }

    /// Relies on the bucket being there.
    pub(super) async fn expect_bucket(
        &self,
        bucket: &Bucket,
        transaction: &mut Transaction,
    ) -> Result<(), Attempt<PutError>> {
        match self.bucket_row(&bucket.name).await? {
            Some((found, row)) if found.id == bucket.id => {
                transaction.expect(schema::bucket(&bucket.name), Some(row));
                Ok(())
            }
            _ => Err(Attempt::Failed(PutError::NoSuchBucket)),
        }
    }

    pub(super) fn wrap(
        &self,
        bucket: &Sealer,
        stored: &Stored,
        context: &WrapContext<'_>,
    ) -> Result<Option<holdfast_protocol::record::WrappedKey>, MetaError> {
        let Some(secret) = &stored.secret else { return Ok(None) };
        Ok(Some(self.bucket_keys(bucket.id, bucket.epoch)?.wrap(secret, context)?))
    }

    pub(super) fn open_object(
        &self,
        bucket: BucketId,
        row_key: &[u8],
        value: &Bytes,
    ) -> Result<ObjectRow, MetaError> {
        ObjectRow::decode(self.unseal(bucket, "object", row_key, value)?)
    }

    /// The object at `key`, for HEAD and GET alike.
    pub async fn object(&self, bucket: &Bucket, key: &str) -> Result<Option<Object>, MetaError> {
        let row_key = schema::object(bucket.id, key);
        match self.store.get(&row_key).await? {
            None => Ok(None),
            Some(value) => {
                Ok(Some(object_of(bucket.id, key.to_owned(), self.open_object(bucket.id, &row_key, &value)?)))
            }
        }
    }

    /// Deletes the object at `key`; says whether there was one.
    pub async fn delete_object(&self, bucket: &Bucket, key: &str) -> Result<bool, MetaError> {
        match self.retry(|| self.try_delete_object(bucket, key)).await {
            Ok(deleted) => Ok(deleted),
            Err(PutError::Meta(error)) => Err(error),
            // The others are about what a PUT brings; a DELETE brings nothing.
            Err(_) => Err(MetaError::Corrupt { what: "object" }),
        }
    }

    async fn try_delete_object(&self, bucket: &Bucket, key: &str) -> Result<bool, Attempt<PutError>> {
        let row_key = schema::object(bucket.id, key);
        let Some(value) = self.store.get(&row_key).await? else { return Ok(false) };
        let old = self.open_object(bucket.id, &row_key, &value)?;
        let mut transaction = Transaction::default();
        let mut changes = RefChanges::default();
        self.unlink_object(&Sealer::from(bucket), &old, &mut changes, &mut transaction).await?;
        transaction.expect(row_key.clone(), Some(value));
        transaction.delete(row_key);
        transaction.add(schema::usage(bucket.id), vec![-1, -delta(old.size)]);
        self.change_refs(&changes, &Brought::new(), &mut transaction).await?;
        self.store.transact(transaction).await?;
        Ok(true)
    }
}

pub(super) fn object_of(bucket: BucketId, key: String, row: ObjectRow) -> Object {
    Object {
        key,
        version: row.version,
        size: row.size,
        block_count: row.block_count,
        modified_ms: row.modified_ms,
        root_cid: row.root_cid,
        encryption: row.encryption,
        attributes: row.attributes,
        part_count: row.part_count,
        layout: row.layout,
        bucket,
    }
}

pub(super) fn check_key(key: &str) -> Result<(), MetaError> {
    if key.is_empty() || key.len() > schema::OBJECT_KEY_LEN_MAX {
        return Err(MetaError::Bounds { what: "object key" });
    }
    Ok(())
}

/// Headers and user metadata are part of a row that every listing reads.
pub(super) fn check_attributes(attributes: &super::model::Attributes) -> Result<(), MetaError> {
    let pairs = attributes.headers.iter().chain(&attributes.user).chain(&attributes.checksums);
    let len: usize = pairs.map(|(name, value)| name.len() + value.len()).sum();
    if len + attributes.etag.len() > schema::ATTRIBUTES_LEN_MAX {
        return Err(MetaError::Bounds { what: "headers and user metadata" });
    }
    Ok(())
}
