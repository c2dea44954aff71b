//! A socket's specification in the terms of the system calls.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::core::spec::{SocketAddress, SocketKind, SocketOptions, SocketSpec};
use crate::sys::options::{SocketOption, Value};

/// A socket that is wanted, its user and group already looked up: look-ups can block, so they are not made here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketPlan {
    /// As the service file has it.
    pub spec: SocketSpec,
    /// What `user` and `group` of a UNIX path stand for.
    pub owner: Owner,
}

/// The owner of a UNIX path; what is `None` stays as it was bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The user's number.
    pub uid: Option<u32>,
    /// The group's number.
    pub gid: Option<u32>,
}

impl SocketPlan {
    /// Writes what an inherited socket is as if a file had asked for it.
    pub(super) fn of(name: String, address: SocketAddress, kind: SocketKind) -> Self {
        let listen = address.to_string();
        let spec =
            SocketSpec { name, listen, address, kind, options: SocketOptions::default(), accept: None };
        Self { spec, owner: Owner::default() }
    }

    /// Returns whether both are the same socket: the address as it is written, and what it carries.
    pub(super) fn is_same_socket(&self, other: &Self) -> bool {
        self.spec.address == other.spec.address && self.spec.kind == other.spec.kind
    }

    /// Whether the kernel chooses the port.
    pub fn has_open_port(&self) -> bool {
        matches!(self.spec.address, SocketAddress::Inet(address) if address.port() == 0)
    }

    pub(super) fn is_tcp(&self) -> bool {
        matches!((&self.spec.address, self.spec.kind), (SocketAddress::Inet(_), SocketKind::Stream))
    }

    /// Returns the options that the file sets; those that it leaves out keep the kernel's default.
    pub(super) fn options(&self) -> BTreeMap<SocketOption, Value> {
        use SocketOption as O;
        let file = &self.spec.options;
        let is_ipv6 = matches!(self.spec.address, SocketAddress::Inet(SocketAddr::V6(_)));
        let on = |switch: bool| switch.then_some(Value::Number(1));
        let count = |number: Option<u32>| number.map(|n| Value::Number(i32::try_from(n).unwrap_or(i32::MAX)));
        let text = |text: &Option<String>| text.clone().map(Value::Text);
        let byte = |number: Option<u8>| number.map(|n| Value::Number(n.into()));
        let bytes = |size: Option<u32>| {
            size.map(|n| Value::Buffer { bytes: i32::try_from(n).unwrap_or(i32::MAX), fixed: true })
        };
        let options = [
            (O::ReusePort, on(file.reuse_port)),
            (O::Ipv6Only, file.bind_ipv6_only.map(Value::from)),
            (O::BindToDevice, text(&file.bind_to_device)),
            (O::FreeBind, file.free_bind.map(Value::from)),
            (O::Transparent, file.transparent.map(Value::from)),
            (O::ReceiveBuffer, bytes(file.receive_buffer)),
            (O::SendBuffer, bytes(file.send_buffer)),
            (O::Mark, file.mark.map(|mark| Value::Number(mark.cast_signed()))),
            // A dual-stack socket sends IPv4 too, so there both count.
            (O::IpTos, byte(file.ip_tos)),
            (O::Ipv6TrafficClass, byte(file.ip_tos).filter(|_| is_ipv6)),
            (O::Priority, count(file.priority)),
            (O::IpTtl, byte(file.ip_ttl)),
            (O::Ipv6Hops, byte(file.ip_ttl).filter(|_| is_ipv6)),
            (O::Broadcast, file.broadcast.map(Value::from)),
            (O::KeepAlive, file.keep_alive.map(Value::from)),
            (O::KeepAliveTime, file.keep_alive_time.map(seconds)),
            (O::KeepAliveInterval, file.keep_alive_interval.map(seconds)),
            (O::KeepAliveProbes, count(file.keep_alive_probes)),
            (O::NoDelay, file.no_delay.map(Value::from)),
            (O::DeferAccept, file.defer_accept.map(seconds)),
            (O::Congestion, text(&file.tcp_congestion)),
            (O::PassCredentials, file.pass_credentials.map(Value::from)),
            (O::PassSecurity, file.pass_security.map(Value::from)),
            (O::NonBlocking, on(file.non_blocking)),
        ];
        options.into_iter().filter_map(|(option, value)| Some((option, value?))).collect()
    }
}

/// Rounds up to whole seconds, the kernel's unit for these, so that a short time does not become none.
fn seconds(time: Duration) -> Value {
    let seconds = time.as_millis().div_ceil(1_000);
    Value::Number(i32::try_from(seconds).unwrap_or(i32::MAX))
}
