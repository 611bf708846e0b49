//! CPU by stage: what each kind of thread of this process used, and how much of the callers' share was hashing and
//! verifying.
//!
//! Threads are told apart by their names. Hashing and verifying happen on the callers' threads: one call in
//! [`SAMPLE_EVERY`] is measured by its thread's own CPU clock, and stands for the others.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// Reading a thread's clock costs a system call; one call in this many is measured.
const SAMPLE_EVERY: u64 = 8;
/// Clock ticks of `/proc/PID/task/TID/stat` a second: Linux has shown 100 on every architecture since 2.6.
const TICKS_PER_SECOND: f64 = 100.0;

/// A piece of the callers' work.
#[derive(Debug, Default)]
pub(crate) struct Piece {
    calls: AtomicU64,
    sampled_ns: AtomicU64,
}

/// Hashing of blocks that are put.
pub(crate) static HASH: Piece = Piece::new();
/// Making paths and checking leaves against the digest.
pub(crate) static VERIFY: Piece = Piece::new();

impl Piece {
    const fn new() -> Self {
        Self { calls: AtomicU64::new(0), sampled_ns: AtomicU64::new(0) }
    }

    /// Runs `work`, now and then on the clock.
    pub(crate) fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        if !self.calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(SAMPLE_EVERY) {
            return work();
        }
        let before = thread_cpu_ns();
        let done = work();
        let spent = thread_cpu_ns().saturating_sub(before);
        self.sampled_ns.fetch_add(spent * SAMPLE_EVERY, Ordering::Relaxed);
        done
    }

    fn seconds(&self) -> f64 {
        self.sampled_ns.load(Ordering::Relaxed) as f64 / 1e9
    }
}

fn thread_cpu_ns() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}

/// CPU seconds by stage.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Stages(pub(crate) BTreeMap<&'static str, f64>);

/// The stage that a thread belongs to, by its name.
fn stage_of(thread: &str) -> &'static str {
    match thread {
        "disk-ring" => "engine",
        "store-writer" => "plan",
        "store-sync" => "sync and index",
        name if name.starts_with("rocksdb") => "index upkeep",
        name if name.starts_with("iou-wrk") || name.starts_with("disk-") => "engine",
        _ => "callers",
    }
}

impl Stages {
    /// What was used so far.
    pub(crate) fn now() -> Result<Self> {
        let mut stages: BTreeMap<&'static str, f64> = BTreeMap::new();
        for task in std::fs::read_dir("/proc/self/task").context("the threads of this process")? {
            // A thread may end meanwhile: those of a store live as long as it.
            let Ok(stat) = std::fs::read_to_string(task?.path().join("stat")) else { continue };
            let (Some((_, name)), Some((_, rest))) = (stat.split_once('('), stat.rsplit_once(')')) else {
                continue;
            };
            let name = name.split(')').next().unwrap_or_default();
            let ticks =
                rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok());
            *stages.entry(stage_of(name)).or_default() += ticks.sum::<f64>() / TICKS_PER_SECOND;
        }
        stages.insert("hash", HASH.seconds());
        stages.insert("verification", VERIFY.seconds());
        Ok(Self(stages))
    }

    /// What was used since `before`, for each GiB of `bytes`; what the callers did besides hashing and verifying is
    /// theirs.
    pub(crate) fn per_gib(&self, before: &Self, bytes: f64) -> Self {
        let mut since: BTreeMap<&'static str, f64> = BTreeMap::new();
        for (stage, seconds) in &self.0 {
            since.insert(stage, (seconds - before.0.get(stage).copied().unwrap_or(0.0)).max(0.0));
        }
        let own =
            since.get("hash").copied().unwrap_or(0.0) + since.get("verification").copied().unwrap_or(0.0);
        if let Some(callers) = since.get_mut("callers") {
            *callers = (*callers - own).max(0.0);
        }
        let gib = bytes / 1024f64.powi(3);
        since.values_mut().for_each(|seconds| *seconds /= gib);
        Self(since)
    }

    /// One line for people.
    pub(crate) fn text(&self) -> String {
        let shown = self.0.iter().filter(|(_, seconds)| **seconds >= 0.0005);
        shown.map(|(stage, seconds)| format!("{stage} {seconds:.3}")).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_belong_to_stages_and_a_stage_is_a_difference() {
        assert_eq!(stage_of("disk-ring"), "engine");
        assert_eq!(stage_of("rocksdb:low"), "index upkeep");
        assert_eq!(stage_of("tokio-rt-worker"), "callers");
        let at = |callers: f64, hash: f64| Stages([("callers", callers), ("hash", hash)].into());
        let per_gib = at(5.0, 2.0).per_gib(&at(1.0, 1.0), 2.0 * 1024f64.powi(3));
        assert_eq!(per_gib.0, [("callers", 1.5), ("hash", 0.5)].into());
        assert_eq!(per_gib.text(), "callers 1.500, hash 0.500");
    }

    #[test]
    fn this_process_has_threads_and_work_is_measured() -> Result<()> {
        let before = Stages::now()?;
        let piece = Piece::new();
        let sum = piece.run(|| (0..20_000_000u64).fold(0u64, |all, one| all ^ std::hint::black_box(one)));
        assert_ne!(sum, 1);
        assert!(piece.seconds() > 0.0);
        assert!(Stages::now()?.0["callers"] >= before.0["callers"]);
        Ok(())
    }
}
