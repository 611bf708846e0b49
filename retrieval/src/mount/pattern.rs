//! How a file is being read, and what to fetch because of it. Pure: told each read, it says what to do.
//!
//! The kernel splits its own read-ahead into several requests that arrive in any order, so a read counts as next
//! when it lands anywhere near where the last ones ended.

use std::ops::Range;

/// Bytes of a chunk: the unit of fetching ahead, and the most that the kernel asks for at once. Pieces that end at
/// its multiples are handed on without a copy.
pub const CHUNK_LEN: u64 = 1024 * 1024;
/// Files up to this are fetched whole by their first read: four chunks cost one request, as one does.
const SMALL_FILE: u64 = 4 * CHUNK_LEN;
/// The first window of a read at the beginning of a file.
const WINDOW_FIRST: u64 = 2 * CHUNK_LEN;
/// How far back and ahead of the last end a read still counts as next in a run, beside the window.
const SLACK: u64 = 2 * CHUNK_LEN;
/// The same before there is a run, in lengths of the read.
const SLACK_FIRST: u64 = 4;
/// Equal jumps after the first that make the next ones believed.
const JUMPS_BELIEVED: u32 = 2;
/// Jumps fetched ahead of a strided reader.
const JUMPS_AHEAD: i64 = 8;
/// The longest run between two jumps that is fetched ahead as it is.
pub(super) const RUN_MAX: u64 = 4 * CHUNK_LEN;

/// What one open file has been read like.
#[derive(Clone, Debug, Default)]
pub struct Pattern {
    /// Where the current run began.
    first: u64,
    /// The end of the furthest read of the current run.
    next: u64,
    /// How far ahead to fetch.
    window: u64,
    /// Up to where was fetched ahead.
    issued: u64,
    /// Reads that came as expected.
    streak: u32,
    /// From the beginning of the run before to that of this one.
    jump: i64,
    /// How often in a row it was as far before.
    jumps: u32,
    /// Bytes of the run before.
    run_len: u64,
}

/// What to do for a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Fetch just these bytes.
    Exact,
    /// Read in equal jumps: fetch these ranges as they are, the nearest first.
    Strided {
        /// Where it will be read next; empty within a run.
        ahead: Vec<Range<u64>>,
    },
    /// Fetch chunks, and these bytes (whole chunks) ahead of need.
    Chunks {
        /// Chunk-aligned, up to the end of the file; may be empty.
        ahead: Range<u64>,
    },
}

impl Pattern {
    /// Takes in a read of `range` in a file of `size` bytes; windows grow to `window_max`.
    pub fn observe(&mut self, range: Range<u64>, size: u64, window_max: u64) -> Plan {
        if size <= SMALL_FILE {
            return Plan::Chunks { ahead: 0..size };
        }
        let slack = match self.streak {
            0 | 1 => SLACK_FIRST * (range.end - range.start),
            _ => SLACK.max(self.window),
        };
        let is_next = match self.streak {
            0 if self.next == 0 => range.start == 0,
            _ => range.start + slack >= self.next && range.start <= self.next + slack,
        };
        if !is_next {
            return self.jump_to(range, size);
        }
        if self.jumps >= JUMPS_BELIEVED && range.end <= self.first + self.run_len {
            self.next = self.next.max(range.end);
            return Plan::Strided { ahead: Vec::new() };
        }
        self.streak = self.streak.saturating_add(1);
        self.next = self.next.max(range.end);
        if self.window == 0 {
            self.window = WINDOW_FIRST.min(window_max);
            self.issued = align_down(range.start);
        }
        // Fetch again when less than half a window is left ahead, so that the fetch overlaps with the reading.
        if self.next + self.window / 2 < self.issued {
            return Plan::Chunks { ahead: self.issued..self.issued };
        }
        let until = align_up(self.next + self.window).min(size);
        let ahead = self.issued.min(until)..until;
        self.issued = until;
        self.window = (self.window * 2).min(window_max.max(WINDOW_FIRST));
        Plan::Chunks { ahead }
    }

    fn jump_to(&mut self, range: Range<u64>, size: u64) -> Plan {
        let jump = range.start.checked_signed_diff(self.first).unwrap_or(0);
        let jumps = if jump != 0 && jump == self.jump { self.jumps + 1 } else { 0 };
        let run_len = (self.next - self.first).max(range.end - range.start);
        *self = Self { first: range.start, next: range.end, jump, jumps, run_len, ..Self::default() };
        if jumps < JUMPS_BELIEVED || run_len > RUN_MAX {
            return Plan::Exact;
        }
        let ahead = (1..=JUMPS_AHEAD).map_while(|times| {
            let start = range.start.checked_add_signed(jump.checked_mul(times)?)?;
            let end = start.checked_add(run_len)?.min(size);
            (start < end).then_some(start..end)
        });
        Plan::Strided { ahead: ahead.collect() }
    }

    /// Whether it reads on and on.
    pub fn is_sequential(&self) -> bool {
        self.streak > 1
    }
}

/// The beginning of the chunk that holds `at`.
pub(super) fn align_down(at: u64) -> u64 {
    at / CHUNK_LEN * CHUNK_LEN
}

/// The end of the chunk that ends at or after `at`.
pub(super) fn align_up(at: u64) -> u64 {
    at.div_ceil(CHUNK_LEN) * CHUNK_LEN
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const MAX: u64 = 32 * CHUNK_LEN;

    /// Everything fetched ahead for reads at these offsets, in order.
    fn fetched(reads: impl IntoIterator<Item = u64>, len: u64) -> Vec<Plan> {
        let mut pattern = Pattern::default();
        reads.into_iter().map(|at| pattern.observe(at..at + len, GIB, MAX)).collect()
    }

    #[test]
    fn reading_on_fetches_every_byte_once_and_far_ahead() {
        let mut at = 0;
        for plan in fetched((0..GIB / CHUNK_LEN).map(|chunk| chunk * CHUNK_LEN), CHUNK_LEN) {
            let Plan::Chunks { ahead } = plan else { panic!("a sequential read was taken for a random one") };
            if !ahead.is_empty() {
                assert_eq!(ahead.start, at, "no gap and no overlap");
                at = ahead.end;
            }
        }
        assert_eq!(at, GIB);
    }

    #[test]
    fn windows_grow_to_their_bound() {
        let plans = fetched((0..64).map(|read| read * 128 * 1024), 128 * 1024);
        let longest = plans.iter().map(|plan| match plan {
            Plan::Chunks { ahead } => ahead.end - ahead.start,
            Plan::Exact | Plan::Strided { .. } => 0,
        });
        let longest = longest.max().unwrap_or(0);
        assert!((8 * CHUNK_LEN..=MAX + CHUNK_LEN).contains(&longest), "{longest}");
    }

    #[test]
    fn requests_of_one_read_ahead_may_come_in_any_order() {
        let order = [0, 2, 1, 3, 5, 4, 7, 6, 8];
        for plan in fetched(order.map(|chunk| chunk * CHUNK_LEN), CHUNK_LEN) {
            assert!(matches!(plan, Plan::Chunks { .. }));
        }
    }

    #[test]
    fn scattered_reads_fetch_nothing_else() {
        let scattered = [700, 3, 512, 90, 1000, 350].map(|chunk| chunk * CHUNK_LEN + 4096);
        assert!(fetched(scattered, 128 * 1024).iter().all(|plan| *plan == Plan::Exact));
    }

    #[test]
    fn a_jump_and_then_reading_on_is_a_new_run() {
        let plans = fetched([0, 500 * CHUNK_LEN, 500 * CHUNK_LEN + 65_536], 65_536);
        assert_eq!(plans[1], Plan::Exact);
        let Plan::Chunks { ahead } = &plans[2] else { panic!("{plans:?}") };
        assert_eq!(ahead.start, 500 * CHUNK_LEN);
    }

    #[test]
    fn equal_jumps_are_followed_both_ways() {
        let len = 64 * 1024;
        let plans = fetched((2..20).map(|jump| jump * CHUNK_LEN), len);
        assert!(plans[..3].iter().all(|plan| *plan == Plan::Exact), "{plans:?}");
        let Plan::Strided { ahead } = &plans[3] else { panic!("{plans:?}") };
        assert_eq!((ahead[0].clone(), ahead.len()), (6 * CHUNK_LEN..6 * CHUNK_LEN + len, 8));
        let plans = fetched((1..9).rev().map(|jump| jump * CHUNK_LEN), len);
        let Plan::Strided { ahead } = &plans[3] else { panic!("{plans:?}") };
        assert_eq!((ahead[0].clone(), ahead.len()), (4 * CHUNK_LEN..4 * CHUNK_LEN + len, 5));
    }

    #[test]
    fn jumps_of_several_requests_each_are_followed_run_by_run() {
        let len = 256 * 1024;
        let reads = (2..9u64).flat_map(|jump| [0, 1, 2].map(|part| jump * 64 * CHUNK_LEN + part * len));
        let plans = fetched(reads, len);
        let Plan::Strided { ahead } = &plans[9] else { panic!("{plans:?}") };
        assert_eq!(ahead[0], 6 * 64 * CHUNK_LEN..6 * 64 * CHUNK_LEN + 3 * len);
        assert_eq!(plans[10..12], [Plan::Strided { ahead: vec![] }, Plan::Strided { ahead: vec![] }]);
    }

    #[test]
    fn small_files_are_fetched_whole() {
        assert_eq!(Pattern::default().observe(9..10, 100_000, MAX), Plan::Chunks { ahead: 0..100_000 });
    }
}
