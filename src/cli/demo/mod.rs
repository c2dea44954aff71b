//! `liveswap demo`: the main job, shown on a built-in service.
//!
//! A real manager runs a real service file with four workers, under the load of clients that check every byte. The demo
//! brings a second release, and then a third that never becomes ready; it ends well only if every request was
//! answered rightly, the second took over, the third was rolled back, and the manager exited with status 0.
//!
//! ```text
//! worker    the built-in worker, and the worked example of one
//! stage     folder, address, service file
//! manager   the manager as a child; the demo in systemd's part       log   what it writes
//! load      the clients        http   one exchange        tally   what came of them
//! story     what happens, in order
//! event     what is told       show   and how
//! ```

mod event;
mod failure;
pub mod http;
pub mod load;
mod log;
mod manager;
mod show;
mod stage;
mod story;
pub mod tally;
pub mod worker;

use std::convert::Infallible;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use self::event::{Event, Progress, Summary};
use self::failure::Failure;
use self::load::Load;
use self::log::Log;
use self::manager::Manager;
use self::show::Show;
use self::stage::{Release, Stage};
pub use self::worker::WorkerArgs;
use super::output;
use crate::wire::printable::printable;

/// The arguments of `liveswap demo`.
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// Print one JSON object a line: the events, and a summary at the end
    #[arg(long)]
    pub json: bool,
    /// Where the built-in service listens [default: a free port of 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Show the manager's log, too
    #[arg(short, long)]
    pub verbose: bool,
    /// Print the service file of the first release and stop
    #[arg(long)]
    pub print_config: bool,
}

/// Runs the demo: status 0 if all promises were kept, else 1.
#[expect(clippy::needless_pass_by_value, reason = "a command is given its arguments to keep")]
pub fn run(args: DemoArgs) -> ExitCode {
    let show = Show::on_stdout(args.json);
    let mut summary = Summary::default();
    let done = if args.print_config {
        print_config(&args)
    } else {
        let done = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::set_up("starting the runtime", error))
            .and_then(|runtime| runtime.block_on(perform(&args, &show, &mut summary)));
        summary.ok = done.is_ok();
        summary.error = done.as_ref().err().map(ToString::to_string);
        show.tell(&Event::Summary(&summary));
        done
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report(&failure, &summary.log);
            ExitCode::FAILURE
        }
    }
}

/// Runs the built-in worker.
#[expect(clippy::needless_pass_by_value, reason = "a command is given its arguments to keep")]
pub fn worker(args: WorkerArgs) -> ExitCode {
    worker::run(&args)
}

/// Sets the stage, tells the story, and clears everything away, however the story ended.
async fn perform(args: &DemoArgs, show: &Show<impl Write>, summary: &mut Summary) -> Result<(), Failure> {
    let interrupted = interrupted()?;
    let stage = Stage::set(args.listen)?;
    stage.write(Release::FIRST)?;
    let mut manager = Manager::start(&stage)?;
    if args.verbose {
        show.follow(Log::open(&stage.log())?);
    }
    let load = Load::new(stage.listen);

    let told = tokio::select! {
        told = story::tell(&stage, &mut manager, &load, show, summary) => told,
        never = accompany(show, &load) => match never {},
        () = interrupted => Err(Failure::Interrupted),
    };
    manager.end().await;

    let tally = load.tally();
    summary.count(&tally);
    let ended = told.and_then(|()| match tally.failures() {
        0 => Ok(()),
        failed => Err(Failure::Broken(format!("{failed} of {} requests failed", tally.requests()))),
    });
    if !matches!(ended, Ok(()) | Err(Failure::Interrupted)) {
        summary.log = log::tail(&stage.log());
    }
    ended
}

/// Keeps whoever watches informed, for as long as it is polled.
async fn accompany(show: &Show<impl Write>, load: &Load) -> Infallible {
    let mut moments = interval(Duration::from_millis(100));
    moments.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        for _ in 0..show.moments_per_progress() {
            moments.tick().await;
            show.tell_log();
        }
        let tally = load.tally();
        if tally.requests() > 0 {
            show.tell(&Event::Progress(Progress::from(&tally)));
        }
    }
}

/// Catches from now on what should end the demo early; the future completes when it has come.
fn interrupted() -> Result<impl Future<Output = ()>, Failure> {
    let catch = |kind| signal(kind).map_err(|error| Failure::set_up("catching signals", error));
    let mut interrupt = catch(SignalKind::interrupt())?;
    let mut terminate = catch(SignalKind::terminate())?;
    let mut hangup = catch(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

/// Says on the standard error why the demo failed; if nobody hears it, the exit status still says it.
fn report(failure: &Failure, log: &[String]) {
    let mut text = format!("Error: the demo did not end well\nCaused by: {failure}\n");
    if !log.is_empty() {
        text.push_str("The manager's log ends:\n");
    }
    for line in log {
        text.extend(["  | ", &*printable(line), "\n"]);
    }
    if let Some(hint) = failure.hint() {
        text.extend(["Hint: ", hint, "\n"]);
    }
    output::error_lines(&text);
}

/// Shows what a service file looks like.
fn print_config(args: &DemoArgs) -> Result<(), Failure> {
    let listen = args.listen.unwrap_or((Ipv4Addr::LOCALHOST, 8080).into());
    let program = std::env::current_exe().unwrap_or_else(|_| "liveswap".into());
    let text = Release::FIRST.service_file(&program.to_string_lossy(), listen);
    output::lines(&text).map_err(|error| Failure::set_up("printing the service file", error))
}
