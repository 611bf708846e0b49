//! The disk line: the block store beside fio on the same disk, in the same run, at the same depth, with a sync as
//! often. Both bypass the page cache. fio moves the bytes that the store moves, header pages included.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;

use crate::disk_fio::{Fio, Job};
use crate::disk_load::LoadLine;
use crate::disk_stages::Stages;
use crate::disk_store::{Bench, Speed};

/// Bytes of the file that fio reads from, and of the blocks that the store reads.
const READ_SET: u64 = 2 << 30;

/// Options of `holdfast-bench disk`.
#[derive(Debug, Args)]
pub(crate) struct DiskArgs {
    /// A directory on the disk to measure; needs 40 GB free
    #[arg(long, default_value = "/var/tmp", value_name = "DIR")]
    scratch: PathBuf,
    /// How long each measurement runs
    #[arg(long, default_value_t = 3, value_name = "SECONDS")]
    seconds: u64,
    /// How often fio and the store take turns; the best turn of each counts
    #[arg(long, default_value_t = 2, value_name = "TURNS")]
    turns: u32,
    /// Where the JSON report goes
    #[arg(long, default_value = "bench/results", value_name = "DIR")]
    results: PathBuf,
    /// Also generate an index of this many blocks and measure how a store with it starts
    #[arg(long, value_name = "BLOCKS")]
    start_blocks: Option<u64>,
    /// Only the start
    #[arg(long, requires = "start_blocks")]
    start_only: bool,
}

/// One line: the store beside fio.
#[derive(Debug, Clone, Serialize)]
struct Line {
    name: &'static str,
    unit: &'static str,
    fio: f64,
    store: f64,
    share: f64,
    goal: f64,
    fio_cpu_s_per_gib: f64,
    store_cpu_s_per_gib: f64,
    /// The store's, by stage.
    store_cpu_by_stage: Stages,
}

#[derive(Debug, Serialize)]
struct StartLine {
    blocks: u64,
    generated_seconds: f64,
    index_bytes: u64,
    open_seconds: Vec<f64>,
    resident_bytes_after_open: u64,
    index_cache_bytes: u64,
    under_load: LoadLine,
}

/// Runs every line.
pub(crate) async fn run(args: DiskArgs) -> Result<()> {
    let folder = args.scratch.join(format!("holdfast-disk-{}", std::process::id()));
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let done = measure(&args, &folder).await;
    std::fs::remove_dir_all(&folder).ok();
    done
}

async fn measure(args: &DiskArgs, folder: &Path) -> Result<()> {
    let mut lines = Vec::new();
    if !args.start_only {
        let fio = Fio::find(folder, args.seconds)?;
        println!("{}; blocks of the store and of fio in {}", fio.version, folder.display());
        println!(
            "{:44} {:>10} {:>10} {:>7} {:>6}  CPU-s/GiB fio, store",
            "", "fio", "store", "share", "goal"
        );
        lines = compare(args, folder, &fio).await?;
    }
    let start = match args.start_blocks {
        Some(blocks) => {
            let (dir, time) = (folder.to_owned(), Duration::from_secs(args.seconds.max(5)));
            // Runtimes of its own are made in there.
            Some(tokio::task::spawn_blocking(move || measure_start(&dir, blocks, time)).await??)
        }
        None => None,
    };
    let at = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    std::fs::create_dir_all(&args.results)?;
    let path = args.results.join(format!("disk-{at}.json"));
    let report = serde_json::json!({ "v": 1, "at": at, "lines": lines, "start": start });
    std::fs::write(&path, serde_json::to_vec_pretty(&report)?)?;
    println!("\nreport: {}", path.display());
    Ok(())
}

// What fio does beside each line of the store's.
const WRITE: Job =
    Job { name: "write-1m", rw: "write", bs: "1028k", depth: 32, sync_every: 32, size: 10 << 30 };
const SMALL: Job =
    Job { name: "write-100k", rw: "write", bs: "104k", depth: 64, sync_every: 64, size: 6 << 30 };
const WHOLE: Job =
    Job { name: "read-1m", rw: "randread", bs: "1m", depth: 16, sync_every: 0, size: READ_SET };
const PAIRS: Job =
    Job { name: "read-pairs", rw: "randread", bs: "4k/50:64k/50", depth: 64, sync_every: 0, size: READ_SET };
const PARTS: Job =
    Job { name: "read-64k", rw: "randread", bs: "64k", depth: 64, sync_every: 0, size: READ_SET };

async fn compare(args: &DiskArgs, folder: &Path, fio: &Fio) -> Result<Vec<Line>> {
    let time = Duration::from_secs(args.seconds);
    let bench = Bench::open(&folder.join("store"), READ_SET)?;
    let mut lines = Vec::new();
    let mut turns = Turns::default();
    for _ in 0..args.turns {
        turns.fio.push(fio.run(&WRITE)?);
        turns.store.push(bench.puts(32, 1 << 20, time).await?);
    }
    lines.push(turns.line(
        "1 MiB block writes, 32 deep, sync per 32",
        "MB/s",
        0.9,
        1028.0 / 1024.0,
        Measure::Bytes,
    ));
    bench.fill().await?;
    fio.lay_out(READ_SET)?;
    let mut turns = Turns::default();
    for _ in 0..args.turns {
        turns.fio.push(fio.run(&WHOLE)?);
        turns.store.push(bench.reads(16, 1 << 20, false, time).await?);
    }
    lines.push(turns.line("random 1 MiB reads, 16 deep", "MB/s", 0.9, 1.0, Measure::Bytes));
    let mut turns = Turns::default();
    for _ in 0..args.turns {
        // A pair is two of fio's operations.
        turns.fio.push(fio.run(&PAIRS)?.halved());
        bench.forget_headers();
        turns.store.push(bench.reads(64, 64 << 10, true, time).await?);
    }
    lines.push(turns.line(
        "64 KiB ranges verified, headers cold, 64 deep",
        "op/s",
        0.8,
        1.0,
        Measure::Operations,
    ));
    let mut turns = Turns::default();
    bench.remember_headers().await?;
    for _ in 0..args.turns {
        turns.fio.push(fio.run(&PARTS)?);
        turns.store.push(bench.reads(64, 64 << 10, true, time).await?);
    }
    lines.push(turns.line(
        "64 KiB ranges verified, headers cached, 64 deep",
        "op/s",
        0.8,
        1.0,
        Measure::Operations,
    ));
    let mut turns = Turns::default();
    for _ in 0..args.turns {
        turns.fio.push(fio.run(&SMALL)?);
        turns.store.push(bench.puts(64, 100 << 10, time).await?);
    }
    lines.push(turns.line("durable 100 KiB puts, 64 writers", "op/s", 0.8, 1.0, Measure::Operations));
    println!(
        "hashing alone: {:.3} CPU-s/GiB; it is part of the store's puts and verified reads",
        bench.hash_cost()
    );
    bench.close().await?;
    Ok(lines)
}

/// What a line counts.
#[derive(Clone, Copy)]
enum Measure {
    Bytes,
    Operations,
}

#[derive(Default)]
struct Turns {
    fio: Vec<Speed>,
    store: Vec<Speed>,
}

impl Turns {
    /// The best turn of each: what disturbs a turn only ever slows it. `overhead` is how much more than the block fio
    /// moved for each, so that both are compared by block bytes.
    fn line(
        &self,
        name: &'static str,
        unit: &'static str,
        goal: f64,
        overhead: f64,
        measure: Measure,
    ) -> Line {
        let value = |speed: &Speed| match measure {
            Measure::Bytes => speed.bytes_per_second / 1e6,
            Measure::Operations => speed.operations_per_second,
        };
        let best = |turns: &[Speed]| {
            turns.iter().max_by(|a, b| value(a).total_cmp(&value(b))).cloned().unwrap_or_default()
        };
        let (fio, store) = (best(&self.fio), best(&self.store));
        let (fio_value, store_value) = (value(&fio) / overhead, value(&store));
        let share = store_value / fio_value;
        let line = Line {
            name,
            unit,
            fio: fio_value,
            store: store_value,
            share,
            goal,
            fio_cpu_s_per_gib: fio.cpu_s_per_gib,
            store_cpu_s_per_gib: store.cpu_s_per_gib,
            store_cpu_by_stage: store.stages,
        };
        println!(
            "{name:44} {:>10.0} {:>10.0} {:>6.0}% {:>5.0}% {} {:.3}, {:.3} ({unit})",
            line.fio,
            line.store,
            100.0 * share,
            100.0 * goal,
            if share >= goal { "      " } else { "MISSED" },
            line.fio_cpu_s_per_gib,
            line.store_cpu_s_per_gib,
        );
        println!("    CPU-s/GiB by stage: {}", line.store_cpu_by_stage.text());
        line
    }
}

fn measure_start(folder: &Path, blocks: u64, time: Duration) -> Result<StartLine> {
    let dir = folder.join("start");
    println!("\nmaking an index of {blocks} blocks of 1 MiB");
    let (generated_seconds, index_bytes) = crate::disk_store::make_index(&dir, blocks)?;
    let mut open_seconds = Vec::new();
    let mut resident = 0;
    let mut cache_bytes = 0;
    for cold in [true, false, false] {
        if cold {
            crate::disk_store::forget_cached(&dir.join("index"))?;
        }
        let opened = crate::disk_store::open_timed(&dir, blocks)?;
        println!(
            "  {} start: {:.2} s, {} MiB resident besides {} MiB of index cache",
            if cold { "cold" } else { "warm" },
            opened.seconds,
            opened.grown_bytes >> 20,
            opened.cache_bytes >> 20
        );
        open_seconds.push(opened.seconds);
        resident = opened.grown_bytes;
        cache_bytes = opened.cache_bytes;
    }
    let under_load = crate::disk_load::under_load(&dir, blocks, time)?;
    println!(
        "  under load: {} puts and {} reads in {:.1} s, {} MiB resident at most besides {} MiB of index cache (goal {})",
        under_load.puts,
        under_load.reads,
        under_load.seconds,
        under_load.peak_bytes >> 20,
        cache_bytes >> 20,
        under_load.goal_bytes >> 20
    );
    Ok(StartLine {
        blocks,
        generated_seconds,
        index_bytes,
        open_seconds,
        resident_bytes_after_open: resident,
        index_cache_bytes: cache_bytes,
        under_load,
    })
}
