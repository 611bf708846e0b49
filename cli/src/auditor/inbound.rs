//! Nodes that dial the auditor: those behind home routers, and any that would rather push than wait.

use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::framing::ByteQueue;
use holdfast_protocol::message::{HelloReply, Refusal, RefusalReason, Reply, Request};
use holdfast_protocol::rpc;
use holdfast_protocol::time::{Clock, SystemClock};
use holdfast_protocol::transport::{BiStream, Connection, Transport};

use super::run::{Running, SOFTWARE};

/// Connections of nodes that are served at once; further ones are closed.
const CONNECTIONS_MAX: usize = 4096;
/// A request's header must be complete within this time.
const HEADER_WITHIN: Duration = Duration::from_secs(10);

/// Takes in nodes until the transport closes.
pub(super) async fn accept(auditor: Arc<Running>, transport: Arc<dyn Transport>) {
    let places = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    while let Some(connection) = transport.accept().await {
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            connection.close("this auditor has no place for another connection");
            continue;
        };
        let auditor = Arc::clone(&auditor);
        tokio::spawn(async move {
            serve(&auditor, &connection).await;
            drop(place);
        });
    }
}

/// Answers a node's Hello, greets it in turn, and keeps the connection for what will be asked.
async fn serve(auditor: &Running, connection: &Arc<dyn Connection>) {
    let peer = connection.peer();
    while let Ok(stream) = connection.accept().await {
        match tokio::time::timeout(HEADER_WITHIN, answer(stream)).await {
            // It has said Hello: from here on it can be asked.
            Ok(true) => {
                if let Err(error) = auditor.greet(Arc::clone(connection)).await {
                    tracing::debug!(%peer, error = format!("{error:#}"), "whoever dialled is no node");
                    return connection.close("only nodes have a reason to dial an auditor");
                }
            }
            Ok(false) => {}
            Err(_) => return connection.close("a request came too slowly"),
        }
    }
}

/// Answers one request; whether it was a Hello that holds.
async fn answer(mut stream: BiStream) -> bool {
    let mut buffered = ByteQueue::new();
    let refusal = match rpc::read_request(stream.recv.as_mut(), &mut buffered).await {
        Ok(Some(Request::Hello(hello))) => match rpc::answer_hello(&hello) {
            Ok(version) => {
                let reply = Reply::Hello(HelloReply {
                    version,
                    node_record: None,
                    agreement: None,
                    now_ms: SystemClock.now_ms(),
                    software: SOFTWARE.to_owned(),
                });
                return rpc::write_reply(stream.send.as_mut(), &reply).await.is_ok();
            }
            Err(refusal) => refusal,
        },
        Ok(Some(_)) => Refusal::new(RefusalReason::Forbidden, "an auditor asks, it does not answer"),
        Ok(None) => return false,
        Err(error) => match rpc::refusal_of(&error) {
            Some(refusal) => refusal,
            None => return false,
        },
    };
    let _ = rpc::refuse(stream.send.as_mut(), refusal).await;
    false
}
