//! All nodes' scores as a function of verdicts alone, in their order: the auditor that lives through them, the one
//! that starts again, and the stranger who reads the log reach the same numbers.

use std::collections::BTreeMap;

use holdfast_protocol::NodeId;
use holdfast_protocol::limits::DRAWS_MAX;
use holdfast_protocol::record::{AuditOutcome, Epoch, RecordId, StandingState, Verdict};

use super::{Scores, pay};

/// The newest results of a node that are kept for pictures: two days of hours.
pub const HISTORY_MAX: usize = 48;

const _: () = assert!(DRAWS_MAX <= 64, "settled draws are kept as bits of a u64");

/// What came of one epoch, for pictures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EpochResult {
    /// Which.
    pub epoch: Epoch,
    /// As a whole.
    pub outcome: AuditOutcome,
    /// Draws that passed.
    pub passed: u32,
    /// Draws.
    pub draws: u32,
    /// Share of pay; none while withheld.
    pub pay: Option<f64>,
}

/// What is known of one node.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// The scores.
    pub scores: Scores,
    /// Epochs of which something may still change: which draws are settled.
    open: BTreeMap<Epoch, u64>,
    /// The newest results, oldest first; at most [`HISTORY_MAX`].
    pub history: Vec<EpochResult>,
    /// The verdict that changed a score last, and its epoch.
    pub evidence: Option<(RecordId, Epoch)>,
    /// The newest verdict in which something was wrong, absent, late or offline.
    pub last_miss: Option<(RecordId, Epoch, AuditOutcome)>,
    /// Epochs judged, and of these answered in time.
    pub epochs: u64,
    /// See above.
    pub answered: u64,
}

/// The accounts of all nodes.
#[derive(Clone, Debug)]
pub struct ScoreBook {
    accounts: BTreeMap<NodeId, Account>,
    epoch_ms: u64,
    /// Epochs after which nothing is due any more.
    epochs_due: u64,
}

impl ScoreBook {
    /// An empty book of a network with epochs of this length, of which so many can be due at once.
    pub const fn new(epoch_ms: u64, epochs_due: u64) -> Self {
        Self { accounts: BTreeMap::new(), epoch_ms, epochs_due }
    }

    /// Takes in a verdict. The first one of an epoch decides whether it was answered; each draw counts once, when it
    /// is settled.
    pub fn apply(&mut self, id: RecordId, verdict: &Verdict) {
        let account = self.accounts.entry(verdict.node).or_default();
        let at_ms = verdict.epoch.saturating_mul(self.epoch_ms);
        let oldest = verdict.epoch.saturating_sub(self.epochs_due);
        account.open = account.open.split_off(&oldest);
        let before = (account.scores.data(), account.scores.online(), account.scores.state());
        let is_first = !account.open.contains_key(&verdict.epoch);
        if is_first && verdict.outcome != AuditOutcome::Unknown {
            let answered = !matches!(verdict.outcome, AuditOutcome::Offline | AuditOutcome::Timeout);
            account.scores.epoch(at_ms, answered);
            account.epochs += 1;
            account.answered += u64::from(answered);
        }
        let settled = account.open.entry(verdict.epoch).or_default();
        let mut fresh = Vec::new();
        for draw in &verdict.draws {
            let bit = 1u64 << (draw.draw % 64);
            if draw.outcome != AuditOutcome::Pending && *settled & bit == 0 {
                *settled |= bit;
                fresh.push(draw.outcome);
            }
        }
        if !fresh.is_empty() {
            account.scores.draws(at_ms, fresh);
        }
        let after = (account.scores.data(), account.scores.online(), account.scores.state());
        if before != after || account.evidence.is_none() {
            account.evidence = Some((id, verdict.epoch));
        }
        if verdict.outcome >= AuditOutcome::Offline {
            account.last_miss = Some((id, verdict.epoch, verdict.outcome));
        }
        account.remember(verdict);
    }

    /// A node committed twice to one epoch.
    pub fn equivocated(&mut self, node: NodeId) {
        self.accounts.entry(node).or_default().scores.equivocated();
    }

    /// What is known of `node`.
    pub fn account(&self, node: NodeId) -> Option<&Account> {
        self.accounts.get(&node)
    }

    /// Every node's account, by key.
    pub fn accounts(&self) -> impl Iterator<Item = (NodeId, &Account)> {
        self.accounts.iter().map(|(node, account)| (*node, account))
    }

    /// How many nodes stand so.
    pub fn count(&self, state: StandingState) -> usize {
        self.accounts.values().filter(|account| account.scores.state() == state).count()
    }
}

impl Account {
    fn remember(&mut self, verdict: &Verdict) {
        let outcomes: Vec<AuditOutcome> = verdict.draws.iter().map(|draw| draw.outcome).collect();
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let result = EpochResult {
            epoch: verdict.epoch,
            outcome: verdict.outcome,
            passed: count(verdict.count(AuditOutcome::Passed)),
            draws: count(outcomes.len()),
            pay: pay(&outcomes),
        };
        match self.history.binary_search_by_key(&verdict.epoch, |result| result.epoch) {
            Ok(at) => self.history[at] = result,
            Err(at) => self.history.insert(at, result),
        }
        if self.history.len() > HISTORY_MAX {
            self.history.remove(0);
        }
    }
}
