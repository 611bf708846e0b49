//! PutBlock: takes a block's bytes while hashing them, keeps them durably, and signs for them.

use std::sync::Arc;
use std::time::Duration;

use holdfast_proofs::{BlockHasher, GroupTree};
use holdfast_protocol::Digest;
use holdfast_protocol::digest::BlockLen;
use holdfast_protocol::limits::GROUP_LEN;
use holdfast_protocol::message::{PutBlock, PutBlockReply, Refusal, RefusalReason, Reply};
use holdfast_protocol::record::{Claim, ClaimState, SignedAgreement};

use super::claims;
use super::link::Link;
use super::refusal;
use super::session::{Right, Session};
use super::stream::{Answer, Body};
use crate::metric;
use crate::node::Node;
use crate::node::limits::{BODY_DEADLINE_MS, BODY_IDLE_DEADLINE_MS};
use crate::node::receipts::Held;
use crate::store::{BlockBuffer, NewBlock};

/// A body is taken in steps of this much: BLAKE3 runs over whole groups, several at once are hashed faster than one by
/// one while the bytes are still in the cache, and one deadline a step costs less than one a packet. A sender that takes
/// longer over a step than the idle deadline is cut.
const HASH_STEP: usize = 4 * GROUP_LEN as usize;

/// Pages beside a block's bytes: its header, its padding, a small record.
const HEADROOM: u64 = 16 * 1024;

/// Keeps a block provisionally and answers with a signed receipt.
pub(crate) async fn put_block(
    node: &Arc<Node>,
    link: &Link,
    session: &Session,
    request: PutBlock,
    body: Body<'_>,
) -> Result<Answer, Refusal> {
    let now_ms = node.now_ms();
    let (agreement, claim) = admit(node, session, &request, now_ms)?;
    let namespace = agreement.terms().namespace;
    let room = node.rooms.reserve(&node.store, &node.ledger, namespace, now_ms, request.len).await?;
    node.taking.pass(u64::from(request.len.bytes()), node.rates().1).await?;
    let memory = link.reserve(node, request.len.bytes()).await?;
    let buffer = node.store.admit(request.len).await.map_err(|error| refusal::store(&error))?;
    let (buffer, digest, tree) = receive(buffer, request.len, body).await?;
    if digest != request.digest {
        tracing::info!(peer = %link.connection.peer(), announced = %request.digest, found = %digest, "wrong bytes");
        return Err(Refusal::new(
            RefusalReason::DigestMismatch,
            format!("the bytes are those of {digest}, not of {}", request.digest),
        ));
    }
    let block = NewBlock { digest, tree, claim };
    let outcome = node.store.put(buffer, block).await.map_err(|error| refusal::put(&error))?;
    room.keep();
    drop(memory);
    metrics::counter!(metric::RECEIVED_BYTES).increment(u64::from(request.len.bytes()));
    node.watch.taken(u64::from(request.len.bytes()));
    let held = Held {
        agreement: request.agreement,
        group: outcome.group,
        lease_until_ms: claim.lease_until_ms,
        term_until_ms: agreement.terms().end_ms,
        digest,
        len: request.len,
    };
    let receipt = node.receipts.sign(held).await?;
    Ok(Reply::PutBlock(PutBlockReply { existed: outcome.existed, receipt: (*receipt).clone() }).into())
}

/// Decides everything that can be decided before a byte of the body is read.
fn admit(
    node: &Node,
    session: &Session,
    request: &PutBlock,
    now_ms: u64,
) -> Result<(Arc<SignedAgreement>, Claim), Refusal> {
    if node.is_stopping() {
        return Err(Refusal::new(RefusalReason::Stopping, "the node is stopping"));
    }
    let authority = session.require(Right::Write, now_ms)?;
    if let Some(why) = node.mode().refusal() {
        return Err(Refusal::new(RefusalReason::Stopping, why));
    }
    node.deny.block(&request.digest)?;
    // The store knows the capacity that it was opened with; a smaller one since then is checked here.
    if node.shrinking_to().is_some() && node.accounts().free_bytes < u64::from(request.len.bytes()) + HEADROOM
    {
        return Err(Refusal::new(
            RefusalReason::DiskFull,
            "the node offers less than it did and has no room",
        ));
    }
    let agreement = claims::in_term(node, request.agreement, authority.namespace, now_ms)?;
    if request.lease_until_ms <= now_ms {
        return Err(Refusal::new(
            RefusalReason::Expired,
            format!("the lease asked for ended at {} ms; it is {now_ms} ms here", request.lease_until_ms),
        ));
    }
    let claim = Claim {
        v: 1,
        agreement: request.agreement,
        digest: request.digest,
        tag: request.tag,
        scope: request.scope,
        state: ClaimState::Provisional,
        lease_until_ms: node.config.lease.granted(request.lease_until_ms, now_ms),
        retain_until_ms: request.retain_until_ms,
        created_ms: now_ms,
    };
    Ok((agreement, claim))
}

/// Fills the buffer with exactly the announced bytes, hashing as they come. The sender must keep on sending, and
/// must end the stream where it said it would.
async fn receive(
    mut buffer: BlockBuffer,
    len: BlockLen,
    mut body: Body<'_>,
) -> Result<(BlockBuffer, Digest, GroupTree), Refusal> {
    let idle = Duration::from_millis(BODY_IDLE_DEADLINE_MS);
    let whole = async {
        let mut hasher = BlockHasher::new();
        let mut hashed = 0;
        while buffer.remaining() > 0 {
            let step = buffer.remaining().min(HASH_STEP);
            let more = body.buffered.pipe_exact(body.recv, step, |piece| {
                let fits = buffer.extend_from_slice(&piece);
                debug_assert!(fits, "a step never passes what remains");
            });
            match tokio::time::timeout(idle, more).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(refuse_short(buffer.filled(), len, &error)),
                Err(_) => return Err(refuse_slow()),
            }
            let upto = buffer.filled() - buffer.filled() % GROUP_LEN as usize;
            hasher.update(&buffer.data()[hashed..upto]);
            hashed = upto;
        }
        hasher.update(&buffer.data()[hashed..]);
        match tokio::time::timeout(idle, body.buffered.next(body.recv, 1)).await {
            Ok(Ok(None)) => Ok(hasher.finish()),
            Ok(Ok(Some(_))) => Err(refuse_long(len)),
            Ok(Err(error)) => Err(refuse_short(buffer.filled(), len, &error)),
            Err(_) => Err(refuse_slow()),
        }
    };
    match tokio::time::timeout(Duration::from_millis(BODY_DEADLINE_MS), whole).await {
        Ok(hashed) => hashed.map(|(digest, tree)| (buffer, digest, tree)),
        Err(_) => Err(refuse_slow()),
    }
}

fn refuse_short(filled: usize, len: BlockLen, error: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(RefusalReason::Malformed, format!("the body ended after {filled} of {len} bytes: {error}"))
}

fn refuse_slow() -> Refusal {
    metrics::counter!(metric::STREAMS_CUT, "side" => "send").increment(1);
    Refusal::new(RefusalReason::Busy, "the body came too slowly")
}

fn refuse_long(len: BlockLen) -> Refusal {
    Refusal::new(RefusalReason::Malformed, format!("the body is longer than the {len} bytes announced"))
}
