//! Commands at random: whatever comes, the server answers with well-formed replies, keeps its
//! memory bounded (the machine's driver looks to that) and does not care how the octets were cut.

use proptest::prelude::*;

use crate::dialogue::judge::{same, well_formed};
use crate::dialogue::machine::Machine;
use crate::dialogue::settings::Settings;

/// Sessions of a public fuzzing corpus (tests/data/smtp-fuzz).
const SEEDS: [&str; 2] = [
    include_str!("../data/smtp-fuzz/smtp_requests_full.raw"),
    include_str!("../data/smtp-fuzz/smtp_requests_full_bdat.raw"),
];
/// The words of that corpus, a quoted one a line.
const WORDS: &str = include_str!("../data/smtp-fuzz/smtp.dict");

/// What a client may say that leads somewhere.
const PHRASES: &[&str] = &[
    "EHLO a.example\r\n",
    "HELO a\r\n",
    "MAIL FROM:<>\r\n",
    "MAIL FROM:<a@b.example> SIZE=100 BODY=8BITMIME\r\n",
    "MAIL FROM:<a@b.example> SMTPUTF8 RET=HDRS ENVID=a+2Bb\r\n",
    "MAIL FROM:<a@b.example> SIZE=99999999999999999999\r\n",
    "RCPT TO:<user@example.com>\r\n",
    "RCPT TO:<user@example.com> NOTIFY=NEVER ORCPT=rfc822;a\r\n",
    "RCPT TO:<a%b@example.com>\r\n",
    "RCPT TO:<\"a b\"@example.com>\r\n",
    "RCPT TO:<user@elsewhere.example>\r\n",
    "RCPT TO:<Postmaster>\r\n",
    "RCPT TO:<\u{e9}@example.com>\r\n",
    "DATA\r\n",
    "Received: x\r\n",
    "hello\r\n",
    ".\r\n",
    "\r\n.\r\n",
    "\n.\r\n",
    "\r\n.\n",
    "\r.\r",
    "..\r\n",
    "BDAT 0\r\n",
    "BDAT 0 LAST\r\n",
    "BDAT 7\r\n",
    "BDAT 7 LAST\r\n",
    "BDAT 700\r\n",
    "BDAT 7 FIRST\r\n",
    "BDAT -1\r\n",
    "BDAT 99999999999999999999 LAST\r\n",
    "RSET\r\n",
    "NOOP\r\n",
    "VRFY a\r\n",
    "HELP\r\n",
    "STARTTLS\r\n",
    "AUTH PLAIN =\r\n",
    "\0",
    "\r",
    "\n",
    "\r\n",
    " ",
    ":",
    "<",
    ">",
    "@",
    "\"",
    "\u{fc}",
];

/// A piece of a session.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let phrase = prop::sample::select(PHRASES).prop_map(|text| text.as_bytes().to_vec());
    let words: Vec<&str> = WORDS.lines().map(|line| line.trim_matches('"')).collect();
    let word = prop::sample::select(words).prop_map(|word| word.as_bytes().to_vec());
    let lines: Vec<&str> = SEEDS.iter().flat_map(|seed| seed.split_inclusive('\n')).collect();
    let line = prop::sample::select(lines).prop_map(|line| line.as_bytes().to_vec());
    let whole = prop::sample::select(&SEEDS[..]).prop_map(|seed| seed.as_bytes().to_vec());
    let noise = prop::collection::vec(any::<u8>(), 0..20);
    let long = (any::<u8>(), 2_000_usize..2_100).prop_map(|(octet, times)| vec![octet; times]);
    prop_oneof![20 => phrase, 3 => word, 4 => line, 1 => whole, 2 => noise, 1 => long]
}

fn session() -> impl Strategy<Value = Vec<u8>> {
    let opening = prop_oneof![
        Just(&b""[..]),
        Just(&b"EHLO a.example\r\n"[..]),
        Just(&b"EHLO a.example\r\nMAIL FROM:<>\r\nRCPT TO:<user@example.com>\r\n"[..]),
        Just(&b"EHLO a.example\r\nMAIL FROM:<>\r\nRCPT TO:<user@example.com>\r\nDATA\r\n"[..]),
    ];
    (opening, prop::collection::vec(piece(), 0..60))
        .prop_map(|(opening, pieces)| [opening.to_vec(), pieces.concat()].concat())
}

fn settings(space: bool) -> Settings {
    let text = if space { "@ bare_newline=space\n" } else { "" };
    let dialogue = crate::dialogue::format::Dialogue::parse(
        "soup",
        &format!("# soup\n{text}@ message_size=1KiB\n@ received=10\n"),
    );
    Settings::of(&dialogue.map_err(|(_, wrong)| wrong).expect("it can be read"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_soup_is_answered_alike_however_it_is_cut(
        octets in session(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
        space in any::<bool>(),
    ) {
        let config = settings(space).config();
        let mut whole = Machine::with_config(config.clone(), None);
        whole.receive(&octets);
        for line in whole.replies.split_inclusive(|&octet| octet == b'\n') {
            if let Err(wrong) = well_formed(line) {
                return Err(TestCaseError::fail(wrong));
            }
        }
        let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(octets.len() + 1)).collect();
        places.extend([0, octets.len()]);
        places.sort_unstable();
        let mut cut = Machine::with_config(config.clone(), None);
        places.windows(2).for_each(|pair| cut.receive(&octets[pair[0]..pair[1]]));
        let alike = same(&cut, &whole);
        prop_assert!(alike.is_ok(), "{alike:?}");
        let mut by_octet = Machine::with_config(config, None);
        octets.iter().for_each(|octet| by_octet.receive(&[*octet]));
        let alike = same(&by_octet, &whole);
        prop_assert!(alike.is_ok(), "{alike:?}");
    }
}

#[test]
fn the_sessions_of_the_corpus_deliver_what_they_hold() {
    for (seed, body) in SEEDS.iter().zip([Some(&b"abc\r\n"[..]), None]) {
        let octets = seed.replace("ubuntu@ubuntu", "ubuntu@example.com");
        let mut machine = Machine::new(&Settings::default());
        machine.receive(octets.as_bytes());
        let found = machine.messages.first().map(|message| message.body.as_slice());
        assert_eq!(found, body, "{}", machine.replies.escape_ascii());
    }
}
