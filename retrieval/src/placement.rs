//! Placement: which nodes the shards of a stripe go to. Pure: no clock, no network, no random source; the
//! same seed and the same calls choose the same nodes.
//!
//! Rules are never relaxed. A network that has too few failure domains for a policy gets an error that says
//! what is missing and which smaller policy fits; one that merely has too many nodes down gets a plan with
//! gaps, or an error that asks to try again.
//!
//! Balance: every node carries two running totals of work, each charged by 1/free bytes when the node is
//! chosen (stride scheduling), one for data shards and one for all shards. Data slots go to the nodes with
//! the smallest data total, so consecutive small stripes put their data on *different* nodes in turn: that
//! is what lets the packer merge them later by rewriting parity only. Parity goes where the whole total is
//! smallest.

use std::collections::HashMap;

use holdfast_protocol::NodeId;
use holdfast_protocol::record::Policy;

pub mod domain;
mod error;
mod pick;
pub mod rules;

pub use domain::{FailureDomain, Network};
pub use error::{DomainCount, PlacementError};
pub use rules::{Rules, durability, smaller};

use pick::Picker;

/// Free bytes below which a node is left alone: its own metadata and the garbage of rewriting need room.
const FREE_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// A node's weight is never below this part of the largest: an almost full node still takes its turn.
const WEIGHT_MIN: f64 = 1e-3;

/// A node as placement sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Which.
    pub id: NodeId,
    /// What it shares with others.
    pub domain: FailureDomain,
    /// Bytes free.
    pub free_bytes: u64,
    /// Whether it answers and takes writes. One that does not still counts as known.
    pub live: bool,
}

/// Where the shards of one stripe go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// One per block, in order: data slots `0..blocks`. `None` waits for a node.
    pub data: Vec<Option<NodeId>>,
    /// One per parity shard. `None` waits for a node.
    pub parity: Vec<Option<NodeId>>,
    /// Receipts that make the stripe durable enough to acknowledge: the policy's w, less one for each
    /// data slot that stays a virtual zero block. The stripe may miss as many shards as a full one.
    pub quorum: usize,
}

impl Plan {
    /// All chosen nodes, data first.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.data.iter().chain(&self.parity).copied().flatten()
    }
}

/// Chooses nodes for stripes, and remembers whose turn it is.
#[derive(Debug)]
pub struct Chooser {
    seed: u64,
    /// Bounded by the candidates of the last call.
    turns: HashMap<NodeId, Turn>,
}

/// A node's running totals; smallest goes first.
#[derive(Clone, Copy, Debug, Default)]
struct Turn {
    data: f64,
    all: f64,
}

impl Chooser {
    /// A chooser whose first turns follow from `seed`; gateways of one namespace take different ones.
    pub fn new(seed: u64) -> Self {
        Self { seed, turns: HashMap::new() }
    }

    /// Chooses nodes for a stripe of `blocks` data blocks (1 to k) under `policy`.
    ///
    /// # Errors
    /// [`PlacementError::Lacks`] when the known nodes could not carry the policy even if all were live;
    /// [`PlacementError::Down`] when fewer than w domains are live.
    pub fn choose(
        &mut self,
        candidates: &[Candidate],
        policy: &Policy,
        blocks: usize,
    ) -> Result<Plan, PlacementError> {
        let blocks = blocks.clamp(1, policy.k);
        let rules = Rules::of(policy);
        let live: Vec<&Candidate> =
            candidates.iter().filter(|node| node.live && node.free_bytes >= FREE_BYTES_MIN).collect();
        self.meet(candidates);
        let shards = blocks + policy.m;
        let picked = self.pick(&live, rules, blocks, shards);
        // A short stripe uses few nodes, but the packer must later find n domains to complete it in, so the
        // network must carry the whole code, and w of it must be live, before anything is taken in.
        let reach = if picked.len() >= policy.n() { picked.len() } else { self.reach(&live, rules, policy) };
        if reach < policy.n() {
            let all: Vec<&Candidate> = candidates.iter().collect();
            let known = self.reach(&all, rules, policy);
            if known < policy.n() {
                return Err(error::lacks(candidates, policy, rules, known));
            }
            if reach < policy.w {
                return Err(PlacementError::Down { policy: policy.name, live: reach, needed: policy.w });
            }
        }
        self.charge(&picked, &live, blocks);
        let mut slots = picked.into_iter().map(Some).chain(std::iter::repeat(None));
        let data = slots.by_ref().take(blocks).collect();
        let parity = slots.take(policy.m).collect();
        Ok(Plan { data, parity, quorum: policy.w.saturating_sub(policy.k - blocks).max(1) })
    }

    /// A live node that can take a shard beside `taken` without breaking a rule: for a node that failed
    /// during the write, or a shard that waits. `refused` are not asked again.
    pub fn replacement(
        &mut self,
        candidates: &[Candidate],
        policy: &Policy,
        taken: &[NodeId],
        refused: &[NodeId],
    ) -> Option<NodeId> {
        self.meet(candidates);
        let held: Vec<&Candidate> = candidates.iter().filter(|node| taken.contains(&node.id)).collect();
        let mut free: Vec<&Candidate> = candidates
            .iter()
            .filter(|node| node.live && node.free_bytes >= FREE_BYTES_MIN)
            .filter(|node| !taken.contains(&node.id) && !refused.contains(&node.id))
            .collect();
        free.sort_by(|a, b| self.turn(a.id).all.total_cmp(&self.turn(b.id).all));
        let mut picker = Picker::new(Rules::of(policy));
        if !held.iter().all(|node| picker.take(node)) {
            return None;
        }
        let found = free.iter().find(|node| picker.take(node)).map(|node| node.id)?;
        self.charge(&[found], &free, 0);
        Some(found)
    }

    /// How many domains `nodes` give for a stripe, up to n.
    fn reach(&self, nodes: &[&Candidate], rules: Rules, policy: &Policy) -> usize {
        self.pick(nodes, rules, policy.k, policy.n()).len()
    }

    /// Up to `shards` nodes that keep the rules, the first `blocks` of them by their turn for data.
    ///
    /// First come, first served can paint itself into a corner when operators and networks overlap, so
    /// what falls short is tried again in other orders (scarce domains first, then shuffled).
    fn pick(&self, nodes: &[&Candidate], rules: Rules, blocks: usize, shards: usize) -> Vec<NodeId> {
        let mut for_data = nodes.to_vec();
        for_data.sort_by(|a, b| self.turn(a.id).data.total_cmp(&self.turn(b.id).data).then(a.id.cmp(&b.id)));
        let mut for_parity = nodes.to_vec();
        for_parity.sort_by(|a, b| self.turn(a.id).all.total_cmp(&self.turn(b.id).all).then(a.id.cmp(&b.id)));
        let mut picker = Picker::new(rules);
        picker.fill(&for_data, blocks);
        picker.fill(&for_parity, shards);
        let picked = picker.into_nodes();
        if picked.len() >= shards || rules == Rules::NODE {
            return picked;
        }
        pick::search(&for_data, rules, shards, self.seed, picked)
    }

    fn turn(&self, id: NodeId) -> Turn {
        self.turns.get(&id).copied().unwrap_or_default()
    }

    /// Makes the acquaintance of new nodes and forgets those that are gone. A newcomer starts where the
    /// least used node is, so that it gets its share and not everything.
    fn meet(&mut self, candidates: &[Candidate]) {
        if candidates.len() == self.turns.len()
            && candidates.iter().all(|node| self.turns.contains_key(&node.id))
        {
            return;
        }
        let least = |of: fn(&Turn) -> f64| self.turns.values().map(of).min_by(f64::total_cmp).unwrap_or(0.0);
        let floor = Turn { data: least(|turn| turn.data), all: least(|turn| turn.all) };
        let turns = candidates
            .iter()
            .map(|node| {
                let turn = self.turns.get(&node.id).copied().unwrap_or_else(|| {
                    // A little apart by the seed, so that gateways do not march in step.
                    let apart = pick::unit_interval(self.seed, node.id, 0) * 1e-6;
                    Turn { data: floor.data + apart, all: floor.all + apart }
                });
                (node.id, turn)
            })
            .collect();
        self.turns = turns;
    }

    /// Charges the chosen nodes for one shard each, the first `blocks` of them for data.
    fn charge(&mut self, picked: &[NodeId], nodes: &[&Candidate], blocks: usize) {
        let most = nodes.iter().map(|node| node.free_bytes).max().unwrap_or(1).max(1);
        for (slot, id) in picked.iter().enumerate() {
            let free = nodes.iter().find(|node| node.id == *id).map_or(most, |node| node.free_bytes);
            #[allow(clippy::cast_precision_loss, reason = "weights need no more than 53 bits")]
            let weight = (free as f64 / most as f64).max(WEIGHT_MIN);
            let turn = self.turns.entry(*id).or_default();
            turn.all += 1.0 / weight;
            if slot < blocks {
                turn.data += 1.0 / weight;
            }
        }
    }
}

/// Whether these nodes, all different, may hold shards of one stripe together.
pub fn may_share_a_stripe<'a>(nodes: impl IntoIterator<Item = &'a Candidate>, policy: &Policy) -> bool {
    let mut picker = Picker::new(Rules::of(policy));
    nodes.into_iter().all(|node| picker.take(node))
}

#[cfg(test)]
mod tests;
