//! Packing over fake nodes with rows in memory, and the plan by itself.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use holdfast_protocol::message::RefusalReason;
use holdfast_protocol::record::{ClaimState, Policy, Record, Shard};
use holdfast_protocol::{BlockLen, OperatorId, PublicKey};
use proptest::prelude::*;

use super::*;
use crate::block::Block;
use crate::code::{Code, ShardPiece, WantedShard};
use crate::placement::{Candidate, FailureDomain};
use crate::testing::{Behaviour, TestNetwork};
use crate::write::{CpuPool, DraftBlock, StripeDraft, StripeWriter, WriteConfig};

/// Rows in memory. What would be queued for delivery is only remembered.
#[derive(Default)]
struct Rows {
    stripes: Mutex<BTreeMap<StripeId, (Stripe, UnixMs)>>,
    dead: Mutex<HashSet<Digest>>,
    intents: Mutex<BTreeMap<StripeId, Vec<(NodeId, Digest)>>>,
    abandoned: Mutex<Vec<(StripeId, NodeId, Digest)>>,
    /// Somebody else changes a row just before the next transaction.
    interfere: AtomicBool,
}

#[async_trait]
impl PackStore for Rows {
    async fn pack_candidates(
        &self,
        after: Option<StripeId>,
        _limit: usize,
    ) -> Result<(Vec<PackCandidate>, Option<StripeId>), RepairStoreError> {
        // Pages of three, so that paging is exercised.
        let stripes = self.stripes.lock();
        let dead = self.dead.lock();
        let page: Vec<PackCandidate> = stripes
            .iter()
            .filter(|(id, _)| after.is_none_or(|after| **id > after))
            .take(3)
            .map(|(_, (stripe, since_ms))| {
                let lives = |shard: &Option<Shard>| shard.is_some_and(|shard| !dead.contains(&shard.digest));
                let live = stripe.shards[..usize::from(stripe.k)].iter().map(lives).collect();
                PackCandidate { stripe: stripe.clone(), live, since_ms: *since_ms }
            })
            .collect();
        let next = page.last().map(|candidate| candidate.stripe.id).filter(|_| page.len() == 3);
        Ok((page, next))
    }

    async fn parity_terms(&self, _sources: &[Stripe]) -> Result<ShardTerms, RepairStoreError> {
        Ok(ShardTerms::default())
    }

    async fn intend(&self, packed: StripeId, claims: &[(NodeId, Digest)]) -> Result<bool, RepairStoreError> {
        Ok(self.intents.lock().insert(packed, claims.to_vec()).is_none())
    }

    async fn pack(&self, change: &PackChange) -> Result<Replaced, RepairStoreError> {
        if self.interfere.swap(false, Ordering::Relaxed) {
            return Ok(Replaced::Conflict);
        }
        let mut stripes = self.stripes.lock();
        for read in change.survivor.iter().chain(&change.absorbed) {
            let (standing, _) = stripes.remove(&read.id).expect("nobody else changes rows");
            assert_eq!(standing, *read);
        }
        stripes.insert(change.packed.id, (change.packed.clone(), 0));
        self.intents.lock().remove(&change.packed.id);
        Ok(Replaced::Done)
    }

    async fn abandon(&self, packed: StripeId) -> Result<(), RepairStoreError> {
        let claims = self.intents.lock().remove(&packed).unwrap_or_default();
        self.abandoned.lock().extend(claims.into_iter().map(|(node, digest)| (packed, node, digest)));
        Ok(())
    }

    async fn intents(&self, limit: usize) -> Result<Vec<StripeId>, RepairStoreError> {
        Ok(self.intents.lock().keys().copied().take(limit).collect())
    }
}

struct World {
    network: TestNetwork,
    rows: Arc<Rows>,
    packer: Packer,
    writer: StripeWriter,
    bytes: BTreeMap<Digest, Bytes>,
    salt: u64,
}

fn tags() -> TagKey {
    TagKey::new([4; 32])
}

impl World {
    async fn start(nodes: usize) -> Self {
        let network = TestNetwork::start(nodes).await;
        let rows = Arc::new(Rows::default());
        let packer = Packer::new(Arc::clone(&network.pool), Arc::clone(&rows) as _, tags());
        let pool = Arc::clone(&network.pool);
        let writer = StripeWriter::new(pool, tags(), CpuPool::new(1), 1, WriteConfig::default());
        Self { network, rows, packer, writer, bytes: BTreeMap::new(), salt: 0 }
    }

    /// A stripe of blocks of these lengths, written as a PUT writes it.
    async fn put(&mut self, lens: &[usize]) -> Stripe {
        let blocks = lens.iter().map(|len| {
            self.salt += 1;
            let mut bytes = vec![0; *len];
            blake3::Hasher::new().update(&self.salt.to_le_bytes()).finalize_xof().fill(&mut bytes);
            let block = Block::new(Bytes::from(bytes)).unwrap();
            self.bytes.insert(block.digest(), block.bytes().clone());
            DraftBlock { block, scope: None, retain_until_ms: 0 }
        });
        let draft = StripeDraft { policy: Policy::LOCAL, blocks: blocks.collect() };
        let stripe = self.writer.write(draft).await.unwrap().stripe;
        self.rows.stripes.lock().insert(stripe.id, (stripe.clone(), 0));
        stripe
    }

    async fn pack(&self) -> PackReport {
        self.packer.run(&options()).await.unwrap()
    }

    fn stripes(&self) -> Vec<Stripe> {
        self.rows.stripes.lock().values().map(|(stripe, _)| stripe.clone()).collect()
    }

    /// Every shard is on its node, on nodes of its own, under a claim of the stripe's tag; and any four of the six
    /// give all blocks back.
    fn assert_sound(&self, stripe: &Stripe) {
        assert!(stripe.check_bounds().is_ok());
        let mut pieces = Vec::new();
        let mut nodes = BTreeSet::new();
        for (slot, shard) in stripe.shards.iter().enumerate() {
            let Some(shard) = shard else {
                pieces.push(ShardPiece { slot, bytes: Bytes::new() });
                continue;
            };
            let node = self.network.node(shard.node.unwrap());
            assert!(nodes.insert(node.id()), "two shards on one node");
            let bytes = node.block(&shard.digest).expect("the node has the block");
            assert_eq!(bytes.len(), shard.len.as_usize());
            assert!(node.claim(shard.digest, tags().tag(stripe.id, node.id())).is_some(), "slot {slot}");
            pieces.push(ShardPiece { slot, bytes });
        }
        let code = Code::shared(4, 2).unwrap();
        for lost in [[0, 1], [2, 3], [0, 5], [3, 4]] {
            let left: Vec<_> = pieces.iter().filter(|piece| !lost.contains(&piece.slot)).cloned().collect();
            let wanted: Vec<_> = lost
                .iter()
                .filter_map(|slot| {
                    Some(WantedShard { slot: *slot, len: stripe.shards[*slot]?.len.as_usize() })
                })
                .collect();
            for (bytes, wanted) in code.reconstruct(&left, &wanted).unwrap().iter().zip(&wanted) {
                assert_eq!(Digest::of(bytes), stripe.shards[wanted.slot].unwrap().digest);
            }
        }
    }
}

fn options() -> PackOptions {
    PackOptions::default()
}

#[tokio::test]
async fn four_lone_blocks_become_one_full_stripe_without_moving() {
    let mut world = World::start(6).await;
    let mut before = BTreeMap::new();
    for len in [90_000, 100_000, 110_000, 60_000] {
        let stripe = world.put(&[len]).await;
        let shard = stripe.shards[0].unwrap();
        before.insert(shard.digest, shard.node);
    }
    let ids: Vec<_> = world.stripes().iter().map(|stripe| stripe.id).collect();
    let puts = |world: &World| world.network.nodes.iter().map(|node| node.puts()).sum::<u64>();
    let before_puts = puts(&world);
    let report = world.pack().await;
    assert_eq!((report.merges, report.stripes_absorbed, report.failed), (1, 3, 0), "{report:?}");
    assert_eq!(report.bytes_read, 360_000);
    assert_eq!(report.bytes_written, 220_000, "two parity shards as long as the longest block");
    assert_eq!(report.bytes_released, 2 * 360_000);
    assert_eq!(puts(&world) - before_puts, 2, "parity only");
    let stripes = world.stripes();
    assert_eq!(stripes.len(), 1);
    let packed = &stripes[0];
    assert!(ids.contains(&packed.id), "a merged stripe keeps one of the ids");
    assert_eq!((packed.version, packed.block_len.bytes()), (2, 110_000));
    for shard in packed.shards[..4].iter().flatten() {
        assert_eq!(before[&shard.digest], shard.node, "data does not move");
    }
    world.assert_sound(packed);
    for shard in packed.shards[4..].iter().flatten() {
        let node = world.network.node(shard.node.unwrap());
        let claim = node.claim(shard.digest, tags().tag(packed.id, node.id())).unwrap();
        assert_eq!(claim.state, ClaimState::Live);
    }
    assert!(world.rows.intents.lock().is_empty());
    assert_eq!(world.pack().await.merges, 0, "nothing is left to do");
}

#[tokio::test]
async fn a_node_that_takes_no_parity_leaves_everything_as_it_was() {
    let mut world = World::start(6).await;
    for _ in 0..4 {
        world.put(&[50_000]).await;
    }
    let before = world.stripes();
    for node in &world.network.nodes {
        node.behave(Behaviour::RefuseWrites(RefusalReason::DiskFull));
    }
    let report = world.pack().await;
    assert_eq!((report.merges, report.failed), (0, 1));
    assert_eq!(world.stripes(), before);
    assert!(world.rows.intents.lock().is_empty());
    assert_eq!(world.rows.abandoned.lock().len(), 3, "the claims made ahead are let go");
    for node in &world.network.nodes {
        node.behave(Behaviour::Honest);
    }
    assert_eq!(world.pack().await.merges, 0, "it rests for a while");
    world.network.clock.advance(REST_FIRST_MS + 1);
    assert_eq!(world.pack().await.merges, 1);
    world.assert_sound(&world.stripes()[0]);
}

#[tokio::test]
async fn a_lost_race_and_a_wrong_block_are_undone_too() {
    let mut world = World::start(6).await;
    for _ in 0..4 {
        world.put(&[50_000]).await;
    }
    world.rows.interfere.store(true, Ordering::Relaxed);
    assert_eq!(world.pack().await.failed, 1);
    world.network.clock.advance(REST_FIRST_MS + 1);
    let liar = world.stripes()[0].shards[0].unwrap().node.unwrap();
    world.network.node(liar).behave(Behaviour::FlipBit);
    let before = world.stripes();
    assert_eq!(world.pack().await.failed, 1);
    assert_eq!(world.stripes(), before, "nothing is coded from bytes that do not fit their digest");
    assert_eq!(world.network.pool.culprits()[0].node, liar);
    world.network.node(liar).behave(Behaviour::Honest);
    world.network.clock.advance(4 * REST_FIRST_MS);
    assert_eq!(world.pack().await.merges, 1);
    world.assert_sound(&world.stripes()[0]);
}

#[tokio::test]
async fn what_a_crash_interrupted_is_undone_at_the_next_start() {
    let mut world = World::start(6).await;
    let stripe = world.put(&[50_000]).await;
    let shard = stripe.shards[0].unwrap();
    let claims = [(shard.node.unwrap(), shard.digest)];
    assert!(world.rows.intend(StripeId([7; 16]), &claims).await.unwrap());
    assert_eq!(world.packer.recover().await.unwrap(), 1);
    assert_eq!(*world.rows.abandoned.lock(), [(StripeId([7; 16]), claims[0].0, shard.digest)]);
    assert_eq!(world.packer.recover().await.unwrap(), 0);
}

#[tokio::test]
async fn a_stripe_that_is_mostly_dead_is_rewritten_without_its_dead() {
    let mut world = World::start(6).await;
    let stripe = world.put(&[40_000, 80_000, 70_000, 60_000]).await;
    world.rows.dead.lock().extend(stripe.shards[1..4].iter().flatten().map(|shard| shard.digest));
    let report = world.pack().await;
    assert_eq!((report.merges, report.stripes_absorbed), (1, 1));
    let packed = &world.stripes()[0];
    assert_ne!(packed.id, stripe.id, "a stripe with dead blocks ends");
    assert_eq!(packed.shards[0], stripe.shards[0]);
    assert_eq!(packed.shards[1..4], [None; 3]);
    assert_eq!(packed.block_len.bytes(), 40_000);
    world.assert_sound(packed);
}

/// A candidate of one-byte-per-unit blocks at these nodes.
fn candidate(id: u8, blocks: &[(u8, u32)], since_ms: UnixMs) -> PackCandidate {
    let mut shards: Vec<Option<Shard>> = blocks
        .iter()
        .map(|(at, len)| {
            let digest = Digest::of(&[id, *at]);
            Some(Shard { digest, len: BlockLen::new(*len).unwrap(), node: Some(node(*at)) })
        })
        .collect();
    shards.resize(4, None);
    let live = shards.iter().map(Option::is_some).collect();
    let longest = blocks.iter().map(|(_, len)| *len).max().unwrap();
    let block_len = BlockLen::new(longest).unwrap();
    for parity in 0..2 {
        let digest = Digest::of(&[id, 200 + parity]);
        shards.push(Some(Shard { digest, len: block_len, node: Some(node(100 + parity)) }));
    }
    let stripe = Stripe {
        v: Stripe::VERSION,
        id: StripeId([id; 16]),
        version: 1,
        policy: Policy::LOCAL.name,
        k: 4,
        m: 2,
        block_len,
        shards,
    };
    PackCandidate { stripe, live, since_ms }
}

fn node(seed: u8) -> NodeId {
    NodeId(PublicKey([seed; 32]))
}

fn nodes() -> Vec<Candidate> {
    (0..=120)
        .map(|seed| Candidate {
            id: node(seed),
            domain: FailureDomain::new(OperatorId(node(seed).key()), &[], 0),
            free_bytes: 1 << 40,
            live: true,
        })
        .collect()
}

const NOW: UnixMs = 10_000_000;
const OLD: UnixMs = NOW - 300_000;
const SETTLED: UnixMs = NOW - 30_000;

fn merged(candidates: &[PackCandidate]) -> Vec<Vec<u8>> {
    let merges = plan(candidates, &nodes(), NOW, &PackRules::default());
    merges.iter().map(|merge| merge.sources().map(|stripe| stripe.id.0[0]).collect()).collect()
}

#[test]
fn full_merges_wait_only_until_puts_have_settled_others_for_partners() {
    let at = |since| [candidate(1, &[(1, 10), (2, 10)], since), candidate(2, &[(3, 10), (4, 10)], since)];
    assert_eq!(merged(&at(SETTLED + 1)), Vec::<Vec<u8>>::new());
    assert_eq!(merged(&at(SETTLED)), [[1, 2]]);
    let three = |since| [candidate(1, &[(1, 10), (2, 10)], since), candidate(2, &[(3, 10)], SETTLED)];
    assert_eq!(merged(&three(OLD + 1)), Vec::<Vec<u8>>::new());
    assert_eq!(merged(&three(OLD)), [[1, 2]]);
    assert_eq!(
        merged(&[candidate(1, &[(1, 10)], OLD)]),
        Vec::<Vec<u8>>::new(),
        "alone there is nothing to win"
    );
}

#[test]
fn blocks_that_share_a_node_and_blocks_of_other_lengths_do_not_come_together() {
    let on_one_node = [candidate(1, &[(1, 10)], OLD), candidate(2, &[(1, 10)], OLD)];
    assert_eq!(merged(&on_one_node), Vec::<Vec<u8>>::new());
    let unlike = |since| [candidate(1, &[(1, 10), (2, 10), (3, 10)], since), candidate(2, &[(4, 50)], since)];
    assert_eq!(merged(&unlike(SETTLED)), Vec::<Vec<u8>>::new());
    assert_eq!(merged(&unlike(OLD)), [[1, 2]], "after a while any company is better than none");
}

#[test]
fn stripes_on_silent_nodes_wait() {
    let mut nodes = nodes();
    nodes[2].live = false;
    let candidates = [candidate(1, &[(1, 10), (2, 10)], OLD), candidate(2, &[(3, 10), (4, 10)], OLD)];
    assert!(plan(&candidates, &nodes, NOW, &PackRules::default()).is_empty());
}

proptest! {
    /// Whatever waits: no stripe is used twice, no two blocks of a merge share a node, nothing alive is left out,
    /// a survivor keeps its slots.
    #[test]
    fn plans_are_sound(
        shapes in prop::collection::vec((prop::collection::btree_set(0u8..8, 1..=4), 1u32..1000, any::<u8>()), 1..40),
    ) {
        let candidates: Vec<PackCandidate> = shapes
            .iter()
            .enumerate()
            .map(|(id, (at, len, dead))| {
                let blocks: Vec<(u8, u32)> = at.iter().map(|node| (*node, *len)).collect();
                let mut candidate = candidate(u8::try_from(id).unwrap(), &blocks, OLD);
                for (slot, live) in candidate.live.iter_mut().enumerate() {
                    *live &= dead >> slot & 1 == 0;
                }
                candidate
            })
            .collect();
        let mut used = BTreeSet::new();
        for merge in plan(&candidates, &nodes(), NOW, &PackRules::default()) {
            let data = merge.data();
            prop_assert_eq!(data.len(), 4);
            let holders: Vec<_> = data.iter().flatten().map(|shard| shard.node.unwrap()).collect();
            let distinct: BTreeSet<_> = holders.iter().copied().collect();
            prop_assert_eq!(distinct.len(), holders.len());
            let mut alive = 0;
            for stripe in merge.sources() {
                prop_assert!(used.insert(stripe.id));
                let candidate = candidates.iter().find(|candidate| candidate.stripe.id == stripe.id).unwrap();
                for shard in candidate.living() {
                    alive += 1;
                    prop_assert!(data.contains(&Some(shard)));
                }
            }
            prop_assert_eq!(alive, holders.len());
            if let Some(survivor) = &merge.survivor {
                for (slot, shard) in survivor.stripe.shards[..4].iter().enumerate() {
                    prop_assert!(shard.is_none() || data[slot] == *shard);
                }
            }
        }
    }
}
