//! A database that is away for longer than anybody waits.

use std::time::{Duration, Instant};

use super::*;

/// Many who ask while the database is away.
const ASKERS: usize = 300;
const PATIENCE: Duration = Duration::from_millis(500);
/// Were each to wait by itself, the last of those that share a connection would hear after 37 patiences.
const HEARD_WITHIN: Duration = Duration::from_secs(15);

/// Everybody hears of an outage after one patience, reads and writes, and is served again after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_is_told_to_all_who_wait_at_once_and_is_over_when_it_is_over() {
    let factory = OnServer::start();
    let config =
        PostgresConfig { patience: PATIENCE, ..PostgresConfig::of_instance(factory.server.url(), 1) };
    let store = PostgresStore::open(&config).await.unwrap();
    let mut transaction = Transaction::default();
    transaction.put(b"kept".to_vec(), b"1".to_vec());
    store.transact(transaction).await.unwrap();
    factory.server.crash().unwrap();
    let asked = Instant::now();
    let askers: Vec<_> = (0..ASKERS)
        .map(|asker| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                if asker % 2 == 0 {
                    return store.get(b"kept").await.err().map(TransactError::Store);
                }
                let mut transaction = Transaction::default();
                transaction.put(b"lost".to_vec(), b"1".to_vec());
                store.transact(transaction).await.err()
            })
        })
        .collect();
    for asker in askers {
        let error = asker.await.unwrap().expect("nothing can be answered");
        assert!(matches!(error, TransactError::Store(_)) && error.is_retryable(), "{error}");
    }
    assert!(asked.elapsed() < HEARD_WITHIN, "heard after {:?}", asked.elapsed());
    factory.server.up().unwrap();
    assert_eq!(store.get(b"kept").await.unwrap().as_deref(), Some(&b"1"[..]));
    assert_eq!(store.get(b"lost").await.unwrap(), None);
    let mut transaction = Transaction::default();
    transaction.put(b"again".to_vec(), b"1".to_vec());
    store.transact(transaction).await.unwrap();
}
