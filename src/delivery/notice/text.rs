//! The first part: what happened, for people.

use crate::delivery::outcome::{BounceCause, Reason};

use super::returned::Returned;
use super::{Cause, Kind, Reporter, Shown, date, wrap};

/// Recipients told in full; the second part has them all.
const TOLD: usize = 50;
const INDENT: &str = "    ";

/// The subject of a notice.
pub(super) fn subject(kind: Kind) -> &'static str {
    match kind {
        Kind::Failure => "Your message could not be delivered",
        Kind::Delay { .. } => "Your message is delayed",
        Kind::Delivery => "Your message was delivered",
        Kind::Relay => "Your message was passed on",
    }
}

/// The text, in lines of at most about 78 octets.
pub(super) fn part(
    kind: Kind,
    reporter: &Reporter<'_>,
    shown: &[Shown<'_>],
    returned: &Returned,
) -> String {
    let whom = if shown.len() == 1 { "recipient" } else { "recipients" };
    let mut text = format!("This is the mail gateway at {}.\r\n\r\n", reporter.hostname);
    wrap(&mut text, "", "", &opening(kind, whom));
    for shown in shown.iter().take(TOLD) {
        text.push_str(&format!("\r\n<{}>\r\n", shown.recipient.path.as_str()));
        recipient(&mut text, shown);
    }
    if let Some(more @ 1..) = shown.len().checked_sub(TOLD) {
        text.push_str(&format!("\r\nand {more} more, named in the report that follows.\r\n"));
    }
    let what = if returned.whole { "your message" } else { "the header of your message" };
    text.push_str(&format!("\r\nA report for programs and {what} follow.\r\n"));
    text
}

fn opening(kind: Kind, whom: &str) -> String {
    match kind {
        Kind::Failure => format!(
            "Your message could not be delivered to the {whom} below. It will not be tried again."
        ),
        Kind::Delay { until_unix_ms } => format!(
            "Your message has not been delivered yet to the {whom} below. You need not do \
             anything: it will be tried again until {}.",
            date(until_unix_ms)
        ),
        Kind::Delivery => format!("Your message was delivered to the {whom} below."),
        Kind::Relay => format!(
            "Your message for the {whom} below was passed on to a mail server that does not \
             report deliveries, so you may hear no more of it."
        ),
    }
}

fn recipient(text: &mut String, shown: &Shown<'_>) {
    let server = shown.told.remote_mta.unwrap_or("the mail server");
    match shown.told.cause {
        None => {}
        Some(Cause::Waits(reason)) => tell(text, reason, server),
        Some(Cause::Bounced(BounceCause::Failed(reason))) => tell(text, reason, server),
        Some(Cause::Bounced(BounceCause::Expired { last })) => {
            sentence(text, "It could not be delivered in the time allowed.");
            if let Some(reason) = last {
                sentence(text, "The last attempt ended like this:");
                tell(text, reason, server);
            }
        }
    }
}

fn tell(text: &mut String, reason: &Reason, server: &str) {
    match reason {
        Reason::Reply(staged) => {
            sentence(text, &format!("{server} refused it {} and said:", staged.stage));
        }
        Reason::Connection(failure) if failure.reply().is_some() => {
            sentence(text, &format!("With {server}: {failure}. It said:"));
        }
        Reason::Connection(failure) => sentence(text, &format!("With {server}: {failure}.")),
        Reason::Local { text: clause, .. } => sentence(text, &format!("The reason: {clause}.")),
    }
    let Some(reply) = reason.reply() else { return };
    for line in reply.lines() {
        wrap(text, &format!("{INDENT}{INDENT}{} ", reply.code), "            ", line);
    }
}

fn sentence(text: &mut String, sentence: &str) {
    wrap(text, INDENT, INDENT, sentence);
}
