//! Node programs as workers: their channel, and the sockets that they ask for.
//!
//! The manager plays the primary of Node's `cluster` (docs/protocols.md). A worker asks for what it listens on and gets a
//! socket that is bound once, shared by all workers and generations, and let go of when no generation uses it any more. That
//! it listens is its readiness, and to be disconnected its drain.
//!
//! ```text
//! channel   one worker's channel: lines in, lines and descriptors out          demand   the sockets that were asked for
//! ```

mod channel;
mod demand;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use nix::unistd::geteuid;
use tracing::{debug, info};

pub(super) use self::channel::Channel;
use self::channel::Standing;
use self::demand::Asking;
pub(super) use self::demand::{Demanded, DemandedState};
use super::host::Timer;
use super::release::Release;
use super::run::Daemon;
use crate::core::ids::WorkerId;
use crate::core::spec::{SocketAddress, SocketKind, SocketSpec};
use crate::core::word::Word;
use crate::core::{self, Event};
use crate::wire::node::{Answer, Drain, Place, Query, Said};

/// How long a draining worker keeps idle connections open. A client that pauses for less before it uses a connection again does not find
/// it closed: its next answer says `Connection: close`.
const LINGER: Duration = Duration::from_secs(2);

/// How long a worker that was told to go, and has nothing left to serve, has to end by itself. It may have something to bring to an
/// end; and it may never end, where it has a pool of connections to a database for instance: it is sent its drain signal.
const ENDING: Duration = Duration::from_secs(10);

/// How long a worker that has closed its channel unasked has to exit: the news of its death says more than that it stops.
const EXITING: Duration = Duration::from_secs(1);

/// How soon it is tried again to hand a socket over where too many are on their way.
const CROWDED: Duration = Duration::from_millis(100);

/// How often it is read what a worker that has ended had said.
const LAST_TURNS: usize = 64;

/// Has Node programs load a module before anything else, beside what they were to load anyway.
pub(super) fn load_first(
    module: &Path,
    variables: &mut BTreeMap<&OsStr, Cow<'_, OsStr>>,
    by_slot: &mut [(String, String)],
) {
    const OPTIONS: &str = "NODE_OPTIONS";
    let quoted = module.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\"");
    let more = format!(" --require \"{quoted}\"");
    if let Some((_, value)) = by_slot.iter_mut().find(|(name, _)| name == OPTIONS) {
        value.push_str(&more);
    } else {
        let value = variables.entry(OsStr::new(OPTIONS)).or_default();
        value.to_mut().push(more);
    }
}

impl Daemon {
    /// Takes what a worker has said on its channel, as much as one may say before others get their turn.
    pub(super) fn hear_node(&mut self, worker: WorkerId) {
        let Some(channel) = self.channel(worker) else { return };
        let heard = channel.listen();
        for said in heard {
            self.take_said(worker, said);
        }
        self.tend_channel(worker);
    }

    /// Takes the last words of a worker that has ended, and lets go of its channel.
    pub(super) fn hear_to_the_end(&mut self, worker: WorkerId) {
        for _ in 0..LAST_TURNS {
            let Some(channel) = self.channel(worker).filter(|channel| channel.is_readable()) else { break };
            let heard = channel.listen();
            // Nobody is there any more to be given a socket.
            for said in heard.into_iter().filter(|said| matches!(said, Said::Listening)) {
                self.take_said(worker, said);
            }
        }
        let Some(process) = self.processes.get_mut(&worker) else { return };
        (process.lingers_until, process.tries_again_at) = (None, None);
        self.host.timers.clear(Timer::Lingering(worker));
        self.host.timers.clear(Timer::Send(worker));
        process.channel = None;
    }

    fn channel(&mut self, worker: WorkerId) -> Option<&mut Channel> {
        self.processes.get_mut(&worker).and_then(|process| process.channel.as_mut())
    }

    fn take_said(&mut self, worker: WorkerId, said: Said) {
        let word = match said {
            Said::Query(query) => {
                self.answer_query(worker, &query);
                return;
            }
            Said::Listening => Word::Ready,
            Said::Leaves(seq) => {
                self.say_to_node(worker, &Answer::Noted { seq, drain: self.drain_of(worker) });
                Word::Stopping
            }
            Said::Closed(key) => {
                self.closed_by(worker, &key);
                return;
            }
            Said::Descriptor => {
                // Nobody wants it, but its sender waits.
                self.say_to_node(worker, &Answer::Arrived);
                return;
            }
            Said::NotArrived => {
                debug!("worker {worker}: a socket did not arrive");
                return;
            }
            Said::Other => return,
        };
        self.inbox.push_back(Event::Said(worker, word));
    }

    fn say_to_node(&mut self, worker: WorkerId, answer: &Answer<'_>) {
        if let Some(channel) = self.channel(worker) {
            channel.say(answer, None);
        }
    }

    fn answer_query(&mut self, worker: WorkerId, query: &Query) {
        let Some(process) = self.processes.get(&worker) else { return };
        let Some(channel) = process.channel.as_ref() else { return };
        if channel.standing() != Standing::Open {
            return;
        }
        let Some(of) = self.generations.get(&process.generation) else { return };
        let seq = query.seq;
        let by = Asking { generation: process.generation, slot: process.slot, held: channel.held.clone() };
        let found = match &query.place {
            Place::Nowhere(errno) => Err(*errno),
            // Those of the service file, which it has from 3 up.
            Place::Inherited(fd) => {
                let place = usize::try_from(*fd).ok().and_then(|fd| fd.checked_sub(3));
                let listener = place.and_then(|place| of.sockets.listeners.get(place)).cloned();
                let key = format!("fd {fd}");
                let data = serde_json::Value::Null;
                if let Some(listener) = &listener {
                    self.suit_backlog(listener, query.backlog);
                }
                listener.map(|listener| Demanded::new(key, listener, data)).ok_or(libc::EBADF)
            }
            Place::At(spec) => match may_have(spec, &of.release) {
                Ok(()) => self.demand(&by, spec, query),
                Err(errno) => Err(errno),
            },
            Place::Everywhere { port, backlog } => {
                let either = [true, false].map(|is_ipv6| Place::everywhere(is_ipv6, *port, *backlog));
                let may_have = either.each_ref().map(|spec| may_have(spec, &of.release));
                match may_have[0].and_then(|()| self.demand(&by, &either[0], query)) {
                    // There is no IPv6 here.
                    Err(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EINVAL) => {
                        may_have[1].and_then(|()| self.demand(&by, &either[1], query))
                    }
                    found => found,
                }
            }
        };
        let Some(channel) = self.channel(worker) else { return };
        let hand_out = |socket: Demanded| {
            // Node takes it that what comes along a channel does not block.
            socket.listener.set_non_blocking()?;
            let copy = socket.listener.as_fd().try_clone_to_owned()?;
            io::Result::Ok((socket, copy))
        };
        let errno = |error: io::Error| error.raw_os_error().unwrap_or(libc::EMFILE);
        match found.and_then(|socket| hand_out(socket).map_err(errno)) {
            Ok((socket, copy)) => {
                let is_datagram = socket.listener.plan().spec.kind == SocketKind::Datagram;
                let answer = Answer::Socket { seq, key: &socket.key, data: &socket.data, is_datagram };
                channel.say(&answer, Some(copy));
                channel.held.insert(socket.key);
            }
            Err(errno) => channel.say(&Answer::NoSocket { seq, errno }, None),
        }
    }

    /// Writes what waits for a worker, and has its channel watched for what is to come.
    pub(super) fn tend_channel(&mut self, worker: WorkerId) {
        let now = self.now();
        let Some(process) = self.processes.get_mut(&worker) else { return };
        let Some(channel) = &mut process.channel else { return };
        channel.flush();
        if channel.is_closed() {
            let time = if channel.standing() == Standing::Left { ENDING } else { EXITING };
            process.channel = None;
            self.let_linger(worker, time);
            return;
        }
        let _ = channel.watch(&self.host.poller, worker);
        process.tries_again_at = channel.is_crowded().then(|| now + CROWDED);
        self.host.timers.set(Timer::Send(worker), process.tries_again_at);
    }

    fn drain_of(&self, worker: WorkerId) -> Drain {
        let of = self.processes.get(&worker).and_then(|process| self.generations.get(&process.generation));
        let timeout = of.map_or(Duration::MAX, |of| of.release.spec.policy.drain_timeout);
        Drain { linger: LINGER.min(timeout / 2), timeout }
    }

    /// Asks a worker to drain by its channel; returns whether it has one.
    pub(super) fn disconnect(&mut self, worker: WorkerId) -> bool {
        let drain = self.drain_of(worker);
        let Some(channel) = self.channel(worker) else { return false };
        channel.leave(drain);
        self.tend_channel(worker);
        true
    }

    /// Sends the drain signal to a worker that was to stop, has closed its channel and does not end. One that was to serve is taken to
    /// stop by itself.
    pub(super) fn end_lingering(&mut self, worker: WorkerId) {
        let Some(process) = self.processes.get_mut(&worker) else { return };
        if process.lingers_until.take().is_none() {
            return;
        }
        if self.manager.worker(worker).is_some_and(core::Worker::is_live) {
            // All that it had to serve with is closed.
            self.inbox.push_back(Event::Said(worker, Word::Stopping));
            self.let_linger(worker, EXITING);
            return;
        }
        info!("worker {worker} has closed its servers and does not end; it is sent its drain signal");
        self.signal_to_drain(worker);
    }

    /// Gives a worker that has closed its channel time to end by itself.
    fn let_linger(&mut self, worker: WorkerId, time: Duration) {
        let until = self.now() + time;
        if let Some(process) = self.processes.get_mut(&worker) {
            process.lingers_until = Some(until);
            self.host.timers.set(Timer::Lingering(worker), until);
        }
    }
}

/// Whether workers may have a socket that they ask for: what a worker that is another user than we are could not bind for
/// itself is for the service file alone to grant.
fn may_have(spec: &SocketSpec, release: &Release) -> Result<(), i32> {
    let is_other = release.credentials.as_ref().is_some_and(|who| who.uid != geteuid().as_raw());
    if !is_other || release.spec.sockets.iter().any(|granted| grants(granted, spec)) {
        return Ok(());
    }
    match &spec.address {
        SocketAddress::Inet(address) if address.port() == 0 || address.port() >= first_free_port() => Ok(()),
        SocketAddress::Inet(_) | SocketAddress::Path(_) => Err(libc::EACCES),
        SocketAddress::Abstract(_) => Ok(()),
    }
}

/// Whether a socket of the service file is the one that is asked for. A port number is granted for one kind alone: a TCP port
/// says nothing of the UDP port of that number.
fn grants(granted: &SocketSpec, asked: &SocketSpec) -> bool {
    granted.address == asked.address && granted.kind == asked.kind
}

/// The first port that needs no privilege (ip(7), `ip_unprivileged_port_start`).
fn first_free_port() -> u16 {
    let setting = std::fs::read_to_string(Path::new("/proc/sys/net/ipv4/ip_unprivileged_port_start"));
    setting.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1024)
}
