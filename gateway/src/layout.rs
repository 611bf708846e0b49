//! How an object's bytes are laid out in blocks, and how any range is found in it.
//!
//! An object is one part (a single PUT) or several; a part is a run of blocks; a run is listed in pages of up to
//! 1,024 blocks, or, when it is short, in the object's own row. Parts and pages are keyed by where they end,
//! so that seeking is one look-up each, whatever the lengths of parts and blocks.
//!
//! This module is pure: it slices lists. [`crate::meta`] keeps them.

use std::ops::Range;
use std::sync::Arc;

use holdfast_protocol::message::ByteRange;
use holdfast_protocol::record::WrappedKey;
use holdfast_protocol::{BlockLen, Digest};

use crate::crypt::PartCipher;
use crate::meta::VersionId;

/// One block of a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which block.
    pub digest: Digest,
    /// Its length.
    pub len: BlockLen,
}

/// A block, or some of it, on the way to a reader.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Which block.
    pub digest: Digest,
    /// Its whole length.
    pub len: BlockLen,
    /// Which bytes of it.
    pub range: ByteRange,
    /// Where those bytes are in the object.
    pub object_offset: u64,
    /// Deciphers them; `None` when they are plain.
    pub cipher: Option<Arc<PartCipher>>,
    /// Where those bytes are in the cipher's stream.
    pub cipher_offset: u64,
}

/// Where an object's parts are listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// No bytes.
    Empty,
    /// One part, in the object's row.
    Single(PartLayout),
    /// Rows of their own, under the object's version.
    Parts,
}

/// One part: a run of blocks under one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PartLayout {
    /// Where it starts in the object.
    pub(crate) offset: u64,
    /// Its bytes.
    pub(crate) len: u64,
    /// Its wrapped key; `None` when plain.
    pub(crate) key: Option<WrappedKey>,
    /// The nonce half of its counter block.
    pub(crate) iv_nonce: u64,
    /// Its blocks.
    pub(crate) blocks: Run,
    /// The checksum that it was uploaded with: the algorithm's lower-case name and the value in base64. Parts of
    /// uploads have it, and single PUTs do not.
    pub(crate) checksum: Option<(String, String)>,
}

/// A part as clients see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartView {
    /// Its bytes in the object.
    pub range: Range<u64>,
    /// The checksum that it was uploaded with, if that was kept: lower-case name and base64 value.
    pub checksum: Option<(String, String)>,
}

impl PartLayout {
    pub(crate) fn view(self) -> PartView {
        PartView { range: self.offset..self.offset + self.len, checksum: self.checksum }
    }
}

/// Where a part's blocks are listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Run {
    /// Here.
    Inline(Vec<Entry>),
    /// In pages under this id.
    Pages { run: VersionId, count: u64 },
}

impl Run {
    pub(crate) fn count(&self) -> u64 {
        match self {
            Self::Inline(entries) => entries.len() as u64,
            Self::Pages { count, .. } => *count,
        }
    }
}

/// Up to 1,024 consecutive blocks of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    /// Bytes of the run before it.
    pub(crate) start: u64,
    /// The blocks.
    pub(crate) entries: Vec<Entry>,
}

impl Page {
    /// Where it ends in the run.
    pub(crate) fn end(&self) -> u64 {
        self.start + total_len(&self.entries)
    }

    /// Cuts a run into pages.
    pub(crate) fn cut(entries: &[Entry]) -> impl Iterator<Item = Self> + '_ {
        let mut start = 0;
        entries.chunks(holdfast_protocol::limits::MANIFEST_PAGE_ENTRIES).map(move |entries| {
            let page = Self { start, entries: entries.to_vec() };
            start = page.end();
            page
        })
    }
}

/// Bytes of `entries`.
pub fn total_len(entries: &[Entry]) -> u64 {
    entries.iter().map(|entry| u64::from(entry.len.bytes())).sum()
}

/// Appends the pieces of `page` (of the part at `part_offset`) that lie in `wanted` (of the object).
pub(crate) fn pieces(
    page: &Page,
    part_offset: u64,
    cipher: Option<&Arc<PartCipher>>,
    wanted: &Range<u64>,
    out: &mut Vec<Piece>,
) {
    let mut in_part = page.start;
    for entry in &page.entries {
        let len = u64::from(entry.len.bytes());
        let at = part_offset + in_part;
        let start = wanted.start.max(at);
        let end = wanted.end.min(at + len);
        if start < end {
            // Both lie within one block, so they fit.
            let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
            out.push(Piece {
                digest: entry.digest,
                len: entry.len,
                range: ByteRange { start: narrow(start - at), len: narrow(end - start) },
                object_offset: start,
                cipher: cipher.cloned(),
                cipher_offset: start - part_offset,
            });
        }
        in_part += len;
    }
}

#[cfg(test)]
mod tests;
