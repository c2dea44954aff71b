//! The pause before a worker that died by itself is started again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

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

fn delay(deaths: u32, policy: &Policy) -> Duration {
    let doublings = deaths.saturating_sub(1).min(31);
    policy.restart_initial_delay.saturating_mul(1 << doublings).min(policy.restart_max_delay)
}
