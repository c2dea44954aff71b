//! Which workers start and which drain: the one rule that upgrades, rollbacks, respawns and scaling share.
//!
//! At any moment one generation is *incoming*: the one whose workers the service is to have. Every other live worker is
//! outgoing: of another generation, outdated by a respawn, or in a slot beyond the strength. Outgoing ones leave as
//! incoming ones become ready, within the strategy's limits. While an upgrade surges, the old generation *keeps* the
//! slots that are not switched yet: a worker of its own that dies there is started again.

use super::Action;
use super::census::{Census, Gate, Ground};
use super::generation::Generation;
use super::ids::{GenerationId, SlotId, WorkerId};
use super::index::{Cohort, CohortId};
use super::manager::Manager;
use super::notice::DrainReason;
use super::slots::SlotSet;
use super::spec::Strategy;
use super::time::Mono;
use super::upgrade::{Change, Phase, Proof, Upgrade};
use super::worker::Worker;

/// Which slots the old generation has not given over yet.
#[derive(Clone, Copy)]
struct Keeper<'a> {
    generation: GenerationId,
    strength: u32,
    switched: &'a SlotSet,
}

impl Keeper<'_> {
    fn slots(self) -> SlotSet {
        SlotSet::first(self.strength).without(self.switched)
    }
}

/// Whom the service is to have: the workers of this cohort in the first slots.
#[derive(Clone, Copy)]
struct Aim {
    cohort: CohortId,
    strength: u32,
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
        Aim { cohort: CohortId::fresh(generation), strength: self.generations[&generation].wanted() }
    }

    /// Whether the service is as it is to be: every slot served, and nobody else is live.
    pub(super) fn is_settled(&self) -> bool {
        let aim = self.aim();
        let incoming = self.workers.cohort(aim.cohort);
        !self.has_outgoing() && incoming.starting.is_empty() && incoming.ready.len() == aim.strength as usize
    }

    /// Whether a worker is live that the service is not to have.
    fn has_outgoing(&self) -> bool {
        let aim = self.aim();
        let incoming = self.workers.cohort(aim.cohort);
        self.workers.live() > incoming.live() || incoming.is_live_beyond(aim.strength)
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
        self.keeper().is_some_and(|keeper| !keeper.slots().is_empty())
    }

    fn census(&self) -> Census {
        let aim = self.aim();
        let old = self.generations[&self.current].wanted();
        let new = self.upgrade().and_then(|upgrade| self.generations.get(&upgrade.to));
        let new = new.map_or(old, Generation::wanted);
        let mut census = Census::new(aim.strength, old, new, self.rules());
        census.gate = self.gate();
        census.count(self.workers.cohort(aim.cohort), self.workers.live(), self.workers.ready());
        if let Some(keeper) = self.keeper() {
            census.count_kept(keeper.slots(), self.workers.cohort(CohortId::fresh(keeper.generation)));
        }
        census
    }

    /// Whether the old generation may give slots over.
    fn gate(&self) -> Gate {
        let Some(upgrade) = self.upgrade() else { return Gate::Open };
        match &upgrade.phase {
            Phase::Surging { proof: Proof::Awaited | Proof::Running { .. }, switched, .. } => {
                // Where there is no room beside the old workers, the first of them must make it. It has made none in a slot that the
                // service has no more, as it was scaled since.
                let wanted = self.generations[&upgrade.to].wanted();
                let has_room = !switched.below(wanted).is_empty();
                if !has_room && self.rules().surge() == 0 { Gate::First } else { Gate::Shut }
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
        let incoming = self.workers.cohort(self.aim().cohort);
        if incoming.starting.slots().lowest().is_some_and(|slot| slot.0 < census.strength) {
            return None;
        }
        let is_met = |id: WorkerId| self.workers[id].slot.0 < census.strength;
        let latest = incoming.latest_ready().find(|(_, id)| is_met(*id));
        Some(latest.map_or(Mono::ZERO, |(since, _)| since))
    }

    /// Lets the outgoing workers drain that may.
    pub(super) fn retire(&mut self, now: Mono, out: &mut Vec<Action>) {
        if !self.has_outgoing() && !self.keeps_slots() {
            return;
        }
        let mut census = self.census();
        for ground in Ground::IN_TURN {
            let given = census.give_over(ground);
            // They were counted out with their slots.
            let mut leaving = self.workers.fresh(self.current).live_within(&given);
            self.switch_slots(&given);
            leaving.extend(match ground {
                Ground::Replaced => self.replaced(&mut census),
                Ground::Surplus | Ground::MakesRoom => self.dispensable(ground, &mut census),
            });
            leaving.sort_unstable();
            for id in leaving {
                let why = self.why_it_leaves(&self.workers[id]);
                self.drain(now, id, why, out);
            }
        }
    }

    /// Has the old generation no longer keep these slots.
    fn switch_slots(&mut self, given: &SlotSet) {
        if !given.is_empty()
            && let Some(Change::Upgrade(upgrade)) = &mut self.change
            && let Phase::Surging { switched, .. } = &mut upgrade.phase
        {
            *switched = switched.or(given);
        }
    }

    /// The outgoing workers that start, or in whose place another serves. They are counted out.
    fn replaced(&self, census: &mut Census) -> Vec<WorkerId> {
        let mut leaving = Vec::new();
        for (id, cohort) in self.workers.cohorts() {
            let starting = cohort.starting.within(&self.outgoing(id, cohort.starting.slots()));
            census.count_out_starting(starting.len());
            let replaced = census.replaced(&self.outgoing(id, cohort.ready.slots()));
            let ready = cohort.ready.within(&replaced);
            census.count_out_ready(ready.len());
            leaving.extend(starting.into_iter().chain(ready));
        }
        leaving
    }

    /// The outgoing workers that may leave though they are ready and no other serves in their place: the oldest of those that
    /// the ground allows. They are counted out.
    fn dispensable(&self, ground: Ground, census: &mut Census) -> Vec<WorkerId> {
        let most = census.most_that_leave(ground);
        if most == 0 {
            return Vec::new();
        }
        let mut leaving = Vec::new();
        for (id, cohort) in self.workers.cohorts() {
            let outgoing = self.outgoing(id, cohort.ready.slots());
            let slots = if ground == Ground::Surplus { self.leftover(id, outgoing) } else { outgoing };
            leaving.extend(cohort.eldest_within(&slots, most));
        }
        leaving.sort_unstable();
        let may_leave = |_: &WorkerId| {
            let may = census.most_that_leave(ground) > 0;
            census.count_out_ready(usize::from(may));
            may
        };
        leaving.into_iter().take_while(may_leave).collect()
    }

    /// Of the slots of live workers of this cohort, returns those whose worker the service is not to have and that are not kept.
    fn outgoing(&self, id: CohortId, slots: &SlotSet) -> SlotSet {
        let aim = self.aim();
        match self.keeper() {
            _ if id == aim.cohort => slots.beyond(aim.strength),
            Some(keeper) if id == CohortId::fresh(keeper.generation) => {
                slots.beyond(keeper.strength).without(keeper.switched)
            }
            Some(_) | None => slots.clone(),
        }
    }

    /// Of the slots of outgoing workers of this cohort, returns those whose worker nothing under way is about.
    fn leftover(&self, id: CohortId, outgoing: SlotSet) -> SlotSet {
        let is_respawned = matches!(self.change, Some(Change::Respawn(_)));
        if !self.is_in_use(id.generation) || id.is_outdated && !is_respawned {
            return outgoing;
        }
        outgoing.beyond(self.generations[&id.generation].wanted())
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
        let (current, incoming) = (self.current, self.incoming());
        let kept = census.kept.without(&census.kept_filled).without(self.pausing(current, now));
        let missing = SlotSet::first(census.strength).without(&census.filled);
        let missing = missing.without(self.pausing(incoming, now));
        let missing = self.need_no_end(missing);
        // A slot that nobody serves comes before one that an outgoing worker still fills.
        let served = self.workers.cohorts().fold(SlotSet::EMPTY, |all, (_, cohort)| all.or(&cohort.filled()));
        let first = |slots: &SlotSet, room: usize| -> Vec<SlotId> {
            let (unserved, served) = (slots.without(&served), slots.and(&served));
            unserved.iter().chain(served.iter()).take(room).collect()
        };
        let (kept, missing) = (first(&kept, kept_room), first(&missing, room));
        for slot in kept {
            self.start(now, current, slot, out);
        }
        for slot in missing {
            self.start(now, incoming, slot, out);
        }
    }

    /// The slots of the generation that wait after a death.
    fn pausing(&mut self, generation: GenerationId, now: Mono) -> &SlotSet {
        let of = self.generations.get_mut(&generation);
        of.map_or(const { &SlotSet::EMPTY }, |of| of.backoff.let_pass(now))
    }

    /// Of the slots, returns those whose next process need not wait for the end of an earlier one, as under `recreate`.
    fn need_no_end(&self, slots: SlotSet) -> SlotSet {
        if self.rules().strategy != Strategy::Recreate {
            return slots;
        }
        let aim = self.aim();
        let incoming = self.workers.cohort(aim.cohort);
        let must_end =
            |cohort: &Cohort| cohort.live() > 0 || !cohort.ending.is_empty() || !cohort.killed.is_empty();
        let mut others = self.workers.cohorts().filter(|(id, _)| *id != aim.cohort);
        if incoming.is_live_beyond(aim.strength) || others.any(|(_, cohort)| must_end(cohort)) {
            return SlotSet::EMPTY;
        }
        slots.without(incoming.ending.slots()).without(incoming.killed.slots())
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
        // What is past and did not start waits for room or for an end, and those are events.
        let next_end = |generation: GenerationId| self.generations[&generation].backoff.next_end(self.now);
        next_end(self.current).into_iter().chain(next_end(self.incoming())).min()
    }
}
