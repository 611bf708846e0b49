//! Starting and stopping: the second start finds everything, and what is in the way is named.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result};
use holdfast_tests::{Network, bytes_of, program};

#[test]
fn a_second_start_finds_everything_and_a_stop_is_clean() -> Result<()> {
    let root = tempfile::tempdir()?;
    let data = root.path().join("data");
    let file = root.path().join("file");
    std::fs::write(&file, bytes_of("kept", 9_000_000))?;
    let network = Network::up(&data, &[])?;
    network.holdfast(&["put", file.to_str().context("UTF-8")?, "kept/file"])?;
    let credentials = std::fs::read_to_string(data.join("credentials"))?;
    network.gateway.stop()?;
    // In one process or in seven: the directories are the same.
    for more in [&[][..], &["--separate-nodes"][..], &[][..]] {
        let network = Network::up(&data, more)?;
        let copy = root.path().join("copy");
        network.holdfast(&["get", "kept/file", copy.to_str().context("UTF-8")?])?;
        assert!(std::fs::read(&copy)? == std::fs::read(&file)?, "the bytes differ");
        assert_eq!(std::fs::read_to_string(data.join("credentials"))?, credentials, "keys stay the same");
        network.gateway.stop()?;
    }
    Ok(())
}

#[test]
fn secrets_on_disk_belong_to_their_owner_alone() -> Result<()> {
    let root = tempfile::tempdir()?;
    let data = root.path().join("data");
    let network = Network::up(&data, &[])?;
    let mut secrets = vec![data.join("credentials"), data.join("admin-token")];
    for entry in std::fs::read_dir(data.join("keys"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "key") {
            secrets.push(path);
        }
    }
    assert!(secrets.len() >= 5, "{secrets:?}");
    for secret in secrets {
        let mode = std::fs::metadata(&secret)?.permissions().mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", secret.display());
    }
    network.gateway.stop()
}

#[test]
fn a_full_network_refuses_writes_keeps_what_it_has_and_accounts_for_every_byte() -> Result<()> {
    let root = tempfile::tempdir()?;
    let data = root.path().join("data");
    let network = Network::up(&data, &["--separate-nodes", "--capacity", "200MB"])?;
    let said = network.python("fill_until_refused.py", &[])?;
    assert!(said.contains("held:"), "{said}");
    for status in statuses(&data)? {
        assert_eq!(status["capacity_bytes"], 200_000_000, "{status}");
        let of = |name: &str| status[name].as_u64().unwrap_or_default();
        assert!(of("paid_bytes") > 50_000_000 && of("paid_bytes") <= of("used_bytes"), "{status}");
    }
    network.gateway.stop()
}

#[test]
fn nodes_inside_the_process_answer_their_operator_too() -> Result<()> {
    let root = tempfile::tempdir()?;
    let data = root.path().join("data");
    let network = Network::up(&data, &["--capacity", "200MB"])?;
    let file = root.path().join("file");
    std::fs::write(&file, bytes_of("inside", 9_000_000))?;
    network.holdfast(&["put", file.to_str().context("UTF-8")?, "inside/file"])?;
    let used: u64 =
        statuses(&data)?.iter().map(|status| status["used_bytes"].as_u64().unwrap_or_default()).sum();
    assert!(used > 9_000_000 * 6 / 4, "{used} bytes are used");
    network.gateway.stop()?;
    assert!(!data.join("nodes/00/running.json").exists(), "a stopped node does not pass for a running one");
    Ok(())
}

/// What `node status --json` says of each of six nodes; the accounts of each add up.
fn statuses(data: &Path) -> Result<Vec<serde_json::Value>> {
    let mut all = Vec::new();
    for node in 0..6 {
        let dir = data.join(format!("nodes/{node:02}"));
        let output = Command::new(program()?)
            .args(["--json", "node", "status", "--dir", dir.to_str().context("UTF-8")?])
            .output()?;
        let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let of = |name: &str| status[name].as_u64().unwrap_or_default();
        let sum = of("used_bytes") + of("trash_bytes") + of("garbage_bytes") + of("free_bytes");
        assert_eq!(sum, of("capacity_bytes"), "{status}");
        all.push(status);
    }
    Ok(all)
}

#[test]
fn a_port_in_use_is_named_with_the_option_to_change() -> Result<()> {
    let root = tempfile::tempdir()?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let output = up_that_fails(&root.path().join("data"), &["--s3-listen", &address])?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains(&address) && error.contains("--s3-listen"), "{error}");
    Ok(())
}

#[test]
fn a_data_directory_of_a_newer_format_is_refused_untouched() -> Result<()> {
    let root = tempfile::tempdir()?;
    let data = root.path().join("data");
    Network::up(&data, &[])?.gateway.stop()?;
    let path = data.join("format");
    let newer = b"holdfast-gateway 999\n";
    std::fs::write(&path, newer)?;
    let output = up_that_fails(&data, &[])?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("newer") && error.contains("999"), "{error}");
    assert_eq!(std::fs::read(&path)?, newer);
    Ok(())
}

#[test]
fn a_second_network_on_the_same_directory_is_refused() -> Result<()> {
    let root = tempfile::tempdir()?;
    let data = root.path().join("data");
    let network = Network::up(&data, &[])?;
    let output = up_that_fails(&data, &[])?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("another") || error.contains("in use"), "{error}");
    network.gateway.stop()
}

#[test]
fn a_policy_larger_than_the_network_is_refused_by_name() -> Result<()> {
    let root = tempfile::tempdir()?;
    let output = up_that_fails(&root.path().join("data"), &["--policy", "standard"])?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("28") && error.contains("local"), "{error}");
    Ok(())
}

#[test]
fn help_has_examples_and_a_wrong_cid_says_so() -> Result<()> {
    for command in
        [&["up"][..], &["node", "run"], &["put"], &["get"], &["auditor", "challenge"], &["inspect"]]
    {
        let output = Command::new(program()?).args(command).arg("--help").output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("Example"), "{command:?} has no example:\n{text}");
    }
    let output = Command::new(program()?).args(["inspect", "not-a-cid"]).output()?;
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("no CID"), "{output:?}");
    Ok(())
}

fn up_that_fails(data: &Path, more: &[&str]) -> Result<Output> {
    let mut args = vec!["up", "--stop-on-stdin-eof", "--quic-port", "0", "--capacity", "1GB", "--data"];
    args.push(data.to_str().context("UTF-8")?);
    let takes = |option: &str| more.contains(&option);
    if !takes("--s3-listen") {
        args.extend(["--s3-listen", "127.0.0.1:0"]);
    }
    args.extend(["--web-listen", "127.0.0.1:0"]);
    args.extend(more);
    let output = Command::new(program()?).args(args).stdin(Stdio::null()).output()?;
    assert!(!output.status.success(), "it started");
    Ok(output)
}
