//! A service made of flags: they are written down as a service file, which goes through the same door as any other.
//!
//! So each check, each default and each word of an error is that of a file. Only the place of an error differs.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Diagnostics;
use super::draft::{Draft, in_a_shell, quoted};
use crate::core::spec::ServiceSpec;

/// What keys are called on the command line.
const FLAG_OF_KEY: [(&str, &str); 5] = [
    ("`listen`", "`-l`"),
    ("`workers`", "`-n`"),
    ("`name`", "`--name`"),
    ("`protocol`", "`--protocol`"),
    ("`command`", "COMMAND"),
];

/// What was given instead of a service file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flags {
    /// The service's name; default: the stem of the program's.
    pub name: Option<String>,
    /// The addresses.
    pub listen: Vec<String>,
    /// A number of workers, or `auto`.
    pub workers: Option<String>,
    /// How workers learn of sockets and speak.
    pub protocol: Option<String>,
    /// The argument vector, never empty.
    pub command: Vec<String>,
    /// The absolute path of the folder to start in, symbolic links not resolved.
    #[serde(with = "crate::path_text")]
    pub directory: PathBuf,
}

impl Flags {
    /// Returns the name that the service has where none is given.
    fn default_name(&self) -> String {
        let program = self.command.first().map_or("", String::as_str);
        Path::new(program).file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn draft(&self) -> Draft {
        let mut draft = Draft::of("liveswap run");
        draft.file.push_str("socket = [");
        for address in &self.listen {
            draft.file.push_str("{ listen = ");
            draft.word("-l", address, &quoted(address));
            draft.file.push_str(" }, ");
        }
        draft.file.push_str("]\n[service]\n");
        for (key, flag, value) in [
            ("name", "--name", &self.name),
            ("workers", "-n", &self.workers),
            ("protocol", "--protocol", &self.protocol),
        ] {
            if let Some(value) = value {
                draft.file.push_str(key);
                draft.file.push_str(" = ");
                // A number of a service file is not in quotes.
                let number = value.parse().ok().filter(|_: &u32| key == "workers");
                draft.word(flag, value, &number.map_or_else(|| quoted(value), |number| number.to_string()));
                draft.file.push('\n');
            }
        }
        draft.line.push_str(" --");
        if self.name.is_none() {
            draft.file.push_str("name = ");
            // The program is the next word.
            let program = self.command.first().map_or(0, |program| in_a_shell(program).len());
            draft.write_for_next(&quoted(&self.default_name()), program);
            draft.file.push('\n');
        }
        draft.file.push_str("command = [");
        for word in &self.command {
            draft.word("", word, &quoted(word));
            draft.file.push_str(", ");
        }
        draft.file.push_str("]\n");
        draft
    }
}

/// Makes a service of flags; `cpus` is what `-n auto` stands for.
///
/// # Errors
///
/// All that is wrong with them.
pub fn parse(flags: &Flags, cpus: u32) -> Result<ServiceSpec, Diagnostics> {
    flags.draft().check(&flags.directory, cpus, &FLAG_OF_KEY)
}
