//! A QUIC connection and its streams as the transport's traits.

use std::net::SocketAddr;
use std::pin::pin;
use std::task::{Context, Waker};

use async_trait::async_trait;
use bytes::Bytes;
use quinn::{ConnectionError, ReadError, VarInt, WriteError};

use super::super::{BiStream, Connection, RecvHalf, SendHalf, TransportError};
use crate::key::NodeId;

/// The only code we send: what went wrong is said by refusals, not by numbers.
const NO_CODE: VarInt = VarInt::from_u32(0);
/// Bytes of a close reason that travel.
const REASON_LEN_MAX: usize = 200;

/// One authenticated connection.
pub(super) struct QuicConnection {
    connection: quinn::Connection,
    peer: NodeId,
}

impl QuicConnection {
    /// Wraps a connection whose peer has proved this id.
    pub(super) fn new(connection: quinn::Connection, peer: NodeId) -> Self {
        Self { connection, peer }
    }

    fn stream(&self, (send, recv): (quinn::SendStream, quinn::RecvStream)) -> BiStream {
        BiStream {
            send: Box::new(QuicSend { send, peer: self.peer, done: false }),
            recv: Box::new(QuicRecv { recv, peer: self.peer, stopped: false }),
        }
    }
}

#[async_trait]
impl Connection for QuicConnection {
    fn peer(&self) -> NodeId {
        self.peer
    }

    fn remote_addr(&self) -> Option<SocketAddr> {
        Some(self.connection.remote_address())
    }

    async fn open(&self) -> Result<BiStream, TransportError> {
        let halves = self.connection.open_bi().await.map_err(|error| closed(self.peer, &error))?;
        Ok(self.stream(halves))
    }

    async fn accept(&self) -> Result<BiStream, TransportError> {
        let halves = self.connection.accept_bi().await.map_err(|error| closed(self.peer, &error))?;
        Ok(self.stream(halves))
    }

    fn is_closed(&self) -> bool {
        self.connection.close_reason().is_some()
    }

    async fn closed(&self) {
        self.connection.closed().await;
    }

    fn widen(&self) {
        super::narrow::widen(&self.connection);
    }

    fn widen_for_reading(&self) {
        super::narrow::widen_for_reading(&self.connection);
    }

    fn close(&self, reason: &str) {
        let reason = reason.as_bytes();
        self.connection.close(NO_CODE, &reason[..reason.len().min(REASON_LEN_MAX)]);
    }
}

fn closed(peer: NodeId, error: &ConnectionError) -> TransportError {
    TransportError::Closed { peer, detail: error.to_string().chars().take(REASON_LEN_MAX).collect() }
}

struct QuicSend {
    send: quinn::SendStream,
    peer: NodeId,
    /// Finished or reset.
    done: bool,
}

impl QuicSend {
    fn error(&self, error: &WriteError) -> TransportError {
        match error {
            WriteError::Stopped(_) => TransportError::Reset { peer: self.peer },
            WriteError::ConnectionLost(error) => closed(self.peer, error),
            WriteError::ClosedStream | WriteError::ZeroRttRejected => {
                TransportError::Finished { peer: self.peer }
            }
        }
    }
}

#[async_trait]
impl SendHalf for QuicSend {
    async fn write(&mut self, chunk: Bytes) -> Result<(), TransportError> {
        self.send.write_chunk(chunk).await.map_err(|error| self.error(&error))
    }

    async fn write_all(&mut self, chunks: &mut [Bytes]) -> Result<(), TransportError> {
        self.send.write_all_chunks(chunks).await.map_err(|error| self.error(&error))
    }

    fn finish(&mut self) -> Result<(), TransportError> {
        if self.done {
            return Err(TransportError::Finished { peer: self.peer });
        }
        self.done = true;
        // Fails only when the peer has stopped the stream: then nobody waits for its end.
        let _ = self.send.finish();
        Ok(())
    }

    fn reset(&mut self) {
        if !self.done {
            self.done = true;
            // Fails only when the stream has ended already.
            let _ = self.send.reset(NO_CODE);
        }
    }
}

impl Drop for QuicSend {
    /// Left alone, quinn would finish the stream and a part would pass for the whole.
    fn drop(&mut self) {
        self.reset();
    }
}

struct QuicRecv {
    recv: quinn::RecvStream,
    peer: NodeId,
    /// Quinn reads a stopped stream as ended; ours must not pass for the whole.
    stopped: bool,
}

impl QuicRecv {
    fn check(&self) -> Result<(), TransportError> {
        if self.stopped { Err(TransportError::Finished { peer: self.peer }) } else { Ok(()) }
    }

    fn error(&self, error: &ReadError) -> TransportError {
        match error {
            ReadError::Reset(_) => TransportError::Reset { peer: self.peer },
            ReadError::ConnectionLost(error) => closed(self.peer, error),
            ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => {
                TransportError::Finished { peer: self.peer }
            }
        }
    }
}

#[async_trait]
impl RecvHalf for QuicRecv {
    async fn read(&mut self, max: usize) -> Result<Option<Bytes>, TransportError> {
        self.check()?;
        let chunk = self.recv.read_chunk(max, true).await.map_err(|error| self.error(&error))?;
        Ok(chunk.map(|chunk| chunk.bytes))
    }

    async fn read_many(&mut self, chunks: &mut [Bytes]) -> Result<Option<usize>, TransportError> {
        self.check()?;
        self.recv.read_chunks(chunks).await.map_err(|error| self.error(&error))
    }

    fn stop(&mut self) {
        self.stopped = true;
        // Fails only when the stream has ended already.
        let _ = self.recv.stop(NO_CODE);
    }
}

impl Drop for QuicRecv {
    /// Whoever has had all bytes that were announced has not seen the end of the stream yet, and quinn would tell the
    /// peer to stop sending: a packet, its acknowledgement and a wake-up at both ends for each request. The end came
    /// with the last bytes, so a look at what is there already suffices.
    fn drop(&mut self) {
        if !self.stopped {
            let end = pin!(self.recv.read_chunk(1, true));
            let _ = end.poll(&mut Context::from_waker(Waker::noop()));
        }
    }
}
