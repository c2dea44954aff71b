//! Reads the files of `environment_files`, by the rules of systemd's `EnvironmentFile=` (systemd.exec(5)).
//!
//! What systemd skips with a warning (a line without `=`, an odd name, a quote that never closes) is an error here:
//! a worker that starts without half of its settings is worse than an upgrade refused. No message quotes the file,
//! which may hold secrets.

use std::error::Error;
use std::fmt;
use std::mem;

use serde::{Deserialize, Serialize};

use crate::core::spec::is_protocol_variable;

/// All that is wrong with an environment file, in its order; never empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadEnvironment {
    /// Line, from 1, and what is wrong there.
    pub problems: Vec<(usize, String)>,
}

impl fmt::Display for BadEnvironment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (line, message)) in self.problems.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}line {line}: {message}")?;
        }
        Ok(())
    }
}

impl Error for BadEnvironment {}

/// Reads the text of an environment file. A name may come more than once; the last one counts.
///
/// # Errors
///
/// All lines that are neither blank, comment nor `NAME=VALUE`.
pub fn parse(text: &str) -> Result<Vec<(String, String)>, BadEnvironment> {
    let mut reader = Reader::default();
    for character in text.trim_start_matches('\u{feff}').replace("\r\n", "\n").chars() {
        reader.push(character);
    }
    reader.finish()
}

/// Where the reader is, as in `parse_env_file_internal()` of systemd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before a name.
    #[default]
    Line,
    Comment,
    Name,
    /// After `=`, or after a closing quote.
    BeforeValue,
    Bare,
    BareEscape,
    Single,
    Double,
    DoubleEscape,
}

#[derive(Debug, Default)]
struct Reader {
    state: State,
    name: String,
    value: String,
    /// The length of `value` without the blanks at its end that stand in no quotes.
    kept: usize,
    /// The line being read, from 0.
    line: usize,
    /// The line where the assignment began.
    began: usize,
    variables: Vec<(String, String)>,
    problems: Vec<(usize, String)>,
}

impl Reader {
    fn push(&mut self, c: char) {
        let newline = matches!(c, '\n' | '\r');
        let blank = newline || matches!(c, ' ' | '\t');
        match self.state {
            State::Line if blank => {}
            State::Line if matches!(c, '#' | ';') => self.state = State::Comment,
            State::Line => {
                self.began = self.line;
                self.state = State::Name;
                self.push(c);
                return;
            }
            State::Comment if newline => self.state = State::Line,
            State::Comment => {}
            State::Name if newline => {
                self.problem("neither a comment nor NAME=VALUE");
                self.reset();
            }
            State::Name if c == '=' => self.state = State::BeforeValue,
            State::Name => self.name.push(c),
            State::BeforeValue | State::Bare if newline => self.assign(),
            State::BeforeValue if c == '\'' => self.state = State::Single,
            State::BeforeValue if c == '"' => self.state = State::Double,
            State::BeforeValue | State::Bare if c == '\\' => self.state = State::BareEscape,
            State::BeforeValue if blank => {}
            State::BeforeValue => {
                self.state = State::Bare;
                self.keep(c);
            }
            State::Bare if blank => self.value.push(c),
            State::BareEscape => {
                self.state = State::Bare;
                // An escaped line break vanishes, and with it the end of the value.
                if !newline {
                    self.keep(c);
                }
            }
            State::Single if c == '\'' => self.state = State::BeforeValue,
            State::Double if c == '"' => self.state = State::BeforeValue,
            State::Double if c == '\\' => self.state = State::DoubleEscape,
            State::Bare | State::Single | State::Double => self.keep(c),
            State::DoubleEscape => {
                self.state = State::Double;
                match c {
                    '"' | '\\' | '`' | '$' => self.keep(c),
                    '\n' => {}
                    _ => {
                        self.keep('\\');
                        self.keep(c);
                    }
                }
            }
        }
        self.line += usize::from(c == '\n');
    }

    /// Reads the end of the file.
    fn finish(mut self) -> Result<Vec<(String, String)>, BadEnvironment> {
        match self.state {
            State::Line | State::Comment => {}
            State::Name => self.problem("neither a comment nor NAME=VALUE"),
            State::BeforeValue | State::Bare | State::BareEscape => self.assign(),
            State::Single | State::Double | State::DoubleEscape => {
                self.problem("a quote in this value never ends");
            }
        }
        if self.problems.is_empty() {
            Ok(self.variables)
        } else {
            Err(BadEnvironment { problems: self.problems })
        }
    }

    fn keep(&mut self, c: char) {
        self.value.push(c);
        self.kept = self.value.len();
    }

    /// Takes the name and the value read.
    fn assign(&mut self) {
        self.value.truncate(self.kept);
        let name = self.name.trim_end().to_owned();
        if let Some(variable) = name.strip_prefix("export ").map(str::trim_start) {
            let hint = if is_plain(variable) { "; this is no shell script: remove `export`" } else { "" };
            self.problem(&format!("no name may hold a blank{hint}"));
        } else if !is_plain(&name) {
            self.problem("no name of letters, digits, `_`, `.` and `-` before the `=`");
        } else if is_protocol_variable(&name) {
            self.problem(&format!("{name} is set by liveswap: remove the line"));
        } else if self.value.contains('\0') || name.contains('\0') {
            self.problem("has a NUL character");
        } else {
            let value = mem::take(&mut self.value);
            self.variables.push((name, value));
        }
        self.reset();
    }

    fn reset(&mut self) {
        self.state = State::Line;
        self.name.clear();
        self.value.clear();
        self.kept = 0;
    }

    fn problem(&mut self, message: &str) {
        self.problems.push((self.began + 1, message.to_owned()));
    }
}

fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(line: &str) -> String {
        let variables = parse(&format!("A={line}")).unwrap();
        assert_eq!(variables.len(), 1, "{variables:?}");
        variables[0].1.clone()
    }

    fn problems(text: &str) -> Vec<(usize, String)> {
        parse(text).unwrap_err().problems
    }

    #[test]
    fn comments_and_blank_lines_say_nothing() {
        let text = "\u{feff}# one\n; two \\\n\n  \t\nA=1\r\n  B = 2 \n#C=3";
        let variables = parse(text).unwrap();
        assert_eq!(variables, [("A".into(), "1".into()), ("B".into(), "2".into())]);
        assert_eq!(parse(""), Ok(Vec::new()));
    }

    #[test]
    fn values_are_read_as_systemd_reads_them() {
        for (line, expected) in [
            ("", ""),
            ("  x y  ", "x y"),
            ("x # y", "x # y"),
            ("x'y'", "x'y'"),
            ("a=b", "a=b"),
            (r#""  x  "  "#, "  x  "),
            ("' x\\n '", " x\\n "),
            (r#""a\"b\$c\n""#, r#"a"b$c\n"#),
            (r#""a"'b'c"#, "abc"),
            (r#""a" 'b'"#, "ab"),
            (r"a\ \bc", "a bc"),
            ("a\\\nb", "ab"),
            ("\"a\\\nb\"", "ab"),
            ("'a\nb'", "a\nb"),
            ("x\\  ", "x "),
            ("'' # c", "# c"),
            ("x\\", "x"),
        ] {
            assert_eq!(value(line), expected, "{line:?}");
        }
    }

    #[test]
    fn all_problems_come_at_once_with_their_lines() {
        let text = "GOOD=1\nbad line\n=x\nexport A=1\nLISTEN_FDS=3\nLIVESWAP_SLOT=1\nT='a\nb'\nB C=1\n\nD=\"never\nends\n";
        let lines: Vec<usize> = problems(text).iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [2, 3, 4, 5, 6, 9, 11]);
        let error = parse("A\nexport B=1\nNOTIFY_SOCKET=/x").unwrap_err();
        assert_eq!(
            error.to_string(),
            "line 1: neither a comment nor NAME=VALUE; \
             line 2: no name may hold a blank; this is no shell script: remove `export`; \
             line 3: NOTIFY_SOCKET is set by liveswap: remove the line"
        );
        assert_eq!(problems("A=\0")[0].1, "has a NUL character");
    }

    #[test]
    fn no_message_quotes_the_file() {
        let text = "KEY=\"-----BEGIN\nsecret\n";
        assert!(!format!("{}", parse(text).unwrap_err()).contains("secret"));
        assert!(!format!("{}", parse("secret\nsecret key=1").unwrap_err()).contains("secret"));
    }

    #[test]
    fn the_later_of_two_comes_later() {
        assert_eq!(parse("A=1\nA=2").unwrap(), [("A".into(), "1".into()), ("A".into(), "2".into())]);
    }
}
