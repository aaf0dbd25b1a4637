//! The scanners against an oracle that shares nothing with them: it has the whole input at hand,
//! cuts it at its CRLFs and looks at the segments.

use proptest::prelude::*;

use super::*;

const ALPHABET: [u8; 6] = [b'\r', b'\n', b'.', b'a', 0, 0x80];

fn kernels() -> Vec<Kernel> {
    [Some(Kernel::plain()), Some(Kernel::portable()), Kernel::avx2()]
        .into_iter()
        .flatten()
        .collect()
}

/// The octets between the CRLFs of `octets`.
fn segments(octets: &[u8]) -> Vec<&[u8]> {
    let mut segments = Vec::new();
    let mut rest = octets;
    while let Some(at) = rest.windows(2).position(|pair| pair == b"\r\n") {
        segments.push(&rest[..at]);
        rest = &rest[at + 2..];
    }
    segments.push(rest);
    segments
}

/// Where the dot of the end of data stands.
fn end_of(input: &[u8]) -> Option<usize> {
    (0..input.len()).find(|&at| {
        input[at..].starts_with(b".\r\n") && (at == 0 || input[..at].ends_with(b"\r\n"))
    })
}

/// The summary of a whole body.
fn summary_of(body: &[u8]) -> BodySummary {
    let segments = segments(body);
    let any = |octet: u8| segments.iter().any(|segment| segment.contains(&octet));
    let mut flags = BodyFlags::default();
    for (holds, flag) in [
        (segments.iter().any(|segment| segment.first() == Some(&b'.')), BodyFlags::LEADING_DOTS),
        (body.iter().any(|&octet| octet > 127), BodyFlags::EIGHT_BIT),
        (any(0), BodyFlags::NUL),
        (any(b'\r'), BodyFlags::BARE_CR),
        (any(b'\n'), BodyFlags::BARE_LF),
        (body.is_empty() || body.ends_with(b"\r\n"), BodyFlags::ENDS_WITH_CRLF),
    ] {
        if holds {
            flags.insert(flag);
        }
    }
    BodySummary {
        octets: body.len() as u64,
        crc32c: crc32c::crc32c(body),
        longest_line: segments.iter().map(|segment| segment.len()).max().unwrap_or(0) as u32,
        flags,
    }
}

/// What a scanner must say of an input that comes after DATA.
fn expected(input: &[u8], replacing: bool) -> (Scanned, Vec<u8>, BodySummary) {
    let scanned = match end_of(input) {
        Some(at) => Scanned { consumed: at + 3, body: at, end: true },
        None => {
            let undecided = match *segments(input).last().expect("there is always one") {
                b"." => 1,
                b".\r" => 2,
                [.., b'\r'] if replacing => 1,
                _ => 0,
            };
            let decided = input.len() - undecided;
            Scanned { consumed: decided, body: decided, end: false }
        }
    };
    let mut body = input[..scanned.body].to_vec();
    if replacing {
        let mut lines = segments(&body).iter().map(|line| line.to_vec()).collect::<Vec<_>>();
        for octet in lines.iter_mut().flatten() {
            if matches!(*octet, b'\r' | b'\n') {
                *octet = b' ';
            }
        }
        body = lines.join(&b"\r\n"[..]);
    }
    let mut summary = summary_of(&body);
    summary.flags.insert(BodyFlags::DATA);
    (scanned, body, summary)
}

/// Presents `input` in pieces that end at `cuts` as a session does: what was not consumed stays
/// in front of what comes next.
fn drive(
    mut scanner: DataScanner,
    input: &[u8],
    cuts: impl IntoIterator<Item = usize>,
    replacing: bool,
) -> (Scanned, Vec<u8>, BodySummary) {
    let mut input = input.to_vec();
    let mut total = Scanned { consumed: 0, body: 0, end: false };
    let mut body = Vec::new();
    for cut in cuts.into_iter().chain([input.len()]) {
        let from = total.consumed;
        let piece = &mut input[from..cut];
        let scanned = if replacing { scanner.scan_replacing(piece) } else { scanner.scan(piece) };
        body.extend_from_slice(&piece[..scanned.body]);
        assert!(scanned.end || piece.len() - scanned.consumed <= DataScanner::UNDECIDED_MAX);
        total.add(scanned);
        if total.end {
            break;
        }
    }
    assert_eq!(scanner.octets(), total.body as u64);
    (total, body, scanner.summary())
}

/// All strings over the alphabet of exactly this length, through one buffer.
fn for_all_strings(length: usize, mut check: impl FnMut(usize, &[u8])) {
    let mut string = vec![0; length];
    for number in 0..ALPHABET.len().pow(length as u32) {
        let mut digits = number;
        for octet in &mut string {
            *octet = ALPHABET[digits % ALPHABET.len()];
            digits /= ALPHABET.len();
        }
        check(number, &string);
    }
}

/// One kernel over one input without any cut: the end, and the facts with no CRC.
fn run(kernel: Kernel, input: &[u8], end: EndOfData) -> (Option<usize>, BodySummary) {
    let mut facts = Facts::new();
    let dot_at = kernel.scan(&mut facts, input, end);
    (dot_at, facts.summary(0))
}

#[test]
fn the_plain_kernel_is_what_the_oracle_says() {
    for length in 0..=7 {
        for_all_strings(length, |_, string| {
            let body_octets = end_of(string).unwrap_or(string.len());
            let summary = BodySummary { crc32c: 0, ..summary_of(&string[..body_octets]) };
            let found = run(Kernel::plain(), string, EndOfData::Stops);
            assert_eq!(found, (end_of(string), summary), "{}", string.escape_ascii());
        });
    }
}

#[test]
fn every_short_string_is_judged_alike_at_every_place_in_a_block() {
    // What stands before a string: a part of a line, a line, or short lines, so long that the
    // string lies at every place of the first, the second and the third block.
    let pads: Vec<Vec<u8>> = (0..=200)
        .map(|octets: usize| {
            let text = vec![b'a'; octets.saturating_sub(2)];
            match octets % 3 {
                0 => [&text[..], b"bc"].concat(),
                1 => [&text[..], b"\r\n"].concat(),
                _ => b"abcdefg\r\n".iter().copied().cycle().take(octets).collect(),
            }
        })
        .collect();
    let kernels = kernels();
    let mut buffer = Vec::new();
    let mut pad = pads.iter().cycle();
    for length in 0..=8 {
        // Short strings stand at every place, long ones at the next place each.
        let places = if length <= 3 { pads.len() } else { 1 };
        // The longest are many: the fast kernels judge each other, nearly always without a pad.
        let judges = if length == 8 && kernels.len() > 2 { &kernels[1..] } else { &kernels };
        for_all_strings(length, |number, string| {
            for _ in 0..places {
                buffer.clear();
                if length < 8 || number % 11 == 0 {
                    buffer.extend_from_slice(pad.next().expect("the pads never end"));
                }
                buffer.extend_from_slice(string);
                if length < 8 && number % 2 == 0 {
                    buffer.resize(buffer.len() + number % 131, b'a');
                }
                let end = if number % 5 == 0 { EndOfData::IsBody } else { EndOfData::Stops };
                let right = run(judges[0], &buffer, end);
                for &kernel in &judges[1..] {
                    let found = run(kernel, &buffer, end);
                    assert_eq!(found, right, "{kernel:?} {}", buffer.escape_ascii());
                }
            }
        });
    }
}

#[test]
fn every_short_string_is_judged_alike_however_it_is_cut() {
    for length in 0..=5 {
        for_all_strings(length, |number, string| {
            let replacing = number % 2 == 0;
            let right = expected(string, replacing);
            for kernel in kernels() {
                let new = || DataScanner::with_kernel(kernel);
                for cut in 0..=length {
                    let found = drive(new(), string, [cut], replacing);
                    assert_eq!(found, right, "{kernel:?} {cut} {}", string.escape_ascii());
                }
                let found = drive(new(), string, 0..length, replacing);
                assert_eq!(found, right, "{kernel:?} each {}", string.escape_ascii());
            }
        });
    }
}

#[test]
fn tricky_inputs_are_judged_alike_at_every_cut() {
    let long = vec![b'x'; 200];
    let base64 = [&[b'Z'; 76][..], b"\r\n"].concat().repeat(3);
    let inputs: Vec<Vec<u8>> = vec![
        [b"a\r\n" as &[u8], &long, b"\r\n.\r\nQUIT\r\n"].concat(),
        [&base64 as &[u8], b"..\r\n.x\r\n...\r\n.\r\n.\r\n"].concat(),
        [&long as &[u8], b"\r\n.\r\r\n.\n\r\n.\r\nMAIL FROM:<>\r\n"].concat(),
        [&base64 as &[u8], b"\r\r\n\n.\r\n\0\xff", &long, b"\r\n.\r\n"].concat(),
        b"\r\n".repeat(100),
        b".\r".repeat(100),
        b"\n.".repeat(100),
        [b"\r\n..".repeat(40), b"\r\n.\r\n".to_vec()].concat(),
        b"\r".repeat(130),
        b"\n".repeat(130),
    ];
    for input in &inputs {
        for replacing in [false, true] {
            let right = expected(input, replacing);
            for kernel in kernels() {
                for cut in 0..=input.len() {
                    let found = drive(DataScanner::with_kernel(kernel), input, [cut], replacing);
                    assert_eq!(found, right, "{kernel:?} {cut} {}", input.escape_ascii());
                }
            }
        }
    }
}

#[test]
fn nothing_but_crlf_dot_crlf_ends_the_data() {
    let newlines: [&[u8]; 6] = [b"\r\n", b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\0\n"];
    for before in newlines {
        for after in newlines {
            let input = [b"text" as &[u8], before, b".", after, b"MAIL FROM:<a@b>\r\n"].concat();
            // CR CR LF ends a line as well, after a bare CR.
            let is_end = before.ends_with(b"\r\n") && after == b"\r\n";
            for kernel in kernels() {
                let found = DataScanner::with_kernel(kernel).scan(&input);
                assert_eq!(found.end, is_end, "{kernel:?} {}", input.escape_ascii());
            }
        }
    }
}

#[test]
fn an_end_that_comes_first_makes_an_empty_message() {
    for kernel in kernels() {
        let mut scanner = DataScanner::with_kernel(kernel);
        let found = scanner.scan(b".\r\nRSET\r\n");
        assert_eq!(found, Scanned { consumed: 3, body: 0, end: true });
        let mut flags = BodyFlags::DATA;
        flags.insert(BodyFlags::ENDS_WITH_CRLF);
        assert_eq!(scanner.summary(), BodySummary { flags, ..BodySummary::default() });
        let again = scanner.scan(b".\r\n");
        assert_eq!(again, Scanned { consumed: 0, body: 0, end: true }, "after the end");
    }
}

#[test]
fn an_undecided_end_waits_without_being_counted() {
    let mut scanner = DataScanner::new();
    let waiting = Scanned { consumed: 0, body: 0, end: false };
    assert_eq!(scanner.scan(b"a\r\n."), Scanned { consumed: 3, body: 3, end: false });
    for again in [b"." as &[u8], b".", b".\r", b".\r"] {
        assert_eq!(scanner.scan(again), waiting);
    }
    assert_eq!(scanner.scan(b".\rb"), Scanned { consumed: 3, body: 3, end: false });
    assert_eq!(scanner.octets(), 6);
    assert!(scanner.summary().flags.contains(BodyFlags::LEADING_DOTS | BodyFlags::BARE_CR));
}

#[test]
fn bare_newlines_become_spaces_and_are_counted() {
    let mut input = b"a\rb\nc\r\n.\r\r\nd\n.\r\n.\r\nQUIT\r\n".to_vec();
    let mut scanner = DataScanner::new();
    let found = scanner.scan_replacing(&mut input);
    assert_eq!(input[..found.body], *b"a b c\r\n. \r\nd .\r\n");
    assert_eq!(input[found.consumed..], *b"QUIT\r\n");
    assert_eq!(scanner.replaced(), 4);
    assert_eq!(scanner.summary().crc32c, crc32c::crc32c(b"a b c\r\n. \r\nd .\r\n"));
    assert!(!scanner.summary().flags.contains(BodyFlags::BARE_CR));
    assert!(!scanner.summary().flags.contains(BodyFlags::BARE_LF));
}

#[test]
fn a_chunk_takes_its_octets_and_no_more() {
    for kernel in kernels() {
        let mut scanner = ChunkScanner::with_kernel(kernel);
        scanner.begin_chunk(9);
        let found = scanner.scan(b"a\r\n.");
        assert_eq!(found, Scanned { consumed: 4, body: 4, end: false });
        assert_eq!(scanner.remaining_octets(), 5);
        let found = scanner.scan(b"\r\n.b\rBDAT");
        assert_eq!(found, Scanned { consumed: 5, body: 5, end: true });
        // The CR that ends the first chunk has its LF in the second.
        scanner.begin_chunk(1);
        assert_eq!(scanner.scan(b"\nBDAT").consumed, 1);
        scanner.begin_chunk(0);
        let nothing = Scanned { consumed: 0, body: 0, end: true };
        assert_eq!(scanner.scan(b""), nothing);
        assert_eq!(scanner.summary(), summary_of(b"a\r\n.\r\n.b\r\n"));
    }
}

#[test]
fn a_chunk_of_any_announced_size_is_counted() {
    let mut scanner = ChunkScanner::new();
    scanner.begin_chunk(u64::MAX);
    assert_eq!(scanner.scan(b"abc"), Scanned { consumed: 3, body: 3, end: false });
    assert_eq!(scanner.remaining_octets(), u64::MAX - 3);
}

/// Long inputs of mostly text, with newlines and dots where they matter.
fn long_input() -> impl Strategy<Value = Vec<u8>> {
    let token = prop_oneof![
        4 => proptest::collection::vec(b' '..=b'~', 0..100),
        4 => Just(b"\r\n".to_vec()),
        1 => Just(b"\r\n.".to_vec()),
        1 => Just(b"\r\n..\r\n".to_vec()),
        1 => proptest::sample::select(ALPHABET.to_vec()).prop_map(|octet| vec![octet]),
        1 => proptest::collection::vec(any::<u8>(), 0..70),
    ];
    (proptest::collection::vec(token, 0..400), any::<bool>()).prop_map(|(tokens, ended)| {
        let mut input = tokens.concat();
        if ended {
            input.extend_from_slice(b"\r\n.\r\nNOOP\r\n");
        }
        input
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn long_data_is_judged_alike_in_any_pieces(
        input in long_input(),
        cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..12),
        replacing: bool,
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
        cuts.sort_unstable();
        let right = expected(&input, replacing);
        for kernel in kernels() {
            let scanner = DataScanner::with_kernel(kernel);
            let found = drive(scanner, &input, cuts.iter().copied(), replacing);
            prop_assert_eq!(&found, &right, "{:?}", kernel);
        }
    }

    #[test]
    fn long_chunks_are_judged_alike_in_any_pieces(
        input in long_input(),
        cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..12),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
        cuts.push(input.len());
        cuts.sort_unstable();
        for kernel in kernels() {
            let mut scanner = ChunkScanner::with_kernel(kernel);
            let mut from = 0;
            for (number, &cut) in cuts.iter().enumerate() {
                // Some pieces are chunks of their own, some belong to one chunk.
                if scanner.remaining_octets() == 0 {
                    let until = if number % 2 == 0 { cut } else { input.len() };
                    scanner.begin_chunk((until - from) as u64);
                }
                prop_assert_eq!(scanner.scan(&input[from..cut]).consumed, cut - from);
                from = cut;
            }
            prop_assert_eq!(scanner.summary(), summary_of(&input), "{:?}", kernel);
        }
    }
}
