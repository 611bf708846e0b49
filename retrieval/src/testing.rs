//! A network in memory for tests: nodes that can be told to refuse, stall, lie or vanish, and a pool that
//! has agreements with all of them.
//!
//! Everything runs over the memory transport within one tokio runtime, so a test may pause tokio's clock
//! and deadlines pass at once. The nodes keep blocks and claims in maps; they are not a model of the real
//! store, only of what a client can see of a node.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_protocol::record::{
    Agreement, Delegation, NodeRecord, Prices, Reachability, Record, Rights, Signed, SignedAgreement,
};
use holdfast_protocol::time::{Clock, UnixMs};
use holdfast_protocol::transport::memory::MemoryNetwork;
use holdfast_protocol::{NamespaceId, NodeId, OperatorId, SigningKey};

use crate::pool::{FailureDomain, KnownNode, NodePool, PoolConfig};

mod node;
pub mod relay;
mod serve;

pub use node::{Behaviour, FakeNode, StoredClaim};

/// When tests take place, unless they move the clock.
pub const START_MS: UnixMs = 1_750_000_000_000;
/// Bytes that every fake node offers.
pub const CAPACITY: u64 = 1 << 40;

/// A wall clock that only moves when told.
#[derive(Debug)]
pub struct TestClock(AtomicU64);

impl Default for TestClock {
    fn default() -> Self {
        Self(AtomicU64::new(START_MS))
    }
}

impl TestClock {
    /// A clock that stands at this time.
    pub fn at(now_ms: UnixMs) -> Self {
        Self(AtomicU64::new(now_ms))
    }

    /// Moves the clock forward.
    pub fn advance(&self, ms: u64) {
        self.0.fetch_add(ms, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now_ms(&self) -> UnixMs {
        self.0.load(Ordering::Relaxed)
    }
}

/// A key that is always the same for the same seed.
pub fn key(seed: u64) -> SigningKey {
    let mut bytes = [0x5a; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    SigningKey::from_seed(&bytes).expect("any 32 bytes are an Ed25519 seed")
}

/// Nodes, their namespace, a gateway's pool over them.
pub struct TestNetwork {
    /// The transport between all.
    pub network: MemoryNetwork,
    /// The clock of all.
    pub clock: Arc<TestClock>,
    /// The namespace.
    pub namespace: Arc<SigningKey>,
    /// The gateway's TLS key, which the namespace's delegation names.
    pub gateway: Arc<SigningKey>,
    /// The nodes, in no order.
    pub nodes: Vec<Arc<FakeNode>>,
    /// The gateway's pool: it knows all nodes and has an agreement with each.
    pub pool: Arc<NodePool>,
}

impl TestNetwork {
    /// A network of `count` honest nodes, each with an operator and a /24 of its own.
    pub async fn start(count: usize) -> Self {
        let network = MemoryNetwork::new();
        let clock = Arc::new(TestClock::default());
        let namespace = Arc::new(key(1));
        let gateway = Arc::new(key(2));
        let mut config = PoolConfig::new(
            network.join(NodeId(gateway.public())),
            "test gateway",
            Arc::clone(&clock) as Arc<dyn Clock>,
        );
        config.delegation = Some(delegation(&namespace, &gateway).to_wire());
        let pool = NodePool::new(config);
        let mut test = Self { network, clock, namespace, gateway, nodes: Vec::new(), pool };
        for _ in 0..count {
            test.add_node().await;
        }
        test
    }

    /// Adds one more honest node and agrees with it.
    pub async fn add_node(&mut self) -> Arc<FakeNode> {
        let index = self.nodes.len() as u64;
        let node = FakeNode::start(&self.network, key(100 + index), Arc::clone(&self.clock));
        self.pool.upsert(self.known(&node, index)).expect("the pool has room");
        self.agree(&node).await;
        self.nodes.push(Arc::clone(&node));
        node
    }

    /// The node of this id.
    ///
    /// # Panics
    /// If there is none.
    pub fn node(&self, id: NodeId) -> &Arc<FakeNode> {
        self.nodes.iter().find(|node| node.id() == id).expect("a node of this network")
    }

    /// What the pool is told of a node.
    pub fn known(&self, node: &FakeNode, index: u64) -> KnownNode {
        let [high, low] = u16::try_from(index).expect("few nodes").to_be_bytes();
        let address = std::net::SocketAddr::from(([10, high, low, 1], 7400));
        KnownNode {
            id: node.id(),
            addresses: vec![address],
            agreement: None,
            domain: FailureDomain::new(OperatorId(key(1_000 + index).public()), &[address], 0),
            capacity_bytes: CAPACITY,
            free_bytes: CAPACITY,
            accepts_writes: true,
        }
    }

    /// Terms with a node, signed by the namespace.
    pub fn terms(&self, node: NodeId) -> Signed<Agreement> {
        let now_ms = self.clock.now_ms();
        let terms = Agreement {
            v: Agreement::VERSION,
            namespace: NamespaceId(self.namespace.public()),
            node,
            operator: OperatorId(node.key()),
            capacity_bytes: CAPACITY,
            prices: free(),
            start_ms: now_ms,
            end_ms: now_ms + 365 * 24 * 3_600_000,
            notice_ms: 0,
            nonce: [7; 16],
        };
        Signed::sign(terms, &self.namespace)
    }

    /// Agrees with a node.
    ///
    /// # Panics
    /// If the node does not agree.
    pub async fn agree(&self, node: &FakeNode) -> SignedAgreement {
        self.pool.ensure_agreement(node.id(), self.terms(node.id())).await.expect("an honest node agrees")
    }
}

/// The namespace's word that the gateway acts for it.
pub fn delegation(namespace: &SigningKey, gateway: &SigningKey) -> Signed<Delegation> {
    let delegation = Delegation {
        v: Delegation::VERSION,
        namespace: NamespaceId(namespace.public()),
        delegate: NodeId(gateway.public()),
        rights: Rights::GATEWAY,
        not_before_ms: START_MS - 1,
        expires_ms: START_MS + 365 * 24 * 3_600_000,
        label: "test gateway".into(),
    };
    Signed::sign(delegation, namespace)
}

fn free() -> Prices {
    Prices { storage_micro_per_tb_month: 0, egress_micro_per_tb: 0, currency: String::new() }
}

/// A node's self-description.
pub fn node_record(key: &SigningKey, now_ms: UnixMs) -> Signed<NodeRecord> {
    let record = NodeRecord {
        v: NodeRecord::VERSION,
        node: NodeId(key.public()),
        operator: OperatorId(key.public()),
        addresses: Vec::new(),
        capacity_bytes: CAPACITY,
        free_bytes: CAPACITY,
        prices: free(),
        reachability: Reachability::Direct,
        asn: 0,
        software: "fake node".into(),
        seq: 1,
        issued_ms: now_ms,
        expires_ms: now_ms + 3_600_000,
    };
    Signed::sign(record, key)
}
