//! `liveswap events`: what happens, as it happens.

use std::process::ExitCode;

use clap::Args;

use super::connection::{Connection, ConnectionError};
use super::output;
use super::report::Status;
use super::upgrade::explain;
use crate::wire::control::{Command, Line, Request};

/// Arguments of `liveswap events`.
#[derive(Args, Debug)]
pub struct EventsArgs {
    /// The service; may be left out where one runs
    name: Option<String>,
    /// Print the lines of the protocol: first how things stand, then an object an event
    #[arg(long)]
    json: bool,
}

/// Shows events until the service ends, or nobody reads them.
pub fn run(args: &EventsArgs) -> ExitCode {
    let mut connection = match Connection::open(args.name.as_deref()) {
        Ok(connection) => connection,
        Err(error) => return error.print(),
    };
    if let Err(error) = connection.ask(&Request::new(Command::Events)) {
        return error.print();
    }
    let mut has_begun = false;
    loop {
        let heard = match connection.hear() {
            Ok(heard) => heard,
            // The service has ended.
            Err(ConnectionError::Lost(_)) if has_begun => return Status::Done.into(),
            Err(error) => return error.print(),
        };
        let written = match &heard.line {
            Line::Reply(reply) if !reply.ok => {
                explain(&connection.service, reply);
                return Status::Failed.into();
            }
            Line::Reply(_) if !args.json => Ok(()),
            Line::Event(event) if !args.json => output::line(&event.text),
            Line::Reply(_) | Line::Event(_) => output::json(&heard.text),
        };
        has_begun = true;
        if written.is_err() {
            return Status::Done.into();
        }
    }
}
