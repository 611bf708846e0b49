//! Reads under way: what is overwritten or deleted stays whole until they have ended.
//!
//! A reader first enters the key, then reads the object's row, then stays with the version it found. A deletion looks
//! once whether anybody is in; if so it puts the version in a grave (a row that holds the references) instead of dropping
//! them, and [`super::Meta::sweep`] buries it when the last reader has left. A reader that enters while a deletion is
//! under way waits for its end before it reads the row: the deletion may have looked already.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::model::{BucketId, VersionId};

type Key = (BucketId, String);

/// Who reads what.
#[derive(Debug, Default)]
pub(super) struct Reads {
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    keys: HashMap<Key, KeyState>,
    versions: HashMap<VersionId, usize>,
    next_deletion: u64,
}

#[derive(Debug, Default)]
struct KeyState {
    /// Readers that have not found their version yet.
    entering: usize,
    /// Readers of versions that were found under the key.
    reading: usize,
    /// Deletions under way; each token fires when its deletion has ended.
    deletions: Vec<(u64, CancellationToken)>,
}

impl Table {
    fn leave(&mut self, key: &Key, change: impl FnOnce(&mut KeyState)) {
        if let Some(state) = self.keys.get_mut(key) {
            change(state);
            if state.entering == 0 && state.reading == 0 && state.deletions.is_empty() {
                self.keys.remove(key);
            }
        }
    }
}

impl Reads {
    /// A reader enters. Waits for deletions that are under way.
    pub(super) async fn enter(&self, bucket: BucketId, key: &str) -> Entered {
        let key = (bucket, key.to_owned());
        let before: Vec<CancellationToken> = {
            let mut table = self.table.lock();
            let state = table.keys.entry(key.clone()).or_default();
            state.entering += 1;
            state.deletions.iter().map(|(_, done)| done.clone()).collect()
        };
        let entered = Entered { table: Arc::clone(&self.table), key: Some(key) };
        for deletion in before {
            deletion.cancelled().await;
        }
        entered
    }

    /// A deletion or an overwrite begins.
    pub(super) fn delete(&self, bucket: BucketId, key: &str) -> Deletion {
        let key = (bucket, key.to_owned());
        let mut table = self.table.lock();
        let id = table.next_deletion;
        table.next_deletion += 1;
        let state = table.keys.entry(key.clone()).or_default();
        let is_read = state.entering > 0 || state.reading > 0;
        let done = CancellationToken::new();
        state.deletions.push((id, done.clone()));
        drop(table);
        Deletion { table: Arc::clone(&self.table), key, id, done, is_read }
    }

    /// Whether a version may still be read by somebody who found it before it was deleted.
    pub(super) fn is_read(&self, bucket: BucketId, key: &str, version: VersionId) -> bool {
        let table = self.table.lock();
        table.versions.contains_key(&version)
            || table.keys.get(&(bucket, key.to_owned())).is_some_and(|state| state.entering > 0)
    }
}

/// A reader that has not found its version yet.
#[derive(Debug)]
pub(super) struct Entered {
    table: Arc<Mutex<Table>>,
    key: Option<Key>,
}

impl Entered {
    /// Found: stays with this version.
    pub(super) fn found(mut self, version: VersionId) -> ReadPin {
        let key = self.key.take().unwrap_or((BucketId([0; 8]), String::new()));
        let mut table = self.table.lock();
        *table.versions.entry(version).or_default() += 1;
        table.leave(&key, |state| {
            state.reading += 1;
            state.entering -= 1;
        });
        drop(table);
        ReadPin(Arc::new(Pinned { table: Arc::clone(&self.table), key, version }))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.table.lock().leave(&key, |state| state.entering -= 1);
        }
    }
}

/// Keeps a version whole while it lives.
#[derive(Clone, Debug)]
pub(crate) struct ReadPin(#[expect(dead_code, reason = "held for its end")] Arc<Pinned>);

#[derive(Debug)]
struct Pinned {
    table: Arc<Mutex<Table>>,
    key: Key,
    version: VersionId,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let mut table = self.table.lock();
        if let Some(count) = table.versions.get_mut(&self.version) {
            *count -= 1;
            if *count == 0 {
                table.versions.remove(&self.version);
            }
        }
        table.leave(&self.key, |state| state.reading -= 1);
    }
}

/// A deletion or an overwrite under way.
#[derive(Debug)]
pub(super) struct Deletion {
    table: Arc<Mutex<Table>>,
    key: Key,
    id: u64,
    done: CancellationToken,
    /// Whether somebody read the key when it began.
    pub(super) is_read: bool,
}

impl Drop for Deletion {
    fn drop(&mut self) {
        self.table.lock().leave(&self.key, |state| state.deletions.retain(|(id, _)| *id != self.id));
        self.done.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUCKET: BucketId = BucketId([1; 8]);
    const VERSION: VersionId = VersionId([2; 16]);

    #[tokio::test]
    async fn a_deletion_sees_readers_and_leaves_nothing_behind() {
        let reads = Reads::default();
        assert!(!reads.delete(BUCKET, "k").is_read);
        let pin = reads.enter(BUCKET, "k").await.found(VERSION);
        assert!(reads.is_read(BUCKET, "k", VERSION));
        assert!(reads.delete(BUCKET, "k").is_read);
        assert!(!reads.delete(BUCKET, "other").is_read);
        let second = pin.clone();
        drop(pin);
        assert!(reads.is_read(BUCKET, "k", VERSION));
        drop(second);
        assert!(!reads.is_read(BUCKET, "k", VERSION));
        assert!(reads.table.lock().keys.is_empty() && reads.table.lock().versions.is_empty());
    }

    #[tokio::test]
    async fn a_reader_waits_for_the_deletions_that_began_before_it_and_for_no_others() {
        let reads = Reads::default();
        let deletion = reads.delete(BUCKET, "k");
        let mut entering = Box::pin(reads.enter(BUCKET, "k"));
        assert!(futures::poll!(entering.as_mut()).is_pending());
        let later = reads.delete(BUCKET, "k");
        assert!(later.is_read);
        drop(deletion);
        let entered = entering.await;
        drop((entered, later));
        assert!(reads.table.lock().keys.is_empty());
    }
}
