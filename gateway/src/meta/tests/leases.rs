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
    let (meta, clock) = beside(store).await;
    (meta, clock, directory)
}

/// A gateway with a clock of its own.
async fn beside(store: Arc<RocksStore>) -> (Arc<Meta>, Arc<HandClock>) {
    let clock = Arc::new(HandClock::default());
    let keys = NamespaceKeys::new(RootKey::from_bytes([1; 32]), NamespaceId(PublicKey([2; 32])));
    (Meta::open(store, keys, Arc::clone(&clock) as _).await.unwrap(), clock)
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

/// Every pair of clocks that are apart by up to a century, either way, in steps: whoever is alive renews, whoever is dead
/// is followed within two terms of its heir's own time, and never do the transactions of both pass.
#[tokio::test]
async fn clocks_that_disagree_cost_double_work_and_nothing_else() {
    const CENTURY_MS: u64 = 100 * 365 * 24 * 3_600_000;
    const START_MS: u64 = 2 * CENTURY_MS;
    for skew_ms in [0, 1, 14_999, 15_000, 60_000, 86_400_000, CENTURY_MS] {
        for heir_is_ahead in [false, true] {
            let directory = tempfile::tempdir().unwrap();
            let store = RocksStore::open(&RocksConfig::new(directory.path())).unwrap();
            let ((one, clock_one), (two, clock_two)) =
                (beside(Arc::clone(&store)).await, beside(Arc::clone(&store)).await);
            let set = |elapsed_ms: u64| {
                let (ahead, behind) = (START_MS + skew_ms + elapsed_ms, START_MS + elapsed_ms);
                let (first, second) = if heir_is_ahead { (behind, ahead) } else { (ahead, behind) };
                clock_one.0.store(first, Ordering::Relaxed);
                clock_two.0.store(second, Ordering::Relaxed);
            };
            set(0);
            let mut held = one.acquire_lease("upkeep", gateway(1), TERM).await.unwrap();
            let mut overtaken = None;
            // Both are alive and ask every four seconds, for two minutes.
            for turn in 1..=30u64 {
                set(turn * 4_000);
                if let Some(lease) = held.clone() {
                    held = one.renew_lease(&lease, TERM).await.unwrap();
                }
                if let Some(lease) = two.acquire_lease("upkeep", gateway(2), TERM).await.unwrap() {
                    overtaken.get_or_insert(lease);
                    break;
                }
            }
            // Only somebody whose clock runs ahead by more than a term takes over from the living.
            assert_eq!(overtaken.is_some(), heir_is_ahead && skew_ms >= 15_000, "{skew_ms} {heir_is_ahead}");
            let heir = match overtaken {
                Some(lease) => lease,
                // The first dies; the second asks on.
                None => {
                    let mut found = None;
                    for turn in 31..=31 + 8u64 {
                        set(turn * 4_000);
                        found = two.acquire_lease("upkeep", gateway(2), TERM).await.unwrap();
                        if found.is_some() {
                            break;
                        }
                    }
                    found.expect("the dead are followed within two terms")
                }
            };
            let write = || {
                let mut transaction = Transaction::default();
                transaction.put(schema::setting("witness"), b"x".to_vec());
                transaction
            };
            if let Some(lease) = held {
                assert!(!one.transact_owned(lease.fence(), write()).await.unwrap(), "it was overtaken");
                assert_eq!(one.renew_lease(&lease, TERM).await.unwrap(), None);
            }
            assert!(two.transact_owned(heir.fence(), write()).await.unwrap());
        }
    }
}
