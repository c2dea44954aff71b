//! All that a manager is, as plain data; the way there and back.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use tracing::info;

use super::super::cgroups::Cgroups;
use super::super::checker::PinnedRelease;
use super::super::control::{Asker, Control, History};
use super::super::doors::OnDemand;
use super::super::guests::Guests;
use super::super::host::{Host, Job};
use super::super::launch::{Common, Heritage};
use super::super::loose_ends::LooseEnds;
use super::super::node::{Demanded, DemandedState};
use super::super::outlet::{ERROR, OUTPUT, Outputs};
use super::super::prepare::Candidate;
use super::super::process::{Process, WorkerOutput};
use super::super::recovery::{Journal, Leftover};
use super::super::release::{Release, Source};
use super::super::repair::{Care, CareState};
use super::super::run::{Daemon, Generation, Origin, Role};
use super::super::runtime::RuntimeDirectory;
use super::super::sockets::{Listener, Prepared, Sockets};
use super::super::store::Store;
use super::super::target::Targets;
use super::super::upward::ServiceManager;
use super::Successor;
use crate::core::ids::{GenerationId, RequestId, WorkerId};
use crate::core::spec::Accept;
use crate::core::{Event, Manager};
use crate::plain::Limit;
use crate::sys::control_tcp::ControlTcp;
use crate::sys::foreign::ForeignFd;
use crate::sys::handover::{HandOver, Luggage, Unpacked};
use crate::sys::signals::{ControllingTerminal, Signals};
use crate::wire::control::{NamedTarget, Reply};

type As<T> = <T as HandOver>::State;

/// A generation, with the places of its sockets in the list of all.
type GenerationState = (GenerationId, Release, As<Option<OwnedFd>>, Vec<usize>, As<Option<ControlTcp>>);

/// A manager between two turns of its loop: no event waits, and every action was performed.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    source: Source,
    #[serde(with = "crate::path_text")]
    program: PathBuf,
    origin: Origin,
    terminal: ControllingTerminal,
    nofile: Limit,
    manager: Manager,
    runtime: As<RuntimeDirectory>,
    /// Each once, though generations share them.
    listeners: Vec<As<Listener>>,
    generations: Vec<GenerationState>,
    kept: As<Option<(GenerationId, PinnedRelease)>>,
    targets: Vec<(RequestId, NamedTarget)>,
    stored: As<Store>,
    demanded: Vec<DemandedState>,
    candidate: As<Option<Candidate>>,
    processes: As<BTreeMap<WorkerId, Process>>,
    roles: Vec<(i32, Role)>,
    #[serde(default)]
    jobs: As<Vec<Job>>,
    found_at_start: Vec<i32>,
    #[serde(flatten)]
    loose_ends: As<LooseEnds>,
    care: CareState,
    upward: As<ServiceManager>,
    control: As<Control>,
    history: As<History>,
    leftovers: As<Vec<Leftover>>,
    guests: Guests,
    /// A connection that could not be served yet, and the place of the socket that it came by.
    #[serde(default)]
    waiting_connection: Option<(usize, Accept, As<ForeignFd>)>,
    /// What hooks, probes and connection processes write through us.
    #[serde(default)]
    helper_outputs: As<Vec<WorkerOutput>>,
    /// Text that nobody has read yet, on standard output and error.
    unread: [(Vec<u8>, usize); 2],
    /// Who hears that the other has taken over.
    askers: Vec<Asker>,
}

/// Writes a generation down; `place` tells where a socket stands among all.
fn written(
    id: GenerationId,
    of: &Generation,
    place: impl Fn(&Rc<Listener>) -> Option<usize>,
    luggage: &mut Luggage,
) -> GenerationState {
    let places = of.sockets.listeners.iter().filter_map(place).collect();
    (id, of.release.clone(), of.program.pack(luggage), places, of.control_tcp.pack(luggage))
}

impl State {
    /// Writes a manager down, and those who asked for its replacement; what it says of descriptors holds as long as they
    /// are open. Fields are named one by one, so that nobody adds one without deciding whether it travels.
    pub(super) fn of(daemon: &Daemon, askers: &[Asker], luggage: &mut Luggage) -> Self {
        let Daemon {
            manager,
            terminal,
            origin,
            source,
            successor,
            runtime,
            heritage,
            sockets,
            generations,
            kept,
            targets,
            stored,
            demanded,
            candidate,
            processes,
            host,
            upward,
            control,
            history,
            care,
            leftovers,
            on_demand,
            journal: _, // Begun anew by whoever comes, and true until then.
            cgroups: _, // Found again by their names.
            signals: _,
            inbox: _,
            loose_ends,
            ended: _,
            outputs,
        } = daemon;
        // Timers are set again by their owners.
        let Host { roles, jobs, found_at_start, .. } = host;
        let listeners = sockets.listeners();
        let place = |one: &Rc<Listener>| listeners.iter().position(|other| Rc::ptr_eq(one, other));
        Self {
            source: source.clone(),
            program: successor.program.clone(),
            origin: *origin,
            terminal: *terminal,
            nofile: heritage.nofile(),
            manager: manager.clone(),
            runtime: runtime.pack(luggage),
            listeners: listeners.iter().map(|listener| listener.pack(luggage)).collect(),
            generations: generations.iter().map(|(id, of)| written(*id, of, place, luggage)).collect(),
            kept: kept.pack(luggage),
            targets: targets.asked.pack(luggage),
            stored: stored.pack(luggage),
            demanded: demanded.iter().filter_map(|one| Some(one.pack(place(&one.listener)?))).collect(),
            candidate: candidate.pack(luggage),
            processes: processes.pack(luggage),
            roles: roles.pack(luggage),
            jobs: jobs.values().map(|job| job.pack(luggage)).collect(),
            found_at_start: found_at_start.pack(luggage),
            loose_ends: loose_ends.pack(luggage),
            care: care.pack(place),
            upward: upward.pack(luggage),
            control: control.pack(luggage),
            history: history.pack(luggage),
            leftovers: leftovers.pack(luggage),
            guests: on_demand.guests.clone(),
            waiting_connection: on_demand.doors.waiting.as_ref().and_then(
                |(listener, limits, connection)| Some((place(listener)?, *limits, connection.pack(luggage))),
            ),
            helper_outputs: outputs.helpers().map(|output| output.pack(luggage)).collect(),
            unread: [OUTPUT.waiting(), ERROR.waiting()],
            askers: askers.to_vec(),
        }
    }

    /// Makes the manager of it that goes on; returns with it those who asked for that.
    ///
    /// # Errors
    ///
    /// A descriptor did not arrive, or signals or epoll cannot be had.
    pub(in super::super) fn resume(self, mut luggage: Unpacked) -> io::Result<(Daemon, Vec<Asker>)> {
        let luggage = &mut luggage;
        let [output, error] = self.unread;
        OUTPUT.resume(output);
        ERROR.resume(error);
        let mut runtime = RuntimeDirectory::unpack(self.runtime, luggage)?;
        let heritage = Heritage::take(self.nofile).with_runtime(runtime.path());
        heritage.streams().put_helpers(HandOver::unpack(self.helper_outputs, luggage)?);
        let listeners: Vec<Rc<Listener>> = self
            .listeners
            .into_iter()
            .map(|listener| Listener::unpack(listener, luggage).map(Rc::new))
            .collect::<io::Result<_>>()?;
        let mut generations = BTreeMap::new();
        for (id, release, program, places, control_tcp) in self.generations {
            let common = Common::of(&release, id, &heritage)?;
            let sockets = Prepared::among(&listeners, &places);
            let program = HandOver::unpack(program, luggage)?;
            let control_tcp = HandOver::unpack(control_tcp, luggage)?;
            generations.insert(id, Generation { release, program, common, sockets, control_tcp });
        }
        let current = generations.get(&self.manager.current()).map(|of: &Generation| &of.release);
        let service = current.map(|release| release.spec.name.clone()).unwrap_or_default();
        let own_token = current.is_none_or(|release| release.control_token.is_none());
        let demanded = self.demanded.into_iter().filter_map(|one| Demanded::unpack(one, &listeners));
        let waiting = self.waiting_connection.and_then(|(place, limits, connection)| {
            let connection = ForeignFd::unpack(connection, luggage).ok()?;
            Some((Rc::clone(listeners.get(place)?), limits, connection))
        });
        let host = Host::new(self.origin.epoch, HandOver::unpack(self.found_at_start, luggage)?)?;
        let host = host.with(HandOver::unpack(self.roles, luggage)?, HandOver::unpack(self.jobs, luggage)?);
        let mut control: Control = HandOver::unpack(self.control, luggage)?;
        // The child that looked is of no use any more.
        control.end_examinations(host.now());
        runtime.lay_out_token(control.token.as_ref().filter(|_| own_token));
        let daemon = Daemon {
            manager: self.manager,
            host,
            signals: Signals::install()?.into(),
            terminal: self.terminal,
            origin: self.origin,
            source: self.source,
            successor: Successor::at(self.program),
            journal: Journal::new(runtime.state()),
            runtime,
            cgroups: Cgroups::find(&service),
            heritage,
            sockets: Sockets::resume(&listeners),
            generations,
            kept: HandOver::unpack(self.kept, luggage)?,
            targets: Targets::asked(HandOver::unpack(self.targets, luggage)?),
            stored: HandOver::unpack(self.stored, luggage)?,
            demanded: demanded.collect(),
            candidate: HandOver::unpack(self.candidate, luggage)?,
            processes: HandOver::unpack(self.processes, luggage)?,
            upward: HandOver::unpack(self.upward, luggage)?,
            control,
            history: HandOver::unpack(self.history, luggage)?,
            inbox: VecDeque::from([Event::Tick]),
            loose_ends: HandOver::unpack(self.loose_ends, luggage)?,
            ended: false,
            care: Care::unpack(&self.care, &listeners),
            outputs: Outputs::open()?,
            leftovers: HandOver::unpack(self.leftovers, luggage)?,
            on_demand: OnDemand::resume(self.guests, waiting),
        };
        Ok((daemon, self.askers))
    }
}

impl Daemon {
    /// Takes up what has happened since the other wrote its state down, waits for everything again, and tells those who
    /// asked.
    ///
    /// # Errors
    ///
    /// Those of epoll(7).
    pub(in super::super) fn take_up(&mut self, askers: Vec<Asker>) -> io::Result<()> {
        self.watch_all()?;
        self.end_looks_of_before();
        // Everything else shows by itself: what is readable stays so. Of a signal for an end nothing may be left.
        self.reap_all();
        info!("{} {} goes on as the manager", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
        for asker in askers {
            let reply = self.introduce(Reply::ok("reexec"));
            self.control.reply(asker, reply);
        }
        Ok(())
    }
}
