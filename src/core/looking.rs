//! Readiness by what the kernel tells of a worker's processes: when to look, and what follows from what is seen.
//!
//! A worker whose readiness is [`Readiness::Accepting`] is looked at until it waits for connections. One that counts as ready
//! once it has settled is looked at only where it replaces another: that one may listen on an address that no socket of the file
//! has, and then the new one must listen as well.

use super::Action;
use super::ids::WorkerId;
use super::index::Cohort;
use super::manager::Manager;
use super::notice::{Notice, WorkerNotice};
use super::sight::{FIRST_PAUSE, LONGEST_PAUSE, Sight};
use super::spec::{Policy, Readiness};
use super::time::Mono;
use super::upgrade::Change;
use super::worker::{Check, Turn, Worker, WorkerState};

impl Manager {
    /// Takes the end of a probe.
    pub(super) fn probed(&mut self, now: Mono, id: WorkerId, passed: bool, out: &mut Vec<Action>) {
        let turn = self
            .workers
            .change(id, |worker| worker.probed(now, passed, &self.generations[&worker.generation].policy));
        if let Some(turn) = turn.flatten() {
            self.turn(now, id, turn, out);
        }
    }

    /// Takes what a look at a starting worker has shown.
    pub(super) fn looked(&mut self, now: Mono, id: WorkerId, sight: Sight, out: &mut Vec<Action>) {
        let turn = self
            .workers
            .change(id, |worker| worker.looked(now, sight, &self.generations[&worker.generation].policy));
        if let Some(turn) = turn.flatten() {
            self.turn(now, id, turn, out);
        }
    }

    /// Has a worker that has settled counted as ready, or looked at first.
    pub(super) fn has_settled(&mut self, now: Mono, id: WorkerId, out: &mut Vec<Action>) {
        match self.readiness(id) {
            Readiness::Settled(_) if self.replaced_by(id).is_some() => self.look(now, id, out),
            Readiness::Notify | Readiness::Settled(_) | Readiness::Probe(_) | Readiness::Accepting(_) => {
                self.count_as_ready(now, id, out);
            }
        }
    }

    /// Has a starting worker looked at; where nothing is left to be found out it is ready.
    pub(super) fn look(&mut self, now: Mono, id: WorkerId, out: &mut Vec<Action>) {
        let beside = match self.readiness(id) {
            Readiness::Accepting(_) => None,
            Readiness::Notify | Readiness::Settled(_) | Readiness::Probe(_) => match self.replaced_by(id) {
                None => return self.count_as_ready(now, id, out),
                replaced => replaced,
            },
        };
        if self.workers.change(id, |worker| worker.is_looked_at(now)).is_some() {
            out.push(Action::Look(id, beside));
        }
    }

    /// Takes the news that no look tells whether a worker serves: that it has been alive for long enough must do.
    pub(super) fn is_unseen(&mut self, now: Mono, id: WorkerId, why: String, out: &mut Vec<Action>) {
        out.push(Action::Tell(Notice::Worker(id, WorkerNotice::Unseen(why))));
        match self.readiness(id) {
            // It has yet to settle.
            Readiness::Accepting(_) => {}
            Readiness::Notify | Readiness::Settled(_) | Readiness::Probe(_) => {
                self.count_as_ready(now, id, out);
            }
        }
    }

    fn count_as_ready(&mut self, now: Mono, id: WorkerId, out: &mut Vec<Action>) {
        if let Some(turn) = self.workers.change(id, |worker| worker.become_ready(now)) {
            self.turn(now, id, turn, out);
        }
    }

    fn readiness(&self, id: WorkerId) -> Readiness {
        self.generations[&self.workers[id].generation].policy.readiness
    }

    /// Returns the ready worker that a starting one is to replace, the one in its slot first; `None` where it replaces none.
    fn replaced_by(&self, id: WorkerId) -> Option<WorkerId> {
        let new = &self.workers[id];
        let replaced: &[&Cohort] = match &self.change {
            Some(Change::Upgrade(upgrade)) if upgrade.is_forward() && new.generation == upgrade.to => {
                &self.workers.of(self.current)
            }
            Some(Change::Respawn(_)) if !new.outdated => &[self.workers.outdated(new.generation)],
            Some(Change::Upgrade(_) | Change::Respawn(_)) | None => &[],
        };
        let in_slot = replaced.iter().filter_map(|cohort| cohort.ready.at(new.slot).next()).min();
        in_slot.or_else(|| replaced.iter().filter_map(|cohort| cohort.eldest_ready()).min())
    }
}

impl Worker {
    /// Notes that a look at its processes begins.
    pub(super) fn is_looked_at(&mut self, now: Mono) {
        if let WorkerState::Starting { next, ready_by, .. } = &mut self.state {
            if matches!(next, Check::Settled { .. }) {
                // However late it is, the first look counts.
                *ready_by = (*ready_by).max(now + LONGEST_PAUSE);
            }
            let pause = match *next {
                Check::Look { pause, .. } => pause,
                Check::Wait | Check::Settled { .. } | Check::Probe { .. } | Check::Looking { .. } => {
                    FIRST_PAUSE
                }
            };
            *next = Check::Looking { pause };
        }
    }

    /// Takes what a look has shown; one that comes too late changes nothing.
    pub(super) fn looked(&mut self, now: Mono, sight: Sight, policy: &Policy) -> Option<Turn> {
        let WorkerState::Starting { ready_by, next, .. } = &mut self.state else { return None };
        let Check::Looking { pause } = *next else { return None };
        if let Sight::NotYet(lack) = sight {
            *next = Check::Look { at: now + pause, pause: (2 * pause).min(LONGEST_PAUSE) };
            self.lack = Some(lack);
            return None;
        }
        self.lack = None;
        if let Readiness::Accepting(settle) = policy.readiness {
            *next = Check::Settled { at: now + settle };
            // It has kept to the time; how long it is to stay is no part of it.
            *ready_by = (*ready_by).max(now + settle);
        }
        match (sight, policy.readiness) {
            (Sight::Hidden(why), _) => {
                self.unseen = Some(why.clone());
                Some(Turn::Unseen(why))
            }
            (Sight::Serves | Sight::NotYet(_), Readiness::Accepting(_)) => None,
            (
                Sight::Serves | Sight::NotYet(_),
                Readiness::Notify | Readiness::Settled(_) | Readiness::Probe(_),
            ) => Some(self.become_ready(now)),
        }
    }
}
