//! The lines of reading under trouble: a node that stalls, nodes that are dead, and small ranges straight from nodes.
//!
//! Nodes are processes of their own. A stall is SIGSTOP for one second, death is SIGKILL: the gateway's prober and the
//! transports see what they would see of a machine that hangs or is gone.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use holdfast_retrieval::testing::relay::Conditions;

use crate::client::Endpoint;
use crate::fetch::direct::Reader;
use crate::load::{self, Job, Until};
use crate::measure::{Goal, Line, Unit, Work, measure};
use crate::network::{Mode, Network, Plan};
use crate::pattern::Pattern;
use crate::process::Machine;
use crate::report::{self, Report, Table};
use crate::s3::{Payload, Server, Session};
use crate::{BUCKET, CommonArgs, REPORT_VERSION, SEED, show};

mod direct;
mod epoch;
mod trouble;

const MIB: u64 = 1 << 20;
const KEY: &str = "fetch/object";
/// Ranges of the sequential lines under way at once.
const PARALLEL: usize = 8;
/// Clients of the random lines.
const CLIENTS: usize = 16;
const SETTLE: Duration = Duration::from_millis(300);
/// Sequential reads in trouble must reach this share of their healthy speed, and their 99th percentile this multiple.
const SPEED_SHARE: f64 = 0.8;
const P99_SHARE: f64 = 1.5;
/// A second epoch from the cache on disk must reach this share of what fio reads there.
const DISK_SHARE: f64 = 0.8;

/// Options of `fetch`.
#[derive(Debug, Args)]
pub(crate) struct FetchArgs {
    /// The holdfast binary, built in release
    #[arg(long, value_name = "FILE")]
    pub(crate) binary: PathBuf,
    /// A directory on the disk to measure; needs 3 GB free
    #[arg(long, default_value = "/var/tmp", value_name = "DIR")]
    pub(crate) scratch: PathBuf,
    /// Common options.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

struct Bench {
    network: Network,
    server: Arc<Server>,
    len: u64,
    loop_for: Duration,
    only: Option<String>,
    /// On the disk to measure.
    folder: PathBuf,
    lines: Vec<Line>,
}

/// Measures reading under trouble.
pub(crate) async fn run(args: FetchArgs) -> Result<()> {
    let machine = Machine::look()?;
    println!("{}", report::machine_line(&machine));
    let folder = args.scratch.join(format!("holdfast-bench-fetch-{}", std::process::id()));
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let plan =
        Plan { binary: args.binary.clone(), data: folder.join("data"), mode: Mode::Separate, meta: None };
    let done = measure_all(&plan, &folder, &args.common).await;
    std::fs::remove_dir_all(&folder).ok();
    let tables = vec![Table { mode: Some(Mode::Separate), meta: "rocksdb".to_owned(), lines: done? }];
    let at = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let subject = format!("fetch: {}", args.binary.display());
    let report = Report { v: REPORT_VERSION, at, subject, quick: args.common.quick, machine, tables };
    println!("\nreport: {}", report.write(&args.common.results)?.display());
    Ok(())
}

async fn measure_all(plan: &Plan, folder: &Path, common: &CommonArgs) -> Result<Vec<Line>> {
    let network = Network::start(plan).await?;
    let server = Arc::new(Server {
        endpoint: Endpoint::plain(network.s3),
        credentials: network.credentials.clone(),
        bucket: BUCKET.to_owned(),
        pattern: Pattern::new(SEED),
    });
    let size = common.size();
    let mut bench = Bench {
        network,
        server,
        len: size.large_len,
        loop_for: size.loop_for,
        only: common.only.clone(),
        folder: folder.to_owned(),
        lines: Vec::new(),
    };
    println!("\nsix node processes over QUIC, one gateway, policy local\n{}", report::head());
    Session::new(&bench.server).create_bucket().await?;
    load::put_stream(&bench.server, KEY, bench.len, Payload::Unsigned, 1).await?;
    bench.small_ranges().await?;
    bench.epochs().await?;
    // The lines in trouble need the healthy one beside them.
    let alone = |only: &String| ["KiB", "epoch", "far"].iter().any(|name| only.contains(name));
    if bench.only.as_ref().is_some_and(|only| only.contains("20 ms")) {
        bench.far("random blocks, 20 ms away, 0.1 % loss").await?;
        return Ok(bench.lines);
    }
    if bench.only.as_ref().is_some_and(alone) {
        return Ok(bench.lines);
    }
    let healthy = bench.sequential("sequential, healthy", Goal::default(), None).await?;
    bench.stalls(&healthy).await?;
    bench.random("random blocks direct, healthy").await?;
    bench.far("random blocks, 20 ms away, 0.1 % loss").await?;
    for dead in 1..=2 {
        trouble::kill(bench.network.watched.nodes[dead - 1])?;
        let name = format!("sequential, {dead} of 6 nodes dead");
        let goal = Goal { speed_min: Some(healthy.speed * SPEED_SHARE), ..Goal::default() };
        // What recognising a dead node costs belongs to the line: nothing is read beforehand.
        bench.sequential(&name, goal, healthy.p99_ms).await?;
        bench.random(&format!("random blocks direct, {dead} of 6 dead")).await?;
    }
    Ok(bench.lines)
}

impl Bench {
    fn is_wanted(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only))
    }

    fn done(&mut self, line: Line) {
        show(&line);
        if !line.note.is_empty() {
            println!("    {}", line.note);
        }
        self.lines.push(line);
    }

    async fn line(
        &self,
        name: &str,
        unit: Unit,
        goal: Goal,
        work: impl Future<Output = Result<Work>>,
    ) -> Result<Line> {
        measure(&self.network.watched, SETTLE, name, unit, goal, work).await
    }

    /// 64 KiB ranges through the gateway and straight from the nodes.
    async fn small_ranges(&mut self) -> Result<()> {
        let goal = Goal { speed_min: Some(8000.0), ..Goal::default() };
        let name = "64 KiB ranges, gateway, 16 clients";
        if self.is_wanted(name) {
            let job = Job::RandomRange { key: KEY.to_owned(), object_len: self.len, len: MIB / 16 };
            load::closed_loop(&self.server, job.clone(), CLIENTS, Until::Elapsed(self.loop_for / 4)).await?;
            let work = load::closed_loop(&self.server, job, CLIENTS, Until::Elapsed(self.loop_for));
            let line = self.line(name, Unit::OperationsPerSecond, goal, work).await?;
            self.done(line);
        }
        let name = "64 KiB ranges, direct, 16 clients";
        if self.is_wanted(name) {
            let reader = Reader::open(&self.server, KEY).await?;
            reader.random(MIB / 16, CLIENTS, self.loop_for / 4).await?;
            let work = reader.random(MIB / 16, CLIENTS, self.loop_for);
            let line = self.line(name, Unit::OperationsPerSecond, goal, work).await?;
            self.done(line);
        }
        Ok(())
    }

    /// The whole object straight from the nodes through a cache on disk, and then again from that disk.
    async fn epochs(&mut self) -> Result<()> {
        let (first, second) =
            ("first epoch, direct, into the disk cache", "second epoch, from the disk cache");
        if !self.is_wanted(first) && !self.is_wanted(second) {
            return Ok(());
        }
        let disk = epoch::disk_speed(&self.folder, self.len)?;
        let cache = epoch::open_cache(&self.folder, self.len).await?;
        let reader = Reader::open_with(&self.server, KEY, None, Some(Arc::clone(&cache))).await?;
        let line =
            self.line(first, Unit::MegabytesPerSecond, Goal::default(), epoch::read_all(&reader)).await?;
        self.done(line);
        cache.flush().await;
        let nodes_before = reader.counts().node_bytes;
        let goal = Goal { speed_min: Some(disk * DISK_SHARE), ..Goal::default() };
        let work = epoch::read_again(&reader, &self.folder, self.loop_for);
        let mut line = self.line(second, Unit::MegabytesPerSecond, goal, work).await?;
        epoch::ensure_from_cache(&reader, nodes_before)?;
        line.note = format!(
            "fio reads {disk:.0} MB/s from this disk (1 MiB, depth 16): {:.2} of it",
            line.speed / disk
        );
        self.done(line);
        Ok(())
    }

    /// The whole object in ranges of 8 MiB, again and again for a while.
    async fn sequential(&mut self, name: &str, goal: Goal, p99_ms: Option<f64>) -> Result<Line> {
        let (server, len, limit) = (Arc::clone(&self.server), self.len, self.loop_for);
        let work = async move {
            let start = Instant::now();
            let mut work = Work::default();
            while start.elapsed() < limit {
                work.add(load::get_ranges(&server, KEY, len, PARALLEL).await?);
            }
            Ok(work)
        };
        let mut line = self.line(name, Unit::MegabytesPerSecond, goal, work).await?;
        if let (Some(healthy), Some(now)) = (p99_ms, line.p99_ms) {
            let verdict = if now <= healthy * P99_SHARE { "ok" } else { "MISSED" };
            line.note =
                format!("{verdict}: p99 is {:.2} of the healthy one (goal <= {P99_SHARE})", now / healthy);
        }
        self.done(line.clone());
        Ok(line)
    }

    /// One node after the other stops for a second and goes on for three.
    async fn stalls(&mut self, healthy: &Line) -> Result<()> {
        let name = "sequential, one node stalls 1 s";
        if !self.is_wanted(name) {
            return Ok(());
        }
        let stalling = trouble::Stalls::start(self.network.watched.nodes.clone());
        let goal = Goal { speed_min: Some(healthy.speed * SPEED_SHARE), ..Goal::default() };
        let outcome = self.sequential(name, goal, healthy.p99_ms).await;
        stalling.stop().await;
        outcome.map(drop)
    }

    /// Random whole blocks from nodes behind relays. The relays run in this process and cost it CPU.
    async fn far(&mut self, name: &str) -> Result<()> {
        if !self.is_wanted(name) {
            return Ok(());
        }
        let far = Conditions { delay: Duration::from_millis(10), loss: 10, ..Conditions::default() };
        let reader = Reader::open_through(&self.server, KEY, Some(far)).await?;
        reader.random(MIB, CLIENTS, self.loop_for / 4).await?;
        let before = reader.counts();
        let work = reader.random(MIB, CLIENTS, self.loop_for);
        let mut line = self.line(name, Unit::OperationsPerSecond, Goal::default(), work).await?;
        line.note = reader.amplification(&before, line.bytes);
        self.done(line);
        Ok(())
    }

    /// Random whole blocks straight from the nodes: what it costs in bytes beside what the code makes unavoidable.
    async fn random(&mut self, name: &str) -> Result<()> {
        if !self.is_wanted(name) {
            return Ok(());
        }
        let reader = Reader::open(&self.server, KEY).await?;
        // Which nodes are dead must have been found out; that is the sequential line's cost.
        reader.random(MIB, CLIENTS, self.loop_for / 2).await?;
        let before = reader.counts();
        let work = reader.random(MIB, CLIENTS, self.loop_for);
        let mut line = self.line(name, Unit::OperationsPerSecond, Goal::default(), work).await?;
        line.note = reader.amplification(&before, line.bytes);
        self.done(line);
        Ok(())
    }
}
