//! What to change in a service that does not come up: from its file alone, and from how a worker failed.
//!
//! Each text names the cause and the next step. docs/troubleshooting.md has the same in full.

use std::path::Path;

use super::notice::Exit;
use super::spec::{Protocol, Readiness, ServiceSpec, SocketAddress};

/// How a worker failed to become ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure<'a> {
    /// It runs, and was not ready in time or has said nothing for a while.
    NotReady,
    /// It ended.
    Ended(&'a Exit),
}

/// Programs that start the server as a child of their own.
const LAUNCHERS: [&str; 7] = ["npm", "npx", "yarn", "pnpm", "bunx", "poetry", "pipenv"];

/// What an error says if a program binds an address that is taken, in lower case.
const ADDRESS_TAKEN: [&str; 3] = ["eaddrinuse", "address already in use", "address in use"];

/// What an error says if a program uses a descriptor that it was not passed, in lower case.
const NO_DESCRIPTOR: [&str; 6] =
    ["ebadf", "bad file descriptor", "listen_fds", "enotsock", "not a socket", "non-socket"];

/// Returns what a service file alone suggests: a sentence for each thing that rarely is what its author wants.
#[must_use]
pub fn of_file(spec: &ServiceSpec) -> Vec<String> {
    let mut advice: Vec<_> = launcher(spec).into_iter().collect();
    if spec.process.protocol == Protocol::Node {
        return advice;
    }
    advice.extend(node(spec).filter(|_| !spec.sockets.is_empty()));
    if spec.sockets.is_empty() {
        advice.push(format!("{NO_SOCKET}; {ADD_SOCKET}"));
    }
    advice
}

const NO_SOCKET: &str = "the file has no [[socket]], so workers are passed no socket";
const ADD_SOCKET: &str = "for a service that listens, add [[socket]] with listen = \"127.0.0.1:8080\"";

/// Returns what to change so that the next worker becomes ready; `None` if nothing is known. `stderr` is the end of what the worker wrote,
/// as far as it was seen, and `bound` an address that the worker listens on by itself.
#[must_use]
pub fn of_failure(
    spec: &ServiceSpec,
    failure: Failure<'_>,
    stderr: &[String],
    bound: Option<&str>,
) -> Option<String> {
    let says = |words: &[&str]| {
        stderr.iter().rev().find(|line| words.iter().any(|word| line.to_lowercase().contains(word)))
    };
    if let Failure::Ended(Exit::NotExecuted(_)) = failure {
        let instead = "put what is missing there, and a worker starts by itself, or correct `command`";
        return Some(one_word(spec).unwrap_or_else(|| instead.into()));
    }
    if let Some(address) = bound {
        return Some(binds_itself(spec, Some(address)));
    }
    if let Some(line) = says(&ADDRESS_TAKEN) {
        return Some(binds_itself(spec, socket_named_in(spec, line)));
    }
    let by_command = launcher(spec).or_else(|| node(spec));
    if by_command.is_some() {
        return by_command;
    }
    if spec.sockets.is_empty() && says(&NO_DESCRIPTOR).is_some() {
        return Some(format!("{NO_SOCKET}; {ADD_SOCKET}"));
    }
    match (failure, spec.process.protocol, spec.policy.readiness) {
        (Failure::Ended(Exit::Status(0)), ..) => Some(
            "a worker runs in the foreground until it is told to drain: if this program goes to the background, use its option \
             for the foreground (such as -F, --foreground or --no-daemon)"
                .into(),
        ),
        (Failure::NotReady, Protocol::Notify, Readiness::Notify) => {
            Some("if it never says READY=1: `protocol = \"plain\"` in [service]".into())
        }
        (Failure::NotReady, Protocol::Node, Readiness::Notify) => {
            Some("a Node program is ready as soon as it calls `listen()`".into())
        }
        (Failure::Ended(Exit::Status(_)), ..) => Some(format!(
            "its output says why{}; to see it by hand: cd {} && {}",
            own_port(spec),
            spec.process.directory.display(),
            spec.process.command.join(" ")
        )),
        (Failure::NotReady, _, Readiness::Accepting(_)) => Some(
            "if it needs longer to load: a longer `timeout` in [ready]; if it serves though no process of it waits in accept, poll, select \
             or epoll: when = \"settled\""
                .into(),
        ),
        (Failure::NotReady | Failure::Ended(_), ..) => None,
    }
}

/// Returns what a worker has yet to do that has said nothing, in the words of its protocol.
#[must_use]
pub fn silence(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Notify | Protocol::Plain => "has not said READY=1",
        Protocol::Node => "has not called `listen()`",
    }
}

/// Returns the name of the program of a command, without its folder.
fn program(spec: &ServiceSpec) -> &str {
    let word = spec.process.command.first().map_or("", String::as_str);
    Path::new(word).file_name().and_then(|name| name.to_str()).unwrap_or(word)
}

fn launcher(spec: &ServiceSpec) -> Option<String> {
    let program = program(spec);
    LAUNCHERS.contains(&program).then(|| {
        format!(
            "`{program}` starts the server as a child, which gets neither the sockets nor the signals: name the server itself in \
             `command`, such as [\"node\", \"index.js\"] with protocol = \"node\", or [\".venv/bin/gunicorn\", …]"
        )
    })
}

fn node(spec: &ServiceSpec) -> Option<String> {
    let is_node = spec.process.protocol != Protocol::Node && matches!(program(spec), "node" | "nodejs");
    is_node.then(|| {
        "a Node program that calls `listen(PORT)` needs protocol = \"node\" in [service]; without it the program must listen on \
         { fd: 3 }"
            .into()
    })
}

/// Returns what to write instead of a command of which all words stand in the first one.
#[must_use]
pub fn one_word(spec: &ServiceSpec) -> Option<String> {
    let word = spec.process.command.first().filter(|word| word.contains(char::is_whitespace))?;
    let needs_shell = word.contains(['&', '|', ';', '<', '>', '$', '*']);
    let words = if needs_shell {
        format!("[\"sh\", \"-c\", \"{word}\"]")
    } else {
        let words: Vec<_> = word.split_whitespace().map(|word| format!("\"{word}\"")).collect();
        format!("[{}]", words.join(", "))
    };
    Some(format!("there is no shell, and each word is an element of its own: command = {words}"))
}

fn binds_itself(spec: &ServiceSpec, address: Option<&str>) -> String {
    // An error need not say which address is taken. It most likely is one that liveswap holds.
    let named = match (address, spec.sockets.first()) {
        (Some(address), _) => address.to_owned(),
        (None, Some(socket)) => format!("an address, probably {},", socket.listen),
        (None, None) => "an address that is taken".into(),
    };
    let address = address.or(spec.sockets.first().map(|socket| socket.listen.as_str()));
    let held = spec.sockets.iter().position(|socket| Some(socket.listen.as_str()) == address);
    let instead = if matches!(program(spec), "node" | "nodejs") && spec.process.protocol != Protocol::Node {
        "write protocol = \"node\" in [service]"
    } else {
        "have it take the socket that it is passed (LISTEN_FDS)"
    };
    match held {
        Some(place) => {
            format!(
                "it binds {named} itself; liveswap holds that socket and passes it as descriptor {}: {instead}",
                place + 3
            )
        }
        None if spec.sockets.is_empty() => {
            format!(
                "it binds {named} itself: {ADD_SOCKET} and {instead}, or upgrade it with strategy = \"recreate\""
            )
        }
        None => format!("it binds {named} itself, which is no [[socket]] of the file: {instead}"),
    }
}

/// Says that liveswap holds an address that the command names, as its program may bind it.
fn own_port(spec: &ServiceSpec) -> String {
    let words = spec.process.command.iter().skip(1);
    match words.into_iter().find_map(|word| socket_named_in(spec, word)) {
        Some(listen) => format!(" (liveswap holds {listen}; a program that binds it itself cannot)"),
        None => String::new(),
    }
}

/// Finds the socket of the file whose port or path stands in a line.
fn socket_named_in<'a>(spec: &'a ServiceSpec, line: &str) -> Option<&'a str> {
    let has_number =
        |number: u16| line.split(|c: char| !c.is_ascii_digit()).any(|run| run == number.to_string());
    let is_named = |address: &SocketAddress| match address {
        SocketAddress::Inet(address) => has_number(address.port()),
        SocketAddress::Path(path) => path.to_str().is_some_and(|path| line.contains(path)),
        SocketAddress::Abstract(name) => name.to_str().is_some_and(|name| line.contains(name)),
    };
    spec.sockets.iter().find(|socket| is_named(&socket.address)).map(|socket| socket.listen.as_str())
}
