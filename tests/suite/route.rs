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
        let is_right = |(told, exit): &(String, i32)| told == expected.trim_start() && exit == code;
        // A machine that stands still for a second shows shorter times.
        let asked = || world.of_domain(domain);
        let found = std::iter::repeat_with(asked).take(3).find(is_right);
        let (told, exit) = found.unwrap_or_else(asked);
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
tls         opportunistic
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
    (
        "null.test",
        1,
        "
mx          null.test has a null MX, for 300 s, not validated
verdict     it would be accepted and come back with 5.1.10: the domain takes no mail (null MX)
",
    ),
    (
        "equal.test",
        0,
        "
mx          equal.test has MX records, for 300 s, not validated
               10 mx2.test  192.0.2.2, for 60 s, not validated
               10 mx3.test  192.0.2.3, for 60 s, not validated
site        mx2.test,mx3.test
            at most 7 connections, 100 messages on each, 4 at a time
tried       192.0.2.2:25  mx2.test
            192.0.2.3:25  mx3.test
            in this order; hosts of equal preference, and a host's addresses of one
            family, take turns at random; what has failed lately comes last
verdict     it would go to mx2.test now
",
    ),
    (
        "implicit.test",
        0,
        "
mx          implicit.test has no MX: it is its own mail host, for 60 s, not validated
            implicit.test  192.0.2.4, for 40 s, not validated
site        implicit.test
            at most 7 connections, 100 messages on each, 4 at a time
tried       192.0.2.4:25  implicit.test
verdict     it would go to implicit.test now
",
    ),
    (
        "nothing.test",
        1,
        "
mx          nothing.test: there is no such name, for 60 s, not validated
verdict     it would be accepted and come back with 5.1.2: there is no such domain
",
    ),
    (
        "empty.test",
        1,
        "
mx          empty.test has no MX: it is its own mail host, for 60 s, not validated
            empty.test  has no address
verdict     it would be accepted and come back with 5.4.4: no host takes mail for the domain
",
    ),
    (
        "gone.test",
        1,
        "
mx          gone.test has MX records, for 300 s, not validated
               10 nowhere.test  has no address: there is no such name
               20 empty.test    has no address
verdict     it would be accepted and come back with 5.4.4: no host takes mail for the domain
",
    ),
    (
        "aliased.test",
        0,
        "
mx          aliased.test has MX records, for 300 s, not validated
            an alias: aliased.test -> second-alias.test -> plain.test
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
",
    ),
    (
        "hostalias.test",
        0,
        "
mx          hostalias.test has MX records, for 300 s, not validated
               10 mxalias.test  192.0.2.2, for 60 s, not validated
                  an alias: mxalias.test -> mx2.test
site        mxalias.test
            at most 7 connections, 100 messages on each, 4 at a time
tried       192.0.2.2:25  mxalias.test
verdict     it would go to mxalias.test now
",
    ),
    (
        "b\u{fc}cher.test",
        0,
        "
mx          xn--bcher-kva.test has MX records, for 300 s, not validated
               10 xn--mx-eka.test  192.0.2.5, for 60 s, not validated
                  xn--mx-eka.test is ömx.test
site        xn--mx-eka.test
            at most 7 connections, 100 messages on each, 4 at a time
tried       192.0.2.5:25  xn--mx-eka.test
verdict     it would go to xn--mx-eka.test now
",
    ),
    (
        "ours.test",
        1,
        "
mx          ours.test has MX records, for 300 s, not validated
               10 gateway.test  is this gateway itself: cut off, with all that are no better
verdict     it would be accepted and come back with 5.4.6: mail for the domain loops back to this host (gateway.test)
",
    ),
    (
        "backup.test",
        0,
        "
mx          backup.test has MX records, for 300 s, not validated
               10 mx2.test      192.0.2.2, for 60 s, not validated
               20 gateway.test  is this gateway itself: cut off, with all that are no better
               20 mx3.test      is no better than this gateway: cut off (192.0.2.3, for 60 s, not validated)
               30 mx1.test      is no better than this gateway: cut off (2001:db8::1, 192.0.2.1, for 100 s, not validated)
site        mx2.test
            at most 7 connections, 100 messages on each, 4 at a time
tried       192.0.2.2:25  mx2.test
verdict     it would go to mx2.test now
",
    ),
    (
        "byaddress.test",
        1,
        "
mx          byaddress.test has MX records, for 300 s, not validated
               10 other.test  is this gateway itself: cut off, with all that are no better (192.0.2.77, for 60 s, not validated)
verdict     it would be accepted and come back with 5.4.6: mail for the domain loops back to this host (other.test)
",
    ),
    (
        "odd.test",
        0,
        "
mx          odd.test has MX records, for 300 s, not validated
               10 mx2.test      192.0.2.2, for 60 s, not validated
               20 .             is a null MX beside other records: passed over
               30 a\\040b.test.  is a name that no host can bear
               40 here.test     has no address that leads to a host (0.0.0.0, for 60 s, not validated)
site        mx2.test
            at most 7 connections, 100 messages on each, 4 at a time
tried       192.0.2.2:25  mx2.test
verdict     it would go to mx2.test now
",
    ),
    (
        "lost.test",
        75,
        "
mx          lost.test has MX records, for 300 s, not validated
               10 host.elsewhere  could not be looked up: REFUSED (SERVER)
verdict     it would be accepted and wait: the address of host.elsewhere could not be looked up: REFUSED (SERVER)
",
    ),
    (
        "hopeful.test",
        0,
        "
mx          hopeful.test has MX records, for 300 s, not validated
               10 host.elsewhere  could not be looked up: REFUSED (SERVER)
               20 mx2.test        192.0.2.2, for 60 s, not validated
site        host.elsewhere,mx2.test
            at most 7 connections, 100 messages on each, 4 at a time
tried       192.0.2.2:25  mx2.test
verdict     it would go to mx2.test now
",
    ),
    (
        "x.elsewhere",
        75,
        "
mx          x.elsewhere: REFUSED (SERVER), for 5 s, not validated
verdict     it would be accepted and wait: the mail hosts of x.elsewhere could not be looked up: REFUSED (SERVER)
",
    ),
    (
        "hop.test",
        0,
        "
next hop    mxalias.test, smtp, port 2526  192.0.2.2, for 60 s, not validated
                  an alias: mxalias.test -> mx2.test
site        smtp://mxalias.test:2526
            at most 7 connections, 100 messages on each, 4 at a time
tried       192.0.2.2:2526  mxalias.test
verdict     it would go to mxalias.test now
",
    ),
    (
        "lost-hop.test",
        75,
        "
next hop    nowhere.test, smtp, port 25  has no address: there is no such name
site        smtp://nowhere.test:25
            at most 7 connections, 100 messages on each, 4 at a time
verdict     it would be accepted and wait: the next hop nowhere.test has no address: there is no such name
",
    ),
    (
        "from-six.test",
        75,
        "
mx          from-six.test has MX records, for 300 s, not validated
               10 mx2.test  192.0.2.2, for 60 s, not validated
site        mx2.test
            at most 7 connections, 100 messages on each, 4 at a time
verdict     it would be accepted and wait: no host has an address that 2001:db8::99 can connect to
",
    ),
];
