//! The committer: takes what waits, checks it in order, writes the survivors in one synced batch.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use rocksdb::{DB, IteratorMode, ReadOptions, WriteBatch, WriteOptions};
use tokio::sync::mpsc;

use super::super::store::{
    Precondition, StoreError, TransactError, Transaction, Write, add_counters, prefix_end,
};
use super::{Waiting, backend};
use crate::gateway::telemetry;

/// Transactions of one group: enough that the sync is shared, few enough that the first does not wait long.
const GROUP_MAX: usize = 512;
/// Bytes written by one group, past which it takes no more.
const GROUP_BYTES_MAX: usize = 8 << 20;

/// Runs until every sender is gone and everybody is answered.
pub(super) fn run(db: &DB, mut queue: mpsc::Receiver<Waiting>) {
    let mut sync = WriteOptions::default();
    sync.set_sync(true);
    while let Some(first) = queue.blocking_recv() {
        let mut group = Group::new(db);
        let (mut accepted, mut refused) = (Vec::new(), Vec::new());
        let mut next = Some(first);
        while let Some(Waiting { transaction, answer }) = next {
            match group.take(transaction) {
                Ok(()) => accepted.push(answer),
                Err(error) => refused.push((answer, error)),
            }
            let room =
                accepted.len() + refused.len() < GROUP_MAX && group.batch.size_in_bytes() < GROUP_BYTES_MAX;
            next = if room { queue.try_recv().ok() } else { None };
        }
        let batch = group.batch;
        let outcome = if batch.is_empty() {
            Ok(())
        } else {
            db.write_opt(batch, &sync).map_err(|error| backend("write", &error))
        };
        if outcome.is_ok() {
            telemetry::meta_group(accepted.len(), refused.len());
        }
        // Nobody waits any more when a caller was dropped; the transaction stands.
        for answer in accepted {
            drop(answer.send(outcome.clone().map_err(TransactError::Store)));
        }
        // Losers hear of it only now: before the write they would read what they read before, and lose again.
        for (answer, error) in refused {
            drop(answer.send(Err(error)));
        }
    }
}

/// What the transactions of a group have written so far, over the database.
struct Group<'a> {
    db: &'a DB,
    written: BTreeMap<Vec<u8>, Option<Bytes>>,
    batch: WriteBatch,
}

impl<'a> Group<'a> {
    fn new(db: &'a DB) -> Self {
        Self { db, written: BTreeMap::new(), batch: WriteBatch::default() }
    }

    fn take(&mut self, transaction: Transaction) -> Result<(), TransactError> {
        for precondition in &transaction.preconditions {
            if !self.holds(precondition)? {
                return Err(TransactError::Conflict);
            }
        }
        // What writes depend on is read before anything is written, so that a failing read leaves no half transaction.
        for write in &transaction.writes {
            if let Write::Add(key, _) | Write::PutIfAbsent(key, _) = write
                && !self.written.contains_key(key)
            {
                let value = self.read(key)?;
                self.written.insert(key.clone(), value);
            }
        }
        for write in transaction.writes {
            match write {
                Write::Put(key, value) => self.put(key, value),
                Write::PutIfAbsent(key, value) => {
                    if self.written.get(&key).is_none_or(Option::is_none) {
                        self.put(key, value);
                    }
                }
                Write::Delete(key) => {
                    self.batch.delete(&key);
                    self.written.insert(key, None);
                }
                Write::Add(key, deltas) => {
                    let value = self.written.get(&key).cloned().flatten();
                    self.put(key, add_counters(value.as_deref(), &deltas));
                }
            }
        }
        Ok(())
    }

    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.batch.put(&key, &value);
        self.written.insert(key, Some(Bytes::from(value)));
    }

    fn holds(&self, precondition: &Precondition) -> Result<bool, StoreError> {
        match precondition {
            Precondition::Absent(key) => Ok(self.read(key)?.is_none()),
            Precondition::Equals(key, value) => Ok(self.read(key)?.as_ref() == Some(value)),
            Precondition::PrefixEmpty(prefix) => self.prefix_empty(prefix),
        }
    }

    fn read(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        if let Some(value) = self.written.get(key) {
            return Ok(value.clone());
        }
        let value = self.db.get(key).map_err(|error| backend("read", &error))?;
        Ok(value.map(Bytes::from))
    }

    fn prefix_empty(&self, prefix: &[u8]) -> Result<bool, StoreError> {
        let end = prefix_end(prefix);
        let range = (Bound::Included(prefix.to_vec()), Bound::Excluded(end.clone()));
        if self.written.range(range).any(|(_, value)| value.is_some()) {
            return Ok(false);
        }
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(end);
        let from = IteratorMode::From(prefix, rocksdb::Direction::Forward);
        for row in self.db.iterator_opt(from, options) {
            let (key, _) = row.map_err(|error| backend("scan", &error))?;
            if !self.written.contains_key(&*key) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
