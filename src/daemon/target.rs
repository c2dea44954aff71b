//! The target of a service: the code that it runs, where that has a name of its own (`[service] target`).
//!
//! The file says what it is, an upgrade may name another one, and what was named holds until the file says something new.
//! `[upgrade] head` records the one that serves, for the next manager to begin with.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use tracing::{error, warn};

use super::release::{Release, open_file, read_open};
use super::run::{Daemon, Role};
use crate::core::ids::RequestId;
use crate::core::notice::Outcome;
use crate::core::spec::ServiceSpec;
use crate::core::time::Mono;
use crate::core::word::one_line;
use crate::sys::folder::Folder;
use crate::sys::fork::{ForkedWork, in_child};
use crate::sys::process::{kill_tree, may_make_files_in};
use crate::sys::program_file::FileIdentity;
use crate::sys::reaper::Exit;
use crate::sys::way::{self, Trusted, WayError};

/// How long answers wait for the record of what they are about.
const RECORD_TAKES: std::time::Duration = std::time::Duration::from_secs(5);

/// The target of a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The absolute path as it was given.
    pub given: String,
    /// The same with all symbolic links resolved: what this generation is pinned to.
    pub resolved: String,
    /// Which file that is, where it is one.
    #[serde(default)]
    pub file: Option<FileIdentity>,
}

/// Which target a release is to have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wanted {
    /// Nobody has named any: what `head` has recorded, or else the service file's.
    First,
    /// Somebody has named this one.
    Named(String),
    /// The one that serves, unless the service file names another than it did.
    Standing {
        /// What the file named then.
        file: Option<String>,
        /// What serves.
        given: Option<String>,
    },
}

impl Wanted {
    /// Wants what a release has, where nobody names another.
    pub fn as_in(release: &Release) -> Self {
        let given = release.target.as_ref().map(|target| target.given.clone());
        Self::Standing { file: release.spec.process.target.clone(), given }
    }

    /// Returns the target of a service, where it has one.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub fn find(&self, bounds: &Bounds<'_>, warnings: &mut Vec<String>) -> Result<Option<Target>, String> {
        let spec = bounds.spec;
        let Some(file) = &spec.process.target else {
            return match self {
                Self::Named(path) => Err(format!(
                    "there is no `target` in [service] that could be changed to {}",
                    one_line(path)
                )),
                Self::First | Self::Standing { .. } => Ok(None),
            };
        };
        let at = |path: &str| bounds.locate(path);
        match self {
            Self::Named(path) => at(path).map(Some),
            Self::Standing { file: before, given: Some(given) } if before.as_ref() == Some(file) => {
                at(given).map(Some)
            }
            Self::First => {
                let recorded = spec.hooks.head.as_deref().and_then(|head| {
                    let recorded = recorded(head, bounds.user).transpose()?.and_then(|path| at(&path));
                    let warn =
                        |why| warnings.push(format!("head {}: {why}; starting {file}", head.display()));
                    recorded.map_err(warn).ok()
                });
                recorded.map_or_else(|| at(file), Ok).map(Some)
            }
            Self::Standing { .. } => at(file).map(Some),
        }
    }
}

/// What a target may be.
///
/// Whoever may speak to the manager may name one, and it runs as the workers' user. All that is decided here is decided of the
/// resolved path, which is what workers are started with.
#[derive(Clone, Copy, Debug)]
pub struct Bounds<'a> {
    spec: &'a ServiceSpec,
    /// Hooks are yet to run that may make the target, so that it need not exist.
    yet_to_run: bool,
    /// Who the workers are.
    user: u32,
}

impl<'a> Bounds<'a> {
    /// The bounds of a service whose workers are this user.
    pub fn of(spec: &'a ServiceSpec, yet_to_run: bool, user: u32) -> Self {
        Self { spec, yet_to_run, user }
    }

    fn locate(&self, path: &str) -> Result<Target, String> {
        if path.contains(char::is_control) {
            return Err(format!("target {}: its path has a control character", one_line(path)));
        }
        let refuse = |why: &dyn std::fmt::Display| format!("target {}: {why}", one_line(path));
        let given = self.spec.process.directory.join(path);
        let (resolved, is_there) = match given.canonicalize() {
            Err(error) if self.yet_to_run && error.kind() == ErrorKind::NotFound => (given.clone(), false),
            resolved => (resolved.map_err(|error| refuse(&error))?, true),
        };
        self.check(&resolved, is_there).map_err(|why| refuse(&why))?;
        let text = |path: PathBuf| path.into_os_string().into_string();
        match (text(given), text(resolved)) {
            (Ok(given), Ok(resolved)) => {
                let file = Path::new(&resolved);
                let file = file.is_file().then(|| FileIdentity::at(file).ok()).flatten();
                Ok(Target { given, resolved, file })
            }
            _ => Err(refuse(&"its path is not UTF-8")),
        }
    }

    /// Refuses a resolved path that is out of bounds; where it `is_there` not yet, as far as that can be told.
    fn check(&self, resolved: &Path, is_there: bool) -> Result<(), String> {
        if let Some(within) = &self.spec.process.target_within {
            let bound = within
                .canonicalize()
                .map_err(|error| format!("cannot resolve `target_within` {}: {error}", within.display()))?;
            let reached = if is_there { Some(resolved.to_owned()) } else { resolved_so_far(resolved) };
            if !reached.is_some_and(|reached| reached != bound && reached.starts_with(&bound)) {
                let (resolved, bound) = (resolved.display(), bound.display());
                return Err(format!("it is {resolved}, which is not below `target_within` {bound}"));
            }
        }
        if self.user != 0 || !is_there {
            return Ok(());
        }
        rely_on(resolved)?;
        entries_to_rely_on(resolved)?.iter().try_for_each(|entry| rely_on(entry))
    }
}

/// Refuses what is to run as root, and others than root can change.
fn rely_on(path: &Path) -> Result<(), String> {
    let refuse = |path: &Path, why: &str| {
        format!(
            "workers are root, and {} {why}: give it to root alone, or set `user` in [service]",
            path.display()
        )
    };
    match way::find(path, Trusted::user(0)) {
        Err(WayError::Unsafe { path, why }) => Err(refuse(&path, &why)),
        Err(error @ WayError::Io { .. }) => Err(error.to_string()),
        Ok(found) if found.is_made_up() || !(found.is_file() || found.is_folder()) => {
            Err(refuse(path, "is no file or folder on a disk"))
        }
        Ok(found) if found.is_in_shared_folder() => {
            Err(refuse(path, "lies in a folder in which others may put another one, once it is removed"))
        }
        Ok(found) if found.path != path && path.canonicalize().ok().as_ref() != Some(&found.path) => {
            Err("it was moved meanwhile".into())
        }
        Ok(_) => Ok(()),
    }
}

/// What of a target that is a folder must be relied upon as well: all that lies in it, and the file that Node takes for its
/// program. What lies deeper is not looked at.
fn entries_to_rely_on(target: &Path) -> Result<Vec<PathBuf>, String> {
    if !target.is_dir() {
        return Ok(Vec::new());
    }
    let failed = |error: io::Error| format!("{}: {error}", target.display());
    let entries = fs::read_dir(target).map_err(failed)?.map(|entry| Ok(entry?.path()));
    let mut entries = entries.collect::<io::Result<Vec<_>>>().map_err(failed)?;
    let package = fs::read(target.join("package.json")).unwrap_or_default();
    let package: serde_json::Value = serde_json::from_slice(&package).unwrap_or_default();
    if let Some(main) = package["main"].as_str() {
        let main = target.join(main);
        let forms = ["", ".js", ".json", ".node", "/index.js", "/index.json", "/index.node"];
        let forms = forms.map(|end| PathBuf::from(format!("{}{end}", main.display())));
        entries.extend(forms.into_iter().filter(|form| form.exists()));
    }
    Ok(entries)
}

/// Resolves as much of a path as is there, and adds the rest; `None` where that would lead upwards.
fn resolved_so_far(path: &Path) -> Option<PathBuf> {
    let (above, resolved) =
        path.ancestors().skip(1).find_map(|above| Some((above, above.canonicalize().ok()?)))?;
    let rest = path.strip_prefix(above).ok()?;
    let is_plain = rest.components().all(|part| matches!(part, Component::Normal(_)));
    is_plain.then(|| resolved.join(rest))
}

/// Reads what was recorded; `None` where nothing was. It chooses what runs, so nobody may have written it but root, the manager's user
/// and the workers' `user`.
fn recorded(head: &Path, user: u32) -> Result<Option<String>, String> {
    let (file, metadata) = match open_file(head) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|error| error.to_string())?,
    };
    let owner = metadata.uid();
    if ![0, user, geteuid().as_raw()].contains(&owner) {
        return Err(format!("it belongs to user {owner}"));
    }
    if metadata.mode() & 0o002 != 0 {
        return Err(format!("anybody may write to it (mode {:04o})", metadata.mode() & 0o7777));
    }
    let bytes = read_open(file, &metadata).map_err(|error| error.to_string())?;
    let path = String::from_utf8(bytes).ok().map(|text| text.strip_suffix('\n').unwrap_or(&text).to_owned());
    let is_path = |path: &String| path.starts_with('/') && !path.contains(char::is_control);
    path.filter(is_path).map(Some).ok_or_else(|| "it does not hold the path of a target".into())
}

/// Says why a record cannot be written there, as far as that can be known beforehand.
pub(super) fn unwritable(head: &Path) -> Option<String> {
    let folder = head.parent().unwrap_or(Path::new("/"));
    let why = match (head.is_dir(), may_make_files_in(folder)) {
        (true, _) => "it is a folder".to_owned(),
        (false, Err(error)) => format!("{}: {}", folder.display(), error),
        (false, Ok(())) => return None,
    };
    Some(format!("head {} cannot be written: {why}", head.display()))
}

/// Records what serves: whoever reads finds the path of before or this one, whatever happens meanwhile. No link leads to
/// another folder than that of whoever made the link.
fn record(head: &Path, target: &str) -> io::Result<()> {
    let folder = Folder::open(head.parent().unwrap_or(Path::new("/")))?;
    let name = head.file_name().ok_or(ErrorKind::InvalidInput)?;
    folder.replace(name, format!("{target}\n").as_bytes())
}

/// What is known of targets beside those of the generations.
#[derive(Debug, Default)]
pub(super) struct Targets {
    /// Those that requests name whose upgrades have not begun.
    pub(super) asked: BTreeMap<RequestId, String>,
    /// The record of the one that serves, on its way to the disk. Nobody hands over meanwhile.
    pub(super) recording: Option<Recording>,
}

impl Targets {
    /// Nothing is being recorded.
    pub(super) fn asked(asked: BTreeMap<RequestId, String>) -> Self {
        Self { asked, recording: None }
    }
}

/// A record on its way to the disk, which a child takes there, as disks may hang.
#[derive(Debug)]
pub(super) struct Recording {
    work: ForkedWork,
    head: PathBuf,
    until: Mono,
    /// What is to be said when it is true of the record as well.
    answers: Vec<(RequestId, Outcome)>,
}

impl Recording {
    /// When answers wait no more.
    pub(super) fn deadline(&self) -> Mono {
        self.until
    }
}

impl Daemon {
    /// Records the target that serves, where the service file wants that.
    pub(super) fn record_head(&mut self) {
        let Some(release) = self.generations.get(&self.manager.current()).map(|of| &of.release) else {
            return;
        };
        let (Some(head), Some(target)) = (&release.spec.hooks.head, &release.target) else { return };
        let (head, target) = (head.clone(), target.given.clone());
        // One that is still under way would come too late.
        self.give_up_recording("another one is due");
        let work = in_child(|| match record(&head, &target) {
            Ok(()) => Vec::new(),
            Err(error) => error.to_string().into_bytes(),
        });
        match work {
            Ok(work) => {
                self.roles.insert(work.pid, Role::Head);
                let until = self.now() + RECORD_TAKES;
                self.targets.recording = Some(Recording { work, head, until, answers: Vec::new() });
            }
            Err(error) => error!("head {}: cannot be written: {error}", head.display()),
        }
    }

    /// Keeps an answer until what it is about is recorded; gives it back where nothing is being recorded.
    pub(super) fn hold_answer(&mut self, request: RequestId, outcome: &Outcome) -> bool {
        let Some(recording) = self.targets.recording.as_mut().filter(|_| *outcome == Outcome::Committed)
        else {
            return false;
        };
        recording.answers.push((request, outcome.clone()));
        true
    }

    /// Takes the end of a record.
    pub(super) fn recorded(&mut self, exit: Exit) {
        let Some(mut recording) = self.targets.recording.take() else { return };
        let mut said = Vec::new();
        let is_read = recording.work.read(&mut said);
        let why = match (is_read, exit) {
            (Ok(_), Exit::Code(0)) if said.is_empty() => None,
            (Ok(_), Exit::Code(0)) => Some(String::from_utf8_lossy(&said).into_owned()),
            (Err(error), _) => Some(error.to_string()),
            (Ok(_), exit) => Some(format!("whoever wrote it {exit}")),
        };
        if let Some(why) = why {
            error!("head {}: cannot be written: {why}", recording.head.display());
        }
        self.say_held(recording.answers);
    }

    /// Gives up a record that takes too long.
    pub(super) fn end_late_recording(&mut self) {
        if self.targets.recording.as_ref().is_some_and(|recording| recording.until <= self.now()) {
            self.give_up_recording("it takes too long");
        }
    }

    fn give_up_recording(&mut self, why: &str) {
        let Some(recording) = self.targets.recording.take() else { return };
        warn!("head {}: is not written: {why}", recording.head.display());
        if self.roles.remove(&recording.work.pid).is_some() {
            let _ = kill_tree(recording.work.pid);
        }
        self.say_held(recording.answers);
    }

    fn say_held(&mut self, answers: Vec<(RequestId, Outcome)>) {
        for (request, outcome) in answers {
            self.answer(request, &outcome);
        }
    }
}
