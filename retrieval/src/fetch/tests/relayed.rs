//! The engine over real QUIC through relays that lose, delay, hold and swallow packets.

use std::net::{Ipv4Addr, SocketAddr};

use holdfast_protocol::record::{PolicyName, Record, StripeId};
use holdfast_protocol::time::Clock;
use holdfast_protocol::transport::Transport;
use holdfast_protocol::transport::quic::{QuicConfig, QuicTransport};
use holdfast_protocol::{OperatorId, SigningKey};

use super::world::{Table, name, noise};
use super::*;
use crate::code::Code;
use crate::placement::FailureDomain;
use crate::pool::{KnownNode, PoolConfig};
use crate::testing::relay::{Conditions, UdpRelay};
use crate::testing::{CAPACITY, TestClock, key};
use holdfast_protocol::transport::memory::MemoryNetwork;

/// Six nodes behind relays, one stripe after the other, and a pool that knows the relays' addresses.
struct Relayed {
    relays: Vec<UdpRelay>,
    blocks: Vec<Bytes>,
    table: Arc<Table>,
    pool: Arc<NodePool>,
    _transports: Vec<Arc<dyn Transport>>,
}

fn quic(key: SigningKey) -> Arc<dyn Transport> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    QuicTransport::bind(QuicConfig::new(address, Arc::new(key))).unwrap()
}

impl Relayed {
    async fn start(stripes: usize, block_len: usize) -> Self {
        let clock = Arc::new(TestClock::default());
        let unused = MemoryNetwork::new();
        let (mut relays, mut nodes, mut transports) = (Vec::new(), Vec::new(), Vec::new());
        let ours = quic(key(2));
        let pool = NodePool::new(PoolConfig::new(
            Arc::clone(&ours),
            "relayed",
            Arc::clone(&clock) as Arc<dyn Clock>,
        ));
        transports.push(ours);
        for index in 0..6u64 {
            let node = FakeNode::start(&unused, key(100 + index), Arc::clone(&clock));
            let transport = quic(key(100 + index));
            let relay = UdpRelay::start(transport.local_addr().unwrap(), 11 + index).await.unwrap();
            let known = KnownNode {
                id: node.id(),
                addresses: vec![relay.address()],
                agreement: None,
                domain: FailureDomain::new(OperatorId(node.id().key()), &[relay.address()], 0),
                capacity_bytes: CAPACITY,
                free_bytes: CAPACITY,
                accepts_writes: false,
            };
            pool.upsert(known).unwrap();
            let (server, accepting) = (Arc::clone(&node), Arc::clone(&transport));
            tokio::spawn(async move {
                while let Some(connection) = accepting.accept().await {
                    tokio::spawn(Arc::clone(&server).serve(connection));
                }
            });
            relays.push(relay);
            nodes.push(node);
            transports.push(transport);
        }
        let table = Arc::<Table>::default();
        let blocks: Vec<Bytes> = (0..stripes * 4).map(|salt| noise(block_len, salt)).collect();
        for (number, some) in (0u8..).zip(blocks.chunks(4)) {
            table.enter(Arc::new(place(&nodes, number, some)));
        }
        Self { relays, blocks, table, pool, _transports: transports }
    }

    fn fetcher(&self) -> Fetcher {
        let table = Arc::clone(&self.table) as Arc<dyn Placement>;
        Fetcher::new(Arc::clone(&self.pool), table, FetchConfig::default())
    }

    async fn read_all(&self, fetcher: &Fetcher) {
        let wanted: Vec<_> = self.blocks.iter().map(|bytes| (name(bytes), range(0, bytes.len()))).collect();
        let read: Vec<_> = fetcher.stream(wanted).collect().await;
        assert_eq!(read.len(), self.blocks.len());
        for (bytes, expected) in read.into_iter().zip(&self.blocks) {
            assert!(bytes.unwrap() == *expected);
        }
    }
}

fn place(nodes: &[Arc<FakeNode>], number: u8, blocks: &[Bytes]) -> Stripe {
    let parity = Code::shared(4, 2).unwrap().encode(blocks).unwrap();
    let put = |(slot, bytes): (usize, &Bytes)| {
        let node = &nodes[(slot + usize::from(number)) % nodes.len()];
        node.place(bytes.clone());
        let BlockRef { digest, len } = name(bytes);
        Some(Shard { digest, len, node: Some(node.id()) })
    };
    Stripe {
        v: Stripe::VERSION,
        id: StripeId([number; 16]),
        version: 1,
        policy: PolicyName::Local,
        k: 4,
        m: 2,
        block_len: BlockLen::of(&blocks[0]).unwrap(),
        shards: blocks.iter().chain(&parity).enumerate().map(put).collect(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lossy_slow_network_costs_time_and_no_byte() {
    let world = Relayed::start(3, 200_000).await;
    for relay in &world.relays {
        let delay = Duration::from_millis(2);
        relay.set(Conditions { delay, jitter: delay, loss: 200, ..Conditions::default() });
    }
    let fetcher = world.fetcher();
    world.read_all(&fetcher).await;
    let (taken, dropped) =
        world.relays.iter().map(UdpRelay::counts).fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
    assert!(taken > 100 && dropped > 0, "{taken} packets, {dropped} lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_packets_are_held_is_read_around() {
    let world = Relayed::start(6, 200_000).await;
    let fetcher = world.fetcher();
    world.read_all(&fetcher).await;
    world.relays[1].change(|conditions| conditions.stalled = true);
    for _ in 0..2 {
        world.read_all(&fetcher).await;
    }
    let counts = fetcher.counts();
    assert!(counts.rebuilt > 0 && counts.hedged > 0, "{counts:?}");
    world.relays[1].change(|conditions| conditions.stalled = false);
    world.read_all(&fetcher).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_fall_silent_are_found_to_be_down() {
    let world = Relayed::start(6, 200_000).await;
    let fetcher = world.fetcher();
    world.read_all(&fetcher).await;
    for relay in &world.relays[2..4] {
        relay.change(|conditions| conditions.dead = true);
    }
    // Whoever lingers three times in a row counts as down.
    for _ in 0..3 {
        world.read_all(&fetcher).await;
    }
    let down = world.pool.nodes().into_iter().filter(|view| view.state.is_down()).count();
    assert_eq!(down, 2, "{:?}", fetcher.counts());
}
