//! The documents against the program: links lead somewhere, quotes are exact, service files are sound.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use liveswap::cli::report::Status;
use liveswap::config::{self, Origin};
use support::documents::{anchors, blocks, document, documents, links, spans};

#[test]
fn every_link_in_the_documents_leads_somewhere() {
    let mut broken = Vec::new();
    for file in documents() {
        let text = fs::read_to_string(&file).expect("a document");
        for link in links(&text).filter(|link| !link.contains("://")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = file.parent().expect("a folder").join(path);
            let target = if path.is_empty() { file.clone() } else { target };
            if !target.exists() {
                broken.push(format!("{}: {link}: no such file", file.display()));
            } else if !anchor.is_empty()
                && !anchors(&fs::read_to_string(&target).expect("text")).contains(&anchor.into())
            {
                broken.push(format!("{}: {link}: no such heading", file.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn what_the_guide_quotes_stands_in_the_examples() {
    let guide = document("docs/guide.md");
    let text = fs::read_to_string(&guide).expect("the guide");
    let mut quotes = 0;
    for block in blocks(&text) {
        // A quote names its source in the line before it.
        let Some(source) = links(block.before).last().filter(|link| link.starts_with("examples/")) else {
            continue;
        };
        let whole = fs::read_to_string(guide.with_file_name(source)).expect("a source");
        assert!(whole.contains(block.text), "{source} does not say:\n{}", block.text);
        quotes += 1;
    }
    assert!(quotes >= 4, "only {quotes} quotes were found");
}

#[test]
fn every_service_file_in_the_documents_is_sound() {
    let mut files = 0;
    for file in documents() {
        let text = fs::read_to_string(&file).expect("a document");
        for block in blocks(&text).into_iter().filter(|block| block.language == "toml") {
            let origin = Origin { path: "/srv/web.toml".into(), cpus: 2 };
            // An excerpt lacks the one key that must be there.
            let excerpt = match (block.text.contains("[service]"), block.text.contains("command =")) {
                (true, true) => block.text.to_owned(),
                (true, false) => block.text.replace("[service]\n", "[service]\ncommand = [\"./server\"]\n"),
                (false, _) => format!("{}\n[service]\ncommand = [\"./server\"]\n", block.text),
            };
            if let Err(problems) = config::parse(&excerpt, &origin) {
                panic!("{}: {}", file.display(), problems.render(false));
            }
            files += 1;
        }
    }
    assert!(files >= 5, "only {files} service files were found");
}

/// The names of things that a command line of a document stands for, and what is tried for each.
const PLACEHOLDERS: [(&str, &str); 6] =
    [("NAME", "web"), ("N", "2"), ("FILE", "web.toml"), ("TEXT", "hello"), ("PATH", "v2"), ("SHELL", "bash")];

#[test]
fn every_command_line_in_the_documents_is_understood() {
    let mut lines = 0;
    let mut wrong = Vec::new();
    for file in documents() {
        let text = fs::read_to_string(&file).expect("a document");
        for line in command_lines(&text) {
            let placed = |word: &String| {
                let found = PLACEHOLDERS.iter().find(|(name, _)| name == word);
                found.map_or_else(|| word.clone(), |(_, value)| (*value).to_owned())
            };
            let words: Vec<String> = line.words.iter().map(placed).collect();
            let mut command = Command::new(env!("CARGO_BIN_EXE_liveswap"));
            // It parses the words as they are, and does nothing of what they ask for.
            if !words.iter().any(|word| word == "--help") {
                command.args(["try-handover", "--"]);
            }
            let output = command.args(&words).output().expect("the program");
            let said = String::from_utf8_lossy(&output.stderr);
            let is_short = ["required arguments were not provided", "a value is required"];
            let is_short = is_short.iter().any(|words| said.contains(words));
            if output.status.code() == Some(2) && (line.is_whole || !is_short) {
                wrong.push(format!("{}: liveswap {}: {said}", file.display(), words.join(" ")));
            }
            lines += 1;
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(lines >= 40, "only {lines} command lines were found");
}

/// A command line in a document.
struct CommandLine {
    /// What comes after `liveswap`.
    words: Vec<String>,
    /// Whether it is one to copy. One in the text may name a command or a flag and leave out its value.
    is_whole: bool,
}

fn command_lines(text: &str) -> Vec<CommandLine> {
    let shells = ["sh", "console"];
    let blocks = blocks(text).into_iter().filter(|block| shells.contains(&block.language));
    let lines =
        blocks.flat_map(|block| block.text.lines()).map(|line| line.trim_start_matches(['$', '#', ' ']));
    // Neither a synopsis nor a line of the log, as in `liveswap 0.1.0 goes on`.
    let is_command = |span: &&str| {
        let is_number =
            span.trim_start_matches("liveswap ").starts_with(|first: char| first.is_ascii_digit());
        !span.contains(['[', '…', '|']) && !is_number
    };
    let spans = spans(text);
    let spans = spans.iter().map(String::as_str).filter(is_command);
    let commands = lines.map(|line| (line, true)).chain(spans.map(|span| (span, false)));
    let commands = commands.flat_map(|(line, is_whole)| line.split("&&").map(move |part| (part, is_whole)));
    let words = |(part, is_whole): (&str, bool)| {
        let words = shell_words(part.trim().strip_prefix("liveswap ")?);
        Some(CommandLine { words, is_whole })
    };
    commands.filter_map(words).collect()
}

/// The words of a command, up to what ends it in a shell.
fn shell_words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for character in line.chars() {
        let word = words.last_mut().expect("a word");
        match (quote, character) {
            (None, '\'' | '"') => quote = Some(character),
            (Some(open), _) if open == character => quote = None,
            (None, '&' | ';' | '>' | '#') => break,
            (None, ' ') if word.is_empty() => {}
            (None, ' ') => words.push(String::new()),
            _ => word.push(character),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[test]
fn every_command_is_in_the_table_of_commands() {
    let help = Command::new(env!("CARGO_BIN_EXE_liveswap")).arg("--help").output().expect("the program");
    let help = String::from_utf8(help.stdout).expect("UTF-8");
    let (_, commands) = help.split_once("Commands:\n").expect("the commands");
    let commands = commands.lines().take_while(|line| !line.is_empty());
    let commands: Vec<_> = commands.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(commands.len() >= 12, "{commands:?}");
    let reference = fs::read_to_string(document("docs/control.md")).expect("the reference");
    for command in commands.into_iter().filter(|command| *command != "help").chain(["man"]) {
        assert!(
            reference.contains(&format!("| `liveswap {command}")),
            "`{command}` is not in docs/control.md"
        );
    }
}

#[test]
fn the_tables_of_exit_statuses_are_those_of_the_program() {
    let statuses = [
        Status::Done,
        Status::Failed,
        Status::Usage,
        Status::BadFile,
        Status::NoManager,
        Status::Unwritten,
        Status::Interrupted,
        Status::Unread,
    ];
    let mut expected: BTreeSet<i32> = statuses.map(|status| status as i32).into();
    expected.insert(liveswap::daemon::BUG);
    let mut told = BTreeSet::new();
    for name in ["docs/control.md", "docs/guide.md"] {
        let text = fs::read_to_string(document(name)).expect("a document");
        let tables = text.split("| exit status |").chain(text.split("| status | `liveswap run` |")).skip(1);
        for table in tables.filter_map(|table| table.split_once("|---|").map(|(_, table)| table)) {
            let rows = table.lines().skip(1).take_while(|line| line.starts_with('|'));
            told.extend(rows.filter_map(|row| row.split('|').nth(1)?.trim().parse::<i32>().ok()));
        }
    }
    assert_eq!(told, expected);
    let help = Command::new(env!("CARGO_BIN_EXE_liveswap")).arg("--help").output().expect("the program");
    let help = String::from_utf8(help.stdout).expect("UTF-8");
    let (_, help) = help.split_once("Exit status:").expect("the exit statuses");
    let is_number = |one: char| one.is_ascii_digit();
    let numbers = help.split(|one| !is_number(one)).filter_map(|number| number.parse::<i32>().ok());
    let strange: Vec<_> = numbers.filter(|number| !expected.contains(number)).collect();
    assert!(strange.is_empty(), "{strange:?} of `liveswap --help`");
}

#[test]
fn every_key_that_the_documents_name_is_one() {
    let tables = ["service", "socket", "ready", "upgrade", "drain", "restart", "watchdog", "control"];
    let is_known = |table: &str, key: &str| {
        let header =
            if table == "socket" { "[[socket]]\nlisten = '@a'".into() } else { format!("[{table}]") };
        let service = if table == "service" { "command = ['a']" } else { "[service]\ncommand = ['a']" };
        let origin = Origin { path: "/srv/web.toml".into(), cpus: 2 };
        let (first, second) =
            if table == "service" { (header, service.into()) } else { (service.into(), header) };
        let text = format!("{first}\n{second}\n{key} = 1\n");
        config::parse(&text, &origin)
            .err()
            .is_none_or(|problems| !problems.render(false).contains(&format!("unknown key `{key}`")))
    };
    assert!(is_known("drain", "timeout") && !is_known("drain", "tiemout") && !is_known("service", "timeout"));
    let mut unknown = Vec::new();
    for file in documents() {
        let text = fs::read_to_string(&file).expect("a document");
        for span in &spans(&text) {
            let named = span.strip_prefix('[').and_then(|rest| rest.trim_start_matches('[').split_once(']'));
            let (table, rest) = named.map_or((None, span.as_str()), |(table, rest)| (Some(table), rest));
            let rest = rest.trim_start_matches([']', ' ']);
            let key: String =
                rest.chars().take_while(|one| one.is_ascii_lowercase() || *one == '_').collect();
            // `key = value`, or `[table] key`.
            let is_set = rest[key.len()..].starts_with(" = ");
            let is_named = table.is_some_and(|table| tables.contains(&table)) && key.len() == rest.len();
            if key.is_empty() || !(is_set || is_named) {
                continue;
            }
            let is_key = match table {
                Some(table) if tables.contains(&table) => is_known(table, &key),
                _ => tables.iter().any(|table| is_known(table, &key)),
            };
            if !is_key {
                unknown.push(format!("{}: {span}", file.display()));
            }
        }
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
}

/// Messages of other programs that the documents quote.
const OF_OTHERS: [&str; 4] = [
    "Text file busy",
    "Resource temporarily unavailable",
    "Found left-over process 4711 (web-server) in control group while starting unit. Ignoring.",
    "This usually indicates unclean termination of a previous run",
];

/// The programs whose command lines the documents quote.
const PROGRAMS: [&str; 12] = [
    "cargo",
    "cd",
    "chown",
    "dmesg",
    "docker",
    "go",
    "journalctl",
    "kill",
    "liveswap",
    "mv",
    "systemctl",
    "hypercorn",
];

/// All texts of the program in one line, in lower case, with a NUL in the place of each value that is filled in.
fn texts_of_the_program() -> String {
    fn read(folder: &std::path::Path, all: &mut String) {
        for entry in fs::read_dir(folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                read(&path, all);
            } else if path.extension().is_some_and(|end| end == "rs") {
                all.push_str(&fs::read_to_string(&path).expect("a source file"));
            }
        }
    }
    let mut all = String::new();
    read(&document("src"), &mut all);
    let mut joined = String::new();
    let mut pieces = all.split("\\\n");
    joined.extend(pieces.next());
    // A line that is continued goes on without its indentation.
    joined.extend(pieces.map(str::trim_start));
    let mut filled = String::new();
    let mut rest = joined.as_str();
    while let Some((before, opened)) = rest.split_once('{') {
        filled.push_str(before);
        match opened.split_once('}') {
            Some((value, after)) if !value.contains(['"', '\n', '{']) => {
                filled.push('\0');
                rest = after;
            }
            _ => rest = opened,
        }
    }
    filled.push_str(rest);
    let words: Vec<_> = filled.split_whitespace().collect();
    words.join(" ").replace('`', "").to_lowercase()
}

/// The runs of words of a quote between what differs from case to case, and between its clauses.
fn fixed_runs(quote: &str) -> Vec<Vec<String>> {
    let spaced: String = quote
        .chars()
        .flat_map(|c| if ":;,.()".contains(c) { vec![' ', c, ' '] } else { vec![c] })
        .filter(|c| *c != '`')
        .collect();
    let varies = |word: &str| {
        let is_capital = word.chars().all(|c| c.is_ascii_uppercase());
        is_capital
            || word.contains(|c: char| c.is_ascii_digit() || "…/@{}<>=_|:;,.()".contains(c))
            || matches!(word, "ms" | "min" | "s" | "h" | "why")
    };
    let mut runs = vec![Vec::new()];
    for word in spaced.split_whitespace() {
        if varies(word) {
            runs.push(Vec::new());
        } else if let Some(run) = runs.last_mut() {
            run.push(word.to_lowercase());
        }
    }
    runs.retain(|run| run.len() > 2);
    runs
}

/// Whether a run stands in the texts, as a whole or made of parts: a value that is filled in may have words of its own. A part has two words
/// at least, but for one at either end.
fn stands_in(texts: &str, run: &[String], is_start: bool) -> bool {
    if texts.contains(&run.join(" ")) && (run.len() > 1 || !is_start) {
        return true;
    }
    let least = if is_start { 1 } else { 2 };
    (least..run.len()).any(|at| {
        let (part, rest) = run.split_at(at);
        texts.contains(&part.join(" ")) && stands_in(texts, rest, false)
    })
}

#[test]
fn what_the_documents_quote_of_the_log_is_what_the_program_says() {
    let texts = texts_of_the_program();
    let (mut wrong, mut held) = (Vec::new(), 0);
    for file in documents().into_iter().filter(|file| !file.ends_with("CHANGELOG.md") && !is_record(file)) {
        for quote in spans(&fs::read_to_string(&file).expect("a document")) {
            let mut words = quote.split(' ');
            let is_command =
                words.next().is_some_and(|first| PROGRAMS.contains(&first) || first.starts_with('{'));
            if is_command || words.any(|word| word.starts_with('-')) || OF_OTHERS.contains(&quote.as_str()) {
                continue;
            }
            for run in fixed_runs(&quote) {
                held += 1;
                if !stands_in(&texts, &run, true) {
                    wrong.push(format!("{}: {quote}: {}", file.display(), run.join(" ")));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(held > 100, "only {held} quotes are checked");
}

/// Records of decisions tell of what was.
fn is_record(file: &std::path::Path) -> bool {
    file.components().any(|part| part.as_os_str() == "adr")
}
