//! Crashes, torn writes, failing disks, and bytes that imitate the store's own.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use holdfast_protocol::digest::Digest;
use holdfast_storage_node::disk::{FaultDisk, FaultPlan};
use holdfast_storage_node::store::{IoMode, PutError, Store, StoreError};

use crate::support::*;

crate::in_both_modes!(
    a_killed_store_replays_its_tail,
    a_store_without_its_index_rebuilds_it,
    blocks_that_imitate_pages_stay_blocks,
    a_torn_tail_ends_replay_and_is_cut_off,
    damage_before_a_later_group_is_stepped_over,
);

/// A copy of a running store's directory: what `kill -9` and a restart see.
fn killed(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_dir(dir, copy.path());
    copy
}

fn newest_extent(dir: &Path) -> PathBuf {
    let mut files: Vec<_> =
        std::fs::read_dir(dir.join("extents")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.pop().unwrap()
}

async fn a_killed_store_replays_its_tail(io: IoMode) {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::at(100);
    let store = Store::open(config(dir.path(), io, &clock)).unwrap();
    // Several extents long, half of it behind a durable index.
    let blocks: Vec<_> = (0..20).map(|seed| bytes(seed, 300_000)).collect();
    for (number, block) in blocks.iter().enumerate() {
        put(&store, block).await.unwrap();
        if number == 9 {
            store.flush().await.unwrap();
        }
    }
    store.commit(agreement(1), &[first(Digest::of(&blocks[3]))], 7).await.unwrap();
    store.delete(agreement(1), &[first(Digest::of(&blocks[4]))], Some(vec![5; 5000])).await.unwrap();
    let copy = killed(dir.path());
    let again = Store::open(config(copy.path(), io, &clock)).unwrap();
    assert_eq!(again.accounts(), store.accounts());
    for block in &blocks {
        assert_eq!(read(&again, Digest::of(block)).await.as_deref(), Some(&block[..]));
    }
    let kept = again.claim(agreement(1), first(Digest::of(&blocks[3]))).await.unwrap().unwrap();
    assert_eq!(kept.retain_until_ms, 7);
    assert_eq!(again.orders(agreement(1), 5).await.unwrap().len(), 1);
    put(&again, &bytes(500, 700_000)).await.unwrap();
    // Crash and replay once more, without a clean close between.
    let once_more = killed(copy.path());
    let last = Store::open(config(once_more.path(), io, &clock)).unwrap();
    assert_eq!(last.accounts(), again.accounts());
    assert!(read(&last, Digest::of(&bytes(500, 700_000))).await.is_some());
}

async fn a_store_without_its_index_rebuilds_it(io: IoMode) {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::at(100);
    let store = Store::open(config(dir.path(), io, &clock)).unwrap();
    for seed in 0..20 {
        let block = bytes(seed, 300_000);
        put(&store, &block).await.unwrap();
        if seed % 3 == 0 {
            store.commit(agreement(1), &[first(Digest::of(&block))], 0).await.unwrap();
        }
        if seed % 4 == 0 {
            store.delete(agreement(1), &[first(Digest::of(&block))], None).await.unwrap();
        }
    }
    let copy = killed(dir.path());
    std::fs::remove_dir_all(copy.path().join("index")).unwrap();
    let again = Store::open(config(copy.path(), io, &clock)).unwrap();
    assert_eq!(again.accounts(), store.accounts());
    for seed in 0..20 {
        let digest = Digest::of(&bytes(seed, 300_000));
        let (was, is) = (store.locate(digest).await.unwrap(), again.locate(digest).await.unwrap());
        assert_eq!(was.unwrap().claims, is.unwrap().claims);
    }
}

async fn blocks_that_imitate_pages_stay_blocks(io: IoMode) {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::at(100);
    let store = Store::open(config(dir.path(), io, &clock)).unwrap();
    let victim = bytes(1, 9000);
    put(&store, &victim).await.unwrap();
    store.delete(agreement(1), &[first(Digest::of(&victim))], Some(vec![3; 100])).await.unwrap();
    // The extent itself as a block: its head, a block's page, an order's, a page of entries.
    let image = std::fs::read(newest_extent(dir.path())).unwrap();
    for start in [0usize, 4096, 8192] {
        put(&store, &image[start..start + 65_536]).await.unwrap();
    }
    let before = store.accounts();
    let copy = killed(dir.path());
    let again = Store::open(config(copy.path(), io, &clock)).unwrap();
    assert_eq!(again.accounts(), before);
    // And when a tear leaves such a block's data where a header is looked for.
    drop(again);
    let torn = killed(dir.path());
    let extent = std::fs::OpenOptions::new().write(true).open(newest_extent(torn.path())).unwrap();
    let found = image.chunks(4096).rposition(|page| page.starts_with(b"HFRECORD")).unwrap() + 1;
    extent.write_all_at(&[0xff; 64], found as u64 * 4096).unwrap();
    std::fs::remove_dir_all(torn.path().join("index")).unwrap();
    let again = Store::open(config(torn.path(), io, &clock)).unwrap();
    let held = again.accounts();
    assert!(held.add_up() && held.blocks <= before.blocks, "{held:?}");
    assert!(held.used_bytes + held.trash_bytes <= before.used_bytes + before.trash_bytes);
}

async fn a_torn_tail_ends_replay_and_is_cut_off(io: IoMode) {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::at(100);
    let store = Store::open(config(dir.path(), io, &clock)).unwrap();
    put(&store, &bytes(1, 10_000)).await.unwrap();
    put(&store, &bytes(2, 100_000)).await.unwrap();
    // Tear the last record's data; then, in another copy, its page.
    for offset in [4096 + 16_384 + 4096 + 50_000u64, 4096 + 16_384 + 100] {
        let copy = killed(dir.path());
        let path = newest_extent(copy.path());
        let extent = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        extent.write_all_at(&[0; 8], offset).unwrap();
        extent.write_all_at(b"torn", offset).unwrap();
        let again = Store::open(config(copy.path(), io, &clock)).unwrap();
        assert!(read(&again, Digest::of(&bytes(1, 10_000))).await.is_some());
        assert!(again.locate(Digest::of(&bytes(2, 100_000))).await.unwrap().is_none());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 4096 + 16_384);
        // What is written there next is what is found there next.
        put(&again, &bytes(3, 4000)).await.unwrap();
        let last = killed(copy.path());
        let last = Store::open(config(last.path(), io, &clock)).unwrap();
        assert_eq!(last.accounts(), again.accounts());
    }
}

async fn damage_before_a_later_group_is_stepped_over(io: IoMode) {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::at(100);
    let store = Store::open(config(dir.path(), io, &clock)).unwrap();
    for seed in 1..=5 {
        put(&store, &bytes(seed, 10_000)).await.unwrap();
    }
    let copy = killed(dir.path());
    let extent = std::fs::OpenOptions::new().write(true).open(newest_extent(copy.path())).unwrap();
    extent.write_all_at(b"rot", 4096 + 16_384 + 20).unwrap();
    let again = Store::open(config(copy.path(), io, &clock)).unwrap();
    assert!(again.locate(Digest::of(&bytes(2, 10_000))).await.unwrap().is_none());
    for seed in [1, 3, 4, 5] {
        assert!(read(&again, Digest::of(&bytes(seed, 10_000))).await.is_some(), "{seed}");
    }
    assert!(again.accounts().add_up());
}

#[tokio::test]
async fn a_failed_sync_refuses_writes_until_reopened() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::at(100);
    for plan in [
        FaultPlan { fail_syncs: true, ..FaultPlan::default() },
        FaultPlan { fail_writes: true, ..FaultPlan::default() },
    ] {
        let disk = FaultDisk::new();
        let store = Store::open(faulty(dir.path(), &disk, &clock)).unwrap();
        let (good, bad) = (bytes(1, 10_000), bytes(2, 10_000));
        put(&store, &good).await.unwrap();
        let before = store.accounts();
        disk.plan(plan);
        let refused = put(&store, &bad).await.unwrap_err();
        assert!(matches!(refused, PutError::Store(StoreError::Failed { .. })), "{refused}");
        disk.plan(FaultPlan::default());
        assert!(put(&store, &bad).await.is_err());
        assert!(store.commit(agreement(1), &[first(Digest::of(&good))], 0).await.is_err());
        assert!(store.failure().is_some());
        assert_eq!(store.accounts(), before);
        assert!(store.locate(Digest::of(&bad)).await.unwrap().is_none());
        assert!(read(&store, Digest::of(&good)).await.is_some());
        assert!(store.close().await.is_err());
        drop(store);
        let store = Store::open(faulty(dir.path(), &FaultDisk::new(), &clock)).unwrap();
        assert!(store.locate(Digest::of(&bad)).await.unwrap().is_none());
        assert!(read(&store, Digest::of(&good)).await.is_some());
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_disk_without_room_refuses_puts_but_takes_deletions() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::at(100);
    let disk = FaultDisk::new();
    let store = Store::open(faulty(dir.path(), &disk, &clock)).unwrap();
    put(&store, &bytes(1, 10_000)).await.unwrap();
    disk.plan(FaultPlan { full: true, ..FaultPlan::default() });
    let refused = put(&store, &bytes(2, 500_000)).await.unwrap_err();
    assert!(matches!(refused, PutError::DiskFull { .. }), "{refused}");
    store.delete(agreement(1), &[first(Digest::of(&bytes(1, 10_000)))], None).await.unwrap();
    disk.plan(FaultPlan::default());
    put(&store, &bytes(2, 500_000)).await.unwrap();
    assert!(store.accounts().add_up() && store.failure().is_none());
}

#[tokio::test]
async fn a_read_error_is_an_error_and_not_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let disk = FaultDisk::new();
    let store = Store::open(faulty(dir.path(), &disk, &TestClock::at(100))).unwrap();
    put(&store, &bytes(1, 10_000)).await.unwrap();
    let located = store.locate(Digest::of(&bytes(1, 10_000))).await.unwrap().unwrap();
    disk.plan(FaultPlan { fail_reads: true, ..FaultPlan::default() });
    let range = holdfast_protocol::message::ByteRange { start: 0, len: 10 };
    assert!(store.read(&located, range).await.unwrap_err().is_retryable());
    assert!(store.tree(&located).await.is_err());
}
