//! Real clients on one network: what they may do works, what they must not do is refused clearly.

use anyhow::Result;
use holdfast_tests::{Network, bytes_of, http_get, succeeded, tree, wait_metric, write_file};

#[test]
fn boto3_speaks_every_call_of_this_release() -> Result<()> {
    let root = tempfile::tempdir()?;
    let network = Network::up(&root.path().join("data"), &[])?;
    let said = network.python("s3_semantics.py", &[])?;
    assert_eq!(said.lines().filter(|line| line.starts_with("held:")).count(), 11, "{said}");
    Ok(())
}

#[test]
fn the_page_on_s3_says_what_is_so() -> Result<()> {
    let root = tempfile::tempdir()?;
    let network = Network::up(&root.path().join("data"), &[])?;
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/S3.md");
    let said = network.python("run_document.py", &[page.to_str().unwrap_or_default()])?;
    let blocks = std::fs::read_to_string(page)?.matches("\n```python\n").count();
    // The page locks an object of one block, which has two blocks of parity: their three nodes are told.
    let retained = "holdfast_delivered_blocks_total{kind=\"retain\"} 3";
    wait_metric(&network.web(), "telling the nodes of a lock", |line| line == retained)?;
    assert!(blocks >= 11 && said.contains(&format!("blocks: {blocks}\n")), "{said}");
    Ok(())
}

#[test]
fn the_aws_cli_does_what_it_should_and_hears_no_otherwise() -> Result<()> {
    let root = tempfile::tempdir()?;
    let network = Network::up(&root.path().join("data"), &[])?;
    let source = root.path().join("source");
    write_file(&source, "a/one.bin", &bytes_of("one", 100_000))?;
    write_file(&source, "b/large.bin", &bytes_of("large", 30_000_000))?;
    write_file(&source, "c d/ü.txt", b"text")?;
    let (from, copy) = (source.to_str().expect("UTF-8"), root.path().join("copy"));
    network.aws_ok(&["s3", "mb", "s3://cli"])?;
    network.aws_ok(&["s3", "sync", "--quiet", from, "s3://cli/tree"])?;
    network.aws_ok(&["s3", "sync", "--quiet", "s3://cli/tree", copy.to_str().expect("UTF-8")])?;
    assert_eq!(tree(&copy)?, tree(&source)?);
    network.aws_ok(&["s3", "mv", "--quiet", "s3://cli/tree/a/one.bin", "s3://cli/moved.bin"])?;
    let listed = network.aws_ok(&["s3", "ls", "s3://cli", "--recursive"])?;
    assert!(listed.contains("moved.bin") && !listed.contains("one.bin"), "{listed}");
    let enabled = "Status=Enabled";
    network.aws_ok(&[
        "s3api",
        "put-bucket-versioning",
        "--bucket",
        "cli",
        "--versioning-configuration",
        enabled,
    ])?;
    network.aws_ok(&["s3api", "delete-object", "--bucket", "cli", "--key", "moved.bin"])?;
    let versions =
        network.aws_ok(&["s3api", "list-object-versions", "--bucket", "cli", "--prefix", "moved"])?;
    assert!(versions.contains("DeleteMarkers") && versions.contains("\"VersionId\": \"null\""), "{versions}");

    let refused = |args: &[&str], code: &str| -> Result<()> {
        let output = network.aws(args)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(code), "{args:?}: {said}");
        Ok(())
    };
    refused(&["s3api", "get-object", "--bucket", "cli", "--key", "moved.bin", "/dev/null"], "NoSuchKey")?;
    refused(&["s3api", "head-bucket", "--bucket", "nobody"], "404")?;
    refused(&["s3", "rb", "s3://cli"], "BucketNotEmpty")?;
    refused(
        &["s3api", "put-object", "--bucket", "cli", "--key", "k", "--storage-class", "GLACIER"],
        "InvalidStorageClass",
    )?;
    let range = [
        "s3api",
        "get-object",
        "--bucket",
        "cli",
        "--key",
        "tree/b/large.bin",
        "--range",
        "bytes=99999999-",
        "/dev/null",
    ];
    refused(&range, "InvalidRange")?;
    Ok(())
}

#[test]
fn data_tools_read_and_write_what_they_should() -> Result<()> {
    let root = tempfile::tempdir()?;
    let network = Network::up(&root.path().join("data"), &[])?;
    let said = network.data_python("data_clients.py", &[])?;
    assert_eq!(said.lines().filter(|line| line.starts_with("held:")).count(), 5, "{said}");
    Ok(())
}

#[test]
fn bad_input_gets_clear_errors_and_loses_nothing() -> Result<()> {
    let root = tempfile::tempdir()?;
    let network = Network::up(&root.path().join("data"), &[])?;
    let said = network.python("bad_input.py", &[])?;
    assert_eq!(said.lines().filter(|line| line.starts_with("held:")).count(), 8, "{said}");
    Ok(())
}

#[test]
fn our_own_client_puts_gets_lists_and_removes() -> Result<()> {
    let root = tempfile::tempdir()?;
    let network = Network::up(&root.path().join("data"), &[])?;
    let source = root.path().join("source");
    write_file(&source, "a/one.bin", &bytes_of("one", 100_000))?;
    write_file(&source, "b/large.bin", &bytes_of("large", 40_000_000))?;
    write_file(&source, "empty", b"")?;
    let put = network.holdfast(&["put", source.to_str().expect("UTF-8"), "own/tree"])?;
    assert_eq!(put.len(), 3);
    assert!(put.iter().all(|file| file["cid"].as_str().is_some_and(|cid| cid.starts_with("baf"))), "{put:?}");
    let copy = root.path().join("copy");
    network.holdfast(&["get", "own/tree/", copy.to_str().expect("UTF-8")])?;
    assert_eq!(tree(&copy)?, tree(&source)?);
    let listed = network.holdfast(&["ls", "own/tree/", "--recursive"])?;
    assert_eq!(listed.len(), 3);
    network.holdfast(&["rm", "own/tree/", "--recursive"])?;
    assert!(network.holdfast(&["ls", "own/tree/", "--recursive"])?.is_empty());
    Ok(())
}

#[test]
fn the_web_side_tells_health_and_metrics_and_guards_the_admin_api() -> Result<()> {
    let root = tempfile::tempdir()?;
    let network = Network::up(&root.path().join("data"), &[])?;
    let web = network.web();
    assert_eq!(http_get(&web, "/healthz", &[])?.0, 200);
    assert!(http_get(&web, "/metrics", &[])?.1.contains("holdfast_"));
    let (status, body) = http_get(&web, "/api/v1/openapi.json", &[])?;
    assert_eq!(status, 200);
    assert!(serde_json::from_str::<serde_json::Value>(&body)?["paths"].is_object());
    assert!(http_get(&web, "/", &[])?.1.contains("Holdfast"));
    let (status, _) = http_get(&web, "/api/v1/culprits", &[("Authorization", "Bearer wrong")])?;
    assert_eq!(status, 401);
    assert_eq!(network.api("/api/v1/nodes")?["nodes"].as_array().map(Vec::len), Some(6));
    Ok(())
}

#[test]
fn a_challenger_gets_proofs_from_every_node() -> Result<()> {
    let root = tempfile::tempdir()?;
    let network = Network::up(&root.path().join("data"), &["--separate-nodes"])?;
    let source = root.path().join("source.bin");
    std::fs::write(&source, bytes_of("challenged", 12_345_678))?;
    network.holdfast(&["put", source.to_str().expect("UTF-8"), "challenged/object"])?;
    let reports = network.holdfast(&["auditor", "challenge", "--chunks", "20"])?;
    let nodes: Vec<_> = reports.iter().filter(|line| line["node"].is_string()).collect();
    assert_eq!(nodes.len(), 6, "{reports:?}");
    assert!(nodes.iter().all(|node| node["passed"] == 20 && node["failed"] == 0), "{reports:?}");
    Ok(())
}

#[test]
fn s3_over_tls_serves_those_who_trust_it() -> Result<()> {
    let root = tempfile::tempdir()?;
    let data = root.path().join("data");
    let network = Network::up(&data, &["--s3-tls-listen", "127.0.0.1:0"])?;
    let said_of = |name: &str| network.info[name].as_str().map(str::to_owned).unwrap_or_default();
    let (url, ca) = (said_of("s3_tls"), said_of("s3_tls_ca"));
    assert!(url.starts_with("https://127.0.0.1:"), "{}", network.info);
    let output = network.python_command("tls.py", &[&ca])?.env("HOLDFAST_S3", &url).output()?;
    let said = succeeded(output, "tls.py")?;
    assert_eq!(said.lines().filter(|line| line.starts_with("held:")).count(), 5, "{said}");

    let source = root.path().join("source.bin");
    std::fs::write(&source, bytes_of("tls", 20_000_000))?;
    let (source, copy) = (source.to_str().expect("UTF-8"), root.path().join("copy.bin"));
    let cli = ["--endpoint-url", &url, "--ca-bundle", &ca, "s3", "cp"];
    network.aws_ok(&[&cli[..], &[source, "s3://over-tls/cli"]].concat())?;
    network.aws_ok(&[&cli[..], &["s3://over-tls/cli", copy.to_str().expect("UTF-8")]].concat())?;
    assert_eq!(std::fs::read(&copy)?, std::fs::read(source)?);
    let doubting = network.aws(&["--endpoint-url", &url, "s3", "ls"])?;
    assert!(!doubting.status.success());
    assert!(String::from_utf8_lossy(&doubting.stderr).contains("CERTIFICATE_VERIFY_FAILED"), "{doubting:?}");

    let certificate = std::fs::read(&ca)?;
    network.gateway.stop()?;
    let again = Network::up(&data, &["--s3-tls-listen", "127.0.0.1:0"])?;
    assert_eq!(std::fs::read(&ca)?, certificate);
    assert_eq!(again.info["s3_tls_ca"].as_str(), Some(&*ca));
    Ok(())
}
