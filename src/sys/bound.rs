//! Which sockets are bound, and who made them, as the kernel lists them (sock_diag(7)).

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use super::held;
use super::listener::{bind, create, kind, local_address};
use super::sock_diag::{
    self, ANSWER, HEADER, NO_COOKIE, PIECE, REQUEST_DUMP, REQUEST_ONE, address, attribute, canonical,
    each_message, number, open, put, request, start,
};
use super::unix_names;
use crate::plain::{SocketAddress, SocketKind};

/// The states, a bit each, of a socket that listens, and of one that is bound and not connected (net/tcp_states.h).
const LISTENING: u32 = 1 << 10;
const UNCONNECTED: u32 = 1 << 7;

/// The lengths of `struct unix_diag_req` and `struct unix_diag_msg`, `UDIAG_SHOW_NAME | UDIAG_SHOW_UID`, and the kinds of
/// what these bring (linux/unix_diag.h); the user since Linux 5.3.
const UNIX_REQUEST: usize = 24;
const UNIX_ANSWER: usize = 16;
const SHOW: u32 = 0x01 | 0x40;
const NAME: u16 = 0;
const USER: u16 = 7;

/// Returns the user who made a socket, where the kernel lists that very socket as listening, or as bound and not connected,
/// at the address at which it is bound; else `None`.
///
/// It waits for the kernel, which may take milliseconds where there are very many sockets.
///
/// # Errors
///
/// Those of the netlink socket, as ss(8) has them; ENOENT where the kernel has no such module.
pub fn maker(socket: impl AsFd) -> io::Result<Option<u32>> {
    let Some((held::Kind::Socket, inode)) = held::identity(&socket) else { return Ok(None) };
    let (Some(place), Some(carries)) = (local_address(&socket)?, kind(&socket)?) else { return Ok(None) };
    let state = if carries.is_listened_on() { LISTENING } else { UNCONNECTED };
    match place {
        SocketAddress::Inet(place) => inet_maker(inode, place, carries, state),
        SocketAddress::Path(path) => unix_maker(inode, path.as_os_str().as_bytes(), state),
        SocketAddress::Abstract(name) => unix_maker(inode, &[b"\0", name.as_bytes()].concat(), state),
    }
}

/// Whether some process may have a socket at this address, or one that is in the way there. Where it cannot be known, it may.
///
/// By IP it is tried to bind one, for a moment: it shares its address with none, so that any other is in its way. That takes a tenth of the
/// time of a question to the kernel, which looks through all sockets of the machine.
pub fn may_be_taken(place: &SocketAddress, carries: SocketKind) -> bool {
    match place {
        SocketAddress::Inet(_) => create(place, carries).and_then(|probe| bind(&probe, place)).is_err(),
        SocketAddress::Path(path) => unix_names::list().map_or(true, |names| names.have(path)),
        SocketAddress::Abstract(name) => {
            unix_names::list().map_or(true, |names| names.have_abstract(name.as_bytes()))
        }
    }
}

fn inet_maker(inode: u64, place: SocketAddr, carries: SocketKind, state: u32) -> io::Result<Option<u32>> {
    let protocol = match carries {
        SocketKind::Stream => libc::IPPROTO_TCP,
        SocketKind::Datagram => libc::IPPROTO_UDP,
        SocketKind::Seqpacket => return Ok(None),
    };
    let family = if place.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut request = request(REQUEST_DUMP, family);
    put(&mut request, HEADER + 1, &[u8::try_from(protocol).unwrap_or_default()]);
    put(&mut request, HEADER + 4, &state.to_ne_bytes());
    put(&mut request, HEADER + 8, &place.port().to_be_bytes());
    let mut maker = None;
    ask(&request, ANSWER, |body| {
        let port = u16::from_be_bytes([body[4], body[5]]);
        let ip = address(body[0], &body[8..24]);
        let is_there = ip.map(|ip| SocketAddr::new(ip, port)) == Some(canonical(place));
        if is_there && number(body, 68).map(u64::from) == Some(inode) {
            maker = number(body, 64);
        }
    })?;
    Ok(maker)
}

fn unix_maker(inode: u64, name: &[u8], state: u32) -> io::Result<Option<u32>> {
    let mut request = [0; HEADER + UNIX_REQUEST];
    start(&mut request, REQUEST_ONE);
    let unix = u8::try_from(libc::AF_UNIX).unwrap_or_default();
    put(&mut request, HEADER, &[unix]);
    put(&mut request, HEADER + 4, &u32::MAX.to_ne_bytes());
    put(&mut request, HEADER + 8, &u32::try_from(inode).unwrap_or_default().to_ne_bytes());
    put(&mut request, HEADER + 12, &SHOW.to_ne_bytes());
    put(&mut request, HEADER + 16, &NO_COOKIE);
    let mut maker = None;
    ask(&request, UNIX_ANSWER, |body| {
        let is_it =
            number(body, 4).map(u64::from) == Some(inode) && state >> u32::from(body[2].min(31)) & 1 == 1;
        let known_as = attribute(&body[UNIX_ANSWER..], NAME).map(trimmed);
        if is_it && known_as == Some(trimmed(name)) {
            maker = attribute(&body[UNIX_ANSWER..], USER).and_then(|user| number(user, 0));
        }
    })?;
    Ok(maker)
}

/// A path without the NUL that the kernel keeps behind it; an abstract name begins with one.
fn trimmed(name: &[u8]) -> &[u8] {
    match name {
        [b'/', .., 0] => &name[..name.len() - 1],
        _ => name,
    }
}

/// Asks, and takes each answer of at least `least` bytes.
fn ask(request: &[u8], least: usize, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let netlink: OwnedFd = open()?;
    sock_diag::ask(&netlink, request)?;
    let is_dump = request.get(6..8) == Some(&REQUEST_DUMP.to_ne_bytes()[..]);
    let mut buffer = vec![0; PIECE];
    loop {
        let length = sock_diag::answer(&netlink, &mut buffer)?;
        match each_message(&buffer[..length], least, &mut take) {
            // There is none.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) && !is_dump => return Ok(()),
            is_last => {
                if is_last? || !is_dump || length == 0 {
                    return Ok(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram, UnixListener};

    use nix::unistd::{Uid, geteuid, seteuid};

    use super::super::fork::tests::isolated;
    use super::super::listener::tests::reachable;
    use super::*;

    fn own() -> u32 {
        geteuid().as_raw()
    }

    #[test]
    fn the_maker_of_every_kind_of_listener_is_known() {
        for ip in reachable(["127.0.0.1", "[::1]", "0.0.0.0", "[::]"]) {
            let ip = ip.trim_matches(['[', ']']);
            assert_eq!(maker(TcpListener::bind((ip, 0)).unwrap()).unwrap(), Some(own()), "{ip}");
            assert_eq!(maker(UdpSocket::bind((ip, 0)).unwrap()).unwrap(), Some(own()), "{ip}");
        }
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(maker(UnixListener::bind(folder.path().join("a")).unwrap()).unwrap(), Some(own()));
        assert_eq!(maker(UnixDatagram::bind(folder.path().join("b")).unwrap()).unwrap(), Some(own()));
        let name = format!("liveswap-maker-{}", std::process::id());
        let name = UnixAddress::from_abstract_name(name).unwrap();
        assert_eq!(maker(UnixListener::bind_addr(&name).unwrap()).unwrap(), Some(own()));
    }

    #[test]
    fn a_port_and_a_name_are_taken_for_as_long_as_a_socket_has_them() {
        // Beyond those that the kernel gives to other tests.
        let mut ports = 61_000 + u16::try_from(std::process::id() % 4_000).unwrap()..;
        for ip in reachable(["127.0.0.1", "[::1]", "0.0.0.0", "[::]"]) {
            let ip = ip.trim_matches(['[', ']']);
            let bind =
                |port| Some((port, TcpListener::bind((ip, port)).ok()?, UdpSocket::bind((ip, port)).ok()?));
            let (port, tcp, udp) = ports.find_map(bind).unwrap();
            let place = SocketAddress::Inet(SocketAddr::new(ip.parse().unwrap(), port));
            assert!(
                may_be_taken(&place, SocketKind::Stream) && may_be_taken(&place, SocketKind::Datagram),
                "{ip}"
            );
            // Those that share it are in the way as well.
            let shares = nix::sys::socket::sockopt::ReusePort;
            let is_set =
                [tcp.as_fd(), udp.as_fd()].map(|fd| nix::sys::socket::setsockopt(&fd, shares, &true));
            assert_eq!(is_set, [Ok(()); 2]);
            assert!(
                may_be_taken(&place, SocketKind::Stream) && may_be_taken(&place, SocketKind::Datagram),
                "{ip}"
            );
            drop((tcp, udp));
            assert!(
                !may_be_taken(&place, SocketKind::Stream) && !may_be_taken(&place, SocketKind::Datagram),
                "{ip}"
            );
        }
        let elsewhere = SocketAddress::Inet("192.0.2.1:80".parse().unwrap());
        assert!(may_be_taken(&elsewhere, SocketKind::Stream), "no address of this machine");
        let folder = tempfile::tempdir().unwrap();
        let path = SocketAddress::Path(folder.path().join("a"));
        assert!(!may_be_taken(&path, SocketKind::Stream));
        let _socket = UnixListener::bind(folder.path().join("a")).unwrap();
        assert!(may_be_taken(&path, SocketKind::Stream));
    }

    #[test]
    fn what_does_not_listen_or_is_no_socket_has_none() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(maker(&client).unwrap(), None);
        let bound = UdpSocket::bind("127.0.0.1:0").unwrap();
        bound.connect("127.0.0.1:9").unwrap();
        assert_eq!(maker(&bound).unwrap(), None);
        assert_eq!(maker(std::fs::File::open("/dev/null").unwrap()).unwrap(), None);
        assert_eq!(maker(UnixDatagram::unbound().unwrap()).unwrap(), None);
    }

    #[test]
    fn a_stranger_s_listener_is_told_from_ours() {
        if !Uid::effective().is_root() {
            crate::skipped::add("only root can be somebody else");
            return;
        }
        isolated(|| {
            let folder = tempfile::tempdir().unwrap();
            std::os::unix::fs::chown(folder.path(), Some(4711), None).unwrap();
            seteuid(Uid::from_raw(4711)).unwrap();
            let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
            let unix = UnixListener::bind(folder.path().join("it")).unwrap();
            seteuid(Uid::from_raw(0)).unwrap();
            assert_eq!((maker(tcp).unwrap(), maker(unix).unwrap()), (Some(4711), Some(4711)));
        });
    }
}
