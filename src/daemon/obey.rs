//! Signals as events for the core.

use tracing::{error, info};

use super::run::Daemon;
use crate::core::Event;
use crate::sys::signals::Signal;

impl Daemon {
    /// Takes what signals have come: a wish becomes an event, and children that have ended are reaped.
    pub(super) fn take_signals(&mut self) {
        let received = match self.signals.take() {
            Ok(received) => received,
            Err(error) => {
                error!("cannot read signals: {error}");
                return;
            }
        };
        let mut children = false;
        for one in received {
            let event = match one.signal {
                Signal::Hangup if self.terminal.hung_up(&one) => {
                    info!("the terminal was closed; the service goes on");
                    continue;
                }
                Signal::Hangup => Event::Upgrade(None),
                Signal::Terminate | Signal::Interrupt => Event::Stop,
                Signal::Quit => Event::Kill,
                Signal::User1 => Event::Respawn(None),
                Signal::User2 => {
                    self.want_reexec(None);
                    continue;
                }
                // A terminal's own, to a background job that reads or writes: not meant as a command.
                Signal::TtyIn | Signal::TtyOut if one.from_kernel => continue,
                Signal::TtyIn => Event::Scale(1),
                Signal::TtyOut => Event::Scale(-1),
                Signal::Child => {
                    children = true;
                    continue;
                }
            };
            self.inbox.push_back(event);
        }
        if children {
            self.reap_all();
        }
    }
}
