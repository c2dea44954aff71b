//! Makes a failing run small: the fewest and plainest choices that break the same promise.
//!
//! To shrink is to take choices away or to make them smaller, to live through what is left, and to keep what still fails
//! in the same way. Every candidate is a whole life of the world under the same rules, so what comes out is a possible one.

use std::collections::BTreeMap;
use std::mem;

use super::chance::{Chance, Choices, Whose};
use super::{Failure, live};

/// How many events the search for a smaller failure may cost; a bound of time that is the same on every machine.
const BUDGET: u64 = 1_000_000;

/// Choices that lead to a failure.
#[derive(Clone)]
struct Found {
    choices: Choices,
    failure: Failure,
}

impl Found {
    /// What is to become small: how much there is to read, then how much of it is out of the ordinary.
    fn size(&self) -> (u64, usize, u128) {
        let all = || self.choices.0.values().flatten();
        (
            self.failure.events,
            all().filter(|choice| **choice != 0).count(),
            all().map(|choice| u128::from(*choice)).sum(),
        )
    }
}

/// The search for a smaller failure.
struct Shrinker {
    best: Found,
    budget: u64,
}

/// Makes the failure of these choices as small as the budget allows; `None` where they do not fail.
pub fn shrink(choices: Choices) -> Option<Choices> {
    let (result, choices) = live(Chance::from_choices(choices));
    let mut shrinker = Shrinker { best: Found { choices, failure: result.err()? }, budget: BUDGET };
    let mut size = None;
    while size != Some(shrinker.best.size()) && shrinker.budget > 0 {
        size = Some(shrinker.best.size());
        shrinker.drop_owners();
        shrinker.cut_short();
        shrinker.lessen_choices();
        shrinker.drop_choices();
    }
    Some(shrinker.best.choices)
}

impl Shrinker {
    /// Keeps a change of the best choices where they fail in the same way and are smaller.
    fn try_out(&mut self, change: impl FnOnce(&mut BTreeMap<Whose, Vec<u64>>)) -> bool {
        let mut choices = self.best.choices.clone();
        change(&mut choices.0);
        choices.trim();
        if self.budget == 0 || choices == self.best.choices {
            return false;
        }
        let (result, choices) = live(Chance::from_choices(choices));
        let events = *result.as_ref().unwrap_or_else(|failure| &failure.events);
        self.budget = self.budget.saturating_sub(events);
        let Err(failure) = result else { return false };
        let found = Found { choices, failure };
        let is_better = found.failure.kind() == self.best.failure.kind() && found.size() < self.best.size();
        if is_better {
            self.best = found;
        }
        is_better
    }

    /// Takes everybody away in turn, the last first: either those after move up, or there is nobody in that place.
    fn drop_owners(&mut self) {
        for whose in self.owners() {
            let _ = self.try_out(|choices| {
                let after = choices.split_off(&whose);
                choices.extend(after.into_iter().filter(|(other, _)| *other != whose).map(|(other, of)| {
                    let moves = mem::discriminant(&other) == mem::discriminant(&whose);
                    (other.before().filter(|_| moves).unwrap_or(other), of)
                }));
            }) || self.try_out(|choices| {
                choices.remove(&whose);
            });
        }
    }

    /// Lets everybody choose for a part of their time, and take the plainest from then on.
    fn cut_short(&mut self) {
        for whose in self.owners() {
            let mut step = self.len_of(whose) / 2;
            while step > 0 {
                let len = self.len_of(whose).saturating_sub(step);
                if !self.try_out(|choices| {
                    choices.entry(whose).and_modify(|of| of.truncate(len));
                }) {
                    step /= 2;
                }
            }
        }
    }

    /// Takes single choices away.
    fn drop_choices(&mut self) {
        for whose in self.owners() {
            for at in (0..self.len_of(whose)).rev() {
                self.try_out(|choices| {
                    choices.entry(whose).and_modify(|of| {
                        if at < of.len() {
                            of.remove(at);
                        }
                    });
                });
            }
        }
    }

    /// Makes single choices smaller, at best 0.
    fn lessen_choices(&mut self) {
        for whose in self.owners() {
            for at in 0..self.len_of(whose) {
                let mut low = 0;
                while self.budget > 0
                    && let Some(high) = self.choice(whose, at).filter(|high| low < *high)
                {
                    // 0 first; then the smallest that still fails, if all above it do.
                    let middle = if low == 0 { 0 } else { low + (high - low) / 2 };
                    let change = |choices: &mut BTreeMap<Whose, Vec<u64>>| {
                        choices.entry(whose).and_modify(|of| of[at] = middle);
                    };
                    if !self.try_out(change) {
                        low = middle + 1;
                    }
                }
            }
        }
    }

    fn owners(&self) -> Vec<Whose> {
        self.best.choices.0.keys().rev().copied().collect()
    }

    fn choice(&self, whose: Whose, at: usize) -> Option<u64> {
        self.best.choices.0.get(&whose).and_then(|of| of.get(at)).copied()
    }

    fn len_of(&self, whose: Whose) -> usize {
        self.best.choices.0.get(&whose).map_or(0, Vec::len)
    }
}
