//! A node inside another process, as `holdfast up` runs them: its operator finds its page, its status and its switches
//! where those of a node of its own process are.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use holdfast_storage_node::Node;
use holdfast_storage_node::web::ControlToken;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{RUNNING_FILE, RunningFile, write_private};

/// Serves the web side of a node that listens for peers at `address`, on this machine only, and says in the node's
/// directory where it is. The task ends after `stop`. Its `/metrics` are the process's, elsewhere.
pub(crate) async fn serve_web(
    node: &Arc<Node>,
    dir: &Path,
    address: SocketAddr,
    stop: CancellationToken,
) -> Result<JoinHandle<()>> {
    let token = ControlToken::make(dir).context("cannot write the control token")?;
    let web = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .context("cannot listen for a node's page")?;
    let file = dir.join(RUNNING_FILE);
    let running = RunningFile {
        id: node.id().to_string(),
        address,
        pid: std::process::id(),
        web: Some(web.local_addr()?),
    };
    write_private(&file, &serde_json::to_vec(&running)?)?;
    let reporting = crate::node_disks::report_health(node, dir, stop.clone());
    let node = Arc::clone(node);
    Ok(tokio::spawn(async move {
        if let Err(error) = holdfast_storage_node::web::serve(node, web, token, None, stop).await {
            tracing::warn!(%error, "a node's web side ended");
        }
        if let Err(error) = reporting.await {
            tracing::warn!(%error, "a node's health report ended in a panic");
        }
        let _ = std::fs::remove_file(file);
    }))
}
