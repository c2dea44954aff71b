//! A bug of the program, as a panic shows it, ends the process at once.

use std::env;
use std::fs::OpenOptions;
use std::io::{self, ErrorKind, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Stdio};

use liveswap::cli::output::exit_on_panic;
use nix::libc::O_NONBLOCK;
use nix::unistd::alarm;

/// Set in the process that panics.
const PANICS: &str = "LIVESWAP_TEST_PANICS";

/// Starts this program again as a process that does what `main` does, and then panics.
fn start(stderr: PipeWriter) -> Child {
    let mut command = Command::new(env::current_exe().expect("this program"));
    command.args(["--exact", "the_process_that_panics", "--nocapture"]).env(PANICS, "1");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().expect("a process")
}

/// What the other tests start; by itself it does nothing.
#[test]
fn the_process_that_panics() {
    if env::var_os(PANICS).is_some() {
        // If it hangs, the kernel ends it.
        alarm::set(60);
        exit_on_panic();
        panic!("on purpose\n\x1b[2J");
    }
}

#[test]
fn a_panic_does_not_wait_for_a_full_pipe() {
    let (_reader, stderr) = io::pipe().expect("a pipe");
    let path = format!("/proc/self/fd/{}", stderr.as_raw_fd());
    let mut full = OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(path).expect("the same pipe");
    let error = loop {
        if let Err(error) = full.write(b"x") {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock, "it is full");
    let ended = start(stderr).wait().expect("its end");
    assert_eq!(ended.code(), Some(70), "{ended}");
}

#[test]
fn a_panic_is_one_line_on_standard_error() {
    let (mut reader, stderr) = io::pipe().expect("a pipe");
    let ended = start(stderr).wait().expect("its end");
    assert_eq!(ended.code(), Some(70), "{ended}");
    let mut said = String::new();
    reader.read_to_string(&mut said).expect("UTF-8");
    let (place, message) = said.split_once(" panicked at tests/bug.rs:").expect("where");
    assert_eq!(place, "Error: a bug of liveswap:");
    assert!(message.ends_with(": on purpose\\n\\x1b[2J\n"), "{message:?}");
}
