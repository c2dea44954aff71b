//! The way from PID 1 to whoever looks after the container.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::time::Duration;

use super::super::upward::sender_from_environment;
use crate::sys::notify_send::NotifySender;

/// How soon it is told again to whoever was busy, and how much waits for it.
const RETRY: Duration = Duration::from_millis(50);
const MOST_WAITING: usize = 1024;

/// The way to whoever looks after the container, which may be busy.
pub(super) struct Upward {
    sender: Option<NotifySender>,
    waiting: VecDeque<Vec<u8>>,
}

impl Upward {
    pub(super) fn from_environment() -> Self {
        Self { sender: sender_from_environment(), waiting: VecDeque::new() }
    }

    pub(super) fn say(&mut self, text: &[u8]) {
        if self.sender.is_some() && self.waiting.len() < MOST_WAITING {
            self.waiting.push_back(text.to_owned());
        }
    }

    /// Sends what waits, and returns how soon that is to be tried again.
    pub(super) fn send(&mut self) -> Option<Duration> {
        let sender = self.sender.as_ref()?;
        while let Some(text) = self.waiting.front() {
            match sender.send(text) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Some(RETRY),
                Ok(()) | Err(_) => drop(self.waiting.pop_front()),
            }
        }
        None
    }
}
