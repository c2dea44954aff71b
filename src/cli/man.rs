//! `liveswap man`: the manual pages, of the same definition as the help texts.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Command};

use super::report::{self, Status};

/// Arguments of `liveswap man`.
#[derive(Args, Debug)]
pub struct ManArgs {
    /// The folder for the pages; it is made where it is missing
    directory: PathBuf,
}

/// Writes a page for `command`, and one for each command that it has.
pub fn write(args: &ManArgs, command: Command) -> ExitCode {
    let written =
        fs::create_dir_all(&args.directory).and_then(|()| clap_mangen::generate_to(command, &args.directory));
    match written {
        Ok(()) => Status::Done.into(),
        Err(error) => {
            report::print(&error, None);
            Status::Failed.into()
        }
    }
}
