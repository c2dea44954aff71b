//! Which workers start and which drain: the one rule that upgrades, rollbacks, respawns and scaling share.
//!
//! At any moment one generation is *incoming*: the one whose workers the service is to have. Every other live worker is
//! outgoing: of another generation, outdated by a respawn, or in a slot beyond the strength. Outgoing ones leave as
//! incoming ones become ready, within the strategy's limits. While an upgrade surges, the old generation *keeps* the
//! slots that are not switched yet: a worker of its own that dies there is started again.

use std::collections::BTreeSet;

use super::Action;
use super::backoff::Backoff;
use super::census::{Census, Gate, Ground, Hold, Outgoing};
use super::generation::Generation;
use super::ids::{GenerationId, SlotId};
use super::manager::Manager;
use super::notice::DrainReason;
use super::spec::Strategy;
use super::time::Mono;
use super::upgrade::{Change, Phase, Proof, Upgrade};
use super::worker::Worker;

/// Which slots the old generation has not given over yet.
#[derive(Clone, Copy)]
struct Keeper<'a> {
    generation: GenerationId,
    strength: u32,
    switched: &'a BTreeSet<SlotId>,
}

impl<'a> Keeper<'a> {
    fn slots(self) -> impl Iterator<Item = SlotId> + use<'a> {
        (0..self.strength).map(SlotId).filter(move |slot| !self.switched.contains(slot))
    }

    /// Whether the worker is one that its slot could be served by.
    fn owns(self, worker: &Worker) -> bool {
        worker.generation == self.generation && !worker.outdated
    }

    fn keeps(self, worker: &Worker) -> bool {
        self.owns(worker) && worker.slot.0 < self.strength && !self.switched.contains(&worker.slot)
    }

    /// Whether the worker's slot was given over to the new generation.
    fn has_let_go(self, worker: &Worker) -> bool {
        self.owns(worker) && self.switched.contains(&worker.slot)
    }
}

/// Whom the service is to have.
#[derive(Clone, Copy)]
struct Aim {
    generation: GenerationId,
    strength: u32,
}

impl Aim {
    fn is_met_by(self, worker: &Worker) -> bool {
        worker.generation == self.generation && !worker.outdated && worker.slot.0 < self.strength
    }
}

impl Manager {
    /// The generation whose workers the service is to have.
    pub(super) fn incoming(&self) -> GenerationId {
        self.upgrade().filter(|upgrade| upgrade.is_forward()).map_or(self.current, |upgrade| upgrade.to)
    }

    /// The generation whose limits hold: of an upgrade the new one, also while it is rolled back.
    pub(super) fn rules(&self) -> &Generation {
        let upgraded = self.upgrade().and_then(|upgrade| self.generations.get(&upgrade.to));
        upgraded.unwrap_or(&self.generations[&self.current])
    }

    fn aim(&self) -> Aim {
        let generation = self.incoming();
        Aim { generation, strength: self.generations[&generation].wanted() }
    }

    /// Whether the service is as it is to be: every slot served, and nobody else is live.
    pub(super) fn is_settled(&self) -> bool {
        let aim = self.aim();
        let mut ready = 0;
        for worker in self.workers.values().filter(|worker| worker.is_live()) {
            if !aim.is_met_by(worker) || !worker.is_ready() {
                return false;
            }
            ready += 1;
        }
        ready == aim.strength as usize
    }

    /// What the old generation keeps while an upgrade surges.
    fn keeper(&self) -> Option<Keeper<'_>> {
        match self.upgrade().map(|upgrade| &upgrade.phase) {
            Some(Phase::Surging { switched, .. }) => {
                let generation = self.current;
                Some(Keeper { generation, strength: self.generations[&generation].wanted(), switched })
            }
            Some(Phase::Checking { .. } | Phase::Probation { .. } | Phase::RollingBack { .. }) | None => None,
        }
    }

    fn keeps_slots(&self) -> bool {
        self.keeper().is_some_and(|keeper| keeper.slots().next().is_some())
    }

    fn census(&self) -> Census {
        let aim = self.aim();
        let old = self.generations[&self.current].wanted();
        let new = self.upgrade().and_then(|upgrade| self.generations.get(&upgrade.to));
        let new = new.map_or(old, Generation::wanted);
        let mut census = Census::new(aim.strength, old, new, self.rules());
        let keeper = self.keeper();
        census.kept = keeper.map_or(0, |keeper| keeper.slots().count());
        census.gate = self.gate();
        for worker in self.workers.values().filter(|worker| worker.is_live()) {
            if aim.is_met_by(worker) {
                census.count_incoming(worker);
            } else {
                census.count_old(worker, keeper.is_some_and(|keeper| keeper.keeps(worker)));
            }
        }
        census
    }

    /// Whether the old generation may give slots over.
    fn gate(&self) -> Gate {
        match self.upgrade().map(|upgrade| &upgrade.phase) {
            Some(Phase::Surging { proof: Proof::Awaited | Proof::Running { .. }, switched, .. }) => {
                // Where there is no room beside the old workers, the first of them must make it.
                if switched.is_empty() && self.rules().surge() == 0 { Gate::First } else { Gate::Shut }
            }
            _ => Gate::Open,
        }
    }

    /// Whether the first new workers are still to show that they stay ready.
    pub(super) fn is_proving(&self) -> bool {
        self.gate() != Gate::Open
    }

    /// Whether it is one of the first new workers, which are to show that they stay ready.
    pub(super) fn is_to_prove(&self, worker: &Worker) -> bool {
        self.is_of_incoming(worker) && self.is_proving()
    }

    /// Sees whether the first new workers have stayed ready for long enough: as many of them as there is room for.
    pub(super) fn prove(&mut self, now: Mono) {
        let takes = self.rules().proof_takes();
        let Some(Phase::Surging { proof, .. }) = self.upgrade().map(|upgrade| &upgrade.phase) else { return };
        if *proof == Proof::Given {
            return;
        }
        let seen = match self.first_workers_ready_since() {
            _ if takes.is_zero() => Proof::Given,
            Some(since) if since + takes <= now => Proof::Given,
            Some(since) => Proof::Running { until: since + takes },
            None => Proof::Awaited,
        };
        if let Some(Upgrade { phase: Phase::Surging { proof, .. }, .. }) = self.upgrade_mut() {
            *proof = seen;
        }
    }

    /// Since when the new workers for which there is room are all ready; `None` where one is missing or is not.
    fn first_workers_ready_since(&self) -> Option<Mono> {
        let census = self.census();
        if census.filled.len() < census.strength as usize && (census.room() > 0 || census.filled.is_empty()) {
            return None;
        }
        let aim = self.aim();
        let new = self.workers.values().filter(|worker| worker.is_live() && aim.is_met_by(worker));
        new.map(Worker::ready_since).try_fold(Mono::ZERO, |latest, since| Some(latest.max(since?)))
    }

    /// Lets the outgoing workers drain that may.
    pub(super) fn retire(&mut self, now: Mono, out: &mut Vec<Action>) {
        let aim = self.aim();
        if self.live_workers().all(|(_, worker)| aim.is_met_by(worker)) && !self.keeps_slots() {
            return;
        }
        let mut census = self.census();
        for ground in Ground::IN_TURN {
            self.switch_slots(ground, &mut census);
            self.drain_outgoing(now, ground, &mut census, out);
        }
    }

    /// Decides which slots the old generation no longer keeps.
    fn switch_slots(&mut self, ground: Ground, census: &mut Census) {
        let mut newly = Vec::new();
        for slot in self.keeper().into_iter().flat_map(Keeper::slots) {
            let hold = if census.kept_filled.contains(slot) { Hold::Kept } else { Hold::KeptEmpty };
            let is_ready = census.kept_ready.contains(slot);
            if census.lets_go(ground, Outgoing { slot, hold, is_ready }) {
                newly.push(slot);
            }
        }
        if let Some(Change::Upgrade(upgrade)) = &mut self.change
            && let Phase::Surging { switched, .. } = &mut upgrade.phase
        {
            switched.extend(newly);
        }
    }

    fn drain_outgoing(&mut self, now: Mono, ground: Ground, census: &mut Census, out: &mut Vec<Action>) {
        let (aim, keeper) = (self.aim(), self.keeper());
        let leaving: Vec<_> = self
            .live_workers()
            .filter(|(_, worker)| {
                !aim.is_met_by(worker) && !keeper.is_some_and(|keeper| keeper.keeps(worker))
            })
            .filter(|(_, worker)| {
                keeper.is_some_and(|keeper| keeper.has_let_go(worker))
                    || census.lets_go(ground, self.outgoing(worker))
            })
            .map(|(id, worker)| (id, self.why_it_leaves(worker)))
            .collect();
        for (id, why) in leaving {
            self.drain(now, id, why, out);
        }
    }

    /// Describes a live worker that nobody keeps.
    fn outgoing(&self, worker: &Worker) -> Outgoing {
        let is_beyond = worker.slot.0 >= self.generations[&worker.generation].wanted();
        let is_respawned = matches!(self.change, Some(Change::Respawn(_)));
        let is_leftover = !self.is_in_use(worker.generation) || is_beyond || worker.outdated && !is_respawned;
        let hold = if is_leftover { Hold::Leftover } else { Hold::Free };
        Outgoing { slot: worker.slot, hold, is_ready: worker.is_ready() }
    }

    fn why_it_leaves(&self, worker: &Worker) -> DrainReason {
        let failed = self.upgrade().filter(|upgrade| !upgrade.is_forward());
        if failed.is_some_and(|upgrade| upgrade.to == worker.generation) {
            DrainReason::RolledBack
        } else if worker.generation == self.incoming() && !worker.outdated {
            if self.generations[&worker.generation].asleep {
                DrainReason::Idle
            } else {
                DrainReason::ScaledDown
            }
        } else {
            DrainReason::Replaced
        }
    }

    /// Starts the workers that are missing and may start.
    pub(super) fn start_missing(&mut self, now: Mono, out: &mut Vec<Action>) {
        if self.is_settled() && !self.keeps_slots() {
            return;
        }
        let census = self.census();
        let (kept_room, room) = (census.kept_room(), census.room());
        if (kept_room, room) == (0, 0) {
            return;
        }
        let incoming = self.incoming();
        let due = |generation: GenerationId, slot: SlotId| {
            let backoff = self.generations[&generation].backoff.get(&slot);
            backoff.is_none_or(|backoff| backoff.start_at() <= now)
        };
        let kept = self.keeper().into_iter().flat_map(Keeper::slots);
        let kept = kept.filter(|slot| !census.kept_filled.contains(*slot) && due(self.current, *slot));
        let mut kept: Vec<_> = kept.collect();
        let missing = self.generations[&incoming].slots();
        let missing = missing.filter(|slot| !census.filled.contains(*slot) && due(incoming, *slot));
        let mut missing: Vec<_> = missing.filter(|slot| !self.must_wait_for_end(*slot)).collect();
        // A slot that nobody serves comes before one that an outgoing worker still fills.
        kept.sort_by_key(|slot| census.served.contains(*slot));
        missing.sort_by_key(|slot| census.served.contains(*slot));
        for slot in kept.into_iter().take(kept_room) {
            self.start(now, self.current, slot, out);
        }
        for slot in missing.into_iter().take(room) {
            self.start(now, incoming, slot, out);
        }
    }

    /// Whether, under `recreate`, an earlier process must end before the slot's next one starts.
    fn must_wait_for_end(&self, slot: SlotId) -> bool {
        self.rules().strategy == Strategy::Recreate
            && self.workers.values().any(|worker| {
                if worker.is_live() {
                    !self.aim().is_met_by(worker)
                } else {
                    !worker.is_stuck() && (worker.slot == slot || !self.is_of_incoming(worker))
                }
            })
    }

    fn is_of_incoming(&self, worker: &Worker) -> bool {
        worker.generation == self.incoming() && !worker.outdated
    }

    fn start(&mut self, now: Mono, generation: GenerationId, slot: SlotId, out: &mut Vec<Action>) {
        let id = self.next_worker;
        self.next_worker = id.next();
        let worker = Worker::new(generation, slot, now, &self.generations[&generation].policy);
        self.workers.add(id, worker);
        out.push(Action::Start { worker: id, generation, slot });
    }

    /// Returns when the next slot that waits after a death may be started.
    pub(super) fn restart_deadline(&self) -> Option<Mono> {
        let waits = |generation: GenerationId| self.generations[&generation].backoff.values();
        let start_at = waits(self.current).chain(waits(self.incoming())).map(Backoff::start_at);
        // What is past and did not start waits for room or for an end, and those are events.
        start_at.filter(|at| *at > self.now).min()
    }
}
