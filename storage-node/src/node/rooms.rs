//! How much room each namespace has left, so that puts under way together never exceed what was agreed.
//!
//! Agreements of one namespace follow one another: what is kept under one that has ended counts under its successor, so
//! room is counted over all of them. The store counts what an agreement keeps, but asking it for every put would cost a look-up each. So its answer
//! is kept, puts are added to it, and it is asked again only when the sum says that the agreement is full. The sum can
//! only be too high (deletions, repeated puts), never too low.

use std::collections::HashMap;
use std::sync::Arc;

use holdfast_protocol::NamespaceId;
use holdfast_protocol::digest::BlockLen;
use holdfast_protocol::message::{Refusal, RefusalReason};
use parking_lot::Mutex;

use super::admission;
use super::ledger::Ledger;
use crate::disks::Disks;
use crate::server::refusal;
use crate::store::page_bytes;

/// The rooms of all namespaces; as many entries as there are namespaces with puts.
#[derive(Default)]
pub(crate) struct Rooms {
    tallies: Mutex<HashMap<NamespaceId, Arc<Mutex<Tally>>>>,
}

#[derive(Debug, Default)]
struct Tally {
    /// Pages of what is kept, as the store said once it was asked.
    counted: Option<u64>,
    /// Bytes of puts that ended since it was asked.
    kept: u64,
    /// Bytes of puts that run.
    running: u64,
}

impl Tally {
    fn take(&mut self, len: u64, capacity: u64) -> bool {
        let Some(counted) = self.counted else { return false };
        let taken = counted.saturating_add(self.kept).saturating_add(self.running);
        if taken.saturating_add(len) > capacity {
            return false;
        }
        self.running += len;
        true
    }

    /// Takes in what the store counted; puts that ended before it was asked are in that count.
    fn recount(&mut self, counted: u64, kept_before: u64) {
        self.counted = Some(counted);
        self.kept -= kept_before.min(self.kept);
    }
}

/// Room taken for one put; given back when dropped, unless the put was kept.
#[derive(Debug)]
pub(crate) struct Room {
    tally: Arc<Mutex<Tally>>,
    len: u64,
}

impl Room {
    /// The block is durable: its room stays taken.
    pub(crate) fn keep(self) {
        self.tally.lock().kept += self.len;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut tally = self.tally.lock();
        tally.running -= self.len.min(tally.running);
    }
}

impl Rooms {
    /// Takes room for a block of `len` bytes for the namespace, or refuses. Charged are whole pages with the header,
    /// as the disk gives them: else an agreement full of tiny blocks would fill a disk thousands of times its size.
    pub(crate) async fn reserve(
        &self,
        store: &Disks,
        ledger: &Ledger,
        namespace: NamespaceId,
        now_ms: u64,
        len: BlockLen,
    ) -> Result<Room, Refusal> {
        let agreements = ledger.of_namespace(namespace);
        let running = agreements.iter().filter(|held| admission::in_term(held.terms(), now_ms));
        let capacity = running.fold(0u64, |sum, held| sum.saturating_add(held.terms().capacity_bytes));
        let len = page_bytes(len);
        let tally = self.tallies.lock().entry(namespace).or_default().clone();
        if tally.lock().take(len, capacity) {
            return Ok(Room { tally, len });
        }
        let kept_before = tally.lock().kept;
        let mut counted = 0u64;
        for agreement in &agreements {
            let usage = store.agreement_usage(agreement.id()).await.map_err(|error| refusal::read(&error))?;
            counted = counted.saturating_add(usage.page_bytes);
        }
        let mut held = tally.lock();
        held.recount(counted, kept_before);
        let taken = held.take(len, capacity);
        drop(held);
        if taken {
            return Ok(Room { tally, len });
        }
        Err(Refusal::new(
            RefusalReason::AgreementFull,
            format!(
                "{capacity} bytes are agreed on, {counted} are taken with headers and padding; {len} more do not fit"
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_and_kept_puts_count_until_the_store_is_asked_again() {
        let shared = Arc::new(Mutex::new(Tally { counted: Some(10), ..Tally::default() }));
        assert!(shared.lock().take(60, 100));
        assert!(!shared.lock().take(31, 100));
        assert!(shared.lock().take(30, 100));
        Room { tally: shared.clone(), len: 60 }.keep();
        drop(Room { tally: shared.clone(), len: 30 });
        assert!(!shared.lock().take(31, 100));
        assert!(shared.lock().take(30, 100));
        // The store has seen the kept put, and a deletion.
        shared.lock().recount(20, 60);
        assert!(shared.lock().take(50, 100));
        assert!(!shared.lock().take(1, 100));
    }

    #[test]
    fn nothing_is_taken_before_the_store_was_asked() {
        assert!(!Tally::default().take(1, 100));
    }
}
