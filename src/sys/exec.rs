//! The program that this process is, and how it becomes another (execve(2)).

use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::execve;

use super::handover::Luggage;
use super::paths::absolute;
use super::program_file::FileIdentity;

/// What the kernel appends to the name of a file that was removed since it was executed or opened (proc_pid_exe(5)).
pub const DELETED: &str = " (deleted)";

/// Where a process finds its own program, wherever that stands (proc_pid_exe(5)).
pub const RUNNING: &str = "/proc/self/exe";

/// Returns which file the program that runs is.
///
/// # Errors
///
/// Those of stat(2).
pub fn own_identity() -> io::Result<FileIdentity> {
    FileIdentity::at(Path::new(RUNNING))
}

/// Returns the absolute path of this process's program: as it was called, where that leads to it, so that a link that is
/// moved later leads to what comes next; else as the kernel has it. To be called at the start.
///
/// # Errors
///
/// Those of readlink(2), where neither is known.
pub fn own_program() -> io::Result<PathBuf> {
    let running = own_identity();
    let is_running = |path: &PathBuf| {
        let found = FileIdentity::at(path);
        matches!((found, &running), (Ok(found), Ok(running)) if found.is_same_file(*running))
    };
    let called = std::env::args_os().next().unwrap_or_default();
    if let Some(found) = places(&called).into_iter().find(is_running) {
        return Ok(found);
    }
    let path = fs::read_link(RUNNING)?;
    Ok(match path.as_os_str().as_bytes().strip_suffix(DELETED.as_bytes()) {
        Some(path) => PathBuf::from(OsString::from_vec(path.to_vec())),
        None => path,
    })
}

/// Where a program may be that was called by this name (execvp(3)).
fn places(called: &OsStr) -> Vec<PathBuf> {
    let places = if called.as_bytes().contains(&b'/') {
        vec![PathBuf::from(called)]
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|folder| folder.join(called)).collect()
    };
    places.into_iter().filter_map(|place| absolute(place).ok()).collect()
}

/// Becomes another program, which finds the descriptors of `luggage` open and none besides; returns only where that fails,
/// and then all is as before.
///
/// Signals that are blocked stay so, and those that are pending wait for the program (signal(7)). Children stay children. A
/// child that still shares our memory keeps it: the kernel gives this process a new one, and the old lives as long as
/// anyone uses it.
pub fn become_program(
    program: &Path,
    arguments: &[OsString],
    environment: &[(OsString, OsString)],
    luggage: &Luggage,
) -> io::Error {
    let replaced = || -> io::Result<()> {
        let text = |parts: &[&[u8]]| CString::new(parts.concat());
        let path = text(&[program.as_os_str().as_bytes()])?;
        let arguments: Result<Vec<_>, _> =
            arguments.iter().map(|argument| text(&[argument.as_bytes()])).collect();
        let environment: Result<Vec<_>, _> = environment
            .iter()
            .map(|(name, value)| text(&[name.as_bytes(), b"=", value.as_bytes()]))
            .collect();
        let (arguments, environment) = (arguments?, environment?);
        luggage.close_on_execute(false)?;
        let Err(error) = execve(&path, &arguments, &environment);
        Err(error.into())
    };
    let error = replaced().err().unwrap_or_else(|| Errno::UnknownErrno.into());
    // Each was open a moment ago, so this cannot fail.
    let _ = luggage.close_on_execute(true);
    error
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::fcntl::{FcntlArg, fcntl};

    use super::*;

    #[test]
    fn this_program_is_found() {
        assert!(own_program().unwrap().is_absolute());
        assert_eq!(FileIdentity::at(&own_program().unwrap()).unwrap(), own_identity().unwrap());
    }

    #[test]
    fn after_a_failure_all_is_as_before() {
        let (one, other) = io::pipe().unwrap();
        let mut luggage = Luggage::default();
        luggage.put(&one);
        luggage.put(&other);
        let error = become_program(Path::new("/no/such/program"), &[], &[], &luggage);
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        for fd in [one.as_fd(), other.as_fd()] {
            assert_eq!(fcntl(fd, FcntlArg::F_GETFD).unwrap(), libc::FD_CLOEXEC);
        }
    }
}
