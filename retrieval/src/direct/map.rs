//! The pages of an object that a client has: which block holds which bytes, under which key. Pure.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use holdfast_protocol::message::ByteRange;

use super::ticket::{ReadTicket, TicketError};
use crate::block::BlockRef;
use crate::cipher::PartCipher;

/// Pages kept of one object: 64 GiB of whole blocks, 3 MiB of memory. Others are asked for again.
const PAGES_MAX: usize = 64;

/// A run of bytes of one block.
#[derive(Clone, Debug)]
pub(super) struct BlockPiece {
    pub(super) block: BlockRef,
    pub(super) range: ByteRange,
    /// Where the run begins in the object.
    pub(super) offset: u64,
    pub(super) cipher: Option<Arc<PartCipher>>,
    /// Where the run begins in the cipher's stream.
    pub(super) cipher_offset: u64,
}

/// The pages at hand, by where they start.
pub(super) struct Pages {
    size: u64,
    pages: BTreeMap<u64, Page>,
    /// Counts uses, to tell which page was used least lately.
    clock: u64,
}

struct Page {
    end: u64,
    used: u64,
    /// Where each block begins, and which it is.
    blocks: Vec<(u64, BlockRef)>,
    parts: Vec<(u64, Option<Arc<PartCipher>>)>,
}

impl Pages {
    pub(super) fn new(size: u64) -> Self {
        Self { size, pages: BTreeMap::new(), clock: 0 }
    }

    /// Takes a page in, in place of what it overlaps; returns where it starts.
    pub(super) fn insert(&mut self, ticket: &ReadTicket) -> Result<u64, TicketError> {
        let mut at = ticket.offset;
        let mut blocks = Vec::with_capacity(ticket.blocks.len());
        for (digest, len) in &ticket.blocks {
            blocks.push((at, BlockRef { digest: *digest, len: *len }));
            at += u64::from(len.bytes());
        }
        let mut parts = Vec::with_capacity(ticket.parts.len());
        for part in &ticket.parts {
            let cipher = match &part.key {
                None => None,
                Some(key) => Some(Arc::new(
                    PartCipher::new(&key.key, key.nonce)
                        .map_err(|_| TicketError::Contradiction { field: "keys" })?,
                )),
            };
            parts.push((part.offset, cipher));
        }
        let (start, end) = (ticket.offset, at);
        self.pages.retain(|from, page| page.end <= start || *from >= end);
        while self.pages.len() >= PAGES_MAX {
            let oldest = self.pages.iter().min_by_key(|(_, page)| page.used).map(|(start, _)| *start);
            let Some(oldest) = oldest else { break };
            self.pages.remove(&oldest);
        }
        self.clock += 1;
        self.pages.insert(start, Page { end, used: self.clock, blocks, parts });
        Ok(start)
    }

    /// Where the page that holds byte `offset` starts.
    pub(super) fn page_start(&self, offset: u64) -> Option<u64> {
        let (start, page) = self.pages.range(..=offset).next_back()?;
        (offset < page.end).then_some(*start)
    }

    /// Appends the pieces of `range` as far as one page goes; returns where it ended, which is the start of
    /// `range` when no page holds it.
    pub(super) fn pieces(&mut self, range: Range<u64>, out: &mut Vec<BlockPiece>) -> u64 {
        self.clock += 1;
        let clock = self.clock;
        let Some((_, page)) = self.pages.range_mut(..=range.start).next_back() else { return range.start };
        page.used = clock;
        let end = range.end.min(page.end);
        let mut at = range.start;
        let first = page.blocks.partition_point(|(start, _)| *start <= at).saturating_sub(1);
        for (start, block) in page.blocks.iter().skip(first) {
            let block_end = start + u64::from(block.len.bytes());
            if at >= end || at < *start || at >= block_end {
                break;
            }
            let to = block_end.min(end);
            let part = page.parts.partition_point(|(offset, _)| *offset <= *start).saturating_sub(1);
            let Some((part_offset, cipher)) = page.parts.get(part) else { break };
            // Both lie within one block, so they fit.
            let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
            out.push(BlockPiece {
                block: *block,
                range: ByteRange { start: narrow(at - start), len: narrow(to - at) },
                offset: at,
                cipher: cipher.clone(),
                cipher_offset: at - part_offset,
            });
            at = to;
        }
        at
    }

    /// The block around `offset`, if its page is at hand.
    pub(super) fn unit(&self, offset: u64) -> Option<Range<u64>> {
        let (_, page) = self.pages.range(..=offset).next_back()?;
        if offset >= page.end.min(self.size) {
            return None;
        }
        let at = page.blocks.partition_point(|(start, _)| *start <= offset).checked_sub(1)?;
        let (start, block) = page.blocks.get(at)?;
        Some(*start..start + u64::from(block.len.bytes()))
    }
}
