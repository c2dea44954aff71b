//! Which sockets of a service can never be bound together, so that no other program is blamed for it.

use std::ffi::OsStr;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Component, Path, PathBuf};

use crate::core::spec::{ServiceSpec, SocketAddress, SocketKind, SocketSpec};

/// Where the kernel says whether an IPv6 socket takes IPv4 as well, if nothing else is asked for (`IPV6_V6ONLY`, ipv6(7)).
const IPV6_ONLY: &str = "/proc/sys/net/ipv6/bindv6only";

/// Returns whether two sockets cannot both be bound; `by_default` is whether an IPv6 socket leaves IPv4 alone where the file says
/// nothing.
pub(super) fn overlap(one: &SocketSpec, other: &SocketSpec, by_default: bool) -> bool {
    match (&one.address, &other.address) {
        (SocketAddress::Inet(one_address), SocketAddress::Inet(other_address)) => {
            one.kind == other.kind
                && overlap_inet(*one_address, *other_address, |address| {
                    let spec = if address == one_address { one } else { other };
                    spec.options.bind_ipv6_only.unwrap_or(by_default)
                })
                && !is_told_apart(one, other)
        }
        // A path is one file, whatever it carries.
        (SocketAddress::Path(one), SocketAddress::Path(other)) => one == other || real(one) == real(other),
        (SocketAddress::Abstract(one_name), SocketAddress::Abstract(other_name)) => {
            one.kind == other.kind && one_name == other_name
        }
        _ => false,
    }
}

fn overlap_inet(one: SocketAddr, other: SocketAddr, is_ipv6_alone: impl Fn(&SocketAddr) -> bool) -> bool {
    if one.port() != other.port() || one.port() == 0 {
        return false;
    }
    let scope = |address: &SocketAddr| match address {
        SocketAddr::V6(address) => address.scope_id(),
        SocketAddr::V4(_) => 0,
    };
    match (one.ip().to_canonical(), other.ip().to_canonical()) {
        (IpAddr::V4(_), IpAddr::V6(six)) => six.is_unspecified() && !is_ipv6_alone(&other),
        (IpAddr::V6(six), IpAddr::V4(_)) => six.is_unspecified() && !is_ipv6_alone(&one),
        (left, right) => {
            let is_everywhere = left.is_unspecified() || right.is_unspecified();
            is_everywhere || left == right && scope(&one) == scope(&other)
        }
    }
}

/// Whether the kernel binds both although their addresses are one: at devices of their own, or where both share the port.
fn is_told_apart(one: &SocketSpec, other: &SocketSpec) -> bool {
    let devices = (&one.options.bind_to_device, &other.options.bind_to_device);
    let is_at_others = matches!(devices, (Some(one), Some(other)) if one != other);
    is_at_others || one.options.reuse_port && other.options.reuse_port
}

/// Returns where a path leads, links and dots resolved, as far as it is there.
fn real(path: &Path) -> PathBuf {
    let mut rest: Vec<&OsStr> = Vec::new();
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut real = folder
        .ancestors()
        .find_map(|there| {
            let found = fs::canonicalize(there).ok();
            if found.is_none() {
                rest.extend(there.components().next_back().map(Component::as_os_str));
            }
            found
        })
        .unwrap_or_default();
    for part in rest.into_iter().rev().chain(path.file_name()) {
        if part == ".." {
            real.pop();
        } else {
            real.push(part);
        }
    }
    real
}

/// Returns a sentence for each socket of a service file that cannot be bound beside another one of it, or beside the control server.
///
/// It looks at the file system, and so may block.
pub fn clashes(spec: &ServiceSpec) -> Vec<String> {
    let by_default = fs::read_to_string(IPV6_ONLY).is_ok_and(|text| text.trim() == "1");
    let mut found = Vec::new();
    for (index, socket) in spec.sockets.iter().enumerate() {
        let SocketSpec { name, listen, .. } = socket;
        if let Some(other) = spec.sockets[..index].iter().find(|other| overlap(other, socket, by_default)) {
            let hint = how_to_tell_apart(other, socket);
            found.push(format!(
                "socket `{name}` ({listen}): socket `{}` ({}) of this file holds this address; {hint}",
                other.name, other.listen
            ));
        }
        if let Some(control) = spec.control.tcp.filter(|control| covers(socket, *control)) {
            found.push(format!(
                "socket `{name}` ({listen}): the control server ({control}) of this file has this address; give one of the two another"
            ));
        }
    }
    found
}

/// Whether a socket cannot be bound beside a TCP server at an address.
pub(in super::super) fn covers(socket: &SocketSpec, server: SocketAddr) -> bool {
    let SocketAddress::Inet(address) = socket.address else { return false };
    socket.kind == SocketKind::Stream
        && overlap_inet(address, server, |_| socket.options.bind_ipv6_only == Some(true))
}

/// Returns what to do about two sockets of a file that cannot both be bound.
pub(super) fn how_to_tell_apart(one: &SocketSpec, other: &SocketSpec) -> &'static str {
    let is_four = |spec: &SocketSpec| match spec.address {
        SocketAddress::Inet(address) => Some(address.ip().to_canonical().is_ipv4()),
        SocketAddress::Path(_) | SocketAddress::Abstract(_) => None,
    };
    if is_four(one) == is_four(other) {
        "one socket serves all workers: remove one of the two"
    } else {
        "an IPv6 socket at [::] takes IPv4 as well: remove the other, or set `bind_ipv6_only = \"ipv6-only\"` for it"
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::core::spec::SocketOptions;

    fn spec(listen: &str) -> SocketSpec {
        let address = match listen.strip_prefix('@') {
            Some(name) => SocketAddress::Abstract(name.into()),
            None if listen.starts_with('/') => SocketAddress::Path(listen.into()),
            None => SocketAddress::Inet(listen.parse().unwrap()),
        };
        let (kind, options) = (SocketKind::Stream, SocketOptions::default());
        SocketSpec { name: listen.into(), listen: listen.into(), address, kind, options, accept: None }
    }

    #[test]
    fn addresses_overlap_as_the_kernel_has_it() {
        for (one, other, expected) in [
            ("0.0.0.0:80", "[::]:80", true),
            ("127.0.0.1:80", "[::]:80", true),
            ("127.0.0.1:80", "[::ffff:127.0.0.1]:80", true),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("[::]:80", "[::1]:80", true),
            ("0.0.0.0:80", "[::1]:80", false),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("0.0.0.0:80", "[::]:81", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
            ("[fe80::1%1]:80", "[fe80::1%2]:80", false),
            ("@a", "@a", true),
            ("@a", "/a", false),
        ] {
            assert_eq!(overlap(&spec(one), &spec(other), false), expected, "{one} {other}");
            assert_eq!(overlap(&spec(other), &spec(one), false), expected, "{other} {one}");
        }
        assert!(!overlap(&spec("0.0.0.0:80"), &spec("[::]:80"), true));
        let with = |listen: &str, edit: fn(&mut SocketOptions)| {
            let mut spec = spec(listen);
            edit(&mut spec.options);
            spec
        };
        let six = with("[::]:80", |options| options.bind_ipv6_only = Some(true));
        assert!(!overlap(&six, &spec("0.0.0.0:80"), false) && overlap(&six, &spec("[::1]:80"), false));
        let device = |name: &str| {
            let mut spec = spec("0.0.0.0:80");
            spec.options.bind_to_device = Some(name.into());
            spec
        };
        assert!(!overlap(&device("a"), &device("b"), false) && overlap(&device("a"), &device("a"), false));
        assert!(overlap(&device("a"), &spec("0.0.0.0:80"), false));
    }

    #[test]
    fn a_path_is_one_by_links_and_dots_and_where_it_is_yet_to_be_made() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| spec(folder.path().join(name).to_str().unwrap());
        fs::create_dir(folder.path().join("d")).unwrap();
        symlink("d", folder.path().join("l")).unwrap();
        for (one, other, expected) in [
            ("d/a", "l/a", true),
            ("d/a", "d/../d/a", true),
            ("d/new/a", "l/new/a", true),
            ("new/a", "new/../new/a", true),
            ("d/a", "d/b", false),
            ("d/a", "a", false),
        ] {
            assert_eq!(overlap(&at(one), &at(other), false), expected, "{one} {other}");
        }
    }
}
