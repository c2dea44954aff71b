//! Sockets on demand: bound when the first worker asks, and kept for as long as a generation uses them.

use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use serde_json::Value;
use tracing::{info, warn};

use super::super::host::Timer;
use super::super::release::in_words;
use super::super::run::Daemon;
use super::super::sockets::{Listener, Owner, SocketError, SocketPlan};
use super::Standing;
use crate::core::ids::{GenerationId, SlotId, WorkerId};
use crate::core::spec::{SocketAddress, SocketSpec};
use crate::core::time::Mono;
use crate::sys::process::own_umask;
use crate::wire::node::Query;

/// The most sockets that a service may ask for.
const MAX_DEMANDED: usize = 256;

/// How long a socket that the committed generation has not asked for is kept after the last one that had it is gone: programs
/// listen on their second port when their database answers.
const GRACE: Duration = Duration::from_secs(10);

/// A socket that workers asked for.
#[derive(Clone, Debug)]
pub struct Demanded {
    /// What workers know it by.
    pub(super) key: String,
    /// The socket.
    pub(in super::super) listener: Rc<Listener>,
    /// What all workers have in common beside it.
    pub(super) data: Value,
    /// The slot that it belongs to, where it is shared with no other.
    owner: Option<SlotId>,
    /// The generations whose workers asked for it.
    users: BTreeSet<GenerationId>,
    /// When it is let go of, where nobody asks for it before.
    until: Option<Mono>,
}

/// A [`Demanded`] as plain data; its socket travels with the others.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct DemandedState {
    key: String,
    listener: usize,
    data: Value,
    owner: Option<SlotId>,
    users: BTreeSet<GenerationId>,
    until: Option<Mono>,
}

/// Who asks for a socket.
pub(super) struct Asking {
    pub generation: GenerationId,
    pub slot: SlotId,
    /// The keys of the sockets that it has open.
    pub held: BTreeSet<String>,
}

impl Demanded {
    pub(super) fn new(key: String, listener: Rc<Listener>, data: Value) -> Self {
        Self { key, listener, data, owner: None, users: BTreeSet::new(), until: None }
    }

    /// By what workers know it.
    pub(in super::super) fn key(&self) -> &str {
        &self.key
    }

    /// Whether workers of a generation have asked for it.
    pub(in super::super) fn is_used_by(&self, generation: GenerationId) -> bool {
        self.users.contains(&generation)
    }

    /// Whether it is at the place that is asked for; where the kernel chooses the port, nobody knows beforehand.
    fn is_at(&self, spec: &SocketSpec) -> bool {
        let own = &self.listener.plan().spec;
        !is_any_port(spec) && own.address == spec.address && own.kind == spec.kind
    }

    /// Writes it down; `place` tells where its socket stands among all.
    pub(in super::super) fn pack(&self, place: usize) -> DemandedState {
        let Self { key, listener: _, data, owner, users, until } = self.clone();
        DemandedState { key, listener: place, data, owner, users, until }
    }

    /// Makes it again of what was written down and all sockets.
    pub(in super::super) fn unpack(state: DemandedState, listeners: &[Rc<Listener>]) -> Option<Self> {
        let DemandedState { key, listener, data, owner, users, until } = state;
        Some(Self { key, listener: Rc::clone(listeners.get(listener)?), data, owner, users, until })
    }
}

impl Daemon {
    /// Returns the socket that a worker asks for.
    ///
    /// # Errors
    ///
    /// The number of the error that the worker's own bind(2) or listen(2) would have had.
    pub(super) fn demand(&mut self, by: &Asking, spec: &SocketSpec, query: &Query) -> Result<Demanded, i32> {
        let key = key_of(spec, query, by.slot);
        let alive = |known: &&mut Demanded| !known.listener.is_dead();
        let is_there = |known: &Demanded| known.key != key && known.is_at(spec);
        // As a second bind(2) of the same program would have it, or of another where one of them shares with nobody.
        if by.held.contains(&key)
            || self.demanded.iter().any(|known| is_there(known) && (query.exclusive || known.owner.is_some()))
        {
            return Err(libc::EADDRINUSE);
        }
        if let Some(known) = self.demanded.iter_mut().find(|known| known.key == key).filter(alive) {
            let is_new = known.users.insert(by.generation) | known.until.take().is_some();
            let known = known.clone();
            if is_new {
                self.journal.needs_snapshot();
            }
            self.suit_backlog(&known.listener, query.backlog);
            return Ok(known);
        }
        if self.demanded.len() >= MAX_DEMANDED {
            warn!("socket {}: workers have asked for {MAX_DEMANDED} sockets already", spec.listen);
            return Err(libc::EMFILE);
        }
        refuse_strange_folder(spec)?;
        let generation = by.generation;
        let mut spec = spec.clone();
        // As Node's own bind(2) has it, by the worker's mask.
        if matches!(spec.address, SocketAddress::Path(_)) {
            spec.options.mode = Some(0o777 & !self.umask_of(generation));
        }
        let spec = &spec;
        let plan = SocketPlan { spec: spec.clone(), owner: Owner::default() };
        let control = self.control.tcp_address();
        let mut bound =
            self.sockets.bind_one(&plan, is_any_port(spec)).map_err(|error| error.beside(control));
        if bound.as_ref().is_err_and(SocketError::is_control_server)
            && self.close_default_control(&spec.listen)
        {
            bound = self.sockets.bind_one(&plan, is_any_port(spec));
        }
        let bound = bound.map_err(|error| refusal(&error))?;
        for warning in &bound.warnings {
            warn!("{warning}");
        }
        let [listener] = &bound.listeners[..] else { return Err(libc::EINVAL) };
        self.watch_sockets();
        self.suit_backlog(listener, query.backlog);
        info!("socket {} bound, as a worker of generation {generation} listens on it", spec.listen);
        let demanded = Demanded {
            users: BTreeSet::from([generation]),
            owner: query.exclusive.then_some(by.slot),
            ..Demanded::new(key, Rc::clone(listener), query.data.clone())
        };
        self.demanded.push(demanded.clone());
        self.journal.needs_snapshot();
        Ok(demanded)
    }

    /// Has a queue be as long as the worker makes it that is about to listen, unless the service file says how long it is to be.
    pub(super) fn suit_backlog(&self, listener: &Rc<Listener>, backlog: u32) {
        let given = self.generations.values().any(|of| {
            let sockets = of.sockets.listeners.iter().zip(&of.release.spec.sockets);
            sockets.into_iter().any(|(one, spec)| Rc::ptr_eq(one, listener) && spec.options.backlog.is_some())
        });
        if !given && let Err(error) = listener.set_backlog(Some(backlog)) {
            warn!("socket {}: its backlog cannot be changed: {error}", listener.plan().spec.listen);
        }
    }

    fn umask_of(&self, generation: GenerationId) -> u32 {
        let release = self.generations.get(&generation).map(|of| &of.release);
        let given = release.and_then(|release| release.spec.process.identity.umask);
        given.unwrap_or_else(own_umask)
    }

    /// A worker has closed a socket by its program's own decision: where no other has it open, it goes. Its program may listen again
    /// within the grace, but never at a port that the kernel chose.
    pub(super) fn closed_by(&mut self, worker: WorkerId, key: &str) {
        if let Some(channel) = self.processes.get_mut(&worker).and_then(|process| process.channel.as_mut()) {
            channel.held.remove(key);
            if channel.standing() != Standing::Open {
                return;
            }
        }
        let mut channels = self.processes.values().filter_map(|process| process.channel.as_ref());
        if channels.any(|channel| channel.held.contains(key)) {
            return;
        }
        let grace = self.now() + GRACE;
        if let Some(demanded) = self.demanded.iter_mut().find(|demanded| demanded.key == key) {
            let is_gone = is_any_port(&demanded.listener.plan().spec);
            demanded.until = Some(if is_gone { Mono::ZERO } else { grace });
        }
        self.end_demands();
    }

    /// Lets go of what belongs to a slot that the service no longer has.
    pub(in super::super) fn tidy_demands(&mut self, slot: SlotId) {
        for demanded in self.demanded.iter_mut().filter(|demanded| demanded.owner == Some(slot)) {
            demanded.until = Some(Mono::ZERO);
        }
        self.end_demands();
    }

    /// A generation is no more: what it alone had asked for goes too, at once where it never served.
    pub(in super::super) fn forget_demands(&mut self, generation: GenerationId, has_served: bool) {
        let until = self.now() + GRACE;
        for demanded in &mut self.demanded {
            if demanded.users.remove(&generation) && demanded.users.is_empty() {
                demanded.until = Some(if has_served { until } else { Mono::ZERO });
            }
        }
        self.end_demands();
    }

    /// Lets go of the sockets that no generation uses any more.
    pub(in super::super) fn end_demands(&mut self) {
        let now = self.now();
        let (gone, kept) = std::mem::take(&mut self.demanded)
            .into_iter()
            .partition(|demanded: &Demanded| demanded.until.is_some_and(|until| until <= now));
        self.demanded = kept;
        self.host
            .timers
            .set(Timer::Demands, self.demanded.iter().filter_map(|demanded| demanded.until).min());
        if !gone.is_empty() {
            self.journal.needs_snapshot();
        }
        let is_any_gone = !gone.is_empty();
        for Demanded { listener, .. } in gone {
            info!("socket {} let go of, as no worker listens on it any more", listener.plan().spec.listen);
        }
        if is_any_gone {
            self.open_default_control();
        }
    }
}

/// A folder that is missing is an error of the program's; for the service file it would be made.
fn refuse_strange_folder(spec: &SocketSpec) -> Result<(), i32> {
    match &spec.address {
        SocketAddress::Path(path) if !path.parent().is_some_and(Path::is_dir) => Err(libc::ENOENT),
        SocketAddress::Path(_) | SocketAddress::Inet(_) | SocketAddress::Abstract(_) => Ok(()),
    }
}

fn refusal(error: &SocketError) -> i32 {
    let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
    warn!("a worker cannot have what it listens on: {}{hint}", in_words(error));
    error.errno()
}

fn is_any_port(spec: &SocketSpec) -> bool {
    matches!(spec.address, SocketAddress::Inet(address) if address.port() == 0)
}

/// What makes a socket the same one: the address as the program has it, what it carries, where the kernel chooses the port
/// which of several it is, and where it belongs to one slot which.
fn key_of(spec: &SocketSpec, query: &Query, slot: SlotId) -> String {
    let kind = format!("{:?}", spec.kind).to_lowercase();
    let only = if spec.options.bind_ipv6_only == Some(true) { " only" } else { "" };
    let which = if is_any_port(spec) { format!(" {}", query.index) } else { String::new() };
    let whose = if query.exclusive { format!(" of slot {slot}") } else { String::new() };
    format!("{kind} {}{only}{which}{whose}", spec.listen)
}
