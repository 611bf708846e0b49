//! Agree: countersigns terms that a namespace signed.

use std::sync::Arc;

use holdfast_protocol::message::{Agree, Refusal, RefusalReason, Reply};
use holdfast_protocol::record::{Agreement, AgreementId, Signed, SignedAgreement};

use super::link::Link;
use super::refusal;
use super::session::{Right, Session, refuse_signature};
use super::stream::Answer;
use crate::metric;
use crate::node::Node;
use crate::node::admission::{self, Offer};
use crate::node::ledger::LedgerError;

/// Takes the terms if they are admissible; the same terms again get the same agreement.
pub(crate) async fn agree(
    node: &Arc<Node>,
    link: &Link,
    session: &Session,
    request: &Agree,
) -> Result<Answer, Refusal> {
    let now_ms = node.now_ms();
    let authority = session.require(Right::Delegate, now_ms)?;
    let terms =
        request.terms.verify_by(authority.namespace.key()).map_err(|error| refuse_signature(&error))?;
    if terms.record().namespace != authority.namespace {
        return Err(Refusal::new(
            RefusalReason::Forbidden,
            "the terms name another namespace than the session",
        ));
    }
    if let Some(held) = node.ledger.agreement(&AgreementId(terms.id())) {
        link.promote(node);
        return Ok(Reply::Agree(held.to_wire()).into());
    }
    let signed = {
        let node = node.clone();
        refusal::blocking(move || countersign(&node, terms, now_ms)).await??
    };
    link.promote(node);
    tracing::info!(
        namespace = %authority.namespace, agreement = %signed.id(), end_ms = signed.terms().end_ms,
        capacity_bytes = signed.terms().capacity_bytes, "agreed"
    );
    metrics::gauge!(metric::AGREEMENTS)
        .set(f64::from(u32::try_from(node.ledger.running(now_ms)).unwrap_or(u32::MAX)));
    Ok(Reply::Agree(signed.to_wire()).into())
}

fn countersign(node: &Node, terms: Signed<Agreement>, now_ms: u64) -> Result<Arc<SignedAgreement>, Refusal> {
    node.deny.namespace(terms.record().namespace)?;
    if let Some(why) = node.mode().refusal() {
        return Err(Refusal::new(RefusalReason::Stopping, why));
    }
    let admitted = node.admission();
    let decided = node.ledger.agree::<Undecided>(|present| {
        // Another stream may have brought the same terms meanwhile.
        if let Some(held) = present.iter().find(|held| held.id() == AgreementId(terms.id())) {
            return Ok((**held).clone());
        }
        let offer = Offer {
            node: node.id(),
            operator: node.operator(),
            capacity_bytes: node.offered_bytes(),
            admit: &admitted,
            prices: &node.config.prices,
        };
        admission::decide(&offer, terms.record(), present, now_ms).map_err(Undecided::Refused)?;
        SignedAgreement::countersign(terms, &node.key)
            .map_err(|error| Undecided::Refused(refuse_signature(&error)))
    });
    decided.map_err(|error| match error {
        Undecided::Refused(refusal) => refusal,
        Undecided::Ledger(error) => refusal::ledger(&error),
    })
}

enum Undecided {
    Refused(Refusal),
    Ledger(LedgerError),
}

impl From<LedgerError> for Undecided {
    fn from(error: LedgerError) -> Self {
        Self::Ledger(error)
    }
}
