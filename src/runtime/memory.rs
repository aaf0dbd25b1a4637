//! Memory that was freed and that the allocator keeps for later.
//!
//! It gives such memory back while it works, in passing.  A gateway that has just recovered a large
//! queue may have nothing to do for hours, so it says once that what recovery took is not needed
//! again.  Without that, a start with millions of messages left half as much again behind as
//! they take.

#![allow(unsafe_code)] // One call into the allocator.

/// Gives what this thread has freed back to the system.  Takes milliseconds for each hundred MiB.
pub fn give_back() {
    // SAFETY: it takes no pointer and touches nothing that is in use; any thread may call it at any
    // time, also where another allocator was chosen.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_in_use_stays() {
        let kept = vec![7_u8; 1 << 20];
        super::give_back();
        assert!(kept.iter().all(|&octet| octet == 7));
    }
}
