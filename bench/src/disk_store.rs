//! The store under the same load as fio: puts by many writers, whole blocks and verified ranges by many readers.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use holdfast_proofs::{GroupTree, LeafUnit, hash_block, leaves_of, verify_leaf};
use holdfast_protocol::digest::{BlockLen, Digest};
use holdfast_protocol::message::ByteRange;
use holdfast_protocol::record::{AgreementId, Claim, ClaimState, ClaimTag};
use holdfast_storage_node::store::{Located, NewBlock, Store, StoreConfig, synthetic};

use crate::disk_stages::{HASH, Stages, VERIFY};
use crate::pattern::Dice;

/// The index cache of the measured stores: the default.
pub(crate) const INDEX_CACHE_BYTES: usize = holdfast_storage_node::store::config::INDEX_CACHE_DEFAULT_BYTES;
const BLOCK: usize = 1 << 20;

/// How fast something went, and what it cost.
#[derive(Debug, Clone, Default)]
pub(crate) struct Speed {
    pub(crate) bytes_per_second: f64,
    pub(crate) operations_per_second: f64,
    pub(crate) cpu_s_per_gib: f64,
    /// The same by stage; empty for fio.
    pub(crate) stages: Stages,
}

impl Speed {
    /// Two operations of fio for one of ours.
    pub(crate) fn halved(self) -> Self {
        Self { operations_per_second: self.operations_per_second / 2.0, ..self }
    }
}

/// A store to measure.
pub(crate) struct Bench {
    store: Arc<Store>,
    dir: std::path::PathBuf,
    pool: Arc<Vec<u8>>,
    next: Arc<AtomicU64>,
    located: parking_lot::Mutex<Arc<Vec<Located>>>,
    read_set: u64,
    cold: std::sync::atomic::AtomicBool,
}

pub(crate) fn config(dir: &Path) -> StoreConfig {
    let mut config = StoreConfig::new(dir, 64 << 30);
    config.index_cache_bytes = INDEX_CACHE_BYTES;
    // Every header of the read set can be cached: 2 GiB of 1 MiB blocks.
    config.tree_cache_entries = 4096;
    config
}

impl Bench {
    pub(crate) fn open(dir: &Path, read_set: u64) -> Result<Self> {
        let store = Store::open(config(dir)).context("the store does not open")?;
        let health = store.health();
        println!("store: {}, {} KiB of buffers registered", health.io, health.registered_bytes >> 10);
        Ok(Self {
            store,
            dir: dir.to_owned(),
            pool: Arc::new(random_block()),
            next: Arc::default(),
            located: parking_lot::Mutex::default(),
            read_set,
            cold: std::sync::atomic::AtomicBool::new(true),
        })
    }

    /// Durable puts by `writers` tasks for `time`; each hashes its own block, as the node's server does.
    pub(crate) async fn puts(&self, writers: usize, len: usize, time: Duration) -> Result<Speed> {
        let (began, cpu) = (Instant::now(), Spent::now()?);
        let tasks: Vec<_> = (0..writers)
            .map(|_| {
                let (store, pool, next) =
                    (Arc::clone(&self.store), Arc::clone(&self.pool), Arc::clone(&self.next));
                tokio::spawn(async move {
                    let mut done = 0u64;
                    while began.elapsed() < time {
                        put(&store, &pool, next.fetch_add(1, Ordering::Relaxed), len).await?;
                        done += 1;
                    }
                    anyhow::Ok(done)
                })
            })
            .collect();
        speed(tasks, len, began, cpu).await
    }

    /// Puts the blocks that are read.
    pub(crate) async fn fill(&self) -> Result<()> {
        let blocks = self.read_set / BLOCK as u64;
        let mut located = Vec::new();
        for first in (0..blocks).step_by(32) {
            let puts = (first..blocks.min(first + 32))
                .map(|_| put(&self.store, &self.pool, self.next.fetch_add(1, Ordering::Relaxed), BLOCK));
            for digest in futures_all(puts.collect()).await? {
                located.push(self.store.locate(digest).await?.context("a block that was put is not held")?);
            }
        }
        *self.located.lock() = Arc::new(located);
        Ok(())
    }

    /// From here on every read of a part also reads the header page.
    pub(crate) fn forget_headers(&self) {
        self.cold.store(true, Ordering::Relaxed);
        self.store.forget_trees();
    }

    /// Reads every header once, and keeps them.
    pub(crate) async fn remember_headers(&self) -> Result<()> {
        self.cold.store(false, Ordering::Relaxed);
        let located = Arc::clone(&self.located.lock());
        for block in located.iter() {
            self.store.tree(block).await?;
        }
        Ok(())
    }

    /// Random reads of `len` bytes by `readers` tasks for `time`.
    pub(crate) async fn reads(
        &self,
        readers: usize,
        len: usize,
        verified: bool,
        time: Duration,
    ) -> Result<Speed> {
        let located = Arc::clone(&self.located.lock());
        let cold = verified && self.cold.load(Ordering::Relaxed);
        let (began, cpu) = (Instant::now(), Spent::now()?);
        let tasks: Vec<_> = (0..readers as u64)
            .map(|reader| {
                let (store, located) = (Arc::clone(&self.store), Arc::clone(&located));
                tokio::spawn(async move {
                    let mut dice = Dice(reader);
                    let mut done = 0u64;
                    while began.elapsed() < time {
                        let block = &located[usize::try_from(dice.below(located.len() as u64))?];
                        let start = dice.below(((BLOCK - len) / 65_536 + 1) as u64) * 65_536;
                        let range = ByteRange { start: u32::try_from(start)?, len: u32::try_from(len)? };
                        match verified {
                            true => read_verified(&store, block, range, cold).await?,
                            false => {
                                ensure!(store.read(block, range).await?.len() == len, "a short read");
                            }
                        }
                        done += 1;
                    }
                    anyhow::Ok(done)
                })
            })
            .collect();
        speed(tasks, len, began, cpu).await
    }

    /// CPU-seconds to hash a GiB of blocks.
    pub(crate) fn hash_cost(&self) -> f64 {
        let data = Arc::clone(&self.pool);
        let began = Instant::now();
        let rounds = 512;
        for _ in 0..rounds {
            std::hint::black_box(hash_block(std::hint::black_box(&data[..])));
        }
        began.elapsed().as_secs_f64() / f64::from(rounds) * 1024.0
    }

    pub(crate) async fn close(&self) -> Result<()> {
        self.store.close().await.with_context(|| format!("closing {}", self.dir.display()))
    }
}

pub(crate) async fn put(store: &Store, pool: &[u8], number: u64, len: usize) -> Result<Digest> {
    let mut buffer = store.admit(BlockLen::new(u32::try_from(len)?)?).await?;
    buffer.data_mut().copy_from_slice(&pool[..len]);
    // No two blocks are equal.
    buffer.data_mut()[..8].copy_from_slice(&number.to_le_bytes());
    let (digest, tree) = HASH.run(|| hash_block(buffer.data()));
    let claim = Claim {
        v: 1,
        agreement: AgreementId([1; 32]),
        digest,
        tag: ClaimTag([1; 16]),
        scope: None,
        state: ClaimState::Provisional,
        lease_until_ms: u64::MAX,
        retain_until_ms: 0,
        created_ms: 0,
    };
    store.put(buffer, NewBlock { digest, tree, claim }).await?;
    Ok(digest)
}

/// A range, checked leaf by leaf against the digest, as a reader elsewhere checks it.
async fn read_verified(store: &Store, block: &Located, range: ByteRange, cold: bool) -> Result<()> {
    if cold {
        store.forget_tree(&block.digest);
    }
    let (tree, bytes) = tokio::try_join!(store.tree(block), store.read(block, range))?;
    let groups = leaves_of(LeafUnit::Group, range, block.len)?;
    VERIFY.run(|| check(block, &tree, groups, &bytes))
}

fn check(block: &Located, tree: &GroupTree, groups: std::ops::Range<u32>, bytes: &[u8]) -> Result<()> {
    let paths = tree.group_paths(groups)?;
    let pieces = bytes.chunks(LeafUnit::Group.len() as usize);
    for (path, piece) in paths.iter().zip(pieces) {
        verify_leaf(&block.digest, block.len, LeafUnit::Group, path.index, piece, &path.siblings)?;
    }
    Ok(())
}

async fn futures_all<T>(futures: Vec<impl Future<Output = Result<T>>>) -> Result<Vec<T>> {
    let mut running: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut done: Vec<Option<T>> = running.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (slot, future) in done.iter_mut().zip(&mut running) {
            if slot.is_none()
                && let std::task::Poll::Ready(result) = future.as_mut().poll(context)
            {
                match result {
                    Ok(value) => *slot = Some(value),
                    Err(error) => return std::task::Poll::Ready(Err(error)),
                }
            }
        }
        if done.iter().all(Option::is_some) {
            std::task::Poll::Ready(Ok(()))
        } else {
            std::task::Poll::Pending
        }
    })
    .await?;
    Ok(done.into_iter().flatten().collect())
}

async fn speed(
    tasks: Vec<tokio::task::JoinHandle<Result<u64>>>,
    len: usize,
    began: Instant,
    before: Spent,
) -> Result<Speed> {
    let mut done = 0u64;
    for task in tasks {
        done += task.await.context("a worker ended in a panic")??;
    }
    if done == 0 {
        bail!("nothing was done in the time given");
    }
    let seconds = began.elapsed().as_secs_f64();
    let (operations, bytes) = (done as f64, done as f64 * len as f64);
    let spent = Spent::now()?;
    Ok(Speed {
        bytes_per_second: bytes / seconds,
        operations_per_second: operations / seconds,
        cpu_s_per_gib: (spent.seconds - before.seconds) / (bytes / 1024f64.powi(3)),
        stages: spent.stages.per_gib(&before.stages, bytes),
    })
}

/// CPU that was used so far.
struct Spent {
    seconds: f64,
    stages: Stages,
}

impl Spent {
    fn now() -> Result<Self> {
        Ok(Self { seconds: cpu_seconds()?, stages: Stages::now()? })
    }
}

/// A block of random bytes.
pub(crate) fn random_block() -> Vec<u8> {
    let mut dice = Dice(7);
    (0..BLOCK / 8).flat_map(|_| dice.roll().to_le_bytes()).collect()
}

/// User and system CPU time of this process, in seconds.
fn cpu_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let after = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok());
    Ok(ticks.sum::<f64>() / 100.0)
}

/// Makes a store whose index names `blocks` blocks of 1 MiB; answers the seconds it took and the index's bytes.
pub(crate) fn make_index(dir: &Path, blocks: u64) -> Result<(f64, u64)> {
    let began = Instant::now();
    synthetic::make_index(dir, blocks, 1 << 20, INDEX_CACHE_BYTES)?;
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir.join("index"))? {
        bytes += entry?.metadata()?.len();
    }
    Ok((began.elapsed().as_secs_f64(), bytes))
}

/// Makes the system forget what it has cached of a directory's files.
pub(crate) fn forget_cached(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let file = std::fs::File::open(entry?.path())?;
        file.sync_all()?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    Ok(())
}

/// A start.
pub(crate) struct Opened {
    pub(crate) seconds: f64,
    /// Resident memory that it added, less the index cache.
    pub(crate) grown_bytes: u64,
    pub(crate) cache_bytes: u64,
}

/// Opens the store and looks a block up, as a start is over when the store answers.
pub(crate) fn open_timed(dir: &Path, blocks: u64) -> Result<Opened> {
    let before = resident_bytes()?;
    let began = Instant::now();
    let mut config = config(dir);
    config.capacity_bytes = u64::MAX / 2;
    let store = Store::open(config)?;
    ensure!(store.accounts().blocks == blocks, "the index says {} blocks", store.accounts().blocks);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(store.locate(Digest::of(b"not held")))?;
    let seconds = began.elapsed().as_secs_f64();
    let grown = resident_bytes()?.saturating_sub(before);
    runtime.block_on(store.close())?;
    let cache_bytes = INDEX_CACHE_BYTES as u64;
    Ok(Opened { seconds, grown_bytes: grown.saturating_sub(cache_bytes), cache_bytes })
}

pub(crate) fn resident_bytes() -> Result<u64> {
    status_bytes("VmRSS:")
}

/// Resident memory at its highest.
pub(crate) fn peak_bytes() -> Result<u64> {
    status_bytes("VmHWM:")
}

fn status_bytes(field: &'static str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(field)).context(field)?;
    let kib: u64 = line.split_whitespace().nth(1).context(field)?.parse()?;
    Ok(kib * 1024)
}
