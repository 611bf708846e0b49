//! fio as a yardstick: runs one job and reads its JSON.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::disk_store::Speed;

/// fio, and where it works.
pub(crate) struct Fio {
    /// What it calls itself.
    pub(crate) version: String,
    file: PathBuf,
    seconds: u64,
}

/// One measurement.
pub(crate) struct Job {
    pub(crate) name: &'static str,
    pub(crate) rw: &'static str,
    /// A block size, or a split of several (`4k/50:64k/50`).
    pub(crate) bs: &'static str,
    pub(crate) depth: u32,
    /// One fdatasync for this many writes; 0 for none.
    pub(crate) sync_every: u32,
    pub(crate) size: u64,
}

impl Fio {
    pub(crate) fn find(folder: &Path, seconds: u64) -> Result<Self> {
        let told = Command::new("fio").arg("--version").output();
        let told = told
            .context("fio is not installed; on Debian `apt install fio` (scripts/setup.sh --tests does)")?;
        let version = String::from_utf8_lossy(&told.stdout).trim().to_owned();
        Ok(Self { version, file: folder.join("fio.data"), seconds })
    }

    /// Writes the file that is read from.
    pub(crate) fn lay_out(&self, size: u64) -> Result<()> {
        let job = Job { name: "lay-out", rw: "write", bs: "1m", depth: 16, sync_every: 0, size };
        self.call(&job, false).map(|_| ())
    }

    /// Runs a job for the time that every measurement has.
    pub(crate) fn run(&self, job: &Job) -> Result<Speed> {
        let report = self.call(job, true)?;
        let job_report = &report["jobs"][0];
        let side = &job_report[if job.rw.contains("read") { "read" } else { "write" }];
        let number = |value: &Value| value.as_f64().unwrap_or(0.0);
        let bytes = number(&side["io_bytes"]);
        let seconds = number(&side["runtime"]) / 1000.0;
        if bytes == 0.0 || seconds == 0.0 {
            bail!("fio's job {} moved nothing: {}", job.name, job_report["error"]);
        }
        // Percent of one core over the job's wall time.
        let busy = (number(&job_report["usr_cpu"]) + number(&job_report["sys_cpu"])) / 100.0 * seconds;
        Ok(Speed {
            bytes_per_second: bytes / seconds,
            operations_per_second: number(&side["total_ios"]) / seconds,
            cpu_s_per_gib: busy / (bytes / 1024f64.powi(3)),
            stages: crate::disk_stages::Stages::default(),
        })
    }

    fn call(&self, job: &Job, timed: bool) -> Result<Value> {
        if job.rw == "write" {
            // Into new room, as the store writes: overwriting costs a file system less.
            std::fs::remove_file(&self.file)
                .or_else(ignore_missing)
                .context("fio's file cannot be removed")?;
        }
        let mut command = Command::new("fio");
        command.args([
            "--output-format=json",
            "--ioengine=io_uring",
            "--direct=1",
            "--fallocate=posix",
            "--thread",
        ]);
        let split = if job.bs.contains('/') { "bssplit" } else { "bs" };
        if split == "bssplit" {
            // With its map of what was read already, fio shortens the long reads that would touch it again: three of
            // four operations are then short, and half of them would be no pairs.
            command.arg("--norandommap");
        }
        command.args([
            format!("--name={}", job.name),
            format!("--filename={}", self.file.display()),
            format!("--rw={}", job.rw),
            format!("--{split}={}", job.bs),
            format!("--iodepth={}", job.depth),
            format!("--size={}", job.size),
        ]);
        if job.sync_every > 0 {
            command.arg(format!("--fdatasync={}", job.sync_every));
        }
        if timed {
            command.args([format!("--runtime={}", self.seconds), "--time_based".to_owned()]);
        }
        let output = command.output().context("fio could not be run")?;
        if !output.status.success() {
            bail!("fio failed in job {}: {}", job.name, String::from_utf8_lossy(&output.stderr));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let json = text.find('{').map(|start| &text[start..]).context("fio printed no JSON")?;
        serde_json::from_str(json).context("fio's JSON cannot be read")
    }
}

fn ignore_missing(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}
