//! How long the queue of a listening socket may grow, as the kernel has it now.
//!
//! Any process that shares the socket can change it with listen(2), and no event tells; so it can only be asked for.

use std::io;
use std::mem::offset_of;
use std::os::fd::AsFd;

use nix::sys::stat::fstat;

use super::options::{get_bytes, get_number};
use super::sock_diag;

/// The parts of `sock_diag(7)` that libc lacks.
mod diag {
    pub const NLMSG_ERROR: u16 = 2;
    pub const SOCK_DIAG_BY_FAMILY: u16 = 20;
    pub const UDIAG_SHOW_RQLEN: u32 = 0x10;
    pub const UNIX_DIAG_RQLEN: u16 = 4;
    /// The headers before the attributes: `struct nlmsghdr` and `struct unix_diag_msg`, 16 bytes each.
    pub const ATTRIBUTES: usize = 32;
}

/// Returns the backlog that is in force, which is at most `net.core.somaxconn`.
///
/// # Errors
/// EOPNOTSUPP for what is neither TCP nor a UNIX socket, ENOENT where the kernel has no `unix_diag`.
pub fn backlog(fd: impl AsFd) -> io::Result<u32> {
    match get_number(&fd, libc::SOL_SOCKET, libc::SO_DOMAIN)? {
        libc::AF_INET | libc::AF_INET6 => of_tcp(&fd),
        libc::AF_UNIX => of_unix(&fd),
        _ => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
    }
}

/// Asks `TCP_INFO`, whose `tcpi_sacked` is the backlog where the socket listens.
fn of_tcp(fd: &impl AsFd) -> io::Result<u32> {
    let mut info = [0; size_of::<libc::tcp_info>()];
    let length = get_bytes(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)?;
    number_at(&info[..length], offset_of!(libc::tcp_info, tcpi_sacked))
}

/// Asks `sock_diag(7)`, whose `udiag_wqueue` is the backlog where the socket listens.
fn of_unix(fd: &impl AsFd) -> io::Result<u32> {
    // The kernel finds the socket by its inode number, of which it keeps 32 bits.
    let inode = u32::try_from(fstat(fd)?.st_ino & u64::from(u32::MAX)).unwrap_or_default();
    let netlink = sock_diag::open()?;
    sock_diag::ask(&netlink, &request(inode))?;
    let mut answer = [0; 1024];
    let length = sock_diag::answer(&netlink, &mut answer)?;
    backlog_in(&answer[..length])
}

/// Writes a `struct nlmsghdr` and a `struct unix_diag_req` for one socket.
fn request(inode: u32) -> Vec<u8> {
    const LENGTH: u32 = 40;
    const ANY_COOKIE: [u8; 8] = [0xff; 8];
    let mut bytes = Vec::with_capacity(LENGTH as usize);
    bytes.extend(LENGTH.to_ne_bytes());
    bytes.extend(diag::SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(1_u16.to_ne_bytes()); // NLM_F_REQUEST
    bytes.extend([0; 8]); // sequence number and port: the socket carries one question
    bytes.extend([1, 0, 0, 0]); // AF_UNIX, no protocol
    bytes.extend(u32::MAX.to_ne_bytes()); // in any state
    bytes.extend(inode.to_ne_bytes());
    bytes.extend(diag::UDIAG_SHOW_RQLEN.to_ne_bytes());
    bytes.extend(ANY_COOKIE);
    bytes
}

/// Reads the answer: an error, or the headers and the attributes.
fn backlog_in(answer: &[u8]) -> io::Result<u32> {
    let kind = answer.get(4..).and_then(<[u8]>::first_chunk).copied().map(u16::from_ne_bytes);
    if kind == Some(diag::NLMSG_ERROR) {
        let errno = number_at(answer, 16)?.cast_signed();
        return Err(io::Error::from_raw_os_error(errno.saturating_neg()));
    }
    let mut rest = answer.get(diag::ATTRIBUTES..).unwrap_or_default();
    while let [l0, l1, t0, t1, ..] = *rest {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        if u16::from_ne_bytes([t0, t1]) == diag::UNIX_DIAG_RQLEN {
            return number_at(rest, 8);
        }
        rest = rest.get(length.next_multiple_of(4).max(4)..).unwrap_or_default();
    }
    Err(io::ErrorKind::InvalidData.into())
}

fn number_at(bytes: &[u8], offset: usize) -> io::Result<u32> {
    let found = bytes.get(offset..).and_then(<[u8]>::first_chunk);
    found.copied().map(u32::from_ne_bytes).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plain::{SocketAddress, SocketKind};
    use crate::sys::listener::tests::reachable;
    use crate::sys::listener::{bind, create, listen};

    #[test]
    fn the_backlog_is_the_one_last_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let inet = reachable(["127.0.0.1:0", "[::1]:0"]).into_iter();
        let inet = inet.map(|text| (SocketAddress::Inet(text.parse().unwrap()), SocketKind::Stream));
        let unix = [SocketKind::Stream, SocketKind::Seqpacket].into_iter();
        let unix = unix.map(|kind| (SocketAddress::Path(folder.path().join(kind.to_string())), kind));
        for (address, kind) in inet.chain(unix) {
            let socket = create(&address, kind).unwrap();
            bind(&socket, &address).unwrap();
            for asked in [7, 1, 100] {
                listen(&socket, asked).unwrap();
                assert_eq!(backlog(&socket).unwrap(), asked, "{address}");
            }
        }
    }

    #[test]
    fn no_answer_of_the_kernel_makes_it_panic() {
        let mut answer = [0_u8; 64];
        for length in 0..answer.len() {
            for byte in 0..=u8::MAX {
                answer[32..].fill(byte);
                let _ = backlog_in(&answer[..length]);
            }
        }
    }
}
