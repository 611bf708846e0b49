//! What a node is told at start. Nothing here is decided by peers.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use holdfast_protocol::record::Prices;
use holdfast_protocol::time::{Clock, SystemClock};
use holdfast_protocol::{NamespaceId, OperatorId};

use super::bandwidth::Schedule;
use super::limits::NodeLimits;
use crate::audit::NodeAuditConfig;
use crate::disks::DiskConfig;
use crate::store::IoMode;
use crate::store::config::SCRUB_PERIOD_DEFAULT_MS;

/// How to run a node.
#[derive(Clone)]
pub struct NodeConfig {
    /// Where everything of this node lives; made if absent.
    pub dir: PathBuf,
    /// Bytes offered, headers and trash included.
    pub capacity_bytes: u64,
    /// Further disks, beside the one that `dir` is on; remembered once they were named.
    pub disks: Vec<DiskConfig>,
    /// In which time every block is read and hashed; 0 for never.
    pub scrub_period_ms: u64,
    /// Who runs it; `None` lets the node's own key stand for its operator.
    pub operator: Option<OperatorId>,
    /// Addresses for the node record, best first; [`super::Node::advertise`] replaces them later.
    pub addresses: Vec<SocketAddr>,
    /// Which namespaces may rent capacity; [`super::Node::admit`] adds to them while the node runs.
    pub admit: Admission,
    /// What is asked; terms below these prices are refused.
    pub prices: Prices,
    /// The autonomous system the node is in; 0 when unknown.
    pub asn: u32,
    /// How the disk is driven.
    pub io: IoMode,
    /// How long released blocks can be restored.
    pub trash_period_ms: u64,
    /// What happens around the end of a provisional claim.
    pub lease: LeasePolicy,
    /// Bounds that depend on the machine.
    pub limits: NodeLimits,
    /// What the line allows.
    pub bandwidth: Bandwidth,
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
    /// The rules by which the node is audited; without them it takes no part in audits.
    pub audit: Option<NodeAuditConfig>,
    /// Makes the node lie to its readers, for tests of those readers. Never weakens a check of the node's own.
    pub misbehave: Option<Misbehaviour>,
}

impl NodeConfig {
    /// A node in `dir` offering `capacity_bytes`, everything else at its default: nobody may rent until admitted,
    /// 7 days of trash.
    pub fn new(dir: impl Into<PathBuf>, capacity_bytes: u64) -> Self {
        Self {
            dir: dir.into(),
            capacity_bytes,
            disks: Vec::new(),
            scrub_period_ms: SCRUB_PERIOD_DEFAULT_MS,
            operator: None,
            addresses: Vec::new(),
            admit: Admission::default(),
            prices: Prices::default(),
            asn: 0,
            io: IoMode::Auto,
            trash_period_ms: 7 * 24 * 3600 * 1000,
            lease: LeasePolicy::default(),
            limits: NodeLimits::default(),
            bandwidth: Bandwidth::default(),
            clock: Arc::new(SystemClock),
            audit: None,
            misbehave: None,
        }
    }
}

impl fmt::Debug for NodeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeConfig")
            .field("dir", &self.dir)
            .field("capacity_bytes", &self.capacity_bytes)
            .field("operator", &self.operator)
            .field("addresses", &self.addresses)
            .field("admit", &self.admit)
            .field("misbehave", &self.misbehave)
            .finish_non_exhaustive()
    }
}

/// Which namespaces may rent capacity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Any, as long as capacity is left.
    Any,
    /// Only these.
    Listed(Vec<NamespaceId>),
}

impl Default for Admission {
    /// Nobody: who may fill a disk is for its owner to say.
    fn default() -> Self {
        Self::Listed(Vec::new())
    }
}

/// Bytes a second by hour of day.
#[derive(Clone, Debug)]
pub struct Bandwidth {
    /// Block bytes sent to readers.
    pub send: Schedule,
    /// Block bytes taken from writers.
    pub take: Schedule,
    /// The minute of the local day at a time; UTC unless set.
    pub minute_of_day: fn(u64) -> u16,
}

impl Default for Bandwidth {
    fn default() -> Self {
        Self { send: Schedule::default(), take: Schedule::default(), minute_of_day: utc_minute }
    }
}

fn utc_minute(now_ms: u64) -> u16 {
    u16::try_from(now_ms / 60_000 % (24 * 60)).unwrap_or(0)
}

impl Admission {
    /// Whether `namespace` may rent.
    pub fn admits(&self, namespace: NamespaceId) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(list) => list.contains(&namespace),
        }
    }
}

/// What happens around the end of a provisional claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeasePolicy {
    /// Leases are rounded up to whole multiples of this, so that the puts of a commit group share a receipt.
    pub grain_ms: u64,
    /// No lease is longer; a longer wish is shortened, and the receipt says so.
    pub longest_ms: u64,
    /// How long a claim lives on when the namespace says that it still needs it provisionally.
    pub extension_ms: u64,
    /// A namespace that never answers loses its provisional blocks after this time.
    pub silence_ms: u64,
    /// How often ended leases are looked for; 0 never looks by itself.
    pub interval_ms: u64,
}

impl Default for LeasePolicy {
    fn default() -> Self {
        Self {
            grain_ms: 60 * 1000,
            longest_ms: 7 * 24 * 3600 * 1000,
            extension_ms: 3600 * 1000,
            silence_ms: 30 * 24 * 3600 * 1000,
            interval_ms: 60 * 1000,
        }
    }
}

impl LeasePolicy {
    /// The lease that is given for one that was asked: rounded up, not longer than the longest.
    pub fn granted(&self, asked_until_ms: u64, now_ms: u64) -> u64 {
        let grain = self.grain_ms.max(1);
        let rounded = asked_until_ms.div_ceil(grain).saturating_mul(grain);
        rounded.min(now_ms.saturating_add(self.longest_ms))
    }
}

/// A lie for readers to catch. Only answers to ReadBlock change; writes, receipts and checks stay honest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misbehaviour {
    /// One bit of every body is wrong.
    FlipBit,
    /// Every body ends before its announced length.
    Truncate,
    /// The answer never comes.
    Stall,
    /// The answer is another block of the same length, with proofs that hold for that one.
    OtherBlock,
    /// The answer is not a message.
    Garbage,
}

impl FromStr for Misbehaviour {
    type Err = UnknownMisbehaviour;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "flip-bit" => Ok(Self::FlipBit),
            "truncate" => Ok(Self::Truncate),
            "stall" => Ok(Self::Stall),
            "other-block" => Ok(Self::OtherBlock),
            "garbage" => Ok(Self::Garbage),
            other => Err(UnknownMisbehaviour { text: other.chars().take(40).collect() }),
        }
    }
}

/// Not the name of a misbehaviour.
#[derive(Debug, Clone, thiserror::Error)]
#[error("`{text}` is no misbehaviour; known are flip-bit, truncate, stall, other-block and garbage")]
pub struct UnknownMisbehaviour {
    /// The text, at most 40 characters of it.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_round_up_and_have_a_longest() {
        let policy = LeasePolicy { grain_ms: 60_000, longest_ms: 600_000, ..LeasePolicy::default() };
        assert_eq!(policy.granted(60_000, 0), 60_000);
        assert_eq!(policy.granted(60_001, 0), 120_000);
        assert_eq!(policy.granted(u64::MAX, 5), 600_005);
    }

    #[test]
    fn misbehaviours_have_names() {
        assert_eq!("flip-bit".parse::<Misbehaviour>().unwrap(), Misbehaviour::FlipBit);
        assert!("honest".parse::<Misbehaviour>().unwrap_err().to_string().contains("honest"));
    }
}
