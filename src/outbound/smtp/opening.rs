//! The first words of a connection: TLS from the first octet where the route says so, greeting,
//! EHLO, STARTTLS, AUTH.
//!
//! Here each side speaks in its turn, so the stream is whole still, as a handshake needs it.  Where
//! that fails, [`judge`] tells whose failure it is, the same for the queue and for sessions that
//! wait.  When TLS does not come about and the site's policy does not insist, that is remembered:
//! the site has not failed, and the next connection goes in clear.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;

use crate::config::Target;
use crate::delivery::reach::Reach;
use crate::delivery::settle::{self, LOGIN_FAILED, TLS_FAILED, UNREACHABLE};
use crate::limits;
use crate::queue::site::SiteShared;
use crate::runtime::buffer::{self, Account, Buffer};
use crate::runtime::socket::{Stream, StreamError};
use crate::smtp::client::{
    Client, ClientAction, ConnectionCause, ConnectionFailure, Login, LoginTrouble, Stage, StartTls,
    TlsTrouble,
};
use crate::smtp::code::ReplyClass;
use crate::tls::TlsPolicy;
use crate::worker::Worker;

/// How a site's connections are encrypted.  What DANE and MTA-STS say of a domain will enter
/// here, as another policy for its site.
#[derive(Debug, Clone)]
pub struct Security {
    /// What is asked of a connection.
    pub policy: TlsPolicy,
    /// From the first octet (RFC 8314), not by STARTTLS.
    pub is_implicit: bool,
    /// What the next hop must prove to be called under [`TlsPolicy::Verified`]: SNI in any case.
    pub name: Option<ServerName<'static>>,
}

impl Security {
    /// How a connection to `host`, one of the hosts that `reach` leads to, is encrypted.
    pub fn of(reach: &Reach, host: &str) -> Security {
        Security {
            policy: reach.tls,
            is_implicit: matches!(reach.target, Target::Smtps { .. }),
            name: ServerName::try_from(host.trim_end_matches('.').to_owned()).ok(),
        }
    }

    /// What the machine does about STARTTLS; `is_broken` says that it failed there lately.
    pub fn starttls(&self, is_broken: bool) -> StartTls {
        match self.policy {
            _ if self.is_implicit => StartTls::Never,
            TlsPolicy::Off => StartTls::Never,
            TlsPolicy::Opportunistic if is_broken => StartTls::Never,
            TlsPolicy::Opportunistic => StartTls::IfOffered,
            TlsPolicy::Required | TlsPolicy::Verified => StartTls::Demanded,
        }
    }

    fn allows_clear(&self) -> bool {
        self.policy.allows_clear() && !self.is_implicit
    }
}

/// Whose failure it is that the peer takes no mail on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::outbound) enum Trouble {
    /// Of TLS alone, and mail may go there without: the next connection goes in clear.
    InClear,
    /// Of the host, by its reason's short name for the events: another one may take us.
    Host(&'static str),
    /// Of all hosts of the site, by its reason's short name.
    Site(&'static str),
}

impl Trouble {
    fn of(security: &Security, failure: Option<&ConnectionFailure>) -> Trouble {
        match failure.map(|failure| &failure.cause) {
            Some(ConnectionCause::Tls(_)) if security.allows_clear() => Trouble::InClear,
            Some(ConnectionCause::Tls(_)) => Trouble::Host(TLS_FAILED),
            Some(ConnectionCause::Login(LoginTrouble::Refused(reply)))
                if reply.class() == ReplyClass::TransientFailure =>
            {
                Trouble::Host(LOGIN_FAILED)
            }
            // The other hosts say the same, and each attempt is a strike against us.
            Some(ConnectionCause::Login(_)) => Trouble::Site(LOGIN_FAILED),
            _ => Trouble::Host(UNREACHABLE),
        }
    }
}

/// Speaks until the peer has introduced itself; `make` makes the machine when its greeting is
/// next.
///
/// # Errors
/// Why the peer takes no mail on this connection; none where it closed without a word.
pub(in crate::outbound) async fn open(
    worker: &Worker,
    reach: &Reach,
    security: &Security,
    mut stream: Stream,
    make: impl FnOnce(&Security, Option<Login>) -> Client,
) -> Result<(Client, Stream), Option<ConnectionFailure>> {
    if security.is_implicit
        && let Err(words) = shake_hands(worker, security, &mut stream).await
    {
        let cause = ConnectionCause::Tls(TlsTrouble::Handshake(words.into()));
        return Err(Some(ConnectionFailure { stage: Stage::StartTls, cause }));
    }
    let login = match login(worker, reach).await {
        Ok(login) => login,
        Err(words) => {
            let cause = ConnectionCause::Login(LoginTrouble::NoSecret(words.into()));
            return Err(Some(ConnectionFailure { stage: Stage::Login, cause }));
        }
    };
    let mut client = make(security, login);
    bind(&mut client, &stream);
    loop {
        while let Some(action) = client.poll_action() {
            match action {
                ClientAction::Send(octets) => send(&mut client, &mut stream, octets).await,
                ClientAction::StartTls => match shake_hands(worker, security, &mut stream).await {
                    Ok(()) => {
                        bind(&mut client, &stream);
                        client.tls_started(Instant::now());
                    }
                    Err(words) => client.tls_failed(&words),
                },
                ClientAction::Derive(derivation) => {
                    let keys = worker.blocking.run(move || derivation.derive()).await;
                    client.derived(Instant::now(), keys.as_ref());
                }
                ClientAction::Ready => return Ok((client, stream)),
                ClientAction::Failed(failure) => return Err(Some(failure)),
                ClientAction::Close => return Err(None),
                // No transaction has begun.
                ClientAction::SendBody { .. } | ClientAction::TransactionDone(_) => {}
            }
        }
        let deadline = client.deadline().ok_or(None)?;
        let input = Buffer::on(Account::Outbound, buffer::TINY);
        let (result, input) = stream.read(input, deadline).await;
        match result {
            Ok(octets) if octets > 0 => client.handle_bytes(Instant::now(), input.bytes()),
            Ok(_) | Err(StreamError::Io(_)) => client.handle_closed(),
            Err(StreamError::TimedOut) => client.handle_timeout(Instant::now()),
        }
    }
}

/// Whose failure it is that [`open`] gave, and what is to be said of it.  What it shows of the
/// site's TLS is remembered, and what concerns the operator is counted and reported.
pub(in crate::outbound) fn judge(
    worker: &Worker,
    site: &SiteShared,
    peer: Option<SocketAddr>,
    security: &Security,
    failure: Option<&ConnectionFailure>,
) -> (Trouble, String) {
    let trouble = Trouble::of(security, failure);
    let words = match failure {
        Some(failure) => settle::words_of_failure(failure),
        None => "the connection was closed before the greeting".to_owned(),
    };
    match failure.map(|failure| &failure.cause) {
        Some(ConnectionCause::Tls(_)) => {
            let goes_on = trouble == Trouble::InClear;
            worker.report_tls_failed_at(site.name(), peer, goes_on, &words);
            if goes_on {
                site.remember_broken_tls(worker.now_unix_ms() + TLS_BROKEN_MS, &words);
            }
        }
        Some(ConnectionCause::Login(_)) => {
            worker.metrics.smart_host_logins_failed.count();
            tracing::warn!(site = site.name(), words, "no login at the smart host");
        }
        _ => {}
    }
    (trouble, words)
}

/// What the site's route logs in with; its secret is read now, for it may have changed.
async fn login(worker: &Worker, reach: &Reach) -> Result<Option<Login>, String> {
    let Some(login) = reach.login.clone() else { return Ok(None) };
    let read = worker.blocking.run(move || login.credentials()).await;
    let credentials = match read {
        Some(Ok(credentials)) => credentials,
        Some(Err(error)) => return Err(error.to_string()),
        None => return Err("the secret could not be read".to_owned()),
    };
    Ok(Some(Login { credentials, nonce: worker.authority.nonce().into() }))
}

/// Lets a login be bound to the TLS beneath, if there is any.
fn bind(client: &mut Client, stream: &Stream) {
    if let Some(exporter) = stream.secured().and_then(|secured| secured.binding) {
        client.bind(exporter);
    }
}

async fn send(client: &mut Client, stream: &mut Stream, octets: Vec<u8>) {
    let deadline = client.deadline().unwrap_or_else(|| Instant::now() + LAST_WORD);
    let (result, octets) = stream.write_all(octets, deadline).await;
    client.recycle(octets);
    match result {
        Ok(()) => {}
        Err(StreamError::TimedOut) => client.handle_timeout(Instant::now()),
        Err(StreamError::Io(_)) => client.handle_closed(),
    }
}

async fn shake_hands(
    worker: &Worker,
    security: &Security,
    stream: &mut Stream,
) -> Result<(), String> {
    let config = worker.connector.config(security.policy).map_err(|error| error.to_string())?;
    let Some(name) = security.name.clone() else {
        return Err("the next hop has no name that TLS could ask for".into());
    };
    let deadline = Instant::now() + limits::TLS_HANDSHAKE;
    let done = stream.connect_tls(config, name, deadline).await;
    done.map(|_| ()).map_err(|error| error.to_string())
}

/// What a write may take where the machine waits for nothing.
const LAST_WORD: Duration = Duration::from_secs(5);
/// How long a site whose TLS has failed is sent to in clear, where its policy allows that.
const TLS_BROKEN_MS: u64 = 3_600_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smtp::reply_reader::ReplyReader;

    #[test]
    fn a_failure_is_blamed_on_those_who_would_do_the_same_again() {
        use TlsPolicy::{Opportunistic, Required, Verified};
        let reply = |text: &str| {
            let (_, reply) = ReplyReader::new().read(format!("{text}\r\n").as_bytes());
            reply.expect("it is whole").expect("it is a reply").into()
        };
        let tls = || Some(ConnectionCause::Tls(TlsTrouble::NotOffered));
        let login = |trouble| Some(ConnectionCause::Login(trouble));
        let later = login(LoginTrouble::Refused(reply("454 4.7.0 Later")));
        let never = login(LoginTrouble::Refused(reply("535 5.7.8 No")));
        let no_secret = login(LoginTrouble::NoSecret("gone".into()));
        let busy = Some(ConnectionCause::Refused(reply("421 4.3.2 Busy")));
        let late = Some(ConnectionCause::TimedOut);
        let table = [
            (Opportunistic, false, tls(), Trouble::InClear),
            (Opportunistic, true, tls(), Trouble::Host(TLS_FAILED)),
            (Required, false, tls(), Trouble::Host(TLS_FAILED)),
            (Verified, false, later, Trouble::Host(LOGIN_FAILED)),
            (Verified, false, never, Trouble::Site(LOGIN_FAILED)),
            (Verified, false, no_secret, Trouble::Site(LOGIN_FAILED)),
            (Opportunistic, false, busy, Trouble::Host(UNREACHABLE)),
            (Opportunistic, false, late, Trouble::Host(UNREACHABLE)),
            (Opportunistic, false, None, Trouble::Host(UNREACHABLE)),
        ];
        for (policy, is_implicit, cause, expected) in table {
            let security = Security { policy, is_implicit, name: None };
            let failure = cause.map(|cause| ConnectionFailure { stage: Stage::Greeting, cause });
            let trouble = Trouble::of(&security, failure.as_ref());
            assert_eq!(trouble, expected, "{policy:?} {is_implicit} {failure:?}");
        }
    }

    #[test]
    fn only_what_may_go_in_clear_goes_in_clear_after_a_failure() {
        let table = [
            (TlsPolicy::Off, StartTls::Never, StartTls::Never),
            (TlsPolicy::Opportunistic, StartTls::IfOffered, StartTls::Never),
            (TlsPolicy::Required, StartTls::Demanded, StartTls::Demanded),
            (TlsPolicy::Verified, StartTls::Demanded, StartTls::Demanded),
        ];
        for (policy, first, after_failure) in table {
            let security = Security { policy, is_implicit: false, name: None };
            assert_eq!(security.starttls(false), first);
            assert_eq!(security.starttls(true), after_failure);
            assert_eq!(policy.allows_clear(), after_failure == StartTls::Never);
            let implicit = Security { is_implicit: true, ..security };
            assert_eq!(implicit.starttls(false), StartTls::Never);
        }
    }
}
