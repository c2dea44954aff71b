//! What runs in a child on its way to its program.
//!
//! Until execve(2) the child may share its parent's memory: all that it touches is its stack and a [`Plan`] made for it
//! alone, it allocates nothing, cannot panic, and makes its system calls past libc (see [`raw`]). Only where it becomes
//! another user does it have a memory of its own, as the parent's must not be in that user's reach.

use std::convert::Infallible;
use std::ffi::{CStr, CString, c_int};
use std::rc::Rc;

use nix::errno::Errno;

use super::interpreter::Interpreter;
use super::raw::{self, Sweep};
use super::spawn::{Failure, Step};
use super::strings::{CStrings, Number, Pointers};
use crate::plain::{Credentials, Limit, Resource};

/// The first descriptor that a service is handed (`sd_listen_fds(3)`).
const FIRST_DESCRIPTOR: c_int = 3;

/// The exit status of a child that could not become the program.
const CANNOT_START: c_int = 127;

/// All that the child needs.
#[derive(Debug)]
pub(super) struct Plan {
    /// Tried in this order; never empty.
    pub(super) programs: CStrings,
    /// The file that is to be executed, where it was found, and whether that can be done by the descriptor.
    pub(super) pinned: Option<(c_int, CString, bool)>,
    pub(super) arguments: CStrings,
    /// The part of the environment that others have as well.
    pub(super) shared_environment: Rc<CStrings>,
    pub(super) environment: CStrings,
    /// Where in the environment the child's own pid stands, which is not known before there is a child.
    pub(super) own_pids: Vec<Number>,
    /// Room for the vectors of the arguments and of the environment.
    pub(super) vectors: [Pointers; 2],
    pub(super) directory: CString,
    /// Who to become; the child has a memory of its own then.
    pub(super) identity: Option<Credentials>,
    pub(super) umask: Option<u32>,
    pub(super) limits: Vec<(Resource, Limit)>,
    /// The signals that have not their default action, bit by bit.
    pub(super) changed_signals: u64,
    pub(super) ignore_sigpipe: bool,
    pub(super) held_signals: u64,
    /// The folder of the control group that it has yet to join; the child has a memory of its own then.
    pub(super) cgroup: Option<c_int>,
    /// Whether 0 is among the targets.
    pub(super) has_input: bool,
    /// Pairs of source and target; the targets are 0, 1, 2, and 3 and up without a gap.
    pub(super) moves: Vec<(c_int, c_int)>,
    /// How many of the targets are 3 and up.
    pub(super) passed: c_int,
    /// Where a failure is reported.
    pub(super) report: c_int,
}

/// Becomes the program, or reports why not and exits.
pub(super) fn run(plan: &mut Plan) -> ! {
    raw::lead_group();
    raw::leave_terminal();
    let Err(failure) = become_program(plan);
    // Nobody else is there to be told where this fails.
    let (text, length) = failure.encode();
    let _ = raw::write(plan.report, text.get(..length).unwrap_or_default());
    raw::exit(CANNOT_START)
}

fn become_program(plan: &mut Plan) -> Result<Infallible, Failure> {
    raw::default_signals(plan.changed_signals, plan.ignore_sigpipe);
    if let Some(folder) = plan.cgroup {
        // Better a worker outside of its group than none.
        let _ = raw::join_cgroup(folder);
    }
    if !plan.has_input {
        at(Step::StandardInput, open_standard_input())?;
    }
    // Before the limits, as a low `nofile` must not get in the way.
    at(Step::Descriptors, place_descriptors(plan))?;
    if let Some(mask) = plan.umask {
        raw::set_umask(mask);
    }
    for &(resource, limit) in &plan.limits {
        at(Step::Limit(resource), raw::set_limit(resource, limit))?;
    }
    if let Some(identity) = &plan.identity {
        at(Step::Groups, raw::set_groups(&identity.groups))?;
        at(Step::Group, raw::set_group(identity.gid))?;
        at(Step::User, raw::set_user(identity.uid))?;
    }
    // After the change of identity: the user's own rights count.
    at(Step::Directory, raw::change_directory(&plan.directory))?;

    let pid = raw::pid();
    for number in &plan.own_pids {
        plan.environment.write_number(number, pid);
    }
    // Until here none comes: one that dumps core in shared memory ends the parent as well, before Linux 5.16.
    raw::block_signals(plan.held_signals);
    let Err(errno) = execute(plan);
    let interpreter = interpreter(plan, errno);
    Err(Failure { step: Step::Execute, errno: errno as i32, interpreter })
}

fn at<T>(step: Step, result: nix::Result<T>) -> Result<T, Failure> {
    result.map_err(|errno| Failure { step, errno: errno as i32, interpreter: Interpreter::NONE })
}

fn open_standard_input() -> nix::Result<()> {
    // The descriptor itself, if not 0 already, is swept away with all the others.
    raw::duplicate(raw::open(c"/dev/null")?, 0)
}

/// Puts each descriptor in its place, and sees to it that none but 0, 1, 2 and those outlives execve(2).
fn place_descriptors(plan: &mut Plan) -> nix::Result<()> {
    let beyond = FIRST_DESCRIPTOR + plan.passed;
    // A source may be another's target: all sources are first lifted beyond the targets.
    plan.report = lift(plan.report, beyond)?;
    if let Some((file, ..)) = &mut plan.pinned {
        *file = lift(*file, beyond)?;
    }
    for (source, _) in &mut plan.moves {
        *source = lift(*source, beyond)?;
    }
    for &(source, target) in &plan.moves {
        raw::duplicate(source, target)?;
    }
    raw::sweep(beyond, Sweep::OnExecute);
    Ok(())
}

fn lift(fd: c_int, beyond: c_int) -> nix::Result<c_int> {
    if fd >= beyond { Ok(fd) } else { raw::duplicate_beyond(fd, beyond) }
}

/// Returns what the first program that is there is to be interpreted by, where that is to blame.
fn interpreter(plan: &Plan, error: Errno) -> Interpreter {
    let mut found = plan.programs.iter().map(|program| Interpreter::to_blame(program, error));
    found.find(|found| *found != Interpreter::NONE).unwrap_or(Interpreter::NONE)
}

/// By what the program is executed.
enum Way<'a> {
    Path(&'a CStr),
    Descriptor(c_int),
    /// As execvp(3) finds it.
    Search,
}

/// Returns the way to the file that is pinned: a path that leads to it as long as there is one, as its name comes from that.
fn way<'a>(programs: &'a CStrings, pinned: Option<&'a (c_int, CString, bool)>) -> Way<'a> {
    let Some((file, path, is_native)) = pinned else { return Way::Search };
    let Ok(wanted) = raw::file_at(*file, c"") else { return Way::Search };
    let mut paths = programs.iter().chain([path.as_c_str()]);
    if let Some(path) = paths.find(|path| raw::file_at(libc::AT_FDCWD, path) == Ok(wanted)) {
        return Way::Path(path);
    }
    match raw::file_at(libc::AT_FDCWD, path) {
        // A user who may not come near it is told so.
        Err(Errno::EACCES) => Way::Search,
        _ if *is_native => Way::Descriptor(*file),
        // Its interpreter opens it by its path: what stands in the folder where it was is nearer to it than what the link leads to now.
        Ok(_) => Way::Path(path),
        Err(_) => Way::Search,
    }
}

/// Tries the programs in turn, as execvpe(3) does, but gives no file without `#!` to a shell; what is pinned goes before them.
fn execute(plan: &mut Plan) -> nix::Result<Infallible> {
    let [argv, envp] = &mut plan.vectors;
    let (argv, envp) = (argv.to(&[&plan.arguments]), envp.to(&[&plan.shared_environment, &plan.environment]));
    match way(&plan.programs, plan.pinned.as_ref()) {
        Way::Path(path) => return raw::execute(path, &argv, &envp),
        Way::Descriptor(file) => return raw::execute_file(file, &argv, &envp),
        Way::Search => {}
    }
    let mut failure = Errno::ENOENT;
    for program in plan.programs.iter() {
        let Err(error) = raw::execute(program, &argv, &envp);
        match error {
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
