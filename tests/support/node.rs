//! Node programs under test: written into the test's folder, upgraded by their paths.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::client::{Load, Mode, Response, Target};
use super::log::{Step, Transition};
use super::manager::{Manager, Place, Starter};
use super::service::Service;

/// How many workers a service of Node programs has, unless a test wants another number.
pub const WORKERS: usize = 2;

/// How most programs begin: what their servers answer is the name of the program's file, after two seconds where that is
/// asked for.
const PREFACE: &str = "
const http = require('http')
const release = require('path').basename(__filename, '.js')
const { HOST, PORT, LIVESWAP_SLOT: slot } = process.env
const server = () => http.createServer((request, response) => {
  if (request.url !== '/slow') return response.end(release)
  console.error(`${release} was asked`)
  setTimeout(() => response.end(release), 2000)
})
";

/// The modes of clients of Node programs.
pub const MODES: [Mode; 2] = [Mode::Once, Mode::KeepAlive];

/// A service of Node programs, which are told their address by their environment.
pub fn service(target: &str, address: SocketAddr) -> Service {
    let environment = format!("{{ HOST = '{}', PORT = '{}' }}", address.ip(), address.port());
    Service::target(target)
        .set("service.workers", WORKERS)
        .set("service.environment", environment)
        .set("restart.initial_delay", "'20ms'")
}

/// Writes a program after the usual beginning.
pub fn write_program(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, format!("{PREFACE}{text}\n")).expect("a program");
    path
}

/// Load on a server whose answers are the names of programs.
pub fn load(target: &Target, modes: &[Mode]) -> Load {
    let answers = ["one", "two"].map(|name| Response::new(200, name));
    Load::start_on_others(std::slice::from_ref(target), modes, &answers)
}

impl Starter {
    /// Writes the same program as `one.js` and `two.js`.
    #[must_use]
    pub fn programs(self, text: &str) -> Self {
        self.program("one.js", text).program("two.js", text)
    }

    /// Writes a program after the usual beginning.
    #[must_use]
    pub fn program(self, name: &str, text: &str) -> Self {
        write_program(&self.path(""), name, text);
        self
    }

    /// Writes a text as it is.
    #[must_use]
    pub fn file(self, name: &str, text: &str) -> Self {
        fs::write(self.path(name), text).expect("a file");
        self
    }

    /// Starts the manager, and waits until it is ready.
    pub fn start_ready(self, service: &Service) -> Manager {
        let mut manager = self.start(service);
        manager.wait_ready();
        manager
    }
}

impl Manager {
    /// Asks for an upgrade to a target in the test's folder, and returns the answer.
    pub fn ask_target(&self, target: &str) -> Value {
        self.ask(&json!({ "cmd": "upgrade", "value": self.path(target) }).to_string())
    }

    /// Fails the test unless every worker that is gone has ended by itself, with all its requests answered.
    pub fn assert_ended_well(&self) {
        let gone = |one: &Transition| one.step == Step::Gone && one.words != "gone: exited with status 0";
        if let Some(ended) = self.transitions(Place::START).into_iter().find(gone) {
            self.fail(&format!("it did not drain as it should: {ended:?}"));
        }
    }

    /// Upgrades to a target, and fails the test unless that is committed.
    pub fn upgrade_to(&self, target: &str) {
        let answer = self.ask_target(target);
        if answer["value"] != "OK" {
            self.fail(&format!("upgrade to {target}: {answer}"));
        }
    }
}
