//! What a look at the processes of a starting worker shows, as plain data.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::time::Human;

/// The pause after the first look that showed nothing. Each further pause is twice as long.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// The longest pause between two looks.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What a look has shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sight {
    /// The worker serves, as far as the kernel tells.
    Serves,
    /// It does not serve yet.
    NotYet(Lack),
    /// The kernel does not tell; why not, in words.
    Hidden(String),
}

/// What a worker does not do that it must do before it counts as ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lack {
    /// No process of it waits for connections on a socket of the file.
    Waiting,
    /// No process of it listens, but the worker that it replaces listens at this address, which is no socket of the file.
    Listening(String),
}

impl Lack {
    /// Says what the worker still did not do after this time: `not waiting for … after 30 s`.
    #[must_use]
    pub fn after(&self, time: Duration) -> String {
        let time = Human(time);
        match self {
            Self::Waiting => format!("not waiting for connections on a socket of the file after {time}"),
            Self::Listening(address) => format!(
                "not listening after {time}: the worker that it replaces listens on {address}, which is no [[socket]] of the file"
            ),
        }
    }
}
