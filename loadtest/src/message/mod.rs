//! The messages that are sent, and what makes each of them recognisable at the other end.
//!
//! Every message carries its id in `X-Race-Id` and in `X-Race-Sum` a CRC-32C over the id's digits
//! and the body.  Bodies that are made up repeat the id every few lines, so that no two messages
//! have the same body and a mix-up of two shows as damage.

pub mod inspect;
pub mod mix;
pub mod template;

use std::fmt;

/// The field that carries the id.
pub const ID_FIELD: &str = "X-Race-Id";
/// The field that carries the checksum.
pub const SUM_FIELD: &str = "X-Race-Sum";
/// Hexadecimal digits of an id.
pub const ID_DIGITS: usize = 16;
/// Hexadecimal digits of a checksum.
pub const SUM_DIGITS: usize = 8;

/// Names one message of one run: 16 bits of run, 24 of session, 24 of its number within the
/// session, so that order can be judged without asking the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(pub u64);

/// Sessions of a run, and messages of a session.
pub const PART_MAX: u32 = 1 << 24;

impl MessageId {
    /// The `number`th message of `session` in `run`.
    ///
    /// # Panics
    /// `session` or `number` is [`PART_MAX`] or more; a plan is checked for that.
    pub fn new(run: u16, session: u32, number: u32) -> MessageId {
        assert!(session < PART_MAX && number < PART_MAX, "a plan keeps within what an id can name");
        MessageId(u64::from(run) << 48 | u64::from(session) << 24 | u64::from(number))
    }

    /// The run and the session, as one number that no other session has.
    pub fn session(self) -> u64 {
        self.0 >> 24
    }

    /// The place within the session.
    pub fn number(self) -> u32 {
        (self.0 & u64::from(PART_MAX - 1)) as u32
    }

    /// The run.
    pub fn run(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// As it stands in the message.
    pub fn digits(self) -> [u8; ID_DIGITS] {
        hex(self.0)
    }

    /// Read back from a message.
    pub fn parse(text: &[u8]) -> Option<MessageId> {
        (text.len() == ID_DIGITS).then(|| unhex(text)).flatten().map(MessageId)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The lowest `N` hexadecimal digits of `number`.
fn hex<const N: usize>(number: u64) -> [u8; N] {
    let mut digits = [0; N];
    for (place, digit) in digits.iter_mut().enumerate() {
        *digit = hex_digit((number >> (4 * (N - 1 - place))) as u8 & 15);
    }
    digits
}

fn hex_digit(value: u8) -> u8 {
    b"0123456789abcdef"[usize::from(value)]
}

fn unhex(text: &[u8]) -> Option<u64> {
    text.iter().try_fold(0, |number, digit| match digit {
        b'0'..=b'9' => Some(number << 4 | u64::from(digit - b'0')),
        b'a'..=b'f' => Some(number << 4 | u64::from(digit - b'a' + 10)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_holds_its_parts_and_survives_its_digits() {
        let id = MessageId::new(0xabcd, 77, 0x12_3456);
        assert_eq!((id.run(), id.session(), id.number()), (0xabcd, 0x00ab_cd00_004d, 0x12_3456));
        assert_eq!(&id.digits(), b"abcd00004d123456");
        assert_eq!(MessageId::parse(&id.digits()), Some(id));
        assert_eq!(MessageId::parse(b"ABCD00004D123456"), None);
        assert_eq!(MessageId::parse(b"0"), None);
    }
}
