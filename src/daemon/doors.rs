//! Waiting for connections at the sockets, without accepting them: on behalf of workers that sleep, or to see whether any
//! comes while nobody has one; and for processes of single connections, whose manager accepts.
//!
//! Each listener is registered once in epoll, for its hang-up alone ([`super::repair`]). Here that is widened for as long as
//! somebody wants to know; where nobody does, no connection wakes us.

use std::io;
use std::mem;
use std::rc::{Rc, Weak};
use std::time::Duration;

use nix::unistd::{Pid, getpid};
use tracing::warn;

use super::guests::Guests;
use super::host::Timer;
use super::idleness::Idleness;
use super::run::Daemon;
use super::sockets::Listener;
use super::token::Token;
use crate::core::Event;
use crate::core::spec::{Accept, SocketKind};
use crate::core::time::Mono;
use crate::sys::foreign::ForeignFd;
use crate::sys::wait::Interest;
use crate::sys::{held, process};

/// How soon it is accepted again where that failed for want of something.
const RETRY: Duration = Duration::from_millis(100);

/// How soon it is looked again for processes that share the sockets.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

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
    pub(super) fn resume(guests: Guests, waiting: Option<(Rc<Listener>, Accept, ForeignFd)>) -> Self {
        Self { guests, doors: Doors { waiting, ..Doors::default() }, ..Self::default() }
    }
}

/// The sockets that are watched for connections.
#[derive(Debug, Default)]
pub struct Doors {
    watched: Vec<Weak<Listener>>,
    /// When somebody may come again, where nobody could be let in.
    again_at: Option<Mono>,
    /// Who was accepted and then could not be served for want of something.
    pub(super) waiting: Option<(Rc<Listener>, Accept, ForeignFd)>,
    /// That was said, and is so still.
    is_short: bool,
    /// Whether no process but the manager has the sockets, as far as that can be seen.
    is_private: bool,
    /// It was said which process has them, too.
    named_sharer: Option<Pid>,
}

impl Daemon {
    /// Watches for connections where somebody wants to know of them, and nowhere else.
    pub(super) fn mind_doors(&mut self) {
        self.look_for_sharers();
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
        // A connection that was accepted reminds us of itself no more.
        if self.on_demand.doors.waiting.is_some() && self.wants_connections() && self.lets_in_guests() {
            self.pause_doors(Duration::ZERO);
        }
    }

    /// Lets in again who could not be, where that time has come.
    pub(super) fn try_doors_again(&mut self) {
        self.on_demand.doors.again_at = None;
        if !self.has_guests() {
            // Workers serve by now, and no connection that was accepted here.
            self.on_demand.doors.waiting = None;
        }
        // No other connection may come that would remind us.
        if self.on_demand.doors.waiting.is_some() {
            self.knocked(false);
        }
    }

    fn pause_doors(&mut self, time: Duration) {
        let at = self.now() + time;
        self.on_demand.doors.again_at = Some(at);
        self.host.timers.set(Timer::Connections, at);
    }

    fn wants_connections(&self) -> bool {
        let is_open = !self.ended && !self.manager.is_stopping() && self.on_demand.doors.again_at.is_none();
        is_open && (self.manager.is_asleep() || self.on_demand.idleness.is_quiet() || self.lets_in_guests())
    }

    /// Whether connections have processes of their own, and no worker shares the sockets, or is about to.
    ///
    /// `O_NONBLOCK` belongs to all who share a socket: a worker that clears it between our look and accept4(2) would have
    /// us wait for the next client, and for nothing else.
    fn lets_in_guests(&self) -> bool {
        let is_private = self.on_demand.doors.is_private && self.shares_with_none_known();
        self.has_guests() && is_private && self.manager.aims_at() == self.manager.current()
    }

    fn shares_with_none_known(&self) -> bool {
        self.processes.is_empty() && self.leftovers.is_empty()
    }

    /// Finds out whether the sockets are ours alone, once all workers have gone: what they have started may live on.
    fn look_for_sharers(&mut self) {
        if !self.has_guests() || !self.shares_with_none_known() {
            self.on_demand.doors.is_private = false;
            return;
        }
        if self.on_demand.doors.is_private || self.on_demand.doors.again_at.is_some() {
            return;
        }
        let sharer = self.sharer();
        self.on_demand.doors.is_private = sharer.is_none();
        if let Some(pid) = sharer {
            self.pause_doors(LOOK_AGAIN);
            if self.on_demand.doors.named_sharer.replace(pid) != Some(pid) {
                warn!("connections wait, as process {pid}, which a worker left behind, shares the sockets");
            }
        }
    }

    /// Returns a process of our tree that has one of the sockets.
    fn sharer(&self) -> Option<Pid> {
        let listeners = self.current_listeners();
        let inodes: Vec<_> = listeners.iter().filter_map(|one| held::inode(&**one).ok()).collect();
        let has_one = |pid: &Pid| match held::open_files(*pid) {
            Ok(open) => open.iter().any(|one| one.kind == held::Kind::Socket && inodes.contains(&one.inode)),
            // Of the process of a connection it is known that it has none; one that has ended has nothing.
            Err(error) => {
                error.kind() == io::ErrorKind::PermissionDenied && !self.host.roles.contains_key(pid)
            }
        };
        process::descendants(getpid()).into_iter().find(has_one)
    }

    /// The sockets of the generation that serves, but those that nothing repairs: they would wake us for ever.
    fn current_listeners(&self) -> Vec<Rc<Listener>> {
        let of = self.generations.get(&self.manager.current());
        let all = of.into_iter().flat_map(|of| &of.sockets.listeners);
        all.filter(|listener| !self.is_beyond_repair(listener)).map(Rc::clone).collect()
    }

    fn open(&self, listener: &Rc<Listener>) {
        // Workers may have shared it, and left it as they liked it: what accepts here must not wait.
        if self.has_guests()
            && let Err(error) = listener.set_non_blocking()
        {
            warn!("socket `{}` stays shut, as accepting may block: {error}", listener.plan().spec.name);
            return;
        }
        // Of streams it is known already, for their hang-up; of datagrams not.
        let _ = listener.fd.watch(&self.host.poller, Token::Doors, Interest::Arrival);
    }

    fn shut(&self, listener: &Rc<Listener>) {
        let is_watched =
            listener.plan().spec.kind != SocketKind::Datagram && !self.is_beyond_repair(listener);
        if is_watched {
            let _ = listener.fd.watch(&self.host.poller, Token::Sockets, Interest::Hangup);
        } else {
            listener.fd.unwatch();
        }
    }

    /// A connection waits, or a datagram; `hung_up` where a socket was shut down.
    pub(super) fn knocked(&mut self, hung_up: bool) {
        if hung_up {
            self.mend_sockets(None);
        }
        self.on_demand.idleness.disturb();
        if self.manager.is_asleep() {
            self.inbox.push_back(Event::Connected);
        }
        if self.lets_in_guests() {
            match self.let_in_guests() {
                Ok(()) => self.on_demand.doors.is_short = false,
                Err(error) => {
                    if !mem::replace(&mut self.on_demand.doors.is_short, true) {
                        warn!("a connection cannot be served: {error}; trying again and again");
                    }
                    self.pause_doors(RETRY);
                }
            }
        }
    }
}
