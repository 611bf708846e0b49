//! A disk that is read-only when the node starts: its blocks are served, nothing is taken, its owner is told, and once it
//! can be written again the node goes on by itself. The real thing: the node's directory is bind-mounted read-only in a
//! mount namespace of its own.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use holdfast_tests::{Network, Process, bytes_of, http_get, program, succeeded, wait_until};
use serde_json::Value;

fn status(dir: &Path) -> Result<Value> {
    let output = Command::new(program()?).args(["--json", "node", "status", "--dir"]).arg(dir).output()?;
    Ok(serde_json::from_str(&succeeded(output, "node status")?)?)
}

fn alarms(status: &Value) -> Vec<&str> {
    let disks = status["disks"].as_array().map(Vec::as_slice).unwrap_or_default();
    let alarms = disks.iter().flat_map(|disk| disk["alarms"].as_array()).flatten();
    alarms.filter_map(|alarm| alarm["alarm"].as_str()).collect()
}

#[test]
fn a_read_only_disk_is_served_and_told_of_and_goes_on_when_it_can_be_written() -> Result<()> {
    let root = tempfile::tempdir()?;
    let mut network = Network::separate(root.path(), 6, &[])?;
    let file = root.path().join("file");
    std::fs::write(&file, bytes_of("read only", 12_000_000))?;
    network.holdfast(&["put", file.to_str().context("UTF-8")?, "kept/file"])?;
    // Killed, so that its index does not know the last records: they are found in the extents, and cannot be written down.
    let dir = root.path().join("node-5");
    let before = status(&dir)?;
    network.nodes[5].kill()?;
    let (web, token) = (network.web(), network.data.join("admin-token"));
    let args =
        ["node", "run", "--dir", dir.to_str().context("UTF-8")?, "--listen", "127.0.0.1:0", "--join", &web];
    let args = [&args[..], &["--token-file", token.to_str().context("UTF-8")?]].concat();
    let node = Process::start_read_only(&dir, &args)?;
    let page = node.wait_event("ready")?["web"].as_str().context("web")?.to_owned();
    node.wait_event("joined")?;

    // It says so, to programs and to people. Its directory cannot be written, and it is found all the same.
    let inside = |command: &[&str]| node.inside(command);
    let said: Value = serde_json::from_str(&inside(&[
        "--json",
        "node",
        "status",
        "--dir",
        dir.to_str().context("UTF-8")?,
    ])?)?;
    ensure!(alarms(&said) == ["read_only"], "{said}");
    ensure!(said["refusing_writes"].as_str().is_some_and(|why| why.contains("read-only")), "{said}");
    ensure!(
        said["blocks"] == before["blocks"] && said["used_bytes"] == before["used_bytes"],
        "{said} was {before}"
    );
    let page = format!("http://{page}");
    wait_until("the alarm", || {
        let (code, body) = http_get(&page, "/healthz", &[])?;
        Ok(code == 503 && body.contains("read_only"))
    })?;
    ensure!(http_get(&page, "/", &[])?.1.contains("is read-only"), "the page says it too");

    // With two others gone every stripe needs its shard.
    network.nodes[0].kill()?;
    network.nodes[1].kill()?;
    let copy = root.path().join("copy");
    network.holdfast(&["get", "kept/file", copy.to_str().context("UTF-8")?])?;
    ensure!(std::fs::read(&copy)? == std::fs::read(&file)?, "the bytes differ");

    // Its owner mends the disk.
    node.make_writable(&dir)?;
    wait_until("the node takes blocks again", || {
        let (code, _) = http_get(&page, "/healthz", &[])?;
        let (_, report) = http_get(&page, "/api/v1/status", &[])?;
        let report: Value = serde_json::from_str(&report)?;
        Ok(code == 200 && report["refusing_writes"] == "" && report["blocks"] == before["blocks"])
    })?;
    node.stop()
}

#[test]
fn a_directory_without_a_node_is_left_alone() -> Result<()> {
    let root = tempfile::tempdir()?;
    // An empty mount point, as a disk that was not mounted leaves it.
    for more in [&[][..], &["--capacity", "8GB"][..]] {
        let run = Command::new(program()?)
            .args(["node", "run", "--listen", "127.0.0.1:0", "--dir"])
            .arg(root.path())
            .args(more)
            .output()?;
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        ensure!(!run.status.success(), "it must not start: {said}");
        ensure!(
            said.contains("no node here: run `holdfast node init") && said.contains("mount the disk"),
            "{said}"
        );
        ensure!(std::fs::read_dir(root.path())?.next().is_none(), "and nothing was made there");
    }
    Ok(())
}
