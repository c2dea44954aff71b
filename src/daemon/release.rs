//! A release: what a generation is made of, with everything looked up once and pinned.
//!
//! All of this may block (a file on a dead network, a slow name service) or fail in strange ways, so it runs in a forked
//! child ([`super::checker`]): a [`Release`] is plain data that travels through a pipe.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use super::checker::PinnedRelease;
use super::files::{read_environment, read_file, read_token};
use super::head;
use super::log::usual_output;
use super::program::Program;
use super::sockets::Owner;
use super::target::{Bounds, Target, Wanted};
use crate::config::flags::{self, Flags};
use crate::config::original::{self, Original};
use crate::config::{self, COMMAND_LINE, KeyLines, Origin};
use crate::core::printable::{Printable, printable};
use crate::core::spec::{Identity, Output, ProcessSpec, ServiceSpec, SocketSpec};
use crate::plain::Credentials;
use crate::sys::{names, process};
use crate::wire::secret::Secret;

/// Where a service is defined; it is read at every upgrade.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// In the service file at this absolute path.
    File(#[serde(with = "crate::path_text")] PathBuf),
    /// By what was typed, which stays as it is.
    Flags(Flags),
    /// The same, as the original command line has it.
    Original(Original),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Flags(_) | Self::Original(_) => f.write_str(COMMAND_LINE),
        }
    }
}

/// A service file as read, and all that it refers to as found at that moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// The service.
    pub spec: ServiceSpec,
    /// `directory` with all symbolic links resolved.
    #[serde(with = "crate::path_text")]
    pub directory: PathBuf,
    /// `environment_files` and `environment` over them; placeholders are not yet replaced.
    pub environment: BTreeMap<String, String>,
    /// Who the workers are; `None`: who the manager is.
    pub credentials: Option<Credentials>,
    /// Who owns the UNIX paths, a pair for each socket of the specification.
    pub owners: Vec<Owner>,
    /// The group that may use the control socket.
    pub control_group: Option<u32>,
    /// What lets anybody speak by TCP.
    pub control_token: Option<Secret>,
    /// The code that runs, where it has a name of its own.
    pub target: Option<Target>,
    /// The program of the command, where one was found; hooks may still have to make it.
    #[serde(default)]
    pub program: Option<Program>,
    /// Why a manager has begun with it instead of what the service file names.
    #[serde(default)]
    pub begun_with: Option<String>,
    /// Whether it is that of an earlier generation, to which somebody went back.
    #[serde(default)]
    pub is_brought_back: bool,
    /// Whether the hook `pre_upgrade` is for `node` to run.
    pub pre_upgrade_is_node: bool,
    /// What is worth a word in the log and no reason to refuse.
    pub warnings: Vec<String>,
}

impl Release {
    /// Returns the user whose its workers are.
    pub fn user(&self) -> u32 {
        self.credentials.as_ref().map_or_else(|| geteuid().as_raw(), |who| who.uid)
    }
}

/// Why a service file makes no release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// One line, for the log and the status.
    pub summary: String,
    /// Everything, for a person at a terminal.
    pub details: String,
}

impl Refusal {
    pub(super) fn new(summary: &str) -> Self {
        // It names files and quotes them, and is one line all the same.
        let summary = printable(summary).into_owned();
        Self { details: format!("Error: {summary}"), summary }
    }

    /// Refuses a service for all that it refers to and that cannot be had.
    pub(super) fn of(source: &Source, problems: &[String]) -> Self {
        let (short, long) = match source {
            Source::File(path) => {
                let name = path.file_name().unwrap_or(path.as_os_str()).display();
                (format!("{name}: "), format!("{source}: "))
            }
            // There is one command line, and every problem names what it is about.
            Source::Flags(_) | Source::Original(_) => (String::new(), String::new()),
        };
        let others = match problems.len() {
            0 | 1 => String::new(),
            count => format!(" (and {} more)", count - 1),
        };
        let first = problems.first().map_or("", String::as_str);
        let summary = Printable(format_args!("{short}{first}{others}")).to_string();
        let detail = |problem: &String| format!("Error: {}", Printable(format_args!("{long}{problem}")));
        let details: Vec<_> = problems.iter().map(detail).collect();
        Self { summary, details: details.join("\n") }
    }
}

impl Release {
    /// Reads the definition of a service, and looks up all that it refers to. What is `yet_to_run` before an upgrade may
    /// still make the target.
    ///
    /// May block; see the module.
    ///
    /// # Errors
    ///
    /// All problems of the definition at once, or else all that it refers to and that cannot be had.
    pub fn read(
        source: &Source,
        wanted: &Wanted,
        yet_to_run: bool,
        color: bool,
    ) -> Result<PinnedRelease, Refusal> {
        let (spec, lines) = read_with_lines(source, color)?;
        let spec = settled(spec, matches!(source, Source::File(_)));
        let (mut problems, mut warnings, mut begun_with) = (Vec::new(), Vec::new(), None);
        let mut directory = enter(&spec.process.directory)
            .map_err(|why| problems.push(lines.at("service.directory", &why)))
            .unwrap_or_default();
        let mut environment = files_of(&spec.process, |why| {
            problems.push(lines.at("service.environment_files", &why));
        });
        environment.extend(spec.process.environment.clone());
        let mut note = |table: &str, error: &names::NameError| {
            let path = format!("{table}.{}", key_of(error, &spec.process.identity));
            problems.push(lines.at(&path, &in_words(error)));
        };
        let credentials = look_up(&spec.process.identity, &mut environment)
            .map_err(|error| note("service", &error))
            .unwrap_or_default();
        let owners = owners(&spec, &mut note);
        let group = spec.control.group.as_deref().map(names::group_id).transpose();
        let group = group.map_err(|error| note("control", &error));
        let control_group = group.unwrap_or_default().map(Into::into);
        let token = spec.control.token_file.as_deref().map(read_token).transpose();
        let token = token.map_err(|why| problems.push(lines.at("control.token_file", &why)));
        let control_token = token.unwrap_or_default();
        let beyond_reach = credentials.as_ref().and_then(beyond_reach);
        problems.extend(beyond_reach.map(|why| lines.at("service.user", &why)));
        let is_to_be_made = yet_to_run && spec.hooks.are_any_before();
        let user = credentials.as_ref().map_or_else(|| geteuid().as_raw(), |who| who.uid);
        let bounds = Bounds::of(&spec, is_to_be_made, user);
        let target = wanted.find(&bounds, &mut begun_with, &mut warnings);
        let target = target.map_err(|why| problems.push(why)).unwrap_or_default();
        if *wanted == Wanted::First
            && spec.process.target.is_none()
            && let Some((recorded, why)) = bounds.recorded_directory(&directory, &mut warnings)
        {
            (directory, begun_with) = (recorded, Some(why));
        }
        warnings.extend(begun_with.clone());
        let program = program(&spec.process, &environment, target.as_ref(), &directory, credentials.as_ref());
        problems.extend(spec.hooks.head.as_deref().and_then(head::unwritable));
        let pre_upgrade_is_node = spec.hooks.pre_upgrade.as_deref().is_some_and(is_for_node);
        if !problems.is_empty() {
            return Err(Refusal::of(source, &problems));
        }
        let (program, held) = program.unzip();
        let release = Self {
            spec,
            directory,
            environment,
            credentials,
            owners,
            control_group,
            control_token,
            target,
            program,
            begun_with,
            is_brought_back: false,
            pre_upgrade_is_node,
            warnings,
        };
        Ok(PinnedRelease { release, program: held })
    }
}

fn is_for_node(module: &Path) -> bool {
    config::is_node_program(&module.to_string_lossy()) || module.is_dir()
}

/// Reads the environment files, and reports those that cannot be read.
fn files_of(process: &ProcessSpec, mut report: impl FnMut(String)) -> BTreeMap<String, String> {
    let mut environment = BTreeMap::new();
    for file in &process.environment_files {
        match read_environment(&file.path, file.optional) {
            Ok(variables) => environment.extend(variables),
            Err(why) => report(why),
        }
    }
    environment
}

/// Fills in what a service file leaves to the place where the manager runs.
fn settled(mut spec: ServiceSpec, is_file: bool) -> ServiceSpec {
    if is_file {
        spec.hooks.head = spec.hooks.head.or_else(head::default_place);
    }
    if spec.process.output == Output::Auto {
        spec.process.output = usual_output();
    }
    spec
}

/// Finds the program of the command, with the variables that the workers will have.
fn program(
    spec: &ProcessSpec,
    environment: &BTreeMap<String, String>,
    target: Option<&Target>,
    directory: &Path,
    who: Option<&Credentials>,
) -> Option<(Program, OwnedFd)> {
    let fill_in = |text: &str| match target {
        Some(target) => text.replace("{target}", &target.resolved),
        None => text.to_owned(),
    };
    let word = fill_in(&spec.command[0]);
    let given = environment.get("PATH").map(|path| fill_in(path));
    // What else stands in for something differs from slot to slot, or from generation to generation.
    let differs = |text: &String| text.contains("{slot}") || text.contains("{generation}");
    if differs(&word) || given.as_ref().is_some_and(differs) {
        return None;
    }
    let own = std::env::var_os("PATH").filter(|_| !spec.clear_environment);
    Program::find(&word, given.map(OsString::from).or(own).as_deref(), directory, who)
}

/// Says where workers would be out of our reach once they are started: whom nothing can end serves for ever.
fn beyond_reach(who: &Credentials) -> Option<String> {
    let is_other = who.uid != geteuid().as_raw();
    (is_other && !process::may_signal_others()).then(|| {
        format!(
            "workers of user {} could not be ended, as this manager lacks CAP_KILL: give it that capability \
             (AmbientCapabilities=CAP_KILL in a unit, --cap-add KILL for a container), or leave `user` out",
            who.uid
        )
    })
}

/// Resolves `directory`, symbolic links and all.
pub(super) fn enter(directory: &Path) -> Result<PathBuf, String> {
    let entered = directory.canonicalize().and_then(|directory| {
        // A folder that may not be entered, or no folder at all.
        directory.join(".").metadata().map(|_| directory)
    });
    entered.map_err(|error| format!("cannot enter directory {}: {error}", directory.display()))
}

/// Returns the key whose value names a user or a group that cannot be found.
fn key_of(error: &names::NameError, identity: &Identity) -> &'static str {
    match error {
        names::NameError::NoSuchGroup(name) => match &identity.supplementary_groups {
            Some(groups) if groups.contains(name) && identity.group.as_ref() != Some(name) => {
                "supplementary_groups"
            }
            _ => "group",
        },
        _ => "user",
    }
}

/// Returns who is to own the socket files, and notes what cannot be found.
fn owners(spec: &ServiceSpec, note: &mut impl FnMut(&str, &names::NameError)) -> Vec<Owner> {
    let of = |(place, socket)| {
        owner(socket).map_err(|error| note(&format!("socket.{place}"), &error)).unwrap_or_default()
    };
    spec.sockets.iter().enumerate().map(of).collect()
}

fn owner(socket: &SocketSpec) -> Result<Owner, names::NameError> {
    let uid = socket.options.user.as_deref().map(names::user_id).transpose()?;
    let gid = socket.options.group.as_deref().map(names::group_id).transpose()?;
    Ok(Owner { uid: uid.map(Into::into), gid: gid.map(Into::into) })
}

/// Reads and checks the definition of a service alone, without what it refers to.
///
/// # Errors
///
/// All problems of the definition at once.
pub fn read_spec(source: &Source, color: bool) -> Result<ServiceSpec, Refusal> {
    read_with_lines(source, color).map(|(spec, _)| spec)
}

/// As [`read_spec`], with the lines of the keys.
fn read_with_lines(source: &Source, color: bool) -> Result<(ServiceSpec, KeyLines), Refusal> {
    let mut lines = KeyLines::default();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let cpus = u32::try_from(cpus).unwrap_or(1);
    let spec = match source {
        Source::File(path) => {
            let unread = |error: io::Error| {
                let next = if error.kind() == io::ErrorKind::NotFound {
                    "; put it there, or start a service without a file: liveswap run -l 127.0.0.1:8080 -- ./server"
                } else if path.is_dir() {
                    "; name the service file in it"
                } else {
                    ""
                };
                Refusal::new(&format!("cannot read {}: {error}{next}", path.display()))
            };
            let bytes = read_file(path).map_err(unread)?;
            let origin = Origin { path: path.clone(), cpus };
            config::decode(&bytes, &origin).and_then(|text| {
                let spec = config::parse(text, &origin)?;
                lines = KeyLines::of(text);
                Ok(spec)
            })
        }
        Source::Flags(given) => flags::parse(given, cpus),
        Source::Original(given) => original::parse(given, cpus),
    };
    spec.map(|spec| (spec, lines))
        .map_err(|problems| Refusal { summary: problems.summary(), details: problems.render(color) })
}

/// Looks up who the workers are; a named user also gives the variables of a login (systemd.exec(5), `User=`), beneath
/// those of the service file.
fn look_up(
    identity: &Identity,
    environment: &mut BTreeMap<String, String>,
) -> Result<Option<Credentials>, names::NameError> {
    let groups = identity.supplementary_groups.as_deref();
    let found = names::credentials(identity.user.as_deref(), identity.group.as_deref(), groups)?;
    if let Some(user) = &identity.user {
        for (name, value) in names::login_variables(user)? {
            environment.entry(name.to_owned()).or_insert(value);
        }
    }
    Ok(found)
}

/// Returns an error with its causes in one line.
pub(super) fn in_words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
