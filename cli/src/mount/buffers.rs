//! Buffers for bodies on their way to the kernel, used again and again: a fresh one costs a page fault for every
//! 4 KiB, which is a fifth of all that reading costs.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// Lengths of buffers, and how many of each are kept free. What is shorter than half of the least is not worth it.
const CLASSES: [(usize, usize); 2] = [(128 * 1024, 64), (1024 * 1024, 24)];

/// Free buffers.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    free: [Mutex<Vec<Vec<u8>>>; CLASSES.len()],
}

/// A buffer being filled; it goes back when it, or the last of the bytes made of it, is dropped.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    /// How much of it is meant.
    len: usize,
    /// Where it goes back to.
    home: Option<(Arc<Buffers>, usize)>,
}

impl Buffers {
    /// A buffer of `len` bytes. What is in it is of no meaning.
    pub(super) fn take(self: &Arc<Self>, len: usize) -> Buffer {
        // At most half of a buffer is wasted, so that counting the bytes bounds the memory.
        let class = CLASSES.iter().position(|(size, _)| len <= *size && len > size / 2);
        let Some(class) = class else { return Buffer { bytes: vec![0; len], len, home: None } };
        let kept = self.free[class].lock().pop();
        let bytes = kept.unwrap_or_else(|| vec![0; CLASSES[class].0]);
        Buffer { bytes, len, home: Some((Arc::clone(self), class)) }
    }
}

impl Buffer {
    /// All of it, to be filled.
    pub(super) fn space(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }

    /// Its first `len` bytes, not copied.
    pub(super) fn freeze(mut self, len: usize) -> Bytes {
        self.len = len.min(self.len);
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some((home, class)) = self.home.take() {
            let mut free = home.free[class].lock();
            if free.len() < CLASSES[class].1 {
                free.push(std::mem::take(&mut self.bytes));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_the_last_of_its_bytes_is_dropped() {
        let buffers = Arc::new(Buffers::default());
        let mut buffer = buffers.take(1_000_000);
        buffer.space()[..3].copy_from_slice(b"abc");
        let bytes = buffer.freeze(3);
        let part = bytes.slice(1..2);
        drop(bytes);
        assert!(buffers.free[1].lock().is_empty());
        assert_eq!(&part[..], b"b");
        drop(part);
        assert_eq!(buffers.free[1].lock().len(), 1);
        assert_eq!(buffers.take(600_000).space().len(), 600_000);
        for _ in 0..3 {
            let many: Vec<_> = (0..100).map(|_| buffers.take(100_000)).collect();
            drop(many);
        }
        assert_eq!(buffers.free[0].lock().len(), CLASSES[0].1, "kept free within their bound");
        assert_eq!(buffers.take(10).freeze(10).len(), 10);
    }
}
