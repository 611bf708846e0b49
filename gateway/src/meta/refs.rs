//! References: how many manifests refer to each block, changed in the transaction that changes the manifests.
//!
//! The rules:
//! - The first reference to a block makes its row, which says in which slot of which stripe it lives. A later
//!   PUT of the same block takes another reference; where its own copy was written is forgotten (the copy's
//!   claim lapses, or stays dead in its stripe).
//! - The last reference gone removes the row. The block's bytes stay while its stripe has another live block.
//! - A stripe none of whose data blocks has a row that points to it is released in the same transaction: its
//!   row goes, a tombstone stays, every holder gets a row in the release queue.
//! - Two transactions that each see the other's block alive must not both commit, or the stripe would leak:
//!   whoever leaves a stripe behind names one live block in it as a witness and relies on its row.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use holdfast_protocol::Digest;
use holdfast_protocol::record::StripeId;

use super::error::{Attempt, MetaError, PutError};
use super::model::{BucketId, VersionId};
use super::row::{BlockRow, Origin, StripeRow};
use super::store::Transaction;
use super::{Meta, queue, schema};
use crate::layout::Entry;

/// By how much the references of each block change.
#[derive(Debug, Default)]
pub(super) struct RefChanges {
    by: BTreeMap<Digest, i64>,
    /// Whose blocks are taken; blocks that are only dropped need none.
    origin: Option<Origin>,
    /// Runs that one more object shares, see [`super::copy`].
    pub(super) shared: BTreeMap<VersionId, u64>,
}

impl RefChanges {
    /// Changes of an upload to `bucket`: blocks that come with it remember where from.
    pub(super) fn of(bucket: BucketId) -> Self {
        Self { origin: Some(Origin::of(bucket)), ..Self::default() }
    }

    pub(super) fn take(&mut self, entries: &[Entry]) {
        for entry in entries {
            *self.by.entry(entry.digest).or_default() += 1;
        }
    }

    pub(super) fn drop(&mut self, entries: &[Entry]) {
        for entry in entries {
            *self.by.entry(entry.digest).or_default() -= 1;
        }
    }
}

/// Stripes that come with an upload, by id.
pub(super) type Brought = BTreeMap<StripeId, StripeRow>;

/// Block rows as the transaction will leave them.
type After = BTreeMap<Digest, Option<BlockRow>>;

impl Meta {
    /// Adds to `transaction` all that follows from changed references.
    pub(super) async fn change_refs(
        &self,
        changes: &RefChanges,
        brought: &Brought,
        transaction: &mut Transaction,
    ) -> Result<(), Attempt<PutError>> {
        let places = placements(brought);
        // A block that was just written counts even where its references stay the same: its place may change.
        let matters = |digest: &Digest, by: i64| by != 0 || places.contains_key(digest);
        let changed: Vec<(Digest, i64)> = changes
            .by
            .iter()
            .filter(|(digest, by)| matters(digest, **by))
            .map(|(digest, by)| (*digest, *by))
            .collect();
        let keys: Vec<_> = changed.iter().map(|(digest, _)| schema::block(digest)).collect();
        let rows = self.store.get_many(&keys).await?;
        let mut after = After::new();
        let mut entered = BTreeSet::new();
        let mut left = BTreeSet::new();
        for (((digest, by), key), row) in changed.into_iter().zip(keys).zip(rows) {
            let block = match &row {
                None if by > 0 => {
                    let (stripe, slot) = *places.get(&digest).ok_or(PutError::Unplaced { digest })?;
                    entered.insert(stripe);
                    BlockRow { stripe, slot, refs: by.unsigned_abs(), origin: changes.origin }
                }
                // A reference that some manifest holds has a row.
                None => return Err(MetaError::Corrupt { what: "block" }.into()),
                Some(row) => {
                    let block = BlockRow::decode(row)?;
                    let refs = block.refs.checked_add_signed(by);
                    let refs = refs.ok_or(MetaError::Corrupt { what: "block" })?;
                    match places.get(&digest) {
                        // What was acknowledged is what was just written: the older copy may be beyond repair, or
                        // follow a weaker policy.
                        Some((stripe, slot)) if *stripe != block.stripe && refs > 0 => {
                            entered.insert(*stripe);
                            left.insert(block.stripe);
                            let origin = changes.origin.or(block.origin);
                            BlockRow { stripe: *stripe, slot: *slot, refs, origin }
                        }
                        _ => BlockRow { refs, ..block },
                    }
                }
            };
            transaction.expect(key.clone(), row);
            if block.refs == 0 {
                transaction.delete(key);
                left.insert(block.stripe);
                after.insert(digest, None);
            } else {
                transaction.put(key, block.encode());
                after.insert(digest, Some(block));
            }
        }
        for stripe in &entered {
            if let Some(row) = brought.get(stripe) {
                self.enter_stripe(*stripe, row, transaction).await?;
            }
        }
        for stripe in left.difference(&entered) {
            self.leave_stripe(*stripe, &after, transaction).await?;
        }
        Ok(())
    }

    /// A block begins to live in `stripe`, whose row is made unless it is there.
    ///
    /// Several PUTs of one commit group bring the same stripe at the same time and must not fail each other,
    /// so nothing here relies on the stripe's row. The tombstone is enough: without one the stripe was either
    /// never there or still stands, for its release puts the tombstone in the same transaction.
    async fn enter_stripe(
        &self,
        id: StripeId,
        row: &StripeRow,
        transaction: &mut Transaction,
    ) -> Result<(), Attempt<PutError>> {
        let keys = [schema::stripe(id), schema::tombstone(id)];
        let found = self.store.get_many(&keys).await?;
        let [stripe_key, tombstone_key] = keys;
        let [standing, tombstone]: [Option<Bytes>; 2] =
            found.try_into().map_err(|_| MetaError::Corrupt { what: "stripe" })?;
        if tombstone.is_some() {
            return Err(Attempt::Failed(PutError::StripeReleased { stripe: id }));
        }
        transaction.expect(tombstone_key, None);
        if standing.is_none() {
            transaction.put_if_absent(stripe_key, row.encode());
            queue::enqueue(schema::COMMITS, id, &row.by_node(), self.now_ms(), transaction);
            if row.incomplete() {
                transaction.put_if_absent(schema::completion(id), Vec::new());
            }
            if row.is_short() {
                transaction.put_if_absent(schema::packing(id), self.now_ms().to_le_bytes().to_vec());
            }
        }
        Ok(())
    }

    /// A block stops to live in `stripe`: names a witness that another still does, or releases the stripe. One that
    /// goes on with a dead block is queued for the packer, who rewrites it when most of it is dead.
    async fn leave_stripe(
        &self,
        id: StripeId,
        after: &After,
        transaction: &mut Transaction,
    ) -> Result<(), Attempt<PutError>> {
        let key = schema::stripe(id);
        let value = self.store.get(&key).await?.ok_or(MetaError::Corrupt { what: "stripe" })?;
        let stripe = StripeRow::decode(&value)?;
        let lives_here = |block: &BlockRow| block.stripe == id;
        let mut others = Vec::new();
        for (_, shard) in stripe.data() {
            match after.get(&shard.digest) {
                // Still alive by this very transaction, which relies on the row.
                Some(Some(block)) if lives_here(block) => {
                    transaction.put_if_absent(schema::packing(id), self.now_ms().to_le_bytes().to_vec());
                    return Ok(());
                }
                Some(_) => {}
                None => others.push(schema::block(&shard.digest)),
            }
        }
        let rows = self.store.get_many(&others).await?;
        let mut elsewhere = Vec::new();
        for (key, row) in others.into_iter().zip(rows) {
            let alive = row.as_ref().map(|row| BlockRow::decode(row)).transpose()?;
            if alive.as_ref().is_some_and(lives_here) {
                transaction.expect(key, row);
                transaction.put_if_absent(schema::packing(id), self.now_ms().to_le_bytes().to_vec());
                return Ok(());
            }
            elsewhere.push((key, row));
        }
        for (key, row) in elsewhere {
            transaction.expect(key, row);
        }
        transaction.expect(key.clone(), Some(value));
        transaction.delete(key);
        transaction.delete(schema::completion(id));
        transaction.delete(schema::retained(id));
        transaction.delete(schema::packing(id));
        let holders = stripe.by_node();
        for node in holders.keys() {
            transaction.delete(schema::queued(schema::COMMITS, *node, id));
        }
        for (node, digests) in holders {
            // Repair may have left releases of this stripe at the node, which must not be forgotten.
            self.add_releases(node, id, digests.into_iter().collect(), transaction).await?;
        }
        transaction.put(schema::tombstone(id), self.now_ms().to_le_bytes().to_vec());
        Ok(())
    }
}

/// Where each data block of the brought stripes is. The same block may be in several: the first one wins.
fn placements(brought: &Brought) -> BTreeMap<Digest, (StripeId, u8)> {
    let mut places = BTreeMap::new();
    for (id, stripe) in brought {
        for (slot, shard) in stripe.data() {
            places.entry(shard.digest).or_insert((*id, slot));
        }
    }
    places
}

impl From<PutError> for Attempt<PutError> {
    fn from(error: PutError) -> Self {
        Self::Failed(error)
    }
}
