use holdfast_protocol::NodeId;
use holdfast_protocol::PublicKey;
use proptest::prelude::*;

use super::stripe::ShardRow;
use super::*;

fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest)
}

fn len() -> impl Strategy<Value = BlockLen> {
    (1u32..=1024 * 1024).prop_map(|len| BlockLen::new(len).unwrap())
}

fn stripe() -> impl Strategy<Value = StripeRow> {
    let shard = prop::option::of((digest(), len(), prop::option::of(any::<u32>())));
    (any::<u64>(), 1u8..16, 0u8..16, prop::collection::vec(shard, 32)).prop_map(|(version, k, m, shards)| {
        let shards = shards.into_iter().take(usize::from(k + m));
        let shards = shards.map(|shard| shard.map(|(digest, len, node)| ShardRow { digest, len, node }));
        StripeRow {
            version,
            policy: PolicyName::Small,
            k,
            m,
            block_len: BlockLen::MAX,
            shards: shards.collect(),
        }
    })
}

proptest! {
    #[test]
    fn stripes_and_blocks_come_back(row in stripe(), id in any::<[u8; 16]>(), slot in any::<u8>(), refs in 1u64..) {
        prop_assert_eq!(StripeRow::decode(&row.encode()).unwrap(), row);
        let origin = (slot % 2 == 1).then_some(Origin([slot; 4]));
        let block = BlockRow { stripe: StripeId(id), slot, refs, origin };
        prop_assert_eq!(BlockRow::decode(&block.encode()).unwrap(), block);
    }

    #[test]
    fn pages_come_back(start in any::<u32>(), list in prop::collection::vec((digest(), len()), 1..1024), same in any::<bool>()) {
        let entry = |(digest, len)| Entry { digest, len: if same { BlockLen::MAX } else { len } };
        let page = Page { start: start.into(), entries: list.into_iter().map(entry).collect() };
        prop_assert_eq!(decode_page(&encode_page(&page)).unwrap(), page);
    }

    #[test]
    fn damaged_rows_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), at in any::<usize>(), row in stripe()) {
        let mut versioned = bytes.clone();
        versioned.insert(0, V1);
        let mut damaged = row.encode();
        let at = at % damaged.len();
        damaged[at] ^= 0x55;
        let cut = &row.encode()[..at];
        for bytes in [&bytes[..], &versioned[..], &damaged[..], cut] {
            // Whatever they say, they say it without a panic and without allocating past their own length.
            let _ = StripeRow::decode(bytes);
            let _ = BlockRow::decode(bytes);
            let _ = ObjectRow::decode(bytes);
            let _ = PartRow::decode(bytes);
            let _ = decode_page(bytes);
            let _ = decode_object_part(bytes);
            let _ = decode_upload("k", VersionId([0; 16]), bytes);
            let _ = decode_bucket("b", bytes);
        }
        prop_assert!(StripeRow::decode(cut).is_err());
    }
}

#[test]
fn nodes_without_a_number_are_not_guessed() {
    let stripe = holdfast_protocol::record::Stripe {
        v: 1,
        id: StripeId([1; 16]),
        version: 1,
        policy: PolicyName::Local,
        k: 1,
        m: 0,
        block_len: BlockLen::MAX,
        shards: vec![Some(holdfast_protocol::record::Shard {
            digest: Digest([2; 32]),
            len: BlockLen::MAX,
            node: Some(NodeId(PublicKey([3; 32]))),
        })],
    };
    assert!(from_record(&stripe, |_| None).is_none());
    assert_eq!(from_record(&stripe, |_| Some(7)).unwrap().shards[0].unwrap().node, Some(7));
}
