//! What went wrong with which socket, and what to do next.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use nix::errno::Errno;
use thiserror::Error;

use super::overlap::covers;
use super::plan::SocketPlan;
use crate::core::spec::{SocketAddress, SocketKind};
use crate::sys::options::SocketOption;

/// Why the sockets of a service file cannot be had; nothing has changed.
#[derive(Debug, Error)]
pub enum SocketError {
    /// A socket of the file failed.
    #[error("socket `{}` ({}): {problem}", plan.spec.name, plan.spec.listen)]
    Socket {
        /// The socket.
        plan: Box<SocketPlan>,
        /// What is wrong with it.
        problem: Problem,
    },
    /// An activator handed over a descriptor for which the file has no socket.
    #[error("inherited descriptor `{name}` ({what}) matches no socket of the service file")]
    Unmatched {
        /// Its `FDNAME`.
        name: String,
        /// Its address and type, in words.
        what: String,
    },
    /// An activator's descriptor has the name of a socket of the file, but is another.
    #[error("inherited descriptor `{name}` is {what}, but the service file's socket `{name}` is {wanted}")]
    Differs {
        /// The `FDNAME` of both.
        name: String,
        /// The address and type of the descriptor, in words.
        what: String,
        /// The address and type in the file, in words.
        wanted: String,
    },
}

/// What is wrong with a socket.
#[derive(Debug, Error)]
pub enum Problem {
    /// A step failed, for the reason that the error number tells.
    #[error("{step}: {error}")]
    Failed {
        /// What was being done.
        step: Step,
        /// Why it failed.
        error: io::Error,
    },
    /// Another program holds the address.
    #[error("another program listens on this address: {0}")]
    Taken(io::Error),
    /// A socket of the running service holds the address, or one that covers it.
    #[error("socket `{name}` ({listen}) of the running service holds this address: {error}")]
    Overlaps {
        /// The name of the other socket.
        name: String,
        /// Its address as its file wrote it.
        listen: String,
        /// What bind(2) said.
        error: io::Error,
    },
    /// Another socket of the same file holds the address.
    #[error("socket `{name}` ({listen}) of the same file holds this address")]
    Own {
        /// The name of the other socket.
        name: String,
        /// Its address as the file wrote it.
        listen: String,
        /// What to do next.
        hint: &'static str,
    },
    /// The control server of the same service holds the address.
    #[error("the control server ({0}) of the same service has this address")]
    Control(SocketAddr),
    /// Another program holds the path.
    #[error("another program has this path bound")]
    LivePath,
    /// Something stands at the path that is never removed.
    #[error("what stands at this path is no socket")]
    NotASocket,
    /// The option has its effect in bind(2) alone.
    #[error("`{0}` cannot be changed on a bound socket")]
    Unchangeable(SocketOption),
    /// A dead socket's address is not free as long as some process has the dead one.
    #[error("a worker shut it down, and it cannot be bound anew while workers run that have it: {0}")]
    Dead(io::Error),
    /// A dead socket cannot be bound anew, as its path is its activator's.
    #[error("it was inherited, so only its activator can bind it anew")]
    ActivatorsOwn,
}

/// What was being done to a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words below say it")]
pub enum Step {
    Creating,
    MakingFolders,
    Probing,
    RemovingStale,
    Setting(SocketOption),
    Binding,
    SettingOwner,
    SettingMode,
    Listening,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating the socket",
            Self::MakingFolders => "making the folders above the path",
            Self::Probing => "finding out whether another program has the path bound",
            Self::RemovingStale => "removing the stale socket at the path",
            Self::Setting(option) => return write!(f, "setting `{option}`"),
            Self::Binding => "binding",
            Self::SettingOwner => "setting the owner of the path",
            Self::SettingMode => "setting the mode of the path",
            Self::Listening => "listening",
        })
    }
}

impl Step {
    /// Returns what makes a [`Problem`] of an error in this step.
    pub(super) fn failed(self) -> impl FnOnce(io::Error) -> Problem {
        move |error| Problem::Failed { step: self, error }
    }
}

impl Problem {
    /// Names the socket that has the problem.
    pub(super) fn of(self, plan: &SocketPlan) -> SocketError {
        SocketError::Socket { plan: Box::new(plan.clone()), problem: self }
    }
}

impl SocketError {
    /// Returns the number of the error that whoever wanted the socket would have had from the kernel.
    pub fn errno(&self) -> i32 {
        let Self::Socket { problem, .. } = self else { return Errno::EINVAL as i32 };
        match problem {
            Problem::Failed { error, .. }
            | Problem::Taken(error)
            | Problem::Overlaps { error, .. }
            | Problem::Dead(error) => error.raw_os_error().unwrap_or(Errno::EINVAL as i32),
            Problem::LivePath | Problem::NotASocket | Problem::Own { .. } | Problem::Control(_) => {
                Errno::EADDRINUSE as i32
            }
            Problem::Unchangeable(_) | Problem::ActivatorsOwn => Errno::EINVAL as i32,
        }
    }

    /// Blames the control server, where it is that which has the address, and no other program.
    #[must_use]
    pub fn beside(self, control: Option<SocketAddr>) -> Self {
        match (self, control) {
            (Self::Socket { plan, problem: Problem::Taken(_) }, Some(control))
                if covers(&plan.spec, control) =>
            {
                Self::Socket { plan, problem: Problem::Control(control) }
            }
            (error, _) => error,
        }
    }

    /// Whether the control server has the address.
    pub fn is_control_server(&self) -> bool {
        matches!(self, Self::Socket { problem: Problem::Control(_), .. })
    }

    /// Returns what to do next, where we know it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Socket { plan, problem } => hint(plan, problem),
            Self::Unmatched { .. } => Some(
                "add a [[socket]] for it, or take it out of the activator (for systemd: the .socket unit)"
                    .into(),
            ),
            Self::Differs { .. } => Some(
                "make `listen` and `type` say exactly what the activator binds, or rename one of the two"
                    .into(),
            ),
        }
    }
}

fn hint(plan: &SocketPlan, problem: &Problem) -> Option<String> {
    match problem {
        Problem::Taken(_) => Some(who_listens(plan)),
        Problem::Own { hint, .. } => Some((*hint).into()),
        Problem::Control(_) => Some(
            "give one of the two another address: the control server has `tcp` of [control], or `-a` and `-p` of `liveswap -s`".into(),
        ),
        Problem::LivePath => Some(format!("find it with {}", who_listens(plan))),
        Problem::Overlaps { .. } => Some(
            "a running service cannot change over to an address that its old one covers: choose another port, or \
             restart the manager"
                .into(),
        ),
        Problem::NotASocket => Some("remove it by hand, or choose another path".into()),
        Problem::Unchangeable(option) => Some(format!(
            "restart the manager to have another `{option}`, or give the socket another address"
        )),
        Problem::Dead(_) => Some("stop the service and start it again".into()),
        Problem::ActivatorsOwn => {
            Some("restart the activator (for systemd: `systemctl restart` of the .socket unit)".into())
        }
        Problem::Failed { step, error } => hint_for_step(plan, *step, error).map(str::to_owned),
    }
}

/// Returns the command that shows who holds the address.
fn who_listens(plan: &SocketPlan) -> String {
    match (&plan.spec.address, plan.spec.kind) {
        (SocketAddress::Inet(address), SocketKind::Datagram) => {
            format!("`ss -lunp 'sport = :{}'`", address.port())
        }
        (SocketAddress::Inet(address), _) => format!("`ss -ltnp 'sport = :{}'`", address.port()),
        (SocketAddress::Path(_) | SocketAddress::Abstract(_), _) => {
            format!("`ss -xlp | grep -F '{}'`", plan.spec.address)
        }
    }
}

/// What to do where nothing can be written.
pub(in super::super) const READ_ONLY: &str = "the file system is read-only there; under systemd with ProtectSystem=strict, add \
                                              ReadWritePaths= with the folder to the unit";

fn hint_for_step(plan: &SocketPlan, step: Step, error: &io::Error) -> Option<&'static str> {
    let errno = Errno::from_raw(error.raw_os_error()?);
    let is_inet = matches!(plan.spec.address, SocketAddress::Inet(_));
    match (step, errno) {
        (Step::Binding, Errno::EACCES) if is_inet => Some(
            "ports below 1024 need CAP_NET_BIND_SERVICE (systemd: AmbientCapabilities=), or a .socket unit that \
             hands the socket over",
        ),
        (Step::Binding, Errno::EADDRNOTAVAIL) => {
            Some("no interface has this address; `free_bind = true` binds it before it exists")
        }
        (Step::Binding, Errno::EINVAL) if is_inet => {
            Some("a link-local IPv6 address needs its interface: [fe80::1%2]:8080")
        }
        (Step::Creating, Errno::EAFNOSUPPORT) => Some("this kernel has no IPv6; listen on an IPv4 address"),
        (Step::Binding | Step::MakingFolders | Step::RemovingStale, Errno::EACCES | Errno::EPERM) => {
            Some("the manager's user needs write permission in the folder of the path")
        }
        (Step::Binding | Step::MakingFolders | Step::RemovingStale, Errno::EROFS) => Some(READ_ONLY),
        (Step::Probing, Errno::EACCES) => Some(
            "the manager's user may not connect to the socket that stands there; remove it by hand if it is stale",
        ),
        (Step::SettingOwner, Errno::EPERM) => {
            Some("only root may give a path to another user, or to a group that one is not in")
        }
        (Step::Setting(SocketOption::Congestion), Errno::ENOENT) => {
            Some("the algorithms that there are stand in /proc/sys/net/ipv4/tcp_available_congestion_control")
        }
        (Step::Setting(SocketOption::BindToDevice), Errno::ENODEV) => Some("`ip link` lists the interfaces"),
        (Step::Setting(_), Errno::EPERM) => Some("this option needs CAP_NET_ADMIN (or CAP_NET_RAW)"),
        _ => None,
    }
}
