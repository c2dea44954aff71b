//! Another user of the same machine.

#![expect(unsafe_code, reason = "one thread alone changes its user")]

use std::fs::{self, Permissions};
use std::io::IoSlice;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::thread;

use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

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
