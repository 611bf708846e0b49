//! Background work over nodes in memory: packing, healing and repair as they run in a gateway, with short times.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_protocol::message::ByteRange;
use holdfast_protocol::record::{Policy, Stripe};
use holdfast_protocol::time::{Clock, SystemClock};
use holdfast_protocol::transport::memory::MemoryNetwork;
use holdfast_protocol::{Digest, NodeId};
use holdfast_retrieval::pool::{FailureDomain, KnownNode};
use holdfast_retrieval::testing::{CAPACITY, FakeNode, TestClock, key};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::config::GatewayConfig;
use crate::crypt::NamespaceKeys;
use crate::keys::{AccessKeys, GatewayKeys};
use crate::layout::{Entry, total_len};
use crate::meta::{Attributes, Meta, NewBucket, NewObject, PutCondition, RocksConfig, RocksStore, Stored};

/// Conditions are awaited for so long before a test gives up.
const PATIENCE: Duration = Duration::from_secs(30);

struct World {
    core: Arc<Core>,
    nodes: Vec<Arc<FakeNode>>,
    background: Option<Background>,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl World {
    async fn start(nodes: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let network = MemoryNetwork::new();
        let keys = GatewayKeys::load_or_create(dir.path(), "test", SystemClock.now_ms()).unwrap();
        let store = RocksStore::open(&RocksConfig::new(dir.path().join("meta"))).unwrap();
        let namespace = NamespaceKeys::new(keys.root().clone(), keys.namespace_id());
        let meta = Meta::open(store, namespace, Arc::new(SystemClock)).await.unwrap();
        let transport = network.join(keys.node_id());
        let root = keys.root().clone();
        let access = AccessKeys::single_beside("HOLDTESTKEY", "secret", Arc::clone(&meta), root.expose());
        let mut config = GatewayConfig::new(dir.path().to_owned(), keys, transport);
        let short = Duration::from_millis(50);
        config.timing.packing_interval = short;
        config.timing.packing_settle = Duration::ZERO;
        config.timing.packing_patience = Duration::ZERO;
        config.timing.repair_interval = short;
        config.timing.completion_interval = short;
        config.timing.queue_interval = short;
        config.timing.probe_interval = short;
        config.timing.surprise_interval = short;
        // The fake nodes are on no real network.
        config.surprise_fresh_percent = 0;
        config.repair.silent = Duration::from_secs(288);
        let (core, connections) = Core::over_network(config, meta, access, None, None);
        let stop = CancellationToken::new();
        let mut world = Self { core, nodes: Vec::new(), background: None, stop, _dir: dir };
        for _ in 0..nodes {
            world.add_node(&network);
        }
        world.background = Some(super::start(Arc::clone(&world.core), connections, world.stop.clone()));
        let core = Arc::clone(&world.core);
        wait("agreements with all nodes", || async {
            core.pool.nodes().iter().all(|view| view.known.agreement.is_some())
        })
        .await;
        world
    }

    fn add_node(&mut self, network: &MemoryNetwork) {
        let index = u16::try_from(self.nodes.len()).unwrap();
        let [high, low] = index.to_be_bytes();
        let clock = Arc::new(TestClock::at(SystemClock.now_ms()));
        let node = FakeNode::start(network, key(100 + u64::from(index)), clock);
        let address = std::net::SocketAddr::from(([10, high, low, 1], 7400));
        let operator = holdfast_protocol::OperatorId(node.id().key());
        let known = KnownNode {
            id: node.id(),
            addresses: vec![address],
            agreement: None,
            domain: FailureDomain::new(operator, &[address], 0),
            capacity_bytes: CAPACITY,
            free_bytes: CAPACITY,
            accepts_writes: true,
        };
        self.core.pool.upsert(known).unwrap();
        self.nodes.push(node);
    }

    /// An object of one block, written and committed alone.
    async fn put(&self, bucket: &crate::meta::Bucket, name: &str, len: usize) -> Entry {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut bytes);
        let mut writer = self.core.plane.begin(Policy::LOCAL, Some(bucket.scope), len as u64);
        writer.push(Bytes::from(bytes)).await.unwrap();
        let written = writer.finish().await.unwrap();
        let blocks: Vec<Entry> =
            written.blocks.iter().map(|block| Entry { digest: block.digest, len: block.len }).collect();
        let mut root = crate::unixfs::RootBuilder::new();
        blocks.iter().for_each(|block| root.push(block.digest, block.len));
        let new = NewObject {
            key: name.to_owned(),
            attributes: Attributes { etag: name.to_owned(), ..Attributes::default() },
            root_cid: root.finish(),
            stored: Stored {
                size: total_len(&blocks),
                blocks: blocks.clone(),
                secret: None,
                stripes: written.stripes,
            },
            condition: PutCondition::Any,
        };
        self.core.meta.put_object(bucket, new).await.unwrap();
        self.core.wake_deliveries();
        blocks[0]
    }

    async fn read(&self, entry: Entry) -> Result<Bytes, holdfast_retrieval::fetch::FetchError> {
        use futures::StreamExt;
        let block = holdfast_retrieval::block::BlockRef { digest: entry.digest, len: entry.len };
        let range = ByteRange { start: 0, len: entry.len.bytes() };
        self.core.plane.read(vec![(block, range)]).next().await.expect("one item for one range")
    }

    async fn stripe_of(&self, digest: &Digest) -> Arc<Stripe> {
        self.core.meta.locate(digest).await.unwrap().unwrap().stripe
    }

    fn node(&self, id: NodeId) -> &Arc<FakeNode> {
        self.nodes.iter().find(|node| node.id() == id).unwrap()
    }

    async fn end(mut self) {
        self.stop.cancel();
        self.background.take().unwrap().stopped().await;
        let report = self.core.meta.check().await.unwrap();
        let findings: Vec<_> = report.findings.iter().map(ToString::to_string).collect();
        assert!(findings.is_empty(), "{findings:#?}");
    }
}

/// Polls until `holds`.
async fn wait<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let polling = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, polling).await.is_ok(), "waited in vain for {what}");
}

async fn public_bucket(world: &World) -> crate::meta::Bucket {
    let features = crate::meta::Features::default();
    let new = NewBucket { name: "b".to_owned(), public: true, policy: Policy::LOCAL.name, features };
    world.core.meta.create_bucket(new).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_objects_are_packed_and_their_old_parity_let_go() {
    let world = World::start(6).await;
    let bucket = public_bucket(&world).await;
    let mut entries = Vec::new();
    for index in 0..8 {
        entries.push(world.put(&bucket, &format!("o{index}"), 60_000 + index).await);
    }
    let core = Arc::clone(&world.core);
    wait("eight blocks in few stripes", || async { core.meta.stripes(None, 100).await.unwrap().len() <= 3 })
        .await;
    wait("the releases to be delivered", || async {
        core.meta.release_queue(None, 1).await.unwrap().is_empty()
            && core.meta.commit_queue(None, 1).await.unwrap().is_empty()
    })
    .await;
    for entry in &entries {
        assert_eq!(Digest::of(&world.read(*entry).await.unwrap()), entry.digest);
        let stripe = world.stripe_of(&entry.digest).await;
        for shard in stripe.shards.iter().flatten() {
            let node = world.node(shard.node.unwrap());
            let claim = node.claim(shard.digest, core.tags.tag(stripe.id, node.id())).expect("a claim");
            assert_eq!(claim.state, holdfast_protocol::record::ClaimState::Live);
        }
    }
    assert!(core.pack.state().total.stripes_absorbed >= 5);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_healed_reports_the_shard_and_it_is_rebuilt() {
    let world = World::start(7).await;
    let bucket = public_bucket(&world).await;
    let entry = world.put(&bucket, "o", 90_000).await;
    let holder = world.stripe_of(&entry.digest).await.shards[0].unwrap().node.unwrap();
    world.node(holder).lose(&entry.digest);
    assert_eq!(Digest::of(&world.read(entry).await.unwrap()), entry.digest, "rebuilt for the reader");
    let core = Arc::clone(&world.core);
    wait("the shard on a node that has it", || async {
        let stripe = core.meta.locate(&entry.digest).await.unwrap().unwrap().stripe;
        let Some(node) = stripe.shards[0].unwrap().node else { return false };
        world.node(node).block(&entry.digest).is_some()
    })
    .await;
    assert_eq!(core.healing.counts().marked, 1);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rumour_moves_nothing() {
    let world = World::start(6).await;
    let bucket = public_bucket(&world).await;
    let entry = world.put(&bucket, "o", 90_000).await;
    let stripe = world.stripe_of(&entry.digest).await;
    let parity = stripe.shards[4].unwrap();
    world.core.healing.report(stripe.shards[0].unwrap().node.unwrap(), entry.digest);
    world.core.healing.report(parity.node.unwrap(), parity.digest);
    world.core.healing.report(parity.node.unwrap(), Digest([7; 32]));
    let core = Arc::clone(&world.core);
    wait("three reports to be settled", || async { core.healing.counts().unfounded == 3 }).await;
    assert_eq!(world.stripe_of(&entry.digest).await.shards, stripe.shards);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_nodes_are_replaced_when_the_margin_is_thin_and_the_silence_is_remembered() {
    let world = World::start(8).await;
    let bucket = public_bucket(&world).await;
    let entry = world.put(&bucket, "o", 90_000).await;
    let before = world.stripe_of(&entry.digest).await;
    let gone: Vec<NodeId> = before.shards.iter().flatten().take(2).map(|shard| shard.node.unwrap()).collect();
    for node in &gone {
        world.node(*node).vanish().await;
    }
    let core = Arc::clone(&world.core);
    // A patience of 288 s is one second without margin.
    wait("both shards elsewhere", || async {
        let stripe = core.meta.locate(&entry.digest).await.unwrap().unwrap().stripe;
        stripe.shards.iter().flatten().all(|shard| shard.node.is_some_and(|node| !gone.contains(&node)))
    })
    .await;
    let presence = core.meta.presences().await.unwrap();
    let silent: Vec<_> = presence.iter().filter(|(_, p)| p.silent_since_ms != 0).map(|(id, _)| *id).collect();
    assert!(gone.iter().all(|node| silent.contains(node)), "{presence:?}");
    for node in &gone {
        world.node(*node).come_back();
    }
    wait("the old claims to be let go", || async {
        core.meta.release_queue(None, 1).await.unwrap().is_empty()
    })
    .await;
    for (node, shard) in gone.iter().zip(before.shards.iter().flatten()) {
        let claim = world.node(*node).claim(shard.digest, core.tags.tag(before.id, *node)).unwrap();
        assert_eq!(claim.state, holdfast_protocol::record::ClaimState::Trash);
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn surprise_audits_score_the_nodes_and_outlive_a_restart() {
    let world = World::start(6).await;
    let bucket = public_bucket(&world).await;
    for index in 0..4 {
        world.put(&bucket, &format!("o{index}"), 80_000).await;
    }
    let core = Arc::clone(&world.core);
    wait("scores of some nodes", || async {
        core.surprise.state().scores.values().filter(|score| score.right > 0).count() >= 2
    })
    .await;
    wait("the scores to be kept", || async { !core.meta.retrieval_scores().await.unwrap().is_empty() }).await;
    world.end().await;
}
