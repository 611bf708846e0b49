//! Measures the extent store: durable small puts, sequential large puts, 64 KiB reads at depth.
//!
//! `cargo run --profile checked -p holdfast-storage-node --example store_speed -- DIR [uring|threads]`

use std::sync::Arc;
use std::time::Instant;

use holdfast_proofs::hash_block;
use holdfast_protocol::digest::{BlockLen, Digest};
use holdfast_protocol::message::ByteRange;
use holdfast_protocol::record::{AgreementId, Claim, ClaimState, ClaimTag};
use holdfast_storage_node::store::{IoMode, NewBlock, Store, StoreConfig};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const KIB: usize = 1024;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().ok_or("usage: store_speed DIR [uring|threads]")?;
    let io = match arguments.next().as_deref() {
        Some("threads") => IoMode::Threads,
        _ => IoMode::Uring,
    };
    let store = Store::open(StoreConfig { io, ..StoreConfig::new(dir, 64 << 30) })?;
    println!("{}", store.io_name());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        puts(&store, 1, 64, 200, 100 * KIB).await?;
        let large = puts(&store, 2, 16, 128, 1024 * KIB).await?;
        reads(&store, &large, 64, 500, 64 * KIB).await?;
        reads(&store, &large, 16, 128, 1024 * KIB).await?;
        store.close().await?;
        Ok(())
    })
}

/// User and system CPU time of this process, in seconds.
fn cpu_seconds() -> f64 {
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return 0.0 };
    let after = stat.rsplit(')').next().unwrap_or_default();
    let ticks: f64 =
        after.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / 100.0
}

fn report(what: &str, count: usize, len: usize, began: Instant, cpu: f64) {
    let seconds = began.elapsed().as_secs_f64();
    let bytes = (count * len) as f64;
    println!(
        "{what}: {:.0}/s, {:.2} GB/s, {:.2} CPU-s/GiB",
        count as f64 / seconds,
        bytes / seconds / 1e9,
        (cpu_seconds() - cpu) / bytes * 1024f64.powi(3),
    );
}

async fn puts(
    store: &Arc<Store>,
    seed: u64,
    writers: usize,
    each: usize,
    len: usize,
) -> Result<Vec<Digest>, Failure> {
    let (began, cpu) = (Instant::now(), cpu_seconds());
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let store = Arc::clone(store);
            tokio::spawn(async move {
                let mut digests = Vec::with_capacity(each);
                for number in 0..each {
                    digests.push(put(&store, [seed, writer as u64, number as u64], len).await?);
                }
                Ok::<_, Failure>(digests)
            })
        })
        .collect();
    let mut digests = Vec::new();
    for task in tasks {
        digests.extend(task.await??);
    }
    report(&format!("put {} KiB, {writers} writers", len / KIB), writers * each, len, began, cpu);
    Ok(digests)
}

async fn put(store: &Store, name: [u64; 3], len: usize) -> Result<Digest, Failure> {
    let mut buffer = store.admit(BlockLen::new(u32::try_from(len)?)?).await?;
    let data = buffer.data_mut();
    // Different in a few places suffices to be another block.
    for (index, value) in name.iter().enumerate() {
        data[index * 8..index * 8 + 8].copy_from_slice(&value.to_le_bytes());
    }
    let (digest, tree) = hash_block(buffer.data());
    let claim = Claim {
        v: 1,
        agreement: AgreementId([1; 32]),
        digest,
        tag: ClaimTag([1; 16]),
        scope: None,
        state: ClaimState::Provisional,
        lease_until_ms: 0,
        retain_until_ms: 0,
        created_ms: 0,
    };
    store.put(buffer, NewBlock { digest, tree, claim }).await?;
    Ok(digest)
}

async fn reads(
    store: &Arc<Store>,
    blocks: &[Digest],
    readers: usize,
    each: usize,
    len: usize,
) -> Result<(), Failure> {
    let (began, cpu) = (Instant::now(), cpu_seconds());
    let blocks: Arc<[Digest]> = blocks.into();
    let tasks: Vec<_> = (0..readers)
        .map(|reader| {
            let (store, blocks) = (Arc::clone(store), Arc::clone(&blocks));
            tokio::spawn(async move {
                for number in 0..each {
                    let pick = (reader * each + number).wrapping_mul(0x9e37_79b9);
                    let digest = blocks[pick % blocks.len()];
                    let located = store.locate(digest).await?.ok_or("a block is missing")?;
                    let slots = located.len.as_usize() / len;
                    let start = u32::try_from(pick / 7 % slots * len)?;
                    let range = ByteRange { start, len: u32::try_from(len)? };
                    if store.read(&located, range).await?.len() != len {
                        return Err("a read was short".into());
                    }
                }
                Ok::<_, Failure>(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    report(&format!("read {} KiB, {readers} readers", len / KIB), readers * each, len, began, cpu);
    Ok(())
}
