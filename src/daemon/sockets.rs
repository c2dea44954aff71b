//! The sockets of the service: bound, inherited, changed and guarded.
//!
//! The invariant: **no socket that a live generation uses is ever closed.** It holds by construction, as the
//! generations own the listeners (`Rc`) and the registry here only knows them (`Weak`). And [`Sockets::prepare`] is one
//! transaction: every new socket is bound and listening before anything is touched, and where it fails nothing has
//! changed.
//!
//! Workers share the open file descriptions, so they can hurt them. The manager need not poll for it:
//!
//! - a [`Listener`], registered in epoll with `EPOLLRDHUP` as its only event, reports a shutdown (`EPOLLHUP` for TCP,
//!   `EPOLLRDHUP` for UNIX) and no connection;
//! - [`Sockets::watch`] becomes readable when something happens to the path of a UNIX socket.
//!
//! Either is followed by [`Sockets::hurts`] and [`Listener::repair`] or [`Sockets::replace`]. Nothing tells of a backlog
//! that shrank, so look on the occasion of other events too: a worker that says something or died.
//!
//! Whoever registers a listener in epoll must take it out again before dropping it: a worker's copy keeps the open file
//! description alive, and with it the registration.

mod blocking;
mod error;
mod guard;
mod inherited;
mod listener;
mod overlap;
mod path;
mod plan;
mod record;
#[cfg(test)]
mod tests;
mod upkeep;

use std::io;
use std::path::Path;
use std::rc::{Rc, Weak};

use nix::errno::Errno;

use super::token::Watched;
use crate::core::spec::SocketSpec;
use crate::sys::activation::Inherited;
use crate::sys::path_watch::{PathWatch, WatchedPath};

pub(super) use error::READ_ONLY;
pub use error::{Problem, SocketError, Step};
pub use guard::Hurt;
pub use listener::Listener;
pub use overlap::clashes;
pub(super) use overlap::covers;
pub use plan::{Owner, SocketPlan};
pub use record::{ListenerRecord, ListenerState};

/// All sockets that some generation uses, and those of an activator until the first generation takes them.
#[derive(Debug)]
pub struct Sockets {
    live: Vec<Weak<Listener>>,
    /// Held until they are matched; none after the first [`Self::prepare`] that succeeds.
    inherited: Vec<Rc<Listener>>,
    /// Inherited descriptors that no file can ask for, and what they are.
    strangers: Vec<(Inherited, String)>,
    watch: io::Result<Watched<PathWatch>>,
}

/// The sockets of one generation.
#[derive(Debug)]
pub struct Prepared {
    /// In the order of what was wanted.
    pub listeners: Vec<Rc<Listener>>,
    /// What could not be had but is no reason to refuse, one sentence each, for the log.
    pub warnings: Vec<String>,
    /// What is worth a line of the log, one sentence each: the ports that the kernel chose.
    pub notes: Vec<String>,
}

impl Prepared {
    /// Those of a generation that was written down: they stand at these places among all.
    pub(super) fn among(all: &[Rc<Listener>], places: &[usize]) -> Self {
        let listeners = places.iter().filter_map(|place| all.get(*place)).map(Rc::clone);
        Self { listeners: listeners.collect(), warnings: Vec::new(), notes: Vec::new() }
    }
}

/// The wanted sockets that exist already, in the order of what was wanted.
struct Found {
    listeners: Vec<Option<Rc<Listener>>>,
    warnings: Vec<String>,
}

impl Sockets {
    /// Starts with what an activator handed over ([`crate::sys::activation::take`]); nothing is done to it yet.
    pub fn new(inherited: Vec<Inherited>) -> Self {
        let (mut adopted, mut strangers) = (Vec::new(), Vec::new());
        for descriptor in inherited {
            match Listener::adopt(descriptor) {
                Ok(listener) => adopted.push(Rc::new(listener)),
                Err(stranger) => strangers.push(stranger),
            }
        }
        Self { live: Vec::new(), inherited: adopted, strangers, watch: PathWatch::new().map(Watched::from) }
    }

    /// Binds, adopts and changes what it takes to have exactly these sockets, or changes nothing.
    ///
    /// Sockets that exist are found by address and type and keep their descriptor and queue. Inherited ones are found
    /// by name and address, else by address alone. Sockets that are no longer wanted close by themselves, with the
    /// last generation that has them.
    ///
    /// # Errors
    /// [`SocketError`] names the socket, the step and what to do next.
    pub fn prepare(&mut self, wanted: &[SocketPlan]) -> Result<Prepared, SocketError> {
        let Found { listeners: found, mut warnings } = self.find(wanted)?;
        let mut listeners = Vec::with_capacity(wanted.len());
        let mut notes = Vec::new();
        for (plan, found) in wanted.iter().zip(found) {
            let listener = match found {
                Some(listener) => listener,
                None => Rc::new(self.bind(plan, &listeners)?),
            };
            notes.extend(listener.chosen_port());
            listeners.push(listener);
        }
        change_all(&listeners, wanted)?;

        // From here on nothing fails.
        for listener in self.inherited.drain(..) {
            if let Err(error) = listener.settle_blocking() {
                warnings.push(about(&listener.plan(), &format!("it may be non-blocking: {error}")));
            }
        }
        self.live.retain(|listener| listener.strong_count() > 0);
        for listener in &listeners {
            warnings.extend(self.register(listener));
        }
        Ok(Prepared { listeners, warnings, notes })
    }

    /// Binds a socket that a worker asked for, or finds it where the service has it already; at `any_port` it is always a new
    /// one.
    ///
    /// # Errors
    /// [`SocketError`] says what went wrong; nothing has changed.
    pub fn bind_one(&mut self, plan: &SocketPlan, any_port: bool) -> Result<Prepared, SocketError> {
        let is_it = |known: &Rc<Listener>| !any_port && known.plan().is_same_socket(plan) && !known.is_dead();
        let listener = match self.listeners().into_iter().find(is_it) {
            Some(known) => known,
            None => Rc::new(self.bind(plan, &[])?),
        };
        let warnings = self.register(&listener);
        Ok(Prepared { listeners: vec![listener], warnings, notes: Vec::new() })
    }

    /// Binds a socket that could not be kept as it was before.
    ///
    /// # Errors
    /// [`SocketError`] says what went wrong.
    pub fn bind_again(plan: &SocketPlan) -> Result<Listener, SocketError> {
        Listener::bind(plan).map_err(|problem| problem.of(plan))
    }

    /// As [`Sockets::resume`], with what an activator handed over as well.
    pub fn with_kept(kept: &[Rc<Listener>], inherited: Vec<Inherited>) -> Self {
        let live = kept.iter().map(Rc::downgrade).collect();
        Self { live, ..Self::new(inherited) }
    }

    /// Goes on with sockets that came over execve(2), or outlived a manager; their paths are yet to be guarded.
    pub fn resume(listeners: &[Rc<Listener>]) -> Self {
        let live = listeners.iter().map(Rc::downgrade).collect();
        Self {
            live,
            inherited: Vec::new(),
            strangers: Vec::new(),
            watch: PathWatch::new().map(Watched::from),
        }
    }

    /// Guards the paths of all sockets; returns what is not possible, in words.
    pub fn guard(&mut self) -> Vec<String> {
        self.listeners().iter().flat_map(|listener| self.register(listener)).collect()
    }

    /// Gives the sockets that still exist the options which they had in these plans, after an upgrade was rolled back.
    ///
    /// It goes on after a failure and returns all of them.
    pub fn revert(&self, old: &[SocketPlan]) -> Vec<SocketError> {
        let mut errors = Vec::new();
        for (plan, listener) in old.iter().zip(matched(&self.listeners(), old)) {
            if let Some(listener) = listener
                && let Err(problem) = listener.change(plan)
            {
                errors.push(problem.of(plan));
            }
        }
        errors
    }

    /// Binds a socket anew that nothing can repair; the generations that have it must be given the new one, and their
    /// workers replaced, as those share the dead one.
    ///
    /// # Errors
    /// [`SocketError`]; the socket may then have lost its path, but can be replaced later on.
    pub fn replace(&mut self, dead: &Rc<Listener>) -> Result<Prepared, SocketError> {
        let plan = dead.plan().clone();
        if dead.is_inherited() {
            return Err(Problem::ActivatorsOwn.of(&plan));
        }
        dead.make_room();
        let bound = Listener::bind_over(&plan, Some(dead));
        let listener = Rc::new(bound.map_err(|problem| self.explain(&plan, &[], problem).of(&plan))?);
        listener.succeeds(dead);
        self.live.retain(|known| !std::ptr::eq(known.as_ptr(), Rc::as_ptr(dead)));
        let warnings = self.register(&listener);
        Ok(Prepared { listeners: vec![listener], warnings, notes: Vec::new() })
    }

    /// Returns all sockets that some generation uses.
    pub fn listeners(&self) -> Vec<Rc<Listener>> {
        self.live.iter().filter_map(Weak::upgrade).collect()
    }

    /// Looks at all sockets and returns what is wrong with which.
    pub fn hurts(&self) -> Vec<(Rc<Listener>, Hurt)> {
        let listeners = self.listeners().into_iter();
        listeners.flat_map(|one| one.inspect().into_iter().map(move |hurt| (Rc::clone(&one), hurt))).collect()
    }

    /// Returns the descriptor that is readable when something happened to the path of a UNIX socket; `None` where the
    /// kernel gave us none.
    pub fn watch(&self) -> Option<&Watched<PathWatch>> {
        self.watch.as_ref().ok()
    }

    /// Watches another path together with those of the sockets; `None` where that is not possible.
    pub fn watch_path(&self, path: &Path) -> Option<WatchedPath> {
        self.watch.as_ref().ok()?.watch_path(path).ok()
    }

    /// Reads the events of [`Self::watch`] away, so that it is readable no more; returns whether there were any.
    ///
    /// # Errors
    /// Those of read(2).
    pub fn drain_watch(&self) -> io::Result<bool> {
        self.watch.as_ref().map_or(Ok(false), |watch| watch.drain())
    }

    /// Finds the wanted sockets that exist, and refuses what they cannot become; a warning says what an inherited one
    /// will not be.
    fn find(&self, wanted: &[SocketPlan]) -> Result<Found, SocketError> {
        let live = self.listeners();
        let mut found = Vec::with_capacity(wanted.len());
        for (plan, known) in wanted.iter().zip(matched(&live, wanted)) {
            if known.as_ref().is_some_and(|known| known.is_dead() && known.is_inherited()) {
                return Err(Problem::ActivatorsOwn.of(plan));
            }
            // Whoever commits to a socket that nothing revives would promise what cannot be had.
            let known = known.filter(|known| !known.is_dead());
            if let Some(option) = known.as_ref().and_then(|known| known.unchangeable(plan)) {
                return Err(Problem::Unchangeable(option).of(plan));
            }
            found.push(known);
        }
        self.refuse_strangers()?;
        let mut warnings = Vec::new();
        for (index, listener) in inherited::match_up(&self.inherited, wanted, &found)? {
            if let Some(option) = listener.unchangeable(&wanted[index]) {
                warnings
                    .push(about(&wanted[index], &format!("it was inherited, so `{option}` stays as it is")));
            }
            found[index] = Some(listener);
        }
        Ok(Found { listeners: found, warnings })
    }

    fn refuse_strangers(&self) -> Result<(), SocketError> {
        match self.strangers.first() {
            None => Ok(()),
            Some((Inherited { name, .. }, what)) => {
                Err(SocketError::Unmatched { name: name.clone(), what: what.clone() })
            }
        }
    }

    /// Binds a new socket beside others that were just bound, and tells whose fault it is where the address is taken.
    fn bind(&self, plan: &SocketPlan, beside: &[Rc<Listener>]) -> Result<Listener, SocketError> {
        // One that could not be replaced is still known, and with it the folder of its path.
        let before = self.listeners().into_iter().find(|known| known.plan().is_same_socket(plan));
        let before = before.filter(|known| known.file.is_some());
        Listener::bind_over(plan, before.as_deref())
            .map_err(|problem| self.explain(plan, beside, problem).of(plan))
    }

    fn explain(&self, plan: &SocketPlan, beside: &[Rc<Listener>], problem: Problem) -> Problem {
        let (error, otherwise): (_, fn(io::Error) -> Problem) = match problem {
            Problem::Failed { step: Step::Binding | Step::Listening, error }
                if error.raw_os_error() == Some(Errno::EADDRINUSE as i32) =>
            {
                (error, Problem::Taken)
            }
            Problem::LivePath => (Errno::EADDRINUSE.into(), |_| Problem::LivePath),
            other => return other,
        };
        let is_in_the_way = |known: &&Rc<Listener>| overlap::overlap(&known.plan().spec, &plan.spec, false);
        if let Some(other) = beside.iter().find(is_in_the_way) {
            let spec = &other.plan().spec;
            let (name, listen) = (spec.name.clone(), spec.listen.clone());
            return Problem::Own { name, listen, hint: overlap::how_to_tell_apart(spec, &plan.spec) };
        }
        let live = self.listeners();
        let ours = live.iter().find(is_in_the_way);
        if ours.is_some_and(|ours| ours.is_dead()) {
            return Problem::Dead(error);
        }
        match ours.map(|known| known.plan().spec.clone()) {
            Some(SocketSpec { name, listen, .. }) => Problem::Overlaps { name, listen, error },
            None => otherwise(error),
        }
    }

    /// Remembers a socket and guards its path.
    fn register(&mut self, listener: &Rc<Listener>) -> Vec<String> {
        if !self.live.iter().any(|known| std::ptr::eq(known.as_ptr(), Rc::as_ptr(listener))) {
            self.live.push(Rc::downgrade(listener));
        }
        let warnings = listener.guard_path(&self.watch);
        warnings.into_iter().map(|text| about(&listener.plan(), &text)).collect()
    }
}

/// Changes all sockets to what is wanted of them, or none.
fn change_all(listeners: &[Rc<Listener>], wanted: &[SocketPlan]) -> Result<(), SocketError> {
    let mut undo = Vec::with_capacity(wanted.len());
    for (listener, plan) in listeners.iter().zip(wanted) {
        undo.push((listener, listener.plan().clone()));
        if let Err(problem) = listener.change(plan) {
            for (listener, before) in undo.into_iter().rev() {
                // Every value was in force a moment ago, so the kernel takes it; were it not so, the first problem
                // is still the one to tell.
                let _ = listener.change(&before);
            }
            return Err(problem.of(plan));
        }
    }
    Ok(())
}

/// Returns the listener that each plan is about already, each at most once: of sockets whose port the kernel chooses there may be
/// several that only their names tell apart, or nothing but their order.
fn matched(listeners: &[Rc<Listener>], plans: &[SocketPlan]) -> Vec<Option<Rc<Listener>>> {
    let mut left: Vec<_> = listeners.iter().collect();
    let mut matched: Vec<Option<Rc<Listener>>> = vec![None; plans.len()];
    for by_name in [true, false] {
        for (plan, matched) in plans.iter().zip(&mut matched).filter(|(_, matched)| matched.is_none()) {
            let is_it = |one: &&Rc<Listener>| {
                let one = one.plan();
                one.is_same_socket(plan) && (!by_name || one.spec.name == plan.spec.name)
            };
            *matched = left.iter().position(is_it).map(|place| Rc::clone(left.remove(place)));
        }
    }
    matched
}

/// Leads a sentence with the socket that it is about.
fn about(plan: &SocketPlan, text: &str) -> String {
    format!("socket `{}` ({}): {text}", plan.spec.name, plan.spec.listen)
}
