//! Text in memory that travels as a descriptor (memfd_create(2)).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Makes a descriptor that holds exactly these bytes, and that nobody can change any more.
///
/// # Errors
///
/// Those of memfd_create(2), write(2) and fcntl(2).
pub fn sealed(content: &[u8]) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    // Where `vm.memfd_noexec` is 2 it must be said that nothing in it is to be executed; kernels before 6.3 do not know
    // the word.
    let never_executed = MFdFlags::from_bits_retain(flags.bits() | libc::MFD_NOEXEC_SEAL);
    let memory = match memfd_create(c"liveswap-state", never_executed) {
        Err(Errno::EINVAL) => memfd_create(c"liveswap-state", flags)?,
        made => made?,
    };
    let mut file = File::from(memory);
    file.write_all(content)?;
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals | SealFlag::F_SEAL_SEAL))?;
    Ok(file.into())
}

/// Reads all that a descriptor of [`sealed`] holds, wherever others who share it have read up to.
///
/// # Errors
///
/// Those of open(2) and read(2).
pub fn read_whole(memory: impl AsFd) -> io::Result<Vec<u8>> {
    // Opened anew: the place up to which was read belongs to the open file description.
    let mut file = File::open(format!("/proc/self/fd/{}", memory.as_fd().as_raw_fd()))?;
    let mut content = Vec::new();
    file.read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_is_read_as_often_as_wanted_and_never_changed() {
        let memory = sealed(b"as it was").unwrap();
        assert_eq!(read_whole(&memory).unwrap(), b"as it was");
        let mut file = File::from(memory);
        assert_eq!(file.write_all(b"otherwise").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert!(file.set_len(0).is_err());
        assert_eq!(read_whole(&file).unwrap(), b"as it was");
    }
}
