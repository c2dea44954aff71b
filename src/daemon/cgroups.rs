//! A control group for each generation and in it one for each worker, where the manager's own may be divided.
//!
//! What a worker has started is killed with it, whatever session, environment or parent it has by then; and a generation's
//! memory is counted as a whole. Names follow from the numbers, so whoever takes over finds them again.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use tracing::{debug, info, warn};

use super::run::Daemon;
use crate::core::ids::{GenerationId, WorkerId};
use crate::sys::cgroup::{self, Delegated};

/// How the names of groups begin; the number follows.
const GENERATION: &str = "generation-";
const WORKER: &str = "worker-";

/// The group that is ours to divide, or why there is none.
#[derive(Debug)]
pub struct Cgroups {
    delegated: Result<Delegated, String>,
    /// How the names of our groups begin: managers of other services may divide the same one.
    prefix: String,
}

impl Cgroups {
    /// Looks for it, on behalf of a service.
    pub fn find(service: &str) -> Self {
        Self { delegated: Delegated::find(), prefix: format!("{service}.{GENERATION}") }
    }

    /// Tells in the log which it is.
    pub fn tell(&self) {
        match &self.delegated {
            Ok(delegated) => info!("each generation has a cgroup of its own in {}", delegated.name),
            Err(why) => debug!("process groups serve, as {why}"),
        }
    }

    /// All processes in the groups of workers, with these.
    pub fn members(&self) -> Vec<(Pid, WorkerId)> {
        let Ok(delegated) = &self.delegated else { return Vec::new() };
        let workers = numbered(&delegated.path, &self.prefix).into_iter();
        let workers = workers.flat_map(|(_, generation)| numbered(&generation, WORKER));
        let workers = workers.filter(|(worker, _)| *worker <= WorkerId::MAX.0);
        let members = workers.flat_map(|(worker, path)| {
            cgroup::processes(&path).into_iter().map(move |pid| (pid, WorkerId(worker)))
        });
        members.collect()
    }

    /// Returns the name of the group that holds all others, or why there is none.
    pub fn name(&self) -> Result<&str, &str> {
        self.delegated.as_ref().map(|delegated| delegated.name.as_str()).map_err(String::as_str)
    }

    /// How the names of the groups of this service begin in /proc/PID/cgroup, where there are any.
    pub fn prefix(&self) -> Option<String> {
        let delegated = self.delegated.as_ref().ok()?;
        Some(format!("{}/{}", delegated.name.trim_end_matches('/'), self.prefix))
    }

    /// The group of a generation.
    pub fn of(&self, generation: GenerationId) -> Option<PathBuf> {
        Some(self.delegated.as_ref().ok()?.path.join(format!("{}{generation}", self.prefix)))
    }

    fn of_worker(&self, generation: GenerationId, worker: WorkerId) -> Option<PathBuf> {
        Some(self.of(generation)?.join(format!("{WORKER}{worker}")))
    }

    /// Makes the group of a worker that is about to start; where that cannot be had, it starts without.
    pub fn make(&self, generation: GenerationId, worker: WorkerId) -> Option<OwnedFd> {
        let path = self.of_worker(generation, worker)?;
        let made = cgroup::make(&path).inspect_err(|error| {
            warn!("worker {worker} has no cgroup of its own: {}: {error}", path.display());
        });
        made.ok()
    }

    /// Whether a process is in the group of a worker; `None` where that worker has none.
    pub fn holds(&self, generation: GenerationId, worker: WorkerId, pid: Pid) -> Option<bool> {
        let path = self.of_worker(generation, worker).filter(|path| path.is_dir())?;
        let delegated = self.delegated.as_ref().ok()?;
        // Below the delegated group the folders are called what the groups are.
        let name = Path::new(&delegated.name).join(path.strip_prefix(&delegated.path).ok()?);
        Some(cgroup::of_process(pid).is_some_and(|of| Path::new(&of).starts_with(name)))
    }

    /// Kills all that a worker has started.
    pub fn kill(&self, generation: GenerationId, worker: WorkerId) {
        if let Some(path) = self.of_worker(generation, worker) {
            // It may have none, or had none that outlived it.
            let _ = cgroup::kill(&path);
        }
    }

    /// Removes the groups in which nobody is any more, but those of workers that are `there`: one may be about to join.
    ///
    /// Returns whether all of these are gone: the kernel keeps one for as long as a process in it takes to die.
    pub fn tidy(&self, there: impl Fn(WorkerId) -> bool) -> bool {
        let Ok(delegated) = &self.delegated else { return true };
        let mut are_gone = true;
        for (_, generation) in numbered(&delegated.path, &self.prefix) {
            let workers = numbered(&generation, WORKER).into_iter();
            let (needed, others): (Vec<_>, Vec<_>) =
                workers.partition(|(worker, _)| there(WorkerId(*worker)));
            for (_, path) in others {
                are_gone &= cgroup::remove(&path).is_ok();
            }
            are_gone &= !needed.is_empty() || fs::remove_dir(&generation).is_ok();
        }
        are_gone
    }
}

impl Daemon {
    /// Kills all that a worker has started, by its group.
    pub(super) fn kill_cgroup(&self, worker: WorkerId) {
        if let Some(process) = self.processes.get(&worker) {
            self.cgroups.kill(process.generation, worker);
        }
    }
}

/// The groups right below one whose names are of a number, with that.
fn numbered(path: &Path, name: &str) -> Vec<(u64, PathBuf)> {
    let number = |path: &PathBuf| path.file_name()?.to_str()?.strip_prefix(name)?.parse().ok();
    let groups = cgroup::groups_in(path).into_iter();
    groups.filter_map(|path| Some((number(&path)?, path))).collect()
}
