#![expect(unsafe_code, reason = "system calls by their numbers")]
//! System calls that leave libc's memory alone, for a child that still shares its parent's.
//!
//! libc keeps the number of an error in memory of the calling thread, and such a child is in its parent's place: it would
//! write over a number that the parent is about to read. So these go past libc, and each returns its error by itself. All
//! are async-signal-safe.

use std::convert::Infallible;
use std::ffi::{CStr, c_int};
use std::mem;

use nix::errno::Errno;
use nix::unistd::Pid;
use syscalls::{Sysno, syscall};

use super::limits;
use super::strings::Vector;
use crate::plain::{Limit, Resource};

/// The size of the kernel's signal sets in bytes, on every architecture that Rust's std knows but MIPS.
const SIGNAL_SET_BYTES: usize = 8;

/// The highest signal number of Linux.
const MAX_SIGNAL: c_int = 64;

/// How a file is opened that is only read.
const READ_ONLY: c_int = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_CLOEXEC;

/// `CLONE_INTO_CGROUP` of linux/sched.h.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The kernel's `struct sigaction`, of which only the handler is ever set: it comes first on every architecture but MIPS.
type KernelAction = [usize; 8];

fn checked(result: Result<usize, syscalls::Errno>) -> nix::Result<usize> {
    result.map_err(|error| Errno::from_raw(error.into_raw()))
}

fn descriptor(result: Result<usize, syscalls::Errno>) -> nix::Result<c_int> {
    checked(result).map(|fd| c_int::try_from(fd).unwrap_or(c_int::MAX))
}

/// Returns the signals that this process handles or ignores, bit by bit.
pub(super) fn changed_signals() -> u64 {
    let is_changed = |number: &c_int| {
        let mut action: KernelAction = [0; 8];
        let nothing: *const KernelAction = std::ptr::null();
        // SAFETY: the kernel reads nothing, and writes less than there is.
        let asked =
            unsafe { syscall!(Sysno::rt_sigaction, *number, nothing, &raw mut action, SIGNAL_SET_BYTES) };
        asked.is_err() || action[0] != libc::SIG_DFL
    };
    (1..=MAX_SIGNAL).filter(is_changed).fold(0, |set, number| set | 1 << (number - 1))
}

/// Gives these signals, bit by bit, their default action, and has SIGPIPE ignored where asked for. An ignored signal stays
/// ignored over execve(2); a handler could run before it, in memory that is the parent's.
pub(super) fn default_signals(changed: u64, ignore_sigpipe: bool) {
    for number in 1..=MAX_SIGNAL {
        let handler = match ignore_sigpipe && number == libc::SIGPIPE {
            true => libc::SIG_IGN,
            false if changed >> (number - 1) & 1 == 1 => libc::SIG_DFL,
            false => continue,
        };
        let action: KernelAction = [handler, 0, 0, 0, 0, 0, 0, 0];
        // SAFETY: the kernel reads less than there is, and no code of ours is named. SIGKILL and SIGSTOP are refused.
        let _ = unsafe { syscall!(Sysno::rt_sigaction, number, &raw const action, 0, SIGNAL_SET_BYTES) };
    }
}

/// Blocks these signals, bit by bit, and no others: a blocked one stays so over execve(2).
pub(super) fn block_signals(held: u64) {
    // SAFETY: the kernel reads as many bytes as the set has.
    let _ =
        unsafe { syscall!(Sysno::rt_sigprocmask, libc::SIG_SETMASK, &raw const held, 0, SIGNAL_SET_BYTES) };
}

/// Opens `path` for reading, without waiting for what is no file.
pub(super) fn open(path: &CStr) -> nix::Result<c_int> {
    // SAFETY: the path is a C string.
    descriptor(unsafe { syscall!(Sysno::openat, libc::AT_FDCWD, path.as_ptr(), READ_ONLY) })
}

/// Reads from a place in a file, and returns how many bytes there were.
pub(super) fn read_at(fd: c_int, buffer: &mut [u8], at: u64) -> nix::Result<usize> {
    let at = usize::try_from(at).map_err(|_| Errno::EOVERFLOW)?;
    // By two calls: pread(2) takes its place in as many ways as there are architectures of 32 bits.
    // SAFETY: lseek(2) touches no memory of ours.
    checked(unsafe { syscall!(Sysno::lseek, fd, at, libc::SEEK_SET) })?;
    // SAFETY: the buffer is as long as said.
    checked(unsafe { syscall!(Sysno::read, fd, buffer.as_mut_ptr(), buffer.len()) })
}

/// Closes a descriptor that the child has opened itself.
pub(super) fn close(fd: c_int) {
    // SAFETY: nothing of ours owns it.
    let _ = unsafe { syscall!(Sysno::close, fd) };
}

/// Whether the calling process may execute what is at `path`, and that is there.
pub(super) fn may_execute(path: &CStr) -> bool {
    // SAFETY: the path is a C string.
    unsafe { syscall!(Sysno::faccessat, libc::AT_FDCWD, path.as_ptr(), libc::X_OK) }.is_ok()
}

/// Makes `target` a copy of `source`, not closed on execve(2).
pub(super) fn duplicate(source: c_int, target: c_int) -> nix::Result<()> {
    if source == target {
        // SAFETY: fcntl(2) touches no memory of ours.
        return checked(unsafe { syscall!(Sysno::fcntl, source, libc::F_SETFD, 0) }).map(drop);
    }
    // SAFETY: nothing of ours in the child owns the target.
    checked(unsafe { syscall!(Sysno::dup3, source, target, 0) }).map(drop)
}

/// Returns a copy of `fd` that is `beyond` or above, closed on execve(2).
pub(super) fn duplicate_beyond(fd: c_int, beyond: c_int) -> nix::Result<c_int> {
    // SAFETY: fcntl(2) touches no memory of ours.
    descriptor(unsafe { syscall!(Sysno::fcntl, fd, libc::F_DUPFD_CLOEXEC, beyond) })
}

/// What becomes of the descriptors that are swept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sweep {
    /// They are closed.
    Now,
    /// execve(2) closes them.
    OnExecute,
}

/// Closes every descriptor from `first` up.
pub(super) fn sweep(first: c_int, when: Sweep) {
    let flags = match when {
        Sweep::Now => 0,
        Sweep::OnExecute => libc::CLOSE_RANGE_CLOEXEC,
    };
    // SAFETY: nothing of ours in the child owns these descriptors.
    if unsafe { syscall!(Sysno::close_range, first, c_int::MAX, flags) }.is_ok() {
        return;
    }
    // A kernel before 5.11, or a sandbox that does not know the call: one by one.
    for fd in first..limit_of_descriptors() {
        // SAFETY: as above.
        let _ = unsafe {
            match when {
                Sweep::Now => syscall!(Sysno::close, fd),
                Sweep::OnExecute => syscall!(Sysno::fcntl, fd, libc::F_SETFD, libc::FD_CLOEXEC),
            }
        };
    }
}

fn limit_of_descriptors() -> c_int {
    let mut limit = libc::rlimit64 { rlim_cur: 65_536, rlim_max: 0 };
    // SAFETY: the kernel writes one such struct.
    let _ = unsafe { syscall!(Sysno::prlimit64, 0, libc::RLIMIT_NOFILE, 0, &raw mut limit) };
    c_int::try_from(limit.rlim_cur).unwrap_or(c_int::MAX)
}

/// Sets a limit of the calling process.
pub(super) fn set_limit(resource: Resource, limit: Limit) -> nix::Result<()> {
    let native = |value: Option<u64>| value.unwrap_or(libc::RLIM64_INFINITY);
    let limit = libc::rlimit64 { rlim_cur: native(limit.soft), rlim_max: native(limit.hard) };
    // SAFETY: the kernel reads one such struct.
    let set = unsafe { syscall!(Sysno::prlimit64, 0, limits::number(resource), &raw const limit, 0) };
    checked(set).map(drop)
}

/// Sets the file mode creation mask.
pub(super) fn set_umask(mask: u32) {
    // SAFETY: umask(2) touches no memory of ours; it cannot fail.
    let _ = unsafe { syscall!(Sysno::umask, mask) };
}

/// The calls that take users and groups as 32 bits wide; what has the plain name is older where there are two.
#[cfg(any(target_arch = "x86", target_arch = "arm"))]
const SET_IDENTITY: [Sysno; 3] = [Sysno::setgroups32, Sysno::setgid32, Sysno::setuid32];
#[cfg(not(any(target_arch = "x86", target_arch = "arm")))]
const SET_IDENTITY: [Sysno; 3] = [Sysno::setgroups, Sysno::setgid, Sysno::setuid];

/// Sets the supplementary groups.
///
/// Past libc for one more reason: it would have every thread do the same (nptl(7)), and waits for ever for threads of the
/// parent's that it remembers and the child does not have.
pub(super) fn set_groups(groups: &[u32]) -> nix::Result<()> {
    // SAFETY: there are as many as said.
    checked(unsafe { syscall!(SET_IDENTITY[0], groups.len(), groups.as_ptr()) }).map(drop)
}

/// Becomes of that group, for good where the process may.
pub(super) fn set_group(group: u32) -> nix::Result<()> {
    // SAFETY: setgid(2) touches no memory of ours.
    checked(unsafe { syscall!(SET_IDENTITY[1], group) }).map(drop)
}

/// Becomes that user, for good where the process may.
pub(super) fn set_user(user: u32) -> nix::Result<()> {
    // SAFETY: setuid(2) touches no memory of ours.
    checked(unsafe { syscall!(SET_IDENTITY[2], user) }).map(drop)
}

/// Changes the working directory.
pub(super) fn change_directory(path: &CStr) -> nix::Result<()> {
    // SAFETY: the path is a C string.
    checked(unsafe { syscall!(Sysno::chdir, path.as_ptr()) }).map(drop)
}

/// Makes the calling process the leader of a process group of its own.
pub(super) fn lead_group() {
    // SAFETY: setpgid(2) touches no memory of ours. It cannot fail for a child that leads no session.
    let _ = unsafe { syscall!(Sysno::setpgid, 0, 0) };
}

/// Returns the pid of the calling process.
pub(super) fn pid() -> u32 {
    // SAFETY: getpid(2) touches no memory of ours.
    let pid = unsafe { syscall!(Sysno::getpid) };
    pid.ok().and_then(|pid| u32::try_from(pid).ok()).unwrap_or_default()
}

/// Becomes another program, or returns why not.
pub(super) fn execute(program: &CStr, argv: &Vector<'_>, envp: &Vector<'_>) -> nix::Result<Infallible> {
    // SAFETY: a C string, and two vectors as execve(2) wants them.
    let result = unsafe { syscall!(Sysno::execve, program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    // It does not return where it succeeds.
    Err(checked(result).err().unwrap_or(Errno::UnknownErrno))
}

/// Becomes the program that `file` is, wherever that stands, or returns why not.
pub(super) fn execute_file(file: c_int, argv: &Vector<'_>, envp: &Vector<'_>) -> nix::Result<Infallible> {
    let (path, flags) = (c"".as_ptr(), libc::AT_EMPTY_PATH);
    // SAFETY: as before.
    let result = unsafe { syscall!(Sysno::execveat, file, path, argv.as_ptr(), envp.as_ptr(), flags) };
    match checked(result).err().unwrap_or(Errno::UnknownErrno) {
        // A sandbox that does not know the call.
        Errno::ENOSYS | Errno::EPERM => execute(own_descriptor(file, &mut [0; 32]), argv, envp),
        error => Err(error),
    }
}

/// Writes the path of a descriptor of the calling process.
fn own_descriptor(fd: c_int, text: &mut [u8; 32]) -> &CStr {
    const FOLDER: &[u8] = b"/proc/self/fd/";
    let digits = (0..10_u32).rev().map(|place| fd.unsigned_abs() / 10_u32.pow(place) % 10);
    let digits =
        digits.skip_while(|digit| *digit == 0).map(|digit| b'0' + u8::try_from(digit).unwrap_or_default());
    for (place, byte) in text.iter_mut().zip(FOLDER.iter().copied().chain(digits)) {
        *place = byte;
    }
    CStr::from_bytes_until_nul(text).unwrap_or(c"")
}

/// What tells a file from all others that are there: the two halves of its device, and its inode.
pub(super) type FileNumber = (u32, u32, u64);

/// Returns which file stands at a path, links followed; an empty one stands for `fd` itself.
pub(super) fn file_at(fd: c_int, path: &CStr) -> nix::Result<FileNumber> {
    // SAFETY: it is plain C data, for which all zeroes is a value.
    let mut found: libc::statx = unsafe { mem::zeroed() };
    let (path, mask) = (path.as_ptr(), libc::STATX_INO);
    // SAFETY: a C string, and the kernel writes one such struct.
    checked(unsafe { syscall!(Sysno::statx, fd, path, libc::AT_EMPTY_PATH, mask, &raw mut found) })?;
    Ok((found.stx_dev_major, found.stx_dev_minor, found.stx_ino))
}

/// Has the calling process join a control group by its folder.
pub(super) fn join_cgroup(folder: c_int) -> nix::Result<()> {
    let (path, flags) = (c"cgroup.procs".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
    // SAFETY: the path is a C string.
    let file = descriptor(unsafe { syscall!(Sysno::openat, folder, path, flags) })?;
    let joined = write(file, b"0");
    close(file);
    joined
}

/// Forks into a control group, by its folder; `None` in the child. Needs Linux 5.7.
///
/// # Safety
///
/// As fork(2) in a process of one thread; the child makes no use of what libc knows of that thread.
pub(super) unsafe fn fork_into_cgroup(folder: c_int) -> nix::Result<Option<Pid>> {
    // SAFETY: it is plain C data, for which all zeroes is a value.
    let mut arguments: libc::clone_args = unsafe { mem::zeroed() };
    arguments.flags = CLONE_INTO_CGROUP;
    arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    arguments.cgroup = u64::from(folder.unsigned_abs());
    let size = size_of::<libc::clone_args>();
    // SAFETY: the kernel reads one such struct. Without shared memory the child goes on with a copy of this very stack.
    let pid = descriptor(unsafe { syscall!(Sysno::clone3, &raw const arguments, size) })?;
    Ok((pid != 0).then(|| Pid::from_raw(pid)))
}

/// Writes to `fd` as many bytes as it takes at once.
pub(super) fn write(fd: c_int, bytes: &[u8]) -> nix::Result<()> {
    // SAFETY: the bytes are as many as said.
    checked(unsafe { syscall!(Sysno::write, fd, bytes.as_ptr(), bytes.len()) }).map(drop)
}

/// Closes what `fd` leads to without waiting for the peer of a connection, as far as one can know: another holder may change
/// its mind. Returns whether `placeholder` is in its place now; where that is negative, the number is free.
pub(super) fn close_without_linger(fd: c_int, placeholder: c_int) -> bool {
    let off = libc::linger { l_onoff: 0, l_linger: 0 };
    let (level, name, size) = (libc::SOL_SOCKET, libc::SO_LINGER, size_of::<libc::linger>());
    // SAFETY: the kernel reads one such struct. What is no socket refuses it.
    let _ = unsafe { syscall!(Sysno::setsockopt, fd, level, name, &raw const off, size) };
    // SAFETY: the caller owns the descriptor.
    let replaced = unsafe { syscall!(Sysno::dup3, placeholder, fd, libc::O_CLOEXEC) };
    if replaced.is_err() {
        // SAFETY: as before.
        let _ = unsafe { syscall!(Sysno::close, fd) };
    }
    replaced.is_ok()
}

/// Makes a timer that kills the calling process when it runs out.
pub(super) fn deadly_timer() -> nix::Result<c_int> {
    // SAFETY: it is plain C data, for which all zeroes is a value; `SIGEV_SIGNAL` is 0.
    let mut event: libc::sigevent = unsafe { mem::zeroed() };
    event.sigev_signo = libc::SIGKILL;
    let mut timer: c_int = 0;
    // SAFETY: the kernel reads one such struct and writes one number.
    let made =
        unsafe { syscall!(Sysno::timer_create, libc::CLOCK_MONOTONIC, &raw const event, &raw mut timer) };
    checked(made).map(|_| timer)
}

/// Starts a timer anew, once, for so many nanoseconds below a second; 0 stops it.
pub(super) fn start_timer(timer: c_int, nanoseconds: i64) {
    let when = libc::itimerspec {
        it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 },
        it_value: libc::timespec { tv_sec: 0, tv_nsec: nanoseconds },
    };
    let nothing: *const libc::itimerspec = std::ptr::null();
    // SAFETY: the kernel reads one such struct.
    let _ = unsafe { syscall!(Sysno::timer_settime, timer, 0, &raw const when, nothing) };
}

/// Lets go of the controlling terminal: who keeps it may type into it (`TIOCSTI`), where a shell of root reads.
pub(super) fn leave_terminal() {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: a C string, and calls that touch no memory of ours.
    unsafe {
        if let Ok(terminal) = descriptor(syscall!(Sysno::openat, libc::AT_FDCWD, c"/dev/tty".as_ptr(), flags))
        {
            let _ = syscall!(Sysno::ioctl, terminal, libc::TIOCNOTTY);
            let _ = syscall!(Sysno::close, terminal);
        }
    }
}

/// Has the kernel end the calling process with `parent`, which it does at once where that has ended already.
pub(super) fn end_with_parent(parent: Pid) {
    // SAFETY: neither call touches memory of ours.
    let (_, now) =
        unsafe { (syscall!(Sysno::prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL), syscall!(Sysno::getppid)) };
    if now.ok() != usize::try_from(parent.as_raw()).ok() {
        exit(1);
    }
}

/// Ends the calling process; nothing of ours runs any more.
pub(super) fn exit(status: c_int) -> ! {
    loop {
        // SAFETY: it never returns.
        let _ = unsafe { syscall!(Sysno::exit_group, status) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_has_its_path() {
        for fd in [3, 10, 4711, c_int::MAX] {
            assert_eq!(own_descriptor(fd, &mut [0; 32]).to_str().unwrap(), format!("/proc/self/fd/{fd}"));
        }
    }
}
