//! The rules of a network's audit: how long an epoch is, when it draws, how much, and from which beacon. Pure
//! arithmetic on times.

use holdfast_protocol::limits::DRAWS_MAX;
use holdfast_protocol::record::Epoch;
use serde::{Deserialize, Serialize};

use crate::beacon::BeaconSpec;

/// The rules. Every party of a network has the same; a log names those that it was made under.
///
/// ```text
/// start of epoch      + commit_ms             + answer_ms                  end, + sticky_ms
///       | commit, countersign | draw and answer      | the rest of the epoch    | absent
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditPolicy {
    /// How long an epoch is.
    pub epoch_ms: u64,
    /// How long after its start the beacon draws: commitments must be countersigned before.
    pub commit_ms: u64,
    /// How long after the draw an answer still counts as in time.
    pub answer_ms: u64,
    /// How long a drawn chunk stays due; afterwards it is counted absent.
    pub sticky_ms: u64,
    /// Chunks drawn from each node in each epoch.
    pub chunks: u32,
    /// Auditors who must have countersigned a commitment for it to count.
    pub quorum: u32,
    /// Who draws.
    pub beacon: BeaconSpec,
}

impl AuditPolicy {
    /// 20 chunks an hour by drand's quicknet: 480 a day.
    pub fn hourly() -> Self {
        Self::every(3_600_000, BeaconSpec::quicknet())
    }

    /// Epochs of any length: a sixth of each to commit, a half to answer, 72 epochs until a chunk counts as absent.
    pub fn every(epoch_ms: u64, beacon: BeaconSpec) -> Self {
        Self {
            epoch_ms,
            commit_ms: epoch_ms / 6,
            answer_ms: epoch_ms / 2,
            sticky_ms: 72 * epoch_ms,
            chunks: 20,
            quorum: 1,
            beacon,
        }
    }

    /// Whether the times fit each other.
    ///
    /// # Errors
    /// [`PolicyError`] that names what does not.
    pub fn check(&self) -> Result<(), PolicyError> {
        if self.epoch_ms < 100 || self.epoch_ms > 30 * 24 * 3_600_000 {
            return Err(PolicyError::Epoch { epoch_ms: self.epoch_ms });
        }
        if self.commit_ms == 0 || self.answer_ms == 0 || self.commit_ms + self.answer_ms > self.epoch_ms {
            return Err(PolicyError::Windows {
                epoch_ms: self.epoch_ms,
                commit_ms: self.commit_ms,
                answer_ms: self.answer_ms,
            });
        }
        if self.sticky_ms < self.epoch_ms || self.sticky_ms > 365 * 24 * 3_600_000 {
            return Err(PolicyError::Sticky { sticky_ms: self.sticky_ms });
        }
        if self.chunks == 0 || self.chunks as usize > DRAWS_MAX {
            return Err(PolicyError::Chunks { chunks: self.chunks });
        }
        Ok(())
    }

    /// The epoch of a time.
    pub const fn epoch_at(&self, ms: u64) -> Epoch {
        ms / self.epoch_ms
    }

    /// When an epoch begins.
    pub const fn start_of(&self, epoch: Epoch) -> u64 {
        epoch.saturating_mul(self.epoch_ms)
    }

    /// When the beacon draws: whatever is said from then on comes too late.
    pub const fn draw_of(&self, epoch: Epoch) -> u64 {
        self.start_of(epoch).saturating_add(self.commit_ms)
    }

    /// Until when an answer is in time.
    pub const fn answer_by(&self, epoch: Epoch) -> u64 {
        self.draw_of(epoch).saturating_add(self.answer_ms)
    }

    /// When what is still unanswered counts as absent.
    pub const fn absent_from(&self, epoch: Epoch) -> u64 {
        self.draw_of(epoch).saturating_add(self.sticky_ms)
    }

    /// Epochs whose chunks can be due at once, the running one included.
    pub const fn epochs_due(&self) -> u64 {
        self.sticky_ms / self.epoch_ms + 2
    }
}

/// Why rules make no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// Too short or too long.
    #[error("an epoch of {epoch_ms} ms: it must have 100 ms to 30 days")]
    Epoch {
        /// The epoch.
        epoch_ms: u64,
    },
    /// Committing and answering do not fit.
    #[error("{commit_ms} ms to commit and {answer_ms} ms to answer do not fit an epoch of {epoch_ms} ms")]
    Windows {
        /// The epoch.
        epoch_ms: u64,
        /// To commit.
        commit_ms: u64,
        /// To answer.
        answer_ms: u64,
    },
    /// Too short or too long.
    #[error("chunks due for {sticky_ms} ms: it must be an epoch to a year")]
    Sticky {
        /// How long.
        sticky_ms: u64,
    },
    /// None, or more than an answer holds.
    #[error("{chunks} chunks an epoch: it must be 1 to 64")]
    Chunks {
        /// How many.
        chunks: u32,
    },
}

impl PolicyError {
    /// Never.
    pub const fn is_retryable(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_an_epoch_follow_each_other() {
        let policy = AuditPolicy::hourly();
        policy.check().unwrap();
        let epoch = policy.epoch_at(1_780_000_000_000);
        let times = [
            policy.start_of(epoch),
            policy.draw_of(epoch),
            policy.answer_by(epoch),
            policy.start_of(epoch + 1),
            policy.absent_from(epoch),
        ];
        assert!(times.is_sorted_by(|one, next| one < next), "{times:?}");
        assert_eq!(policy.epoch_at(policy.start_of(epoch)), epoch);
        assert_eq!(policy.epoch_at(policy.start_of(epoch + 1) - 1), epoch);
    }

    #[test]
    fn rules_that_do_not_fit_are_named() {
        let fine = AuditPolicy::every(2_000, BeaconSpec::quicknet());
        fine.check().unwrap();
        let refused = |change: &dyn Fn(&mut AuditPolicy)| {
            let mut policy = fine.clone();
            change(&mut policy);
            policy.check().unwrap_err()
        };
        assert!(matches!(refused(&|policy| policy.epoch_ms = 0), PolicyError::Epoch { .. }));
        assert!(matches!(refused(&|policy| policy.commit_ms = 0), PolicyError::Windows { .. }));
        assert!(matches!(refused(&|policy| policy.answer_ms = 1_900), PolicyError::Windows { .. }));
        assert!(matches!(refused(&|policy| policy.sticky_ms = 10), PolicyError::Sticky { .. }));
        assert!(matches!(refused(&|policy| policy.chunks = 65), PolicyError::Chunks { .. }));
    }
}
