//! Which shards of a stripe count as missing, and which stripe is repaired first. No I/O.
//!
//! Most nodes that fall silent come back, and repairing what would have come back moves k shards for
//! nothing. So a silent node is given time, a day by default; but less when the stripe could not stand further
//! losses meanwhile: with less than half of its spare shards left an hour, with none left five minutes.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use holdfast_protocol::NodeId;
use holdfast_protocol::record::{Stripe, StripeId};
use holdfast_protocol::time::UnixMs;

use super::Lost;
use super::plan::Damage;
use crate::pool::{NodePool, NodeState};

/// The part of its patience that a stripe has with less than half of its spare shards left, and with none.
const THIN_PART: u64 = 24;
const BARE_PART: u64 = 288;
/// Losses a year of a node of which nothing is known: one in two years, as consumer disks and owners have it.
pub const LOSSES_PER_YEAR: f64 = 0.5;

/// How long silent nodes are waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patience {
    /// With at least half of the spare shards left.
    pub silent_ms: u64,
    /// Since when nodes are silent, where that is known from before this process started.
    pub silent_since: Arc<HashMap<NodeId, UnixMs>>,
}

impl Patience {
    /// This long, from what the pool knows alone.
    pub fn of(silent_ms: u64) -> Self {
        Self { silent_ms, silent_since: Arc::default() }
    }

    /// How long a stripe with this many spare shards on nodes that answer, of `m`, waits for the others.
    pub fn for_margin(&self, spare: i64, m: usize) -> u64 {
        let half = i64::try_from(m).unwrap_or(i64::MAX);
        match spare {
            spare if spare.saturating_mul(2) >= half => self.silent_ms,
            1.. => self.silent_ms / THIN_PART,
            _ => self.silent_ms / BARE_PART,
        }
    }
}

/// Judges nodes by their states at one moment.
pub(crate) struct Judge {
    lost: Lost,
    now_ms: UnixMs,
    /// Since when each known node is silent; `None` for those that are not.
    silent: HashMap<NodeId, Option<UnixMs>>,
}

impl Judge {
    pub(crate) fn of(pool: &NodePool, lost: &Lost) -> Self {
        let since_before = |id: &NodeId, since_ms: UnixMs| match lost {
            Lost::Patient(patience) => {
                patience.silent_since.get(id).map_or(since_ms, |before| since_ms.min(*before))
            }
            _ => since_ms,
        };
        let silent = pool
            .nodes()
            .into_iter()
            .map(|view| match view.state {
                NodeState::Down { since_ms } => (view.known.id, Some(since_before(&view.known.id, since_ms))),
                NodeState::Up | NodeState::Unknown => (view.known.id, None),
            })
            .collect();
        Self { lost: lost.clone(), now_ms: pool.clock().now_ms(), silent }
    }

    /// What the stripe misses.
    pub(crate) fn damage(&self, stripe: &Stripe) -> Damage {
        match &self.lost {
            Lost::Nobody => Damage::of(stripe, |_| false),
            Lost::Down { for_ms } => Damage::of(stripe, |node| self.silent_for(node, *for_ms)),
            Lost::Listed(listed) => {
                Damage::of(stripe, |node| listed.contains(&node) || self.silent_for(node, 0))
            }
            Lost::Patient(patience) => {
                let answering = Damage::of(stripe, |node| self.silent_for(node, 0));
                let wait_ms = patience.for_margin(answering.spare(stripe), usize::from(stripe.m));
                Damage::of(stripe, |node| self.silent_for(node, wait_ms))
            }
        }
    }

    /// Whether a node has been silent for so long; one that is not known any more always was.
    fn silent_for(&self, node: NodeId, ms: u64) -> bool {
        match self.silent.get(&node) {
            None => true,
            Some(None) => false,
            Some(Some(since_ms)) => self.now_ms.saturating_sub(*since_ms) >= ms,
        }
    }
}

/// How often each node is lost, in losses a year: what ranks stripes of one margin.
#[derive(Clone, Debug, Default)]
pub struct Urgency {
    /// By node; [`LOSSES_PER_YEAR`] for all others.
    pub losses_per_year: Arc<HashMap<NodeId, f64>>,
}

impl Urgency {
    /// The stripe's remaining margin times the years that its remaining nodes last: about when it would be
    /// lost. Stripes that cannot be read now come last: nothing can be done for them.
    pub(crate) fn rank(&self, stripe: &Stripe, damage: &Damage) -> f64 {
        let spare = damage.spare(stripe);
        if spare < 0 {
            return f64::MAX;
        }
        let losses: f64 = damage
            .holding
            .iter()
            .map(|node| self.losses_per_year.get(node).copied().unwrap_or(LOSSES_PER_YEAR))
            .sum();
        // Margins are below 64.
        let margin = f64::from(u8::try_from(spare).unwrap_or(u8::MAX)) + 1.0;
        margin / losses.max(1e-6)
    }
}

/// The most urgent stripes of a survey, as many as it may hold.
pub(crate) struct Worklist {
    most: usize,
    /// The least urgent on top, so that it is the one to go when there are too many.
    stripes: BinaryHeap<Ranked>,
}

impl Worklist {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, stripes: BinaryHeap::new() }
    }

    pub(crate) fn add(&mut self, rank: f64, id: StripeId) {
        self.stripes.push(Ranked { rank, id });
        if self.stripes.len() > self.most {
            self.stripes.pop();
        }
    }

    /// The most urgent first.
    pub(crate) fn into_order(self) -> Vec<StripeId> {
        self.stripes.into_sorted_vec().into_iter().map(|ranked| ranked.id).collect()
    }
}

struct Ranked {
    rank: f64,
    id: StripeId,
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank.total_cmp(&other.rank).then(self.id.cmp(&other.id))
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Ranked {}

#[cfg(test)]
mod tests {
    use holdfast_protocol::record::{PolicyName, Record, Shard};
    use holdfast_protocol::{BlockLen, Digest, PublicKey};

    use super::*;

    fn node(seed: u8) -> NodeId {
        NodeId(PublicKey([seed; 32]))
    }

    fn stripe(id: u8, data: usize) -> Stripe {
        let shard = |slot: usize| {
            let seed = u8::try_from(slot).unwrap();
            (slot < data || slot >= 4).then(|| Shard {
                digest: Digest([seed; 32]),
                len: BlockLen::MAX,
                node: Some(node(seed)),
            })
        };
        Stripe {
            v: Stripe::VERSION,
            id: StripeId([id; 16]),
            version: 1,
            policy: PolicyName::Local,
            k: 4,
            m: 2,
            block_len: BlockLen::MAX,
            shards: (0..6).map(shard).collect(),
        }
    }

    fn judge(lost: Lost, silent: &[(u8, UnixMs)]) -> Judge {
        let since = |seed: u8| silent.iter().find(|(node, _)| *node == seed).map(|(_, since)| *since);
        let silent = (0..6).map(|seed| (node(seed), since(seed))).collect();
        Judge { lost, now_ms: 100_000_000, silent }
    }

    const DAY: u64 = 86_400_000;

    fn missing(silent_ms: &[(u8, u64)], data: usize) -> Vec<usize> {
        let silent: Vec<_> = silent_ms.iter().map(|(node, ms)| (*node, 100_000_000 - ms)).collect();
        judge(Lost::Patient(Patience::of(DAY)), &silent).damage(&stripe(1, data)).missing
    }

    #[test]
    fn a_silent_node_has_a_day_while_half_of_the_margin_is_left() {
        assert_eq!(missing(&[(1, DAY - 1)], 4), Vec::<usize>::new());
        assert_eq!(missing(&[(1, DAY)], 4), [1]);
    }

    #[test]
    fn with_no_margin_left_silent_nodes_have_five_minutes() {
        let five = DAY / 288;
        assert_eq!(missing(&[(1, five - 1), (4, 60_000)], 4), Vec::<usize>::new());
        assert_eq!(missing(&[(1, five), (4, 60_000)], 4), [1], "the one that has been gone long enough");
        assert_eq!(missing(&[(1, DAY), (4, five)], 4), [1, 4]);
    }

    #[test]
    fn wide_codes_have_a_step_between() {
        let patience = Patience::of(DAY);
        assert_eq!(patience.for_margin(6, 12), DAY);
        assert_eq!(patience.for_margin(5, 12), DAY / 24);
        assert_eq!(patience.for_margin(1, 12), DAY / 24);
        assert_eq!(patience.for_margin(0, 12), DAY / 288);
        assert_eq!(patience.for_margin(-3, 12), DAY / 288);
    }

    #[test]
    fn a_node_that_is_no_longer_known_is_lost_at_once() {
        let mut judge = judge(Lost::Patient(Patience::of(DAY)), &[]);
        judge.silent.remove(&node(5));
        assert_eq!(judge.damage(&stripe(1, 4)).missing, [5]);
    }

    #[test]
    fn virtual_zeros_count_as_at_hand() {
        // One block and two parity shards: with one node gone, one of two spare shards is left.
        assert_eq!(missing(&[(4, DAY - 1)], 1), Vec::<usize>::new());
        let answering = judge(Lost::Down { for_ms: 0 }, &[(4, 0)]).damage(&stripe(1, 1));
        assert_eq!(answering.spare(&stripe(1, 1)), 1);
    }

    #[test]
    fn the_thinnest_margin_comes_first_then_the_flightiest_nodes_and_the_hopeless_last() {
        let urgency = |of: &[(u8, f64)]| Urgency {
            losses_per_year: Arc::new(of.iter().map(|(seed, losses)| (node(*seed), *losses)).collect()),
        };
        let calm = urgency(&[]);
        let of = |lost: &[u8]| Damage::of(&stripe(1, 4), |id| lost.iter().any(|seed| id == node(*seed)));
        let rank = |urgency: &Urgency, lost: &[u8]| urgency.rank(&stripe(1, 4), &of(lost));
        assert!(rank(&calm, &[0, 1]) < rank(&calm, &[0]));
        assert!(rank(&urgency(&[(5, 12.0)]), &[0]) < rank(&calm, &[0]));
        assert!(rank(&calm, &[0, 1, 2]) > rank(&calm, &[0]));
        let mut list = Worklist::new(2);
        for (id, lost) in [(1, &[0][..]), (2, &[0, 1]), (3, &[0, 1, 2])] {
            list.add(rank(&calm, lost), StripeId([id; 16]));
        }
        assert_eq!(list.into_order(), [StripeId([2; 16]), StripeId([1; 16])]);
    }
}
