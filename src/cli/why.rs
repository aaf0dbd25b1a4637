//! `mailrace why`: how a session, or a message, was judged by the edge filter, and why.
//!
//! The gateway tells what it remembers; what it has forgotten, or what it did before it was
//! started again, stands in short form in its events, which are looked through where they go to a
//! file.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _, Write as _};
use std::path::Path;

use serde_json::Value;

use super::plain::plain;
use super::queue::{failed, print_json};
use super::{Failure, WhyArgs, load_quietly};
use crate::config::Events;
use crate::control::client::{AdminClient, ClientError};
use crate::edge::explanation::{Asked, Explanation};
use crate::edge::verdict::{Action, Effect};
use crate::message::MessageId;

/// Asks the gateway, then its events, and prints the answer.
pub fn why(arguments: &WhyArgs) -> Result<(), Failure> {
    let config = load_quietly(arguments.output.config.as_deref())?;
    let client = AdminClient::new(&config.data_dir).map_err(failed)?;
    let (explanations, silence) = match client.why(arguments.id) {
        Ok(explanations) => (explanations, None),
        // Its events may be there all the same.
        Err(error @ ClientError::NotRunning { .. }) => (Vec::new(), Some(error)),
        Err(error) => return Err(failed(error)),
    };
    if !explanations.is_empty() {
        return print(&explanations, arguments.output.json);
    }
    let told = match &config.log.events {
        Events::File(path) => verdicts_in(path, arguments.id)?,
        Events::Stdout => Vec::new(),
    };
    if told.is_empty() {
        return Err(silence.map_or_else(|| unknown(arguments.id, &config.log.events), failed));
    }
    if arguments.output.json {
        return print_json(&told);
    }
    let mut text = String::new();
    for event in &told {
        text.push_str(&short(event));
    }
    io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn print(explanations: &[Explanation], is_json: bool) -> Result<(), Failure> {
    if is_json {
        return print_json(&explanations);
    }
    let texts: Vec<String> = explanations.iter().map(|one| Why(one).to_string()).collect();
    io::stdout().write_all(texts.join("\n").as_bytes())?;
    Ok(())
}

/// Why there is no answer, and where there may be one.
fn unknown(id: MessageId, events: &Events) -> Failure {
    let place = match events {
        Events::File(path) => format!("nor does {} name it: look at older files", path.display()),
        Events::Stdout => "look for its `verdict` event in what was standard output".to_owned(),
    };
    Failure::Failed(format!(
        "no verdict on {id} is remembered, {place}; only clients of `mx` listeners are judged, \
         where the configuration has `[edge]`"
    ))
}

/// The `verdict` events about a session or a message, in their order.
fn verdicts_in(path: &Path, id: MessageId) -> Result<Vec<Value>, Failure> {
    let file = File::open(path).map_err(|error| {
        Failure::Failed(format!("cannot read the events in {}: {error}", path.display()))
    })?;
    let id = id.to_string();
    let mut lines = BufReader::with_capacity(1 << 20, file);
    let (mut line, mut found) = (Vec::new(), Vec::new());
    loop {
        line.clear();
        if lines.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(found);
        }
        // Most lines are other events, and not worth parsing.
        if !contains(&line, id.as_bytes()) {
            continue;
        }
        let Ok(event) = serde_json::from_slice::<Value>(&line) else { continue };
        let is_it = |field: &str| event[field].as_str() == Some(&id);
        if event["event"] == "verdict" && (is_it("session") || is_it("message")) {
            found.push(event);
        }
    }
}

fn contains(line: &[u8], wanted: &[u8]) -> bool {
    memchr::memmem::find(line, wanted).is_some()
}

/// A line is as long as its recipients make it.
const LINE_MAX: u64 = 64 << 20;

/// A verdict as its event tells it: without the facts.
fn short(event: &Value) -> String {
    let text = |field: &str| plain(event[field].as_str().unwrap_or("-")).into_owned();
    let causes = event["causes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let causes: Vec<_> = causes.iter().filter_map(Value::as_str).map(plain).collect();
    format!(
        "session   {}\nmessage   {}\nclient    {} at {}\nfrom      {}\nverdict   {}, score {}\n\
         causes    {}\n          the facts are no longer remembered\n",
        text("session"),
        text("message"),
        text("peer"),
        text("time"),
        text("from"),
        text("action"),
        event["score"],
        causes.join(", "),
    )
}

/// An explanation for a person.
pub(super) struct Why<'a>(pub(super) &'a Explanation);

impl fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Explanation { session, peer, time, action, score, .. } = self.0;
        writeln!(f, "session   {session}")?;
        if let Some(message) = self.0.message {
            writeln!(f, "message   {message}")?;
        }
        writeln!(f, "client    {peer}, HELO {}, at {time}", or_dash(&self.0.helo))?;
        if let Some(from) = &self.0.from {
            writeln!(f, "from      {}", if from.is_empty() { "<>".into() } else { plain(from) })?;
        }
        for Asked { address, reply } in &self.0.to {
            match reply {
                None => writeln!(f, "to        {}: accepted", plain(address))?,
                Some(reply) => writeln!(f, "to        {}: {}", plain(address), plain(reply))?,
            }
        }
        if self.0.more_to > 0 {
            writeln!(f, "to        and {} more", self.0.more_to)?;
        }
        let waited = self.0.waited.as_millis();
        writeln!(f, "verdict   {action}, score {score}, after a wait of {waited} ms")?;
        writeln!(f, "outcome   {}", self.outcome())?;
        self.table(f)
    }
}

impl Why<'_> {
    fn outcome(&self) -> String {
        let Explanation { message, action, reply, to, .. } = self.0;
        match (message, reply) {
            (_, Some(reply)) => format!("refused: {}", plain(reply)),
            (Some(_), None) => match action {
                Action::Quarantine => "kept back until an operator releases it".to_owned(),
                Action::Tag | Action::Defer | Action::Reject => {
                    "accepted, with a header that says why it is suspect".to_owned()
                }
                Action::Accept => "accepted".to_owned(),
            },
            (None, None) if to.iter().all(|asked| asked.reply.is_some()) => {
                "refused at its recipients".to_owned()
            }
            (None, None) => "the client gave it up, or its message was refused".to_owned(),
        }
    }

    fn table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let findings = &self.0.findings;
        let width = |text: &str| plain(text).chars().count();
        let widest = findings.iter().map(|finding| width(&finding.check)).max().unwrap_or(0);
        let widest = widest.clamp("CHECK".len(), CHECK_MAX);
        if !findings.is_empty() {
            writeln!(f, "\n{:widest$}  {:>10}  {:>8}  FACT", "CHECK", "EFFECT", "TIME")?;
        }
        for finding in findings {
            let effect = match finding.effect {
                Effect::None => "-".to_owned(),
                effect => effect.to_string(),
            };
            let took = format!("{} ms", finding.took.as_millis());
            let (check, fact) = (plain(&finding.check), plain(&finding.fact));
            writeln!(f, "{check:widest$}  {effect:>10}  {took:>8}  {fact}")?;
        }
        match self.0.left_out {
            0 => Ok(()),
            left_out => writeln!(f, "and {left_out} more, for which there was no room"),
        }
    }
}

/// A column is not made wider than this for one long zone.
const CHECK_MAX: usize = 40;

fn or_dash(text: &str) -> std::borrow::Cow<'_, str> {
    if text.is_empty() { "-".into() } else { plain(text) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::control::moment::Moment;
    use crate::edge::verdict::{Finding, Score};

    fn explanation() -> Explanation {
        let finding = |check: &str, effect| Finding {
            check: check.into(),
            fact: "192.0.2.1 \u{1b}[31mis listed".into(),
            effect,
            reply: None,
            took: Duration::from_millis(12),
        };
        Explanation {
            time: Moment(0),
            session: "0000000000011".parse().unwrap(),
            message: None,
            peer: "192.0.2.1:25".parse().unwrap(),
            helo: "".into(),
            from: Some("".into()),
            to: vec![Asked {
                address: "a@b.example".into(),
                reply: Some("554 5.7.1 listed".into()),
            }],
            more_to: 0,
            action: Action::Reject,
            score: Score(450),
            reply: None,
            waited: Duration::from_millis(3),
            findings: vec![
                finding("dnsbl.example", Effect::Score(Score(450))),
                finding("helo_bare", Effect::None),
            ],
            left_out: 0,
        }
    }

    #[test]
    fn an_explanation_for_a_person() {
        assert_eq!(
            Why(&explanation()).to_string(),
            "session   0000000000011\n\
             client    192.0.2.1:25, HELO -, at 1970-01-01T00:00:00.000Z\n\
             from      <>\n\
             to        a@b.example: 554 5.7.1 listed\n\
             verdict   reject, score 4.5, after a wait of 3 ms\n\
             outcome   refused at its recipients\n\
             \n\
             CHECK              EFFECT      TIME  FACT\n\
             dnsbl.example         4.5     12 ms  192.0.2.1 \u{fffd}[31mis listed\n\
             helo_bare               -     12 ms  192.0.2.1 \u{fffd}[31mis listed\n"
        );
        let (message, to) = (Some(MessageId(5)), Vec::new());
        for (action, reply, outcome) in [
            (Action::Accept, None, "outcome   accepted\n"),
            (Action::Quarantine, None, "outcome   kept back until an operator releases it\n"),
            (Action::Reject, Some("554 no".into()), "outcome   refused: 554 no\n"),
        ] {
            let one = Explanation { message, to: to.clone(), action, reply, ..explanation() };
            assert!(Why(&one).to_string().contains(outcome), "{}", Why(&one));
        }
    }

    #[test]
    fn what_is_forgotten_stands_in_the_events() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let id = MessageId(77).to_string();
        let lines = format!(
            "{{\"event\":\"accepted\",\"message\":\"{id}\"}}\n\
             {{\"event\":\"verdict\",\"session\":\"{id}\",\"action\":\"tag\",\"score\":4.5,\"causes\":[\"a=4.5\"]}}\n\
             {{\"event\":\"verdict\",\"session\":\"0000000000001\",\"from\":\"{id}\"}}\n\
             {{\"event\":\"verdict\",\"message\":\"{id}\",\"act"
        );
        std::fs::write(file.path(), lines).unwrap();
        let found = verdicts_in(file.path(), MessageId(77)).unwrap();
        assert_eq!(found.len(), 1);
        assert!(short(&found[0]).contains("tag, score 4.5\ncauses    a=4.5\n"));
        assert!(verdicts_in(Path::new("/nowhere/at/all"), MessageId(77)).is_err());
    }
}
