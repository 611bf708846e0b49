//! What a node does about audits by itself: commits at the start of each epoch, and keeps a connection to its auditors.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::rpc::{HelloParams, Peer};
use holdfast_protocol::transport::Transport;
use holdfast_protocol::{NodeId, SigningKey};

use super::NodeAudit;
use super::store::{NodeStore, StoreSource};
use crate::node::config::Misbehaviour;
use crate::node::{Node, NodeConfig, OpenNodeError, SOFTWARE};
use crate::server::link;

/// The longest pause before a failed commitment is tried again.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Between attempts to reach an auditor, doubled up to [`DIAL_PAUSE_MAX`].
const DIAL_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between attempts.
const DIAL_PAUSE_MAX: Duration = Duration::from_secs(300);

/// Opens the audit's files of a node, if it is audited.
pub(crate) async fn open(
    config: &NodeConfig,
    dir: &Path,
    key: &Arc<SigningKey>,
    store: &Arc<NodeStore>,
) -> Result<Option<Arc<NodeAudit>>, OpenNodeError> {
    let Some(audit) = &config.audit else { return Ok(None) };
    let (dir, key, policy) = (dir.join("audit"), key.clone(), audit.policy.clone());
    let source = Arc::new(StoreSource::new(store.clone()));
    let opened = tokio::task::spawn_blocking(move || NodeAudit::open(&dir, key, policy, source)).await;
    let audit = opened.map_err(|_| OpenNodeError::Interrupted)?;
    let mut audit = audit.map_err(|source| OpenNodeError::Audit { source })?;
    if config.misbehave == Some(Misbehaviour::FlipBit) {
        audit = audit.misbehaving();
    }
    Ok(Some(Arc::new(audit)))
}

impl Node {
    /// The node's side of audits, if it takes part.
    pub fn audit(&self) -> Option<&Arc<NodeAudit>> {
        self.audit.as_ref()
    }

    /// The auditors that the node is told to dial.
    pub fn auditors(&self) -> Vec<(NodeId, Vec<SocketAddr>)> {
        self.config.audit.as_ref().map(|audit| audit.auditors.clone()).unwrap_or_default()
    }

    /// Commits at the start of each epoch, until the node stops.
    pub(crate) fn start_audit(self: Arc<Self>) {
        let commits = self.config.audit.as_ref().is_some_and(|audit| audit.commits);
        let Some(audit) = self.audit.clone().filter(|_| commits) else { return };
        let node = self.clone();
        self.tasks.spawn(async move {
            let retry = Duration::from_millis((audit.policy().commit_ms / 8).max(10)).min(RETRY_MAX);
            let mut pause = Duration::ZERO;
            while node.pause(pause).await {
                let now_ms = node.now_ms();
                let next_ms = audit.policy().start_of(audit.policy().epoch_at(now_ms) + 1);
                pause = Duration::from_millis(next_ms.saturating_sub(now_ms).max(1));
                match audit.commit(now_ms).await {
                    Ok(Some(report)) => tracing::debug!(?report, "committed to the inventory"),
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(%error, "cannot commit to the inventory; trying again");
                        pause = retry;
                    }
                }
            }
        });
    }

    /// Dials an auditor and keeps the connection, so that it can ask a node that it cannot dial. Until the node stops.
    pub fn dial_auditor(
        self: &Arc<Self>,
        transport: Arc<dyn Transport>,
        auditor: NodeId,
        addresses: Vec<SocketAddr>,
    ) {
        let node = self.clone();
        self.tasks.spawn(async move {
            let mut pause = Duration::ZERO;
            while node.pause(pause).await {
                pause = (pause * 2).clamp(DIAL_PAUSE, DIAL_PAUSE_MAX);
                let connection = match transport.dial(auditor, &addresses).await {
                    Ok(connection) => connection,
                    Err(error) => {
                        tracing::debug!(%auditor, %error, "the auditor cannot be reached; trying again");
                        continue;
                    }
                };
                let serving = link::serve(node.clone(), connection.clone(), node.stopping.child_token());
                let hello = HelloParams {
                    delegation: None,
                    node_record: Some(node.record(node.now_ms()).to_wire()),
                    software: SOFTWARE.to_owned(),
                    now_ms: node.now_ms(),
                };
                // Served from the start: the auditor says Hello as soon as it has heard ours.
                let greeting = Peer::hello(connection, hello);
                let (greeted, ()) = futures::join!(greeting, serving);
                match greeted {
                    Ok(_) => pause = DIAL_PAUSE,
                    Err(error) => tracing::debug!(%auditor, %error, "the auditor does not take us in"),
                }
            }
        });
    }
}
