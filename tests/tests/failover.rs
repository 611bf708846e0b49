//! Load on two gateways of one database while all that may die dies, each in turn: what was acknowledged is read by the
//! other gateway at once, and nothing but 503 and silence is answered in between.

use std::io::{BufRead, BufReader, Lines};
use std::process::{ChildStdout, Stdio};

use anyhow::{Context, Result, ensure};
use holdfast_tests::gateways::Pair;

/// Progress lines, ten writes each, between two deaths.
const LINES_BETWEEN: usize = 6;

#[derive(Clone, Copy, Debug)]
enum Death {
    Gateway(usize),
    /// All of its processes at once, without a checkpoint.
    Database,
}

fn progress(lines: &mut Lines<BufReader<ChildStdout>>) -> Result<()> {
    for _ in 0..LINES_BETWEEN {
        let line = lines.next().context("the load ended early")??;
        ensure!(line.starts_with("acknowledged"), "{line}");
    }
    Ok(())
}

#[test]
fn gateways_and_their_database_die_under_load_and_nothing_acknowledged_is_lost() -> Result<()> {
    let root = tempfile::tempdir()?;
    let mut pair = Pair::start(root.path(), 6)?;
    let urls = format!("{} {}", pair.gateways[0].s3(), pair.gateways[1].s3());
    let mut load = pair.gateways[0]
        .python_command("two_gateways_load.py", &[])?
        .env("HOLDFAST_GATEWAYS", urls)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(load.stdout.take().context("piped")?).lines();
    for death in [Death::Gateway(0), Death::Database, Death::Gateway(1), Death::Gateway(0)] {
        progress(&mut lines).with_context(|| format!("before {death:?}"))?;
        match death {
            Death::Gateway(which) => pair.kill_and_restart(which)?,
            Death::Database => {
                pair.server.crash()?;
                pair.server.up()?;
            }
        }
    }
    progress(&mut lines)?;
    drop(load.stdin.take());
    let last = lines.map_while(Result::ok).last().unwrap_or_default();
    ensure!(load.wait()?.success() && last.starts_with("done"), "{last}");
    println!("{last}");
    // Each gateway's own view of rows and references is whole.
    for network in &pair.gateways {
        let status = network.api("/api/v1/status")?;
        ensure!(status["problems"].as_array().is_none_or(Vec::is_empty), "{status}");
    }
    let [first, second] = pair.gateways;
    first.gateway.stop()?;
    second.gateway.stop()
}
