//! One stream: read the request within its deadlines, let a handler answer, write the answer within its deadline.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_protocol::framing::{ByteQueue, FrameError};
use holdfast_protocol::message::{Refusal, RefusalReason, Reply, Request};
use holdfast_protocol::rpc;
use holdfast_protocol::transport::{BiStream, RecvHalf, SendHalf, TransportError};

use super::budget::Reservation;
use super::link::Link;
use super::session::Right;
use super::{agree, audit, claims, declared, heads, hello, lie, put, read, status};
use crate::metric;
use crate::node::Node;
use crate::node::config::Misbehaviour;
use crate::node::limits::{ANSWER_DEADLINE_MS, HEADER_DEADLINE_MS};

/// What a handler wants to be sent.
pub(crate) struct Answer {
    pub(crate) reply: Reply,
    /// The raw bytes that the reply announces.
    pub(crate) body: Vec<Bytes>,
    /// Holds the body's place in memory until it has been taken by the transport.
    pub(crate) memory: Option<Reservation>,
    /// How to spoil it, in tests of readers.
    pub(crate) lie: Option<Misbehaviour>,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self { reply, body: Vec::new(), memory: None, lie: None }
    }
}

/// The rest of a request: the raw bytes behind its header.
pub(crate) struct Body<'a> {
    pub(crate) recv: &'a mut dyn RecvHalf,
    pub(crate) buffered: ByteQueue,
}

/// Serves one stream from its first byte to its last.
pub(crate) async fn serve(node: &Arc<Node>, link: &Arc<Link>, mut stream: BiStream) {
    let mut buffered = ByteQueue::new();
    let header = async {
        let _place = node.budgets.header(link.standing()).await;
        rpc::read_request(stream.recv.as_mut(), &mut buffered).await
    };
    let request = match tokio::time::timeout(Duration::from_millis(HEADER_DEADLINE_MS), header).await {
        Ok(Ok(Some(request))) => request,
        // Opened and said nothing: nothing to answer.
        Ok(Ok(None)) => return,
        Ok(Err(error)) => return refuse_unreadable(link, stream, &error).await,
        Err(_) => {
            metrics::counter!(metric::STREAMS_CUT, "side" => "send").increment(1);
            stream.recv.stop();
            stream.send.reset();
            return;
        }
    };
    link.touch();
    let name = request.name();
    let started = Instant::now();
    let body = Body { recv: stream.recv.as_mut(), buffered };
    let result = dispatch(node, link, request, body).await;
    let outcome = match &result {
        Ok(_) => "ok",
        Err(refusal) => reason_name(refusal.reason),
    };
    let answer = result.unwrap_or_else(|refusal| {
        tracing::debug!(peer = %link.connection.peer(), request = name, %refusal, "refused");
        // Nobody will read what the peer is still sending.
        stream.recv.stop();
        Reply::Refused(refusal).into()
    });
    write(link, stream.send.as_mut(), answer).await;
    metrics::counter!(metric::REQUESTS, "request" => name, "outcome" => outcome).increment(1);
    metrics::histogram!(metric::REQUEST_SECONDS, "request" => name).record(started.elapsed().as_secs_f64());
}

async fn dispatch(
    node: &Arc<Node>,
    link: &Arc<Link>,
    request: Request,
    body: Body<'_>,
) -> Result<Answer, Refusal> {
    if let Request::Hello(hello) = request {
        link.control(node.now_ms())?;
        return hello::hello(node, link, &hello).map(Answer::from);
    }
    let session = link.session()?;
    if is_control(&request) {
        link.control(node.now_ms())?;
    }
    match request {
        Request::PutBlock(request) => put::put_block(node, link, &session, request, body).await,
        Request::ReadBlock(request) => read::read_block(node, link, &session, request).await,
        Request::CommitBlocks(request) => claims::commit(node, &session, request).await,
        Request::HasBlocks(request) => claims::has(node, &session, request).await,
        Request::DeleteBlocks(request) => claims::delete(node, &session, &request).await,
        Request::RestoreBlocks(request) => claims::restore(node, &session, request).await,
        Request::PutHead(request) => heads::put(node, &session, request).await,
        Request::GetHeads(request) => heads::list(node, &session, &request),
        Request::Agree(request) => agree::agree(node, link, &session, &request).await,
        Request::Status(_) => {
            let known = session.authority(Right::Delegate, node.now_ms()).is_some();
            let status = if known { status::of(node) } else { status::for_strangers(node) };
            Ok(Reply::Status(status).into())
        }
        Request::Inventory(request) => audit::inventory(node, &session, &request).await,
        Request::Audit(request) => audit::audit(node, &session, request).await,
        Request::Declared(request) => declared::declared(node, &session, request).await,
        Request::Drain(_) => {
            Err(Refusal::new(RefusalReason::Forbidden, "a node moves nothing away for others"))
        }
        Request::Hello(_) => Err(Refusal::new(RefusalReason::Internal, "Hello was handled above")),
    }
}

/// Requests that move no blocks; their rate is bounded.
const fn is_control(request: &Request) -> bool {
    matches!(
        request,
        Request::PutHead(_)
            | Request::GetHeads(_)
            | Request::Agree(_)
            | Request::Status(_)
            | Request::Inventory(_)
            | Request::Audit(_)
            | Request::Declared(_)
    )
}

async fn refuse_unreadable(link: &Link, mut stream: BiStream, error: &FrameError) {
    stream.recv.stop();
    let Some(refusal) = rpc::refusal_of(error) else { return };
    tracing::debug!(peer = %link.connection.peer(), %error, "unreadable request");
    metrics::counter!(metric::REQUESTS, "request" => "unreadable", "outcome" => reason_name(refusal.reason))
        .increment(1);
    write(link, stream.send.as_mut(), Reply::Refused(refusal).into()).await;
}

/// Writes an answer. A reader that does not take it in time is cut, which frees the memory.
async fn write(link: &Link, send: &mut dyn SendHalf, answer: Answer) {
    let Answer { reply, body, memory, lie } = answer;
    let sent = async {
        match lie {
            None => rpc::write_reply_with_body(send, &reply, body).await,
            Some(lie) => lie::write(lie, link, send, &reply, body).await,
        }
    };
    match tokio::time::timeout(Duration::from_millis(ANSWER_DEADLINE_MS), sent).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => log_lost(link, &error),
        Err(_) => {
            metrics::counter!(metric::STREAMS_CUT, "side" => "receive").increment(1);
            tracing::debug!(peer = %link.connection.peer(), reply = reply.name(), "the peer takes nothing; cut");
            send.reset();
        }
    }
    drop(memory);
}

fn log_lost(link: &Link, error: &TransportError) {
    tracing::debug!(peer = %link.connection.peer(), %error, "an answer could not be sent");
}

/// A refusal's reason as a metric label.
const fn reason_name(reason: RefusalReason) -> &'static str {
    match reason {
        RefusalReason::Malformed => "malformed",
        RefusalReason::Version => "version",
        RefusalReason::HelloFirst => "hello_first",
        RefusalReason::Forbidden => "forbidden",
        RefusalReason::Expired => "expired",
        RefusalReason::BudgetSpent => "budget_spent",
        RefusalReason::NoAgreement => "no_agreement",
        RefusalReason::AgreementFull => "agreement_full",
        RefusalReason::NotFound => "not_found",
        RefusalReason::Lost => "lost",
        RefusalReason::Denied => "denied",
        RefusalReason::DigestMismatch => "digest_mismatch",
        RefusalReason::Range => "range",
        RefusalReason::DiskFull => "disk_full",
        RefusalReason::DiskFailed => "disk_failed",
        RefusalReason::Busy => "busy",
        RefusalReason::Stopping => "stopping",
        RefusalReason::TooLarge => "too_large",
        RefusalReason::Internal => "internal",
        _ => "other",
    }
}
