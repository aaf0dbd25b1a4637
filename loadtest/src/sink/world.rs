//! How the world behaves: who treats which messages how, limits, slow readers, extensions that
//! are missing or lied about.
//!
//! Read from a TOML file: `[default]` for every recipient, `[[domain]]` for those of one domain,
//! `[[sites]]` for many domains on many addresses, `[[port]]` for connections to one port, `[dns]`
//! for the names of all these.  Nothing in it means a sink that takes everything.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use serde::Deserialize;
use toml::Table;

use super::manners::Manners;
use super::settings::SinkSettings;
use super::sites::{Group, Sites, SitesError};
use super::zone::Naming;
use crate::runtime::tls::{TlsError, server_config};
use crate::units::{Octets, Span};

/// Triplets that greylisting remembers; the oldest are forgotten with the rest when it is full.
const TRIPLETS_MAX: usize = 1 << 20;

/// A world that can be opened.
#[derive(Debug)]
pub struct World {
    /// Where it listens.
    pub ports: Vec<Port>,
    /// How names are answered.
    pub naming: Naming,
    /// Many domains on many addresses.
    pub sites: Sites,
    /// `[default]` first, then those of the domains, sites and ports.
    manners: Vec<Manners>,
    /// Places in `manners` by domain in lower case; `*.example` stands as `.example`.
    domains: HashMap<String, usize>,
    greylist: Mutex<HashMap<u64, Instant>>,
    /// When the next message is allowed, by place in `manners` and site.
    allowed_at: Mutex<HashMap<(usize, Option<u32>), Instant>>,
    /// How connections may be encrypted; None: not at all.
    pub security: Option<Security>,
}

/// Who treats a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Treatment {
    /// The place of the manners.
    pub manners: usize,
    /// The site, if it is one's.
    pub site: Option<u32>,
}

/// How a port treats connections.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Where.
    pub listen: SocketAddr,
    /// What the greeting takes.
    #[serde(default)]
    pub greeting_delay: Option<Span>,
    /// Sessions at a time; the next gets 421.
    #[serde(default)]
    pub sessions: Option<usize>,
    /// Messages a connection; then 421.
    #[serde(default)]
    pub messages_per_connection: Option<u32>,
    /// Octets a second that are read from each client.
    #[serde(default)]
    pub read_rate: Option<Octets>,
    /// Extensions that are not offered.
    #[serde(default)]
    pub hide: Vec<Extension>,
    /// Extensions that are offered and do not work.
    #[serde(default)]
    pub lie: Vec<Extension>,
    /// How it treats messages whose domain has no entry; else `[default]`.
    #[serde(default)]
    pub messages: Option<Table>,
    /// The place of that among all manners.
    #[serde(skip)]
    pub manners: usize,
}

/// What the reply to EHLO offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Extension {
    /// RFC 2920.
    Pipelining,
    /// RFC 3030.
    Chunking,
    /// RFC 6152.
    #[serde(rename = "8BITMIME")]
    EightBitMime,
    /// RFC 1870.
    Size,
    /// RFC 3461.
    Dsn,
    /// RFC 6531.
    SmtpUtf8,
    /// RFC 2034.
    EnhancedStatusCodes,
}

impl Extension {
    /// All of them, as they stand in the reply.
    pub const ALL: [(Extension, &'static str); 7] = [
        (Extension::Pipelining, "PIPELINING"),
        (Extension::Chunking, "CHUNKING"),
        (Extension::EightBitMime, "8BITMIME"),
        (Extension::Size, "SIZE 104857600"),
        (Extension::Dsn, "DSN"),
        (Extension::SmtpUtf8, "SMTPUTF8"),
        (Extension::EnhancedStatusCodes, "ENHANCEDSTATUSCODES"),
    ];
}

/// A description of a world that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    /// The file.
    #[error("cannot read {0}: {1}")]
    Unreadable(PathBuf, #[source] std::io::Error),
    /// What is in it.
    #[error("{0}: {1}")]
    Wrong(PathBuf, #[source] Box<toml::de::Error>),
    /// A share that is none, or shares that are more than everything.
    #[error("shares must be from 0 to 1, and those of one list no more than 1 together")]
    Share,
    /// The certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A group of sites.
    #[error(transparent)]
    Sites(#[from] SitesError),
}

/// How connections may be encrypted.
#[derive(Debug, Clone)]
pub struct Security {
    /// With the sink's certificate.
    pub config: Arc<ServerConfig>,
    /// From the first octet, not by STARTTLS.
    pub is_implicit: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    default: Table,
    domain: Vec<Domain>,
    sites: Vec<Group>,
    port: Vec<Port>,
    dns: Naming,
}

#[derive(Debug, Deserialize)]
struct Domain {
    name: String,
    // Unknown keys cannot be refused through a flattened field; they are refused in `manners`.
    #[serde(flatten)]
    manners: Table,
}

impl World {
    /// Reads the world that the settings describe.
    ///
    /// # Errors
    /// See [`WorldError`].
    pub fn new(settings: &SinkSettings) -> Result<World, WorldError> {
        let file = match &settings.world {
            None => File::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| WorldError::Unreadable(path.clone(), error))?;
                toml::from_str(&text)
                    .map_err(|error| WorldError::Wrong(path.clone(), Box::new(error)))?
            }
        };
        let path = settings.world.clone().unwrap_or_default();
        let mut world = World::build(file, &settings.listen, &path)?;
        world.naming.listen = settings.dns.or(world.naming.listen);
        if let (Some(chain), Some(key)) = (&settings.chain, &settings.key) {
            let config = server_config(chain, key)?;
            world.security = Some(Security { config, is_implicit: settings.implicit });
        }
        Ok(world)
    }

    fn build(file: File, listen: &[SocketAddr], path: &Path) -> Result<World, WorldError> {
        let mut manners = Vec::new();
        // What a table leaves open is as in `[default]`.
        let mut add = |tables: &[&Table]| -> Result<usize, WorldError> {
            let mut merged = file.default.clone();
            tables.iter().for_each(|table| merged.extend((*table).clone()));
            let wrong = |error| WorldError::Wrong(path.into(), Box::new(error));
            manners.push(merged.try_into().map_err(wrong)?);
            Ok(manners.len() - 1)
        };
        add(&[])?;
        let mut domains = HashMap::new();
        for domain in &file.domain {
            let name = domain.name.trim_start_matches('*').to_ascii_lowercase();
            domains.insert(name, add(&[&domain.manners])?);
        }
        let mut sites = Sites::default();
        file.sites.iter().try_for_each(|group| sites.add(group, &mut add))?;
        let mut ports = file.port;
        let named: Vec<SocketAddr> = ports.iter().map(|port| port.listen).collect();
        ports.extend(listen.iter().filter(|at| !named.contains(at)).map(|at| Port::plain(*at)));
        if ports.is_empty() {
            // Sites have addresses of their own, which one socket takes all of.
            let address = if sites.is_empty() { [127, 0, 0, 1] } else { [0, 0, 0, 0] };
            ports.push(Port::plain(SocketAddr::from((address, 2600))));
        }
        for port in &mut ports {
            if let Some(own) = port.messages.take() {
                port.manners = add(&[&own])?;
            }
        }
        if !manners.iter().all(Manners::is_sound) || !file.dns.is_sound() {
            return Err(WorldError::Share);
        }
        let (greylist, allowed_at) = Default::default();
        let security = None;
        let naming = file.dns;
        Ok(World { ports, naming, sites, manners, domains, greylist, allowed_at, security })
    }

    /// Who treats a message to this recipient on a connection that is `default`'s.
    pub fn find(&self, path: &[u8], default: Treatment) -> Treatment {
        if self.domains.is_empty() && self.sites.is_empty() {
            return default;
        }
        let domain = crate::wire::command::domain(path);
        if let Some(site) = self.sites.of_domain(&domain) {
            return Treatment { manners: self.sites.site(site).manners, site: Some(site) };
        }
        let manners = self.manners_of(&domain);
        manners.map_or(default, |manners| Treatment { manners, site: None })
    }

    /// Whether a domain in lower case has a `[[domain]]`.
    pub fn has_domain(&self, domain: &str) -> bool {
        self.manners_of(domain).is_some()
    }

    fn manners_of(&self, domain: &str) -> Option<usize> {
        if let Some(place) = self.domains.get(domain) {
            return Some(*place);
        }
        let parents = domain.match_indices('.').map(|(dot, _)| &domain[dot..]);
        parents.filter_map(|parent| self.domains.get(parent)).copied().next()
    }

    /// The manners at a place that [`World::find`] gave.
    pub fn manners(&self, place: usize) -> &Manners {
        &self.manners[place]
    }

    /// Whether a triplet has waited long enough; a new one is remembered.
    pub fn is_known(&self, client: u64, from: &[u8], to: &[u8], wait: Duration) -> bool {
        let mut hasher = DefaultHasher::new();
        (client, from, to).hash(&mut hasher);
        let mut known = self.greylist.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= TRIPLETS_MAX {
            known.clear();
        }
        let now = Instant::now();
        *known.entry(hasher.finish()).or_insert(now) + wait <= now
    }

    /// Whether the rate of who treats a message has room for one more now; each site has its own.
    pub fn is_within_rate(&self, whose: Treatment, rate: f64) -> bool {
        let now = Instant::now();
        let step = Duration::from_secs_f64((1.0 / rate).min(3_600.0));
        let mut allowed_at = self.allowed_at.lock().unwrap_or_else(PoisonError::into_inner);
        let at = allowed_at.entry((whose.manners, whose.site)).or_insert(now);
        // What was not used in the last second may be used at once.
        let begin = (*at).max(now.checked_sub(Duration::from_secs(1)).unwrap_or(now));
        if begin > now {
            return false;
        }
        *at = begin + step;
        true
    }
}

impl Port {
    /// A port that takes everything.
    pub fn plain(listen: SocketAddr) -> Port {
        Port {
            listen,
            greeting_delay: None,
            sessions: None,
            messages_per_connection: None,
            read_rate: None,
            hide: Vec::new(),
            lie: Vec::new(),
            messages: None,
            manners: 0,
        }
    }

    /// The reply to EHLO.
    pub fn ehlo(&self, offers_tls: bool) -> Vec<u8> {
        let mut reply = b"250-sink.loadtest.example\r\n".to_vec();
        for (extension, text) in Extension::ALL {
            if !self.hide.contains(&extension) {
                reply.extend_from_slice(format!("250-{text}\r\n").as_bytes());
            }
        }
        if offers_tls {
            reply.extend_from_slice(b"250-STARTTLS\r\n");
        }
        reply.extend_from_slice(b"250 HELP\r\n");
        reply
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A world from the text of its file.
    pub fn world(text: &str) -> Result<World, String> {
        let file = toml::from_str(text).map_err(|error| error.to_string())?;
        World::build(file, &[], Path::new("")).map_err(|error| error.to_string())
    }

    #[test]
    fn domains_are_found_by_name_then_by_parent_then_by_port() {
        let world = world(
            "[default]\nlose = 0.1\n[[domain]]\nname = \"A.example\"\nlose = 0.2\n\
             [[domain]]\nname = \"*.example\"\nlose = 0.3\n\
             [[port]]\nlisten = \"127.0.0.1:1\"\nmessages = { lose = 0.4 }\n",
        )
        .unwrap();
        let lose = |path: &str, manners| {
            let whose = world.find(path.as_bytes(), Treatment { manners, site: None });
            world.manners(whose.manners).lose
        };
        assert_eq!(lose("x@a.EXAMPLE", 0), 0.2);
        assert_eq!(lose("x@b.c.example", 0), 0.3);
        assert_eq!(lose("x@other", 0), 0.1);
        assert_eq!(lose("x@other", world.ports[0].manners), 0.4);
    }

    #[test]
    fn what_a_table_leaves_open_is_as_in_the_default() {
        let world = world(
            "[default]\nlose = 0.1\nlatency = \"5ms\"\nrcpt = [{ share = 0.5, reply = \"busy\" }]\n\
             [[domain]]\nname = \"a.example\"\nlose = 0.2\n\
             [[domain]]\nname = \"b.example\"\nrcpt = []\n\
             [[sites]]\nname = \"s.example\"\naddress = \"127.8.0.1\"\nmessages = { damage = 0.3 }\n\
             except = [{ share = 1, messages = { damage = 0.4 } }]\n\
             [[port]]\nlisten = \"127.0.0.1:1\"\nmessages = { double = 0.5 }\n",
        )
        .unwrap();
        let of = |path: &str, manners| {
            let whose = world.find(path.as_bytes(), Treatment { manners, site: None });
            let found = world.manners(whose.manners);
            let is_slow = found.latency.is_some();
            (found.lose, found.damage, found.double, found.rcpt.len(), is_slow)
        };
        assert_eq!(of("x@a.example", 0), (0.2, 0.0, 0.0, 1, true));
        assert_eq!(of("x@b.example", 0), (0.1, 0.0, 0.0, 0, true));
        assert_eq!(of("x@d0.s.example", 0), (0.1, 0.4, 0.0, 1, true));
        assert_eq!(of("x@c.example", world.ports[0].manners), (0.1, 0.0, 0.5, 1, true));
    }

    #[test]
    fn mistakes_are_told() {
        for text in [
            "[default]\nloose = 0.1",
            "[[domain]]\nname = \"x\"\nloose = 0.1",
            "[default]\nlose = 1.5",
            "[default]\nrate = 0.0",
            "[default]\nlatency = \"9ms-1ms\"",
            "[default]\nrcpt = [{ share = 0.7, reply = \"busy\" }, { share = 0.7, reply = \"spam\" }]",
            "[default]\nrcpt = [{ share = 0.7, reply = \"250 fine\" }]",
            "[default]\nrcpt = [{ share = 0.7, reply = \"bussy\" }]",
            "[[port]]\nlisten = \"127.0.0.1:1\"\nhide = [\"STARTTLS\"]",
            "[[port]]\nlisten = \"127.0.0.1:1\"\nmessages = { loose = 0.1 }",
            "[[sites]]\nname = \"a\"\naddress = \"127.0.0.1\"\nmessages = { loose = 0.1 }",
            "[[sites]]\nname = \"a\"\naddress = \"127.0.0.1\"\ncount = 9",
            "[[sites]]\nname = \"a\"\naddress = \"127.0.0.1\"\nexcept = [{ share = 1, connect = \"x\" }]",
            "[dns]\ntruncate = 2.0",
            "[dns]\nttl = 5",
        ] {
            assert!(world(text).is_err(), "{text}");
        }
    }

    #[test]
    fn greylisting_puts_off_once_and_a_rate_holds() {
        let world = world("").unwrap();
        let wait = Duration::from_millis(30);
        assert!(!world.is_known(1, b"a", b"b", wait));
        std::thread::sleep(wait);
        assert!(world.is_known(1, b"a", b"b", wait));
        assert!(!world.is_known(2, b"a", b"b", wait));
        let taken = (0..1_000).filter(|_| world.is_within_rate(Treatment::default(), 10.0)).count();
        assert!((1..=11).contains(&taken), "{taken}");
    }
}
