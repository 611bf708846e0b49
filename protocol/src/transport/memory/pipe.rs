//! One direction of a stream in memory: a queue of whole pieces, bounded in bytes.

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit};

use super::super::{BiStream, RecvHalf, SendHalf, TransportError};
use super::Hold;

/// Bytes that may wait in one direction of a stream. Four blocks: enough that writer and reader need not
/// alternate, little enough that a slow reader is felt.
pub const STREAM_WINDOW: usize = 4 * 1024 * 1024;

/// A queue with one writer and one reader.
#[derive(Debug, Default)]
pub(super) struct Pipe {
    state: Mutex<PipeState>,
    readable: Notify,
    writable: Notify,
}

#[derive(Debug, Default)]
struct PipeState {
    pieces: VecDeque<Bytes>,
    queued: usize,
    finished: bool,
    reset: bool,
    stopped: bool,
}

/// What one look at the queue says.
enum Step<T> {
    Done(T),
    Wait,
    Reset,
}

impl Pipe {
    /// Queues as much of `chunk` as there is room for. A piece that fits the window whole is never cut, so
    /// that a block stays one contiguous piece on its way.
    fn try_write(&self, chunk: &mut Bytes) -> Step<()> {
        let mut state = self.state.lock();
        if state.stopped {
            return Step::Reset;
        }
        while !chunk.is_empty() {
            let piece_len = chunk.len().min(STREAM_WINDOW);
            if state.queued + piece_len > STREAM_WINDOW {
                break;
            }
            let piece = chunk.split_to(piece_len);
            state.queued += piece_len;
            state.pieces.push_back(piece);
            self.readable.notify_one();
        }
        if chunk.is_empty() { Step::Done(()) } else { Step::Wait }
    }

    fn try_read(&self, max: usize) -> Step<Option<Bytes>> {
        let mut state = self.state.lock();
        if state.reset {
            return Step::Reset;
        }
        let Some(front) = state.pieces.front_mut() else {
            return if state.finished { Step::Done(None) } else { Step::Wait };
        };
        let whole = front.len() <= max;
        let piece = if whole { std::mem::take(front) } else { front.split_to(max) };
        if whole {
            state.pieces.pop_front();
        }
        state.queued -= piece.len();
        self.writable.notify_one();
        Step::Done(Some(piece))
    }

    fn finish(&self) {
        self.state.lock().finished = true;
        self.readable.notify_one();
    }

    /// The writer gives up: what waits is discarded, as QUIC does.
    fn reset(&self) {
        let mut state = self.state.lock();
        state.reset = true;
        state.pieces.clear();
        state.queued = 0;
        drop(state);
        self.readable.notify_one();
    }

    /// The reader wants no more.
    fn stop(&self) {
        let mut state = self.state.lock();
        state.stopped = true;
        state.pieces.clear();
        state.queued = 0;
        drop(state);
        self.writable.notify_one();
    }
}

/// Both halves of one end of a stream.
pub(super) fn halves(
    outbound: Arc<Pipe>,
    inbound: Arc<Pipe>,
    hold: Arc<Hold>,
    permit: Option<Arc<OwnedSemaphorePermit>>,
) -> BiStream {
    let send = MemorySend { pipe: outbound, hold: hold.clone(), done: false, _permit: permit.clone() };
    let recv = MemoryRecv { pipe: inbound, hold, stopped: false, _permit: permit };
    BiStream { send: Box::new(send), recv: Box::new(recv) }
}

struct MemorySend {
    pipe: Arc<Pipe>,
    hold: Arc<Hold>,
    /// Finished or reset.
    done: bool,
    _permit: Option<Arc<OwnedSemaphorePermit>>,
}

#[async_trait]
impl SendHalf for MemorySend {
    async fn write(&mut self, mut chunk: Bytes) -> Result<(), TransportError> {
        if self.done {
            return Err(TransportError::Finished { peer: self.hold.peer });
        }
        loop {
            if self.hold.link.is_ended() {
                return Err(self.hold.error());
            }
            match self.pipe.try_write(&mut chunk) {
                Step::Done(()) => return Ok(()),
                Step::Reset => return Err(TransportError::Reset { peer: self.hold.peer }),
                Step::Wait => tokio::select! {
                    () = self.pipe.writable.notified() => {}
                    () = self.hold.link.ended() => {}
                },
            }
        }
    }

    fn finish(&mut self) -> Result<(), TransportError> {
        if self.done {
            return Err(TransportError::Finished { peer: self.hold.peer });
        }
        self.done = true;
        self.pipe.finish();
        Ok(())
    }

    fn reset(&mut self) {
        if !self.done {
            self.done = true;
            self.pipe.reset();
        }
    }
}

impl Drop for MemorySend {
    fn drop(&mut self) {
        self.reset();
    }
}

struct MemoryRecv {
    pipe: Arc<Pipe>,
    hold: Arc<Hold>,
    stopped: bool,
    _permit: Option<Arc<OwnedSemaphorePermit>>,
}

#[async_trait]
impl RecvHalf for MemoryRecv {
    async fn read(&mut self, max: usize) -> Result<Option<Bytes>, TransportError> {
        if self.stopped {
            return Err(TransportError::Finished { peer: self.hold.peer });
        }
        loop {
            if self.hold.link.is_ended() {
                return Err(self.hold.error());
            }
            match self.pipe.try_read(max) {
                Step::Done(piece) => return Ok(piece),
                Step::Reset => return Err(TransportError::Reset { peer: self.hold.peer }),
                Step::Wait => tokio::select! {
                    () = self.pipe.readable.notified() => {}
                    () = self.hold.link.ended() => {}
                },
            }
        }
    }

    async fn read_many(&mut self, chunks: &mut [Bytes]) -> Result<Option<usize>, TransportError> {
        let Some((first, others)) = chunks.split_first_mut() else { return Ok(Some(0)) };
        let Some(piece) = self.read(usize::MAX).await? else { return Ok(None) };
        *first = piece;
        let mut count = 1;
        for chunk in others {
            // A reset that arrives meanwhile is told by the next call.
            let Step::Done(Some(piece)) = self.pipe.try_read(usize::MAX) else { break };
            *chunk = piece;
            count += 1;
        }
        Ok(Some(count))
    }

    fn stop(&mut self) {
        if !self.stopped {
            self.stopped = true;
            self.pipe.stop();
        }
    }
}

impl Drop for MemoryRecv {
    fn drop(&mut self) {
        self.stop();
    }
}
