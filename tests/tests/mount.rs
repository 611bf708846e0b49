//! The mount and snapshots, with real processes: the examples of `docs/MOUNT.md`, the end of a mount, a dead gateway.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use holdfast_tests::mounted::{Mount, has_fuse};
use holdfast_tests::{Network, bytes_of, client_program, program, succeeded, write_file};

/// Shell blocks of a page.
fn examples(page: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if line == "```sh" {
            blocks.push(lines.by_ref().take_while(|line| *line != "```").collect::<Vec<_>>().join("\n"));
        }
    }
    blocks
}

#[test]
fn the_examples_of_the_page_do_what_it_says() -> Result<()> {
    if !has_fuse()? {
        return Ok(());
    }
    let root = tempfile::tempdir()?;
    let network = Network::up(&root.path().join("data"), &[])?;
    network.aws_ok(&["s3", "mb", "s3://examples"])?;
    let here = Mount::new(&network, root.path(), "here", "examples", &[])?;
    let there = Mount::new(&network, root.path(), "there", "examples", &[])?;
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/MOUNT.md");
    let blocks = examples(&std::fs::read_to_string(page)?);
    ensure!(blocks.len() >= 9, "only {} examples were found", blocks.len());
    let python = client_program("python")?;
    for (number, block) in blocks.iter().enumerate() {
        let name = format!("example-{number}");
        let (mine, theirs) = (here.dir.join(&name), there.dir.join(&name));
        std::fs::create_dir(&mine)?;
        let scratch = tempfile::tempdir()?;
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", block])
            .envs([("HERE", &mine), ("THERE", &theirs), ("PYTHON", &python)])
            .env("SCRATCH", scratch.path())
            .output()?;
        succeeded(output, &format!("this example:\n{block}\n"))?;
    }
    for mut mount in [here, there] {
        mount.stop()?;
        assert_eq!(std::fs::read_dir(&mount.dir)?.count(), 0, "unmounted");
    }
    Ok(())
}

#[test]
fn the_end_of_a_mount_saves_what_is_still_open() -> Result<()> {
    if !has_fuse()? {
        return Ok(());
    }
    let root = tempfile::tempdir()?;
    let network = Network::up(&root.path().join("data"), &[])?;
    network.aws_ok(&["s3", "mb", "s3://ending"])?;
    let mut mount = Mount::new(&network, root.path(), "m", "ending", &[])?;
    let held = bytes_of("still open", 20_000_000);
    let mut file = std::fs::File::create(mount.dir.join("open.bin"))?;
    file.write_all(&held)?;
    // Not closed, not synced: the signal comes first.
    mount.process()?.terminate()?;
    mount.process()?.wait_event("unmounting")?;
    drop(file);
    assert_eq!(mount.process()?.wait_code()?, Some(0));
    network.aws_ok(&[
        "s3",
        "cp",
        "s3://ending/open.bin",
        root.path().join("back").to_str().context("UTF-8")?,
    ])?;
    ensure!(std::fs::read(root.path().join("back"))? == held, "the bucket holds other bytes");
    Ok(())
}

#[test]
fn a_gateway_that_is_gone_is_eio_and_no_hung_process() -> Result<()> {
    if !has_fuse()? {
        return Ok(());
    }
    let root = tempfile::tempdir()?;
    let mut network = Network::up(&root.path().join("data"), &[])?;
    network.aws_ok(&["s3", "mb", "s3://gone"])?;
    let mut mount = Mount::new(&network, root.path(), "m", "gone", &["--timeout", "2s"])?;
    std::fs::write(mount.dir.join("a"), bytes_of("a", 9_000_000))?;
    let mut writer = std::fs::File::create(mount.dir.join("unsaved"))?;
    writer.write_all(b"what was written")?;
    network.gateway.kill()?;
    let errno = |error: std::io::Error| error.raw_os_error();
    assert_eq!(writer.sync_all().err().and_then(errno), Some(libc::EIO));
    assert_eq!(std::fs::metadata(mount.dir.join("never asked for")).err().and_then(errno), Some(libc::EIO));
    assert_eq!(std::fs::read_dir(&mount.dir)?.next().and_then(Result::err).and_then(errno), Some(libc::EIO));
    drop(writer);
    let staging = root.path().join("m.staging");
    // It ends, says what was left, and leaves it.
    mount.process()?.terminate()?;
    assert_eq!(mount.process()?.wait_code()?, Some(1), "something was left");
    let left: Vec<_> = std::fs::read_dir(&staging)?
        .filter_map(|entry| std::fs::read(entry.ok()?.path()).ok())
        .filter(|bytes| bytes == b"what was written")
        .collect();
    assert_eq!(left.len(), 1);
    Ok(())
}

#[test]
fn a_snapshot_stays_what_it_was() -> Result<()> {
    if !has_fuse()? {
        return Ok(());
    }
    let root = tempfile::tempdir()?;
    let network = Network::up(&root.path().join("data"), &[])?;
    let source = root.path().join("source");
    write_file(&source, "a/one.bin", &bytes_of("one", 100_000))?;
    write_file(&source, "b/large.bin", &bytes_of("large", 40_000_000))?;
    write_file(&source, "empty", b"")?;
    network.holdfast(&["put", source.to_str().context("UTF-8")?, "data/v1"])?;
    let made = network.holdfast(&["snapshot", "create", "data/v1", "run-42"])?;
    let cid = made[0]["cid"].as_str().context("cid")?.to_owned();
    assert_eq!((made[0]["objects"].as_u64(), made[0]["bytes"].as_u64()), (Some(3), Some(40_100_000)));
    // Without the network's directory, and so without its admin token: the keys are enough.
    let credentials = network.data.join("credentials");
    let output = Command::new(program()?)
        .args(["--json", "snapshot", "create", "data/v1", "run-43", "--gateway", &network.s3()])
        .env("AWS_SHARED_CREDENTIALS_FILE", &credentials)
        .env("AWS_PROFILE", "holdfast")
        .output()?;
    let again: Vec<serde_json::Value> =
        succeeded(output, "snapshot create")?.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    assert_eq!(again[0]["cid"], cid.as_str(), "the same content has the same CID");

    network.aws_ok(&["s3", "rm", "s3://data", "--recursive"])?;
    write_file(&source, "a/one.bin", b"another")?;
    network.holdfast(&["put", source.join("a").to_str().context("UTF-8")?, "data/v1/a"])?;
    network.aws_ok(&["s3", "rm", "s3://data", "--recursive"])?;
    let mount = Mount::new(&network, root.path(), "m", &cid, &[])?;
    ensure!(std::fs::read(mount.dir.join("b/large.bin"))? == bytes_of("large", 40_000_000), "other bytes");
    ensure!(std::fs::read(mount.dir.join("a/one.bin"))? == bytes_of("one", 100_000), "other bytes");
    assert_eq!(std::fs::metadata(mount.dir.join("empty"))?.len(), 0);
    let refused = std::fs::write(mount.dir.join("new"), b"").err().and_then(|error| error.raw_os_error());
    assert_eq!(refused, Some(libc::EROFS));

    let bucket = format!("s3://cid-{cid}");
    assert!(network.aws_ok(&["s3", "ls", &bucket, "--recursive"])?.contains("b/large.bin"));
    let back = root.path().join("back");
    network.aws_ok(&["s3", "cp", &format!("{bucket}/a/one.bin"), back.to_str().context("UTF-8")?])?;
    for refused in [
        vec!["s3", "cp", back.to_str().context("UTF-8")?, &bucket],
        vec!["s3", "rm", &bucket, "--recursive"],
        vec!["s3", "rb", &bucket],
    ] {
        let output = network.aws(&refused)?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!output.status.success() && said.contains("snapshot"), "{refused:?}: {said}");
    }
    assert!(!network.aws_ok(&["s3", "ls"])?.contains("cid-"), "snapshots are listed elsewhere");
    assert_eq!(network.holdfast(&["snapshot", "list"])?.len(), 2);

    network.holdfast(&["snapshot", "rm", "run-42"])?;
    assert!(network.aws_ok(&["s3", "ls", &bucket])?.contains("empty"), "another name still pins it");
    drop(mount);
    network.holdfast(&["snapshot", "rm", "run-43"])?;
    assert!(!network.aws(&["s3", "ls", &bucket])?.status.success(), "let go");
    assert!(network.holdfast(&["snapshot", "list"])?.is_empty());
    Ok(())
}
