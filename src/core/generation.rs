//! One revision of the service, as far as the core decides by it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Scale;
use super::backoff::Backoffs;
use super::ids::SlotId;
use super::spec::{Code, Policy, Strategy};

/// The most workers that a service may be scaled to.
pub(super) const MAX_WORKERS: u32 = 4096;

/// A revision of the service: its policy, and how many workers it is to have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    pub(super) policy: Policy,
    /// How it replaces another now: what the policy says, or what was decided where it says nothing.
    pub(super) strategy: Strategy,
    /// `policy.workers` until somebody scales the service.
    pub(super) strength: u32,
    /// It has no worker until there is something to do.
    pub(super) asleep: bool,
    /// The slots whose last worker died by itself.
    pub(super) backoff: Backoffs,
    /// The log has said that one of its workers says nothing.
    #[serde(default)]
    pub(super) told_silence: bool,
}

impl Generation {
    pub(super) fn new(policy: Policy) -> Self {
        Self::upgrading(policy, Code::Elsewhere)
    }

    /// One that is to replace another by an upgrade.
    pub(super) fn upgrading(policy: Policy, code: Code) -> Self {
        let strategy = chosen(&policy, code);
        Self {
            strength: policy.workers,
            asleep: false,
            strategy,
            policy,
            backoff: Backoffs::default(),
            told_silence: false,
        }
    }

    /// The upgrade to it has ended: what it replaces from now on are workers of its own.
    pub(super) fn settle_in(&mut self) {
        self.strategy = chosen(&self.policy, Code::Elsewhere);
    }

    /// Whether the probation comes before the first old worker drains: those may be the only copy of the old code.
    pub(super) fn is_tried_first(&self) -> bool {
        self.policy.strategy.is_none() && self.strategy == Strategy::BlueGreen
    }

    /// How long its first workers must stay ready before an old one drains.
    pub(super) fn proof_takes(&self) -> Duration {
        if self.strategy == Strategy::Recreate {
            // The old ones have gone by then.
            return Duration::ZERO;
        }
        let probation = if self.is_tried_first() { self.policy.probation } else { Duration::ZERO };
        self.policy.min_ready.unwrap_or_default() + probation
    }

    /// The first one, whose workers wait for something to do where the policy is lazy.
    pub(super) fn first(policy: Policy) -> Self {
        Self { asleep: policy.lazy, ..Self::new(policy) }
    }

    /// How many workers it is to have now.
    pub(super) fn wanted(&self) -> u32 {
        if self.asleep { 0 } else { self.strength }
    }

    /// Returns the slots that are to have a worker.
    pub fn slots(&self) -> impl Iterator<Item = SlotId> + use<> {
        (0..self.wanted()).map(SlotId)
    }

    /// Returns the strength that a wish comes to, whether it may be or not.
    pub(super) fn scaled(&self, scale: Scale) -> u32 {
        match scale {
            Scale::To(strength) => strength,
            Scale::By(by) => self.strength.saturating_add_signed(by),
        }
    }

    /// Returns how many workers may live beyond the strength while this generation comes or goes.
    pub(super) fn surge(&self) -> u32 {
        match self.strategy {
            Strategy::Rolling { max_surge, .. } => max_surge.of(self.strength),
            Strategy::BlueGreen => self.strength,
            Strategy::Recreate => 0,
        }
    }

    /// Returns how many ready workers may be missing while this generation comes or goes.
    pub(super) fn unavailable(&self) -> u32 {
        match self.strategy {
            Strategy::Rolling { max_unavailable, .. } => max_unavailable.of(self.strength),
            Strategy::BlueGreen => 0,
            Strategy::Recreate => self.strength,
        }
    }
}

/// How a generation replaces another: as its policy says, or else by where the code of the two lies.
fn chosen(policy: &Policy, code: Code) -> Strategy {
    match (policy.strategy, code) {
        (Some(strategy), _) => strategy,
        (None, Code::Elsewhere) => Strategy::ROLLING,
        (None, Code::InPlace) => Strategy::BlueGreen,
    }
}
