//! A world for tests: one node on a clock that only the test moves, a namespace, and peers of every kind.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use holdfast_protocol::message::{
    BlockOutcome, CommitBlocks, DeletionOrder, HasBlocks, Held, HelloReply, PutBlock, PutBlockReply,
    RefusalReason,
};
use holdfast_protocol::record::{
    Agreement, AgreementId, ClaimRef, ClaimTag, Delegation, Grant, GrantOps, PresentedGrant, Prices, Rights,
    ScopeId, Signed,
};
use holdfast_protocol::rpc::{CallError, HelloParams, Peer};
use holdfast_protocol::time::Clock;
use holdfast_protocol::transport::memory::{MemoryNetwork, MemoryTransport};
use holdfast_protocol::transport::quic::{QuicConfig, QuicTransport};
use holdfast_protocol::transport::{Connection, Transport};
use holdfast_protocol::{BlockLen, Digest, NamespaceId, NodeId, SigningKey};
use holdfast_storage_node::{Admission, LeasePolicy, Node, NodeConfig};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// When the world begins.
pub(crate) const BEGIN_MS: u64 = 1_700_000_000_000;
pub(crate) const HOUR_MS: u64 = 3600 * 1000;
pub(crate) const DAY_MS: u64 = 24 * HOUR_MS;
pub(crate) const MIB: usize = 1024 * 1024;

/// A clock that stands still until it is moved.
pub(crate) struct TestClock(AtomicU64);

impl TestClock {
    pub(crate) fn advance(&self, ms: u64) {
        self.0.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

pub(crate) fn key(byte: u8) -> Arc<SigningKey> {
    Arc::new(SigningKey::from_seed(&[byte; 32]).unwrap())
}

/// Bytes that differ everywhere and between seeds.
pub(crate) fn bytes(len: usize, seed: u64) -> Bytes {
    let mut data = vec![0u8; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut data);
    Bytes::from(data)
}

pub(crate) fn tag(byte: u8) -> ClaimTag {
    ClaimTag([byte; 16])
}

pub(crate) fn scope(byte: u8) -> Option<ScopeId> {
    Some(ScopeId([byte; 16]))
}

/// The reason of a refusal; anything else fails the test.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, CallError>) -> RefusalReason {
    match result {
        Err(CallError::Refused(refusal)) => refusal.reason,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

pub(crate) struct World {
    pub(crate) clock: Arc<TestClock>,
    pub(crate) network: MemoryNetwork,
    pub(crate) node: Arc<Node>,
    pub(crate) namespace: Arc<SigningKey>,
    pub(crate) gateway: Arc<SigningKey>,
    pub(crate) stop: CancellationToken,
    config: NodeConfig,
    transports: Vec<Arc<MemoryTransport>>,
    _dir: TempDir,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut NodeConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(TestClock(AtomicU64::new(BEGIN_MS)));
        let mut config = NodeConfig::new(dir.path().join("node"), 512 * MIB as u64);
        config.admit = Admission::Any;
        config.clock = clock.clone();
        // Tests run the rounds themselves.
        config.lease = LeasePolicy { interval_ms: 0, ..LeasePolicy::default() };
        change(&mut config);
        let network = MemoryNetwork::new();
        let stop = CancellationToken::new();
        let node = Node::open(config.clone()).await.unwrap();
        let transport = network.join(node.id());
        node.serve(transport.clone(), stop.clone());
        let transports = vec![transport];
        Self { clock, network, node, namespace: key(1), gateway: key(2), stop, config, transports, _dir: dir }
    }

    /// Closes the node and opens its directory again.
    pub(crate) async fn restart(&mut self) {
        self.node.close().await.unwrap();
        let config = self.config.clone();
        let old = std::mem::replace(&mut self.stop, CancellationToken::new());
        old.cancel();
        // The directory's lock goes with the last holder of the old node.
        let id = self.node.id();
        let parked = Node::open(NodeConfig { dir: config.dir.with_extension("parked"), ..config.clone() });
        let parked = parked.await.unwrap();
        let gone = Arc::downgrade(&std::mem::replace(&mut self.node, parked.clone()));
        while gone.upgrade().is_some() {
            tokio::task::yield_now().await;
        }
        self.node = Node::open(config).await.unwrap();
        parked.close().await.unwrap();
        assert_eq!(self.node.id(), id);
        let transport = self.network.join(id);
        self.node.serve(transport.clone(), self.stop.clone());
        self.transports.push(transport);
    }

    /// Also serves QUIC on loopback; returns where.
    pub(crate) fn serve_quic(&self) -> SocketAddr {
        self.serve_quic_to(false)
    }

    /// The same as a node does it that anybody may dial: with narrow windows for whoever is not known.
    pub(crate) fn serve_quic_to_strangers(&self) -> SocketAddr {
        self.serve_quic_to(true)
    }

    fn serve_quic_to(&self, narrow_accepted: bool) -> SocketAddr {
        let config = QuicConfig::new("127.0.0.1:0".parse().unwrap(), self.node.key());
        let config = QuicConfig { narrow_accepted, ..config };
        let transport = QuicTransport::bind(config).unwrap();
        let address = transport.local_addr().unwrap();
        self.node.serve(transport, self.stop.clone());
        address
    }

    pub(crate) fn namespace_id(&self) -> NamespaceId {
        NamespaceId(self.namespace.public())
    }

    pub(crate) fn delegation(&self, delegate: &SigningKey, rights: Rights) -> Signed<Delegation> {
        self.delegation_by(&self.namespace, delegate, rights)
    }

    pub(crate) fn delegation_by(
        &self,
        namespace: &SigningKey,
        delegate: &SigningKey,
        rights: Rights,
    ) -> Signed<Delegation> {
        let now_ms = self.clock.now_ms();
        let delegation = Delegation {
            v: 1,
            namespace: NamespaceId(namespace.public()),
            delegate: NodeId(delegate.public()),
            rights,
            not_before_ms: now_ms,
            expires_ms: now_ms + 40 * DAY_MS,
            label: "test".to_owned(),
        };
        Signed::sign(delegation, namespace)
    }

    pub(crate) fn hello(&self, delegation: Option<&Signed<Delegation>>) -> HelloParams {
        HelloParams {
            delegation: delegation.map(Signed::to_wire),
            node_record: None,
            software: "test/1".to_owned(),
            now_ms: self.clock.now_ms(),
        }
    }

    /// A connection on which nothing was said yet.
    pub(crate) async fn dial(&self, who: &SigningKey) -> Arc<dyn Connection> {
        let transport = self.network.join(NodeId(who.public()));
        let connection = transport.dial(self.node.id(), &[]).await.unwrap();
        // A member leaves when its transport is dropped; the test's peers stay.
        std::mem::forget(transport);
        connection
    }

    pub(crate) async fn connect(
        &self,
        who: &SigningKey,
        delegation: Option<&Signed<Delegation>>,
    ) -> Result<(Peer, HelloReply), CallError> {
        Peer::hello(self.dial(who).await, self.hello(delegation)).await
    }

    /// A session without a delegation.
    pub(crate) async fn stranger(&self, byte: u8) -> Peer {
        self.connect(&key(byte), None).await.unwrap().0
    }

    /// A delegate's session with these rights.
    pub(crate) async fn delegate(&self, who: &SigningKey, rights: Rights) -> Peer {
        let delegation = self.delegation(who, rights);
        self.connect(who, Some(&delegation)).await.unwrap().0
    }

    /// The gateway's session and its agreement for 64 MiB.
    pub(crate) async fn gateway(&self) -> (Peer, AgreementId) {
        let peer = self.delegate(&self.gateway, Rights::GATEWAY).await;
        let agreement = self.agree(&peer, 64 * MIB as u64).await.unwrap();
        (peer, agreement)
    }

    pub(crate) fn terms(&self, capacity_bytes: u64, nonce: u8) -> Agreement {
        let now_ms = self.clock.now_ms();
        Agreement {
            v: 1,
            namespace: self.namespace_id(),
            node: self.node.id(),
            operator: self.node.operator(),
            capacity_bytes,
            prices: Prices::default(),
            start_ms: now_ms,
            end_ms: now_ms + 90 * DAY_MS,
            notice_ms: DAY_MS,
            nonce: [nonce; 16],
        }
    }

    pub(crate) async fn agree(&self, peer: &Peer, capacity_bytes: u64) -> Result<AgreementId, CallError> {
        let terms = Signed::sign(self.terms(capacity_bytes, 1), &self.namespace);
        let signed = peer.agree(&terms).await?.verify().unwrap();
        assert_eq!(signed.id(), AgreementId(terms.id()));
        Ok(signed.id())
    }

    pub(crate) fn announce(&self, agreement: AgreementId, bytes: &Bytes, tag: ClaimTag) -> PutBlock {
        PutBlock {
            agreement,
            digest: Digest::of(bytes),
            len: BlockLen::of(bytes).unwrap(),
            tag,
            scope: scope(9),
            lease_until_ms: self.clock.now_ms() + HOUR_MS,
            retain_until_ms: 0,
        }
    }

    /// Puts a block under scope 9.
    pub(crate) async fn put(
        &self,
        peer: &Peer,
        agreement: AgreementId,
        bytes: &Bytes,
        tag: ClaimTag,
    ) -> Result<PutBlockReply, CallError> {
        peer.put_block(self.announce(agreement, bytes, tag), bytes.clone()).await
    }

    /// Puts and commits a block; returns its claim.
    pub(crate) async fn keep(
        &self,
        peer: &Peer,
        agreement: AgreementId,
        bytes: &Bytes,
        byte: u8,
    ) -> ClaimRef {
        self.put(peer, agreement, bytes, tag(byte)).await.unwrap();
        let claim = ClaimRef(Digest::of(bytes), tag(byte));
        assert_eq!(commit(peer, agreement, &[claim]).await.unwrap(), vec![BlockOutcome::Done]);
        claim
    }

    pub(crate) fn order(
        &self,
        agreement: AgreementId,
        claims: &[ClaimRef],
        signer: &SigningKey,
    ) -> Signed<DeletionOrder> {
        let order =
            DeletionOrder { v: 1, agreement, claims: claims.to_vec(), issued_ms: self.clock.now_ms() };
        Signed::sign(order, signer)
    }

    /// A grant for `holder` on scope 9, signed by the namespace.
    pub(crate) fn grant(&self, holder: &SigningKey) -> Grant {
        let now_ms = self.clock.now_ms();
        Grant {
            v: 1,
            namespace: self.namespace_id(),
            holder: NodeId(holder.public()),
            scopes: vec![scope(9).unwrap()],
            ops: GrantOps { read: true, list: false },
            not_before_ms: now_ms,
            expires_ms: now_ms + HOUR_MS,
            byte_budget: u64::MAX,
            nonce: [7; 16],
        }
    }

    pub(crate) fn sign_grant(&self, grant: Grant) -> Option<Box<PresentedGrant>> {
        let grant = Signed::sign(grant, &self.namespace).to_wire();
        Some(Box::new(PresentedGrant { grant, delegation: None }))
    }
}

pub(crate) async fn commit(
    peer: &Peer,
    agreement: AgreementId,
    claims: &[ClaimRef],
) -> Result<Vec<BlockOutcome>, CallError> {
    peer.commit_blocks(CommitBlocks { agreement, claims: claims.to_vec(), retain_until_ms: 0 }).await
}

pub(crate) async fn has(peer: &Peer, agreement: AgreementId, claims: &[ClaimRef]) -> Vec<Held> {
    peer.has_blocks(HasBlocks { agreement, claims: claims.to_vec() }).await.unwrap().held
}
