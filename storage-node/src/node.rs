//! The node: a directory, a key, a block store, a ledger of agreements, and a server over any number of transports.
//!
//! [`Node::open`] takes the directory, [`Node::serve`] answers peers on a transport, [`Node::close`] ends both. A node
//! decides nothing about placement, codes or objects; it keeps blocks for namespaces that have an agreement with it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast_protocol::limits::NODE_ADDRESSES_MAX;
use holdfast_protocol::message::NodeStatus;
use holdfast_protocol::record::{NodeRecord, Reachability, Signed, SignedAgreement};
use holdfast_protocol::time::UnixMs;
use holdfast_protocol::transport::Transport;
use holdfast_protocol::{NodeId, OperatorId, SigningKey};
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::NodeAudit;
use crate::disks::Disks;
use crate::server::budget::{Budgets, GrantLedger};
use crate::server::link::{self, Link};
use crate::server::status;
use crate::store::{OpenError, StoreConfig, StoreError};

pub(crate) mod admission;
pub mod config;
pub mod disk_upkeep;
pub(crate) mod durable;
pub mod error;
pub(crate) mod home;
pub mod lease;
pub(crate) mod ledger;
pub mod limits;
pub(crate) mod receipts;
pub(crate) mod rooms;

pub use config::{Admission, LeasePolicy, Misbehaviour, NodeConfig};
pub use error::OpenNodeError;
pub use lease::LeaseReport;
pub use limits::NodeLimits;

use home::Home;
use ledger::Ledger;
use limits::STOP_DEADLINE_MS;
use receipts::Receipts;
use rooms::Rooms;

/// What this release calls itself.
pub const SOFTWARE: &str = concat!("holdfast/", env!("CARGO_PKG_VERSION"));

/// How long a node record is good for: the longest there is; it is signed anew for everybody who asks.
const RECORD_LIFE_MS: u64 = 24 * 3600 * 1000;
/// How often trash whose period is over is looked for.
const RECLAIM_INTERVAL: Duration = Duration::from_secs(600);
/// How soon after the start that happens first: a node that restarts daily must reclaim, too.
const RECLAIM_FIRST: Duration = Duration::from_secs(30);

/// A running storage node.
pub struct Node {
    pub(crate) config: NodeConfig,
    pub(crate) key: Arc<SigningKey>,
    pub(crate) store: Arc<Disks>,
    pub(crate) ledger: Ledger,
    pub(crate) receipts: Receipts,
    pub(crate) rooms: Rooms,
    pub(crate) budgets: Budgets,
    pub(crate) grants: GrantLedger,
    /// Absent when the node takes no part in audits.
    pub(crate) audit: Option<Arc<NodeAudit>>,
    /// Live connections; bounded by the places in `budgets`.
    pub(crate) links: Mutex<Vec<std::sync::Weak<Link>>>,
    /// Everything that must end before the store closes.
    pub(crate) tasks: TaskTracker,
    pub(crate) started_ms: UnixMs,
    pub(crate) stopping: CancellationToken,
    addresses: Mutex<Vec<SocketAddr>>,
    record_seq: AtomicU64,
    /// Holds the directory's lock until the node is closed or dropped.
    home: Mutex<Option<Home>>,
}

impl Node {
    /// Opens the node in `config.dir`: takes the directory, makes the key on first start, recovers the store.
    /// Then looks after leases and trash by itself until [`Node::close`], which an open node always needs.
    /// Must run on a tokio runtime.
    pub async fn open(config: NodeConfig) -> Result<Arc<Self>, OpenNodeError> {
        let opened = {
            let config = config.clone();
            tokio::task::spawn_blocking(move || open_parts(&config))
        };
        let (home, ledger, store) = opened.await.map_err(|_| OpenNodeError::Interrupted)??;
        let key = home.key();
        let audit = crate::audit::chores::open(&config, home.dir(), &key, &store).await?;
        let node = Arc::new(Self {
            audit,
            receipts: Receipts::start(key.clone(), config.clock.clone()),
            rooms: Rooms::default(),
            budgets: Budgets::new(&config.limits),
            grants: GrantLedger::default(),
            links: Mutex::new(Vec::new()),
            tasks: TaskTracker::new(),
            started_ms: config.clock.now_ms(),
            stopping: CancellationToken::new(),
            addresses: Mutex::new(config.addresses.clone()),
            record_seq: AtomicU64::new(0),
            key,
            store,
            ledger,
            config,
            home: Mutex::new(Some(home)),
        });
        if let Some(misbehaviour) = node.config.misbehave {
            tracing::warn!(node = %node.id(), ?misbehaviour, "this node lies to its readers, as it was told to");
        }
        tracing::info!(
            node = %node.id(), dir = %node.config.dir.display(), io = node.store.io_name(),
            agreements = node.ledger.running(node.now_ms()), "node open"
        );
        node.clone().start_chores();
        Ok(node)
    }

    /// The node's id: its public key.
    pub fn id(&self) -> NodeId {
        NodeId(self.key.public())
    }

    /// The key, for the transports that this node listens on.
    pub fn key(&self) -> Arc<SigningKey> {
        self.key.clone()
    }

    /// Who runs the node.
    pub fn operator(&self) -> OperatorId {
        self.config.operator.unwrap_or(OperatorId(self.key.public()))
    }

    /// Replaces the addresses that the node record lists, best first; at most [`NODE_ADDRESSES_MAX`] are taken.
    pub fn advertise(&self, mut addresses: Vec<SocketAddr>) {
        addresses.truncate(NODE_ADDRESSES_MAX);
        *self.addresses.lock() = addresses;
    }

    /// What the node says of itself, signed now.
    pub fn record(&self, now_ms: UnixMs) -> Signed<NodeRecord> {
        let record = NodeRecord {
            v: 1,
            node: self.id(),
            operator: self.operator(),
            addresses: self.addresses.lock().iter().map(ToString::to_string).collect(),
            capacity_bytes: self.config.capacity_bytes,
            free_bytes: self.store.accounts().free_bytes,
            prices: self.config.prices.clone(),
            reachability: Reachability::Unknown,
            asn: self.config.asn,
            software: SOFTWARE.to_owned(),
            seq: self.next_seq(now_ms),
            issued_ms: now_ms,
            expires_ms: now_ms.saturating_add(RECORD_LIFE_MS),
        };
        Signed::sign(record, &self.key)
    }

    /// The counters. They add up: `capacity = used + trash + garbage + free`.
    pub fn status(&self) -> NodeStatus {
        status::of(self)
    }

    /// Every agreement the node ever signed and still keeps, ended ones included.
    pub fn agreements(&self) -> Vec<Arc<SignedAgreement>> {
        self.ledger.agreements()
    }

    /// The disks with the blocks, for inspection and maintenance.
    pub fn store(&self) -> &Arc<Disks> {
        &self.store
    }

    /// Answers peers that connect through `transport` until `stop` or [`Node::close`]; then requests that run
    /// get [`STOP_DEADLINE_MS`] to end. May be called for several transports. The transport itself stays open.
    pub fn serve(self: &Arc<Self>, transport: Arc<dyn Transport>, stop: CancellationToken) -> JoinHandle<()> {
        let node = self.clone();
        let tasks = node.tasks.clone();
        tasks.spawn(async move {
            let connections = TaskTracker::new();
            // Cancelled by whichever of the two comes first.
            let ending = stop.child_token();
            loop {
                let accepted = tokio::select! {
                    biased;
                    () = node.stopping.cancelled() => None,
                    () = ending.cancelled() => None,
                    accepted = transport.accept() => accepted,
                };
                let Some(connection) = accepted else { break };
                connections.spawn(link::serve(node.clone(), connection, ending.clone()));
            }
            ending.cancel();
            connections.close();
            connections.wait().await;
        })
    }

    /// Stops: no new requests, running ones end or are cut after a deadline, then the store closes. Nothing that was
    /// acknowledged is lost, with or without this.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.stopping.cancel();
        self.tasks.close();
        // Every task has a deadline of its own; this one only guards against a disk that never answers.
        let patience = Duration::from_millis(2 * STOP_DEADLINE_MS);
        if tokio::time::timeout(patience, self.tasks.wait()).await.is_err() {
            tracing::warn!(node = %self.id(), running = self.tasks.len(), "some tasks did not end; closing anyway");
        }
        self.store.close().await?;
        drop(self.home.lock().take());
        tracing::info!(node = %self.id(), "node closed");
        Ok(())
    }

    /// Whether [`Node::close`] was called.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    pub(crate) fn now_ms(&self) -> UnixMs {
        self.config.clock.now_ms()
    }

    /// Sequence numbers follow the clock, so that they rise over restarts, and never repeat.
    fn next_seq(&self, now_ms: u64) -> u64 {
        let next = |last: u64| Some(now_ms.max(last.saturating_add(1)));
        let last = self.record_seq.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        last.ok().and_then(next).unwrap_or(now_ms)
    }

    /// Leases and trash, each at its interval, until the node stops.
    fn start_chores(self: Arc<Self>) {
        let interval_ms = self.config.lease.interval_ms;
        if interval_ms > 0 {
            let node = self.clone();
            self.tasks.spawn(async move {
                while node.pause(Duration::from_millis(interval_ms)).await {
                    node.keep_leases(node.now_ms()).await;
                }
            });
        }
        self.start_disk_upkeep();
        self.clone().start_audit();
        let node = self.clone();
        self.tasks.spawn(async move {
            let mut pause = RECLAIM_FIRST;
            while node.pause(pause).await {
                pause = RECLAIM_INTERVAL;
                match node.store.reclaim(node.now_ms()).await {
                    Ok(report) => tracing::debug!(?report, "reclaimed"),
                    Err(error) => tracing::warn!(%error, "reclaiming failed; it is tried again later"),
                }
            }
        });
    }

    /// Waits; false when the node stops meanwhile.
    pub(crate) async fn pause(&self, time: Duration) -> bool {
        tokio::time::timeout(time, self.stopping.cancelled()).await.is_err()
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node({}, {})", self.id(), self.config.dir.display())
    }
}

fn open_parts(config: &NodeConfig) -> Result<(Home, Ledger, Arc<Disks>), OpenNodeError> {
    let home = Home::open(&config.dir)?;
    let ledger = Ledger::open(home.dir())?;
    let mut store = StoreConfig::new(home.dir().join("store"), config.capacity_bytes);
    store.io = config.io;
    store.trash_period_ms = config.trash_period_ms;
    store.clock = config.clock.clone();
    store.scrub_period_ms = config.scrub_period_ms;
    let limits = &config.limits;
    // Peers are admitted by their own bounds; the store's must not be the ones that bite first, or two readers could
    // wait for each other. A quarter more, because buffers come in a few sizes only.
    let bytes = limits.delegate_bytes.saturating_add(limits.stranger_bytes);
    store.read_buffer_bytes = bytes.saturating_add(bytes / 4);
    store.write_buffer_bytes = store.read_buffer_bytes;
    let disks = Disks::open(home.dir(), store, &config.disks);
    let disks = disks.map_err(|source: OpenError| OpenNodeError::Store { source })?;
    Ok((home, ledger, disks))
}
