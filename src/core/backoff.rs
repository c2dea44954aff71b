//! The pause before a worker that died by itself is started again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ids::SlotId;
use super::slots::SlotSet;
use super::spec::Policy;
use super::time::Mono;

/// The deaths of one slot in a row, and when its next worker may start.
///
/// Invariant: the pause doubles from the initial delay to the maximal one, and begins anew after a worker that was
/// ready for at least the maximal delay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    deaths: u32,
    start_at: Mono,
}

impl Backoff {
    /// Counts a death at `now` of a worker that had been ready for `ready_for`, upon what stood before.
    #[must_use]
    pub fn after_death(before: Option<Self>, now: Mono, ready_for: Duration, policy: &Policy) -> Self {
        let lasted = ready_for >= policy.restart_max_delay;
        let deaths = before.filter(|_| !lasted).map_or(1, |backoff| backoff.deaths.saturating_add(1));
        Self { deaths, start_at: now + delay(deaths, policy) }
    }

    /// How many workers of the slot have died in a row.
    pub fn deaths(&self) -> u32 {
        self.deaths
    }

    /// Returns when the slot's next worker may start.
    pub fn start_at(&self) -> Mono {
        self.start_at
    }
}

/// The slots of a generation whose last worker died by itself.
///
/// They alone are written down and compared. Which of them still wait follows from the moments.
#[derive(Clone, Default)]
pub(super) struct Backoffs {
    slots: BTreeMap<SlotId, Backoff>,
    /// Those whose pause was not over when [`Backoffs::let_pass`] was last called, by its end.
    pauses: BTreeSet<(Mono, SlotId)>,
    /// The same slots.
    pausing: SlotSet,
}

impl Backoffs {
    pub(super) fn get(&self, slot: SlotId) -> Option<&Backoff> {
        self.slots.get(&slot)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (SlotId, &Backoff)> {
        self.slots.iter().map(|(slot, backoff)| (*slot, backoff))
    }

    pub(super) fn insert(&mut self, slot: SlotId, backoff: Backoff) {
        if let Some(before) = self.slots.insert(slot, backoff) {
            self.pauses.remove(&(before.start_at, slot));
        }
        self.pauses.insert((backoff.start_at, slot));
        self.pausing.insert(slot);
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Returns when the next pause ends after `now`.
    pub(super) fn next_end(&self, now: Mono) -> Option<Mono> {
        self.pauses.range((now, SlotId(u32::MAX))..).next().map(|(at, _)| *at)
    }

    /// Whether each slot that waits at `now` is found without a scan.
    pub(super) fn is_indexed(&self, now: Mono) -> bool {
        let is_known = |at: Mono, slot| self.slots.get(&slot).is_some_and(|backoff| backoff.start_at == at);
        self.pauses.iter().map(|(_, slot)| *slot).collect::<SlotSet>() == self.pausing
            && self.pauses.iter().all(|(at, slot)| is_known(*at, *slot))
            && self.iter().all(|(slot, of)| of.start_at <= now || self.pauses.contains(&(of.start_at, slot)))
    }

    /// Takes out the pauses that are over at `now`, and returns the slots that still wait.
    pub(super) fn let_pass(&mut self, now: Mono) -> &SlotSet {
        while let Some((at, slot)) = self.pauses.first().copied()
            && at <= now
        {
            self.pauses.pop_first();
            self.pausing.remove(slot);
        }
        &self.pausing
    }
}

impl PartialEq for Backoffs {
    fn eq(&self, other: &Self) -> bool {
        self.slots == other.slots
    }
}

impl Eq for Backoffs {}

impl fmt::Debug for Backoffs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.slots.fmt(f)
    }
}

impl FromIterator<(SlotId, Backoff)> for Backoffs {
    fn from_iter<I: IntoIterator<Item = (SlotId, Backoff)>>(slots: I) -> Self {
        let mut backoffs = Self::default();
        slots.into_iter().for_each(|(slot, backoff)| backoffs.insert(slot, backoff));
        backoffs
    }
}

impl Serialize for Backoffs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.slots.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Backoffs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(BTreeMap::deserialize(deserializer)?.into_iter().collect())
    }
}

fn delay(deaths: u32, policy: &Policy) -> Duration {
    let doublings = deaths.saturating_sub(1).min(31);
    policy.restart_initial_delay.saturating_mul(1 << doublings).min(policy.restart_max_delay)
}
