//! Unlinking: taking an object's or a part's blocks out of the count, at once or page by page.
//!
//! What is small goes in the transaction that drops it. What is large is handed over: its runs get rows of
//! their own that still hold every reference, and [`super::Meta::sweep`] drops them one page a transaction.

use super::error::{Attempt, MetaError, PutError};
use super::model::{BucketId, VersionId};
use super::refs::{Brought, RefChanges};
use super::row::{ObjectRow, decode_object_part, encode_object_part};
use super::store::{PAGE_ROWS_MAX, Row, Transaction, prefix_end};
use super::{Meta, Sealer, next_key, random, schema};
use crate::layout::{Layout, PartLayout, Run};

impl Meta {
    /// Drops all of an object's blocks.
    pub(super) async fn unlink_object(
        &self,
        bucket: &Sealer,
        object: &ObjectRow,
        changes: &mut RefChanges,
        transaction: &mut Transaction,
    ) -> Result<(), MetaError> {
        let parts = match &object.layout {
            Layout::Empty => Vec::new(),
            Layout::Single(part) => vec![part.clone()],
            Layout::Parts => {
                let rows = self.object_part_rows(object.version).await?;
                let parts = rows.iter().map(|row| self.open_object_part(bucket.id, row));
                let parts = parts.collect::<Result<Vec<_>, _>>()?;
                rows.into_iter().for_each(|row| transaction.delete(row.key));
                parts
            }
        };
        self.unlink_parts(bucket, &parts, changes, transaction).await
    }

    /// Drops all blocks of these parts.
    pub(super) async fn unlink_parts(
        &self,
        bucket: &Sealer,
        parts: &[PartLayout],
        changes: &mut RefChanges,
        transaction: &mut Transaction,
    ) -> Result<(), MetaError> {
        let blocks: u64 = parts.iter().map(|part| part.blocks.count()).sum();
        let at_once = blocks <= schema::UNLINK_AT_ONCE_MAX;
        for part in parts {
            if let Run::Pages { run, .. } = &part.blocks
                && self.unshare(*run, changes, transaction).await?
            {
                continue;
            }
            if at_once {
                changes.drop(&self.run_entries(bucket.id, &part.blocks).await?);
                for key in self.page_keys(&part.blocks).await? {
                    transaction.delete(key);
                }
                continue;
            }
            let key = schema::unlinked(match &part.blocks {
                Run::Pages { run, .. } => *run,
                Run::Inline(_) => VersionId(random()?),
            });
            let keyless = PartLayout { key: None, iv_nonce: 0, ..part.clone() };
            let mut value = bucket.id.0.to_vec();
            value.extend_from_slice(&self.seal(bucket, &key, encode_object_part(&keyless))?);
            transaction.put(key, value);
        }
        Ok(())
    }

    pub(super) async fn object_part_rows(&self, version: VersionId) -> Result<Vec<Row>, MetaError> {
        let table = schema::parts(version);
        let (mut rows, mut start) = (Vec::new(), table.clone());
        loop {
            let page = self.store.page(&start, &prefix_end(&table), PAGE_ROWS_MAX).await?;
            let Some(last) = page.last() else { return Ok(rows) };
            start = next_key(last.key.clone());
            rows.extend(page);
        }
    }

    /// Drops the references of up to `limit` pages of handed-over runs.
    pub(super) async fn sweep_unlinked(&self, limit: usize) -> Result<usize, MetaError> {
        let table = schema::table(schema::UNLINKED);
        let mut done = 0;
        while done < limit {
            let rows = self.store.page(&table, &prefix_end(&table), 1).await?;
            let Some(row) = rows.first() else { break };
            match self.retry(|| self.try_sweep_page(row)).await {
                Ok(()) => done += 1,
                Err(PutError::Meta(error)) => return Err(error),
                Err(_) => return Err(MetaError::Corrupt { what: "unlinked run" }),
            }
        }
        Ok(done)
    }

    async fn try_sweep_page(&self, row: &Row) -> Result<(), Attempt<PutError>> {
        let (bucket, part) = self.open_unlinked(row)?;
        let mut transaction = Transaction::default();
        let mut changes = RefChanges::default();
        // The row is the only owner of the run's references: whoever else sweeps it makes this one fail.
        let standing = self.store.get(&row.key).await?;
        if standing.is_none() {
            return Ok(());
        }
        transaction.expect(row.key.clone(), standing);
        match &part.blocks {
            Run::Inline(entries) => {
                changes.drop(entries);
                transaction.delete(row.key.clone());
            }
            Run::Pages { run, .. } => {
                let pages = schema::pages(*run);
                match self.store.page(&pages, &prefix_end(&pages), 1).await?.pop() {
                    Some(page) => {
                        changes.drop(&self.open_page(bucket, &page)?.entries);
                        transaction.expect(page.key.clone(), Some(page.value));
                        transaction.delete(page.key);
                    }
                    None => transaction.delete(row.key.clone()),
                }
            }
        }
        self.change_refs(&changes, &Brought::new(), &mut transaction).await?;
        Ok(self.store.transact(transaction).await?)
    }

    pub(super) fn open_unlinked(&self, row: &Row) -> Result<(BucketId, PartLayout), MetaError> {
        let corrupt = MetaError::Corrupt { what: "unlinked run" };
        let (bucket, sealed) = row.value.split_at_checked(8).ok_or(corrupt)?;
        let bucket = BucketId(bucket.try_into().unwrap_or_default());
        let part = decode_object_part(self.unseal(bucket, "unlinked run", &row.key, sealed)?)?;
        Ok((bucket, part))
    }
}
