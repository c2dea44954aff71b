//! The live workers, counted once for a decision, and what the strategy's limits say of the count.

use super::generation::Generation;
use super::ids::SlotId;
use super::index::Cohort;
use super::slots::SlotSet;
use super::spec::Strategy;

/// The workers as they stand.
pub(super) struct Census {
    /// Slots of the incoming generation with a live worker.
    pub(super) filled: SlotSet,
    /// Slots of the incoming generation with a ready worker.
    ready: SlotSet,
    /// Slots that the old generation keeps.
    pub(super) kept: SlotSet,
    /// Kept slots with a live worker.
    pub(super) kept_filled: SlotSet,
    /// Kept slots with a ready worker.
    kept_ready: SlotSet,
    /// Live workers that are not incoming.
    old_live: usize,
    /// Ready workers of any generation.
    ready_total: usize,
    /// How many incoming workers there are to be.
    pub(super) strength: u32,
    /// How many workers are to serve while one generation takes over from another.
    base: usize,
    /// The most places there may be.
    ceiling: usize,
    /// The fewest ready workers that a decision of ours may leave.
    floor: usize,
    /// Whether a worker may leave before its replacement is ready at all.
    may_be_missing: bool,
    strategy: Strategy,
    pub(super) gate: Gate,
}

/// Whether the old generation gives its slots over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    Open,
    /// One, to make room for the first new worker.
    First,
    /// Not before the new workers have stayed ready for a while.
    Shut,
}

/// What lets one leave.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ground {
    Replaced,
    Surplus,
    MakesRoom,
}

impl Ground {
    /// The replaced go first: only what is ready beyond the limits once they have gone is surplus, or makes room.
    pub(super) const IN_TURN: [Self; 3] = [Self::Replaced, Self::Surplus, Self::MakesRoom];
}

impl Census {
    /// Begins a count where `strength` workers are to come, and `old` were to serve before and `new` are to after it.
    pub(super) fn new(strength: u32, old: u32, new: u32, rules: &Generation) -> Self {
        let unavailable = rules.unavailable();
        Self {
            filled: SlotSet::EMPTY,
            ready: SlotSet::EMPTY,
            kept: SlotSet::EMPTY,
            kept_filled: SlotSet::EMPTY,
            kept_ready: SlotSet::EMPTY,
            old_live: 0,
            ready_total: 0,
            strength,
            base: old.max(new) as usize,
            ceiling: old.max(new) as usize + rules.surge() as usize,
            floor: old.min(new).saturating_sub(unavailable) as usize,
            may_be_missing: unavailable > 0,
            strategy: rules.strategy,
            gate: Gate::Open,
        }
    }

    /// Counts all workers: `live` and `ready` is how many there are of any generation.
    pub(super) fn count(&mut self, incoming: &Cohort, live: usize, ready: usize) {
        self.filled = incoming.filled().below(self.strength);
        self.ready = incoming.ready.slots().below(self.strength);
        self.old_live = live - self.filled.len();
        self.ready_total = ready;
    }

    /// Counts the slots that the old generation keeps, and the workers of that generation there.
    pub(super) fn count_kept(&mut self, kept: SlotSet, old: &Cohort) {
        self.kept_filled = kept.and(&old.filled());
        self.kept_ready = kept.and(old.ready.slots());
        self.kept = kept;
    }

    /// Live workers of any generation, and those that the old generation is still to start again.
    ///
    /// Whoever serves beside the kept slots, such as what a failed upgrade left, stands in for one that is missing there.
    fn places(&self) -> usize {
        self.filled.len() + self.old_live.max(self.kept.len())
    }

    fn live(&self) -> usize {
        self.filled.len() + self.old_live
    }

    /// How many incoming workers may start.
    pub(super) fn room(&self) -> usize {
        self.ceiling.saturating_sub(self.places())
    }

    /// How many workers may start in kept slots.
    pub(super) fn kept_room(&self) -> usize {
        self.kept.len().saturating_sub(self.old_live).min(self.ceiling.saturating_sub(self.live()))
    }

    fn all_ready(&self) -> bool {
        self.ready.len() == self.strength as usize
    }

    /// Decides which kept slots are given over on this ground. They are counted out, with their workers.
    pub(super) fn give_over(&mut self, ground: Ground) -> SlotSet {
        let mut given = SlotSet::EMPTY;
        match (ground, self.gate) {
            (Ground::Replaced, Gate::Open) => {
                given = self.replaced(&self.kept);
                given.iter().for_each(|slot| self.count_out_slot(slot));
            }
            (Ground::MakesRoom, Gate::Open) => {
                while let Some(slot) = self.makes_room() {
                    self.count_out_slot(slot);
                    given.insert(slot);
                }
            }
            (Ground::MakesRoom, Gate::First) => {
                if let Some(slot) = self.makes_room() {
                    self.count_out_slot(slot);
                    given.insert(slot);
                    self.gate = Gate::Shut;
                }
            }
            (Ground::Replaced, Gate::First | Gate::Shut)
            | (Ground::MakesRoom, Gate::Shut)
            | (Ground::Surplus, _) => {}
        }
        given
    }

    /// Returns the next kept slot that may be given over to make room.
    fn makes_room(&self) -> Option<SlotId> {
        if self.may_make_room(true) {
            self.kept.lowest()
        } else if self.may_make_room(false) {
            self.kept.without(&self.kept_ready).lowest()
        } else {
            None
        }
    }

    fn count_out_slot(&mut self, slot: SlotId) {
        self.kept.remove(slot);
        self.old_live -= usize::from(self.kept_filled.contains(slot));
        self.ready_total -= usize::from(self.kept_ready.contains(slot));
    }

    /// Counts out outgoing workers that start.
    pub(super) fn count_out_starting(&mut self, workers: usize) {
        self.old_live -= workers;
    }

    /// Counts out outgoing workers that are ready.
    pub(super) fn count_out_ready(&mut self, workers: usize) {
        self.old_live -= workers;
        self.ready_total -= workers;
    }

    /// Returns those of the slots whose worker may leave as those serve that must, by the strategy: the worker that is to take
    /// over the slot or, where none will, all of them.
    pub(super) fn replaced(&self, slots: &SlotSet) -> SlotSet {
        match self.strategy {
            Strategy::Recreate => slots.clone(),
            Strategy::Rolling { .. } | Strategy::BlueGreen if self.all_ready() => slots.clone(),
            Strategy::Rolling { .. } => slots.and(&self.ready),
            Strategy::BlueGreen => SlotSet::EMPTY,
        }
    }

    /// Returns how many ready workers that no slot keeps may leave on this ground, at most.
    pub(super) fn most_that_leave(&self, ground: Ground) -> usize {
        match ground {
            Ground::Replaced => self.old_live,
            Ground::Surplus => self.ready_total.saturating_sub(self.base),
            Ground::MakesRoom if self.may_make_room(true) => self.ready_total - self.floor,
            Ground::MakesRoom => 0,
        }
    }

    /// Whether a worker may leave before its replacement is ready, to make room for it.
    fn may_make_room(&self, is_ready: bool) -> bool {
        let missing = (self.strength as usize).saturating_sub(self.filled.len());
        self.may_be_missing && missing > self.room() && (!is_ready || self.ready_total > self.floor)
    }
}
