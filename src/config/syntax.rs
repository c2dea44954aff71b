//! Finds all syntax errors of a file, and leaves a text of the same length without them.
//!
//! The TOML parser goes on after an error, but what it then finds is often nonsense: with a `]` missing, the rest of
//! the file is one array. So the first error alone is believed, its lines are blanked, and the rest is parsed again.

use toml::de::{DeTable, DeValue, Error};

use super::diagnostics::Problem;
use super::reader::{Span, shown};

/// After so many errors the rest of the file is not searched for more.
const ERRORS_MAX: usize = 32;

/// A file without its syntax errors.
#[derive(Debug)]
pub(super) struct Recovered {
    /// The file with blanks in place of what could not be read: places in it are places in the file.
    pub text: String,
    /// The syntax errors.
    pub problems: Vec<Problem>,
    /// What was blanked, and tables whose header was: keys there may seem to stand in another table.
    pub shadows: Vec<Span>,
}

/// Finds the syntax errors of `text`.
pub(super) fn recover(text: &str) -> Recovered {
    let mut recovered = Recovered { text: text.to_owned(), problems: Vec::new(), shadows: Vec::new() };
    for _ in 0..ERRORS_MAX {
        let (tree, errors) = DeTable::parse_recoverable(&recovered.text);
        let unread = errors.iter().filter(|error| !is_structural(error));
        let Some(first) = unread.min_by_key(|error| place(error, text).start) else {
            recovered.problems.extend(errors.iter().map(|error| problem(text, error)));
            return recovered;
        };
        let never_ends = errors.iter().any(is_unclosed_value);
        let (problem, lines) = explain(text, tree.get_ref(), first, never_ends);
        if recovered.text[lines.clone()].trim().is_empty() {
            recovered.problems.push(problem);
            return recovered;
        }
        let blank: String =
            text[lines.clone()].bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }).collect();
        recovered.text.replace_range(lines.clone(), &blank);
        recovered.shadows.push(shadow(text, lines));
        recovered.problems.push(problem);
    }
    recovered
}

/// Says so if a text is JSON, in which every line is wrong: no TOML file starts with a brace.
pub(super) fn json(text: &str) -> Option<Problem> {
    let start = text.len() - text.trim_start().len();
    text[start..].starts_with('{').then(|| Problem {
        message: "this is JSON, and a service file is TOML".into(),
        span: start..start + 1,
        label: "TOML starts with a table, such as [service]".into(),
        help: Some("write a line [service] and below it command = [\"./server\"]".into()),
    })
}

/// Whether all could be read, and only the tree does not fit together.
fn is_structural(error: &Error) -> bool {
    error.message() == "duplicate key" || error.message().starts_with("cannot extend")
}

fn is_unclosed_value(error: &Error) -> bool {
    ["unclosed array,", "unclosed inline table,", "invalid multi-line"]
        .iter()
        .any(|message| error.message().starts_with(message))
}

fn place(error: &Error, text: &str) -> Span {
    error.span().unwrap_or(text.len()..text.len())
}

/// Returns the problem that `error` stands for, and the lines that it spoils: those of the value that it is in. A
/// value that never ends is a problem where it begins, unless the line where it begins has one of its own.
fn explain(text: &str, tree: &DeTable<'_>, error: &Error, never_ends: bool) -> (Problem, Span) {
    let at = place(error, text).start;
    let around = value_around(tree, at);
    match around {
        Some(value) if never_ends => {
            let line = line_start(text, value.start)..line_end(text, value.start);
            if line.contains(&at) {
                return (problem(text, error), line);
            }
            let problem = Problem {
                message: "syntax error: this value never ends".into(),
                span: value.start..value.start + 1,
                label: "opened here".into(),
                help: Some("its closing bracket or quotes are missing".into()),
            };
            (problem, line)
        }
        Some(value) => (problem(text, error), line_start(text, value.start)..line_end(text, value.end)),
        None => (problem(text, error), line_start(text, at)..line_end(text, at)),
    }
}

/// Returns the outermost value that reaches `at`.
fn value_around(tree: &DeTable<'_>, at: usize) -> Option<Span> {
    tree.iter().find_map(|(_, value)| {
        let span = value.span();
        match value.get_ref() {
            _ if span.start < at && at <= span.end => Some(span),
            DeValue::Table(inner) => value_around(inner, at),
            DeValue::Array(array) => array.iter().find_map(|element| match element.get_ref() {
                DeValue::Table(inner) => value_around(inner, at),
                _ => None,
            }),
            _ => None,
        }
    })
}

/// Returns what blanked lines make doubtful: where they begin with a header, all up to the next one.
fn shadow(text: &str, lines: Span) -> Span {
    if !text[lines.clone()].trim_start().starts_with('[') {
        return lines;
    }
    let mut end = lines.end;
    while end < text.len() && !text[end..].starts_with('[') {
        end = line_end(text, end);
    }
    lines.start..end
}

fn line_start(text: &str, at: usize) -> usize {
    text.as_bytes()[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1)
}

/// Returns the end of the line, its line break included.
fn line_end(text: &str, at: usize) -> usize {
    text.as_bytes()[at..]
        .iter()
        .position(|byte| *byte == b'\n')
        .map_or(text.len(), |newline| at + newline + 1)
}

/// Words an error of the TOML parser.
fn problem(text: &str, error: &Error) -> Problem {
    let span = place(error, text);
    let found = text.get(span.clone()).map(shown).unwrap_or_default();
    let (what, expected) = error.message().split_once(", expected ").unwrap_or((error.message(), ""));
    let mut problem =
        Problem { message: format!("syntax error: {what}"), span, label: String::new(), help: None };
    match what {
        "duplicate key" => {
            problem.message = format!("`{found}` is defined twice");
            problem.label = "defined before".into();
        }
        "string values must be quoted" | "invalid boolean" => {
            problem.help = Some(format!("write \"{found}\""));
        }
        "unexpected leading zero" => {
            problem.help = Some("permissions are written as \"0660\" or 0o660".into());
        }
        _ if matches!(expected, "" | "nothing") => {}
        _ => problem.label = format!("expected {expected}"),
    }
    problem
}
