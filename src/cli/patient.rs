//! Reading of another side that may hang, or write a byte at a time for ever.

use std::io::{self, ErrorKind, Read};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::wire::control::MAX_ANSWER;
use crate::wire::lines::Lines;

/// A manager answers `ping`, `status` and `message` at once, and every answer that has begun. One that has not done so in this
/// time does not answer. All that are looked for have that time together.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How much is read at a time, in bytes.
const READ_SIZE: usize = 16 * 1024;

/// A stream on which a read can be given up.
pub trait TimeOut {
    /// Sets how long a read may take; `None` is for ever.
    ///
    /// # Errors
    ///
    /// Those of setsockopt(2), and `InvalidInput` for no time at all.
    fn set_time_out(&self, time: Option<Duration>) -> io::Result<()>;
}

impl TimeOut for UnixStream {
    fn set_time_out(&self, time: Option<Duration>) -> io::Result<()> {
        self.set_read_timeout(time)
    }
}

impl TimeOut for TcpStream {
    fn set_time_out(&self, time: Option<Duration>) -> io::Result<()> {
        self.set_read_timeout(time)
    }
}

/// A stream that is read until some moment, however little comes at a time. Without a moment it waits for the first that comes,
/// and the rest must follow in [`PATIENCE`].
pub struct Patient<'a, S> {
    stream: &'a S,
    until: Option<Instant>,
}

impl<'a, S> Patient<'a, S> {
    pub fn new(stream: &'a S, until: Option<Instant>) -> Self {
        Self { stream, until }
    }
}

impl<'a, S: TimeOut> Read for Patient<'a, S>
where
    &'a S: Read,
{
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = match self.until {
            // No time at all would mean no limit (socket(7), SO_RCVTIMEO).
            Some(until) => Some(
                until
                    .checked_duration_since(Instant::now())
                    .filter(|left| !left.is_zero())
                    .ok_or_else(late)?,
            ),
            None => None,
        };
        self.stream.set_time_out(left)?;
        let count = self.stream.read(buffer).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => late(),
            _ => error,
        })?;
        self.until.get_or_insert_with(|| Instant::now() + PATIENCE);
        Ok(count)
    }
}

/// The error for one that does not answer in time.
pub fn late() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, format!("no answer in {} s", PATIENCE.as_secs()))
}

/// Returns the next line without its newline, or `None` at the end.
///
/// # Errors
///
/// Those of read(2), and `InvalidData` for a line that is longer than `lines` allows or is no UTF-8.
pub fn next_line(from: &mut impl Read, lines: &mut Lines) -> io::Result<Option<String>> {
    let mut buffer = vec![0; READ_SIZE];
    loop {
        if let Some(line) = lines.next_line() {
            if !line.ended {
                let why = format!("a line of more than {MAX_ANSWER} bytes is no answer of a manager");
                return Err(io::Error::new(ErrorKind::InvalidData, why));
            }
            return text(line.bytes).map(Some);
        }
        match from.read(&mut buffer) {
            Ok(0) => return lines.finish().map(|line| text(line.bytes)).transpose(),
            Ok(count) => lines.push(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn text(bytes: &[u8]) -> io::Result<String> {
    String::from_utf8(bytes.to_vec()).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
}
