//! What decisions ask about the workers, kept so that no answer takes a scan of all of them.
//!
//! Everything in here follows from the workers alone. [`Index::of`] makes it anew by a scan, and the checker of the simulator
//! compares the two after every event.

use std::collections::{BTreeMap, BTreeSet};

use super::ids::{GenerationId, SlotId, WorkerId};
use super::slots::{BySlot, SlotSet};
use super::time::Mono;
use super::worker::{Worker, WorkerState};

/// Names a cohort: of a generation either the workers that a respawn is to replace, or the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CohortId {
    pub(super) generation: GenerationId,
    pub(super) is_outdated: bool,
}

impl CohortId {
    /// The workers of a generation that no respawn is to replace.
    pub(super) fn fresh(generation: GenerationId) -> Self {
        Self { generation, is_outdated: false }
    }
}

/// What the index knows about one worker.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    deadline: Option<Mono>,
    place: Place,
}

/// Where a worker is found.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    cohort: CohortId,
    slot: SlotId,
    stage: Stage,
}

/// What a worker's state is to the decisions about others.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Starting,
    Ready { since: Mono },
    Ending,
    Killed,
    Stuck,
}

impl Facts {
    pub(super) fn of(worker: &Worker) -> Self {
        let stage = match worker.state {
            WorkerState::Starting { .. } => Stage::Starting,
            WorkerState::Ready { since, .. } => Stage::Ready { since },
            WorkerState::Draining { .. } | WorkerState::Aborting { .. } => Stage::Ending,
            WorkerState::Killing { .. } => Stage::Killed,
            WorkerState::Stuck => Stage::Stuck,
        };
        let cohort = CohortId { generation: worker.generation, is_outdated: worker.outdated };
        Self { deadline: worker.deadline(), place: Place { cohort, slot: worker.slot, stage } }
    }
}

/// The index of all workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    /// The next deadline of each worker that has one.
    deadlines: BTreeSet<(Mono, WorkerId)>,
    /// No cohort is empty.
    cohorts: BTreeMap<CohortId, Cohort>,
}

impl Index {
    /// Makes the index of these workers.
    pub(super) fn of<'a>(workers: impl Iterator<Item = (WorkerId, &'a Worker)>) -> Self {
        let mut index = Self::default();
        for (id, worker) in workers {
            index.add(id, Facts::of(worker));
        }
        index
    }

    pub(super) fn add(&mut self, id: WorkerId, facts: Facts) {
        self.add_deadline(id, facts.deadline);
        self.add_place(id, facts.place);
    }

    pub(super) fn remove(&mut self, id: WorkerId, facts: Facts) {
        self.remove_deadline(id, facts.deadline);
        self.remove_place(id, facts.place);
    }

    /// Takes a change of one worker. Most events change a deadline at most.
    pub(super) fn replace(&mut self, id: WorkerId, before: Facts, after: Facts) {
        if before.deadline != after.deadline {
            self.remove_deadline(id, before.deadline);
            self.add_deadline(id, after.deadline);
        }
        if before.place != after.place {
            self.remove_place(id, before.place);
            self.add_place(id, after.place);
        }
    }

    fn add_deadline(&mut self, id: WorkerId, deadline: Option<Mono>) {
        self.deadlines.extend(deadline.map(|at| (at, id)));
    }

    fn remove_deadline(&mut self, id: WorkerId, deadline: Option<Mono>) {
        if let Some(at) = deadline {
            self.deadlines.remove(&(at, id));
        }
    }

    fn add_place(&mut self, id: WorkerId, place: Place) {
        self.cohorts.entry(place.cohort).or_default().add(id, place);
    }

    fn remove_place(&mut self, id: WorkerId, place: Place) {
        if let Some(cohort) = self.cohorts.get_mut(&place.cohort) {
            cohort.remove(id, place);
            if cohort.is_empty() {
                self.cohorts.remove(&place.cohort);
            }
        }
    }

    /// The deadlines, the next one first.
    pub(super) fn deadlines(&self) -> impl DoubleEndedIterator<Item = (Mono, WorkerId)> + '_ {
        self.deadlines.iter().copied()
    }

    pub(super) fn cohort(&self, id: CohortId) -> &Cohort {
        self.cohorts.get(&id).unwrap_or(&NO_COHORT)
    }

    pub(super) fn cohorts(&self) -> impl Iterator<Item = (CohortId, &Cohort)> {
        self.cohorts.iter().map(|(id, cohort)| (*id, cohort))
    }
}

/// The workers of one cohort, by their stages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cohort {
    pub(super) starting: BySlot,
    pub(super) ready: BySlot,
    /// Those that were asked to end.
    pub(super) ending: BySlot,
    /// Those that were sent SIGKILL.
    pub(super) killed: BySlot,
    /// Those that nothing ends.
    pub(super) stuck: BySlot,
    /// The ready ones, the oldest first.
    ready_by_age: BTreeSet<WorkerId>,
    /// The ready ones, by the moment at which they became ready.
    ready_by_time: BTreeSet<(Mono, WorkerId)>,
}

static NO_COHORT: Cohort = Cohort {
    starting: BySlot::EMPTY,
    ready: BySlot::EMPTY,
    ending: BySlot::EMPTY,
    killed: BySlot::EMPTY,
    stuck: BySlot::EMPTY,
    ready_by_age: BTreeSet::new(),
    ready_by_time: BTreeSet::new(),
};

impl Cohort {
    fn add(&mut self, id: WorkerId, place: Place) {
        if let Stage::Ready { since } = place.stage {
            self.ready_by_age.insert(id);
            self.ready_by_time.insert((since, id));
        }
        self.stage(place.stage).add(place.slot, id);
    }

    fn remove(&mut self, id: WorkerId, place: Place) {
        if let Stage::Ready { since } = place.stage {
            self.ready_by_age.remove(&id);
            self.ready_by_time.remove(&(since, id));
        }
        self.stage(place.stage).remove(place.slot, id);
    }

    fn stage(&mut self, stage: Stage) -> &mut BySlot {
        match stage {
            Stage::Starting => &mut self.starting,
            Stage::Ready { .. } => &mut self.ready,
            Stage::Ending => &mut self.ending,
            Stage::Killed => &mut self.killed,
            Stage::Stuck => &mut self.stuck,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        let Self { starting, ready, ending, killed, stuck, .. } = self;
        [starting, ready, ending, killed, stuck].iter().all(|of| of.is_empty())
    }

    /// How many workers serve or are about to.
    pub(super) fn live(&self) -> usize {
        self.starting.len() + self.ready.len()
    }

    /// The workers in these slots that serve or are about to.
    pub(super) fn live_within(&self, slots: &SlotSet) -> Vec<WorkerId> {
        let mut live = self.starting.within(slots);
        live.extend(self.ready.within(slots));
        live
    }

    /// The slots with a worker that serves or is about to.
    pub(super) fn filled(&self) -> SlotSet {
        self.starting.slots().or(self.ready.slots())
    }

    /// Whether a worker of the slot serves or is about to.
    pub(super) fn fills(&self, slot: SlotId) -> bool {
        self.starting.slots().contains(slot) || self.ready.slots().contains(slot)
    }

    /// Whether a worker that serves or is about to has a slot beyond the first `count`.
    pub(super) fn is_live_beyond(&self, count: u32) -> bool {
        [&self.starting, &self.ready].iter().any(|of| of.slots().reaches_beyond(count))
    }

    /// The ready workers, with the moment at which they became ready; the latest first.
    pub(super) fn latest_ready(&self) -> impl Iterator<Item = (Mono, WorkerId)> + '_ {
        self.ready_by_time.iter().rev().copied()
    }

    /// The oldest of the ready workers.
    pub(super) fn eldest_ready(&self) -> Option<WorkerId> {
        self.ready_by_age.first().copied()
    }

    /// The oldest of the ready workers in these slots: `most` at least, where there are so many.
    pub(super) fn eldest_within(&self, slots: &SlotSet, most: usize) -> Vec<WorkerId> {
        if self.ready.slots().without(slots).is_empty() {
            return self.ready_by_age.iter().copied().take(most).collect();
        }
        self.ready.within(slots)
    }
}
