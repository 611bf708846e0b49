//! Why the store refuses: one enum per operation.

use std::io;
use std::path::PathBuf;

use holdfast_protocol::digest::Digest;
use holdfast_protocol::message::ByteRange;

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A file or directory could not be read or made.
    #[error("{}: {action} failed: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has it open.
    #[error("{} is in use by another process", dir.display())]
    Locked {
        /// The store's directory.
        dir: PathBuf,
    },
    /// A newer release wrote it.
    #[error("{} has data format {found}; this release reads up to {newest}: use the newer release", dir.display())]
    NewerFormat {
        /// The store's directory.
        dir: PathBuf,
        /// The format found.
        found: u32,
        /// The newest format this release reads.
        newest: u32,
    },
    /// The identity is missing or unreadable although there is data.
    #[error("{}: the store's identity is unusable: {detail}", dir.display())]
    Identity {
        /// The store's directory.
        dir: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The directory holds no store, although it should hold this one: its disk is not mounted.
    #[error("{} does not hold the store {expected}; is its disk mounted?", dir.display())]
    Missing {
        /// The store's directory.
        dir: PathBuf,
        /// The store that belongs there.
        expected: String,
    },
    /// The directory holds another store than it should.
    #[error("{} holds the store {found} instead of {expected}; another disk is mounted there", dir.display())]
    Swapped {
        /// The store's directory.
        dir: PathBuf,
        /// The store that belongs there.
        expected: String,
        /// The one that is there.
        found: String,
    },
    /// A setting lies outside its bounds.
    #[error("setting {setting} is out of bounds: {detail}")]
    Config {
        /// Which.
        setting: &'static str,
        /// What would do.
        detail: String,
    },
    /// io_uring was demanded and is not to be had.
    #[error("io_uring is not available: {source}")]
    Uring {
        /// What the system said.
        source: io::Error,
    },
    /// The index cannot be opened or written.
    #[error("the index cannot be used: {source}")]
    Index {
        /// What it said.
        source: IndexError,
    },
    /// No random bytes.
    #[error("the system's random source failed")]
    Random,
}

impl OpenError {
    /// Whether opening again later can succeed without anybody's help.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Locked { .. } | Self::Missing { .. } | Self::Swapped { .. })
    }
}

/// Why the index failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// RocksDB failed.
    #[error("RocksDB: {source}")]
    Rocks {
        /// What it said.
        source: rocksdb::Error,
    },
    /// A row does not have its shape.
    #[error("a row of table {table:?} has an unreadable value")]
    Row {
        /// The table's prefix byte.
        table: char,
    },
}

impl From<rocksdb::Error> for IndexError {
    fn from(source: rocksdb::Error) -> Self {
        Self::Rocks { source }
    }
}

/// Why a block was not put.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PutError {
    /// The store's capacity, or the disk beneath it, is used up.
    #[error("the disk is full: {needed} bytes needed, {free} free")]
    DiskFull {
        /// Bytes the record takes.
        needed: u64,
        /// Bytes left for blocks.
        free: u64,
    },
    /// The block has as many claims as it may have.
    #[error("{digest} has too many claims")]
    TooManyClaims {
        /// Which block.
        digest: Digest,
    },
    /// The held copy changed again and again while it was being looked at.
    #[error("{digest} changed while its held copy was looked at")]
    Contended {
        /// Which block.
        digest: Digest,
    },
    /// The buffer, the tree and the claim do not speak of one block.
    #[error("the put contradicts itself: {field}")]
    Mismatch {
        /// Which part.
        field: &'static str,
    },
    /// The store failed or is closing.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl PutError {
    /// Whether the same put can succeed later on this store.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::DiskFull { .. } | Self::Contended { .. } => true,
            Self::Store(error) => error.is_retryable(),
            Self::TooManyClaims { .. } | Self::Mismatch { .. } => false,
        }
    }
}

/// Why a change of claims was not made, or is not known to be durable.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A write or a sync failed; nothing is written until the store is opened again.
    #[error("the disk failed and the store takes no writes until reopened: {detail}")]
    Failed {
        /// The first failure.
        detail: String,
    },
    /// The file system is read-only: what lies there is served, nothing is taken, changed or deleted.
    #[error("the disk is read-only: {}", dir.display())]
    ReadOnly {
        /// The store's directory.
        dir: PathBuf,
    },
    /// Not even the reserve for small records is left.
    #[error("the disk has no room for a small record")]
    Full,
    /// A disk of the node is not there, and what was asked about may lie on it.
    #[error("a disk is not there: {}", dir.display())]
    Away {
        /// Where it should be.
        dir: PathBuf,
    },
    /// More than one call may carry.
    #[error("{field} exceeds its bound of {bound}")]
    TooLarge {
        /// What.
        field: &'static str,
        /// Its bound.
        bound: usize,
    },
    /// The store is closing.
    #[error("the store is closing")]
    Closing,
}

impl StoreError {
    /// Whether the same call can succeed later on this store.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Full | Self::Away { .. })
    }
}

/// Why a read failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The range leaves the block.
    #[error("bytes {}..{} lie outside a block of {len} bytes", range.start, range.end())]
    Range {
        /// What was asked for.
        range: ByteRange,
        /// The block's length.
        len: u32,
    },
    /// The block was released and its bytes are gone.
    #[error("{digest} is no longer held")]
    Gone {
        /// Which block.
        digest: Digest,
    },
    /// The block was written again elsewhere meanwhile: look it up once more.
    #[error("{digest} was moved while it was read")]
    Moved {
        /// Which block.
        digest: Digest,
    },
    /// A disk of the node is not there, and the block may lie on it.
    #[error("a disk is not there: {}", dir.display())]
    Away {
        /// Where it should be.
        dir: PathBuf,
    },
    /// The disk could not read it.
    #[error("reading {digest} failed: {detail}")]
    Disk {
        /// Which block.
        digest: Digest,
        /// What the system said.
        detail: String,
    },
    /// The header page is not the one that was written.
    #[error("the header of {digest} is damaged")]
    Damaged {
        /// Which block.
        digest: Digest,
    },
    /// The index failed.
    #[error("the index failed: {detail}")]
    Index {
        /// What it said.
        detail: String,
    },
    /// The store is closing.
    #[error("the store is closing")]
    Closing,
}

impl ReadError {
    /// Whether the same read can succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Disk { .. } | Self::Index { .. } | Self::Moved { .. } | Self::Away { .. })
    }
}

impl From<IndexError> for ReadError {
    fn from(error: IndexError) -> Self {
        Self::Index { detail: error.to_string() }
    }
}
