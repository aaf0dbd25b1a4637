//! Reads the recipients file: one address a line, and whom it stands for.
//!
//! ```text
//! # Whoever has a line is here.
//! alice@example.com
//! alice.smith@example.com: alice@example.com
//! team@example.com: alice@example.com, bob@elsewhere.example
//! # Everybody of this domain is here, and everybody of that one is Alice.
//! @example.net
//! @example.org: alice@example.com
//! ```
//!
//! Pure: text in, a [`Table`] or the first thing that is wrong with the text.

use super::table::{Address, Builder, Entry, Expansion, Table, folded};
use super::walk;
use crate::delivery::sites::routing_domain;
use crate::smtp::address::{Mailbox, Utf8};

/// What is wrong with the file, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct BadTable {
    /// From 1.
    pub line: u32,
    /// What was found, what was expected, and what mends it.
    pub what: Box<str>,
}

/// One line of the file.
struct Line<'text> {
    name: Name<'text>,
    targets: Vec<Mailbox>,
}

/// What a line is about.
enum Name<'text> {
    /// One address.
    Address(&'text str, Mailbox),
    /// Everybody of a domain who has no line, as `@domain`.
    Others(&'text str, Mailbox),
}

impl Table {
    /// Reads the text of a recipients file; `divider` parts a mailbox from its detail, and an
    /// empty one parts nothing.
    ///
    /// # Errors
    /// The first line that is wrong.
    pub fn parse(text: &str, divider: &str) -> Result<Table, BadTable> {
        let mut builder = Builder::new(lines(text).count(), divider);
        for (number, line) in lines(text) {
            let bad = |what: String| BadTable { line: number, what: what.into() };
            let line = Line::parse(line).map_err(bad)?;
            line.add(&mut builder, number).map_err(bad)?;
        }
        let table = builder.finish();
        walk::check(&table)?;
        Ok(table)
    }
}

/// The lines that say something, with their numbers from 1.
fn lines(text: &str) -> impl Iterator<Item = (u32, &str)> {
    let numbered = (1_u32..).zip(text.lines());
    let trimmed = numbered.map(|(number, line)| (number, line.trim()));
    trimmed.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

impl<'text> Line<'text> {
    fn parse(line: &'text str) -> Result<Line<'text>, String> {
        let (name, rest) = split_once(line, ':').map_or((line, None), |(l, r)| (l, Some(r)));
        let name = Name::parse(name.trim())?;
        let Some(rest) = rest else { return Ok(Line { name, targets: Vec::new() }) };
        let mut targets = Vec::new();
        let mut rest = Some(rest);
        while let Some(text) = rest {
            let (target, others) =
                split_once(text, ',').map_or((text, None), |(l, r)| (l, Some(r)));
            targets.push(address(target.trim())?);
            rest = others;
        }
        Ok(Line { name, targets })
    }

    fn add(self, builder: &mut Builder, number: u32) -> Result<(), String> {
        let twice = |name: &str, earlier: u32| {
            format!("found `{name}`, which line {earlier} has too; take one of the two lines out")
        };
        match self.name {
            Name::Address(text, mailbox) => {
                let domain = builder.domain(&routing_domain(&mailbox));
                let unquoted = mailbox.local_unquoted();
                let local = folded(&unquoted);
                if local.len() > Address::LOCAL_MAX {
                    return Err(format!("found `{text}`, whose local part is too long"));
                }
                let is_own = |target: &Mailbox| {
                    routing_domain(target) == routing_domain(&mailbox)
                        && folded(&target.local_unquoted()) == local
                };
                let entry = expansion(builder, text, self.targets, is_own, number)?;
                let address = Address { domain, local: &local };
                builder.add(address, entry, number).map_err(|earlier| twice(text, earlier))
            }
            Name::Others(text, mailbox) => {
                let domain = routing_domain(&mailbox);
                builder.domain(&domain);
                let entry = expansion(builder, text, self.targets, |_| false, number)?;
                let domain = builder.table.domains.get_mut(&*domain).expect("it was just added");
                match domain.others.replace(entry) {
                    None => Ok(()),
                    Some(_) => {
                        Err(format!("found `{text}` a second time; take one of the two lines out"))
                    }
                }
            }
        }
    }
}

/// What a line's targets come to.
fn expansion(
    builder: &mut Builder,
    name: &str,
    targets: Vec<Mailbox>,
    is_own: impl Fn(&Mailbox) -> bool,
    line: u32,
) -> Result<Entry, String> {
    if targets.is_empty() {
        return Ok(Entry::Mailbox);
    }
    let (own, targets): (Vec<Mailbox>, Vec<Mailbox>) = targets.into_iter().partition(is_own);
    if targets.is_empty() {
        return Err(format!(
            "found `{name}: {name}`, an alias of itself; write `{name}` for a mailbox"
        ));
    }
    let index = builder.table.expansions.len() as u32;
    let (own, targets) = (own.into_iter().next(), targets.into());
    builder.table.expansions.push(Expansion { targets, own, name: name.into(), line });
    Ok(Entry::Expands(index))
}

impl<'text> Name<'text> {
    fn parse(text: &'text str) -> Result<Name<'text>, String> {
        match text.strip_prefix('@') {
            Some(domain) => {
                let any = Mailbox::parse(format!("x@{domain}").as_bytes(), Utf8::Allowed);
                any.map(|mailbox| Name::Others(text, mailbox)).map_err(|error| {
                    format!(
                        "found `{text}`, expected `@` and a domain for all of that domain: {error}"
                    )
                })
            }
            None => address(text).map(|mailbox| Name::Address(text, mailbox)),
        }
    }
}

fn address(text: &str) -> Result<Mailbox, String> {
    Mailbox::parse(text.as_bytes(), Utf8::Allowed).map_err(|error| {
        format!(
            "found `{text}`, expected an address like alice@example.com: {error}; a line is an \
             address, or an address, a colon, and addresses parted by commas"
        )
    })
}

/// Parts the text at the first `mark` that stands neither in a quoted string nor in an address
/// literal.
fn split_once(text: &str, mark: char) -> Option<(&str, &str)> {
    let (mut is_quoted, mut is_escaped, mut is_literal) = (false, false, false);
    for (at, letter) in text.char_indices() {
        match letter {
            _ if is_escaped => is_escaped = false,
            '\\' if is_quoted => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            '[' if !is_quoted => is_literal = true,
            ']' if !is_quoted => is_literal = false,
            _ if letter == mark && !is_quoted && !is_literal => {
                return Some((&text[..at], &text[at + mark.len_utf8()..]));
            }
            _ => {}
        }
    }
    None
}
