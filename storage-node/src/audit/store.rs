//! The node's own store as the source of its inventory.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_protocol::Digest;
use holdfast_protocol::message::ByteRange;
use holdfast_protocol::record::AgreementId;

use super::source::{InventorySource, Seen, SourceEntry};
use crate::disks::{Disks, DisksChanged};
use crate::store::{ReadError, SharedTree, StoreError};

/// Where the node keeps its blocks.
pub(crate) type NodeStore = Disks;

/// Entries asked for at once: a bucket of a full 10 TB node has about 150.
const ENTRIES_AT_ONCE: usize = 1024;
/// Losses asked for at once.
const LOSSES_AT_ONCE: usize = 1024;

/// See [`InventorySource`].
pub(crate) struct StoreSource(Arc<NodeStore>);

impl StoreSource {
    pub(crate) const fn new(store: Arc<NodeStore>) -> Self {
        Self(store)
    }
}

#[async_trait]
impl InventorySource for StoreSource {
    fn generation(&self) -> u64 {
        self.0.generation()
    }

    fn changed(&self) -> Seen {
        let seen = self.0.changed_buckets();
        Seen { buckets: seen.buckets(), token: Box::new(seen) }
    }

    async fn forget(&self, seen: Seen) -> Result<(), StoreError> {
        match seen.token.downcast::<DisksChanged>() {
            Ok(seen) => self.0.forget_changed(*seen).await,
            // Somebody else's token: nothing is forgotten, and everything hashed once more.
            Err(_) => Ok(()),
        }
    }

    async fn entries(&self, bucket: u16) -> Result<Vec<SourceEntry>, ReadError> {
        let mut entries = Vec::new();
        let mut after: Option<(Digest, AgreementId)> = None;
        loop {
            let some = self.0.entries(bucket, after, ENTRIES_AT_ONCE).await?;
            let is_last = some.len() < ENTRIES_AT_ONCE;
            after = some.last().map(|entry| (entry.digest, entry.agreement));
            let live = some.into_iter().filter(|entry| entry.live);
            entries.extend(live.map(|entry| SourceEntry {
                digest: entry.digest,
                len: entry.len,
                agreement: entry.agreement,
            }));
            if is_last {
                return Ok(entries);
            }
        }
    }

    async fn lost_since(&self, since_ms: u64, max: usize) -> Result<Vec<Digest>, ReadError> {
        let mut lost = Vec::new();
        let mut after = None;
        loop {
            let some = self.0.losses(after, LOSSES_AT_ONCE).await?;
            let is_last = some.len() < LOSSES_AT_ONCE;
            after = some.last().map(|loss| loss.digest);
            lost.extend(some.iter().filter(|loss| loss.declared_ms >= since_ms).map(|loss| loss.digest));
            if is_last || lost.len() >= max {
                lost.truncate(max);
                return Ok(lost);
            }
        }
    }

    async fn read(
        &self,
        digest: Digest,
        ranges: &[ByteRange],
    ) -> Result<Option<(SharedTree, Vec<Bytes>)>, ReadError> {
        let reading = async {
            let Some(located) = self.0.locate(digest).await? else { return Ok(None) };
            let tree = self.0.tree(&located).await?;
            let mut bytes = Vec::with_capacity(ranges.len());
            for range in ranges {
                bytes.push(self.0.read(&located, *range).await?);
            }
            Ok(Some((tree, bytes)))
        };
        match reading.await {
            // It will not come back: better to say so than to let the time run out.
            Err(ReadError::Gone { .. } | ReadError::Damaged { .. }) => Ok(None),
            other => other,
        }
    }
}
