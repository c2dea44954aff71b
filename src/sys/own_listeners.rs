//! All sockets of this machine that listen, with their addresses, as the kernel lists them (sock_diag(7), proc(5)).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;

use super::sock_diag::{ANSWER, PIECE, address, answer, ask, each_message, listening, number, open};

/// `__SO_ACCEPTCON` of net/unix: the flag of a UNIX socket that listens, as /proc/net/unix has it.
const LISTENS: u32 = 1 << 16;

/// Returns the address of each socket that listens, by its inode number: of TCP, and of UNIX sockets, an abstract one with `@`.
///
/// It waits for the kernel, which may take milliseconds where there are very many sockets.
///
/// # Errors
///
/// Those of the netlink socket; ENOENT where the kernel has no such module.
pub fn all() -> io::Result<BTreeMap<u32, String>> {
    let mut all = BTreeMap::new();
    let netlink = open()?;
    let mut buffer = vec![0; PIECE];
    for family in [libc::AF_INET, libc::AF_INET6] {
        // Of every port.
        ask(&netlink, &listening(family, 0))?;
        loop {
            let length = answer(&netlink, &mut buffer)?;
            let is_last = each_message(&buffer[..length], ANSWER, |body| {
                let port = u16::from_be_bytes([body[4], body[5]]);
                let place = address(body[0], &body[8..24]).map(|ip| SocketAddr::new(ip, port).to_string());
                all.extend(number(body, 68).zip(place));
            })?;
            if is_last || length == 0 {
                break;
            }
        }
    }
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    all.extend(table.lines().filter_map(unix_listener));
    Ok(all)
}

/// The inode number and the address of a line's socket, if that listens.
fn unix_listener(line: &str) -> Option<(u32, String)> {
    let mut rest = line;
    let mut next = || {
        let (field, after) = rest.trim_start().split_once(' ')?;
        rest = after;
        Some(field)
    };
    for _ in ["Num", "RefCount", "Protocol"] {
        next()?;
    }
    let flags = u32::from_str_radix(next()?, 16).ok()?;
    for _ in ["Type", "St"] {
        next()?;
    }
    let inode = next()?.parse().ok()?;
    (flags & LISTENS != 0).then(|| (inode, rest.trim_start().to_owned()))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    use nix::sys::stat::fstat;

    use super::*;

    fn inode(fd: impl AsFd) -> u32 {
        u32::try_from(fstat(fd).unwrap().st_ino).unwrap()
    }

    #[test]
    fn what_listens_is_found_with_its_address() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a socket");
        let unix = UnixListener::bind(&path).unwrap();
        let client = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let unix_client = UnixStream::connect(&path).unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let all = all().unwrap();
        assert_eq!(all.get(&inode(&tcp)), Some(&tcp.local_addr().unwrap().to_string()));
        assert_eq!(all.get(&inode(&unix)).map(String::as_str), path.to_str());
        for other in [inode(&client), inode(&unix_client), inode(&udp)] {
            assert_eq!(all.get(&other), None);
        }
    }

    #[test]
    fn a_unix_socket_without_a_name_has_an_empty_one() {
        let line = "0000000000000000: 00000002 00000000 00010000 0001 01 4711";
        assert_eq!(unix_listener(&format!("{line} @name")), Some((4711, "@name".into())));
        assert_eq!(unix_listener(&line.replace("00010000", "00000000")), None);
        assert_eq!(unix_listener("Num       RefCount Protocol Flags    Type St Inode Path"), None);
    }
}
