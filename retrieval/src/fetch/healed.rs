//! Reports of shards that a read had to do without: a block that was wrong, gone or out of reach was rebuilt
//! in line for its reader, and whoever repairs stripes is told which shard to look after.
//!
//! The reader never waits for the repairer. Reports go through a bounded queue; the same shard is reported
//! once while its report waits, and what does not fit is counted and dropped: a repairer that falls behind
//! finds the rest by walking the stripes, as it does without any report.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use holdfast_protocol::record::StripeId;
use holdfast_protocol::{Digest, NodeId};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::ReadFault;

/// Reports that may wait. At one damaged shard a report, more than a busy node's worth; 100 bytes each.
pub const HEAL_REPORTS_MAX: usize = 4096;

/// Why a shard could not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HealCause {
    /// The node answered bytes or proofs that its digest disproves.
    Wrong,
    /// The node says that it does not hold the shard, or has lost it.
    Absent,
    /// The node could not be reached, broke off, or did not answer in time.
    Unreachable,
    /// The node refused to serve it.
    Refused,
}

impl HealCause {
    /// What a fault says about the shard.
    pub(crate) fn of(fault: &ReadFault) -> Self {
        match fault {
            ReadFault::Lied { .. } => Self::Wrong,
            ReadFault::Absent(_) => Self::Absent,
            ReadFault::Refused(_) => Self::Refused,
            ReadFault::Offline { .. } | ReadFault::Timeout { .. } | ReadFault::Broken { .. } => {
                Self::Unreachable
            }
        }
    }

    /// Whether the shard itself must be taken for missing, whatever becomes of the node's connection.
    pub fn shard_is_gone(self) -> bool {
        matches!(self, Self::Wrong | Self::Absent)
    }
}

/// One shard that was done without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HealReport {
    /// Its stripe.
    pub stripe: StripeId,
    /// Its slot.
    pub slot: usize,
    /// The shard's digest by the stripe's row.
    pub digest: Digest,
    /// The node that should have served it.
    pub node: NodeId,
    /// Why it was not used.
    pub cause: HealCause,
}

/// The queue of reports. Cheap to clone; all clones share it. Any number of readers report, and one
/// repairer takes.
#[derive(Clone, Default)]
pub struct HealReports {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    waiting: Notify,
}

#[derive(Default)]
struct State {
    queue: VecDeque<HealReport>,
    queued: HashSet<(StripeId, usize, NodeId, HealCause)>,
    dropped: u64,
}

impl HealReports {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reports a shard; never waits. False when the queue was full and the report was dropped.
    pub fn report(&self, report: HealReport) -> bool {
        let mut state = self.shared.state.lock();
        let key = (report.stripe, report.slot, report.node, report.cause);
        if state.queued.contains(&key) {
            return true;
        }
        if state.queue.len() >= HEAL_REPORTS_MAX {
            state.dropped += 1;
            return false;
        }
        state.queued.insert(key);
        state.queue.push_back(report);
        drop(state);
        self.shared.waiting.notify_one();
        true
    }

    /// The oldest report, if one waits.
    pub fn try_next(&self) -> Option<HealReport> {
        let mut state = self.shared.state.lock();
        let report = state.queue.pop_front()?;
        state.queued.remove(&(report.stripe, report.slot, report.node, report.cause));
        Some(report)
    }

    /// The oldest report; waits for one.
    ///
    /// # Cancel safety
    /// Cancel safe: a report is taken only when it is returned.
    pub async fn next(&self) -> HealReport {
        loop {
            let waiting = self.shared.waiting.notified();
            if let Some(report) = self.try_next() {
                return report;
            }
            waiting.await;
        }
    }

    /// Reports that wait.
    pub fn len(&self) -> usize {
        self.shared.state.lock().queue.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reports dropped because the queue was full.
    pub fn dropped(&self) -> u64 {
        self.shared.state.lock().dropped
    }
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::PublicKey;

    use super::*;

    fn report(slot: usize) -> HealReport {
        HealReport {
            stripe: StripeId([1; 16]),
            slot,
            digest: Digest([2; 32]),
            node: NodeId(PublicKey([3; 32])),
            cause: HealCause::Absent,
        }
    }

    #[tokio::test]
    async fn a_shard_is_reported_once_while_its_report_waits() {
        let reports = HealReports::new();
        assert!(reports.report(report(1)) && reports.report(report(1)) && reports.report(report(2)));
        assert_eq!((reports.next().await, reports.next().await), (report(1), report(2)));
        assert!(reports.is_empty());
        reports.report(report(1));
        assert_eq!(reports.try_next(), Some(report(1)), "and again when it was taken");
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let reports = HealReports::new();
        for slot in 0..HEAL_REPORTS_MAX + 5 {
            reports.report(report(slot));
        }
        assert_eq!((reports.len(), reports.dropped()), (HEAL_REPORTS_MAX, 5));
    }
}
