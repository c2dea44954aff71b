//! How a process of a generation is started: argument vector, environment, identity.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use nix::unistd::{Gid, Uid};

use super::release::Release;
use crate::core::ids::{GenerationId, SlotId, WorkerId};
use crate::core::spec::{self, Output, Protocol};
use crate::sys::limits::{Limit, Resource};
use crate::sys::spawn::{Credentials, Launch, candidates};
use crate::sys::strings::CStrings;

/// Variables of the protocols that the manager takes part in itself: they speak of it, not of a worker.
const OWN_VARIABLES: [&str; 9] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDNAMES",
    "FDSTORE",
    "MAINPID",
];

/// The worker's number, as the log has it; no two workers of a manager ever have the same.
pub const WORKER_VARIABLE: &str = "LIVESWAP_WORKER";

/// The variables of a process by name; what is not made for it alone is borrowed.
type Variables<'a> = BTreeMap<&'a OsStr, Cow<'a, OsStr>>;

/// What the manager itself was started with, and passes on.
#[derive(Debug)]
pub struct Heritage {
    environment: BTreeMap<OsString, OsString>,
    /// The limit of open descriptors, which the manager raises for itself alone.
    nofile: Limit,
}

impl Heritage {
    /// Takes the manager's environment as it is now, without the variables that are meant for it alone.
    pub fn take(nofile: Limit) -> Self {
        let is_own = |name: &OsStr| {
            OWN_VARIABLES.iter().any(|own| name == *own) || name.as_bytes().starts_with(b"LIVESWAP_")
        };
        let environment = std::env::vars_os().filter(|(name, _)| !is_own(name)).collect();
        Self { environment, nofile }
    }

    fn environment(&self, release: &Release) -> Variables<'_> {
        let process = &release.spec.process;
        if process.clear_environment {
            return Variables::new();
        }
        let inherited = self.environment.iter().map(|(name, value)| (name.as_os_str(), value.into()));
        let mut variables: Variables<'_> = inherited.collect();
        if process.output == Output::Prefix {
            // It would claim that the worker's output is connected to the journal.
            variables.remove(OsStr::new("JOURNAL_STREAM"));
        }
        variables
    }
}

/// The place that a process is started for, and what it is told of it.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// What it is made of.
    pub release: &'a Release,
    /// Whose code it runs.
    pub generation: GenerationId,
    /// Its slot; hooks have none.
    pub slot: Option<SlotId>,
}

impl Place<'_> {
    fn fill_in<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if !text.contains('{') {
            return text.into();
        }
        let text = text.replace("{generation}", &self.generation.to_string());
        match self.slot {
            Some(slot) => text.replace("{slot}", &slot.to_string()).into(),
            None => text.into(),
        }
    }
}

/// What a worker has beside its place.
#[derive(Debug)]
pub struct Equipment<'a> {
    /// The sockets in the order of the service file.
    pub sockets: Vec<BorrowedFd<'a>>,
    /// Its notify socket.
    pub notify: Option<&'a Path>,
    /// Its watchdog's time-out.
    pub watchdog: Option<Duration>,
    /// The write ends of its output's pipes, under `output = "prefix"`.
    pub outputs: Option<(BorrowedFd<'a>, BorrowedFd<'a>)>,
}

/// Returns how a worker is started.
///
/// # Errors
///
/// A text with an embedded NUL, which the environment of the manager cannot have and the service file may not.
pub fn worker<'a>(
    id: WorkerId,
    place: Place<'_>,
    heritage: &Heritage,
    equipment: &Equipment<'a>,
) -> io::Result<Launch<'a>> {
    let spec = &place.release.spec;
    let mut variables = service_variables(place, heritage);
    set(&mut variables, WORKER_VARIABLE, id.to_string());
    let mut pid_variables = Vec::new();
    if !equipment.sockets.is_empty() {
        let names: Vec<_> = spec.sockets.iter().map(|socket| socket.name.as_str()).collect();
        set(&mut variables, "LISTEN_FDS", equipment.sockets.len().to_string());
        set(&mut variables, "LISTEN_FDNAMES", names.join(":"));
        if spec.process.listen_pid {
            pid_variables.push(c"LISTEN_PID");
        }
    }
    if spec.process.protocol == Protocol::Notify {
        if let Some(path) = equipment.notify {
            variables.insert(OsStr::new("NOTIFY_SOCKET"), path.as_os_str().into());
        }
        if let Some(timeout) = equipment.watchdog {
            set(&mut variables, "WATCHDOG_USEC", timeout.as_micros().to_string());
            pid_variables.push(c"WATCHDOG_PID");
        }
    }
    let launch = process(place, heritage, &spec.process.command, &variables)?;
    let (stdout, stderr) = equipment.outputs.unzip();
    Ok(Launch { pid_variables, descriptors: equipment.sockets.clone(), stdout, stderr, ..launch })
}

/// Returns how a hook or a probe is started: as a worker's program would be, without its sockets.
///
/// # Errors
///
/// As [`worker`].
pub fn helper(
    place: Place<'_>,
    heritage: &Heritage,
    command: &[String],
    extra: &[(&str, String)],
) -> io::Result<Launch<'static>> {
    let mut variables = service_variables(place, heritage);
    for (name, value) in extra {
        set(&mut variables, name, value.as_str());
    }
    process(place, heritage, command, &variables)
}

fn process(
    place: Place<'_>,
    heritage: &Heritage,
    command: &[String],
    variables: &Variables<'_>,
) -> io::Result<Launch<'static>> {
    let release = place.release;
    let process = &release.spec.process;
    let arguments: Vec<_> = command.iter().map(|word| place.fill_in(word)).collect();
    let mut environment = CStrings::default();
    for (name, value) in variables {
        environment.push(&[name.as_bytes(), b"=", value.as_bytes()])?;
    }
    let path = variables.get(OsStr::new("PATH"));
    let program = arguments.first().ok_or_else(|| io::Error::other("the command is empty"))?;
    Ok(Launch {
        programs: candidates(OsStr::new(program.as_ref()), path.map(AsRef::as_ref))?,
        arguments: CStrings::of(arguments.iter().map(|word| word.as_bytes()))?,
        environment,
        pid_variables: Vec::new(),
        directory: CString::new(release.directory.as_os_str().as_bytes())?,
        credentials: release.credentials.as_ref().map(|who| Credentials {
            uid: Uid::from_raw(who.uid),
            gid: Gid::from_raw(who.gid),
            groups: who.groups.iter().copied().map(Gid::from_raw).collect(),
        }),
        umask: process.identity.umask,
        limits: limits(release, heritage),
        ignore_sigpipe: process.ignore_sigpipe,
        descriptors: Vec::new(),
        stdout: None,
        stderr: None,
    })
}

/// The variables that every process of the service has.
fn service_variables<'a>(place: Place<'a>, heritage: &'a Heritage) -> Variables<'a> {
    let mut variables = heritage.environment(place.release);
    for (name, value) in &place.release.environment {
        set(&mut variables, name, place.fill_in(value));
    }
    set(&mut variables, "LIVESWAP_SERVICE", place.release.spec.name.as_str());
    set(&mut variables, "LIVESWAP_GENERATION", place.generation.to_string());
    if let Some(slot) = place.slot {
        set(&mut variables, "LIVESWAP_SLOT", slot.to_string());
    }
    variables
}

fn set<'a>(variables: &mut Variables<'a>, name: &'a str, value: impl Into<Cow<'a, str>>) {
    let value = match value.into() {
        Cow::Borrowed(text) => OsStr::new(text).into(),
        Cow::Owned(text) => OsString::from(text).into(),
    };
    variables.insert(OsStr::new(name), value);
}

/// The limits of the service file, and for descriptors what the manager itself was started with.
fn limits(release: &Release, heritage: &Heritage) -> Vec<(Resource, Limit)> {
    let mut limits = vec![(Resource::Nofile, heritage.nofile)];
    let given = release.spec.process.limits.iter();
    limits.extend(given.map(|(name, limit)| (resource(*name), Limit { soft: limit.soft, hard: limit.hard })));
    limits
}

fn resource(named: spec::Resource) -> Resource {
    match named {
        spec::Resource::As => Resource::As,
        spec::Resource::Core => Resource::Core,
        spec::Resource::Cpu => Resource::Cpu,
        spec::Resource::Data => Resource::Data,
        spec::Resource::Fsize => Resource::Fsize,
        spec::Resource::Locks => Resource::Locks,
        spec::Resource::Memlock => Resource::Memlock,
        spec::Resource::Msgqueue => Resource::Msgqueue,
        spec::Resource::Nice => Resource::Nice,
        spec::Resource::Nofile => Resource::Nofile,
        spec::Resource::Nproc => Resource::Nproc,
        spec::Resource::Rss => Resource::Rss,
        spec::Resource::Rtprio => Resource::Rtprio,
        spec::Resource::Rttime => Resource::Rttime,
        spec::Resource::Sigpending => Resource::Sigpending,
        spec::Resource::Stack => Resource::Stack,
    }
}
