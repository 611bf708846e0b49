//! The transport between processes: QUIC with mutual TLS 1.3 by raw Ed25519 keys.
//!
//! This file owns the endpoint: binding, dialling, accepting and the caps on handshakes and connections.
//! It never trusts an address: a connection is handed out only when the peer's key is known, and a dialled
//! one only when that key is the expected one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::{Connection, DialError, Transport};
use crate::key::{NodeId, SigningKey};

mod narrow;
mod reset;
mod runtime;
mod socket;
mod stream;
mod tls;
mod tuning;

use stream::QuicConnection;
use tls::Identity;

/// The application protocol; a peer that speaks another is refused in the handshake.
pub const ALPN: &[u8] = b"holdfast/1";

/// How long closing waits for peers to hear of it.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);
/// Connections that wait to be accepted by our own program.
const ACCEPT_BACKLOG: usize = 256;

/// Where an endpoint's packets are handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threading {
    /// On a thread of its own: packets of one endpoint stay on one core, and a busy program does not delay
    /// acknowledgements.
    OwnThread,
    /// As tasks of the runtime that calls [`QuicTransport::bind`].
    Shared,
}

/// How to bind.
#[derive(Clone, Debug)]
pub struct QuicConfig {
    /// Where to listen; port 0 takes any.
    pub listen: SocketAddr,
    /// Our identity.
    pub key: Arc<SigningKey>,
    /// Where packets are handled.
    pub threading: Threading,
    /// Connections open at once, dialled and accepted. Each may hold its windows in memory.
    pub connections_max: usize,
    /// Handshakes of accepted connections that run at once; more are refused.
    pub handshakes_max: usize,
    /// From this many running handshakes on, a peer must first prove its address (Retry), so that forged
    /// source addresses cost us no state.
    pub retry_above: usize,
    /// How long a handshake may take, dialled (per address) or accepted.
    pub handshake_deadline: Duration,
    /// Accepted connections begin with small windows and few streams, until [`Connection::widen`]: for programs that
    /// anybody may dial.
    pub narrow_accepted: bool,
}

impl QuicConfig {
    /// The tuned defaults.
    pub fn new(listen: SocketAddr, key: Arc<SigningKey>) -> Self {
        Self {
            listen,
            key,
            threading: Threading::OwnThread,
            connections_max: 4096,
            handshakes_max: 256,
            retry_above: 32,
            handshake_deadline: Duration::from_secs(5),
            narrow_accepted: false,
        }
    }
}

/// A bound QUIC endpoint: it dials and accepts over one socket. Dropping it closes it.
pub struct QuicTransport {
    id: NodeId,
    local_addr: SocketAddr,
    endpoint: quinn::Endpoint,
    identity: Arc<Identity>,
    config: QuicConfig,
    arrivals: tokio::sync::Mutex<mpsc::Receiver<Arc<dyn Connection>>>,
    closing: CancellationToken,
    closed: CancellationToken,
}

impl QuicTransport {
    /// Binds the socket and starts to accept. Must be called within a tokio runtime.
    pub fn bind(config: QuicConfig) -> Result<Arc<Self>, BindError> {
        let address = config.listen;
        let socket_error = |source| BindError::Socket { address, source };
        let identity = Arc::new(Identity::new(&config.key)?);
        let acceptors = Acceptors::new(&identity, config.narrow_accepted)?;
        let socket = tuning::socket(address).map_err(socket_error)?;
        let closing = CancellationToken::new();
        let closed = CancellationToken::new();
        let handle = match config.threading {
            Threading::OwnThread => {
                runtime::own_thread(address, closing.clone(), closed.clone()).map_err(socket_error)?
            }
            Threading::Shared => tokio::runtime::Handle::try_current()
                .map_err(|error| socket_error(std::io::Error::other(error)))?,
        };
        let endpoint =
            runtime::endpoint(socket, acceptors.wide.clone(), &handle, &config.key).map_err(socket_error)?;
        let local_addr = endpoint.local_addr().map_err(socket_error)?;
        let (inbox, arrivals) = mpsc::channel(ACCEPT_BACKLOG);
        let accepting = Accepting {
            endpoint: endpoint.clone(),
            acceptors,
            handshakes: Arc::new(Semaphore::new(config.handshakes_max)),
            config: config.clone(),
            inbox,
            closing: closing.clone(),
        };
        handle.spawn(accepting.run(closed.clone()));
        Ok(Arc::new(Self {
            id: NodeId(config.key.public()),
            local_addr,
            endpoint,
            identity,
            config,
            arrivals: tokio::sync::Mutex::new(arrivals),
            closing,
            closed,
        }))
    }

    async fn dial_one(&self, peer: NodeId, address: SocketAddr) -> Result<Arc<dyn Connection>, DialError> {
        let unreachable = |detail: String| DialError::Unreachable { peer, address, detail };
        let (config, expectation) =
            self.identity.dial_config(peer, address).map_err(|error| unreachable(error.to_string()))?;
        // The name never leaves this process: SNI is off and the key is what is checked.
        let connecting = self
            .endpoint
            .connect_with(config, address, "holdfast")
            .map_err(|error| unreachable(error.to_string()))?;
        let handshake = tokio::time::timeout(self.config.handshake_deadline, connecting);
        let outcome = tokio::select! {
            outcome = handshake => outcome,
            () = self.closing.cancelled() => return Err(DialError::Closing),
        };
        let after_ms = u64::try_from(self.config.handshake_deadline.as_millis()).unwrap_or(u64::MAX);
        let connection =
            outcome.map_err(|_| DialError::Timeout { peer, address, after_ms })?.map_err(|error| {
                match expectation.met() {
                    Some(false) => DialError::WrongPeer { peer, address },
                    _ => unreachable(error.to_string()),
                }
            })?;
        // In pairs: the verifier refused other keys during the handshake; this is what it accepted.
        if tls::peer_of(&connection) != Some(peer) {
            connection.close(0u32.into(), b"wrong peer");
            return Err(DialError::WrongPeer { peer, address });
        }
        Ok(Arc::new(QuicConnection::new(connection, peer)))
    }
}

#[async_trait]
impl Transport for QuicTransport {
    async fn dial(&self, peer: NodeId, addresses: &[SocketAddr]) -> Result<Arc<dyn Connection>, DialError> {
        let mut failure = DialError::NoAddress { peer };
        for address in addresses {
            if self.closing.is_cancelled() {
                return Err(DialError::Closing);
            }
            match self.dial_one(peer, *address).await {
                Ok(connection) => return Ok(connection),
                Err(error) => failure = error,
            }
        }
        Err(failure)
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
        Some(self.local_addr)
    }

    async fn close(&self) {
        self.closing.cancel();
        self.closed.cancelled().await;
    }
}

impl Drop for QuicTransport {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

/// Server configurations: what fits a peer depends on the way to it.
struct Acceptors {
    /// Peers on this machine.
    loopback: Arc<quinn::ServerConfig>,
    /// All others.
    wide: Arc<quinn::ServerConfig>,
}

impl Acceptors {
    fn new(identity: &Identity, narrow: bool) -> Result<Self, BindError> {
        let config = |way| -> Result<Arc<quinn::ServerConfig>, BindError> {
            let mut config = identity.server_config(way)?;
            if narrow {
                config.transport_config(narrow::transport_config(way));
            }
            Ok(Arc::new(config))
        };
        Ok(Self { loopback: config(tuning::Way::Loopback)?, wide: config(tuning::Way::Wide)? })
    }

    fn of(&self, remote: SocketAddr) -> Arc<quinn::ServerConfig> {
        match tuning::Way::to(remote) {
            tuning::Way::Loopback => self.loopback.clone(),
            tuning::Way::Wide => self.wide.clone(),
        }
    }
}

/// The task that accepts.
struct Accepting {
    endpoint: quinn::Endpoint,
    acceptors: Acceptors,
    handshakes: Arc<Semaphore>,
    config: QuicConfig,
    inbox: mpsc::Sender<Arc<dyn Connection>>,
    closing: CancellationToken,
}

impl Accepting {
    async fn run(self, closed: CancellationToken) {
        // Tells whoever waits for the end even if this task is dropped with its runtime.
        let _closed = closed.drop_guard();
        loop {
            tokio::select! {
                biased;
                () = self.closing.cancelled() => break,
                incoming = self.endpoint.accept() => match incoming {
                    Some(incoming) => self.admit(incoming),
                    None => break,
                },
            }
        }
        self.closing.cancel();
        self.endpoint.close(0u32.into(), b"closing");
        // Peers that do not hear of it run into their idle timeout.
        let _ = tokio::time::timeout(CLOSE_DEADLINE, self.endpoint.wait_idle()).await;
    }

    /// Starts a handshake, or demands a proof of address, or refuses: in constant time and memory.
    fn admit(&self, incoming: quinn::Incoming) {
        if self.endpoint.open_connections() >= self.config.connections_max {
            incoming.refuse();
            return;
        }
        let Ok(permit) = self.handshakes.clone().try_acquire_owned() else {
            incoming.refuse();
            return;
        };
        let running = self.config.handshakes_max - self.handshakes.available_permits();
        if running > self.config.retry_above && incoming.may_retry() {
            if let Err(error) = incoming.retry() {
                error.into_incoming().refuse();
            }
            return;
        }
        let acceptor = self.acceptors.of(incoming.remote_address());
        let Ok(connecting) = incoming.accept_with(acceptor) else { return };
        let inbox = self.inbox.clone();
        let closing = self.closing.clone();
        let deadline = self.config.handshake_deadline;
        tokio::spawn(async move {
            tokio::select! {
                () = closing.cancelled() => {}
                () = handshake(connecting, deadline, inbox, permit) => {}
            }
        });
    }
}

/// Runs one accepted handshake and hands the connection on. The permit is held until our program has taken
/// it, so that connections which nobody accepts hold new ones back.
async fn handshake(
    connecting: quinn::Connecting,
    deadline: Duration,
    inbox: mpsc::Sender<Arc<dyn Connection>>,
    permit: OwnedSemaphorePermit,
) {
    let connection = match tokio::time::timeout(deadline, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a handshake failed");
            return;
        }
        Err(_) => {
            tracing::debug!("a handshake took too long");
            return;
        }
    };
    let Some(peer) = tls::peer_of(&connection) else {
        connection.close(0u32.into(), b"no key");
        return;
    };
    // Fails only while we close.
    let _ = inbox.send(Arc::new(QuicConnection::new(connection, peer))).await;
    drop(permit);
}

/// Why an endpoint could not be bound.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The socket.
    #[error("cannot listen on udp://{address}: {source}")]
    Socket {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The key.
    #[error("the key cannot be used for TLS")]
    Key {
        /// Why.
        source: crate::key::KeyError,
    },
    /// The TLS library.
    #[error("TLS cannot be set up: {source}")]
    Tls {
        /// Why.
        source: rustls::Error,
    },
    /// The cipher suites lack the one that QUIC's first packets need.
    #[error("the TLS library lacks the suite that QUIC's first packets need")]
    InitialSuite,
}

impl BindError {
    /// Whether trying again later, or elsewhere, can succeed.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Socket { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse)
    }
}

#[cfg(test)]
mod tests;
