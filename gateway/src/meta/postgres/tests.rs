use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use super::*;
use crate::meta::conformance::{self, StoreFactory};

#[allow(unreachable_pub, dead_code)]
#[path = "../../../../tests/src/postgres.rs"]
pub(crate) mod server;

use server::Postgres;

mod outage;
mod tls;

/// A server of the test's own; every opening is another gateway.
struct OnServer {
    server: Postgres,
    instances: AtomicI64,
}

impl OnServer {
    fn start() -> Self {
        Self { server: Postgres::start().unwrap(), instances: AtomicI64::new(1) }
    }

    async fn open_store(&self) -> Arc<PostgresStore> {
        let instance = self.instances.fetch_add(1, Ordering::Relaxed);
        PostgresStore::open(&PostgresConfig::of_instance(self.server.url(), instance)).await.unwrap()
    }
}

#[async_trait]
impl StoreFactory for OnServer {
    async fn open(&self) -> Arc<dyn MetaStore> {
        self.open_store().await
    }

    async fn open_beside(&self, _open: &Arc<dyn MetaStore>) -> Arc<dyn MetaStore> {
        self.open_store().await
    }

    fn name(&self) -> String {
        self.server.url()
    }

    fn crash(&self) {
        self.server.crash().unwrap();
        self.server.up().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_is_a_metadata_store() {
    conformance::run(&OnServer::start()).await;
}

/// Counts up by compare-and-put through two stores while the database crashes under them, twice. An answer that did not
/// tell the truth would leave the counter behind the answers, or ahead of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_hear_the_truth_through_a_crash_of_the_database() {
    let factory = OnServer::start();
    let stores = [factory.open_store().await, factory.open_store().await];
    let answered = Arc::new(AtomicU64::new(0));
    let is_over = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..6usize)
        .map(|writer| {
            let (store, answered) = (Arc::clone(&stores[writer % 2]), Arc::clone(&answered));
            let is_over = Arc::clone(&is_over);
            tokio::spawn(async move {
                let key = format!("writer {writer}").into_bytes();
                let mut count = 0u64;
                while !is_over.load(Ordering::Relaxed) {
                    let mut transaction = Transaction::default();
                    let before = (count > 0).then(|| Bytes::copy_from_slice(&count.to_le_bytes()));
                    transaction.expect(key.clone(), before);
                    count += 1;
                    transaction.put(key.clone(), count.to_le_bytes().to_vec());
                    transaction.add(b"total".to_vec(), vec![1]);
                    // A conflict here would mean that an earlier answer was wrong: nobody else writes this key.
                    store.transact(transaction).await.unwrap();
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                count
            })
        })
        .collect();
    for round in 1..=2u64 {
        while answered.load(Ordering::Relaxed) < round * 200 {
            tokio::task::yield_now().await;
        }
        let server = &factory.server;
        tokio::task::block_in_place(|| {
            server.crash().unwrap();
            server.up().unwrap();
        });
    }
    let seen = answered.load(Ordering::Relaxed);
    while answered.load(Ordering::Relaxed) < seen + 100 {
        tokio::task::yield_now().await;
    }
    is_over.store(true, Ordering::Relaxed);
    let mut total = 0;
    for (number, writer) in writers.into_iter().enumerate() {
        let count = writer.await.unwrap();
        let kept = stores[0].get(format!("writer {number}").as_bytes()).await.unwrap().unwrap();
        assert_eq!(kept[..], count.to_le_bytes());
        total += count;
    }
    let sums = super::super::store::counters(&stores[1].get(b"total").await.unwrap().unwrap());
    assert_eq!(sums, vec![i64::try_from(total).unwrap()]);
}

#[tokio::test]
async fn a_database_that_is_not_there_is_named_and_may_come_back() {
    let error = PostgresStore::open(&PostgresConfig::of_instance("nonsense", 1)).await.err().unwrap();
    assert!(!error.is_retryable() && error.to_string().contains("address"), "{error}");
    let config = PostgresConfig::of_instance("postgres://u:hidden@h/d", 1);
    assert!(!format!("{config:?}").contains("hidden"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_store_takes_and_gives_nothing() {
    let store = OnServer::start();
    let store = store.open_store().await;
    store.close().await.unwrap();
    let error = store.transact(Transaction::default()).await.unwrap_err();
    assert!(matches!(error, TransactError::Store(StoreError::Closed)));
    assert!(matches!(store.get(b"a").await, Err(StoreError::Closed)));
}
