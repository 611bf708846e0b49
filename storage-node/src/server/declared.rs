//! Declared: which blocks this node has lost, and which its operator refuses, signed.

use holdfast_protocol::limits::DECLARED_DIGESTS_MAX;
use holdfast_protocol::message::{DeclaredQuery, DeclaredReply, Refusal, RefusalReason, Reply};
use holdfast_protocol::record::{DeclaredAs, DeclaredPage, Record, Signed};

use super::refusal;
use super::session::{Right, Session};
use super::stream::Answer;
use crate::node::Node;

/// The next page, to whoever acts for a namespace with an agreement.
pub(crate) async fn declared(
    node: &Node,
    session: &Session,
    request: DeclaredQuery,
) -> Result<Answer, Refusal> {
    let now_ms = node.now_ms();
    let authority = session.require(Right::Delegate, now_ms)?;
    if node.ledger.of_namespace(authority.namespace).is_empty() {
        return Err(Refusal::new(
            RefusalReason::NoAgreement,
            "what is declared is told to namespaces with an agreement",
        ));
    }
    // One more than fits tells whether more follow.
    let most = DECLARED_DIGESTS_MAX + 1;
    let mut digests = match request.kind {
        DeclaredAs::Lost => {
            let losses = node.store.losses(request.after, most).await;
            losses.map_err(|error| refusal::read(&error))?.iter().map(|loss| loss.digest).collect()
        }
        DeclaredAs::Refused => node.deny.refused_after(request.after, most),
    };
    let last = digests.len() < most;
    digests.truncate(DECLARED_DIGESTS_MAX);
    let page = DeclaredPage {
        v: DeclaredPage::VERSION,
        node: node.id(),
        kind: request.kind,
        after: request.after,
        digests,
        last,
        issued_ms: now_ms,
    };
    Ok(Reply::Declared(DeclaredReply { page: Signed::sign(page, &node.key).to_wire() }).into())
}
