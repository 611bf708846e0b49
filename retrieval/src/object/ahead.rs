//! What to read before it is asked for. Pure: reads go in, ranges come out.
//!
//! Sequential readers are recognised at their second read (at the first, at the start of an object), several
//! of them side by side, and also when their requests arrive out of order, as a kernel's do. Readers that jump
//! by the same distance again and again get their next jumps. All others get nothing: reading ahead for a
//! random reader costs him the bytes that he needs.

use std::ops::Range;

/// Sequential readers of one object that are told apart.
const STREAMS_MAX: usize = 4;
/// Equal jumps after which the next ones are believed.
const JUMPS_BELIEVED: u32 = 2;
/// A request may arrive this far before or behind its turn, beside twice its own length.
const DISORDER_BYTES: u64 = 128 * 1024;

/// How far to read ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AheadConfig {
    /// For a reader just recognised.
    pub start_bytes: u64,
    /// At most, for one that goes on; it doubles on the way there.
    pub window_bytes: u64,
    /// Jumps ahead of a strided reader.
    pub strides: u64,
}

impl Default for AheadConfig {
    /// Sixteen blocks keep six nodes busy.
    fn default() -> Self {
        Self { start_bytes: 2 << 20, window_bytes: 16 << 20, strides: 8 }
    }
}

/// How an object is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// From front to back.
    Sequential,
    /// In equal jumps.
    Strided,
    /// Neither.
    Random,
}

/// What a read says about the next ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Advice {
    pub(crate) access: Access,
    /// What will probably be read, the nearest first; does not include the read itself.
    pub(crate) ahead: Vec<Range<u64>>,
}

/// Watches the reads of one object.
#[derive(Debug)]
pub(crate) struct Pattern {
    config: AheadConfig,
    /// The latest used first.
    streams: Vec<Stream>,
    last: Option<u64>,
    jump: i64,
    jumps: u32,
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    frontier: u64,
    window: u64,
    /// Bytes read since the window grew.
    since: u64,
    confirmed: bool,
}

impl Pattern {
    pub(crate) fn new(config: AheadConfig) -> Self {
        Self { config, streams: Vec::new(), last: None, jump: 0, jumps: 0 }
    }

    /// A read of `range` of an object of `size` bytes.
    pub(crate) fn observe(&mut self, range: &Range<u64>, size: u64) -> Advice {
        let advice = match self.streams.iter().position(|stream| stream.expects(range)) {
            Some(at) => self.go_on(at, range, size),
            None => self.jump_to(range, size),
        };
        self.last = Some(range.start);
        advice
    }

    fn go_on(&mut self, at: usize, range: &Range<u64>, size: u64) -> Advice {
        let mut stream = self.streams.remove(at);
        let config = self.config;
        let gained = range.end.saturating_sub(stream.frontier);
        stream.frontier = stream.frontier.max(range.end);
        stream.since += gained;
        if stream.confirmed && stream.since >= stream.window / 2 {
            stream.window = (stream.window * 2).min(config.window_bytes);
            stream.since = 0;
        }
        stream.confirmed = true;
        self.streams.insert(0, stream);
        self.jumps = 0;
        Advice { access: Access::Sequential, ahead: stream.ahead(size) }
    }

    fn jump_to(&mut self, range: &Range<u64>, size: u64) -> Advice {
        let jump = self.last.and_then(|last| range.start.checked_signed_diff(last)).unwrap_or(0);
        self.jumps = if jump != 0 && jump == self.jump { self.jumps + 1 } else { 0 };
        self.jump = jump;
        let window = self.config.start_bytes.min(self.config.window_bytes);
        let stream = Stream { frontier: range.end, window, since: 0, confirmed: range.start == 0 };
        self.streams.truncate(STREAMS_MAX - 1);
        self.streams.insert(0, stream);
        if stream.confirmed {
            return Advice { access: Access::Sequential, ahead: stream.ahead(size) };
        }
        if self.jumps < JUMPS_BELIEVED {
            return Advice { access: Access::Random, ahead: Vec::new() };
        }
        let len = range.end - range.start;
        let ahead = (1..=self.config.strides)
            .map_while(|times| {
                let distance = jump.checked_mul(i64::try_from(times).ok()?)?;
                let start = range.start.checked_add_signed(distance)?;
                let end = start.checked_add(len)?.min(size);
                (start < end).then_some(start..end)
            })
            .collect();
        Advice { access: Access::Strided, ahead }
    }
}

impl Stream {
    fn expects(&self, range: &Range<u64>) -> bool {
        let disorder = (range.end - range.start) * 2;
        range.start <= self.frontier + disorder
            && range.end + disorder.max(DISORDER_BYTES) >= self.frontier
            && range.end > range.start
    }

    fn ahead(&self, size: u64) -> Vec<Range<u64>> {
        let end = self.frontier.saturating_add(self.window).min(size);
        if self.frontier < end { std::iter::once(self.frontier..end).collect() } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 30;
    const KIB: u64 = 1024;

    fn pattern() -> Pattern {
        Pattern::new(AheadConfig { start_bytes: 1 << 20, window_bytes: 8 << 20, strides: 4 })
    }

    fn ahead_bytes(advice: &Advice) -> u64 {
        advice.ahead.iter().map(|range| range.end - range.start).sum()
    }

    #[test]
    fn a_sequential_reader_is_known_at_once_at_the_start_and_at_its_second_read_elsewhere() {
        let mut pattern = pattern();
        assert_eq!(pattern.observe(&(0..128 * KIB), SIZE).access, Access::Sequential);
        let mut pattern = super::tests::pattern();
        assert_eq!(pattern.observe(&(1 << 20..(1 << 20) + 4096), SIZE).access, Access::Random);
        let second = pattern.observe(&((1 << 20) + 4096..(1 << 20) + 8192), SIZE);
        assert_eq!(second.access, Access::Sequential);
        let from = (1 << 20) + 8192;
        assert_eq!(second.ahead, std::iter::once(from..from + (1 << 20)).collect::<Vec<_>>());
    }

    #[test]
    fn the_window_doubles_up_to_its_bound_and_ends_with_the_object() {
        let mut pattern = pattern();
        let mut last = 0;
        for at in 0..400 {
            last = ahead_bytes(&pattern.observe(&(at * 128 * KIB..(at + 1) * 128 * KIB), SIZE));
        }
        assert_eq!(last, 8 << 20);
        let end = pattern.observe(&(400 * 128 * KIB..401 * 128 * KIB), 401 * 128 * KIB + 5);
        assert_eq!(ahead_bytes(&end), 5);
    }

    #[test]
    fn requests_that_arrive_out_of_order_are_still_sequential() {
        let mut pattern = pattern();
        for at in [0, 2, 1, 3, 5, 4, 6, 8, 7, 9u64] {
            let advice = pattern.observe(&(at * 128 * KIB..(at + 1) * 128 * KIB), SIZE);
            assert_eq!(advice.access, Access::Sequential, "{at}");
        }
    }

    #[test]
    fn several_readers_of_one_object_are_told_apart() {
        let mut pattern = pattern();
        let starts = [0, 100 << 20, 300 << 20, 700 << 20];
        for step in 0..20u64 {
            for start in starts {
                let at = start + step * 64 * KIB;
                let advice = pattern.observe(&(at..at + 64 * KIB), SIZE);
                assert!(step == 0 || advice.access == Access::Sequential);
            }
        }
    }

    #[test]
    fn equal_jumps_are_followed_both_ways() {
        let mut pattern = pattern();
        let mut advice = None;
        for at in 0..5u64 {
            advice = Some(pattern.observe(&((10 + at) << 20..((10 + at) << 20) + 4096), SIZE));
        }
        let advice = advice.unwrap();
        assert_eq!((advice.access, advice.ahead.len()), (Access::Strided, 4));
        assert_eq!(advice.ahead[0], 15 << 20..(15 << 20) + 4096);
        for at in 0..8u64 {
            let start = (90 - 10 * at) << 20;
            let back = pattern.observe(&(start..start + 4096), SIZE);
            assert!(at < 3 || back.access != Access::Random, "{at}");
            assert!(back.ahead.iter().all(|range| range.start < start));
        }
    }

    #[test]
    fn a_random_reader_gets_nothing() {
        let mut pattern = pattern();
        let mut at = 12345u64;
        for _ in 0..200 {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let start = (at >> 34) / 4096 * 4096 + 4096;
            let advice = pattern.observe(&(start..start + 65_536), SIZE);
            assert!(ahead_bytes(&advice) == 0 || advice.access == Access::Sequential);
        }
    }
}
