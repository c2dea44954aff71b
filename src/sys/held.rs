//! What another process has open (proc_pid_fd(5)), by what it is and not by its number there: programs move descriptors.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::OFlag;
use nix::sys::stat::fstat;
use nix::unistd::Pid;

/// What is open that has no name in the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A socket of any family.
    Socket,
    /// Either end of a pipe.
    Pipe,
}

/// A descriptor of another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its number there.
    pub number: RawFd,
    /// What it is.
    pub kind: Kind,
    /// Which one: no two of a kind that are there at the same time have the same.
    pub inode: u64,
}

/// Returns the inode of what is open.
///
/// # Errors
/// Those of fstat(2).
pub fn inode(fd: impl AsFd) -> io::Result<u64> {
    Ok(fstat(fd)?.st_ino)
}

/// Returns the sockets and pipes that a process has open.
///
/// # Errors
/// Those of readdir(3): EACCES where we may not look (ptrace(2)).
pub fn open_files(pid: Pid) -> io::Result<Vec<Held>> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
    let held = entries.filter_map(|entry| {
        let link = fs::read_link(entry.path()).ok()?;
        let (kind, inode) = parse(link.to_str()?)?;
        Some(Held { number: entry.file_name().to_str()?.parse().ok()?, kind, inode })
    });
    Ok(held.collect())
}

/// Opens the end to read of a pipe that a process has open, whichever end that one has; it never blocks.
///
/// # Errors
/// Those of open(2).
pub fn reading_end(pid: Pid, number: RawFd) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path(pid, number))
}

/// Opens the end to write of a pipe that a process has open, whichever end that one has; it never blocks.
///
/// # Errors
/// Those of open(2): ENXIO where nobody reads.
pub fn writing_end(pid: Pid, number: RawFd) -> io::Result<File> {
    OpenOptions::new().write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path(pid, number))
}

fn path(pid: Pid, number: RawFd) -> String {
    format!("/proc/{pid}/fd/{number}")
}

fn parse(link: &str) -> Option<(Kind, u64)> {
    let (kind, rest) = link.split_once(":[")?;
    let kind = match kind {
        "socket" => Kind::Socket,
        "pipe" => Kind::Pipe,
        _ => return None,
    };
    Some((kind, rest.strip_suffix(']')?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;

    use nix::unistd::getpid;

    use super::*;

    #[test]
    fn links_are_told_apart() {
        assert_eq!(parse("socket:[4711]"), Some((Kind::Socket, 4711)));
        assert_eq!(parse("pipe:[1]"), Some((Kind::Pipe, 1)));
        for other in ["/var/log/pipe:[1]x", "anon_inode:[eventfd]", "/dev/null", "socket:[]"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn either_end_of_a_pipe_leads_to_both() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"waits").unwrap();
        let mut buffer = [0; 16];
        let mut other = reading_end(getpid(), writer.as_raw_fd()).unwrap();
        assert_eq!(other.read(&mut buffer).unwrap(), 5);
        assert_eq!(other.read(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        writing_end(getpid(), reader.as_raw_fd()).unwrap().write_all(b"on").unwrap();
        assert_eq!(other.read(&mut buffer).unwrap(), 2);
    }
}
