//! Where what we start writes to: standard output and error of workers, connection processes, hooks and probes.
//!
//! A pipe, a terminal or a file is shared, as from any shell. A socket is not: whoever holds it can end it for all who do
//! (shutdown(2)), the manager's log first. Where ours is a stream to the journal, each process gets another stream of its own,
//! and its `$JOURNAL_STREAM` says so; any other socket is replaced by one of which we read the other end, and what comes out of
//! that we write on, unchanged.

use std::cell::{Cell, RefCell};
use std::env;
use std::io::{self, stderr, stdout};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use tracing::{info, warn};

use super::process::{Source, WorkerOutput};
use super::token::Stream;
use crate::sys::channel::channel;
use crate::sys::journal_stream::{JournalSocket, identity};
use crate::sys::output::{WorkerPipe, is_socket, worker_output};

/// The variable by which a program knows that its output goes to the journal (systemd.exec(5)).
pub const JOURNAL_VARIABLE: &str = "JOURNAL_STREAM";

/// What becomes of one of our own outputs in what we start.
#[derive(Debug)]
enum Way {
    /// It is shared.
    Shared,
    /// Another stream to the same journal.
    Journal(JournalSocket),
    /// Another socket, which we read.
    Relayed,
}

/// Our own outputs, as what we start is to have them.
#[derive(Debug)]
pub struct Streams {
    out: Way,
    err: Way,
    /// Whether the journal took no stream the last time.
    journal_failed: Cell<bool>,
    /// What hooks, probes and connection processes write through us, until somebody reads it.
    helpers: RefCell<Vec<WorkerOutput>>,
}

/// The outputs of one process.
#[derive(Debug, Default)]
pub struct Opened {
    /// Its standard output, where that is not ours.
    pub out: Option<Rc<OwnedFd>>,
    /// Its standard error, where that is not ours.
    pub err: Option<Rc<OwnedFd>>,
    /// The other ends of what comes through us.
    pub read_by_us: Vec<(Stream, Source)>,
    /// Second descriptions of those that are pipes.
    kept: Vec<OwnedFd>,
    /// The value of [`JOURNAL_VARIABLE`], where one of them goes to the journal.
    pub journal: Option<String>,
}

impl Opened {
    /// Makes the two pipes of `output = "prefix"`.
    ///
    /// # Errors
    ///
    /// Those of pipe2(2).
    pub fn pipes() -> io::Result<Self> {
        let mut opened = Self::default();
        for stream in [Stream::Out, Stream::Err] {
            let WorkerPipe { ours, theirs, kept } = worker_output()?;
            opened.put(stream, Rc::new(theirs));
            opened.read_by_us.push((stream, Source::Pipe(ours)));
            opened.kept.extend(kept);
        }
        Ok(opened)
    }

    fn put(&mut self, stream: Stream, theirs: Rc<OwnedFd>) {
        match stream {
            Stream::Out => self.out = Some(theirs),
            Stream::Err => self.err = Some(theirs),
        }
    }

    fn relay(&mut self, stream: Stream) -> io::Result<()> {
        let (ours, theirs) = channel()?;
        self.put(stream, Rc::new(theirs));
        self.read_by_us.push((stream, Source::Socket(ours.into())));
        Ok(())
    }

    /// What a worker keeps of the other ends, so that they do not close with a manager that is killed. A socket cannot be
    /// opened anew, but nothing that is done to it makes us wait.
    pub fn kept_open(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let sockets = self.read_by_us.iter().filter_map(|(_, ours)| match ours {
            Source::Socket(socket) => Some(socket.as_fd()),
            Source::Pipe(_) => None,
        });
        self.kept.iter().map(AsFd::as_fd).chain(sockets)
    }
}

impl Streams {
    /// Looks at what our own outputs are.
    pub fn find() -> Self {
        let way = |fd: BorrowedFd<'_>| match journal_behind(fd) {
            Some(socket) => Way::Journal(socket),
            None if is_socket(fd) => Way::Relayed,
            None => Way::Shared,
        };
        Self {
            out: way(stdout().as_fd()),
            err: way(stderr().as_fd()),
            journal_failed: Cell::new(false),
            helpers: RefCell::default(),
        }
    }

    /// Whether all that is started shares our outputs.
    pub fn are_shared(&self) -> bool {
        matches!((&self.out, &self.err), (Way::Shared, Way::Shared))
    }

    /// Opens the outputs of a process that is started, for `output = "inherit"`. Nothing is waited for.
    ///
    /// # Errors
    ///
    /// Those of socketpair(2).
    pub fn open(&self) -> io::Result<Opened> {
        let mut opened = Opened::default();
        for (stream, way) in [(Stream::Err, &self.err), (Stream::Out, &self.out)] {
            match way {
                Way::Shared => {}
                Way::Relayed => opened.relay(stream)?,
                Way::Journal(_)
                    if stream == Stream::Out && opened.journal.is_some() && self.is_one_journal() =>
                {
                    opened.out.clone_from(&opened.err);
                }
                Way::Journal(socket) => match self.connect(socket) {
                    Ok((theirs, identity)) => {
                        opened.put(stream, Rc::new(theirs));
                        opened.journal.get_or_insert(identity);
                    }
                    Err(error) => {
                        self.note_failure(&error);
                        opened.relay(stream)?;
                    }
                },
            }
        }
        Ok(opened)
    }

    /// Opens the outputs of a hook, a probe or a connection process; what comes through us waits in [`Streams::take_helpers`].
    ///
    /// # Errors
    ///
    /// As [`Streams::open`].
    pub fn open_for_helper(&self) -> io::Result<Opened> {
        let mut opened = self.open()?;
        let read = opened.read_by_us.drain(..);
        self.helpers
            .borrow_mut()
            .extend(read.map(|(stream, pipe)| WorkerOutput::new(stream, pipe, String::new())));
        Ok(opened)
    }

    /// Returns what has been opened for hooks, probes and connection processes and is to be read from now on.
    pub fn take_helpers(&self) -> Vec<WorkerOutput> {
        self.helpers.take()
    }

    /// Has outputs read that a manager before us had.
    pub fn put_helpers(&self, outputs: Vec<WorkerOutput>) {
        self.helpers.borrow_mut().extend(outputs);
    }

    fn is_one_journal(&self) -> bool {
        matches!((&self.out, &self.err), (Way::Journal(out), Way::Journal(err)) if out == err)
    }

    fn connect(&self, socket: &JournalSocket) -> io::Result<(OwnedFd, String)> {
        let stream = socket.connect(&identifier())?;
        let identity = identity(&stream)?;
        if self.journal_failed.take() {
            info!("the journal takes streams of workers again");
        }
        Ok((stream, identity))
    }

    fn note_failure(&self, error: &io::Error) {
        if !self.journal_failed.replace(true) {
            warn!(
                "the journal takes no stream of a worker, so its output comes through the manager: {error}"
            );
        }
    }
}

/// Returns the journal behind one of our outputs, if it is a stream to it.
pub fn journal_behind(stream: impl AsFd) -> Option<JournalSocket> {
    let stream = stream.as_fd();
    let named = env::var(JOURNAL_VARIABLE).ok()?;
    let socket = JournalSocket::behind(stream)?;
    // The variable names the stream that we were started with; one that we connected since goes to the usual address.
    (socket.is_usual() || identity(stream).ok()? == named).then_some(socket)
}

/// As whose the journal shows our lines, and those of what we start: the name of our program, as systemd has it
/// (systemd.exec(5), `SyslogIdentifier=`).
pub fn identifier() -> String {
    let program = env::args_os().next().unwrap_or_default();
    let name = Path::new(&program).file_name().map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| env!("CARGO_PKG_NAME").into())
}
