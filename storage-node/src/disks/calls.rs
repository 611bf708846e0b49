//! The calls of a store, over all disks.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_protocol::digest::{BlockLen, Digest};
use holdfast_protocol::message::{BlockOutcome, ByteRange};
use holdfast_protocol::record::{AgreementId, Claim, ClaimRef};

use super::Disks;
use super::choose::choose;
use crate::disk::PAGE;
use crate::store::command::ClaimChange;
use crate::store::{
    AgreementUsage, BlockBuffer, ChangedBuckets, CommitGroupId, InventoryEntry, KeptOrder, Located, Loss,
    NewBlock, PutError, PutOutcome, ReadError, SharedTree, Store, StoreError,
};

/// The disk's number is in the upper bits of a commit group's: groups of two disks are never one.
const GROUP_BITS: u32 = 56;

/// What [`Disks::changed_buckets`] saw; for [`Disks::forget_changed`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DisksChanged(Vec<(usize, ChangedBuckets)>);

impl DisksChanged {
    /// The buckets, ascending, each once.
    pub fn buckets(&self) -> Vec<u16> {
        let mut buckets: Vec<u16> = self.0.iter().flat_map(|(_, seen)| seen.buckets()).collect();
        buckets.sort_unstable();
        buckets.dedup();
        buckets
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|(_, seen)| seen.is_empty())
    }
}

impl Disks {
    /// Memory for a block of `len` bytes, waiting while the bound on such memory is reached.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn admit(&self, len: BlockLen) -> Result<BlockBuffer, StoreError> {
        let pages = self.pools.write.take(PAGE + len.as_usize()).await.ok_or(StoreError::Closing)?;
        Ok(BlockBuffer::new(pages, len))
    }

    /// Puts a block on the disk that holds it already, else on one that has room. See [`Store::put`].
    pub async fn put(&self, buffer: BlockBuffer, block: NewBlock) -> Result<PutOutcome, PutError> {
        let digest = block.digest;
        let placed = self.placing.begin(digest);
        let held = self.holder(digest).await.map_err(|error| failed(&error))?;
        let needed = 2 * PAGE as u64 + u64::from(buffer.len().bytes());
        let disk = match held {
            Some(disk) => Some(disk),
            None => placed.settle(|| choose(&digest, needed, &self.rooms())),
        };
        let Some((disk, store)) = disk.and_then(|disk| Some((disk, self.store(disk)?))) else {
            return Err(self.no_room(needed));
        };
        let outcome = store.put(buffer, block).await?;
        let disk_bits = u64::try_from(disk).unwrap_or(0) << GROUP_BITS;
        Ok(PutOutcome { group: CommitGroupId(outcome.group.0 | disk_bits), ..outcome })
    }

    /// Disks that take blocks, with the bytes that these may still take.
    fn rooms(&self) -> Vec<(usize, u64)> {
        let writable = self.present().filter(|(_, store)| store.failure().is_none() && !store.is_full());
        writable.map(|(disk, store)| (disk, self.room_left(disk, store.block_room()))).collect()
    }

    fn no_room(&self, needed: u64) -> PutError {
        let read_only = self.present().find(|(_, store)| store.is_read_only());
        match (self.failure(), read_only) {
            (Some(_), Some((disk, _))) => {
                PutError::Store(StoreError::ReadOnly { dir: self.slots[disk].config.dir.clone() })
            }
            (Some(detail), None) => PutError::Store(StoreError::Failed { detail }),
            (None, _) => PutError::DiskFull { needed, free: self.accounts().free_bytes },
        }
    }

    /// The disk that holds a block. With one disk nobody needs to look.
    async fn holder(&self, digest: Digest) -> Result<Option<usize>, ReadError> {
        if self.slots.len() == 1 {
            return Ok(Some(0));
        }
        for (disk, store) in self.present() {
            if store.holds(digest).await? {
                return Ok(Some(disk));
            }
        }
        Ok(None)
    }

    /// See [`Store::commit`].
    pub async fn commit(
        &self,
        agreement: AgreementId,
        claims: &[ClaimRef],
        retain_until_ms: u64,
    ) -> Result<Vec<BlockOutcome>, StoreError> {
        self.change(agreement, claims, ClaimChange::Commit { retain_until_ms }).await
    }

    /// See [`Store::delete`]. Each disk whose blocks an order releases keeps the order.
    pub async fn delete(
        &self,
        agreement: AgreementId,
        claims: &[ClaimRef],
        order: Option<Vec<u8>>,
    ) -> Result<Vec<BlockOutcome>, StoreError> {
        self.change(agreement, claims, ClaimChange::Delete { order }).await
    }

    /// See [`Store::restore`].
    pub async fn restore(
        &self,
        agreement: AgreementId,
        claims: &[ClaimRef],
    ) -> Result<Vec<BlockOutcome>, StoreError> {
        self.change(agreement, claims, ClaimChange::Restore).await
    }

    /// See [`Store::drop_provisional`].
    pub async fn drop_provisional(
        &self,
        agreement: AgreementId,
        claims: &[ClaimRef],
    ) -> Result<Vec<BlockOutcome>, StoreError> {
        self.change(agreement, claims, ClaimChange::DropProvisional).await
    }

    /// See [`Store::extend_lease`].
    pub async fn extend_lease(
        &self,
        agreement: AgreementId,
        claims: &[ClaimRef],
        lease_until_ms: u64,
    ) -> Result<Vec<BlockOutcome>, StoreError> {
        self.change(agreement, claims, ClaimChange::ExtendLease { lease_until_ms }).await
    }

    /// Makes a change on the disks that hold the claims. A claim that is found nowhere is absent, or, while a disk is
    /// away, unknown: then what was found is changed all the same, and the call ends with `Away`; it can be repeated.
    async fn change(
        &self,
        agreement: AgreementId,
        claims: &[ClaimRef],
        change: ClaimChange,
    ) -> Result<Vec<BlockOutcome>, StoreError> {
        if let [slot] = &self.slots[..] {
            let store = slot.store().ok_or_else(|| StoreError::Away { dir: slot.config.dir.clone() })?;
            return store.change(agreement, claims, change).await;
        }
        let mut outcomes = vec![BlockOutcome::Absent; claims.len()];
        let mut routes: Vec<Vec<usize>> = vec![Vec::new(); self.slots.len()];
        let mut unknown = false;
        for (index, claim) in claims.iter().enumerate() {
            let found = self.holder_of_claim(agreement, *claim).await;
            match found.map_err(|error| StoreError::Failed { detail: error.to_string() })? {
                Some(disk) => routes[disk].push(index),
                None => unknown = true,
            }
        }
        for (disk, indices) in routes.iter().enumerate().filter(|(_, indices)| !indices.is_empty()) {
            let Some(store) = self.store(disk) else {
                return Err(StoreError::Away { dir: self.slots[disk].config.dir.clone() });
            };
            let there: Vec<ClaimRef> = indices.iter().map(|index| claims[*index]).collect();
            for (index, outcome) in indices.iter().zip(store.change(agreement, &there, change.clone()).await?)
            {
                outcomes[*index] = outcome;
            }
        }
        match self.away() {
            Some(dir) if unknown => Err(StoreError::Away { dir }),
            _ => Ok(outcomes),
        }
    }

    /// The disk with the claim itself, else one with the block: a commit may pass the block on to a new tag.
    async fn holder_of_claim(
        &self,
        agreement: AgreementId,
        claim: ClaimRef,
    ) -> Result<Option<usize>, ReadError> {
        let mut holder = None;
        for (disk, store) in self.present() {
            if store.claim(agreement, claim).await?.is_some() {
                return Ok(Some(disk));
            }
            if holder.is_none() && store.holds(claim.0).await? {
                holder = Some(disk);
            }
        }
        Ok(holder)
    }

    /// Where a block lies and who claims it; `None` when no disk holds it, `Away` when one is missing that may.
    pub async fn locate(&self, digest: Digest) -> Result<Option<Located>, ReadError> {
        let mut found: Option<Located> = None;
        for (slot, store) in self.present() {
            let Some(located) = store.locate(digest).await? else { continue };
            match &mut found {
                // A disk that was away when the block was put again may hold it, too.
                Some(first) => first.claims.extend(located.claims),
                None => found = Some(Located { slot, ..located }),
            }
        }
        self.or_away(found)
    }

    /// `found`, or that a disk is away on which it may be.
    fn or_away<T>(&self, found: Option<T>) -> Result<Option<T>, ReadError> {
        match (found, self.away()) {
            (None, Some(dir)) => Err(ReadError::Away { dir }),
            (found, _) => Ok(found),
        }
    }

    /// One claim, in whatever state.
    pub async fn claim(&self, agreement: AgreementId, claim: ClaimRef) -> Result<Option<Claim>, ReadError> {
        for (_, store) in self.present() {
            if let Some(found) = store.claim(agreement, claim).await? {
                return Ok(Some(found));
            }
        }
        self.or_away(None)
    }

    /// Exactly `range` of a located block. The bytes are the disk's: the reader verifies them.
    pub async fn read(&self, located: &Located, range: ByteRange) -> Result<Bytes, ReadError> {
        self.store_of(located)?.read(located, range).await
    }

    /// A located block's group tree.
    pub async fn tree(&self, located: &Located) -> Result<SharedTree, ReadError> {
        self.store_of(located)?.tree(located).await
    }

    fn store_of(&self, located: &Located) -> Result<Arc<Store>, ReadError> {
        let away = || ReadError::Away {
            dir: self.slots.get(located.slot).map(|slot| slot.config.dir.clone()).unwrap_or_default(),
        };
        self.store(located.slot).ok_or_else(away)
    }

    /// Whether `digest` was declared lost and not put again.
    pub async fn is_lost(&self, digest: Digest) -> Result<bool, ReadError> {
        for (_, store) in self.present() {
            if store.is_lost(digest).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Blocks declared lost and not put again, by digest, behind `after`, at most `max`.
    pub async fn losses(&self, after: Option<Digest>, max: usize) -> Result<Vec<Loss>, ReadError> {
        let mut losses = Vec::new();
        for (_, store) in self.present() {
            losses.extend(store.losses(after, max).await?);
        }
        losses.sort_unstable_by_key(|loss| loss.digest.0);
        losses.dedup_by_key(|loss| loss.digest);
        losses.truncate(max);
        Ok(losses)
    }

    /// Provisional claims whose lease ended at or before `now_ms`, at most `max`.
    pub async fn expired_leases(
        &self,
        now_ms: u64,
        max: usize,
    ) -> Result<Vec<(AgreementId, ClaimRef)>, ReadError> {
        self.expired_leases_except(now_ms, max, &HashSet::new()).await
    }

    /// As [`Disks::expired_leases`], without the claims of these agreements.
    pub async fn expired_leases_except(
        &self,
        now_ms: u64,
        max: usize,
        skipped: &HashSet<AgreementId>,
    ) -> Result<Vec<(AgreementId, ClaimRef)>, ReadError> {
        let mut expired = Vec::new();
        for (_, store) in self.present() {
            let more = store.expired_leases_except(now_ms, max - expired.len(), skipped.clone()).await?;
            expired.extend(more);
        }
        Ok(expired)
    }

    /// What an agreement keeps on the disks that are there.
    pub async fn agreement_usage(&self, agreement: AgreementId) -> Result<AgreementUsage, ReadError> {
        let mut sum = AgreementUsage::default();
        for (_, store) in self.present() {
            let usage = store.agreement_usage(agreement).await?;
            sum.claims += usage.claims;
            sum.bytes += usage.bytes;
            sum.page_bytes += usage.page_bytes;
        }
        Ok(sum)
    }

    /// The deletion orders kept for an agreement, at most `max`; an order that concerned two disks comes twice.
    pub async fn orders(&self, agreement: AgreementId, max: usize) -> Result<Vec<KeptOrder>, ReadError> {
        let mut orders = Vec::new();
        for (_, store) in self.present() {
            orders.extend(store.orders(agreement, max - orders.len()).await?);
        }
        Ok(orders)
    }

    /// Forgets the orders of an agreement whose term is over, some at a time. Returns how many.
    pub async fn drop_orders(&self, agreement: AgreementId) -> Result<u64, StoreError> {
        let mut dropped = 0;
        for (_, store) in self.present() {
            dropped += store.drop_orders(agreement).await?;
        }
        Ok(dropped)
    }

    /// What agreements keep, over all disks, in one bucket of the inventory: see [`Store::entries`]. `Away` while a disk
    /// is missing: an inventory without it would tell of losses that are none.
    pub async fn entries(
        &self,
        bucket: u16,
        after: Option<(Digest, AgreementId)>,
        max: usize,
    ) -> Result<Vec<InventoryEntry>, ReadError> {
        if let Some(dir) = self.away() {
            return Err(ReadError::Away { dir });
        }
        let mut entries: Vec<InventoryEntry> = Vec::new();
        for (_, store) in self.present() {
            entries.extend(store.entries(bucket, after, max).await?);
        }
        if self.slots.len() > 1 {
            // Live before provisional, so that the copy that counts most is kept.
            entries.sort_unstable_by_key(|entry| (entry.digest.0, entry.agreement, !entry.live));
            entries.dedup_by_key(|entry| (entry.digest, entry.agreement));
            entries.truncate(max);
        }
        Ok(entries)
    }

    /// The buckets whose entries may have changed: see [`Store::changed_buckets`].
    pub fn changed_buckets(&self) -> DisksChanged {
        DisksChanged(self.present().map(|(disk, store)| (disk, store.changed_buckets())).collect())
    }

    /// Forgets what `seen` saw: see [`Store::forget_changed`].
    pub async fn forget_changed(&self, seen: DisksChanged) -> Result<(), StoreError> {
        for (disk, seen) in seen.0 {
            if let Some(store) = self.store(disk) {
                store.forget_changed(seen).await?;
            }
        }
        Ok(())
    }

    /// Changes whenever an index was rebuilt or another set of disks is there: see [`Store::generation`].
    pub fn generation(&self) -> u64 {
        let mut hasher = blake3::Hasher::new();
        for (_, store) in self.present() {
            hasher.update(&store.id());
            hasher.update(&store.generation().to_le_bytes());
        }
        hasher.finalize().as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }
}

fn failed(error: &ReadError) -> PutError {
    PutError::Store(StoreError::Failed { detail: error.to_string() })
}
