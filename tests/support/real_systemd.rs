//! A real systemd around a test: the test runs once more inside a box where systemd is PID 1.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::service::Service;

/// What `systemd-box` exits with where it cannot be had: not root, no cgroup v2, no such systemd.
const NOT_TO_BE_HAD: i32 = 77;

/// Runs the test of this name once more inside a box, and returns `true`; inside it returns `false`.
///
/// # Panics
///
/// Where it fails inside, and in CI also where no box is to be had: nothing that was skipped may look like a pass.
pub fn outside(test: &str, systemd: &str) -> bool {
    if env::var_os("SYSTEMD_BOX").is_some() {
        return false;
    }
    let status = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/systemd-box"))
        .args(["exec", "--systemd", systemd, "--journal", "--"])
        .arg(env::current_exe().expect("this test"))
        .args(["--exact", test, "--nocapture"])
        .status()
        .expect("systemd-box");
    match status.code() {
        Some(0) => {}
        Some(NOT_TO_BE_HAD) if env::var_os("CI").is_none() => {
            super::skipped::add(&format!("{test}: there is no systemd {systemd}"));
        }
        code => panic!("{test}: inside the box: {code:?}"),
    }
    true
}

/// A service of our own unit, inside a box.
pub struct Unit {
    file: PathBuf,
    name: String,
}

impl Unit {
    /// Installs the unit as we ship it, with a drop-in of this text, and starts the service.
    pub fn start(name: &str, service: &Service, drop_in: &str) -> Self {
        let units = Path::new("/run/systemd/system");
        let unit = include_str!("../../units/liveswap@.service");
        let unit = unit.replace("/usr/bin/liveswap", env!("CARGO_BIN_EXE_liveswap"));
        let folder = units.join("liveswap@.service.d");
        fs::create_dir_all(&folder).expect("a folder for drop-ins");
        fs::write(units.join("liveswap@.service"), unit).expect("the unit");
        let drop_in = drop_in.replace("/usr/bin/liveswap", env!("CARGO_BIN_EXE_liveswap"));
        fs::write(folder.join("test.conf"), drop_in).expect("the drop-in");
        fs::create_dir_all("/etc/liveswap").expect("a folder for service files");
        let file = Path::new("/etc/liveswap").join(name).with_extension("toml");
        let unit = Self { file, name: format!("liveswap@{name}.service") };
        unit.write(service);
        systemctl(&["daemon-reload"]);
        systemctl(&["start", &unit.name]);
        unit
    }

    /// Installs and starts a socket unit for the service of this name.
    pub fn install_socket(name: &str, lines: &str) {
        let unit = format!("liveswap@{name}.socket");
        let units = Path::new("/run/systemd/system");
        fs::create_dir_all(units).expect("a folder for units");
        fs::write(units.join(&unit), format!("[Socket]\n{lines}")).expect("the unit");
        // A socket unit is started only where its service is there.
        let service = units.join(format!("liveswap@{name}.service"));
        fs::write(&service, "[Service]\nExecStart=/bin/true\n").expect("a service in the meantime");
        systemctl(&["daemon-reload"]);
        systemctl(&["start", &unit]);
        fs::remove_file(service).expect("it is there");
    }

    /// Installs the unit that `liveswap unit` makes for the file, and starts the service.
    pub fn made_for(name: &str, file: PathBuf, service: &Service) -> Self {
        let unit = Self { file, name: format!("{name}.service") };
        unit.write(service);
        let made = Command::new(env!("CARGO_BIN_EXE_liveswap")).arg("unit").arg(&unit.file).output();
        let made = made.expect("liveswap unit");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let path = Path::new("/run/systemd/system").join(&unit.name);
        fs::write(&path, made.stdout).expect("the unit");
        let said = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output();
        let said = said.expect("systemd-analyze").stderr;
        assert_eq!(String::from_utf8_lossy(&said), "", "what systemd-analyze finds");
        systemctl(&["daemon-reload"]);
        systemctl(&["start", &unit.name]);
        unit
    }

    /// Writes the service file anew.
    pub fn write(&self, service: &Service) {
        fs::write(&self.file, service.to_string()).expect("the service file");
    }

    /// `systemctl VERB` on the unit, which must succeed.
    pub fn systemctl(&self, verb: &str) {
        systemctl(&[verb, &self.name]);
    }

    /// `systemctl VERB` on the unit, which is not waited for.
    pub fn begin(&self, verb: &str) {
        systemctl(&["--no-block", verb, &self.name]);
    }

    /// `systemctl VERB` on the unit, whatever comes of it.
    pub fn try_systemctl(&self, verb: &str) -> Output {
        Command::new("systemctl").args([verb, &self.name]).output().expect("systemctl")
    }

    /// A property of the unit as `systemctl show` has it.
    pub fn property(&self, name: &str) -> String {
        systemctl(&["show", "--value", "-p", name, &self.name]).trim().to_owned()
    }

    /// The processes of the unit but the manager.
    pub fn processes(&self) -> Vec<i32> {
        let main = self.property("MainPID").parse().ok();
        let mut all = self.cgroup().map_or_else(Vec::new, |group| processes_in(&group));
        all.retain(|pid| Some(*pid) != main);
        all.sort_unstable();
        all
    }

    /// The folder of its cgroup, where it has one.
    pub fn cgroup(&self) -> Option<PathBuf> {
        let group = self.property("ControlGroup");
        (!group.is_empty()).then(|| PathBuf::from(format!("/sys/fs/cgroup{group}")))
    }

    /// `liveswap ARGUMENTS` for the service, from outside of it.
    pub fn cli(arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_liveswap")).args(arguments).output().expect("liveswap")
    }

    /// Sends a signal to the manager alone.
    pub fn kill(&self, signal: &str) {
        systemctl(&["kill", "--kill-whom=main", &format!("--signal={signal}"), &self.name]);
    }

    /// Sends a signal to a process.
    pub fn signal(&self, pid: i32, signal: &str) {
        let status = Command::new("kill").args(["-s", signal, &pid.to_string()]).status().expect("kill");
        assert!(status.success(), "{}: kill -s {signal} {pid}: {status}", self.name);
    }

    /// What the manager and its workers wrote to the journal.
    pub fn journal(&self) -> String {
        let output = Command::new("journalctl").args(["--no-pager", "-o", "cat", "-u", &self.name]).output();
        String::from_utf8_lossy(&output.expect("journalctl").stdout).into_owned()
    }
}

/// The processes of a cgroup and of those below it.
pub fn processes_in(group: &Path) -> Vec<i32> {
    let list = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let own = list.lines().filter_map(|pid| pid.parse().ok());
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    let below = entries.map(|entry| entry.path()).filter(|path| path.is_dir());
    own.chain(below.flat_map(|path| processes_in(&path))).collect()
}

fn systemctl(arguments: &[&str]) -> String {
    let output = Command::new("systemctl").args(arguments).output().expect("systemctl");
    let said = [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat();
    assert!(output.status.success(), "systemctl {arguments:?}: {said}");
    said
}
