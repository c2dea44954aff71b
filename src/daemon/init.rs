//! The first process of a container, which looks after the manager: a child of its own.
//!
//! The kernel ends a PID namespace with its first process (pid_namespaces(7)), so that must not be one that may crash. This
//! one decides nothing: it reaps what is left to it, passes signals on, keeps the sockets as systemd's store would
//! (sd_notify(3), `FDSTORE=1`), and if the manager is killed it says so and starts another, which takes the workers over
//! ([`super::recovery`]).

use std::collections::VecDeque;
use std::env;
use std::ffi::{CStr, CString};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use nix::unistd::{Pid, getpid};
use tracing::{error, info, warn};

use super::ManagerError;
use super::outlet::Outputs;
use super::upward::sender_from_environment;
use crate::core::time::Mono;
use crate::core::word::Word;
use crate::sys::activation::{self, Inherited};
use crate::sys::clock::monotonic_micros;
use crate::sys::exec::{RUNNING, own_program};
use crate::sys::notify_send::NotifySender;
use crate::sys::notify_socket::{Datagram, NotifySocket};
use crate::sys::process;
use crate::sys::reaper::{self, Exit};
use crate::sys::signals::{ControllingTerminal, Signal, Signals};
use crate::sys::spawn::{Launch, Report, Spawned, spawn};
use crate::sys::strings::CStrings;
use crate::sys::wait::{Interest, Poller};
use crate::wire::notify::{Descriptors, MAX_DATAGRAM, parse};

/// What a manager exits with that has found a bug of its own (DESIGN, command line).
const BUG: i32 = 70;

/// How soon another manager is started, and the longest pause between two that crash in a row.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How many managers may crash before any of them has served.
const TRIES: u32 = 5;

/// How soon it is told again to whoever was busy, and how much waits for it.
const RETRY: Duration = Duration::from_millis(50);
const MOST_WAITING: usize = 1024;

/// The folders that a container may have for a socket.
const FOLDERS: [&str; 3] = ["/run", "/tmp", "/dev/shm"];

/// What the manager is told anew.
const OWN_VARIABLES: [&str; 5] =
    ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_PID"];

const SIGNALS: u64 = 0;
const NOTIFY: u64 = 1;

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

/// How the life of a manager goes on after its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// So does ours, with this status.
    End(i32),
    /// Another one is started after a pause.
    Another(Duration),
}

/// What has become of the managers so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Record {
    has_served: bool,
    /// Since one of them was last ready.
    crashes: u32,
}

impl Record {
    fn note_ready(&mut self) {
        *self = Self { has_served: true, crashes: 0 };
    }

    /// Takes the end of a manager. What it meant to exit with is our own status. After a crash another one follows as long as
    /// there may be workers that serve; where none ever has, only so often.
    fn note_end(&mut self, exit: Exit) -> Next {
        let status = match exit {
            Exit::Code(BUG) => BUG,
            Exit::Code(status) => return Next::End(status),
            // As a shell says it.
            Exit::Signal { number, .. } => 128 + number,
        };
        self.crashes = self.crashes.saturating_add(1);
        if !self.has_served && self.crashes >= TRIES {
            return Next::End(status);
        }
        let doublings = (self.crashes - 1).min(31);
        Next::Another(PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE))
    }
}

/// The way to whoever looks after the container, which may be busy.
struct Upward {
    sender: Option<NotifySender>,
    waiting: VecDeque<Vec<u8>>,
}

impl Upward {
    fn say(&mut self, text: &[u8]) {
        if self.sender.is_some() && self.waiting.len() < MOST_WAITING {
            self.waiting.push_back(text.to_owned());
        }
    }

    /// Sends what waits, and returns how soon that is to be tried again.
    fn send(&mut self) -> Option<Duration> {
        let sender = self.sender.as_ref()?;
        while let Some(text) = self.waiting.front() {
            match sender.send(text) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Some(RETRY),
                Ok(()) | Err(_) => drop(self.waiting.pop_front()),
            }
        }
        None
    }
}

struct Init {
    poller: Poller,
    signals: Signals,
    terminal: ControllingTerminal,
    outputs: Outputs,
    program: CStrings,
    /// Where the manager speaks to us.
    notify: Option<NotifySocket>,
    /// Whom we pass it on to.
    upward: Upward,
    /// What an activator has handed to us, and behind it what managers have stored.
    kept: Vec<Inherited>,
    manager: Option<Spawned>,
    /// Whether the manager has said anything: from then on it obeys signals.
    is_up: bool,
    /// Signals that wait for that.
    waiting: Vec<Signal>,
    record: Record,
    /// When another manager is started.
    start_at: Option<Mono>,
    ended: Option<i32>,
}

impl Init {
    fn new(inherited: Vec<Inherited>) -> io::Result<Self> {
        let signals = Signals::install()?;
        let poller = Poller::new()?;
        poller.add(&signals, SIGNALS, Interest::Read)?;
        let notify = FOLDERS.into_iter().find_map(|folder| NotifySocket::bind(Path::new(folder)).ok());
        if let Some(notify) = &notify {
            poller.add(notify, NOTIFY, Interest::Read)?;
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
            upward: Upward { sender: sender_from_environment(), waiting: VecDeque::new() },
            kept: inherited,
            manager: None,
            is_up: false,
            waiting: Vec::new(),
            record: Record::default(),
            start_at: Some(Mono::ZERO),
            ended: None,
        })
    }

    fn run(&mut self) -> io::Result<ExitCode> {
        let mut ready = Vec::new();
        loop {
            self.start_if_due();
            self.outputs.flush(&self.poller);
            if let Some(status) = self.ended {
                // A status has eight bits (exit(3)).
                return Ok(ExitCode::from(status.to_le_bytes()[0]));
            }
            let pause = self.start_at.map(|at| at - now());
            self.poller.wait(pause.into_iter().chain(self.upward.send()).min(), &mut ready)?;
            // Whoever has died was heard before.
            if ready.iter().any(|ready| ready.token == NOTIFY) {
                self.listen();
            }
            if ready.iter().any(|ready| ready.token == SIGNALS) {
                self.take_signals();
            }
        }
    }

    fn start_if_due(&mut self) {
        if self.start_at.is_none_or(|at| at > now()) {
            return;
        }
        self.start_at = None;
        match self.launch().and_then(spawn) {
            Ok(manager) => self.manager = Some(manager),
            Err(error) => {
                error!("the manager cannot be started: {error}");
                self.go_on(Exit::Code(BUG));
            }
        }
    }

    fn launch(&self) -> io::Result<Launch<'_>> {
        let mut environment = CStrings::default();
        let inherited = env::vars_os().filter(|(name, _)| !OWN_VARIABLES.iter().any(|own| name == own));
        for (name, value) in inherited {
            environment.push(&[name.as_bytes(), b"=", value.as_bytes()])?;
        }
        let mut own_pids: Vec<&'static CStr> = Vec::new();
        if let Some(notify) = &self.notify {
            environment.push(&[b"NOTIFY_SOCKET=", notify.path().as_os_str().as_bytes()])?;
            own_pids.push(c"WATCHDOG_PID");
        }
        if !self.kept.is_empty() {
            let names: Vec<_> = self.kept.iter().map(|kept| kept.name.as_str()).collect();
            environment.push(&[b"LISTEN_FDS=", names.len().to_string().as_bytes()])?;
            environment.push(&[b"LISTEN_FDNAMES=", names.join(":").as_bytes()])?;
            own_pids.push(c"LISTEN_PID");
        }
        Ok(Launch {
            programs: self.program.clone(),
            arguments: CStrings::of(env::args_os().map(|word| word.as_bytes().to_vec()))?,
            shared_environment: Rc::default(),
            environment,
            pid_variables: own_pids,
            directory: CString::from(c"."),
            credentials: None,
            umask: None,
            limits: Vec::new(),
            ignore_sigpipe: false,
            descriptors: self.kept.iter().map(|kept| kept.fd.as_fd()).collect(),
            cgroup: None,
            stdin: None,
            stdout: None,
            stderr: None,
        })
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
        let by_manager = self
            .manager
            .as_ref()
            .is_some_and(|manager| datagram.sender.is_some_and(|sender| sender.pid == manager.pid.as_raw()));
        if !by_manager || datagram.truncated || datagram.control_truncated {
            return;
        }
        let Ok(message) = parse(text, datagram.descriptors.len()) else { return };
        self.is_up = true;
        self.pass_on();
        if message.words.contains(&Word::Ready) {
            self.record.note_ready();
        }
        if let Some(name) = message.forget {
            self.kept.retain(|kept| kept.name != name);
        } else if let Descriptors::Store { name, .. } = message.descriptors {
            let stored = datagram.descriptors.into_iter().map(|fd| Inherited { fd, name: name.clone() });
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
                signal => self.waiting.push(signal),
            }
        }
        self.pass_on();
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
        while let Ok(Some((pid, exit))) = reaper::next_exited() {
            let manager = self.manager.take_if(|manager| manager.pid == pid);
            if let Err(error) = reaper::reap(pid) {
                error!("cannot reap process {pid}: {error}");
                return;
            }
            if let Some(mut manager) = manager {
                if let Ok(Report::Failed(failure)) = manager.report() {
                    error!("the manager could not be started: {failure}");
                }
                self.go_on(exit);
            }
        }
    }

    /// Goes on after the end of a manager.
    fn go_on(&mut self, exit: Exit) {
        self.is_up = false;
        match self.record.note_end(exit) {
            Next::End(status) => {
                if matches!(exit, Exit::Signal { .. } | Exit::Code(BUG)) {
                    error!("the manager {exit} {TRIES} times before it served; giving up");
                }
                self.ended = Some(status);
            }
            Next::Another(pause) => {
                error!("the manager {exit}; workers serve on, and another manager takes them over");
                self.start_at = Some(now() + pause);
            }
        }
    }
}

fn now() -> Mono {
    Mono(monotonic_micros().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KILLED: Exit = Exit::Signal { number: 9, core_dumped: false };

    #[test]
    fn what_the_manager_exits_with_is_the_status() {
        for status in [0, 1, 2, 3] {
            assert_eq!(Record::default().note_end(Exit::Code(status)), Next::End(status));
        }
    }

    #[test]
    fn a_crash_before_anything_served_is_tried_again_a_few_times() {
        let mut record = Record::default();
        let ends: Vec<_> = (0..TRIES).map(|_| record.note_end(KILLED)).collect();
        let pause = |times| Next::Another(PAUSE * times);
        assert_eq!(ends, [pause(1), pause(2), pause(4), pause(8), Next::End(137)]);
        let mut record = Record { crashes: TRIES - 1, ..Record::default() };
        assert_eq!(record.note_end(Exit::Code(BUG)), Next::End(BUG));
    }

    #[test]
    fn what_serves_is_never_given_up() {
        let mut record = Record::default();
        record.note_ready();
        let ends: Vec<_> = (0..100).map(|_| record.note_end(KILLED)).collect();
        assert_eq!(ends[0], Next::Another(PAUSE));
        assert_eq!(ends[99], Next::Another(LONGEST_PAUSE));
        record.note_ready();
        assert_eq!(record.note_end(KILLED), Next::Another(PAUSE));
    }
}
