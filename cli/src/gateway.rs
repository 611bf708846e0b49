//! `gateway run`, and what `up` shares with it: opening, announcing and running a gateway.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use holdfast_gateway::keys::recovery;
use holdfast_gateway::{CertificateFiles, Gateway, GatewayConfig, GatewayKeys, MetaLocation, TlsConfig};
use holdfast_protocol::record::{Policy, PolicyName};
use holdfast_protocol::time::{Clock, SystemClock};
use holdfast_protocol::transport::Transport;
use holdfast_protocol::transport::quic::{QuicConfig, QuicTransport};
use tokio_util::sync::CancellationToken;

use crate::args::{GatewayInitArgs, GatewayRunArgs, MetaArgs, TlsArgs};
use crate::client::Admin;
use crate::key;
use crate::network::{NetworkFile, NodeEntry, write_credentials};
use crate::output::Output;
use crate::signals::stop_token;

/// How often readiness is looked at while starting.
const READY_POLL: Duration = Duration::from_millis(25);

/// Finds or makes the keys of a data directory.
pub(crate) fn keys(data: &Path, label: &str) -> Result<GatewayKeys> {
    std::fs::create_dir_all(data).with_context(|| format!("cannot create {}", data.display()))?;
    GatewayKeys::load_or_create(data, label, SystemClock.now_ms())
        .with_context(|| format!("cannot open the data directory {}", data.display()))
}

/// Binds the gateway's QUIC endpoint.
pub(crate) fn quic(listen: SocketAddr, keys: &GatewayKeys) -> Result<Arc<dyn Transport>> {
    let mut config = QuicConfig::new(listen, Arc::clone(keys.transport()));
    // Whoever dials us is a stranger until it turns out to be a node of ours.
    config.narrow_accepted = true;
    let quic = QuicTransport::bind(config)
        .with_context(|| format!("cannot listen for QUIC on {listen}; choose another with --quic-listen"))?;
    Ok(quic)
}

/// The policy of this name.
pub(crate) fn policy(name: PolicyName) -> Result<Policy> {
    Policy::by_name(name).with_context(|| format!("{name} is not a policy for objects"))
}

/// S3 over TLS as the options ask for it.
pub(crate) fn tls(args: &TlsArgs) -> Option<TlsConfig> {
    let files = args.tls_cert.clone().zip(args.tls_key.clone());
    let files = files.map(|(cert, key)| CertificateFiles { cert, key });
    Some(TlsConfig { listen: args.s3_tls_listen?, files })
}

/// Where metadata is kept, as the options ask for it.
pub(crate) fn meta(config: &mut GatewayConfig, args: &MetaArgs) -> Result<()> {
    config.trail_reads = args.trail_reads;
    if let Some(url) = &args.meta {
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            bail!("--meta takes a URL like postgres://USER:PASSWORD@HOST/DATABASE; leave it out for RocksDB");
        }
        config.meta = MetaLocation::Database(url.clone());
    }
    Ok(())
}

/// `holdfast gateway init`.
pub(crate) fn init(args: &GatewayInitArgs, output: Output) -> Result<ExitCode> {
    if let Some(file) = &args.from {
        let typed = key::ask("Recovery code: ")?.context("the recovery code is read from standard input")?;
        key::restore_keys(&args.data, file, &typed, output)?;
    }
    let keys = keys(&args.data, "gateway")?;
    output.value(&serde_json::json!({
        "event": "keys",
        "namespace": keys.namespace_id().to_string(),
        "gateway": keys.node_id().to_string(),
    }));
    output.say(format!("gateway {} of namespace {}", keys.node_id(), keys.namespace_id()));
    if args.from.is_none() {
        let file = args.recovery_file.clone().unwrap_or_else(|| args.data.join("recovery.txt"));
        let code = recovery::back_up(&args.data, &file, SystemClock.now_ms())?;
        key::confirm_code(&args.data, &file, &code, output)?;
    }
    output.say(format!("next: holdfast gateway run --data {}", args.data.display()));
    Ok(ExitCode::SUCCESS)
}

/// A gateway that is open and has left its addresses and credentials in the data directory.
pub(crate) struct Opened {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) network: NetworkFile,
    pub(crate) credentials: std::path::PathBuf,
}

/// Opens the gateway and writes `credentials` and `network.json`.
pub(crate) async fn open(config: GatewayConfig, nodes: Vec<NodeEntry>) -> Result<Opened> {
    let data = config.dir.clone();
    let gateway = Gateway::open(config).await.context("cannot open the gateway")?;
    let keys = gateway.credentials();
    let credentials = write_credentials(&data, &keys.access_key, &keys.secret_key)?;
    let network = NetworkFile {
        s3: format!("http://{}", gateway.s3_addr()),
        s3_tls: gateway.s3_tls_addr().map(|address| format!("https://{address}")),
        s3_tls_ca: gateway.s3_tls_ca().map(std::path::absolute).transpose()?,
        web: format!("http://{}", gateway.web_addr()),
        auditor: None,
        pid: std::process::id(),
        namespace: gateway.keys().namespace_id().to_string(),
        nodes,
    };
    network.write(&data)?;
    Ok(Opened { gateway, network, credentials })
}

impl Opened {
    /// Runs the gateway; calls `ready` once `/healthz` answers 200.
    pub(crate) async fn run(self, stop: CancellationToken, ready: impl FnOnce(&Self)) -> Result<()> {
        let token = self.gateway.keys().admin_token().expose().to_owned();
        let admin = Admin::new(url::Url::parse(&self.network.web)?, token);
        let mut running = tokio::spawn(Arc::clone(&self.gateway).run(stop.clone()));
        let become_ready = async {
            while !admin.is_healthy().await? {
                tokio::time::sleep(READY_POLL).await;
            }
            anyhow::Ok(())
        };
        tokio::select! {
            outcome = &mut running => {
                outcome.context("the gateway ended in a panic")??;
                if !stop.is_cancelled() {
                    bail!("the gateway ended by itself");
                }
                return Ok(());
            }
            outcome = become_ready => outcome?,
            () = stop.cancelled() => {}
        }
        if !stop.is_cancelled() {
            ready(&self);
        }
        running.await.context("the gateway ended in a panic")??;
        Ok(())
    }

    /// Where S3 is served over TLS and what to trust, for people.
    pub(crate) fn tls_line(&self) -> Option<String> {
        let url = self.network.s3_tls.as_ref()?;
        Some(match &self.network.s3_tls_ca {
            Some(ca) => format!("  S3 over TLS  {url} (clients must trust {})", ca.display()),
            None => format!("  S3 over TLS  {url}"),
        })
    }

    /// The line to try next.
    pub(crate) fn try_next(&self) -> String {
        format!(
            "AWS_SHARED_CREDENTIALS_FILE={} aws --profile holdfast --endpoint-url {} s3 mb s3://datasets",
            self.credentials.display(),
            self.network.s3
        )
    }
}

/// `holdfast gateway run`.
pub(crate) async fn run(args: GatewayRunArgs, output: Output) -> Result<ExitCode> {
    let stop = stop_token(args.stop_on_stdin_eof)?;
    let keys = keys(&args.data, "gateway")?;
    let quic = quic(args.quic_listen, &keys)?;
    let mut config = GatewayConfig::new(args.data.clone(), keys, Arc::clone(&quic));
    config.policy = policy(args.policy)?;
    config.repair = args.repair.policy();
    config.s3_listen = args.s3_listen;
    config.s3_domains.clone_from(&args.s3_domain);
    config.s3_tls = tls(&args.tls);
    config.web_listen = args.web_listen;
    config.cache_disk_bytes = args.cache_size.map_or(0, |size| size.0);
    meta(&mut config, &args.meta)?;
    if !recovery::is_confirmed(&args.data) {
        output.say(format!(
            "note: no recovery file was confirmed for {}; `holdfast key backup` makes one",
            args.data.display()
        ));
    }
    config.quic_advertise = args.quic_advertise.clone();
    let opened = open(config, Vec::new()).await?;
    output.value(&serde_json::json!({ "event": "open", "network": opened.network }));
    output.say(format!(
        "gateway of namespace {}\n  S3           {}\n  web          {}\n  credentials  {} (profile holdfast)",
        opened.network.namespace,
        opened.network.s3,
        opened.network.web,
        opened.credentials.display()
    ));
    if let Some(line) = opened.tls_line() {
        output.say(line);
    }
    output.say(format!(
        "  waiting for nodes; whoever shall bring one in gets an invite from\n    holdfast gateway invite --data {}",
        args.data.display()
    ));
    opened
        .run(stop, |opened| {
            output.value(&serde_json::json!({ "event": "ready", "network": opened.network }));
            output.say(format!("ready\n  try          {}", opened.try_next()));
        })
        .await?;
    quic.close().await;
    output.say("stopped; everything acknowledged is kept");
    Ok(ExitCode::SUCCESS)
}
