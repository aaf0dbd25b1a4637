//! Every key of the configuration file: the one list that reading, spelling hints and the test of
//! the documentation share.

/// A table of the file and its keys.
#[derive(Debug)]
pub struct Section {
    /// The dotted name of the table; empty for the top of the file.
    pub name: &'static str,
    /// Whether it is written `[[name]]` and may come more than once.
    pub repeats: bool,
    /// Its keys, tables inside it included.
    pub keys: &'static [&'static str],
}

/// All of them, in the order of the documentation.
pub const SECTIONS: &[Section] = &[
    one(
        "",
        &[
            "hostname",
            "data_dir",
            "workers",
            "user",
            "listener",
            "tls",
            "auth",
            "relay",
            "domains",
            "recipients",
            "edge",
            "limits",
            "route",
            "delivery",
            "queue",
            "spool",
            "dns",
            "log",
            "admin",
        ],
    ),
    many(
        "listener",
        &[
            "address",
            "service",
            "tls",
            "durability",
            "bare_newline",
            "hide_client",
            "delivery",
            "proxy",
            "xclient",
        ],
    ),
    one("tls", &["certificate"]),
    many("tls.certificate", &["chain", "key"]),
    one(
        "auth",
        &[
            "users",
            "mechanisms",
            "require_tls",
            "oauth_keys",
            "oauth_issuer",
            "oauth_audience",
            "oauth_claim",
        ],
    ),
    one("relay", &["networks", "certificates"]),
    one("domains", &["accept"]),
    one(
        "recipients",
        &["file", "call_ahead", "positive", "negative", "entries", "plus", "vrfy", "expn"],
    ),
    one(
        "edge",
        &[
            "exempt",
            "deadline",
            "refuse_at",
            "greeting_wait",
            "tarpit",
            "unknown_recipients",
            "thresholds",
            "checks",
            "list",
            "greylist",
            "rspamd",
        ],
    ),
    one("edge.thresholds", &["tag", "quarantine", "defer", "reject"]),
    one(
        "edge.checks",
        &[
            "early_talk",
            "pipelining",
            "helo_bare",
            "helo_forged",
            "helo_literal",
            "helo_unknown",
            "reverse_missing",
            "reverse_unconfirmed",
            "sender_unknown",
            "sender_null_mx",
        ],
    ),
    many("edge.list", &["zone", "of", "codes", "weight", "reply", "self_check"]),
    one("edge.greylist", &["from", "delay", "window", "keep", "entries"]),
    one("edge.rspamd", &["url", "deadline", "on_failure", "size"]),
    one(
        "limits",
        &[
            "message_size",
            "recipients",
            "sessions",
            "sessions_per_address",
            "sessions_per_network",
            "connections",
            "connections_per_address",
            "connections_per_network",
            "received",
            "memory",
            "messages_per_user",
            "recipients_per_user",
            "messages_per_address",
            "recipients_per_address",
        ],
    ),
    many(
        "route",
        &[
            "recipient",
            "to",
            "source",
            "tls",
            "user",
            "password_file",
            "password_env",
            "token_file",
            "retry",
            "lifetime",
            "delay_notice",
            "verp",
        ],
    ),
    one(
        "delivery",
        &[
            "port",
            "connections",
            "connections_per_site",
            "messages_per_connection",
            "messages_in_flight",
            "idle_timeout",
            "eight_bit",
            "soft_bounce",
            "timeouts",
        ],
    ),
    one("delivery.timeouts", &["connect", "greeting", "command", "data"]),
    one("queue", &["retry", "lifetime", "delay_notice"]),
    one("spool", &["segment_size", "compact_after"]),
    one("dns", &["servers", "trusted", "timeout"]),
    one("log", &["events"]),
    one("admin", &["address"]),
];

const fn one(name: &'static str, keys: &'static [&'static str]) -> Section {
    Section { name, repeats: false, keys }
}

const fn many(name: &'static str, keys: &'static [&'static str]) -> Section {
    Section { name, repeats: true, keys }
}

impl Section {
    /// The section of that dotted name.
    pub(super) fn named(name: &str) -> &'static Section {
        SECTIONS.iter().find(|section| section.name == name).expect("the caller names a section")
    }

    /// As its header is written in a file.
    pub fn header(&self) -> String {
        match (self.name, self.repeats) {
            ("", _) => "the top of the file".to_owned(),
            (name, true) => format!("`[[{name}]]`"),
            (name, false) => format!("`[{name}]`"),
        }
    }

    /// The dotted name of one of its keys.
    pub(super) fn path(&self, key: &str) -> String {
        match self.name {
            "" => key.to_owned(),
            name => format!("{name}.{key}"),
        }
    }

    /// What to do about a key that is not there: the nearest one that is, or its right place.
    pub(super) fn hint(&self, unknown: &str) -> String {
        if let Some(near) = nearest(unknown, self.keys) {
            return format!("did you mean `{near}`?");
        }
        match SECTIONS.iter().find(|other| other.keys.contains(&unknown)) {
            Some(home) if home.name.is_empty() => {
                format!("`{unknown}` belongs at the top of the file, before the first `[` line")
            }
            Some(home) => format!("`{unknown}` belongs in {}", home.header()),
            None => format!("the keys of {} are {}", self.header(), quoted(self.keys)),
        }
    }
}

/// The candidate that a misspelt word most likely means: at most a third of it is wrong.
pub(super) fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let distance = |candidate: &str| strsim::damerau_levenshtein(word, candidate);
    let best = candidates.iter().copied().min_by_key(|candidate| distance(candidate))?;
    (distance(best) <= (word.chars().count() / 3).max(1)).then_some(best)
}

/// `a`, `b` and `c`.
pub(super) fn quoted(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
        None => String::new(),
    }
}
