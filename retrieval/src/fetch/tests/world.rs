//! Stripes on fake nodes, and the table that knows where they are.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use holdfast_protocol::record::{PolicyName, Record, StripeId};
use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;
use crate::code::Code;
use crate::testing::TestNetwork;

/// Bytes that differ by `salt` and do not repeat.
pub(super) fn noise(len: usize, salt: usize) -> Bytes {
    let mut bytes = vec![0; len];
    let salt = u64::try_from(salt).unwrap().to_le_bytes();
    blake3::Hasher::new_derive_key("holdfast test noise").update(&salt).finalize_xof().fill(&mut bytes);
    Bytes::from(bytes)
}

pub(super) fn name(bytes: &Bytes) -> BlockRef {
    BlockRef { digest: Digest::of(bytes), len: BlockLen::of(bytes).unwrap() }
}

/// A placement table in memory.
#[derive(Default)]
pub(super) struct Table {
    rows: Mutex<HashMap<Digest, Slot>>,
    /// A stripe that takes its place after so many more look-ups.
    coming: Mutex<Option<Arc<Stripe>>>,
    countdown: AtomicUsize,
}

impl Table {
    pub(super) fn enter(&self, stripe: Arc<Stripe>) {
        let mut rows = self.rows.lock();
        for slot in 0..usize::from(stripe.k) {
            if let Some(shard) = &stripe.shards[slot] {
                rows.insert(shard.digest, Slot { stripe: Arc::clone(&stripe), slot });
            }
        }
    }

    pub(super) fn enter_after_reads(&self, stripe: Arc<Stripe>, reads: usize) {
        *self.coming.lock() = Some(stripe);
        self.countdown.store(reads, Ordering::Relaxed);
    }

    pub(super) fn row(&self, digest: &Digest) -> Slot {
        self.rows.lock().get(digest).cloned().unwrap()
    }
}

#[async_trait]
impl Placement for Table {
    async fn locate(&self, digest: &Digest) -> Result<Option<Slot>, PlacementError> {
        let found = self.rows.lock().get(digest).cloned();
        let coming = self.coming.lock().clone();
        if let Some(stripe) = coming
            && self.countdown.fetch_sub(1, Ordering::Relaxed) == 1
        {
            self.enter(stripe);
        }
        Ok(found)
    }
}

pub(super) struct World {
    pub(super) network: TestNetwork,
    pub(super) table: Arc<Table>,
    stripes: usize,
}

impl World {
    pub(super) async fn start(nodes: usize) -> Self {
        Self { network: TestNetwork::start(nodes).await, table: Arc::default(), stripes: 0 }
    }

    /// Codes the blocks and places shard after shard, each stripe beginning one node further.
    pub(super) fn put(&mut self, k: usize, m: usize, blocks: &[Bytes]) -> Arc<Stripe> {
        let parity = Code::shared(k, m).unwrap().encode(blocks).unwrap();
        let shift = self.stripes;
        self.stripes += 1;
        let nodes = &self.network.nodes;
        let place = |slot: usize, bytes: &Bytes| {
            let node = &nodes[(slot + shift) % nodes.len()];
            node.place(bytes.clone());
            let BlockRef { digest, len } = name(bytes);
            Some(Shard { digest, len, node: Some(node.id()) })
        };
        let mut shards: Vec<Option<Shard>> =
            blocks.iter().enumerate().map(|(slot, bytes)| place(slot, bytes)).collect();
        shards.resize(k, None);
        shards.extend(parity.iter().enumerate().map(|(index, bytes)| place(k + index, bytes)));
        let stripe = Arc::new(Stripe {
            v: Stripe::VERSION,
            id: StripeId([u8::try_from(shift).unwrap(); 16]),
            version: 1,
            policy: PolicyName::Local,
            k: u8::try_from(k).unwrap(),
            m: u8::try_from(m).unwrap(),
            block_len: blocks.iter().map(|bytes| BlockLen::of(bytes).unwrap()).max().unwrap(),
            shards,
        });
        self.table.enter(Arc::clone(&stripe));
        stripe
    }

    pub(super) fn holder(&self, stripe: &Stripe, slot: usize) -> Arc<FakeNode> {
        Arc::clone(self.network.node(node_at(stripe, slot).unwrap()))
    }

    /// ReadBlock requests that all nodes have taken.
    pub(super) fn reads(&self) -> u64 {
        self.network.nodes.iter().map(|node| node.reads()).sum()
    }

    pub(super) fn fetcher(&self) -> Fetcher {
        self.fetcher_with(FetchConfig::default())
    }

    pub(super) fn fetcher_with(&self, config: FetchConfig) -> Fetcher {
        let table = Arc::clone(&self.table) as Arc<dyn Placement>;
        Fetcher::new(Arc::clone(&self.network.pool), table, config)
    }
}

fn lens() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1usize), 1usize..2000, 16_000usize..17_000, 30_000usize..200_000]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Any code, any lengths, any erasures within the parity, any range: the bytes are the original's.
    #[test]
    fn any_range_of_any_block_survives_any_m_losses(
        k in 1usize..7, m in 1usize..5, lens in prop::collection::vec(lens(), 1..7),
        dead in any::<u64>(), pick in any::<u64>(), from in 0.0f64..1.0, to in 0.0f64..1.0,
    ) {
        let blocks: Vec<Bytes> =
            lens.iter().take(k).enumerate().map(|(salt, len)| noise(*len, salt)).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut world = World::start(k + m).await;
            world.put(k, m, &blocks);
            let mut left = m;
            for (index, node) in world.network.nodes.iter().enumerate() {
                if left > 0 && dead >> (index % 64) & 1 == 1 {
                    left -= 1;
                    match dead >> (index + 20) & 3 {
                        0 => node.vanish().await,
                        1 => node.behave(Behaviour::FlipBit),
                        2 => node.behave(Behaviour::RefuseReads(RefusalReason::NotFound)),
                        _ => node.behave(Behaviour::Truncate),
                    }
                }
            }
            let bytes = &blocks[usize::try_from(pick % 97).unwrap() % blocks.len()];
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let at = |part: f64| ((bytes.len() - 1) as f64 * part) as usize;
            let (start, end) = (at(from).min(at(to)), at(from).max(at(to)) + 1);
            let fetcher = world.fetcher();
            let part = fetcher.range(name(bytes), range(start, end - start)).await.unwrap();
            assert!(part == bytes.slice(start..end));
            assert!(fetcher.block(name(bytes)).await.unwrap() == *bytes);
        });
    }
}
