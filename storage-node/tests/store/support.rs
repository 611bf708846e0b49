//! What the store's tests share: a clock of their own, blocks by seed, and a store that can be crashed.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use holdfast_proofs::hash_block;
use holdfast_protocol::digest::{BlockLen, Digest};
use holdfast_protocol::message::ByteRange;
use holdfast_protocol::record::{AgreementId, Claim, ClaimRef, ClaimState, ClaimTag};
use holdfast_protocol::time::Clock;
use holdfast_storage_node::disk::FaultDisk;
use holdfast_storage_node::store::{IoMode, NewBlock, PutError, PutOutcome, Store, StoreConfig};

pub(crate) const TRASH_MS: u64 = 1_000;

#[derive(Default)]
pub(crate) struct TestClock(AtomicU64);

impl TestClock {
    pub(crate) fn at(ms: u64) -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(ms)))
    }
    pub(crate) fn set(&self, ms: u64) {
        self.0.store(ms, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

pub(crate) fn config(dir: &Path, io: IoMode, clock: &Arc<TestClock>) -> StoreConfig {
    StoreConfig {
        io,
        trash_period_ms: TRASH_MS,
        extent_bytes: 2 << 20,
        preallocate_bytes: 256 << 10,
        clock: Arc::clone(clock) as Arc<dyn Clock>,
        ..StoreConfig::new(dir, 64 << 20)
    }
}

pub(crate) fn faulty(dir: &Path, disk: &Arc<FaultDisk>, clock: &Arc<TestClock>) -> StoreConfig {
    StoreConfig { disk: Some(Arc::clone(disk) as _), ..config(dir, IoMode::Threads, clock) }
}

pub(crate) fn agreement(number: u8) -> AgreementId {
    AgreementId([number; 32])
}

pub(crate) fn tag(number: u8) -> ClaimTag {
    ClaimTag([number; 16])
}

/// Bytes that differ for each seed and do not compress.
pub(crate) fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

pub(crate) fn claim(digest: Digest, agreement: AgreementId, tag: ClaimTag) -> Claim {
    Claim {
        v: 1,
        agreement,
        digest,
        tag,
        scope: None,
        state: ClaimState::Provisional,
        lease_until_ms: 5_000,
        retain_until_ms: 0,
        created_ms: 1,
    }
}

pub(crate) async fn put_claimed(store: &Store, data: &[u8], claim: Claim) -> Result<PutOutcome, PutError> {
    let mut buffer = store.admit(BlockLen::of(data).unwrap()).await?;
    assert!(buffer.extend_from_slice(data));
    let (digest, tree) = hash_block(data);
    store.put(buffer, NewBlock { digest, tree, claim }).await
}

pub(crate) async fn put(store: &Store, data: &[u8]) -> Result<PutOutcome, PutError> {
    put_claimed(store, data, claim(Digest::of(data), agreement(1), tag(1))).await
}

pub(crate) async fn read(store: &Store, digest: Digest) -> Option<Bytes> {
    let located = store.locate(digest).await.unwrap()?;
    let range = ByteRange { start: 0, len: located.len.bytes() };
    Some(store.read(&located, range).await.unwrap())
}

pub(crate) fn first(digest: Digest) -> ClaimRef {
    ClaimRef(digest, tag(1))
}

/// A copy of a store's directory as a crash would leave it: what RocksDB has in memory only is not in it.
/// A copy during which RocksDB removed a file is no single moment's, and is made again.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    for _attempt in 0..100 {
        match try_copy(from, to) {
            Ok(()) => return,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                std::fs::remove_dir_all(to).unwrap();
            }
            Err(error) => panic!("copying: {error}"),
        }
    }
    panic!("the index never held still");
}

fn try_copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            try_copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Every test of a mode, for both modes.
#[macro_export]
macro_rules! in_both_modes {
    ($($name:ident),* $(,)?) => {
        mod by_uring {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(holdfast_storage_node::store::IoMode::Uring).await;
            })*
        }
        mod by_threads {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(holdfast_storage_node::store::IoMode::Threads).await;
            })*
        }
    };
}
