//! All that another manager needs, as plain data.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::rc::Rc;

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::super::control::History;
use super::super::launch::MESSAGE_VARIABLE;
use super::super::node::DemandedState;
use super::super::process::Process;
use super::super::release::{Release, Source};
use super::super::run::{Daemon, Origin, Role};
use super::super::sockets::ListenerRecord;
use super::super::token::Stream;
use super::VERSION;
use crate::core::ids::{GenerationId, SlotId, WorkerId};
use crate::core::spec::ProcessSpec;
use crate::core::time::Mono;
use crate::core::{Event, Manager, Worker};
use crate::sys::handover::{HandOver, Luggage};
use crate::sys::held::{Held, Kind};
use crate::sys::{held, process};

/// The first line of the file: a snapshot, with what must be read before it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Envelope<S> {
    pub version: u32,
    /// The version of the program that wrote it.
    pub program: String,
    pub service: String,
    /// Which run of the machine it is of.
    pub boot: String,
    pub state: S,
}

/// A line behind it.
#[derive(Debug, Serialize, Deserialize)]
pub enum Entry {
    /// Something happened, and is about to be dealt with.
    Event(Mono, Event),
    /// All that the event before it led to was done.
    Done,
    /// A worker's process, new or another than before.
    Process(ProcessRecord),
    /// A hook or a probe was started: its process, and when.
    Helper(i32, u64, Role),
}

/// A manager as of one moment.
#[derive(Debug, Serialize, Deserialize)]
pub struct Record {
    /// The manager that wrote it.
    pub pid: u32,
    pub source: Source,
    pub origin: Origin,
    pub manager: Manager,
    /// Each once, though generations share them.
    pub listeners: Vec<ListenerRecord>,
    /// With the places of their sockets in the list of all.
    pub generations: Vec<(GenerationId, Release, Vec<usize>)>,
    pub kept: Option<(GenerationId, Release)>,
    pub demanded: Vec<DemandedState>,
    pub processes: Vec<ProcessRecord>,
    pub helpers: Vec<(i32, u64, Role)>,
    pub history: <History as HandOver>::State,
}

/// A worker's process, and what the manager had of it; sockets and pipes by their inodes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProcessRecord {
    pub worker: WorkerId,
    pub generation: GenerationId,
    pub slot: SlotId,
    pub pid: i32,
    /// When it was started, in clock ticks since the boot.
    pub started: u64,
    pub group: i32,
    /// When it was started, as the core counts.
    pub at: Option<Mono>,
    #[serde(default, with = "crate::path_text::option")]
    pub notify: Option<PathBuf>,
    pub outputs: Vec<(Stream, u64)>,
    pub messages: Option<u64>,
    /// Our end.
    pub channel: Option<u64>,
}

/// Takes a snapshot, the first line of the file.
///
/// # Errors
///
/// Those of fstat(2), and where `/proc` is not mounted.
pub fn snapshot(daemon: &Daemon) -> io::Result<Envelope<Record>> {
    let service = daemon.generations.get(&daemon.manager.current()).map(|of| of.release.spec.name.clone());
    Ok(Envelope {
        version: VERSION,
        program: env!("CARGO_PKG_VERSION").to_owned(),
        service: service.unwrap_or_default(),
        boot: process::boot()?,
        state: Record::of(daemon)?,
    })
}

impl Record {
    /// The users whose its workers are.
    pub fn users(&self) -> BTreeSet<u32> {
        let releases = self.generations.iter().map(|(_, release, _)| release);
        releases.chain(self.kept.iter().map(|(_, release)| release)).map(Release::user).collect()
    }

    fn of(daemon: &Daemon) -> io::Result<Self> {
        let listeners = daemon.sockets.listeners();
        let place = |one: &Rc<_>| listeners.iter().position(|other| Rc::ptr_eq(one, other));
        let generations = daemon.generations.iter().map(|(id, of)| {
            let places = of.sockets.listeners.iter().filter_map(place).collect();
            (*id, of.release.clone(), places)
        });
        let processes = daemon.processes.iter().filter(|(id, _)| daemon.is_running(**id));
        let processes = processes
            .filter_map(|(id, process)| ProcessRecord::of(*id, process, daemon.history.start_of(*id)));
        let programs = daemon.host.jobs.iter().filter(|(_, job)| job.is_program());
        let helpers = programs.filter_map(|(pid, _)| {
            let role = daemon.host.roles.get(pid)?;
            Some((pid.as_raw(), process::started(*pid)?, *role))
        });
        Ok(Self {
            pid: std::process::id(),
            source: daemon.source.clone(),
            origin: daemon.origin,
            manager: daemon.manager.clone(),
            listeners: listeners.iter().map(|listener| listener.record()).collect::<io::Result<_>>()?,
            generations: generations.collect(),
            kept: daemon.kept.as_ref().map(|(id, pinned)| (*id, pinned.release.clone())),
            demanded: daemon
                .demanded
                .iter()
                .filter_map(|one| Some(one.pack(place(&one.listener)?)))
                .collect(),
            processes: processes.collect(),
            helpers: helpers.collect(),
            history: daemon.history.pack(&mut Luggage::default()),
        })
    }
}

impl ProcessRecord {
    /// Describes a worker's process; `None` for one that is gone already.
    pub fn of(worker: WorkerId, process: &Process, at: Option<Mono>) -> Option<Self> {
        let outputs = process.outputs.iter();
        let outputs = outputs.filter_map(|output| Some((output.stream, held::inode(&output.pipe).ok()?)));
        Some(Self {
            worker,
            generation: process.generation,
            slot: process.slot,
            pid: process.pid.as_raw(),
            started: process.started?,
            group: process.group.as_raw(),
            at,
            notify: process.notify.as_ref().map(|notify| notify.path().to_owned()),
            outputs: outputs.collect(),
            messages: process.messages.as_ref().and_then(|messages| held::inode(messages).ok()),
            channel: process.channel.as_ref().and_then(|channel| held::inode(channel).ok()),
        })
    }

    /// Describes a worker by what its process has; `None` for one that is gone already, or may not be looked at.
    pub fn read(id: WorkerId, worker: &Worker, pid: Pid, spec: &ProcessSpec) -> Option<Self> {
        let open = held::open_files(pid).ok()?;
        let inode = |kind, number| {
            let is_it = |one: &&Held| (one.kind, one.number) == (kind, number);
            open.iter().find(is_it).map(|one| one.inode)
        };
        let variable = |name| process::variable(pid, name);
        let number = |name| variable(name)?.to_str()?.parse::<RawFd>().ok();
        let streams = [(Stream::Out, 1), (Stream::Err, 2)].into_iter();
        let streams = streams.filter(|_| spec.output.passes_through());
        Some(Self {
            worker: id,
            generation: worker.generation(),
            slot: worker.slot(),
            pid: pid.as_raw(),
            started: process::started(pid)?,
            // As each was started.
            group: pid.as_raw(),
            at: None,
            notify: variable("NOTIFY_SOCKET").map(PathBuf::from),
            outputs: streams
                .filter_map(|(stream, number)| Some((stream, inode(Kind::Pipe, number)?)))
                .collect(),
            messages: number(MESSAGE_VARIABLE).and_then(|number| inode(Kind::Pipe, number)),
            // Our end is its next descriptor.
            channel: number("NODE_CHANNEL_FD").and_then(|number| inode(Kind::Socket, number.checked_add(1)?)),
        })
    }
}
