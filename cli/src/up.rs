//! `up`: a whole network on this machine, in one process or with the nodes as processes of their own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use holdfast_gateway::{GatewayConfig, SeedNode};
use holdfast_protocol::NamespaceId;
use holdfast_protocol::record::Policy;
use holdfast_protocol::transport::Transport;
use holdfast_protocol::transport::first_of::FirstOf;
use holdfast_protocol::transport::memory::MemoryNetwork;
use holdfast_storage_node::Node;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::args::UpArgs;
use crate::auditor;
use crate::gateway;
use crate::network::NodeEntry;
use crate::node::{self, NodeFile, NodeReady};
use crate::output::Output;
use crate::signals::stop_token;
use crate::sizes::ByteSize;

/// A child that does not say that it serves within this time has failed.
const CHILD_START: Duration = Duration::from_secs(60);
/// How long children get to finish after their standard input ended.
const CHILD_STOP: Duration = Duration::from_secs(20);
/// The least that a node of a local network offers by itself.
const CAPACITY_MIN: u64 = 256 * 1024 * 1024;

/// `holdfast up`.
pub(crate) async fn run(args: UpArgs, output: Output) -> Result<ExitCode> {
    let stop = stop_token(args.stop_on_stdin_eof)?;
    let policy = gateway::policy(args.policy)?;
    if usize::from(args.nodes) < policy.n() {
        bail!(
            "policy {} needs {} nodes, {} were asked for; give --nodes {} or the smaller policy `local`",
            policy.name,
            policy.n(),
            args.nodes,
            policy.n()
        );
    }
    let keys = gateway::keys(&args.data, "up")?;
    let namespace = keys.namespace_id();
    let dirs = node_dirs(&args)?;
    let capacity = capacity(&args, &dirs)?;
    let quic = gateway::quic(SocketAddr::from(([127, 0, 0, 1], 0)), &keys)?;
    let auditing = auditor::Local::prepare(&args.data, args.epoch.0, args.auditor_listen).await?;
    for dir in &dirs {
        auditor::write_local(dir, auditing.policy())?;
    }
    let memory = MemoryNetwork::new();
    // The nodes outlive the gateway's drain, so that requests in flight find them.
    let stop_nodes = CancellationToken::new();
    let mut nodes = if args.separate_nodes {
        LocalNodes::start_processes(&args, &dirs, capacity, namespace).await?
    } else {
        LocalNodes::start_inside(&args, &dirs, capacity, &memory, namespace, &stop_nodes).await?
    };
    let transport: Arc<dyn Transport> =
        if args.separate_nodes { Arc::clone(&quic) } else { FirstOf::new(memory.clone(), Arc::clone(&quic)) };
    let mut config = GatewayConfig::new(args.data.clone(), keys, transport);
    config.policy = policy;
    config.repair = args.repair.policy();
    config.s3_listen = args.s3_listen;
    config.s3_domains.clone_from(&args.s3_domain);
    config.s3_tls = gateway::tls(&args.tls);
    config.web_listen = args.web_listen;
    gateway::meta(&mut config, &args.meta)?;
    config.seeds = nodes.seeds()?;
    let outcome = match gateway::open(config, nodes.entries.clone()).await {
        Ok(mut opened) => {
            opened.network.auditor = Some(auditing.page.clone());
            opened.network.write(&args.data)?;
            let running = opened.run(stop.clone(), |opened| announce(opened, &args, policy, output));
            // Dropped with the gateway's end, whatever that was.
            tokio::select! {
                outcome = running => outcome,
                never = audit(auditing, &nodes.entries, stop.clone()) => match never {},
            }
        }
        Err(error) => Err(error),
    };
    output.say("stopping");
    stop_nodes.cancel();
    nodes.stop().await;
    quic.close().await;
    outcome?;
    output.say("stopped; everything acknowledged is kept, and the next start finds it");
    Ok(ExitCode::SUCCESS)
}

/// Audits until the network ends. A network whose auditor has failed goes on serving.
async fn audit(
    auditing: auditor::Local,
    nodes: &[NodeEntry],
    stop: CancellationToken,
) -> std::convert::Infallible {
    if let Err(error) = auditing.run(nodes, stop).await {
        tracing::error!(
            error = format!("{error:#}"),
            "the auditor has stopped; nobody audits until the next start"
        );
    }
    std::future::pending().await
}

fn announce(opened: &gateway::Opened, args: &UpArgs, policy: Policy, output: Output) {
    output.value(&serde_json::json!({
        "event": "ready",
        "network": opened.network,
        "credentials": opened.credentials,
        "policy": policy.name,
    }));
    let place = if args.separate_nodes { "as processes of their own, over QUIC" } else { "in this process" };
    output.say(format!(
        "Holdfast is up: {} nodes {place}, policy {}",
        opened.network.nodes.len(),
        describe(policy)
    ));
    output.say(format!("  S3           {}", opened.network.s3));
    if let Some(line) = opened.tls_line() {
        output.say(line);
    }
    output.say(format!("  web          {}", opened.network.web));
    if let Some(page) = &opened.network.auditor {
        output.say(format!("  auditor      {page} (beacon: not independent)"));
    }
    output.say(format!("  credentials  {} (profile holdfast)", opened.credentials.display()));
    output.say(format!("  try          {}", opened.try_next()));
    output.say("Ctrl-C stops it; the next start finds everything again.");
}

fn describe(policy: Policy) -> String {
    let survives = match policy.name {
        holdfast_protocol::record::PolicyName::Local => "any 2 disks may fail; all belong to one operator",
        _ => "shards lie with different operators and networks",
    };
    format!("{} ({}+{}, {survives})", policy.name, policy.k, policy.m)
}

/// The directories of the nodes: as many as were asked for, and all that there are.
fn node_dirs(args: &UpArgs) -> Result<Vec<PathBuf>> {
    let root = args.data.join("nodes");
    std::fs::create_dir_all(&root).with_context(|| format!("cannot create {}", root.display()))?;
    let wanted = (0..usize::from(args.nodes)).map(|index| root.join(format!("{index:02}")));
    let beyond = (usize::from(args.nodes)..)
        .map(|index| root.join(format!("{index:02}")))
        .take_while(|dir| dir.exists());
    Ok(wanted.chain(beyond).collect())
}

/// What each new node offers: what was asked, or its share of nine tenths of the free disk.
fn capacity(args: &UpArgs, dirs: &[PathBuf]) -> Result<Option<u64>> {
    if let Some(capacity) = args.capacity {
        return Ok(Some(capacity.0));
    }
    let new = dirs.iter().filter(|dir| !dir.join("node.json").exists()).count() as u64;
    if new == 0 {
        return Ok(None);
    }
    let share = node::free_bytes(&args.data)? / 10 * 9 / new;
    if share < CAPACITY_MIN {
        bail!(
            "the disk of {} has too little room for {new} nodes ({} each); free some, or choose another --data",
            args.data.display(),
            ByteSize(share)
        );
    }
    Ok(Some(share))
}

/// The nodes of this network, wherever they run.
struct LocalNodes {
    entries: Vec<NodeEntry>,
    inside: Vec<(Arc<Node>, Vec<JoinHandle<()>>)>,
    children: Vec<Child>,
}

impl LocalNodes {
    async fn start_inside(
        args: &UpArgs,
        dirs: &[PathBuf],
        capacity: Option<u64>,
        memory: &MemoryNetwork,
        namespace: NamespaceId,
        stop: &CancellationToken,
    ) -> Result<Self> {
        let mut nodes = Self { entries: Vec::new(), inside: Vec::new(), children: Vec::new() };
        for (index, dir) in dirs.iter().enumerate() {
            let file = NodeFile::find_or_make(dir, capacity.filter(|_| is_new(dir, args)), None)?;
            let node = node::open(dir, &file, None, Vec::new()).await?;
            node.admit(namespace);
            let quic = node::listen(&node, node_address(args, index)?)?;
            let address = quic.local_addr().context("the QUIC socket has no address")?;
            node.advertise(vec![address]);
            let inside: Arc<dyn Transport> = memory.join(node.id());
            let serving = vec![
                node.serve(inside, stop.clone()),
                node.serve(quic, stop.clone()),
                node::inside::serve_web(&node, dir, address, stop.clone()).await?,
            ];
            let (id, pid) = (node.id().to_string(), std::process::id());
            nodes.entries.push(NodeEntry { id, dir: dir.clone(), address, pid });
            nodes.inside.push((node, serving));
        }
        Ok(nodes)
    }

    async fn start_processes(
        args: &UpArgs,
        dirs: &[PathBuf],
        capacity: Option<u64>,
        namespace: NamespaceId,
    ) -> Result<Self> {
        let mut nodes = Self { entries: Vec::new(), inside: Vec::new(), children: Vec::new() };
        let mut starting = Vec::new();
        for (index, dir) in dirs.iter().enumerate() {
            NodeFile::find_or_make(dir, capacity.filter(|_| is_new(dir, args)), None)?;
            starting.push((dir, spawn_node(dir, node_address(args, index)?, namespace)?));
        }
        for (dir, mut child) in starting {
            let ready = wait_ready(&mut child)
                .await
                .with_context(|| format!("the node in {} did not start", dir.display()))?;
            nodes.entries.push(NodeEntry {
                id: ready.id,
                dir: dir.clone(),
                address: ready.address,
                pid: ready.pid,
            });
            nodes.children.push(child);
        }
        Ok(nodes)
    }

    fn seeds(&self) -> Result<Vec<SeedNode>> {
        let seed = |entry: &NodeEntry| Ok(SeedNode { id: entry.id.parse()?, addresses: vec![entry.address] });
        self.entries.iter().map(seed).collect()
    }

    /// Lets every node finish what it does and close its store.
    async fn stop(&mut self) {
        for (node, serving) in self.inside.drain(..) {
            for task in serving {
                if let Err(error) = task.await {
                    tracing::error!(%error, "a node's server ended in a panic");
                }
            }
            if let Err(error) = node.close().await {
                tracing::error!(error = %error, node = %node.id(), "closing a store failed; its tail is replayed at the next start");
            }
        }
        for child in &mut self.children {
            drop(child.stdin.take());
        }
        for child in &mut self.children {
            if tokio::time::timeout(CHILD_STOP, child.wait()).await.is_err() {
                tracing::warn!(
                    pid = child.id(),
                    "a node did not stop in time and is killed; it loses nothing acknowledged"
                );
                let _ = child.kill().await;
            }
        }
    }
}

/// A given `--capacity` applies to every node; a share of the disk only to those that are made now.
fn is_new(dir: &Path, args: &UpArgs) -> bool {
    args.capacity.is_some() || !dir.join("node.json").exists()
}

fn node_address(args: &UpArgs, index: usize) -> Result<SocketAddr> {
    if args.quic_port == 0 {
        return Ok(SocketAddr::from(([127, 0, 0, 1], 0)));
    }
    let port = usize::from(args.quic_port) + index;
    let port = u16::try_from(port).context("--quic-port leaves too few ports for the nodes")?;
    Ok(SocketAddr::from(([127, 0, 0, 1], port)))
}

/// Starts `holdfast node run` on `dir`. It stops when its standard input ends, so it never outlives us.
fn spawn_node(dir: &Path, address: SocketAddr, namespace: NamespaceId) -> Result<Child> {
    let program = std::env::current_exe().context("cannot find our own program")?;
    Command::new(program)
        .args(["--json", "node", "run", "--stop-on-stdin-eof", "--listen", &address.to_string(), "--dir"])
        .arg(dir)
        .args(["--admit", &namespace.to_string()])
        .env_remove("HOLDFAST_JOIN")
        .env_remove("HOLDFAST_INVITE")
        .env_remove("HOLDFAST_CAPACITY")
        .env_remove("HOLDFAST_NODE_ADVERTISE")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // Ctrl-C is for us alone: the nodes serve until the gateway has drained.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start a node process for {}", dir.display()))
}

async fn wait_ready(child: &mut Child) -> Result<NodeReady> {
    let stdout = child.stdout.take().context("the child has no standard output")?;
    let mut lines = BufReader::new(stdout).lines();
    let line = tokio::time::timeout(CHILD_START, lines.next_line())
        .await
        .with_context(|| format!("it said nothing within {} s", CHILD_START.as_secs()))??
        .context("it ended at once; its message stands above")?;
    // Later lines are of no interest, but a full pipe would stop the child.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    serde_json::from_str(&line).with_context(|| format!("it said `{line}`"))
}
