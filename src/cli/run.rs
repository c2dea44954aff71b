//! `liveswap run`: the manager in the foreground.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, ValueEnum};
use tracing::Level;

use super::output;
use super::report::{self, Status};
use crate::config::flags::Flags;
use crate::daemon::log::{self, LogFormat};
use crate::daemon::{self, ManagerError, Source, absolute, folder, init};

/// The flags that make a service.
const WITHOUT_FILE: &str = "Without a file";

const SIGNALS: &str = "\
Signals: SIGHUP upgrades. SIGTERM and SIGINT drain all workers and end the manager, the second time they kill; SIGQUIT kills \
at once. SIGUSR1 restarts all workers, one after another. SIGUSR2 replaces the manager by the program now at its path; workers and \
sockets stay. SIGTTIN and SIGTTOU set the number of workers one higher or lower.";

/// Arguments of `liveswap run`.
#[derive(Args, Clone, Debug)]
#[command(override_usage = "liveswap run [OPTIONS] [--watch <PATH>...] <FILE>
       liveswap run [OPTIONS] [-l <ADDRESS>]... [-n <WORKERS>] -- <COMMAND>...", after_long_help = SIGNALS)]
pub struct RunArgs {
    /// The service file
    #[arg(
        required_unless_present_any = ["command", "watch"],
        conflicts_with_all = ["listen", "workers", "name", "protocol", "command"]
    )]
    file: Option<PathBuf>,
    /// Upgrade whenever one of these files or folders changes, or the service file; hidden files and target/ do not count
    #[arg(long, value_name = "PATH", num_args = 1..)]
    watch: Vec<PathBuf>,
    /// The addresses to listen on
    #[arg(short, long, value_name = "ADDRESS", requires = "command", help_heading = WITHOUT_FILE)]
    #[arg(help = "An address to listen on, such as 127.0.0.1:8080, '[::]:8080', ./web.sock or @web")]
    listen: Vec<String>,
    /// How many workers, or "auto" for the CPUs; 1 unless given
    #[arg(short = 'n', long, requires = "command", help_heading = WITHOUT_FILE)]
    workers: Option<String>,
    /// The service's name; that of the program, without its ending, unless given
    #[arg(long, requires = "command", help_heading = WITHOUT_FILE)]
    name: Option<String>,
    /// "notify" where the command says READY=1, which is assumed, "plain" where it says nothing, or "node" for a Node program
    #[arg(long, requires = "command", help_heading = WITHOUT_FILE)]
    protocol: Option<String>,
    /// What a worker executes, in the current folder
    #[arg(last = true, help_heading = WITHOUT_FILE)]
    command: Vec<String>,
    #[command(flatten)]
    logging: Logging,
}

/// Arguments about the log.
#[derive(Args, Clone, Copy, Debug)]
pub struct Logging {
    /// How the log is written
    #[arg(long, value_enum, default_value_t = Format::Auto)]
    log_format: Format,
    /// How much is logged
    #[arg(long, value_enum, default_value_t = Verbosity::Info)]
    log_level: Verbosity,
}

impl Logging {
    /// Has the log written so from now on.
    pub(super) fn init(self) {
        log::init(self.log_format.into(), self.log_level.into());
    }
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
    args.logging.init();
    if let Some(ended) = daemon::resume() {
        return report(ended);
    }
    if let Some(ended) = look_after_manager() {
        return ended;
    }
    let (source, watched) = match source(args) {
        Ok(found) => found,
        Err(status) => return status,
    };
    let is_typed = !matches!(source, Source::File(_));
    match daemon::run(source, &watched, log::wants_color()) {
        // Wrong words of a command line are no bad file.
        Err(ManagerError::BadFile(refusal)) if is_typed => {
            report::print_details(&refusal.details);
            Status::Usage.into()
        }
        ended => report(ended),
    }
}

/// As the first process of a container, looks after a manager until that has ended.
pub(super) fn look_after_manager() -> Option<ExitCode> {
    init::run().map(|ended| ended.unwrap_or_else(|error| report(Err(error))))
}

/// Tells how a manager ended.
pub(super) fn report(ended: Result<(), ManagerError>) -> ExitCode {
    match ended {
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

/// Returns where the service is defined, and what is watched.
///
/// # Errors
///
/// The exit status, once the reason is printed.
fn source(args: &RunArgs) -> Result<(Source, Vec<PathBuf>), ExitCode> {
    let RunArgs { mut file, mut watch, name, listen, workers, protocol, command, .. } = args.clone();
    if file.is_none() && command.is_empty() {
        // `--watch PATH… FILE`: who parses cannot know that the last one is not watched.
        file = watch.pop();
        if watch.is_empty() {
            let mut usage = RunArgs::augment_args(clap::Command::new("run")).bin_name("liveswap run");
            let why = "--watch needs a PATH before the FILE";
            return Err(output::usage(usage.error(ErrorKind::MissingRequiredArgument, why)));
        }
    }
    found(file, &watch, |directory| Flags { name, listen, workers, protocol, command, directory }).map_err(
        |error| {
            report::print(&error, None);
            Status::Failed.into()
        },
    )
}

fn found(
    file: Option<PathBuf>,
    watch: &[PathBuf],
    flags: impl FnOnce(PathBuf) -> Flags,
) -> io::Result<(Source, Vec<PathBuf>)> {
    let mut watched = watch.iter().map(absolute).collect::<io::Result<Vec<_>>>()?;
    let source = match file {
        Some(file) => Source::File(absolute(file)?),
        None => Source::Flags(flags(folder()?)),
    };
    if let Source::File(file) = &source
        && !watched.is_empty()
    {
        watched.push(file.clone());
    }
    Ok((source, watched))
}
