//! A manager made of what another has left.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::unistd::Pid;
use tracing::{info, warn};

use super::super::apply::prefix;
use super::super::checker::PinnedRelease;
use super::super::launch::Common;
use super::super::node::{Channel, Demanded};
use super::super::process::{Process, Source, Tail, WorkerOutput};
use super::super::release::in_words;
use super::super::run::{Daemon, Generation, Role};
use super::super::sender::Rejected;
use super::super::sockets::{Prepared, Sockets};
use super::super::start::Post;
use super::judge::{Recovered, Untold};
use super::record::ProcessRecord;
use super::survivors::{Claim, Family, Survivor, kill_rest_of_group, unrecorded};
use super::{Found, Leftover};
use crate::core::Event;
use crate::core::ids::{GenerationId, WorkerId};
use crate::core::{Manager, WorkerState};
use crate::sys::activation::Inherited;
use crate::sys::handover::{HandOver, Unpacked};
use crate::sys::held::{self, Held, Kind};
use crate::sys::listener::is_unix_stream;
use crate::sys::notify_socket::NotifySocket;
use crate::sys::pidfd::Pidfd;

/// What there still is of a service, all of it in our hands.
#[derive(Debug)]
pub struct Taken {
    recovered: Recovered,
    survivors: Vec<Survivor>,
    sockets: Found,
    leftovers: Vec<Leftover>,
    /// The workers that have ended since they were written down, with their process groups.
    ended: Vec<(WorkerId, Pid)>,
}

impl Taken {
    /// Finds the workers and their sockets.
    ///
    /// # Errors
    ///
    /// Why there is nothing to be taken over, in words, and the workers that live all the same; then nothing was touched.
    pub fn find(
        mut recovered: Recovered,
        family: &Family,
        inherited: &mut Vec<Inherited>,
        notify: &Path,
    ) -> Result<Self, (String, Vec<Pidfd>)> {
        let record = &mut recovered.record;
        let processes = std::mem::take(&mut record.processes);
        let known = processes.iter().map(|process| process.worker).collect();
        let mut ended: Vec<_> =
            processes.iter().map(|process| (process.worker, Pid::from_raw(process.group))).collect();
        let mut survivors: Vec<_> = processes.into_iter().filter_map(Survivor::find).collect();
        ended.retain(|(worker, _)| survivors.iter().all(|survivor| survivor.record.worker != *worker));
        let spoken = survivors.iter().filter_map(|survivor| survivor.record.notify.clone()).collect();
        survivors.extend(unrecorded(record, &known, family, notify, &spoken));
        if survivors.is_empty() {
            return Err(("no worker has survived".into(), Vec::new()));
        }
        let listeners = std::mem::take(&mut record.listeners);
        let pids = survivors.iter().map(|survivor| survivor.process.pid());
        let sockets = match Found::again(listeners, &family.pids_with(pids), inherited) {
            Ok(sockets) => sockets,
            Err(why) => {
                return Err((why, survivors.into_iter().map(|survivor| survivor.process).collect()));
            }
        };
        let alive: BTreeSet<_> = survivors.iter().map(|survivor| survivor.record.worker).collect();
        end_of_no_use(&recovered, family, &alive);
        let is_known = |worker| recovered.record.manager.worker(worker).is_some();
        // What is not known any more was left by an earlier manager, and was told to drain by then or never will be.
        let leftovers = Leftover::all(family, |worker| !is_known(worker));
        Ok(Self { recovered, survivors, sockets, leftovers, ended })
    }

    /// Kills what is left in the process groups of workers that have ended meanwhile.
    pub fn kill_rest(&self, claim: &Claim<'_>) {
        for (worker, group) in &self.ended {
            kill_rest_of_group(claim, *worker, *group);
        }
    }

    /// How many workers live.
    pub fn count(&self) -> usize {
        self.survivors.len()
    }

    /// Makes a manager that goes on.
    ///
    /// # Errors
    ///
    /// Signals or epoll cannot be had.
    pub fn take_over(self, post: Post) -> io::Result<Daemon> {
        let Self { recovered: Recovered { record, untold }, survivors, sockets, leftovers, ended: _ } = self;
        let luggage = &mut Unpacked::take_over(&[])?;
        let mut generations = BTreeMap::new();
        for (id, release, places) in record.generations {
            let common = Common::of(&release, id, &post.heritage)?;
            let prepared = Prepared::among(&sockets.listeners, &places);
            let workers = survivors.iter().filter(|survivor| survivor.record.generation == id);
            let workers: Vec<_> = workers.map(|survivor| survivor.process.pid()).collect();
            let PinnedRelease { release, program } = PinnedRelease::again(release, &workers);
            let of = Generation { release, program, common, sockets: prepared, control_tcp: None };
            generations.insert(id, of);
        }
        let demanded =
            record.demanded.into_iter().filter_map(|one| Demanded::unpack(one, &sockets.listeners));
        let all = Sockets::resume(&sockets.listeners);
        let mut daemon = Daemon::at_post(post, record.manager, record.source, all, generations)?;
        daemon.origin = record.origin;
        daemon.host.count_from(record.origin.epoch);
        daemon.kept = record.kept.map(|(id, release)| (id, PinnedRelease::again(release, &[])));
        daemon.demanded = demanded.collect();
        daemon.history = HandOver::unpack(record.history, luggage)?;
        daemon.leftovers = leftovers;
        let speaking = survivors.iter().filter_map(|survivor| survivor.record.notify.as_deref());
        sweep(&daemon.runtime.notify(), &speaking.collect());
        for survivor in survivors {
            daemon.adopt(survivor);
        }
        daemon.let_in();
        daemon.drain_leftovers();
        daemon.make_up(&untold);
        let is_gone = |worker: &WorkerId| !daemon.processes.contains_key(worker);
        let gone = daemon.manager.workers().map(|(worker, _)| worker).filter(is_gone).collect();
        daemon.inbox.push_back(Event::TakenOver(gone));
        if sockets.any_is_new {
            daemon.inbox.push_back(Event::SocketReplaced);
        }
        Ok(daemon)
    }
}

/// Kills what is of no use any more: what the dead have left behind, and hooks and probes whose outcome nobody awaits.
fn end_of_no_use(recovered: &Recovered, family: &Family, alive: &BTreeSet<WorkerId>) {
    let record = &recovered.record;
    let is_dead = |worker| record.manager.worker(worker).is_some() && !alive.contains(&worker);
    for head in family.heads(is_dead) {
        warn!("process {} belongs to a worker that is not there any more; SIGKILL", head.pid());
        let _ = head.kill_tree();
    }
    for (pid, started, role) in &record.helpers {
        let is_for_us = matches!(role, Role::Before(_) | Role::Probe(_));
        if is_for_us && let Ok(Some(helper)) = Pidfd::of(Pid::from_raw(*pid), *started) {
            info!("process {pid}, a hook or a probe of the manager before, is ended");
            let _ = helper.kill_tree();
        }
    }
}

/// Removes the notify sockets of those that are no more.
fn sweep(folder: &Path, speaking: &BTreeSet<&Path>) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()).filter(|path| !speaking.contains(path.as_path())) {
        let _ = fs::remove_file(path);
    }
}

impl Daemon {
    /// Lets in whom the generation that serves lets in.
    fn let_in(&mut self) {
        let Some(of) = self.generations.get(&self.manager.current()) else { return };
        self.control.open_to(of.release.control_group);
        let listeners = self.sockets.listeners();
        if let Err(error) = self.control.listen_by_tcp(&of.release, self.runtime.token(), &listeners) {
            warn!("{}", in_words(&error));
        }
    }

    /// Takes a worker for ours that another manager has started.
    fn adopt(&mut self, Survivor { record, process }: Survivor) {
        let ProcessRecord { worker, generation, slot, started, group, at, .. } = record;
        let Some(release) = self.generations.get(&generation).map(|of| &of.release) else { return };
        let prefix = prefix(&release.spec, slot);
        let pid = process.pid();
        let open = held::open_files(pid).unwrap_or_default();
        let find = |kind, inode| open.iter().find(|one| (one.kind, one.inode) == (kind, inode));
        let outputs = record.outputs.iter().filter_map(|(stream, inode)| {
            let pipe = || find(Kind::Pipe, *inode)?.reading_end(pid).ok().map(Source::Pipe);
            // A socket, where our standard output or error is one, is not opened anew but copied.
            let socket = || find(Kind::Socket, *inode)?.copy(&process).ok().map(Source::Socket);
            let pipe = pipe().or_else(socket)?;
            Some(WorkerOutput::new(*stream, pipe, prefix.clone()))
        });
        let outputs = outputs.collect();
        let messages = record.messages.and_then(|inode| find(Kind::Pipe, inode));
        let channel = record.channel.and_then(|inode| channel_of(&process, find(Kind::Socket, inode)?));
        if record.channel.is_some() && channel.is_none() {
            warn!(
                "worker {worker} (pid {pid}): its channel is lost, so it cannot be told to drain but by signal"
            );
        }
        let adopted = Process {
            pid,
            started: Some(started),
            survivor: Some(process.into()),
            group: Pid::from_raw(group),
            announced_main_pid: None,
            rejected: Rejected::default(),
            generation,
            slot,
            notify: record
                .notify
                .and_then(|path| self.speak_again(worker, &path))
                .map(|notify| self.with_watch(notify).into()),
            start: None,
            failure: None,
            failed_probe: None,
            messages: messages.and_then(|one| one.writing_end(pid).ok()).map(Into::into),
            channel: channel.map(|channel| self.channel_again(channel, generation)),
            lingers_until: None,
            drain_signal_sent: None,
            tries_again_at: None,
            tail: Tail::default(),
            outputs,
        };
        self.host.roles.insert(pid, Role::Worker(worker));
        if let Some(at) = at {
            self.history.started(worker, at);
        }
        info!("worker {worker} ({}) taken over", adopted.name());
        self.processes.insert(worker, adopted);
    }

    /// Goes on with a channel. Which sockets its worker has open was not written down: it may be all that its generation uses, and
    /// none of them is let go of as long as that is so.
    fn channel_again(&self, channel: OwnedFd, generation: GenerationId) -> Channel {
        let used = self.demanded.iter().filter(|demanded| demanded.is_used_by(generation));
        Channel::again(channel, used.map(Demanded::key).map(str::to_owned).collect())
    }

    pub(in super::super) fn speak_again(&self, worker: WorkerId, path: &Path) -> Option<NotifySocket> {
        let bound = self.runtime.restore().and_then(|()| NotifySocket::bind_again(path));
        let warn = |error: &io::Error| warn!("worker {worker} cannot be heard any more: {error}");
        bound.inspect_err(warn).ok()
    }

    /// Tells workers what they were perhaps not told. Whom SIGKILL was meant for it is sent again.
    fn make_up(&mut self, untold: &[(WorkerId, Untold)]) {
        for (worker, what) in untold {
            match what {
                Untold::Drain => self.drain(*worker),
                Untold::Abort => self.signal(*worker, libc::SIGABRT),
            }
        }
        for worker in doomed(&self.manager) {
            self.kill(worker);
        }
    }
}

/// Fetches our end of a channel from the worker; `None` where what the worker has there is none.
fn channel_of(process: &Pidfd, held: &Held) -> Option<OwnedFd> {
    let copy = held.copy(process).ok()?;
    is_unix_stream(&copy).then(|| copy.trusted())
}

fn doomed(manager: &Manager) -> Vec<WorkerId> {
    let is_doomed = |worker: &crate::core::Worker| {
        matches!(worker.state(), WorkerState::Killing { .. } | WorkerState::Stuck)
    };
    manager.workers().filter(|(_, worker)| is_doomed(worker)).map(|(id, _)| id).collect()
}
