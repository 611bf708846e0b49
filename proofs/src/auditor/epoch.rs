//! What an auditor keeps of a node: its epochs of which something is due.

use std::collections::BTreeMap;

use holdfast_protocol::Digest;
use holdfast_protocol::record::{
    AuditOutcome, Commitment, Countersignature, DeclaredAs, DrawVerdict, Epoch, RecordId, Signed, Unverified,
};

use crate::inventory::Sum;

/// How an attempt to ask a node failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissKind {
    /// It could not be reached.
    Offline,
    /// It was reached, and no usable answer came in time.
    Timeout,
    /// The auditor did not get to ask, for a reason of its own.
    Unknown,
}

impl MissKind {
    pub(super) const fn outcome(self) -> AuditOutcome {
        match self {
            Self::Offline => AuditOutcome::Offline,
            Self::Timeout => AuditOutcome::Timeout,
            Self::Unknown => AuditOutcome::Unknown,
        }
    }
}

/// One node.
#[derive(Debug, Default)]
pub(super) struct NodeFile {
    pub(super) epochs: BTreeMap<Epoch, EpochFile>,
    pub(super) last_miss: Option<MissKind>,
}

/// One epoch of one node.
#[derive(Debug)]
pub(super) struct EpochFile {
    pub(super) commitment: RecordId,
    pub(super) root: Sum,
    /// Kept as evidence, should another one for the same epoch turn up.
    pub(super) shown: Unverified<Commitment>,
    pub(super) countersignature: Signed<Countersignature>,
    pub(super) declared: BTreeMap<Digest, DeclaredAs>,
    pub(super) draws: Vec<DrawVerdict>,
    pub(super) answer: Option<RecordId>,
    pub(super) answered: bool,
    /// Whether a verdict was said.
    pub(super) found: bool,
}

impl EpochFile {
    pub(super) fn new(
        commitment: RecordId,
        root: Sum,
        shown: Unverified<Commitment>,
        countersignature: Signed<Countersignature>,
        declared: BTreeMap<Digest, DeclaredAs>,
        draws: u32,
    ) -> Self {
        let pending =
            |draw| DrawVerdict { draw, digest: None, outcome: AuditOutcome::Pending, why: String::new() };
        let draws: Vec<DrawVerdict> = (0..draws).map(pending).collect();
        // A node that claims nothing has nothing to answer.
        let answered = draws.is_empty();
        Self {
            commitment,
            root,
            shown,
            countersignature,
            declared,
            draws,
            answer: None,
            answered,
            found: false,
        }
    }

    pub(super) fn due(&self) -> Vec<u32> {
        self.draws.iter().filter(|draw| draw.outcome == AuditOutcome::Pending).map(|draw| draw.draw).collect()
    }

    pub(super) fn is_settled(&self) -> bool {
        self.draws.iter().all(|draw| draw.outcome != AuditOutcome::Pending)
    }

    pub(super) fn give_up(&mut self) {
        for draw in self.draws.iter_mut().filter(|draw| draw.outcome == AuditOutcome::Pending) {
            draw.outcome = AuditOutcome::Absent;
        }
    }
}
