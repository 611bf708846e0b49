//! Several gateways of one namespace on one database.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::postgres::Postgres;
use crate::{Network, Process, program};

/// Makes a gateway's keys as a person does: reads the code that is shown and types it back.
pub fn init_and_confirm(data: &Path, recovery: &Path) -> Result<String> {
    let mut init = Command::new(program()?)
        .args(["--json", "gateway", "init", "--data"])
        .arg(data)
        .arg("--recovery-file")
        .arg(recovery)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut typed = init.stdin.take().context("piped")?;
    let mut code = None;
    for line in BufReader::new(init.stdout.take().context("piped")?).lines() {
        let line: Value = serde_json::from_str(&line?)?;
        if line["event"] == "recovery" {
            let shown = line["code"].as_str().context("a code")?.to_owned();
            // Wrong once, as people are.
            writeln!(typed, "ABCD-{shown}")?;
            writeln!(typed, "{}", shown.to_lowercase())?;
            code = Some(shown);
        }
    }
    ensure!(init.wait()?.success(), "the right code was typed in the end");
    code.context("no code was shown")
}

/// A second gateway of the namespace, from the recovery file.
pub fn init_from(data: &Path, recovery: &Path, code: &str) -> Result<bool> {
    let mut init = Command::new(program()?)
        .args(["--json", "gateway", "init", "--data"])
        .arg(data)
        .arg("--from")
        .arg(recovery)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    writeln!(init.stdin.take().context("piped")?, "{code}")?;
    Ok(init.wait()?.success())
}

/// Starts a gateway on its directory and this database.
pub fn start(data: &Path, meta: &str, s3: &str) -> Result<(Process, Value)> {
    let data = data.to_str().context("UTF-8")?;
    let any = ["--s3-listen", s3, "--web-listen", "127.0.0.1:0"];
    let gateway = Process::start(&[&["gateway", "run", "--data", data, "--meta", meta][..], &any].concat())?;
    let info = gateway.wait_event("open")?["network"].clone();
    Ok((gateway, info))
}

/// The same, as a network of its own.
pub fn network(data: &Path, meta: &str) -> Result<Network> {
    let (gateway, info) = start(data, meta, "127.0.0.1:0")?;
    Ok(Network { data: data.to_path_buf(), gateway, nodes: Vec::new(), info })
}

/// Two gateways on a PostgreSQL server of their own, with nodes that the first took in.
pub struct Pair {
    /// The database.
    pub server: Postgres,
    /// Both.
    pub gateways: [Network; 2],
}

impl Pair {
    /// Starts all of it below `root`.
    pub fn start(root: &Path, nodes: usize) -> Result<Self> {
        let server = Postgres::start()?;
        let (one, two, recovery) = (root.join("one"), root.join("two"), root.join("recovery.txt"));
        let code = init_and_confirm(&one, &recovery)?;
        ensure!(init_from(&two, &recovery, &code)?, "the second gateway takes the recovery file");
        let mut first = network(&one, &server.url())?;
        for index in 0..nodes {
            first.add_node(&root.join(format!("node-{index}")), None)?;
        }
        first.gateway.wait_event("ready")?;
        let second = network(&two, &server.url())?;
        second.gateway.wait_event("ready")?;
        Ok(Self { server, gateways: [first, second] })
    }

    /// SIGKILL of one gateway, and its start again at the same address.
    pub fn kill_and_restart(&mut self, which: usize) -> Result<()> {
        let network = &mut self.gateways[which];
        let address = network.s3().trim_start_matches("http://").to_owned();
        network.gateway.kill()?;
        let (gateway, info) = start(&network.data, &self.server.url(), &address)?;
        gateway.wait_event("ready")?;
        (network.gateway, network.info) = (gateway, info);
        Ok(())
    }
}
