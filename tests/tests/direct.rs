//! Reads straight from the nodes, as their user does them: verified by the client, cached, recorded.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use holdfast_tests::{Network, bytes_of, http_get, program, signal, succeeded, tree, write_file};
use rustix::process::Signal;

/// A private bucket, five nodes of six: every byte right, a transcript that holds, a second epoch from the cache alone.
#[test]
fn a_private_data_set_is_read_from_the_nodes_again_from_the_cache_and_the_run_is_on_record() -> Result<()> {
    let root = tempfile::tempdir()?;
    let network = Network::up(&root.path().join("data"), &["--separate-nodes"])?;
    let source = root.path().join("source");
    for (name, len) in
        [("a/large.bin", 20_000_001), ("a/one.jpg", 100_000), ("b/tiny", 1), ("b/block", 1 << 20)]
    {
        write_file(&source, name, &bytes_of(name, len))?;
    }
    let path = |name: &str| root.path().join(name).to_str().map(str::to_owned).context("UTF-8");
    network.holdfast(&["put", &path("source")?, "train/v1"])?;
    let (_, pid) = network.started_nodes().pop().context("a node")?;
    signal(pid, Signal::KILL)?;

    let (cache, first, run) = (path("cache")?, path("first")?, path("run")?);
    let get = ["get", "train/v1/", &first, "--direct", "--cache", &cache, "--cache-size", "200MB"];
    let lines = network.holdfast(&[&get[..], &["--transcript", &run, "--label", "epoch 1"]].concat())?;
    ensure!(lines.len() == 4, "{lines:?}");
    ensure!(tree(root.path().join("first").as_path())? == tree(&source)?, "direct reads give other bytes");
    for line in &lines {
        let key = line["key"].as_str().context("key")?;
        let listed = network.api(&format!("/api/v1/objects?bucket=train&prefix={key}"))?;
        ensure!(listed["objects"][0]["cid"] == line["cid"], "{line} is not {listed}");
    }

    let verified = network.holdfast(&["transcript", "verify", &run, "--against", "train/v1/"])?;
    let verified = verified.first().context("a line")?;
    ensure!(verified["holds"] == true && verified["label"] == "epoch 1", "{verified}");
    ensure!(verified["bytes"] == 20_000_001 + 100_000 + 1 + (1 << 20), "{verified}");
    ensure!(verified["nodes"].as_u64() >= Some(3), "{verified}");
    let mut changed = std::fs::read(root.path().join("run"))?;
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    std::fs::write(root.path().join("changed"), changed)?;
    let refused = Command::new(program()?).args(["transcript", "verify", &path("changed")?]).output()?;
    ensure!(!refused.status.success(), "a transcript with one bit changed must not verify");

    // Every node gone: the gateway still tells what the object is, and the cache has its bytes.
    for (_, pid) in network.started_nodes() {
        // One is dead already.
        signal(pid, Signal::KILL).ok();
    }
    let second = path("second")?;
    network.holdfast(&[
        "get",
        "train/v1/",
        &second,
        "--direct",
        "--cache",
        &cache,
        "--cache-size",
        "200MB",
    ])?;
    ensure!(tree(root.path().join("second").as_path())? == tree(&source)?, "the cache gives other bytes");
    let without = Command::new(program()?)
        .args(["cat", "train/v1/a/one.jpg", "--direct", "--give-up-after", "2s", "--data"])
        .arg(root.path().join("data"))
        .output()?;
    ensure!(!without.status.success(), "without nodes and without the cache there is nothing to read");
    Ok(())
}

/// A ticket opens what its key may read, to the holder that it names, and a wrong root CID stops everything.
#[test]
fn the_client_insists_on_the_root_cid_it_was_told() -> Result<()> {
    let root = tempfile::tempdir()?;
    let network = Network::up(&root.path().join("data"), &[])?;
    write_file(root.path(), "file", &bytes_of("file", 3_000_000))?;
    let file = root.path().join("file");
    let stored = network.holdfast(&["put", file.to_str().context("UTF-8")?, "data/file"])?;
    let cid = stored[0]["cid"].as_str().context("cid")?.to_owned();
    let cat = |cid: &str| -> Result<std::process::Output> {
        Ok(Command::new(program()?)
            .args(["cat", "data/file", "--direct", "--cid", cid, "--data"])
            .arg(root.path().join("data"))
            .output()?)
    };
    let good = cat(&cid)?;
    ensure!(good.status.success() && good.stdout == bytes_of("file", 3_000_000));
    let other = cat("bafkr4iaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")?;
    ensure!(!other.status.success() && other.stdout.is_empty(), "nothing of another object is written");
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    ensure!(said.contains(&cid), "{said}");
    // Without a signature there is no ticket to a private bucket: it would hold the object's key.
    let holder = "z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK";
    let (status, _) = http_get(&network.s3(), &format!("/data/file?holdfast-ticket&holder={holder}"), &[])?;
    ensure!(status == 403, "an unsigned request for a ticket was answered {status}");
    let help = Command::new(program()?).args(["get", "--help"]).output()?;
    ensure!(succeeded(help, "get --help")?.contains("--transcript"));
    Ok(())
}
