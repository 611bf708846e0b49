//! The second epoch: a data set that was read once straight from the nodes is read again from the cache on the local
//! disk, beside what fio reads from the same disk.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use holdfast_retrieval::cache::{BlockCache, CacheConfig, DiskConfig};
use holdfast_retrieval::object::{AheadBudget, AheadConfig, ObjectReader, ObjectSource};

use super::direct::Reader;
use crate::disk_fio::{Fio, Job};
use crate::measure::{Round, Work};

const MIB: u64 = 1 << 20;
/// What is asked of the reader at once, and by fio of the disk.
const READ_LEN: u64 = MIB;
/// Bytes read ahead.
const AHEAD_BYTES: usize = 64 << 20;
/// How long fio reads.
const FIO_SECONDS: u64 = 3;

/// A cache in a folder that holds all of `len` bytes, and nothing in memory.
pub(super) async fn open_cache(folder: &Path, len: u64) -> Result<Arc<BlockCache>> {
    let disk = Some(DiskConfig { dir: folder.join("cache"), bytes: len + len / 4 + (64 << 20) });
    let config = CacheConfig { memory_bytes: 0, disk, ..CacheConfig::default() };
    Ok(BlockCache::open(config).await?)
}

/// Reads the object from front to back once; every byte is compared.
pub(super) async fn read_all(reader: &Reader) -> Result<Work> {
    let source = Arc::clone(reader.object()) as Arc<dyn ObjectSource>;
    let object = ObjectReader::new(source, AheadBudget::new(AHEAD_BYTES), AheadConfig::default());
    let start = Instant::now();
    let (mut at, mut latencies_us) = (0, Vec::new());
    while at < object.size() {
        let begin = Instant::now();
        let bytes = object.read(at, usize::try_from(READ_LEN)?).await?;
        latencies_us.push(u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX));
        reader.check(at, &bytes)?;
        at += bytes.len() as u64;
    }
    let operations = latencies_us.len() as u64;
    Ok(Work::one(Round { bytes: at, operations, elapsed: start.elapsed() }, latencies_us, 0))
}

/// Reads the object again and again for `limit`, from the disk each time: the system's own cache is emptied before.
pub(super) async fn read_again(reader: &Reader, folder: &Path, limit: Duration) -> Result<Work> {
    let mut work = Work::default();
    let start = Instant::now();
    while start.elapsed() < limit {
        forget(&folder.join("cache"))?;
        work.add(read_all(reader).await?);
    }
    Ok(work)
}

/// Writes what is dirty of the files in a folder and drops them from the page cache.
fn forget(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let file = std::fs::File::open(entry?.path())?;
        file.sync_all()?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    Ok(())
}

/// What fio reads from the same disk, in MB/s: 1 MiB at a time, 16 at once, past the page cache.
pub(super) fn disk_speed(folder: &Path, len: u64) -> Result<f64> {
    let fio = Fio::find(folder, FIO_SECONDS)?;
    fio.lay_out(len)?;
    let job = Job { name: "second-epoch", rw: "read", bs: "1m", depth: 16, sync_every: 0, size: len };
    Ok(fio.run(&job)?.bytes_per_second / 1e6)
}

/// All blocks must have come from the cache.
pub(super) fn ensure_from_cache(reader: &Reader, nodes_before: u64) -> Result<()> {
    let moved = reader.counts().node_bytes - nodes_before;
    ensure!(moved == 0, "{moved} bytes of the second epoch came from nodes");
    Ok(())
}
