//! Locks that the nodes are told of: promised in the transaction that locks, kept after a crash.

use super::cluster::{MIB, entry, node, object, stored};
use super::*;
use crate::meta::{Retention, RetentionMode};

const UNTIL_MS: u64 = 1_000_000;

fn locked(key: &str, blocks: u64, mode: RetentionMode) -> NewObject {
    let first = u64::from(key.as_bytes()[0]) * 1000;
    let mut new = object(key, stored((first..first + blocks).map(|seed| entry(seed, MIB)).collect(), true));
    new.attributes.lock = Lock { retention: Some(Retention { mode, until_ms: UNTIL_MS }), legal_hold: false };
    new
}

async fn told(cluster: &Cluster) -> usize {
    let mut digests = 0;
    for number in 1..=6 {
        let items = cluster.meta.retention_queue_of(node(number), 1000).await.unwrap();
        assert!(items.iter().all(|item| item.until_ms == UNTIL_MS));
        digests += items.iter().map(|item| item.digests.len()).sum::<usize>();
    }
    digests
}

/// The gateway dies between the answer of the database and its own next step.
#[tokio::test]
async fn a_lock_that_was_committed_reaches_the_queue_after_a_crash() {
    let cluster = Cluster::new().await;
    let bucket = cluster.bucket("b", false).await;
    // Blocks in its own row, and blocks in pages.
    for (key, blocks, shards) in [("small", 3, 5), ("large", 12, 18)] {
        cluster.meta.put_object(&bucket, locked(key, blocks, RetentionMode::Compliance)).await.unwrap();
        assert_eq!(told(&cluster).await, 0);
        assert_eq!(cluster.meta.retain_left(100).await.unwrap(), 1);
        assert_eq!(told(&cluster).await, shards, "{key}");
        assert_eq!(cluster.meta.retain_left(100).await.unwrap(), 0, "it is forgotten when it is done");
        for number in 1..=6 {
            let items = cluster.meta.retention_queue_of(node(number), 1000).await.unwrap();
            cluster.meta.ack_retentions(&items).await.unwrap();
        }
    }
    cluster.meta.put_object(&bucket, locked("governed", 3, RetentionMode::Governance)).await.unwrap();
    assert_eq!(cluster.meta.retain_left(100).await.unwrap(), 0, "governance stays with the gateway");
}

#[tokio::test]
async fn parts_keep_their_checksums_through_completion_copy_and_restart() {
    let cluster = Cluster::new().await;
    let (bucket, other) = (cluster.bucket("b", false).await, cluster.bucket("c", false).await);
    let sum = |value: &str| ("crc64nvme".to_owned(), value.to_owned());
    let upload = cluster.meta.create_upload(&bucket, "k", Attributes::default()).await.unwrap().id;
    let mut parts = Vec::new();
    for (number, value) in [(1u16, "AAAAAAAAAAE="), (2, "AAAAAAAAAAI=")] {
        let blocks = (0..5).map(|seed| entry(u64::from(number) * 100 + seed, MIB)).collect();
        let etag = number.to_string();
        let attributes =
            Attributes { etag: etag.clone(), checksums: vec![sum(value)], ..Attributes::default() };
        let new = NewPart { key: "k".to_owned(), upload, number, attributes, stored: stored(blocks, true) };
        cluster.meta.put_part(&bucket, new).await.unwrap();
        parts.push((number, etag));
    }
    let completion = Completion {
        key: "k".to_owned(),
        upload,
        parts,
        etag: "whole".to_owned(),
        checksums: vec![sum("AAAAAAAAAAM=")],
        condition: PutCondition::Any,
    };
    let object = cluster.meta.complete_upload(&bucket, completion).await.unwrap();
    let copy =
        NewCopy { key: "copy".to_owned(), attributes: Attributes::default(), condition: PutCondition::Any };
    let copied = cluster.meta.copy_object(&bucket, &object, &other, &copy).await.unwrap();
    let (cluster, names) = (cluster.reopen().await, ["AAAAAAAAAAE=", "AAAAAAAAAAI="]);
    for object in [object, copied] {
        let views = cluster.meta.part_views(&object).await.unwrap();
        let kept: Vec<_> = views.iter().map(|part| part.checksum.clone().unwrap().1).collect();
        assert_eq!(kept, names);
        assert_eq!(views[1].range, u64::from(MIB) * 5..u64::from(MIB) * 10);
    }
    cluster.assert_sound().await;
}
