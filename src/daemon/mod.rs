//! The shell round the core: it waits, hands events in, and performs what comes out.
//!
//! ```text
//! begin     how a manager comes to be                       start    one that is new
//! run       the loop                                      hearing   what is ready, turned into events
//! obey      signals that come                             signalling   those to workers
//! apply     one action performed                          reap      children that have ended
//! prepare   service file -> candidate -> generation       target    the code that runs, where an upgrade may name it
//! hooks     what runs before and after an upgrade         pre_upgrade   the one that may name another target
//! cgroups   control groups of generations and workers
//! checker   the forked child that reads the file          release   what it finds
//! launch    release + place -> how a process is started    process   a worker's process
//! program   which file the program of a release is
//! sockets   the listeners, shared by generations           repair    mending what workers do to them
//! upward    what we tell systemd                            system_store  our sockets in its store
//! runtime   the runtime directory                       places    where managers are looked for
//! node      Node programs as workers, and the sockets they ask for
//! sender    whom a worker's notify socket believes            notify_paths  those sockets' paths
//! store     what workers leave for those after them
//! control   the clients of the control socket
//! watch     the child that asks for an upgrade when files change
//! handover  another program in our place, which goes on with all of it
//! recovery  going on with what a manager has left that was killed
//! doors     waiting for connections, for whoever sleeps     idleness   whether anything is to be done
//! looks    the child that looks whether starting workers serve
//! host      time and children                               jobs      what follows from a child's end
//! loose_ends  what a turn leaves to its end                closing  our sockets at a stop for good
//! rival     another manager, whose lock was removed
//! guests    a process for each connection
//! init      PID 1 of a container, which looks after a manager
//! log       the form of the log                             outlet    our outputs, never waited for
//! streams   the outputs of what we start, never a socket that is ours
//! ```

mod advice;
mod apply;
mod begin;
mod cgroups;
mod checker;
mod closing;
mod control;
mod doors;
mod files;
mod guests;
pub mod handover;
mod head;
mod hearing;
mod hooks;
mod host;
mod idleness;
pub mod init;
mod jobs;
mod launch;
pub mod log;
mod looks;
mod loose_ends;
mod missing;
mod node;
mod notify_paths;
mod obey;
mod outlet;
mod places;
mod pre_upgrade;
mod prepare;
mod process;
mod program;
mod reap;
mod recovery;
mod release;
mod repair;
mod rival;
mod run;
pub mod runtime;
mod sender;
mod signalling;
pub mod sockets;
mod start;
mod store;
mod strangers;
mod streams;
mod system_store;
mod target;
mod token;
mod tuning;
mod upward;
mod watch;

use std::io;
use std::path::{Path, PathBuf};

use self::control::TcpError;
use self::handover::State;
use self::launch::Heritage;
use self::missing::missing_programs;
use self::release::Release;
pub use self::release::{Refusal, Source, read_spec};
use self::runtime::RuntimeError;
use self::sockets::SocketError;
use self::target::Wanted;
use crate::core::advice::of_file;
pub use crate::core::spec::PROTOCOL_VARIABLES;
use crate::core::spec::ServiceSpec;
use crate::plain::{Limit, Resource};
use crate::sys::activation::ActivationError;
use crate::sys::handover::Unpacked;
use crate::sys::kernel::TooOld;
use crate::sys::limits;
pub use crate::sys::paths::{absolute, folder};
use crate::sys::signals;

pub use crate::core::pid1::BUG;

/// Why a manager could not start, or ended before its service did.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// The service file cannot be used; the refusal says all that is wrong.
    #[error("{}", .0.summary)]
    BadFile(Box<Refusal>),
    /// The descriptors handed over by a socket activator make no sense.
    #[error("cannot use the sockets that were handed over")]
    Activation(#[from] ActivationError),
    /// A socket could not be bound.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// What is to be watched is not there.
    #[error("cannot watch {}", path.display())]
    Watch {
        /// The path.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The address of `[control] tcp` could not be bound.
    #[error(transparent)]
    ControlTcp(#[from] TcpError),
    /// There is no runtime directory to be had.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// Workers that nothing ends outlive their manager.
    #[error("left behind: {}", .0.join("; "))]
    Left(Vec<String>),
    /// The kernel lacks what there is no substitute for.
    #[error(transparent)]
    Kernel(#[from] TooOld),
    /// The kernel refused something else.
    #[error("{doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// What went wrong.
        source: io::Error,
    },
}

impl ManagerError {
    /// Returns what to do next, where something can be said.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Socket(error) => error.hint(),
            Self::ControlTcp(error) => error.hint(),
            Self::Runtime(RuntimeError::Taken { service, .. }) => {
                Some(format!("stop that one first, or give this service another `name` than `{service}`"))
            }
            Self::Runtime(RuntimeError::OfAnother { service, .. }) => Some(format!(
                "unset RUNTIME_DIRECTORY, or set it to a folder of `{service}` alone"
            )),
            Self::Runtime(RuntimeError::TooLong(_)) => {
                Some("set RUNTIME_DIRECTORY to a shorter path, or give the service a shorter `name`".into())
            }
            Self::Runtime(RuntimeError::Unsafe { .. }) => Some(
                "set XDG_RUNTIME_DIR or RUNTIME_DIRECTORY to a folder of this user's own, below folders that only root and this \
                 user may write to"
                    .into(),
            ),
            Self::Runtime(RuntimeError::Io { source, .. })
                if source.kind() == io::ErrorKind::ReadOnlyFilesystem =>
            {
                Some(format!("set RUNTIME_DIRECTORY to a folder that this user may write to; {}", sockets::READ_ONLY))
            }
            Self::Runtime(_) => Some("set RUNTIME_DIRECTORY to a folder that this user may write to".into()),
            Self::Left(_) => Some("see what holds it: `ps -o pid,stat,wchan,user PID`".into()),
            Self::BadFile(_) | Self::Activation(_) | Self::Watch { .. } | Self::Kernel(_) | Self::Io { .. } => None,
        }
    }
}

/// Sets back the signals that whoever started this program may have had ignored or blocked and that our children and time-outs
/// need. To be called by every command, before all else.
pub fn reset_signals() {
    // It cannot fail for real signals.
    let _ = signals::reset_inherited();
}

/// Keeps the signals that drive a manager pending, so that none is lost before it can be obeyed. To be called first of all.
pub fn hold_signals() {
    // It cannot fail for a set of real signals; if it did, the old window would be open again and no more.
    let _ = signals::block_early();
}

/// Runs a service until it has ended; a change of one of the absolute `watched` paths, if any, is an upgrade.
///
/// # Errors
///
/// What kept it from starting; nothing that happens later ends a manager early.
pub fn run(source: Source, watched: &[PathBuf], color: bool) -> Result<(), ManagerError> {
    let mut daemon = begin::begin(source, watched, color)?;
    let ended = daemon.run().map_err(|source| ManagerError::Io { doing: "waiting for events", source });
    let left = daemon.nothing_is_left();
    daemon.part();
    ended.and(left)
}

/// Goes on with a service whose manager this process was before, as another program, until it has ended; `None` where there
/// is nothing to go on with. To be called before any descriptor is opened.
///
/// # Errors
///
/// What was handed over could not be taken up.
pub fn resume() -> Option<Result<(), ManagerError>> {
    let io = |doing| move |source| ManagerError::Io { doing, source };
    let resumed = |(state, luggage): (State, Unpacked)| {
        let (mut daemon, askers) = state.resume(luggage)?;
        daemon.take_up(askers)?;
        daemon.close_sockets();
        Ok(daemon)
    };
    let daemon = handover::take()?.and_then(resumed).map_err(io("taking over from the manager before"));
    Some(daemon.and_then(|mut daemon| {
        let ended = daemon.run().map_err(io("waiting for events"));
        let left = daemon.nothing_is_left();
        daemon.part();
        ended.and(left)
    }))
}

/// What there is to say of a service file that can be used.
#[derive(Debug)]
pub struct Checked {
    /// What it defines, in a line.
    pub summary: String,
    /// What is good to know before the first start or upgrade.
    pub notes: Vec<String>,
    /// What is missing at present that workers will need.
    pub warnings: Vec<String>,
}

/// Checks a service file as an upgrade would, binding nothing.
///
/// # Errors
///
/// All that is wrong with it.
pub fn check(file: &Path, color: bool) -> Result<Checked, Refusal> {
    let read = Release::read(&Source::File(file.to_owned()), &Wanted::First, false, color)?;
    let release = read.release;
    let failed = |error: io::Error| Refusal::new(&format!("{}: {error}", file.display()));
    let clashes = sockets::clashes(&release.spec);
    if !clashes.is_empty() {
        return Err(Refusal::of(&Source::File(file.to_owned()), &clashes));
    }
    let heritage = Heritage::take(limits::own(Resource::Nofile).map_err(failed)?);
    let warnings = missing_programs(&release, &heritage).map_err(failed)?;
    let notes = release.shared_code().into_iter().chain(of_file(&release.spec)).collect();
    Ok(Checked { summary: summary(&release.spec), notes, warnings })
}

fn summary(spec: &ServiceSpec) -> String {
    let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let sockets: Vec<_> = spec.sockets.iter().map(|socket| socket.listen.as_str()).collect();
    let sockets = if sockets.is_empty() { "no socket".into() } else { sockets.join(", ") };
    let strength = match spec.policy.workers {
        0 => "a process for each connection".into(),
        workers => count(workers as usize, "worker"),
    };
    format!("service `{}`: {strength} on {sockets}", spec.name)
}

/// Raises our own limit of open descriptors as far as we may, and returns what it was: workers get that again, as
/// programs that use select(2) expect a small one.
fn raise_descriptor_limit() -> io::Result<Limit> {
    let given = limits::own(Resource::Nofile)?;
    limits::set_own(Resource::Nofile, Limit { soft: given.hard, hard: given.hard })?;
    Ok(given)
}
