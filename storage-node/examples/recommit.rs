//! What a commitment costs: an inventory of millions of blocks, hashed whole and then after churn.
//!
//! `cargo run --release -p holdfast-storage-node --example recommit -- [BLOCKS] [CHURN_PERCENT]`

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "shares of 65,536 buckets and seconds"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_proofs::beacon::BeaconSpec;
use holdfast_proofs::policy::AuditPolicy;
use holdfast_protocol::message::ByteRange;
use holdfast_protocol::record::AgreementId;
use holdfast_protocol::{BlockLen, Digest, SigningKey};
use holdfast_storage_node::audit::source::Seen;
use holdfast_storage_node::audit::{InventorySource, NodeAudit, SourceEntry};
use holdfast_storage_node::store::{ReadError, SharedTree, StoreError};

/// Blocks that exist only as digests: each bucket's are computed when it is asked for, so that nothing but the
/// commitment itself is measured, and memory is what the commitment takes.
struct Synthetic {
    per_bucket: u64,
    /// Blocks added per changed bucket, by churn.
    version: AtomicU64,
    changed: parking_lot::Mutex<Vec<u16>>,
}

#[async_trait]
impl InventorySource for Synthetic {
    fn generation(&self) -> u64 {
        1
    }

    fn changed(&self) -> Seen {
        Seen { buckets: self.changed.lock().clone(), token: Box::new(()) }
    }

    async fn forget(&self, _: Seen) -> Result<(), StoreError> {
        self.changed.lock().clear();
        Ok(())
    }

    async fn entries(&self, bucket: u16) -> Result<Vec<SourceEntry>, ReadError> {
        let extra = self.version.load(Ordering::Relaxed);
        let count = self.per_bucket + extra;
        // Ascending by construction: the number of the block follows the bucket.
        let entry = |number: u64| {
            let mut digest = [0x5a; 32];
            digest[..2].copy_from_slice(&bucket.to_be_bytes());
            digest[2..10].copy_from_slice(&(number << 32).to_be_bytes());
            SourceEntry { digest: Digest(digest), len: BlockLen::MAX, agreement: AgreementId([1; 32]) }
        };
        Ok((0..count).map(entry).collect())
    }

    async fn lost_since(&self, _: u64, _: usize) -> Result<Vec<Digest>, ReadError> {
        Ok(Vec::new())
    }

    async fn read(&self, _: Digest, _: &[ByteRange]) -> Result<Option<(SharedTree, Vec<Bytes>)>, ReadError> {
        Ok(None)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let blocks: u64 = arguments.next().map_or(Ok(10_000_000), |text| text.parse())?;
    let churn: f64 = arguments.next().map_or(Ok(1.0), |text| text.parse())?;
    let dir = std::env::temp_dir().join(format!("holdfast-recommit-{}", std::process::id()));
    let source = Arc::new(Synthetic {
        per_bucket: blocks.div_ceil(65_536),
        version: AtomicU64::new(0),
        changed: parking_lot::Mutex::new(Vec::new()),
    });
    let key = Arc::new(SigningKey::from_seed(&[1; 32])?);
    let policy = AuditPolicy::every(3_600_000, BeaconSpec::quicknet());
    let audit = NodeAudit::open(&dir, key, policy.clone(), source.clone())?;
    measure("everything", &audit, policy.start_of(1)).await?;
    // Blocks that come and go fall on buckets at random: of so many, this many buckets are hit.
    let hits = (blocks as f64 * churn / 100.0) / 65_536.0;
    let share = 1.0 - (-hits).exp();
    let every = (65_536.0 * share) as u64;
    source.version.store(1, Ordering::Relaxed);
    *source.changed.lock() = (0..every).map(|bucket| u16::try_from(bucket).unwrap_or(u16::MAX)).collect();
    measure(&format!("{churn} % churn"), &audit, policy.start_of(2)).await?;
    *source.changed.lock() = Vec::new();
    measure("no change", &audit, policy.start_of(3)).await?;
    drop(audit);
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

async fn measure(what: &str, audit: &NodeAudit, now_ms: u64) -> Result<(), Box<dyn std::error::Error>> {
    let (started, before) = (Instant::now(), cpu_seconds());
    let report = audit.commit(now_ms).await?.ok_or("it was committed already")?;
    println!(
        "{what:12} {:>10} blocks, {:>5} buckets hashed again: {:.2} CPU-s, {:.2} s",
        report.blocks,
        report.buckets,
        cpu_seconds() - before,
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// CPU time of all threads so far: RocksDB's are part of the cost.
fn cpu_seconds() -> f64 {
    let clock = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    clock.tv_sec as f64 + clock.tv_nsec as f64 / 1e9
}
