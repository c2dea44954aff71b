//! What must hold of the word that a worker says nothing: it is true, it comes in time, and once for each generation.

use std::time::Duration;

use liveswap::core::ids::WorkerId;
use liveswap::core::spec::Readiness;
use liveswap::core::time::Mono;

use super::{Checker, Seen, Stage, Verdict, ensure};
use crate::story::secs;

impl Checker {
    /// How long the worker may say nothing before that is told; `None` if it need not say anything.
    fn silence_allowed(&self, worker: &Seen) -> Option<Duration> {
        let policy = &self.generations.get(&worker.generation)?.policy;
        let must_speak = worker.stage == Stage::Starting && policy.readiness == Readiness::Notify;
        must_speak.then(|| secs(10).min(policy.ready_timeout / 2))
    }

    pub(super) fn check_silence(&mut self, now: Mono, id: WorkerId, time: Duration) -> Verdict {
        let worker = self.present(id)?.clone();
        ensure!(self.silence_allowed(&worker) == Some(time), "it may say nothing for another time");
        ensure!(worker.silent_since.is_some_and(|since| since + time <= now), "it said something");
        ensure!(self.told_silence.insert(worker.generation), "that was told before");
        Ok(())
    }

    /// Checks that no silence is kept quiet.
    pub(super) fn check_silence_told(&self, now: Mono) -> Verdict {
        for (id, worker) in &self.workers {
            let until =
                worker.silent_since.zip(self.silence_allowed(worker)).map(|(since, time)| since + time);
            let is_told = self.told_silence.contains(&worker.generation);
            ensure!(
                is_told || until.is_none_or(|until| now < until),
                "worker {id} says nothing, and it is not told"
            );
        }
        Ok(())
    }
}
