//! The rules of the repository, as tests: which part may see which, and how long a file may grow.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// What each part may depend on, in any way: normal, build or test dependency.
///
/// protocol <- proofs <- storage-node; protocol, proofs <- retrieval <- gateway; the command line sees all; nothing
/// sees the command line, tests or bench; storage-node and retrieval never see each other.
fn allowed() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let parts = [
        ("holdfast-protocol", vec![]),
        ("holdfast-proofs", vec!["holdfast-protocol"]),
        ("holdfast-storage-node", vec!["holdfast-protocol", "holdfast-proofs"]),
        ("holdfast-retrieval", vec!["holdfast-protocol", "holdfast-proofs"]),
        ("holdfast-gateway", vec!["holdfast-protocol", "holdfast-proofs", "holdfast-retrieval"]),
        (
            "holdfast",
            vec![
                "holdfast-protocol",
                "holdfast-proofs",
                "holdfast-storage-node",
                "holdfast-retrieval",
                "holdfast-gateway",
            ],
        ),
        (
            "holdfast-bench",
            vec!["holdfast-protocol", "holdfast-proofs", "holdfast-storage-node", "holdfast-retrieval"],
        ),
        ("holdfast-tests", vec!["holdfast-protocol", "holdfast-proofs"]),
    ];
    parts.into_iter().map(|(part, may)| (part, may.into_iter().collect())).collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_path_buf()
}

#[test]
fn arrows_between_parts_point_one_way() -> Result<()> {
    let output = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .context("cargo metadata")?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let allowed = allowed();
    let mut seen = BTreeSet::new();
    let mut forbidden = Vec::new();
    for package in metadata["packages"].as_array().context("packages")? {
        let name = package["name"].as_str().context("name")?;
        let may =
            allowed.get(name).with_context(|| format!("{name} is a new part: give it its arrows here"))?;
        seen.insert(name.to_owned());
        for dependency in package["dependencies"].as_array().context("dependencies")? {
            let target = dependency["name"].as_str().context("dependency name")?;
            if allowed.contains_key(target) && !may.contains(target) {
                forbidden.push(format!("{name} -> {target}"));
            }
        }
    }
    assert_eq!(seen.len(), allowed.len(), "parts found: {seen:?}");
    assert!(forbidden.is_empty(), "these arrows point the wrong way: {forbidden:?}");
    Ok(())
}

/// Licences that a dependency may come under, each as crates write it.
const LICENCES: [&str; 10] = [
    "MIT",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "CC0-1.0",
    "BSL-1.0",
    "Unlicense",
];

#[test]
fn dependencies_come_from_the_registry_by_the_workspace_under_free_licences() -> Result<()> {
    let output = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
        .args(["metadata", "--offline", "--locked", "--format-version", "1", "--filter-platform"])
        .arg("x86_64-unknown-linux-gnu")
        .current_dir(root())
        .output()
        .context("cargo metadata")?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let mut strange = Vec::new();
    for package in metadata["packages"].as_array().context("packages")? {
        let name = package["name"].as_str().context("name")?;
        let source = package["source"].as_str();
        let is_ours = name == "holdfast" || name.starts_with("holdfast-");
        if is_ours != source.is_none() || source.is_some_and(|source| !source.starts_with("registry+")) {
            strange.push(format!("{name} comes from {source:?}"));
        }
        let licence = package["license"].as_str().unwrap_or("none");
        let words = licence.split([' ', '/', '(', ')']).filter(|word| !word.is_empty());
        if !words.clone().any(|word| LICENCES.contains(&word)) {
            strange.push(format!("{name} is under {licence}"));
        }
    }
    for part in allowed().keys() {
        let folder = part.strip_prefix("holdfast-").unwrap_or("cli");
        let manifest = std::fs::read_to_string(root().join(folder).join("Cargo.toml"))?;
        let dependencies = manifest.split_once("[dependencies]").map_or("", |(_, rest)| rest);
        let own = dependencies.lines().filter(|line| line.contains("= \"") || line.contains("version ="));
        strange.extend(own.map(|line| format!("{folder} chooses its own version: {line}")));
    }
    assert!(strange.is_empty(), "{strange:#?}");
    Ok(())
}

#[test]
fn no_source_file_outgrows_800_lines() -> Result<()> {
    let mut long = Vec::new();
    for file in rust_files(&root())? {
        let text = std::fs::read_to_string(&file)?;
        let lines = text.lines().take_while(|line| *line != "#[cfg(test)]").count();
        if lines > 800 {
            long.push(format!("{}: {lines}", file.display()));
        }
    }
    assert!(long.is_empty(), "something wants to leave these files: {long:?}");
    Ok(())
}

#[test]
fn every_source_file_says_what_it_owns() -> Result<()> {
    let mut silent = Vec::new();
    for file in rust_files(&root())? {
        let text = std::fs::read_to_string(&file)?;
        let is_tests = file.file_name().is_some_and(|name| name == "tests.rs");
        if !is_tests && !text.starts_with("//!") && !text.starts_with("#!") {
            silent.push(file.display().to_string());
        }
    }
    assert!(silent.is_empty(), "these files have no head: {silent:?}");
    Ok(())
}

fn rust_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> =
        ["protocol", "proofs", "storage-node", "retrieval", "gateway", "cli", "bench", "tests"]
            .iter()
            .map(|part| root.join(part))
            .collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                if path.file_name().is_some_and(|name| name != "target" && name != "node_modules") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    anyhow::ensure!(files.len() > 20, "found only {} source files under {}", files.len(), root.display());
    Ok(files)
}
