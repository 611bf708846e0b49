//! Surprise audits: ordinary verified reads, shaped like what readers did a while ago, of blocks that nobody asked for.
//!
//! A node that wants to answer audits and nothing else must tell them apart. It sees, of each request, the key that
//! asks, how much, where in the block, and when. So nothing of an audit is made up: lengths and offsets are those
//! of reads that happened, requests follow each other as requests did, runs over whole stripes included, and part
//! of the sessions come from keys that were never seen before, under grants like any client's. What remains (which
//! *blocks* are popular) is said in the threat model.
//!
//! An audit does not repeat a session as it was: a node that keeps a list of what it served would know it again. Its
//! pauses come from one session of the past, its lengths and offsets from another of the same kind.
//!
//! Outcomes move a node's retrieval score, never its pay: [`RetrievalScore`].

use std::collections::VecDeque;
use std::time::Duration;

use holdfast_protocol::limits::BLOCK_LEN_MAX;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

mod replay;
mod score;

pub use replay::{Planned, SurpriseAnswer, SurpriseReader, SurpriseTarget, plan_reads};
pub use score::{HALF_LIFE_MS, RetrievalScore, SLOW_MS, WRONG_WEIGHT};

/// Reads remembered: at 16 bytes each, 128 KiB. A busy gateway forgets after a minute, an idle one never.
pub const SHAPES_MAX: usize = 8192;
/// Reads that must have been seen before their shapes are used; until then the usual ones are.
const SHAPES_MIN: usize = 64;
/// Steps of one session: a replay is over before long, as most sessions are.
pub const SESSION_STEPS_MAX: usize = 24;
/// Pauses longer than this separate sessions.
const SESSION_PAUSE_MS: u32 = 10_000;
/// Bytes of one session at most: a bound on what an audit may cost, above what most sessions read.
pub const SESSION_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// One read as a gateway saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadShape {
    /// Since the read before it.
    pub pause_ms: u32,
    /// Where in its first block it began.
    pub offset: u32,
    /// How many bytes, over however many blocks.
    pub len: u64,
}

impl ReadShape {
    /// Reads of like length: by powers of four.
    fn class(&self) -> u32 {
        self.len.max(1).ilog2() / 2
    }
}

/// Remembers how readers read; nothing of what or who.
#[derive(Debug, Default)]
pub struct ShapeRecorder {
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    shapes: VecDeque<ReadShape>,
    last_ms: Option<u64>,
}

impl ShapeRecorder {
    /// A read of `len` bytes from `offset` of its first block on, at `now_ms`.
    pub fn record(&self, offset: u32, len: u64, now_ms: u64) {
        let mut seen = self.seen.lock();
        let pause = seen.last_ms.map_or(0, |last| now_ms.saturating_sub(last));
        seen.last_ms = Some(now_ms);
        if seen.shapes.len() >= SHAPES_MAX {
            seen.shapes.pop_front();
        }
        let pause_ms = u32::try_from(pause).unwrap_or(u32::MAX);
        seen.shapes.push_back(ReadShape { pause_ms, offset, len });
    }

    /// What was seen, the oldest first; the usual shapes while that is too little to go by.
    pub fn shapes(&self) -> Vec<ReadShape> {
        let seen = self.seen.lock();
        if seen.shapes.len() >= SHAPES_MIN { seen.shapes.iter().copied().collect() } else { usual() }
    }
}

/// What readers of datasets and checkpoints do, for a gateway that has not seen any: whole small objects, ranges of
/// 64 KiB and 1 MiB, runs of several stripes.
fn usual() -> Vec<ReadShape> {
    let at = |pause_ms, offset, len| ReadShape { pause_ms, offset, len };
    let mut shapes = Vec::new();
    for step in 0..64u32 {
        shapes.push(at(3 + step % 7, 0, 100_000 + u64::from(step * 1_237 % 60_000)));
        shapes.push(at(11 + step % 13, (step * 53 % 15) * 65_536, 65_536));
        shapes.push(at(40 + step % 31, 0, u64::from(BLOCK_LEN_MAX)));
        shapes.push(at(90 + step * 7 % 400, 0, 8 * u64::from(BLOCK_LEN_MAX)));
    }
    shapes
}

/// One session: what to read, one step after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The steps.
    pub steps: Vec<Step>,
}

/// One read of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// After the read before it.
    pub pause: Duration,
    /// Where in its first block.
    pub offset: u32,
    /// How many bytes.
    pub len: u64,
}

/// Numbers by chance, from a seed.
pub struct Chance(blake3::OutputReader);

impl Chance {
    /// The same seed gives the same numbers.
    pub fn new(seed: &[u8; 32]) -> Self {
        Self(blake3::Hasher::new_keyed(seed).update(b"surprise").finalize_xof())
    }

    /// A number below `bound`, which is not 0; each alike but for 2^-32.
    pub fn below(&mut self, bound: usize) -> usize {
        let mut bytes = [0u8; 8];
        self.0.fill(&mut bytes);
        let number = u64::from_le_bytes(bytes) % (bound.max(1) as u64);
        usize::try_from(number).unwrap_or(0)
    }
}

/// Draws a session from what was seen: as many steps and with the pauses of one session of the past, a little changed,
/// with lengths and offsets of another one of the same kind.
pub fn draw_session(shapes: &[ReadShape], chance: &mut Chance) -> Session {
    let sessions = split(shapes);
    if sessions.is_empty() {
        return Session { steps: Vec::new() };
    }
    let pacing = chance.below(sessions.len());
    let kind = kind_of(sessions[pacing]);
    let alike: Vec<usize> =
        (0..sessions.len()).filter(|at| *at != pacing && kind_of(sessions[*at]) == kind).collect();
    let places = match alike.as_slice() {
        [] => sessions[pacing],
        alike => sessions[alike[chance.below(alike.len())]],
    };
    let usual_pause = middle(sessions[pacing].iter().skip(1).map(|shape| shape.pause_ms));
    let mut steps = Vec::with_capacity(sessions[pacing].len());
    let mut bytes = 0u64;
    for (index, seen) in sessions[pacing].iter().enumerate() {
        let place = places[chance.below(places.len())];
        bytes = bytes.saturating_add(place.len);
        if bytes > SESSION_BYTES_MAX && index > 0 {
            break;
        }
        // The pause before a session is not part of it.
        let pause_ms = if index == 0 { usual_pause } else { seen.pause_ms };
        let percent = 80 + u64::try_from(chance.below(41)).unwrap_or(20);
        let pause = Duration::from_millis(u64::from(pause_ms) * percent / 100);
        steps.push(Step { pause, offset: place.offset, len: place.len.min(SESSION_BYTES_MAX) });
    }
    Session { steps }
}

/// What was seen as sessions: cut where readers paused for long, and where one would be too long to replay.
fn split(shapes: &[ReadShape]) -> Vec<&[ReadShape]> {
    shapes
        .chunk_by(|_, next| next.pause_ms <= SESSION_PAUSE_MS)
        .flat_map(|session| session.chunks(SESSION_STEPS_MAX))
        .collect()
}

/// Sessions of one kind have like lengths and like pauses, by powers of four of their middle ones.
fn kind_of(session: &[ReadShape]) -> (u32, u32) {
    let class = middle(session.iter().map(ReadShape::class));
    let pause = middle(session.iter().skip(1).map(|shape| shape.pause_ms));
    (class, pause.max(1).ilog2() / 2)
}

/// The middle one of some numbers, 0 for none.
fn middle(numbers: impl Iterator<Item = u32>) -> u32 {
    let mut numbers: Vec<u32> = numbers.collect();
    numbers.sort_unstable();
    numbers.get(numbers.len() / 2).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests;
