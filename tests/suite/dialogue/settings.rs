//! The configuration that a dialogue runs under: one text for the pure server and the program.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use mailrace::config::{Config, Environment};
use mailrace::smtp::server::ServerConfig;

use super::format::Dialogue;

/// What the `@` lines say, with the defaults of the rest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Settings {
    service: String,
    bare_newline: String,
    message_size: String,
    recipients: String,
    received: String,
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
        let data = directory.join("data").display().to_string();
        let mail = directory.join("mail").display().to_string();
        format!(
            r#"hostname = "mx.example.com"
data_dir = "{data}"
workers = 1
[[listener]]
address = "127.0.0.1:{smtp_port}"
service = "{service}"
bare_newline = "{bare_newline}"
durability = "os"
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
    })
}
