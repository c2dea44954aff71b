//! `liveswap completions`: what a shell needs to complete the command line.

use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::{Shell, generate};

use super::output;
use super::report::Status;

/// Arguments of `liveswap completions`.
#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Prints the completions of `command` for a shell.
pub fn print(args: &CompletionsArgs, command: &mut Command) -> ExitCode {
    let mut text = Vec::new();
    generate(args.shell, command, "liveswap", &mut text);
    // What cannot be written is told at the end.
    let _ = output::lines(&String::from_utf8_lossy(&text));
    Status::Done.into()
}
