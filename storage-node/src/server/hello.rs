//! Hello: opens the session.

use std::sync::Arc;

use holdfast_protocol::message::{Hello, HelloReply, Refusal, Reply};

use super::link::Link;
use super::session::{Right, Session};
use crate::node::Node;

/// Checks who the peer is and says who we are.
pub(crate) fn hello(node: &Arc<Node>, link: &Link, hello: &Hello) -> Result<Reply, Refusal> {
    let now_ms = node.now_ms();
    let peer = link.connection.peer();
    node.deny.peer(peer)?;
    let session = Session::open(hello, peer, now_ms).inspect_err(|refusal| {
        tracing::info!(%peer, software = %hello.software, %refusal, "Hello refused");
    })?;
    let authority = session.authority(Right::Delegate, now_ms);
    if let Some(authority) = authority {
        node.deny.namespace(authority.namespace)?;
    }
    let agreement = authority.and_then(|authority| node.ledger.current(authority.namespace, now_ms));
    link.open_session(session);
    if agreement.is_some() {
        link.promote(node);
    }
    if let Some(authority) = authority {
        node.quiet.is_heard(authority.namespace);
    }
    tracing::debug!(
        %peer, software = %hello.software, version = session.version,
        namespace = ?authority.map(|authority| authority.namespace), "session open"
    );
    Ok(Reply::Hello(HelloReply {
        version: session.version,
        node_record: Some(node.record(now_ms).to_wire()),
        agreement: agreement.map(|agreement| agreement.to_wire()),
        now_ms,
        software: crate::node::SOFTWARE.to_owned(),
    }))
}
