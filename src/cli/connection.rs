//! The way to a manager: finding it by its service's name, and speaking with it line by line.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use super::report::{self, Status};
use crate::daemon::runtime::{Place, places};
use crate::wire::control::{self, Command, Reply, Request};

/// A connection to a manager.
#[derive(Debug)]
pub struct Connection {
    /// The service's name.
    pub service: String,
    stream: BufReader<UnixStream>,
}

/// A line of the manager, as it was written and as it is understood.
#[derive(Debug)]
pub struct Heard {
    /// Without its newline.
    pub text: String,
    /// What it says.
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
    /// It was there, and is no more.
    #[error("the connection to the manager was lost")]
    Lost(#[from] io::Error),
}

impl ConnectionError {
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
            Self::NotAllowed { .. } => (
                Status::Failed,
                "its owner, root and members of its `[control] group` may speak to it".into(),
            ),
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
        let mut found: Vec<Self> = Vec::new();
        let mut refused = None;
        for place in places(name) {
            match Self::to(&place) {
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

    fn to(place: &Place) -> io::Result<Self> {
        let stream = UnixStream::connect(&place.socket)?;
        let mut connection = Self { service: String::new(), stream: BufReader::new(stream) };
        let reply = connection.ask_once(Command::Ping).map_err(|error| match error {
            ConnectionError::Lost(error) => error,
            other => io::Error::other(other),
        })?;
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
        match self.stream.get_mut().write_all(line.as_bytes()) {
            // It was closed on us, and the reason may stand in what it said last.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            written => Ok(written?),
        }
    }

    /// Asks for something and returns the answer, where nothing else was asked.
    ///
    /// # Errors
    ///
    /// The manager has gone.
    pub fn ask_once(&mut self, command: Command) -> Result<Reply, ConnectionError> {
        self.ask(&Request::new(command))?;
        loop {
            if let control::Line::Reply(reply) = self.hear()?.line {
                return Ok(*reply);
            }
        }
    }

    /// Waits for the next line.
    ///
    /// # Errors
    ///
    /// The manager has gone, or what it says is no line of the protocol.
    pub fn hear(&mut self) -> Result<Heard, ConnectionError> {
        let mut text = String::new();
        if self.stream.read_line(&mut text)? == 0 {
            return Err(io::Error::from(ErrorKind::UnexpectedEof).into());
        }
        text.truncate(text.trim_end_matches('\n').len());
        let line = control::Line::parse(&text).map_err(io::Error::from)?;
        Ok(Heard { text, line })
    }

    /// Waits until the manager has closed the connection.
    pub fn wait_for_end(mut self) {
        while self.hear().is_ok() {}
    }
}

/// Whether there is no manager behind the socket.
fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::UnexpectedEof)
}
