//! CommitBlocks, HasBlocks, DeleteBlocks, RestoreBlocks: a namespace's own claims.

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

/// Claims looked up at once for one HasBlocks: enough to keep the index busy, not enough to crowd out reads.
const LOOKUPS_AT_ONCE: usize = 16;

/// Makes provisional claims live.
pub(crate) async fn commit(node: &Node, session: &Session, request: CommitBlocks) -> Result<Answer, Refusal> {
    let now_ms = node.now_ms();
    let authority = session.require(Right::Write, now_ms)?;
    in_term(node, request.agreement, authority.namespace, now_ms)?;
    let outcomes = node.store.commit(request.agreement, &request.claims, request.retain_until_ms).await;
    answer(outcomes)
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
    let held: Vec<Held> = futures::stream::iter(request.claims)
        .map(|claim| held(store, request.agreement, claim))
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
    let outcomes = node.store.delete(agreement, &order.record().claims, Some(evidence)).await;
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
    answer(node.store.restore(request.agreement, &request.claims).await)
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

fn answer(outcomes: Result<Vec<BlockOutcome>, crate::store::StoreError>) -> Result<Answer, Refusal> {
    let outcomes = outcomes.map_err(|error| refusal::store(&error))?;
    Ok(Reply::Outcomes(Outcomes { outcomes }).into())
}
