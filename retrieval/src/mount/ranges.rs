//! A set of byte ranges: which bytes of a staged file were written here.

use std::collections::BTreeMap;
use std::ops::Range;

/// Disjoint ranges, merged where they touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// End by start.
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// Adds a range.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        // Every range that begins at or before the end and reaches the start is swallowed.
        while let Some((&at, &until)) = self.ranges.range(..=end).next_back() {
            if until < start {
                break;
            }
            start = start.min(at);
            end = end.max(until);
            self.ranges.remove(&at);
        }
        self.ranges.insert(start, end);
    }

    /// Takes out everything from `from` on.
    pub fn truncate(&mut self, from: u64) {
        self.ranges.split_off(&from);
        if let Some((&start, end)) = self.ranges.iter_mut().next_back() {
            *end = (*end).min(from);
            debug_assert!(start < *end, "ranges are never empty");
        }
    }

    /// What of `within` is not in the set, in order.
    pub fn gaps(&self, within: Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        if within.is_empty() {
            return gaps;
        }
        let mut at = within.start;
        if let Some((_, &end)) = self.ranges.range(..=at).next_back() {
            at = at.max(end);
        }
        for (&start, &end) in self.ranges.range(within.start..within.end) {
            if start > at {
                gaps.push(at..start);
            }
            at = at.max(end);
        }
        if at < within.end {
            gaps.push(at..within.end);
        }
        gaps
    }

    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_agrees_with_a_set_of_bytes(
            steps in proptest::collection::vec((0u8..2, 0u64..64, 0u64..24), 1..40),
            ask in (0u64..64, 0u64..32),
        ) {
            let (mut set, mut model) = (RangeSet::default(), [false; 128]);
            for (what, start, len) in steps {
                if what == 0 {
                    set.insert(start..start + len);
                    (start..start + len).for_each(|at| model[usize::try_from(at).expect("small")] = true);
                } else {
                    set.truncate(start);
                    (start..128).for_each(|at| model[usize::try_from(at).expect("small")] = false);
                }
            }
            let within = ask.0..ask.0 + ask.1;
            let mut missing = [false; 128];
            for gap in set.gaps(within.clone()) {
                prop_assert!(!gap.is_empty() && gap.start >= within.start && gap.end <= within.end);
                gap.for_each(|at| missing[usize::try_from(at).expect("small")] = true);
            }
            for at in within {
                let at = usize::try_from(at).expect("small");
                prop_assert_eq!(missing[at], !model[at], "byte {}", at);
            }
        }
    }
}
