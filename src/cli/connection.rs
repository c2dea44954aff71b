//! The way to a manager: finding it by its service's name, and speaking with it line by line.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::patient::{PATIENCE, Patient, awaited_line, late, next_line, why_silent};
use super::report::{self, Status};
use crate::daemon::runtime::{Connected, Place, believed_at, places, places_of_others};
use crate::wire::control::{self, Command, MAX_ANSWER, Reply, Request};
use crate::wire::lines::Lines;
use crate::wire::printable::printable;

/// How long an answer is read that should have come before, while others were waited for.
pub const LEAST: Duration = Duration::from_millis(5);

/// The most managers that are asked where one is looked for, each by a descriptor. Most processes may have 1024.
const MAX_ASKED: usize = 512;

/// A connection to a manager, which may be anybody's: no text of it is trusted, and no more is read than the protocol has.
#[derive(Debug)]
pub struct Connection {
    /// The service's name.
    pub service: String,
    /// Its process; 0 where that is in another pid namespace.
    pub pid: i32,
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

/// Why a manager has not answered, and which process it is; 0 where that is not known.
type Unanswered = (i32, io::Error);

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
    fn into_io(self) -> io::Error {
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
    /// Connects to the manager of the service, or to the only one that runs.
    ///
    /// # Errors
    ///
    /// There is none, there are several, or it does not let us in.
    pub fn open(name: Option<&str>) -> Result<Self, ConnectionError> {
        let (mut found, refused) = Self::look_for(name);
        // One that does not answer is there all the same, and may be the one that is meant.
        let silent = |error: &ConnectionError| match error {
            ConnectionError::NotAllowed { service, .. } if error.is_silence() => Some(service.clone()),
            _ => None,
        };
        let silent: Vec<_> = refused.iter().filter_map(silent).filter(|_| !found.is_empty()).collect();
        let is_clear = name.is_some() || found.len() + silent.len() < 2;
        match (found.pop(), refused.into_iter().next(), name) {
            (Some(only), ..) if is_clear => Ok(only),
            (Some(last), ..) => {
                let names = found.into_iter().chain([last]).map(|connection| connection.service);
                Err(ConnectionError::Several(names.chain(silent).collect()))
            }
            (None, Some(refused), _) => Err(refused),
            (None, None, Some(name)) => Err(ConnectionError::NoSuchManager(name.into())),
            (None, None, None) => Err(ConnectionError::NoManager),
        }
    }

    /// Connects to all managers that run, or to that of the service. Returns as well why there is no speaking with others.
    pub fn look_for(name: Option<&str>) -> (Vec<Self>, Vec<ConnectionError>) {
        let (mut found, mut refused) = (Vec::new(), Vec::new());
        for (place, answered) in Self::ping(places(name)) {
            let answered = answered.and_then(|(connection, reply)| {
                let pid = connection.pid;
                Self::welcomed((connection, reply)).map_err(|error| (pid, error))
            });
            match answered {
                // A directory that was given to us may be any service's: only its manager knows.
                Ok(connection) if name.is_some_and(|name| name != connection.service) => {}
                Ok(connection) if name.is_some() || place.service.is_none() => {
                    return (vec![connection], refused);
                }
                Ok(connection) => found.push(connection),
                Err((_, error)) if is_nobody(&error) => {}
                Err((pid, source)) => {
                    let service = place.service.or_else(|| name.map(Into::into)).unwrap_or_default();
                    refused.push(ConnectionError::NotAllowed { service, pid, source });
                }
            }
        }
        (found, refused)
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
    ) -> impl Iterator<Item = (Place, Result<(Self, Reply), Unanswered>)> {
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
            let answered = asked.or_else(again).map_err(|error| (0, error)).and_then(|mut connection| {
                let reply = connection.reply_until(until);
                let reply = reply.map_err(|error| (connection.pid, error.into_io()))?;
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
