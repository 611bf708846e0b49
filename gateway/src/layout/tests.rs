use proptest::prelude::*;

use super::*;

fn entries(lengths: &[u32]) -> Vec<Entry> {
    lengths
        .iter()
        .enumerate()
        .map(|(at, len)| Entry { digest: Digest::of(&at.to_le_bytes()), len: BlockLen::new(*len).unwrap() })
        .collect()
}

proptest! {
    #[test]
    fn pieces_cover_exactly_what_is_wanted(
        lengths in prop::collection::vec(1u32..50, 1..3000),
        part_offset in 0u64..1000,
        a in 0u64..80_000,
        b in 0u64..80_000,
    ) {
        let run = entries(&lengths);
        let size = total_len(&run);
        let (a, b) = (a % (size + 1), b % (size + 1));
        let wanted = part_offset + a.min(b)..part_offset + a.max(b);
        let mut found = Vec::new();
        let mut end = 0;
        for page in Page::cut(&run) {
            prop_assert_eq!(page.start, end);
            end = page.end();
            pieces(&page, part_offset, None, &wanted, &mut found);
        }
        prop_assert_eq!(end, size);
        let mut at = wanted.start;
        for piece in &found {
            prop_assert_eq!(piece.object_offset, at);
            prop_assert_eq!(piece.cipher_offset, at - part_offset);
            prop_assert!(piece.range.len > 0 && piece.range.end() <= piece.len.bytes());
            at += u64::from(piece.range.len);
        }
        prop_assert_eq!(at, wanted.end);
    }
}
