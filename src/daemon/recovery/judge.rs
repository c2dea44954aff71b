//! Reads what a manager that is no more has left, in a child: it may be anything.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, ErrorKind, Read};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::super::release::Release;
use super::VERSION;
use super::record::{Entry, Envelope, ProcessRecord, Record};
use crate::core::Action;
use crate::core::ids::WorkerId;
use crate::sys::fork::in_child;
use crate::sys::own_folder::Folder;
use crate::sys::process;
use crate::sys::way::WayError;

/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The largest state that is read, in bytes; one of 4096 workers is a tenth of that.
const MAX_STATE: u64 = 64 << 20;

/// What was found.
#[derive(Debug, Serialize, Deserialize)]
pub enum Judged {
    /// There is no state, or one of another run of the machine: nothing is left of it.
    Nothing,
    /// It is another service's, of this name.
    Foreign(String),
    /// It cannot be used, for this reason.
    Unusable(String),
    /// It is whole.
    Whole(Box<Recovered>),
}

/// What is known of a manager as of the moment at which it was killed.
#[derive(Debug, Serialize, Deserialize)]
pub struct Recovered {
    pub record: Record,
    /// Workers that were perhaps not yet told to drain, or to abort, when it was.
    pub untold: Vec<(WorkerId, Untold)>,
}

/// What a worker was perhaps not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Untold {
    Drain,
    Abort,
}

impl Recovered {
    /// The name of the service.
    pub fn service(&self) -> &str {
        self.serving().map_or("", |release| &release.spec.name)
    }

    /// The release that served.
    pub fn serving(&self) -> Option<&Release> {
        let current = self.record.manager.current();
        self.record.generations.iter().find(|(id, ..)| *id == current).map(|(_, release, _)| release)
    }
}

impl Judged {
    /// Reads and judges the state of `service`, or where its name is not known of whatever service there was.
    pub fn read(path: &Path, service: Option<&str>) -> Self {
        if !path.exists() {
            return Self::Nothing;
        }
        let work = in_child(|| serde_json::to_vec(&judge(path, service)).unwrap_or_default());
        let answer = work.and_then(|mut work| work.wait(PATIENCE));
        let judged = answer.and_then(|answer| Ok(serde_json::from_slice(&answer)?));
        judged.unwrap_or_else(|error| Self::Unusable(format!("whoever read it failed: {error}")))
    }
}

fn judge(path: &Path, service: Option<&str>) -> Judged {
    let text = match read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Judged::Nothing,
        Err(error) => return Judged::Unusable(error.to_string()),
    };
    understand(&text, service, &process::boot().unwrap_or_default())
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let (folder, name) = (path.parent().unwrap_or(Path::new("/")), path.file_name().and_then(OsStr::to_str));
    let file = match Folder::open(folder, None) {
        Ok(folder) => folder.file(name.unwrap_or_default(), OFlag::O_RDONLY, 0)?,
        Err(WayError::Io { source, .. }) => return Err(source),
        Err(error) => return Err(io::Error::other(error)),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > MAX_STATE {
        return Err(io::Error::other("it is no file that a manager wrote"));
    }
    let mut text = Vec::new();
    file.take(MAX_STATE).read_to_end(&mut text)?;
    Ok(text)
}

fn understand(text: &[u8], service: Option<&str>, boot: &str) -> Judged {
    // What was being written when the manager was killed is no line.
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let mut lines = text[..whole].split_inclusive(|byte| *byte == b'\n');
    let damaged = |number: usize, error: &dyn std::fmt::Display| {
        Judged::Unusable(format!("line {number} is damaged: {error}"))
    };
    let envelope: Envelope<Box<RawValue>> = match serde_json::from_slice(lines.next().unwrap_or_default()) {
        Ok(envelope) => envelope,
        Err(error) => return damaged(1, &error),
    };
    if envelope.boot != boot {
        return Judged::Nothing;
    }
    if service.is_some_and(|service| envelope.service != service) {
        return Judged::Foreign(envelope.service);
    }
    let own = env!("CARGO_PKG_VERSION");
    if envelope.version != VERSION || envelope.program != own {
        return Judged::Unusable(format!(
            "liveswap {own} understands version {VERSION} of the state as it writes it, not version {} as liveswap {} does",
            envelope.version, envelope.program
        ));
    }
    let record: Record = match serde_json::from_str(envelope.state.get()) {
        Ok(record) => record,
        Err(error) => return damaged(1, &error),
    };
    let mut replay = Replay::of(record);
    for (number, line) in lines.enumerate() {
        match serde_json::from_slice(line) {
            Ok(entry) => replay.take(entry),
            Err(error) => return damaged(number + 2, &error),
        }
    }
    replay.finish()
}

/// A manager that lives through what another has lived through.
struct Replay {
    record: Record,
    processes: BTreeMap<WorkerId, ProcessRecord>,
    /// What the last event led to, unless all of it was done.
    actions: Vec<Action>,
}

impl Replay {
    fn of(mut record: Record) -> Self {
        let processes = std::mem::take(&mut record.processes);
        let processes = processes.into_iter().map(|process| (process.worker, process)).collect();
        Self { record, processes, actions: Vec::new() }
    }

    fn take(&mut self, entry: Entry) {
        match entry {
            Entry::Event(at, event) => {
                self.actions.clear();
                self.record.manager.handle(at, event, &mut self.actions);
            }
            Entry::Done => self.actions.clear(),
            Entry::Process(process) => drop(self.processes.insert(process.worker, process)),
            Entry::Helper(pid, started, role) => self.record.helpers.push((pid, started, role)),
        }
    }

    fn finish(mut self) -> Judged {
        let manager = &self.record.manager;
        self.processes.retain(|worker, _| manager.worker(*worker).is_some());
        // One that was prepared, and of which no event had told.
        self.record.generations.retain(|(id, ..)| manager.strength(*id).is_some());
        let is_known = |id| self.record.generations.iter().any(|(known, ..)| *known == id);
        if !is_known(manager.current()) || manager.workers().any(|(_, worker)| !is_known(worker.generation()))
        {
            return Judged::Unusable("a generation is missing".into());
        }
        let untold = self.actions.iter().filter_map(|action| match action {
            Action::Drain(worker) => Some((*worker, Untold::Drain)),
            Action::Abort(worker) => Some((*worker, Untold::Abort)),
            _ => None,
        });
        let untold = untold.collect();
        self.record.processes = self.processes.into_values().collect();
        Judged::Whole(Box::new(Recovered { record: self.record, untold }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(text: &str) -> String {
        match understand(text.as_bytes(), Some("web"), "boot") {
            Judged::Unusable(why) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn whatever_stands_there_is_judged() {
        for text in ["", "no newline", "{}\n", "[1]\n", "\n\n", "\u{0}\n"] {
            assert!(why(text).starts_with("line 1 is damaged: "), "{text:?}");
        }
        let of = |version: u32, program: &str, service: &str, boot: &str| {
            format!(
                r#"{{"version":{version},"program":"{program}","service":"{service}","boot":"{boot}","state":{{}}}}"#
            ) + "\n"
        };
        let own = env!("CARGO_PKG_VERSION");
        assert!(why(&of(VERSION + 1, own, "web", "boot")).contains("not version"));
        assert!(why(&of(VERSION, "9.9.9", "web", "boot")).contains("as liveswap 9.9.9 does"));
        assert!(why(&of(VERSION, own, "web", "boot")).contains("missing field"));
        let judged = |text: String| understand(text.as_bytes(), Some("web"), "boot");
        assert!(matches!(judged(of(VERSION, own, "web", "another")), Judged::Nothing));
        assert!(matches!(judged(of(VERSION, own, "shop", "boot")), Judged::Foreign(name) if name == "shop"));
    }
}
