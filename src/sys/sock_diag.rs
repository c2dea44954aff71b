//! The kernel's own list of TCP connections, sock_diag(7), as ss(8) reads it.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// `SOCK_DIAG_BY_FAMILY` of linux/sock_diag.h.
const BY_FAMILY: u16 = 20;

/// `NLM_F_REQUEST | NLM_F_DUMP` of linux/netlink.h.
const REQUEST_DUMP: u16 = 0x301;

/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// The lengths of `struct nlmsghdr`, `struct inet_diag_req_v2` and `struct inet_diag_msg`.
const HEADER: usize = 16;
const REQUEST: usize = 56;
const ANSWER: usize = 72;

/// The states, a bit each, in which a connection has been made and some process holds it: established, both FIN-WAITs,
/// CLOSE-WAIT, LAST-ACK and CLOSING (net/tcp_states.h).
const CONNECTED: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// The largest piece of a dump that the kernel sends at a time.
const PIECE: usize = 32 * 1024;

/// Returns the inode numbers of the connections whose local port is one of `ports`, of either IP version.
///
/// It waits for the kernel, which may take milliseconds where there are very many connections.
///
/// # Errors
///
/// Those of the netlink socket, as ss(8) has them; ENOENT where the kernel has no such module.
pub fn connections(ports: &BTreeSet<u16>) -> io::Result<BTreeSet<u32>> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkSockDiag)?;
    let mut inodes = BTreeSet::new();
    for port in ports {
        for family in [libc::AF_INET, libc::AF_INET6] {
            send(netlink.as_raw_fd(), &request(family, *port), MsgFlags::empty())?;
            read_dump(&netlink, *port, &mut inodes)?;
        }
    }
    Ok(inodes)
}

/// Writes a `struct nlmsghdr` and a `struct inet_diag_req_v2` for the connections of one port.
fn request(family: i32, port: u16) -> [u8; HEADER + REQUEST] {
    let mut request = [0; HEADER + REQUEST];
    let length = u32::try_from(request.len()).unwrap_or_default();
    let mut put = |at: usize, bytes: &[u8]| request[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &length.to_ne_bytes());
    put(4, &BY_FAMILY.to_ne_bytes());
    put(6, &REQUEST_DUMP.to_ne_bytes());
    put(
        HEADER,
        &[u8::try_from(family).unwrap_or_default(), u8::try_from(libc::IPPROTO_TCP).unwrap_or_default()],
    );
    put(HEADER + 4, &CONNECTED.to_ne_bytes());
    put(HEADER + 8, &port.to_be_bytes());
    request
}

fn read_dump(netlink: &OwnedFd, port: u16, inodes: &mut BTreeSet<u32>) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if length == 0 || read_piece(&buffer[..length], port, inodes)? {
            return Ok(());
        }
    }
}

/// Reads the messages of one piece; returns whether it was the last.
fn read_piece(mut piece: &[u8], port: u16, inodes: &mut BTreeSet<u32>) -> io::Result<bool> {
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
            BY_FAMILY if body.len() >= ANSWER => {
                // One that no process holds has no inode.
                let inode = number(body, 68).filter(|inode| *inode != 0);
                let is_of_port = u16::from_be_bytes([body[4], body[5]]) == port;
                inodes.extend(inode.filter(|_| is_of_port));
            }
            _ => {}
        }
        // Messages begin at multiples of 4 bytes.
        piece = &piece[length.next_multiple_of(4).min(piece.len())..];
    }
    Ok(false)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use nix::sys::stat::fstat;

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
            assert_eq!(connections(&ports).unwrap(), BTreeSet::new());
        }
    }

    #[test]
    fn what_is_cut_short_is_an_error() {
        let mut inodes = BTreeSet::new();
        for length in [0_u32, 15, 17, 4000] {
            let mut piece = vec![0; 16];
            piece[..4].copy_from_slice(&length.to_ne_bytes());
            assert!(read_piece(&piece, 1, &mut inodes).is_err(), "{length}");
        }
        assert!(!read_piece(&[], 1, &mut inodes).unwrap());
    }
}
