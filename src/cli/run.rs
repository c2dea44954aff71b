//! `liveswap run`: the manager in the foreground.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use tracing::Level;

use super::report::{self, Status};
use crate::daemon::log::{self, LogFormat};
use crate::daemon::{self, ManagerError};

/// Arguments of `liveswap run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// The service file
    file: PathBuf,
    /// How the log is written
    #[arg(long, value_enum, default_value_t = Format::Auto)]
    log_format: Format,
    /// How much is logged
    #[arg(long, value_enum, default_value_t = Verbosity::Info)]
    log_level: Verbosity,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For whoever reads it: a terminal, the journal, or a file
    Auto,
    /// Colours, no times
    Human,
    /// Times, no colours
    Plain,
    /// Priorities and no times
    Journal,
    /// An object a line
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Verbosity {
    Error,
    Warn,
    Info,
    Debug,
}

impl From<Format> for LogFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Auto => Self::Auto,
            Format::Human => Self::Human,
            Format::Plain => Self::Plain,
            Format::Journal => Self::Journal,
            Format::Json => Self::Json,
        }
    }
}

impl From<Verbosity> for Level {
    fn from(verbosity: Verbosity) -> Self {
        match verbosity {
            Verbosity::Error => Self::ERROR,
            Verbosity::Warn => Self::WARN,
            Verbosity::Info => Self::INFO,
            Verbosity::Debug => Self::DEBUG,
        }
    }
}

/// Runs a service until it has ended.
pub fn run(args: &RunArgs) -> ExitCode {
    log::init(args.log_format.into(), args.log_level.into());
    let file = match std::path::absolute(&args.file) {
        Ok(file) => file,
        Err(error) => {
            report::print(&error, None);
            return Status::Failed.into();
        }
    };
    match daemon::run(file, log::wants_color()) {
        Ok(()) => Status::Done.into(),
        Err(ManagerError::BadFile(refusal)) => {
            report::print_details(&refusal.details);
            Status::BadFile.into()
        }
        Err(error) => {
            report::print(&error, error.hint().as_deref());
            Status::Failed.into()
        }
    }
}
