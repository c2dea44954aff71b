#![expect(unsafe_code, reason = "fork(2)")]
//! Forks of the manager, and work that is done in one.
//!
//! A file on a dead server, a parser's bug or a name service may block or kill whoever meets it: such work is done
//! [`in_child`], and the manager waits for its end as for any other event.

use std::ffi::c_int;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{Pid, setpgid};

use super::channel::{channel, send_some};
use super::foreign::ForeignFd;
use super::handover::hand_over;
use super::output::wait_readable;
use super::process::kill_tree;
use super::raw::{self, Sweep};
use super::reaper::{Exit, wait_until_ended};
use super::rights::{CONTROL, receive_in};
use super::signals::{ALL, forget_changed_signals};

/// The exit status of a child whose work panicked, as std has it.
pub const PANICKED: i32 = 101;

/// The descriptor by which a child hands over its result.
const OUTPUT: c_int = 3;

/// How much of a result is taken at a time, in bytes.
const PIECE: usize = 16 * 1024;

/// Work that a child does.
#[derive(Debug)]
pub struct ForkedWork {
    /// The child, which leads a process group of its own.
    pub pid: Pid,
    output: OwnedFd,
    /// The file that has come beside the result.
    pub file: Option<OwnedFd>,
}

impl AsFd for ForkedWork {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.output.as_fd()
    }
}

impl ForkedWork {
    /// Adds to `result` what the child has written by now, without waiting; returns whether that was all.
    ///
    /// The result is whole only if the child then exits with status 0. The descriptor behind [`AsFd`] becomes readable
    /// when it is worthwhile to call again.
    ///
    /// # Errors
    /// Those of recvmsg(2).
    pub fn read(&mut self, result: &mut Vec<u8>) -> io::Result<bool> {
        let (mut piece, mut control) = ([0; PIECE], [0; CONTROL]);
        loop {
            match receive_in(&self.output, &mut piece, &mut control) {
                Ok(received) if received.len == 0 => return Ok(true),
                Ok(received) => {
                    result.extend(piece.iter().take(received.len));
                    // It comes from our own code, though that may have met with anything.
                    let file = received.descriptors.into_iter().next();
                    self.file = self.file.take().or(file.map(ForeignFd::trusted));
                }
                Err(Errno::EAGAIN) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits for the whole result; only for where nothing else is to be done meanwhile.
    ///
    /// # Errors
    /// Those of recvmsg(2) and waitid(2); `TimedOut` where a pause is longer than `patience`, and then the child is killed;
    /// another where the child failed.
    pub fn wait(&mut self, patience: Duration) -> io::Result<Vec<u8>> {
        let mut result = Vec::new();
        while !self.read(&mut result)? {
            if !wait_readable(&*self, patience)? {
                // Whoever reaps takes its end: it may come late, where a file server does not answer.
                let _ = kill_tree(self.pid);
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        match wait_until_ended(self.pid)? {
            Exit::Code(0) => Ok(result),
            exit => Err(io::Error::other(format!("it {exit}"))),
        }
    }
}

hand_over!(ForkedWork as ForkedWorkState { pid: Pid, output: OwnedFd, file: Option<OwnedFd> });

/// Does `work` in a child and hands over the bytes that it returns.
///
/// The child exits with status 0 when all is written, and with [`PANICKED`] if the work panics or aborts (or as the panic
/// hook of the process has it). It has
/// default signals and, beside standard input, output and error, no descriptor of ours: `work` must hold none. Call
/// this only where the process has a single thread, as the child's memory is that thread's.
///
/// # Errors
/// Those of socketpair(2) and fork(2).
pub fn in_child(work: impl FnOnce() -> Vec<u8>) -> io::Result<ForkedWork> {
    in_child_with_file(|| (work(), None))
}

/// As [`in_child`], for work that may open a file as well. It comes beside a result that is not empty.
///
/// # Errors
/// Those of socketpair(2) and fork(2).
pub fn in_child_with_file(work: impl FnOnce() -> (Vec<u8>, Option<OwnedFd>)) -> io::Result<ForkedWork> {
    let (output, input) = channel()?;
    let pid = fork_into(|| deliver(work, input.as_raw_fd()))?;
    Ok(ForkedWork { pid, output, file: None })
}

fn deliver(work: impl FnOnce() -> (Vec<u8>, Option<OwnedFd>), input: c_int) -> ! {
    raw::default_signals(ALL, false);
    raw::block_signals(0);
    forget_changed_signals();
    // A build that aborts on panics must end with the same status as one that unwinds, and without a core.
    // SAFETY: the handler makes one system call.
    unsafe { libc::signal(libc::SIGABRT, exit_as_panicked as *const () as libc::sighandler_t) };
    let placed = raw::duplicate(input, OUTPUT);
    raw::sweep(OUTPUT + 1, Sweep::Now);
    // No unwinding may leave this frame: above it are the manager's own.
    let delivered = catch_unwind(AssertUnwindSafe(|| {
        placed?;
        // SAFETY: the descriptor was made just now, for this alone.
        let output = unsafe { OwnedFd::from_raw_fd(OUTPUT) };
        let (result, file) = work();
        let (first, rest) = result.split_at(usize::from(file.is_some()).min(result.len()));
        if !first.is_empty() {
            send_some(&output, first, file.as_ref().map(AsFd::as_fd))?;
        }
        File::from(output).write_all(rest)
    }));
    let status = match delivered {
        Ok(Ok(())) => 0,
        Ok(Err(_)) => 1,
        Err(_) => PANICKED,
    };
    // None of the parent's exit handlers runs.
    raw::exit(status)
}

extern "C" fn exit_as_panicked(_signal: c_int) {
    raw::exit(PANICKED)
}

/// Forks, and runs `child` in the child.
///
/// # Errors
/// Those of fork(2).
pub(super) fn fork_into(child: impl FnOnce()) -> io::Result<Pid> {
    make_child(|| {
        // SAFETY: the child runs only what its caller vouches for: any code in a process of one thread.
        match Errno::result(unsafe { libc::fork() })? {
            0 => {
                raw::lead_group();
                child();
                // The child never returns into the parent's code.
                raw::exit(1)
            }
            pid => Ok(Pid::from_raw(pid)),
        }
    })
}

/// Makes a child, which leads a process group of its own.
///
/// All signals are blocked before and let in again after it, so that no handler of the parent's ever runs in the child,
/// where it would speak into the parent's own pipe; the child must reset them before it lets them in.
///
/// # Errors
/// Those of `clone`.
pub(super) fn make_child(clone: impl FnOnce() -> nix::Result<Pid>) -> io::Result<Pid> {
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    let made = clone();
    // It did not fail just now, and the child may be there.
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
    let pid = made?;
    // Whoever of the two comes first, the group exists before either goes on. After the child's execve(2) it is too late
    // (EACCES), which is no harm.
    let _ = setpgid(pid, pid);
    Ok(pid)
}

#[cfg(test)]
pub(super) mod tests {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    use nix::unistd::{alarm, getpgrp, getpid};
    use std::fs;
    use std::io::Read;
    use std::process;

    use super::super::process as processes;
    use super::super::reaper;
    use super::*;

    /// After it a child that hangs is killed, so that the test fails instead of hanging too.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Waits for one child's end and reaps it, whatever other children there are.
    pub(in super::super) fn wait_for_exit(pid: Pid) -> Exit {
        waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).ok();
        reaper::reap(pid).unwrap()
    }

    /// Runs a scenario that needs a process for itself: one thread, its own signals, descriptors and children.
    pub(in super::super) fn isolated(scenario: impl FnOnce()) {
        let (message, exit) = finish(in_child(|| {
            alarm::set(u32::try_from(PATIENCE.as_secs()).unwrap());
            let panic = catch_unwind(AssertUnwindSafe(scenario)).err();
            let text = panic.map(|panic| match panic.downcast::<String>() {
                Ok(text) => *text,
                Err(panic) => {
                    panic.downcast_ref::<&str>().map_or_else(String::new, |text| (*text).to_owned())
                }
            });
            text.map_or_else(|| b"passed".to_vec(), String::into_bytes)
        }));
        let message = String::from_utf8_lossy(&message);
        assert!(exit == Exit::Code(0) && message == "passed", "the isolated process {exit}: {message}");
    }

    /// As [`isolated`], in a process that no other test has left a mark on: what was registered with signal-hook stays
    /// registered over a fork, though its handlers do not. `test` is the test's full path.
    pub(in super::super) fn pristine(test: &str, scenario: impl FnOnce()) {
        const MARK: &str = "LIVESWAP_PRISTINE_TEST";
        if std::env::var_os(MARK).is_some() {
            return isolated(scenario);
        }
        let (_, name) = test.split_once("::").unwrap();
        let output = process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--test-threads=1"])
            .env(MARK, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }

    fn finish(work: io::Result<ForkedWork>) -> (Vec<u8>, Exit) {
        let mut work = work.unwrap();
        let mut result = Vec::new();
        while !work.read(&mut result).unwrap() {
            assert!(wait_readable(&work, PATIENCE).unwrap(), "the child says nothing");
        }
        (result, wait_for_exit(work.pid))
    }

    #[test]
    fn a_result_larger_than_a_pipe_arrives_whole() {
        let (result, exit) = finish(in_child(|| vec![b'x'; 1 << 20]));
        assert_eq!(exit, Exit::Code(0));
        assert!(result.len() == 1 << 20 && result.iter().all(|&byte| byte == b'x'));
    }

    #[test]
    fn a_file_comes_beside_a_result_of_any_length() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "it").unwrap();
        for length in [1, 1 << 20] {
            let open = || Some(File::open(folder.path().join("file")).unwrap().into());
            let mut work = in_child_with_file(|| (vec![b'x'; length], open())).unwrap();
            assert_eq!(work.wait(PATIENCE).unwrap().len(), length);
            let mut text = String::new();
            File::from(work.file.take().unwrap()).read_to_string(&mut text).unwrap();
            assert_eq!(text, "it");
        }
    }

    #[test]
    fn nothing_to_say_is_a_result_too() {
        assert_eq!(finish(in_child(Vec::new)), (Vec::new(), Exit::Code(0)));
    }

    #[test]
    fn a_panic_ends_the_child_alone() {
        assert_eq!(finish(in_child(|| panic!("on purpose"))), (Vec::new(), Exit::Code(PANICKED)));
        assert_eq!(finish(in_child(|| process::abort())), (Vec::new(), Exit::Code(PANICKED)));
    }

    #[test]
    fn a_hanging_child_can_be_killed() {
        let work = in_child(|| {
            loop {
                nix::unistd::pause();
            }
        });
        let work = work.unwrap();
        processes::signal_group(work.pid, libc::SIGKILL).unwrap();
        let killed = Exit::Signal { number: libc::SIGKILL, core_dumped: false };
        assert_eq!(finish(Ok(work)), (Vec::new(), killed));
    }

    #[test]
    fn the_child_leads_a_group_and_holds_no_descriptor_of_ours() {
        let (held, _other_end) = io::pipe().unwrap();
        let held = held.as_raw_fd();
        let (result, exit) = finish(in_child(move || {
            let open = fs::read_dir("/proc/self/fd").unwrap().count();
            let held_is_open = fs::exists(format!("/proc/self/fd/{held}")).unwrap() && held > OUTPUT + 1;
            format!("{open} {held_is_open} {}", getpid() == getpgrp()).into_bytes()
        }));
        assert_eq!(exit, Exit::Code(0));
        // Standard input, output and error, the result's pipe, and the folder that is being read.
        assert_eq!(String::from_utf8(result).unwrap(), "5 false true");
    }
}
