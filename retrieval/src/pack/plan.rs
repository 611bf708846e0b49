//! Which stripes are merged with which. No I/O: rows and nodes in, merges out.
//!
//! A merge must not move data, so its blocks must lie on nodes that may share a stripe already; it must not
//! make parity longer than it needs to be, so blocks of like lengths come together; and parity should not be
//! written twice for the same blocks, so a stripe waits a while for partners that fill it.

use std::collections::{BTreeMap, HashMap, HashSet};

use holdfast_protocol::record::{Policy, Shard, Stripe, StripeId};
use holdfast_protocol::time::UnixMs;
use holdfast_protocol::{Digest, NodeId};

use super::PackCandidate;
use crate::placement::{Candidate, may_share_a_stripe};

/// Partners looked at for one stripe. They are sorted by length, so the best ones are near.
const LOOK_AHEAD: usize = 512;
/// Blocks of which one is up to this many times as long as the other are of like length.
const LIKE: u32 = 4;

/// Which stripes are merged when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackRules {
    /// Stripes queued for less than this are left alone: PUTs that share them may still be committing.
    pub settle_ms: u64,
    /// A stripe that waited this long is merged even if the result is not full, and with blocks of any length.
    pub patience_ms: u64,
}

impl Default for PackRules {
    /// Full merges after half a minute, all others after five: with rounds of half a minute, every stripe
    /// that can be merged is merged within ten minutes even if one merge fails.
    fn default() -> Self {
        Self { settle_ms: 30_000, patience_ms: 300_000 }
    }
}

/// A merge: one stripe's live blocks, or those of several, to come under one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merge {
    /// Keeps its id and the slots of its blocks. Only a stripe without dead blocks can.
    pub(super) survivor: Option<PackCandidate>,
    /// Their live blocks pass into the merged stripe; their ids end.
    pub(super) absorbed: Vec<PackCandidate>,
}

impl Merge {
    /// The stripes that go into it, as they were read.
    pub fn sources(&self) -> impl Iterator<Item = &Stripe> {
        self.survivor.iter().chain(&self.absorbed).map(|candidate| &candidate.stripe)
    }

    /// The id of the survivor, or of the first absorbed when there is none: for people.
    pub(super) fn packed_id(&self) -> StripeId {
        self.sources().next().map_or(StripeId([0; 16]), |stripe| stripe.id)
    }

    /// The data slots of the merged stripe: the survivor's as they are, the others' live blocks in the gaps.
    pub(super) fn data(&self) -> Vec<Option<Shard>> {
        let k = self.sources().next().map_or(0, |stripe| usize::from(stripe.k));
        let mut slots = match &self.survivor {
            Some(survivor) => survivor.stripe.shards[..k].to_vec(),
            None => vec![None; k],
        };
        let mut passing = self.absorbed.iter().flat_map(PackCandidate::living);
        for slot in slots.iter_mut().filter(|slot| slot.is_none()) {
            *slot = passing.next();
        }
        slots
    }

    /// Live blocks of absorbed stripes.
    pub(super) fn passing(&self) -> impl Iterator<Item = Shard> {
        self.absorbed.iter().flat_map(PackCandidate::living)
    }

    /// Bytes of blocks and parity in memory while it is carried out.
    pub(super) fn bytes_held(&self) -> usize {
        let data = self.data();
        let longest = data.iter().flatten().map(|shard| shard.len.as_usize()).max().unwrap_or(0);
        let m = self.sources().next().map_or(0, |stripe| usize::from(stripe.m));
        data.iter().flatten().map(|shard| shard.len.as_usize()).sum::<usize>() + m * longest
    }
}

impl PackCandidate {
    /// Its live data shards, in slot order.
    pub fn living(&self) -> impl Iterator<Item = Shard> {
        self.stripe.shards.iter().zip(&self.live).filter(|(_, live)| **live).filter_map(|(shard, _)| *shard)
    }

    fn live_count(&self) -> usize {
        self.living().count()
    }

    fn has_dead(&self) -> bool {
        self.data().count() > self.live_count()
    }

    fn data(&self) -> impl Iterator<Item = Shard> {
        self.stripe.shards.iter().take(usize::from(self.stripe.k)).filter_map(|shard| *shard)
    }

    /// More dead bytes than living ones.
    pub fn is_mostly_dead(&self) -> bool {
        let bytes = |shards: &mut dyn Iterator<Item = Shard>| -> u64 {
            shards.map(|shard| u64::from(shard.len.bytes())).sum()
        };
        let living = bytes(&mut self.living());
        living * 2 < bytes(&mut self.data())
    }

    /// Whether the packer has anything to do with it.
    pub fn is_short(&self) -> bool {
        self.stripe.k > 1 && self.data().count() < usize::from(self.stripe.k)
    }

    /// The longest living block.
    fn longest(&self) -> u32 {
        self.living().map(|shard| shard.len.bytes()).max().unwrap_or(0)
    }

    fn waited(&self, now_ms: UnixMs, ms: u64) -> bool {
        now_ms.saturating_sub(self.since_ms) >= ms
    }
}

/// The nodes by id, and which of them can be read from.
struct Nodes<'a> {
    by_id: HashMap<NodeId, &'a Candidate>,
}

impl Nodes<'_> {
    /// The nodes of these shards, if every one is placed on a node that answers.
    fn of(&self, shards: impl Iterator<Item = Shard>) -> Option<Vec<&Candidate>> {
        shards.map(|shard| self.by_id.get(&shard.node?).copied().filter(|node| node.live)).collect()
    }
}

/// The merges to carry out now.
pub fn plan(
    candidates: &[PackCandidate],
    nodes: &[Candidate],
    now_ms: UnixMs,
    rules: &PackRules,
) -> Vec<Merge> {
    let nodes = Nodes { by_id: nodes.iter().map(|node| (node.id, node)).collect() };
    let mut groups: BTreeMap<(&'static str, u8, u8), Vec<&PackCandidate>> = BTreeMap::new();
    for candidate in candidates {
        let usable = candidate.waited(now_ms, rules.settle_ms)
            && (candidate.is_short() || candidate.is_mostly_dead())
            && candidate.live_count() > 0
            && nodes.of(candidate.living()).is_some();
        if usable {
            let Stripe { policy, k, m, .. } = candidate.stripe;
            groups.entry((name(policy), k, m)).or_default().push(candidate);
        }
    }
    let mut merges = Vec::new();
    for group in groups.values_mut() {
        // Longest first, so that neighbours are alike; the oldest first among equals.
        group.sort_by_key(|candidate| {
            (std::cmp::Reverse(candidate.longest()), candidate.since_ms, candidate.stripe.id)
        });
        merges.extend(plan_alike(group, &nodes, now_ms, rules));
    }
    merges
}

fn name(policy: holdfast_protocol::record::PolicyName) -> &'static str {
    use holdfast_protocol::record::PolicyName;
    match policy {
        PolicyName::Local => "local",
        PolicyName::Small => "small",
        PolicyName::Standard => "standard",
        PolicyName::Journal => "journal",
    }
}

/// Merges among stripes of one policy.
fn plan_alike(group: &[&PackCandidate], nodes: &Nodes<'_>, now_ms: UnixMs, rules: &PackRules) -> Vec<Merge> {
    let mut used = vec![false; group.len()];
    let mut merges = Vec::new();
    for first in 0..group.len() {
        if used[first] {
            continue;
        }
        let mut gathering = Gathering::new(group[first], nodes);
        let mut members = vec![first];
        for next in (first + 1..group.len()).take(LOOK_AHEAD) {
            if gathering.is_full() {
                break;
            }
            let patient = |candidate: &PackCandidate| candidate.waited(now_ms, rules.patience_ms);
            let alike = group[first].longest() <= group[next].longest().saturating_mul(LIKE)
                || (patient(group[first]) && patient(group[next]));
            if !used[next] && alike && gathering.add(group[next]) {
                members.push(next);
            }
        }
        let oldest_waited = members.iter().any(|at| group[*at].waited(now_ms, rules.patience_ms));
        let worth_it = match members.len() {
            1 => group[first].is_mostly_dead() && oldest_waited,
            _ => gathering.is_full() || oldest_waited,
        };
        if worth_it {
            members.iter().for_each(|at| used[*at] = true);
            merges.push(gathering.merge());
        }
    }
    merges
}

/// Stripes that may become one.
struct Gathering<'a> {
    nodes: &'a Nodes<'a>,
    policy: Policy,
    members: Vec<&'a PackCandidate>,
    blocks: usize,
    digests: HashSet<Digest>,
    holders: Vec<&'a Candidate>,
}

impl<'a> Gathering<'a> {
    fn new(first: &'a PackCandidate, nodes: &'a Nodes<'a>) -> Self {
        let policy = crate::repair::policy_of(&first.stripe);
        let holders = nodes.of(first.living()).unwrap_or_default();
        let digests: HashSet<Digest> = first.living().map(|shard| shard.digest).collect();
        Self { nodes, policy, members: vec![first], blocks: first.live_count(), digests, holders }
    }

    fn is_full(&self) -> bool {
        self.blocks >= self.policy.k
    }

    /// Adds a stripe if its blocks fit beside those that are there.
    fn add(&mut self, candidate: &'a PackCandidate) -> bool {
        let count = candidate.live_count();
        if self.blocks + count > self.policy.k {
            return false;
        }
        if candidate.living().any(|shard| self.digests.contains(&shard.digest)) {
            return false;
        }
        let Some(more) = self.nodes.of(candidate.living()) else { return false };
        let before = self.holders.len();
        self.holders.extend(more);
        if !may_share_a_stripe(self.holders.iter().copied(), &self.policy) {
            self.holders.truncate(before);
            return false;
        }
        self.digests.extend(candidate.living().map(|shard| shard.digest));
        self.blocks += count;
        self.members.push(candidate);
        true
    }

    /// The member with the most blocks survives, if it has no dead ones.
    fn merge(self) -> Merge {
        let survivor = self
            .members
            .iter()
            .enumerate()
            .filter(|(_, candidate)| !candidate.has_dead())
            .max_by_key(|(at, candidate)| (candidate.live_count(), std::cmp::Reverse(*at)))
            .map(|(at, _)| at);
        let mut members: Vec<PackCandidate> = self.members.into_iter().cloned().collect();
        // Alone, a stripe is rewritten under a new id.
        let survivor = survivor.filter(|_| members.len() > 1).map(|at| members.remove(at));
        Merge { survivor, absorbed: members }
    }
}
