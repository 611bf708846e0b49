//! Audits end to end: nodes, auditors and third parties as processes of their own.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_proofs::beacon::{BeaconSpec, OnionSecret};
use holdfast_proofs::policy::AuditPolicy;
use holdfast_tests::{Network, Process, bytes_of, http_get, poll, program};
use serde_json::Value;

/// How long results are waited for.
const PATIENCE: Duration = Duration::from_secs(90);

/// Runs `holdfast --json ARGS…`; whether it succeeded, and its first JSON value.
fn holdfast(args: &[&str]) -> Result<(bool, Value)> {
    let output = Command::new(program()?).arg("--json").args(args).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let value = text.lines().next().map(serde_json::from_str).transpose()?.unwrap_or(Value::Null);
    Ok((output.status.success(), value))
}

/// Polls the report of a log until `holds`.
fn wait_report(log: &str, what: &str, holds: impl Fn(&[Value]) -> bool) -> Result<Vec<Value>> {
    poll(what, PATIENCE, || {
        let report = holdfast(&["auditor", "report", "--audit-log", log])?.1;
        let nodes = report["nodes"].as_array().cloned().unwrap_or_default();
        Ok(holds(&nodes).then_some(nodes))
    })
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("UTF-8")
}

#[test]
fn a_network_is_audited_and_anybody_can_check_the_log() -> Result<()> {
    let root = tempfile::tempdir()?;
    let data = root.path().join("data");
    let network = Network::up(&data, &["--epoch", "3s"])?;
    let file = root.path().join("file");
    std::fs::write(&file, bytes_of("audited", 9_000_000))?;
    network.holdfast(&["put", text(&file)?, "audited/file"])?;
    let log = data.join("auditor/log");
    let proved = |nodes: &[Value]| {
        nodes.len() == 6
            && nodes
                .iter()
                .all(|node| node["draws"] == 20 && node["passed"] == 20 && node["data"].as_f64() == Some(1.0))
    };
    wait_report(text(&log)?, "every node proves 20 chunks", proved)?;
    let page = network.info["auditor"].as_str().context("the auditor's page")?;
    let (status, html) = http_get(page, "/", &[])?;
    ensure!(status == 200 && html.contains("<svg") && html.contains("not independent"), "{html}");
    // From the files alone, and over the web.
    for log in [text(&log)?.to_owned(), format!("{page}/log")] {
        let (holds, report) = holdfast(&["auditor", "verify", &log])?;
        ensure!(holds && report["failed"] == 0, "{report}");
        ensure!(report["draws"].as_u64() > Some(100) && report["beacon_independent"] == false, "{report}");
    }
    network.gateway.stop()?;
    // One changed bit anywhere is noticed.
    let tile = log.join("tile/entries/000");
    // While the first tile is not full, its widest part is the log's present; narrower ones are its past.
    let parts = std::fs::read_dir(log.join("tile/entries/000.p")).into_iter().flatten().flatten();
    let width = |path: &Path| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
    let widest = parts.map(|entry| entry.path()).max_by_key(|path| width(path));
    let bundle = widest.filter(|_| !tile.exists()).unwrap_or(tile);
    let mut bytes = std::fs::read(&bundle)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&bundle, bytes)?;
    let (holds, report) = holdfast(&["auditor", "verify", text(&log)?])?;
    ensure!(!holds && report["failed"].as_u64() > Some(0), "{report}");
    Ok(())
}

/// An auditor that knows no node: they dial it. One of them lies, and its own signature convicts it; an auditor beside
/// cosigns the log.
#[test]
fn a_lying_node_is_convicted_by_an_auditor_that_it_dialled_itself() -> Result<()> {
    let root = tempfile::tempdir()?;
    let rules = root.path().join("rules.json");
    let rounds = root.path().join("rounds");
    let policy = write_rules(&rules, &rounds)?;
    let dir = root.path().join("auditor");
    let auditor = Process::start(&[
        "auditor",
        "run",
        "--dir",
        text(&dir)?,
        "--rules",
        text(&rules)?,
        "--beacon",
        text(&rounds)?,
        "--listen",
        "127.0.0.1:0",
        "--web-listen",
        "127.0.0.1:0",
    ])?;
    let ready = auditor.wait_event("ready")?;
    let (id, address) = (ready["id"].as_str().context("id")?, ready["address"].as_str().context("address")?);
    for index in 0..6 {
        let node = root.path().join(format!("node-{index}"));
        std::fs::create_dir_all(&node)?;
        let told = serde_json::json!({ "policy": policy, "auditors": [format!("{id}@{address}")] });
        std::fs::write(node.join("audit.json"), told.to_string())?;
    }
    let network = Network::separate(root.path(), 6, &[(2, "flip-bit")])?;
    let file = root.path().join("file");
    std::fs::write(&file, bytes_of("convicted", 9_000_000))?;
    network.holdfast(&["put", text(&file)?, "convicted/file"])?;
    let liar: Value =
        serde_json::from_str(&std::fs::read_to_string(root.path().join("node-2/running.json"))?)?;
    let liar = liar["id"].as_str().context("id")?.to_owned();
    let log = dir.join("log");
    let convicted = |nodes: &[Value]| {
        nodes.len() == 6
            && nodes.iter().all(|node| match node["node"] == liar.as_str() {
                true => node["state"] == "disqualified",
                false => node["passed"] == 20 && node["data"].as_f64() == Some(1.0),
            })
    };
    wait_report(text(&log)?, "the liar and nobody else is disqualified", convicted)?;
    let (holds, report) = holdfast(&["auditor", "verify", text(&log)?, "--node", &liar, "--decoy", &liar])?;
    ensure!(holds, "the log holds, whatever it says of nodes: {report}");
    let findings = report["findings"].as_array().context("findings")?;
    ensure!(
        !findings.is_empty() && findings.iter().all(|finding| finding["node"] == liar.as_str()),
        "{report}"
    );
    ensure!(report["trace"].as_array().is_some_and(|trace| !trace.is_empty()), "{report}");
    let honest =
        network.api("/api/v1/nodes")?["nodes"][0]["id"].as_str().map(str::to_owned).context("a node")?;
    if honest != liar {
        let (holds, _) = holdfast(&["auditor", "verify", text(&log)?, "--decoy", &honest])?;
        ensure!(!holds, "an auditor that finds no fault with a decoy fails");
    }
    let page = ready["page"].as_str().context("page")?;
    cosigned(root.path(), &rules, &rounds, &format!("{page}/log"))?;
    auditor.stop()
}

/// Another auditor cosigns the log over the web.
fn cosigned(root: &Path, rules: &Path, rounds: &Path, log: &str) -> Result<()> {
    let dir = root.join("other");
    let other = Process::start(&[
        "auditor",
        "run",
        "--dir",
        text(&dir)?,
        "--rules",
        text(rules)?,
        "--beacon",
        text(rounds)?,
        "--listen",
        "127.0.0.1:0",
        "--web-listen",
        "127.0.0.1:0",
        "--cosign",
        log,
    ])?;
    other.wait_event("ready")?;
    let note = poll("the log is cosigned", PATIENCE, || {
        let first = std::fs::read_dir(dir.join("cosigned")).ok().and_then(|mut files| files.next());
        let Some(file) = first else { return Ok(None) };
        let path = file?.path();
        // Files on their way have an extension.
        Ok(if path.extension().is_none() { Some(std::fs::read_to_string(path)?) } else { None })
    })?;
    ensure!(note.lines().filter(|line| line.starts_with('\u{2014}')).count() == 2, "{note}");
    other.stop()
}

/// Rules of 4-second epochs, and their beacon's next rounds as files.
fn write_rules(rules: &Path, rounds: &Path) -> Result<AuditPolicy> {
    const EPOCH_MS: u64 = 4_000;
    let secret = OnionSecret::new([5; 32]);
    let now_ms = u64::try_from(std::time::UNIX_EPOCH.elapsed()?.as_millis())?;
    let mut policy = AuditPolicy::every(EPOCH_MS, BeaconSpec::quicknet());
    let genesis_ms = policy.draw_of(policy.epoch_at(now_ms));
    policy.beacon = BeaconSpec::Onion { members: vec![secret.anchor()], genesis_ms, period_ms: EPOCH_MS };
    std::fs::write(rules, serde_json::to_vec(&policy)?)?;
    std::fs::create_dir_all(rounds)?;
    let mut layer = secret.layer(100).context("the beacon has rounds")?;
    for round in (1..=100u64).rev() {
        let signature: String = layer.iter().map(|byte| format!("{byte:02x}")).collect();
        let published = serde_json::json!({ "round": round, "signature": signature });
        std::fs::write(rounds.join(format!("{round}.json")), published.to_string())?;
        layer = *blake3::hash(&layer).as_bytes();
    }
    Ok(policy)
}
