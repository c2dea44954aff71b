//! All sockets of this network that listen, with their addresses, as the kernel lists them (sock_diag(7)).

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

use super::sock_diag::{
    ANSWER, UNIX_ANSWER, address, attribute, dump, listening, number, open, unix_listening,
};

/// `UNIX_DIAG_NAME` of linux/unix_diag.h: the attribute with a name.
const NAME: u16 = 0;

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
    for family in [libc::AF_INET, libc::AF_INET6] {
        // Of every port.
        dump(&netlink, &listening(family, 0), ANSWER, |body| {
            let port = u16::from_be_bytes([body[4], body[5]]);
            let place = address(body[0], &body[8..24]).map(|ip| SocketAddr::new(ip, port).to_string());
            all.extend(number(body, 68).zip(place));
        })?;
    }
    match add_unix(&mut all) {
        // The kernel has no such module.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        asked => asked?,
    }
    Ok(all)
}

/// Adds the UNIX sockets that listen. /proc/net/unix has names as their makers wrote them, line ends included, so that any user could
/// write lines of it.
fn add_unix(all: &mut BTreeMap<u32, String>) -> io::Result<()> {
    dump(&open()?, &unix_listening(), UNIX_ANSWER, |body| {
        let name = attribute(&body[UNIX_ANSWER..], NAME).unwrap_or_default();
        all.extend(number(body, 4).map(|inode| (inode, shown(name))));
    })
}

/// Returns the name of a UNIX socket as text, an abstract one with `@`.
fn shown(name: &[u8]) -> String {
    let (sign, name) = name.strip_prefix(b"\0").map_or(("", name), |name| ("@", name));
    let name = name.strip_suffix(b"\0").filter(|_| sign.is_empty()).unwrap_or(name);
    format!("{sign}{}", String::from_utf8_lossy(name))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsFd;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener, UnixStream};

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
    fn no_name_of_a_socket_hides_another_or_makes_one_up() {
        let forged = format!("x\n1: 2 0 10000 1 1 4711 forged by nobody {}", std::process::id());
        let mut hostile = vec![0xff, 0xfe];
        hostile.extend(forged.bytes());
        let address = UnixAddress::from_abstract_name(&hostile).unwrap();
        let hostile = UnixListener::bind_addr(&address).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own.sock");
        let unix = UnixListener::bind(&path).unwrap();
        let all = all().unwrap();
        assert_eq!(all.get(&inode(&unix)).map(String::as_str), path.to_str());
        assert!(
            all[&inode(&hostile)].starts_with('@') && all.values().all(|name| name != "forged by nobody")
        );
        assert_eq!(shown(b""), "");
    }
}
