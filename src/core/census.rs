//! The live workers, counted once for a decision, and what the strategy's limits say of the count.

use super::generation::Generation;
use super::ids::SlotId;
use super::spec::Strategy;
use super::worker::Worker;

/// The workers as they stand.
pub(super) struct Census {
    /// Slots of the incoming generation with a live worker.
    pub(super) filled: SlotSet,
    /// Slots of the incoming generation with a ready worker.
    ready: SlotSet,
    /// Kept slots with a live worker.
    pub(super) kept_filled: SlotSet,
    /// Kept slots with a ready worker.
    pub(super) kept_ready: SlotSet,
    /// Slots with a live worker of any generation.
    pub(super) served: SlotSet,
    /// How many slots are kept.
    pub(super) kept: usize,
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

/// What is to leave sooner or later.
#[derive(Clone, Copy)]
pub(super) struct Outgoing {
    pub(super) slot: SlotId,
    pub(super) hold: Hold,
    pub(super) is_ready: bool,
}

/// Whether somebody still wants what is outgoing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// The old generation keeps the slot and its worker.
    Kept,
    /// The old generation keeps the slot, and is to start a worker there.
    KeptEmpty,
    /// A live worker that nobody keeps, and that another is to replace.
    Free,
    /// A live worker that nobody keeps, and that nothing under way is about.
    Leftover,
}

/// What lets one leave.
#[derive(Clone, Copy)]
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
            filled: SlotSet::default(),
            ready: SlotSet::default(),
            kept_filled: SlotSet::default(),
            kept_ready: SlotSet::default(),
            served: SlotSet::default(),
            kept: 0,
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

    pub(super) fn count_incoming(&mut self, worker: &Worker) {
        self.served.insert(worker.slot);
        self.filled.insert(worker.slot);
        if worker.is_ready() {
            self.ready.insert(worker.slot);
            self.ready_total += 1;
        }
    }

    pub(super) fn count_old(&mut self, worker: &Worker, is_kept: bool) {
        self.served.insert(worker.slot);
        self.old_live += 1;
        self.ready_total += usize::from(worker.is_ready());
        if is_kept {
            self.kept_filled.insert(worker.slot);
            if worker.is_ready() {
                self.kept_ready.insert(worker.slot);
            }
        }
    }

    /// Live workers of any generation, and those that the old generation is still to start again.
    ///
    /// Whoever serves beside the kept slots, such as what a failed upgrade left, stands in for one that is missing there.
    fn places(&self) -> usize {
        self.filled.len() + self.old_live.max(self.kept)
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
        self.kept.saturating_sub(self.old_live).min(self.ceiling.saturating_sub(self.live()))
    }

    fn all_ready(&self) -> bool {
        self.ready.len() == self.strength as usize
    }

    /// Whether one may leave on this ground; if so it is counted out.
    pub(super) fn lets_go(&mut self, ground: Ground, it: Outgoing) -> bool {
        let is_kept = matches!(it.hold, Hold::Kept | Hold::KeptEmpty);
        let passes = match self.gate {
            Gate::Open => true,
            Gate::First => !is_kept || matches!(ground, Ground::MakesRoom),
            Gate::Shut => !is_kept,
        };
        if !passes {
            return false;
        }
        let may = match ground {
            Ground::Replaced => !is_kept && !it.is_ready || self.is_replaced(it.slot),
            Ground::Surplus => it.hold == Hold::Leftover && self.ready_total > self.base,
            Ground::MakesRoom => self.may_make_room(it.is_ready),
        };
        if may {
            if is_kept && self.gate == Gate::First {
                self.gate = Gate::Shut;
            }
            self.kept -= usize::from(is_kept);
            self.old_live -= usize::from(it.hold != Hold::KeptEmpty);
            self.ready_total -= usize::from(it.is_ready);
        }
        may
    }

    /// Whether those serve that must, by the strategy, before a worker of `slot` leaves: the one that is to take over the
    /// slot or, where nobody will, all of them.
    fn is_replaced(&self, slot: SlotId) -> bool {
        match self.strategy {
            Strategy::Recreate => true,
            Strategy::Rolling { .. } if slot.0 < self.strength => self.ready.contains(slot),
            Strategy::Rolling { .. } | Strategy::BlueGreen => self.all_ready(),
        }
    }

    /// Whether a worker may leave before its replacement is ready, to make room for it.
    fn may_make_room(&self, is_ready: bool) -> bool {
        let missing = (self.strength as usize).saturating_sub(self.filled.len());
        self.may_be_missing && missing > self.room() && (!is_ready || self.ready_total > self.floor)
    }
}

/// A set of slots: a bit each, as a census is taken with every event.
#[derive(Default)]
pub(super) struct SlotSet {
    words: Vec<u64>,
    len: usize,
}

impl SlotSet {
    fn insert(&mut self, slot: SlotId) {
        let (word, bit) = Self::place(slot);
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        self.len += usize::from(self.words[word] & bit == 0);
        self.words[word] |= bit;
    }

    pub(super) fn contains(&self, slot: SlotId) -> bool {
        let (word, bit) = Self::place(slot);
        self.words.get(word).is_some_and(|bits| bits & bit != 0)
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn place(slot: SlotId) -> (usize, u64) {
        (slot.0 as usize / 64, 1 << (slot.0 % 64))
    }
}
