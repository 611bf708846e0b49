//! Listening sockets: HTTP/1.1, plain or over TLS, with every bound set and TCP_NODELAY on every connection.
//!
//! Without TCP_NODELAY a small answer waits for the client's delayed acknowledgement, 40 ms.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::OpenGatewayError;
use super::body::TimedBody;
use super::seats::{Seat, Seats, Work, Working};
use crate::config::HttpLimits;

/// Read and write buffer of a connection: large frames keep the cost per byte down.
const CONNECTION_BUFFER_BYTES: usize = 256 * 1024;
/// How long a client may go on sending what nobody reads, and how much, after it was answered.
const LINGER_MAX: Duration = Duration::from_secs(3);
const LINGER_BYTES_MAX: usize = 64 * 1024 * 1024;
const LINGER_READ_BYTES: usize = 64 * 1024;
/// Pause after a failed accept (out of descriptors), so that the loop does not spin.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// Any failure that makes the connection end without a (further) answer.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The same as a type of its own, which is what the HTTP library asks of errors.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct AnswerError(#[from] pub(crate) BoxError);

/// The body of an answer.
pub(crate) type AnswerBody = UnsyncBoxBody<Bytes, AnswerError>;

/// The other end of a connection, in the extensions of each of its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Where it is; what stands in front of the gateway, if something does.
    pub(crate) address: SocketAddr,
    /// Whether the connection is enciphered.
    pub(crate) is_tls: bool,
}

/// Answers one request.
pub(crate) type Handler = Arc<
    dyn Fn(Request<TimedBody>) -> BoxFuture<'static, Result<Response<AnswerBody>, AnswerError>> + Send + Sync,
>;

/// Any body as an answer's.
pub(crate) fn answer_body<B>(body: B) -> AnswerBody
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(|error| AnswerError(error.into())).boxed_unsync()
}

/// Binds `address`, with errors that say what to do.
pub(crate) async fn bind(
    what: &'static str,
    address: SocketAddr,
    option: &'static str,
) -> Result<TcpListener, OpenGatewayError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => OpenGatewayError::PortInUse { what, address, option },
        _ => OpenGatewayError::Listen { what, address, option, source },
    })
}

/// A socket to serve on.
pub(crate) struct Listener {
    /// The socket.
    pub(crate) tcp: TcpListener,
    /// Does the handshake of each connection; plain HTTP without it.
    pub(crate) tls: Option<TlsAcceptor>,
}

impl Listener {
    /// Plain HTTP.
    pub(crate) fn plain(tcp: TcpListener) -> Self {
        Self { tcp, tls: None }
    }
}

/// Serves `handler` on `listener` until `stop`, then lets requests in flight finish within `drain`.
///
/// Returns true when nothing had to be cut.
pub(crate) async fn serve(
    listener: Listener,
    handler: Handler,
    limits: HttpLimits,
    stop: CancellationToken,
    drain: Duration,
) -> bool {
    let seats = Seats::new(limits.connections);
    let tasks = TaskTracker::new();
    let cut = CancellationToken::new();
    loop {
        let stream = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            stream = accept(&listener.tcp, &seats) => stream,
        };
        let Some((stream, address, seat)) = stream else { continue };
        let peer = Peer { address, is_tls: listener.tls.is_some() };
        let handler = introduced(seated(Arc::clone(&handler), seat.work()), peer);
        let connection = serve_accepted(stream, listener.tls.clone(), handler, limits, stop.clone());
        let cut = cut.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = cut.cancelled() => {}
                () = seat.is_wanted() => {}
                () = connection => {}
            }
        });
    }
    drop(listener);
    tasks.close();
    let drained = tokio::time::timeout(drain, tasks.wait()).await.is_ok();
    if !drained {
        tracing::warn!(connections = tasks.len(), "requests outlived the drain deadline and are cut");
        cut.cancel();
        tasks.wait().await;
    }
    drained
}

/// The next connection with its seat. One that comes when all seats are taken gets that of the connection which has been
/// idle the longest; while all are at work it waits, and those behind it wait in the kernel's queue.
async fn accept(listener: &TcpListener, seats: &Seats) -> Option<(TcpStream, SocketAddr, Seat)> {
    match listener.accept().await {
        Ok((stream, address)) => {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "the connection was gone before it was served");
                return None;
            }
            Some((stream, address, seats.take().await))
        }
        Err(error) => {
            tracing::warn!(%error, "a connection could not be accepted");
            tokio::time::sleep(ACCEPT_BACKOFF).await;
            None
        }
    }
}

/// The handler, told with every request who is on the other end.
fn introduced(handler: Handler, peer: Peer) -> Handler {
    Arc::new(move |mut request| {
        request.extensions_mut().insert(peer);
        handler(request)
    })
}

/// The handler, telling the seat when a request begins and when the last byte of its answer was handed out.
fn seated(handler: Handler, work: Work) -> Handler {
    Arc::new(move |request| {
        let working = work.begin();
        let answering = handler(request);
        Box::pin(async move {
            let answer = answering.await?;
            Ok(answer.map(|inner| Answering { inner, _working: working }.boxed_unsync()))
        })
    })
}

/// An answer on its way: its connection is at work until it ends.
struct Answering {
    inner: AnswerBody,
    _working: Working,
}

impl Body for Answering {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Does the handshake, if there is one to do, and serves.
async fn serve_accepted(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    handler: Handler,
    limits: HttpLimits,
    stop: CancellationToken,
) {
    let Some(tls) = tls else { return serve_connection(stream, handler, limits, stop).await };
    let handshake = tokio::time::timeout(limits.handshake_timeout, tls.accept(stream));
    let outcome = tokio::select! {
        outcome = handshake => outcome,
        () = stop.cancelled() => return,
    };
    match outcome {
        Ok(Ok(stream)) => serve_connection(stream, handler, limits, stop).await,
        // Scanners, plain HTTP and clients that do not trust us: their mistake, and they were told by an alert.
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

async fn serve_connection<S>(stream: S, handler: Handler, limits: HttpLimits, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Whether the body of the last request was read to its end.
    let last_read: Arc<Mutex<Option<Arc<AtomicBool>>>> = Arc::default();
    let remembered = Arc::clone(&last_read);
    let service = service_fn(move |request: Request<Incoming>| {
        let request = request.map(|body| TimedBody::new(body, limits.body_idle_timeout));
        *remembered.lock() = Some(request.body().read_to_end());
        handler(request)
    });
    let io = TokioIo::new(TimedWrites::new(stream, limits.write_idle_timeout));
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_headers(limits.headers)
        .max_header_size(limits.head_bytes)
        .max_buf_size(CONNECTION_BUFFER_BYTES.max(limits.head_bytes))
        .keep_alive(true)
        .serve_connection(io, service);
    let result = tokio::select! {
        result = poll_fn(|cx| connection.poll_without_shutdown(cx)) => result,
        () = stop.cancelled() => {
            Pin::new(&mut connection).graceful_shutdown();
            poll_fn(|cx| connection.poll_without_shutdown(cx)).await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended early");
        return;
    }
    let is_unread = last_read.lock().as_ref().is_some_and(|read| !read.load(Ordering::Relaxed));
    close(connection.into_parts().io.into_inner(), is_unread).await;
}

/// Ends a connection. A client that is still sending the body of a refused request is let send a little longer: closing
/// a socket with unread bytes resets it, and the reset may overtake the answer that says what was wrong.
async fn close<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, is_unread: bool) {
    let closing = async {
        stream.shutdown().await?;
        if is_unread {
            let mut left = LINGER_BYTES_MAX;
            let mut bytes = vec![0; LINGER_READ_BYTES];
            while left > 0 {
                match stream.read(&mut bytes).await? {
                    0 => break,
                    count => left = left.saturating_sub(count),
                }
            }
        }
        io::Result::Ok(())
    };
    if let Ok(Err(error)) = tokio::time::timeout(LINGER_MAX, closing).await {
        tracing::debug!(%error, "a connection was gone before it was closed");
    }
}

/// A peer that keeps our answer waiting must take at least this much per second waited, once the idle timeout's worth of
/// waiting has added up.
const WAITED_BYTES_PER_SECOND_MIN: u64 = 1024;

/// Whether a peer that kept us waiting this long, over all, has taken too little for it.
fn sips(waited: Duration, taken: u64, timeout: Duration) -> bool {
    waited > timeout && taken < waited.as_secs().saturating_mul(WAITED_BYTES_PER_SECOND_MIN)
}

/// A socket whose writes fail once the peer has left them unread for too long, or merely sips.
struct TimedWrites<S> {
    inner: S,
    timeout: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    waiting_since: Option<Instant>,
    waited: Duration,
    taken: u64,
}

impl<S> TimedWrites<S> {
    fn new(inner: S, timeout: Duration) -> Self {
        Self { inner, timeout, timer: None, waiting_since: None, waited: Duration::ZERO, taken: 0 }
    }

    /// The peer was ready again.
    fn resume(&mut self) {
        self.timer = None;
        if let Some(since) = self.waiting_since.take() {
            self.waited += since.elapsed();
        }
    }

    fn took(&mut self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let Poll::Ready(Ok(bytes)) = polled else { return polled };
        self.resume();
        self.taken = self.taken.saturating_add(bytes as u64);
        let cut = sips(self.waited, self.taken, self.timeout);
        Poll::Ready(if cut { Err(io::ErrorKind::TimedOut.into()) } else { Ok(bytes) })
    }

    fn guard<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.resume();
            return polled;
        }
        let now = Instant::now();
        self.waiting_since.get_or_insert(now);
        let deadline = now + self.timeout;
        let timer = match &mut self.timer {
            Some(timer) => timer,
            None => self.timer.insert(Box::pin(tokio::time::sleep_until(deadline))),
        };
        match timer.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimedWrites<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TimedWrites<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, bytes);
        let polled = self.took(polled);
        self.guard(cx, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_flush(cx);
        self.guard(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.guard(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, slices);
        let polled = self.took(polled);
        self.guard(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_peer_that_reads_nothing_is_cut() {
        let (near, _far) = tokio::io::duplex(16);
        let mut writes = TimedWrites::new(near, Duration::from_millis(1));
        let error = writes.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_peer_that_sips_is_cut_and_a_slow_one_is_not() {
        let timeout = Duration::from_secs(60);
        assert!(sips(Duration::from_secs(61), 61 * 1024 - 1, timeout));
        assert!(!sips(Duration::from_secs(61), 61 * 1024, timeout));
        assert!(!sips(Duration::from_secs(60), 0, timeout));
    }
}
