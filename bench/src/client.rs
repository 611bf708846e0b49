//! One HTTP/1.1 connection to the server under test, and the bodies it sends: TCP_NODELAY, no pool, no
//! redirects, nothing between the clock and the socket.

use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Where the server is.
#[derive(Clone)]
pub(crate) struct Endpoint {
    /// Its address.
    pub(crate) address: SocketAddr,
    /// The `host` header.
    pub(crate) host: String,
    /// How to speak TLS to it, if at all.
    pub(crate) tls: Option<TlsConnector>,
}

impl Endpoint {
    /// Plain HTTP.
    pub(crate) fn plain(address: SocketAddr) -> Self {
        Self { address, host: address.to_string(), tls: None }
    }

    /// HTTPS, trusting the certificates in the PEM file `ca`, which may be the server's own.
    pub(crate) fn tls(address: SocketAddr, host: &str, ca: &Path) -> Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(ca)
            .with_context(|| format!("cannot read the certificates in {}", ca.display()))?
        {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let host = format!("{host}:{}", address.port());
        Ok(Self { address, host, tls: Some(TlsConnector::from(Arc::new(config))) })
    }

    fn server_name(&self) -> Result<ServerName<'static>> {
        let name = self.host.rsplit_once(':').map_or(&*self.host, |(name, _)| name);
        Ok(ServerName::try_from(name.to_owned())?)
    }
}

/// An open connection.
pub(crate) struct Connection {
    sender: SendRequest<Body>,
}

impl Connection {
    /// Connects.
    pub(crate) async fn open(endpoint: &Endpoint) -> Result<Self> {
        let tcp = TcpStream::connect(endpoint.address)
            .await
            .with_context(|| format!("cannot connect to {}", endpoint.address))?;
        tcp.set_nodelay(true)?;
        let sender = match &endpoint.tls {
            None => serve(http1::handshake(TokioIo::new(tcp)).await?),
            Some(tls) => {
                let stream = tls.connect(endpoint.server_name()?, tcp).await.context("TLS handshake")?;
                serve(http1::handshake(TokioIo::new(stream)).await?)
            }
        };
        Ok(Self { sender })
    }

    /// Whether the connection can take another request.
    pub(crate) fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Sends a request and waits for the head of its answer.
    pub(crate) async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>> {
        self.sender.ready().await.context("the connection was closed")?;
        self.sender.send_request(request).await.context("the request failed on its way")
    }
}

/// Lets the connection run until both sides are done with it.
fn serve<T>((sender, connection): (SendRequest<Body>, http1::Connection<T, Body>)) -> SendRequest<Body>
where
    T: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    // A failure shows at the sender too, with the request that it hit.
    tokio::spawn(async move { connection.await.ok() });
    sender
}

/// A request's body: frames of a known total length.
pub(crate) struct Body {
    frames: Box<dyn Iterator<Item = Bytes> + Send + Sync>,
    left: u64,
}

impl Body {
    /// No bytes.
    pub(crate) fn empty() -> Self {
        Self { frames: Box::new(std::iter::empty()), left: 0 }
    }

    /// These bytes.
    pub(crate) fn full(bytes: Bytes) -> Self {
        Self { left: bytes.len() as u64, frames: Box::new(std::iter::once(bytes)) }
    }

    /// These frames, which have `len` bytes together.
    pub(crate) fn frames(frames: impl Iterator<Item = Bytes> + Send + Sync + 'static, len: u64) -> Self {
        Self { frames: Box::new(frames), left: len }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some(frame) = self.frames.next() else { return Poll::Ready(None) };
        self.left = self.left.saturating_sub(frame.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
