//! The header by which a balancer says for whom a connection is: PROXY protocol, versions 1 and 2
//! (haproxy's `proxy-protocol.txt`).
//!
//! Pure: octets as they come in, who it is out.  It takes not one octet more than the header's, for
//! what follows is another's to read: TLS, or a client that talks into the greeting.  Nothing of
//! the header but the client's address is kept, however long its extensions are.
//!
//! It fails as [`Malformed`], and then the connection is closed without a word: whoever speaks
//! from a balancer's address and gives no header is none, or is set up wrongly.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// For whom a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Introduced {
    /// For the client at this address.
    Client(SocketAddr),
    /// For the balancer itself, or for somebody of whom it cannot tell more.
    Balancer,
}

/// It is no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the connection does not begin with a PROXY header")]
pub struct Malformed;

/// A header that is on its way in.
#[derive(Debug, Clone, Default)]
pub struct HeaderReader {
    /// What was taken of it, as far as it is looked at.
    octets: Vec<u8>,
    /// Octets of version 2 that are still to come and are not looked at.
    passed_over: usize,
}

/// How version 1 begins.
const BEGINNING: &[u8; 5] = b"PROXY";
/// The longest line of version 1, with its CRLF.
const LINE: usize = 107;
/// How version 2 begins; no line of version 1, and nothing in clear that a client would send.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// What version 2 has before its addresses.
const FIXED: usize = 16;
/// What is looked at of version 2: the addresses and ports of two IPv6 hosts.
const LOOKED_AT: usize = FIXED + 36;
/// The longest version 2 that is taken: it may hold the names of certificates, and no more.
const LENGTH_MAX: usize = 4_096;

impl HeaderReader {
    /// Takes what belongs to the header off the front of `input`: how many octets, and whom the
    /// header names once it is whole.  Call it with what comes next until then.
    ///
    /// # Errors
    /// `Malformed`.
    pub fn take(&mut self, input: &[u8]) -> Result<(usize, Option<Introduced>), Malformed> {
        let mut taken = 0;
        loop {
            let wanted = self.wanted()?;
            let rest = &input[taken..];
            if wanted.octets == 0 {
                return self.read().map(|introduced| (taken, Some(introduced)));
            }
            let mut next = &rest[..rest.len().min(wanted.octets)];
            if wanted.to_newline
                && let Some(end) = next.iter().position(|&octet| octet == b'\n')
            {
                next = &next[..=end];
            }
            if next.is_empty() {
                return Ok((taken, None));
            }
            taken += next.len();
            if self.octets.len() >= LOOKED_AT && self.is_binary() {
                self.passed_over += next.len();
            } else {
                self.octets.extend_from_slice(next);
            }
        }
    }

    /// How many of the next octets belong to the header.
    fn wanted(&self) -> Result<Wanted, Malformed> {
        let have = self.octets.len();
        if self.is_binary() {
            let length = match self.octets.get(14..FIXED) {
                // The fixed part first, in full.
                None => return Ok(Wanted { octets: FIXED - have, to_newline: false }),
                Some(octets) => FIXED + usize::from(octets[0]) * 256 + usize::from(octets[1]),
            };
            if length > FIXED + LENGTH_MAX {
                return Err(Malformed);
            }
            let left = length - have - self.passed_over;
            // What is looked at is taken by itself, so that the rest need not be kept.
            let octets = if have < LOOKED_AT { left.min(LOOKED_AT - have) } else { left };
            return Ok(Wanted { octets, to_newline: false });
        }
        if self.octets.last() == Some(&b'\n') {
            return Ok(Wanted { octets: 0, to_newline: true });
        }
        let begins_well = BEGINNING.iter().zip(&self.octets).all(|(known, octet)| known == octet);
        if !begins_well || have >= LINE {
            return Err(Malformed);
        }
        Ok(Wanted { octets: LINE - have, to_newline: true })
    }

    /// Whether it is of version 2, as far as one can tell by now.
    fn is_binary(&self) -> bool {
        let begins_well = SIGNATURE.iter().zip(&self.octets).all(|(known, octet)| known == octet);
        !self.octets.is_empty() && begins_well
    }

    fn read(&self) -> Result<Introduced, Malformed> {
        if self.is_binary() { self.binary() } else { self.line().ok_or(Malformed) }
    }

    /// `PROXY TCP4 192.0.2.1 198.51.100.1 56324 25`, or `PROXY UNKNOWN` and anything.
    fn line(&self) -> Option<Introduced> {
        let line = self.octets.strip_suffix(b"\r\n")?.strip_prefix(BEGINNING)?;
        let mut words = std::str::from_utf8(line).ok()?.strip_prefix(' ')?.split(' ');
        let is_v4 = match words.next()? {
            "UNKNOWN" => return Some(Introduced::Balancer),
            "TCP4" => true,
            "TCP6" => false,
            _ => return None,
        };
        let source: IpAddr = words.next()?.parse().ok()?;
        let destination: IpAddr = words.next()?.parse().ok()?;
        let source_port = port(words.next()?)?;
        port(words.next()?)?;
        let fits = source.is_ipv4() == is_v4 && destination.is_ipv4() == is_v4;
        (fits && words.next().is_none())
            .then(|| Introduced::Client(SocketAddr::new(source.to_canonical(), source_port)))
    }

    fn binary(&self) -> Result<Introduced, Malformed> {
        let addresses = &self.octets[FIXED..];
        match (self.octets[12], self.octets[13]) {
            // LOCAL: whatever else stands there is not to be looked at.
            (0x20, _) => Ok(Introduced::Balancer),
            // Of an unknown family, or over a Unix socket: nothing that we could count or look up.
            (0x21, 0x00 | 0x31) => Ok(Introduced::Balancer),
            (0x21, 0x11) => {
                let octets = addresses.first_chunk::<12>().ok_or(Malformed)?;
                let ip = Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]);
                Ok(client(ip.into(), [octets[8], octets[9]]))
            }
            (0x21, 0x21) => {
                let octets = addresses.first_chunk::<36>().ok_or(Malformed)?;
                let ip =
                    octets.first_chunk::<16>().map(|ip| Ipv6Addr::from(*ip)).ok_or(Malformed)?;
                Ok(client(ip.into(), [octets[32], octets[33]]))
            }
            _ => Err(Malformed),
        }
    }
}

struct Wanted {
    octets: usize,
    /// Only up to a newline, wherever it comes.
    to_newline: bool,
}

fn client(ip: IpAddr, port: [u8; 2]) -> Introduced {
    Introduced::Client(SocketAddr::new(ip.to_canonical(), u16::from_be_bytes(port)))
}

fn port(text: &str) -> Option<u16> {
    let is_plain = text.bytes().all(|octet| octet.is_ascii_digit());
    let has_no_zero = !text.starts_with('0') || text == "0";
    (is_plain && has_no_zero).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family, length[0], length[1]][..], body].concat()
    }

    fn v4_body() -> Vec<u8> {
        vec![192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 0x04, 0, 25]
    }

    fn v6_body() -> Vec<u8> {
        let address = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
        [&address("2001:db8::1")[..], &address("2001:db8::2"), &[0xdc, 0x04, 0, 25]].concat()
    }

    fn with_extensions(mut body: Vec<u8>, octets: usize) -> Vec<u8> {
        body.resize(body.len() + octets, b'\n');
        body
    }

    /// Headers that are good, and whom they introduce.
    fn good() -> Vec<(Vec<u8>, Introduced)> {
        let client = |text: &str| Introduced::Client(text.parse().unwrap());
        let v1 = |line: &str| format!("{line}\r\n").into_bytes();
        let longest = "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff \
                       ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535";
        vec![
            (v1("PROXY TCP4 192.0.2.1 198.51.100.1 56324 25"), client("192.0.2.1:56324")),
            (v1("PROXY TCP6 2001:db8::1 2001:db8::2 0 65535"), client("[2001:db8::1]:0")),
            (v1("PROXY TCP6 ::ffff:192.0.2.1 ::1 7 25"), client("192.0.2.1:7")),
            (v1("PROXY UNKNOWN"), Introduced::Balancer),
            (v1(longest), Introduced::Balancer),
            (v2(0x21, 0x11, &v4_body()), client("192.0.2.1:56324")),
            (v2(0x21, 0x21, &v6_body()), client("[2001:db8::1]:56324")),
            (v2(0x21, 0x11, &with_extensions(v4_body(), 900)), client("192.0.2.1:56324")),
            (v2(0x21, 0x21, &with_extensions(v6_body(), 4_060)), client("[2001:db8::1]:56324")),
            (v2(0x20, 0x00, b""), Introduced::Balancer),
            (v2(0x20, 0x11, &v4_body()), Introduced::Balancer),
            (v2(0x21, 0x00, b"anything"), Introduced::Balancer),
            (v2(0x21, 0x31, &[0; 216]), Introduced::Balancer),
        ]
    }

    /// Fed in pieces of these sizes, over and over: what was taken in all, and the result.
    fn fed(octets: &[u8], sizes: &[usize]) -> Result<(usize, Option<Introduced>), Malformed> {
        let mut reader = HeaderReader::default();
        let (mut at, mut sizes) = (0, sizes.iter().cycle());
        while at < octets.len() {
            let size = sizes.next().copied().unwrap_or(1).max(1);
            let end = (at + size).min(octets.len());
            let (taken, introduced) = reader.take(&octets[at..end])?;
            at += taken;
            if introduced.is_some() {
                return Ok((at, introduced));
            }
            assert_eq!(at, end, "nothing is left lying but what is not the header's");
        }
        Ok((at, None))
    }

    #[test]
    fn bad_headers_are_refused() {
        let lines = [
            "EHLO client.example",
            "PROXY",
            "PROXY ",
            "PROXYTCP4 192.0.2.1 192.0.2.2 1 2",
            "PROXY TCP5 192.0.2.1 192.0.2.2 1 2",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 65536",
            "PROXY TCP4 192.0.2.1 192.0.2.2 01 2",
            "PROXY TCP4 192.0.2.1 192.0.2.2 +1 2",
            "PROXY TCP4  192.0.2.1 192.0.2.2 1 2",
            "PROXY TCP4 192.0.2.1 2001:db8::1 1 2",
            "PROXY TCP6 192.0.2.1 192.0.2.2 1 2",
            "PROXY TCP4 192.0.2.256 192.0.2.2 1 2",
            "proxy TCP4 192.0.2.1 192.0.2.2 1 2",
        ];
        for line in lines {
            assert_eq!(fed(format!("{line}\r\n").as_bytes(), &[200]), Err(Malformed), "{line}");
        }
        assert_eq!(fed(b"PROXY UNKNOWN\n", &[200]), Err(Malformed), "a bare LF");
        assert_eq!(fed(&[b'P'; 200], &[200]), Err(Malformed));
        assert_eq!(fed(&[b"PROXY UNKNOWN ", &[b'x'; 100][..]].concat(), &[9]), Err(Malformed));
        let binary = [
            v2(0x11, 0x11, &v4_body()),
            v2(0x22, 0x11, &v4_body()),
            v2(0x21, 0x12, &v4_body()),
            v2(0x21, 0x11, &v4_body()[..11]),
            v2(0x21, 0x21, &v6_body()[..35]),
            v2(0x21, 0x41, &v6_body()),
            v2(0x21, 0x11, &with_extensions(v4_body(), 4_096)),
        ];
        for header in binary {
            assert_eq!(fed(&header, &[5_000]), Err(Malformed), "{header:?}");
        }
    }

    proptest! {
        /// However it is cut, and whatever follows: that much and no more, and the same client.
        #[test]
        fn every_cut_gives_the_same(
            which in any::<prop::sample::Index>(),
            sizes in prop::collection::vec(1..300usize, 1..8),
            behind in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let (header, introduced) = which.get(&good()).clone();
            let octets = [&header[..], &behind].concat();
            prop_assert_eq!(fed(&octets, &sizes), Ok((header.len(), Some(introduced))));
        }

        #[test]
        fn no_octets_panic_or_are_kept(
            octets in prop::collection::vec(any::<u8>(), 0..200),
            begins in 0..3usize,
            sizes in prop::collection::vec(1..50usize, 1..4),
        ) {
            let begins = [&b""[..], b"PROXY ", SIGNATURE][begins];
            let octets = [begins, &octets].concat();
            let _ = fed(&octets, &sizes);
            let mut reader = HeaderReader::default();
            let _ = reader.take(&octets);
            prop_assert!(reader.octets.len() <= LINE);
        }
    }
}
