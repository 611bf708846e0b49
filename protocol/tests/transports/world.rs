//! Two peers of one kind of transport, and a few helpers.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_protocol::transport::first_of::FirstOf;
use holdfast_protocol::transport::memory::MemoryNetwork;
use holdfast_protocol::transport::quic::{QuicConfig, QuicTransport, Threading};
use holdfast_protocol::transport::{BiStream, Connection, RecvHalf, Transport, TransportError};
use holdfast_protocol::{NodeId, SigningKey};

/// Long enough for anything that happens at all on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// How long something must stay undone to count as held back.
pub(crate) const HELD_BACK: Duration = Duration::from_millis(300);

/// The kinds of transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Memory,
    Quic,
    QuicShared,
    FirstOf,
}

/// Two transports that can reach each other.
pub(crate) struct World {
    pub(crate) alice: Arc<dyn Transport>,
    pub(crate) bob: Arc<dyn Transport>,
}

pub(crate) fn key(seed: u8) -> Arc<SigningKey> {
    Arc::new(SigningKey::from_seed(&[seed; 32]).unwrap())
}

pub(crate) fn id(seed: u8) -> NodeId {
    NodeId(key(seed).public())
}

pub(crate) fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

pub(crate) fn quic(seed: u8) -> Arc<QuicTransport> {
    QuicTransport::bind(QuicConfig::new(loopback(), key(seed))).unwrap()
}

impl World {
    pub(crate) fn new(kind: Kind) -> Self {
        match kind {
            Kind::Memory => {
                let network = MemoryNetwork::new();
                Self { alice: network.join(id(1)), bob: network.join(id(2)) }
            }
            Kind::Quic => Self { alice: quic(1), bob: quic(2) },
            Kind::QuicShared => {
                let bind = |seed| {
                    let config = QuicConfig::new(loopback(), key(seed));
                    QuicTransport::bind(QuicConfig { threading: Threading::Shared, ..config }).unwrap()
                };
                Self { alice: bind(1), bob: bind(2) }
            }
            Kind::FirstOf => {
                let network = MemoryNetwork::new();
                Self { alice: FirstOf::new(network.clone(), quic(1)), bob: FirstOf::new(network, quic(2)) }
            }
        }
    }

    pub(crate) fn bob_addresses(&self) -> Vec<SocketAddr> {
        self.bob.local_addr().into_iter().collect()
    }

    /// Alice's end and Bob's end of a new connection.
    pub(crate) async fn connect(&self) -> (Arc<dyn Connection>, Arc<dyn Connection>) {
        let addresses = self.bob_addresses();
        let (dialled, accepted) =
            tokio::join!(self.alice.dial(self.bob.local_id(), &addresses), self.bob.accept());
        (dialled.unwrap(), accepted.unwrap())
    }

    /// Both ends of a new stream that Alice opened and wrote one byte to.
    pub(crate) async fn stream(self) -> Ends {
        let (alice, bob) = self.connect().await;
        let mut opened = alice.open().await.unwrap();
        opened.send.write(Bytes::from_static(b"!")).await.unwrap();
        let mut accepted = bob.accept().await.unwrap();
        assert_eq!(accepted.recv.read(1).await.unwrap().unwrap(), "!");
        Ends { alice, bob, opened, accepted, _world: self }
    }
}

/// A connection with one stream.
pub(crate) struct Ends {
    pub(crate) alice: Arc<dyn Connection>,
    pub(crate) bob: Arc<dyn Connection>,
    pub(crate) opened: BiStream,
    pub(crate) accepted: BiStream,
    /// A dropped transport would end the connection.
    _world: World,
}

/// Fails a test that hangs, instead of hanging with it.
pub(crate) async fn soon<F: Future>(what: F) -> F::Output {
    tokio::time::timeout(PATIENCE, what).await.expect("it did not happen in time")
}

/// Whether something is still undone after a while.
pub(crate) async fn is_held_back<F: Future>(what: F) -> bool {
    tokio::time::timeout(HELD_BACK, what).await.is_err()
}

pub(crate) async fn read_to_end(recv: &mut dyn RecvHalf) -> Result<Vec<u8>, TransportError> {
    let mut all = Vec::new();
    while let Some(piece) = recv.read(usize::MAX).await? {
        all.extend_from_slice(&piece);
    }
    Ok(all)
}
