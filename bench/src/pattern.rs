//! The bytes of every object the benchmark writes: pseudo-random, known without being kept.
//!
//! One pool of random bytes, of prime length, is repeated for ever; an object starts at a place of its
//! own in it. Sending a body copies nothing and checking one is a memcmp, so the client stays cheap. The
//! prime length makes every block of every object different: nothing deduplicates, and a block served in
//! another's place is noticed.

use anyhow::{Result, bail};
use bytes::Bytes;

/// The largest prime below 2^24.
const POOL_LEN: usize = 16_777_213;

/// Bytes of a body frame: what servers of this kind write best.
pub(crate) const FRAME_LEN: usize = 256 * 1024;

/// SplitMix64: a generator whose whole state is one word, good enough for data and for dice.
#[derive(Clone, Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// The next 64 random bits.
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which must not be 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }
}

/// The pool.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    pool: Bytes,
}

impl Pattern {
    /// Fills the pool from `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let mut pool = Vec::with_capacity(POOL_LEN + 8);
        while pool.len() < POOL_LEN {
            pool.extend_from_slice(&dice.roll().to_le_bytes());
        }
        pool.truncate(POOL_LEN);
        Self { pool: Bytes::from(pool) }
    }

    /// The bytes `offset..offset + len` of object `key`, in frames that are slices of the pool.
    pub(crate) fn frames(&self, key: &str, offset: u64, len: u64) -> Frames {
        let position = self.position(key, offset);
        Frames { pool: self.pool.clone(), position, left: len }
    }

    /// Checks what was read of object `key`, starting at `offset`.
    pub(crate) fn check(&self, key: &str, offset: u64) -> Check {
        Check { pool: self.pool.clone(), position: self.position(key, offset), checked: 0, offset }
    }

    fn position(&self, key: &str, offset: u64) -> usize {
        let seed = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let len = self.pool.len() as u64;
        let position = (Dice(seed).below(len) + offset % len) % len;
        usize::try_from(position).unwrap_or_default()
    }
}

/// Frames of a body, without copies.
#[derive(Clone, Debug)]
pub(crate) struct Frames {
    pool: Bytes,
    position: usize,
    left: u64,
}

impl Iterator for Frames {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let len = left.min(FRAME_LEN).min(self.pool.len() - self.position);
        if len == 0 {
            return None;
        }
        let frame = self.pool.slice(self.position..self.position + len);
        self.position = (self.position + len) % self.pool.len();
        self.left -= len as u64;
        Some(frame)
    }
}

/// Compares what arrives with what must arrive.
#[derive(Debug)]
pub(crate) struct Check {
    pool: Bytes,
    position: usize,
    checked: u64,
    offset: u64,
}

impl Check {
    /// Compares the next bytes.
    pub(crate) fn next(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let len = bytes.len().min(self.pool.len() - self.position);
            let (now, rest) = bytes.split_at(len);
            if *now != self.pool[self.position..self.position + len] {
                bail!("wrong bytes within {len} bytes of byte {} of the object", self.offset + self.checked);
            }
            self.position = (self.position + len) % self.pool.len();
            self.checked += len as u64;
            bytes = rest;
        }
        Ok(())
    }

    /// How many bytes were right.
    pub(crate) const fn checked(&self) -> u64 {
        self.checked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_what_is_checked_from_any_offset() {
        let pattern = Pattern::new(1);
        let whole: Vec<u8> = pattern.frames("a", 0, 40_000_000).flatten().collect();
        assert_eq!(whole.len(), 40_000_000);
        for offset in [0usize, 1, 16_777_212, 16_777_213, 33_554_433] {
            let mut check = pattern.check("a", offset as u64);
            check.next(&whole[offset..]).unwrap();
            assert_eq!(check.checked(), (whole.len() - offset) as u64);
        }
    }

    #[test]
    fn a_wrong_byte_a_shifted_body_and_another_object_are_noticed() {
        let pattern = Pattern::new(1);
        let mut body: Vec<u8> = pattern.frames("a", 0, 100_000).flatten().collect();
        assert!(pattern.check("a", 1).next(&body).is_err());
        assert!(pattern.check("b", 0).next(&body).is_err());
        body[99_999] ^= 1;
        assert!(pattern.check("a", 0).next(&body).is_err());
    }
}
