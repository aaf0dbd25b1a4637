//! The line that moves while a run goes on, where standard error is a terminal.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often it is drawn anew.
const EVERY: Duration = Duration::from_millis(500);

/// One line of a terminal, drawn over again and again.
pub struct Progress {
    is_shown: bool,
    drawn_at: Instant,
    count: u64,
}

impl Progress {
    /// Shows nothing where standard error is no terminal or `is_quiet`.
    pub fn new(is_quiet: bool) -> Progress {
        let is_shown = !is_quiet && std::io::stderr().is_terminal();
        Progress { is_shown, drawn_at: Instant::now(), count: 0 }
    }

    /// Draws the line if it is time; `line` is given what came to the count a second since the
    /// last one.
    pub fn draw(&mut self, count: u64, line: impl FnOnce(f64) -> String) {
        let passed = self.drawn_at.elapsed();
        if !self.is_shown || passed < EVERY {
            return;
        }
        let rate = (count - self.count.min(count)) as f64 / passed.as_secs_f64();
        self.drawn_at = Instant::now();
        self.count = count;
        // Nothing depends on it: a terminal that has gone is no reason to stop.
        let _ = write!(std::io::stderr(), "\r\x1b[2K{}", line(rate));
    }

    /// Takes the line away.
    pub fn clear(&self) {
        if self.is_shown {
            let _ = write!(std::io::stderr(), "\r\x1b[2K");
        }
    }
}
