//! Deciding a group of transactions: which hold, and what they leave behind. No I/O.
//!
//! The committer asks what the group depends on ([`Needs`]), loads that in one serializable transaction, and lets the
//! group be decided in order, each transaction seeing what the ones before it wrote.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use bytes::Bytes;

use super::super::store::{Precondition, Transaction, Write, counters, prefix_end};

/// What a group depends on.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// Keys whose whole value matters.
    pub(super) whole: BTreeSet<Vec<u8>>,
    /// Counters that are added to: only this instance's own row matters, so that others may add meanwhile.
    pub(super) own: BTreeSet<Vec<u8>>,
    /// Prefixes that must be empty.
    pub(super) prefixes: BTreeSet<Vec<u8>>,
    /// How many keys to load of each such prefix: one more than the group itself can delete.
    pub(super) keys_per_prefix: usize,
}

impl Needs {
    pub(super) fn of<'a>(transactions: impl Iterator<Item = &'a Transaction>) -> Self {
        let mut needs = Self { keys_per_prefix: 1, ..Self::default() };
        for transaction in transactions {
            for precondition in &transaction.preconditions {
                match precondition {
                    Precondition::Absent(key) | Precondition::Equals(key, _) => {
                        needs.whole.insert(key.clone());
                    }
                    Precondition::PrefixEmpty(prefix) => {
                        needs.prefixes.insert(prefix.clone());
                    }
                }
            }
            for write in &transaction.writes {
                match write {
                    Write::PutIfAbsent(key, _) => {
                        needs.whole.insert(key.clone());
                    }
                    Write::Add(key, _) => {
                        needs.own.insert(key.clone());
                    }
                    Write::Delete(_) => needs.keys_per_prefix += 1,
                    Write::Put(..) => {}
                }
            }
        }
        needs.own.retain(|key| !needs.whole.contains(key));
        needs
    }
}

/// One key, as loaded and as the group has changed it so far.
#[derive(Clone, Debug, Default)]
struct State {
    base: Option<Bytes>,
    own: Option<Vec<i64>>,
    others: Option<Vec<i64>>,
    /// Rows in the database go before anything is written.
    is_removed: bool,
    is_base_new: bool,
    is_own_new: bool,
}

impl State {
    fn value(&self) -> Option<Bytes> {
        sum(self.base.clone(), [self.own.as_deref(), self.others.as_deref()])
    }
}

/// The group's world.
pub(super) struct Group {
    instance: i64,
    states: BTreeMap<Vec<u8>, State>,
    /// Keys found under each prefix, at most as many as were asked for.
    prefixes: BTreeMap<Vec<u8>, Vec<Vec<u8>>>,
}

/// What the group writes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Effects {
    /// Keys of which every row goes, first.
    pub(super) deletes: Vec<Vec<u8>>,
    /// Rows to set: key, instance, value.
    pub(super) upserts: Vec<(Vec<u8>, i64, Vec<u8>)>,
}

impl Group {
    pub(super) fn new(instance: i64) -> Self {
        Self { instance, states: BTreeMap::new(), prefixes: BTreeMap::new() }
    }

    /// A row of a key in [`Needs::whole`], or this instance's of one in [`Needs::own`].
    pub(super) fn load(&mut self, key: &[u8], instance: i64, value: &[u8]) {
        let state = self.states.entry(key.to_vec()).or_default();
        if instance == 0 {
            state.base = Some(Bytes::copy_from_slice(value));
        } else if instance == self.instance {
            state.own = Some(counters(value));
        } else {
            add(state.others.get_or_insert_default(), &counters(value));
        }
    }

    /// The keys found under a prefix.
    pub(super) fn load_prefix(&mut self, prefix: Vec<u8>, keys: Vec<Vec<u8>>) {
        self.prefixes.insert(prefix, keys);
    }

    /// Applies `transaction` if its preconditions hold; says whether they do.
    pub(super) fn apply(&mut self, transaction: &Transaction) -> bool {
        if !transaction.preconditions.iter().all(|precondition| self.holds(precondition)) {
            return false;
        }
        for write in &transaction.writes {
            match write {
                Write::Put(key, value) => self.put(key, value),
                Write::PutIfAbsent(key, value) => {
                    if self.states.get(key).and_then(State::value).is_none() {
                        self.put(key, value);
                    }
                }
                Write::Delete(key) => {
                    let gone = State { is_removed: true, ..State::default() };
                    self.states.insert(key.clone(), gone);
                }
                Write::Add(key, deltas) => {
                    let state = self.states.entry(key.clone()).or_default();
                    add(state.own.get_or_insert_default(), deltas);
                    state.is_own_new = true;
                }
            }
        }
        true
    }

    fn put(&mut self, key: &[u8], value: &[u8]) {
        let state = self.states.entry(key.to_vec()).or_default();
        if state.own.is_some() || state.others.is_some() {
            // A plain value in the place of a counter: what was added to it goes with it.
            *state = State { is_removed: true, ..State::default() };
        }
        state.base = Some(Bytes::copy_from_slice(value));
        state.is_base_new = true;
    }

    fn holds(&self, precondition: &Precondition) -> bool {
        let value = |key: &Vec<u8>| self.states.get(key).and_then(State::value);
        match precondition {
            Precondition::Absent(key) => value(key).is_none(),
            Precondition::Equals(key, expected) => value(key).as_ref() == Some(expected),
            Precondition::PrefixEmpty(prefix) => {
                let range = (Bound::Included(prefix.clone()), Bound::Excluded(prefix_end(prefix)));
                let written = self.states.range(range).any(|(_, state)| state.value().is_some());
                let found = self.prefixes.get(prefix).map(Vec::as_slice).unwrap_or_default();
                let is_gone = |key: &Vec<u8>| self.states.get(key).is_some_and(|state| state.is_removed);
                !written && found.iter().all(is_gone)
            }
        }
    }

    /// What is to be written so that the database is as the group left the world.
    pub(super) fn effects(self) -> Effects {
        let mut effects = Effects::default();
        for (key, state) in self.states {
            if state.is_removed {
                effects.deletes.push(key.clone());
            }
            if let (true, Some(own)) = (state.is_own_new, &state.own) {
                let value = own.iter().flat_map(|count| count.to_le_bytes()).collect();
                effects.upserts.push((key.clone(), self.instance, value));
            }
            if let (true, Some(base)) = (state.is_base_new, state.base) {
                effects.upserts.push((key, 0, base.to_vec()));
            }
        }
        effects
    }
}

/// Adds counters up.
pub(super) fn add(sums: &mut Vec<i64>, deltas: &[i64]) {
    sums.resize(sums.len().max(deltas.len()), 0);
    for (sum, delta) in sums.iter_mut().zip(deltas) {
        *sum = sum.wrapping_add(*delta);
    }
}

/// The value of a key from its rows: as it is when nothing was added to it, else the sum of all counters.
pub(super) fn sum(base: Option<Bytes>, added: [Option<&[i64]>; 2]) -> Option<Bytes> {
    if added.iter().all(Option::is_none) {
        return base;
    }
    let mut sums = base.map(|base| counters(&base)).unwrap_or_default();
    for deltas in added.into_iter().flatten() {
        add(&mut sums, deltas);
    }
    Some(sums.iter().flat_map(|sum| sum.to_le_bytes()).collect::<Vec<u8>>().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Vec<u8> {
        name.as_bytes().to_vec()
    }

    #[test]
    fn counters_of_other_instances_are_neither_loaded_nor_written_when_only_added_to() {
        let mut transaction = Transaction::default();
        transaction.add(key("count"), vec![2]);
        let needs = Needs::of([&transaction].into_iter());
        assert!(needs.whole.is_empty() && needs.own.contains(&key("count")));
        let mut group = Group::new(7);
        group.load(b"count", 7, &40i64.to_le_bytes());
        assert!(group.apply(&transaction));
        let effects = group.effects();
        assert_eq!(effects.upserts, vec![(key("count"), 7, 42i64.to_le_bytes().to_vec())]);
        assert!(effects.deletes.is_empty());
    }

    #[test]
    fn a_counter_is_expected_at_the_sum_over_instances() {
        let mut transaction = Transaction::default();
        transaction.expect(key("count"), Some(Bytes::copy_from_slice(&6i64.to_le_bytes())));
        transaction.delete(key("count"));
        let mut group = Group::new(7);
        group.load(b"count", 0, b"");
        group.load(b"count", 7, &1i64.to_le_bytes());
        group.load(b"count", 8, &2i64.to_le_bytes());
        group.load(b"count", 9, &3i64.to_le_bytes());
        assert!(group.apply(&transaction));
        assert_eq!(group.effects(), Effects { deletes: vec![key("count")], upserts: Vec::new() });
    }

    #[test]
    fn later_transactions_of_a_group_see_what_earlier_ones_wrote() {
        let mut first = Transaction::default();
        first.expect(key("a"), None);
        first.put(key("a"), b"1".to_vec());
        let mut second = first.clone();
        second.put(key("b"), b"never".to_vec());
        let mut third = Transaction::default();
        third.expect(key("a"), Some(Bytes::from_static(b"1")));
        third.delete(key("a"));
        let mut group = Group::new(7);
        assert_eq!([&first, &second, &third].map(|each| group.apply(each)), [true, false, true]);
        assert_eq!(group.effects(), Effects { deletes: vec![key("a")], upserts: Vec::new() });
    }

    #[test]
    fn a_prefix_is_empty_once_the_group_deleted_what_was_found_under_it() {
        let mut emptying = Transaction::default();
        emptying.delete(key("room/1"));
        let mut closing = Transaction::default();
        closing.preconditions.push(Precondition::PrefixEmpty(key("room/")));
        closing.put(key("closed"), Vec::new());
        let needs = Needs::of([&emptying, &closing].into_iter());
        assert_eq!(needs.keys_per_prefix, 2);
        let mut group = Group::new(7);
        group.load_prefix(key("room/"), vec![key("room/1")]);
        assert!(!group.apply(&closing));
        assert!(group.apply(&emptying) && group.apply(&closing));
    }
}
