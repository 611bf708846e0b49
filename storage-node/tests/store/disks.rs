//! Several disks behind one node: where blocks go, and what a disk that is away means.

use std::path::Path;
use std::sync::Arc;

use holdfast_protocol::digest::{BlockLen, Digest};
use holdfast_protocol::message::{BlockOutcome, ByteRange};
use holdfast_protocol::record::ClaimRef;
use holdfast_storage_node::disks::{DiskConfig, Disks, ResizeError};
use holdfast_storage_node::store::{Alarm, IoMode, NewBlock, OpenError, PutOutcome, ReadError, StoreError};

use crate::support::*;

const MIB: u64 = 1 << 20;

fn open(home: &Path, more: &[(&str, u64)]) -> Result<Arc<Disks>, OpenError> {
    let mut first = config(&home.join("home/store"), IoMode::Threads, &TestClock::at(100));
    first.capacity_bytes = 32 * MIB;
    let more: Vec<_> = more
        .iter()
        .map(|(name, capacity_bytes)| DiskConfig { dir: home.join(name), capacity_bytes: *capacity_bytes })
        .collect();
    std::fs::create_dir_all(home.join("home")).unwrap();
    Disks::open(&home.join("home"), first, &more)
}

async fn keep(disks: &Disks, data: &[u8], number: u8) -> PutOutcome {
    let mut buffer = disks.admit(BlockLen::of(data).unwrap()).await.unwrap();
    assert!(buffer.extend_from_slice(data));
    let (digest, tree) = holdfast_proofs::hash_block(data);
    let claim = claim(digest, agreement(1), tag(number));
    disks.put(buffer, NewBlock { digest, tree, claim }).await.unwrap()
}

async fn fetch(disks: &Disks, digest: Digest) -> Result<Option<Vec<u8>>, ReadError> {
    let Some(located) = disks.locate(digest).await? else { return Ok(None) };
    let range = ByteRange { start: 0, len: located.len.bytes() };
    Ok(Some(disks.read(&located, range).await?.to_vec()))
}

fn blocks() -> Vec<Vec<u8>> {
    (0..40).map(|seed| bytes(seed, 100_000)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_spread_over_disks_and_are_found_again() {
    let root = tempfile::tempdir().unwrap();
    let disks = open(root.path(), &[("second", 64 * MIB)]).unwrap();
    for block in blocks() {
        assert!(!keep(&disks, &block, 1).await.existed);
        assert!(keep(&disks, &block, 2).await.existed);
    }
    let each: Vec<u64> = disks.health().iter().map(|health| health.accounts.blocks).collect();
    assert_eq!(each.iter().sum::<u64>(), 40);
    assert!(each.iter().all(|count| *count >= 4), "{each:?}");
    let claims: Vec<ClaimRef> = blocks().iter().map(|block| first(Digest::of(block))).collect();
    let absent = ClaimRef(Digest::of(b"no"), tag(1));
    let mut asked = claims.clone();
    asked.insert(7, absent);
    let outcomes = disks.commit(agreement(1), &asked, 0).await.unwrap();
    assert!(
        outcomes
            .iter()
            .zip(&asked)
            .all(|(outcome, claim)| (*outcome == BlockOutcome::Absent) == (*claim == absent))
    );
    let accounts = disks.accounts();
    assert!(accounts.add_up());
    assert_eq!((accounts.capacity_bytes, accounts.claims), (96 * MIB, 80));
    let usage = disks.agreement_usage(agreement(1)).await.unwrap();
    assert_eq!((usage.claims, usage.bytes), (80, 8_000_000));
    let mut entries = 0;
    for bucket in disks.changed_buckets().buckets() {
        let page = disks.entries(bucket, None, 100).await.unwrap();
        assert!(page.iter().all(|entry| entry.live));
        entries += page.len();
    }
    assert_eq!(entries, 40);
    disks.close().await.unwrap();
    drop(disks);
    // Without being told of the second disk, the node remembers it.
    let disks = open(root.path(), &[]).unwrap();
    assert_eq!(disks.count(), 2);
    for block in blocks() {
        assert_eq!(fetch(&disks, Digest::of(&block)).await.unwrap(), Some(block));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_puts_at_once_make_one_copy() {
    let root = tempfile::tempdir().unwrap();
    let disks = open(root.path(), &[("second", 32 * MIB)]).unwrap();
    for seed in 0..20 {
        let block = bytes(seed, 5_000);
        let (one, two) = tokio::join!(keep(&disks, &block, 1), keep(&disks, &block, 2));
        assert!(one.existed != two.existed);
    }
    assert_eq!(disks.accounts().blocks, 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_not_mounted_is_away_and_taken_up_when_it_is_back() {
    let root = tempfile::tempdir().unwrap();
    let disks = open(root.path(), &[("second", 32 * MIB)]).unwrap();
    for block in blocks() {
        keep(&disks, &block, 1).await;
    }
    disks.close().await.unwrap();
    drop(disks);
    let (mounted, unmounted) = (root.path().join("second"), root.path().join("elsewhere"));
    std::fs::rename(&mounted, &unmounted).unwrap();
    std::fs::create_dir(&mounted).unwrap();
    let disks = open(root.path(), &[("second", 32 * MIB)]).unwrap();
    assert!(!disks.tend().await);
    assert_eq!(
        std::fs::read_dir(&mounted).unwrap().count(),
        0,
        "a new store was made beneath the mount point"
    );
    let health = disks.health();
    assert!(health[0].present && !health[1].present);
    assert!(matches!(health[1].alarms[..], [Alarm::Away { .. }]));
    let mut missing = Vec::new();
    for block in blocks() {
        match fetch(&disks, Digest::of(&block)).await {
            Ok(found) => assert_eq!(found, Some(block)),
            // Not absent, not lost.
            Err(ReadError::Away { .. }) => missing.push(first(Digest::of(&block))),
            Err(error) => panic!("{error}"),
        }
    }
    assert!(!missing.is_empty() && missing.len() < 40);
    assert!(matches!(disks.claim(agreement(1), missing[0]).await, Err(ReadError::Away { .. })));
    assert!(matches!(disks.commit(agreement(1), &missing, 0).await, Err(StoreError::Away { .. })));
    assert!(matches!(disks.entries(0, None, 10).await, Err(ReadError::Away { .. })));
    // What is there works, new blocks too.
    keep(&disks, &bytes(999, 70_000), 1).await;
    std::fs::remove_dir(&mounted).unwrap();
    std::fs::rename(&unmounted, &mounted).unwrap();
    assert!(disks.tend().await);
    assert!(
        disks.health().iter().all(|health| health.present && health.alarms.is_empty()),
        "{:?}",
        disks.health()
    );
    for block in blocks() {
        assert_eq!(fetch(&disks, Digest::of(&block)).await.unwrap(), Some(block));
    }
    assert_eq!(disks.commit(agreement(1), &missing, 0).await.unwrap()[0], BlockOutcome::Done);
    // And when it goes while the node runs.
    std::fs::rename(&mounted, &unmounted).unwrap();
    assert!(disks.tend().await);
    assert!(matches!(fetch(&disks, missing[0].0).await, Err(ReadError::Away { .. })));
    std::fs::rename(&unmounted, &mounted).unwrap();
    assert!(disks.tend().await);
    assert!(fetch(&disks, missing[0].0).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_that_changed_places_are_told_apart_and_strangers_are_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let more = [("second", 32 * MIB), ("third", 16 * MIB)];
    let disks = open(root.path(), &more).unwrap();
    for block in blocks() {
        keep(&disks, &block, 1).await;
    }
    disks.close().await.unwrap();
    drop(disks);
    let at = |name: &str| root.path().join(name);
    std::fs::rename(at("second"), at("spare")).unwrap();
    std::fs::rename(at("third"), at("second")).unwrap();
    std::fs::rename(at("spare"), at("third")).unwrap();
    let disks = open(root.path(), &more).unwrap();
    for block in blocks() {
        assert_eq!(fetch(&disks, Digest::of(&block)).await.unwrap(), Some(block));
    }
    disks.close().await.unwrap();
    drop(disks);
    // Another node's disk where the third was.
    std::fs::rename(at("third"), at("spare")).unwrap();
    let other = tempfile::tempdir().unwrap();
    drop(open(other.path(), &[("foreign", 16 * MIB)]).unwrap());
    std::fs::rename(other.path().join("foreign"), at("third")).unwrap();
    let disks = open(root.path(), &more).unwrap();
    let health = disks.health();
    let away = health.iter().find(|health| !health.present).unwrap();
    assert!(away.alarms[0].to_string().contains("instead of"), "{:?}", away.alarms);
}

#[tokio::test]
async fn a_node_whose_only_disk_is_missing_does_not_open_an_empty_one() {
    let root = tempfile::tempdir().unwrap();
    let disks = open(root.path(), &[]).unwrap();
    keep(&disks, b"something", 1).await;
    disks.close().await.unwrap();
    drop(disks);
    let store = root.path().join("home/store");
    std::fs::rename(&store, root.path().join("gone")).unwrap();
    let Err(error) = open(root.path(), &[]) else { panic!("an empty store was opened") };
    assert!(matches!(error, OpenError::Missing { .. }), "{error}");
    assert!(!store.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_offers_less_takes_no_more_and_says_what_is_too_much() {
    let root = tempfile::tempdir().unwrap();
    let disks = open(root.path(), &[("second", 64 * MIB)]).unwrap();
    for block in blocks() {
        keep(&disks, &block, 1).await;
    }
    let second = root.path().join("second");
    let used = |disks: &Disks| disks.health()[1].accounts.used_bytes;
    let before = used(&disks);
    assert!(before > 0 && disks.excess_bytes() == 0);
    assert_eq!(disks.offered_and_whole(), (96 * MIB, 96 * MIB));
    let unknown = disks.resize(&root.path().join("third"), MIB).unwrap_err();
    assert!(matches!(unknown, ResizeError::Unknown { .. }), "{unknown}");
    disks.resize(&second, before / 2).unwrap();
    assert_eq!(disks.excess_bytes(), before - before / 2);
    assert_eq!(disks.offered_and_whole(), (32 * MIB + before / 2, 96 * MIB));
    // New blocks go elsewhere, and those that are here stay readable.
    for seed in 100..140 {
        keep(&disks, &bytes(seed, 100_000), 1).await;
    }
    assert_eq!(used(&disks), before);
    for block in blocks() {
        assert_eq!(fetch(&disks, Digest::of(&block)).await.unwrap(), Some(block));
    }
    disks.close().await.unwrap();
    drop(disks);
    // It is written down: the next start offers as little.
    let disks = open(root.path(), &[]).unwrap();
    assert_eq!(disks.offered_and_whole(), (32 * MIB + before / 2, 32 * MIB + before / 2));
    disks.close().await.unwrap();
}
