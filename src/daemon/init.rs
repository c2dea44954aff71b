//! The first process of a container, which looks after the manager: a child of its own.
//!
//! The kernel ends a PID namespace with its first process (pid_namespaces(7)), so that must not be one that may crash. This
//! one decides nothing: it reaps what is left to it, passes signals on, keeps the sockets as systemd's store would
//! (sd_notify(3), `FDSTORE=1`), and if the manager is killed it says so and starts another, which takes the workers over
//! ([`super::recovery`]).

mod launch;
mod record;
mod upward;

use std::env;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use nix::unistd::{Pid, getpid};
use tracing::{error, info, warn};

use self::record::{Next, Record, TRIES, status_of};
use self::upward::Upward;
use super::loose_ends::tell_stalls;
use super::outlet::Outputs;
use super::token::{Poller, Token, Watched};
use super::{BUG, ManagerError, system_store};
use crate::core::time::Mono;
use crate::core::word::Word;
use crate::sys::activation::{self, Inherited};
use crate::sys::clock::monotonic_micros;
use crate::sys::exec::{RUNNING, own_program};
use crate::sys::foreign::{Closers, ForeignFd};
use crate::sys::notify_socket::{Datagram, NotifySocket};
use crate::sys::process;
use crate::sys::reaper::{self, Exit};
use crate::sys::signals::{ControllingTerminal, Signal, Signals};
use crate::sys::spawn::{Report, Spawned, spawn};
use crate::sys::stall::StallTimer;
use crate::sys::strings::CStrings;
use crate::sys::wait::Interest;
use crate::wire::notify::{Descriptors, MAX_DATAGRAM, parse};

/// After so long a manager that has said nothing is signalled all the same; and where it has nobody to speak to.
const SILENCE: Duration = Duration::from_secs(5);
const MUTE: Duration = Duration::from_millis(500);

/// A manager that cannot say that it is ready has served if it has lived for so long.
const LIFE: Duration = Duration::from_secs(10);

/// By this a manager knows that its signals were looked at: none of them is a terminal's hang-up.
const INIT_VARIABLE: &str = "LIVESWAP_INIT";

/// The folders that a container may have for a socket.
const FOLDERS: [&str; 3] = ["/run", "/tmp", "/dev/shm"];

/// How many children are reaped before others get their turn.
const REAPED_A_TURN: usize = 256;

/// Looks after a manager until that has ended for good, and returns its exit status; `None` where this process is not the
/// first of its namespace, and so is to be the manager itself.
///
/// # Errors
///
/// Signals or epoll cannot be had.
pub fn run() -> Option<Result<ExitCode, ManagerError>> {
    let is_first = getpid() == Pid::from_raw(1);
    let io = |source| ManagerError::Io { doing: "looking after the manager", source };
    is_first.then(|| {
        let inherited = activation::take()?;
        let mut init = Init::new(inherited).map_err(io)?;
        init.run().map_err(io)
    })
}

struct Init {
    poller: Poller,
    signals: Watched<Signals>,
    terminal: ControllingTerminal,
    outputs: Outputs,
    program: CStrings,
    /// Where the manager speaks to us.
    notify: Option<Watched<NotifySocket>>,
    /// Whom we pass it on to.
    upward: Upward,
    /// What an activator has handed to us, and behind it what managers have stored.
    kept: Vec<Inherited>,
    /// The children that close what came from outside.
    closers: Closers,
    manager: Option<Spawned>,
    /// Whether the manager has said anything: from then on it obeys signals.
    is_up: bool,
    /// When it is taken to obey them though it has said nothing.
    up_at: Option<Mono>,
    /// When it was started.
    started: Mono,
    /// Signals that wait for that.
    waiting: Vec<Signal>,
    /// The end that somebody wants, and that a manager which crashed has not brought about.
    stop: Option<Signal>,
    /// No manager brings it about: it is our own to see to, with this status.
    ending: Option<i32>,
    /// The program at its path could not be executed: once our own is.
    own_program: bool,
    record: Record,
    /// When another manager is started.
    start_at: Option<Mono>,
    ended: Option<i32>,
    /// More children have ended than were reaped in the last turn.
    reaps_again: bool,
}

impl Init {
    fn new(inherited: Vec<Inherited>) -> io::Result<Self> {
        let signals = Watched::from(Signals::install()?);
        let poller = Poller::new()?;
        signals.watch(&poller, Token::Signals, Interest::Read)?;
        // The first are the manager's own, and may be written to where others may not.
        let own =
            ["RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"].into_iter().filter_map(env::var_os).map(PathBuf::from);
        let mut folders = own.chain(FOLDERS.into_iter().map(PathBuf::from));
        let notify = folders.find_map(|folder| NotifySocket::bind(&folder).ok()).map(Watched::from);
        if let Some(notify) = &notify {
            notify.watch(&poller, Token::Manager, Interest::Read)?;
        } else {
            let folders = FOLDERS.join(", ");
            warn!("no folder takes a socket ({folders}): those of the manager live and die with its workers");
        }
        // As it was called, so that what is there later is what is started; else as it is now.
        let program = CStrings::of([own_program()?.as_os_str().as_bytes(), RUNNING.as_bytes()])?;
        Ok(Self {
            poller,
            signals,
            terminal: ControllingTerminal::observe(),
            outputs: Outputs::open()?,
            program,
            notify,
            upward: Upward::from_environment(),
            kept: inherited,
            closers: Closers::default(),
            manager: None,
            is_up: false,
            up_at: None,
            started: Mono::ZERO,
            waiting: Vec::new(),
            stop: None,
            ending: None,
            own_program: false,
            record: Record::default(),
            start_at: Some(Mono::ZERO),
            ended: None,
            reaps_again: false,
        })
    }

    fn run(&mut self) -> io::Result<ExitCode> {
        let mut ready = Vec::new();
        let mut stall = StallTimer::new()?;
        loop {
            self.start_if_due();
            if let Err(error) = self.closers.run() {
                warn!("cannot start a closer of descriptors: {error}; trying again");
            }
            self.outputs.flush(&self.poller);
            if let Some(status) = self.ended {
                // A status has eight bits (exit(3)).
                return Ok(ExitCode::from(status.to_le_bytes()[0]));
            }
            let timers = [self.start_at, self.up_at].into_iter().flatten().map(|at| at - now());
            let timers = timers.chain(self.upward.send()).chain(self.closers.time_left());
            let timeout = timers.chain(self.reaps_again.then_some(Duration::ZERO)).min();
            if tell_stalls(stall.stop()) {
                self.outputs.flush(&self.poller);
            }
            self.poller.wait(timeout, &mut ready)?;
            stall.start();
            // Whoever has died was heard before.
            if ready.iter().any(|ready| ready.key == Token::Manager) {
                self.listen();
            }
            if ready.iter().any(|ready| ready.key == Token::Signals) {
                self.take_signals();
            }
            if self.reaps_again {
                self.reap();
            }
            if self.up_at.take_if(|at| *at <= now()).is_some() {
                self.is_up = true;
                self.pass_on();
            }
        }
    }

    fn start_if_due(&mut self) {
        if self.start_at.is_none_or(|at| at > now()) {
            return;
        }
        self.start_at = None;
        self.started = now();
        self.up_at = Some(self.started + if self.notify.is_some() { SILENCE } else { MUTE });
        match self.launch().and_then(spawn) {
            Ok(manager) => self.manager = Some(manager),
            Err(error) => {
                error!("the manager cannot be started: {error}");
                self.go_on(Exit::Code(BUG));
            }
        }
    }

    /// Hears the manager, and passes its words on to whoever looks after the container.
    fn listen(&mut self) {
        let mut buffer = [0; MAX_DATAGRAM];
        while let Some(notify) = &self.notify {
            match notify.receive(&mut buffer) {
                Ok(Some(datagram)) => self.hear(&buffer[..datagram.len], datagram),
                Ok(None) => break,
                Err(error) => {
                    warn!("cannot read what the manager says: {error}");
                    break;
                }
            }
        }
    }

    fn hear(&mut self, text: &[u8], datagram: Datagram) {
        // The folder is anybody's to read, so the path is no secret.
        let by_manager = self.manager.as_ref().is_some_and(|manager| {
            datagram.sender.as_ref().is_some_and(|sender| sender.pid == manager.pid.as_raw())
        });
        if !by_manager || datagram.truncated || datagram.control_truncated {
            return;
        }
        let Ok(message) = parse(text, datagram.descriptors.len()) else { return };
        (self.is_up, self.up_at) = (true, None);
        self.pass_on();
        if message.words.contains(&Word::Ready) {
            self.record.note_ready();
        }
        if let Some(name) = message.forget {
            self.kept.retain(|kept| kept.name != name);
        } else if let Descriptors::Store { name, .. } = message.descriptors {
            // Each is stored once: the name says which it is, and a manager that was replaced tells it again.
            if self.stop.is_some() || self.kept.iter().any(|kept| kept.name == name) {
                return;
            }
            let stored = datagram.descriptors.into_iter().map(ForeignFd::trusted);
            let stored = stored.map(|fd| Inherited { fd, name: name.clone() });
            self.kept.extend(stored);
        } else {
            self.upward.say(text);
        }
    }

    fn take_signals(&mut self) {
        let received = match self.signals.take() {
            Ok(received) => received,
            Err(error) => {
                error!("cannot read signals: {error}");
                return;
            }
        };
        for one in received {
            match one.signal {
                Signal::Child => self.reap(),
                _ if self.terminal.hung_up(&one) => info!("the terminal was closed; the service goes on"),
                signal => self.obey(signal),
            }
        }
        self.pass_on();
    }

    fn obey(&mut self, signal: Signal) {
        if let Some(status) = self.ending.filter(|_| is_stop(signal)) {
            // Once more: at once. The kernel ends all that is left with us.
            self.ended = Some(status);
        }
        if is_stop(signal) {
            self.stop.get_or_insert(signal);
            // Or clients would wait in their queues until the end, though nobody is to serve them.
            self.kept.retain(|kept| !system_store::is_ours(kept));
            // Whoever wants an end does not wait for the pause to pass.
            self.start_at = self.start_at.map(|_| Mono::ZERO);
        }
        self.waiting.push(signal);
    }

    /// Passes on what signals wait, if there is a manager that is up to it.
    fn pass_on(&mut self) {
        let Some(manager) = self.manager.as_ref().filter(|_| self.is_up) else { return };
        for signal in self.waiting.drain(..) {
            if let Err(error) = process::signal(manager.pid, signal.number()) {
                warn!("cannot pass on {}: {error}", process::SignalName(signal.number()));
            }
        }
    }

    fn reap(&mut self) {
        // Its own last words are read before its end is acted on.
        self.listen();
        self.reaps_again = true;
        for _ in 0..REAPED_A_TURN {
            let Ok(Some((pid, exit))) = reaper::next_exited() else {
                self.reaps_again = false;
                break;
            };
            let manager = self.manager.take_if(|manager| manager.pid == pid);
            if let Err(error) = reaper::reap(pid) {
                error!("cannot reap process {pid}: {error}");
                return;
            }
            self.closers.ended(pid);
            if let Some(mut manager) = manager {
                self.own_program = false;
                let mut exit = exit;
                if let Ok(Report::Failed(failure)) = manager.report() {
                    error!("the manager could not be started: {failure}");
                    (self.own_program, exit) = (true, Exit::Code(BUG));
                }
                self.go_on(exit);
            }
        }
        self.ended = self.ended.or(self.ending.filter(|_| !self.is_anybody_left()));
    }

    /// Goes on after the end of a manager.
    fn go_on(&mut self, exit: Exit) {
        (self.is_up, self.up_at) = (false, None);
        if self.notify.is_none() && self.started + LIFE <= now() {
            self.record.note_ready();
        }
        match self.record.note_end(exit, self.is_anybody_left()) {
            Next::Another(_) if self.stop.is_some() && self.record.crashes > 1 => self.end_by_ourselves(exit),
            Next::End(status) => {
                if matches!(exit, Exit::Signal { .. } | Exit::Code(BUG)) {
                    error!("the manager {exit} {TRIES} times before it served; giving up");
                }
                self.ended = Some(status);
            }
            Next::Another(pause) => {
                error!("the manager {exit}; workers serve on, and another manager takes them over");
                self.start_at = Some(now() + pause);
                if let Some(stop) = self.stop {
                    // Whoever wants an end wants it still: the next one hears of it first, and once.
                    if !self.waiting.iter().copied().any(is_stop) {
                        self.waiting.insert(0, stop);
                    }
                    self.start_at = Some(Mono::ZERO);
                }
            }
        }
    }

    /// Ends what no manager does: whoever is left is told to, and waited for.
    fn end_by_ourselves(&mut self, exit: Exit) {
        error!("the manager {exit} again, and an end is wanted: whoever is left is sent SIGTERM");
        for pid in process::own_children().unwrap_or_default() {
            let _ = process::signal(pid, Signal::Terminate.number());
        }
        self.ending = Some(status_of(exit));
        self.ended = self.ending.filter(|_| !self.is_anybody_left());
    }

    /// Whether any process is left that a manager has started.
    fn is_anybody_left(&self) -> bool {
        process::own_children().is_ok_and(|children| children.iter().any(|pid| !self.closers.has(*pid)))
    }
}

/// Whether this manager is looked after by the first process of a container.
pub(super) fn is_looked_after() -> bool {
    env::var_os(INIT_VARIABLE).is_some()
}

/// The terminal of a manager; none where we have looked at its signals already.
pub(super) fn terminal() -> ControllingTerminal {
    let is_looked_after = is_looked_after();
    if is_looked_after { ControllingTerminal::none() } else { ControllingTerminal::observe() }
}

fn is_stop(signal: Signal) -> bool {
    matches!(signal, Signal::Terminate | Signal::Interrupt | Signal::Quit)
}

fn now() -> Mono {
    Mono(monotonic_micros().unwrap_or_default())
}
