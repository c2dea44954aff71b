#![expect(unsafe_code, reason = "waitid(2): nix cannot tell of a child killed by a real-time signal")]
//! Children that have exited.
//!
//! SIGCHLD is a hint and never a count: after it the caller asks for exited children until there are none. An exited
//! child is first *seen* and only then *reaped*, so that its last words can be read and its process group killed while
//! its pid still cannot belong to anyone else.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;

use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::process::SignalName;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this status.
    Code(i32),
    /// A signal killed it.
    Signal {
        /// The signal's number.
        number: i32,
        /// Whether a core was written.
        core_dumped: bool,
    },
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Code(status) => write!(f, "exited with status {status}"),
            Self::Signal { number, core_dumped } => {
                let core = if core_dumped { " (core dumped)" } else { "" };
                write!(f, "was killed by {}{core}", SignalName(number))
            }
        }
    }
}

/// Returns a child that has exited, and leaves it a zombie.
///
/// The same child is returned again until [`reap`] is called for it; `None` when no child has exited, or there is
/// none at all. Strangers that were left to us as PID 1 or subreaper come this way too.
///
/// # Errors
/// Those of waitid(2).
pub fn next_exited() -> io::Result<Option<(Pid, Exit)>> {
    match wait_for(libc::P_ALL, 0, libc::WNOWAIT) {
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Ok(None),
        result => result,
    }
}

/// Reaps a child that has exited: from now on its pid may be another process's.
///
/// # Errors
/// Those of waitid(2): `ECHILD` if it is no child of ours; `WouldBlock` if it has not exited.
pub fn reap(pid: Pid) -> io::Result<Exit> {
    let (_, exit) = wait_for(libc::P_PID, pid.as_raw().cast_unsigned(), 0)?
        .ok_or_else(|| io::Error::new(io::ErrorKind::WouldBlock, format!("process {pid} has not exited")))?;
    Ok(exit)
}

fn wait_for(
    kind: libc::idtype_t,
    id: libc::id_t,
    extra_flags: libc::c_int,
) -> io::Result<Option<(Pid, Exit)>> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let flags = libc::WEXITED | libc::WNOHANG | extra_flags;
    // SAFETY: `info` is writable and as large as the kernel expects.
    if unsafe { libc::waitid(kind, id, info.as_mut_ptr(), flags) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroes are a valid siginfo_t, and the kernel wrote nothing else.
    let info = unsafe { info.assume_init() };
    // SAFETY: waitid(2) fills in the SIGCHLD fields, or leaves the pid zero.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    let exit = match info.si_code {
        libc::CLD_EXITED => Exit::Code(status),
        code => Exit::Signal { number: status, core_dumped: code == libc::CLD_DUMPED },
    };
    Ok(Some((Pid::from_raw(pid), exit)))
}

/// Waits until a child has ended, and reaps it. Only for where nothing else is to be done meanwhile.
///
/// # Errors
/// Those of waitid(2).
pub fn wait_until_ended(pid: Pid) -> io::Result<Exit> {
    waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
    reap(pid)
}

/// Makes orphans among our descendants our own children (`PR_SET_CHILD_SUBREAPER`), so that none escapes unseen.
///
/// # Errors
/// Those of prctl(2).
pub fn set_subreaper() -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sys::wait::{Id, WaitPidFlag, waitid};

    use super::super::fork::tests::isolated;
    use super::*;

    #[expect(clippy::zombie_processes, reason = "who reaps them is what the tests are about")]
    fn shell(script: &str) -> Pid {
        let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
        Pid::from_raw(i32::try_from(child.id()).unwrap())
    }

    /// Waits for the next exited child.
    fn exited() -> (Pid, Exit) {
        waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).ok();
        next_exited().unwrap().expect("a child has exited")
    }

    #[test]
    fn ends_are_told_in_words() {
        let killed = |number, core_dumped| Exit::Signal { number, core_dumped }.to_string();
        assert_eq!(Exit::Code(1).to_string(), "exited with status 1");
        assert_eq!(killed(libc::SIGSEGV, true), "was killed by SIGSEGV (core dumped)");
        assert_eq!(killed(libc::SIGTERM, false), "was killed by SIGTERM");
    }

    #[test]
    fn a_zombie_is_seen_until_it_is_reaped() {
        isolated(|| {
            assert_eq!(next_exited().unwrap(), None, "without any child");
            let pid = shell("exit 3");
            assert_eq!(exited(), (pid, Exit::Code(3)));
            assert_eq!(next_exited().unwrap(), Some((pid, Exit::Code(3))));
            assert_eq!(reap(pid).unwrap(), Exit::Code(3));
            assert_eq!(next_exited().unwrap(), None);
            assert_eq!(reap(pid).unwrap_err().raw_os_error(), Some(libc::ECHILD));
        });
    }

    #[test]
    fn a_living_child_is_neither_seen_nor_reaped() {
        isolated(|| {
            let pid = shell("exec sleep 1000");
            assert_eq!(next_exited().unwrap(), None);
            assert_eq!(reap(pid).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            super::super::process::signal(pid, libc::SIGKILL).unwrap();
            assert_eq!(exited(), (pid, Exit::Signal { number: libc::SIGKILL, core_dumped: false }));
        });
    }

    #[test]
    fn a_child_killed_by_a_real_time_signal_is_seen() {
        isolated(|| {
            let pid = shell("kill -40 $$");
            assert_eq!(exited(), (pid, Exit::Signal { number: 40, core_dumped: false }));
        });
    }

    #[test]
    fn a_subreaper_sees_the_orphans_of_its_children() {
        isolated(|| {
            set_subreaper().unwrap();
            let pid = shell("(exec sh -c 'exit 7') & exec sh -c 'exit 3'");
            let mut ends = [exited(); 2];
            reap(ends[0].0).unwrap();
            ends[1] = exited();
            ends.sort_by_key(|&(who, _)| who != pid);
            assert_eq!(ends.map(|(_, exit)| exit), [Exit::Code(3), Exit::Code(7)]);
        });
    }
}
