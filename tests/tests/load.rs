//! A real gateway with a thousand idle connections and 256 busy ones: everybody is served the right bytes, its memory stays
//! within its bound, and a stop finishes what is under way.

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream as StdStream};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use holdfast_tests::{Network, bytes_of};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const IDLE: usize = 1000;
/// Clients that read 1 MiB ranges, that read the whole object, that write, and that ask and do not read.
const RANGES: usize = 128;
const WHOLE: usize = 32;
const WRITERS: usize = 64;
const DEAF: usize = 32;
/// What readers of ranges and writers do, one after the other.
const TURNS: usize = 2;
const OBJECT_LEN: usize = 16 << 20;
const PUT_LEN: usize = 300_000;
/// The most that the gateway may ever have resident. Its own bounds are 128 MiB each for uploads, reading ahead and whole
/// blocks on their way, 128 MiB for caches and the database's buffers; with the heap's slack that is below this.
const MEMORY_MAX: u64 = 640 << 20;

fn peak_bytes(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("VmHWM")?;
    let kib: u64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
    Ok(kib * 1024)
}

/// One request over a connection of its own: status and body.
async fn ask(address: SocketAddr, head: &str, body: &[u8]) -> Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    stream.write_all(format!("{head}Host: {address}\r\nConnection: close\r\n").as_bytes()).await?;
    if !body.is_empty() {
        stream.write_all(format!("Content-Length: {}\r\n", body.len()).as_bytes()).await?;
    }
    stream.write_all(b"\r\n").await?;
    stream.write_all(body).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let at = answer.windows(4).position(|four| four == b"\r\n\r\n").context("no HTTP answer")?;
    let status = std::str::from_utf8(&answer[..at])?.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, answer.split_off(at + 4)))
}

/// Asks again while the gateway says that it is busy: with 256 at once it may, and then clients come back.
async fn ask_until_served(address: SocketAddr, head: &str, body: &[u8]) -> Result<(u16, Vec<u8>)> {
    for _ in 0..200 {
        match ask(address, head, body).await {
            Ok((503, _)) => tokio::task::yield_now().await,
            // A refusal that came before the whole body was sent may be lost with the connection.
            Err(_) if !body.is_empty() => tokio::task::yield_now().await,
            other => return other,
        }
    }
    bail!("{head} was never served")
}

async fn read_range(address: SocketAddr, object: &[u8], from: usize, len: usize) -> Result<()> {
    let head = format!("GET /open/object HTTP/1.1\r\nRange: bytes={from}-{}\r\n", from + len - 1);
    let (status, body) = ask_until_served(address, &head, b"").await?;
    ensure!(status == 206 && body == object[from..from + len], "{status} and {} bytes", body.len());
    Ok(())
}

#[test]
fn a_thousand_idle_and_256_busy_connections_are_served_within_the_memory_bound() -> Result<()> {
    let root = tempfile::tempdir()?;
    let data = root.path().join("data");
    let network = Network::up(&data, &["--separate-nodes"])?;
    let address: SocketAddr = network.s3().trim_start_matches("http://").parse()?;
    network.aws_ok(&["s3api", "create-bucket", "--bucket", "open", "--acl", "public-read"])?;
    let object = Arc::new(bytes_of("load", OBJECT_LEN));
    let file = root.path().join("object");
    std::fs::write(&file, &*object)?;
    network.aws_ok(&["s3", "cp", file.to_str().context("UTF-8")?, "s3://open/object"])?;
    let count = (WRITERS * TURNS).to_string();
    let urls = network.python("presigned.py", &["put_object", "open", "put/", &count])?;
    let paths: Vec<String> =
        urls.lines().map(|url| url.trim_start_matches(&network.s3()).to_owned()).collect();

    // Half of them say nothing, half stop in the middle of a head.
    let mut idle = Vec::new();
    for index in 0..IDLE {
        let mut stream = StdStream::connect(address)?;
        if index % 2 == 0 {
            std::io::Write::write_all(&mut stream, b"GET /open/object HTTP/1.1\r\nX-Half: ")?;
        }
        idle.push(stream);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let served = runtime.block_on(busy(address, &object, &paths));
    let peak = peak_bytes(network.gateway.pid())?;
    println!("peak {} MiB", peak >> 20);
    served?;
    ensure!(peak < MEMORY_MAX, "the gateway had {} MiB resident", peak >> 20);
    // There were seats for all, so none of the idle was cut.
    for stream in &mut idle {
        stream.set_nonblocking(true)?;
        let read = stream.read(&mut [0]);
        ensure!(read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock), "one was cut");
    }
    drain(network, address, &paths[0], &data)
}

async fn busy(address: SocketAddr, object: &Arc<Vec<u8>>, paths: &[String]) -> Result<()> {
    let mut deaf = Vec::new();
    for _ in 0..DEAF {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(format!("GET /open/object HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
        deaf.push(stream);
    }
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..RANGES + WHOLE {
        let object = Arc::clone(object);
        tasks.spawn(async move {
            if client >= RANGES {
                return read_range(address, &object, 0, OBJECT_LEN).await;
            }
            for turn in 0..TURNS {
                let from = (client * 131_072 + turn * 4096) % (OBJECT_LEN - (1 << 20));
                read_range(address, &object, from, 1 << 20).await?;
            }
            anyhow::Ok(())
        });
    }
    for paths in paths.chunks(TURNS) {
        let paths = paths.to_vec();
        tasks.spawn(async move {
            for path in paths {
                let body = bytes_of(&path[..20], PUT_LEN);
                let put = format!("PUT {path} HTTP/1.1\r\n");
                let (status, said) = ask_until_served(address, &put, &body).await?;
                ensure!(status == 200, "{status}: {}", String::from_utf8_lossy(&said));
                // What was acknowledged is read back at once.
                let key = path.split('?').next().unwrap_or_default();
                let got = ask_until_served(address, &format!("GET {key} HTTP/1.1\r\n"), b"").await?;
                ensure!(got == (200, body), "{key} came back as {} with {} bytes", got.0, got.1.len());
            }
            Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    drop(deaf);
    Ok(())
}

/// SIGTERM in the middle of an upload: the upload is finished and kept, and nobody new is served.
fn drain(network: Network, address: SocketAddr, path: &str, data: &std::path::Path) -> Result<()> {
    let body = bytes_of("late", PUT_LEN);
    let mut upload = StdStream::connect(address)?;
    let head = format!(
        "PUT {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {PUT_LEN}\r\nExpect: 100-continue\r\n\r\n"
    );
    std::io::Write::write_all(&mut upload, head.as_bytes())?;
    // The body is asked for, so the upload is under way.
    let mut said = [0; 25];
    upload.read_exact(&mut said)?;
    ensure!(said.starts_with(b"HTTP/1.1 100"), "{}", String::from_utf8_lossy(&said));
    network.gateway.terminate()?;
    while StdStream::connect(address).is_ok() {
        std::thread::yield_now();
    }
    std::io::Write::write_all(&mut upload, &body)?;
    let mut answer = String::new();
    upload.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let mut gateway = network.gateway;
    ensure!(gateway.wait_code()? == Some(0), "it did not end well");
    let again = Network::up(data, &["--separate-nodes"])?;
    let key = path.split('?').next().unwrap_or_default();
    let (status, _) = holdfast_tests::http_get(&again.s3(), key, &[])?;
    ensure!(status == 200, "what was acknowledged during the stop is gone");
    again.gateway.stop()
}
