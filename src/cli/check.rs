//! `liveswap check`: what an upgrade would say of a service file.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::output;
use super::report::{self, Status};
use crate::daemon::{self, log::wants_color};

/// Arguments of `liveswap check`.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// The service files
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

/// Checks service files, each to its end; status 3 where one is bad. What is missing at present is no fault of a file.
pub fn run(args: &CheckArgs) -> ExitCode {
    let mut status = Status::Done;
    for file in &args.files {
        let checked = daemon::absolute(file)
            .map_err(|error| error.to_string())
            .and_then(|path| daemon::check(&path, wants_color()).map_err(|refusal| refusal.details));
        match checked {
            Ok(checked) => {
                // What cannot be written is told at the end.
                let _ = output::line(&format!("{}: {}", file.display(), checked.summary));
                for note in checked.notes {
                    let _ = output::line(&format!("{}: note: {note}", file.display()));
                }
                for warning in checked.warnings {
                    report::print_warning(&format!("{}: {warning}", file.display()));
                }
            }
            Err(details) => {
                report::print_details(&details);
                status = Status::BadFile;
            }
        }
    }
    status.into()
}
