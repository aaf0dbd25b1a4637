//! Messages as servers send them, well-formed and not.

use std::str::FromStr;

use hickory_proto::op::Metadata;
use hickory_proto::rr::rdata;
use proptest::prelude::*;

use super::*;

const ID: u16 = 0x1234;

fn question(name: &str, kind: RecordType) -> Question {
    Question { name: Name::parse(name).expect("a name"), kind }
}

fn name(text: &str) -> rr::Name {
    rr::Name::from_str(text).expect("a name")
}

/// An answer of a recursive server to `name` and `kind`.
fn answer(question: &Question, records: &[(&str, u32, RData)], soa: Option<(u32, u32)>) -> Message {
    let mut message = Message::new(ID, MessageType::Response, OpCode::Query);
    message.metadata.recursion_available = true;
    message.add_query(Query::query(wire_name(&question.name), wire_type(question.kind)));
    for (owner, ttl, data) in records {
        message.add_answer(rr::Record::from_rdata(name(owner), *ttl, data.clone()));
    }
    if let Some((ttl, minimum)) = soa {
        let soa = rdata::SOA::new(name("ns.test."), name("x.test."), 1, 2, 3, 4, minimum);
        message.add_authority(rr::Record::from_rdata(name("test."), ttl, RData::SOA(soa)));
    }
    message
}

fn read(message: &Message, question: &Question) -> Result<Reply, NotAReply> {
    decode(&message.to_vec().expect("a message"), question, ID)
}

fn known(message: &Message, question: &Question) -> (Outcome, u64) {
    match read(message, question) {
        Ok(Reply::Known(known)) => (known.outcome, known.ttl.as_secs()),
        other => panic!("{other:?}"),
    }
}

fn mx(preference: u16, host: &str) -> RData {
    RData::MX(rdata::MX::new(preference, name(host)))
}

fn alias(target: &str) -> RData {
    RData::CNAME(rdata::CNAME(name(target)))
}

fn a(last: u8) -> RData {
    RData::A(rdata::A::new(192, 0, 2, last))
}

#[test]
fn a_question_reads_back() {
    let asked = question("Example.TEST", RecordType::Mx);
    for edns in [true, false] {
        let octets = encode(&asked, ID, edns);
        let message = Message::from_vec(&octets).expect("our own message");
        let Metadata { id, recursion_desired, authentic_data, .. } = message.metadata;
        assert_eq!((id, recursion_desired, authentic_data), (ID, true, true));
        assert_eq!(message.queries[0].name().to_ascii(), "example.test.");
        assert_eq!(message.edns.map(|edns| edns.max_payload()), edns.then_some(1_232));
    }
}

#[test]
fn records_are_taken_with_their_shortest_ttl() {
    let asked = question("example.test", RecordType::Mx);
    let odd = rr::Name::from_labels([&b"a b"[..], b"test"]);
    let records = [
        ("EXAMPLE.test.", 300, mx(10, "MX1.test.")),
        ("example.test.", 200, mx(0, ".")),
        ("other.test.", 5, mx(1, "evil.test.")),
        ("example.test.", 5, a(1)),
        ("example.test.", 400, RData::MX(rdata::MX::new(20, odd.expect("labels")))),
    ];
    let (outcome, ttl) = known(&answer(&asked, &records, None), &asked);
    let host = |preference, exchange| Record::Mx { preference, exchange };
    let expected = vec![
        host(10, Exchange::Host(Name::parse("mx1.test").expect("a name"))),
        host(0, Exchange::Null),
        host(20, Exchange::Unusable("a\\040b.test.".into())),
    ];
    assert_eq!((outcome, ttl), (Outcome::Records(expected), 200));
}

#[test]
fn every_type_is_read() {
    let text = RData::TXT(rdata::TXT::new(vec!["v=spf1 ".into(), "-all".into()]));
    for (kind, data, expected) in [
        (RecordType::A, a(1), Record::A([192, 0, 2, 1].into())),
        (
            RecordType::Aaaa,
            RData::AAAA(rdata::AAAA::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
            Record::Aaaa("2001:db8::1".parse().expect("IPv6")),
        ),
        (RecordType::Txt, text, Record::Txt((*b"v=spf1 -all").into())),
        (
            RecordType::Ptr,
            RData::PTR(rdata::PTR(name("host.test."))),
            Record::Ptr(Name::parse("host.test").expect("a name")),
        ),
    ] {
        let asked = question("x.test", kind);
        let message = answer(&asked, &[("x.test.", 60, data)], None);
        assert_eq!(known(&message, &asked), (Outcome::Records(vec![expected]), 60));
    }
}

#[test]
fn aliases_are_followed_within_the_answer() {
    let asked = question("a.test", RecordType::A);
    let chain = |links: usize| {
        let owner =
            |link: usize| if link == 0 { "a.test.".into() } else { format!("l{link}.test.") };
        // The last link first: a server may give them in any order.
        let links = (0..links).rev().map(move |link| (owner(link), 90, alias(&owner(link + 1))));
        links.collect::<Vec<(String, u32, RData)>>()
    };
    for (links, is_followed) in [(1, true), (8, true), (9, false)] {
        let mut records = chain(links);
        records.push((format!("l{links}.test."), 100, a(1)));
        let records: Vec<_> =
            records.iter().map(|(owner, ttl, data)| (&**owner, *ttl, data.clone())).collect();
        let reply = read(&answer(&asked, &records, None), &asked);
        match reply.expect("a reply") {
            Reply::Known(known) if is_followed => {
                assert_eq!(known.outcome, Outcome::Records(vec![Record::A([192, 0, 2, 1].into())]));
                assert_eq!(known.ttl.as_secs(), 90);
            }
            Reply::Failed(words) if !is_followed => assert_eq!(&*words, "too many aliases"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_alias_itself_can_be_asked_for() {
    let asked = question("www.test", RecordType::Cname);
    let records = [("www.test.", 60, alias("Web.test.")), ("web.test.", 30, a(1))];
    let target = Record::Cname(Name::parse("web.test").expect("a name"));
    let message = answer(&asked, &records, None);
    assert_eq!(known(&message, &asked), (Outcome::Records(vec![target]), 60));
}

#[test]
fn a_loop_of_aliases_is_a_failure() {
    let asked = question("a.test", RecordType::Mx);
    let to_itself = [("a.test.", 90, alias("a.test."))];
    let two = [("a.test.", 90, alias("b.test.")), ("b.test.", 90, alias("a.test."))];
    for records in [&to_itself[..], &two] {
        let reply = read(&answer(&asked, records, None), &asked);
        assert_eq!(reply, Ok(Reply::Failed("too many aliases".into())));
    }
}

#[test]
fn an_alias_that_leads_out_of_the_answer_is_to_be_followed() {
    let asked = question("a.test", RecordType::Mx);
    let records = [("a.test.", 90, alias("elsewhere.example."))];
    let target = Outcome::Alias(Name::parse("elsewhere.example").expect("a name"));
    assert_eq!(known(&answer(&asked, &records, None), &asked), (target, 90));
    // With an SOA the server has been there and found nothing.
    assert_eq!(known(&answer(&asked, &records, Some((60, 70))), &asked), (Outcome::NoData, 60));
}

#[test]
fn an_absence_stands_as_long_as_its_zone_says() {
    let asked = question("a.test", RecordType::Mx);
    for (soa, seconds) in [
        (Some((300, 60)), 60),
        (Some((30, 60)), 30),
        (Some((86_400, 86_400)), 3_600),
        (Some((0, 60)), 1),
        (Some((u32::MAX, 60)), 1),
        (None, 1),
    ] {
        let mut message = answer(&asked, &[], soa);
        assert_eq!(known(&message, &asked), (Outcome::NoData, seconds), "{soa:?}");
        message.metadata.response_code = ResponseCode::NXDomain;
        assert_eq!(known(&message, &asked), (Outcome::NoName, seconds), "{soa:?}");
    }
}

#[test]
fn a_ttl_is_kept_within_bounds() {
    let asked = question("a.test", RecordType::A);
    for (ttl, seconds) in [(0, 1), (1, 1), (86_401, 86_400), (1 << 31, 1), (u32::MAX, 1)] {
        let message = answer(&asked, &[("a.test.", ttl, a(1))], None);
        assert_eq!(known(&message, &asked).1, seconds);
    }
}

#[test]
fn a_lame_server_knows_nothing() {
    let asked = question("a.test", RecordType::Mx);
    let mut referral = answer(&asked, &[], None);
    let ns = RData::NS(rdata::NS(name("ns.elsewhere.")));
    referral.add_authority(rr::Record::from_rdata(name("test."), 60, ns));
    let mut neither = answer(&asked, &[], None);
    neither.metadata.recursion_available = false;
    for message in [&referral, &neither] {
        assert!(matches!(read(message, &asked), Ok(Reply::Failed(_))));
    }
    // Its "no such name" would return mail at once.
    neither.metadata.response_code = ResponseCode::NXDomain;
    assert!(matches!(read(&neither, &asked), Ok(Reply::Failed(_))));
    let mut with_soa = answer(&asked, &[], Some((60, 70)));
    with_soa.metadata.recursion_available = false;
    with_soa.metadata.response_code = ResponseCode::NXDomain;
    assert_eq!(known(&with_soa, &asked), (Outcome::NoName, 60));
    referral.metadata.response_code = ResponseCode::NXDomain;
    assert_eq!(known(&referral, &asked).0, Outcome::NoName);
    neither.metadata.authoritative = true;
    assert_eq!(known(&neither, &asked).0, Outcome::NoName);
    neither.metadata.response_code = ResponseCode::NoError;
    assert_eq!(known(&neither, &asked).0, Outcome::NoData);
}

#[test]
fn what_answers_something_else_is_a_stray() {
    let asked = question("a.test", RecordType::Mx);
    let good = answer(&asked, &[("a.test.", 60, mx(1, "b.test."))], None);
    assert!(read(&good, &asked).is_ok());
    let other_id = decode(&good.to_vec().expect("a message"), &asked, ID + 1);
    assert_eq!(other_id, Err(NotAReply::Stray));
    for other in [question("b.test", RecordType::Mx), question("a.test", RecordType::A)] {
        assert_eq!(read(&good, &other), Err(NotAReply::Stray));
    }
    assert_eq!(decode(&encode(&asked, ID, true), &asked, ID), Err(NotAReply::Stray));
    let mut twice = good.clone();
    twice.add_query(Query::query(name("a.test."), rr::RecordType::MX));
    assert_eq!(read(&twice, &asked), Err(NotAReply::Stray));
    assert_eq!(decode(&[0x12, 0x34, 0x80], &asked, ID), Err(NotAReply::Stray));
    let mut cut = good.to_vec().expect("a message");
    cut.truncate(cut.len() - 3);
    assert_eq!(decode(&cut, &asked, ID), Err(NotAReply::Malformed));
}

#[test]
fn response_codes_are_told_apart() {
    let asked = question("a.test", RecordType::Mx);
    for (code, reply) in [
        (ResponseCode::ServFail, Reply::Failed("SERVFAIL".into())),
        (ResponseCode::Refused, Reply::Failed("REFUSED".into())),
        (ResponseCode::YXDomain, Reply::Failed("response code 6".into())),
        (ResponseCode::FormErr, Reply::FormatError),
        (ResponseCode::NotImp, Reply::FormatError),
    ] {
        let mut message = answer(&asked, &[], Some((60, 60)));
        message.metadata.response_code = code;
        assert_eq!(read(&message, &asked), Ok(reply.clone()));
        message.queries.clear();
        assert_eq!(read(&message, &asked), Ok(reply));
    }
    // Its upper bits stand in the EDNS part; without them it would be a plain absence.
    let mut message = answer(&asked, &[], None);
    message.metadata.response_code = ResponseCode::BADVERS;
    message.set_edns(Edns::new());
    message.edns.as_mut().expect("set").set_rcode_high(1);
    assert_eq!(read(&message, &asked), Ok(Reply::FormatError));
}

#[test]
fn an_answer_that_is_cut_off_is_asked_for_again() {
    let asked = question("a.test", RecordType::Mx);
    let mut message = answer(&asked, &[("a.test.", 60, mx(1, "b.test."))], None);
    message.metadata.truncation = true;
    assert_eq!(read(&message, &asked), Ok(Reply::Truncated));
    let mut octets = message.to_vec().expect("a message");
    octets.truncate(octets.len() - 1);
    assert_eq!(decode(&octets, &asked, ID), Ok(Reply::Truncated));
}

#[test]
fn the_ad_bit_is_passed_on() {
    let asked = question("a.test", RecordType::Mx);
    for authentic in [true, false] {
        let mut message = answer(&asked, &[], Some((60, 60)));
        message.metadata.authentic_data = authentic;
        let Ok(Reply::Known(known)) = read(&message, &asked) else { panic!("an answer") };
        assert_eq!(known.authentic, authentic);
    }
}

/// An answer with something of everything.
fn rich() -> Vec<u8> {
    let asked = question("a.test", RecordType::Mx);
    let text = RData::TXT(rdata::TXT::new(vec!["x".repeat(255); 2]));
    let records = [
        ("a.test.", 60, alias("b.test.")),
        ("b.test.", 60, mx(1, "c.b.test.")),
        ("b.test.", 60, mx(2, "d.b.test.")),
        ("c.b.test.", 60, a(1)),
        ("c.b.test.", 60, text),
    ];
    let mut message = answer(&asked, &records, Some((60, 60)));
    message.set_edns(Edns::new());
    message.to_vec().expect("a message")
}

proptest! {
    #[test]
    fn any_octets_are_read_without_panic(octets in proptest::collection::vec(any::<u8>(), 0..600)) {
        let asked = question("a.test", RecordType::Mx);
        let _ = decode(&octets, &asked, ID);
        // Past the checks of the head.
        let mut behind_head = vec![0x12, 0x34, 0x81, 0x80, 0, 1];
        behind_head.extend(octets);
        let _ = decode(&behind_head, &asked, ID);
    }

    #[test]
    fn a_changed_answer_is_read_without_panic(
        changes in proptest::collection::vec((0usize..800, any::<u8>()), 1..8),
        length in 0usize..900,
    ) {
        let asked = question("a.test", RecordType::Mx);
        let mut octets = rich();
        for (place, octet) in changes {
            let place = place % octets.len();
            octets[place] = octet;
        }
        octets.truncate(length);
        if let Ok(Reply::Known(known)) = decode(&octets, &asked, ID) {
            prop_assert!(known.ttl >= DNS_TTL_MIN && known.ttl <= DNS_TTL_MAX);
            if let Outcome::Records(records) = known.outcome {
                let all_mx = records.iter().all(|record| matches!(record, Record::Mx { .. }));
                prop_assert!(!records.is_empty() && all_mx);
            }
        }
    }
}
