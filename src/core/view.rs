//! What the manager says of itself: the service as a person wants to see it.

use super::Manager;
use super::backoff::Backoff;
use super::generation::Generation;
use super::ids::{GenerationId, SlotId, WorkerId};
use super::manager::Stop;
use super::notice::{Outcome, workers};
use super::time::Mono;
use super::upgrade::{Change, Phase, Upgrade};
use super::worker::{Worker, WorkerState};

impl Manager {
    /// Whether the service has served: all workers of a generation were ready at a time.
    pub fn has_served(&self) -> bool {
        self.served
    }

    /// Whether the service is being ended.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_some()
    }

    /// Whether workers serve, and nothing else is under way.
    pub fn is_at_rest(&self) -> bool {
        self.served && self.stop.is_none() && self.change.is_none() && !self.is_asleep()
    }

    /// The generation whose workers the service is to have: in an upgrade that goes forward the new one.
    pub fn aims_at(&self) -> GenerationId {
        self.incoming()
    }

    /// The generation that serves.
    pub fn current(&self) -> GenerationId {
        self.current
    }

    /// The generation to which a rollback would go where no upgrade is under way.
    pub fn previous(&self) -> Option<GenerationId> {
        self.previous
    }

    /// How many workers a generation is to have.
    pub fn strength(&self, generation: GenerationId) -> Option<u32> {
        self.generations.get(&generation).map(|of| of.strength)
    }

    /// The generation that is being upgraded to.
    pub fn upgrading_to(&self) -> Option<GenerationId> {
        self.upgrade().map(|upgrade| upgrade.to)
    }

    /// The worker whose loss rolled the latest upgrade back.
    pub fn culprit(&self) -> Option<WorkerId> {
        self.culprit
    }

    /// What the service is busy with, in a word of the glossary.
    pub fn phase(&self) -> &'static str {
        match (self.stop, &self.change) {
            (Some(Stop::Draining), _) => "stopping",
            (Some(Stop::Ended), _) => "stopped",
            (None, None) if self.is_asleep() => "asleep",
            (None, None) if self.served => "serving",
            (None, None) => "starting",
            (None, Some(Change::Respawn(_))) => "respawning",
            (None, Some(Change::Upgrade(upgrade))) => match upgrade.phase {
                Phase::Checking { .. } => "checking",
                Phase::Surging { .. } => "upgrading",
                Phase::Probation { .. } => "probation",
                Phase::RollingBack { .. } => "rolling-back",
            },
        }
    }

    /// To which generation the last upgrade was, and how it ended.
    pub fn last_upgrade(&self) -> Option<(GenerationId, &Outcome)> {
        self.last_upgrade.as_ref().map(|(to, outcome)| (*to, outcome))
    }

    /// The empty slots that wait after a death: until when, and after how many deaths in a row.
    pub fn waiting_slots(&self) -> impl Iterator<Item = (GenerationId, SlotId, &Backoff)> {
        let of = |id: &GenerationId| self.is_in_use(*id);
        let slots = self.generations.iter().filter(move |(id, _)| of(id));
        let slots = slots.flat_map(|(id, of)| of.backoff.iter().map(|(slot, backoff)| (*id, slot, backoff)));
        slots.filter(|(id, slot, backoff)| {
            backoff.start_at() > self.now && !self.workers.fresh(*id).fills(*slot)
        })
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

    /// Whether a worker of any generation serves in this slot or is about to.
    pub fn fills(&self, slot: SlotId) -> bool {
        self.workers.cohorts().any(|(_, cohort)| cohort.fills(slot))
    }

    /// Returns the latest moment by which what is under way must have ended, as deadlines stand now; `None` where nothing is
    /// under way that a service manager waits for.
    pub fn busy_until(&self) -> Option<Mono> {
        let waited_for = self.stop.is_some() || !self.served || self.upgrade().is_some();
        let upgrade = self.upgrade().and_then(|upgrade| upgrade.deadline(self.now));
        let workers = self.workers.deadlines().map(|(_, last)| last);
        waited_for.then(|| workers.into_iter().chain(upgrade).max()).flatten()
    }

    /// Returns the state of the service in a line: `generation 3: 4 of 4 ready`.
    pub fn status(&self) -> String {
        match self.stop {
            Some(Stop::Draining) if self.workers.is_empty() => {
                return "stopping: connections are left".into();
            }
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
        let Generation { strength, asleep, .. } = &self.generations[&generation];
        if *asleep {
            return format!("generation {generation}: asleep until a connection comes");
        }
        if *strength == 0 {
            return format!("generation {generation}: a process for each connection");
        }
        let ready: usize = self.workers.of(generation).iter().map(|cohort| cohort.ready.len()).sum();
        format!("generation {generation}: {ready} of {strength} ready")
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

/// Whether a service is well, as far as its workers tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether as many workers are ready as must be, of whatever generation: all that are wanted or, while workers are
    /// exchanged, all but those that the strategy lets be missing. A service that sleeps, and one with a process for each
    /// connection, is at full strength with no worker.
    pub is_full: bool,
    /// How many workers are ready, of whatever generation.
    pub ready: u32,
    /// How many workers the service is to have now.
    pub wanted: u32,
    /// How the last worker of the generation that serves was lost that nobody had asked to end; `None` where the service is at
    /// full strength and no slot has deaths in a row.
    pub last_exit: Option<String>,
    /// The most workers in a row that have died in a slot; 0 where one has been ready since for as long as makes the pauses
    /// before restarts begin anew.
    pub deaths: u32,
}

impl Manager {
    /// Returns whether the service is well at `now`.
    pub fn health(&self, now: Mono) -> Health {
        let ready = self.workers.ready();
        let wanted = if self.stop.is_some() { 0 } else { self.generations[&self.current].wanted() };
        let is_full = self.stop.is_none() && ready >= self.fewest_ready() as usize;
        let deaths = self.deaths_in_a_row(now);
        let is_shown = !self.last_exit.is_empty() && (deaths > 0 || !is_full);
        let last_exit = is_shown.then(|| self.last_exit.clone());
        let ready = u32::try_from(ready).unwrap_or(u32::MAX);
        Health { is_full, ready, wanted, last_exit, deaths }
    }

    /// Returns how many workers must be ready for the service to be at full strength.
    fn fewest_ready(&self) -> u32 {
        let old = self.generations[&self.current].wanted();
        match &self.change {
            None => old,
            Some(Change::Upgrade(Upgrade { phase: Phase::Checking { .. }, .. })) => old,
            Some(Change::Upgrade(_) | Change::Respawn(_)) => {
                let new = self.rules();
                old.min(new.wanted()).saturating_sub(new.unavailable())
            }
        }
    }

    /// Returns the most workers in a row that have died in a slot of the generation that serves. Where one has been ready for
    /// as long as makes the pauses begin anew, the slot's row is over.
    fn deaths_in_a_row(&self, now: Mono) -> u32 {
        let of = &self.generations[&self.current];
        let is_over = |slot: &SlotId| {
            let lasts = |id| self.workers[id].ready_for(now) >= of.policy.restart_max_delay;
            self.workers.of(self.current).iter().any(|cohort| cohort.ready.at(*slot).any(lasts))
        };
        let slots = of.slots().filter_map(|slot| Some((slot, of.backoff.get(slot)?)));
        slots
            .filter(|(slot, _)| !is_over(slot))
            .map(|(_, backoff)| backoff.deaths())
            .max()
            .unwrap_or_default()
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

    /// Where it is in its life.
    pub fn state(&self) -> WorkerState {
        self.state
    }

    /// What it last said of itself (`STATUS=`); empty where nothing.
    pub fn status(&self) -> &str {
        &self.status
    }

    /// Why no look tells whether it serves; `None` where one does, or none was taken.
    pub fn unseen(&self) -> Option<&str> {
        self.unseen.as_deref()
    }

    /// The open connections that it last spoke of.
    pub fn connections(&self) -> Option<u64> {
        self.connections
    }
}
