//! The clients, by the control socket and by TCP, in the loop with everything else.
//!
//! Nothing that a client does holds up the manager: every read and write is one that does not wait, a turn takes a
//! bounded piece of a client's text, lines, clients, unanswered requests and unread answers are bounded, and the dead and
//! the silent are let go. While no client is there, nothing here ever wakes the manager.
//!
//! ```text
//! door     who is let in, and how many                     tcp       the way in by TCP, and who may come by it
//! client   one connection: lines in, lines out             command   a request into an event, an outcome into a reply
//! status   how things stand                                survey    the child that looks at the workers for it
//! history  what happened when                              message   lines for the workers
//! local    who needs no token, under `local_owner`
//! ```

mod client;
mod command;
mod door;
mod history;
mod local;
mod message;
mod status;
mod survey;
mod tcp;

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::warn;

use self::client::Client;
pub(super) use self::client::{Standing, Trust};
pub(super) use self::door::Door;
use self::door::full;
pub(super) use self::history::History;
use self::local::Examinations;
pub(super) use self::survey::Ports;
use self::survey::Survey;
pub use self::tcp::{TcpError, say_where};
use super::handover::Reexec;
use super::host::Timer;
use super::run::Daemon;
use super::token::{ClientId, Poller, Watched};
use crate::core::ids::RequestId;
use crate::core::time::Mono;
use crate::sys::control_socket::ControlSocket;
use crate::sys::control_tcp::ControlTcp;
use crate::sys::handover::hand_over;
use crate::wire::control::{Reply, line};
use crate::wire::secret::Secret;

/// How soon it is looked for newcomers again where there was no descriptor for one.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(1);

/// The ways in and all who have come.
#[derive(Debug)]
pub struct Control {
    pub(super) socket: Watched<ControlSocket>,
    /// Who may come to it, beside the owner and root.
    group: Option<u32>,
    tcp: Option<Watched<ControlTcp>>,
    /// What lets anybody speak who comes by TCP; `None` where nothing does.
    pub(super) token: Option<Secret>,
    /// Whether the manager's user and root need no token on a loopback address.
    local_owner: bool,
    examinations: Examinations,
    clients: BTreeMap<ClientId, Client>,
    last_client: u64,
    /// Whom the core's answers go to.
    askers: BTreeMap<RequestId, Asker>,
    last_request: u64,
    /// When newcomers are looked for again, where there was no descriptor for one.
    admits_at: Option<Mono>,
    survey: Option<Survey>,
    /// The next survey is to tell whether anybody has a connection.
    next_counts: bool,
    /// Those who asked since the survey under way began: theirs is the next.
    next_survey: Vec<Asker>,
}

/// Who asked for something.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Asker {
    client: ClientId,
    /// What the client calls it.
    id: Option<serde_json::Value>,
    cmd: String,
    /// Whether the answer comes at the end.
    waits: bool,
}

impl Asker {
    /// Whether the answer comes at the end.
    pub(super) fn waits(&self) -> bool {
        self.waits
    }
}

hand_over!(Control as ControlState {
    socket: Watched<ControlSocket>,
    group: Option<u32>,
    tcp: Option<Watched<ControlTcp>>,
    token: Option<Secret>,
    local_owner: bool,
    examinations: Examinations,
    clients: BTreeMap<ClientId, Client>,
    last_client: u64,
    askers: BTreeMap<RequestId, Asker>,
    last_request: u64,
    admits_at: Option<Mono>,
    survey: Option<Survey>,
    next_counts: bool,
    next_survey: Vec<Asker>,
});

impl Control {
    /// Binds the control socket.
    ///
    /// # Errors
    ///
    /// Those of bind(2). That it cannot be opened to the group is a warning.
    pub fn bind(path: &Path, group: Option<u32>) -> io::Result<Self> {
        let mut control = Self {
            socket: ControlSocket::bind(path)?.into(),
            group: None,
            tcp: None,
            token: None,
            local_owner: false,
            examinations: Examinations::default(),
            clients: BTreeMap::new(),
            last_client: 0,
            askers: BTreeMap::new(),
            last_request: 0,
            admits_at: None,
            survey: None,
            next_counts: false,
            next_survey: Vec::new(),
        };
        control.open_to(group);
        Ok(control)
    }

    /// Binds the control socket anew, in place of the one that has lost its path.
    ///
    /// # Errors
    ///
    /// Those of bind(2).
    pub(super) fn bind_anew(&mut self, path: &Path) -> io::Result<()> {
        self.socket = ControlSocket::bind(path)?.into();
        let group = self.group.take();
        self.open_to(group);
        Ok(())
    }

    /// Lets a group in from now on, or the owner and root alone.
    pub(super) fn open_to(&mut self, group: Option<u32>) {
        if self.group == group {
            return;
        }
        self.group = group;
        if let Err(error) = self.socket.open_to(group) {
            warn!(
                "the control socket cannot be opened to `[control] group`, and is the owner's alone: {error}"
            );
        }
    }

    /// When clients are accepted again, where that is paused.
    pub(super) fn admits_at(&self) -> Option<Mono> {
        self.admits_at
    }

    /// Has everything watched again, by a new set.
    ///
    /// # Errors
    ///
    /// Those of `epoll_ctl(2)`.
    pub(super) fn watch(&self, poller: &Poller) -> io::Result<()> {
        if self.admits_at.is_none() {
            self.watch_doors(poller)?;
        }
        for (id, client) in &self.clients {
            client.watch(poller, *id)?;
        }
        Ok(())
    }

    pub(super) fn reply(&mut self, to: Asker, reply: Reply) {
        if let Some(client) = self.clients.get_mut(&to.client) {
            client.asked = client.asked.saturating_sub(1);
            client.say(&line(&Reply { id: to.id, ..reply }));
        }
    }

    /// Tells one who does not wait that it is under way.
    pub(super) fn accept(&mut self, asker: Asker) {
        let reply = Reply { outcome: Some("accepted".into()), ..Reply::ok(&asker.cmd) };
        self.reply(asker, reply);
    }

    /// Hears nothing more.
    fn turn_away(&self) {
        self.close_doors();
        self.clients.values().for_each(|client| client.stream.unwatch());
    }

    /// Answers those who wait for a look at workers that are no more.
    fn give_up_survey(&mut self) {
        let under_way = self.survey.take().into_iter().flat_map(Survey::into_askers);
        let askers: Vec<_> = under_way.chain(mem::take(&mut self.next_survey)).collect();
        for asker in askers {
            let reply = Reply::failed(&asker.cmd, "the service has ended");
            self.reply(asker, reply);
        }
    }
}

impl Daemon {
    /// Takes what a client has written, as much as one may write before others get their turn.
    pub(super) fn attend(&mut self, id: ClientId) {
        let now = self.now();
        let Some(client) = self.control.clients.get_mut(&id) else { return };
        if client.has_gone() {
            self.drop_client(id);
            return;
        }
        let was_unproven = client.trust.is_unproven();
        let requests = client.listen(now, self.control.token.as_ref());
        let has_proven = was_unproven && !client.trust.is_unproven();
        if has_proven && !self.make_room(Some(id), false) {
            self.let_client_go(id, &full());
            return;
        }
        for request in requests {
            self.take_request(id, request);
        }
    }

    /// Brings to the clients what there is for them, at the end of a turn.
    pub(super) fn serve_clients(&mut self) {
        self.accept_for_those_who_do_not_wait();
        // What is said at the end is said when all else has ended: then it is true. Nothing more is heard until then.
        if self.ended {
            self.control.turn_away();
            return;
        }
        let now = self.now();
        let mut gone = Vec::new();
        for (id, client) in &mut self.control.clients {
            client.flush(now);
            if client.is_over() || client.watch(&self.poller, *id).is_err() {
                gone.push(*id);
            } else {
                self.timers.set(Timer::Client(*id), client.deadline());
            }
        }
        for id in gone {
            self.drop_client(id);
        }
    }

    /// Closes the connection of a client, if it is there.
    fn drop_client(&mut self, id: ClientId) {
        self.timers.clear(Timer::Client(id));
        if let Some(mut client) = self.control.clients.remove(&id) {
            client.stream.unwatch();
            client.stream.finish();
        }
    }

    /// Closes the connection of a client that has been silent, or has not read, for too long.
    pub(super) fn end_late_client(&mut self, id: ClientId) {
        let now = self.now();
        let Some(client) = self.control.clients.get(&id) else { return };
        // It may have said something in the turn in which its time was over.
        if client.deadline().is_some_and(|at| at <= now) {
            let why = client.why_late();
            self.let_client_go(id, why);
        }
    }

    /// Accepts clients again, where there was no descriptor for one before.
    pub(super) fn accept_again(&mut self) {
        self.control.admits_at = None;
        if self.control.watch_doors(&self.poller).is_err() {
            self.pause_accepting();
        }
    }

    /// Leaves clients that connect in the queue for a moment.
    fn pause_accepting(&mut self) {
        self.control.close_doors();
        let at = self.now() + NO_ROOM_PAUSE;
        self.control.admits_at = Some(at);
        self.timers.set(Timer::Accept, at);
    }

    /// Ends the manager's part: lets go of all that it held, and then tells those who wait that it is over.
    pub fn part(mut self) {
        self.control.socket.remove();
        self.control.tcp = None;
        for asker in self.successor.wish.take().map(Reexec::into_askers).into_iter().flatten() {
            let reply = Reply::failed(&asker.cmd, "the service has ended");
            self.control.reply(asker, reply);
        }
        let mut control = self.into_control();
        control.give_up_survey();
        for client in control.clients.values_mut() {
            client.flush(Mono::ZERO);
        }
    }

    /// Drops everything else: sockets, the lock of the runtime directory.
    fn into_control(self) -> Control {
        self.control
    }

    /// Tells those who do not wait that what they asked for is under way, unless it has ended already.
    fn accept_for_those_who_do_not_wait(&mut self) {
        let askers = mem::take(&mut self.control.askers);
        for (request, asker) in askers {
            if asker.waits {
                self.control.askers.insert(request, asker);
            } else {
                self.control.accept(asker);
            }
        }
    }
}
