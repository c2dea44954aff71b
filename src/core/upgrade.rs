//! The course of an upgrade: checking → surging → probation → committed, or → rolled back.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ids::{GenerationId, RequestId, WorkerId};
use super::manager::Manager;
use super::notice::{Notice, Outcome, WorkerNotice};
use super::respawn::Respawn;
use super::slots::SlotSet;
use super::spec::{Code, Policy};
use super::time::Mono;
use super::waiting::{Waiting, WantedUpgrade};
use super::{Action, Generation};

/// How long reading the service file, or preparing what it defines, may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(30);

/// How many new workers that were killed from outside an upgrade makes good before it takes the hint.
const SPARED_KILLS: u32 = 3;

/// What the manager is busy with, beside keeping its workers alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Change {
    Upgrade(Upgrade),
    /// Workers marked as outdated are replaced by fresh ones of the same generation.
    Respawn(Respawn),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Upgrade {
    pub(super) to: GenerationId,
    pub(super) phase: Phase,
    pub(super) origin: Origin,
    pub(super) requests: Vec<RequestId>,
    /// Those who asked for a rollback while it was under way.
    pub(super) undo: Vec<RequestId>,
}

/// What the new generation is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Origin {
    /// Of what the service file defines, with the target that this request names, or else with the one of before.
    File { target: Option<RequestId> },
    /// Of what this earlier generation was made of.
    Earlier(GenerationId),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Phase {
    /// Nothing is touched yet.
    Checking { step: CheckStep, until: Mono },
    /// New workers start; the slots in `switched` are no longer kept by the old generation.
    Surging { switched: SlotSet, spared: u32, proof: Proof },
    /// The new generation serves alone.
    Probation { until: Mono },
    /// The old generation comes back to full strength, then the new one goes.
    RollingBack { reason: String, give_up_at: Mono },
}

/// Whether the first new workers have shown that they stay ready, so that old ones may drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Proof {
    /// Not all of them are ready.
    Awaited,
    /// They are, and must stay so.
    Running {
        until: Mono,
    },
    Given,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum CheckStep {
    File,
    Hook,
    Preparing,
}

impl CheckStep {
    fn in_words(self) -> &'static str {
        match self {
            Self::File => "reading the service file",
            Self::Hook => "a hook before the upgrade",
            Self::Preparing => "preparing the generation",
        }
    }
}

impl Upgrade {
    /// Whether the new generation's workers are what the service is to have.
    pub(super) fn is_forward(&self) -> bool {
        matches!(self.phase, Phase::Surging { .. } | Phase::Probation { .. })
    }

    /// Gives it the time once more that it has: `latest` is when the old generation must be back.
    pub(super) fn overslept(&mut self, now: Mono, probation: Duration, latest: Mono) {
        match &mut self.phase {
            Phase::Checking { until, .. } => *until = (*until).max(now + CHECK_TIMEOUT),
            Phase::Probation { until } => *until = (*until).max(now + probation),
            Phase::RollingBack { give_up_at, .. } => *give_up_at = (*give_up_at).max(latest),
            // It follows from since when the workers are ready.
            Phase::Surging { .. } => {}
        }
    }

    pub(super) fn deadline(&self, now: Mono) -> Option<Mono> {
        match self.phase {
            Phase::Checking { until, .. } => Some(until),
            // One that is over and not committed waits for workers, and those are events.
            Phase::Probation { until } => Some(until).filter(|until| *until > now),
            Phase::RollingBack { give_up_at, .. } => Some(give_up_at),
            Phase::Surging { proof: Proof::Running { until }, .. } => {
                Some(until).filter(|until| *until > now)
            }
            Phase::Surging { proof: Proof::Awaited | Proof::Given, .. } => None,
        }
    }
}

impl Manager {
    /// The upgrade under way.
    pub(super) fn upgrade(&self) -> Option<&Upgrade> {
        match &self.change {
            Some(Change::Upgrade(upgrade)) => Some(upgrade),
            Some(Change::Respawn(_)) | None => None,
        }
    }

    pub(super) fn upgrade_mut(&mut self) -> Option<&mut Upgrade> {
        match &mut self.change {
            Some(Change::Upgrade(upgrade)) => Some(upgrade),
            Some(Change::Respawn(_)) | None => None,
        }
    }

    /// Returns the upgrade to `generation` where it is at `step` of its checks; an answer to anything else is late.
    fn checking(&mut self, generation: GenerationId, step: CheckStep) -> Option<&mut Upgrade> {
        self.upgrade_mut().filter(|upgrade| {
            upgrade.to == generation
                && matches!(upgrade.phase, Phase::Checking { step: now, .. } if now == step)
        })
    }

    pub(super) fn refuse_when_stopping(&self, request: Option<RequestId>, out: &mut Vec<Action>) -> bool {
        if self.stop.is_none() {
            return false;
        }
        let stopping = || Outcome::Superseded("the service stops".into());
        out.extend(request.map(|request| Action::Answer(request, stopping())));
        true
    }

    /// Begins an upgrade, to be answered to all who asked for it.
    pub(super) fn begin_upgrade(
        &mut self,
        now: Mono,
        origin: Origin,
        requests: Vec<RequestId>,
        out: &mut Vec<Action>,
    ) {
        if let Some(respawn) = self.stop_respawning() {
            let why = "an upgrade goes first".into();
            out.push(Action::Tell(Notice::RespawnEnded(self.current, Err(why))));
            self.want_respawn(respawn);
        }
        let to = self.next_generation;
        self.next_generation = to.next();
        let (step, notice, action) = match origin {
            Origin::File { target } => {
                (CheckStep::File, Notice::UpgradeBegan(to), Action::ReadFile(to, target))
            }
            Origin::Earlier(id) => {
                (CheckStep::Preparing, Notice::RollbackBegan(to, id), Action::Reuse(to, id))
            }
        };
        let phase = Phase::Checking { step, until: now + CHECK_TIMEOUT };
        let upgrade = Upgrade { to, phase, origin, requests, undo: Vec::new() };
        self.culprit = None;
        self.change = Some(Change::Upgrade(upgrade));
        out.extend([Action::Tell(notice), action]);
    }

    pub(super) fn file_read(
        &mut self,
        now: Mono,
        generation: GenerationId,
        hook: Option<Duration>,
        out: &mut Vec<Action>,
    ) {
        let Some(upgrade) = self.checking(generation, CheckStep::File) else { return };
        match hook {
            Some(timeout) => {
                upgrade.phase = Phase::Checking { step: CheckStep::Hook, until: now + timeout };
                out.push(Action::RunHook(generation));
            }
            None => self.prepare(now, out),
        }
    }

    pub(super) fn hook_ended(
        &mut self,
        now: Mono,
        generation: GenerationId,
        result: Result<(), String>,
        out: &mut Vec<Action>,
    ) {
        if self.checking(generation, CheckStep::Hook).is_none() {
            return;
        }
        match result {
            Ok(()) => self.prepare(now, out),
            Err(why) => self.refuse(why, out),
        }
    }

    fn prepare(&mut self, now: Mono, out: &mut Vec<Action>) {
        let Some(upgrade) = self.upgrade_mut() else { return };
        upgrade.phase = Phase::Checking { step: CheckStep::Preparing, until: now + CHECK_TIMEOUT };
        out.push(Action::Prepare(upgrade.to));
    }

    pub(super) fn prepared(
        &mut self,
        generation: GenerationId,
        policy: Policy,
        code: Code,
        out: &mut Vec<Action>,
    ) {
        let Some(upgrade) = self.checking(generation, CheckStep::Preparing) else {
            out.push(Action::CancelPreparation(generation));
            return;
        };
        upgrade.phase = Phase::Surging { switched: SlotSet::EMPTY, spared: 0, proof: Proof::Awaited };
        self.generations.insert(generation, Generation::upgrading(policy, code));
        out.push(Action::Tell(Notice::Surging(generation)));
    }

    pub(super) fn preparation_failed(
        &mut self,
        generation: GenerationId,
        why: String,
        out: &mut Vec<Action>,
    ) {
        let checked =
            |upgrade: &Upgrade| upgrade.to == generation && matches!(upgrade.phase, Phase::Checking { .. });
        if self.upgrade().is_some_and(checked) {
            self.refuse(why, out);
        }
    }

    pub(super) fn refuse(&mut self, why: String, out: &mut Vec<Action>) {
        if let Some(upgrade) = self.upgrade() {
            out.push(Action::CancelPreparation(upgrade.to));
        }
        self.end_upgrade(Outcome::Refused(why), out);
    }

    /// Takes the loss of a worker of the new generation: rolls back, or spares it.
    ///
    /// A kill that came from outside, before the switch is complete, says nothing about the release: such a worker gets
    /// another chance, a few times.
    pub(super) fn new_worker_failed(
        &mut self,
        now: Mono,
        id: WorkerId,
        reason: String,
        foreign_kill: bool,
        out: &mut Vec<Action>,
    ) {
        let Some(upgrade) = self.upgrade_mut() else { return };
        match &mut upgrade.phase {
            Phase::Surging { spared, .. } if foreign_kill && *spared < SPARED_KILLS => {
                *spared += 1;
                out.push(Action::Tell(Notice::Worker(id, WorkerNotice::Spared)));
            }
            Phase::Checking { .. }
            | Phase::Surging { .. }
            | Phase::Probation { .. }
            | Phase::RollingBack { .. } => {
                self.culprit = Some(id);
                self.roll_back(now, reason, out);
            }
        }
    }

    pub(super) fn roll_back(&mut self, now: Mono, reason: String, out: &mut Vec<Action>) {
        let give_up_at = self.latest_restoration(now);
        let current = self.current;
        let Some(upgrade) = self.upgrade_mut() else { return };
        out.push(Action::Tell(Notice::RollingBack(upgrade.to, reason.clone())));
        out.push(Action::RestoreSockets(current));
        upgrade.phase = Phase::RollingBack { reason, give_up_at };
        if let Some(old) = self.generations.get_mut(&current) {
            // It comes back at once: what failed there before the upgrade is no reason to wait.
            old.backoff.clear();
        }
    }

    /// Goes on to the next phase where the facts allow it.
    pub(super) fn conclude(&mut self, now: Mono, out: &mut Vec<Action>) {
        let settled = self.is_settled();
        match &self.change {
            Some(Change::Respawn(_)) if settled => self.end_respawn(&Outcome::Committed, out),
            Some(Change::Respawn(_)) | None => {}
            Some(Change::Upgrade(upgrade)) => match &upgrade.phase {
                Phase::Checking { step, until } if *until <= now => {
                    let why = format!("{} was not done in time", step.in_words());
                    self.refuse(why, out);
                }
                Phase::Surging { proof: Proof::Given, .. } if settled => self.begin_probation(now, out),
                Phase::Probation { until } if settled && *until <= now => self.commit(out),
                Phase::RollingBack { reason, give_up_at } if settled || *give_up_at <= now => {
                    let outcome = Outcome::RolledBack(reason.clone());
                    self.end_upgrade(outcome, out);
                }
                Phase::Checking { .. }
                | Phase::Surging { .. }
                | Phase::Probation { .. }
                | Phase::RollingBack { .. } => {}
            },
        }
    }

    fn begin_probation(&mut self, now: Mono, out: &mut Vec<Action>) {
        let probation = self.rules().policy.probation;
        if probation.is_zero() || self.rules().is_tried_first() {
            self.commit(out);
        } else if let Some(upgrade) = self.upgrade_mut() {
            out.push(Action::Tell(Notice::Probation(upgrade.to, probation)));
            upgrade.phase = Phase::Probation { until: now + probation };
        }
    }

    fn commit(&mut self, out: &mut Vec<Action>) {
        if let Some(upgrade) = self.upgrade() {
            let to = upgrade.to;
            self.previous = Some(std::mem::replace(&mut self.current, to));
            self.served = true;
            self.generations.entry(to).and_modify(Generation::settle_in);
            self.last_exit.clear();
        }
        self.end_upgrade(Outcome::Committed, out);
    }

    fn end_upgrade(&mut self, outcome: Outcome, out: &mut Vec<Action>) {
        let is_upgrade = |change: &mut Change| matches!(change, Change::Upgrade(_));
        let Some(Change::Upgrade(upgrade)) = self.change.take_if(is_upgrade) else { return };
        out.push(Action::Tell(Notice::UpgradeEnded(upgrade.to, outcome.clone())));
        if outcome == Outcome::Committed {
            self.drop_respawn_if_met(&outcome, out);
        }
        answer(upgrade.requests, &outcome, out);
        answer(upgrade.undo, &undone(&outcome), out);
        out.push(Action::TellHook(upgrade.to, outcome.clone()));
        self.last_upgrade = Some((upgrade.to, outcome));
    }

    /// Ends whatever is under way or waits, because the service stops.
    pub(super) fn supersede_all(&mut self, why: &str, out: &mut Vec<Action>) {
        let outcome = Outcome::Superseded(why.into());
        if let Some(Upgrade { to, phase: Phase::Checking { .. }, .. }) = self.upgrade() {
            out.push(Action::CancelPreparation(*to));
        }
        self.end_upgrade(outcome.clone(), out);
        self.end_respawn(&outcome, out);
        let Waiting { upgrade, respawn } = std::mem::take(&mut self.waiting);
        let upgrade = upgrade.map(WantedUpgrade::into_requests);
        for requests in upgrade.into_iter().chain(respawn.map(|respawn| respawn.requests)) {
            answer(requests, &outcome, out);
        }
    }
}

/// What an upgrade's end is to whoever wanted it taken back.
fn undone(outcome: &Outcome) -> Outcome {
    match outcome {
        Outcome::RolledBack(_) | Outcome::Refused(_) => Outcome::Committed,
        // Only what can no longer be taken back is committed.
        Outcome::Committed => Outcome::Refused("the upgrade was committed".into()),
        Outcome::Superseded(why) => Outcome::Superseded(why.clone()),
    }
}

pub(super) fn answer(requests: Vec<RequestId>, outcome: &Outcome, out: &mut Vec<Action>) {
    out.extend(requests.into_iter().map(|request| Action::Answer(request, outcome.clone())));
}
