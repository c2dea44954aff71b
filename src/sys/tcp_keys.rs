//! The keys by which a TCP socket takes nothing but signed segments (RFC 2385 and RFC 5925): they need no privilege to be set
//! on a socket that listens, and make it deaf to the peers that they are for.
//!
//! getsockopt(2) tells of none of the first kind. sock_diag(7) does, to a process with `CAP_NET_ADMIN`.

use std::io;
use std::os::fd::AsFd;

use super::held::inode;
use super::netlink::{InetQuestion, list_inet, state};
use super::options::{get_bytes, get_number, set_bytes};

/// `TCP_MD5SIG_EXT` and `TCP_AO_INFO` of linux/tcp.h.
const TCP_MD5SIG_EXT: i32 = 32;
const TCP_AO_INFO: i32 = 40;

/// `INET_DIAG_MD5SIG` of linux/inet_diag.h, and the length of each key in it (`struct tcp_diag_md5sig`).
const MD5SIG: u16 = 18;
const KEY: usize = 100;

/// The length of `struct tcp_md5sig`: an address, flags, the length of a prefix, that of the key, an interface, the key.
const COMMAND: usize = 128 + 8 + 80;

/// `TCP_MD5SIG_FLAG_PREFIX`.
const WITH_PREFIX: u8 = 1;

/// The peers that have a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peers(Vec<Peer>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Peer {
    family: u8,
    prefix: u8,
    address: [u8; 16],
}

impl Peers {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Returns the peers for which a listening TCP socket has keys of RFC 2385.
///
/// # Errors
/// Those of the netlink socket; ENOENT where the kernel has no such module. Without `CAP_NET_ADMIN` it finds none.
pub fn peers(fd: impl AsFd) -> io::Result<Peers> {
    let family = get_number(&fd, libc::SOL_SOCKET, libc::SO_DOMAIN)?;
    let inode = u32::try_from(inode(&fd)? & u64::from(u32::MAX)).unwrap_or_default();
    let Some(port) = super::listener::port(&fd)? else { return Ok(Peers(Vec::new())) };
    // With `INET_DIAG_INFO`, or the kernel leaves out what comes after it.
    let question = InetQuestion { extensions: 1 << 1, ..InetQuestion::tcp(family, state::LISTENING, port) };
    let mut peers = Vec::new();
    list_inet(&question, |socket| {
        if socket.inode() == Some(inode) {
            let keys = socket.attribute(MD5SIG).unwrap_or_default();
            peers.extend(keys.chunks_exact(KEY).map(peer));
        }
    })?;
    Ok(Peers(peers))
}

fn peer(key: &[u8]) -> Peer {
    let mut address = [0; 16];
    address.copy_from_slice(&key[4..20]);
    Peer { family: key[0], prefix: key[1], address }
}

/// Removes the keys of RFC 2385.
///
/// # Errors
/// Those of setsockopt(2): ENOENT for one that belongs to a routing domain of its own.
pub fn remove(fd: impl AsFd, peers: &Peers) -> io::Result<()> {
    let is_ipv6 = get_number(&fd, libc::SOL_SOCKET, libc::SO_DOMAIN)? == libc::AF_INET6;
    for peer in &peers.0 {
        let mut command = [0; COMMAND];
        let family = if is_ipv6 { libc::AF_INET6 } else { libc::AF_INET };
        command[..2].copy_from_slice(&u16::try_from(family).unwrap_or_default().to_ne_bytes());
        match (is_ipv6, i32::from(peer.family) == libc::AF_INET6) {
            (true, true) => command[8..24].copy_from_slice(&peer.address),
            // An address of IPv4 as one of IPv6.
            (true, false) => {
                command[18..20].fill(0xff);
                command[20..24].copy_from_slice(&peer.address[..4]);
            }
            (false, _) => command[4..8].copy_from_slice(&peer.address[..4]),
        }
        (command[128], command[129]) = (WITH_PREFIX, peer.prefix);
        set_bytes(&fd, libc::IPPROTO_TCP, TCP_MD5SIG_EXT, &command)?;
    }
    Ok(())
}

/// Whether a TCP socket has keys of RFC 5925, or had some once; nothing but a new socket is without.
pub fn are_for_good(fd: impl AsFd) -> bool {
    let mut info = [0; 64];
    get_bytes(&fd, libc::IPPROTO_TCP, TCP_AO_INFO, &mut info).is_ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::{SocketAddr, TcpListener};

    use nix::unistd::geteuid;

    use super::super::listener::tests::reachable;
    use super::*;

    /// Has a socket answer a peer only if it signs.
    pub(crate) fn set_key(listener: impl AsFd, peer: SocketAddr) {
        let mut command = [0; COMMAND];
        match peer {
            SocketAddr::V4(peer) => {
                command[..2].copy_from_slice(&2_u16.to_ne_bytes());
                command[4..8].copy_from_slice(&peer.ip().octets());
            }
            SocketAddr::V6(peer) => {
                command[..2].copy_from_slice(&10_u16.to_ne_bytes());
                command[8..24].copy_from_slice(&peer.ip().octets());
            }
        }
        command[130..132].copy_from_slice(&4_u16.to_ne_bytes());
        command[136..140].copy_from_slice(b"abcd");
        set_bytes(&listener, libc::IPPROTO_TCP, TCP_MD5SIG_EXT, &command).unwrap();
    }

    #[test]
    fn keys_are_found_and_removed_whichever_the_version_of_the_peer() {
        if !geteuid().is_root() {
            crate::skipped::add("only root can see the keys");
            return;
        }
        for (listen, of) in
            [("127.0.0.1:0", "127.0.0.1:0"), ("[::1]:0", "[::1]:0"), ("[::]:0", "[::ffff:127.0.0.1]:0")]
        {
            if reachable([listen]).is_empty() {
                continue;
            }
            let listener = TcpListener::bind(listen).unwrap();
            assert!(peers(&listener).unwrap().is_empty());
            set_key(&listener, of.parse().unwrap());
            let found = peers(&listener).unwrap();
            assert_eq!(found.0.len(), 1, "{listen}: {found:?}");
            remove(&listener, &found).unwrap();
            assert!(peers(&listener).unwrap().is_empty(), "{listen}");
        }
    }
}
