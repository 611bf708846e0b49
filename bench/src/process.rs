//! What `/proc` says about the processes under test and about this machine.

use std::fs;

use anyhow::{Context, Result};
use serde::Serialize;

/// Clock ticks of `/proc/PID/stat` a second: Linux has shown 100 on every architecture since 2.6.
const TICKS_PER_SECOND: f64 = 100.0;

/// The processes whose cost is reported.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watched {
    /// The gateway, and with it every node that runs inside it.
    pub(crate) gateway: Vec<u32>,
    /// Node processes.
    pub(crate) nodes: Vec<u32>,
}

impl Watched {
    /// The process `root` and what it started: children that run `node` are nodes.
    pub(crate) fn tree_of(root: u32) -> Self {
        let parents: Vec<(u32, u32)> = all_pids().filter_map(|pid| Some((pid, parent_of(pid)?))).collect();
        let mut watched = Self { gateway: vec![root], nodes: Vec::new() };
        let mut found = vec![root];
        while let Some(parent) = found.pop() {
            for (pid, _) in parents.iter().filter(|(_, of)| *of == parent) {
                found.push(*pid);
                if runs_node(*pid) { watched.nodes.push(*pid) } else { watched.gateway.push(*pid) }
            }
        }
        watched
    }

    /// CPU seconds used so far.
    pub(crate) fn cpu(&self) -> Cpu {
        let sum = |pids: &[u32]| pids.iter().filter_map(|pid| cpu_seconds(*pid)).sum();
        Cpu {
            gateway: sum(&self.gateway),
            nodes: sum(&self.nodes),
            client: cpu_seconds(std::process::id()).unwrap_or_default(),
        }
    }

    /// Forgets the peaks of resident memory, so that the next ones belong to the next line.
    pub(crate) fn reset_peaks(&self) {
        for pid in self.gateway.iter().chain(&self.nodes) {
            // Without the right to do so peaks stay those of the process's whole life, which is still true.
            fs::write(format!("/proc/{pid}/clear_refs"), "5").ok();
        }
    }

    /// Peaks of resident memory: of the gateway, and of all nodes together.
    pub(crate) fn peaks_mib(&self) -> (f64, f64) {
        let sum = |pids: &[u32]| pids.iter().filter_map(|pid| peak_mib(*pid)).sum();
        (sum(&self.gateway), sum(&self.nodes))
    }
}

/// CPU seconds, user and system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Cpu {
    /// Of the gateway.
    pub(crate) gateway: f64,
    /// Of all node processes.
    pub(crate) nodes: f64,
    /// Of this program.
    pub(crate) client: f64,
}

impl Cpu {
    /// What was used since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            gateway: self.gateway - earlier.gateway,
            nodes: self.nodes - earlier.nodes,
            client: self.client - earlier.client,
        }
    }
}

fn all_pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Fields of `/proc/PID/stat` from the third on. The second, the name, may hold spaces and brackets.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

fn parent_of(pid: u32) -> Option<u32> {
    stat(pid)?.get(1)?.parse().ok()
}

fn cpu_seconds(pid: u32) -> Option<f64> {
    let fields = stat(pid)?;
    let ticks = |field: usize| fields.get(field)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND)
}

fn peak_mib(pid: u32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()? / 1024.0)
}

fn runs_node(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| line.split(|byte| *byte == 0).any(|argument| argument == b"node"))
}

/// The machine that the figures come from.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// Cores that this program may use.
    pub(crate) cores: usize,
    /// The processor's name.
    pub(crate) cpu: String,
    /// The kernel.
    pub(crate) kernel: String,
    /// Memory.
    pub(crate) memory_mib: u64,
    /// One-minute load average before the first line: above 0.5 something else was running.
    pub(crate) load_before: f64,
}

impl Machine {
    /// Looks.
    pub(crate) fn look() -> Result<Self> {
        let field = |file: &str, name: &str| -> Option<String> {
            let text = fs::read_to_string(file).ok()?;
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let memory = field("/proc/meminfo", "MemTotal").unwrap_or_default();
        Ok(Self {
            cores: std::thread::available_parallelism()?.get(),
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned()),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .context("cannot read the kernel's release; the benchmark needs Linux")?
                .trim()
                .to_owned(),
            memory_mib: memory.trim_end_matches(" kB").parse::<u64>().unwrap_or_default() / 1024,
            load_before: load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen_with_its_cpu_and_memory() {
        let mut dice = crate::pattern::Dice(1);
        let mut busy = 0u64;
        while cpu_seconds(std::process::id()).unwrap() < 0.02 {
            busy ^= (0..100_000).map(|_| dice.roll()).fold(0, |all, one| all ^ one);
        }
        assert_ne!(busy, 1);
        assert!(peak_mib(std::process::id()).unwrap() > 1.0);
        let parent = parent_of(std::process::id()).unwrap();
        assert!(Watched::tree_of(parent).gateway.contains(&std::process::id()));
    }

    #[test]
    fn a_process_that_is_gone_costs_nothing() {
        let watched = Watched { gateway: vec![u32::MAX], nodes: vec![] };
        assert_eq!((watched.cpu().gateway, watched.peaks_mib()), (0.0, (0.0, 0.0)));
    }
}
