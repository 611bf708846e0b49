//! `auditor run`, and the auditor of a network on one machine.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use holdfast_proofs::beacon::BeaconSpec;
use holdfast_proofs::policy::AuditPolicy;
use holdfast_protocol::time::{Clock, SystemClock};
use holdfast_protocol::transport::Transport;
use holdfast_protocol::transport::quic::{QuicConfig, QuicTransport};
use holdfast_protocol::{NodeId, SigningKey};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::beacon::{self, Rounds};
use super::logdir::LogSource;
use super::rules;
use super::run::{RunConfig, Running};
use super::web;
use crate::args::AuditorRunArgs;
use crate::network::{NodeEntry, write_private};
use crate::output::Output;
use crate::signals::stop_token;

/// How often other auditors' logs are looked at.
const COSIGN_EVERY: Duration = Duration::from_secs(60);

/// `holdfast auditor run`.
pub(crate) async fn run(args: AuditorRunArgs, output: Output) -> Result<ExitCode> {
    let stop = stop_token(args.stop_on_stdin_eof)?;
    let policy = match &args.rules {
        None => AuditPolicy::hourly(),
        Some(path) => {
            let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            serde_json::from_slice(&bytes)
                .with_context(|| format!("{} does not hold a network's audit rules", path.display()))?
        }
    };
    let rounds = match &args.beacon {
        Some(text) => Rounds::parse(text)?,
        None => bail!(
            "name the source of the beacon's rounds with --beacon: a directory of ROUND.json files, or a drand relay"
        ),
    };
    let key = key(&args.dir)?;
    let origin = args.origin.clone().unwrap_or_else(|| origin_of(&key));
    let quic = QuicTransport::bind(QuicConfig::new(args.listen, Arc::clone(&key)))
        .with_context(|| format!("cannot listen for QUIC on {}", args.listen))?;
    let address = quic.local_addr().context("the QUIC socket has no address")?;
    let listener = listen(args.web_listen, "--web-listen").await?;
    let page = format!("http://{}", listener.local_addr()?);
    let running = Running::open(RunConfig {
        key,
        log_dir: args.dir.join("log"),
        origin: origin.clone(),
        policy,
        rounds,
        transport: quic.clone(),
        nodes: nodes(&args)?,
        log_address: format!("{page}/log"),
    })?;
    output.value(&serde_json::json!({
        "event": "ready", "id": running.id().to_string(), "address": address, "page": page, "log": format!("{page}/log"),
        "origin": origin,
    }));
    output.say(format!(
        "auditor {} ({origin})\n  page         {page}\n  log          {page}/log (also in {})\n  nodes dial   {}@{address}",
        running.id(),
        args.dir.join("log").display(),
        running.id()
    ));
    let serving = tokio::spawn(web::serve(listener, Arc::clone(&running), stop.clone()));
    let cosigning =
        tokio::spawn(cosign_all(Arc::clone(&running), args.cosign.clone(), args.dir.join("cosigned")));
    let outcome = running.run(stop).await;
    cosigning.abort();
    serving.await.context("the auditor's web side ended in a panic")??;
    quic.close().await;
    outcome?;
    output.say("stopped; the log is complete, and the next start goes on with it");
    Ok(ExitCode::SUCCESS)
}

async fn cosign_all(running: Arc<Running>, logs: Vec<String>, dir: std::path::PathBuf) {
    loop {
        for log in &logs {
            let outcome = match LogSource::parse(log) {
                Ok(source) => running.cosign(&source, &dir).await,
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                tracing::warn!(log, error = format!("{error:#}"), "another auditor's log is not cosigned");
            }
        }
        tokio::time::sleep(COSIGN_EVERY).await;
    }
}

fn nodes(args: &AuditorRunArgs) -> Result<BTreeMap<NodeId, Vec<SocketAddr>>> {
    let mut nodes = BTreeMap::new();
    for text in &args.node {
        let (node, addresses) = rules::peer(text)?;
        nodes.insert(node, addresses);
    }
    if let Some(path) = &args.nodes {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (node, addresses) = rules::peer(line)?;
            nodes.insert(node, addresses);
        }
    }
    Ok(nodes)
}

/// The auditor's key in `dir/key`, made on first start.
fn key(dir: &Path) -> Result<Arc<SigningKey>> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let path = dir.join("key");
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let mut seed = [0u8; 32];
            hex::decode_to_slice(text.trim(), &mut seed)
                .with_context(|| format!("{} is damaged; restore it from a backup", path.display()))?;
            Ok(Arc::new(SigningKey::from_seed(&seed)?))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = SigningKey::generate()?;
            write_private(&path, hex::encode(key.seed()).as_bytes())?;
            Ok(Arc::new(key))
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn origin_of(key: &SigningKey) -> String {
    format!("holdfast.auditor/{}", NodeId(key.public()).short())
}

async fn listen(address: SocketAddr, option: &str) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}; choose another address with {option}"))
}

/// The auditor that runs beside a network on one machine.
pub(crate) struct Local {
    policy: AuditPolicy,
    rounds: Rounds,
    listener: TcpListener,
    data: std::path::PathBuf,
    /// Where its page is.
    pub(crate) page: String,
}

impl Local {
    /// Finds or makes the network's rules, and listens for the page.
    pub(crate) async fn prepare(data: &Path, epoch: Duration, web: SocketAddr) -> Result<Self> {
        let epoch_ms = u64::try_from(epoch.as_millis()).unwrap_or(u64::MAX);
        let (policy, rounds) = beacon::local(data, epoch_ms, SystemClock.now_ms())?;
        let listener = listen(web, "--auditor-listen").await?;
        let page = format!("http://{}", listener.local_addr()?);
        Ok(Self { policy, rounds, listener, data: data.to_owned(), page })
    }

    /// The rules, for the nodes.
    pub(crate) const fn policy(&self) -> &AuditPolicy {
        &self.policy
    }

    /// Audits `nodes` until `stop`, as a stranger would: over QUIC, with a key of its own.
    pub(crate) async fn run(self, nodes: &[NodeEntry], stop: CancellationToken) -> Result<()> {
        let dir = self.data.join("auditor");
        let key = key(&dir)?;
        let quic =
            QuicTransport::bind(QuicConfig::new(SocketAddr::from(([127, 0, 0, 1], 0)), Arc::clone(&key)))?;
        let known = nodes
            .iter()
            .map(|node| -> Result<(NodeId, Vec<SocketAddr>)> { Ok((node.id.parse()?, vec![node.address])) });
        let nodes: BTreeMap<NodeId, Vec<SocketAddr>> = known.collect::<Result<_>>()?;
        // Another epoch is another log: the rules stand in its first entry.
        let anchor = match &self.policy.beacon {
            BeaconSpec::Onion { members, .. } => members.first().cloned().unwrap_or_default(),
            BeaconSpec::Drand { .. } => String::new(),
        };
        let log_dir = log_of(&dir, &anchor)?;
        let running = Running::open(RunConfig {
            origin: origin_of(&key),
            key,
            log_address: std::path::absolute(&log_dir)?.to_string_lossy().into_owned(),
            log_dir,
            policy: self.policy,
            rounds: self.rounds,
            transport: quic.clone(),
            nodes,
        })?;
        let serving = tokio::spawn(web::serve(self.listener, Arc::clone(&running), stop.clone()));
        let outcome = running.run(stop).await;
        serving.abort();
        quic.close().await;
        outcome
    }
}

/// `dir/log`, unless it was made under other rules: then that one is moved aside, whole, and a new one begins.
fn log_of(dir: &Path, anchor: &str) -> Result<std::path::PathBuf> {
    let log = dir.join("log");
    let mark = dir.join("log-rules");
    let known = std::fs::read_to_string(&mark).unwrap_or_default();
    if log.exists() && known.trim() != anchor {
        let aside = dir.join(format!("log-{}", SystemClock.now_ms()));
        std::fs::rename(&log, &aside).with_context(|| format!("cannot move {} aside", log.display()))?;
        tracing::info!(aside = %aside.display(), "the epoch has changed: a new log begins");
    }
    write_private(&mark, anchor.as_bytes())?;
    Ok(log)
}
