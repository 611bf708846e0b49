//! A client that opens everything and reads nothing, against a real node: memory stays bounded, and whoever is honest
//! is served meanwhile.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use holdfast_protocol::framing::write_frame;
use holdfast_protocol::message::{Request, StatusQuery};
use holdfast_protocol::rpc::{HelloParams, Peer};
use holdfast_protocol::time::{Clock, SystemClock};
use holdfast_protocol::transport::quic::{QuicConfig, QuicTransport, Threading};
use holdfast_protocol::transport::{BiStream, Connection, Transport};
use holdfast_protocol::{NodeId, SigningKey};
use holdfast_tests::{Process, init_node};

/// More than the node has seats for strangers.
const CONNECTIONS: usize = 320;
/// Streams tried on each; the node allows 16.
const STREAMS: usize = 20;
/// What all of it together may cost the node: half headers (64 KiB on 4 streams of 256 connections), receive windows
/// (128 KiB each) and what QUIC keeps of a connection, with allowance for the allocator.
const GROWTH_MAX: u64 = 256 * 1024 * 1024;

fn memory_bytes(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("VmRSS")?;
    let kib: u64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
    Ok(kib * 1024)
}

fn client() -> Result<Arc<QuicTransport>> {
    let key = Arc::new(SigningKey::generate()?);
    let mut config = QuicConfig::new("127.0.0.1:0".parse()?, key);
    config.threading = Threading::Shared;
    Ok(QuicTransport::bind(config)?)
}

async fn greet(connection: Arc<dyn Connection>) -> Result<Peer> {
    let hello = HelloParams {
        delegation: None,
        node_record: None,
        software: "hostile/1".to_owned(),
        now_ms: SystemClock.now_ms(),
    };
    Ok(Peer::hello(connection, hello).await?.0)
}

/// Opens streams until no more are allowed: a half header on each, or a request whose answer is never read.
async fn open_everything(connection: &Arc<dyn Connection>) -> Vec<BiStream> {
    let mut streams = Vec::new();
    for index in 0..STREAMS {
        let opening = tokio::time::timeout(Duration::from_millis(20), connection.open());
        let Ok(Ok(mut stream)) = opening.await else { break };
        let sent = async {
            if index % 2 == 0 {
                let mut half = vec![0xff, 0xff, 0, 0];
                half.resize(60_000, 7);
                let _ = stream.send.write(Bytes::from(half)).await;
            } else {
                let _ = write_frame(stream.send.as_mut(), &Request::Status(StatusQuery {}), &mut Vec::new())
                    .await;
            }
        };
        // The window is small: most of it waits in our own buffers, which is where it belongs.
        let _ = tokio::time::timeout(Duration::from_millis(20), sent).await;
        streams.push(stream);
    }
    streams
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_opens_everything_and_reads_nothing_costs_little_and_starves_nobody() -> Result<()> {
    let root = tempfile::tempdir()?;
    let dir = root.path().join("node");
    init_node(&dir, "1GB")?;
    let dir = dir.to_str().context("UTF-8")?;
    let node = Process::start(&["node", "run", "--dir", dir, "--listen", "127.0.0.1:0"])?;
    let ready = node.wait_event("ready")?;
    let id: NodeId = ready["id"].as_str().context("id")?.parse()?;
    let address: SocketAddr = ready["address"].as_str().context("address")?.parse()?;
    let honest = client()?;
    greet(honest.dial(id, &[address]).await?).await?.status().await?;
    let before = memory_bytes(node.pid())?;
    let mut hostile = Vec::new();
    let mut most = before;
    for index in 0..CONNECTIONS {
        let transport = client()?;
        let Ok(connection) = transport.dial(id, &[address]).await else { continue };
        // Half of them say Hello first, which opens no more to them.
        if index % 2 == 0 {
            let _ = tokio::time::timeout(Duration::from_secs(1), greet(Arc::clone(&connection))).await;
        }
        let streams = open_everything(&connection).await;
        hostile.push((transport, connection, streams));
        most = most.max(memory_bytes(node.pid())?);
    }
    ensure!(hostile.len() > 200, "only {} connections were made at all", hostile.len());
    // An honest stranger gets a seat although all were taken, and an answer.
    let newcomer = client()?;
    let answered = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            let asked = async {
                let peer = greet(newcomer.dial(id, &[address]).await?).await?;
                anyhow::Ok(peer.status().await?)
            };
            if let Ok(status) = asked.await {
                return status;
            }
            tokio::task::yield_now().await;
        }
    });
    answered.await.context("a newcomer is not served")?;
    most = most.max(memory_bytes(node.pid())?);
    let growth = most.saturating_sub(before);
    println!("{} connections, {} MiB more memory", hostile.len(), growth >> 20);
    ensure!(growth < GROWTH_MAX, "memory grew by {} MiB", growth >> 20);
    drop(hostile);
    node.stop()
}
