//! Nodes that lie to readers: every byte stays right, and the culprit is named.

use anyhow::{Context, Result};
use holdfast_tests::{Network, bytes_of};

fn reads_stay_right_and_the_culprit_is_named(lie: &str) -> Result<()> {
    let root = tempfile::tempdir()?;
    let network = Network::separate(root.path(), 6, &[(2, lie)])?;
    let nodes = network.api("/api/v1/nodes")?;
    assert_eq!(nodes["nodes"].as_array().map(Vec::len), Some(6));
    let running = std::fs::read_to_string(root.path().join("node-2/running.json"))?;
    let culprit: serde_json::Value = serde_json::from_str(&running)?;
    let culprit = culprit["id"].as_str().context("id")?;

    let source = root.path().join("source.bin");
    let bytes = bytes_of(lie, 25_000_000);
    std::fs::write(&source, &bytes)?;
    network.holdfast(&["put", source.to_str().context("UTF-8")?, "lies/object"])?;
    let copy = root.path().join("copy.bin");
    network.holdfast(&["get", "lies/object", copy.to_str().context("UTF-8")?])?;
    assert!(std::fs::read(&copy)? == bytes, "{lie}: the bytes differ");
    let said = network.python("ranges_equal.py", &["lies", "object", source.to_str().context("UTF-8")?])?;
    assert!(said.contains("ranges equal"), "{said}");

    let culprits = network.wait_api("/api/v1/culprits", "the culprit is named", |culprits| {
        culprits["culprits"].as_array().is_some_and(|list| list.iter().any(|one| one["node"] == culprit))
    })?;
    let list = culprits["culprits"].as_array().context("culprits")?;
    assert!(list.iter().all(|one| one["node"] == culprit), "only the liar is named: {culprits}");
    Ok(())
}

#[test]
fn a_node_that_flips_one_bit() -> Result<()> {
    reads_stay_right_and_the_culprit_is_named("flip-bit")
}

#[test]
fn a_node_that_truncates() -> Result<()> {
    reads_stay_right_and_the_culprit_is_named("truncate")
}

#[test]
fn a_node_that_stalls() -> Result<()> {
    reads_stay_right_and_the_culprit_is_named("stall")
}

#[test]
fn a_node_that_answers_with_another_block() -> Result<()> {
    reads_stay_right_and_the_culprit_is_named("other-block")
}

#[test]
fn a_node_that_speaks_garbage() -> Result<()> {
    reads_stay_right_and_the_culprit_is_named("garbage")
}
