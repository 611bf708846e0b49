//! The one place that allocates aligned memory. Owns no policy.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use super::buffer::{BUFFER_PAGES_MAX, PAGE};

/// A run of whole pages, aligned to a page, always initialised.
pub(super) struct Pages {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: `Pages` owns its memory alone, like a `Box<[u8]>`; nothing in it is tied to a thread.
unsafe impl Send for Pages {}
// SAFETY: shared access is only by `&[u8]`.
unsafe impl Sync for Pages {}

impl Pages {
    /// `count` pages of zeros.
    pub(super) fn zeroed(count: usize) -> Self {
        assert!((1..=BUFFER_PAGES_MAX).contains(&count), "buffers have 1 to {BUFFER_PAGES_MAX} pages");
        let layout =
            Layout::from_size_align(count * PAGE, PAGE).expect("few pages, aligned to a power of two");
        // SAFETY: the layout's size is not zero, as asserted above.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, layout }
    }
}

impl Deref for Pages {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `start` points at `layout.size()` bytes that we own, initialised when allocated.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this very layout, and freed only here.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}
