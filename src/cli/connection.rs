//! The conversation with a manager, line by line.

use std::io::{self, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::find::instead_of;
use super::patient::{PATIENCE, Patient, awaited_line, late, next_line, why_silent};
use super::report::{self, Status};
use crate::wire::control::{self, Command, Reply, Request};
use crate::wire::lines::Lines;
use crate::wire::printable::printable;

/// How long an answer is read that should have come before, while others were waited for.
pub const LEAST: Duration = Duration::from_millis(5);

/// A connection to a manager, which may be anybody's: no text of it is trusted, and no more is read than the protocol has.
#[derive(Debug)]
pub struct Connection {
    /// The service's name.
    pub service: String,
    /// Its process; 0 where that is in another pid namespace.
    pub pid: i32,
    /// The user of that process.
    pub(super) user: u32,
    /// The other user whose service it is.
    pub(super) owner: Option<u32>,
    pub(super) stream: UnixStream,
    pub(super) lines: Lines,
}

/// A line of the manager, as it was written and as it is understood.
#[derive(Debug)]
pub struct Heard {
    /// JSON, without its newline.
    pub text: String,
    /// What it says. Its texts are printable, but for the `status`, which is JSON for [`understood`].
    pub line: control::Line,
}

/// Why a manager has not answered, and which process it is; 0 where that is not known.
pub(super) type Unanswered = (i32, io::Error);

/// Why there is no speaking with a manager.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// Nobody runs that service.
    #[error("no manager runs service `{0}`")]
    NoSuchManager(String),
    /// Nobody runs any.
    #[error("no manager runs")]
    NoManager,
    /// More than one runs, and none was named.
    #[error("several managers run: {}", .0.join(", "))]
    Several(Vec<String>),
    /// It does not let us speak.
    #[error("the manager{}{} does not answer", of_service(.service), of_process(*.pid))]
    NotAllowed {
        /// The service; empty where that is not known.
        service: String,
        /// Its process; 0 where that is not known.
        pid: i32,
        /// Its reason, or the kernel's.
        source: io::Error,
    },
    /// It says something else than was asked for.
    #[error("the manager answers with something else")]
    Unexpected,
    /// It says what is no line of the protocol.
    #[error("the manager does not answer as one does")]
    Garbled(#[source] io::Error),
    /// It does not answer what it can answer at once.
    #[error("the manager does not answer")]
    Silent(#[source] io::Error),
    /// It was there, and is no more.
    #[error("the connection to the manager was lost")]
    Lost(#[source] io::Error),
}

impl From<io::Error> for ConnectionError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::InvalidData => Self::Garbled(error),
            ErrorKind::TimedOut => Self::Silent(error),
            _ => Self::Lost(error),
        }
    }
}

impl ConnectionError {
    pub(super) fn into_io(self) -> io::Error {
        match self {
            Self::Lost(error) | Self::Garbled(error) | Self::Silent(error) => error,
            Self::NotAllowed { source, .. } => source,
            other => io::Error::other(other),
        }
    }

    /// Whether a manager is there that does not answer in time.
    pub fn is_silence(&self) -> bool {
        match self {
            Self::Silent(_) => true,
            Self::NotAllowed { source, .. } => source.kind() == ErrorKind::TimedOut,
            _ => false,
        }
    }

    /// Prints it, and returns the exit status that it comes to.
    pub fn print(&self) -> ExitCode {
        let (status, hint) = match self {
            Self::NoSuchManager(name) => (Status::NoManager, instead_of(name)),
            Self::NoManager => (Status::NoManager, "start one with `liveswap run FILE`".into()),
            Self::Several(names) => {
                let first = names.first().map_or("NAME", String::as_str);
                (Status::Usage, format!("name one of them, such as `{first}`"))
            }
            Self::NotAllowed { source, pid, .. } if source.kind() != ErrorKind::PermissionDenied => {
                (Status::Failed, why_silent(*pid))
            }
            Self::NotAllowed { .. } => (
                Status::Failed,
                "its owner, root and members of its `[control] group` may speak to it".into(),
            ),
            Self::Unexpected | Self::Garbled(_) => (
                Status::Failed,
                "it is of another version than this command, or something else than a manager".into(),
            ),
            Self::Silent(_) => (Status::Failed, why_silent(0)),
            Self::Lost(_) => (Status::Failed, "the manager's log says what happened".into()),
        };
        report::print(self, Some(&hint));
        status.into()
    }
}

impl Connection {
    /// Asks for something.
    ///
    /// # Errors
    ///
    /// The manager has gone.
    pub fn ask(&mut self, request: &Request) -> Result<(), ConnectionError> {
        let line = request.to_line() + "\n";
        match self.stream.write_all(line.as_bytes()) {
            // It was closed on us, and the reason may stand in what it said last.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(late().into()),
            written => Ok(written?),
        }
    }

    /// Asks for something and returns the answer, where nothing else was asked.
    ///
    /// # Errors
    ///
    /// The manager has gone, says something else first, or does not answer what it can answer at once.
    pub fn ask_once(&mut self, command: Command) -> Result<Reply, ConnectionError> {
        let is_quick = is_quick(&command);
        self.ask(&Request::new(command))?;
        if is_quick { self.reply_until(Instant::now() + PATIENCE) } else { reply(self.hear()?) }
    }

    /// Waits for an answer, where nothing else was asked, until some moment.
    ///
    /// # Errors
    ///
    /// As [`Connection::ask_once`] has them.
    pub fn reply_until(&mut self, until: Instant) -> Result<Reply, ConnectionError> {
        let text = next_line(&mut Patient::new(&self.stream, until), &mut self.lines);
        reply(self.heard(text)?)
    }

    /// Waits for the next line, however long it takes, as long as the manager shows that it lives.
    ///
    /// # Errors
    ///
    /// The manager has gone, stands still, or what it says is no line of the protocol.
    pub fn hear(&mut self) -> Result<Heard, ConnectionError> {
        let text = awaited_line(&self.stream, &mut self.lines);
        self.heard(text)
    }

    fn heard(&self, text: io::Result<Option<String>>) -> Result<Heard, ConnectionError> {
        let text = text.and_then(|text| text.ok_or_else(|| io::Error::from(ErrorKind::UnexpectedEof)));
        let text = text.map_err(|error| match error.kind() {
            ErrorKind::TimedOut if !self.service.is_empty() => {
                let (service, pid) = (self.service.clone(), self.pid);
                ConnectionError::NotAllowed { service, pid, source: error }
            }
            _ => error.into(),
        })?;
        let line = understand(&text).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        Ok(Heard { text, line })
    }

    /// Waits until the manager has closed the connection, which is all that is left to come.
    pub fn wait_for_end(mut self) {
        let _ = self.hear();
    }
}

fn reply(heard: Heard) -> Result<Reply, ConnectionError> {
    match heard.line {
        control::Line::Reply(reply) => Ok(*reply),
        control::Line::Event(_) => Err(ConnectionError::Unexpected),
    }
}

/// Names a service, where it is known.
fn of_service(service: &str) -> String {
    if service.is_empty() { String::new() } else { format!(" of `{service}`") }
}

/// Names a process, where it is known.
fn of_process(pid: i32) -> String {
    if pid > 0 { format!(" (pid {pid})") } else { String::new() }
}

/// Whether a manager answers a command at once.
pub fn is_quick(command: &Command) -> bool {
    matches!(command, Command::Ping | Command::Status | Command::Message(_))
}

/// Reads a line as [`Heard`] has it.
fn understand(text: &str) -> serde_json::Result<control::Line> {
    let mut line = control::Line::parse(&made_printable(text)?.to_string())?;
    if let control::Line::Reply(reply) = &mut line
        && reply.status.is_some()
        && let control::Line::Reply(as_it_came) = control::Line::parse(text)?
    {
        reply.status = as_it_came.status;
    }
    Ok(line)
}

/// Reads JSON of a manager for people: every text in it is made printable.
///
/// # Errors
///
/// It is no such value.
pub fn understood<T: DeserializeOwned>(json: &str) -> serde_json::Result<T> {
    serde_json::from_value(made_printable(json)?)
}

fn made_printable(json: &str) -> serde_json::Result<Value> {
    fn clean(value: &mut Value) {
        match value {
            Value::String(text) => *text = printable(text).into_owned(),
            Value::Array(values) => values.iter_mut().for_each(clean),
            Value::Object(fields) => fields.values_mut().for_each(clean),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
    let mut value = serde_json::from_str(json)?;
    clean(&mut value);
    Ok(value)
}
