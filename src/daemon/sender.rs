//! Whom a worker's notify socket believes.
//!
//! The address says which worker a message is about, and any local user may send to it (/proc/net/unix lists the path).
//! So the kernel's word on the sender decides (`SCM_CREDENTIALS`, which cannot be forged across users): believed are root,
//! the manager's own user and the user that the release names. A sender of another user, as a server that drops its
//! privileges has them, is believed while its process is one of the worker's: in the cgroup of the worker or, where the
//! worker has none, in its process tree.

use std::collections::BTreeMap;
use std::io;

use nix::unistd::{Pid, geteuid, getpid};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::cgroups::Cgroups;
use super::launch::WORKER_VARIABLE;
use super::run::Role;
use crate::core::ids::{GenerationId, WorkerId};
use crate::core::sparing::{Sparing, more};
use crate::core::time::Mono;
use crate::sys::handover::plain;
use crate::sys::pidfd::Pidfd;
use crate::sys::process;
use crate::sys::rights::Sender;

/// How every user looks that our user namespace does not know (user_namespaces(7)).
const OVERFLOW_USER: u32 = 65534;

/// What it takes to judge a sender.
#[derive(Debug)]
pub(super) struct Voucher<'a> {
    pub worker: WorkerId,
    pub generation: GenerationId,
    /// The process whose end is the end of the worker.
    pub root: Pid,
    /// The user that the release names, or the manager's own.
    pub user: u32,
    pub cgroups: &'a Cgroups,
    /// The children of the manager that are known to be something.
    pub roles: &'a BTreeMap<Pid, Role>,
    pub found_at_start: &'a [Pid],
}

/// A process that a worker named as its main one (`MAINPID=`), which was of the worker when it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnnouncedPid {
    pid: i32,
    /// When it was started, in clock ticks since the boot: its number may be another's by now.
    started: u64,
}

plain!(AnnouncedPid);

impl AnnouncedPid {
    /// Takes hold of what has its number now.
    ///
    /// # Errors
    ///
    /// Those of pidfd_open(2).
    pub fn hold(self) -> io::Result<Pidfd> {
        Pidfd::open(Pid::from_raw(self.pid))
    }

    /// Returns the process if it still is the one that was announced.
    pub fn living(self) -> Option<Pid> {
        let pid = Pid::from_raw(self.pid);
        (process::started(pid) == Some(self.started)).then_some(pid)
    }
}

impl Voucher<'_> {
    /// Whether what this sender says counts as the worker's own words.
    pub fn believes(&self, sender: &Sender) -> bool {
        match by_user(sender.uid, [geteuid().as_raw(), self.user]) {
            Some(believed) => believed,
            None => self.owns_sender(sender),
        }
    }

    /// Returns the process that a message names as the main one, if it may: it is one of the worker's, or root says so.
    pub fn main_pid(&self, pid: i32, sender: &Sender) -> Option<AnnouncedPid> {
        let started = process::started(Pid::from_raw(pid))?;
        let is_its_own = sender.uid == 0 || self.owns(Pid::from_raw(pid));
        is_its_own.then_some(AnnouncedPid { pid, started })
    }

    /// Whether the sender lives, and its process is one of the worker's.
    fn owns_sender(&self, sender: &Sender) -> bool {
        let pid = Pid::from_raw(sender.pid);
        // Held while it is looked at, so that the number stays its own. A kernel that did not hand it over is asked for it,
        // and a number that was given to another process meanwhile shows by its user.
        let held = match &sender.process {
            Some(process) => process.try_clone().map(|fd| Pidfd::adopt(pid, fd)),
            None => Pidfd::open(pid),
        };
        held.is_ok_and(|held| {
            let is_its_user = process::users(pid).is_some_and(|users| users.contains(&sender.uid));
            is_its_user && self.owns(pid) && !held.has_ended()
        })
    }

    /// Whether a process is one of the worker's.
    fn owns(&self, pid: Pid) -> bool {
        match self.cgroups.holds(self.generation, self.worker, pid) {
            Some(is_in_group) => is_in_group,
            None => self.is_in_tree(pid),
        }
    }

    fn is_in_tree(&self, pid: Pid) -> bool {
        let mut pid = pid;
        // The kernel nests no deeper than it has numbers; a chain that changes under our eyes must end too.
        for _ in 0..MAX_DEPTH {
            if pid == self.root {
                return true;
            }
            match process::parent(pid) {
                // What was left to us as a subreaper was started by one of our workers. Of which one, its environment tells.
                Some(parent) if parent == getpid() => return self.is_orphan(pid),
                Some(parent) if parent.as_raw() > 1 => pid = parent,
                Some(_) | None => return false,
            }
        }
        false
    }

    fn is_orphan(&self, child: Pid) -> bool {
        let is_known = self.roles.contains_key(&child) || self.found_at_start.contains(&child);
        !is_known
            && process::variable(child, WORKER_VARIABLE).is_some_and(|id| id == *self.worker.to_string())
    }
}

const MAX_DEPTH: usize = 256;

/// Whether a user alone decides: `None` where its process must be looked at.
fn by_user(uid: u32, trusted: [u32; 2]) -> Option<bool> {
    let is_trusted = uid == 0 || trusted.contains(&uid);
    // Any user that has no number here looks like this one.
    (is_trusted && uid != OVERFLOW_USER).then_some(true)
}

/// The messages of one worker's socket that were not believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rejected(Sparing);

plain!(Rejected);

impl Rejected {
    /// Counts one, and tells of it unless that was done a moment ago. `name` is the worker's.
    pub(super) fn note(&mut self, worker: WorkerId, name: &str, sender: Option<&Sender>, now: Mono) {
        let Some(untold) = self.0.note(now, 1) else { return };
        let from = match sender {
            Some(Sender { pid, uid, .. }) => {
                format!("from process {pid} of user {uid}, which is none of its")
            }
            None => "from an unknown sender".to_owned(),
        };
        warn!("worker {worker} ({name}): notify message ignored: {from}{}", more(untold));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_the_manager_and_the_release_are_believed_by_their_user() {
        assert_eq!(by_user(0, [1000, 33]), Some(true));
        assert_eq!(by_user(1000, [1000, 33]), Some(true));
        assert_eq!(by_user(33, [1000, 33]), Some(true));
        assert_eq!(by_user(34, [1000, 33]), None, "its process decides");
    }

    #[test]
    fn the_overflow_user_is_never_believed_by_its_number() {
        assert_eq!(by_user(OVERFLOW_USER, [1000, OVERFLOW_USER]), None);
        assert_eq!(by_user(OVERFLOW_USER, [OVERFLOW_USER, 33]), None);
        assert_eq!(by_user(OVERFLOW_USER, [1000, 33]), None);
    }
}
