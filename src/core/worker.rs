//! One worker process and the states that it goes through.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ids::{GenerationId, SlotId};
use super::notice::DrainReason;
use super::sight::{FIRST_PAUSE, Lack};
use super::spec::{Policy, Readiness};
use super::time::Mono;
use super::word::Word;

/// What a worker that says its drain is complete still has to end by itself.
const DRAINED_GRACE: Duration = Duration::from_secs(1);

/// How long a worker that is to say that it is ready may say nothing before the log says so, at most.
const SILENCE_ALLOWED: Duration = Duration::from_secs(10);

/// A worker process, from the decision to start it until it is reaped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    pub(super) generation: GenerationId,
    pub(super) slot: SlotId,
    pub(super) state: WorkerState,
    /// A respawn replaces it: it serves until its successor is ready.
    pub(super) outdated: bool,
    /// What it last said of itself (`STATUS=`).
    pub(super) status: String,
    /// The open connections that it last spoke of (`X_LIVESWAP_CONNECTIONS=`).
    pub(super) connections: Option<u64>,
    /// The interval of its watchdog; `WATCHDOG_USEC=` changes it.
    watchdog: Option<Duration>,
    /// What the last look showed that it does not do yet.
    #[serde(default)]
    pub(super) lack: Option<Lack>,
    /// Why no look tells whether it serves, so that it counts as ready once it has settled.
    #[serde(default)]
    pub(super) unseen: Option<String>,
}

/// Where a worker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each state says what its moments are")]
pub enum WorkerState {
    /// Asked for, perhaps not yet executed; has failed if it is not ready by `ready_by`. If it has said nothing by `speaks_by`, the log
    /// says so.
    Starting { ready_by: Mono, next: Check, speaks_by: Option<Mono> },
    /// Serves; a watchdog that runs ends at `alive_by`.
    Ready { since: Mono, alive_by: Option<Mono> },
    /// Finishes what it has, until `kill_at`.
    Draining { since: Mono, kill_at: Mono, why: DrainReason },
    /// Was sent SIGABRT, and may write its core until `kill_at`.
    Aborting { since: Mono, kill_at: Mono },
    /// Was sent SIGKILL with its whole tree; only its end is missing, and is asked after at `stuck_at`.
    Killing { stuck_at: Mono },
    /// Nothing ends it, or nothing may: it fills no slot, and nobody waits for it.
    Stuck,
}

/// How long after SIGKILL a process counts as one that does not end: the kernel needs a moment to take down a large one.
pub const KILL_TAKES: Duration = Duration::from_secs(5);

/// How the readiness of a starting worker is found out next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Check {
    /// By its own word, or not before it is executed, or by a probe that runs.
    Wait,
    /// It is ready if it still lives then.
    Settled { at: Mono },
    /// A probe is to be run then.
    Probe { at: Mono },
    /// A look is to be taken then, and the next one after the pause.
    Look { at: Mono, pause: Duration },
    /// A look is under way; the next one comes after the pause.
    Looking { pause: Duration },
}

/// What the manager has to do about a worker after it spoke or time passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    BecameReady,
    /// It has been alive for long enough.
    HasSettled,
    /// A look at its processes is due.
    Look,
    /// No look tells whether it serves.
    Unseen(String),
    /// It stops by its own decision; nobody asked it to.
    Leaves,
    RunProbe,
    /// It is to say that it is ready, and has said nothing for a while.
    Silent,
    NotReady,
    WatchdogMissed,
    WatchdogTriggered,
    /// It was to end, and did not in this time.
    DoesNotEnd(Duration),
    /// It was sent SIGKILL and is still there.
    OutlivesSigkill,
}

impl Worker {
    pub(super) fn new(generation: GenerationId, slot: SlotId, now: Mono, policy: &Policy) -> Self {
        Self {
            generation,
            slot,
            state: WorkerState::Starting {
                ready_by: now + policy.ready_timeout,
                next: Check::Wait,
                speaks_by: silence_allowed(policy).map(|time| now + time),
            },
            outdated: false,
            status: String::new(),
            connections: None,
            watchdog: policy.watchdog,
            lack: None,
            unseen: None,
        }
    }

    /// Whether it serves or is about to: it fills its slot.
    pub fn is_live(&self) -> bool {
        match self.state {
            WorkerState::Starting { .. } | WorkerState::Ready { .. } => true,
            WorkerState::Draining { .. }
            | WorkerState::Aborting { .. }
            | WorkerState::Killing { .. }
            | WorkerState::Stuck => false,
        }
    }

    /// Whether it serves.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, WorkerState::Ready { .. })
    }

    /// Whether it was asked to finish and has not ended yet.
    pub fn is_draining(&self) -> bool {
        matches!(self.state, WorkerState::Draining { .. })
    }

    /// Whether it was sent SIGKILL, or nothing can be sent to it.
    pub(super) fn is_killing(&self) -> bool {
        matches!(self.state, WorkerState::Killing { .. } | WorkerState::Stuck)
    }

    /// Whether nothing ends it.
    pub fn is_stuck(&self) -> bool {
        self.state == WorkerState::Stuck
    }

    /// Returns since when it is ready, where it is.
    pub(super) fn ready_since(&self) -> Option<Mono> {
        match self.state {
            WorkerState::Ready { since, .. } => Some(since),
            WorkerState::Starting { .. }
            | WorkerState::Draining { .. }
            | WorkerState::Aborting { .. }
            | WorkerState::Killing { .. }
            | WorkerState::Stuck => None,
        }
    }

    /// Returns how long it had been ready at `now`.
    pub(super) fn ready_for(&self, now: Mono) -> Duration {
        self.ready_since().map_or(Duration::ZERO, |since| now - since)
    }

    /// Returns the next moment at which something is due.
    pub(super) fn deadline(&self) -> Option<Mono> {
        match self.state {
            WorkerState::Starting { ready_by, next, speaks_by } => match next {
                Check::Wait => Some(speaks_by.map_or(ready_by, |at| ready_by.min(at))),
                Check::Looking { .. } => Some(ready_by),
                Check::Settled { at } | Check::Probe { at } | Check::Look { at, .. } => {
                    Some(ready_by.min(at))
                }
            },
            WorkerState::Ready { alive_by, .. } => alive_by,
            WorkerState::Draining { kill_at, .. } | WorkerState::Aborting { kill_at, .. } => Some(kill_at),
            // What was asked after once is not asked after again.
            WorkerState::Killing { stuck_at } => Some(stuck_at).filter(|at| *at < Mono::NEVER),
            WorkerState::Stuck => None,
        }
    }

    /// Notes that the worker's program now runs.
    pub(super) fn executed(&mut self, now: Mono, policy: &Policy) {
        if let WorkerState::Starting { next, .. } = &mut self.state {
            *next = match policy.readiness {
                // The manager before has heard it already, and the look that is under way counts.
                _ if matches!(next, Check::Looking { .. }) => return,
                Readiness::Notify => Check::Wait,
                Readiness::Settled(settle) => Check::Settled { at: now + settle },
                Readiness::Probe(_) => Check::Probe { at: now },
                Readiness::Accepting(_) => Check::Look { at: now + FIRST_PAUSE, pause: FIRST_PAUSE },
            };
        }
    }

    /// Goes on under another manager: its program runs, as nobody takes over before that, and what it said meanwhile was
    /// not heard.
    pub(super) fn taken_over(&mut self, now: Mono, policy: &Policy) {
        self.executed(now, policy);
        self.feed_watchdog(now);
        if let WorkerState::Killing { stuck_at } = &mut self.state {
            // Who was to see to it may have died in between.
            *stuck_at = now + KILL_TAKES;
        }
    }

    /// Gives it the time once more that it has for what it is at; one that `is_proving` that it stays ready begins anew.
    pub(super) fn overslept(&mut self, now: Mono, policy: &Policy, is_proving: bool) {
        let watchdog = self.watchdog;
        match &mut self.state {
            WorkerState::Starting { ready_by, next, speaks_by } => {
                *ready_by = (*ready_by).max(now + policy.ready_timeout);
                *speaks_by = speaks_by.zip(silence_allowed(policy)).map(|(at, time)| at.max(now + time));
                if let (Check::Settled { at }, Readiness::Settled(settle) | Readiness::Accepting(settle)) =
                    (next, policy.readiness)
                {
                    *at = (*at).max(now + settle);
                }
            }
            WorkerState::Ready { since, alive_by } => {
                if is_proving {
                    *since = now;
                }
                *alive_by = alive_by.zip(watchdog).map(|(at, interval)| at.max(now + interval));
            }
            WorkerState::Draining { kill_at, .. } | WorkerState::Aborting { kill_at, .. } => {
                *kill_at = (*kill_at).max(now + policy.drain_timeout);
            }
            WorkerState::Killing { stuck_at } if *stuck_at < Mono::NEVER => {
                *stuck_at = (*stuck_at).max(now + KILL_TAKES);
            }
            WorkerState::Killing { .. } | WorkerState::Stuck => {}
        }
    }

    /// Whether it may have said that it is ready when nobody listened, and will not say so again.
    pub(super) fn may_be_unheard(&self, policy: &Policy) -> bool {
        matches!(self.state, WorkerState::Starting { .. }) && policy.readiness == Readiness::Notify
    }

    /// Takes the end of a probe; one that comes too late changes nothing.
    pub(super) fn probed(&mut self, now: Mono, passed: bool, policy: &Policy) -> Option<Turn> {
        let (WorkerState::Starting { next, .. }, Readiness::Probe(pause)) =
            (&mut self.state, policy.readiness)
        else {
            return None;
        };
        if passed {
            return Some(self.become_ready(now));
        }
        *next = Check::Probe { at: now + pause };
        None
    }

    /// Takes what is due at `now`.
    pub(super) fn tick(&mut self, now: Mono) -> Option<Turn> {
        match &mut self.state {
            WorkerState::Killing { stuck_at } if *stuck_at <= now => {
                *stuck_at = Mono::NEVER;
                Some(Turn::OutlivesSigkill)
            }
            WorkerState::Starting { ready_by, next, speaks_by } => match *next {
                Check::Settled { at } if at <= now => Some(Turn::HasSettled),
                _ if *ready_by <= now => Some(Turn::NotReady),
                Check::Probe { at } if at <= now => {
                    *next = Check::Wait;
                    Some(Turn::RunProbe)
                }
                Check::Wait if speaks_by.is_some_and(|at| at <= now) => {
                    *speaks_by = None;
                    Some(Turn::Silent)
                }
                Check::Look { at, .. } if at <= now => Some(Turn::Look),
                Check::Wait
                | Check::Settled { .. }
                | Check::Probe { .. }
                | Check::Look { .. }
                | Check::Looking { .. } => None,
            },
            WorkerState::Ready { alive_by, .. } => {
                (*alive_by).filter(|at| *at <= now).map(|_| Turn::WatchdogMissed)
            }
            WorkerState::Draining { since, kill_at, .. } | WorkerState::Aborting { since, kill_at } => {
                (*kill_at <= now).then(|| Turn::DoesNotEnd(now - *since))
            }
            WorkerState::Killing { .. } | WorkerState::Stuck => None,
        }
    }

    /// Takes one word of a notify message (`sd_notify(3)`).
    pub(super) fn said(&mut self, now: Mono, word: Word, policy: &Policy) -> Option<Turn> {
        if let WorkerState::Starting { speaks_by, .. } = &mut self.state {
            *speaks_by = None;
        }
        match word {
            Word::Ready => self.said_ready(now, policy),
            Word::Stopping => self.is_live().then_some(Turn::Leaves),
            // A worker that reloads still serves; before its first READY=1 the word says nothing of readiness.
            Word::Reloading => None,
            // Its exit will tell the same, and cannot lie.
            Word::Errno(_) | Word::ExitStatus(_) => None,
            Word::Status(status) => {
                self.status = status;
                None
            }
            Word::Watchdog => {
                self.feed_watchdog(now);
                None
            }
            Word::WatchdogTrigger => self.is_live().then_some(Turn::WatchdogTriggered),
            Word::WatchdogInterval(interval) => {
                self.watchdog = (!interval.is_zero()).then_some(interval);
                self.feed_watchdog(now);
                None
            }
            Word::ExtendTimeout(time) => {
                self.extend(now + time);
                None
            }
            Word::Connections(count) => {
                self.connections = Some(count);
                None
            }
            Word::Drained => {
                if let WorkerState::Draining { kill_at, .. } = &mut self.state {
                    *kill_at = (*kill_at).min(now + DRAINED_GRACE);
                }
                None
            }
        }
    }

    fn said_ready(&mut self, now: Mono, policy: &Policy) -> Option<Turn> {
        match (self.state, policy.readiness) {
            (WorkerState::Starting { .. }, Readiness::Notify) => Some(self.become_ready(now)),
            // Readiness is found out in another way.
            (
                WorkerState::Starting { .. },
                Readiness::Settled(_) | Readiness::Probe(_) | Readiness::Accepting(_),
            ) => None,
            // Many programs say it twice; one that drains, or is being ended, says it too late.
            (
                WorkerState::Ready { .. }
                | WorkerState::Draining { .. }
                | WorkerState::Aborting { .. }
                | WorkerState::Killing { .. }
                | WorkerState::Stuck,
                _,
            ) => None,
        }
    }

    pub(super) fn become_ready(&mut self, now: Mono) -> Turn {
        let alive_by = self.watchdog.map(|interval| now + interval);
        self.state = WorkerState::Ready { since: now, alive_by };
        Turn::BecameReady
    }

    fn feed_watchdog(&mut self, now: Mono) {
        if let WorkerState::Ready { alive_by, .. } = &mut self.state {
            *alive_by = self.watchdog.map(|interval| now + interval);
        }
    }

    /// Puts the current state's deadline off to `until`, never back (sd_notify(3), `EXTEND_TIMEOUT_USEC=`).
    fn extend(&mut self, until: Mono) {
        match &mut self.state {
            WorkerState::Starting { ready_by: deadline, .. }
            | WorkerState::Ready { alive_by: Some(deadline), .. }
            | WorkerState::Draining { kill_at: deadline, .. }
            | WorkerState::Aborting { kill_at: deadline, .. } => *deadline = (*deadline).max(until),
            WorkerState::Ready { alive_by: None, .. } | WorkerState::Killing { .. } | WorkerState::Stuck => {}
        }
    }
}

/// Returns how long a worker may say nothing before the log says so: at most half of the time in which it is to become ready. `None` if it
/// need not say anything.
pub(super) fn silence_allowed(policy: &Policy) -> Option<Duration> {
    match policy.readiness {
        Readiness::Notify => Some(SILENCE_ALLOWED.min(policy.ready_timeout / 2)),
        Readiness::Settled(_) | Readiness::Probe(_) | Readiness::Accepting(_) => None,
    }
}
