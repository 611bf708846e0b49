//! `demo`: the whole story on a throw-away network, told step by step and summed up at the end.

use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::args::{DemoArgs, NetworkArgs};
use crate::client::{Admin, S3};
use crate::dataset::{self, Generated};
use crate::network::{Access, NetworkFile};
use crate::objects::{self, Transferred};
use crate::output::Output;
use crate::sizes::ByteSize;
use crate::{auditor, repair};

/// The seed of the dataset: every run uploads the same bytes.
const SEED: &str = "holdfast demo";
const BUCKET: &str = "demo";
/// Files in flight at once.
const JOBS: usize = 8;
/// Chunks that every node is challenged for.
const CHUNKS: u32 = 20;
/// A process that does not come up within this time has failed.
const START: Duration = Duration::from_secs(60);
/// The gateway notices a dead node within its probe interval and timeout.
const NOTICE: Duration = Duration::from_secs(30);

/// A process of the demonstration. Ends with its standard input, so it never outlives the demonstration.
struct Actor {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Actor {
    fn start(args: &[&str]) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find our own program")?;
        let mut command = Command::new(program);
        // The demonstration's network is its own: options of the surroundings must not reach into it.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("HOLDFAST_") {
                command.env_remove(name);
            }
        }
        let mut child = command
            .arg("--json")
            .args(args)
            .arg("--stop-on-stdin-eof")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start a process of the demonstration")?;
        let lines =
            BufReader::new(child.stdout.take().context("the process has no standard output")?).lines();
        Ok(Self { child, lines })
    }

    async fn wait_event(&mut self, event: &str) -> Result<Value> {
        let find = async {
            while let Some(line) = self.lines.next_line().await? {
                let value: Value = serde_json::from_str(&line).unwrap_or(Value::Null);
                if value["event"] == event {
                    return Ok(value);
                }
            }
            bail!("the process ended before it was {event}; its message stands above")
        };
        tokio::time::timeout(START, find).await.with_context(|| format!("it was not {event} in time"))?
    }

    async fn stop(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        while let Ok(Some(_)) = self.lines.next_line().await {}
        let status = self.child.wait().await?;
        if status.success() { Ok(()) } else { bail!("it ended with {status}") }
    }
}

/// What the summary shows.
#[derive(Default)]
struct Summary {
    rows: Vec<(String, String)>,
}

impl Summary {
    fn add(&mut self, what: &str, result: String) {
        self.rows.push((what.to_owned(), result));
    }

    fn show(&self, output: Output) {
        output.say("\nWhat happened");
        for (what, result) in &self.rows {
            output.say(format!("  {what:34} {result}"));
        }
        let rows: Vec<_> =
            self.rows.iter().map(|(what, result)| json!({ "step": what, "result": result })).collect();
        output.value(&json!({ "event": "summary", "steps": rows }));
    }
}

/// `holdfast demo`.
pub(crate) async fn run(args: DemoArgs, output: Output) -> Result<ExitCode> {
    if args.dir.exists() {
        bail!("{} exists already; remove it or choose another with --dir", args.dir.display());
    }
    std::fs::create_dir_all(&args.dir).with_context(|| format!("cannot create {}", args.dir.display()))?;
    let outcome = play(&args, output).await;
    if !args.keep {
        std::fs::remove_dir_all(&args.dir)
            .with_context(|| format!("cannot remove {}", args.dir.display()))?;
    }
    outcome?;
    Ok(ExitCode::SUCCESS)
}

async fn play(args: &DemoArgs, output: Output) -> Result<()> {
    let mut summary = Summary::default();
    let data = args.dir.join("network");
    let shown = data.to_str().context("the directory's name is not UTF-8")?;

    output.say("1. A network of six nodes, each a process of its own, and a gateway");
    let mut network = Actor::start(&[
        "up",
        "--separate-nodes",
        "--data",
        shown,
        "--s3-listen",
        "127.0.0.1:0",
        "--web-listen",
        "127.0.0.1:0",
        "--quic-port",
        "0",
    ])?;
    let ready = network.wait_event("ready").await?;
    let file: NetworkFile =
        serde_json::from_value(ready["network"].clone()).context("the network's addresses")?;
    let access = Access::resolve(&NetworkArgs { data: data.clone(), gateway: None })?;
    let (s3, admin) = (S3::new(access.clone()), Admin::of(&access)?);
    output.say(format!("   S3 {}  web {}", file.s3, file.web));

    let files = generate(args, output)?;
    let total: u64 = files.iter().map(|file| file.len).sum();
    summary.add("dataset", format!("{} files, {}", files.len(), ByteSize(total)));

    upload(&s3, &args.dir.join("dataset"), total, output, &mut summary).await?;
    kill_two(&file, &admin, output, &mut summary).await?;
    output.say("5. Every byte is read back with two of six nodes dead");
    read_back(&s3, &files, "read back with 2 of 6 nodes dead", output, &mut summary).await?;
    output.say(format!("6. Every node is challenged for {CHUNKS} chunks"));
    challenge(&access, "challenge with 2 of 6 nodes dead", 4, output, &mut summary).await?;

    output.say("7. Two fresh nodes join");
    let mut fresh = Vec::new();
    for index in 0..2 {
        fresh.push(join_fresh(&args.dir, index, &file, &data).await?);
    }
    output.say("8. Repair rebuilds exactly the missing shards from any four");
    let report = repair::run_with_progress(&admin, output).await?;
    summary.add("repair", repair::sentence(&report));

    output.say("9. Every node is challenged again, and every byte read back again");
    challenge(&access, "challenge after the repair", 6, output, &mut summary).await?;
    read_back(&s3, &files, "read back after the repair", output, &mut summary).await?;
    for node in fresh {
        node.stop().await.context("a fresh node did not stop cleanly")?;
    }
    network.stop().await.context("the network did not stop cleanly")?;
    summary.show(output);
    Ok(())
}

fn generate(args: &DemoArgs, output: Output) -> Result<Vec<Generated>> {
    output.say("2. A dataset: images, WebDataset shards, a safetensors checkpoint");
    let bar = output.bytes_bar(args.megabytes * 1_000_000, "generating");
    let files = dataset::generate(&args.dir.join("dataset"), args.megabytes, SEED, &bar);
    bar.finish_and_clear();
    files
}

async fn upload(s3: &S3, dataset: &Path, total: u64, output: Output, summary: &mut Summary) -> Result<()> {
    output.say("3. Upload through S3: encrypted, named by BLAKE3, coded 4+2, spread over the nodes");
    s3.create_bucket(BUCKET, false).await?;
    let plan: Vec<(PathBuf, String, u64)> = objects::plan_upload(dataset, "")?;
    let start = Instant::now();
    let done = objects::upload(s3, BUCKET, plan, JOBS, output).await?;
    let seconds = start.elapsed().as_secs_f64();
    for shape in ["images/", "shards/", "checkpoints/"] {
        if let Some(Transferred { key, bytes, cid: Some(cid), .. }) =
            done.iter().find(|file| file.key.starts_with(shape))
        {
            output.say(format!("   {cid}  {:>9}  {key}", ByteSize(*bytes).to_string()));
        }
    }
    output.say(format!("   … {} CIDs in all", done.iter().filter(|file| file.cid.is_some()).count()));
    summary.add("upload", format!("{} at {}", ByteSize(total), rate(total, seconds)));
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "a rate for people")]
fn rate(bytes: u64, seconds: f64) -> String {
    format!("{:.0} MB/s", bytes as f64 / 1e6 / seconds.max(1e-9))
}

async fn kill_two(file: &NetworkFile, admin: &Admin, output: Output, summary: &mut Summary) -> Result<()> {
    output.say("4. Two of six nodes die (SIGKILL)");
    for node in file.nodes.iter().take(2) {
        let pid =
            i32::try_from(node.pid).ok().and_then(rustix::process::Pid::from_raw).context("a process id")?;
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).context("cannot kill a node")?;
        output.say(format!("   {}", node.id));
    }
    let deadline = Instant::now() + NOTICE;
    loop {
        let nodes: Value = admin.get("api/v1/nodes").await?;
        let list = nodes["nodes"].as_array().context("the gateway lists no nodes")?;
        if list.iter().filter(|node| node["state"] == "down").count() == 2 {
            summary.add("killed", "2 of 6 nodes; the gateway sees both down".to_owned());
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the gateway did not notice the dead nodes within {} s", NOTICE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn read_back(
    s3: &S3,
    files: &[Generated],
    what: &str,
    output: Output,
    summary: &mut Summary,
) -> Result<()> {
    let total = files.iter().map(|file| file.len).sum();
    let bar = output.bytes_bar(total, "reading");
    let start = Instant::now();
    let different: Vec<String> = futures::stream::iter(files)
        .map(|file| {
            let bar = bar.clone();
            async move {
                let mut hasher = blake3::Hasher::new();
                objects::stream(s3, BUCKET, &file.name, |data| {
                    hasher.update(data);
                    bar.inc(data.len() as u64);
                    Ok(())
                })
                .await
                .with_context(|| format!("reading {} failed", file.name))?;
                anyhow::Ok((hasher.finalize() != file.hash).then(|| file.name.clone()))
            }
        })
        .buffer_unordered(JOBS)
        .try_filter_map(|name| async move { Ok(name) })
        .try_collect()
        .await?;
    bar.finish_and_clear();
    if !different.is_empty() {
        bail!("these files came back different: {different:?}");
    }
    let rate = rate(total, start.elapsed().as_secs_f64());
    output.say(format!("   {} files equal, {rate}", files.len()));
    summary.add(what, format!("{} files equal at {rate}", files.len()));
    Ok(())
}

async fn challenge(
    access: &Access,
    what: &str,
    alive: usize,
    output: Output,
    summary: &mut Summary,
) -> Result<()> {
    let report = auditor::challenge_all(access, CHUNKS).await?;
    auditor::show(&report, output);
    let passed = report.nodes.iter().filter(|node| node.passed == node.asked && node.asked > 0).count();
    if passed != alive {
        bail!("{passed} nodes passed their challenge, {alive} should have");
    }
    summary.add(what, format!("{passed} of {} nodes proved {CHUNKS} chunks each", report.nodes.len()));
    Ok(())
}

async fn join_fresh(root: &Path, index: usize, file: &NetworkFile, data: &Path) -> Result<Actor> {
    let dir = root.join(format!("fresh-{index}"));
    let token = data.join("admin-token");
    let init = [
        "node",
        "init",
        "--no-checks",
        "--capacity",
        "4GB",
        "--dir",
        dir.to_str().context("the directory's name is not UTF-8")?,
    ];
    let made = tokio::process::Command::new(std::env::current_exe()?)
        .args(init)
        .stdout(std::process::Stdio::null())
        .status()
        .await?;
    if !made.success() {
        bail!("no node could be made in {}", dir.display());
    }
    let mut node = Actor::start(&[
        "node",
        "run",
        "--listen",
        "127.0.0.1:0",
        "--join",
        &file.web,
        "--dir",
        dir.to_str().context("the directory's name is not UTF-8")?,
        "--token-file",
        token.to_str().context("the directory's name is not UTF-8")?,
    ])?;
    node.wait_event("ready").await?;
    node.wait_event("joined").await?;
    Ok(node)
}
