#![expect(unsafe_code, reason = "a signal handler")]
//! A bound on how long a system call may take.
//!
//! Nothing in the loop is meant to wait. What makes a call wait all the same, though nobody has thought of it, costs a
//! second: a timer sends a signal whose handler is installed without `SA_RESTART`, so the call fails with `EINTR`. That
//! reaches all waits that a signal may end; some it may not (a file server that does not answer `close(2)`).

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{SaFlags, SigAction, SigEvent, SigHandler, SigSet, SigevNotify, Signal, sigaction};
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;

use super::signals::note_changed_signals;

/// After so long a call is interrupted, and again after each such time until the timer is stopped.
pub const LIMIT: Duration = Duration::from_secs(1);

/// How often the timer has run out since that was asked.
static EXPIRED: AtomicU32 = AtomicU32::new(0);

/// The timer.
#[derive(Debug)]
pub struct StallTimer(Timer);

impl StallTimer {
    /// Makes a timer that is stopped. Children do not inherit it, nor do programs (timer_create(2)).
    ///
    /// # Errors
    ///
    /// Those of sigaction(2) and timer_create(2).
    pub fn new() -> io::Result<Self> {
        let action = SigAction::new(SigHandler::Handler(note), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing but to count in an atomic number.
        unsafe { sigaction(Signal::SIGALRM, &action) }?;
        note_changed_signals();
        let event = SigEvent::new(SigevNotify::SigevSignal { signal: Signal::SIGALRM, si_value: 0 });
        Ok(Self(Timer::new(ClockId::CLOCK_MONOTONIC, event)?))
    }

    /// Starts it anew.
    pub fn start(&mut self) {
        self.set(Expiration::IntervalDelayed(LIMIT.into(), LIMIT.into()));
    }

    /// Stops it, and returns how often it has run out since it was started.
    pub fn stop(&mut self) -> u32 {
        self.set(Expiration::OneShot(Duration::ZERO.into()));
        EXPIRED.swap(0, Ordering::Relaxed)
    }

    fn set(&mut self, when: Expiration) {
        // It cannot fail for a timer that exists; if it did, calls would be bounded no more.
        let _ = self.0.set(when, TimerSetTimeFlags::empty());
    }
}

extern "C" fn note(_: libc::c_int) {
    EXPIRED.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::super::fork::tests::pristine;
    use super::*;

    #[test]
    fn a_call_that_waits_is_interrupted_and_counted() {
        pristine(concat!(module_path!(), "::a_call_that_waits_is_interrupted_and_counted"), || {
            let (mut near, _far) = UnixStream::pair().unwrap();
            let mut timer = StallTimer::new().unwrap();
            timer.start();
            assert_eq!(near.read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::Interrupted);
            assert_eq!(near.read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::Interrupted, "and again");
            assert!(timer.stop() >= 2);
            assert_eq!(timer.stop(), 0);
        });
    }
}
