//! One worker's channel: lines in, lines and descriptors out, nothing waited for.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::super::token::{Poller, Token, Watched};
use crate::core::ids::WorkerId;
use crate::sys::channel::{receive_some, send_some};
use crate::sys::foreign::{ForeignFd, are_too_many};
use crate::sys::handover::{hand_over, plain};
use crate::sys::output::is_readable;
use crate::sys::wait::Interest;
use crate::wire::lines::Lines;
use crate::wire::message::MAX_MESSAGE;
use crate::wire::node::{Answer, Drain, MAX_LINE, Said};

plain!(Standing);

/// How much may wait for a worker that does not read, in bytes, before another message is refused. One message always may.
const MAX_WAITING: usize = MAX_MESSAGE;

/// How much is read in a turn, in bytes.
const READ_SIZE: usize = 16 * 1024;

/// The manager's end of a channel.
#[derive(Debug)]
pub struct Channel {
    fd: Watched<ForeignFd>,
    lines: Lines,
    /// A line that is too long is being skipped.
    skips: bool,
    output: VecDeque<Line>,
    /// The keys of the sockets that the worker has open.
    pub(in super::super) held: BTreeSet<String>,
    standing: Standing,
    /// The kernel takes no more descriptors from us for now.
    crowded: bool,
}

/// How far a worker has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// It serves, or is about to.
    Open,
    /// It was asked to leave.
    Leaving,
    /// It has closed its end without being asked.
    Parted,
    /// It has closed its end, as it was asked to.
    Left,
}

hand_over!(Channel as ChannelState {
    fd: Watched<ForeignFd>,
    lines: Lines,
    skips: bool,
    output: VecDeque<Line>,
    held: BTreeSet<String>,
    standing: Standing,
    crowded: bool,
});

/// A line on its way.
#[derive(Debug)]
pub struct Line {
    rest: Vec<u8>,
    /// What goes beside its first byte.
    descriptor: Option<OwnedFd>,
}

hand_over!(Line as LineState { rest: Vec<u8>, descriptor: Option<OwnedFd> });

impl Channel {
    pub(in super::super) fn new(fd: OwnedFd) -> Self {
        Self {
            fd: ForeignFd::from(fd).into(),
            lines: Lines::new(MAX_LINE),
            skips: false,
            output: VecDeque::new(),
            held: BTreeSet::new(),
            standing: Standing::Open,
            crowded: false,
        }
    }

    /// Goes on with one whose worker has these sockets open.
    pub(in super::super) fn again(fd: OwnedFd, held: BTreeSet<String>) -> Self {
        Self { held, ..Self::new(fd) }
    }

    /// Takes what the worker has said by now, a bounded piece of it. Who does not read is not heard.
    pub(super) fn listen(&mut self) -> Vec<Said> {
        let mut heard = Vec::new();
        if self.awaited() != Interest::Read || self.is_closed() || are_too_many() {
            return heard;
        }
        let mut buffer = [0; READ_SIZE];
        match receive_some(&self.fd, &mut buffer) {
            Ok(0) => self.close(),
            Ok(count) => self.lines.push(&buffer[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.close(),
        }
        while let Some(line) = self.lines.next_line() {
            if line.ended && !self.skips {
                heard.push(Said::parse(line.bytes));
            }
            self.skips = !line.ended;
        }
        heard
    }

    /// Has something said, perhaps with a descriptor beside it.
    pub(super) fn say(&mut self, answer: &Answer<'_>, descriptor: Option<OwnedFd>) {
        self.output.push_back(Line { rest: answer.to_line(), descriptor });
    }

    /// Hands over a message: JSON without a newline. What the worker does not take at once waits for it, bounded.
    ///
    /// # Errors
    ///
    /// `WouldBlock` where the worker does not read those that it got before, `BrokenPipe` where it never will.
    pub(in super::super) fn tell(&mut self, json: &str) -> io::Result<()> {
        self.flush();
        if self.standing != Standing::Open {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let line = Answer::Message(json).to_line();
        if !self.output.is_empty() {
            let waiting: usize = self.output.iter().map(|line| line.rest.len()).sum();
            if waiting + line.len() > MAX_WAITING {
                return Err(ErrorKind::WouldBlock.into());
            }
            self.output.push_back(Line { rest: line, descriptor: None });
            return Ok(());
        }
        let taken = match send_some(&self.fd, &line, None) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            taken => taken?,
        };
        // What was taken must be made whole, and is, before anything else is said.
        let rest = line[taken..].to_vec();
        if !rest.is_empty() {
            self.output.push_back(Line { rest, descriptor: None });
        }
        Ok(())
    }

    /// Asks the worker to leave.
    pub(super) fn leave(&mut self, drain: Drain) {
        if self.standing == Standing::Open {
            self.standing = Standing::Leaving;
            self.say(&Answer::Disconnect(drain), None);
        }
    }

    fn close(&mut self) {
        self.standing = if self.standing == Standing::Open { Standing::Parted } else { Standing::Left };
    }

    pub(super) fn standing(&self) -> Standing {
        self.standing
    }

    /// Whether the worker has closed its end.
    pub(super) fn is_closed(&self) -> bool {
        matches!(self.standing, Standing::Parted | Standing::Left)
    }

    /// Whether there is something to be heard, be it the end.
    pub(super) fn is_readable(&self) -> bool {
        !self.is_closed() && is_readable(&self.fd).unwrap_or(false)
    }

    /// Writes what is taken.
    pub(super) fn flush(&mut self) {
        self.crowded = false;
        while let Some(line) = self.output.front_mut() {
            let beside = line.descriptor.as_ref().map(AsFd::as_fd);
            match send_some(&self.fd, &line.rest, beside) {
                Ok(count) => {
                    line.rest.drain(..count);
                    line.descriptor = None;
                    if line.rest.is_empty() {
                        self.output.pop_front();
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // Too many of our user's descriptors are on their way, and nothing tells when there are fewer.
                Err(error) if error.raw_os_error() == Some(libc::ETOOMANYREFS) => {
                    self.crowded = true;
                    return;
                }
                // What it said before it closed is still to be read.
                Err(_) => self.output.clear(),
            }
        }
    }

    /// Has it watched for what is to come: more from the worker, or room for what waits.
    ///
    /// # Errors
    ///
    /// Those of `epoll_ctl(2)`.
    pub(in super::super) fn watch(&self, poller: &Poller, worker: WorkerId) -> io::Result<()> {
        self.fd.watch(poller, Token::Channel(worker), self.awaited())
    }

    fn awaited(&self) -> Interest {
        if self.output.is_empty() {
            Interest::Read
        } else if self.crowded {
            Interest::Nothing
        } else {
            Interest::Write
        }
    }

    /// Whether it is to be tried again later to write what waits.
    pub(super) fn is_crowded(&self) -> bool {
        self.crowded
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
