//! The way to a manager: finding it by its service's name, and speaking with it line by line.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::patient::{PATIENCE, Patient, late, next_line};
use super::report::{self, Status};
use crate::daemon::runtime::{Connected, Place, believed_at, places, places_of_others};
use crate::wire::control::{self, Command, MAX_ANSWER, Reply, Request};
use crate::wire::lines::Lines;
use crate::wire::printable::printable;

/// How long an answer is read that should have come before, while others were waited for.
const LEAST: Duration = Duration::from_millis(5);

/// The most managers that are asked where one is looked for, each by a descriptor. Most processes may have 1024.
const MAX_ASKED: usize = 512;

/// A connection to a manager, which may be anybody's: no text of it is trusted, and no more is read than the protocol has.
#[derive(Debug)]
pub struct Connection {
    /// The service's name.
    pub service: String,
    /// Its process; 0 where that is in another pid namespace.
    pid: i32,
    /// The user of that process.
    user: u32,
    stream: UnixStream,
    lines: Lines,
}

/// A line of the manager, as it was written and as it is understood.
#[derive(Debug)]
pub struct Heard {
    /// JSON, without its newline.
    pub text: String,
    /// What it says. Its texts are printable, but for the `status`, which is JSON for [`understood`].
    pub line: control::Line,
}

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
    #[error("the manager of `{service}` does not answer")]
    NotAllowed {
        /// The service.
        service: String,
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
    fn into_io(self) -> io::Error {
        match self {
            Self::Lost(error) | Self::Garbled(error) | Self::Silent(error) => error,
            other => io::Error::other(other),
        }
    }

    /// Prints it, and returns the exit status that it comes to.
    pub fn print(&self) -> ExitCode {
        let (status, hint) = match self {
            Self::NoSuchManager(name) => (
                Status::NoManager,
                format!(
                    "start it with `liveswap run` on the file of `{name}`; `liveswap status` lists those that run"
                ),
            ),
            Self::NoManager => (Status::NoManager, "start one with `liveswap run FILE`".into()),
            Self::Several(names) => {
                let first = names.first().map_or("NAME", String::as_str);
                (Status::Usage, format!("name one of them, such as `{first}`"))
            }
            Self::NotAllowed { source, .. } if source.kind() != ErrorKind::PermissionDenied => {
                (Status::Failed, "it hangs, or it is something else than a manager".into())
            }
            Self::NotAllowed { .. } => (
                Status::Failed,
                "its owner, root and members of its `[control] group` may speak to it".into(),
            ),
            Self::Unexpected | Self::Garbled(_) => (
                Status::Failed,
                "it is of another version than this command, or something else than a manager".into(),
            ),
            Self::Lost(_) | Self::Silent(_) => {
                (Status::Failed, "the manager's log says what happened".into())
            }
        };
        report::print(self, Some(&hint));
        status.into()
    }
}

impl Connection {
    /// Connects to the manager of the service, or to the only one that runs.
    ///
    /// # Errors
    ///
    /// There is none, there are several, or it does not let us in.
    pub fn open(name: Option<&str>) -> Result<Self, ConnectionError> {
        let mut found: Vec<Self> = Vec::new();
        let mut refused = None;
        for (place, answered) in Self::ping(places(name)) {
            match answered.and_then(Self::welcomed) {
                // A directory that was given to us may be any service's: only its manager knows.
                Ok(connection) if name.is_some_and(|name| name != connection.service) => {}
                Ok(connection) if name.is_some() || place.service.is_none() => return Ok(connection),
                Ok(connection) => found.push(connection),
                Err(error) if is_nobody(&error) => {}
                Err(source) => {
                    let service =
                        place.service.or_else(|| name.map(Into::into)).unwrap_or_else(|| "?".into());
                    refused.get_or_insert(ConnectionError::NotAllowed { service, source });
                }
            }
        }
        match (found.pop(), refused, name) {
            (Some(only), ..) if found.is_empty() => Ok(only),
            (Some(last), ..) => {
                let names = found.into_iter().chain([last]).map(|connection| connection.service);
                Err(ConnectionError::Several(names.collect()))
            }
            (None, Some(refused), _) => Err(refused),
            (None, None, Some(name)) => Err(ConnectionError::NoSuchManager(name.into())),
            (None, None, None) => Err(ConnectionError::NoManager),
        }
    }

    /// Connects to the manager whose control server listens at `server`, by its control socket; `None` where none is found that
    /// lets us speak.
    pub fn at(server: SocketAddr) -> Option<Self> {
        let believed = believed_at(server);
        let places = places(None).into_iter().chain(places_of_others(&believed));
        let answers = Self::ping(places).filter_map(|(_, answered)| answered.ok());
        let of_server = |(connection, reply): &(Self, Reply)| {
            let listens_there = reply.tcp.is_some_and(|at| {
                let is_any = at.ip().is_unspecified() && server.ip().is_loopback();
                at.port() == server.port() && (is_any || at.ip().to_canonical() == server.ip().to_canonical())
            });
            listens_there && believed.contains(&connection.user) && is_of_our_network(connection.pid)
        };
        let mut found = answers.filter(of_server);
        found.find_map(|(connection, reply)| Some(Self { service: reply.service?, ..connection }))
    }

    /// Asks the managers of all places for a `ping` before the first answer is read, so that one that is silent takes no time
    /// from the others.
    fn ping(
        places: impl IntoIterator<Item = Place>,
    ) -> impl Iterator<Item = (Place, io::Result<(Self, Reply)>)> {
        let until = Instant::now() + PATIENCE;
        let asked = places.into_iter().take(MAX_ASKED).map(|place| {
            let asked = Self::greet(&place, Instant::now());
            (place, asked)
        });
        let asked: Vec<_> = asked.collect();
        asked.into_iter().map(move |(place, asked)| {
            let until = until.max(Instant::now() + LEAST);
            let again = |error: io::Error| match error.kind() {
                ErrorKind::TimedOut => Self::greet(&place, until),
                _ => Err(error),
            };
            let answered = asked.or_else(again).and_then(|mut connection| {
                let reply = connection.reply_until(Some(until)).map_err(ConnectionError::into_io)?;
                Ok((connection, reply))
            });
            (place, answered)
        })
    }

    /// Connects, and says the first word.
    fn greet(place: &Place, until: Instant) -> io::Result<Self> {
        let Connected { stream, pid, user } = place.connect(until)?;
        // A manager reads at once.
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut connection =
            Self { service: String::new(), pid, user, stream, lines: Lines::new(MAX_ANSWER) };
        connection.ask(&Request::new(Command::Ping)).map_err(ConnectionError::into_io)?;
        Ok(connection)
    }

    fn welcomed((connection, reply): (Self, Reply)) -> io::Result<Self> {
        match reply.service {
            Some(service) if reply.ok => Ok(Self { service, ..connection }),
            _ => Err(io::Error::new(ErrorKind::PermissionDenied, reply.value)),
        }
    }

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
        let until = is_quick.then(|| Instant::now() + PATIENCE);
        self.reply_until(until)
    }

    fn reply_until(&mut self, until: Option<Instant>) -> Result<Reply, ConnectionError> {
        match self.hear_until(until)?.line {
            control::Line::Reply(reply) => Ok(*reply),
            control::Line::Event(_) => Err(ConnectionError::Unexpected),
        }
    }

    /// Waits for the next line.
    ///
    /// # Errors
    ///
    /// The manager has gone, or what it says is no line of the protocol.
    pub fn hear(&mut self) -> Result<Heard, ConnectionError> {
        self.hear_until(None)
    }

    fn hear_until(&mut self, until: Option<Instant>) -> Result<Heard, ConnectionError> {
        let mut stream = Patient::new(&self.stream, until);
        let text = next_line(&mut stream, &mut self.lines)?;
        let text = text.ok_or_else(|| io::Error::from(ErrorKind::UnexpectedEof))?;
        let line = understand(&text).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        Ok(Heard { text, line })
    }

    /// Waits until the manager has closed the connection, which is all that is left to come.
    pub fn wait_for_end(mut self) {
        let _ = self.hear();
    }
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

/// Whether a process has the same network as we have, as far as we may look: addresses of two networks are not the same.
fn is_of_our_network(pid: i32) -> bool {
    let network = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
    let theirs = network(&pid.to_string());
    theirs.is_none() || theirs == network("self")
}

/// Whether there is no manager behind the socket.
fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::UnexpectedEof)
}
