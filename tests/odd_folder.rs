//! A service in folders whose names are no text.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::client::{Target, ask};
use support::eventually;
use support::manager::copy_program;
use support::service::Service;

/// A manager whose service file, runtime directory and socket lie in such folders.
struct Odd {
    folder: tempfile::TempDir,
    manager: Child,
}

impl Odd {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let at = folder.path().join(OsStr::from_bytes(b"b\xff\xfe n"));
        fs::create_dir_all(at.join("run")).expect("a folder");
        let service = Service::worker().listen("./a b.sock").set("upgrade.head", "'head'").release(1);
        fs::write(at.join("web.toml"), service.to_string()).expect("a file");
        let program = at.join("liveswap");
        copy_program(&program);
        let manager = Self::command(&at).arg("run").arg(at.join("web.toml")).spawn();
        let odd = Self { folder, manager: manager.expect("the program") };
        odd.wait_ready();
        odd
    }

    fn command(at: &Path) -> Command {
        let mut command = Command::new(at.join("liveswap"));
        command.env("RUNTIME_DIRECTORY", at.join("run")).env_remove("NOTIFY_SOCKET");
        // Who reads what the test prints waits for nobody who has outlived it.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn at(&self) -> PathBuf {
        self.folder.path().join(OsStr::from_bytes(b"b\xff\xfe n"))
    }

    fn status(&self) -> Option<Value> {
        let mut stream = UnixStream::connect(self.at().join("run/control.sock")).ok()?;
        stream.write_all(b"{\"cmd\":\"status\"}\n").ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok()?;
        serde_json::from_str::<Value>(&line).ok().map(|reply| reply["status"].clone())
    }

    fn wait_ready(&self) {
        eventually("a worker that is ready", || (self.status()?["ready"] == 1).then_some(()));
    }

    fn release(&self) -> String {
        ask(&Target::Unix(self.at().join("a b.sock"))).expect("an answer").release
    }

    fn cli(&self, words: &[&str]) {
        let status = Self::command(&self.at()).args(words).status().expect("the program");
        assert!(status.success(), "{words:?}: {status}");
    }
}

impl Drop for Odd {
    fn drop(&mut self) {
        // At once, and with all that it has started.
        let _ = kill(Pid::from_raw(self.manager.id().cast_signed()), Signal::SIGQUIT);
        let _ = self.manager.wait();
    }
}

#[test]
fn a_service_in_a_folder_that_is_no_text_lives_as_any_other() {
    let mut odd = Odd::start();
    assert_eq!(odd.release(), "1");
    odd.cli(&["upgrade"]);
    copy_program(&odd.at().join("liveswap"));
    odd.cli(&["reexec"]);
    odd.cli(&["status"]);
    odd.cli(&["status", "--json"]);
    let workers = |status: Value| status["workers"].as_array().map(|workers| workers[0]["pid"].clone());
    let before = workers(odd.status().expect("a status"));
    // Another goes on with the same worker.
    odd.manager.kill().expect("SIGKILL");
    odd.manager.wait().expect("its end");
    let file = odd.at().join("web.toml");
    let another = Odd::command(&odd.at()).arg("run").arg(file).spawn();
    odd.manager = another.expect("the program");
    odd.wait_ready();
    assert_eq!(workers(odd.status().expect("a status")), before);
    assert_eq!(odd.release(), "1");
    // What is recorded is the folder, byte by byte.
    assert_eq!(fs::read(odd.at().join("head")).expect("a record"), odd.at().as_os_str().as_bytes());
    odd.cli(&["upgrade"]);
    kill(Pid::from_raw(odd.manager.id().cast_signed()), Signal::SIGTERM).expect("SIGTERM");
    assert!(odd.manager.wait().expect("its end").success());
}
