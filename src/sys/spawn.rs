//! Starting a worker.
//!
//! [`spawn`] returns as soon as the process exists; whether it became the program is told later by a pipe that
//! execve(2) closes, so that a folder on a dead file server holds up the child alone. What the child finds is exactly
//! what its [`Launch`] says: no descriptor, signal disposition or variable comes from the manager unasked.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, OsStr, c_int};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::unistd::{self, AccessFlags, Pid, faccessat, getgroups, getresgid, getresuid, pipe2};
use serde::{Deserialize, Serialize};

use super::child::Plan;
use super::cradle::{Cradle, Memory};
pub use super::failure::Failure;
use super::handover::{HandOver, Luggage, Number, Unpacked};
use super::signals::changed_signals;
use super::strings::{CStrings, Pointers};
use crate::plain::{Credentials, Limit, Resource};

/// Where a program is looked for if there is no `PATH` (glibc's confstr(3), `_CS_PATH`).
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// All there is to say about a process to be started.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    /// The files to try, from [`candidates`]; relative ones count from `directory`.
    pub programs: CStrings,
    /// The very file that it is to be, where one is held.
    pub pinned: Option<Pinned<'a>>,
    /// The argument vector.
    pub arguments: CStrings,
    /// The part of the environment that many processes have in common, `NAME=value` each.
    pub shared_environment: Rc<CStrings>,
    /// The rest of the environment, but for `pid_variables`.
    pub environment: CStrings,
    /// Names of variables that hold the process's own pid, such as `LISTEN_PID` and `WATCHDOG_PID`.
    pub pid_variables: Vec<&'static CStr>,
    /// The working directory, entered as the new user.
    pub directory: CString,
    /// Who the process shall be; `None` changes nothing.
    pub credentials: Option<Credentials>,
    /// The file mode creation mask, 0 to 0o777; `None` changes nothing.
    pub umask: Option<u32>,
    /// Resource limits, set before the user is changed.
    pub limits: Vec<(Resource, Limit)>,
    /// Whether SIGPIPE is ignored; every other signal has its default action.
    pub ignore_sigpipe: bool,
    /// The signals that the program begins with blocked, bit by bit ([`super::signals::early_set`]): none comes before its handlers.
    pub held_signals: u64,
    /// What becomes descriptors 3, 4, 5 and so on.
    pub descriptors: Vec<BorrowedFd<'a>>,
    /// The control group that it joins, from [`super::cgroup::make`]; `None` is the manager's own.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// The standard input; `None` is empty.
    pub stdin: Option<BorrowedFd<'a>>,
    /// The standard output; `None` is the manager's own.
    pub stdout: Option<Given<'a>>,
    /// The standard error; `None` is the manager's own.
    pub stderr: Option<Given<'a>>,
}

/// The file that is to be executed, whatever stands at its path by now.
///
/// It is executed by a path that leads to it, for then it has its name in ps(1); by the descriptor where none does.
#[derive(Clone, Debug)]
pub struct Pinned<'a> {
    /// A hold on it ([`super::program_file::hold`]).
    pub file: BorrowedFd<'a>,
    /// Where it was found, links resolved.
    pub path: CString,
    /// Whether it can be executed by its descriptor ([`super::program_file::is_native`]).
    pub is_native: bool,
}

/// An output that a process gets.
#[derive(Clone, Debug)]
pub enum Given<'a> {
    /// Somebody else keeps it.
    Lent(BorrowedFd<'a>),
    /// It was opened for this process, and we close it when the process has it.
    Made(Rc<OwnedFd>),
}

impl<'a> From<BorrowedFd<'a>> for Given<'a> {
    fn from(fd: BorrowedFd<'a>) -> Self {
        Self::Lent(fd)
    }
}

impl From<Rc<OwnedFd>> for Given<'_> {
    fn from(fd: Rc<OwnedFd>) -> Self {
        Self::Made(fd)
    }
}

impl AsFd for Given<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Lent(fd) => *fd,
            Self::Made(fd) => fd.as_fd(),
        }
    }
}

/// Returns the files that a program's name may stand for: itself if it has a slash, else one in each folder of `path`
/// (execvp(3)); an empty folder is the working directory.
///
/// # Errors
/// `InvalidInput` for a NUL in either.
pub fn candidates(program: &OsStr, path: Option<&OsStr>) -> io::Result<CStrings> {
    let program = program.as_bytes();
    if program.contains(&b'/') {
        return CStrings::of([program]);
    }
    let mut files = CStrings::default();
    let path = path.unwrap_or(OsStr::new(DEFAULT_PATH)).as_bytes();
    for folder in path.split(|&byte| byte == b':') {
        files.push(&[if folder.is_empty() { b"." } else { folder }, b"/", program])?;
    }
    Ok(files)
}

/// Returns the first of the [`candidates`] that we may execute, seen from this directory; `None` where there is none.
///
/// # Errors
/// Those of [`candidates`].
pub fn executable(program: &OsStr, path: Option<&OsStr>, directory: &Path) -> io::Result<Option<PathBuf>> {
    let files = candidates(program, path)?;
    let mut files = files.iter().map(|file| directory.join(OsStr::from_bytes(file.to_bytes())));
    let may_execute = |file: &Path| faccessat(AT_FDCWD, file, AccessFlags::X_OK, AtFlags::AT_EACCESS).is_ok();
    Ok(files.find(|file| file.is_file() && may_execute(file)))
}

/// Starts a process. Never waits for it.
///
/// # Errors
/// Those of pipe2(2), mmap(2) and clone(2), and `InvalidInput` for a NUL; all that fails later comes as a [`Report`].
pub fn spawn(launch: Launch<'_>) -> io::Result<Spawned> {
    spawn_in(Memory::Shared, launch)
}

fn spawn_in(memory: Memory, launch: Launch<'_>) -> io::Result<Spawned> {
    let (report, report_input) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    // Kept open until the child has its copies.
    let _outputs = [launch.stdout.clone(), launch.stderr.clone()];
    let plan = plan(launch, report_input.as_fd())?;
    let memory = if is_in_reach_of_others(&plan) { Memory::Copied } else { memory };
    let mut cradle = Cradle::new(plan)?;
    let pid = cradle.make_child(memory)?;
    Ok(Spawned { pid, report, heard: Vec::new(), cradle: Some(cradle) })
}

/// Whether the memory of the process can be looked at or taken away by what does not reach ours.
fn is_in_reach_of_others(plan: &Plan) -> bool {
    // One that is becoming another user is in that user's reach (ptrace(2), kill(2)). Where a group has no memory left the kernel kills
    // everybody who shares that of its victim; it counts the new program's memory before execve(2) lets go of the old one, so that it does
    // not help to join late.
    plan.identity.is_some() || plan.cgroup.is_some()
}

/// Tells whether this process is that already, and so needs no right to become it.
fn are_own(credentials: &Credentials) -> nix::Result<bool> {
    let Credentials { uid, gid, groups } = credentials;
    let (user, group) = (getresuid()?, getresgid()?);
    let own_groups: BTreeSet<u32> = getgroups()?.into_iter().map(Into::into).collect();
    Ok([user.real, user.effective, user.saved].map(u32::from) == [*uid; 3]
        && [group.real, group.effective, group.saved].map(u32::from) == [*gid; 3]
        && own_groups == groups.iter().copied().collect())
}

fn plan(launch: Launch<'_>, report: BorrowedFd<'_>) -> io::Result<Plan> {
    let identity = match launch.credentials {
        Some(credentials) if !are_own(&credentials)? => Some(credentials),
        _ => None,
    };
    let has_input = launch.stdin.is_some();
    let (stdout, stderr) = (launch.stdout.as_ref().map(AsFd::as_fd), launch.stderr.as_ref().map(AsFd::as_fd));
    let standard = [(launch.stdin, 0), (stdout, 1), (stderr, 2)];
    let standard = standard.into_iter().filter_map(|(fd, target)| Some((fd?.as_raw_fd(), target)));
    let passed = launch.descriptors.iter().map(AsRawFd::as_raw_fd).zip(3..);
    let mut environment = launch.environment;
    let own_pids = launch.pid_variables.into_iter().map(|name| environment.push_number(name));
    let own_pids = own_pids.collect::<Result<_, _>>()?;
    let pinned = launch.pinned.map(|Pinned { file, path, is_native }| (file.as_raw_fd(), path, is_native));
    Ok(Plan {
        programs: launch.programs,
        pinned,
        vectors: [
            Pointers::room_for(&[&launch.arguments]),
            Pointers::room_for(&[&launch.shared_environment, &environment]),
        ],
        shared_environment: launch.shared_environment,
        arguments: launch.arguments,
        environment,
        own_pids,
        directory: launch.directory,
        identity,
        umask: launch.umask,
        limits: launch.limits,
        changed_signals: changed_signals(),
        ignore_sigpipe: launch.ignore_sigpipe,
        held_signals: launch.held_signals,
        cgroup: launch.cgroup.map(|cgroup| cgroup.as_raw_fd()),
        has_input,
        moves: standard.chain(passed).collect(),
        passed: c_int::try_from(launch.descriptors.len()).map_err(io::Error::other)?,
        report: report.as_raw_fd(),
    })
}

/// A process that was started and has yet to become the program.
///
/// [`AsFd`] gives what becomes readable when [`Spawned::report`] is worth a call. To be kept until that has told more than
/// [`Report::NotYet`]: what is dropped sooner leaks the memory that the process may still live on.
#[derive(Debug)]
pub struct Spawned {
    /// The process, which leads a process group of its own.
    pub pid: Pid,
    report: OwnedFd,
    heard: Vec<u8>,
    cradle: Option<Cradle>,
}

impl AsFd for Spawned {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.report.as_fd()
    }
}

impl Spawned {
    /// Reads what became of the process, without waiting for it.
    ///
    /// # Errors
    /// Those of read(2), and `InvalidData` for what no child of ours writes.
    pub fn report(&mut self) -> io::Result<Report> {
        let mut bytes = [0; 2 * Failure::LENGTH];
        loop {
            match unistd::read(&self.report, &mut bytes) {
                Ok(0) => break,
                Ok(count) => self.heard.extend(bytes.iter().take(count)),
                Err(Errno::EAGAIN) => return Ok(Report::NotYet),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // Only now is it sure that the child has let go of our memory: after its report it had yet to exit.
        self.cradle = None;
        match self.heard.as_slice() {
            [] => Some(Report::Executed),
            heard => Failure::decode(heard).map(Report::Failed),
        }
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a start report in no known form"))
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        if self.cradle.is_some() {
            // Where it has come to its end, this gives the memory back.
            let _ = self.report();
        }
        if let Some(cradle) = self.cradle.take() {
            cradle.abandon();
        }
    }
}

/// A [`Spawned`] as plain data.
#[derive(Debug, Serialize, Deserialize)]
pub struct SpawnedState {
    pid: i32,
    report: Number,
    heard: Vec<u8>,
}

impl HandOver for Spawned {
    type State = SpawnedState;

    fn pack(&self, luggage: &mut Luggage) -> SpawnedState {
        // The cradle stays behind: it lies in our present memory, which the kernel keeps for as long as the child uses it.
        let Self { pid, report, heard, cradle: _ } = self;
        SpawnedState { pid: pid.as_raw(), report: luggage.put(report), heard: heard.clone() }
    }

    fn unpack(SpawnedState { pid, report, heard }: SpawnedState, luggage: &mut Unpacked) -> io::Result<Self> {
        Ok(Self { pid: Pid::from_raw(pid), report: luggage.take(report)?, heard, cradle: None })
    }
}

/// What became of a process that was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// It is still on its way.
    NotYet,
    /// It runs the program; or something killed it on its way, which its exit tells.
    Executed,
    /// It could not become the program, and exits.
    Failed(Failure),
}

/// What a process does on its way to become its program, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Opening /dev/null.
    StandardInput,
    /// Putting the descriptors in their places.
    Descriptors,
    /// setrlimit(2).
    Limit(Resource),
    /// setgroups(2).
    Groups,
    /// setgid(2).
    Group,
    /// setuid(2).
    User,
    /// chdir(2).
    Directory,
    /// execve(2).
    Execute,
}

impl Step {
    /// The steps but [`Step::Limit`].
    const PLAIN: [Self; 7] = [
        Self::StandardInput,
        Self::Descriptors,
        Self::Groups,
        Self::Group,
        Self::User,
        Self::Directory,
        Self::Execute,
    ];

    /// Every step; its place is its code.
    fn all() -> impl Iterator<Item = Self> {
        Self::PLAIN.into_iter().chain(Resource::ALL.into_iter().map(Self::Limit))
    }

    pub(super) fn encode(self) -> u8 {
        (0..u8::MAX).zip(Self::all()).find(|&(_, step)| step == self).map_or(u8::MAX, |(code, _)| code)
    }

    pub(super) fn decode(code: u8) -> Option<Self> {
        Self::all().nth(code.into())
    }

    /// Returns the step in words with what it was about: `changing directory to /srv/app`.
    pub fn describe(self, directory: &Path, program: &str) -> String {
        match self {
            Self::Directory => format!("{self} to {}", directory.display()),
            Self::Execute => format!("{self} {program}"),
            Self::StandardInput
            | Self::Descriptors
            | Self::Limit(_)
            | Self::Groups
            | Self::Group
            | Self::User => self.to_string(),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StandardInput => "opening /dev/null",
            Self::Descriptors => "passing the sockets",
            Self::Limit(resource) => return write!(f, "setting the limit `{resource}`"),
            Self::Groups => "setting the supplementary groups",
            Self::Group => "becoming the group",
            Self::User => "becoming the user",
            Self::Directory => "changing directory",
            Self::Execute => "executing",
        })
    }
}

#[cfg(test)]
pub(super) mod tests;
