//! The report: a table for people, a JSON file for comparing runs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::measure::Line;
use crate::network::Mode;
use crate::process::Machine;

/// Everything a run found.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Version of this file's layout.
    pub(crate) v: u16,
    /// When, in UTC.
    pub(crate) at: String,
    /// What was measured: the binary's own words, or the address.
    pub(crate) subject: String,
    /// Whether it was a short run, whose figures are not for comparing.
    pub(crate) quick: bool,
    /// On what.
    pub(crate) machine: Machine,
    /// One table for each way the nodes ran.
    pub(crate) tables: Vec<Table>,
}

/// The lines of one way to run the nodes.
#[derive(Debug, Serialize)]
pub(crate) struct Table {
    /// Where the nodes ran; `None` for a server that we did not start.
    pub(crate) mode: Option<Mode>,
    /// Where its metadata was; empty for a server that we did not start.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) meta: String,
    /// The lines.
    pub(crate) lines: Vec<Line>,
}

impl Report {
    /// Writes the report into `folder`, under a name made of the time.
    pub(crate) fn write(&self, folder: &Path) -> Result<PathBuf> {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let path = folder.join(format!("{}.json", self.at));
        std::fs::write(&path, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

/// The machine in one line.
pub(crate) fn machine_line(machine: &Machine) -> String {
    let Machine { cores, cpu, kernel, memory_mib, load_before } = machine;
    format!("{cores} cores of {cpu}, {memory_mib} MiB, Linux {kernel}, load {load_before} before the start")
}

/// The table's head.
pub(crate) fn head() -> String {
    let cost = format!("{:>7} {:>7} {:>7}", "gateway", "nodes", "client");
    let first = format!("{:<36} {:>9}      {:>7} {:>7} {:>7}", "", "speed", "p50 ms", "p99 ms", "max ms");
    format!(
        "{:<76}{:>23} {:>15}\n{first} {cost} {:>7} {:>7}  goal",
        "", "CPU-s/GiB", "peak MiB", "gateway", "nodes"
    )
}

/// A line of the table.
pub(crate) fn row(line: &Line) -> String {
    if line.rounds == 0 {
        return format!("{:<36} {:>9}", line.name, line.note);
    }
    let number = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
    };
    let memory = |mib: f64| number((mib > 0.0).then_some(mib), 0);
    let goal = match line.met {
        None => String::new(),
        Some(true) => format!("ok: {}", line.goal),
        Some(false) => format!("MISSED: {}", line.goal),
    };
    let digits = if line.speed < 100.0 { 2 } else { 0 };
    let stalled = if line.stalls > 0 { format!("  ({} over 40 ms)", line.stalls) } else { String::new() };
    let note = if line.note.is_empty() { String::new() } else { format!("  ({})", line.note) };
    let retried = if line.retries > 0 { format!("  ({} x 503)", line.retries) } else { String::new() };
    format!(
        "{:<36} {:>9.digits$} {:<4} {:>7} {:>7} {:>7} {:>7} {:>7} {:>7} {:>7} {:>7}  {goal}{stalled}{retried}{note}",
        line.name,
        line.speed,
        line.unit.text(),
        number(line.p50_ms, 1),
        number(line.p99_ms, 1),
        number(line.max_ms, 1),
        number(line.gateway_cpu_s_per_gib, 2),
        number(line.node_cpu_s_per_gib, 2),
        number(line.client_cpu_s_per_gib, 2),
        memory(line.gateway_peak_mib),
        memory(line.nodes_peak_mib),
    )
}
