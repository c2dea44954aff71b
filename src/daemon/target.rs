//! The target of a service: the code that it runs, where that has a name of its own (`[service] target`).
//!
//! The file says what it is, an upgrade may name another one, and what was named holds until the file says something new.
//! `[upgrade] head` records the one that serves, for the next manager to begin with.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::head::{self, Instead, Recording, RejectedRecord};
use super::release::{Release, enter};
use crate::core::ids::RequestId;
use crate::core::spec::ServiceSpec;
use crate::core::word::one_line;
use crate::sys::handover::plain;
use crate::sys::program_file::FileIdentity;
use crate::sys::way::{self, Trusted, WayError};
use crate::wire::control::NamedTarget;

plain!(NamedTarget);

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
    /// Nobody has named any: the service file's, unless what is recorded speaks against it.
    First,
    /// The one that was typed when the manager was started.
    Typed,
    /// A request or the hook `pre_upgrade` names this one.
    Named(NamedTarget),
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

    /// Returns the target of a service, where it has one; `begun_with` says so where it is not what the service file names.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub fn find(
        &self,
        bounds: &Bounds<'_>,
        begun_with: &mut Option<String>,
        warnings: &mut Vec<String>,
    ) -> Result<Option<Target>, String> {
        let spec = bounds.spec;
        let Some(file) = &spec.process.target else {
            return match self {
                Self::Named(named) => Err(format!(
                    "there is no `target` in [service] that could be changed to {}",
                    one_line(&named.typed)
                )),
                Self::First | Self::Typed | Self::Standing { .. } => Ok(None),
            };
        };
        let at = |path: &str| bounds.locate(path);
        match self {
            Self::Named(named) => bounds.named(named).map(Some),
            Self::Standing { file: before, given: Some(given) } if before.as_ref() == Some(file) => {
                at(given).map(Some)
            }
            Self::First => match bounds.recorded(file, warnings) {
                Some((target, why)) => {
                    begun_with.replace(why);
                    Ok(Some(target))
                }
                None => at(file).map(Some),
            },
            Self::Typed => {
                let target = at(file)?;
                warnings.extend(head::differs(spec, Path::new(&target.resolved), bounds.user));
                Ok(Some(target))
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

    /// Returns the target that is recorded to have served instead of what the `file` names, and why.
    fn recorded(&self, file: &str, warnings: &mut Vec<String>) -> Option<(Target, String)> {
        let given = self.spec.process.directory.join(file);
        let own = given.canonicalize().unwrap_or_else(|_| given.clone());
        self.instead(&own, file, warnings, |found| {
            let mut target = self.locate(&found.path.to_string_lossy())?;
            if !found.is_choice
                && let Some(given) = given.to_str()
            {
                // The next upgrade is to what the file names.
                given.clone_into(&mut target.given);
            }
            Ok(target)
        })
    }

    /// Returns the directory that is recorded to have served instead of `own`, resolved, and why.
    pub fn recorded_directory(&self, own: &Path, warnings: &mut Vec<String>) -> Option<(PathBuf, String)> {
        self.instead(own, &own.display().to_string(), warnings, |found| enter(&found.path))
    }

    /// Takes what is recorded to have served instead of `own`, which is called `named`; warns where it cannot be had.
    fn instead<T>(
        &self,
        own: &Path,
        named: &str,
        warnings: &mut Vec<String>,
        take: impl FnOnce(&Instead) -> Result<T, String>,
    ) -> Option<(T, String)> {
        let found = head::instead(self.spec, own, self.user).transpose()?;
        let taken = found.and_then(|found| Ok((take(&found)?, found.why)));
        taken.map_err(|why| warnings.push(head::passed_by(self.spec, &why, named))).ok()
    }

    /// Finds a target that a request or the hook `pre_upgrade` names.
    fn named(&self, NamedTarget { typed, path }: &NamedTarget) -> Result<Target, String> {
        let Some(path) = path else { return self.locate(typed) };
        if self.spec.hooks.pre_upgrade.is_none() {
            return self.locate(path);
        }
        // The hook may understand it as a name, so that what it names is found after the hook has run.
        if self.yet_to_run && Path::new(typed).is_relative() {
            return Ok(Target { given: path.clone(), resolved: path.clone(), file: None });
        }
        // A hook that gives back what was typed means a path from the service's directory, as it did in the liveswap that was written in
        // Node. A client elsewhere means the one that it sees.
        let is_only_here = !Path::new(path).exists() && self.spec.process.directory.join(typed).exists();
        self.locate(if is_only_here { typed } else { path })
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

/// What is known of targets beside those of the generations.
#[derive(Debug, Default)]
pub(super) struct Targets {
    /// Those that requests name whose upgrades have not begun.
    pub(super) asked: BTreeMap<RequestId, NamedTarget>,
    /// What was rolled back last, as far as this manager knows.
    pub(super) rejected: RejectedRecord,
    /// The records on their way to the disk. Nobody hands over meanwhile.
    pub(super) recording: Option<Recording>,
}

impl Targets {
    /// Nothing is being recorded.
    pub(super) fn asked(asked: BTreeMap<RequestId, NamedTarget>) -> Self {
        Self { asked, ..Self::default() }
    }
}
