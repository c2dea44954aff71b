//! Finding a manager: by its service's name, by its service file, or by the user who runs it.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Instant;

use super::connection::{Connection, ConnectionError, LEAST, Unanswered};
use super::patient::PATIENCE;
use crate::config::closest_name;
use crate::daemon::runtime::{
    Connected, Place, id_of_user, own_user, places, places_of_others, user_name, users_with_places,
};
use crate::daemon::{Source, absolute, read_spec};
use crate::wire::control::{Command, MAX_ANSWER, Reply, Request};
use crate::wire::lines::Lines;

/// The most managers that are asked where one is looked for, each by a descriptor. Most processes may have 1024.
const MAX_ASKED: usize = 512;

/// A service as it was named on the command line.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    /// The user who runs it, if it was named as USER/NAME.
    user: Option<u32>,
    name: String,
    /// What is said to be missing: the word as it was typed, or the service of a file.
    shown: String,
}

impl Wanted {
    /// Takes a service file for the service that it defines, USER/NAME for that user's, and any other word for a name.
    fn parse(word: &str) -> Self {
        let path = Path::new(word);
        // `alice/web` is the service of a user, whatever lies in this folder.
        let is_named = word.starts_with(['.', '/']) || path.extension().is_some_and(|end| end == "toml");
        let is_file = is_named && path.is_file();
        let own = |name: String| Self { user: None, shown: name.clone(), name };
        if is_file {
            return own(name_in(path).unwrap_or_else(|| word.into()));
        }
        match word.split_once('/').map(|(user, name)| (id_of_user(user), name)) {
            Some((Some(user), name)) if user == own_user() => own(name.into()),
            Some((Some(user), name)) => Self { user: Some(user), name: name.into(), shown: word.into() },
            Some((None, _)) | None => own(word.into()),
        }
    }
}

/// Returns the name that a service file gives its service. One that is broken at present still has its own name.
fn name_in(file: &Path) -> Option<String> {
    let path = absolute(file).ok()?;
    let stem = path.file_stem()?.to_str()?.to_owned();
    Some(read_spec(&Source::File(path), false).map_or(stem, |spec| spec.name))
}

/// Returns the places where the manager of a service may be.
fn places_of(wanted: &Wanted) -> Vec<Place> {
    let Some(user) = wanted.user else { return places(Some(&wanted.name)) };
    let all = places_of_others(&BTreeSet::from([user])).into_iter();
    all.filter(|place| place.service.as_deref() == Some(&wanted.name)).collect()
}

/// Returns the names of the services that run, as commands take them. A shell expands what it is given to complete, so a name with other
/// characters than a service file allows, which only a false manager has, is left out.
pub fn running() -> Vec<String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    let labels = Connection::look_for_all().0.into_iter().map(|connection| connection.label());
    labels.filter(|label| label.chars().all(is_plain)).collect()
}

/// Returns what to do if no manager of our own runs a service of this name.
pub fn instead_of(name: &str) -> String {
    let (found, _) = Connection::look_for_all();
    let labels: Vec<_> = found.iter().map(Connection::label).collect();
    let end = format!("/{name}");
    if let Some(of_another) = labels.iter().find(|label| label.ends_with(&end)) {
        return format!("another user runs it: `{of_another}`");
    }
    let labels: Vec<_> = labels.iter().map(String::as_str).collect();
    match closest_name(name, &labels) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!(
            "start it with `liveswap run` on the file of `{name}`; `liveswap status` lists those that run"
        ),
    }
}

impl Connection {
    /// Connects to the manager of the service, or to the only one of our own that runs. Other users' services are found by USER/NAME alone: a
    /// user could answer for a service of root's that has ended or stands still.
    ///
    /// # Errors
    ///
    /// There is none, there are several, or it does not let us in.
    pub fn open(name: Option<&str>) -> Result<Self, ConnectionError> {
        let wanted = name.map(Wanted::parse);
        let places = wanted.as_ref().map_or_else(|| places(None), places_of);
        let (mut found, refused) = Self::look_among(places, wanted.as_ref());
        // One that does not answer is there all the same, and may be the one that is meant.
        let silent = |error: &ConnectionError| match error {
            ConnectionError::NotAllowed { service, .. } if error.is_silence() => Some(service.clone()),
            _ => None,
        };
        let silent: Vec<_> = refused.iter().filter_map(silent).filter(|_| !found.is_empty()).collect();
        let is_clear = wanted.is_some() || found.len() + silent.len() < 2;
        match (found.pop(), refused.into_iter().next(), wanted) {
            (Some(only), ..) if is_clear => Ok(only),
            (Some(last), ..) => {
                let names = found.into_iter().chain([last]).map(|connection| connection.label());
                Err(ConnectionError::Several(names.chain(silent).collect()))
            }
            (None, Some(refused), _) => Err(refused),
            (None, None, Some(wanted)) => Err(ConnectionError::NoSuchManager(wanted.shown)),
            (None, None, None) => Err(ConnectionError::NoManager),
        }
    }

    /// Connects to all managers that run, for root those of other users too. Returns as well why there is no speaking with others.
    pub fn look_for_all() -> (Vec<Self>, Vec<ConnectionError>) {
        let others = places_of_others(&users_with_places());
        Self::look_among(places(None).into_iter().chain(others), None)
    }

    /// Connects to all managers of our own that run.
    pub fn look_for_own() -> (Vec<Self>, Vec<ConnectionError>) {
        Self::look_among(places(None), None)
    }

    /// Whether it is the service of another user.
    pub fn is_of_another(&self) -> bool {
        self.owner.is_some()
    }

    /// Connects to all managers in these places, or to that of the service.
    fn look_among(
        places: impl IntoIterator<Item = Place>,
        wanted: Option<&Wanted>,
    ) -> (Vec<Self>, Vec<ConnectionError>) {
        let name = wanted.map(|wanted| wanted.name.as_str());
        let (mut found, mut refused) = (Vec::new(), Vec::new());
        for (place, answered) in Self::ping(places) {
            let answered = answered.and_then(|(connection, reply)| {
                let pid = connection.pid;
                Self::welcomed((connection, reply)).map_err(|error| (pid, error))
            });
            let answered = answered.map(|connection| Self { owner: place.owner, ..connection });
            match answered {
                // A directory that was given to us may be any service's: only its manager knows.
                Ok(connection) if name.is_some_and(|name| name != connection.service) => {}
                Ok(connection) if name.is_some() || place.service.is_none() => {
                    return (vec![connection], refused);
                }
                Ok(connection) => found.push(connection),
                Err((_, error)) if is_nobody(&error) => {}
                // Another user's affair, which root did not ask for.
                Err(_) if place.owner.is_some() && name.is_none() => {}
                Err((pid, source)) => {
                    let service = place.service.or_else(|| name.map(Into::into)).unwrap_or_default();
                    refused.push(ConnectionError::NotAllowed { service, pid, source });
                }
            }
        }
        (found, refused)
    }

    /// The name by which a command finds it: `web`, or for root `alice/web` if another user runs it.
    pub fn label(&self) -> String {
        match self.owner {
            Some(owner) => format!("{}/{}", user_name(owner), self.service),
            None => self.service.clone(),
        }
    }

    /// Asks the managers of all places for a `ping` before the first answer is read, so that one that is silent takes no time
    /// from the others.
    pub(super) fn ping(
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
            Self { service: String::new(), pid, user, owner: None, stream, lines: Lines::new(MAX_ANSWER) };
        connection.ask(&Request::new(Command::Ping)).map_err(ConnectionError::into_io)?;
        Ok(connection)
    }

    fn welcomed((connection, reply): (Self, Reply)) -> io::Result<Self> {
        match reply.service {
            Some(service) if reply.ok => Ok(Self { service, ..connection }),
            _ => Err(io::Error::new(ErrorKind::PermissionDenied, reply.value)),
        }
    }
}

/// Whether there is no manager behind the socket.
fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::UnexpectedEof)
}
