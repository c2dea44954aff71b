//! Whether a lazy service has anything to do: it may let its workers go when no connection has been left for a while.
//!
//! Nobody tells the manager when a connection ends. So it has a child count them now and then, as for `status`. Where there
//! is none it is told of the next one that comes ([`super::doors`]); where none comes for as long as the file says, and a
//! last count finds none, nothing is to be done.

use std::time::Duration;

use super::host::Timer;
use super::run::Daemon;
use crate::core::Event;
use crate::core::time::Mono;
use crate::wire::status::Status;

/// How often it is counted: so many times in the time of the file, and within these bounds.
const COUNTS: u32 = 4;
const SHORTEST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_secs(60);

/// What is known of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Idleness {
    /// Nobody wants to know, or it cannot be told now.
    #[default]
    Unasked,
    /// Somebody has a connection, as far as is known; the next count.
    Busy(Option<Mono>),
    /// It is being counted. Since when nobody has had one, where that was so before.
    Counting(Option<Mono>),
    /// Nobody has had one since then.
    Quiet(Mono),
}

impl Idleness {
    /// Whether a connection that comes is news.
    pub(super) fn is_quiet(self) -> bool {
        matches!(self, Self::Quiet(_) | Self::Counting(Some(_)))
    }

    /// Somebody has come.
    pub(super) fn disturb(&mut self) {
        if *self != Self::Unasked {
            *self = Self::Busy(None);
        }
    }
}

impl Daemon {
    fn idle_timeout(&self) -> Option<Duration> {
        let of = self.generations.get(&self.manager.current())?;
        of.release.spec.idle_timeout.filter(|_| self.manager.is_at_rest())
    }

    fn next_look_at_idleness(&self) -> Option<Mono> {
        match self.on_demand.idleness {
            Idleness::Unasked | Idleness::Counting(_) => None,
            Idleness::Busy(at) => at,
            Idleness::Quiet(since) => Some(since + self.idle_timeout()?),
        }
    }

    /// Has it counted where that is due.
    pub(super) fn mind_idleness(&mut self) {
        self.count_if_due();
        self.host.timers.set(Timer::Idleness, self.next_look_at_idleness());
    }

    fn count_if_due(&mut self) {
        let Some(timeout) = self.idle_timeout() else {
            self.on_demand.idleness = Idleness::Unasked;
            return;
        };
        let now = self.now();
        match self.on_demand.idleness {
            Idleness::Busy(Some(at)) if at <= now => self.count(None),
            Idleness::Quiet(since) if since + timeout <= now => self.count(Some(since)),
            _ => {}
        }
        // A count may have failed at once.
        if matches!(self.on_demand.idleness, Idleness::Unasked | Idleness::Busy(None)) {
            let next = now + (timeout / COUNTS).clamp(SHORTEST, LONGEST);
            self.on_demand.idleness = Idleness::Busy(Some(next));
        }
    }

    fn count(&mut self, quiet_since: Option<Mono>) {
        self.on_demand.idleness = Idleness::Counting(quiet_since);
        self.ask_for_count();
    }

    /// Takes a count; `None` where there could be none.
    pub(super) fn counted(&mut self, status: Option<&Status>) {
        let Idleness::Counting(quiet_since) = self.on_demand.idleness else { return };
        let is_idle = if self.only_workers_know() {
            self.manager.workers().all(|(_, worker)| worker.connections() == Some(0))
        } else {
            status.is_some_and(|status| status.workers.iter().all(|one| one.connections == Some(0)))
        };
        self.on_demand.idleness = match quiet_since {
            _ if !is_idle => Idleness::Busy(None),
            None => Idleness::Quiet(self.now()),
            Some(_) => {
                self.inbox.push_back(Event::Idle);
                Idleness::Unasked
            }
        };
    }
}
