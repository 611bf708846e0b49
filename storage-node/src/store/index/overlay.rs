//! The index of a disk that cannot be written: rows on the disk under the rows that replay made in memory.

use std::iter::Peekable;
use std::sync::Arc;

use rocksdb::{Direction, IteratorMode, PrefixRange};

use super::{Changes, Index, Row, View};
use crate::store::error::IndexError;

impl Index {
    pub(super) fn overlay_now(&self) -> Option<Arc<Changes>> {
        self.overlay.as_ref().map(|overlay| Arc::clone(&overlay.lock()))
    }

    /// Keeps changes in memory; `false` where the index is written.
    pub(super) fn keep_in_memory(&self, changes: &Changes) -> bool {
        let Some(overlay) = &self.overlay else { return false };
        Arc::make_mut(&mut overlay.lock())
            .extend(changes.iter().map(|(key, value)| (key.clone(), value.clone())));
        true
    }
}

impl View<'_> {
    /// Rows whose key starts with `prefix`, in order, from the key `from` on.
    pub(super) fn rows<'s>(
        &'s self,
        prefix: &'s [u8],
        from: Option<&[u8]>,
    ) -> impl Iterator<Item = Result<Row, IndexError>> + 's {
        let mut options = self.options();
        options.set_iterate_range(PrefixRange(prefix));
        let mode = match from {
            Some(key) => IteratorMode::From(key, Direction::Forward),
            None => IteratorMode::Start,
        };
        let stored = self.db.iterator_opt(mode, options).map(|row| {
            let (key, value) = row?;
            Ok((key.into_vec(), value.into_vec()))
        });
        let start = from.unwrap_or(prefix).max(prefix).to_vec();
        let later = self.overlay.iter().flat_map(move |overlay| {
            overlay
                .range(start.clone()..)
                .take_while(|(key, _)| key.starts_with(prefix))
                .map(|(key, value)| (key.clone(), value.clone()))
        });
        Merged { stored: stored.peekable(), later: later.peekable() }
    }
}

/// Rows of both, by key; of two with one key the later one.
struct Merged<S: Iterator, L: Iterator> {
    stored: Peekable<S>,
    later: Peekable<L>,
}

impl<S, L> Iterator for Merged<S, L>
where
    S: Iterator<Item = Result<Row, IndexError>>,
    L: Iterator<Item = (Vec<u8>, Option<Vec<u8>>)>,
{
    type Item = Result<Row, IndexError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some((key, _)) = self.later.peek() else { return self.stored.next() };
            match self.stored.peek() {
                Some(Ok((stored, _))) if stored < key => return self.stored.next(),
                Some(Err(_)) => return self.stored.next(),
                Some(Ok((stored, _))) if stored == key => drop(self.stored.next()),
                Some(Ok(_)) | None => {}
            }
            let (key, value) = self.later.next()?;
            // A deleted row is none.
            if let Some(value) = value {
                return Some(Ok((key, value)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_rows_replace_add_and_delete() {
        let row = |key: &str, value: &str| (key.as_bytes().to_vec(), value.as_bytes().to_vec());
        let stored = [row("a", "1"), row("b", "1"), row("d", "1")].map(Ok);
        let later = [("b", None), ("c", Some("2")), ("d", Some("2")), ("e", Some("2"))];
        let later = later.map(|(key, value)| (key.as_bytes().to_vec(), value.map(|v| v.as_bytes().to_vec())));
        let merged = Merged { stored: stored.into_iter().peekable(), later: later.into_iter().peekable() };
        let merged: Vec<Row> = merged.map(Result::unwrap).collect();
        assert_eq!(merged, [row("a", "1"), row("c", "2"), row("d", "2"), row("e", "2")]);
    }
}
