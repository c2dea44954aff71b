#![expect(
    unsafe_code,
    reason = "nix caps the backlog of listen(2) at its own SOMAXCONN, and has no AF_UNSPEC for connect(2)"
)]
//! Sockets that are to be listened on: made, bound, opened and looked at.
//!
//! Every descriptor made here has CLOEXEC set from its first moment.

use std::ffi::{OsStr, c_int};
use std::io;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockType, SockaddrStorage, UnixAddr, bind as nix_bind, getpeername,
    getsockname, setsockopt, shutdown as nix_shutdown, socket, sockopt,
};

use super::options::get_number;
use super::retry::at_once;
use crate::plain::{SocketAddress, SocketKind};

/// Makes a socket of the address's family, not yet bound.
///
/// # Errors
/// Those of socket(2).
pub fn create(address: &SocketAddress, kind: SocketKind) -> io::Result<OwnedFd> {
    let family = match address {
        SocketAddress::Inet(SocketAddr::V4(_)) => AddressFamily::Inet,
        SocketAddress::Inet(SocketAddr::V6(_)) => AddressFamily::Inet6,
        SocketAddress::Path(_) | SocketAddress::Abstract(_) => AddressFamily::Unix,
    };
    let kind = match kind {
        SocketKind::Stream => SockType::Stream,
        SocketKind::Datagram => SockType::Datagram,
        SocketKind::Seqpacket => SockType::SeqPacket,
    };
    Ok(socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?)
}

/// Binds the literal address; a path must not exist yet.
///
/// # Errors
/// Those of bind(2); ENAMETOOLONG where a UNIX name is too long.
pub fn bind(fd: impl AsFd, address: &SocketAddress) -> io::Result<()> {
    let fd = fd.as_fd().as_raw_fd();
    match address {
        SocketAddress::Inet(address) => nix_bind(fd, &SockaddrStorage::from(*address))?,
        SocketAddress::Path(path) => nix_bind(fd, &UnixAddr::new(path)?)?,
        SocketAddress::Abstract(name) => nix_bind(fd, &UnixAddr::new_abstract(name.as_bytes())?)?,
    }
    Ok(())
}

/// Opens the queue of connections, or changes its length where it is open; what is queued stays.
///
/// It also revives a TCP socket that was shut down; nothing revives a UNIX one.
///
/// # Errors
/// Those of listen(2).
pub fn listen(fd: impl AsFd, backlog: u32) -> io::Result<()> {
    let backlog = c_int::try_from(backlog).unwrap_or(c_int::MAX);
    // SAFETY: listen(2) takes two integers and touches no memory of ours.
    let result = unsafe { libc::listen(fd.as_fd().as_raw_fd(), backlog) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Returns where a socket is bound, or `None` where it is unbound or of a family that we do not serve.
///
/// # Errors
/// Those of getsockname(2): ENOTSOCK for what is no socket.
pub fn local_address(fd: impl AsFd) -> io::Result<Option<SocketAddress>> {
    let fd = fd.as_fd();
    // nix panics on no family, but it has no type for each: ask before it decodes.
    match get_number(&fd, libc::SOL_SOCKET, libc::SO_DOMAIN)? {
        libc::AF_INET | libc::AF_INET6 | libc::AF_UNIX => {}
        _ => return Ok(None),
    }
    let storage: SockaddrStorage = getsockname(fd.as_raw_fd())?;
    if let Some(address) = inet(&storage) {
        return Ok(Some(SocketAddress::Inet(address)));
    }
    let unix = storage.as_unix_addr();
    let path = unix.and_then(UnixAddr::path).map(|path| SocketAddress::Path(path.to_owned()));
    let name = || {
        unix.and_then(UnixAddr::as_abstract)
            .map(|name| SocketAddress::Abstract(OsStr::from_bytes(name).into()))
    };
    Ok(path.or_else(name))
}

/// Returns the port at which a socket of IPv4 or IPv6 is bound.
///
/// # Errors
/// Those of [`local_address`].
pub fn port(fd: impl AsFd) -> io::Result<Option<u16>> {
    Ok(local_address(fd)?.and_then(|address| match address {
        SocketAddress::Inet(address) => Some(address.port()),
        SocketAddress::Path(_) | SocketAddress::Abstract(_) => None,
    }))
}

/// Has a datagram socket have no other end any more (connect(2)); it may lose the port that the kernel chose for it.
///
/// # Errors
/// Those of connect(2).
pub fn disconnect(fd: impl AsFd) -> io::Result<()> {
    let nobody = libc::sockaddr { sa_family: 0, sa_data: [0; 14] };
    let length = libc::socklen_t::try_from(size_of_val(&nobody)).unwrap_or_default();
    // SAFETY: the kernel reads `length` bytes, which is the size of the address, and that outlives the call.
    let result = unsafe { libc::connect(fd.as_fd().as_raw_fd(), &raw const nobody, length) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has close(2) wait for nothing, whatever the socket has become.
///
/// # Errors
/// Those of setsockopt(2).
pub fn do_not_linger(fd: impl AsFd) -> io::Result<()> {
    Ok(setsockopt(&fd, sockopt::Linger, &libc::linger { l_onoff: 0, l_linger: 0 })?)
}

/// Has a TCP socket no longer listen: its queue is reset, and its address is free for another that is bound over it.
///
/// # Errors
/// Those of shutdown(2): ENOTCONN where it does not listen.
pub fn shut_down(fd: impl AsFd) -> io::Result<()> {
    Ok(nix_shutdown(fd.as_fd().as_raw_fd(), Shutdown::Read)?)
}

/// Returns an address of IPv4 or IPv6.
pub(super) fn inet(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|address| SocketAddrV4::from(*address).into());
    v4.or_else(|| storage.as_sockaddr_in6().map(|address| SocketAddrV6::from(*address).into()))
}

/// Returns what a socket carries, or `None` where it is of a type that we do not serve.
///
/// # Errors
/// Those of getsockopt(2).
pub fn kind(fd: impl AsFd) -> io::Result<Option<SocketKind>> {
    Ok(match get_number(&fd, libc::SOL_SOCKET, libc::SO_TYPE)? {
        libc::SOCK_STREAM => Some(SocketKind::Stream),
        libc::SOCK_DGRAM => Some(SocketKind::Datagram),
        libc::SOCK_SEQPACKET => Some(SocketKind::Seqpacket),
        _ => None,
    })
}

/// Returns whether it is a UNIX socket.
pub fn is_unix(fd: impl AsFd) -> bool {
    get_number(&fd, libc::SOL_SOCKET, libc::SO_DOMAIN).is_ok_and(|family| family == libc::AF_UNIX)
}

/// Returns whether it is a UNIX stream socket, of a pair for instance.
pub fn is_unix_stream(fd: impl AsFd) -> bool {
    is_unix(&fd) && kind(fd).is_ok_and(|kind| kind == Some(SocketKind::Stream))
}

/// Returns whether a socket queues connections (`SO_ACCEPTCONN`).
///
/// # Errors
/// Those of getsockopt(2).
pub fn is_listening(fd: impl AsFd) -> io::Result<bool> {
    Ok(get_number(&fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN)? != 0)
}

/// Returns whether a socket has one other end (getpeername(2)).
pub fn is_connected(fd: impl AsFd) -> bool {
    getpeername::<SockaddrStorage>(fd.as_fd().as_raw_fd()).is_ok()
}

/// Returns whether someone called shutdown(2) for reading on a listening or datagram socket.
///
/// A TCP socket then leaves the listening state (POLLHUP), the others merely remember it (POLLRDHUP); a level-triggered
/// epoll with EPOLLRDHUP as its only event reports both, and no incoming connection.
///
/// # Errors
/// Those of poll(2).
pub fn is_shut_down(fd: impl AsFd) -> io::Result<bool> {
    // nix has no name for POLLRDHUP, and would drop the bit from the answer.
    let mut poll = libc::pollfd { fd: fd.as_fd().as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: the array has one element, as the call says, and outlives it.
    at_once(|| Errno::result(unsafe { libc::poll(&raw mut poll, 1, 0) }))?;
    Ok(poll.revents & (libc::POLLRDHUP | libc::POLLHUP) != 0)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::ffi::OsString;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    /// Leaves out the addresses of IPv6, loudly, on a machine that has none.
    pub(crate) fn reachable<const N: usize>(addresses: [&'static str; N]) -> Vec<&'static str> {
        let has_ipv6 = std::net::UdpSocket::bind("[::1]:0").is_ok();
        let (kept, skipped): (Vec<_>, Vec<_>) =
            addresses.into_iter().partition(|address| has_ipv6 || !address.starts_with('['));
        if !skipped.is_empty() {
            crate::skipped::add(&format!("{skipped:?}: no IPv6 here"));
        }
        kept
    }

    /// Waits until a socket that was closed here is closed everywhere.
    ///
    /// Tests are threads of one process, and some of them fork: until such a child execs or exits, it has a copy of every
    /// descriptor, whoever closed his.
    pub(crate) fn eventually<T>(mut check: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(value) = check() {
                return value;
            }
            assert!(Instant::now() < deadline, "it did not come to pass within a minute");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn bound(address: &SocketAddress, kind: SocketKind) -> OwnedFd {
        let socket = create(address, kind).unwrap();
        bind(&socket, address).unwrap();
        socket
    }

    #[test]
    fn a_socket_tells_where_it_is_bound_and_what_it_carries() {
        let folder = tempfile::tempdir().unwrap();
        let name = format!("liveswap-test-{}", std::process::id());
        for kind in [SocketKind::Stream, SocketKind::Datagram, SocketKind::Seqpacket] {
            for address in [
                SocketAddress::Path(folder.path().join(kind.to_string())),
                SocketAddress::Abstract(name.clone().into()),
            ] {
                let socket = bound(&address, kind);
                assert_eq!(local_address(&socket).unwrap(), Some(address));
                assert_eq!(super::kind(&socket).unwrap(), Some(kind));
                assert!(!is_listening(&socket).unwrap());
                if kind.is_listened_on() {
                    listen(&socket, 5).unwrap();
                    assert!(is_listening(&socket).unwrap());
                }
            }
        }
        for text in reachable(["127.0.0.1:0", "[::1]:0"]) {
            let asked: SocketAddr = text.parse().unwrap();
            let socket = bound(&SocketAddress::Inet(asked), SocketKind::Datagram);
            let Some(SocketAddress::Inet(got)) = local_address(&socket).unwrap() else {
                panic!("no address")
            };
            assert_eq!(got.ip(), asked.ip());
            assert_ne!(got.port(), 0);
        }
    }

    #[test]
    fn what_is_no_socket_is_an_error_and_what_is_of_another_family_is_none() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(local_address(&file).unwrap_err().raw_os_error(), Some(libc::ENOTSOCK));
        let netlink = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).unwrap();
        assert_eq!(local_address(&netlink).unwrap(), None);
        assert_eq!(kind(&netlink).unwrap(), None);
        let unbound = create(&SocketAddress::Abstract(OsString::new()), SocketKind::Stream).unwrap();
        assert_eq!(local_address(&unbound).unwrap(), None);
    }

    #[test]
    fn every_descriptor_closes_on_exec() {
        let socket =
            create(&SocketAddress::Inet("127.0.0.1:0".parse().unwrap()), SocketKind::Stream).unwrap();
        let flags = nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags, libc::FD_CLOEXEC);
    }
}
