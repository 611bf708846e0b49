//! Memory of a store with a large index while it is used: puts and reads all over the index, for some seconds.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use holdfast_protocol::message::ByteRange;
use holdfast_storage_node::store::{Store, synthetic};
use serde::Serialize;

use crate::disk_store::{INDEX_CACHE_BYTES, config, peak_bytes, put, random_block, resident_bytes};
use crate::pattern::Dice;

const WRITERS: u64 = 16;
const READERS: u64 = 32;
const PUT_LEN: usize = 100 << 10;
const READ_LEN: u32 = 64 << 10;

/// What a store with a large index takes under load.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LoadLine {
    pub(crate) seconds: f64,
    pub(crate) puts: u64,
    pub(crate) reads: u64,
    /// Resident memory at its highest, beyond what the process had before, less the index cache.
    pub(crate) peak_bytes: u64,
    /// The goal of it.
    pub(crate) goal_bytes: u64,
}

/// Uses the store in `dir`, whose index names `blocks` blocks, for `time`.
pub(crate) fn under_load(dir: &Path, blocks: u64, time: Duration) -> Result<LoadLine> {
    let before = resident_bytes()?;
    // Peaks are those of this line from here on.
    std::fs::write("/proc/self/clear_refs", "5").context("the peak of resident memory cannot be set back")?;
    let mut wide = config(dir);
    wide.capacity_bytes = u64::MAX / 2;
    let store = Store::open(wide)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let began = Instant::now();
    let (puts, reads) = runtime.block_on(use_it(&store, blocks, began, time))?;
    let seconds = began.elapsed().as_secs_f64();
    let peak = peak_bytes()?.saturating_sub(before);
    runtime.block_on(store.close())?;
    ensure!(puts > 0 && reads > 0, "nothing was done in the time given");
    let peak_bytes = peak.saturating_sub(INDEX_CACHE_BYTES as u64);
    Ok(LoadLine { seconds, puts, reads, peak_bytes, goal_bytes: 256 << 20 })
}

async fn use_it(store: &Arc<Store>, blocks: u64, began: Instant, time: Duration) -> Result<(u64, u64)> {
    let (pool, next) = (Arc::new(random_block()), Arc::new(AtomicU64::new(0)));
    let mut writers = Vec::new();
    for _ in 0..WRITERS {
        let (store, pool, next) = (Arc::clone(store), Arc::clone(&pool), Arc::clone(&next));
        writers.push(tokio::spawn(async move {
            let mut done = 0u64;
            while began.elapsed() < time {
                put(&store, &pool, next.fetch_add(1, Ordering::Relaxed), PUT_LEN).await?;
                done += 1;
            }
            anyhow::Ok(done)
        }));
    }
    let mut readers = Vec::new();
    for reader in 0..READERS {
        let store = Arc::clone(store);
        readers.push(tokio::spawn(async move {
            let (mut dice, mut done) = (Dice(reader), 0u64);
            while began.elapsed() < time {
                let digest = synthetic::digest(dice.below(blocks), blocks);
                let located = store.locate(digest).await?.context("a block of the index is not held")?;
                // The extents are holes: what comes back is zeros, through the same buffers.
                store.read(&located, ByteRange { start: 0, len: READ_LEN }).await?;
                done += 1;
            }
            anyhow::Ok(done)
        }));
    }
    let (mut puts, mut reads) = (0, 0);
    for writer in writers {
        puts += writer.await??;
    }
    for reader in readers {
        reads += reader.await??;
    }
    Ok((puts, reads))
}
