//! How a process of a generation is started: argument vector, environment, identity.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use super::node::load_first;
use super::release::Release;
use super::runtime::NODE_MODULE;
use super::streams::{JOURNAL_VARIABLE, Opened, Streams};
use crate::core::ids::{GenerationId, SlotId, WorkerId};
use crate::core::spec::{Protocol, is_protocol_variable};
use crate::plain::{Limit, Resource};
use crate::sys::spawn::{Launch, candidates};
use crate::sys::strings::CStrings;

/// The worker's number, as the log has it; no two workers of a manager ever have the same.
pub const WORKER_VARIABLE: &str = "LIVESWAP_WORKER";

/// Where a worker reads its messages, a line each.
pub const MESSAGE_VARIABLE: &str = "LIVESWAP_MESSAGE_FD";

/// The number of the first descriptor that a worker inherits (sd_listen_fds(3)).
const FIRST_DESCRIPTOR: usize = 3;

/// The manager's runtime directory: with the service's name it tells whose process it is, whoever is the manager then.
pub const RUNTIME_VARIABLE: &str = "LIVESWAP_RUNTIME_DIRECTORY";

/// The service's name, which hooks and probes have too.
pub const SERVICE_VARIABLE: &str = "LIVESWAP_SERVICE";

/// The folders that systemd makes for the manager's unit (systemd.exec(5)). They are the manager's, which keeps its own files there.
const FOLDERS_OF_UNIT: [&str; 5] =
    ["RUNTIME_DIRECTORY", "STATE_DIRECTORY", "CACHE_DIRECTORY", "LOGS_DIRECTORY", "CONFIGURATION_DIRECTORY"];

/// What the manager itself was started with, and passes on.
#[derive(Debug)]
pub struct Heritage {
    environment: BTreeMap<OsString, OsString>,
    /// The limit of open descriptors, which the manager raises for itself alone.
    nofile: Limit,
    /// The runtime directory, where there is one.
    runtime: Option<PathBuf>,
    /// What is started writes there.
    streams: Rc<Streams>,
}

impl Heritage {
    /// Takes the manager's environment as it is now, without the variables that are meant for it alone.
    pub fn take(nofile: Limit) -> Self {
        let is_own = |name: &OsStr| {
            name.to_str().is_some_and(|name| is_protocol_variable(name) || FOLDERS_OF_UNIT.contains(&name))
        };
        let environment = std::env::vars_os().filter(|(name, _)| !is_own(name)).collect();
        Self { environment, nofile, runtime: None, streams: Rc::new(Streams::find()) }
    }

    /// Tells what is started where the manager has its runtime directory.
    #[must_use]
    pub fn with_runtime(self, runtime: &Path) -> Self {
        Self { runtime: Some(runtime.to_owned()), ..self }
    }

    /// The outputs of what is started.
    pub fn streams(&self) -> &Streams {
        &self.streams
    }

    /// The limit of open descriptors that the manager was started with.
    pub fn nofile(&self) -> Limit {
        self.nofile
    }
}

/// What all processes of a generation have in common, worked out once.
#[derive(Debug)]
pub struct Common {
    environment: Rc<CStrings>,
    /// Variables that a placeholder makes differ from slot to slot.
    by_slot: Vec<(String, String)>,
    path: Option<OsString>,
    limits: Vec<(Resource, Limit)>,
    streams: Rc<Streams>,
}

impl Common {
    /// Works out what the processes of `release` as `generation` have in common.
    ///
    /// # Errors
    ///
    /// A text with an embedded NUL, which the environment of the manager cannot have and the service file may not.
    pub fn of(release: &Release, generation: GenerationId, heritage: &Heritage) -> io::Result<Self> {
        let process = &release.spec.process;
        let mut variables: BTreeMap<&OsStr, Cow<'_, OsStr>> = BTreeMap::new();
        if !process.clear_environment {
            let inherited = heritage.environment.iter();
            variables.extend(inherited.map(|(name, value)| (name.as_os_str(), value.into())));
        }
        if process.output.passes_through() || !heritage.streams.are_shared() {
            // It is about our own outputs. What has another stream to the journal is told of that.
            variables.remove(OsStr::new(JOURNAL_VARIABLE));
        }
        // The manager's own names the folder from which that was started, perhaps by a link: programs that believe it would leave
        // the release to which they are pinned.
        variables.insert(OsStr::new("PWD"), release.directory.as_os_str().into());
        let mut by_slot = Vec::new();
        for (name, value) in &release.environment {
            if value.contains("{slot}") {
                variables.remove(OsStr::new(name));
                by_slot.push((name.clone(), value.clone()));
            } else {
                let value = OsString::from(fill_in(value, generation, None, release).into_owned());
                variables.insert(OsStr::new(name), value.into());
            }
        }
        if let Some(runtime) = heritage.runtime.as_ref().filter(|_| process.protocol == Protocol::Node) {
            load_first(&runtime.join(NODE_MODULE), &mut variables, &mut by_slot);
        }
        let mut environment = CStrings::default();
        for (name, value) in &variables {
            environment.push(&[name.as_bytes(), b"=", value.as_bytes()])?;
        }
        set(&mut environment, SERVICE_VARIABLE, &release.spec.name)?;
        set(&mut environment, "LIVESWAP_GENERATION", &generation.to_string())?;
        if let Some(runtime) = &heritage.runtime {
            let value = runtime.as_os_str().as_bytes();
            environment.push(&[RUNTIME_VARIABLE.as_bytes(), b"=", value])?;
        }
        if let Some(target) = &release.target {
            set(&mut environment, "LIVESWAP_TARGET", &target.resolved)?;
        }
        let path = variables.remove(OsStr::new("PATH")).map(Cow::into_owned);
        let (limits, streams) = (limits(release, heritage), Rc::clone(&heritage.streams));
        Ok(Self { environment: Rc::new(environment), by_slot, path, limits, streams })
    }
}

/// The place that a process is started for, and what it is told of it.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// What it is made of.
    pub release: &'a Release,
    /// What it has in common with all of them.
    pub common: &'a Common,
    /// Whose code it runs.
    pub generation: GenerationId,
    /// Its slot; hooks have none.
    pub slot: Option<SlotId>,
}

impl Place<'_> {
    /// Returns a text with its placeholders replaced.
    pub fn fill_in<'t>(&self, text: &'t str) -> Cow<'t, str> {
        fill_in(text, self.generation, self.slot, self.release)
    }

    fn filled_in<'t>(&self, words: &'t [String]) -> Vec<Cow<'t, str>> {
        words.iter().map(|word| self.fill_in(word)).collect()
    }

    /// The variables of this place alone.
    fn environment(&self) -> io::Result<CStrings> {
        let mut environment = CStrings::default();
        for (name, value) in &self.common.by_slot {
            set(&mut environment, name, &self.fill_in(value))?;
        }
        if let Some(slot) = self.slot {
            set(&mut environment, "LIVESWAP_SLOT", &slot.to_string())?;
        }
        Ok(environment)
    }

    pub(super) fn path(&self) -> Option<Cow<'_, OsStr>> {
        match self.common.by_slot.iter().find(|(name, _)| name == "PATH") {
            Some((_, value)) => Some(OsString::from(self.fill_in(value).into_owned()).into()),
            None => self.common.path.as_deref().map(Cow::Borrowed),
        }
    }
}

fn fill_in<'t>(
    text: &'t str,
    generation: GenerationId,
    slot: Option<SlotId>,
    release: &Release,
) -> Cow<'t, str> {
    if !text.contains('{') {
        return text.into();
    }
    let mut text = text.replace("{generation}", &generation.to_string());
    if let Some(slot) = slot {
        text = text.replace("{slot}", &slot.to_string());
    }
    // Last, as nothing in a path is a placeholder.
    match &release.target {
        Some(target) => text.replace("{target}", &target.resolved).into(),
        None => text.into(),
    }
}

fn set(environment: &mut CStrings, name: &str, value: &str) -> io::Result<()> {
    environment.push(&[name.as_bytes(), b"=", value.as_bytes()])
}

/// What a worker has beside its place.
#[derive(Debug)]
pub struct Equipment<'a> {
    /// The sockets in the order of the service file, then what is in store for it.
    pub sockets: Vec<BorrowedFd<'a>>,
    /// The names of them all.
    pub names: String,
    /// Its notify socket.
    pub notify: Option<&'a Path>,
    /// Its watchdog's time-out.
    pub watchdog: Option<Duration>,
    /// The read end of the pipe for its messages, under `messages = true`.
    pub messages: Option<BorrowedFd<'a>>,
    /// The worker's end of its channel and ours, under `protocol = "node"`.
    pub channel: Option<[BorrowedFd<'a>; 2]>,
    /// Its standard output and error.
    pub outputs: &'a Opened,
    /// The other ends of its pipes, as descriptions of its own. They keep the pipes open when the manager is killed: so it is
    /// not killed by its own next line of output, and the next manager reads what it has written.
    pub kept_open: Vec<BorrowedFd<'a>>,
}

/// Returns how a worker is started.
///
/// # Errors
///
/// As [`Common::of`].
pub fn worker<'a>(id: WorkerId, place: Place<'_>, equipment: &Equipment<'a>) -> io::Result<Launch<'a>> {
    let spec = &place.release.spec;
    let mut environment = place.environment()?;
    set(&mut environment, WORKER_VARIABLE, &id.to_string())?;
    let mut pid_variables = Vec::new();
    if !equipment.sockets.is_empty() {
        set(&mut environment, "LISTEN_FDS", &equipment.sockets.len().to_string())?;
        set(&mut environment, "LISTEN_FDNAMES", &equipment.names)?;
        if spec.process.listen_pid {
            pid_variables.push(c"LISTEN_PID");
        }
    }
    if spec.process.fd_store_max > 0 {
        set(&mut environment, "FDSTORE", &spec.process.fd_store_max.to_string())?;
    }
    if spec.process.protocol == Protocol::Notify {
        if let Some(path) = equipment.notify {
            environment.push(&[b"NOTIFY_SOCKET=", path.as_os_str().as_bytes()])?;
        }
        if let Some(timeout) = equipment.watchdog {
            set(&mut environment, "WATCHDOG_USEC", &timeout.as_micros().to_string())?;
            pid_variables.push(c"WATCHDOG_PID");
        }
    }
    let mut descriptors = equipment.sockets.clone();
    if let Some(messages) = equipment.messages {
        // After those that LISTEN_FDS counts.
        set(&mut environment, MESSAGE_VARIABLE, &(FIRST_DESCRIPTOR + descriptors.len()).to_string())?;
        descriptors.push(messages);
    }
    if let Some(ends) = equipment.channel {
        set(&mut environment, "NODE_CHANNEL_FD", &(FIRST_DESCRIPTOR + descriptors.len()).to_string())?;
        set(&mut environment, "NODE_UNIQUE_ID", &place.slot.unwrap_or(SlotId(0)).to_string())?;
        // Ours as well, to nobody's use but this: the channel does not end with the manager, which a worker would take for a
        // reason to exit at once.
        descriptors.extend(ends);
    }
    descriptors.extend(&equipment.kept_open);
    let launch = process(place, &place.filled_in(&spec.process.command), environment, equipment.outputs)?;
    Ok(Launch { pid_variables, descriptors, ..launch })
}

/// Returns how a hook or a probe is started: as a worker's program would be, without its sockets.
///
/// # Errors
///
/// As [`Common::of`].
pub fn helper(place: Place<'_>, command: &[String], extra: &[(&str, String)]) -> io::Result<Launch<'static>> {
    let mut environment = place.environment()?;
    for (name, value) in extra {
        set(&mut environment, name, value)?;
    }
    process(place, &place.filled_in(command), environment, &place.common.streams.open_for_helper()?)
}

/// Returns how words are executed as they are, as a hook's would be.
///
/// # Errors
///
/// As [`Common::of`].
pub fn program(place: Place<'_>, words: &[String]) -> io::Result<Launch<'static>> {
    process(place, words, place.environment()?, &place.common.streams.open_for_helper()?)
}

fn process(
    place: Place<'_>,
    arguments: &[impl AsRef<str>],
    mut environment: CStrings,
    outputs: &Opened,
) -> io::Result<Launch<'static>> {
    let release = place.release;
    let process = &release.spec.process;
    let is_told = !process.clear_environment && !release.environment.contains_key(JOURNAL_VARIABLE);
    if let Some(journal) = outputs.journal.as_ref().filter(|_| is_told) {
        set(&mut environment, JOURNAL_VARIABLE, journal)?;
    }
    let program = arguments.first().ok_or_else(|| io::Error::other("the command is empty"))?.as_ref();
    Ok(Launch {
        programs: candidates(OsStr::new(program), place.path().as_deref())?,
        pinned: None,
        arguments: CStrings::of(arguments.iter().map(|word| word.as_ref().as_bytes()))?,
        shared_environment: Rc::clone(&place.common.environment),
        environment,
        pid_variables: Vec::new(),
        directory: CString::new(release.directory.as_os_str().as_bytes())?,
        credentials: release.credentials.clone(),
        umask: process.identity.umask,
        limits: place.common.limits.clone(),
        ignore_sigpipe: process.ignore_sigpipe,
        held_signals: 0,
        descriptors: Vec::new(),
        cgroup: None,
        stdin: None,
        stdout: outputs.out.clone().map(Into::into),
        stderr: outputs.err.clone().map(Into::into),
    })
}

/// The limits of the service file, and for descriptors what the manager itself was started with.
fn limits(release: &Release, heritage: &Heritage) -> Vec<(Resource, Limit)> {
    let mut limits = vec![(Resource::Nofile, heritage.nofile)];
    limits.extend(release.spec.process.limits.clone());
    limits
}
