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
use holdfast_protocol::transport::{Connection, Transport};
use holdfast_protocol::{NamespaceId, NodeId, OperatorId, SigningKey};
use parking_lot::{Mutex, RwLock};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::NodeAudit;
use crate::disks::{Disks, ResizeError};
use crate::server::budget::{Budgets, GrantLedger};
use crate::server::link::{self, Link};
use crate::server::status;
use crate::store::{Accounts, OpenError, StoreConfig, StoreError};

pub(crate) mod admission;
pub mod bandwidth;
pub mod config;
pub mod deny;
pub mod disk_upkeep;
pub(crate) mod durable;
pub mod error;
pub(crate) mod home;
pub mod lease;
pub mod leave;
pub(crate) mod ledger;
pub mod limits;
pub mod mode;
pub mod offline;
pub(crate) mod receipts;
pub mod report;
pub(crate) mod rooms;
pub mod watch;

pub use bandwidth::Schedule;
pub use config::{Admission, Bandwidth, LeasePolicy, Misbehaviour, NodeConfig};
pub use deny::DenyBook;
pub use error::OpenNodeError;
pub use lease::LeaseReport;
pub use leave::NamespaceLeave;
pub use limits::NodeLimits;
pub use mode::Mode;
pub use report::NodeReport;
pub use watch::{Problem, Reach, Severity};

use bandwidth::Pacer;
use home::Home;
use leave::Leaves;
use ledger::Ledger;
use limits::STOP_DEADLINE_MS;
use mode::Kept;
use receipts::Receipts;
use rooms::Rooms;
use watch::{Sample, Watch};

/// What this release calls itself.
pub const SOFTWARE: &str = concat!("holdfast/", env!("CARGO_PKG_VERSION"));

/// How long a node record is good for: the longest there is; it is signed anew for everybody who asks.
const RECORD_LIFE_MS: u64 = 24 * 3600 * 1000;
/// How often trash whose period is over is looked for.
const RECLAIM_INTERVAL: Duration = Duration::from_secs(600);
/// How soon after the start that happens first: a node that restarts daily must reclaim, too.
const RECLAIM_FIRST: Duration = Duration::from_secs(30);
/// How often namespaces hear what we want of them while the node leaves or shrinks, and otherwise.
const WISHES_EVERY: Duration = Duration::from_secs(3);
const WISHES_IDLE: Duration = Duration::from_secs(20);
/// How often the disks are asked how they do.
const DISKS_WATCHED_EVERY: Duration = Duration::from_secs(10);

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
    pub(crate) deny: DenyBook,
    pub(crate) leaves: Leaves,
    /// Rung when the operator changes what the namespaces are to hear.
    wish_changed: tokio::sync::Notify,
    pub(crate) watch: Watch,
    pub(crate) sending: Pacer,
    pub(crate) taking: Pacer,
    /// Namespaces whose lease questions went unanswered lately.
    pub(crate) quiet: lease::Quiet,
    admitted: RwLock<Admission>,
    kept: Mutex<Kept>,
    /// Cancelled once the node has left for good.
    pub(crate) left: CancellationToken,
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
        let config = without_audit_where_nothing_is_written(config);
        let opened = {
            let config = config.clone();
            tokio::task::spawn_blocking(move || open_parts(&config))
        };
        let Parts { home, ledger, store, kept, deny } =
            opened.await.map_err(|_| OpenNodeError::Interrupted)??;
        let key = home.key();
        let audit = crate::audit::chores::open(&config, home.dir(), &key, &store).await?;
        let node = Arc::new(Self {
            audit,
            receipts: Receipts::start(key.clone(), config.clock.clone()),
            rooms: Rooms::default(),
            budgets: Budgets::new(&config.limits),
            grants: GrantLedger::default(),
            deny,
            leaves: Leaves::default(),
            wish_changed: tokio::sync::Notify::new(),
            watch: Watch::open(&config.dir),
            sending: Pacer::default(),
            taking: Pacer::default(),
            quiet: lease::Quiet::default(),
            admitted: RwLock::new(config.admit.clone()),
            kept: Mutex::new(kept),
            left: CancellationToken::new(),
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
        if let Some(offered) = node.kept.lock().capacity_bytes {
            node.store.offer_on_first(offered);
        }
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
            capacity_bytes: self.offered_bytes(),
            free_bytes: self.accounts().free_bytes,
            prices: self.config.prices.clone(),
            reachability: match self.watch.reach() {
                Reach::Direct { .. } => Reachability::Direct,
                Reach::DialOut { .. } => Reachability::DialOut,
                Reach::Unknown | Reach::Unreachable { .. } => Reachability::Unknown,
            },
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

    /// Serves a peer over a connection that we dialled: the way to a node that nobody can dial. Returns when the
    /// connection ends, by `stop` or by itself.
    pub async fn serve_dialled(self: &Arc<Self>, connection: Arc<dyn Connection>, stop: CancellationToken) {
        let ending = stop.child_token();
        let node = self.clone();
        let serving = self.tasks.spawn(link::serve_dialled(node, connection, ending.clone()));
        tokio::select! {
            () = self.stopping.cancelled() => ending.cancel(),
            _ended = serving => {}
        }
    }

    /// Lets a namespace rent capacity from now on.
    pub fn admit(&self, namespace: NamespaceId) {
        if let Admission::Listed(listed) = &mut *self.admitted.write()
            && !listed.contains(&namespace)
        {
            listed.push(namespace);
        }
    }

    /// Who may rent.
    pub fn admission(&self) -> Admission {
        self.admitted.read().clone()
    }

    /// What the operator wants of the node.
    pub fn mode(&self) -> Mode {
        self.kept.lock().mode
    }

    /// Changes what the operator wants, durably. Blocks on the disk.
    pub fn set_mode(&self, mode: Mode) -> std::io::Result<()> {
        let mut kept = self.kept.lock();
        if kept.mode == mode {
            return Ok(());
        }
        let next = Kept { mode, since_ms: self.now_ms(), ..*kept };
        mode::write(&self.config.dir, next)?;
        *kept = next;
        self.wish_changed.notify_one();
        tracing::info!(node = %self.id(), ?mode, "the operator changed the node's mode");
        Ok(())
    }

    /// Offers this much from now on, durably. More than the store was opened with counts from the next start. Blocks on
    /// the disk.
    pub fn set_capacity(&self, capacity_bytes: u64) -> std::io::Result<()> {
        let mut kept = self.kept.lock();
        let next = Kept { capacity_bytes: Some(capacity_bytes), ..*kept };
        mode::write(&self.config.dir, next)?;
        *kept = next;
        self.store.offer_on_first(capacity_bytes);
        self.wish_changed.notify_one();
        Ok(())
    }

    /// Offers this much on one of the further disks from now on, durably. More than its store was opened with counts from
    /// the next start. Blocks on the disk.
    pub fn set_disk_capacity(&self, dir: &std::path::Path, capacity_bytes: u64) -> Result<(), ResizeError> {
        self.store.resize(dir, capacity_bytes)?;
        self.wish_changed.notify_one();
        Ok(())
    }

    /// Bytes offered now, over all disks.
    pub fn offered_bytes(&self) -> u64 {
        self.shrinking_to().unwrap_or_else(|| self.store.accounts().capacity_bytes)
    }

    /// The capacity over all disks to which the node shrinks, if one of them was told to offer less.
    pub(crate) fn shrinking_to(&self) -> Option<u64> {
        let (offered, whole) = self.store.offered_and_whole();
        (offered < whole).then_some(offered)
    }

    /// Where every byte of the offered capacity is. While more is occupied than is offered, that much is the capacity.
    pub fn accounts(&self) -> Accounts {
        let real = self.store.accounts();
        let offered = self.shrinking_to().unwrap_or(u64::MAX);
        if offered >= real.capacity_bytes {
            return real;
        }
        let occupied = real.capacity_bytes - real.free_bytes;
        let capacity_bytes = offered.max(occupied);
        Accounts { capacity_bytes, free_bytes: capacity_bytes - occupied, ..real }
    }

    /// The operator's deny-list.
    pub fn deny_list(&self) -> &DenyBook {
        &self.deny
    }

    /// What the operator sees over time.
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Returns once the node has left for good.
    pub async fn has_left(&self) {
        self.left.cancelled().await;
    }

    /// The present rates, in bytes a second: sending and taking.
    pub(crate) fn rates(&self) -> (Option<u64>, Option<u64>) {
        let bandwidth = &self.config.bandwidth;
        if bandwidth.send.is_unlimited() && bandwidth.take.is_unlimited() {
            return (None, None);
        }
        let minute = (bandwidth.minute_of_day)(self.now_ms());
        (bandwidth.send.rate_at(minute), bandwidth.take.rate_at(minute))
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
        self.clone().start_wishes();
        self.clone().start_sampling();
        self.clone().start_disk_watch();
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

    /// Tells namespaces what to move away, and ends an exit.
    fn start_wishes(self: Arc<Self>) {
        let tasks = self.tasks.clone();
        tasks.spawn(async move {
            loop {
                let busy = self.mode().is_leaving() || self.shrinking_to().is_some();
                tokio::select! {
                    () = self.wish_changed.notified() => {}
                    goes_on = self.pause(if busy { WISHES_EVERY } else { WISHES_IDLE }) => {
                        if !goes_on {
                            return;
                        }
                    }
                }
                self.tell_wishes().await;
                if self.leave_when_emptied().await {
                    return;
                }
            }
        });
    }

    /// What the disks' own alarms say, for the page and the alerts. Looking at a disk may wait for it.
    fn start_disk_watch(self: Arc<Self>) {
        let tasks = self.tasks.clone();
        tasks.spawn(async move {
            loop {
                let node = self.clone();
                let looked = tokio::task::spawn_blocking(move || {
                    let alarms = node.store.health().into_iter().flat_map(|disk| disk.alarms);
                    node.watch.set_disk(alarms.map(|alarm| watch::of_alarm(&alarm)).collect());
                });
                if looked.await.is_err() || !self.pause(DISKS_WATCHED_EVERY).await {
                    return;
                }
            }
        });
    }

    /// Space over time.
    fn start_sampling(self: Arc<Self>) {
        let tasks = self.tasks.clone();
        tasks.spawn(async move {
            loop {
                let accounts = self.accounts();
                let sample = Sample {
                    at_ms: self.now_ms(),
                    used_bytes: accounts.used_bytes,
                    trash_bytes: accounts.trash_bytes,
                    capacity_bytes: accounts.capacity_bytes,
                    served_bytes: 0,
                    taken_bytes: 0,
                };
                let node = self.clone();
                let kept = tokio::task::spawn_blocking(move || node.watch.sample(sample)).await;
                if let Ok(Err(error)) = kept {
                    tracing::debug!(%error, "the history of space is not kept");
                }
                if !self.pause(Duration::from_millis(watch::SAMPLE_EVERY_MS)).await {
                    return;
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

/// What is committed to in an audit is written before it is said.
fn without_audit_where_nothing_is_written(config: NodeConfig) -> NodeConfig {
    if config.audit.is_none() || !crate::store::identity::is_read_only(&config.dir) {
        return config;
    }
    tracing::error!(dir = %config.dir.display(), "the node's directory is read-only: audits are not answered");
    NodeConfig { audit: None, ..config }
}

/// What opening finds in the directory.
struct Parts {
    home: Home,
    ledger: Ledger,
    store: Arc<Disks>,
    kept: Kept,
    deny: DenyBook,
}

fn open_parts(config: &NodeConfig) -> Result<Parts, OpenNodeError> {
    let home = Home::open(&config.dir)?;
    let ledger = Ledger::open(home.dir())?;
    let kept = mode::read(home.dir())?;
    let deny = DenyBook::open(home.dir(), home.key())?;
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
    let store = disks.map_err(|source: OpenError| OpenNodeError::Store { source })?;
    Ok(Parts { home, ledger, store, kept, deny })
}
