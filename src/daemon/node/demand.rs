//! Sockets on demand: bound when the first worker asks, and kept for as long as a generation uses them.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use serde_json::Value;
use tracing::{info, warn};

use super::super::release::in_words;
use super::super::run::Daemon;
use super::super::sockets::{Listener, Owner, SocketError, SocketPlan};
use crate::core::ids::{GenerationId, SlotId};
use crate::core::spec::{SocketAddress, SocketSpec};
use crate::core::time::Mono;
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
    /// It belongs to one slot.
    exclusive: bool,
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
    exclusive: bool,
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
        Self { key, listener, data, exclusive: false, users: BTreeSet::new(), until: None }
    }

    /// Whether it is at the place that is asked for; where the kernel chooses the port, nobody knows beforehand.
    fn is_at(&self, spec: &SocketSpec) -> bool {
        let own = &self.listener.plan().spec;
        !is_any_port(spec) && own.address == spec.address && own.kind == spec.kind
    }

    /// Writes it down; `place` tells where its socket stands among all.
    pub(in super::super) fn pack(&self, place: usize) -> DemandedState {
        let Self { key, listener: _, data, exclusive, users, until } = self.clone();
        DemandedState { key, listener: place, data, exclusive, users, until }
    }

    /// Makes it again of what was written down and all sockets.
    pub(in super::super) fn unpack(state: DemandedState, listeners: &[Rc<Listener>]) -> Option<Self> {
        let DemandedState { key, listener, data, exclusive, users, until } = state;
        Some(Self { key, listener: Rc::clone(listeners.get(listener)?), data, exclusive, users, until })
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
            || self.demanded.iter().any(|known| is_there(known) && (query.exclusive || known.exclusive))
        {
            return Err(libc::EADDRINUSE);
        }
        if let Some(known) = self.demanded.iter_mut().find(|known| known.key == key).filter(alive) {
            known.users.insert(by.generation);
            known.until = None;
            if let Err(error) = known.listener.set_backlog(spec.options.backlog) {
                warn!("socket {}: its backlog cannot be changed: {error}", spec.listen);
            }
            return Ok(known.clone());
        }
        if self.demanded.len() >= MAX_DEMANDED {
            warn!("socket {}: workers have asked for {MAX_DEMANDED} sockets already", spec.listen);
            return Err(libc::EMFILE);
        }
        let generation = by.generation;
        let plan = SocketPlan { spec: spec.clone(), owner: Owner::default() };
        let bound = self.sockets.bind_one(&plan, is_any_port(spec)).map_err(|error| refusal(&error))?;
        for warning in &bound.warnings {
            warn!("{warning}");
        }
        let [listener] = &bound.listeners[..] else { return Err(libc::EINVAL) };
        self.watch_sockets();
        info!("socket {} bound, as a worker of generation {generation} listens on it", spec.listen);
        let demanded = Demanded {
            users: BTreeSet::from([generation]),
            exclusive: query.exclusive,
            ..Demanded::new(key, Rc::clone(listener), query.data.clone())
        };
        self.demanded.push(demanded.clone());
        Ok(demanded)
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

    /// When a socket is to be let go of.
    pub(in super::super) fn next_end_of_demand(&self) -> Option<Mono> {
        self.demanded.iter().filter_map(|demanded| demanded.until).min()
    }

    /// Lets go of the sockets that no generation uses any more.
    pub(in super::super) fn end_demands(&mut self) {
        let now = self.now();
        let (gone, kept) = std::mem::take(&mut self.demanded)
            .into_iter()
            .partition(|demanded: &Demanded| demanded.until.is_some_and(|until| until <= now));
        self.demanded = kept;
        for Demanded { listener, .. } in gone {
            info!("socket {} let go of, as no worker listens on it any more", listener.plan().spec.listen);
            if Rc::strong_count(&listener) == 1 {
                let _ = self.poller.remove(&*listener);
            }
        }
    }
}

fn refusal(error: &SocketError) -> i32 {
    warn!("a worker cannot have what it listens on: {}", in_words(error));
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
