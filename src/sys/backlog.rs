//! How long the queue of a listening socket may grow, as the kernel has it now.
//!
//! Any process that shares the socket can change it with listen(2), and no event tells; so it can only be asked for.

use std::io;
use std::mem::offset_of;
use std::os::fd::AsFd;

use super::held::inode;
use super::netlink::{find_unix, show};
use super::options::{get_bytes, get_number};

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

/// Asks sock_diag(7).
fn of_unix(fd: &impl AsFd) -> io::Result<u32> {
    let mut backlog = None;
    find_unix(inode(fd)?, show::QUEUE, |socket| backlog = socket.backlog())?;
    // The socket is there, as we hold it: it is the kernel's module that is missing.
    backlog.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
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
}
