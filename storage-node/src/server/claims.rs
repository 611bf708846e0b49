//! CommitBlocks, HasBlocks, DeleteBlocks, RestoreBlocks: a namespace's own claims.
//!
//! Agreements of one namespace follow one another, and its claims stay where they were made. A request that names one
//! agreement therefore reaches the claims of all: what is absent under the one named is looked for under the others.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use holdfast_protocol::NamespaceId;
use holdfast_protocol::limits::CLOCK_SKEW_MAX_MS;
use holdfast_protocol::message::{
    BlockOutcome, CommitBlocks, DeleteBlocks, HasBlocks, HasBlocksReply, Held, Outcomes, Refusal,
    RefusalReason, Reply, RestoreBlocks,
};
use holdfast_protocol::record::{AgreementId, ClaimRef, ClaimState, SignedAgreement};

use super::refusal;
use super::session::{Right, Session, refuse_signature};
use super::stream::Answer;
use crate::disks::Disks;
use crate::node::Node;
use crate::node::admission;
use crate::store::StoreError;

/// Claims looked up at once for one HasBlocks: enough to keep the index busy, not enough to crowd out reads.
const LOOKUPS_AT_ONCE: usize = 16;

/// Makes provisional claims live.
pub(crate) async fn commit(node: &Node, session: &Session, request: CommitBlocks) -> Result<Answer, Refusal> {
    let now_ms = node.now_ms();
    let authority = session.require(Right::Write, now_ms)?;
    in_term(node, request.agreement, authority.namespace, now_ms)?;
    let others = others(node, request.agreement, authority.namespace);
    let change = Change::Commit { retain_until_ms: request.retain_until_ms };
    answer(in_any(&node.store, request.agreement, &others, &request.claims, &change).await)
}

/// Says what is held.
pub(crate) async fn has(node: &Node, session: &Session, request: HasBlocks) -> Result<Answer, Refusal> {
    let now_ms = node.now_ms();
    let authority = match session.authority(Right::Read, now_ms) {
        Some(authority) => authority,
        None => session.require(Right::Write, now_ms)?,
    };
    owned(node, request.agreement, authority.namespace)?;
    let store: &Disks = &node.store;
    let others = others(node, request.agreement, authority.namespace);
    let held: Vec<Held> = futures::stream::iter(request.claims)
        .map(|claim| held_under_any(store, request.agreement, &others, claim))
        .buffered(LOOKUPS_AT_ONCE)
        .try_collect()
        .await?;
    Ok(Reply::HasBlocks(HasBlocksReply { held, disclaimer: None }).into())
}

/// Releases claims to trash, by a signed order that is kept.
pub(crate) async fn delete(
    node: &Node,
    session: &Session,
    request: &DeleteBlocks,
) -> Result<Answer, Refusal> {
    let now_ms = node.now_ms();
    let authority = session.require(Right::Delete, now_ms)?;
    let order = request.order.verify().map_err(|error| refuse_signature(&error))?;
    let by_namespace = order.signer() == authority.namespace.key();
    let by_delegate = order.signer() == session.peer.key();
    if !by_namespace && !by_delegate {
        return Err(Refusal::new(
            RefusalReason::Forbidden,
            "the deletion order is signed neither by the namespace nor by this delegate of it",
        ));
    }
    if order.record().issued_ms > now_ms.saturating_add(CLOCK_SKEW_MAX_MS) {
        return Err(Refusal::new(RefusalReason::Expired, "the deletion order is dated in the future"));
    }
    let agreement = order.record().agreement;
    owned(node, agreement, authority.namespace)?;
    let evidence = holdfast_protocol::cbor::encode(&request.order);
    let others = others(node, agreement, authority.namespace);
    let change = Change::Delete { evidence };
    let outcomes = in_any(&node.store, agreement, &others, &order.record().claims, &change).await;
    if let Ok(outcomes) = &outcomes {
        let done = outcomes.iter().filter(|outcome| **outcome == BlockOutcome::Done).count();
        tracing::info!(
            namespace = %authority.namespace, %agreement, asked = outcomes.len(), done, "blocks sent to trash"
        );
    }
    answer(outcomes)
}

/// Takes claims back from trash.
pub(crate) async fn restore(
    node: &Node,
    session: &Session,
    request: RestoreBlocks,
) -> Result<Answer, Refusal> {
    let now_ms = node.now_ms();
    let authority = session.require(Right::Delete, now_ms)?;
    in_term(node, request.agreement, authority.namespace, now_ms)?;
    let others = others(node, request.agreement, authority.namespace);
    answer(in_any(&node.store, request.agreement, &others, &request.claims, &Change::Restore).await)
}

/// The namespace's other agreements, ended ones included.
fn others(node: &Node, named: AgreementId, namespace: NamespaceId) -> Vec<AgreementId> {
    let all = node.ledger.of_namespace(namespace);
    all.iter().map(|held| held.id()).filter(|id| *id != named).collect()
}

/// What is done to claims.
enum Change {
    Commit { retain_until_ms: u64 },
    Delete { evidence: Vec<u8> },
    Restore,
}

impl Change {
    async fn apply(
        &self,
        store: &Disks,
        agreement: AgreementId,
        claims: &[ClaimRef],
    ) -> Result<Vec<BlockOutcome>, StoreError> {
        match self {
            Self::Commit { retain_until_ms } => store.commit(agreement, claims, *retain_until_ms).await,
            Self::Delete { evidence } => store.delete(agreement, claims, Some(evidence.clone())).await,
            Self::Restore => store.restore(agreement, claims).await,
        }
    }
}

/// Changes the claims under the agreement named, and those that are absent there under the others.
async fn in_any(
    store: &Disks,
    named: AgreementId,
    others: &[AgreementId],
    claims: &[ClaimRef],
    change: &Change,
) -> Result<Vec<BlockOutcome>, StoreError> {
    let mut outcomes = change.apply(store, named, claims).await?;
    for other in others {
        let absent: Vec<usize> =
            (0..outcomes.len()).filter(|at| outcomes[*at] == BlockOutcome::Absent).collect();
        if absent.is_empty() {
            break;
        }
        let some: Vec<ClaimRef> = absent.iter().filter_map(|at| claims.get(*at).copied()).collect();
        for (at, outcome) in absent.into_iter().zip(change.apply(store, *other, &some).await?) {
            outcomes[at] = outcome;
        }
    }
    Ok(outcomes)
}

/// The agreement, if it is the namespace's own. Another's agreement looks like none at all.
pub(crate) fn owned(
    node: &Node,
    agreement: AgreementId,
    namespace: NamespaceId,
) -> Result<Arc<SignedAgreement>, Refusal> {
    node.ledger
        .agreement(&agreement)
        .filter(|held| held.terms().namespace == namespace)
        .ok_or_else(|| Refusal::new(RefusalReason::NoAgreement, "the namespace has no such agreement here"))
}

/// The agreement, if it is the namespace's own and runs.
pub(crate) fn in_term(
    node: &Node,
    agreement: AgreementId,
    namespace: NamespaceId,
    now_ms: u64,
) -> Result<Arc<SignedAgreement>, Refusal> {
    let held = owned(node, agreement, namespace)?;
    if admission::in_term(held.terms(), now_ms) {
        return Ok(held);
    }
    Err(Refusal::new(
        RefusalReason::NoAgreement,
        format!(
            "the agreement runs from {} to {} ms; it is {now_ms} ms here",
            held.terms().start_ms,
            held.terms().end_ms
        ),
    ))
}

async fn held_under_any(
    store: &Disks,
    named: AgreementId,
    others: &[AgreementId],
    claim: ClaimRef,
) -> Result<Held, Refusal> {
    let mut found = held(store, named, claim).await?;
    for other in others {
        if found != Held::Absent {
            break;
        }
        found = held(store, *other, claim).await?;
    }
    Ok(found)
}

async fn held(store: &Disks, agreement: AgreementId, claim: ClaimRef) -> Result<Held, Refusal> {
    let found = store.claim(agreement, claim).await.map_err(|error| refusal::read(&error))?;
    Ok(match found.map(|claim| claim.state) {
        Some(ClaimState::Provisional) => Held::Provisional,
        Some(ClaimState::Live) => Held::Live,
        Some(ClaimState::Trash) => Held::Trash,
        None if store.is_lost(claim.0).await.map_err(|error| refusal::read(&error))? => Held::Lost,
        None => Held::Absent,
    })
}

fn answer(outcomes: Result<Vec<BlockOutcome>, StoreError>) -> Result<Answer, Refusal> {
    let outcomes = outcomes.map_err(|error| refusal::store(&error))?;
    Ok(Reply::Outcomes(Outcomes { outcomes }).into())
}
