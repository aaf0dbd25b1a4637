//! The choice between the three ways to look at a piece of data.
//!
//! Their contract: `scan(facts, piece, end)` adds the octets of `piece` to `facts`.  With
//! [`EndOfData::Stops`] it stops before the first dot that stands at the start of a line and has
//! CRLF after it *within the piece*, and gives the index of that dot; `facts` then cover what is
//! before the dot.  All three give the same for the same input; `tests.rs` holds them to it.

#[cfg(target_arch = "x86_64")]
use super::avx2::Avx2;
use super::facts::{EndOfData, Facts};
use super::{plain, portable};

/// One of the ways to look at a piece of data; they differ in speed only.
#[derive(Debug, Clone, Copy)]
pub struct Kernel(Way);

#[derive(Debug, Clone, Copy)]
enum Way {
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    Portable,
    Plain,
}

impl Kernel {
    /// The fastest that this processor runs.  The standard library keeps what it found out
    /// about the processor, so that asking again costs a load.
    #[inline]
    pub fn fastest() -> Kernel {
        Kernel::avx2().unwrap_or_else(Kernel::portable)
    }

    /// 64 octets at a time, if this processor has AVX2.
    #[inline]
    pub fn avx2() -> Option<Kernel> {
        #[cfg(target_arch = "x86_64")]
        return Avx2::detect().map(|avx2| Kernel(Way::Avx2(avx2)));
        #[cfg(not(target_arch = "x86_64"))]
        return None;
    }

    /// From one line end to the next with `memchr`, on any processor.
    pub fn portable() -> Kernel {
        Kernel(Way::Portable)
    }

    /// Octet by octet: the definition, and the oracle of the tests.
    pub fn plain() -> Kernel {
        Kernel(Way::Plain)
    }

    /// The kernel by itself over one piece that starts a body, without windows and CRC: where
    /// the end of data is.  For benchmarks.
    #[doc(hidden)]
    pub fn find_end(self, piece: &[u8]) -> Option<usize> {
        let mut facts = Facts::new();
        let end = self.scan(&mut facts, piece, EndOfData::Stops);
        std::hint::black_box(&facts);
        end
    }

    #[inline]
    pub(super) fn scan(self, facts: &mut Facts, piece: &[u8], end: EndOfData) -> Option<usize> {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Way::Avx2(avx2) => avx2.scan(facts, piece, end),
            Way::Portable => portable::scan(facts, piece, end),
            Way::Plain => plain::scan(facts, piece, end),
        }
    }
}
