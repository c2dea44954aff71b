//! The channel of a Node worker.

use liveswap::core::spec::{SocketAddress, SocketKind};
use liveswap::wire::node::{Answer, Place, Query, Said};
use serde_json::{Value, json};

/// Reads the bytes as a line of a worker, and answers it.
///
/// # Panics
///
/// Where a socket would be bound that cannot be, or that is not what the line says; and where an answer is no line of JSON that names
/// the question.
pub fn check(bytes: &[u8]) {
    let Said::Query(query) = Said::parse(bytes) else { return };
    // In a field that nobody asks for there may be no UTF-8, and a number that is none of JSON's: then there is no second reading.
    let Ok(asked) = serde_json::from_slice::<Value>(bytes) else { return };
    match &query.place {
        Place::At(spec) => {
            match &spec.address {
                SocketAddress::Inet(address) => {
                    let is_datagram = spec.kind == SocketKind::Datagram;
                    let asked = number(&asked["port"]).or(is_datagram.then_some(0));
                    assert_eq!(asked, Some(address.port().into()));
                    assert_eq!(spec.options.bind_ipv6_only.is_some(), address.is_ipv6());
                }
                SocketAddress::Path(path) => assert!(path.is_absolute()),
                SocketAddress::Abstract(name) => {
                    panic!("Node has no abstract names: {}", name.display())
                }
            }
            assert_eq!(spec.listen, spec.address.to_string());
            assert!(!spec.name.contains(':'));
            assert_eq!(
                spec.options.backlog.is_some(),
                spec.kind == SocketKind::Stream || is_path(&spec.address)
            );
        }
        Place::Everywhere { port, backlog } => {
            assert_eq!(number(&asked["port"]), Some((*port).into()));
            assert!(*backlog > 0);
        }
        Place::Inherited(fd) => assert_eq!(number(&asked["fd"]), Some((*fd).into())),
        Place::Nowhere(errno) => assert!(*errno > 0),
    }
    answers(&query);
}

/// A number, or a text that is one, as programs take them from their environment.
fn number(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.parse().ok())
}

fn is_path(address: &SocketAddress) -> bool {
    matches!(address, SocketAddress::Path(_))
}

fn answers(query: &Query) {
    let socket = Answer::Socket { seq: query.seq, key: "a key", data: &query.data, is_datagram: false };
    let said = line(&socket);
    assert_eq!((&said["msg"]["ack"], &said["msg"]["data"]), (&json!(query.seq), &query.data));
    let none = line(&Answer::NoSocket { seq: query.seq, errno: 98 });
    assert_eq!((&none["ack"], &none["errno"]), (&json!(query.seq), &json!(-98)));
}

fn line(answer: &Answer<'_>) -> Value {
    let line = answer.to_line();
    let (end, text) = line.split_last().expect("a line");
    assert!(*end == b'\n' && !text.contains(&b'\n'));
    serde_json::from_slice(text).expect("JSON")
}
