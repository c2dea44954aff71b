//! The only way to the terminal: what is printed, by whatever command, is printed here (`tests/house.rs`).
//!
//! Much of it comes from outside: from a manager that may be anybody's, from files, arguments and errors of the kernel. So
//! nothing goes out as it came. A [`line`] is one line, whatever is in it; [`lines`] are laid out by us and keep their newlines
//! and our own colours. Everything else that could steer a terminal or hide is escaped, on a terminal or not: a log is read
//! on a terminal later.
//!
//! A success whose output could not be written is none: each command ends by [`end`], which makes it a failure.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Write, stderr, stdout};
use std::os::fd::AsFd;
use std::panic::{self, PanicHookInfo};
use std::process::{self, ExitCode};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue};
use clap::{Error, Parser};
use terminal_size::{Height, Width, terminal_size_of};

use super::report::Status;
use crate::daemon::BUG;
use crate::daemon::log::{last_words, may_color, wants_color};
use crate::wire::printable::{Printable, printable, printable_json, printable_lines};

/// What kept something from being printed on standard output, for the first time.
static UNWRITTEN: Mutex<Option<io::Error>> = Mutex::new(None);

/// How long a write waits before it tries again, where standard output was made non-blocking by a program that shares it.
const TRY_AGAIN: Duration = Duration::from_millis(5);

/// What a command is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To print something.
    Output,
    /// To do something; what it prints is beside that.
    Deed,
}

/// Returns the exit status of a command that is otherwise done: a success is none where its output could not be written.
///
/// Where nobody reads any more, a command that prints ends quietly with the status of a program that SIGPIPE has killed, as
/// cat(1) and the like do. One that does something keeps its own status then: what it did is what counts.
#[must_use]
pub fn end(status: ExitCode, purpose: Purpose) -> ExitCode {
    let unwritten = UNWRITTEN.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (unwritten, purpose) {
        (None, _) => status,
        _ if status != ExitCode::SUCCESS => status,
        (Some(error), Purpose::Output) if error.kind() == ErrorKind::BrokenPipe => Status::Unread.into(),
        (Some(error), Purpose::Deed) if error.kind() == ErrorKind::BrokenPipe => status,
        (Some(error), purpose) => {
            error_line(&format!("Error: cannot write to standard output: {error}"));
            if purpose == Purpose::Deed {
                error_line("Hint: what was asked for is done all the same");
            }
            Status::Unwritten.into()
        }
    }
}

/// Writes to standard output, and notes where that fails. Past the buffer of std, which takes a descriptor that may not be
/// written to for a success.
fn put(bytes: &[u8]) -> io::Result<()> {
    let written = stdout().as_fd().try_clone_to_owned().and_then(|to| write_all(&mut File::from(to), bytes));
    if let Err(error) = &written {
        let again = error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error);
        UNWRITTEN.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(again);
    }
    written
}

fn write_all(to: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(TRY_AGAIN),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Prints a line on standard output.
///
/// # Errors
///
/// Those of write(2): nobody reads it.
pub fn line(text: &str) -> io::Result<()> {
    put(format!("{}\n", Printable(text)).as_bytes())
}

/// Prints text that is laid out already, and shows it at once.
///
/// # Errors
///
/// Those of write(2): nobody reads it.
pub fn lines(text: &str) -> io::Result<()> {
    put(printable_lines(text).as_bytes())
}

/// Prints a line of JSON.
///
/// # Errors
///
/// Those of write(2): nobody reads it.
pub fn json(text: &str) -> io::Result<()> {
    put(format!("{}\n", printable_json(text.trim_end())).as_bytes())
}

/// Prints text that is laid out already in the place of what stood on the terminal before; in a pipe it follows.
///
/// # Errors
///
/// Those of write(2): nobody reads it.
pub fn screen(text: &str) -> io::Result<()> {
    if stdout().is_terminal() {
        // Home, and nothing left of what stood there.
        put(b"\x1b[H\x1b[2J")?;
    }
    lines(text)
}

/// Whether standard output is a terminal on which the cursor can be moved.
pub fn draws() -> bool {
    stdout().is_terminal() && std::env::var_os("TERM").is_some_and(|terminal| terminal != "dumb")
}

/// Draws lines on the terminal over the `drawn` lines that stand above the cursor, and first prints what goes `above` them to
/// stay. Returns how many lines are drawn: what does not fit on the terminal is cut. What cannot be written is told at the end.
pub fn redraw(drawn: usize, above: Option<&str>, lines: &[String]) -> usize {
    let (columns, rows) = terminal_size_of(stdout())
        .map_or((80, 24), |(Width(columns), Height(rows))| (columns.into(), rows.into()));
    let (text, drawn) = redrawn(drawn, above, lines, (columns, rows));
    let _ = put(text.as_bytes());
    drawn
}

/// Returns what [`redraw`] writes to a terminal of so many columns and rows, and how many lines that draws.
fn redrawn(
    drawn: usize,
    above: Option<&str>,
    lines: &[String],
    (columns, rows): (usize, usize),
) -> (String, usize) {
    let up = if drawn > 0 { format!("\x1b[{drawn}A") } else { String::new() };
    let above = above.map(|line| format!("{}\n", Printable(line))).unwrap_or_default();
    // The cursor stands in the row below the lines.
    let fits = &lines[..lines.len().min(rows.saturating_sub(1))];
    let cut = |line: &String| printable(line).chars().take(columns).chain(['\n']).collect::<String>();
    // Up, and clear all below. A line with wide characters may still be too long: the terminal does not wrap it.
    let text = format!("{up}\r\x1b[J{above}\x1b[?7l{}\x1b[?7h", fits.iter().map(cut).collect::<String>());
    (text, fits.len())
}

/// Whether standard output is a terminal that shows colours, and whoever sits there has not asked for none.
pub fn shows_colors() -> bool {
    stdout().is_terminal() && may_color()
}

/// Returns a line in red.
pub fn red(text: &str) -> String {
    format!("\x1b[31m{}\x1b[0m", printable(text))
}

/// Prints a line on standard error, in red on a terminal.
pub fn error_alarm(text: &str) {
    if wants_color() { error_lines(&red(text)) } else { error_line(text) }
}

/// Prints a line on standard error. Where nobody reads it, the exit status tells.
pub fn error_line(text: &str) {
    let _ = writeln!(stderr(), "{}", Printable(text));
}

/// Prints text that is laid out already on standard error. Where nobody reads it, the exit status tells.
pub fn error_lines(text: &str) {
    let _ = writeln!(stderr(), "{}", printable_lines(text.trim_end()));
}

/// From now on a panic is printed, and ends the process with [`BUG`]. Standard error is not waited for: a manager that hangs
/// on a full pipe is never started again. What a panic says may quote anything.
pub fn exit_on_panic() {
    panic::set_hook(Box::new(|bug| {
        last_words(format!("{}\n", Printable(&in_a_line(bug))).as_bytes());
        process::exit(BUG);
    }));
}

fn in_a_line(bug: &PanicHookInfo<'_>) -> String {
    let place = bug.location().map(ToString::to_string).unwrap_or_default();
    let said = bug.payload();
    let said = said.downcast_ref::<&str>().copied().or(said.downcast_ref::<String>().map(String::as_str));
    let said = said.unwrap_or("a value that is no text");
    format!("Error: a bug of liveswap: panicked at {place}: {said}")
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
    let unknown = match error.get(ContextKind::InvalidSubcommand) {
        Some(ContextValue::String(name)) => elsewhere(name),
        _ => None,
    };
    let text = in_words(error);
    if is_wrong {
        error_lines(&text);
        if let Some(tip) = unknown {
            error_line(&format!("  tip: {tip}"));
        }
        return Status::Usage.into();
    }
    // What cannot be written is told at the end.
    let _ = lines(&text);
    Status::Done.into()
}

/// Returns the command for what another tool's command of this name does.
fn elsewhere(name: &str) -> Option<&'static str> {
    Some(match name {
        "start" | "up" => {
            "`liveswap run FILE` starts a service; under systemd `systemctl start liveswap@NAME`"
        }
        "list" | "ls" | "ps" | "top" => "`liveswap status` shows all services that run",
        "log" | "logs" | "tail" => {
            "`journalctl -u liveswap@NAME` shows the log under systemd; `liveswap events` shows what happens from now on"
        }
        "kill" | "delete" | "down" => "`liveswap stop` ends a service, `liveswap stop --now` at once",
        "deploy" | "update" => "`liveswap upgrade` changes to what the service file defines now",
        "test" | "configtest" | "validate" => "`liveswap check FILE` checks a service file",
        _ => return None,
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_drawn_over_the_one_before_and_cut_to_the_terminal() {
        let lines = ["one".into(), "two\u{1b}[2J".into(), "three".into()];
        let text = "\x1b[2A\r\x1b[Jsaid at length\n\x1b[?7lone\ntwo\\\n\x1b[?7h";
        assert_eq!(redrawn(2, Some("said at length"), &lines, (4, 3)), (text.into(), 2));
        assert_eq!(redrawn(0, None, &lines[..1], (80, 24)), ("\r\x1b[J\x1b[?7lone\n\x1b[?7h".into(), 1));
        assert_eq!(redrawn(1, None, &lines, (80, 0)).1, 0);
    }
}
