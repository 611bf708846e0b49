//! The UDP socket under an endpoint: splits what quinn sends at once into batches that the system takes.
//!
//! Quinn fills up to ten packets for one send, and the kernel takes at most 64 KiB in one. With packets of up to
//! 6,500 bytes both agree; with the large packets of a loopback path every send would fail. So larger batches leave
//! in several sends here, and quinn's limit and the kernel's no longer bind each other.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

/// Bytes that the kernel takes in one send: the largest UDP payload over IPv4.
pub(super) const SEND_LEN_MAX: usize = 65_507;
/// Bytes that the kernel hands over in one receive, rounded up.
const RECEIVE_LEN_MAX: usize = 65_536;

/// A socket that takes batches of any length.
#[derive(Debug)]
pub(super) struct BatchedSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    receive_segments: usize,
}

impl BatchedSocket {
    /// Over `inner`, on an endpoint whose packets have up to `packet_len_max` bytes.
    pub(super) fn new(inner: Arc<dyn AsyncUdpSocket>, packet_len_max: usize) -> Self {
        // Quinn makes every receive buffer this many packets long; more than the kernel fills would only be
        // address space.
        let receive_segments = RECEIVE_LEN_MAX.div_ceil(packet_len_max).min(inner.max_receive_segments());
        Self { inner, receive_segments }
    }
}

/// Bytes of whole segments that leave in one send.
fn batch_len(segment_len: usize) -> usize {
    (SEND_LEN_MAX / segment_len.max(1)).max(1) * segment_len.max(1)
}

impl AsyncUdpSocket for BatchedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    /// When a later part finds the socket full, quinn sends the whole batch again: a peer drops packets that it has,
    /// and that costs less than declaring the rest lost.
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Some(segment_len) = transmit.segment_size.filter(|_| transmit.contents.len() > SEND_LEN_MAX)
        else {
            return self.inner.try_send(transmit);
        };
        for contents in transmit.contents.chunks(batch_len(segment_len)) {
            let segment_size = (contents.len() > segment_len).then_some(segment_len);
            self.inner.try_send(&Transmit { contents, segment_size, ..*transmit })?;
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.receive_segments
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Keeps what it is asked to send, and is full from the given send on.
    #[derive(Debug)]
    struct Recorder {
        sent: Mutex<Vec<(usize, Option<usize>)>>,
        full_after: usize,
    }

    impl AsyncUdpSocket for Recorder {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            unreachable!("nothing here waits")
        }

        fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
            let mut sent = self.sent.lock().unwrap();
            if sent.len() == self.full_after {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            sent.push((transmit.contents.len(), transmit.segment_size));
            Ok(())
        }

        fn poll_recv(
            &self,
            _: &mut Context<'_>,
            _: &mut [IoSliceMut<'_>],
            _: &mut [RecvMeta],
        ) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok(SocketAddr::from(([127, 0, 0, 1], 1)))
        }

        fn max_receive_segments(&self) -> usize {
            64
        }
    }

    fn send(
        len: usize,
        segment_size: Option<usize>,
        full_after: usize,
    ) -> (io::Result<()>, Vec<(usize, Option<usize>)>) {
        let recorder = Arc::new(Recorder { sent: Mutex::default(), full_after });
        let contents = vec![7; len];
        let destination = SocketAddr::from(([127, 0, 0, 1], 2));
        let transmit = Transmit { destination, ecn: None, contents: &contents, segment_size, src_ip: None };
        let outcome =
            BatchedSocket::new(Arc::clone(&recorder) as Arc<dyn AsyncUdpSocket>, 32_000).try_send(&transmit);
        let sent = recorder.sent.lock().unwrap().clone();
        (outcome, sent)
    }

    #[test]
    fn a_batch_that_the_kernel_takes_leaves_whole() {
        let (outcome, sent) = send(65_000, Some(6_500), usize::MAX);
        assert!(outcome.is_ok());
        assert_eq!(sent, [(65_000, Some(6_500))]);
    }

    #[test]
    fn a_larger_batch_leaves_in_whole_segments_and_a_last_single_one_unsegmented() {
        let (outcome, sent) = send(4 * 32_000 + 5_000, Some(32_000), usize::MAX);
        assert!(outcome.is_ok());
        assert_eq!(sent, [(64_000, Some(32_000)), (64_000, Some(32_000)), (5_000, None)]);
        let (_, sent) = send(70_000, Some(65_000), usize::MAX);
        assert_eq!(sent, [(65_000, None), (5_000, None)]);
    }

    #[test]
    fn a_full_socket_in_the_middle_is_told_so_that_the_batch_is_sent_again() {
        let (outcome, sent) = send(5 * 32_000, Some(32_000), 1);
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(sent.len(), 1);
    }

    #[test]
    fn receive_buffers_hold_what_the_kernel_hands_over() {
        let recorder = Arc::new(Recorder { sent: Mutex::default(), full_after: 0 });
        let socket = BatchedSocket::new(recorder, 32_000);
        assert!(socket.max_receive_segments() * 32_000 >= RECEIVE_LEN_MAX);
    }
}
