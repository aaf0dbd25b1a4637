//! What the gateway tells of each site: its events, its queue, its notices.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use mailrace::control::client::AdminClient;
use mailrace::control::port::{Action, Change, Filter};
use serde_json::Value;

use super::format::{Telling, Waiting};
use crate::gateway::files_in;

/// The books of one gateway.
pub struct Books {
    home: PathBuf,
    events: Mutex<Events>,
}

/// The event log as far as it has been read.
#[derive(Default)]
struct Events {
    file: Option<File>,
    /// A line whose end has not come yet.
    partial: Vec<u8>,
    by_site: HashMap<String, Vec<Telling>>,
}

impl Books {
    /// The books of the gateway in this directory, whose events go to `events.json`.
    pub fn new(home: &Path) -> Books {
        Books { home: home.to_owned(), events: Mutex::default() }
    }

    /// The events of a site after the first `count`.
    pub fn told(&self, site: &str, count: usize) -> Vec<Telling> {
        let mut events = self.events();
        events.read_on(&self.home.join("events.json"));
        let all = events.by_site.get(site).map_or(&[][..], Vec::as_slice);
        all[count..].to_vec()
    }

    /// What the queue has for a site, the oldest message first.
    pub fn queue(&self, site: &str) -> Vec<Waiting> {
        let listing = self.admin().list(of_site(site), None, 100).expect("the gateway answers");
        let waiting = listing.entries.iter().map(|entry| Waiting {
            state: entry.state.as_str().to_owned(),
            to: entry.to.iter().map(|path| local_part(path)).collect(),
            reason: entry.reason.clone().unwrap_or_default(),
        });
        waiting.collect()
    }

    /// Has a site's messages tried again; how many.
    pub fn retry(&self, site: &str) -> u64 {
        let change = Change { filter: of_site(site), all: true, ..Change::default() };
        self.admin().act(Action::Retry, &change).expect("the gateway answers").messages
    }

    /// The notices that have come to a sender, the oldest first.
    pub fn notices(&self, local: &str) -> Vec<Vec<u8>> {
        let files = files_in(&self.home.join("mail/home.test").join(local).join("new"));
        files.iter().map(|file| std::fs::read(file).expect("a delivered message")).collect()
    }

    fn admin(&self) -> AdminClient {
        AdminClient::new(&self.home.join("data")).expect("an event loop")
    }

    fn events(&self) -> MutexGuard<'_, Events> {
        self.events.lock().expect("no reader panics")
    }
}

impl Events {
    fn read_on(&mut self, path: &Path) {
        if self.file.is_none() {
            self.file = File::open(path).ok();
        }
        let Some(file) = &mut self.file else { return };
        file.read_to_end(&mut self.partial).expect("the events can be read");
        let whole = self.partial.iter().rposition(|&octet| octet == b'\n').map_or(0, |at| at + 1);
        let lines: Vec<u8> = self.partial.drain(..whole).collect();
        for line in lines.split(|&octet| octet == b'\n').filter(|line| !line.is_empty()) {
            // What a peer says must not end a line, break out of a string or spoil the encoding.
            let event: Value = serde_json::from_slice(line).expect("events are lines of JSON");
            self.take(&event);
        }
    }

    fn take(&mut self, event: &Value) {
        let Some(site) = event["site"].as_str() else { return };
        let kind = match event["event"].as_str() {
            Some("deferred") if event["reason"] == "site_unreachable" => "site",
            Some(kind @ ("delivered" | "deferred" | "bounced" | "expired")) => kind,
            _ => return,
        };
        let to = event["to"].as_array().into_iter().flatten();
        let to = to.map(|path| local_part(path.as_str().expect("an address"))).collect();
        let reply = event["reply"].as_str().unwrap_or_default().to_owned();
        let telling = Telling { kind: kind.to_owned(), to, reply };
        self.by_site.entry(site.to_owned()).or_default().push(telling);
    }
}

fn of_site(site: &str) -> Filter {
    Filter { site: Some(site.into()), ..Filter::default() }
}

fn local_part(path: &str) -> String {
    path.rsplit_once('@').map_or(path, |(local, _)| local).to_owned()
}
