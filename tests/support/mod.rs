//! What the integration tests stand on: a manager under test, its log, a stand-in for systemd, a strict client.
//!
//! Every wait is a wait for an event with the generous bound [`PATIENCE`]; nothing here sleeps and hopes. A wait
//! that ends in vain fails the test with what was awaited and the manager's whole log.

pub mod client;
pub mod control;
pub mod dice;
pub mod documents;
pub mod ground;
pub mod log;
pub mod manager;
pub mod node;
pub mod process;
pub mod real_systemd;
pub mod service;
pub mod skipped;
pub mod stranger;
pub mod systemd;

use std::env;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{self as std_process, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long any single event may be waited for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Returns a loopback address that no other test uses.
///
/// All of 127.0.0.0/8 is this machine, so the process and a counter choose the address and the port is always the
/// same: no port has to be found free, and no outgoing connection of another test can sit on it.
pub fn loopback() -> SocketAddr {
    static COUNTER: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std_process::id().to_be_bytes();
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    assert_ne!(count, u8::MAX, "a test process has used up its addresses");
    SocketAddr::from((Ipv4Addr::new(127, high.max(1), low, count), 8080))
}

/// Returns the path of the worker that cargo builds as an example beside the tests.
pub fn worker_program() -> PathBuf {
    let beside = PathBuf::from(env!("CARGO_BIN_EXE_liveswap"));
    let program = beside.with_file_name("examples").join("worker");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/worker.rs");
    let changed = |path: &str| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let built = program.to_str().and_then(changed);
    assert!(
        built.is_some() && built >= changed(source),
        "{} is missing or old: `cargo build --example worker` (a plain `cargo test` does it)",
        program.display()
    );
    program
}

/// Tells whether this is root, and says loudly what is skipped where it is not; CI skips nothing.
pub fn is_root(what: &str) -> bool {
    let root = nix::unistd::Uid::effective().is_root();
    if !root {
        assert!(env::var_os("CI").is_none(), "CI runs as root");
        skipped::add(&format!("{what} takes root"));
    }
    root
}

/// Whether a program is there. Where it is not, the test says so and proves nothing; in CI it fails.
pub fn is_installed(program: &str) -> bool {
    let search = Command::new("sh").args(["-c", "command -v \"$0\"", program]).stdout(Stdio::null()).status();
    let found = search.expect("a shell").success();
    if !found {
        assert!(env::var_os("CI").is_none(), "{program} is not installed, and CI must not do without it");
        skipped::add(&format!("{program} is not installed"));
    }
    found
}

/// Waits until `condition` gives a value; for what has no event of its own, such as a process of another parent.
///
/// # Panics
///
/// Where it never does; `what` says what was awaited.
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(started.elapsed() < PATIENCE, "in vain awaited: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Removes a folder in which the manager may put files back meanwhile, until it is gone for a moment.
///
/// # Panics
///
/// Where it cannot be removed.
pub fn sweep(folder: &Path) {
    let remove = || match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => None,
        swept => Some(swept),
    };
    eventually("the folder swept", remove).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
}
