//! A notice as the log takes it: like any other message, from ourselves.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::config::{Config, RouteIndex, Target};
use crate::delivery::notice::{Notice, Reporter};
use crate::delivery::sites::route_of;
use crate::message::{BodySummary, Durability, MessageId, Origin};
use crate::smtp::data::ChunkScanner;
use crate::spool::{NewBody, NewMessage};

/// A notice with all that its record needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parcel {
    /// The id under which it is stored.
    pub id: MessageId,
    /// What is sent to whom.
    pub notice: Notice,
    summary: BodySummary,
    origin: Origin,
}

impl Parcel {
    /// The parcel of a notice that `reporter` wrote.
    pub fn new(reporter: &Reporter<'_>, notice: Notice) -> Parcel {
        let mut scanner = ChunkScanner::new();
        scanner.begin_chunk(notice.content.len() as u64);
        scanner.scan(&notice.content);
        let ourselves = SocketAddr::from((IpAddr::V4(Ipv4Addr::LOCALHOST), 0));
        let origin = Origin {
            client: ourselves,
            listener: ourselves,
            helo: reporter.hostname.into(),
            accepted_unix_ms: reporter.now_unix_ms,
        };
        Parcel { id: reporter.id, summary: scanner.summary(), origin, notice }
    }

    /// The record.  Always durable: its cause is forgotten with it.
    pub fn message(&self) -> NewMessage<'_> {
        NewMessage {
            id: self.id,
            durability: Durability::Fsync,
            envelope: &self.notice.envelope,
            origin: &self.origin,
            summary: &self.summary,
            trace: &[],
            not_before_unix_ms: None,
            extensions: &[],
            body: NewBody::Inline(&self.notice.content),
        }
    }

    /// The routes of its recipients; `None` if one of them has none that takes mail.
    pub fn routes(&self, config: &Config) -> Option<Vec<RouteIndex>> {
        let route = |recipient: &crate::message::Recipient| {
            let route = route_of(config, &recipient.path, false)?;
            let takes_mail = !matches!(config.routes[route].to, Target::Reject { .. });
            takes_mail.then_some(route)
        };
        self.notice.envelope.recipients.iter().map(route).collect()
    }
}
