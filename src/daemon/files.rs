//! The files beside a service file that a release is read from. Reading may block: only a child of the manager does it.

use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::unistd::geteuid;

use crate::config;
use crate::wire::secret::Secret;

/// The longest service file or environment file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Reads a regular file of bounded size.
pub(super) fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let (file, metadata) = open_file(path)?;
    read_open(file, &metadata)
}

/// Opens a regular file; whatever else stands at the path is refused without waiting for it.
pub(super) fn open_file(path: &Path) -> io::Result<(File, Metadata)> {
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::Error::other("it is no regular file but a folder"));
    }
    if !metadata.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    Ok((file, metadata))
}

pub(super) fn read_open(file: File, metadata: &Metadata) -> io::Result<Vec<u8>> {
    if metadata.len() > MAX_FILE {
        return Err(io::Error::other(format!(
            "it has {} bytes, more than the {MAX_FILE} allowed",
            metadata.len()
        )));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads the secret of a token file that nobody else can read or write.
///
/// Whoever can is able to speak in everybody's name: such a file is refused, and not merely warned of.
pub(super) fn read_token(path: &Path) -> Result<Secret, String> {
    let refuse = |why: &dyn fmt::Display| format!("token file {}: {why}", path.display());
    let (file, metadata) = open_file(path).map_err(|error| refuse(&error))?;
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if owner != 0 && owner != geteuid().as_raw() {
        return Err(refuse(&format!(
            "it belongs to user {owner}; it must belong to the manager's user or to root"
        )));
    }
    if mode & 0o077 != 0 {
        return Err(refuse(&format!(
            "others may use it (mode {mode:04o}); make it the owner's alone: chmod 600"
        )));
    }
    let bytes = read_open(file, &metadata).map_err(|error| refuse(&error))?;
    Secret::read(&bytes).map_err(|why| refuse(&why))
}

pub(super) fn read_environment(path: &Path, optional: bool) -> Result<Vec<(String, String)>, String> {
    let refuse = |why: &dyn fmt::Display| format!("environment file {}: {why}", path.display());
    let bytes = match read_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let name = path.file_name().unwrap_or_default().display();
            return if optional {
                Ok(Vec::new())
            } else {
                Err(refuse(&format!("{error}; if it may be missing, write \"-{name}\"")))
            };
        }
        bytes => bytes.map_err(|error| refuse(&error))?,
    };
    let text = String::from_utf8(bytes).map_err(|_| refuse(&"it is not UTF-8"))?;
    config::environment::parse(&text).map_err(|error| refuse(&error))
}
