//! The only unsafe code of the storage node: page-aligned memory, and an io_uring that owns what it lends to
//! the kernel. Owns no policy.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use io_uring::{IoUring, opcode, squeue, types};

use super::buffer::{BUFFER_PAGES_MAX, PAGE};
use super::{Action, Request};

/// A run of whole pages, aligned to a page, always initialised.
pub(super) struct Pages {
    start: NonNull<u8>,
    len: usize,
    /// The slab that it is cut from; `None` when the memory is its own.
    slab: Option<Arc<Slab>>,
}

// SAFETY: `Pages` owns its memory alone, like a `Box<[u8]>`; nothing in it is tied to a thread.
unsafe impl Send for Pages {}
// SAFETY: shared access is only by `&[u8]`.
unsafe impl Sync for Pages {}

impl Pages {
    /// `count` pages of zeros.
    pub(super) fn zeroed(count: usize) -> Self {
        assert!((1..=BUFFER_PAGES_MAX).contains(&count), "buffers have 1 to {BUFFER_PAGES_MAX} pages");
        let layout = layout(count);
        // SAFETY: the layout's size is not zero, as asserted above.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, len: layout.size(), slab: None }
    }

    /// Whether it is cut from a slab.
    pub(super) fn is_lent(&self) -> bool {
        self.slab.is_some()
    }
}

impl Deref for Pages {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `start` points at `len` bytes that are ours alone, initialised when allocated; a slab outlives us.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if self.slab.is_none() {
            // SAFETY: allocated in `zeroed` with this very layout, and freed only here.
            unsafe { dealloc(self.start.as_ptr(), layout(self.len / PAGE)) }
        }
    }
}

fn layout(pages: usize) -> Layout {
    Layout::from_size_align(pages * PAGE, PAGE).expect("few pages, aligned to a power of two")
}

/// A stretch of memory that lives as long as anything cut from it, or any ring it is registered with: the kernel keeps
/// hold of registered pages, so they must never go back to an allocator that gives their addresses to others.
pub(crate) struct Slab {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the slab only holds the memory; all access is through the disjoint `Pages` cut from it once.
unsafe impl Send for Slab {}
// SAFETY: as above.
unsafe impl Sync for Slab {}

impl Slab {
    /// A slab of zeros, cut into runs of these many pages each, disjoint and in this order.
    pub(super) fn cut(sizes: &[usize]) -> (Arc<Self>, Vec<Pages>) {
        let layout = layout(sizes.iter().sum());
        assert!(layout.size() > 0, "a slab has pages");
        // SAFETY: the layout's size is not zero, as asserted above.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        let slab = Arc::new(Self { start, len: layout.size() });
        let mut offset = 0;
        let mut runs = Vec::with_capacity(sizes.len());
        for count in sizes {
            // SAFETY: `offset + count * PAGE` is at most the sum that was allocated.
            let at = unsafe { start.add(offset) };
            runs.push(Pages { start: at, len: count * PAGE, slab: Some(Arc::clone(&slab)) });
            offset += count * PAGE;
        }
        (slab, runs)
    }

    fn contains(&self, start: *const u8) -> bool {
        let first = self.start.as_ptr().addr();
        (first..first + self.len).contains(&start.addr())
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // SAFETY: allocated in `cut` with this very layout; nothing cut from it is left, or it would hold us.
        unsafe { dealloc(self.start.as_ptr(), layout(self.len / PAGE)) }
    }
}

/// Completions and submissions that the ring has room for.
pub(super) const RING_ENTRIES: u32 = 256;
/// Of the requests under way, one in this many is waited for before the thread wakes: at depth 64 it wakes for eight
/// completions at a time, and a lone request for its own.
const BATCH_SHARE: usize = 8;
/// However many are missing of a batch, whatever has completed by then is taken up. Far below a disk's latency at the
/// depth at which batches are larger than one.
const BATCH_WAIT_US: u32 = 100;
/// Marks the completion of the wake-up read.
const WAKE: u64 = u64::MAX;

/// A request in the kernel's hands. The buffer and the file live here until its completion.
struct Flight {
    request: Request,
    moved: usize,
}

/// An io_uring whose memory safety does not depend on its user: it owns every buffer that the kernel may
/// still touch, and gives it up only with the completion.
pub(super) struct Ring {
    ring: IoUring,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    event: OwnedFd,
    /// Boxed, because the kernel writes to it while the ring may be moved.
    woken: Box<[u8; 8]>,
    watching: bool,
    /// Whether the kernel waits for several completions, but not for long.
    batches: bool,
    /// Registered, in the order of their indexes. Dropped after the ring.
    slabs: Vec<Arc<Slab>>,
}

impl Ring {
    /// Sets up a ring; `event` is an eventfd that wakes [`Ring::wait`]. Must be called on the thread that
    /// uses the ring. Of `slabs`, as many as the memlock limit allows are registered, from the first on.
    pub(super) fn new(event: OwnedFd, slabs: &[Arc<Slab>]) -> io::Result<Self> {
        let ring = IoUring::builder()
            // Completions are worked off when this thread asks for them, all at once, and never interrupt it.
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(RING_ENTRIES)
            // Kernels before 6.1 do not know the flags.
            .or_else(|_| IoUring::new(RING_ENTRIES))?;
        let slabs = register(&ring, slabs);
        let batches = ring.params().is_feature_min_timeout();
        let count = RING_ENTRIES as usize - 2;
        Ok(Self {
            ring,
            slabs,
            flights: (0..count).map(|_| None).collect(),
            free: (0..count).rev().collect(),
            event,
            woken: Box::new([0; 8]),
            watching: false,
            batches,
        })
    }

    /// Bytes registered with the kernel.
    pub(super) fn registered_bytes(&self) -> u64 {
        self.slabs.iter().map(|slab| slab.len as u64).sum()
    }

    /// The index under which the memory at `start` is registered. A buffer of a slab lies in it whole.
    fn registered(&self, start: *const u8) -> Option<u16> {
        let at = self.slabs.iter().position(|slab| slab.contains(start))?;
        u16::try_from(at).ok()
    }

    /// Whether another request can start.
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Whether no request is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.free.len() == self.flights.len()
    }

    /// Requests under way.
    pub(super) fn under_way(&self) -> usize {
        self.flights.len() - self.free.len()
    }

    /// Starts `request`, or answers it with an error at once.
    pub(super) fn start(&mut self, request: Request) {
        let bound = request.buffer.as_ref().map_or(0, |buffer| buffer.len());
        if request.len > bound {
            request.complete(Err(io::ErrorKind::InvalidInput.into()));
            return;
        }
        let Some(slot) = self.free.pop() else {
            request.complete(Err(io::ErrorKind::WouldBlock.into()));
            return;
        };
        self.launch(slot, Flight { request, moved: 0 });
    }

    fn launch(&mut self, slot: usize, mut flight: Flight) {
        let fd = types::Fd(flight.request.file.file.as_raw_fd());
        let offset = flight.request.offset + flight.moved as u64;
        let rest = u32::try_from(flight.request.len - flight.moved).unwrap_or(u32::MAX);
        let start = flight.request.buffer.as_mut().map_or(std::ptr::null_mut(), |buffer| {
            // Within the buffer: `moved <= len <= buffer.len()`.
            buffer[flight.moved..].as_mut_ptr()
        });
        let entry = match (flight.request.action, self.registered(start)) {
            (Action::Read, Some(index)) => {
                opcode::ReadFixed::new(fd, start, rest, index).offset(offset).build()
            }
            (Action::Write, Some(index)) => {
                opcode::WriteFixed::new(fd, start.cast_const(), rest, index).offset(offset).build()
            }
            (Action::Read, None) => opcode::Read::new(fd, start, rest).offset(offset).build(),
            (Action::Write, None) => opcode::Write::new(fd, start.cast_const(), rest).offset(offset).build(),
            (Action::Sync, _) => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
        };
        self.flights[slot] = Some(flight);
        // SAFETY: `start` points at `rest` bytes of a heap buffer that the flight owns; the flight stays in
        // `flights` (which never drops one that is under way) until this entry's completion is reaped.
        unsafe { self.push(entry.user_data(slot as u64)) };
    }

    /// # Safety
    /// The memory that `entry` names must stay valid until its completion.
    unsafe fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: passed on to the caller. There is always room: at most as many entries are pushed between
        // two submissions as the ring was made for.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            if self.ring.submit().is_err() {
                std::thread::yield_now();
            }
        }
    }

    /// Hands what was started to the kernel and waits for completions or, when it is `wakeable`, a wake-up.
    pub(super) fn wait(&mut self, wakeable: bool) -> io::Result<()> {
        if wakeable && !self.watching {
            self.watching = true;
            let fd = types::Fd(self.event.as_raw_fd());
            let entry = opcode::Read::new(fd, self.woken.as_mut_ptr(), 8).build();
            // SAFETY: `woken` is boxed and dropped only after the ring, which is drained first.
            unsafe { self.push(entry.user_data(WAKE)) };
        }
        let batch = self.under_way() / BATCH_SHARE;
        let waited = if self.batches && batch > 1 {
            let args = types::SubmitArgs::new().min_wait_usec(BATCH_WAIT_US);
            self.ring.submitter().submit_with_args(batch, &args)
        } else {
            self.ring.submit_and_wait(1)
        };
        match waited {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::TIME.raw_os_error()) => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Hands what was started to the kernel without waiting.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        self.ring.submit().map(|_| ())
    }

    /// Answers every request that has completed.
    pub(super) fn reap(&mut self) {
        loop {
            let Some(done) = self.ring.completion().next() else { return };
            if done.user_data() == WAKE {
                self.watching = false;
                continue;
            }
            let Some(slot) = usize::try_from(done.user_data()).ok().filter(|slot| *slot < self.flights.len())
            else {
                continue;
            };
            if let Some(flight) = self.flights[slot].take() {
                self.finish(slot, flight, done.result());
            }
        }
    }

    fn finish(&mut self, slot: usize, mut flight: Flight, result: i32) {
        let outcome = match usize::try_from(result) {
            Err(_) if -result == rustix::io::Errno::INTR.raw_os_error() => None,
            Err(_) => Some(Err(io::Error::from_raw_os_error(-result))),
            Ok(_) if flight.request.action == Action::Sync => Some(Ok(())),
            Ok(0) => Some(Err(io::ErrorKind::UnexpectedEof.into())),
            Ok(moved) => {
                flight.moved += moved;
                (flight.moved >= flight.request.len).then_some(Ok(()))
            }
        };
        match outcome {
            // A short transfer: go on where it ended.
            None => self.launch(slot, flight),
            Some(result) => {
                self.free.push(slot);
                flight.request.complete(result);
            }
        }
    }
}

/// Registers as many of `slabs` as the kernel takes; answers those.
fn register(ring: &IoUring, slabs: &[Arc<Slab>]) -> Vec<Arc<Slab>> {
    for count in (1..=slabs.len()).rev() {
        let slabs = &slabs[..count];
        let vectors: Vec<libc::iovec> = slabs
            .iter()
            .map(|slab| libc::iovec { iov_base: slab.start.as_ptr().cast(), iov_len: slab.len })
            .collect();
        // SAFETY: the ring keeps the slabs that it returns here, so their memory stays valid until it is closed.
        if unsafe { ring.submitter().register_buffers(&vectors) }.is_ok() {
            return slabs.to_vec();
        }
    }
    Vec::new()
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel may still write to buffers of requests under way: wait for them.
        while !self.is_idle() {
            if self.ring.submit_and_wait(1).is_err() {
                break;
            }
            self.reap();
        }
        for flight in self.flights.drain(..).flatten() {
            // Waiting failed: memory that the kernel may write to is never freed.
            std::mem::forget(flight);
        }
        if self.watching {
            // The wake-up read is cancelled when the ring closes, which may be after this: keep its target.
            std::mem::forget(std::mem::replace(&mut self.woken, Box::new([0; 8])));
        }
    }
}
