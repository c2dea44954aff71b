//! Children that have ended: workers, their probes, hooks and checks, and strangers left to us.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::{Pid, getpgid};
use tracing::{error, info, warn};

use super::host::Timer;
use super::launch::{SERVICE_VARIABLE, WORKER_VARIABLE};
use super::process::LAST_WORDS;
use super::recovery::{Claim, kill_family, kill_rest_of_group};
use super::run::{Daemon, Role};
use super::sender::AnnouncedPid;
use super::token::{Token, Watched};
use crate::core::Event;
use crate::core::ids::WorkerId;
use crate::core::notice::Exit;
use crate::sys::process::{self, Environment};
use crate::sys::wait::Interest;
use crate::sys::{reaper, rest};

/// How long after an end it is looked for what outlived it: what the kernel hands on to us has arrived by then.
const ORPHANS_SETTLE: Duration = Duration::from_millis(20);

/// How long after a look that failed, for lack of descriptors for instance, the next one is taken.
const ORPHANS_RETRY: Duration = Duration::from_secs(1);

/// How often it is tried in a row to remove cgroups whose processes do not end.
const TIDIES: u8 = 5;

/// How many children are reaped before others get their turn.
const REAPED_A_TURN: usize = 256;

impl Daemon {
    /// Reaps every child that has ended: our own first heard to the end, strangers in silence.
    /// At most so many at a time: a worker can make orphans as fast as they are reaped.
    pub(super) fn reap_all(&mut self) {
        for _ in 0..REAPED_A_TURN {
            match reaper::next_exited() {
                Ok(Some((pid, exit))) => {
                    if let Err(error) = self.reap_one(pid, exit) {
                        // It would be found again at once: the next child that ends reminds us.
                        error!("cannot reap process {pid}: {error}");
                        return;
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    error!("cannot wait for children: {error}");
                    return;
                }
            }
        }
        self.host.timers.set(Timer::Reap, self.now());
    }

    /// Reaps one child, and tells what its end means, whether it could be reaped or not: it has ended.
    ///
    /// # Errors
    ///
    /// Those of waitid(2).
    fn reap_one(&mut self, pid: Pid, exit: reaper::Exit) -> io::Result<()> {
        if self.loose_ends.closers.ended(pid) {
            self.host.roles.remove(&pid);
            return reaper::reap(pid).map(drop);
        }
        let role = self.host.roles.remove(&pid);
        let goes_on = match role {
            Some(Role::Worker(worker)) => self.kill_rest(worker, pid),
            // What a hook has started in the background lives on.
            Some(Role::Before(_) | Role::After(_)) => false,
            Some(
                Role::Checker(_)
                | Role::Head
                | Role::Probe(_)
                | Role::Survey
                | Role::Look
                | Role::Trial
                | Role::Closer
                | Role::Watcher
                | Role::Examination
                | Role::Guest,
            ) => {
                kill_group(pid);
                false
            }
            None => {
                // Its number may be another's soon.
                self.host.found_at_start.retain(|found| *found != pid);
                false
            }
        };
        let reaped = reaper::reap(pid).map(drop);
        self.tidy_up_soon();
        match role {
            _ if goes_on => {}
            Some(Role::Worker(worker)) => self.worker_ended(worker, exit),
            Some(Role::Guest) => self.guest_ended(pid, exit),
            Some(role) => {
                let ended = self.host.take_end(pid, exit);
                self.job_ended(role, ended);
            }
            None => {}
        }
        reaped
    }

    /// Has [`Daemon::kill_orphans`] called in a moment, when what goes on now is over.
    pub(super) fn tidy_up_soon(&mut self) {
        let at = *self.loose_ends.look_for_orphans_at.get_or_insert(self.now() + ORPHANS_SETTLE);
        self.host.timers.set(Timer::Orphans, at);
    }

    fn look_for_orphans_in(&mut self, time: Duration) {
        let at = self.now() + time;
        self.loose_ends.look_for_orphans_at = Some(at);
        self.host.timers.set(Timer::Orphans, at);
    }

    /// Kills what daemonised out of its worker's process group and has outlived the worker. It was left to us as a
    /// subreaper, and its environment tells whose it was; where it does not, the process goes with the last worker that
    /// may have started it.
    ///
    /// Once for all that ended in the same moment: it takes a look at every child. Then it is quiet, so what memory that
    /// moment took is given back.
    pub(super) fn kill_orphans(&mut self) {
        let children = match process::own_children() {
            Ok(children) => children,
            Err(error) => {
                warn!("cannot look for what has outlived its worker: {error}; looking again in a second");
                self.look_for_orphans_in(ORPHANS_RETRY);
                return;
            }
        };
        self.loose_ends.look_for_orphans_at = None;
        for pid in children.into_iter().filter(|pid| !self.host.roles.contains_key(pid)) {
            let environment = Environment::of(pid);
            let worker = environment.value(WORKER_VARIABLE).and_then(WorkerId::parse);
            let whose = match worker {
                Some(worker) if self.is_running(worker) => continue,
                Some(worker) => format!("worker {worker}, which started it"),
                None if self.may_be_needed(pid, &environment) => continue,
                None => "all workers that may have started it".to_owned(),
            };
            warn!("process {pid} has outlived {whose}; SIGKILL");
            if let Err(error) = process::kill_tree(pid) {
                warn!("cannot kill process {pid}: {error}");
            }
        }
        self.tidy_cgroups();
        rest::give_back();
    }

    /// Removes cgroups that are not needed; those of processes that are still dying are tried again, a few times.
    fn tidy_cgroups(&mut self) {
        // The end of one that was reaped just now may be yet to be told, and nothing would look again.
        if self.cgroups.tidy(|worker| self.is_running(worker)) {
            self.loose_ends.tidied = 0;
        } else if self.loose_ends.tidied < TIDIES {
            self.loose_ends.tidied += 1;
            self.look_for_orphans_in(ORPHANS_RETRY);
        }
    }

    /// Whether a process that no worker's name stands in may belong to something that runs: nobody is younger than his
    /// descendants.
    fn may_be_needed(&self, stranger: Pid, environment: &Environment) -> bool {
        // A hook may leave behind what it likes, and so may who came with a connection: a session that is to go on.
        let is_exempt = self.has_guests()
            || self.host.found_at_start.contains(&stranger)
            || environment.value(SERVICE_VARIABLE).is_some();
        let Some(born) = process::started(stranger).filter(|_| !is_exempt) else { return true };
        // These start nothing. A closer that has just ended is not to be taken for an older process.
        let others = self.host.roles.iter().filter(|(_, role)| !matches!(role, Role::Closer | Role::Watcher));
        others.map(|(of, _)| of).any(|of| process::started(*of).is_none_or(|started| started <= born))
    }

    /// Kills what is left of a worker whose process has ended, while the zombie still holds its number; returns whether the
    /// worker lives on as another process, which it has named.
    fn kill_rest(&mut self, worker: WorkerId, ended: Pid) -> bool {
        // The last word on its main process may still be unread.
        self.listen(worker, LAST_WORDS);
        let Some(process) = self.processes.get_mut(&worker) else { return false };
        // Its children are ours from the moment that it ended.
        let announced = process.announced_main_pid.take().and_then(AnnouncedPid::living);
        if let Some(main) = announced.filter(|main| *main != ended)
            && process::own_children().is_ok_and(|children| children.contains(&main))
            && !self.host.roles.contains_key(&main)
        {
            info!("worker {worker} ({}) goes on as pid {main}", process.name());
            (process.pid, process.started) = (main, process::started(main));
            self.host.roles.insert(main, Role::Worker(worker));
            self.note_process(worker);
            return true;
        }
        kill_group(ended);
        self.cgroups.kill(process.generation, worker);
        // A group keeps its number while the zombie is one of it, though its leader may have gone long ago.
        if process.group != ended && getpgid(Some(ended)) == Ok(process.group) {
            kill_group(process.group);
        }
        false
    }

    /// Takes the end of a worker that is no child of ours: how it ended was told to somebody else.
    pub(super) fn survivor_ended(&mut self, worker: WorkerId) {
        let Some(process) = self.processes.get_mut(&worker) else { return };
        let Some(survivor) = process.survivor.take_if(|survivor| survivor.has_ended()) else { return };
        let ended = survivor.pid();
        self.listen(worker, LAST_WORDS);
        self.host.roles.remove(&ended);
        if self.goes_on_elsewhere(worker, ended) {
            return;
        }
        if let Some(of) = self.generations.get(&self.processes[&worker].generation) {
            let claim = Claim {
                service: &of.release.spec.name,
                runtime: self.runtime.path(),
                cgroups: &self.cgroups,
                users: BTreeSet::from([of.release.user()]),
                since: self.origin.since,
            };
            kill_rest_of_group(&claim, worker, self.processes[&worker].group);
            kill_family(&claim, worker);
        }
        self.kill_cgroup(worker);
        self.tidy_up_soon();
        self.take_end(worker, Exit::Unseen);
    }

    /// Whether a worker that is no child of ours lives on as another process, which it has named.
    fn goes_on_elsewhere(&mut self, worker: WorkerId, ended: Pid) -> bool {
        let Some(process) = self.processes.get_mut(&worker) else { return false };
        let Some(announced) = process.announced_main_pid.take() else { return false };
        // Held first, so that what is looked at is what is held.
        let Ok(held) = announced.hold() else { return false };
        let (Some(main), started) = (announced.living(), process::started(held.pid())) else { return false };
        if main == ended || held.has_ended() || self.host.roles.contains_key(&main) {
            return false;
        }
        info!("worker {worker} ({}) goes on as pid {main}", process.name());
        let held = Watched::from(held);
        let watched = held.watch(&self.host.poller, Token::Survivor(worker), Interest::Read);
        (process.pid, process.started, process.survivor) = (main, started, Some(held));
        self.host.roles.insert(main, Role::Worker(worker));
        self.note_process(worker);
        watched.is_ok()
    }

    fn worker_ended(&mut self, worker: WorkerId, exit: reaper::Exit) {
        self.take_report(worker);
        let failure = self.processes.get_mut(&worker).and_then(|process| process.failure.take());
        let exit = match (failure, exit) {
            (Some(failure), _) => Exit::NotExecuted(failure),
            (None, reaper::Exit::Code(status)) => Exit::Status(status),
            (None, reaper::Exit::Signal { number, .. }) if self.was_asked_to_drain_by(worker, number) => {
                Exit::Drained(signal_text(exit))
            }
            (None, reaper::Exit::Signal { number, .. }) => Exit::Signal(number, signal_text(exit)),
        };
        self.take_end(worker, exit);
    }

    /// Whether this signal was sent to the worker to have it drain.
    fn was_asked_to_drain_by(&self, worker: WorkerId, signal: i32) -> bool {
        let sent = self.processes.get(&worker).filter(|process| process.drain_signal_sent.is_some());
        let of = sent.and_then(|process| self.generations.get(&process.generation));
        of.is_some_and(|of| of.release.spec.process.drain_signal == signal && signal != libc::SIGKILL)
    }

    /// Hears a worker that has ended to the end, and lets go of what we had of it.
    fn take_end(&mut self, worker: WorkerId, exit: Exit) {
        self.listen(worker, LAST_WORDS);
        self.hear_to_the_end(worker);
        let Some(process) = self.processes.get_mut(&worker) else { return };
        process.notify = None;
        process.finish_outputs();
        let probes = self.host.roles.iter().filter(|(_, role)| **role == Role::Probe(worker));
        for (pid, _) in probes {
            // It asks whether a worker is ready that is no more.
            let _ = process::kill_tree(*pid);
        }
        self.inbox.push_back(Event::Exited(worker, exit));
    }
}

/// Kills whatever is left of the process group of a child that has ended, while the zombie still holds its number.
fn kill_group(leader: Pid) {
    match process::signal_group(leader, libc::SIGKILL) {
        Err(error) if error.raw_os_error() != Some(Errno::ESRCH as i32) => {
            warn!("cannot kill what is left of process group {leader}: {error}");
        }
        Ok(()) | Err(_) => {}
    }
}

/// `SIGSEGV (core dumped)`: the exit's own words without their verb, which the core has.
fn signal_text(exit: reaper::Exit) -> String {
    exit.to_string().trim_start_matches("was killed by ").to_owned()
}
