//! Queues of background work, as rows that stay until they are acknowledged.
//!
//! A row says "this node, this stripe, these blocks"; delivering it twice does no harm.

use std::collections::BTreeMap;

use holdfast_protocol::record::StripeId;
use holdfast_protocol::time::UnixMs;
use holdfast_protocol::{Digest, NodeId};

use super::codec::{Reader, Writer};
use super::error::{Attempt, MetaError};
use super::model::QueueItem;
use super::row::StripeRow;
use super::store::{Row, TransactError, Transaction, prefix_end};
use super::{Meta, next_key, schema};

/// Rows forgotten in one transaction.
const FORGOTTEN_AT_ONCE: usize = 256;

/// What one [`Meta::sweep`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Deleted versions whose readers have left.
    pub graves: usize,
    /// Manifest pages whose references were dropped.
    pub pages_unlinked: usize,
    /// Tombstones forgotten.
    pub tombstones: usize,
}

impl SweepReport {
    /// Whether there was nothing to do.
    pub fn is_idle(&self) -> bool {
        *self == Self::default()
    }
}

/// Adds a row for each node.
pub(super) fn enqueue(
    queue: u8,
    stripe: StripeId,
    holders: &BTreeMap<u32, Vec<Digest>>,
    now_ms: UnixMs,
    transaction: &mut Transaction,
) {
    for (node, digests) in holders {
        let mut value = Writer::default();
        value.int(now_ms).len(digests.len());
        for digest in digests {
            value.fixed(&digest.0);
        }
        transaction.put(schema::queued(queue, *node, stripe), value.0);
    }
}

impl Meta {
    /// CommitBlocks to deliver, by node, after `after`.
    pub async fn commit_queue(
        &self,
        after: Option<&QueueItem>,
        limit: usize,
    ) -> Result<Vec<QueueItem>, MetaError> {
        self.queue_page(schema::COMMITS, None, after, limit).await
    }

    /// CommitBlocks to deliver to one node.
    pub async fn commit_queue_of(&self, node: NodeId, limit: usize) -> Result<Vec<QueueItem>, MetaError> {
        self.queue_page(schema::COMMITS, Some(node), None, limit).await
    }

    /// DeletionOrders to deliver, by node, after `after`.
    pub async fn release_queue(
        &self,
        after: Option<&QueueItem>,
        limit: usize,
    ) -> Result<Vec<QueueItem>, MetaError> {
        self.queue_page(schema::RELEASES, None, after, limit).await
    }

    /// DeletionOrders to deliver to one node.
    pub async fn release_queue_of(&self, node: NodeId, limit: usize) -> Result<Vec<QueueItem>, MetaError> {
        self.queue_page(schema::RELEASES, Some(node), None, limit).await
    }

    /// Forgets delivered commits.
    pub async fn ack_commits(&self, items: &[QueueItem]) -> Result<(), MetaError> {
        self.ack(items).await
    }

    /// Forgets delivered deletion orders.
    pub async fn ack_releases(&self, items: &[QueueItem]) -> Result<(), MetaError> {
        self.ack(items).await
    }

    /// Forgets what a node should let go: it was taken out, and nobody will tell it any more.
    pub async fn forget_releases_of(&self, node: NodeId) -> Result<(), MetaError> {
        loop {
            let items = self.release_queue_of(node, FORGOTTEN_AT_ONCE).await?;
            self.ack(&items).await?;
            if items.len() < FORGOTTEN_AT_ONCE {
                return Ok(());
            }
        }
    }

    /// Stripes with shards that wait for a node. They leave when [`Meta::put_stripe`] places the last one.
    ///
    /// Rows of stripes that wait for nothing any more are removed on the way: a PUT that raced with the
    /// completion of a shared stripe may have queued it again.
    pub async fn completion_queue(
        &self,
        after: Option<StripeId>,
        limit: usize,
    ) -> Result<Vec<StripeId>, MetaError> {
        let table = schema::table(schema::COMPLETIONS);
        let mut start = after.map_or_else(|| table.clone(), |stripe| next_key(schema::completion(stripe)));
        let mut waiting = Vec::new();
        while waiting.len() < limit {
            let rows = self.store.page(&start, &prefix_end(&table), limit - waiting.len()).await?;
            let Some(last) = rows.last() else { break };
            start = next_key(last.key.clone());
            for row in &rows {
                let id = stripe_of(&row.key[1..], "completion")?;
                let stripe = self.store.get(&schema::stripe(id)).await?;
                if stripe
                    .as_ref()
                    .map(|row| StripeRow::decode(row))
                    .transpose()?
                    .is_some_and(|s| s.incomplete())
                {
                    waiting.push(id);
                    continue;
                }
                let mut transaction = Transaction::default();
                transaction.expect(schema::stripe(id), stripe);
                transaction.delete(row.key.clone());
                match self.store.transact(transaction).await {
                    Ok(()) | Err(TransactError::Conflict) => {}
                    Err(TransactError::Store(error)) => return Err(error.into()),
                }
            }
        }
        Ok(waiting)
    }

    async fn queue_page(
        &self,
        queue: u8,
        node: Option<NodeId>,
        after: Option<&QueueItem>,
        limit: usize,
    ) -> Result<Vec<QueueItem>, MetaError> {
        let prefix = match node {
            None => schema::table(queue),
            Some(id) => match self.find_number(id).await? {
                Some(number) => schema::queue_of(queue, number),
                None => return Ok(Vec::new()),
            },
        };
        let start = after.map_or_else(|| prefix.clone(), |item| next_key(item.row_key.clone()));
        let rows = self.store.page(&start, &prefix_end(&prefix), limit).await?;
        let mut items = Vec::with_capacity(rows.len());
        for row in rows {
            items.push(self.queue_item(row).await?);
        }
        Ok(items)
    }

    async fn queue_item(&self, row: Row) -> Result<QueueItem, MetaError> {
        let corrupt = || MetaError::Corrupt { what: "queue" };
        let (number, stripe) = row.key[1..].split_at_checked(4).ok_or_else(corrupt)?;
        let number = u32::from_be_bytes(number.try_into().map_err(|_| corrupt())?);
        let stripe = stripe_of(stripe, "queue")?;
        let mut value = Reader::new("queue", &row.value);
        let queued_ms = value.int()?;
        let count = value.count(32)?;
        let digests = (0..count).map(|_| Ok(Digest(value.array()?))).collect::<Result<_, MetaError>>()?;
        let node = self.node_id(number).await?;
        Ok(QueueItem { node, stripe, digests, queued_ms, row_value: row.value.to_vec(), row_key: row.key })
    }

    /// Removes rows that still are as they were delivered; one that grew meanwhile is delivered again.
    async fn ack(&self, items: &[QueueItem]) -> Result<(), MetaError> {
        let row = |transaction: &mut Transaction, item: &QueueItem| {
            transaction.expect(item.row_key.clone(), Some(item.row_value.clone().into()));
            transaction.delete(item.row_key.clone());
        };
        let mut together = Transaction::default();
        for item in items {
            row(&mut together, item);
        }
        match self.store.transact(together).await {
            Ok(()) => return Ok(()),
            Err(TransactError::Conflict) => {}
            Err(TransactError::Store(error)) => return Err(error.into()),
        }
        for item in items {
            let mut alone = Transaction::default();
            row(&mut alone, item);
            match self.store.transact(alone).await {
                Ok(()) | Err(TransactError::Conflict) => {}
                Err(TransactError::Store(error)) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Work that no request waits for: drops the references of large objects that were deleted, page by page,
    /// and forgets old tombstones. At most `limit` steps; call again until the report is idle.
    pub async fn sweep(&self, now_ms: UnixMs, limit: usize) -> Result<SweepReport, MetaError> {
        let mut report = SweepReport {
            graves: self.sweep_graves(limit).await?,
            pages_unlinked: self.sweep_unlinked(limit).await?,
            ..SweepReport::default()
        };
        self.sweep_completed(now_ms, limit).await?;
        let table = schema::table(schema::TOMBSTONES);
        // Each call looks at one page and the next one goes on behind it, so that young tombstones in front
        // never hide old ones.
        let start = self.sweep_from.lock().take().unwrap_or_else(|| table.clone());
        let rows = self.store.page(&start, &prefix_end(&table), limit).await?;
        *self.sweep_from.lock() = rows.last().map(|row| next_key(row.key.clone()));
        let mut transaction = Transaction::default();
        for row in rows {
            let at_ms = row.value[..].try_into().map(u64::from_le_bytes);
            let at_ms = at_ms.map_err(|_| MetaError::Corrupt { what: "tombstone" })?;
            if at_ms.saturating_add(schema::TOMBSTONE_MS) <= now_ms {
                report.tombstones += 1;
                transaction.delete(row.key);
            }
        }
        match self.store.transact(transaction).await.map_err(Attempt::<MetaError>::from) {
            Ok(()) | Err(Attempt::Conflict) => Ok(report),
            Err(Attempt::Failed(error)) => Err(error),
        }
    }
}

pub(super) fn stripe_of(bytes: &[u8], what: &'static str) -> Result<StripeId, MetaError> {
    bytes.try_into().map(StripeId).map_err(|_| MetaError::Corrupt { what })
}
