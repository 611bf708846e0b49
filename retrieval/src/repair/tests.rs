//! Repair over fake nodes, with a stripe table in memory.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use holdfast_protocol::BlockLen;
use holdfast_protocol::message::RefusalReason;
use holdfast_protocol::record::{ClaimState, PolicyName, Record, Shard};
use tokio::time::Instant;

use super::*;
use crate::code::Code;
use crate::testing::{Behaviour, FakeNode, TestNetwork};

#[derive(Default)]
struct Rows {
    stripes: Mutex<BTreeMap<StripeId, Stripe>>,
    /// Changes made by somebody else just before the next compare-and-put.
    interference: Mutex<Vec<Stripe>>,
    committed: AtomicUsize,
    replaced: AtomicUsize,
}

const SCOPE: ScopeId = ScopeId([9; 16]);

#[async_trait]
impl RepairStore for Rows {
    async fn stripes(&self, after: Option<StripeId>, limit: usize) -> Result<Vec<Stripe>, RepairStoreError> {
        let stripes = self.stripes.lock();
        let all = stripes.iter().filter(|(id, _)| after.is_none_or(|after| **id > after));
        // Pages of two, so that paging is exercised.
        Ok(all.map(|(_, stripe)| stripe.clone()).take(limit.min(2)).collect())
    }

    async fn stripe(&self, id: StripeId) -> Result<Option<Stripe>, RepairStoreError> {
        Ok(self.stripes.lock().get(&id).cloned())
    }

    async fn terms(&self, stripe: &Stripe) -> Result<Vec<ShardTerms>, RepairStoreError> {
        Ok(vec![ShardTerms { scope: Some(SCOPE), retain_until_ms: 7 }; stripe.shards.len()])
    }

    async fn replace(&self, stripe: &Stripe, expected_version: u64) -> Result<Replaced, RepairStoreError> {
        if let Some(other) = self.interference.lock().pop() {
            self.stripes.lock().insert(other.id, other);
        }
        let mut stripes = self.stripes.lock();
        match stripes.get(&stripe.id).map(|stripe| stripe.version) {
            None => Ok(Replaced::Gone),
            Some(version) if version != expected_version => Ok(Replaced::Conflict),
            Some(_) => {
                assert_eq!(stripe.version, expected_version + 1);
                stripes.insert(stripe.id, stripe.clone());
                self.replaced.fetch_add(1, Ordering::Relaxed);
                Ok(Replaced::Done)
            }
        }
    }

    async fn committed(
        &self,
        _node: NodeId,
        _stripe: StripeId,
        digests: &[Digest],
    ) -> Result<(), RepairStoreError> {
        self.committed.fetch_add(digests.len(), Ordering::Relaxed);
        Ok(())
    }
}

struct World {
    network: TestNetwork,
    rows: Arc<Rows>,
    shards: BTreeMap<Digest, Bytes>,
}

impl World {
    async fn start(nodes: usize) -> Self {
        Self { network: TestNetwork::start(nodes).await, rows: Arc::default(), shards: BTreeMap::new() }
    }

    /// A stripe of 4+2 of these blocks on the first six nodes.
    fn put(&mut self, id: u8, blocks: &[Bytes]) -> StripeId {
        let parity = Code::shared(4, 2).unwrap().encode(blocks).unwrap();
        let place = |slot: usize, bytes: &Bytes| {
            let node = &self.network.nodes[slot];
            let digest = node.place(bytes.clone());
            Some(Shard { digest, len: BlockLen::of(bytes).unwrap(), node: Some(node.id()) })
        };
        let mut shards: Vec<_> = blocks.iter().enumerate().map(|(slot, bytes)| place(slot, bytes)).collect();
        shards.resize(4, None);
        shards.extend(parity.iter().enumerate().map(|(index, bytes)| place(4 + index, bytes)));
        let stripe = Stripe {
            v: Stripe::VERSION,
            id: StripeId([id; 16]),
            version: 1,
            policy: PolicyName::Local,
            k: 4,
            m: 2,
            block_len: blocks.iter().map(|bytes| BlockLen::of(bytes).unwrap()).max().unwrap(),
            shards,
        };
        for bytes in blocks.iter().chain(&parity) {
            self.shards.insert(Digest::of(bytes), bytes.clone());
        }
        self.rows.stripes.lock().insert(stripe.id, stripe.clone());
        stripe.id
    }

    fn row(&self, id: StripeId) -> Stripe {
        self.rows.stripes.lock()[&id].clone()
    }

    fn repairer(&self) -> Repairer {
        let store = Arc::clone(&self.rows) as Arc<dyn RepairStore>;
        Repairer::new(Arc::clone(&self.network.pool), store, tags())
    }

    async fn repair(&self, options: RepairOptions) -> RepairReport {
        let last = Mutex::new(RepairProgress::default());
        let report = self.repairer().run(options, |progress| *last.lock() = progress).await.unwrap();
        assert_eq!(*last.lock(), report.progress, "the last progress is the report's");
        report
    }

    async fn vanish(&self, nodes: &[usize]) {
        for node in nodes {
            self.network.nodes[*node].vanish().await;
        }
    }

    /// Every shard of every row is on its node, whole and committed where repair put it.
    fn assert_whole(&self) {
        for stripe in self.rows.stripes.lock().values() {
            let mut nodes = Vec::new();
            for shard in stripe.shards.iter().flatten() {
                let id = shard.node.expect("every shard has a node");
                assert!(!nodes.contains(&id), "two shards on one node");
                nodes.push(id);
                let held = self.network.node(id).block(&shard.digest).expect("the node has the block");
                assert!(held == self.shards[&shard.digest]);
            }
        }
    }

    fn newcomers(&self) -> &[Arc<FakeNode>] {
        &self.network.nodes[6..]
    }
}

fn tags() -> TagKey {
    TagKey::new([4; 32])
}

fn blocks(count: usize, salt: u8) -> Vec<Bytes> {
    (0..count)
        .map(|index| {
            let len = 40_000 + 13_337 * index;
            (0..len)
                .map(|at| u8::try_from((at * 7 + index * 31 + usize::from(salt)) % 253).unwrap())
                .collect()
        })
        .collect()
}

/// Six nodes with stripes of 4, 2 and 1 blocks, two of them gone, and `fresh` new ones.
async fn two_lost(fresh: usize) -> World {
    let mut world = World::start(6).await;
    for (id, count) in [(1, 4), (2, 2), (3, 1)] {
        world.put(id, &blocks(count, id));
    }
    for _ in 0..fresh {
        world.network.add_node().await;
    }
    world.vanish(&[1, 4]).await;
    world
}

#[tokio::test(start_paused = true)]
async fn two_lost_nodes_and_two_fresh_ones_make_every_stripe_whole() {
    let world = two_lost(2).await;
    let report = world.repair(RepairOptions::default()).await;
    assert!(report.is_whole(), "{report:?}");
    // Slot 1 of the stripe of one block is virtual: it was nowhere and stays nowhere.
    let figures = report.progress;
    assert_eq!((figures.stripes_scanned, figures.stripes_damaged, figures.stripes_repaired), (3, 3, 3));
    assert_eq!((figures.shards_rebuilt, figures.remaining, figures.waiting), (5, 0, 0));
    world.assert_whole();
    assert_eq!(world.row(StripeId([3; 16])).shards[1], None);
    assert_eq!(world.rows.committed.load(Ordering::Relaxed), 5);
    // The full stripe needs both newcomers; the others also find room on old nodes that they do not use.
    assert!(world.newcomers().iter().all(|node| node.block_count() >= 1));
    let mut claims = 0;
    for stripe in world.rows.stripes.lock().values() {
        assert_eq!(stripe.version, 2);
        for shard in stripe.shards.iter().flatten() {
            let node = world.network.node(shard.node.unwrap());
            if let Some(claim) = node.claim(shard.digest, tags().tag(stripe.id, node.id())) {
                claims += 1;
                assert_eq!((claim.state, claim.scope), (ClaimState::Live, Some(SCOPE)));
                assert_eq!(claim.retain_until_ms, 7);
            }
        }
    }
    assert_eq!(claims, 5, "what repair put has claims of the right tags, and they are live");
}

#[tokio::test(start_paused = true)]
async fn repair_reads_k_shards_and_writes_only_the_missing() {
    let mut world = World::start(6).await;
    let data = blocks(4, 1);
    world.put(1, &data);
    world.network.add_node().await;
    world.vanish(&[2]).await;
    let report = world.repair(RepairOptions::default()).await;
    let reads: u64 = world.network.nodes.iter().map(|node| node.reads()).sum();
    assert_eq!(reads, 4);
    assert_eq!(report.progress.bytes_written, data[2].len() as u64);
    world.assert_whole();
}

#[tokio::test(start_paused = true)]
async fn a_second_run_finds_nothing_to_do() {
    let world = two_lost(2).await;
    world.repair(RepairOptions::default()).await;
    let puts: u64 = world.network.nodes.iter().map(|node| node.puts()).sum();
    let report = world.repair(RepairOptions::default()).await;
    assert_eq!(report.progress.stripes_damaged, 0);
    assert_eq!(world.network.nodes.iter().map(|node| node.puts()).sum::<u64>(), puts);
}

#[tokio::test(start_paused = true)]
async fn too_few_nodes_wait_and_say_for_how_many() {
    let world = two_lost(1).await;
    let report = world.repair(RepairOptions::default()).await;
    assert!(!report.is_whole());
    // One shard of the full stripe finds the one fresh node; the short stripes find nodes they do not use.
    assert_eq!((report.progress.waiting, report.waiting_for_nodes), (1, 1), "{report:?}");
    assert_eq!(report.progress.shards_rebuilt, 4);
    let row = world.row(StripeId([1; 16]));
    let gone = [1, 4].map(|node: usize| Some(world.network.nodes[node].id()));
    let still = row.shards.iter().flatten().filter(|shard| gone.contains(&shard.node)).count();
    assert_eq!((row.version, still), (2, 1), "the waiting shard keeps its old node in the row");
    let mut none = World::start(6).await;
    none.put(1, &blocks(4, 1));
    none.vanish(&[1, 4]).await;
    let before = none.rows.stripes.lock().clone();
    let report = none.repair(RepairOptions::default()).await;
    assert_eq!((report.progress.waiting, report.waiting_for_nodes), (1, 2));
    assert_eq!(report.progress.bytes_read, 0, "nothing is read for stripes that find no node");
    assert_eq!(*none.rows.stripes.lock(), before);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_waited_goes_on_when_nodes_come() {
    let mut world = two_lost(1).await;
    world.repair(RepairOptions::default()).await;
    world.network.add_node().await;
    let report = world.repair(RepairOptions::default()).await;
    assert!(report.is_whole(), "{report:?}");
    world.assert_whole();
}

#[tokio::test(start_paused = true)]
async fn a_row_that_changes_meanwhile_is_read_again() {
    let mut world = World::start(6).await;
    let id = world.put(1, &blocks(4, 1));
    world.network.add_node().await;
    world.vanish(&[0]).await;
    // Somebody else raises the version without mending anything.
    let mut other = world.row(id);
    other.version = 5;
    world.rows.interference.lock().push(other);
    let report = world.repair(RepairOptions::default()).await;
    assert!(report.is_whole(), "{report:?}");
    assert_eq!(world.row(id).version, 6);
    assert_eq!(report.progress.shards_rebuilt, 1);
    world.assert_whole();
}

#[tokio::test(start_paused = true)]
async fn a_row_that_never_rests_is_left_for_the_next_run() {
    let mut world = World::start(6).await;
    let id = world.put(1, &blocks(4, 1));
    world.network.add_node().await;
    world.vanish(&[0]).await;
    for version in (10..20).rev() {
        let mut other = world.row(id);
        other.version = version;
        world.rows.interference.lock().push(other);
    }
    let report = world.repair(RepairOptions::default()).await;
    assert_eq!((report.stripes_failed, report.progress.stripes_repaired), (1, 0));
    assert_eq!(world.rows.replaced.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_stripe_is_reported_and_left_alone() {
    let world = two_lost(3).await;
    world.vanish(&[0]).await;
    let report = world.repair(RepairOptions::default()).await;
    // Nodes 0, 1 and 4 are gone: the stripe of one block has a parity shard left, which is all it needs.
    assert_eq!((report.stripes_unreadable, report.progress.stripes_repaired), (2, 1), "{report:?}");
    assert_eq!(report.troubles.iter().filter(|trouble| trouble.stripe == StripeId([1; 16])).count(), 1);
    assert_eq!(world.row(StripeId([1; 16])).version, 1);
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_proves_bad_on_the_way_is_rebuilt_too_and_its_node_named() {
    let mut world = World::start(6).await;
    let id = world.put(1, &blocks(4, 1));
    let liar = Arc::clone(&world.network.nodes[0]);
    liar.behave(Behaviour::FlipBit);
    world.network.add_node().await;
    world.network.add_node().await;
    world.vanish(&[1]).await;
    let report = world.repair(RepairOptions::default()).await;
    assert!(report.is_whole(), "{report:?}");
    assert_eq!(report.progress.shards_rebuilt, 2);
    assert!(world.row(id).shards.iter().flatten().all(|shard| shard.node != Some(liar.id())));
    assert_eq!(world.network.pool.culprits()[0].node, liar.id());
    world.assert_whole();
}

#[tokio::test(start_paused = true)]
async fn a_node_that_refuses_or_forges_a_receipt_is_passed_over() {
    for behaviour in [
        Behaviour::RefuseWrites(RefusalReason::DiskFull),
        Behaviour::ForgeReceipts,
        Behaviour::EmptyReceipts,
        Behaviour::Garbage,
    ] {
        let mut world = World::start(6).await;
        world.put(1, &blocks(4, 1));
        let bad = world.network.add_node().await;
        world.vanish(&[1]).await;
        bad.behave(behaviour);
        let report = world.repair(RepairOptions::default()).await;
        assert_eq!(report.progress.waiting, 1, "{behaviour:?}: without a receipt nothing is placed");
        assert_eq!(world.row(StripeId([1; 16])).version, 1);
        world.network.add_node().await;
        let report = world.repair(RepairOptions::default()).await;
        assert!(report.is_whole(), "{behaviour:?}: {report:?}");
        world.assert_whole();
    }
}

#[tokio::test(start_paused = true)]
async fn shards_written_short_are_completed_without_anybody_lost() {
    let mut world = World::start(6).await;
    let id = world.put(1, &blocks(4, 1));
    let mut short = world.row(id);
    let left = &world.network.nodes[5];
    left.lose(&short.shards[5].unwrap().digest);
    short.shards[5] = short.shards[5].map(|shard| Shard { node: None, ..shard });
    world.rows.stripes.lock().insert(id, short);
    let report = world.repair(RepairOptions { lost: Lost::Nobody, ..RepairOptions::default() }).await;
    assert!(report.is_whole(), "{report:?}");
    world.assert_whole();
}

#[tokio::test(start_paused = true)]
async fn a_node_that_leaves_is_emptied_while_it_still_answers() {
    let mut world = World::start(6).await;
    let id = world.put(1, &blocks(4, 1));
    world.network.add_node().await;
    let leaving = world.network.nodes[2].id();
    let lost = Lost::Listed(HashSet::from([leaving]));
    let report = world.repair(RepairOptions { lost, ..RepairOptions::default() }).await;
    assert!(report.is_whole(), "{report:?}");
    assert!(world.row(id).shards.iter().flatten().all(|shard| shard.node != Some(leaving)));
    world.assert_whole();
}

#[tokio::test(start_paused = true)]
async fn short_outages_are_let_pass_when_the_owner_is_patient() {
    let world = two_lost(2).await;
    let patient = RepairOptions { lost: Lost::Down { for_ms: 60_000 }, ..RepairOptions::default() };
    assert_eq!(world.repair(patient.clone()).await.progress.stripes_damaged, 0);
    world.network.clock.advance(61_000);
    assert_eq!(world.repair(patient).await.progress.stripes_damaged, 3);
}

#[tokio::test(start_paused = true)]
async fn the_limit_of_bytes_per_second_holds() {
    let world = two_lost(2).await;
    let started = Instant::now();
    let options = RepairOptions { bytes_per_second: Some(100_000), ..RepairOptions::default() };
    let report = world.repair(options).await;
    assert!(report.is_whole());
    let moved = report.progress.bytes_read + report.progress.bytes_written;
    assert!(started.elapsed().as_secs() >= moved / 100_000 - 2, "{moved} bytes in {:?}", started.elapsed());
}
