//! Which processes of a service there are still, though their manager is no more.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{Pid, geteuid};
use tracing::warn;

use super::super::cgroups::Cgroups;
use super::super::launch::{RUNTIME_VARIABLE, SERVICE_VARIABLE, WORKER_VARIABLE};
use super::record::{ProcessRecord, Record};
use crate::core::ids::WorkerId;
use crate::sys::pidfd::Pidfd;
use crate::sys::process::{self, Environment};

/// A process that a manager of this service has started for a worker, or that such a one has started.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    pub pid: Pid,
    pub worker: WorkerId,
}

/// All of them, as they were when it was looked for them.
#[derive(Debug, Default)]
pub struct Family(Vec<Member>);

/// What makes a process one of the service.
///
/// Its environment names the service and the worker, and anybody may write that. So it counts only together with what the
/// kernel says: the user, and the time of the start.
#[derive(Debug)]
pub struct Claim<'a> {
    pub service: &'a str,
    /// The runtime directory of its managers.
    pub runtime: &'a Path,
    pub cgroups: &'a Cgroups,
    /// The users whose processes are believed, beside root and our own.
    pub users: BTreeSet<u32>,
    /// When the first manager took the lock, in clock ticks since the boot: no process of the service is older.
    pub since: u64,
}

impl Claim<'_> {
    /// Whether the kernel says of a process what it says of each one of the service.
    fn may_have(&self, pid: Pid) -> bool {
        let is_young = process::started(pid).is_some_and(|started| started >= self.since);
        let believed = |uid: &u32| *uid == 0 || *uid == geteuid().as_raw() || self.users.contains(uid);
        // All of them: a program that changes its user has the environment of who executes it.
        is_young && process::users(pid).is_some_and(|users| users.iter().all(believed))
    }

    /// The worker that a process belongs to by what its environment says, if that is believed.
    fn worker_of(&self, pid: Pid) -> Option<WorkerId> {
        // What the kernel says first: it is cheap, and keeps strangers from being read at length.
        if !self.may_have(pid) {
            return None;
        }
        let environment = Environment::of(pid);
        let is_it = environment.value(SERVICE_VARIABLE)? == self.service
            && Path::new(environment.raw_value(RUNTIME_VARIABLE)?) == self.runtime;
        WorkerId::parse(environment.value(WORKER_VARIABLE)?).filter(|_| is_it)
    }
}

impl Family {
    /// Looks for the processes of a service: those in the cgroups of its workers, and those whose environment is believed.
    pub fn find(claim: &Claim<'_>) -> Self {
        let mut members: BTreeMap<Pid, WorkerId> = claim.cgroups.members().into_iter().collect();
        for pid in process::processes() {
            if !members.contains_key(&pid)
                && let Some(worker) = claim.worker_of(pid)
            {
                members.insert(pid, worker);
            }
        }
        Self(members.into_iter().map(|(pid, worker)| Member { pid, worker }).collect())
    }

    /// The pids of all of them, and others.
    pub fn pids_with(&self, others: impl Iterator<Item = Pid>) -> BTreeSet<Pid> {
        self.0.iter().map(|member| member.pid).chain(others).collect()
    }

    /// The highest number that a worker has had.
    pub fn newest(&self) -> Option<WorkerId> {
        self.0.iter().map(|member| member.worker).max()
    }

    /// The members that no other one has started, for all that can be seen, and of these only such whose worker is as `is`
    /// says.
    pub fn heads(&self, is: impl Fn(WorkerId) -> bool) -> Vec<Pidfd> {
        let pids: BTreeSet<Pid> = self.0.iter().map(|member| member.pid).collect();
        let is_head = |pid: Pid| !process::parent(pid).is_some_and(|parent| pids.contains(&parent));
        let heads = self.0.iter().filter(|member| is(member.worker) && is_head(member.pid));
        heads.filter_map(|member| Pidfd::open(member.pid).ok()).filter(|head| !head.has_ended()).collect()
    }
}

/// A worker that lives, with what was written down of it.
#[derive(Debug)]
pub struct Survivor {
    pub record: ProcessRecord,
    pub process: Pidfd,
}

impl Survivor {
    /// Finds the process that was written down, if that very one is there still.
    pub fn find(record: ProcessRecord) -> Option<Self> {
        let pid = Pid::from_raw(record.pid);
        let process = Pidfd::of(pid, record.started);
        let process = process.unwrap_or_else(|error: io::Error| {
            warn!("cannot take hold of process {pid}: {error}");
            None
        })?;
        Some(Self { record, process })
    }
}

/// Finds the workers of whom nothing was written down but that they were about to be started: the manager was killed in
/// that moment. What was noted of others says itself where they are; these are asked.
///
/// Its process runs as the user of the worker, and its notify socket is one in our own folder that no other worker has.
pub fn unrecorded(
    record: &Record,
    known: &BTreeSet<WorkerId>,
    family: &Family,
    notify: &Path,
    spoken: &BTreeSet<PathBuf>,
) -> Vec<Survivor> {
    let workers = record.manager.workers().filter(|(id, worker)| worker.is_live() && !known.contains(id));
    let found = workers.filter_map(|(id, worker)| {
        let (_, release, _) = record.generations.iter().find(|(of, ..)| *of == worker.generation())?;
        let heads = family.heads(|of| of == id).into_iter();
        let is_its_own = |process: &Pidfd| process::users(process.pid()) == Some([release.user(); 4]);
        // Of what it has started by now some may have another parent, and is younger.
        let age = |process: &Pidfd| (process::started(process.pid()), process.pid());
        let process = heads.filter(is_its_own).min_by_key(age)?;
        let mut record = ProcessRecord::read(id, worker, process.pid(), &release.spec.process)?;
        record.notify.take_if(|path| path.parent() != Some(notify) || spoken.contains(path));
        Some(Survivor { record, process })
    });
    found.collect()
}

/// Kills what is left of the process group of a worker that is no child of ours and has ended, whatever its members have written over
/// their environment: a title, for instance.
pub fn kill_rest_of_group(claim: &Claim<'_>, worker: WorkerId, group: Pid) {
    for pid in process::left_in_group(group).into_iter().filter(|pid| claim.may_have(*pid)) {
        // Held first, and looked at again: its number may be another's by now.
        if let Ok(process) = Pidfd::open(pid)
            && process::group(pid) == Some(group)
        {
            warn!("process {pid} has outlived worker {worker}, whose process group it is in; SIGKILL");
            let _ = process.kill_tree();
        }
    }
}

/// Kills what is left of a worker that is no child of ours and has ended: the processes that its tree has left behind.
pub fn kill_family(claim: &Claim<'_>, worker: WorkerId) {
    for head in Family::find(claim).heads(|of| of == worker) {
        warn!("process {} has outlived worker {worker}, which started it; SIGKILL", head.pid());
        let _ = head.kill_tree();
    }
}
