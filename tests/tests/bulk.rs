//! Bulk transfers that are stopped and go on, and a gateway under many connections.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_tests::{Network, bytes_of, succeeded, tree, write_file};
use serde_json::Value;

/// Connections that only wait, and connections that work.
const IDLE: usize = 1000;
const BUSY: usize = 256;
const GETS_EACH: usize = 8;
const OBJECT_LEN: usize = 100 * 1024;
/// What the gateway and its six nodes may take in memory, all of it.
const RESIDENT_KIB_MAX: u64 = 1_500_000;

fn lines(text: &str) -> Result<Vec<Value>> {
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

fn resumed(files: &[Value]) -> u64 {
    files.iter().filter_map(|file| file["resumed_bytes"].as_u64()).sum()
}

#[test]
fn put_goes_on_where_it_was_killed_and_leaves_nothing_behind() -> Result<()> {
    let root = tempfile::tempdir()?;
    let network = Network::up(&root.path().join("data"), &[])?;
    let (source, state) = (root.path().join("source"), root.path().join("state"));
    write_file(&source, "a/first.bin", &bytes_of("first", 70_000))?;
    write_file(&source, "b/large.bin", &bytes_of("large", 320_000_000))?;
    write_file(&source, "c/last.bin", &bytes_of("last", 90_000))?;
    let args = ["put", source.to_str().context("UTF-8")?, "resumed/v1", "--jobs", "1"];
    let mut put =
        network.client_command(&state, &args)?.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let watched = network.python("parts_uploaded.py", &["resumed"]);
    put.kill()?;
    put.wait()?;
    watched?;
    let again = succeeded(network.client_command(&state, &args)?.output()?, "the second put")?;
    let files = lines(&again)?;
    ensure!(files.len() == 3, "{again}");
    // The first file and two parts at least.
    ensure!(resumed(&files) >= 70_000 + 2 * 16 * 1024 * 1024, "{again}");
    let copy = root.path().join("copy");
    network.holdfast(&["get", "resumed/v1/", copy.to_str().context("UTF-8")?])?;
    ensure!(tree(&source)? == tree(&copy)?, "what came back is not what was put");
    let uploads = network.aws_ok(&["s3api", "list-multipart-uploads", "--bucket", "resumed"])?;
    ensure!(!uploads.contains("UploadId"), "{uploads}");
    let journals = std::fs::read_dir(state.join("holdfast/transfers"))?.count();
    ensure!(journals == 0, "{journals} journals are left");
    Ok(())
}

#[test]
fn import_copies_another_endpoint_and_skips_what_is_there() -> Result<()> {
    let root = tempfile::tempdir()?;
    let network = Network::up(&root.path().join("data"), &["--s3-tls-listen", "127.0.0.1:0"])?;
    let (source, state) = (root.path().join("source"), root.path().join("state"));
    write_file(&source, "x/one.bin", &bytes_of("one", 40_000_000))?;
    write_file(&source, "x/y/two", &bytes_of("two", 12_345))?;
    write_file(&source, "empty", b"")?;
    network.holdfast(&["put", source.to_str().context("UTF-8")?, "origin/v1"])?;
    let from = network.s3();
    let args = ["import", "s3://origin/v1/", "imported/copy/", "--from", &from, "--from-profile", "holdfast"];
    let done = lines(&succeeded(network.client_command(&state, &args)?.output()?, "import")?)?;
    ensure!(done.len() == 3 && resumed(&done) == 0, "{done:?}");
    let copy = root.path().join("copy");
    network.holdfast(&["get", "imported/copy/", copy.to_str().context("UTF-8")?])?;
    ensure!(tree(&source)? == tree(&copy)?, "what was imported is not what is there");
    over_tls(&network, &state)?;
    let wrong = network
        .client_command(&state, &["import", "s3://origin/v1/", "imported/other/", "--from", &from])?
        .env("SOURCE_AWS_ACCESS_KEY_ID", "HOLDNOBODY")
        .env("SOURCE_AWS_SECRET_ACCESS_KEY", "wrong")
        .output()?;
    ensure!(!wrong.status.success());
    ensure!(String::from_utf8_lossy(&wrong.stderr).contains("InvalidAccessKeyId"), "{wrong:?}");
    Ok(())
}

/// The same from an endpoint with TLS, for whoever trusts its certificate.
fn over_tls(network: &Network, state: &Path) -> Result<()> {
    let said = |name: &str| network.info[name].as_str().context("TLS is offered");
    let args = [
        "import",
        "s3://origin/v1/x/",
        "imported/tls/",
        "--from",
        said("s3_tls")?,
        "--from-profile",
        "holdfast",
    ];
    let import = |ca: &str| -> Result<_> {
        let mut command = network.client_command(state, &args)?;
        Ok(command.env_remove("SSL_CERT_DIR").env("SSL_CERT_FILE", ca).output()?)
    };
    let doubted = import("/dev/null")?;
    ensure!(!doubted.status.success(), "a certificate that nobody trusts was taken");
    let done = lines(&succeeded(import(said("s3_tls_ca")?)?, "import over TLS")?)?;
    ensure!(done.len() == 2, "{done:?}");
    Ok(())
}

/// One GET on a connection that stays; returns the bytes of the body.
fn get(stream: &mut TcpStream, host: &str, path: &str, buffer: &mut Vec<u8>) -> Result<usize> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())?;
    buffer.clear();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let read = stream.read(&mut chunk)?;
        ensure!(read > 0, "the connection ended early");
        buffer.extend_from_slice(&chunk[..read]);
        let Some(head) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let text = String::from_utf8_lossy(&buffer[..head]).to_ascii_lowercase();
        ensure!(text.starts_with("http/1.1 200"), "{text}");
        let length = text.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
        let length: usize = length.context("no length")?.trim().parse()?;
        if buffer.len() >= head + 4 + length {
            return Ok(length);
        }
    }
}

fn resident_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("no number")?.parse()?)
}

fn connect(host: &str) -> Result<TcpStream> {
    let stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    Ok(stream)
}

#[test]
fn a_thousand_idle_and_256_busy_connections_are_served_and_drained() -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    let root = tempfile::tempdir()?;
    let network = Network::up(&root.path().join("data"), &[])?;
    network.aws_ok(&["s3api", "create-bucket", "--bucket", "open", "--acl", "public-read"])?;
    upload(&network, root.path(), "small", OBJECT_LEN)?;
    upload(&network, root.path(), "large", 64 << 20)?;
    let base = network.s3();
    let host = base.trim_start_matches("http://").trim_end_matches('/').to_owned();
    let idle: Vec<TcpStream> = (0..IDLE).map(|_| connect(&host)).collect::<Result<_>>()?;
    let served = AtomicUsize::new(0);
    let failures: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..BUSY)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    let mut stream = connect(&host)?;
                    let mut buffer = Vec::new();
                    for _ in 0..GETS_EACH {
                        let length = get(&mut stream, &host, "/open/small", &mut buffer)?;
                        ensure!(length == OBJECT_LEN, "{length} bytes");
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        workers
            .into_iter()
            .filter_map(|worker| match worker.join() {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(format!("{error:#}")),
                Err(_) => Some("a worker panicked".to_owned()),
            })
            .collect()
    });
    ensure!(failures.is_empty(), "{} failed: {:?}", failures.len(), failures.first());
    ensure!(served.load(Ordering::Relaxed) == BUSY * GETS_EACH);
    let resident = resident_kib(network.gateway.pid())?;
    ensure!(resident < RESIDENT_KIB_MAX, "{resident} KiB resident");

    // A stop lets the answer under way come to its end, although a thousand connections are still open.
    let mut stream = connect(&host)?;
    stream.write_all(format!("GET /open/large HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())?;
    let mut answer = vec![0; 4096];
    let mut length = stream.read(&mut answer)?;
    let Network { gateway, .. } = network;
    let stopping = std::thread::spawn(move || gateway.stop());
    loop {
        let read = stream.read(&mut answer)?;
        if read == 0 {
            break;
        }
        length += read;
    }
    ensure!(length > 64 << 20, "the answer was cut after {length} bytes");
    stopping.join().map_err(|_| anyhow::anyhow!("the stop panicked"))??;
    drop(idle);
    Ok(())
}

fn upload(network: &Network, root: &Path, name: &str, len: usize) -> Result<()> {
    write_file(root, name, &bytes_of(name, len))?;
    let path = root.join(name);
    network.aws_ok(&["s3", "cp", path.to_str().context("UTF-8")?, &format!("s3://open/{name}")])?;
    Ok(())
}
