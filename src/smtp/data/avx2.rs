//! The scan 64 octets at a time with AVX2.
//!
//! The plain version ([`super::plain`] is the same in Rust):
//!
//! ```text
//! for each octet of the piece:
//!     at the start of a line, if the octet is a dot:
//!         if CR LF follow it and the data may end: stop here
//!         a leading dot was seen
//!     LF after CR ends a line: compare its length, the next octet starts a line
//!     LF after anything else is bare; anything else after CR makes that CR bare
//!     NUL and octets above 127 were seen
//! ```
//!
//! The tricks:
//! 1. 64 octets become three words of 64 bits: where CR, LF and dots are.  All questions about
//!    neighbours are then shifts and ANDs of words: with `after_cr = cr << 1 | carry`, the line
//!    ends are `lf & after_cr`, bare LF `lf & !after_cr`, bare CR `after_cr & !lf`, and leading
//!    dots `dots & (line_ends << 1 | carry)`.  What crosses to the next 64 are two bits.
//! 2. Only a leading dot is worth a branch.  Nearly no mail has one, so the branch is
//!    predicted, and whether the dot is the end is asked behind it.
//! 3. NUL and 8-bit octets need no place, only a yes: a running minimum and a running OR of the
//!    vectors, looked at once a piece.
//! 4. The longest line without a loop over lines, the number of which in a block no processor
//!    can predict: of the lines that end in a block only the first can have begun before it, and
//!    all others have at most 61 octets.  Once a line of 61 has been seen, which is nearly
//!    always soon, the first is all that matters.  In a block without a line end the same
//!    formula gives the octets so far less one, which is never more than the line will have.
//! 5. The last octets, fewer than 64, are read as the last 64 of the piece and their words
//!    shifted; seeing some twice does no harm to a minimum and an OR.
#![allow(unsafe_code)] // Vector loads, and the call of code for AVX2 from code for any x86-64.

use std::arch::x86_64::{
    __m256i, _mm256_cmpeq_epi8, _mm256_loadu_si256, _mm256_min_epu8, _mm256_movemask_epi8,
    _mm256_or_si256, _mm256_set1_epi8, _mm256_setzero_si256,
};

use super::facts::{EndOfData, Facts, Position};
use crate::message::BodyFlags;

/// Proof that this processor runs the kernel: [`Avx2::detect`] alone makes it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    /// Asks the processor, through the standard library's cache.
    #[inline]
    pub fn detect() -> Option<Avx2> {
        let has_all = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt");
        has_all.then_some(Avx2(()))
    }

    /// See [`super::kernel`] for the contract.
    #[inline]
    pub fn scan(self, facts: &mut Facts, piece: &[u8], end: EndOfData) -> Option<usize> {
        // SAFETY: `self` exists, so `detect` found every feature that `scan` is compiled for.
        unsafe { scan(facts, piece, end) }
    }
}

const BLOCK: usize = 64;

/// The longest line that lies in one block with the LF before it and its own CRLF.
const INNER_LINE_MAX: u64 = BLOCK as u64 - 3;

#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
fn scan(facts: &mut Facts, piece: &[u8], end: EndOfData) -> Option<usize> {
    let mut lines = Lines::resume(facts);
    let mut seen = Seen::nothing();
    let (blocks, rest) = piece.as_chunks::<BLOCK>();
    let mut dot_at = None;
    let mut done = 0;
    for block in blocks {
        let halves = Halves::load(block);
        let words = halves.words();
        let leading_dots = lines.leading_dots(&words);
        if leading_dots != 0 {
            let beyond = &piece[done + BLOCK..];
            if let Some(bit) = end_of_data(leading_dots, &words, beyond, end) {
                dot_at = Some(done + bit);
                break;
            }
            lines.any_leading_dots |= leading_dots;
        }
        seen.add(halves);
        lines.add_block(&words);
        done += BLOCK;
    }
    if dot_at.is_none() && !rest.is_empty() {
        let words = last_halves(piece).words().last(rest.len(), piece.len());
        let leading_dots = lines.leading_dots(&words);
        dot_at = end_of_data(leading_dots, &words, &[], end).map(|bit| done + bit);
    }
    // What is left: the octets after the last whole block, or those before the end of data.
    let body = &piece[..dot_at.unwrap_or(piece.len())];
    let left = body.len() - done;
    if left > 0 {
        let halves = last_halves(body);
        let words = halves.words().last(left, body.len());
        lines.any_leading_dots |= lines.leading_dots(&words);
        seen.add(halves);
        lines.add_last(&words, left);
    }
    lines.suspend(facts, body.len());
    seen.note(&mut facts.flags);
    dot_at
}

/// The first of the leading dots that has CRLF after it, as a bit of the block; `beyond` is what
/// follows the block.
#[inline]
fn end_of_data(leading_dots: u64, words: &Words, beyond: &[u8], end: EndOfData) -> Option<usize> {
    if end == EndOfData::IsBody {
        return None;
    }
    let cr_beyond = u64::from(beyond.first() == Some(&b'\r')) << 63;
    let lf_beyond = u64::from(beyond.first() == Some(&b'\n')) << 62
        | u64::from(beyond.get(1) == Some(&b'\n')) << 63;
    let then_cr = words.cr >> 1 | cr_beyond;
    let then_lf = words.lf >> 2 | lf_beyond;
    let ends = leading_dots & then_cr & then_lf;
    (ends != 0).then(|| ends.trailing_zeros() as usize)
}

/// Where CR, LF and dots are in up to 64 octets: bit `i` stands for octet `i`.
struct Words {
    cr: u64,
    lf: u64,
    dots: u64,
}

impl Words {
    /// The words of the last `octets` of a piece, from those of its last block, which holds
    /// [`BLOCK`] octets of it or, if it is shorter than that, all of it at its start.
    #[inline]
    fn last(self, octets: usize, piece_octets: usize) -> Words {
        let skipped = piece_octets.min(BLOCK) - octets;
        Words { cr: self.cr >> skipped, lf: self.lf >> skipped, dots: self.dots >> skipped }
    }
}

/// 64 octets in two registers.
#[derive(Clone, Copy)]
struct Halves(__m256i, __m256i);

impl Halves {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn load(block: &[u8; BLOCK]) -> Halves {
        let start = block.as_ptr().cast::<__m256i>();
        // SAFETY: `block` is 64 readable octets; these are its first and its last 32, and the
        // load asks for no alignment.
        unsafe { Halves(_mm256_loadu_si256(start), _mm256_loadu_si256(start.add(1))) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn words(self) -> Words {
        Words { cr: self.equal(b'\r'), lf: self.equal(b'\n'), dots: self.equal(b'.') }
    }

    /// The places of one octet.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn equal(self, octet: u8) -> u64 {
        let wanted = _mm256_set1_epi8(octet.cast_signed());
        let low = _mm256_movemask_epi8(_mm256_cmpeq_epi8(self.0, wanted)).cast_unsigned();
        let high = _mm256_movemask_epi8(_mm256_cmpeq_epi8(self.1, wanted)).cast_unsigned();
        u64::from(high) << 32 | u64::from(low)
    }
}

/// The last 64 octets of a piece; a shorter one is followed by spaces, which mean nothing.
#[inline]
#[target_feature(enable = "avx2")]
fn last_halves(piece: &[u8]) -> Halves {
    match piece.last_chunk::<BLOCK>() {
        Some(block) => Halves::load(block),
        None => {
            let mut block = [b' '; BLOCK];
            block[..piece.len()].copy_from_slice(piece);
            Halves::load(&block)
        }
    }
}

/// Whether there was a NUL or an 8-bit octet, anywhere.
struct Seen {
    minimum: __m256i,
    any_bits: __m256i,
}

impl Seen {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn nothing() -> Seen {
        Seen { minimum: _mm256_set1_epi8(-1), any_bits: _mm256_setzero_si256() }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn add(&mut self, halves: Halves) {
        let minimum = _mm256_min_epu8(halves.0, halves.1);
        let any_bits = _mm256_or_si256(halves.0, halves.1);
        self.minimum = _mm256_min_epu8(self.minimum, minimum);
        self.any_bits = _mm256_or_si256(self.any_bits, any_bits);
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn note(&self, flags: &mut BodyFlags) {
        let nul = _mm256_cmpeq_epi8(self.minimum, _mm256_setzero_si256());
        if _mm256_movemask_epi8(nul) != 0 {
            flags.insert(BodyFlags::NUL);
        }
        if _mm256_movemask_epi8(self.any_bits) != 0 {
            flags.insert(BodyFlags::EIGHT_BIT);
        }
    }
}

/// [`Facts`] in registers: everything about lines.
struct Lines {
    /// Octets of the body before the block.
    base: u64,
    line_start: u64,
    longest_line: u64,
    /// 1 if the octet before the block is a CR, else 0.
    after_cr: u64,
    /// 1 if the block starts at the start of a line, else 0.
    at_line_start: u64,
    any_bare_cr: u64,
    any_bare_lf: u64,
    any_leading_dots: u64,
}

impl Lines {
    #[inline]
    fn resume(facts: &Facts) -> Lines {
        Lines {
            base: facts.octets,
            line_start: facts.line_start_octets,
            longest_line: facts.longest_line_octets,
            after_cr: u64::from(facts.position == Position::AfterCr),
            at_line_start: u64::from(facts.position == Position::LineStart),
            any_bare_cr: 0,
            any_bare_lf: 0,
            any_leading_dots: 0,
        }
    }

    #[inline]
    fn suspend(self, facts: &mut Facts, octets: usize) {
        facts.octets += octets as u64;
        debug_assert_eq!(facts.octets, self.base);
        facts.line_start_octets = self.line_start;
        facts.longest_line_octets = self.longest_line;
        facts.position = match (self.at_line_start, self.after_cr) {
            (0, 0) => Position::InLine,
            (0, _) => Position::AfterCr,
            _ => Position::LineStart,
        };
        for (any, flag) in [
            (self.any_bare_cr, BodyFlags::BARE_CR),
            (self.any_bare_lf, BodyFlags::BARE_LF),
            (self.any_leading_dots, BodyFlags::LEADING_DOTS),
        ] {
            if any != 0 {
                facts.flags.insert(flag);
            }
        }
    }

    #[inline(always)]
    fn line_ends(&self, words: &Words) -> u64 {
        words.lf & (words.cr << 1 | self.after_cr)
    }

    #[inline(always)]
    fn leading_dots(&self, words: &Words) -> u64 {
        words.dots & (self.line_ends(words) << 1 | self.at_line_start)
    }

    /// A block of [`BLOCK`] octets.
    #[inline(always)]
    fn add_block(&mut self, words: &Words) {
        let after_cr = words.cr << 1 | self.after_cr;
        let line_ends = words.lf & after_cr;
        self.any_bare_cr |= after_cr & !words.lf;
        self.any_bare_lf |= words.lf & !after_cr;
        self.measure(line_ends, BLOCK as u32);
        self.after_cr = words.cr >> 63;
        self.at_line_start = line_ends >> 63;
        self.base += BLOCK as u64;
    }

    /// A block of 1 to [`BLOCK`] octets; nothing is set in the words beyond them.
    #[inline]
    fn add_last(&mut self, words: &Words, octets: usize) {
        let last = octets - 1;
        let valid = u64::MAX >> (BLOCK - octets);
        // A CR that is last is not bare yet.
        let after_cr = (words.cr << 1 | self.after_cr) & valid;
        let line_ends = words.lf & after_cr;
        self.any_bare_cr |= after_cr & !words.lf;
        self.any_bare_lf |= words.lf & !after_cr;
        self.measure(line_ends, octets as u32);
        self.after_cr = words.cr >> last & 1;
        self.at_line_start = line_ends >> last & 1;
        self.base += octets as u64;
    }

    /// The lengths of the lines that end in a block of `octets`, of which `line_ends` has the LF.
    #[inline(always)]
    fn measure(&mut self, line_ends: u64, octets: u32) {
        let first = u64::from(line_ends.trailing_zeros().min(octets));
        self.longest_line = self.longest_line.max(self.base + first - 1 - self.line_start);
        if self.longest_line < INNER_LINE_MAX {
            self.measure_inner(line_ends);
        }
        let next_start = self.base + 64 - u64::from(line_ends.leading_zeros());
        self.line_start = if line_ends == 0 { self.line_start } else { next_start };
    }

    /// The lines between two line ends of one block.
    #[inline]
    fn measure_inner(&mut self, mut line_ends: u64) {
        while line_ends != 0 {
            let lf = line_ends.trailing_zeros();
            line_ends &= line_ends - 1;
            if line_ends != 0 {
                let line = line_ends.trailing_zeros() - lf - 2;
                self.longest_line = self.longest_line.max(u64::from(line));
            }
        }
    }
}
