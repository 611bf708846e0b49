//! Retention that reaches the nodes: until when each holder of a locked object's blocks must refuse to delete them.
//!
//! A lock on an object is a row of its own; this makes of it one row a holder and stripe, delivered like commits. The
//! time of a stripe only grows: its blocks may belong to several locked objects.

use std::collections::BTreeSet;

use holdfast_protocol::record::StripeId;
use holdfast_protocol::time::UnixMs;
use holdfast_protocol::{Digest, NodeId};

use super::codec::{Reader, Writer};
use super::error::{Attempt, MetaError};
use super::model::{Bucket, Object};
use super::queue::stripe_of;
use super::row::{BlockRow, StripeRow};
use super::store::{TransactError, Transaction, prefix_end};
use super::{Meta, schema};
use crate::layout::{Entry, Layout};

/// Blocks looked up at once.
const BLOCKS_AT_ONCE: usize = 256;

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

impl Meta {
    /// Queues the retention of all blocks of `object` until `until_ms`.
    pub async fn retain(&self, bucket: &Bucket, object: &Object, until_ms: UnixMs) -> Result<(), MetaError> {
        let parts = match &object.layout {
            Layout::Empty => Vec::new(),
            Layout::Single(part) => vec![part.clone()],
            Layout::Parts => {
                let rows = self.object_part_rows(object.version).await?;
                rows.iter().map(|row| self.open_object_part(bucket.id, row)).collect::<Result<Vec<_>, _>>()?
            }
        };
        for part in parts {
            let entries = self.run_entries(bucket.id, &part.blocks).await?;
            for some in entries.chunks(BLOCKS_AT_ONCE) {
                self.retain_blocks(some, until_ms).await?;
            }
        }
        Ok(())
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
