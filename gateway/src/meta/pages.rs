//! Manifest pages that were opened a moment ago.
//!
//! A page lists a gigabyte of blocks; a reader of 64 KiB ranges would otherwise read, check and decode 37 KB of it for
//! every range. Pages never change and a run's id is never used again, so a page kept here cannot be stale: whoever
//! asks for it has an object row that names its run.

use std::collections::BTreeMap;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use super::model::VersionId;
use crate::layout::Page;

/// Pages kept, about 37 KB each when full: 128 GB of objects.
const PAGES_MAX: usize = 128;

/// The pages, by run and by where they end in it.
#[derive(Default)]
pub(super) struct PageCache {
    state: Mutex<Option<State>>,
}

struct State {
    runs: LruCache<VersionId, BTreeMap<u64, Arc<Page>>>,
    pages: usize,
}

impl PageCache {
    /// The page of `run` that holds byte `offset` of it.
    pub(super) fn get(&self, run: VersionId, offset: u64) -> Option<Arc<Page>> {
        let mut state = self.state.lock();
        let pages = state.as_mut()?.runs.get(&run)?;
        let (_, page) = pages.range(offset + 1..).next()?;
        // The next page that is kept need not be the one that holds the byte.
        (page.start <= offset).then(|| Arc::clone(page))
    }

    /// Keeps a page.
    pub(super) fn put(&self, run: VersionId, page: &Arc<Page>) {
        let mut state = self.state.lock();
        let state = state.get_or_insert_with(|| State { runs: LruCache::unbounded(), pages: 0 });
        let pages = state.runs.get_or_insert_mut(run, BTreeMap::new);
        if pages.insert(page.end(), Arc::clone(page)).is_none() {
            state.pages += 1;
        }
        while state.pages > PAGES_MAX {
            // The run used least lately goes whole; a single one that is too long begins anew.
            let Some((_, gone)) = state.runs.pop_lru() else { break };
            state.pages -= gone.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::{BlockLen, Digest};

    use super::*;
    use crate::layout::Entry;

    fn page(start: u64, blocks: usize) -> Arc<Page> {
        let entry = Entry { digest: Digest([1; 32]), len: BlockLen::new(100).unwrap() };
        Arc::new(Page { start, entries: vec![entry; blocks] })
    }

    #[test]
    fn a_byte_is_found_in_its_own_page_only() {
        let cache = PageCache::default();
        let run = VersionId([1; 16]);
        assert!(cache.get(run, 0).is_none());
        cache.put(run, &page(0, 10));
        cache.put(run, &page(2000, 10));
        for (offset, start) in
            [(0, Some(0)), (999, Some(0)), (1000, None), (2000, Some(2000)), (2999, Some(2000))]
        {
            assert_eq!(cache.get(run, offset).map(|page| page.start), start, "{offset}");
        }
        assert!(cache.get(run, 3000).is_none());
        assert!(cache.get(VersionId([2; 16]), 0).is_none());
    }

    #[test]
    fn the_number_of_pages_is_bounded() {
        let cache = PageCache::default();
        for number in 0..10 * PAGES_MAX as u64 {
            let run = VersionId([u8::try_from(number % 7).unwrap(); 16]);
            cache.put(run, &page(number * 1000, 10));
            let state = cache.state.lock();
            let state = state.as_ref().unwrap();
            let held: usize = state.runs.iter().map(|(_, pages)| pages.len()).sum();
            assert!(held == state.pages && held <= PAGES_MAX);
        }
    }
}
