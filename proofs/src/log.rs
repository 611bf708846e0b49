//! The audit log: an append-only Merkle log as static files, in the C2SP formats `tlog-tiles` and `tlog-checkpoint`.
//!
//! ```text
//! checkpoint                 signed note: origin, size, root (see note.rs)
//! tile/<level>/<index>       256 hashes of 32 bytes; `.p/<width>` behind an incomplete one
//! tile/entries/<index>       256 entries, each u16 BE length and bytes; `.p/<width>` likewise
//! blob/<2 hex>/<64 hex>      the proofs of an answer, under their BLAKE3 hash (not part of C2SP)
//! ```
//! Any web server can serve them. This module decides which bytes belong into which file; it opens none.

use tlog_tiles::{Hash, node_hash, record_hash};

pub mod check;
pub mod entry;
pub mod extension;
pub mod note;

pub use check::{Finding, LogChecker, LogReport, Severity};
pub use entry::{LogEntry, LogOpening, VoidEpoch};
pub use extension::{ExtensionError, check_extension};
pub use note::{NoteError, SignedCheckpoint, cosign, sign_checkpoint};

use entry::ENTRY_LEN_MAX;

/// Hashes or entries of a complete tile.
pub const TILE_WIDTH: usize = 256;

/// A file of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    /// Its path below the log's directory.
    pub path: String,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// The path of a tile: `level` is a number, or `entries`.
pub fn tile_path(level: &str, index: u64, width: usize) -> String {
    let mut path = format!("{:03}", index % 1000);
    let mut rest = index / 1000;
    while rest > 0 {
        path = format!("x{:03}/{path}", rest % 1000);
        rest /= 1000;
    }
    let partial = if width < TILE_WIDTH { format!(".p/{width}") } else { String::new() };
    format!("tile/{level}/{path}{partial}")
}

/// The path of an answer's proofs.
pub fn blob_path(digest: &holdfast_protocol::Digest) -> String {
    let name = hex::encode(digest.0);
    format!("blob/{}/{name}", &name[..2])
}

/// The right edge of a log: what must be known to append. Some KiB, however long the log is, beside the entries of
/// one bundle.
#[derive(Clone, Debug, Default)]
pub struct LogTail {
    size: u64,
    /// The hashes of each level's incomplete tile, lowest level first.
    levels: Vec<Vec<Hash>>,
    /// The incomplete bundle.
    bundle: Vec<u8>,
    /// Complete tiles that were not handed out yet.
    complete: Vec<LogFile>,
}

impl LogTail {
    /// An empty log.
    pub fn new() -> Self {
        Self::default()
    }

    /// The tail of a log of `size` entries, from its files. `read` gives a file's bytes by its path.
    ///
    /// # Errors
    /// [`TailError`] when a file is missing or has the wrong length.
    pub fn open(size: u64, mut read: impl FnMut(&str) -> Option<Vec<u8>>) -> Result<Self, TailError> {
        let mut tail = Self { size, ..Self::default() };
        let mut rest = size;
        let mut level = 0u32;
        while rest > 0 {
            let (index, width) = (rest / TILE_WIDTH as u64, index_in_tile(rest));
            let mut hashes = Vec::with_capacity(TILE_WIDTH);
            if width > 0 {
                let path = tile_path(&level.to_string(), index, width);
                let bytes = read(&path).ok_or_else(|| TailError::Missing { path: path.clone() })?;
                let (found, surplus) = bytes.as_chunks::<32>();
                if found.len() != width || !surplus.is_empty() {
                    return Err(TailError::Length { path });
                }
                hashes.extend(found.iter().map(|hash| Hash(*hash)));
            }
            tail.levels.push(hashes);
            rest = index;
            level += 1;
        }
        let width = index_in_tile(size);
        if width > 0 {
            let path = tile_path("entries", size / TILE_WIDTH as u64, width);
            tail.bundle = read(&path).ok_or_else(|| TailError::Missing { path: path.clone() })?;
            let entries =
                bundle_entries(&tail.bundle).ok_or_else(|| TailError::Length { path: path.clone() })?;
            if entries.len() != width {
                return Err(TailError::Length { path });
            }
        }
        Ok(tail)
    }

    /// How many entries there are.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Appends an entry.
    ///
    /// # Errors
    /// [`TailError::Entry`] when it is empty or longer than a bundle can hold; nothing is appended then.
    pub fn append(&mut self, entry: &[u8]) -> Result<u64, TailError> {
        if entry.is_empty() || entry.len() > ENTRY_LEN_MAX {
            return Err(TailError::Entry { len: entry.len() });
        }
        let len = u16::try_from(entry.len()).map_err(|_| TailError::Entry { len: entry.len() })?;
        self.bundle.extend_from_slice(&len.to_be_bytes());
        self.bundle.extend_from_slice(entry);
        let index = self.size;
        self.size += 1;
        if index_in_tile(self.size) == 0 {
            let bytes = std::mem::take(&mut self.bundle);
            let path = tile_path("entries", index / TILE_WIDTH as u64, TILE_WIDTH);
            self.complete.push(LogFile { path, bytes });
        }
        self.push_hash(0, record_hash(entry));
        Ok(index)
    }

    fn push_hash(&mut self, level: usize, hash: Hash) {
        if self.levels.len() == level {
            self.levels.push(Vec::with_capacity(TILE_WIDTH));
        }
        self.levels[level].push(hash);
        if self.levels[level].len() == TILE_WIDTH {
            let hashes = std::mem::take(&mut self.levels[level]);
            // Hashes at this level so far: the tile just filled is the last of them.
            let index = (self.size >> (8 * (level + 1))).saturating_sub(1);
            let path = tile_path(&level.to_string(), index, TILE_WIDTH);
            self.complete.push(LogFile { path, bytes: concat(&hashes) });
            self.push_hash(level + 1, perfect_root(&hashes));
        }
    }

    /// The root of the log: RFC 6962's, over all entries.
    pub fn root(&self) -> Hash {
        let mut root = None;
        for hashes in &self.levels {
            // The incomplete tile is cut into perfect subtrees, largest first; they fold from the right.
            let mut parts = Vec::new();
            let mut rest = &hashes[..];
            while !rest.is_empty() {
                let (part, after) = rest.split_at(1 << rest.len().ilog2());
                parts.push(perfect_root(part));
                rest = after;
            }
            for part in parts.into_iter().rev() {
                root = Some(root.map_or(part, |right| node_hash(part, right)));
            }
        }
        root.unwrap_or(tlog_tiles::EMPTY_HASH)
    }

    /// The files that changed since the last call: complete tiles, and the incomplete ones at the right edge. They
    /// must be durable before a checkpoint of this size is published.
    pub fn files(&mut self) -> Vec<LogFile> {
        let mut files = std::mem::take(&mut self.complete);
        for (level, hashes) in self.levels.iter().enumerate() {
            if !hashes.is_empty() {
                let index = self.size >> (8 * (level + 1));
                let path = tile_path(&level.to_string(), index, hashes.len());
                files.push(LogFile { path, bytes: concat(hashes) });
            }
        }
        let width = index_in_tile(self.size);
        if width > 0 {
            let path = tile_path("entries", self.size / TILE_WIDTH as u64, width);
            files.push(LogFile { path, bytes: self.bundle.clone() });
        }
        files
    }
}

#[allow(clippy::cast_possible_truncation)]
const fn index_in_tile(size: u64) -> usize {
    (size % TILE_WIDTH as u64) as usize
}

fn concat(hashes: &[Hash]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| hash.0).collect()
}

/// The root of a power of two of hashes.
fn perfect_root(hashes: &[Hash]) -> Hash {
    let mut level = hashes.to_vec();
    while level.len() > 1 {
        level = level.chunks_exact(2).map(|pair| node_hash(pair[0], pair[1])).collect();
    }
    level[0]
}

/// The entries of a bundle, or `None` when its lengths do not add up.
pub fn bundle_entries(bundle: &[u8]) -> Option<Vec<&[u8]>> {
    let mut entries = Vec::new();
    let mut rest = bundle;
    while !rest.is_empty() {
        let (len, after) = rest.split_first_chunk::<2>()?;
        let (entry, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
        entries.push(entry);
        rest = after;
    }
    (entries.len() <= TILE_WIDTH).then_some(entries)
}

/// Why a log cannot be appended to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TailError {
    /// A file that the size promises is not there.
    #[error("{path} is missing")]
    Missing {
        /// The file.
        path: String,
    },
    /// A file does not have the length that the size gives it.
    #[error("{path} does not have the length that the log's size gives it")]
    Length {
        /// The file.
        path: String,
    },
    /// An entry that no bundle holds.
    #[error("an entry has 1 to 65535 bytes, not {len}")]
    Entry {
        /// Its length.
        len: usize,
    },
}

impl TailError {
    /// Never.
    pub const fn is_retryable(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests;
