//! `holdfast`: one program for the disk owner, the uploader, the training job and the auditor.
//!
//! This crate parses, wires the parts together and talks to people. It owns no format and no protocol.

mod args;
mod auditor;
mod client;
mod dataset;
mod demo;
mod direct;
mod gateway;
mod import;
mod inspect;
mod key;
mod mount;
mod network;
mod node;
mod node_args;
mod node_disks;
mod objects;
mod output;
mod periods;
mod plan;
mod repair;
mod settings;
mod signals;
mod sizes;
mod snapshot;
mod transfer;
mod up;

use std::process::ExitCode;

/// Blocks are buffers of 1 MiB: glibc gives each back to the system and pays page faults for the next one.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

use anyhow::{Context, Result};
use clap::{CommandFactory, FromArgMatches};

use crate::args::{
    AuditorCommand, Cli, Command, ConfigCommand, GatewayCommand, NodeCommand, RepairCommand,
    TranscriptCommand,
};
use crate::output::Output;

fn main() -> ExitCode {
    let (cli, settings) = match parse() {
        Ok(parsed) => parsed,
        Err(error) => {
            if let Some(clap) = error.downcast_ref::<clap::Error>() {
                clap.exit();
            }
            eprintln!("error: {error:#}");
            return ExitCode::from(2);
        }
    };
    let output = Output::new(cli.json);
    if let Err(error) = start_logging(&cli.log) {
        output.error(&error);
        return ExitCode::from(2);
    }
    raise_open_files();
    match run(cli, output, settings) {
        Ok(code) => code,
        Err(error) => {
            output.error(&error);
            ExitCode::FAILURE
        }
    }
}

/// A thousand connections are a thousand open files, and many systems allow that many only to those who ask.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::debug!(%error, "the limit of open files cannot be raised");
    }
}

fn parse() -> Result<(Cli, Vec<settings::Setting>)> {
    let arguments: Vec<_> = std::env::args_os().collect();
    let file = match settings::config_path(&arguments) {
        Some(path) => settings::read_file(&path)?,
        None => toml::Table::new(),
    };
    let command = settings::apply_file(Cli::command(), &file, "")?;
    let matches = command.clone().try_get_matches_from(arguments)?;
    Ok((Cli::from_arg_matches(&matches)?, settings::list(&command, &file)))
}

fn start_logging(filter: &str) -> Result<()> {
    // s3s logs every client's mistake at ERROR; whoever wants to see that names it in the filter.
    let quiet =
        if filter.contains("s3s") { filter.to_owned() } else { format!("{filter},s3s=off,fuser=error") };
    let filter = tracing_subscriber::EnvFilter::try_new(quiet).with_context(|| {
        format!("`{filter}` is not a log filter; write for example warn or holdfast_gateway=debug")
    })?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    Ok(())
}

fn run(cli: Cli, output: Output, settings: Vec<settings::Setting>) -> Result<ExitCode> {
    let runtime = runtime(&cli.command).context("cannot start the runtime")?;
    let outcome = runtime.block_on(async move {
        match cli.command {
            Command::Up(args) => up::run(args, output).await,
            Command::Node(command) => node::dispatch(command, output).await,
            Command::Gateway(GatewayCommand::Init(args)) => gateway::init(&args, output),
            Command::Gateway(GatewayCommand::Run(args)) => gateway::run(*args, output).await,
            Command::Gateway(GatewayCommand::Invite(args)) => node::invite(&args, output).await,
            Command::Gateway(GatewayCommand::Invites(args)) => node::invites(&args, output).await,
            Command::Auditor(AuditorCommand::Challenge(args)) => auditor::challenge(args, output).await,
            Command::Auditor(AuditorCommand::Run(args)) => auditor::run(args, output).await,
            Command::Auditor(AuditorCommand::Verify(args)) => auditor::verify(&args, output).await,
            Command::Auditor(AuditorCommand::Report(args)) => auditor::report(&args, output).await,
            Command::Repair(RepairCommand::Run(args)) => repair::run(&args, output).await,
            Command::Repair(RepairCommand::Status(args)) => repair::status(&args, output).await,
            Command::Plan(args) => plan::run(&args, output).await,
            Command::Transcript(TranscriptCommand::Verify(args)) => direct::verify(&args, output).await,
            Command::Key(command) => key::run(command, output).await,
            Command::Put(args) => objects::put(args, output).await,
            Command::Import(args) => import::run(args, output).await,
            Command::Get(args) => objects::get(args, output).await,
            Command::Cat(args) => objects::cat(args).await,
            Command::Ls(args) => objects::ls(args, output).await,
            Command::Rm(args) => objects::rm(args, output).await,
            Command::Mount(args) => mount::run(args, output).await,
            Command::Snapshot(command) => snapshot::run(command, output).await,
            Command::Inspect(args) => inspect::run(&args, output),
            Command::Config(ConfigCommand::Show) => {
                output.settings(&settings);
                Ok(ExitCode::SUCCESS)
            }
            Command::Demo(args) => demo::run(args, output).await,
        }
    });
    // What is worth waiting for has been awaited; blocking reads of standard input must not hold the exit.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    outcome
}

/// A node serves from one thread where cores are few: packets, hashing and replies then pass no thread border, and
/// six nodes beside a gateway on two cores do not fight over them. The disk has threads of its own either way.
fn runtime(command: &Command) -> std::io::Result<tokio::runtime::Runtime> {
    let is_node = matches!(command, Command::Node(NodeCommand::Run(_)));
    if is_node && node::serves_from_one_thread() {
        tokio::runtime::Builder::new_current_thread().enable_all().build()
    } else {
        tokio::runtime::Builder::new_multi_thread().enable_all().build()
    }
}
