//! What one node's server costs: puts and reads of 1 MiB blocks and reads of 64 KiB ranges, in memory and over QUIC.
//!
//! Client and node share the process, so CPU figures count both ends. `cargo run --release -p holdfast-storage-node
//! --example node_throughput [MIB] [DIR]`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use holdfast_protocol::message::{ByteRange, LeafUnit, PutBlock};
use holdfast_protocol::record::{Agreement, ClaimTag, Delegation, Prices, Rights, Signed};
use holdfast_protocol::rpc::{HelloParams, Peer};
use holdfast_protocol::time::{Clock, SystemClock};
use holdfast_protocol::transport::Transport;
use holdfast_protocol::transport::memory::MemoryNetwork;
use holdfast_protocol::transport::quic::{QuicConfig, QuicTransport};
use holdfast_protocol::{BlockLen, Digest, NamespaceId, NodeId, SigningKey};
use holdfast_storage_node::{Admission, Node, NodeConfig};
use tokio_util::sync::CancellationToken;

type Failure = Box<dyn std::error::Error>;

const MIB: usize = 1024 * 1024;
const AT_ONCE: usize = 16;
const RANGES: u32 = 20_000;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let mib: usize = args.next().map_or(Ok(512), |text| text.parse())?;
    let dir = args.next().map_or_else(std::env::temp_dir, Into::into);
    let dir = tempfile::tempdir_in(dir)?;
    let started = Instant::now();
    let mut config = NodeConfig::new(dir.path(), 16 << 30);
    config.admit = Admission::Any;
    let node = Node::open(config).await?;
    println!("open: {:.3} s, {}", started.elapsed().as_secs_f64(), node.store().io_name());
    let network = MemoryNetwork::new();
    let stop = CancellationToken::new();
    node.serve(network.join(node.id()), stop.clone());
    let quic = QuicTransport::bind(QuicConfig::new("127.0.0.1:0".parse()?, node.key()))?;
    let address = quic.local_addr().ok_or("the transport has no address")?;
    node.serve(quic, stop.clone());

    let key = Arc::new(SigningKey::generate()?);
    let memory = network.join(NodeId(key.public()));
    let quic = QuicTransport::bind(QuicConfig::new("127.0.0.1:0".parse()?, key.clone()))?;
    run(&node, &key, Peer::hello(memory.dial(node.id(), &[]).await?, hello(&key)).await?.0, "memory", mib)
        .await?;
    run(&node, &key, Peer::hello(quic.dial(node.id(), &[address]).await?, hello(&key)).await?.0, "QUIC", mib)
        .await?;
    let closing = Instant::now();
    node.close().await?;
    println!("close: {:.3} s", closing.elapsed().as_secs_f64());
    Ok(())
}

fn hello(key: &SigningKey) -> HelloParams {
    let now_ms = SystemClock.now_ms();
    let delegation = Delegation {
        v: 1,
        namespace: NamespaceId(key.public()),
        delegate: NodeId(key.public()),
        rights: Rights::GATEWAY,
        not_before_ms: now_ms,
        expires_ms: now_ms + 3_600_000,
        label: String::new(),
    };
    HelloParams {
        delegation: Some(Signed::sign(delegation, key).to_wire()),
        node_record: None,
        software: "throughput".to_owned(),
        now_ms,
    }
}

async fn run(node: &Node, key: &SigningKey, peer: Peer, name: &str, mib: usize) -> Result<(), Failure> {
    let now_ms = SystemClock.now_ms();
    let mut nonce = [0u8; 16];
    nonce[0] = u8::try_from(name.len())?;
    let terms = Agreement {
        v: 1,
        namespace: NamespaceId(key.public()),
        node: node.id(),
        operator: node.operator(),
        capacity_bytes: 6 << 30,
        prices: Prices::default(),
        start_ms: now_ms,
        end_ms: now_ms + 3_600_000,
        notice_ms: 0,
        nonce,
    };
    let agreement = peer.agree(&Signed::sign(terms, key)).await?.verify()?.id();
    let blocks: Vec<(Digest, Bytes)> = (0..mib).map(|index| block(index, name)).collect();
    let tag = ClaimTag::random()?;
    let put = |(digest, bytes): &(Digest, Bytes)| {
        let request = PutBlock {
            agreement,
            digest: *digest,
            len: BlockLen::MAX,
            tag,
            scope: None,
            lease_until_ms: now_ms + 3_600_000,
            retain_until_ms: 0,
        };
        let (peer, bytes) = (peer.clone(), bytes.clone());
        async move { peer.put_block(request, bytes).await.map(|_| MIB as u64) }
    };
    measure(
        &format!("{name}: put 1 MiB"),
        futures::stream::iter(blocks.iter().map(put)).buffer_unordered(AT_ONCE),
    )
    .await?;
    let read = |(digest, _): &(Digest, Bytes)| {
        let (peer, digest) = (peer.clone(), *digest);
        async move { peer.read_whole(digest, BlockLen::MAX, None).await.map(|bytes| bytes.len() as u64) }
    };
    measure(
        &format!("{name}: read 1 MiB"),
        futures::stream::iter(blocks.iter().map(read)).buffer_unordered(AT_ONCE),
    )
    .await?;
    let range = |index: u32| {
        let (peer, digest) =
            (peer.clone(), blocks[index.wrapping_mul(2_654_435_761) as usize % blocks.len()].0);
        let ranges = vec![ByteRange { start: index % 15 * 65_536 + 1000, len: 65_536 }];
        async move {
            let read = peer.read_leaves(digest, BlockLen::MAX, LeafUnit::Group, ranges, None);
            read.await.map(|(_, bytes)| bytes.len() as u64)
        }
    };
    let ranges = futures::stream::iter((0..RANGES).map(range)).buffer_unordered(AT_ONCE);
    measure(&format!("{name}: read 64 KiB ranges"), ranges).await
}

fn block(index: usize, name: &str) -> (Digest, Bytes) {
    let mut bytes = vec![0u8; MIB];
    let mut hasher = blake3::Hasher::new();
    hasher.update(name.as_bytes()).update(&index.to_le_bytes()).finalize_xof().fill(&mut bytes);
    (Digest::of(&bytes), Bytes::from(bytes))
}

async fn measure<E: std::error::Error + 'static>(
    what: &str,
    results: impl futures::Stream<Item = Result<u64, E>>,
) -> Result<(), Failure> {
    let (started, cpu) = (Instant::now(), cpu_time());
    let mut results = std::pin::pin!(results);
    let (mut count, mut bytes) = (0u64, 0u64);
    while let Some(result) = results.next().await {
        bytes += result?;
        count += 1;
    }
    let (wall, cpu) = (started.elapsed().as_secs_f64(), (cpu_time() - cpu).as_secs_f64());
    let gib = bytes as f64 / (1u64 << 30) as f64;
    println!(
        "{what}: {:.0} MB/s, {:.0} a second, {:.2} CPU-s/GiB",
        bytes as f64 / wall / 1e6,
        count as f64 / wall,
        cpu / gib
    );
    Ok(())
}

fn cpu_time() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(spent.tv_sec).unwrap_or(0), u32::try_from(spent.tv_nsec).unwrap_or(0))
}
