//! Which sockets are bound, and who made them, as the kernel lists them (sock_diag(7)).

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use super::held;
use super::listener::{bind, create, kind, local_address};
use super::netlink::{InetQuestion, find_unix, list_inet, show, state};
use super::sock_diag::canonical;
use super::unix_names;
use crate::plain::{SocketAddress, SocketKind};

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
    let states = if carries.is_listened_on() { state::LISTENING } else { state::UNCONNECTED };
    match place {
        SocketAddress::Inet(place) => inet_maker(inode, place, carries, states),
        SocketAddress::Path(_) | SocketAddress::Abstract(_) => unix_maker(inode, &place, states),
    }
}

/// Whether some process may have a socket at this address, or one that is in the way there. Where it cannot be known, it may.
///
/// By IP it is tried to bind one, for a moment: it shares its address with none, so that any other is in its way. That takes a tenth of the
/// time of a question to the kernel, which looks through all sockets of the machine.
pub fn may_be_taken(place: &SocketAddress, carries: SocketKind) -> bool {
    match place {
        SocketAddress::Inet(_) => create(place, carries).and_then(|probe| bind(&probe, place)).is_err(),
        SocketAddress::Path(_) | SocketAddress::Abstract(_) => unix_names::is_taken(place).unwrap_or(true),
    }
}

fn inet_maker(inode: u64, place: SocketAddr, carries: SocketKind, states: u32) -> io::Result<Option<u32>> {
    let protocol = match carries {
        SocketKind::Stream => libc::IPPROTO_TCP,
        SocketKind::Datagram => libc::IPPROTO_UDP,
        SocketKind::Seqpacket => return Ok(None),
    };
    let family = if place.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let question = InetQuestion { protocol, ..InetQuestion::tcp(family, states, place.port()) };
    let mut maker = None;
    list_inet(&question, |socket| {
        let is_it = socket.inode().map(u64::from) == Some(inode) && socket.near() == Some(canonical(place));
        maker = maker.or(is_it.then(|| socket.maker()));
    })?;
    Ok(maker)
}

fn unix_maker(inode: u64, place: &SocketAddress, states: u32) -> io::Result<Option<u32>> {
    let mut maker = None;
    find_unix(inode, show::NAME | show::MAKER, |socket| {
        let is_it = socket.inode().map(u64::from) == Some(inode) && socket.is_in(states);
        maker = socket.maker().filter(|_| is_it && socket.name().as_ref() == Some(place));
    })?;
    Ok(maker)
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
