//! Auditors are audited: what several of them together say of one node and epoch, and which of them cannot be right.
//!
//! What is exact needs no majority: a signed answer that verifies was given, whoever says otherwise; a signed proof
//! that does not hold is wrong, whoever passes it. Only silence is a matter of witnesses, and of them the majority
//! counts. An auditor that dissents too often is an outlier, and is left out.

use std::collections::BTreeMap;

use holdfast_protocol::NodeId;
use holdfast_protocol::record::AuditOutcome;

/// Epochs of one auditor before its dissent means anything.
pub const EPOCHS_UNTIL_KNOWN: u32 = 20;
/// An auditor that dissents in more than this fraction of its epochs is an outlier.
pub const DISSENT_MAX: f64 = 0.1;

/// One auditor's word on one node and epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// Who says so.
    pub auditor: NodeId,
    /// What.
    pub outcome: AuditOutcome,
    /// What a third party found by checking that auditor's evidence again; none when it has none to check.
    pub checked: Option<AuditOutcome>,
}

/// What holds, and who said otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consensus {
    /// What holds; unknown without a majority.
    pub outcome: AuditOutcome,
    /// Auditors whose word cannot stand beside it.
    pub dissent: Vec<NodeId>,
}

/// What holds when these are the words. Wrong beats passed: both are exact, and a node that signed one wrong proof has
/// signed it.
pub fn consensus(words: &[Word]) -> Consensus {
    let exact = words.iter().filter_map(|word| word.checked).max();
    let outcome = exact.unwrap_or_else(|| majority(words));
    let dissents = |word: &&Word| match (word.checked, exact) {
        // Its own evidence says something else than it does.
        (Some(checked), _) if checked != word.outcome => true,
        // It has no evidence, and passes or fails what others prove otherwise. Not to have reached the node is no lie.
        (None, Some(exact)) => {
            !matches!(word.outcome, AuditOutcome::Unknown | AuditOutcome::Offline | AuditOutcome::Timeout)
                && word.outcome != exact
        }
        (None, None) => {
            outcome != AuditOutcome::Unknown
                && word.outcome != AuditOutcome::Unknown
                && word.outcome != outcome
        }
        (Some(_), _) => false,
    };
    Consensus { outcome, dissent: words.iter().filter(dissents).map(|word| word.auditor).collect() }
}

fn majority(words: &[Word]) -> AuditOutcome {
    let mut votes: BTreeMap<AuditOutcome, usize> = BTreeMap::new();
    let known = words.iter().filter(|word| word.outcome != AuditOutcome::Unknown);
    let mut count = 0;
    for word in known {
        *votes.entry(word.outcome).or_default() += 1;
        count += 1;
    }
    let winner = votes.into_iter().find(|(_, votes)| votes * 2 > count);
    winner.map_or(AuditOutcome::Unknown, |(outcome, _)| outcome)
}

/// How often each auditor dissented.
#[derive(Clone, Debug, Default)]
pub struct AuditorBook {
    /// Epochs and dissents.
    counts: BTreeMap<NodeId, (u32, u32)>,
}

impl AuditorBook {
    /// Takes in what came of one node and epoch.
    pub fn apply(&mut self, words: &[Word], consensus: &Consensus) {
        for word in words {
            let (epochs, dissents) = self.counts.entry(word.auditor).or_default();
            *epochs += 1;
            *dissents += u32::from(consensus.dissent.contains(&word.auditor));
        }
    }

    /// Whether an auditor's words are left out.
    pub fn is_outlier(&self, auditor: NodeId) -> bool {
        let (epochs, dissents) = self.counts.get(&auditor).copied().unwrap_or_default();
        epochs >= EPOCHS_UNTIL_KNOWN && f64::from(dissents) > DISSENT_MAX * f64::from(epochs)
    }

    /// The words that count.
    pub fn without_outliers(&self, words: &[Word]) -> Vec<Word> {
        words.iter().copied().filter(|word| !self.is_outlier(word.auditor)).collect()
    }
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::PublicKey;

    use super::*;

    fn word(auditor: u8, outcome: AuditOutcome, checked: Option<AuditOutcome>) -> Word {
        Word { auditor: NodeId(PublicKey([auditor; 32])), outcome, checked }
    }

    fn dissenters(consensus: &Consensus) -> Vec<u8> {
        consensus.dissent.iter().map(|auditor| auditor.as_bytes()[0]).collect()
    }

    #[test]
    fn one_checked_answer_outweighs_any_number_of_words() {
        let words = [
            word(1, AuditOutcome::Passed, Some(AuditOutcome::Passed)),
            word(2, AuditOutcome::Absent, None),
            word(3, AuditOutcome::Absent, None),
            word(4, AuditOutcome::Offline, None),
        ];
        let found = consensus(&words);
        assert_eq!((found.outcome, dissenters(&found)), (AuditOutcome::Passed, vec![2, 3]));
    }

    #[test]
    fn who_passes_a_planted_wrong_answer_dissents() {
        let words = [
            word(1, AuditOutcome::Passed, Some(AuditOutcome::Wrong)),
            word(2, AuditOutcome::Wrong, Some(AuditOutcome::Wrong)),
        ];
        let found = consensus(&words);
        assert_eq!((found.outcome, dissenters(&found)), (AuditOutcome::Wrong, vec![1]));
    }

    #[test]
    fn silence_is_a_matter_of_witnesses() {
        let words = [
            word(1, AuditOutcome::Offline, None),
            word(2, AuditOutcome::Offline, None),
            word(3, AuditOutcome::Timeout, None),
            word(4, AuditOutcome::Unknown, None),
        ];
        let found = consensus(&words);
        assert_eq!((found.outcome, dissenters(&found)), (AuditOutcome::Offline, vec![3]));
        let torn = [word(1, AuditOutcome::Offline, None), word(2, AuditOutcome::Timeout, None)];
        assert_eq!(consensus(&torn), Consensus { outcome: AuditOutcome::Unknown, dissent: vec![] });
    }

    #[test]
    fn an_outlier_is_left_out() {
        let mut book = AuditorBook::default();
        for _ in 0..30 {
            let words = [
                word(1, AuditOutcome::Passed, Some(AuditOutcome::Passed)),
                word(2, AuditOutcome::Absent, None),
            ];
            book.apply(&words, &consensus(&words));
        }
        let words = [word(1, AuditOutcome::Offline, None), word(2, AuditOutcome::Absent, None)];
        assert_eq!(book.without_outliers(&words), words[..1]);
    }
}
