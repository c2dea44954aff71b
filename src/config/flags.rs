//! A service made of flags: they are written down as a service file, which goes through the same door as any other.
//!
//! So each check, each default and each word of an error is that of a file. Only the place of an error differs: it is
//! shown on the command line, for which a [`Draft`] remembers the words that each piece of its file came from.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Diagnostics, Origin, Problem, check};
use crate::core::spec::ServiceSpec;

/// Where problems are said to be.
pub const COMMAND_LINE: &str = "command line";

/// What keys are called on the command line.
const FLAG_OF_KEY: [(&str, &str); 5] = [
    ("`listen`", "`-l`"),
    ("`workers`", "`-n`"),
    ("`name`", "`--name`"),
    ("`protocol`", "`--protocol`"),
    ("`command`", "COMMAND"),
];

/// What was given instead of a service file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flags {
    /// The service's name; default: the stem of the program's.
    pub name: Option<String>,
    /// The addresses.
    pub listen: Vec<String>,
    /// A number of workers, or `auto`.
    pub workers: Option<String>,
    /// How workers learn of sockets and speak.
    pub protocol: Option<String>,
    /// The argument vector, never empty.
    pub command: Vec<String>,
    /// The absolute path of the folder to start in, symbolic links not resolved.
    pub directory: PathBuf,
}

impl Flags {
    /// Returns the name that the service has where none is given.
    fn default_name(&self) -> String {
        let program = self.command.first().map_or("", String::as_str);
        Path::new(program).file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn draft(&self) -> Draft {
        let mut draft = Draft { line: "liveswap run".into(), ..Draft::default() };
        draft.file.push_str("socket = [");
        for address in &self.listen {
            draft.file.push_str("{ listen = ");
            draft.word("-l", address, &quoted(address));
            draft.file.push_str(" }, ");
        }
        draft.file.push_str("]\n[service]\n");
        for (key, flag, value) in [
            ("name", "--name", &self.name),
            ("workers", "-n", &self.workers),
            ("protocol", "--protocol", &self.protocol),
        ] {
            if let Some(value) = value {
                draft.file.push_str(key);
                draft.file.push_str(" = ");
                // A number of a service file is not in quotes.
                let number = value.parse().ok().filter(|_: &u32| key == "workers");
                draft.word(flag, value, &number.map_or_else(|| quoted(value), |number| number.to_string()));
                draft.file.push('\n');
            }
        }
        draft.line.push_str(" --");
        if self.name.is_none() {
            draft.file.push_str("name = ");
            let written = draft.write(&quoted(&self.default_name()));
            // The program is the next word.
            let start = draft.line.len() + 1;
            let program = self.command.first().map_or(0, |program| in_a_shell(program).len());
            draft.pieces.push((written, start..start + program));
            draft.file.push('\n');
        }
        draft.file.push_str("command = [");
        for word in &self.command {
            draft.word("", word, &quoted(word));
            draft.file.push_str(", ");
        }
        draft.file.push_str("]\n");
        draft
    }
}

/// Makes a service of flags; `cpus` is what `-n auto` stands for.
///
/// # Errors
///
/// All that is wrong with them.
pub fn parse(flags: &Flags, cpus: u32) -> Result<ServiceSpec, Diagnostics> {
    let draft = flags.draft();
    // Of the path only the folder is ever asked for: the draft has a name.
    let origin = Origin { path: flags.directory.join(COMMAND_LINE), cpus };
    check(&draft.file, &origin).map_err(|problems| {
        let problems = problems.into_iter().map(|problem| draft.on_the_line(problem));
        Diagnostics::new(&draft.line, Path::new(COMMAND_LINE), problems.collect())
    })
}

/// A service file in the making, beside the command line that it is made of.
#[derive(Debug, Default)]
struct Draft {
    file: String,
    line: String,
    /// Where each value stands in the one and in the other.
    pieces: Vec<(Range<usize>, Range<usize>)>,
}

impl Draft {
    fn write(&mut self, text: &str) -> Range<usize> {
        let start = self.file.len();
        self.file.push_str(text);
        start..self.file.len()
    }

    /// Adds a value to both: `written` to the file, the flag and the word to the line.
    fn word(&mut self, flag: &str, word: &str, written: &str) {
        if !flag.is_empty() {
            self.line.push(' ');
            self.line.push_str(flag);
        }
        self.line.push(' ');
        let start = self.line.len();
        self.line.push_str(&in_a_shell(word));
        let place = start..self.line.len();
        let written = self.write(written);
        self.pieces.push((written, place));
    }

    /// Puts a problem of the file into words of the command line.
    fn on_the_line(&self, mut problem: Problem) -> Problem {
        let piece = self.pieces.iter().find(|(written, _)| written.contains(&problem.span.start));
        problem.span = piece.map_or(0..0, |(_, place)| place.clone());
        for (key, flag) in FLAG_OF_KEY {
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
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007F")
}

/// Writes a word as one would type it.
fn in_a_shell(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_./:@%+=,-[]{}".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    let printable: String = word
        .chars()
        .flat_map(|c| if c.is_control() { c.escape_debug().collect() } else { vec![c] })
        .collect();
    format!("'{}'", printable.replace('\'', "'\\''"))
}
