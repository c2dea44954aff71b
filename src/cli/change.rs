//! `liveswap respawn`, `scale`, `message` and `stop`: one request, one answer.

use std::process::ExitCode;

use clap::Args;

use super::connection::Connection;
use super::report::Status;
use super::upgrade::{explain, say};
use crate::wire::control::{Command, Message, Scale, parse_scale};

/// Arguments of `liveswap respawn`.
#[derive(Args, Debug)]
pub struct RespawnArgs {
    /// The service; may be left out where one runs
    name: Option<String>,
    /// Kill the present workers instead of letting them drain when fresh ones are ready
    #[arg(long)]
    now: bool,
}

/// Arguments of `liveswap stop`.
#[derive(Args, Debug)]
pub struct StopArgs {
    /// The service; may be left out where one runs
    name: Option<String>,
    /// Kill the workers instead of letting them drain
    #[arg(long)]
    now: bool,
}

/// Arguments of `liveswap scale`.
#[derive(Args, Debug)]
#[command(allow_missing_positional = true)]
pub struct ScaleArgs {
    /// The service; may be left out where one runs
    #[arg(allow_negative_numbers = true)]
    name: Option<String>,
    /// How many workers: 4, or +1, or -1
    #[arg(allow_negative_numbers = true, value_parser = read_scale)]
    workers: Scale,
}

/// Arguments of `liveswap message`.
#[derive(Args, Debug)]
#[command(allow_missing_positional = true)]
pub struct MessageArgs {
    /// The service; may be left out where one runs
    name: Option<String>,
    /// One line of text
    text: String,
}

fn read_scale(text: &str) -> Result<Scale, &'static str> {
    parse_scale(text).ok_or("must be a number of workers, or like +1 or -1")
}

/// Replaces every worker; status 1 unless fresh ones serve.
pub fn respawn(args: &RespawnArgs) -> ExitCode {
    run(args.name.as_deref(), Command::Respawn { now: args.now }, "every worker is a fresh one")
}

/// Sets the number of workers.
pub fn scale(args: &ScaleArgs) -> ExitCode {
    run(args.name.as_deref(), Command::Scale(args.workers), "the number of workers is set")
}

/// Hands a line to every worker; status 1 unless each was handed it.
pub fn message(args: &MessageArgs) -> ExitCode {
    run(
        args.name.as_deref(),
        Command::Message(Message::text(&args.text)),
        "every worker was handed the message",
    )
}

/// Arguments of `liveswap reexec`.
#[derive(Args, Debug)]
pub struct ReexecArgs {
    /// The service; may be left out where one runs
    name: Option<String>,
}

/// Has the manager replaced by the program at its path; status 1 where it stays.
pub fn reexec(args: &ReexecArgs) -> ExitCode {
    run(args.name.as_deref(), Command::Reexec, "the program at its path is the manager now")
}

/// Ends a service; returns when its manager has let go of everything.
pub fn stop(args: &StopArgs) -> ExitCode {
    run(args.name.as_deref(), Command::Stop { now: args.now }, "the service has ended")
}

fn run(name: Option<&str>, command: Command, done: &str) -> ExitCode {
    let is_end = matches!(command, Command::Stop { .. });
    let answer = Connection::open(name).and_then(|mut connection| {
        let reply = connection.ask_once(command)?;
        Ok((connection, reply))
    });
    match answer {
        Err(error) => error.print(),
        Ok((connection, reply)) if reply.ok => {
            say(&format!("`{}`: {done}", connection.service));
            if is_end {
                connection.wait_for_end();
            }
            Status::Done.into()
        }
        Ok((connection, reply)) => {
            explain(&connection.service, &reply);
            Status::Failed.into()
        }
    }
}
