//! What the manager says of itself: the service as a person wants to see it.

use super::Manager;
use super::ids::{GenerationId, SlotId, WorkerId};
use super::manager::Stop;
use super::notice::{Outcome, workers};
use super::time::Mono;
use super::upgrade::{Change, Phase, Upgrade};
use super::worker::Worker;

impl Manager {
    /// Whether the service has served: all workers of a generation were ready at a time.
    pub fn has_served(&self) -> bool {
        self.served
    }

    /// Whether the service is being ended.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_some()
    }

    /// The generation that serves.
    pub fn current(&self) -> GenerationId {
        self.current
    }

    /// Returns a worker that is not yet reaped.
    pub fn worker(&self, id: WorkerId) -> Option<&Worker> {
        self.workers.get(id)
    }

    /// All workers that are not yet reaped.
    pub fn workers(&self) -> impl Iterator<Item = (WorkerId, &Worker)> {
        self.workers.iter()
    }

    /// The workers that serve or are about to.
    pub fn live_workers(&self) -> impl Iterator<Item = (WorkerId, &Worker)> {
        self.workers().filter(|(_, worker)| worker.is_live())
    }

    /// Returns the latest moment by which what is under way must have ended, as deadlines stand now; `None` where nothing is
    /// under way that a service manager waits for.
    pub fn busy_until(&self) -> Option<Mono> {
        let waited_for = self.stop.is_some() || !self.served || self.upgrade().is_some();
        let upgrade = self.upgrade().and_then(|upgrade| upgrade.deadline(self.now));
        let workers = self.workers.values().filter_map(Worker::deadline);
        waited_for.then(|| workers.chain(upgrade).max()).flatten()
    }

    /// Returns the state of the service in a line: `generation 3: 4 of 4 ready`.
    pub fn status(&self) -> String {
        match self.stop {
            Some(Stop::Draining) => {
                return format!("stopping: {} left to drain", workers(self.workers.len()));
            }
            Some(Stop::Ended) => return "stopped".into(),
            None => {}
        }
        let current = self.strength_in_words(self.current);
        match &self.change {
            Some(Change::Upgrade(upgrade)) => format!("{current}; {}", self.upgrade_in_words(upgrade)),
            Some(Change::Respawn(_)) => format!("{current}; respawning"),
            None => format!("{current}{}{}", self.last_upgrade_in_words(), self.trouble_in_words()),
        }
    }

    fn strength_in_words(&self, generation: GenerationId) -> String {
        let of = |worker: &&Worker| worker.generation == generation && worker.is_ready();
        let ready = self.workers.values().filter(of).count();
        format!("generation {generation}: {ready} of {} ready", self.generations[&generation].strength)
    }

    fn upgrade_in_words(&self, upgrade: &Upgrade) -> String {
        let to = upgrade.to;
        match &upgrade.phase {
            Phase::Checking { .. } => format!("checking generation {to}"),
            Phase::Surging { .. } => format!("upgrading to {}", self.strength_in_words(to)),
            Phase::Probation { .. } => format!("{} on probation", self.strength_in_words(to)),
            Phase::RollingBack { reason, .. } => format!("generation {to} rolling back: {reason}"),
        }
    }

    fn last_upgrade_in_words(&self) -> String {
        match &self.last_upgrade {
            Some((to, outcome @ (Outcome::RolledBack(_) | Outcome::Refused(_)))) => {
                format!("; upgrade to generation {to} {outcome}")
            }
            Some((_, Outcome::Committed | Outcome::Superseded(_))) | None => String::new(),
        }
    }

    fn trouble_in_words(&self) -> String {
        if self.trouble.is_empty() { String::new() } else { format!("; {}", self.trouble) }
    }
}

impl Worker {
    /// Whose code it runs.
    pub fn generation(&self) -> GenerationId {
        self.generation
    }

    /// Its place.
    pub fn slot(&self) -> SlotId {
        self.slot
    }

    /// What it last said of itself (`STATUS=`); empty where nothing.
    pub fn status(&self) -> &str {
        &self.status
    }

    /// The open connections that it last spoke of.
    pub fn connections(&self) -> Option<u64> {
        self.connections
    }
}
