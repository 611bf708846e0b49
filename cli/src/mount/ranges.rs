//! Ranges of objects over HTTP/1.1, read from the socket into the buffers that go to the kernel.
//!
//! It does one thing: send a GET with a signed URL, and read a body whose length was promised. A general client reads
//! into buffers of its own, which are then copied, and hands every piece from task to task; here bytes are copied once,
//! by the kernel. Whatever is not a plain answer with a length is left to the general client ([`Range::Unusual`]).

use std::ops::Range as Span;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::{StreamExt, stream};
use holdfast_retrieval::mount::{BackendError, ByteStream, READ_UNIT};
use http::StatusCode;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use url::Url;

use super::buffers::Buffers;

/// The longest head of an answer.
const HEAD_LEN_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;
/// The longest body of a refusal that is read.
const REFUSAL_LEN_MAX: u64 = 64 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections kept open for later: as many as the kernel may have requests.
const IDLE_MAX: usize = 128;
/// One that lay idle for longer is not tried: its other end is likely to be closing it.
const IDLE_FOR: Duration = Duration::from_secs(20);
/// A slow body is handed on in smaller pieces, so that it is seen to go on.
const PIECE_WAIT: Duration = Duration::from_secs(2);

/// Reads ranges from one host.
#[derive(Debug)]
pub(super) struct Ranges {
    host: String,
    address: (String, u16),
    idle: Mutex<Vec<(TcpStream, Instant)>>,
    buffers: Arc<Buffers>,
}

/// What a request came to.
pub(super) enum Range {
    /// Its bytes.
    Body(ByteStream),
    /// Another status than 206, and what was said.
    Refused(StatusCode, String),
    /// An answer that this client does not understand.
    Unusual,
}

/// The head of an answer.
struct Head {
    status: StatusCode,
    length: u64,
    keep: bool,
}

impl Ranges {
    /// For a host that is named as in `url`; `None` when it is not spoken to in plain HTTP.
    pub(super) fn new(url: &Url) -> Option<Arc<Self>> {
        let name = url.host_str().filter(|_| url.scheme() == "http")?;
        let port = url.port_or_known_default()?;
        let host = url.port().map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"));
        let address = (name.trim_matches(['[', ']']).to_owned(), port);
        Some(Arc::new(Self { host, address, idle: Mutex::default(), buffers: Arc::default() }))
    }

    /// Asks for `range` of what `url` names, if its tag is `etag`.
    pub(super) async fn read(
        self: &Arc<Self>,
        url: &Url,
        etag: &str,
        range: Span<u64>,
    ) -> Result<Range, BackendError> {
        let query = url.query().map_or_else(String::new, |query| format!("?{query}"));
        let request = format!(
            "GET {}{query} HTTP/1.1\r\nhost: {}\r\nrange: bytes={}-{}\r\nif-match: {etag}\r\n\r\n",
            url.path(),
            self.host,
            range.start,
            range.end.saturating_sub(1)
        );
        if let Some(stream) = self.idle_connection() {
            // It may have been closed while nobody looked: then another is made.
            if let Ok(asked) = ask(stream, &request).await {
                return self.answered(asked, range).await;
            }
        }
        let address = (&*self.address.0, self.address.1);
        let connect = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
        let stream = connect.map_err(|_| unreachable("no connection in time"))?.map_err(broken)?;
        stream.set_nodelay(true).map_err(broken)?;
        let asked = ask(stream, &request).await.map_err(broken)?;
        self.answered(asked, range).await
    }

    fn idle_connection(&self) -> Option<TcpStream> {
        let mut idle = self.idle.lock();
        // The latest used lies last; when it is too old, so are all.
        let (stream, since) = idle.pop()?;
        if since.elapsed() < IDLE_FOR {
            return Some(stream);
        }
        idle.clear();
        None
    }

    fn keep(&self, stream: TcpStream) {
        let mut idle = self.idle.lock();
        if idle.len() < IDLE_MAX {
            idle.push((stream, Instant::now()));
        }
    }

    async fn answered(
        self: &Arc<Self>,
        (stream, rest, head): (TcpStream, BytesMut, Option<Head>),
        range: Span<u64>,
    ) -> Result<Range, BackendError> {
        let Some(head) = head else { return Ok(Range::Unusual) };
        if head.status != StatusCode::PARTIAL_CONTENT {
            let said = self.refusal(stream, rest, &head).await?;
            return Ok(Range::Refused(head.status, said));
        }
        if head.length != range.end - range.start || rest.len() as u64 > head.length {
            return Ok(Range::Unusual);
        }
        let body =
            Body { ranges: Arc::clone(self), stream, rest, at: range.start, end: range.end, keep: head.keep };
        let pieces = stream::unfold(Some(body), |body| async move {
            let mut body = body?;
            if body.at == body.end {
                body.done();
                return None;
            }
            match body.piece().await {
                Ok(piece) => Some((Ok(piece), Some(body))),
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(Range::Body(pieces.boxed()))
    }

    async fn refusal(
        &self,
        mut stream: TcpStream,
        rest: BytesMut,
        head: &Head,
    ) -> Result<String, BackendError> {
        let length = usize::try_from(head.length.min(REFUSAL_LEN_MAX)).unwrap_or(0);
        let mut said = rest;
        while said.len() < length {
            if stream.read_buf(&mut said).await.map_err(broken)? == 0 {
                return Err(unreachable("the body ended early"));
            }
        }
        if head.keep && said.len() as u64 == head.length {
            self.keep(stream);
        }
        Ok(String::from_utf8_lossy(&said).into_owned())
    }
}

fn unreachable(why: &str) -> BackendError {
    BackendError::Unreachable { why: why.to_owned() }
}

#[expect(clippy::needless_pass_by_value, reason = "it stands in map_err")]
fn broken(error: std::io::Error) -> BackendError {
    BackendError::Unreachable { why: error.to_string() }
}

/// Sends a request and reads the head of its answer; what came behind the head is returned with it. No head when
/// the answer is not of the plain kind.
async fn ask(
    mut stream: TcpStream,
    request: &str,
) -> Result<(TcpStream, BytesMut, Option<Head>), std::io::Error> {
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = BytesMut::with_capacity(HEAD_LEN_MAX);
    loop {
        let before = bytes.len();
        if before >= HEAD_LEN_MAX {
            return Ok((stream, bytes, None));
        }
        // Never more than a head: what follows is read to where it belongs.
        if (&mut stream).take((HEAD_LEN_MAX - before) as u64).read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(parsed) = parse(&bytes) {
            let head = parsed.map(|(head, len)| {
                bytes.advance(len);
                head
            });
            return Ok((stream, bytes, head));
        }
    }
}

/// `None` while the head is not whole; `Some(None)` when it is not of the plain kind.
fn parse(bytes: &[u8]) -> Option<Option<(Head, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let len = match response.parse(bytes) {
        Ok(httparse::Status::Partial) => return None,
        Ok(httparse::Status::Complete(len)) => len,
        Err(_) => return Some(None),
    };
    let header = |name: &str| {
        let mut found = response.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        found.next().map(|header| String::from_utf8_lossy(header.value).trim().to_ascii_lowercase())
    };
    let plain = || {
        let status = StatusCode::from_u16(response.code?).ok().filter(|status| status.as_u16() >= 200)?;
        if header("transfer-encoding").is_some() || header("content-encoding").is_some() {
            return None;
        }
        let length = header("content-length")?.parse().ok()?;
        let keep = response.version == Some(1) && header("connection").is_none_or(|said| said != "close");
        Some(Head { status, length, keep })
    };
    Some(plain().map(|head| (head, len)))
}

/// A body being read.
struct Body {
    ranges: Arc<Ranges>,
    stream: TcpStream,
    /// What came with the head.
    rest: BytesMut,
    /// Where in the object its next byte lies.
    at: u64,
    end: u64,
    keep: bool,
}

impl Body {
    /// The next piece: up to the next multiple of [`READ_UNIT`], less when it is slow in coming.
    async fn piece(&mut self) -> Result<Bytes, BackendError> {
        let until = ((self.at / READ_UNIT + 1) * READ_UNIT).min(self.end);
        let len = usize::try_from(until - self.at).unwrap_or(usize::MAX);
        let mut buffer = self.ranges.buffers.take(len);
        let mut filled = self.rest.len().min(len);
        buffer.space()[..filled].copy_from_slice(&self.rest[..filled]);
        self.rest.advance(filled);
        let slow_at = Instant::now() + PIECE_WAIT;
        while filled < len {
            let read = self.stream.read(&mut buffer.space()[filled..]);
            // Without a byte there is nothing to hand on: whoever waits decides for how long.
            let read = if filled == 0 { Ok(read.await) } else { timeout_at(slow_at, read).await };
            match read {
                Err(_) => break,
                Ok(Ok(0)) => return Err(unreachable("the body ended early")),
                Ok(Ok(more)) => filled += more,
                Ok(Err(error)) => return Err(broken(error)),
            }
        }
        self.at += filled as u64;
        Ok(buffer.freeze(filled))
    }

    /// The connection may be used again.
    fn done(self) {
        if self.keep {
            self.ranges.keep(self.stream);
        }
    }
}

#[cfg(test)]
mod tests;
