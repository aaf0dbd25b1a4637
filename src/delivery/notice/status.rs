//! The second part: fields for programs (RFC 3464 section 2, RFC 6533 section 3).

use crate::smtp::address::ForwardPath;

use super::{Kind, Original, Reporter, Shown, date, wrap};

/// The fields and what they are.
pub(super) struct Status {
    pub(super) media_type: &'static str,
    pub(super) fields: String,
}

/// The fields of the message and of each recipient.
pub(super) fn part(
    kind: Kind,
    reporter: &Reporter<'_>,
    original: &Original<'_>,
    shown: &[Shown<'_>],
) -> Status {
    let global = shown.iter().any(|shown| {
        let orcpt = shown.recipient.orcpt.as_deref().unwrap_or_default();
        !shown.recipient.path.as_str().is_ascii() || !orcpt.is_ascii()
    });
    let mut fields = format!("Reporting-MTA: dns; {}\r\n", reporter.hostname);
    if let Some(id) = original.envelope.parameters.envid.as_deref() {
        field(&mut fields, global, "Original-Envelope-Id:", &readable_xtext(id));
    }
    fields.push_str(&format!("Arrival-Date: {}\r\n", date(original.accepted_unix_ms)));
    for shown in shown {
        fields.push_str("\r\n");
        recipient(&mut fields, kind, global, reporter, shown);
    }
    let media_type =
        if global { "message/global-delivery-status" } else { "message/delivery-status" };
    Status { media_type, fields }
}

fn recipient(
    fields: &mut String,
    kind: Kind,
    global: bool,
    reporter: &Reporter<'_>,
    shown: &Shown<'_>,
) {
    if let Some(original) = shown.recipient.orcpt.as_deref().and_then(original_recipient) {
        field(fields, global, "Original-Recipient:", &original);
    }
    let address = match &shown.recipient.path {
        ForwardPath::Postmaster => format!("Postmaster@{}", reporter.hostname),
        ForwardPath::Mailbox(mailbox) => mailbox.to_string(),
    };
    let address_type = if address.is_ascii() { "rfc822" } else { "utf-8" };
    // Not folded: an address with spaces in its quotes must stay what it is.
    fields.push_str(&format!("Final-Recipient: {address_type}; {address}\r\n"));
    let (action, status) = (action(kind), shown.status(kind));
    fields.push_str(&format!("Action: {action}\r\nStatus: {status}\r\n"));
    if let Some(name) = shown.told.remote_mta {
        field(fields, global, "Remote-MTA: dns;", name);
    }
    let reason = shown.told.cause.and_then(|cause| cause.reason());
    if let Some(reply) = reason.and_then(|reason| reason.reply()) {
        field(fields, global, "Diagnostic-Code: smtp;", &reply.to_string());
    }
    if let Some(unix_ms) = shown.told.last_attempt_unix_ms {
        fields.push_str(&format!("Last-Attempt-Date: {}\r\n", date(unix_ms)));
    }
    if let Kind::Delay { until_unix_ms } = kind {
        fields.push_str(&format!("Will-Retry-Until: {}\r\n", date(until_unix_ms)));
    }
}

fn action(kind: Kind) -> &'static str {
    match kind {
        Kind::Failure => "failed",
        Kind::Delay { .. } => "delayed",
        Kind::Delivery => "delivered",
        Kind::Relay => "relayed",
    }
}

/// `type; address`, the address decoded (RFC 3464 section 2.3.1).  The UTF-8 type has a form of
/// its own that may stand as it is (RFC 6533 section 3).
fn original_recipient(orcpt: &str) -> Option<String> {
    let (kind, address) = orcpt.split_once(';')?;
    let address = match kind.eq_ignore_ascii_case("utf-8") {
        true => address.to_string(),
        false => readable_xtext(address),
    };
    Some(format!("{kind}; {address}"))
}

/// The address of an ORCPT, for people.
pub fn original_address(orcpt: &str) -> Option<String> {
    let (_, address) = orcpt.split_once(';')?;
    Some(readable_xtext(address))
}

/// Decodes xtext (RFC 3461 section 4), unless something would come out that a field cannot hold:
/// `+0D+0A` would begin a field of the sender's choice.
fn readable_xtext(text: &str) -> String {
    decode_xtext(text)
        .filter(|text| text.bytes().all(|octet| (b' '..=b'~').contains(&octet)))
        .unwrap_or_else(|| text.to_string())
}

fn decode_xtext(text: &str) -> Option<String> {
    let mut pieces = text.split('+');
    let mut decoded = pieces.next()?.to_string();
    for piece in pieces {
        let (digits, rest) = piece.split_at_checked(2)?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        let octet = u8::from_str_radix(digits, 16).ok()?;
        // What is not ASCII is caught by the caller, as any letter above it is.
        decoded.push(char::from(octet));
        decoded.push_str(rest);
    }
    Some(decoded)
}

/// A field, folded.  Only the global form may hold UTF-8.
fn field(fields: &mut String, global: bool, name: &str, value: &str) {
    let ascii: String;
    let value = if global || value.is_ascii() {
        value
    } else {
        ascii = value.chars().map(|letter| if letter.is_ascii() { letter } else { '?' }).collect();
        &ascii
    };
    wrap(fields, &format!("{name} "), "    ", value);
}
