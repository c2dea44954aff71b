//! The sockets of a service.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::plain::{SocketAddress, SocketKind};

/// A socket that the manager binds and the workers inherit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketSpec {
    /// The `FDNAME`: 0x20 to 0x7e without `:`, at most 255 characters (`sd_listen_fds(3)`).
    pub name: String,
    /// The address as the file writes it, for messages.
    pub listen: String,
    /// Where it is bound.
    pub address: SocketAddress,
    /// What it carries.
    pub kind: SocketKind,
    /// The rest of systemd.socket(5).
    pub options: SocketOptions,
    /// Where each connection has a process of its own: how many there may be.
    pub accept: Option<Accept>,
}

/// How many connections may have a process at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accept {
    /// In all.
    pub max_connections: u32,
    /// Of one IP address, or of one user by a UNIX socket.
    pub max_connections_per_source: Option<u32>,
}

/// The options of systemd.socket(5); `None` leaves the kernel's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketOptions {
    /// The queue of connections not yet accepted (listen(2)); the kernel cuts it to `net.core.somaxconn`.
    pub backlog: Option<u32>,
    /// Permissions of a UNIX path, 0 to 0o777; default 0o666.
    pub mode: Option<u32>,
    /// Permissions of folders made for a UNIX path; default 0o755.
    pub directory_mode: Option<u32>,
    /// Owner of a UNIX path, a name or a number.
    pub user: Option<String>,
    /// Group of a UNIX path, a name or a number.
    pub group: Option<String>,
    /// Other sockets may bind the same address (`SO_REUSEPORT`).
    pub reuse_port: bool,
    /// `O_NONBLOCK`, which all generations share; default off, as workers expect blocking sockets.
    pub non_blocking: bool,
    /// `TCP_NODELAY`.
    pub no_delay: Option<bool>,
    /// `SO_KEEPALIVE`.
    pub keep_alive: Option<bool>,
    /// `TCP_KEEPIDLE`, in whole seconds.
    pub keep_alive_time: Option<Duration>,
    /// `TCP_KEEPINTVL`, in whole seconds.
    pub keep_alive_interval: Option<Duration>,
    /// `TCP_KEEPCNT`.
    pub keep_alive_probes: Option<u32>,
    /// `TCP_DEFER_ACCEPT`, in whole seconds.
    pub defer_accept: Option<Duration>,
    /// `IP_FREEBIND`: the address need not exist yet.
    pub free_bind: Option<bool>,
    /// `IP_TRANSPARENT`.
    pub transparent: Option<bool>,
    /// `IPV6_V6ONLY`.
    pub bind_ipv6_only: Option<bool>,
    /// `SO_BINDTODEVICE`: an interface's name.
    pub bind_to_device: Option<String>,
    /// `SO_RCVBUF` in bytes, by `SO_RCVBUFFORCE` where allowed.
    pub receive_buffer: Option<u32>,
    /// `SO_SNDBUF` in bytes, by `SO_SNDBUFFORCE` where allowed.
    pub send_buffer: Option<u32>,
    /// `SO_MARK`.
    pub mark: Option<u32>,
    /// `SO_PRIORITY`.
    pub priority: Option<u32>,
    /// `IP_TOS`, 0 to 255.
    pub ip_tos: Option<u8>,
    /// `IP_TTL` (and `IPV6_UNICAST_HOPS`), 1 to 255.
    pub ip_ttl: Option<u8>,
    /// `SO_PASSCRED` on a UNIX socket.
    pub pass_credentials: Option<bool>,
    /// `SO_PASSSEC` on a UNIX socket.
    pub pass_security: Option<bool>,
    /// `SO_BROADCAST` on a datagram socket.
    pub broadcast: Option<bool>,
    /// `TCP_CONGESTION`: an algorithm's name.
    pub tcp_congestion: Option<String>,
}
