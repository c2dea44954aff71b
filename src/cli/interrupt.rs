//! What ends a command that waits for a manager before it has its answer: Ctrl-C, and SIGTERM.

use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use super::output;
use super::report::Status;

/// How long the answer is waited for after SIGTERM. `systemctl stop` sends it to a reload under way in the moment in which it
/// stops the manager: then the answer comes at once.
const GRACE: Duration = Duration::from_secs(3);

/// Where systemd tells the process of ExecReload= which process the main one of the unit is (systemd.exec(5)).
const MAIN_PID: &str = "MAINPID";

/// The signals that a command takes while it waits.
#[derive(Debug, Default)]
pub struct Interrupts {
    terminated: Arc<AtomicBool>,
    /// The service, once it is known.
    service: Arc<OnceLock<String>>,
}

impl Interrupts {
    /// Begins to take them, where something is waited for: has Ctrl-C end this command alone, and say that what was asked for,
    /// `what`, goes on; and has SIGTERM wait a moment for the answer.
    pub fn watch(what: Option<&'static str>) -> Self {
        let interrupts = Self::default();
        let Some(what) = what else { return interrupts };
        let Ok(mut signals) = Signals::new([SIGINT, SIGTERM]) else { return interrupts };
        let (terminated, service) = (Arc::clone(&interrupts.terminated), Arc::clone(&interrupts.service));
        thread::spawn(move || {
            if signals.forever().next() == Some(SIGINT) {
                if let Some(service) = service.get() {
                    let hint = format!("`liveswap status {service}` shows it");
                    output::error_lines(&format!("\nthe {what} goes on without this command; {hint}"));
                }
                process::exit(Status::Interrupted as i32);
            }
            terminated.store(true, Ordering::SeqCst);
            thread::sleep(GRACE);
            // It does not return, as that is what SIGTERM does.
            let _ = emulate_default_handler(SIGTERM);
        });
        interrupts
    }

    /// Takes the name of the service, for the words.
    pub fn know(&self, service: &str) {
        let _ = self.service.set(service.to_owned());
    }

    /// Whether SIGTERM has come.
    pub fn has_come(&self) -> bool {
        self.terminated.load(Ordering::SeqCst)
    }
}

/// Whether this is a process that systemd runs to control the unit whose main process is `manager`: what it writes stands in
/// the same journal as the manager's log, and it fails the unit where it fails.
pub fn is_control_process_of(manager: i32) -> bool {
    let main = std::env::var(MAIN_PID).ok().and_then(|pid| pid.parse().ok());
    manager > 0 && main == Some(manager)
}
