//! Text of strangers on an operator's terminal.

use std::borrow::Cow;

/// The text without what could drive a terminal or reorder a line.
pub(super) fn plain(text: &str) -> Cow<'_, str> {
    let is_bad = |c: char| {
        let reorders = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        c.is_control() || reorders
    };
    match text.contains(is_bad) {
        true => text.replace(is_bad, "\u{fffd}").into(),
        false => text.into(),
    }
}
