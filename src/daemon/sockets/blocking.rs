//! Whether accept(2) on a socket waits: a flag of the open file description, which workers set for all that share it.
//!
//! An activator sets it anew for its sockets at each start of the service (systemd.service(5), `NonBlocking=`), for the workers as well
//! that have lived on: those with an event loop would then sit in accept(2) and serve nobody. It is the only thing that systemd changes
//! on a shared description when it hands a socket over: all options are set once, when the socket is bound, and `FD_CLOEXEC` belongs to
//! a descriptor.

use std::io;

use super::listener::Listener;
use crate::sys::options::{self, SocketOption, Value};

impl Listener {
    /// Takes down whether the socket is non-blocking now; returns whether that is news, and what it is.
    pub(in super::super) fn note_blocking(&self) -> (bool, Option<bool>) {
        let now = options::get(self, SocketOption::NonBlocking).ok().map(|now| now == Value::from(true));
        (self.noted_non_blocking.replace(now) != now, now)
    }

    /// Gives a socket that its activator has handed over again the flag that it had for the workers that live: always where the file
    /// says `non_blocking = true`, else as it was last noted.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub(in super::super) fn restore_blocking(&self) -> io::Result<()> {
        let named = self.plan().spec.options.non_blocking.then_some(true);
        match named.or(self.noted_non_blocking.get()) {
            Some(is_non_blocking) => {
                options::set(self, SocketOption::NonBlocking, &Value::from(is_non_blocking))
            }
            None => Ok(()),
        }
    }
}
