//! What is left when the manager is killed, and how another takes it up.
//!
//! The core is a function of its events, so what it knew is what it was given: a snapshot of everything stands in the
//! runtime directory, and behind it each event, written down before anything is done about it. Whoever takes over gives
//! them to a core of its own. Workers that live are held by pidfd, as they are no children of ours, and their sockets are
//! fetched from them or from an activator's store.
//!
//! Nobody else starts workers meanwhile: the lock of the runtime directory is inherited by every child until it has become
//! its program, so who holds it knows that nobody is on his way.
//!
//! ```text
//! record    all that is needed, as plain data       journal    how it comes to the file
//! judge     reads the file, in a child              survivors  which processes there are still
//! sockets   their sockets                           takeover   a manager made of all that
//! leftover  processes of a service whose state cannot be used
//! ```

mod journal;
mod judge;
mod leftover;
mod record;
mod sockets;
mod survivors;
mod takeover;

pub(super) use self::journal::Journal;
pub(super) use self::judge::Judged;
pub(super) use self::leftover::Leftover;
pub(super) use self::sockets::Found;
pub(super) use self::survivors::{Claim, Family, kill_family, kill_rest_of_group};
pub(super) use self::takeover::Taken;

/// The name of the state in the runtime directory.
pub const STATE: &str = "state";

/// The version of the state. It changes whenever a state of before could be misunderstood, be it that its form changes or
/// that the core decides otherwise.
const VERSION: u32 = 3;
