//! The control socket under test: a client of the protocol, and the commands of the program.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::PATIENCE;
use super::manager::{Manager, copy_program};

/// A client that speaks the protocol itself.
pub struct Client {
    stream: BufReader<Box<dyn Wire>>,
}

/// A connection of either family.
trait Wire: Read + Write {
    fn fall_silent(&self);
}

impl Wire for UnixStream {
    fn fall_silent(&self) {
        self.shutdown(Shutdown::Write).expect("shutdown");
    }
}

impl Wire for TcpStream {
    fn fall_silent(&self) {
        self.shutdown(Shutdown::Write).expect("shutdown");
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Manager {
    pub fn control_path(&self) -> PathBuf {
        self.path("run/control.sock")
    }

    /// The token that the manager has made, from its runtime directory.
    pub fn token(&self) -> String {
        fs::read_to_string(self.path("run/token")).expect("the manager's token").trim().to_owned()
    }

    /// Connects to the control socket.
    pub fn client(&self) -> Client {
        let stream = UnixStream::connect(self.control_path()).expect("the control socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        Client { stream: BufReader::new(Box::new(stream)) }
    }

    /// Asks one thing on a connection of its own.
    pub fn ask(&self, line: &str) -> Value {
        let mut client = self.client();
        client.say(line);
        client.hear()
    }

    pub fn command<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_liveswap"));
        command.args(arguments).current_dir(self.path("")).stdin(Stdio::null());
        command.env("RUNTIME_DIRECTORY", self.path("run"));
        command
    }

    /// Runs a command of the program to its end.
    pub fn cli<const N: usize>(&self, arguments: [&str; N]) -> Ended {
        Ended::of(self.begin(arguments))
    }

    /// Begins a command of the program.
    pub fn begin<const N: usize>(&self, arguments: [&str; N]) -> Child {
        let mut command = self.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program")
    }

    /// Puts a new copy of the program in the place of the old one, and has it take over.
    pub fn reexec(&self) {
        let place = self.place();
        copy_program(&self.path("liveswap"));
        self.cli(["reexec"]).assert(0, []);
        self.wait_log(place, ["goes on as the manager"]);
    }

    /// Rewrites the service file and upgrades by the command.
    pub fn cli_upgrade(&self, text: impl std::fmt::Display) -> Ended {
        self.rewrite(text);
        self.cli(["upgrade"])
    }
}

impl Ended {
    pub fn of(child: Child) -> Self {
        let output = child.wait_with_output().expect("its end");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            status: output.status.code().expect("an exit status"),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// Asserts the status, and that standard error contains each of `words`.
    pub fn assert<const N: usize>(&self, status: i32, words: [&str; N]) {
        let said = words.iter().all(|word| self.stderr.contains(word));
        assert!(self.status == status && said, "expected {status} and {words:?}: {self:#?}");
    }
}

impl Client {
    /// Connects to `[control] tcp`.
    pub fn by_tcp(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the control server on TCP");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        Self { stream: BufReader::new(Box::new(stream)) }
    }

    /// Connects to `[control] tcp` and shows a token.
    pub fn with_token(address: SocketAddr, token: &str) -> Self {
        let mut client = Self::by_tcp(address);
        client.say(&format!("{{\"cmd\":\"ping\",\"token\":\"{token}\"}}"));
        assert_eq!(client.hear()["ok"], true, "the token is the right one");
        client
    }

    pub fn say(&mut self, line: &str) {
        self.send(format!("{line}\n").as_bytes());
    }

    /// Writes bytes; that nobody takes them any more is no failure.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.get_mut().write_all(bytes);
    }

    /// Waits for the next line.
    pub fn hear(&mut self) -> Value {
        self.try_hear().expect("a line before the end")
    }

    /// Waits for the next line, or the end of the connection.
    pub fn try_hear(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))),
            // What we wrote was not read to its end.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("in vain awaited a line: {error}"),
        }
    }

    /// Waits for an event of that name.
    pub fn wait_event(&mut self, event: &str) -> Value {
        loop {
            let line = self.hear();
            if line["event"] == event {
                return line;
            }
        }
    }

    /// Will say no more.
    pub fn fall_silent(&self) {
        self.stream.get_ref().fall_silent();
    }
}

/// Returns the lines of a file as they are now.
pub fn lines_of(path: &std::path::Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}
