//! Our standard output and error, which may be a pipe that nobody reads or a stopped terminal.
//!
//! Text goes into a bounded buffer and from there as the other side takes it. A manager that waited for its log's reader
//! would let its workers down; so beyond the bound whole pieces of text are lost, and the log says how many.

use std::collections::VecDeque;
use std::io::{self, Write, stderr, stdout};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::warn;

use super::token::{Stream, Token};
use crate::sys::output::Writer;
use crate::sys::wait::{Interest, Poller};

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
}

impl Outlet {
    const fn new() -> Self {
        Self(Mutex::new(Waiting { text: VecDeque::new(), lost: 0 }))
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a line of the log, or loses it where too much waits already.
    pub fn push(&self, line: &[u8]) {
        self.push_within(LIMIT + RESERVE, line);
    }

    /// Takes a line of a worker, or loses it where too much waits already.
    pub fn push_from_worker(&self, line: &[u8]) {
        self.push_within(LIMIT, line);
    }

    fn push_within(&self, limit: usize, line: &[u8]) {
        let mut waiting = self.lock();
        if waiting.text.len() + line.len() > limit {
            waiting.lost += 1;
        } else {
            waiting.text.extend(line);
        }
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

    /// Returns how many lines were lost since it was last asked.
    pub fn take_lost(&self) -> usize {
        std::mem::take(&mut self.lock().lost)
    }

    /// Lets go of what waits.
    pub fn discard(&self) {
        self.lock().text.clear();
    }

    /// Writes what `to` takes without waiting; returns whether nothing is left.
    pub fn flush(&self, to: &Writer) -> bool {
        let mut waiting = self.lock();
        while !waiting.text.is_empty() {
            match to.write_some(waiting.text.as_slices().0) {
                Ok(0) => return false,
                Ok(count) => drop(waiting.text.drain(..count)),
                // Nobody will ever read it.
                Err(_) => waiting.text.clear(),
            }
        }
        // What a burst needed is not kept for ever.
        waiting.text.shrink_to(4096);
        true
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
    output: Writer,
    error: Writer,
    /// Which are watched for room.
    blocked: Vec<Stream>,
}

impl Outputs {
    /// Opens ways to where our standard output and error go.
    ///
    /// # Errors
    ///
    /// Those of fcntl(2), where no descriptor is left.
    pub fn open() -> io::Result<Self> {
        Ok(Self { output: Writer::to(stdout())?, error: Writer::to(stderr())?, blocked: Vec::new() })
    }

    /// Writes what our outputs take, and has those watched that do not take all.
    pub fn flush(&mut self, poller: &Poller) {
        self.flush_one(Stream::Out, &OUTPUT, poller);
        self.flush_one(Stream::Err, &ERROR, poller);
    }

    fn flush_one(&mut self, stream: Stream, outlet: &Outlet, poller: &Poller) {
        let to = match stream {
            Stream::Out => &self.output,
            Stream::Err => &self.error,
        };
        let watched = self.blocked.contains(&stream);
        let mut is_empty = outlet.flush(to);
        if is_empty && watched {
            let lost = outlet.take_lost();
            if lost > 0 {
                warn!("{lost} lines of {stream} were lost, as nobody read them");
                is_empty = outlet.flush(to);
            }
        }
        match (is_empty, watched) {
            (true, true) => {
                let _ = poller.remove(to);
                self.blocked.retain(|blocked| *blocked != stream);
            }
            (false, false) if poller.add(to, Token::Outlet(stream).pack(), Interest::Write).is_ok() => {
                self.blocked.push(stream);
            }
            (true, false) | (false, true | false) => {}
        }
    }
}
