//! What happened when, as far as the core does not decide by it: for the status, and for whoever asks why.

use std::collections::BTreeMap;

use super::super::process::Process;
use crate::core::Manager;
use crate::core::ids::{GenerationId, SlotId, WorkerId};
use crate::core::notice::{Exit, Notice, Outcome, WorkerNotice};
use crate::core::time::Mono;
use crate::sys::handover::hand_over;
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
}

hand_over!(History as HistoryState {
    started: BTreeMap<WorkerId, Mono>,
    deaths: BTreeMap<(GenerationId, SlotId), u64>,
    serves_since: Option<Mono>,
    upgraded_at: Option<Mono>,
    never_ran: Option<WorkerId>,
    evidence: Option<Evidence>,
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
            Notice::UpgradeBegan(_) | Notice::RollbackBegan(..) => self.evidence = None,
            Notice::RollingBack(..) => {
                let culprit = manager.culprit().filter(|id| self.never_ran != Some(*id));
                let process = culprit.and_then(|id| Some((id, processes.get(&id)?)));
                self.evidence = process.map(|(id, process)| evidence(id, process));
            }
            Notice::GenerationGone(generation) => self.deaths.retain(|(of, _), _| of != generation),
            Notice::Worker(id, WorkerNotice::Died(exit)) => {
                self.started.remove(id);
                if matches!(exit, Exit::NotExecuted(_)) {
                    self.never_ran = Some(*id);
                }
                if let Some(process) = processes.get(id) {
                    *self.deaths.entry((process.generation, process.slot)).or_default() += 1;
                }
            }
            Notice::Worker(id, WorkerNotice::Ended(_)) => drop(self.started.remove(id)),
            _ => {}
        }
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
