//! Which buckets of the inventory changed since its reader last looked.
//!
//! The inventory has 65,536 buckets, by the first 16 bits of a digest. A change notes its bucket in the very batch
//! that it is written in, so that a crash between the two is not possible; a bucket already noted since the last
//! look costs nothing. The reader looks, hashes the buckets again, makes its hashes durable, and then forgets
//! exactly what it saw: what changed meanwhile carries a newer mark and stays.

use holdfast_protocol::digest::Digest;
use rocksdb::WriteBatch;

use super::{Index, bad_row, rows};
use crate::store::error::IndexError;
use crate::store::types::ChangedBuckets;

/// Buckets of the inventory.
const BUCKETS: usize = 1 << 16;

/// The bucket that `digest` belongs to.
pub(crate) fn bucket_of(digest: &Digest) -> u16 {
    u16::from_be_bytes([digest.0[0], digest.0[1]])
}

/// The notes in memory: half a megabyte.
pub(super) struct Changed {
    /// The mark of each bucket; 0 when it has not changed.
    marks: Box<[u64]>,
    /// The mark of changes from here on; the look before it saw only lower ones.
    now: u64,
}

impl Default for Changed {
    fn default() -> Self {
        Self { marks: vec![0; BUCKETS].into_boxed_slice(), now: 1 }
    }
}

impl Changed {
    /// Notes a change; the mark to write, unless the bucket has it already.
    pub(super) fn mark(&mut self, bucket: u16) -> Option<u64> {
        let mark = &mut self.marks[usize::from(bucket)];
        (*mark != self.now).then(|| {
            *mark = self.now;
            self.now
        })
    }
}

impl Index {
    /// Takes up the notes of earlier runs. Called once, at opening.
    pub(crate) fn load_changed(&self) -> Result<(), IndexError> {
        let mut changed = self.changed.lock();
        for (key, value) in self.view().scan(b"d", BUCKETS)? {
            let bucket = rows::decode_bucket_key(&key).ok_or_else(|| bad_row(&key))?;
            let mark = rows::decode_number(&value).ok_or_else(|| bad_row(&key))?;
            changed.marks[usize::from(bucket)] = mark;
            changed.now = changed.now.max(mark.saturating_add(1));
        }
        Ok(())
    }

    /// The buckets that changed; changes from here on are told apart from them.
    pub(crate) fn changed_buckets(&self) -> ChangedBuckets {
        let mut changed = self.changed.lock();
        changed.now += 1;
        let marked = (0..=u16::MAX).zip(changed.marks.iter().copied());
        ChangedBuckets(marked.filter(|(_, mark)| *mark != 0).collect())
    }

    /// Forgets the changes that `seen` saw.
    pub(crate) fn forget_changed(&self, seen: &ChangedBuckets) -> Result<(), IndexError> {
        let mut changed = self.changed.lock();
        let mut batch = WriteBatch::default();
        for (bucket, mark) in &seen.0 {
            let held = &mut changed.marks[usize::from(*bucket)];
            if *held == *mark {
                *held = 0;
                batch.delete(rows::bucket_key(*bucket));
            }
        }
        self.write(batch)
    }
}
