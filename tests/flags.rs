//! `liveswap run -l ADDRESS -n WORKERS -- COMMAND`: a service without a file.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use support::client::{Load, MODES, Target};
use support::control::Ended;
use support::manager::{Manager, Starter};
use support::{loopback, worker_program};

/// Puts a release into a folder: a program that answers with its name.
fn release(starter: &Starter, name: &str, last_words: &str) {
    let folder = starter.path(name);
    fs::create_dir(&folder).expect("a folder");
    let script = format!(
        "#!/bin/sh\nexec {} --linger 10000 --release {name} {last_words}\n",
        worker_program().display()
    );
    fs::write(folder.join("server.sh"), script).expect("a program");
    fs::set_permissions(folder.join("server.sh"), fs::Permissions::from_mode(0o755)).expect("chmod");
}

fn point_to(manager: &Manager, name: &str) {
    symlink(name, manager.path("next")).expect("a link");
    fs::rename(manager.path("next"), manager.path("current")).expect("a new target");
}

#[test]
fn a_service_of_flags_upgrades_to_where_its_folder_points_by_then() {
    let address = loopback();
    let starter = Starter::default();
    release(&starter, "one", "");
    release(&starter, "two", "");
    release(&starter, "broken", "--exit 3");
    symlink("one", starter.path("current")).expect("a link");
    let flags = ["-l", &address.to_string(), "-n", "2", "--", "./server.sh"];
    // A shell is in the folder by the name that one went there by.
    let starter = starter.by(&["sh", "-c", "cd current && exec \"$@\"", "sh"]);
    let mut manager = starter.instead_of_file(flags).start("this file is not read");
    manager.wait_ready();
    let releases = |generation, name: &str| {
        let workers = manager.wait_workers(generation, 2);
        assert!(workers.iter().all(|worker| worker.command.contains(&name.to_owned())), "{workers:#?}");
    };
    releases(1, "one");

    let load = Load::start(&[Target::Tcp(address)], &MODES);
    load.wait_for_more(50);
    // It is called as its program is.
    point_to(&manager, "two");
    manager.cli(["upgrade", "server"]).assert(0, []);
    releases(2, "two");
    point_to(&manager, "broken");
    manager.cli(["upgrade"]).assert(1, ["upgrade of `server` rolled back", "exited with status 3"]);
    releases(2, "two");
    manager.cli(["rollback"]).assert(0, []);
    releases(4, "one");
    load.stop().assert_spotless();

    fs::remove_file(manager.path("current")).expect("the link");
    manager.cli(["upgrade"]).assert(1, ["Caused by: cannot enter directory", "/current"]);
    manager.stop();
}

fn refused<const N: usize>(flags: [&str; N]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_liveswap"));
    Ended::of(
        command
            .arg("run")
            .args(flags)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("the program"),
    )
}

#[test]
fn all_that_is_wrong_with_flags_is_shown_on_the_command_line() {
    let ended = refused([
        "-l",
        "localhost:80",
        "-l",
        "[::1]:81",
        "-n",
        "0",
        "--protocol",
        "notfy",
        "--",
        "./my server",
    ]);
    let line = "liveswap run -l localhost:80 -l [::1]:81 -n 0 --protocol notfy -- './my server'";
    let shown = |message: &str, column: usize, caret: &str, help: &str| {
        let margin = " ".repeat(column - 1);
        let help = if help.is_empty() { String::new() } else { format!("  |\n  = help: {help}\n") };
        format!(
            "error: {message}\n --> command line:1:{column}\n  |\n1 | {line}\n  | {margin}{caret}\n{help}"
        )
    };
    let expected = [
        shown(
            "`-l` must be an address",
            17,
            "^^^^^^^^^^^^ a name",
            "names are not looked up; write \"127.0.0.1:80\" or \"[::1]:80\"",
        ),
        shown("`-n` must be an integer from 1 to 4096 or \"auto\"", 45, "^ out of range", ""),
        shown(
            "`--protocol` must be \"notify\", \"plain\" or \"node\"",
            58,
            "^^^^^ none of them",
            "did you mean \"notify\"?",
        ),
        shown(
            "`--name` must be 1 to 50 of the characters A-Z a-z 0-9 . _ -",
            67,
            "^^^^^^^^^^^^^ has the character ` `",
            "give it a name by --name",
        ),
    ];
    assert_eq!((ended.status, ended.stderr), (2, expected.join("\n")));
}

#[test]
fn a_word_too_many_or_too_few_is_a_matter_of_usage() {
    refused([]).assert(2, ["<FILE>"]);
    refused(["-n", "2"]).assert(2, ["<COMMAND>"]);
    refused(["web.toml", "--", "./server"]).assert(2, ["cannot be used with"]);
    refused(["-l", "@web", "web.toml"]).assert(2, ["cannot be used with"]);
}
