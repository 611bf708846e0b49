//! Load on two gateways of one database while all that may die dies, each in turn: what was acknowledged is read by the
//! other gateway at once, and nothing but 503 and silence is answered in between.

use std::io::{BufRead, BufReader, Lines};
use std::process::{ChildStdout, Stdio};

use anyhow::{Context, Result, ensure};
use holdfast_tests::gateways::Pair;
use holdfast_tests::signal;
use rustix::process::Signal;

/// Progress lines, ten writes each, between two deaths.
const LINES_BETWEEN: usize = 6;

#[derive(Clone, Copy, Debug)]
enum Death {
    Gateway(usize),
    /// All of its processes at once, without a checkpoint.
    Database,
    /// Not a death: the owner of the shared work is stopped for longer than its lease, and goes on afterwards.
    Stall,
}

/// Stops the owner until the other gateway has taken the work over; the old one must notice when it goes on.
fn stall_owner(pair: &Pair) -> Result<()> {
    let mut owner = None;
    for (index, network) in pair.gateways.iter().enumerate() {
        if network.api("/api/v1/status")?["owns_upkeep"] == true {
            owner = Some(index);
        }
    }
    let owner = owner.context("somebody owns the work")?;
    let (stalled, heir) = (&pair.gateways[owner], &pair.gateways[1 - owner]);
    signal(stalled.gateway.pid(), Signal::STOP)?;
    let taken =
        heir.wait_api("/api/v1/status", "the other takes over", |status| status["owns_upkeep"] == true);
    signal(stalled.gateway.pid(), Signal::CONT)?;
    taken?;
    stalled.wait_api("/api/v1/status", "the old owner notices", |status| status["owns_upkeep"] == false)?;
    Ok(())
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
    let rounds = std::env::var("HOLDFAST_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1usize);
    let mut deaths =
        [Death::Gateway(0), Death::Database, Death::Gateway(1), Death::Gateway(0)].repeat(rounds);
    if rounds > 1 {
        deaths.push(Death::Stall);
    }
    for death in deaths {
        progress(&mut lines).with_context(|| format!("before {death:?}"))?;
        match death {
            Death::Gateway(which) => pair.kill_and_restart(which)?,
            Death::Database => {
                pair.server.crash()?;
                pair.server.up()?;
            }
            Death::Stall => stall_owner(&pair)?,
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
