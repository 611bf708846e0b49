//! The extent store: blocks in append-only extents, found through a rebuildable index.
//!
//! It owns the files below its directory and promises that what it acknowledged survives a crash at any
//! instant. It never verifies a block's bytes on the way in or out (its callers hash), never decides who
//! may read or delete, and never talks to the network. `docs/STORAGE.md` argues the format.

use std::collections::HashSet;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use holdfast_protocol::digest::{BlockLen, Digest};
use holdfast_protocol::message::{BlockOutcome, ByteRange};
use holdfast_protocol::record::{AgreementId, Claim, ClaimRef};
use tokio::sync::{mpsc, oneshot};

pub(crate) mod command;
pub mod config;
mod engine;
pub mod error;
mod format;
pub mod health;
pub(crate) mod identity;
mod index;
pub mod inspect;
mod read;
mod reclaim;
mod replay;
pub mod scrub;
#[doc(hidden)]
pub mod synthetic;
pub mod types;
mod verify;
mod walk;
mod writer;

pub use config::{Expect, IoMode, Pools, StoreConfig};
pub use error::{IndexError, OpenError, PutError, ReadError, StoreError};
pub use health::{Alarm, StoreHealth};
pub use scrub::{ScrubProgress, ScrubStep};
pub use types::{
    Accounts, AgreementUsage, BlockBuffer, CLAIMS_PER_BLOCK_MAX, CLAIMS_PER_CALL_MAX, ChangedBuckets,
    CommitGroupId, InventoryEntry, KeptOrder, Located, Loss, NewBlock, ORDER_LEN_MAX, PutOutcome,
    ReclaimReport, Replayed, SharedTree,
};

use command::{ClaimChange, Command, PutAnswer, Rewritten};
use engine::Shared;
use index::rows::BlockRow;
use scrub::Scrub;
use verify::{Look, tree_of};

/// How often a put looks again at a held copy that changes under it.
const PUT_ATTEMPTS: usize = 4;

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

    /// Moves the index of a store that nobody has open out of the way, so that the next open makes it anew from the
    /// extents. Answers the store's id. The last index set aside is kept as `index.damaged`.
    pub fn set_index_aside(dir: &std::path::Path) -> Result<[u8; 16], OpenError> {
        let Some(id) = identity::look(dir)? else {
            return Err(OpenError::Missing {
                dir: dir.to_owned(),
                expected: "that was to be rebuilt".to_owned(),
            });
        };
        let held = identity::open(dir, Expect::Store(id), 0)?;
        if held.index.exists() {
            engine::set_aside(&held.index)?;
        }
        Ok(id)
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
        let (digest, mut put, mut verified) = (block.digest, Box::new((buffer, block)), None);
        for _attempt in 0..PUT_ATTEMPTS {
            match self.ask(|reply| Command::Put { put, verified, reply }).await?? {
                PutAnswer::Done(outcome) => return Ok(outcome),
                PutAnswer::Unverified { put: back, held } => {
                    verified = self.verify_held(&digest, &held, back.0.data()).await?;
                    put = back;
                }
            }
        }
        Err(PutError::Contended { digest })
    }

    /// Looks at the held copy of bytes that are put again; a bad copy is replaced by these. Answers the record that
    /// was found whole or written, `None` when it ended meanwhile.
    async fn verify_held(
        &self,
        digest: &Digest,
        held: &BlockRow,
        data: &[u8],
    ) -> Result<Option<u64>, PutError> {
        let look = self.shared.look_at(digest, held).await;
        let look = look.map_err(|error| StoreError::Failed { detail: error.to_string() })?;
        match look {
            Look::Good => return Ok(Some(held.record)),
            Look::Ended => return Ok(None),
            Look::Unreadable(error) => {
                self.shared.note_read_error(held.place, &error);
                if !self.shared.look_for_presence() {
                    return Err(StoreError::Away { dir: self.shared.dir.clone() }.into());
                }
            }
            Look::BadHeader(_) | Look::WrongBytes => {}
        }
        tracing::error!(%digest, "the held copy of a block that is put again is bad; it is written anew");
        let buffer = self.shared.copy_of(data).ok_or(PutError::Mismatch { field: "buffer" })?;
        let block = Box::new(Rewritten { digest: *digest, tree: tree_of(data), buffer });
        let record = held.record;
        self.ask(|reply| Command::Rewrite { block, record, reply }).await?
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
        let record = None;
        self.ask(|reply| Command::DeclareLost { digest, record, reply }).await?
    }

    /// Whether `digest` was declared lost and not put again.
    pub async fn is_lost(&self, digest: Digest) -> Result<bool, ReadError> {
        self.shared.lookup(move |view| view.is_lost(&digest)).await
    }

    /// Blocks declared lost and not put again, by digest, behind `after`, at most `max`.
    pub async fn losses(&self, after: Option<Digest>, max: usize) -> Result<Vec<Loss>, ReadError> {
        self.shared.lookup(move |view| view.losses(after.as_ref(), max)).await
    }

    /// What agreements keep here, by digest and agreement, in one of 65,536 buckets (the first 16 bits of the digest),
    /// behind `after`, at most `max`. Blocks in trash are not in it.
    pub async fn entries(
        &self,
        bucket: u16,
        after: Option<(Digest, AgreementId)>,
        max: usize,
    ) -> Result<Vec<InventoryEntry>, ReadError> {
        self.shared.lookup(move |view| view.inventory(bucket, after, max)).await
    }

    /// The buckets whose entries may have changed since [`Store::forget_changed`] forgot them. Survives crashes: a
    /// bucket is noted in the batch that changes it.
    pub fn changed_buckets(&self) -> ChangedBuckets {
        self.shared.index.changed_buckets()
    }

    /// Forgets what `seen` saw, once whatever was derived from it is safe. Changes since then stay noted.
    pub async fn forget_changed(&self, seen: ChangedBuckets) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.shared);
        let forgotten = tokio::task::spawn_blocking(move || shared.index.forget_changed(&seen)).await;
        let forgotten = forgotten.map_err(|_| StoreError::Closing)?;
        forgotten.map_err(|error| StoreError::Failed { detail: error.to_string() })
    }

    /// Drawn when the index was made. Whoever keeps something derived from it and finds another generation (the index
    /// was rebuilt) derives everything anew, because buckets that are empty now are not noted as changed.
    pub fn generation(&self) -> u64 {
        self.shared.generation
    }

    /// Bytes that new blocks may still take: what is free without what is kept for small records.
    pub fn block_room(&self) -> u64 {
        let spare = writer::spare_bytes(self.shared.capacity);
        self.accounts().free_bytes.saturating_sub(spare)
    }

    /// Whether the last block found no room on the file system.
    pub fn is_full(&self) -> bool {
        self.shared.checks.full.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// How the disk does: what is free, what failed, what a person should look at. Asks the disk a little.
    pub fn health(&self) -> StoreHealth {
        self.shared.health()
    }

    /// Whether the disk was read-only when the store was opened.
    pub fn is_read_only(&self) -> bool {
        self.shared.read_only
    }

    /// Whether a store that was opened read-only could be opened for writing by now.
    pub fn could_be_written(&self) -> bool {
        self.shared.read_only && !identity::is_read_only(&self.shared.dir)
    }

    /// Whether the store's directory is still what its path leads to. When it is not, nothing is written any more.
    pub fn is_present(&self) -> bool {
        self.shared.look_for_presence()
    }

    /// One step of the scrub: a block is read and hashed. See [`scrub::pace`] for when.
    pub async fn scrub_step(&self, now_ms: u64) -> Result<ScrubStep, ReadError> {
        let commands = self.commands.clone().ok_or(ReadError::Closing)?;
        Scrub { shared: Arc::clone(&self.shared), commands, now_ms }.step().await
    }

    /// Whether the scrub stopped because too much failed; a restart begins it anew.
    pub fn scrub_stopped(&self) -> bool {
        self.shared.scrub.stopped().is_some()
    }

    /// How far the scrub is.
    pub fn scrub_progress(&self) -> ScrubProgress {
        self.shared.scrub.progress(self.shared.accounts(), self.shared.scrub_period_ms)
    }

    /// Reads for peers so far, and whether puts or changes wait: what the scrub makes way for.
    pub fn load(&self) -> (u64, bool) {
        let waiting =
            self.commands.as_ref().is_some_and(|commands| commands.capacity() < commands.max_capacity());
        (self.shared.checks.reads.load(std::sync::atomic::Ordering::Relaxed), waiting)
    }

    /// Where a block lies and who claims it; `None` when it is not held.
    pub async fn locate(&self, digest: Digest) -> Result<Option<Located>, ReadError> {
        self.shared.locate(digest).await
    }

    /// Whether a block is held, by whatever claims.
    pub async fn holds(&self, digest: Digest) -> Result<bool, ReadError> {
        self.shared.lookup(move |view| Ok(view.block(&digest)?.is_some())).await
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

    /// Forgets the cached group tree of a block, so that the next [`Store::tree`] reads its header page.
    pub fn forget_tree(&self, digest: &Digest) {
        self.shared.trees.lock().pop(digest);
    }

    /// Forgets all cached group trees.
    pub fn forget_trees(&self) {
        self.shared.trees.lock().clear();
    }

    /// Provisional claims whose lease ended at or before `now_ms`, oldest first, at most `max`.
    pub async fn expired_leases(
        &self,
        now_ms: u64,
        max: usize,
    ) -> Result<Vec<(AgreementId, ClaimRef)>, ReadError> {
        self.expired_leases_except(now_ms, max, HashSet::new()).await
    }

    /// As [`Store::expired_leases`], without the claims of these agreements.
    pub async fn expired_leases_except(
        &self,
        now_ms: u64,
        max: usize,
        skipped: HashSet<AgreementId>,
    ) -> Result<Vec<(AgreementId, ClaimRef)>, ReadError> {
        self.shared.lookup(move |view| view.expired_leases(now_ms, max, &skipped)).await
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

    pub(crate) async fn change(
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

/// Bytes on disk of a block of `len` bytes: its header page and whole pages of data. This is what an agreement is
/// charged for it.
pub fn page_bytes(len: BlockLen) -> u64 {
    format::record_bytes(len.bytes())
}

fn within(count: usize, bound: usize, field: &'static str) -> Result<(), StoreError> {
    if count <= bound { Ok(()) } else { Err(StoreError::TooLarge { field, bound }) }
}
