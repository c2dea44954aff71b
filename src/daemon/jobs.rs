//! Jobs begun, heard, given up and ended, whatever they are for.

use std::io;
use std::time::Duration;

use nix::unistd::Pid;
use tracing::{info, warn};

use super::host::{Ended, Failure, Job};
use super::run::{Daemon, Role};
use crate::core::Event;

impl Daemon {
    /// Takes a job on, see [`Host::begin`], and writes a program down for the manager that may come after us.
    ///
    /// # Errors
    ///
    /// What it writes cannot be watched; then it is killed.
    ///
    /// [`Host::begin`]: super::host::Host::begin
    pub(super) fn begin_job(&mut self, role: Role, job: Job, patience: Option<Duration>) -> io::Result<Pid> {
        let is_program = job.is_program();
        let pid = self.host.begin(role, job, patience)?;
        // Connection processes are not adopted by another manager.
        if is_program && role != Role::Guest {
            self.note_helper(pid);
        }
        Ok(pid)
    }

    /// Gives up, after a re-exec, the looks that nothing waits for any more: those at clients' connections, which must show the token
    /// now, and those whose answers a manager of an earlier version has not handed over.
    pub(super) fn end_looks_of_before(&mut self) {
        let is_over = |pid: Pid, role: Role| match role {
            Role::Examination => true,
            Role::Survey | Role::Look => !self.host.jobs.contains_key(&pid),
            _ => false,
        };
        let all = self.host.roles.iter().map(|(pid, role)| (*pid, *role));
        let over: Vec<_> = all.filter(|(pid, role)| is_over(*pid, *role)).collect();
        for (pid, role) in over {
            self.host.give_up(pid);
            self.job_ended(role, Ended::too_late());
        }
    }

    /// Gives up a job whose time is over.
    pub(super) fn job_is_late(&mut self, pid: Pid) {
        let Some(role) = self.host.roles.get(&pid).copied() else { return };
        if let Role::After(_) = role {
            warn!("the hook `after` (pid {pid}) has not ended in time; SIGKILL");
        }
        self.host.give_up(pid);
        self.job_ended(role, Ended::too_late());
    }

    /// Tells what the end of a job means.
    pub(super) fn job_ended(&mut self, role: Role, ended: Ended) {
        let how = match &ended.result {
            Ok(()) => "exited with status 0".to_owned(),
            Err(failure) => failure.to_string(),
        };
        let done = ended.result.is_ok();
        match role {
            Role::Checker(generation) => self.checked(generation, ended),
            Role::Before(generation) => self.before_ended(generation, done, &how),
            Role::Head => self.recorded(ended),
            // They have ends of their own.
            Role::Worker(_) | Role::Guest | Role::Closer => {}
            // One that fails says so itself.
            Role::Watcher if done => {}
            Role::Watcher => warn!("files are no longer watched: their watcher {how}"),
            Role::After(generation) => match ended.result {
                Ok(()) => info!("generation {generation}: the hook `after` is done"),
                // It was told when it was killed.
                Err(Failure::TooLate) => {}
                Err(failure) => warn!("generation {generation}: the hook `after` {failure}"),
            },
            Role::Probe(worker) => {
                if !done && let Some(process) = self.processes.get_mut(&worker) {
                    process.note_failed_probe(how);
                }
                self.inbox.push_back(Event::Probed(worker, done));
            }
            Role::Survey => self.surveyed(ended),
            Role::Look => self.look_ended(ended),
            Role::Trial => self.tried(&ended),
            Role::Examination => self.examined(&ended),
        }
    }
}
