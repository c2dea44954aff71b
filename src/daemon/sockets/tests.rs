//! Real sockets in temporary folders and on loopback addresses.

mod activation;
mod binding;
mod guarding;
mod transaction;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tempfile::TempDir;

use super::*;
use crate::core::spec::{SocketAddress, SocketKind, SocketOptions};
use crate::sys::backlog::backlog;
use crate::sys::listener::tests::{eventually, reachable};
use crate::sys::listener::{disconnect, listen, local_address};
use crate::sys::options::{SocketOption, Value, get, set};
use crate::sys::shared_options::tests::{as_another_user, attach_filter};
use crate::sys::tcp_keys::tests::set_key;

fn plan(name: &str, listen: &str, kind: SocketKind, options: SocketOptions) -> SocketPlan {
    let address = match listen.as_bytes()[0] {
        b'/' => SocketAddress::Path(listen.into()),
        b'@' => SocketAddress::Abstract(listen[1..].into()),
        _ => SocketAddress::Inet(listen.parse().unwrap()),
    };
    let spec = SocketSpec { name: name.into(), listen: listen.into(), address, kind, options, accept: None };
    SocketPlan { spec, owner: Owner::default() }
}

fn tcp(listen: &str) -> SocketPlan {
    plan("http", listen, SocketKind::Stream, SocketOptions::default())
}

fn with(mut plan: SocketPlan, edit: impl FnOnce(&mut SocketOptions)) -> SocketPlan {
    edit(&mut plan.spec.options);
    plan
}

fn unix(path: &Path, kind: SocketKind) -> SocketPlan {
    plan("unix", path.to_str().unwrap(), kind, SocketOptions::default())
}

/// A loopback address that no other test has: whoever reads it back must find the same port.
fn own_address() -> String {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let port = 20_000 + NEXT.fetch_add(1, Ordering::Relaxed);
    SocketAddr::from((Ipv4Addr::new(127, 77, high, low), port)).to_string()
}

/// Makes a connection of a TCP socket that has listened; `false` where the kernel lets none become one (EINVAL, as 6.18.44 does).
fn connect(socket: impl AsFd, to: SocketAddr) -> bool {
    let to = nix::sys::socket::SockaddrStorage::from(to);
    match nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&socket.as_fd()), &to) {
        Ok(()) => true,
        Err(Errno::EINVAL) => false,
        Err(error) => panic!("{error}"),
    }
}

fn linger(socket: impl AsFd, seconds: i32) {
    let linger = libc::linger { l_onoff: 1, l_linger: seconds };
    nix::sys::socket::setsockopt(&socket.as_fd(), nix::sys::socket::sockopt::Linger, &linger).unwrap();
}

fn sockets() -> Sockets {
    Sockets::new(Vec::new())
}

fn one(sockets: &mut Sockets, plan: &SocketPlan) -> Rc<Listener> {
    let prepared = sockets.prepare(std::slice::from_ref(plan)).unwrap();
    assert_eq!(prepared.warnings, [""; 0]);
    prepared.listeners.into_iter().next().unwrap()
}

fn refused(sockets: &mut Sockets, wanted: &[SocketPlan]) -> (String, String) {
    let error = sockets.prepare(wanted).unwrap_err();
    (error.to_string(), error.hint().unwrap_or_default())
}

fn inet(listener: &Listener) -> SocketAddr {
    match local_address(listener).unwrap() {
        Some(SocketAddress::Inet(address)) => address,
        other => panic!("{other:?}"),
    }
}

/// What a worker has: a descriptor of its own for the same socket.
fn workers_copy(listener: &Listener) -> OwnedFd {
    listener.as_fd().try_clone_to_owned().unwrap()
}

fn serves_tcp(listener: &Listener) {
    let mut client = TcpStream::connect(inet(listener)).unwrap();
    let (mut server, _) = TcpListener::from(workers_copy(listener)).accept().unwrap();
    server.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
}

fn serves_unix(listener: &Listener, path: &Path) {
    let mut client = UnixStream::connect(path).unwrap();
    let (mut server, _) = UnixListener::from(workers_copy(listener)).accept().unwrap();
    server.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
}

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("web.sock");
    (folder, path)
}

fn files(folder: &TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(folder.path()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn handed(name: &str, fd: impl Into<OwnedFd>) -> Inherited {
    Inherited { fd: fd.into(), name: name.into() }
}
