//! What a fetcher did, in numbers: shown by the gateway, asserted by tests.

use std::sync::atomic::{AtomicU64, Ordering};

/// Reads since the start, by how they were served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FetchCounts {
    /// From the node that holds the block.
    pub direct: u64,
    /// From a block rebuilt a moment before.
    pub cached: u64,
    /// Blocks rebuilt from their stripes.
    pub rebuilt: u64,
    /// Times that a slow node was given company.
    pub hedged: u64,
    /// Verified bytes of shards read for rebuilds.
    pub rebuild_bytes_read: u64,
    /// Verified bytes that nodes sent, for whatever reason.
    pub node_bytes: u64,
}

/// One counter.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self) {
        self.add_many(1);
    }

    pub(crate) fn add_many(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters behind [`FetchCounts`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) direct: Counter,
    pub(crate) cached: Counter,
    pub(crate) rebuilt: Counter,
    pub(crate) hedged: Counter,
    pub(crate) rebuild_bytes_read: Counter,
    pub(crate) node_bytes: Counter,
}

impl Counters {
    pub(crate) fn snapshot(&self) -> FetchCounts {
        FetchCounts {
            direct: self.direct.read(),
            cached: self.cached.read(),
            rebuilt: self.rebuilt.read(),
            hedged: self.hedged.read(),
            rebuild_bytes_read: self.rebuild_bytes_read.read(),
            node_bytes: self.node_bytes.read(),
        }
    }
}
