//! How fast repair moves bytes, and how many: a network with data on it loses a node, a fresh one joins, and the
//! missing shards are rebuilt at full speed. Compared with the PUT that stored the data.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::client::Endpoint;
use crate::load;
use crate::network::{Mode, Network, Plan};
use crate::pattern::Pattern;
use crate::s3::{Payload, Server, Session};
use crate::{BUCKET, SEED};

/// Bytes of the object that is stored; of a quick run.
const STORED: u64 = 2 * 1024 * 1024 * 1024;
const STORED_QUICK: u64 = 256 * 1024 * 1024;
/// Data shards of policy `local`: what each repair reads.
const K: u64 = 4;
/// The part of PUT's rate that repair must reach.
const RATE_MIN: f64 = 0.7;
/// A node must have joined within this time.
const JOIN_MAX: Duration = Duration::from_secs(60);

/// What was found.
#[derive(Debug, Serialize)]
pub(crate) struct RepairResult {
    put_bytes: u64,
    put_seconds: f64,
    /// Bytes of shards that the PUT moved to nodes: the object's, and its parity.
    put_moved_per_second: f64,
    repair_seconds: f64,
    stripes_repaired: u64,
    shards_rebuilt: u64,
    bytes_read: u64,
    bytes_written: u64,
    /// Bytes read and written a second.
    repair_moved_per_second: f64,
    /// Repair's rate over PUT's, both as bytes moved between gateway and nodes.
    ratio: f64,
    /// Whole blocks moved per repaired stripe.
    blocks_per_stripe: f64,
    /// What that may be at most: k and the lost ones.
    blocks_per_stripe_max: f64,
    met: bool,
}

/// Runs it in `folder`.
pub(crate) async fn run(binary: &Path, folder: &Path, quick: bool) -> Result<RepairResult> {
    let data = folder.join("data");
    let plan = Plan { binary: binary.to_path_buf(), data: data.clone(), mode: Mode::Separate, meta: None };
    let network = Network::start(&plan).await?;
    let server = Arc::new(Server {
        endpoint: Endpoint::plain(network.s3),
        credentials: network.credentials.clone(),
        bucket: BUCKET.to_owned(),
        pattern: Pattern::new(SEED),
    });
    Session::new(&server).create_bucket().await?;
    let len = if quick { STORED_QUICK } else { STORED };
    let start = Instant::now();
    load::put_stream(&server, "repair.bin", len, Payload::Unsigned, 1).await?;
    let put = start.elapsed();
    let _fresh = join(binary, &data, &folder.join("fresh")).await?;
    kill_first(&data)?;
    let start = Instant::now();
    let report = repair(binary, &data).await?;
    let elapsed = start.elapsed();
    network.stop().await?;
    judge(len, put, elapsed, &report)
}

#[allow(clippy::cast_precision_loss, reason = "rates")]
fn judge(len: u64, put: Duration, repair: Duration, report: &Value) -> Result<RepairResult> {
    let figure = |name: &str| report[name].as_u64().with_context(|| format!("the report has no {name}"));
    let (read, written) = (figure("bytes_read")?, figure("bytes_written")?);
    let (stripes, shards) = (figure("stripes_repaired")?, figure("shards_rebuilt")?);
    ensure!(stripes > 0 && shards > 0, "nothing was repaired: {report}");
    let block = 1024.0 * 1024.0;
    let put_rate = len as f64 * 1.5 / put.as_secs_f64();
    let repair_rate = (read + written) as f64 / repair.as_secs_f64();
    let blocks = (read + written) as f64 / block / stripes as f64;
    let most = K as f64 + shards as f64 / stripes as f64;
    Ok(RepairResult {
        put_bytes: len,
        put_seconds: put.as_secs_f64(),
        put_moved_per_second: put_rate,
        repair_seconds: repair.as_secs_f64(),
        stripes_repaired: stripes,
        shards_rebuilt: shards,
        bytes_read: read,
        bytes_written: written,
        repair_moved_per_second: repair_rate,
        ratio: repair_rate / put_rate,
        blocks_per_stripe: blocks,
        blocks_per_stripe_max: most,
        met: repair_rate >= RATE_MIN * put_rate && blocks <= most + 1e-6,
    })
}

/// One more node.
async fn join(binary: &Path, data: &Path, dir: &Path) -> Result<Child> {
    let network: Value = serde_json::from_slice(&std::fs::read(data.join("network.json"))?)?;
    let web = network["web"].as_str().context("network.json names no web address")?;
    let made = Command::new(binary)
        .args(["node", "init", "--no-checks", "--capacity", "8GB", "--dir"])
        .arg(dir)
        .stdout(Stdio::null())
        .status()
        .await?;
    if !made.success() {
        anyhow::bail!("no node could be made in {}", dir.display());
    }
    let mut child = Command::new(binary)
        .args(["--json", "node", "run", "--stop-on-stdin-eof", "--listen", "127.0.0.1:0"])
        .args(["--join", web])
        .arg("--token-file")
        .arg(data.join("admin-token"))
        .arg("--dir")
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start a node")?;
    let stdout = child.stdout.take().context("the node's output is piped")?;
    let mut lines = BufReader::new(stdout).lines();
    let joined = async {
        while let Some(line) = lines.next_line().await? {
            if line.contains("\"joined\"") {
                return anyhow::Ok(());
            }
        }
        bail!("the node ended before it had joined")
    };
    tokio::time::timeout(JOIN_MAX, joined).await.context("the node did not join in time")??;
    // Its later lines go nowhere, and must not block it.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Ok(child)
}

/// Ends the first node as a power cut would.
fn kill_first(data: &Path) -> Result<()> {
    let network: Value = serde_json::from_slice(&std::fs::read(data.join("network.json"))?)?;
    let pid = network["nodes"][0]["pid"].as_u64().context("network.json names no node's process")?;
    let status = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status()?;
    ensure!(status.success(), "node process {pid} cannot be ended");
    Ok(())
}

async fn repair(binary: &Path, data: &Path) -> Result<Value> {
    let output = Command::new(binary).args(["--json", "repair", "run", "--data"]).arg(data).output().await?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().context("repair said nothing")?;
    ensure!(output.status.success(), "repair did not make everything whole: {line}");
    Ok(serde_json::from_str(line)?)
}
