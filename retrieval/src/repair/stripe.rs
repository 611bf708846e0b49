//! The repair of one stripe, from its row to its new row.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_protocol::NodeId;
use holdfast_protocol::record::{ClaimRef, Stripe, StripeId};
use tokio::sync::Semaphore;

use super::judge::Judge;
use super::pace::Pace;
use super::place::{Chosen, Placing, candidates};
use super::plan::{Damage, choose};
use super::put::Putter;
use super::report::{End, Outcome};
use super::{RepairOptions, RepairStoreError, Repaired, Repairer, Replaced};
use crate::block::BlockRef;
use crate::code::{Code, ShardPiece, WantedShard};
use crate::fetch::VerifiedBytes;
use crate::fetch::gather::{Gathered, Gatherer, block_of};
use crate::fetch::quickest_first;

/// Times that a stripe is begun again after its row changed underneath.
const CONFLICTS_MAX: usize = 4;
/// A read that takes longer gets company. Repair is in no hurry, but a stalled node must not hold it up.
const PATIENCE: Duration = Duration::from_secs(2);

impl Repairer {
    /// Repairs one stripe within the memory and the pace of the run. Only the store's failures are errors.
    pub(super) async fn one(
        &self,
        id: StripeId,
        options: &RepairOptions,
        judge: &Judge,
        room: &Semaphore,
        pace: &Pace,
    ) -> (StripeId, Result<Outcome, RepairStoreError>) {
        (id, self.attempts(id, options, judge, room, pace).await)
    }

    async fn attempts(
        &self,
        id: StripeId,
        options: &RepairOptions,
        judge: &Judge,
        room: &Semaphore,
        pace: &Pace,
    ) -> Result<Outcome, RepairStoreError> {
        let mut done = Outcome::default();
        for _ in 0..CONFLICTS_MAX {
            // The row may have changed since the survey.
            let Some(stripe) = self.store.stripe(id).await? else { return Ok(done) };
            let damage = judge.damage(&stripe);
            if damage.is_none() {
                done.end = End::Whole;
                return Ok(done);
            }
            let shards = usize::from(stripe.k) + damage.missing.len();
            let held = (shards * stripe.block_len.as_usize()).min(options.concurrent_bytes);
            let Ok(_room) = room.acquire_many(u32::try_from(held).unwrap_or(u32::MAX)).await else {
                return Ok(done);
            };
            if let Repaired::Finished = self.attempt(stripe, damage, pace, &mut done).await? {
                return Ok(done);
            }
        }
        done.end = End::Failed { why: format!("its row changed {CONFLICTS_MAX} times meanwhile") };
        Ok(done)
    }

    /// One pass over a stripe. What it did is added to `done`.
    async fn attempt(
        &self,
        stripe: Stripe,
        mut damage: Damage,
        pace: &Pace,
        done: &mut Outcome,
    ) -> Result<Repaired, RepairStoreError> {
        // Nothing is read for a stripe that finds no node.
        let candidates = candidates(&self.pool);
        let mut possible = choose(&mut self.chooser.lock(), &candidates, &stripe, &damage);
        let mut barred = Vec::new();
        for (_, node) in &possible {
            if self.store.is_barred(stripe.id, *node).await? {
                barred.push(*node);
            }
        }
        possible.retain(|(_, node)| !barred.contains(node));
        // Others may do instead; if not, the barred ones are asked again when they have let go.
        damage.lost.extend(barred);
        if possible.is_empty() && choose(&mut self.chooser.lock(), &candidates, &stripe, &damage).is_empty() {
            done.end = End::Waiting { nodes: damage.missing.len() as u64 };
            return Ok(Repaired::Finished);
        }
        let rebuilt = match self.rebuild(&stripe, &mut damage, pace, done).await {
            Ok(rebuilt) => rebuilt,
            Err(end) => {
                done.end = end;
                return Ok(Repaired::Finished);
            }
        };
        let terms = self.store.terms(&stripe).await?;
        let placed = Placing::new(self, &stripe, &terms, pace).run(&damage, rebuilt).await;
        if placed.is_empty() {
            done.end = End::Waiting { nodes: damage.missing.len() as u64 };
            return Ok(Repaired::Finished);
        }
        let mut changed = stripe.clone();
        changed.version += 1;
        for chosen in &placed {
            if let Some(shard) = &mut changed.shards[chosen.slot] {
                shard.node = Some(chosen.node);
            }
        }
        match self.store.replace(&changed, stripe.version).await? {
            Replaced::Conflict => return Ok(Repaired::Again),
            // What was put lapses with its lease.
            Replaced::Gone => return Ok(Repaired::Finished),
            Replaced::Done => {}
        }
        done.shards_rebuilt += placed.len() as u64;
        done.bytes_written += placed.iter().map(|chosen| u64::from(chosen.block.len.bytes())).sum::<u64>();
        self.commit(&changed, &placed).await?;
        let waiting = damage.missing.len().saturating_sub(placed.len()) as u64;
        done.end = if waiting == 0 { End::Whole } else { End::Waiting { nodes: waiting } };
        Ok(Repaired::Finished)
    }

    /// The missing shards' bytes, each equal to its digest. Shards that prove bad on the way join the missing.
    pub(super) async fn rebuild(
        &self,
        stripe: &Stripe,
        damage: &mut Damage,
        pace: &Pace,
        done: &mut Outcome,
    ) -> Result<Vec<(usize, VerifiedBytes)>, End> {
        let gathered = self.gather(stripe, damage, pace).await?;
        done.bytes_read += gathered.bytes_read;
        for reason in &gathered.faults {
            if let (Some(node), Some(fault)) = (reason.node, &reason.fault)
                && fault.shard_is_gone()
            {
                damage.found_bad(reason.slot, node);
            }
        }
        let blocks: Vec<(usize, BlockRef)> = damage
            .missing
            .iter()
            .filter_map(|slot| Some((*slot, block_of(stripe.shards[*slot].as_ref()?))))
            .collect();
        let bytes = decode(stripe, gathered.pieces, &blocks)?;
        let mut rebuilt = Vec::with_capacity(blocks.len());
        for ((slot, block), bytes) in blocks.into_iter().zip(bytes) {
            let bytes = VerifiedBytes::whole(block, bytes).map_err(|what| End::Failed {
                why: format!("shard {slot} does not follow from the others, its row is inconsistent: {what}"),
            })?;
            rebuilt.push((slot, bytes));
        }
        Ok(rebuilt)
    }

    /// Any k shards, those on lost nodes last: a node that drains still answers.
    async fn gather(&self, stripe: &Stripe, damage: &Damage, pace: &Pace) -> Result<Gathered, End> {
        pace.wait(usize::from(stripe.k) * stripe.block_len.as_usize()).await;
        let mut order = quickest_first(&self.pool, stripe);
        order.sort_by_key(|slot| damage.missing.contains(slot));
        let patience = |_: NodeId| PATIENCE;
        Gatherer::new(&self.reader, stripe, &[], &patience).run(&order).await.map_err(|short| {
            End::Unreadable {
                why: format!(
                    "{} of the {} shards needed can be read ({})",
                    short.have, stripe.k, short.reasons
                ),
            }
        })
    }

    pub(super) async fn commit(&self, stripe: &Stripe, placed: &[Chosen]) -> Result<(), RepairStoreError> {
        let putter = Putter { pool: Arc::clone(&self.pool) };
        for chosen in placed {
            let tag = self.tags.tag(stripe.id, chosen.node);
            if putter.commit(chosen.node, ClaimRef(chosen.block.digest, tag)).await {
                self.store.committed(chosen.node, stripe.id, &[chosen.block.digest]).await?;
            }
        }
        Ok(())
    }
}

/// The bytes of `blocks` from the pieces: those that were read themselves as they are, the rest computed.
fn decode(stripe: &Stripe, pieces: Vec<ShardPiece>, blocks: &[(usize, BlockRef)]) -> Result<Vec<Bytes>, End> {
    let failed = |error: crate::code::CodeError| End::Failed { why: error.to_string() };
    let wanted: Vec<WantedShard> =
        blocks.iter().map(|(slot, block)| WantedShard { slot: *slot, len: block.len.as_usize() }).collect();
    let code = Code::shared(usize::from(stripe.k), usize::from(stripe.m)).map_err(failed)?;
    code.reconstruct(&pieces, &wanted).map_err(failed)
}
