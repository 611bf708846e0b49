//! What it costs two gateways to write at the same time: transactions a second of one gateway alone, of two on rows of
//! their own, and of two that all want the same row, on a PostgreSQL server of its own.
//!
//! ```text
//! cargo run --release -p holdfast-gateway --example meta_contention
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_gateway::meta::{MetaStore, PostgresConfig, PostgresStore, TransactError, Transaction};
use metrics_exporter_prometheus::PrometheusBuilder;

#[allow(unreachable_pub, dead_code)]
#[path = "../../tests/src/postgres.rs"]
mod postgres;

/// Writers of each gateway.
const WRITERS: usize = 16;
const EACH: Duration = Duration::from_secs(4);
const LOST: &str = "holdfast_meta_groups_lost_total ";

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let counters = PrometheusBuilder::new().install_recorder()?;
    let lost = || {
        let text = counters.render();
        let value = text.lines().find_map(|line| line.strip_prefix(LOST)?.parse::<u64>().ok());
        value.unwrap_or_default()
    };
    let server = postgres::Postgres::start()?;
    println!("{:<34} {:>9} {:>9} {:>12} {:>9}", "", "done/s", "refused/s", "groups lost", "max ms");
    for (name, gateways, is_shared) in
        [("one gateway", 1, false), ("two gateways, own rows", 2, false), ("two gateways, one row", 2, true)]
    {
        let mut stores = Vec::new();
        for instance in 1..=gateways {
            stores.push(PostgresStore::open(&PostgresConfig::of_instance(server.url(), instance)).await?);
        }
        let before = lost();
        let counts = write(&stores, is_shared).await?;
        let seconds = EACH.as_secs();
        println!(
            "{name:<34} {:>9} {:>9} {:>12} {:>9}",
            counts[0] / seconds,
            counts[1] / seconds,
            lost() - before,
            counts[2]
        );
        for store in stores {
            store.close().await?;
        }
    }
    Ok(())
}

/// Committed, refused, and the longest that a writer waited, in ms.
async fn write(stores: &[Arc<PostgresStore>], is_shared: bool) -> Result<[u64; 3], StoreFailed> {
    let (is_over, counts) = (Arc::new(AtomicBool::new(false)), Arc::new([const { AtomicU64::new(0) }; 3]));
    let mut writers = tokio::task::JoinSet::new();
    for (gateway, store) in stores.iter().enumerate() {
        for writer in 0..WRITERS {
            let (store, is_over, counts) = (Arc::clone(store), Arc::clone(&is_over), Arc::clone(&counts));
            let key =
                if is_shared { b"hot".to_vec() } else { format!("row {gateway} {writer}").into_bytes() };
            writers.spawn(async move {
                let mut number = 0u64;
                while !is_over.load(Ordering::Relaxed) {
                    let asked = Instant::now();
                    let mut transaction = Transaction::default();
                    transaction.expect(key.clone(), store.get(&key).await?);
                    number += 1;
                    transaction
                        .put(key.clone(), Bytes::from(format!("{writer} {number} {gateway}")).to_vec());
                    match store.transact(transaction).await {
                        Ok(()) => counts[0].fetch_add(1, Ordering::Relaxed),
                        Err(TransactError::Conflict) => counts[1].fetch_add(1, Ordering::Relaxed),
                        Err(error) => return Err(StoreFailed::Transact(error)),
                    };
                    let took = u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX);
                    counts[2].fetch_max(took, Ordering::Relaxed);
                }
                Ok(())
            });
        }
    }
    tokio::time::sleep(EACH).await;
    is_over.store(true, Ordering::Relaxed);
    while let Some(done) = writers.join_next().await {
        done.map_err(|_| StoreFailed::Panicked)??;
    }
    Ok(counts.each_ref().map(|count| count.load(Ordering::Relaxed)))
}

#[derive(Debug, thiserror::Error)]
enum StoreFailed {
    #[error(transparent)]
    Transact(#[from] TransactError),
    #[error(transparent)]
    Read(#[from] holdfast_gateway::meta::StoreError),
    #[error("a writer panicked")]
    Panicked,
}
