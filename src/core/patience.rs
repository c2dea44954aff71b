//! How long workers are waited for: which are not waited for at all, and when all get their time once more.

use std::time::Duration;

use super::Action;
use super::ids::WorkerId;
use super::manager::Manager;
use super::notice::{Notice, WorkerNotice};
use super::spec::Strategy;
use super::time::Mono;
use super::upgrade::{Phase, Upgrade};
use super::worker::{KILL_TAKES, Worker, WorkerState};

impl Manager {
    /// Gives what workers must keep to in time once more the time that it has.
    pub(super) fn overslept(&mut self, now: Mono) {
        let incoming = self.incoming();
        let is_proving = self.is_proving();
        self.workers.change_all(|_, worker| {
            let policy = &self.generations[&worker.generation].policy;
            worker.overslept(now, policy, is_proving && worker.generation == incoming);
        });
        let probation = self.rules().policy.probation;
        let latest = self.latest_restoration(now);
        if let Some(upgrade) = self.upgrade_mut() {
            upgrade.overslept(now, probation, latest);
        }
    }

    /// Takes the news that nothing ends a worker: from now on nobody waits for it. `what` says of which process, and why.
    pub(super) fn does_not_end(&mut self, now: Mono, id: WorkerId, what: String, out: &mut Vec<Action>) {
        let is_left = |worker: &Worker| !worker.is_live() && !worker.is_stuck();
        let Some(worker) = self.workers.get(id).filter(|worker| is_left(worker)) else { return };
        let is_incoming = worker.generation == self.incoming();
        self.set_state(id, WorkerState::Stuck);
        out.push(Action::Tell(Notice::Worker(id, WorkerNotice::Stuck(what.clone()))));
        let surges = |upgrade: &Upgrade| matches!(upgrade.phase, Phase::Surging { .. });
        let waits = self.rules().strategy == Strategy::Recreate && self.upgrade().is_some_and(surges);
        if waits && !is_incoming {
            self.roll_back(now, what, out);
        }
    }

    /// Returns when the old generation must be back, if it begins to come back now.
    pub(super) fn latest_restoration(&self, now: Mono) -> Mono {
        now + self.time_to_restore() + self.time_to_wait_for_ends(now)
    }

    /// Returns how long the old generation may need to come back, if each of its workers boots as slowly as it may.
    fn time_to_restore(&self) -> Duration {
        let old = &self.generations[&self.current];
        let at_a_time = (self.rules().surge() + self.rules().unavailable()).max(1);
        old.policy.ready_timeout.saturating_mul(old.strength.div_ceil(at_a_time))
            + self.rules().policy.drain_timeout
            + KILL_TAKES
    }

    /// Returns how long those that drain already may take, where the strategy has the old generation wait for them.
    fn time_to_wait_for_ends(&self, now: Mono) -> Duration {
        if self.rules().strategy != Strategy::Recreate {
            return Duration::ZERO;
        }
        let leaving = self.workers().filter(|(_, worker)| !worker.is_live());
        leaving.filter_map(|(_, worker)| worker.deadline()).max().map_or(Duration::ZERO, |at| at - now)
    }
}
