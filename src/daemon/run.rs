//! The loop round the core: waits for what happens, hands it in, performs what comes out.
//!
//! One thread, one level-triggered epoll set; nothing in here waits for anything but the next event. What a turn finds is
//! handed in with exits last: what a worker said before it died is heard before its death is.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::unistd::{Pid, getpid};
use serde::{Deserialize, Serialize};

use super::ManagerError;
use super::cgroups::Cgroups;
use super::checker::PinnedRelease;
use super::control::{Control, History};
use super::doors::OnDemand;
use super::handover::Successor;
use super::host::{Host, Timer};
use super::launch::{Common, Heritage, Place};
use super::loose_ends::{LooseEnds, tell_stalls};
use super::node::Demanded;
use super::outlet::Outputs;
use super::prepare::Candidate;
use super::process::Process;
use super::recovery::{Journal, Leftover};
use super::release::{Release, Source};
use super::repair::Care;
use super::runtime::RuntimeDirectory;
use super::sockets::{Prepared, Sockets};
use super::store::Store;
use super::strangers;
use super::target::Targets;
use super::token::Watched;
use super::upward::ServiceManager;
use crate::core::ids::{GenerationId, SlotId, WorkerId};
use crate::core::time::Mono;
use crate::core::{Event, Manager};
use crate::sys::clock::monotonic_micros;
use crate::sys::control_tcp::ControlTcp;
use crate::sys::process;
use crate::sys::signals::{ControllingTerminal, Signals};
use crate::sys::stall::StallTimer;

/// Who is woken so much later than it wanted to be has overslept: the machine was asleep, or the manager was stopped.
const OVERSLEPT: Duration = Duration::from_secs(1);

/// A generation as the shell keeps it, for as long as the core has a use for it.
#[derive(Debug)]
pub(super) struct Generation {
    pub(super) release: Release,
    /// A hold on its program.
    pub(super) program: Option<OwnedFd>,
    pub(super) common: Common,
    /// Its share in the sockets: what no generation holds is closed.
    pub(super) sockets: Prepared,
    /// Where the manager is spoken to by TCP, until it serves and the manager takes that over; where it changes nothing,
    /// `None`.
    pub(super) control_tcp: Option<ControlTcp>,
}

impl Generation {
    /// Where a process of it is started.
    pub(super) fn place(&self, generation: GenerationId, slot: Option<SlotId>) -> Place<'_> {
        Place { release: &self.release, common: &self.common, generation, slot }
    }
}

/// What a child of ours is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Role {
    Worker(WorkerId),
    Checker(GenerationId),
    Before(GenerationId),
    Head,
    After(GenerationId),
    Guest,
    Probe(WorkerId),
    Survey,
    Look,
    Trial,
    Closer,
    Examination,
    /// It watches files (`run --watch`).
    Watcher,
}

/// When the first manager of the service was started, whose work this one goes on with.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Origin {
    /// `CLOCK_MONOTONIC` then, in microseconds: the core's zero.
    pub(super) epoch: u64,
    /// The start of its process, in clock ticks since the boot: no process of the service is older.
    pub(super) since: u64,
    /// Whether a change of files is an upgrade (`--watch`).
    #[serde(default)]
    pub(super) is_watched: bool,
}

impl Origin {
    /// The present moment and process.
    ///
    /// # Errors
    ///
    /// The clock cannot be read.
    pub(super) fn here() -> io::Result<Self> {
        let since = process::started(getpid()).unwrap_or_default();
        Ok(Self { epoch: monotonic_micros()?, since, is_watched: false })
    }
}

/// The manager, with all that it has a hold of.
#[derive(Debug)]
pub struct Daemon {
    pub(super) manager: Manager,
    pub(super) host: Host,
    pub(super) signals: Watched<Signals>,
    pub(super) terminal: ControllingTerminal,
    pub(super) origin: Origin,
    pub(super) source: Source,
    pub(super) successor: Successor,
    pub(super) runtime: RuntimeDirectory,
    pub(super) cgroups: Cgroups,
    /// What another manager goes on with, if this one is killed.
    pub(super) journal: Journal,
    pub(super) heritage: Heritage,
    pub(super) sockets: Sockets,
    pub(super) generations: BTreeMap<GenerationId, Generation>,
    /// What the generation before the current one was made of, where that one has gone: a rollback needs it.
    pub(super) kept: Option<(GenerationId, PinnedRelease)>,
    pub(super) targets: Targets,
    /// What workers have left for those after them.
    pub(super) stored: Store,
    /// The sockets that workers have asked for.
    pub(super) demanded: Vec<Demanded>,
    /// What may become the next generation.
    pub(super) candidate: Option<Candidate>,
    pub(super) processes: BTreeMap<WorkerId, Process>,
    pub(super) upward: ServiceManager,
    pub(super) control: Control,
    pub(super) history: History,
    /// Events that are yet to be handed in.
    pub(super) inbox: VecDeque<Event>,
    pub(super) loose_ends: LooseEnds,
    pub(super) ended: bool,
    pub(super) care: Care,
    pub(super) outputs: Outputs,
    pub(super) on_demand: OnDemand,
    /// Processes of a manager before us whose state could not be used.
    pub(super) leftovers: Vec<Leftover>,
}

impl Daemon {
    /// Runs the service until it has ended.
    ///
    /// # Errors
    ///
    /// The kernel no longer lets us wait, which nothing outside can cause.
    pub fn run(&mut self) -> io::Result<()> {
        let mut ready = Vec::new();
        let mut stall = StallTimer::new()?;
        stall.start();
        loop {
            self.settle();
            if self.ended
                && !self.host.has_job(|role| matches!(role, Role::After(_)))
                && self.targets.recording.is_none()
                && self.leftovers.is_empty()
            {
                break;
            }
            if self.hands_over() {
                continue;
            }
            let tick_at = self.manager.next_deadline();
            let wake_at = self.host.timers.next().into_iter().chain(tick_at).min();
            let timeout = wake_at.map(|at| at - self.now());
            // Last, or a line that was logged since would wait for the next event.
            self.outputs.flush(&self.host.poller);
            if tell_stalls(stall.stop()) {
                self.outputs.flush(&self.host.poller);
            }
            self.host.poller.wait(timeout, &mut ready)?;
            stall.start();
            self.collect(&ready);
            let now = self.now();
            let late = tick_at.map_or(Duration::ZERO, |at| now - at);
            let is_due = tick_at.is_some_and(|at| at <= now);
            if is_due {
                self.hear_all(&mut ready)?;
            }
            if late > OVERSLEPT {
                self.inbox.push_front(Event::Overslept);
            }
            for timer in self.host.timers.take_due(now) {
                self.due(timer);
            }
            if is_due {
                self.inbox.push_back(Event::Tick);
            }
        }
        self.journal.remove();
        self.runtime.note_end();
        // First: who reads it may be among those that are killed now.
        self.outputs.flush(&self.host.poller);
        self.end_strangers();
        self.outputs.pass_on_the_rest();
        self.outputs.flush(&self.host.poller);
        Ok(())
    }

    /// The moment that it is, as the core counts.
    pub(super) fn now(&self) -> Mono {
        self.host.now()
    }

    /// Hands in all events and performs what follows, until nothing is left to do.
    fn settle(&mut self) {
        let mut actions = Vec::new();
        while let Some(event) = self.next_event() {
            let gone = match event {
                Event::Exited(worker, _) | Event::StartFailed(worker, _) => Some(worker),
                _ => None,
            };
            let now = self.now();
            // What waits may acquit whoever is due.
            let is_due = !self.inbox.is_empty() && self.manager.next_deadline().is_some_and(|at| at <= now);
            let event =
                if is_due && event != Event::Overslept { Event::Heard(Box::new(event)) } else { event };
            self.foresee(now, &event);
            self.manager.handle(now, event, &mut actions);
            if !actions.is_empty() {
                self.write_journal();
                for action in actions.drain(..) {
                    self.perform(action);
                }
                self.note_done();
                self.close_sockets();
            }
            self.look_at_sockets();
            // Its name was still needed to tell of its end.
            if let Some(process) = gone.and_then(|worker| self.processes.remove(&worker)) {
                self.tidy_slot(process.slot);
            }
        }
        // What a worker said need not have been an event.
        self.look_at_sockets();
        self.mind_idleness();
        self.mind_doors();
        let busy_until = self.manager.busy_until().max(self.on_demand.guests.last_end());
        self.upward.sync(&self.manager, &self.dead_sockets(), busy_until, self.now());
        self.host.timers.set(Timer::Upstream, self.upward.next_deadline());
        self.control.serve(self.ended, &mut self.host);
        self.outputs.read_helpers(self.heritage.streams().take_helpers(), &self.host.poller);
        self.close_turn();
        self.loose_ends.barriers.clear();
        self.close_foreign();
    }

    /// Takes the next event. Where none waits, a look that is wanted begins: one that cannot begin is an event at once.
    fn next_event(&mut self) -> Option<Event> {
        if self.inbox.is_empty() {
            self.begin_look();
        }
        self.inbox.pop_front()
    }

    /// Looks at the sockets where there is an occasion, and nothing else waits to be dealt with.
    fn look_at_sockets(&mut self) {
        if self.inbox.is_empty() && mem::take(&mut self.care.looks_at_sockets) {
            let occasion = self.care.occasion.take();
            self.mend_sockets(occasion);
        }
    }

    /// Says at the end which workers outlive us, as nothing ends them.
    ///
    /// # Errors
    ///
    /// There are such.
    pub(super) fn nothing_is_left(&self) -> Result<(), ManagerError> {
        let stuck = self.manager.workers().filter(|(_, worker)| worker.is_stuck());
        let named = stuck.filter_map(|(id, _)| {
            let process = self.processes.get(&id)?;
            Some(format!("worker {id} ({})", process.name()))
        });
        let left: Vec<_> =
            named.chain(self.loose_ends.left_behind.iter().copied().map(strangers::named)).collect();
        if left.is_empty() { Ok(()) } else { Err(ManagerError::Left(left)) }
    }

    /// Does what is due. Of some it is enough that the turn goes on: what they are about is done at the end of each.
    fn due(&mut self, timer: Timer) {
        match timer {
            Timer::Reap => self.reap_all(),
            Timer::Job(pid) => self.job_is_late(Pid::from_raw(pid)),
            Timer::Orphans => self.kill_orphans(),
            Timer::Client(client) => self.control.end_late_client(client, &mut self.host),
            Timer::Accept => self.control.accept_again(&mut self.host),
            Timer::Lingering(worker) => self.end_lingering(worker),
            Timer::Send(worker) => self.tend_channel(worker),
            Timer::Demands => self.end_demands(),
            Timer::Leftover(pid) => self.kill_late_leftover(Pid::from_raw(pid)),
            Timer::Guest(pid) => self.kill_late_guest(Pid::from_raw(pid)),
            Timer::Connections => self.try_doors_again(),
            Timer::State | Timer::Idleness | Timer::Upstream | Timer::Closers => {}
        }
    }
}
