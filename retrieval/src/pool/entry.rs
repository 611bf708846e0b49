//! One node of the pool: what is known, the connection, the back-off and the figures.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::NodeId;
use holdfast_protocol::message::HelloReply;
use holdfast_protocol::record::{AgreementId, SignedAgreement};
use holdfast_protocol::rpc::{HelloParams, Peer};
use holdfast_protocol::time::UnixMs;
use holdfast_protocol::transport::Connection;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::latency::{Estimator, LatencyView, SizeClass};
use super::throughput::Throughput;
use super::{KnownNode, NodePool, NodeState, NodeView, PoolError};

/// Wait after the first failure to connect; each further one doubles it.
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
/// The longest wait. A node that comes back is found within this time at the latest.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// A node that went down gets its first chance after this time: most stalls are short.
const TRIAL_FIRST: Duration = Duration::from_secs(1);

/// A node that is overtaken this often in a row, without one answer between, has stalled. Once or twice can
/// be a burst of load or a disk that retries.
const OVERTAKEN_MAX: u32 = 3;
/// How long a replaced connection is kept for the answers that are still to come on it.
const RETIRED_FOR: Duration = Duration::from_secs(10);
const REPLACED: &str = "replaced by a newer connection";

pub(super) struct Entry {
    inner: Mutex<Inner>,
    /// Held while dialling, so that one attempt runs at a time.
    dial: tokio::sync::Mutex<()>,
    /// Whether the node is down, for those who wait for its answer.
    down: watch::Sender<bool>,
}

struct Inner {
    known: KnownNode,
    peer: Option<Peer>,
    /// What `peer` took the place of last; closed a while later.
    retired: Option<Arc<dyn Connection>>,
    /// The agreement that the node named in its last Hello, both signatures checked.
    agreed: Option<SignedAgreement>,
    state: NodeState,
    failures: u32,
    retry_at: Option<Instant>,
    last_answer: Option<Instant>,
    small: Estimator,
    large: Estimator,
    throughput: Throughput,
    lies: u64,
    /// Reads in a row that were overtaken by another way before it answered.
    overtaken: u32,
    /// When the node, being down, gets its next chance, and how long after that the one behind it.
    trial: Option<(Instant, Duration)>,
}

impl Entry {
    pub(super) fn new(known: KnownNode) -> Self {
        let inner = Inner {
            known,
            peer: None,
            retired: None,
            agreed: None,
            state: NodeState::Unknown,
            failures: 0,
            retry_at: None,
            last_answer: None,
            small: Estimator::default(),
            large: Estimator::default(),
            throughput: Throughput::default(),
            lies: 0,
            overtaken: 0,
            trial: None,
        };
        Self { inner: Mutex::new(inner), dial: tokio::sync::Mutex::new(()), down: watch::Sender::new(false) }
    }

    pub(super) fn set_known(&self, mut known: KnownNode) {
        let mut inner = self.inner.lock();
        known.agreement = known.agreement.or(inner.known.agreement);
        if inner.known.addresses != known.addresses {
            // A node that moved deserves an attempt at its new place at once.
            inner.retry_at = None;
        }
        inner.known = known;
    }

    pub(super) fn update_known(&self, change: impl FnOnce(&mut KnownNode)) {
        change(&mut self.inner.lock().known);
    }

    pub(super) fn id(&self) -> NodeId {
        self.inner.lock().known.id
    }

    pub(super) fn view(&self) -> NodeView {
        let inner = self.inner.lock();
        NodeView {
            known: inner.known.clone(),
            state: inner.state,
            small: inner.small.view(),
            large: inner.large.view(),
            bytes_per_second: inner.throughput.bytes_per_second(),
            lies: inner.lies,
        }
    }

    pub(super) fn agreement(&self) -> Option<AgreementId> {
        self.inner.lock().known.agreement
    }

    pub(super) fn agreed(&self) -> Option<SignedAgreement> {
        self.inner.lock().agreed.clone()
    }

    pub(super) fn set_agreed(&self, agreed: SignedAgreement) {
        let mut inner = self.inner.lock();
        inner.known.agreement = Some(agreed.id());
        inner.agreed = Some(agreed);
    }

    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.inner.lock().known.addresses.clone()
    }

    /// The open connection, if there is one.
    pub(super) fn connected(&self) -> Option<Peer> {
        let mut inner = self.inner.lock();
        if inner.peer.as_ref().is_some_and(|peer| peer.connection().is_closed()) {
            inner.peer = None;
        }
        inner.peer.clone()
    }

    pub(super) async fn dialling(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.dial.lock().await
    }

    /// Whether the back-off after the last failure is over.
    pub(super) fn may_dial(&self, node: NodeId) -> Result<(), PoolError> {
        let inner = self.inner.lock();
        let wait = inner.retry_at.map(|at| at.saturating_duration_since(Instant::now()));
        match wait {
            Some(wait) if !wait.is_zero() => {
                Err(PoolError::BackingOff { node, failures: inner.failures, wait })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn failed_to_connect(&self, now_ms: UnixMs) {
        let mut inner = self.inner.lock();
        inner.failures = inner.failures.saturating_add(1);
        inner.retry_at = Some(Instant::now() + backoff(inner.failures));
        inner.go_down(now_ms);
        self.announce(&inner);
    }

    pub(super) fn failed(&self, now_ms: UnixMs) {
        let mut inner = self.inner.lock();
        inner.go_down(now_ms);
        self.announce(&inner);
    }

    pub(super) fn is_down(&self) -> bool {
        self.inner.lock().state.is_down()
    }

    /// Whether this caller shall try the node although it is down.
    pub(super) fn takes_trial(&self) -> bool {
        let mut inner = self.inner.lock();
        let now = Instant::now();
        match inner.trial {
            Some((at, wait)) if at <= now => {
                let next = (wait * 2).min(BACKOFF_MAX);
                inner.trial = Some((now + next, next));
                true
            }
            _ => false,
        }
    }

    pub(super) async fn until_down(&self) {
        let mut down = self.down.subscribe();
        // The sender is ours and lives as long as we do.
        let _ = down.wait_for(|down| *down).await;
    }

    /// Tells those who wait, if the state has changed. Called with the state locked, so that they hear of
    /// changes in their order.
    fn announce(&self, inner: &Inner) {
        let is_down = inner.state.is_down();
        self.down.send_if_modified(|down| std::mem::replace(down, is_down) != is_down);
    }

    pub(super) fn answered(&self, latency: Duration, bytes: usize) {
        let mut inner = self.inner.lock();
        match SizeClass::of(bytes) {
            SizeClass::Small => inner.small.add(latency),
            SizeClass::Large => inner.large.add(latency),
        }
        inner.overtaken = 0;
        inner.come_up();
        self.announce(&inner);
    }

    /// A read was overtaken. Returns whether that makes the node a stalled one, which then counts as down.
    ///
    /// The time waited is no figure to keep: it says how patient we were, and would make us more so.
    pub(super) fn overtaken(&self, now_ms: UnixMs) -> bool {
        let mut inner = self.inner.lock();
        if inner.state == NodeState::Unknown {
            // It has never answered anything: nobody waits for it a second time, and nothing is held against it.
            inner.go_down(now_ms);
            self.announce(&inner);
            return false;
        }
        inner.overtaken = inner.overtaken.saturating_add(1);
        let stalled = inner.overtaken >= OVERTAKEN_MAX;
        if stalled {
            inner.overtaken = 0;
            inner.go_down(now_ms);
            self.announce(&inner);
        }
        stalled
    }

    /// It answered something that carries no figure worth keeping.
    pub(super) fn alive(&self) {
        let mut inner = self.inner.lock();
        inner.come_up();
        self.announce(&inner);
    }

    pub(super) fn lied(&self) {
        let mut inner = self.inner.lock();
        inner.lies = inner.lies.saturating_add(1);
    }

    pub(super) fn latency(&self, class: SizeClass) -> LatencyView {
        let inner = self.inner.lock();
        match class {
            SizeClass::Small => inner.small.view(),
            SizeClass::Large => inner.large.view(),
        }
    }

    pub(super) fn begin(&self, bytes: u64) {
        self.inner.lock().throughput.begin(bytes, Instant::now());
    }

    pub(super) fn end(&self, bytes: u64, delivered: u64) {
        self.inner.lock().throughput.end(bytes, delivered, Instant::now());
    }

    /// A round trip, and the time that all bytes asked for take, `bytes` more included.
    pub(super) fn expects(&self, bytes: u64) -> Option<Duration> {
        let inner = self.inner.lock();
        Some(inner.throughput.time_for(bytes)? + inner.small.average())
    }

    /// Time since it last answered anything.
    pub(super) fn silent_for(&self) -> Option<Duration> {
        self.inner.lock().last_answer.map(|at| at.elapsed())
    }

    pub(super) fn disconnect(&self, reason: &str) {
        if let Some(peer) = self.inner.lock().peer.take() {
            peer.connection().close(reason);
        }
    }

    fn connect(&self, peer: Peer, reply: &HelloReply) {
        // An agreement that does not verify, or is another node's, is as good as none; writes will say so.
        let agreed = reply.agreement.as_ref().and_then(|agreement| agreement.verify().ok());
        let connection = Arc::clone(peer.connection());
        let mut inner = self.inner.lock();
        if let Some(agreed) = agreed.filter(|agreed| agreed.terms().node == peer.id()) {
            inner.agreed = Some(agreed);
        }
        let same = |other: &Peer| Arc::ptr_eq(other.connection(), &connection);
        // A session may be opened again on the connection that is there: that is how a delegation is renewed.
        if let Some(replaced) = inner.peer.replace(peer).filter(|other| !same(other)) {
            inner.retire(&replaced);
        }
        inner.failures = 0;
        inner.retry_at = None;
        // A node that was taken for down and now answers Hello may still answer nothing else; the first real
        // answer brings it up.
        if !inner.state.is_down() {
            inner.come_up();
        }
    }
}

impl Inner {
    /// Lets what is asked on a replaced connection be answered: cut off, it would pass for a node that does not answer.
    /// One such connection is kept, for [`RETIRED_FOR`].
    fn retire(&mut self, replaced: &Peer) {
        let connection = Arc::clone(replaced.connection());
        if let Some(older) = self.retired.replace(Arc::clone(&connection)) {
            older.close(REPLACED);
        }
        tokio::spawn(async move {
            tokio::time::sleep(RETIRED_FOR).await;
            connection.close(REPLACED);
        });
    }

    fn go_down(&mut self, now_ms: UnixMs) {
        if !self.state.is_down() {
            self.state = NodeState::Down { since_ms: now_ms };
            self.trial = Some((Instant::now() + TRIAL_FIRST, TRIAL_FIRST));
        }
    }

    fn come_up(&mut self) {
        self.state = NodeState::Up;
        self.trial = None;
        self.failures = 0;
        self.retry_at = None;
        self.last_answer = Some(Instant::now());
    }
}

impl NodePool {
    /// Says Hello once more on a connection that is kept already.
    pub(super) async fn renew(
        &self,
        entry: &Entry,
        connection: Arc<dyn Connection>,
    ) -> Result<(), PoolError> {
        let id = connection.peer();
        let (peer, reply) = Peer::hello(connection, self.hello_params())
            .await
            .map_err(|source| PoolError::Call { node: id, source })?;
        entry.connect(peer, &reply);
        Ok(())
    }

    fn hello_params(&self) -> HelloParams {
        HelloParams {
            delegation: self.delegation.read().clone(),
            node_record: None,
            software: self.config.software.clone(),
            now_ms: self.now_ms(),
        }
    }

    /// Says Hello on a fresh connection and keeps it.
    pub(super) async fn greet(
        &self,
        entry: &Entry,
        connection: Arc<dyn Connection>,
    ) -> Result<(Peer, HelloReply), PoolError> {
        let id = connection.peer();
        let (peer, reply) = Peer::hello(Arc::clone(&connection), self.hello_params())
            .await
            .map_err(|source| PoolError::Call { node: id, source })?;
        connection.widen();
        entry.connect(peer.clone(), &reply);
        tracing::debug!(node = %id, software = reply.software, "connected");
        if let Some(on_connected) = &self.config.on_connected {
            on_connected(id, connection);
        }
        Ok((peer, reply))
    }
}

/// The wait after this many failures in a row: doubled each time, and between half and all of it at random,
/// so that many gateways do not call on a node that comes back at the same moment.
fn backoff(failures: u32) -> Duration {
    let whole = BACKOFF_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(BACKOFF_MAX);
    let mut random = [0u8; 2];
    // Without random bytes the wait is merely not jittered.
    let _ = getrandom::fill(&mut random);
    whole / 2 + (whole / 2).mul_f64(f64::from(u16::from_le_bytes(random)) / f64::from(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_doubles_with_jitter_up_to_its_bound() {
        for failures in 1..40 {
            let whole = (BACKOFF_FIRST * (1 << (failures - 1).min(10))).min(BACKOFF_MAX);
            for _ in 0..20 {
                let wait = backoff(failures);
                assert!(wait >= whole / 2 && wait <= whole, "{failures} failures: {wait:?}");
            }
        }
    }
}
