//! Signals to workers, and what becomes of those that they do not reach.

use std::io;

use nix::unistd::Pid;
use tracing::warn;

use super::process::Process;
use super::run::Daemon;
use super::sender::AnnouncedPid;
use crate::core::Event;
use crate::core::ids::WorkerId;
use crate::sys::process;
use crate::sys::spawn::Report;

impl Daemon {
    pub(super) fn signal_to_drain(&mut self, worker: WorkerId) {
        let now = self.now();
        let Some(process) = self.processes.get_mut(&worker) else { return };
        let Some(of) = self.generations.get(&process.generation) else { return };
        let signal = of.release.spec.process.drain_signal;
        process.drain_signal_sent = Some(now);
        self.signal(worker, signal);
    }

    /// Sends a signal to a worker's main process; SIGKILL while it is not yet its program.
    pub(super) fn signal(&mut self, worker: WorkerId, number: i32) {
        let number = if self.has_program(worker) { number } else { libc::SIGKILL };
        let send = |process: &Process| match (&process.survivor, main_process(process)) {
            (Some(survivor), main) if main == process.pid => survivor.signal(number),
            (_, main) => process::signal(main, number),
        };
        if let Some(process) = self.running(worker)
            && let Err(error) = send(process)
        {
            warn!("cannot signal worker {worker} ({}): {error}", process.name());
            self.may_be_beyond_reach(worker, &error);
        }
    }

    /// Whether a worker is its program by now. Until then it may share our memory, and before Linux 5.16 a signal that dumps core there
    /// ends us as well: SIGKILL does not, and nothing is lost, as it has served nobody.
    fn has_program(&mut self, worker: WorkerId) -> bool {
        let start = self.processes.get_mut(&worker).and_then(|process| process.start.as_mut());
        start.is_none_or(|start| !matches!(start.report(), Ok(Report::NotYet)))
    }

    /// A worker that became another user may be out of our reach for good: then it is not waited for (kill(2)).
    fn may_be_beyond_reach(&mut self, worker: WorkerId, error: &io::Error) {
        let Some(process) = self.running(worker) else { return };
        if error.raw_os_error() == Some(libc::EPERM) {
            let what = format!("process {} may not be signalled: {error}", process.pid);
            self.inbox.push_back(Event::DoesNotEnd(worker, what));
        }
    }

    /// Tells which process of a worker has outlived SIGKILL.
    pub(super) fn tell_survival(&mut self, worker: WorkerId) {
        if let Some(process) = self.running(worker) {
            let what = format!("process {} does not end after SIGKILL", process.pid);
            self.inbox.push_back(Event::DoesNotEnd(worker, what));
        }
    }

    pub(super) fn kill(&mut self, worker: WorkerId) {
        let kill = |process: &Process| match &process.survivor {
            Some(survivor) => survivor.kill_tree(),
            None => process::kill_tree(process.pid),
        };
        if let Some(process) = self.running(worker)
            && let Err(error) = kill(process)
        {
            warn!("cannot kill worker {worker} ({}): {error}", process.name());
            self.may_be_beyond_reach(worker, &error);
        }
        // After it: one that is being started may not be in its group yet.
        self.kill_cgroup(worker);
    }
}

/// The process that a worker named as its main one where it is of its tree, or else the one that we know.
fn main_process(of: &Process) -> Pid {
    let is_ours = |announced: &Pid| process::descendants(of.pid).contains(announced);
    of.announced_main_pid.and_then(AnnouncedPid::living).filter(is_ours).unwrap_or(of.pid)
}
