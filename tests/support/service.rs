//! Service files, written by calls.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write};

/// A service file in the making; it starts as the test worker, one of it, with nothing to listen on.
#[derive(Clone, Debug)]
pub struct Service {
    release: String,
    program: Vec<String>,
    arguments: Vec<String>,
    sockets: Vec<String>,
    /// `(table, key)` to the value as TOML writes it.
    settings: BTreeMap<(String, String), String>,
}

impl Service {
    /// The test worker.
    ///
    /// It keeps idle connections longer than any pause of the client on an overloaded machine: that HTTP has a
    /// race there is not what the tests are about.
    pub fn worker() -> Self {
        let program = super::worker_program().display().to_string();
        Self::command([program.as_str(), "--linger", "10000"])
    }

    /// Any other program.
    ///
    /// Upgrades begin at once and go slot by slot, whether the code has moved or not; what is about the manager's own choice
    /// takes these settings back ([`Service::unset`]).
    pub fn command<const N: usize>(command: [&str; N]) -> Self {
        Self {
            release: String::new(),
            program: command.map(str::to_owned).to_vec(),
            arguments: Vec::new(),
            sockets: Vec::new(),
            settings: BTreeMap::new(),
        }
        .set("upgrade.min_ready", "'0s'")
        .set("upgrade.strategy", "'rolling'")
    }

    /// Leaves a setting to the manager.
    #[must_use]
    pub fn unset(mut self, key: &str) -> Self {
        let (table, key) = key.split_once('.').expect("table.key");
        self.settings.remove(&(table.to_owned(), key.to_owned()));
        self
    }

    /// A Node program as the service's target, its command left to what is usual.
    pub fn target(path: impl Display) -> Self {
        Self::command([]).set("service.target", quoted(&path.to_string()))
    }

    /// Another command for the same service.
    #[must_use]
    pub fn by<const N: usize>(mut self, command: [&str; N]) -> Self {
        self.program = command.map(str::to_owned).to_vec();
        self
    }

    /// The same program, from another place.
    #[must_use]
    pub fn program(mut self, path: impl Display) -> Self {
        self.program[0] = path.to_string();
        self
    }

    /// The same program with the same arguments, executed by a shell after `script`.
    #[must_use]
    pub fn after(mut self, script: &str) -> Self {
        let shell = ["sh", "-c", &format!("{script}; exec \"$0\" \"$@\"")].map(str::to_owned);
        self.program.splice(0..0, shell);
        self
    }

    /// What the worker's answers name.
    #[must_use]
    pub fn release(mut self, release: impl Display) -> Self {
        self.release = release.to_string();
        self
    }

    /// More words for the command.
    #[must_use]
    pub fn args<const N: usize>(mut self, arguments: [&str; N]) -> Self {
        self.arguments.extend(arguments.map(str::to_owned));
        self
    }

    #[must_use]
    pub fn workers(self, workers: u32) -> Self {
        self.set("service.workers", workers)
    }

    /// A socket with nothing but its address.
    #[must_use]
    pub fn listen(self, address: impl Display) -> Self {
        self.socket(&format!("listen = {:?}", address.to_string()))
    }

    /// A socket, by the lines of its table.
    #[must_use]
    pub fn socket(mut self, lines: &str) -> Self {
        self.sockets.push(lines.to_owned());
        self
    }

    /// No socket at all, to begin anew.
    #[must_use]
    pub fn no_sockets(mut self) -> Self {
        self.sockets.clear();
        self
    }

    /// Sets `table.key` to a value as TOML writes it, as in `set("ready.timeout", "'1s'")`.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl Display) -> Self {
        let (table, key) = key.split_once('.').expect("table.key");
        self.settings.insert((table.to_owned(), key.to_owned()), value.to_string());
        self
    }
}

impl Display for Service {
    /// Writes the service file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut command = self.program.clone();
        if !self.release.is_empty() {
            command.extend(["--release".to_owned(), self.release.clone()]);
        }
        command.extend(self.arguments.iter().cloned());
        let words: Vec<String> = command.iter().map(|word| quoted(word)).collect();
        writeln!(f, "[service]")?;
        if !words.is_empty() {
            writeln!(f, "command = [{}]", words.join(", "))?;
        }
        let mut current = "service";
        // `service` first: its table is open.
        // Where each connection has a process of its own, an upgrade has nothing to decide.
        let has_workers = !self.sockets.iter().any(|lines| lines.contains("accept = true"));
        let settings = self.settings.iter().filter(|((table, _), _)| has_workers || table != "upgrade");
        let (service, others): (Vec<_>, Vec<_>) = settings.partition(|((table, _), _)| table == "service");
        for ((table, key), value) in service.into_iter().chain(others) {
            if table != current {
                writeln!(f, "\n[{table}]")?;
                current = table;
            }
            writeln!(f, "{key} = {value}")?;
        }
        self.sockets.iter().try_for_each(|lines| writeln!(f, "\n[[socket]]\n{lines}"))
    }
}

/// Writes a string as TOML does.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if control.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(control));
            }
            other => quoted.push(other),
        }
    }
    quoted + "\""
}
