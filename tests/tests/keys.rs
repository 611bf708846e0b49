//! Access keys as people use them: made for a person, used by the AWS CLI, narrowed offline, shared as a link, revoked.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use holdfast_tests::{Network, client_program, http_get, program, succeeded};
use serde_json::Value;

/// Runs the AWS CLI with these keys and nothing else.
fn aws(network: &Network, keys: &Value, args: &[&str]) -> Result<Output> {
    let text = |name: &str| keys[name].as_str().unwrap_or_default().to_owned();
    let mut command = Command::new(client_program("aws")?);
    command
        .args(["--endpoint-url", &network.s3()])
        .args(args)
        .env("AWS_ACCESS_KEY_ID", text("access_key"))
        .env("AWS_SECRET_ACCESS_KEY", text("secret_key"))
        .env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        .env("AWS_CONFIG_FILE", "/nonexistent")
        .env("AWS_DEFAULT_REGION", "us-east-1")
        .env("AWS_EC2_METADATA_DISABLED", "true");
    let token = text("session_token");
    if !token.is_empty() {
        command.env("AWS_SESSION_TOKEN", token);
    }
    Ok(command.output()?)
}

fn refused(output: &Output, code: &str) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.contains(code), "expected {code}: {said}");
    Ok(())
}

fn one(lines: Vec<Value>) -> Result<Value> {
    lines.into_iter().next().context("one line")
}

#[test]
fn a_key_is_made_used_narrowed_shared_and_revoked() -> Result<()> {
    let root = tempfile::tempdir()?;
    let network = Network::up(&root.path().join("data"), &[])?;
    let file = root.path().join("a.txt");
    std::fs::write(&file, "one\n")?;
    let file = file.to_str().context("UTF-8")?;
    for target in ["datasets/v1/a.txt", "datasets/v2/b.txt", "private/c.txt"] {
        network.holdfast(&["put", file, target])?;
    }
    let alice = one(network.holdfast(&[
        "key",
        "create",
        "--person",
        "alice",
        "--bucket",
        "datasets",
        "--prefix",
        "v1/",
        "--allow",
        "read,list,write",
        "--quota",
        "1GB",
        "--rate",
        "100",
        "--expires",
        "30d",
    ])?)?;
    let got = succeeded(aws(&network, &alice, &["s3", "cp", "s3://datasets/v1/a.txt", "-"])?, "cp")?;
    assert_eq!(got, "one\n");
    succeeded(aws(&network, &alice, &["s3", "cp", file, "s3://datasets/v1/new.txt"])?, "put")?;
    refused(&aws(&network, &alice, &["s3", "cp", "s3://datasets/v2/b.txt", "-"])?, "403")?;
    refused(&aws(&network, &alice, &["s3", "ls", "s3://private"])?, "AccessDenied")?;
    refused(&aws(&network, &alice, &["s3", "ls", "s3://nowhere"])?, "AccessDenied")?;
    let buckets = succeeded(aws(&network, &alice, &["s3", "ls"])?, "ls")?;
    assert!(buckets.contains("datasets") && !buckets.contains("private"), "{buckets}");

    let friend = narrowed(root.path(), &alice)?;
    let got = succeeded(aws(&network, &friend, &["s3", "cp", "s3://datasets/v1/a.txt", "-"])?, "delegated")?;
    assert_eq!(got, "one\n");
    refused(&aws(&network, &friend, &["s3", "cp", file, "s3://datasets/v1/more.txt"])?, "AccessDenied")?;

    let link = one(network.holdfast(&["key", "share", "datasets/v2/b.txt", "--expires", "1h"])?)?;
    let url = link["url"].as_str().context("a link")?;
    let path = url.strip_prefix(&network.s3()).context("the gateway's own address")?;
    assert_eq!(http_get(&network.s3(), path, &[])?, (200, "one\n".to_owned()));
    assert_eq!(http_get(&network.s3(), &path.replace("v2/b.txt", "v1/a.txt"), &[])?.0, 403);
    let blocks = one(network.holdfast_offline(&["key", "inspect", url])?)?;
    let block = blocks[1]["revocation_id"].as_str().context("a block")?.to_owned();
    network.holdfast(&["key", "revoke", &block])?;
    assert_ne!(http_get(&network.s3(), path, &[])?.0, 200);

    let id = alice["access_key"].as_str().context("a key")?;
    let fresh = one(network.holdfast(&["key", "rotate", id])?)?;
    refused(&aws(&network, &alice, &["s3", "ls"])?, "InvalidAccessKeyId")?;
    refused(&aws(&network, &friend, &["s3", "cp", "s3://datasets/v1/a.txt", "-"])?, "403")?;
    succeeded(aws(&network, &fresh, &["s3", "cp", "s3://datasets/v1/a.txt", "-"])?, "rotated")?;
    what_was_written_down(&network, id)
}

/// What alice hands on without asking anybody.
fn narrowed(root: &Path, alice: &Value) -> Result<Value> {
    for (name, field) in [("alice.token", "token"), ("alice.secret", "secret_key")] {
        std::fs::write(root.join(name), alice[field].as_str().context("a field")?)?;
    }
    let output = Command::new(program()?)
        .current_dir(root)
        .args(["--json", "key", "delegate", "--token-file", "alice.token", "--secret-file", "alice.secret"])
        .args(["--access-key", alice["access_key"].as_str().context("a key")?])
        .args(["--prefix", "v1/", "--allow", "read", "--expires", "1h"])
        .output()?;
    Ok(serde_json::from_str(&succeeded(output, "key delegate")?)?)
}

fn what_was_written_down(network: &Network, id: &str) -> Result<()> {
    let trail = one(network.holdfast(&["key", "trail", "--access-key", id])?)?;
    let entries = trail["entries"].as_array().context("entries")?;
    let has = |operation: &str, status: u64| {
        entries.iter().any(|entry| entry["operation"] == operation && entry["status"] == status)
    };
    ensure!(has("PutObject", 200) && has("RotateAccessKey", 200), "{entries:?}");
    ensure!(entries.iter().any(|entry| entry["status"] == 403), "refusals are written down");
    ensure!(!has("GetObject", 200), "reads are not, unless they are asked for");
    ensure!(trail["chain_holds"] == true);
    let usage = one(network.holdfast(&["key", "usage", "--access-key", id])?)?;
    let row = &usage["rows"][0];
    ensure!(row["requests"].as_u64() >= Some(5) && row["refused"].as_u64() >= Some(2), "{usage}");
    Ok(())
}
