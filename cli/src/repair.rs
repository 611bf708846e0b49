//! `repair run` and `repair status`: the gateway repairs, this watches.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use holdfast_gateway::web::api::{AutomaticRepair, Packing, RepairCounts, RepairStatus};

use crate::args::RepairArgs;
use crate::client::Admin;
use crate::network::Access;
use crate::output::Output;
use crate::sizes::ByteSize;

const PATH: &str = "api/v1/repair";
const POLL: Duration = Duration::from_millis(300);

/// `holdfast repair run`.
pub(crate) async fn run(args: &RepairArgs, output: Output) -> Result<ExitCode> {
    let admin = Admin::of(&Access::resolve(&args.network)?)?;
    let counts = run_with_progress(&admin, output).await?;
    output.value(&counts);
    let is_whole = counts.waiting + counts.stripes_unreadable + counts.stripes_failed == 0;
    Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `holdfast repair status`.
pub(crate) async fn status(args: &RepairArgs, output: Output) -> Result<ExitCode> {
    let admin = Admin::of(&Access::resolve(&args.network)?)?;
    let status: RepairStatus = admin.get(PATH).await?;
    output.value(&status);
    match (status.running, status.run) {
        (true, _) => output.say(format!("running: {}", sentence(&status.progress))),
        (false, 0) => output.say("no repair has run since the gateway started"),
        (false, _) => output.say(format!("last run: {}", sentence(&status.progress))),
    }
    if let Some(error) = &status.error {
        output.say(format!("  it failed: {error}"));
    }
    say_automatic(&status.automatic, output);
    say_packing(&status.packing, output);
    Ok(ExitCode::SUCCESS)
}

fn say_automatic(auto: &AutomaticRepair, output: Output) {
    let rate = auto
        .bytes_per_second_max
        .map_or("without a limit".to_owned(), |rate| format!("at most {}/s", ByteSize(rate)));
    output.say(format!(
        "automatic repair ({rate}): {} shards rebuilt ({} read, {} written){}",
        auto.shards_rebuilt,
        ByteSize(auto.bytes_read),
        ByteSize(auto.bytes_written),
        if auto.running { "; running" } else { "" }
    ));
    output.say(format!(
        "  stripes: {} wait for their turn, {} for {} more nodes, {} cannot be read",
        auto.remaining, auto.waiting, auto.waiting_for_nodes, auto.unreadable
    ));
    output.say(format!(
        "  shards that answering nodes were said to have lost: {}; {} were, {} were not",
        auto.shards_reported, auto.shards_found_lost, auto.shards_found_well
    ));
    for node in &auto.silent {
        let state = if node.lost { "counts as lost" } else { "is waited for" };
        output.say(format!(
            "  silent: {} since {} ms; it {state} (from {} ms on)",
            node.node, node.since_ms, node.lost_at_ms
        ));
    }
}

fn say_packing(packing: &Packing, output: Output) {
    output.say(format!(
        "packing: {} stripes wait; {} merges made {} stripes part of others and let {} go",
        packing.waiting,
        packing.merges,
        packing.absorbed,
        ByteSize(packing.bytes_released)
    ));
    if let (Some(now), Some(packed)) = (packing.expansion_now, packing.expansion_packed) {
        output.say(format!("  stored per byte of live data: {now:.2} now, {packed:.2} after packing"));
    }
}

/// Starts a run (or joins the one under way) and watches it to its end.
pub(crate) async fn run_with_progress(admin: &Admin, output: Output) -> Result<RepairCounts> {
    let started: RepairStatus = admin.post(PATH, &serde_json::json!({})).await?;
    let bar = output.count_bar(0, "repairing");
    loop {
        let status: RepairStatus = admin.get(PATH).await?;
        bar.set_length(status.progress.stripes_repaired + status.progress.remaining);
        bar.set_position(status.progress.stripes_repaired);
        if status.running || status.run < started.run {
            tokio::time::sleep(POLL).await;
            continue;
        }
        bar.finish_and_clear();
        if let Some(error) = status.error {
            bail!("the repair failed: {error}; what it had done stays done, run it again");
        }
        output.say(format!("   {}", sentence(&status.progress)));
        for trouble in &status.progress.troubles {
            output.say(format!("   {trouble}"));
        }
        return Ok(status.progress);
    }
}

/// One line about a repair.
pub(crate) fn sentence(counts: &RepairCounts) -> String {
    let mut text = format!(
        "{} of {} stripes needed it, {} shards rebuilt ({} read, {} written)",
        counts.stripes_damaged,
        counts.stripes_scanned,
        counts.shards_rebuilt,
        ByteSize(counts.bytes_read),
        ByteSize(counts.bytes_written)
    );
    if counts.waiting > 0 {
        text.push_str(&format!("; {} wait for {} more nodes", counts.waiting, counts.waiting_for_nodes));
    }
    if counts.stripes_unreadable > 0 {
        text.push_str(&format!("; {} cannot be read at present", counts.stripes_unreadable));
    }
    text
}
