//! The extent store: blocks in append-only extents, found through a rebuildable index.
//!
//! It owns the files below its directory and promises that what it acknowledged survives a crash at any
//! instant. It never verifies a block's bytes on the way in or out (its callers hash), never decides who
//! may read or delete, and never talks to the network. `docs/STORAGE.md` argues the format.

use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use holdfast_protocol::digest::{BlockLen, Digest};
use holdfast_protocol::message::{BlockOutcome, ByteRange};
use holdfast_protocol::record::{AgreementId, Claim, ClaimRef};
use tokio::sync::{mpsc, oneshot};

mod command;
pub mod config;
mod engine;
pub mod error;
mod format;
mod identity;
mod index;
mod read;
mod reclaim;
mod replay;
pub mod types;
mod walk;
mod writer;

pub use config::{IoMode, StoreConfig};
pub use error::{IndexError, OpenError, PutError, ReadError, StoreError};
pub use types::{
    Accounts, AgreementUsage, BlockBuffer, CLAIMS_PER_BLOCK_MAX, CLAIMS_PER_CALL_MAX, CommitGroupId,
    KeptOrder, Located, NewBlock, ORDER_LEN_MAX, PutOutcome, ReclaimReport, SharedTree,
};

use command::{ClaimChange, Command};
use engine::Shared;

/// An open store. Every change is durable when its call returns, by a sync that it shares with whatever else
/// was ready.
pub struct Store {
    shared: Arc<Shared>,
    /// `None` only while being dropped.
    commands: Option<mpsc::Sender<Command>>,
    writer: Option<JoinHandle<()>>,
}

impl Drop for Store {
    /// Waits for the writer, so that whoever dropped the store can open it again. A change is taken up by
    /// the next open even when the store was not closed.
    fn drop(&mut self) {
        drop(self.commands.take());
        if let Some(writer) = self.writer.take() {
            let _panicked = writer.join();
        }
    }
}

impl Store {
    /// Opens the store in `config.dir`, making it when absent and replaying what a crash left behind.
    /// Blocks; call it from a thread that may.
    pub fn open(config: StoreConfig) -> Result<Arc<Self>, OpenError> {
        // A thread of its own, because replay waits for the disk in ways that a runtime's thread may not.
        let opened = std::thread::scope(|scope| scope.spawn(|| engine::open(config)).join());
        let (shared, commands, writer) = opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(Arc::new(Self { shared, commands: Some(commands), writer: Some(writer) }))
    }

    /// Makes the index durable and stops the writer; later changes are refused, reads go on.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.ask(|reply| Command::Close { reply }).await?
    }

    /// How the store does its I/O: `io_uring` or `threads`.
    pub fn io_name(&self) -> &'static str {
        self.shared.disk.name()
    }

    /// The store's id, as kept in its identity file.
    pub fn id(&self) -> [u8; 16] {
        self.shared.id
    }

    /// Memory for a block of `len` bytes, waiting while the bound on such memory is reached.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn admit(&self, len: BlockLen) -> Result<BlockBuffer, StoreError> {
        let bytes = crate::disk::PAGE + len.as_usize();
        let pages = self.shared.write_pool.take(bytes).await.ok_or(StoreError::Closing)?;
        Ok(BlockBuffer::new(pages, len))
    }

    /// Puts a block, or only its claim when the bytes are held already. The caller has hashed the bytes.
    ///
    /// # Cancel safety
    /// When dropped, the block may have been put or not.
    pub async fn put(&self, buffer: BlockBuffer, block: NewBlock) -> Result<PutOutcome, PutError> {
        if buffer.remaining() != 0 {
            return Err(PutError::Mismatch { field: "buffer" });
        }
        if block.claim.digest != block.digest {
            return Err(PutError::Mismatch { field: "claim" });
        }
        if block.tree.len() != buffer.len() {
            return Err(PutError::Mismatch { field: "tree" });
        }
        let put = Box::new((buffer, block));
        self.ask(|reply| Command::Put { put, reply }).await?
    }

    /// Makes provisional claims live. A claim that is absent is made when the agreement has another one on
    /// the block. `retain_until_ms` of 0 leaves retention as it is; retention never shrinks.
    pub async fn commit(
        &self,
        agreement: AgreementId,
        claims: &[ClaimRef],
        retain_until_ms: u64,
    ) -> Result<Vec<BlockOutcome>, StoreError> {
        self.change(agreement, claims, ClaimChange::Commit { retain_until_ms }).await
    }

    /// Sends claims to trash; retained ones are refused. `order` is kept as the node's defence.
    pub async fn delete(
        &self,
        agreement: AgreementId,
        claims: &[ClaimRef],
        order: Option<Vec<u8>>,
    ) -> Result<Vec<BlockOutcome>, StoreError> {
        within(order.as_ref().map_or(0, Vec::len), ORDER_LEN_MAX, "order")?;
        self.change(agreement, claims, ClaimChange::Delete { order }).await
    }

    /// Takes claims back from trash; they are live then.
    pub async fn restore(
        &self,
        agreement: AgreementId,
        claims: &[ClaimRef],
    ) -> Result<Vec<BlockOutcome>, StoreError> {
        self.change(agreement, claims, ClaimChange::Restore).await
    }

    /// Sends claims to trash if they are still provisional: the end of a lease that nobody wants.
    /// `Already` means that the claim is no longer provisional.
    pub async fn drop_provisional(
        &self,
        agreement: AgreementId,
        claims: &[ClaimRef],
    ) -> Result<Vec<BlockOutcome>, StoreError> {
        self.change(agreement, claims, ClaimChange::DropProvisional).await
    }

    /// Keeps provisional claims until `lease_until_ms`, if that is later than before.
    pub async fn extend_lease(
        &self,
        agreement: AgreementId,
        claims: &[ClaimRef],
        lease_until_ms: u64,
    ) -> Result<Vec<BlockOutcome>, StoreError> {
        self.change(agreement, claims, ClaimChange::ExtendLease { lease_until_ms }).await
    }

    /// Says that a block is lost: its claims go, its pages are reclaimed, and [`Store::is_lost`] remembers.
    /// `false` when it was not held.
    pub async fn declare_lost(&self, digest: Digest) -> Result<bool, StoreError> {
        self.ask(|reply| Command::DeclareLost { digest, reply }).await?
    }

    /// Whether `digest` was declared lost and not put again.
    pub async fn is_lost(&self, digest: Digest) -> Result<bool, ReadError> {
        self.shared.lookup(move |view| view.is_lost(&digest)).await
    }

    /// Where a block lies and who claims it; `None` when it is not held.
    pub async fn locate(&self, digest: Digest) -> Result<Option<Located>, ReadError> {
        self.shared.locate(digest).await
    }

    /// One claim, in whatever state.
    pub async fn claim(&self, agreement: AgreementId, claim: ClaimRef) -> Result<Option<Claim>, ReadError> {
        self.shared.lookup(move |view| view.claim(&agreement, &claim)).await
    }

    /// Exactly `range` of a located block. The bytes are the disk's: the reader verifies them.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn read(&self, located: &Located, range: ByteRange) -> Result<Bytes, ReadError> {
        self.shared.read(located, range).await
    }

    /// A located block's group tree, from its header page or the cache.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn tree(&self, located: &Located) -> Result<SharedTree, ReadError> {
        self.shared.tree(located).await
    }

    /// Provisional claims whose lease ended at or before `now_ms`, oldest first, at most `max`.
    pub async fn expired_leases(
        &self,
        now_ms: u64,
        max: usize,
    ) -> Result<Vec<(AgreementId, ClaimRef)>, ReadError> {
        self.shared.lookup(move |view| view.expired_leases(now_ms, max)).await
    }

    /// What an agreement keeps here.
    pub async fn agreement_usage(&self, agreement: AgreementId) -> Result<AgreementUsage, ReadError> {
        self.shared.lookup(move |view| view.agreement_usage(&agreement)).await
    }

    /// The deletion orders kept for an agreement, oldest first, at most `max`.
    pub async fn orders(&self, agreement: AgreementId, max: usize) -> Result<Vec<KeptOrder>, ReadError> {
        self.shared.orders(agreement, max).await
    }

    /// Forgets the orders of an agreement whose term is over. Returns how many.
    pub async fn drop_orders(&self, agreement: AgreementId) -> Result<u64, StoreError> {
        self.ask(|reply| Command::DropOrders { agreement, reply }).await?
    }

    /// Where every byte is.
    pub fn accounts(&self) -> Accounts {
        self.shared.accounts()
    }

    /// Why writes are refused, if they are.
    pub fn failure(&self) -> Option<String> {
        self.shared.failure()
    }

    /// Ends trash whose period is over at `now_ms`, punches what nothing keeps, unlinks dead extents.
    pub async fn reclaim(&self, now_ms: u64) -> Result<ReclaimReport, StoreError> {
        let commands = self.commands.as_ref().ok_or(StoreError::Closing)?;
        reclaim::reclaim(&self.shared, commands, now_ms).await
    }

    /// Makes the index durable now, so that a restart replays little.
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.ask(|reply| Command::Flush { reply }).await?
    }

    async fn change(
        &self,
        agreement: AgreementId,
        claims: &[ClaimRef],
        change: ClaimChange,
    ) -> Result<Vec<BlockOutcome>, StoreError> {
        within(claims.len(), CLAIMS_PER_CALL_MAX, "claims")?;
        let claims = claims.to_vec();
        self.ask(|reply| Command::Claims { agreement, claims, change, reply }).await?
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let commands = self.commands.as_ref().ok_or(StoreError::Closing)?;
        commands.send(command(reply)).await.map_err(|_| StoreError::Closing)?;
        answer.await.map_err(|_| StoreError::Closing)
    }
}

fn within(count: usize, bound: usize, field: &'static str) -> Result<(), StoreError> {
    if count <= bound { Ok(()) } else { Err(StoreError::TooLarge { field, bound }) }
}
