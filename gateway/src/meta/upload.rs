//! Multipart uploads. A finished part counts as committed: its blocks are referenced by the upload.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::bucket::{USAGE_UPLOAD_BYTES, delta};
use super::error::{Attempt, MetaError, PutError, UploadError};
use super::model::{Attributes, Bucket, Completion, NewPart, Object, Part, Upload, VersionId};
use super::object::{Replacing, check_attributes, check_key, object_of};
use super::refs::{Brought, RefChanges};
use super::row::{ObjectRow, PART_CHECKSUMS, PartRow, encode_object_part, encode_upload};
use super::store::{PAGE_ROWS_MAX, Row, Transaction, prefix_end};
use super::{Meta, Sealer, next_key, random, schema};
use crate::crypt::WrapContext;
use crate::layout::{Layout, PartLayout};
use crate::unixfs::RootBuilder;

/// Parts of an upload by number.
pub(super) type PartRows = BTreeMap<u16, PartRow>;

impl Meta {
    /// Starts an upload.
    pub async fn create_upload(
        &self,
        bucket: &Bucket,
        key: &str,
        attributes: Attributes,
    ) -> Result<Upload, UploadError> {
        check_key(key)?;
        check_attributes(&attributes)?;
        let id = VersionId(random()?);
        let upload = Upload { key: key.to_owned(), id, created_ms: self.now_ms(), attributes };
        self.retry(|| self.try_create_upload(bucket, &upload)).await?;
        Ok(upload)
    }

    async fn try_create_upload(&self, bucket: &Bucket, upload: &Upload) -> Result<(), Attempt<UploadError>> {
        let mut transaction = Transaction::default();
        self.expect_bucket(bucket, &mut transaction).await.map_err(widen)?;
        let key = schema::upload(bucket.id, &upload.key, upload.id);
        let value = self.seal(&Sealer::from(bucket), &key, encode_upload(upload))?;
        transaction.put(key, value);
        Ok(self.store.transact(transaction).await?)
    }

    /// An unfinished upload.
    pub async fn upload(
        &self,
        bucket: &Bucket,
        key: &str,
        id: VersionId,
    ) -> Result<Option<Upload>, MetaError> {
        Ok(self.upload_row(bucket, key, id).await?.map(|(upload, _)| upload))
    }

    async fn upload_row(
        &self,
        bucket: &Bucket,
        key: &str,
        id: VersionId,
    ) -> Result<Option<(Upload, Bytes)>, MetaError> {
        let key = schema::upload(bucket.id, key, id);
        let Some(value) = self.store.get(&key).await? else { return Ok(None) };
        let row = Row { key, value };
        Ok(Some((self.open_upload(bucket, &row)?, row.value)))
    }

    /// Reads the upload and relies on it.
    async fn expect_upload(
        &self,
        bucket: &Bucket,
        key: &str,
        id: VersionId,
        transaction: &mut Transaction,
    ) -> Result<Upload, Attempt<UploadError>> {
        let found = self.upload_row(bucket, key, id).await?;
        let (upload, row) = found.ok_or(Attempt::Failed(UploadError::NoSuchUpload))?;
        transaction.expect(schema::upload(bucket.id, key, id), Some(row));
        Ok(upload)
    }

    /// Commits a part; one of the same number is replaced.
    pub async fn put_part(&self, bucket: &Bucket, new: NewPart) -> Result<Part, UploadError> {
        if new.number == 0 || new.number > schema::PART_NUMBER_MAX {
            return Err(UploadError::PartNumber { number: new.number });
        }
        check_attributes(&new.attributes)?;
        let brought = self.bring(&new.stored).await?;
        self.retry(|| self.try_put_part(bucket, &new, &brought)).await
    }

    async fn try_put_part(
        &self,
        bucket: &Bucket,
        new: &NewPart,
        brought: &Brought,
    ) -> Result<Part, Attempt<UploadError>> {
        let mut transaction = Transaction::default();
        self.expect_upload(bucket, &new.key, new.upload, &mut transaction).await?;
        let sealer = Sealer::from(bucket);
        let stored = &new.stored;
        let layout = if stored.blocks.is_empty() {
            None
        } else {
            Some(PartLayout {
                offset: 0,
                len: stored.size,
                key: self.wrap(
                    &sealer,
                    stored,
                    &part_context(&new.key, new.upload, new.number, stored.size),
                )?,
                iv_nonce: stored.secret.as_ref().map_or(0, |secret| secret.nonce()),
                blocks: self.put_run(&sealer, stored.blocks.clone(), &mut transaction)?,
                checksum: None,
            })
        };
        let row = PartRow { modified_ms: self.now_ms(), attributes: new.attributes.clone(), layout };
        let row_key = schema::upload_part(new.upload, new.number);
        let found = self.store.get(&row_key).await?;
        let old = found.as_ref().map(|value| self.open_part(bucket, &row_key, value)).transpose()?;
        let mut changes = RefChanges::of(bucket.id);
        changes.take(&stored.blocks);
        let old_size = old.as_ref().map_or(0, PartRow::size);
        if let Some(layout) = old.and_then(|old| old.layout) {
            self.unlink_parts(&sealer, &[layout], &mut changes, &mut transaction).await?;
        }
        transaction.expect(row_key.clone(), found);
        let value = self.seal(&sealer, &row_key, row.encode())?;
        transaction.put(row_key, value);
        transaction.add(schema::upload_changes(new.upload), vec![1]);
        transaction.add(schema::usage(bucket.id), upload_usage(delta(stored.size) - delta(old_size)));
        self.change_refs(&changes, brought, &mut transaction).await.map_err(widen)?;
        self.store.transact(transaction).await?;
        Ok(part_of(new.number, row))
    }

    fn open_part(&self, bucket: &Bucket, key: &[u8], value: &[u8]) -> Result<PartRow, MetaError> {
        PartRow::decode(self.unseal(bucket.id, "part", key, value)?)
    }

    /// Finished parts with numbers above `after`, and whether there are more than `max`.
    pub async fn list_parts(
        &self,
        bucket: &Bucket,
        key: &str,
        id: VersionId,
        after: u16,
        max: usize,
    ) -> Result<(Vec<Part>, bool), UploadError> {
        self.upload(bucket, key, id).await?.ok_or(UploadError::NoSuchUpload)?;
        let max = max.min(schema::LIST_MAX);
        let start = next_key(schema::upload_part(id, after));
        let end = prefix_end(&schema::upload_parts(id));
        let mut rows = self.store.page(&start, &end, max + 1).await.map_err(MetaError::from)?;
        let more = rows.len() > max;
        rows.truncate(max);
        let parts = rows
            .iter()
            .map(|row| Ok(part_of(part_number(&row.key)?, self.open_part(bucket, &row.key, &row.value)?)));
        Ok((parts.collect::<Result<_, MetaError>>()?, more))
    }

    pub(super) async fn part_rows(&self, bucket: &Bucket, id: VersionId) -> Result<PartRows, MetaError> {
        let mut parts = PartRows::new();
        let (table, mut start) = (schema::upload_parts(id), schema::upload_parts(id));
        loop {
            let page = self.store.page(&start, &prefix_end(&table), PAGE_ROWS_MAX).await?;
            let Some(last) = page.last() else { return Ok(parts) };
            start = next_key(last.key.clone());
            for row in &page {
                parts.insert(part_number(&row.key)?, self.open_part(bucket, &row.key, &row.value)?);
            }
        }
    }

    /// Makes an object of an upload's parts. No reference changes hands: the runs do.
    pub async fn complete_upload(
        &self,
        bucket: &Bucket,
        completion: Completion,
    ) -> Result<Object, UploadError> {
        let ascending = completion.parts.windows(2).all(|pair| pair[0].0 < pair[1].0);
        if completion.parts.is_empty() || !ascending {
            return Err(UploadError::InvalidPartOrder);
        }
        let overwrite = self.reads.delete(bucket.id, &completion.key);
        self.retry(|| self.try_complete_upload(bucket, &completion, overwrite.is_read)).await
    }

    async fn try_complete_upload(
        &self,
        bucket: &Bucket,
        completion: &Completion,
        is_read: bool,
    ) -> Result<Object, Attempt<UploadError>> {
        let (key, id) = (&completion.key, completion.upload);
        let mut transaction = Transaction::default();
        let bucket = &self.expect_bucket(bucket, &mut transaction).await.map_err(widen)?;
        let upload = self.expect_upload(bucket, key, id, &mut transaction).await?;
        let mut parts = self.expect_parts(bucket, id, &mut transaction).await?;
        let upload_bytes: u64 = parts.values().map(PartRow::size).sum();
        let mut chosen = choose_parts(&mut parts, completion).map_err(Attempt::Failed)?;
        let size = chosen.last().map_or(0, |(_, part)| part.offset + part.len);
        let part_count = u32::try_from(completion.parts.len()).unwrap_or(u32::MAX);

        let mut root = RootBuilder::new();
        for (_, part) in &chosen {
            for entry in self.run_entries(bucket.id, &part.blocks).await? {
                root.push(entry.digest, entry.len);
            }
        }
        let block_count = root.blocks();
        let root_cid = root.finish();
        let version = VersionId(random()?);
        let cid = root_cid.to_bytes();
        let context = WrapContext { object: key, version, offset: 0, size, root_cid: &cid };
        for (number, part) in &mut chosen {
            self.rewrap(bucket, id, *number, part, &context)?;
        }
        let parts_of_object = chosen.into_iter().map(|(_, part)| part).collect();
        let layout = self.put_parts(bucket, version, parts_of_object, &mut transaction)?;
        let attributes = Attributes {
            etag: completion.etag.clone(),
            checksums: completion.checksums.clone(),
            ..upload.attributes
        };
        let modified_ms = self.now_ms();
        let encryption = bucket.encryption;
        let mut row = ObjectRow {
            version,
            is_null: true,
            size,
            block_count,
            modified_ms,
            part_count,
            encryption,
            root_cid,
            attributes,
            layout,
        };

        let mut changes = RefChanges::default();
        let unused: Vec<_> = parts.into_values().filter_map(|part| part.layout).collect();
        self.unlink_parts(&Sealer::from(bucket), &unused, &mut changes, &mut transaction).await?;
        let replaced = (&mut changes, &mut transaction);
        let replacing = Replacing { condition: &completion.condition, is_read };
        self.replace_object(bucket, key, &mut row, &replacing, replaced).await.map_err(widen)?;
        self.remember_completed(bucket, completion, &row, &mut transaction)?;
        self.end_upload(bucket, key, id, upload_bytes, &mut transaction);
        self.change_refs(&changes, &Brought::new(), &mut transaction).await.map_err(widen)?;
        self.store.transact(transaction).await?;
        Ok(object_of(bucket.id, key.clone(), row))
    }

    /// Reads all parts and relies on none of them changing, with one precondition for all: the counter of
    /// changes, read before them. Their rows are removed.
    async fn expect_parts(
        &self,
        bucket: &Bucket,
        id: VersionId,
        transaction: &mut Transaction,
    ) -> Result<PartRows, Attempt<UploadError>> {
        let changes = self.store.get(&schema::upload_changes(id)).await?;
        transaction.expect(schema::upload_changes(id), changes);
        let parts = self.part_rows(bucket, id).await?;
        for number in parts.keys() {
            transaction.delete(schema::upload_part(id, *number));
        }
        Ok(parts)
    }

    fn end_upload(
        &self,
        bucket: &Bucket,
        key: &str,
        id: VersionId,
        upload_bytes: u64,
        transaction: &mut Transaction,
    ) {
        transaction.delete(schema::upload(bucket.id, key, id));
        transaction.delete(schema::upload_changes(id));
        transaction.add(schema::usage(bucket.id), upload_usage(-delta(upload_bytes)));
    }

    /// Wraps a part's key again, for the object that it becomes part of.
    fn rewrap(
        &self,
        bucket: &Bucket,
        upload: VersionId,
        number: u16,
        part: &mut PartLayout,
        context: &WrapContext<'_>,
    ) -> Result<(), MetaError> {
        let Some(key) = &part.key else { return Ok(()) };
        let was = part_context(context.object, upload, number, part.len);
        let secret = self.bucket_keys(bucket.id, key.epoch)?.unwrap(key, part.iv_nonce, &was)?;
        let context = WrapContext { offset: part.offset, ..*context };
        part.key = Some(self.bucket_keys(bucket.id, bucket.key_epoch)?.wrap(&secret, &context)?);
        Ok(())
    }

    fn put_parts(
        &self,
        bucket: &Bucket,
        version: VersionId,
        mut parts: Vec<PartLayout>,
        transaction: &mut Transaction,
    ) -> Result<Layout, MetaError> {
        parts.retain(|part| part.len > 0);
        match parts.len() {
            0 => Ok(Layout::Empty),
            // The head of an object has no room for a part's checksum.
            1 if parts[0].checksum.is_none() => Ok(Layout::Single(parts.remove(0))),
            _ => {
                for part in &parts {
                    let key = schema::part(version, part.offset + part.len);
                    let value = self.seal(&Sealer::from(bucket), &key, encode_object_part(part))?;
                    transaction.put(key, value);
                }
                Ok(Layout::Parts)
            }
        }
    }

    /// Gives an upload up and drops its parts.
    pub async fn abort_upload(&self, bucket: &Bucket, key: &str, id: VersionId) -> Result<(), UploadError> {
        self.retry(|| self.try_abort_upload(bucket, key, id)).await
    }

    async fn try_abort_upload(
        &self,
        bucket: &Bucket,
        key: &str,
        id: VersionId,
    ) -> Result<(), Attempt<UploadError>> {
        let mut transaction = Transaction::default();
        self.expect_upload(bucket, key, id, &mut transaction).await?;
        let parts = self.expect_parts(bucket, id, &mut transaction).await?;
        let upload_bytes = parts.values().map(PartRow::size).sum();
        let layouts: Vec<_> = parts.into_values().filter_map(|part| part.layout).collect();
        let mut changes = RefChanges::default();
        self.unlink_parts(&Sealer::from(bucket), &layouts, &mut changes, &mut transaction).await?;
        self.end_upload(bucket, key, id, upload_bytes, &mut transaction);
        self.change_refs(&changes, &Brought::new(), &mut transaction).await.map_err(widen)?;
        Ok(self.store.transact(transaction).await?)
    }
}

/// The algorithm of the object's checksum, whose values are kept of its parts.
fn kept_algorithm(completion: &Completion) -> Option<&str> {
    let known = |name: &&str| PART_CHECKSUMS.contains(name);
    completion.checksums.iter().map(|(name, _)| name.as_str()).find(known)
}

/// Takes the parts that a client lists out of those that it uploaded, each at its offset.
fn choose_parts(
    parts: &mut PartRows,
    completion: &Completion,
) -> Result<Vec<(u16, PartLayout)>, UploadError> {
    let kept = kept_algorithm(completion);
    let mut chosen = Vec::with_capacity(completion.parts.len());
    let mut offset = 0u64;
    for (at, (number, etag)) in completion.parts.iter().enumerate() {
        let part = parts.remove(number).filter(|part| part.attributes.etag == *etag);
        let part = part.ok_or(UploadError::InvalidPart { number: *number })?;
        let size = part.size();
        if size < schema::PART_LEN_MIN && at + 1 < completion.parts.len() {
            return Err(UploadError::EntityTooSmall { number: *number, size });
        }
        if let Some(layout) = part.layout {
            let mut sums = part.attributes.checksums.into_iter();
            let checksum = kept.and_then(|kept| sums.find(|(name, _)| name == kept));
            chosen.push((*number, PartLayout { offset, checksum, ..layout }));
            offset += size;
        }
    }
    Ok(chosen)
}

fn part_context(key: &str, upload: VersionId, number: u16, size: u64) -> WrapContext<'_> {
    WrapContext { object: key, version: upload, offset: u64::from(number), size, root_cid: &[] }
}

fn upload_usage(by: i64) -> Vec<i64> {
    let mut deltas = vec![0; USAGE_UPLOAD_BYTES + 1];
    deltas[USAGE_UPLOAD_BYTES] = by;
    deltas
}

fn part_number(row_key: &[u8]) -> Result<u16, MetaError> {
    let (_, number) = row_key.split_last_chunk::<2>().ok_or(MetaError::Corrupt { what: "part" })?;
    Ok(u16::from_be_bytes(*number))
}

fn part_of(number: u16, row: PartRow) -> Part {
    Part {
        number,
        size: row.size(),
        etag: row.attributes.etag,
        modified_ms: row.modified_ms,
        checksums: row.attributes.checksums,
    }
}

/// The error of a step that uploads share with PUTs.
pub(super) fn widen(attempt: Attempt<PutError>) -> Attempt<UploadError> {
    match attempt {
        Attempt::Conflict => Attempt::Conflict,
        Attempt::Failed(error) => Attempt::Failed(UploadError::Put(error)),
    }
}
