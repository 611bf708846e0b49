//! `GET /api/v1/retrieval`: what surprise audits showed. It decides nothing about pay.

use serde::{Deserialize, Serialize};

/// Retrieval scores and their evidence.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Retrieval {
    /// Sessions since the start.
    pub sessions: u64,
    /// Those of them under a key of their own.
    pub sessions_fresh_key: u64,
    /// One line per node.
    pub scores: Vec<RetrievalRow>,
    /// Answers other than right ones, the latest first.
    pub evidence: Vec<RetrievalEvidence>,
    /// What nodes' inventories say against our rows.
    #[serde(default)]
    pub reconciled: Vec<ReconciledRow>,
}

/// What the last look at a node's inventory showed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReconciledRow {
    /// The node.
    pub node: String,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Blocks that it lists under our agreement.
    pub listed: u64,
    /// Shards that we expect there.
    pub expected: u64,
    /// Expected and not listed.
    pub missing: u64,
    /// Listed and not expected: claims on their way out, or left over.
    pub extra: u64,
    /// Omissions proved, kept under `DIR/evidence`.
    pub proven: u64,
    /// Why it could not be looked at, if so.
    pub error: Option<String>,
}

/// A node's score.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RetrievalRow {
    /// The node.
    pub node: String,
    /// `(1 + good) / (1 + good + bad)`, evidence halving every 30 days.
    pub score: f64,
    /// Faded right answers.
    pub good: f64,
    /// Faded others, weighed.
    pub bad: f64,
    /// Reads asked.
    pub asked: u64,
    /// Reads answered rightly.
    pub right: u64,
}

/// An answer other than a right one: the same can be asked again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetrievalEvidence {
    /// The node.
    pub node: String,
    /// The block.
    pub digest: String,
    /// First byte.
    pub start: u32,
    /// How many.
    pub len: u32,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// What was wrong.
    pub what: String,
}
