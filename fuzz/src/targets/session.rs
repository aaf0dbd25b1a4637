//! A whole session, octets in: well-formed replies, bounded memory, the same replies and the same
//! messages however the octets are cut.  What each message must be is checked by the driver of the
//! dialogues.

use std::sync::LazyLock;

use mailrace::config::Config;

use super::{Input, cut};
use crate::dialogue::format::Dialogue;
use crate::dialogue::judge::{same, well_formed};
use crate::dialogue::machine::Machine;
use crate::dialogue::settings::Settings;

/// Small limits, so that they are met.
static CONFIGS: LazyLock<[Config; 2]> = LazyLock::new(|| {
    ["reject", "space"].map(|bare_newline| {
        let text = format!(
            "# fuzz\n@ bare_newline={bare_newline}\n@ message_size=1KiB\n@ received=10\n@ recipients=100\n"
        );
        match Dialogue::parse("fuzz", &text) {
            Ok(dialogue) => Settings::of(&dialogue).config(),
            Err((line, wrong)) => panic!("line {line}: {wrong}"),
        }
    })
});

/// Which listener, how the octets are cut, and what the client sends.
pub fn run(octets: &[u8]) {
    let mut input = Input(octets);
    let config = &CONFIGS[input.below(2)];
    let seed = input.octet();
    let whole = play(config, input.0, 0);
    for line in whole.replies.split_inclusive(|&octet| octet == b'\n') {
        if let Err(wrong) = well_formed(line) {
            panic!("{wrong}");
        }
    }
    for seed in [1, seed] {
        if let Err(wrong) = same(&play(config, input.0, seed), &whole) {
            panic!("cut by {seed}: {wrong}");
        }
    }
}

fn play(config: &Config, stream: &[u8], seed: u8) -> Machine {
    let mut machine = Machine::with_config(config.clone(), None);
    cut(stream, seed).for_each(|piece| machine.receive(piece));
    machine
}
