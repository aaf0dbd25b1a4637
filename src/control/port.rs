//! What the control plane asks the workers, and how they answer: plain types, no I/O.
//!
//! The queue is spread over the workers, and each knows only its own part.  A question goes to
//! every worker ([`WorkerPort`], which the workers' mailboxes implement); [`super::workers`] asks
//! and puts the answers together.  [`Entry`], [`QueueCount`] and [`Change`] are also what goes
//! over the admin socket, so that `mailrace queue` and the gateway cannot disagree about them.
//!
//! A message that goes to several sites has one queue entry for each of them, possibly with
//! several workers.  An entry is what lists show and filters fit; a count of *messages* counts
//! such a message once, which is what [`Tally::shared`] is for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::moment::Moment;
use crate::config::{BadPattern, Pattern};
use crate::edge::explanation::Explanation;
use crate::message::MessageId;
use crate::smtp::address::{ForwardPath, Mailbox, ReversePath};

/// How questions reach the workers.
pub trait WorkerPort: Send + Sync {
    /// How many workers there are; they are numbered from 0.
    fn workers(&self) -> usize;

    /// Puts the question to a worker and returns at once.  The answer may come from any thread.
    /// A worker that cannot be asked is told by dropping `answer`.
    fn ask(&self, worker: usize, request: Request, answer: oneshot::Sender<Answer>);
}

/// A question to one worker, about its own part of the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Whether it works; answered by [`Answer::Pong`].
    Ping,
    /// How many entries the filter fits; answered by [`Answer::Counted`].
    Count(Filter),
    /// Which entries the page holds; answered by [`Answer::Listed`].
    List(Page),
    /// The entries of one message; answered by [`Answer::Listed`], empty if it has none.
    Show(MessageId),
    /// How transactions of a session, or of a message, were judged, as far as it is remembered;
    /// answered by [`Answer::Explained`], the oldest first.
    Why(MessageId),
    /// Do this to these; answered by [`Answer::Changed`] once it is in the log.
    Act(Action, Selection),
}

/// A worker's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It works.
    Pong,
    /// How many fit.
    Counted(Tally),
    /// Entries by id, then by site.
    Listed(Vec<Entry>),
    /// Why they were judged so.
    Explained(Vec<Explanation>),
    /// How many were changed.
    Changed(Tally),
    /// It could not, for the reason given: the log cannot be read or written.
    Failed(Box<str>),
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Which entries.
    pub filter: Filter,
    /// Only messages with greater ids, which are younger.
    pub after: Option<MessageId>,
    /// So many messages, the oldest first, with all their entries that fit.
    pub limit: usize,
}

/// Which entries, and which of their recipients: those that everything given fits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Recipients like this.
    #[serde(default, with = "text::option", skip_serializing_if = "Option::is_none")]
    pub to: Option<Pattern>,
    /// Originators like this.
    #[serde(default, with = "text::option", skip_serializing_if = "Option::is_none")]
    pub from: Option<Originator>,
    /// Entries in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// Entries for this site, or for this domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<Box<str>>,
}

/// Which originators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Originator {
    /// `<>`, the null reverse-path.
    Null,
    /// A mailbox.
    Like(Pattern),
}

/// What an entry waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// A connection.  As a filter: this or `Active`.
    Ready,
    /// The end of the attempt under way.
    Active,
    /// Its next attempt.
    Deferred,
    /// An operator.
    Held,
    /// An operator, because of the edge filter's verdict.
    Quarantined,
}

/// What to do to entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Try deferred ones now.
    Retry,
    /// Let held ones go.
    Release,
    /// Delete them without a notice, those being sent excepted.
    Delete,
}

/// To what an action is done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Entries of these messages; of any if empty.
    pub ids: Vec<MessageId>,
    /// Of those, entries and recipients that this fits.
    pub filter: Filter,
}

/// What a worker found or did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Messages that have this one entry only, and no other with another worker.
    pub messages: u64,
    /// The other messages, each once: some of their entries may be with other workers.
    pub shared: Vec<MessageId>,
    /// Recipients, of all entries.
    pub recipients: u64,
    /// Entries by state; for a change, by the state that they had.
    pub by_state: ByState,
}

/// Messages and recipients, of all workers together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueCount {
    /// Messages, each once.
    pub messages: u64,
    /// Recipients.
    pub recipients: u64,
    /// Entries, one for each message and site, by state.
    pub by_state: ByState,
}

/// Entries by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByState {
    /// Waiting for a connection.
    pub ready: u64,
    /// Being sent.
    pub active: u64,
    /// Waiting for their next attempt.
    pub deferred: u64,
    /// Waiting for an operator.
    pub held: u64,
    /// Waiting for an operator because of the edge filter's verdict.
    #[serde(default)]
    pub quarantined: u64,
}

/// One message's way to one site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The message.
    #[serde(with = "text")]
    pub id: MessageId,
    /// What the entry waits for.
    pub state: State,
    /// The reverse-path without its brackets: empty for `<>`.
    pub from: String,
    /// Recipients that are not done, without brackets.
    pub to: Vec<String>,
    /// Whom the sender named in the place of each, as far as that is known; empty where they are
    /// those that he named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub named: Vec<String>,
    /// Where they go: the site, or as long as it is not known, the destination.
    pub site: String,
    /// Their domain, where its mail exchangers take it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// The message's size in octets.
    pub size: u64,
    /// Attempts made.
    pub attempts: u32,
    /// When the message was accepted.
    pub accepted: Moment,
    /// How long ago that is, in seconds.
    pub age_seconds: u64,
    /// When it is tried again, if it waits for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt: Option<Moment>,
    /// What the last attempt came to: the peer's reply, or why there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// That its site gets its mail in clear for now, until when and why: TLS has failed there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<String>,
    /// How many entries the message has, with all workers together.
    pub parts: u32,
    /// Why the edge filter judged the message as it did, where that stands in its record; only
    /// where one message is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Box<Explanation>>,
}

/// One page of the list, of all workers together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// By id, then by site.
    pub entries: Vec<Entry>,
    /// There may be more after this one.
    #[serde(default, with = "text::option", skip_serializing_if = "Option::is_none")]
    pub next: Option<MessageId>,
}

/// The query string of the list and of the count; unknown names are errors, so that a slip of
/// the pen does not widen a filter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// See [`Filter::to`].
    #[serde(default, with = "text::option", skip_serializing_if = "Option::is_none")]
    pub to: Option<Pattern>,
    /// See [`Filter::from`].
    #[serde(default, with = "text::option", skip_serializing_if = "Option::is_none")]
    pub from: Option<Originator>,
    /// See [`Filter::state`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// See [`Filter::site`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<Box<str>>,
    /// See [`Page::after`].
    #[serde(default, with = "text::option", skip_serializing_if = "Option::is_none")]
    pub after: Option<MessageId>,
    /// See [`Page::limit`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// The body of a request that changes the queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// See [`Selection::ids`].
    #[serde(default, with = "text::list", skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<MessageId>,
    /// See [`Selection::filter`].
    #[serde(default, skip_serializing_if = "Filter::is_empty")]
    pub filter: Filter,
    /// At most so many messages, the oldest first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Really everything; needed where neither ids nor a filter are given.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
}

/// What a request that changed the queue did.
pub type Changed = QueueCount;

impl Filter {
    /// Whether it fits everything.
    pub fn is_empty(&self) -> bool {
        *self == Filter::default()
    }

    /// Whether it fits an entry as far as the entry itself tells.  What is left needs the
    /// envelope; see [`Filter::needs_envelope`].
    pub fn fits_entry(&self, state: State, site: &str, domain: Option<&str>) -> bool {
        let state_fits = match self.state {
            Some(State::Ready) => matches!(state, State::Ready | State::Active),
            Some(wanted) => wanted == state,
            None => true,
        };
        state_fits && self.fits_site(site, domain)
    }

    /// Whether it fits what goes to this site, or to this domain by whatever site.
    pub fn fits_site(&self, site: &str, domain: Option<&str>) -> bool {
        let is_domain = |wanted: &str| domain.is_some_and(|it| wanted.eq_ignore_ascii_case(it));
        self.site.as_deref().is_none_or(|wanted| is_site(wanted, site) || is_domain(wanted))
    }

    /// Whether the envelope must be looked at.
    pub fn needs_envelope(&self) -> bool {
        self.to.is_some() || self.from.is_some()
    }

    /// Whether it fits messages of this originator.
    pub fn fits_originator(&self, path: &ReversePath) -> bool {
        match (&self.from, path) {
            (None, _) | (Some(Originator::Null), ReversePath::Null) => true,
            (Some(Originator::Like(pattern)), ReversePath::Mailbox(mailbox)) => {
                fits(pattern, mailbox)
            }
            (Some(Originator::Null), ReversePath::Mailbox(_))
            | (Some(Originator::Like(_)), ReversePath::Null) => false,
        }
    }

    /// Whether it fits this recipient.
    pub fn fits_recipient(&self, path: &ForwardPath) -> bool {
        match (&self.to, path) {
            (None, _) => true,
            (Some(pattern), ForwardPath::Postmaster) => pattern.matches("postmaster", ""),
            (Some(pattern), ForwardPath::Mailbox(mailbox)) => fits(pattern, mailbox),
        }
    }
}

/// Whether that is the site's name, with or without its scheme.
fn is_site(wanted: &str, site: &str) -> bool {
    let host = site.split_once("://").map(|(_, host)| host);
    wanted.eq_ignore_ascii_case(site) || host.is_some_and(|host| wanted.eq_ignore_ascii_case(host))
}

fn fits(pattern: &Pattern, mailbox: &Mailbox) -> bool {
    let local = mailbox.local_unquoted();
    match mailbox.domain_ascii() {
        Some(domain) => pattern.matches(&local, &domain),
        // Literals, and names that have no form in the DNS.
        None => pattern.matches(&local, &mailbox.domain().to_ascii_lowercase()),
    }
}

impl Query {
    /// The filter alone.
    pub fn into_filter(self) -> Filter {
        Filter { to: self.to, from: self.from, state: self.state, site: self.site }
    }
}

impl From<Filter> for Query {
    fn from(filter: Filter) -> Query {
        let Filter { to, from, state, site } = filter;
        Query { to, from, state, site, after: None, limit: None }
    }
}

impl State {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Ready => "ready",
            State::Active => "active",
            State::Deferred => "deferred",
            State::Held => "held",
            State::Quarantined => "quarantined",
        }
    }
}

impl ByState {
    /// Counts `entries` more in `state`.
    pub fn add(&mut self, state: State, entries: u64) {
        *match state {
            State::Ready => &mut self.ready,
            State::Active => &mut self.active,
            State::Deferred => &mut self.deferred,
            State::Held => &mut self.held,
            State::Quarantined => &mut self.quarantined,
        } += entries;
    }

    pub(super) fn merge(&mut self, more: ByState) {
        let ByState { ready, active, deferred, held, quarantined } = more;
        for (state, entries) in [
            (State::Ready, ready),
            (State::Active, active),
            (State::Deferred, deferred),
            (State::Held, held),
            (State::Quarantined, quarantined),
        ] {
            self.add(state, entries);
        }
    }
}

/// The action's name is not one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected retry, release or delete")]
pub struct NotAnAction;

impl Action {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Retry => "retry",
            Action::Release => "release",
            Action::Delete => "delete",
        }
    }
}

impl FromStr for Action {
    type Err = NotAnAction;

    fn from_str(text: &str) -> Result<Self, NotAnAction> {
        let all = [Action::Retry, Action::Release, Action::Delete];
        all.into_iter().find(|action| action.as_str() == text).ok_or(NotAnAction)
    }
}

impl FromStr for Originator {
    type Err = BadPattern;

    fn from_str(text: &str) -> Result<Self, BadPattern> {
        match text {
            "<>" => Ok(Originator::Null),
            _ => text.parse().map(Originator::Like),
        }
    }
}

impl fmt::Display for Originator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Originator::Null => f.write_str("<>"),
            Originator::Like(pattern) => pattern.fmt(f),
        }
    }
}

/// Types that print and parse, as strings.
pub(crate) mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    pub(crate) fn serialize<T: Display, S: Serializer>(
        value: &T,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(crate) fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }

    pub(crate) mod option {
        use super::*;

        pub(crate) fn serialize<T: Display, S: Serializer>(
            value: &Option<T>,
            to: S,
        ) -> Result<S::Ok, S::Error> {
            match value {
                // Strings, not options: a query string has no other form.
                Some(value) => to.collect_str(value),
                None => to.serialize_none(),
            }
        }

        pub(crate) fn deserialize<'de, T, D>(from: D) -> Result<Option<T>, D::Error>
        where
            T: FromStr<Err: Display>,
            D: Deserializer<'de>,
        {
            let text = Option::<String>::deserialize(from)?;
            text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
        }
    }

    pub(crate) mod list {
        use super::*;

        pub(crate) fn serialize<T: Display, S: Serializer>(
            values: &[T],
            to: S,
        ) -> Result<S::Ok, S::Error> {
            to.collect_seq(values.iter().map(ToString::to_string))
        }

        pub(crate) fn deserialize<'de, T, D>(from: D) -> Result<Vec<T>, D::Error>
        where
            T: FromStr<Err: Display>,
            D: Deserializer<'de>,
        {
            let texts = Vec::<String>::deserialize(from)?;
            texts.iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mailbox(text: &str) -> Mailbox {
        Mailbox::from_stored(text).unwrap()
    }

    #[test]
    fn a_query_string_reads_back() {
        let query = Query {
            to: Some("*@example.com".parse().unwrap()),
            from: Some(Originator::Null),
            state: Some(State::Held),
            site: Some("10.0.0.5:25".into()),
            after: Some(MessageId(77)),
            limit: Some(5),
        };
        let text = serde_urlencoded::to_string(&query).unwrap();
        assert_eq!(
            text,
            "to=*%40example.com&from=%3C%3E&state=held&site=10.0.0.5%3A25&after=000000000002d&limit=5"
        );
        assert_eq!(serde_urlencoded::from_str::<Query>(&text).unwrap(), query);
        assert_eq!(serde_urlencoded::to_string(Query::default()).unwrap(), "");
        assert_eq!(serde_urlencoded::from_str::<Query>("").unwrap(), Query::default());
    }

    #[test]
    fn slips_of_the_pen_are_errors() {
        for text in
            ["staet=held", "state=frozen", "to=example.com", "after=1", "limit=-1", "limit="]
        {
            assert!(serde_urlencoded::from_str::<Query>(text).is_err(), "{text}");
        }
        for text in [
            r#"{"idz":[]}"#,
            r#"{"ids":["1"]}"#,
            r#"{"filter":{"too":"*"}}"#,
            r#"{"filter":{"to":"x"}}"#,
            r#"{"all":"yes"}"#,
            "7",
        ] {
            assert!(serde_json::from_str::<Change>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_change_reads_back() {
        let change = Change {
            ids: vec![MessageId(1), MessageId(2)],
            filter: Filter { state: Some(State::Deferred), ..Filter::default() },
            limit: Some(3),
            all: true,
        };
        let text = serde_json::to_string(&change).unwrap();
        assert_eq!(serde_json::from_str::<Change>(&text).unwrap(), change);
        assert_eq!(serde_json::to_string(&Change::default()).unwrap(), "{}");
    }

    #[test]
    fn what_a_filter_fits() {
        let filter = |text: &str| serde_urlencoded::from_str::<Query>(text).unwrap().into_filter();
        let (a, postmaster) =
            (ForwardPath::Mailbox(mailbox("a@Example.COM")), ForwardPath::Postmaster);
        for (text, to_a, to_postmaster) in [
            ("", true, true),
            ("to=*", true, true),
            ("to=*@example.com", true, false),
            ("to=b@example.com", false, false),
            ("to=postmaster", false, true),
        ] {
            assert_eq!(filter(text).fits_recipient(&a), to_a, "{text}");
            assert_eq!(filter(text).fits_recipient(&postmaster), to_postmaster, "{text}");
        }
        let (null, someone) = (ReversePath::Null, ReversePath::Mailbox(mailbox("a@[192.0.2.1]")));
        for (text, from_null, from_someone) in [
            ("", true, true),
            ("from=<>", true, false),
            ("from=*", false, true),
            ("from=a@[192.0.2.1]", false, true),
            ("from=a@b.example", false, false),
        ] {
            assert_eq!(filter(text).fits_originator(&null), from_null, "{text}");
            assert_eq!(filter(text).fits_originator(&someone), from_someone, "{text}");
        }
        for (text, state, site, fits) in [
            ("", State::Held, "x", true),
            ("state=ready", State::Active, "x", true),
            ("state=ready", State::Ready, "x", true),
            ("state=active", State::Ready, "x", false),
            ("state=held", State::Deferred, "x", false),
            ("site=X.example", State::Held, "x.example", true),
            ("site=y.example&state=held", State::Held, "x.example", false),
            ("site=10.0.0.5:25", State::Ready, "smtp://10.0.0.5:25", true),
            ("site=smtp://10.0.0.5:25", State::Ready, "smtp://10.0.0.5:25", true),
            ("site=Some.Example", State::Ready, "mx.example", true),
            ("site=10.0.0.5:26", State::Ready, "smtp://10.0.0.5:25", false),
        ] {
            let fitted = filter(text).fits_entry(state, site, Some("some.example"));
            assert_eq!(fitted, fits, "{text} {state:?} {site}");
        }
    }
}
