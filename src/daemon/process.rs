//! A worker's process as the shell knows it: its pid, its notify socket, its output.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tracing::{debug, info};

use super::node::Channel;
use super::outlet::{ERROR, OUTPUT};
use super::sender::{AnnouncedPid, Rejected, Voucher};
use super::store::StoreWish;
use super::token::{Stream, Watched};
use crate::core::ids::{GenerationId, SlotId};
use crate::core::time::Mono;
use crate::core::word::{Word, one_line};
use crate::sys::channel::receive_some;
use crate::sys::foreign::{ForeignFd, are_too_many};
use crate::sys::handover::{HandOver, Luggage, Unpacked, hand_over};
use crate::sys::notify_socket::{Datagram, NotifySocket};
use crate::sys::pidfd::Pidfd;
use crate::sys::spawn::Spawned;
use crate::wire::lines::{Line, Lines};
use crate::wire::notify::{self, Descriptors, MAX_DATAGRAM, Message};

/// The most messages of one worker that are taken before the others get their turn.
pub const MESSAGES_A_TURN: usize = 64;

/// The most messages that are read of a worker that has died; more than any queue holds
/// (`net.unix.max_dgram_qlen`, as others of its tree may still send).
pub const LAST_WORDS: usize = 4096;

/// How often one reads a full pipe of the largest usual size (pipe(7), `fs.pipe-max-size`).
const PIPE_READS: usize = (1 << 20) / READ_SIZE;

/// How much of an output is read at a time, in bytes.
const READ_SIZE: usize = 16 * 1024;

/// The longest line of output that is kept whole, in bytes.
const MAX_LINE: usize = 8192;

/// How many lines of a worker's standard error are kept, and how much of each, in bytes.
const TAIL_LINES: usize = 20;
const TAIL_LINE: usize = 400;

/// A worker's process, until it is reaped.
#[derive(Debug)]
pub struct Process {
    /// The process whose end is the worker's; our child, unless it is a survivor.
    pub pid: Pid,
    /// When it was started, in clock ticks since the boot.
    pub started: Option<u64>,
    /// Where it outlived the manager that had started it: what we hold it by.
    pub survivor: Option<Watched<Pidfd>>,
    /// The process group that it was started in.
    pub group: Pid,
    /// The process that the worker named as its main one (`MAINPID=`): it is signalled, and the worker goes on as it
    /// where it outlives `pid`.
    pub announced_main_pid: Option<AnnouncedPid>,
    /// The messages on its notify socket that were not its own.
    pub rejected: Rejected,
    /// Whose code it runs.
    pub generation: GenerationId,
    /// Its place.
    pub slot: SlotId,
    /// Where it speaks; none under `protocol = "plain"`.
    pub notify: Option<Watched<NotifySocket>>,
    /// How it becomes its program; none once that is known.
    pub start: Option<Watched<Spawned>>,
    /// Why its program could not be executed.
    pub failure: Option<String>,
    /// Where it is sent messages, under `messages = true`; writing never blocks.
    pub messages: Option<OwnedFd>,
    /// Its channel, under `protocol = "node"`, until the worker closes it.
    pub channel: Option<Channel>,
    /// When it is sent its drain signal, where it has closed its servers and does not end.
    pub lingers_until: Option<Mono>,
    /// When it was last sent its drain signal.
    pub drain_signal_sent: Option<Mono>,
    /// When it is tried again to hand it a socket, where too many are on their way.
    pub tries_again_at: Option<Mono>,
    /// The end of its standard error, where that comes through us.
    pub tail: Tail,
    /// How its last probe failed.
    pub failed_probe: Option<String>,
    /// Its standard output and error, where they come through us.
    pub outputs: Vec<WorkerOutput>,
}

hand_over!(Process as ProcessState {
    pid: Pid,
    started: Option<u64>,
    survivor: Option<Watched<Pidfd>>,
    group: Pid,
    announced_main_pid: Option<AnnouncedPid>,
    rejected: Rejected,
    generation: GenerationId,
    slot: SlotId,
    notify: Option<Watched<NotifySocket>>,
    start: Option<Watched<Spawned>>,
    failure: Option<String>,
    failed_probe: Option<String>,
    messages: Option<OwnedFd>,
    channel: Option<Channel>,
    lingers_until: Option<Mono>,
    drain_signal_sent: Option<Mono>,
    tries_again_at: Option<Mono>,
    tail: Tail,
    outputs: Vec<WorkerOutput>,
});

/// What a worker has said.
#[derive(Debug)]
pub enum Heard {
    /// A word for the core.
    Word(Word),
    /// A wish for the store.
    Store(StoreWish),
    /// The descriptor of a `BARRIER=1`: it is to be closed when all that was heard before has been acted on, which is what its
    /// sender waits for.
    Barrier(ForeignFd),
}

impl Heard {
    /// Takes a message apart. Descriptors that nobody claims are closed.
    fn all(message: Message, descriptors: Vec<ForeignFd>) -> Vec<Self> {
        let Message { words, main_pid: _, descriptors: claim, forget } = message;
        let words = words.into_iter().map(Self::Word);
        let forget = forget.map(|name| Self::Store(StoreWish::Forget(name)));
        let claimed = match claim {
            Descriptors::Unclaimed => Vec::new(),
            Descriptors::Barrier => descriptors.into_iter().map(Self::Barrier).collect(),
            Descriptors::Store { name, polled } => {
                vec![Self::Store(StoreWish::Keep { name, polled, descriptors })]
            }
        };
        words.chain(forget).chain(claimed).collect()
    }
}

/// Our end of what an output of another process comes through.
#[derive(Debug)]
pub enum Source {
    /// A pipe.
    Pipe(File),
    /// A socket, along which descriptors may come as well.
    Socket(ForeignFd),
}

impl Source {
    /// Reads what was written, as much as there is room for, and never waits; 0 at the end.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.read(buffer),
            Self::Socket(socket) => match receive_some(socket, buffer) {
                // Its writers have gone, and had something of ours unread.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(0),
                received => received,
            },
        }
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Pipe(pipe) => pipe.as_fd(),
            Self::Socket(socket) => socket.as_fd(),
        }
    }
}

/// A [`Source`] as plain data.
#[derive(Debug, Serialize, Deserialize)]
pub enum SourceState {
    /// A pipe.
    Pipe(<File as HandOver>::State),
    /// A socket.
    Socket(<ForeignFd as HandOver>::State),
}

impl HandOver for Source {
    type State = SourceState;

    fn pack(&self, luggage: &mut Luggage) -> SourceState {
        match self {
            Self::Pipe(pipe) => SourceState::Pipe(pipe.pack(luggage)),
            Self::Socket(socket) => SourceState::Socket(socket.pack(luggage)),
        }
    }

    fn unpack(state: SourceState, luggage: &mut Unpacked) -> io::Result<Self> {
        Ok(match state {
            SourceState::Pipe(pipe) => Self::Pipe(HandOver::unpack(pipe, luggage)?),
            SourceState::Socket(socket) => Self::Socket(HandOver::unpack(socket, luggage)?),
        })
    }
}

/// One output of a worker, on its way through us.
#[derive(Debug)]
pub struct WorkerOutput {
    /// Which.
    pub stream: Stream,
    /// Where we read it.
    pub pipe: Watched<Source>,
    lines: Lines,
    prefix: String,
}

hand_over!(WorkerOutput as WorkerOutputState { stream: Stream, pipe: Watched<Source>, lines: Lines, prefix: String });

/// The last lines of an output, for whoever asks why its worker failed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Tail(VecDeque<String>);

impl Tail {
    fn push(&mut self, line: &[u8]) {
        if self.0.len() == TAIL_LINES {
            self.0.pop_front();
        }
        let end = line.len().min(TAIL_LINE);
        self.0.push_back(one_line(&String::from_utf8_lossy(&line[..end])));
    }

    /// Returns the lines, oldest first.
    pub fn lines(&self) -> Vec<String> {
        self.0.iter().cloned().collect()
    }
}

impl Process {
    /// Takes what the worker has said, at most `limit` messages, in its order. What others say in its name is dropped.
    pub(super) fn listen(&mut self, limit: usize, voucher: &Voucher<'_>, now: Mono) -> Vec<Heard> {
        let mut heard = Vec::new();
        let Some(socket) = &self.notify else { return heard };
        let mut buffer = [0; MAX_DATAGRAM];
        for _ in 0..limit {
            if are_too_many() {
                break;
            }
            match socket.receive(&mut buffer) {
                Ok(Some(Datagram { sender, .. }))
                    if !sender.as_ref().is_some_and(|sender| voucher.believes(sender)) =>
                {
                    let name = self.name();
                    self.rejected.note(voucher.worker, &name, sender.as_ref(), now);
                }
                Ok(Some(datagram)) if datagram.truncated || datagram.control_truncated => {
                    debug!("{}: a message that was cut short is dropped", self.name());
                }
                Ok(Some(datagram)) => {
                    match notify::parse(&buffer[..datagram.len], datagram.descriptors.len()) {
                        Ok(message) => {
                            let announced = message.main_pid.zip(datagram.sender.as_ref());
                            let announced = announced.and_then(|(pid, by)| voucher.main_pid(pid, by));
                            self.announced_main_pid = announced.or(self.announced_main_pid);
                            heard.extend(Heard::all(message, datagram.descriptors));
                        }
                        Err(why) => debug!("{}: a message is dropped: {why}", self.name()),
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    debug!("{}: cannot read its notify socket: {error}", self.name());
                    break;
                }
            }
        }
        heard
    }

    /// Tells how a probe failed, unless the one before it failed in the same way.
    pub fn note_failed_probe(&mut self, how: String) {
        if self.failed_probe.as_ref() != Some(&how) {
            info!("{}: not ready yet: its probe {how}", self.name());
            self.failed_probe = Some(how);
        }
    }

    /// Returns how the log names it.
    pub fn name(&self) -> String {
        format!("generation {}, slot {}, pid {}", self.generation, self.slot, self.pid)
    }

    /// Passes on what the worker wrote to `stream`; returns `false` once nothing more can come.
    pub fn pass_on(&mut self, stream: Stream) -> bool {
        let output = self.outputs.iter_mut().find(|output| output.stream == stream);
        let tail = &mut self.tail;
        output.is_some_and(|output| {
            let goes_on = output.pass_on(tail);
            if !goes_on {
                output.finish(tail);
            }
            goes_on
        })
    }

    /// Passes on the end of all output, as far as it was written by now: what a pipe holds, and no more, as something
    /// that the worker left behind may go on writing.
    pub fn finish_outputs(&mut self) {
        for output in &mut self.outputs {
            output.pass_on_the_rest(&mut self.tail);
        }
        self.outputs.clear();
    }
}

impl WorkerOutput {
    /// Takes our end of a pipe.
    pub fn new(stream: Stream, pipe: Source, prefix: String) -> Self {
        Self { stream, pipe: pipe.into(), lines: Lines::new(MAX_LINE), prefix }
    }

    /// Passes on what was written by now, a bounded piece of it; returns `false` once nothing more can come.
    pub fn pass_on(&mut self, tail: &mut Tail) -> bool {
        let mut buffer = [0; READ_SIZE];
        match self.pipe.read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => self.lines.push(&buffer[..count]),
            Err(error) => {
                return matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
            }
        }
        while let Some(line) = self.lines.next_line() {
            emit(self.stream, &self.prefix, &line, tail);
        }
        true
    }

    fn has_more(&self) -> bool {
        crate::sys::output::is_readable(self.pipe.as_fd()).unwrap_or(false)
    }

    /// Passes on all that was written by now, and no more: something that was left behind may go on writing.
    pub fn pass_on_the_rest(&mut self, tail: &mut Tail) {
        let mut reads_left = PIPE_READS;
        while reads_left > 0 && self.pass_on(tail) && self.has_more() {
            reads_left -= 1;
        }
        self.finish(tail);
    }

    /// Passes on a line that has no end.
    pub fn finish(&mut self, tail: &mut Tail) {
        if let Some(line) = self.lines.finish() {
            // The next line is somebody else's.
            emit(self.stream, &self.prefix, &Line { ended: true, ..line }, tail);
        }
    }
}

fn emit(stream: Stream, prefix: &str, line: &Line<'_>, tail: &mut Tail) {
    if stream == Stream::Err {
        tail.push(line.bytes);
    }
    let to = match stream {
        Stream::Out => &OUTPUT,
        Stream::Err => &ERROR,
    };
    // Without a prefix it goes on as it came: a piece of a long line is followed by the next.
    let end: &[u8] = if line.ended || !prefix.is_empty() { b"\n" } else { b"" };
    to.push_from_worker(prefix, line.bytes, end);
}
