//! The one thing a metadata back-end must be: an ordered map of byte strings with conditional batches.
//!
//! Everything else (what a row means, which rows change together) is above. The trait is asynchronous so that
//! a database on the network can stand behind it; [`super::conformance`] is its meaning in executable form.

use async_trait::async_trait;
use bytes::Bytes;

/// Bytes of a key, 1 at least. Keys are made by [`super::schema`]; the longest holds an S3 key of 1,024 bytes.
pub const KEY_LEN_MAX: usize = 2048;
/// Bytes of a value. The largest is a page of 1,024 blocks of odd lengths (about 36 KiB).
pub const VALUE_LEN_MAX: usize = 1024 * 1024;
/// Rows that one page may have.
pub const PAGE_ROWS_MAX: usize = 1024;

/// An ordered map of byte strings to byte strings, durable on return.
#[async_trait]
pub trait MetaStore: Send + Sync + 'static {
    /// The value of `key`.
    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// The values of `keys`, in their order. Each is current; together they need not be one snapshot, which
    /// is why a transaction states what it relies on.
    async fn get_many(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Bytes>>, StoreError>;

    /// Rows with `start <= key < end` in ascending order, at most `limit` (and [`PAGE_ROWS_MAX`]).
    /// One page is one snapshot.
    async fn page(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<Row>, StoreError>;

    /// Applies all writes, durably, if all preconditions hold; else changes nothing.
    ///
    /// Serializable: as if transactions ran one after another.
    ///
    /// # Cancel safety
    /// Not cancel-safe: a dropped call may or may not take effect.
    async fn transact(&self, transaction: Transaction) -> Result<(), TransactError>;

    /// Stops taking transactions and closes cleanly.
    async fn close(&self) -> Result<(), StoreError>;
}

/// A row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its key.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Bytes,
}

/// What a transaction relies on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// There is no row of this key.
    Absent(Vec<u8>),
    /// The row of this key has exactly this value.
    Equals(Vec<u8>, Bytes),
    /// There is no row whose key begins with this.
    PrefixEmpty(Vec<u8>),
}

/// What a transaction does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Sets a row.
    Put(Vec<u8>, Vec<u8>),
    /// Sets a row unless it is there, without relying on whether it is.
    PutIfAbsent(Vec<u8>, Vec<u8>),
    /// Removes a row, if it is there.
    Delete(Vec<u8>),
    /// Adds to the counters of a row (little-endian `i64`s; absent counters are 0), without relying on their
    /// values: two transactions that add to one row never conflict.
    ///
    /// A row that is added to is otherwise only put when it is absent, and deleted: a back-end may keep what each
    /// gateway adds in a row of its own.
    Add(Vec<u8>, Vec<i64>),
}

/// A conditional batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// All must hold.
    pub preconditions: Vec<Precondition>,
    /// Applied in order, all or none.
    pub writes: Vec<Write>,
}

impl Transaction {
    /// Relies on `key` having `value`, or on its absence.
    pub fn expect(&mut self, key: Vec<u8>, value: Option<Bytes>) {
        self.preconditions.push(match value {
            Some(value) => Precondition::Equals(key, value),
            None => Precondition::Absent(key),
        });
    }

    /// Sets a row.
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.writes.push(Write::Put(key, value));
    }

    /// Sets a row unless it is there.
    pub fn put_if_absent(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.writes.push(Write::PutIfAbsent(key, value));
    }

    /// Adds to a counter row.
    pub fn add(&mut self, key: Vec<u8>, deltas: Vec<i64>) {
        self.writes.push(Write::Add(key, deltas));
    }

    /// Removes a row.
    pub fn delete(&mut self, key: Vec<u8>) {
        self.writes.push(Write::Delete(key));
    }
}

/// Counters of an [`Write::Add`] row; a row of another shape is counted as zeros.
pub fn counters(value: &[u8]) -> Vec<i64> {
    value.chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap_or_default())).collect()
}

/// The value of a counter row after adding `deltas`.
pub(crate) fn add_counters(value: Option<&[u8]>, deltas: &[i64]) -> Vec<u8> {
    let mut sums = value.map(counters).unwrap_or_default();
    sums.resize(sums.len().max(deltas.len()), 0);
    for (sum, delta) in sums.iter_mut().zip(deltas) {
        *sum = sum.wrapping_add(*delta);
    }
    sums.iter().flat_map(|sum| sum.to_le_bytes()).collect()
}

/// The first key behind every key that begins with `prefix`; all of the key space when there is none.
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![u8::MAX; KEY_LEN_MAX + 1]
}

/// Why a back-end could not answer.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The back-end failed.
    #[error("the metadata store failed to {operation}: {detail}")]
    Backend {
        /// What was tried.
        operation: &'static str,
        /// What it said.
        detail: String,
        /// Whether trying again may help.
        retryable: bool,
    },
    /// Somebody else has it open.
    #[error("the metadata store at {path} is in use by another process; stop it first")]
    InUse {
        /// Where.
        path: String,
    },
    /// It was closed.
    #[error("the metadata store is closed")]
    Closed,
    /// A key or value past its bound.
    #[error("a metadata row exceeds its bound ({what} of {len} bytes)")]
    TooLarge {
        /// Key or value.
        what: &'static str,
        /// Its length.
        len: usize,
    },
}

impl StoreError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Backend { retryable, .. } => *retryable,
            Self::InUse { .. } => true,
            Self::Closed | Self::TooLarge { .. } => false,
        }
    }
}

/// Why a transaction changed nothing.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TransactError {
    /// A precondition does not hold: somebody else was faster.
    #[error("another writer was faster")]
    Conflict,
    /// The back-end failed. Whether the transaction took effect is unknown.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl TransactError {
    /// Whether reading again and trying again may succeed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Conflict => true,
            Self::Store(error) => error.is_retryable(),
        }
    }
}
