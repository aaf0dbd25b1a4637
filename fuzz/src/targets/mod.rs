//! One function a target: any octets in, a panic if mailrace breaks a promise over them.
//!
//! A target reads its input front to back as choices ([`Input`]) or as what a peer sends; an input
//! that is too short goes on with zeros, so that every input means something.  Each target holds
//! its part to more than not to panic: to an oracle of its own, to the same answer however the
//! octets are cut, or to what must be so whatever came in.

pub mod address;
pub mod client;
pub mod command;
pub mod config;
pub mod data;
pub mod dns;
pub mod log;
pub mod reply;
pub mod session;

/// What a fuzzer calls.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("address", address::run),
    ("client", client::run),
    ("command", command::run),
    ("config", config::run),
    ("data", data::run),
    ("dns", dns::run),
    ("log", log::run),
    ("reply", reply::run),
    ("session", session::run),
];

/// Choices, read off the front of the octets.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// The next octet; 0 once there are no more.
    pub fn octet(&mut self) -> u8 {
        match self.0 {
            [] => 0,
            [first, rest @ ..] => {
                self.0 = rest;
                *first
            }
        }
    }

    /// The next number below `end`, which is at most 65,536.
    pub fn below(&mut self, end: usize) -> usize {
        let number = match end {
            0..=256 => usize::from(self.octet()),
            _ => usize::from(self.octet()) << 8 | usize::from(self.octet()),
        };
        number % end.max(1)
    }

    /// The next octets, fewer where they end.
    pub fn take(&mut self, octets: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(octets.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Whether there is nothing left to choose by.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Cuts into pieces of a few octets to a few hundred, whose lengths follow from `seed`: 0 leaves
/// them whole, 1 makes each octet a piece.
pub fn cut(octets: &[u8], seed: u8) -> impl Iterator<Item = &[u8]> {
    let (mut rest, mut state) = (octets, u32::from(seed));
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let length = match seed {
            0 => rest.len(),
            1 => 1,
            _ => {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                1 + (state >> 16) as usize % (1 << (seed % 9))
            }
        };
        let (piece, behind) = rest.split_at(length.min(rest.len()));
        rest = behind;
        Some(piece)
    })
}
