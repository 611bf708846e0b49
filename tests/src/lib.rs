//! What the end-to-end tests share: networks of real processes, real S3 clients, and trees of files from a seed.
//!
//! Nothing here is mocked: gateways and nodes are the `holdfast` program, clients are the AWS CLI and boto3.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

pub mod gateways;
pub mod mounted;
pub mod postgres;
pub mod uploads;

pub mod hosts;

/// A program that does not become ready within this time has failed.
const READY: Duration = Duration::from_secs(60);
/// How long conditions are polled for before a test gives up.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

/// The program under test: `HOLDFAST_BIN`, or the one built beside the tests.
pub fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("HOLDFAST_BIN") {
        return Ok(path.into());
    }
    let test = std::env::current_exe()?;
    let path = test
        .parent()
        .and_then(Path::parent)
        .context("the test lies in target/PROFILE/deps")?
        .join("holdfast");
    ensure!(path.exists(), "{} is not built; run `make checked`", path.display());
    Ok(path)
}

/// A program of the test clients' virtual environment.
pub fn client_program(name: &str) -> Result<PathBuf> {
    let venv =
        std::env::var_os("HOLDFAST_VENV").context("HOLDFAST_VENV is not set; run through `make test`")?;
    let path = Path::new(&venv).join("bin").join(name);
    ensure!(path.exists(), "{} is missing; run scripts/setup.sh --tests", path.display());
    Ok(path)
}

/// A `holdfast` process; killed when dropped.
pub struct Process {
    child: Child,
    lines: std::sync::mpsc::Receiver<Value>,
}

impl Process {
    /// Starts `holdfast --json ARGS…`.
    pub fn start(args: &[&str]) -> Result<Self> {
        Self::start_with(args, &[])
    }

    /// Starts `holdfast --json ARGS…` with more environment.
    pub fn start_with(args: &[&str], environment: &[(&str, &str)]) -> Result<Self> {
        Self::spawn(Command::new(program()?), args, environment)
    }

    /// As [`Process::start`], in another network namespace.
    pub fn start_in(namespace: &str, args: &[&str]) -> Result<Self> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(program()?);
        Self::spawn(command, args, &[])
    }

    /// As [`Process::start`], in a mount namespace of its own in which `dir` is read-only. Needs root.
    pub fn start_read_only(dir: &Path, args: &[&str]) -> Result<Self> {
        let script = r#"mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@""#;
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).arg(dir).arg(program()?);
        Self::spawn(command, args, &[])
    }

    /// Makes `dir` writable again in the process's mount namespace.
    pub fn make_writable(&self, dir: &Path) -> Result<()> {
        let mut command = Command::new("nsenter");
        command
            .args(["--mount", "--target", &self.pid().to_string(), "mount", "-o", "remount,rw,bind"])
            .arg(dir);
        succeeded(command.output()?, "remounting").map(|_| ())
    }

    /// Runs `holdfast ARGS…` in the process's mount namespace; it must succeed. Its standard output.
    pub fn inside(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--target", &self.pid().to_string()]).arg(program()?).args(args);
        succeeded(command.stdin(Stdio::null()).output()?, &args.join(" "))
    }

    fn spawn(mut command: Command, args: &[&str], environment: &[(&str, &str)]) -> Result<Self> {
        let mut child = command
            .arg("--json")
            .args(args)
            .arg("--stop-on-stdin-eof")
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().context("piped")?;
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Ok(value) = serde_json::from_str(&line)
                    && sender.send(value).is_err()
                {
                    return;
                }
            }
        });
        Ok(Self { child, lines })
    }

    /// Waits for the line whose `event` is `event`.
    pub fn wait_event(&self, event: &str) -> Result<Value> {
        let deadline = Instant::now() + READY;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).with_context(|| format!("no event `{event}` came"))?;
            if line["event"] == event {
                return Ok(line);
            }
        }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, as a power cut would have it.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits for the process to end by itself; the exit must be a success.
    pub fn wait_end(mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "it ended with {status}");
                return Ok(());
            }
            std::thread::sleep(POLL);
        }
        bail!("it did not end within {PATIENCE:?}")
    }

    /// Asks for a clean stop, and does not wait.
    pub fn terminate(&self) -> Result<()> {
        signal(self.child.id(), rustix::process::Signal::TERM)
    }

    /// Waits for the process to end by itself; returns its exit code.
    pub fn wait_code(&mut self) -> Result<Option<i32>> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code());
            }
            std::thread::sleep(POLL);
        }
        bail!("it did not stop within {PATIENCE:?}")
    }

    /// Asks for a clean stop and waits for it; the exit must be a success.
    pub fn stop(mut self) -> Result<()> {
        self.terminate()?;
        let code = self.wait_code()?;
        ensure!(code == Some(0), "it ended with {code:?}");
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Children of `up` end with their standard input, which closes with their parent.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes a node in `dir`, as its owner does before the first start. Looks at no disk and no network.
pub fn init_node(dir: &Path, capacity: &str) -> Result<()> {
    let dir = dir.to_str().context("UTF-8")?;
    let made = Command::new(program()?)
        .args(["node", "init", "--no-checks", "--dir", dir, "--capacity", capacity])
        .stdin(Stdio::null())
        .output()?;
    succeeded(made, "node init").map(|_| ())
}

/// Sends a signal to a process.
pub fn signal(pid: u32, signal: rustix::process::Signal) -> Result<()> {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid)?).context("pid 0")?;
    rustix::process::kill_process(pid, signal)?;
    Ok(())
}

/// A network with an S3 address: `up`, or a gateway with nodes of their own.
pub struct Network {
    /// The gateway's data directory.
    pub data: PathBuf,
    /// The process of the gateway (and of the nodes, with `up`).
    pub gateway: Process,
    /// Nodes that were started by the test.
    pub nodes: Vec<Process>,
    /// What the gateway said when it was ready.
    pub info: Value,
}

/// Options that every network of the tests has: any free port.
const ANY_PORT: [&str; 4] = ["--s3-listen", "127.0.0.1:0", "--web-listen", "127.0.0.1:0"];

impl Network {
    /// `holdfast up` on `data`, with nodes as processes of their own or inside.
    pub fn up(data: &Path, more: &[&str]) -> Result<Self> {
        let mut args = vec!["up", "--data", data.to_str().context("UTF-8")?, "--quic-port", "0"];
        args.extend(ANY_PORT);
        if !more.contains(&"--capacity") {
            args.extend(["--capacity", "8GB"]);
        }
        args.extend(more);
        let gateway = Process::start(&args)?;
        let info = gateway.wait_event("ready")?["network"].clone();
        Ok(Self { data: data.to_path_buf(), gateway, nodes: Vec::new(), info })
    }

    /// A gateway and `count` nodes, each a process started by the test; node `i` misbehaves as `lies` says.
    pub fn separate(root: &Path, count: usize, lies: &[(usize, &str)]) -> Result<Self> {
        let data = root.join("gateway");
        let (gateway, info) = Self::start_gateway(&data)?;
        let mut network = Self { data, gateway, nodes: Vec::new(), info };
        for index in 0..count {
            let lie = lies.iter().find(|(at, _)| *at == index).map(|(_, lie)| *lie);
            network.add_node(&root.join(format!("node-{index}")), lie)?;
        }
        network.gateway.wait_event("ready")?;
        Ok(network)
    }

    fn start_gateway(data: &Path) -> Result<(Process, Value)> {
        let mut args = vec!["gateway", "run", "--data", data.to_str().context("UTF-8")?];
        args.extend(ANY_PORT);
        let gateway = Process::start(&args)?;
        let info = gateway.wait_event("open")?["network"].clone();
        Ok((gateway, info))
    }

    /// Kills the gateway as a power cut would, and starts it again on the same directory.
    pub fn restart_gateway(&mut self) -> Result<()> {
        self.gateway.kill()?;
        let (gateway, info) = Self::start_gateway(&self.data)?;
        gateway.wait_event("ready")?;
        (self.gateway, self.info) = (gateway, info);
        Ok(())
    }

    /// Starts a node in `dir` and waits until the gateway has taken it in.
    pub fn add_node(&mut self, dir: &Path, lie: Option<&str>) -> Result<Value> {
        if !dir.join("node.json").exists() {
            init_node(dir, "8GB")?;
        }
        let token = self.data.join("admin-token");
        let args = [
            "node",
            "run",
            "--dir",
            dir.to_str().context("UTF-8")?,
            "--listen",
            "127.0.0.1:0",
            "--join",
            &self.web(),
            "--token-file",
            token.to_str().context("UTF-8")?,
        ];
        let environment: Vec<_> = lie.map(|lie| ("HOLDFAST_TEST_MISBEHAVE", lie)).into_iter().collect();
        let node = Process::start_with(&args, &environment)?;
        let ready = node.wait_event("ready")?;
        node.wait_event("joined")?;
        self.nodes.push(node);
        Ok(ready)
    }

    /// The S3 address.
    pub fn s3(&self) -> String {
        self.info["s3"].as_str().unwrap_or_default().to_owned()
    }

    /// The web address.
    pub fn web(&self) -> String {
        self.info["web"].as_str().unwrap_or_default().to_owned()
    }

    /// `(id, pid)` of the nodes that `up` started.
    pub fn started_nodes(&self) -> Vec<(String, u32)> {
        let empty = Vec::new();
        let nodes = self.info["nodes"].as_array().unwrap_or(&empty);
        nodes
            .iter()
            .filter_map(|node| {
                let pid = u32::try_from(node["pid"].as_u64()?).ok()?;
                Some((node["id"].as_str()?.to_owned(), pid))
            })
            .collect()
    }

    /// Runs the AWS CLI against this network.
    pub fn aws(&self, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(client_program("aws")?);
        self.environment(&mut command)
            .args(["--profile", "holdfast", "--endpoint-url", &self.s3()])
            .args(args);
        Ok(command.output()?)
    }

    /// Runs the AWS CLI; it must succeed. Returns its standard output.
    pub fn aws_ok(&self, args: &[&str]) -> Result<String> {
        succeeded(self.aws(args)?, &format!("aws {}", args.join(" ")))
    }

    /// Runs a Python program of `tests/python` with boto3; it must succeed. Returns its standard output.
    pub fn python(&self, script: &str, args: &[&str]) -> Result<String> {
        let output = self.python_command(script, args)?.output()?;
        succeeded(output, script)
    }

    /// Runs a Python program of `tests/python` with the data tools (s3fs, pyarrow, obstore); it must succeed.
    pub fn data_python(&self, script: &str, args: &[&str]) -> Result<String> {
        let venv = std::env::var_os("HOLDFAST_DATA_VENV")
            .context("HOLDFAST_DATA_VENV is not set; run through `make test`")?;
        let program = Path::new(&venv).join("bin/python");
        ensure!(program.exists(), "{} is missing; run scripts/setup.sh --tests", program.display());
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("python").join(script);
        let mut command = Command::new(program);
        self.environment(&mut command).arg(path).args(args);
        succeeded(command.output()?, script)
    }

    /// A `holdfast` client command against this network, ready to be started, with its journals below `state`.
    pub fn client_command(&self, state: &Path, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(program()?);
        self.environment(&mut command)
            .env("XDG_STATE_HOME", state)
            .arg("--json")
            .args(args)
            .args(["--data", self.data.to_str().context("UTF-8")?]);
        Ok(command)
    }

    /// A Python program of `tests/python`, ready to be started.
    pub fn python_command(&self, script: &str, args: &[&str]) -> Result<Command> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("python").join(script);
        let mut command = Command::new(client_program("python")?);
        self.environment(&mut command).arg(path).args(args);
        Ok(command)
    }

    fn environment<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("AWS_SHARED_CREDENTIALS_FILE", self.data.join("credentials"))
            .env("AWS_CONFIG_FILE", "/nonexistent")
            .env("AWS_PROFILE", "holdfast")
            .env("AWS_DEFAULT_REGION", "us-east-1")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("HOLDFAST_S3", self.s3())
            .env("HOLDFAST_WEB", self.web())
            .env_remove("AWS_CA_BUNDLE")
            .stdin(Stdio::null())
    }

    /// Runs a `holdfast` client command against this network; it must succeed. Returns its JSON lines.
    pub fn holdfast(&self, args: &[&str]) -> Result<Vec<Value>> {
        let output = Command::new(program()?)
            .arg("--json")
            .args(args)
            .args(["--data", self.data.to_str().context("UTF-8")?])
            .env("XDG_STATE_HOME", self.data.join("client-state"))
            .stdin(Stdio::null())
            .output()?;
        let text = succeeded(output, &format!("holdfast {}", args.join(" ")))?;
        text.lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("`{line}` is no JSON")))
            .collect()
    }

    /// Runs a `holdfast` command that asks no gateway; it must succeed. Returns its JSON lines.
    pub fn holdfast_offline(&self, args: &[&str]) -> Result<Vec<Value>> {
        let output = Command::new(program()?).arg("--json").args(args).stdin(Stdio::null()).output()?;
        let text = succeeded(output, &format!("holdfast {}", args.join(" ")))?;
        text.lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("`{line}` is no JSON")))
            .collect()
    }

    /// An admin call with GET.
    pub fn api(&self, path: &str) -> Result<Value> {
        let token = std::fs::read_to_string(self.data.join("admin-token"))?;
        let (status, body) =
            http_get(&self.web(), path, &[("Authorization", &format!("Bearer {}", token.trim()))])?;
        ensure!(status == 200, "{path} answered {status}: {body}");
        Ok(serde_json::from_str(&body)?)
    }

    /// Polls an admin call until `holds`.
    pub fn wait_api(&self, path: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        let deadline = Instant::now() + PATIENCE;
        let mut last = Value::Null;
        while Instant::now() < deadline {
            last = self.api(path)?;
            if holds(&last) {
                return Ok(last);
            }
            std::thread::sleep(POLL);
        }
        bail!("{what} did not come true within {PATIENCE:?}; {path} says {last}")
    }
}

/// Polls the metrics of a web side until a line of them `holds`.
pub fn wait_metric(web: &str, what: &str, holds: impl Fn(&str) -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if http_get(web, "/metrics", &[])?.1.lines().any(&holds) {
            return Ok(());
        }
        std::thread::sleep(POLL);
    }
    bail!("{what} did not come true within {PATIENCE:?}")
}

/// Polls until `holds` gives something.
pub fn poll<T>(what: &str, patience: Duration, mut holds: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = holds()? {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "{what} did not come true within {patience:?}");
        std::thread::sleep(POLL);
    }
}

/// The standard output of a program that must have succeeded.
pub fn succeeded(output: Output, what: &str) -> Result<String> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{what} ended with {}:\n{stdout}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(stdout)
}

/// One GET over a connection of its own. Returns status and body.
pub fn http_get(base: &str, path: &str, headers: &[(&str, &str)]) -> Result<(u16, String)> {
    let host = base.trim_start_matches("http://").trim_end_matches('/');
    let address: SocketAddr = host.parse()?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, body.to_owned()))
}

/// An admin call with POST; it must succeed. Returns the body.
pub fn http_post(network: &Network, path: &str, body: &str) -> Result<String> {
    let token = std::fs::read_to_string(network.data.join("admin-token"))?;
    let host = network.web().trim_start_matches("http://").trim_end_matches('/').to_owned();
    let mut stream = TcpStream::connect(&host)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAuthorization: Bearer {}\r\nContent-Type: \
         application/json\r\nContent-Length: {}\r\n\r\n{body}",
        token.trim(),
        body.len()
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    ensure!(head.split(' ').nth(1) == Some("200"), "{path} answered {head}: {body}");
    Ok(body.to_owned())
}

/// Polls until `holds`, which may fail meanwhile.
pub fn wait_until(what: &str, holds: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut last = None;
    while Instant::now() < deadline {
        match holds() {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) => last = Some(error),
        }
        std::thread::sleep(POLL);
    }
    bail!("{what} did not come true within {PATIENCE:?}; last error: {last:?}")
}

/// Files below a directory: path with `/` and BLAKE3 of the bytes, sorted.
pub fn tree(root: &Path) -> Result<Vec<(String, [u8; 32])>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root)?.to_str().context("UTF-8")?.to_owned();
                files.push((name, *blake3::hash(&std::fs::read(&path)?).as_bytes()));
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Deterministic bytes that do not compress and repeat nowhere.
pub fn bytes_of(seed: &str, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new_derive_key("holdfast tests v1")
        .update(seed.as_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// Writes a file below `root`, with its folders.
pub fn write_file(root: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = root.join(name);
    std::fs::create_dir_all(path.parent().context("a file has a folder")?)?;
    std::fs::write(path, bytes)?;
    Ok(())
}
