//! What outlives the manager of the releases of a service: which one serves, and which one was rolled back.
//!
//! `[upgrade] head` holds the path of the release that serves, and nothing else. Two files stand beside it: `head.rejected` tells of the
//! release that was rolled back last, and `head.chosen` what the service file named when an upgrade chose another target by its name. A
//! manager begins with what the service file names, and with `head` where one of the two says that something else served.

use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{geteuid, getppid};
use serde::{Deserialize, Serialize};
use tracing::{error, warn};

use super::files::{open_file, read_open};
use super::host::{Ended, Failure, Job};
use super::release::Release;
use super::run::{Daemon, Role};
use crate::core::head::{self as choice, Rejection, Why};
use crate::core::ids::{GenerationId, RequestId};
use crate::core::notice::{Notice, Outcome};
use crate::core::spec::ServiceSpec;
use crate::sys::folder::Folder;
use crate::sys::fork::in_child;
use crate::sys::process::may_make_files_in;
use crate::sys::program_file::FileIdentity;

/// How long answers wait for the record of what they are about.
const RECORD_TAKES: std::time::Duration = std::time::Duration::from_secs(5);

/// What the names of the other two files add to that of `head`.
const REJECTED: &str = ".rejected";
const CHOSEN: &str = ".chosen";

/// A release that was rolled back. A folder that is used again for a mended release has changed since, and is another one.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Rejected {
    service: String,
    /// The target or directory, resolved.
    #[serde(with = "crate::path_text")]
    path: PathBuf,
    file: FileIdentity,
}

/// What a manager begins with instead of what the service file names.
#[derive(Debug)]
pub struct Instead {
    /// What served.
    pub path: PathBuf,
    /// Why, for the log and the status.
    pub why: String,
    /// Whether somebody has chosen it, so that it stays when the file is read again.
    pub is_choice: bool,
}

/// Returns where a service has its records if its file names no place: in the folder that the service manager made for the state of its
/// unit (systemd.exec(5), `StateDirectory=`), where we are that unit's main process.
pub fn default_place() -> Option<PathBuf> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<i32>().ok();
    // Either process: a service file is read in a child.
    let is_own = |pid| pid == std::process::id().cast_signed() || pid == getppid().as_raw();
    // Whom the unit's main process starts inherits all of it (SYSTEMD_EXEC_PID since 248).
    std::env::var_os("NOTIFY_SOCKET").filter(|_| number("SYSTEMD_EXEC_PID").is_none_or(is_own))?;
    let folders = std::env::var("STATE_DIRECTORY").ok()?;
    let first = folders.split(':').next().filter(|first| first.starts_with('/'))?;
    Some(Path::new(first).join("head"))
}

/// Returns what a manager begins with instead of `own`, the resolved path of what the service file names, where the records say so. `user`
/// is who the workers are.
///
/// # Errors
///
/// Why what they say cannot be had, in words.
pub fn instead(spec: &ServiceSpec, own: &Path, user: u32) -> Result<Option<Instead>, String> {
    let Some(head) = &spec.hooks.head else { return Ok(None) };
    let read = |end| read_record(&beside(head, end), user);
    let rejected = read(REJECTED)?.and_then(|text| serde_json::from_slice::<Rejected>(&text).ok());
    let rejected = rejected.filter(|rejected| {
        rejected.service == spec.name && FileIdentity::at(own).is_ok_and(|file| file == rejected.file)
    });
    let file = spec.process.target.as_ref().map(|target| target.clone().into_bytes());
    // Earlier versions wrote an end of line behind the target that an upgrade had chosen, and no other file.
    let is_of_before = || Ok::<_, String>(read("")?.is_some_and(|text| text.ends_with(b"\n")));
    let passed_over = file.is_some() && (read(CHOSEN)? == file || is_of_before()?);
    let Some(path) = recorded(head, user)? else { return Ok(None) };
    let rejected = rejected.as_ref().map(|rejected| rejected.path.as_path());
    let Some(why) = choice::instead(&own, &path.as_path(), rejected.as_ref(), passed_over) else {
        return Ok(None);
    };
    let reason = match why {
        Why::RolledBack => format!("{} was rolled back", own.display()),
        Why::PassedOver => format!("an upgrade chose it by its name instead of {}", own.display()),
    };
    let why_in_words = format!("begun with {}, which served last: {reason}", path.display());
    Ok(Some(Instead { path, why: why_in_words, is_choice: why == Why::PassedOver }))
}

/// Says that what is recorded is not believed, and what is begun with.
pub fn passed_by(spec: &ServiceSpec, why: &str, own: &str) -> String {
    let head = spec.hooks.head.as_deref().unwrap_or(Path::new("")).display();
    format!("head {head}: {why}; starting {own}")
}

/// Says what is recorded where that is not the target that was typed, which a manager starts with all the same.
pub fn differs(spec: &ServiceSpec, typed: &Path, user: u32) -> Option<String> {
    let head = spec.hooks.head.as_deref()?;
    match recorded(head, user) {
        Ok(recorded) => recorded.filter(|recorded| recorded != typed).map(|recorded| {
            let (head, recorded, typed) = (head.display(), recorded.display(), typed.display());
            format!("head {head} names {recorded}; starting {typed}, which was typed")
        }),
        Err(why) => Some(passed_by(spec, &why, &typed.display().to_string())),
    }
}

/// Returns the path of a release that was recorded.
fn recorded(head: &Path, user: u32) -> Result<Option<PathBuf>, String> {
    let bytes = read_record(head, user)?;
    // With the end of line that earlier versions wrote.
    let path = bytes.map(|bytes| bytes.strip_suffix(b"\n").map_or_else(|| bytes.clone(), <[u8]>::to_vec));
    match path {
        Some(path) if !path.starts_with(b"/") || path.iter().any(u8::is_ascii_control) => {
            Err("it does not hold the path of a release".into())
        }
        path => Ok(path.map(|path| OsString::from_vec(path).into())),
    }
}

/// Reads a record; `None` where there is none. It chooses what runs, so nobody may have written it but root, the manager's user and the
/// workers' `user`.
fn read_record(file: &Path, user: u32) -> Result<Option<Vec<u8>>, String> {
    let (file, metadata) = match open_file(file) {
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
    read_open(file, &metadata).map(Some).map_err(|error| error.to_string())
}

/// The path of a file beside `head`.
fn beside(head: &Path, end: &str) -> PathBuf {
    let mut path = OsString::from(head);
    path.push(end);
    path.into()
}

/// Says why a record cannot be written there, as far as that can be known beforehand.
pub fn unwritable(head: &Path) -> Option<String> {
    let folder = head.parent().unwrap_or(Path::new("/"));
    let why = match (head.is_dir(), may_make_files_in(folder)) {
        (true, _) => "it is a folder".to_owned(),
        (false, Err(error)) => format!("{}: {}", folder.display(), error),
        (false, Ok(())) => return None,
    };
    Some(format!("head {} cannot be written: {why}", head.display()))
}

/// What to record of the release that was rolled back last.
#[derive(Clone, Debug, Default)]
pub(super) enum RejectedRecord {
    /// What stands there.
    #[default]
    Kept,
    /// That there is none.
    Cleared,
    /// That it is this generation's, with its path.
    Of(GenerationId, PathBuf),
}

/// All that is to be recorded.
struct Records {
    head: PathBuf,
    service: String,
    serving: PathBuf,
    /// Whether it ever did: one that never became ready is nothing to begin with.
    has_served: bool,
    chosen: Option<String>,
    rejected: RejectedRecord,
}

impl Records {
    /// Writes them: whoever reads one finds that of before or this one, whatever happens meanwhile. No link leads to another folder than that
    /// of whoever made the link.
    fn write(&self) -> io::Result<()> {
        let folder = Folder::open(self.head.parent().unwrap_or(Path::new("/")))?;
        let name = |end| {
            let path = beside(&self.head, end);
            path.file_name().map(OsStr::to_owned).ok_or(ErrorKind::InvalidInput)
        };
        let remove = |end| match folder.unlink(&name(end)?) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(io::Error::from(error)),
        };
        if self.has_served {
            folder.replace(&name("")?, self.serving.as_os_str().as_encoded_bytes())?;
            match &self.chosen {
                Some(target) => folder.replace(&name(CHOSEN)?, target.as_bytes())?,
                None => remove(CHOSEN)?,
            }
        }
        match &self.rejected {
            RejectedRecord::Kept => Ok(()),
            // In place: there is nothing that could be begun with instead.
            RejectedRecord::Of(_, path) if *path == self.serving => remove(REJECTED),
            RejectedRecord::Of(_, path) => {
                let file = match FileIdentity::at(path) {
                    Err(error) if error.kind() == ErrorKind::NotFound => return remove(REJECTED),
                    file => file?,
                };
                let rejected = Rejected { service: self.service.clone(), path: path.clone(), file };
                folder.replace(&name(REJECTED)?, &serde_json::to_vec(&rejected)?)
            }
            RejectedRecord::Cleared => remove(REJECTED),
        }
    }
}

/// Records on their way to the disk, which a child takes there, as disks may hang.
#[derive(Debug)]
pub(super) struct Recording {
    head: PathBuf,
    /// Whether there is something else to record by now.
    is_due_again: bool,
    /// What is to be said when it is true of the records as well.
    answers: Vec<(RequestId, Outcome)>,
}

impl Release {
    /// The path by which it is known to the next manager.
    fn path(&self) -> PathBuf {
        self.target.as_ref().map_or_else(|| self.directory.clone(), |target| PathBuf::from(&target.resolved))
    }

    /// What the service file named, where an upgrade has chosen another target by its name.
    fn passed_over(&self) -> Option<String> {
        let (named, target) = self.spec.process.target.as_ref().zip(self.target.as_ref())?;
        (self.spec.process.directory.join(named) != Path::new(&target.given)).then(|| named.clone())
    }
}

impl Daemon {
    /// Records what a notice says of the release that was rolled back last.
    pub(super) fn note_rejection(&mut self, notice: &Notice) {
        let brought_back =
            |id| self.generations.get(&id).is_some_and(|generation| generation.release.is_brought_back);
        self.targets.rejected = match choice::rejection(notice, self.manager.previous(), brought_back) {
            Some(Rejection::Of(id)) => match self.generations.get(&id) {
                Some(generation) => RejectedRecord::Of(id, generation.release.path()),
                None => return,
            },
            Some(Rejection::Cleared) => RejectedRecord::Cleared,
            None => return,
        };
        self.record_head();
    }

    /// Takes the end of a generation: what its workers have written into its folder until then does not make that another one.
    pub(super) fn note_rejected_end(&mut self, generation: GenerationId) {
        if matches!(self.targets.rejected, RejectedRecord::Of(rejected, _) if rejected == generation) {
            self.record_head();
        }
    }

    /// Records the release that serves, where the service has a place for that.
    pub(super) fn record_head(&mut self) {
        let Some(release) = self.generations.get(&self.manager.current()).map(|of| &of.release) else {
            return;
        };
        let Some(head) = release.spec.hooks.head.clone() else { return };
        if let Some(recording) = &mut self.targets.recording {
            recording.is_due_again = true;
            return;
        }
        let records = Records {
            head: head.clone(),
            service: release.spec.name.clone(),
            serving: release.path(),
            has_served: self.manager.has_served(),
            chosen: release.passed_over(),
            rejected: self.targets.rejected.clone(),
        };
        let work = in_child(|| match records.write() {
            Ok(()) => Vec::new(),
            Err(error) => error.to_string().into_bytes(),
        });
        match work.and_then(|work| self.begin_job(Role::Head, Job::work(work), Some(RECORD_TAKES))) {
            Ok(_) => {
                let recording = Recording { head, is_due_again: false, answers: Vec::new() };
                self.targets.recording = Some(recording);
            }
            Err(error) => error!("head {}: cannot be written: {error}", head.display()),
        }
    }

    /// Keeps an answer until what it is about is recorded; gives it back where nothing is being recorded.
    pub(super) fn hold_answer(&mut self, request: RequestId, outcome: &Outcome) -> bool {
        let is_recorded = matches!(outcome, Outcome::Committed | Outcome::RolledBack(_));
        let Some(recording) = self.targets.recording.as_mut().filter(|_| is_recorded) else {
            return false;
        };
        recording.answers.push((request, outcome.clone()));
        true
    }

    /// Takes the end of a record.
    pub(super) fn recorded(&mut self, ended: Ended) {
        let Some(recording) = self.targets.recording.take() else { return };
        let why = match ended.result {
            Ok(()) if ended.said.is_empty() => None,
            Ok(()) => Some(String::from_utf8_lossy(&ended.said).into_owned()),
            Err(Failure::TooLate) => {
                warn!("head {}: is not written: it takes too long", recording.head.display());
                // Not again: the disk would not do it either.
                return self.say_held(recording.answers);
            }
            Err(failure) => Some(format!("the child that wrote it {failure}")),
        };
        if let Some(why) = why {
            error!("head {}: cannot be written: {why}", recording.head.display());
        }
        self.end_recording(recording);
    }

    /// Says what has waited for a record, unless that is still to come.
    fn end_recording(&mut self, recording: Recording) {
        if recording.is_due_again {
            self.record_head();
        }
        match &mut self.targets.recording {
            Some(next) => next.answers.extend(recording.answers),
            None => self.say_held(recording.answers),
        }
    }

    fn say_held(&mut self, answers: Vec<(RequestId, Outcome)>) {
        for (request, outcome) in answers {
            self.answer(request, &outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::{self, Origin};

    /// A folder with two releases, and what is recorded beside them.
    struct Site(tempfile::TempDir);

    impl Site {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir_all(folder.path().join("1")).unwrap();
            fs::create_dir_all(folder.path().join("2")).unwrap();
            Self(folder)
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.path().canonicalize().unwrap().join(name)
        }

        fn spec(&self, target: Option<&str>) -> ServiceSpec {
            let target = target.map(|target| format!("target = '{target}'\n")).unwrap_or_default();
            let head = self.at("head").display().to_string();
            let text = format!("[service]\ncommand = ['true']\n{target}[upgrade]\nhead = '{head}'\n");
            config::parse(&text, &Origin { path: self.at("web.toml"), cpus: 1 }).unwrap()
        }

        fn record(&self, serving: &str, chosen: Option<&str>, rejected: RejectedRecord) {
            let (head, service, chosen) = (self.at("head"), "web".into(), chosen.map(str::to_owned));
            let serving = self.at(serving);
            Records { head, service, serving, has_served: true, chosen, rejected }.write().unwrap();
        }

        fn begins_with(&self, target: Option<&str>, own: &str) -> Option<PathBuf> {
            let instead = instead(&self.spec(target), &self.at(own), 0).unwrap();
            instead.map(|instead| instead.path)
        }
    }

    #[test]
    fn what_was_rolled_back_is_not_begun_with_until_it_is_another() {
        let site = Site::new();
        assert_eq!(site.begins_with(None, "2"), None);
        site.record("1", None, RejectedRecord::Kept);
        assert_eq!(fs::read_to_string(site.at("head")).unwrap(), site.at("1").display().to_string());
        assert_eq!(site.begins_with(None, "2"), None);
        site.record("1", None, RejectedRecord::Of(GenerationId(2), site.at("2")));
        assert_eq!(site.begins_with(None, "2"), Some(site.at("1")));
        assert_eq!(site.begins_with(None, "1"), None);
        site.record("1", None, RejectedRecord::Kept);
        assert_eq!(site.begins_with(None, "2"), Some(site.at("1")));
        // Of another service that records in the same place.
        let other = ServiceSpec { name: "other".into(), ..site.spec(None) };
        assert!(instead(&other, &site.at("2"), 0).unwrap().is_none());
        // Mended in its folder, it is a new one.
        fs::write(site.at("2/server"), "").unwrap();
        assert_eq!(site.begins_with(None, "2"), None);
        site.record("1", None, RejectedRecord::Of(GenerationId(2), site.at("2")));
        site.record("1", None, RejectedRecord::Cleared);
        assert_eq!(site.begins_with(None, "2"), None);
        // What serves is never passed over.
        site.record("2", None, RejectedRecord::Of(GenerationId(2), site.at("2")));
        assert_eq!(site.begins_with(None, "2"), None);
    }

    #[test]
    fn what_was_chosen_by_name_is_begun_with_while_the_file_names_what_it_did() {
        let site = Site::new();
        site.record("2", Some("1"), RejectedRecord::Kept);
        assert_eq!(site.begins_with(Some("1"), "1"), Some(site.at("2")));
        assert_eq!(site.begins_with(Some("3"), "3"), None);
        // As earlier versions wrote it.
        fs::remove_file(site.at("head.chosen")).unwrap();
        fs::write(site.at("head"), format!("{}\n", site.at("2").display())).unwrap();
        assert_eq!(site.begins_with(Some("1"), "1"), Some(site.at("2")));
        site.record("1", None, RejectedRecord::Kept);
        assert_eq!(site.begins_with(Some("1"), "1"), None);
    }

    #[test]
    fn a_record_that_anybody_may_write_to_or_that_is_no_path_is_an_error() {
        use std::os::unix::fs::PermissionsExt;
        let site = Site::new();
        site.record("1", None, RejectedRecord::Of(GenerationId(2), site.at("2")));
        for text in ["relative", "", "/with\nlines"] {
            fs::write(site.at("head"), text).unwrap();
            assert!(instead(&site.spec(None), &site.at("2"), 0).is_err(), "{text:?}");
        }
        fs::write(site.at("head"), "/srv/1\n").unwrap();
        assert_eq!(site.begins_with(None, "2"), Some(PathBuf::from("/srv/1")));
        fs::set_permissions(site.at("head.rejected"), fs::Permissions::from_mode(0o666)).unwrap();
        assert!(instead(&site.spec(None), &site.at("2"), 0).is_err());
    }
}
