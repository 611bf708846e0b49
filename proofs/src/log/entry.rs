//! What an auditor writes down: everything that a third party needs to check it, in the order in which it happened.

use holdfast_protocol::NodeId;
use holdfast_protocol::cbor::{self, DecodeError};
use holdfast_protocol::record::{
    AuditAnswer, BeaconRound, Commitment, Countersignature, Declaration, Epoch, Record, Unverified, Verdict,
};
use serde::{Deserialize, Serialize};

use crate::policy::AuditPolicy;

/// The longest entry: a tile's bundle gives each a length of 16 bits.
pub const ENTRY_LEN_MAX: usize = u16::MAX as usize;
/// The longest name of a log.
pub const ORIGIN_LEN_MAX: usize = 200;

/// The first entry of a log: whose it is and under which rules it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogOpening {
    /// Version.
    pub v: u16,
    /// Whose log; also the signer.
    pub auditor: NodeId,
    /// The log's name, as its checkpoints have it.
    pub origin: String,
    /// The rules.
    pub policy: AuditPolicy,
    /// When it was opened.
    pub issued_ms: u64,
}

impl Record for LogOpening {
    const NAME: &'static str = "log opening";
    const DOMAIN: &'static str = "holdfast log opening v1";
    fn version(&self) -> u16 {
        self.v
    }
    fn check_bounds(&self) -> Result<(), DecodeError> {
        let fits = !self.origin.is_empty() && self.origin.len() <= ORIGIN_LEN_MAX;
        let field = |field| DecodeError::OutOfBounds { field };
        if !fits || self.origin.contains(['\n', '+', ' ']) {
            return Err(field("origin"));
        }
        self.policy.check().map_err(|_| field("policy"))
    }
}

/// "So many nodes missed this epoch at once that I hold it against nobody."
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoidEpoch {
    /// Version.
    pub v: u16,
    /// Who says so; also the signer.
    pub auditor: NodeId,
    /// Which epoch.
    pub epoch: Epoch,
    /// Nodes that missed it.
    pub missed: u32,
    /// Of how many.
    pub nodes: u32,
    /// When it was said.
    pub issued_ms: u64,
}

impl Record for VoidEpoch {
    const NAME: &'static str = "void epoch";
    const DOMAIN: &'static str = "holdfast void epoch v1";
    fn version(&self) -> u16 {
        self.v
    }
    fn check_bounds(&self) -> Result<(), DecodeError> {
        if self.missed <= self.nodes { Ok(()) } else { Err(DecodeError::OutOfBounds { field: "missed" }) }
    }
}

/// One entry of a log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum LogEntry {
    /// The log begins.
    Opened(Unverified<LogOpening>),
    /// A node committed, and the auditor saw it.
    Committed {
        /// The commitment.
        commitment: Unverified<Commitment>,
        /// What came with it.
        declarations: Vec<Unverified<Declaration>>,
        /// The auditor's word.
        countersignature: Unverified<Countersignature>,
    },
    /// The beacon drew.
    Round {
        /// For which epoch.
        epoch: Epoch,
        /// The round.
        round: BeaconRound,
    },
    /// A node answered. The proofs lie beside the log under their hash.
    Answered(Unverified<AuditAnswer>),
    /// The auditor found.
    Found(Unverified<Verdict>),
    /// A node committed twice to one epoch: both signatures are its own.
    Equivocated {
        /// One.
        one: Unverified<Commitment>,
        /// The other.
        two: Unverified<Commitment>,
    },
    /// An epoch is held against nobody who missed it.
    Void(Unverified<VoidEpoch>),
}

impl LogEntry {
    /// The canonical bytes.
    pub fn encode(&self) -> Vec<u8> {
        cbor::encode(self)
    }

    /// Reads an entry. Signatures inside are not checked here.
    ///
    /// # Errors
    /// [`DecodeError`] when the bytes are no entry.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let entry: Self = cbor::decode(bytes)?;
        if let Self::Round { round, .. } = &entry {
            round.check_bounds()?;
        }
        Ok(entry)
    }
}
