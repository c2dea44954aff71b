//! Errors as people read them: heading, causes, hint. Nobody else prints them.

use std::error::Error;
use std::process::ExitCode;

use super::output::{error_alarm, error_line, error_lines};

/// The exit status of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Done = 0,
    /// Refused, failed or rolled back.
    Failed = 1,
    /// What was typed makes no sense.
    Usage = 2,
    /// The service file is bad.
    BadFile = 3,
    /// There is no such manager.
    NoManager = 4,
    /// All is done, but what there was to say could not be written (`EX_IOERR` of sysexits.h).
    Unwritten = 74,
    /// Ended by Ctrl-C.
    Interrupted = 130,
    /// Nobody reads what there was to say: the status of a program that was killed by SIGPIPE.
    Unread = 141,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status as u8)
    }
}

/// Prints an error with its causes, and what to do next where something can be said.
pub fn print(error: &dyn Error, hint: Option<&str>) {
    error_line(&format!("Error: {error}"));
    let mut cause = error.source();
    while let Some(error) = cause {
        error_line(&format!("Caused by: {error}"));
        cause = error.source();
    }
    if let Some(hint) = hint {
        error_line(&format!("Hint: {hint}"));
    }
}

/// Prints what is worth knowing and yet no error.
pub fn print_warning(text: &str) {
    error_line(&format!("Warning: {text}"));
}

/// What to do next, or to know, after a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    /// Printed as it is.
    Plain(String),
    /// The service is down: printed in red on a terminal.
    Alarm(String),
}

/// Prints what a manager could not do: what, why, what else is known of it, and what to do next.
pub fn print_failure(heading: &str, cause: Option<&str>, details: &[String], hints: &[Hint]) {
    error_line(&format!("Error: {heading}"));
    if let Some(cause) = cause {
        error_line(&format!("Caused by: {cause}"));
    }
    for detail in details {
        error_line(&format!("  {detail}"));
    }
    for hint in hints {
        match hint {
            Hint::Plain(text) => error_line(&format!("Hint: {text}")),
            Hint::Alarm(text) => error_alarm(&format!("Hint: {text}")),
        }
    }
}

/// Prints a text that is laid out already, such as the problems of a service file.
pub fn print_details(details: &str) {
    error_lines(details);
}
