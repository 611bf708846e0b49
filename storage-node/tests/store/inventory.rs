//! The inventory: entries in order, and which buckets changed.

use std::collections::BTreeSet;

use holdfast_protocol::digest::Digest;
use holdfast_storage_node::store::{InventoryEntry, IoMode, Store};

use crate::support::*;

fn bucket(digest: Digest) -> u16 {
    u16::from_be_bytes([digest.0[0], digest.0[1]])
}

async fn all(store: &Store, digest: Digest) -> Vec<(u8, bool)> {
    let entries = store.entries(bucket(digest), None, 100).await.unwrap();
    entries
        .iter()
        .filter(|entry| entry.digest == digest)
        .map(|entry| (entry.agreement.0[0], entry.live))
        .collect()
}

#[tokio::test]
async fn entries_name_who_keeps_what_once_each_and_page_by_page() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path(), IoMode::Threads, &TestClock::at(100))).unwrap();
    let block = bytes(1, 5000);
    let digest = Digest::of(&block);
    for (number, byte) in [(1, 1), (1, 2), (2, 1), (3, 1)] {
        put_claimed(&store, &block, claim(digest, agreement(number), tag(byte))).await.unwrap();
    }
    store.commit(agreement(2), &[first(digest)], 0).await.unwrap();
    assert_eq!(all(&store, digest).await, [(1, false), (2, true), (3, false)]);
    // In trash it is nobody's.
    store.delete(agreement(3), &[first(digest)], None).await.unwrap();
    assert_eq!(all(&store, digest).await, [(1, false), (2, true)]);
    // One at a time.
    let mut pages: Vec<InventoryEntry> = Vec::new();
    loop {
        let after = pages.last().map(|entry| (entry.digest, entry.agreement));
        let page = store.entries(bucket(digest), after, 1).await.unwrap();
        if page.is_empty() {
            break;
        }
        pages.extend(page);
    }
    assert_eq!(pages.iter().map(|entry| entry.agreement.0[0]).collect::<Vec<_>>(), [1, 2]);
    assert!(pages.iter().all(|entry| entry.len.bytes() == 5000));
    assert!(store.entries(bucket(digest).wrapping_add(1), None, 100).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_changed_bucket_stays_noted_until_what_was_seen_of_it_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::at(100);
    let store = Store::open(config(dir.path(), IoMode::Threads, &clock)).unwrap();
    assert!(store.changed_buckets().is_empty());
    let blocks: Vec<_> = (0..20).map(|seed| bytes(seed, 100)).collect();
    let mut expected = BTreeSet::new();
    for block in &blocks {
        put(&store, block).await.unwrap();
        expected.insert(bucket(Digest::of(block)));
    }
    let seen = store.changed_buckets();
    assert_eq!(seen.buckets().collect::<BTreeSet<_>>(), expected);
    // Changed again after the look: forgetting the look does not forget the change.
    let again = Digest::of(&blocks[3]);
    store.commit(agreement(1), &[first(again)], 0).await.unwrap();
    store.forget_changed(seen).await.unwrap();
    let left = store.changed_buckets();
    assert_eq!(left.buckets().collect::<Vec<_>>(), [bucket(again)]);
    store.forget_changed(left).await.unwrap();
    assert!(store.changed_buckets().is_empty());
    // Notes survive a crash that the index did not see, and an index that is lost is another generation.
    store.flush().await.unwrap();
    store.delete(agreement(1), &[first(again)], None).await.unwrap();
    let copy = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), copy.path());
    let killed = Store::open(config(copy.path(), IoMode::Threads, &clock)).unwrap();
    assert!(killed.changed_buckets().buckets().any(|changed| changed == bucket(again)));
    assert_eq!(killed.generation(), store.generation());
    drop(killed);
    std::fs::remove_dir_all(copy.path().join("index")).unwrap();
    let rebuilt = Store::open(config(copy.path(), IoMode::Threads, &clock)).unwrap();
    assert_ne!(rebuilt.generation(), store.generation());
    assert_eq!(rebuilt.changed_buckets().buckets().collect::<BTreeSet<_>>(), expected);
}
