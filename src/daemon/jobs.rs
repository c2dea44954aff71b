//! Jobs begun, heard, given up and ended, whatever they are for.

use std::io;
use std::time::Duration;

use nix::unistd::Pid;
use tracing::{info, warn};

use super::host::{Ended, Failure, Job, Timer};
use super::run::{Daemon, Role};
use crate::core::Event;
use crate::sys::process::kill_tree;

impl Daemon {
    /// Takes a job on. It is killed where it takes longer than `patience`, if there is one.
    ///
    /// # Errors
    ///
    /// What it writes cannot be watched; then it is killed.
    pub(super) fn begin_job(
        &mut self,
        role: Role,
        mut job: Job,
        patience: Option<Duration>,
    ) -> io::Result<Pid> {
        let pid = job.pid();
        if let Err(error) = job.watch(&self.poller) {
            // It is reaped as a child without a role.
            let _ = kill_tree(pid);
            return Err(error);
        }
        job.until = patience.map(|patience| self.now() + patience);
        self.timers.set(Timer::Job(pid.as_raw()), job.until);
        let is_program = job.is_program();
        self.roles.insert(pid, role);
        self.jobs.insert(pid, job);
        // Connection processes are not adopted by another manager.
        if is_program && role != Role::Guest {
            self.note_helper(pid);
        }
        Ok(pid)
    }

    /// Has all jobs go on that another manager began.
    ///
    /// # Errors
    ///
    /// Those of `epoll_ctl(2)`.
    pub(super) fn watch_jobs(&mut self) -> io::Result<()> {
        for (pid, job) in &self.jobs {
            job.watch(&self.poller)?;
            self.timers.set(Timer::Job(pid.as_raw()), job.until);
        }
        Ok(())
    }

    /// Takes what a job has written by now.
    pub(super) fn read_job(&mut self, pid: Pid) {
        if let Some(job) = self.jobs.get_mut(&pid) {
            // What cannot be read is found at its end.
            let _ = job.read();
        }
    }

    /// Gives up a job whose time is over.
    pub(super) fn job_is_late(&mut self, pid: Pid) {
        let Some(role) = self.roles.get(&pid).copied() else { return };
        if let Role::After(_) = role {
            warn!("the hook `after` (pid {pid}) has not ended in time; SIGKILL");
        }
        self.give_up_job(pid);
        self.job_ended(role, Ended::too_late());
    }

    /// Kills a job, whose end is then no news any more.
    pub(super) fn give_up_job(&mut self, pid: Pid) {
        self.jobs.remove(&pid);
        self.timers.clear(Timer::Job(pid.as_raw()));
        // It may have ended by itself and not be reaped yet: its number is still its own.
        if self.roles.remove(&pid).is_some()
            && let Err(error) = kill_tree(pid)
        {
            warn!("cannot kill process {pid}: {error}");
        }
    }

    /// Leaves hooks `after` no more time than this.
    pub(super) fn hurry_hooks(&mut self, grace: Duration) {
        let latest = self.now() + grace;
        for (pid, job) in &mut self.jobs {
            if let Some(Role::After(_)) = self.roles.get(pid) {
                job.until = job.until.map(|until| until.min(latest));
                self.timers.set(Timer::Job(pid.as_raw()), job.until);
            }
        }
    }

    /// Whether a job of this role is under way.
    pub(super) fn has_job(&self, is: impl Fn(Role) -> bool) -> bool {
        self.jobs.keys().any(|pid| self.roles.get(pid).copied().is_some_and(&is))
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
