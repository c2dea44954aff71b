//! All sockets of this network that listen, with their addresses, as the kernel lists them (sock_diag(7)).

use std::collections::BTreeMap;
use std::io;

use super::netlink::{InetQuestion, list_inet, list_unix, show, state};

/// Returns the address of each socket that listens, by its inode number: of TCP, and of UNIX sockets, an abstract one with `@`.
///
/// It waits for the kernel, which may take milliseconds where there are very many sockets.
///
/// # Errors
///
/// Those of the netlink socket; ENOENT where the kernel has no such module.
pub fn all() -> io::Result<BTreeMap<u32, String>> {
    let mut all = BTreeMap::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        // Of every port.
        list_inet(&InetQuestion::tcp(family, state::LISTENING, 0), |socket| {
            all.extend(socket.inode().zip(socket.near().map(|near| near.to_string())));
        })?;
    }
    let unix = list_unix(state::LISTENING, show::NAME, |socket| {
        let name = socket.name().map(|name| name.to_string()).unwrap_or_default();
        all.extend(socket.inode().zip(Some(name)));
    });
    match unix {
        // The kernel has no such module.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        asked => asked?,
    }
    Ok(all)
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
    }
}
