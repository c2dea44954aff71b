//! What happened when, as far as the core does not decide by it: for the status, and for whoever asks why.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::super::process::Process;
use crate::core::Manager;
use crate::core::ids::{GenerationId, SlotId, WorkerId};
use crate::core::notice::{Exit, Notice, Outcome, WorkerNotice};
use crate::core::time::Mono;
use crate::sys::handover::{hand_over, plain};
use crate::wire::control::Evidence;

/// When things happened.
#[derive(Debug, Default)]
pub(in super::super) struct History {
    started: BTreeMap<WorkerId, Mono>,
    /// How many workers of a generation have died by themselves in a slot.
    deaths: BTreeMap<(GenerationId, SlotId), u64>,
    /// Since when the current generation serves.
    pub(super) serves_since: Option<Mono>,
    /// When the last upgrade ended.
    pub(super) upgraded_at: Option<Mono>,
    /// The last worker whose program never ran, and so wrote nothing.
    never_ran: Option<WorkerId>,
    /// What is known of the worker whose loss made the latest upgrade fail.
    pub(super) evidence: Option<Evidence>,
    /// Which workers did not become ready. An earlier version does not hand it over.
    failures: Option<Failures>,
}

/// The workers that did not become ready.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(in super::super) struct Failures {
    /// The workers that did.
    ready: BTreeSet<WorkerId>,
    /// How many failed before that, by their generations, and what to change.
    count: BTreeMap<GenerationId, (u32, Option<String>)>,
    /// What to change so that the release of the latest upgrade comes up.
    hint: Option<String>,
    /// Where workers of a generation listen that say nothing.
    #[serde(default)]
    bound: BTreeMap<GenerationId, String>,
}

plain!(Failures);

hand_over!(History as HistoryState {
    started: BTreeMap<WorkerId, Mono>,
    deaths: BTreeMap<(GenerationId, SlotId), u64>,
    serves_since: Option<Mono>,
    upgraded_at: Option<Mono>,
    never_ran: Option<WorkerId>,
    evidence: Option<Evidence>,
    failures: Option<Failures>,
});

impl History {
    /// Takes the start of a worker.
    pub(in super::super) fn started(&mut self, worker: WorkerId, now: Mono) {
        self.started.insert(worker, now);
    }

    /// Takes what the core tells.
    pub(in super::super) fn note(
        &mut self,
        notice: &Notice,
        manager: &Manager,
        processes: &BTreeMap<WorkerId, Process>,
        now: Mono,
    ) {
        match notice {
            Notice::Serving(_) => self.serves_since = Some(now),
            Notice::UpgradeEnded(_, outcome) => {
                self.upgraded_at = Some(now);
                if *outcome == Outcome::Committed {
                    self.serves_since = Some(now);
                }
            }
            Notice::UpgradeBegan(_) | Notice::RollbackBegan(..) => {
                (self.evidence, self.failures().hint) = (None, None);
            }
            Notice::RollingBack(generation, _) => {
                let failures = self.failures();
                failures.hint = failures.count.get(generation).and_then(|(_, advice)| advice.clone());
                let culprit = manager.culprit().filter(|id| self.never_ran != Some(*id));
                let process = culprit.and_then(|id| Some((id, processes.get(&id)?)));
                self.evidence = process.map(|(id, process)| evidence(id, process));
            }
            Notice::GenerationGone(generation) => {
                self.deaths.retain(|(of, _), _| of != generation);
                self.failures().count.remove(generation);
                self.failures().bound.remove(generation);
            }
            Notice::Worker(id, WorkerNotice::Ready) => drop(self.failures().ready.insert(*id)),
            Notice::Worker(id, WorkerNotice::Died(exit)) => {
                self.started.remove(id);
                self.failures().ready.remove(id);
                if matches!(exit, Exit::NotExecuted(_)) {
                    self.never_ran = Some(*id);
                }
                if let Some(process) = processes.get(id) {
                    *self.deaths.entry((process.generation, process.slot)).or_default() += 1;
                }
            }
            Notice::Worker(id, WorkerNotice::Ended(_)) => {
                self.started.remove(id);
                self.failures().ready.remove(id);
            }
            _ => {}
        }
    }

    /// Whether the worker has become ready.
    pub(in super::super) fn was_ready(&self, worker: WorkerId) -> bool {
        self.failures.as_ref().is_some_and(|failures| failures.ready.contains(&worker))
    }

    /// Takes that a worker of the generation failed before it was ready, and what to change then; returns how many have.
    pub(in super::super) fn failed(&mut self, generation: GenerationId, advice: Option<String>) -> u32 {
        let (count, known) = self.failures().count.entry(generation).or_default();
        *count += 1;
        *known = advice.or(known.take());
        *count
    }

    /// What to change so that workers of the generation become ready, as far as it is known.
    pub(in super::super) fn advice(&self, generation: GenerationId) -> Option<&str> {
        self.failures.as_ref()?.count.get(&generation)?.1.as_deref()
    }

    /// Takes the address on which a worker listens that says nothing.
    pub(in super::super) fn set_bound(&mut self, generation: GenerationId, address: String) {
        self.failures().bound.insert(generation, address);
    }

    /// Where a worker of the generation listens that says nothing.
    pub(in super::super) fn bound(&self, generation: GenerationId) -> Option<&str> {
        self.failures.as_ref()?.bound.get(&generation).map(String::as_str)
    }

    /// What to change so that the release of the latest upgrade comes up.
    pub(super) fn hint(&self) -> Option<String> {
        self.failures.as_ref()?.hint.clone()
    }

    fn failures(&mut self) -> &mut Failures {
        self.failures.get_or_insert_default()
    }

    /// When the worker was started.
    pub(in super::super) fn start_of(&self, worker: WorkerId) -> Option<Mono> {
        self.started.get(&worker).copied()
    }

    /// How many workers of the generation have died by themselves in the slot.
    pub(super) fn deaths_in(&self, generation: GenerationId, slot: SlotId) -> u64 {
        self.deaths.get(&(generation, slot)).copied().unwrap_or_default()
    }
}

fn evidence(worker: WorkerId, process: &Process) -> Evidence {
    let lines = process.tail.lines();
    let stderr = (!lines.is_empty()).then_some(lines);
    Evidence { worker: worker.0, slot: process.slot.0, pid: process.pid.as_raw(), stderr }
}
