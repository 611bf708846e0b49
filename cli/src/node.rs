//! `node init`, `node run`, `node status`: one storage node as a process of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use holdfast_protocol::message::NodeStatus;
use holdfast_protocol::rpc::{HelloParams, Peer};
use holdfast_protocol::time::{Clock, SystemClock};
use holdfast_protocol::transport::Transport;
use holdfast_protocol::transport::quic::{QuicConfig, QuicTransport, Threading};
use holdfast_protocol::{NamespaceId, NodeId, OperatorId, SigningKey};
use holdfast_storage_node::{Admission, Node, NodeConfig};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::args::{NodeInitArgs, NodeRunArgs, NodeStatusArgs};
use crate::client::Admin;
use crate::network::write_private;
use crate::output::Output;
use crate::signals::stop_token;
use crate::sizes::ByteSize;

/// What `node init` fixes, kept in `DIR/node.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NodeFile {
    /// Bytes offered.
    pub(crate) capacity_bytes: u64,
    /// Who runs it; the node's own key when absent.
    pub(crate) operator: Option<OperatorId>,
}

/// What a running node leaves in `DIR/running.json`, for `node status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct RunningFile {
    id: String,
    address: SocketAddr,
    pid: u32,
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
}

const NODE_FILE: &str = "node.json";
const RUNNING_FILE: &str = "running.json";
/// Less could not hold one extent's worth of blocks with their headers.
const CAPACITY_MIN: u64 = 64 * 1024 * 1024;
/// How often a running node tells its gateway where it is.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(3600);
/// The longest pause between attempts to reach a gateway that does not answer.
const ANNOUNCE_RETRY_MAX: Duration = Duration::from_secs(60);

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
                    write_private(&path, &serde_json::to_vec_pretty(&found)?)?;
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
                if capacity_bytes < CAPACITY_MIN {
                    bail!(
                        "{} is too little to offer; at least {}",
                        ByteSize(capacity_bytes),
                        ByteSize(CAPACITY_MIN)
                    );
                }
                std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
                let made = Self { capacity_bytes, operator };
                write_private(&path, &serde_json::to_vec_pretty(&made)?)?;
                Ok(made)
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }
}

/// `holdfast node init`.
pub(crate) async fn init(args: &NodeInitArgs, output: Output) -> Result<ExitCode> {
    let operator =
        args.operator.as_deref().map(str::parse::<OperatorId>).transpose().context("--operator")?;
    if args.dir.join(NODE_FILE).exists() {
        bail!(
            "{} already holds a node; `holdfast node run --dir {}` starts it",
            args.dir.display(),
            args.dir.display()
        );
    }
    let file = NodeFile::find_or_make(&args.dir, Some(args.capacity.0), operator)?;
    let free = free_bytes(&args.dir)?;
    let node = open(&args.dir, &file, None, Vec::new()).await?;
    let id = node.id();
    node.close().await.context("closing the new store failed")?;
    output.value(
        &serde_json::json!({ "id": id.to_string(), "capacity_bytes": file.capacity_bytes, "dir": args.dir }),
    );
    output.say(format!("node {id}\n  offers {} in {}", ByteSize(file.capacity_bytes), args.dir.display()));
    if free < file.capacity_bytes {
        output.say(format!(
            "  mind: only {} are free on that disk now; writes are refused before it is full",
            ByteSize(free)
        ));
    }
    output.say(format!(
        "  next: holdfast node run --dir {} --join http://GATEWAY:8080 --token-file TOKEN",
        args.dir.display()
    ));
    Ok(ExitCode::SUCCESS)
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
    config.audit = Some(crate::auditor::of_node(dir)?);
    if let Some(args) = args {
        config.trash_period_ms = args.trash_period_s.saturating_mul(1000);
        crate::node_disks::configure(&mut config, args);
        if !args.admit.is_empty() {
            let listed: Result<Vec<NamespaceId>, _> = args.admit.iter().map(|key| key.parse()).collect();
            config.admit = Admission::Listed(listed.context("--admit")?);
        }
        config.misbehave = args.misbehave.as_deref().map(str::parse).transpose()?;
    }
    Node::open(config).await.with_context(|| format!("cannot open the node in {}", dir.display()))
}

/// Binds the node's QUIC endpoint.
pub(crate) fn listen(node: &Node, address: SocketAddr) -> Result<Arc<QuicTransport>> {
    let mut config = QuicConfig::new(address, node.key());
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
pub(crate) async fn run(args: NodeRunArgs, output: Output) -> Result<ExitCode> {
    let stop = stop_token(args.stop_on_stdin_eof)?;
    let file = NodeFile::find_or_make(&args.dir, args.capacity.map(|size| size.0), None)?;
    let node = open(&args.dir, &file, Some(&args), Vec::new()).await?;
    let quic = listen(&node, args.listen)?;
    let address = quic.local_addr().context("the QUIC socket has no address")?;
    let advertised = advertised(&args, address)?;
    node.advertise(advertised);
    let running = RunningFile { id: node.id().to_string(), address, pid: std::process::id() };
    write_private(&args.dir.join(RUNNING_FILE), &serde_json::to_vec(&running)?)?;
    if args.misbehave.is_some() {
        tracing::warn!("this node is told to be dishonest towards readers; it is good for tests only");
    }
    output.value(&NodeReady { event: "ready".into(), id: running.id.clone(), address, pid: running.pid });
    output.say(format!(
        "node {} serves {} on {address} (QUIC), offering {}",
        running.id,
        args.dir.display(),
        ByteSize(file.capacity_bytes)
    ));
    let reporting = crate::node_disks::report_health(&node, &args.dir, stop.clone());
    let announcing = args.join.as_ref().map(|gateway| {
        let token = args.token_file.clone();
        tokio::spawn(announce(Arc::clone(&node), gateway.clone(), token, output, stop.clone()))
    });
    crate::auditor::dial_auditors(&node, &quic);
    node.serve(quic, stop.clone()).await.context("the node's server ended in a panic")?;
    if let Some(task) = announcing {
        task.abort();
    }
    reporting.await.context("the health report ended in a panic")?;
    node.close().await.context("closing the store failed")?;
    let _ = std::fs::remove_file(args.dir.join(RUNNING_FILE));
    output.say("stopped; everything acknowledged is on disk");
    Ok(ExitCode::SUCCESS)
}

/// The addresses told to others: what was asked, or where we listen, made concrete by the way to the gateway.
fn advertised(args: &NodeRunArgs, listening: SocketAddr) -> Result<Vec<SocketAddr>> {
    if !args.advertise.is_empty() {
        return Ok(args.advertise.clone());
    }
    let Some(join) = &args.join else { return Ok(vec![listening]) };
    let gateway = url::Url::parse(join).with_context(|| format!("`{join}` is not a URL"))?;
    let gateway =
        gateway.socket_addrs(|| None).with_context(|| format!("cannot find the address of {join}"))?;
    let gateway = *gateway.first().with_context(|| format!("{join} has no address"))?;
    if listening.ip().is_loopback() && !gateway.ip().is_loopback() {
        bail!(
            "a gateway elsewhere cannot dial {listening}; listen on the network, for example --listen 0.0.0.0:7400"
        );
    }
    if !listening.ip().is_unspecified() {
        return Ok(vec![listening]);
    }
    // Connecting a UDP socket sends nothing; it only asks the system which of our addresses leads there.
    let any = if gateway.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let way = std::net::UdpSocket::bind(any).and_then(|socket| {
        socket.connect(gateway)?;
        socket.local_addr()
    });
    let way = way.with_context(|| format!("no way leads to {gateway}; name our address with --advertise"))?;
    Ok(vec![SocketAddr::new(way.ip(), listening.port())])
}

/// Tells a gateway of this node at start and every hour, for as long as it takes.
async fn announce(
    node: Arc<Node>,
    gateway: String,
    token_file: Option<PathBuf>,
    output: Output,
    stop: CancellationToken,
) {
    let mut pause = Duration::from_secs(1);
    let mut announced = false;
    while !stop.is_cancelled() {
        match announce_once(&node, &gateway, token_file.as_deref()).await {
            Ok(()) => {
                if !announced {
                    output.say(format!("joined {gateway}"));
                    output.value(&serde_json::json!({ "event": "joined", "gateway": gateway }));
                }
                announced = true;
                pause = ANNOUNCE_EVERY;
            }
            Err(error) => {
                tracing::warn!(
                    gateway,
                    error = format!("{error:#}"),
                    "cannot join the gateway; trying again"
                );
                pause = if announced { Duration::from_secs(1) } else { (pause * 2).min(ANNOUNCE_RETRY_MAX) };
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn announce_once(node: &Node, gateway: &str, token_file: Option<&Path>) -> Result<()> {
    let token = match token_file {
        Some(path) => {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
        }
        None => String::new(),
    };
    let base = url::Url::parse(gateway).with_context(|| format!("`{gateway}` is not a URL"))?;
    let record = holdfast_protocol::cbor::encode(&node.record(SystemClock.now_ms()).to_wire());
    let admin = Admin::new(base, token.trim().to_owned());
    let _: serde_json::Value =
        admin.post("api/v1/nodes", &holdfast_gateway::web::api::AddNode::from_wire_bytes(&record)).await?;
    Ok(())
}

/// `holdfast node status`.
pub(crate) async fn status(args: &NodeStatusArgs, output: Output) -> Result<ExitCode> {
    let path = args.dir.join(RUNNING_FILE);
    let bytes = std::fs::read(&path).with_context(|| {
        format!("no node runs in {} (cannot read {})", args.dir.display(), path.display())
    })?;
    let running: RunningFile =
        serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
    let id: NodeId = running.id.parse().with_context(|| format!("{} is damaged", path.display()))?;
    let status = ask_status(id, running.address).await?;
    output.value(&crate::node_disks::with_health(&status, &args.dir));
    output.say(format!("node {id}\n  listens on   {} (process {})", running.address, running.pid));
    let lines = [
        ("capacity", status.capacity_bytes),
        ("used", status.used_bytes),
        ("trash", status.trash_bytes),
        ("garbage", status.garbage_bytes),
        ("free", status.free_bytes),
        ("paid", status.paid_bytes),
    ];
    for (name, bytes) in lines {
        output.say(format!("  {name:12} {:>12}  {bytes:>18} bytes", ByteSize(bytes).to_string()));
    }
    output.say(format!("  blocks       {:>12}\n  agreements   {:>12}", status.blocks, status.agreements));
    crate::node_disks::say_health(&args.dir, output);
    if !status.refusing_writes.is_empty() {
        output.say(format!("  refuses writes: {}", status.refusing_writes));
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks a node for its counters, with a key made for the occasion.
async fn ask_status(id: NodeId, address: SocketAddr) -> Result<NodeStatus> {
    let key = Arc::new(SigningKey::generate()?);
    // Dropping the transport closes its connections: it outlives the question.
    let quic = QuicTransport::bind(QuicConfig::new(SocketAddr::from(([0, 0, 0, 0], 0)), key))?;
    let connection = quic.dial(id, &[address]).await?;
    let hello = HelloParams {
        delegation: None,
        node_record: None,
        software: concat!("holdfast/", env!("CARGO_PKG_VERSION")).to_owned(),
        now_ms: SystemClock.now_ms(),
    };
    let (peer, _) = Peer::hello(connection, hello).await?;
    let status = peer.status().await.context("the node did not tell its status")?;
    quic.close().await;
    Ok(status)
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
