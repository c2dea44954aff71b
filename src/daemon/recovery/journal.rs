//! How what another manager needs comes to the file.
//!
//! What is written stays when the manager is killed, as the kernel has it then: nothing here waits for a disk. Events are
//! gathered until something is done about one of them, or a turn ends; so a turn that does nothing costs one write at
//! most, and an idle manager writes nothing. What no event tells (a generation's release, a socket) is in the snapshot
//! alone, which is taken anew when such a thing changes, or when the events behind it have become many.

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Seek, Write};
use std::mem;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::{error, info};

use super::super::host::Timer;
use super::super::run::Daemon;
use super::STATE;
use super::record::{Entry, Envelope, ProcessRecord, Record, snapshot};
use crate::core::Event;
use crate::core::ids::WorkerId;
use crate::core::time::Mono;
use crate::sys::own_folder::Folder;
use crate::sys::process;
use crate::sys::way::WayError;

/// How many bytes of events stand behind a snapshot before the next is taken, at least; and how many snapshots' worth.
const ROOM: usize = 256 * 1024;
const SNAPSHOTS: usize = 4;

/// How soon a snapshot follows the last one though the events behind that have become many, and how many bytes of them may stand there
/// until then: a worker that never stops talking does not have the state written again and again.
const PAUSE: Duration = Duration::from_secs(1);
const MOST: usize = 16 * 1024 * 1024;

/// What the state is called until it is whole.
const DRAFT: &str = "state.new";

/// How soon it is tried again where the file could not be written.
const RETRY: Duration = Duration::from_secs(1);

/// The file, and what is yet to be written to it.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    /// Its folder, which only we can change; `None` before it is needed.
    folder: Option<Folder>,
    /// None where there is no whole snapshot.
    file: Option<File>,
    waiting: Vec<u8>,
    /// How many bytes stand behind the snapshot, and how many may.
    length: usize,
    room: usize,
    /// When the snapshot was taken.
    taken_at: Mono,
    /// Something has changed that only a snapshot tells.
    is_stale: bool,
    /// When it is tried again, where the file cannot be written.
    retry_at: Option<Mono>,
}

impl Journal {
    /// Makes one that has yet to take its first snapshot; until then the file is what whoever was before us left there.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            folder: None,
            file: None,
            waiting: Vec::new(),
            length: 0,
            room: 0,
            taken_at: Mono::ZERO,
            is_stale: true,
            retry_at: None,
        }
    }

    /// Something has changed that only a snapshot tells.
    pub fn needs_snapshot(&mut self) {
        self.is_stale = true;
    }

    /// Whether the events behind the snapshot have become many.
    fn is_full(&self, now: Mono) -> bool {
        self.length > MOST || self.length > self.room && now >= self.taken_at + PAUSE
    }

    /// Adds a line, which is written with the next ones.
    fn add(&mut self, entry: &Entry) {
        if self.file.is_none() {
            return;
        }
        let length = self.waiting.len();
        if serde_json::to_writer(&mut self.waiting, entry).is_ok() {
            self.waiting.push(b'\n');
        } else {
            // A path that is not UTF-8: the snapshot fails by it too, and says so.
            self.waiting.truncate(length);
            self.is_stale = true;
        }
    }

    /// Writes what waits.
    fn write(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let waiting = mem::take(&mut self.waiting);
        let Some(file) = &mut self.file else { return Ok(()) };
        file.write_all(&waiting)?;
        self.length += waiting.len();
        self.waiting = waiting;
        self.waiting.clear();
        Ok(())
    }

    /// Begins anew with a snapshot: whoever looks finds the file of before, or this one.
    fn begin(&mut self, snapshot: &Envelope<Record>) -> io::Result<()> {
        match self.begin_in_folder(snapshot) {
            // It was removed, and may have been made again.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.folder = None;
                self.begin_in_folder(snapshot)
            }
            begun => begun,
        }
    }

    fn begin_in_folder(&mut self, snapshot: &Envelope<Record>) -> io::Result<()> {
        let file = self.folder()?.make_file(DRAFT, 0o600)?;
        // Piece by piece: a text of hundreds of workers would leave its mark on our memory.
        let mut pieces = BufWriter::new(file);
        serde_json::to_writer(&mut pieces, snapshot)?;
        pieces.write_all(b"\n")?;
        let mut file = pieces.into_inner()?;
        let length = usize::try_from(file.stream_position()?).unwrap_or(usize::MAX);
        self.folder()?.rename(DRAFT, STATE)?;
        self.file = Some(file);
        self.waiting.clear();
        (self.length, self.room) = (0, ROOM.max(length.saturating_mul(SNAPSHOTS)));
        self.is_stale = false;
        Ok(())
    }

    /// The folder that it is in, which only we can change.
    fn folder(&mut self) -> io::Result<&Folder> {
        let open = || match Folder::open(self.path.parent().unwrap_or(Path::new("/")), None) {
            Err(WayError::Io { source, .. }) => Err(source),
            opened => opened.map_err(io::Error::other),
        };
        match &mut self.folder {
            Some(folder) => Ok(folder),
            none => Ok(none.insert(open()?)),
        }
    }

    /// Removes the file: nobody is to take over from what it says.
    pub fn remove(&mut self) {
        self.file = None;
        if let Ok(folder) = self.folder() {
            let _ = folder.remove(STATE);
            let _ = folder.remove(DRAFT);
        }
    }
}

impl Daemon {
    /// Writes down what is about to be dealt with.
    pub(in super::super) fn foresee(&mut self, now: Mono, event: &Event) {
        if self.journal.is_stale || self.journal.is_full(now) {
            self.take_snapshot();
        }
        self.journal.add(&Entry::Event(now, event.clone()));
    }

    /// Sees to it that what was written down so far is known to whoever takes over.
    pub(in super::super) fn write_journal(&mut self) {
        if let Err(error) = self.journal.write() {
            self.lose_journal(&error);
        }
    }

    /// All that the last event led to was done.
    pub(in super::super) fn note_done(&mut self) {
        self.journal.add(&Entry::Done);
    }

    /// A worker has a process, or another one than before.
    pub(in super::super) fn note_process(&mut self, worker: WorkerId) {
        let Some(process) = self.processes.get(&worker) else { return };
        if let Some(record) = ProcessRecord::of(worker, process, self.history.start_of(worker)) {
            self.journal.add(&Entry::Process(record));
            // At once: it may serve before the turn is over.
            self.write_journal();
        }
    }

    /// A hook or a probe was started.
    pub(in super::super) fn note_helper(&mut self, pid: nix::unistd::Pid) {
        if let (Some(role), Some(started)) = (self.host.roles.get(&pid), process::started(pid)) {
            self.journal.add(&Entry::Helper(pid.as_raw(), started, *role));
            self.write_journal();
        }
    }

    /// Leaves nothing unwritten at the end of a turn.
    pub(in super::super) fn close_turn(&mut self) {
        if self.journal.is_stale && !self.ended {
            self.take_snapshot();
        }
        if self.upward.is_behind() && !self.loose_ends.sockets_are_closed {
            self.store_sockets();
        }
        self.write_journal();
    }

    fn take_snapshot(&mut self) {
        if self.journal.retry_at.is_some_and(|at| at > self.now()) {
            return;
        }
        // Another manager would have no sockets by it: it goes on by the last one, and the events since.
        if self.loose_ends.sockets_are_closed {
            return;
        }
        self.store_sockets();
        match snapshot(self).and_then(|snapshot| self.journal.begin(&snapshot)) {
            Ok(()) => {
                self.journal.taken_at = self.host.now();
                if self.journal.retry_at.take().is_some() {
                    info!("{} is written again", self.journal.path.display());
                }
            }
            Err(error) => self.lose_journal(&error),
        }
    }

    fn store_sockets(&mut self) {
        let now = self.now();
        self.upward.keep(&self.sockets.listeners(), now);
    }

    /// Has nobody believe what is no longer true.
    fn lose_journal(&mut self, error: &io::Error) {
        self.journal.remove();
        self.journal.waiting.clear();
        self.journal.is_stale = true;
        let retry_at = self.now() + RETRY;
        self.host.timers.set(Timer::State, retry_at);
        if self.journal.retry_at.replace(retry_at).is_none() {
            let path = self.journal.path.display();
            error!("{STATE} {path} cannot be written, so nobody could take over from this manager: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_events_are_a_reason_for_a_snapshot_once_a_second() {
        let taken_at = Mono::ZERO + Duration::from_secs(7);
        let mut journal = Journal { room: ROOM, taken_at, ..Journal::new(PathBuf::new()) };
        let (at_once, later) = (taken_at + PAUSE / 2, taken_at + PAUSE);
        journal.length = ROOM;
        assert!(!journal.is_full(later));
        journal.length = ROOM + 1;
        assert!(!journal.is_full(at_once) && journal.is_full(later));
        journal.length = MOST + 1;
        assert!(journal.is_full(at_once));
    }
}
