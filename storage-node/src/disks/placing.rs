//! Puts of one digest that run at once go to one disk, or the same block would lie on two.

use std::collections::HashMap;
use std::sync::Arc;

use holdfast_protocol::digest::Digest;
use parking_lot::Mutex;

/// The disks chosen for puts that run; as many entries as there are puts under way.
#[derive(Default)]
pub(super) struct Placing {
    running: Arc<Mutex<HashMap<Digest, Place>>>,
}

#[derive(Default)]
struct Place {
    puts: usize,
    disk: Option<usize>,
}

/// A put that runs.
pub(super) struct Placed {
    running: Arc<Mutex<HashMap<Digest, Place>>>,
    digest: Digest,
}

impl Placing {
    /// Announces a put. Must come before the look for a disk that holds the block already: then that look, or this
    /// entry, tells of any other put.
    pub(super) fn begin(&self, digest: Digest) -> Placed {
        self.running.lock().entry(digest).or_default().puts += 1;
        Placed { running: Arc::clone(&self.running), digest }
    }
}

impl Placed {
    /// The disk of all puts of this digest that run; `choose` is asked by the first of them.
    pub(super) fn settle(&self, choose: impl FnOnce() -> Option<usize>) -> Option<usize> {
        let mut running = self.running.lock();
        let place = running.entry(self.digest).or_default();
        if place.disk.is_none() {
            place.disk = choose();
        }
        place.disk
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        let mut running = self.running.lock();
        if let Some(place) = running.get_mut(&self.digest) {
            place.puts -= 1;
            if place.puts == 0 {
                running.remove(&self.digest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn puts_at_once_agree_and_leave_nothing_behind() {
        let placing = Placing::default();
        let digest = Digest::of(b"one");
        let (first, second) = (placing.begin(digest), placing.begin(digest));
        assert_eq!(first.settle(|| Some(3)), Some(3));
        drop(first);
        assert_eq!(second.settle(|| Some(1)), Some(3));
        drop(second);
        assert!(placing.running.lock().is_empty());
        assert_eq!(placing.begin(digest).settle(|| Some(1)), Some(1));
    }
}
