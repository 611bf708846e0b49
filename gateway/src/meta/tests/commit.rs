//! Puts, overwrites, deletes: what changes together, and what is released.

use super::cluster::{entry, new_bucket, node, object, stored, stored_in, stripe};
use super::*;

#[tokio::test]
async fn a_put_commits_everything_at_once() {
    let cluster = Cluster::new().await;
    let bucket = cluster.bucket("photos", false).await;
    let blocks: Vec<_> = (0..10u32).map(|seed| entry(seed.into(), 1000 + seed)).collect();
    let put = cluster.meta.put_object(&bucket, object("a", stored(blocks.clone(), true))).await.unwrap();
    let head = cluster.meta.object(&bucket, "a").await.unwrap().unwrap();
    assert_eq!((head.version, head.size, head.block_count), (put.version, total_len(&blocks), 10));
    assert_eq!(head.attributes.etag, "etag of a");

    let whole = cluster.read(&head, 0..u64::MAX).await;
    assert_eq!(
        whole.iter().map(|piece| piece.0).collect::<Vec<_>>(),
        blocks.iter().map(|b| b.digest).collect::<Vec<_>>()
    );
    assert_eq!(
        cluster.read(&head, 1500..2500).await,
        vec![(blocks[1].digest, 500, 501), (blocks[2].digest, 0, 499)]
    );
    assert!(cluster.read(&head, head.size..head.size + 5).await.is_empty());

    for block in &blocks {
        let located = cluster.meta.locate(&block.digest).await.unwrap().unwrap();
        let shard = located.stripe.shards[located.slot].unwrap();
        assert_eq!((shard.digest, shard.len), (block.digest, block.len));
        assert!(cluster.meta.wanted(&block.digest, located.stripe.id, shard.node.unwrap()).await.unwrap());
        assert!(!cluster.meta.wanted(&block.digest, located.stripe.id, node(77)).await.unwrap());
    }
    // Three stripes: two of 4+2 and one of 2+2, a row for each shard's node.
    assert_eq!(cluster.meta.commit_queue(None, 100).await.unwrap().len(), 6 + 6 + 4);
    assert_eq!(cluster.meta.usage(&bucket).await.unwrap().bytes, head.size);
    cluster.assert_sound().await;
}

#[tokio::test]
async fn an_object_without_bytes_has_no_block() {
    let cluster = Cluster::new().await;
    let bucket = cluster.bucket("b", false).await;
    cluster.meta.put_object(&bucket, object("empty", stored(vec![], false))).await.unwrap();
    let head = cluster.meta.object(&bucket, "empty").await.unwrap().unwrap();
    assert_eq!((head.size, head.block_count), (0, 0));
    assert!(cluster.read(&head, 0..10).await.is_empty());
    assert_eq!(cluster.assert_sound().await.blocks, 0);
    assert!(cluster.meta.delete_object(&bucket, "empty").await.unwrap());
    assert!(!cluster.meta.delete_object(&bucket, "empty").await.unwrap());
}

#[tokio::test]
async fn the_last_reference_releases_the_stripe() {
    let cluster = Cluster::new().await;
    let bucket = cluster.bucket("b", true).await;
    let block = entry(1, 100);
    let (first, second) = (stored(vec![block], false), stored(vec![block], false));
    let (older, stripe_id) = (first.stripes[0].id, second.stripes[0].id);
    cluster.meta.put_object(&bucket, object("one", first)).await.unwrap();
    cluster.meta.put_object(&bucket, object("two", second)).await.unwrap();
    // The copy that was just acknowledged takes over; the older may be beyond repair. Nothing lives there now.
    assert_eq!(cluster.meta.locate(&block.digest).await.unwrap().unwrap().stripe.id, stripe_id);
    assert_eq!(cluster.assert_sound().await.stripes, 1);
    let releases = cluster.releases().await;
    assert!(releases.len() == 3 && releases.iter().all(|item| item.stripe == older));
    cluster.meta.ack_releases(&releases).await.unwrap();

    cluster.meta.delete_object(&bucket, "one").await.unwrap();
    assert!(cluster.meta.locate(&block.digest).await.unwrap().is_some());
    assert!(cluster.releases().await.is_empty());
    cluster.meta.delete_object(&bucket, "two").await.unwrap();
    assert!(cluster.meta.locate(&block.digest).await.unwrap().is_none());
    assert!(cluster.meta.stripe(stripe_id).await.unwrap().is_none());
    let releases = cluster.releases().await;
    // One data block and two parity blocks, each at its node; nothing is left to commit there.
    assert_eq!(releases.len(), 3);
    assert!(releases.iter().all(|item| item.stripe == stripe_id && item.digests.len() == 1));
    assert!(cluster.meta.commit_queue(None, 10).await.unwrap().is_empty());
    cluster.meta.ack_releases(&releases).await.unwrap();
    assert!(cluster.releases().await.is_empty());
    cluster.assert_sound().await;
}

#[tokio::test]
async fn a_shared_stripe_stays_while_one_block_lives() {
    let cluster = Cluster::new().await;
    let bucket = cluster.bucket("b", false).await;
    let blocks = [entry(1, 10), entry(2, 20), entry(3, 30)];
    let shared = stripe(&blocks);
    for (at, block) in blocks.iter().enumerate() {
        let put = object(&at.to_string(), stored_in(vec![*block], vec![shared.clone()], true));
        cluster.meta.put_object(&bucket, put).await.unwrap();
    }
    assert_eq!(cluster.assert_sound().await.stripes, 1);
    assert_eq!(cluster.meta.commit_queue(None, 100).await.unwrap().len(), 5);
    for key in ["1", "0"] {
        cluster.meta.delete_object(&bucket, key).await.unwrap();
        assert!(cluster.releases().await.is_empty());
        cluster.assert_sound().await;
    }
    // Its neighbours are dead, but the stripe needs their bytes.
    assert!(cluster.meta.wanted(&blocks[0].digest, shared.id, node(1)).await.unwrap());
    cluster.meta.delete_object(&bucket, "2").await.unwrap();
    assert_eq!(cluster.releases().await.len(), 5);
    assert!(!cluster.meta.wanted(&blocks[0].digest, shared.id, node(1)).await.unwrap());
    cluster.assert_sound().await;
}

#[tokio::test]
async fn a_late_participant_of_a_released_stripe_is_told_to_upload_again() {
    let cluster = Cluster::new().await;
    let bucket = cluster.bucket("b", false).await;
    let (fast, slow) = (entry(1, 10), entry(2, 20));
    let shared = stripe(&[fast, slow]);
    let put = |key: &str, block| object(key, stored_in(vec![block], vec![shared.clone()], true));
    cluster.meta.put_object(&bucket, put("fast", fast)).await.unwrap();
    cluster.meta.delete_object(&bucket, "fast").await.unwrap();
    let error = cluster.meta.put_object(&bucket, put("slow", slow)).await.unwrap_err();
    assert!(matches!(error, PutError::StripeReleased { stripe } if stripe == shared.id), "{error}");
    assert!(error.is_retryable());
    assert!(cluster.meta.object(&bucket, "slow").await.unwrap().is_none());
    // Long after, the tombstone is forgotten.
    cluster.clock.0.store(schema::TOMBSTONE_MS - 1, Ordering::Relaxed);
    assert_eq!(cluster.meta.sweep(cluster.clock.now_ms(), 10).await.unwrap().tombstones, 0);
    let later = schema::TOMBSTONE_MS;
    let swept = cluster.meta.sweep(later, 10).await.unwrap().tombstones
        + cluster.meta.sweep(later, 10).await.unwrap().tombstones;
    assert_eq!(swept, 1);
    cluster.assert_sound().await;
}

#[tokio::test]
async fn an_overwrite_swaps_references_in_one_step() {
    let cluster = Cluster::new().await;
    let bucket = cluster.bucket("b", true).await;
    let (kept, gone, fresh) = (entry(1, 10), entry(2, 10), entry(3, 10));
    cluster.meta.put_object(&bucket, object("k", stored(vec![kept, gone, kept], false))).await.unwrap();
    cluster.meta.put_object(&bucket, object("k", stored(vec![fresh, kept], false))).await.unwrap();
    assert!(cluster.meta.locate(&gone.digest).await.unwrap().is_none());
    assert!(cluster.meta.locate(&kept.digest).await.unwrap().is_some());
    assert_eq!(cluster.meta.usage(&bucket).await.unwrap(), Usage { objects: 1, bytes: 20, upload_bytes: 0 });
    cluster.assert_sound().await;
    // The same bytes again, in stripes of their own: those take over, whether or not the references change.
    let again = stored(vec![fresh, kept], false);
    let stripes: Vec<_> = again.stripes.iter().map(|stripe| stripe.id).collect();
    cluster.meta.put_object(&bucket, object("k", again)).await.unwrap();
    for block in [fresh, kept] {
        let place = cluster.meta.locate(&block.digest).await.unwrap().unwrap();
        assert!(stripes.contains(&place.stripe.id));
    }
    assert!(cluster.releases().await.iter().all(|item| !stripes.contains(&item.stripe)));
    cluster.assert_sound().await;
}

#[tokio::test]
async fn conditions_and_damaged_uploads_change_nothing() {
    let cluster = Cluster::new().await;
    let bucket = cluster.bucket("b", true).await;
    let mut absent = object("k", stored(vec![entry(1, 10)], false));
    absent.condition = PutCondition::Etag("x".to_owned());
    assert!(matches!(cluster.meta.put_object(&bucket, absent).await, Err(PutError::PreconditionFailed)));
    cluster.meta.put_object(&bucket, object("k", stored(vec![entry(1, 10)], false))).await.unwrap();
    let mut present = object("k", stored(vec![entry(2, 10)], false));
    present.condition = PutCondition::Absent;
    assert!(matches!(cluster.meta.put_object(&bucket, present).await, Err(PutError::PreconditionFailed)));
    let mut matching = object("k", stored(vec![entry(2, 10)], false));
    matching.condition = PutCondition::Etag("etag of k".to_owned());
    cluster.meta.put_object(&bucket, matching).await.unwrap();

    let unplaced = object("u", stored_in(vec![entry(5, 10)], vec![stripe(&[entry(6, 10)])], false));
    assert!(matches!(cluster.meta.put_object(&bucket, unplaced).await, Err(PutError::Unplaced { .. })));
    let mut short = object("s", stored(vec![entry(7, 10)], false));
    short.stored.size = 11;
    assert!(matches!(cluster.meta.put_object(&bucket, short).await, Err(PutError::Size { .. })));
    let long_key = object(&"x".repeat(1025), stored(vec![], false));
    assert!(matches!(
        cluster.meta.put_object(&bucket, long_key).await,
        Err(PutError::Meta(MetaError::Bounds { .. }))
    ));
    assert_eq!(cluster.assert_sound().await.objects, 1);
}

#[tokio::test]
async fn a_bucket_goes_only_when_it_is_empty() {
    let cluster = Cluster::new().await;
    let bucket = cluster.bucket("b", false).await;
    let again = cluster.meta.create_bucket(new_bucket("b", false)).await.unwrap_err();
    assert!(matches!(again, BucketError::Exists { .. }), "{again}");
    cluster.meta.put_object(&bucket, object("k", stored(vec![], false))).await.unwrap();
    assert!(matches!(cluster.meta.delete_bucket("b").await, Err(BucketError::NotEmpty { .. })));
    cluster.meta.delete_object(&bucket, "k").await.unwrap();
    let upload = cluster.meta.create_upload(&bucket, "k", Attributes::default()).await.unwrap();
    assert!(matches!(cluster.meta.delete_bucket("b").await, Err(BucketError::NotEmpty { .. })));
    cluster.meta.abort_upload(&bucket, "k", upload.id).await.unwrap();
    cluster.meta.delete_bucket("b").await.unwrap();
    assert!(matches!(cluster.meta.delete_bucket("b").await, Err(BucketError::NotFound { .. })));
    let late = cluster.meta.put_object(&bucket, object("k", stored(vec![], false))).await;
    assert!(matches!(late, Err(PutError::NoSuchBucket)));
    // A bucket of the same name is another bucket.
    assert_ne!(cluster.bucket("b", false).await.id, bucket.id);
}

#[tokio::test]
async fn a_stripe_changes_only_from_the_version_that_was_read() {
    let cluster = Cluster::new().await;
    let bucket = cluster.bucket("b", false).await;
    let mut waiting = (*stripe(&[entry(1, 10)])).clone();
    waiting.shards[5].as_mut().unwrap().node = None;
    let put = object("k", stored_in(vec![entry(1, 10)], vec![Arc::new(waiting.clone())], true));
    cluster.meta.put_object(&bucket, put).await.unwrap();
    assert_eq!(cluster.meta.completion_queue(None, 10).await.unwrap(), vec![waiting.id]);
    let commits = cluster.meta.commit_queue(None, 10).await.unwrap();
    assert_eq!(commits.len(), 2);
    cluster.meta.ack_commits(&commits).await.unwrap();

    let mut placed = waiting.clone();
    placed.version = 2;
    placed.shards[5].as_mut().unwrap().node = Some(node(40));
    cluster.meta.put_stripe(&placed, 1).await.unwrap();
    assert!(cluster.meta.completion_queue(None, 10).await.unwrap().is_empty());
    let commits = cluster.meta.commit_queue_of(node(40), 10).await.unwrap();
    assert_eq!((commits.len(), commits[0].digests[0]), (1, placed.shards[5].unwrap().digest));
    assert_eq!(cluster.meta.commit_queue(None, 10).await.unwrap().len(), 1);
    assert_eq!(cluster.meta.stripe(placed.id).await.unwrap().unwrap(), placed);

    let stale = cluster.meta.put_stripe(&placed, 1).await.unwrap_err();
    assert!(matches!(stale, PlacementError::Version { found: 2, expected: 1, .. }), "{stale}");
    let mut other = placed.clone();
    other.version = 3;
    other.shards[0].as_mut().unwrap().digest = Digest::of(b"another");
    assert!(matches!(cluster.meta.put_stripe(&other, 2).await, Err(PlacementError::Shape { .. })));
    cluster.meta.delete_object(&bucket, "k").await.unwrap();
    assert!(matches!(cluster.meta.put_stripe(&placed, 2).await, Err(PlacementError::Gone { .. })));
    cluster.assert_sound().await;
}

#[tokio::test]
async fn a_large_object_is_unlinked_page_by_page() {
    let cluster = Cluster::new().await;
    let bucket = cluster.bucket("b", true).await;
    // The same 8 blocks again and again: many references, few rows.
    let count = usize::try_from(schema::UNLINK_AT_ONCE_MAX).unwrap() + 1;
    let blocks: Vec<_> = (0..count).map(|at| entry(at as u64 % 8, 10)).collect();
    let stripes = vec![stripe(&blocks[..4]), stripe(&blocks[4..8])];
    let put = object("big", stored_in(blocks, stripes, false));
    cluster.meta.put_object(&bucket, put).await.unwrap();
    let head = cluster.meta.object(&bucket, "big").await.unwrap().unwrap();
    assert_eq!(cluster.read(&head, 50_005..50_025).await.len(), 3);
    // What is held by a reader would rest in its grave until then.
    drop(head);
    assert!(cluster.meta.delete_object(&bucket, "big").await.unwrap());
    assert!(cluster.meta.object(&bucket, "big").await.unwrap().is_none());
    cluster.assert_sound().await;
    assert!(cluster.releases().await.is_empty());
    cluster.meta.sweep(0, 3).await.unwrap();
    cluster.assert_sound().await;
    while !cluster.meta.sweep(0, 100).await.unwrap().is_idle() {}
    assert_eq!(cluster.assert_sound().await.blocks, 0);
    assert_eq!(cluster.releases().await.len(), 2 * 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn participants_of_a_group_do_not_fail_each_other() {
    let cluster = Cluster::new().await;
    let bucket = cluster.bucket("b", true).await;
    let same = entry(999, 7);
    let mut writers = Vec::new();
    for group in 0..25u64 {
        let blocks: Vec<_> = (0..4).map(|slot| entry(group * 4 + slot, 10)).collect();
        let shared = stripe(&blocks);
        for (slot, block) in blocks.into_iter().enumerate() {
            let (meta, bucket) = (Arc::clone(&cluster.meta), bucket.clone());
            // Everybody also holds one block that all the others hold.
            let stripes = vec![shared.clone(), stripe(&[same])];
            let put = object(&format!("{group}/{slot}"), stored_in(vec![block, same], stripes, false));
            writers.push(tokio::spawn(async move { meta.put_object(&bucket, put).await.unwrap() }));
        }
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let report = cluster.assert_sound().await;
    assert_eq!((report.objects, report.blocks, report.stripes), (100, 101, 26));
    let mut deleters = Vec::new();
    for at in 0..100 {
        let (meta, bucket) = (Arc::clone(&cluster.meta), bucket.clone());
        deleters.push(tokio::spawn(async move {
            assert!(meta.delete_object(&bucket, &format!("{}/{}", at / 4, at % 4)).await.unwrap());
        }));
    }
    for deleter in deleters {
        deleter.await.unwrap();
    }
    let report = cluster.assert_sound().await;
    assert_eq!((report.objects, report.blocks, report.stripes), (0, 0, 0));
    // Each participant's own copy of the common block took over from the one before.
    assert_eq!(cluster.releases().await.len(), 25 * 6 + 100 * 3);
}
