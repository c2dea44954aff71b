//! Where a socket is bound, and what it carries.

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where a socket is bound.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SocketAddress {
    /// An IPv4 or IPv6 address with its scope id, and a port; TCP or UDP by the [`SocketKind`].
    Inet(SocketAddr),
    /// A UNIX socket with a path of at most 107 bytes.
    Path(#[serde(with = "crate::path_text")] PathBuf),
    /// A UNIX socket with an abstract name of at most 107 bytes: without the leading NUL, which a service file writes as `@`.
    Abstract(#[serde(with = "crate::path_text")] OsString),
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Path(path) => path.display().fmt(f),
            Self::Abstract(name) => write!(f, "@{}", name.display()),
        }
    }
}

/// What a socket carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are socket(2)'s own")]
pub enum SocketKind {
    Stream,
    Datagram,
    Seqpacket,
}

impl SocketKind {
    /// Returns whether such a socket queues connections, and so needs listen(2).
    pub fn is_listened_on(self) -> bool {
        matches!(self, Self::Stream | Self::Seqpacket)
    }
}

impl fmt::Display for SocketKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stream => "stream",
            Self::Datagram => "datagram",
            Self::Seqpacket => "seqpacket",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn an_address_is_written_as_text_and_comes_back_where_it_is_none() {
        let written = |address: &SocketAddress| {
            let text = serde_json::to_string(address).unwrap();
            assert_eq!(serde_json::from_str::<SocketAddress>(&text).unwrap(), *address);
            text
        };
        assert_eq!(written(&SocketAddress::Abstract("a".into())), r#"{"Abstract":"a"}"#);
        assert_eq!(written(&SocketAddress::Path("/a".into())), r#"{"Path":"/a"}"#);
        assert_eq!(written(&SocketAddress::Inet("[::1]:80".parse().unwrap())), r#"{"Inet":"[::1]:80"}"#);
        written(&SocketAddress::Abstract(OsStr::from_bytes(b"\xff").into()));
    }
}
