//! The house checks its own form.
//!
//! Each rule is first tried on small texts, those that break it and those that do not, and then applied to the repository. A
//! failure prints `path:line: rule, reason` for every breach.

#[path = "support/code.rs"]
mod code;

use std::fmt::Write;
use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// One source file.
struct Source {
    /// Its path, relative to the repository.
    path: String,
    text: String,
    /// The text without comments and strings.
    code: String,
    /// The lines of the items that are tests.
    tests: Vec<RangeInclusive<usize>>,
    /// The files that are tests, as this one declares their modules so: paths without `.rs` or what follows in a folder.
    test_files: Vec<String>,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let code = code::blank(text);
        let items = code::test_items(&code);
        let tests = items.iter().map(|(lines, _)| lines.clone()).collect();
        let stem = path.trim_end_matches(".rs");
        let folder =
            ["/mod", "/lib", "/main"].iter().find_map(|name| stem.strip_suffix(name)).unwrap_or(stem);
        let modules = items.iter().filter_map(|(_, item)| item.strip_suffix(';')?.split_once("mod "));
        let test_files = modules.map(|(_, name)| format!("{folder}/{name}")).collect();
        Self { path: path.into(), text: text.into(), code, tests, test_files }
    }

    /// The room of the house that the file belongs to: `core`, `sys` …; empty for `lib.rs` and `main.rs`.
    fn room(&self) -> &str {
        let inner = self.path.strip_prefix("src/").unwrap_or(&self.path);
        inner.split_once('/').map_or("", |(room, _)| room)
    }

    /// How a path leaves the file's room without its name: so many steps up; `None` outside of the rooms.
    fn climb(&self) -> Option<String> {
        let steps = self.path.trim_end_matches("/mod.rs").matches('/').count();
        (!self.room().is_empty()).then(|| "super::".repeat(steps))
    }

    /// The lines that are no test, with their numbers. Comments, strings and characters are blanked.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = (1..).zip(self.code.lines());
        lines.filter(|(number, _)| !self.tests.iter().any(|lines| lines.contains(number)))
    }
}

/// Reads every Rust file below a folder of the repository.
fn files(folder: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        for path in paths {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file");
                let path = path.strip_prefix(root).expect("below the root").display().to_string();
                sources.push(Source::new(&path, &text));
            }
        }
    }
    assert!(!sources.is_empty(), "no sources in {folder}");
    sources
}

/// All files, read once.
static FILES: LazyLock<Vec<Source>> =
    LazyLock::new(|| ["src", "tests", "benches"].into_iter().flat_map(files).collect());

/// The files below `src` that are not tests.
fn sources() -> impl Iterator<Item = &'static Source> {
    let tests: Vec<&String> = FILES.iter().flat_map(|source| &source.test_files).collect();
    FILES.iter().filter(|source| source.path.starts_with("src/")).filter(move |source| {
        let mut rests = tests.iter().filter_map(|test| source.path.strip_prefix(test.as_str()));
        // A test file may name another, by its path.
        !source.path.ends_with("_tests.rs") && !rests.any(|rest| rest == ".rs" || rest.starts_with('/'))
    })
}

#[derive(Default)]
struct Breaches(String);

impl Breaches {
    fn note(&mut self, source: &Source, line: usize, rule: &str, reason: &str) {
        let _ = writeln!(self.0, "{}:{line}: {rule}, {reason}", source.path);
    }
}

/// Returns what a rule says to some files.
fn breaches<'a>(
    rule: impl Fn(&Source, &mut Breaches),
    sources: impl IntoIterator<Item = &'a Source>,
) -> String {
    let mut breaches = Breaches::default();
    sources.into_iter().for_each(|source| rule(source, &mut breaches));
    breaches.0
}

/// Asserts that the repository keeps a rule.
fn assert_kept<'a>(rule: impl Fn(&Source, &mut Breaches), sources: impl IntoIterator<Item = &'a Source>) {
    let found = breaches(rule, sources);
    assert!(found.is_empty(), "\n{found}");
}

/// Asserts that a rule finds something in each of these files: paths and texts.
fn assert_finds(rule: impl Fn(&Source, &mut Breaches), files: &[(&str, &str)]) {
    for (path, text) in files {
        assert!(!breaches(&rule, [&Source::new(path, text)]).is_empty(), "not found in {path}:\n{text}");
    }
}

/// Asserts that a rule finds nothing in these files: paths and texts.
fn assert_passes(rule: impl Fn(&Source, &mut Breaches), files: &[(&str, &str)]) {
    for (path, text) in files {
        assert_eq!(breaches(&rule, [&Source::new(path, text)]), "", "in:\n{text}");
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
    let rule = |source: &Source, breaches: &mut Breaches| {
        let allowed = may(source.room());
        let climb = source.climb();
        for (number, line) in source.code() {
            if line.contains("crate::{") || climb.as_ref().is_some_and(|climb| line.contains(climb)) {
                breaches.note(
                    source,
                    number,
                    "a room that is not named by `crate::` and its name",
                    "this test reads one path a line",
                );
            }
            for other in rooms.iter().filter(|other| **other != source.room() && !allowed.contains(*other)) {
                let named = [format!("crate::{other}"), format!("liveswap::{other}")];
                if named.iter().any(|path| has_word(line, path)) {
                    let rule = format!("`{}` does not know `{other}`", source.room());
                    breaches.note(source, number, &rule, "see the map in src/lib.rs");
                }
            }
        }
    };
    assert_finds(
        rule,
        &[
            ("src/core/a.rs", "use crate::sys::clock;"),
            ("src/core/a.rs", "#[cfg(test)]\nmod tests;\nuse crate::sys::clock;"),
            ("src/sys/a/b.rs", "const URL: &str = \"http://\"; use crate::core::ids;"),
            ("src/cli/a.rs", "fn f() { crate::sys::clock::now() }"),
            ("src/daemon/a.rs", "use crate::{core, sys};"),
            ("src/core/mod.rs", "use super::sys;"),
            ("src/core/a/b.rs", "use super::super::super::sys;"),
        ],
    );
    assert_passes(
        rule,
        &[
            ("src/core/a.rs", "use crate::core::ids; // Not crate::sys.\nconst A: &str = \"crate::sys\";"),
            ("src/core/a.rs", "#[cfg(test)]\nmod tests { use crate::sys::clock; }"),
            ("src/core/a.rs", "use crate::system; use super::ids;"),
            ("src/daemon/a/b.rs", "use crate::sys::clock; use super::super::run;"),
            ("src/lib.rs", "use crate::sys::clock;"),
        ],
    );
    assert_kept(rule, sources());
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
    let rule = |source: &Source, breaches: &mut Breaches| {
        let is_pure = matches!(source.room(), "core" | "plain");
        for (number, line) in source.code().filter(|_| is_pure) {
            for (word, reason) in impure.iter().filter(|(word, _)| has_word(line, word)) {
                breaches.note(source, number, &format!("`{}` does not name `{word}`", source.room()), reason);
            }
        }
    };
    assert_finds(
        rule,
        &[
            ("src/core/a.rs", "use std::time::Instant;"),
            ("src/core/a.rs", "const A: char = '\"'; use std::fs::File; // \""),
            ("src/core/a/b.rs", "#[cfg(test)]\nuse std::fs;\nfn f() { println!() }"),
        ],
    );
    assert_passes(
        rule,
        &[
            ("src/core/a.rs", "/* An Instant. */ struct Instantly; const A: &str = r#\"\"Instant\"#;"),
            ("src/core/a.rs", "#[cfg(test)]\nfn f() { println!() }"),
            ("src/daemon/a.rs", "use std::time::Instant;"),
        ],
    );
    assert_kept(rule, sources());
}

#[test]
fn unsafe_code_stands_in_sys_and_says_why_it_is_sound() {
    let rule = |source: &Source, breaches: &mut Breaches| {
        let lines: Vec<&str> = source.text.lines().collect();
        for (number, line) in source.code().filter(|(_, line)| has_word(line, "unsafe")) {
            if source.room() != "sys" {
                breaches.note(source, number, "`unsafe` outside sys", "there is one unsafe door");
            }
            let is_block = line.contains("unsafe {") || line.contains("unsafe impl");
            let comments = lines[..number - 1].iter().rev().take(12).any(|line| line.contains("// SAFETY:"));
            if is_block && !comments {
                breaches.note(
                    source,
                    number,
                    "an unsafe block without `// SAFETY:`",
                    "the reader must not guess",
                );
            }
        }
    };
    assert_finds(
        rule,
        &[
            ("src/sys/a.rs", "fn f() { unsafe { g() } }"),
            ("src/daemon/a.rs", "// SAFETY: why.\nunsafe { g() }"),
            ("src/daemon/a.rs", "unsafe fn f() {}"),
        ],
    );
    assert_passes(
        rule,
        &[
            ("src/sys/a.rs", "// SAFETY: why.\nunsafe { g() }"),
            ("src/daemon/a.rs", "// unsafe {\nconst A: &str = \"unsafe {\";"),
        ],
    );
    assert_kept(rule, sources());
}

#[test]
fn what_is_printed_goes_through_one_door() {
    // What each of these writes is its own, or was made printable.
    let doors = [
        "src/cli/output.rs",      // The door.
        "src/cli/demo/show.rs",   // Draws by cursor movements.
        "src/cli/demo/worker.rs", // Is a worker, whose output is the manager's to show.
        "src/daemon/handover.rs", // Answers the manager by a pipe.
    ];
    let macros = ["println!", "eprintln!", "print!", "eprint!", "dbg!"];
    // clap prints what was typed, with the words of others in it.
    let ways = ["stdout()", "stderr()", ".exit()", "parse_from(", "Cli::parse("];
    let rule = |source: &Source, breaches: &mut Breaches| {
        let is_for_people = matches!(source.room(), "cli" | "");
        for (number, line) in source.code().filter(|_| !doors.contains(&source.path.as_str())) {
            let macros = macros.iter().filter(|name| has_word(line, name));
            let ways = ways.iter().filter(|way| is_for_people && line.contains(**way));
            for way in macros.chain(ways) {
                let rule = format!("`{way}` outside cli/output.rs");
                breaches.note(source, number, &rule, "nothing of others reaches a terminal as it came");
            }
        }
    };
    assert_finds(
        rule,
        &[
            ("src/cli/a.rs", "fn f() { eprintln!(\"{name}\") }"),
            ("src/daemon/a.rs", "fn f() { dbg!(name) }"),
            ("src/main.rs", "fn f() { stderr().write_all(name) }"),
        ],
    );
    assert_passes(
        rule,
        &[
            ("src/cli/output.rs", "fn f() { println!(\"{name}\") }"),
            ("src/cli/a.rs", "/// println! /* stdout() */\nconst A: &str = \"print!\";"),
            ("src/daemon/a.rs", "fn f() { stderr().is_terminal() }"),
        ],
    );
    assert_kept(rule, sources());
}

#[test]
fn no_file_and_no_function_outgrows_its_ceiling() {
    const FILE: usize = 400;
    const FUNCTION: usize = 70;
    let rule = |source: &Source, breaches: &mut Breaches| {
        let length = source.code().count();
        if length > FILE {
            let rule = format!("{length} lines without tests, {FILE} at most");
            breaches.note(source, length, &rule, "it wants to be two rooms");
        }
        let is_test = |line: &usize| source.tests.iter().any(|lines| lines.contains(line));
        for lines in code::functions(&source.code).into_iter().filter(|lines| !is_test(lines.start())) {
            let length = lines.clone().count();
            if length > FUNCTION {
                let rule = format!("a function of {length} lines, {FUNCTION} at most");
                breaches.note(source, *lines.start(), &rule, "it does not fit on a screen");
            }
        }
    };
    let path = "src/core/a.rs";
    let function = |lines: usize| format!("fn f() {{\n{}}}\n", "    g('{');\n".repeat(lines - 2));
    let test = |inner: &str| format!("#[cfg(test)]\nmod tests {{\n{inner}}}\n");
    assert_finds(
        rule,
        &[
            (path, &"\n".repeat(FILE + 1)),
            (path, &(test("") + &"\n".repeat(FILE + 1))),
            (path, &function(FUNCTION + 1)),
            (path, &(test("") + &function(FUNCTION + 1))),
        ],
    );
    assert_passes(
        rule,
        &[
            (path, &"\n".repeat(FILE)),
            (path, &function(FUNCTION).repeat(2)),
            (path, &test(&function(FILE + 1))),
            (path, &format!("struct A {{\n    f: fn(),\n{}}}\n", "    a: u8,\n".repeat(FUNCTION))),
        ],
    );
    assert_kept(rule, sources());
}

#[test]
fn lints_are_expected_with_a_reason_and_never_allowed() {
    let rule = |source: &Source, breaches: &mut Breaches| {
        for (number, line) in (1..).zip(source.code.lines()) {
            if line.contains("[allow(") || line.contains("cfg_attr") && has_word(line, "allow") {
                let reason = "`expect` with a reason notices when it is stale";
                breaches.note(source, number, "an allowed lint", reason);
            }
        }
    };
    assert_finds(
        rule,
        &[
            ("src/a.rs", "#![allow(dead_code)]"),
            ("tests/a.rs", "#[cfg(test)]\nmod tests {\n#[allow(dead_code)]\nfn f() {}\n}"),
            ("src/a.rs", "#[cfg_attr(test, allow(dead_code))]"),
        ],
    );
    assert_passes(
        rule,
        &[(
            "src/a.rs",
            "// #[allow(x)]\n#[expect(x, reason = \"[allow(\")]\nfn allow(a: bool) { s.allow(a) }",
        )],
    );
    assert_kept(rule, FILES.iter());
}

#[test]
fn every_file_says_what_it_is_for() {
    let rule = |source: &Source, breaches: &mut Breaches| {
        // The lints of a file may come first, but no item.
        let items = ["use ", "pub ", "mod ", "fn ", "const ", "static ", "struct ", "enum ", "impl "];
        let is_item = |line: &&str| items.iter().any(|item| line.starts_with(item));
        if !source.text.lines().take_while(|line| !is_item(line)).any(|line| line.starts_with("//! ")) {
            breaches.note(source, 1, "no module documentation", "the reader begins here");
        }
    };
    assert_finds(
        rule,
        &[("src/a.rs", "use std::fs;\n//! Late."), ("src/a.rs", "/// Of the item.\nfn f() {}")],
    );
    assert_passes(rule, &[("src/a.rs", "#![expect(unsafe_code)]\n//! What it is for.\nuse std::fs;")]);
    assert_kept(rule, FILES.iter());
}

#[test]
fn text_is_told_from_code() {
    for (text, code) in [
        ("a // b\nc", "a     \nc"),
        ("a /* b /* c */ d */ e", "a                   e"),
        ("a /* b", "a     "),
        (r#"f("//", b"\\", c"\"", x)"#, r"f(    , b    , c    , x)"),
        (r##"r"\" r#"a"b"# br""; r#fn"##, "                  ; r#fn"),
        (r#"('a', '\'', b'\\', '\u{1}', '"')"#, "(   ,     , b    ,        ,    )"),
        ("fn f<'a, 'b>(x: &'a str) { 'c: loop {} }", "fn f<'a, 'b>(x: &'a str) { 'c: loop {} }"),
        ("\"a\n  }\" b", "  \n     b"),
    ] {
        assert_eq!(code::blank(text), code, "{text}");
    }
}

#[test]
fn what_is_a_test_ends_where_its_item_ends() {
    for (text, tests) in [
        ("#[cfg(test)]\nmod tests;\nfn f() {}", 1..=2),
        ("\n#[cfg(test)]\n#[path = \"a.rs\"]\n#[expect(a, reason = \"]\")]\nmod a;\nfn f() {}", 2..=5),
        ("#[cfg(test)]\nuse a::{\n    b,\n};\nfn f() {}", 1..=4),
        ("#[cfg(test)]\nfn f(a: [u8; 2]) {\n    if a { \"}\"; }\n}\nfn g() {}", 1..=4),
        ("#[cfg(test)]\npub(crate) mod tests {\n    fn f() {}\n}\nfn f() {}", 1..=4),
        ("#[cfg(test)]\nconst A: [u8; 2] = [\n    1, 2];\nfn f() {}", 1..=3),
        ("#[cfg(test)]\nstruct A(\n    u8);\nfn f() {}", 1..=3),
    ] {
        assert_eq!(Source::new("src/a.rs", text).tests, [tests], "{text}");
    }
    let texts = ["// #[cfg(test)]\nmod tests;", "const A: &str = \"#[cfg(test)]\";"];
    assert!(texts.iter().all(|text| Source::new("src/a.rs", text).tests.is_empty()));
    let named = |path: &str| Source::new(path, "#[cfg(test)]\nmod tests;\nmod other;").test_files;
    assert_eq!(named("src/core/mod.rs"), ["src/core/tests"]);
    assert_eq!(named("src/core/spec.rs"), ["src/core/spec/tests"]);
    assert_eq!(named("src/lib.rs"), ["src/tests"]);
}
