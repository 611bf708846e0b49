//! Copies that move no bytes: another object over the same blocks.
//!
//! The copy's parts keep their key and counter, wrapped again for the new object: one (key, counter) pair still serves
//! one plaintext. Short runs are listed again and take a reference on each block. Long runs are shared: a row counts how
//! many more objects than one list them, and their blocks are referenced once. So a copy within a bucket costs a row a
//! part, whatever its size.
//!
//! Between buckets that are enciphered alike long runs are listed again, too, since pages are sealed under their bucket's
//! key: a row for 1,024 blocks and a reference on each. The claims at the nodes stay in the scope of the bucket that wrote
//! the blocks, so whoever reads straight from nodes under the copy's bucket is refused there and asks the gateway.

use holdfast_protocol::record::Encryption;

use super::codec::{Reader, Writer};
use super::error::{Attempt, MetaError, PutError};
use super::features::Versioning;
use super::history::Past;
use super::model::{Attributes, Bucket, Object, PutCondition, VersionId};
use super::object::{Replacing, check_attributes, check_key, object_of};
use super::refs::{Brought, RefChanges};
use super::row::{ObjectRow, encode_object_part};
use super::store::Transaction;
use super::{Meta, Sealer, random, schema};
use crate::crypt::WrapContext;
use crate::layout::{Layout, PartLayout, Run};

/// A copy to make.
#[derive(Clone, Debug)]
pub struct NewCopy {
    /// The key of the copy.
    pub key: String,
    /// What it carries; its entity tag and checksums are the source's.
    pub attributes: Attributes,
    /// What must be there before.
    pub condition: PutCondition,
}

/// Whether objects of `target` may list blocks of `source`. Another policy promises another durability, and what a dedup
/// bucket's blocks are enciphered with is that bucket's own.
pub fn is_shareable(source: &Bucket, target: &Bucket) -> bool {
    let is_alike = source.public == target.public
        && source.encryption == target.encryption
        && source.encryption != Encryption::Dedup
        && source.policy == target.policy;
    source.id == target.id || is_alike
}

impl Meta {
    /// Makes an object of the blocks of `source`, which was found in `source_bucket`.
    pub async fn copy_object(
        &self,
        source_bucket: &Bucket,
        source: &Object,
        bucket: &Bucket,
        copy: &NewCopy,
    ) -> Result<Object, PutError> {
        check_key(&copy.key)?;
        check_attributes(&copy.attributes)?;
        let overwrite = self.reads.delete(bucket.id, &copy.key);
        // The source is read by us, so the key counts as read when it is copied onto itself.
        self.retry(|| self.try_copy(source_bucket, source, bucket, copy, overwrite.is_read)).await
    }

    async fn try_copy(
        &self,
        source_bucket: &Bucket,
        source: &Object,
        bucket: &Bucket,
        copy: &NewCopy,
        is_read: bool,
    ) -> Result<Object, Attempt<PutError>> {
        let mut transaction = Transaction::default();
        let bucket = &self.expect_bucket(bucket, &mut transaction).await?;
        let name = source.version_name();
        let standing = self.standing(source_bucket, &source.key, Some(&name)).await?;
        let Some((row, Past::Object(old))) = standing.map(|standing| (standing.row, standing.past)) else {
            return Err(Attempt::Failed(PutError::SourceGone));
        };
        if old.version != source.version {
            return Err(Attempt::Failed(PutError::SourceGone));
        }
        let version = VersionId(random()?);
        let mut attributes = copy.attributes.clone();
        attributes.etag.clone_from(&old.attributes.etag);
        attributes.checksums.clone_from(&old.attributes.checksums);
        let is_itself = source_bucket.id == bucket.id
            && source.key == copy.key
            && row.key == schema::object(bucket.id, &copy.key);
        if is_itself && bucket.features.versioning == Versioning::Off {
            let old = ObjectRow { attributes, ..old };
            return self.replace_attributes(bucket, copy, (row.key, row.value), old, transaction).await;
        }
        if row.key != schema::object(bucket.id, &copy.key) {
            transaction.expect(row.key, Some(row.value));
        }
        let mut changes = RefChanges::of(bucket.id);
        let mut new =
            ObjectRow { version, is_null: true, modified_ms: self.now_ms(), attributes, ..old.clone() };
        new.encryption = bucket.encryption;
        new.layout = self
            .copy_layout(
                (source_bucket, source),
                (bucket, copy, version),
                &old,
                (&mut changes, &mut transaction),
            )
            .await?;
        let replacing = Replacing { condition: &copy.condition, is_read };
        self.replace_object(bucket, &copy.key, &mut new, &replacing, (&mut changes, &mut transaction))
            .await?;
        self.apply_shares(&changes, &mut transaction).await?;
        self.change_refs(&changes, &Brought::new(), &mut transaction).await.map_err(
            |attempt| match attempt {
                // A block whose last reference went while we took one.
                Attempt::Failed(PutError::Unplaced { .. }) => Attempt::Failed(PutError::SourceGone),
                attempt => attempt,
            },
        )?;
        self.store.transact(transaction).await?;
        Ok(object_of(bucket.id, copy.key.clone(), new))
    }

    /// A copy onto itself where no versions are kept: only what it carries changes.
    async fn replace_attributes(
        &self,
        bucket: &Bucket,
        copy: &NewCopy,
        (key, value): (Vec<u8>, bytes::Bytes),
        mut row: ObjectRow,
        mut transaction: Transaction,
    ) -> Result<Object, Attempt<PutError>> {
        let holds = match &copy.condition {
            PutCondition::Any => true,
            PutCondition::Absent => false,
            PutCondition::Etag(etag) => row.attributes.etag == *etag,
        };
        if !holds {
            return Err(Attempt::Failed(PutError::PreconditionFailed));
        }
        row.modified_ms = self.now_ms();
        let sealed = self.seal(&Sealer::from(bucket), &key, row.encode())?;
        transaction.expect(key.clone(), Some(value));
        transaction.put(key, sealed);
        self.store.transact(transaction).await?;
        Ok(object_of(bucket.id, copy.key.clone(), row))
    }

    async fn copy_layout(
        &self,
        (source_bucket, source): (&Bucket, &Object),
        (bucket, copy, version): (&Bucket, &NewCopy, VersionId),
        old: &ObjectRow,
        (changes, transaction): (&mut RefChanges, &mut Transaction),
    ) -> Result<Layout, Attempt<PutError>> {
        let cid = old.root_cid.to_bytes();
        let from = WrapContext {
            object: &source.key,
            version: old.version,
            offset: 0,
            size: old.size,
            root_cid: &cid,
        };
        let to = WrapContext { object: &copy.key, version, ..from };
        let again = |mut part: PartLayout| {
            if let Some(key) = &part.key {
                let from = WrapContext { offset: part.offset, ..from };
                let to = WrapContext { offset: part.offset, ..to };
                let secret =
                    self.bucket_keys(source_bucket.id, key.epoch)?.unwrap(key, part.iv_nonce, &from)?;
                part.key = Some(self.bucket_keys(bucket.id, bucket.key_epoch)?.wrap(&secret, &to)?);
            }
            Ok::<_, MetaError>(part)
        };
        match &old.layout {
            Layout::Empty => Ok(Layout::Empty),
            Layout::Single(part) => {
                let mut part = again(part.clone())?;
                part.blocks = self
                    .take_run((source_bucket, bucket), part.blocks, (&mut *changes, &mut *transaction))
                    .await?;
                Ok(Layout::Single(part))
            }
            Layout::Parts => {
                for row in self.object_part_rows(old.version).await? {
                    let mut part = again(self.open_object_part(source_bucket.id, &row)?)?;
                    part.blocks = self
                        .take_run((source_bucket, bucket), part.blocks, (&mut *changes, &mut *transaction))
                        .await?;
                    let key = schema::part(version, part.offset + part.len);
                    let value = self.seal(&Sealer::from(bucket), &key, encode_object_part(&part))?;
                    transaction.put(key, value);
                }
                Ok(Layout::Parts)
            }
        }
    }

    /// The run as the copy lists it, with its references.
    async fn take_run(
        &self,
        (source, target): (&Bucket, &Bucket),
        run: Run,
        (changes, transaction): (&mut RefChanges, &mut Transaction),
    ) -> Result<Run, MetaError> {
        match run {
            Run::Inline(entries) => {
                changes.take(&entries);
                Ok(Run::Inline(entries))
            }
            Run::Pages { run, count } if source.id == target.id => {
                *changes.shared.entry(run).or_default() += 1;
                Ok(Run::Pages { run, count })
            }
            pages => {
                let entries = self.run_entries(source.id, &pages).await?;
                changes.take(&entries);
                self.put_run(&Sealer::from(target), entries, transaction)
            }
        }
    }

    /// Counts the runs that came to be shared.
    async fn apply_shares(
        &self,
        changes: &RefChanges,
        transaction: &mut Transaction,
    ) -> Result<(), Attempt<PutError>> {
        for (run, by) in &changes.shared {
            let key = schema::share(*run);
            let found = self.store.get(&key).await?;
            let before = found.as_ref().map(|value| share_count(value)).transpose()?.unwrap_or(0);
            transaction.expect(key.clone(), found);
            if before + by > 0 {
                transaction.put(key, encode_share(before + by));
            }
        }
        Ok(())
    }

    /// Takes one object off a shared run. False when it is the last, whose blocks are then to be dropped.
    pub(super) async fn unshare(
        &self,
        run: VersionId,
        changes: &mut RefChanges,
        transaction: &mut Transaction,
    ) -> Result<bool, MetaError> {
        if let Some(taken) = changes.shared.get_mut(&run).filter(|taken| **taken > 0) {
            // One object takes it and another lets it go: nothing changes.
            *taken -= 1;
            return Ok(true);
        }
        let key = schema::share(run);
        let found = self.store.get(&key).await?;
        let count = found.as_ref().map(|value| share_count(value)).transpose()?;
        transaction.expect(key.clone(), found);
        match count {
            None | Some(0) => Ok(false),
            Some(1) => {
                transaction.delete(key);
                Ok(true)
            }
            Some(more) => {
                transaction.put(key, encode_share(more - 1));
                Ok(true)
            }
        }
    }

    /// How many more objects than one list a run.
    pub(super) async fn shares_of(&self, run: VersionId) -> Result<u64, MetaError> {
        let found = self.store.get(&schema::share(run)).await?;
        Ok(found.as_ref().map(|value| share_count(value)).transpose()?.unwrap_or(0))
    }
}

fn encode_share(count: u64) -> Vec<u8> {
    let mut out = Writer::default();
    out.int(count);
    out.0
}

fn share_count(value: &[u8]) -> Result<u64, MetaError> {
    let mut row = Reader::new("share", value);
    let count = row.int()?;
    row.end()?;
    Ok(count)
}
