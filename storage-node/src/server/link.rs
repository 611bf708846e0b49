//! One connection: its peer, its session once Hello came, its place, and the streams that run on it.

use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::NamespaceId;
use holdfast_protocol::message::{Refusal, RefusalReason};
use holdfast_protocol::transport::Connection;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::budget::{PeerBudget, Place, Reservation, Standing};
use super::session::{Right, Session};
use super::stream;
use crate::metric;
use crate::node::Node;
use crate::node::limits::{HANDSHAKE_DEADLINE_MS, NodeLimits, STOP_DEADLINE_MS};

/// A live connection.
pub(crate) struct Link {
    pub(crate) connection: Arc<dyn Connection>,
    /// Where the connection stands: nothing said yet, or a session. Only Hello changes it.
    session: watch::Sender<Option<Arc<Session>>>,
    budget: Arc<PeerBudget>,
    place: Mutex<Place>,
    /// Places for running streams: few for a stranger, more once it shows a grant or acts for a namespace.
    running: Arc<Semaphore>,
    /// Cancelled when the node stops: running streams end, no new ones begin.
    pub(crate) stop: CancellationToken,
}

impl Link {
    /// The session, or the refusal for a peer that has not said Hello.
    pub(crate) fn session(&self) -> Result<Arc<Session>, Refusal> {
        self.session
            .borrow()
            .clone()
            .ok_or_else(|| Refusal::new(RefusalReason::HelloFirst, "Hello must be the first request"))
    }

    /// Opens the session, or replaces it: that is how a delegation is renewed.
    pub(crate) fn open_session(&self, session: Session) {
        self.session.send_replace(Some(Arc::new(session)));
    }

    /// The peer's session, if it acts for `namespace` with `right` now.
    pub(crate) fn acting_for(
        &self,
        namespace: NamespaceId,
        right: Right,
        now_ms: u64,
    ) -> Option<Arc<Session>> {
        let session = self.session.borrow().clone()?;
        let authority = session.authority(right, now_ms)?;
        (authority.namespace == namespace && !self.connection.is_closed()).then_some(session)
    }

    /// Moves the connection to a delegate's place, as long as one is left.
    pub(crate) fn promote(&self, node: &Node) {
        let mut place = self.place.lock();
        let before = place.standing();
        if before != Standing::Delegate
            && let Some(better) = node.budgets.promote()
        {
            *place = better;
            self.connection.widen();
            self.run_more(&node.config.limits, before, Standing::Delegate);
        }
    }

    /// Serves a stranger that showed a good grant as a reader, as long as a reader's place is left.
    pub(crate) fn promote_reader(&self, node: &Node) {
        let mut place = self.place.lock();
        if place.standing() == Standing::Stranger
            && let Some(better) = node.budgets.promote_reader(&self.budget)
        {
            *place = better;
            self.connection.widen_for_reading();
            self.run_more(&node.config.limits, Standing::Stranger, Standing::Reader);
        }
    }

    fn run_more(&self, limits: &NodeLimits, before: Standing, now: Standing) {
        let more = streams_at_once(limits, now).saturating_sub(streams_at_once(limits, before));
        self.running.add_permits(more);
    }

    /// Takes one control request from the peer's rate.
    pub(crate) fn control(&self, now_ms: u64) -> Result<(), Refusal> {
        self.budget.control(now_ms)
    }

    /// On whose account the connection runs now.
    pub(crate) fn standing(&self) -> Standing {
        self.place.lock().standing()
    }

    /// The peer asked for something: its place is not the first to be given up.
    pub(crate) fn touch(&self) {
        self.place.lock().touch();
    }

    /// Takes one request for chunks from the peer's rate.
    pub(crate) fn challenge(&self, now_ms: u64) -> Result<(), Refusal> {
        self.budget.challenge(now_ms)
    }

    /// Waits until `bytes` of block may be in memory for this peer.
    pub(crate) async fn reserve(&self, node: &Node, bytes: u32) -> Result<Reservation, Refusal> {
        node.budgets.reserve(&self.budget, self.standing(), bytes).await
    }
}

/// Streams that a connection of this standing may have running.
fn streams_at_once(limits: &NodeLimits, standing: Standing) -> usize {
    let streams = match standing {
        Standing::Stranger => limits.streams_per_stranger,
        Standing::Reader => limits.streams_per_reader,
        Standing::Delegate => limits.streams_per_delegate,
    };
    streams.max(1)
}

/// Serves a connection until it or the node ends. `stop` lets running streams end first.
pub(crate) async fn serve(node: Arc<Node>, connection: Arc<dyn Connection>, stop: CancellationToken) {
    let remote = connection.remote_addr().map(|address| address.ip());
    match node.budgets.admit(connection.peer(), remote) {
        Some(place) => serve_in(node, connection, stop, place).await,
        None => turn_away(connection.as_ref()),
    }
}

/// As [`serve`], for a connection that we dialled: its peer is one that the operator named, and no stranger.
pub(crate) async fn serve_dialled(node: Arc<Node>, connection: Arc<dyn Connection>, stop: CancellationToken) {
    match node.budgets.promote() {
        Some(place) => serve_in(node, connection, stop, place).await,
        None => turn_away(connection.as_ref()),
    }
}

fn turn_away(connection: &dyn Connection) {
    metrics::counter!(metric::CONNECTIONS_CUT, "why" => "full").increment(1);
    connection.close("this node has no place for another connection");
}

async fn serve_in(node: Arc<Node>, connection: Arc<dyn Connection>, stop: CancellationToken, place: Place) {
    let now_ms = node.now_ms();
    let peer = connection.peer();
    let streams_at_once = streams_at_once(&node.config.limits, place.standing());
    let displaced = place.displaced();
    let link = Arc::new(Link {
        connection: connection.clone(),
        session: watch::Sender::new(None),
        budget: node.budgets.of_peer(peer, now_ms),
        place: Mutex::new(place),
        running: Arc::new(Semaphore::new(streams_at_once)),
        stop: stop.clone(),
    });
    tracing::debug!(%peer, remote = ?connection.remote_addr(), "connected");
    metrics::gauge!(metric::CONNECTIONS).increment(1);
    node.links.lock().push(Arc::downgrade(&link));
    let streams = TaskTracker::new();
    let why = accept_streams(&node, &link, &streams, &displaced).await;
    if why == Ended::Displaced {
        // Its streams are not worth waiting for: they end with the connection.
        connection.close(why.text());
    }
    streams.close();
    // A lost connection ends its streams by itself; a stopping node waits for what it has begun.
    if tokio::time::timeout(Duration::from_millis(STOP_DEADLINE_MS), streams.wait()).await.is_err() {
        tracing::warn!(%peer, running = streams.len(), "streams did not end in time and are cut");
    }
    connection.close(why.text());
    node.links.lock().retain(|held| !std::ptr::eq(held.as_ptr(), Arc::as_ptr(&link)));
    metrics::gauge!(metric::CONNECTIONS).decrement(1);
    tracing::debug!(%peer, why = why.text(), "disconnected");
}

/// Why no more streams are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Stopping,
    NoHello,
    Displaced,
    Closed,
}

impl Ended {
    const fn text(self) -> &'static str {
        match self {
            Self::Stopping => "the node is stopping",
            Self::NoHello => "no Hello came in time",
            Self::Displaced => "idle, and its place was needed",
            Self::Closed => "the connection ended",
        }
    }
}

async fn accept_streams(
    node: &Arc<Node>,
    link: &Arc<Link>,
    streams: &TaskTracker,
    displaced: &CancellationToken,
) -> Ended {
    let mut greeted = link.session.subscribe();
    let handshake = async {
        let hello = greeted.wait_for(Option::is_some);
        tokio::time::timeout(Duration::from_millis(HANDSHAKE_DEADLINE_MS), hello).await.is_err()
    };
    tokio::pin!(handshake);
    let mut waiting_for_hello = true;
    loop {
        let next = async {
            // A place first: streams beyond the bound stay unread in the transport, which bounds them too.
            let permit = link.running.clone().acquire_owned().await.ok()?;
            let stream = link.connection.accept().await.ok()?;
            Some((permit, stream))
        };
        tokio::select! {
            biased;
            () = link.stop.cancelled() => return Ended::Stopping,
            // A peer that was promoted meanwhile has a place of its own.
            () = displaced.cancelled(), if link.standing() == Standing::Stranger => {
                metrics::counter!(metric::CONNECTIONS_CUT, "why" => "displaced").increment(1);
                return Ended::Displaced;
            }
            late = &mut handshake, if waiting_for_hello => {
                waiting_for_hello = false;
                if late {
                    metrics::counter!(metric::CONNECTIONS_CUT, "why" => "handshake").increment(1);
                    return Ended::NoHello;
                }
            }
            next = next => {
                let Some((permit, stream)) = next else { return Ended::Closed };
                let (node, link) = (node.clone(), link.clone());
                let tasks = node.tasks.clone();
                tasks.spawn(streams.track_future(async move {
                    stream::serve(&node, &link, stream).await;
                    drop(permit);
                }));
            }
        }
    }
}
