//! Our side against rustls's own buffered connections, whose code path is another one.

use std::io::{Read, Write};
use std::sync::Arc;

use proptest::prelude::*;
use rustls::crypto::aws_lc_rs;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConnection, ServerConnection, SupportedProtocolVersion};

use super::inflow::{Drained, Inflow};
use super::link::Link;
use super::*;
use crate::runtime::buffer::{LARGE, SMALL};
use crate::tls::Connector;
use crate::tls::TlsPolicy;
use crate::tls::test_kit::{acceptor_config, trusting_config};

static VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// Our end of a connection.
struct Ours {
    records: Records,
    inflow: Inflow,
    heard: Vec<u8>,
    has_ended: bool,
}

impl Ours {
    fn server() -> Ours {
        Ours::new(Records::server(acceptor_config(false)).unwrap())
    }

    fn client() -> Ours {
        let config = Connector::new().unwrap();
        let config = config.config(TlsPolicy::Opportunistic).unwrap();
        Ours::new(Records::client(config, name("other.example")).unwrap())
    }

    fn new(records: Records) -> Ours {
        Ours { records, inflow: Inflow::default(), heard: Vec::new(), has_ended: false }
    }

    /// Takes what came, in pieces of `piece` octets, with `room` for plaintext at a time.
    fn hear(&mut self, octets: &[u8], piece: usize, room: usize) -> Result<(), TlsError> {
        for piece in octets.chunks(piece) {
            let mut left = piece;
            while !left.is_empty() {
                let mut buffer = self.inflow.take_buffer()?;
                let pushed = buffer.push(left);
                left = &left[pushed..];
                self.inflow.put_buffer(buffer);
                self.take_plain(room)?;
            }
        }
        Ok(())
    }

    fn take_plain(&mut self, room: usize) -> Result<(), TlsError> {
        loop {
            let mut reader = Buffer::new(SMALL);
            reader.push(&vec![0; SMALL - room.min(SMALL)]);
            let before = reader.bytes().len();
            let drained = self.inflow.drain(&mut self.records, &mut reader)?;
            self.heard.extend_from_slice(&reader.bytes()[before..]);
            match drained {
                Drained::Octets(octets) => assert_eq!(octets, reader.bytes().len() - before),
                Drained::NeedsInput => return Ok(()),
                Drained::Ended => {
                    self.has_ended = true;
                    return Ok(());
                }
            }
        }
    }

    fn say(&mut self, mut plain: &[u8]) -> Vec<u8> {
        let mut said = Vec::new();
        while !plain.is_empty() {
            let mut out = Buffer::new(LARGE);
            let taken = self.records.encrypt(plain, &mut out).unwrap();
            said.extend_from_slice(out.bytes());
            plain = &plain[taken..];
        }
        said
    }
}

/// The other end, by rustls's buffered interface.
enum Peer {
    Client(ClientConnection),
    Server(ServerConnection),
}

impl Peer {
    fn client(version: &'static SupportedProtocolVersion) -> Peer {
        let config = trusting_config(&[version]);
        Peer::Client(ClientConnection::new(config, name("mx.example.com")).unwrap())
    }

    fn server(version: &'static SupportedProtocolVersion) -> Peer {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let certificate = crate::tls::test_kit::certificate(&["mx.example.com"]);
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(
                Arc::unwrap_or_clone(certificate.certified),
            )));
        Peer::Server(ServerConnection::new(Arc::new(config)).unwrap())
    }

    fn hear(&mut self, mut octets: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let mut heard = Vec::new();
        while !octets.is_empty() {
            match self {
                Peer::Client(peer) => peer.read_tls(&mut octets).unwrap(),
                Peer::Server(peer) => peer.read_tls(&mut octets).unwrap(),
            };
            match self {
                Peer::Client(peer) => peer.process_new_packets()?,
                Peer::Server(peer) => peer.process_new_packets()?,
            };
            // It says `WouldBlock` where there is no more.
            let _ = match self {
                Peer::Client(peer) => peer.reader().read_to_end(&mut heard),
                Peer::Server(peer) => peer.reader().read_to_end(&mut heard),
            };
        }
        Ok(heard)
    }

    fn say(&mut self, mut plain: &[u8]) -> Vec<u8> {
        let mut said = Vec::new();
        loop {
            let taken = match self {
                Peer::Client(peer) => peer.writer().write(plain).unwrap(),
                Peer::Server(peer) => peer.writer().write(plain).unwrap(),
            };
            plain = &plain[taken..];
            said.extend(self.pending());
            if plain.is_empty() {
                return said;
            }
        }
    }

    fn pending(&mut self) -> Vec<u8> {
        let mut said = Vec::new();
        match self {
            Peer::Client(peer) => while peer.write_tls(&mut said).unwrap() > 0 {},
            Peer::Server(peer) => while peer.write_tls(&mut said).unwrap() > 0 {},
        }
        said
    }

    fn close(&mut self) -> Vec<u8> {
        match self {
            Peer::Client(peer) => peer.send_close_notify(),
            Peer::Server(peer) => peer.send_close_notify(),
        }
        self.pending()
    }
}

fn name(name: &'static str) -> ServerName<'static> {
    ServerName::try_from(name).unwrap()
}

/// Shakes hands with the octets of the peer cut into pieces.
fn shake_hands(ours: &mut Ours, peer: &mut Peer, piece: usize) {
    for _ in 0..10 {
        let mut said = ours.records.take_outgoing();
        if said.is_empty() {
            // A client speaks first, before it has heard anything.
            ours.inflow.shake_hands(&mut ours.records).unwrap();
            said = ours.records.take_outgoing();
        }
        assert!(peer.hear(&said).unwrap().is_empty());
        let said = peer.pending();
        ours.hear(&said, piece, SMALL).unwrap();
    }
    assert!(ours.records.is_established());
}

fn established(version: &'static SupportedProtocolVersion) -> (Ours, Peer) {
    let (mut ours, mut peer) = (Ours::server(), Peer::client(version));
    shake_hands(&mut ours, &mut peer, usize::MAX);
    (ours, peer)
}

fn text(octets: usize) -> Vec<u8> {
    (0..octets).map(|place| b"abcdefghijklmnopqrstuvwxyz\r\n"[place % 28]).collect()
}

#[test]
fn both_directions_work_however_the_records_are_cut() {
    for version in VERSIONS {
        for piece in [1, 2, 5, 7, 1_000, usize::MAX] {
            let ends =
                [(Ours::server(), Peer::client(version)), (Ours::client(), Peer::server(version))];
            for (mut ours, mut peer) in ends {
                shake_hands(&mut ours, &mut peer, piece);
                let session = ours.records.session();
                let expected = if version == &TLS12 { "TLSv1.2" } else { "TLSv1.3" };
                assert_eq!(session.version, expected);
                let sent = text(5_000);
                let said = peer.say(&sent);
                ours.hear(&said, piece, SMALL).unwrap();
                assert_eq!(ours.heard, sent);
                assert_eq!(peer.hear(&ours.say(&sent)).unwrap(), sent);
                assert!(ours.inflow.is_empty(), "what idles holds nothing");
            }
        }
    }
}

#[test]
fn large_octets_go_through_a_reader_with_any_room() {
    for version in VERSIONS {
        let (mut ours, mut peer) = established(version);
        let sent = text(300_000);
        assert_eq!(peer.hear(&ours.say(&sent)).unwrap(), sent);
        for room in [8, 100, 5_000, SMALL] {
            ours.heard.clear();
            let said = peer.say(&sent[..100_000]);
            ours.hear(&said, 40_000, room).unwrap();
            assert_eq!(ours.heard.len(), 100_000);
            assert_eq!(ours.heard, sent[..100_000], "room for {room}");
            assert!(ours.inflow.is_empty());
        }
    }
}

/// Slow next hops must not use up what is there for mail on its way in.
#[test]
fn buffers_count_for_the_side_that_we_are() {
    let held = || [Account::Inbound, Account::Outbound].map(Account::octets);
    for (is_server, expected) in [(true, [SMALL + LARGE, 0]), (false, [0, SMALL + LARGE])] {
        let (mut ours, mut peer) = if is_server {
            (Ours::server(), Peer::client(&TLS13))
        } else {
            (Ours::client(), Peer::server(&TLS13))
        };
        shake_hands(&mut ours, &mut peer, usize::MAX);
        let before = held();
        let mut link = Link::new(ours.records);
        let reading = link.take_buffer().unwrap();
        let (writing, _) = link.encrypt(&text(100_000)).unwrap();
        let after = held();
        assert_eq!([after[0] - before[0], after[1] - before[1]], expected);
        drop((reading, writing));
        assert_eq!(held(), before);
    }
}

#[test]
fn a_write_takes_what_fits_three_records() {
    let (mut ours, mut peer) = established(&TLS13);
    let mut out = Buffer::new(LARGE);
    let taken = ours.records.encrypt(&text(100_000), &mut out).unwrap();
    assert_eq!(taken, ENCRYPT_OCTETS);
    assert!(out.bytes().len() < taken + 100, "three records, and no more than their frames");
    assert_eq!(peer.hear(out.bytes()).unwrap(), text(100_000)[..taken]);
}

#[test]
fn nothing_comes_after_the_peers_end() {
    for version in VERSIONS {
        let (mut ours, mut peer) = established(version);
        let mut said = peer.say(b"the last words");
        said.extend(peer.close());
        said.extend_from_slice(b"octets behind the end");
        ours.hear(&said, usize::MAX, SMALL).unwrap();
        assert_eq!(ours.heard, b"the last words");
        assert!(ours.has_ended);
        // Our half is open still.
        assert_eq!(peer.hear(&ours.say(b"bye")).unwrap(), b"bye");
        ours.records.close();
        let Peer::Client(client) = &mut peer else { panic!("it is a client") };
        client.read_tls(&mut &ours.records.take_outgoing()[..]).unwrap();
        let state = client.process_new_packets().unwrap();
        assert!(state.peer_has_closed());
        assert!(ours.records.take_outgoing().is_empty());
    }
}

/// A client of TLS 1.3 may speak right behind its Finished: both in one read.
#[test]
fn words_behind_the_last_message_of_the_handshake_are_kept() {
    let (mut ours, mut peer) = (Ours::server(), Peer::client(&TLS13));
    let hello = peer.pending();
    ours.hear(&hello, usize::MAX, SMALL).unwrap();
    peer.hear(&ours.records.take_outgoing()).unwrap();
    let mut said = peer.pending();
    said.extend(peer.say(b"EHLO early.test\r\n"));
    let mut buffer = ours.inflow.take_buffer().unwrap();
    buffer.push(&said);
    ours.inflow.put_buffer(buffer);
    assert!(!ours.inflow.shake_hands(&mut ours.records).unwrap());
    assert!(ours.records.is_established() && ours.inflow.has_plain());
    ours.take_plain(SMALL).unwrap();
    assert_eq!(ours.heard, b"EHLO early.test\r\n");
    assert_eq!(peer.hear(&ours.say(b"250 ok")).unwrap(), b"250 ok");
}

#[test]
fn a_cut_stream_has_no_end() {
    let (mut ours, mut peer) = established(&TLS13);
    let said = peer.say(b"hello");
    ours.hear(&said[..said.len() - 1], usize::MAX, SMALL).unwrap();
    assert!(ours.heard.is_empty() && !ours.has_ended && !ours.inflow.is_empty());
}

#[test]
fn a_changed_octet_ends_the_connection_with_an_alert() {
    for version in VERSIONS {
        let (mut ours, mut peer) = established(version);
        let mut said = peer.say(b"MAIL FROM:<a@example.com>\r\n");
        *said.last_mut().unwrap() ^= 1;
        assert!(matches!(ours.hear(&said, 9, SMALL), Err(TlsError::Protocol(_))));
        assert!(ours.heard.is_empty());
        let alert = ours.records.take_outgoing();
        assert!(peer.hear(&alert).unwrap_err().to_string().contains("BadRecordMac"));
    }
}

#[test]
fn what_is_no_tls_is_refused_with_an_alert() {
    for words in
        [&b"EHLO client.example\r\n"[..], b"GET / HTTP/1.1\r\n\r\n", &[0x16, 3, 1, 0xff, 0xff]]
    {
        let mut ours = Ours::server();
        assert!(matches!(ours.hear(words, 3, SMALL), Err(TlsError::Protocol(_))));
        assert_eq!(ours.records.take_outgoing().first(), Some(&0x15), "an alert");
    }
}

/// A handshake message of 16 MiB, record by record; and one of the largest size that rustls
/// takes, in records of one octet, which need six times the room.
#[test]
fn a_flood_in_the_handshake_is_refused_early() {
    for (length, record) in [(0xff_ffff_usize, 16_000), (0xfff0, 1)] {
        let mut ours = Ours::server();
        let mut message = vec![1];
        message.extend_from_slice(&(length as u32).to_be_bytes()[1..]);
        message.resize(length + 4, 0);
        let mut sent = 0;
        let refused = message.chunks(record).any(|piece| {
            let mut octets = vec![0x16, 3, 1];
            octets.extend_from_slice(&(piece.len() as u16).to_be_bytes());
            octets.extend_from_slice(piece);
            sent += octets.len();
            ours.hear(&octets, usize::MAX, SMALL).is_err()
        });
        assert!(refused);
        assert!(sent <= LARGE + 16_000 + 5, "{sent} octets were taken");
    }
}

#[test]
fn keys_are_changed_at_the_peers_wish() {
    let (mut ours, mut peer) = established(&TLS13);
    for round in 0..100 {
        let Peer::Client(client) = &mut peer else { panic!("it is a client") };
        client.refresh_traffic_keys().unwrap();
        ours.heard.clear();
        let said = peer.say(b"new keys");
        ours.hear(&said, 3, SMALL).unwrap();
        assert_eq!(ours.heard, b"new keys");
        if round % 3 == 0 {
            let said = ours.say(b"and ours");
            assert_eq!(peer.hear(&said).unwrap(), b"and ours");
        }
    }
    assert!(ours.records.take_outgoing().len() < 4_096, "answers to changes do not pile up");
}

#[test]
fn the_binding_is_what_the_peer_exports() {
    let (ours, peer) = established(&TLS13);
    let Peer::Client(client) = peer else { panic!("it is a client") };
    let label = b"EXPORTER-Channel-Binding";
    let expected = client.export_keying_material([0; 32], label, Some(b"")).unwrap();
    assert_eq!(ours.records.session().binding, Some(expected));
    assert_eq!(established(&TLS12).0.records.session().binding, None);
}

#[test]
fn sessions_are_resumed_and_keep_the_clients_identity() {
    let server = acceptor_config(true);
    for version in VERSIONS {
        let client = crate::tls::test_kit::client_with_certificate(version);
        let mut seen = Vec::new();
        for resumed in [false, true] {
            let mut ours = Ours::new(Records::server(server.clone()).unwrap());
            let connection = ClientConnection::new(client.clone(), name("mx.example.com")).unwrap();
            shake_hands(&mut ours, &mut Peer::Client(connection), usize::MAX);
            assert_eq!(ours.records.session().resumed, resumed);
            seen.push(ours.records.peer_certificate().expect("it was asked for").to_vec());
        }
        assert_eq!(seen[0], seen[1]);
    }
}

proptest! {
    #[test]
    fn no_octets_are_too_strange(octets in prop::collection::vec(any::<u8>(), 0..400), piece in 1..50_usize) {
        let _ = Ours::server().hear(&octets, piece, SMALL);
        let _ = Ours::server().hear(&[&[0x16, 3, 1], &octets[..]].concat(), piece, SMALL);
    }

    #[test]
    fn a_damaged_hello_harms_nobody(place in 0..200_usize, value in any::<u8>(), piece in 1..300_usize) {
        let mut hello = Peer::client(&TLS13).pending();
        let place = place % hello.len();
        hello[place] = value;
        let _ = Ours::server().hear(&hello, piece, SMALL);
    }
}
