//! System calls that a signal has interrupted.
//!
//! `EINTR` says nothing about the descriptor of a call: neither that its peer has gone nor that there is an error. It comes
//! in three kinds:
//!
//! - A call that waits for nothing (poll(2) with a time-out of 0, `MSG_DONTWAIT`, `O_NONBLOCK`) is interrupted only before it has
//!   done anything, and is made again at once: [`at_once`].
//! - A call that may wait, though it is not meant to, stays interruptible: [`super::stall`] bounds it by a signal. Its `EINTR` is
//!   "not now", as if it had found nothing to do, and the next turn of the loop tries again.
//! - A wait with a time-out of its own goes on until that has passed.

use nix::errno::Errno;

/// Makes a call that waits for nothing again until no signal interrupts it.
///
/// # Errors
///
/// Those of the call but `EINTR`.
pub fn at_once<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(unsafe_code, reason = "a signal handler and a timer")]

    use std::io::{ErrorKind, Write};
    use std::net::TcpListener;
    use std::os::unix::net::UnixStream;

    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

    use super::super::fork::tests::pristine;
    use super::super::listener::is_shut_down;
    use super::super::output::{Writer, is_readable, output_pipe};
    use super::super::pidfd::Pidfd;
    use super::super::rights::receive;
    use super::super::stream_socket::accept;
    use super::*;

    #[test]
    fn only_an_interrupted_call_is_made_again() {
        let mut results = [Ok(7), Err(Errno::EINTR), Err(Errno::EINTR)].to_vec();
        assert_eq!(at_once(|| results.pop().unwrap()), Ok(7));
        let mut results = [Ok(7), Err(Errno::EAGAIN)].to_vec();
        assert_eq!(at_once(|| results.pop().unwrap()), Err(Errno::EAGAIN));
    }

    extern "C" fn nothing(_: libc::c_int) {}

    /// Has a signal come every few microseconds that no call is restarted after.
    fn storm() {
        let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing.
        unsafe { sigaction(Signal::SIGVTALRM, &action) }.unwrap();
        let often = libc::timeval { tv_sec: 0, tv_usec: 20 };
        let timer = libc::itimerval { it_interval: often, it_value: often };
        // SAFETY: the kernel reads one such struct.
        let set = unsafe { libc::setitimer(libc::ITIMER_VIRTUAL, &raw const timer, std::ptr::null_mut()) };
        assert_eq!(set, 0);
    }

    #[test]
    fn signals_at_any_moment_change_no_answer() {
        pristine(concat!(module_path!(), "::signals_at_any_moment_change_no_answer"), || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            let (near, mut far) = UnixStream::pair().unwrap();
            let (_reader, full) = output_pipe().unwrap();
            let full = Writer::to(&full).unwrap();
            while full.write_some(&[b'x'; 4096]).unwrap() > 0 {}
            let own = Pidfd::open(nix::unistd::getpid()).unwrap();
            storm();
            for _ in 0..20_000 {
                assert!(!is_shut_down(&listener).unwrap());
                assert!(accept(&listener).unwrap().is_none());
                assert!(!is_readable(&near).unwrap() && !own.has_ended());
                assert_eq!(receive(&near, &mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
                assert_eq!(full.write_some(b"x").unwrap(), 0);
            }
            far.write_all(b"x").unwrap();
            assert!(is_readable(&near).unwrap());
        });
    }
}
