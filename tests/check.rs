//! `liveswap check`, as a person or a deploy script calls it.

use std::fs;
use std::process::{Command, Output};

fn check(files: &[(&str, &str)]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_liveswap"));
    command.arg("check").args(files.iter().map(|(name, _)| name)).current_dir(folder.path()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_sound_file_is_summed_up_in_a_line() {
    let output =
        check(&[("web.toml", "[service]\ncommand = [\"true\"]\n[[socket]]\nlisten = \"127.0.0.1:80\"\n")]);
    let said = text(&output.stdout);
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines[0], "web.toml: service `web`: 1 worker on 127.0.0.1:80");
    assert!(lines.len() == 2 && lines[1].starts_with("web.toml: note: "), "{said}");
    assert_eq!((text(&output.stderr).as_str(), output.status.code()), ("", Some(0)));
}

#[test]
fn what_a_rollback_would_start_is_said_where_it_is_not_the_old_code() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    fs::create_dir(folder.join("1")).unwrap();
    fs::copy("/bin/true", folder.join("1/server")).unwrap();
    std::os::unix::fs::symlink("1", folder.join("current")).unwrap();
    let check = |command: &str, directory: &str| {
        let file = format!(
            "[service]\ncommand = ['{command}']\ndirectory = '{directory}'\n[[socket]]\nlisten = '127.0.0.1:80'\n"
        );
        fs::write(folder.join("web.toml"), file).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_liveswap"));
        let output = command.args(["check", "web.toml"]).current_dir(&folder).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        text(&output.stdout)
    };
    let shared = format!(
        "note: all generations share {}/1: a rollback starts whatever lies there then",
        folder.display()
    );
    // Where a distribution has a link for /bin, that is none to a release.
    for of_system in ["true", "/bin/true", "/usr/bin/true"] {
        let said = check(of_system, "1");
        assert!(said.contains(&format!("{shared}; let a link")), "{said}");
    }
    let said = check("./server", "1");
    assert!(said.contains(&format!("{shared} (its program is held, and stays what it was)")), "{said}");
    for (command, directory) in [("./server", "current"), ("../current/server", "1")] {
        let said = check(command, directory);
        assert!(!said.contains("note"), "{said}");
    }
}

#[test]
fn a_program_that_is_not_there_yet_is_warned_of() {
    let file = "[service]\ncommand = [\"./server\"]\n[upgrade]\nbefore = [\"no-such-program\"]\n";
    let output = check(&[("web.toml", file)]);
    let said = text(&output.stderr);
    assert!(
        said.contains("Warning: web.toml: `command`: there is no executable `./server` seen from /"),
        "{said}"
    );
    assert!(said.contains("`before`: there is no executable `no-such-program` in PATH"), "{said}");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn every_bad_file_is_told_of_and_the_sound_ones_too() {
    let output = check(&[
        ("one.toml", "[service]"),
        ("two.toml", "[service]\ncommand = [\"true\"]\n"),
        ("three", "="),
    ]);
    let said = text(&output.stderr);
    assert!(said.contains("one.toml") && said.contains("three"), "{said}");
    assert!(text(&output.stdout).starts_with("two.toml: service `two`"), "{said}");
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn sockets_that_cannot_both_be_bound_are_found() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("d")).unwrap();
    std::os::unix::fs::symlink("d", folder.path().join("l")).unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let check_two = |one: &str, two: &str, more: &str| {
        let file = format!(
            "[service]\ncommand = ['true']\n[[socket]]\nname = 'one'\nlisten = '{one}'\n\
             [[socket]]\nname = 'two'\nlisten = '{two}'\n{more}\n"
        );
        let output = check(&[("web.toml", &file)]);
        (output.status.code(), text(&output.stderr))
    };
    for (one, two, word) in [
        ("0.0.0.0:80", "[::]:80", "bind_ipv6_only"),
        ("127.0.0.1:80", "[::]:80", "bind_ipv6_only"),
        ("127.0.0.1:80", "0.0.0.0:80", "remove one"),
        ("127.0.0.1:80", "[::ffff:127.0.0.1]:80", "one socket serves all workers"),
        (&at("d/a"), &at("l/a"), "remove one"),
        (&at("d/a"), &at("d/../d/a"), "remove one"),
    ] {
        let (status, said) = check_two(one, two, "");
        assert!(status == Some(3) && said.contains(word) && said.contains("one"), "{one} {two}: {said}");
    }
    for (one, two, more) in [
        ("0.0.0.0:80", "[::]:80", "bind_ipv6_only = 'ipv6-only'"),
        ("127.0.0.1:0", "127.0.0.1:0", ""),
        ("0.0.0.0:80", "0.0.0.0:80", "type = 'datagram'"),
        (&at("d/a"), &at("a"), ""),
    ] {
        assert_eq!(check_two(one, two, more).0, Some(0), "{one} {two} {more}");
    }
    let (status, said) = check_two("0.0.0.0:80", "@two", "[control]\ntcp = '127.0.0.1:80'");
    assert!(status == Some(3) && said.contains("the control server (127.0.0.1:80)"), "{said}");
}

/// What `check` says of a file that is not wrong by itself.
fn advice(file: &str) -> String {
    let output = check(&[("web.toml", file)]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    text(&output.stdout) + &text(&output.stderr)
}

#[test]
fn what_rarely_is_meant_is_noted_with_what_to_write_instead() {
    let socket = "[[socket]]\nlisten = '127.0.0.1:80'\n";
    let said = advice("[service]\ncommand = ['true']\n");
    assert!(
        said.contains("the file has no [[socket]]") && said.contains("add [[socket]] with listen"),
        "{said}"
    );
    let said = advice(&format!("[service]\ncommand = ['node', 'index.js']\n{socket}"));
    assert!(said.contains("needs protocol = \"node\"") && !said.contains("no [[socket]]"), "{said}");
    let said = advice("[service]\ncommand = ['node', 'index.js']\nprotocol = 'node'\n");
    assert!(!said.contains("needs protocol") && !said.contains("no [[socket]]"), "{said}");
    let said = advice(&format!("[service]\ncommand = ['npm', 'start']\n{socket}"));
    assert!(said.contains("`npm` starts the server as a child"), "{said}");
    let said = advice(&format!("[service]\ncommand = ['./server --port 80']\n{socket}"));
    assert!(said.contains("there is no shell") && said.contains(r#"["./server", "--port", "80"]"#), "{said}");
    let said = advice(&format!("[service]\ncommand = ['./server --port 80 && x']\n{socket}"));
    assert!(said.contains(r#"["sh", "-c", "./server --port 80 && x"]"#), "{said}");
}

#[test]
fn json_is_told_apart_from_a_file_with_many_errors() {
    let output = check(&[("web.toml", "{\n  \"service\": { \"command\": [\"./server\"] }\n}\n")]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(
        said.contains("this is JSON, and a service file is TOML") && said.contains("[service]"),
        "{said}"
    );
    assert_eq!(said.matches("error").count() + said.matches("Error").count(), 1, "{said}");
}

/// What `check` says of a bad file.
fn refusal(file: &str) -> String {
    let output = check(&[("web.toml", file)]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    text(&output.stderr)
}

#[test]
fn what_cannot_be_had_is_told_with_its_line_its_key_and_what_to_do() {
    let service = "[service]\ncommand = ['true']\n";
    let said = refusal(&format!("{service}directory = '/no/such'\n"));
    assert!(said.contains("line 3: `directory`: cannot enter directory /no/such"), "{said}");
    let said = refusal(&format!("{service}user = 'no-such'\n"));
    assert!(said.contains("line 3: `user`: there is no user `no-such`: make it (useradd"), "{said}");
    let said = refusal(&format!("{service}\n[[socket]]\nlisten = '/tmp/x.sock'\ngroup = 'no-such'\n"));
    assert!(said.contains("line 6: `group`: there is no group `no-such`"), "{said}");
    let said = refusal(&format!("{service}environment_files = ['.env']\n"));
    assert!(said.contains("line 3: `environment_files`") && said.contains("write \"-.env\""), "{said}");
    let said = refusal(&format!("{service}socket = 'x'\n"));
    assert!(said.contains("`socket` is a table of its own: begin it with a line [[socket]]"), "{said}");
    let missing =
        Command::new(env!("CARGO_BIN_EXE_liveswap")).args(["check", "no-such.toml", "/"]).output().unwrap();
    let said = text(&missing.stderr);
    assert!(
        said.contains("without a file: liveswap run -l") && said.contains("no regular file but a folder"),
        "{said}"
    );
}

/// A file to copy names no user, group or folder that a machine does not have.
#[test]
fn the_files_to_copy_pass_on_a_fresh_machine() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut files = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let output = check(&[("copy.toml", &fs::read_to_string(&path).unwrap())]);
        let said = text(&output.stderr);
        // The programs come with the release.
        let is_expected =
            |line: &str| line.starts_with("Warning: copy.toml: `command`: there is no executable `./");
        assert!(
            output.status.code() == Some(0) && said.lines().all(is_expected),
            "{}: {said}",
            path.display()
        );
        files += 1;
    }
    assert!(files >= 5, "only {files} files were found");
}
