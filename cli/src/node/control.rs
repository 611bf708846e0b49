//! `node status`, `pause`, `resume`, `drain`, `exit`, `resize` and `deny`: asked of the running node over its web side,
//! or written into the directory of one that does not run.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use holdfast_protocol::time::{Clock, SystemClock};
use holdfast_storage_node::node::offline::Offline;
use holdfast_storage_node::web::{ControlToken, DenyLine, DenyRequest, ModeRequest, ResizeRequest};
use holdfast_storage_node::{Mode, NodeReport, Severity};

use super::{NodeFile, RUNNING_FILE, RunningFile};
use crate::args::{DenyArgs, DenyCommand, NodeDirArgs, NodeLeaveArgs, NodeResizeArgs, NodeStatusArgs};
use crate::client::Admin;
use crate::output::Output;
use crate::sizes::ByteSize;

/// How often a drain is looked at.
const POLL: Duration = Duration::from_millis(500);
/// How often a directory is tried while its node closes: 30 s.
const CLOSING_POLLS: u32 = 60;
/// Exit code when watching ended before the drain did.
const NOT_YET: u8 = 3;

/// The running node of a directory.
pub(super) struct Running {
    pub(super) file: RunningFile,
    admin: Admin,
}

impl Running {
    /// The node that runs on `dir`; `None` when none does.
    pub(super) async fn find(dir: &Path) -> Result<Option<Self>> {
        for state in super::state::trusted_state_dirs(dir) {
            if let Some(running) = Self::find_in(&state).await? {
                return Ok(Some(running));
            }
        }
        Ok(None)
    }

    async fn find_in(state: &Path) -> Result<Option<Self>> {
        let path = state.join(RUNNING_FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let file: RunningFile =
            serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
        let Some(web) = file.web else { return Ok(None) };
        let token = ControlToken::read(state).unwrap_or_default();
        let admin = Admin::new(url::Url::parse(&format!("http://{web}"))?, token);
        // A process that was killed leaves the file behind.
        let alive = admin.get::<NodeReport>("api/v1/status").await;
        Ok(alive.is_ok_and(|report| report.id == file.id).then_some(Self { file, admin }))
    }

    /// The node's report.
    pub(super) async fn report(&self) -> Result<NodeReport> {
        self.admin.get("api/v1/status").await
    }

    async fn post(&self, path: &str, body: &impl serde::Serialize) -> Result<()> {
        let _: serde_json::Value = self.admin.post(path, body).await?;
        Ok(())
    }
}

/// `holdfast node status`.
pub(crate) async fn status(args: &NodeStatusArgs, output: Output) -> Result<ExitCode> {
    must_be_a_node(&args.dir)?;
    let Some(running) = Running::find(&args.dir).await? else {
        bail!(
            "no node runs in {}; `holdfast node run --dir {}` starts it",
            args.dir.display(),
            args.dir.display()
        );
    };
    let report = running.report().await?;
    output.value(&crate::node_disks::with_health(&report, &args.dir));
    output.say(format!(
        "node {}\n  listens on   {} (process {})",
        report.id, running.file.address, running.file.pid
    ));
    if let Some(web) = running.file.web {
        output.say(format!("  page         http://{web}/"));
    }
    let lines = [
        ("capacity", report.capacity_bytes),
        ("used", report.used_bytes),
        ("trash", report.trash_bytes),
        ("garbage", report.garbage_bytes),
        ("free", report.free_bytes),
        ("paid", report.paid_bytes),
    ];
    for (name, bytes) in lines {
        output.say(format!("  {name:12} {:>12}  {bytes:>18} bytes", ByteSize(bytes).to_string()));
    }
    output.say(format!(
        "  blocks       {:>12}\n  agreements   {:>12}\n  reachability {:>12}\n  challenges   {:>12} answered, {} not",
        report.blocks, report.agreements, report.reachability, report.challenges_answered, report.challenges_refused
    ));
    crate::node_disks::say_health(&args.dir, output);
    if !report.refusing_writes.is_empty() {
        output.say(format!("  refuses writes: {}", report.refusing_writes));
    }
    for row in &report.leaving {
        output.say(format!("  leaving {}: {}", row.namespace, leave_sentence(row)));
    }
    for problem in &report.problems {
        let word = match problem.severity {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Alarm => "ALARM",
        };
        output.say(format!("  {word}: {} {}", problem.what, problem.remedy));
    }
    Ok(ExitCode::SUCCESS)
}

/// `node pause`, `node resume`.
pub(crate) async fn set_mode(args: &NodeDirArgs, mode: Mode, output: Output) -> Result<ExitCode> {
    change_mode(&args.dir, mode).await?;
    output.value(&serde_json::json!({ "mode": mode }));
    output.say(match mode {
        Mode::Paused => "paused: no new blocks are taken, those that are here are served",
        _ => "serving: new blocks are taken",
    });
    Ok(ExitCode::SUCCESS)
}

async fn change_mode(dir: &Path, mode: Mode) -> Result<Option<Running>> {
    must_be_a_node(dir)?;
    match Running::find(dir).await? {
        Some(running) => {
            running.post("api/v1/mode", &ModeRequest { mode, force: false }).await?;
            Ok(Some(running))
        }
        None => {
            Offline::open(dir)?.set_mode(mode, SystemClock.now_ms())?;
            Ok(None)
        }
    }
}

/// `node drain`, `node exit`.
pub(crate) async fn leave(args: &NodeLeaveArgs, mode: Mode, output: Output) -> Result<ExitCode> {
    if args.force {
        if mode != Mode::Exiting {
            bail!("--force goes with `node exit`: a drain takes as long as it takes");
        }
        return leave_by_force(&args.dir, output).await;
    }
    let Some(running) = change_mode(&args.dir, mode).await? else {
        output.value(&serde_json::json!({ "mode": mode, "running": false }));
        output.say(format!(
            "noted; the node does not run, and its blocks move once it does: holdfast node run --dir {}",
            args.dir.display()
        ));
        return Ok(ExitCode::SUCCESS);
    };
    if args.no_wait {
        output.value(&serde_json::json!({ "mode": mode, "running": true }));
        output.say("asked for; `holdfast node status` shows how far it is");
        return Ok(ExitCode::SUCCESS);
    }
    let watching = watch(&args.dir, &running, mode, output);
    let Some(timeout) = args.timeout else { return watching.await };
    match tokio::time::timeout(timeout.0, watching).await {
        Ok(outcome) => outcome,
        Err(_) => {
            output.say("not done yet; it goes on, and `holdfast node status` shows how far it is");
            Ok(ExitCode::from(NOT_YET))
        }
    }
}

/// `node exit --force`: says what is lost, and goes.
async fn leave_by_force(dir: &Path, output: Output) -> Result<ExitCode> {
    must_be_a_node(dir)?;
    let Some(running) = Running::find(dir).await? else {
        Offline::open(dir)?.set_mode(Mode::Left, SystemClock.now_ms())?;
        output.value(&serde_json::json!({ "mode": Mode::Left, "emptied": false, "running": false }));
        output.say(format!(
            "the node has left without a word, because it does not run: its namespaces miss what lies in {} once it \
             has been silent for a day, and repair it",
            dir.display()
        ));
        return Ok(ExitCode::SUCCESS);
    };
    let report = running.report().await?;
    let left: u64 = report.agreement_rows.iter().map(|row| row.claims).sum();
    if report.blocks > 0 {
        output.say(format!(
            "{} blocks ({}) still lie here; their namespaces lose these copies and must rebuild them from others:",
            report.blocks,
            ByteSize(report.used_bytes)
        ));
        for row in report.agreement_rows.iter().filter(|row| row.claims > 0) {
            output.say(format!("  {}: {} claims, {}", row.namespace, row.claims, ByteSize(row.used_bytes)));
        }
    }
    running.post("api/v1/mode", &ModeRequest { mode: Mode::Exiting, force: true }).await?;
    if !has_left(dir).await {
        bail!("the node did not stop; see its log");
    }
    output.value(&serde_json::json!({
        "mode": Mode::Left, "emptied": report.blocks == 0, "blocks_lost": report.blocks, "claims_lost": left,
        "bytes_lost": report.used_bytes,
    }));
    output.say(format!("the node has left; {} can be removed", dir.display()));
    Ok(ExitCode::SUCCESS)
}

/// Shows progress until nothing is left.
async fn watch(dir: &Path, running: &Running, mode: Mode, output: Output) -> Result<ExitCode> {
    let bar = output.count_bar(0, "moving");
    let mut said = String::new();
    loop {
        let report = match running.report().await {
            Ok(report) => report,
            // The last thing that an exiting node does is to stop.
            Err(_) if mode == Mode::Exiting && has_left(dir).await => {
                bar.finish_and_clear();
                output.value(&serde_json::json!({ "mode": Mode::Left, "emptied": true }));
                output.say(format!(
                    "the node has left; all that it kept lies elsewhere, {} can be removed",
                    dir.display()
                ));
                return Ok(ExitCode::SUCCESS);
            }
            Err(error) => {
                return Err(error).context("the node stopped before it was empty; start it to go on");
            }
        };
        if !report.mode.is_leaving() && report.mode != Mode::Left {
            bar.finish_and_clear();
            bail!("somebody took the drain back; the node is {:?} now", report.mode);
        }
        let (left, moved) = report
            .leaving
            .iter()
            .fold((0, 0), |(left, moved), row| (left + row.shards_left, moved + row.shards_moved));
        bar.set_length(left + moved);
        bar.set_position(moved);
        if report.emptied && mode == Mode::Draining {
            bar.finish_and_clear();
            output.value(&serde_json::json!({ "mode": mode, "emptied": true, "shards_moved": moved }));
            output.say(format!(
                "empty: {moved} shards lie elsewhere; `holdfast node exit --dir {}` takes leave",
                dir.display()
            ));
            return Ok(ExitCode::SUCCESS);
        }
        let notes: Vec<&str> =
            report.leaving.iter().map(|row| row.note.as_str()).filter(|note| !note.is_empty()).collect();
        let notes = notes.join("; ");
        if notes != said {
            if !notes.is_empty() {
                output.say(format!("  waiting: {notes}"));
            }
            said = notes;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Whether the node that stopped answering has left; its directory is free a moment after its web side is gone.
async fn has_left(dir: &Path) -> bool {
    for _ in 0..CLOSING_POLLS {
        if let Ok(kept) = Offline::open(dir).and_then(|offline| offline.mode()) {
            return kept.mode == Mode::Left;
        }
        tokio::time::sleep(POLL).await;
    }
    false
}

fn leave_sentence(row: &holdfast_storage_node::node::NamespaceLeave) -> String {
    if row.done {
        return format!("done, {} shards moved", row.shards_moved);
    }
    let mut text =
        format!("{} shards left ({}), {} moved", row.shards_left, ByteSize(row.bytes_left), row.shards_moved);
    if !row.note.is_empty() {
        text.push_str(&format!("; {}", row.note));
    }
    text
}

/// `holdfast node resize`.
pub(crate) async fn resize(args: &NodeResizeArgs, output: Output) -> Result<ExitCode> {
    must_be_a_node(&args.dir)?;
    let capacity = args.capacity.0;
    super::check_capacity(capacity)?;
    if let Some(disk) = &args.disk {
        return resize_disk(&args.dir, disk, capacity, output).await;
    }
    let before = NodeFile::find_or_make(&args.dir, None, None)?.capacity_bytes;
    match Running::find(&args.dir).await? {
        Some(running) => {
            let request = ResizeRequest { capacity_bytes: capacity, disk: None };
            running.post("api/v1/capacity", &request).await?;
            NodeFile::find_or_make(&args.dir, Some(capacity), None)?;
            let used = running.report().await?.used_bytes;
            output.say(if capacity > before {
                "noted; the node offers more from its next start".to_owned()
            } else if used > capacity {
                format!(
                    "the node offers {} now; {} too much lie on it, which its gateways move elsewhere",
                    ByteSize(capacity),
                    ByteSize(used - capacity)
                )
            } else {
                format!("the node offers {} now", ByteSize(capacity))
            });
        }
        None => {
            Offline::open(&args.dir)?.set_capacity(capacity)?;
            NodeFile::find_or_make(&args.dir, Some(capacity), None)?;
            output.say(format!("the node offers {} from its next start", ByteSize(capacity)));
        }
    }
    output.value(&serde_json::json!({ "capacity_bytes": capacity, "before_bytes": before }));
    Ok(ExitCode::SUCCESS)
}

/// `holdfast node resize --disk`.
async fn resize_disk(dir: &Path, disk: &Path, capacity: u64, output: Output) -> Result<ExitCode> {
    let disk = std::path::absolute(disk)?;
    match Running::find(dir).await? {
        Some(running) => {
            let request = ResizeRequest { capacity_bytes: capacity, disk: Some(disk.clone()) };
            running.post("api/v1/capacity", &request).await?;
            output.say(format!(
                "{} offers {} now, or more from the next start",
                disk.display(),
                ByteSize(capacity)
            ));
        }
        None => {
            let _held = Offline::open(dir)?;
            holdfast_storage_node::disks::resize_offline(dir, &disk, capacity)?;
            output.say(format!("{} offers {} from the next start", disk.display(), ByteSize(capacity)));
        }
    }
    output.value(&serde_json::json!({ "disk": disk, "capacity_bytes": capacity }));
    Ok(ExitCode::SUCCESS)
}

/// `holdfast node deny`.
pub(crate) async fn deny(command: &DenyCommand, output: Output) -> Result<ExitCode> {
    match command {
        DenyCommand::Add(args) => change_deny(args, true, output).await,
        DenyCommand::Rm(args) => change_deny(args, false, output).await,
        DenyCommand::Ls(args) => {
            must_be_a_node(&args.dir)?;
            let lines: Vec<DenyLine> = match Running::find(&args.dir).await? {
                Some(running) => running.admin.get("api/v1/deny").await?,
                None => Offline::open(&args.dir)?.deny_list().lines().iter().map(DenyLine::of).collect(),
            };
            for line in &lines {
                output.value(line);
                output.say(format!("{}  {}", line.what, line.reason));
            }
            if lines.is_empty() {
                output.say("nothing is refused");
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn change_deny(args: &DenyArgs, add: bool, output: Output) -> Result<ExitCode> {
    must_be_a_node(&args.dir)?;
    let request = DenyRequest { what: args.what.clone(), reason: args.reason.clone() };
    let what = request.denied().with_context(|| {
        format!("`{}` is neither a block's CID nor `peer:KEY` nor `namespace:KEY`", args.what)
    })?;
    match Running::find(&args.dir).await? {
        Some(running) => running.post(if add { "api/v1/deny" } else { "api/v1/allow" }, &request).await?,
        None => {
            let offline = Offline::open(&args.dir)?;
            let now_ms = SystemClock.now_ms();
            if add {
                offline.deny_list().deny(what, &args.reason, now_ms)?;
            } else if !offline.deny_list().allow(what, now_ms)? {
                bail!("`{}` is not on the deny-list", args.what);
            }
        }
    }
    output.value(&serde_json::json!({ "what": args.what, "denied": add }));
    output.say(if add { "refused from now on" } else { "no longer refused" });
    Ok(ExitCode::SUCCESS)
}

fn must_be_a_node(dir: &Path) -> Result<()> {
    if dir.join(super::NODE_FILE).exists() {
        return Ok(());
    }
    bail!(super::no_node_here(dir))
}
