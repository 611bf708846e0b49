//! Options of `holdfast key`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::NetworkArgs;
use crate::periods::Period;
use crate::sizes::ByteSize;

/// What is done with access keys and with the namespace's own.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make an access key for a person or a program
    Create(KeyCreateArgs),
    /// List access keys
    List(KeyListArgs),
    /// End an access key, or a token that was handed on
    Revoke(KeyRevokeArgs),
    /// Replace an access key by one of the same rules, or give a bucket a new key
    Rotate(KeyRotateArgs),
    /// Narrow a token and hand it on, without the gateway's help
    Delegate(KeyDelegateArgs),
    /// Make a link by which anybody can read one object or everything under a prefix
    Share(KeyShareArgs),
    /// Show what a token says
    Inspect(KeyInspectArgs),
    /// Show what access keys used, by day
    Usage(KeyUsageArgs),
    /// Show who did what at this gateway
    Trail(KeyTrailArgs),
    /// Write the namespace's keys into a recovery file, and show the code that opens it
    Backup(KeyBackupArgs),
    /// Bring the namespace's keys back, or to another gateway, from a recovery file
    Restore(KeyRestoreArgs),
}

/// Options of `key create`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  holdfast key create --person alice --bucket datasets --prefix v1/ --allow read,list --expires 90d
  holdfast key create --person team-b --bucket 'team-b-*' --allow read,list,write,delete,manage --quota 2TB
  holdfast key create --person backup --owner")]
pub(crate) struct KeyCreateArgs {
    /// Who will hold it
    #[arg(long, value_name = "NAME")]
    pub(crate) person: String,
    /// Buckets it opens; NAME* for all whose names begin so
    #[arg(long, value_name = "BUCKET", value_delimiter = ',', required_unless_present = "owner")]
    pub(crate) bucket: Vec<String>,
    /// Only keys that begin with this
    #[arg(long, default_value = "", value_name = "PREFIX")]
    pub(crate) prefix: String,
    /// What may be done: read, list, write, delete, manage (create, configure and delete buckets)
    #[arg(long, value_name = "OPERATION", value_delimiter = ',', default_values = ["read", "list"])]
    pub(crate) allow: Vec<String>,
    /// All rights on everything, without limits
    #[arg(long, conflicts_with_all = ["bucket", "quota", "rate", "byte_rate", "concurrent", "expires"])]
    pub(crate) owner: bool,
    /// It ends by itself after this time
    #[arg(long, value_name = "PERIOD")]
    pub(crate) expires: Option<Period>,
    /// Nothing more is written once its buckets hold this much
    #[arg(long, value_name = "SIZE")]
    pub(crate) quota: Option<ByteSize>,
    /// Requests a second, at each gateway
    #[arg(long, value_name = "NUMBER")]
    pub(crate) rate: Option<u32>,
    /// Bytes up and down a second, at each gateway
    #[arg(long, value_name = "SIZE")]
    pub(crate) byte_rate: Option<ByteSize>,
    /// Requests under way at once, at each gateway [default: 256]
    #[arg(long, value_name = "NUMBER")]
    pub(crate) concurrent: Option<u32>,
    /// The network
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// Options of `key list`.
#[derive(Debug, Clone, Args)]
pub(crate) struct KeyListArgs {
    /// Those that have ended, too
    #[arg(long)]
    pub(crate) all: bool,
    /// The network
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// Options of `key revoke`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  holdfast key revoke HOLDQ3XMPLKEYQ3XMPLK
  holdfast key revoke 5f0c…   (a block of a token, as `holdfast key inspect` names it)")]
pub(crate) struct KeyRevokeArgs {
    /// An access key, or the name of a token's block
    pub(crate) what: String,
    /// The network
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// Options of `key rotate`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  holdfast key rotate HOLDQ3XMPLKEYQ3XMPLK --grace 1d
  holdfast key rotate --bucket datasets")]
pub(crate) struct KeyRotateArgs {
    /// The access key to replace
    #[arg(required_unless_present = "bucket", conflicts_with = "bucket")]
    pub(crate) access_key: Option<String>,
    /// How long the old one goes on beside the new one [default: not at all]
    #[arg(long, value_name = "PERIOD", conflicts_with = "bucket")]
    pub(crate) grace: Option<Period>,
    /// Give this bucket a new key: what is written from now on is enciphered under it
    #[arg(long, value_name = "BUCKET")]
    pub(crate) bucket: Option<String>,
    /// The network
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// Options of `key delegate`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:
  holdfast key delegate --token-file alice.token --access-key HOLD… --secret-file alice.secret \\
      --bucket datasets --prefix v1/ --allow read,list --expires 7d")]
pub(crate) struct KeyDelegateArgs {
    /// File with the token to narrow
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: PathBuf,
    /// File with the secret that belongs to it
    #[arg(long, value_name = "FILE")]
    pub(crate) secret_file: PathBuf,
    /// The access key that the token names
    #[arg(long, value_name = "KEY")]
    pub(crate) access_key: String,
    /// Only this bucket
    #[arg(long, value_name = "BUCKET")]
    pub(crate) bucket: Option<String>,
    /// Only keys that begin with this
    #[arg(long, value_name = "PREFIX")]
    pub(crate) prefix: Option<String>,
    /// Only these operations
    #[arg(long, value_name = "OPERATION", value_delimiter = ',')]
    pub(crate) allow: Vec<String>,
    /// Only for this time
    #[arg(long, value_name = "PERIOD")]
    pub(crate) expires: Option<Period>,
}

/// Options of `key share`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  holdfast key share datasets/v1/readme.md --expires 30d
  holdfast key share datasets/v1/ --expires 1d")]
pub(crate) struct KeyShareArgs {
    /// BUCKET/KEY, or BUCKET/PREFIX/ for all below
    pub(crate) target: String,
    /// How long the link works
    #[arg(long, default_value = "7d", value_name = "PERIOD")]
    pub(crate) expires: Period,
    /// The network
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// Options of `key inspect`.
#[derive(Debug, Clone, Args)]
pub(crate) struct KeyInspectArgs {
    /// A token, or a link
    pub(crate) token: String,
}

/// Options of `key usage`.
#[derive(Debug, Clone, Args)]
pub(crate) struct KeyUsageArgs {
    /// Only this access key
    #[arg(long, value_name = "KEY")]
    pub(crate) access_key: Option<String>,
    /// The last so many days
    #[arg(long, default_value_t = 30, value_name = "DAYS")]
    pub(crate) days: u32,
    /// The network
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// Options of `key trail`.
#[derive(Debug, Clone, Args)]
pub(crate) struct KeyTrailArgs {
    /// Only this access key
    #[arg(long, value_name = "KEY")]
    pub(crate) access_key: Option<String>,
    /// Only what this person did; `admin` for the administrator
    #[arg(long, value_name = "NAME")]
    pub(crate) person: Option<String>,
    /// The last so many entries
    #[arg(long, default_value_t = 50, value_name = "NUMBER")]
    pub(crate) last: usize,
    /// The network
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// Options of `key backup`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  holdfast key backup --data ./gateway --out /media/stick/recovery.txt")]
pub(crate) struct KeyBackupArgs {
    /// The gateway's data directory
    #[arg(long, env = "HOLDFAST_DATA", default_value = "data", value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Where the recovery file is written; keep it apart from the data directory
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

/// Options of `key restore`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  holdfast key restore recovery.txt --data ./gateway-2\nThe code is asked for."
)]
pub(crate) struct KeyRestoreArgs {
    /// The recovery file
    pub(crate) file: PathBuf,
    /// The data directory of the gateway; may be new
    #[arg(long, env = "HOLDFAST_DATA", default_value = "data", value_name = "DIR")]
    pub(crate) data: PathBuf,
}
