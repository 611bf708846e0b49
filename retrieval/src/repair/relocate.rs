//! Moving a shard off a node that leaves: read from it while it still answers, verified, placed under the rules of
//! its policy, the row changed by compare-and-put, and only then released. Where the leaving node does not give the
//! shard, it is rebuilt from the others, as in any repair.
//!
//! A crash between any two steps leaves at worst a provisional block that lapses; the next pass begins at the row.

use holdfast_protocol::NodeId;
use holdfast_protocol::record::{Stripe, StripeId};

use super::pace::Pace;
use super::place::{Placing, candidates};
use super::plan::{Damage, choose};
use super::report::{End, Outcome};
use super::{RepairStoreError, Repairer, Replaced};
use crate::fetch::VerifiedBytes;
use crate::fetch::gather::block_of;

/// Times that a stripe is begun again after its row changed underneath.
const CONFLICTS_MAX: usize = 4;

/// What became of one stripe's shards on the leaving node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Relocated {
    /// Shards that have another node now.
    pub shards: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Shards that no other node may take under the rules.
    pub waiting: u64,
    /// Why shards stay where they are, if it is not for want of nodes.
    pub failed: Option<String>,
}

enum Pass {
    Finished(Relocated),
    Again,
}

impl Repairer {
    /// Moves what `from` keeps of one stripe to other nodes. Nothing to do is success.
    ///
    /// # Cancel safety
    /// Cancel safe: the stripe is either moved or untouched; a block put for an unfinished move lapses.
    pub async fn relocate(&self, id: StripeId, from: NodeId) -> Result<Relocated, RepairStoreError> {
        for _ in 0..CONFLICTS_MAX {
            let Some(stripe) = self.store.stripe(id).await? else { return Ok(Relocated::default()) };
            let damage = held_by(&stripe, from);
            if damage.is_none() {
                return Ok(Relocated::default());
            }
            if let Pass::Finished(done) = self.relocate_once(stripe, damage, from).await? {
                return Ok(done);
            }
        }
        let failed = Some(format!("its row changed {CONFLICTS_MAX} times meanwhile"));
        Ok(Relocated { failed, ..Relocated::default() })
    }

    async fn relocate_once(
        &self,
        stripe: Stripe,
        damage: Damage,
        from: NodeId,
    ) -> Result<Pass, RepairStoreError> {
        let wanted = damage.missing.len() as u64;
        let possible = choose(&mut self.chooser.lock(), &candidates(&self.pool), &stripe, &damage).len();
        if possible == 0 {
            return Ok(Pass::Finished(Relocated { waiting: wanted, ..Relocated::default() }));
        }
        let pace = Pace::new(None);
        let bytes = match self.take(&stripe, &damage, from, &pace).await {
            Ok(bytes) => bytes,
            Err(why) => return Ok(Pass::Finished(Relocated { failed: Some(why), ..Relocated::default() })),
        };
        let terms = self.store.terms(&stripe).await?;
        let placed = Placing::new(self, &stripe, &terms, &pace).run(&damage, bytes).await;
        if placed.is_empty() {
            return Ok(Pass::Finished(Relocated { waiting: wanted, ..Relocated::default() }));
        }
        let mut changed = stripe.clone();
        changed.version += 1;
        for chosen in &placed {
            if let Some(shard) = &mut changed.shards[chosen.slot] {
                shard.node = Some(chosen.node);
            }
        }
        match self.store.replace(&changed, stripe.version).await? {
            Replaced::Conflict => return Ok(Pass::Again),
            // What was put lapses with its lease.
            Replaced::Gone => return Ok(Pass::Finished(Relocated::default())),
            Replaced::Done => {}
        }
        self.commit(&changed, &placed).await?;
        let shards = placed.len() as u64;
        Ok(Pass::Finished(Relocated {
            shards,
            bytes: placed.iter().map(|chosen| u64::from(chosen.block.len.bytes())).sum(),
            waiting: wanted.saturating_sub(shards),
            failed: None,
        }))
    }

    /// The shards' bytes: from the leaving node, or else from the rest of the stripe.
    async fn take(
        &self,
        stripe: &Stripe,
        damage: &Damage,
        from: NodeId,
        pace: &Pace,
    ) -> Result<Vec<(usize, VerifiedBytes)>, String> {
        let mut taken = Vec::with_capacity(damage.missing.len());
        for &slot in &damage.missing {
            let Some(shard) = stripe.shards[slot].as_ref() else { continue };
            match self.reader.whole(from, block_of(shard), None).await {
                Ok(bytes) => taken.push((slot, bytes)),
                Err(fault) => {
                    tracing::debug!(node = %from, stripe = %stripe.id, %fault, "a leaving node does not give a shard; it is rebuilt");
                    return self.rebuilt(stripe, damage, pace).await;
                }
            }
        }
        Ok(taken)
    }

    async fn rebuilt(
        &self,
        stripe: &Stripe,
        damage: &Damage,
        pace: &Pace,
    ) -> Result<Vec<(usize, VerifiedBytes)>, String> {
        let mut damage = damage.clone();
        let all = self.rebuild(stripe, &mut damage, pace, &mut Outcome::default()).await;
        all.map_err(|end| match end {
            End::Unreadable { why } | End::Failed { why } => why,
            End::Whole | End::Waiting { .. } => "the stripe cannot be read".to_owned(),
        })
    }
}

/// What `from` keeps of the stripe, as the only damage there is: what other nodes lack is not our concern here.
fn held_by(stripe: &Stripe, from: NodeId) -> Damage {
    let mut damage = Damage::default();
    for (slot, shard) in stripe.shards.iter().enumerate() {
        match shard.as_ref().and_then(|shard| shard.node) {
            Some(node) if node == from => damage.missing.push(slot),
            Some(node) => damage.holding.push(node),
            None => {}
        }
    }
    if !damage.missing.is_empty() {
        damage.lost.push(from);
    }
    damage
}
