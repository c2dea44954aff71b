//! What must hold of looks at the processes of a starting worker.

use liveswap::core::ids::WorkerId;
use liveswap::core::sight::Sight;
use liveswap::core::spec::Readiness;
use liveswap::core::time::Mono;

use super::{Checker, Phase, Seen, Stage, Verdict, ensure};
use crate::story::secs;

impl Checker {
    /// Takes what a look has shown. Nobody asked for a look that the worker has outlived.
    pub(super) fn take_sight(&mut self, now: Mono, id: WorkerId, sight: &Sight) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if worker.stage != Stage::Starting || !std::mem::take(&mut worker.looked_at) {
            return;
        }
        if matches!(sight, Sight::NotYet(_)) {
            return;
        }
        worker.serves_since = Some(now);
        let generation = worker.generation;
        let readiness = self.generations.get(&generation).map(|release| release.policy.readiness);
        let worker = self.workers.get_mut(&id);
        if let (Some(Readiness::Accepting(settle)), Some(worker)) = (readiness, worker) {
            // How long it is to stay is no part of the time that it has.
            worker.deadline = worker.deadline.map(|at| at.max(now + settle));
            self.grant(settle);
        }
    }

    /// Checks that a look is due, and that the worker beside it is one that it replaces.
    pub(super) fn check_look(&mut self, now: Mono, id: WorkerId, beside: Option<WorkerId>) -> Verdict {
        let generation = self.present(id)?.generation;
        let readiness = self.release(generation)?.policy.readiness;
        match (readiness, beside) {
            (Readiness::Accepting(_), None) => {}
            (Readiness::Settled(_), Some(beside)) => {
                ensure!(
                    self.is_replaced_by(&self.workers[&beside], id),
                    "it does not replace worker {beside}"
                );
            }
            _ => return Err("nobody wants to know".into()),
        }
        let worker = self.present(id)?;
        ensure!(worker.stage == Stage::Starting && worker.executed.is_some(), "it is not to be looked at");
        ensure!(worker.serves_since.is_none(), "it was seen before");
        ensure!(!std::mem::replace(&mut worker.looked_at, true), "it is being looked at");
        if beside.is_some() && !std::mem::replace(&mut worker.was_looked_at, true) {
            // The first look counts, however late it comes.
            worker.deadline = worker.deadline.map(|at| at.max(now + secs(1)));
            self.grant(secs(1));
        }
        Ok(())
    }

    /// Whether a starting worker is to take the place of one that serves.
    pub(super) fn replaces(&self, id: WorkerId) -> bool {
        self.workers.values().any(|worker| self.is_replaced_by(worker, id))
    }

    fn is_replaced_by(&self, worker: &Seen, id: WorkerId) -> bool {
        let Some(new) = self.workers.get(&id) else { return false };
        let is_of_upgrade = self.upgrade.as_ref().is_some_and(|upgrade| {
            matches!(upgrade.phase, Phase::Surging | Phase::Probation)
                && new.generation == upgrade.to
                && worker.generation == self.current
        });
        let is_of_respawn =
            self.respawning && worker.outdated && !new.outdated && worker.generation == new.generation;
        worker.stage == Stage::Ready && (is_of_upgrade || is_of_respawn)
    }
}
