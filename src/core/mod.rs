//! The decisions of liveswap, as a pure function of its events.
//!
//! [`Manager::handle`] takes an [`Event`] and a moment and appends the [`Action`]s that follow from it; nothing else
//! goes in or out. There is no descriptor, pid, clock, log or thread in here, and all maps are ordered, so a run is a
//! function of its events: the simulator and the real thing cannot differ in what is decided.
//!
//! What always holds (the tests check it after each event):
//!
//! 1. In an upgrade, ready workers never fall below `workers - max_unavailable` unless they die by themselves, and live
//!    ones never exceed `workers + max_surge` beside those that drain.
//! 2. An old worker drains only after its replacement is ready (rolling), or all are (blue-green).
//! 3. An upgrade that fails leaves the old generation at full strength: old workers that already drained are started
//!    again before the new ones go.
//! 4. Nothing is done to a worker after [`Event::Exited`] named it.
//! 5. [`Action::Forget`] comes only for a generation without a worker that neither serves nor is being prepared.
//! 6. Every upgrade ends in exactly one [`Outcome`], in bounded time, and everyone who asked is answered.
//! 7. After [`Event::Stop`] it ends, with no worker left.
//!
//! A generation that sleeps is at full strength with no worker.
//!
//! All of it holds over [`Event::TakenOver`] too, but that what was asked for before is forgotten.

pub mod advice;
mod backoff;
mod census;
mod ending;
mod exchange;
mod generation;
pub mod head;
pub mod ids;
mod index;
mod looking;
mod manager;
pub mod notice;
mod patience;
pub mod pid1;
pub mod printable;
mod request;
mod respawn;
mod roster;
pub mod sight;
mod sleep;
mod slots;
pub mod sparing;
pub mod spec;
mod takeover;
pub mod time;
mod upgrade;
pub mod view;
mod waiting;
pub mod word;
mod worker;

pub use backoff::Backoff;
pub use generation::Generation;
pub use manager::Manager;
pub use worker::{KILL_TAKES, Worker, WorkerState};

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use ids::{GenerationId, RequestId, SlotId, WorkerId};
use notice::{Exit, Notice, Outcome};
use sight::Sight;
use spec::{Code, Policy};
use word::Word;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// Time passed: at least the moment of [`Manager::next_deadline`].
    Tick,
    /// Somebody wants an upgrade (SIGHUP, or a request that is to be answered).
    Upgrade(Option<RequestId>),
    /// Somebody wants fresh workers of the serving generation (SIGUSR1).
    Respawn(Option<RequestId>),
    /// A socket could not be repaired and was bound anew: the workers that run have one that is dead.
    SocketReplaced,
    /// A connection waits on a socket, or a datagram.
    Connected,
    /// There are processes of single connections now, or none any more. They are no workers: but an end waits for them.
    Guests(bool),
    /// For as long as was to be waited no worker has had a connection.
    Idle,
    /// Somebody wants more or fewer workers (SIGTTIN, SIGTTOU).
    Scale(i32),
    /// Somebody wants something that no signal can say, and is to be answered.
    Asked(RequestId, Wish),
    /// Somebody wants an end: drain, or kill where a drain was asked for more than 200 ms before (SIGTERM, SIGINT).
    Stop,
    /// Somebody wants an end at once (SIGQUIT).
    Kill,
    /// The service file of an upgrade was read and is sound; where it has hooks to be run before, with what time they have.
    FileRead(GenerationId, Option<Duration>),
    /// The hooks before an upgrade have ended; the error says which failed, and how.
    HookEnded(GenerationId, Result<(), String>),
    /// The generation is ready to be started: file read, directory resolved, sockets bound.
    Prepared(GenerationId, Policy, Code),
    /// Reading or preparing failed; nothing was changed.
    PreparationFailed(GenerationId, String),
    /// A worker's program runs.
    Executed(WorkerId),
    /// No process could be made for the worker: it does not exist.
    StartFailed(WorkerId, String),
    /// A worker said something on its notify socket.
    Said(WorkerId, Word),
    /// The probe of a starting worker ended; `true` where it exited 0.
    Probed(WorkerId, bool),
    /// The processes of a starting worker were looked at.
    Looked(WorkerId, Sight),
    /// A worker has ended and was reaped, all it said before was heard.
    Exited(WorkerId, Exit),
    /// A worker that is to end does not: nothing may be sent to it, or it outlives SIGKILL. The text names its process, and says
    /// which of the two.
    DoesNotEnd(WorkerId, String),
    /// Something happened while more is known to have happened before now: nothing is judged by the clock before all of it was
    /// heard. The [`Event::Tick`] that follows judges.
    Heard(Box<Event>),
    /// The manager was not woken when it wanted to be, as the machine slept or somebody stopped it. Workers may have fared alike, so what
    /// they must keep to in time they may take as long for once more.
    Overslept,
    /// The manager was killed, and another goes on with its state. All workers served on but these, which have ended
    /// meanwhile or were never started; nobody has heard what any of them said.
    TakenOver(BTreeSet<WorkerId>),
}

/// What is asked for on the control socket, beside an upgrade and a gentle respawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wish {
    /// An upgrade to the target that the request names; who asks knows which it is.
    UpgradeTo,
    /// The generation before: that of the upgrade under way, or else the one that was committed before the current one.
    Rollback,
    /// Fresh workers, for which the present ones are killed.
    RespawnNow,
    /// Another number of workers.
    Scale(Scale),
    /// An end: drain. Once more, it is waited for together.
    Stop,
    /// An end at once.
    Kill,
}

/// How many workers there are to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scale {
    /// That many.
    To(u32),
    /// So many more, or fewer.
    By(i32),
}

/// Something to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read and check the service file; its target is the one that the request names, or else the one of before.
    ReadFile(GenerationId, Option<RequestId>),
    /// Run the hooks before an upgrade.
    RunHook(GenerationId),
    /// Read the service file anew, resolve the directory, bind the sockets.
    Prepare(GenerationId),
    /// Make the first generation of what the second, an earlier one, was made of, and bind its sockets.
    Reuse(GenerationId, GenerationId),
    /// Give up what was being read, run or prepared, and release it; no event follows.
    CancelPreparation(GenerationId),
    /// Start a worker.
    Start {
        /// Its name from now on.
        worker: WorkerId,
        /// Whose code it runs.
        generation: GenerationId,
        /// Its place.
        slot: SlotId,
    },
    /// Run the probe of a starting worker.
    Probe(WorkerId),
    /// Look whether a starting worker serves, as the kernel tells: whether it waits for connections on a socket of the file. Where
    /// it replaces another worker: whether it listens anywhere, if that one does.
    Look(WorkerId, Option<WorkerId>),
    /// Send the drain signal to the worker's main process.
    Drain(WorkerId),
    /// Send SIGABRT to the worker's main process.
    Abort(WorkerId),
    /// Send SIGKILL to the worker's whole tree.
    Kill(WorkerId),
    /// See which process of a worker has outlived SIGKILL; [`Event::DoesNotEnd`] tells.
    Examine(WorkerId),
    /// The sockets are to be again as this generation wants them.
    RestoreSockets(GenerationId),
    /// Nothing of the generation is left: let go of its sockets.
    Forget(GenerationId),
    /// Run the hook `[upgrade] after` of the upgrade to this generation.
    TellHook(GenerationId, Outcome),
    /// Answer someone who asked.
    Answer(RequestId, Outcome),
    /// Tell the world.
    Tell(Notice),
    /// The service has ended.
    Exit,
}
