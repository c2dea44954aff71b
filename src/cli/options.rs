//! liveswap as a library: what `require('liveswap')` was.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::config::is_node_program;
use crate::config::original::Original;
use crate::daemon::{self, ManagerError, Source, folder};

/// The port of the control server where nobody says.
pub const DEFAULT_PORT: u16 = 3000;

/// The address of the control server where nobody says.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1";

/// Why a manager could not start, or which processes it left at its end.
///
/// Its text is one line. [`source`](std::error::Error::source) is the cause, such as an error of the kernel.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(#[from] ManagerError);

impl Error {
    /// Returns what to do next, if that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        self.0.hint()
    }
}

/// A service and its control server, by the names that they had in the liveswap that was written in Node.
///
/// `Options::from("server.js")` is enough. The defaults are those of the command line (`liveswap -s`): one worker for each CPU,
/// the control server on 127.0.0.1:3000, and no downtime.
///
/// [`Options::run`] makes the calling process the manager until the service has ended:
///
/// - It takes over the signals of the process. SIGHUP upgrades, SIGTERM and SIGINT stop the service.
/// - It starts child processes, and reaps every child of the process. Call it on the main thread, before the program starts
///   another thread or a child.
/// - It logs by the crate [`tracing`]. The program sets up the subscriber, which must not block.
/// - `liveswap status`, `upgrade`, `stop` and the other commands find the service as they find any other.
/// - `liveswap reexec` and SIGUSR2 first run the program with the argument `try-handover`. A program that does not know this argument must
///   end with a failure. Then the manager goes on as it is.
///
/// ```standalone_crate
/// use std::os::unix::fs::PermissionsExt;
///
/// // Any program will do; a Node program is run by `node`. This one has the service end as soon as it runs.
/// let folder = std::env::temp_dir().join(format!("liveswap-{}", std::process::id()));
/// std::fs::create_dir(&folder)?;
/// let target = folder.join("server");
/// std::fs::write(&target, "#!/bin/sh\nkill -TERM $PPID\nexec sleep 60\n")?;
/// std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o755))?;
///
/// let ended = liveswap::Options::new(target.to_string_lossy())
///     .port(9008)
///     .address("127.7.7.7")
///     .forks(2)
///     .head(folder.join("HEAD"))
///     .run();
///
/// std::fs::remove_dir_all(&folder)?;
/// if let Err(error) = &ended {
///     eprintln!("{error}\n{}", error.hint().unwrap_or_default());
/// }
/// ended?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "nothing runs before `run` is called"]
pub struct Options {
    target: String,
    port: Option<u16>,
    address: String,
    forks: Option<u32>,
    head: Option<PathBuf>,
    pre_upgrade: Option<PathBuf>,
    zero_downtime: bool,
    token_file: Option<PathBuf>,
    local_owner: bool,
}

impl Options {
    /// Sets the target, the code that the workers run: a Node program (by `.js`, `.cjs` or `.mjs`, or a package's folder), or any
    /// executable. A relative path begins at the current folder.
    pub fn new(target: impl Into<String>) -> Self {
        Self {
            target: target.into(),
            port: None,
            address: DEFAULT_ADDRESS.into(),
            forks: None,
            head: None,
            pre_upgrade: None,
            zero_downtime: true,
            token_file: None,
            local_owner: false,
        }
    }

    /// Sets the port of the control server. The default is 3000; the control server then closes if the application listens on that
    /// port.
    pub fn port(self, port: u16) -> Self {
        Self { port: Some(port), ..self }
    }

    /// Sets the IP address of the control server. The default is 127.0.0.1. An address that other machines can reach needs a
    /// token file.
    pub fn address(self, address: impl Into<String>) -> Self {
        Self { address: address.into(), ..self }
    }

    /// Sets the number of workers, from 1 to 4096. The default, and the meaning of 0, is the number of CPUs.
    pub fn forks(self, forks: u32) -> Self {
        Self { forks: Some(forks), ..self }
    }

    /// Sets the file that records which target serves. The next manager starts the target in this file. The default is no file.
    pub fn head(self, head: impl Into<PathBuf>) -> Self {
        Self { head: Some(head.into()), ..self }
    }

    /// Sets what runs before each upgrade: a Node module, or any executable. If it fails, the upgrade is refused. The default is
    /// nothing.
    pub fn pre_upgrade(self, module: impl Into<PathBuf>) -> Self {
        Self { pre_upgrade: Some(module.into()), ..self }
    }

    /// Sets whether old workers serve until new ones are ready, which is the default. Otherwise the old workers stop before new
    /// ones start.
    pub fn zero_downtime(self, zero_downtime: bool) -> Self {
        Self { zero_downtime, ..self }
    }

    /// Sets the file of the token that the control server asks for. By default the manager makes a token, in the file `token`
    /// of its runtime directory.
    pub fn token_file(self, token_file: impl Into<PathBuf>) -> Self {
        Self { token_file: Some(token_file.into()), ..self }
    }

    /// Sets whether the manager's user and root need no token on a loopback address. The default is `false`. Clients of the
    /// liveswap that was written in Node cannot show a token.
    pub fn local_owner(self, local_owner: bool) -> Self {
        Self { local_owner, ..self }
    }

    /// Runs the service until it has ended: by a signal, by `liveswap stop`, or by the control server.
    ///
    /// # Errors
    ///
    /// Why the service could not start, or which processes were left at its end. Nothing else ends a manager that has started.
    pub fn run(self) -> Result<(), Error> {
        Ok(self.serve()?)
    }

    /// As [`Options::run`], with an error that the commands can take apart.
    pub(super) fn serve(self) -> Result<(), ManagerError> {
        daemon::reset_signals();
        daemon::hold_signals();
        if let Some(ended) = daemon::resume() {
            return ended;
        }
        let folder = folder()
            .map_err(|source| ManagerError::Io { doing: "looking for the current folder", source })?;
        daemon::run(Source::Original(self.into_source(folder)), &[], daemon::log::wants_color())
    }

    fn into_source(self, directory: PathBuf) -> Original {
        let absolute = |path: PathBuf| directory.join(path);
        let target = found(&directory, self.target);
        Original {
            is_node: is_node(&directory.join(&target)),
            target,
            forks: self.forks.filter(|forks| *forks > 0),
            address: if self.address == "localhost" { DEFAULT_ADDRESS.into() } else { self.address },
            port: self.port.unwrap_or(DEFAULT_PORT),
            gives_way: self.port.is_none(),
            token_file: self.token_file.map(absolute),
            local_owner: self.local_owner,
            head: self.head.map(absolute),
            pre_upgrade: self
                .pre_upgrade
                .map(|module| found(&directory, module.to_string_lossy().into()).into()),
            recreate: !self.zero_downtime,
            directory,
        }
    }
}

impl From<&str> for Options {
    fn from(target: &str) -> Self {
        Self::new(target)
    }
}

impl From<String> for Options {
    fn from(target: String) -> Self {
        Self::new(target)
    }
}

/// Returns a path, or as Node has it the same with `.js` where only that is there.
pub(super) fn found(directory: &Path, path: String) -> String {
    let is_there = |path: &str| directory.join(path).exists();
    let with_end = format!("{path}.js");
    if !is_there(&path) && is_there(&with_end) { with_end } else { path }
}

/// Whether a path is for `node` to run: by its name, as a package's folder, or as a script that says so.
fn is_node(path: &Path) -> bool {
    is_node_program(&path.to_string_lossy()) || path.is_dir() || is_node_script(path).unwrap_or(false)
}

/// Whether a file that cannot be executed by itself, or that `node` would execute anyway, is a script for it.
fn is_node_script(path: &Path) -> io::Result<bool> {
    // Not opened before that is known: a pipe would have us wait for whoever writes to it.
    let metadata = path.metadata()?;
    if !metadata.is_file() {
        return Ok(false);
    }
    let is_executable = metadata.permissions().mode() & 0o111 != 0;
    let mut start = Vec::new();
    File::open(path)?.take(128).read_to_end(&mut start)?;
    let first = start.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(first);
    let names_node = line.split(['/', ' ']).any(|word| matches!(word.trim_end(), "node" | "nodejs"));
    Ok(if first.starts_with(b"#!") { names_node } else { !is_executable })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_node_runs_is_known_by_name_form_and_first_line() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str, mode: u32| {
            fs::write(folder.path().join(name), text).unwrap();
            fs::set_permissions(folder.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        write("a.mjs", "", 0o644);
        write("server", "#!/usr/bin/env node\nlisten()", 0o755);
        write("other", "#!/usr/bin/env -S nodejs --flag\nlisten()", 0o755);
        write("script", "#!/bin/sh\nexec x", 0o755);
        write("binary", "\x7fELF", 0o755);
        write("code", "listen()", 0o644);
        let source = |target: &str| Options::from(target).into_source(folder.path().into());
        for (target, node) in [
            ("a.mjs", true),
            ("server", true),
            ("other", true),
            ("script", false),
            ("binary", false),
            ("code", true),
            (".", true),
        ] {
            assert_eq!(source(target).is_node, node, "{target}");
        }
        assert_eq!(source("gone").target, "gone");
        write("index.js", "", 0o644);
        assert_eq!(source("./index").target, "./index.js");
    }

    #[test]
    fn a_text_is_the_target_and_the_rest_is_usual() {
        let source = Options::from("index.js").into_source("/srv".into());
        assert_eq!((source.address.as_str(), source.port, source.forks), ("127.0.0.1", 3000, None));
        assert!(!source.recreate && source.is_node && source.gives_way);
        let options = Options::new("i.js").zero_downtime(false).head("HEAD").address("localhost");
        let source = options.port(3000).forks(0).into_source("/srv".into());
        assert_eq!((source.gives_way, source.forks), (false, None));
        assert_eq!((source.recreate, source.head), (true, Some("/srv/HEAD".into())));
        assert_eq!(source.address, "127.0.0.1");
    }
}
