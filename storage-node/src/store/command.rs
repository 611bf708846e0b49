//! What callers ask of the writer.

use holdfast_proofs::GroupTree;
use holdfast_protocol::digest::Digest;
use holdfast_protocol::message::BlockOutcome;
use holdfast_protocol::record::{AgreementId, ClaimRef};
use tokio::sync::oneshot;

use super::error::{PutError, StoreError};
use super::format::{Entry, Place};
use super::index::rows::BlockRow;
use super::types::{BlockBuffer, NewBlock, PutOutcome};

/// Commands that may wait for the writer; senders wait beyond that.
pub(crate) const COMMANDS_MAX: usize = 1024;

/// The sender's end of an answer.
pub(crate) type Reply<T> = oneshot::Sender<T>;

/// A change to claims.
#[derive(Clone, Debug)]
pub(crate) enum ClaimChange {
    Commit { retain_until_ms: u64 },
    Delete { order: Option<Vec<u8>> },
    Restore,
    DropProvisional,
    ExtendLease { lease_until_ms: u64 },
}

/// What a step of ending trash did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Expired {
    pub(crate) claims: u64,
    pub(crate) blocks: u64,
}

/// What a put came to.
pub(crate) enum PutAnswer {
    /// It is durable.
    Done(PutOutcome),
    /// The bytes are held, but nobody has read them lately: the caller looks at them and asks again.
    Unverified { put: Box<(BlockBuffer, NewBlock)>, held: BlockRow },
}

/// The bytes of a held block, verified, in a buffer of their own.
pub(crate) struct Rewritten {
    pub(crate) digest: Digest,
    pub(crate) tree: GroupTree,
    pub(crate) buffer: BlockBuffer,
}

/// One thing for the writer to do.
pub(crate) enum Command {
    Put {
        put: Box<(BlockBuffer, NewBlock)>,
        /// The held record of this digest that the caller has just read and found whole.
        verified: Option<u64>,
        reply: Reply<Result<PutAnswer, PutError>>,
    },
    /// Writes a held block once more, with all its claims, in place of `record`; answers the new record, or `None`
    /// when `record` is no longer the one that is held.
    Rewrite {
        block: Box<Rewritten>,
        record: u64,
        reply: Reply<Result<Option<u64>, PutError>>,
    },
    Claims {
        agreement: AgreementId,
        claims: Vec<ClaimRef>,
        change: ClaimChange,
        reply: Reply<Result<Vec<BlockOutcome>, StoreError>>,
    },
    /// Ends a block as lost; only `record` of it when that is given.
    DeclareLost {
        digest: Digest,
        record: Option<u64>,
        reply: Reply<Result<bool, StoreError>>,
    },
    DropOrders {
        agreement: AgreementId,
        reply: Reply<Result<u64, StoreError>>,
    },
    /// Ends trash that is due, at most `max` claims; answers how many claims and blocks went.
    Expire {
        now_ms: u64,
        max: usize,
        reply: Reply<Result<Expired, StoreError>>,
    },
    /// Holes that have been punched; answers their bytes.
    Punched {
        holes: Vec<Place>,
        reply: Reply<Result<u64, StoreError>>,
    },
    /// Writes those entries of a dying extent that still count once more; answers how many.
    Carry {
        entries: Vec<Entry>,
        reply: Reply<Result<u64, StoreError>>,
    },
    /// An extent whose file is gone.
    Bury {
        extent: u64,
        reply: Reply<Result<u64, StoreError>>,
    },
    Flush {
        reply: Reply<Result<(), StoreError>>,
    },
    Close {
        reply: Reply<Result<(), StoreError>>,
    },
}
