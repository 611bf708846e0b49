//! How a file is being read, and what to fetch because of it. Pure: told each read, it says what to do.
//!
//! The kernel splits its own read-ahead into several requests that arrive in any order, so a read counts as next
//! when it lands anywhere near where the last ones ended.

use std::ops::Range;

/// Bytes of a chunk: the unit of fetching ahead, and the most that the kernel asks for at once.
pub(super) const CHUNK_LEN: u64 = 1024 * 1024;
/// Files up to this are fetched whole by their first read: four chunks cost one request, as one does.
const SMALL_FILE: u64 = 4 * CHUNK_LEN;
/// The first window of a read at the beginning of a file.
const WINDOW_FIRST: u64 = 2 * CHUNK_LEN;
/// How far back and ahead of the last end a read still counts as next, beside the window.
const SLACK: u64 = 2 * CHUNK_LEN;

/// What one open file has been read like.
#[derive(Clone, Debug, Default)]
pub struct Pattern {
    /// The end of the furthest read of the current run.
    next: u64,
    /// How far ahead to fetch.
    window: u64,
    /// Up to where was fetched ahead.
    issued: u64,
    /// Reads that came as expected.
    streak: u32,
}

/// What to do for a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Fetch just these bytes.
    Exact,
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
        let slack = SLACK.max(self.window);
        let is_next = match self.streak {
            0 if self.next == 0 => range.start == 0,
            _ => range.start + slack >= self.next && range.start <= self.next + slack,
        };
        if !is_next {
            *self = Self { next: range.end, ..Self::default() };
            return Plan::Exact;
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
            Plan::Exact => 0,
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
    fn small_files_are_fetched_whole() {
        assert_eq!(Pattern::default().observe(9..10, 100_000, MAX), Plan::Chunks { ahead: 0..100_000 });
    }
}
