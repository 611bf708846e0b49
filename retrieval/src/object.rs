//! Objects as readers want them: any bytes at any time, read ahead where that helps, wherever they come from.
//!
//! [`ObjectSource`] is the seam: direct reads from nodes and reads through a gateway both stand behind it.
//! [`ObjectReader`] adds what every reader needs: it recognises how the object is read, fetches ahead within a
//! budget of bytes that all readers of a process share, and hands bytes out without copying them where it can.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;

mod ahead;
mod error;

pub use ahead::{Access, AheadConfig};
pub use error::ObjectError;

use ahead::{Advice, Pattern};

/// What is fetched at once ahead of a reader, where the source knows no better: the longest block.
const UNIT_BYTES: u64 = 1 << 20;
/// Units that one reader may hold or have under way, so that a table of them stays small.
const UNITS_MAX: usize = 256;
/// What is kept behind a sequential reader, whose requests may arrive a little out of order.
const BEHIND_KEPT: u64 = 512 * 1024;
/// Reads after which a unit that is still here was fetched in vain.
const TURNS_KEPT: u64 = 1024;

/// An object's bytes, as its owner wrote them.
#[async_trait]
pub trait ObjectSource: Send + Sync + 'static {
    /// Bytes of the object.
    fn size(&self) -> u64;

    /// Exactly the bytes of `range`, which is not empty and lies within the object.
    ///
    /// # Cancel safety
    /// Cancel safe: what is under way is dropped.
    async fn read(&self, range: Range<u64>) -> Result<Bytes, ObjectError>;

    /// The run of bytes around `offset` that is best fetched at once: its block.
    fn unit(&self, offset: u64) -> Range<u64> {
        let start = offset / UNIT_BYTES * UNIT_BYTES;
        start..(start + UNIT_BYTES).min(self.size())
    }
}

/// The bytes that all readers of a process may hold ahead. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AheadBudget(Arc<Semaphore>);

impl AheadBudget {
    /// A budget of `bytes`.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS))))
    }

    /// Bytes not held.
    pub fn free_bytes(&self) -> usize {
        self.0.available_permits()
    }

    fn take(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()
    }
}

/// Reads one object. Any number of reads may run at once; an idle reader holds a few hundred bytes beside
/// what it has read ahead.
pub struct ObjectReader {
    source: Arc<dyn ObjectSource>,
    budget: AheadBudget,
    state: Mutex<State>,
}

struct State {
    pattern: Pattern,
    /// By where they start; they never overlap.
    units: BTreeMap<u64, Unit>,
    /// Counts the reads.
    turn: u64,
}

type Fetched = Shared<BoxFuture<'static, Result<Bytes, ObjectError>>>;

/// Bytes read ahead, or on their way; aborted when dropped.
struct Unit {
    range: Range<u64>,
    fetched: Fetched,
    abort: AbortHandle,
    /// The read that it was started for.
    turn: u64,
    _share: OwnedSemaphorePermit,
}

impl Drop for Unit {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

/// A part of an answer.
enum Part {
    /// From a unit.
    Ahead { unit: Range<u64>, fetched: Fetched, wanted: Range<u64> },
    /// From the source itself.
    Fresh(Range<u64>),
}

impl ObjectReader {
    /// A reader that reads ahead as `config` says, within `budget`.
    pub fn new(source: Arc<dyn ObjectSource>, budget: AheadBudget, config: AheadConfig) -> Self {
        let state = State { pattern: Pattern::new(config), units: BTreeMap::new(), turn: 0 };
        Self { source, budget, state: Mutex::new(state) }
    }

    /// Bytes of the object.
    pub fn size(&self) -> u64 {
        self.source.size()
    }

    /// Up to `len` bytes from `offset` on: fewer only at the end of the object, none behind it.
    ///
    /// # Cancel safety
    /// Cancel safe: what was read ahead stays.
    pub async fn read(&self, offset: u64, len: usize) -> Result<Bytes, ObjectError> {
        let end = offset.saturating_add(len as u64).min(self.size());
        if offset >= end {
            return Ok(Bytes::new());
        }
        let wanted = offset..end;
        let parts = self.state.lock().plan(&self.source, &self.budget, &wanted);
        let mut parts: Vec<_> = parts.into_iter().map(|part| self.resolve(part)).collect();
        if parts.len() == 1
            && let Some(only) = parts.pop()
        {
            return only.await;
        }
        // In order, but all under way at once.
        let parts = futures::future::try_join_all(parts).await?;
        let mut whole = BytesMut::with_capacity(usize::try_from(end - offset).unwrap_or(0));
        parts.iter().for_each(|part| whole.extend_from_slice(part));
        Ok(whole.freeze())
    }

    /// Drops what was read ahead; the next reads start anew.
    pub fn forget(&self) {
        self.state.lock().units.clear();
    }

    /// Bytes held or on their way ahead of reads.
    pub fn ahead_bytes(&self) -> u64 {
        self.state.lock().units.values().map(|unit| unit.range.end - unit.range.start).sum()
    }

    async fn resolve(&self, part: Part) -> Result<Bytes, ObjectError> {
        let wanted = match part {
            Part::Fresh(wanted) => wanted,
            Part::Ahead { unit, fetched, wanted } => match fetched.await {
                Ok(bytes) => return cut(&bytes, &unit, &wanted),
                Err(_) => {
                    // Reading ahead is nobody's request: what failed there deserves a try of its own.
                    self.state.lock().units.remove(&unit.start);
                    wanted
                }
            },
        };
        let bytes = self.source.read(wanted.clone()).await?;
        let expected = wanted.end - wanted.start;
        if bytes.len() as u64 == expected {
            return Ok(bytes);
        }
        Err(ObjectError::Short { missing: expected.saturating_sub(bytes.len() as u64) })
    }
}

fn cut(bytes: &Bytes, unit: &Range<u64>, wanted: &Range<u64>) -> Result<Bytes, ObjectError> {
    let at = |offset: u64| usize::try_from(offset.saturating_sub(unit.start)).unwrap_or(usize::MAX);
    let (start, end) = (at(wanted.start), at(wanted.end));
    if end <= bytes.len() {
        return Ok(bytes.slice(start..end));
    }
    Err(ObjectError::Short { missing: (end - bytes.len()) as u64 })
}

impl State {
    fn plan(
        &mut self,
        source: &Arc<dyn ObjectSource>,
        budget: &AheadBudget,
        wanted: &Range<u64>,
    ) -> Vec<Part> {
        self.turn += 1;
        let advice = self.pattern.observe(wanted, source.size());
        let whole = advice.access == Access::Sequential;
        let parts = self.parts(source, budget, wanted, whole);
        self.let_go(wanted, &advice);
        for range in advice.ahead {
            self.launch(source, budget, range, whole);
        }
        parts
    }

    /// The read cut along the units that hold or will hold its bytes.
    fn parts(
        &mut self,
        source: &Arc<dyn ObjectSource>,
        budget: &AheadBudget,
        wanted: &Range<u64>,
        whole: bool,
    ) -> Vec<Part> {
        if whole {
            // A sequential reader needs all of the units that it touches.
            self.launch(source, budget, wanted.clone(), true);
        }
        let mut parts = Vec::new();
        let mut at = wanted.start;
        while at < wanted.end {
            if let Some(unit) = self.unit_at(at) {
                let end = unit.range.end.min(wanted.end);
                let (range, fetched) = (unit.range.clone(), unit.fetched.clone());
                parts.push(Part::Ahead { unit: range, fetched, wanted: at..end });
                at = end;
                continue;
            }
            let next = self.units.range(at..).next().map_or(u64::MAX, |(start, _)| *start);
            let end = next.min(wanted.end);
            parts.push(Part::Fresh(at..end));
            at = end;
        }
        parts
    }

    fn unit_at(&self, offset: u64) -> Option<&Unit> {
        let (_, unit) = self.units.range(..=offset).next_back()?;
        unit.range.contains(&offset).then_some(unit)
    }

    /// Starts what is missing of `range`, as whole units or as it is, while the budget lasts.
    fn launch(
        &mut self,
        source: &Arc<dyn ObjectSource>,
        budget: &AheadBudget,
        range: Range<u64>,
        whole: bool,
    ) {
        let mut at = range.start;
        while at < range.end && self.units.len() < UNITS_MAX {
            if let Some(unit) = self.unit_at(at) {
                at = unit.range.end;
                continue;
            }
            let natural = if whole { source.unit(at) } else { at..range.end };
            // Units never overlap: this one ends where the next begins, and begins where the last ended.
            let before = self.units.range(..=at).next_back().map_or(0, |(_, unit)| unit.range.end);
            let behind = self.units.range(at..).next().map_or(u64::MAX, |(start, _)| *start);
            let unit = natural.start.max(before)..natural.end.min(behind);
            if unit.start >= unit.end {
                return;
            }
            let Some(share) = budget.take(unit.end - unit.start) else { return };
            at = unit.end;
            self.units.insert(unit.start, Unit::start(Arc::clone(source), unit, share, self.turn));
        }
    }

    /// Lets go of what lies behind the reader, and of what nobody came for.
    fn let_go(&mut self, wanted: &Range<u64>, advice: &Advice) {
        let turn = self.turn;
        self.units.retain(|_, unit| turn - unit.turn < TURNS_KEPT);
        let behind = |unit: &Unit| {
            let end = unit.range.end;
            end + BEHIND_KEPT <= wanted.start && end + BEHIND_KEPT + 8 * UNIT_BYTES > wanted.start
        };
        match advice.access {
            // Other readers of the object may stand elsewhere, so only what was just left behind goes, and only
            // what has arrived: somebody may wait for the rest.
            Access::Sequential => self.units.retain(|_, unit| !behind(unit) || unit.fetched.peek().is_none()),
            Access::Strided => {
                let needed = |unit: &Unit| advice.ahead.iter().any(|ahead| overlap(ahead, &unit.range));
                self.units.retain(|_, unit| {
                    needed(unit) || overlap(&unit.range, wanted) || unit.fetched.peek().is_none()
                });
            }
            Access::Random => {}
        }
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Unit {
    fn start(
        source: Arc<dyn ObjectSource>,
        range: Range<u64>,
        share: OwnedSemaphorePermit,
        turn: u64,
    ) -> Self {
        let wanted = range.clone();
        let task = tokio::spawn(async move { source.read(wanted).await });
        let abort = task.abort_handle();
        let fetched = async move { task.await.unwrap_or(Err(ObjectError::Stopping)) }.boxed().shared();
        Self { range, fetched, abort, turn, _share: share }
    }
}

#[cfg(test)]
mod tests;
