//! How things stand, as `status` tells it and as the first line of `events` does.
//!
//! Times are lengths in milliseconds, memory is in bytes; what is not known is left out.

use serde::{Deserialize, Serialize};

pub use crate::core::time::Human;

/// A service and its manager.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The service's name.
    pub service: String,
    /// The manager's process.
    pub pid: u32,
    /// How long the manager has run.
    pub up_ms: u64,
    /// `starting`, `serving`, `checking`, `upgrading`, `probation`, `rolling-back`, `respawning`, `stopping`, `stopped`.
    pub phase: String,
    /// All of it in a sentence.
    pub summary: String,
    /// The generation that serves.
    pub generation: u64,
    /// How long it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation_ms: Option<u64>,
    /// The folder that it is pinned to.
    pub directory: String,
    /// The code that it runs, where that has a name of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Why the manager has begun with that instead of what the service file names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun_with: Option<String>,
    /// How many workers it is to have.
    pub wanted: u32,
    /// How many workers of the generation are ready.
    pub ready: u32,
    /// Whether all is well.
    #[serde(flatten)]
    pub health: Health,
    /// The generation that is being upgraded to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrading_to: Option<u64>,
    /// The generation to which a rollback would go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<u64>,
    /// What has become of the code of the generation to which a rollback would go: `pinned`, `replaced` or `same folder`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_code: Option<String>,
    /// How the last upgrade ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_upgrade: Option<LastUpgrade>,
    /// The cgroup in which each generation has one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// Why there is none, and process groups serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_cgroup: Option<String>,
    /// What each generation that has a cgroup uses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub generations: Vec<GenerationUse>,
    /// How many connections have a process of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<usize>,
    /// The worker processes, those that drain included.
    pub workers: Vec<Worker>,
    /// Empty slots that wait after a death.
    pub waiting: Vec<WaitingSlot>,
    /// The sockets of the generation that serves.
    pub sockets: Vec<Socket>,
}

/// Whether all is well with a service: beside its status, and in the answer to an upgrade and a rollback.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Whether the service is at full strength: as many workers are ready as are wanted, of whatever generation, and no socket
    /// is broken. While workers are exchanged as many may be missing as `max_unavailable` says. Unknown of a manager that
    /// does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full: Option<bool>,
    /// Whether no worker is ready, though at least one is wanted.
    #[serde(default)]
    pub down: bool,
    /// Whether the service is being stopped.
    #[serde(default)]
    pub stopping: bool,
    /// How many workers are ready, of whatever generation.
    #[serde(default)]
    pub ready_of_all: u32,
    /// How many workers are wanted now: none of a service that is asleep or is being stopped.
    #[serde(default)]
    pub wanted_now: u32,
    /// How the last worker of the generation that serves was lost that nobody had asked to end, such as `status 3`. It is left
    /// out where the service is at full strength and no slot has deaths in a row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<String>,
    /// The most workers in a row that have died in a slot; 0 where one has been ready since for `[restart] max_delay`.
    #[serde(default)]
    pub deaths: u32,
}

/// From how many deaths in a row on a slot with a ready worker is worth a word all the same.
const CRASH_LOOP: u32 = 2;

impl Health {
    /// Whether there is nothing to tell.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.full == Some(true) && !self.down && self.deaths < CRASH_LOOP
    }

    /// Returns what is wrong with the workers of a service, in a line for people:
    /// `generation 9 is DOWN: 0 of 1 ready; last exit: status 3, 4 deaths in a row`. `None` where nothing is.
    #[must_use]
    pub fn trouble(&self, generation: u64) -> Option<String> {
        let Self { ready_of_all: ready, wanted_now: wanted, .. } = self;
        let mut text = if self.down {
            format!("generation {generation} is DOWN: 0 of {wanted} ready")
        } else if self.full == Some(false) && ready < wanted {
            format!("generation {generation} is not at full strength: {ready} of {wanted} ready")
        } else if self.deaths >= CRASH_LOOP {
            format!(
                "generation {generation} has {ready} of {wanted} ready, but its workers die again and again"
            )
        } else {
            return None;
        };
        let exit = self.last_exit.iter().map(|exit| format!("last exit: {exit}"));
        let deaths = match self.deaths {
            0 => None,
            1 => Some("1 death".into()),
            more => Some(format!("{more} deaths in a row")),
        };
        let reasons: Vec<_> = exit.chain(deaths).collect();
        if !reasons.is_empty() {
            text.extend(["; ", &reasons.join(", ")]);
        }
        Some(text)
    }
}

/// What the cgroup of a generation uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationUse {
    /// Which.
    pub generation: u64,
    /// How many processes are in it.
    pub processes: usize,
    /// As the kernel counts it for the group; where it does not, the resident memory of all processes, in which what they
    /// share counts for each.
    pub memory: u64,
}

/// How the last upgrade ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastUpgrade {
    /// The generation that it was to.
    pub generation: u64,
    /// `committed`, `rolled-back`, `refused`, `superseded`.
    pub outcome: String,
    /// Why it is not committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How long ago.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ago_ms: Option<u64>,
}

/// A worker process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    /// Its number, never given twice.
    pub id: u64,
    /// Its process; none while it is being started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// Whose code it runs.
    pub generation: u64,
    /// Its place.
    pub slot: u32,
    /// `starting`, `ready`, `draining`, `aborting`, `killing`.
    pub state: String,
    /// How long it has been in that state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_ms: Option<u64>,
    /// How long it has run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    /// The resident memory of its process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// That of its process and all that descend from it, where there are any; what they share counts for each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree_memory: Option<u64>,
    /// Its open connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
    /// How many workers of its generation have died by themselves in its slot.
    pub restarts: u64,
    /// What it says of itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub says: String,
    /// Why it drains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Why it cannot be seen waiting for connections, so that it counts as ready once it has settled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unseen: Option<String>,
    /// When it is killed unless it has ended; of a starting one: when it has failed unless it is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
}

/// An empty slot that waits after a death.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingSlot {
    /// Whose.
    pub generation: u64,
    /// The place.
    pub slot: u32,
    /// How many of its workers have died in a row.
    pub deaths: u32,
    /// When its next worker starts.
    pub starts_in_ms: u64,
}

/// A socket of the service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// Its name.
    pub name: String,
    /// Its address, as the service file writes it.
    pub listen: String,
    /// What it carries: `tcp`, `udp`, `unix`, `unix datagram` or `unix seqpacket`. An earlier manager does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Whether each connection gets a process of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accept: bool,
    /// Whether a worker hurt it in a way that could not be repaired.
    pub broken: bool,
}
