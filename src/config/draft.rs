//! A service file that is made of a command line, and remembers which words each piece of it came from.

use std::ops::Range;
use std::path::Path;

use super::{Diagnostics, Origin, Problem, check};
use crate::core::printable::printable;
use crate::core::spec::ServiceSpec;

/// Where problems are said to be.
pub const COMMAND_LINE: &str = "command line";

/// A service file in the making, beside the command line that it is made of.
#[derive(Debug)]
pub(super) struct Draft {
    pub file: String,
    pub line: String,
    /// Where each value stands in the one and in the other.
    pieces: Vec<(Range<usize>, Range<usize>)>,
}

impl Draft {
    /// Begins with the words that every such line begins with.
    pub fn of(line: &str) -> Self {
        Self { file: String::new(), line: line.into(), pieces: Vec::new() }
    }

    /// Makes a service of it; `flags` are what keys are called on the line.
    ///
    /// # Errors
    ///
    /// All that is wrong with it.
    pub fn check(
        &self,
        directory: &Path,
        cpus: u32,
        flags: &[(&str, &str)],
    ) -> Result<ServiceSpec, Diagnostics> {
        // Of the path only the folder is ever asked for: the draft has a name.
        let origin = Origin { path: directory.join(COMMAND_LINE), cpus };
        check(&self.file, &origin).map_err(|problems| {
            let problems = problems.into_iter().map(|problem| self.on_the_line(problem, flags));
            Diagnostics::new(&self.line, Path::new(COMMAND_LINE), problems.collect())
        })
    }

    /// Adds a value to the file that comes from the next word of the line, which has so many bytes.
    pub fn write_for_next(&mut self, text: &str, length: usize) {
        let written = self.write(text);
        let start = self.line.len() + 1;
        self.pieces.push((written, start..start + length));
    }

    fn write(&mut self, text: &str) -> Range<usize> {
        let start = self.file.len();
        self.file.push_str(text);
        start..self.file.len()
    }

    /// Adds a value to both: `written` to the file, the flag and the word to the line.
    pub fn word(&mut self, flag: &str, word: &str, written: &str) {
        self.words(flag, &in_a_shell(word), written);
    }

    /// As [`Draft::word`], for words that are written as one types them.
    pub fn words(&mut self, flag: &str, words: &str, written: &str) {
        if !flag.is_empty() {
            self.line.push(' ');
            self.line.push_str(flag);
        }
        self.line.push(' ');
        let start = self.line.len();
        self.line.push_str(words);
        let place = start..self.line.len();
        let written = self.write(written);
        self.pieces.push((written, place));
    }

    /// Puts a problem of the file into words of the command line.
    fn on_the_line(&self, mut problem: Problem, flags: &[(&str, &str)]) -> Problem {
        let piece = self.pieces.iter().find(|(written, _)| written.contains(&problem.span.start));
        problem.span = piece.map_or(0..0, |(_, place)| place.clone());
        for (key, flag) in flags {
            problem.message = problem.message.replace(key, flag);
        }
        // On a command line everything is one.
        if problem.label == "this is a string" {
            problem.label = "this is neither".into();
        }
        if problem.message.starts_with("`--name`") {
            problem.help.get_or_insert_with(|| "give it a name by --name".into());
        }
        problem
    }
}

/// Writes a string as TOML does (toml.io, "Basic strings"): JSON's form, but for the one character that only TOML escapes.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007F")
}

/// Writes a word as one would type it.
pub(super) fn in_a_shell(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_./:@%+=,-[]{}".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", printable(word).replace('\'', "'\\''"))
}
