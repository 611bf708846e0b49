//! What a command means, decided against the index and the commands before it in the group.

use holdfast_protocol::digest::Digest;
use holdfast_protocol::message::BlockOutcome;
use holdfast_protocol::record::{AgreementId, ClaimRef};

use super::extent::{Room, SPARE_BYTES};
use super::{Group, Planned, Writer};
use crate::disk::PAGE;
use crate::store::command::{ClaimChange, Command, Expired, PutAnswer, Reply, Rewritten};
use crate::store::error::{IndexError, PutError, StoreError};
use crate::store::format::{
    self, BlockPage, Cause, ClaimEntry, Entry, OrderPage, Place, RecordPage, Standing, Tombstone,
    record_bytes,
};
use crate::store::index::bad_row;
use crate::store::index::rows::{BlockRow, ClaimKey, OrderRow};
use crate::store::types::{BlockBuffer, CLAIMS_PER_BLOCK_MAX, NewBlock, PutOutcome};

/// Orders that one command forgets.
const ORDERS_PER_GROUP: usize = 512;

/// A reply's sender and what went wrong or right before the sync.
type PutReply = Reply<Result<PutAnswer, PutError>>;

/// Answers a command that nothing can be done about.
pub(super) fn refuse(command: Command, error: &StoreError) {
    let error = error.clone();
    // A caller that has gone away needs no answer.
    match command {
        Command::Put { reply, .. } => drop(reply.send(Err(PutError::Store(error)))),
        Command::Rewrite { reply, .. } => drop(reply.send(Err(PutError::Store(error)))),
        Command::Claims { reply, .. } => drop(reply.send(Err(error))),
        Command::DeclareLost { reply, .. } => drop(reply.send(Err(error))),
        Command::Expire { reply, .. } => drop(reply.send(Err(error))),
        Command::DropOrders { reply, .. }
        | Command::Punched { reply, .. }
        | Command::Carry { reply, .. }
        | Command::Bury { reply, .. } => drop(reply.send(Err(error))),
        Command::Flush { reply } | Command::Close { reply } => drop(reply.send(Err(error))),
    }
}

/// How planning a command ends other than in the group.
enum Stop {
    /// It needs a group of its own.
    Later,
    /// No room, with the bytes that were needed.
    Full { needed: u64 },
    /// The store failed.
    Store(StoreError),
    /// The block has too many claims.
    TooManyClaims,
    /// The bytes are held, and somebody must look at them first.
    Unverified(BlockRow),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Writer {
    /// Adds `command` to the group, answers it, or leaves it for the next group.
    pub(super) fn plan(&mut self, group: &mut Group<'_>, command: Command) -> Planned {
        match command {
            Command::Put { put, verified, reply } => self.plan_put(group, put, verified, reply),
            Command::Claims { agreement, claims, change, reply } => {
                let planned = self.change_claims(group, agreement, &claims, &change);
                match planned {
                    Ok(outcomes) => self.answer(group, reply, outcomes),
                    Err(Stop::Later) => {
                        return Planned::Later(Command::Claims { agreement, claims, change, reply });
                    }
                    Err(stop) => drop(reply.send(Err(stop.into_store()))),
                }
                Planned::Done
            }
            // The rest changes what puts of the same group might rely on: each has a group to itself.
            other if !group.is_empty() => Planned::Later(other),
            other => self.plan_alone(group, other),
        }
    }

    /// Plans a command that has a group to itself.
    fn plan_alone(&mut self, group: &mut Group<'_>, command: Command) -> Planned {
        // Some of these look at the index itself: nothing may still be on its way there.
        self.pipe.wait_idle();
        match command {
            Command::Expire { now_ms, max, reply } => {
                let planned = self.expire(group, now_ms, max);
                self.answer_alone(group, reply, planned)
            }
            Command::Rewrite { block, record, reply } => self.plan_rewrite(group, *block, record, reply),
            Command::DeclareLost { digest, record, reply } => {
                let planned = self.declare_lost(group, digest, record);
                self.answer_alone(group, reply, planned)
            }
            Command::DropOrders { agreement, reply } => {
                let planned = self.drop_orders(group, agreement);
                self.answer_alone(group, reply, planned)
            }
            Command::Punched { holes, reply } => {
                let planned = self.close_holes(group, &holes);
                self.answer_alone(group, reply, planned)
            }
            Command::Carry { entries, reply } => {
                let planned = self.carry(group, &entries);
                self.answer_alone(group, reply, planned)
            }
            Command::Bury { extent, reply } => {
                let planned = self.bury(group, extent);
                self.answer_alone(group, reply, planned)
            }
            other @ (Command::Put { .. }
            | Command::Claims { .. }
            | Command::Flush { .. }
            | Command::Close { .. }) => Planned::Later(other),
        }
    }

    fn answer<T: Send + 'static>(
        &self,
        group: &mut Group<'_>,
        reply: Reply<Result<T, StoreError>>,
        value: T,
    ) {
        group.commands += 1;
        group.answers.push(Box::new(move |durable| {
            let _gone = reply.send(durable.map(|_| value));
        }));
    }

    fn answer_alone<T: Send + 'static>(
        &self,
        group: &mut Group<'_>,
        reply: Reply<Result<T, StoreError>>,
        planned: Result<T, Stop>,
    ) -> Planned {
        match planned {
            Ok(value) => {
                // Full, so that nothing joins it.
                self.answer(group, reply, value);
                group.commands = super::GROUP_COMMANDS_MAX;
            }
            Err(stop) => drop(reply.send(Err(stop.into_store()))),
        }
        Planned::Done
    }

    fn index_failed(&self, error: IndexError) -> Stop {
        Stop::Store(self.fail(error.to_string()))
    }

    fn room(
        &mut self,
        group: &mut Group<'_>,
        record_bytes: u64,
        entries: usize,
        spare: u64,
    ) -> Result<(), Stop> {
        match self.make_room(group, record_bytes, entries, spare)? {
            Room::Ready => Ok(()),
            Room::NextGroup => Err(Stop::Later),
            Room::Full => Err(Stop::Full { needed: record_bytes }),
        }
    }

    fn plan_put(
        &mut self,
        group: &mut Group<'_>,
        put: Box<(BlockBuffer, NewBlock)>,
        verified: Option<u64>,
        reply: PutReply,
    ) -> Planned {
        let planned = self.prepare_put(group, &put, verified);
        let existed = match planned {
            Ok(existed) => existed,
            Err(Stop::Unverified(held)) => {
                let _gone = reply.send(Ok(PutAnswer::Unverified { put, held }));
                return Planned::Done;
            }
            Err(Stop::Later) => return Planned::Later(Command::Put { put, verified, reply }),
            Err(Stop::Full { needed }) => {
                let free = group.txn.accounts.accounts(self.shared.capacity).free_bytes;
                let _gone = reply.send(Err(PutError::DiskFull { needed, free }));
                return Planned::Done;
            }
            Err(Stop::TooManyClaims) => {
                let _gone = reply.send(Err(PutError::TooManyClaims { digest: put.1.digest }));
                return Planned::Done;
            }
            Err(Stop::Store(error)) => {
                let _gone = reply.send(Err(PutError::Store(error)));
                return Planned::Done;
            }
        };
        let (digest, record) = (put.1.digest, self.next_record);
        if !existed && let Err(error) = self.add_block(group, *put) {
            let _gone = reply.send(Err(PutError::Store(error)));
            return Planned::Done;
        }
        group.commands += 1;
        let shared = std::sync::Arc::clone(&self.shared);
        group.answers.push(Box::new(move |durable| {
            if !existed && durable.is_ok() {
                shared.verified.note(&digest, record);
            }
            let outcome = durable.map(|group| PutAnswer::Done(PutOutcome { existed, group }));
            let _gone = reply.send(outcome.map_err(PutError::Store));
        }));
        Planned::Done
    }

    /// Makes room for a block, or adds only its claim when it is held: `true` then.
    fn prepare_put(
        &mut self,
        group: &mut Group<'_>,
        put: &(BlockBuffer, NewBlock),
        verified: Option<u64>,
    ) -> Result<bool, Stop> {
        let (buffer, new) = put;
        let held = group.txn.block(&new.digest).map_err(|error| self.index_failed(error))?;
        let Some(held) = held else {
            let needed = record_bytes(buffer.len().bytes());
            let spare = super::spare_bytes(self.shared.capacity);
            let accounts = group.txn.accounts;
            if accounts.occupied() + needed + spare > self.shared.capacity {
                return Err(Stop::Full { needed });
            }
            self.room(group, needed, 0, SPARE_BYTES)?;
            return Ok(false);
        };
        // A receipt says "I hold these bytes": somebody has looked at them, now or not long ago. A record of this
        // very group, or of the one that is being synced, was hashed when it came.
        let is_recent = held.record >= group.first_recent;
        if !is_recent
            && verified != Some(held.record)
            && !self.shared.verified.is_fresh(&new.digest, held.record)
        {
            return Err(Stop::Unverified(held));
        }
        self.room(group, 0, 1, 0)?;
        let key = ClaimKey { digest: new.digest, agreement: new.claim.agreement, tag: new.claim.tag };
        let old = group.txn.claim(&key).map_err(|error| self.index_failed(error))?;
        let mut entry = self.first_entry(new, held.record);
        match old {
            None if held.claims() >= CLAIMS_PER_BLOCK_MAX => return Err(Stop::TooManyClaims),
            Some(old) if old.standing != Standing::Trash => {
                // Only a provisional claim has a lease that matters.
                let leased = old.standing == Standing::Provisional;
                let lease_until_ms = if leased { entry.lease_until_ms } else { 0 };
                entry = ClaimEntry {
                    lease_until_ms: old.lease_until_ms.max(lease_until_ms),
                    retain_until_ms: old.retain_until_ms.max(entry.retain_until_ms),
                    changed_ms: entry.changed_ms,
                    ..old
                };
                if (entry.lease_until_ms, entry.retain_until_ms) == (old.lease_until_ms, old.retain_until_ms)
                {
                    return Ok(true);
                }
            }
            None | Some(_) => {}
        }
        self.push_claim(group, entry)?;
        Ok(true)
    }

    fn first_entry(&self, new: &NewBlock, target: u64) -> ClaimEntry {
        ClaimEntry {
            sequence: 0,
            target,
            digest: new.digest,
            agreement: new.claim.agreement,
            tag: new.claim.tag,
            scope: new.claim.scope,
            standing: Standing::from(new.claim.state),
            lease_until_ms: new.claim.lease_until_ms,
            retain_until_ms: new.claim.retain_until_ms,
            created_ms: new.claim.created_ms,
            changed_ms: self.shared.clock.now_ms(),
            order: 0,
        }
    }

    fn add_block(&mut self, group: &mut Group<'_>, put: (BlockBuffer, NewBlock)) -> Result<(), StoreError> {
        let (buffer, new) = put;
        let first = self.first_entry(&new, 0);
        self.add_record(group, Rewritten { digest: new.digest, tree: new.tree, buffer }, first).map(|_| ())
    }

    /// Writes a block's record with its first claim; returns the record's id.
    fn add_record(
        &mut self,
        group: &mut Group<'_>,
        block: Rewritten,
        first: ClaimEntry,
    ) -> Result<u64, StoreError> {
        let Rewritten { digest, tree, buffer } = block;
        let Some(open) = &self.open else { return Err(StoreError::Full) };
        let place = Place { extent: open.id, offset: group.tail };
        let stamp = self.stamp(place);
        let claim = ClaimEntry { target: stamp.record, sequence: stamp.record, ..first };
        let page = BlockPage { digest, len: buffer.len(), chain: tree.chaining_values().to_vec(), claim };
        group.txn.apply_block(&stamp, &page).map_err(|error| self.fail(error.to_string()))?;
        let (mut pages, len) = buffer.into_pages();
        format::write_record(&mut pages, &stamp, &RecordPage::Block(page), &self.shared.secret);
        self.push_record(group, pages, len);
        Ok(stamp.record)
    }

    fn plan_rewrite(
        &mut self,
        group: &mut Group<'_>,
        block: Rewritten,
        record: u64,
        reply: Reply<Result<Option<u64>, PutError>>,
    ) -> Planned {
        match self.rewrite(group, block, record) {
            Ok(rewritten) => {
                group.commands = super::GROUP_COMMANDS_MAX;
                group.answers.push(Box::new(move |durable| {
                    let _gone = reply.send(durable.map(|_| rewritten).map_err(PutError::Store));
                }));
            }
            Err(stop) => {
                let free = group.txn.accounts.accounts(self.shared.capacity).free_bytes;
                let error = match stop {
                    Stop::Full { needed } => PutError::DiskFull { needed, free },
                    other => PutError::Store(other.into_store()),
                };
                let _gone = reply.send(Err(error));
            }
        }
        Planned::Done
    }

    /// Writes the block again with every claim it has. The new record ends the old one, whose claims are told
    /// again behind it, in the same group.
    fn rewrite(&mut self, group: &mut Group<'_>, block: Rewritten, record: u64) -> Result<Option<u64>, Stop> {
        let digest = block.digest;
        let held = group.txn.block(&digest).map_err(|error| self.index_failed(error))?;
        let claims = group.txn.claims(&digest).map_err(|error| self.index_failed(error))?;
        let (Some(held), Some((first, others))) = (held, claims.split_first()) else { return Ok(None) };
        if held.record != record {
            return Ok(None);
        }
        self.room(group, record_bytes(block.buffer.len().bytes()), others.len() + 1, SPARE_BYTES)?;
        let target = self.add_record(group, block, *first)?;
        for claim in others {
            self.push_claim(group, ClaimEntry { target, ..*claim })?;
        }
        // The new record ends the old one; this outlives the new one, whose extent may go before the old one's.
        let tombstone = Tombstone {
            sequence: 0,
            target: held.record,
            place: held.place,
            digest,
            len: held.len,
            cause: Cause::Released,
            changed_ms: self.shared.clock.now_ms(),
        };
        self.push_tombstone(group, tombstone)?;
        Ok(Some(target))
    }

    /// Starts the write of a record at the group's tail.
    fn push_record(&self, group: &mut Group<'_>, pages: crate::disk::AlignedBuf, len: usize) {
        self.push_write(group, group.tail, pages, len);
        group.tail += len as u64;
        group.bytes += len as u64;
    }

    fn push_claim(&mut self, group: &mut Group<'_>, mut entry: ClaimEntry) -> Result<(), Stop> {
        entry.sequence = self.take_record();
        group.txn.apply_claim(&entry).map_err(|error| self.index_failed(error))?;
        group.entries.push(Entry::Claim(entry));
        Ok(())
    }

    fn push_tombstone(&mut self, group: &mut Group<'_>, mut tombstone: Tombstone) -> Result<(), Stop> {
        tombstone.sequence = self.take_record();
        group.txn.apply_tombstone(&tombstone).map_err(|error| self.index_failed(error))?;
        group.entries.push(Entry::Tombstone(tombstone));
        Ok(())
    }

    fn change_claims(
        &mut self,
        group: &mut Group<'_>,
        agreement: AgreementId,
        claims: &[ClaimRef],
        change: &ClaimChange,
    ) -> Result<Vec<BlockOutcome>, Stop> {
        let order = match change {
            ClaimChange::Delete { order } => order.as_deref(),
            _ => None,
        };
        let order_len = u32::try_from(order.map_or(0, <[u8]>::len)).unwrap_or(u32::MAX);
        let order_bytes = order.map_or(0, |_| record_bytes(order_len));
        self.room(group, order_bytes, claims.len(), 0)?;
        // Kept only once it does something: nobody fills a disk with orders about nothing.
        let mut kept = 0;
        let now_ms = self.shared.clock.now_ms();
        let mut outcomes = Vec::with_capacity(claims.len());
        for claim in claims {
            let key = ClaimKey::new(agreement, claim);
            let old = group.txn.claim(&key).map_err(|error| self.index_failed(error))?;
            let (outcome, entry) = match old {
                Some(old) => changed(&old, change, now_ms),
                None => match change {
                    ClaimChange::Commit { retain_until_ms } => {
                        self.passed_on(group, &key, *retain_until_ms)?
                    }
                    _ => (BlockOutcome::Absent, None),
                },
            };
            if let Some(entry) = entry {
                if let (0, Some(bytes)) = (kept, order) {
                    kept = self.add_order(group, agreement, bytes)?;
                }
                let entry = ClaimEntry { changed_ms: now_ms, order: kept, ..entry };
                self.push_claim(group, entry)?;
            }
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    /// A commit of a claim that is absent: made when the agreement keeps the block by another one.
    fn passed_on(
        &self,
        group: &Group<'_>,
        key: &ClaimKey,
        retain_until_ms: u64,
    ) -> Result<(BlockOutcome, Option<ClaimEntry>), Stop> {
        let sibling =
            group.txn.sibling(&key.digest, &key.agreement).map_err(|error| self.index_failed(error))?;
        let block = group.txn.block(&key.digest).map_err(|error| self.index_failed(error))?;
        let (Some(sibling), Some(block)) = (sibling, block) else {
            return Ok((BlockOutcome::Absent, None));
        };
        if block.claims() >= CLAIMS_PER_BLOCK_MAX {
            return Ok((BlockOutcome::Absent, None));
        }
        let entry = ClaimEntry {
            tag: key.tag,
            standing: Standing::Live,
            lease_until_ms: 0,
            retain_until_ms,
            created_ms: self.shared.clock.now_ms(),
            ..sibling
        };
        Ok((BlockOutcome::Done, Some(entry)))
    }

    /// Keeps a deletion order as a record of its own; returns its record id.
    fn add_order(
        &mut self,
        group: &mut Group<'_>,
        agreement: AgreementId,
        bytes: &[u8],
    ) -> Result<u64, Stop> {
        let full = Stop::Full { needed: bytes.len() as u64 };
        let padded = bytes.len().next_multiple_of(PAGE);
        let Some(mut pages) = self.shared.write_pool.take_unbounded(PAGE + padded) else { return Err(full) };
        let Some(open) = &self.open else { return Err(full) };
        let place = Place { extent: open.id, offset: group.tail };
        let stamp = self.stamp(place);
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let page = OrderPage { digest: Digest::of(bytes), len, agreement };
        group.txn.apply_order(&stamp, &page).map_err(|error| self.index_failed(error))?;
        pages[PAGE..PAGE + bytes.len()].copy_from_slice(bytes);
        pages[PAGE + bytes.len()..PAGE + padded].fill(0);
        format::write_record(&mut pages, &stamp, &RecordPage::Order(page), &self.shared.secret);
        self.push_record(group, pages, PAGE + padded);
        Ok(stamp.record)
    }

    fn expire(&mut self, group: &mut Group<'_>, now_ms: u64, max: usize) -> Result<Expired, Stop> {
        let mut expired = Expired::default();
        let Some(until_ms) = now_ms.checked_sub(self.shared.trash_period_ms) else { return Ok(expired) };
        let view = self.shared.index.view();
        let due = view.due(b't', until_ms, max).map_err(|error| self.index_failed(error))?;
        if due.is_empty() {
            return Ok(expired);
        }
        self.room(group, 0, 2 * due.len(), 0)?;
        for key in due {
            let old = group.txn.claim(&key).map_err(|error| self.index_failed(error))?;
            let Some(old) = old else { continue };
            let gone = ClaimEntry { standing: Standing::Gone, changed_ms: now_ms, ..old };
            self.push_claim(group, gone)?;
            expired.claims += 1;
            let block = group.txn.block(&key.digest).map_err(|error| self.index_failed(error))?;
            if let Some(block) = block.filter(|block| block.claims() == 0) {
                let tombstone = Tombstone {
                    sequence: 0,
                    target: block.record,
                    place: block.place,
                    digest: key.digest,
                    len: block.len,
                    cause: Cause::Released,
                    changed_ms: now_ms,
                };
                self.push_tombstone(group, tombstone)?;
                expired.blocks += 1;
            }
        }
        Ok(expired)
    }

    fn declare_lost(
        &mut self,
        group: &mut Group<'_>,
        digest: Digest,
        record: Option<u64>,
    ) -> Result<bool, Stop> {
        let block = group.txn.block(&digest).map_err(|error| self.index_failed(error))?;
        let Some(block) = block.filter(|block| record.is_none_or(|record| record == block.record)) else {
            return Ok(false);
        };
        self.room(group, 0, 1, 0)?;
        let tombstone = Tombstone {
            sequence: 0,
            target: block.record,
            place: block.place,
            digest,
            len: block.len,
            cause: Cause::Lost,
            changed_ms: self.shared.clock.now_ms(),
        };
        self.push_tombstone(group, tombstone)?;
        Ok(true)
    }

    fn drop_orders(&mut self, group: &mut Group<'_>, agreement: AgreementId) -> Result<u64, Stop> {
        let rows = group
            .txn
            .scan(&OrderRow::rows_of(&agreement), ORDERS_PER_GROUP)
            .map_err(|error| self.index_failed(error))?;
        if rows.is_empty() {
            return Ok(0);
        }
        self.room(group, 0, rows.len(), 0)?;
        for (key, value) in &rows {
            let (Some(record), Some(row)) = (OrderRow::record(key), OrderRow::decode(value)) else {
                return Err(self.index_failed(bad_row(key)));
            };
            let tombstone = Tombstone {
                sequence: 0,
                target: record,
                place: row.place,
                digest: Digest([0; 32]),
                len: row.len,
                cause: Cause::OrderDropped(agreement),
                changed_ms: self.shared.clock.now_ms(),
            };
            self.push_tombstone(group, tombstone)?;
        }
        Ok(rows.len() as u64)
    }

    fn close_holes(&mut self, group: &mut Group<'_>, holes: &[Place]) -> Result<u64, Stop> {
        group.index_only = true;
        let mut bytes = 0;
        for hole in holes {
            bytes += group.txn.close_hole(*hole).map_err(|error| self.index_failed(error))?;
        }
        Ok(bytes)
    }

    /// Writes again, as new entries, those that are still the newest word on something that is held.
    fn carry(&mut self, group: &mut Group<'_>, entries: &[Entry]) -> Result<u64, Stop> {
        self.room(group, 0, entries.len(), 0)?;
        let mut carried = 0;
        for entry in entries {
            match *entry {
                Entry::Claim(claim) => {
                    let key = ClaimKey::of(&claim);
                    let newest = group.txn.claim(&key).map_err(|error| self.index_failed(error))?;
                    let counts = if claim.standing == Standing::Gone {
                        let block =
                            group.txn.block(&claim.digest).map_err(|error| self.index_failed(error))?;
                        newest.is_none() && block.is_some_and(|block| block.record == claim.target)
                    } else {
                        newest.is_some_and(|newest| newest.sequence == claim.sequence)
                    };
                    if counts {
                        self.push_claim(group, claim)?;
                        carried += 1;
                    }
                }
                Entry::Tombstone(tombstone) => {
                    // Its target's header would be replayed as a held block without it. A loss is told
                    // for as long as it is remembered.
                    let target = group.txn.extent(tombstone.place.extent);
                    let target = target.map_err(|error| self.index_failed(error))?;
                    let lost = group.txn.lost(&tombstone.digest).map_err(|error| self.index_failed(error))?;
                    let still_lost = lost == Some(tombstone.sequence);
                    if target.is_some() || still_lost {
                        let forgotten = tombstone.cause == Cause::Lost && !still_lost;
                        let cause = if forgotten { Cause::Released } else { tombstone.cause };
                        self.push_tombstone(group, Tombstone { cause, ..tombstone })?;
                        carried += 1;
                    }
                }
            }
        }
        Ok(carried)
    }

    fn bury(&mut self, group: &mut Group<'_>, extent: u64) -> Result<u64, Stop> {
        group.index_only = true;
        group.txn.bury_extent(extent).map_err(|error| self.index_failed(error))?;
        Ok(1)
    }
}

/// What `change` makes of a claim.
fn changed(old: &ClaimEntry, change: &ClaimChange, now_ms: u64) -> (BlockOutcome, Option<ClaimEntry>) {
    use BlockOutcome::{Absent, Already, Done, Retained};
    let to = |standing| (Done, Some(ClaimEntry { standing, ..*old }));
    match *change {
        // What an order released comes back by a restore only, not by a commit that was late.
        ClaimChange::Commit { .. } if old.standing == Standing::Trash && old.order != 0 => (Absent, None),
        ClaimChange::Commit { retain_until_ms } => {
            let retain_until_ms = old.retain_until_ms.max(retain_until_ms);
            if old.standing == Standing::Live && retain_until_ms == old.retain_until_ms {
                return (Already, None);
            }
            (Done, Some(ClaimEntry { standing: Standing::Live, retain_until_ms, ..*old }))
        }
        ClaimChange::Delete { ref order } => match old.standing {
            // Dropped with its lease before; from now on by the order.
            Standing::Trash if order.is_some() && old.order == 0 => (Already, Some(*old)),
            Standing::Trash | Standing::Gone => (Already, None),
            _ if old.retain_until_ms > now_ms => (Retained, None),
            _ => to(Standing::Trash),
        },
        ClaimChange::Restore => match old.standing {
            Standing::Trash => to(Standing::Live),
            _ => (Already, None),
        },
        ClaimChange::DropProvisional => match old.standing {
            Standing::Provisional => to(Standing::Trash),
            _ => (Already, None),
        },
        ClaimChange::ExtendLease { lease_until_ms } => {
            if old.standing != Standing::Provisional || old.lease_until_ms >= lease_until_ms {
                return (Already, None);
            }
            (Done, Some(ClaimEntry { lease_until_ms, ..*old }))
        }
    }
}

impl Stop {
    fn into_store(self) -> StoreError {
        match self {
            Self::Store(error) => error,
            Self::Full { .. } | Self::Later | Self::TooManyClaims | Self::Unverified(_) => StoreError::Full,
        }
    }
}
