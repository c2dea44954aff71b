//! A process for each connection (`accept = true`), as systemd's `Accept=yes` and inetd have it: its standard input and output
//! are the connection.
//!
//! The core knows nothing of them, as nothing is decided about them: they come with the client and go with it. An upgrade
//! lets them finish as they are; a stop has them drain.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tracing::{debug, info, warn};

use super::host::{Job, Timer};
use super::launch;
use super::run::{Daemon, Role};
use super::sockets::Listener;
use super::token::{Token, Watched};
use crate::core::Event;
use crate::core::spec::Accept;
use crate::core::time::Mono;
use crate::sys::foreign::{ForeignFd, are_too_many};
use crate::sys::process;
use crate::sys::reaper::Exit;
use crate::sys::spawn::{Launch, Report, spawn};
use crate::sys::stream_socket::{Peer, accept_blocking, peer};
use crate::sys::wait::Interest;

/// How many connections of one socket are accepted before others get their turn.
const ACCEPTS_A_TURN: usize = 16;

/// The processes of connections, by pid.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Guests {
    all: BTreeMap<i32, Guest>,
    /// It was told that there are too many, and since then none has gone.
    is_full: bool,
}

/// The process of a connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Guest {
    /// By the name of its socket.
    door: String,
    /// Whose it is, by address or user.
    source: String,
    /// When it is killed; none before it was told to drain.
    kill_at: Option<Mono>,
    /// Why its program could not be executed.
    failure: Option<String>,
}

impl Guests {
    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    /// When the last of those is killed that drain.
    pub(super) fn last_end(&self) -> Option<Mono> {
        self.all.values().filter_map(|guest| guest.kill_at).max()
    }

    /// Why nobody else may come, if so.
    fn refuses(&self, door: &str, source: &str, limits: Accept) -> Option<String> {
        let here = self.all.values().filter(|guest| guest.door == door);
        let of_source = here.clone().filter(|guest| guest.source == source).count();
        let (most, most_of_source) = (limits.max_connections, limits.max_connections_per_source);
        if here.count() >= most as usize {
            return Some(format!("there are {most} already (max_connections)"));
        }
        let most = most_of_source.filter(|most| of_source >= *most as usize)?;
        Some(format!("there are {most} already of {source} (max_connections_per_source)"))
    }
}

impl Daemon {
    /// Whether connections have processes of their own.
    pub(super) fn has_guests(&self) -> bool {
        let of = self.generations.get(&self.manager.current());
        of.is_some_and(|of| of.release.spec.policy.workers == 0)
    }

    /// Lets in whoever waits, as far as may be.
    ///
    /// # Errors
    ///
    /// Those of accept4(2) and of a process to be, for want of something; whoever it was waits for the next time.
    pub(super) fn let_in_guests(&mut self) -> io::Result<()> {
        if let Some((door, limits, connection)) = self.on_demand.doors.waiting.take() {
            self.let_in_guest(door, limits, connection)?;
        }
        let Some(of) = self.generations.get(&self.manager.current()) else { return Ok(()) };
        let specs = of.release.spec.sockets.iter();
        let doors = of.sockets.listeners.iter().zip(specs);
        let doors: Vec<_> = doors.filter_map(|(door, spec)| Some((Rc::clone(door), spec.accept?))).collect();
        for (door, limits) in doors {
            for _ in 0..ACCEPTS_A_TURN {
                if are_too_many() {
                    break;
                }
                let Some(connection) = accept_blocking(&*door)? else { break };
                self.let_in_guest(Rc::clone(&door), limits, connection)?;
            }
        }
        Ok(())
    }

    fn let_in_guest(&mut self, door: Rc<Listener>, limits: Accept, connection: ForeignFd) -> io::Result<()> {
        let name = door.plan().spec.name.clone();
        // Or it has gone again.
        let Ok(from) = peer(&connection) else { return Ok(()) };
        let source = from.source();
        if let Some(why) = self.on_demand.guests.refuses(&name, &source, limits) {
            // Once, or whoever floods us floods the log.
            if !std::mem::replace(&mut self.on_demand.guests.is_full, true) {
                warn!("socket `{name}`: a connection of {source} is closed: {why}");
            }
            return Ok(());
        }
        let pid = match self.start_guest(&from, &connection) {
            Ok(pid) => pid,
            Err(error) => {
                self.on_demand.doors.waiting = Some((door, limits, connection));
                return Err(error);
            }
        };
        debug!("socket `{name}`: a connection of {source} has process {pid}");
        if self.on_demand.guests.all.is_empty() {
            self.inbox.push_back(Event::Guests(true));
        }
        let guest = Guest { door: name, source, kill_at: None, failure: None };
        self.on_demand.guests.all.insert(pid.as_raw(), guest);
        Ok(())
    }

    fn start_guest(&mut self, from: &Peer, connection: &ForeignFd) -> io::Result<Pid> {
        let generation = self.manager.current();
        let of = self.generations.get(&generation).ok_or_else(|| io::Error::other("no generation"))?;
        // As systemd names them (systemd.exec(5), `$REMOTE_ADDR`).
        let address = match from {
            Peer::Inet(address) => {
                vec![
                    ("REMOTE_ADDR", address.ip().to_canonical().to_string()),
                    ("REMOTE_PORT", address.port().to_string()),
                ]
            }
            Peer::Unix(_) => Vec::new(),
        };
        let launch = launch::helper(of.place(generation, None), &of.release.spec.process.command, &address)?;
        let ends = Some(connection.as_fd());
        let spawned =
            spawn(Launch { stdin: ends, stdout: ends.map(Into::into), pinned: of.pinned(), ..launch })?;
        let pid = spawned.pid;
        // Its report is read as soon as there is one: kept until its end, it would cost a descriptor for each.
        let spawned = Watched::from(spawned);
        // Unwatched, it is read at its end: the process is there, and has the connection.
        let _ = spawned.watch(&self.host.poller, Token::GuestReport(pid.as_raw()), Interest::Read);
        self.begin_job(Role::Guest, Job::program(spawned), None)
    }

    /// Takes the report whether its program runs. A failure is kept for its end, which is sure to follow.
    pub(super) fn take_guest_report(&mut self, pid: Pid) {
        let Some(guest) = self.host.jobs.get_mut(&pid).and_then(Job::start) else { return };
        let report = guest.report();
        if matches!(report, Ok(Report::NotYet)) {
            return;
        }
        if let Ok(Report::Failed(failure)) = report
            && let Some(of) = self.on_demand.guests.all.get_mut(&pid.as_raw())
        {
            of.failure = Some(failure.to_string());
        }
        self.host.jobs.remove(&pid);
    }

    /// Takes the end of one.
    pub(super) fn guest_ended(&mut self, pid: Pid, exit: Exit) {
        self.take_guest_report(pid);
        let gone = self.on_demand.guests.all.remove(&pid.as_raw());
        self.host.timers.clear(Timer::Guest(pid.as_raw()));
        self.host.jobs.remove(&pid);
        let Some(Guest { door, source, failure, kill_at, .. }) = gone else { return };
        self.on_demand.guests.is_full = false;
        if self.on_demand.guests.all.is_empty() {
            self.inbox.push_back(Event::Guests(false));
        }
        match failure {
            Some(why) => {
                warn!(
                    "socket `{door}`: the process for a connection of {source} could not be started: {why}"
                );
            }
            None if exit == Exit::Code(0) => debug!("socket `{door}`: process {pid} for {source} {exit}"),
            None if kill_at.is_some() && self.is_drain_signal(exit) => {
                debug!(
                    "socket `{door}`: process {pid} for {source} ended by its drain signal, as it was asked to"
                );
            }
            None => info!("socket `{door}`: process {pid} for {source} {exit}"),
        }
    }

    /// Whether it is the signal by which processes are told to finish that ended one.
    fn is_drain_signal(&self, exit: Exit) -> bool {
        let of = self.generations.get(&self.manager.current());
        let drain_signal = of.map(|of| of.release.spec.process.drain_signal);
        matches!(exit, Exit::Signal { number, .. } if Some(number) == drain_signal)
    }

    /// Tells all of them to finish.
    pub(super) fn drain_guests(&mut self) {
        let Some(of) = self.generations.get(&self.manager.current()) else { return };
        let (signal, timeout) = (of.release.spec.process.drain_signal, of.release.spec.policy.drain_timeout);
        let kill_at = self.now() + timeout;
        for (pid, guest) in &mut self.on_demand.guests.all {
            // One that has ended is about to be reaped.
            let _ = process::signal(Pid::from_raw(*pid), signal);
            let kill_at = *guest.kill_at.get_or_insert(kill_at);
            self.host.timers.set(Timer::Guest(*pid), kill_at);
        }
    }

    /// Kills one whose time is over.
    pub(super) fn kill_late_guest(&mut self, pid: Pid) {
        let Some(guest) = self.on_demand.guests.all.get_mut(&pid.as_raw()) else { return };
        // Its end is waited for.
        if guest.kill_at.take().is_some() {
            warn!("process {pid} for {} has not finished in time; SIGKILL", guest.source);
            let _ = process::kill_tree(pid);
        }
    }

    /// Sets the timers of processes that another manager has told to drain.
    pub(super) fn time_guests(&mut self) {
        for (pid, guest) in &self.on_demand.guests.all {
            self.host.timers.set(Timer::Guest(*pid), guest.kill_at);
        }
    }

    /// Kills all of them.
    pub(super) fn kill_guests(&self) {
        for pid in self.on_demand.guests.all.keys() {
            let _ = process::kill_tree(Pid::from_raw(*pid));
        }
    }
}
