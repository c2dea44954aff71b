#![expect(unsafe_code, reason = "getsockopt(2) and setsockopt(2) take untyped memory")]
//! Socket options as data: a name and a value that can be read, kept and put back.
//!
//! A refused or rolled back change must leave every option as it was, so [`get`] and [`set`] are each other's inverse:
//! what one returns, the other takes. That is why this is one table and not a type for each option, as nix has it.

use std::ffi::c_int;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::{Deserialize, Serialize};

/// `SO_BUF_LOCK` of socket(7) (Linux 5.14), which libc lacks: whether the kernel may size the buffers itself.
const SO_BUF_LOCK: c_int = 72;
/// The longest text option, with its NUL: `IFNAMSIZ` and `TCP_CA_NAME_MAX` are both 16.
const TEXT_MAX: usize = 16;

/// An option of socket(7), ip(7), ipv6(7), tcp(7) or unix(7).
///
/// The order is the order in which they are to be set: `IP_TOS` also sets the priority (ip(7)), so that comes after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are those of the manual pages")]
pub enum SocketOption {
    ReuseAddress,
    ReusePort,
    Ipv6Only,
    BindToDevice,
    FreeBind,
    Transparent,
    ReceiveBuffer,
    SendBuffer,
    Mark,
    IpTos,
    Ipv6TrafficClass,
    Priority,
    IpTtl,
    Ipv6Hops,
    Broadcast,
    KeepAlive,
    KeepAliveTime,
    KeepAliveInterval,
    KeepAliveProbes,
    NoDelay,
    DeferAccept,
    Congestion,
    PassCredentials,
    PassSecurity,
    /// `O_NONBLOCK`, which belongs to the open file description like the others.
    NonBlocking,
}

/// The value of an option.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Value {
    /// A number or, as 0 and 1, a switch.
    Number(i32),
    /// A name: of an interface or of a congestion control algorithm.
    Text(String),
    /// The size of a buffer.
    Buffer {
        /// As it is asked for; the kernel keeps, and reports, twice as much (socket(7)).
        bytes: i32,
        /// Whether the kernel may no longer size it by itself.
        fixed: bool,
    },
}

impl From<bool> for Value {
    fn from(on: bool) -> Self {
        Self::Number(i32::from(on))
    }
}

impl SocketOption {
    /// Returns whether it has its effect in bind(2) and cannot change afterwards.
    pub fn is_fixed_by_bind(self) -> bool {
        matches!(self, Self::ReuseAddress | Self::ReusePort | Self::Ipv6Only | Self::BindToDevice)
    }

    /// Returns the level and the name for getsockopt(2).
    pub(super) fn number(self) -> (c_int, c_int) {
        match self {
            Self::ReuseAddress => (libc::SOL_SOCKET, libc::SO_REUSEADDR),
            Self::ReusePort => (libc::SOL_SOCKET, libc::SO_REUSEPORT),
            Self::Ipv6Only => (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
            Self::BindToDevice => (libc::SOL_SOCKET, libc::SO_BINDTODEVICE),
            Self::FreeBind => (libc::IPPROTO_IP, libc::IP_FREEBIND),
            Self::Transparent => (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
            Self::ReceiveBuffer => (libc::SOL_SOCKET, libc::SO_RCVBUF),
            Self::SendBuffer => (libc::SOL_SOCKET, libc::SO_SNDBUF),
            Self::Mark => (libc::SOL_SOCKET, libc::SO_MARK),
            Self::IpTos => (libc::IPPROTO_IP, libc::IP_TOS),
            Self::Ipv6TrafficClass => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
            Self::Priority => (libc::SOL_SOCKET, libc::SO_PRIORITY),
            Self::IpTtl => (libc::IPPROTO_IP, libc::IP_TTL),
            Self::Ipv6Hops => (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
            Self::Broadcast => (libc::SOL_SOCKET, libc::SO_BROADCAST),
            Self::KeepAlive => (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
            Self::KeepAliveTime => (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
            Self::KeepAliveInterval => (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
            Self::KeepAliveProbes => (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
            Self::NoDelay => (libc::IPPROTO_TCP, libc::TCP_NODELAY),
            Self::DeferAccept => (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
            Self::Congestion => (libc::IPPROTO_TCP, libc::TCP_CONGESTION),
            Self::PassCredentials => (libc::SOL_SOCKET, libc::SO_PASSCRED),
            Self::PassSecurity => (libc::SOL_SOCKET, libc::SO_PASSSEC),
            Self::NonBlocking => unreachable!("a file status flag is handled before it gets here"),
        }
    }
}

impl fmt::Display for SocketOption {
    /// Writes the key that the option has in a service file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReuseAddress => "reuse_address",
            Self::ReusePort => "reuse_port",
            Self::Ipv6Only => "bind_ipv6_only",
            Self::BindToDevice => "bind_to_device",
            Self::FreeBind => "free_bind",
            Self::Transparent => "transparent",
            Self::ReceiveBuffer => "receive_buffer",
            Self::SendBuffer => "send_buffer",
            Self::Mark => "mark",
            Self::IpTos | Self::Ipv6TrafficClass => "ip_tos",
            Self::Priority => "priority",
            Self::IpTtl | Self::Ipv6Hops => "ip_ttl",
            Self::Broadcast => "broadcast",
            Self::KeepAlive => "keep_alive",
            Self::KeepAliveTime => "keep_alive_time",
            Self::KeepAliveInterval => "keep_alive_interval",
            Self::KeepAliveProbes => "keep_alive_probes",
            Self::NoDelay => "no_delay",
            Self::DeferAccept => "defer_accept",
            Self::Congestion => "tcp_congestion",
            Self::PassCredentials => "pass_credentials",
            Self::PassSecurity => "pass_security",
            Self::NonBlocking => "non_blocking",
        })
    }
}

/// Reads an option, in the form that [`set`] takes.
///
/// # Errors
/// Those of getsockopt(2).
pub fn get(fd: impl AsFd, option: SocketOption) -> io::Result<Value> {
    match option {
        SocketOption::NonBlocking => Ok(Value::from(status_flags(&fd)?.contains(OFlag::O_NONBLOCK))),
        SocketOption::ReceiveBuffer | SocketOption::SendBuffer => {
            let (level, name) = option.number();
            // A kernel without SO_BUF_LOCK cannot give the buffer back either, so there it counts as fixed.
            let locks = get_number(&fd, libc::SOL_SOCKET, SO_BUF_LOCK).unwrap_or(lock_bit(option));
            Ok(Value::Buffer {
                bytes: get_number(&fd, level, name)? / 2,
                fixed: locks & lock_bit(option) != 0,
            })
        }
        SocketOption::BindToDevice | SocketOption::Congestion => {
            let (level, name) = option.number();
            let mut text = [0; TEXT_MAX];
            let length = get_bytes(&fd, level, name, &mut text)?;
            let text = text[..length].split(|byte| *byte == 0).next().unwrap_or_default();
            Ok(Value::Text(String::from_utf8_lossy(text).into_owned()))
        }
        _ => {
            let (level, name) = option.number();
            get_number(&fd, level, name).map(Value::Number)
        }
    }
}

/// Sets an option.
///
/// Buffers are set beyond the limits of `net.core` where that is allowed, as systemd does.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set(fd: impl AsFd, option: SocketOption, value: &Value) -> io::Result<()> {
    match value {
        Value::Number(on) if option == SocketOption::NonBlocking => {
            let mut flags = status_flags(&fd)?;
            flags.set(OFlag::O_NONBLOCK, *on != 0);
            fcntl(&fd, FcntlArg::F_SETFL(flags))?;
            Ok(())
        }
        Value::Number(number) => {
            let (level, name) = option.number();
            set_bytes(&fd, level, name, &number.to_ne_bytes())
        }
        Value::Text(text) => {
            let (level, name) = option.number();
            set_bytes(&fd, level, name, text.as_bytes())
        }
        Value::Buffer { bytes, fixed } => set_buffer(&fd, option, *bytes, *fixed),
    }
}

fn set_buffer(fd: &impl AsFd, option: SocketOption, bytes: i32, fixed: bool) -> io::Result<()> {
    let (level, name) = option.number();
    let forced =
        if option == SocketOption::ReceiveBuffer { libc::SO_RCVBUFFORCE } else { libc::SO_SNDBUFFORCE };
    match set_bytes(fd, level, forced, &bytes.to_ne_bytes()) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            set_bytes(fd, level, name, &bytes.to_ne_bytes())?;
        }
        other => other?,
    }
    if fixed {
        return Ok(());
    }
    let locks = get_number(fd, libc::SOL_SOCKET, SO_BUF_LOCK)? & !lock_bit(option);
    set_bytes(fd, libc::SOL_SOCKET, SO_BUF_LOCK, &locks.to_ne_bytes())
}

/// Returns the bit of `SO_BUF_LOCK` that stands for a buffer (`SOCK_SNDBUF_LOCK`, `SOCK_RCVBUF_LOCK`).
fn lock_bit(option: SocketOption) -> c_int {
    if option == SocketOption::SendBuffer { 1 } else { 2 }
}

fn status_flags(fd: &impl AsFd) -> io::Result<OFlag> {
    Ok(OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?))
}

/// Reads an option that is one int.
pub(super) fn get_number(fd: &impl AsFd, level: c_int, name: c_int) -> io::Result<c_int> {
    let mut bytes = [0; size_of::<c_int>()];
    get_bytes(fd, level, name, &mut bytes)?;
    Ok(c_int::from_ne_bytes(bytes))
}

/// Reads an option into `buffer` and returns how many bytes it has, cut to those of `buffer`.
pub(super) fn get_bytes(fd: &impl AsFd, level: c_int, name: c_int, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel writes at most `length` bytes, which is the length of `buffer`, and both outlive the call.
    let result = unsafe {
        libc::getsockopt(fd.as_fd().as_raw_fd(), level, name, buffer.as_mut_ptr().cast(), &raw mut length)
    };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(buffer.len().min(length as usize))
}

/// Asks for an option of no bytes at all; returns how many it has, in its own unit.
pub(super) fn length_of(fd: &impl AsFd, level: c_int, name: c_int) -> (io::Result<()>, libc::socklen_t) {
    let mut length = 0;
    // SAFETY: the kernel writes no byte, as `length` says, and the length itself, which outlives the call.
    let result = unsafe {
        libc::getsockopt(fd.as_fd().as_raw_fd(), level, name, std::ptr::null_mut(), &raw mut length)
    };
    (if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }, length)
}

pub(super) fn set_bytes(fd: &impl AsFd, level: c_int, name: c_int, value: &[u8]) -> io::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel reads `length` bytes, which is the length of `value`, and that outlives the call.
    let result =
        unsafe { libc::setsockopt(fd.as_fd().as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plain::{SocketAddress, SocketKind};
    use crate::sys::listener::create;

    fn tcp(address: &str) -> std::os::fd::OwnedFd {
        create(&SocketAddress::Inet(address.parse().unwrap()), SocketKind::Stream).unwrap()
    }

    #[test]
    fn a_buffer_goes_back_to_the_size_that_it_had_and_to_the_kernels_care() {
        let socket = tcp("127.0.0.1:0");
        for option in [SocketOption::ReceiveBuffer, SocketOption::SendBuffer] {
            let before = get(&socket, option).unwrap();
            assert!(matches!(before, Value::Buffer { fixed: false, .. }));
            let asked = Value::Buffer { bytes: 40_000, fixed: true };
            set(&socket, option, &asked).unwrap();
            assert_eq!(get(&socket, option).unwrap(), asked);
            set(&socket, option, &before).unwrap();
            assert_eq!(get(&socket, option).unwrap(), before);
        }
    }

    #[test]
    fn o_nonblock_leaves_the_other_flags_alone() {
        let socket = tcp("127.0.0.1:0");
        let before = status_flags(&socket).unwrap();
        set(&socket, SocketOption::NonBlocking, &Value::from(true)).unwrap();
        assert_eq!(status_flags(&socket).unwrap(), before | OFlag::O_NONBLOCK);
        set(&socket, SocketOption::NonBlocking, &Value::from(false)).unwrap();
        assert_eq!(status_flags(&socket).unwrap(), before);
    }

    #[test]
    fn an_unknown_algorithm_is_an_error_and_changes_nothing() {
        let socket = tcp("127.0.0.1:0");
        let before = get(&socket, SocketOption::Congestion).unwrap();
        let error = set(&socket, SocketOption::Congestion, &Value::Text("nonesuch".into())).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        assert_eq!(get(&socket, SocketOption::Congestion).unwrap(), before);
    }
}
