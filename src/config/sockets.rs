//! Reads `[[socket]]`: addresses, and the options that each kind of socket has.

use std::net::SocketAddr;

use toml::de::DeValue;

use super::Origin;
use super::address::{self, Listen};
use super::reader::{At, Flaw, Problems, Span, Table};
use super::values;
use crate::core::spec::{Accept, SocketAddress, SocketKind, SocketOptions, SocketSpec};

/// `sd_listen_fds(3)`: at most 255 characters.
const NAME_MAX: usize = 255;

/// How many connections may have a process at a time, as systemd.socket(5) has it, and how many that may be.
const CONNECTIONS: u32 = 64;
const CONNECTIONS_MAX: u32 = 65_536;

/// What a socket must be for an option to mean something.
#[derive(Clone, Copy, Debug)]
enum Needs {
    Listening,
    Inet,
    Ipv6,
    Tcp,
    Udp,
    Unix,
    UnixPath,
}

impl Needs {
    fn met_by(self, address: &SocketAddress, kind: SocketKind) -> bool {
        let inet = matches!(address, SocketAddress::Inet(_));
        match self {
            Self::Listening => kind != SocketKind::Datagram,
            Self::Inet => inet,
            Self::Ipv6 => matches!(address, SocketAddress::Inet(SocketAddr::V6(_))),
            Self::Tcp => inet && kind == SocketKind::Stream,
            Self::Udp => inet && kind == SocketKind::Datagram,
            Self::Unix => !inet,
            Self::UnixPath => matches!(address, SocketAddress::Path(_)),
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Listening => "only sockets that accept connections have it",
            Self::Inet => "only IPv4 and IPv6 sockets have it",
            Self::Ipv6 => "only IPv6 sockets have it",
            Self::Tcp => "only TCP sockets have it",
            Self::Udp => "only UDP sockets have it",
            Self::Unix => "only UNIX sockets have it",
            Self::UnixPath => "only UNIX sockets with a path have it",
        }
    }
}

/// One `[[socket]]` being read: keys are taken together with what they need of the socket.
struct Reader<'a> {
    table: Table<'a>,
    needs: Vec<(Needs, &'static str, Span)>,
}

impl<'a> Reader<'a> {
    fn read<T>(
        &mut self,
        needs: Needs,
        key: &'static str,
        parse: impl FnOnce(&DeValue<'a>) -> Result<T, Flaw>,
    ) -> Option<T> {
        let at = self.table.read(key, parse)?;
        self.needs.push((needs, key, at.key));
        Some(at.value)
    }
}

/// Reads all sockets, in the order of the file.
pub(super) fn read(root: &mut Table<'_>, origin: &Origin, problems: &Problems) -> Vec<At<SocketSpec>> {
    let tables = root.tables("socket", "[[socket]]");
    let found: Vec<At<SocketSpec>> = tables.into_iter().filter_map(|table| socket(table, origin)).collect();
    for (index, at) in found.iter().enumerate() {
        if let Some(first) = found[..index].iter().find(|first| collide(&first.value, &at.value)) {
            let message = format!("two sockets listen on {}", at.value.address);
            let label = format!("as `{}` does already", first.value.name);
            let help = "one socket serves all workers; remove one of the two";
            problems.conclude(at.span.clone(), Flaw::new(message, label).help(help));
        }
    }
    found
}

/// Whether the kernel could never bind both. A UNIX path is one file, whatever it carries.
fn collide(left: &SocketSpec, right: &SocketSpec) -> bool {
    let is_one = match (&left.address, &right.address) {
        // Port 0 is another one each time. IPv4 can be written as IPv6.
        (SocketAddress::Inet(left), SocketAddress::Inet(right)) => {
            left.port() != 0 && canonical(*left) == canonical(*right)
        }
        (left, right) => left == right,
    };
    is_one && (left.kind == right.kind || matches!(left.address, SocketAddress::Path(_)))
}

fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip if ip == address.ip() => address,
        ip => SocketAddr::new(ip, address.port()),
    }
}

/// Reads one socket; `None` where it has no good address and type. The place is that of `listen`.
fn socket(table: Table<'_>, origin: &Origin) -> Option<At<SocketSpec>> {
    let mut reader = Reader { table, needs: Vec::new() };
    let table = &mut reader.table;
    let name = table.read("name", |value| values::text(value).and_then(check_name));
    let listen = table.read("listen", |value| address::listen(value, origin));
    let kinds = [
        ("stream", SocketKind::Stream),
        ("datagram", SocketKind::Datagram),
        ("seqpacket", SocketKind::Seqpacket),
    ];
    let kind = table.read("type", |value| values::choice(value, &kinds));
    table.require("listen", r#"such as listen = "0.0.0.0:8080" or listen = "/run/web.sock""#);
    let mut options = options(&mut reader);
    let accept = accept(&mut reader);
    // The manager itself accepts, and must never wait for a client that has gone meanwhile.
    options.non_blocking |= accept.is_some();
    let Reader { table, needs } = reader;

    let readable = kind.is_some() || !table.has("type");
    let spec = listen.filter(|_| readable).map(|At { value: Listen { text, address }, span, key }| {
        let carries = kind.as_ref().map_or(SocketKind::Stream, |kind| kind.value);
        check_kind(&table, &address, kind.as_ref(), &needs);
        let name = name.map_or_else(|| default_name(&text), At::value);
        At { value: SocketSpec { name, listen: text, address, kind: carries, options, accept }, span, key }
    });
    table.finish();
    spec
}

/// Reports a type that the address cannot have, and the options that the socket does not have.
fn check_kind(
    table: &Table<'_>,
    address: &SocketAddress,
    kind: Option<&At<SocketKind>>,
    needs: &[(Needs, &'static str, Span)],
) {
    let inet = matches!(address, SocketAddress::Inet(_));
    if let Some(At { value: SocketKind::Seqpacket, span, .. }) = kind.filter(|_| inet) {
        let flaw =
            Flaw::new("cannot be \"seqpacket\" on an IPv4 or IPv6 address", "only UNIX sockets carry it");
        let _: Option<()> = table.judge("type", span, Err(flaw));
    }
    let carries = kind.map_or(SocketKind::Stream, |kind| kind.value);
    for (needs, key, span) in needs {
        if !needs.met_by(address, carries) {
            let message = format!("`{key}` means nothing for {}", describe(address, carries));
            table.problems().conclude(span.clone(), Flaw::new(message, needs.label()));
        }
    }
}

fn describe(address: &SocketAddress, kind: SocketKind) -> String {
    let kind = match (address, kind) {
        (SocketAddress::Inet(_), SocketKind::Stream) => "the TCP socket",
        (SocketAddress::Inet(_), SocketKind::Datagram) => "the UDP socket",
        (SocketAddress::Inet(_), SocketKind::Seqpacket) => "the socket",
        (_, SocketKind::Stream) => "the UNIX stream socket",
        (_, SocketKind::Datagram) => "the UNIX datagram socket",
        (_, SocketKind::Seqpacket) => "the UNIX seqpacket socket",
    };
    format!("{kind} {address}")
}

fn options(reader: &mut Reader<'_>) -> SocketOptions {
    let priority_max = i32::MAX.unsigned_abs();
    let options = SocketOptions {
        backlog: reader.read(Needs::Listening, "backlog", |value| values::number(value, 1..=priority_max)),
        mode: reader.read(Needs::UnixPath, "mode", values::mode),
        directory_mode: reader.read(Needs::UnixPath, "directory_mode", values::mode),
        user: reader.read(Needs::UnixPath, "user", values::principal),
        group: reader.read(Needs::UnixPath, "group", values::principal),
        reuse_port: reader.read(Needs::Inet, "reuse_port", values::boolean).unwrap_or(false),
        non_blocking: reader.table.read("non_blocking", values::boolean).is_some_and(At::value),
        no_delay: reader.read(Needs::Tcp, "no_delay", values::boolean),
        keep_alive: reader.read(Needs::Tcp, "keep_alive", values::boolean),
        keep_alive_time: reader.read(Needs::Tcp, "keep_alive_time", values::tcp_seconds),
        keep_alive_interval: reader.read(Needs::Tcp, "keep_alive_interval", values::tcp_seconds),
        keep_alive_probes: reader
            .read(Needs::Tcp, "keep_alive_probes", |value| values::number(value, 1..=127)),
        defer_accept: reader.read(Needs::Tcp, "defer_accept", values::tcp_seconds),
        free_bind: reader.read(Needs::Inet, "free_bind", values::boolean),
        transparent: reader.read(Needs::Inet, "transparent", values::boolean),
        bind_ipv6_only: reader.read(Needs::Ipv6, "bind_ipv6_only", ipv6_only).flatten(),
        bind_to_device: reader.read(Needs::Inet, "bind_to_device", device),
        receive_buffer: reader.table.read("receive_buffer", values::size).map(At::value),
        send_buffer: reader.table.read("send_buffer", values::size).map(At::value),
        mark: reader.read(Needs::Inet, "mark", |value| values::number(value, 0..=u32::MAX)),
        priority: reader.read(Needs::Inet, "priority", |value| values::number(value, 0..=priority_max)),
        ip_tos: reader.read(Needs::Inet, "ip_tos", |value| values::number(value, 0..=u8::MAX)),
        ip_ttl: reader.read(Needs::Inet, "ip_ttl", |value| values::number(value, 1..=u8::MAX)),
        pass_credentials: reader.read(Needs::Unix, "pass_credentials", values::boolean),
        pass_security: reader.read(Needs::Unix, "pass_security", values::boolean),
        broadcast: reader.read(Needs::Udp, "broadcast", values::boolean),
        tcp_congestion: reader.read(Needs::Tcp, "tcp_congestion", algorithm),
    };
    if options.keep_alive == Some(false) {
        for key in ["keep_alive_time", "keep_alive_interval", "keep_alive_probes"] {
            if let Some((_, _, span)) = reader.needs.iter().find(|(_, taken, _)| *taken == key) {
                let flaw = Flaw::new(
                    format!("`{key}` contradicts `keep_alive = false`"),
                    "ignored without keep-alive",
                );
                reader.table.problems().conclude(span.clone(), flaw);
            }
        }
    }
    options
}

/// Reads whether each connection has a process of its own, and how many there may be.
fn accept(reader: &mut Reader<'_>) -> Option<Accept> {
    let accept = reader.read(Needs::Listening, "accept", values::boolean);
    let count = |value: &DeValue<'_>| values::number(value, 1..=CONNECTIONS_MAX);
    let most = reader.read(Needs::Listening, "max_connections", count);
    let of_one_source = reader.read(Needs::Listening, "max_connections_per_source", count);
    if accept == Some(true) {
        let max_connections = most.unwrap_or(CONNECTIONS);
        return Some(Accept { max_connections, max_connections_per_source: of_one_source });
    }
    for (_, key, span) in reader.needs.iter().filter(|(_, key, _)| key.starts_with("max_connections")) {
        let flaw = Flaw::new(format!("`{key}` is ignored without `accept = true`"), "the workers accept");
        reader.table.problems().conclude(span.clone(), flaw);
    }
    None
}

fn ipv6_only(value: &DeValue<'_>) -> Result<Option<bool>, Flaw> {
    values::choice(value, &[("default", None), ("both", Some(false)), ("ipv6-only", Some(true))])
}

/// Reads an interface's name: `IFNAMSIZ` is 16, the NUL at the end included.
fn device(value: &DeValue<'_>) -> Result<String, Flaw> {
    let name = values::nonempty(value)?;
    let legal = name.len() <= 15 && !name.contains(|c: char| c == '/' || c.is_whitespace());
    if legal {
        Ok(name)
    } else {
        Err(Flaw::new("must be the name of an interface", "at most 15 bytes, no `/`, no blank"))
    }
}

/// Reads an algorithm's name: `TCP_CA_NAME_MAX` is 16, the NUL at the end included.
fn algorithm(value: &DeValue<'_>) -> Result<String, Flaw> {
    let name = values::nonempty(value)?;
    let legal = name.len() <= 15
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    let flaw = Flaw::new("must be the name of an algorithm", "no such name");
    if legal {
        Ok(name)
    } else {
        Err(flaw.help("`sysctl net.ipv4.tcp_available_congestion_control` lists them"))
    }
}

fn is_name_character(c: char) -> bool {
    matches!(c, ' '..='~') && c != ':'
}

fn check_name(name: String) -> Result<String, Flaw> {
    let message = "must be 1 to 255 printable ASCII characters without `:`";
    let label = match name.chars().find(|c| !is_name_character(*c)) {
        Some(bad) => format!("has the character `{}`", bad.escape_debug()),
        None if name.is_empty() => "empty".into(),
        None if name.len() > NAME_MAX => "too long".into(),
        None if matches!(name.as_str(), "unknown" | "stored" | "connection") => {
            let help = "the protocol gives \"unknown\", \"stored\" and \"connection\" meanings of their own";
            return Err(Flaw::new("must not be a reserved name", "reserved").help(help));
        }
        None => return Ok(name),
    };
    Err(Flaw::new(message, label))
}

/// Returns the text of `listen`, with `-` for all that a name may not have.
fn default_name(listen: &str) -> String {
    listen.chars().map(|c| if is_name_character(c) { c } else { '-' }).take(NAME_MAX).collect()
}
