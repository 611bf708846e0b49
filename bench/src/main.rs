//! The load generator: starts a network, sends it what users send, and reports speed and cost.
//!
//! `run` measures a `holdfast` binary, with node processes over QUIC and with everything in one process.
//! `against` measures any S3 server that is already running.

mod chunked;
mod client;
mod database;
mod disk;
mod disk_fio;
mod disk_load;
mod disk_stages;
mod disk_store;
mod fetch;
mod load;
mod many;
mod measure;
mod mount;
mod network;
mod pattern;
mod process;
mod repair;
mod report;
mod s3;
mod scenario;
mod sigv4;
mod soundness;
#[cfg(test)]
mod stub;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};

/// As in the program that users read with.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

use crate::client::Endpoint;
use crate::database::Database;
use crate::measure::{Goal, Line};
use crate::network::{Mode, Network, Plan};
use crate::pattern::Pattern;
use crate::process::{Machine, Watched};
use crate::report::{Report, Table};
use crate::s3::Server;
use crate::scenario::{Scenario, Size};
use crate::sigv4::Credentials;

/// Layout of the JSON report.
const REPORT_VERSION: u16 = 1;
/// The seed of all object bytes.
const SEED: u64 = 0x686f_6c64;
/// The bucket that is written to.
const BUCKET: &str = "holdfast-bench";

/// Measures what users do: throughput, latency, CPU seconds per GiB, memory.
#[derive(Debug, Parser)]
#[command(name = "holdfast-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a network with a holdfast binary and measure it
    Run(RunArgs),
    /// Measure an S3 server that is already running
    Against(AgainstArgs),
    /// Measure reading while nodes stall and die, and straight from the nodes
    Fetch(fetch::FetchArgs),
    /// Measure a mounted bucket; takes /dev/fuse and root
    Mount(mount::MountArgs),
    /// Measure the block store beside fio on the same disk
    Disk(disk::DiskArgs),
    /// Lose a node and measure how repair moves bytes, against PUT
    Repair(RepairArgs),
    /// Simulate dishonest nodes against the audit: what is found, how soon, what it earns
    Soundness(soundness::SoundnessArgs),
}

#[derive(Debug, Args)]
struct RepairArgs {
    /// The holdfast binary
    #[arg(long, value_name = "FILE")]
    binary: PathBuf,
    /// A directory on the disk to measure; needs 8 GB free
    #[arg(long, default_value = "/var/tmp", value_name = "DIR")]
    scratch: PathBuf,
    /// 256 MiB instead of 2 GiB
    #[arg(long)]
    quick: bool,
}

#[derive(Debug, Args)]
struct CommonArgs {
    /// A short run: 256 MiB, one round. Shows that everything works; not for comparing
    #[arg(long)]
    quick: bool,
    /// Only the lines whose name contains this, for instance "64 KiB"
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// How many keys the bucket has that listings go through [default: 1000000; 20000 with --quick]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(2000..=1_000_000))]
    keys: Option<u64>,
    /// Where the JSON report goes
    #[arg(long, default_value = "bench/results", value_name = "DIR")]
    results: PathBuf,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The holdfast binary, built in release
    #[arg(long, value_name = "FILE")]
    binary: PathBuf,
    /// Only this way of running the nodes [default: one after the other]
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// A directory on the disk to measure; needs 20 GB free
    #[arg(long, default_value = "/var/tmp", value_name = "DIR")]
    scratch: PathBuf,
    /// Where metadata is kept: rocksdb, postgres (a server is started), or a postgres:// URL. Several, one after
    /// the other: rocksdb,postgres
    #[arg(long, default_value = "rocksdb", value_name = "WHERE", value_delimiter = ',')]
    meta: Vec<Database>,
    /// Leave the data directories there
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Args)]
struct AgainstArgs {
    /// Where S3 is served over plain HTTP
    #[arg(long, value_name = "ADDR")]
    address: SocketAddr,
    /// Where S3 is served over TLS
    #[arg(long, value_name = "ADDR", requires = "ca")]
    tls_address: Option<SocketAddr>,
    /// The name in the server's certificate
    #[arg(long, default_value = "localhost", value_name = "NAME")]
    tls_name: String,
    /// PEM file with the certificate to trust: the CA's, or the server's own
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// An AWS credentials file
    #[arg(long, value_name = "FILE")]
    credentials: PathBuf,
    /// The profile in it
    #[arg(long, default_value = "default", value_name = "NAME")]
    profile: String,
    /// The server's process, for its CPU and memory
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    #[command(flatten)]
    common: CommonArgs,
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(args) => run(args).await,
        Command::Against(args) => against(args).await,
        Command::Fetch(args) => fetch::run(args).await,
        Command::Mount(args) => mount::run(args).await,
        Command::Disk(args) => disk::run(args).await,
        Command::Repair(args) => measure_repair(args).await,
        Command::Soundness(args) => soundness::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl CommonArgs {
    fn size(&self) -> Size {
        let size = if self.quick { Size::QUICK } else { Size::FULL };
        Size { many_count: self.keys.unwrap_or(size.many_count), ..size }
    }

    fn report(&self, subject: String, machine: Machine, tables: Vec<Table>) -> Result<()> {
        let at = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let report = Report { v: REPORT_VERSION, at, subject, quick: self.quick, machine, tables };
        println!("\nreport: {}", report.write(&self.results)?.display());
        Ok(())
    }
}

async fn measure_repair(args: RepairArgs) -> Result<()> {
    let folder = args.scratch.join(format!("holdfast-bench-repair-{}", std::process::id()));
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let outcome = repair::run(&args.binary, &folder, args.quick).await;
    std::fs::remove_dir_all(&folder).ok();
    println!("{}", serde_json::to_string_pretty(&outcome?)?);
    Ok(())
}

fn show(line: &Line) {
    println!("{}", report::row(line));
}

async fn run(args: RunArgs) -> Result<()> {
    let machine = Machine::look()?;
    let version = std::process::Command::new(&args.binary)
        .arg("--version")
        .output()
        .with_context(|| format!("cannot run {}; give a built binary", args.binary.display()))?;
    let subject = String::from_utf8_lossy(&version.stdout).trim().to_owned();
    println!("{subject}; {}", report::machine_line(&machine));
    if args.common.quick {
        println!("quick run: not for comparing");
    }
    let modes = args.mode.map_or_else(|| vec![Mode::Separate, Mode::InProcess], |mode| vec![mode]);
    let mut tables = Vec::new();
    let metas = args.meta.iter();
    for (mode, meta) in modes.into_iter().flat_map(|mode| metas.clone().map(move |meta| (mode, meta))) {
        let title = match mode {
            Mode::Separate => "six node processes over QUIC, one gateway, policy local",
            Mode::InProcess => "six nodes inside the gateway's process, policy local",
        };
        let database = meta.start()?;
        println!("\n{title}, metadata in {meta}\n{}", report::head());
        let folder = args.scratch.join(format!("holdfast-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let plan =
            Plan { binary: args.binary.clone(), data: folder.join("data"), mode, meta: database.url.clone() };
        let lines = measure_network(&plan, &args.common).await;
        if args.keep {
            println!("kept: {}", folder.display());
        } else {
            std::fs::remove_dir_all(&folder).ok();
        }
        tables.push(Table { mode: Some(mode), meta: meta.to_string(), lines: lines? });
    }
    args.common.report(subject, machine, tables)
}

async fn measure_network(plan: &Plan, common: &CommonArgs) -> Result<Vec<Line>> {
    let goal = Goal { seconds_max: Some(2.0), ..Goal::default() };
    let first = Network::start(plan).await?;
    let mut lines = vec![Line::seconds("ready, empty directory", first.ready_after, goal)];
    lines.iter().for_each(show);
    lines.extend(scenario(&first, common).run().await?);
    let stopped = Line::seconds("stopped", first.stop().await?, Goal::default());
    show(&stopped);

    let second = Network::start(plan).await?;
    let ready = Line::seconds("ready, second start", second.ready_after, Goal::default());
    show(&ready);
    scenario(&second, common).check_survival().await.context("after the second start")?;
    second.stop().await?;
    lines.extend([stopped, ready]);
    Ok(lines)
}

fn scenario(network: &Network, common: &CommonArgs) -> Scenario {
    let server = |endpoint| {
        let (credentials, bucket) = (network.credentials.clone(), BUCKET.to_owned());
        Arc::new(Server { endpoint, credentials, bucket, pattern: Pattern::new(SEED) })
    };
    Scenario {
        server: server(Endpoint::plain(network.s3)),
        tls: Some(server(network.s3_tls.clone())),
        web: Some(network.web),
        watched: network.watched.clone(),
        size: common.size(),
        only: common.only.clone(),
        show,
    }
}

async fn against(args: AgainstArgs) -> Result<()> {
    let machine = Machine::look()?;
    let text = std::fs::read_to_string(&args.credentials)
        .with_context(|| format!("cannot read {}", args.credentials.display()))?;
    let credentials = Credentials::parse(&text, &args.profile)?;
    let server = |endpoint| {
        let (credentials, bucket) = (credentials.clone(), BUCKET.to_owned());
        Arc::new(Server { endpoint, credentials, bucket, pattern: Pattern::new(SEED) })
    };
    let tls = match (args.tls_address, &args.ca) {
        (Some(address), Some(ca)) => Some(server(Endpoint::tls(address, &args.tls_name, ca)?)),
        (None, _) => None,
        (Some(_), None) => bail!("--tls-address needs --ca"),
    };
    let scenario = Scenario {
        server: server(Endpoint::plain(args.address)),
        tls,
        web: None,
        watched: args.pid.map(Watched::tree_of).unwrap_or_default(),
        size: args.common.size(),
        only: args.common.only.clone(),
        show,
    };
    println!("{}; {}\n{}", args.address, report::machine_line(&machine), report::head());
    let lines = scenario.run().await?;
    args.common.report(
        args.address.to_string(),
        machine,
        vec![Table { mode: None, meta: String::new(), lines }],
    )
}
