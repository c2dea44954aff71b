//! Our standard output and error, which may be a pipe that nobody reads or a stopped terminal.
//!
//! Text goes into a bounded buffer and from there as the other side takes it. A manager that waited for its log's reader
//! would let its workers down; so beyond the bound whole pieces of text are lost. So is what cannot be written at all, where a
//! file may not grow any more. Once all that waits is written, the log says how many lines were lost.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IsTerminal, Write, stderr, stdout};
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::warn;

use super::process::{Tail, WorkerOutput};
use super::streams::{identifier, journal_behind};
use super::token::{Poller, Stream, Token, Watched};
use crate::core::printable::printable_bytes;
use crate::sys::journal_stream::JournalSocket;
use crate::sys::output::{Standard, Writer, replace};
use crate::sys::wait::Interest;

/// The most text of workers that waits, in bytes.
const LIMIT: usize = 1 << 20;

/// What may wait beyond it of our own log, in bytes: no worker can push that out.
const RESERVE: usize = 1 << 18;

/// Our standard error: the log, and what workers write there under `output = "prefix"`.
pub static ERROR: Outlet = Outlet::new();
/// Our standard output: what workers write there under `output = "prefix"`.
pub static OUTPUT: Outlet = Outlet::new();

/// Text on its way out.
#[derive(Debug)]
pub struct Outlet(Mutex<Waiting>);

#[derive(Debug)]
struct Waiting {
    text: VecDeque<u8>,
    lost: usize,
    /// Whether anything was written since the last line was lost: only then is there a use in telling of it.
    takes: bool,
    last: LastLine,
    /// Whether it goes to a terminal, which obeys what it is sent.
    is_terminal: bool,
}

/// The last line that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LastLine {
    /// It has its end.
    Whole,
    /// Its rest is yet to be written.
    Begun,
    /// Its rest was dropped, so what comes next needs a line of its own.
    Cut,
}

/// What became of an attempt to write what waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// Nothing is left.
    All,
    /// There is no more room now, or a signal came between.
    Some,
    /// What is left cannot be written: nobody reads it, or there is no room on the disk.
    Broken,
}

impl Outlet {
    const fn new() -> Self {
        Self(Mutex::new(Waiting {
            text: VecDeque::new(),
            lost: 0,
            takes: false,
            last: LastLine::Whole,
            is_terminal: false,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a line of the log, or loses it where too much waits already.
    pub fn push(&self, line: &[u8]) {
        self.lock().push_within(LIMIT + RESERVE, line);
    }

    /// Takes a line of a worker with a prefix before and an end after it, or loses it where too much waits already. What would
    /// steer a terminal is made visible on one; elsewhere the line passes as it is.
    pub fn push_from_worker(&self, prefix: &str, line: &[u8], end: &[u8]) {
        let mut waiting = self.lock();
        let shown = waiting.is_terminal.then(|| printable_bytes(line));
        let line = shown.as_ref().map_or(line, String::as_bytes);
        waiting.push_within(LIMIT, &[prefix.as_bytes(), line, end].concat());
    }

    /// Returns what waits, and how many lines were lost.
    pub fn waiting(&self) -> (Vec<u8>, usize) {
        let waiting = self.lock();
        (waiting.text.iter().copied().collect(), waiting.lost)
    }

    /// Puts what waited in a former life before everything else.
    pub fn resume(&self, (text, lost): (Vec<u8>, usize)) {
        let mut waiting = self.lock();
        waiting.lost += lost;
        waiting.text = text.into_iter().chain(waiting.text.drain(..)).collect();
    }

    /// Returns how many lines were lost since it was last asked; 0 as long as nothing was written after them.
    pub fn take_lost(&self) -> usize {
        let mut waiting = self.lock();
        if waiting.takes { std::mem::take(&mut waiting.lost) } else { 0 }
    }

    /// Counts lines as lost, whose number could not be told after all.
    fn give_back_lost(&self, lost: usize) {
        let mut waiting = self.lock();
        waiting.lost += lost;
        waiting.takes = false;
    }

    /// Drops what waits.
    pub fn discard(&self) {
        self.lock().text.clear();
    }

    /// Drops what waits, as it cannot be written, and counts its lines as lost.
    fn lose(&self) {
        let mut waiting = self.lock();
        if waiting.text.is_empty() {
            return;
        }
        waiting.lost += waiting.text.iter().filter(|byte| **byte == b'\n').count().max(1);
        waiting.takes = false;
        if waiting.last == LastLine::Begun {
            waiting.last = LastLine::Cut;
        }
        waiting.text.clear();
    }

    /// Writes what `to` takes without waiting.
    pub fn flush(&self, to: &Writer) -> Flushed {
        let mut waiting = self.lock();
        while !waiting.text.is_empty() {
            match waiting.write_some(to) {
                Ok(0) => return Flushed::Some,
                Ok(_) => {}
                Err(error) if is_for_now(&error) => return Flushed::Some,
                Err(_) => return Flushed::Broken,
            }
        }
        // What a burst needed is not kept for ever.
        waiting.text.shrink_to(4096);
        Flushed::All
    }
}

/// Whether an error of a write says nothing about what is at the other end: a signal, or a kernel without memory.
fn is_for_now(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM))
}

impl Waiting {
    /// Writes what `to` takes at once of the text, or the end of a line whose rest was dropped.
    fn write_some(&mut self, to: &Writer) -> io::Result<usize> {
        if self.last == LastLine::Cut {
            let count = to.write_some(b"\n")?;
            if count > 0 {
                self.last = LastLine::Whole;
            }
            return Ok(count);
        }
        let count = to.write_some(self.text.as_slices().0)?;
        if let Some(last) = self.text.drain(..count).next_back() {
            self.last = if last == b'\n' { LastLine::Whole } else { LastLine::Begun };
            self.takes = true;
        }
        Ok(count)
    }

    fn push_within(&mut self, limit: usize, line: &[u8]) {
        if self.text.len() + line.len() > limit {
            self.lost += 1;
            self.takes = false;
        } else {
            self.text.extend(line);
        }
    }
}

/// A log writer whose every write is one line.
#[derive(Clone, Copy, Debug)]
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        ERROR.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The ways to our own outputs.
#[derive(Debug)]
pub struct Outputs {
    output: Way,
    error: Way,
    /// What hooks, probes and connection processes write through us, by a number of its own.
    helpers: BTreeMap<u64, WorkerOutput>,
    next_helper: u64,
}

/// The way to one of our own outputs.
#[derive(Debug)]
struct Way {
    to: Watched<Writer>,
    /// The journal at its end, if it is a stream to one: then there is another way there.
    journal: Option<JournalSocket>,
}

impl Way {
    fn open(to: &(impl AsFd + IsTerminal), outlet: &Outlet) -> io::Result<Self> {
        outlet.lock().is_terminal = to.is_terminal();
        Ok(Self { to: Writer::to(to)?.into(), journal: journal_behind(to) })
    }

    /// Connects to the journal anew, in the place of the stream that was closed.
    fn connect_again(&mut self, stream: Stream) -> io::Result<()> {
        let journal = self.journal.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let new = journal.connect(&identifier())?;
        self.to = Writer::to(&new)?.into();
        let which = match stream {
            Stream::Out => Standard::Output,
            Stream::Err => Standard::Error,
        };
        replace(which, &new)
    }
}

impl Outputs {
    /// Opens ways to where our standard output and error go.
    ///
    /// # Errors
    ///
    /// Those of fcntl(2), where no descriptor is left.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            output: Way::open(&stdout(), &OUTPUT)?,
            error: Way::open(&stderr(), &ERROR)?,
            helpers: BTreeMap::new(),
            next_helper: 0,
        })
    }

    /// Writes what our outputs take, and has those watched that do not take all.
    pub fn flush(&mut self, poller: &Poller) {
        self.flush_one(Stream::Out, &OUTPUT, poller);
        self.flush_one(Stream::Err, &ERROR, poller);
    }

    fn flush_one(&mut self, stream: Stream, outlet: &Outlet, poller: &Poller) {
        let way = match stream {
            Stream::Out => &mut self.output,
            Stream::Err => &mut self.error,
        };
        let mut flushed = outlet.flush(&way.to);
        if flushed == Flushed::All {
            let lost = outlet.take_lost();
            if lost > 0 {
                warn!(
                    "{lost} lines of {stream} were lost, as they could not be written: nobody read them, or there was no room"
                );
                // That warning goes to standard error, whichever it is about.
                flushed = outlet.flush(&way.to);
                if flushed == Flushed::Broken {
                    outlet.give_back_lost(lost);
                }
            }
        }
        if flushed == Flushed::Broken {
            // A broken one is ready for ever.
            way.to.unwatch();
            match way.connect_again(stream) {
                Ok(()) => {
                    warn!("the stream of {stream} to the journal was closed; it is connected again");
                    outlet.flush(&way.to);
                }
                // What waits is written when the journal is there again, if there is one.
                Err(_) if way.journal.is_some() => {}
                Err(_) => outlet.lose(),
            }
            return;
        }
        if flushed == Flushed::All {
            way.to.unwatch();
        } else {
            // Where it cannot be watched it is tried again at the next event.
            let _ = way.to.watch(poller, Token::Outlet(stream), Interest::Write);
        }
    }

    /// Has outputs of hooks, probes and connection processes read from now on.
    pub fn read_helpers(&mut self, outputs: Vec<WorkerOutput>, poller: &Poller) {
        for output in outputs {
            self.next_helper += 1;
            if output.pipe.watch(poller, Token::Helper(self.next_helper), Interest::Read).is_ok() {
                self.helpers.insert(self.next_helper, output);
            }
        }
    }

    /// Passes on what was written to one of them.
    pub fn pass_on_helper(&mut self, number: u64) {
        let Some(output) = self.helpers.get_mut(&number) else { return };
        // Their last lines are asked for by nobody.
        if !output.pass_on(&mut Tail::default()) {
            output.finish(&mut Tail::default());
            self.helpers.remove(&number);
        }
    }

    /// Passes on what was written to all of them by now, at our end.
    pub fn pass_on_the_rest(&mut self) {
        for output in self.helpers.values_mut() {
            output.pass_on_the_rest(&mut Tail::default());
        }
        self.helpers.clear();
    }

    /// Returns what is read, for the program that goes on in our place.
    pub fn helpers(&self) -> impl Iterator<Item = &WorkerOutput> {
        self.helpers.values()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::sys::output::output_pipe;

    #[test]
    fn what_a_worker_writes_is_made_visible_on_a_terminal_and_nowhere_else() {
        for (is_terminal, expected) in
            [(true, "web.0 | a\\x1b[2J\\r\tb\n"), (false, "web.0 | a\x1b[2J\r\tb\n")]
        {
            let outlet = Outlet::new();
            outlet.lock().is_terminal = is_terminal;
            outlet.push_from_worker("web.0 | ", b"a\x1b[2J\r\tb", b"\n");
            let (mut ours, theirs) = output_pipe().unwrap();
            assert_eq!(outlet.flush(&Writer::to(&theirs).unwrap()), Flushed::All);
            let mut buffer = vec![0; expected.len()];
            ours.read_exact(&mut buffer).unwrap();
            assert_eq!(String::from_utf8(buffer).unwrap(), expected);
        }
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_told_when_it_can() {
        let outlet = Outlet::new();
        outlet.push(b"one\n");
        let (mut ours, theirs) = output_pipe().unwrap();
        assert_eq!(outlet.flush(&Writer::to(&theirs).unwrap()), Flushed::All);
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let full = Writer::to(&full).unwrap();
        for _ in 0..2 {
            outlet.push(b"two\n");
            outlet.push(b"three\n");
            assert_eq!(outlet.flush(&full), Flushed::Broken);
            outlet.lose();
            assert_eq!(outlet.take_lost(), 0, "there is nowhere to tell it");
        }
        outlet.push(b"four\n");
        assert_eq!(outlet.flush(&Writer::to(&theirs).unwrap()), Flushed::All);
        assert_eq!((outlet.take_lost(), outlet.take_lost()), (4, 0));
        let mut buffer = [0; 9];
        ours.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"one\nfour\n");
    }

    #[test]
    fn a_line_that_was_cut_off_gets_an_end() {
        let outlet = Outlet::new();
        outlet.push(b"beginning");
        let (mut ours, theirs) = output_pipe().unwrap();
        let writer = Writer::to(&theirs).unwrap();
        assert_eq!(outlet.flush(&writer), Flushed::All);
        outlet.push(b" and end\n");
        outlet.lose();
        outlet.push(b"next\n");
        assert_eq!(outlet.flush(&writer), Flushed::All);
        let mut buffer = [0; 15];
        ours.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"beginning\nnext\n");
    }

    #[test]
    fn an_interrupted_write_says_nothing_of_the_reader() {
        let of = io::Error::from_raw_os_error;
        assert!(is_for_now(&of(libc::EINTR)) && is_for_now(&of(libc::EAGAIN)));
        assert!(!is_for_now(&of(libc::EPIPE)) && !is_for_now(&of(libc::EFBIG)));
    }

    #[test]
    fn what_waits_outlasts_a_way_that_breaks() {
        let outlet = Outlet::new();
        outlet.push(b"line\n");
        let (ours, theirs) = output_pipe().unwrap();
        drop(ours);
        assert_eq!(outlet.flush(&Writer::to(&theirs).unwrap()), Flushed::Broken);
        assert_eq!(outlet.waiting().0, b"line\n");
    }
}
