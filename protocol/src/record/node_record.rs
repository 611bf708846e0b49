//! Node record: what a node says of itself, signed by it, handed from gateway to gateway.

use serde::{Deserialize, Serialize};

use super::{Record, text_within, within};
use crate::cbor::DecodeError;
use crate::key::{NodeId, OperatorId};
use crate::limits::NODE_ADDRESSES_MAX;

/// What an operator asks, in millionths of the named currency. Shown; nothing settles yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prices {
    /// Per TB (10^12 bytes) kept for 30 days.
    pub storage_micro_per_tb_month: u64,
    /// Per TB served.
    pub egress_micro_per_tb: u64,
    /// ISO 4217 code or another name; empty when free.
    pub currency: String,
}

/// How a node can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reachability {
    /// Not tried yet.
    Unknown,
    /// Somebody dialled back and got through.
    Direct,
    /// Only over the connections that it opens to gateways.
    DialOut,
}

/// A node's self-description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Version.
    pub v: u16,
    /// Which node; also the signer.
    pub node: NodeId,
    /// Who runs it.
    pub operator: OperatorId,
    /// Socket addresses (`203.0.113.7:7400`, `[2001:db8::1]:7400`), best first.
    pub addresses: Vec<String>,
    /// Bytes offered.
    pub capacity_bytes: u64,
    /// Bytes still free when this was signed.
    pub free_bytes: u64,
    /// Prices asked.
    pub prices: Prices,
    /// How to reach it.
    pub reachability: Reachability,
    /// Autonomous system, 0 when unknown.
    pub asn: u32,
    /// Software name and version.
    pub software: String,
    /// Highest wins.
    pub seq: u64,
    /// When it was signed.
    pub issued_ms: u64,
    /// Ignored after this; 24 hours at most after `issued_ms`.
    pub expires_ms: u64,
}

impl Record for NodeRecord {
    const NAME: &'static str = "node record";
    const DOMAIN: &'static str = "holdfast node record v1";
    fn version(&self) -> u16 {
        self.v
    }
    fn check_bounds(&self) -> Result<(), DecodeError> {
        within(self.addresses.len() <= NODE_ADDRESSES_MAX, "addresses")?;
        for address in &self.addresses {
            text_within(address, "addresses")?;
        }
        text_within(&self.software, "software")?;
        text_within(&self.prices.currency, "currency")?;
        within(self.issued_ms < self.expires_ms, "expires_ms")?;
        within(self.expires_ms - self.issued_ms <= 24 * 3600 * 1000, "expires_ms")
    }
}
