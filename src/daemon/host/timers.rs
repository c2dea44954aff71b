//! Deadlines by key: each key has at most one, and the loop waits for the earliest.
//!
//! A deadline is set where the reason for it arises. One that is due is taken out before its owner hears of it, so an owner that does
//! nothing about it is not woken again and again. One whose owner has gone meanwhile wakes the manager once, for nothing: clearing it
//! saves that, and no more.

use std::collections::{BTreeMap, BTreeSet};

use super::super::token::ClientId;
use crate::core::ids::WorkerId;
use crate::core::time::Mono;

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// Reaping goes on: more children had ended than one turn takes.
    Reap,
    /// The job of this pid takes too long.
    Job(i32),
    /// What has outlived its worker is looked for.
    Orphans,
    /// The state is written, which failed before.
    State,
    /// A client has been silent, or has not read, for too long.
    Client(ClientId),
    /// Clients are accepted again, which failed before.
    Accept,
    /// A Node worker has closed its servers and does not end.
    Lingering(WorkerId),
    /// A socket is sent to a Node worker, for which too many were on their way.
    Send(WorkerId),
    /// Sockets on demand are closed.
    Demands,
    /// A process of an earlier manager has drained for too long.
    Leftover(i32),
    /// The process of a connection has drained for too long.
    Guest(i32),
    /// Connections are accepted again, which failed before.
    Connections,
    /// Connections of a lazy service are counted, or it goes to sleep.
    Idleness,
    /// The service manager's watchdog is fed, or a message is sent that it did not take before.
    Upstream,
    /// A child that closes descriptors takes too long.
    Closers,
}

/// The deadlines.
#[derive(Debug, Default)]
pub struct Timers {
    by_key: BTreeMap<Timer, Mono>,
    in_order: BTreeSet<(Mono, Timer)>,
}

impl Timers {
    /// Sets a deadline in place of the one that the timer has, or clears it by `None`.
    pub fn set(&mut self, timer: Timer, at: impl Into<Option<Mono>>) {
        let at = at.into();
        let before = match at {
            Some(at) => self.by_key.insert(timer, at),
            None => self.by_key.remove(&timer),
        };
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.in_order.remove(&(before, timer));
        }
        if let Some(at) = at {
            self.in_order.insert((at, timer));
        }
    }

    /// Clears a deadline, if the timer has one.
    pub fn clear(&mut self, timer: Timer) {
        self.set(timer, None);
    }

    /// Returns the earliest deadline.
    pub fn next(&self) -> Option<Mono> {
        self.in_order.first().map(|(at, _)| *at)
    }

    /// Takes out all that are due, the earliest first.
    pub fn take_due(&mut self, now: Mono) -> Vec<Timer> {
        let mut due = Vec::new();
        while let Some((at, timer)) = self.in_order.first().copied().filter(|(at, _)| *at <= now) {
            self.in_order.remove(&(at, timer));
            self.by_key.remove(&timer);
            due.push(timer);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_comes_first_and_once() {
        let mut timers = Timers::default();
        assert_eq!((timers.next(), timers.take_due(Mono::NEVER)), (None, vec![]));
        timers.set(Timer::Idleness, Mono(30));
        timers.set(Timer::Orphans, Mono(10));
        timers.set(Timer::Guest(7), Mono(20));
        assert_eq!(timers.next(), Some(Mono(10)));
        assert_eq!(timers.take_due(Mono(9)), []);
        assert_eq!(timers.take_due(Mono(20)), [Timer::Orphans, Timer::Guest(7)]);
        assert_eq!(timers.take_due(Mono(20)), []);
        assert_eq!(timers.next(), Some(Mono(30)));
    }

    #[test]
    fn a_timer_has_one_deadline_the_last_that_was_set() {
        let mut timers = Timers::default();
        timers.set(Timer::Idleness, Mono(10));
        timers.set(Timer::Idleness, Mono(20));
        assert_eq!(timers.take_due(Mono(10)), []);
        timers.set(Timer::Idleness, Mono(5));
        assert_eq!(timers.take_due(Mono(10)), [Timer::Idleness]);
        timers.set(Timer::Idleness, Mono(5));
        timers.clear(Timer::Idleness);
        assert_eq!(timers.next(), None);
    }
}
