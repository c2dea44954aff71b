//! Says in the log what to change in a service whose workers do not become ready.

use tracing::warn;

use super::run::Daemon;
use crate::core::advice::{self, Failure};
use crate::core::ids::{GenerationId, WorkerId};
use crate::core::notice::{Notice, WorkerNotice};

/// With which failure of a generation the log says what to change: one alone may be an accident.
const TOLD_AT: u32 = 2;

impl Daemon {
    /// Returns what to change so that a worker that failed in this way becomes ready the next time.
    pub(super) fn advice_for(&self, worker: WorkerId, failure: Failure<'_>) -> Option<String> {
        let process = self.processes.get(&worker)?;
        let spec = &self.generations.get(&process.generation)?.release.spec;
        advice::of_failure(spec, failure, &process.tail.lines(), self.history.bound(process.generation))
    }

    /// Says that a worker that says nothing listens by itself.
    pub(super) fn tell_bound(&mut self, worker: WorkerId, address: String) {
        let Some(process) = self.processes.get(&worker) else { return };
        let (generation, name) = (process.generation, process.name());
        self.history.set_bound(generation, address);
        if let Some(advice) = self.advice_for(worker, Failure::NotReady) {
            warn!("worker {worker} ({name}): hint: {advice}");
        }
    }

    /// Takes note of a worker that failed before it was ready. Returns the generation whose workers need a change that the log is to name.
    pub(super) fn note_failure(&mut self, notice: &Notice) -> Option<GenerationId> {
        let (worker, failure) = match notice {
            Notice::RollingBack(generation, _) => return Some(*generation),
            Notice::Worker(worker, WorkerNotice::NotReady(..)) => (*worker, Failure::NotReady),
            Notice::Worker(worker, WorkerNotice::Died(exit)) if !self.history.was_ready(*worker) => {
                (*worker, Failure::Ended(exit))
            }
            _ => return None,
        };
        let generation = self.processes.get(&worker)?.generation;
        let advice = self.advice_for(worker, failure);
        let count = self.history.failed(generation, advice);
        Some(generation).filter(|_| count == TOLD_AT && generation == self.manager.current())
    }

    /// Says what to change, where that is known.
    pub(super) fn tell_advice(&self, generation: GenerationId) {
        if let Some(advice) = self.history.advice(generation) {
            warn!("generation {generation}: hint: {advice}");
        }
    }
}
