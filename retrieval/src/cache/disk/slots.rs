//! Which slot holds what, and which slot the next block gets. Makes no file and writes none.

use std::collections::HashMap;
use std::sync::Arc;

use holdfast_protocol::{BlockLen, Digest};

use super::super::evict::Evictor;
use super::super::order::EpochOrder;
use super::super::segment::{CLASSES, Entry, Segment, class_of};
use super::Held;

/// Where the next block goes.
pub(super) enum Decision {
    /// Into this slot.
    Use(Arc<Segment>, u32),
    /// Into a new segment of this class and number, made after the file of another one is gone.
    Make { class: usize, number: u64, instead_of: Option<u64> },
    /// Nowhere: all that is here deserves its place more.
    Refuse,
}

/// The index of the disk tier.
pub(super) struct Slots {
    places: HashMap<Digest, Held>,
    segments: HashMap<u64, Arc<Segment>>,
    classes: Vec<Class>,
    segments_max: u64,
    next_number: u64,
    /// Blocks that asked for a place, weighted by their bytes and halved now and then.
    demand: [u64; CLASSES.len()],
}

/// The slots of one size.
#[derive(Default)]
struct Class {
    segments: Vec<u64>,
    free: Vec<(u64, u32)>,
    evictor: Evictor,
}

impl Slots {
    pub(super) fn new(segments_max: u64) -> Self {
        Self {
            places: HashMap::new(),
            segments: HashMap::new(),
            classes: CLASSES.iter().map(|_| Class::default()).collect(),
            segments_max,
            next_number: 0,
            demand: [0; CLASSES.len()],
        }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn contains(&self, digest: &Digest) -> bool {
        self.places.contains_key(digest)
    }

    pub(super) fn segment_count(&self) -> u64 {
        self.segments.len() as u64
    }

    /// Numbers are never given twice, so that an entry of an earlier file of that number is none.
    pub(super) fn skip_number(&mut self, number: u64) {
        self.next_number = self.next_number.max(number + 1);
    }

    /// Where a block is; it was used.
    pub(super) fn find(&mut self, digest: &Digest, next_use: Option<u64>) -> Option<Held> {
        let held = self.places.get(digest)?.clone();
        self.classes[class_of(held.entry.len)].evictor.used(digest, next_use);
        Some(held)
    }

    /// Takes in a segment that was found on the disk.
    pub(super) fn take_over(&mut self, segment: Arc<Segment>, entries: Vec<Option<Entry>>) {
        let Some(class) = CLASSES.iter().position(|slot| *slot == segment.shape.slot_bytes) else { return };
        self.segments.insert(segment.number, Arc::clone(&segment));
        self.classes[class].segments.push(segment.number);
        for (slot, entry) in (0u32..).zip(entries) {
            match entry {
                // In a slot of its own class and once: else the entry is from before a crash.
                Some(entry) if class_of(entry.len) == class && !self.contains(&entry.digest) => {
                    let digest = entry.digest;
                    let held = Held { segment: Arc::clone(&segment), slot, entry: Arc::new(entry) };
                    self.enter(digest, held, None);
                }
                _ => self.classes[class].free.push((segment.number, slot)),
            }
        }
    }

    /// A block's bytes are whole in its slot.
    pub(super) fn enter(&mut self, digest: Digest, held: Held, next_use: Option<u64>) {
        self.classes[class_of(held.entry.len)].evictor.insert(digest, next_use);
        self.places.insert(digest, held);
    }

    /// A slot that was given out stays empty.
    pub(super) fn give_back(&mut self, segment: u64, slot: u32) {
        let class = self.classes.iter_mut().find(|class| class.segments.contains(&segment));
        if let Some(class) = class {
            class.free.push((segment, slot));
        }
    }

    /// Forgets a block, if it is still where it was found.
    pub(super) fn drop_if_same(&mut self, digest: &Digest, found: &Held) -> bool {
        if !self.places.get(digest).is_some_and(|held| Arc::ptr_eq(&held.entry, &found.entry)) {
            return false;
        }
        self.forget(digest);
        self.give_back(found.segment.number, found.slot);
        true
    }

    pub(super) fn replan(&mut self, order: &EpochOrder) {
        self.classes.iter_mut().for_each(|class| class.evictor.replan(order));
    }

    /// Where a block of this length goes.
    pub(super) fn decide(&mut self, len: BlockLen, next_use: Option<u64>) -> Decision {
        let class = class_of(len);
        self.count_demand(class);
        if let Some((number, slot)) = self.classes[class].free.pop()
            && let Some(segment) = self.segments.get(&number)
        {
            return Decision::Use(Arc::clone(segment), slot);
        }
        if self.segment_count() < self.segments_max {
            return Decision::Make { class, number: self.number(), instead_of: None };
        }
        if let Some(donor) = self.donor(class) {
            let old = self.give_up_segment(donor);
            return Decision::Make { class, number: self.number(), instead_of: old };
        }
        let Some(victim) = self.classes[class].evictor.victim_for(next_use) else { return Decision::Refuse };
        match self.forget(&victim) {
            Some(held) => Decision::Use(held.segment, held.slot),
            None => Decision::Refuse,
        }
    }

    /// A segment was made; returns its first slot.
    pub(super) fn add(&mut self, class: usize, segment: Arc<Segment>) -> Option<(Arc<Segment>, u32)> {
        self.segments.insert(segment.number, Arc::clone(&segment));
        self.classes[class].segments.push(segment.number);
        self.classes[class].free.extend((1..segment.shape.slots).rev().map(|slot| (segment.number, slot)));
        Some((segment, 0))
    }

    fn number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }

    fn forget(&mut self, digest: &Digest) -> Option<Held> {
        let held = self.places.remove(digest)?;
        self.classes[class_of(held.entry.len)].evictor.remove(digest);
        Some(held)
    }

    /// Old demand counts for less, so that segments follow what is read now.
    fn count_demand(&mut self, class: usize) {
        const HALVED_AT: u64 = 1 << 34;
        self.demand[class] += u64::from(CLASSES[class]);
        if self.demand.iter().sum::<u64>() > HALVED_AT {
            self.demand.iter_mut().for_each(|demand| *demand /= 2);
        }
    }

    /// The class that should give a segment to `class`: it has more than its share by a segment and more, and
    /// `class` has less, or none at all.
    fn donor(&self, class: usize) -> Option<usize> {
        let total: u64 = self.demand.iter().sum::<u64>().max(1);
        let share = |class: usize| self.demand[class].saturating_mul(self.segments_max) / total;
        let has = |class: usize| self.classes[class].segments.len() as u64;
        if has(class) > 0 && has(class) >= share(class) {
            return None;
        }
        (0..CLASSES.len())
            .filter(|other| *other != class && has(*other) > 0)
            .filter(|other| has(class) == 0 || has(*other) > share(*other) + 1)
            .max_by_key(|other| has(*other).saturating_sub(share(*other)))
    }

    /// Forgets all blocks of the emptiest segment of a class, and the segment.
    fn give_up_segment(&mut self, class: usize) -> Option<u64> {
        let free = |number: u64| self.classes[class].free.iter().filter(|(at, _)| *at == number).count();
        let number = self.classes[class].segments.iter().copied().max_by_key(|number| free(*number))?;
        let gone: Vec<Digest> = self
            .places
            .iter()
            .filter(|(_, held)| held.segment.number == number)
            .map(|(digest, _)| *digest)
            .collect();
        gone.iter().for_each(|digest| drop(self.forget(digest)));
        self.classes[class].segments.retain(|at| *at != number);
        self.classes[class].free.retain(|(at, _)| *at != number);
        self.segments.remove(&number);
        Some(number)
    }
}
