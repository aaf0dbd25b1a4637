//! Replies of next hops: the same replies however the octets are cut, in bounded memory.

use mailrace::limits::{EHLO_REPLY, KEPT_REPLY};
use mailrace::smtp::capabilities::Capabilities;
use mailrace::smtp::reply_reader::{PeerReply, ReplyError, ReplyReader};

use super::{Input, cut};

/// Whether EHLO was said, how it is cut, and what the peer sends.
pub fn run(octets: &[u8]) {
    let mut input = Input(octets);
    let after_ehlo = input.octet() & 1 != 0;
    let seed = input.octet();
    let whole = replies(input.0, 0, after_ehlo);
    assert_eq!(replies(input.0, 1, after_ehlo), whole, "octet by octet");
    assert_eq!(replies(input.0, seed, after_ehlo), whole, "cut by {seed}");
    for (place, reply) in whole.iter().enumerate() {
        let Ok(reply) = reply else { continue };
        let is_ehlo = after_ehlo && place == 0;
        check(reply, is_ehlo);
    }
}

fn replies(stream: &[u8], seed: u8, after_ehlo: bool) -> Vec<Result<PeerReply, ReplyError>> {
    let (mut reader, mut replies) = (ReplyReader::new(), Vec::new());
    if after_ehlo {
        reader.expect_ehlo();
    }
    for mut piece in cut(stream, seed) {
        while !piece.is_empty() {
            let (consumed, reply) = reader.read(piece);
            assert!(
                consumed <= piece.len() && (consumed > 0 || reply.is_some()),
                "no step forward"
            );
            piece = &piece[consumed..];
            if let Some(reply) = reply {
                let is_over = reply.is_err();
                replies.push(reply);
                if is_over {
                    return replies;
                }
            }
        }
    }
    replies
}

fn check(reply: &PeerReply, is_ehlo: bool) {
    let most = if is_ehlo { EHLO_REPLY } else { KEPT_REPLY };
    assert!(reply.text.len() <= most, "{} octets are kept", reply.text.len());
    assert!(reply.text.chars().all(|c| c == '\n' || !c.is_control()), "{:?}", reply.text);
    assert!((200..600).contains(&reply.code.value()));
    assert!(!reply.to_string().contains('\n'), "a reply on one line");
    let offered = Capabilities::from_ehlo(reply);
    assert!(offered.auth.len() <= reply.text.len());
}
