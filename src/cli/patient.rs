//! Reading of another side that may hang, or write a byte at a time for ever.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::wire::control::{Command, Line, MAX_ANSWER, Request};
use crate::wire::lines::Lines;

/// A manager answers `ping`, `status` and `message` at once, and every answer that has begun. One that has not done so in this
/// time does not answer. All that are looked for have that time together.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How long nothing is heard of a manager that has something long to do before it is asked whether it lives.
const QUIET: Duration = Duration::from_secs(3);

/// What that question is called, to know its answer.
const ALIVE: &str = "alive?";

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

/// A stream that is read until some moment, however little comes at a time.
pub struct Patient<'a, S> {
    stream: &'a S,
    until: Instant,
}

impl<'a, S> Patient<'a, S> {
    pub fn new(stream: &'a S, until: Instant) -> Self {
        Self { stream, until }
    }
}

impl<'a, S: TimeOut> Read for Patient<'a, S>
where
    &'a S: Read,
{
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.until.checked_duration_since(Instant::now());
        // No time at all would mean no limit (socket(7), SO_RCVTIMEO).
        let left = left.filter(|left| !left.is_zero()).ok_or_else(late)?;
        self.stream.set_time_out(Some(left))?;
        self.stream.read(buffer).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => late(),
            _ => error,
        })
    }
}

/// Returns the next line of a manager that may take long to say it, or `None` at the end. Where nothing comes the manager is
/// asked whether it lives, again and again: one that stands still is given up.
///
/// # Errors
///
/// Those of [`next_line`], and `TimedOut` for a manager that does not answer that in 5 s.
pub fn awaited_line<S: TimeOut>(stream: &S, lines: &mut Lines) -> io::Result<Option<String>>
where
    for<'a> &'a S: Read + Write,
{
    let mut is_asked = false;
    loop {
        let time = if is_asked { PATIENCE } else { QUIET };
        match next_line(&mut Patient::new(stream, Instant::now() + time), lines) {
            Ok(Some(line)) if is_sign_of_life(&line) => is_asked = false,
            Err(error) if error.kind() == ErrorKind::TimedOut && !is_asked => {
                let ping = Request { id: Some(ALIVE.into()), ..Request::new(Command::Ping) };
                // Where it cannot be written, reading tells why.
                let _ = { stream }.write_all((ping.to_line() + "\n").as_bytes());
                is_asked = true;
            }
            heard => return heard,
        }
    }
}

fn is_sign_of_life(line: &str) -> bool {
    let is_ours = |line| matches!(line, Line::Reply(reply) if reply.id == Some(ALIVE.into()));
    line.contains(ALIVE) && Line::parse(line).is_ok_and(is_ours)
}

/// Says why a manager may be silent, as far as the kernel tells of its process.
pub fn why_silent(pid: i32) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which may have parentheses itself (proc_pid_stat(5)).
    match stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next()) {
        Some('T' | 't') => format!("its process is stopped; `kill -CONT {pid}` lets it go on"),
        _ => "it hangs, or it is something else than a manager".into(),
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
