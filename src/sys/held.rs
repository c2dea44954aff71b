//! What another process has open (proc_pid_fd(5)), by what it is and not by its number there: programs move descriptors.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{Pid, geteuid};

use super::foreign::ForeignFd;
use super::pidfd::Pidfd;
use super::process::living_thread;

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
    let entries = fs::read_dir(format!("/proc/{}/fd", living_thread(pid)))?.flatten();
    let held = entries.filter_map(|entry| {
        let link = fs::read_link(entry.path()).ok()?;
        let (kind, inode) = parse(link.to_str()?)?;
        Some(Held { number: entry.file_name().to_str()?.parse().ok()?, kind, inode })
    });
    Ok(held.collect())
}

/// Returns what a descriptor of ours is, if it is a socket or a pipe.
///
/// Its link tells: a file can be given any inode by its file system, and may make fstat(2) wait, but no file has a name that
/// does not begin with a slash.
pub fn identity(fd: impl AsFd) -> Option<(Kind, u64)> {
    parse(fs::read_link(own_path(&fd)).ok()?.to_str()?)
}

/// Whether epoll_ctl(2) may be asked to watch it: what a file system or another epoll instance answers may take for ever.
pub fn may_be_watched(fd: impl AsFd) -> bool {
    const WATCHED: [&str; 4] =
        ["anon_inode:[eventfd]", "anon_inode:[timerfd]", "anon_inode:[pidfd]", "pidfd:["];
    let Ok(link) = fs::read_link(own_path(&fd)) else { return false };
    let Some(link) = link.to_str() else { return false };
    parse(link).is_some() || WATCHED.iter().any(|kind| link.starts_with(kind))
}

impl Held {
    /// Opens the end to read of a pipe, whichever end the process has; it never blocks.
    ///
    /// # Errors
    /// As [`Held::open`].
    pub fn reading_end(&self, pid: Pid) -> io::Result<File> {
        self.open(pid, OpenOptions::new().read(true))
    }

    /// Opens the end to write of a pipe, whichever end the process has; it never blocks.
    ///
    /// # Errors
    /// As [`Held::open`], and ENXIO where nobody reads.
    pub fn writing_end(&self, pid: Pid) -> io::Result<File> {
        self.open(pid, OpenOptions::new().write(true))
    }

    /// Opens a pipe of another process anew, if it still is the one that was seen, and one that we or root have made.
    ///
    /// The process chooses what its number leads to, at any moment. So the pipe is held first, which opens nothing
    /// (`O_PATH`), then looked at, and opened through what is held.
    ///
    /// # Errors
    /// Those of open(2): EACCES where we may not look (ptrace(2)); `NotFound` where it is another by now.
    fn open(&self, pid: Pid, how: &mut OpenOptions) -> io::Result<File> {
        let at = format!("/proc/{}/fd/{}", living_thread(pid), self.number);
        // The access mode says nothing beside O_PATH.
        let held = OpenOptions::new().read(true).custom_flags(OFlag::O_PATH.bits()).open(at)?;
        if self.kind != Kind::Pipe || identity(&held) != Some((Kind::Pipe, self.inode)) {
            return Err(io::Error::new(io::ErrorKind::NotFound, "it is another by now"));
        }
        let maker = fstat(&held)?.st_uid;
        if maker != 0 && maker != geteuid().as_raw() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("user {maker} has made it")));
        }
        how.custom_flags(OFlag::O_NONBLOCK.bits()).open(own_path(&held))
    }

    /// Copies a socket from a process, if it still is the one that was seen.
    ///
    /// # Errors
    /// Those of pidfd_getfd(2): EPERM where we may not look into the process; `NotFound` where it is another by now.
    pub fn copy(&self, process: &Pidfd) -> io::Result<ForeignFd> {
        let copy = process.copy(self.number)?;
        if self.kind == Kind::Socket && identity(&copy) == Some((Kind::Socket, self.inode)) {
            Ok(copy)
        } else {
            Err(io::Error::new(io::ErrorKind::NotFound, "it is another by now"))
        }
    }
}

/// Opens what a descriptor of ours leads to anew: whose flags another process has a hand in is not shared.
///
/// # Errors
/// Those of open(2): ENOENT where `/proc` is not mounted, ENXIO for a socket.
pub fn anew(fd: impl AsFd, flags: OFlag) -> io::Result<OwnedFd> {
    Ok(open(own_path(&fd).as_str(), flags | OFlag::O_CLOEXEC, Mode::empty())?)
}

fn own_path(fd: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
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

    fn pipe_of(fd: impl AsFd) -> Held {
        let (kind, inode) = identity(&fd).unwrap();
        Held { number: fd.as_fd().as_raw_fd(), kind, inode }
    }

    #[test]
    fn either_end_of_a_pipe_leads_to_both() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"waits").unwrap();
        let mut buffer = [0; 16];
        let mut other = pipe_of(&writer).reading_end(getpid()).unwrap();
        assert_eq!(other.read(&mut buffer).unwrap(), 5);
        assert_eq!(other.read(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        pipe_of(&reader).writing_end(getpid()).unwrap().write_all(b"on").unwrap();
        assert_eq!(other.read(&mut buffer).unwrap(), 2);
    }

    #[test]
    fn what_a_number_leads_to_is_opened_only_if_it_is_the_pipe_that_was_seen() {
        let (reader, _writer) = io::pipe().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let seen = pipe_of(&reader);
        let swapped = Held { number: file.as_raw_fd(), ..seen };
        assert_eq!(swapped.writing_end(getpid()).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(swapped.reading_end(getpid()).unwrap_err().kind(), io::ErrorKind::NotFound);
        let (other, _) = io::pipe().unwrap();
        let swapped = Held { number: other.as_raw_fd(), ..seen };
        assert_eq!(swapped.reading_end(getpid()).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_description_of_its_own_has_flags_of_its_own() {
        let (reader, _writer) = io::pipe().unwrap();
        let own = anew(&reader, OFlag::O_RDONLY | OFlag::O_NONBLOCK).unwrap();
        let flags = |fd: &dyn AsRawFd| {
            let link = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap();
            let flags = link.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim().to_owned();
            OFlag::from_bits_truncate(i32::from_str_radix(&flags, 8).unwrap())
        };
        assert!(flags(&own).contains(OFlag::O_NONBLOCK));
        assert!(!flags(&reader).contains(OFlag::O_NONBLOCK));
    }

    #[test]
    fn no_file_and_no_other_epoll_is_watched() {
        let (reader, _writer) = io::pipe().unwrap();
        let epoll = nix::sys::epoll::Epoll::new(nix::sys::epoll::EpollCreateFlags::empty()).unwrap();
        assert!(may_be_watched(&reader));
        assert!(may_be_watched(std::net::TcpListener::bind("127.0.0.1:0").unwrap()));
        assert!(may_be_watched(Pidfd::open(getpid()).unwrap()));
        assert!(!may_be_watched(epoll.0));
        assert!(!may_be_watched(tempfile::tempfile().unwrap()));
        assert!(!may_be_watched(File::open("/dev/null").unwrap()));
    }
}
