//! Performs the core's actions, one function each.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use tracing::{error, info, warn};

use super::host::Job;
use super::launch::{self, Equipment};
use super::node::Channel;
use super::process::{Process, Tail, WorkerOutput};
use super::run::{Daemon, Role};
use super::sender::Rejected;
use super::sockets::Listener;
use super::store::{self, Stored};
use super::streams::Opened;
use super::token::{Token, Watched};
use crate::core::advice::{self, Failure};
use crate::core::ids::{GenerationId, SlotId, WorkerId};
use crate::core::notice::{Loudness, Notice, Outcome, WorkerNotice};
use crate::core::spec::{Output, Protocol, ServiceSpec};
use crate::core::time::Human;
use crate::core::{Action, Event};
use crate::sys::channel::channel;
use crate::sys::notify_socket::NotifySocket;
use crate::sys::output::{WorkerPipe, message_pipe};
use crate::sys::process;
use crate::sys::spawn::{Launch, spawn};
use crate::sys::wait::Interest;
use crate::wire::control::EventLine;

/// How long a hook `after` may outlast the service.
const HOOK_GRACE: Duration = Duration::from_secs(5);

/// The ways between us and a worker, both ends of each.
struct Gear {
    channel: Option<(OwnedFd, OwnedFd)>,
    notify: Option<NotifySocket>,
    outputs: Opened,
    messages: Option<WorkerPipe>,
}

impl Gear {
    /// What of it the worker gets.
    fn equipment<'a>(
        &'a self,
        spec: &ServiceSpec,
        listeners: &'a [Rc<Listener>],
        stored: &'a [Stored],
    ) -> Equipment<'a> {
        let Self { channel, notify, outputs, messages } = self;
        let of_messages = messages.iter().filter_map(|pipe| Some(pipe.kept.as_ref()?.as_fd()));
        let sockets = listeners.iter().map(|listener| listener.as_fd());
        Equipment {
            sockets: sockets.chain(store::descriptors(stored)).collect(),
            names: store::names(spec.sockets.iter().map(|socket| socket.name.as_str()), stored),
            notify: notify.as_ref().map(NotifySocket::path),
            watchdog: spec.policy.watchdog,
            messages: messages.as_ref().map(|pipe| pipe.theirs.as_fd()),
            channel: channel.as_ref().map(|(ours, theirs)| [theirs.as_fd(), ours.as_fd()]),
            outputs,
            kept_open: outputs.kept_open().chain(of_messages).collect(),
        }
    }
}

impl Daemon {
    /// Performs one action. What comes of it comes back as an event, perhaps at once.
    pub(super) fn perform(&mut self, action: Action) {
        match action {
            Action::ReadFile(generation, target) => self.begin_check(generation, target),
            Action::RunHook(generation) => self.run_hooks(generation),
            Action::Prepare(generation) => self.prepare(generation),
            Action::Reuse(generation, earlier) => self.reuse(generation, earlier),
            Action::CancelPreparation(generation) => self.cancel_preparation(generation),
            Action::Start { worker, generation, slot } => {
                self.look_at_way_to_notify_sockets(generation);
                if let Err(error) = self.start(worker, generation, slot) {
                    self.inbox.push_back(Event::StartFailed(worker, error.to_string()));
                }
            }
            Action::Probe(worker) => {
                if let Err(error) = self.probe(worker) {
                    warn!("cannot run the probe of worker {worker}: {error}");
                    self.inbox.push_back(Event::Probed(worker, false));
                }
            }
            Action::Look(worker, beside) => self.want_look(worker, beside),
            Action::Drain(worker) => self.drain(worker),
            Action::Abort(worker) => self.signal(worker, libc::SIGABRT),
            Action::Kill(worker) => self.kill(worker),
            Action::Examine(worker) => self.tell_survival(worker),
            Action::RestoreSockets(generation) => self.restore_sockets(generation),
            Action::Forget(generation) => self.let_go(generation),
            Action::TellHook(generation, outcome) => self.run_after(generation, &outcome),
            Action::Answer(request, outcome) => self.answer(request, &outcome),
            Action::Tell(notice) => self.tell(&notice),
            Action::Exit => {
                self.ended = true;
                // The last hooks may tell what they have to, but not for long.
                self.host.hurry(|role| matches!(role, Role::After(_)), HOOK_GRACE);
            }
        }
    }

    fn start(&mut self, worker: WorkerId, generation: GenerationId, slot: SlotId) -> io::Result<()> {
        self.note_tuning(generation);
        let Some(of) = self.generations.get(&generation) else {
            return Err(io::Error::other(format!(
                "generation {generation} is not there; this is a bug of liveswap"
            )));
        };
        let spec = &of.release.spec;
        let gear = self.gear(spec)?;
        let equipment = gear.equipment(spec, &of.sockets.listeners, self.stored.of(slot));
        let place = of.place(generation, Some(slot));
        let launch = launch::worker(worker, place, &equipment)?;
        let cgroup = self.cgroups.make(generation, worker);
        let cgroup = cgroup.as_ref().map(AsFd::as_fd);
        let spawned = spawn(Launch { cgroup, pinned: of.pinned(), ..launch })?;
        let prefix = prefix(spec, slot);
        let Gear { channel, notify, outputs: Opened { read_by_us, .. }, messages } = gear;
        let outputs = read_by_us.into_iter();
        let outputs = outputs.map(|(stream, pipe)| WorkerOutput::new(stream, pipe, prefix.clone()));
        let process = Process {
            pid: spawned.pid,
            started: process::started(spawned.pid),
            survivor: None,
            group: spawned.pid,
            announced_main_pid: None,
            rejected: Rejected::default(),
            generation,
            slot,
            notify: notify.map(Watched::from),
            start: Some(spawned.into()),
            failure: None,
            failed_probe: None,
            messages: messages.map(|pipe| pipe.ours.into()),
            channel: channel.map(|(ours, _)| Channel::new(ours)),
            lingers_until: None,
            drain_signal_sent: None,
            tries_again_at: None,
            tail: Tail::default(),
            outputs: outputs.collect(),
        };
        self.host.roles.insert(process.pid, Role::Worker(worker));
        self.history.started(worker, self.now());
        info!(
            worker = worker.0,
            generation = generation.0,
            slot = slot.0,
            pid = process.pid.as_raw(),
            "worker {worker} ({}) started",
            process.name()
        );
        let watched = self.watch(worker, &process);
        self.processes.insert(worker, process);
        self.note_process(worker);
        if let Err(error) = watched {
            // It runs, but could not be heard: it ends as any other that fails.
            error!("cannot watch worker {worker}: {error}");
            self.kill(worker);
        }
        Ok(())
    }

    /// Makes the ways between us and a worker to be.
    fn gear(&self, spec: &ServiceSpec) -> io::Result<Gear> {
        let process = &spec.process;
        if process.protocol == Protocol::Node {
            self.runtime.lay_out_node_module()?;
        }
        let speaks = process.protocol == Protocol::Notify;
        Ok(Gear {
            channel: (process.protocol == Protocol::Node).then(channel).transpose()?,
            notify: speaks
                .then(|| self.bind_notify_socket())
                .transpose()?
                .map(|notify| self.with_watch(notify)),
            outputs: match process.output {
                Output::Prefix | Output::Copy => Opened::pipes()?,
                Output::Auto | Output::Inherit => self.heritage.streams().open()?,
            },
            messages: process.messages.then(message_pipe).transpose()?,
        })
    }

    fn bind_notify_socket(&self) -> io::Result<NotifySocket> {
        let folder = self.runtime.notify();
        match NotifySocket::bind(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                warn!("{} was removed; it is made again", folder.display());
                self.runtime.restore()?;
                NotifySocket::bind(&folder)
            }
            bound => bound,
        }
    }

    /// Has the kernel tell us what the worker says and writes.
    ///
    /// # Errors
    ///
    /// Those of `epoll_ctl(2)`.
    pub(super) fn watch(&self, worker: WorkerId, process: &Process) -> io::Result<()> {
        if let Some(notify) = &process.notify {
            notify.watch(&self.host.poller, Token::Notify(worker), Interest::Read)?;
        }
        if let Some(channel) = &process.channel {
            channel.watch(&self.host.poller, worker)?;
        }
        if let Some(start) = &process.start {
            start.watch(&self.host.poller, Token::Report(worker), Interest::Read)?;
        }
        if let Some(survivor) = &process.survivor {
            survivor.watch(&self.host.poller, Token::Survivor(worker), Interest::Read)?;
        }
        for output in &process.outputs {
            output.pipe.watch(&self.host.poller, Token::Output(worker, output.stream), Interest::Read)?;
        }
        Ok(())
    }

    fn probe(&mut self, worker: WorkerId) -> io::Result<()> {
        let Some((of, process)) = self
            .processes
            .get(&worker)
            .and_then(|process| Some((self.generations.get(&process.generation)?, process)))
        else {
            return Ok(());
        };
        let place = of.place(process.generation, Some(process.slot));
        let pid = ("LIVESWAP_WORKER_PID", process.pid.to_string());
        let launch = launch::helper(place, &of.release.spec.probe, &[pid])?;
        self.begin_job(Role::Probe(worker), Job::program(spawn(launch)?), None).map(drop)
    }

    pub(super) fn drain(&mut self, worker: WorkerId) {
        if !self.disconnect(worker) {
            self.signal_to_drain(worker);
        }
    }

    /// Returns a worker's process where its pid is still its own: the news of its end may wait in the inbox.
    pub(super) fn running(&self, worker: WorkerId) -> Option<&Process> {
        self.processes.get(&worker).filter(|process| self.host.roles.contains_key(&process.pid))
    }

    /// Whether the worker has a process that is not yet reaped.
    pub(super) fn is_running(&self, worker: WorkerId) -> bool {
        self.running(worker).is_some()
    }

    fn tell(&mut self, notice: &Notice) {
        let (clock, clock_now) = (self.host.clock_micros(), self.now());
        self.upward.tell(notice, &self.manager, clock);
        let event = self.describe(notice);
        if let Notice::Worker(worker, WorkerNotice::Ready | WorkerNotice::Ended(_) | WorkerNotice::Died(_)) =
            notice
        {
            self.care.looks_at_sockets = true;
            self.care.occasion = Some(*worker);
            self.note_end_of(*worker);
        }
        match notice {
            Notice::Worker(_, WorkerNotice::Died(_)) => self.yield_default_control(),
            Notice::UpgradeEnded(_, Outcome::Committed) => {
                self.accept_tuning();
                self.forget_repairs();
            }
            Notice::UpgradeEnded(..) => self.forget_repairs(),
            _ => {}
        }
        if let Notice::Serving(_) = notice {
            self.open_default_control();
            self.record_head();
        }
        self.note_rejection(notice);
        match notice {
            Notice::Serving(_) | Notice::UpgradeEnded(_, Outcome::Committed) => {
                self.tidy_up_soon();
                self.drain_leftovers();
            }
            Notice::Stopping(_) => {
                self.drain_leftovers();
                self.drain_guests();
            }
            Notice::KillingAll(_) => {
                self.kill_leftovers();
                self.kill_guests();
            }
            _ => {}
        }
        self.insist_on_replacement(notice);
        let advised = self.note_failure(notice);
        if let Notice::Worker(worker, WorkerNotice::Silent(_)) = notice {
            self.want_bound(*worker);
        }
        self.history.note(notice, &self.manager, &self.processes, clock_now);
        self.publish(notice, &event);
        let EventLine { generation, worker, slot, pid, outcome, reason, text, .. } = &event;
        match notice.loudness() {
            Loudness::Info => {
                info!(event = event.event, generation, worker, slot, pid, outcome, reason, "{text}");
            }
            Loudness::Warning => {
                warn!(event = event.event, generation, worker, slot, pid, outcome, reason, "{text}");
            }
        }
        if let Some(generation) = advised {
            self.tell_advice(generation);
        }
        if let Notice::UpgradeEnded(to, Outcome::Committed | Outcome::RolledBack(_)) = notice
            && let Some((_, Some(note))) = self.old_code()
        {
            info!("generation {to}: {note}");
        }
    }

    /// Tells of a transition with all that is known of whom it is about.
    fn describe(&self, notice: &Notice) -> EventLine {
        let Notice::Worker(worker, what) = notice else { return EventLine::new(notice, &notice.to_string()) };
        let Some(process) = self.processes.get(worker) else {
            return EventLine::new(notice, &notice.to_string());
        };
        let text = match what {
            WorkerNotice::Silent(time) => {
                let protocol =
                    self.generations.get(&process.generation).map(|of| of.release.spec.process.protocol);
                let silence = protocol.map_or("says nothing", advice::silence);
                let hint = self.advice_for(*worker, Failure::NotReady);
                let hint = hint.map(|hint| format!("; {hint}")).unwrap_or_default();
                format!("worker {worker} ({}) {silence} for {}{hint}", process.name(), Human(*time))
            }
            _ => format!("worker {worker} ({}) {what}", process.name()),
        };
        EventLine {
            generation: Some(process.generation.0),
            slot: Some(process.slot.0),
            pid: Some(process.pid.as_raw()),
            ..EventLine::new(notice, &text)
        }
    }
}

/// What stands before each line of a worker's output that comes through us.
pub(super) fn prefix(spec: &ServiceSpec, slot: SlotId) -> String {
    match spec.process.output {
        Output::Prefix => format!("{}.{slot} | ", spec.name),
        Output::Auto | Output::Inherit | Output::Copy => String::new(),
    }
}
