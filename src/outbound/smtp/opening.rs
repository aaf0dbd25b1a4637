//! The first words of a connection: TLS from the first octet where the route says so, greeting,
//! EHLO, STARTTLS, AUTH.
//!
//! Here each side speaks in its turn, so the stream is whole still, as a handshake needs it.  When
//! TLS does not come about and the site's policy does not insist, that is remembered: the site has
//! not failed, and the next connection goes in clear.

use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;

use crate::config::Target;
use crate::delivery::reach::Reach;
use crate::limits;
use crate::runtime::buffer::{self, Account, Buffer};
use crate::runtime::socket::{Stream, StreamError};
use crate::smtp::client::{
    Client, ClientAction, ConnectionCause, ConnectionFailure, Login, LoginTrouble, Stage, StartTls,
    TlsTrouble,
};
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

#[cfg(test)]
mod tests {
    use super::*;

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
