//! A Postfix for the tests: unpacked by `.ci/setup`, never installed, run with mounts and a process
//! namespace of its own, so that nothing of the machine is seen or changed and nothing is left.

use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::gateway::wait_until;

/// Ports that Postfix will listen on; chosen first, since both sides must know the other's.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// Offers everything that it can.
    pub chunking: u16,
    /// Does not offer CHUNKING.
    pub data: u16,
    /// Takes ten recipients in a transaction.
    pub ten: u16,
}

/// A Postfix that runs.  It takes mail for anybody; `nobody@...` gets 550, and so does a message with
/// the subject `unwanted`.
pub struct Postfix {
    home: TempDir,
    child: Child,
}

impl Ports {
    /// Three that are free now.
    pub fn choose() -> Ports {
        let listeners = [0; 3].map(|_| TcpListener::bind("127.0.0.1:0").expect("a port"));
        let [chunking, data, ten] =
            listeners.map(|listener| listener.local_addr().expect("bound").port());
        Ports { chunking, data, ten }
    }
}

impl Postfix {
    /// Starts it; mail for `to_gateway.test` goes to `gateway`, all other to `others`.
    pub fn start(ports: Ports, gateway: SocketAddr, others: SocketAddr) -> Postfix {
        Postfix::start_as(ports, gateway, others, None)
    }

    /// The same with TLS wherever the other side has it; `pem` is a key and its certificate.
    pub fn start_secured(
        ports: Ports,
        gateway: SocketAddr,
        others: SocketAddr,
        pem: &[u8],
    ) -> Postfix {
        Postfix::start_as(ports, gateway, others, Some(pem))
    }

    fn start_as(
        ports: Ports,
        gateway: SocketAddr,
        others: SocketAddr,
        pem: Option<&[u8]>,
    ) -> Postfix {
        let root = cache("postfix").join("root");
        assert!(rustix::process::geteuid().is_root(), "Postfix needs root to change its users");
        let home = TempDir::new().expect("a temporary directory");
        write_etc(&home.path().join("etc"), ports, gateway, others, pem);
        make_var(&home.path().join("var"));
        let log = fs::File::create(home.path().join("output")).expect("a file");
        let child = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", SCRIPT, "postfix"])
            .arg(home.path())
            .arg(&root)
            .current_dir(home.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn()
            .expect("unshare is there");
        let postfix = Postfix { home, child };
        let address = SocketAddr::from(([127, 0, 0, 1], ports.ten));
        let answers = wait_until(|| TcpStream::connect(address).ok());
        assert!(answers.is_some(), "Postfix does not answer:\n{}", postfix.log());
        postfix
    }

    /// Its log, and what its start printed.
    pub fn log(&self) -> String {
        let read = |file: &str| fs::read(self.home.path().join(file)).unwrap_or_default();
        let octets = [read("output"), read("var/log/mail.log")].concat();
        String::from_utf8_lossy(&octets).into_owned()
    }

    /// The lines of its log that one of its services wrote, and that hold `word`.
    pub fn log_of(&self, service: &str, word: &str) -> Vec<String> {
        let tag = format!(" postfix/{service}/smtpd[");
        let log = self.log();
        let lines = log.lines().filter(|line| line.contains(&tag) && line.contains(word));
        lines.map(str::to_owned).collect()
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        // With the first process of the namespace go all others.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where `.ci/setup` puts things aside.
pub fn cache_path(part: &str) -> PathBuf {
    let cache = match std::env::var_os("MAILRACE_TEST_CACHE") {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers"),
    };
    cache.join(part)
}

/// What `.ci/setup` has put aside.
pub fn cache(part: &str) -> PathBuf {
    let path = cache_path(part);
    assert!(path.exists(), "{} is not there: run .ci/setup", path.display());
    path
}

const SCRIPT: &str = r#"set -e
mount -t overlay overlay -o lowerdir="$1/etc:$2/etc:/etc" /etc
mount -t overlay overlay -o lowerdir="$2/usr:/usr" /usr
mount -t tmpfs tmpfs /run
mount --bind "$1/var" /var
postfix check
/usr/lib/postfix/sbin/master -d
"#;

const MAIN_CF: &str = "\
compatibility_level = 3.6
myhostname = postfix.test
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_recipient_restrictions =
    check_recipient_access inline:{ {nobody@chunking.test = 550 5.1.1 Nobody of that name}
                                    {nobody@data.test = 550 5.1.1 Nobody of that name} }
smtpd_peername_lookup = no
smtp_dns_support_level = disabled
smtp_host_lookup = native
local_header_rewrite_clients =
smtp_line_length_limit = 0
line_length_limit = 10000
message_size_limit = 60000000
header_checks = regexp:/etc/postfix/header_checks
smtputf8_enable = yes
maillog_file = /var/log/mail.log
alias_maps =
biff = no
";

const SECURED_CF: &str = "\
smtpd_tls_security_level = may
smtpd_tls_chain_files = /etc/postfix/tls.pem
smtpd_tls_received_header = yes
smtp_tls_security_level = may
";

/// One line a service: name, type, private, unprivileged, chroot, wake-up, processes, command.
const MASTER_CF: &str = "\
cleanup  unix  n - n - 0 cleanup
qmgr     unix  n - n 300 1 qmgr
rewrite  unix  - - n - - trivial-rewrite
bounce   unix  - - n - 0 bounce
defer    unix  - - n - 0 bounce
trace    unix  - - n - 0 bounce
verify   unix  - - n - 1 verify
proxymap unix  - - n - - proxymap
smtp     unix  - - n - - smtp
relay    unix  - - n - - smtp
error    unix  - - n - - error
retry    unix  - - n - - error
anvil    unix  - - n - 1 anvil
scache   unix  - - n - 1 scache
tlsmgr   unix  - - n 1000? 1 tlsmgr
postlog  unix-dgram n - n - 1 postlogd
";

fn write_etc(
    etc: &Path,
    ports: Ports,
    gateway: SocketAddr,
    others: SocketAddr,
    pem: Option<&[u8]>,
) {
    let mut main = MAIN_CF.to_owned();
    if let Some(pem) = pem {
        main += SECURED_CF;
        fs::create_dir_all(etc.join("postfix")).expect("a directory");
        fs::write(etc.join("postfix/tls.pem"), pem).expect("a file");
    }
    let hop = |to: SocketAddr| format!("smtp:[{}]:{}", to.ip(), to.port());
    let _ = writeln!(main, "relayhost = [{}]:{}", others.ip(), others.port());
    let _ = writeln!(main, "transport_maps = inline:{{ {{to-gateway.test = {}}} }}", hop(gateway));
    let mut master = MASTER_CF.to_owned();
    for (name, port, option) in [
        ("chunking", ports.chunking, "-o smtpd_recipient_limit=1000"),
        ("data", ports.data, "-o smtpd_discard_ehlo_keywords=chunking"),
        ("ten", ports.ten, "-o smtpd_recipient_limit=10"),
    ] {
        let _ = writeln!(
            master,
            "127.0.0.1:{port} inet n - n - - smtpd -o syslog_name=postfix/{name} {option}"
        );
    }
    let accounts = |file: &str, own: &str| {
        let text = fs::read_to_string(file).expect("readable");
        let others = text.lines().filter(|line| !line.starts_with("post"));
        others.map(|line| format!("{line}\n")).collect::<String>() + own
    };
    let user =
        |name: &str, id: u32| format!("{name}:x:{id}:{id}::/nonexistent:/usr/sbin/nologin\n");
    let group = |name: &str, id: u32| format!("{name}:x:{id}:\n");
    for (file, text) in [
        ("postfix/main.cf", main),
        ("postfix/master.cf", master),
        ("postfix/header_checks", "/^Subject: unwanted$/ REJECT Unwanted here\n".into()),
        ("passwd", accounts("/etc/passwd", &user("postfix", POSTFIX_ID))),
        (
            "group",
            accounts(
                "/etc/group",
                &(group("postfix", POSTFIX_ID) + &group("postdrop", POSTDROP_ID)),
            ),
        ),
        ("hosts", "127.0.0.1 localhost\n".into()),
        ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n".into()),
        ("resolv.conf", String::new()),
    ] {
        let path = etc.join(file);
        fs::create_dir_all(path.parent().expect("below etc")).expect("a directory");
        fs::write(path, text).expect("a file");
    }
}

fn make_var(var: &Path) {
    for directory in ["spool/postfix", "lib/postfix", "log", "tmp"] {
        fs::create_dir_all(var.join(directory)).expect("a directory");
    }
    let data = var.join("lib/postfix");
    chown(data, Some(POSTFIX_ID), Some(POSTFIX_ID)).expect("root may");
}

/// Numbers that no system gives out.
const POSTFIX_ID: u32 = 61_201;
const POSTDROP_ID: u32 = 61_202;
