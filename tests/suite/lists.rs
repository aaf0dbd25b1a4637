//! Block lists for the tests: `rbldnsd` with entries of the test's choice, and `unbound` in front
//! of it and of other zones, as an operator has them.  Both on loopback addresses, unpacked by
//! `.ci/setup`, stopped at the end.
//!
//! A list answers as RFC 5782 has it: it lists its own test entries (127.0.0.2, ::ffff:127.0.0.2,
//! or the name TEST) and not 127.0.0.1 or INVALID, unless a test says otherwise.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use mailrace::dns::{Lookup, LookupError, Name, Record, RecordType, Resolver, ResolverConfig};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::gateway::wait_until;
use crate::interop::are_here;
use crate::nameserver::{NameServer, Nsd, free_port, in_loop};
use crate::postfix::cache;

/// What a list is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// Addresses: an entry a line, `192.0.2.0/24 :127.0.0.3:why` or `2001:db8::/32 :127.0.0.3:why`.
    Addresses,
    /// Names: `.spam.test :127.0.1.2:why`; with the dot for those below it too.
    Names,
}

/// A list.
#[derive(Debug, Clone, Copy)]
pub struct List<'a> {
    /// The zone below which it answers.
    pub zone: &'a str,
    /// What it is about.
    pub of: Of,
    /// How long its answers count, those that something is not listed too.
    /// At least 1: rbldnsd takes 0 for its default.
    pub ttl_seconds: u32,
    /// Its entries, without the test entries.
    pub entries: &'a str,
}

impl<'a> List<'a> {
    /// A list of addresses whose answers count for a minute.
    pub fn of_addresses(zone: &'a str, entries: &'a str) -> List<'a> {
        List { zone, of: Of::Addresses, ttl_seconds: 60, entries }
    }

    /// A list of names whose answers count for a minute.
    pub fn of_names(zone: &'a str, entries: &'a str) -> List<'a> {
        List { zone, of: Of::Names, ttl_seconds: 60, entries }
    }

    /// Entries that go with every list that works.
    fn test_entries(&self) -> &'static str {
        match self.of {
            Of::Addresses => "127.0.0.2 :127.0.0.2:test\n::ffff:7f00:2 :127.0.0.2:test\n",
            Of::Names => "test :127.0.0.2:test\n",
        }
    }
}

/// `rbldnsd` with lists; it can be stopped and started again at the same address.
pub struct Lists {
    home: TempDir,
    port: u16,
    /// The zones, with what they are about and their time to live.
    zones: Vec<(String, Of, u32)>,
    /// Counts changes of the entries.
    generation: u16,
    running: Option<NameServer>,
}

impl Lists {
    /// Starts it with these lists.
    pub fn start(lists: &[List]) -> Lists {
        let home = TempDir::new().expect("a temporary directory");
        let zones = lists.iter().map(|list| (list.zone.to_owned(), list.of, list.ttl_seconds));
        let zones = zones.collect();
        let mut server = Lists { home, port: free_port(), zones, generation: 0, running: None };
        for list in lists {
            server.write(list.zone, &format!("{}{}", list.test_entries(), list.entries));
        }
        server.start_again();
        server
    }

    /// Where it answers.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// From now on the list has these entries and no others: test entries are to be among them
    /// if it is to look sound.  Returns once it answers so.  (All addresses are two halves:
    /// `0.0.0.0/1` and `128.0.0.0/1`.)
    pub fn set(&mut self, zone: &str, entries: &str) {
        self.generation += 1;
        self.write(zone, entries);
        let server = self.running.as_ref().expect("it runs");
        let pid = Pid::from_raw(server.pid().cast_signed()).expect("a process id");
        kill_process(pid, Signal::HUP).expect("it runs");
        let [high, low] = self.generation.to_be_bytes();
        let expected = Ipv4Addr::new(127, 1, high, low);
        let generation = format!("{GENERATION}.{zone}");
        let is_read = || (addresses(self.address(), &generation) == [expected]).then_some(());
        wait_until(is_read).expect("rbldnsd reads the entries again");
    }

    /// From now on nobody answers there.
    pub fn stop(&mut self) {
        self.running = None;
    }

    /// After [`Lists::stop`].
    pub fn start_again(&mut self) {
        let home = self.home.path();
        let mut command = Command::new(cache("lists").join("root/usr/sbin/rbldnsd"));
        command.args(["-n", "-a", "-c", "0", "-l", "+questions"]);
        if rustix::process::geteuid().is_root() {
            // It does not run as root.
            chown(home, Some(NOBODY), Some(NOBODY)).expect("root may");
            command.arg("-u").arg(format!("{NOBODY}:{NOBODY}"));
        }
        command.arg("-b").arg(format!("127.0.0.1/{}", self.port));
        command.arg("-w").arg(home).current_dir(home);
        for (zone, of, _) in &self.zones {
            command.arg(format!("{zone}:generic:{zone}.{GENERATION}"));
            match of {
                Of::Addresses => command
                    .arg(format!("{zone}:ip4set:{zone}.ip4"))
                    .arg(format!("{zone}:ip6trie:{zone}.ip6")),
                Of::Names => command.arg(format!("{zone}:dnset:{zone}.names")),
            };
        }
        let zone = &self.zones[0].0;
        let server = NameServer::run(home, "rbldnsd", &mut command, self.port, zone);
        self.running = Some(server);
    }

    /// The names that it was asked for, with the type, as often and in the order in which it was:
    /// `2.0.0.127.list.test A`.
    pub fn questions(&self) -> Vec<String> {
        let log = fs::read_to_string(self.home.path().join("questions")).unwrap_or_default();
        let question = |line: &str| {
            // Time, client, name, type, class, and what was answered.
            let mut words = line.split_ascii_whitespace().skip(2);
            Some(format!("{} {}", words.next()?, words.next()?))
        };
        let is_ours = |question: &String| {
            let name = question.split(' ').next().unwrap_or_default();
            name.starts_with(GENERATION) || self.zones.iter().any(|(zone, ..)| zone == name)
        };
        log.lines().filter_map(question).filter(|question| !is_ours(question)).collect()
    }

    fn write(&self, zone: &str, entries: &str) {
        let known = self.zones.iter().find(|(known, ..)| known == zone);
        let (_, of, ttl) = known.expect("a list of this server");
        let head = format!(
            "$SOA {ttl} ns.{zone} x.{zone} 1 600 300 86400 {ttl}\n$NS {ttl} ns.{zone}\n$TTL {ttl}\n"
        );
        let file = |kind: &str, text: &str| {
            let path = self.home.path().join(format!("{zone}.{kind}"));
            let new = path.with_extension("new");
            fs::write(&new, format!("{head}{text}")).expect("a file");
            // It reads a file again whose time has changed, in whole seconds.
            let time = SystemTime::now() + Duration::from_secs(2 * u64::from(self.generation));
            let file = fs::File::options().append(true).open(&new).expect("a file");
            file.set_modified(time).expect("a file of ours");
            fs::rename(new, path).expect("a file");
        };
        let is_six = |line: &&str| line.split(' ').next().is_some_and(|word| word.contains(':'));
        let (six, four): (Vec<&str>, Vec<&str>) = entries.lines().partition(is_six);
        match of {
            Of::Addresses => {
                file("ip4", &four.join("\n"));
                file("ip6", &six.join("\n"));
            }
            Of::Names => file("names", entries),
        }
        let [high, low] = self.generation.to_be_bytes();
        file(GENERATION, &format!("{GENERATION} A 127.1.{high}.{low}\n"));
    }
}

/// The user that owns nothing.
const NOBODY: u32 = 65_534;

/// The name below each list that tells which entries it has by now.
const GENERATION: &str = "generation";

/// `unbound`, which asks others for the zones that it is told and knows of no further names.
pub struct Recursor {
    _home: TempDir,
    server: NameServer,
}

impl Recursor {
    /// Starts it; each zone with the server to ask.
    pub fn start(zones: &[(&str, SocketAddr)]) -> Recursor {
        Recursor::start_with("", zones)
    }

    /// The same, but it asks nobody a second time because the answer is late.
    pub fn start_patient(zones: &[(&str, SocketAddr)]) -> Recursor {
        let patience = " infra-cache-min-rtt: 20000\n unknown-server-time-limit: 20000\n";
        Recursor::start_with(patience, zones)
    }

    fn start_with(options: &str, zones: &[(&str, SocketAddr)]) -> Recursor {
        let home = TempDir::new().expect("a temporary directory");
        let port = free_port();
        let conf = recursor_conf(home.path(), port, options, zones);
        let server = NameServer::start(home.path(), "unbound", port, &conf, "localhost");
        Recursor { _home: home, server }
    }

    /// Where it answers.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }
}

/// Whole names only to those that it asks, so that the questions can be counted.
fn recursor_conf(home: &Path, port: u16, options: &str, zones: &[(&str, SocketAddr)]) -> String {
    let home = home.display();
    let zone = |(name, server): &(&str, SocketAddr)| {
        let (ip, port) = (server.ip(), server.port());
        format!("stub-zone:\n name: {name}\n stub-addr: {ip}@{port}\n")
    };
    let open = |(name, _): &(&str, SocketAddr)| format!(" local-zone: \"{name}.\" transparent\n");
    let (stubs, open): (String, String) =
        (zones.iter().map(zone).collect(), zones.iter().map(open).collect());
    format!(
        "server:\n interface: 127.0.0.1@{port}\n username: \"\"\n chroot: \"\"\n\
         directory: \"{home}\"\n pidfile: \"\"\n use-syslog: no\n do-daemonize: no\n\
         do-not-query-localhost: no\n do-ip6: no\n module-config: \"iterator\"\n num-threads: 1\n\
         qname-minimisation: no\n infra-host-ttl: 1\n infra-keep-probing: yes\n\
         local-zone: \".\" static\n{options}{open}\
         remote-control:\n control-enable: no\n{stubs}"
    )
}

/// The addresses of a name; none if there is no answer or no such name.
fn addresses(server: SocketAddr, name: &str) -> Vec<Ipv4Addr> {
    let address = |record: &Record| match record {
        Record::A(address) => Some(*address),
        _ => None,
    };
    lookup(server, name)
        .map(|records| records.iter().filter_map(address).collect())
        .unwrap_or_default()
}

fn lookup(server: SocketAddr, name: &str) -> Result<Vec<Record>, LookupError> {
    let timeout = Duration::from_secs(5);
    let config = ResolverConfig { timeout, ..ResolverConfig::with_servers(vec![server]) };
    let name = Name::parse(name).expect("a name");
    in_loop(async move { Resolver::new(config).lookup(&name, RecordType::A).await.result.clone() })
}

#[test]
fn the_lists_of_the_tests_answer_as_lists_do() {
    if !are_here(&["dns", "lists"]) {
        return;
    }
    let block = "127.20.0.0/16 :127.0.0.4:a bad network\n127.21.0.9 :127.0.0.9:\n\
        2001:db8:bad::/48 :127.0.0.6:six\n";
    let names = List { ttl_seconds: 1, ..List::of_names("names.test", ".spam.test :127.0.1.2:\n") };
    let mut lists = Lists::start(&[List::of_addresses("block.test", block), names]);
    let nsd = Nsd::start(&[("mail.test", "@ A 192.0.2.7\n")]);
    let recursor = Recursor::start(&[
        ("block.test", lists.address()),
        ("names.test", lists.address()),
        ("mail.test", nsd.address()),
    ]);
    for server in [lists.address(), recursor.address()] {
        for (name, expected) in [
            ("2.0.0.127.block.test", Some([127, 0, 0, 2])),
            ("1.0.0.127.block.test", None),
            ("77.3.20.127.block.test", Some([127, 0, 0, 4])),
            ("9.0.21.127.block.test", Some([127, 0, 0, 9])),
            ("8.0.21.127.block.test", None),
            (
                "2.0.0.0.0.0.f.7.f.f.f.f.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.block.test",
                Some([127, 0, 0, 2]),
            ),
            (
                "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.a.b.0.8.b.d.0.1.0.0.2.block.test",
                Some([127, 0, 0, 6]),
            ),
            ("test.names.test", Some([127, 0, 0, 2])),
            ("invalid.names.test", None),
            ("a.b.spam.test.names.test", Some([127, 0, 1, 2])),
            ("ham.test.names.test", None),
        ] {
            let expected: Vec<Ipv4Addr> = expected.map(Ipv4Addr::from).into_iter().collect();
            assert_eq!(addresses(server, name), expected, "{name} at {server}");
        }
    }
    assert_eq!(addresses(recursor.address(), "mail.test"), [Ipv4Addr::new(192, 0, 2, 7)]);
    assert_eq!(lookup(recursor.address(), "nobody.knows.example"), Err(LookupError::NoName));

    // The recursor keeps answers; the list is asked once.
    let asked = |lists: &Lists, wanted: &str| {
        lists.questions().iter().filter(|question| *question == wanted).count()
    };
    let before = asked(&lists, "1.0.20.127.block.test A");
    for _ in 0..3 {
        assert_eq!(addresses(recursor.address(), "1.0.20.127.block.test").len(), 1);
    }
    assert_eq!((before, asked(&lists, "1.0.20.127.block.test A")), (0, 1));

    // A list that goes wrong, is gone, and is there again.
    lists.set("block.test", "0.0.0.0/1 :127.0.0.2:half the world\n");
    assert_eq!(addresses(lists.address(), "1.0.0.127.block.test").len(), 1);
    lists.set("names.test", "");
    let is_gone = || addresses(recursor.address(), "test.names.test").is_empty().then_some(());
    wait_until(is_gone).expect("the recursor asks again");
    lists.stop();
    let gone = lookup(recursor.address(), "new.names.test");
    assert!(matches!(gone, Err(LookupError::Temporary { .. })), "{gone:?}");
    lists.start_again();
    lists.set("names.test", "new :127.0.1.9:\n");
    let is_back = || (addresses(recursor.address(), "new.names.test").len() == 1).then_some(());
    wait_until(is_back).expect("the recursor asks again");
}
