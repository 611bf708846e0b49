//! The transport: mutually authenticated connections that carry bidirectional streams of bytes.
//!
//! Two implementations: [`quic`] between processes and [`memory`] between nodes and gateways of the
//! same process. Both move whole [`Bytes`], so that a block read from disk is not copied on its way
//! into a packet (QUIC) or not copied at all (memory).

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::key::NodeId;

pub mod first_of;
pub mod memory;
pub mod quic;

/// Where connections come from. Dialling and accepting are symmetrical: streams open both ways.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Connects to `peer`, trying its addresses in order, and checks that it holds that key.
    ///
    /// # Cancel safety
    /// Cancel safe: a half-made connection is dropped.
    async fn dial(&self, peer: NodeId, addresses: &[SocketAddr]) -> Result<Arc<dyn Connection>, DialError>;

    /// The next peer that connected to us, or `None` when the transport is closed.
    ///
    /// # Cancel safety
    /// Cancel safe.
    async fn accept(&self) -> Option<Arc<dyn Connection>>;

    /// Our own id.
    fn local_id(&self) -> NodeId;

    /// Where we listen, if on a socket.
    fn local_addr(&self) -> Option<SocketAddr>;

    /// Refuses new connections and closes all that there are.
    async fn close(&self);
}

/// One authenticated connection to one peer.
#[async_trait]
pub trait Connection: Send + Sync + 'static {
    /// The peer, as its TLS key proved.
    fn peer(&self) -> NodeId;

    /// Where the peer is, if on a socket.
    fn remote_addr(&self) -> Option<SocketAddr>;

    /// Opens a stream. Waits while the peer's stream limit is reached.
    ///
    /// # Cancel safety
    /// Cancel safe.
    async fn open(&self) -> Result<BiStream, TransportError>;

    /// The next stream that the peer opened.
    ///
    /// # Cancel safety
    /// Cancel safe.
    async fn accept(&self) -> Result<BiStream, TransportError>;

    /// Whether the connection has ended.
    fn is_closed(&self) -> bool;

    /// Returns when the connection has ended.
    async fn closed(&self);

    /// The peer is known now: it gets all the windows and streams that there are. Connections that began with all of
    /// them stay as they are.
    fn widen(&self) {}

    /// The peer may read here and sends little more than requests: it gets what reading takes. For connections that
    /// began with less.
    fn widen_for_reading(&self) {}

    /// Ends the connection now; streams fail at both ends.
    fn close(&self, reason: &str);
}

/// Both halves of a stream.
pub struct BiStream {
    /// Towards the peer.
    pub send: Box<dyn SendHalf>,
    /// From the peer.
    pub recv: Box<dyn RecvHalf>,
}

/// The sending half. Dropping it before [`SendHalf::finish`] resets the stream, so that the peer never takes
/// a part for the whole.
#[async_trait]
pub trait SendHalf: Send + Sync + 'static {
    /// Writes all of `chunk`, waiting for flow control.
    ///
    /// # Cancel safety
    /// Not cancel safe: part of the chunk may have been sent. Drop the half then.
    async fn write(&mut self, chunk: Bytes) -> Result<(), TransportError>;

    /// Writes all of `chunks` in order, waiting for flow control. What was written is left empty, so that
    /// nothing keeps a block alive for longer than the transport needs it.
    ///
    /// # Cancel safety
    /// Not cancel safe, like [`SendHalf::write`].
    async fn write_all(&mut self, chunks: &mut [Bytes]) -> Result<(), TransportError> {
        for chunk in chunks {
            self.write(std::mem::take(chunk)).await?;
        }
        Ok(())
    }

    /// Says that nothing follows.
    fn finish(&mut self) -> Result<(), TransportError>;

    /// Gives up; the peer's reads fail.
    fn reset(&mut self);
}

/// The receiving half.
#[async_trait]
pub trait RecvHalf: Send + Sync + 'static {
    /// The next bytes in order, at most `max` of them; `None` at the end of the stream.
    ///
    /// # Cancel safety
    /// Cancel safe.
    async fn read(&mut self, max: usize) -> Result<Option<Bytes>, TransportError>;

    /// Fills `chunks` with as many ready pieces as fit, without waiting for more than one.
    /// Returns how many, or `None` at the end of the stream.
    ///
    /// # Cancel safety
    /// Cancel safe.
    async fn read_many(&mut self, chunks: &mut [Bytes]) -> Result<Option<usize>, TransportError>;

    /// Tells the peer that nothing more is wanted.
    fn stop(&mut self);
}

/// Why a connection or stream failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The connection ended.
    #[error("the connection to {peer} ended: {detail}")]
    Closed {
        /// The peer.
        peer: NodeId,
        /// What the transport said.
        detail: String,
    },
    /// The peer gave up this stream.
    #[error("{peer} reset the stream")]
    Reset {
        /// The peer.
        peer: NodeId,
    },
    /// We wrote after finishing, or read after stopping.
    #[error("the stream to {peer} is already finished")]
    Finished {
        /// The peer.
        peer: NodeId,
    },
}

impl TransportError {
    /// Whether the same request can succeed on another stream or connection.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Closed { .. } | Self::Reset { .. })
    }
}

/// Why a peer could not be reached.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// Nothing to dial.
    #[error("no address is known for {peer}")]
    NoAddress {
        /// The peer.
        peer: NodeId,
    },
    /// Every address failed.
    #[error("{peer} cannot be reached at {address}: {detail}")]
    Unreachable {
        /// The peer.
        peer: NodeId,
        /// The last address tried.
        address: SocketAddr,
        /// What the transport said.
        detail: String,
    },
    /// Somebody else answers there.
    #[error("{address} is answered by another key than {peer}")]
    WrongPeer {
        /// The peer expected.
        peer: NodeId,
        /// Where.
        address: SocketAddr,
    },
    /// No answer in time.
    #[error("{peer} did not answer at {address} within {after_ms} ms")]
    Timeout {
        /// The peer.
        peer: NodeId,
        /// The last address tried.
        address: SocketAddr,
        /// How long we waited.
        after_ms: u64,
    },
    /// We are closing ourselves.
    #[error("our own transport is closed")]
    Closing,
}

impl DialError {
    /// Whether dialling again later makes sense.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Timeout { .. })
    }
}
