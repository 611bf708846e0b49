//! Nothing acknowledged is lost when a process dies at any moment.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use holdfast_tests::{Network, succeeded};

/// Acknowledged uploads before each kill: enough for small groups, large objects and parts to be in flight.
const UPLOADS_BEFORE_KILL: usize = 60;

#[test]
fn a_gateway_killed_in_the_middle_of_uploads_has_all_that_it_acknowledged() -> Result<()> {
    let root = tempfile::tempdir()?;
    let mut network = Network::separate(root.path(), 6, &[])?;
    network.aws_ok(&["s3", "mb", "s3://crash"])?;
    let mut acknowledged = String::new();
    for round in 0..3 {
        let mut command = network.python_command("upload_until_killed.py", &["4"])?;
        let mut uploads = command.stdout(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(uploads.stdout.take().context("piped")?).lines();
        let mut seen = Vec::new();
        while seen.len() < UPLOADS_BEFORE_KILL {
            seen.push(lines.next().context("the uploads ended early")??);
        }
        network.restart_gateway()?;
        // What was acknowledged between our last look and the kill counts too.
        seen.extend(lines.map_while(Result::ok));
        uploads.wait()?;
        ensure!(seen.len() >= UPLOADS_BEFORE_KILL, "round {round}: only {}", seen.len());
        acknowledged.push_str(&seen.join("\n"));
        acknowledged.push('\n');
    }
    let mut command = network.python_command("check_acknowledged.py", &[])?;
    let mut check = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    check.stdin.take().context("piped")?.write_all(acknowledged.as_bytes())?;
    let said = succeeded(check.wait_with_output()?, "check_acknowledged.py")?;
    assert!(said.contains("acknowledged objects are there"), "{said}");
    Ok(())
}

#[test]
fn nodes_killed_and_restarted_have_all_that_they_acknowledged() -> Result<()> {
    let root = tempfile::tempdir()?;
    let data = root.path().join("data");
    let file = root.path().join("object.bin");
    let bytes = holdfast_tests::bytes_of("survivor", 30_000_000);
    std::fs::write(&file, &bytes)?;
    for round in 0..3 {
        let mut network = Network::up(&data, &["--separate-nodes"])?;
        if round > 0 {
            let got = root.path().join(format!("got-{round}"));
            let key = format!("survivors/{}", round - 1);
            network.holdfast(&["get", &key, got.to_str().context("UTF-8")?])?;
            assert!(std::fs::read(&got)? == bytes, "round {round}: the bytes differ");
        }
        let target = format!("survivors/{round}");
        network.holdfast(&["put", file.to_str().context("UTF-8")?, &target])?;
        // Everything dies at once, the moment after the acknowledgement.
        for (_, pid) in network.started_nodes() {
            holdfast_tests::signal(pid, rustix::process::Signal::KILL)?;
        }
        network.gateway.kill()?;
    }
    Ok(())
}
