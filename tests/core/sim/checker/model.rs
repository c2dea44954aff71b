//! What the checker knows of the service: queries over the model, and how it changes.

use std::collections::{BTreeMap, BTreeSet};

use liveswap::core::Scale;
use liveswap::core::ids::{GenerationId, SlotId, WorkerId};
use liveswap::core::spec::Strategy;
use liveswap::core::time::Mono;

use super::{Checker, Course, Phase, Release, Seen, Stage, Verdict, ensure};

/// A service may not be scaled to more.
const MOST_WORKERS: u32 = 4096;

impl Checker {
    pub(super) fn is_any_live(&self, ids: &BTreeSet<WorkerId>) -> bool {
        ids.iter().any(|id| self.workers.get(id).is_some_and(|worker| worker.stage.is_live()))
    }

    pub(super) fn present(&mut self, id: WorkerId) -> Result<&mut Seen, String> {
        self.workers.get_mut(&id).ok_or_else(|| format!("worker {id} is not there"))
    }

    pub(super) fn release(&self, generation: GenerationId) -> Result<&Release, String> {
        self.generations.get(&generation).ok_or_else(|| format!("generation {generation} is not there"))
    }

    pub(super) fn go_on(&mut self, to: GenerationId, from: &[Phase], phase: Phase) -> Verdict {
        let upgrade = self.upgrade.as_mut().filter(|upgrade| upgrade.to == to).ok_or("no such upgrade")?;
        ensure!(from.contains(&upgrade.phase), "not from {:?}", upgrade.phase);
        upgrade.phase = phase;
        Ok(())
    }

    /// The respawn is over: where two live workers have a slot, the one that serves is to stay, or else the older one.
    pub(super) fn keep_one_a_slot(&mut self) {
        self.workers.values_mut().for_each(|worker| worker.outdated = false);
        let mut taken = BTreeSet::new();
        for stage in [Stage::Ready, Stage::Starting] {
            for worker in self.workers.values_mut().filter(|worker| worker.stage == stage) {
                worker.outdated = !taken.insert((worker.generation, worker.slot));
            }
        }
    }

    /// A live worker of the generation is lost without our doing.
    pub(super) fn lost(&mut self, generation: GenerationId) {
        self.undisturbed = false;
        if generation == self.current {
            self.excuse_the_old();
        }
        if let Some(upgrade) = self.upgrade.as_mut().filter(|upgrade| upgrade.to == generation) {
            upgrade.has_failed = true;
        }
    }

    pub(super) fn disturb(&mut self) {
        self.undisturbed = false;
        self.excuse_the_old();
    }

    pub(super) fn excuse_the_old(&mut self) {
        if let Some(upgrade) = &mut self.upgrade {
            upgrade.old_has_an_excuse = true;
        }
    }

    /// A change begins: if all is well now, what goes wrong from now on is our doing.
    pub(super) fn rest(&mut self) {
        let others = self.live().any(|worker| worker.generation != self.current);
        self.undisturbed = self.is_full(self.current) && !others;
    }

    /// A worker of the generation is ready: if it is the one that is upgraded to, the old one need not fill the slot any
    /// more, nor any slot once all are ready.
    pub(super) fn give_over(&mut self, generation: GenerationId, slot: SlotId) {
        if self.phase_of(generation) != Some(Phase::Surging) {
            return;
        }
        let all = self.is_full(generation).then(|| (0..self.generations[&self.current].wanted()).map(SlotId));
        if let Some(upgrade) = &mut self.upgrade {
            upgrade.given_over.insert(slot);
            upgrade.given_over.extend(all.into_iter().flatten());
        }
    }

    /// Whether by now the new workers that there are have stayed ready for long enough: one at least, and all where all are to
    /// be there first.
    pub(super) fn note_proof(&mut self, now: Mono) {
        let Some(to) = self.upgrade.as_ref().filter(|it| it.phase == Phase::Surging).map(|it| it.to) else {
            return;
        };
        let rules = &self.generations[&to];
        let takes = rules.proof_takes();
        let least =
            if rules.strategy == Strategy::BlueGreen { rules.wanted() } else { rules.wanted().min(1) };
        let is_new = |w: &&Seen| w.generation == to && !w.outdated && w.slot.0 < rules.wanted();
        let new: Vec<_> = self.live().filter(is_new).collect();
        let has_stayed = |worker: &&Seen| worker.ready_since.is_some_and(|since| since + takes <= now);
        let proven = takes.is_zero() || new.len() >= least as usize && new.iter().all(has_stayed);
        if let Some(upgrade) = &mut self.upgrade {
            upgrade.proven |= proven;
        }
    }

    /// The strengths that a signal asks for, which has its way as far as may be.
    pub(super) fn scaled_within_bounds(&self, by: i32) -> BTreeMap<GenerationId, u32> {
        let scaled = self.scaled(Scale::By(by)).into_iter();
        scaled.map(|(id, strength)| (id, strength.clamp(1, MOST_WORKERS))).collect()
    }

    /// The strengths that somebody asks for who is answered; `None` where one of them may not be.
    pub(super) fn scaled_as_asked(&self, scale: Scale) -> Option<BTreeMap<GenerationId, u32>> {
        let scaled = self.scaled(scale);
        let may_be = scaled.values().all(|strength| (1..=MOST_WORKERS).contains(strength));
        // In a stop the answer is another.
        (may_be && (self.stop_by.is_some() || !scaled.is_empty())).then_some(scaled)
    }

    /// The strengths that a wish comes to, may they be or not: in an upgrade of both sides, in a stop of none.
    fn scaled(&self, scale: Scale) -> BTreeMap<GenerationId, u32> {
        if self.stop_by.is_some() {
            return BTreeMap::new();
        }
        let is_there = |id: &&GenerationId| {
            **id == self.current || !matches!(self.phase_of(**id), None | Some(Phase::Checking))
        };
        let scaled = |id: &GenerationId| match scale {
            Scale::To(strength) => (*id, strength),
            Scale::By(by) => (*id, self.generations[id].strength.saturating_add_signed(by)),
        };
        let is_scalable = |id: &&GenerationId| self.generations[*id].policy.workers > 0;
        self.generations.keys().filter(is_there).filter(is_scalable).map(scaled).collect()
    }

    pub(super) fn phase_of(&self, generation: GenerationId) -> Option<Phase> {
        self.upgrade.as_ref().filter(|upgrade| upgrade.to == generation).map(|upgrade| upgrade.phase)
    }

    pub(super) fn is_in_use(&self, generation: GenerationId) -> bool {
        generation == self.current || self.phase_of(generation).is_some()
    }

    pub(super) fn has_workers(&self, generation: GenerationId) -> bool {
        self.workers.values().any(|worker| worker.generation == generation)
    }

    /// Whether workers of the generation finish, and nobody of it serves.
    pub(super) fn only_drains(&self, generation: GenerationId) -> bool {
        let mut of = self.workers.values().filter(|w| w.generation == generation);
        !self.is_in_use(generation)
            && of.clone().all(|w| !w.stage.is_live())
            && of.any(|w| !matches!(w.stage, Stage::Killing | Stage::Stuck))
    }

    /// Whether nobody is left for whom one could wait.
    pub(super) fn all_are_stuck(&self) -> bool {
        self.workers.values().all(|worker| worker.stage == Stage::Stuck)
    }

    pub(super) fn live(&self) -> impl Iterator<Item = &Seen> {
        self.workers.values().filter(|worker| worker.stage.is_live())
    }

    pub(super) fn ready_slots(&self, generation: GenerationId) -> BTreeSet<SlotId> {
        let strength = self.generations[&generation].wanted();
        let is_ready = |w: &&Seen| w.generation == generation && w.stage == Stage::Ready && !w.outdated;
        self.workers.values().filter(is_ready).map(|w| w.slot).filter(|slot| slot.0 < strength).collect()
    }

    pub(super) fn is_full(&self, generation: GenerationId) -> bool {
        self.ready_slots(generation).len() == self.generations[&generation].wanted() as usize
    }

    /// The generation that the service is to have, as things stand.
    pub(super) fn incoming(&self) -> GenerationId {
        let forward = |upgrade: &&Course| matches!(upgrade.phase, Phase::Surging | Phase::Probation);
        self.upgrade.as_ref().filter(forward).map_or(self.current, |upgrade| upgrade.to)
    }

    pub(super) fn is_wanted(&self, worker: &Seen) -> bool {
        worker.generation == self.incoming()
            && worker.stage.is_live()
            && !worker.outdated
            && worker.slot.0 < self.generations[&worker.generation].wanted()
    }

    /// The generation that is being upgraded to, once it is prepared.
    pub(super) fn upgraded(&self) -> Option<&Release> {
        let upgrade = self.upgrade.as_ref().filter(|upgrade| upgrade.phase != Phase::Checking)?;
        self.generations.get(&upgrade.to)
    }

    pub(super) fn rules(&self) -> &Release {
        self.upgraded().unwrap_or(&self.generations[&self.current])
    }

    pub(super) fn strengths(&self) -> (u32, u32) {
        let old = self.generations[&self.current].wanted();
        (old, self.upgraded().map_or(old, Release::wanted))
    }

    pub(super) fn most_workers(&self) -> u32 {
        let (old, new) = self.strengths();
        old.max(new)
    }

    pub(super) fn fewest_workers(&self) -> u32 {
        let (old, new) = self.strengths();
        old.min(new)
    }

    pub(super) fn surge(&self) -> u32 {
        let rules = self.rules();
        match rules.strategy {
            Strategy::Rolling { max_surge, .. } => max_surge.of(rules.strength),
            Strategy::BlueGreen => rules.strength,
            Strategy::Recreate => 0,
        }
    }

    pub(super) fn unavailable(&self) -> u32 {
        let rules = self.rules();
        match rules.strategy {
            Strategy::Rolling { max_unavailable, .. } => max_unavailable.of(rules.strength),
            Strategy::BlueGreen => 0,
            Strategy::Recreate => rules.strength,
        }
    }
}
