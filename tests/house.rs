//! The house checks its own form.
//!
//! A rule worth stating is worth a few lines here. A failure prints `path:line: rule, reason` for every breach.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// One source file, its path relative to the repository.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The room of the house that the file belongs to: `core`, `sys` …; empty for `lib.rs` and `main.rs`.
    fn room(&self) -> &str {
        let inner = self.path.strip_prefix("src/").unwrap_or(&self.path);
        inner.split_once('/').map_or("", |(room, _)| room)
    }

    /// The lines that are code and no test, with their numbers: comments are blanked, strings are not.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let tests = self.text.lines().position(|line| line.trim() == "#[cfg(test)]").unwrap_or(usize::MAX);
        let lines = self.text.lines().take(tests).enumerate();
        lines.map(|(index, line)| (index + 1, line.split_once("//").map_or(line, |(code, _)| code)))
    }
}

/// Reads every Rust file below a folder of the repository, unit tests in files of their own (`tests.rs`, `tests/`) excepted.
fn sources(folder: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        for path in paths {
            if path.is_dir() {
                // Unit tests, which other rules hold for.
                if !path.ends_with("tests") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && !path.ends_with("tests.rs")
            {
                let text = fs::read_to_string(&path).expect("a source file");
                let path = path.strip_prefix(root).expect("below the root").display().to_string();
                sources.push(Source { path, text });
            }
        }
    }
    assert!(!sources.is_empty(), "no sources in {folder}");
    sources
}

#[derive(Default)]
struct Breaches(String);

impl Breaches {
    fn note(&mut self, source: &Source, line: usize, rule: &str, reason: &str) {
        let _ = writeln!(self.0, "{}:{line}: {rule}, {reason}", source.path);
    }

    fn assert_none(&self) {
        assert!(self.0.is_empty(), "\n{}", self.0);
    }
}

/// Finds `word` where it is a whole path segment or identifier.
fn has_word(line: &str, word: &str) -> bool {
    let outside = |character: Option<char>| !character.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(place, _)| {
        outside(line[..place].chars().next_back()) && outside(line[place + word.len()..].chars().next())
    })
}

#[test]
fn each_room_names_only_the_rooms_that_it_may() {
    let rooms = ["plain", "core", "config", "wire", "sys", "daemon", "cli"];
    let may = |room: &str| -> &[&str] {
        match room {
            "plain" => &[],
            "core" | "sys" => &["plain"],
            "config" | "wire" => &["plain", "core"],
            "daemon" => &["plain", "core", "config", "wire", "sys"],
            "cli" => &["plain", "config", "wire", "daemon"],
            _ => &["plain", "core", "config", "wire", "sys", "daemon", "cli"],
        }
    };
    let mut breaches = Breaches::default();
    for source in sources("src") {
        let allowed = may(source.room());
        for (number, line) in source.code() {
            if line.contains("crate::{") {
                breaches.note(
                    &source,
                    number,
                    "rooms imported in one group",
                    "this test reads one path a line",
                );
            }
            for other in rooms.iter().filter(|other| **other != source.room() && !allowed.contains(*other)) {
                let named = [format!("crate::{other}"), format!("liveswap::{other}")];
                if named.iter().any(|path| has_word(line, path)) {
                    let rule = format!("`{}` does not know `{other}`", source.room());
                    breaches.note(&source, number, &rule, "see the map in src/lib.rs");
                }
            }
        }
    }
    breaches.assert_none();
}

#[test]
fn the_core_and_plain_types_are_pure() {
    let impure = [
        ("Instant", "time is an argument"),
        ("SystemTime", "time is an argument"),
        ("std::fs", "effects are actions"),
        ("std::io", "effects are actions"),
        ("std::net::TcpListener", "effects are actions"),
        ("std::process", "effects are actions"),
        ("std::env", "inputs are events"),
        ("std::thread", "there is one thread, and it is not here"),
        ("std::os", "ids instead of handles"),
        ("HashMap", "maps are ordered, so that a run is a function of its events"),
        ("HashSet", "sets are ordered, so that a run is a function of its events"),
        ("nix", "system calls live in sys"),
        ("libc", "system calls live in sys"),
        ("rustix", "system calls live in sys"),
        ("tracing", "what is to be told is an action"),
        ("println", "what is to be told is an action"),
        ("eprintln", "what is to be told is an action"),
    ];
    let mut breaches = Breaches::default();
    for source in sources("src").into_iter().filter(|source| matches!(source.room(), "core" | "plain")) {
        for (number, line) in source.code() {
            for (word, reason) in impure.iter().filter(|(word, _)| has_word(line, word)) {
                breaches.note(
                    &source,
                    number,
                    &format!("`{}` does not name `{word}`", source.room()),
                    reason,
                );
            }
        }
    }
    breaches.assert_none();
}

#[test]
fn unsafe_code_stands_in_sys_and_says_why_it_is_sound() {
    let mut breaches = Breaches::default();
    for source in sources("src") {
        let lines: Vec<&str> = source.text.lines().collect();
        for (number, line) in source.code().filter(|(_, line)| has_word(line, "unsafe")) {
            if source.room() != "sys" {
                breaches.note(&source, number, "`unsafe` outside sys", "there is one unsafe door");
            }
            let is_block = line.contains("unsafe {") || line.contains("unsafe impl");
            let comments = lines[..number - 1].iter().rev().take(12).any(|line| line.contains("// SAFETY:"));
            if is_block && !comments {
                breaches.note(
                    &source,
                    number,
                    "an unsafe block without `// SAFETY:`",
                    "the reader must not guess",
                );
            }
        }
    }
    breaches.assert_none();
}

#[test]
fn what_is_printed_goes_through_one_door() {
    // What each of these writes is its own, or was made printable.
    let doors = [
        "src/cli/output.rs",      // The door.
        "src/cli/progress.rs",    // Draws by cursor movements.
        "src/cli/demo/show.rs",   // Likewise.
        "src/cli/demo/worker.rs", // Is a worker, whose output is the manager's to show.
        "src/daemon/handover.rs", // Answers the manager by a pipe.
    ];
    let macros = ["println!", "eprintln!", "print!", "eprint!", "dbg!"];
    // clap prints what was typed, with the words of others in it.
    let ways = ["stdout()", "stderr()", ".exit()", "parse_from(", "Cli::parse("];
    let mut breaches = Breaches::default();
    for source in sources("src").into_iter().filter(|source| !doors.contains(&source.path.as_str())) {
        let is_for_people = matches!(source.room(), "cli" | "");
        for (number, line) in source.code() {
            let ways = ways.iter().filter(|_| is_for_people);
            for way in macros.iter().chain(ways).filter(|way| line.contains(**way)) {
                let rule = format!("`{way}` outside cli/output.rs");
                breaches.note(&source, number, &rule, "nothing of others reaches a terminal as it came");
            }
        }
    }
    breaches.assert_none();
}

#[test]
fn no_file_and_no_function_outgrows_its_ceiling() {
    const FILE: usize = 400;
    const FUNCTION: usize = 70;
    let mut breaches = Breaches::default();
    for source in sources("src") {
        let length = source.code().count();
        if length > FILE {
            let rule = format!("{length} lines without tests, {FILE} at most");
            breaches.note(&source, length, &rule, "it wants to be two rooms");
        }
        for (number, length) in functions(&source).into_iter().filter(|(_, length)| *length > FUNCTION) {
            let rule = format!("a function of {length} lines, {FUNCTION} at most");
            breaches.note(&source, number, &rule, "it does not fit on a screen");
        }
    }
    breaches.assert_none();
}

/// Returns the first line and the length of each function; rustfmt puts a closing brace below its `fn`.
fn functions(source: &Source) -> Vec<(usize, usize)> {
    let mut functions = Vec::new();
    let mut open: Vec<(usize, usize)> = Vec::new();
    for (number, line) in source.code() {
        let indent = line.len() - line.trim_start().len();
        if has_word(line, "fn") && !line.trim_end().ends_with(';') && !line.trim_end().ends_with('}') {
            open.push((number, indent));
        }
        if line.trim_end() == format!("{}}}", " ".repeat(indent)) {
            while let Some((first, _)) = open.pop_if(|(_, at)| *at >= indent) {
                functions.push((first, number - first + 1));
            }
        }
    }
    functions
}

#[test]
fn lints_are_expected_with_a_reason_and_never_allowed() {
    // Put together, so that this line is no breach itself.
    let allowed = ["#[allow", "("].concat();
    let allowed_inside = ["#![allow", "("].concat();
    let mut breaches = Breaches::default();
    for source in ["src", "tests", "benches"].into_iter().flat_map(sources) {
        for (index, line) in source.text.lines().enumerate() {
            let code = line.split_once("//").map_or(line, |(code, _)| code);
            if code.contains(&allowed) || code.contains(&allowed_inside) {
                breaches.note(
                    &source,
                    index + 1,
                    "an allowed lint",
                    "`expect` with a reason notices when it is stale",
                );
            }
        }
    }
    breaches.assert_none();
}

#[test]
fn every_file_says_what_it_is_for() {
    let mut breaches = Breaches::default();
    for source in ["src", "tests", "benches"].into_iter().flat_map(sources) {
        // The lints of a file may come first, but no item.
        let items = ["use ", "pub ", "mod ", "fn ", "const ", "static ", "struct ", "enum ", "impl "];
        let is_item = |line: &&str| items.iter().any(|item| line.starts_with(item));
        if !source.text.lines().take_while(|line| !is_item(line)).any(|line| line.starts_with("//! ")) {
            breaches.note(&source, 1, "no module documentation", "the reader begins here");
        }
    }
    breaches.assert_none();
}
