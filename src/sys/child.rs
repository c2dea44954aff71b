#![expect(unsafe_code, reason = "what runs between fork(2) and execve(2)")]
//! What runs in the child between fork(2) and execve(2).
//!
//! Only async-signal-safe calls and no allocation: another thread of the parent (there is none in the manager, but a
//! test has many) may have held a lock when the fork copied it. So all memory is laid out in a [`Plan`] beforehand, and
//! of nix only thin wrappers of system calls are used.

use std::convert::Infallible;
use std::ffi::{CStr, c_char, c_int};
use std::ptr;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{self, Gid, Pid, Uid};

use super::limits::{self, Limit, Resource};
use super::spawn::{Failure, Step};

/// The first descriptor that a service is handed (`sd_listen_fds(3)`).
const FIRST_DESCRIPTOR: c_int = 3;

/// The highest signal number of Linux.
const MAX_SIGNAL: c_int = 64;

/// The size of the kernel's signal sets.
const SIGNAL_SET_BYTES: usize = MAX_SIGNAL as usize / 8;

/// The exit status of a child that could not become the program.
const CANNOT_START: c_int = 127;

/// How wide a pid can get.
const PID_DIGITS: usize = 10;

/// A variable that holds the child's own pid, which is not known before the fork.
pub(super) struct PidVariable {
    /// `NAME=`, room for the digits, and a NUL.
    text: Vec<u8>,
    digits_at: usize,
}

impl PidVariable {
    pub(super) fn new(name: &CStr) -> Self {
        let mut text = name.to_bytes().to_vec();
        text.push(b'=');
        let digits_at = text.len();
        text.resize(digits_at + PID_DIGITS + 1, 0);
        Self { text, digits_at }
    }

    /// Writes the digits; what follows them are the NULs that were there from the start.
    fn fill_in(&mut self, pid: Pid) -> *const c_char {
        let mut digits = [0; PID_DIGITS];
        let mut at = PID_DIGITS;
        let mut rest = pid.as_raw().unsigned_abs();
        while rest > 0 {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        for (place, digit) in self.text[self.digits_at..].iter_mut().zip(&digits[at..]) {
            *place = *digit;
        }
        self.text.as_ptr().cast()
    }
}

/// All that the child needs, with every pointer into memory that outlives the fork.
pub(super) struct Plan<'a> {
    /// Tried in this order; never empty.
    pub(super) programs: Vec<&'a CStr>,
    /// Ends with a null pointer.
    pub(super) arguments: Vec<*const c_char>,
    /// Ends with a null pointer for each of the pid variables, and one more.
    pub(super) environment: Vec<*const c_char>,
    pub(super) pid_variables: Vec<PidVariable>,
    pub(super) directory: &'a CStr,
    pub(super) identity: Option<(Uid, Gid, &'a [Gid])>,
    pub(super) umask: Option<Mode>,
    pub(super) limits: &'a [(Resource, Limit)],
    pub(super) ignore_sigpipe: bool,
    /// Pairs of source and target; the targets are 1, 2, and 3 and up without a gap.
    pub(super) moves: Vec<(c_int, c_int)>,
    /// How many of the targets are 3 and up.
    pub(super) passed: c_int,
    /// Where a failure is reported.
    pub(super) report: c_int,
}

/// Becomes the program, or reports why not and exits.
pub(super) fn run(plan: &mut Plan<'_>) -> ! {
    let Err(failure) = become_program(plan);
    let report = failure.encode();
    // SAFETY: the buffer is as long as said, and after _exit(2) nothing of ours runs.
    unsafe {
        libc::write(plan.report, report.as_ptr().cast(), report.len());
        libc::_exit(CANNOT_START)
    }
}

fn become_program(plan: &mut Plan<'_>) -> Result<Infallible, Failure> {
    reset_signals(plan.ignore_sigpipe);
    at(Step::StandardInput, open_standard_input())?;
    // Before the limits, as a low `nofile` must not get in the way.
    at(Step::Descriptors, place_descriptors(plan))?;
    if let Some(mask) = plan.umask {
        umask(mask);
    }
    for &(resource, limit) in plan.limits {
        at(Step::Limit(resource), limits::set_own(resource, limit))?;
    }
    if let Some((uid, gid, groups)) = plan.identity {
        at(Step::Groups, unistd::setgroups(groups))?;
        at(Step::Group, unistd::setgid(gid))?;
        at(Step::User, unistd::setuid(uid))?;
    }
    // After the change of identity: the user's own rights count.
    at(Step::Directory, unistd::chdir(plan.directory))?;

    let pid = unistd::getpid();
    let first = plan.environment.len() - plan.pid_variables.len() - 1;
    for (place, variable) in plan.environment[first..].iter_mut().zip(&mut plan.pid_variables) {
        *place = variable.fill_in(pid);
    }
    at(Step::Execute, execute(plan))
}

fn at<T>(step: Step, result: nix::Result<T>) -> Result<T, Failure> {
    result.map_err(|errno| Failure { step, errno: errno as i32 })
}

/// Gives every signal its default action, SIGPIPE ignored where asked for, and blocks none.
///
/// An ignored signal stays ignored over execve(2), and so does a blocked one.
pub(super) fn reset_signals(ignore_sigpipe: bool) {
    // Past libc, whose sigaction(3) refuses the signals that it keeps for itself; SIGKILL and SIGSTOP are refused all the
    // same. All zeroes is the default action, in the kernel's layout on every architecture.
    let default_action = [0_u64; 8];
    for number in 1..=MAX_SIGNAL {
        // SAFETY: the kernel reads less than there is, and a default action runs no code of ours.
        unsafe {
            let action = default_action.as_ptr();
            libc::syscall(libc::SYS_rt_sigaction, number, action, ptr::null_mut::<u64>(), SIGNAL_SET_BYTES);
        }
    }
    if ignore_sigpipe {
        // SAFETY: to ignore a signal runs no code of ours.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    }
    // Cannot fail with these arguments.
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}

fn open_standard_input() -> nix::Result<()> {
    // SAFETY: the path is a C string.
    let null = Errno::result(unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY) })?;
    // The descriptor itself, if not 0 already, is swept away with all the others.
    duplicate(null, 0)
}

/// Puts each descriptor in its place, and sees to it that none but 0, 1, 2 and those outlives execve(2).
fn place_descriptors(plan: &mut Plan<'_>) -> nix::Result<()> {
    let beyond = FIRST_DESCRIPTOR + plan.passed;
    // A source may be another's target: all sources are first lifted beyond the targets.
    plan.report = lift(plan.report, beyond)?;
    for (source, _) in &mut plan.moves {
        *source = lift(*source, beyond)?;
    }
    for &(source, target) in &plan.moves {
        duplicate(source, target)?;
    }
    sweep(beyond, libc::CLOSE_RANGE_CLOEXEC.cast_signed());
    Ok(())
}

fn lift(fd: c_int, beyond: c_int) -> nix::Result<c_int> {
    if fd >= beyond {
        return Ok(fd);
    }
    // SAFETY: fcntl(2) touches no memory of ours.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, beyond) })
}

/// Makes `target` a copy of `source`, not closed on execve(2).
pub(super) fn duplicate(source: c_int, target: c_int) -> nix::Result<()> {
    // SAFETY: nothing of ours in the child owns the target.
    Errno::result(unsafe { libc::dup2(source, target) }).map(drop)
}

/// Closes every descriptor from `first` up, or with `CLOSE_RANGE_CLOEXEC` marks it to be closed by execve(2).
pub(super) fn sweep(first: c_int, flags: c_int) {
    // SAFETY: nothing of ours in the child owns these descriptors.
    if unsafe { libc::syscall(libc::SYS_close_range, first, c_int::MAX, flags) } == 0 {
        return;
    }
    // A kernel before 5.11, or a sandbox that does not know the call: one by one.
    let open_max = limits::own(Resource::Nofile).ok().and_then(|limit| limit.soft).unwrap_or(65_536);
    for fd in first..c_int::try_from(open_max).unwrap_or(c_int::MAX) {
        // SAFETY: as above.
        unsafe {
            if flags == 0 { libc::close(fd) } else { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) }
        };
    }
}

/// Tries the programs in turn, as execvpe(3) does, but gives no file without `#!` to a shell.
fn execute(plan: &Plan<'_>) -> nix::Result<Infallible> {
    let mut failure = Errno::ENOENT;
    for program in &plan.programs {
        // SAFETY: both arrays end with a null pointer, and what they point at lives in the plan's makers.
        unsafe { libc::execve(program.as_ptr(), plan.arguments.as_ptr(), plan.environment.as_ptr()) };
        match Errno::last() {
            Errno::EACCES => failure = Errno::EACCES,
            absent @ (Errno::ENOENT | Errno::ENOTDIR | Errno::ESTALE | Errno::ENODEV | Errno::ETIMEDOUT) => {
                // That a file was there, but may not be executed, is the better news.
                if failure != Errno::EACCES {
                    failure = absent;
                }
            }
            other => return Err(other),
        }
    }
    Err(failure)
}

/// Returns the pointers to some C strings, with room for `more` of them and the null pointer at the end.
pub(super) fn pointers(strings: &[impl AsRef<CStr>], more: usize) -> Vec<*const c_char> {
    let mut pointers: Vec<_> = strings.iter().map(|string| string.as_ref().as_ptr()).collect();
    pointers.resize(strings.len() + more + 1, ptr::null());
    pointers
}
