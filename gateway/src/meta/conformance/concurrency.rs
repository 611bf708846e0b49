//! Many at once, through two openings of one store where the store allows it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::{Transaction, put};
use crate::meta::store::{MetaStore, TransactError, prefix_end};

/// Keys that lie badly: bytes on both ends of the range, and prefixes of one another.
pub(super) async fn keys_sort_as_bytes(both: &[Arc<dyn MetaStore>; 2]) {
    let mut model = BTreeMap::new();
    let mut transaction = Transaction::default();
    let mut seed = blake3::Hasher::new().update(b"keys that lie badly").finalize_xof();
    for number in 0..400u32 {
        let mut random = [0u8; 6];
        seed.fill(&mut random);
        let len = usize::from(random[0] % 5);
        let few = [0, 1, b'a', b'A', 0x7f, 0x80, 0xfe, 0xff];
        let tail = random[1..=len].iter().map(|byte| few[usize::from(byte % 8)]);
        let key: Vec<u8> = b"order".iter().copied().chain(tail).collect();
        transaction.put(key.clone(), number.to_le_bytes().to_vec());
        model.insert(key, number.to_le_bytes().to_vec());
    }
    both[0].transact(transaction).await.unwrap();
    for limit in [1, 3, 1000] {
        let (mut found, mut start) = (Vec::new(), b"order".to_vec());
        loop {
            let page = both[1].page(&start, &prefix_end(b"order"), limit).await.unwrap();
            let Some(last) = page.last() else { break };
            start = [&last.key[..], &[0]].concat();
            found.extend(page.into_iter().map(|row| (row.key, row.value.to_vec())));
        }
        assert_eq!(found, model.clone().into_iter().collect::<Vec<_>>(), "in pages of {limit}");
    }
}

/// Read-after-write, whoever wrote and whoever reads.
pub(super) async fn what_was_answered_is_seen_by_all(both: &[Arc<dyn MetaStore>; 2]) {
    for turn in 0..50u8 {
        let (writer, reader) = (&both[usize::from(turn % 2)], &both[usize::from((turn + 1) % 2)]);
        writer.transact(put(b"news", &[turn])).await.unwrap();
        assert_eq!(reader.get(b"news").await.unwrap().as_deref(), Some(&[turn][..]));
        let many = reader.get_many(&[b"news".to_vec(), b"news".to_vec()]).await.unwrap();
        assert_eq!(many, vec![Some(Bytes::copy_from_slice(&[turn])); 2]);
        assert_eq!(reader.page(b"news", b"newt", 1).await.unwrap()[0].value[..], [turn]);
    }
}

/// Two accounts may each be overdrawn, but not both together. Each withdrawal writes one account and relies on both: a
/// store that is less than serializable lets two withdrawals from different accounts pass each other.
pub(super) async fn invariants_over_several_rows_hold(both: &[Arc<dyn MetaStore>; 2]) {
    const CREDIT: u32 = 400;
    const STEP: u32 = 10;
    let accounts = [b"account/1".to_vec(), b"account/2".to_vec()];
    let mut transaction = Transaction::default();
    for account in &accounts {
        // What was withdrawn so far.
        transaction.put(account.clone(), 0u32.to_le_bytes().to_vec());
    }
    both[0].transact(transaction).await.unwrap();
    let tasks: Vec<_> = (0..8usize)
        .map(|task| {
            let (store, accounts) = (Arc::clone(&both[task % 2]), accounts.clone());
            tokio::spawn(async move {
                let mut withdrawn = 0;
                loop {
                    let rows = store.get_many(&accounts).await.unwrap();
                    let taken: Vec<u32> = rows
                        .iter()
                        .map(|row| u32::from_le_bytes(row.as_ref().unwrap()[..].try_into().unwrap()))
                        .collect();
                    if taken.iter().sum::<u32>() + STEP > CREDIT {
                        return withdrawn;
                    }
                    let mut transaction = Transaction::default();
                    for (account, row) in accounts.iter().zip(rows) {
                        transaction.expect(account.clone(), row);
                    }
                    let from = task % 2;
                    transaction.put(accounts[from].clone(), (taken[from] + STEP).to_le_bytes().to_vec());
                    match store.transact(transaction).await {
                        Ok(()) => withdrawn += STEP,
                        Err(TransactError::Conflict) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            })
        })
        .collect();
    let mut paid = 0;
    for task in tasks {
        paid += task.await.unwrap();
    }
    assert_eq!(paid, CREDIT, "everything that was promised, and nothing twice");
}

/// A walk in pages beside a writer that puts and removes pairs of rows between those that stay.
pub(super) async fn pages_beside_writes_miss_nothing(both: &[Arc<dyn MetaStore>; 2]) {
    const STAYING: usize = 300;
    let staying = |number: usize| format!("walk/{number:04}/stays").into_bytes();
    let mut transaction = Transaction::default();
    for number in 0..STAYING {
        transaction.put(staying(number), b"s".to_vec());
    }
    both[0].transact(transaction).await.unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let has_begun = Arc::new(tokio::sync::Notify::new());
    let writer = {
        let (store, is_over, has_begun) =
            (Arc::clone(&both[0]), Arc::clone(&is_over), Arc::clone(&has_begun));
        tokio::spawn(async move {
            let mut turn = 0usize;
            while !is_over.load(Ordering::Relaxed) {
                let number = turn * 7 % STAYING;
                let pair = ["comes/1", "comes/2"].map(|name| format!("walk/{number:04}/{name}").into_bytes());
                let mut transaction = Transaction::default();
                for key in pair.clone() {
                    transaction.put(key, b"c".to_vec());
                }
                store.transact(transaction).await.unwrap();
                let mut transaction = Transaction::default();
                for key in pair {
                    transaction.delete(key);
                }
                store.transact(transaction).await.unwrap();
                turn += 1;
                has_begun.notify_one();
            }
            turn
        })
    };
    // On a busy machine the walks could be over before it has written at all.
    has_begun.notified().await;
    for limit in [7, 50, 1000] {
        let (mut seen, mut start) = (Vec::new(), b"walk/".to_vec());
        loop {
            let page = both[1].page(&start, &prefix_end(b"walk/"), limit).await.unwrap();
            let Some(last) = page.last() else { break };
            start = [&last.key[..], &[0]].concat();
            let keys: Vec<_> = page.into_iter().map(|row| row.key).collect();
            assert!(keys.is_sorted(), "a page is in order");
            for (at, key) in keys.iter().enumerate().filter(|(_, key)| key.ends_with(b"comes/1")) {
                // Its pair is the next row, unless the page ends between the two.
                let next = keys.get(at + 1);
                assert!(next.is_none_or(|next| next[..next.len() - 1] == key[..key.len() - 1]));
            }
            seen.extend(keys.into_iter().filter(|key| key.ends_with(b"stays")));
        }
        assert_eq!(seen, (0..STAYING).map(staying).collect::<Vec<_>>(), "in pages of {limit}");
    }
    is_over.store(true, Ordering::Relaxed);
    assert!(writer.await.unwrap() > 0);
}
