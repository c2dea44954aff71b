//! What the manager says to systemd, or to whoever started it with a `NOTIFY_SOCKET` (sd_notify(3)).
//!
//! Whatever must not be lost waits here until the receiver takes it: a full queue holds up neither us nor the order.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::sockets::Listener;
use super::system_store::SystemStore;
use crate::core::Manager;
use crate::core::notice::Notice;
use crate::core::time::Mono;
use crate::sys::activation::Inherited;
use crate::sys::handover::{HandOver, Luggage, Unpacked};
use crate::sys::notify_send::NotifySender;
use crate::wire::notify::{Upward, compose};

/// How soon a message that found the queue full is sent again.
const RETRY: Duration = Duration::from_millis(50);

/// How much longer than the deadline of what is under way the service manager should wait.
const MARGIN: Duration = Duration::from_secs(5);

/// How messages begin that only tell how things stand.
const PASSING: [&str; 3] = ["STATUS=", "WATCHDOG=", "EXTEND_TIMEOUT_USEC="];

/// The way to the service manager; without a `NOTIFY_SOCKET` it says nothing.
#[derive(Debug, Default)]
pub struct ServiceManager {
    sender: Option<NotifySender>,
    waiting: VecDeque<String>,
    retry_at: Option<Mono>,
    /// The status that was last told.
    status: String,
    /// Until when the service manager was last asked to wait.
    extended_to: Option<Mono>,
    watchdog: Option<Watchdog>,
    store: SystemStore,
}

/// What of a [`ServiceManager`] is not in the environment.
#[derive(Debug, Serialize, Deserialize)]
pub struct ServiceManagerState {
    waiting: VecDeque<String>,
    status: String,
    extended_to: Option<Mono>,
}

impl HandOver for ServiceManager {
    type State = ServiceManagerState;

    fn pack(&self, _: &mut Luggage) -> ServiceManagerState {
        let Self { sender: _, waiting, retry_at: _, status, extended_to, watchdog: _, store: _ } = self;
        ServiceManagerState { waiting: waiting.clone(), status: status.clone(), extended_to: *extended_to }
    }

    fn unpack(state: ServiceManagerState, _: &mut Unpacked) -> io::Result<Self> {
        let ServiceManagerState { waiting, status, extended_to } = state;
        Ok(Self { waiting, status, extended_to, ..Self::from_environment() })
    }
}

/// The watchdog that watches us.
#[derive(Clone, Copy, Debug)]
struct Watchdog {
    interval: Duration,
    next: Mono,
}

impl ServiceManager {
    /// Takes `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` as the environment has them.
    pub fn from_environment() -> Self {
        let sender = sender_from_environment();
        let watchdog = watchdog_interval().filter(|_| sender.is_some());
        let watchdog =
            watchdog.map(|interval| Watchdog { interval: (interval / 2).max(RETRY), next: Mono::ZERO });
        Self { sender, watchdog, store: SystemStore::from_environment(), ..Self::default() }
    }

    /// As [`ServiceManager::from_environment`], where these came back from its store among what it handed over.
    pub fn with_store(inherited: &[Inherited]) -> Self {
        Self { store: SystemStore::of(inherited), ..Self::from_environment() }
    }

    /// Whether a service manager has started us.
    pub fn is_there(&self) -> bool {
        self.sender.is_some()
    }

    /// Has our sockets kept for whoever comes after us.
    pub fn keep(&mut self, listeners: &[Rc<Listener>], now: Mono) {
        let Some(sender) = &self.sender else { return };
        self.store.keep(sender, listeners);
        if self.store.is_behind() {
            self.retry_at = Some(now + RETRY);
        }
    }

    /// Whether its store keeps a socket open when we close ours.
    pub fn has_stored(&self, listener: &Listener) -> bool {
        self.store.has(listener)
    }

    /// Whether [`ServiceManager::keep`] is to be called again, though nothing has changed.
    pub fn is_behind(&self) -> bool {
        self.store.is_behind()
    }

    /// Returns when [`ServiceManager::sync`] is due even if nothing happens.
    pub fn next_deadline(&self) -> Option<Mono> {
        self.retry_at.into_iter().chain(self.watchdog.map(|watchdog| watchdog.next)).min()
    }

    /// Takes a transition that the service manager waits for. `clock_micros` is `CLOCK_MONOTONIC` as it is now, after the
    /// signal that may have caused it.
    pub fn tell(&mut self, notice: &Notice, manager: &Manager, clock_micros: u64) {
        if self.sender.is_none() {
            return;
        }
        let reload = Upward::Reloading { monotonic_micros: clock_micros };
        let status = manager.status();
        match notice {
            Notice::Serving(_) => self.say(&[Upward::Ready, Upward::Status(&status)]),
            // It has served all the while.
            Notice::TakenOver(..) if manager.has_served() => {
                self.say(&[Upward::Ready, Upward::Status(&status)]);
            }
            // Before the first READY=1 there is nothing to be reloaded.
            Notice::UpgradeBegan(_) | Notice::RollbackBegan(..) if manager.has_served() => {
                self.say(&[reload, Upward::Status(&status)]);
            }
            // Whatever came of it: the service serves. There is no word for a reload that failed.
            Notice::UpgradeEnded(..) if manager.has_served() && !manager.is_stopping() => {
                self.say(&[Upward::Ready, Upward::Status(&status)]);
            }
            Notice::Stopping(_) | Notice::KillingAll(_) => {
                self.say(&[Upward::Stopping, Upward::Status(&status)]);
            }
            _ => return,
        }
        self.status = status;
    }

    /// Says what has changed since the last time, feeds the watchdog, and sends what waits. `trouble` follows the state,
    /// and until `busy_until` what is under way may go on.
    pub fn sync(&mut self, manager: &Manager, trouble: &str, busy_until: Option<Mono>, now: Mono) {
        if self.sender.is_none() {
            return;
        }
        let status = manager.status() + trouble;
        if status != self.status {
            self.say(&[Upward::Status(&status)]);
            self.status = status;
        }
        self.extend(busy_until, now);
        if let Some(watchdog) = &mut self.watchdog
            && watchdog.next <= now
        {
            watchdog.next = now + watchdog.interval;
            self.say(&[Upward::Watchdog]);
        }
        self.send(now);
    }

    /// Asks for time until what is under way must have ended; once for each deadline, as systemd keeps the latest.
    fn extend(&mut self, busy_until: Option<Mono>, now: Mono) {
        match busy_until.filter(|until| *until != Mono::NEVER) {
            None => self.extended_to = None,
            Some(until) if self.extended_to.is_none_or(|told| told < until) => {
                self.extended_to = Some(until);
                self.say(&[Upward::ExtendTimeout(until - now + MARGIN)]);
            }
            Some(_) => {}
        }
    }

    fn say(&mut self, parts: &[Upward<'_>]) {
        // What only tells how things stand is overtaken by what comes after it, so the queue stays short.
        let message = compose(parts);
        let key = PASSING.into_iter().find(|key| message.starts_with(key));
        self.waiting.retain(|waiting| key.is_none_or(|key| !waiting.starts_with(key)));
        self.waiting.push_back(message);
    }

    fn send(&mut self, now: Mono) {
        self.retry_at = None;
        let Some(sender) = &self.sender else { return };
        while let Some(message) = self.waiting.front() {
            match sender.send(message.as_bytes()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.retry_at = Some(now + RETRY);
                    return;
                }
                // A receiver that has gone, as at the end of a test or a container: there is nobody to tell.
                Ok(()) | Err(_) => drop(self.waiting.pop_front()),
            }
        }
    }
}

/// Returns the way to the `NOTIFY_SOCKET` of the environment.
pub fn sender_from_environment() -> Option<NotifySender> {
    let address = std::env::var_os("NOTIFY_SOCKET")?;
    NotifySender::new(&address).inspect_err(|error| warn!("cannot use NOTIFY_SOCKET: {error}")).ok()
}

/// The interval of a watchdog that is meant for this process (sd_watchdog_enabled(3)).
fn watchdog_interval() -> Option<Duration> {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    let ours = std::env::var_os("WATCHDOG_PID").is_none()
        || number("WATCHDOG_PID") == Some(u64::from(std::process::id()));
    number("WATCHDOG_USEC").filter(|micros| ours && *micros > 0).map(Duration::from_micros)
}
