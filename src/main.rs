//! The `liveswap` program: parse, dispatch, exit code.

use std::panic;
use std::process::{self, ExitCode};

use clap::{Parser, Subcommand};
use liveswap::cli::{check, demo, report, run};
use liveswap::daemon;

/// Swaps the code of a running network service without losing a connection
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a service in the foreground
    Run(run::RunArgs),
    /// Check service files
    Check(check::CheckArgs),
    /// Show the main job on a built-in service: an upgrade under load, and a bad release
    Demo(demo::DemoArgs),
    /// The demo's worker
    #[command(hide = true)]
    DemoWorker(demo::WorkerArgs),
}

fn main() -> ExitCode {
    // Before anything else: a SIGHUP that comes while we start is an upgrade that somebody wants, not our end.
    if std::env::args_os().nth(1).is_some_and(|command| command == "run") {
        daemon::hold_signals();
    }
    panic::set_hook(Box::new(|bug| {
        eprintln!("Error: a bug of liveswap: {bug}");
        process::exit(report::BUG);
    }));
    match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Demo(args) => demo::run(args),
        Command::DemoWorker(args) => demo::worker(args),
    }
}
