//! Retention that reaches the nodes: until when each holder of a locked object's blocks must refuse to delete them.
//!
//! The transaction that locks an object for COMPLIANCE also leaves a row that says so, whatever the object's size. What is
//! here makes of that one row a holder and stripe, delivered like commits, and then forgets it; so a crash in between
//! delays the nodes' being told and never prevents it. The time of a stripe only grows: its blocks may belong to several
//! locked objects.

use std::collections::BTreeSet;

use holdfast_protocol::record::StripeId;
use holdfast_protocol::time::UnixMs;
use holdfast_protocol::{Digest, NodeId};

use super::codec::{Reader, Writer};
use super::error::{Attempt, MetaError};
use super::features::RetentionMode;
use super::model::{BucketId, VersionId};
use super::queue::stripe_of;
use super::row::{BlockRow, ObjectRow, StripeRow, part, put_part};
use super::store::{Row, TransactError, Transaction, prefix_end};
use super::{Meta, schema};
use crate::layout::{Entry, Layout, PartLayout};

/// Blocks looked up at once.
const BLOCKS_AT_ONCE: usize = 256;
const FORM: u8 = 1;

/// Until when a node must keep which blocks of a stripe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetentionItem {
    /// The node.
    pub node: NodeId,
    /// The stripe.
    pub stripe: StripeId,
    /// Until when.
    pub until_ms: UnixMs,
    /// The blocks.
    pub digests: Vec<Digest>,
    key: Vec<u8>,
    value: bytes::Bytes,
}

/// A version that was locked, and that the nodes are not told of yet.
struct Locked {
    until_ms: UnixMs,
    bucket: BucketId,
    version: VersionId,
    /// Its one part; `None` when its parts have rows.
    part: Option<PartLayout>,
}

impl Locked {
    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u8(FORM).int(self.until_ms).fixed(&self.bucket.0).u8(u8::from(self.part.is_some()));
        if let Some(part) = &self.part {
            put_part(&mut out, part);
        }
        out.0
    }

    fn decode(row: &Row) -> Result<Self, MetaError> {
        let mut value = Reader::new("lock", &row.value);
        let version = row.key.get(schema::LOCKED.len()..).and_then(|bytes| bytes.try_into().ok());
        let version = VersionId(version.ok_or_else(|| value.corrupt())?);
        if value.u8()? != FORM {
            return Err(value.corrupt());
        }
        let (until_ms, bucket) = (value.int()?, BucketId(value.array()?));
        let part = if value.u8()? == 0 { None } else { Some(part(&mut value)?) };
        value.end()?;
        Ok(Self { until_ms, bucket, version, part })
    }
}

impl Meta {
    /// Leaves word, in the transaction that locks `row`, that the nodes are to be told.
    pub(super) fn queue_lock(&self, bucket: BucketId, row: &ObjectRow, transaction: &mut Transaction) {
        let retention = row.attributes.lock.retention;
        let Some(retention) = retention.filter(|retention| retention.mode == RetentionMode::Compliance)
        else {
            return;
        };
        let part = match &row.layout {
            Layout::Empty => return,
            // Where its blocks are is all that is needed; its key stays where it is sealed.
            Layout::Single(part) => Some(PartLayout { key: None, iv_nonce: 0, ..part.clone() }),
            Layout::Parts => None,
        };
        let locked = Locked { until_ms: retention.until_ms, bucket, version: row.version, part };
        transaction.put(schema::locked(row.version), locked.encode());
    }

    /// Puts the blocks of a version that was just locked into the retention queue.
    pub async fn retain(&self, version: VersionId) -> Result<(), MetaError> {
        let key = schema::locked(version);
        match self.store.get(&key).await? {
            Some(value) => self.retain_locked(Row { key, value }).await,
            None => Ok(()),
        }
    }

    /// The same for up to `limit` versions whose gateway did not come to it; says how many there were.
    pub async fn retain_left(&self, limit: usize) -> Result<usize, MetaError> {
        let table = schema::sub_table(schema::LOCKED);
        let rows = self.store.page(&table, &prefix_end(&table), limit).await?;
        let found = rows.len();
        let mut outcome = Ok(found);
        for row in rows {
            // One that fails must not hold up the others.
            if let Err(error) = self.retain_locked(row).await {
                outcome = Err(error);
            }
        }
        outcome
    }

    async fn retain_locked(&self, row: Row) -> Result<(), MetaError> {
        let locked = Locked::decode(&row)?;
        let parts = match locked.part {
            Some(part) => vec![part],
            None => {
                let rows = self.object_part_rows(locked.version).await?;
                let parts = rows.iter().map(|row| self.open_object_part(locked.bucket, row));
                parts.collect::<Result<Vec<_>, _>>()?
            }
        };
        for part in parts {
            let entries = match self.run_entries(locked.bucket, &part.blocks).await {
                Ok(entries) => entries,
                // The lock's time has passed and the version is gone: nobody is to keep it.
                Err(MetaError::Corrupt { .. }) if locked.until_ms <= self.now_ms() => continue,
                Err(error) => return Err(error),
            };
            for some in entries.chunks(BLOCKS_AT_ONCE) {
                self.retain_blocks(some, locked.until_ms).await?;
            }
        }
        // A lock that was prolonged meanwhile stays queued.
        let mut transaction = Transaction::default();
        transaction.expect(row.key.clone(), Some(row.value));
        transaction.delete(row.key);
        match self.store.transact(transaction).await {
            Ok(()) | Err(TransactError::Conflict) => Ok(()),
            Err(TransactError::Store(error)) => Err(error.into()),
        }
    }

    async fn retain_blocks(&self, entries: &[Entry], until_ms: UnixMs) -> Result<(), MetaError> {
        let keys: Vec<_> = entries.iter().map(|entry| schema::block(&entry.digest)).collect();
        let mut stripes = BTreeSet::new();
        for row in self.store.get_many(&keys).await?.into_iter().flatten() {
            stripes.insert(BlockRow::decode(&row)?.stripe);
        }
        for stripe in stripes {
            self.retry(|| self.try_retain_stripe(stripe, until_ms)).await?;
        }
        Ok(())
    }

    async fn try_retain_stripe(&self, stripe: StripeId, until_ms: UnixMs) -> Result<(), Attempt<MetaError>> {
        let stripe_key = schema::stripe(stripe);
        let Some(value) = self.store.get(&stripe_key).await? else { return Ok(()) };
        let until_key = schema::retained(stripe);
        let found = self.store.get(&until_key).await?;
        if found.as_ref().map(|found| until_of(found)).transpose()?.is_some_and(|until| until >= until_ms) {
            return Ok(());
        }
        let row = StripeRow::decode(&value)?;
        let mut transaction = Transaction::default();
        transaction.expect(stripe_key, Some(value));
        transaction.expect(until_key.clone(), found);
        transaction.put(until_key, until_ms.to_be_bytes().to_vec());
        for (node, digests) in row.by_node() {
            let mut value = Writer::default();
            value.int(until_ms).len(digests.len());
            for digest in &digests {
                value.fixed(&digest.0);
            }
            transaction.put(schema::retention(node, stripe), value.0);
        }
        Ok(self.store.transact(transaction).await?)
    }

    /// Until when a stripe's blocks are retained; 0 when they are not.
    pub async fn stripe_retained_until(&self, stripe: StripeId) -> Result<UnixMs, MetaError> {
        let found = self.store.get(&schema::retained(stripe)).await?;
        Ok(found.as_ref().map(|found| until_of(found)).transpose()?.unwrap_or(0))
    }

    /// Retentions to deliver to one node.
    pub async fn retention_queue_of(
        &self,
        node: NodeId,
        limit: usize,
    ) -> Result<Vec<RetentionItem>, MetaError> {
        let Some(number) = self.nodes.number(&node) else { return Ok(Vec::new()) };
        let prefix = schema::retentions_of(number);
        let rows = self.store.page(&prefix, &prefix_end(&prefix), limit).await?;
        rows.into_iter()
            .map(|row| {
                let stripe = stripe_of(&row.key[prefix.len()..], "retention")?;
                let mut value = Reader::new("retention", &row.value);
                let until_ms = value.int()?;
                let count = value.count(32)?;
                let digests =
                    (0..count).map(|_| Ok(Digest(value.array()?))).collect::<Result<_, MetaError>>()?;
                Ok(RetentionItem { node, stripe, until_ms, digests, key: row.key, value: row.value })
            })
            .collect()
    }

    /// Forgets delivered retentions, unless they were prolonged meanwhile.
    pub async fn ack_retentions(&self, items: &[RetentionItem]) -> Result<(), MetaError> {
        for item in items {
            let mut transaction = Transaction::default();
            transaction.expect(item.key.clone(), Some(item.value.clone()));
            transaction.delete(item.key.clone());
            match self.store.transact(transaction).await {
                Ok(()) | Err(TransactError::Conflict) => {}
                Err(TransactError::Store(error)) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn until_of(value: &[u8]) -> Result<UnixMs, MetaError> {
    value.try_into().map(u64::from_be_bytes).map_err(|_| MetaError::Corrupt { what: "retention" })
}
