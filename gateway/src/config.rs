//! What a gateway is told at its start, with every bound named.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::NodeId;
use holdfast_protocol::record::Policy;
use holdfast_protocol::time::{Clock, SystemClock};
use holdfast_protocol::transport::Transport;

use crate::keys::GatewayKeys;

/// A node that the gateway shall know from its start; its record and agreement are asked of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeedNode {
    /// Which node.
    pub id: NodeId,
    /// Where it listens; may be empty for a node of the same process.
    pub addresses: Vec<SocketAddr>,
}

/// S3 over TLS, beside plain HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// Where it is served.
    pub listen: SocketAddr,
    /// The operator's certificate and key; without them a self-signed pair is kept in the data directory.
    pub files: Option<CertificateFiles>,
}

/// PEM files of a certificate chain and its private key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain, the server's certificate first.
    pub cert: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// Where metadata is kept.
#[derive(Clone, PartialEq, Eq)]
pub enum MetaLocation {
    /// In the data directory, by RocksDB; one gateway has the namespace to itself.
    Directory,
    /// In a database that speaks the PostgreSQL protocol, at this URL; several gateways share the namespace.
    Database(String),
}

impl fmt::Debug for MetaLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold a password.
        f.write_str(match self {
            Self::Directory => "Directory",
            Self::Database(_) => "Database(redacted)",
        })
    }
}

/// Everything [`crate::Gateway::open`] needs.
#[derive(Clone)]
pub struct GatewayConfig {
    /// The data directory.
    pub dir: PathBuf,
    /// The keys found or made in it.
    pub keys: GatewayKeys,
    /// Where S3 is served.
    pub s3_listen: SocketAddr,
    /// S3 over TLS, if it is wanted.
    pub s3_tls: Option<TlsConfig>,
    /// Domains below which host names are buckets, besides `localhost`.
    pub s3_domains: Vec<String>,
    /// Where the admin API, the pages and the metrics are served.
    pub web_listen: SocketAddr,
    /// The policy of new objects.
    pub policy: Policy,
    /// How nodes are reached; its local id is the gateway key's.
    pub transport: Arc<dyn Transport>,
    /// Nodes to know from the start, besides those that the metadata remembers.
    pub seeds: Vec<SeedNode>,
    /// Where metadata is kept.
    pub meta: MetaLocation,
    /// Whether the audit trail also has requests that only read.
    pub trail_reads: bool,
    /// Where nodes that nobody can dial may dial us by QUIC; where the transport listens when empty. An address of
    /// all zeros stands for the host by which the node reached the web side.
    pub quic_advertise: Vec<SocketAddr>,
    /// Memory bounds.
    pub memory: MemoryLimits,
    /// Bytes of blocks that may be kept on the local disk, under the data directory; 0 for none.
    pub cache_disk_bytes: u64,
    /// Intervals and deadlines.
    pub timing: Timing,
    /// When and how fast lost shards are rebuilt.
    pub repair: RepairPolicy,
    /// Of a hundred surprise audits, so many come from a key of their own, as clients that read directly do.
    pub surprise_fresh_percent: usize,
    /// Bounds on what clients send.
    pub http: HttpLimits,
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
    /// Software name and version, shown to peers.
    pub software: String,
}

impl GatewayConfig {
    /// The defaults, around what has none.
    pub fn new(dir: PathBuf, keys: GatewayKeys, transport: Arc<dyn Transport>) -> Self {
        Self {
            dir,
            keys,
            s3_listen: SocketAddr::from(([127, 0, 0, 1], 9000)),
            s3_tls: None,
            s3_domains: Vec::new(),
            web_listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            policy: Policy::LOCAL,
            transport,
            seeds: Vec::new(),
            meta: MetaLocation::Directory,
            trail_reads: false,
            quic_advertise: Vec::new(),
            memory: MemoryLimits::default(),
            cache_disk_bytes: 0,
            timing: Timing::default(),
            repair: RepairPolicy::default(),
            surprise_fresh_percent: 30,
            http: HttpLimits::default(),
            clock: Arc::new(SystemClock),
            software: concat!("holdfast-gateway/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

impl fmt::Debug for GatewayConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatewayConfig")
            .field("dir", &self.dir)
            .field("s3_listen", &self.s3_listen)
            .field("s3_tls", &self.s3_tls)
            .field("web_listen", &self.web_listen)
            .field("policy", &self.policy.name)
            .field("meta", &self.meta)
            .field("seeds", &self.seeds.len())
            .finish_non_exhaustive()
    }
}

/// Memory bounds. Sixteen streaming clients must fit under 512 MiB with metadata caches and heap overhead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimits {
    /// Bytes of request bodies in memory over all uploads, including the parity made of them.
    pub upload_bytes: usize,
    /// Bytes of blocks fetched ahead over all downloads.
    pub download_bytes: usize,
    /// Bytes fetched ahead by one download.
    pub download_ahead_bytes: usize,
    /// Bytes of whole blocks on their way to clients over all downloads; downloads beyond that go in smaller pieces.
    pub answer_bytes: usize,
    /// Bytes of verified blocks kept for the next reader: those that were asked for twice.
    pub cache_bytes: usize,
}

impl Default for MemoryLimits {
    fn default() -> Self {
        Self {
            upload_bytes: 128 * 1024 * 1024,
            download_bytes: 128 * 1024 * 1024,
            download_ahead_bytes: 8 * 1024 * 1024,
            answer_bytes: 128 * 1024 * 1024,
            cache_bytes: 48 * 1024 * 1024,
        }
    }
}

/// Intervals and deadlines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often every node is asked for its status.
    pub probe_interval: Duration,
    /// How long a probe may take before the node counts as down.
    pub probe_timeout: Duration,
    /// How often the delivery queues are looked at when nothing wakes them.
    pub queue_interval: Duration,
    /// How often stripes short of shards are completed.
    pub completion_interval: Duration,
    /// How often half-empty stripes are looked for.
    pub packing_interval: Duration,
    /// How long a stripe is left alone before it is packed: PUTs that share it may still be committing.
    pub packing_settle: Duration,
    /// How long it waits for partners that fill it.
    pub packing_patience: Duration,
    /// How long it is between surprise audits, on average.
    pub surprise_interval: Duration,
    /// How long it takes to go through all nodes' inventories once.
    pub reconcile_interval: Duration,
    /// How often lost shards are looked for.
    pub repair_interval: Duration,
    /// How often lifecycle rules are run.
    pub lifecycle_interval: Duration,
    /// How long uncommitted blocks stay on nodes.
    pub lease: Duration,
    /// How long requests in flight may go on after the stop.
    pub drain: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            probe_interval: Duration::from_secs(3),
            probe_timeout: Duration::from_secs(3),
            queue_interval: Duration::from_secs(2),
            completion_interval: Duration::from_secs(5),
            packing_interval: Duration::from_secs(30),
            packing_settle: Duration::from_secs(30),
            packing_patience: Duration::from_secs(300),
            surprise_interval: Duration::from_secs(600),
            reconcile_interval: Duration::from_secs(6 * 3600),
            repair_interval: Duration::from_secs(30),
            lifecycle_interval: Duration::from_secs(3600),
            lease: Duration::from_secs(3600),
            drain: Duration::from_secs(20),
        }
    }
}

/// When and how fast lost shards are rebuilt without being told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepairPolicy {
    /// A silent node counts as lost after this time; sooner for stripes whose margin is thin.
    pub silent: Duration,
    /// Bytes that automatic repair and packing each read and write a second; unlimited when absent.
    pub bytes_per_second: Option<u64>,
}

impl Default for RepairPolicy {
    fn default() -> Self {
        Self { silent: Duration::from_secs(24 * 3600), bytes_per_second: Some(100_000_000) }
    }
}

/// Bounds on what clients send, so that none of them can hold the gateway's memory or sockets for free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpLimits {
    /// Connections open at once on one listener.
    pub connections: usize,
    /// Headers of one request.
    pub headers: usize,
    /// Bytes of the head of one request, and of the connection's read buffer.
    pub head_bytes: usize,
    /// How long the head of a request may take, which also bounds how long a connection may idle.
    pub head_timeout: Duration,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How long a body may go without a byte.
    pub body_idle_timeout: Duration,
    /// How long a client may leave our answer unread.
    pub write_idle_timeout: Duration,
    /// Requests of one access key worked on at once while no other key is active; with others it gets its share.
    pub requests_per_key: usize,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            connections: 2048,
            headers: 100,
            head_bytes: 64 * 1024,
            head_timeout: Duration::from_secs(60),
            handshake_timeout: Duration::from_secs(10),
            body_idle_timeout: Duration::from_secs(60),
            write_idle_timeout: Duration::from_secs(120),
            requests_per_key: 256,
        }
    }
}
