//! The lease keeper: what becomes of provisional blocks whose lease has ended.
//!
//! The node asks the namespace, over a connection that one of its delegates has open: are these yours? Live ones are
//! committed, those still provisional get more time, and only those that a signed disclaimer names are let go. Silence
//! keeps a block, for 30 days; a gateway that comes back late finds its blocks.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use holdfast_protocol::NamespaceId;
use holdfast_protocol::limits::{CLAIMS_PER_REQUEST_MAX, CLOCK_SKEW_MAX_MS};
use holdfast_protocol::message::{HasBlocks, HasBlocksReply, Held};
use holdfast_protocol::record::{AgreementId, ClaimRef, SignedAgreement};
use holdfast_protocol::rpc::Peer;
use holdfast_protocol::time::UnixMs;
use parking_lot::Mutex;

use super::Node;
use super::limits::{LEASE_ANSWER_DEADLINE_MS, LEASES_PER_ROUND_MAX};
use crate::metric;
use crate::server::link::Link;
use crate::server::session::Right;
use crate::store::StoreError;

/// What one round did. Counts of claims.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseReport {
    /// The namespace had committed them and the word had not come through.
    pub committed: u64,
    /// The namespace still needs them provisionally.
    pub extended: u64,
    /// The namespace disclaimed them, or was silent for too long.
    pub dropped: u64,
    /// Nobody answered for them; they are kept and asked about again.
    pub silent: u64,
}

/// What a namespace holds of each claim asked, and which of them it disclaims.
type Answer = (Vec<Held>, HashSet<ClaimRef>);

/// Agreements whose ended leases are settled at the same time.
const AGREEMENTS_AT_ONCE: usize = 16;
/// A namespace that did not answer is left alone for this long.
const QUIET_MS: u64 = 10 * 60 * 1000;

/// Namespaces that did not answer lately; as many as there are with agreements.
#[derive(Default)]
pub(crate) struct Quiet(Mutex<HashMap<NamespaceId, UnixMs>>);

impl Quiet {
    fn add(&self, namespace: NamespaceId, now_ms: UnixMs) {
        self.0.lock().insert(namespace, now_ms.saturating_add(QUIET_MS));
    }

    /// The agreements of those that are still left alone.
    fn agreements(&self, all: &[Arc<SignedAgreement>], now_ms: UnixMs) -> HashSet<AgreementId> {
        let mut quiet = self.0.lock();
        quiet.retain(|_, until_ms| *until_ms > now_ms);
        let of_quiet = all.iter().filter(|agreement| quiet.contains_key(&agreement.terms().namespace));
        of_quiet.map(|agreement| agreement.id()).collect()
    }

    /// A connection of it came up: it may be asked again.
    pub(crate) fn is_heard(&self, namespace: NamespaceId) {
        self.0.lock().remove(&namespace);
    }
}

/// What to do with the claims of one question.
#[derive(Debug, Default, PartialEq, Eq)]
struct Verdicts {
    commit: Vec<ClaimRef>,
    extend: Vec<ClaimRef>,
    drop: Vec<ClaimRef>,
    silent: Vec<ClaimRef>,
}

impl Node {
    /// Settles the leases that ended at or before `now_ms`: one round, at most [`LEASES_PER_ROUND_MAX`] claims.
    /// The node does this by itself at the interval of its lease policy.
    pub async fn keep_leases(&self, now_ms: UnixMs) -> LeaseReport {
        let mut report = LeaseReport::default();
        let skipped = self.quiet.agreements(&self.ledger.agreements(), now_ms);
        let ended = match self.store.expired_leases_except(now_ms, LEASES_PER_ROUND_MAX, &skipped).await {
            Ok(ended) => ended,
            Err(error) => {
                tracing::warn!(%error, "ended leases cannot be listed; they are kept");
                return report;
            }
        };
        let mut by_agreement: BTreeMap<AgreementId, Vec<ClaimRef>> = BTreeMap::new();
        for (agreement, claim) in ended {
            by_agreement.entry(agreement).or_default().push(claim);
        }
        // Side by side: a namespace that takes its time holds up no other.
        let settled: Vec<LeaseReport> = futures::stream::iter(by_agreement)
            .map(|(agreement, claims)| self.settle_all(agreement, claims, now_ms))
            .buffer_unordered(AGREEMENTS_AT_ONCE)
            .collect()
            .await;
        for some in settled {
            report.committed += some.committed;
            report.extended += some.extended;
            report.dropped += some.dropped;
            report.silent += some.silent;
        }
        for (outcome, count) in [
            ("committed", report.committed),
            ("extended", report.extended),
            ("dropped", report.dropped),
            ("silent", report.silent),
        ] {
            metrics::counter!(metric::LEASES, "outcome" => outcome).increment(count);
        }
        if report != LeaseReport::default() {
            tracing::info!(?report, "leases settled");
        }
        report
    }

    /// Settles the claims of one agreement, question by question; after one that is not answered no more are asked.
    async fn settle_all(&self, agreement: AgreementId, claims: Vec<ClaimRef>, now_ms: UnixMs) -> LeaseReport {
        let mut report = LeaseReport::default();
        let mut namespace = self.ledger.agreement(&agreement).map(|held| held.terms().namespace);
        for some in claims.chunks(CLAIMS_PER_REQUEST_MAX) {
            if self.is_stopping() {
                break;
            }
            let answer = match namespace {
                Some(namespace) => self.ask(namespace, agreement, some, now_ms).await,
                None => None,
            };
            if answer.is_none()
                && let Some(quiet) = namespace.take()
            {
                self.quiet.add(quiet, now_ms);
            }
            if let Err(error) = self.settle(agreement, some, answer, now_ms, &mut report).await {
                tracing::warn!(%agreement, %error, "ended leases cannot be settled; they are kept");
            }
        }
        report
    }

    async fn settle(
        &self,
        agreement: AgreementId,
        claims: &[ClaimRef],
        answer: Option<Answer>,
        now_ms: UnixMs,
        report: &mut LeaseReport,
    ) -> Result<(), StoreError> {
        let mut verdicts = match answer {
            Some((held, disclaimed)) => judge(claims, &held, &disclaimed),
            None => Verdicts { silent: claims.to_vec(), ..Verdicts::default() },
        };
        self.give_up(agreement, now_ms, &mut verdicts).await;
        report.silent += verdicts.silent.len() as u64;
        if !verdicts.commit.is_empty() {
            self.store.commit(agreement, &verdicts.commit, 0).await?;
            report.committed += verdicts.commit.len() as u64;
        }
        if !verdicts.extend.is_empty() {
            let until_ms = now_ms.saturating_add(self.config.lease.extension_ms);
            self.store.extend_lease(agreement, &verdicts.extend, until_ms).await?;
            report.extended += verdicts.extend.len() as u64;
        }
        if !verdicts.drop.is_empty() {
            self.store.drop_provisional(agreement, &verdicts.drop).await?;
            report.dropped += verdicts.drop.len() as u64;
        }
        Ok(())
    }

    /// Moves those about which the namespace has been silent for too long from silent to dropped. A lease is not
    /// changed by silence, so its end says how long the silence has lasted.
    async fn give_up(&self, agreement: AgreementId, now_ms: UnixMs, verdicts: &mut Verdicts) {
        let Some(since_ms) = now_ms.checked_sub(self.config.lease.silence_ms) else { return };
        let mut kept = Vec::with_capacity(verdicts.silent.len());
        for claim in verdicts.silent.drain(..) {
            match self.store.claim(agreement, claim).await {
                Ok(Some(found)) if found.lease_until_ms <= since_ms => verdicts.drop.push(claim),
                Ok(_) | Err(_) => kept.push(claim),
            }
        }
        verdicts.silent = kept;
    }

    /// Asks the namespace through each connection of a delegate of it until one answers: what it holds of each
    /// claim, and which claims it disclaims.
    async fn ask(
        &self,
        namespace: NamespaceId,
        agreement: AgreementId,
        claims: &[ClaimRef],
        now_ms: UnixMs,
    ) -> Option<Answer> {
        let links: Vec<Arc<Link>> = self.links.lock().iter().filter_map(std::sync::Weak::upgrade).collect();
        for link in links {
            let Some(session) = link.acting_for(namespace, Right::Write, now_ms) else { continue };
            let peer = Peer::answered(link.connection.clone(), session.version);
            let question = peer.has_blocks(HasBlocks { agreement, claims: claims.to_vec() });
            match tokio::time::timeout(Duration::from_millis(LEASE_ANSWER_DEADLINE_MS), question).await {
                Ok(Ok(reply)) if reply.held.len() == claims.len() => {
                    let may_disclaim = link.acting_for(namespace, Right::Delete, now_ms).is_some();
                    let delegate = may_disclaim.then_some(session.peer);
                    let disclaimed = disclaimed(&reply, namespace, delegate, agreement, now_ms);
                    return Some((reply.held, disclaimed));
                }
                Ok(Ok(_)) => tracing::debug!(peer = %session.peer, "a lease answer has another length"),
                Ok(Err(error)) => tracing::debug!(peer = %session.peer, %error, "no lease answer"),
                Err(_) => tracing::debug!(peer = %session.peer, "no lease answer in time"),
            }
        }
        None
    }
}

/// The claims of this agreement that the namespace, or a delegate of it with the right to delete, signed away now.
fn disclaimed(
    reply: &HasBlocksReply,
    namespace: NamespaceId,
    delegate: Option<holdfast_protocol::NodeId>,
    agreement: AgreementId,
    now_ms: UnixMs,
) -> HashSet<ClaimRef> {
    let Some(presented) = &reply.disclaimer else { return HashSet::new() };
    let signed = match presented.verify() {
        Ok(signed) => signed,
        Err(error) => {
            tracing::warn!(%namespace, %error, "a disclaimer is not believed");
            return HashSet::new();
        }
    };
    let by_right = signed.signer() == namespace.key()
        || delegate.is_some_and(|delegate| signed.signer() == delegate.key());
    let record = signed.record();
    // An old one could name blocks that have been wanted since.
    let fresh = record.issued_ms.abs_diff(now_ms) <= CLOCK_SKEW_MAX_MS;
    if !by_right || !fresh || record.agreement != agreement {
        tracing::warn!(%namespace, by_right, fresh, "a disclaimer is not believed");
        return HashSet::new();
    }
    record.claims.iter().copied().collect()
}

/// Decides, claim by claim. `held` is as long as `claims`.
fn judge(claims: &[ClaimRef], held: &[Held], disclaimed: &HashSet<ClaimRef>) -> Verdicts {
    let mut verdicts = Verdicts::default();
    for (claim, held) in claims.iter().zip(held) {
        let list = match held {
            Held::Live => &mut verdicts.commit,
            Held::Provisional => &mut verdicts.extend,
            Held::Absent | Held::Trash | Held::Lost if disclaimed.contains(claim) => &mut verdicts.drop,
            Held::Absent | Held::Trash | Held::Lost => &mut verdicts.silent,
        };
        list.push(*claim);
    }
    verdicts
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::record::{ClaimTag, Disclaimer, Signed};
    use holdfast_protocol::{Digest, NodeId, SigningKey};

    use super::*;

    const NOW: u64 = 1_000_000_000;

    fn key(byte: u8) -> SigningKey {
        SigningKey::from_seed(&[byte; 32]).unwrap()
    }

    fn claim(byte: u8) -> ClaimRef {
        ClaimRef(Digest::of(&[byte]), ClaimTag([byte; 16]))
    }

    fn reply(claims: Vec<ClaimRef>, signer: u8, issued_ms: u64) -> HasBlocksReply {
        let disclaimer = Disclaimer { v: 1, agreement: AgreementId([1; 32]), claims, issued_ms };
        HasBlocksReply { held: vec![], disclaimer: Some(Signed::sign(disclaimer, &key(signer)).to_wire()) }
    }

    fn believed(reply: &HasBlocksReply, agreement: u8, delegate: Option<u8>) -> usize {
        let delegate = delegate.map(|byte| NodeId(key(byte).public()));
        disclaimed(reply, NamespaceId(key(1).public()), delegate, AgreementId([agreement; 32]), NOW).len()
    }

    #[test]
    fn only_a_signed_no_drops() {
        let claims = [claim(1), claim(2), claim(3), claim(4), claim(5)];
        let held = [Held::Live, Held::Provisional, Held::Absent, Held::Absent, Held::Live];
        let disclaimed = HashSet::from([claim(3), claim(5)]);
        let verdicts = judge(&claims, &held, &disclaimed);
        // A claim that is both live and disclaimed is kept: keeping is the error that costs least.
        assert_eq!(verdicts.commit, vec![claim(1), claim(5)]);
        assert_eq!(verdicts.extend, vec![claim(2)]);
        assert_eq!(verdicts.drop, vec![claim(3)]);
        assert_eq!(verdicts.silent, vec![claim(4)]);
    }

    #[test]
    fn disclaimers_of_others_old_ones_and_of_other_agreements_are_not_believed() {
        let ours = reply(vec![claim(1), claim(2)], 1, NOW);
        assert_eq!(believed(&ours, 1, None), 2);
        assert_eq!(believed(&ours, 2, None), 0);
        let delegates = reply(vec![claim(1)], 2, NOW);
        assert_eq!(believed(&delegates, 1, Some(2)), 1);
        assert_eq!(believed(&delegates, 1, None), 0);
        let old = reply(vec![claim(1)], 1, NOW - CLOCK_SKEW_MAX_MS - 1);
        assert_eq!(believed(&old, 1, None), 0);
    }
}
