//! Nothing acknowledged is lost when a process dies at any moment.

use anyhow::{Context, Result};
use holdfast_tests::Network;
use holdfast_tests::uploads::{self, Uploads};

/// Acknowledged uploads before each kill: enough for small groups, large objects and parts to be in flight.
const UPLOADS_BEFORE_KILL: usize = 60;

#[test]
fn a_gateway_killed_in_the_middle_of_uploads_has_all_that_it_acknowledged() -> Result<()> {
    let root = tempfile::tempdir()?;
    let mut network = Network::separate(root.path(), 6, &[])?;
    network.aws_ok(&["s3", "mb", "s3://crash"])?;
    let mut acknowledged = Vec::new();
    for _ in 0..3 {
        let uploads = Uploads::start(&network, UPLOADS_BEFORE_KILL)?;
        network.restart_gateway()?;
        acknowledged.extend(uploads.ended()?);
    }
    uploads::check(&network, &acknowledged)?;
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
