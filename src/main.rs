//! The `liveswap` program: parse, dispatch, exit code.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use liveswap::cli::output::Purpose;
use liveswap::cli::{
    change, check, completions, demo, events, man, original, output, run, status, try_handover, unit, upgrade,
};
use liveswap::daemon;

/// What scripts go by.
const EXIT_STATUS: &str = "\
The command line of the Node.js tool of this name: liveswap -s TARGET, -u [PATH], -k, -d, -m TEXT, -v; `liveswap -s --help`.

Exit status: 0 done; 1 refused, failed or rolled back, of `status`: not at full strength; 2 wrong arguments; 3 bad service file;
4 no such manager; 70 a bug; 74 done, but the output could not be written (141: a pipe that nobody reads).";

/// Swaps the code of a running network service without losing a connection
#[derive(Parser)]
#[command(version, about, after_help = EXIT_STATUS)]
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
    /// Upgrade a service: read its file again, and change to what it defines
    #[command(visible_alias = "reload")]
    Upgrade(upgrade::UpgradeArgs),
    /// Go back to the generation before, or take back the upgrade under way
    Rollback(upgrade::RollbackArgs),
    /// Show how a service stands
    Status(status::StatusArgs),
    /// Replace every worker by a fresh one of the same generation
    #[command(visible_alias = "restart")]
    Respawn(change::RespawnArgs),
    /// Set the number of workers
    Scale(change::ScaleArgs),
    /// Hand a line of text to every worker
    Message(change::MessageArgs),
    /// Show what happens, as it happens
    Events(events::EventsArgs),
    /// Drain all workers and end the manager
    Stop(change::StopArgs),
    /// Print a systemd unit that fits a service file
    Unit(unit::UnitArgs),
    /// Replace the manager by the program now at its path
    Reexec(change::ReexecArgs),
    /// Print completions for a shell
    Completions(completions::CompletionsArgs),
    /// Write the manual pages
    Man(man::ManArgs),
    /// Show the main job on a built-in service: an upgrade under load, and a bad release
    #[cfg_attr(not(feature = "demo"), command(hide = true))]
    Demo(demo::DemoArgs),
    /// The demo's worker
    #[cfg(feature = "demo")]
    #[command(hide = true)]
    DemoWorker(demo::WorkerArgs),
    /// Whether this program could go on in the place of a manager
    #[command(hide = true)]
    TryHandover(try_handover::TryHandoverArgs),
}

fn main() -> ExitCode {
    daemon::reset_signals();
    // Before anything else: a SIGHUP that comes while we start is an upgrade that somebody wants, not our end.
    let words = || std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
    let is_original = words().next().is_some_and(|first| original::is_meant(&first));
    if words().next().is_some_and(|command| command == "run") || is_original && original::starts(words()) {
        daemon::hold_signals();
    }
    output::exit_on_panic();
    let (ended, purpose) = if is_original { original() } else { modern() };
    output::end(ended, purpose)
}

fn original() -> (ExitCode, Purpose) {
    let prints = std::env::args_os().any(|word| word == "--help" || word == "-h" || word == "-v");
    (original::run(std::env::args_os()), if prints { Purpose::Output } else { Purpose::Deed })
}

fn modern() -> (ExitCode, Purpose) {
    if std::env::args_os().len() < 2 {
        let _ = output::lines(&Cli::command().render_help().to_string());
        return (ExitCode::SUCCESS, Purpose::Output);
    }
    let command = match output::parse::<Cli>(std::env::args_os()) {
        Ok(cli) => cli.command,
        Err(status) => return (status, Purpose::Output),
    };
    let purpose = match command {
        Command::Upgrade(_)
        | Command::Rollback(_)
        | Command::Respawn(_)
        | Command::Scale(_)
        | Command::Message(_)
        | Command::Stop(_)
        | Command::Reexec(_) => Purpose::Deed,
        _ => Purpose::Output,
    };
    let ended = match command {
        Command::Run(args) => run::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Upgrade(args) => upgrade::upgrade(&args),
        Command::Rollback(args) => upgrade::rollback(&args),
        Command::Status(args) => status::run(&args),
        Command::Respawn(args) => change::respawn(&args),
        Command::Scale(args) => change::scale(&args),
        Command::Message(args) => change::message(&args),
        Command::Events(args) => events::run(&args),
        Command::Stop(args) => change::stop(&args),
        Command::Unit(args) => unit::print(&args),
        Command::Reexec(args) => change::reexec(&args),
        Command::Completions(args) => completions::print(&args, &Cli::command()),
        Command::Man(args) => {
            man::write(&args, [Cli::command(), original::command().name("liveswap-original")])
        }
        Command::Demo(args) => demo::run(args),
        #[cfg(feature = "demo")]
        Command::DemoWorker(args) => demo::worker(args),
        Command::TryHandover(args) => try_handover::run::<Cli>(args),
    };
    (ended, purpose)
}
