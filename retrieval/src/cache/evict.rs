//! Which block to give up next. Pure: no bytes, no clock, no I/O.
//!
//! Blocks with a planned use go farthest use first, after all blocks without one. Those without go by SIEVE: a
//! hand walks from the oldest to the newest, spares what was used since it last came by, and takes the first
//! that was not. One pass over a large object therefore does not empty the cache of what is used again and
//! again, and a data set read in a loop keeps a part of itself instead of nothing, as it would by age.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use holdfast_protocol::Digest;

use super::order::EpochOrder;

/// The blocks of one cache, and their claim to stay.
#[derive(Debug, Default)]
pub(crate) struct Evictor {
    blocks: HashMap<Digest, Standing>,
    /// Blocks without a planned use, by when they came.
    sieve: BTreeMap<u64, Digest>,
    /// Blocks with one, by when it is.
    planned: BTreeSet<(u64, Digest)>,
    arrivals: u64,
    hand: u64,
}

#[derive(Clone, Copy, Debug)]
struct Standing {
    arrival: u64,
    used: bool,
    next_use: Option<u64>,
}

impl Evictor {
    /// A block came; `next_use` is when it is wanted, if that is known.
    pub(crate) fn insert(&mut self, digest: Digest, next_use: Option<u64>) {
        self.remove(&digest);
        let arrival = self.arrivals;
        self.arrivals += 1;
        self.blocks.insert(digest, Standing { arrival, used: false, next_use });
        match next_use {
            Some(at) => {
                self.planned.insert((at, digest));
            }
            None => {
                self.sieve.insert(arrival, digest);
            }
        }
    }

    /// A block was used, and is wanted next at `next_use`.
    pub(crate) fn used(&mut self, digest: &Digest, next_use: Option<u64>) {
        if let Some(standing) = self.blocks.get_mut(digest) {
            standing.used = true;
        }
        self.plan(digest, next_use);
    }

    /// The block is now wanted next at `next_use`.
    fn plan(&mut self, digest: &Digest, next_use: Option<u64>) {
        let Some(standing) = self.blocks.get_mut(digest) else { return };
        if standing.next_use == next_use {
            return;
        }
        match standing.next_use {
            Some(at) => {
                self.planned.remove(&(at, *digest));
            }
            None => {
                self.sieve.remove(&standing.arrival);
            }
        }
        standing.next_use = next_use;
        match next_use {
            Some(at) => {
                self.planned.insert((at, *digest));
            }
            None => {
                self.sieve.insert(standing.arrival, *digest);
            }
        }
    }

    /// A new order is known: every block's next use is asked anew.
    pub(crate) fn replan(&mut self, order: &EpochOrder) {
        let all: Vec<Digest> = self.blocks.keys().copied().collect();
        for digest in all {
            self.plan(&digest, order.next_use(&digest));
        }
    }

    /// Forgets a block.
    pub(crate) fn remove(&mut self, digest: &Digest) {
        let Some(standing) = self.blocks.remove(digest) else { return };
        match standing.next_use {
            Some(at) => {
                self.planned.remove(&(at, *digest));
            }
            None => {
                self.sieve.remove(&standing.arrival);
            }
        }
    }

    /// The block to give up for one that is wanted next at `next_use`; `None` when that one deserves its place
    /// less than all that are here, or nothing is here.
    pub(crate) fn victim_for(&mut self, next_use: Option<u64>) -> Option<Digest> {
        if let Some(digest) = self.sieve_victim() {
            return Some(digest);
        }
        let (farthest, digest) = *self.planned.last()?;
        match next_use {
            Some(at) if at < farthest => Some(digest),
            _ => None,
        }
    }

    /// Walks at most one round and one step: the first round clears every mark it meets.
    fn sieve_victim(&mut self) -> Option<Digest> {
        for _ in 0..=self.sieve.len() {
            let (&arrival, &digest) =
                self.sieve.range(self.hand..).next().or_else(|| self.sieve.iter().next())?;
            self.hand = arrival + 1;
            match self.blocks.get_mut(&digest) {
                Some(standing) if standing.used => standing.used = false,
                _ => return Some(digest),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u64) -> Digest {
        Digest::of(&number.to_le_bytes())
    }

    /// A cache of `size` equal blocks that reads `trace`; returns hits.
    fn hits(size: usize, trace: &[u64], plan: bool) -> usize {
        let mut order = EpochOrder::new((if plan { trace } else { &[] }).iter().map(|at| digest(*at)));
        let mut evictor = Evictor::default();
        let mut hits = 0;
        for number in trace {
            let digest = digest(*number);
            let held = evictor.blocks.contains_key(&digest);
            order.used(&digest);
            let next_use = order.next_use(&digest);
            if held {
                hits += 1;
                evictor.used(&digest, next_use);
                continue;
            }
            if evictor.blocks.len() == size {
                match evictor.victim_for(next_use) {
                    Some(victim) => evictor.remove(&victim),
                    None => continue,
                }
            }
            evictor.insert(digest, next_use);
        }
        assert!(evictor.blocks.len() <= size);
        hits
    }

    #[test]
    fn a_known_order_gives_the_hits_that_no_cache_can_beat() {
        let epoch: Vec<u64> = (0..2000).collect();
        let shuffled: Vec<u64> = (0..2000).map(|at| at * 1187 % 2000).collect();
        let trace: Vec<u64> = epoch.iter().chain(&shuffled).copied().collect();
        // In each later epoch a cache of half the set can at best answer about half of it.
        assert!(hits(1000, &trace, true) >= 990, "{}", hits(1000, &trace, true));
    }

    #[test]
    fn a_loop_larger_than_the_cache_keeps_a_part_of_itself() {
        let trace: Vec<u64> = (0..10).flat_map(|_| 0..1000).collect();
        assert!(hits(500, &trace, false) > 1000, "{}", hits(500, &trace, false));
        let planned = hits(500, &trace, true);
        assert!(planned >= 9 * 480, "{planned}");
    }

    #[test]
    fn one_long_scan_does_not_push_out_what_is_used_again_and_again() {
        let mut trace = Vec::new();
        for scan in 0..20_000u64 {
            trace.push(1_000_000 + scan);
            trace.push(scan % 50);
        }
        assert!(hits(100, &trace, false) > 18_000, "{}", hits(100, &trace, false));
    }

    #[test]
    fn a_block_that_is_wanted_last_is_not_taken_in() {
        let mut evictor = Evictor::default();
        evictor.insert(digest(1), Some(10));
        evictor.insert(digest(2), Some(20));
        assert_eq!(evictor.victim_for(Some(30)), None);
        assert_eq!(evictor.victim_for(None), None);
        assert_eq!(evictor.victim_for(Some(15)), Some(digest(2)));
        evictor.insert(digest(3), None);
        assert_eq!(evictor.victim_for(Some(30)), Some(digest(3)));
    }
}
