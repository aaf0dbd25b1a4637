//! The configuration that a dialogue runs under: one text for the pure server and the program.

use std::fs::Permissions;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use argon2::{Algorithm, Argon2, Params, Version};
use data_encoding::BASE64_NOPAD;
use mailrace::config::{Config, Environment, Service};
use mailrace::recipients::Table;
use mailrace::smtp::server::{AuthOffer, ServerConfig};
use mailrace::tls::self_signed::{self, pem};

use super::format::Dialogue;

/// What the `@` lines say, with the defaults of the rest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Settings {
    service: String,
    bare_newline: String,
    message_size: String,
    recipients: String,
    received: String,
    tls: String,
    require_tls: String,
    /// Whether there is a file of recipients.
    roster: String,
    /// The client's address; a dialogue that names one is not played over TCP.
    pub client: Option<IpAddr>,
}

impl Settings {
    /// The settings of a dialogue.
    pub fn of(dialogue: &Dialogue) -> Settings {
        let mut settings = Settings::default();
        for (key, value) in &dialogue.settings {
            let place = match key.as_str() {
                "service" => &mut settings.service,
                "bare_newline" => &mut settings.bare_newline,
                "message_size" => &mut settings.message_size,
                "recipients" => &mut settings.recipients,
                "received" => &mut settings.received,
                "tls" => &mut settings.tls,
                "require_tls" => &mut settings.require_tls,
                "roster" => &mut settings.roster,
                "client" => {
                    settings.client = Some(value.parse().expect("@ client is an IP address"));
                    continue;
                }
                key => panic!("{}: `@ {key}` sets nothing", dialogue.name),
            };
            value.clone_into(place);
        }
        settings
    }

    /// The configuration file, for a gateway that keeps everything below `directory`.
    pub fn toml(&self, directory: &Path, smtp_port: u16, admin_port: u16) -> String {
        let Settings { service, bare_newline, message_size, recipients, received, .. } = self;
        let Settings { tls, require_tls, roster, .. } = self;
        let data = directory.join("data").display().to_string();
        let mail = directory.join("mail").display().to_string();
        // A warning where nobody logs in, and an error where somebody should and cannot.
        let auth = match &**service {
            "submission" => format!(
                "[auth]\nusers = \"users\"\nrequire_tls = {require_tls}\n\
                 mechanisms = [\"SCRAM-SHA-256\", \"PLAIN\", \"LOGIN\"]\n\
                 [[tls.certificate]]\nchain = \"chain.pem\"\nkey = \"key.pem\""
            ),
            _ => String::new(),
        };
        let known = match &**roster {
            "yes" => "[recipients]\nfile = \"roster\"\nvrfy = true\nexpn = true",
            _ => "",
        };
        format!(
            r#"hostname = "mx.example.com"
data_dir = "{data}"
workers = 1
[[listener]]
address = "127.0.0.1:{smtp_port}"
service = "{service}"
bare_newline = "{bare_newline}"
durability = "os"
tls = "{tls}"
{auth}
{known}
[relay]
networks = ["127.0.0.0/8"]
[domains]
accept = ["example.com", "*.example.org", "xn--bcher-kva.example"]
[limits]
message_size = "{message_size}"
recipients = {recipients}
received = {received}
[[route]]
recipient = "moved@example.com"
to = "reject:Moved to example.net"
[[route]]
recipient = "*@closed.example.org"
to = "reject:Closed for ever"
[[route]]
recipient = "*"
to = "maildir:{mail}/box"
[log]
events = "{data}/events.json"
[admin]
address = "127.0.0.1:{admin_port}"
"#
        )
    }

    /// Writes the files that the configuration names.
    pub fn prepare(&self, directory: &Path) {
        if self.roster == "yes" {
            std::fs::write(directory.join("roster"), ROSTER).expect("a file");
        }
        if self.service != "submission" {
            return;
        }
        let made = self_signed::generate(&["mx.example.com"], jiff::Timestamp::now());
        let made = made.expect("a key");
        let file = |name| directory.join(name);
        std::fs::write(file("chain.pem"), pem("CERTIFICATE", &made.certificate)).expect("a file");
        std::fs::write(file("key.pem"), pem("PRIVATE KEY", &made.key)).expect("a file");
        std::fs::write(file("users"), users()).expect("a file");
        std::fs::set_permissions(file("users"), Permissions::from_mode(0o600)).expect("ours");
    }

    /// Who is here, for the pure server.
    pub fn table(&self) -> Option<Table> {
        (self.roster == "yes").then(|| Table::parse(ROSTER, "+").expect("a good file"))
    }

    /// The configuration, for the pure server.
    pub fn config(&self) -> Config {
        let environment = Environment {
            host_name: "mx.example.com".to_owned(),
            cores: 1,
            descriptors: 1_024,
            directory: PathBuf::from("/srv"),
            user_exists: |_| true,
        };
        let text = self.toml(Path::new("/srv"), 2525, 8025);
        let checked = Config::parse(&text, Path::new("dialogue.toml"), &environment);
        checked.unwrap_or_else(|report| panic!("{}", report.render(false))).config
    }
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            service: "mx".to_owned(),
            bare_newline: "reject".to_owned(),
            message_size: "64KiB".to_owned(),
            recipients: "100".to_owned(),
            received: "100".to_owned(),
            tls: "off".to_owned(),
            require_tls: "false".to_owned(),
            roster: "no".to_owned(),
            client: None,
        }
    }
}

/// What the listener of a configuration tells its server.
pub fn server_config(config: &Config) -> Rc<ServerConfig> {
    Rc::new(ServerConfig {
        hostname: config.hostname.clone(),
        message_size: config.limits.message_size.0,
        recipients: config.limits.recipients,
        received: config.limits.received as u32,
        bare_newline: config.listeners[0].bare_newline,
        tls: config.listeners[0].tls,
        auth: (config.listeners[0].service == Service::Submission).then(|| AuthOffer {
            mechanisms: config.auth.mechanisms.clone().into(),
            only_secured: config.auth.require_tls,
            secrets_in_clear: !config.auth.require_tls,
            required: true,
        }),
        checks_senders: config.listeners[0].service == Service::Submission,
    })
}

/// The file of recipients, where there is one.  Of `example.org` it says nothing.
pub const ROSTER: &str = r#"# Who is here.
alice@example.com
"carol q"@example.com
alice.smith@example.com: alice@example.com
team@example.com: alice@example.com, bob@sub.example.org
all@example.com: all@example.com, team@example.com, alice.smith@example.com, carl@else.example
bob@sub.example.org
@everybody.example.org
"#;

/// The users file: `alice@example.com`, who may send as herself, and `office`, who may send as
/// anybody of `example.org`.  The password of both is `pencil`, under a hash that costs next to
/// nothing, since each dialogue is played a hundred times.
pub fn users() -> String {
    let parameters = Params::new(8, 1, 1, None).expect("the least that there is");
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, parameters);
    let (salt, mut hash) = (*b"saltsaltsaltsalt", [0; 32]);
    argon2.hash_password_into(b"pencil", &salt, &mut hash).expect("a salt of a good length");
    let (salt, hash) = (BASE64_NOPAD.encode(&salt), BASE64_NOPAD.encode(&hash));
    let hash = format!("argon2id=$argon2id$v=19$m=8,t=1,p=1${salt}${hash}");
    format!("alice@example.com {hash}\noffice {hash} senders=*@example.org\n")
}
