//! Processes of a service whose manager was killed and whose state cannot be used: they serve until others do, then drain.

use std::time::{Duration, Instant};

use nix::unistd::Pid;
use tracing::{info, warn};

use super::super::host::Timer;
use super::super::run::Daemon;
use super::super::token::{Token, Watched};
use super::survivors::Family;
use crate::core::ids::WorkerId;
use crate::core::time::Mono;
use crate::sys::handover::hand_over;
use crate::sys::output::wait_readable;
use crate::sys::pidfd::Pidfd;
use crate::sys::wait::Interest;

/// How long a process that was killed may take to go.
const KILL_TAKES: Duration = Duration::from_secs(5);

/// One of them.
#[derive(Debug)]
pub struct Leftover {
    process: Watched<Pidfd>,
    /// When it is killed; none before it was told to drain.
    kill_at: Option<Mono>,
}

hand_over!(Leftover as LeftoverState { process: Watched<Pidfd>, kill_at: Option<Mono> });

impl Leftover {
    /// All processes of the workers that are as `is` says.
    pub fn all(family: &Family, is: impl Fn(WorkerId) -> bool) -> Vec<Self> {
        family.heads(is).into_iter().map(Self::of).collect()
    }

    /// A process that is known for a worker in another way.
    pub fn of(process: Pidfd) -> Self {
        Self { process: process.into(), kill_at: None }
    }

    /// Its number.
    pub fn pid(&self) -> Pid {
        self.process.pid()
    }

    /// Has all of them drain and waits for their ends, where nothing can be begun as long as they are there.
    pub fn end_all(leftovers: Vec<Self>, signal: i32, timeout: Duration) {
        for Self { process, .. } in &leftovers {
            let _ = process.signal(signal);
        }
        let end = Instant::now() + timeout;
        for Self { process, .. } in leftovers {
            let has_ended = wait_readable(&process, end.saturating_duration_since(Instant::now()));
            if !has_ended.unwrap_or(false) {
                warn!(
                    "process {}, a worker of the manager before, has not finished in time; SIGKILL",
                    process.pid()
                );
                let _ = process.kill_tree();
                let _ = wait_readable(&process, KILL_TAKES);
            }
        }
    }
}

impl Daemon {
    /// Has the kernel tell us of their ends.
    pub(in super::super) fn watch_leftovers(&mut self) {
        for leftover in &self.leftovers {
            let pid = leftover.process.pid().as_raw();
            self.host.timers.set(Timer::Leftover(pid), leftover.kill_at);
            let token = Token::Leftover(pid);
            let _ = leftover.process.watch(&self.host.poller, token, Interest::Read);
        }
    }

    /// Tells all of them to drain.
    pub(in super::super) fn drain_leftovers(&mut self) {
        let Some(of) = self.generations.get(&self.manager.current()) else { return };
        let (signal, timeout) = (of.release.spec.process.drain_signal, of.release.spec.policy.drain_timeout);
        let kill_at = self.now() + timeout;
        for leftover in self.leftovers.iter_mut().filter(|leftover| leftover.kill_at.is_none()) {
            let pid = leftover.process.pid();
            info!("process {pid}, a worker of the manager before, drains");
            if let Err(error) = leftover.process.signal(signal) {
                warn!("cannot signal process {pid}: {error}");
            }
            leftover.kill_at = Some(kill_at);
            self.host.timers.set(Timer::Leftover(pid.as_raw()), kill_at);
        }
    }

    /// Kills one whose time is over.
    pub(in super::super) fn kill_late_leftover(&mut self, pid: Pid) {
        let late = self.leftovers.iter_mut().find(|leftover| leftover.process.pid() == pid);
        let Some(leftover) = late.filter(|leftover| leftover.kill_at.is_some()) else { return };
        warn!("process {pid}, a worker of the manager before, has not finished in time; SIGKILL");
        let _ = leftover.process.kill_tree();
        // Its end is waited for.
        leftover.kill_at = None;
    }

    /// Kills all of them.
    pub(in super::super) fn kill_leftovers(&self) {
        for leftover in &self.leftovers {
            let _ = leftover.process.kill_tree();
        }
    }

    /// Takes the end of one.
    pub(in super::super) fn leftover_ended(&mut self, pid: Pid) {
        let ended = |leftover: &Leftover| leftover.process.pid() == pid && leftover.process.has_ended();
        for _ in self.leftovers.extract_if(.., |leftover| ended(leftover)) {
            self.host.timers.clear(Timer::Leftover(pid.as_raw()));
            info!("process {pid}, a worker of the manager before, has gone");
        }
    }
}
