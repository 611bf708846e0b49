//! Looking at held blocks: are these still the bytes that were put?
//!
//! Before a second claim on held bytes is signed for, the held copy is read and hashed, unless that was done not long
//! ago. A copy that has gone bad is written anew from the putter's bytes, with every claim it has.

use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;

use holdfast_proofs::hash_block;
use holdfast_protocol::digest::{BlockLen, Digest};
use holdfast_protocol::time::Clock;
use lru::LruCache;
use parking_lot::Mutex;

use super::engine::Shared;
use super::error::ReadError;
use super::format::{self, PAGE_BYTES, PageFault, Place, RecordPage, record_bytes};
use super::index::rows::BlockRow;
use super::types::BlockBuffer;
use crate::disk::PAGE;

/// Blocks remembered as looked at; about 100 bytes each.
const VERIFIED_MAX: NonZeroUsize = NonZeroUsize::new(32_768).expect("not zero");

/// Which records were read or written whole not long ago.
pub(crate) struct Verified {
    clock: Arc<dyn Clock>,
    fresh_ms: u64,
    seen: Mutex<LruCache<Digest, (u64, u64)>>,
}

impl Verified {
    pub(crate) fn new(clock: Arc<dyn Clock>, fresh_ms: u64) -> Self {
        Self { clock, fresh_ms, seen: Mutex::new(LruCache::new(VERIFIED_MAX)) }
    }

    pub(crate) fn note(&self, digest: &Digest, record: u64) {
        self.seen.lock().put(*digest, (record, self.clock.now_ms()));
    }

    pub(crate) fn is_fresh(&self, digest: &Digest, record: u64) -> bool {
        let seen = self.seen.lock().peek(digest).copied();
        seen.is_some_and(|(held, at_ms)| {
            held == record && self.clock.now_ms().saturating_sub(at_ms) < self.fresh_ms
        })
    }

    pub(crate) fn forget(&self, digest: &Digest) {
        self.seen.lock().pop(digest);
    }
}

/// What a look at a held block found.
#[derive(Debug)]
pub(crate) enum Look {
    /// The bytes are those of the digest, and so is the header page.
    Good,
    /// The bytes are good, the header page in front of them is not. They are in the buffer.
    BadHeader(BlockBuffer),
    /// The disk gives other bytes, twice.
    WrongBytes,
    /// The disk gives none, twice.
    Unreadable(io::Error),
    /// The record ended while it was looked at.
    Ended,
}

impl Shared {
    /// Reads the record of a held block whole and hashes it. Takes none of the readers' memory or places.
    pub(crate) async fn look_at(
        self: &Arc<Self>,
        digest: &Digest,
        row: &BlockRow,
    ) -> Result<Look, ReadError> {
        let mut look = self.look_once(digest, row).await;
        if !matches!(look, Look::Good | Look::BadHeader(_)) {
            // A second look tells a passing fault from a lasting one; O_DIRECT makes it come from the disk.
            look = self.look_once(digest, row).await;
        }
        if !matches!(look, Look::Good) {
            // Rows go before bytes: what was punched meanwhile has no row by now.
            let (key, record) = (*digest, row.record);
            let now = self.lookup(move |view| view.block(&key)).await?;
            if now.is_none_or(|now| now.record != record) {
                return Ok(Look::Ended);
            }
        }
        match look {
            Look::Good => self.verified.note(digest, row.record),
            _ => self.verified.forget(digest),
        }
        Ok(look)
    }

    async fn look_once(&self, digest: &Digest, row: &BlockRow) -> Look {
        let whole = usize::try_from(record_bytes(row.len)).unwrap_or(usize::MAX);
        let read = self.read_quietly(row.place, whole).await;
        let Ok(len) = BlockLen::new(row.len) else { return Look::WrongBytes };
        let pages = match read {
            Ok(pages) => pages,
            Err(error) => return Look::Unreadable(error),
        };
        let data = pages.get(PAGE..PAGE + len.as_usize()).unwrap_or_default();
        if Digest::of(data) != *digest {
            return Look::WrongBytes;
        }
        match format::read_record(&pages, row.place, &self.secret) {
            Ok((stamp, RecordPage::Block(block)))
                if stamp.record == row.record && block.digest == *digest =>
            {
                Look::Good
            }
            _ => {
                let mut buffer = BlockBuffer::new(pages, len);
                let _same = buffer.data_mut();
                Look::BadHeader(buffer)
            }
        }
    }

    /// A copy of a block's bytes in a buffer outside the pool's bound, for writing it again.
    pub(crate) fn copy_of(&self, data: &[u8]) -> Option<BlockBuffer> {
        let len = BlockLen::of(data).ok()?;
        let mut copy = BlockBuffer::new(self.write_pool.take_unbounded(PAGE + data.len())?, len);
        copy.extend_from_slice(data).then_some(copy)
    }

    /// The record page at `place`, for whoever walks an extent without hurry.
    pub(crate) async fn page_at(
        &self,
        place: Place,
    ) -> io::Result<Result<(format::Stamp, RecordPage), PageFault>> {
        let page = self.read_quietly(place, PAGE).await?;
        Ok(format::read_record(&page, place, &self.secret))
    }

    /// The first good record's page within `span` bytes from `place` on.
    pub(crate) async fn page_within(&self, place: Place, span: u64) -> io::Result<Option<u64>> {
        let len = usize::try_from(span).unwrap_or(usize::MAX);
        let pages = self.read_quietly(place, len).await?;
        for (offset, page) in (place.offset..).step_by(PAGE).zip(pages.chunks_exact(PAGE).take(len / PAGE)) {
            if format::read_record(page, Place { offset, ..place }, &self.secret).is_ok() {
                return Ok(Some(offset));
            }
        }
        Ok(None)
    }
}

/// The tree of bytes that were found whole.
pub(crate) fn tree_of(data: &[u8]) -> holdfast_proofs::GroupTree {
    hash_block(data).1
}

const _: () = assert!(PAGE_BYTES == PAGE as u64);
