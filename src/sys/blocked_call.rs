//! The system call that a thread waits in, as /proc/PID/task/TID/syscall tells it (proc_pid_syscall(5)).

use std::ffi::c_long;
use std::os::fd::RawFd;

/// A system call that a thread is in (proc_pid_syscall(5)).
pub(super) struct Call {
    number: c_long,
    pub(super) arguments: [u64; 6],
}

/// How a call waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// On the descriptor that is its first argument.
    OnOne,
    /// On the epoll set that is its first argument.
    Epoll,
    Poll,
    Select,
    /// It waits for what was asked for before.
    Unknowable,
    Other,
}

impl Call {
    /// Reads it; `None` of a thread that is in none.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let number = words.next()?.parse().ok()?;
        let mut arguments = [0; 6];
        for argument in &mut arguments {
            *argument = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
        }
        Some(Self { number, arguments })
    }

    pub(super) fn kind(&self) -> Kind {
        match self.number {
            libc::SYS_accept
            | libc::SYS_accept4
            | libc::SYS_recvfrom
            | libc::SYS_recvmsg
            | libc::SYS_recvmmsg
            | libc::SYS_read
            | libc::SYS_readv => Kind::OnOne,
            libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2 => Kind::Epoll,
            // After a stop and a continuation poll(2) goes on as the latter.
            libc::SYS_ppoll | libc::SYS_restart_syscall => Kind::Poll,
            libc::SYS_pselect6 => Kind::Select,
            libc::SYS_io_getevents | IO_PGETEVENTS => Kind::Unknowable,
            number => by_older_name(number),
        }
    }

    pub(super) fn descriptor(&self) -> Option<RawFd> {
        // The upper half of the register means nothing.
        RawFd::try_from(self.arguments[0] & u64::from(u32::MAX)).ok()
    }
}

/// `io_pgetevents`, which libc does not name.
const IO_PGETEVENTS: c_long = if cfg!(target_arch = "x86_64") { 333 } else { 292 };

/// The calls that newer architectures have no more.
#[cfg(target_arch = "x86_64")]
fn by_older_name(number: c_long) -> Kind {
    match number {
        libc::SYS_epoll_wait => Kind::Epoll,
        libc::SYS_poll => Kind::Poll,
        libc::SYS_select => Kind::Select,
        _ => Kind::Other,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn by_older_name(_: c_long) -> Kind {
    Kind::Other
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_kernel_is_read() {
        assert!(Call::parse("running\n").is_none());
        assert!(Call::parse("-1 0x7ffc 0x7f00\n").is_none());
        let call = Call::parse("0 0x3 0x7f8f 0x20000 0x0 0xffffffff 0x0 0x7fff 0x7f8f\n").unwrap();
        assert_eq!((call.number, call.descriptor()), (0, Some(3)));
        assert_eq!(call.kind(), if call.number == libc::SYS_read { Kind::OnOne } else { Kind::Other });
    }
}
