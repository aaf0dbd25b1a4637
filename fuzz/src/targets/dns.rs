//! What a name server sends: believed only within its bounds, and never read for longer than it is.

use mailrace::dns::cache::Question;
use mailrace::dns::codec::{self, Outcome, Reply};
use mailrace::dns::{Name, Record, RecordType};
use mailrace::limits::{DNS_TTL_MAX, DNS_TTL_MIN};

use super::Input;

const ID: u16 = 0x1234;
const KINDS: [RecordType; 6] = [
    RecordType::A,
    RecordType::Aaaa,
    RecordType::Mx,
    RecordType::Txt,
    RecordType::Ptr,
    RecordType::Cname,
];

/// What was asked, whether the answer's head is made to fit, and the answer.
pub fn run(octets: &[u8]) {
    let mut input = Input(octets);
    let kind = KINDS[input.below(KINDS.len())];
    let fits = input.octet() & 1 != 0;
    let question = Question { name: Name::parse("mail.example").expect("a name"), kind };
    if fits {
        let flags = input.octet();
        let counts = [input.octet(), input.octet(), input.octet()].map(|count| count % 8);
        read(&fitting(&question, flags, counts, input.0), &question);
    }
    read(input.0, &question);
}

/// An answer to the question, of which the input is the records.
fn fitting(question: &Question, flags: u8, counts: [u8; 3], records: &[u8]) -> Vec<u8> {
    let mut message = codec::encode(question, ID, false);
    message[2] |= 0x80 | flags & 0x02;
    message[3] = flags & 0x20 | flags >> 6;
    for (place, count) in [7, 9, 11].into_iter().zip(counts) {
        message[place] = count;
    }
    message.extend_from_slice(records);
    message
}

fn read(message: &[u8], question: &Question) {
    let Ok(Reply::Known(known)) = codec::decode(message, question, ID) else { return };
    assert!((DNS_TTL_MIN..=DNS_TTL_MAX).contains(&known.ttl), "{:?}", known.ttl);
    let Outcome::Records(records) = known.outcome else { return };
    assert!(!records.is_empty(), "no record and no reason");
    assert!(records.len() <= message.len() / 8, "records out of nothing");
    for record in records {
        let kind = match &record {
            Record::A(_) => RecordType::A,
            Record::Aaaa(_) => RecordType::Aaaa,
            Record::Mx { .. } => RecordType::Mx,
            Record::Txt(text) => {
                assert!(text.len() <= message.len());
                RecordType::Txt
            }
            Record::Ptr(_) => RecordType::Ptr,
            Record::Cname(_) => RecordType::Cname,
        };
        assert_eq!(kind, question.kind, "{record:?}");
    }
}
