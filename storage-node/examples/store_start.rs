//! Measures how a store with a large index starts: makes an index of so many blocks of 1 MiB over extents that are holes,
//! then opens it, cold and warm.
//!
//! `cargo run --profile checked -p holdfast-storage-node --example store_start -- DIR 10000000`

use std::path::Path;
use std::time::Instant;

use holdfast_protocol::digest::Digest;
use holdfast_storage_node::store::{Store, StoreConfig, synthetic};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// RocksDB's cache: the default of a store.
const CACHE_BYTES: usize = 32 << 20;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: store_start DIR BLOCKS";
    let dir = arguments.next().ok_or(usage)?;
    let blocks: u64 = arguments.next().ok_or(usage)?.parse()?;
    let dir = Path::new(&dir);
    let began = Instant::now();
    synthetic::make_index(dir, blocks, 1 << 20, CACHE_BYTES)?;
    println!("made the index of {blocks} blocks in {:.1} s", began.elapsed().as_secs_f64());
    for start in ["cold", "warm", "warm"] {
        if start == "cold" {
            forget_cached(&dir.join("index"))?;
        }
        let before = resident_kib()?;
        let began = Instant::now();
        let store = Store::open(StoreConfig { capacity_bytes: u64::MAX / 2, ..StoreConfig::new(dir, 0) })?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(store.locate(Digest::of(b"not held")))?;
        let seconds = began.elapsed().as_secs_f64();
        let accounts = store.accounts();
        println!(
            "{start} start: {seconds:.2} s, {} blocks, {} MiB more resident",
            accounts.blocks,
            resident_kib()?.saturating_sub(before) >> 10
        );
        runtime.block_on(store.close())?;
    }
    Ok(())
}

/// Makes the system forget what it has cached of a directory's files.
fn forget_cached(dir: &Path) -> Result<(), Failure> {
    for entry in std::fs::read_dir(dir)? {
        let file = std::fs::File::open(entry?.path())?;
        file.sync_all()?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    Ok(())
}

fn resident_kib() -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).ok_or("no VmRSS")?.parse()?)
}
