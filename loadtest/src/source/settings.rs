//! What a run is to do, as the user says it: the options of `send`, which are also the keys of a
//! scenario file.
//!
//! One struct for both, so that neither can do what the other cannot.  An option on the command
//! line wins over the file.  [`super::plan`] turns it into something that can be run.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Deserialize;

use crate::message::mix::Weighted;
use crate::units::{Octets, Span};

/// See the module's text.  Every field may be absent; the plan knows the defaults.
#[derive(Debug, Default, Clone, Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// What the scenario is about; in a file only.
    #[arg(skip)]
    pub about: Option<String>,
    /// The server: host and port.
    #[arg(long, value_name = "HOST:PORT")]
    pub to: Option<String>,
    /// Sessions at a time [default: 10].
    #[arg(long, value_name = "N")]
    pub sessions: Option<u32>,
    /// Messages in all [default: 10000, or no limit with --time].
    #[arg(long, value_name = "M")]
    pub messages: Option<u64>,
    /// The longest that the run may take [default: 10m].
    #[arg(long, value_name = "TIME")]
    pub time: Option<Span>,
    /// Threads, each with its share of the sessions [default: half of the cores].
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Messages a connection [default: no limit].
    #[arg(long, value_name = "K")]
    pub per_connection: Option<u32>,
    /// One message a connection: the same as --per-connection 1.
    #[arg(long)]
    #[serde(default)]
    pub one: bool,
    /// Octets of a message, header section included: 10KiB, or 1KiB-100KiB, or several with
    /// weights: 8 2KiB [default: 10KiB].
    #[arg(long, value_name = "SIZE")]
    pub size: Option<Vec<Size>>,
    /// Send the .eml files of this folder instead of messages that are made up.
    #[arg(long, value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
    /// Commands in groups (RFC 2920): the envelope and DATA in one write.
    #[arg(long)]
    #[serde(default)]
    pub pipeline: bool,
    /// With --pipeline: the next envelope leaves in one write with the end of the message before
    /// it (RFC 2920 section 3.1), so that a message is one round trip.
    #[arg(long)]
    #[serde(default)]
    pub ahead: bool,
    /// Send by BDAT (RFC 3030) instead of DATA.
    #[arg(long, value_name = "HOW")]
    pub bdat: Option<Bdat>,
    /// Start so many messages a second, whatever the server does (open loop).
    #[arg(long, value_name = "R")]
    pub rate: Option<f64>,
    /// Rates that change; in a file only.
    #[arg(skip)]
    pub stage: Option<Vec<Stage>>,
    /// The server may stall for so long before messages that are due are given up [default: 10s].
    #[arg(long, value_name = "TIME")]
    pub grace: Option<Span>,
    /// Addresses to connect from, each in turn: 127.0.0.2-127.0.0.50 or 127.20.0.0/16.
    #[arg(long, value_name = "FIRST-LAST")]
    pub source: Option<String>,
    /// Envelope senders, each with a weight if you like: "3 news@list{1..5}.example".
    #[arg(long, value_name = "PATTERN")]
    pub from: Option<Vec<Weighted>>,
    /// Envelope recipients, likewise.
    #[arg(long, value_name = "PATTERN")]
    pub rcpt: Option<Vec<Weighted>>,
    /// Recipients a message [default: 1].
    #[arg(long, value_name = "N")]
    pub recipients: Option<u32>,
    /// The name in EHLO [default: loadtest.example].
    #[arg(long, value_name = "NAME")]
    pub helo: Option<String>,
    /// What the server may take for one reply [default: 60s].
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<Span>,
    /// Encrypt: by STARTTLS, or from the first octet.
    #[arg(long, value_name = "HOW")]
    pub tls: Option<Begin>,
    /// With --tls: take whatever certificate the server shows.
    #[arg(long)]
    #[serde(default)]
    pub insecure: bool,
    /// Log in on each connection, by AUTH PLAIN (RFC 4616).
    #[arg(long, value_name = "NAME:PASSWORD")]
    pub auth: Option<String>,
    /// Record what was acknowledged in this file.
    #[arg(long, value_name = "FILE")]
    pub ledger: Option<PathBuf>,
    /// Start from this number, so that a run can be repeated.
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,
    /// Talk before the greeting, as senders of spam do.
    #[arg(long)]
    #[serde(default)]
    pub early: bool,
    /// Only connect, say EHLO and stay for so long: an idle crowd.
    #[arg(long, value_name = "TIME")]
    pub hold: Option<Span>,
    /// Leave after the recipients, without sending the message: a dictionary attack.
    #[arg(long)]
    #[serde(default)]
    pub no_data: bool,
    /// Write so many octets of a message at a time, with pauses between them: a slow peer.
    #[arg(long, value_name = "SIZE")]
    pub trickle: Option<Octets>,
    /// The pauses of --trickle [default: 100ms].
    #[arg(long, value_name = "TIME")]
    pub trickle_every: Option<Span>,
    /// With --trickle: the commands too, not only the message.
    #[arg(long)]
    #[serde(default)]
    pub trickle_all: bool,
    /// Several that send at the same time, each with settings of its own beside those that they
    /// share; in a file only.
    #[arg(skip)]
    pub party: Option<Vec<Settings>>,
    /// What a party is called in the summary.
    #[arg(skip)]
    pub name: Option<String>,
    /// The exit code tells whether the messages of this party were acknowledged; with none such,
    /// whether all were.
    #[arg(skip)]
    #[serde(default)]
    pub wanted: bool,
}

/// One of those that send at the same time.
#[derive(Debug)]
pub struct Party {
    /// What it is called; nothing where it is the only one.
    pub name: String,
    /// Whether the exit code depends on it.
    pub is_wanted: bool,
    /// Its settings, completed by those that all share.
    pub settings: Settings,
}

/// Parties that make no sense.
#[derive(Debug, thiserror::Error)]
pub enum PartyError {
    /// One without a name.
    #[error("each [[party]] needs a name")]
    NoName,
    /// Parties of parties.
    #[error("[[party]] {0:?} has parties of its own")]
    Nested(String),
    /// Two that cannot be told apart.
    #[error("two of [[party]] are called {0:?}")]
    Twice(String),
}

/// From when on a connection is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Begin {
    /// After STARTTLS (RFC 3207).
    Starttls,
    /// From the first octet (RFC 8314).
    Implicit,
}

/// How BDAT is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bdat {
    /// The message after the replies to the envelope.
    Strict,
    /// Envelope and message in one write.
    Flight,
}

/// A part of a run with a rate of its own.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// How long it lasts.
    pub time: Span,
    /// Messages a second at its beginning.
    pub rate: f64,
    /// And at its end, if that is another: a ramp.
    pub up_to: Option<f64>,
}

/// A size or a range of sizes with its weight: `10KiB`, `1KiB-100KiB`, `3 2KiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// How often, against the others' weights.
    pub weight: u32,
    /// The smallest.
    pub from: Octets,
    /// The largest.
    pub to: Octets,
}

impl std::str::FromStr for Size {
    type Err = crate::units::UnitError;

    fn from_str(text: &str) -> Result<Size, Self::Err> {
        let text = text.trim();
        // "3 2KiB" has a weight, "3 KiB" is one size.
        let weighted = text.split_once(' ').and_then(|(weight, rest)| {
            let rest = rest.trim_start();
            let is_size = rest.starts_with(|first: char| first.is_ascii_digit());
            is_size.then(|| Some((weight.parse().ok()?, rest))).flatten()
        });
        let (weight, range) = weighted.unwrap_or((1, text));
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        Ok(Size { weight, from: from.parse()?, to: to.parse()? })
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Size, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A scenario file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// The file.
    #[error("cannot read {0}: {1}")]
    Unreadable(PathBuf, #[source] std::io::Error),
    /// What is in it.
    #[error("{0}: {1}")]
    Wrong(PathBuf, #[source] Box<toml::de::Error>),
}

impl Settings {
    /// Reads a scenario file.
    ///
    /// # Errors
    /// It cannot be read, or something in it has no meaning.
    pub fn read(path: &Path) -> Result<Settings, ScenarioError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ScenarioError::Unreadable(path.into(), error))?;
        let mut settings: Settings = toml::from_str(&text)
            .map_err(|error| ScenarioError::Wrong(path.into(), Box::new(error)))?;
        // A folder is found from where the file is, not from where the user stands.
        if let (Some(folder), Some(base)) = (&mut settings.folder, path.parent()) {
            *folder = base.join(&folder);
        }
        Ok(settings)
    }

    /// These settings, and for what they leave open those of `file`.
    pub fn over(self, file: Settings) -> Settings {
        let has_rate = self.rate.is_some();
        Settings {
            about: self.about.or(file.about),
            to: self.to.or(file.to),
            sessions: self.sessions.or(file.sessions),
            messages: self.messages.or(file.messages),
            time: self.time.or(file.time),
            threads: self.threads.or(file.threads),
            per_connection: self.per_connection.or(file.per_connection),
            one: self.one || file.one,
            size: self.size.or(file.size),
            folder: self.folder.or(file.folder),
            pipeline: self.pipeline || file.pipeline,
            ahead: self.ahead || file.ahead,
            bdat: self.bdat.or(file.bdat),
            rate: self.rate.or(file.rate),
            // A rate on the command line is meant instead of the file's stages.
            stage: self.stage.or(file.stage).filter(|_| !has_rate),
            grace: self.grace.or(file.grace),
            source: self.source.or(file.source),
            from: self.from.or(file.from),
            rcpt: self.rcpt.or(file.rcpt),
            recipients: self.recipients.or(file.recipients),
            helo: self.helo.or(file.helo),
            timeout: self.timeout.or(file.timeout),
            tls: self.tls.or(file.tls),
            insecure: self.insecure || file.insecure,
            auth: self.auth.or(file.auth),
            ledger: self.ledger.or(file.ledger),
            seed: self.seed.or(file.seed),
            early: self.early || file.early,
            hold: self.hold.or(file.hold),
            no_data: self.no_data || file.no_data,
            trickle: self.trickle.or(file.trickle),
            trickle_every: self.trickle_every.or(file.trickle_every),
            trickle_all: self.trickle_all || file.trickle_all,
            party: self.party.or(file.party),
            name: self.name.or(file.name),
            wanted: self.wanted || file.wanted,
        }
    }

    /// Those that send: one with these settings, or the parties, each with its own settings and,
    /// for what they leave open, these.
    ///
    /// # Errors
    /// See [`PartyError`].
    pub fn parties(mut self) -> Result<Vec<Party>, PartyError> {
        let Some(parties) = self.party.take() else {
            return Ok(vec![Party { name: String::new(), is_wanted: true, settings: self }]);
        };
        let nobody_is_wanted = !parties.iter().any(|party| party.wanted);
        let mut complete: Vec<Party> = Vec::with_capacity(parties.len());
        for party in parties {
            let name = party.name.clone().ok_or(PartyError::NoName)?;
            if party.party.is_some() {
                return Err(PartyError::Nested(name));
            }
            if complete.iter().any(|other| other.name == name) {
                return Err(PartyError::Twice(name));
            }
            let is_wanted = party.wanted || nobody_is_wanted;
            complete.push(Party { name, is_wanted, settings: party.over(self.clone()) });
        }
        Ok(complete)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_single_ranges_or_weighted() {
        let size = |weight, from, to| Size { weight, from: Octets(from), to: Octets(to) };
        for (text, expected) in [
            ("10KiB", size(1, 10_240, 10_240)),
            ("3 KiB", size(1, 3_072, 3_072)),
            ("3 1KiB-2KiB", size(3, 1_024, 2_048)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let file: Settings =
            toml::from_str("sessions = 5\nrate = 10\npipeline = true\nbdat = \"flight\"").unwrap();
        let line = Settings { sessions: Some(7), ..Settings::default() };
        let both = line.over(file);
        assert_eq!((both.sessions, both.rate, both.pipeline), (Some(7), Some(10.0), true));
        assert!(toml::from_str::<Settings>("session = 5").is_err(), "a typo is told");
    }

    #[test]
    fn parties_share_what_they_leave_open() {
        let text = "time = \"5s\"\nsessions = 5\n[[party]]\nname = \"bad\"\nrate = 9\n\
            [[party]]\nname = \"good\"\nwanted = true\nsessions = 7";
        let file: Settings = toml::from_str(text).unwrap();
        let line = Settings { to: Some("127.0.0.1:25".into()), ..Settings::default() };
        let parties = line.over(file).parties().unwrap();
        let told: Vec<_> = parties
            .iter()
            .map(|party| (&*party.name, party.is_wanted, party.settings.sessions))
            .collect();
        assert_eq!(told, [("bad", false, Some(5)), ("good", true, Some(7))]);
        assert!(parties.iter().all(|party| party.settings.to.is_some()));
        assert!(parties.iter().all(|party| party.settings.time.is_some()));
        assert_eq!((parties[0].settings.rate, parties[1].settings.rate), (Some(9.0), None));
    }

    #[test]
    fn parties_that_make_no_sense_are_refused() {
        for text in [
            "[[party]]\nrate = 5",
            "[[party]]\nname = \"a\"\n[[party]]\nname = \"a\"",
            "[[party]]\nname = \"a\"\n[[party.party]]\nname = \"b\"",
        ] {
            let file: Settings = toml::from_str(text).unwrap();
            assert!(file.parties().is_err(), "{text}");
        }
        let alone = Settings::default().parties().unwrap();
        assert!(alone.len() == 1 && alone[0].is_wanted);
    }
}
