//! Memory that the disk can take from and put into directly, and a ring that reads into it.
//!
//! This is the one file of the spool with `unsafe` code: an aligned allocation, and buffers lent to
//! the kernel.  A buffer that a ring operation uses belongs to `ReadRing` until that operation has
//! completed, also when the ring is dropped.

#![allow(unsafe_code)] // Aligned allocation, and owned buffers lent to the kernel by pointer.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use io_uring::{IoUring, opcode, types};

use super::buffer::PooledBuf;
use super::{BLOCK, round_to_block};

/// Zeroed memory on a block boundary, a whole number of blocks long.
pub struct AlignedBuf {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the allocation is owned, never aliased, and plain bytes.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access is read-only through `Deref`.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// At least `octets` (and at least one block), all zero.
    pub fn new(octets: usize) -> AlignedBuf {
        let layout = Layout::from_size_align(round_to_block(octets.max(1)), BLOCK)
            .expect("buffer sizes are bounded far below isize::MAX");
        // SAFETY: the layout's size is at least one block, so never zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        AlignedBuf { start, layout }
    }

    /// The first octet, for a ring operation; valid for [`Self::len`] octets while `self` lives,
    /// and does not move when `self` does.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is valid for the layout's size, and the octets were zeroed when made.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} octets)", self.len())
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this very layout, and freed only here.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// A ring of its own for reads, which also wakes up when an event descriptor is written.
pub(crate) struct ReadRing {
    ring: IoUring,
    flights: Vec<Option<Flight>>,
    event: Arc<OwnedFd>,
    event_is_armed: bool,
}

struct Flight {
    token: u64,
    buffer: PooledBuf,
    /// Keeps the file open while the kernel reads it.
    _file: Arc<OwnedFd>,
}

/// A read that has come to its end.
pub(crate) struct Landed {
    pub(crate) token: u64,
    pub(crate) buffer: PooledBuf,
    pub(crate) result: io::Result<usize>,
}

const EVENT: u64 = u64::MAX;

impl ReadRing {
    /// A ring for `depth` reads; an error where the kernel or its policy has none.
    pub(crate) fn new(depth: u32, event: Arc<OwnedFd>) -> io::Result<ReadRing> {
        let ring = IoUring::new(depth + 1)?;
        let flights = (0..depth).map(|_| None).collect();
        Ok(ReadRing { ring, flights, event, event_is_armed: false })
    }

    /// Whether another read can be taken.
    pub(crate) fn has_room(&self) -> bool {
        self.flights.iter().any(Option::is_none)
    }

    /// Queues a read of `octets` into the buffer's beginning; give it only when there is room.
    pub(crate) fn read(
        &mut self,
        file: Arc<OwnedFd>,
        offset: u32,
        octets: usize,
        mut buffer: PooledBuf,
        token: u64,
    ) {
        assert!(octets <= buffer.len(), "a read stays in its buffer");
        let slot = self.flights.iter().position(Option::is_none).expect("the caller has looked");
        let entry = opcode::Read::new(
            types::Fd(file.as_raw_fd()),
            buffer.as_mut_ptr(),
            u32::try_from(octets).expect("buffers are far below 4 GiB"),
        )
        .offset(u64::from(offset))
        .build()
        .user_data(slot as u64);
        self.flights[slot] = Some(Flight { token, buffer, _file: file });
        // SAFETY: the buffer's memory does not move with `Flight`, is exclusively owned by it, and
        // `self.flights` keeps it and the file until this slot's completion was taken.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("there is an entry for each slot and one for the event");
    }

    /// Submits, and waits until a read has landed or the event was written.
    pub(crate) fn wait(&mut self) -> io::Result<()> {
        if !self.event_is_armed {
            let entry = opcode::PollAdd::new(types::Fd(self.event.as_raw_fd()), POLLIN)
                .build()
                .user_data(EVENT);
            // SAFETY: the operation uses no memory of ours, and `self.event` outlives it.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            pushed.expect("there is an entry for each slot and one for the event");
            self.event_is_armed = true;
        }
        match self.ring.submit_and_wait(1) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            result => result.map(|_| ()),
        }
    }

    /// The next read that has landed.
    pub(crate) fn landed(&mut self) -> Option<Landed> {
        loop {
            let entry = self.ring.completion().next()?;
            if entry.user_data() == EVENT {
                self.event_is_armed = false;
                continue;
            }
            let Some(flight) =
                usize::try_from(entry.user_data()).ok().and_then(|slot| self.flights.get_mut(slot))
            else {
                continue;
            };
            let Some(Flight { token, buffer, .. }) = flight.take() else {
                continue;
            };
            let result = usize::try_from(entry.result())
                .map_err(|_| io::Error::from_raw_os_error(-entry.result()));
            return Some(Landed { token, buffer, result });
        }
    }

    fn is_flying(&self) -> bool {
        self.flights.iter().any(Option::is_some)
    }
}

const POLLIN: u32 = 1;

impl Drop for ReadRing {
    fn drop(&mut self) {
        while self.is_flying() {
            if self.ring.submit_and_wait(1).is_err() {
                // The kernel may still write into these buffers: they must never be freed.
                std::mem::take(&mut self.flights).into_iter().for_each(std::mem::forget);
                return;
            }
            while self.landed().is_some() {}
        }
    }
}
