//! Disks that lose, hide or spoil blocks: what the scrub finds, what a second put finds, what is declared lost.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use holdfast_protocol::digest::Digest;
use holdfast_storage_node::disk::{FaultDisk, FaultPlan};
use holdfast_storage_node::store::{Alarm, IoMode, ReadError, ScrubStep, Store, StoreConfig};

use crate::support::*;

/// Ten minutes: how long an unreadable block waits for its second look.
const WAIT_MS: u64 = 10 * 60 * 1000;

crate::in_both_modes!(
    a_scrub_verifies_every_block_once_a_pass,
    wrong_bytes_are_declared_lost_and_remembered,
    a_bad_header_page_is_written_again_with_every_claim,
    a_second_put_of_a_rotten_block_mends_it_for_everybody,
    a_second_put_looks_at_the_held_copy_only_when_nobody_has_lately,
);

/// Steps until a pass ends; what all steps did.
async fn pass(store: &Store, now_ms: u64) -> ScrubStep {
    let mut sum = ScrubStep::default();
    for _ in 0..10_000 {
        let step = store.scrub_step(now_ms).await.unwrap();
        sum.verified += step.verified;
        sum.bytes += step.bytes;
        sum.rewritten += step.rewritten;
        sum.lost.extend(step.lost);
        if step.ended {
            return sum;
        }
    }
    panic!("a pass never ended");
}

/// Spoils `bytes` bytes at `skip` bytes behind where `data` begins in an extent.
fn spoil(dir: &Path, data: &[u8], skip: i64) {
    for entry in std::fs::read_dir(dir.join("extents")).unwrap() {
        let path = entry.unwrap().path();
        let image = std::fs::read(&path).unwrap();
        let page = &data[..data.len().min(4096)];
        let Some(at) = image.chunks(4096).position(|chunk| chunk.starts_with(page)) else { continue };
        let at = i64::try_from(at).unwrap() * 4096 + skip;
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(b"rotten", u64::try_from(at).unwrap()).unwrap();
        file.sync_all().unwrap();
        // Mixing buffered writes with O_DIRECT reads: the page cache must not answer later looks of this test.
        return;
    }
    panic!("the block is in no extent");
}

async fn a_scrub_verifies_every_block_once_a_pass(io: IoMode) {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::at(100);
    let store = Store::open(config(dir.path(), io, &clock)).unwrap();
    for seed in 0..20 {
        put(&store, &bytes(seed, 300_000)).await.unwrap();
    }
    store.delete(agreement(1), &[first(Digest::of(&bytes(3, 300_000)))], None).await.unwrap();
    let sum = pass(&store, 100).await;
    assert_eq!((sum.verified, sum.lost.len(), sum.rewritten), (20, 0, 0));
    let progress = store.scrub_progress();
    assert_eq!((progress.pass, progress.last_ended_ms), (2, 100));
    // In the middle of the second pass the store is closed; the next start goes on there.
    while store.scrub_progress().verified_blocks < 12 {
        store.scrub_step(200).await.unwrap();
    }
    store.close().await.unwrap();
    drop(store);
    let store = Store::open(config(dir.path(), io, &clock)).unwrap();
    let rest = pass(&store, 300).await;
    assert!(rest.verified < 20 && rest.verified >= 8, "{}", rest.verified);
}

async fn wrong_bytes_are_declared_lost_and_remembered(io: IoMode) {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::at(100);
    let store = Store::open(config(dir.path(), io, &clock)).unwrap();
    let blocks: Vec<_> = (0..5).map(|seed| bytes(seed, 100_000)).collect();
    for block in &blocks {
        put(&store, block).await.unwrap();
    }
    store.close().await.unwrap();
    drop(store);
    spoil(dir.path(), &blocks[2], 50_000);
    let store = Store::open(config(dir.path(), io, &clock)).unwrap();
    let digest = Digest::of(&blocks[2]);
    let sum = pass(&store, 777).await;
    assert_eq!((sum.verified, &sum.lost[..]), (4, &[digest][..]));
    assert!(store.is_lost(digest).await.unwrap());
    let losses = store.losses(None, 10).await.unwrap();
    assert_eq!(losses.len(), 1);
    assert_eq!((losses[0].digest, losses[0].len, losses[0].declared_ms), (digest, 100_000, 100));
    assert!(store.losses(Some(digest), 10).await.unwrap().is_empty());
    assert!(store.health().alarms.contains(&Alarm::Losses { count: 1 }));
    assert!(store.accounts().add_up());
    // Remembered through a rebuild, and forgotten with the next put.
    store.close().await.unwrap();
    drop(store);
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    let store = Store::open(config(dir.path(), io, &clock)).unwrap();
    assert_eq!(store.losses(None, 10).await.unwrap(), losses);
    put(&store, &blocks[2]).await.unwrap();
    assert!(store.losses(None, 10).await.unwrap().is_empty());
    assert_eq!(pass(&store, 888).await.verified, 5);
}

async fn a_bad_header_page_is_written_again_with_every_claim(io: IoMode) {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::at(100);
    let store = Store::open(config(dir.path(), io, &clock)).unwrap();
    let blocks: Vec<_> = (0..5).map(|seed| bytes(seed, 100_000)).collect();
    for block in &blocks {
        put(&store, block).await.unwrap();
    }
    let digest = Digest::of(&blocks[2]);
    store.commit(agreement(1), &[first(digest)], 55).await.unwrap();
    for number in 2..5 {
        put_claimed(&store, &blocks[2], claim(digest, agreement(number), tag(number))).await.unwrap();
    }
    let before = store.locate(digest).await.unwrap().unwrap().claims;
    let accounts = store.accounts();
    store.close().await.unwrap();
    drop(store);
    spoil(dir.path(), &blocks[2], -2000);
    let store = Store::open(config(dir.path(), io, &clock)).unwrap();
    let located = store.locate(digest).await.unwrap().unwrap();
    assert!(matches!(store.tree(&located).await, Err(ReadError::Damaged { .. })));
    // Which block the bad page belonged to is found through the index, behind the walk; it ends with the next pass.
    let (a, b) = (pass(&store, 777).await, pass(&store, 778).await);
    assert_eq!((a.rewritten + b.rewritten, a.lost.len() + b.lost.len()), (1, 0));
    for _start in 0..2 {
        let located = store.locate(digest).await.unwrap().unwrap();
        assert_eq!(located.claims, before);
        assert!(store.tree(&located).await.is_ok());
        assert_eq!(read(&store, digest).await.as_deref(), Some(&blocks[2][..]));
        assert_eq!(store.accounts().used_bytes, accounts.used_bytes);
        assert!(store.accounts().add_up());
    }
    store.close().await.unwrap();
    drop(store);
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    let store = Store::open(config(dir.path(), io, &clock)).unwrap();
    assert_eq!(store.locate(digest).await.unwrap().unwrap().claims, before);
    assert_eq!(read(&store, digest).await.as_deref(), Some(&blocks[2][..]));
}

async fn a_second_put_of_a_rotten_block_mends_it_for_everybody(io: IoMode) {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::at(100);
    let store = Store::open(config(dir.path(), io, &clock)).unwrap();
    let block = bytes(1, 100_000);
    let digest = Digest::of(&block);
    put(&store, &block).await.unwrap();
    store.commit(agreement(1), &[first(digest)], 0).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    spoil(dir.path(), &block, 70_000);
    let store = Store::open(config(dir.path(), io, &clock)).unwrap();
    assert_ne!(read(&store, digest).await.as_deref(), Some(&block[..]));
    let outcome = put_claimed(&store, &block, claim(digest, agreement(2), tag(2))).await.unwrap();
    assert!(outcome.existed);
    assert_eq!(read(&store, digest).await.as_deref(), Some(&block[..]));
    let claims = store.locate(digest).await.unwrap().unwrap().claims;
    assert_eq!(claims.iter().map(|claim| claim.agreement).collect::<Vec<_>>(), [agreement(1), agreement(2)]);
    assert!(!store.is_lost(digest).await.unwrap() && store.accounts().add_up());
    store.reclaim(100).await.unwrap();
    assert_eq!(read(&store, digest).await.as_deref(), Some(&block[..]));
}

async fn a_second_put_looks_at_the_held_copy_only_when_nobody_has_lately(io: IoMode) {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::at(100);
    let store = Store::open(config(dir.path(), io, &clock)).unwrap();
    let block = bytes(1, 100_000);
    let digest = Digest::of(&block);
    put(&store, &block).await.unwrap();
    spoil(dir.path(), &block, 70_000);
    // Hashed when it came, a moment ago: the second put believes it.
    put_claimed(&store, &block, claim(digest, agreement(2), tag(2))).await.unwrap();
    assert_eq!(store.locate(digest).await.unwrap().unwrap().claims.len(), 2);
    // A day later it does not.
    clock.set(100 + 24 * 3600 * 1000);
    put_claimed(&store, &block, claim(digest, agreement(3), tag(3))).await.unwrap();
    assert_eq!(read(&store, digest).await.as_deref(), Some(&block[..]));
}

#[tokio::test]
async fn an_unreadable_block_is_lost_only_when_it_stays_unreadable() {
    let dir = tempfile::tempdir().unwrap();
    let (clock, disk) = (TestClock::at(100), FaultDisk::new());
    let store = Store::open(faulty(dir.path(), &disk, &clock)).unwrap();
    let (good, bad) = (bytes(1, 50_000), bytes(2, 50_000));
    put(&store, &good).await.unwrap();
    put(&store, &bad).await.unwrap();
    // The second block's data: behind the head, the first record and its own page.
    let at = 4096 + (4096 + 53_248) + 4096 + 8192;
    disk.unreadable(at..at + 4096);
    let first_pass = pass(&store, 1_000).await;
    assert_eq!((first_pass.verified, first_pass.lost.len()), (1, 0));
    assert_eq!(store.scrub_progress().suspects, 1);
    assert!(store.health().alarms.iter().any(|alarm| matches!(alarm, Alarm::ReadErrors { .. })));
    // Too early for a second look.
    assert!(pass(&store, 1_000 + WAIT_MS - 1).await.lost.is_empty());
    assert!(store.locate(Digest::of(&bad)).await.unwrap().is_some());
    let second = store.scrub_step(1_000 + WAIT_MS).await.unwrap();
    assert_eq!(second.lost, [Digest::of(&bad)]);
    assert!(store.is_lost(Digest::of(&bad)).await.unwrap());
    assert!(read(&store, Digest::of(&good)).await.is_some());
}

#[tokio::test]
async fn a_block_that_becomes_readable_again_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (clock, disk) = (TestClock::at(100), FaultDisk::new());
    let store = Store::open(faulty(dir.path(), &disk, &clock)).unwrap();
    let block = bytes(2, 50_000);
    put(&store, &block).await.unwrap();
    disk.unreadable(12_288..16_384);
    assert_eq!(pass(&store, 1_000).await.verified, 0);
    disk.unreadable(0..0);
    store.scrub_step(1_000 + WAIT_MS).await.unwrap();
    assert_eq!(store.scrub_progress().suspects, 0);
    assert_eq!(read(&store, Digest::of(&block)).await.as_deref(), Some(&block[..]));
}

#[tokio::test]
async fn a_disk_that_spoils_everything_stops_the_scrub_instead_of_being_believed() {
    let dir = tempfile::tempdir().unwrap();
    let (clock, disk) = (TestClock::at(100), FaultDisk::new());
    let wide = StoreConfig { extent_bytes: 32 << 20, ..faulty(dir.path(), &disk, &clock) };
    let store = Store::open(wide).unwrap();
    for seed in 0..1_010 {
        put(&store, &bytes(seed, 64)).await.unwrap();
    }
    disk.plan(FaultPlan { spoil_reads: true, ..FaultPlan::default() });
    let mut lost = 0;
    for _ in 0..2_100 {
        // The header pages are spoilt alike: what hides behind them is found through the index.
        lost += store.scrub_step(1_000).await.unwrap().lost.len();
    }
    assert!(lost <= 1_000, "{lost}");
    assert!(store.health().alarms.iter().any(|alarm| matches!(alarm, Alarm::ScrubStopped { .. })));
    assert!(store.accounts().blocks >= 10);
}

#[tokio::test]
async fn blocks_stop_before_the_file_system_is_full_and_go_on_when_it_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let (clock, disk) = (TestClock::at(100), FaultDisk::new());
    let reserve_bytes = 100 << 20;
    let store = Store::open(StoreConfig { reserve_bytes, ..faulty(dir.path(), &disk, &clock) }).unwrap();
    put(&store, &bytes(1, 10_000)).await.unwrap();
    let free = |free_bytes| FaultPlan { free_bytes: Some(free_bytes), ..FaultPlan::default() };
    disk.plan(free(reserve_bytes));
    let refused = put(&store, &bytes(2, 900_000)).await.unwrap_err();
    assert!(refused.to_string().contains("full"), "{refused}");
    assert!(refused.is_retryable());
    let health = store.health();
    assert!(!health.takes_blocks && health.alarms.iter().any(|alarm| matches!(alarm, Alarm::Full { .. })));
    // Told to delete, it does; reads go on.
    store.delete(agreement(1), &[first(Digest::of(&bytes(1, 10_000)))], Some(vec![1; 5000])).await.unwrap();
    assert!(read(&store, Digest::of(&bytes(1, 10_000))).await.is_some());
    disk.plan(free(reserve_bytes + (10 << 20)));
    put(&store, &bytes(2, 900_000)).await.unwrap();
    let health = store.health();
    assert!(health.takes_blocks, "{:?}", health.alarms);
    assert!(!health.alarms.iter().any(|alarm| matches!(alarm, Alarm::Full { .. })));
}

#[tokio::test]
async fn a_directory_that_is_swapped_under_a_running_store_is_away_and_nothing_in_it_is_lost() {
    let root = tempfile::tempdir().unwrap();
    let (dir, elsewhere) = (root.path().join("disk"), root.path().join("unmounted"));
    let clock = TestClock::at(100);
    let store = Store::open(config(&dir, IoMode::Threads, &clock)).unwrap();
    let blocks: Vec<_> = (0..8).map(|seed| bytes(seed, 900_000)).collect();
    for block in &blocks {
        put(&store, block).await.unwrap();
    }
    assert!(store.is_present());
    // An empty mount point, as a lazy unmount leaves it.
    std::fs::rename(&dir, &elsewhere).unwrap();
    std::fs::create_dir(&dir).unwrap();
    assert!(matches!(store.scrub_step(1_000).await, Err(ReadError::Away { .. })));
    let health = store.health();
    assert!(!health.present && matches!(health.alarms[0], Alarm::Away { .. }), "{:?}", health.alarms);
    assert!(put(&store, &bytes(100, 900_000)).await.is_err());
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0, "something was written beneath the mount point");
    assert!(store.losses(None, 10).await.unwrap().is_empty());
    // What is open is still read.
    assert_eq!(read(&store, Digest::of(&blocks[7])).await.as_deref(), Some(&blocks[7][..]));
    drop(store);
    std::fs::remove_dir(&dir).unwrap();
    std::fs::rename(&elsewhere, &dir).unwrap();
    let store = Arc::new(Store::open(config(&dir, IoMode::Threads, &clock)).unwrap());
    for block in &blocks {
        assert_eq!(read(&store, Digest::of(block)).await.as_deref(), Some(&block[..]));
    }
}
