//! The blocks of one object, in order, through stripes in flight.
//!
//! Blocks are gathered until k of them make a stripe, which is then written while the next one gathers. An
//! object that never fills a stripe goes through the commit groups; the rest of a larger one is a short
//! stripe of its own, because its neighbours are its own blocks.
//!
//! Memory: an object holds at most k gathered blocks (k MiB) plus its stripes in flight, which are bounded
//! per object ([`ObjectOptions::in_flight_bytes`]) and over all objects ([`WriteBudget`]). Parity comes on
//! top (m/k of it). The budget is taken per whole stripe when its write begins, never for a half-gathered
//! one, so clients that send slowly cannot hold it, and writers cannot wait for each other in a circle.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_protocol::Digest;
use holdfast_protocol::limits::BLOCK_LEN_MAX;
use holdfast_protocol::record::{Policy, ScopeId};
use holdfast_protocol::time::UnixMs;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{Announcement, CommitGroups, DraftBlock, StripeDraft, WriteError, WrittenStripe};
use crate::block::{Block, BlockRef};

/// Digests of one object that are remembered, so that repeated blocks (zeros, usually) are written once.
/// Beyond it a repetition is simply written again. 65,536 blocks of 1 MiB are 64 GiB, more than any part.
const SEEN_MAX: usize = 65_536;

/// Bytes of stripes in flight over all objects.
#[derive(Clone)]
pub struct WriteBudget {
    permits: Arc<Semaphore>,
    bytes: u32,
}

impl WriteBudget {
    /// A budget of this many bytes; at least one stripe is always let through.
    pub fn new(bytes: u32) -> Self {
        Self { permits: Arc::new(Semaphore::new(bytes as usize)), bytes }
    }

    async fn take(&self, bytes: u32) -> Result<tokio::sync::OwnedSemaphorePermit, WriteError> {
        let bytes = bytes.min(self.bytes);
        Arc::clone(&self.permits).acquire_many_owned(bytes).await.map_err(|_| WriteError::Stopping)
    }
}

/// How an object is written.
#[derive(Clone, Copy, Debug)]
pub struct ObjectOptions {
    /// Code, quorum and spreading rules.
    pub policy: Policy,
    /// Who may read its blocks; `None` is public.
    pub scope: Option<ScopeId>,
    /// Nodes refuse deletion until then; 0 for never.
    pub retain_until_ms: UnixMs,
    /// Bytes of its stripes in flight.
    pub in_flight_bytes: u32,
}

impl ObjectOptions {
    /// Bytes of one object's stripes in flight unless chosen otherwise: three stripes of `local`, one of
    /// `standard`, enough to keep two cores and a disk busy. More is slower: with parity and the nodes' own
    /// buffers, 32 MiB no longer stay in the last cache, and every later copy of a block comes from memory.
    pub const IN_FLIGHT_BYTES: u32 = 12 * 1024 * 1024;

    /// The usual, under `policy` and `scope`.
    pub fn new(policy: Policy, scope: Option<ScopeId>) -> Self {
        Self { policy, scope, retain_until_ms: 0, in_flight_bytes: Self::IN_FLIGHT_BYTES }
    }
}

/// What became of an object.
#[derive(Clone, Debug)]
pub struct WrittenObject {
    /// Its blocks in order, repetitions included: the manifest.
    pub blocks: Vec<BlockRef>,
    /// The stripes that hold them, in the order in which their blocks first occur. A stripe shared with
    /// other objects holds blocks of those too.
    pub stripes: Vec<Arc<WrittenStripe>>,
}

/// Writes one object. Dropping it cancels what is in flight; what was stored lapses with its lease.
pub struct ObjectWriter {
    groups: CommitGroups,
    options: ObjectOptions,
    all_objects: WriteBudget,
    this_object: WriteBudget,
    announcement: Option<Announcement>,
    blocks: Vec<BlockRef>,
    seen: HashSet<Digest>,
    gathered: Vec<DraftBlock>,
    stripes: Vec<Option<Arc<WrittenStripe>>>,
    flights: JoinSet<(usize, Result<WrittenStripe, WriteError>)>,
}

impl ObjectWriter {
    /// A writer for one object. Small objects elsewhere wait a little for this one from now on (3 ms at
    /// most), so create it when the first byte is there.
    pub fn new(groups: CommitGroups, all_objects: WriteBudget, options: ObjectOptions) -> Self {
        let announcement = Some(groups.announce(&options.policy));
        Self {
            groups,
            options,
            all_objects,
            this_object: WriteBudget::new(options.in_flight_bytes),
            announcement,
            blocks: Vec::new(),
            seen: HashSet::new(),
            gathered: Vec::new(),
            stripes: Vec::new(),
            flights: JoinSet::new(),
        }
    }

    /// Takes the next block: 1 byte to 1 MiB, as it will be stored. Waits while too much is in flight.
    ///
    /// # Errors
    /// The first error of any stripe; the object is lost then, and further calls are pointless.
    ///
    /// # Cancel safety
    /// Not cancel safe: drop the writer then.
    pub async fn push(&mut self, bytes: Bytes) -> Result<BlockRef, WriteError> {
        let block =
            Block::new(bytes).map_err(|_| WriteError::Draft { detail: "a block has 1 byte to 1 MiB" })?;
        let named = block.to_ref();
        self.blocks.push(named);
        let fresh = if self.seen.len() < SEEN_MAX {
            self.seen.insert(named.digest)
        } else {
            !self.seen.contains(&named.digest)
        };
        if !fresh {
            return Ok(named);
        }
        let (scope, retain_until_ms) = (self.options.scope, self.options.retain_until_ms);
        self.gathered.push(DraftBlock { block, scope, retain_until_ms });
        if self.gathered.len() == self.options.policy.k {
            self.announcement = None;
            self.launch().await?;
        }
        Ok(named)
    }

    /// Bytes taken so far, repetitions included.
    pub fn len(&self) -> u64 {
        self.blocks.iter().map(|block| u64::from(block.len.bytes())).sum()
    }

    /// Whether nothing was taken yet.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Writes the rest and waits until all of it is durable. An object without bytes has no stripes.
    pub async fn finish(mut self) -> Result<WrittenObject, WriteError> {
        if self.stripes.is_empty() && !self.gathered.is_empty() {
            let gathered = std::mem::take(&mut self.gathered);
            let announced = self.announcement.take();
            let stripe = self.groups.put(&self.options.policy, gathered, announced).await?;
            return Ok(WrittenObject { blocks: self.blocks, stripes: vec![stripe] });
        }
        if !self.gathered.is_empty() {
            self.launch().await?;
        }
        while self.landed().await? {}
        Ok(WrittenObject { blocks: self.blocks, stripes: self.stripes.into_iter().flatten().collect() })
    }

    /// Starts writing the gathered blocks, once there is room for them.
    async fn launch(&mut self) -> Result<(), WriteError> {
        self.take_landed()?;
        let blocks = std::mem::take(&mut self.gathered);
        let bytes: u32 = blocks.iter().map(|draft| draft.block.len().bytes()).sum();
        // The object's own bound first: only its own stripes are waited for there.
        let own = self.this_object.take(bytes).await?;
        let all = self.all_objects.take(bytes).await?;
        self.take_landed()?;
        let index = self.stripes.len();
        self.stripes.push(None);
        let writer = self.groups.writer().clone();
        let draft = StripeDraft { policy: self.options.policy, blocks };
        self.flights.spawn(async move {
            let _permits = (own, all);
            (index, writer.write(draft).await)
        });
        Ok(())
    }

    /// Takes what has finished, without waiting.
    fn take_landed(&mut self) -> Result<(), WriteError> {
        while let Some(landed) = self.flights.try_join_next() {
            self.keep(landed)?;
        }
        Ok(())
    }

    /// Waits for one stripe; false when none is in flight.
    async fn landed(&mut self) -> Result<bool, WriteError> {
        match self.flights.join_next().await {
            Some(landed) => self.keep(landed).map(|()| true),
            None => Ok(false),
        }
    }

    fn keep(
        &mut self,
        landed: Result<(usize, Result<WrittenStripe, WriteError>), tokio::task::JoinError>,
    ) -> Result<(), WriteError> {
        match landed {
            Ok((index, stripe)) => {
                self.stripes[index] = Some(Arc::new(stripe?));
                Ok(())
            }
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(WriteError::Stopping),
        }
    }
}

// A stripe's bytes must fit the permits of a semaphore call: 64 shards of 1 MiB are far below 2^32.
const _: () =
    assert!(holdfast_protocol::limits::SHARDS_MAX as u64 * (BLOCK_LEN_MAX as u64) < u32::MAX as u64);

#[cfg(test)]
mod tests;
