//! `mailrace run`: the gateway itself, from the configuration to the last signal.

use std::io::{self, IsTerminal};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Failure, RunArgs, load};
use crate::config::{Config, Events, Target};
use crate::gateway::{Addresses, Gateway};

/// Runs until a signal ends it.
pub fn run(arguments: &RunArgs) -> Result<(), Failure> {
    let config = load(arguments.config.as_deref())?;
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
    let is_development = arguments.config.is_none();
    let events_on_stdout = config.log.events == Events::Stdout;
    let told = config.clone();
    // The signals are caught before anything is started that they could leave half done.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("cannot set up signals: {error}")))?;
    runtime.block_on(async {
        let mut signals = Signals::new()
            .map_err(|error| Failure::Failed(format!("cannot set up signals: {error}")))?;
        let gateway = Gateway::start(config).map_err(|error| Failure::Failed(error.to_string()))?;
        // Where standard output is not the events', scripts find the line there too.
        let ready = format!("ready: {}", gateway.addresses());
        eprintln!("{ready}");
        if !events_on_stdout {
            println!("{ready}");
        }
        if is_development {
            eprint!("{}", what_to_try(&told, gateway.addresses(), events_on_stdout));
        }
        signals.wait_for_the_end(&gateway).await;
        gateway.stop();
        Ok(())
    })
}

/// The signals that the gateway knows.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    reopen: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            reopen: signal(SignalKind::user_defined1())?,
        })
    }

    async fn wait_for_the_end(&mut self, gateway: &Gateway) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => break,
                _ = self.interrupt.recv() => break,
                _ = self.hang_up.recv() => {
                    tracing::warn!("this version reads its configuration at the start only; SIGHUP reads certificates, users, keys and recipients again");
                    gateway.reload();
                }
                _ = self.reopen.recv() => gateway.events().reopen(),
            }
        }
        tracing::info!("stopping: no new sessions, what is under way is finished");
    }
}

/// What a new operator can do now, as lines to paste.
fn what_to_try(config: &Config, addresses: &Addresses, events_on_stdout: bool) -> String {
    let Some((_, address)) = addresses.listeners.first() else { return String::new() };
    let target = config.routes.iter().next().map(|route| &route.to);
    let Some(Target::Maildir(maildir)) = target else { return String::new() };
    let mailbox = maildir.path("friend", "example.net");
    let program = std::env::current_exe().unwrap_or_else(|_| "mailrace".into());
    let events = if events_on_stdout { "Events follow as JSON lines.\n" } else { "" };
    format!(
        "\nNo configuration was given: these are the development defaults.  Mail is taken from this\n\
         machine only, and none leaves it.  Try, in another terminal:\n\n  \
         printf 'Subject: hello\\r\\n\\r\\nIt works.\\r\\n' | curl -sS smtp://{address} \\\n    \
         --mail-from you@example.com --mail-rcpt friend@example.net -T -\n  \
         cat {}/new/*\n  \
         {} queue count\n  \
         curl -s http://{}/metrics\n\n\
         Ctrl-C stops it.  {events}",
        mailbox.display(),
        program.display(),
        addresses.admin,
    )
}
