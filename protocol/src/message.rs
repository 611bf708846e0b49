//! Messages: what a stream's two headers say. One request is one bidirectional stream.
//!
//! A header is a length-prefixed canonical DAG-CBOR value (see [`crate::framing`]); the raw bytes that
//! a message announces follow it on the same stream.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::cbor::DecodeError;
use crate::digest::{BlockLen, Digest};
use crate::key::NamespaceId;
use crate::limits::{
    BLOCK_LEN_MAX, CLAIMS_PER_REQUEST_MAX, HEADS_MAX, READ_LEAVES_MAX, READ_RANGES_MAX, TEXT_LEN_MAX,
};
use crate::record::{
    Agreement, AgreementId, ClaimRef, ClaimTag, Delegation, Disclaimer, NodeRecord, PresentedGrant,
    PresentedHead, Receipt, ScopeId, Unverified, UnverifiedAgreement,
};

pub mod audit;

pub use audit::{AuditQuery, AuditReply, InventoryQuery, InventoryReply};
mod declared;
mod drain;

pub use declared::{DeclaredQuery, DeclaredReply};
pub use drain::{Drain, DrainProgress, DrainWish};

/// The message version this release speaks best.
pub const MESSAGE_VERSION: u16 = 1;
/// The oldest it still speaks.
pub const MESSAGE_VERSION_OLDEST: u16 = 1;

/// The first thing on every stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Who I am, which versions I speak. Must be the first request of a connection.
    Hello(Hello),
    /// Keep this block provisionally. `len` raw bytes follow.
    PutBlock(PutBlock),
    /// These provisional blocks are now live.
    CommitBlocks(CommitBlocks),
    /// Give me a block, or parts of it with proofs.
    ReadBlock(ReadBlock),
    /// Which of these do you hold? A node asks its namespace the same at the end of a lease.
    HasBlocks(HasBlocks),
    /// Release these blocks to trash.
    DeleteBlocks(DeleteBlocks),
    /// Take these blocks back from trash.
    RestoreBlocks(RestoreBlocks),
    /// Keep this head if its `seq` is the highest.
    PutHead(PresentedHead),
    /// Give me the heads of a namespace.
    GetHeads(HeadsOf),
    /// Countersign these terms.
    Agree(Agree),
    /// Tell me your counters.
    Status(StatusQuery),
    /// Page through what an agreement keeps here.
    Inventory(InventoryQuery),
    /// Between an auditor and a node.
    Audit(AuditQuery),
    /// From a node to its namespace: move blocks off me.
    Drain(Drain),
    /// Which blocks have you lost, or do you refuse?
    Declared(DeclaredQuery),
}

/// The first thing that comes back on every stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// To Hello.
    Hello(HelloReply),
    /// To PutBlock: the block is synced on disk.
    PutBlock(PutBlockReply),
    /// To CommitBlocks, RestoreBlocks and DeleteBlocks: one outcome per claim, in order.
    Outcomes(Outcomes),
    /// To ReadBlock. The announced raw bytes follow.
    ReadBlock(ReadBlockReply),
    /// To HasBlocks.
    HasBlocks(HasBlocksReply),
    /// To PutHead: the highest `seq` now kept.
    PutHead(HeadSeq),
    /// To GetHeads.
    GetHeads(Heads),
    /// To Agree.
    Agree(UnverifiedAgreement),
    /// To Status.
    Status(NodeStatus),
    /// To Inventory.
    Inventory(InventoryReply),
    /// To Audit. The raw bytes that an answer announces follow.
    Audit(AuditReply),
    /// To Drain.
    Drain(DrainProgress),
    /// To Declared.
    Declared(DeclaredReply),
    /// To any request: no, and why.
    Refused(Refusal),
}

/// Opens a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Newest message version spoken.
    pub newest: u16,
    /// Oldest message version spoken.
    pub oldest: u16,
    /// For whom this peer acts; without it the session may only read under grants.
    pub delegation: Option<Unverified<Delegation>>,
    /// A node that dials out introduces itself.
    pub node_record: Option<Unverified<NodeRecord>>,
    /// The sender's clock, so that a wrong one is noticed before signed times fail.
    pub now_ms: u64,
    /// Software name and version, for people.
    pub software: String,
}

/// Answers Hello.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HelloReply {
    /// The version both will speak: the newest that both know.
    pub version: u16,
    /// What the node says of itself.
    pub node_record: Option<Unverified<NodeRecord>>,
    /// The agreement with the presented delegation's namespace, if there is one.
    pub agreement: Option<UnverifiedAgreement>,
    /// The replier's clock.
    pub now_ms: u64,
    /// Software name and version.
    pub software: String,
}

/// Announces a block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PutBlock {
    /// Under which agreement.
    pub agreement: AgreementId,
    /// The block's digest; the node hashes the bytes and refuses others.
    pub digest: Digest,
    /// How many raw bytes follow.
    pub len: BlockLen,
    /// Names the claim among the agreement's claims on this block.
    pub tag: ClaimTag,
    /// Who may read; `None` is public.
    pub scope: Option<ScopeId>,
    /// Keep until then without a CommitBlocks.
    pub lease_until_ms: u64,
    /// Refuse deletion until then; 0 for never.
    pub retain_until_ms: u64,
}

/// Says that a block is durable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PutBlockReply {
    /// Whether the bytes were there before.
    pub existed: bool,
    /// The receipt of the node's commit group; it covers this block and perhaps others.
    pub receipt: Unverified<Receipt>,
}

/// Makes provisional claims live. A claim that does not exist is made, when the agreement has another
/// one on the same block: that is how a block passes from stripe to stripe without moving.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CommitBlocks {
    /// Under which agreement.
    pub agreement: AgreementId,
    /// Which.
    pub claims: Vec<ClaimRef>,
    /// New retention; 0 leaves it as it is.
    pub retain_until_ms: u64,
}

/// Releases claims, by an order that the delegate signs and the node keeps as its defence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeleteBlocks {
    /// What to release.
    pub order: Unverified<DeletionOrder>,
}

/// "Let these go": signed by the namespace or its delegate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletionOrder {
    /// Version.
    pub v: u16,
    /// Under which agreement.
    pub agreement: AgreementId,
    /// Which.
    pub claims: Vec<ClaimRef>,
    /// When it was decided.
    pub issued_ms: u64,
}

impl crate::record::Record for DeletionOrder {
    const NAME: &'static str = "deletion order";
    const DOMAIN: &'static str = "holdfast deletion order v1";
    fn version(&self) -> u16 {
        self.v
    }
    fn check_bounds(&self) -> Result<(), DecodeError> {
        crate::record::within(self.claims.len() <= CLAIMS_PER_REQUEST_MAX, "claims")
    }
}

/// Takes blocks back from trash.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RestoreBlocks {
    /// Under which agreement.
    pub agreement: AgreementId,
    /// Which.
    pub claims: Vec<ClaimRef>,
}

/// One outcome per claim of the request, in its order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcomes {
    /// The outcomes.
    pub outcomes: Vec<BlockOutcome>,
}

/// What happened to one claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockOutcome {
    /// Done, durably.
    Done,
    /// Nothing to do: it was so already.
    Already,
    /// No such claim of this agreement.
    Absent,
    /// Retained until a later time.
    Retained,
}

/// Asks for a block or parts of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReadBlock {
    /// Which block.
    pub digest: Digest,
    /// What of it.
    pub part: ReadPart,
    /// Permission, unless the session is a delegate's with the right to read or the block is public.
    pub grant: Option<Box<PresentedGrant>>,
}

/// What of a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadPart {
    /// All of it; the reader hashes it.
    Whole,
    /// Byte ranges, widened to whole leaves, each leaf with its path.
    Leaves {
        /// The leaf.
        unit: LeafUnit,
        /// The ranges, ascending and disjoint.
        ranges: Vec<ByteRange>,
    },
}

/// What a proof's leaf is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeafUnit {
    /// 16 KiB: what readers use.
    Group,
    /// 1 KiB: what challenges use.
    Chunk,
}

impl LeafUnit {
    /// The leaf's length in bytes; only a block's last leaf is shorter.
    #[allow(clippy::len_without_is_empty, reason = "a unit of length is never empty")]
    pub const fn len(self) -> u32 {
        match self {
            Self::Group => crate::limits::GROUP_LEN,
            Self::Chunk => crate::limits::CHUNK_LEN,
        }
    }
}

/// A byte range of a block: `start..start+len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ByteRange {
    /// First byte.
    pub start: u32,
    /// How many bytes; at least 1.
    pub len: u32,
}

impl ByteRange {
    /// One past the last byte.
    pub const fn end(self) -> u32 {
        self.start.saturating_add(self.len)
    }
}

/// Answers ReadBlock. `body_len` raw bytes follow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReadBlockReply {
    /// How many raw bytes follow: the whole block, or all leaves of all ranges one after another.
    pub body_len: u32,
    /// For leaves: the path of each, in the order of the bytes; empty for a whole block.
    pub paths: Vec<LeafPath>,
}

/// The path of one leaf up to the digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafPath {
    /// Which leaf: group or chunk index within the block.
    #[serde(rename = "i")]
    pub index: u32,
    /// Sibling chaining values, leaf upwards, 32 bytes each, concatenated.
    #[serde(rename = "p")]
    pub siblings: ByteBuf,
}

/// Asks what is held.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HasBlocks {
    /// Under which agreement.
    pub agreement: AgreementId,
    /// Which.
    pub claims: Vec<ClaimRef>,
}

/// One answer per claim of the request, in its order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HasBlocksReply {
    /// The answers.
    pub held: Vec<Held>,
    /// From a namespace to its node: the signed no for the claims it does not want.
    pub disclaimer: Option<Unverified<Disclaimer>>,
}

/// What is held of one claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Held {
    /// Nothing.
    Absent,
    /// Provisionally.
    Provisional,
    /// Live.
    Live,
    /// In trash; can be restored.
    Trash,
    /// Was held; the node has declared the loss itself.
    Lost,
}

/// Whose heads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadsOf {
    /// The namespace.
    pub namespace: NamespaceId,
}

/// The heads kept for a namespace, one per gateway instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Heads {
    /// At most [`HEADS_MAX`].
    pub heads: Vec<PresentedHead>,
}

/// A head's sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadSeq {
    /// The highest kept.
    pub seq: u64,
}

/// Proposes terms, signed by the namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agree {
    /// The terms.
    pub terms: Unverified<Agreement>,
}

/// Asks for counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusQuery {}

/// A node's counters. `capacity_bytes = used_bytes + trash_bytes + garbage_bytes + free_bytes`, always.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Bytes offered.
    pub capacity_bytes: u64,
    /// Whole pages, with headers, of blocks that a claim keeps.
    pub used_bytes: u64,
    /// Pages of blocks in trash.
    pub trash_bytes: u64,
    /// Pages that nothing refers to and that are not reclaimed yet.
    pub garbage_bytes: u64,
    /// The rest.
    pub free_bytes: u64,
    /// Lengths of the blocks that live claims keep: what is paid.
    pub paid_bytes: u64,
    /// Blocks held by live or provisional claims.
    pub blocks: u64,
    /// Agreements in force.
    pub agreements: u64,
    /// Seconds since start.
    pub uptime_s: u64,
    /// Whether new blocks are refused, and why; empty when they are not.
    pub refusing_writes: String,
    /// Software name and version.
    pub software: String,
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For programs.
    pub reason: RefusalReason,
    /// For people.
    pub message: String,
    /// When trying again makes sense; 0 when it does not.
    pub retry_after_ms: u64,
}

impl Refusal {
    /// A refusal that trying again does not mend.
    pub fn new(reason: RefusalReason, message: impl Into<String>) -> Self {
        let mut message: String = message.into();
        if message.len() > TEXT_LEN_MAX {
            message = message.chars().take(TEXT_LEN_MAX / 4).collect();
        }
        Self { reason, message, retry_after_ms: if reason.is_retryable() { 1000 } else { 0 } }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.reason, self.message)
    }
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RefusalReason {
    /// The request cannot be read or contradicts itself.
    Malformed,
    /// No version in common.
    Version,
    /// Hello must come first.
    HelloFirst,
    /// The peer may not do this.
    Forbidden,
    /// The delegation or grant has expired or is not valid yet.
    Expired,
    /// The grant's byte budget is spent.
    BudgetSpent,
    /// No such agreement, or it has ended.
    NoAgreement,
    /// The agreement's capacity is used up.
    AgreementFull,
    /// No such block here.
    NotFound,
    /// The node knows that it lost this block.
    Lost,
    /// The operator refuses this block by a signed list.
    Denied,
    /// The bytes are not those of the digest.
    DigestMismatch,
    /// The range lies outside the block or is not in order.
    Range,
    /// The disk is full.
    DiskFull,
    /// The disk failed; reads may still work.
    DiskFailed,
    /// Too much at once; try again.
    Busy,
    /// The node is stopping or draining.
    Stopping,
    /// A bound of the protocol is passed.
    TooLarge,
    /// A fault of the node's own.
    Internal,
}

impl RefusalReason {
    /// Whether the same request can succeed later at the same node.
    pub const fn is_retryable(self) -> bool {
        matches!(self, Self::Busy | Self::Stopping | Self::DiskFull | Self::Internal)
    }
}

impl Request {
    /// The request's name, for logs, metrics and errors.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "Hello",
            Self::PutBlock(_) => "PutBlock",
            Self::CommitBlocks(_) => "CommitBlocks",
            Self::ReadBlock(_) => "ReadBlock",
            Self::HasBlocks(_) => "HasBlocks",
            Self::DeleteBlocks(_) => "DeleteBlocks",
            Self::RestoreBlocks(_) => "RestoreBlocks",
            Self::PutHead(_) => "PutHead",
            Self::GetHeads(_) => "GetHeads",
            Self::Agree(_) => "Agree",
            Self::Status(_) => "Status",
            Self::Inventory(_) => "Inventory",
            Self::Audit(_) => "Audit",
            Self::Drain(_) => "Drain",
            Self::Declared(_) => "Declared",
        }
    }

    /// Checks the bounds that CBOR cannot express. Called once, by the framing.
    pub fn check_bounds(&self) -> Result<(), DecodeError> {
        let claims = |claims: &[ClaimRef]| within(claims.len() <= CLAIMS_PER_REQUEST_MAX, "claims");
        match self {
            Self::Hello(hello) => {
                within(hello.software.len() <= TEXT_LEN_MAX, "software")?;
                within(hello.oldest <= hello.newest, "oldest")
            }
            Self::CommitBlocks(request) => claims(&request.claims),
            Self::HasBlocks(request) => claims(&request.claims),
            Self::RestoreBlocks(request) => claims(&request.claims),
            Self::ReadBlock(request) => match &request.part {
                ReadPart::Whole => Ok(()),
                ReadPart::Leaves { ranges, unit } => check_ranges(ranges, *unit),
            },
            Self::Inventory(query) => query.check_bounds(),
            Self::Audit(query) => query.check_bounds(),
            Self::DeleteBlocks(_)
            | Self::PutBlock(_)
            | Self::PutHead(_)
            | Self::GetHeads(_)
            | Self::Agree(_)
            | Self::Status(_)
            | Self::Drain(_)
            | Self::Declared(_) => Ok(()),
        }
    }
}

impl Reply {
    /// The reply's name, for errors.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "Hello",
            Self::PutBlock(_) => "PutBlock",
            Self::Outcomes(_) => "Outcomes",
            Self::ReadBlock(_) => "ReadBlock",
            Self::HasBlocks(_) => "HasBlocks",
            Self::PutHead(_) => "PutHead",
            Self::GetHeads(_) => "GetHeads",
            Self::Agree(_) => "Agree",
            Self::Status(_) => "Status",
            Self::Inventory(_) => "Inventory",
            Self::Audit(_) => "Audit",
            Self::Drain(_) => "Drain",
            Self::Declared(_) => "Declared",
            Self::Refused(_) => "Refused",
        }
    }

    /// Checks the bounds that CBOR cannot express. Called once, by the framing.
    pub fn check_bounds(&self) -> Result<(), DecodeError> {
        match self {
            Self::Hello(reply) => within(reply.software.len() <= TEXT_LEN_MAX, "software"),
            Self::Outcomes(reply) => within(reply.outcomes.len() <= CLAIMS_PER_REQUEST_MAX, "outcomes"),
            Self::ReadBlock(reply) => {
                within(reply.body_len <= BLOCK_LEN_MAX, "body_len")?;
                within(reply.paths.len() <= READ_LEAVES_MAX, "paths")?;
                within(reply.paths.iter().all(|path| path.siblings.len() % 32 == 0), "siblings")
            }
            Self::HasBlocks(reply) => within(reply.held.len() <= CLAIMS_PER_REQUEST_MAX, "held"),
            Self::GetHeads(reply) => within(reply.heads.len() <= HEADS_MAX, "heads"),
            Self::Status(reply) => within(
                reply.software.len() <= TEXT_LEN_MAX && reply.refusing_writes.len() <= TEXT_LEN_MAX,
                "software",
            ),
            Self::Audit(reply) => reply.check_bounds(),
            Self::Inventory(_) | Self::Declared(_) => Ok(()),
            Self::Drain(reply) => reply.check_bounds(),
            Self::Refused(refusal) => within(refusal.message.len() <= TEXT_LEN_MAX, "message"),
            Self::PutBlock(_) | Self::PutHead(_) | Self::Agree(_) => Ok(()),
        }
    }
}

/// Checks that ranges ascend, share no leaf and stay within the bounds of one answer.
pub(crate) fn check_ranges(ranges: &[ByteRange], unit: LeafUnit) -> Result<(), DecodeError> {
    within(!ranges.is_empty() && ranges.len() <= READ_RANGES_MAX, "ranges")?;
    let mut next = 0u32;
    let mut leaves = 0u32;
    for range in ranges {
        within(range.len > 0 && range.len <= BLOCK_LEN_MAX, "ranges")?;
        within(range.start < BLOCK_LEN_MAX && range.end() <= BLOCK_LEN_MAX, "ranges")?;
        let (first, last) = (range.start / unit.len(), (range.end() - 1) / unit.len());
        // Leaves, not bytes, must be disjoint: no leaf is sent twice.
        within(first >= next, "ranges")?;
        next = last + 1;
        leaves += last - first + 1;
    }
    within(leaves as usize <= READ_LEAVES_MAX, "ranges")
}

fn within(holds: bool, field: &'static str) -> Result<(), DecodeError> {
    crate::record::within(holds, field)
}

/// The version both sides speak best, if they share one.
pub fn negotiate(newest: u16, oldest: u16) -> Option<u16> {
    let version = newest.min(MESSAGE_VERSION);
    (version >= oldest && version >= MESSAGE_VERSION_OLDEST).then_some(version)
}
