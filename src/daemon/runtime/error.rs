//! Why there is no runtime directory.

use std::io;
use std::path::PathBuf;

use super::MAX_PATH;

/// Why there is no runtime directory to be had.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Another manager runs this service.
    #[error("service `{service}` is run by another manager (pid {pid}), which holds {}", path.display())]
    Taken {
        /// The service's name.
        service: String,
        /// Its manager, as written in the lock file.
        pid: String,
        /// The runtime directory.
        path: PathBuf,
    },
    /// The manager of another service uses the directory.
    #[error("{} is the runtime directory of service `{other}` (pid {pid}), and service `{service}` needs one of its own", path.display())]
    OfAnother {
        /// The service's name.
        service: String,
        /// The name of the other service.
        other: String,
        /// Its manager, as written in the lock file.
        pid: String,
        /// The runtime directory.
        path: PathBuf,
    },
    /// Somebody else could change what is in it.
    #[error("cannot use {} as the runtime directory: {reason}", path.display())]
    Unsafe {
        /// The runtime directory.
        path: PathBuf,
        /// What is wrong, with the folder on the way to it.
        reason: String,
    },
    /// The notify sockets in it would have names longer than a socket's address can be (unix(7)).
    #[error("{} is too long for a runtime directory: it may have {MAX_PATH} bytes", .0.display())]
    TooLong(PathBuf),
    /// It cannot be made or written to.
    #[error("cannot use {} as the runtime directory", path.display())]
    Io {
        /// The directory or the file in it.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}
