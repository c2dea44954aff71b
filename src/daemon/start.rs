//! The manager at its start.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;

use tracing::warn;

use super::cgroups::Cgroups;
use super::control::{Control, History};
use super::doors::OnDemand;
use super::handover::Successor;
use super::host::{Host, Timer};
use super::init::terminal;
use super::launch::{Common, Heritage};
use super::loose_ends::LooseEnds;
use super::outlet::Outputs;
use super::recovery::{Journal, Leftover};
use super::release::{Release, Source};
use super::repair::Care;
use super::run::{Daemon, Generation, Origin};
use super::runtime::RuntimeDirectory;
use super::sockets::{Prepared, Sockets};
use super::store::Store;
use super::target::Targets;
use super::token::Token;
use super::upward::ServiceManager;
use crate::core::ids::{GenerationId, WorkerId};
use crate::core::{Event, Manager};
use crate::sys::exec::own_program;
use crate::sys::signals::Signals;
use crate::sys::wait::Interest;
use crate::sys::{process, reaper};

/// What a manager needs wherever it begins.
#[derive(Debug)]
pub struct Post {
    /// What workers inherit from us.
    pub heritage: Heritage,
    /// The way to the service manager.
    pub upward: ServiceManager,
    /// The clients.
    pub control: Control,
    /// The control groups of the service.
    pub cgroups: Cgroups,
    /// The runtime directory. It is dropped last: it can be removed when the control socket in it has gone.
    pub runtime: RuntimeDirectory,
}

/// What a daemon starts from.
#[derive(Debug)]
pub struct Start {
    /// Where the service is defined.
    pub source: Source,
    /// The first generation.
    pub release: Release,
    /// A hold on its program.
    pub program: Option<OwnedFd>,
    /// Its sockets, bound.
    pub prepared: Prepared,
    /// All sockets.
    pub sockets: Sockets,
    /// Everything else.
    pub post: Post,
    /// What a manager before us has left whose state could not be used.
    pub leftovers: Vec<Leftover>,
    /// The highest number that any of those had as a worker.
    pub newest: Option<WorkerId>,
}

impl Daemon {
    /// Makes a manager; its workers start in [`Daemon::run`].
    ///
    /// # Errors
    ///
    /// Signals or epoll cannot be had.
    pub fn new(start: Start) -> io::Result<Self> {
        let Start { source, release, program, prepared, sockets, post, leftovers, newest } = start;
        let manager = Manager::counting_from(newest, release.spec.policy.clone());
        let common = Common::of(&release, manager.current(), &post.heritage)?;
        let first = Generation { release, program, common, sockets: prepared, control_tcp: None };
        let generations = BTreeMap::from([(manager.current(), first)]);
        let mut daemon = Self::at_post(post, manager, source, sockets, generations)?;
        daemon.leftovers = leftovers;
        daemon.inbox.push_back(Event::Tick);
        Ok(daemon)
    }

    /// Makes a manager of these parts, with no process and nothing under way.
    ///
    /// # Errors
    ///
    /// Signals or epoll cannot be had.
    pub(super) fn at_post(
        post: Post,
        manager: Manager,
        source: Source,
        sockets: Sockets,
        generations: BTreeMap<GenerationId, Generation>,
    ) -> io::Result<Self> {
        let Post { runtime, heritage, upward, control, cgroups } = post;
        cgroups.tell();
        let origin = Origin::here()?;
        Ok(Self {
            signals: Signals::install()?.into(),
            terminal: terminal(),
            host: Host::new(origin.epoch, process::own_children()?)?,
            origin,
            source,
            successor: Successor::at(own_program()?),
            journal: Journal::new(runtime.state()),
            runtime,
            cgroups,
            heritage,
            sockets,
            manager,
            generations,
            kept: None,
            targets: Targets::default(),
            stored: Store::default(),
            demanded: Vec::new(),
            candidate: None,
            processes: BTreeMap::new(),
            upward,
            control,
            history: History::default(),
            inbox: VecDeque::new(),
            loose_ends: LooseEnds::default(),
            ended: false,
            care: Care::default(),
            outputs: Outputs::open()?,
            on_demand: OnDemand::default(),
            leftovers: Vec::new(),
        })
    }

    /// Has the kernel tell us of everything that there is.
    ///
    /// # Errors
    ///
    /// Those of epoll(7).
    pub(super) fn watch_all(&mut self) -> io::Result<()> {
        reaper::set_subreaper()?;
        self.signals.watch(&self.host.poller, Token::Signals, Interest::Read)?;
        self.control.watch(&mut self.host)?;
        self.host.watch_jobs()?;
        self.stored.watch(&self.host.poller);
        for (worker, process) in &self.processes {
            self.watch(*worker, process)?;
            self.host.timers.set(Timer::Lingering(*worker), process.lingers_until);
            self.host.timers.set(Timer::Send(*worker), process.tries_again_at);
        }
        self.end_demands();
        self.time_guests();
        self.host.timers.set(Timer::Orphans, self.loose_ends.look_for_orphans_at);
        self.candidate.as_ref().map_or(Ok(()), |candidate| candidate.watch(&self.host.poller))?;
        self.watch_leftovers();
        // What was done to a path meanwhile is mended before it is watched: the watch is of what stands there.
        // Those that we have just bound nobody else has had.
        let are_shared = !self.leftovers.is_empty() || self.manager.workers().next().is_some();
        if are_shared || self.sockets.listeners().iter().any(|listener| listener.is_inherited()) {
            self.mend_sockets(None);
        }
        for warning in self.sockets.guard() {
            warn!("{warning}");
        }
        self.watch_sockets();
        self.watch_control();
        self.watch_notify_paths();
        Ok(())
    }
}
