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

/// Writes a page for each of the `commands`, and one for each command that those have.
pub fn write(args: &ManArgs, commands: impl IntoIterator<Item = Command>) -> ExitCode {
    let page = |command| clap_mangen::generate_to(command, &args.directory);
    let written = fs::create_dir_all(&args.directory).and_then(|()| commands.into_iter().try_for_each(page));
    match written {
        Ok(()) => Status::Done.into(),
        Err(error) => {
            report::print(&error, None);
            Status::Failed.into()
        }
    }
}
