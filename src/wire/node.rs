//! The channel between a Node program and whoever plays its cluster's primary: a JSON value a line, in both directions.
//!
//! A Node program that finds `NODE_CHANNEL_FD` and `NODE_UNIQUE_ID` in its environment behaves as a worker of Node's
//! `cluster`: it does not bind what it listens on but asks for it, and takes what comes as `SCM_RIGHTS` beside the answer
//! (docs/protocols.md). What this module does not know is an application's own message, and means nothing here.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::core::spec::{SocketAddress, SocketKind, SocketOptions, SocketSpec};

/// The longest line that is understood, in bytes; an application's own messages may be longer, and are skipped.
pub const MAX_LINE: usize = 64 * 1024;

/// The queue that Node asks for where the program does not say (`net.Server.listen`).
const USUAL_BACKLOG: u32 = 511;

/// `UV_TCP_IPV6ONLY` and `UV_UDP_IPV6ONLY` of uv.h.
const IPV6_ONLY: u64 = 1;

/// What a worker says.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// It wants a socket.
    Query(Query),
    /// It listens.
    Listening,
    /// It closed the socket that it got under this key.
    Closed(String),
    /// It disconnects by itself, and waits for an answer to this number.
    Leaves(u64),
    /// It sent a descriptor of its own, and sends nothing more before it hears that it arrived.
    Descriptor,
    /// The descriptor beside our answer did not arrive.
    NotArrived,
    /// Anything else.
    Other,
}

/// What a worker wants a socket for.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// What the answer has to name.
    pub seq: u64,
    /// What it wants.
    pub place: Place,
    /// Which of several at the same place in the program; it counts for port 0 alone.
    pub index: u64,
    /// The length of its queue that the worker sets when it listens.
    pub backlog: u32,
    /// Whether no other worker may have it.
    pub exclusive: bool,
    /// What all workers are to have in common beside the socket, such as the keys of TLS tickets; the first one's is all's.
    pub data: Value,
}

/// Where a worker wants to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// At an address.
    At(Box<SocketSpec>),
    /// At all addresses, IPv6 and IPv4, or where there is no IPv6 at all IPv4 ones.
    Everywhere {
        /// The port.
        port: u16,
        /// The length of its queue.
        backlog: u32,
    },
    /// It wants a descriptor that it has inherited.
    Inherited(i32),
    /// Nowhere that can be: this error number says why.
    Nowhere(i32),
}

/// A line as it comes. What is asked for is of any type, as Node passes on what the program gave it: `listen(80, callback)`
/// has `false` for a backlog, and the port of a datagram socket may be a text.
#[derive(Deserialize)]
struct Wire {
    cmd: Option<String>,
    act: Option<String>,
    #[serde(default)]
    seq: u64,
    key: Option<String>,
    #[serde(default)]
    data: Value,
    #[serde(default)]
    address: Value,
    #[serde(default)]
    port: Value,
    #[serde(default, rename = "addressType")]
    address_type: Value,
    #[serde(default)]
    fd: Value,
    #[serde(default)]
    flags: Value,
    #[serde(default)]
    backlog: Value,
    #[serde(default)]
    index: Value,
    /// By our own module alone: Node binds such sockets by itself.
    #[serde(default)]
    exclusive: Value,
}

/// The most that a worker may have kept with a socket, in bytes of JSON, and how deep it may be nested.
const MAX_DATA: usize = 4096;
const MAX_DEPTH: usize = 32;

fn is_small(data: &Value) -> bool {
    fn depth(value: &Value) -> usize {
        let below = match value {
            Value::Array(values) => values.iter().map(depth).max(),
            Value::Object(values) => values.values().map(depth).max(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => return 0,
        };
        1 + below.unwrap_or(0)
    }
    depth(data) <= MAX_DEPTH && data.to_string().len() <= MAX_DATA
}

impl Said {
    /// Reads a line, without its newline.
    pub fn parse(line: &[u8]) -> Self {
        let Ok(wire) = serde_json::from_slice::<Wire>(line) else { return Self::Other };
        match (wire.cmd.as_deref(), wire.act.as_deref()) {
            (Some("NODE_HANDLE"), _) => Self::Descriptor,
            (Some("NODE_HANDLE_NACK"), _) => Self::NotArrived,
            // It is kept and written down for as long as the socket: a program of Node's sends a few hundred bytes, if any.
            (Some("NODE_CLUSTER"), Some("queryServer")) if !is_small(&wire.data) => Self::Other,
            (Some("NODE_CLUSTER"), Some("queryServer")) => Self::Query(Query {
                seq: wire.seq,
                place: wire.place(),
                index: if wire.is_any_port() { number(&wire.index).unwrap_or(0) } else { 0 },
                backlog: wire.backlog(),
                exclusive: wire.exclusive == Value::Bool(true),
                data: wire.data,
            }),
            (Some("NODE_CLUSTER"), Some("listening")) => Self::Listening,
            (Some("NODE_CLUSTER"), Some("exitedAfterDisconnect")) => Self::Leaves(wire.seq),
            (Some("NODE_CLUSTER"), Some("close")) => wire.key.map_or(Self::Other, Self::Closed),
            _ => Self::Other,
        }
    }
}

impl Wire {
    fn backlog(&self) -> u32 {
        number(&self.backlog).filter(|backlog| *backlog > 0).unwrap_or(USUAL_BACKLOG)
    }

    fn is_any_port(&self) -> bool {
        matches!(self.place(), Place::Everywhere { port: 0, .. })
            || matches!(self.place(), Place::At(spec) if matches!(spec.address, SocketAddress::Inet(at) if at.port() == 0))
    }

    fn place(&self) -> Place {
        if let Some(fd) = number(&self.fd).filter(|fd: &i32| *fd >= 0) {
            return Place::Inherited(fd);
        }
        let kind = match self.address_type.as_str() {
            Some("udp4" | "udp6") => SocketKind::Datagram,
            _ => SocketKind::Stream,
        };
        let backlog = self.backlog();
        // dgram has the kernel choose a port where the program does not.
        let none = if kind == SocketKind::Datagram { 0 } else { -1 };
        let port: i64 = number(&self.port).unwrap_or(none);
        let Ok(port) = u16::try_from(port) else {
            let path = self.address.as_str().map(PathBuf::from).filter(|path| path.is_absolute());
            return match path {
                Some(path) if port < 0 => Place::at(SocketAddress::Path(path), kind, Some(backlog), None),
                _ => Place::Nowhere(libc::EINVAL),
            };
        };
        let address = self.address.as_str().filter(|address| !address.is_empty());
        let address = match (address, self.address_type.as_str()) {
            (Some(address), _) => address,
            (None, Some("udp4")) => "0.0.0.0",
            (None, Some("udp6")) => "::",
            (None, _) => return Place::Everywhere { port, backlog },
        };
        let Some(address) = internet(address, port) else { return Place::Nowhere(libc::EINVAL) };
        // Node asks for both IP versions unless it says otherwise, whatever the kernel's own default is.
        let is_ipv6_only = address.is_ipv6().then_some(number(&self.flags).unwrap_or(0) & IPV6_ONLY != 0);
        let backlog = (kind == SocketKind::Stream).then_some(backlog);
        Place::at(SocketAddress::Inet(address), kind, backlog, is_ipv6_only)
    }
}

impl Place {
    /// All addresses of one IP version, or with IPv6 of both.
    pub fn everywhere(is_ipv6: bool, port: u16, backlog: u32) -> Box<SocketSpec> {
        let ip = if is_ipv6 { IpAddr::from(Ipv6Addr::UNSPECIFIED) } else { IpAddr::from([0; 4]) };
        let address = SocketAddress::Inet(SocketAddr::new(ip, port));
        specification(address, SocketKind::Stream, Some(backlog), is_ipv6.then_some(false))
    }

    fn at(
        address: SocketAddress,
        kind: SocketKind,
        backlog: Option<u32>,
        bind_ipv6_only: Option<bool>,
    ) -> Self {
        Self::At(specification(address, kind, backlog, bind_ipv6_only))
    }
}

fn specification(
    address: SocketAddress,
    kind: SocketKind,
    backlog: Option<u32>,
    bind_ipv6_only: Option<bool>,
) -> Box<SocketSpec> {
    let listen = address.to_string();
    let options = SocketOptions { backlog, bind_ipv6_only, non_blocking: true, ..SocketOptions::default() };
    Box::new(SocketSpec { name: listen.replace(':', "-"), listen, address, kind, options, accept: None })
}

/// Reads a number, or a text that is one.
fn number<T: TryFrom<i64>>(value: &Value) -> Option<T> {
    let number = value.as_i64().or_else(|| value.as_str()?.parse().ok())?;
    T::try_from(number).ok()
}

/// Reads an address as Node writes it, an IPv6 one perhaps with the number of its link.
fn internet(address: &str, port: u16) -> Option<SocketAddr> {
    match address.parse::<IpAddr>() {
        Ok(ip) => Some(SocketAddr::new(ip, port)),
        Err(_) => format!("[{address}]:{port}").parse().ok(),
    }
}

/// How a worker drains. Node does not read this; the lines that are loaded before the program do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// How long idle connections stay open.
    pub linger: Duration,
    /// How long the worker has until its drain deadline.
    pub timeout: Duration,
}

/// Writes a length of time as JavaScript counts it.
fn milliseconds(length: Duration) -> u64 {
    length.as_millis().try_into().unwrap_or(u64::MAX)
}

/// What is said to a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer<'a> {
    /// Its socket comes beside this line.
    Socket {
        /// The number of its query.
        seq: u64,
        /// What the socket is called from now on.
        key: &'a str,
        /// What all workers have in common.
        data: &'a Value,
        /// Whether it is for datagrams.
        is_datagram: bool,
    },
    /// There is no socket: this error number says why.
    NoSocket {
        /// The number of its query.
        seq: u64,
        /// The error, positive as errno(3) has it.
        errno: i32,
    },
    /// That it leaves by itself has been taken note of.
    Noted {
        /// The number of what it said.
        seq: u64,
        /// How it is to drain.
        drain: Drain,
    },
    /// Its descriptor has arrived.
    Arrived,
    /// It is to stop listening, to finish what it has, and to end.
    Disconnect(Drain),
    /// A message for the application, as `process.on('message')` has it: JSON without a newline.
    Message(&'a str),
}

impl Answer<'_> {
    /// Writes the line, with its newline.
    pub fn to_line(&self) -> Vec<u8> {
        let value = match self {
            Self::Socket { seq, key, data, is_datagram } => json!({
                "cmd": "NODE_HANDLE",
                "type": if *is_datagram { "dgram.Native" } else { "net.Native" },
                "msg": { "cmd": "NODE_CLUSTER", "ack": seq, "key": key, "errno": null, "data": data },
            }),
            Self::NoSocket { seq, errno } => json!({
                "cmd": "NODE_CLUSTER", "ack": seq, "key": format!("none-{seq}"), "errno": -errno, "data": null,
            }),
            Self::Noted { seq, drain: Drain { linger, timeout } } => json!({
                "cmd": "NODE_CLUSTER", "ack": seq, "linger": milliseconds(*linger), "timeout": milliseconds(*timeout),
            }),
            Self::Arrived => json!({ "cmd": "NODE_HANDLE_ACK" }),
            Self::Disconnect(Drain { linger, timeout }) => json!({
                "cmd": "NODE_CLUSTER", "act": "disconnect", "seq": 0, "linger": milliseconds(*linger),
                "timeout": milliseconds(*timeout),
            }),
            // As its sender wrote it: the value itself might not hold a large number, or the order of the keys.
            Self::Message(json) => return format!("{json}\n").into_bytes(),
        };
        let mut line = value.to_string().into_bytes();
        line.push(b'\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(fields: &str) -> Place {
        let line = format!(r#"{{"cmd":"NODE_CLUSTER","act":"queryServer","seq":1,{fields}}}"#);
        match Said::parse(line.as_bytes()) {
            Said::Query(Query { place, .. }) => place,
            other => panic!("{other:?}"),
        }
    }

    fn spec(fields: &str) -> SocketSpec {
        match place(fields) {
            Place::At(spec) => *spec,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_query_as_node_20_writes_it() {
        let line = r#"{"cmd":"NODE_CLUSTER","act":"queryServer","index":0,"data":null,"address":"127.0.0.1","port":1337,"addressType":4,"flags":0,"backlog":0,"seq":7}"#;
        let Said::Query(query) = Said::parse(line.as_bytes()) else { panic!("no query") };
        assert_eq!((query.seq, query.index, &query.data), (7, 0, &Value::Null));
        let Place::At(spec) = query.place else { panic!("{:?}", query.place) };
        assert_eq!((spec.listen.as_str(), spec.kind), ("127.0.0.1:1337", SocketKind::Stream));
        assert_eq!((spec.options.backlog, spec.options.bind_ipv6_only), (Some(511), None));
    }

    #[test]
    fn every_form_of_listen_has_its_place() {
        assert_eq!(
            place(r#""address":null,"port":80,"addressType":4,"backlog":9"#),
            Place::Everywhere { port: 80, backlog: 9 }
        );
        assert_eq!(spec(r#""address":"::","port":80,"addressType":6"#).options.bind_ipv6_only, Some(false));
        let only = spec(r#""address":"::1","port":80,"addressType":6,"flags":1"#);
        assert_eq!((only.listen.as_str(), only.options.bind_ipv6_only), ("[::1]:80", Some(true)));
        let path = spec(r#""address":"/run/web.sock","port":-1,"addressType":-1"#);
        assert_eq!(path.address, SocketAddress::Path("/run/web.sock".into()));
        let udp = spec(r#""address":"0.0.0.0","port":53,"addressType":"udp4","fd":-1"#);
        assert_eq!((udp.kind, udp.options.backlog), (SocketKind::Datagram, None));
        assert_eq!(place(r#""fd":3,"port":null,"address":null,"addressType":null"#), Place::Inherited(3));
    }

    #[test]
    fn what_node_passes_on_as_the_program_gave_it_is_understood() {
        let callback = spec(r#""address":"127.0.0.1","port":80,"addressType":4,"flags":0,"backlog":false"#);
        assert_eq!((callback.listen.as_str(), callback.options.backlog), ("127.0.0.1:80", Some(511)));
        let text = spec(r#""address":"127.0.0.1","port":"53","addressType":"udp4","fd":-1"#);
        assert_eq!((text.listen.as_str(), text.kind), ("127.0.0.1:53", SocketKind::Datagram));
        assert_eq!(
            place(r#""address":[],"port":80,"backlog":{},"flags":"x","index":null,"fd":null"#),
            Place::Everywhere { port: 80, backlog: 511 }
        );
    }

    #[test]
    fn what_cannot_be_listened_on_has_an_error() {
        for fields in [
            r#""address":"relative.sock","port":-1"#,
            r#""address":"no address","port":80"#,
            r#""address":"127.0.0.1","port":70000"#,
            r#""port":-1"#,
            "\"x\":1",
        ] {
            assert_eq!(place(fields), Place::Nowhere(libc::EINVAL), "{fields}");
        }
    }

    #[test]
    fn the_rest_is_told_apart() {
        let said = |line: &str| Said::parse(line.as_bytes());
        assert_eq!(said(r#"{"cmd":"NODE_CLUSTER","act":"online","seq":0}"#), Said::Other);
        assert_eq!(said(r#"{"cmd":"NODE_CLUSTER","act":"listening","port":1}"#), Said::Listening);
        assert_eq!(said(r#"{"cmd":"NODE_CLUSTER","act":"close","key":"k"}"#), Said::Closed("k".into()));
        assert_eq!(said(r#"{"cmd":"NODE_CLUSTER","act":"exitedAfterDisconnect","seq":4}"#), Said::Leaves(4));
        assert_eq!(said(r#"{"cmd":"NODE_HANDLE","type":"net.Socket","msg":1}"#), Said::Descriptor);
        assert_eq!(said(r#"{"cmd":"NODE_HANDLE_ACK"}"#), Said::Other);
        for line in
            ["", "7", "\"text\"", "[1]", "{\"cmd\":7}", "{", "{\"cmd\":\"NODE_CLUSTER\",\"act\":\"close\"}"]
        {
            assert_eq!(said(line), Said::Other, "{line}");
        }
    }

    #[test]
    fn answers_are_as_node_reads_them() {
        let text = |answer: Answer<'_>| String::from_utf8(answer.to_line()).unwrap();
        let data = json!({ "ticketKeys": "00ff" });
        let socket = Answer::Socket { seq: 3, key: "k", data: &data, is_datagram: false };
        let read: Value = serde_json::from_str(&text(socket)).unwrap();
        assert_eq!(read["msg"], json!({"cmd":"NODE_CLUSTER","ack":3,"key":"k","errno":null,"data":data}));
        let refused: Value = serde_json::from_str(&text(Answer::NoSocket { seq: 3, errno: 98 })).unwrap();
        assert_eq!((&refused["ack"], &refused["errno"]), (&json!(3), &json!(-98)));
        let (linger, timeout) = (Duration::from_secs(2), Duration::from_millis(2500));
        let drain: Value =
            serde_json::from_str(&text(Answer::Disconnect(Drain { linger, timeout }))).unwrap();
        let told = json!({"cmd":"NODE_CLUSTER","act":"disconnect","seq":0,"linger":2000,"timeout":2500});
        assert_eq!(drain, told);
        assert_eq!(text(Answer::Message("[1.50]")), "[1.50]\n");
    }
}
