//! Starting again: the auditor's state from its own log.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_protocol::SigningKey;
use holdfast_protocol::record::{AuditOutcome, RecordId, SignatureError};
use holdfast_protocol::rpc::ShownCommitment;

use super::epoch::EpochFile;
use super::{Auditor, NODES_MAX, RoundError, declared};
use crate::beacon::Beacon;
use crate::inventory::Sum;
use crate::log::LogEntry;
use crate::policy::AuditPolicy;

impl Auditor {
    /// An auditor whose past is `entries`, which it wrote itself: what it countersigned stays countersigned, what was
    /// due stays due.
    ///
    /// # Errors
    /// [`ReplayError`] when the log is not this auditor's, or is damaged.
    pub fn replay(
        key: Arc<SigningKey>,
        origin: String,
        policy: AuditPolicy,
        beacon: Arc<dyn Beacon>,
        entries: impl IntoIterator<Item = LogEntry>,
    ) -> Result<Self, ReplayError> {
        let mut auditor = Self::blank(key, origin, policy, beacon);
        let mut is_first = true;
        for entry in entries {
            auditor.logged += 1;
            match entry {
                LogEntry::Opened(opening) => {
                    let opening = opening.verify_by(auditor.me.key())?.into_record();
                    if opening.policy != auditor.policy || opening.origin != auditor.origin {
                        return Err(ReplayError::Rules);
                    }
                    is_first = false;
                    continue;
                }
                _ if is_first => return Err(ReplayError::Opening),
                entry => auditor.relive(entry)?,
            }
        }
        if is_first { Err(ReplayError::Opening) } else { Ok(auditor) }
    }

    fn relive(&mut self, entry: LogEntry) -> Result<(), ReplayError> {
        match entry {
            LogEntry::Opened(_) | LogEntry::Answered(_) | LogEntry::Void(_) => {}
            LogEntry::Round { epoch, round } => {
                let randomness = self.beacon.verify(&round).map_err(RoundError::from)?;
                self.keep_round(epoch, round, randomness);
            }
            LogEntry::Equivocated { one, .. } => self.book.equivocated(one.verify()?.record().node),
            LogEntry::Committed { commitment, declarations, countersignature } => {
                let signed = commitment.verify()?;
                let record = signed.record();
                let shown = ShownCommitment { commitment, declarations, countersignatures: Vec::new() };
                let (declared, _) =
                    declared(record.node, record.epoch, &shown).unwrap_or((BTreeMap::new(), Vec::new()));
                let countersignature = countersignature.verify_by(self.me.key())?;
                let root = Sum { hash: record.root, bytes: record.bytes };
                let draws = if record.bytes == 0 { 0 } else { self.policy.chunks };
                let id = RecordId(signed.id());
                let file = EpochFile::new(id, root, shown.commitment, countersignature, declared, draws);
                if self.nodes.len() < NODES_MAX || self.nodes.contains_key(&record.node) {
                    self.nodes.entry(record.node).or_default().epochs.insert(record.epoch, file);
                }
            }
            LogEntry::Found(verdict) => {
                let signed = verdict.verify_by(self.me.key())?;
                let verdict = signed.record();
                self.book.apply(RecordId(signed.id()), verdict);
                // Verdicts that settle late chunks come after an epoch was closed; only silence or the end of time
                // closes it, and closing goes forwards.
                if matches!(
                    verdict.outcome,
                    AuditOutcome::Offline | AuditOutcome::Timeout | AuditOutcome::Unknown
                ) && self.closed.is_none_or(|closed| verdict.epoch > closed)
                {
                    self.closed = Some(verdict.epoch);
                }
                let node = self.nodes.entry(verdict.node).or_default();
                if let Some(file) = node.epochs.get_mut(&verdict.epoch) {
                    file.draws.clone_from(&verdict.draws);
                    file.answer = verdict.answer;
                    file.answered |= verdict.answer.is_some();
                    file.found = true;
                    let is_over = self.closed.is_some_and(|closed| verdict.epoch < closed);
                    if file.is_settled() && is_over {
                        node.epochs.remove(&verdict.epoch);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Why a log is not the auditor's past.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// It does not begin as a log does.
    #[error("the log does not begin with its opening")]
    Opening,
    /// It was made under other rules.
    #[error("the log was made under other rules or another name; start a new log in another directory")]
    Rules,
    /// A record in it is not what it should be.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// A round in it does not hold.
    #[error(transparent)]
    Round(#[from] RoundError),
}

impl ReplayError {
    /// Never.
    pub const fn is_retryable(&self) -> bool {
        false
    }
}
