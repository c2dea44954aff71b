//! The names of the UNIX sockets of this network namespace, as the kernel lists them (proc_net(5)).

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// All of them, as they were bound: the kernel does not know what became of a path since.
#[derive(Debug)]
pub struct UnixNames(Vec<u8>);

/// Reads the list.
///
/// # Errors
///
/// Those of open(2) and read(2), where /proc is not mounted.
pub fn list() -> io::Result<UnixNames> {
    fs::read("/proc/net/unix").map(UnixNames)
}

impl UnixNames {
    /// Whether a socket has been bound to this path.
    pub fn have(&self, path: &Path) -> bool {
        self.end_a_line(path.as_os_str().as_bytes())
    }

    /// Whether a socket has this abstract name (without the NUL before it, which the list shows as `@`).
    pub fn have_abstract(&self, name: &[u8]) -> bool {
        self.end_a_line(&[b"@", name].concat())
    }

    fn end_a_line(&self, name: &[u8]) -> bool {
        let end = [b" ", name, b"\n"].concat();
        self.0.windows(end.len()).any(|part| part == end)
    }
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};

    use super::*;

    #[test]
    fn names_are_listed_though_their_paths_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("with a space");
        assert!(!list().unwrap().have(&path));
        let socket = UnixListener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(list().unwrap().have(&path));
        assert!(!list().unwrap().have(folder.path()));
        drop(socket);
        assert!(!list().unwrap().have(&path));

        let name = format!("liveswap-names-{}", std::process::id());
        assert!(!list().unwrap().have_abstract(name.as_bytes()));
        let _socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        assert!(list().unwrap().have_abstract(name.as_bytes()));
        assert!(!list().unwrap().have_abstract(&name.as_bytes()[..5]));
    }
}
