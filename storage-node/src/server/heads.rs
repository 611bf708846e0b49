//! PutHead and GetHeads: where the journals of a namespace's gateways end.

use std::sync::Arc;

use holdfast_protocol::message::{HeadSeq, Heads, HeadsOf, Refusal, RefusalReason, Reply};
use holdfast_protocol::record::PresentedHead;

use super::refusal;
use super::session::{Right, Session, refuse_signature};
use super::stream::Answer;
use crate::node::Node;

/// Keeps a head whose `seq` is the highest of its instance, durably, and says which is kept.
pub(crate) async fn put(
    node: &Arc<Node>,
    session: &Session,
    presented: PresentedHead,
) -> Result<Answer, Refusal> {
    let now_ms = node.now_ms();
    let authority = session.require(Right::Head, now_ms)?;
    let head = presented.verify(now_ms).map_err(|error| refuse_signature(&error))?;
    if head.namespace != authority.namespace {
        return Err(Refusal::new(
            RefusalReason::Forbidden,
            "the head is of another namespace than the session",
        ));
    }
    if node.ledger.current(head.namespace, now_ms).is_none() {
        return Err(Refusal::new(RefusalReason::NoAgreement, "the namespace has no running agreement here"));
    }
    let kept = {
        let node = node.clone();
        refusal::blocking(move || node.ledger.put_head(&head, presented)).await?
    };
    let seq = kept.map_err(|error| refusal::ledger(&error))?;
    Ok(Reply::PutHead(HeadSeq { seq }).into())
}

/// The heads of the session's own namespace: they name journal blocks, which are nobody else's business.
pub(crate) fn list(node: &Node, session: &Session, request: &HeadsOf) -> Result<Answer, Refusal> {
    let authority = session.require(Right::Delegate, node.now_ms())?;
    if authority.namespace != request.namespace || !(authority.rights.read || authority.rights.head) {
        return Err(Refusal::new(RefusalReason::Forbidden, "the session may not read these heads"));
    }
    Ok(Reply::GetHeads(Heads { heads: node.ledger.heads(&request.namespace) }).into())
}
