//! Packing's transaction: what it changes together, and what makes it change nothing.

use holdfast_retrieval::pack::{PackCandidate, PackChange};

use super::cluster::{entry, node, object, stored, stored_in, stripe};
use super::*;

/// A stripe of 1+2 or more on these nodes.
fn short(seeds: &[u64], at: u8) -> (Vec<Entry>, Arc<Stripe>) {
    let blocks: Vec<Entry> = seeds.iter().map(|seed| entry(*seed, 100)).collect();
    let mut made = Stripe::clone(&stripe(&blocks));
    for (slot, shard) in made.shards.iter_mut().enumerate() {
        if let Some(shard) = shard {
            shard.node = Some(node(at + u8::try_from(slot).unwrap()));
        }
    }
    (blocks, Arc::new(made))
}

/// The merged stripe of these, the first surviving, with new parity on nodes 50 and 51.
fn merge(survivor: Option<&Stripe>, absorbed: &[&Stripe], keep: &[Entry]) -> PackChange {
    let sources = survivor.into_iter().chain(absorbed.iter().copied());
    let mut data: Vec<Option<Shard>> = sources
        .flat_map(|stripe| stripe.shards[..4].iter().flatten().copied())
        .filter(|shard| keep.iter().any(|entry| entry.digest == shard.digest))
        .map(Some)
        .collect();
    data.resize(4, None);
    let id = survivor.map_or_else(|| StripeId::random().unwrap(), |stripe| stripe.id);
    let block_len = BlockLen::new(100).unwrap();
    for parity in 0..2u8 {
        let digest = Digest::of(&[&id.0[..], &[100 + parity]].concat());
        data.push(Some(Shard { digest, len: block_len, node: Some(node(50 + parity)) }));
    }
    let version = survivor.map_or(1, |stripe| stripe.version + 1);
    let packed = Stripe { v: 1, id, version, policy: PolicyName::Local, k: 4, m: 2, block_len, shards: data };
    PackChange {
        packed,
        survivor: survivor.cloned(),
        absorbed: absorbed.iter().map(|stripe| (*stripe).clone()).collect(),
    }
}

async fn candidates(cluster: &Cluster) -> Vec<PackCandidate> {
    cluster.meta.pack_candidates(None, 100).await.unwrap().0
}

/// Two buckets' objects in two short stripes.
async fn two_short(cluster: &Cluster) -> (Bucket, Vec<Entry>, [Arc<Stripe>; 2]) {
    let bucket = cluster.bucket("b", true).await;
    let (mut blocks, one) = short(&[1, 2], 1);
    let (more, two) = short(&[3], 20);
    cluster
        .meta
        .put_object(&bucket, object("one", stored_in(blocks.clone(), vec![one.clone()], false)))
        .await
        .unwrap();
    cluster
        .meta
        .put_object(&bucket, object("two", stored_in(more.clone(), vec![two.clone()], false)))
        .await
        .unwrap();
    blocks.extend(more);
    (bucket, blocks, [one, two])
}

#[tokio::test]
async fn short_stripes_queue_and_full_ones_do_not() {
    let cluster = Cluster::new().await;
    let bucket = cluster.bucket("b", false).await;
    let full: Vec<Entry> = (10..14).map(|seed| entry(seed, 100)).collect();
    cluster.meta.put_object(&bucket, object("full", stored(full, true))).await.unwrap();
    assert!(candidates(&cluster).await.is_empty());
    let blocks: Vec<Entry> = (1..4).map(|seed| entry(seed, 100)).collect();
    cluster.meta.put_object(&bucket, object("short", stored(blocks, true))).await.unwrap();
    let found = candidates(&cluster).await;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].live, [true, true, true, false]);
    assert!(cluster.meta.delete_object(&bucket, "short").await.unwrap());
    assert!(candidates(&cluster).await.is_empty(), "a released stripe leaves the queue");
    cluster.assert_sound().await;
}

#[tokio::test]
async fn a_stripe_queues_again_when_most_of_it_has_died() {
    let cluster = Cluster::new().await;
    let bucket = cluster.bucket("b", false).await;
    let blocks: Vec<Entry> = (1..5).map(|seed| entry(seed, 100)).collect();
    let shared = stripe(&blocks);
    for (at, block) in blocks.iter().enumerate() {
        let put = object(&at.to_string(), stored_in(vec![*block], vec![shared.clone()], true));
        cluster.meta.put_object(&bucket, put).await.unwrap();
    }
    for (deleted, waits) in [("0", false), ("1", false), ("2", true)] {
        assert!(cluster.meta.delete_object(&bucket, deleted).await.unwrap());
        let found = candidates(&cluster).await;
        assert_eq!(found.len(), usize::from(waits), "after {deleted}");
    }
    assert_eq!(candidates(&cluster).await[0].live, [false, false, false, true]);
    cluster.assert_sound().await;
}

#[tokio::test]
async fn a_merge_changes_everything_at_once() {
    let cluster = Cluster::new().await;
    let (bucket, blocks, [one, two]) = two_short(&cluster).await;
    let change = merge(Some(&one), &[&two], &blocks);
    assert!(cluster.meta.intend_packing(one.id, &[(node(20), blocks[2].digest)]).await.unwrap());
    cluster.meta.pack(&change).await.unwrap();
    for (slot, block) in blocks.iter().enumerate() {
        let located = cluster.meta.locate(&block.digest).await.unwrap().unwrap();
        assert_eq!((located.stripe.id, located.slot), (one.id, slot));
        // The hint that the upload left names a stripe that is gone for the last of them.
        let to_read = cluster.meta.locate_to_read(&block.digest).await.unwrap().unwrap();
        assert_eq!((to_read.stripe, to_read.slot), (located.stripe, slot));
    }
    assert!(cluster.meta.stripe(two.id).await.unwrap().is_none());
    assert!(cluster.meta.pack_intents(10).await.unwrap().is_empty());
    // The absorbed stripe's claims go at all its nodes, the survivor's at those of its old parity.
    let mut released: Vec<_> = cluster.releases().await.iter().map(|item| (item.stripe, item.node)).collect();
    released.sort();
    let mut expected: Vec<_> = [20, 24, 25].map(|at| (two.id, node(at))).to_vec();
    expected.extend([5, 6].map(|at| (one.id, node(at))));
    expected.sort();
    assert_eq!(released, expected);
    let commits = cluster.meta.commit_queue(None, 100).await.unwrap();
    let nodes: Vec<_> = commits.iter().map(|item| (item.stripe == one.id, item.node)).collect();
    for at in [1, 2, 20, 50, 51] {
        assert!(nodes.contains(&(true, node(at))), "{at}");
    }
    assert!(nodes.iter().all(|(ours, at)| *ours && ![node(5), node(6), node(24), node(25)].contains(at)));
    cluster.assert_sound().await;
    // A stripe of three waits for a fourth block.
    assert_eq!(candidates(&cluster).await.len(), 1);
    // Deletion finds its way through the merged stripe.
    for key in ["one", "two"] {
        assert!(cluster.meta.delete_object(&bucket, key).await.unwrap());
        cluster.assert_sound().await;
    }
    assert_eq!(cluster.assert_sound().await.stripes, 0);
    let released = cluster.releases().await;
    let of_one =
        released.iter().filter(|item| item.stripe == one.id).map(|item| item.digests.len()).sum::<usize>();
    assert_eq!(of_one, 2 + 2 + 1 + 2, "old parity, and every shard of the merged stripe");
}

#[tokio::test]
async fn dead_blocks_stay_behind() {
    let cluster = Cluster::new().await;
    let bucket = cluster.bucket("b", false).await;
    let (blocks, shared) = short(&[1, 2, 3], 1);
    for (at, block) in blocks.iter().enumerate() {
        let put = object(&at.to_string(), stored_in(vec![*block], vec![shared.clone()], true));
        cluster.meta.put_object(&bucket, put).await.unwrap();
    }
    cluster.meta.delete_object(&bucket, "1").await.unwrap();
    let all = merge(None, &[&shared], &blocks);
    assert!(
        matches!(cluster.meta.pack(&all).await, Err(PlacementError::Version { .. })),
        "a dead block passed on"
    );
    let change = merge(None, &[&shared], &[blocks[0], blocks[2]]);
    cluster.meta.pack(&change).await.unwrap();
    cluster.assert_sound().await;
    assert!(cluster.meta.locate(&blocks[1].digest).await.unwrap().is_none());
    assert_eq!(cluster.meta.locate(&blocks[2].digest).await.unwrap().unwrap().slot, 1);
    assert_eq!(cluster.releases().await.len(), 5, "every claim of the old stripe");
}

#[tokio::test]
async fn a_deletion_that_comes_between_makes_the_merge_fail_and_change_nothing() {
    let cluster = Cluster::new().await;
    let (bucket, blocks, [one, two]) = two_short(&cluster).await;
    let change = merge(Some(&one), &[&two], &blocks);
    assert!(cluster.meta.intend_packing(one.id, &[(node(20), blocks[2].digest)]).await.unwrap());
    cluster.meta.delete_object(&bucket, "two").await.unwrap();
    assert!(cluster.meta.pack(&change).await.is_err());
    assert_eq!(cluster.meta.stripe(one.id).await.unwrap().unwrap(), *one);
    // The claim that was made ahead is let go beside the others.
    cluster.meta.abandon_packing(one.id).await.unwrap();
    let releases = cluster.releases().await;
    assert!(releases.iter().any(|item| item.stripe == one.id && item.digests == [blocks[2].digest]));
    assert!(
        !cluster.meta.intend_packing(one.id, &[(node(20), blocks[2].digest)]).await.unwrap(),
        "not made again before it is let go"
    );
    cluster.meta.ack_releases(&releases).await.unwrap();
    assert!(cluster.meta.intend_packing(one.id, &[(node(20), blocks[2].digest)]).await.unwrap());
    cluster.assert_sound().await;
}

#[tokio::test]
async fn an_intent_that_was_fulfilled_lets_nothing_go() {
    let cluster = Cluster::new().await;
    let (_, blocks, [one, two]) = two_short(&cluster).await;
    let claims = [(node(20), blocks[2].digest)];
    assert!(cluster.meta.intend_packing(one.id, &claims).await.unwrap());
    assert!(!cluster.meta.intend_packing(one.id, &claims).await.unwrap(), "one merge at a time");
    cluster.meta.pack(&merge(Some(&one), &[&two], &blocks)).await.unwrap();
    assert!(cluster.meta.intend_packing(one.id, &claims).await.unwrap());
    cluster.meta.abandon_packing(one.id).await.unwrap();
    let kept = |item: &QueueItem| item.stripe == one.id && item.node == node(20);
    assert!(!cluster.releases().await.iter().any(kept), "the row holds it");
}

#[tokio::test]
async fn a_late_participant_of_an_absorbed_stripe_is_told_to_upload_again_and_of_a_survivor_is_not() {
    let cluster = Cluster::new().await;
    let bucket = cluster.bucket("b", false).await;
    let (first, one) = short(&[1, 2], 1);
    let (second, two) = short(&[3, 4], 20);
    let put = |key: &str, block: Entry, stripe: &Arc<Stripe>| {
        object(key, stored_in(vec![block], vec![stripe.clone()], true))
    };
    cluster.meta.put_object(&bucket, put("a", first[0], &one)).await.unwrap();
    cluster.meta.put_object(&bucket, put("b", second[0], &two)).await.unwrap();
    // The survivor keeps a block that nobody has committed yet.
    let keep = [first[0], first[1], second[0]];
    cluster.meta.pack(&merge(Some(&one), &[&two], &keep)).await.unwrap();
    cluster.meta.put_object(&bucket, put("c", first[1], &one)).await.unwrap();
    let late = cluster.meta.put_object(&bucket, put("d", second[1], &two)).await.unwrap_err();
    assert!(matches!(late, PutError::StripeReleased { stripe } if stripe == two.id), "{late}");
    cluster.assert_sound().await;
}

#[tokio::test]
async fn repair_releases_the_old_claim_and_does_not_come_back_before_it_is_let_go() {
    let cluster = Cluster::new().await;
    let bucket = cluster.bucket("b", false).await;
    let blocks: Vec<Entry> = (1..5).map(|seed| entry(seed, 100)).collect();
    let put = stored(blocks, true);
    let id = put.stripes[0].id;
    cluster.meta.put_object(&bucket, object("a", put)).await.unwrap();
    let mut moved = cluster.meta.stripe(id).await.unwrap().unwrap();
    let digest = moved.shards[1].unwrap().digest;
    let place = |stripe: &mut Stripe, at: u8| {
        stripe.version += 1;
        stripe.shards[1].as_mut().unwrap().node = Some(node(at));
    };
    place(&mut moved, 9);
    cluster.meta.put_stripe(&moved, 1).await.unwrap();
    let releases = cluster.releases().await;
    assert_eq!(
        releases.iter().map(|item| (item.node, item.digests.clone())).collect::<Vec<_>>(),
        [(node(2), vec![digest])]
    );
    assert!(cluster.meta.is_releasing(node(2), id).await.unwrap());
    place(&mut moved, 2);
    assert!(matches!(cluster.meta.put_stripe(&moved, 2).await, Err(PlacementError::Releasing { .. })));
    cluster.meta.ack_releases(&releases).await.unwrap();
    cluster.meta.put_stripe(&moved, 2).await.unwrap();
    assert!(!cluster.meta.is_releasing(node(2), id).await.unwrap());
    cluster.assert_sound().await;
}

#[tokio::test]
async fn blocks_remember_their_bucket() {
    let cluster = Cluster::new().await;
    let (public, private) = (cluster.bucket("open", true).await, cluster.bucket("shut", false).await);
    let (open, shut) = (entry(1, 10), entry(2, 10));
    let shared = stripe(&[open, shut]);
    for (bucket, key, block) in [(&public, "o", open), (&private, "s", shut)] {
        let put = object(key, stored_in(vec![block], vec![shared.clone()], !bucket.public));
        cluster.meta.put_object(bucket, put).await.unwrap();
    }
    let origins = cluster.meta.origins(&[Stripe::clone(&shared)]).await.unwrap();
    assert_eq!(origins.live.get(&open.digest), Some(&Some(public)));
    assert_eq!(origins.live.get(&shut.digest), Some(&Some(private.clone())));
    cluster.meta.delete_object(&private, "s").await.unwrap();
    let origins = cluster.meta.origins(&[Stripe::clone(&shared)]).await.unwrap();
    assert!(!origins.live.contains_key(&shut.digest), "dead");
}
