//! Requests and replies over a connection: the client's side as [`Peer`], the server's as a few functions.
//!
//! One request is one bidirectional stream. This module sees that headers are read within bounds, that
//! replies fit their requests, and that bodies have the announced length *before* anything is allocated.
//! It never checks a signature and never hashes a block: receipts, records and bytes leave it unverified.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::cbor::DecodeError;
use crate::digest::{BlockLen, Digest};
use crate::framing::{ByteQueue, FrameError, read_frame, write_frame};
use crate::key::{NamespaceId, NodeId};
use crate::message::{
    Agree, BlockOutcome, ByteRange, CommitBlocks, DeclaredQuery, DeleteBlocks, DeletionOrder, Drain,
    DrainProgress, HasBlocks, HasBlocksReply, HeadsOf, Hello, HelloReply, LeafUnit, MESSAGE_VERSION,
    MESSAGE_VERSION_OLDEST, NodeStatus, PutBlock, PutBlockReply, ReadBlock, ReadBlockReply, ReadPart,
    Refusal, RefusalReason, Reply, Request, RestoreBlocks, StatusQuery, negotiate,
};
use crate::record::{
    Agreement, DeclaredPage, Delegation, NodeRecord, PresentedGrant, PresentedHead, Signed, Unverified,
    UnverifiedAgreement,
};
use crate::transport::{BiStream, Connection, RecvHalf, SendHalf, TransportError};

mod audit;

pub use audit::ShownCommitment;

/// How long Hello may take on a connection that stands: it needs no disk, so a peer that takes longer is
/// not usable.
pub const HELLO_DEADLINE: Duration = Duration::from_secs(10);

/// What we say of ourselves when a session opens.
#[derive(Clone, Debug)]
pub struct HelloParams {
    /// For whom we act.
    pub delegation: Option<Unverified<Delegation>>,
    /// What we are, if a node.
    pub node_record: Option<Unverified<NodeRecord>>,
    /// Software name and version.
    pub software: String,
    /// Our clock.
    pub now_ms: u64,
}

/// A peer with which a session is open. Cheap to clone; requests of all clones run side by side.
///
/// Requests have no deadline of their own: only the caller knows how long an answer is worth waiting for.
/// Dropping a request's future resets its stream, and the connection lives on.
#[derive(Clone)]
pub struct Peer {
    connection: Arc<dyn Connection>,
    version: u16,
}

impl Peer {
    /// Opens a session: says who we are and agrees on a version.
    pub async fn hello(
        connection: Arc<dyn Connection>,
        hello: HelloParams,
    ) -> Result<(Self, HelloReply), CallError> {
        let request = Request::Hello(Hello {
            newest: MESSAGE_VERSION,
            oldest: MESSAGE_VERSION_OLDEST,
            delegation: hello.delegation,
            node_record: hello.node_record,
            now_ms: hello.now_ms,
            software: hello.software,
        });
        let mut peer = Self { connection, version: MESSAGE_VERSION };
        let exchange = tokio::time::timeout(HELLO_DEADLINE, peer.exchange(&request));
        let reply = exchange.await.map_err(|_| CallError::TimedOut {
            request: request.name(),
            after_ms: u64::try_from(HELLO_DEADLINE.as_millis()).unwrap_or(u64::MAX),
        })??;
        let Reply::Hello(reply) = reply else { return Err(unexpected(&request, &reply)) };
        if reply.version < MESSAGE_VERSION_OLDEST || reply.version > MESSAGE_VERSION {
            return Err(CallError::Version { version: reply.version });
        }
        peer.version = reply.version;
        Ok((peer, reply))
    }

    /// The other direction of a session that the peer opened and we answered with [`answer_hello`]: a node
    /// asks its namespace over a connection that the gateway dialled.
    pub fn answered(connection: Arc<dyn Connection>, version: u16) -> Self {
        Self { connection, version }
    }

    /// The peer's id, as its TLS key proved.
    pub fn id(&self) -> NodeId {
        self.connection.peer()
    }

    /// The connection beneath.
    pub fn connection(&self) -> &Arc<dyn Connection> {
        &self.connection
    }

    /// The message version that both sides speak.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// Stores a block provisionally. The receipt is *not* verified here.
    pub async fn put_block(&self, request: PutBlock, bytes: Bytes) -> Result<PutBlockReply, CallError> {
        if bytes.len() != request.len.as_usize() {
            return Err(unsendable("PutBlock", DecodeError::OutOfBounds { field: "len" }));
        }
        let request = Request::PutBlock(request);
        match self.exchange_with(&request, vec![bytes]).await? {
            Reply::PutBlock(reply) => Ok(reply),
            reply => Err(unexpected(&request, &reply)),
        }
    }

    /// Reads a whole block of known length into one contiguous buffer. *Not* hashed here.
    pub async fn read_whole(
        &self,
        digest: Digest,
        len: BlockLen,
        grant: Option<Box<PresentedGrant>>,
    ) -> Result<Bytes, CallError> {
        let part = ReadPart::Whole;
        let (_, body) = self.read(ReadBlock { digest, part, grant }, len.bytes(), 0).await?;
        Ok(body)
    }

    /// Reads the leaves that cover `ranges` of a block of known length, with their paths. The number of
    /// paths and bytes is what the ranges ask for; nothing else is verified here.
    pub async fn read_leaves(
        &self,
        digest: Digest,
        len: BlockLen,
        unit: LeafUnit,
        ranges: Vec<ByteRange>,
        grant: Option<Box<PresentedGrant>>,
    ) -> Result<(ReadBlockReply, Bytes), CallError> {
        let (bytes, leaves) =
            leaves_extent(len, unit, &ranges).map_err(|source| unsendable("ReadBlock", source))?;
        let part = ReadPart::Leaves { unit, ranges };
        self.read(ReadBlock { digest, part, grant }, bytes, leaves).await
    }

    /// Makes provisional claims live.
    pub async fn commit_blocks(&self, request: CommitBlocks) -> Result<Vec<BlockOutcome>, CallError> {
        let count = request.claims.len();
        self.outcomes(Request::CommitBlocks(request), count).await
    }

    /// Releases the claims of an order that we signed.
    pub async fn delete_blocks(&self, order: &Signed<DeletionOrder>) -> Result<Vec<BlockOutcome>, CallError> {
        let count = order.record().claims.len();
        self.outcomes(Request::DeleteBlocks(DeleteBlocks { order: order.to_wire() }), count).await
    }

    /// Takes claims back from trash.
    pub async fn restore_blocks(&self, request: RestoreBlocks) -> Result<Vec<BlockOutcome>, CallError> {
        let count = request.claims.len();
        self.outcomes(Request::RestoreBlocks(request), count).await
    }

    /// Asks which claims are held; one answer per claim, in order. A disclaimer is *not* verified here.
    pub async fn has_blocks(&self, request: HasBlocks) -> Result<HasBlocksReply, CallError> {
        let count = request.claims.len();
        let request = Request::HasBlocks(request);
        match self.exchange(&request).await? {
            Reply::HasBlocks(reply) => {
                counted(&request, reply.held.len(), count)?;
                Ok(reply)
            }
            reply => Err(unexpected(&request, &reply)),
        }
    }

    /// Keeps a head on the node; returns the highest `seq` that it now has.
    pub async fn put_head(&self, head: PresentedHead) -> Result<u64, CallError> {
        let request = Request::PutHead(head);
        match self.exchange(&request).await? {
            Reply::PutHead(reply) => Ok(reply.seq),
            reply => Err(unexpected(&request, &reply)),
        }
    }

    /// The heads that the node keeps for a namespace, unverified.
    pub async fn get_heads(&self, namespace: NamespaceId) -> Result<Vec<PresentedHead>, CallError> {
        let request = Request::GetHeads(HeadsOf { namespace });
        match self.exchange(&request).await? {
            Reply::GetHeads(reply) => Ok(reply.heads),
            reply => Err(unexpected(&request, &reply)),
        }
    }

    /// Proposes terms that the namespace signed; the node's countersignature is *not* verified here.
    pub async fn agree(&self, terms: &Signed<Agreement>) -> Result<UnverifiedAgreement, CallError> {
        let request = Request::Agree(Agree { terms: terms.to_wire() });
        match self.exchange(&request).await? {
            Reply::Agree(reply) => Ok(reply),
            reply => Err(unexpected(&request, &reply)),
        }
    }

    /// The node's counters, by its own word.
    pub async fn status(&self) -> Result<NodeStatus, CallError> {
        let request = Request::Status(StatusQuery {});
        match self.exchange(&request).await? {
            Reply::Status(reply) => Ok(reply),
            reply => Err(unexpected(&request, &reply)),
        }
    }

    /// Tells the namespace what to move off this node; returns how far that has come, by its own word.
    pub async fn drain(&self, wish: Drain) -> Result<DrainProgress, CallError> {
        let request = Request::Drain(wish);
        match self.exchange(&request).await? {
            Reply::Drain(reply) => Ok(reply),
            reply => Err(unexpected(&request, &reply)),
        }
    }

    /// The next page of what the node has lost or refuses; its signature is *not* verified here.
    pub async fn declared(&self, query: DeclaredQuery) -> Result<Unverified<DeclaredPage>, CallError> {
        let request = Request::Declared(query);
        match self.exchange(&request).await? {
            Reply::Declared(reply) => Ok(reply.page),
            reply => Err(unexpected(&request, &reply)),
        }
    }

    async fn outcomes(&self, request: Request, count: usize) -> Result<Vec<BlockOutcome>, CallError> {
        match self.exchange(&request).await? {
            Reply::Outcomes(reply) => {
                counted(&request, reply.outcomes.len(), count)?;
                Ok(reply.outcomes)
            }
            reply => Err(unexpected(&request, &reply)),
        }
    }

    async fn read(
        &self,
        request: ReadBlock,
        expected_len: u32,
        expected_leaves: usize,
    ) -> Result<(ReadBlockReply, Bytes), CallError> {
        let request = Request::ReadBlock(request);
        let (reply, mut stream, mut buffered) = self.start(&request, Vec::new()).await?;
        let Reply::ReadBlock(reply) = reply else { return Err(unexpected(&request, &reply)) };
        // Before anything is allocated for the body.
        if reply.body_len != expected_len {
            return Err(CallError::Short {
                request: request.name(),
                found: u64::from(reply.body_len),
                expected: u64::from(expected_len),
            });
        }
        counted(&request, reply.paths.len(), expected_leaves)?;
        let body = buffered
            .read_exact(stream.recv.as_mut(), expected_len as usize)
            .await
            .map_err(|source| CallError::from_frame(&request, source))?;
        Ok((reply, body))
    }

    async fn exchange(&self, request: &Request) -> Result<Reply, CallError> {
        self.exchange_with(request, Vec::new()).await
    }

    async fn exchange_with(&self, request: &Request, body: Vec<Bytes>) -> Result<Reply, CallError> {
        self.start(request, body).await.map(|(reply, _, _)| reply)
    }

    /// Sends a request with its body and reads the reply's header. A refusal becomes an error.
    async fn start(
        &self,
        request: &Request,
        mut body: Vec<Bytes>,
    ) -> Result<(Reply, BiStream, ByteQueue), CallError> {
        let name = request.name();
        let transport = |source| CallError::Transport { request: name, source };
        let mut stream = self.connection.open().await.map_err(transport)?;
        match write_frame(stream.send.as_mut(), request, &mut body).await {
            Ok(()) => stream.send.finish().map_err(transport)?,
            // The peer wants no more of it: its refusal is on its way back.
            Err(FrameError::Transport(TransportError::Reset { .. })) => {}
            Err(source) => return Err(CallError::from_frame(request, source)),
        }
        let mut buffered = ByteQueue::new();
        match read_frame::<Reply>(stream.recv.as_mut(), &mut buffered).await {
            Ok(Some(Reply::Refused(refusal))) => Err(CallError::Refused(refusal)),
            Ok(Some(reply)) => Ok((reply, stream, buffered)),
            Ok(None) => Err(CallError::from_frame(request, FrameError::Truncated { missing: 0 })),
            Err(source) => Err(CallError::from_frame(request, source)),
        }
    }
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Peer({}, version {})", self.id(), self.version)
    }
}

/// Bytes and leaves of the answer to `ranges` of a block of `len` bytes: whole leaves, the last one short.
pub fn leaves_extent(
    len: BlockLen,
    unit: LeafUnit,
    ranges: &[ByteRange],
) -> Result<(u32, usize), DecodeError> {
    crate::message::check_ranges(ranges, unit)?;
    let (mut bytes, mut leaves) = (0u32, 0usize);
    for range in ranges {
        if range.end() > len.bytes() {
            return Err(DecodeError::OutOfBounds { field: "ranges" });
        }
        let first = range.start / unit.len();
        let last = (range.end() - 1) / unit.len();
        bytes += ((last + 1) * unit.len()).min(len.bytes()) - first * unit.len();
        leaves += (last - first + 1) as usize;
    }
    Ok((bytes, leaves))
}

/// Reads a stream's request. What came behind its header stays in `buffered`. `None` when the peer opened
/// a stream and said nothing.
pub async fn read_request(
    recv: &mut dyn RecvHalf,
    buffered: &mut ByteQueue,
) -> Result<Option<Request>, FrameError> {
    read_frame(recv, buffered).await
}

/// Writes a reply without a body and ends the stream. A reply of ours that passes a bound goes out as an
/// `internal` refusal instead.
pub async fn write_reply(send: &mut dyn SendHalf, reply: &Reply) -> Result<(), TransportError> {
    write_reply_with_body(send, reply, Vec::new()).await
}

/// Writes a reply with the raw bytes that it announces, without copying them, and ends the stream.
pub async fn write_reply_with_body(
    send: &mut dyn SendHalf,
    reply: &Reply,
    mut body: Vec<Bytes>,
) -> Result<(), TransportError> {
    match write_frame(send, reply, &mut body).await {
        Ok(()) => send.finish(),
        Err(FrameError::Transport(source)) => Err(source),
        Err(error) => {
            tracing::error!(reply = reply.name(), %error, "a reply passes a bound of the protocol");
            refuse(send, Refusal::new(RefusalReason::Internal, "the answer passes a bound of the protocol"))
                .await
        }
    }
}

/// Writes a refusal and ends the stream.
pub async fn refuse(send: &mut dyn SendHalf, refusal: Refusal) -> Result<(), TransportError> {
    let frame = crate::framing::encode_frame(&Reply::Refused(refusal));
    // A refusal has one bounded text and always fits; if it ever did not, a reset says no just as well.
    let Ok(frame) = frame else {
        send.reset();
        return Ok(());
    };
    send.write(frame).await?;
    send.finish()
}

/// The refusal that answers a request which could not be read; `None` when the stream itself failed and
/// nobody is there to read it.
pub fn refusal_of(error: &FrameError) -> Option<Refusal> {
    match error {
        FrameError::Transport(_) => None,
        FrameError::TooLong { .. } => Some(Refusal::new(RefusalReason::TooLarge, error.to_string())),
        FrameError::Decode(DecodeError::OutOfBounds { field: "ranges" }) => Some(Refusal::new(
            RefusalReason::Range,
            "the ranges are not ascending, disjoint and within bounds",
        )),
        FrameError::Decode(DecodeError::OutOfBounds { .. }) => {
            Some(Refusal::new(RefusalReason::TooLarge, error.to_string()))
        }
        FrameError::Decode(_) | FrameError::Truncated { .. } => {
            Some(Refusal::new(RefusalReason::Malformed, error.to_string()))
        }
        FrameError::Unsendable { .. } => Some(Refusal::new(RefusalReason::Internal, error.to_string())),
    }
}

/// The server's half of version negotiation: the version to answer Hello with, or the refusal.
pub fn answer_hello(hello: &Hello) -> Result<u16, Refusal> {
    negotiate(hello.newest, hello.oldest).ok_or_else(|| {
        Refusal::new(
            RefusalReason::Version,
            format!(
                "no version in common: you speak {} to {}, this peer {MESSAGE_VERSION_OLDEST} to \
                 {MESSAGE_VERSION}",
                hello.oldest, hello.newest
            ),
        )
    })
}

fn unsendable(message: &'static str, source: DecodeError) -> CallError {
    CallError::Frame { request: message, source: FrameError::Unsendable { message, source } }
}

fn unexpected(request: &Request, reply: &Reply) -> CallError {
    CallError::Unexpected { request: request.name(), reply: reply.name() }
}

fn counted(request: &Request, found: usize, expected: usize) -> Result<(), CallError> {
    if found == expected {
        return Ok(());
    }
    Err(CallError::Short { request: request.name(), found: found as u64, expected: expected as u64 })
}

/// Why a request failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The connection or the stream failed.
    #[error("{request} failed")]
    Transport {
        /// The request.
        request: &'static str,
        /// How.
        source: TransportError,
    },
    /// The reply could not be read, or our request not be written.
    #[error("{request} failed")]
    Frame {
        /// The request.
        request: &'static str,
        /// How.
        source: FrameError,
    },
    /// The peer said no.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The peer answered another question.
    #[error("{request} was answered with {reply}")]
    Unexpected {
        /// What was asked.
        request: &'static str,
        /// What came.
        reply: &'static str,
    },
    /// The answer has another number of bytes or entries than the request asks for.
    #[error("{request} was answered with {found} bytes or entries instead of {expected}")]
    Short {
        /// What was asked.
        request: &'static str,
        /// How much came or was announced.
        found: u64,
        /// How much there must be.
        expected: u64,
    },
    /// The peer chose a version that we did not offer.
    #[error("the peer chose message version {version}, which was not offered")]
    Version {
        /// Its choice.
        version: u16,
    },
    /// No answer in time.
    #[error("{request} was not answered within {after_ms} ms")]
    TimedOut {
        /// The request.
        request: &'static str,
        /// How long we waited.
        after_ms: u64,
    },
}

impl CallError {
    fn from_frame(request: &Request, source: FrameError) -> Self {
        let request = request.name();
        match source {
            FrameError::Transport(source) => Self::Transport { request, source },
            source => Self::Frame { request, source },
        }
    }

    /// Whether the same request can succeed at the same peer later, or on a new connection.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Transport { source, .. } => source.is_retryable(),
            // A reply cut short is what a lost connection looks like.
            Self::Frame { source, .. } => matches!(source, FrameError::Truncated { .. }),
            Self::Refused(refusal) => refusal.reason.is_retryable(),
            Self::TimedOut { .. } => true,
            Self::Unexpected { .. } | Self::Short { .. } | Self::Version { .. } => false,
        }
    }

    /// Whether a peer that follows the protocol would never have caused it.
    pub fn is_peer_fault(&self) -> bool {
        match self {
            Self::Frame { source, .. } => source.is_peer_fault(),
            Self::Unexpected { .. } | Self::Short { .. } | Self::Version { .. } => true,
            Self::Transport { .. } | Self::Refused(_) | Self::TimedOut { .. } => false,
        }
    }
}
