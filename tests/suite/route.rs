//! `mailrace route` with a real name server: what is told of domains of every kind, and the exit
//! code.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::gateway::binary;
use crate::interop::are_here;
use crate::nameserver::Nsd;

const CONFIG: &str = r#"
hostname = "gateway.test"
data_dir = "data"
[[listener]]
address = "127.0.0.1:2525"
service = "relay"
[[listener]]
address = "192.0.2.77:25"
service = "mx"
[domains]
accept = ["ours.test"]
[delivery]
connections_per_site = 7
[[route]]
recipient = "*@hop.test"
to = "smtp://mxalias.test:2526"
[[route]]
recipient = "*@lost-hop.test"
to = "smtp://nowhere.test"
[[route]]
recipient = "*@from-six.test"
to = "mx"
source = "2001:db8::99"
[[route]]
recipient = "*"
to = "mx"
[dns]
servers = ["{server}"]
timeout = "1s"
"#;

const ZONE: &str = "
$ORIGIN test.
$TTL 300
@           SOA   ns x 1 3600 600 86400 60
@           NS    ns
ns          A     192.0.2.53
plain       MX    20 mx2
plain       MX    10 mx1
mx1         A     192.0.2.1
mx1    100  AAAA  2001:db8::1
mx2         A     192.0.2.2
equal       MX    10 mx2
equal       MX    10 mx3
mx3         A     192.0.2.3
null        MX    0 .
implicit 40 A     192.0.2.4
empty       TXT   \"no mail here\"
gone        MX    10 nowhere
gone        MX    20 empty
aliased     CNAME second-alias
second-alias CNAME plain
hostalias   MX    10 mxalias
mxalias     CNAME mx2
xn--bcher-kva MX  10 xn--mx-eka
xn--mx-eka  A     192.0.2.5
ours        MX    10 gateway
backup      MX    10 mx2
backup      MX    20 gateway
backup      MX    20 mx3
backup      MX    30 mx1
byaddress   MX    10 other
other       A     192.0.2.77
odd         MX    10 mx2
odd         MX    20 .
odd         MX    30 a\\ b
odd         MX    40 here
here        A     0.0.0.0
lost        MX    10 host.elsewhere.
hopeful     MX    10 host.elsewhere.
hopeful     MX    20 mx2
from-six    MX    10 mx2
";

/// A name server and a configuration that asks it.
struct World {
    nsd: Nsd,
    home: TempDir,
}

impl World {
    fn start() -> World {
        let nsd = Nsd::start(&[("test", ZONE)]);
        let home = TempDir::new().expect("a temporary directory");
        let config = CONFIG.replace("{server}", &nsd.address().to_string());
        fs::write(home.path().join("mailrace.toml"), config).expect("a file");
        World { nsd, home }
    }

    fn config(&self) -> PathBuf {
        self.home.path().join("mailrace.toml")
    }

    /// What the command says, the name server's address replaced, and its exit code.
    fn route(&self, arguments: &[&str]) -> (String, i32) {
        let mut command = Command::new(binary());
        let output = command.arg("route").args(arguments).arg("--config").arg(self.config());
        let output = output.output().expect("the binary is there");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.is_empty(), "{errors}");
        let text = String::from_utf8(output.stdout).expect("text");
        let code = output.status.code().expect("an exit code");
        (text.replace(&self.nsd.address().to_string(), "SERVER"), code)
    }

    /// What is told of mail to a domain, from the mail exchangers on.
    fn of_domain(&self, domain: &str) -> (String, i32) {
        let (text, code) = self.route(&[&format!("user@{domain}")]);
        let start = text.find("\nmx ").or_else(|| text.find("\nnext hop ")).expect(&text);
        (text[start + 1..].to_owned(), code)
    }
}

#[test]
fn domains_of_every_kind_are_told() {
    if !are_here(&["dns"]) {
        return;
    }
    let world = World::start();
    let mut wrong = String::new();
    for (domain, code, expected) in DOMAINS {
        let (told, exit) = world.of_domain(domain);
        if told != expected.trim_start() || exit != *code {
            wrong += &format!("{domain}, {exit}:\n{told}--- expected {code}:{expected}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn all_of_a_message_is_told() {
    if !are_here(&["dns"]) {
        return;
    }
    let world = World::start();
    let (told, code) = world.route(&["user@plain.test", "--from", "<>"]);
    assert_eq!((told.as_str(), code), (WHOLE.trim_start(), 0), "{told}");

    let (told, code) = world.route(&["user@plain.test", "--json"]);
    assert_eq!(code, 0);
    let told: Value = serde_json::from_str(&told).expect("one JSON document");
    assert_eq!(told["verdict"]["outcome"], "deliver");
    assert_eq!(told["route"]["number"], 4);
    assert_eq!(told["way"]["kind"], "mx");
    assert_eq!(told["way"]["ttl_seconds"], 300);
    assert_eq!(told["way"]["hosts"][1]["host"], "mx2.test");
    assert_eq!(told["attempts"][2]["address"], "192.0.2.2:25");
    assert_eq!(told["site"]["connections"], 7);
    assert_eq!(told["originator"], Value::Null);
    assert_eq!(told["dns"][0]["trusted"], true);
}

#[test]
fn a_name_server_that_is_gone_is_a_reason_to_wait() {
    if !are_here(&["dns"]) {
        return;
    }
    let mut world = World::start();
    world.nsd.stop();
    let (told, code) = world.route(&["user@plain.test"]);
    let last = told.lines().last().expect("a verdict");
    let wait = "verdict     it would be accepted and wait: the mail hosts of plain.test could not be looked up: ";
    assert!(code == 75 && last.starts_with(wait) && last.ends_with(" (SERVER)"), "{code} {told}");
}

const WHOLE: &str = "
recipient   user@plain.test
originator  <>
            a notice: nobody is told if it is late or cannot be delivered
taken by    127.0.0.1:2525 (relay), from 127.0.0.0/8, ::1/128
            192.0.2.77:25 (mx), from nobody
route       4 of 4: * -> mx
            not 1: *@hop.test
            not 2: *@lost-hop.test
            not 3: *@from-six.test
tls         off
schedule    tried again after 5m, 10m, 20m, 1h, 2h, then every 4h; its sender told after 4h; returned after 5d
dns         SERVER, trusted to validate
mx          plain.test has MX records, for 300 s, not validated
               10 mx1.test  2001:db8::1, 192.0.2.1, for 100 s, not validated
               20 mx2.test  192.0.2.2, for 60 s, not validated
site        mx1.test,mx2.test
            at most 7 connections, 100 messages on each, 4 at a time
tried       [2001:db8::1]:25  mx1.test
            192.0.2.1:25      mx1.test
            192.0.2.2:25      mx2.test
            in this order; hosts of equal preference, and a host's addresses of one
            family, take turns at random; what has failed lately comes last
verdict     it would go to mx1.test now
";

/// Domain, exit code, and what is told of it from its mail exchangers on.
const DOMAINS: &[(&str, i32, &str)] = &[
    ("null.test", 1, ""),
    ("equal.test", 0, ""),
    ("implicit.test", 0, ""),
    ("nothing.test", 1, ""),
    ("empty.test", 1, ""),
    ("gone.test", 1, ""),
    ("aliased.test", 0, ""),
    ("hostalias.test", 0, ""),
    ("b\u{fc}cher.test", 0, ""),
    ("ours.test", 1, ""),
    ("backup.test", 0, ""),
    ("byaddress.test", 1, ""),
    ("odd.test", 0, ""),
    ("lost.test", 75, ""),
    ("hopeful.test", 0, ""),
    ("x.elsewhere", 75, ""),
    ("hop.test", 0, ""),
    ("lost-hop.test", 75, ""),
    ("from-six.test", 75, ""),
];
