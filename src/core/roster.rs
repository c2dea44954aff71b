//! The workers by their numbers, with an index of them.
//!
//! [`Roster::change`] is the only way to change a worker. It brings the index up to date, so no caller can forget it.

use std::collections::BTreeMap;
use std::fmt;
use std::ops;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ids::{GenerationId, WorkerId};
use super::index::{Cohort, CohortId, Facts, Index};
use super::time::Mono;
use super::worker::Worker;

/// The workers that are not yet reaped, the oldest first. They alone are written down: the index follows from them.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Roster {
    /// Boxed, as the nodes of the map are half empty.
    workers: BTreeMap<WorkerId, Box<Worker>>,
    index: Index,
}

impl Roster {
    pub(super) fn add(&mut self, id: WorkerId, worker: Worker) {
        self.index.add(id, Facts::of(&worker));
        let before = self.workers.insert(id, Box::new(worker));
        debug_assert!(before.is_none(), "worker {id} is added twice");
    }

    pub(super) fn remove(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.remove(&id) {
            self.index.remove(id, Facts::of(&worker));
        }
    }

    /// Changes a worker; `None` where it is not there.
    pub(super) fn change<T>(&mut self, id: WorkerId, change: impl FnOnce(&mut Worker) -> T) -> Option<T> {
        let worker = self.workers.get_mut(&id)?;
        let before = Facts::of(worker);
        let result = change(worker);
        self.index.replace(id, before, Facts::of(worker));
        Some(result)
    }

    /// Changes all workers.
    pub(super) fn change_all(&mut self, mut change: impl FnMut(WorkerId, &mut Worker)) {
        for (id, worker) in &mut self.workers {
            let before = Facts::of(worker);
            change(*id, worker);
            self.index.replace(*id, before, Facts::of(worker));
        }
    }

    pub(super) fn get(&self, id: WorkerId) -> Option<&Worker> {
        self.workers.get(&id).map(|worker| &**worker)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (WorkerId, &Worker)> {
        self.workers.iter().map(|(id, worker)| (*id, &**worker))
    }

    /// The numbers of those that are as `is` says.
    pub(super) fn which(&self, is: impl Fn(&Worker) -> bool) -> Vec<WorkerId> {
        self.iter().filter(|(_, worker)| is(worker)).map(|(id, _)| id).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.workers.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// Returns the first and the last of the workers' next deadlines.
    pub(super) fn deadlines(&self) -> Option<(Mono, Mono)> {
        let (first, last) = (self.index.deadlines().next()?, self.index.deadlines().next_back()?);
        Some((first.0, last.0))
    }

    /// The workers with a deadline that has come, the oldest first.
    pub(super) fn due(&self, now: Mono) -> Vec<WorkerId> {
        let due = self.index.deadlines().take_while(|(at, _)| *at <= now);
        let mut due: Vec<_> = due.map(|(_, id)| id).collect();
        due.sort_unstable();
        due
    }

    /// The cohorts that have a worker.
    pub(super) fn cohorts(&self) -> impl Iterator<Item = (CohortId, &Cohort)> {
        self.index.cohorts()
    }

    pub(super) fn cohort(&self, id: CohortId) -> &Cohort {
        self.index.cohort(id)
    }

    /// The workers of a generation, the outdated ones last.
    pub(super) fn of(&self, generation: GenerationId) -> [&Cohort; 2] {
        [self.fresh(generation), self.outdated(generation)]
    }

    /// The workers of a generation that no respawn is to replace.
    pub(super) fn fresh(&self, generation: GenerationId) -> &Cohort {
        self.cohort(CohortId::fresh(generation))
    }

    /// The workers of a generation that a respawn is to replace.
    pub(super) fn outdated(&self, generation: GenerationId) -> &Cohort {
        self.cohort(CohortId { generation, is_outdated: true })
    }

    /// How many workers serve or are about to.
    pub(super) fn live(&self) -> usize {
        self.cohorts().map(|(_, cohort)| cohort.live()).sum()
    }

    /// How many workers serve.
    pub(super) fn ready(&self) -> usize {
        self.cohorts().map(|(_, cohort)| cohort.ready.len()).sum()
    }

    /// Whether nothing ends those that are left.
    pub(super) fn are_all_stuck(&self) -> bool {
        self.cohorts().map(|(_, cohort)| cohort.stuck.len()).sum::<usize>() == self.len()
    }

    /// Whether the index is as a scan of all workers makes it.
    pub(super) fn is_indexed(&self) -> bool {
        self.index == Index::of(self.iter())
    }
}

impl ops::Index<WorkerId> for Roster {
    type Output = Worker;

    fn index(&self, id: WorkerId) -> &Worker {
        self.get(id).unwrap_or_else(|| panic!("worker {id} is not there"))
    }
}

impl fmt::Debug for Roster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.workers.fmt(f)
    }
}

impl Serialize for Roster {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.workers)
    }
}

impl<'de> Deserialize<'de> for Roster {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let workers = Vec::deserialize(deserializer)?.into_iter().collect();
        let mut roster = Self { workers, index: Index::default() };
        roster.index = Index::of(roster.iter());
        Ok(roster)
    }
}
