//! Inventory and Audit: what a namespace pages through, and what auditors ask.
//!
//! An auditor needs no permission: any peer that said Hello may ask. What it costs is bounded: one answer is computed
//! at a time, the newest stay ready, and the requests count against the peer's control rate.

use holdfast_protocol::message::{
    AuditQuery, AuditReply, InventoryQuery, InventoryReply, Refusal, RefusalReason, Reply,
};

use super::claims;
use super::session::{Right, Session};
use super::stream::Answer;
use crate::audit::{AuditError, NodeAudit};
use crate::node::Node;

/// The next page of an agreement's inventory, to its namespace alone.
pub(crate) async fn inventory(
    node: &Node,
    session: &Session,
    request: &InventoryQuery,
) -> Result<Answer, Refusal> {
    let now_ms = node.now_ms();
    let authority = session.require(Right::Delegate, now_ms)?;
    claims::owned(node, request.agreement, authority.namespace)?;
    let page = of(node)?.page(request.agreement, request.after, request.max, now_ms).await;
    let page = page.map_err(|error| refuse(&error))?.to_wire();
    Ok(Reply::Inventory(InventoryReply { page }).into())
}

/// Whatever an auditor asks or tells.
pub(crate) async fn audit(node: &Node, session: &Session, request: AuditQuery) -> Result<Answer, Refusal> {
    let audit = of(node)?;
    let now_ms = node.now_ms();
    let failed = |error: AuditError| refuse(&error);
    match request {
        AuditQuery::Commitment { epoch } => {
            let shown = audit.shown(epoch, now_ms).await.map_err(failed)?;
            let reply = AuditReply::Commitment {
                commitment: shown.commitment,
                declarations: shown.declarations,
                countersignatures: shown.countersignatures,
            };
            Ok(Reply::Audit(reply).into())
        }
        AuditQuery::Countersigned { countersignature } => {
            audit.countersigned(session.peer, &countersignature).await.map_err(failed)?;
            Ok(Reply::Audit(AuditReply::Noted).into())
        }
        AuditQuery::Answer { epoch, round, draws } => {
            let (answer, body) = audit.answer(epoch, &round, &draws, now_ms).await.map_err(failed)?;
            let body_len = u32::try_from(body.len()).map_err(|_| too_large())?;
            let reply = Reply::Audit(AuditReply::Answer { answer, body_len });
            Ok(Answer { body: vec![body], ..Answer::from(reply) })
        }
        AuditQuery::Found { verdict, standing } => {
            audit.found(session.peer, &verdict, &standing).map_err(failed)?;
            Ok(Reply::Audit(AuditReply::Noted).into())
        }
    }
}

fn of(node: &Node) -> Result<&NodeAudit, Refusal> {
    let off = || Refusal::new(RefusalReason::NotFound, "this node takes no part in audits");
    node.audit.as_deref().ok_or_else(off)
}

fn too_large() -> Refusal {
    Refusal::new(RefusalReason::TooLarge, "the answer passes a bound of the protocol")
}

/// What the node's own trouble looks like to a peer: no path, no detail of the disk.
fn refuse(error: &AuditError) -> Refusal {
    match error {
        AuditError::Uncommitted | AuditError::NoCommitment { .. } => {
            Refusal::new(RefusalReason::Busy, error.to_string())
        }
        AuditError::Passed { .. } => Refusal::new(RefusalReason::NotFound, error.to_string()),
        AuditError::Round { .. } | AuditError::Beacon(_) | AuditError::Policy(_) => {
            Refusal::new(RefusalReason::Malformed, error.to_string())
        }
        AuditError::Foreign => Refusal::new(RefusalReason::Forbidden, error.to_string()),
        AuditError::Read(error) => super::refusal::read(error),
        AuditError::Store(error) => super::refusal::store(error),
        AuditError::Inventory(_) | AuditError::Files { .. } => {
            super::refusal::internal("an audit failed on the node's own disk", error)
        }
    }
}
