//! Questions to the kernel about its sockets, and its answers (sock_diag(7)).
//!
//! Each question has a netlink socket of its own. Nothing waits for another process: the kernel has the first piece of an
//! answer ready when send(2) returns, and the next one as soon as one is read. A list takes the kernel milliseconds where
//! there are very many sockets.

use std::ffi::OsStr;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use super::retry::at_once;
use crate::plain::SocketAddress;

/// `SOCK_DIAG_BY_FAMILY` of linux/sock_diag.h.
const BY_FAMILY: u16 = 20;

/// `NLM_F_REQUEST` and `NLM_F_REQUEST | NLM_F_DUMP` of linux/netlink.h.
const REQUEST_ONE: u16 = 0x1;
const REQUEST_LIST: u16 = 0x301;

/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// The lengths of `struct nlmsghdr`, `struct inet_diag_req_v2`, `struct inet_diag_msg`, `struct unix_diag_req` and `struct
/// unix_diag_msg`.
const HEADER: usize = 16;
const INET_REQUEST: usize = 56;
const INET_ANSWER: usize = 72;
const UNIX_REQUEST: usize = 24;
const UNIX_ANSWER: usize = 16;

/// `INET_DIAG_NOCOOKIE` of linux/inet_diag.h: any socket of these addresses.
const NO_COOKIE: [u8; 8] = [0xff; 8];

/// The largest piece of a list that the kernel sends at a time.
const PIECE: usize = 32 * 1024;

/// The most that it says of one socket.
const ONE: usize = 4 * 1024;

/// States of a socket, a bit each (net/tcp_states.h).
pub(super) mod state {
    /// A UNIX socket that is connected.
    pub const ESTABLISHED: u32 = 1 << 1;
    /// A TCP connection that has been made and that a process holds: ESTABLISHED, both FIN-WAITs, CLOSE-WAIT, LAST-ACK and
    /// CLOSING.
    pub const CONNECTED: u32 = ESTABLISHED | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
    /// A socket that is bound and neither listens nor is connected.
    pub const UNCONNECTED: u32 = 1 << 7;
    /// A socket that listens.
    pub const LISTENING: u32 = 1 << 10;
    /// Any.
    pub const ANY: u32 = u32::MAX;
}

/// Which sockets of IPv4 or IPv6 are asked for.
pub(super) struct InetQuestion {
    /// `AF_INET` or `AF_INET6`.
    pub family: i32,
    /// `IPPROTO_TCP` or `IPPROTO_UDP`.
    pub protocol: i32,
    /// Of [`state`].
    pub states: u32,
    /// The local port; 0 for all.
    pub port: u16,
    /// What more is asked for, a bit each (linux/inet_diag.h).
    pub extensions: u8,
}

impl InetQuestion {
    /// Asks for TCP sockets.
    pub(super) fn tcp(family: i32, states: u32, port: u16) -> Self {
        Self { family, protocol: libc::IPPROTO_TCP, states, port, extensions: 0 }
    }

    fn message(&self, flags: u16) -> [u8; HEADER + INET_REQUEST] {
        let byte = |number: i32| u8::try_from(number).unwrap_or_default();
        let mut message = message(flags);
        put(&mut message, HEADER, &[byte(self.family), byte(self.protocol), self.extensions]);
        put(&mut message, HEADER + 4, &self.states.to_ne_bytes());
        put(&mut message, HEADER + 8, &self.port.to_be_bytes());
        message
    }
}

/// A socket of IPv4 or IPv6, as an answer describes it (`struct inet_diag_msg`).
pub(super) struct InetSocket<'a>(&'a [u8]);

impl InetSocket<'_> {
    /// Where it is bound, without a scope id, an IPv4 address in IPv6 as IPv4.
    pub(super) fn near(&self) -> Option<SocketAddr> {
        self.address(8, 4)
    }

    /// What it is connected to, in the same form.
    pub(super) fn far(&self) -> Option<SocketAddr> {
        self.address(24, 6)
    }

    fn address(&self, ip: usize, port: usize) -> Option<SocketAddr> {
        let ip: [u8; 16] = self.0.get(ip..ip + 16)?.try_into().ok()?;
        let [a, b, c, d, ..] = ip;
        let ip = if self.is_ipv6() {
            IpAddr::from(Ipv6Addr::from(ip)).to_canonical()
        } else {
            Ipv4Addr::new(a, b, c, d).into()
        };
        Some(SocketAddr::new(ip, u16::from_be_bytes(self.0.get(port..port + 2)?.try_into().ok()?)))
    }

    /// Whether its family is IPv6.
    pub(super) fn is_ipv6(&self) -> bool {
        self.0.first().is_some_and(|family| i32::from(*family) == libc::AF_INET6)
    }

    /// Whether it is in one of these states.
    pub(super) fn is_in(&self, states: u32) -> bool {
        is_in(self.0.get(1), states)
    }

    /// The user who made it, in the view of our user namespace; root where no process holds it.
    pub(super) fn maker(&self) -> u32 {
        number(self.0, 64).unwrap_or_default()
    }

    /// Its inode number; `None` where no process holds it.
    pub(super) fn inode(&self) -> Option<u32> {
        number(self.0, 68).filter(|inode| *inode != 0)
    }

    /// An attribute of linux/inet_diag.h.
    pub(super) fn attribute(&self, kind: u16) -> Option<&[u8]> {
        attribute(self.0.get(INET_ANSWER..)?, kind)
    }
}

/// What an answer says of a UNIX socket, a bit each (linux/unix_diag.h): `UDIAG_SHOW_NAME`, `UDIAG_SHOW_RQLEN` and, since Linux
/// 5.3, `UDIAG_SHOW_UID`.
pub(super) mod show {
    pub const NAME: u32 = 0x01;
    pub const QUEUE: u32 = 0x10;
    pub const MAKER: u32 = 0x40;
}

/// A UNIX socket, as an answer describes it (`struct unix_diag_msg`).
pub(super) struct UnixSocket<'a>(&'a [u8]);

impl UnixSocket<'_> {
    /// Whether it is in one of these states.
    pub(super) fn is_in(&self, states: u32) -> bool {
        is_in(self.0.get(2), states)
    }

    /// Its inode number.
    pub(super) fn inode(&self) -> Option<u32> {
        number(self.0, 4)
    }

    /// Where it was bound (`UNIX_DIAG_NAME`), or where the listener was bound at which it was accepted.
    pub(super) fn name(&self) -> Option<SocketAddress> {
        Some(match self.attribute(0)? {
            [] => return None,
            [0, name @ ..] => SocketAddress::Abstract(OsStr::from_bytes(name).into()),
            // The kernel keeps a NUL behind a path.
            [path @ .., 0] | path => SocketAddress::Path(OsStr::from_bytes(path).into()),
        })
    }

    /// The most connections that its queue may hold, if it listens (the second half of `UNIX_DIAG_RQLEN`).
    pub(super) fn backlog(&self) -> Option<u32> {
        number(self.attribute(4)?, 4)
    }

    /// The user who made it (`UNIX_DIAG_UID`).
    pub(super) fn maker(&self) -> Option<u32> {
        number(self.attribute(7)?, 0)
    }

    fn attribute(&self, kind: u16) -> Option<&[u8]> {
        attribute(self.0.get(UNIX_ANSWER..)?, kind)
    }
}

/// Lists sockets of IPv4 or IPv6.
///
/// # Errors
///
/// Those of the netlink socket, as ss(8) has them; ENOENT where the kernel has no such module.
pub(super) fn list_inet(question: &InetQuestion, mut take: impl FnMut(InetSocket<'_>)) -> io::Result<()> {
    ask(&question.message(REQUEST_LIST), INET_ANSWER, |body| take(InetSocket(body)))
}

/// Finds the TCP socket that is bound to `near` and connected to `far`. Where there is none, the kernel may describe another
/// one, such as a listener at `near`.
///
/// # Errors
///
/// Those of the netlink socket, but for ENOENT: there is none.
pub(super) fn find_tcp(
    near: SocketAddr,
    far: SocketAddr,
    mut take: impl FnMut(InetSocket<'_>),
) -> io::Result<()> {
    let family = if near.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut message = InetQuestion::tcp(family, state::ANY, near.port()).message(REQUEST_ONE);
    put(&mut message, HEADER + 10, &far.port().to_be_bytes());
    put(&mut message, HEADER + 12, &octets(near.ip()));
    put(&mut message, HEADER + 28, &octets(far.ip()));
    put(&mut message, HEADER + 48, &NO_COOKIE);
    or_none(ask(&message, INET_ANSWER, |body| take(InetSocket(body))))
}

/// Lists UNIX sockets, with what is to be shown of them.
///
/// # Errors
///
/// As [`list_inet`].
pub(super) fn list_unix(states: u32, show: u32, mut take: impl FnMut(UnixSocket<'_>)) -> io::Result<()> {
    ask(&unix_message(REQUEST_LIST, states, 0, show), UNIX_ANSWER, |body| take(UnixSocket(body)))
}

/// Finds the UNIX socket with this inode number, of which the kernel knows 32 bits.
///
/// # Errors
///
/// Those of the netlink socket, but for ENOENT: there is none, or the kernel has no such module.
pub(super) fn find_unix(inode: u64, show: u32, mut take: impl FnMut(UnixSocket<'_>)) -> io::Result<()> {
    let inode = u32::try_from(inode & u64::from(u32::MAX)).unwrap_or_default();
    let message = unix_message(REQUEST_ONE, state::ANY, inode, show);
    or_none(ask(&message, UNIX_ANSWER, |body| take(UnixSocket(body))))
}

/// Takes "there is none" for an answer.
fn or_none(asked: io::Result<()>) -> io::Result<()> {
    asked.or_else(|error| if error.raw_os_error() == Some(libc::ENOENT) { Ok(()) } else { Err(error) })
}

fn unix_message(flags: u16, states: u32, inode: u32, show: u32) -> [u8; HEADER + UNIX_REQUEST] {
    let mut message = message(flags);
    put(&mut message, HEADER, &[u8::try_from(libc::AF_UNIX).unwrap_or_default()]);
    put(&mut message, HEADER + 4, &states.to_ne_bytes());
    put(&mut message, HEADER + 8, &inode.to_ne_bytes());
    put(&mut message, HEADER + 12, &show.to_ne_bytes());
    put(&mut message, HEADER + 16, &NO_COOKIE);
    message
}

/// Begins a message with its `struct nlmsghdr`.
fn message<const LENGTH: usize>(flags: u16) -> [u8; LENGTH] {
    let mut message = [0; LENGTH];
    put(&mut message, 0, &u32::try_from(LENGTH).unwrap_or_default().to_ne_bytes());
    put(&mut message, 4, &BY_FAMILY.to_ne_bytes());
    put(&mut message, 6, &flags.to_ne_bytes());
    message
}

fn put(message: &mut [u8], at: usize, bytes: &[u8]) {
    message[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Returns an address as it stands in the first bytes of 16.
fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Sends a question, and takes the body of each answer that has at least `least` bytes.
fn ask(message: &[u8], least: usize, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkSockDiag)?;
    at_once(|| send(netlink.as_raw_fd(), message, MsgFlags::empty()))?;
    let is_list = message.get(6..8) == Some(&REQUEST_LIST.to_ne_bytes()[..]);
    let mut buffer = vec![0; if is_list { PIECE } else { ONE }];
    loop {
        let length = at_once(|| recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty()))?;
        if each_body(&buffer[..length], least, &mut take)? || !is_list || length == 0 {
            return Ok(());
        }
    }
}

/// Reads the messages of one piece of an answer, and takes the bodies of those that describe a socket; returns whether it was
/// the last piece.
fn each_body(mut piece: &[u8], least: usize, mut take: impl FnMut(&[u8])) -> io::Result<bool> {
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
                return if code == 0 {
                    Ok(true)
                } else {
                    Err(io::Error::from_raw_os_error(code.saturating_neg()))
                };
            }
            BY_FAMILY if body.len() >= least => take(body),
            _ => {}
        }
        // Messages begin at multiples of 4 bytes.
        piece = &piece[length.next_multiple_of(4).min(piece.len())..];
    }
    Ok(false)
}

/// Finds an attribute (`struct rtattr`).
fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    while let [l0, l1, t0, t1, ..] = *rest {
        let length = usize::from(u16::from_ne_bytes([l0, l1])).max(4);
        if u16::from_ne_bytes([t0, t1]) == wanted {
            return rest.get(4..length);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

fn is_in(state: Option<&u8>, states: u32) -> bool {
    state.is_some_and(|state| states.checked_shr(u32::from(*state)).unwrap_or_default() & 1 == 1)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Writes the body of an answer about a TCP connection from 127.0.0.1:`port` to 127.0.0.1:3000, made by root.
    pub(in super::super) fn connection(state: u8, inode: u32, port: u16) -> Vec<u8> {
        let mut body = vec![0; INET_ANSWER];
        put(&mut body, 0, &[u8::try_from(libc::AF_INET).unwrap(), state]);
        put(&mut body, 4, &port.to_be_bytes());
        put(&mut body, 6, &3000_u16.to_be_bytes());
        put(&mut body, 8, &[127, 0, 0, 1]);
        put(&mut body, 24, &[127, 0, 0, 1]);
        put(&mut body, 68, &inode.to_ne_bytes());
        body
    }

    /// Reads such a body.
    pub(in super::super) fn read(body: &[u8]) -> InetSocket<'_> {
        InetSocket(body)
    }

    #[test]
    fn what_is_cut_short_is_an_error() {
        for length in [0_u32, 15, 17, 4000] {
            let mut piece = vec![0; 16];
            piece[..4].copy_from_slice(&length.to_ne_bytes());
            assert!(each_body(&piece, INET_ANSWER, |_| panic!("a socket")).is_err(), "{length}");
        }
        assert!(!each_body(&[], INET_ANSWER, |_| panic!("a socket")).unwrap());
    }

    #[test]
    fn no_answer_makes_it_panic() {
        let mut answer = [0_u8; 64];
        for length in 0..answer.len() {
            for byte in 0..=u8::MAX {
                answer[16..].fill(byte);
                put(&mut answer, 0, &u32::try_from(length).unwrap().to_ne_bytes());
                put(&mut answer, 4, &BY_FAMILY.to_ne_bytes());
                let _ = each_body(&answer[..length], UNIX_ANSWER, |body| {
                    let socket = UnixSocket(body);
                    let _ = (socket.name(), socket.backlog(), socket.maker(), socket.is_in(state::ANY));
                });
            }
        }
    }
}
