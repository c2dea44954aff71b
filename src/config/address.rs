//! Reads what a socket listens on, and says for near misses what was probably meant.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use toml::de::DeValue;

use super::Origin;
use super::reader::Flaw;
use super::values::nonempty;
use crate::core::spec::SocketAddress;

/// The longest path or abstract name: `sun_path` of unix(7) less one byte, for the NUL after it or before it.
const UNIX_NAME_MAX: usize = 107;

/// An address, and the text it was read from.
#[derive(Debug)]
pub(super) struct Listen {
    pub text: String,
    pub address: SocketAddress,
}

/// Reads the value of `listen`.
pub(super) fn listen(value: &DeValue<'_>, origin: &Origin) -> Result<Listen, Flaw> {
    if let DeValue::Integer(port) = value {
        return Err(Flaw::kind("must be an address", value).help(any_address(port.as_str())));
    }
    let text = nonempty(value)?;
    let address = if let Some(name) = text.strip_prefix('@') {
        abstract_name(name)
    } else if text.starts_with('/') || text.starts_with("./") || text.starts_with("../") {
        path(&text, origin)
    } else {
        text.parse().map(SocketAddress::Inet).map_err(|_| not_an_address(&text))
    }?;
    Ok(Listen { text, address })
}

/// Reads an IP address and a port that is not 0.
pub(super) fn tcp(value: &DeValue<'_>) -> Result<SocketAddr, Flaw> {
    let message = "must be an IP address and a port, such as \"127.0.0.1:3000\"";
    if !matches!(value, DeValue::String(_)) {
        return Err(Flaw::kind(message, value));
    }
    let text = nonempty(value)?;
    if text.starts_with(['/', '.', '@']) {
        let help = "the manager has a control socket of its own, in its runtime directory";
        return Err(Flaw::new(message, "a UNIX socket").help(help));
    }
    let address: SocketAddr = text.parse().map_err(|_| not_an_address(&text))?;
    if address.port() == 0 {
        return Err(Flaw::new("must have a port from 1 to 65535", "nobody could know the port"));
    }
    Ok(address)
}

fn abstract_name(name: &str) -> Result<SocketAddress, Flaw> {
    match name.len() {
        0 => Err(Flaw::new("must have a name after the `@`", "no name")),
        1..=UNIX_NAME_MAX => Ok(SocketAddress::Abstract(name.into())),
        length => Err(too_long("abstract name", length)),
    }
}

fn path(text: &str, origin: &Origin) -> Result<SocketAddress, Flaw> {
    if text.ends_with(['/', '.'])
        && text.rsplit('/').next().is_some_and(|last| matches!(last, "" | "." | ".."))
    {
        return Err(Flaw::new("must be the path of a socket", "this is a folder"));
    }
    let path = origin.absolute(text);
    match path.as_os_str().len() {
        0..=UNIX_NAME_MAX => Ok(SocketAddress::Path(path)),
        length => Err(too_long("absolute path", length)),
    }
}

fn too_long(what: &str, length: usize) -> Flaw {
    let message =
        format!("must not be longer than {UNIX_NAME_MAX} bytes, the kernel's limit for UNIX sockets");
    Flaw::new(message, format!("the {what} has {length} bytes"))
}

/// Says why `text` is no address, by what it resembles.
fn not_an_address(text: &str) -> Flaw {
    let flaw = |label: &str| Flaw::new("must be an address", label);
    if let Some((scheme, rest)) =
        text.split_once("://").or_else(|| text.split_once("unix:").map(|_| ("unix", &text[5..])))
    {
        return flaw("has a scheme").help(match scheme {
            "unix" => format!("write \"{rest}\""),
            _ => format!("write \"{}\", and `type` for what it carries", rest.trim_end_matches('/')),
        });
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return flaw("a port alone").help(any_address(text));
    }
    if text.parse::<Ipv4Addr>().is_ok() {
        return flaw("has no port").help(format!("write \"{text}:8080\""));
    }
    if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse::<Ipv6Addr>() {
        return flaw("has no port").help(format!("write \"[{address}]:8080\""));
    }
    if text.starts_with('[') && text.contains('%') {
        let help = "the interface after the `%` is given by its number, which `ip link` shows";
        return flaw("the scope is not a number").help(help);
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        let help = format!("a path begins with / or ./ (\"./{text}\"), an abstract name with @");
        return flaw("neither address and port nor a path").help(help);
    };
    if port.parse::<u16>().is_err() {
        return flaw("the port is not a number from 0 to 65535");
    }
    if let Ok(address) = host.parse::<Ipv6Addr>() {
        return flaw("an IPv6 address without brackets")
            .help(format!("write \"{}\"", SocketAddr::from((address, port.parse().unwrap_or(0)))));
    }
    match host {
        "" | "*" => flaw("no address before the port").help(any_address(port)),
        "localhost" => flaw("a name")
            .help(format!("names are not looked up; write \"127.0.0.1:{port}\" or \"[::1]:{port}\"")),
        _ if host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') => flaw("not an IPv4 address"),
        _ if host.starts_with('[') => flaw("not an IPv6 address"),
        _ => {
            flaw("a name").help("names are not looked up, since that can block; write the address in digits")
        }
    }
}

/// Shows how a port of all addresses is written.
fn any_address(port: &str) -> String {
    format!(
        "write \"0.0.0.0:{port}\" for IPv4, \"[::]:{port}\" for IPv6 (and IPv4, unless bind_ipv6_only says otherwise)"
    )
}
