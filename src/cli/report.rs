//! Errors as people read them: heading, causes, hint. Nobody else prints them.

use std::error::Error;
use std::process::ExitCode;

/// The exit status after a bug of ours (`EX_SOFTWARE` of sysexits.h).
pub const BUG: i32 = 70;

/// The exit status of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Done = 0,
    /// Refused, failed or rolled back.
    Failed = 1,
    /// The service file is bad.
    BadFile = 3,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status as u8)
    }
}

/// Prints an error with its causes, and what to do next where something can be said.
pub fn print(error: &dyn Error, hint: Option<&str>) {
    eprintln!("Error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("Caused by: {error}");
        cause = error.source();
    }
    if let Some(hint) = hint {
        eprintln!("Hint: {hint}");
    }
}

/// Prints what is worth knowing and yet no error.
pub fn print_warning(text: &str) {
    eprintln!("Warning: {text}");
}

/// Prints a text that is laid out already, such as the problems of a service file.
pub fn print_details(details: &str) {
    eprintln!("{}", details.trim_end());
}
