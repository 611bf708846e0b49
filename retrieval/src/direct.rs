//! Direct reads: a client reads an object straight from the nodes and believes nobody.
//!
//! A gateway hands out a [`ReadTicket`]: which blocks the object has, where their stripes lie, the keys of a
//! private object to a client that may have the plaintext, and a grant bound to the client's own key. From then
//! on bytes go from node to client. Every block is verified against the ticket's digests, and the digests
//! against the object's root CID when the client knows that from elsewhere.
//!
//! What the nodes do not give (a stripe whose other shards the grant does not open, a node that only dials out
//! to its gateway) may come through the gateway after all: its plaintext is enciphered again here and must hash
//! to the block's digest, so that even then no gateway is trusted for bytes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;

mod client;
mod error;
mod map;
mod table;
mod ticket;

pub use client::{DirectClient, DirectConfig};
pub use error::{DirectError, TicketFailure};
pub use ticket::{
    NodeAddress, PartKey, READ_TICKET_VERSION, ReadTicket, TICKET_BLOCKS_MAX, TICKET_NODES_MAX, TicketError,
    TicketPart,
};

use map::{BlockPiece, Pages};

use crate::block::{Block, BlockRef};
use crate::cipher::PartCipher;
use crate::fetch::{Fetcher, ServedBy};
use crate::object::{ObjectError, ObjectSource};

/// Blocks of one read under way at once: a read of 16 MiB keeps every node of a 4+2 network busy.
const BLOCKS_AT_ONCE: usize = 16;
/// A page whose blocks could not be read is asked for again at most this often in a row; repair moves shards
/// while an object is read for days.
const PAGE_REFRESH_MIN: Duration = Duration::from_secs(1);

/// Where tickets come from: a gateway's API.
#[async_trait]
pub trait Tickets: Send + Sync + 'static {
    /// The page of the object's ticket that covers byte `offset`, for the version named by `version`, or for
    /// the latest one when that is `None`. The grant is for `holder`.
    async fn page(&self, offset: u64, version: Option<&[u8]>) -> Result<ReadTicket, TicketFailure>;

    /// Plaintext bytes `range` of that version through the gateway, unverified; `None` when there is no such way.
    async fn plaintext(&self, range: Range<u64>, version: &[u8]) -> Option<Result<Bytes, TicketFailure>>;
}

/// An object that is read straight from the nodes.
pub struct DirectObject {
    client: Arc<DirectClient>,
    tickets: Arc<dyn Tickets>,
    fetcher: Fetcher,
    size: u64,
    root_cid: Vec<u8>,
    version: Vec<u8>,
    pages: Mutex<Pages>,
    /// One page at a time is asked for; others wait and find it.
    loading: tokio::sync::Mutex<BTreeMap<u64, tokio::time::Instant>>,
}

impl DirectObject {
    /// Opens the object that `tickets` are for.
    pub async fn open(client: Arc<DirectClient>, tickets: Arc<dyn Tickets>) -> Result<Self, DirectError> {
        let first = tickets.page(0, None).await?;
        let fetcher = client.fetcher_for(&first)?;
        let (size, root_cid, version) = (first.size, first.root_cid.to_vec(), first.version.to_vec());
        let mut pages = Pages::new(size);
        client.learn(&first)?;
        pages.insert(&first)?;
        let (pages, loading) = (Mutex::new(pages), tokio::sync::Mutex::default());
        Ok(Self { client, tickets, fetcher, size, root_cid, version, pages, loading })
    }

    /// The root CID in binary: of the ciphertext when the object is private. A claim of the gateway's, which the
    /// blocks prove only together ([`crate::direct`]).
    pub fn root_cid(&self) -> &[u8] {
        &self.root_cid
    }

    /// What the fetcher beneath did.
    pub fn fetcher(&self) -> &Fetcher {
        &self.fetcher
    }

    /// The digests of the object's blocks in `range`, in order: what a cache is told to follow.
    pub async fn blocks(&self, range: Range<u64>) -> Result<Vec<BlockRef>, ObjectError> {
        Ok(self.pieces(range).await?.into_iter().map(|piece| piece.block).collect())
    }

    async fn pieces(&self, range: Range<u64>) -> Result<Vec<BlockPiece>, ObjectError> {
        let mut pieces = Vec::new();
        let (mut at, mut loaded) = (range.start, false);
        while at < range.end {
            let found = self.pages.lock().pieces(at..range.end, &mut pieces);
            if found > at {
                (at, loaded) = (found, false);
                continue;
            }
            if loaded {
                return Err(TicketError::Gap { offset: at }.into());
            }
            self.load(at, false).await?;
            loaded = true;
        }
        Ok(pieces)
    }

    /// Asks for the page that covers `offset`, unless somebody else just did.
    async fn load(&self, offset: u64, again: bool) -> Result<(), ObjectError> {
        let mut loading = self.loading.lock().await;
        let covered = self.pages.lock().page_start(offset);
        match covered {
            Some(_) if !again => return Ok(()),
            Some(start) if loading.get(&start).is_some_and(|at| at.elapsed() < PAGE_REFRESH_MIN) => {
                return Ok(());
            }
            _ => {}
        }
        let page = self.tickets.page(offset, Some(&self.version)).await.map_err(ObjectError::from)?;
        if page.version != self.version || page.size != self.size {
            return Err(ObjectError::from(DirectError::Changed));
        }
        self.client.learn(&page).map_err(ObjectError::from)?;
        self.client.renew(&page);
        let start = self.pages.lock().insert(&page).map_err(ObjectError::from)?;
        if start > offset || self.pages.lock().page_start(offset).is_none() {
            return Err(ObjectError::from(TicketError::Gap { offset }));
        }
        // Pages are few thousand at most; what is remembered of them stays as bounded as they are.
        loading.retain(|_, at| at.elapsed() < PAGE_REFRESH_MIN);
        loading.insert(start, tokio::time::Instant::now());
        Ok(())
    }

    /// One piece's plaintext, within the deadline.
    async fn piece(&self, piece: BlockPiece) -> Result<Bytes, ObjectError> {
        let (block, deadline) = (piece.block.digest, self.client.deadline());
        match tokio::time::timeout(deadline, self.any_way(piece)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(ObjectError::TimedOut { block, after: deadline }),
        }
    }

    async fn any_way(&self, piece: BlockPiece) -> Result<Bytes, ObjectError> {
        let error = match self.fetcher.range(piece.block, piece.range).await {
            Ok(bytes) => return decipher(&piece, bytes),
            Err(error) => error,
        };
        // Shards may have moved, or the grant may have ended: a newer page tells.
        if self.load(piece.offset, true).await.is_ok()
            && let Ok(bytes) = self.fetcher.range(piece.block, piece.range).await
        {
            return decipher(&piece, bytes);
        }
        match self.through_gateway(&piece).await {
            Some(bytes) => Ok(bytes),
            None => Err(ObjectError::Fetch(error)),
        }
    }

    /// The whole block through the gateway, believed only if it hashes to its digest once enciphered again.
    async fn through_gateway(&self, piece: &BlockPiece) -> Option<Bytes> {
        let start = piece.offset - u64::from(piece.range.start);
        let whole = start..start + u64::from(piece.block.len.bytes());
        let plain = self.tickets.plaintext(whole, &self.version).await?;
        let plain =
            plain.inspect_err(|error| tracing::debug!(%error, "the gateway gave no bytes either")).ok()?;
        let wanted = plain.slice_ref(plain.get(piece.range.start as usize..piece.range.end() as usize)?);
        let mut bytes = BytesMut::from(&plain[..]);
        if let Some(cipher) = &piece.cipher {
            cipher.apply(piece.cipher_offset - u64::from(piece.range.start), &mut bytes).ok()?;
        }
        let block = Block::new(bytes.freeze()).ok()?;
        if block.to_ref() != piece.block {
            tracing::warn!(block = %piece.block.digest, "the gateway's bytes are not the object's; not used");
            return None;
        }
        if let Some(cache) = self.fetcher.cache() {
            cache.put(&block);
        }
        self.fetcher.observe(piece.block, piece.range, ServedBy::Gateway);
        Some(wanted)
    }
}

#[async_trait]
impl ObjectSource for DirectObject {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read(&self, range: Range<u64>) -> Result<Bytes, ObjectError> {
        let pieces = self.pieces(range.clone()).await?;
        if let [piece] = &pieces[..] {
            return self.piece(piece.clone()).await;
        }
        let parts = futures::stream::iter(pieces).map(|piece| self.piece(piece)).buffered(BLOCKS_AT_ONCE);
        let mut whole = BytesMut::with_capacity(usize::try_from(range.end - range.start).unwrap_or(0));
        futures::pin_mut!(parts);
        while let Some(part) = parts.try_next().await? {
            whole.extend_from_slice(&part);
        }
        Ok(whole.freeze())
    }

    fn unit(&self, offset: u64) -> Range<u64> {
        let known = self.pages.lock().unit(offset);
        known.unwrap_or_else(|| {
            let start = offset >> 20 << 20;
            start..(start + (1 << 20)).min(self.size)
        })
    }
}

/// In place where the bytes are ours alone.
fn decipher(piece: &BlockPiece, bytes: Bytes) -> Result<Bytes, ObjectError> {
    let Some(cipher) = &piece.cipher else { return Ok(bytes) };
    apply(cipher, piece.cipher_offset, bytes)
}

fn apply(cipher: &PartCipher, offset: u64, bytes: Bytes) -> Result<Bytes, ObjectError> {
    let mut own = bytes.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    cipher.apply(offset, &mut own).map_err(|_| ObjectError::Cipher)?;
    Ok(own.freeze())
}

impl From<DirectError> for ObjectError {
    fn from(error: DirectError) -> Self {
        let retryable = error.is_retryable();
        Self::source(error, retryable)
    }
}

impl From<TicketFailure> for ObjectError {
    fn from(error: TicketFailure) -> Self {
        Self::from(DirectError::from(error))
    }
}

impl From<TicketError> for ObjectError {
    fn from(error: TicketError) -> Self {
        Self::from(DirectError::from(error))
    }
}

#[cfg(test)]
mod tests;
