//! The first part: what happened, for people.

use crate::delivery::outcome::{BounceCause, Reason};

use super::returned::Returned;
use super::{Reporter, Shown, wrap};

/// Recipients told in full; the second part has them all.
const TOLD: usize = 50;
const INDENT: &str = "    ";

/// The text, in lines of at most about 78 octets.
pub(super) fn part(reporter: &Reporter<'_>, shown: &[Shown<'_>], returned: &Returned) -> String {
    let whom = if shown.len() == 1 { "recipient" } else { "recipients" };
    let mut text = format!("This is the mail gateway at {}.\r\n\r\n", reporter.hostname);
    let sentence = format!(
        "Your message could not be delivered to the {whom} below. It will not be tried again."
    );
    wrap(&mut text, "", "", &sentence);
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

fn recipient(text: &mut String, shown: &Shown<'_>) {
    let server = shown.failed.remote_mta.unwrap_or("the mail server");
    match shown.failed.cause {
        BounceCause::Failed(reason) => tell(text, reason, server),
        BounceCause::Expired { last } => {
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
