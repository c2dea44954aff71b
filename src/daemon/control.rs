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
use super::host::{Host, Timer};
use super::run::Daemon;
use super::token::{ClientId, Token, Watched};
use crate::core::ids::RequestId;
use crate::core::time::Mono;
use crate::sys::control_socket::ControlSocket;
use crate::sys::control_tcp::ControlTcp;
use crate::sys::handover::hand_over;
use crate::wire::control::{BadRequest, Command, Reply, Request, line};
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

/// What a client asks for, or the answer to that, in the order in which it has asked.
pub(super) type Asked = (Asker, Result<Command, Reply>);

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

    /// Waits for all clients again, by a new host.
    ///
    /// # Errors
    ///
    /// Those of `epoll_ctl(2)`.
    pub(super) fn watch(&self, host: &mut Host) -> io::Result<()> {
        host.timers.set(Timer::Accept, self.admits_at);
        if self.admits_at.is_none() {
            self.watch_doors(&host.poller)?;
        }
        for (id, client) in &self.clients {
            client.watch(&host.poller, *id)?;
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

    /// Answers those who wait for a look at workers that are no more.
    fn give_up_survey(&mut self) {
        let under_way = self.survey.take().into_iter().flat_map(Survey::into_askers);
        let askers: Vec<_> = under_way.chain(mem::take(&mut self.next_survey)).collect();
        for asker in askers {
            let reply = Reply::failed(&asker.cmd, "the service has ended");
            self.reply(asker, reply);
        }
    }

    /// Takes what has become ready, and returns what clients ask for.
    pub(super) fn ready(&mut self, token: Token, host: &mut Host) -> Vec<Asked> {
        match token {
            Token::Control => self.admit(Door::File, host),
            Token::ControlTcp => self.admit(Door::Tcp, host),
            Token::Client(id) => self.attend(id, host),
            _ => Vec::new(),
        }
    }

    /// Takes what a client has written, as much as one may write before others get their turn, and returns what it asks for.
    fn attend(&mut self, id: ClientId, host: &mut Host) -> Vec<Asked> {
        let Some(client) = self.clients.get_mut(&id) else { return Vec::new() };
        if client.has_gone() {
            self.drop_client(id, host);
            return Vec::new();
        }
        let was_unproven = client.trust.is_unproven();
        let requests = client.listen(host.now(), self.token.as_ref());
        let has_proven = was_unproven && !client.trust.is_unproven();
        if has_proven && !self.make_room(Some(id), false, host) {
            self.let_client_go(id, &full(), host);
            return Vec::new();
        }
        requests.into_iter().filter_map(|request| self.take_request(id, request)).collect()
    }

    /// Says who asks for what. The answer to what is no request is known already.
    fn take_request(&mut self, client: ClientId, request: Result<Request, BadRequest>) -> Option<Asked> {
        let of = self.clients.get_mut(&client)?;
        of.asked += 1;
        Some(match request {
            Err(BadRequest { id, cmd, reason }) => {
                let asker = Asker { client, id, cmd: String::new(), waits: true };
                (asker, Err(Reply::failed(cmd, reason)))
            }
            Ok(Request { id, command, wait, .. }) => {
                (Asker { client, id, cmd: command.name().into(), waits: wait }, Ok(command))
            }
        })
    }

    /// How many requests of the client wait for their answers.
    pub(super) fn asked(&self, client: ClientId) -> usize {
        self.clients.get(&client).map_or(0, |client| client.asked)
    }

    /// Brings to the clients what there is for them, at the end of a turn. Once the service has `ended`, nothing more is heard: what is
    /// said at the end is said when all else has ended, as then it is true.
    pub(super) fn serve(&mut self, ended: bool, host: &mut Host) {
        self.accept_for_those_who_do_not_wait();
        if ended {
            self.close_doors();
            self.clients.values().for_each(|client| client.stream.unwatch());
            return;
        }
        let now = host.now();
        let mut gone = Vec::new();
        for (id, client) in &mut self.clients {
            client.flush(now);
            if client.is_over() || client.watch(&host.poller, *id).is_err() {
                gone.push(*id);
            } else {
                host.timers.set(Timer::Client(*id), client.deadline());
            }
        }
        for id in gone {
            self.drop_client(id, host);
        }
    }

    /// Closes the connection of a client, if it is there.
    fn drop_client(&mut self, id: ClientId, host: &mut Host) {
        host.timers.clear(Timer::Client(id));
        if let Some(mut client) = self.clients.remove(&id) {
            client.stream.finish();
        }
    }

    /// Closes the connection of a client that has been silent, or has not read, for too long.
    pub(super) fn end_late_client(&mut self, id: ClientId, host: &mut Host) {
        let Some(client) = self.clients.get(&id) else { return };
        // It may have said something in the turn in which its time was over.
        if client.deadline().is_some_and(|at| at <= host.now()) {
            let why = client.why_late();
            self.let_client_go(id, why, host);
        }
    }

    /// Accepts clients again, where there was no descriptor for one before.
    pub(super) fn accept_again(&mut self, host: &mut Host) {
        self.admits_at = None;
        if self.watch_doors(&host.poller).is_err() {
            self.pause_accepting(host);
        }
    }

    /// Leaves clients that connect in the queue for a moment.
    fn pause_accepting(&mut self, host: &mut Host) {
        self.close_doors();
        let at = host.now() + NO_ROOM_PAUSE;
        self.admits_at = Some(at);
        host.timers.set(Timer::Accept, at);
    }

    /// Tells those who do not wait that what they asked for is under way, unless it has ended already.
    fn accept_for_those_who_do_not_wait(&mut self) {
        let askers = mem::take(&mut self.askers);
        for (request, asker) in askers {
            if asker.waits {
                self.askers.insert(request, asker);
            } else {
                self.accept(asker);
            }
        }
    }
}

impl Daemon {
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
}
