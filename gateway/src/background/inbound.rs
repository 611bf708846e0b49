//! Nodes that speak first: connections they open to us, and the one question they may ask.
//!
//! At the end of a lease a node asks whether its provisional blocks are wanted. What the metadata refers to is
//! answered "live"; what it does not is named in a signed disclaimer. Anything else is refused.

use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::NodeId;
use holdfast_protocol::framing::ByteQueue;
use holdfast_protocol::message::{
    HasBlocks, HasBlocksReply, Held, Hello, HelloReply, Refusal, RefusalReason, Reply, Request,
};
use holdfast_protocol::record::{ClaimRef, Disclaimer, Record, Signed};
use holdfast_protocol::rpc;
use holdfast_protocol::transport::{BiStream, Connection};
use holdfast_retrieval::pool::OnConnected;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::gateway::Core;
use crate::meta::MetaError;

/// New connections that may wait to be served.
const CONNECTIONS_WAITING_MAX: usize = 1024;
/// Connections that nodes open to us, greeted at the same time.
const GREETED_AT_ONCE: usize = 64;
/// Streams of one connection answered at the same time.
const STREAMS_AT_ONCE: usize = 8;
/// How long one question may take from its first byte to its answer's last.
const STREAM_WITHIN: Duration = Duration::from_secs(30);

/// Connections that the pool made, on their way to [`serve`].
pub(crate) struct Connections {
    arrivals: mpsc::Receiver<Arc<dyn Connection>>,
}

impl Connections {
    /// The queue, and what the pool calls.
    pub(crate) fn new() -> (Self, OnConnected) {
        let (sender, arrivals) = mpsc::channel(CONNECTIONS_WAITING_MAX);
        let on_connected: OnConnected = Arc::new(move |node, connection| {
            if sender.try_send(connection).is_err() {
                tracing::warn!(%node, "too many new connections; this node's questions are not answered on this one");
            }
        });
        (Self { arrivals }, on_connected)
    }
}

/// Takes connections that known nodes open to us. One that says nothing holds up no other.
pub(super) async fn accept(core: Arc<Core>, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(GREETED_AT_ONCE));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let connection = tokio::select! {
            () = stop.cancelled() => return,
            connection = core.config.transport.accept() => connection,
        };
        let Some(connection) = connection else { return };
        let (core, stop) = (Arc::clone(&core), stop.clone());
        tokio::spawn(async move {
            let _place = place;
            tokio::select! {
                () = stop.cancelled() => {}
                () = super::join::dialled_in(&core, connection) => {}
            }
        });
    }
}

/// Answers the streams that nodes open on any connection.
pub(super) async fn serve(core: Arc<Core>, mut connections: Connections, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    loop {
        let connection = tokio::select! {
            () = stop.cancelled() => break,
            connection = connections.arrivals.recv() => connection,
        };
        let Some(connection) = connection else { break };
        tasks.spawn(serve_connection(Arc::clone(&core), connection, stop.clone()));
    }
    tasks.close();
    tasks.wait().await;
}

async fn serve_connection(core: Arc<Core>, connection: Arc<dyn Connection>, stop: CancellationToken) {
    let node = connection.peer();
    let slots = Arc::new(Semaphore::new(STREAMS_AT_ONCE));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let stream = tokio::select! {
            () = stop.cancelled() => return,
            stream = connection.accept() => stream,
        };
        let Ok(stream) = stream else { return };
        let core = Arc::clone(&core);
        tokio::spawn(async move {
            let _slot = slot;
            if tokio::time::timeout(STREAM_WITHIN, answer(&core, node, stream)).await.is_err() {
                tracing::debug!(%node, "a node's question took too long and was dropped");
            }
        });
    }
}

async fn answer(core: &Core, node: NodeId, mut stream: BiStream) {
    let mut buffered = ByteQueue::new();
    let reply = match rpc::read_request(stream.recv.as_mut(), &mut buffered).await {
        Ok(None) => return,
        Ok(Some(Request::HasBlocks(question))) => wanted(core, node, question).await,
        Ok(Some(Request::Hello(hello))) => hello_reply(core, &hello),
        Ok(Some(Request::Drain(wish))) => super::drain::heard(core, node, wish).await,
        Ok(Some(other)) => Reply::Refused(Refusal::new(
            RefusalReason::Forbidden,
            format!("a gateway does not answer {}", other.name()),
        )),
        Err(error) => match rpc::refusal_of(&error) {
            Some(refusal) => Reply::Refused(refusal),
            None => return,
        },
    };
    if let Err(error) = rpc::write_reply(stream.send.as_mut(), &reply).await {
        tracing::debug!(%node, %error, "a node left before it had its answer");
    }
}

fn hello_reply(core: &Core, hello: &Hello) -> Reply {
    match rpc::answer_hello(hello) {
        Ok(version) => Reply::Hello(HelloReply {
            version,
            node_record: None,
            agreement: None,
            now_ms: core.config.clock.now_ms(),
            software: core.config.software.clone(),
        }),
        Err(refusal) => Reply::Refused(refusal),
    }
}

async fn wanted(core: &Core, node: NodeId, question: HasBlocks) -> Reply {
    // Under which of our agreements a claim was made does not matter to whether it is wanted: agreements follow one
    // another, tags go on. A node that is none of ours gets no disclaimer.
    if core.pool.agreement(node).is_none() {
        return Reply::Refused(Refusal::new(
            RefusalReason::NoAgreement,
            "there is no agreement between us; nothing is disclaimed",
        ));
    }
    match sorted(core, node, &question.claims).await {
        Ok((held, unwanted)) => {
            let disclaimer = (!unwanted.is_empty()).then(|| {
                let record = Disclaimer {
                    v: Disclaimer::VERSION,
                    agreement: question.agreement,
                    claims: unwanted,
                    issued_ms: core.config.clock.now_ms(),
                };
                Signed::sign(record, core.config.keys.transport()).to_wire()
            });
            Reply::HasBlocks(HasBlocksReply { held, disclaimer })
        }
        Err(error) => {
            tracing::warn!(%node, %error, "a node's question cannot be answered now");
            Reply::Refused(Refusal::new(RefusalReason::Busy, "the metadata cannot be read now"))
        }
    }
}

/// What to say of each claim, and the claims that nobody wants.
async fn sorted(
    core: &Core,
    node: NodeId,
    claims: &[ClaimRef],
) -> Result<(Vec<Held>, Vec<ClaimRef>), MetaError> {
    let (mut held, mut unwanted) = (Vec::with_capacity(claims.len()), Vec::new());
    for claim in claims {
        let stripe = core.tags.stripe(claim.1, node);
        if core.meta.wanted(&claim.0, stripe, node).await? {
            held.push(Held::Live);
        } else {
            held.push(Held::Absent);
            unwanted.push(*claim);
        }
    }
    Ok((held, unwanted))
}
