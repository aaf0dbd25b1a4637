//! Reading typed values out of parsed TOML, collecting every problem on the way.
//!
//! A derived deserialiser stops at its first error; a person who edits a file wants them all.
//! So a [`Table`] is walked by hand: unknown keys are reported when it is opened, a value that
//! does not fit is reported with its place and counts as absent, and reading goes on.

use std::fmt;
use std::net::IpAddr;
use std::ops::{Range, RangeInclusive};
use std::str::FromStr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{Section, nearest, quoted};
use super::report::{Problem, Problems};
use crate::units::{ByteSize, Period};

/// Why a value does not fit; the table adds key and place.
#[derive(Debug)]
pub(super) struct Wrong {
    /// The value, where it is part of the sentence: `tls = "starttls"` is ...
    pub value: Option<String>,
    /// Goes on from the key: "is out of bounds".
    pub found: String,
    /// Stands under the value.
    pub expected: String,
    /// The mend, if there is more to say.
    pub mend: Option<String>,
}

impl Wrong {
    pub(super) fn new(found: impl Into<String>, expected: impl Into<String>) -> Wrong {
        Wrong { value: None, found: found.into(), expected: expected.into(), mend: None }
    }

    pub(super) fn mend(mut self, mend: impl Into<String>) -> Wrong {
        self.mend = Some(mend.into());
        self
    }

    fn into_problem(self, path: &str, span: Range<usize>) -> Problem {
        let title = match &self.value {
            Some(value) => format!("`{path} = \"{value}\"` {}", self.found),
            None => format!("`{path}` {}", self.found),
        };
        Problem { help: self.mend, ..Problem::error(title, span).label(self.expected) }
    }
}

/// One table of the file, or the absence of one.
pub(super) struct Table<'t> {
    section: &'static Section,
    entries: Option<&'t DeTable<'t>>,
    /// The header, or the inline table.
    pub span: Range<usize>,
    problems: &'t Problems,
}

impl<'t> Table<'t> {
    /// The top of the file.
    pub(super) fn root(entries: &'t DeTable<'t>, problems: &'t Problems) -> Table<'t> {
        Table::open(Section::named(""), Some(entries), 0..0, problems)
    }

    fn open(
        section: &'static Section,
        entries: Option<&'t DeTable<'t>>,
        span: Range<usize>,
        problems: &'t Problems,
    ) -> Table<'t> {
        for key in entries.into_iter().flat_map(DeTable::keys) {
            if !section.keys.contains(&key.as_ref().as_ref()) {
                let name = key.as_ref();
                let place = match section.name {
                    "" => String::new(),
                    _ => format!(" in {}", section.header()),
                };
                let title = format!("unknown key `{name}`{place}");
                let hint = section.hint(name);
                problems.push(Problem::error(title, key.span()).label("unknown key").help(hint));
            }
        }
        Table { section, entries, span, problems }
    }

    fn entry(&self, key: &str) -> Option<&'t Spanned<DeValue<'t>>> {
        debug_assert!(self.section.keys.contains(&key), "{key} is in the list of keys");
        self.entries?.get(key)
    }

    /// Whether `key` is there, good or bad.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entry(key).is_some()
    }

    /// The value of `key`, if it is there and fits.
    pub(super) fn optional<T>(
        &self,
        key: &str,
        read: impl FnOnce(&DeValue<'t>) -> Result<T, Wrong>,
    ) -> Option<Spanned<T>> {
        let value = self.entry(key)?;
        match read(value.as_ref()) {
            Ok(read) => Some(Spanned::new(value.span(), read)),
            Err(wrong) => {
                self.refuse(key, value.span(), wrong);
                None
            }
        }
    }

    /// The value of `key`, or `default` if it is not there or does not fit.
    pub(super) fn or<T>(
        &self,
        key: &str,
        default: T,
        read: impl FnOnce(&DeValue<'t>) -> Result<T, Wrong>,
    ) -> T {
        self.optional(key, read).map_or(default, Spanned::into_inner)
    }

    /// The value of `key`; its absence is a problem too.
    pub(super) fn required<T>(
        &self,
        key: &str,
        mend: &str,
        read: impl FnOnce(&DeValue<'t>) -> Result<T, Wrong>,
    ) -> Option<Spanned<T>> {
        if self.entry(key).is_none() {
            let title = format!("{} has no `{key}`", self.section.header());
            self.problems.push(Problem::error(title, self.span.clone()).help(mend));
        }
        self.optional(key, read)
    }

    /// The list under `key`; counts as absent if one element does not fit, but all are looked at.
    pub(super) fn list<T>(
        &self,
        key: &str,
        mut read: impl FnMut(&DeValue<'t>) -> Result<T, Wrong>,
    ) -> Option<Spanned<Vec<Spanned<T>>>> {
        let value = self.entry(key)?;
        let Some(elements) = value.as_ref().as_array() else {
            let wrong = Wrong::new("is not a list", expected("a list", value.as_ref()));
            let wrong = match value.as_ref() {
                DeValue::String(text) => wrong.mend(format!("write `{key} = [\"{text}\"]`")),
                _ => wrong,
            };
            self.refuse(key, value.span(), wrong);
            return None;
        };
        let read_one = |element: &Spanned<DeValue<'t>>| match read(element.as_ref()) {
            Ok(read) => Some(Spanned::new(element.span(), read)),
            Err(wrong) => {
                self.refuse(key, element.span(), wrong);
                None
            }
        };
        let read: Vec<_> = elements.iter().map(read_one).collect();
        let whole = read.into_iter().collect::<Option<Vec<_>>>()?;
        Some(Spanned::new(value.span(), whole))
    }

    /// The table `[key]` inside this one; empty if it is not there.
    pub(super) fn table(&self, key: &str) -> Table<'t> {
        let section = Section::named(&self.section.path(key));
        let Some(value) = self.entry(key) else {
            return Table::open(section, None, self.span.clone(), self.problems);
        };
        let entries = value.as_ref().as_table();
        if entries.is_none() {
            let wrong = match value.as_ref() {
                DeValue::Array(_) => {
                    Wrong::new("stands in double brackets", "only one is possible")
                        .mend(format!("write {}", section.header()))
                }
                other => Wrong::new("is not a table", expected("a table", other)),
            };
            self.refuse(key, value.span(), wrong);
        }
        Table::open(section, entries, value.span(), self.problems)
    }

    /// The tables `[[key]]`; `None` if the key is not there at all.
    pub(super) fn tables(&self, key: &str) -> Option<Vec<Table<'t>>> {
        let section = Section::named(&self.section.path(key));
        let value = self.entry(key)?;
        let mend = || format!("write {}, with two brackets on each side", section.header());
        let Some(elements) = value.as_ref().as_array() else {
            let wrong = Wrong::new("can come more than once", "expected double brackets");
            self.refuse(key, value.span(), wrong.mend(mend()));
            return Some(Vec::new());
        };
        let open = |element: &'t Spanned<DeValue<'t>>| {
            let entries = element.as_ref().as_table();
            if entries.is_none() {
                let wrong = Wrong::new("is not a table", expected("a table", element.as_ref()));
                self.refuse(key, element.span(), wrong.mend(mend()));
            }
            entries.map(|_| Table::open(section, entries, element.span(), self.problems))
        };
        Some(elements.iter().filter_map(open).collect())
    }

    fn refuse(&self, key: &str, span: Range<usize>, wrong: Wrong) {
        self.problems.push(wrong.into_problem(&self.section.path(key), span));
    }
}

pub(super) fn expected(what: &str, found: &DeValue<'_>) -> String {
    let found = match found {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "a truth value",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    };
    format!("expected {what}, found {found}")
}

/// A string.
pub(super) fn text<'v>(value: &'v DeValue<'_>) -> Result<&'v str, Wrong> {
    value.as_str().ok_or_else(|| {
        let wrong = Wrong::new("is not a string", expected("a string", value));
        match value {
            DeValue::Integer(number) => wrong.mend(format!("put it in quotes: \"{number}\"")),
            DeValue::Boolean(truth) => wrong.mend(format!("put it in quotes: \"{truth}\"")),
            _ => wrong,
        }
    })
}

/// A string that parses; the type's own error says what was expected.
pub(super) fn parsed<T>(found: &'static str) -> impl Fn(&DeValue<'_>) -> Result<T, Wrong>
where
    T: FromStr<Err: fmt::Display>,
{
    move |value| text(value)?.parse().map_err(|error: T::Err| Wrong::new(found, error.to_string()))
}

/// A whole number within bounds.
pub(super) fn whole<T>(bounds: RangeInclusive<T>) -> impl Fn(&DeValue<'_>) -> Result<T, Wrong>
where
    T: TryFrom<u64> + PartialOrd + fmt::Display,
{
    move |value| {
        let wanted = format!("a whole number from {} to {}", bounds.start(), bounds.end());
        let Some(integer) = value.as_integer() else {
            let wrong = Wrong::new("is not a whole number", expected(&wanted, value));
            return Err(match value.as_str().map(str::parse::<u64>) {
                Some(Ok(number)) => wrong.mend(format!("leave out the quotes: {number}")),
                _ => wrong,
            });
        };
        u64::from_str_radix(integer.as_str(), integer.radix())
            .ok()
            .and_then(|number| T::try_from(number).ok())
            .filter(|number| bounds.contains(number))
            .ok_or_else(|| Wrong::new("is out of bounds", format!("expected {wanted}")))
    }
}

/// True or false.
pub(super) fn truth(value: &DeValue<'_>) -> Result<bool, Wrong> {
    value.as_bool().ok_or_else(|| {
        let wrong = Wrong::new("is neither true nor false", expected("true or false", value));
        match value.as_str() {
            Some("true" | "yes" | "on") => wrong.mend("write true, without quotes"),
            Some("false" | "no" | "off") => wrong.mend("write false, without quotes"),
            _ => wrong,
        }
    })
}

/// A size within bounds.
pub(super) fn size(
    bounds: RangeInclusive<ByteSize>,
) -> impl Fn(&DeValue<'_>) -> Result<ByteSize, Wrong> {
    move |value| {
        let (start, end) = (bounds.start(), bounds.end());
        let size = match value.as_integer() {
            Some(_) => ByteSize(whole(start.0..=end.0)(value)?),
            None => parsed("is not a size")(value)?,
        };
        let out =
            || Wrong::new("is out of bounds", format!("expected a size from {start} to {end}"));
        bounds.contains(&size).then_some(size).ok_or_else(out)
    }
}

/// A duration within bounds.
pub(super) fn period(
    bounds: RangeInclusive<Duration>,
) -> impl Fn(&DeValue<'_>) -> Result<Duration, Wrong> {
    move |value| {
        if let Some(number) = value.as_integer() {
            let expected = "expected a duration in quotes, with its unit";
            let mend = format!("write \"{number}s\" for seconds, \"{number}m\" for minutes");
            return Err(Wrong::new("has no unit", expected).mend(mend));
        }
        let Period(duration) = parsed("is not a duration")(value)?;
        let (start, end) = (Period(*bounds.start()), Period(*bounds.end()));
        let out =
            || Wrong::new("is out of bounds", format!("expected a duration from {start} to {end}"));
        bounds.contains(&duration).then_some(duration).ok_or_else(out)
    }
}

/// One of a few words.
pub(super) fn choice<T: Copy>(
    words: &[(&'static str, T)],
) -> impl Fn(&DeValue<'_>) -> Result<T, Wrong> {
    move |value| {
        let given = text(value)?;
        let named = words.iter().find(|(word, _)| *word == given);
        named.map(|&(_, choice)| choice).ok_or_else(|| {
            let known: Vec<&str> = words.iter().map(|&(word, _)| word).collect();
            let expected = format!("expected one of {}", quoted(&known));
            let wrong = Wrong::new("has an unknown value", expected);
            match nearest(given, &known) {
                Some(near) => wrong.mend(format!("did you mean \"{near}\"?")),
                None => wrong,
            }
        })
    }
}

/// Networks under a key; none if it is not there.
pub(super) fn networks(table: &Table<'_>, key: &'static str) -> Vec<IpNet> {
    let found = table.list(key, network).map(Spanned::into_inner);
    found.into_iter().flatten().map(Spanned::into_inner).collect()
}

/// A network, or a single address; IPv4 inside IPv6 becomes IPv4, as clients do.
pub(super) fn network(value: &DeValue<'_>) -> Result<IpNet, Wrong> {
    let given = text(value)?;
    if let Ok(address) = given.parse::<IpAddr>() {
        return Ok(address.to_canonical().into());
    }
    let network: IpNet = given.parse().map_err(|_| {
        Wrong::new(
            "has an entry that is not a network",
            "expected a network like \"10.0.0.0/8\" or \"2001:db8::/32\"",
        )
    })?;
    if network.trunc() != network {
        let mend = format!("write \"{}\" for the network, or the address alone", network.trunc());
        return Err(Wrong::new(
            "has a network with an address in it",
            format!("expected no bits set after the first {}", network.prefix_len()),
        )
        .mend(mend));
    }
    let IpNet::V6(v6) = network else {
        return Ok(network);
    };
    let mapped = v6.prefix_len().checked_sub(96).zip(v6.addr().to_ipv4_mapped());
    let v4 = mapped.and_then(|(length, address)| Ipv4Net::new(address, length).ok());
    Ok(v4.map_or(network, IpNet::V4))
}
