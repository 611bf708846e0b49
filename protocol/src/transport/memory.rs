//! The transport between nodes and gateways of one process, and of simulations: no socket, no copy.
//!
//! It keeps what QUIC promises, so that code cannot tell them apart: streams are bounded in number and in
//! bytes, a dropped half resets, a closed connection fails every stream at both ends. Identity is by
//! construction: whoever calls [`MemoryNetwork::join`] holds the process, hence the key.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::{BiStream, Connection, DialError, Transport, TransportError};
use crate::key::NodeId;
use crate::limits::STREAMS_PER_CONNECTION_MAX;

mod pipe;

use pipe::Pipe;
pub use pipe::STREAM_WINDOW;

/// Connections that wait to be accepted, per peer.
const ACCEPT_BACKLOG: usize = 256;

/// The peers of one process, by id.
#[derive(Debug, Clone, Default)]
pub struct MemoryNetwork {
    members: Arc<Mutex<HashMap<NodeId, Member>>>,
}

#[derive(Debug, Clone)]
struct Member {
    inbox: mpsc::Sender<Arc<dyn Connection>>,
    closing: CancellationToken,
}

impl MemoryNetwork {
    /// A network without members.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a peer. An earlier member of the same id is closed: a restarted node takes its own place.
    pub fn join(&self, id: NodeId) -> Arc<MemoryTransport> {
        let (inbox, arrivals) = mpsc::channel(ACCEPT_BACKLOG);
        let closing = CancellationToken::new();
        let member = Member { inbox, closing: closing.clone() };
        if let Some(earlier) = self.members.lock().insert(id, member) {
            earlier.closing.cancel();
        }
        Arc::new(MemoryTransport {
            id,
            network: self.clone(),
            arrivals: tokio::sync::Mutex::new(arrivals),
            closing,
        })
    }

    /// Whether this id is a member now.
    pub fn contains(&self, id: &NodeId) -> bool {
        self.members.lock().contains_key(id)
    }

    fn member(&self, id: &NodeId) -> Option<Member> {
        self.members.lock().get(id).cloned()
    }

    /// Removes a member, unless another one has taken its place.
    fn leave(&self, id: &NodeId, closing: &CancellationToken) {
        closing.cancel();
        let mut members = self.members.lock();
        if members.get(id).is_some_and(|member| member.closing.is_cancelled()) {
            members.remove(id);
        }
    }
}

/// One peer's end of a [`MemoryNetwork`]. Dropping it closes it.
pub struct MemoryTransport {
    id: NodeId,
    network: MemoryNetwork,
    arrivals: tokio::sync::Mutex<mpsc::Receiver<Arc<dyn Connection>>>,
    closing: CancellationToken,
}

#[async_trait]
impl Transport for MemoryTransport {
    async fn dial(&self, peer: NodeId, _: &[SocketAddr]) -> Result<Arc<dyn Connection>, DialError> {
        if self.closing.is_cancelled() {
            return Err(DialError::Closing);
        }
        let absent = DialError::NoAddress { peer };
        let Some(member) = self.network.member(&peer) else { return Err(absent) };
        let (ours, theirs) = MemoryConnection::pair(self.id, peer, &self.closing, &member.closing);
        tokio::select! {
            sent = member.inbox.send(theirs) => sent.map_err(|_| absent)?,
            () = member.closing.cancelled() => return Err(absent),
            () = self.closing.cancelled() => return Err(DialError::Closing),
        }
        Ok(ours)
    }

    async fn accept(&self) -> Option<Arc<dyn Connection>> {
        let mut arrivals = self.arrivals.lock().await;
        tokio::select! {
            biased;
            () = self.closing.cancelled() => None,
            arrival = arrivals.recv() => arrival,
        }
    }

    fn local_id(&self) -> NodeId {
        self.id
    }

    fn local_addr(&self) -> Option<SocketAddr> {
        None
    }

    async fn close(&self) {
        self.network.leave(&self.id, &self.closing);
    }
}

impl Drop for MemoryTransport {
    fn drop(&mut self) {
        self.network.leave(&self.id, &self.closing);
    }
}

/// What both ends of a connection share: that it ends, and why.
#[derive(Debug)]
pub(super) struct Link {
    ended: CancellationToken,
    why: OnceLock<String>,
    /// Either transport closing ends the connection.
    transports: [CancellationToken; 2],
}

impl Link {
    fn end(&self, why: &str) {
        // The first reason stays.
        let _ = self.why.set(why.chars().take(200).collect());
        self.ended.cancel();
    }

    fn is_ended(&self) -> bool {
        self.ended.is_cancelled() || self.transports.iter().any(CancellationToken::is_cancelled)
    }

    async fn ended(&self) {
        tokio::select! {
            () = self.ended.cancelled() => {}
            () = self.transports[0].cancelled() => {}
            () = self.transports[1].cancelled() => {}
        }
    }

    fn error(&self, peer: NodeId) -> TransportError {
        let detail = self.why.get().cloned().unwrap_or_else(|| "closed".to_owned());
        TransportError::Closed { peer, detail }
    }
}

/// One end's hold on the link, shared by its connection and its halves: when the last is dropped, the
/// connection ends, as a QUIC connection does.
#[derive(Debug)]
pub(super) struct Hold {
    peer: NodeId,
    link: Arc<Link>,
}

impl Hold {
    fn error(&self) -> TransportError {
        self.link.error(self.peer)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.link.end("every handle of the connection was dropped");
    }
}

/// A stream on its way to the end that accepts it.
struct Arrival {
    /// Towards the end that accepts.
    inbound: Arc<Pipe>,
    /// From it.
    outbound: Arc<Pipe>,
    /// The accepting end's stream limit counts this stream until both its halves are gone.
    permit: OwnedSemaphorePermit,
}

/// One end of a connection in memory.
struct MemoryConnection {
    hold: Arc<Hold>,
    /// Streams that the other end still lets us open.
    credit: Arc<Semaphore>,
    opened: mpsc::Sender<Arrival>,
    arrivals: tokio::sync::Mutex<mpsc::Receiver<Arrival>>,
}

impl MemoryConnection {
    /// Both ends: the dialler's first.
    fn pair(
        dialler: NodeId,
        acceptor: NodeId,
        dialler_closing: &CancellationToken,
        acceptor_closing: &CancellationToken,
    ) -> (Arc<dyn Connection>, Arc<dyn Connection>) {
        let link = Arc::new(Link {
            ended: CancellationToken::new(),
            why: OnceLock::new(),
            transports: [dialler_closing.clone(), acceptor_closing.clone()],
        });
        let (to_acceptor, at_acceptor) = mpsc::channel(STREAMS_PER_CONNECTION_MAX);
        let (to_dialler, at_dialler) = mpsc::channel(STREAMS_PER_CONNECTION_MAX);
        let end = |peer, opened, arrivals| {
            Arc::new(Self {
                hold: Arc::new(Hold { peer, link: link.clone() }),
                credit: Arc::new(Semaphore::new(STREAMS_PER_CONNECTION_MAX)),
                opened,
                arrivals: tokio::sync::Mutex::new(arrivals),
            })
        };
        (end(acceptor, to_acceptor, at_dialler), end(dialler, to_dialler, at_acceptor))
    }

    fn check(&self) -> Result<(), TransportError> {
        if self.hold.link.is_ended() { Err(self.hold.error()) } else { Ok(()) }
    }
}

#[async_trait]
impl Connection for MemoryConnection {
    fn peer(&self) -> NodeId {
        self.hold.peer
    }

    fn remote_addr(&self) -> Option<SocketAddr> {
        None
    }

    async fn open(&self) -> Result<BiStream, TransportError> {
        self.check()?;
        let permit = tokio::select! {
            permit = self.credit.clone().acquire_owned() => permit.map_err(|_| self.hold.error())?,
            () = self.hold.link.ended() => return Err(self.hold.error()),
        };
        let (outbound, inbound) = (Arc::new(Pipe::default()), Arc::new(Pipe::default()));
        let arrival = Arrival { inbound: outbound.clone(), outbound: inbound.clone(), permit };
        // As many places as permits: this never waits.
        self.opened.send(arrival).await.map_err(|_| self.hold.error())?;
        Ok(pipe::halves(outbound, inbound, self.hold.clone(), None))
    }

    async fn accept(&self) -> Result<BiStream, TransportError> {
        self.check()?;
        let mut arrivals = self.arrivals.lock().await;
        tokio::select! {
            biased;
            () = self.hold.link.ended() => Err(self.hold.error()),
            arrival = arrivals.recv() => {
                let arrival = arrival.ok_or_else(|| self.hold.error())?;
                let permit = Some(Arc::new(arrival.permit));
                Ok(pipe::halves(arrival.outbound, arrival.inbound, self.hold.clone(), permit))
            }
        }
    }

    fn is_closed(&self) -> bool {
        self.hold.link.is_ended()
    }

    async fn closed(&self) {
        self.hold.link.ended().await;
    }

    fn close(&self, reason: &str) {
        self.hold.link.end(reason);
    }
}
