//! The manager at its start.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use super::control::{Control, History};
use super::launch::{Common, Heritage};
use super::outlet::Outputs;
use super::release::{Release, Source};
use super::repair::Care;
use super::run::{Daemon, Generation};
use super::runtime::RuntimeDirectory;
use super::sockets::{Prepared, Sockets};
use super::store::Store;
use super::token::Token;
use super::upward::ServiceManager;
use crate::core::{Event, Manager};
use crate::sys::clock::monotonic_micros;
use crate::sys::exec::own_program;
use crate::sys::signals::{ControllingTerminal, Signals};
use crate::sys::wait::{Interest, Poller};
use crate::sys::{process, reaper};

/// What a daemon starts from.
#[derive(Debug)]
pub struct Start {
    /// Where the service is defined.
    pub source: Source,
    /// The first generation.
    pub release: Release,
    /// Its sockets, bound.
    pub prepared: Prepared,
    /// All sockets.
    pub sockets: Sockets,
    /// The runtime directory.
    pub runtime: RuntimeDirectory,
    /// What workers inherit from us.
    pub heritage: Heritage,
    /// The way to the service manager.
    pub upward: ServiceManager,
    /// The clients.
    pub control: Control,
}

impl Daemon {
    /// Makes a manager; its workers start in [`Daemon::run`].
    ///
    /// # Errors
    ///
    /// Signals or epoll cannot be had.
    pub fn new(start: Start) -> io::Result<Self> {
        let poller = Poller::new()?;
        let signals = Signals::install()?;
        poller.add(&signals, Token::Signals.pack(), Interest::Read)?;
        reaper::set_subreaper()?;
        let manager = Manager::new(start.release.spec.policy.clone());
        let common = Common::of(&start.release, manager.current(), &start.heritage)?;
        let first = Generation { release: start.release, common, sockets: start.prepared, control_tcp: None };
        let mut daemon = Self {
            generations: BTreeMap::from([(manager.current(), first)]),
            manager,
            poller,
            signals,
            terminal: ControllingTerminal::observe(),
            epoch: monotonic_micros()?,
            source: start.source,
            program: own_program()?,
            reexec: None,
            runtime: start.runtime,
            heritage: start.heritage,
            sockets: start.sockets,
            kept: None,
            targets: BTreeMap::new(),
            recording: None,
            stored: Store::default(),
            demanded: Vec::new(),
            candidate: None,
            processes: BTreeMap::new(),
            roles: BTreeMap::new(),
            helpers: BTreeMap::new(),
            found_at_start: process::own_children()?,
            upward: start.upward,
            control: start.control,
            history: History::default(),
            inbox: VecDeque::from([Event::Tick]),
            barriers: Vec::new(),
            ended: false,
            hooks_end: BTreeMap::new(),
            look_for_orphans_at: None,
            care: Care::default(),
            outputs: Outputs::open()?,
        };
        daemon.watch_sockets();
        daemon.watch_control();
        daemon.control.watch(&daemon.poller)?;
        Ok(daemon)
    }
}
