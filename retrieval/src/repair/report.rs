//! What a run has done so far, and in the end.

use holdfast_protocol::record::StripeId;
use parking_lot::Mutex;
use serde::{Serialize, Serializer};

use super::plan::Damage;

/// Stripes in trouble that a report lists one by one.
const TROUBLES_MAX: usize = 100;

/// Figures of a run under way. Shards and bytes count what is placed and proved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RepairProgress {
    /// Stripes looked at.
    pub stripes_scanned: u64,
    /// Stripes that missed shards when the run began.
    pub stripes_damaged: u64,
    /// Stripes that are whole again.
    pub stripes_repaired: u64,
    /// Shards that have a node again.
    pub shards_rebuilt: u64,
    /// Verified bytes read from nodes.
    pub bytes_read: u64,
    /// Bytes put on nodes under receipts.
    pub bytes_written: u64,
    /// Stripes not yet attended to.
    pub remaining: u64,
    /// Stripes that wait for more nodes.
    pub waiting: u64,
}

/// What a whole run did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RepairReport {
    /// The figures at the end.
    #[serde(flatten)]
    pub progress: RepairProgress,
    /// Nodes in further failure domains without which the waiting stripes cannot be whole; 0 when none wait.
    pub waiting_for_nodes: u64,
    /// Stripes of which fewer than k shards could be read. Nodes that come back may bring them back.
    pub stripes_unreadable: u64,
    /// Stripes that failed for another reason.
    pub stripes_failed: u64,
    /// The first hundred unreadable or failed stripes.
    pub troubles: Vec<StripeTrouble>,
}

impl RepairReport {
    /// Whether every stripe is whole.
    pub fn is_whole(&self) -> bool {
        self.progress.waiting == 0 && self.stripes_unreadable == 0 && self.stripes_failed == 0
    }
}

/// One stripe that could not be repaired.
#[derive(Clone, Debug, Serialize)]
pub struct StripeTrouble {
    /// Which.
    #[serde(serialize_with = "as_text")]
    pub stripe: StripeId,
    /// Why, in words.
    pub why: String,
}

fn as_text<S: Serializer>(value: &impl std::fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// How one stripe's repair ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) shards_rebuilt: u64,
    pub(crate) bytes_read: u64,
    pub(crate) bytes_written: u64,
    pub(crate) end: End,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum End {
    /// Every shard has a node, or the stripe is no longer kept.
    #[default]
    Whole,
    /// This many shards find no node.
    Waiting { nodes: u64 },
    /// Too few shards can be read.
    Unreadable { why: String },
    /// Anything else.
    Failed { why: String },
}

/// Collects outcomes.
#[derive(Default)]
pub(crate) struct Tally(Mutex<RepairReport>);

impl Tally {
    pub(crate) fn surveyed(&self, damage: &Damage) {
        let progress = &mut self.0.lock().progress;
        progress.stripes_scanned += 1;
        if !damage.is_none() {
            progress.stripes_damaged += 1;
            progress.remaining += 1;
        }
    }

    pub(crate) fn add(&self, stripe: StripeId, outcome: Outcome) {
        let mut report = self.0.lock();
        let progress = &mut report.progress;
        progress.shards_rebuilt += outcome.shards_rebuilt;
        progress.bytes_read += outcome.bytes_read;
        progress.bytes_written += outcome.bytes_written;
        progress.remaining = progress.remaining.saturating_sub(1);
        let why = match outcome.end {
            End::Whole => {
                progress.stripes_repaired += 1;
                return;
            }
            End::Waiting { nodes } => {
                progress.waiting += 1;
                report.waiting_for_nodes = report.waiting_for_nodes.max(nodes);
                return;
            }
            End::Unreadable { why } => {
                report.stripes_unreadable += 1;
                why
            }
            End::Failed { why } => {
                report.stripes_failed += 1;
                why
            }
        };
        if report.troubles.len() < TROUBLES_MAX {
            report.troubles.push(StripeTrouble { stripe, why });
        }
    }

    pub(crate) fn scanned(&self) -> u64 {
        self.0.lock().progress.stripes_scanned
    }

    pub(crate) fn progress(&self) -> RepairProgress {
        self.0.lock().progress
    }

    pub(crate) fn report(&self) -> RepairReport {
        self.0.lock().clone()
    }
}
