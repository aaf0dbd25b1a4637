//! Receive and send buffers from a slab of the thread's own.
//!
//! A connection holds a buffer only while something is in it or a read into it is under way;
//! between messages it goes back, so ten thousand idle sessions hold none.  What the buffers of
//! the thread take is counted, so that it can be bounded: those of sessions apart from those of
//! connections that we made ([`Account`]), or next hops that are slow would keep mail out.
//!
//! This file and `socket` are where the runtime meets the kernel's pointers; see the SAFETY
//! comments for who guarantees what.
#![allow(unsafe_code)] // Owned buffers are lent to the kernel by pointer.

use std::cell::{Cell, RefCell};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

use monoio::buf::{IoBuf, IoBufMut};
use rustix::net::RecvFlags;

use crate::spool::{ChunkBuffer, ReadRecord};

/// For the replies of a next hop, which are short: an idle connection has a read under way, so
/// that it sees the peer go.
pub const TINY: usize = 2 * 1024;
/// The usual buffer: a read of commands, or a message of 10 KiB with its envelope.
pub const SMALL: usize = 16 * 1024;
/// For a message that is still small enough to be copied into a batch
/// ([`crate::limits::SMALL_MESSAGE`]) with commands around it.
pub const LARGE: usize = 64 * 1024;
/// Free buffers that a thread keeps of each class for reuse, 9 MiB in all; the rest go back to the
/// allocator.
const KEPT: [usize; 3] = [512, 256, 64];

thread_local! {
    static FREE: RefCell<[Vec<Vec<u8>>; 3]> =
        const { RefCell::new([const { Vec::new() }; 3]) };
    static HELD: [Cell<usize>; 2] = const { [const { Cell::new(0) }; 2] };
}

/// For whom a buffer is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Account {
    /// A session of a client.
    #[default]
    Inbound,
    /// A connection that we made: to a next hop, or to a name server.
    Outbound,
}

/// What the buffers of this thread's sessions take that are in use, in octets.
pub fn held_octets() -> usize {
    Account::Inbound.octets()
}

impl Account {
    /// What its buffers of this thread take, in octets.
    pub fn octets(self) -> usize {
        HELD.with(|held| held[self as usize].get())
    }
}

/// Bytes received and not yet used up, at a stable place in memory.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: Vec<u8>,
    account: Account,
}

impl Buffer {
    /// An empty buffer of a session, of one of the classes: [`TINY`], [`SMALL`] or [`LARGE`].
    pub fn new(capacity: usize) -> Buffer {
        Buffer::on(Account::Inbound, capacity)
    }

    /// The same on any account.
    pub fn on(account: Account, capacity: usize) -> Buffer {
        let class = usize::from(capacity > TINY) + usize::from(capacity > SMALL);
        let bytes = FREE.with_borrow_mut(|free| free[class].pop());
        let bytes = bytes.unwrap_or_else(|| Vec::with_capacity([TINY, SMALL, LARGE][class]));
        Buffer::counted(account, bytes)
    }

    /// A session's buffer that holds `bytes` and has no room: for what has to wait.
    pub fn parked(bytes: &[u8]) -> Buffer {
        Buffer::counted(Account::Inbound, bytes.into())
    }

    fn counted(account: Account, bytes: Vec<u8>) -> Buffer {
        HELD.with(|held| {
            let held = &held[account as usize];
            held.set(held.get() + bytes.capacity());
        });
        Buffer { bytes, account }
    }

    /// What it holds.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What it holds, to be changed in place.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// How many more octets fit.
    pub fn room(&self) -> usize {
        self.bytes.capacity() - self.bytes.len()
    }

    /// Appends what fits and tells how much that was.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let fits = bytes.len().min(self.room());
        self.bytes.extend_from_slice(&bytes[..fits]);
        fits
    }

    /// Adds `octets` zeroes to be written over; `None` if they do not fit.
    pub fn extend_zeroed(&mut self, octets: usize) -> Option<&mut [u8]> {
        if octets > self.room() {
            return None;
        }
        let start = self.bytes.len();
        self.bytes.resize(start + octets, 0);
        Some(&mut self.bytes[start..])
    }

    /// Takes out `range`; what stood behind it moves up.
    pub fn remove(&mut self, range: std::ops::Range<usize>) {
        let end = self.bytes.len();
        self.bytes.copy_within(range.end..end, range.start);
        self.bytes.truncate(end - range.len());
    }

    /// Cuts it off at `length`.
    pub fn truncate(&mut self, length: usize) {
        self.bytes.truncate(length);
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        // A thread that is ending counts no more.
        let _ = HELD.try_with(|held| {
            let held = &held[self.account as usize];
            held.set(held.get().saturating_sub(bytes.capacity()));
        });
        let class = match bytes.capacity() {
            TINY => 0,
            SMALL => 1,
            LARGE => 2,
            _ => return,
        };
        bytes.clear();
        // A thread that is ending has no slab any more; then the allocator takes the buffer.
        let _ = FREE.try_with(|free| {
            let free = &mut free.borrow_mut()[class];
            if free.len() < KEPT[class] {
                free.push(bytes);
            }
        });
    }
}

/// Something with room behind its bytes that a read may fill.
///
/// # Safety
/// `spare` points to `length` octets that the value owns, that do not move when the value does,
/// and that stay valid until it is dropped.
pub unsafe trait Fill: Unpin + 'static {
    /// Where the room begins and how many octets it has.
    fn spare(&mut self) -> (*mut u8, usize);

    /// Appends what fits and tells how much that was.
    fn push(&mut self, octets: &[u8]) -> usize;

    /// The first `octets` of the room now hold bytes.
    ///
    /// # Safety
    /// They must have been written.
    unsafe fn filled(&mut self, octets: usize);
}

// SAFETY: the room is the spare capacity of a vector that is never grown.
unsafe impl Fill for Buffer {
    fn spare(&mut self) -> (*mut u8, usize) {
        let room = self.bytes.spare_capacity_mut();
        (room.as_mut_ptr().cast(), room.len())
    }

    fn push(&mut self, octets: &[u8]) -> usize {
        Buffer::push(self, octets)
    }

    unsafe fn filled(&mut self, octets: usize) {
        // SAFETY: the caller says that `octets` of the spare capacity were written.
        unsafe { self.bytes.set_len(self.bytes.len() + octets) };
    }
}

// SAFETY: a chunk's memory is an allocation of its own that is never resized; all of it is
// initialised, so that any length up to its capacity is sound.
unsafe impl Fill for ChunkBuffer {
    fn spare(&mut self) -> (*mut u8, usize) {
        let room = ChunkBuffer::spare(self);
        // What came behind a body must fit a buffer; see `inbound::intake`.
        (room.as_mut_ptr(), room.len().min(LARGE))
    }

    fn push(&mut self, octets: &[u8]) -> usize {
        ChunkBuffer::push(self, octets)
    }

    unsafe fn filled(&mut self, octets: usize) {
        self.advance(octets);
    }
}

/// The room of a buffer as monoio wants it for a read, which then adds to what is there.
pub(super) struct Spare<B>(pub(super) B);

// SAFETY: `Fill` promises a stable place that lives as long as the value, and monoio owns the
// value until the read is complete.
unsafe impl<B: Fill> IoBufMut for Spare<B> {
    fn write_ptr(&mut self) -> *mut u8 {
        self.0.spare().0
    }

    fn bytes_total(&mut self) -> usize {
        self.0.spare().1
    }

    unsafe fn set_init(&mut self, octets: usize) {
        // SAFETY: the kernel wrote this many octets at `write_ptr`.
        unsafe { self.0.filled(octets) };
    }
}

// SAFETY: the vector's place does not change with the buffer's, and it is not written to while the
// kernel has it.
unsafe impl IoBuf for Buffer {
    fn read_ptr(&self) -> *const u8 {
        self.bytes.as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.bytes.len()
    }
}

/// Receives what has come at `socket` and waits for nothing: `WouldBlock` if that is nothing.
pub(super) fn receive_now<B: Fill>(socket: BorrowedFd<'_>, buffer: &mut B) -> io::Result<usize> {
    let (start, length) = buffer.spare();
    // SAFETY: `Fill` promises so many octets at this place, which nobody else has while `buffer` is
    // borrowed.
    let room = unsafe { std::slice::from_raw_parts_mut(start.cast::<MaybeUninit<u8>>(), length) };
    let ((written, _), _) = rustix::net::recv(socket, room, RecvFlags::DONTWAIT)?;
    let octets = written.len();
    // SAFETY: the kernel has written so many octets of the room.
    unsafe { buffer.filled(octets) };
    Ok(octets)
}

/// What a buffer to be written holds.
pub(super) fn octets<B: IoBuf>(buffer: &B) -> &[u8] {
    // SAFETY: `IoBuf` promises so many initialised octets at this place for as long as the buffer
    // lives, and nobody writes to them while it is borrowed.
    unsafe { std::slice::from_raw_parts(buffer.read_ptr(), buffer.bytes_init()) }
}

/// A chunk's octets in the buffer into which they were read, to be written from there.
pub struct ChunkBody(pub ReadRecord);

// SAFETY: the record owns its buffer, whose place does not change with the record's; it is not
// written to any more.
unsafe impl IoBuf for ChunkBody {
    fn read_ptr(&self) -> *const u8 {
        self.0.view().body().as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.0.view().body().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_takes_what_fits_and_no_more() {
        let mut buffer = Buffer::new(SMALL);
        assert_eq!(buffer.push(&[b'x'; SMALL + 5]), SMALL);
        assert_eq!(buffer.push(b"y"), 0);
        buffer.remove(1..SMALL - 1);
        assert_eq!(buffer.bytes(), b"xx");
        assert_eq!(buffer.room(), SMALL - 2);
    }

    #[test]
    fn what_is_held_is_counted() {
        let before = held_octets();
        let large = Buffer::new(LARGE);
        let parked = Buffer::parked(b"half a command");
        assert_eq!((parked.bytes(), parked.room()), (b"half a command".as_slice(), 0));
        assert_eq!(held_octets() - before, LARGE + 14);
        drop((large, parked));
        assert_eq!(held_octets(), before);
    }

    #[test]
    fn what_goes_out_is_counted_apart() {
        let (inbound, outbound) = (held_octets(), Account::Outbound.octets());
        let buffer = Buffer::on(Account::Outbound, SMALL);
        assert_eq!((held_octets(), Account::Outbound.octets()), (inbound, outbound + SMALL));
        drop(buffer);
        assert_eq!((held_octets(), Account::Outbound.octets()), (inbound, outbound));
    }

    #[test]
    fn buffers_come_back_empty_and_at_the_same_place() {
        let mut first = Buffer::new(LARGE);
        first.push(b"secret of another session");
        let place = first.bytes().as_ptr();
        drop(first);
        let second = Buffer::new(LARGE);
        assert_eq!(second.bytes().as_ptr(), place);
        assert!(second.bytes().is_empty());
        assert_eq!(second.room(), LARGE);
    }
}
