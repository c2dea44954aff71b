//! Paths as they were typed: where one goes through a symbolic link, that link is followed anew each time.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{self, Path, PathBuf};

/// Returns the folder that we are in by the name that the shell has for it (`PWD`), where that leads there; else as the kernel
/// has it. The kernel's name has no link in it, so that an upgrade would never see a link move.
///
/// # Errors
///
/// Those of getcwd(3).
pub fn folder() -> io::Result<PathBuf> {
    let here = std::env::current_dir()?;
    let named = std::env::var_os("PWD").map(PathBuf::from).filter(|named| named.is_absolute());
    Ok(named.filter(|named| is_same(named, &here)).unwrap_or(here))
}

fn is_same(one: &Path, other: &Path) -> bool {
    let place = |path: &Path| path.metadata().map(|folder| (folder.dev(), folder.ino()));
    place(one).is_ok_and(|one| place(other).is_ok_and(|other| one == other))
}

/// Returns a path that leads to the same from everywhere; a relative one begins at [`folder`]. It need not exist.
///
/// # Errors
///
/// Those of getcwd(3); `InvalidInput` for an empty path.
pub fn absolute(path: impl AsRef<Path>) -> io::Result<PathBuf> {
    let path = path.as_ref();
    if path.is_absolute() || path.as_os_str().is_empty() {
        return path::absolute(path);
    }
    path::absolute(folder()?.join(path))
}
