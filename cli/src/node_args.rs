//! The options of `holdfast node`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::periods::Period;
use crate::sizes::ByteSize;

/// What a disk owner does.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Create a node's key and store, and check disk and network in plain words
    Init(NodeInitArgs),
    /// Serve
    Run(Box<NodeRunArgs>),
    /// Show a node's counters, and what is wrong
    Status(NodeStatusArgs),
    /// Check disk, clock and network again, and say what to mend
    Doctor(NodeDoctorArgs),
    /// Take no new blocks; those that are here are served
    Pause(NodeDirArgs),
    /// Take blocks again: ends a pause, a drain, an exit
    Resume(NodeDirArgs),
    /// Have the gateways move all blocks elsewhere; watch until it is done
    Drain(NodeLeaveArgs),
    /// As drain, and stop for good when nothing is left
    Exit(NodeLeaveArgs),
    /// Offer more or less
    Resize(NodeResizeArgs),
    /// Make a stopped node's index anew from its extents
    RebuildIndex(NodeDisksArgs),
    /// Read and hash every block of a stopped node now
    Scrub(NodeDisksArgs),
    /// Blocks, peers and namespaces that this node refuses
    #[command(subcommand)]
    Deny(DenyCommand),
}

/// Options of `node init`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  holdfast node init --dir /mnt/disk1/holdfast --capacity 500GB
  holdfast node init --dir /mnt/disk1/holdfast --capacity 500GB --invite holdfast-invite-u…")]
pub(crate) struct NodeInitArgs {
    /// The node's directory, on the disk that is rented out
    #[arg(long, env = "HOLDFAST_NODE_DIR", value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// What is offered: 500GB, 2TB, 1.5TiB
    #[arg(long, env = "HOLDFAST_CAPACITY", value_name = "SIZE")]
    pub(crate) capacity: ByteSize,
    /// Public key of the operator [default: the node's own]
    #[arg(long, env = "HOLDFAST_OPERATOR", value_name = "KEY")]
    pub(crate) operator: Option<String>,
    /// The invite of a gateway's operator; kept, so that `node run` needs nothing more
    #[arg(long, env = "HOLDFAST_INVITE", value_name = "INVITE")]
    pub(crate) invite: Option<String>,
    /// Where peers will connect, for the network check
    #[arg(long, env = "HOLDFAST_NODE_LISTEN", default_value = "0.0.0.0:7400", value_name = "ADDR")]
    pub(crate) listen: SocketAddr,
    /// Leave out the checks
    #[arg(long)]
    pub(crate) no_checks: bool,
}

/// Options of `node run`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  holdfast node run --dir /mnt/disk1/holdfast                    (after `node init --invite …`)
  holdfast node run --dir /mnt/disk1/holdfast --capacity 500GB --listen 0.0.0.0:7400 \\
      --join http://gateway.example:8080 --token-file ./invite
  holdfast node run --dir D --send-limit '08:00-23:00=10Mbit/s'")]
pub(crate) struct NodeRunArgs {
    /// The node's directory
    #[arg(long, env = "HOLDFAST_NODE_DIR", value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// What is offered from now on [default: as `node init` or `node resize` said]
    #[arg(long, env = "HOLDFAST_CAPACITY", value_name = "SIZE")]
    pub(crate) capacity: Option<ByteSize>,
    /// Where peers connect by QUIC [default: 127.0.0.1:7400, or 0.0.0.0:7400 when joining a gateway elsewhere]
    #[arg(long, env = "HOLDFAST_NODE_LISTEN", value_name = "ADDR")]
    pub(crate) listen: Option<SocketAddr>,
    /// Addresses told to others [default: the listening address, or what the router opened]
    #[arg(long, env = "HOLDFAST_NODE_ADVERTISE", value_name = "ADDR", value_delimiter = ',')]
    pub(crate) advertise: Vec<SocketAddr>,
    /// Namespaces that may store here besides those of the gateways joined; `any` for everybody
    #[arg(long, env = "HOLDFAST_NODE_ADMIT", value_name = "KEY", value_delimiter = ',')]
    pub(crate) admit: Vec<String>,
    /// Web addresses of gateways to introduce ourselves to [default: those of the invite]
    #[arg(long, env = "HOLDFAST_JOIN", value_name = "URL", value_delimiter = ',')]
    pub(crate) join: Vec<String>,
    /// File with an invite (`holdfast gateway invite` makes one) or with that gateway's admin token
    #[arg(long, env = "HOLDFAST_TOKEN_FILE", value_name = "FILE", requires = "join")]
    pub(crate) token_file: Option<PathBuf>,
    /// The invite itself; kept in the node's directory
    #[arg(long, env = "HOLDFAST_INVITE", value_name = "INVITE")]
    pub(crate) invite: Option<String>,
    /// Do not ask the router to open a port (UPnP, PCP, NAT-PMP)
    #[arg(long, env = "HOLDFAST_NO_PORT_MAPPING")]
    pub(crate) no_port_mapping: bool,
    /// Where the node's own page, /metrics and /healthz are; port 0 lets the system choose
    #[arg(long, env = "HOLDFAST_NODE_WEB_LISTEN", default_value = "127.0.0.1:0", value_name = "ADDR")]
    pub(crate) web_listen: SocketAddr,
    /// Post warnings and alarms here as JSON; several with commas, none waits for another
    #[arg(long = "alert-webhook", env = "HOLDFAST_ALERT_WEBHOOK", value_name = "URL", value_delimiter = ',')]
    pub(crate) alert_webhooks: Vec<String>,
    /// Trust the certificate authorities in this PEM file for https webhooks, instead of the system's
    #[arg(long, env = "HOLDFAST_ALERT_CA", value_name = "FILE")]
    pub(crate) alert_ca: Option<PathBuf>,
    /// Bytes a second sent, by hour of the local day: `08:00-23:00=10Mbit/s,23:00-08:00=unlimited`
    #[arg(long, env = "HOLDFAST_SEND_LIMIT", default_value = "", value_name = "SCHEDULE")]
    pub(crate) send_limit: String,
    /// Bytes a second taken, likewise
    #[arg(long, env = "HOLDFAST_TAKE_LIMIT", default_value = "", value_name = "SCHEDULE")]
    pub(crate) take_limit: String,
    /// A further disk and what is offered on it; named once, it is remembered. Repeat for more
    #[arg(long = "disk", env = "HOLDFAST_NODE_DISKS", value_name = "DIR=SIZE", value_delimiter = ',')]
    pub(crate) disks: Vec<DiskArg>,
    /// In which time every block is read and hashed once, in the gaps that readers leave
    #[arg(long, env = "HOLDFAST_SCRUB_PERIOD", default_value = "30d", value_name = "PERIOD")]
    pub(crate) scrub_period: Period,
    /// How long released blocks can be restored, in seconds
    #[arg(long, env = "HOLDFAST_TRASH_PERIOD_S", default_value_t = 7 * 24 * 3600, value_name = "SECONDS")]
    pub(crate) trash_period_s: u64,
    /// Stop when standard input ends (for programs that start us)
    #[arg(long, env = "HOLDFAST_STOP_ON_STDIN_EOF", hide = true)]
    pub(crate) stop_on_stdin_eof: bool,
    /// Be dishonest towards readers, to test them: flip-bit, truncate, stall, other-block, garbage
    #[arg(long, env = "HOLDFAST_TEST_MISBEHAVE", hide = true)]
    pub(crate) misbehave: Option<String>,
}

/// Options of `node status`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  holdfast node status --dir /mnt/disk1/holdfast --json")]
pub(crate) struct NodeStatusArgs {
    /// The node's directory
    #[arg(long, env = "HOLDFAST_NODE_DIR", value_name = "DIR")]
    pub(crate) dir: PathBuf,
}

/// Options of `node doctor`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  holdfast node doctor --dir /mnt/disk1/holdfast")]
pub(crate) struct NodeDoctorArgs {
    /// The node's directory
    #[arg(long, env = "HOLDFAST_NODE_DIR", value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Where peers connect
    #[arg(long, env = "HOLDFAST_NODE_LISTEN", default_value = "0.0.0.0:7400", value_name = "ADDR")]
    pub(crate) listen: SocketAddr,
    /// A gateway to be dialled back by [default: those of the invite]
    #[arg(long, env = "HOLDFAST_JOIN", value_name = "URL", value_delimiter = ',')]
    pub(crate) join: Vec<String>,
    /// File with an invite or an admin token
    #[arg(long, env = "HOLDFAST_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

/// Options of `node pause` and `node resume`.
#[derive(Debug, Clone, Args)]
pub(crate) struct NodeDirArgs {
    /// The node's directory
    #[arg(long, env = "HOLDFAST_NODE_DIR", value_name = "DIR")]
    pub(crate) dir: PathBuf,
}

/// Options of `node drain` and `node exit`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:
  holdfast node drain --dir /mnt/disk1/holdfast
Ctrl-C ends the watching, not the drain; `holdfast node resume` takes it back.")]
pub(crate) struct NodeLeaveArgs {
    /// The node's directory
    #[arg(long, env = "HOLDFAST_NODE_DIR", value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Ask for it and return at once
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// With `exit`: leave now, although blocks still lie here. Their namespaces lose these copies
    #[arg(long)]
    pub(crate) force: bool,
    /// Give up watching after this time; the drain goes on
    #[arg(long, value_name = "PERIOD")]
    pub(crate) timeout: Option<Period>,
}

/// Options of `node resize`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  holdfast node resize --dir /mnt/disk1/holdfast --capacity 300GB")]
pub(crate) struct NodeResizeArgs {
    /// The node's directory
    #[arg(long, env = "HOLDFAST_NODE_DIR", value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// What is offered from now on. Less than is used: the gateways move the rest elsewhere. More: from the next start
    #[arg(long, env = "HOLDFAST_CAPACITY", value_name = "SIZE")]
    pub(crate) capacity: ByteSize,
    /// On which of the further disks, by its directory [default: the node's own]
    #[arg(long, value_name = "DIR")]
    pub(crate) disk: Option<PathBuf>,
}

/// What `node deny` does.
#[derive(Debug, Subcommand)]
pub(crate) enum DenyCommand {
    /// Refuse something from now on
    Add(DenyArgs),
    /// Refuse it no longer
    Rm(DenyArgs),
    /// Show what is refused, since when and why
    Ls(NodeDirArgs),
}

/// Options of `node deny add` and `node deny rm`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  holdfast node deny add bafkr4i… --reason 'court order 12/34' --dir D
  holdfast node deny add peer:z6Mk… --dir D")]
pub(crate) struct DenyArgs {
    /// A block's CID, `peer:KEY` for a gateway or reader, `namespace:KEY`
    pub(crate) what: String,
    /// Why, for people
    #[arg(long, default_value = "")]
    pub(crate) reason: String,
    /// The node's directory
    #[arg(long, env = "HOLDFAST_NODE_DIR", value_name = "DIR")]
    pub(crate) dir: PathBuf,
}

/// Options of `gateway invite`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:
  holdfast gateway invite --data ./gateway --gateway http://gateway.example:8080 --nodes 3 --valid 7d")]
pub(crate) struct InviteArgs {
    /// The gateway's data directory
    #[arg(long, env = "HOLDFAST_DATA", default_value = "data", value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Web addresses at which nodes can join from where they are [default: the gateway's own]
    #[arg(long = "gateway", value_name = "URL", value_delimiter = ',')]
    pub(crate) gateways: Vec<String>,
    /// How many nodes may come by it
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) nodes: u32,
    /// How long it can be used: 24h, 7d
    #[arg(long, default_value = "7d", value_name = "PERIOD")]
    pub(crate) valid: Period,
    /// For whom, for people
    #[arg(long, default_value = "")]
    pub(crate) label: String,
}

/// Options of `gateway invites`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  holdfast gateway invites --data ./gateway
  holdfast gateway invites --data ./gateway --revoke 3f2a…   (nodes that came by it stay)")]
pub(crate) struct InvitesArgs {
    /// The gateway's data directory
    #[arg(long, env = "HOLDFAST_DATA", default_value = "data", value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Take this invite back: nobody comes by it any more
    #[arg(long, value_name = "ID")]
    pub(crate) revoke: Option<String>,
}

/// Options of `node rebuild-index` and `node scrub`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  holdfast node rebuild-index --dir /mnt/disk1/holdfast
  holdfast node scrub --dir /mnt/disk1/holdfast --json")]
pub(crate) struct NodeDisksArgs {
    /// The node's directory; its further disks are known to it
    #[arg(long, env = "HOLDFAST_NODE_DIR", value_name = "DIR")]
    pub(crate) dir: PathBuf,
}

/// A further disk: `DIR=SIZE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskArg {
    /// The store's directory on it.
    pub(crate) dir: PathBuf,
    /// What is offered there.
    pub(crate) capacity: ByteSize,
}

impl std::str::FromStr for DiskArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no disk; write DIR=SIZE, for example /mnt/disk2/holdfast=2TB");
        let (dir, size) = text.rsplit_once('=').filter(|(dir, _)| !dir.is_empty()).ok_or_else(wrong)?;
        Ok(Self { dir: dir.into(), capacity: size.parse()? })
    }
}
