//! Two gateways on one PostgreSQL: one namespace, read-after-write across them, and either may die at any time.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use holdfast_tests::gateways::{init_and_confirm, init_from, network, start};
use holdfast_tests::postgres::Postgres;
use holdfast_tests::uploads::{self, Uploads};
use holdfast_tests::{Network, bytes_of, program};

/// Acknowledged uploads before a gateway is killed.
const UPLOADS_BEFORE_KILL: usize = 40;

#[test]
fn two_gateways_on_one_database_serve_one_namespace_and_either_may_die() -> Result<()> {
    let root = tempfile::tempdir()?;
    let server = Postgres::start()?;
    let (one, two, recovery) =
        (root.path().join("one"), root.path().join("two"), root.path().join("recovery.txt"));
    let code = init_and_confirm(&one, &recovery)?;
    let wrong = format!("{}{}", if code.starts_with('Z') { 'Y' } else { 'Z' }, &code[1..]);
    ensure!(!init_from(&root.path().join("wrong"), &recovery, &wrong)?, "a wrong code opens nothing");
    ensure!(init_from(&two, &recovery, &code)?);
    let mut first = network(&one, &server.url())?;
    for index in 0..6 {
        first.add_node(&root.path().join(format!("node-{index}")), None)?;
    }
    first.gateway.wait_event("ready")?;
    // It was told of no node: it knows them from the metadata.
    let mut second = network(&two, &server.url())?;
    second.gateway.wait_event("ready")?;
    assert_eq!(first.info["namespace"], second.info["namespace"]);
    reads_follow_writes(root.path(), &first, &second)?;

    // The first owns the shared work; it dies in the middle of uploads, and the second has all that it acknowledged.
    first.wait_api("/api/v1/status", "the first gateway owns the work", |status| {
        status["owns_upkeep"] == true
    })?;
    first.aws_ok(&["s3", "mb", "s3://crash"])?;
    let uploads = Uploads::start(&first, UPLOADS_BEFORE_KILL)?;
    first.gateway.kill()?;
    uploads::check(&second, &uploads.ended()?)?;

    // The second takes the work over and delivers what the first left.
    second.wait_api("/api/v1/status", "the second gateway takes over and delivers", |status| {
        status["owns_upkeep"] == true && status["deliveries_waiting"] == false
    })?;
    let (gateway, info) = start(&one, &server.url(), "127.0.0.1:0")?;
    gateway.wait_event("ready")?;
    (first.gateway, first.info) = (gateway, info);
    let file = root.path().join("after.bin");
    std::fs::write(&file, bytes_of("after", 3_000_000))?;
    second.holdfast(&["put", file.to_str().context("UTF-8")?, "shared/after"])?;
    second.gateway.kill()?;
    let got = root.path().join("got-after");
    first.holdfast(&["get", "shared/after", got.to_str().context("UTF-8")?])?;
    assert!(std::fs::read(&got)? == bytes_of("after", 3_000_000));
    first.gateway.stop()
}

fn reads_follow_writes(root: &Path, first: &Network, second: &Network) -> Result<()> {
    for (turn, (writer, reader)) in [(first, second), (second, first)].into_iter().enumerate() {
        let (file, got) = (root.join(format!("put-{turn}")), root.join(format!("got-{turn}")));
        for size in [0, 100_000, 9_000_000] {
            let bytes = bytes_of(&format!("{turn}/{size}"), size);
            std::fs::write(&file, &bytes)?;
            // One key over and over: a gateway that believed what it read before would show the older bytes.
            writer.holdfast(&["put", file.to_str().context("UTF-8")?, "shared/same"])?;
            reader.holdfast(&["get", "shared/same", got.to_str().context("UTF-8")?])?;
            assert!(std::fs::read(&got)? == bytes, "turn {turn}: {size} bytes");
        }
        writer.holdfast(&["rm", "shared/same"])?;
        let listed = reader.holdfast(&["ls", "shared", "--recursive"])?;
        assert!(!listed.iter().any(|line| line["key"] == "same"), "{listed:?}");
    }
    // A key that one gateway made opens the other at once; one that was revoked here is closed there within a second.
    let made =
        first.holdfast(&["key", "create", "--person", "alice", "--bucket", "shared", "--allow", "list"])?;
    let made = made.first().context("one line")?.clone();
    let list = || -> Result<bool> {
        let output = Command::new(program()?)
            .args(["--json", "ls", "shared", "--gateway", &second.s3()])
            .env("AWS_ACCESS_KEY_ID", made["access_key"].as_str().unwrap_or_default())
            .env("AWS_SECRET_ACCESS_KEY", made["secret_key"].as_str().unwrap_or_default())
            .output()?;
        Ok(output.status.success())
    };
    ensure!(list()?, "the other gateway knows the key");
    first.holdfast(&["key", "revoke", made["access_key"].as_str().context("a key")?])?;
    let asked = std::time::Instant::now();
    while list()? {
        ensure!(asked.elapsed().as_secs() < 30, "the other gateway still believes a revoked key");
    }
    Ok(())
}
