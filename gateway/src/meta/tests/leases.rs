//! Leases: one owner at a time, and nothing of an overtaken one commits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast_protocol::time::{Clock, UnixMs};

use super::*;
use crate::crypt::NamespaceKeys;

const TERM: Duration = Duration::from_secs(15);

#[derive(Default)]
struct HandClock(AtomicU64);

impl Clock for HandClock {
    fn now_ms(&self) -> UnixMs {
        self.0.load(Ordering::Relaxed)
    }
}

fn gateway(number: u8) -> NodeId {
    NodeId(PublicKey([number; 32]))
}

async fn meta() -> (Arc<Meta>, Arc<HandClock>, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let store = RocksStore::open(&RocksConfig::new(directory.path())).unwrap();
    let clock = Arc::new(HandClock::default());
    let keys = NamespaceKeys::new(RootKey::from_bytes([1; 32]), NamespaceId(PublicKey([2; 32])));
    (Meta::open(store, keys, Arc::clone(&clock) as _).await.unwrap(), clock, directory)
}

#[tokio::test]
async fn a_lease_has_one_owner_until_it_ends() {
    let (meta, clock, _directory) = meta().await;
    let first = meta.acquire_lease("upkeep", gateway(1), TERM).await.unwrap().unwrap();
    assert_eq!(meta.acquire_lease("upkeep", gateway(2), TERM).await.unwrap(), None);
    assert!(meta.acquire_lease("other", gateway(2), TERM).await.unwrap().is_some());
    clock.0.store(14_999, Ordering::Relaxed);
    let renewed = meta.renew_lease(&first, TERM).await.unwrap().unwrap();
    assert_eq!(renewed.fence(), first.fence(), "a renewal changes nothing that transactions rely on");
    clock.0.store(15_001, Ordering::Relaxed);
    assert_eq!(meta.acquire_lease("upkeep", gateway(2), TERM).await.unwrap(), None);
    clock.0.store(14_999 + 15_000, Ordering::Relaxed);
    let second = meta.acquire_lease("upkeep", gateway(2), TERM).await.unwrap().unwrap();
    assert!(second.fence().number() > first.fence().number());
    assert_eq!(meta.renew_lease(&renewed, TERM).await.unwrap(), None);
    meta.release_lease(&renewed).await.unwrap();
    assert!(meta.holds(second.fence()).await.unwrap(), "an overtaken owner gives nothing back");
    meta.release_lease(&second).await.unwrap();
    assert!(meta.acquire_lease("upkeep", gateway(1), TERM).await.unwrap().is_some());
}

#[tokio::test]
async fn an_owner_that_comes_back_goes_on_at_once_and_its_last_life_commits_nothing() {
    let (meta, _clock, _directory) = meta().await;
    let before = meta.acquire_lease("upkeep", gateway(1), TERM).await.unwrap().unwrap();
    let after = meta.acquire_lease("upkeep", gateway(1), TERM).await.unwrap().unwrap();
    let write = || {
        let mut transaction = Transaction::default();
        transaction.put(schema::setting("witness"), b"x".to_vec());
        transaction
    };
    assert!(!meta.transact_owned(before.fence(), write()).await.unwrap());
    assert_eq!(meta.setting("witness").await.unwrap(), None);
    assert!(meta.transact_owned(after.fence(), write()).await.unwrap());
    assert!(meta.setting("witness").await.unwrap().is_some());
}
