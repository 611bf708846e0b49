//! A server in memory that answers what the load generator asks, for the tests of the load generator
//! itself. It checks signatures' presence, declared lengths and aws-chunked framing; it keeps bytes.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::client::Endpoint;
use crate::pattern::Pattern;
use crate::process::Watched;
use crate::s3::{Payload, Server, Session, Upload};
use crate::scenario::{Scenario, Size};
use crate::sigv4::Credentials;

#[derive(Default)]
struct Stub {
    objects: Mutex<BTreeMap<String, Bytes>>,
    /// Answer this many requests with 503 first.
    refusals: Mutex<u32>,
    /// Flip a bit of every object served.
    lies: bool,
}

impl Stub {
    fn refuses(&self) -> bool {
        let mut refusals = self.refusals.lock().unwrap();
        let refuses = *refusals > 0;
        *refusals = refusals.saturating_sub(1);
        refuses
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        assert!(
            head.headers["authorization"].to_str().unwrap().starts_with("AWS4-HMAC-SHA256 Credential=k/")
        );
        let plain = |status, body: Bytes| Response::builder().status(status).body(Full::new(body)).unwrap();
        if self.refuses() {
            return Ok(plain(StatusCode::SERVICE_UNAVAILABLE, Bytes::new()));
        }
        let key = head.uri.path().trim_start_matches("/holdfast-bench").trim_start_matches('/').to_owned();
        let query = head.uri.query().unwrap_or_default();
        let mut objects = self.objects.lock().unwrap();
        let answer = match (&head.method, query) {
            (&Method::PUT, _) if key.is_empty() => plain(StatusCode::OK, Bytes::new()),
            (&Method::PUT, query) => {
                let body = decoded(&head.headers, body);
                let part = query.split('&').find_map(|pair| pair.strip_prefix("partNumber="));
                let key = part.map_or(key.clone(), |part| format!("{key}#{part:0>5}"));
                objects.insert(key, body);
                Response::builder().header("etag", "\"e-1\"").body(Full::new(Bytes::new())).unwrap()
            }
            (&Method::POST, "uploads=") => plain(StatusCode::OK, "<UploadId>u 1</UploadId>".into()),
            (&Method::POST, _) => {
                let parts: Vec<String> =
                    objects.keys().filter(|k| k.starts_with(&format!("{key}#"))).cloned().collect();
                let named = String::from_utf8_lossy(&body).matches("<PartNumber>").count();
                assert_eq!((query, parts.len()), ("uploadId=u%201", named));
                let whole: Vec<u8> = parts.iter().flat_map(|k| objects.remove(k).unwrap()).collect();
                objects.insert(key, Bytes::from(whole));
                plain(StatusCode::OK, Bytes::new())
            }
            (_, query) if query.contains("list-type=2") => {
                plain(StatusCode::OK, listed(&objects, query).into())
            }
            _ => {
                let mut object = objects.get(&key).cloned().unwrap();
                if self.lies {
                    let mut bent = object.to_vec();
                    *bent.last_mut().unwrap() ^= 1;
                    object = bent.into();
                }
                match head.headers.get("range").map(|range| range.to_str().unwrap()) {
                    None => plain(StatusCode::OK, object),
                    Some(range) => {
                        let (start, end) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
                        let (start, end): (usize, usize) = (start.parse().unwrap(), end.parse().unwrap());
                        plain(StatusCode::PARTIAL_CONTENT, object.slice(start..=end))
                    }
                }
            }
        };
        Ok(answer)
    }
}

/// One page of a listing, slowly.
fn listed(objects: &BTreeMap<String, Bytes>, query: &str) -> String {
    let value = |name: &str| {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let found = pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value);
        found.unwrap_or_default().replace("%2F", "/")
    };
    let (prefix, delimiter) = (value("prefix"), value("delimiter"));
    let behind = value("start-after").max(value("continuation-token"));
    let under: Vec<&String> =
        objects.keys().filter(|key| key.starts_with(&prefix) && **key > behind).collect();
    let (inner, own): (Vec<&String>, Vec<&String>) =
        under.iter().partition(|key| !delimiter.is_empty() && key[prefix.len()..].contains(&delimiter));
    let folders: std::collections::BTreeSet<&str> =
        inner.iter().map(|key| key[prefix.len()..].split('/').next().unwrap()).collect();
    let mut text: String = own.iter().take(1000).map(|key| format!("<Key>{key}</Key>")).collect();
    text.extend(folders.iter().map(|folder| format!("<CommonPrefixes>{folder}</CommonPrefixes>")));
    if own.len() > 1000 {
        text.push_str(&format!("<NextContinuationToken>{}</NextContinuationToken>", own[999]));
    }
    text
}

/// Undoes aws-chunked.
fn decoded(headers: &http::HeaderMap, body: Bytes) -> Bytes {
    let Some(len) = headers.get("x-amz-decoded-content-length") else { return body };
    let (mut rest, mut whole) = (&body[..], Vec::new());
    loop {
        let at = rest.windows(2).position(|two| two == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..at]).unwrap(), 16).unwrap();
        if size == 0 {
            assert!(rest[at + 2..].starts_with(b"x-amz-checksum-crc64nvme:"));
            assert_eq!(len.to_str().unwrap(), whole.len().to_string());
            return Bytes::from(whole);
        }
        whole.extend_from_slice(&rest[at + 2..at + 2 + size]);
        rest = &rest[at + 4 + size..];
    }
}

async fn serve(stub: Arc<Stub>, tls: Option<TlsAcceptor>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (stub, tls) = (Arc::clone(&stub), tls.clone());
            tokio::spawn(async move {
                let service = service_fn(move |request| Arc::clone(&stub).answer(request));
                match tls {
                    None => http1::Builder::new().serve_connection(TokioIo::new(tcp), service).await.ok(),
                    Some(tls) => {
                        let stream = tls.accept(tcp).await.unwrap();
                        http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok()
                    }
                }
            });
        }
    });
    address
}

fn server(endpoint: Endpoint) -> Arc<Server> {
    let credentials =
        Credentials { access_key: "k".into(), secret_key: "s".into(), region: "us-east-1".into() };
    Arc::new(Server { endpoint, credentials, bucket: "holdfast-bench".into(), pattern: Pattern::new(7) })
}

#[tokio::test]
async fn every_line_runs_and_every_byte_is_checked() {
    let stub = Arc::new(Stub::default());
    let size = Size {
        large_len: 20 * 1024 * 1024 + 5,
        small_count: 1_000,
        many_count: 12_000,
        rounds: 2,
        loop_for: Duration::from_millis(40),
        settle: Duration::ZERO,
    };
    let scenario = Scenario {
        server: server(Endpoint::plain(serve(Arc::clone(&stub), None).await)),
        tls: None,
        web: None,
        watched: Watched::tree_of(std::process::id()),
        size,
        only: None,
        show: |_| {},
    };
    let lines = scenario.run().await.unwrap();
    assert_eq!(lines.len(), 21);
    for line in &lines {
        if line.name.contains("TLS") || line.name.contains("cached") {
            assert_eq!((line.note.as_str(), line.met), ("not offered", None));
        } else {
            assert!(line.speed > 0.0 && line.operations > 0, "{line:?}");
            assert!(crate::report::row(line).contains(&line.name));
        }
    }
    scenario.check_survival().await.unwrap();
    let objects = stub.objects.lock().unwrap();
    for key in ["large/object", "large/parts", "large/signed", "large/chunked"] {
        let expected: Vec<u8> = scenario.server.pattern.frames(key, 0, size.large_len).flatten().collect();
        assert!(objects[key] == expected, "{key}");
    }
}

#[tokio::test]
async fn busy_servers_are_tried_again_within_a_budget() {
    let stub = Arc::new(Stub { refusals: Mutex::new(3), ..Stub::default() });
    let server = server(Endpoint::plain(serve(Arc::clone(&stub), None).await));
    let mut session = Session::new(&server);
    let upload = Upload::prepare(&server.pattern, "a b", 0, 1_000_000, Payload::Unsigned);
    session.put(&upload).await.unwrap();
    assert_eq!(session.retries, 3);
    *stub.refusals.lock().unwrap() = 1000;
    let error = session.put(&upload).await.unwrap_err();
    assert!(error.to_string().contains("503"), "{error}");
}

#[tokio::test]
async fn a_server_that_lies_fails_the_run() {
    let stub = Arc::new(Stub { lies: true, ..Stub::default() });
    let server = server(Endpoint::plain(serve(stub, None).await));
    let mut session = Session::new(&server);
    let upload = Upload::prepare(&server.pattern, "k", 0, 300_000, Payload::Unsigned);
    session.put(&upload).await.unwrap();
    session.get("k", 0, 299_999, false).await.unwrap();
    let error = session.get("k", 0, 300_000, true).await.unwrap_err();
    assert!(error.to_string().contains("wrong bytes"), "{error}");
}

#[tokio::test]
async fn tls_trusts_the_certificate_given_and_no_other() {
    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str, pem: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, pem).unwrap();
        path
    };
    let ca = path("ca.pem", certificate.cert.pem());
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let other = path("other.pem", other.cert.pem());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = rustls::pki_types::PrivateKeyDer::try_from(certificate.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.cert.der().clone()], key)
        .unwrap();
    let stub = Arc::new(Stub::default());
    let address = serve(stub, Some(TlsAcceptor::from(Arc::new(config)))).await;

    let trusting = server(Endpoint::tls(address, "localhost", &ca).unwrap());
    let mut session = Session::new(&trusting);
    let upload = Upload::prepare(&trusting.pattern, "k", 0, 3_000_000, Payload::Signed);
    session.put(&upload).await.unwrap();
    session.get("k", 0, 3_000_000, true).await.unwrap();

    let doubting = server(Endpoint::tls(address, "localhost", &other).unwrap());
    let error = Session::new(&doubting).put(&upload).await.unwrap_err();
    assert!(error.to_string().contains("TLS handshake"), "{error}");
}
