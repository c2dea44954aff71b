//! The command line of the liveswap that was written in Node: `-s` runs a service, the other flags speak to it by TCP.
//!
//! An answer is printed as it was then, `{ cmd: 'upgrade', value: 'OK' }`. A failure is told on standard error too.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{ArgGroup, CommandFactory, Parser};

use super::by_address::At;
use super::connection::{Connection, ConnectionError, is_quick};
use super::options::{DEFAULT_ADDRESS, DEFAULT_PORT, Options, found};
use super::output;
use super::patient::{PATIENCE, Patient, awaited_line, late, next_line};
use super::report::{self, Status};
use super::run::{Logging, look_after_manager, report};
use super::upgrade::named;
use crate::daemon::runtime::stranger_at;
use crate::wire::control::{Command, Line, MAX_ANSWER, MAX_FIRST_LINE, Message, NamedTarget, Reply, Request};
use crate::wire::lines::Lines;
use crate::wire::printable::is_printable;
use crate::wire::secret::Secret;

/// Run a Node program, or any other, and swap its code
#[derive(Debug, Parser)]
#[command(name = "liveswap", disable_version_flag = true, group = ArgGroup::new("action").required(true), args_override_self = true)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
pub struct Original {
    /// Run a Node program (.js, .cjs, .mjs, a package's folder) or any executable
    #[arg(short, long, value_name = "TARGET", group = "action", help_heading = "One of")]
    start: Option<String>,
    /// Upgrade to the code at PATH, or to that of the same path again
    #[arg(short, long, value_name = "PATH", num_args = 0..=1, default_missing_value = "", group = "action", help_heading = "One of")]
    upgrade: Option<OsString>,
    /// Kill all workers at once and start new ones
    #[arg(short, long, group = "action", help_heading = "One of")]
    kill: bool,
    /// Kill all workers and end the manager
    #[arg(short, long, group = "action", help_heading = "One of")]
    die: bool,
    /// Send a text to every worker
    #[arg(
        short,
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        group = "action",
        help_heading = "One of"
    )]
    message: Option<String>,
    /// Print the version
    #[arg(short, group = "action", help_heading = "One of")]
    version: bool,
    /// The port of the control server, 3000 unless given. With -s the control server of port 3000 closes where the application listens
    /// there; the other flags then find the manager from the folder in which it was started
    #[arg(short, long)]
    port: Option<u16>,
    /// The IP address of the control server
    #[arg(short, long, default_value = DEFAULT_ADDRESS)]
    address: String,
    /// The file with the token that the control server asks for; without it the manager makes one, which its user and root
    /// need not name
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// With -s: let root and this user speak to the control server without a token, for clients that cannot show one
    #[arg(long)]
    local_owner: bool,
    /// With -s: how many workers; as many as there are CPUs unless given, and with 0
    #[arg(short, long, value_name = "WORKERS")]
    forks: Option<u32>,
    /// With -s: the file that records which code serves, to begin with it the next time
    #[arg(short = 'H', long, value_name = "FILE")]
    head: Option<PathBuf>,
    /// With -s: stop the old workers before new ones start
    #[arg(short = 'z', long = "zero-downtime-off")]
    recreate: bool,
    /// With -s: a Node module, or any executable, that runs before each upgrade and may refuse it or name another path
    #[arg(long, value_name = "MODULE")]
    pre_upgrade: Option<PathBuf>,
    #[command(flatten)]
    logging: Logging,
}

/// Whether a command line is one of these, by its first word: everything else begins with a command.
pub fn is_meant(first: &str) -> bool {
    first.starts_with('-') && !matches!(first, "-h" | "--help" | "-V" | "--version")
}

/// Whether a command line runs a manager.
pub fn starts(words: impl IntoIterator<Item = String>) -> bool {
    words.into_iter().any(|word| word.starts_with("--start") || word.starts_with("-s"))
}

/// Does what the flags say.
pub fn run(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let words: Vec<_> = words.into_iter().collect();
    // Whoever asks for help with a flag does not know yet what it wants.
    if words.iter().any(|word| word == "--help" || word == "-h") {
        let _ = output::lines(&command().render_help().to_string());
        return Status::Done.into();
    }
    let flags: Original = match output::parse(words) {
        Ok(flags) => flags,
        Err(status) => return status,
    };
    let (command, value) = match &flags {
        Original { version: true, .. } => {
            let _ = output::line(env!("CARGO_PKG_VERSION"));
            return Status::Done.into();
        }
        Original { start: Some(target), .. } => {
            flags.logging.init();
            if let Some(ended) = look_after_manager() {
                return ended;
            }
            return report(flags.options(target).serve());
        }
        Original { upgrade: Some(path), .. } => match target(Path::new(path)) {
            Ok(target) => (Command::Upgrade { target }, "upgrade"),
            Err(error) => return answer("upgrade", &error.to_string(), false, None),
        },
        Original { kill: true, .. } => (Command::Kill, "kill"),
        Original { die: true, .. } => (Command::Die, "die"),
        Original { message: Some(text), .. } => (Command::Message(Message::text(text)), "message"),
        // The flags are a group of which one is required.
        _ => return Status::Usage.into(),
    };
    match flags.ask(command) {
        Ok(reply) => answer(value, &reply.value, reply.ok, reply.hint.as_deref()),
        Err(error) => answer(value, &error.to_string(), false, None),
    }
}

impl Original {
    fn options(&self, target: &str) -> Options {
        let mut options = Options::new(target).address(&self.address).zero_downtime(!self.recreate);
        if let Some(port) = self.port {
            options = options.port(port);
        }
        if let Some(forks) = self.forks {
            options = options.forks(forks);
        }
        if let Some(head) = &self.head {
            options = options.head(head);
        }
        if let Some(module) = &self.pre_upgrade {
            options = options.pre_upgrade(module);
        }
        if let Some(token) = &self.token_file {
            options = options.token_file(token);
        }
        options.local_owner(self.local_owner)
    }

    /// Asks the control server, and waits for its answer.
    fn ask(&self, command: Command) -> io::Result<Reply> {
        let address = if self.address == "localhost" { DEFAULT_ADDRESS } else { &self.address };
        let ip: IpAddr =
            address.parse().map_err(|_| io::Error::other(format!("{address} is not an IP address")))?;
        let server = SocketAddr::new(ip, self.port.unwrap_or(DEFAULT_PORT));
        // The folder says which manager is meant where the application has the default port.
        let folder = self.port.is_none().then(|| std::env::current_dir().ok()).flatten();
        // By its control socket nobody else can take the manager's place, as another program can that has got its port.
        match Connection::at(server, folder.as_deref()) {
            At::Manager(connection) => by_socket(*connection, command),
            At::Elsewhere(folders) => Err(listens_instead(server, &folders, self.port.is_some())),
            At::Nobody => self.ask_by_tcp(server, command),
        }
    }

    /// Asks what listens at an address.
    fn ask_by_tcp(&self, server: SocketAddr, command: Command) -> io::Result<Reply> {
        let token = self.token_file.as_deref().map(read_token).transpose()?;
        let (token, trusted) = token.unzip();
        let is_secret = token.is_some() || matches!(command, Command::Message(_));
        let make_sure = || match stranger_at(server, trusted).filter(|_| is_secret) {
            Some(user) => Err(io::Error::other(format!("user {user} listens at {server}"))),
            None => Ok(()),
        };
        make_sure()?;
        let stream = TcpStream::connect_timeout(&server, PATIENCE).map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => io::Error::other(format!("connect ECONNREFUSED {server}")),
            _ => error,
        })?;
        // It may have changed hands.
        make_sure()?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let is_quick = is_quick(&command);
        let until = Instant::now() + PATIENCE;
        let mut lines = Lines::new(MAX_ANSWER);
        let write = |line: String| {
            (&stream).write_all((line + "\n").as_bytes()).map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => late(),
                _ => error,
            })
        };
        let mut request = Request { token, ..Request::new(command) };
        let mut line = request.to_line();
        if request.token.is_some() && line.len() > MAX_FIRST_LINE {
            let token = request.token.take();
            line = request.to_line();
            write(Request { token, ..Request::new(Command::Ping) }.to_line())?;
            let answer = next_line(&mut Patient::new(&stream, until), &mut lines)?.unwrap_or_default();
            match Line::parse(&answer) {
                Ok(Line::Reply(reply)) if !reply.ok => return Ok(*reply),
                _ if answer.is_empty() => return Err(unanswered()),
                _ => {}
            }
        }
        write(line)?;
        let line = if is_quick {
            next_line(&mut Patient::new(&stream, until), &mut lines)
        } else {
            awaited_line(&stream, &mut lines)
        };
        let line = line?.unwrap_or_default();
        match Line::parse(&line) {
            Ok(Line::Reply(reply)) => Ok(*reply),
            Ok(Line::Event(_)) | Err(_) if line.is_empty() => Err(unanswered()),
            Ok(Line::Event(_)) | Err(_) => Err(io::Error::other(format!("{server} is no control server"))),
        }
    }
}

/// Asks a manager by its control socket.
fn by_socket(mut connection: Connection, command: Command) -> io::Result<Reply> {
    connection.ask_once(command).map_err(|error| match error {
        ConnectionError::Lost(error) if error.kind() == io::ErrorKind::UnexpectedEof => unanswered(),
        ConnectionError::Lost(error) | ConnectionError::Silent(error) => error,
        ConnectionError::NotAllowed { ref source, .. } => io::Error::other(format!("{error}: {source}")),
        other => io::Error::other(other),
    })
}

/// Says that an application listens where the control server was looked for.
fn listens_instead(server: SocketAddr, folders: &[String], is_typed: bool) -> io::Error {
    let folders = folders.join(" or ");
    let without = if is_typed { " and without -p" } else { "" };
    io::Error::other(format!(
        "the application listens at {server}, and the control server has closed: call this in {folders}{without}"
    ))
}

fn unanswered() -> io::Error {
    io::Error::other("the connection was closed without an answer")
}

/// Returns a token, and the owner of its file, who knows it.
fn read_token(path: &Path) -> io::Result<(Secret, u32)> {
    let failed = |why: &dyn std::fmt::Display| io::Error::other(format!("{}: {why}", path.display()));
    let mut text = Vec::new();
    let mut file = File::open(path).map_err(|error| failed(&error))?;
    let owner = file.metadata().map_err(|error| failed(&error))?.uid();
    file.read_to_end(&mut text).map_err(|error| failed(&error))?;
    Ok((Secret::read(&text).map_err(|why| failed(&why))?, owner))
}

/// Returns the target to upgrade to, where one was named.
fn target(path: &Path) -> io::Result<Option<NamedTarget>> {
    if path.as_os_str().is_empty() {
        return Ok(None);
    }
    // An absolute path does not depend on the folder.
    named(path, |path| found(Path::new("/"), path)).map(Some)
}

/// Prints an answer as Node's `console.log` prints an object.
/// A failure is told on standard error too, with the `hint` that there may be.
fn answer(command: &str, value: &str, ok: bool, hint: Option<&str>) -> ExitCode {
    // What cannot be written is told at the end.
    let _ = output::line(&format!("{{ cmd: {}, value: {} }}", quoted(command), quoted(value)));
    if ok {
        return Status::Done.into();
    }
    report::print(&io::Error::other(format!("{command}: {value}")), hint);
    Status::Failed.into()
}

/// Writes a text as Node's `util.inspect` does: in single quotes, or in others where it has such itself.
fn quoted(text: &str) -> String {
    let quote = ['\'', '"', '`'].into_iter().find(|quote| !text.contains(*quote)).unwrap_or('\'');
    let mut written = String::from(quote);
    for character in text.chars() {
        match character {
            '\n' => written.push_str("\\n"),
            '\r' => written.push_str("\\r"),
            '\t' => written.push_str("\\t"),
            '\\' => written.push_str("\\\\"),
            other if other == quote => written.extend(['\\', other]),
            other if is_printable(other) => written.push(other),
            other if other <= '\u{ff}' => {
                let _ = write!(written, "\\x{:02X}", u32::from(other));
            }
            other => {
                let _ = write!(written, "\\u{{{:X}}}", u32::from(other));
            }
        }
    }
    written.push(quote);
    written
}

/// The definition of this command line, for the manual pages.
pub fn command() -> clap::Command {
    Original::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_as_node_quotes_them() {
        assert_eq!(quoted("OK"), "'OK'");
        assert_eq!(quoted("it's"), "\"it's\"");
        assert_eq!(quoted("it's \"so\""), "`it's \"so\"`");
        assert_eq!(quoted("'\"`"), "'\\'\"`'");
        assert_eq!(quoted("a\nb\\c\u{1b}\u{202e}"), "'a\\nb\\\\c\\x1B\\u{202E}'");
    }

    #[test]
    fn the_flags_are_those_of_always() {
        Original::command().debug_assert();
        let parse = |line: &str| Original::try_parse_from(line.split(' '));
        let flags = parse("liveswap --pre-upgrade pre.js -s app.js -f 7 -p 4000 -a ::1 -H HEAD -z").unwrap();
        assert_eq!((flags.start.as_deref(), flags.forks, flags.port), (Some("app.js"), Some(7), Some(4000)));
        let twice = parse("liveswap -p 1 -u a -z -k -p 2 -z -k").unwrap_err();
        assert!(twice.to_string().contains("cannot be used with"), "{twice}");
        let twice = parse("liveswap -p 1 -k -p 2 -k -a ::1 -a ::2").unwrap();
        assert_eq!((twice.port, twice.address.as_str(), twice.kill), (Some(2), "::2", true));
        assert!(flags.recreate);
        assert_eq!(parse("liveswap -u").unwrap().upgrade, Some(OsString::new()));
        assert_eq!(parse("liveswap -u ./index2.js").unwrap().upgrade, Some("./index2.js".into()));
        assert_eq!(parse("liveswap -m -x").unwrap().message.as_deref(), Some("-x"));
        assert!(parse("liveswap -k -d").is_err());
        assert!(parse("liveswap -p 4000").is_err());
    }

    #[test]
    fn other_command_lines_are_left_alone() {
        assert!(is_meant("-s") && is_meant("--upgrade"));
        assert!(!is_meant("run") && !is_meant("--help") && !is_meant("-V"));
    }
}
