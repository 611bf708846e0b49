use proptest::prelude::*;

use super::*;

/// Digests that crowd into few buckets, so that buckets of every size come up.
fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let entry = (0u8..4, any::<u64>(), 1u32..=1 << 20).prop_map(|(bucket, seed, len)| {
        let mut digest = Digest::of(&seed.to_le_bytes());
        (digest.0[0], digest.0[1]) = (bucket * 85, bucket);
        Entry { digest, len: BlockLen::new(len).unwrap(), owner: OwnerHash(Digest::of(&[bucket]).0) }
    });
    prop::collection::vec(entry, 0..60).prop_map(|mut entries| {
        entries.sort_by_key(|entry| entry.digest);
        entries.dedup_by_key(|entry| entry.digest);
        entries
    })
}

fn build(entries: &[Entry]) -> Inventory {
    let mut tree = Inventory::new();
    let sums: Vec<_> = buckets(entries)
        .into_iter()
        .map(|(number, entries)| (number, bucket_sum(number, entries).unwrap()))
        .collect();
    tree.update(&sums).unwrap();
    tree
}

fn buckets(entries: &[Entry]) -> Vec<(u16, &[Entry])> {
    entries
        .chunk_by(|one, next| bucket_of(&one.digest) == bucket_of(&next.digest))
        .map(|entries| (bucket_of(&entries[0].digest), entries))
        .collect()
}

fn open_at(tree: &Inventory, entries: &[Entry], position: u64) -> (OpenedLeaf, u32) {
    let (number, within) = tree.find(position).unwrap();
    let all = buckets(entries);
    let (_, bucket) = all.iter().find(|(found, _)| *found == number).unwrap();
    tree.open(number, bucket, within).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Against the plainest model there is: a list of lengths.
    #[test]
    fn every_byte_is_found_where_a_list_has_it(entries in entries(), at in any::<prop::sample::Index>()) {
        let tree = build(&entries);
        let total: u64 = entries.iter().map(|entry| u64::from(entry.len.bytes())).sum();
        prop_assert_eq!(tree.root().bytes, total);
        prop_assert_eq!(tree.find(total), None);
        if total == 0 {
            prop_assert_eq!(tree.root(), Inventory::new().root());
            return Ok(());
        }
        let position = at.index(usize::try_from(total).unwrap()) as u64;
        let (mut start, mut model) = (0, &entries[0]);
        for entry in &entries {
            model = entry;
            if position < start + u64::from(entry.len.bytes()) {
                break;
            }
            start += u64::from(entry.len.bytes());
        }
        let (leaf, offset) = open_at(&tree, &entries, position);
        prop_assert_eq!((leaf.digest, leaf.len, leaf.owner), (model.digest, model.len, model.owner));
        prop_assert_eq!(u64::from(offset), position - start);
        prop_assert_eq!(verify_leaf(&tree.root(), &leaf), Ok(Located { start }));
    }

    /// Rehashing what changed gives what hashing everything gives.
    #[test]
    fn dirty_buckets_suffice(before in entries(), after in entries()) {
        let mut tree = build(&before);
        let mut changes: Vec<(u16, Sum)> =
            buckets(&before).into_iter().map(|(number, _)| (number, Sum::EMPTY)).collect();
        for (number, entries) in buckets(&after) {
            changes.retain(|(dirty, _)| *dirty != number);
            changes.push((number, bucket_sum(number, entries).unwrap()));
        }
        tree.update(&changes).unwrap();
        prop_assert_eq!(tree.root(), build(&after).root());
    }

    /// Any change to an opened leaf is caught: it opens one leaf of one inventory, and nothing else.
    #[test]
    fn no_changed_leaf_verifies(
        entries in entries(),
        at in any::<prop::sample::Index>(),
        bit in any::<prop::sample::Index>(),
        field in 0usize..7,
    ) {
        prop_assume!(!entries.is_empty());
        let tree = build(&entries);
        let position = at.index(usize::try_from(tree.root().bytes).unwrap()) as u64;
        let (leaf, _) = open_at(&tree, &entries, position);
        let mut forged = leaf.clone();
        match field {
            0 => { let bit = bit.index(256); forged.digest.0[bit / 8] ^= 1 << (bit % 8); }
            1 => forged.len = BlockLen::new(forged.len.bytes() % (1 << 20) + 1).unwrap(),
            2 => { let bit = bit.index(256); forged.owner.0[bit / 8] ^= 1 << (bit % 8); }
            3 => forged.index ^= 1 << bit.index(3),
            4 => forged.count = forged.count.wrapping_add(u32::try_from(1 + bit.index(4)).unwrap()),
            5 => {
                let bit = bit.index(forged.siblings.len() * 8);
                forged.siblings[bit / 8] ^= 1 << (bit % 8);
            }
            _ => { let keep = bit.index(forged.siblings.len()); forged.siblings.truncate(keep); }
        }
        prop_assert!(verify_leaf(&tree.root(), &forged).is_err(), "{forged:?} of {leaf:?}");
        let mut inflated = tree.root();
        inflated.bytes += 1;
        prop_assert!(verify_leaf(&inflated, &leaf).is_err());
    }
}

#[test]
fn blocks_out_of_place_are_no_bucket() {
    let entry = |seed: u8| Entry {
        digest: Digest([seed; 32]),
        len: BlockLen::new(1).unwrap(),
        owner: OwnerHash([0; 32]),
    };
    assert_eq!(bucket_sum(7, &[entry(7)]), Err(InventoryError::Bucket { bucket: 7 }));
    assert_eq!(bucket_sum(0x0707, &[entry(7), entry(7)]), Err(InventoryError::Order { bucket: 0x0707 }));
    assert!(bucket_sum(0x0707, &[entry(7)]).is_ok());
}

/// A sum that wraps around would let a node claim bytes that cost nothing.
#[test]
fn sums_never_wrap() {
    let mut tree = Inventory::new();
    let half = Sum { hash: InventoryHash([1; 32]), bytes: u64::MAX };
    assert_eq!(tree.update(&[(0, half), (1, half)]), Err(InventoryError::TooManyBytes));
    let leaf = OpenedLeaf {
        digest: Digest([0; 32]),
        len: BlockLen::new(1).unwrap(),
        owner: OwnerHash([0; 32]),
        index: 0,
        count: 1,
        siblings: serde_bytes::ByteBuf::from(vec![0xff; LEVELS * SIBLING_LEN]),
    };
    assert_eq!(verify_leaf(&half, &leaf), Err(LeafError::Overflow));
}

#[test]
fn the_root_of_one_block_is_golden() {
    let entry = Entry {
        digest: Digest::of(b"one"),
        len: BlockLen::new(3).unwrap(),
        owner: owner_of(&[5; 32], &Digest::of(b"one"), &[AgreementId([6; 32])]),
    };
    let root = build(&[entry]).root();
    assert_eq!(root.bytes, 3);
    assert_eq!(root.hash.to_string(), include_str!("golden-root.txt").trim());
}
