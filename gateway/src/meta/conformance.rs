//! What a [`MetaStore`] must do, as one suite for every implementation.
//!
//! Each implementation's tests call [`run`] with a factory of empty stores.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::store::{
    MetaStore, PAGE_ROWS_MAX, Precondition, TransactError, Transaction, Write, counters, prefix_end,
};

mod concurrency;
pub(crate) mod crash;

/// Opens one store's data again and again; it is empty the first time.
#[async_trait]
pub(crate) trait StoreFactory: Send + Sync {
    /// Opens it. The one opened before is closed by then.
    async fn open(&self) -> Arc<dyn MetaStore>;

    /// Opens it once more beside `open`, as another gateway does; the same again where one process owns the data.
    async fn open_beside(&self, open: &Arc<dyn MetaStore>) -> Arc<dyn MetaStore>;

    /// How [`crash::open_named`] finds the store from another process.
    fn name(&self) -> String;

    /// Crashes whatever stands behind the store and brings it up again.
    fn crash(&self) {}
}

/// Runs the suite.
///
/// # Panics
/// When the store behaves in another way.
pub(crate) async fn run(factory: &dyn StoreFactory) {
    let store = factory.open().await;
    let beside = factory.open_beside(&store).await;
    let both = [Arc::clone(&store), Arc::clone(&beside)];
    puts_and_deletes(&*store).await;
    preconditions_guard_the_whole_batch(&*store).await;
    prefixes_can_be_required_empty(&*store).await;
    pages_are_ordered_and_bounded(&*store).await;
    concurrency::keys_sort_as_bytes(&both).await;
    concurrency::what_was_answered_is_seen_by_all(&both).await;
    counters_never_conflict(&both).await;
    one_writer_wins(&both).await;
    concurrency::invariants_over_several_rows_hold(&both).await;
    concurrency::pages_beside_writes_miss_nothing(&both).await;
    let before = all(&*beside).await;
    assert!(!before.is_empty());
    if !Arc::ptr_eq(&store, &beside) {
        beside.close().await.unwrap();
    }
    store.close().await.unwrap();
    drop((store, beside, both));
    let store = factory.open().await;
    assert_eq!(all(&*store).await, before, "what was answered is there after opening again");
    store.close().await.unwrap();
    drop(store);
    crash::what_was_answered_outlives_a_kill(factory).await;
}

async fn all(store: &dyn MetaStore) -> Vec<(Vec<u8>, Bytes)> {
    let mut rows = Vec::new();
    let mut start = Vec::new();
    loop {
        let page = store.page(&start, &prefix_end(&[]), 7).await.unwrap();
        let Some(last) = page.last() else { return rows };
        start = [&last.key[..], &[0]].concat();
        rows.extend(page.into_iter().map(|row| (row.key, row.value)));
    }
}

fn put(key: &[u8], value: &[u8]) -> Transaction {
    Transaction { writes: vec![Write::Put(key.to_vec(), value.to_vec())], ..Transaction::default() }
}

async fn puts_and_deletes(store: &dyn MetaStore) {
    assert_eq!(store.get(b"a").await.unwrap(), None);
    store.transact(put(b"a", b"1")).await.unwrap();
    store.transact(put(b"b", b"")).await.unwrap();
    assert_eq!(store.get(b"a").await.unwrap().as_deref(), Some(&b"1"[..]));
    let many = store.get_many(&[b"b".to_vec(), b"none".to_vec(), b"a".to_vec()]).await.unwrap();
    assert_eq!(many, vec![Some(Bytes::new()), None, Some(Bytes::from_static(b"1"))]);
    let mut transaction = put(b"a", b"2");
    transaction.delete(b"a".to_vec());
    transaction.delete(b"never there".to_vec());
    store.transact(transaction).await.unwrap();
    assert_eq!(store.get(b"a").await.unwrap(), None, "writes apply in order");
    store.transact(Transaction::default()).await.unwrap();
    for value in [b"first", b"other"] {
        let mut transaction = Transaction::default();
        transaction.put_if_absent(b"once".to_vec(), value.to_vec());
        transaction.put_if_absent(b"once".to_vec(), b"twice".to_vec());
        store.transact(transaction).await.unwrap();
    }
    assert_eq!(store.get(b"once").await.unwrap().as_deref(), Some(&b"first"[..]));
    let mut transaction = Transaction::default();
    transaction.delete(b"once".to_vec());
    transaction.put_if_absent(b"once".to_vec(), b"again".to_vec());
    store.transact(transaction).await.unwrap();
    assert_eq!(store.get(b"once").await.unwrap().as_deref(), Some(&b"again"[..]));
}

async fn preconditions_guard_the_whole_batch(store: &dyn MetaStore) {
    store.transact(put(b"guard", b"1")).await.unwrap();
    let refused = [
        Precondition::Absent(b"guard".to_vec()),
        Precondition::Equals(b"guard".to_vec(), Bytes::from_static(b"2")),
        Precondition::Equals(b"guard".to_vec(), Bytes::new()),
        Precondition::Equals(b"not there".to_vec(), Bytes::new()),
    ];
    for precondition in refused {
        let mut transaction = put(b"guard", b"overwritten");
        transaction.put(b"beside".to_vec(), b"x".to_vec());
        transaction.preconditions.push(Precondition::Absent(b"not there".to_vec()));
        transaction.preconditions.push(precondition.clone());
        let outcome = store.transact(transaction).await;
        assert!(matches!(outcome, Err(TransactError::Conflict)), "{precondition:?}: {outcome:?}");
    }
    assert_eq!(store.get(b"guard").await.unwrap().as_deref(), Some(&b"1"[..]));
    assert_eq!(store.get(b"beside").await.unwrap(), None);
    let mut transaction = put(b"guard", b"2");
    transaction.expect(b"guard".to_vec(), Some(Bytes::from_static(b"1")));
    transaction.expect(b"not there".to_vec(), None);
    store.transact(transaction).await.unwrap();
    assert_eq!(store.get(b"guard").await.unwrap().as_deref(), Some(&b"2"[..]));
}

async fn prefixes_can_be_required_empty(store: &dyn MetaStore) {
    let empty = |key: &[u8]| {
        let mut transaction = put(b"witness", b"");
        transaction.preconditions.push(Precondition::PrefixEmpty(key.to_vec()));
        transaction
    };
    store.transact(empty(b"room/")).await.unwrap();
    store.transact(put(b"room/1", b"")).await.unwrap();
    assert!(matches!(store.transact(empty(b"room/")).await, Err(TransactError::Conflict)));
    store.transact(empty(b"room/2")).await.unwrap();
    store.transact(put(&[0xff, 0xff, 1], b"")).await.unwrap();
    assert!(matches!(store.transact(empty(&[0xff, 0xff])).await, Err(TransactError::Conflict)));
    let mut transaction = Transaction::default();
    transaction.delete(vec![0xff, 0xff, 1]);
    transaction.delete(b"room/1".to_vec());
    store.transact(transaction).await.unwrap();
    store.transact(empty(b"room/")).await.unwrap();
}

async fn pages_are_ordered_and_bounded(store: &dyn MetaStore) {
    let mut transaction = Transaction::default();
    for number in (0..1500u32).rev() {
        transaction.put([b"page/", &number.to_be_bytes()[..]].concat(), number.to_le_bytes().to_vec());
    }
    store.transact(transaction).await.unwrap();
    let key = |number: u32| [b"page/", &number.to_be_bytes()[..]].concat();
    let page = store.page(&key(3), &key(9), 100).await.unwrap();
    let keys: Vec<_> = page.iter().map(|row| row.key.clone()).collect();
    assert_eq!(keys, (3..9).map(key).collect::<Vec<_>>(), "start is in, end is out");
    assert_eq!(store.page(b"page/", &prefix_end(b"page/"), 5).await.unwrap().len(), 5);
    let most = store.page(b"page/", &prefix_end(b"page/"), usize::MAX).await.unwrap();
    assert_eq!(most.len(), PAGE_ROWS_MAX);
    assert!(store.page(&key(9), &key(9), 5).await.unwrap().is_empty());
    assert!(store.page(&key(9), &key(3), 5).await.unwrap().is_empty());
}

async fn counters_never_conflict(both: &[Arc<dyn MetaStore>; 2]) {
    let adders: Vec<_> = (0..32i64)
        .map(|adder| {
            let store = Arc::clone(&both[usize::from(adder % 2 == 0)]);
            tokio::spawn(async move {
                let mut transaction = Transaction::default();
                transaction.writes.push(Write::Add(b"count".to_vec(), vec![1, -adder]));
                transaction.writes.push(Write::Add(b"count".to_vec(), vec![0, 0, 5]));
                store.transact(transaction).await.unwrap();
            })
        })
        .collect();
    for adder in adders {
        adder.await.unwrap();
    }
    for store in both {
        let value = store.get(b"count").await.unwrap().unwrap();
        // The two additions of one transaction may be seen as one row of three counters only when applied in order.
        assert_eq!(counters(&value), vec![32, -(0..32).sum::<i64>(), 160]);
        let page = store.page(b"count", b"counu", 5).await.unwrap();
        assert_eq!(page.len(), 1, "a counter is one row, whoever added to it");
        assert_eq!(page[0].value, value);
        let mut transaction = put(b"seen", b"");
        transaction.expect(b"count".to_vec(), Some(value));
        store.transact(transaction).await.unwrap();
    }
    let mut transaction = put(b"seen", b"");
    transaction.delete(b"count".to_vec());
    both[0].transact(transaction).await.unwrap();
    assert_eq!(both[1].get(b"count").await.unwrap(), None, "a counter goes as a whole");
    let mut transaction = Transaction::default();
    transaction.expect(b"count".to_vec(), None);
    transaction.put(b"count".to_vec(), Vec::new());
    transaction.add(b"count".to_vec(), vec![3]);
    both[0].transact(transaction).await.unwrap();
    let value = both[1].get(b"count").await.unwrap().unwrap();
    assert_eq!(counters(&value), vec![3]);
}

async fn one_writer_wins(both: &[Arc<dyn MetaStore>; 2]) {
    let writers: Vec<_> = (0..32u8)
        .map(|writer| {
            let store = Arc::clone(&both[usize::from(writer % 2)]);
            tokio::spawn(async move {
                let mut transaction = put(b"race", &[writer]);
                transaction.expect(b"race".to_vec(), None);
                match store.transact(transaction).await {
                    Ok(()) => Some(writer),
                    Err(TransactError::Conflict) => None,
                    Err(error) => panic!("{error}"),
                }
            })
        })
        .collect();
    let mut winners = Vec::new();
    for writer in writers {
        winners.extend(writer.await.unwrap());
    }
    let [winner] = winners[..] else { panic!("{winners:?} won") };
    for store in both {
        assert_eq!(store.get(b"race").await.unwrap().as_deref(), Some(&[winner][..]));
    }
}
