//! Memory for computed shards, used again and again.
//!
//! A shard of 1 MiB from the system's allocator is 256 page faults, which cost more than the code itself:
//! 4+2 encodes at 3.7 GB/s into fresh memory and at 16 into memory that was touched before. So buffers go
//! back to a bounded free list when the last [`Bytes`] over them is dropped.

use bytes::Bytes;
use holdfast_protocol::limits::BLOCK_LEN_MAX;
use parking_lot::Mutex;

/// Shorter shards come from the allocator, which keeps small memory warm by itself.
const RECYCLED_LEN_MIN: usize = 64 * 1024;
/// Every recycled buffer has room for the longest shard, so that any fits any.
const CAPACITY: usize = BLOCK_LEN_MAX as usize;
/// Buffers kept for later: the parity of 24 `local` stripes, 48 MiB.
const FREE_MAX: usize = 48;

static FREE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// An empty buffer with room for `len` bytes.
pub(super) fn take(len: usize) -> Vec<u8> {
    if !(RECYCLED_LEN_MIN..=CAPACITY).contains(&len) {
        return Vec::with_capacity(len);
    }
    FREE.lock().pop().unwrap_or_else(|| Vec::with_capacity(CAPACITY))
}

/// The filled buffer as shared bytes; its memory comes back when the last of them is dropped.
pub(super) fn share(buffer: Vec<u8>) -> Bytes {
    if buffer.capacity() == CAPACITY { Bytes::from_owner(Recycled(buffer)) } else { Bytes::from(buffer) }
}

struct Recycled(Vec<u8>);

impl AsRef<[u8]> for Recycled {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Recycled {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.0);
        buffer.clear();
        let mut free = FREE.lock();
        if free.len() < FREE_MAX {
            free.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_empty_and_no_more_than_the_bound_are_kept() {
        let shared: Vec<Bytes> = (0..2 * FREE_MAX)
            .map(|_| {
                let mut buffer = take(RECYCLED_LEN_MIN);
                assert!(buffer.is_empty() && buffer.capacity() == CAPACITY);
                buffer.resize(RECYCLED_LEN_MIN, 7);
                share(buffer)
            })
            .collect();
        let copy = shared[0].slice(5..9);
        drop(shared);
        assert_eq!(copy, [7u8; 4][..]);
        assert!(FREE.lock().len() <= FREE_MAX);
        assert!(take(CAPACITY).is_empty());
    }

    #[test]
    fn short_shards_are_not_held_in_large_buffers() {
        assert!(take(100).capacity() < RECYCLED_LEN_MIN);
        assert_eq!(share(vec![1, 2, 3]), [1u8, 2, 3][..]);
    }
}
