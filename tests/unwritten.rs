//! Commands whose output cannot be written: no success that was none, and no word too many.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::fs::{self, OpenOptions};
use std::io::{Read, pipe};
use std::process::{Command, Output, Stdio};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use support::loopback;
use support::manager::Manager;
use support::service::Service;

/// The commands that only print.
const PRINT: [&[&str]; 12] = [
    &["status"],
    &["status", "--json"],
    &["status", "--watch"],
    &["events", "--json"],
    &["unit", "web.toml"],
    &["check", "web.toml"],
    &["completions", "bash"],
    &["--help"],
    &["run", "--help"],
    &["--version"],
    &["-s", "--help"],
    &["help", "status"],
];

/// The commands that do something, so that what they did is what counts.
const DO: [&[&str]; 5] = [&["upgrade"], &["upgrade", "--json"], &["respawn"], &["scale", "2"], &["reexec"]];

fn manager() -> Manager {
    Manager::start(Service::worker().listen(loopback()).set("service.name", "'web'"))
}

fn run(manager: &Manager, words: &[&str], output: impl Into<Stdio>) -> Output {
    let mut command = manager.command([]);
    command.args(words).current_dir(manager.path("")).stdout(output).stderr(Stdio::piped());
    command.spawn().expect("the command").wait_with_output().expect("its end")
}

/// What it said on standard error, but for what it says of the old code after an upgrade.
fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    text.split_inclusive('\n').filter(|line| !line.starts_with("note: ")).collect()
}

#[test]
fn a_full_disk_makes_a_failure_of_every_success() {
    let manager = manager();
    for words in PRINT.iter().chain(&DO) {
        let full = OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
        let ended = run(&manager, words, full);
        let why = said(&ended);
        assert_eq!(ended.status.code(), Some(74), "{words:?}: {why}");
        assert!(why.starts_with("Error: cannot write to standard output: No space left"), "{words:?}: {why}");
        assert_eq!(why.contains("done all the same"), DO.contains(words), "{words:?}: {why}");
    }
    // What failed anyhow keeps its status.
    fs::write(manager.path("bad.toml"), "[service]\n").expect("a file");
    let full = OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    assert_eq!(run(&manager, &["check", "bad.toml", "web.toml"], full).status.code(), Some(3));
    manager.stop();
}

#[test]
fn a_pipe_that_nobody_reads_ends_what_prints_quietly_and_no_deed() {
    let manager = manager();
    for words in PRINT.iter().chain(&DO) {
        let (reader, writer) = pipe().expect("a pipe");
        drop(reader);
        let ended = run(&manager, words, writer);
        let expected = if DO.contains(words) { 0 } else { 141 };
        assert_eq!((ended.status.code(), said(&ended).as_str()), (Some(expected), ""), "{words:?}");
    }
    manager.stop();
}

#[test]
fn what_may_not_be_written_to_is_no_success() {
    let manager = manager();
    let for_reading = fs::File::open(manager.path("web.toml")).expect("a file");
    let ended = run(&manager, &["status"], for_reading);
    assert_eq!(ended.status.code(), Some(74), "{}", said(&ended));
    manager.stop();
}

#[test]
fn a_pipe_that_others_made_non_blocking_gets_all() {
    let (mut reader, writer) = pipe().expect("a pipe");
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("fcntl");
    // The smallest that there is: a page, and the completions have many.
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).expect("fcntl");
    let mut command = Command::new(env!("CARGO_BIN_EXE_liveswap"));
    let mut child =
        command.args(["completions", "bash"]).stdout(writer).stderr(Stdio::null()).spawn().expect("a child");
    drop(command);
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("the completions");
    assert!(child.wait().expect("its end").success());
    assert!(text.ends_with('\n') && text.len() > 4096, "{}", text.len());
}
