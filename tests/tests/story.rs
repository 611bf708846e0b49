//! The main job from end to end: a real tree through a real client, two nodes killed, every byte back, repair.

use std::path::Path;

use anyhow::{Context, Result};
use holdfast_tests::{Network, bytes_of, signal, tree, write_file};
use rustix::process::Signal;

/// 1,000 small files, 20 shards and one checkpoint: 1,021 files, 510 MB.
fn make_tree(root: &Path) -> Result<()> {
    for index in 0..1000 {
        let len = 5_000 + (index * 7919) % 190_000;
        write_file(
            root,
            &format!("images/{:02}/{index:05}.jpg", index % 20),
            &bytes_of(&format!("image {index}"), len),
        )?;
    }
    for index in 0..20 {
        write_file(
            root,
            &format!("shards/{index:04}.tar"),
            &bytes_of(&format!("shard {index}"), 10_500_000),
        )?;
    }
    write_file(root, "checkpoints/model.safetensors", &bytes_of("checkpoint", 200_000_123))?;
    write_file(root, "empty", b"")
}

#[test]
fn a_tree_survives_two_dead_nodes_and_a_repair_brings_writes_back() -> Result<()> {
    let root = tempfile::tempdir()?;
    let (source, copy) = (root.path().join("source"), root.path().join("copy"));
    make_tree(&source)?;
    let before = tree(&source)?;
    assert!(before.len() >= 1000);

    let mut network = Network::up(&root.path().join("data"), &["--separate-nodes"])?;
    network.aws_ok(&["s3", "mb", "s3://datasets"])?;
    network.aws_ok(&["s3", "sync", "--quiet", source.to_str().context("UTF-8")?, "s3://datasets/tree"])?;

    // Two of six nodes die as by a power cut.
    let nodes = network.started_nodes();
    for (_, pid) in &nodes[1..3] {
        signal(*pid, Signal::KILL)?;
    }
    network.wait_api("/api/v1/nodes", "two nodes seen down", |nodes| count_state(nodes, "down") == 2)?;
    network.aws_ok(&["s3", "sync", "--quiet", "s3://datasets/tree", copy.to_str().context("UTF-8")?])?;
    assert_eq!(tree(&copy)?, before, "every byte comes back with two nodes dead");

    // Four nodes cannot take five receipts: writes are refused, and nothing half-written is visible.
    let refused = network.python("expect_slow_down.py", &["datasets", "refused.bin"])?;
    assert!(refused.contains("503 SlowDown"), "{refused}");
    assert!(refused.contains("visible: False"), "{refused}");

    // Two fresh nodes and a repair bring writes back.
    for index in 0..2 {
        network.add_node(&root.path().join(format!("fresh-{index}")), None)?;
    }
    let report = network.holdfast(&["repair", "run"])?;
    let report = report.last().context("a report")?;
    assert_eq!(report["waiting"], 0, "{report}");
    assert!(report["shards_rebuilt"].as_u64() > Some(500), "{report}");
    write_file(root.path(), "after.bin", &bytes_of("after", 3_000_000))?;
    let after = root.path().join("after.bin");
    network.aws_ok(&["s3", "cp", "--quiet", after.to_str().context("UTF-8")?, "s3://datasets/after.bin"])?;

    // The repaired network survives the loss of two more of the first nodes.
    for (_, pid) in &nodes[3..5] {
        signal(*pid, Signal::KILL)?;
    }
    std::fs::remove_dir_all(&copy)?;
    network.aws_ok(&["s3", "sync", "--quiet", "s3://datasets/tree", copy.to_str().context("UTF-8")?])?;
    assert_eq!(tree(&copy)?, before, "every byte comes back after repair with two more nodes dead");
    Ok(())
}

fn count_state(nodes: &serde_json::Value, state: &str) -> usize {
    let list = nodes["nodes"].as_array().map_or(&[][..], Vec::as_slice);
    list.iter().filter(|node| node["state"] == state).count()
}
