//! A node behind a router that opens nothing: real network namespaces, with a masquerading router between the hosts.
//!
//! ```text
//! pub  203.0.113.1/24 ---- 203.0.113.2/24  nat  192.168.77.1/24 ---- 192.168.77.2/24  home
//! ```
//! `pub` has no way to 192.168.77.0/24, and `nat` forwards nothing that `home` did not begin. Needs root, `ip` and
//! `nft`, which `scripts/setup.sh --tests` installs.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use holdfast_tests::hosts::{CLOSED_ROUTER, Hosts};
use holdfast_tests::{Network, Process, bytes_of, http_post, program, succeeded};
use serde_json::Value;

fn node_row(network: &Network, id: &str) -> Result<Value> {
    let nodes = network.api("/api/v1/nodes")?;
    let rows = nodes["nodes"].as_array().cloned().unwrap_or_default();
    rows.into_iter().find(|row| row["id"] == id).with_context(|| format!("{id} is not known: {nodes}"))
}

/// A gateway on the public side with five nodes that it dials, and one behind the router that came by invite.
fn network_with_one_behind(hosts: &Hosts, root: &Path) -> Result<(Network, Process, String)> {
    let data = root.join("gateway");
    let gateway = start_gateway(&data, ["203.0.113.1:0"; 3])?;
    let info = gateway.wait_event("open")?["network"].clone();
    let mut network = Network { data, gateway, nodes: Vec::new(), info };
    for index in 0..5 {
        network.add_node(&root.join(format!("node-{index}")), None)?;
    }
    // The disk owner has an invite and nothing else.
    let invite =
        network.holdfast(&["gateway", "invite"])?[0]["invite"].as_str().context("invite")?.to_owned();
    let dir = root.join("behind");
    let dir = dir.to_str().context("UTF-8")?;
    let mut init = Command::new("ip");
    init.args(["netns", "exec", &hosts.name("home")]).arg(program()?);
    init.args(["--json", "node", "init", "--dir", dir, "--capacity", "8GB", "--invite", &invite]);
    let said = succeeded(init.output()?, "node init")?;
    assert!(said.contains("\"dial-back\"") && said.contains("cannot dial us"), "{said}");
    let behind = Process::start_in(&hosts.name("home"), &["node", "run", "--dir", dir, "--no-port-mapping"])?;
    let id = behind.wait_event("ready")?["id"].as_str().context("id")?.to_owned();
    assert_eq!(behind.wait_event("joined")?["reachability"], "dial_out");
    network.gateway.wait_event("ready")?;
    network.wait_api("/api/v1/nodes", "six nodes up", |nodes| {
        nodes["nodes"].as_array().is_some_and(|rows| {
            rows.len() == 6 && rows.iter().all(|row| row["state"] == "up" && row["agreed"] == true)
        })
    })?;
    Ok((network, behind, id))
}

/// A gateway on these addresses: S3, web, QUIC.
fn start_gateway(data: &Path, listen: [&str; 3]) -> Result<Process> {
    let [s3, web, quic] = listen;
    Process::start(&[
        "gateway",
        "run",
        "--data",
        data.to_str().context("UTF-8")?,
        "--s3-listen",
        s3,
        "--web-listen",
        web,
        "--quic-listen",
        quic,
    ])
}

fn reads_back(network: &Network, file: &Path) -> Result<()> {
    let copy = file.with_extension("copy");
    network.holdfast(&["get", "nat/file", copy.to_str().context("UTF-8")?])?;
    assert!(std::fs::read(&copy)? == std::fs::read(file)?, "the bytes differ");
    Ok(std::fs::remove_file(&copy)?)
}

#[test]
fn a_node_behind_a_router_stores_serves_and_proves_over_the_connection_that_it_opened() -> Result<()> {
    let hosts = Hosts::set_up("203.0.113", CLOSED_ROUTER)?;
    let root = tempfile::tempdir()?;
    hosts.enter("pub")?;
    let (mut network, behind, id) = network_with_one_behind(&hosts, root.path())?;
    // Stores.
    let file = root.path().join("file");
    std::fs::write(&file, bytes_of("behind a router", 20_000_000))?;
    network.holdfast(&["put", file.to_str().context("UTF-8")?, "nat/file"])?;
    let row = node_row(&network, &id)?;
    assert!(row["dials_in"] == true && row["addresses"].as_array().is_some_and(Vec::is_empty), "{row}");
    assert!(row["blocks"].as_u64().unwrap_or(0) >= 5, "a sixth of the stripes' shards lie on it: {row}");
    // Proves.
    let challenge = format!("/api/v1/nodes/{id}/challenge");
    let proofs: Value = serde_json::from_str(&http_post(&network, &challenge, "{\"chunks\":20}")?)?;
    let proved = (&proofs["nodes"][0]["passed"], &proofs["nodes"][0]["failed"]);
    assert_eq!(proved, (&20.into(), &0.into()), "{proofs}");
    // Serves: with two others gone, every stripe needs its shard.
    network.nodes[0].kill()?;
    network.nodes[1].kill()?;
    reads_back(&network, &file)?;
    // The gateway is killed and comes back; the node finds it again, although nothing tells it to: its old connection
    // ends with the first packet that the new process does not know.
    let quic = network.api("/api/v1/status")?["quic"][0].as_str().context("quic")?.to_owned();
    let bare = |url: String| url.trim_start_matches("http://").trim_end_matches('/').to_owned();
    let (s3, web) = (bare(network.s3()), bare(network.web()));
    let Network { mut gateway, data, nodes, info } = network;
    gateway.kill()?;
    let gateway = start_gateway(&data, [&s3, &web, &quic])?;
    let network = Network { data, gateway, nodes, info };
    network.gateway.wait_event("open")?;
    network.wait_api("/api/v1/nodes", "the node is back", |nodes| {
        let rows = nodes["nodes"].as_array().cloned().unwrap_or_default();
        rows.iter().any(|row| row["id"] == id.as_str() && row["state"] == "up")
    })?;
    reads_back(&network, &file)?;
    behind.stop()
}
