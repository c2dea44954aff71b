//! Waiting for connections at the sockets, without accepting them: on behalf of workers that sleep, or to see whether any
//! comes while nobody has one; and for processes of single connections, whose manager accepts.
//!
//! Each listener is registered once in epoll, for its hang-up alone ([`super::repair`]). Here that is widened for as long as
//! somebody wants to know; where nobody does, no connection wakes us.

use std::mem;
use std::rc::{Rc, Weak};
use std::time::Duration;

use super::guests::Guests;
use super::idleness::Idleness;
use super::run::Daemon;
use super::sockets::Listener;
use super::token::Token;
use crate::core::Event;
use crate::core::spec::SocketKind;
use crate::core::time::Mono;
use crate::sys::wait::Interest;

/// How soon it is accepted again where that failed for want of something.
const RETRY: Duration = Duration::from_millis(100);

/// What is there to start something with a connection.
#[derive(Debug, Default)]
pub struct OnDemand {
    pub(super) doors: Doors,
    pub(super) idleness: Idleness,
    /// The processes of single connections.
    pub(super) guests: Guests,
}

impl OnDemand {
    /// Goes on with processes that another manager has started; everything else is found out anew.
    pub(super) fn resume(guests: Guests) -> Self {
        Self { guests, ..Self::default() }
    }
}

/// The sockets that are watched for connections.
#[derive(Debug, Default)]
pub struct Doors {
    watched: Vec<Weak<Listener>>,
    /// When somebody may come again, where nobody could be let in.
    again_at: Option<Mono>,
}

impl Doors {
    /// When [`Daemon::mind_doors`] is due even if nothing happens.
    pub(super) fn deadline(&self) -> Option<Mono> {
        self.again_at
    }
}

impl Daemon {
    /// Watches for connections where somebody wants to know of them, and nowhere else.
    pub(super) fn mind_doors(&mut self) {
        let wanted = if self.wants_connections() { self.current_listeners() } else { Vec::new() };
        if wanted.is_empty() && self.on_demand.doors.watched.is_empty() {
            return;
        }
        let is_wanted = |one: &Rc<Listener>| wanted.iter().any(|other| Rc::ptr_eq(one, other));
        let before = mem::take(&mut self.on_demand.doors.watched).into_iter().filter_map(|one| one.upgrade());
        let (kept, left): (Vec<_>, Vec<_>) = before.partition(is_wanted);
        for listener in &left {
            self.shut(listener);
        }
        for listener in &wanted {
            if !kept.iter().any(|other| Rc::ptr_eq(listener, other)) {
                self.open(listener);
            }
        }
        self.on_demand.doors.watched = wanted.iter().map(Rc::downgrade).collect();
    }

    fn wants_connections(&mut self) -> bool {
        let now = self.now();
        self.on_demand.doors.again_at.take_if(|at| *at <= now);
        let is_open = !self.ended && !self.manager.is_stopping() && self.on_demand.doors.again_at.is_none();
        is_open && (self.manager.is_asleep() || self.on_demand.idleness.is_quiet() || self.has_guests())
    }

    fn current_listeners(&self) -> Vec<Rc<Listener>> {
        let of = self.generations.get(&self.manager.current());
        of.map_or_else(Vec::new, |of| of.sockets.listeners.clone())
    }

    fn open(&self, listener: &Rc<Listener>) {
        // Of streams it is known already, for their hang-up; of datagrams not.
        let token = Token::Doors.pack();
        if self.poller.modify(&**listener, token, Interest::Arrival).is_err() {
            let _ = self.poller.add(&**listener, token, Interest::Arrival);
        }
    }

    fn shut(&self, listener: &Rc<Listener>) {
        let is_watched =
            listener.plan().spec.kind != SocketKind::Datagram && !self.is_beyond_repair(listener);
        let _ = if is_watched {
            self.poller.modify(&**listener, Token::Sockets.pack(), Interest::Hangup)
        } else {
            self.poller.remove(&**listener)
        };
    }

    /// A connection waits, or a datagram; or a socket was shut down.
    pub(super) fn knocked(&mut self) {
        if self.has_guests() {
            if let Err(error) = self.let_in_guests() {
                tracing::warn!("no connection can be accepted: {error}; trying again in {RETRY:?}");
                self.on_demand.doors.again_at = Some(self.now() + RETRY);
            }
            return;
        }
        self.care.looks_at_sockets = true;
        self.on_demand.idleness.disturb();
        if self.manager.is_asleep() {
            self.inbox.push_back(Event::Connected);
        }
    }
}
