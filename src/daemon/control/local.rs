//! `[control] local_owner`: who comes to a loopback address from a process of the manager's user or of root needs no token.
//!
//! The kernel tells who made the other end of a connection. Whoever else has that socket speaks by it all the same, so every
//! process that holds it is looked at as well: each is root's or the manager's user's, and none is the manager itself or a process of
//! the service. /proc may be slow where there are many processes, so a child looks; the client is not heard meanwhile.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use nix::unistd::{Pid, geteuid, getpid};
use tracing::{debug, warn};

use super::super::host::{Ended, Failure, Host, Job};
use super::super::run::{Daemon, Role};
use super::super::token::ClientId;
use super::Control;
use super::client::Trust;
use super::door::full;
use crate::core::time::Mono;
use crate::sys::cgroup;
use crate::sys::control_tcp::local_end;
use crate::sys::fork::in_child;
use crate::sys::handover::{HandOver, Luggage, Unpacked};
use crate::sys::holders::{self, Holders, holders};
use crate::sys::process;
use crate::sys::sock_diag::End;
use crate::sys::stream_socket::StreamSocket;
use crate::sys::usage;

/// How long a look may take; a client has twice that to show the token.
const PATIENCE: Duration = Duration::from_secs(5);

/// The clients that a child looks at, and those that came since it began.
#[derive(Debug, Default)]
pub struct Examinations {
    under_way: Option<Examination>,
    pub(super) next: Vec<(ClientId, End)>,
}

#[derive(Debug)]
struct Examination {
    clients: Vec<(ClientId, End)>,
}

/// What belongs to the service, so that it may not speak for its owner.
struct Service {
    manager: Pid,
    workers: Vec<Pid>,
    /// How the names of its control groups begin.
    cgroup: Option<String>,
}

/// A look does not outlive a re-exec: the clients must show the token then.
impl HandOver for Examinations {
    type State = ();

    fn pack(&self, _: &mut Luggage) {}

    fn unpack((): (), _: &mut Unpacked) -> io::Result<Self> {
        Ok(Self::default())
    }
}

impl Control {
    /// Returns the other end of a connection by TCP, where `local_owner` may let it in: root or our user has made it.
    pub(super) fn may_be_owner(&self, stream: &StreamSocket) -> Option<End> {
        let end = if self.local_owner { local_end(stream).ok()?? } else { return None };
        holders::is_trusted(end.maker).then_some(end)
    }

    /// Has those show the token that nobody looks at any more, as after a re-exec.
    pub(in super::super) fn end_examinations(&mut self, now: Mono) {
        for client in self.clients.values_mut().filter(|client| client.trust == Trust::Examined) {
            client.examined(false, now);
        }
    }
}

impl Control {
    fn end_examination(&mut self, clients: &[(ClientId, End)], verdicts: &[u8], host: &mut Host) {
        let now = host.now();
        let verdicts = verdicts.iter().map(|verdict| *verdict == 1).chain(std::iter::repeat(false));
        for ((id, end), may_speak) in clients.iter().zip(verdicts) {
            let Some(client) = self.clients.get_mut(id) else { continue };
            // The connection is still the one that was looked at.
            let is_same = local_end(&client.stream).is_ok_and(|now| now == Some(*end));
            client.examined(may_speak && is_same, now);
            if client.trust == Trust::Wary && !self.make_room(Some(*id), false, host) {
                self.let_client_go(*id, &full(), host);
            }
        }
    }
}

impl Daemon {
    /// Has a child look who holds the other ends of clients' connections, where there are such.
    pub(super) fn begin_examination(&mut self) {
        if self.control.examinations.under_way.is_some() || self.control.examinations.next.is_empty() {
            return;
        }
        let mut clients = std::mem::take(&mut self.control.examinations.next);
        clients.retain(|(client, _)| self.control.clients.contains_key(client));
        if clients.is_empty() {
            return;
        }
        let service = Service {
            manager: getpid(),
            workers: self.processes.values().map(|process| process.pid).collect(),
            cgroup: self.cgroups.prefix(),
        };
        let ends: Vec<_> = clients.iter().map(|(_, end)| *end).collect();
        // So few bytes that the child never waits for us.
        let work = in_child(move || verdicts(&ends, &service).into_iter().map(u8::from).collect());
        match work.and_then(|work| self.begin_job(Role::Examination, Job::work(work), Some(PATIENCE))) {
            Ok(_) => self.control.examinations.under_way = Some(Examination { clients }),
            Err(error) => {
                warn!("cannot look who speaks by TCP: {error}");
                self.control.end_examination(&clients, &[], &mut self.host);
            }
        }
    }

    /// Takes the end of a look.
    pub(in super::super) fn examined(&mut self, ended: &Ended) {
        let Some(examination) = self.control.examinations.under_way.take() else { return };
        if let Err(Failure::TooLate) = ended.result {
            warn!("looking who speaks by TCP took more than {} s", PATIENCE.as_secs());
        }
        let verdicts = if ended.result.is_ok() { &ended.said[..] } else { &[] };
        self.control.end_examination(&examination.clients, verdicts, &mut self.host);
        self.begin_examination();
    }
}

/// Whether those who hold these ends may speak. Runs in a child.
fn verdicts(ends: &[End], service: &Service) -> Vec<bool> {
    let held = holders(&ends.iter().map(|end| end.inode).collect());
    let mut roots = service.workers.clone();
    roots.push(service.manager);
    let of_service: BTreeSet<Pid> = usage::families(&roots).into_values().flatten().collect();
    let is_of_service = |pid: Pid| {
        let in_group = |prefix: &String| cgroup::of_process(pid).is_none_or(|name| name.starts_with(prefix));
        of_service.contains(&pid) || service.cgroup.as_ref().is_some_and(in_group)
    };
    ends.iter().map(|end| may_speak(*end, &held, is_of_service)).collect()
}

fn may_speak(end: End, held: &Holders, is_of_service: impl Fn(Pid) -> bool) -> bool {
    // Root sees every process, but where it lacks CAP_SYS_PTRACE. Another user sees its own ones alone.
    let own = geteuid().as_raw();
    let may_be_hidden = if own == 0 { held.hidden.is_some() } else { end.maker != own };
    let Some(pids) = held.of.get(&end.inode).filter(|_| !may_be_hidden) else {
        debug!("no process, or a hidden one, holds the client's end");
        return false;
    };
    let is_trusted =
        |pid: &Pid| process::users(*pid).is_some_and(|all| all.into_iter().all(holders::is_trusted));
    pids.iter().all(|pid| is_trusted(pid) && !is_of_service(*pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(pids: &[Pid], hidden: Option<Pid>, of_service: bool) -> bool {
        let own = geteuid().as_raw();
        let mut held = Holders { hidden, ..Holders::default() };
        if !pids.is_empty() {
            held.of.insert(7, pids.iter().copied().collect());
        }
        may_speak(End { maker: own, inode: 7 }, &held, |_| of_service)
    }

    #[test]
    fn whoever_holds_the_socket_must_be_trusted_and_none_of_the_service() {
        let (own, gone) = (getpid(), Pid::from_raw(i32::MAX));
        assert!(judged(&[own], None, false));
        assert!(!judged(&[], None, false), "somebody holds it, and hides");
        assert!(!judged(&[own], None, true));
        assert!(!judged(&[own, gone], None, false), "its user is not known");
        if geteuid().is_root() {
            assert!(!judged(&[own], Some(gone), false), "who holds it besides cannot be seen");
        }
    }
}
