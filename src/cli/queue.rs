//! `mailrace queue`: questions to a running gateway, over its admin socket.
//!
//! Prints tables for people and, with `--json`, what the admin interface answers.  What peers
//! said is printed without control characters, so that a reply cannot drive a terminal.

mod table;

use std::io::{self, ErrorKind, IsTerminal, Write};

use super::{
    Failure, Filters, Output, QueueChangeArgs, QueueCommand, QueueListArgs, QueueShowArgs, State,
    load_quietly,
};
use crate::control::client::{AdminClient, ClientError};
use crate::control::port::{self, Action, Change, Entry, Filter, QueueCount};
use crate::limits;
use table::{Details, Table};

/// Asks the gateway and prints its answer.
pub fn queue(command: &QueueCommand) -> Result<(), Failure> {
    let done = match command {
        QueueCommand::Count(arguments) => count(arguments),
        QueueCommand::List(arguments) => list(arguments),
        QueueCommand::Show(arguments) => show(arguments),
        QueueCommand::Retry(arguments) => act(Action::Retry, arguments),
        QueueCommand::Release(arguments) => act(Action::Release, arguments),
        QueueCommand::Delete(arguments) => act(Action::Delete, arguments),
    };
    match done {
        // `queue list | head` is no failure.
        Err(Failure::Output(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

fn count(arguments: &QueueListArgs) -> Result<(), Failure> {
    if arguments.filters.limit.is_some() {
        return Err(Failure::Failed("`--limit` means nothing for a count".to_owned()));
    }
    let count = client(&arguments.output)?.count(filter(&arguments.filters)).map_err(failed)?;
    match arguments.output.json {
        true => print_json(&count),
        false => {
            writeln!(io::stdout(), "{}", Sentence(&count))?;
            Ok(())
        }
    }
}

fn list(arguments: &QueueListArgs) -> Result<(), Failure> {
    let client = client(&arguments.output)?;
    let mut printer = Printer::new(arguments.output.json);
    let mut left = arguments.filters.limit.unwrap_or(usize::MAX);
    let mut after = None;
    while left > 0 {
        let limit = left.min(limits::ADMIN_PAGE);
        let page = client.list(filter(&arguments.filters), after, limit).map_err(failed)?;
        printer.page(&page.entries)?;
        left -= page.entries.chunk_by(|a, b| a.id == b.id).count().min(left);
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    printer.end()
}

fn show(arguments: &QueueShowArgs) -> Result<(), Failure> {
    let listing = client(&arguments.output)?.show(arguments.id).map_err(failed)?;
    match arguments.output.json {
        true => print_json(&listing.entries),
        false => {
            write!(io::stdout(), "{}", Details(&listing.entries))?;
            Ok(())
        }
    }
}

fn act(action: Action, arguments: &QueueChangeArgs) -> Result<(), Failure> {
    let change = Change {
        ids: arguments.ids.clone(),
        filter: filter(&arguments.filters),
        limit: arguments.filters.limit,
        all: arguments.all,
    };
    let changed = client(&arguments.output)?.act(action, &change).map_err(failed)?;
    if arguments.output.json {
        print_json(&changed)?;
    } else {
        let done = match action {
            Action::Retry => "tried again",
            Action::Release => "released",
            Action::Delete => "deleted",
        };
        writeln!(io::stdout(), "{done}: {}", Sentence(&changed))?;
    }
    match changed.messages {
        0 if !arguments.ids.is_empty() => Err(Failure::Failed(nothing_done(action).to_owned())),
        _ => Ok(()),
    }
}

/// Why an action on messages that were named did nothing.
fn nothing_done(action: Action) -> &'static str {
    match action {
        Action::Retry => "none of these is in the queue and waits for another attempt",
        Action::Release => "none of these is in the queue and held or quarantined",
        Action::Delete => "none of these is in the queue; one that is being sent cannot be deleted",
    }
}

fn client(output: &Output) -> Result<AdminClient, Failure> {
    let config = load_quietly(output.config.as_deref())?;
    AdminClient::new(&config.data_dir).map_err(failed)
}

/// The client's error with its causes, as one sentence.
pub(super) fn failed(error: ClientError) -> Failure {
    let mut sentence = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        sentence.push_str(&format!(": {error}"));
        cause = error.source();
    }
    Failure::Failed(sentence)
}

fn filter(filters: &Filters) -> Filter {
    Filter {
        to: filters.to.clone(),
        from: filters.from.clone(),
        state: filters.state.map(|state| match state {
            State::Ready => port::State::Ready,
            State::Deferred => port::State::Deferred,
            State::Held => port::State::Held,
            State::Quarantined => port::State::Quarantined,
        }),
        site: filters.site.as_deref().map(Box::from),
    }
}

pub(super) fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let mut line = serde_json::to_string(value).map_err(io::Error::from)?;
    line.push('\n');
    io::stdout().write_all(line.as_bytes())?;
    Ok(())
}

/// `3 messages, 5 recipients (2 ready, 1 held)`.
struct Sentence<'a>(&'a QueueCount);

impl std::fmt::Display for Sentence<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let QueueCount { messages, recipients, by_state } = *self.0;
        let s = |count| if count == 1 { "" } else { "s" };
        write!(f, "{messages} message{}, {recipients} recipient{}", s(messages), s(recipients))?;
        let states = [
            (by_state.ready, "ready"),
            (by_state.active, "being sent"),
            (by_state.deferred, "deferred"),
            (by_state.held, "held"),
            (by_state.quarantined, "quarantined"),
        ];
        let named: Vec<String> = states
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, state)| format!("{count} {state}"))
            .collect();
        match named.is_empty() {
            true => Ok(()),
            false => write!(f, " ({})", named.join(", ")),
        }
    }
}

/// Prints a list page by page: a JSON array, or a table.
enum Printer {
    Json { is_first: bool },
    Table(Table),
}

impl Printer {
    fn new(is_json: bool) -> Printer {
        match is_json {
            true => Printer::Json { is_first: true },
            false => Printer::Table(Table::new(stdout_has_color())),
        }
    }

    fn page(&mut self, entries: &[Entry]) -> Result<(), Failure> {
        let mut text = String::new();
        match self {
            Printer::Json { is_first } => {
                for entry in entries {
                    text.push_str(if std::mem::take(is_first) { "[\n" } else { ",\n" });
                    text.push_str(&serde_json::to_string(entry).map_err(io::Error::from)?);
                }
            }
            Printer::Table(table) => table.write(entries, &mut text),
        }
        io::stdout().write_all(text.as_bytes())?;
        Ok(())
    }

    fn end(self) -> Result<(), Failure> {
        let end = match self {
            Printer::Json { is_first: true } => "[]\n",
            Printer::Json { is_first: false } => "\n]\n",
            Printer::Table(_) => "",
        };
        io::stdout().write_all(end.as_bytes())?;
        Ok(())
    }
}

/// Colour only for a person: a terminal, and no NO_COLOR (<https://no-color.org>).
fn stdout_has_color() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !refused && io::stdout().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::port::ByState;

    #[test]
    fn counts_as_sentences() {
        let by_state = ByState { ready: 2, held: 1, ..ByState::default() };
        for (count, sentence) in [
            (QueueCount::default(), "0 messages, 0 recipients"),
            (
                QueueCount { messages: 1, recipients: 3, by_state },
                "1 message, 3 recipients (2 ready, 1 held)",
            ),
        ] {
            assert_eq!(Sentence(&count).to_string(), sentence);
        }
    }
}
