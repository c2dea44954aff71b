//! What a seed makes of a release: its policy, and how its workers behave.

use std::time::Duration;

use liveswap::core::spec::{Allowance, Policy, Readiness, Strategy};

use super::chance::Chance;
use crate::story::secs;

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A policy that `config` would let pass.
pub fn policy(chance: &mut Chance) -> Policy {
    // Seldom each connection has a process of its own.
    let workers = if chance.one_in(20) { 0 } else { 1 + chance.below(6) };
    let ready_timeout = chance.pick(&[secs(30), millis(500), secs(5), secs(60)]);
    let initial = chance.pick(&[millis(100), millis(50), secs(1), secs(5)]);
    Policy {
        workers,
        lazy: workers > 0 && chance.one_in(5),
        readiness: match chance.below(5) {
            0 | 1 => Readiness::Notify,
            2 => Readiness::Settled(chance.pick(&[millis(10), ready_timeout / 2])),
            3 => Readiness::Accepting(chance.pick(&[millis(10), ready_timeout / 2])),
            _ => Readiness::Probe(chance.pick(&[ready_timeout / 40, ready_timeout / 5])),
        },
        ready_timeout,
        strategy: (!chance.one_in(4)).then(|| strategy(chance, workers)),
        min_ready: chance.pick(&[
            None,
            Some(Duration::ZERO),
            Some(secs(1)),
            Some(millis(100)),
            Some(secs(20)),
        ]),
        probation: chance.pick(&[Duration::ZERO, Duration::ZERO, millis(100), secs(10), secs(120)]),
        drain_timeout: chance.pick(&[secs(60), millis(10), secs(1), secs(10), secs(600)]),
        max_generations: 4 - chance.below(4),
        restart_initial_delay: initial,
        restart_max_delay: initial.max(chance.pick(&[secs(2), secs(30)])),
        watchdog: chance.one_in(3).then(|| chance.pick(&[secs(5), secs(30)])),
    }
}

fn strategy(chance: &mut Chance, workers: u32) -> Strategy {
    match chance.below(8) {
        0..5 => {
            let (max_surge, max_unavailable) = (allowance(chance), allowance(chance));
            // One of the two must be more than none.
            let is_stuck = max_surge.of(workers) + max_unavailable.of(workers) == 0;
            let max_surge = if is_stuck { Allowance::Count(1) } else { max_surge };
            Strategy::Rolling { max_surge, max_unavailable }
        }
        5 | 6 => Strategy::BlueGreen,
        _ => Strategy::Recreate,
    }
}

fn allowance(chance: &mut Chance) -> Allowance {
    match chance.below(4) {
        0 => Allowance::Count(0),
        1 => Allowance::Count(chance.below(4)),
        _ => Allowance::Percent(chance.pick(&[0, 25, 50, 100, 200])),
    }
}

/// How the workers of a release behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// Every worker is good.
    Good,
    /// Each worker has a fate of its own, mostly a good one.
    Flaky,
    /// All workers share this fate.
    Broken(Fate),
}

/// How a worker's life goes until it is told to drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Good,
    /// No process can be made (EAGAIN).
    NotForked,
    /// Its program is missing.
    NotExecuted,
    /// It runs and is never ready.
    NeverReady,
    /// It boots too slowly, but asks for the time.
    SlowButAsks,
    /// It exits before it is ready.
    DiesBooting,
    /// It is ready, then exits.
    DiesReady,
    /// It says STOPPING=1 by itself, then exits, or does not.
    Leaves,
    /// It is ready, then feeds its watchdog no more.
    Hangs,
    /// It asks for the watchdog's action.
    Triggers,
    /// Somebody kills it.
    KilledFromOutside,
}

impl Fate {
    const BAD: [Self; 10] = [
        Self::NotForked,
        Self::NotExecuted,
        Self::NeverReady,
        Self::SlowButAsks,
        Self::DiesBooting,
        Self::DiesReady,
        Self::Leaves,
        Self::Hangs,
        Self::Triggers,
        Self::KilledFromOutside,
    ];
}

impl Release {
    pub fn any(chance: &mut Chance) -> Self {
        match chance.below(4) {
            0 => Self::Good,
            1 => Self::Broken(chance.pick(&Fate::BAD)),
            _ => Self::Flaky,
        }
    }

    pub fn fate(self, chance: &mut Chance) -> Fate {
        match self {
            Self::Good => Fate::Good,
            Self::Flaky if chance.one_in(4) => chance.pick(&Fate::BAD),
            Self::Flaky => Fate::Good,
            Self::Broken(fate) => fate,
        }
    }
}
