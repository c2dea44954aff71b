//! `liveswap try-handover`, by which a manager finds out whether this program could go on in its place.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, CommandFactory};

use super::report::{self, Status};
use super::{original, output};
use crate::daemon::handover::try_state;

/// Arguments of `liveswap try-handover`.
#[derive(Args, Debug)]
pub struct TryHandoverArgs {
    /// The words with which the manager was executed, and this program would be
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

/// Says whether the state in descriptor 3, and the words, are understood; `C` is this program's command line.
pub fn run<C: CommandFactory>(args: TryHandoverArgs) -> ExitCode {
    let is_original = args.words.first().is_some_and(|first| original::is_meant(&first.to_string_lossy()));
    let command = if is_original { original::command() } else { C::command() };
    let words = [OsString::from(env!("CARGO_PKG_NAME"))].into_iter().chain(args.words);
    if let Err(error) = command.try_get_matches_from(words) {
        return output::usage(error);
    }
    match try_state() {
        Ok(()) => Status::Done.into(),
        Err(error) => {
            report::print(&error, None);
            Status::Failed.into()
        }
    }
}
