//! Many small ranges as few requests. Pure: ranges go in, reads and how to cut them come out.
//!
//! A request costs about as much as moving four 16 KiB groups, at either end; so ranges of one block that lie
//! closer together than that are read as one, and what lies between them is read along.

use holdfast_protocol::message::ByteRange;

use crate::block::BlockRef;

/// Bytes that are rather read in vain than around by another request.
const GAP_MAX: u32 = 64 * 1024;

/// One read, and which of the wanted ranges it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Merged {
    pub(crate) block: BlockRef,
    pub(crate) range: ByteRange,
    /// Index of a wanted range, and where it begins in `range`.
    pub(crate) holds: Vec<(usize, u32)>,
}

/// The reads for all of `wanted`, in the order of blocks and offsets. Equal and overlapping ranges are read once.
pub(crate) fn coalesce(wanted: &[(BlockRef, ByteRange)]) -> Vec<Merged> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_unstable_by_key(|at| (wanted[*at].0, wanted[*at].1.start));
    let mut merged: Vec<Merged> = Vec::new();
    for at in order {
        let (block, range) = wanted[at];
        if let Some(last) = merged.last_mut()
            && last.block == block
            && range.start <= last.range.end().saturating_add(GAP_MAX)
        {
            let end = last.range.end().max(range.end());
            last.range.len = end - last.range.start;
            last.holds.push((at, range.start - last.range.start));
            continue;
        }
        merged.push(Merged { block, range, holds: vec![(at, 0)] });
    }
    merged
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::{BlockLen, Digest};
    use proptest::prelude::*;

    use super::*;

    fn block(byte: u8) -> BlockRef {
        BlockRef { digest: Digest([byte; 32]), len: BlockLen::MAX }
    }

    #[test]
    fn neighbours_are_one_read_and_strangers_are_not() {
        let range = |start, len| ByteRange { start, len };
        let wanted = [
            (block(1), range(500_000, 10)),
            (block(1), range(0, 100)),
            (block(2), range(0, 100)),
            (block(1), range(60_000, 100)),
        ];
        let merged = coalesce(&wanted);
        assert_eq!(merged.len(), 3);
        assert_eq!(merged[0].range, range(0, 60_100));
        assert_eq!(merged[0].holds, [(1, 0), (3, 60_000)]);
    }

    proptest! {
        #[test]
        fn every_wanted_range_lies_in_exactly_one_read(
            wanted in prop::collection::vec((0u8..4, 0u32..1_000_000, 1u32..40_000), 0..60),
        ) {
            let wanted: Vec<_> = wanted
                .into_iter()
                .map(|(byte, start, len)| (block(byte), ByteRange { start, len: len.min((1 << 20) - start) }))
                .collect();
            let merged = coalesce(&wanted);
            let mut seen = vec![0; wanted.len()];
            for read in &merged {
                prop_assert!(read.range.end() <= 1 << 20);
                for (at, from) in &read.holds {
                    let (block, range) = wanted[*at];
                    seen[*at] += 1;
                    prop_assert_eq!(block, read.block);
                    prop_assert_eq!(read.range.start + from, range.start);
                    prop_assert!(range.end() <= read.range.end());
                }
            }
            prop_assert!(seen.iter().all(|times| *times == 1));
            for pair in merged.windows(2) {
                prop_assert!(pair[0].block != pair[1].block || pair[0].range.end() < pair[1].range.start);
            }
        }
    }
}
