//! Rebuilt shards onto nodes: each on one of its own, and on another one when that fails.

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use holdfast_protocol::NodeId;
use holdfast_protocol::record::Stripe;

use super::pace::Pace;
use super::plan::{Damage, choose, policy_of};
use super::put::{Putter, ShardPut};
use super::{Repairer, ShardTerms};
use crate::block::BlockRef;
use crate::fetch::VerifiedBytes;
use crate::fetch::gather::block_of;
use crate::placement::Candidate;
use crate::pool::NodePool;

/// Nodes that one shard is offered to.
const OFFERS_MAX: usize = 4;

/// A node caught with so many wrong answers since this process started is given nothing to keep.
const LIES_MAX: u64 = 8;

/// The nodes that may be given shards, as placement sees them.
pub(crate) fn candidates(pool: &NodePool) -> Vec<Candidate> {
    let honest = |node: &Candidate| pool.node(node.id).is_some_and(|view| view.lies < LIES_MAX);
    let mut candidates = crate::write::stripe::candidates(pool);
    for node in &mut candidates {
        node.live &= honest(node);
    }
    candidates
}

/// A shard with the node that is to have it.
pub(super) struct Chosen {
    pub(super) slot: usize,
    pub(super) node: NodeId,
    pub(super) block: BlockRef,
    bytes: Bytes,
    /// Which offer this is, from 1.
    offers: usize,
}

/// The placing of one stripe's missing shards.
pub(super) struct Placing<'a> {
    repairer: &'a Repairer,
    stripe: &'a Stripe,
    terms: &'a [ShardTerms],
    pace: &'a Pace,
    putter: Putter,
    candidates: Vec<Candidate>,
}

impl<'a> Placing<'a> {
    pub(super) fn new(
        repairer: &'a Repairer,
        stripe: &'a Stripe,
        terms: &'a [ShardTerms],
        pace: &'a Pace,
    ) -> Self {
        let pool = std::sync::Arc::clone(&repairer.pool);
        let candidates = candidates(&pool);
        Self { repairer, stripe, terms, pace, putter: Putter { pool }, candidates }
    }

    /// Places as many of the rebuilt shards as find nodes. Gives back those that have receipts.
    pub(super) async fn run(&self, damage: &Damage, rebuilt: Vec<(usize, VerifiedBytes)>) -> Vec<Chosen> {
        let chosen = choose(&mut self.repairer.chooser.lock(), &self.candidates, self.stripe, damage);
        // Nodes that hold, or are being given, a shard; and nodes that are not to be asked (again).
        let mut taken: Vec<NodeId> = damage.holding.clone();
        taken.extend(chosen.iter().map(|(_, node)| *node));
        let mut refused = damage.lost.clone();
        let mut puts = FuturesUnordered::new();
        for (slot, node) in chosen {
            let Some((_, bytes)) = rebuilt.iter().find(|(rebuilt, _)| *rebuilt == slot) else { continue };
            let Some(shard) = self.stripe.shards[slot].as_ref() else { continue };
            let (block, bytes) = (block_of(shard), bytes.clone().into_bytes());
            puts.push(self.offer(Chosen { slot, node, block, bytes, offers: 1 }));
        }
        let mut placed = Vec::new();
        while let Some((offer, result)) = puts.next().await {
            let Err(why) = result else {
                placed.push(offer);
                continue;
            };
            tracing::debug!(stripe = %self.stripe.id, node = %offer.node, why, "a node did not take a shard");
            taken.retain(|node| *node != offer.node);
            refused.push(offer.node);
            if let Some(node) = self.other(&offer, &taken, &refused) {
                taken.push(node);
                puts.push(self.offer(Chosen { node, offers: offer.offers + 1, ..offer }));
            }
        }
        placed.sort_by_key(|chosen| chosen.slot);
        placed
    }

    fn other(&self, offer: &Chosen, taken: &[NodeId], refused: &[NodeId]) -> Option<NodeId> {
        if offer.offers >= OFFERS_MAX {
            return None;
        }
        let policy = policy_of(self.stripe);
        self.repairer.chooser.lock().replacement(&self.candidates, &policy, taken, refused)
    }

    async fn offer(&self, chosen: Chosen) -> (Chosen, Result<(), String>) {
        match self.repairer.store.is_barred(self.stripe.id, chosen.node).await {
            Ok(false) => {}
            Ok(true) => return (chosen, Err("it has yet to let go an earlier claim".to_owned())),
            Err(error) => return (chosen, Err(error.to_string())),
        }
        self.pace.wait(chosen.bytes.len()).await;
        let shard = ShardPut {
            block: chosen.block,
            bytes: chosen.bytes.clone(),
            tag: self.repairer.tags.tag(self.stripe.id, chosen.node),
            terms: self.terms.get(chosen.slot).copied().unwrap_or_default(),
        };
        let result = self.putter.put(chosen.node, &shard).await;
        (chosen, result)
    }
}
