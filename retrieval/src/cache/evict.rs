//! Which block to give up next. Pure: no bytes, no clock, no I/O.
//!
//! Blocks with a planned use go farthest use first, after all blocks without one. Among those without, one is
//! drawn at random, and spared a few times if it was used. One pass over a large object therefore does not
//! empty the cache of what is used again and again, and a data set read in a loop keeps a part of itself;
//! by age (and by any order that follows age, as a clock's) it would lose each block just before its turn.

use std::collections::{BTreeSet, HashMap};

use holdfast_protocol::Digest;

use super::order::EpochOrder;

/// How often a block that was used is spared. With fewer, what is read once in a cache's length falls to
/// scans of the same length.
const SPARED: u8 = 3;

/// The blocks of one cache, and their claim to stay.
#[derive(Debug)]
pub(crate) struct Evictor {
    blocks: HashMap<Digest, Standing>,
    /// Blocks without a planned use, in no order.
    unplanned: Vec<Digest>,
    /// Blocks with one, by when it is.
    planned: BTreeSet<(u64, Digest)>,
    dice: u64,
}

impl Default for Evictor {
    fn default() -> Self {
        Self { blocks: HashMap::new(), unplanned: Vec::new(), planned: BTreeSet::new(), dice: 0x9e37_79b9 }
    }
}

#[derive(Clone, Copy, Debug)]
struct Standing {
    spared: u8,
    next_use: Option<u64>,
    /// Its index among the unplanned, while it is one.
    at: usize,
}

impl Evictor {
    /// A block came; `next_use` is when it is wanted, if that is known.
    pub(crate) fn insert(&mut self, digest: Digest, next_use: Option<u64>) {
        self.remove(&digest);
        self.blocks.insert(digest, Standing { spared: 0, next_use, at: 0 });
        self.enlist(digest, next_use);
    }

    /// A block was used, and is wanted next at `next_use`.
    pub(crate) fn used(&mut self, digest: &Digest, next_use: Option<u64>) {
        if let Some(standing) = self.blocks.get_mut(digest) {
            standing.spared = SPARED;
        }
        self.plan(digest, next_use);
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
        if let Some(standing) = self.blocks.remove(digest) {
            self.delist(digest, standing);
        }
    }

    /// The block to give up for one that is wanted next at `next_use`; `None` when that one deserves its place
    /// less than all that are here, or nothing is here.
    pub(crate) fn victim_for(&mut self, next_use: Option<u64>) -> Option<Digest> {
        if let Some(digest) = self.draw() {
            return Some(digest);
        }
        let (farthest, digest) = *self.planned.last()?;
        match next_use {
            Some(at) if at < farthest => Some(digest),
            _ => None,
        }
    }

    /// The block is now wanted next at `next_use`.
    fn plan(&mut self, digest: &Digest, next_use: Option<u64>) {
        let Some(&standing) = self.blocks.get(digest) else { return };
        if standing.next_use != next_use {
            self.delist(digest, standing);
            self.enlist(*digest, next_use);
        }
    }

    fn enlist(&mut self, digest: Digest, next_use: Option<u64>) {
        let at = self.unplanned.len();
        match next_use {
            Some(at) => {
                self.planned.insert((at, digest));
            }
            None => self.unplanned.push(digest),
        }
        if let Some(standing) = self.blocks.get_mut(&digest) {
            (standing.next_use, standing.at) = (next_use, at);
        }
    }

    fn delist(&mut self, digest: &Digest, standing: Standing) {
        if let Some(at) = standing.next_use {
            self.planned.remove(&(at, *digest));
            return;
        }
        self.unplanned.swap_remove(standing.at);
        let moved = self.unplanned.get(standing.at);
        if let Some(standing_of_moved) = moved.and_then(|moved| self.blocks.get_mut(moved)) {
            standing_of_moved.at = standing.at;
        }
    }

    /// One of the unplanned. Each draw of a block that is spared takes from its sparing, so this ends.
    fn draw(&mut self) -> Option<Digest> {
        if self.unplanned.is_empty() {
            return None;
        }
        loop {
            self.dice ^= self.dice << 13;
            self.dice ^= self.dice >> 7;
            self.dice ^= self.dice << 17;
            let at = usize::try_from(self.dice % self.unplanned.len() as u64).unwrap_or(0);
            let digest = self.unplanned[at];
            match self.blocks.get_mut(&digest) {
                Some(standing) if standing.spared > 0 => standing.spared -= 1,
                _ => return Some(digest),
            }
        }
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
