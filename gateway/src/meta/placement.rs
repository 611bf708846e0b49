//! The placement: which stripe a block lives in, and which nodes hold the shards of a stripe.

use std::sync::Arc;

use holdfast_protocol::record::{Shard, Stripe, StripeId};
use holdfast_protocol::{Digest, NodeId};

use super::error::{Attempt, MetaError, PlacementError};
use super::lease::Fence;
use super::model::Located;
use super::queue::stripe_of;
use super::row::{BlockRow, StripeRow, from_record};
use super::store::{Transaction, prefix_end};
use super::{Meta, next_key, schema};

impl Meta {
    /// Where a block is; `None` when nothing refers to it.
    pub async fn locate(&self, digest: &Digest) -> Result<Option<Located>, MetaError> {
        let Some(row) = self.store.get(&schema::block(digest)).await? else { return Ok(None) };
        let block = BlockRow::decode(&row)?;
        // Gone between the two reads: the block was released with its stripe.
        let Some(stripe) = self.stripe(block.stripe).await? else { return Ok(None) };
        let slot = usize::from(block.slot);
        match stripe.shards.get(slot) {
            Some(Some(shard)) if shard.digest == *digest => {
                Ok(Some(Located { stripe: Arc::new(stripe), slot }))
            }
            _ => Err(MetaError::Corrupt { what: "block" }),
        }
    }

    /// A stripe; `None` when it was released or never committed.
    pub async fn stripe(&self, id: StripeId) -> Result<Option<Stripe>, MetaError> {
        match self.store.get(&schema::stripe(id)).await? {
            None => Ok(None),
            Some(value) => Ok(Some(self.stripe_record(id, &StripeRow::decode(&value)?).await?)),
        }
    }

    /// Up to `limit` stripes by id, after `after`.
    pub async fn stripes(&self, after: Option<StripeId>, limit: usize) -> Result<Vec<Stripe>, MetaError> {
        let table = schema::table(schema::STRIPES);
        let start = after.map_or_else(|| table.clone(), |id| next_key(schema::stripe(id)));
        let mut stripes = Vec::new();
        for row in self.store.page(&start, &prefix_end(&table), limit).await? {
            let id = stripe_of(&row.key[1..], "stripe")?;
            stripes.push(self.stripe_record(id, &StripeRow::decode(&row.value)?).await?);
        }
        Ok(stripes)
    }

    pub(super) async fn stripe_record(&self, id: StripeId, row: &StripeRow) -> Result<Stripe, MetaError> {
        let mut shards = Vec::with_capacity(row.shards.len());
        for shard in &row.shards {
            shards.push(match shard {
                None => None,
                Some(shard) => {
                    let node = match shard.node {
                        None => None,
                        Some(number) => Some(self.node_id(number).await?),
                    };
                    Some(Shard { digest: shard.digest, len: shard.len, node })
                }
            });
        }
        let (version, policy, k, m, block_len) = (row.version, row.policy, row.k, row.m, row.block_len);
        Ok(Stripe { v: 1, id, version, policy, k, m, block_len, shards })
    }

    /// Puts a new placement of `stripe`, whose `version` must be one more than `expected_version`, the one it
    /// was decided on. Only nodes may change.
    ///
    /// Nodes that hold something new get a row in the commit queue, nodes that hold something no longer one in the
    /// release queue, delivered when they are there again; the stripe leaves or enters the completion queue. Until
    /// its release is delivered a node is not given the same shard again: the late order would hit the new claim.
    pub async fn put_stripe(&self, stripe: &Stripe, expected_version: u64) -> Result<(), PlacementError> {
        self.put_stripe_guarded(stripe, expected_version, None).await
    }

    /// The same, only while `fence` holds.
    pub(super) async fn put_stripe_guarded(
        &self,
        stripe: &Stripe,
        expected_version: u64,
        fence: Option<&Fence>,
    ) -> Result<(), PlacementError> {
        self.intern_nodes(stripe).await?;
        self.retry(|| self.try_put_stripe(stripe, expected_version, fence)).await
    }

    async fn try_put_stripe(
        &self,
        stripe: &Stripe,
        expected_version: u64,
        fence: Option<&Fence>,
    ) -> Result<(), Attempt<PlacementError>> {
        let id = stripe.id;
        let key = schema::stripe(id);
        let value = self.store.get(&key).await?;
        let Some(value) = value else { return Err(Attempt::Failed(PlacementError::Gone { stripe: id })) };
        let old = StripeRow::decode(&value)?;
        if old.version != expected_version {
            return Err(Attempt::Failed(PlacementError::Version {
                stripe: id,
                found: old.version,
                expected: expected_version,
            }));
        }
        let new = from_record(stripe, |node| self.nodes.number(node));
        let new = new.filter(|new| same_shape(&old, new) && new.version == expected_version + 1);
        let new = new.ok_or(Attempt::Failed(PlacementError::Shape { stripe: id }))?;
        let mut transaction = Transaction::default();
        if let Some(fence) = fence {
            if !self.holds(fence).await? {
                return Err(Attempt::Failed(PlacementError::Overtaken { stripe: id }));
            }
            fence.guard(&mut transaction);
        }
        transaction.expect(key.clone(), Some(value));
        transaction.put(key, new.encode());
        self.pass_claims(id, Some(&old), &new, &mut transaction).await?;
        if new.incomplete() {
            transaction.put(schema::completion(id), Vec::new());
        } else {
            transaction.delete(schema::completion(id));
        }
        Ok(self.store.transact(transaction).await?)
    }

    /// Whether `node` shall keep `digest` for `stripe`: the answer to a node that asks at the end of a lease.
    ///
    /// Knows what is committed. An upload still under way is the caller's to remember.
    pub async fn wanted(&self, digest: &Digest, stripe: StripeId, node: NodeId) -> Result<bool, MetaError> {
        let Some(value) = self.store.get(&schema::stripe(stripe)).await? else { return Ok(false) };
        let row = StripeRow::decode(&value)?;
        for shard in row.shards.iter().flatten().filter(|shard| shard.digest == *digest) {
            if let Some(number) = shard.node
                && self.node_id(number).await? == node
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether only nodes and the version differ.
fn same_shape(old: &StripeRow, new: &StripeRow) -> bool {
    let bytes = |row: &StripeRow| -> Vec<_> {
        row.shards.iter().map(|shard| shard.map(|shard| (shard.digest, shard.len))).collect()
    };
    (old.policy, old.k, old.m, old.block_len) == (new.policy, new.k, new.m, new.block_len)
        && bytes(old) == bytes(new)
}
