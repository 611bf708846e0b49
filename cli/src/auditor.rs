//! `holdfast auditor`: the audit that anybody can run and anybody can check again.
//!
//! `run` is an auditor's process, `verify` checks a whole log from nothing but the log, `report` shows what it says.
//! `challenge` is the quick look without any protocol: random chunks straight from the nodes, with a key of its own.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use base64::Engine;
use holdfast_gateway::web::api::{ChallengeAsk, ChallengeTarget, ChallengeTargets};
use holdfast_protocol::record::{Delegation, PresentedGrant, Unverified};
use holdfast_protocol::time::SystemClock;
use holdfast_protocol::transport::Transport;
use holdfast_protocol::transport::quic::{QuicConfig, QuicTransport};
use holdfast_protocol::{BlockLen, NodeId, OperatorId, SigningKey, cbor};
use holdfast_retrieval::block::BlockRef;
use holdfast_retrieval::challenge::{Answer, ChallengeOptions, ChallengeReport, Challenger, Target};
use holdfast_retrieval::placement::FailureDomain;
use holdfast_retrieval::pool::{KnownNode, NodePool, PoolConfig};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::args::ChallengeArgs;
use crate::client::Admin;
use crate::network::Access;
use crate::output::Output;

mod beacon;
mod cosign;
mod inbound;
mod logdir;
mod page;
mod process;
mod rules;
mod run;
mod verify;
mod web;

pub(crate) use process::{Local, run};
pub(crate) use rules::{dial_auditors, of_node, write_local};
pub(crate) use verify::{report, verify};

/// The rules of a network, in a network's or a node's directory.
pub(crate) const POLICY_FILE: &str = "audit.json";

/// Blocks that the gateway names per node; chunks are drawn over the bytes of these.
const BLOCKS_PER_NODE: u32 = 512;

/// `holdfast auditor challenge`.
pub(crate) async fn challenge(args: ChallengeArgs, output: Output) -> Result<ExitCode> {
    let report = challenge_all(&Access::resolve(&args.network)?, args.chunks).await?;
    show(&report, output);
    report.nodes.iter().for_each(|node| output.value(node));
    if report.nodes.is_empty() {
        output.say("nothing is stored yet, so there is nothing to challenge");
    }
    Ok(if report.all_passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Challenges every node of a network for `chunks` chunks.
pub(crate) async fn challenge_all(access: &Access, chunks: u32) -> Result<ChallengeReport> {
    let key = Arc::new(SigningKey::generate()?);
    let ask = ChallengeAsk {
        holder: NodeId(key.public()).to_string(),
        blocks_per_node: BLOCKS_PER_NODE,
        with_parity: true,
    };
    let found: ChallengeTargets = Admin::of(access)?.post("api/v1/challenge", &ask).await?;
    let transport = QuicTransport::bind(QuicConfig::new(SocketAddr::from(([0, 0, 0, 0], 0)), key))
        .context("cannot open a QUIC socket")?;
    let software = concat!("holdfast-auditor/", env!("CARGO_PKG_VERSION"));
    let transport: Arc<dyn Transport> = transport;
    let pool = NodePool::new(PoolConfig::new(Arc::clone(&transport), software, Arc::new(SystemClock)));
    if let Some(text) = &found.delegation {
        pool.set_delegation(decoded::<Unverified<Delegation>>(text).context("the gateway's delegation")?);
    }
    for node in &found.nodes {
        let id: NodeId = node.id.parse().context("the gateway named a node by what is no key")?;
        pool.upsert(KnownNode {
            id,
            addresses: node.addresses.clone(),
            agreement: None,
            domain: FailureDomain::new(OperatorId(id.key()), &node.addresses, 0),
            capacity_bytes: 0,
            free_bytes: 0,
            accepts_writes: false,
        })?;
    }
    let targets: Vec<Target> = found.targets.iter().map(target).collect::<Result<_>>()?;
    let options = ChallengeOptions { chunks_per_node: chunks as usize, ..ChallengeOptions::default() };
    let report = Challenger::new(pool, options).run(&targets, unheard).await?;
    transport.close().await;
    Ok(report)
}

/// Single answers are of no interest here: the report has every miss.
fn unheard(_: &Answer) {}

fn target(named: &ChallengeTarget) -> Result<Target> {
    let grant = match &named.grant {
        None => None,
        Some(text) => Some(Box::new(decoded::<PresentedGrant>(text).context("the gateway's grant")?)),
    };
    Ok(Target {
        node: named.node.parse().context("the gateway named a node by what is no key")?,
        block: BlockRef { digest: named.digest.parse()?, len: BlockLen::new(named.len)? },
        grant,
    })
}

/// A record from base64 of its wire bytes.
fn decoded<T: Serialize + DeserializeOwned>(text: &str) -> Result<T> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).context("it is not base64")?;
    cbor::decode(&bytes).context("it cannot be read")
}

/// One line a node.
pub(crate) fn show(report: &ChallengeReport, output: Output) {
    for node in &report.nodes {
        let verdict = if node.passed == node.asked {
            "proved"
        } else if node.failed > 0 {
            "FAILED"
        } else {
            "not reached"
        };
        output.say(format!(
            "   {}…  {verdict:11}  {:>3} of {} chunks, {} wrong, {} unreachable, p50 {:.1} ms",
            node.node.to_string().chars().take(16).collect::<String>(),
            node.passed,
            node.asked,
            node.failed,
            node.unreachable,
            node.micros_p50 as f64 / 1000.0
        ));
        for miss in node.misses.iter().filter(|miss| miss.verdict.failed()).take(3) {
            output.say(format!("      chunk {} of {}: {:?}", miss.chunk, miss.digest, miss.verdict));
        }
    }
}
