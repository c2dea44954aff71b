//! Sockets on demand: bound when the first worker asks, and kept for as long as a generation uses them.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use serde_json::Value;
use tracing::{info, warn};

use super::super::release::in_words;
use super::super::run::Daemon;
use super::super::sockets::{Listener, Owner, SocketError, SocketPlan};
use crate::core::ids::GenerationId;
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
    users: BTreeSet<GenerationId>,
    until: Option<Mono>,
}

impl Demanded {
    pub(super) fn new(key: String, listener: Rc<Listener>, data: Value) -> Self {
        Self { key, listener, data, users: BTreeSet::new(), until: None }
    }

    /// Writes it down; `place` tells where its socket stands among all.
    pub(in super::super) fn pack(&self, place: usize) -> DemandedState {
        let Self { key, listener: _, data, users, until } = self.clone();
        DemandedState { key, listener: place, data, users, until }
    }

    /// Makes it again of what was written down and all sockets.
    pub(in super::super) fn unpack(state: DemandedState, listeners: &[Rc<Listener>]) -> Option<Self> {
        let DemandedState { key, listener, data, users, until } = state;
        Some(Self { key, listener: Rc::clone(listeners.get(listener)?), data, users, until })
    }
}

impl Daemon {
    /// Returns the socket that a worker of `generation` asks for, which has those under the keys `held` open already.
    ///
    /// # Errors
    ///
    /// The number of the error that the worker's own bind(2) or listen(2) would have had.
    pub(super) fn demand(
        &mut self,
        generation: GenerationId,
        spec: &SocketSpec,
        query: &Query,
        held: &BTreeSet<String>,
    ) -> Result<Demanded, i32> {
        let key = key_of(spec, query.index);
        if held.contains(&key) {
            // As a second bind(2) of the same program would have it.
            return Err(libc::EADDRINUSE);
        }
        let known = self.demanded.iter_mut().find(|known| known.key == key);
        if let Some(known) = known.filter(|known| !known.listener.is_dead()) {
            known.users.insert(generation);
            known.until = None;
            let backlog = known.listener.set_backlog(spec.options.backlog);
            if let Err(error) = backlog {
                warn!("socket {}: its backlog cannot be changed: {error}", spec.listen);
            }
            return Ok(known.clone());
        }
        if self.demanded.len() >= MAX_DEMANDED {
            warn!("socket {}: workers have asked for {MAX_DEMANDED} sockets already", spec.listen);
            return Err(libc::EMFILE);
        }
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

/// What makes a socket the same one: the address as the program has it, what it carries and, where the kernel chooses the
/// port, which of several it is.
fn key_of(spec: &SocketSpec, index: u64) -> String {
    let kind = format!("{:?}", spec.kind).to_lowercase();
    let only = if spec.options.bind_ipv6_only == Some(true) { " only" } else { "" };
    let which = if is_any_port(spec) { format!(" {index}") } else { String::new() };
    format!("{kind} {}{only}{which}", spec.listen)
}
