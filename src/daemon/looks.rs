//! The forked child that looks whether starting workers serve, as the kernel tells (`[ready] when = "accepting"`).
//!
//! A look reads files of /proc, which may wait for the process that they are of. The manager never waits: it has a child look. All
//! workers that are to be looked at in a turn share a child. Those that come to it later share the next one, which begins when the
//! first has ended, so there is one such child at a time.

use std::collections::BTreeSet;
use std::io;
use std::mem;
use std::time::Duration;

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::control::Ports;
use super::host::{Ended, Failure, Job};
use super::run::{Daemon, Role};
use crate::core::Event;
use crate::core::ids::WorkerId;
use crate::core::sight::{Lack, Sight};
use crate::core::spec::Protocol;
use crate::plain::Credentials;
use crate::sys::file_rights::with_rights_of;
use crate::sys::fork::in_child;
use crate::sys::handover::{hand_over, plain};
use crate::sys::process::descendants;
use crate::sys::waiting::{Sockets, Waits, waits};
use crate::sys::{own_listeners, usage};

/// How long a look may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The look under way, and who is to be looked at next.
#[derive(Debug, Default)]
pub struct Looks {
    pub(super) under_way: Option<Look>,
    pub(super) wanted: Vec<Wanted>,
}

/// A worker that is to be looked at, and what for.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Wanted {
    worker: WorkerId,
    question: Question,
}

/// What a look is to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Question {
    /// Whether the worker waits for connections.
    Waits,
    /// Whether it listens, if the worker that it replaces does.
    Beside(WorkerId),
    /// Where it listens by itself, for a hint in the log.
    Bound,
}

/// What a look has told.
#[derive(Debug, Serialize, Deserialize)]
enum Seen {
    Sight(Sight),
    /// The address on which the worker listens by itself, if there is one.
    Bound(Option<String>),
}

plain!(Wanted);

/// A look under way.
#[derive(Debug)]
pub struct Look {
    wanted: Vec<Wanted>,
}

hand_over!(Look as LookState {
    wanted: Vec<Wanted>,
});

/// What the child needs to know of a worker.
struct Subject {
    worker: WorkerId,
    root: Pid,
    question: Question,
    /// The main process of the worker that it replaces.
    beside: Option<Pid>,
    /// The sockets that it has inherited.
    inherited: Sockets,
    /// All sockets that the manager has bound: another generation may have inherited others.
    managed: Sockets,
    /// Who it is, where that is not who the manager is.
    user: Option<Credentials>,
}

impl Daemon {
    /// Has a starting worker looked at, at the end of the turn.
    pub(super) fn want_look(&mut self, worker: WorkerId, beside: Option<WorkerId>) {
        let process = self.running(worker);
        let of = process.and_then(|process| self.generations.get(&process.generation));
        // The others say themselves that they are ready, or the manager binds for them when they listen.
        let is_plain = of.is_some_and(|of| of.release.spec.process.protocol == Protocol::Plain);
        if beside.is_some() && !is_plain {
            self.inbox.push_back(Event::Looked(worker, Sight::Serves));
        } else {
            let question = beside.map_or(Question::Waits, Question::Beside);
            self.loose_ends.looks.wanted.push(Wanted { worker, question });
        }
    }

    /// Has it looked where a worker that says nothing listens by itself.
    pub(super) fn want_bound(&mut self, worker: WorkerId) {
        self.loose_ends.looks.wanted.push(Wanted { worker, question: Question::Bound });
    }

    /// Begins a look where one is wanted and none is under way.
    pub(super) fn begin_look(&mut self) {
        if self.loose_ends.looks.under_way.is_some() || self.loose_ends.looks.wanted.is_empty() {
            return;
        }
        let wanted = mem::take(&mut self.loose_ends.looks.wanted);
        // One that has ended is not waited for.
        let subjects: Vec<_> = wanted.iter().filter_map(|wanted| self.subject(*wanted)).collect();
        if subjects.is_empty() {
            return;
        }
        let ports = self.ports();
        let work = in_child(move || {
            let seen: Vec<_> =
                subjects.iter().map(|subject| (subject.worker, subject.look(&ports))).collect();
            serde_json::to_vec(&seen).unwrap_or_default()
        });
        match work.and_then(|work| self.begin_job(Role::Look, Job::work(work), Some(PATIENCE))) {
            Ok(_) => self.loose_ends.looks.under_way = Some(Look { wanted }),
            Err(error) => self.cannot_look(&wanted, &error.to_string()),
        }
    }

    fn subject(&self, Wanted { worker, question }: Wanted) -> Option<Subject> {
        let process = self.running(worker)?;
        let of = self.generations.get(&process.generation)?;
        let inherited = Sockets::of(of.sockets.listeners.iter().map(AsRef::as_ref)).unwrap_or_default();
        let managed = self.sockets.listeners();
        let managed = Sockets::of(managed.iter().map(AsRef::as_ref)).unwrap_or_default();
        Some(Subject {
            worker,
            root: process.pid,
            question,
            beside: match question {
                Question::Beside(beside) => self.running(beside).map(|process| process.pid),
                Question::Waits | Question::Bound => None,
            },
            inherited,
            managed,
            user: of.release.credentials.clone(),
        })
    }

    /// Takes the child's end.
    pub(super) fn look_ended(&mut self, ended: Ended) {
        let Some(look) = self.loose_ends.looks.under_way.take() else { return };
        let seen = ended.result.map_err(|failure| match failure {
            Failure::TooLate => format!("it took more than {} s to look", PATIENCE.as_secs()),
            failure => format!("the process that was to look {failure}"),
        });
        let unreadable = |error: serde_json::Error| error.to_string();
        match seen
            .and_then(|()| serde_json::from_slice::<Vec<(WorkerId, Seen)>>(&ended.said).map_err(unreadable))
        {
            Ok(seen) => {
                for (worker, seen) in seen {
                    match seen {
                        Seen::Sight(sight) => self.inbox.push_back(Event::Looked(worker, sight)),
                        Seen::Bound(Some(address)) => self.tell_bound(worker, address),
                        Seen::Bound(None) => {}
                    }
                }
            }
            Err(why) => self.cannot_look(&look.wanted, &why),
        }
    }

    fn cannot_look(&mut self, wanted: &[Wanted], why: &str) {
        let hidden = |wanted: &Wanted| Event::Looked(wanted.worker, Sight::Hidden(why.to_owned()));
        // A hint is not missed.
        let is_waited_for = |wanted: &&Wanted| wanted.question != Question::Bound;
        self.inbox.extend(wanted.iter().filter(is_waited_for).map(hidden));
    }
}

/// A process and all that descend from it.
fn tree(root: Pid) -> Vec<Pid> {
    std::iter::once(root).chain(descendants(root)).collect()
}

/// The sockets that the processes of a tree hold.
///
/// # Errors
///
/// We may not look into one of them.
fn held_by(processes: &[Pid]) -> io::Result<BTreeSet<u32>> {
    let held = processes.iter().map(|pid| usage::sockets(*pid)).collect::<io::Result<Vec<_>>>()?;
    Ok(held.into_iter().flatten().collect())
}

impl Subject {
    /// Looks at the worker. Runs in a child.
    fn look(&self, ports: &Ports) -> Seen {
        match (self.question, self.beside) {
            (Question::Bound, _) => Seen::Bound(self.bound()),
            (Question::Waits, _) => Seen::Sight(self.look_for_waiting(ports)),
            // The worker that it replaces has ended meanwhile.
            (Question::Beside(_), None) => Seen::Sight(Sight::Serves),
            (Question::Beside(_), Some(beside)) => Seen::Sight(self.look_beside(beside)),
        }
    }

    /// Returns the address of a socket on which the worker listens, and which the manager did not bind.
    fn bound(&self) -> Option<String> {
        let held = held_by(&tree(self.root)).ok()?;
        let listeners = own_listeners::all().ok()?;
        held.difference(self.managed.inodes()).find_map(|inode| listeners.get(inode)).cloned()
    }

    fn look_for_waiting(&self, ports: &Ports) -> Sight {
        let processes = tree(self.root);
        match self.waits(&processes) {
            Waits::Yes => Sight::Serves,
            // One that has no time to wait, as connections come without a pause, holds one of them.
            _ if self.has_accepted(&processes, ports) => Sight::Serves,
            Waits::No => Sight::NotYet(Lack::Waiting),
            Waits::Hidden(why) => Sight::Hidden(why),
        }
    }

    /// Whether a process of a tree holds a connection that has come to a socket of the file.
    fn has_accepted(&self, processes: &[Pid], ports: &Ports) -> bool {
        let held = held_by(processes).unwrap_or_default();
        let mut held = held.difference(self.inherited.inodes()).peekable();
        held.peek().is_some()
            && ports.connections().is_some_and(|connections| held.any(|inode| connections.contains(inode)))
    }

    /// Whether a process of a tree waits for connections on a socket of the file.
    fn waits(&self, processes: &[Pid]) -> Waits {
        match (waits(processes, &self.inherited), &self.user) {
            // Root may not look into the processes of others where it was left without CAP_SYS_PTRACE: they themselves may.
            (Waits::Hidden(_), Some(user)) => with_rights_of(user, || waits(processes, &self.inherited)),
            (seen, _) => seen,
        }
    }

    /// Whether the worker listens, if the one that it replaces listens on an address of its own. A descriptor that it has inherited
    /// proves nothing, but to wait on one does.
    fn look_beside(&self, beside: Pid) -> Sight {
        let own = |held: BTreeSet<u32>| &held - self.managed.inodes();
        let listeners = match own_listeners::all() {
            Ok(listeners) => listeners,
            Err(error) => return Sight::Hidden(format!("the kernel does not list sockets: {error}")),
        };
        // What may not be looked into asks for nothing.
        let before = held_by(&tree(beside)).map(own).unwrap_or_default();
        let Some(address) = before.iter().find_map(|inode| listeners.get(inode)) else {
            return Sight::Serves;
        };
        let processes = tree(self.root);
        match held_by(&processes).map(own) {
            Ok(held) if held.iter().any(|inode| listeners.contains_key(inode)) => Sight::Serves,
            Ok(_) if self.waits(&processes) == Waits::Yes => Sight::Serves,
            Ok(_) => Sight::NotYet(Lack::Listening(address.clone())),
            Err(error) => Sight::Hidden(format!("its processes may not be looked into: {error}")),
        }
    }
}
