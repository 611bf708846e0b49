//! Stripe: up to k data blocks and m parity blocks, and the policy they follow.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Record, random_id, within};
use crate::cbor::DecodeError;
use crate::digest::{BlockLen, Digest};
use crate::key::NodeId;
use crate::limits::SHARDS_MAX;

random_id! {
    /// Survives repair and merging.
    StripeId
}

/// The named policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyName {
    /// 4+2, w 5, domain node: survives disks, not operators.
    Local,
    /// 10+4, w 12, operator and /24.
    Small,
    /// 16+12, w 22, operator, /24 and a cap per ASN.
    Standard,
    /// A journal block: one data block and replicas of it (k = 1).
    Journal,
}

/// A code and its write quorum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its name.
    pub name: PolicyName,
    /// Data shards.
    pub k: usize,
    /// Parity shards.
    pub m: usize,
    /// Receipts before a write is acknowledged.
    pub w: usize,
}

impl Policy {
    /// `local`.
    pub const LOCAL: Self = Self { name: PolicyName::Local, k: 4, m: 2, w: 5 };
    /// `small`.
    pub const SMALL: Self = Self { name: PolicyName::Small, k: 10, m: 4, w: 12 };
    /// `standard`.
    pub const STANDARD: Self = Self { name: PolicyName::Standard, k: 16, m: 12, w: 22 };

    /// All shards.
    pub const fn n(&self) -> usize {
        self.k + self.m
    }

    /// The policy of this name; a journal's replicas follow the bucket's policy and are given by it.
    pub const fn by_name(name: PolicyName) -> Option<Self> {
        match name {
            PolicyName::Local => Some(Self::LOCAL),
            PolicyName::Small => Some(Self::SMALL),
            PolicyName::Standard => Some(Self::STANDARD),
            PolicyName::Journal => None,
        }
    }

    /// Bytes stored per byte of data in a full stripe.
    #[allow(clippy::cast_precision_loss, reason = "shard counts are below 64")]
    pub fn expansion(&self) -> f64 {
        self.n() as f64 / self.k as f64
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local",
            Self::Small => "small",
            Self::Standard => "standard",
            Self::Journal => "journal",
        })
    }
}

impl FromStr for PolicyName {
    type Err = PolicyNameError;
    fn from_str(text: &str) -> Result<Self, PolicyNameError> {
        match text {
            "local" => Ok(Self::Local),
            "small" => Ok(Self::Small),
            "standard" => Ok(Self::Standard),
            _ => Err(PolicyNameError { found: text.chars().take(40).collect() }),
        }
    }
}

/// Not a policy's name.
#[derive(Debug, Clone, thiserror::Error)]
#[error("`{found}` is not a policy; choose local (4+2), small (10+4) or standard (16+12)")]
pub struct PolicyNameError {
    found: String,
}

/// One shard of a stripe: data in slots `0..k`, parity in `k..n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Its digest.
    #[serde(rename = "d")]
    pub digest: Digest,
    /// Its length. Parity shards are as long as the stripe's longest block.
    #[serde(rename = "l")]
    pub len: BlockLen,
    /// Who holds it; `None` while it waits for a node.
    #[serde(rename = "n")]
    pub node: Option<NodeId>,
}

/// A stripe as an exportable record. The gateway's table keeps the same with short node numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stripe {
    /// Version of the format.
    pub v: u16,
    /// Which stripe.
    pub id: StripeId,
    /// Raised by each change of placement; compare-and-put on it.
    pub version: u64,
    /// The policy.
    pub policy: PolicyName,
    /// Data shards of the code.
    pub k: u8,
    /// Parity shards of the code.
    pub m: u8,
    /// Length of the longest block, to which shorter ones are padded with virtual zeros.
    pub block_len: BlockLen,
    /// `k + m` slots; `None` is a virtual zero block, which is stored nowhere.
    pub shards: Vec<Option<Shard>>,
}

impl Record for Stripe {
    const NAME: &'static str = "stripe";
    const DOMAIN: &'static str = "holdfast stripe v1";
    fn version(&self) -> u16 {
        self.v
    }
    fn check_bounds(&self) -> Result<(), DecodeError> {
        let n = usize::from(self.k) + usize::from(self.m);
        within(self.k > 0 && n <= SHARDS_MAX, "k")?;
        within(self.shards.len() == n, "shards")?;
        within(self.shards.iter().flatten().all(|shard| shard.len <= self.block_len), "block_len")
    }
}
