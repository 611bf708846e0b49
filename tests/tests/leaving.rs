//! Joining by invite, leaving by drain and exit, shrinking, and what survives a kill in the middle.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use holdfast_tests::{Network, Process, bytes_of, http_get, program, succeeded};
use serde_json::Value;

fn node(args: &[&str]) -> Result<std::process::Output> {
    Ok(Command::new(program()?).args(["--json", "node"]).args(args).output()?)
}

fn node_ok(args: &[&str]) -> Result<Vec<Value>> {
    let text = succeeded(node(args)?, &format!("node {}", args.join(" ")))?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("`{line}`"))).collect()
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("UTF-8")
}

/// Seven nodes for stripes of six: one may leave. Some data on them.
fn network_of_seven(root: &Path) -> Result<Network> {
    let network = Network::separate(root, 7, &[])?;
    let file = root.join("file");
    std::fs::write(&file, bytes_of("left behind", 24_000_000))?;
    network.holdfast(&["put", text(&file)?, "kept/file"])?;
    Ok(network)
}

fn reads_back(root: &Path, network: &Network) -> Result<()> {
    let copy = root.join("copy");
    network.holdfast(&["get", "kept/file", text(&copy)?])?;
    assert!(std::fs::read(&copy)? == std::fs::read(root.join("file"))?, "the bytes differ");
    Ok(std::fs::remove_file(&copy)?)
}

#[test]
fn a_node_that_exits_leaves_nothing_behind_even_if_it_and_the_gateway_are_killed_on_the_way() -> Result<()> {
    let root = tempfile::tempdir()?;
    let mut network = network_of_seven(root.path())?;
    let dir = root.path().join("node-3");
    let before = node_ok(&["status", "--dir", text(&dir)?])?;
    assert!(before[0]["blocks"].as_u64().context("blocks")? > 0, "{before:?}");
    let id = before[0]["id"].as_str().context("id")?.to_owned();
    node_ok(&["exit", "--dir", text(&dir)?, "--no-wait"])?;
    // Both die in the middle, as a power cut would have it, and go on where they stopped.
    let mut leaving = network.nodes.remove(3);
    leaving.kill()?;
    network.restart_gateway()?;
    let args = [
        "node",
        "run",
        "--dir",
        text(&dir)?,
        "--listen",
        "127.0.0.1:0",
        "--join",
        &network.web(),
        "--token-file",
        text(&network.data.join("admin-token"))?,
    ]
    .map(str::to_owned);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let leaving = Process::start(&args)?;
    leaving.wait_event("ready")?;
    let gone = node_ok(&["exit", "--dir", text(&dir)?])?;
    assert_eq!(gone.last().context("an answer")?["mode"], "left", "{gone:?}");
    leaving.wait_end()?;
    let nodes = network.api("/api/v1/nodes")?;
    let known = nodes["nodes"].as_array().context("nodes")?.iter().any(|row| row["id"] == id.as_str());
    assert!(!known, "the gateway has let it go: {nodes}");
    reads_back(root.path(), &network)?;
    // With two more gone everything is still there: no stripe counts on the node that left.
    network.nodes[0].kill()?;
    network.nodes[1].kill()?;
    reads_back(root.path(), &network)?;
    let again = node(&["run", "--dir", text(&dir)?])?;
    assert!(
        !again.status.success() && String::from_utf8_lossy(&again.stderr).contains("has left"),
        "{again:?}"
    );
    Ok(())
}

#[test]
fn a_forced_exit_says_what_is_lost_and_the_gateway_repairs_it() -> Result<()> {
    let root = tempfile::tempdir()?;
    let mut network = network_of_seven(root.path())?;
    let dir = root.path().join("node-2");
    let before = node_ok(&["status", "--dir", text(&dir)?])?[0].clone();
    let refused = node(&["drain", "--dir", text(&dir)?, "--force"])?;
    assert!(!refused.status.success(), "a drain takes as long as it takes");
    let gone = node_ok(&["exit", "--dir", text(&dir)?, "--force"])?;
    let gone = gone.last().context("an answer")?;
    assert!(gone["mode"] == "left" && gone["emptied"] == false, "{gone}");
    assert_eq!(gone["blocks_lost"], before["blocks"], "{gone}");
    network.nodes.remove(2).wait_end()?;
    let id = before["id"].as_str().context("id")?;
    let nodes = network.api("/api/v1/nodes")?;
    let known = nodes["nodes"].as_array().context("nodes")?.iter().any(|row| row["id"] == id);
    assert!(!known, "the gateway has heard it: {nodes}");
    reads_back(root.path(), &network)
}

#[test]
fn a_drain_that_finds_no_room_says_so_and_can_be_taken_back() -> Result<()> {
    let root = tempfile::tempdir()?;
    let network = Network::separate(root.path(), 6, &[])?;
    let file = root.path().join("file");
    std::fs::write(&file, bytes_of("no room", 6_000_000))?;
    network.holdfast(&["put", text(&file)?, "kept/file"])?;
    let dir = root.path().join("node-0");
    node_ok(&["drain", "--dir", text(&dir)?, "--no-wait"])?;
    let id = node_ok(&["status", "--dir", text(&dir)?])?[0]["id"].as_str().context("id")?.to_owned();
    network.wait_api("/api/v1/nodes", "the gateway says what is missing", |nodes| {
        let rows = nodes["nodes"].as_array().cloned().unwrap_or_default();
        rows.iter().any(|row| {
            row["id"] == id.as_str()
                && row["leaving"]["note"].as_str().is_some_and(|note| note.contains("1 more would do"))
        })
    })?;
    node_ok(&["resume", "--dir", text(&dir)?])?;
    network.wait_api("/api/v1/nodes", "the drain is over", |nodes| {
        let rows = nodes["nodes"].as_array().cloned().unwrap_or_default();
        rows.iter().all(|row| row["leaving"].is_null())
    })?;
    network.holdfast(&["put", text(&file)?, "kept/again"])?;
    Ok(())
}

#[test]
fn a_smaller_node_gives_up_what_is_too_much() -> Result<()> {
    let root = tempfile::tempdir()?;
    let network = network_of_seven(root.path())?;
    let dir = root.path().join("node-2");
    let used = node_ok(&["status", "--dir", text(&dir)?])?[0]["used_bytes"].as_u64().context("used")?;
    // As little as may be offered at all is more than these nodes hold: pause the others' growth instead.
    let target = (used / 2).max(64 << 20);
    node_ok(&["resize", "--dir", text(&dir)?, "--capacity", &target.to_string()])?;
    let status = node_ok(&["status", "--dir", text(&dir)?])?[0].clone();
    let of = |name: &str| status[name].as_u64().unwrap_or_default();
    assert_eq!(of("capacity_bytes"), target, "{status}");
    let sum = of("used_bytes") + of("trash_bytes") + of("garbage_bytes") + of("free_bytes");
    assert_eq!(sum, of("capacity_bytes"), "{status}");
    reads_back(root.path(), &network)
}

#[test]
fn an_invite_brings_in_as_many_nodes_as_it_says_and_opens_nothing_else() -> Result<()> {
    let root = tempfile::tempdir()?;
    let network = Network::separate(root.path(), 5, &[])?;
    let invite = network.holdfast(&["gateway", "invite", "--nodes", "1"])?[0]["invite"]
        .as_str()
        .context("invite")?
        .to_owned();
    let start = |name: &str| -> Result<Process> {
        let dir = root.path().join(name);
        holdfast_tests::init_node(&dir, "8GB")?;
        let args = ["node", "run", "--listen", "127.0.0.1:0", "--invite", &invite, "--dir"];
        Process::start(&[&args[..], &[text(&dir)?]].concat())
    };
    let sixth = start("sixth")?;
    let joined = sixth.wait_event("joined")?;
    assert_eq!(joined["reachability"], "direct");
    let seventh = start("seventh")?;
    let page = seventh.wait_event("ready")?["web"].as_str().context("web")?.to_owned();
    let headers = [("Authorization", format!("Bearer {invite}"))];
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    for path in ["/api/v1/nodes", "/api/v1/objects?bucket=x", "/api/v1/repair"] {
        let (status, body) = http_get(&network.web(), path, &headers)?;
        assert_eq!(status, 401, "an invite is no admin token: {path} answered {body}");
    }
    // The list tells how many came. One that was taken back brings in nobody, and is named as what it is.
    let second = network.holdfast(&["gateway", "invite", "--nodes", "3"])?[0].clone();
    let id = second["id"].as_str().context("id")?;
    network.holdfast(&["gateway", "invites", "--revoke", id])?;
    let listed = network.holdfast(&["gateway", "invites"])?;
    let came: Vec<_> = listed.iter().map(|row| (row["came"].clone(), row["revoked_ms"].is_u64())).collect();
    assert!(came.contains(&(1.into(), false)) && came.contains(&(0.into(), true)), "{listed:?}");
    let eighth = root.path().join("eighth");
    holdfast_tests::init_node(&eighth, "8GB")?;
    let text_of = second["invite"].as_str().context("invite")?;
    let args = ["node", "run", "--listen", "127.0.0.1:0", "--invite", text_of, "--dir", text(&eighth)?];
    let eighth = Process::start(&args)?;
    let turned_away = eighth.wait_event("ready")?["web"].as_str().context("web")?.to_owned();
    holdfast_tests::wait_until("the reason", || {
        let (_, body) = http_get(&format!("http://{turned_away}"), "/healthz", &[])?;
        Ok(body.contains("was taken back"))
    })?;
    // The seventh is turned away, says why, and calls it an alarm.
    holdfast_tests::wait_until("the alarm", || {
        let (status, body) = http_get(&format!("http://{page}"), "/healthz", &[])?;
        Ok(status == 503 && body.contains("the invite was for 1 nodes"))
    })?;
    // The sixth is in and needs the invite no more: it comes back after a restart without it.
    sixth.stop()?;
    let dir = root.path().join("sixth");
    let file = dir.join("node.json");
    let kept: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    let stripped = serde_json::json!({ "capacity_bytes": kept["capacity_bytes"], "operator": null });
    std::fs::write(&file, stripped.to_string())?;
    let web = network.web();
    let sixth =
        Process::start(&["node", "run", "--dir", text(&dir)?, "--listen", "127.0.0.1:0", "--join", &web])?;
    sixth.wait_event("joined")?;
    Ok(())
}
