//! The TCP sockets of this network namespace, as the kernel lists them: which connections there are, and whose a socket is.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;

use super::netlink::{InetQuestion, InetSocket, find_tcp, list_inet, state};

/// `INET_DIAG_SKV6ONLY` of linux/inet_diag.h.
const IPV6_ALONE: u16 = 11;

/// Returns the inode numbers of the connections whose local port is one of `ports`, of either IP version.
///
/// It waits for the kernel, which may take milliseconds where there are very many connections.
///
/// # Errors
///
/// Those of the netlink socket, as ss(8) has them; ENOENT where the kernel has no such module.
pub fn connections(ports: &BTreeSet<u16>) -> io::Result<BTreeSet<u32>> {
    let mut inodes = BTreeSet::new();
    for port in ports {
        for family in [libc::AF_INET, libc::AF_INET6] {
            list_inet(&InetQuestion::tcp(family, state::CONNECTED, *port), |socket| {
                let is_of_port = socket.near().is_some_and(|near| near.port() == *port);
                inodes.extend(socket.inode().filter(|_| is_of_port));
            })?;
        }
    }
    Ok(inodes)
}

/// Returns the users who made the sockets that listen at a TCP address of this machine, alone or with all others. There may be
/// several, as sockets that are bound to devices of their own share an address.
///
/// # Errors
///
/// Those of the netlink socket.
pub fn makers_of_listeners(address: SocketAddr) -> io::Result<BTreeSet<u32>> {
    let mut makers = BTreeSet::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        list_inet(&InetQuestion::tcp(family, state::LISTENING, address.port()), |socket| {
            let is_there = accepts(&socket, canonical(address));
            makers.extend(is_there.then(|| socket.maker()));
        })?;
    }
    Ok(makers)
}

/// Whether a socket that listens gets the connections to an address of this machine.
fn accepts(socket: &InetSocket<'_>, to: SocketAddr) -> bool {
    let Some(near) = socket.near().filter(|near| near.port() == to.port()) else { return false };
    let is_ipv6_alone =
        || socket.attribute(IPV6_ALONE).and_then(|value| value.first()).is_some_and(|on| *on != 0);
    let is_everywhere = near.ip().is_unspecified()
        && if to.is_ipv6() { socket.is_ipv6() } else { !socket.is_ipv6() || !is_ipv6_alone() };
    is_everywhere || near == to
}

/// The socket at one end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The user who made the socket, in the view of our user namespace. Whoever speaks by it may be another one.
    pub maker: u32,
    /// What tells it from every other socket.
    pub inode: u32,
}

/// Returns the socket of this machine that is bound to `near` and connected to `far`; `None` where no process holds one.
///
/// Of an end that its process has closed the kernel says sooner or later that it is root's, and that it has no inode: who
/// writes and closes at once would pass for root, so that only an end with an inode is believed. It waits for nothing.
///
/// # Errors
///
/// Those of the netlink socket, but for ENOENT: there is none.
pub fn end(near: SocketAddr, far: SocketAddr) -> io::Result<Option<End>> {
    // An end that speaks IPv4 by an IPv6 socket stands among those of IPv4.
    let (near, far) = (canonical(near), canonical(far));
    let mut found = None;
    find_tcp(near, far, |socket| found = end_in(&socket, near, far))?;
    Ok(found)
}

/// Reads the answer to the question whose the one end is.
///
/// Where that connection is no more, the kernel may show another socket: one that listens where it was bound, or a new one
/// that is still trying. Neither is believed.
fn end_in(socket: &InetSocket<'_>, near: SocketAddr, far: SocketAddr) -> Option<End> {
    let is_it = socket.is_in(state::CONNECTED) && socket.near() == Some(near) && socket.far() == Some(far);
    socket.inode().filter(|_| is_it).map(|inode| End { maker: socket.maker(), inode })
}

/// Returns an address without a scope id, an IPv4 address in IPv6 as IPv4.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, TcpListener, TcpStream};
    use std::os::fd::{AsFd, AsRawFd};

    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrIn6, bind, listen, setsockopt, socket, sockopt,
    };
    use nix::sys::stat::fstat;
    use nix::unistd::geteuid;

    use super::super::listener::tests::eventually;
    use super::super::netlink::tests::{connection, read};
    use super::super::shared_options::tests::as_another_user;
    use super::*;

    fn inode(fd: impl AsFd) -> u32 {
        u32::try_from(fstat(fd).unwrap().st_ino).unwrap()
    }

    #[test]
    fn accepted_connections_are_seen_of_either_version() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let port = listener.local_addr().unwrap().port();
            let ports = BTreeSet::from([port]);
            let before = connections(&ports).unwrap();
            assert!(!before.contains(&inode(&listener)), "it listens, and is no connection");
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (served, _) = listener.accept().unwrap();
            let found = connections(&ports).unwrap();
            assert_eq!(found, BTreeSet::from([inode(&served)]), "the client's end has another local port");
            drop(client);
            let half_closed = connections(&ports).unwrap();
            assert_eq!(half_closed, BTreeSet::from([inode(&served)]), "somebody still holds it");
            drop(served);
            // A child that another test has just forked has a copy for a moment.
            eventually(|| connections(&ports).unwrap().is_empty().then_some(()));
        }
    }

    /// Both ends of a connection, the client's first.
    fn connected(listen: &str, to: &str) -> Option<(TcpStream, TcpStream)> {
        let listener = TcpListener::bind(listen).ok()?;
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(format!("{to}:{port}")).unwrap();
        Some((client, listener.accept().unwrap().0))
    }

    #[test]
    fn the_other_end_is_ours_until_it_is_closed() {
        let own = Some(geteuid().as_raw());
        for (listen, to) in [
            ("127.0.0.1:0", "127.0.0.1"),
            ("127.0.0.1:0", "[::ffff:127.0.0.1]"),
            ("[::1]:0", "[::1]"),
            ("[::]:0", "127.0.0.1"),
        ] {
            let Some((client, served)) = connected(listen, to) else { continue };
            assert_eq!(
                end(served.peer_addr().unwrap(), served.local_addr().unwrap()).unwrap().map(|end| end.inode),
                Some(inode(&client))
            );
            let (near, far) = (served.peer_addr().unwrap(), served.local_addr().unwrap());
            assert_eq!(end(near, far).unwrap().map(|end| end.maker), own, "{listen} {to}");
            client.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(end(near, far).unwrap().map(|end| end.maker), own, "it still listens");
            drop(client);
            eventually(|| end(near, far).unwrap().is_none().then_some(()));
        }
    }

    #[test]
    fn the_maker_of_a_listener_is_known_by_its_address() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let own = BTreeSet::from([geteuid().as_raw()]);
        assert_eq!(makers_of_listeners(address).unwrap(), own);
        let beside = SocketAddr::new("127.0.0.2".parse().unwrap(), address.port());
        assert_eq!(makers_of_listeners(beside).unwrap(), BTreeSet::new());
        drop(listener);
        let everywhere = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = everywhere.local_addr().unwrap().port();
        assert_eq!(makers_of_listeners(SocketAddr::new("127.0.0.1".parse().unwrap(), port)).unwrap(), own);
    }

    /// One that is bound to all of IPv6 and no more shares its port with one of IPv4.
    #[test]
    fn a_listener_of_another_ip_version_is_no_listener_there() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let place =
            SockaddrIn6::from(std::net::SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, address.port(), 0, 0));
        let beside = as_another_user(|| {
            let flags = SockFlag::SOCK_CLOEXEC;
            let socket = socket(AddressFamily::Inet6, SockType::Stream, flags, None).ok()?;
            setsockopt(&socket, sockopt::Ipv6V6Only, &true).unwrap();
            bind(socket.as_raw_fd(), &place).unwrap();
            listen(&socket, Backlog::new(1).unwrap()).unwrap();
            Some(socket)
        });
        let Some(beside) = beside else {
            crate::skipped::add("this machine has no IPv6");
            return;
        };
        let by_ipv6 = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), address.port());
        let own = BTreeSet::from([geteuid().as_raw()]);
        let other = BTreeSet::from([if geteuid().is_root() { 1 } else { geteuid().as_raw() }]);
        assert_eq!(makers_of_listeners(address).unwrap(), own);
        assert_eq!(makers_of_listeners(by_ipv6).unwrap(), other);
        drop(listener);
        eventually(|| makers_of_listeners(address).unwrap().is_empty().then_some(()));
        drop(beside);
        // One of both versions has both.
        let Ok(both) = TcpListener::bind("[::]:0") else { return };
        let port = both.local_addr().unwrap().port();
        for ip in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(makers_of_listeners(SocketAddr::new(ip.parse().unwrap(), port)).unwrap(), own, "{ip}");
        }
    }

    #[test]
    fn nobody_holds_what_does_not_exist_or_only_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = listener.local_addr().unwrap();
        assert_eq!(end(near, "127.0.0.1:9".parse().unwrap()).unwrap(), None, "it listens there");
        assert_eq!(end("127.0.0.1:9".parse().unwrap(), near).unwrap(), None);
    }

    #[test]
    fn a_closed_end_a_listener_and_a_newcomer_are_not_believed() {
        let (near, far): (SocketAddr, SocketAddr) =
            ("127.0.0.1:40000".parse().unwrap(), "127.0.0.1:3000".parse().unwrap());
        let answer =
            |state: u8, inode: u32, port: u16| end_in(&read(&connection(state, inode, port)), near, far);
        assert_eq!(answer(1, 77, 40000), Some(End { maker: 0, inode: 77 }));
        assert_eq!(answer(1, 0, 40000), None, "closed: what is said of root means nothing");
        assert_eq!(answer(6, 0, 40000), None, "TIME-WAIT");
        assert_eq!(answer(2, 77, 40000), None, "SYN-SENT: another connection to be");
        assert_eq!(answer(10, 77, 40000), None, "LISTEN");
        assert_eq!(answer(1, 77, 40001), None, "another connection");
    }
}
