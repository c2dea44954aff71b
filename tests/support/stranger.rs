//! Another user of the same machine.

#![expect(unsafe_code, reason = "one thread alone changes its user")]

use std::fs::{self, Permissions};
use std::io::{IoSlice, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::thread;

use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg, setsockopt, sockopt};
use nix::unistd::Pid;

/// Two users that are not root.
pub const NOBODY: u32 = 65534;
pub const DAEMON: u32 = 1;

/// Does something as another user, in a thread of its own: setresuid(2) without libc changes the calling thread alone.
pub fn as_user<T: Send>(uid: u32, act: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let acting = scope.spawn(move || {
            // SAFETY: it takes three integers.
            let changed = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
            assert_eq!(changed, 0, "only root can be somebody else");
            act()
        });
        acting.join().expect("a thread that does not panic")
    })
}

/// Lets every user pass through a folder, as /run is.
pub fn open_to_all(folder: &Path) {
    fs::set_permissions(folder, Permissions::from_mode(0o755)).expect("a folder of ours");
}

/// Sends a datagram to a notify socket, with descriptors beside it.
pub fn notify(path: &str, text: &[u8], descriptors: &[RawFd]) {
    let socket = UnixDatagram::unbound().expect("a socket");
    let address = UnixAddr::new(path).expect("an address");
    let rights = [ControlMessage::ScmRights(descriptors)];
    let rights = if descriptors.is_empty() { &rights[..0] } else { &rights[..] };
    let text = [IoSlice::new(text)];
    sendmsg(socket.as_raw_fd(), &text, rights, MsgFlags::empty(), Some(&address))
        .expect("a listening manager");
}

/// Returns the paths of all notify sockets below a folder, as any user finds them.
pub fn notify_sockets_below(folder: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/net/unix").expect("a list of sockets");
    let below = format!("{}/", folder.display());
    let paths = table.lines().filter_map(|line| line.split_whitespace().nth(7));
    paths.filter(|path| path.starts_with(&below)).map(str::to_owned).collect()
}

/// Does something while a process stands still: what is sent then is still in its queue when the last copy here closes, so
/// that it is that process whose close is the last.
pub fn while_stopped(pid: i32, act: impl FnOnce()) {
    kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("SIGSTOP");
    super::eventually("a process that is stopped", || {
        super::process::status(pid, "State").starts_with('T').then_some(())
    });
    act();
    kill(Pid::from_raw(pid), Signal::SIGCONT).expect("SIGCONT");
}

/// A connection whose last close waits for 30,000 s, as its peer does not read; and that peer.
fn lingering() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let mut client = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
    let (peer, _) = listener.accept().expect("its other end");
    client.set_nonblocking(true).expect("a flag");
    while client.write(&[b'x'; 4096]).is_ok() {}
    setsockopt(&client, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 30_000 }).expect("SO_LINGER");
    (client, peer)
}

/// Sends a byte and a descriptor, of which no other copy is kept.
pub fn pass(socket: &UnixStream, text: &[u8], descriptor: impl Into<OwnedFd>) {
    let descriptor = descriptor.into();
    let rights = [descriptor.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&rights)];
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(text)], &rights, MsgFlags::empty(), None)
        .expect("a socket that takes it");
}

/// A descriptor in whose queue such a connection waits.
pub fn nested(keep: &mut Vec<TcpStream>) -> OwnedFd {
    let (client, peer) = lingering();
    keep.push(peer);
    let (near, far) = UnixStream::pair().expect("a pair");
    pass(&near, b"x", client);
    far.into()
}
