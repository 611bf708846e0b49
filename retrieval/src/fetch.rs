//! Verified reading: blocks, ranges of blocks, and streams of them, whatever single nodes do.
//!
//! A healthy read is one request to the one node that holds the block: the whole block, which is hashed, or
//! the 16 KiB groups that cover a range, each proved by its path. Parity is not touched. Only when that node
//! is down, refuses, lies or lingers is the block rebuilt from any k other shards of its stripe.
//!
//! *Nothing leaves unverified.* A rebuilt range could not be checked against its block's digest by itself
//! (that takes the chaining values of the rest of the block), and a stripe row that mixes two codings would
//! then yield wrong bytes from shards that are each right. So a rebuild always makes the *whole* block, checks
//! its digest, and cuts the range out. The cost: a lone range of 64 KiB on a lost node reads k blocks (4 MiB
//! for 4+2) instead of k ranges; a small cache of rebuilt blocks makes that once per block for neighbours.
//!
//! Choices are made in [`plan`] and [`budget`], which do no I/O; [`run`] carries them out, and [`read`] is the
//! only place that talks to a node. Shards that are wrong or gone are told to
//! the pool, whose owner repairs them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use holdfast_protocol::Digest;
use holdfast_protocol::message::ByteRange;
use holdfast_protocol::record::Stripe;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

mod budget;
mod coalesce;
mod counters;
mod error;
mod flights;
pub(crate) mod gather;
mod observe;
pub(crate) mod plan;
pub mod read;
mod rebuild;
mod rebuilt;
mod run;
mod stream;
mod window;

pub use budget::HedgeLimits;
pub(crate) use counters::Counter;
pub use counters::FetchCounts;
pub use error::{FetchError, PlacementError, ReadFault, ShardReason, ShardReasons};
pub use observe::{ReadObserver, ServedBy};
pub use read::{GrantHolder, VerifiedBytes, VerifiedReader, reads_whole};
pub(crate) use rebuild::quickest_first;
pub use stream::FetchStream;

use crate::block::BlockRef;
use crate::cache::BlockCache;
use crate::pool::NodePool;
use budget::HedgeBudget;
use counters::Counters;
use flights::Flights;
use rebuilt::Rebuilt;
use window::Window;

/// Where blocks are. Implemented by whoever keeps the placement tables.
#[async_trait]
pub trait Placement: Send + Sync + 'static {
    /// The stripe that holds the block, and in which slot; `None` when no stripe does.
    async fn locate(&self, digest: &Digest) -> Result<Option<Slot>, PlacementError>;
}

/// One shard of one stripe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The stripe.
    pub stripe: Arc<Stripe>,
    /// Index into its shards.
    pub slot: usize,
}

/// Times and bounds of a [`Fetcher`].
#[derive(Clone, Debug)]
pub struct FetchConfig {
    /// One request to one node ends after this time, whatever it has sent.
    pub read_timeout: Duration,
    /// A read is never called slow before this time. Above a quiet node's worst disk and queue times.
    pub hedge_floor: Duration,
    /// A read is called slow after this time at the latest, and while a node's times are not known.
    pub hedge_ceiling: Duration,
    /// Bytes that one stream reads ahead when it starts.
    pub window_start_bytes: u64,
    /// Bytes that one stream reads ahead at most: 16 blocks keep six nodes busy at 1 ms a block.
    pub window_bytes: u64,
    /// Bytes that all streams read ahead together, besides the one block at each stream's head.
    pub ahead_bytes: usize,
    /// Bytes of shards that all rebuilds hold together.
    pub rebuild_bytes: usize,
    /// Bytes of rebuilt blocks, and of shards that they were rebuilt from, kept for the next readers.
    pub rebuilt_bytes: usize,
    /// What hedges may cost.
    pub hedges: HedgeLimits,
}

impl Default for FetchConfig {
    fn default() -> Self {
        const MIB: usize = 1024 * 1024;
        Self {
            read_timeout: Duration::from_secs(10),
            hedge_floor: Duration::from_millis(20),
            hedge_ceiling: Duration::from_secs(1),
            window_start_bytes: 4 * MIB as u64,
            window_bytes: 16 * MIB as u64,
            // With 16 streams, rebuilds and their cache: 304 MiB at most, within a gateway's 512.
            ahead_bytes: 192 * MIB,
            rebuild_bytes: 64 * MIB,
            rebuilt_bytes: 32 * MIB,
            hedges: HedgeLimits::default(),
        }
    }
}

/// Reads verified bytes. Cheap to clone.
#[derive(Clone)]
pub struct Fetcher {
    inner: Arc<Inner>,
}

/// What may stand beside a fetcher.
#[derive(Clone, Default)]
pub struct Beside {
    /// Verified blocks kept close; asked first, and given every whole block that is read.
    pub cache: Option<Arc<BlockCache>>,
    /// Permission to read, presented with every request.
    pub grants: Option<Arc<GrantHolder>>,
    /// Who is told what was served.
    pub observer: Option<Arc<dyn ReadObserver>>,
}

struct Inner {
    reader: VerifiedReader,
    placement: Arc<dyn Placement>,
    config: FetchConfig,
    ahead: Arc<Semaphore>,
    rebuilding: Arc<Semaphore>,
    rebuilt: Arc<Rebuilt>,
    flights: Arc<Flights>,
    hedges: Mutex<HedgeBudget>,
    cache: Option<Arc<BlockCache>>,
    observer: Option<Arc<dyn ReadObserver>>,
    counters: Counters,
}

impl Fetcher {
    /// A fetcher that finds blocks by `placement` and nodes in `pool`.
    pub fn new(pool: Arc<NodePool>, placement: Arc<dyn Placement>, config: FetchConfig) -> Self {
        Self::with(pool, placement, config, Beside::default())
    }

    /// A fetcher with a cache, a grant or an observer beside.
    pub fn with(
        pool: Arc<NodePool>,
        placement: Arc<dyn Placement>,
        config: FetchConfig,
        beside: Beside,
    ) -> Self {
        let inner = Inner {
            reader: VerifiedReader::new(pool, config.read_timeout).with_grants(beside.grants),
            placement,
            ahead: Arc::new(Semaphore::new(config.ahead_bytes)),
            rebuilding: Arc::new(Semaphore::new(config.rebuild_bytes)),
            rebuilt: Rebuilt::new(config.rebuilt_bytes),
            flights: Arc::default(),
            hedges: Mutex::new(HedgeBudget::new(config.hedges)),
            cache: beside.cache,
            observer: beside.observer,
            counters: Counters::default(),
            config,
        };
        Self { inner: Arc::new(inner) }
    }

    /// The whole block.
    ///
    /// # Cancel safety
    /// Cancel safe: requests under way are dropped.
    pub async fn block(&self, block: BlockRef) -> Result<Bytes, FetchError> {
        self.range(block, ByteRange { start: 0, len: block.len.bytes() }).await
    }

    /// Exactly the bytes `range` of the block.
    ///
    /// # Cancel safety
    /// Cancel safe: requests under way are dropped.
    pub async fn range(&self, block: BlockRef, range: ByteRange) -> Result<Bytes, FetchError> {
        check_range(block, range)?;
        let (bytes, by) = self.fetch(block, range).await?;
        self.observe(block, range, by);
        Ok(bytes)
    }

    pub(crate) fn observe(&self, block: BlockRef, range: ByteRange, by: ServedBy) {
        if let Some(observer) = &self.inner.observer {
            observer.served(block, range, by);
        }
    }

    async fn fetch(&self, block: BlockRef, range: ByteRange) -> Result<(Bytes, ServedBy), FetchError> {
        let inner = &self.inner;
        if let Some(bytes) = inner.rebuilt.get(&block.digest) {
            inner.counters.cached.add();
            return Ok((bytes.slice(range).into_bytes(), ServedBy::Cache));
        }
        if let Some(cache) = &inner.cache
            && let Some(bytes) = cache.get(&block, range).await
        {
            inner.counters.cached.add();
            return Ok((bytes, ServedBy::Cache));
        }
        let slot = inner.locate(block).await?;
        let error = match inner.read(block, range, &slot).await {
            Ok((bytes, by)) => return Ok((bytes.into_bytes(), by)),
            Err(error) => error,
        };
        // Repair may have moved shards since the row was read; a newer row deserves one more try.
        let moved = inner.locate(block).await?;
        if moved == slot {
            return Err(error);
        }
        inner.read(block, range, &moved).await.map(|(bytes, by)| (bytes.into_bytes(), by))
    }

    /// All of `wanted`, in its order, with as few requests as make sense: ranges of one block that lie close
    /// together, overlap or are equal are read as one. At most [`FetchConfig::window_bytes`] are under way at
    /// once; all results together are the caller's to bound.
    ///
    /// # Cancel safety
    /// Cancel safe: requests under way are dropped.
    pub async fn many(&self, wanted: &[(BlockRef, ByteRange)]) -> Result<Vec<Bytes>, FetchError> {
        for (block, range) in wanted {
            check_range(*block, *range)?;
        }
        let merged = coalesce::coalesce(wanted);
        let reads: Vec<_> = merged.iter().map(|read| (read.block, read.range)).collect();
        let mut stream = self.stream(reads);
        let mut found = vec![Bytes::new(); wanted.len()];
        for read in &merged {
            let Some(bytes) = stream.next().await.transpose()? else {
                return Err(FetchError::Stopping { digest: read.block.digest });
            };
            for (at, from) in &read.holds {
                let from = *from as usize;
                found[*at] = bytes.slice(from..from + wanted[*at].1.len as usize);
            }
        }
        Ok(found)
    }

    /// The ranges in order, read ahead within bounds (see [`FetchStream`]).
    pub fn stream<I>(&self, wanted: I) -> FetchStream
    where
        I: IntoIterator<Item = (BlockRef, ByteRange)>,
        I::IntoIter: Send + 'static,
    {
        let config = &self.inner.config;
        let window = Window::new(config.window_start_bytes, config.window_bytes);
        let budget = Arc::clone(&self.inner.ahead);
        FetchStream::new(self.clone(), Box::new(wanted.into_iter()), window, budget)
    }

    /// What was read how, since the start.
    pub fn counts(&self) -> FetchCounts {
        self.inner.counters.snapshot()
    }

    /// The cache beside, if there is one.
    pub fn cache(&self) -> Option<&Arc<BlockCache>> {
        self.inner.cache.as_ref()
    }

    /// The verified-read primitive beneath.
    pub fn reader(&self) -> &VerifiedReader {
        &self.inner.reader
    }
}

fn check_range(block: BlockRef, range: ByteRange) -> Result<(), FetchError> {
    let len = block.len.bytes();
    if range.len == 0 || range.start >= len || range.len > len - range.start {
        let end = range.end();
        return Err(FetchError::Range { digest: block.digest, len, start: range.start, end });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
