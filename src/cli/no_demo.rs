//! `liveswap demo` in a build without the demo: the feature `demo` is off.

use std::process::ExitCode;

use super::output;
use super::report::Status;

/// The arguments of `liveswap demo`, which are not looked at.
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// Says that there is no demo: status 2.
pub fn run(_: DemoArgs) -> ExitCode {
    output::error_lines(
        "Error: this build of liveswap has no demo\n\
        Hint: build the source with its default features: `cargo run --release -- demo`",
    );
    Status::Usage.into()
}
