//! What the operating system gives the manager: descriptors that become ready, time, children.
//!
//! ```text
//! jobs      children that do one thing: what they write, their time, their end
//! timers    deadlines by key
//! ```

mod jobs;
mod timers;

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use nix::unistd::Pid;
use tracing::warn;

pub use self::jobs::{Ended, Failure, Job, Jobs};
pub use self::timers::{Timer, Timers};
use super::run::Role;
use super::token::Poller;
use crate::core::time::Mono;
use crate::sys::clock::monotonic_micros;
use crate::sys::process::kill_tree;
use crate::sys::reaper::Exit;

/// The only holder of poller, clock and children.
#[derive(Debug)]
pub struct Host {
    /// The descriptors that are waited for.
    pub poller: Poller,
    /// When something is due.
    pub timers: Timers,
    /// Our children by pid; a child that is not in here is a stranger.
    pub roles: BTreeMap<Pid, Role>,
    /// Those of them that do one thing.
    pub jobs: Jobs,
    /// Children that have nothing to do with any worker: those of the program that executed us, and the watcher of files.
    pub found_at_start: Vec<Pid>,
    /// `CLOCK_MONOTONIC` at the start of the first manager of the service, in microseconds: the core's zero.
    epoch: u64,
}

impl Host {
    /// Begins with the children that are there, and counts time from `epoch`.
    ///
    /// # Errors
    ///
    /// Those of `epoll_create1(2)`.
    pub fn new(epoch: u64, found_at_start: Vec<Pid>) -> io::Result<Self> {
        Ok(Self {
            poller: Poller::new()?,
            timers: Timers::default(),
            roles: BTreeMap::new(),
            jobs: Jobs::new(),
            found_at_start,
            epoch,
        })
    }

    /// Goes on with children that another manager has started.
    pub fn with(self, roles: BTreeMap<Pid, Role>, jobs: Vec<Job>) -> Self {
        Self { roles, jobs: jobs.into_iter().map(|job| (job.pid(), job)).collect(), ..self }
    }

    /// Counts time as the manager did that this one goes on for.
    pub fn count_from(&mut self, epoch: u64) {
        self.epoch = epoch;
    }

    /// The moment that it is, as the core counts.
    pub fn now(&self) -> Mono {
        Mono(self.clock_micros().saturating_sub(self.epoch))
    }

    /// `CLOCK_MONOTONIC` in microseconds; it cannot fail, and if it did, time would stand still.
    pub fn clock_micros(&self) -> u64 {
        monotonic_micros().unwrap_or(self.epoch)
    }

    /// Takes a job on. It is killed where it takes longer than `patience`, if there is one.
    ///
    /// # Errors
    ///
    /// What it writes cannot be watched; then it is killed.
    pub fn begin(&mut self, role: Role, mut job: Job, patience: Option<Duration>) -> io::Result<Pid> {
        let pid = job.pid();
        if let Err(error) = job.watch(&self.poller) {
            // It is reaped as a child without a role.
            let _ = kill_tree(pid);
            return Err(error);
        }
        job.until = patience.map(|patience| self.now() + patience);
        self.timers.set(Timer::Job(pid.as_raw()), job.until);
        self.roles.insert(pid, role);
        self.jobs.insert(pid, job);
        Ok(pid)
    }

    /// Waits for all jobs again, which another manager began.
    ///
    /// # Errors
    ///
    /// Those of `epoll_ctl(2)`.
    pub fn watch_jobs(&mut self) -> io::Result<()> {
        for (pid, job) in &self.jobs {
            job.watch(&self.poller)?;
            self.timers.set(Timer::Job(pid.as_raw()), job.until);
        }
        Ok(())
    }

    /// Takes what a job has written by now.
    pub fn read_job(&mut self, pid: Pid) {
        if let Some(job) = self.jobs.get_mut(&pid) {
            // What cannot be read is found at its end.
            let _ = job.read();
        }
    }

    /// Kills a job, whose end is then no news any more.
    pub fn give_up(&mut self, pid: Pid) {
        self.jobs.remove(&pid);
        self.timers.clear(Timer::Job(pid.as_raw()));
        // It may have ended by itself and not be reaped yet: its number is still its own.
        if self.roles.remove(&pid).is_some()
            && let Err(error) = kill_tree(pid)
        {
            warn!("cannot kill process {pid}: {error}");
        }
    }

    /// Leaves jobs of these roles no more time than this.
    pub fn hurry(&mut self, is: impl Fn(Role) -> bool, grace: Duration) {
        let latest = self.now() + grace;
        for (pid, job) in &mut self.jobs {
            if self.roles.get(pid).is_some_and(|role| is(*role)) {
                job.until = Some(job.until.map_or(latest, |until| until.min(latest)));
                self.timers.set(Timer::Job(pid.as_raw()), job.until);
            }
        }
    }

    /// Returns whether a job of these roles is under way.
    pub fn has_job(&self, is: impl Fn(Role) -> bool) -> bool {
        self.jobs.keys().any(|pid| self.roles.get(pid).is_some_and(|role| is(*role)))
    }

    /// Takes the end of a child of ours, which has been reaped: how its job ended, where it had one.
    pub fn take_end(&mut self, pid: Pid, exit: Exit) -> Ended {
        self.timers.clear(Timer::Job(pid.as_raw()));
        self.jobs.remove(&pid).map_or_else(|| Ended::by(exit), |job| job.finish(exit))
    }
}
