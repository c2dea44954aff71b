//! The manager's copies of the sockets at a stop for good: closed when the workers have been told to drain.

use std::mem;

use super::run::Daemon;

impl Daemon {
    /// Closes the manager's copy of each socket once the service stops, so that a client is refused as soon as the last worker has
    /// closed its own copy, as it is by the program alone. The path of a UNIX socket goes with it.
    ///
    /// No socket is shut down by shutdown(2): that would reset the connections that wait for a worker. Two kinds of sockets stay: those
    /// of an activator, which belong to it, and the path of what the service manager's store keeps, where clients wait for the next
    /// start.
    pub(super) fn close_sockets(&mut self) {
        if !self.manager.is_stopping() || mem::replace(&mut self.loose_ends.sockets_are_closed, true) {
            return;
        }
        for listener in self.sockets.listeners().iter().filter(|listener| !listener.is_inherited()) {
            if self.upward.has_stored(listener) {
                listener.leave_path();
            }
        }
        for of in self.generations.values_mut() {
            of.sockets.listeners.retain(|listener| listener.is_inherited());
        }
        self.demanded.retain(|demanded| demanded.listener.is_inherited());
        self.on_demand.doors.waiting = None;
        self.care.successors.clear();
    }
}
