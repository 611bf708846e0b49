//! Stores as earlier releases left them, byte for byte, still open with everything in them.

use std::path::{Path, PathBuf};

use holdfast_protocol::digest::Digest;
use holdfast_protocol::record::ClaimState;
use holdfast_storage_node::store::{IoMode, Store};

use crate::support::*;

fn fixture(name: &str) -> tempfile::TempDir {
    let from: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&from, dir.path());
    dir
}

/// What every fixture of version 1 holds: see `tests/fixtures/README.md`.
async fn check_version_one(dir: &Path) {
    let store = Store::open(config(dir, IoMode::Threads, &TestClock::at(5_000))).unwrap();
    let states = |claims: &[holdfast_protocol::record::Claim]| {
        claims.iter().map(|c| (c.tag, c.state)).collect::<Vec<_>>()
    };
    let of = |seed: u64, len: usize| Digest::of(&bytes(seed, len));
    for (seed, len) in [(1, 1), (2, 4_096), (3, 20_000), (4, 40_000)] {
        assert_eq!(read(&store, of(seed, len)).await.as_deref(), Some(&bytes(seed, len)[..]), "block {seed}");
    }
    let live = store.locate(of(3, 20_000)).await.unwrap().unwrap();
    assert_eq!(states(&live.claims), [(tag(1), ClaimState::Live), (tag(2), ClaimState::Provisional)]);
    assert_eq!(live.claims[0].retain_until_ms, 77);
    let trash = store.locate(of(4, 40_000)).await.unwrap().unwrap();
    assert_eq!(states(&trash.claims), [(tag(1), ClaimState::Trash)]);
    assert!(store.locate(of(5, 9_000)).await.unwrap().is_none());
    assert!(store.is_lost(of(6, 100)).await.unwrap());
    assert_eq!(store.losses(None, 10).await.unwrap()[0].digest, of(6, 100));
    assert_eq!(store.orders(agreement(1), 10).await.unwrap()[0].bytes, bytes(77, 300));
    let accounts = store.accounts();
    assert!(accounts.add_up());
    assert_eq!((accounts.used_bytes, accounts.trash_bytes), (8_192 + 8_192 + 24_576, 45_056));
    assert_eq!((accounts.blocks, accounts.claims, accounts.paid_bytes), (3, 4, 20_000));
    let usage = store.agreement_usage(agreement(1)).await.unwrap();
    assert_eq!((usage.claims, usage.bytes, usage.page_bytes), (4, 44_097, 65_536));
    // And it goes on from there.
    put(&store, &bytes(8, 700)).await.unwrap();
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_store_of_version_one_opens_with_its_index() {
    let dir = fixture("store-v1");
    check_version_one(dir.path()).await;
}

#[tokio::test]
async fn a_store_of_version_one_is_rebuilt_from_its_extents() {
    let dir = fixture("store-v1");
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    check_version_one(dir.path()).await;
}
