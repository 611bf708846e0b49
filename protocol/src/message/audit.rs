//! Messages of audits: paging an agreement's inventory, and what an auditor and a node say to each other.
//!
//! An auditor needs no permission: any peer that said Hello may send these. A node behind a home router dials its
//! auditors and is asked through that connection.

use serde::{Deserialize, Serialize};

use super::within;
use crate::cbor::DecodeError;
use crate::digest::Digest;
use crate::limits::{COUNTERSIGNATURES_MAX, DECLARATIONS_MAX, INVENTORY_PAGE_MAX};
use crate::record::{
    AgreementId, AuditAnswer, BeaconRound, Commitment, Countersignature, Declaration, Epoch, InventoryPage,
    Standing, Unverified, Verdict,
};

/// Asks for the next page of what is kept under an agreement. Answered to the agreement's namespace alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryQuery {
    /// Which agreement.
    pub agreement: AgreementId,
    /// From which key on, exclusive.
    pub after: Option<Digest>,
    /// At most this many entries; fewer may come before the end.
    pub max: u32,
}

/// Answers an inventory query.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InventoryReply {
    /// The page, signed by the node.
    pub page: Unverified<InventoryPage>,
}

/// What an auditor asks or tells a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum AuditQuery {
    /// Show the commitment for this epoch.
    Commitment {
        /// Which epoch.
        epoch: Epoch,
    },
    /// Here is my word that I saw it in time.
    Countersigned {
        /// The word.
        countersignature: Unverified<Countersignature>,
    },
    /// This round drew: answer. The proofs follow the reply as raw bytes.
    Answer {
        /// For which epoch.
        epoch: Epoch,
        /// The beacon's round.
        round: BeaconRound,
        /// Which draws to prove, ascending; empty for all.
        draws: Vec<u32>,
    },
    /// Here is what I found, and what it does to your scores.
    Found {
        /// The verdict.
        verdict: Unverified<Verdict>,
        /// The scores.
        standing: Unverified<Standing>,
    },
}

/// Answers an audit query.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum AuditReply {
    /// To `Commitment`.
    Commitment {
        /// The commitment.
        commitment: Unverified<Commitment>,
        /// What is declared with it.
        declarations: Vec<Unverified<Declaration>>,
        /// Who countersigned it so far.
        countersignatures: Vec<Unverified<Countersignature>>,
    },
    /// To `Answer`; `body_len` raw bytes follow.
    Answer {
        /// The signed head of the answer; it names the body by length and hash.
        answer: Unverified<AuditAnswer>,
        /// How many raw bytes follow.
        body_len: u32,
    },
    /// To what needs no answer.
    Noted,
}

impl InventoryQuery {
    pub(crate) fn check_bounds(&self) -> Result<(), DecodeError> {
        within(self.max > 0 && self.max as usize <= INVENTORY_PAGE_MAX, "max")
    }
}

impl AuditQuery {
    pub(crate) fn check_bounds(&self) -> Result<(), DecodeError> {
        match self {
            Self::Answer { round, draws, .. } => {
                round.check_bounds()?;
                within(draws.len() <= crate::limits::DRAWS_MAX, "draws")?;
                within(draws.is_sorted_by(|one, next| one < next), "draws")
            }
            Self::Commitment { .. } | Self::Countersigned { .. } | Self::Found { .. } => Ok(()),
        }
    }
}

impl AuditReply {
    pub(crate) fn check_bounds(&self) -> Result<(), DecodeError> {
        match self {
            Self::Commitment { declarations, countersignatures, .. } => {
                within(declarations.len() <= DECLARATIONS_MAX, "declarations")?;
                within(countersignatures.len() <= COUNTERSIGNATURES_MAX, "countersignatures")
            }
            Self::Answer { body_len, .. } => within(*body_len <= crate::limits::ANSWER_BODY_MAX, "body_len"),
            Self::Noted => Ok(()),
        }
    }
}
