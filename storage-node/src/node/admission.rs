//! Which terms a node countersigns. Pure: terms, rules and present agreements in, yes or a refusal out.

use std::sync::Arc;

use holdfast_protocol::limits::CLOCK_SKEW_MAX_MS;
use holdfast_protocol::message::{Refusal, RefusalReason};
use holdfast_protocol::record::{Agreement, Prices, SignedAgreement};
use holdfast_protocol::{NodeId, OperatorId};

use super::config::Admission;
use super::limits::{AGREEMENTS_MAX, AGREEMENTS_PER_NAMESPACE_MAX};

/// The node's side of an agreement.
pub(crate) struct Offer<'a> {
    pub(crate) node: NodeId,
    pub(crate) operator: OperatorId,
    pub(crate) capacity_bytes: u64,
    pub(crate) admit: &'a Admission,
    pub(crate) prices: &'a Prices,
}

/// Whether the node takes these terms beside the agreements it has.
///
/// Capacity is promised per moment, not per paper: a renewal that begins when its predecessor ends takes
/// nothing from anybody, while two agreements that run at once need room for both.
pub(crate) fn decide(
    offer: &Offer<'_>,
    terms: &Agreement,
    present: &[Arc<SignedAgreement>],
    now_ms: u64,
) -> Result<(), Refusal> {
    if terms.node != offer.node {
        return refuse(RefusalReason::Forbidden, format!("the terms name another node, {}", terms.node));
    }
    if terms.operator != offer.operator {
        return refuse(
            RefusalReason::Forbidden,
            format!("the terms name another operator than this node's, {}", offer.operator),
        );
    }
    if !offer.admit.admits(terms.namespace) {
        return refuse(RefusalReason::Forbidden, "this node's operator has not admitted the namespace");
    }
    if terms.end_ms <= now_ms {
        return refuse(
            RefusalReason::Expired,
            format!("the terms ended at {} ms; it is {now_ms} ms here", terms.end_ms),
        );
    }
    if terms.capacity_bytes == 0 {
        return refuse(RefusalReason::Malformed, "the terms are for 0 bytes");
    }
    check_prices(offer.prices, &terms.prices)?;
    check_counts(terms, present, now_ms)?;
    check_capacity(offer.capacity_bytes, terms, present)
}

/// Whether blocks may be put under these terms now. Start times get the tolerance that all signed times get.
pub(crate) fn in_term(terms: &Agreement, now_ms: u64) -> bool {
    terms.start_ms <= now_ms.saturating_add(CLOCK_SKEW_MAX_MS) && now_ms < terms.end_ms
}

fn check_prices(asked: &Prices, offered: &Prices) -> Result<(), Refusal> {
    let free = asked.storage_micro_per_tb_month == 0 && asked.egress_micro_per_tb == 0;
    if free
        || (asked.currency == offered.currency
            && offered.storage_micro_per_tb_month >= asked.storage_micro_per_tb_month
            && offered.egress_micro_per_tb >= asked.egress_micro_per_tb)
    {
        return Ok(());
    }
    refuse(
        RefusalReason::Forbidden,
        format!(
            "the terms pay less than the node asks: {} per TB-month and {} per TB served, in millionths of {}",
            asked.storage_micro_per_tb_month, asked.egress_micro_per_tb, asked.currency
        ),
    )
}

fn check_counts(terms: &Agreement, present: &[Arc<SignedAgreement>], now_ms: u64) -> Result<(), Refusal> {
    if present.len() >= AGREEMENTS_MAX {
        return refuse(RefusalReason::Busy, format!("the node keeps {AGREEMENTS_MAX} agreements at most"));
    }
    let running = present
        .iter()
        .filter(|held| held.terms().namespace == terms.namespace && held.terms().end_ms > now_ms)
        .count();
    if running >= AGREEMENTS_PER_NAMESPACE_MAX {
        return refuse(
            RefusalReason::TooLarge,
            format!("the namespace has {running} running agreements here already"),
        );
    }
    Ok(())
}

fn check_capacity(
    capacity_bytes: u64,
    terms: &Agreement,
    present: &[Arc<SignedAgreement>],
) -> Result<(), Refusal> {
    // The sum changes only where an agreement starts, so its peak is at one of these moments.
    let starts = present.iter().map(|held| held.terms().start_ms);
    let peak = std::iter::once(terms.start_ms)
        .chain(starts.filter(|start| terms.start_ms < *start && *start < terms.end_ms))
        .map(|moment| promised_at(present, moment))
        .max()
        .unwrap_or(0);
    if peak.saturating_add(terms.capacity_bytes) <= capacity_bytes {
        return Ok(());
    }
    refuse(
        RefusalReason::AgreementFull,
        format!(
            "the node offers {capacity_bytes} bytes and has promised {peak} of them; {} more do not fit",
            terms.capacity_bytes
        ),
    )
}

fn promised_at(present: &[Arc<SignedAgreement>], moment_ms: u64) -> u64 {
    present
        .iter()
        .map(|held| held.terms())
        .filter(|terms| terms.start_ms <= moment_ms && moment_ms < terms.end_ms)
        .fold(0u64, |sum, terms| sum.saturating_add(terms.capacity_bytes))
}

fn refuse(reason: RefusalReason, message: impl Into<String>) -> Result<(), Refusal> {
    Err(Refusal::new(reason, message))
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::record::Signed;
    use holdfast_protocol::{NamespaceId, SigningKey};

    use super::*;

    struct World {
        node: SigningKey,
        namespace: SigningKey,
    }

    impl World {
        fn new() -> Self {
            let key = |byte| SigningKey::from_seed(&[byte; 32]).unwrap();
            Self { node: key(1), namespace: key(2) }
        }

        fn terms(&self, capacity_bytes: u64, start_ms: u64, end_ms: u64) -> Agreement {
            Agreement {
                v: 1,
                namespace: NamespaceId(self.namespace.public()),
                node: NodeId(self.node.public()),
                operator: OperatorId(self.node.public()),
                capacity_bytes,
                prices: Prices::default(),
                start_ms,
                end_ms,
                notice_ms: 0,
                nonce: [0; 16],
            }
        }

        fn signed(&self, terms: Agreement) -> Arc<SignedAgreement> {
            let by_namespace = Signed::sign(terms, &self.namespace);
            Arc::new(SignedAgreement::countersign(by_namespace, &self.node).unwrap())
        }

        fn decide(&self, terms: &Agreement, present: &[Arc<SignedAgreement>]) -> Result<(), RefusalReason> {
            let offer = Offer {
                node: NodeId(self.node.public()),
                operator: OperatorId(self.node.public()),
                capacity_bytes: 100,
                admit: &Admission::Any,
                prices: &Prices::default(),
            };
            decide(&offer, terms, present, 1_000).map_err(|refusal| refusal.reason)
        }
    }

    #[test]
    fn agreements_that_run_at_once_share_the_capacity() {
        let world = World::new();
        let held = [world.signed(world.terms(60, 0, 10_000))];
        assert_eq!(world.decide(&world.terms(40, 0, 20_000), &held), Ok(()));
        assert_eq!(world.decide(&world.terms(41, 0, 20_000), &held), Err(RefusalReason::AgreementFull));
        assert_eq!(world.decide(&world.terms(41, 5_000, 6_000), &held), Err(RefusalReason::AgreementFull));
    }

    #[test]
    fn a_renewal_that_follows_takes_no_room() {
        let world = World::new();
        let held = [world.signed(world.terms(100, 0, 10_000)), world.signed(world.terms(30, 15_000, 16_000))];
        assert_eq!(world.decide(&world.terms(100, 10_000, 15_000), &held), Ok(()));
        // The peak lies in the middle of the new term, not at its start.
        assert_eq!(world.decide(&world.terms(71, 10_000, 20_000), &held), Err(RefusalReason::AgreementFull));
        assert_eq!(world.decide(&world.terms(70, 10_000, 20_000), &held), Ok(()));
    }

    #[test]
    fn terms_of_others_and_of_the_past_are_refused() {
        let world = World::new();
        let mut other_node = world.terms(1, 0, 10_000);
        other_node.node = NodeId(world.namespace.public());
        assert_eq!(world.decide(&other_node, &[]), Err(RefusalReason::Forbidden));
        let mut other_operator = world.terms(1, 0, 10_000);
        other_operator.operator = OperatorId(world.namespace.public());
        assert_eq!(world.decide(&other_operator, &[]), Err(RefusalReason::Forbidden));
        assert_eq!(world.decide(&world.terms(1, 0, 1_000), &[]), Err(RefusalReason::Expired));
        assert_eq!(world.decide(&world.terms(0, 0, 10_000), &[]), Err(RefusalReason::Malformed));
    }

    #[test]
    fn a_namespace_has_a_bounded_number_of_agreements() {
        let world = World::new();
        let held: Vec<_> = (0..AGREEMENTS_PER_NAMESPACE_MAX)
            .map(|index| world.signed(world.terms(1, 0, 10_000 + index as u64)))
            .collect();
        assert_eq!(world.decide(&world.terms(1, 0, 10_000), &held), Err(RefusalReason::TooLarge));
    }
}
