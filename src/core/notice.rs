//! What the core tells the world: one notice a transition, in the words of the log.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ids::{GenerationId, SlotId, WorkerId};
use super::sight::Lack;
use super::time::Human;

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// It called `exit` with this status.
    Status(i32),
    /// A signal killed it: its number, and its name.
    Signal(i32, String),
    /// The signal that asked it to drain ended it, which is a clean end: many programs send themselves that signal again when
    /// they have drained. The signal's name.
    Drained(String),
    /// Its program never ran: the step that failed, and why.
    NotExecuted(String),
    /// Nobody could see how: it was the child of a manager that was killed.
    Unseen,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "exited with status {status}"),
            Self::Signal(_, name) => write!(f, "was killed by {name}"),
            Self::Drained(name) => write!(f, "ended by {name}, as it was asked to"),
            Self::NotExecuted(why) => write!(f, "could not be started: {why}"),
            Self::Unseen => f.write_str("ended, and its exit status is not known"),
        }
    }
}

impl Exit {
    /// Returns how it ended in as few words as tell it: `status 3`, `SIGSEGV (core dumped)`.
    #[must_use]
    pub fn in_short(&self) -> String {
        match self {
            Self::Status(status) => format!("status {status}"),
            Self::Signal(_, name) | Self::Drained(name) => name.clone(),
            Self::NotExecuted(_) => self.to_string(),
            Self::Unseen => "not known".into(),
        }
    }
}

/// Why a worker drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DrainReason {
    /// Another worker serves in its place.
    Replaced,
    /// The generation that it belongs to failed.
    RolledBack,
    /// The service has fewer workers now.
    ScaledDown,
    /// Nothing is to be done.
    Idle,
    /// It was not ready in time.
    NotReady,
    /// It said by itself that it stops.
    ByItself,
    /// It was starting while there was no manager that could have heard that it is ready.
    Unheard,
    /// The service stops.
    Stop,
}

impl fmt::Display for DrainReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Replaced => "replaced",
            Self::RolledBack => "its generation failed",
            Self::ScaledDown => "fewer workers are wanted",
            Self::Idle => "nothing is to be done",
            Self::NotReady => "not ready in time",
            Self::ByItself => "it stops by itself",
            Self::Unheard => "nobody could hear whether it is ready",
            Self::Stop => "the service stops",
        })
    }
}

/// How an upgrade ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The new generation serves.
    Committed,
    /// The new generation failed; the old one serves.
    RolledBack(String),
    /// Nothing was started.
    Refused(String),
    /// Something else took its place, such as a stop.
    Superseded(String),
}

impl Outcome {
    /// The word for it in `LIVESWAP_OUTCOME`, in events and in answers.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::RolledBack(_) => "rolled-back",
            Self::Refused(_) => "refused",
            Self::Superseded(_) => "superseded",
        }
    }

    /// Why it is not committed.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Committed => None,
            Self::RolledBack(reason) | Self::Refused(reason) | Self::Superseded(reason) => Some(reason),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Committed => f.write_str("committed"),
            Self::RolledBack(reason) => write!(f, "rolled back: {reason}"),
            Self::Refused(reason) => write!(f, "refused: {reason}"),
            Self::Superseded(reason) => write!(f, "superseded: {reason}"),
        }
    }
}

/// A transition worth a line in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// An upgrade to this generation begins, with its checks.
    UpgradeBegan(GenerationId),
    /// The first generation begins, made of what the second, an earlier one, was.
    RollbackBegan(GenerationId, GenerationId),
    /// The checks passed: its workers start.
    Surging(GenerationId),
    /// All its workers serve; until the time is over a failure rolls it back.
    Probation(GenerationId, Duration),
    /// It failed, and the generation before is being brought back to full strength.
    RollingBack(GenerationId, String),
    /// The upgrade is over.
    UpgradeEnded(GenerationId, Outcome),
    /// All workers are ready for the first time.
    Serving(GenerationId),
    /// Something is to be done: the generation's workers start.
    Woken(GenerationId),
    /// Nothing is to be done any more: the generation's workers drain.
    Asleep(GenerationId),
    /// Every worker of the generation is being replaced by a fresh one.
    RespawnBegan(GenerationId),
    /// The respawn is over; an error says why workers were left as they were.
    RespawnEnded(GenerationId, Result<(), String>),
    /// The service is to have this many workers.
    Scaled(GenerationId, u32),
    /// The last worker of an old generation has gone.
    GenerationGone(GenerationId),
    /// More generations drain than may; this one's workers are killed.
    GenerationCut(GenerationId),
    /// Something about one worker.
    Worker(WorkerId, WorkerNotice),
    /// A slot waits before its next worker.
    Backoff(GenerationId, SlotId, Duration),
    /// The service stops; this many workers drain.
    Stopping(usize),
    /// All workers are killed.
    KillingAll(usize),
    /// The manager was killed, and another goes on with the generation and this many workers.
    TakenOver(GenerationId, usize),
}

/// What happened to a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerNotice {
    /// It serves.
    Ready,
    /// It was asked to finish.
    Draining(DrainReason),
    /// It is to say that it is ready, and has said nothing in this time.
    Silent(Duration),
    /// It was not ready in time; what it did not do, where a look has shown that.
    NotReady(Duration, Option<Lack>),
    /// No look tells whether it serves, so it counts as ready once it has settled; the text says why.
    Unseen(String),
    /// It did not feed its watchdog in time.
    WatchdogMissed,
    /// It asked for the watchdog's action.
    WatchdogTriggered,
    /// It had not finished by its deadline and is killed with all its tree.
    DrainTimedOut(Duration),
    /// It ended when it should: after it was asked to.
    Ended(Exit),
    /// It ended by itself.
    Died(Exit),
    /// Killed from outside in an upgrade; it gets another chance.
    Spared,
    /// Nothing ends it; the text says which process, and why.
    Stuck(String),
}

/// How loud a notice is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loudness {
    /// The usual.
    Info,
    /// Someone should look at it.
    Warning,
}

impl Notice {
    /// The word for it in events.
    pub fn word(&self) -> &'static str {
        match self {
            Self::UpgradeBegan(_) => "upgrade-began",
            Self::RollbackBegan(..) => "rollback-began",
            Self::Surging(_) => "starting",
            Self::Probation(..) => "probation",
            Self::RollingBack(..) => "rolling-back",
            Self::UpgradeEnded(..) => "upgrade-ended",
            Self::Serving(_) => "serving",
            Self::Woken(_) => "woken",
            Self::Asleep(_) => "asleep",
            Self::RespawnBegan(_) => "respawn-began",
            Self::RespawnEnded(..) => "respawn-ended",
            Self::Scaled(..) => "scaled",
            Self::GenerationGone(_) => "generation-gone",
            Self::GenerationCut(_) => "generation-killed",
            Self::Worker(_, notice) => notice.word(),
            Self::Backoff(..) => "worker-waits",
            Self::Stopping(_) => "stopping",
            Self::KillingAll(_) => "killing",
            Self::TakenOver(..) => "taken-over",
        }
    }

    /// The generation that it is about, where it names one.
    pub fn generation(&self) -> Option<GenerationId> {
        match self {
            Self::UpgradeBegan(id)
            | Self::RollbackBegan(id, _)
            | Self::Surging(id)
            | Self::Probation(id, _)
            | Self::RollingBack(id, _)
            | Self::UpgradeEnded(id, _)
            | Self::Serving(id)
            | Self::Woken(id)
            | Self::Asleep(id)
            | Self::RespawnBegan(id)
            | Self::RespawnEnded(id, _)
            | Self::Scaled(id, _)
            | Self::GenerationGone(id)
            | Self::GenerationCut(id)
            | Self::Backoff(id, ..)
            | Self::TakenOver(id, _) => Some(*id),
            Self::Worker(..) | Self::Stopping(_) | Self::KillingAll(_) => None,
        }
    }

    /// Returns how loud it is.
    pub fn loudness(&self) -> Loudness {
        match self {
            Self::UpgradeEnded(_, Outcome::Committed | Outcome::Superseded(_))
            | Self::RespawnEnded(_, Ok(()))
            | Self::UpgradeBegan(_)
            | Self::RollbackBegan(..)
            | Self::Surging(_)
            | Self::Probation(..)
            | Self::Serving(_)
            | Self::Woken(_)
            | Self::Asleep(_)
            | Self::RespawnBegan(_)
            | Self::Scaled(..)
            | Self::GenerationGone(_)
            | Self::Backoff(..)
            | Self::Stopping(_)
            | Self::Worker(
                _,
                WorkerNotice::Ready
                | WorkerNotice::Unseen(_)
                | WorkerNotice::Draining(_)
                | WorkerNotice::Ended(_),
            ) => Loudness::Info,
            Self::UpgradeEnded(_, Outcome::RolledBack(_) | Outcome::Refused(_))
            | Self::RespawnEnded(_, Err(_))
            | Self::RollingBack(..)
            | Self::GenerationCut(_)
            | Self::KillingAll(_)
            | Self::TakenOver(..)
            | Self::Worker(
                _,
                WorkerNotice::Silent(_)
                | WorkerNotice::NotReady(..)
                | WorkerNotice::WatchdogMissed
                | WorkerNotice::WatchdogTriggered
                | WorkerNotice::DrainTimedOut(_)
                | WorkerNotice::Died(_)
                | WorkerNotice::Spared
                | WorkerNotice::Stuck(_),
            ) => Loudness::Warning,
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UpgradeBegan(id) => write!(f, "generation {id} checking"),
            Self::RollbackBegan(id, earlier) => {
                write!(f, "generation {id} checking: generation {earlier} once more")
            }
            Self::Surging(id) => write!(f, "generation {id} starting"),
            Self::Probation(id, time) => write!(f, "generation {id} on probation for {}", Human(*time)),
            Self::RollingBack(id, why) => write!(f, "generation {id} rolling back: {why}"),
            Self::UpgradeEnded(id, outcome) => write!(f, "generation {id} {outcome}"),
            Self::Serving(id) => write!(f, "generation {id} serving"),
            Self::Woken(id) => write!(f, "generation {id} woken by a connection"),
            Self::Asleep(id) => write!(f, "generation {id} asleep: no connection is left"),
            Self::RespawnBegan(id) => write!(f, "generation {id} respawning"),
            Self::RespawnEnded(id, Ok(())) => write!(f, "generation {id} respawned"),
            Self::RespawnEnded(id, Err(why)) => write!(f, "generation {id} respawn given up: {why}"),
            Self::Scaled(id, strength) => {
                write!(f, "generation {id} scaled to {}", workers(*strength as usize))
            }
            Self::GenerationGone(id) => write!(f, "generation {id} gone"),
            Self::GenerationCut(id) => {
                write!(f, "generation {id} killed: more generations drain than max_generations allows")
            }
            Self::Worker(id, notice) => write!(f, "worker {id} {notice}"),
            Self::Backoff(generation, slot, pause) => {
                write!(f, "slot {slot} (generation {generation}) starts again in {}", Human(*pause))
            }
            Self::Stopping(0) => f.write_str("stopping"),
            Self::Stopping(count) => {
                write!(f, "stopping: {} to drain; a second SIGINT or SIGTERM kills", workers(*count))?;
                f.write_str(if *count == 1 { " it" } else { " them" })
            }
            Self::KillingAll(count) => write!(f, "killing {}", workers(*count)),
            Self::TakenOver(id, count) => write!(f, "generation {id} taken over with {}", workers(*count)),
        }
    }
}

/// `1 worker`, `2 workers`.
pub(super) fn workers(count: usize) -> String {
    if count == 1 { "1 worker".into() } else { format!("{count} workers") }
}

impl WorkerNotice {
    fn word(&self) -> &'static str {
        match self {
            Self::Ready => "worker-ready",
            Self::Draining(_) => "worker-draining",
            Self::Silent(_) => "worker-silent",
            Self::NotReady(..) => "worker-not-ready",
            Self::Unseen(_) => "worker-unseen",
            Self::WatchdogMissed => "worker-watchdog-missed",
            Self::WatchdogTriggered => "worker-watchdog-triggered",
            Self::DrainTimedOut(_) => "worker-drain-timed-out",
            Self::Ended(_) => "worker-gone",
            Self::Died(_) => "worker-died",
            Self::Spared => "worker-spared",
            Self::Stuck(_) => "worker-stuck",
        }
    }
}

impl fmt::Display for WorkerNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("ready"),
            Self::Draining(why) => write!(f, "draining: {why}"),
            Self::Silent(time) => write!(f, "has said nothing for {}", Human(*time)),
            Self::NotReady(time, None) => write!(f, "not ready after {}", Human(*time)),
            Self::NotReady(time, Some(lack)) => f.write_str(&lack.after(*time)),
            Self::Unseen(why) => {
                write!(
                    f,
                    "cannot be seen waiting for connections: {why}; `settle` alone decides when it is ready"
                )
            }
            Self::WatchdogMissed => f.write_str("missed its watchdog; SIGABRT"),
            Self::WatchdogTriggered => f.write_str("triggered its watchdog; SIGABRT"),
            Self::DrainTimedOut(time) => write!(f, "not finished after {}; SIGKILL", Human(*time)),
            Self::Ended(exit) => write!(f, "gone: {exit}"),
            Self::Died(exit) => exit.fmt(f),
            Self::Spared => f.write_str("was killed from outside; the upgrade goes on with another"),
            Self::Stuck(what) => write!(f, "stuck: {what}; it is not waited for any more"),
        }
    }
}
