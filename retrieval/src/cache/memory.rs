//! The tier in memory: whole blocks within a number of bytes.

use std::collections::HashMap;

use bytes::Bytes;
use holdfast_protocol::Digest;
use parking_lot::Mutex;

use super::Admission;
use super::evict::Evictor;
use super::order::EpochOrder;

/// Sightings remembered under [`Admission::SecondSighting`]: 128 KiB, and 16 GiB of blocks seen once.
const SIGHTINGS: usize = 1 << 14;

/// Blocks in memory.
pub(crate) struct MemoryTier {
    state: Mutex<State>,
    max_bytes: usize,
    admission: Admission,
}

struct State {
    blocks: HashMap<Digest, Bytes>,
    bytes: usize,
    evictor: Evictor,
    /// The first bytes of digests that came by, each at the place that it chooses itself.
    seen: Box<[u64]>,
}

impl MemoryTier {
    /// An empty tier of at most `max_bytes`.
    pub(crate) fn new(max_bytes: usize, admission: Admission) -> Self {
        let seen = if admission == Admission::SecondSighting { SIGHTINGS } else { 0 };
        let state = State {
            blocks: HashMap::new(),
            bytes: 0,
            evictor: Evictor::default(),
            seen: vec![0; seen].into(),
        };
        Self { state: Mutex::new(state), max_bytes, admission }
    }

    /// The whole block, which is wanted next at `next_use`.
    pub(crate) fn get(&self, digest: &Digest, next_use: Option<u64>) -> Option<Bytes> {
        let mut state = self.state.lock();
        let bytes = state.blocks.get(digest)?.clone();
        state.evictor.used(digest, next_use);
        Some(bytes)
    }

    /// Whether the block is here.
    pub(crate) fn holds(&self, digest: &Digest) -> bool {
        self.state.lock().blocks.contains_key(digest)
    }

    /// Keeps a block if it deserves its place. Returns whether it is here now.
    pub(crate) fn put(&self, digest: Digest, bytes: &Bytes, next_use: Option<u64>) -> bool {
        if bytes.len() > self.max_bytes {
            return false;
        }
        let mut state = self.state.lock();
        if state.blocks.contains_key(&digest) {
            return true;
        }
        if self.admission == Admission::SecondSighting && next_use.is_none() && !state.seen_before(&digest) {
            return false;
        }
        while state.bytes + bytes.len() > self.max_bytes {
            let Some(victim) = state.evictor.victim_for(next_use) else { return false };
            state.remove(&victim);
        }
        state.bytes += bytes.len();
        state.blocks.insert(digest, bytes.clone());
        state.evictor.insert(digest, next_use);
        true
    }

    /// A new order is known.
    pub(crate) fn replan(&self, order: &EpochOrder) {
        self.state.lock().evictor.replan(order);
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.state.lock().bytes
    }
}

impl State {
    fn remove(&mut self, digest: &Digest) {
        self.evictor.remove(digest);
        if let Some(bytes) = self.blocks.remove(digest) {
            self.bytes -= bytes.len();
        }
    }

    /// Whether the block came by lately; from now on it has.
    fn seen_before(&mut self, digest: &Digest) -> bool {
        let [first, second] = [0, 8].map(|at| {
            let mut word = [0u8; 8];
            word.copy_from_slice(&digest.as_bytes()[at..at + 8]);
            u64::from_le_bytes(word)
        });
        let place = usize::try_from(first % self.seen.len() as u64).unwrap_or(0);
        std::mem::replace(&mut self.seen[place], second) == second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(byte: u8, len: usize) -> (Digest, Bytes) {
        let bytes = Bytes::from(vec![byte; len]);
        (Digest::of(&bytes), bytes)
    }

    #[test]
    fn the_tier_stays_within_its_bytes() {
        let tier = MemoryTier::new(100, Admission::All);
        for byte in 0..50 {
            let (digest, bytes) = block(byte, 30);
            assert!(tier.put(digest, &bytes, None));
            assert!(tier.bytes() <= 100);
            assert_eq!(tier.get(&digest, None), Some(bytes));
        }
        let (digest, bytes) = block(99, 101);
        assert!(!tier.put(digest, &bytes, None));
    }

    #[test]
    fn what_comes_by_once_is_not_kept_where_that_is_asked() {
        let tier = MemoryTier::new(100, Admission::SecondSighting);
        let (digest, bytes) = block(1, 30);
        assert!(!tier.put(digest, &bytes, None));
        assert!(tier.put(digest, &bytes, None));
        let (planned, bytes) = block(2, 30);
        assert!(tier.put(planned, &bytes, Some(7)), "a planned use is reason enough");
    }
}
