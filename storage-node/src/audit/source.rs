//! Where the inventory comes from: what agreements keep, by bucket, and which buckets changed.

use std::any::Any;

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_protocol::message::ByteRange;
use holdfast_protocol::record::AgreementId;
use holdfast_protocol::{BlockLen, Digest};

use crate::store::{ReadError, SharedTree, StoreError};

/// One agreement keeps one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceEntry {
    /// The block.
    pub digest: Digest,
    /// Its length.
    pub len: BlockLen,
    /// Who keeps it, by a live claim.
    pub agreement: AgreementId,
}

/// What [`InventorySource::changed`] saw, to be forgotten once what was derived from it is safe.
pub struct Seen {
    /// The buckets that changed, ascending.
    pub buckets: Vec<u16>,
    /// For the source.
    pub token: Box<dyn Any + Send>,
}

/// A store, as audits see it.
#[async_trait]
pub trait InventorySource: Send + Sync + 'static {
    /// Changes whenever the notes of what changed cannot be relied on: then everything is read anew.
    fn generation(&self) -> u64;

    /// The buckets that changed since [`InventorySource::forget`].
    fn changed(&self) -> Seen;

    /// Forgets what was seen. Later changes stay noted.
    async fn forget(&self, seen: Seen) -> Result<(), StoreError>;

    /// What live claims keep in a bucket, by digest and agreement.
    async fn entries(&self, bucket: u16) -> Result<Vec<SourceEntry>, ReadError>;

    /// Blocks declared lost since then, at most `max`.
    async fn lost_since(&self, since_ms: u64, max: usize) -> Result<Vec<Digest>, ReadError>;

    /// A block's tree and some ranges of its bytes, in trash or not; `None` when it is not held at all.
    async fn read(
        &self,
        digest: Digest,
        ranges: &[ByteRange],
    ) -> Result<Option<(SharedTree, Vec<Bytes>)>, ReadError>;
}

/// A source in memory, for tests and measurements.
#[derive(Debug, Default)]
pub struct MemorySource {
    state: parking_lot::Mutex<MemoryState>,
}

#[derive(Debug, Default)]
struct MemoryState {
    blocks: std::collections::BTreeMap<Digest, (SourceEntry, Option<(SharedTree, Bytes)>)>,
    changed: std::collections::BTreeSet<u16>,
    lost: Vec<(Digest, u64)>,
    generation: u64,
}

impl MemorySource {
    /// Keeps a block under an agreement.
    pub fn keep(&self, bytes: Bytes, agreement: AgreementId) -> Digest {
        let (digest, tree) = holdfast_proofs::hash_block(&bytes);
        let entry = SourceEntry { digest, len: tree.len(), agreement };
        self.insert(entry, Some((std::sync::Arc::new(tree), bytes)));
        digest
    }

    /// Lists a block without having it.
    pub fn list(&self, entry: SourceEntry) {
        self.insert(entry, None);
    }

    fn insert(&self, entry: SourceEntry, held: Option<(SharedTree, Bytes)>) {
        let mut state = self.state.lock();
        state.changed.insert(holdfast_proofs::inventory::bucket_of(&entry.digest));
        state.blocks.insert(entry.digest, (entry, held));
    }

    /// Lets a block go.
    pub fn remove(&self, digest: &Digest) {
        let mut state = self.state.lock();
        state.changed.insert(holdfast_proofs::inventory::bucket_of(digest));
        state.blocks.remove(digest);
    }

    /// Loses a block's bytes, and says so or not.
    pub fn lose(&self, digest: &Digest, declared_ms: Option<u64>) {
        let mut state = self.state.lock();
        if let Some((_, held)) = state.blocks.get_mut(digest) {
            *held = None;
        }
        if let Some(at_ms) = declared_ms {
            state.lost.push((*digest, at_ms));
        }
    }

    /// Damages a block's bytes on the "disk".
    pub fn rot(&self, digest: &Digest) {
        let mut state = self.state.lock();
        if let Some((_, Some((_, bytes)))) = state.blocks.get_mut(digest) {
            let mut rotten = bytes.to_vec();
            rotten.iter_mut().for_each(|byte| *byte ^= 1);
            *bytes = Bytes::from(rotten);
        }
    }

    /// As if the index had been made anew.
    pub fn rebuilt(&self) {
        let mut state = self.state.lock();
        state.generation += 1;
        state.changed.clear();
    }
}

#[async_trait]
impl InventorySource for MemorySource {
    fn generation(&self) -> u64 {
        self.state.lock().generation
    }

    fn changed(&self) -> Seen {
        let buckets = self.state.lock().changed.iter().copied().collect();
        Seen { buckets, token: Box::new(()) }
    }

    async fn forget(&self, seen: Seen) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        seen.buckets.iter().for_each(|bucket| {
            state.changed.remove(bucket);
        });
        Ok(())
    }

    async fn entries(&self, bucket: u16) -> Result<Vec<SourceEntry>, ReadError> {
        let mut first = [0u8; 32];
        first[..2].copy_from_slice(&bucket.to_be_bytes());
        let mut last = [0xff; 32];
        last[..2].copy_from_slice(&bucket.to_be_bytes());
        let state = self.state.lock();
        let range = state.blocks.range(Digest(first)..=Digest(last));
        Ok(range.map(|(_, (entry, _))| *entry).collect())
    }

    async fn lost_since(&self, since_ms: u64, max: usize) -> Result<Vec<Digest>, ReadError> {
        let state = self.state.lock();
        Ok(state
            .lost
            .iter()
            .filter(|(_, at_ms)| *at_ms >= since_ms)
            .map(|(digest, _)| *digest)
            .take(max)
            .collect())
    }

    async fn read(
        &self,
        digest: Digest,
        ranges: &[ByteRange],
    ) -> Result<Option<(SharedTree, Vec<Bytes>)>, ReadError> {
        let state = self.state.lock();
        let Some((_, Some((tree, bytes)))) = state.blocks.get(&digest) else { return Ok(None) };
        let slices = ranges.iter().map(|range| bytes.slice(range.start as usize..range.end() as usize));
        Ok(Some((tree.clone(), slices.collect())))
    }
}
