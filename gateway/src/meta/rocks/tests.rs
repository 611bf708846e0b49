use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;

use super::*;
use crate::meta::conformance::{self, StoreFactory};
use crate::meta::store::Precondition;

struct InDirectory(tempfile::TempDir);

#[async_trait]
impl StoreFactory for InDirectory {
    async fn open(&self) -> Arc<dyn MetaStore> {
        RocksStore::open(&RocksConfig::new(self.0.path().join("meta"))).unwrap()
    }

    async fn open_beside(&self, open: &Arc<dyn MetaStore>) -> Arc<dyn MetaStore> {
        Arc::clone(open)
    }

    fn name(&self) -> String {
        self.0.path().join("meta").display().to_string()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rocksdb_is_a_metadata_store() {
    conformance::run(&InDirectory(tempfile::tempdir().unwrap())).await;
}

#[tokio::test]
async fn a_second_opener_is_told_who_is_in_the_way() {
    let directory = tempfile::tempdir().unwrap();
    let config = RocksConfig::new(directory.path());
    let _first = RocksStore::open(&config).unwrap();
    let error = RocksStore::open(&config).err().unwrap();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("in use"));
}

#[tokio::test]
async fn a_closed_store_takes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = RocksStore::open(&RocksConfig::new(directory.path())).unwrap();
    store.close().await.unwrap();
    let error = store.transact(Transaction::default()).await.unwrap_err();
    assert!(matches!(error, TransactError::Store(StoreError::Closed)));
}

/// Sixty-four writers, each waiting for its own durable answer before it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_writers_share_their_syncs() {
    const WRITERS: usize = 64;
    const EACH: usize = 50;
    let directory = tempfile::tempdir().unwrap();
    let store = RocksStore::open(&RocksConfig::new(directory.path())).unwrap();
    let began = Instant::now();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for turn in 0..EACH {
                    let key = format!("{writer}/{turn}").into_bytes();
                    let mut transaction = Transaction::default();
                    transaction.preconditions.push(Precondition::Absent(key.clone()));
                    transaction.put(key, vec![7; 300]);
                    store.transact(transaction).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let per_second = (WRITERS * EACH) as f64 / began.elapsed().as_secs_f64();
    eprintln!("{per_second:.0} durable transactions a second");
    let rows = store.page(b"", b"~", PAGE_ROWS_MAX).await.unwrap();
    assert_eq!(rows.len(), PAGE_ROWS_MAX);
}
