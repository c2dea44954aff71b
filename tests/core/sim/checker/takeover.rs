//! What must hold when another manager has taken over from one that was killed.

use std::collections::BTreeSet;

use liveswap::core::ids::WorkerId;
use liveswap::core::spec::Readiness;
use liveswap::core::time::Mono;

use super::{Checker, Phase, STUCK_AFTER, Stage, Verdict, ensure};

impl Checker {
    /// The manager was killed, and another goes on: nobody waits for an answer any more, and nobody wants an end.
    pub(super) fn take_over(&mut self, now: Mono, gone: &BTreeSet<WorkerId>) {
        self.requests.retain(|_, asked| asked.answered.is_some());
        self.target_to_come = None;
        self.has_guests = false;
        if self.stop_by.take().is_some() {
            // What waited was given up.
            self.stale_to_come.clear();
            self.kills_to_come = false;
        }
        for worker in self.workers.values_mut() {
            match worker.stage {
                Stage::Starting => {
                    worker.executed = Some(now);
                    // Whoever looked at it did so for the manager that is no more.
                    (worker.looked_at, worker.was_looked_at, worker.serves_since) = (false, false, None);
                }
                // Whoever could feed it could not be heard.
                Stage::Ready => worker.deadline = worker.watchdog.map(|interval| now + interval),
                Stage::Killing => worker.deadline = Some(now + STUCK_AFTER),
                Stage::Draining | Stage::Aborting | Stage::Stuck => {}
            }
        }
        for id in gone {
            self.take_end(*id);
        }
        let serves = self.live().any(|worker| worker.stage == Stage::Ready);
        self.served &= serves || self.generations[&self.current].wanted() == 0;
        self.disturb();
        self.takes_over = true;
    }

    /// Whether the worker may have said that it is ready when nobody could hear it.
    pub(super) fn is_unheard(&self, id: WorkerId) -> bool {
        let is_told = |generation| {
            self.release(generation).is_ok_and(|release| release.policy.readiness == Readiness::Notify)
        };
        let worker = self.workers.get(&id);
        self.takes_over
            && worker.is_some_and(|worker| worker.stage == Stage::Starting && is_told(worker.generation))
    }

    /// Checks what was decided: no upgrade goes forward, and nobody is waited for whose word was lost. `newest` is the last
    /// worker that was started before.
    pub(super) fn check_taken_over(&mut self, newest: WorkerId) -> Verdict {
        let phase = self.upgrade.as_ref().map(|upgrade| upgrade.phase);
        let ends = matches!(phase, None | Some(Phase::RollingBack));
        ensure!(ends, "the upgrade goes on, which is {phase:?}");
        let unheard = self.workers.keys().find(|id| **id <= newest && self.is_unheard(**id));
        ensure!(unheard.is_none(), "worker {unheard:?} may have said in vain that it is ready");
        self.takes_over = false;
        Ok(())
    }
}
