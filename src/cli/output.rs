//! The only way to the terminal: what is printed, by whatever command, is printed here (`tests/house.rs`).
//!
//! Much of it comes from outside: from a manager that may be anybody's, from files, arguments and errors of the kernel. So
//! nothing goes out as it came. A [`line`] is one line, whatever is in it; [`lines`] are laid out by us and keep their newlines
//! and our own colours. Everything else that could steer a terminal or hide is escaped, on a terminal or not: a log is read
//! on a terminal later.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write, stderr, stdout};
use std::panic::PanicHookInfo;
use std::process::ExitCode;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue};
use clap::{Error, Parser};

use super::report::Status;
use crate::wire::printable::{Printable, printable, printable_json, printable_lines};

/// Prints a line on standard output.
///
/// # Errors
///
/// Those of write(2): nobody reads it.
pub fn line(text: &str) -> io::Result<()> {
    writeln!(stdout(), "{}", Printable(text))
}

/// Prints text that is laid out already, and shows it at once.
///
/// # Errors
///
/// Those of write(2): nobody reads it.
pub fn lines(text: &str) -> io::Result<()> {
    let mut to = stdout();
    to.write_all(printable_lines(text).as_bytes())?;
    to.flush()
}

/// Prints a line of JSON.
///
/// # Errors
///
/// Those of write(2): nobody reads it.
pub fn json(text: &str) -> io::Result<()> {
    writeln!(stdout(), "{}", printable_json(text.trim_end()))
}

/// Prints text that is laid out already in the place of what stood on the terminal before; in a pipe it follows.
///
/// # Errors
///
/// Those of write(2): nobody reads it.
pub fn screen(text: &str) -> io::Result<()> {
    if stdout().is_terminal() {
        // Home, and nothing left of what stood there.
        stdout().write_all(b"\x1b[H\x1b[2J")?;
    }
    lines(text)
}

/// Prints a line on standard error. Where nobody reads it, the exit status tells.
pub fn error_line(text: &str) {
    let _ = writeln!(stderr(), "{}", Printable(text));
}

/// Prints text that is laid out already on standard error. Where nobody reads it, the exit status tells.
pub fn error_lines(text: &str) {
    let _ = writeln!(stderr(), "{}", printable_lines(text.trim_end()));
}

/// Prints a bug of ours; what a panic says may quote anything.
pub fn bug(bug: &PanicHookInfo<'_>) {
    let place = bug.location().map(ToString::to_string).unwrap_or_default();
    let said = bug.payload();
    let said = said.downcast_ref::<&str>().copied().or(said.downcast_ref::<String>().map(String::as_str));
    let said = said.unwrap_or("a value that is no text");
    error_line(&format!("Error: a bug of liveswap: panicked at {place}: {said}"));
}

/// Reads a command line, or prints why not, or the help that it asks for.
///
/// # Errors
///
/// The exit status, where there is nothing more to do.
pub fn parse<P: Parser>(words: impl IntoIterator<Item = OsString>) -> Result<P, ExitCode> {
    P::try_parse_from(words).map_err(usage)
}

/// Prints what clap has to say, and returns the exit status that it comes to.
pub fn usage(error: Error) -> ExitCode {
    let is_wrong = error.use_stderr();
    let text = in_words(error);
    if is_wrong {
        error_lines(&text);
        return Status::Usage.into();
    }
    // Who does not read it has the exit status.
    let _ = lines(&text);
    Status::Done.into()
}

/// Returns what clap has to say; the words that it quotes were typed, or are the names of files, and stay on their line.
pub fn in_words(mut error: Error) -> String {
    let quoted: Vec<(ContextKind, ContextValue)> = error
        .context()
        .filter_map(|(kind, value)| match value {
            ContextValue::String(text) => Some((kind, ContextValue::String(printable(text).into_owned()))),
            ContextValue::Strings(texts) => {
                let texts = texts.iter().map(|text| printable(text).into_owned());
                Some((kind, ContextValue::Strings(texts.collect())))
            }
            // Tips, which quote as well; each is a line.
            ContextValue::StyledStrs(texts) => {
                let texts =
                    texts.iter().map(|text| StyledStr::from(printable(&text.to_string()).into_owned()));
                Some((kind, ContextValue::StyledStrs(texts.collect())))
            }
            _ => None,
        })
        .collect();
    for (kind, value) in quoted {
        error.insert(kind, value);
    }
    error.to_string()
}
