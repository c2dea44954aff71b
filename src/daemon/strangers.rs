//! The last look before the manager goes: nothing of the service outlives it.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::{Pid, getpid};
use tracing::warn;

use super::run::Daemon;
use crate::core::{KILL_TAKES, Manager, Worker};
use crate::sys::output::wait_readable;
use crate::sys::pidfd::Pidfd;
use crate::sys::{process, reaper};

/// How long a process that has ended may take to be ours to reap, before it is looked again.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

impl Daemon {
    /// Ends what was left to us as a subreaper, and waits until it has gone. Those that were children of this process before it was
    /// a manager (`found_at_start`) are none of the service: the reader of our log, say, or a job of the shell that executed us. Of workers
    /// that are stuck it is known that they do not end.
    pub(super) fn end_strangers(&mut self) {
        let is_stuck = |manager: &Manager, id| manager.worker(id).is_some_and(Worker::is_stuck);
        let stuck = self.processes.iter().filter(|(id, _)| is_stuck(&self.manager, **id));
        let stuck: BTreeSet<Pid> = stuck.map(|(_, process)| process.pid).collect();
        let until = Instant::now() + KILL_TAKES;
        self.loose_ends.left_behind = end_all(&self.host.found_at_start, &stuck, until);
        for pid in &self.loose_ends.left_behind {
            warn!("process {pid} does not end after SIGKILL; it is left behind");
        }
        // What was in a group of a worker, and was no descendant of ours after a take-over.
        while !self.cgroups.tidy(|id| is_stuck(&self.manager, id)) && Instant::now() < until {
            thread::sleep(LOOK_AGAIN);
        }
    }
}

/// Kills them until none is left, and returns those that there are still at that moment.
///
/// A process that forks and exits may be another one by the time at which it is killed, so it is looked again.
fn end_all(found_at_start: &[Pid], stuck: &BTreeSet<Pid>, until: Instant) -> Vec<Pid> {
    let mut beyond_reach = stuck.clone();
    loop {
        while let Ok(Some((pid, _))) = reaper::next_exited() {
            if reaper::reap(pid).is_err() {
                break;
            }
        }
        let mut left = &process::descendants(getpid()) - &beyond_reach;
        for found in found_at_start {
            left.remove(found);
            left = &left - &process::descendants(*found);
        }
        let now = Instant::now();
        if left.is_empty() || now >= until {
            return left.into_iter().collect();
        }
        for pid in &left {
            // One that became root by a program that is.
            if process::signal(*pid, libc::SIGKILL)
                .is_err_and(|error| error.raw_os_error() == Some(libc::EPERM))
            {
                warn!("{} may not be signalled; it is left", named(*pid));
                beyond_reach.insert(*pid);
            }
        }
        left = &left - &beyond_reach;
        let held = left.into_iter().filter_map(|pid| Pidfd::open(pid).ok());
        match held.into_iter().find(|process| !process.has_ended()) {
            Some(process) => drop(wait_readable(&process, until - now)),
            // They have ended, and whoever is to reap them is about to.
            None => thread::sleep(LOOK_AGAIN),
        }
    }
}

/// What a process is called, for people: its name and pid.
pub(super) fn named(pid: Pid) -> String {
    format!("process {pid} ({})", process::name(pid).unwrap_or_default())
}
