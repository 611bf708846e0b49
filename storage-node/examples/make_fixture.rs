//! Makes the fixture `tests/fixtures/store-v1` anew, with the release that it is run by.
//!
//! `cargo run --profile checked -p holdfast-storage-node --example make_fixture -- DIR`

use std::sync::Arc;

use holdfast_proofs::hash_block;
use holdfast_protocol::digest::{BlockLen, Digest};
use holdfast_protocol::record::{AgreementId, Claim, ClaimRef, ClaimState, ClaimTag};
use holdfast_protocol::time::Clock;
use holdfast_storage_node::store::{IoMode, NewBlock, Store, StoreConfig};

type Failure = Box<dyn std::error::Error + Send + Sync>;

struct Still;

impl Clock for Still {
    fn now_ms(&self) -> u64 {
        100
    }
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

async fn put(store: &Store, seed: u64, len: usize, tag: u8) -> Result<ClaimRef, Failure> {
    let data = bytes(seed, len);
    let (digest, tree) = hash_block(&data);
    let claim = Claim {
        v: 1,
        agreement: AgreementId([1; 32]),
        digest,
        tag: ClaimTag([tag; 16]),
        scope: None,
        state: ClaimState::Provisional,
        lease_until_ms: 50_000,
        retain_until_ms: 0,
        created_ms: 1,
    };
    let mut buffer = store.admit(BlockLen::of(&data)?).await?;
    buffer.extend_from_slice(&data);
    store.put(buffer, NewBlock { digest, tree, claim }).await?;
    Ok(ClaimRef(Digest::of(&data), claim.tag))
}

fn main() -> Result<(), Failure> {
    let dir = std::env::args().nth(1).ok_or("usage: make_fixture DIR")?;
    let mut config = StoreConfig::new(dir, 64 << 20);
    config.io = IoMode::Threads;
    config.extent_bytes = 2 << 20;
    config.preallocate_bytes = 256 << 10;
    config.trash_period_ms = 1_000;
    config.clock = Arc::new(Still);
    let store = Store::open(config)?;
    let agreement = AgreementId([1; 32]);
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        put(&store, 1, 1, 1).await?;
        put(&store, 2, 4_096, 1).await?;
        let live = put(&store, 3, 20_000, 1).await?;
        put(&store, 3, 20_000, 2).await?;
        let trash = put(&store, 4, 40_000, 1).await?;
        let punched = put(&store, 5, 9_000, 1).await?;
        let lost = put(&store, 6, 100, 1).await?;
        store.commit(agreement, &[live], 77).await?;
        store.delete(agreement, &[punched], None).await?;
        store.reclaim(2_000).await?;
        store.delete(agreement, &[trash], Some(bytes(77, 300))).await?;
        store.declare_lost(lost.0).await?;
        store.close().await?;
        Ok(())
    })
}
