//! Queue entries as aligned text for a person.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use crate::cli::plain::plain;
use crate::cli::why::Why;
use crate::control::port::{Entry, State};

/// A table, page by page: columns keep the widths that they once had.
#[derive(Debug)]
pub(super) struct Table {
    has_color: bool,
    /// Of the columns but the last, which needs none; zeros before the first page.
    widths: [usize; COLUMNS - 1],
}

const COLUMNS: usize = 8;
const HEADINGS: [&str; COLUMNS] =
    ["ID", "AGE", "SIZE", "STATE", "TRIES", "FROM", "TO", "SITE AND LAST REPLY"];
/// A column is not made wider than this for one long address.
const WIDTH_MAX: usize = 40;

impl Table {
    pub(super) fn new(has_color: bool) -> Table {
        Table { has_color, widths: [0; COLUMNS - 1] }
    }

    /// Writes one page; before the first, the headings.
    pub(super) fn write(&mut self, entries: &[Entry], out: &mut String) {
        let rows: Vec<[Cow<'_, str>; COLUMNS]> = entries.iter().map(row).collect();
        let is_first = self.widths[0] == 0;
        if rows.is_empty() {
            return;
        }
        let headings = HEADINGS.map(Cow::Borrowed);
        for row in rows.iter().chain([&headings]) {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count().min(WIDTH_MAX));
            }
        }
        if is_first {
            self.line(&headings, None, out);
        }
        for (row, entry) in rows.iter().zip(entries) {
            self.line(row, Some(entry.state), out);
        }
    }

    fn line(&self, row: &[Cow<'_, str>; COLUMNS], state: Option<State>, out: &mut String) {
        for (column, cell) in row.iter().enumerate() {
            let Some(&width) = self.widths.get(column) else {
                out.push_str(cell);
                break;
            };
            let padding = width.saturating_sub(cell.chars().count());
            let color = state.filter(|_| self.has_color && HEADINGS[column] == "STATE");
            match color.and_then(sgr) {
                Some(color) => write!(out, "\x1b[{color}m{cell}\x1b[0m"),
                None => write!(out, "{cell}"),
            }
            .expect("a string takes all text");
            out.extend(std::iter::repeat_n(' ', padding + 2));
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
    }
}

/// The colour of a state that a person looks for (ECMA-48, SGR).
fn sgr(state: State) -> Option<&'static str> {
    match state {
        State::Ready => None,
        State::Active => Some("32"),
        State::Deferred => Some("33"),
        State::Held => Some("35"),
        State::Quarantined => Some("31"),
    }
}

fn row(entry: &Entry) -> [Cow<'_, str>; COLUMNS] {
    let to = match entry.to.as_slice() {
        [] => Cow::Borrowed("-"),
        [_] => recipient(entry, 0),
        [_, others @ ..] => format!("{} +{}", recipient(entry, 0), others.len()).into(),
    };
    let site = match &entry.reason {
        Some(reason) => format!("{}: {}", plain(&entry.site), plain(reason)).into(),
        None => plain(&entry.site),
    };
    [
        entry.id.to_string().into(),
        short_period(entry.age_seconds).into(),
        short_size(entry.size).into(),
        entry.state.as_str().into(),
        entry.attempts.to_string().into(),
        originator(entry),
        to,
        site,
    ]
}

/// All that is known of one message.
pub(super) struct Details<'a>(pub(super) &'a [Entry]);

impl fmt::Display for Details<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(message) = self.0.first() else { return Ok(()) };
        let (accepted, age) = (message.accepted, short_period(message.age_seconds));
        writeln!(f, "message   {}", message.id)?;
        writeln!(f, "from      {}", originator(message))?;
        writeln!(f, "size      {} octets", message.size)?;
        writeln!(f, "accepted  {accepted}, {age} ago")?;
        for entry in self.0 {
            let state = entry.state.as_str();
            writeln!(f, "\nsite      {}", plain(&entry.site))?;
            if let Some(domain) = &entry.domain {
                writeln!(f, "domain    {}", plain(domain))?;
            }
            match entry.next_attempt {
                Some(next) => writeln!(f, "state     {state}, next attempt {next}")?,
                None => writeln!(f, "state     {state}")?,
            }
            writeln!(f, "attempts  {}", entry.attempts)?;
            if let Some(reason) = &entry.reason {
                writeln!(f, "reply     {}", plain(reason))?;
            }
            if let Some(tls) = &entry.tls {
                writeln!(f, "tls       {}", plain(tls))?;
            }
            for place in 0..entry.to.len() {
                writeln!(f, "to        {}", recipient(entry, place))?;
            }
        }
        if let Some(explanation) = &message.verdict {
            write!(f, "\n{}", Why(explanation))?;
        }
        Ok(())
    }
}

/// A recipient, and whom the sender named in its place.
fn recipient(entry: &Entry, place: usize) -> Cow<'_, str> {
    let to = &entry.to[place];
    match entry.named.get(place).filter(|named| !named.eq_ignore_ascii_case(to)) {
        Some(named) => format!("{} ({})", plain(to), plain(named)).into(),
        None => plain(to),
    }
}

fn originator(entry: &Entry) -> Cow<'_, str> {
    match entry.from.as_str() {
        "" => "<>".into(),
        from => plain(from),
    }
}

/// An age in its largest unit: `40s`, `12m`, `5h`, `3d`.
fn short_period(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A size in three or four characters: `812`, `9.8K`, `52M`.
fn short_size(octets: u64) -> String {
    let mut unit = "";
    let mut size = octets as f64;
    for larger in ["K", "M", "G"] {
        if size < 1_000.0 {
            break;
        }
        size /= 1_024.0;
        unit = larger;
    }
    match unit {
        "" => octets.to_string(),
        _ if size < 9.95 => format!("{size:.1}{unit}"),
        _ => format!("{size:.0}{unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::moment::Moment;
    use crate::message::MessageId;

    fn entry() -> Entry {
        Entry {
            id: MessageId(33),
            state: State::Deferred,
            from: "a@example.com".to_owned(),
            to: vec!["b@example.org".to_owned(), "c@example.org".to_owned()],
            named: Vec::new(),
            site: "10.0.0.5:25".to_owned(),
            domain: None,
            size: 10_240,
            attempts: 3,
            accepted: Moment(0),
            age_seconds: 7_300,
            next_attempt: Some(Moment(1)),
            reason: Some("451 4.0.0 \x1b[31mlater".to_owned()),
            tls: None,
            parts: 1,
            verdict: None,
        }
    }

    #[test]
    fn a_table_is_aligned_and_keeps_its_widths() {
        let notice = Entry {
            state: State::Held,
            from: String::new(),
            to: vec!["d@example.org".to_owned()],
            reason: None,
            ..entry()
        };
        let mut out = String::new();
        let mut table = Table::new(false);
        table.write(&[entry()], &mut out);
        table.write(&[notice], &mut out);
        table.write(&[], &mut out);
        assert_eq!(
            out,
            "\
ID             AGE  SIZE  STATE     TRIES  FROM           TO                SITE AND LAST REPLY
0000000000011  2h   10K   deferred  3      a@example.com  b@example.org +1  10.0.0.5:25: 451 4.0.0 \u{fffd}[31mlater
0000000000011  2h   10K   held      3      <>             d@example.org     10.0.0.5:25
"
        );
    }

    #[test]
    fn colour_only_where_asked_for_and_outside_the_alignment() {
        let (mut plain, mut colored) = (String::new(), String::new());
        Table::new(false).write(&[entry()], &mut plain);
        Table::new(true).write(&[entry()], &mut colored);
        assert!(!plain.contains('\x1b'));
        assert!(colored.contains("\x1b[33mdeferred\x1b[0m"));
        assert_eq!(colored.replace("\x1b[33m", "").replace("\x1b[0m", ""), plain);
    }

    #[test]
    fn details_of_a_message() {
        let text = Details(&[entry()]).to_string();
        for line in [
            "message   0000000000011",
            "accepted  1970-01-01T00:00:00.000Z, 2h ago",
            "state     deferred, next attempt 1970-01-01T00:00:00.001Z",
            "to        c@example.org",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn whom_the_sender_named_stands_beside_who_gets_it() {
        let named = vec!["B@example.org".to_owned(), "team@example.org".to_owned()];
        let entry = Entry { named, ..entry() };
        let text = Details(&[entry]).to_string();
        assert!(text.contains("to        b@example.org\n"), "{text}");
        assert!(text.contains("to        c@example.org (team@example.org)\n"), "{text}");
    }

    #[test]
    fn short_forms() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (60, "1m"), (3_599, "59m"), (7_200, "2h"), (432_000, "5d")]
        {
            assert_eq!(short_period(seconds), text);
        }
        for (octets, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1.0K"),
            (10_240, "10K"),
            (1_048_576, "1.0M"),
            (52_428_800, "50M"),
            (u64::MAX, "17179869184G"),
        ] {
            assert_eq!(short_size(octets), text);
        }
    }
}
