//! The forked child that looks at the workers: their memory, and the connections that they hold.
//!
//! /proc is slow where there are many processes, and a look into a process may wait for it. The manager never does: it
//! has a child look, several who ask share a look that began after all of them asked, and where no look succeeds they
//! hear what is known without one.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::time::Duration;

use nix::unistd::Pid;
use serde_json::value::RawValue;
use tracing::warn;

use super::super::host::{Ended, Failure, Job};
use super::super::run::{Daemon, Role};
use super::Asker;
use crate::core::ids::GenerationId;
use crate::core::spec::{SocketAddress, SocketKind};
use crate::sys::fork::{ForkedWork, in_child};
use crate::sys::handover::hand_over;
use crate::sys::listener::local_address;
use crate::sys::{cgroup, sock_diag, unix_names, usage};
use crate::wire::control::Reply;
use crate::wire::status::{GenerationUse, Status, Worker};

/// How long a look may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A look under way.
#[derive(Debug)]
pub struct Survey {
    askers: Vec<Asker>,
    /// It is to tell as well whether anybody has a connection.
    counts: bool,
}

hand_over!(Survey as SurveyState {
    askers: Vec<Asker>,
    counts: bool,
});

/// Whose connections the kernel can count.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Ports {
    tcp: BTreeSet<u16>,
    /// The addresses of UNIX sockets.
    unix: BTreeSet<SocketAddress>,
    /// There are sockets of other kinds, whose connections only the worker itself knows.
    others: bool,
}

impl Ports {
    /// Returns the inode numbers of all connections; `None` where there could be none, or none could be counted.
    pub(in super::super) fn connections(&self) -> Option<BTreeSet<u32>> {
        let mut all = BTreeSet::new();
        if !self.unix.is_empty() {
            all.extend(unix_names::accepted_at(&self.unix).ok()?);
        }
        if !self.tcp.is_empty() {
            all.extend(sock_diag::connections(&self.tcp).ok()?);
        }
        Some(all).filter(|_| !self.tcp.is_empty() || !self.unix.is_empty())
    }
}

impl Survey {
    pub(super) fn into_askers(self) -> Vec<Asker> {
        self.askers
    }
}

impl Daemon {
    pub(super) fn ask_status(&mut self, asker: Asker) {
        self.control.next_survey.push(asker);
        if self.control.survey.is_none() {
            self.begin_survey();
        }
    }

    /// Has it told whether anybody has a connection.
    pub(in super::super) fn ask_for_count(&mut self) {
        self.control.next_counts = true;
        if self.control.survey.is_none() {
            self.begin_survey();
        }
    }

    fn begin_survey(&mut self) {
        let askers = std::mem::take(&mut self.control.next_survey);
        let counts = std::mem::take(&mut self.control.next_counts);
        if askers.is_empty() && !counts {
            return;
        }
        match self.look().and_then(|work| self.begin_job(Role::Survey, Job::work(work), Some(PATIENCE))) {
            Ok(_) => self.control.survey = Some(Survey { askers, counts }),
            Err(error) => {
                warn!("cannot look at the workers: {error}");
                self.tell_status(askers, None);
                self.take_count(counts, None);
            }
        }
    }

    fn take_count(&mut self, counts: bool, text: Option<&str>) {
        if counts {
            let status: Option<Status> = text.and_then(|text| serde_json::from_str(text).ok());
            self.counted(status.as_ref());
        }
    }

    fn look(&self) -> io::Result<ForkedWork> {
        let ports = self.ports();
        let mut status = self.status();
        let groups: Vec<_> =
            self.generations.keys().filter_map(|id| Some((*id, self.cgroups.of(*id)?))).collect();
        in_child(move || {
            look_at(&mut status.workers, &ports);
            status.generations = groups.into_iter().filter_map(|(id, path)| usage_of(id, &path)).collect();
            serde_json::to_vec(&status).unwrap_or_default()
        })
    }

    /// Whether there are sockets whose connections only the workers know.
    pub(in super::super) fn only_workers_know(&self) -> bool {
        self.ports().others
    }

    pub(in super::super) fn ports(&self) -> Ports {
        let mut ports = Ports::default();
        for listener in self.sockets.listeners() {
            let spec = &listener.plan().spec;
            match (&spec.address, spec.kind) {
                (SocketAddress::Inet(_), SocketKind::Stream) => {
                    // The port of the file may be 0: the kernel knows which it became.
                    if let Ok(Some(SocketAddress::Inet(address))) = local_address(&*listener) {
                        ports.tcp.insert(address.port());
                    }
                }
                (
                    SocketAddress::Path(_) | SocketAddress::Abstract(_),
                    SocketKind::Stream | SocketKind::Seqpacket,
                ) => {
                    ports.unix.insert(spec.address.clone());
                }
                (_, SocketKind::Datagram) | (SocketAddress::Inet(_), SocketKind::Seqpacket) => {
                    ports.others = true;
                }
            }
        }
        ports
    }

    /// Takes the child's end.
    pub(in super::super) fn surveyed(&mut self, ended: Ended) {
        let Some(survey) = self.control.survey.take() else { return };
        if let Err(Failure::TooLate) = ended.result {
            warn!("looking at the workers took more than {} s", PATIENCE.as_secs());
        }
        let text = String::from_utf8(ended.said).ok().filter(|_| ended.result.is_ok());
        self.take_count(survey.counts, text.as_deref());
        self.tell_status(survey.askers, text.and_then(|text| RawValue::from_string(text).ok()));
        self.begin_survey();
    }

    fn tell_status(&mut self, askers: Vec<Asker>, seen: Option<Box<RawValue>>) {
        let status = seen.or_else(|| self.status_text());
        for asker in askers {
            let reply = self.introduce(Reply { status: status.clone(), ..Reply::ok(&asker.cmd) });
            self.control.reply(asker, reply);
        }
    }
}

/// What a generation uses, by its cgroup. Runs in a child.
fn usage_of(generation: GenerationId, path: &Path) -> Option<GenerationUse> {
    let processes = cgroup::processes(path);
    let resident = || processes.iter().filter_map(|pid| usage::resident(*pid)).sum();
    let memory = cgroup::memory(path).unwrap_or_else(resident);
    let used = GenerationUse { generation: generation.0, processes: processes.len(), memory };
    Some(used).filter(|used| used.processes > 0)
}

/// Adds what can be seen of the workers from outside. Runs in a child.
fn look_at(workers: &mut [Worker], ports: &Ports) {
    let roots: Vec<_> = workers.iter().filter_map(|worker| worker.pid).map(Pid::from_raw).collect();
    let families = usage::families(&roots);
    let connections = ports.connections();
    for worker in workers {
        let Some(pid) = worker.pid.map(Pid::from_raw) else { continue };
        let family = families.get(&pid).map_or(&[][..], Vec::as_slice);
        worker.memory = usage::resident(pid);
        if family.len() > 1 {
            worker.tree_memory = Some(family.iter().filter_map(|pid| usage::resident(*pid)).sum());
        }
        // Where only the worker knows of some, its word goes before a count of the others.
        if let Some(connections) =
            connections.as_ref().filter(|_| !ports.others || worker.connections.is_none())
        {
            // Where we may not look into one of them its word stands, or nothing is known.
            let held = family.iter().map(|pid| usage::sockets(*pid)).collect::<io::Result<Vec<_>>>();
            if let Ok(held) = held {
                let held: BTreeSet<_> = held.into_iter().flatten().collect();
                worker.connections = u64::try_from(held.intersection(connections).count()).ok();
            }
        }
    }
}
