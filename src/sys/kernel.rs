//! Which kernel we run on, and whether it has what we cannot do without.

use std::io;

use nix::errno::Errno;
use nix::sys::utsname::uname;
use nix::unistd::getpid;

use super::pidfd::Pidfd;

/// Why the kernel does not do.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the kernel ({release}) has no pidfd_open(2), or a sandbox forbids it: Linux 5.3 or newer is needed")]
pub struct TooOld {
    /// Its release, as uname(2) has it.
    release: String,
}

/// Looks whether the kernel has what there is no substitute for: a hold on a process, as its number alone may be another's a moment
/// later. It is asked for the call and not for its release, which says little: distributions bring newer calls to older kernels, and sandboxes
/// take some away.
///
/// # Errors
///
/// It has not.
pub fn check() -> Result<(), TooOld> {
    match Pidfd::open(getpid()).map_err(|error: io::Error| error.raw_os_error()) {
        Err(Some(errno)) if errno == Errno::ENOSYS as i32 || errno == Errno::EPERM as i32 => {
            let name = uname().map(|name| name.release().to_string_lossy().into_owned());
            Err(TooOld { release: name.unwrap_or_default() })
        }
        // What else there may be, such as a want of descriptors, is told where it matters.
        Ok(_) | Err(_) => Ok(()),
    }
}
