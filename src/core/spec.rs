//! What one service file defines, as plain data.
//!
//! `config` makes these values and vouches for them: whoever holds a [`ServiceSpec`] need not check it again. The
//! core itself reads the [`Policy`] alone; the rest is for the shell that starts processes and binds sockets.

mod sockets;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use sockets::{Accept, SocketOptions, SocketSpec};

pub use crate::plain::{Limit, Resource, SocketAddress, SocketKind};

/// The variables of the protocols between a manager and whom it starts (sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3),
/// systemd.exec(5), and those by which a Node program knows that it is a cluster's worker).
pub const PROTOCOL_VARIABLES: [&str; 12] = [
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDNAMES",
    "FDSTORE",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "MAINPID",
    "NODE_CHANNEL_FD",
    "NODE_CHANNEL_SERIALIZATION_MODE",
    "NODE_UNIQUE_ID",
];

/// Whether a variable belongs to the protocols: what the manager itself finds there speaks of it and not of a worker, and
/// nothing else may set it for one.
pub fn is_protocol_variable(name: &str) -> bool {
    PROTOCOL_VARIABLES.contains(&name) || name.starts_with("LIVESWAP_")
}

/// A service, as its file defines it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// `[A-Za-z0-9._-]+`.
    pub name: String,
    /// How a worker is started.
    pub process: ProcessSpec,
    /// In the order of the file, which is the order of the descriptors in the worker.
    pub sockets: Vec<SocketSpec>,
    /// How long a lazy service serves on without a connection; `None`: for ever.
    pub idle_timeout: Option<Duration>,
    /// What the core decides by.
    pub policy: Policy,
    /// The probe command of `[ready] when = "probe"`; empty otherwise.
    pub probe: Vec<String>,
    /// Commands around an upgrade.
    pub hooks: Hooks,
    /// How the manager is spoken to.
    pub control: ControlSpec,
}

/// How a worker is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a key of the service file")]
pub struct ProcessSpec {
    /// The argument vector, never empty; `{generation}`, `{slot}` and `{target}` are not yet replaced.
    pub command: Vec<String>,
    /// The code that runs, where it has a name of its own: a path, absolute or relative to `directory`. An upgrade may name
    /// another one.
    pub target: Option<String>,
    /// The absolute folder that every target must lie below, symbolic links not yet resolved; `None` without `target`.
    #[serde(default, with = "crate::path_text::option")]
    pub target_within: Option<PathBuf>,
    /// Absolute, symbolic links not yet resolved.
    #[serde(with = "crate::path_text")]
    pub directory: PathBuf,
    /// How the worker learns of its sockets and speaks of its state.
    pub protocol: Protocol,
    /// Whether the manager's own environment is kept from the worker.
    pub clear_environment: bool,
    /// Read at every upgrade, beneath `environment`.
    pub environment_files: Vec<EnvironmentFile>,
    /// The topmost variables; placeholders in the values are not yet replaced.
    pub environment: BTreeMap<String, String>,
    /// Who the workers are.
    pub identity: Identity,
    /// Resource limits, by the name of setrlimit(2) in lower case without `RLIMIT_`.
    pub limits: BTreeMap<Resource, Limit>,
    /// Where the standard output and error go.
    pub output: Output,
    /// Whether SIGPIPE is ignored in the worker (systemd.exec(5), `IgnoreSIGPIPE=`).
    pub ignore_sigpipe: bool,
    /// Whether `LISTEN_PID` is set; off for wrapper scripts that do not `exec`.
    pub listen_pid: bool,
    /// Whether it takes messages, on an inherited pipe (`LIVESWAP_MESSAGE_FD`).
    pub messages: bool,
    /// How many descriptors each slot may have in store (systemd.service(5), `FileDescriptorStoreMax=`).
    pub fd_store_max: u32,
    /// The number of the signal that asks a worker to drain.
    pub drain_signal: i32,
}

/// How the worker learns of its sockets and speaks of its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// `LISTEN_FDS` and a notify socket.
    Notify,
    /// `LISTEN_FDS`; the worker says nothing.
    Plain,
    /// A Node program as a worker of a cluster: the channel of docs/protocols.md. It asks for its sockets when it listens.
    Node,
}

/// A file of `KEY=VALUE` lines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentFile {
    /// Absolute.
    #[serde(with = "crate::path_text")]
    pub path: PathBuf,
    /// Written with a leading `-`: no error where it is missing.
    pub optional: bool,
}

/// Who the workers are. Names stay names until a generation is prepared; a number is written in digits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// A name or a number.
    pub user: Option<String>,
    /// A name or a number; default: the user's own group.
    pub group: Option<String>,
    /// Names or numbers; `None`: those of the user's entry.
    pub supplementary_groups: Option<Vec<String>>,
    /// File mode creation mask, 0 to 0o777.
    pub umask: Option<u32>,
}

/// Where a worker's standard output and error go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// As fits what reads the manager's standard error; one of the others once a release was read.
    Auto,
    /// To where the manager's own go.
    Inherit,
    /// Through the manager, each line led by the worker's name.
    Prefix,
    /// Through the manager, each line as it is.
    Copy,
}

impl Output {
    /// Whether the manager reads it and passes it on.
    #[must_use]
    pub fn passes_through(self) -> bool {
        matches!(self, Self::Prefix | Self::Copy)
    }
}

/// Commands around an upgrade; an empty one is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hooks {
    /// Must exit 0, or the upgrade is refused.
    pub before: Vec<String>,
    /// Is told the outcome.
    pub after: Vec<String>,
    /// Runs before `before`, is told the target and may name another.
    #[serde(default, with = "crate::path_text::option")]
    pub pre_upgrade: Option<PathBuf>,
    /// Where the target that serves is recorded.
    #[serde(default, with = "crate::path_text::option")]
    pub head: Option<PathBuf>,
    /// After it a hook is killed.
    pub timeout: Duration,
}

impl Hooks {
    /// Whether anything runs before an upgrade.
    pub fn are_any_before(&self) -> bool {
        !self.before.is_empty() || self.pre_upgrade.is_some()
    }
}

/// How the manager is spoken to, and by whom beside the owner and root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlSpec {
    /// Who may connect to the control socket: a group's name or number.
    pub group: Option<String>,
    /// Where it is spoken to by TCP; the port is not 0, and there is a token file where the address is not a loopback one.
    pub tcp: Option<SocketAddr>,
    /// Where the token stands that lets anybody speak by TCP; absolute. `None` without `tcp`, and where the manager makes one.
    #[serde(default, with = "crate::path_text::option")]
    pub token_file: Option<PathBuf>,
    /// Whether the manager's user and root need no token on a loopback address.
    #[serde(default)]
    pub local_owner: bool,
    /// Whether `tcp` is a default that the operator did not choose: the application may have the address instead.
    #[serde(default)]
    pub gives_way: bool,
}

/// What the core decides by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// How many workers serve; 0 where each connection has a process of its own, about which nothing is decided in here.
    pub workers: u32,
    /// Whether they start with the first connection, and may all go where none is left.
    pub lazy: bool,
    /// What makes a worker ready.
    pub readiness: Readiness,
    /// A worker that is not ready by then has failed.
    pub ready_timeout: Duration,
    /// How a generation replaces another; `None`: each upgrade decides by where its code lies ([`Code`]).
    pub strategy: Option<Strategy>,
    /// How long the first new workers must stay ready before an old one drains; zero: not at all. `None`: nothing is said of
    /// it, and whoever hands it to the core decides.
    pub min_ready: Option<Duration>,
    /// How long after the last switch a failing worker still rolls the upgrade back.
    pub probation: Duration,
    /// After it a draining worker is killed.
    pub drain_timeout: Duration,
    /// How many generations may drain at a time; at least 1.
    pub max_generations: u32,
    /// The pause before a worker that died by itself is started again, the first time.
    pub restart_initial_delay: Duration,
    /// The pause after many deaths in a row; never below the first.
    pub restart_max_delay: Duration,
    /// A ready worker must say `WATCHDOG=1` this often.
    pub watchdog: Option<Duration>,
}

/// What makes a worker ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Readiness {
    /// It says `READY=1`.
    Notify,
    /// It has been alive this long.
    Settled(Duration),
    /// A command exits 0; it is tried again after this pause.
    Probe(Duration),
    /// A process of it waits for connections on a socket of the file, as the kernel tells, and it has been alive this long since.
    Accepting(Duration),
}

impl Readiness {
    /// Whether it promises by itself that a worker stays ready for a while.
    #[must_use]
    pub fn stands_for_min_ready(self) -> bool {
        matches!(self, Self::Settled(_) | Self::Accepting(_))
    }
}

/// How a generation replaces another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Strategy {
    /// Slot by slot.
    Rolling {
        /// Live workers beyond `workers`, those that drain not counted.
        max_surge: Allowance,
        /// Ready workers that may be missing from `workers`.
        max_unavailable: Allowance,
    },
    /// All new ones ready, then all old ones drain.
    BlueGreen,
    /// All old ones gone, then the new ones start.
    Recreate,
}

impl Strategy {
    /// Slot by slot, with a quarter more workers for a while.
    pub const ROLLING: Self =
        Self::Rolling { max_surge: Allowance::Percent(25), max_unavailable: Allowance::Count(0) };
}

/// Where the code of a new generation lies, seen from the one that serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Code {
    /// In another directory, another target or another program: the old code is still there for whoever starts it.
    Elsewhere,
    /// In the same place: the old processes may be the only copy of the old code.
    InPlace,
}

/// A count of workers, or a share of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Allowance {
    /// That many.
    Count(u32),
    /// Per cent of the workers, rounded up.
    Percent(u32),
}

impl Allowance {
    /// Returns the count that it stands for among `workers`.
    #[must_use]
    pub fn of(self, workers: u32) -> u32 {
        match self {
            Self::Count(count) => count,
            Self::Percent(percent) => {
                let share = (u64::from(workers) * u64::from(percent)).div_ceil(100);
                u32::try_from(share).unwrap_or(u32::MAX)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_rounded_up() {
        assert_eq!(Allowance::Percent(25).of(1), 1);
        assert_eq!(Allowance::Percent(25).of(4), 1);
        assert_eq!(Allowance::Percent(25).of(5), 2);
        assert_eq!(Allowance::Percent(0).of(5), 0);
        assert_eq!(Allowance::Count(3).of(1), 3);
    }
}
