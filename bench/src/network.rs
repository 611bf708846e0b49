//! The network under test: `holdfast up` as a child process, started, awaited, stopped.
//!
//! It stops when this program does, however that ends: `up` watches its standard input, which is a pipe
//! that we hold.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use http::{Request, StatusCode};
use tokio::process::{Child, Command};

use crate::client::{Body, Connection, Endpoint};
use crate::process::Watched;
use crate::sigv4::Credentials;

/// The network must be ready within this time.
const START_MAX: Duration = Duration::from_secs(90);
/// It must have stopped within this time.
const STOP_MAX: Duration = Duration::from_secs(60);
/// How often readiness is looked for.
const POLL: Duration = Duration::from_millis(5);
/// One look at /healthz may take this long.
const PROBE_MAX: Duration = Duration::from_secs(2);
/// How much of the log an error shows.
const LOG_TAIL: usize = 2000;

/// Where the nodes run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// Each in a process of its own, over QUIC.
    Separate,
    /// All in the gateway's process.
    InProcess,
}

/// What to start.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The `holdfast` binary.
    pub(crate) binary: PathBuf,
    /// The data directory.
    pub(crate) data: PathBuf,
    /// Where the nodes run.
    pub(crate) mode: Mode,
    /// The database of the metadata; in the data directory without one.
    pub(crate) meta: Option<String>,
}

/// A running network.
pub(crate) struct Network {
    child: Child,
    log: PathBuf,
    /// From the start of the process to the first 200 of /healthz.
    pub(crate) ready_after: Duration,
    /// Where S3 is served.
    pub(crate) s3: SocketAddr,
    /// Where S3 is served over TLS.
    pub(crate) s3_tls: Endpoint,
    /// Where its metrics are.
    pub(crate) web: SocketAddr,
    /// With which keys.
    pub(crate) credentials: Credentials,
    /// Its processes.
    pub(crate) watched: Watched,
}

impl Network {
    /// Starts a network and waits until it is ready.
    pub(crate) async fn start(plan: &Plan) -> Result<Self> {
        let (s3, web) = (free_port()?, free_port()?);
        let log = plan.data.with_extension("log");
        let file = File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new(&plan.binary);
        command.arg("up").arg("--json").arg("--stop-on-stdin-eof");
        command.arg("--data").arg(&plan.data).args(["--quic-port", "0"]);
        command.arg("--s3-listen").arg(s3.to_string()).arg("--web-listen").arg(web.to_string());
        command.args(["--s3-tls-listen", "127.0.0.1:0"]);
        if plan.mode == Mode::Separate {
            command.arg("--separate-nodes");
        }
        command.env_remove("HOLDFAST_META");
        if let Some(url) = &plan.meta {
            command.env("HOLDFAST_META", url);
        }
        command.stdin(Stdio::piped()).stdout(file.try_clone()?).stderr(file).kill_on_drop(true);
        let start = Instant::now();
        let mut child = command.spawn().with_context(|| format!("cannot start {}", plan.binary.display()))?;
        while !is_ready(web).await {
            if let Some(status) = child.try_wait()? {
                bail!("`holdfast up` ended with {status}; its log ends with:\n{}", tail(&log));
            }
            if start.elapsed() > START_MAX {
                bail!("`holdfast up` was not ready after {START_MAX:?}; its log ends with:\n{}", tail(&log));
            }
            tokio::time::sleep(POLL).await;
        }
        let ready_after = start.elapsed();
        let path = plan.data.join("credentials");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read the credentials in {}", path.display()))?;
        let credentials = Credentials::parse(&text, "holdfast")?;
        let s3_tls = tls_endpoint(&plan.data)?;
        let pid = child.id().context("the gateway ended right after it was ready")?;
        let watched = Watched::tree_of(pid);
        Ok(Self { child, log, ready_after, s3, s3_tls, web, credentials, watched })
    }

    /// Stops it as its user would, and waits.
    pub(crate) async fn stop(mut self) -> Result<Duration> {
        let start = Instant::now();
        drop(self.child.stdin.take());
        match tokio::time::timeout(STOP_MAX, self.child.wait()).await {
            Ok(status) => {
                let status = status?;
                if !status.success() {
                    bail!("`holdfast up` stopped with {status}; its log ends with:\n{}", tail(&self.log));
                }
                Ok(start.elapsed())
            }
            Err(_) => bail!("`holdfast up` did not stop within {STOP_MAX:?}"),
        }
    }
}

/// The TLS side as `network.json` tells it, trusting its certificate alone.
fn tls_endpoint(data: &Path) -> Result<Endpoint> {
    let path = data.join("network.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let network: serde_json::Value = serde_json::from_str(&text)?;
    let field = |name: &str| {
        network[name].as_str().with_context(|| format!("{} does not say {name}", path.display()))
    };
    let address = field("s3_tls")?.trim_start_matches("https://").parse()?;
    Endpoint::tls(address, "localhost", Path::new(field("s3_tls_ca")?))
}

async fn is_ready(web: SocketAddr) -> bool {
    let probe = async {
        let mut connection = Connection::open(&Endpoint::plain(web)).await?;
        let request = Request::get("/healthz").header("host", web.to_string()).body(Body::empty())?;
        anyhow::Ok(connection.send(request).await?.status() == StatusCode::OK)
    };
    matches!(tokio::time::timeout(PROBE_MAX, probe).await, Ok(Ok(true)))
}

fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let from = text.len().saturating_sub(LOG_TAIL);
    String::from_utf8_lossy(&text[from..]).into_owned()
}
