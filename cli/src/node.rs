//! `holdfast node`: one storage node as a process of its own. This file opens and runs it; joining, checking and
//! controlling are in the files beside.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use holdfast_gateway::web::api::{Invited, MakeInvite};
use holdfast_protocol::record::InviteText;
use holdfast_protocol::transport::Transport;
use holdfast_protocol::transport::quic::{QuicConfig, QuicTransport, Threading};
use holdfast_protocol::{NamespaceId, OperatorId};
use holdfast_storage_node::web::{Alerts, ControlToken, Webhook};
use holdfast_storage_node::{Admission, Mode, Node, NodeConfig};
use serde::{Deserialize, Serialize};

use crate::args::{InviteArgs, NetworkArgs, NodeCommand, NodeDoctorArgs, NodeInitArgs, NodeRunArgs};
use crate::client::Admin;
use crate::network::{Access, write_private};
use crate::output::Output;
use crate::signals::stop_token;
use crate::sizes::ByteSize;

mod checks;
mod control;
pub(crate) mod inside;
mod join;
mod portmap;

use checks::Findings;
use join::{Membership, Right};

/// What `node init` fixes, kept in `DIR/node.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NodeFile {
    /// Bytes offered.
    pub(crate) capacity_bytes: u64,
    /// Who runs it; the node's own key when absent.
    pub(crate) operator: Option<OperatorId>,
    /// The invite by which it joins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) invite: Option<String>,
}

/// What a running node leaves in `DIR/running.json`, for the other commands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RunningFile {
    id: String,
    address: SocketAddr,
    pid: u32,
    /// Its own web side.
    #[serde(default)]
    web: Option<SocketAddr>,
}

/// The first line of `node run --json`: the node serves.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NodeReady {
    /// Always `ready`.
    pub(crate) event: String,
    /// The node's id.
    pub(crate) id: String,
    /// Where it listens by QUIC.
    pub(crate) address: SocketAddr,
    /// Its process.
    pub(crate) pid: u32,
    /// Its own web side.
    #[serde(default)]
    pub(crate) web: Option<SocketAddr>,
}

const NODE_FILE: &str = "node.json";
const RUNNING_FILE: &str = "running.json";
/// Less could not hold one extent's worth of blocks with their headers.
const CAPACITY_MIN: u64 = 64 * 1024 * 1024;
/// Where a node listens: on this machine only, unless it joins a gateway elsewhere.
const LISTEN_HERE: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7400);
const LISTEN_ANYWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 7400);

/// `holdfast node …`.
pub(crate) async fn dispatch(command: NodeCommand, output: Output) -> Result<ExitCode> {
    match command {
        NodeCommand::Init(args) => init(&args, output).await,
        NodeCommand::Run(args) => run(*args, output).await,
        NodeCommand::Status(args) => control::status(&args, output).await,
        NodeCommand::Doctor(args) => doctor(&args, output).await,
        NodeCommand::Pause(args) => control::set_mode(&args, Mode::Paused, output).await,
        NodeCommand::Resume(args) => control::set_mode(&args, Mode::Serving, output).await,
        NodeCommand::Drain(args) => control::leave(&args, Mode::Draining, output).await,
        NodeCommand::Exit(args) => control::leave(&args, Mode::Exiting, output).await,
        NodeCommand::Resize(args) => control::resize(&args, output).await,
        NodeCommand::RebuildIndex(args) => crate::node_disks::rebuild_index(args, output).await,
        NodeCommand::Scrub(args) => crate::node_disks::scrub(args, output).await,
        NodeCommand::Deny(command) => control::deny(&command, output).await,
    }
}

impl NodeFile {
    /// Reads `DIR/node.json`, or makes it with `capacity` when the directory is new.
    pub(crate) fn find_or_make(
        dir: &Path,
        capacity: Option<u64>,
        operator: Option<OperatorId>,
    ) -> Result<Self> {
        let path = dir.join(NODE_FILE);
        match std::fs::read(&path) {
            Ok(bytes) => {
                let mut found: Self = serde_json::from_slice(&bytes)
                    .with_context(|| format!("{} is damaged", path.display()))?;
                if let Some(capacity) = capacity.filter(|capacity| *capacity != found.capacity_bytes) {
                    found.capacity_bytes = capacity;
                    found.write(dir)?;
                }
                Ok(found)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let Some(capacity_bytes) = capacity else {
                    bail!(
                        "{} holds no node; create one with `holdfast node init --dir {} --capacity 500GB`",
                        dir.display(),
                        dir.display()
                    );
                };
                check_capacity(capacity_bytes)?;
                std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
                let made = Self { capacity_bytes, operator, invite: None };
                made.write(dir)?;
                Ok(made)
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    fn write(&self, dir: &Path) -> Result<()> {
        write_private(&dir.join(NODE_FILE), &serde_json::to_vec_pretty(self)?)
    }

    /// Keeps an invite, if one is given, after a look at whether it is one.
    fn keep_invite(&mut self, dir: &Path, invite: Option<&str>) -> Result<()> {
        let Some(text) = invite else { return Ok(()) };
        let read: InviteText = text.parse()?;
        read.verify().context("the invite does not hold")?;
        self.invite = Some(text.trim().to_owned());
        self.write(dir)
    }

    /// The gateways to join: those named, or the invite's.
    fn gateways(&self, named: &[String]) -> Result<Vec<String>> {
        if !named.is_empty() {
            return Ok(named.to_vec());
        }
        let Some(invite) = &self.invite else { return Ok(Vec::new()) };
        Ok(invite.parse::<InviteText>()?.verify()?.gateways)
    }
}

fn check_capacity(capacity_bytes: u64) -> Result<()> {
    if capacity_bytes < CAPACITY_MIN {
        bail!("{} is too little to offer; at least {}", ByteSize(capacity_bytes), ByteSize(CAPACITY_MIN));
    }
    Ok(())
}

/// `holdfast node init`.
async fn init(args: &NodeInitArgs, output: Output) -> Result<ExitCode> {
    let operator =
        args.operator.as_deref().map(str::parse::<OperatorId>).transpose().context("--operator")?;
    if args.dir.join(NODE_FILE).exists() {
        bail!(
            "{} already holds a node; `holdfast node run --dir {}` starts it",
            args.dir.display(),
            args.dir.display()
        );
    }
    if let Some(invite) = &args.invite {
        invite.parse::<InviteText>()?.verify().context("the invite does not hold")?;
    }
    let mut file = NodeFile::find_or_make(&args.dir, Some(args.capacity.0), operator)?;
    file.keep_invite(&args.dir, args.invite.as_deref())?;
    let node = open(&args.dir, &file, None, Vec::new()).await?;
    let (id, key, io) = (node.id(), node.key(), node.store().io_name());
    node.close().await.context("closing the new store failed")?;
    output.value(
        &serde_json::json!({ "id": id.to_string(), "capacity_bytes": file.capacity_bytes, "dir": args.dir }),
    );
    output.say(format!("node {id}\n  offers {} in {}", ByteSize(file.capacity_bytes), args.dir.display()));
    if !args.no_checks {
        let right = Right { invite: file.invite.clone(), token_file: None };
        let gateways = file.gateways(&[])?;
        let mut findings = Findings::new(output);
        check_all(&args.dir, &file, 0, io, &mut findings);
        checks::network(key, args.listen, &gateways, &right, &mut findings).await;
        conclude(&findings, output);
    }
    let join = if file.invite.is_some() { "" } else { " --invite INVITE" };
    output.say(format!("  next: holdfast node run --dir {}{join}", args.dir.display()));
    Ok(ExitCode::SUCCESS)
}

fn check_all(dir: &Path, file: &NodeFile, used_bytes: u64, io: &str, findings: &mut Findings) {
    for finding in checks::disk(dir, file.capacity_bytes, used_bytes) {
        findings.add(&finding);
    }
    findings.add(&checks::io(io));
}

fn conclude(findings: &Findings, output: Output) {
    output.say(match findings.must_mend {
        0 => "  nothing stands in the way".to_owned(),
        1 => "  one thing to mend first".to_owned(),
        more => format!("  {more} things to mend first"),
    });
}

/// `holdfast node doctor`.
async fn doctor(args: &NodeDoctorArgs, output: Output) -> Result<ExitCode> {
    let file = NodeFile::find_or_make(&args.dir, None, None)?;
    let mut findings = Findings::new(output);
    let right = Right { invite: file.invite.clone(), token_file: args.token_file.clone() };
    let gateways = file.gateways(&args.join)?;
    if let Some(running) = control::Running::find(&args.dir).await? {
        let report = running.report().await?;
        output.say(format!("node {} runs; what it finds itself:", report.id));
        check_all(&args.dir, &file, report.used_bytes + report.trash_bytes, &report.io, &mut findings);
        for problem in &report.problems {
            output.value(problem);
            output.say(format!("  {}: {} {}", problem.kind, problem.what, problem.remedy));
        }
        output.say(format!("  reachability: {}", report.reachability));
        let must_mend = findings.must_mend
            + report
                .problems
                .iter()
                .filter(|one| one.severity == holdfast_storage_node::Severity::Alarm)
                .count();
        return Ok(if must_mend == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let node = open(&args.dir, &file, None, Vec::new()).await?;
    let accounts = node.accounts();
    let (key, io) = (node.key(), node.store().io_name());
    output.say(format!("node {} does not run; checking:", node.id()));
    node.close().await.context("closing the store failed")?;
    check_all(&args.dir, &file, accounts.used_bytes + accounts.trash_bytes, io, &mut findings);
    checks::network(key, args.listen, &gateways, &right, &mut findings).await;
    conclude(&findings, output);
    Ok(if findings.must_mend == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Opens the node in `dir` as `file` says.
pub(crate) async fn open(
    dir: &Path,
    file: &NodeFile,
    args: Option<&NodeRunArgs>,
    addresses: Vec<SocketAddr>,
) -> Result<Arc<Node>> {
    let mut config = NodeConfig::new(dir, file.capacity_bytes);
    config.operator = file.operator;
    config.addresses = addresses;
    config.bandwidth.minute_of_day = local_minute;
    config.audit = Some(crate::auditor::of_node(dir)?);
    if let Some(args) = args {
        config.trash_period_ms = args.trash_period_s.saturating_mul(1000);
        crate::node_disks::configure(&mut config, args);
        config.admit = admission(&args.admit)?;
        config.bandwidth.send = args.send_limit.parse().context("--send-limit")?;
        config.bandwidth.take = args.take_limit.parse().context("--take-limit")?;
        config.misbehave = args.misbehave.as_deref().map(str::parse).transpose()?;
    }
    Node::open(config).await.with_context(|| format!("cannot open the node in {}", dir.display()))
}

/// Namespaces named on the command line; `any` for everybody.
fn admission(named: &[String]) -> Result<Admission> {
    if named.iter().any(|key| key == "any") {
        return Ok(Admission::Any);
    }
    let listed: Result<Vec<NamespaceId>, _> = named.iter().map(|key| key.parse()).collect();
    Ok(Admission::Listed(listed.context("--admit takes namespaces' keys, or `any`")?))
}

/// The minute of the local day.
fn local_minute(now_ms: u64) -> u16 {
    let at = i64::try_from(now_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    let minute = at.map(|at| {
        let local = at.to_zoned(jiff::tz::TimeZone::system());
        i16::from(local.hour()) * 60 + i16::from(local.minute())
    });
    minute.and_then(|minute| u16::try_from(minute).ok()).unwrap_or(0)
}

/// Binds the node's QUIC endpoint.
pub(crate) fn listen(node: &Node, address: SocketAddr) -> Result<Arc<QuicTransport>> {
    let mut config = QuicConfig::new(address, node.key());
    // Whoever dials a node is a stranger until its Hello.
    config.narrow_accepted = true;
    if serves_from_one_thread() {
        config.threading = Threading::Shared;
    }
    QuicTransport::bind(config)
        .with_context(|| format!("cannot listen for QUIC on {address}; choose another port"))
}

/// Up to this many cores a node serves from one thread; above, QUIC has its own and handlers spread.
const CORES_FOR_ONE_THREAD: usize = 4;

/// Whether this machine is one where a node is better off with one thread.
pub(crate) fn serves_from_one_thread() -> bool {
    std::thread::available_parallelism().map_or(1, usize::from) <= CORES_FOR_ONE_THREAD
}

/// `holdfast node run`.
async fn run(args: NodeRunArgs, output: Output) -> Result<ExitCode> {
    let stop = stop_token(args.stop_on_stdin_eof)?;
    let mut file = NodeFile::find_or_make(&args.dir, args.capacity.map(|size| size.0), None)?;
    file.keep_invite(&args.dir, args.invite.as_deref())?;
    let gateways = file.gateways(&args.join)?;
    let webhook = args.alert_webhook.as_deref().map(Webhook::new).transpose().context("--alert-webhook")?;
    let recorder = holdfast_storage_node::web::metrics_recorder();
    let node = open(&args.dir, &file, Some(&args), Vec::new()).await?;
    if node.mode() == Mode::Left {
        node.close().await?;
        bail!(
            "the node in {} has left the network; `holdfast node resume --dir {}` would bring it back",
            args.dir.display(),
            args.dir.display()
        );
    }
    let quic = listen(&node, listening(&args, &gateways))?;
    let address = quic.local_addr().context("the QUIC socket has no address")?;
    let mapped = advertise(&node, &args, &gateways, address, &output).await?;
    let token = ControlToken::make(&args.dir).context("cannot write the control token")?;
    let web = tokio::net::TcpListener::bind(args.web_listen)
        .await
        .with_context(|| format!("cannot listen on {}; choose another with --web-listen", args.web_listen))?;
    let running = RunningFile {
        id: node.id().to_string(),
        address,
        pid: std::process::id(),
        web: Some(web.local_addr()?),
    };
    write_private(&args.dir.join(RUNNING_FILE), &serde_json::to_vec(&running)?)?;
    announce_ready(&running, &args, &file, output);
    let ending = stop.child_token();
    let reporting = crate::node_disks::report_health(&node, &args.dir, ending.clone());
    let mut beside = tokio::task::JoinSet::new();
    let serving_web =
        holdfast_storage_node::web::serve(Arc::clone(&node), web, token, recorder, ending.clone());
    beside.spawn(async move {
        if let Err(error) = serving_web.await {
            tracing::error!(%error, "the node's web side ended");
        }
    });
    if let Some(webhook) = webhook {
        beside.spawn(Alerts::new(Arc::clone(&node), webhook).run(ending.clone()));
    }
    crate::auditor::dial_auditors(&node, &quic);
    if let Some(mapped) = mapped {
        beside.spawn(mapped.keep(ending.clone()));
    }
    let right = Right { invite: file.invite.clone(), token_file: args.token_file.clone() };
    let membership = Membership::new(Arc::clone(&node), quic.clone(), right, output);
    for gateway in gateways {
        beside.spawn(Arc::clone(&membership).keep(gateway, ending.clone()));
    }
    let serving = node.serve(quic.clone(), ending.clone());
    tokio::select! {
        () = ending.cancelled() => {}
        () = node.has_left() => output.say("the node has left the network; all that it kept lies elsewhere"),
    }
    ending.cancel();
    serving.await.context("the node's server ended in a panic")?;
    while beside.join_next().await.is_some() {}
    reporting.await.context("the health report ended in a panic")?;
    node.close().await.context("closing the store failed")?;
    quic.close().await;
    let _ = std::fs::remove_file(args.dir.join(RUNNING_FILE));
    output.say("stopped; everything acknowledged is on disk");
    Ok(ExitCode::SUCCESS)
}

fn announce_ready(running: &RunningFile, args: &NodeRunArgs, file: &NodeFile, output: Output) {
    if args.misbehave.is_some() {
        tracing::warn!("this node is told to be dishonest towards readers; it is good for tests only");
    }
    output.value(&NodeReady {
        event: "ready".into(),
        id: running.id.clone(),
        address: running.address,
        pid: running.pid,
        web: running.web,
    });
    output.say(format!(
        "node {} serves {} on {} (QUIC), offering {}",
        running.id,
        args.dir.display(),
        running.address,
        ByteSize(file.capacity_bytes)
    ));
    if let Some(web) = running.web {
        output.say(format!("  page http://{web}/"));
    }
}

/// Where to listen: as asked; else everywhere if a gateway lies elsewhere, else on this machine.
fn listening(args: &NodeRunArgs, gateways: &[String]) -> SocketAddr {
    let elsewhere = |gateway: &String| way_to(gateway).is_ok_and(|ip| !ip.is_loopback());
    args.listen.unwrap_or(if gateways.iter().any(elsewhere) { LISTEN_ANYWHERE } else { LISTEN_HERE })
}

/// Tells the node where it can be dialled: as asked, what the router opened, the way to the first gateway.
async fn advertise(
    node: &Node,
    args: &NodeRunArgs,
    gateways: &[String],
    listening: SocketAddr,
    output: &Output,
) -> Result<Option<portmap::Mapped>> {
    if !args.advertise.is_empty() {
        node.advertise(args.advertise.clone());
        return Ok(None);
    }
    let Some(gateway) = gateways.first() else {
        node.advertise(vec![listening]);
        return Ok(None);
    };
    if !listening.ip().is_unspecified() {
        node.advertise(vec![listening]);
        return Ok(None);
    }
    let ours = way_to(gateway).ok();
    let mut addresses: Vec<SocketAddr> =
        ours.iter().map(|ip| SocketAddr::new(*ip, listening.port())).collect();
    let mut mapped = None;
    if !args.no_port_mapping && ours.is_some_and(is_behind_a_router) {
        match portmap::open(listening.port()).await {
            Ok(found) => {
                output.say(format!("  the router {found}"));
                addresses.insert(0, found.external);
                mapped = Some(found);
            }
            Err(why) => {
                tracing::info!(why, "the router opens no port; the node dials out if nobody can dial it")
            }
        }
    }
    node.advertise(addresses);
    Ok(mapped)
}

/// Whether the address is one of a private network.
fn is_behind_a_router(ip: IpAddr) -> bool {
    matches!(ip.to_canonical(), IpAddr::V4(ip) if ip.is_private())
}

/// Our own address on the way to a gateway. Connecting a UDP socket sends nothing.
fn way_to(gateway: &str) -> Result<IpAddr> {
    let url = url::Url::parse(gateway).with_context(|| format!("`{gateway}` is not a URL"))?;
    let addresses =
        url.socket_addrs(|| None).with_context(|| format!("cannot find the address of {gateway}"))?;
    let gateway = *addresses.first().with_context(|| format!("{gateway} has no address"))?;
    let any = if gateway.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.connect(gateway).with_context(|| format!("no way leads to {gateway}"))?;
    Ok(socket.local_addr()?.ip())
}

/// `holdfast gateway invite`.
pub(crate) async fn invite(args: &InviteArgs, output: Output) -> Result<ExitCode> {
    let access = Access::resolve(&NetworkArgs { data: args.data.clone(), gateway: None })?;
    let (web, _) = access.admin()?;
    let gateways = if args.gateways.is_empty() { vec![web.to_string()] } else { args.gateways.clone() };
    for gateway in &gateways {
        let url = url::Url::parse(gateway).with_context(|| format!("`{gateway}` is not a URL"))?;
        if url.host_str().is_some_and(|host| host == "0.0.0.0") {
            bail!(
                "nodes cannot dial {gateway}; name the gateway as they see it with --gateway http://HOST:PORT"
            );
        }
    }
    let ask = MakeInvite {
        nodes: args.nodes,
        valid_s: args.valid.0.as_secs(),
        label: args.label.clone(),
        gateways: gateways.clone(),
    };
    let invited: Invited = Admin::of(&access)?.post("api/v1/invites", &ask).await?;
    output.value(&invited);
    output.say(format!("an invite for {} nodes, good for {}:\n", args.nodes, args.valid));
    output.say(&invited.invite);
    output.say("\nits holder runs\n  holdfast node init --dir DIR --capacity 500GB --invite INVITE\n  holdfast node run --dir DIR");
    Ok(ExitCode::SUCCESS)
}

/// Bytes free for us on the disk of `dir`, or of its nearest parent that exists.
pub(crate) fn free_bytes(dir: &Path) -> Result<u64> {
    let mut at = dir;
    loop {
        match rustix::fs::statvfs(at) {
            Ok(stat) => return Ok(stat.f_bavail.saturating_mul(stat.f_frsize)),
            Err(rustix::io::Errno::NOENT) => at = at.parent().unwrap_or_else(|| Path::new(".")),
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot ask for the free space of {}", at.display()));
            }
        }
        if at.as_os_str().is_empty() {
            at = Path::new(".");
        }
    }
}
