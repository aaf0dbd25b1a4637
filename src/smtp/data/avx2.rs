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
//! 1. A block of 64 octets is compared with itself moved by one: the octets and those before
//!    them are two loads, one octet apart.  `LF here ^ CR before` is a bare newline, `dot here &
//!    LF before` a leading dot, 64 places at once, and nothing is carried from block to block.
//! 2. One branch for all of that.  Nearly no mail has any of it, so the branch is predicted.  A
//!    block that has is *odd*, and left to a slower function that asks what it is and whether
//!    the data end in it.  In all others every LF ends a line.
//! 3. NUL and 8-bit octets need no place, only a yes: a running minimum and a running OR of the
//!    vectors, looked at once a piece.
//! 4. The longest line without a loop over lines, the number of which in a block no processor
//!    can predict.  Of the lines that end in a block only the first can have begun before it;
//!    all others have at most 61 octets.  Once a line of 61 has been seen, which is soon in
//!    nearly all mail, the first is all that matters; before that, the second is compared
//!    without a branch, and only more than two are looped over.  In a block without a line end
//!    the same formulas give the octets of the open line less one, which is never more than the
//!    line will have.
//! 5. The first block of a piece, odd ones and the last octets go through words of 64 bits
//!    that say where CR, LF and dots are; neighbours are then shifts and ANDs of words.  Fewer
//!    than 64 octets are read as the last 64 so far and their words shifted; seeing some octets
//!    twice does no harm to a minimum and an OR.
//!
//! The worst that a peer can send, nothing but CRLF, goes at a tenth of the usual speed, still
//! over 1 GB/s.
#![allow(unsafe_code)] // Vector loads, and the call of code for AVX2 from code for any x86-64.

use std::arch::x86_64::{
    __m256i, _mm256_and_si256, _mm256_cmpeq_epi8, _mm256_loadu_si256, _mm256_min_epu8,
    _mm256_movemask_epi8, _mm256_or_si256, _mm256_set1_epi8, _mm256_setzero_si256,
    _mm256_xor_si256,
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
    let mut dot_at = None;
    while dot_at.is_none() && lines.done < piece.len() {
        if lines.done > 0 {
            if lines.longest_line < INNER_LINE_MAX {
                even_blocks::<true>(&mut lines, &mut seen, piece);
            }
            if lines.longest_line >= INNER_LINE_MAX {
                even_blocks::<false>(&mut lines, &mut seen, piece);
            }
        }
        dot_at = any_block(&mut lines, &mut seen, piece, end);
    }
    lines.suspend(facts);
    seen.note(&mut facts.flags);
    dot_at
}

/// The hot loop: whole blocks up to the first that has a leading dot or a bare newline.
///
/// It calls nothing and has its state in local variables, so that all of it is in registers.
/// At least one octet of the piece must be done.
#[inline(never)]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
fn even_blocks<const SHORT_LINES: bool>(lines: &mut Lines, seen_out: &mut Seen, piece: &[u8]) {
    let mut seen = *seen_out;
    let mut longest_line = lines.longest_line.cast_signed();
    // Octets of the open line, less one.
    let mut open = (lines.done as u64).wrapping_sub(lines.line_start).cast_signed() - 1;
    // From the octet before the block.
    let mut rest = &piece[lines.done - 1..];
    while let Some(pairs) = rest.first_chunk::<{ BLOCK + 1 }>() {
        let (before, here) = Halves::load_pairs(pairs);
        let bare = here.equal_vectors(b'\n').xor(before.equal_vectors(b'\r'));
        let dots = here.equal_vectors(b'.').and(before.equal_vectors(b'\n'));
        if bare.or(dots).any() {
            break;
        }
        // Every LF ends a line.
        let line_ends = here.equal(b'\n');
        let first = i64::from(line_ends.trailing_zeros());
        longest_line = longest_line.max(open + first);
        if SHORT_LINES {
            let after_first = line_ends & line_ends.wrapping_sub(1);
            let second = i64::from(after_first.trailing_zeros());
            longest_line = longest_line.max(second - first - 2);
            let after_second = after_first & after_first.wrapping_sub(1);
            if after_second != 0 {
                longest_line = longest_line.max(longest_inner_line(after_first).cast_signed());
            }
        }
        open = if line_ends == 0 { open } else { -1 } + i64::from(line_ends.leading_zeros());
        seen.add(here);
        rest = &rest[BLOCK..];
        if SHORT_LINES && longest_line >= INNER_LINE_MAX.cast_signed() {
            break;
        }
    }
    let done = piece.len() - rest.len() + 1;
    if done > lines.done {
        lines.done = done;
        lines.longest_line = longest_line.cast_unsigned();
        lines.line_start = (done as u64).wrapping_sub((open + 1).cast_unsigned());
        lines.carry = Carry {
            after_cr: u64::from(rest[0] == b'\r'),
            at_line_start: u64::from(rest[0] == b'\n'),
        };
        *seen_out = seen;
    }
}

/// The next block, whatever is in it: 64 octets, or what is left of the piece, or what is before
/// the end of data, the place of which comes back.
#[inline(never)]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
fn any_block(lines: &mut Lines, seen: &mut Seen, piece: &[u8], end: EndOfData) -> Option<usize> {
    let mut octets = BLOCK.min(piece.len() - lines.done);
    let mut dot_at = None;
    if octets == 0 {
        return None;
    }
    let (mut halves, mut words) = block_at(piece, lines.done, octets, lines.carry);
    if words.leading_dots != 0 && end == EndOfData::Stops {
        let beyond = &piece[lines.done + octets..];
        if let Some(bit) = words.end_of_data(beyond) {
            dot_at = Some(lines.done + bit);
            octets = bit;
            if octets == 0 {
                return dot_at;
            }
            // The block once more, without what follows the body.
            (halves, words) = block_at(&piece[..lines.done + bit], lines.done, bit, lines.carry);
        }
    }
    words.note_odd(&mut lines.flags);
    seen.add(halves);
    lines.longest_line = lines.longest_line.max(longest_inner_line(words.line_ends));
    lines.add(words, octets);
    dot_at
}

/// The block of `octets` behind the `done` ones, either a whole one or the last of the piece.
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
fn block_at(piece: &[u8], done: usize, octets: usize, carry: Carry) -> (Halves, Words) {
    let read = &piece[..done + octets];
    let halves = last_halves(read);
    let skipped = read.len().min(BLOCK) - octets;
    (halves, halves.words_of_last(octets, skipped, carry))
}

/// What crosses from a block to the next: two bits.
#[derive(Clone, Copy)]
struct Carry {
    /// 1 if the octet before the block is a CR, else 0.
    after_cr: u64,
    /// 1 if the block starts at the start of a line, else 0.
    at_line_start: u64,
}

/// Places in a block of up to 64 octets: bit `i` stands for octet `i`.
#[derive(Clone, Copy)]
struct Words {
    cr: u64,
    lf: u64,
    /// Octets behind a CR.
    after_cr: u64,
    /// LFs behind a CR.
    line_ends: u64,
    /// Dots behind a line end.
    leading_dots: u64,
}

impl Words {
    #[inline(always)]
    fn new(cr: u64, lf: u64, dots: u64, carry: Carry) -> Words {
        let after_cr = cr << 1 | carry.after_cr;
        let line_ends = lf & after_cr;
        let leading_dots = dots & (line_ends << 1 | carry.at_line_start);
        Words { cr, lf, after_cr, line_ends, leading_dots }
    }

    /// Flags what is odd.
    #[inline]
    fn note_odd(&self, flags: &mut BodyFlags) {
        for (places, flag) in [
            (self.leading_dots, BodyFlags::LEADING_DOTS),
            (self.after_cr & !self.lf, BodyFlags::BARE_CR),
            (self.lf & !self.after_cr, BodyFlags::BARE_LF),
        ] {
            if places != 0 {
                flags.insert(flag);
            }
        }
    }

    /// The first of the leading dots that has CRLF after it; `beyond` is what follows the block.
    #[inline]
    fn end_of_data(&self, beyond: &[u8]) -> Option<usize> {
        let cr_beyond = u64::from(beyond.first() == Some(&b'\r')) << 63;
        let lf_beyond = u64::from(beyond.first() == Some(&b'\n')) << 62
            | u64::from(beyond.get(1) == Some(&b'\n')) << 63;
        let then_cr = self.cr >> 1 | cr_beyond;
        let then_lf = self.lf >> 2 | lf_beyond;
        let ends = self.leading_dots & then_cr & then_lf;
        (ends != 0).then(|| ends.trailing_zeros() as usize)
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

    /// The words of the last `octets`, behind the `skipped` ones before them.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn words_of_last(self, octets: usize, skipped: usize, carry: Carry) -> Words {
        let cr = self.equal(b'\r') >> skipped;
        let lf = self.equal(b'\n') >> skipped;
        let mut words = Words::new(cr, lf, self.equal(b'.') >> skipped, carry);
        // Nothing stands behind a CR that is last, so it is not bare yet.
        words.after_cr &= u64::MAX >> (BLOCK - octets);
        words
    }

    /// The octets before the places of a block, and the block.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn load_pairs(pairs: &[u8; BLOCK + 1]) -> (Halves, Halves) {
        let before = pairs.first_chunk().expect("65 octets are more than 64");
        let here = pairs.last_chunk().expect("65 octets are more than 64");
        (Halves::load(before), Halves::load(here))
    }

    /// All bits set in the places of one octet.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn equal_vectors(self, octet: u8) -> Halves {
        let wanted = _mm256_set1_epi8(octet.cast_signed());
        Halves(_mm256_cmpeq_epi8(self.0, wanted), _mm256_cmpeq_epi8(self.1, wanted))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn and(self, other: Halves) -> Halves {
        Halves(_mm256_and_si256(self.0, other.0), _mm256_and_si256(self.1, other.1))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn or(self, other: Halves) -> Halves {
        Halves(_mm256_or_si256(self.0, other.0), _mm256_or_si256(self.1, other.1))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn xor(self, other: Halves) -> Halves {
        Halves(_mm256_xor_si256(self.0, other.0), _mm256_xor_si256(self.1, other.1))
    }

    /// Whether an octet has its highest bit set.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn any(self) -> bool {
        _mm256_movemask_epi8(_mm256_or_si256(self.0, self.1)) != 0
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
#[derive(Clone, Copy)]
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

/// [`Facts`] in registers: everything about lines.  Places are octets from the start of the
/// piece, so that one counter serves for all.
#[derive(Clone, Copy)]
struct Lines {
    /// Octets of the piece before the block.
    done: usize,
    /// Where the open line starts; it wraps below zero if that is before the piece.
    line_start: u64,
    longest_line: u64,
    carry: Carry,
    flags: BodyFlags,
}

impl Lines {
    #[inline]
    fn resume(facts: &Facts) -> Lines {
        Lines {
            done: 0,
            line_start: facts.line_start_octets.wrapping_sub(facts.octets),
            longest_line: facts.longest_line_octets,
            carry: Carry {
                after_cr: u64::from(facts.position == Position::AfterCr),
                at_line_start: u64::from(facts.position == Position::LineStart),
            },
            flags: facts.flags,
        }
    }

    #[inline]
    fn suspend(self, facts: &mut Facts) {
        facts.line_start_octets = self.line_start.wrapping_add(facts.octets);
        facts.octets += self.done as u64;
        facts.longest_line_octets = self.longest_line;
        facts.flags = self.flags;
        facts.position = match (self.carry.at_line_start, self.carry.after_cr) {
            (0, 0) => Position::InLine,
            (0, _) => Position::AfterCr,
            _ => Position::LineStart,
        };
    }

    /// Goes past a block of 1 to [`BLOCK`] octets; nothing is set in its words beyond them.
    #[inline(always)]
    fn add(&mut self, words: Words, octets: usize) {
        let block = self.done as u64;
        let line_ends = words.line_ends;
        let first_lf = block + u64::from(line_ends.trailing_zeros().min(octets as u32));
        let first_line = first_lf.wrapping_sub(self.line_start) - 1;
        self.longest_line = self.longest_line.max(first_line);
        let next_start = block + 64 - u64::from(line_ends.leading_zeros());
        self.line_start = if line_ends == 0 { self.line_start } else { next_start };

        let last = octets - 1;
        self.carry = Carry { after_cr: words.cr >> last & 1, at_line_start: line_ends >> last & 1 };
        self.done += octets;
    }
}

/// The longest line between two line ends of one block.
#[inline]
fn longest_inner_line(mut line_ends: u64) -> u64 {
    let mut longest = 0;
    while line_ends != 0 {
        let lf = line_ends.trailing_zeros();
        line_ends &= line_ends - 1;
        if line_ends != 0 {
            longest = longest.max(u64::from(line_ends.trailing_zeros() - lf - 2));
        }
    }
    longest
}
