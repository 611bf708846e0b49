//! The auditor's process: asks nodes over QUIC, takes in those that dial it, writes its log, serves it.
//!
//! What to sign and what to think of it is `holdfast_proofs::auditor`'s; this file moves bytes and keeps time. Every
//! word is logged before it is sent.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use holdfast_proofs::auditor::{Ask, Auditor, MissKind};
use holdfast_proofs::beacon::Beacon;
use holdfast_proofs::policy::AuditPolicy;
use holdfast_protocol::record::{Countersignature, Signed, Standing, Verdict};
use holdfast_protocol::rpc::{CallError, HelloParams, Peer};
use holdfast_protocol::time::{Clock, SystemClock};
use holdfast_protocol::transport::{Connection, Transport};
use holdfast_protocol::{NodeId, SigningKey};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::beacon::Rounds;
use super::inbound;
use super::logdir::LogDir;

/// Nodes asked at the same time.
const ASKED_AT_ONCE: usize = 64;
/// How long reaching a node may take.
const DIAL_WITHIN: Duration = Duration::from_secs(5);
/// The longest time for one request, however long the epoch.
const ASK_WITHIN: Duration = Duration::from_secs(30);
/// The longest pause between looks at what is due.
const TICK_MAX: Duration = Duration::from_secs(5);
/// How long a node that could not be asked is left alone, doubled by each failure up to a part of the epoch.
const BACKOFF: Duration = Duration::from_millis(200);
/// What we call ourselves.
pub(super) const SOFTWARE: &str = concat!("holdfast-auditor/", env!("CARGO_PKG_VERSION"));

/// How an auditor is run.
pub(crate) struct RunConfig {
    /// Its key.
    pub(crate) key: Arc<SigningKey>,
    /// Where its log goes.
    pub(crate) log_dir: std::path::PathBuf,
    /// Its log's name.
    pub(crate) origin: String,
    /// The network's rules.
    pub(crate) policy: AuditPolicy,
    /// Where rounds come from.
    pub(crate) rounds: Rounds,
    /// How nodes are reached, and where they may dial.
    pub(crate) transport: Arc<dyn Transport>,
    /// The nodes known at the start.
    pub(crate) nodes: BTreeMap<NodeId, Vec<SocketAddr>>,
    /// Where the log can be read, as told to nodes.
    pub(crate) log_address: String,
}

/// A running auditor.
pub(crate) struct Running {
    config: RunConfig,
    pub(super) auditor: Mutex<Auditor>,
    log: tokio::sync::Mutex<LogDir>,
    addresses: Mutex<BTreeMap<NodeId, Vec<SocketAddr>>>,
    peers: Mutex<HashMap<NodeId, Peer>>,
    resting: Mutex<HashMap<NodeId, (Instant, u32)>>,
}

/// What one node gave, to be told what came of it once that is logged.
#[derive(Default)]
struct Given {
    countersigned: Vec<Signed<Countersignature>>,
    found: Vec<Signed<Verdict>>,
}

impl Running {
    /// Opens the log and takes up where it ends.
    pub(crate) fn open(config: RunConfig) -> Result<Arc<Self>> {
        config.policy.check()?;
        let beacon: Arc<dyn Beacon> = Arc::from(config.policy.beacon.open()?);
        let (mut log, entries) = LogDir::open(&config.log_dir, &config.origin, Arc::clone(&config.key))?;
        let (key, origin, policy) = (Arc::clone(&config.key), config.origin.clone(), config.policy.clone());
        let mut auditor = if entries.is_empty() {
            let mut auditor = Auditor::new(key, origin, policy, beacon, SystemClock.now_ms());
            log.append(&auditor.take_entries())?;
            auditor
        } else {
            Auditor::replay(key, origin, policy, beacon, entries)
                .with_context(|| format!("cannot go on with the log in {}", config.log_dir.display()))?
        };
        for node in config.nodes.keys() {
            auditor.follow(*node);
        }
        Ok(Arc::new(Self {
            addresses: Mutex::new(config.nodes.clone()),
            auditor: Mutex::new(auditor),
            log: tokio::sync::Mutex::new(log),
            peers: Mutex::new(HashMap::new()),
            resting: Mutex::new(HashMap::new()),
            config,
        }))
    }

    /// Where the log lies.
    pub(crate) async fn log_dir(&self) -> std::path::PathBuf {
        self.log.lock().await.dir().to_owned()
    }

    /// Where the log can be read, as told to others.
    pub(crate) fn log_address(&self) -> &str {
        &self.config.log_address
    }

    /// Our id.
    pub(crate) fn id(&self) -> NodeId {
        NodeId(self.config.key.public())
    }

    /// Audits until `stop`.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) -> Result<()> {
        let accepting = tokio::spawn(inbound::accept(Arc::clone(&self), Arc::clone(&self.config.transport)));
        let tick = Duration::from_millis((self.config.policy.commit_ms / 6).max(20)).min(TICK_MAX);
        let outcome = loop {
            if let Err(error) = self.tick().await {
                break Err(error);
            }
            tokio::select! {
                () = stop.cancelled() => break Ok(()),
                () = tokio::time::sleep(tick) => {}
            }
        };
        accepting.abort();
        outcome
    }

    /// One look at what is due. Fails only when the log cannot be written: an auditor that cannot write says nothing.
    async fn tick(&self) -> Result<()> {
        self.fetch_round().await;
        let nodes: Vec<NodeId> = self.auditor.lock().nodes().collect();
        let given: Vec<(NodeId, Given)> = futures::stream::iter(nodes)
            .map(|node| async move { (node, self.ask(node).await) })
            .buffer_unordered(ASKED_AT_ONCE)
            .filter(|(_, given)| std::future::ready(!given.is_empty()))
            .collect()
            .await;
        let (verdicts, entries) = {
            let now_ms = SystemClock.now_ms();
            let mut auditor = self.auditor.lock();
            let epoch = auditor.policy().epoch_at(now_ms);
            let mut verdicts = auditor.close(epoch.saturating_sub(1), now_ms);
            verdicts.extend(auditor.close(epoch, now_ms));
            verdicts.extend(auditor.expire(now_ms));
            (verdicts, auditor.take_entries())
        };
        self.log.lock().await.append(&entries)?;
        let mut told: BTreeMap<NodeId, Given> = given.into_iter().collect();
        for verdict in verdicts {
            told.entry(verdict.record().node).or_default().found.push(verdict);
        }
        futures::stream::iter(told)
            .for_each_concurrent(ASKED_AT_ONCE, |(node, given)| self.tell(node, given))
            .await;
        Ok(())
    }

    async fn fetch_round(&self) {
        let Some((epoch, number)) = self.auditor.lock().round_wanted(SystemClock.now_ms()) else { return };
        match self.config.rounds.get(number).await {
            Ok(Some(round)) => {
                if let Err(error) = self.auditor.lock().take_round(epoch, round) {
                    tracing::warn!(epoch, number, %error, "the beacon's round is not accepted");
                }
            }
            Ok(None) => tracing::debug!(epoch, number, "the beacon's round is not there yet"),
            Err(error) => {
                tracing::warn!(epoch, number, error = format!("{error:#}"), "no round from the beacon")
            }
        }
    }

    /// Asks a node all that is due, if it is not resting.
    async fn ask(&self, node: NodeId) -> Given {
        let mut given = Given::default();
        let asks = self.auditor.lock().asks(node, SystemClock.now_ms());
        let is_resting = self.resting.lock().get(&node).is_some_and(|(until, _)| *until > Instant::now());
        if asks.is_empty() || is_resting {
            return given;
        }
        let peer = match self.peer(node).await {
            Ok(peer) => peer,
            Err(error) => {
                tracing::debug!(%node, error = format!("{error:#}"), "a node cannot be reached");
                self.rest(node, MissKind::Offline);
                return given;
            }
        };
        for ask in asks {
            let within = ASK_WITHIN.min(Duration::from_millis(self.config.policy.epoch_ms));
            let outcome = match &ask {
                Ask::Commitment(epoch) => {
                    tokio::time::timeout(within, self.ask_commitment(&peer, node, *epoch, &mut given)).await
                }
                Ask::Answer(epoch, draws) => {
                    tokio::time::timeout(within, self.ask_answer(&peer, node, *epoch, draws, &mut given))
                        .await
                }
            };
            let failed = match outcome {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => format!("no answer within {within:?}"),
            };
            tracing::debug!(%node, ?ask, failed, "a node did not answer");
            if peer.connection().is_closed() {
                self.peers.lock().remove(&node);
            }
            self.rest(node, MissKind::Timeout);
            return given;
        }
        self.resting.lock().remove(&node);
        given
    }

    async fn ask_commitment(&self, peer: &Peer, node: NodeId, epoch: u64, given: &mut Given) -> Result<()> {
        let shown = peer.audit_commitment(epoch).await?;
        let taken = self.auditor.lock().take_commitment(node, epoch, &shown, SystemClock.now_ms());
        match taken {
            Ok(countersignature) => given.countersigned.push(countersignature),
            Err(error) if error.is_retryable() => bail!(error),
            Err(error) => tracing::warn!(%node, epoch, %error, "a commitment is not countersigned"),
        }
        Ok(())
    }

    async fn ask_answer(
        &self,
        peer: &Peer,
        node: NodeId,
        epoch: u64,
        draws: &[u32],
        given: &mut Given,
    ) -> Result<()> {
        let round = self.auditor.lock().round(epoch).cloned().context("the epoch is not drawn")?;
        let (answer, body) = peer.audit_answer(epoch, round, draws.to_vec()).await?;
        let taken = self.auditor.lock().take_answer(node, epoch, &answer, &body, SystemClock.now_ms())?;
        // Kept before the entry that names it is published.
        self.log.lock().await.keep(&taken.body, &body)?;
        given.found.extend(taken.verdict);
        let left = self.auditor.lock().asks(node, SystemClock.now_ms());
        if left.iter().any(|ask| matches!(ask, Ask::Answer(left, _) if *left == epoch)) {
            // It answered and left something out: the same question again at once would get the same answer.
            self.rest(node, MissKind::Timeout);
        }
        Ok(())
    }

    /// Tells a node what came of what it gave. A node that does not listen has lost nothing but news.
    async fn tell(&self, node: NodeId, given: Given) {
        let Some(peer) = self.peers.lock().get(&node).cloned() else { return };
        let telling = async {
            for word in &given.countersigned {
                peer.audit_countersigned(word.to_wire()).await?;
            }
            if let (Some(verdict), Some(standing)) = (given.found.last(), self.standing(node)) {
                peer.audit_found(verdict.to_wire(), standing.to_wire()).await?;
            }
            Ok::<(), CallError>(())
        };
        match tokio::time::timeout(DIAL_WITHIN, telling).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%node, %error, "a node does not take our word"),
            Err(_) => tracing::debug!(%node, "a node does not take our word in time"),
        }
    }

    fn standing(&self, node: NodeId) -> Option<Signed<Standing>> {
        self.auditor.lock().standing(node, &self.config.log_address, SystemClock.now_ms())
    }

    /// The session with a node: the one that it opened or we did.
    async fn peer(&self, node: NodeId) -> Result<Peer> {
        if let Some(peer) = self.peers.lock().get(&node).filter(|peer| !peer.connection().is_closed()) {
            return Ok(peer.clone());
        }
        let addresses = self.addresses.lock().get(&node).cloned().unwrap_or_default();
        let dialling = async {
            let connection = self.config.transport.dial(node, &addresses).await?;
            self.greet(connection).await
        };
        tokio::time::timeout(DIAL_WITHIN, dialling).await.context("it did not answer in time")?
    }

    /// Says Hello on a connection and keeps the session. Whoever the peer is, it is a node only if it says so.
    pub(super) async fn greet(&self, connection: Arc<dyn Connection>) -> Result<Peer> {
        let hello = HelloParams {
            delegation: None,
            node_record: None,
            software: SOFTWARE.to_owned(),
            now_ms: SystemClock.now_ms(),
        };
        let (peer, reply) = Peer::hello(connection, hello).await?;
        let node = peer.id();
        if let Some(record) = &reply.node_record {
            let record = record.verify_by(node.key()).context("the node's record")?.into_record();
            let listed: Vec<SocketAddr> =
                record.addresses.iter().filter_map(|text| text.parse().ok()).collect();
            if self.auditor.lock().follow(node) {
                tracing::info!(%node, "a node is followed");
            }
            if !listed.is_empty() {
                self.addresses.lock().insert(node, listed);
            }
        }
        self.peers.lock().insert(node, peer.clone());
        Ok(peer)
    }

    fn rest(&self, node: NodeId, kind: MissKind) {
        self.auditor.lock().missed(node, kind);
        let longest = Duration::from_millis(self.config.policy.answer_ms / 8).max(BACKOFF);
        let mut resting = self.resting.lock();
        let (_, times) = resting.get(&node).copied().unwrap_or((Instant::now(), 0));
        let pause = (BACKOFF * 2u32.saturating_pow(times.min(16))).min(longest);
        resting.insert(node, (Instant::now() + pause, times.saturating_add(1)));
    }

    /// Cosigns the newest state of another auditor's log, if it extends the one that was cosigned before.
    pub(crate) async fn cosign(&self, source: &super::logdir::LogSource, dir: &Path) -> Result<()> {
        super::cosign::cosign(source, dir, &self.config.origin, &self.config.key).await
    }
}

impl Given {
    fn is_empty(&self) -> bool {
        self.countersigned.is_empty() && self.found.is_empty()
    }
}
