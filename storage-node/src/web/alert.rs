//! Alerts by webhook: a POST of JSON when something goes wrong, and one when it is over.
//!
//! Only changes are told, warnings and alarms only. Delivery is tried a few times and then given up and counted: the
//! page and `/healthz` still say what is wrong. What is waiting to be told is bounded. Every webhook has a queue of its
//! own, so that a slow one holds up neither another nor the looking.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::metric;
use crate::node::{Node, Problem, Severity};

/// How often the problems are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// One delivery ends after this time.
const DELIVER_WITHIN: Duration = Duration::from_secs(15);
/// Times that one alert is tried, the pause doubling from a second.
const ATTEMPTS_MAX: u32 = 5;
/// Alerts that wait for one webhook; what is more is lost, and counted.
const WAITING_MAX: usize = 64;

/// Where alerts go.
#[derive(Clone, Debug)]
pub struct Webhook {
    url: Url,
    tls: Option<Arc<rustls::ClientConfig>>,
}

/// Why an address takes no alerts.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WebhookError {
    /// Not a URL.
    #[error("`{text}` is not a URL with http or https and a host")]
    Url {
        /// The text.
        text: String,
    },
    /// The certificate authority that was named.
    #[error("the file of the certificate authority holds no certificate in PEM")]
    Authority,
    /// The system's certificates.
    #[error("no certificate authority is known on this machine; install the package ca-certificates")]
    Certificates,
    /// TLS.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// The connection.
    #[error("the webhook cannot be reached: {0}")]
    Connect(#[from] std::io::Error),
    /// The exchange.
    #[error("the webhook does not talk HTTP: {0}")]
    Http(#[from] hyper::Error),
    /// A refusal.
    #[error("the webhook answered {status}")]
    Status {
        /// The status.
        status: u16,
    },
    /// Too slow.
    #[error("the webhook did not answer in time")]
    Timeout,
}

impl WebhookError {
    /// Whether the same delivery can succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connect(_) | Self::Http(_) | Self::Timeout => true,
            Self::Status { status } => *status >= 500 || *status == 429,
            Self::Url { .. } | Self::Authority | Self::Certificates | Self::Tls(_) => false,
        }
    }
}

/// What is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Alert {
    /// `raised` or `cleared`.
    event: &'static str,
    node: String,
    at_ms: u64,
    #[serde(flatten)]
    problem: Problem,
    /// The same in one line, under the name that chat services show.
    text: String,
}

impl Webhook {
    /// An `http` or `https` address. Certificates are checked against those that the system trusts.
    pub fn new(text: &str) -> Result<Self, WebhookError> {
        Self::with_authority(text, None)
    }

    /// As [`Webhook::new`], trusting the certificate authorities in `pem` instead of the system's.
    pub fn with_authority(text: &str, pem: Option<&[u8]>) -> Result<Self, WebhookError> {
        let url_error = || WebhookError::Url { text: text.chars().take(200).collect() };
        let url = Url::parse(text).map_err(|_| url_error())?;
        if url.host_str().is_none() {
            return Err(url_error());
        }
        let tls = match url.scheme() {
            "http" => None,
            "https" => Some(Arc::new(client_config(pem)?)),
            _ => return Err(url_error()),
        };
        Ok(Self { url, tls })
    }

    async fn post(&self, body: Vec<u8>) -> Result<(), WebhookError> {
        match tokio::time::timeout(DELIVER_WITHIN, self.exchange(body)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(WebhookError::Timeout),
        }
    }

    async fn exchange(&self, body: Vec<u8>) -> Result<(), WebhookError> {
        let host = self.url.host_str().unwrap_or_default().to_owned();
        let port = self.url.port_or_known_default().unwrap_or(443);
        let tcp = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
        tcp.set_nodelay(true)?;
        let path = match self.url.query() {
            Some(query) => format!("{}?{query}", self.url.path()),
            None => self.url.path().to_owned(),
        };
        let request = Request::post(path)
            .header(hyper::header::HOST, &host)
            .header(hyper::header::CONTENT_TYPE, "application/json")
            .header(hyper::header::USER_AGENT, crate::node::SOFTWARE)
            .body(Full::new(Bytes::from(body)))
            .map_err(|_| WebhookError::Url { text: host.clone() })?;
        let status = match &self.tls {
            None => send(TokioIo::new(tcp), request).await?,
            Some(config) => {
                let name =
                    ServerName::try_from(host.clone()).map_err(|_| WebhookError::Url { text: host })?;
                let tls = tokio_rustls::TlsConnector::from(config.clone()).connect(name, tcp).await?;
                send(TokioIo::new(tls), request).await?
            }
        };
        if (200..300).contains(&status) { Ok(()) } else { Err(WebhookError::Status { status }) }
    }
}

async fn send<T>(io: T, request: Request<Full<Bytes>>) -> Result<u16, WebhookError>
where
    T: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    let driving = tokio::spawn(connection);
    let response = sender.send_request(request).await;
    // The body is of no interest: dropping the connection ends it.
    driving.abort();
    Ok(response?.status().as_u16())
}

fn client_config(pem: Option<&[u8]>) -> Result<rustls::ClientConfig, WebhookError> {
    let mut roots = rustls::RootCertStore::empty();
    match pem {
        Some(pem) => {
            roots.add_parsable_certificates(CertificateDer::pem_slice_iter(pem).filter_map(Result::ok));
            if roots.is_empty() {
                return Err(WebhookError::Authority);
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(WebhookError::Certificates);
            }
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// Tells changes until stopped.
pub struct Alerts {
    node: Arc<Node>,
    webhook: Webhook,
    look_every: Duration,
}

impl Alerts {
    /// Alerts of `node` to `webhook`.
    pub fn new(node: Arc<Node>, webhook: Webhook) -> Self {
        Self { node, webhook, look_every: LOOK_EVERY }
    }

    /// Looks more often, for tests.
    pub fn looking_every(self, look_every: Duration) -> Self {
        Self { look_every, ..self }
    }

    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let (waiting, mut queue) = mpsc::channel(WAITING_MAX);
        let telling = async {
            while let Some(alert) = queue.recv().await {
                self.deliver(&alert).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.look(waiting) => {}
            () = telling => {}
        }
    }

    /// Looks for changes, for ever.
    async fn look(&self, waiting: mpsc::Sender<Alert>) {
        let mut known = BTreeMap::new();
        let mut ticks = tokio::time::interval(self.look_every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            for (event, problem) in changes(&mut known, self.node.problems()) {
                if waiting.try_send(self.alert(event, problem)).is_err() {
                    metrics::counter!(metric::ALERTS_LOST).increment(1);
                }
            }
        }
    }

    fn alert(&self, event: &'static str, problem: Problem) -> Alert {
        let node = self.node.id().to_string();
        let text = match event {
            "cleared" => format!("Holdfast node {node}: over: {}", problem.what),
            _ => format!("Holdfast node {node}: {} {}", problem.what, problem.remedy),
        };
        Alert { event, node, at_ms: self.node.now_ms(), problem, text }
    }

    async fn deliver(&self, alert: &Alert) {
        let Ok(body) = serde_json::to_vec(alert) else { return };
        let mut pause = Duration::from_secs(1);
        for attempt in 1..=ATTEMPTS_MAX {
            match self.webhook.post(body.clone()).await {
                Ok(()) => return,
                Err(error) if error.is_retryable() && attempt < ATTEMPTS_MAX => {
                    tracing::debug!(%error, attempt, "an alert was not delivered; trying again");
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                Err(error) => {
                    metrics::counter!(metric::ALERTS_LOST).increment(1);
                    tracing::error!(%error, alert = alert.text, "an alert could not be delivered");
                    return;
                }
            }
        }
    }
}

/// What is new and what is over since the last look. Notes are not told. Pure.
fn changes(known: &mut BTreeMap<String, Problem>, now: Vec<Problem>) -> Vec<(&'static str, Problem)> {
    let now: BTreeMap<String, Problem> = now
        .into_iter()
        .filter(|problem| problem.severity >= Severity::Warning)
        .map(|problem| (problem.kind.clone(), problem))
        .collect();
    let mut changes = Vec::new();
    for (kind, problem) in &now {
        if known.get(kind).is_none_or(|before| before.severity < problem.severity) {
            changes.push(("raised", problem.clone()));
        }
    }
    for (kind, problem) in known.iter() {
        if !now.contains_key(kind) {
            changes.push(("cleared", problem.clone()));
        }
    }
    *known = now;
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(kind: &str, severity: Severity) -> Problem {
        Problem { kind: kind.to_owned(), severity, what: String::new(), remedy: String::new() }
    }

    #[test]
    fn changes_are_told_once_and_notes_never() {
        let mut known = BTreeMap::new();
        let full = problem("full", Severity::Note);
        let disk = problem("disk_failed", Severity::Alarm);
        let first = changes(&mut known, vec![full.clone(), disk.clone()]);
        assert_eq!(first, vec![("raised", disk.clone())]);
        assert_eq!(changes(&mut known, vec![full.clone(), disk.clone()]), vec![]);
        assert_eq!(changes(&mut known, vec![full]), vec![("cleared", disk)]);
    }

    #[test]
    fn only_addresses_that_can_be_posted_to_are_taken() {
        assert!(Webhook::new("http://127.0.0.1:9/x?y=1").is_ok());
        for text in ["ftp://example.org", "nonsense", "file:///etc/passwd"] {
            assert!(matches!(Webhook::new(text), Err(WebhookError::Url { .. })), "{text}");
        }
    }
}
