//! A node behind a router that opens ports when asked: Debian's miniupnpd, a real daemon on many real routers, between
//! hosts in network namespaces. The gateway outside then dials the node, as if there were no router.
//!
//! The public side has addresses that the daemon takes for public ones; nothing leaves the namespaces. Needs root and
//! miniupnpd, which `scripts/setup.sh --tests` installs.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_tests::hosts::Hosts;
use holdfast_tests::{Network, Process, poll, program, succeeded};

const DAEMON: &str = "/usr/sbin/miniupnpd";
const RULES: &str = "table inet router {
    chain pass { type filter hook forward priority filter; policy drop;
        ct state established,related accept; iifname \"lan0\" accept; jump miniupnpd; }
    chain miniupnpd { }
    chain prerouting { type nat hook prerouting priority dstnat; policy accept; jump prerouting_miniupnpd; }
    chain postrouting { type nat hook postrouting priority srcnat; policy accept;
        jump postrouting_miniupnpd; oifname \"wan0\" masquerade; }
    chain prerouting_miniupnpd { }
    chain postrouting_miniupnpd { }
}";

/// The router's daemon; ended when dropped.
struct Router(Child);

impl Router {
    /// Starts it with NAT-PMP and PCP, or with UPnP alone.
    fn start(hosts: &Hosts, dir: &Path, pcp: bool) -> Result<Self> {
        ensure!(Path::new(DAEMON).exists(), "{DAEMON} is missing; run scripts/setup.sh --tests");
        let yes = |on: bool| if on { "yes" } else { "no" };
        let text = format!(
            "ext_ifname=wan0\nlistening_ip=lan0\nport=0\nenable_natpmp={}\nenable_upnp={}\nsecure_mode=yes\n\
             upnp_table_name=router\nupnp_nat_table_name=router\nupnp_forward_chain=miniupnpd\n\
             upnp_nat_chain=prerouting_miniupnpd\nupnp_nat_postrouting_chain=postrouting_miniupnpd\n\
             uuid=00000000-0000-0000-0000-000000000000\nmin_lifetime=60\nmax_lifetime=86400\n\
             allow 1024-65535 192.168.77.0/24 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n",
            yes(pcp),
            yes(!pcp)
        );
        let config = dir.join("miniupnpd.conf");
        std::fs::write(&config, text)?;
        let mut command = hosts.command("nat", DAEMON);
        // In the foreground, so that it ends with us.
        command.arg("-d").arg("-f").arg(&config).arg("-P").arg(dir.join("miniupnpd.pid"));
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        Ok(Self(child))
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn a_gateway_outside_dials_a_node_whose_port_the_router_forwards(pcp: bool) -> Result<()> {
    let hosts = Hosts::set_up("11.11.11", RULES)?;
    let root = tempfile::tempdir()?;
    let _router = Router::start(&hosts, root.path(), pcp)?;
    // It serves once it listens; a question before that would be the test's mistake.
    let socket = if pcp { "5351" } else { "1900" };
    poll("the router listens", Duration::from_secs(20), || {
        let sockets = hosts.inside("nat", "ss", &["-Hlun"])?;
        Ok(sockets.contains(&format!(":{socket} ")).then_some(()))
    })?;
    hosts.enter("pub")?;
    let data = root.path().join("gateway");
    let any = "11.11.11.1:0";
    let gateway = Process::start(&[
        "gateway",
        "run",
        "--data",
        data.to_str().context("UTF-8")?,
        "--s3-listen",
        any,
        "--web-listen",
        any,
        "--quic-listen",
        any,
    ])?;
    let info = gateway.wait_event("open")?["network"].clone();
    let network = Network { data, gateway, nodes: Vec::new(), info };
    let invite =
        network.holdfast(&["gateway", "invite"])?[0]["invite"].as_str().context("invite")?.to_owned();
    let dir = root.path().join("node");
    let dir = dir.to_str().context("UTF-8")?;
    let mut init = hosts.command("home", program()?.to_str().context("UTF-8")?);
    init.args(["node", "init", "--no-checks", "--dir", dir, "--capacity", "8GB", "--invite", &invite]);
    succeeded(init.output()?, "node init")?;
    // A port of its own choice: the router is asked for the same one outside.
    let node =
        Process::start_in(&hosts.name("home"), &["node", "run", "--dir", dir, "--listen", "0.0.0.0:0"])?;
    let ready = node.wait_event("ready")?;
    let port = ready["address"].as_str().and_then(|text| text.rsplit(':').next()).context("port")?.to_owned();
    let joined = node.wait_event("joined")?;
    ensure!(joined["reachability"] == "direct", "the gateway gets through the router: {joined}");
    let id = ready["id"].as_str().context("id")?.to_owned();
    let nodes = network.wait_api("/api/v1/nodes", "the node is dialled", |nodes| {
        nodes["nodes"][0]["state"] == "up" && nodes["nodes"][0]["agreed"] == true
    })?;
    let row = &nodes["nodes"][0];
    ensure!(row["id"] == id.as_str() && row["dials_in"] == false, "{row}");
    ensure!(row["addresses"][0] == format!("11.11.11.2:{port}"), "the router's address: {row}");
    ensure!(
        hosts.inside("nat", "nft", &["list ruleset"])?.contains("dnat ip to 192.168.77.2"),
        "by a rule of its"
    );
    // The port is given back.
    node.stop()?;
    ensure!(
        !hosts.inside("nat", "nft", &["list ruleset"])?.contains("dnat ip to 192.168.77.2"),
        "and takes it back"
    );
    Ok(())
}

#[test]
fn by_pcp_or_nat_pmp() -> Result<()> {
    a_gateway_outside_dials_a_node_whose_port_the_router_forwards(true)
}

#[test]
fn by_upnp() -> Result<()> {
    a_gateway_outside_dials_a_node_whose_port_the_router_forwards(false)
}
