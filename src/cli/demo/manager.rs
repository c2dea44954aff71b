//! A real manager, run as a child, with the demo in systemd's part: it owns the `NOTIFY_SOCKET` and listens to what the
//! manager says upward.
//!
//! Every wait has a bound, and ends early when the manager does.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::UnixDatagram;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, timeout, timeout_at};

use super::failure::Failure;
use super::stage::{Stage, make_private};
use crate::daemon::PROTOCOL_VARIABLES;

/// How long the manager may take to serve, to upgrade, and to end.
const LIMIT: Duration = Duration::from_secs(20);

/// How long a STATUS may lag behind the READY=1 that it belongs to.
const STATUS_LAG: Duration = Duration::from_millis(500);

/// How long an interrupted demo leaves the manager to drain, and then to kill.
const PATIENCE: Duration = Duration::from_secs(3);

/// The manager, from its start to its reaping.
pub struct Manager {
    child: Child,
    child_exits: tokio::signal::unix::Signal,
    upward: UnixDatagram,
    status: String,
}

/// How an upgrade ended.
#[derive(Debug)]
pub struct Upgrade {
    /// From the signal to the READY=1 that says it has ended.
    pub took: Duration,
    /// The manager's own words.
    pub status: String,
    /// Whether the old generation serves on.
    pub failed: bool,
}

impl Manager {
    /// Starts `liveswap run` on the stage's service file.
    ///
    /// # Errors
    ///
    /// [`Failure::SetUp`].
    pub fn start(stage: &Stage) -> Result<Self, Failure> {
        let notify = stage.folder.join("notify");
        let upward = UnixDatagram::bind(&notify)
            .map_err(|error| Failure::set_up(format!("binding {}", notify.display()), error))?;
        let runtime = stage.folder.join("run");
        make_private(&runtime)?;
        let log = File::create(stage.log())
            .and_then(|log| Ok((log.try_clone()?, log)))
            .map_err(|error| Failure::set_up(format!("making {}", stage.log().display()), error))?;
        // Before the child, so that no exit of it comes too early to be seen.
        let child_exits =
            signal(SignalKind::child()).map_err(|error| Failure::set_up("catching SIGCHLD", error))?;

        let mut command = Command::new(&stage.program);
        command.arg("run").arg(stage.service_file());
        for variable in PROTOCOL_VARIABLES {
            command.env_remove(variable);
        }
        let child = command
            .env("NOTIFY_SOCKET", notify)
            .env("RUNTIME_DIRECTORY", runtime)
            .stdin(Stdio::null())
            .stdout(log.0)
            .stderr(log.1)
            // A Ctrl-C is for the demo alone, which then ends the manager in an orderly way.
            .process_group(0)
            .spawn()
            .map_err(|error| Failure::set_up(format!("starting {}", stage.program.display()), error))?;
        Ok(Self { child, child_exits, upward, status: String::new() })
    }

    /// Waits until the first generation serves, and returns the manager's status.
    ///
    /// # Errors
    ///
    /// [`Failure::Awaited`] or [`Failure::Gone`].
    pub async fn ready(&mut self) -> Result<String, Failure> {
        self.hear_ready("the manager's READY=1", Instant::now() + LIMIT).await?;
        Ok(self.status.clone())
    }

    /// Asks by SIGHUP for an upgrade to what the service file says now, and waits for its end, good or bad.
    ///
    /// # Errors
    ///
    /// [`Failure::Awaited`] or [`Failure::Gone`].
    pub async fn upgrade(&mut self) -> Result<Upgrade, Failure> {
        let asked = Instant::now();
        self.signal(Signal::SIGHUP, "an upgrade")?;
        while !self.hear("the manager's RELOADING=1 after SIGHUP", asked + LIMIT).await?.reloading {}
        let ended = self.hear_ready("the READY=1 that ends the upgrade", asked + LIMIT).await?;
        let failed = ["rolled back", "refused"].iter().any(|verdict| self.status.contains(verdict));
        Ok(Upgrade { took: ended - asked, status: self.status.clone(), failed })
    }

    /// Asks the manager by SIGTERM to drain all workers, and waits for its exit.
    ///
    /// # Errors
    ///
    /// [`Failure::Awaited`] or [`Failure::Gone`].
    pub async fn stop(&mut self) -> Result<ExitStatus, Failure> {
        let awaited = "the manager to drain and exit after SIGTERM";
        self.signal(Signal::SIGTERM, awaited)?;
        match timeout(LIMIT, self.exited()).await {
            Ok(status) => Ok(status),
            Err(_) => Err(Failure::Awaited { awaited, bound: LIMIT }),
        }
    }

    /// Ends the manager if it still runs, so that nothing of the demo outlives it: it may drain, then it is
    /// told a second time, which means at once; only a manager that is stuck is killed.
    pub async fn end(&mut self) {
        for _ in 0..2 {
            if self.signal(Signal::SIGTERM, "its end").is_err() {
                return;
            }
            if timeout(PATIENCE, self.exited()).await.is_ok() {
                return;
            }
        }
        // An error means that it has just ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Signals the manager, unless it has gone: then its number may be another's.
    fn signal(&mut self, signal: Signal, awaited: &'static str) -> Result<(), Failure> {
        let failed = |error| Failure::set_up(format!("sending {signal} to the manager"), error);
        if let Some(status) = self.child.try_wait().map_err(failed)? {
            return Err(Failure::Gone { awaited, status });
        }
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).map_err(|errno| failed(errno.into()))
    }

    /// Waits for the next datagram; a STATUS in it is kept.
    async fn hear(&mut self, awaited: &'static str, deadline: Instant) -> Result<Words, Failure> {
        let mut datagram = [0; 4096];
        let received = tokio::select! {
            biased; // the last words of a manager come before its end
            received = timeout_at(deadline, self.upward.recv(&mut datagram)) => {
                received.map_err(|_| Failure::Awaited { awaited, bound: LIMIT })?
            }
            status = exited(&mut self.child, &mut self.child_exits) => {
                return Err(Failure::Gone { awaited, status });
            }
        };
        let length = received.map_err(|error| Failure::set_up("reading the notify socket", error))?;
        let words = Words::parse(&datagram[..length]);
        if let Some(status) = &words.status {
            self.status.clone_from(status);
        }
        Ok(words)
    }

    /// Waits for READY=1 and returns when it came, after the STATUS that belongs to it: in the same datagram, or just
    /// after it.
    async fn hear_ready(&mut self, awaited: &'static str, deadline: Instant) -> Result<Instant, Failure> {
        let mut words = self.hear(awaited, deadline).await?;
        while !words.ready {
            words = self.hear(awaited, deadline).await?;
        }
        let came = Instant::now();
        while words.status.is_none() {
            words = match self.hear("the manager's STATUS", came + STATUS_LAG).await {
                Ok(words) => words,
                Err(Failure::Awaited { .. }) => break, // it came before, or there is none
                Err(failure) => return Err(failure),
            };
        }
        Ok(came)
    }

    /// Waits until the manager has ended, and reaps it.
    async fn exited(&mut self) -> ExitStatus {
        exited(&mut self.child, &mut self.child_exits).await
    }
}

/// Waits until `child` has ended, and reaps it. Dropping the future loses nothing.
async fn exited(child: &mut Child, child_exits: &mut tokio::signal::unix::Signal) -> ExitStatus {
    loop {
        // SIGCHLD is a hint, never a count; the only possible error is a child that was reaped elsewhere, and none is.
        if let Ok(Some(status)) = child.try_wait() {
            return status;
        }
        child_exits.recv().await;
    }
}

/// What one datagram says, as far as the story goes (`sd_notify(3)`).
#[derive(Debug, Default, PartialEq, Eq)]
struct Words {
    ready: bool,
    reloading: bool,
    status: Option<String>,
}

impl Words {
    fn parse(datagram: &[u8]) -> Self {
        let mut words = Self::default();
        for line in String::from_utf8_lossy(datagram).lines() {
            match line.split_once('=') {
                Some(("READY", "1")) => words.ready = true,
                Some(("RELOADING", "1")) => words.reloading = true,
                Some(("STATUS", status)) => words.status = Some(status.to_owned()),
                _ => {}
            }
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;

    /// A stage whose manager is a shell script; the test speaks for it.
    fn stage(script: &str) -> Stage {
        let mut stage = Stage::set(None).unwrap();
        stage.program = stage.folder.join("manager.sh");
        fs::write(&stage.program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&stage.program, fs::Permissions::from_mode(0o700)).unwrap();
        stage
    }

    /// Says `messages` in the manager's name.
    fn say(folder: &Path, messages: &[&str]) {
        let socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
        for message in messages {
            socket.send_to(message.as_bytes(), folder.join("notify")).unwrap();
        }
    }

    /// Writes a line to its log once it withstands SIGHUP.
    const OBEDIENT: &str =
        "trap 'kill $!; exit 0' TERM; trap : HUP; echo up; while :; do sleep 60 & wait; kill $!; done";

    async fn first_line(stage: &Stage) {
        while fs::read(stage.log()).unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn an_upgrade_ends_with_the_ready_that_follows_reloading() {
        let stage = stage("exec sleep 60");
        let mut manager = Manager::start(&stage).unwrap();
        say(&stage.folder, &["STATUS=starting", "READY=1\nSTATUS=generation 1: 4 of 4 ready"]);
        assert_eq!(manager.ready().await.unwrap(), "generation 1: 4 of 4 ready");
        manager.end().await;
    }

    #[tokio::test]
    async fn a_rollback_is_known_by_the_status_wherever_it_comes() {
        let verdict = "STATUS=generation 2: 4 of 4 ready; upgrade to generation 3 rolled back: not ready";
        let both = format!("READY=1\n{verdict}");
        for messages in [
            &["RELOADING=1\nMONOTONIC_USEC=5", "STATUS=generation 3: 0 of 4 ready", &both][..],
            &["RELOADING=1", verdict, "READY=1"],
            &["RELOADING=1", "STATUS=generation 3: 0 of 4 ready", "READY=1", verdict],
        ] {
            let stage = stage(OBEDIENT);
            let mut manager = Manager::start(&stage).unwrap();
            first_line(&stage).await;
            say(&stage.folder, messages);
            let upgrade = manager.upgrade().await.unwrap();
            assert!(upgrade.failed, "{messages:?}");
            assert!(upgrade.status.contains("rolled back: not ready"), "{}", upgrade.status);
            manager.end().await;
        }
    }

    #[tokio::test]
    async fn a_manager_that_ends_is_not_waited_for() {
        let stage = stage("exit 3");
        let mut manager = Manager::start(&stage).unwrap();
        let failure = manager.ready().await.unwrap_err();
        assert_eq!(
            failure.to_string(),
            "the manager ended (exit status: 3) while the demo waited for the manager's READY=1"
        );
    }

    #[test]
    fn words_are_taken_line_by_line() {
        let words = Words::parse(b"RELOADING=1\nMONOTONIC_USEC=1\nSTATUS=a=b\n\nREADY=0\n");
        assert_eq!(words, Words { ready: false, reloading: true, status: Some("a=b".to_owned()) });
    }
}
