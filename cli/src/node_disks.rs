//! What a disk owner does with disks: `node rebuild-index`, `node scrub`, and the health that a running node reports.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use holdfast_protocol::time::{Clock, SystemClock};
use holdfast_storage_node::disks::{DiskConfig, Disks, RebuildProgress, Rebuilt, rebuild_indexes};
use holdfast_storage_node::store::{Replayed, Store, StoreConfig, StoreHealth};
use holdfast_storage_node::{Node, NodeConfig};
use indicatif::ProgressBar;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::args::{NodeDisksArgs, NodeRunArgs};
use crate::network::write_private;
use crate::node::NodeFile;
use crate::output::Output;
use crate::sizes::ByteSize;

/// What a running node leaves in its directory about its disks.
const HEALTH_FILE: &str = "health.json";
/// How often it is written.
const HEALTH_EVERY: Duration = Duration::from_secs(10);

/// Takes the options about disks.
pub(crate) fn configure(config: &mut NodeConfig, args: &NodeRunArgs) {
    let disk = |disk: &crate::args::DiskArg| DiskConfig {
        dir: std::path::absolute(&disk.dir).unwrap_or_else(|_| disk.dir.clone()),
        capacity_bytes: disk.capacity.0,
    };
    config.disks = args.disks.iter().map(disk).collect();
    config.scrub_period_ms = u64::try_from(args.scrub_period.0.as_millis()).unwrap_or(u64::MAX);
}

/// Writes how the disks do into the node's directory, until `stop`.
pub(crate) fn report_health(node: &Arc<Node>, dir: &Path, stop: CancellationToken) -> JoinHandle<()> {
    let (node, path) = (Arc::clone(node), dir.join(HEALTH_FILE));
    tokio::spawn(async move {
        loop {
            let (disks, path) = (Arc::clone(node.store()), path.clone());
            // Looking at disks may wait for them.
            let written = tokio::task::spawn_blocking(move || {
                let report = json!({ "at_ms": SystemClock.now_ms(), "disks": readable(&disks.health()) });
                write_private(&path, report.to_string().as_bytes())
            });
            if let Ok(Err(error)) = written.await {
                tracing::debug!(%error, "the health report was not written");
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(HEALTH_EVERY) => {}
            }
        }
        let _ = std::fs::remove_file(&path);
    })
}

/// The disks' health, each alarm with what it says and what to do.
fn readable(disks: &[StoreHealth]) -> Vec<Value> {
    let one = |health: &StoreHealth| {
        let mut value = serde_json::to_value(health).unwrap_or_default();
        for (shown, alarm) in value["alarms"].as_array_mut().into_iter().flatten().zip(&health.alarms) {
            shown["text"] = json!(alarm.to_string());
            shown["advice"] = json!(alarm.advice());
        }
        value
    };
    disks.iter().map(one).collect()
}

/// The counters of a running node with `disks`, as it last reported them, beside.
pub(crate) fn with_health(status: &impl serde::Serialize, dir: &Path) -> Value {
    let mut value = serde_json::to_value(status).unwrap_or_default();
    if let (Some(fields), Some(report)) = (value.as_object_mut(), last_report(dir)) {
        fields.insert("disks".to_owned(), report["disks"].clone());
    }
    value
}

fn last_report(dir: &Path) -> Option<Value> {
    let reports = crate::node::state::trusted_state_dirs(dir).into_iter().filter_map(|state| {
        let report = std::fs::read(state.join(HEALTH_FILE)).ok()?;
        serde_json::from_slice::<Value>(&report).ok()
    });
    // One that was killed leaves an old report behind.
    reports.max_by_key(|report| report["at_ms"].as_u64())
}

/// Says how the disks of a running node do, as it last reported.
pub(crate) fn say_health(dir: &Path, output: Output) {
    let Some(report) = last_report(dir) else { return };
    for disk in report["disks"].as_array().into_iter().flatten() {
        let text = |name: &str| disk[name].as_str().unwrap_or("?").to_owned();
        let size = |value: &Value| ByteSize(value.as_u64().unwrap_or(0)).to_string();
        let state = if disk["present"] == true { text("io") } else { "AWAY".to_owned() };
        output.say(format!(
            "  disk         {} ({state}), {} of {} used",
            text("dir"),
            size(&disk["accounts"]["used_bytes"]),
            size(&disk["accounts"]["capacity_bytes"])
        ));
        let scrub = &disk["scrub"];
        output.say(format!(
            "    scrub      pass {}: {} of {} verified, {} lost",
            scrub["pass"],
            size(&scrub["verified_bytes"]),
            size(&scrub["total_bytes"]),
            scrub["lost"]
        ));
        for alarm in disk["alarms"].as_array().into_iter().flatten() {
            let text = |name: &str| alarm[name].as_str().unwrap_or("?").to_owned();
            output.say(format!("    ALARM      {}\n               {}", text("text"), text("advice")));
        }
    }
}

fn store_config(dir: &Path) -> Result<StoreConfig> {
    let file = NodeFile::find_or_make(dir, None, None)?;
    Ok(StoreConfig::new(dir.join("store"), file.capacity_bytes))
}

/// `holdfast node rebuild-index`.
pub(crate) async fn rebuild_index(args: NodeDisksArgs, output: Output) -> Result<ExitCode> {
    let first = store_config(&args.dir)?;
    let bar: Arc<Mutex<Option<(PathBuf, ProgressBar)>>> = Arc::default();
    let progress: RebuildProgress = {
        let bar = Arc::clone(&bar);
        Arc::new(move |dir: &Path, replayed: Replayed| {
            let mut shown = bar.lock();
            if shown.as_ref().is_none_or(|(of, _)| of != dir) {
                let what = format!("reading {}", dir.display());
                *shown = Some((dir.to_owned(), output.bytes_bar(replayed.bytes, &what)));
            }
            if let Some((_, bar)) = &*shown {
                bar.set_position(replayed.bytes_done);
            }
        })
    };
    let home = args.dir.clone();
    let rebuilt = tokio::task::spawn_blocking(move || rebuild_indexes(&home, &first, &progress))
        .await
        .context("the rebuild ended in a panic")?
        .context("the index was not rebuilt; stop the node first if it runs")?;
    if let Some((_, bar)) = bar.lock().take() {
        bar.finish_and_clear();
    }
    for Rebuilt { dir, replayed, accounts } in &rebuilt {
        output.value(&json!({
            "event": "rebuilt", "dir": dir, "records": replayed.records, "bytes": replayed.bytes, "accounts": accounts,
        }));
        output.say(format!(
            "{}: {} records, {} blocks, {} used",
            dir.display(),
            replayed.records,
            accounts.blocks,
            ByteSize(accounts.used_bytes)
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// `holdfast node scrub`: exit code 0 only if every block is whole.
pub(crate) async fn scrub(args: NodeDisksArgs, output: Output) -> Result<ExitCode> {
    let first = store_config(&args.dir)?;
    let home = args.dir.clone();
    let disks = tokio::task::spawn_blocking(move || Disks::open(&home, first, &[]))
        .await
        .context("opening ended in a panic")?
        .context("the disks cannot be opened; stop the node first if it runs")?;
    let mut whole = true;
    for disk in 0..disks.count() {
        let Some(store) = disks.store(disk) else {
            whole = false;
            continue;
        };
        let lost = scrub_store(&store, output).await?;
        let health = store.health();
        whole &= lost == 0 && health.alarms.is_empty();
        say_scrubbed(&health, lost, output);
    }
    disks.close().await.context("closing the disks failed")?;
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A whole pass from its beginning: what is left of the one at hand, and the next.
async fn scrub_store(store: &Store, output: Output) -> Result<u64> {
    let accounts = store.accounts();
    let bar = output.bytes_bar(accounts.used_bytes + accounts.trash_bytes, "verifying");
    let mut ends = if store.scrub_progress().verified_bytes > 0 { 2 } else { 1 };
    let mut lost = 0;
    while ends > 0 {
        let step = store.scrub_step(SystemClock.now_ms()).await.context("the disk cannot be scrubbed")?;
        lost += step.lost.len() as u64;
        bar.inc(step.bytes);
        for digest in step.lost {
            output.value(&json!({ "event": "lost", "cid": digest.raw_cid().to_string() }));
            output.say(format!("lost: {}", digest.raw_cid()));
        }
        let stopped = store.scrub_stopped();
        if step.ended || stopped {
            ends -= 1;
        }
        if stopped {
            break;
        }
    }
    bar.finish_and_clear();
    Ok(lost)
}

fn say_scrubbed(health: &StoreHealth, lost: u64, output: Output) {
    output.value(&json!({ "event": "scrubbed", "lost": lost, "health": health }));
    output.say(format!("{}: {} blocks, {lost} lost now", health.dir.display(), health.accounts.blocks));
    for alarm in &health.alarms {
        output.say(format!("  ALARM: {alarm}\n  {}", alarm.advice()));
    }
}
