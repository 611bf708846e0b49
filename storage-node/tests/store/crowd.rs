//! Many callers at once on a disk whose power goes: two groups are on their way then, and either may be torn.

use std::sync::Arc;

use futures::future::join_all;
use holdfast_protocol::digest::Digest;
use holdfast_storage_node::disk::FaultDisk;
use holdfast_storage_node::store::Store;
use proptest::prelude::*;

use crate::support::*;

/// Blocks that are put at once, and how often in a row.
const CROWD: u64 = 24;
const WAVES: u64 = 3;

fn content(number: u64) -> Vec<u8> {
    let len = [1, 5000, 17_000, 70_000, 120_000][usize::try_from(number % 5).unwrap()];
    bytes(number, len)
}

/// Puts a crowd of blocks, each followed by its commit; answers which were acknowledged: put, and committed.
async fn wave(store: &Arc<Store>, first_number: u64) -> Vec<(u64, bool, bool)> {
    let one = |number: u64| {
        let store = Arc::clone(store);
        tokio::spawn(async move {
            let data = content(number);
            let is_put = put(&store, &data).await.is_ok();
            let claims = [first(Digest::of(&data))];
            let is_live = is_put && store.commit(agreement(1), &claims, 0).await.is_ok();
            (number, is_put, is_live)
        })
    };
    let done = join_all((first_number..first_number + CROWD).map(one)).await;
    done.into_iter().map(|one| one.unwrap()).collect()
}

async fn crash_in_a_crowd(changes: u64, luck: u64, rebuild: bool) {
    let (dir, clock, disk) = (tempfile::tempdir().unwrap(), TestClock::at(100), FaultDisk::new());
    let store = Store::open(faulty(dir.path(), &disk, &clock)).unwrap();
    disk.blow_after(changes);
    let mut done = Vec::new();
    for number in 0..WAVES {
        done.extend(wave(&store, number * CROWD).await);
    }
    disk.crash(|_, offset| luck.rotate_right((offset / 4096 % 64) as u32) & 1 == 1).unwrap();
    let copy = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), copy.path());
    if rebuild {
        std::fs::remove_dir_all(copy.path().join("index")).unwrap();
    }
    let again = Store::open(faulty(copy.path(), &FaultDisk::new(), &clock)).unwrap();
    assert!(again.accounts().add_up());
    for (number, is_put, is_live) in done {
        let data = content(number);
        let located = again.locate(Digest::of(&data)).await.unwrap();
        assert!(located.is_some() || !is_put, "block {number} was acknowledged and is gone");
        let Some(located) = located else { continue };
        assert_eq!(read(&again, Digest::of(&data)).await.as_deref(), Some(&data[..]), "block {number}");
        let live =
            located.claims.iter().any(|claim| claim.state == holdfast_protocol::record::ClaimState::Live);
        assert!(live || !is_live, "the commit of block {number} was acknowledged and is gone");
    }
    // And it goes on from there.
    for (number, is_put, is_live) in wave(&again, 1_000).await {
        assert!(is_put && is_live, "block {number} after the crash");
    }
    again.close().await.unwrap();
}

fn cases() -> u32 {
    std::env::var("HOLDFAST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_crowd_keeps_what_was_acknowledged(changes in 0..120u64, luck in any::<u64>(), rebuild in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        runtime.block_on(crash_in_a_crowd(changes, luck, rebuild));
    }
}
