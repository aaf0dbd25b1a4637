//! `[recipients]`: the type, and reading it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeValue;

use super::edge::{ENTRIES, LONG};
use super::read::path;
use super::table::{Table, Wrong, period, text, truth, whole};

/// `[recipients]`: who is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipients {
    /// The table of mailboxes, aliases and lists.
    pub file: Option<PathBuf>,
    /// Whether the next hop of a recipient's route is asked.
    pub call_ahead: bool,
    /// How long its yes is believed.
    pub positive: Duration,
    /// How long its no is believed.
    pub negative: Duration,
    /// Answers that are remembered.
    pub entries: usize,
    /// What divides a mailbox's name from its detail.
    pub plus: Option<char>,
    /// Whether VRFY is answered from the table.
    pub vrfy: bool,
    /// Whether EXPN is answered from the table.
    pub expn: bool,
}

impl Default for Recipients {
    fn default() -> Recipients {
        Recipients {
            file: None,
            call_ahead: false,
            positive: Duration::from_secs(4 * 3_600),
            negative: Duration::from_secs(5 * 60),
            entries: 100_000,
            plus: Some('+'),
            vrfy: false,
            expn: false,
        }
    }
}

/// Reads `[recipients]`.
pub(super) fn recipients(table: &Table<'_>, directory: &Path) -> Recipients {
    let default = Recipients::default();
    Recipients {
        file: table.optional("file", path).map(|file| directory.join(file.into_inner())),
        call_ahead: table.or("call_ahead", default.call_ahead, truth),
        positive: table.or("positive", default.positive, period(LONG)),
        negative: table.or("negative", default.negative, period(LONG)),
        entries: table.or("entries", default.entries, whole(ENTRIES)),
        plus: table.or("plus", default.plus, plus),
        vrfy: table.or("vrfy", default.vrfy, truth),
        expn: table.or("expn", default.expn, truth),
    }
}

fn plus(value: &DeValue<'_>) -> Result<Option<char>, Wrong> {
    let mut given = text(value)?.chars();
    match (given.next(), given.next()) {
        (None, _) => Ok(None),
        (Some(c), None) if c.is_ascii_punctuation() && !"@\"\\<>,.:;()[]".contains(c) => {
            Ok(Some(c))
        }
        _ => Err(Wrong::new("is not a divider", "expected one character like \"+\", or \"\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Environment};

    const REST: &str = r#"
[[listener]]
address = "127.0.0.1:0"
service = "mx"
[domains]
accept = ["example.com"]
[[route]]
recipient = "*"
to = "hold"
[recipients]
"#;

    #[test]
    fn every_key_reaches_its_place() {
        let keys = r#"
file = "who"
call_ahead = true
positive = "1h"
negative = "1m"
entries = 2000
plus = "-"
vrfy = true
expn = true
"#;
        let config = Config::for_test(&format!("{REST}{keys}"));
        let seconds = Duration::from_secs;
        let recipients = Recipients {
            file: Some("/etc/who".into()),
            call_ahead: true,
            positive: seconds(3_600),
            negative: seconds(60),
            entries: 2_000,
            plus: Some('-'),
            vrfy: true,
            expn: true,
        };
        assert_eq!(config.recipients, recipients);
    }

    #[test]
    fn a_divider_is_one_character_or_none() {
        let plus =
            |given: &str| Config::for_test(&format!("{REST}plus = \"{given}\"")).recipients.plus;
        assert_eq!(["", "-"].map(plus), [None, Some('-')]);
        for bad in ["++", "a", "@"] {
            let text = format!("{REST}plus = \"{bad}\"");
            let refused = Config::parse(&text, Path::new("/m.toml"), &Environment::for_test());
            let told = refused.expect_err(bad).render(false);
            assert!(told.contains("is not a divider"), "{told}");
        }
    }
}
