//! A writer in a process of its own, killed in the middle of many transactions.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::{StoreFactory, Transaction, all};
use crate::meta::store::{MetaStore, counters};
use crate::meta::{PostgresConfig, PostgresStore, RocksConfig, RocksStore};

/// Where the writer's process finds the store.
const VARIABLE: &str = "HOLDFAST_TEST_STORE";
/// The test below, as the test program knows it.
const WRITER: &str = "meta::conformance::crash::a_writer_until_it_is_killed";
const BEFORE_KILL: usize = 150;
const WRITERS: u32 = 8;

/// The store of this name, in any process.
pub(crate) async fn open_named(name: &str) -> Arc<dyn MetaStore> {
    if name.starts_with("postgres") {
        let config = PostgresConfig::of_instance(name, 99);
        return PostgresStore::open(&config).await.unwrap();
    }
    RocksStore::open(&RocksConfig::new(name)).unwrap()
}

pub(super) async fn what_was_answered_outlives_a_kill(factory: &dyn StoreFactory) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([WRITER, "--exact", "--ignored", "--nocapture"])
        .env(VARIABLE, factory.name())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let number = |line: String| line.strip_prefix("acknowledged ").and_then(|rest| rest.parse::<u32>().ok());
    let mut acknowledged: BTreeSet<u32> = lines.by_ref().filter_map(number).take(BEFORE_KILL).collect();
    child.kill().unwrap();
    factory.crash();
    // What was answered between our last look and the kill counts too.
    acknowledged.extend(lines.filter_map(number));
    child.wait().unwrap();
    assert!(acknowledged.len() >= BEFORE_KILL, "the writer ended by itself");
    let store = factory.open().await;
    let rows = all(&*store).await;
    let halves = |half: &str| -> BTreeSet<u32> {
        let names = rows.iter().filter_map(|(key, _)| std::str::from_utf8(key).ok()?.strip_prefix("crash/"));
        names.filter_map(|name| name.strip_suffix(half)?.parse().ok()).collect()
    };
    let (left, right) = (halves("/left"), halves("/right"));
    assert_eq!(left, right, "a transaction is whole or not at all");
    let lost: Vec<_> = acknowledged.difference(&left).collect();
    assert!(lost.is_empty(), "{lost:?} were answered and are gone");
    let count = store.get(b"crash count").await.unwrap().unwrap();
    assert_eq!(counters(&count), vec![i64::try_from(left.len()).unwrap()]);
    store.close().await.unwrap();
}

/// Not a test by itself: the other half of the one above.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs as a process of the suite's own"]
async fn a_writer_until_it_is_killed() {
    let store = open_named(&std::env::var(VARIABLE).unwrap()).await;
    let writers = (0..WRITERS).map(|writer| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for turn in 0.. {
                let number = turn * WRITERS + writer;
                let mut transaction = Transaction::default();
                transaction.expect(format!("crash/{number}/left").into_bytes(), None);
                transaction.put(format!("crash/{number}/left").into_bytes(), vec![1; 200]);
                transaction.put(format!("crash/{number}/right").into_bytes(), vec![2; 200]);
                transaction.add(b"crash count".to_vec(), vec![1]);
                store.transact(transaction).await.unwrap();
                // Written whole and at once: the reader must not take half a number for another.
                std::io::stdout().write_all(format!("acknowledged {number}\n").as_bytes()).unwrap();
            }
        })
    });
    futures::future::join_all(writers).await;
}
