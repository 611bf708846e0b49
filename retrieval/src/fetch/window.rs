//! How far a stream may read ahead: a window in bytes that starts small and grows while it is used.

/// A stream's window. Pure arithmetic; the stream asks before it starts a read and reports what it hands out.
#[derive(Debug)]
pub(crate) struct Window {
    limit: u64,
    max: u64,
    flying: u64,
}

impl Window {
    /// A window that starts at `start` bytes and never passes `max`.
    pub(crate) fn new(start: u64, max: u64) -> Self {
        Self { limit: start.min(max), max, flying: 0 }
    }

    /// Whether a read of `cost` bytes may start. The first always may, however small the window.
    pub(crate) fn admits(&self, cost: u64) -> bool {
        self.flying == 0 || self.flying + cost <= self.limit
    }

    /// A read of `cost` bytes started.
    pub(crate) fn started(&mut self, cost: u64) {
        self.flying += cost;
    }

    /// A read of `cost` bytes was handed out. A reader that takes all it is given soon has the whole window,
    /// one that stops after a few blocks never caused more than those to be read.
    pub(crate) fn taken(&mut self, cost: u64) {
        self.flying = self.flying.saturating_sub(cost);
        self.limit = (self.limit + cost).min(self.max);
    }

    /// Bytes of reads started and not handed out.
    pub(crate) fn flying(&self) -> u64 {
        self.flying
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_grows_with_use_up_to_its_bound() {
        let mut window = Window::new(4, 8);
        for _ in 0..4 {
            assert!(window.admits(1));
            window.started(1);
        }
        assert!(!window.admits(1));
        window.taken(1);
        assert!(window.admits(2));
        assert!(!window.admits(3));
        for _ in 0..10 {
            window.started(1);
            window.taken(1);
        }
        assert_eq!(window.flying(), 3);
        assert!(window.admits(5));
        assert!(!window.admits(6));
    }

    #[test]
    fn a_read_larger_than_the_window_passes_alone() {
        let mut window = Window::new(4, 8);
        assert!(window.admits(100));
        window.started(100);
        assert!(!window.admits(1));
    }
}
