#![expect(unsafe_code, reason = "siginfo_t is a union, and nix ignores no signal safely")]
//! The signals that the manager obeys, as events of a descriptor.
//!
//! No signal is lost: [`block_early`] keeps those that come before the handlers are there pending, and equal ones may
//! coalesce but never vanish.
//!
//! SIGTTIN and SIGTTOU stay blocked for ever and are read from a signalfd(2), while all others have handlers. The reason
//! is job control: were they caught, a manager in the background of a terminal with `tostop` would spin in every write
//! to it (the kernel sends SIGTTOU and restarts the write, endlessly). Blocked, the write succeeds and a read fails
//! with `EIO` (termios(3)). Those that the kernel sends all the same, to the whole job because of another of its
//! processes, are no command to us and are dropped; so are terminal hang-ups, by [`ControllingTerminal::hung_up`].

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::signal::{self, SigHandler, SigSet};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getsid};
use serde::{Deserialize, Serialize};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::raw::WithRawSiginfo;

use super::raw;
use super::retry::at_once;

/// A signal that the manager obeys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGHUP.
    Hangup,
    /// SIGINT.
    Interrupt,
    /// SIGQUIT.
    Quit,
    /// SIGUSR1.
    User1,
    /// SIGUSR2.
    User2,
    /// SIGTERM.
    Terminate,
    /// SIGCHLD: some children may have exited.
    Child,
    /// SIGTTIN.
    TtyIn,
    /// SIGTTOU.
    TtyOut,
}

impl Signal {
    const CAUGHT: [Self; 7] =
        [Self::Hangup, Self::Interrupt, Self::Quit, Self::User1, Self::User2, Self::Terminate, Self::Child];
    const BLOCKED: [Self; 2] = [Self::TtyIn, Self::TtyOut];

    fn native(self) -> signal::Signal {
        match self {
            Self::Hangup => signal::Signal::SIGHUP,
            Self::Interrupt => signal::Signal::SIGINT,
            Self::Quit => signal::Signal::SIGQUIT,
            Self::User1 => signal::Signal::SIGUSR1,
            Self::User2 => signal::Signal::SIGUSR2,
            Self::Terminate => signal::Signal::SIGTERM,
            Self::Child => signal::Signal::SIGCHLD,
            Self::TtyIn => signal::Signal::SIGTTIN,
            Self::TtyOut => signal::Signal::SIGTTOU,
        }
    }

    /// Returns the signal's number.
    #[must_use]
    pub fn number(self) -> i32 {
        self.native() as i32
    }

    fn from_number(number: i32) -> Option<Self> {
        let mut all = Self::CAUGHT.into_iter().chain(Self::BLOCKED);
        all.find(|signal| signal.number() == number)
    }
}

/// A signal that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Which.
    pub signal: Signal,
    /// Who sent it, where a process did that this pid namespace knows.
    pub sender: Option<Pid>,
    /// Whether the kernel sent it by itself, as a terminal makes it do.
    pub from_kernel: bool,
}

impl Received {
    fn new(signal: Signal, code: i32, pid: impl FnOnce() -> i32) -> Self {
        let by_process = matches!(code, libc::SI_USER | libc::SI_QUEUE | libc::SI_TKILL);
        let sender = by_process.then(pid).filter(|&pid| pid > 0).map(Pid::from_raw);
        Self { signal, sender, from_kernel: code == libc::SI_KERNEL }
    }
}

/// All signals, bit by bit.
pub(super) const ALL: u64 = u64::MAX;

/// The signals that this process handles or ignores, bit by bit; [`ALL`] where that was not asked.
static CHANGED: AtomicU64 = AtomicU64::new(ALL);

/// Asks which signals this process handles or ignores, so that each child resets those and no others. To be called after a
/// handler was installed.
pub(super) fn note_changed_signals() {
    CHANGED.store(raw::changed_signals(), Ordering::Relaxed);
}

/// Has children reset all signals until [`note_changed_signals`] is called again.
pub(super) fn forget_changed_signals() {
    CHANGED.store(ALL, Ordering::Relaxed);
}

/// Returns the signals that a child has to reset, bit by bit.
pub(super) fn changed_signals() -> u64 {
    let changed = CHANGED.load(Ordering::Relaxed);
    debug_assert_eq!(raw::changed_signals() & !changed, 0, "a handler was installed and not noted");
    changed
}

/// Sets back what the program that started us may have left, and what would keep us from our work: a SIGCHLD that is ignored
/// makes children vanish before they can be waited for (waitid(2), `ECHILD`), and a SIGALRM that is blocked or ignored
/// leaves calls that wait unbounded. To be called before the first child is made.
///
/// # Errors
/// Those of sigaction(2) and sigprocmask(2).
pub fn reset_inherited() -> io::Result<()> {
    for needed in [signal::Signal::SIGCHLD, signal::Signal::SIGALRM] {
        // SAFETY: the default runs no code of ours.
        unsafe { signal::signal(needed, SigHandler::SigDfl) }?;
    }
    Ok(SigSet::from(signal::Signal::SIGALRM).thread_unblock()?)
}

/// Keeps the signals of this module pending until [`Signals::install`], which is why it is called first of all, or
/// [`Signals::let_in`]. They stay pending over execve(2) (signal(7)).
///
/// # Errors
/// Those of sigprocmask(2).
pub fn block_early() -> io::Result<()> {
    Ok(set_of(Signal::CAUGHT.into_iter().chain(Signal::BLOCKED)).thread_block()?)
}

/// The same signals as a set of the kernel's, bit by bit: for a manager that is yet to be executed, by a process that executes it.
pub fn early_set() -> u64 {
    let all = Signal::CAUGHT.into_iter().chain(Signal::BLOCKED);
    all.map(|signal| 1 << (signal.number() - 1)).fold(0, |set, bit: u64| set | bit)
}

/// The source of all signals; its descriptor is readable when one has come.
#[derive(Debug)]
pub struct Signals {
    caught: SignalDelivery<UnixStream, WithRawSiginfo>,
    blocked: SignalFd,
    either: Epoll,
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.either.0.as_fd()
    }
}

impl Signals {
    /// Installs the handlers (`SA_RESTART`), ignores SIGPIPE and SIGXFSZ, so that a write which cannot be done is an error and
    /// no death, and lets in what was kept pending.
    ///
    /// # Errors
    /// Those of sigaction(2), signalfd(2) and `epoll_create1(2)`.
    pub fn install() -> io::Result<Self> {
        for ignored in [signal::Signal::SIGPIPE, signal::Signal::SIGXFSZ] {
            // SAFETY: to ignore a signal runs no code of ours.
            unsafe { signal::signal(ignored, SigHandler::SigIgn) }?;
        }
        let numbers = Signal::CAUGHT.map(Signal::number);
        let (read, write) = UnixStream::pair()?;
        let caught = SignalDelivery::with_pipe(read, write, WithRawSiginfo, numbers)?;

        let blocked_set = set_of(Signal::BLOCKED);
        blocked_set.thread_block()?;
        let blocked = SignalFd::with_flags(&blocked_set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;

        let either = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        either.add(caught.get_read(), EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        either.add(&blocked, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        note_changed_signals();
        set_of(Signal::CAUGHT).thread_unblock()?;
        Ok(Self { caught, blocked, either })
    }

    /// Lets in what [`block_early`] has kept pending since.
    ///
    /// # Errors
    /// Those of sigprocmask(2).
    pub fn let_in(&self) -> io::Result<()> {
        Ok(set_of(Signal::CAUGHT).thread_unblock()?)
    }

    /// Returns the signals that have come since the last call.
    ///
    /// # Errors
    /// Those of reading a signalfd(2).
    pub fn take(&mut self) -> io::Result<Vec<Received>> {
        let mut received = Vec::new();
        for info in self.caught.pending() {
            // SAFETY: the pid is read only where the code says that a process sent the signal (sigaction(2)).
            let sender = || unsafe { info.si_pid() };
            received.extend(
                Signal::from_number(info.si_signo).map(|signal| Received::new(signal, info.si_code, sender)),
            );
        }
        while let Some(info) = at_once(|| self.blocked.read_signal())? {
            let number = info.ssi_signo.cast_signed();
            let sender = || info.ssi_pid.cast_signed();
            received.extend(
                Signal::from_number(number)
                    .map(|signal| Received::new(signal, info.ssi_code, sender))
                    .filter(|signal| !signal.from_kernel),
            );
        }
        Ok(received)
    }
}

fn set_of(signals: impl IntoIterator<Item = Signal>) -> SigSet {
    signals.into_iter().map(Signal::native).collect()
}

/// Whether this process was started from a terminal; tells a hang-up of that terminal from a command.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ControllingTerminal {
    at_start: bool,
}

impl ControllingTerminal {
    /// Looks whether there is a controlling terminal now; to be called at the start.
    pub fn observe() -> Self {
        Self { at_start: is_reachable() }
    }

    /// There is none, or somebody else sees to it.
    #[must_use]
    pub fn none() -> Self {
        Self { at_start: false }
    }

    /// Tells whether the terminal that there was at the start can no longer be opened.
    pub fn is_gone(self) -> bool {
        self.at_start && !is_reachable()
    }

    /// Tells whether a SIGHUP means that the terminal closed, and so is no command to upgrade.
    ///
    /// The kernel sends one of its own to the session leader and the foreground job (`tty_ioctl(2)`, `TIOCNOTTY`); a
    /// shell that leads the session then passes it on to its other jobs.
    pub fn hung_up(self, received: &Received) -> bool {
        received.signal == Signal::Hangup
            && (received.from_kernel
                || (received.sender.is_some() && received.sender == getsid(None).ok() && self.is_gone()))
    }
}

/// Tells whether /dev/tty, the controlling terminal, can be opened; it never waits for a modem.
fn is_reachable() -> bool {
    OpenOptions::new().read(true).custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK).open("/dev/tty").is_ok()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Write;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    use std::time::Duration;

    use nix::unistd::{getpgid, getpid, getppid, setpgid, setsid};

    use super::super::fork::fork_into;
    use super::super::fork::tests::{pristine, wait_for_exit};
    use super::super::output::wait_readable;
    use super::super::raw::{block_signals, default_signals};
    use super::super::reaper::Exit;
    use super::*;

    fn send(signal: Signal) {
        signal::kill(getpid(), signal.native()).unwrap();
    }

    /// Waits until the descriptor says that there is something, as the manager does.
    fn take(signals: &mut Signals) -> Vec<Received> {
        assert!(wait_readable(&*signals, Duration::from_secs(60)).unwrap(), "no signal has come");
        signals.take().unwrap()
    }

    /// Makes this process the leader of a session with a terminal of its own; returns both of the terminal's ends.
    fn terminal() -> (OwnedFd, File) {
        // The leader of a group cannot lead a session: it first joins the group of its parent.
        setpgid(Pid::from_raw(0), getpgid(Some(getppid())).unwrap()).unwrap();
        setsid().unwrap();
        // SAFETY: the descriptor is new, or -1, which the next call refuses.
        let master = unsafe { libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) };
        let mut name = [0_u8; 64];
        // SAFETY: the buffer is as long as said.
        let failed = unsafe {
            libc::grantpt(master) != 0
                || libc::unlockpt(master) != 0
                || libc::ptsname_r(master, name.as_mut_ptr().cast(), name.len()) != 0
        };
        assert!(!failed, "{}", io::Error::last_os_error());
        let name = std::ffi::CStr::from_bytes_until_nul(&name).unwrap().to_str().unwrap();
        // The first terminal that a session's leader opens becomes its own.
        let slave = OpenOptions::new().read(true).write(true).open(name).unwrap();
        // SAFETY: nobody else owns it.
        (unsafe { OwnedFd::from_raw_fd(master) }, slave)
    }

    #[test]
    fn a_signal_before_the_handlers_is_kept() {
        pristine(concat!(module_path!(), "::a_signal_before_the_handlers_is_kept"), || {
            block_early().unwrap();
            send(Signal::Hangup);
            send(Signal::TtyIn);
            let mut signals = Signals::install().unwrap();
            let received = take(&mut signals);
            let by_us = |signal| Received { signal, sender: Some(getpid()), from_kernel: false };
            assert_eq!(received, [Signal::Hangup, Signal::TtyIn].map(by_us));
            assert_eq!(signals.take().unwrap(), []);
        });
    }

    #[test]
    fn every_signal_comes_however_often_it_was_sent() {
        pristine(concat!(module_path!(), "::every_signal_comes_however_often_it_was_sent"), || {
            block_early().unwrap();
            let mut signals = Signals::install().unwrap();
            let all: Vec<_> = Signal::CAUGHT.into_iter().chain(Signal::BLOCKED).collect();
            for _ in 0..1_000 {
                all.iter().copied().for_each(send);
            }
            let received = take(&mut signals);
            for signal in all {
                assert!(received.iter().any(|one| one.signal == signal), "{signal:?} was lost");
            }
            assert_eq!(signals.take().unwrap(), []);
        });
    }

    #[test]
    fn an_exited_child_is_hinted_at() {
        pristine(concat!(module_path!(), "::an_exited_child_is_hinted_at"), || {
            let mut signals = Signals::install().unwrap();
            let child = fork_into(|| ()).unwrap();
            let child_signal = Received { signal: Signal::Child, sender: None, from_kernel: false };
            assert_eq!(take(&mut signals), [child_signal]);
            assert_eq!(wait_for_exit(child), Exit::Code(1));
        });
    }

    #[test]
    fn a_broken_pipe_is_an_error_and_no_death() {
        pristine(concat!(module_path!(), "::a_broken_pipe_is_an_error_and_no_death"), || {
            let _signals = Signals::install().unwrap();
            let (reader, mut writer) = io::pipe().unwrap();
            drop(reader);
            assert_eq!(writer.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        });
    }

    #[test]
    fn a_file_that_may_not_grow_is_an_error_and_no_death() {
        pristine(concat!(module_path!(), "::a_file_that_may_not_grow_is_an_error_and_no_death"), || {
            let _signals = Signals::install().unwrap();
            let mut file = tempfile::tempfile().unwrap();
            let limit = crate::plain::Limit { soft: Some(4), hard: None };
            raw::set_limit(crate::plain::Resource::Fsize, limit).unwrap();
            assert_eq!(file.write(b"longer").unwrap(), 4);
            assert_eq!(file.write(b"x").unwrap_err().raw_os_error(), Some(libc::EFBIG));
        });
    }

    #[test]
    fn a_parent_that_ignores_its_children_does_not_decide_for_us() {
        pristine(
            concat!(module_path!(), "::a_parent_that_ignores_its_children_does_not_decide_for_us"),
            || {
                // SAFETY: to ignore a signal runs no code of ours.
                unsafe { signal::signal(signal::Signal::SIGCHLD, SigHandler::SigIgn) }.unwrap();
                reset_inherited().unwrap();
                let child = fork_into(|| ()).unwrap();
                assert_eq!(wait_for_exit(child), Exit::Code(1));
            },
        );
    }

    #[test]
    fn a_closing_terminal_is_told_from_a_command() {
        pristine(concat!(module_path!(), "::a_closing_terminal_is_told_from_a_command"), || {
            let (master, slave) = terminal();
            let terminal = ControllingTerminal::observe();
            let mut signals = Signals::install().unwrap();

            send(Signal::Hangup);
            let command = take(&mut signals)[0];
            assert_eq!(command.sender, getsid(None).ok());
            assert!(!terminal.is_gone() && !terminal.hung_up(&command), "the session's leader may command");

            drop(master);
            let hangup = take(&mut signals)[0];
            assert_eq!(hangup, Received { signal: Signal::Hangup, sender: None, from_kernel: true });
            assert!(terminal.hung_up(&hangup));
            assert!(terminal.is_gone() && terminal.hung_up(&command), "a shell passes the hang-up on");
            assert!(!ControllingTerminal::observe().hung_up(&command), "there was no terminal to lose");
            drop(slave);
        });
    }

    #[test]
    fn a_background_manager_may_write_to_a_terminal_that_stops_writers() {
        pristine(
            concat!(module_path!(), "::a_background_manager_may_write_to_a_terminal_that_stops_writers"),
            || {
                let (master, mut slave) = terminal();
                // Closed early, it would hang up on the very test.
                std::mem::forget(master);
                let mut settings = std::mem::MaybeUninit::<libc::termios>::zeroed();
                // SAFETY: the settings are writable, and the terminal's own once it has filled them in.
                let failed = unsafe {
                    libc::tcgetattr(slave.as_raw_fd(), settings.as_mut_ptr()) != 0 || {
                        (*settings.as_mut_ptr()).c_lflag |= libc::TOSTOP;
                        libc::tcsetattr(slave.as_raw_fd(), libc::TCSANOW, settings.as_ptr()) != 0
                    }
                };
                assert!(!failed, "{}", io::Error::last_os_error());
                // A group of its own is in the background of the leader's.
                let child = fork_into(|| {
                    default_signals(ALL, false);
                    block_signals(0);
                    nix::unistd::alarm::set(30);
                    let mut signals = Signals::install().unwrap();
                    slave.write_all(b"a line of the log\n").unwrap();
                    assert_eq!(fs::read("/dev/tty").unwrap_err().raw_os_error(), Some(libc::EIO));
                    assert_eq!(signals.take().unwrap(), []);
                    // SAFETY: the child ends here.
                    unsafe { libc::_exit(0) }
                });
                assert_eq!(wait_for_exit(child.unwrap()), Exit::Code(0));
            },
        );
    }
}
