//! Another program in the manager's place: the same pid, and nothing that was under way is lost.
//!
//! The whole state goes as plain data into a sealed memfd, with a version before it; descriptors keep their numbers over
//! execve(2). The program at our path is tried first, as a child that is shown the state: who does not understand it, or is
//! no program, never gets to be the manager. What comes in the gap (signals, ends of children, datagrams, clients) waits
//! in the kernel, and is read by whoever is the manager then.
//!
//! ```text
//! state   all that a manager is, as plain data; the way there and back            trial   the trial, and the step itself
//! ```

mod state;
mod trial;

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

pub(super) use self::state::State;
pub(super) use self::trial::{Reexec, Successor};
use super::control::{Asker, Standing, Trust};
use super::process::Tail;
use super::release::Release;
use super::run::Role;
use super::target::Wanted;
use super::token::{ClientId, Stream};
use crate::core::ids::{GenerationId, RequestId, SlotId, WorkerId};
use crate::core::time::Mono;
use crate::sys::exec::own_identity;
use crate::sys::handover::{Number, Unpacked, plain};
use crate::sys::options::{SocketOption, Value};
use crate::sys::socket_file::Permissions;
use crate::sys::wait::Interest;
use crate::sys::{handover, memfd};
use crate::wire::control::Evidence;
use crate::wire::lines::Lines;
use crate::wire::secret::Secret;

/// The version of the state. It changes whenever a state of before could be misunderstood.
const VERSION: u32 = 6;

/// Where the program finds the state that it is to go on with: its own pid and the descriptor's number, `4711:23`.
const VARIABLE: &str = "LIVESWAP_HANDOVER";

/// What a program says that understands the state, before it names its own file and exits with status 0.
const UNDERSTOOD: &str = "liveswap: the state is understood by ";

plain!(
    GenerationId,
    SlotId,
    WorkerId,
    RequestId,
    ClientId,
    Mono,
    Release,
    Wanted,
    Role,
    Stream,
    Tail,
    Lines,
    Evidence
);
plain!(Asker, Standing, Trust, Secret, Interest, SocketOption, Value, Permissions);

/// A state on its way, with what must be read before it.
#[derive(Serialize, Deserialize)]
struct Envelope<B> {
    version: u32,
    /// Who wrote it.
    program: String,
    descriptors: Vec<Number>,
    state: B,
}

/// Writes a state and the numbers of its descriptors down.
fn seal(state: &State, luggage: &handover::Luggage) -> io::Result<OwnedFd> {
    let envelope = Envelope {
        version: VERSION,
        program: env!("CARGO_PKG_VERSION").to_owned(),
        descriptors: luggage.numbers().to_vec(),
        state,
    };
    memfd::sealed(&serde_json::to_vec(&envelope)?)
}

/// Reads a state, and the numbers of its descriptors; nothing is taken over yet.
fn open(memory: &OwnedFd) -> io::Result<(State, Vec<Number>)> {
    read(&memfd::read_whole(memory)?)
}

fn read(bytes: &[u8]) -> io::Result<(State, Vec<Number>)> {
    let envelope: Envelope<Box<RawValue>> = serde_json::from_slice(bytes)?;
    if envelope.version != VERSION {
        return Err(io::Error::other(format!(
            "liveswap {} understands version {VERSION} of the state, not version {} as liveswap {} writes it",
            env!("CARGO_PKG_VERSION"),
            envelope.version,
            envelope.program
        )));
    }
    Ok((serde_json::from_str(envelope.state.get())?, envelope.descriptors))
}

/// Says whether this program understands the state in descriptor 3; what a manager has another program do before it
/// hands over to it.
///
/// # Errors
///
/// Why not.
pub fn try_state() -> io::Result<()> {
    let number: Number = "3".parse().map_err(io::Error::other)?;
    let memory = Unpacked::take_over(&[number])?.take(number)?;
    open(&memory)?;
    println!("{UNDERSTOOD}{}", own_identity()?);
    Ok(())
}

/// Takes the state that another program, which this process was before, has left for us; `None` where there is none.
pub(super) fn take() -> Option<io::Result<(State, Unpacked)>> {
    let place = env::var(VARIABLE).ok()?;
    let (pid, number) = place.split_once(':')?;
    // Whoever inherited the variable from a manager was not meant.
    if pid.parse() != Ok(std::process::id()) {
        return None;
    }
    let number: Number = number.parse().ok()?;
    let arrived = || {
        let memory = Unpacked::take_over(&[number])?.take(number)?;
        let (state, descriptors) = open(&memory)?;
        Ok((state, Unpacked::take_over(&descriptors)?))
    };
    Some(arrived())
}

/// Our environment as the next program is to have it.
fn environment(state: Number) -> Vec<(OsString, OsString)> {
    let others = env::vars_os().filter(|(name, _)| name != VARIABLE);
    others.chain([(VARIABLE.into(), format!("{}:{state}", std::process::id()).into())]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_of_another_version_is_refused_in_words() {
        let text = r#"{"version":4711,"program":"9.9.9","descriptors":[5],"state":{"whatever":true}}"#;
        let error = read(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("not version 4711 as liveswap 9.9.9 writes it"), "{error}");
    }

    #[test]
    fn no_text_is_mistaken_for_a_state() {
        for text in ["", "{}", "[]", r#"{"version":1,"program":"","descriptors":[],"state":{}}"#] {
            assert!(read(text.as_bytes()).is_err(), "{text}");
        }
    }
}
