//! Measures what the transport costs: blocks of 1 MiB read whole by a client from a server, both in
//! processes of their own over QUIC on loopback, or in one process in memory.
//!
//! `throughput [quic|shared|memory] [read|put|ranges] [streams] [MiB]` prints MiB/s and the CPU-seconds per
//! GiB of each end. `shared` is QUIC on the program's own runtime instead of a thread per endpoint.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_protocol::framing::ByteQueue;
use holdfast_protocol::message::{
    ByteRange, HelloReply, LeafPath, LeafUnit, PutBlock, PutBlockReply, ReadBlockReply, ReadPart, Reply,
    Request,
};
use holdfast_protocol::record::{AgreementId, ClaimTag, Receipt, ReceiptBlock, Signed};
use holdfast_protocol::rpc::{self, HelloParams, Peer};
use holdfast_protocol::transport::memory::MemoryNetwork;
use holdfast_protocol::transport::quic::{QuicConfig, QuicTransport, Threading};
use holdfast_protocol::transport::{BiStream, Connection, Transport};
use holdfast_protocol::{BlockLen, Digest, NodeId, SigningKey};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const SERVER_SEED: [u8; 32] = [1; 32];
const CLIENT_SEED: [u8; 32] = [2; 32];

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let at = |index: usize, default: &str| arguments.get(index).cloned().unwrap_or_else(|| default.into());
    let kind = at(0, "quic");
    if kind == "serve" {
        return serve_process(threading(&at(1, "quic")));
    }
    let plan = Plan { work: at(1, "read"), streams: at(2, "8").parse()?, mib: at(3, "4096").parse()? };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match kind.as_str() {
        "memory" => runtime.block_on(in_memory(&plan)),
        kind => runtime.block_on(over_quic(kind, &plan)),
    }
}

struct Plan {
    work: String,
    streams: usize,
    mib: usize,
}

fn threading(kind: &str) -> Threading {
    if kind == "shared" { Threading::Shared } else { Threading::OwnThread }
}

fn quic(seed: &[u8; 32], threading: Threading) -> Result<Arc<QuicTransport>, Failure> {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = QuicConfig::new(listen, Arc::new(SigningKey::from_seed(seed)?));
    Ok(QuicTransport::bind(QuicConfig { threading, ..config })?)
}

fn id(seed: &[u8; 32]) -> Result<NodeId, Failure> {
    Ok(NodeId(SigningKey::from_seed(seed)?.public()))
}

/// The server in a process of its own: prints its address, then its CPU time when its input ends.
fn serve_process(threading: Threading) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let _entered = runtime.enter();
    let transport = quic(&SERVER_SEED, threading)?;
    println!("{}", transport.local_addr().ok_or("no address")?);
    runtime.spawn(serve(transport));
    for line in std::io::stdin().lock().lines() {
        line?;
        println!("{}", cpu_seconds());
        std::io::stdout().flush()?;
    }
    Ok(())
}

async fn over_quic(kind: &str, plan: &Plan) -> Result<(), Failure> {
    let mut server = Command::new(std::env::current_exe()?)
        .args(["serve", kind])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = server.stdin.take().ok_or("no stdin")?;
    let mut lines = BufReader::new(server.stdout.take().ok_or("no stdout")?).lines();
    let mut line = || -> Result<String, Failure> { Ok(lines.next().ok_or("the server ended")??) };
    let address: SocketAddr = line()?.parse()?;
    let transport = quic(&CLIENT_SEED, threading(kind))?;
    let connection = transport.dial(id(&SERVER_SEED)?, &[address]).await?;
    for _ in 0..3 {
        writeln!(input)?;
        let server_before: f64 = line()?.parse()?;
        let (client_before, start) = (cpu_seconds(), Instant::now());
        work(connection.clone(), plan).await?;
        let elapsed = start.elapsed();
        let client = cpu_seconds() - client_before;
        writeln!(input)?;
        let server = line()?.parse::<f64>()? - server_before;
        report(plan, elapsed, client, server);
    }
    drop(input);
    server.wait()?;
    Ok(())
}

async fn in_memory(plan: &Plan) -> Result<(), Failure> {
    let network = MemoryNetwork::new();
    let server = network.join(id(&SERVER_SEED)?);
    let client = network.join(id(&CLIENT_SEED)?);
    tokio::spawn(serve(server));
    let connection = client.dial(id(&SERVER_SEED)?, &[]).await?;
    for _ in 0..3 {
        let (before, start) = (cpu_seconds(), Instant::now());
        work(connection.clone(), plan).await?;
        report(plan, start.elapsed(), cpu_seconds() - before, 0.0);
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "a report for people")]
fn report(plan: &Plan, elapsed: Duration, client: f64, server: f64) {
    let gib = plan.mib as f64 / 1024.0;
    println!(
        "{} x{}: {:.0} MiB/s, CPU-s/GiB client {:.3} server {:.3} both {:.3}",
        plan.work,
        plan.streams,
        plan.mib as f64 / elapsed.as_secs_f64(),
        client / gib,
        server / gib,
        (client + server) / gib
    );
}

/// Moves `plan.mib` MiB in requests of one block, `plan.streams` at a time.
async fn work(connection: Arc<dyn Connection>, plan: &Plan) -> Result<(), Failure> {
    let hello = HelloParams { delegation: None, node_record: None, software: "bench".into(), now_ms: 0 };
    let (peer, _) = Peer::hello(connection, hello).await?;
    let each = plan.mib / plan.streams;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..plan.streams {
        let (peer, work) = (peer.clone(), plan.work.clone());
        tasks.spawn(async move {
            for _ in 0..each {
                one(&peer, &work).await?;
            }
            Ok::<(), Failure>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

async fn one(peer: &Peer, work: &str) -> Result<(), Failure> {
    let len = BlockLen::MAX;
    let digest = Digest([7; 32]);
    match work {
        "put" => {
            let request = PutBlock {
                agreement: AgreementId([1; 32]),
                digest,
                len,
                tag: ClaimTag([1; 16]),
                scope: None,
                lease_until_ms: 1,
                retain_until_ms: 0,
            };
            peer.put_block(request, Bytes::from(vec![1u8; len.as_usize()])).await?;
        }
        "ranges" => {
            // Sixteen requests of 64 KiB make the block.
            for quarter in 0..16 {
                let ranges = vec![ByteRange { start: quarter * 65536, len: 65536 }];
                peer.read_leaves(digest, len, LeafUnit::Group, ranges, None).await?;
            }
        }
        _ => {
            peer.read_whole(digest, len, None).await?;
        }
    }
    Ok(())
}

async fn serve(transport: Arc<dyn Transport>) {
    // A few different blocks: one alone would stay in the core's cache.
    let blocks: Arc<Vec<Bytes>> = Arc::new((0..16u8).map(|byte| Bytes::from(vec![byte; 1 << 20])).collect());
    while let Some(connection) = transport.accept().await {
        let blocks = blocks.clone();
        tokio::spawn(async move {
            let mut turn = 0usize;
            while let Ok(stream) = connection.accept().await {
                turn += 1;
                let block = blocks[turn % blocks.len()].clone();
                tokio::spawn(async move {
                    // A client that leaves in the middle is no news.
                    let _ = answer(stream, block).await;
                });
            }
        });
    }
}

async fn answer(mut stream: BiStream, block: Bytes) -> Result<(), Failure> {
    let mut buffered = ByteQueue::new();
    let request = rpc::read_request(stream.recv.as_mut(), &mut buffered).await?.ok_or("no request")?;
    let (reply, body) = match request {
        Request::Hello(hello) => {
            let version = rpc::answer_hello(&hello).map_err(|refusal| refusal.to_string())?;
            let software = "bench".to_owned();
            let reply = HelloReply { version, node_record: None, agreement: None, now_ms: 0, software };
            (Reply::Hello(reply), Vec::new())
        }
        Request::PutBlock(put) => {
            let mut copy = Vec::with_capacity(put.len.as_usize());
            let len = put.len.as_usize();
            buffered.pipe_exact(stream.recv.as_mut(), len, |piece| copy.extend_from_slice(&piece)).await?;
            (Reply::PutBlock(PutBlockReply { existed: false, receipt: receipt()?.to_wire() }), Vec::new())
        }
        Request::ReadBlock(read) => match read.part {
            ReadPart::Whole => {
                let body_len = u32::try_from(block.len())?;
                (Reply::ReadBlock(ReadBlockReply { body_len, paths: Vec::new() }), vec![block])
            }
            ReadPart::Leaves { unit, ranges } => {
                let (body_len, leaves) = rpc::leaves_extent(BlockLen::MAX, unit, &ranges)?;
                let path = LeafPath { index: 0, siblings: vec![0u8; 192].into() };
                let body = block.slice(..body_len as usize);
                (Reply::ReadBlock(ReadBlockReply { body_len, paths: vec![path; leaves] }), vec![body])
            }
        },
        request => return Err(request.name().into()),
    };
    rpc::write_reply_with_body(stream.send.as_mut(), &reply, body).await?;
    Ok(())
}

fn receipt() -> Result<Signed<Receipt>, Failure> {
    let key = SigningKey::from_seed(&SERVER_SEED)?;
    let receipt = Receipt {
        v: 1,
        node: NodeId(key.public()),
        agreement: AgreementId([1; 32]),
        blocks: vec![ReceiptBlock(Digest([7; 32]), BlockLen::MAX)],
        lease_until_ms: 1,
        issued_ms: 1,
        term_until_ms: 2,
    };
    Ok(Signed::sign(receipt, &key))
}

/// CPU time of this process so far.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default().as_secs_f64()
}
