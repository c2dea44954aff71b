//! What the demo stands on: a folder of its own, an address, and the service file for each release.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::failure::Failure;

/// The service file, with `@…@` where the demo fills something in.
const TEMPLATE: &str = include_str!("service.toml");

/// One of the releases that the demo brings.
#[derive(Clone, Copy, Debug)]
pub struct Release {
    /// As the answers name it.
    pub number: u32,
    /// The bad one never says that it is ready.
    pub never_ready: bool,
}

impl Release {
    /// The one that serves at first.
    pub const FIRST: Self = Self { number: 1, never_ready: false };
    /// The one that takes over.
    pub const GOOD: Self = Self { number: 2, never_ready: false };
    /// The one that fails.
    pub const BAD: Self = Self { number: 3, never_ready: true };

    /// Writes the service file's text for this release.
    pub fn service_file(self, program: &str, listen: SocketAddr) -> String {
        // JSON writes a string as TOML's basic strings are read.
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let number = quoted(&self.number.to_string());
        let (release, ready_timeout) =
            if self.never_ready { (format!("{number}, \"--never-ready\""), "2s") } else { (number, "10s") };
        TEMPLATE
            .replace("\"@PROGRAM@\"", &quoted(program))
            .replace("\"@RELEASE@\"", &release)
            .replace("@LISTEN@", &listen.to_string())
            .replace("@READY_TIMEOUT@", ready_timeout)
    }
}

/// The demo's folder and address. Dropping it removes the folder with all that is in it.
pub struct Stage {
    /// Where everything of this run lies.
    pub folder: PathBuf,
    /// Where the service listens.
    pub listen: SocketAddr,
    /// The program that is manager and worker: this one.
    pub program: PathBuf,
}

impl Stage {
    /// Chooses a free loopback port (or tries the `listen` that was asked for), and makes the folder.
    ///
    /// # Errors
    ///
    /// [`Failure::SetUp`] if the address is taken or the folder cannot be made.
    pub fn set(listen: Option<SocketAddr>) -> Result<Self, Failure> {
        let listen = free_address(listen.unwrap_or((Ipv4Addr::LOCALHOST, 0).into()))?;
        let program = std::env::current_exe()
            .map_err(|error| Failure::set_up("finding the path of this program", error))?;
        let folder = make_folder()?;
        Ok(Self { folder, listen, program })
    }

    /// Returns the path of the service file.
    pub fn service_file(&self) -> PathBuf {
        self.folder.join("demo.toml")
    }

    /// Returns the path of the manager's log.
    pub fn log(&self) -> PathBuf {
        self.folder.join("manager.log")
    }

    /// Puts the service file for `release` in the place of the one before, in one step: a manager that reads it just
    /// then sees the one or the other, never a part.
    ///
    /// # Errors
    ///
    /// [`Failure::SetUp`] if it cannot be written.
    pub fn write(&self, release: Release) -> Result<(), Failure> {
        let program = self.program.to_str().ok_or_else(|| {
            let error = io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8");
            Failure::set_up(format!("naming {} in a service file", self.program.display()), error)
        })?;
        let path = self.service_file();
        let draft = path.with_extension("new");
        fs::write(&draft, release.service_file(program, self.listen))
            .and_then(|()| fs::rename(&draft, &path))
            .map_err(|error| Failure::set_up(format!("writing {}", path.display()), error))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // What cannot be removed is left to whoever cleans the temporary folder.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Tries to bind `wanted`, and returns the address with its port. The port is free again when this returns; should
/// another program take it before the manager does, the manager says so.
fn free_address(wanted: SocketAddr) -> Result<SocketAddr, Failure> {
    TcpListener::bind(wanted)
        .and_then(|listener| listener.local_addr())
        .map_err(|source| Failure::Address { wanted, source })
}

/// Makes a new folder that nobody else may enter.
fn make_folder() -> Result<PathBuf, Failure> {
    let parent = std::env::temp_dir();
    let mut attempt = 0;
    loop {
        let folder = parent.join(format!("liveswap-demo-{}-{attempt}", std::process::id()));
        match fs::DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => return Ok(folder),
            // Left by a demo that was killed, whose pid came round again.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < 100 => attempt += 1,
            Err(error) => return Err(Failure::set_up(format!("making {}", folder.display()), error)),
        }
    }
}

/// Makes a folder inside the stage's, as private as that.
///
/// # Errors
///
/// [`Failure::SetUp`].
pub fn make_private(folder: &Path) -> Result<(), Failure> {
    fs::DirBuilder::new()
        .mode(0o700)
        .create(folder)
        .map_err(|error| Failure::set_up(format!("making {}", folder.display()), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(release: Release, program: &str) -> toml::Table {
        release.service_file(program, "[::1]:8080".parse().unwrap()).parse().unwrap()
    }

    #[test]
    fn the_service_file_names_program_release_and_address() {
        let file = parsed(Release::GOOD, "/odd \"path\"\\liveswap");
        let command = file["service"]["command"].as_array().unwrap();
        assert_eq!(*command, ["/odd \"path\"\\liveswap", "demo-worker", "--release", "2"].map(Into::into));
        assert_eq!(file["socket"][0]["listen"].as_str(), Some("[::1]:8080"));
        assert_eq!(file["ready"]["timeout"].as_str(), Some("10s"));
    }

    #[test]
    fn the_bad_release_is_told_never_to_be_ready_and_given_little_time() {
        let file = parsed(Release::BAD, "/liveswap");
        let command = file["service"]["command"].as_array().unwrap();
        assert_eq!(command[3..], ["3", "--never-ready"].map(Into::into));
        assert_eq!(file["ready"]["timeout"].as_str(), Some("2s"));
    }

    #[test]
    fn a_taken_address_is_named_and_a_stage_leaves_nothing_behind() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = other.local_addr().unwrap();
        let failure = Stage::set(Some(taken)).map(|_| ()).unwrap_err();
        assert!(failure.to_string().contains(&taken.to_string()), "{failure}");

        let stage = Stage::set(None).unwrap();
        stage.write(Release::FIRST).unwrap();
        let folder = stage.folder.clone();
        assert!(folder.join("demo.toml").is_file());
        drop(stage);
        assert!(!folder.exists());
    }
}
