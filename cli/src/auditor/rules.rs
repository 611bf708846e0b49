//! A network's audit rules as files: `audit.json` in the network's directory, and in each node's.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use holdfast_proofs::policy::AuditPolicy;
use holdfast_protocol::NodeId;
use holdfast_protocol::transport::Transport;
use holdfast_protocol::transport::quic::QuicTransport;
use holdfast_storage_node::Node;
use holdfast_storage_node::audit::NodeAuditConfig;
use serde::{Deserialize, Serialize};

use super::POLICY_FILE;
use crate::network::write_private;

/// What a node is told about audits.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct NodeRules {
    /// The network's rules.
    policy: AuditPolicy,
    /// Auditors to dial, KEY@ADDRESS.
    #[serde(default)]
    auditors: Vec<String>,
}

/// The rules of the node in `dir`: its `audit.json`, or 20 chunks an hour by drand's quicknet.
pub(crate) fn of_node(dir: &Path) -> Result<NodeAuditConfig> {
    let path = dir.join(POLICY_FILE);
    let rules = match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice::<NodeRules>(&bytes)
            .with_context(|| format!("{} does not hold a node's audit rules", path.display()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            NodeRules { policy: AuditPolicy::hourly(), auditors: Vec::new() }
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    rules.policy.check().with_context(|| path.display().to_string())?;
    let auditors = rules.auditors.iter().map(|text| peer(text)).collect::<Result<_>>()?;
    Ok(NodeAuditConfig { policy: rules.policy, commits: true, auditors })
}

/// Gives the node in `dir` the rules of its network on this machine. What it is told of auditors stays.
pub(crate) fn write_local(dir: &Path, policy: &AuditPolicy) -> Result<()> {
    let path = dir.join(POLICY_FILE);
    let known = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<NodeRules>(&bytes).ok());
    let auditors = known.map(|known| known.auditors).unwrap_or_default();
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    write_private(&path, &serde_json::to_vec_pretty(&NodeRules { policy: policy.clone(), auditors })?)
}

/// `KEY@ADDRESS`, several addresses separated by `/`.
pub(super) fn peer(text: &str) -> Result<(NodeId, Vec<SocketAddr>)> {
    let (key, addresses) = text.split_once('@').with_context(|| format!("`{text}` is not KEY@ADDRESS"))?;
    let key = key.parse().with_context(|| format!("`{key}` is not a node's key"))?;
    let addresses = addresses
        .split('/')
        .map(|address| address.parse().with_context(|| format!("`{address}` is not an address")))
        .collect::<Result<_>>()?;
    Ok((key, addresses))
}

/// Lets a node dial the auditors that its rules name.
pub(crate) fn dial_auditors(node: &Arc<Node>, transport: &Arc<QuicTransport>) {
    for (auditor, addresses) in node.auditors() {
        let transport: Arc<dyn Transport> = transport.clone();
        node.dial_auditor(transport, auditor, addresses);
    }
}
