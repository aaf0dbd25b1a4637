//! A client that comes through a proxy: XCLIENT says who it is, and the session begins anew with
//! it.
//!
//! From then on every check, limit, rate, event and trace header has the client's address.  What
//! the proxy has shown of itself, a certificate or a login, is not the client's and is forgotten.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Instant;

use super::login::Login;
use super::{End, ListenerState, Session, relay};
use crate::config::{Config, Service};
use crate::edge::screening::Screening;
use crate::listener;
use crate::smtp::reply::Refusal;
use crate::smtp::server::Server;
use crate::worker::Worker;

impl Session {
    /// Takes a proxy's word for whom it speaks; greets that client.
    ///
    /// # Errors
    /// How the session ended.
    pub(super) async fn introduce(&mut self) -> Result<(), End> {
        let Some(told) = self.server.introduction().cloned() else { return Ok(()) };
        self.flush().await.map_err(|_| End::Broken)?;
        self.release_next_hop().await;
        // Under the name and the address of the client before.
        self.end_screening();
        let changed = match (told.address, told.port) {
            // Neither the proxy's own rights nor those of the client before are its.
            _ if told.is_unknown => Err(Refusal::UnknownClient),
            (Some(ip), port) => self.change_client(SocketAddr::new(ip, port.unwrap_or(0))),
            (None, Some(port)) if self.introducer.is_some() => {
                self.peer.set_port(port);
                Ok(())
            }
            (None, _) => Ok(()),
        };
        if let Err(refusal) = changed {
            self.server.introduced(Instant::now(), Err(refusal));
            return Ok(());
        }
        self.begin_anew();
        self.server.introduced(Instant::now(), Ok(()));
        permit(&mut self.server, &self.worker.config, self.peer.ip());
        self.greet().await
    }

    fn change_client(&mut self, client: SocketAddr) -> Result<(), Refusal> {
        match listener::is_exempt(&self.worker, &self.listener, client) {
            true => self.admission.disclaim(),
            false => self.admission.claim(client.ip(), Instant::now())?,
        }
        let introducer = **self.introducer.get_or_insert_with(|| Box::new(self.peer));
        self.peer = client;
        self.worker.report_client(self.id, client, Some(introducer), &self.listener);
        Ok(())
    }

    fn begin_anew(&mut self) {
        if self.introducer.is_some() {
            self.screening = screening(&self.worker, &self.listener, self.peer);
        }
        self.certificate = None;
        self.login = Login::default();
    }
}

/// Lets a client do what its address allows.
pub(super) fn permit(server: &mut Server, config: &Config, client: IpAddr) {
    if relay::may_start_queues(config, client) {
        server.permit_etrn();
    }
    server.permit_inquiries(relay::may_inquire(config, client));
}

/// What the edge filter makes of a client of this listener; nothing of proxies, who speak for
/// others.
pub(super) fn screening(
    worker: &Rc<Worker>,
    state: &ListenerState,
    client: SocketAddr,
) -> Option<Box<Screening>> {
    let is_looked_at =
        state.listener.service == Service::Mx && !listener::is_in(&state.listener.xclient, client);
    is_looked_at.then(|| Screening::begin(worker, client.ip()).map(Box::new))?
}
