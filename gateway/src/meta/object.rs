//! Objects: put and head. Each is one transaction. How they are deleted is in [`super::delete`].

use bytes::Bytes;

use super::bucket::{USAGE_BYTES, USAGE_OBJECTS, delta};
use super::error::{Attempt, MetaError, PutError};
use super::features::Versioning;
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
        let overwrite = self.reads.delete(bucket.id, &new.key);
        self.retry(|| self.try_put_object(bucket, &new, &brought, overwrite.is_read)).await
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
        is_read: bool,
    ) -> Result<Object, Attempt<PutError>> {
        let mut transaction = Transaction::default();
        let bucket = &self.expect_bucket(bucket, &mut transaction).await?;
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
                checksum: None,
            })
        };
        let mut row = ObjectRow {
            version,
            is_null: true,
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
        let replacing = Replacing { condition: &new.condition, is_read };
        self.replace_object(bucket, &new.key, &mut row, &replacing, (&mut changes, &mut transaction)).await?;
        self.change_refs(&changes, brought, &mut transaction).await?;
        self.store.transact(transaction).await?;
        stored.stripes.iter().for_each(|stripe| self.whereabouts.committed(stripe));
        Ok(object_of(bucket.id, new.key.clone(), row))
    }

    /// Puts `row` in the place of whatever is at `key`, and unlinks that, or keeps it as an older version.
    ///
    /// `bucket` is as the transaction relies on it. The row's time and its being `null` are set here.
    pub(super) async fn replace_object(
        &self,
        bucket: &Bucket,
        key: &str,
        row: &mut ObjectRow,
        replacing: &Replacing<'_>,
        (changes, transaction): (&mut RefChanges, &mut Transaction),
    ) -> Result<(), Attempt<PutError>> {
        let sealer = Sealer::from(bucket);
        let row_key = schema::object(bucket.id, key);
        let found = self.store.get(&row_key).await?;
        let old = found.as_ref().map(|value| self.open_object(bucket.id, &row_key, value)).transpose()?;
        let holds = match replacing.condition {
            PutCondition::Any => true,
            PutCondition::Absent => old.is_none(),
            PutCondition::Etag(etag) => old.as_ref().is_some_and(|old| old.attributes.etag == *etag),
        };
        if !holds {
            return Err(Attempt::Failed(PutError::PreconditionFailed));
        }
        let mut usage = [0i64; 2];
        usage[USAGE_OBJECTS] = 1;
        usage[USAGE_BYTES] = delta(row.size);
        let at = Place { bucket, key, is_read: replacing.is_read };
        if bucket.features.versioning == Versioning::Off {
            if let Some(old) = &old {
                self.retire(&at, old, &mut usage, (changes, transaction)).await?;
            }
        } else {
            let stamp = self.shelve(&at, old, &mut usage, (changes, transaction)).await?;
            (row.modified_ms, row.is_null) = (stamp.modified_ms, stamp.is_null);
        }
        transaction.expect(row_key.clone(), found);
        let value = self.seal(&sealer, &row_key, row.encode())?;
        transaction.put(row_key, value);
        transaction.add(schema::usage(bucket.id), usage.to_vec());
        self.queue_lock(bucket.id, row, transaction);
        Ok(())
    }

    /// Relies on the bucket being there, and on its being as this returns it.
    pub(super) async fn expect_bucket(
        &self,
        bucket: &Bucket,
        transaction: &mut Transaction,
    ) -> Result<Bucket, Attempt<PutError>> {
        match self.bucket_row(&bucket.name).await? {
            Some((found, row)) if found.id == bucket.id => {
                transaction.expect(schema::bucket(&bucket.name), Some(row));
                Ok(found)
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

    /// The object at `key`, for HEAD and GET alike. It stays whole while what this returns, or a clone of it, lives.
    pub async fn object(&self, bucket: &Bucket, key: &str) -> Result<Option<Object>, MetaError> {
        let entered = self.reads.enter(bucket.id, key).await;
        let row_key = schema::object(bucket.id, key);
        match self.store.get(&row_key).await? {
            None => Ok(None),
            Some(value) => {
                let row = self.open_object(bucket.id, &row_key, &value)?;
                let pin = entered.found(row.version);
                Ok(Some(Object { pin: Some(pin), ..object_of(bucket.id, key.to_owned(), row) }))
            }
        }
    }
}

/// What an object is put in the place of.
pub(super) struct Replacing<'a> {
    /// What must be there before.
    pub(super) condition: &'a PutCondition,
    /// Whether somebody reads what is there.
    pub(super) is_read: bool,
}

/// A key at which something is replaced or removed.
pub(super) struct Place<'a> {
    pub(super) bucket: &'a Bucket,
    pub(super) key: &'a str,
    /// Whether somebody reads what is there.
    pub(super) is_read: bool,
}

pub(super) fn object_of(bucket: BucketId, key: String, row: ObjectRow) -> Object {
    Object {
        key,
        version: row.version,
        is_null: row.is_null,
        size: row.size,
        block_count: row.block_count,
        modified_ms: row.modified_ms,
        root_cid: row.root_cid,
        encryption: row.encryption,
        attributes: row.attributes,
        part_count: row.part_count,
        layout: row.layout,
        bucket,
        pin: None,
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
    let pairs = pairs.chain(&attributes.tags);
    let len: usize = pairs.map(|(name, value)| name.len() + value.len()).sum();
    if len + attributes.etag.len() > schema::ATTRIBUTES_LEN_MAX {
        return Err(MetaError::Bounds { what: "headers and user metadata" });
    }
    Ok(())
}
