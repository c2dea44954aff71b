//! The programs of a release that are not there at present, for `liveswap check`.

use std::ffi::OsStr;
use std::io;

use super::launch::{Common, Heritage, Place};
use super::release::Release;
use crate::core::advice::one_word;
use crate::core::ids::{GenerationId, SlotId};
use crate::sys::spawn::executable;

/// Returns a sentence for each program of a release that is not there at present.
///
/// # Errors
///
/// As [`Common::of`].
pub fn missing_programs(release: &Release, heritage: &Heritage) -> io::Result<Vec<String>> {
    let generation = GenerationId(1);
    let common = Common::of(release, generation, heritage)?;
    let place = Place { release, common: &common, generation, slot: Some(SlotId(0)) };
    let (spec, path) = (&release.spec, place.path());
    let commands = [
        ("command", &spec.process.command),
        ("probe", &spec.probe),
        ("before", &spec.hooks.before),
        ("after", &spec.hooks.after),
    ];
    let mut missing = Vec::new();
    for (key, program) in commands.iter().filter_map(|(key, command)| Some((key, command.first()?))) {
        let program = place.fill_in(program);
        if executable(OsStr::new(program.as_ref()), path.as_deref(), &release.directory)?.is_none() {
            let place = if program.contains('/') {
                format!("seen from {}", release.directory.display())
            } else {
                "in PATH".into()
            };
            let instead = (*key == "command").then(|| one_word(spec)).flatten();
            let instead =
                instead.unwrap_or_else(|| "put it there before the service starts, or name another".into());
            missing.push(format!("`{key}`: there is no executable `{program}` {place}; {instead}"));
        }
    }
    Ok(missing)
}
