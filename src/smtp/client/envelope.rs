//! The envelope's commands as octets: MAIL and RCPT with the parameters that the peer knows.

use crate::message::{BodyFlags, BodyKind, Envelope, MailParameters, Notify, Recipient, Ret};
use crate::smtp::address::ReversePath;
use crate::smtp::capabilities::{Capabilities, SizeOffer};

use super::Transaction;

/// Appends `MAIL FROM:<..>` for a whole message with the parameters that the peer announces.
pub(super) fn write_mail(out: &mut Vec<u8>, transaction: &Transaction, peer: &Capabilities) {
    let Envelope { reverse_path, parameters, .. } = &*transaction.envelope;
    // A client that said 7BIT and sent 8-bit mail all the same is put right: the peer may have to
    // convert, and can only do that if it is told.
    let parameters = match transaction.flags.contains(BodyFlags::EIGHT_BIT) {
        true => &MailParameters { body: BodyKind::EightBitMime, ..parameters.clone() },
        false => parameters,
    };
    mail_command(out, reverse_path, parameters, Some(transaction.size_octets), peer);
}

/// Appends `RCPT TO:<..>` for the transaction's recipient number `place`.
pub(super) fn write_rcpt(
    out: &mut Vec<u8>,
    transaction: &Transaction,
    peer: &Capabilities,
    place: usize,
) {
    rcpt_command(out, transaction.recipient(place), peer);
}

/// Appends `MAIL FROM:<..>` with the parameters that the peer announces; the size where it is
/// known before the message is.
pub fn mail_command(
    out: &mut Vec<u8>,
    reverse_path: &ReversePath,
    parameters: &MailParameters,
    size_octets: Option<u64>,
    peer: &Capabilities,
) {
    out.extend_from_slice(b"MAIL FROM:<");
    out.extend_from_slice(reverse_path.as_str().as_bytes());
    out.push(b'>');
    if let Some(size_octets) = size_octets.filter(|_| peer.size != SizeOffer::NotOffered) {
        out.extend_from_slice(b" SIZE=");
        out.extend_from_slice(size_octets.to_string().as_bytes());
    }
    if peer.eight_bit_mime && parameters.body == BodyKind::EightBitMime {
        out.extend_from_slice(b" BODY=8BITMIME");
    }
    if peer.smtputf8 && parameters.smtputf8 {
        out.extend_from_slice(b" SMTPUTF8");
    }
    // A peer that does not offer it is a mail store behind LMTP, where the way ends.
    if peer.require_tls && parameters.require_tls {
        out.extend_from_slice(b" REQUIRETLS");
    }
    if peer.dsn {
        match parameters.ret {
            Some(Ret::Full) => out.extend_from_slice(b" RET=FULL"),
            Some(Ret::Headers) => out.extend_from_slice(b" RET=HDRS"),
            None => {}
        }
        write_value(out, b" ENVID=", parameters.envid.as_deref());
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends `RCPT TO:<..>` with the parameters that the peer announces.
pub fn rcpt_command(out: &mut Vec<u8>, recipient: &Recipient, peer: &Capabilities) {
    out.extend_from_slice(b"RCPT TO:<");
    out.extend_from_slice(recipient.path.as_str().as_bytes());
    out.push(b'>');
    if peer.dsn {
        write_notify(out, recipient.notify);
        write_value(out, b" ORCPT=", recipient.orcpt.as_deref());
    }
    out.extend_from_slice(b"\r\n");
}

fn write_notify(out: &mut Vec<u8>, notify: Notify) {
    if !notify.is_given() {
        return;
    }
    if notify == Notify::NEVER {
        out.extend_from_slice(b" NOTIFY=NEVER");
        return;
    }
    let mut separator: &[u8] = b" NOTIFY=";
    for (event, word) in [
        (Notify::SUCCESS, b"SUCCESS".as_slice()),
        (Notify::FAILURE, b"FAILURE"),
        (Notify::DELAY, b"DELAY"),
    ] {
        if notify.0 & event.0 != 0 {
            out.extend_from_slice(separator);
            out.extend_from_slice(word);
            separator = b",";
        }
    }
}

/// A value is passed on as it came.  One that could end the command, which the parser lets
/// through nowhere, is left out.
fn write_value(out: &mut Vec<u8>, key: &[u8], value: Option<&str>) {
    let Some(value) = value else { return };
    if value.bytes().any(|octet| octet <= b' ' || octet == 0x7f) {
        return;
    }
    out.extend_from_slice(key);
    out.extend_from_slice(value.as_bytes());
}
