//! The first process of a container, which looks after the manager: a child of its own.
//!
//! The kernel ends a PID namespace with its first process (pid_namespaces(7)), so that must not be one that may crash. This
//! one reaps what is left to it, passes signals on, keeps the sockets as systemd's store would (sd_notify(3), `FDSTORE=1`), and if
//! the manager is killed it says so and starts another, which takes the workers over ([`super::recovery`]). What it decides, it
//! decides in [`crate::core::pid1`].

mod launch;
mod upward;

use std::collections::VecDeque;
use std::env;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use nix::unistd::{Pid, getpid};
use tracing::{error, info, warn};

use self::upward::Upward;
use super::loose_ends::tell_stalls;
use super::outlet::Outputs;
use super::token::{Poller, Token, Watched};
use super::{ManagerError, system_store};
use crate::core::pid1::{self, Action, BUG, End, Event, Machine, Notice, TRIES};
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
    /// What is decided.
    machine: Machine,
    manager: Option<Spawned>,
    /// How the last manager ended.
    how: String,
    /// The program at its path could not be executed: once our own is.
    own_program: bool,
    /// The status that we end with.
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
            machine: Machine::new(notify.is_some()),
            notify,
            upward: Upward::from_environment(),
            kept: inherited,
            closers: Closers::default(),
            manager: None,
            how: String::new(),
            own_program: false,
            ended: None,
            reaps_again: false,
        })
    }

    fn run(&mut self) -> io::Result<ExitCode> {
        let mut ready = Vec::new();
        let mut stall = StallTimer::new()?;
        loop {
            self.handle(Event::Tick);
            if let Err(error) = self.closers.run() {
                warn!("cannot start a closer of descriptors: {error}; trying again");
            }
            self.outputs.flush(&self.poller);
            if let Some(status) = self.ended {
                // A status has eight bits (exit(3)).
                return Ok(ExitCode::from(status.to_le_bytes()[0]));
            }
            let timers = self.machine.next_deadline().into_iter().map(|at| at - now());
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
        }
    }

    /// Hands an event to the machine, and performs what follows.
    fn handle(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let mut actions = Vec::new();
            self.machine.handle(now(), event, &mut actions);
            for action in actions {
                events.extend(self.perform(action));
            }
        }
    }

    /// Performs one action; what comes of it at once is an event.
    fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Start => match self.launch().and_then(spawn) {
                Ok(manager) => self.manager = Some(manager),
                Err(error) => {
                    error!("the manager cannot be started: {error}");
                    return Some(self.manager_ended(Exit::Code(BUG)));
                }
            },
            Action::Pass(number) => {
                if let Some(manager) = &self.manager
                    && let Err(error) = process::signal(manager.pid, number)
                {
                    warn!("cannot pass on {}: {error}", process::SignalName(number));
                }
            }
            Action::EndOthers => {
                for pid in process::own_children().unwrap_or_default() {
                    let _ = process::signal(pid, Signal::Terminate.number());
                }
            }
            Action::CloseSockets => self.kept.retain(|kept| !system_store::is_ours(kept)),
            Action::Tell(notice) => self.tell(notice),
            Action::Exit(status) => self.ended = Some(status),
        }
        None
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
        self.handle(Event::Said { ready: message.words.contains(&Word::Ready) });
        if let Some(name) = message.forget {
            self.kept.retain(|kept| kept.name != name);
        } else if let Descriptors::Store { name, .. } = message.descriptors {
            // Each is stored once: the name says which it is, and a manager that was replaced tells it again.
            if self.machine.is_stopping() || self.kept.iter().any(|kept| kept.name == name) {
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
        // First: what comes together with the end of a manager is for the next one.
        if received.iter().any(|one| one.signal == Signal::Child) {
            self.reap();
        }
        for one in received {
            match one.signal {
                Signal::Child => {}
                _ if self.terminal.hung_up(&one) => info!("the terminal was closed; the service goes on"),
                signal => {
                    let (number, is_stop) = (signal.number(), is_stop(signal));
                    self.handle(Event::Signal(pid1::Signal { number, is_stop }));
                }
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
                let event = self.manager_ended(exit);
                self.handle(event);
            }
        }
        let others = self.are_others_left();
        self.handle(Event::Others(others));
    }

    fn manager_ended(&mut self, exit: Exit) -> Event {
        self.how = exit.to_string();
        Event::ManagerEnded { end: end_of(exit), others: self.are_others_left() }
    }

    fn tell(&self, notice: Notice) {
        let how = &self.how;
        match notice {
            Notice::AnotherTakesOver => {
                error!("the manager {how}; workers serve on, and another manager takes them over");
            }
            Notice::GivenUp => error!("the manager {how} {TRIES} times before it served; giving up"),
            Notice::NoManagerEndsIt => {
                error!("the manager {how} again, and an end is wanted: whoever is left is sent SIGTERM");
            }
        }
    }

    /// Whether any process is left that a manager has started.
    fn are_others_left(&self) -> bool {
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

fn end_of(exit: Exit) -> End {
    match exit {
        Exit::Code(status) => End::Code(status),
        Exit::Signal { number, .. } => End::Signal(number),
    }
}

fn is_stop(signal: Signal) -> bool {
    matches!(signal, Signal::Terminate | Signal::Interrupt | Signal::Quit)
}

fn now() -> Mono {
    Mono(monotonic_micros().unwrap_or_default())
}
