//! What a sink is to do, as the user says it.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use crate::units::Span;

/// The options of `sink`.
#[derive(Debug, Clone, Default, Args)]
pub struct SinkSettings {
    /// Where to listen, as often as you like [default: 127.0.0.1:2600].
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Vec<SocketAddr>,
    /// How the world behaves: a TOML file.
    #[arg(long, value_name = "FILE")]
    pub world: Option<PathBuf>,
    /// Answer questions for the names of the world here, by UDP and TCP: MX and addresses.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub dns: Option<SocketAddr>,
    /// Offer STARTTLS with the certificate of this file, in PEM.
    #[arg(long, value_name = "FILE", requires = "key")]
    pub chain: Option<PathBuf>,
    /// Its private key.
    #[arg(long, value_name = "FILE", requires = "chain")]
    pub key: Option<PathBuf>,
    /// With --chain: encrypted from the first octet, in place of STARTTLS.
    #[arg(long, requires = "chain")]
    pub implicit: bool,
    /// Record what arrives in this file.
    #[arg(long, value_name = "FILE")]
    pub ledger: Option<PathBuf>,
    /// Threads [default: half of the cores].
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Stop after so many messages.
    #[arg(long, value_name = "M")]
    pub messages: Option<u64>,
    /// Stop after so long.
    #[arg(long, value_name = "TIME")]
    pub time: Option<Span>,
    /// Print the summary as JSON.
    #[arg(long)]
    pub json: bool,
    /// No moving line.
    #[arg(long, short)]
    pub quiet: bool,
}

impl SinkSettings {
    /// How many threads there will be.
    pub fn thread_count(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.unwrap_or(cores.div_ceil(2)).clamp(1, 1_024)
    }
}
