//! The nodes that we know, one connection to each, and how well each of them does.
//!
//! The pool owns dialling (at most one attempt at a time per node, with back-off and jitter after failures),
//! the Hello that opens every connection, connections that nodes open to us because they cannot be dialled,
//! and the figures that hedging and placement go by: state, latency, free bytes. It keeps a bounded list of
//! nodes caught lying, with the evidence in words. It never looks into blocks and never chooses a node.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::message::HelloReply;
use holdfast_protocol::record::{AgreementId, Delegation, Unverified};
use holdfast_protocol::rpc::Peer;
use holdfast_protocol::time::{Clock, UnixMs};
use holdfast_protocol::transport::{Connection, Transport};
use holdfast_protocol::{Digest, NodeId};
use parking_lot::{Mutex, RwLock};

pub mod agree;
mod culprits;
mod entry;
mod error;
pub mod latency;
mod throughput;
pub mod upkeep;

pub use crate::placement::{FailureDomain, Network};
pub use culprits::Culprit;
pub use error::PoolError;
pub use latency::{LatencyView, SizeClass};

use culprits::Culprits;
use entry::Entry;

/// Nodes that one pool may know. A namespace with more keeps several gateways' pools apart anyway; the bound
/// keeps a hostile list of node records from filling memory.
pub const NODES_MAX: usize = 16_384;

/// Called with every new connection after its Hello, so that the owner can serve the streams that the node opens.
pub type OnConnected = Arc<dyn Fn(NodeId, Arc<dyn Connection>) + Send + Sync>;

/// Called when a node was asked for a block and says that it does not hold it, or answers with other bytes.
pub type OnGone = Arc<dyn Fn(NodeId, Digest) + Send + Sync>;

/// What a pool needs.
#[derive(Clone)]
pub struct PoolConfig {
    /// Where connections come from.
    pub transport: Arc<dyn Transport>,
    /// For whom we act; without it, connections may only read under grants.
    pub delegation: Option<Unverified<Delegation>>,
    /// Software name and version, for people.
    pub software: String,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// Called with every new connection.
    pub on_connected: Option<OnConnected>,
    /// Called with every block that a node should have and does not give: what heals reads reports it.
    pub on_gone: Option<OnGone>,
    /// How long dialling and Hello together may take.
    pub connect_timeout: Duration,
}

impl PoolConfig {
    /// A pool over `transport` with the usual times.
    pub fn new(transport: Arc<dyn Transport>, software: impl Into<String>, clock: Arc<dyn Clock>) -> Self {
        Self {
            transport,
            delegation: None,
            software: software.into(),
            clock,
            on_connected: None,
            on_gone: None,
            connect_timeout: Duration::from_secs(5),
        }
    }
}

/// What the owner of the pool knows about a node.
#[derive(Clone, Debug, PartialEq)]
pub struct KnownNode {
    /// Which.
    pub id: NodeId,
    /// Where to dial it, best first; empty for a node that only dials out.
    pub addresses: Vec<SocketAddr>,
    /// Our agreement with it; nothing can be written without one.
    pub agreement: Option<AgreementId>,
    /// What it shares with others.
    pub domain: FailureDomain,
    /// Bytes it offers.
    pub capacity_bytes: u64,
    /// Bytes still free, as last heard.
    pub free_bytes: u64,
    /// Takes no new blocks (draining, or full): still read from.
    pub accepts_writes: bool,
}

/// Whether a node answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// The last thing it was asked, it answered.
    Up,
    /// It did not.
    Down {
        /// Since when.
        since_ms: UnixMs,
    },
    /// Never tried.
    Unknown,
}

impl NodeState {
    /// Whether there is reason to believe that it does not answer.
    pub fn is_down(self) -> bool {
        matches!(self, Self::Down { .. })
    }
}

/// A node as the pool sees it now.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeView {
    /// What was told about it.
    pub known: KnownNode,
    /// Whether it answers.
    pub state: NodeState,
    /// How long small answers take (up to [`latency::SMALL_MAX`] bytes).
    pub small: LatencyView,
    /// How long large ones take.
    pub large: LatencyView,
    /// Bytes a second that came from it while anything was under way; `None` while that is not known.
    pub bytes_per_second: Option<f64>,
    /// Times it was caught lying.
    pub lies: u64,
}

/// How a request to a node went.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It answered, and what it said was verified.
    Ok {
        /// From asking to the last byte.
        latency: Duration,
        /// Bytes of blocks moved, which decides with which others the latency is compared.
        bytes: usize,
    },
    /// It did not answer, or said that it could not: costs trust in its liveness, nothing else.
    Failed,
    /// It took so long that the answer was had in another way. Several times in a row make it a stalled
    /// node: one that takes requests and does not answer, which is put on the list of culprits.
    Overtaken {
        /// About which block.
        digest: Option<Digest>,
    },
    /// It answered that it does not hold a block that it should.
    Absent {
        /// Which.
        digest: Digest,
    },
    /// It said something that is provably wrong.
    Lied {
        /// The evidence, in words.
        what: String,
        /// About which block.
        digest: Option<Digest>,
    },
}

/// A request under way; see [`NodePool::under_way`].
pub(crate) struct UnderWay {
    entry: Option<Arc<Entry>>,
    bytes: u64,
    delivered: u64,
}

impl UnderWay {
    /// This many bytes came.
    pub(crate) fn delivered(&mut self, bytes: usize) {
        self.delivered = bytes as u64;
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some(entry) = &self.entry {
            entry.end(self.bytes, self.delivered);
        }
    }
}

/// The known nodes and the connections to them.
pub struct NodePool {
    config: PoolConfig,
    delegation: RwLock<Option<Unverified<Delegation>>>,
    nodes: RwLock<HashMap<NodeId, Arc<Entry>>>,
    culprits: Mutex<Culprits>,
}

impl NodePool {
    /// A pool that knows nobody yet.
    pub fn new(config: PoolConfig) -> Arc<Self> {
        let delegation = RwLock::new(config.delegation.clone());
        Arc::new(Self {
            config,
            delegation,
            nodes: RwLock::default(),
            culprits: Mutex::new(Culprits::default()),
        })
    }

    /// Our own id.
    pub fn local_id(&self) -> NodeId {
        self.config.transport.local_id()
    }

    /// The wall clock of this pool.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.config.clock
    }

    /// Presents this delegation on connections made from now on.
    pub fn set_delegation(&self, delegation: Unverified<Delegation>) {
        *self.delegation.write() = Some(delegation);
    }

    /// Adds a node, or replaces what is known of it; connection, state and figures stay, and so does its
    /// agreement unless another one is named.
    ///
    /// # Errors
    /// [`PoolError::Full`] when [`NODES_MAX`] others are known.
    pub fn upsert(&self, known: KnownNode) -> Result<(), PoolError> {
        let mut nodes = self.nodes.write();
        if let Some(entry) = nodes.get(&known.id) {
            entry.set_known(known);
            return Ok(());
        }
        if nodes.len() >= NODES_MAX {
            return Err(PoolError::Full { node: known.id, max: NODES_MAX });
        }
        nodes.insert(known.id, Arc::new(Entry::new(known)));
        Ok(())
    }

    /// Forgets a node and closes the connection to it.
    pub fn remove(&self, id: NodeId) {
        let entry = self.nodes.write().remove(&id);
        if let Some(entry) = entry {
            entry.disconnect("no longer known here");
        }
    }

    /// All known nodes, in the order of their ids.
    pub fn nodes(&self) -> Vec<NodeView> {
        let mut views: Vec<NodeView> = self.nodes.read().values().map(|entry| entry.view()).collect();
        views.sort_unstable_by_key(|view| view.known.id);
        views
    }

    /// One node.
    pub fn node(&self, id: NodeId) -> Option<NodeView> {
        self.nodes.read().get(&id).map(|entry| entry.view())
    }

    /// The agreement with a node, if there is one.
    pub fn agreement(&self, id: NodeId) -> Option<AgreementId> {
        self.nodes.read().get(&id).and_then(|entry| entry.agreement())
    }

    /// The connection to a node, made if there is none.
    ///
    /// At most one attempt runs at a time per node: callers that come meanwhile wait for it. After a failure
    /// the next attempt waits (250 ms, doubling up to 30 s, with jitter), and until then this fails at once.
    ///
    /// # Cancel safety
    /// Cancel safe: a half-made connection is dropped, and the next caller dials anew.
    pub async fn peer(&self, id: NodeId) -> Result<Peer, PoolError> {
        let entry = self.entry(id)?;
        if let Some(peer) = entry.connected() {
            return Ok(peer);
        }
        let _dialling = entry.dialling().await;
        if let Some(peer) = entry.connected() {
            return Ok(peer);
        }
        entry.may_dial(id)?;
        let addresses = entry.addresses();
        let attempt = async {
            let connection = self
                .config
                .transport
                .dial(id, &addresses)
                .await
                .map_err(|source| PoolError::Dial { node: id, source })?;
            self.greet(&entry, connection).await
        };
        let timeout = self.config.connect_timeout;
        let made = match tokio::time::timeout(timeout, attempt).await {
            Ok(made) => made,
            Err(_) => Err(PoolError::Timeout { node: id, after: timeout }),
        };
        match made {
            Ok((peer, _)) => Ok(peer),
            Err(error) => {
                entry.failed_to_connect(self.now_ms());
                Err(error)
            }
        }
    }

    /// Takes over a connection that a known node opened to us (it may not be reachable in any other way).
    pub async fn adopt(&self, connection: Arc<dyn Connection>) -> Result<HelloReply, PoolError> {
        let id = connection.peer();
        let entry = self.entry(id)?;
        let timeout = self.config.connect_timeout;
        let greeted = tokio::time::timeout(timeout, self.greet(&entry, connection)).await;
        let (_, reply) = greeted.map_err(|_| PoolError::Timeout { node: id, after: timeout })??;
        entry.alive();
        Ok(reply)
    }

    /// Says Hello again on every open connection, with the delegation that is set now. Nodes that fail are left as they
    /// are; their next connection shows it anyway.
    pub async fn renew_sessions(&self) {
        for entry in self.entries() {
            let Some(peer) = entry.connected() else { continue };
            let connection = Arc::clone(peer.connection());
            let greeted = tokio::time::timeout(self.config.connect_timeout, self.renew(&entry, connection));
            match greeted.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "a session was not renewed"),
                Err(_) => tracing::warn!(node = %entry.id(), "a session was not renewed in time"),
            }
        }
    }

    /// Whether a connection to the node is open now.
    pub fn is_connected(&self, id: NodeId) -> bool {
        self.entry(id).is_ok_and(|entry| entry.connected().is_some())
    }

    /// Tells the pool how a request went. Unknown nodes are ignored.
    pub fn report(&self, id: NodeId, outcome: Outcome) {
        let Ok(entry) = self.entry(id) else { return };
        match outcome {
            Outcome::Ok { latency, bytes } => entry.answered(latency, bytes),
            Outcome::Failed => entry.failed(self.now_ms()),
            Outcome::Overtaken { digest } => {
                if entry.overtaken(self.now_ms()) {
                    tracing::warn!(node = %id, ?digest, "a node takes requests and does not answer in time");
                    let what = "stalled: reads in a row had to be served from elsewhere".to_owned();
                    self.culprits.lock().add(id, what, digest, self.now_ms());
                }
            }
            Outcome::Absent { digest } => {
                entry.alive();
                self.gone(id, digest);
            }
            Outcome::Lied { what, digest } => {
                if let Some(digest) = digest {
                    self.gone(id, digest);
                }
                entry.lied();
                tracing::warn!(node = %id, ?digest, what, "a node was caught lying");
                self.culprits.lock().add(id, what, digest, self.now_ms());
            }
        }
    }

    /// Who was caught lying or stalling, latest first.
    pub fn culprits(&self) -> Vec<Culprit> {
        self.culprits.lock().list()
    }

    /// How long a node's answers of about `bytes` bytes take.
    pub fn latency(&self, id: NodeId, bytes: usize) -> LatencyView {
        self.entry(id).map(|entry| entry.latency(SizeClass::of(bytes))).unwrap_or_default()
    }

    /// How long a read of `bytes` more from a node will take, behind all that is under way from it already; `None` while
    /// its rate is not known.
    pub fn expects(&self, id: NodeId, bytes: usize) -> Option<Duration> {
        self.entry(id).ok()?.expects(bytes as u64)
    }

    /// Notes that `bytes` are asked of a node, until what this gives is dropped.
    pub(crate) fn under_way(&self, id: NodeId, bytes: usize) -> UnderWay {
        let entry = self.entry(id).ok();
        if let Some(entry) = &entry {
            entry.begin(bytes as u64);
        }
        UnderWay { entry, bytes: bytes as u64, delivered: 0 }
    }

    /// The 95th percentile that the node in the middle has for answers of about `bytes` bytes: what to expect of
    /// a node that is not known yet. `None` while fewer than three nodes are known by it.
    pub fn typical_p95(&self, bytes: usize) -> Option<Duration> {
        let class = SizeClass::of(bytes);
        let views = self.entries().into_iter().map(|entry| entry.latency(class));
        let mut known: Vec<Duration> = views.filter(|view| view.samples >= 8).map(|view| view.p95).collect();
        if known.len() < 3 {
            return None;
        }
        known.sort_unstable();
        known.get(known.len() / 2).copied()
    }

    /// Whether there is reason to believe that a node does not answer; also of a node that is not known.
    pub fn is_down(&self, id: NodeId) -> bool {
        self.entry(id).map_or(true, |entry| entry.is_down())
    }

    /// Whether a read should go elsewhere first: the node is down. Once in a while (a second after it went
    /// down, then ever more rarely) this says no all the same, so that its caller finds out whether it is back.
    pub fn is_avoided(&self, id: NodeId) -> bool {
        self.entry(id).map_or(true, |entry| entry.is_down() && !entry.takes_trial())
    }

    /// Returns when the node is found to be down; at once when it is, or is not known.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn until_down(&self, id: NodeId) {
        if let Ok(entry) = self.entry(id) {
            entry.until_down().await;
        }
    }

    /// Time since a node last answered anything; `None` if it never did.
    pub fn silent_for(&self, id: NodeId) -> Option<Duration> {
        self.entry(id).ok().and_then(|entry| entry.silent_for())
    }

    fn gone(&self, id: NodeId, digest: Digest) {
        if let Some(on_gone) = &self.config.on_gone {
            on_gone(id, digest);
        }
    }

    fn entry(&self, id: NodeId) -> Result<Arc<Entry>, PoolError> {
        self.nodes.read().get(&id).cloned().ok_or(PoolError::Unknown { node: id })
    }

    fn entries(&self) -> Vec<Arc<Entry>> {
        self.nodes.read().values().cloned().collect()
    }

    fn now_ms(&self) -> UnixMs {
        self.config.clock.now_ms()
    }
}

#[cfg(test)]
mod tests;
