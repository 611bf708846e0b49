//! The command line as types. Every option is also `HOLDFAST_…` in the environment and a key of the TOML file
//! given with `--config` (see `settings`).

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use holdfast_protocol::record::PolicyName;

pub(crate) use crate::node_args::*;
use crate::periods::Period;
use crate::sizes::ByteSize;

mod key;

pub(crate) use key::{
    KeyBackupArgs, KeyCommand, KeyCreateArgs, KeyDelegateArgs, KeyInspectArgs, KeyListArgs, KeyRestoreArgs,
    KeyRevokeArgs, KeyRotateArgs, KeyShareArgs, KeyTrailArgs, KeyUsageArgs,
};

/// Decentralized, content-addressed storage for AI datasets and checkpoints.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, propagate_version = true, max_term_width = 110)]
#[command(after_help = "Examples:
  holdfast up                          a whole network on this machine, data under ./data
  holdfast put ./dataset s3bucket/train --data ./data
  holdfast get s3bucket/train ./copy --data ./data
  holdfast node init --dir /mnt/disk1 --capacity 500GB --invite holdfast-invite-u…
  holdfast node run --dir /mnt/disk1")]
pub(crate) struct Cli {
    /// A TOML file with options; see `holdfast config show`
    #[arg(long, global = true, env = "HOLDFAST_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Machine-readable output: one JSON value a line
    #[arg(long, global = true, env = "HOLDFAST_JSON")]
    pub(crate) json: bool,
    /// What to log, as in RUST_LOG: `warn`, `info`, `holdfast_gateway=debug`
    #[arg(long, global = true, env = "HOLDFAST_LOG", default_value = "warn", value_name = "FILTER")]
    pub(crate) log: String,
    /// What to do
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a whole network on this machine: nodes and a gateway
    Up(UpArgs),
    /// Rent out disk
    #[command(subcommand)]
    Node(NodeCommand),
    /// Serve S3 over a network of nodes
    #[command(subcommand)]
    Gateway(GatewayCommand),
    /// Check that nodes hold what they say
    #[command(subcommand)]
    Auditor(AuditorCommand),
    /// Check what a training run was served
    #[command(subcommand)]
    Transcript(TranscriptCommand),
    /// Rebuild shards whose nodes are gone
    #[command(subcommand)]
    Repair(RepairCommand),
    /// Show what an upload would take and how long it would last
    Plan(PlanArgs),
    /// Say who may do what, hand rights on, keep the namespace's own keys safe
    #[command(subcommand)]
    Key(KeyCommand),
    /// Upload a file or a directory to BUCKET/PREFIX; run again, it goes on where it was stopped
    Put(PutArgs),
    /// Copy objects from another S3 endpoint; run again, it goes on where it was stopped
    Import(ImportArgs),
    /// Download BUCKET/KEY, or all under BUCKET/PREFIX/
    Get(GetArgs),
    /// Write an object to standard output
    Cat(CatArgs),
    /// List buckets, or objects of a bucket
    Ls(LsArgs),
    /// Delete an object, or all under a prefix
    Rm(RmArgs),
    /// Mount BUCKET, BUCKET/PREFIX or a snapshot's CID as a directory
    Mount(MountArgs),
    /// Immutable, named versions of a bucket or prefix
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Show what an id, a CID or a record file says
    Inspect(InspectArgs),
    /// Show the options in force and where each came from
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Play the whole story on a throw-away network: upload, lose two nodes, read back, challenge, repair
    Demo(DemoArgs),
}

/// Options of `up`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:
  holdfast up --data ./data --nodes 6 --policy local
  AWS_SHARED_CREDENTIALS_FILE=./data/credentials aws --profile holdfast \\
      --endpoint-url http://127.0.0.1:9000 s3 mb s3://datasets")]
pub(crate) struct UpArgs {
    /// Where everything is kept
    #[arg(long, env = "HOLDFAST_DATA", default_value = "data", value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// How many storage nodes
    #[arg(long, env = "HOLDFAST_NODES", default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) nodes: u16,
    /// Code and failure domain: local (4+2), small (10+4), standard (16+12)
    #[arg(long, env = "HOLDFAST_POLICY", default_value = "local")]
    pub(crate) policy: PolicyName,
    /// Where S3 clients connect
    #[arg(long, env = "HOLDFAST_S3_LISTEN", default_value = "127.0.0.1:9000", value_name = "ADDR")]
    pub(crate) s3_listen: SocketAddr,
    /// Metadata
    #[command(flatten)]
    pub(crate) meta: MetaArgs,
    /// Domains below which host names are buckets, besides `localhost`: `s3.example.org`
    #[arg(long, env = "HOLDFAST_S3_DOMAIN", value_name = "DOMAIN", value_delimiter = ',')]
    pub(crate) s3_domain: Vec<String>,
    /// S3 over TLS
    #[command(flatten)]
    pub(crate) tls: TlsArgs,
    /// Where the pages, the admin API, /metrics and /healthz are
    #[arg(long, env = "HOLDFAST_WEB_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDR")]
    pub(crate) web_listen: SocketAddr,
    /// QUIC port of the first node; the others follow. 0 lets the system choose
    #[arg(long, env = "HOLDFAST_QUIC_PORT", default_value_t = 7400, value_name = "PORT")]
    pub(crate) quic_port: u16,
    /// Repair
    #[command(flatten)]
    pub(crate) repair: RepairRules,
    /// What each node offers [default: nine tenths of the free disk, shared out]
    #[arg(long, env = "HOLDFAST_CAPACITY", value_name = "SIZE")]
    pub(crate) capacity: Option<ByteSize>,
    /// Where the auditor's page, report and log are; port 0 lets the system choose
    #[arg(long, env = "HOLDFAST_AUDITOR_WEB", default_value = "127.0.0.1:0", value_name = "ADDR")]
    pub(crate) auditor_listen: SocketAddr,
    /// How often every node is audited for 20 chunks: 30s, 15m, 1h
    #[arg(long, env = "HOLDFAST_EPOCH", default_value = "1h", value_name = "PERIOD")]
    pub(crate) epoch: Period,
    /// Run the nodes as processes of their own, over QUIC
    #[arg(long, env = "HOLDFAST_SEPARATE_NODES")]
    pub(crate) separate_nodes: bool,
    /// Stop when standard input ends (for programs that start us)
    #[arg(long, env = "HOLDFAST_STOP_ON_STDIN_EOF", hide = true)]
    pub(crate) stop_on_stdin_eof: bool,
}

/// S3 over TLS, beside plain HTTP.
#[derive(Debug, Clone, Args)]
pub(crate) struct TlsArgs {
    /// Where S3 clients connect over TLS [default: nowhere]
    #[arg(long, env = "HOLDFAST_S3_TLS_LISTEN", value_name = "ADDR")]
    pub(crate) s3_tls_listen: Option<SocketAddr>,
    /// Certificate chain for S3 over TLS, PEM [default: self-signed, kept in DIR/tls/cert.pem]
    #[arg(long, env = "HOLDFAST_TLS_CERT", value_name = "FILE", requires_all = ["tls_key", "s3_tls_listen"])]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, env = "HOLDFAST_TLS_KEY", value_name = "FILE", requires_all = ["tls_cert", "s3_tls_listen"])]
    pub(crate) tls_key: Option<PathBuf>,
}

/// What a gateway's operator does.
#[derive(Debug, Subcommand)]
pub(crate) enum GatewayCommand {
    /// Make a gateway's keys and a recovery file of them, or take them from one
    Init(GatewayInitArgs),
    /// Serve S3
    Run(Box<GatewayRunArgs>),
    /// Make an invite: whoever has it may bring in nodes, and nothing else
    Invite(InviteArgs),
    /// List the invites that were given, or take one back
    Invites(InvitesArgs),
}

/// Options of `gateway init`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  holdfast gateway init --data ./gateway --recovery-file /media/stick/recovery.txt
  holdfast gateway init --data ./gateway-2 --from recovery.txt   (a second gateway of the namespace)
The code of the recovery file is shown and asked back; with --from it is asked for.")]
pub(crate) struct GatewayInitArgs {
    /// Where keys and metadata will be kept
    #[arg(long, env = "HOLDFAST_DATA", default_value = "data", value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Where the recovery file is written [default: DIR/recovery.txt; move it elsewhere]
    #[arg(long, value_name = "FILE", conflicts_with = "from")]
    pub(crate) recovery_file: Option<PathBuf>,
    /// Take the namespace's keys from this recovery file
    #[arg(long, value_name = "FILE")]
    pub(crate) from: Option<PathBuf>,
}

/// Where metadata is kept, and what is written down.
#[derive(Debug, Clone, Args)]
pub(crate) struct MetaArgs {
    /// A PostgreSQL database that several gateways share: postgres://USER:PASSWORD@HOST/DATABASE, with
    /// ?sslmode=verify-full (and &sslrootcert=FILE) for TLS [default: RocksDB in DIR/meta]
    #[arg(long, env = "HOLDFAST_META", value_name = "URL", hide_env_values = true)]
    pub(crate) meta: Option<String>,
    /// Write requests that only read into the audit trail, too
    #[arg(long, env = "HOLDFAST_TRAIL_READS")]
    pub(crate) trail_reads: bool,
}

/// Options of `gateway run`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:
  holdfast gateway run --data ./gateway --s3-listen 0.0.0.0:9000
  (nodes then join with `holdfast node init --invite INVITE`; `holdfast gateway invite` makes one)")]
pub(crate) struct GatewayRunArgs {
    /// Where keys and metadata are kept
    #[arg(long, env = "HOLDFAST_DATA", default_value = "data", value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Code and failure domain: local (4+2), small (10+4), standard (16+12)
    #[arg(long, env = "HOLDFAST_POLICY", default_value = "local")]
    pub(crate) policy: PolicyName,
    /// Where S3 clients connect
    #[arg(long, env = "HOLDFAST_S3_LISTEN", default_value = "127.0.0.1:9000", value_name = "ADDR")]
    pub(crate) s3_listen: SocketAddr,
    /// Metadata
    #[command(flatten)]
    pub(crate) meta: MetaArgs,
    /// Domains below which host names are buckets, besides `localhost`: `s3.example.org`
    #[arg(long, env = "HOLDFAST_S3_DOMAIN", value_name = "DOMAIN", value_delimiter = ',')]
    pub(crate) s3_domain: Vec<String>,
    /// S3 over TLS
    #[command(flatten)]
    pub(crate) tls: TlsArgs,
    /// Where the pages, the admin API, /metrics and /healthz are
    #[arg(long, env = "HOLDFAST_WEB_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDR")]
    pub(crate) web_listen: SocketAddr,
    /// Repair
    #[command(flatten)]
    pub(crate) repair: RepairRules,
    /// Keep verified blocks on the local disk, up to this size, in DIR/cache [default: in memory only]
    #[arg(long, env = "HOLDFAST_GATEWAY_CACHE", value_name = "SIZE")]
    pub(crate) cache_size: Option<ByteSize>,
    /// Where nodes may dial us by QUIC, as those do that nobody can dial
    #[arg(long, env = "HOLDFAST_QUIC_LISTEN", default_value = "127.0.0.1:0", value_name = "ADDR")]
    pub(crate) quic_listen: SocketAddr,
    /// The same as nodes elsewhere see it [default: the host at which they reach the web side]
    #[arg(long, env = "HOLDFAST_QUIC_ADVERTISE", value_name = "ADDR", value_delimiter = ',')]
    pub(crate) quic_advertise: Vec<SocketAddr>,
    /// Stop when standard input ends (for programs that start us)
    #[arg(long, env = "HOLDFAST_STOP_ON_STDIN_EOF", hide = true)]
    pub(crate) stop_on_stdin_eof: bool,
}

/// What an auditor does.
#[derive(Debug, Subcommand)]
pub(crate) enum AuditorCommand {
    /// Audit nodes every epoch, and publish the log
    Run(AuditorRunArgs),
    /// Check a whole audit log again, from nothing but the log and the beacon
    Verify(VerifyArgs),
    /// Show nodes, scores and evidence, as the log proves them
    Report(ReportArgs),
    /// Challenge every node for random chunks now, and check the proofs
    Challenge(ChallengeArgs),
}

/// Options of `auditor run`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  holdfast auditor run --dir ./auditor --node z6Mk…@203.0.113.7:7400 --beacon http://drand-relay:8080
  holdfast auditor run --dir ./auditor --rules ./data/audit.json --beacon ./rounds --cosign http://other:8081/log")]
pub(crate) struct AuditorRunArgs {
    /// The auditor's directory: its key, its log, what it cosigned
    #[arg(long, env = "HOLDFAST_AUDITOR_DIR", default_value = "auditor", value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// The network's rules [default: 20 chunks an hour, drawn by drand's quicknet]
    #[arg(long, env = "HOLDFAST_AUDIT_RULES", value_name = "FILE")]
    pub(crate) rules: Option<PathBuf>,
    /// A node to follow, KEY@ADDRESS; may be repeated. Nodes that dial in are followed as well
    #[arg(long, env = "HOLDFAST_AUDITOR_NODE", value_name = "KEY@ADDR", value_delimiter = ',')]
    pub(crate) node: Vec<String>,
    /// A file with one KEY@ADDRESS a line
    #[arg(long, env = "HOLDFAST_AUDITOR_NODES", value_name = "FILE")]
    pub(crate) nodes: Option<PathBuf>,
    /// Where the beacon's rounds come from: a directory of ROUND.json files, or a drand relay's http URL
    #[arg(long, env = "HOLDFAST_BEACON", value_name = "DIR|URL")]
    pub(crate) beacon: Option<String>,
    /// Where nodes may dial (QUIC)
    #[arg(long, env = "HOLDFAST_AUDITOR_LISTEN", default_value = "0.0.0.0:0", value_name = "ADDR")]
    pub(crate) listen: SocketAddr,
    /// Where the page, the report and the log are
    #[arg(long, env = "HOLDFAST_AUDITOR_WEB", default_value = "127.0.0.1:8081", value_name = "ADDR")]
    pub(crate) web_listen: SocketAddr,
    /// The log's name in its checkpoints, for instance auditor.example/holdfast [default: from the key]
    #[arg(long, env = "HOLDFAST_AUDITOR_ORIGIN", value_name = "NAME")]
    pub(crate) origin: Option<String>,
    /// Another auditor's log to cosign, a directory or http URL; may be repeated
    #[arg(long, env = "HOLDFAST_AUDITOR_COSIGN", value_name = "LOG", value_delimiter = ',')]
    pub(crate) cosign: Vec<String>,
    /// Stop when standard input ends (for programs that start us)
    #[arg(long, env = "HOLDFAST_STOP_ON_STDIN_EOF", hide = true)]
    pub(crate) stop_on_stdin_eof: bool,
}

/// Options of `auditor verify`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Exit code 0 only if nothing failed. Examples:
  holdfast auditor verify ./data/auditor/log
  holdfast auditor verify http://auditor.example:8081/log --node z6Mk… --epoch 494444")]
pub(crate) struct VerifyArgs {
    /// The log: a directory, or an http URL
    // Not `log`: that is the filter that every command has.
    #[arg(value_name = "LOG")]
    pub(crate) audit_log: String,
    /// Whose log it must be [default: whoever its first entry names]
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// Tell step by step what happened to this node
    #[arg(long, value_name = "KEY")]
    pub(crate) node: Option<String>,
    /// Only in this epoch
    #[arg(long, value_name = "EPOCH", requires = "node")]
    pub(crate) epoch: Option<u64>,
    /// A node that is known to answer wrongly: an auditor that never noticed fails. May be repeated
    #[arg(long, value_name = "KEY")]
    pub(crate) decoy: Vec<String>,
}

/// Options of `auditor report`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Examples:\n  holdfast auditor report --data ./data --json\n  holdfast auditor report --audit-log ./auditor/log"
)]
pub(crate) struct ReportArgs {
    /// The log: a directory, or an http URL [default: that of the network in --data]
    #[arg(long, value_name = "LOG")]
    pub(crate) audit_log: Option<String>,
    /// The directory of a network on this machine
    #[arg(long, env = "HOLDFAST_DATA", default_value = "data", value_name = "DIR")]
    pub(crate) data: PathBuf,
}

/// Options of `auditor challenge`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  holdfast auditor challenge --chunks 20 --data ./data")]
pub(crate) struct ChallengeArgs {
    /// Chunks of 1 KiB per node
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) chunks: u32,
    /// The network
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// What repair does.
#[derive(Debug, Subcommand)]
pub(crate) enum RepairCommand {
    /// Rebuild now what unreachable nodes held
    Run(RepairArgs),
    /// Show the last or the running repair
    Status(RepairArgs),
}

/// Options of `repair`.
#[derive(Debug, Clone, Args)]
pub(crate) struct RepairArgs {
    /// The network
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// When and how fast lost shards are rebuilt.
#[derive(Debug, Clone, Args)]
pub(crate) struct RepairRules {
    /// How long a silent node is waited for before its shards are rebuilt; less when a stripe's margin is thin
    #[arg(long, env = "HOLDFAST_REPAIR_AFTER", default_value = "1d", value_name = "PERIOD")]
    pub(crate) repair_after: Period,
    /// Bytes a second that automatic repair and packing may each move; 0 for no limit
    #[arg(long, env = "HOLDFAST_REPAIR_RATE", default_value = "100MB", value_name = "SIZE")]
    pub(crate) repair_rate: ByteSize,
}

impl RepairRules {
    /// As the gateway takes them.
    pub(crate) fn policy(&self) -> holdfast_gateway::RepairPolicy {
        holdfast_gateway::RepairPolicy {
            silent: self.repair_after.0,
            bytes_per_second: (self.repair_rate.0 > 0).then_some(self.repair_rate.0),
        }
    }
}

/// Options of `plan`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  holdfast plan ./dataset
  holdfast plan --size 2TB --objects 40000 --policy standard
  holdfast plan")]
pub(crate) struct PlanArgs {
    /// A file or a directory that would be uploaded
    pub(crate) source: Option<PathBuf>,
    /// Bytes that would be uploaded, instead
    #[arg(long, value_name = "SIZE")]
    pub(crate) size: Option<ByteSize>,
    /// As so many objects of equal size
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100_000_000), requires = "size")]
    pub(crate) objects: u64,
    /// Code and failure domain [default: the gateway's]
    #[arg(long)]
    pub(crate) policy: Option<PolicyName>,
    /// The network
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// Which network a client command talks to.
#[derive(Debug, Clone, Args)]
pub(crate) struct NetworkArgs {
    /// The directory of a network on this machine
    #[arg(long, env = "HOLDFAST_DATA", default_value = "data", value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// S3 address of a gateway elsewhere; keys then come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY,
    /// or from the profile `holdfast` of the AWS credentials file
    #[arg(long, env = "HOLDFAST_GATEWAY", value_name = "URL")]
    pub(crate) gateway: Option<String>,
}

/// Options of `put`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  holdfast put ./dataset train-data/v1
  holdfast put model.safetensors checkpoints/step-1000.safetensors")]
pub(crate) struct PutArgs {
    /// A file or a directory
    pub(crate) source: PathBuf,
    /// BUCKET/KEY, BUCKET/PREFIX or BUCKET; the bucket is created if it does not exist
    pub(crate) target: String,
    /// Files in flight at once
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) jobs: u16,
    /// Create the bucket public: blocks are not encrypted and anybody may read
    #[arg(long)]
    pub(crate) public: bool,
    /// Begin anew, and leave no unfinished upload behind on failure
    #[arg(long)]
    pub(crate) no_resume: bool,
    /// The network
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// Options of `import`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  holdfast import s3://datasets/train/ train-data/v1/ --from http://minio.example:9000 --from-profile minio
  SOURCE_AWS_ACCESS_KEY_ID=… SOURCE_AWS_SECRET_ACCESS_KEY=… \\
      holdfast import s3://datasets/model.bin models/ --from http://minio.example:9000")]
pub(crate) struct ImportArgs {
    /// s3://BUCKET/KEY, or s3://BUCKET/PREFIX/ for all below
    pub(crate) source: String,
    /// BUCKET/KEY or BUCKET/PREFIX/; the bucket is created if it does not exist
    pub(crate) target: String,
    /// The endpoint to copy from
    #[arg(long, env = "HOLDFAST_IMPORT_FROM", value_name = "URL")]
    pub(crate) from: String,
    /// Profile of the AWS credentials file with its keys [default: SOURCE_AWS_ACCESS_KEY_ID and
    /// SOURCE_AWS_SECRET_ACCESS_KEY, else the profile `default`]
    #[arg(long, value_name = "PROFILE")]
    pub(crate) from_profile: Option<String>,
    /// The region that its requests are signed for
    #[arg(long, default_value = "us-east-1", value_name = "REGION")]
    pub(crate) from_region: String,
    /// Objects in flight at once
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) jobs: u16,
    /// Create the bucket public: blocks are not encrypted and anybody may read
    #[arg(long)]
    pub(crate) public: bool,
    /// The network
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// Reading straight from the nodes.
#[derive(Debug, Clone, Args)]
pub(crate) struct DirectArgs {
    /// Read from the nodes themselves and verify here: the gateway is trusted for no byte
    #[arg(long, env = "HOLDFAST_DIRECT")]
    pub(crate) direct: bool,
    /// Keep verified blocks in this directory; one process at a time uses it
    #[arg(long, env = "HOLDFAST_CACHE_DIR", value_name = "DIR", requires = "direct")]
    pub(crate) cache: Option<PathBuf>,
    /// How large the cache may become
    #[arg(long, env = "HOLDFAST_CACHE_SIZE", default_value = "10GB", value_name = "SIZE")]
    pub(crate) cache_size: ByteSize,
    /// Give a block up that cannot be had, in whatever way, after this long
    #[arg(long, env = "HOLDFAST_GIVE_UP_AFTER", default_value = "30s", value_name = "PERIOD")]
    pub(crate) give_up_after: Period,
    /// Write a signed transcript of what was served to this new file
    #[arg(long, env = "HOLDFAST_TRANSCRIPT", value_name = "FILE", requires = "direct")]
    pub(crate) transcript: Option<PathBuf>,
    /// What the transcript calls the run
    #[arg(long, default_value = "", value_name = "TEXT", requires = "transcript")]
    pub(crate) label: String,
    /// The root CID that the object must have
    #[arg(long, value_name = "CID", requires = "direct")]
    pub(crate) cid: Option<String>,
}

impl Default for DirectArgs {
    /// As if none of the options was given.
    fn default() -> Self {
        Self {
            direct: false,
            cache: None,
            cache_size: ByteSize(10_000_000_000),
            give_up_after: Period(std::time::Duration::from_secs(30)),
            transcript: None,
            label: String::new(),
            cid: None,
        }
    }
}

/// What `transcript` does.
#[derive(Debug, Subcommand)]
pub(crate) enum TranscriptCommand {
    /// Check the signatures and the chain of a transcript
    Verify(TranscriptVerifyArgs),
}

/// Options of `transcript verify`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:
  holdfast cat train-data/v1/shard-0.tar --direct --transcript run.transcript > /dev/null
  holdfast transcript verify run.transcript --against train-data/v1/")]
pub(crate) struct TranscriptVerifyArgs {
    /// The transcript
    pub(crate) file: PathBuf,
    /// Also check that every block served belongs to BUCKET/KEY, or to an object under BUCKET/PREFIX/
    #[arg(long, value_name = "TARGET")]
    pub(crate) against: Option<String>,
    /// The network, for --against
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// Options of `get`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  holdfast get train-data/v1/ ./copy
  holdfast get train-data/v1/ ./copy --direct --cache /var/tmp/holdfast-cache
  holdfast get checkpoints/step-1000.safetensors model.safetensors")]
pub(crate) struct GetArgs {
    /// BUCKET/KEY, or BUCKET/PREFIX/ for all below
    pub(crate) source: String,
    /// Where to write
    pub(crate) target: PathBuf,
    /// Files in flight at once
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) jobs: u16,
    /// Straight from the nodes
    #[command(flatten)]
    pub(crate) direct: DirectArgs,
    /// The network
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// Options of `cat`.
#[derive(Debug, Clone, Args)]
pub(crate) struct CatArgs {
    /// BUCKET/KEY
    pub(crate) source: String,
    /// Straight from the nodes
    #[command(flatten)]
    pub(crate) direct: DirectArgs,
    /// The network
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// Options of `ls`.
#[derive(Debug, Clone, Args)]
pub(crate) struct LsArgs {
    /// BUCKET or BUCKET/PREFIX; without it, the buckets
    pub(crate) target: Option<String>,
    /// Everything below, not only the next level
    #[arg(long, short)]
    pub(crate) recursive: bool,
    /// The network
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// Options of `rm`.
#[derive(Debug, Clone, Args)]
pub(crate) struct RmArgs {
    /// BUCKET/KEY; with --recursive, BUCKET/PREFIX
    pub(crate) target: String,
    /// Everything below the prefix
    #[arg(long, short)]
    pub(crate) recursive: bool,
    /// The network
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// Options of `mount`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  holdfast mount train-data /mnt/train --data ./data
  holdfast mount train-data/v1 /mnt/v1 --read-only --gateway http://gateway:9000
  holdfast mount bafyb4i… /mnt/pinned
What it promises (close-to-open, fsync, renames, errors) is in docs/MOUNT.md.")]
pub(crate) struct MountArgs {
    /// BUCKET, BUCKET/PREFIX, or the CID of a snapshot (read-only)
    pub(crate) target: String,
    /// Where; an existing directory
    pub(crate) dir: PathBuf,
    /// Refuse every change
    #[arg(long, env = "HOLDFAST_MOUNT_READ_ONLY")]
    pub(crate) read_only: bool,
    /// How long file operations wait for a network that is gone before they fail with EIO
    #[arg(long, env = "HOLDFAST_MOUNT_TIMEOUT", default_value = "1m", value_name = "PERIOD")]
    pub(crate) timeout: Period,
    /// How long names and sizes are believed, in milliseconds; opening a file always asks
    #[arg(long, env = "HOLDFAST_MOUNT_METADATA_TTL_MS", default_value_t = 1000, value_name = "MS")]
    pub(crate) metadata_ttl_ms: u64,
    /// Memory for the bytes of files, half of it for reading and half for uploads; at least 32 MiB
    #[arg(long, env = "HOLDFAST_MOUNT_MEMORY", default_value = "128MiB", value_name = "SIZE")]
    pub(crate) memory: ByteSize,
    /// Read from the nodes themselves and verify here: the gateway is trusted for no byte
    #[arg(long, env = "HOLDFAST_DIRECT")]
    pub(crate) direct: bool,
    /// Keep verified blocks in this directory; one process at a time uses it. Implies --direct
    #[arg(long, visible_alias = "cache-dir", env = "HOLDFAST_CACHE_DIR", value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// How large the cache may become
    #[arg(long, env = "HOLDFAST_CACHE_SIZE", default_value = "10GB", value_name = "SIZE")]
    pub(crate) cache_size: ByteSize,
    /// Names of files, one a line, in the order in which they will be read: the cache keeps what comes first. Read again when it changes
    #[arg(long, env = "HOLDFAST_MOUNT_ORDER", value_name = "FILE", requires = "cache")]
    pub(crate) order: Option<PathBuf>,
    /// Write a signed transcript of what was served to this new file. Implies --direct
    #[arg(long, env = "HOLDFAST_TRANSCRIPT", value_name = "FILE")]
    pub(crate) transcript: Option<PathBuf>,
    /// What the transcript calls the run
    #[arg(long, default_value = "", value_name = "TEXT", requires = "transcript")]
    pub(crate) label: String,
    /// Where files being written lie until they are uploaded [default: under ~/.cache/holdfast]
    #[arg(long, env = "HOLDFAST_MOUNT_STAGING", value_name = "DIR")]
    pub(crate) staging: Option<PathBuf>,
    /// Let other users in
    #[arg(long, env = "HOLDFAST_MOUNT_ALLOW_OTHER")]
    pub(crate) allow_other: bool,
    /// Owner of all files [default: whoever mounts]
    #[arg(long, env = "HOLDFAST_MOUNT_UID", value_name = "UID")]
    pub(crate) uid: Option<u32>,
    /// Group of all files [default: whoever mounts]
    #[arg(long, env = "HOLDFAST_MOUNT_GID", value_name = "GID")]
    pub(crate) gid: Option<u32>,
    /// Stop when standard input ends (for programs that start us)
    #[arg(long, env = "HOLDFAST_STOP_ON_STDIN_EOF", hide = true)]
    pub(crate) stop_on_stdin_eof: bool,
    /// The network
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// What `snapshot` does.
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Pin BUCKET or BUCKET/PREFIX as it is now, under a name
    Create(SnapshotCreateArgs),
    /// Show all snapshots
    List(SnapshotListArgs),
    /// Let a snapshot go; its blocks are released unless something else needs them
    Rm(SnapshotRmArgs),
}

/// Options of `snapshot create`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:
  holdfast snapshot create train-data/v1 run-42 --data ./data
  holdfast mount bafyb4i… /mnt/run-42 --data ./data")]
pub(crate) struct SnapshotCreateArgs {
    /// BUCKET or BUCKET/PREFIX
    pub(crate) source: String,
    /// The snapshot's name
    pub(crate) name: String,
    /// The network
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// Options of `snapshot list`.
#[derive(Debug, Clone, Args)]
pub(crate) struct SnapshotListArgs {
    /// The network
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// Options of `snapshot rm`.
#[derive(Debug, Clone, Args)]
pub(crate) struct SnapshotRmArgs {
    /// The snapshot's name
    pub(crate) name: String,
    /// The network
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// Options of `inspect`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  holdfast inspect bafkr4i…
  holdfast inspect z6Mk…
  holdfast inspect record.cbor
  holdfast inspect /mnt/disk1/holdfast/store/extents/0000000000000001.extent")]
pub(crate) struct InspectArgs {
    /// A CID, a key, a file with a record, or an extent file of a node's store
    pub(crate) what: String,
}

/// What `config` does.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show the options in force and where each came from
    Show,
}

/// Options of `demo`.
#[derive(Debug, Clone, Args)]
pub(crate) struct DemoArgs {
    /// Where the throw-away network lives; must not exist. Removed at the end unless --keep
    #[arg(long, env = "HOLDFAST_DEMO_DIR", default_value = "demo-data", value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Megabytes of generated dataset
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(10..=100_000))]
    pub(crate) megabytes: u64,
    /// Leave the directory behind
    #[arg(long)]
    pub(crate) keep: bool,
}
