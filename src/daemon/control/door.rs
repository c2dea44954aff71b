//! Who is let in, and how many.

use tracing::{debug, warn};

use super::super::run::Daemon;
use super::super::token::{ClientId, Token};
use super::client::Client;
use super::{Control, NO_ROOM_PAUSE};
use crate::sys::control_socket::{Peer, peer};
use crate::sys::stream_socket::StreamSocket;
use crate::sys::wait::Interest;
use crate::wire::control::{Reply, line};

/// The most clients at a time; beyond them the longest idle one makes way.
const MAX_CLIENTS: usize = 64;

/// How many are let in before others get their turn.
const ADMITTED_A_TURN: usize = 16;

impl Control {
    fn is_full(&self) -> bool {
        self.clients.len() >= MAX_CLIENTS
    }

    /// The client that has been idle for longest, where any is.
    fn idlest(&self) -> Option<ClientId> {
        let idle = self.clients.iter().filter(|(_, client)| client.is_idle());
        idle.min_by_key(|(_, client)| client.heard_at).map(|(id, _)| *id)
    }
}

impl Daemon {
    /// Lets in who waits at the control socket.
    pub(in super::super) fn admit(&mut self) {
        for _ in 0..ADMITTED_A_TURN {
            match self.control.socket.accept() {
                Ok(Some(stream)) => self.receive(stream),
                Ok(None) => return,
                Err(error) => {
                    // Reported at once again as long as someone waits: look again when there may be room.
                    warn!("the control socket cannot accept: {error}");
                    let _ = self.poller.remove(&self.control.socket);
                    self.control.admits_at = Some(self.now() + NO_ROOM_PAUSE);
                    return;
                }
            }
        }
    }

    fn receive(&mut self, stream: StreamSocket) {
        let now = self.now();
        let refusal = match peer(&stream) {
            Ok(peer) if peer.may_speak(self.control.group) => None,
            Ok(peer) => Some(refusal(&peer)),
            Err(error) => Some(format!("cannot find out who speaks: {error}")),
        };
        let mut client = Client::new(stream, now);
        if let Some(why) = refusal {
            debug!("control: {why}");
            client.part(&line(&Reply::failed("", why)));
            return;
        }
        if self.control.is_full() {
            let Some(idle) = self.control.idlest() else {
                let why = format!("there are {MAX_CLIENTS} clients already");
                client.part(&line(&Reply::failed("", why)));
                return;
            };
            self.let_client_go(idle, "others need the room, and this one was idle");
        }
        self.control.last_client += 1;
        let id = ClientId(self.control.last_client);
        if self.poller.add(&client.stream, Token::Client(id).pack(), Interest::Read).is_ok() {
            self.control.clients.insert(id, client);
        }
    }

    /// Tells a client why, and closes.
    pub(super) fn let_client_go(&mut self, id: ClientId, why: &str) {
        if let Some(client) = self.control.clients.get_mut(&id) {
            client.part(&line(&Reply::failed("", why)));
        }
        self.control.drop_client(id, &self.poller);
    }
}

fn refusal(peer: &Peer) -> String {
    format!(
        "user {} may not speak to this manager: only its owner, root and members of the `[control] group` may",
        peer.uid
    )
}
