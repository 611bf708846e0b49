//! Framing: `u32 little-endian length | canonical DAG-CBOR`, then the raw bytes that the header announces.
//!
//! Reading refuses before it allocates: a length above [`HEADER_LEN_MAX`] ends the stream with an error
//! while four bytes have been read. What arrives behind a header in the same piece is kept in a
//! [`ByteQueue`], from which the body is read on without a copy.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cbor::{self, DecodeError};
use crate::limits::HEADER_LEN_MAX;
use crate::message::{Reply, Request};
use crate::transport::{RecvHalf, SendHalf, TransportError};

/// Bytes of the length in front of a header.
pub const LENGTH_PREFIX_LEN: usize = 4;

/// How much is asked of the transport while a header is read. What comes beyond the header waits in the
/// queue, so this is also the most that a queue ever holds beside one piece.
const READ_AHEAD: usize = HEADER_LEN_MAX + LENGTH_PREFIX_LEN;

/// Pieces taken from the transport at once while a body is read: 32 packets of 6,500 bytes are a fifth
/// of a block, and the array of handles is still only 1 KiB.
const PIECES_AT_ONCE: usize = 32;

/// What may stand in a frame: a message whose bounds are checked as part of reading and writing it.
pub trait Message: Serialize + DeserializeOwned {
    /// The message's name, for errors.
    fn message_name(&self) -> &'static str;
    /// Checks the bounds that CBOR cannot express.
    fn message_bounds(&self) -> Result<(), DecodeError>;
}

impl Message for Request {
    fn message_name(&self) -> &'static str {
        self.name()
    }
    fn message_bounds(&self) -> Result<(), DecodeError> {
        self.check_bounds()
    }
}

impl Message for Reply {
    fn message_name(&self) -> &'static str {
        self.name()
    }
    fn message_bounds(&self) -> Result<(), DecodeError> {
        self.check_bounds()
    }
}

/// Encodes `message` with its length in front. Fails only when the message passes a bound: then it is
/// ours that is wrong, and nothing was sent.
pub fn encode_frame<M: Message>(message: &M) -> Result<Bytes, FrameError> {
    message
        .message_bounds()
        .map_err(|source| FrameError::Unsendable { message: message.message_name(), source })?;
    let body = cbor::encode(message);
    let len = u32::try_from(body.len()).ok().filter(|_| body.len() <= HEADER_LEN_MAX).ok_or(
        FrameError::Unsendable {
            message: message.message_name(),
            source: DecodeError::OutOfBounds { field: "header length" },
        },
    )?;
    let mut frame = BytesMut::with_capacity(LENGTH_PREFIX_LEN + body.len());
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(&body);
    Ok(frame.freeze())
}

/// Reads one frame. `None` when the stream ends before its first byte.
///
/// # Cancel safety
/// Not cancel safe: a frame half read is lost with its queue. Drop the stream then.
pub async fn read_frame<M: Message>(
    recv: &mut dyn RecvHalf,
    buffered: &mut ByteQueue,
) -> Result<Option<M>, FrameError> {
    while buffered.len() < LENGTH_PREFIX_LEN {
        if !buffered.pull(recv, READ_AHEAD).await? {
            if buffered.is_empty() {
                return Ok(None);
            }
            return Err(FrameError::Truncated { missing: LENGTH_PREFIX_LEN - buffered.len() });
        }
    }
    let len = buffered.take_length();
    if len > HEADER_LEN_MAX {
        return Err(FrameError::TooLong { len });
    }
    while buffered.len() < len {
        if !buffered.pull(recv, READ_AHEAD).await? {
            return Err(FrameError::Truncated { missing: len - buffered.len() });
        }
    }
    let header = buffered.take_contiguous(len);
    let message: M = cbor::decode(&header)?;
    message.message_bounds()?;
    Ok(Some(message))
}

/// Writes one frame, and behind it `body` as it is, without copying.
///
/// # Cancel safety
/// Not cancel safe: drop the stream after cancelling.
pub async fn write_frame<M: Message>(
    send: &mut dyn SendHalf,
    message: &M,
    body: &mut Vec<Bytes>,
) -> Result<(), FrameError> {
    let frame = encode_frame(message)?;
    if body.is_empty() {
        return Ok(send.write(frame).await?);
    }
    let mut pieces = Vec::with_capacity(1 + body.len());
    pieces.push(frame);
    pieces.append(body);
    Ok(send.write_all(&mut pieces).await?)
}

/// Bytes that were read from a stream but not used yet, in order.
#[derive(Debug, Default)]
pub struct ByteQueue {
    pieces: VecDeque<Bytes>,
    len: usize,
}

impl ByteQueue {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes waiting.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The next bytes in order, at most `max`: from the queue first, then from the stream. `None` at the end.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn next(
        &mut self,
        recv: &mut dyn RecvHalf,
        max: usize,
    ) -> Result<Option<Bytes>, TransportError> {
        match self.pop(max) {
            Some(piece) => Ok(Some(piece)),
            None => recv.read(max).await,
        }
    }

    /// Hands exactly `len` bytes to `sink`, piece by piece, as they arrive and without copying. What comes
    /// behind them stays in the queue.
    ///
    /// # Cancel safety
    /// Not cancel safe: `sink` may have had a part.
    pub async fn pipe_exact(
        &mut self,
        recv: &mut dyn RecvHalf,
        len: usize,
        mut sink: impl FnMut(Bytes),
    ) -> Result<(), FrameError> {
        let mut missing = len;
        while missing > 0 {
            if let Some(piece) = self.pop(missing) {
                missing -= piece.len();
                sink(piece);
                continue;
            }
            let mut pieces: [Bytes; PIECES_AT_ONCE] = std::array::from_fn(|_| Bytes::new());
            let Some(count) = recv.read_many(&mut pieces).await? else {
                return Err(FrameError::Truncated { missing });
            };
            for piece in pieces.into_iter().take(count) {
                self.push(piece);
            }
        }
        Ok(())
    }

    /// Reads exactly `len` bytes into one contiguous [`Bytes`]. The caller has checked `len`: it is allocated
    /// at once. A body that arrives as one piece (the memory transport) is handed over as it is.
    ///
    /// # Cancel safety
    /// Not cancel safe.
    pub async fn read_exact(&mut self, recv: &mut dyn RecvHalf, len: usize) -> Result<Bytes, FrameError> {
        if len == 0 {
            return Ok(Bytes::new());
        }
        let Some(first) = self.next(recv, len).await? else {
            return Err(FrameError::Truncated { missing: len });
        };
        if first.len() == len {
            return Ok(first);
        }
        let mut whole = BytesMut::with_capacity(len);
        whole.extend_from_slice(&first);
        let missing = len - first.len();
        drop(first);
        self.pipe_exact(recv, missing, |piece| whole.extend_from_slice(&piece)).await?;
        Ok(whole.freeze())
    }

    /// Puts bytes at the end.
    pub fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.len += piece.len();
            self.pieces.push_back(piece);
        }
    }

    /// Takes at most `max` bytes from the front, never across two pieces.
    pub fn pop(&mut self, max: usize) -> Option<Bytes> {
        if max == 0 {
            return None;
        }
        let front = self.pieces.front_mut()?;
        let piece = if front.len() <= max { self.pieces.pop_front()? } else { front.split_to(max) };
        self.len -= piece.len();
        Some(piece)
    }

    /// Reads one more piece from the stream into the queue; false at the end of the stream.
    async fn pull(&mut self, recv: &mut dyn RecvHalf, max: usize) -> Result<bool, TransportError> {
        match recv.read(max).await? {
            Some(piece) => {
                self.push(piece);
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Takes the length prefix; the caller has seen that it is there.
    fn take_length(&mut self) -> usize {
        let mut prefix = [0u8; LENGTH_PREFIX_LEN];
        let mut at = 0;
        while at < LENGTH_PREFIX_LEN {
            let Some(piece) = self.pop(LENGTH_PREFIX_LEN - at) else { break };
            prefix[at..at + piece.len()].copy_from_slice(&piece);
            at += piece.len();
        }
        u32::from_le_bytes(prefix) as usize
    }

    /// Takes `len` bytes, which the caller has seen to be there; copies only when they lie in several pieces.
    fn take_contiguous(&mut self, len: usize) -> Bytes {
        match self.pop(len) {
            Some(piece) if piece.len() == len => piece,
            None => Bytes::new(),
            Some(first) => {
                let mut whole = BytesMut::with_capacity(len);
                whole.extend_from_slice(&first);
                while whole.len() < len {
                    let Some(piece) = self.pop(len - whole.len()) else { break };
                    whole.extend_from_slice(&piece);
                }
                whole.freeze()
            }
        }
    }
}

/// Why a frame could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The stream failed.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The peer announces a header longer than any may be. Nothing was allocated for it.
    #[error("the peer announces a header of {len} bytes; {HEADER_LEN_MAX} are allowed")]
    TooLong {
        /// The length announced.
        len: usize,
    },
    /// The stream ended too early.
    #[error("the stream ended {missing} bytes too early")]
    Truncated {
        /// Bytes that were announced and did not come.
        missing: usize,
    },
    /// The header is not a message.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// We were about to send a message that passes a bound. Nothing was sent.
    #[error("our own {message} passes a bound of the protocol")]
    Unsendable {
        /// The message's name.
        message: &'static str,
        /// Which bound.
        source: DecodeError,
    },
}

impl FrameError {
    /// Whether the same exchange can succeed on another connection.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Transport(_))
    }

    /// Whether a peer that follows the protocol would never have caused it. A stream cut short is not
    /// among them: that is what a lost connection looks like.
    pub const fn is_peer_fault(&self) -> bool {
        matches!(self, Self::TooLong { .. } | Self::Decode(_))
    }
}

#[cfg(test)]
mod tests;
