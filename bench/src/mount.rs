//! `holdfast-bench mount`: what a training job sees of a mounted bucket, beside the gateway's own speed.
//!
//! Everything goes through the kernel, byte for byte checked. "Cold" is a mount just made: nothing is in the kernel's
//! pages or in the mount, and no place is read twice; nodes and gateway are as warm as the lines before left them. In
//! this table the column "gateway" is the mount's own process, so that its cost and memory can be read.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::client::Endpoint;
use crate::load::{self, Job, Until};
use crate::measure::{Goal, Line, Round, Unit, Work, measure};
use crate::network::{Mode, Network, Plan};
use crate::pattern::{Dice, Pattern};
use crate::process::{Machine, Watched};
use crate::report::{self, Table};
use crate::s3::{Server, Session};
use crate::scenario::Size;
use crate::{BUCKET, CommonArgs, SEED};

const LARGE: &str = "large/mounted";
const RANDOM_LEN: u64 = 128 * 1024;
const RANDOM_JOBS: usize = 8;
/// What a program reads and writes at once.
const STEP: usize = 1024 * 1024;
const OPEN_FILES: u64 = 20_000;
const SMALL_LEN: u64 = 100;
/// A mount must be ready, and gone, within this time.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(crate) struct MountArgs {
    /// The holdfast binary
    #[arg(long, value_name = "FILE")]
    binary: PathBuf,
    /// How the nodes run
    #[arg(long, value_enum, default_value = "separate")]
    mode: Mode,
    /// A directory on the disk to measure; needs 20 GB free
    #[arg(long, default_value = "/var/tmp", value_name = "DIR")]
    scratch: PathBuf,
    #[command(flatten)]
    common: CommonArgs,
}

/// Runs all lines.
pub(crate) async fn run(args: MountArgs) -> Result<()> {
    let machine = Machine::look()?;
    println!("mounted, {:?} nodes; {}\n{}", args.mode, report::machine_line(&machine), report::head());
    let folder = args.scratch.join(format!("holdfast-bench-mount-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("m"))
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let plan = Plan { binary: args.binary.clone(), data: folder.join("data"), mode: args.mode, meta: None };
    let lines = measure_all(&plan, &folder, &args.common).await;
    std::fs::remove_dir_all(&folder).ok();
    let subject = format!("{} mount", args.binary.display());
    args.common.report(
        subject,
        machine,
        vec![Table { mode: Some(args.mode), meta: "rocksdb".to_owned(), lines: lines? }],
    )
}

struct Bench<'a> {
    server: Arc<Server>,
    network: &'a Network,
    plan: &'a Plan,
    folder: &'a Path,
    common: &'a CommonArgs,
    size: Size,
    lines: Vec<Line>,
}

async fn measure_all(plan: &Plan, folder: &Path, common: &CommonArgs) -> Result<Vec<Line>> {
    let network = Network::start(plan).await?;
    let (credentials, bucket) = (network.credentials.clone(), BUCKET.to_owned());
    let endpoint = Endpoint::plain(network.s3);
    let server = Arc::new(Server { endpoint, credentials, bucket, pattern: Pattern::new(SEED) });
    Session::new(&server).create_bucket().await?;
    let size = common.size();
    let mut bench = Bench { server, network: &network, plan, folder, common, size, lines: Vec::new() };
    bench.sequential().await?;
    bench.random().await?;
    bench.open_files().await?;
    let lines = bench.lines;
    network.stop().await?;
    Ok(lines)
}

impl Bench<'_> {
    async fn sequential(&mut self) -> Result<()> {
        let len = self.size.large_len;
        let mount = Mount::start(self.plan, self.folder, &[]).await?;
        let path = mount.path(LARGE);
        let pattern = Pattern::new(SEED);
        let goal = Goal::default();
        let work = blocking(move || write(&path, &pattern, len));
        self.line(&mount, "mount: write large, fsync", Unit::MegabytesPerSecond, goal, work).await?;
        mount.stop().await?;

        let gateway = self.network.watched.clone();
        let get = load::get_ranges(&self.server, LARGE, len, 8);
        let name = "gateway itself: 8 MiB ranges, 8";
        let line = measure(&gateway, self.size.settle, name, Unit::MegabytesPerSecond, goal, get).await?;
        self.done(line);
        let get = load::get_stream(&self.server, LARGE, len, 1);
        let name = "gateway itself: GET, 1 stream";
        let line = measure(&gateway, self.size.settle, name, Unit::MegabytesPerSecond, goal, get).await?;
        let own = line.speed;
        self.done(line);

        let mount = Mount::start(self.plan, self.folder, &[]).await?;
        let goal = Goal { speed_min: Some((own * 0.9).round()), ..Goal::default() };
        let read = |path: PathBuf| blocking(move || read(&path, &Pattern::new(SEED), len));
        let name = "mount: read large, cold";
        self.line(&mount, name, Unit::MegabytesPerSecond, goal, read(mount.path(LARGE))).await?;
        let goal = Goal { speed_min: Some(1500.0), ..Goal::default() };
        let name = "mount: read large again";
        self.line(&mount, name, Unit::MegabytesPerSecond, goal, read(mount.path(LARGE))).await?;
        mount.stop().await?;

        // Straight from the nodes into a cache; then another mount, which has only the cache.
        let cache = self.folder.join("cache");
        let cached = ["--cache", cache.to_str().context("UTF-8")?];
        for (name, options) in [
            ("mount: read large, cold, direct", &["--direct"][..]),
            ("mount: the same, filling a cache", &cached),
            ("mount: read large, cold, from the cache", &cached),
        ] {
            let mount = Mount::start(self.plan, self.folder, options).await?;
            let unit = Unit::MegabytesPerSecond;
            self.line(&mount, name, unit, Goal::default(), read(mount.path(LARGE))).await?;
            mount.stop().await?;
        }
        std::fs::remove_dir_all(&cache).context("the cache cannot be removed")
    }

    async fn random(&mut self) -> Result<()> {
        let (len, loop_for) = (self.size.large_len, self.size.loop_for);
        let job = Job::RandomRange { key: LARGE.to_owned(), object_len: len, len: RANDOM_LEN };
        let get = load::closed_loop(&self.server, job, RANDOM_JOBS, Until::Elapsed(loop_for));
        let gateway = self.network.watched.clone();
        let name = "gateway itself: 128 KiB ranges, 8";
        let unit = Unit::OperationsPerSecond;
        let line = measure(&gateway, self.size.settle, name, unit, Goal::default(), get).await?;
        let own = line.speed;
        self.done(line);
        let goal = Goal { speed_min: Some((own / 1.3).round().max(3000.0)), ..Goal::default() };
        for (name, options, goal) in [
            ("mount: random 128 KiB, 8 jobs, cold", &[][..], goal),
            ("mount: the same, direct", &["--direct"], Goal::default()),
        ] {
            let mount = Mount::start(self.plan, self.folder, options).await?;
            let path = mount.path(LARGE);
            let work = blocking(move || random_reads(&path, len, loop_for));
            self.line(&mount, name, unit, goal, work).await?;
            mount.stop().await?;
        }
        Ok(())
    }

    async fn open_files(&mut self) -> Result<()> {
        let job = Job::PutSmall { prefix: "many/".to_owned(), len: SMALL_LEN };
        load::closed_loop(&self.server, job, 16, Until::Count(OPEN_FILES)).await?;
        let mount = Mount::start(self.plan, self.folder, &[]).await?;
        let folder = mount.path("many");
        let work = blocking(move || open_all(&folder));
        let goal = Goal { gateway_mib_max: Some(250.0), ..Goal::default() };
        let unit = Unit::OperationsPerSecond;
        self.line(&mount, "mount: list, open, read 20,000 files", unit, goal, work).await?;
        mount.stop().await
    }

    async fn line(
        &mut self,
        mount: &Mount,
        name: &str,
        unit: Unit,
        goal: Goal,
        work: impl Future<Output = Result<Work>>,
    ) -> Result<()> {
        let watched = Watched { gateway: vec![mount.pid], nodes: Vec::new() };
        let line = measure(&watched, self.size.settle, name, unit, goal, work).await?;
        self.done(line);
        Ok(())
    }

    fn done(&mut self, line: Line) {
        if self.common.only.as_deref().is_none_or(|only| line.name.contains(only)) {
            println!("{}", report::row(&line));
        }
        self.lines.push(line);
    }
}

/// A `holdfast mount` process.
struct Mount {
    child: Child,
    pid: u32,
    dir: PathBuf,
}

impl Mount {
    async fn start(plan: &Plan, folder: &Path, options: &[&str]) -> Result<Self> {
        let dir = folder.join("m");
        let mut child = Command::new(&plan.binary)
            .args(["--json", "mount", BUCKET])
            .arg(&dir)
            .arg("--data")
            .arg(&plan.data)
            .arg("--staging")
            .arg(folder.join("staging"))
            .args(options)
            .arg("--stop-on-stdin-eof")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().context("the mount ended at once")?;
        let mut lines = BufReader::new(child.stdout.take().context("piped")?).lines();
        let ready = async {
            while let Some(line) = lines.next_line().await? {
                if line.contains("\"ready\"") {
                    return Ok(());
                }
            }
            bail!("the mount ended before it was ready; is there a /dev/fuse, and the right to mount?")
        };
        tokio::time::timeout(PATIENCE, ready).await.context("the mount was not ready in time")??;
        // What it says later is read away, so that it never blocks.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { child, pid, dir })
    }

    fn path(&self, key: &str) -> PathBuf {
        self.dir.join(key)
    }

    async fn stop(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let status = status.context("the mount did not stop in time")??;
        ensure!(status.success(), "the mount ended with {status}");
        Ok(())
    }
}

/// On a thread that may block: files are a program's, not the runtime's.
async fn blocking(work: impl FnOnce() -> Result<Work> + Send + 'static) -> Result<Work> {
    tokio::task::spawn_blocking(work).await.context("a job panicked")?
}

fn one(bytes: u64, operations: u64, start: Instant, latencies_us: Vec<u64>) -> Work {
    Work::one(Round { bytes, operations, elapsed: start.elapsed() }, latencies_us, 0)
}

fn write(path: &Path, pattern: &Pattern, len: u64) -> Result<Work> {
    std::fs::create_dir_all(path.parent().context("a folder")?)?;
    let start = Instant::now();
    let mut file = File::create(path)?;
    for frame in pattern.frames(LARGE, 0, len) {
        file.write_all(&frame)?;
    }
    file.sync_all()?;
    drop(file);
    Ok(one(len, 1, start, Vec::new()))
}

fn read(path: &Path, pattern: &Pattern, len: u64) -> Result<Work> {
    let start = Instant::now();
    let mut file = File::open(path)?;
    let mut check = pattern.check(LARGE, 0);
    let (mut buffer, mut total) = (vec![0; STEP], 0u64);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        check.next(&buffer[..read])?;
        total += read as u64;
    }
    ensure!(total == len, "{total} bytes came instead of {len}");
    Ok(one(len, 1, start, Vec::new()))
}

/// Each place at most once, in an order that no read-ahead can guess, until the time or the file is over.
fn random_reads(path: &Path, len: u64, loop_for: Duration) -> Result<Work> {
    let mut places: Vec<u64> = (0..len / RANDOM_LEN).map(|place| place * RANDOM_LEN).collect();
    let mut dice = Dice(SEED);
    for last in (1..places.len()).rev() {
        places.swap(last, usize::try_from(dice.below(last as u64 + 1))?);
    }
    let start = Instant::now();
    let jobs: Vec<_> = places
        .chunks(places.len().div_ceil(RANDOM_JOBS).max(1))
        .map(|places| {
            let (path, places) = (path.to_owned(), places.to_vec());
            std::thread::spawn(move || -> Result<Vec<u64>> {
                let (file, pattern) = (File::open(path)?, Pattern::new(SEED));
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random)?;
                let (mut buffer, mut latencies) = (vec![0; usize::try_from(RANDOM_LEN)?], Vec::new());
                for at in places {
                    if start.elapsed() >= loop_for {
                        break;
                    }
                    let began = Instant::now();
                    file.read_exact_at(&mut buffer, at)?;
                    latencies.push(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
                    pattern.check(LARGE, at).next(&buffer)?;
                }
                Ok(latencies)
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for job in jobs {
        latencies.extend(job.join().map_err(|_| anyhow::anyhow!("a job panicked"))??);
    }
    let count = latencies.len() as u64;
    Ok(one(count * RANDOM_LEN, count, start, latencies))
}

fn open_all(folder: &Path) -> Result<Work> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised)?;
    // Every file is listed, looked up and read; where the system allows fewer open files, the first are closed again.
    let open_max =
        usize::try_from(limit.maximum.unwrap_or(u64::MAX).saturating_sub(500)).unwrap_or(usize::MAX);
    let start = Instant::now();
    let (mut open, mut count) = (std::collections::VecDeque::new(), 0);
    let mut text = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let mut file = File::open(entry?.path()).context("opening one more file (see ulimit -n)")?;
        text.clear();
        file.read_to_end(&mut text)?;
        ensure!(text.len() as u64 == SMALL_LEN, "a file has {} bytes", text.len());
        count += 1;
        open.push_back(file);
        if open.len() > open_max {
            open.pop_front();
        }
    }
    ensure!(count == OPEN_FILES, "{count} files were listed");
    Ok(one(OPEN_FILES * SMALL_LEN, OPEN_FILES, start, Vec::new()))
}
