//! The kernel's own list of TCP connections, sock_diag(7), as ss(8) reads it: which there are, and whose one of them is.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use super::retry::at_once;

/// `SOCK_DIAG_BY_FAMILY` of linux/sock_diag.h.
const BY_FAMILY: u16 = 20;

/// `NLM_F_REQUEST` and `NLM_F_REQUEST | NLM_F_DUMP` of linux/netlink.h.
pub(super) const REQUEST_ONE: u16 = 0x1;
pub(super) const REQUEST_DUMP: u16 = 0x301;

/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// The lengths of `struct nlmsghdr`, `struct inet_diag_req_v2` and `struct inet_diag_msg`.
pub(super) const HEADER: usize = 16;
const REQUEST: usize = 56;
pub(super) const ANSWER: usize = 72;

/// The states, a bit each, in which a connection has been made and some process holds it: established, both FIN-WAITs,
/// CLOSE-WAIT, LAST-ACK and CLOSING (net/tcp_states.h).
const CONNECTED: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// The state of a socket that listens, a bit.
const LISTENING: u32 = 1 << 10;

/// `INET_DIAG_NOCOOKIE` of linux/inet_diag.h: any socket of these addresses.
pub(super) const NO_COOKIE: [u8; 8] = [0xff; 8];

/// `INET_DIAG_SKV6ONLY` of linux/inet_diag.h.
const IPV6_ALONE: u16 = 11;

/// The largest piece of a dump that the kernel sends at a time.
pub(super) const PIECE: usize = 32 * 1024;

/// Returns the inode numbers of the connections whose local port is one of `ports`, of either IP version.
///
/// It waits for the kernel, which may take milliseconds where there are very many connections.
///
/// # Errors
///
/// Those of the netlink socket, as ss(8) has them; ENOENT where the kernel has no such module.
pub fn connections(ports: &BTreeSet<u16>) -> io::Result<BTreeSet<u32>> {
    let netlink = open()?;
    let mut inodes = BTreeSet::new();
    for port in ports {
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut request = request(REQUEST_DUMP, family);
            put(&mut request, HEADER + 4, &CONNECTED.to_ne_bytes());
            put(&mut request, HEADER + 8, &port.to_be_bytes());
            dump(&netlink, &request, ANSWER, |body| inodes.extend(connection(body, *port)))?;
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
    let netlink = open()?;
    let mut makers = BTreeSet::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut request = request(REQUEST_DUMP, family);
        put(&mut request, HEADER + 4, &LISTENING.to_ne_bytes());
        put(&mut request, HEADER + 8, &address.port().to_be_bytes());
        dump(&netlink, &request, ANSWER, |body| {
            let port = u16::from_be_bytes([body[4], body[5]]);
            let is_there = port == address.port() && accepts(body, address.ip().to_canonical());
            makers.extend(number(body, 64).filter(|_| is_there));
        })?;
    }
    Ok(makers)
}

/// Whether a socket that listens gets the connections to an address of this machine.
fn accepts(body: &[u8], to: IpAddr) -> bool {
    let Some(ip) = address(body[0], &body[8..24]) else { return false };
    let is_ipv6 = i32::from(body[0]) == libc::AF_INET6;
    let is_ipv6_alone =
        || attribute(&body[ANSWER..], IPV6_ALONE).and_then(|value| value.first()).is_some_and(|on| *on != 0);
    let is_everywhere =
        ip.is_unspecified() && if to.is_ipv6() { is_ipv6 } else { !is_ipv6 || !is_ipv6_alone() };
    is_everywhere || ip == to
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
    let family = if near.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut request = request(REQUEST_ONE, family);
    put(&mut request, HEADER + 4, &u32::MAX.to_ne_bytes());
    put(&mut request, HEADER + 8, &near.port().to_be_bytes());
    put(&mut request, HEADER + 10, &far.port().to_be_bytes());
    put(&mut request, HEADER + 12, &octets(near.ip()));
    put(&mut request, HEADER + 28, &octets(far.ip()));
    put(&mut request, HEADER + 48, &NO_COOKIE);
    let netlink = open()?;
    ask(&netlink, &request)?;
    let mut buffer = vec![0; PIECE];
    let length = answer(&netlink, &mut buffer)?;
    match read_one(&buffer[..length], near, far) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        found => found,
    }
}

/// Writes the question for all sockets of a family that listen at a port.
pub(super) fn listening(family: i32, port: u16) -> [u8; HEADER + REQUEST] {
    let mut request = request(REQUEST_DUMP, family);
    // With `INET_DIAG_INFO`, or the kernel leaves out what comes after it.
    put(&mut request, HEADER + 2, &[1 << 1]);
    put(&mut request, HEADER + 4, &LISTENING.to_ne_bytes());
    put(&mut request, HEADER + 8, &port.to_be_bytes());
    request
}

/// The length of a `struct unix_diag_req` and of a `struct unix_diag_msg` (linux/unix_diag.h).
const UNIX_REQUEST: usize = 24;
pub(super) const UNIX_ANSWER: usize = 16;

/// Writes the question for all UNIX sockets that listen, with their names.
pub(super) fn unix_listening() -> [u8; HEADER + UNIX_REQUEST] {
    /// `UDIAG_SHOW_NAME`.
    const NAME: u32 = 1;
    let mut request = [0; HEADER + UNIX_REQUEST];
    start(&mut request, REQUEST_DUMP);
    put(&mut request, HEADER, &[u8::try_from(libc::AF_UNIX).unwrap_or_default()]);
    put(&mut request, HEADER + 4, &LISTENING.to_ne_bytes());
    put(&mut request, HEADER + 12, &NAME.to_ne_bytes());
    request
}

/// Reads one piece of an answer: the inode number of each socket, and the attributes behind it; returns whether it was the
/// last.
pub(super) fn each_socket(piece: &[u8], mut take: impl FnMut(u32, &[u8])) -> io::Result<bool> {
    each_message(piece, ANSWER, |body| take(number(body, 68).unwrap_or_default(), &body[ANSWER..]))
}

/// Finds an attribute (`struct rtattr`).
pub(super) fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    while let [l0, l1, t0, t1, ..] = *rest {
        let length = usize::from(u16::from_ne_bytes([l0, l1])).max(4);
        if u16::from_ne_bytes([t0, t1]) == wanted {
            return rest.get(4..length);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Returns an address as it stands in the first bytes of 16.
fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Reads the address that stands in 16 bytes.
pub(super) fn address(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    let bytes: [u8; 16] = bytes.try_into().ok()?;
    let [a, b, c, d, ..] = bytes;
    match i32::from(family) {
        libc::AF_INET => Some(Ipv4Addr::new(a, b, c, d).into()),
        libc::AF_INET6 => Some(IpAddr::from(Ipv6Addr::from(bytes)).to_canonical()),
        _ => None,
    }
}

/// Reads the answer to the question whose the one end is.
///
/// Where that connection is no more, the kernel may show another socket: one that listens where it was bound, or a new one
/// that is still trying. Neither is believed.
fn read_one(answer: &[u8], near: SocketAddr, far: SocketAddr) -> io::Result<Option<End>> {
    let mut found = None;
    each_message(answer, ANSWER, |body| {
        let end = |at: usize, port: usize| {
            let ip = address(body[0], &body[at..at + 16])?;
            Some(SocketAddr::new(ip, u16::from_be_bytes([body[port], body[port + 1]])))
        };
        let is_connected = CONNECTED >> u32::from(body[1].min(31)) & 1 == 1;
        let inode = number(body, 68).filter(|inode| *inode != 0);
        if is_connected && end(8, 4) == Some(near) && end(24, 6) == Some(far) {
            found = number(body, 64).zip(inode).map(|(maker, inode)| End { maker, inode });
        }
    })?;
    Ok(found)
}

/// Opens a way to ask the kernel for sockets.
pub(super) fn open() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkSockDiag)?)
}

/// Sends a request.
pub(super) fn ask(netlink: &OwnedFd, request: &[u8]) -> io::Result<()> {
    at_once(|| send(netlink.as_raw_fd(), request, MsgFlags::empty()))?;
    Ok(())
}

/// Takes the next piece of the answer, and returns how many bytes it has. The kernel has the first piece ready when send(2)
/// returns, and the next one as soon as one is read, so nothing is waited for.
pub(super) fn answer(netlink: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(at_once(|| recv(netlink.as_raw_fd(), buffer, MsgFlags::empty()))?)
}

/// Begins a `struct nlmsghdr` and a `struct inet_diag_req_v2`.
pub(super) fn request(flags: u16, family: i32) -> [u8; HEADER + REQUEST] {
    let mut request = [0; HEADER + REQUEST];
    start(&mut request, flags);
    put(
        &mut request,
        HEADER,
        &[u8::try_from(family).unwrap_or_default(), u8::try_from(libc::IPPROTO_TCP).unwrap_or_default()],
    );
    request
}

/// Fills in the `struct nlmsghdr` that a request begins with.
pub(super) fn start(request: &mut [u8], flags: u16) {
    let length = u32::try_from(request.len()).unwrap_or_default();
    put(request, 0, &length.to_ne_bytes());
    put(request, 4, &BY_FAMILY.to_ne_bytes());
    put(request, 6, &flags.to_ne_bytes());
}

pub(super) fn put(request: &mut [u8], at: usize, bytes: &[u8]) {
    request[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Asks for a list, and takes each of its messages that has at least `least` bytes.
///
/// # Errors
///
/// Those of the netlink socket.
pub(super) fn dump(
    netlink: &OwnedFd,
    request: &[u8],
    least: usize,
    mut take: impl FnMut(&[u8]),
) -> io::Result<()> {
    ask(netlink, request)?;
    let mut buffer = vec![0; PIECE];
    loop {
        let length = answer(netlink, &mut buffer)?;
        if length == 0 || each_message(&buffer[..length], least, &mut take)? {
            return Ok(());
        }
    }
}

/// Returns the inode number of a connection whose local port is this one; `None` if no process holds it, as it has no inode then.
fn connection(body: &[u8], port: u16) -> Option<u32> {
    let is_of_port = u16::from_be_bytes([body[4], body[5]]) == port;
    number(body, 68).filter(|inode| is_of_port && *inode != 0)
}

/// Reads the messages of one piece, of which each that tells of a socket has at least `least` bytes; returns whether it was
/// the last.
pub(super) fn each_message(mut piece: &[u8], least: usize, mut take: impl FnMut(&[u8])) -> io::Result<bool> {
    let short = || io::Error::new(io::ErrorKind::InvalidData, "a netlink message is cut short");
    while piece.len() >= HEADER {
        let length = number(piece, 0).ok_or_else(short)? as usize;
        if length < HEADER || length > piece.len() {
            return Err(short());
        }
        let kind = u16::from_ne_bytes([piece[4], piece[5]]);
        let body = &piece[HEADER..length];
        match kind {
            DONE => return Ok(true),
            ERROR => {
                let code = number(body, 0).ok_or_else(short)?.cast_signed();
                return if code == 0 { Ok(true) } else { Err(io::Error::from_raw_os_error(-code)) };
            }
            BY_FAMILY if body.len() >= least => take(body),
            _ => {}
        }
        // Messages begin at multiples of 4 bytes.
        piece = &piece[length.next_multiple_of(4).min(piece.len())..];
    }
    Ok(false)
}

pub(super) fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use nix::sys::socket::{Backlog, SockaddrIn6, bind, listen, setsockopt, sockopt};
    use nix::sys::stat::fstat;
    use nix::unistd::geteuid;

    use super::super::listener::tests::eventually;
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
        let answer = |state: u8, inode: u32, port: u16| {
            let mut message = vec![0; HEADER + ANSWER];
            let length = u32::try_from(message.len()).unwrap();
            put(&mut message, 0, &length.to_ne_bytes());
            put(&mut message, 4, &BY_FAMILY.to_ne_bytes());
            put(&mut message, HEADER, &[u8::try_from(libc::AF_INET).unwrap(), state]);
            put(&mut message, HEADER + 4, &port.to_be_bytes());
            put(&mut message, HEADER + 6, &3000_u16.to_be_bytes());
            put(&mut message, HEADER + 8, &[127, 0, 0, 1]);
            put(&mut message, HEADER + 24, &[127, 0, 0, 1]);
            put(&mut message, HEADER + 68, &inode.to_ne_bytes());
            read_one(&message, near, far).unwrap()
        };
        assert_eq!(answer(1, 77, 40000), Some(End { maker: 0, inode: 77 }));
        assert_eq!(answer(1, 0, 40000), None, "closed: what is said of root means nothing");
        assert_eq!(answer(6, 0, 40000), None, "TIME-WAIT");
        assert_eq!(answer(2, 77, 40000), None, "SYN-SENT: another connection to be");
        assert_eq!(answer(10, 77, 40000), None, "LISTEN");
        assert_eq!(answer(1, 77, 40001), None, "another connection");
    }

    #[test]
    fn what_is_cut_short_is_an_error() {
        let mut inodes = BTreeSet::new();
        for length in [0_u32, 15, 17, 4000] {
            let mut piece = vec![0; 16];
            piece[..4].copy_from_slice(&length.to_ne_bytes());
            assert!(
                each_message(&piece, ANSWER, |body| inodes.extend(connection(body, 1))).is_err(),
                "{length}"
            );
        }
        assert!(!each_message(&[], ANSWER, |body| inodes.extend(connection(body, 1))).unwrap());
    }
}
