//! What a stripe misses, and which nodes are to have it. No I/O.

use holdfast_protocol::NodeId;
use holdfast_protocol::record::{Policy, Stripe};

use crate::placement::{Candidate, Chooser};

/// The missing shards of one stripe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Damage {
    /// Slots without a node, or on a lost one, ascending.
    pub(crate) missing: Vec<usize>,
    /// Nodes of the shards that are well.
    pub(crate) holding: Vec<NodeId>,
    /// Lost nodes that were to hold a shard: not chosen again for this stripe.
    pub(crate) lost: Vec<NodeId>,
}

impl Damage {
    pub(crate) fn of(stripe: &Stripe, lost: impl Fn(NodeId) -> bool) -> Self {
        let mut damage = Self::default();
        for (slot, shard) in stripe.shards.iter().enumerate() {
            // A virtual zero block is nowhere and misses nothing.
            let Some(shard) = shard else { continue };
            match shard.node {
                Some(node) if !lost(node) => damage.holding.push(node),
                Some(node) => {
                    damage.missing.push(slot);
                    damage.lost.push(node);
                }
                None => damage.missing.push(slot),
            }
        }
        damage
    }

    /// The shard in `slot`, held by `node` until now, turned out to be gone or wrong.
    pub(crate) fn found_bad(&mut self, slot: usize, node: NodeId) {
        if !self.missing.contains(&slot) {
            self.missing.push(slot);
            self.missing.sort_unstable();
        }
        self.holding.retain(|holding| *holding != node);
        self.lost.push(node);
    }

    /// Shards at hand beyond the k that a read needs, virtual zeros included; negative when there are fewer.
    pub(crate) fn spare(&self, stripe: &Stripe) -> i64 {
        let k = usize::from(stripe.k);
        let zeros = stripe.shards.iter().take(k).filter(|shard| shard.is_none()).count();
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        count(self.holding.len() + zeros) - count(k)
    }

    pub(crate) fn is_none(&self) -> bool {
        self.missing.is_empty()
    }
}

/// The policy of a stripe, by its name and its own code (a journal's has no name that gives it).
pub(crate) fn policy_of(stripe: &Stripe) -> Policy {
    let (k, m) = (usize::from(stripe.k), usize::from(stripe.m));
    Policy { name: stripe.policy, k, m, w: k + m.div_ceil(2) }
}

/// One node for each missing slot as far as there are any; slots that find none come last, without.
pub(crate) fn choose(
    chooser: &mut Chooser,
    candidates: &[Candidate],
    stripe: &Stripe,
    damage: &Damage,
) -> Vec<(usize, NodeId)> {
    let policy = policy_of(stripe);
    let mut taken = damage.holding.clone();
    let mut chosen = Vec::new();
    for &slot in &damage.missing {
        let Some(node) = chooser.replacement(candidates, &policy, &taken, &damage.lost) else { break };
        taken.push(node);
        chosen.push((slot, node));
    }
    chosen
}
