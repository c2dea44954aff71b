//! Sets of slots, and of workers by their slots.
//!
//! A service has at most 4,096 slots, so a set is a bit for each of them: to intersect two sets takes 64 operations at most.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ids::{SlotId, WorkerId};

/// How many slots a word holds.
const BITS: u32 = u64::BITS;

/// A set of slots. It is written down as a list of their numbers.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct SlotSet {
    /// A bit for each slot; the last word is not zero.
    words: Vec<u64>,
}

impl SlotSet {
    pub(super) const EMPTY: Self = Self { words: Vec::new() };

    /// Returns the slots 0 to `count` - 1.
    pub(super) fn first(count: u32) -> Self {
        Self::of((0..count.div_ceil(BITS)).map(|index| below(count, index)))
    }

    fn of(words: impl Iterator<Item = u64>) -> Self {
        let mut set = Self { words: words.collect() };
        set.trim();
        set
    }

    fn trim(&mut self) {
        while self.words.pop_if(|word| *word == 0).is_some() {}
    }

    pub(super) fn insert(&mut self, slot: SlotId) {
        let (word, bit) = place(slot);
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= bit;
    }

    pub(super) fn remove(&mut self, slot: SlotId) {
        let (word, bit) = place(slot);
        if let Some(word) = self.words.get_mut(word) {
            *word &= !bit;
            self.trim();
        }
    }

    pub(super) fn contains(&self, slot: SlotId) -> bool {
        let (word, bit) = place(slot);
        self.word(word) & bit != 0
    }

    pub(super) fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Whether a slot of the set is not among the first `count`.
    pub(super) fn reaches_beyond(&self, count: u32) -> bool {
        self.numbered().last().is_some_and(|(index, word)| word & !below(count, index) != 0)
    }

    /// Returns the slots of the set that are among the first `count`.
    pub(super) fn below(&self, count: u32) -> Self {
        Self::of(self.numbered().map(|(index, word)| word & below(count, index)))
    }

    /// Returns the slots of the set that are not among the first `count`.
    pub(super) fn beyond(&self, count: u32) -> Self {
        Self::of(self.numbered().map(|(index, word)| word & !below(count, index)))
    }

    /// Returns the slots that are in both sets.
    pub(super) fn and(&self, other: &Self) -> Self {
        Self::of(self.words.iter().zip(&other.words).map(|(word, other)| word & other))
    }

    /// Returns the slots that are in one of the sets, or in both.
    pub(super) fn or(&self, other: &Self) -> Self {
        let words = 0..self.words.len().max(other.words.len());
        Self::of(words.map(|index| self.word(index) | other.word(index)))
    }

    /// Returns the slots of the set that are not in the other.
    pub(super) fn without(&self, other: &Self) -> Self {
        Self::of(self.words.iter().enumerate().map(|(index, word)| word & !other.word(index)))
    }

    /// Returns the lowest slot of the set.
    pub(super) fn lowest(&self) -> Option<SlotId> {
        self.iter().next()
    }

    /// Returns the slots of the set, the lowest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = SlotId> + '_ {
        self.numbered().flat_map(|(index, word)| {
            let mut left = word;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros())?;
                left &= left - 1;
                Some(SlotId(index * BITS + bit))
            })
        })
    }

    fn word(&self, index: usize) -> u64 {
        self.words.get(index).copied().unwrap_or(0)
    }

    fn numbered(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        (0..).zip(self.words.iter().copied())
    }
}

/// Returns the index of the word that a slot's bit stands in, and the bit.
fn place(slot: SlotId) -> (usize, u64) {
    ((slot.0 / BITS) as usize, 1 << (slot.0 % BITS))
}

/// Returns the bits of the first `count` slots that stand in the word at `index`.
fn below(count: u32, index: u32) -> u64 {
    match count.saturating_sub(index * BITS) {
        left if left < BITS => (1 << left) - 1,
        _ => u64::MAX,
    }
}

impl FromIterator<SlotId> for SlotSet {
    fn from_iter<I: IntoIterator<Item = SlotId>>(slots: I) -> Self {
        let mut set = Self::default();
        slots.into_iter().for_each(|slot| set.insert(slot));
        set
    }
}

impl fmt::Debug for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl Serialize for SlotSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for SlotSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Vec::deserialize(deserializer)?.into_iter().collect())
    }
}

/// Workers by their slots; a slot may have several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct BySlot {
    workers: BTreeSet<(SlotId, WorkerId)>,
    slots: SlotSet,
}

impl BySlot {
    pub(super) const EMPTY: Self = Self { workers: BTreeSet::new(), slots: SlotSet::EMPTY };

    pub(super) fn add(&mut self, slot: SlotId, id: WorkerId) {
        self.workers.insert((slot, id));
        self.slots.insert(slot);
    }

    pub(super) fn remove(&mut self, slot: SlotId, id: WorkerId) {
        self.workers.remove(&(slot, id));
        if self.at(slot).next().is_none() {
            self.slots.remove(slot);
        }
    }

    /// The slots that have a worker.
    pub(super) fn slots(&self) -> &SlotSet {
        &self.slots
    }

    /// How many workers there are.
    pub(super) fn len(&self) -> usize {
        self.workers.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// The workers in a slot, the oldest first.
    pub(super) fn at(&self, slot: SlotId) -> impl Iterator<Item = WorkerId> + '_ {
        let all = (slot, WorkerId(0))..=(slot, WorkerId(u64::MAX));
        self.workers.range(all).map(|(_, id)| *id)
    }

    /// The workers in these slots.
    pub(super) fn within(&self, slots: &SlotSet) -> Vec<WorkerId> {
        self.slots.and(slots).iter().flat_map(|slot| self.at(slot)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(slots: &[u32]) -> SlotSet {
        slots.iter().copied().map(SlotId).collect()
    }

    #[test]
    fn sets_of_slots_are_sets() {
        let (one, other) = (set(&[0, 63, 64, 200]), set(&[63, 65, 200]));
        assert_eq!(one.and(&other), set(&[63, 200]));
        assert_eq!(one.or(&other), set(&[0, 63, 64, 65, 200]));
        assert_eq!(one.without(&other), set(&[0, 64]));
        assert_eq!(other.without(&one), set(&[65]));
        assert_eq!(one.without(&one), SlotSet::EMPTY);
        assert_eq!(one.iter().map(|slot| slot.0).collect::<Vec<_>>(), [0, 63, 64, 200]);
        assert_eq!((one.len(), one.lowest(), SlotSet::EMPTY.lowest()), (4, Some(SlotId(0)), None));
    }

    #[test]
    fn the_first_slots_are_those_below_a_number() {
        for count in [0, 1, 63, 64, 65, 128, 1000, 4096] {
            let first = SlotSet::first(count);
            assert_eq!(first, (0..count).map(SlotId).collect());
            let more = SlotSet::first(count + 70);
            assert_eq!((more.below(count), more.beyond(count).len()), (first, 70));
        }
        let one = set(&[3, 90]);
        assert_eq!((one.below(91), one.beyond(91)), (set(&[3, 90]), SlotSet::EMPTY));
        assert_eq!((one.below(90), one.beyond(90)), (set(&[3]), set(&[90])));
        assert_eq!([0, 90, 91, 500].map(|count| one.reaches_beyond(count)), [true, true, false, false]);
    }

    #[test]
    fn a_slot_that_is_taken_out_leaves_no_trace() {
        let mut one = set(&[1, 130]);
        one.remove(SlotId(130));
        one.remove(SlotId(7));
        one.remove(SlotId(700));
        assert_eq!(one, set(&[1]));
    }

    #[test]
    fn a_slot_is_in_use_until_its_last_worker_leaves() {
        let mut workers = BySlot::default();
        for (slot, id) in [(2, 7), (2, 5), (3, 6)] {
            workers.add(SlotId(slot), WorkerId(id));
        }
        assert_eq!(workers.within(&set(&[0, 2])), [WorkerId(5), WorkerId(7)]);
        workers.remove(SlotId(2), WorkerId(5));
        assert_eq!((workers.slots(), workers.len()), (&set(&[2, 3]), 2));
        workers.remove(SlotId(2), WorkerId(7));
        assert_eq!(workers.slots(), &set(&[3]));
    }
}
