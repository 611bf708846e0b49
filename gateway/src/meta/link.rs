//! Objects that share blocks: links of one bucket's objects into a snapshot, and renames.
//!
//! A link is the same plaintext under the same key at the same counters, so that no key ever serves two plaintexts;
//! the key is wrapped again for where the link is. Its references are its own: the source may go.

use holdfast_protocol::record::WrappedKey;

use super::bucket::delta;
use super::error::{Attempt, BucketError, MetaError, PutError, UploadError};
use super::features::{Features, Lock};
use super::model::{
    Attributes, Bucket, BucketId, Completion, NewObject, NewPart, Object, PutCondition, Stored, VersionId,
};
use super::object::{Replacing, check_key, object_of};
use super::refs::{Brought, RefChanges};
use super::row::{ObjectRow, encode_bucket, encode_object_part};
use super::store::{Precondition, Row, Transaction};
use super::{Meta, Sealer, random, schema};
use crate::crypt::WrapContext;
use crate::layout::{Layout, PartLayout};
use crate::unixfs::{Link, RootBuilder};

/// Why an object could not be linked.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The source was replaced or deleted while it was linked.
    #[error("the object was replaced or deleted meanwhile")]
    Gone,
    /// The link's own transaction.
    #[error(transparent)]
    Put(#[from] PutError),
    /// The transactions of a link in parts.
    #[error(transparent)]
    Upload(#[from] UploadError),
    /// Metadata.
    #[error(transparent)]
    Meta(#[from] MetaError),
}

impl LinkError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Gone => true,
            Self::Put(error) => error.is_retryable(),
            Self::Upload(error) => error.is_retryable(),
            Self::Meta(error) => error.is_retryable(),
        }
    }
}

impl Meta {
    /// Makes a bucket of another name that keeps what `like` has: cipher, scope, policy; no versions and no rules.
    pub async fn create_bucket_like(&self, like: &Bucket, name: String) -> Result<Bucket, BucketError> {
        let bucket = Bucket {
            name,
            id: BucketId(random()?),
            created_ms: self.now_ms(),
            key_epoch: 1,
            features: Features::default(),
            ..like.clone()
        };
        let mut transaction = Transaction::default();
        self.put_bucket(&bucket, &mut transaction)?;
        transaction.preconditions.push(Precondition::Absent(schema::usage(bucket.id)));
        transaction.put(schema::usage(bucket.id), Vec::new());
        match self.store.transact(transaction).await.map_err(Attempt::<MetaError>::from) {
            Ok(()) => Ok(bucket),
            Err(Attempt::Failed(error)) => Err(error.into()),
            Err(Attempt::Conflict) => Err(BucketError::Exists { name: bucket.name }),
        }
    }

    /// Gives a bucket another name; everything in it stays as it is.
    pub async fn rename_bucket(&self, from: &str, to: &str) -> Result<Bucket, BucketError> {
        let Some((bucket, row)) = self.bucket_row(from).await? else {
            return Err(BucketError::NotFound { name: from.to_owned() });
        };
        let renamed = Bucket { name: to.to_owned(), ..bucket };
        let mut transaction = Transaction::default();
        transaction.expect(schema::bucket(from), Some(row));
        transaction.delete(schema::bucket(from));
        self.put_bucket(&renamed, &mut transaction)?;
        match self.store.transact(transaction).await.map_err(Attempt::<MetaError>::from) {
            Ok(()) => Ok(renamed),
            Err(Attempt::Failed(error)) => Err(error.into()),
            Err(Attempt::Conflict) => Err(BucketError::Exists { name: to.to_owned() }),
        }
    }

    /// Puts a bucket's row where there is none.
    fn put_bucket(&self, bucket: &Bucket, transaction: &mut Transaction) -> Result<(), MetaError> {
        let key = schema::bucket(&bucket.name);
        let mut value = encode_bucket(bucket);
        value.extend_from_slice(&self.keys.seal(&key, &value)?);
        transaction.expect(key.clone(), None);
        transaction.put(key, value);
        Ok(())
    }

    /// Puts `from` into another bucket, sharing its blocks; returns its root, as the child of a directory.
    ///
    /// # Cancel safety
    /// Dropping it may leave an unfinished upload in `to`, with its references.
    pub async fn link_object(&self, from: &Object, to: &Bucket, key: &str) -> Result<Link, LinkError> {
        // A lock is the object's own: the snapshot may be removed.
        let attributes = Attributes { lock: Lock::default(), ..from.attributes.clone() };
        let (mut parts, mut sums) = (Vec::new(), Vec::new());
        let mut root = RootBuilder::new();
        for part in self.parts_of(from).await? {
            let blocks = self.run_entries(from.bucket, &part.blocks).await.map_err(|error| match error {
                // A page that is not there any more: the object was deleted while we read.
                MetaError::Corrupt { .. } => LinkError::Gone,
                error => error.into(),
            })?;
            blocks.iter().for_each(|entry| root.push(entry.digest, entry.len));
            let secret = self.part_secret(from, &part)?;
            parts.push(Stored { size: part.len, blocks, secret, stripes: Vec::new() });
            sums.push(part.checksum);
        }
        let link = root.finish_link();
        if link.cid != from.root_cid {
            // Parts have rows of their own, which go with the object.
            let is_gone = matches!(from.layout, Layout::Parts);
            return Err(if is_gone { LinkError::Gone } else { MetaError::Corrupt { what: "object" }.into() });
        }
        if parts.len() > 1 {
            self.link_parts(from, to, (key, attributes), parts.into_iter().zip(sums).collect()).await?;
        } else {
            let new = NewObject {
                key: key.to_owned(),
                attributes,
                root_cid: from.root_cid,
                stored: parts.pop().unwrap_or_default(),
                condition: PutCondition::Any,
            };
            self.put_object(to, new).await.map_err(gone)?;
        }
        Ok(link)
    }

    async fn link_parts(
        &self,
        from: &Object,
        to: &Bucket,
        (key, attributes): (&str, Attributes),
        parts: Vec<(Stored, Option<(String, String)>)>,
    ) -> Result<(), LinkError> {
        let upload = self.create_upload(to, key, attributes).await?.id;
        let mut tags = Vec::with_capacity(parts.len());
        for (number, (stored, sum)) in (1u16..).zip(parts) {
            let etag = number.to_string();
            let checksums = sum.into_iter().collect();
            let attributes = Attributes { etag: etag.clone(), checksums, ..Attributes::default() };
            let new = NewPart { key: key.to_owned(), upload, number, attributes, stored };
            match self.put_part(to, new).await {
                Ok(_) => tags.push((number, etag)),
                Err(error) => {
                    self.abort_upload(to, key, upload).await?;
                    return Err(match error {
                        UploadError::Put(error) => gone(error),
                        error => error.into(),
                    });
                }
            }
        }
        let completion = Completion {
            key: key.to_owned(),
            upload,
            parts: tags,
            etag: from.attributes.etag.clone(),
            checksums: from.attributes.checksums.clone(),
            condition: PutCondition::Any,
        };
        self.complete_upload(to, completion).await?;
        Ok(())
    }

    /// An object's parts, in order.
    async fn parts_of(&self, object: &Object) -> Result<Vec<PartLayout>, MetaError> {
        match &object.layout {
            Layout::Empty => Ok(Vec::new()),
            Layout::Single(part) => Ok(vec![part.clone()]),
            Layout::Parts => {
                let rows = self.object_part_rows(object.version).await?;
                rows.iter().map(|row| self.open_object_part(object.bucket, row)).collect()
            }
        }
    }

    /// Moves an object to another key of its bucket, over whatever was there, in one transaction; `None` when there
    /// is no object. Version, blocks and time stay.
    pub async fn rename_object(
        &self,
        bucket: &Bucket,
        from: &str,
        to: &str,
        condition: PutCondition,
    ) -> Result<Option<Object>, PutError> {
        check_key(to)?;
        let overwrite = self.reads.delete(bucket.id, to);
        let replacing = Replacing { condition: &condition, is_read: overwrite.is_read };
        self.retry(|| self.try_rename_object(bucket, from, to, &replacing)).await
    }

    async fn try_rename_object(
        &self,
        bucket: &Bucket,
        from: &str,
        to: &str,
        replacing: &Replacing<'_>,
    ) -> Result<Option<Object>, Attempt<PutError>> {
        let row_key = schema::object(bucket.id, from);
        let Some(value) = self.store.get(&row_key).await? else { return Ok(None) };
        let mut row = self.open_object(bucket.id, &row_key, &value)?;
        if from == to {
            return Ok(Some(object_of(bucket.id, to.to_owned(), row)));
        }
        let mut transaction = Transaction::default();
        let layout = std::mem::replace(&mut row.layout, Layout::Empty);
        row.layout = match layout {
            Layout::Empty => Layout::Empty,
            Layout::Single(part) => Layout::Single(self.rewrap_part(bucket, from, to, &row, part)?),
            Layout::Parts => {
                for Row { key, value } in self.object_part_rows(row.version).await? {
                    let part = self.open_object_part(bucket.id, &Row { key: key.clone(), value })?;
                    let part = self.rewrap_part(bucket, from, to, &row, part)?;
                    let value = self.seal(&Sealer::from(bucket), &key, encode_object_part(&part))?;
                    transaction.put(key, value);
                }
                Layout::Parts
            }
        };
        transaction.expect(row_key.clone(), Some(value));
        transaction.delete(row_key);
        transaction.add(schema::usage(bucket.id), vec![-1, -delta(row.size)]);
        let mut changes = RefChanges::default();
        self.replace_object(bucket, to, &mut row, replacing, (&mut changes, &mut transaction)).await?;
        self.change_refs(&changes, &Brought::new(), &mut transaction).await?;
        self.store.transact(transaction).await?;
        Ok(Some(object_of(bucket.id, to.to_owned(), row)))
    }

    fn rewrap_part(
        &self,
        bucket: &Bucket,
        from: &str,
        to: &str,
        row: &ObjectRow,
        part: PartLayout,
    ) -> Result<PartLayout, MetaError> {
        let Some(key) = &part.key else { return Ok(part) };
        let cid = row.root_cid.to_bytes();
        let was = context_of(from, row.version, part.offset, row.size, &cid);
        let secret = self.bucket_keys(bucket.id, key.epoch)?.unwrap(key, part.iv_nonce, &was)?;
        let is = WrapContext { object: to, ..was };
        let wrapped: WrappedKey = self.bucket_keys(bucket.id, bucket.key_epoch)?.wrap(&secret, &is)?;
        Ok(PartLayout { key: Some(wrapped), ..part })
    }
}

fn context_of<'a>(
    object: &'a str,
    version: VersionId,
    offset: u64,
    size: u64,
    root_cid: &'a [u8],
) -> WrapContext<'a> {
    WrapContext { object, version, offset, size, root_cid }
}

/// A block whose last reference went while we took one: its object is gone.
fn gone(error: PutError) -> LinkError {
    match error {
        PutError::Unplaced { .. } => LinkError::Gone,
        error => error.into(),
    }
}
