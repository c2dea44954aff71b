//! Who is let in, and how many.

use std::io;

use tracing::{debug, warn};

use super::super::host::Host;
use super::super::token::{ClientId, Poller, Token, Watched};
use super::client::{Client, Trust};
use super::{Asked, Control};
use crate::sys::control_socket::{Peer, peer};
use crate::sys::stream_socket::StreamSocket;
use crate::sys::wait::Interest;
use crate::wire::control::{Reply, line};

/// The most clients at a time; beyond them the longest idle one makes way.
const MAX_CLIENTS: usize = 64;

/// The most beside them of root and our own user, by the control socket: members of the group cannot lock these out.
const MAX_OWNERS: usize = 8;

/// The most beside them that have yet to show the token: they cannot push out those who may speak.
const MAX_UNPROVEN: usize = 16;

/// How many are let in before others get their turn.
const ADMITTED_A_TURN: usize = 16;

/// A way in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The control socket.
    File,
    /// `[control] tcp`.
    Tcp,
}

/// Why somebody is not let in, and how he could be.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) why: String,
    pub(super) hint: Option<&'static str>,
}

impl From<String> for Refused {
    fn from(why: String) -> Self {
        Self { why, hint: None }
    }
}

impl Control {
    /// The client that has been idle for longest, where any is; `newcomer` is none.
    fn idlest(&self, newcomer: Option<ClientId>) -> Option<ClientId> {
        let idle = self
            .clients
            .iter()
            .filter(|(id, client)| client.is_idle() && !client.trust.is_unproven() && newcomer != Some(**id));
        idle.min_by_key(|(_, client)| client.heard_at).map(|(id, _)| *id)
    }

    /// How many there are who may speak, or else who have yet to show the token.
    fn count(&self, unproven: bool) -> usize {
        self.clients.values().filter(|client| client.trust.is_unproven() == unproven).count()
    }

    /// Decides about somebody who has come.
    ///
    /// # Errors
    ///
    /// What he is told.
    fn judge(&self, door: Door, stream: &StreamSocket) -> Result<Trust, Refused> {
        match door {
            Door::File => match peer(stream) {
                Ok(peer) if peer.may_speak(self.group) => Ok(Trust::Full),
                Ok(peer) => Err(refusal(&peer).into()),
                Err(error) => Err(unknown(&error)),
            },
            Door::Tcp => Ok(Trust::Unproven),
        }
    }

    /// Waits for clients.
    ///
    /// # Errors
    ///
    /// Those of `epoll_ctl(2)`.
    pub(super) fn watch_doors(&self, poller: &Poller) -> io::Result<()> {
        self.socket.watch(poller, Token::Control, Interest::Read)?;
        self.tcp.as_ref().map_or(Ok(()), |tcp| tcp.watch(poller, Token::ControlTcp, Interest::Read))
    }

    /// Leaves clients that connect in the queue.
    pub(super) fn close_doors(&self) {
        self.socket.unwatch();
        self.tcp.iter().for_each(Watched::unwatch);
    }

    /// Lets in clients that wait at a door, and returns what they ask for.
    pub(in super::super) fn admit(&mut self, door: Door, host: &mut Host) -> Vec<Asked> {
        let mut requests = Vec::new();
        for _ in 0..ADMITTED_A_TURN {
            let accepted = match door {
                Door::File => self.socket.accept(),
                Door::Tcp => self.tcp.as_ref().map_or(Ok(None), |tcp| tcp.accept()),
            };
            match accepted {
                Ok(Some(stream)) => requests.extend(self.receive(door, stream, host)),
                Ok(None) => break,
                Err(error) => {
                    // Reported at once again as long as a client waits: accept again when there may be room.
                    warn!("the control socket cannot accept: {error}");
                    self.pause_accepting(host);
                    break;
                }
            }
        }
        requests
    }

    fn receive(&mut self, door: Door, stream: StreamSocket, host: &mut Host) -> Vec<Asked> {
        let mut requests = Vec::new();
        let judged = self.judge(door, &stream);
        // The kernel does not know who speaks by TCP.
        let end = (door == Door::Tcp).then(|| self.may_be_owner(&stream)).flatten();
        let judged = if end.is_some() { Ok(Trust::Examined) } else { judged };
        let trust = judged.as_ref().copied().unwrap_or(Trust::Unproven);
        let is_owner = door == Door::File && peer(&stream).is_ok_and(|peer| peer.may_speak(None));
        let mut client = Client::new(stream, trust, host.now());
        let refusal = match judged {
            Err(refused) => Some(refused),
            Ok(Trust::Unproven | Trust::Examined) => {
                requests.extend(self.make_room_for_unproven(host));
                None
            }
            Ok(Trust::Full | Trust::Wary) if self.make_room(None, is_owner, host) => None,
            Ok(Trust::Full | Trust::Wary) => Some(full().into()),
        };
        if let Some(Refused { why, hint }) = refusal {
            debug!("control: {why}");
            client.part(&line(&Reply { hint: hint.map(Into::into), ..Reply::failed("", why) }));
            client.stream.finish();
            return requests;
        }
        self.last_client += 1;
        let id = ClientId(self.last_client);
        if client.watch(&host.poller, id).is_ok() {
            self.clients.insert(id, client);
            match end {
                Some(end) => self.examinations.next.push((id, end)),
                // What it says first has mostly come by now: a client that shows the token at once never makes way for others.
                None if trust == Trust::Unproven => requests.extend(self.attend(id, host)),
                None => {}
            }
        }
        requests
    }

    /// Makes a place for one more client that may speak, or for `newcomer`, which has just shown that it may; returns whether there is
    /// one.
    pub(super) fn make_room(&mut self, newcomer: Option<ClientId>, is_owner: bool, host: &mut Host) -> bool {
        let others = self.count(false) - usize::from(newcomer.is_some());
        if others < MAX_CLIENTS + if is_owner { MAX_OWNERS } else { 0 } {
            return true;
        }
        let Some(idle) = self.idlest(newcomer) else { return false };
        self.let_client_go(idle, "others need the room, and this one was idle", host);
        true
    }

    /// Lets the oldest client go that has yet to show the token, unless what it has sent by now shows it; one that is examined goes
    /// last, as it waits for us.
    fn make_room_for_unproven(&mut self, host: &mut Host) -> Vec<Asked> {
        let mut requests = Vec::new();
        while self.count(true) >= MAX_UNPROVEN {
            let unproven = self.clients.iter().filter(|(_, client)| client.trust.is_unproven());
            let oldest = unproven.min_by_key(|(id, client)| (client.trust == Trust::Examined, **id));
            let Some((id, trust)) = oldest.map(|(id, client)| (*id, client.trust)) else { break };
            if trust == Trust::Unproven {
                requests.extend(self.attend(id, host));
            }
            if self.clients.get(&id).is_some_and(|client| client.trust.is_unproven()) {
                self.let_client_go(id, "others need the room, and this one has not shown the token", host);
            }
        }
        requests
    }

    /// Tells a client why, and closes.
    pub(super) fn let_client_go(&mut self, id: ClientId, why: &str, host: &mut Host) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.part(&line(&Reply::failed("", why)));
        }
        self.drop_client(id, host);
    }
}

/// What is said where nobody can make way.
pub(super) fn full() -> String {
    format!("there are {MAX_CLIENTS} clients already")
}

/// What is said where the kernel does not tell who has come.
pub(super) fn unknown(error: &io::Error) -> Refused {
    format!("cannot find out who speaks: {error}").into()
}

fn refusal(peer: &Peer) -> String {
    format!(
        "user {} may not speak to this manager: only its owner, root and members of the `[control] group` may",
        peer.uid
    )
}
