//! Mending what workers do to the sockets that they share (see [`super::sockets`]).

use std::rc::{Rc, Weak};

use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use super::checker::PinnedRelease;
use super::control::Door;
use super::run::{Daemon, Generation};
use super::sockets::{Hurt, Listener};
use super::token::Token;
use crate::core::Event;
use crate::core::ids::{GenerationId, WorkerId};
use crate::core::notice::{Notice, Outcome};
use crate::core::sparing::more;
use crate::core::spec::SocketKind;
use crate::sys::path_watch::WatchedPath;
use crate::sys::wait::Interest;

/// How often the control socket is bound anew at once where its path is removed each time before it is watched.
const BINDS_OF_CONTROL: u32 = 16;

/// How a socket was put right.
enum Mended {
    /// The same socket is as it was.
    PutRight,
    /// A new one is in its place.
    Replaced,
}

/// How the sockets are, as far as it is not theirs to know.
#[derive(Debug, Default)]
pub struct Care {
    /// Whether something happened that is an occasion to look at them.
    pub(super) looks_at_sockets: bool,
    /// The worker whose change of state it was.
    pub(super) occasion: Option<WorkerId>,
    /// Those that were bound anew while workers run that share the dead ones.
    pub(super) successors: Vec<Weak<Listener>>,
    /// Those that could not be repaired, which was said.
    pub(super) beyond_repair: Vec<Weak<Listener>>,
    /// Whether workers of another release than the one that serves have run since the options were looked at.
    pub(super) others_have_run: bool,
    /// The watch of the control socket's path, where the kernel gave us one.
    control_path: Option<WatchedPath>,
    /// Whether the control socket has lost its path and could not be bound anew.
    control_is_lost: bool,
}

/// A [`Care`] as plain data.
#[derive(Debug, Serialize, Deserialize)]
pub struct CareState {
    /// As programs of before wrote it.
    shares_dead_socket: bool,
    /// By their places among all sockets.
    beyond_repair: Vec<usize>,
    successors: Option<Vec<usize>>,
}

impl Care {
    /// Writes it down; `place` tells where a socket stands among all.
    pub(super) fn pack(&self, place: impl Fn(&Rc<Listener>) -> Option<usize>) -> CareState {
        // What else there is ends with a turn of the loop, or is made anew.
        let Self {
            looks_at_sockets: _,
            occasion: _,
            control_path: _,
            control_is_lost: _,
            others_have_run: _,
            successors,
            beyond_repair,
        } = self;
        let places = |of: &[Weak<Listener>]| {
            of.iter().filter_map(Weak::upgrade).filter_map(|listener| place(&listener)).collect::<Vec<_>>()
        };
        CareState {
            shares_dead_socket: !successors.is_empty(),
            beyond_repair: places(beyond_repair),
            successors: Some(places(successors)),
        }
    }

    /// Makes it again of what was written down and all sockets.
    pub(super) fn unpack(state: &CareState, listeners: &[Rc<Listener>]) -> Self {
        let at = |places: &[usize]| {
            let listeners = places.iter().filter_map(|place| listeners.get(*place));
            listeners.map(Rc::downgrade).collect::<Vec<_>>()
        };
        let successors = match &state.successors {
            Some(places) => at(places),
            // It is not known which.
            None if state.shares_dead_socket => listeners.iter().map(Rc::downgrade).collect(),
            None => Vec::new(),
        };
        Self { successors, beyond_repair: at(&state.beyond_repair), ..Self::default() }
    }
}

impl Daemon {
    /// Has the kernel tell us when a socket is shut down or a path changes; what is watched already stays so.
    pub(super) fn watch_sockets(&self) {
        // Not those of datagrams: an error that waits in one (ip(7), `IP_RECVERR`) is its worker's to read, and we
        // would be woken until it does.
        let streams = self.sockets.listeners().into_iter();
        let streams = streams.filter(|listener| listener.plan().spec.kind != SocketKind::Datagram);
        // Nor those that nothing repairs: they would wake us for ever.
        let streams =
            streams.filter(|listener| !self.is_beyond_repair(listener) && !listener.fd.is_watched());
        for listener in streams {
            let _ = listener.fd.watch(&self.host.poller, Token::Sockets, Interest::Hangup);
        }
        if let Some(watch) = self.sockets.watch() {
            let _ = watch.watch(&self.host.poller, Token::Paths, Interest::Read);
        }
    }

    /// Has the kernel tell us when the control socket loses its path. Where it has lost it before the watch stood, no event
    /// will tell.
    pub(super) fn watch_control(&mut self) {
        self.care.control_path = self.sockets.watch_path(self.control.socket.path());
        self.care.looks_at_sockets |= !self.control.socket.is_in_place();
    }

    /// Binds the control socket anew where its path was removed; clients that are connected stay.
    fn mend_control(&mut self) {
        for _ in 0..BINDS_OF_CONTROL {
            if self.ended || self.care.control_is_lost || self.control.socket.is_in_place() {
                return;
            }
            self.bind_control_anew();
        }
    }

    fn bind_control_anew(&mut self) {
        // Clients that connected before the removal wait in the queue of the old socket.
        let requests = self.control.admit(Door::File, &mut self.host);
        self.take_requests(requests);
        let path = self.runtime.control();
        let bound = self.runtime.restore().and_then(|()| self.control.bind_anew(&path));
        match bound {
            Ok(()) => {
                let _ = self.control.socket.watch(&self.host.poller, Token::Control, Interest::Read);
                warn!("{} was removed or replaced; it is bound anew", path.display());
                self.watch_control();
                // The state may have been removed together with the socket.
                self.journal.needs_snapshot();
            }
            Err(error) => {
                error!("{} was removed or replaced, and cannot be bound anew: {error}", path.display());
                // Said once.
                self.care.control_is_lost = true;
            }
        }
    }

    /// Lets go of a generation and of the sockets that it alone had.
    pub(super) fn let_go(&mut self, generation: GenerationId) {
        let Some(of) = self.generations.remove(&generation) else { return };
        self.journal.needs_snapshot();
        let has_served = self.manager.previous() == Some(generation);
        self.forget_demands(generation, has_served);
        self.note_rejected_end(generation);
        if self.manager.previous() == Some(generation) {
            self.kept = Some((generation, PinnedRelease { release: of.release, program: of.program }));
        }
    }

    /// Looks at all sockets, mends what is wrong, and says who probably did it: `occasion` names a worker whose change of
    /// state made us look.
    pub(super) fn mend_sockets(&mut self, occasion: Option<WorkerId>) {
        self.hear_of_paths();
        self.mend_control();
        let mut replaced: Vec<Rc<Listener>> = Vec::new();
        for (listener, hurt) in self.sockets.hurts() {
            if self.is_beyond_repair(&listener) || replaced.iter().any(|dead| Rc::ptr_eq(dead, &listener)) {
                continue;
            }
            let (name, listen) = {
                let spec = &listener.plan().spec;
                (spec.name.clone(), spec.listen.clone())
            };
            let whom = self.suspects(occasion);
            match self.repair(&listener, &hurt) {
                Ok(Mended::PutRight) => {
                    if let Some(untold) = listener.tells(self.now()) {
                        warn!("socket `{name}` ({listen}): {hurt}{whom}; repaired{}", more(untold));
                    }
                }
                Ok(Mended::Replaced) => {
                    warn!("socket `{name}` ({listen}): {hurt}{whom}; repaired");
                    info!("all workers are replaced, as those that run share the dead socket");
                    replaced.push(listener);
                }
                Err(why) => {
                    error!("socket `{name}` ({listen}): {hurt}{whom}; cannot be repaired: {why}");
                    // It would be reported again and again.
                    listener.fd.unwatch();
                    self.care.beyond_repair.retain(|known| known.strong_count() > 0);
                    self.care.beyond_repair.push(Rc::downgrade(&listener));
                }
            }
        }
        self.mend_tuning();
        // After a kill it takes the latest.
        let is_news = |listener: &Rc<Listener>| listener.note_blocking().0;
        if self.sockets.listeners().iter().filter(|listener| is_news(listener)).count() > 0 {
            self.journal.needs_snapshot();
        }
    }

    /// Puts right what is wrong with a socket, or binds it anew.
    fn repair(&mut self, listener: &Rc<Listener>, hurt: &Hurt) -> Result<Mended, String> {
        if !listener.may_repair(hurt) {
            return Err("workers do it again and again; it is tried anew with the next upgrade".into());
        }
        let why = if hurt.needs_replacement() {
            String::new()
        } else {
            match listener.repair(hurt) {
                Ok(()) => return Ok(Mended::PutRight),
                Err(error) => format!("{error}; "),
            }
        };
        let replaced = self.replace(listener).map(|()| Mended::Replaced);
        replaced.map_err(|error| format!("{why}{error}"))
    }

    pub(super) fn is_beyond_repair(&self, listener: &Rc<Listener>) -> bool {
        self.care.beyond_repair.iter().any(|known| std::ptr::eq(known.as_ptr(), Rc::as_ptr(listener)))
    }

    /// Says which sockets are beyond repair; empty where none is.
    pub(super) fn dead_sockets(&self) -> String {
        let all = self.care.beyond_repair.iter().filter_map(Weak::upgrade);
        let is = |listener: Rc<Listener>| {
            let how = if listener.is_dead() { "dead" } else { "broken" };
            format!("; socket `{}` is {how}", listener.plan().spec.name)
        };
        all.map(is).collect()
    }

    /// Binds a socket anew that nothing can repair, and replaces the workers that share the dead one.
    fn replace(&mut self, dead: &Rc<Listener>) -> Result<(), String> {
        let fresh = self.sockets.replace(dead).map_err(|error| error.to_string())?;
        let Some(new) = fresh.listeners.first() else { return Ok(()) };
        let holders = self.generations.values_mut().flat_map(|of: &mut Generation| &mut of.sockets.listeners);
        for held in holders.filter(|held| Rc::ptr_eq(held, dead)) {
            *held = Rc::clone(new);
        }
        for demanded in self.demanded.iter_mut().filter(|one| Rc::ptr_eq(&one.listener, dead)) {
            demanded.listener = Rc::clone(new);
        }
        self.journal.needs_snapshot();
        dead.fd.unwatch();
        self.watch_sockets();
        self.care.successors.retain(|known| known.strong_count() > 0);
        self.care.successors.push(Rc::downgrade(new));
        self.inbox.push_back(Event::SocketReplaced);
        Ok(())
    }

    /// Has workers that share a dead socket replaced however often it takes: fresh ones that fail are no end of it. The
    /// pause after their deaths is the pause before the next try.
    pub(super) fn insist_on_replacement(&mut self, notice: &Notice) {
        match notice {
            Notice::RespawnEnded(_, Ok(())) | Notice::UpgradeEnded(_, Outcome::Committed) => {
                self.care.successors.clear();
            }
            Notice::RespawnEnded(_, Err(_)) if !self.care.successors.is_empty() => {
                self.inbox.push_back(Event::SocketReplaced);
            }
            _ => {}
        }
    }

    /// Names the workers that may have hurt a socket; the kernel does not tell who did.
    fn suspects(&self, occasion: Option<WorkerId>) -> String {
        let draining: Vec<_> =
            self.manager.workers().filter(|(_, worker)| worker.is_draining()).map(|(id, _)| id).collect();
        let suspects = match occasion {
            Some(worker) => vec![worker],
            None if draining.is_empty() => self.processes.keys().copied().collect(),
            None => draining,
        };
        let name = |id: &WorkerId| match self.processes.get(id) {
            Some(process) => format!("worker {id} ({})", process.name()),
            None => format!("worker {id}"),
        };
        match suspects.as_slice() {
            [] => String::new(),
            [one] => format!(", probably by {}", name(one)),
            [one, other] => format!(", probably by {} or {}", name(one), name(other)),
            [first, rest @ ..] => format!(", probably by {} or one of {} others", name(first), rest.len()),
        }
    }
}
