//! What has become of the managers so far, and what follows from that.

use std::time::Duration;

use super::super::BUG;
use crate::sys::reaper::Exit;

/// How soon another manager is started, and the longest pause between two that crash in a row.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How many managers may crash before any of them has served.
pub(super) const TRIES: u32 = 5;

/// How the life of a manager goes on after its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// So does ours, with this status.
    End(i32),
    /// Another one is started after a pause.
    Another(Duration),
}

/// What has become of the managers so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    has_served: bool,
    /// Since one of them was last ready.
    pub(super) crashes: u32,
}

impl Record {
    pub(super) fn note_ready(&mut self) {
        *self = Self { has_served: true, crashes: 0 };
    }

    /// Takes the end of a manager. What it meant to exit with is our own status. After a crash another one follows as long as
    /// there may be workers that serve; where none ever has, only so often. One that cannot take over is no reason to end
    /// those that do serve: `anybody_left` says whether there are any.
    pub(super) fn note_end(&mut self, exit: Exit, anybody_left: bool) -> Next {
        let is_successor = self.has_served && self.crashes > 0;
        let is_meant = match exit {
            Exit::Code(0) => true,
            Exit::Code(BUG) | Exit::Signal { .. } => false,
            Exit::Code(_) => !(is_successor && anybody_left),
        };
        self.crashes = self.crashes.saturating_add(1);
        if is_meant || !self.has_served && self.crashes >= TRIES {
            return Next::End(status_of(exit));
        }
        let doublings = (self.crashes - 1).min(31);
        Next::Another(PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE))
    }
}

/// The exit status that tells of an end as a shell does.
pub(super) fn status_of(exit: Exit) -> i32 {
    match exit {
        Exit::Code(status) => status,
        Exit::Signal { number, .. } => 128 + number,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KILLED: Exit = Exit::Signal { number: 9, core_dumped: false };

    #[test]
    fn what_the_manager_exits_with_is_the_status() {
        for status in [0, 1, 2, 3] {
            assert_eq!(Record::default().note_end(Exit::Code(status), true), Next::End(status));
            let serves = Record { has_served: true, crashes: 0 };
            assert_eq!({ serves }.note_end(Exit::Code(status), true), Next::End(status));
        }
    }

    #[test]
    fn a_crash_before_anything_served_is_tried_again_a_few_times() {
        let mut record = Record::default();
        let ends: Vec<_> = (0..TRIES).map(|_| record.note_end(KILLED, true)).collect();
        let pause = |times| Next::Another(PAUSE * times);
        assert_eq!(ends, [pause(1), pause(2), pause(4), pause(8), Next::End(137)]);
        let mut record = Record { crashes: TRIES - 1, ..Record::default() };
        assert_eq!(record.note_end(Exit::Code(BUG), true), Next::End(BUG));
    }

    #[test]
    fn what_serves_is_never_given_up() {
        let mut record = Record::default();
        record.note_ready();
        let ends: Vec<_> = (0..100).map(|_| record.note_end(KILLED, true)).collect();
        assert_eq!(ends[0], Next::Another(PAUSE));
        assert_eq!(ends[99], Next::Another(LONGEST_PAUSE));
        record.note_ready();
        assert_eq!(record.note_end(KILLED, true), Next::Another(PAUSE));
        // One that cannot take over is no reason to end those that serve, unless there are none.
        assert_eq!(record.note_end(Exit::Code(1), true), Next::Another(PAUSE * 2));
        assert_eq!(record.note_end(Exit::Code(1), false), Next::End(1));
        assert_eq!(record.note_end(Exit::Code(0), true), Next::End(0));
    }
}
