//! The names of the UNIX sockets of this network namespace, as the kernel lists them.
//!
//! /proc/net/unix has the names as their makers wrote them, line ends included: any user can forge lines of it.

use std::collections::BTreeSet;
use std::io;

use super::netlink::{list_unix, show, state};
use crate::plain::SocketAddress;

/// Whether a UNIX socket was bound to this path or abstract name and still exists. The kernel does not know what became of the
/// path since.
///
/// # Errors
///
/// Those of the netlink socket; ENOENT where the kernel has no such module.
pub fn is_taken(name: &SocketAddress) -> io::Result<bool> {
    let mut is_taken = false;
    list_unix(state::ANY, show::NAME, |socket| is_taken |= socket.name().as_ref() == Some(name))?;
    Ok(is_taken)
}

/// Returns the inode numbers of the UNIX connections that were accepted at one of these addresses. The end that was accepted
/// has its listener's address; the other end mostly has none.
///
/// # Errors
///
/// As [`is_taken`].
pub fn accepted_at(addresses: &BTreeSet<SocketAddress>) -> io::Result<BTreeSet<u32>> {
    let mut inodes = BTreeSet::new();
    list_unix(state::ESTABLISHED, show::NAME, |socket| {
        inodes.extend(socket.inode().filter(|_| socket.name().is_some_and(|name| addresses.contains(&name))));
    })?;
    Ok(inodes)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
    use std::path::Path;

    use nix::sys::stat::fstat;

    use super::super::listener::tests::eventually;
    use super::*;

    #[test]
    fn names_are_listed_though_their_paths_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("with a space");
        let taken = |path: &Path| is_taken(&SocketAddress::Path(path.to_owned())).unwrap();
        assert!(!taken(&path));
        let socket = UnixListener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(taken(&path));
        assert!(!taken(folder.path()));
        drop(socket);
        eventually(|| (!taken(&path)).then_some(()));

        let name = format!("liveswap-names-{}", std::process::id());
        let taken = |name: &str| is_taken(&SocketAddress::Abstract(name.into())).unwrap();
        assert!(!taken(&name));
        let _socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        assert!(taken(&name));
        assert!(!taken(&name[..5]));
    }

    #[test]
    fn a_connection_counts_for_the_address_at_which_it_was_accepted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let addresses = BTreeSet::from([SocketAddress::Path(path.clone())]);
        assert_eq!(accepted_at(&addresses).unwrap(), BTreeSet::new(), "it listens");
        let _client = UnixStream::connect(&path).unwrap();
        assert_eq!(accepted_at(&addresses).unwrap(), BTreeSet::new(), "it was not accepted yet");
        let (served, _) = listener.accept().unwrap();
        let inode = u32::try_from(fstat(served.as_fd()).unwrap().st_ino).unwrap();
        assert_eq!(accepted_at(&addresses).unwrap(), BTreeSet::from([inode]));
        let elsewhere = BTreeSet::from([SocketAddress::Path(folder.path().into())]);
        assert_eq!(accepted_at(&elsewhere).unwrap(), BTreeSet::new());
    }

    /// A name may hold what /proc/net/unix would show as another line.
    #[test]
    fn no_name_forges_a_connection_or_another_name() {
        let wanted = format!("/run/liveswap-forged-{}", std::process::id());
        let name = format!("x\n0000000000000000: 00000003 00000000 00000000 0001 03 4711 {wanted}\n");
        let _forger = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        assert!(fs::read_to_string("/proc/net/unix").unwrap().contains(&format!(" 4711 {wanted}\n")));
        let wanted = SocketAddress::Path(wanted.into());
        assert!(!is_taken(&wanted).unwrap());
        assert_eq!(accepted_at(&BTreeSet::from([wanted])).unwrap(), BTreeSet::new());
    }
}
