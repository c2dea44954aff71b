//! Where managers are looked for, and how a client comes to one without mistaking a stranger for it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::unistd::{Uid, geteuid};

use super::runtime::{CONTROL, PRIVATE_FOLDER, locate, private_folder, private_folder_of};
use crate::sys::control_socket::{connect_until, peer_of};
use crate::sys::names;
use crate::sys::own_folder::owner_of;
use crate::sys::sock_diag::makers_of_listeners;
use crate::sys::way::{self, Trusted, WayError};

/// The most services that are looked at in one folder. Another user may have filled it.
const MAX_PLACES: usize = 1024;

/// The most services of another user that root looks at.
const MAX_OF_A_USER: usize = 32;

/// Where users have the runtime directories of their sessions.
const SESSIONS: &str = "/run/user";

/// A service's runtime directory with a control socket in it, whether anybody listens there or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The service's name, as the directory has it; `None` for a directory that was given to us.
    pub service: Option<String>,
    /// The path of its control socket.
    pub socket: PathBuf,
    /// The user whose service it is, if that is neither us nor root.
    pub owner: Option<u32>,
}

/// A connection to a manager, and its process.
#[derive(Debug)]
pub struct Connected {
    /// The connection.
    pub stream: UnixStream,
    /// The process that listens; 0 where it is in another pid namespace.
    pub pid: i32,
    /// The user of that process.
    pub user: u32,
}

impl Place {
    fn of(service: String, base: &Path) -> Self {
        let socket = base.join(&service).join(CONTROL);
        Self { service: Some(service), socket, owner: None }
    }

    /// Whether something stands there; a link is something.
    fn is_there(&self) -> bool {
        self.socket.symlink_metadata().is_ok()
    }

    /// Connects to the control socket, and makes sure who listens there: root, our own user, or the owner of the folder, whose
    /// service it is. Where too many wait to be accepted it tries again until a moment, and at least once.
    ///
    /// # Errors
    ///
    /// Those of connect(2); `PermissionDenied` where somebody else listens, or can decide what is found there; `TimedOut`.
    pub fn connect(&self, until: Instant) -> io::Result<Connected> {
        let refuse = |why: String| io::Error::new(io::ErrorKind::PermissionDenied, why);
        let folder = folder_of(&self.socket).map_err(|error| match error {
            WayError::Unsafe { .. } => refuse(error.to_string()),
            WayError::Io { source, .. } => source,
        })?;
        let stream = connect_until(&folder.path.join(CONTROL), until)?;
        let (pid, user) = peer_of(&stream)?;
        if user == 0 || user == geteuid().as_raw() || user == folder.owner() {
            return Ok(Connected { stream, pid, user });
        }
        let socket = self.socket.display();
        Err(refuse(format!("user {user} listens at {socket}, in another user's folder")))
    }
}

/// Walks to the folder of a socket, which is root's, ours, or another user's; only that user and root may change it.
fn folder_of(socket: &Path) -> Result<way::Found, WayError> {
    let folder = socket.parent().unwrap_or(Path::new("/"));
    let io = |source| WayError::Io { path: folder.to_owned(), source };
    let folder = std::path::absolute(folder).map_err(io)?;
    let owner = owner_of(&folder).map_err(io)?;
    way::find(&folder, Trusted::us()).or_else(|_| way::find(&folder, Trusted::user(owner)))
}

/// Returns where the manager of `service` may be, or any manager, that this user can speak to; most likely first.
///
/// A named one is found in a folder that may be entered but not listed, as /run/liveswap is for all but root.
#[must_use]
pub fn places(service: Option<&str>) -> Vec<Place> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let given = variable("RUNTIME_DIRECTORY").map(|_| locate(""));
    let given = given.map(|folder| Place { service: None, socket: folder.join(CONTROL), owner: None });
    let own = [variable("XDG_RUNTIME_DIR").map(|base| base.join("liveswap")), Some(private_folder())];
    let bases = [Some(PathBuf::from("/run/liveswap"))].into_iter().chain(own).flatten();
    // A folder that somebody else can change could hold anything.
    let bases = bases.filter_map(|base| way::find(&base, Trusted::us()).ok());
    let bases = bases.filter(way::Found::is_folder).map(|base| base.path);
    let mut found: Vec<_> = match service {
        Some(name) => bases.map(|base| Place::of(name.to_owned(), &base)).collect(),
        None => bases.flat_map(|base| folders(&base)).collect(),
    };
    found.sort_by(|a, b| a.service.cmp(&b.service));
    given.into_iter().chain(found).filter(Place::is_there).collect()
}

/// Returns whose managers to believe that their control server listens at `server`: root's, our own, and those of the user who made
/// all sockets that listen there. With more than one maker it could be any of them.
#[must_use]
pub fn believed_at(server: SocketAddr) -> BTreeSet<u32> {
    let makers = makers_of_listeners(server).unwrap_or_default();
    let only = makers.first().copied().filter(|_| makers.len() == 1);
    [0, geteuid().as_raw()].into_iter().chain(only).collect()
}

/// Returns a user who listens at `server`, or would be connected to there, and is neither root, nor ours, nor `trusted`; `None` where
/// there is none or the kernel does not tell. It tells of this machine's loopback alone.
#[must_use]
pub fn stranger_at(server: SocketAddr, trusted: Option<u32>) -> Option<u32> {
    let ip = match server.ip().to_canonical() {
        // A client that connects to no address comes to the loopback.
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    if !ip.is_loopback() {
        return None;
    }
    let makers = makers_of_listeners(SocketAddr::new(ip, server.port())).unwrap_or_default();
    let own = [0, geteuid().as_raw()];
    makers.into_iter().find(|maker| !own.contains(maker) && Some(*maker) != trusted)
}

/// Returns for root where the managers of these other users may be; nothing for anybody else, who may not speak to them.
#[must_use]
pub fn places_of_others(users: &BTreeSet<u32>) -> Vec<Place> {
    if !geteuid().is_root() {
        return Vec::new();
    }
    let of_user = |user: u32| {
        let bases = [private_folder_of(user), Path::new(SESSIONS).join(user.to_string()).join("liveswap")];
        let bases = bases.into_iter().filter_map(move |base| way::find(&base, Trusted::user(user)).ok());
        let bases = bases.filter(way::Found::is_folder).map(|base| base.path);
        let all = bases.flat_map(|base| folders(&base)).take(MAX_OF_A_USER);
        all.map(move |place| Place { owner: Some(user), ..place })
    };
    users.iter().copied().filter(|user| *user != 0).flat_map(of_user).filter(Place::is_there).collect()
}

/// Returns the users who may run managers of their own, by the folders in which these would be.
#[must_use]
pub fn users_with_places() -> BTreeSet<u32> {
    let names = |folder: &Path| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>()
    };
    let sessions = names(Path::new(SESSIONS)).into_iter();
    let private = names(&std::env::temp_dir()).into_iter();
    let private = private.filter_map(|name| name.strip_prefix(PRIVATE_FOLDER)?.parse().ok());
    // Anybody may make a folder that has another user's number.
    let private =
        private.filter(|user| owner_of(&private_folder_of(*user)).is_ok_and(|owner| owner == *user));
    sessions.filter_map(|name| name.parse().ok()).chain(private).take(MAX_PLACES).collect()
}

/// Returns our own user.
#[must_use]
pub fn own_user() -> u32 {
    geteuid().as_raw()
}

/// Returns the number of a user given by name or number; `None` if there is no such user.
#[must_use]
pub fn id_of_user(user: &str) -> Option<u32> {
    names::user_id(user).ok().map(Uid::as_raw)
}

/// Returns the name of a user, or the number if the user has none.
#[must_use]
pub fn user_name(user: u32) -> String {
    names::user_name(Uid::from_raw(user)).unwrap_or_else(|| user.to_string())
}

/// Returns a place for each entry of a folder; there are no more than [`MAX_PLACES`].
fn folders(base: &Path) -> impl Iterator<Item = Place> + use<> {
    let entries = fs::read_dir(base).into_iter().flatten().flatten();
    let base = base.to_owned();
    entries
        .take(MAX_PLACES)
        .filter_map(move |entry| Some(Place::of(entry.file_name().into_string().ok()?, &base)))
}
