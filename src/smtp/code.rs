//! Reply codes (RFC 5321 section 4.2.1) and enhanced status codes (RFC 3463).
//!
//! One job: the two numbers at the front of every reply, as types that cannot hold nonsense.
//! They stand between `reply_reader`, which makes them from a peer's octets, and everything that
//! judges a reply.  No texts and no policy here.

use std::fmt;
use std::str::FromStr;

/// The three digits of a reply; the first is 2 to 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplyCode(u16);

/// What the first digit of a reply means (RFC 5321 section 4.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReplyClass {
    /// 2yz: done.
    Success,
    /// 3yz: go on, more is wanted.
    Intermediate,
    /// 4yz: not now; the same command may work later.
    TransientFailure,
    /// 5yz: no; the same command will not work later either.
    PermanentFailure,
}

impl ReplyCode {
    /// The code with this value, if it is one: 200 to 599.
    pub const fn new(value: u16) -> Option<ReplyCode> {
        if value >= 200 && value <= 599 { Some(ReplyCode(value)) } else { None }
    }

    /// The code in three ASCII digits.
    ///
    /// RFC 5321 ends the second digit at 5, but `571` and the like are common in refusals, and
    /// only the first digit decides anything; so the others may be any digit.
    pub fn from_digits(digits: [u8; 3]) -> Option<ReplyCode> {
        let value = digits.iter().try_fold(0u16, |value, digit| {
            digit.is_ascii_digit().then(|| value * 10 + u16::from(digit - b'0'))
        })?;
        ReplyCode::new(value)
    }

    /// 200 to 599.
    pub const fn value(self) -> u16 {
        self.0
    }

    /// What the first digit says.
    pub const fn class(self) -> ReplyClass {
        match self.0 / 100 {
            2 => ReplyClass::Success,
            3 => ReplyClass::Intermediate,
            4 => ReplyClass::TransientFailure,
            _ => ReplyClass::PermanentFailure,
        }
    }
}

impl fmt::Display for ReplyCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// An enhanced status code `class.subject.detail` (RFC 3463 section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EnhancedCode {
    class: u8,
    subject: u16,
    detail: u16,
}

impl EnhancedCode {
    /// The code `class.subject.detail`, if `class` is 2, 4 or 5 and the others are at most 999.
    pub const fn new(class: u8, subject: u16, detail: u16) -> Option<EnhancedCode> {
        if matches!(class, 2 | 4 | 5) && subject <= 999 && detail <= 999 {
            Some(EnhancedCode { class, subject, detail })
        } else {
            None
        }
    }

    /// 2, 4 or 5.
    pub const fn class(self) -> u8 {
        self.class
    }

    /// What the status is about (RFC 3463 section 3), 0 to 999.
    pub const fn subject(self) -> u16 {
        self.subject
    }

    /// The detail within the subject, 0 to 999.
    pub const fn detail(self) -> u16 {
        self.detail
    }

    /// The code at the front of a reply's text, where a space or the end must follow it
    /// (RFC 2034 section 4), or `None` if there is none.
    pub fn at_front(text: &[u8]) -> Option<EnhancedCode> {
        let word = text.split(|&octet| octet == b' ').next()?;
        let mut numbers = word.split(|&octet| octet == b'.').map(short_number);
        let (class, subject, detail) = (numbers.next()??, numbers.next()??, numbers.next()??);
        if numbers.next().is_some() {
            return None;
        }
        EnhancedCode::new(u8::try_from(class).ok()?, subject, detail)
    }
}

/// The value of one to three ASCII digits.
fn short_number(digits: &[u8]) -> Option<u16> {
    if digits.is_empty() || digits.len() > 3 {
        return None;
    }
    digits.iter().try_fold(0u16, |value, digit| {
        digit.is_ascii_digit().then(|| value * 10 + u16::from(digit - b'0'))
    })
}

impl fmt::Display for EnhancedCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.class, self.subject, self.detail)
    }
}

/// The text is not an enhanced status code of RFC 3463.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an enhanced status code has the form class.subject.detail with class 2, 4 or 5")]
pub struct NotAnEnhancedCode;

impl FromStr for EnhancedCode {
    type Err = NotAnEnhancedCode;

    fn from_str(text: &str) -> Result<EnhancedCode, NotAnEnhancedCode> {
        match EnhancedCode::at_front(text.as_bytes()) {
            Some(code) if !text.contains(' ') => Ok(code),
            _ => Err(NotAnEnhancedCode),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_code_is_three_digits_from_200_to_599() {
        for (digits, value) in [(b"200", 200), (b"354", 354), (b"571", 571), (b"599", 599)] {
            assert_eq!(ReplyCode::from_digits(*digits).map(ReplyCode::value), Some(value));
        }
        for digits in [b"199", b"600", b"000", b"2 0", b"25a", b"+25"] {
            assert_eq!(ReplyCode::from_digits(*digits), None);
        }
    }

    #[test]
    fn the_first_digit_is_the_class() {
        let class = |value| ReplyCode::new(value).map(ReplyCode::class);
        assert_eq!(class(250), Some(ReplyClass::Success));
        assert_eq!(class(354), Some(ReplyClass::Intermediate));
        assert_eq!(class(421), Some(ReplyClass::TransientFailure));
        assert_eq!(class(550), Some(ReplyClass::PermanentFailure));
        assert_eq!(class(600), None);
    }

    #[test]
    fn an_enhanced_code_stands_alone_at_the_front() {
        for (text, code) in
            [("2.1.5 Ok", (2, 1, 5)), ("5.0.0", (5, 0, 0)), ("4.999.999 x", (4, 999, 999))]
        {
            let expected = EnhancedCode::new(code.0, code.1, code.2);
            assert!(expected.is_some());
            assert_eq!(EnhancedCode::at_front(text.as_bytes()), expected, "{text}");
        }
        for text in
            ["", "Ok", "2.1", "2.1.5.0 x", "3.1.5 x", "2.1.1000 x", "2..5 x", "2.1.5Ok", " 2.1.5"]
        {
            assert_eq!(EnhancedCode::at_front(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn an_enhanced_code_reads_back_as_it_was_written() {
        let code = EnhancedCode::new(5, 7, 28).expect("in range");
        assert_eq!(code.to_string().parse(), Ok(code));
        assert_eq!("5.7.28 x".parse::<EnhancedCode>(), Err(NotAnEnhancedCode));
    }
}
