//! `run --watch`: a child that watches files and asks for an upgrade, as anybody may, by SIGHUP (docs/adr/0007).

use std::io::{self, stderr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::unistd::{Pid, getpid};
use tracing::{error, info, warn};

use super::outlet::{ERROR, Flushed};
use crate::sys::fork::in_child;
use crate::sys::output::{Writer, wait_readable};
use crate::sys::process;
use crate::sys::tree_watch::TreeWatch;

/// A change is whole when nothing more has changed for so long: an editor or a version control system makes many.
const QUIET: Duration = Duration::from_millis(200);

/// What changes all the time is an upgrade all the same, after so long.
const AT_LAST: Duration = Duration::from_secs(5);

/// Any wait has an end, so that a missed one is not for ever.
const LONG: Duration = Duration::from_secs(3600);

/// Starts the watcher, which ends with the manager, and returns its pid.
///
/// # Errors
///
/// Those of fork(2).
pub(super) fn start(paths: Vec<PathBuf>) -> io::Result<Pid> {
    let manager = getpid();
    let watcher = in_child(move || {
        // What waits to be written is written by the manager.
        ERROR.discard();
        if let Err(error) = watch(paths, manager) {
            error!("files are no longer watched: {error}");
            flush();
        }
        Vec::new()
    })?;
    // It has nothing to hand over.
    Ok(watcher.pid)
}

fn watch(paths: Vec<PathBuf>, manager: Pid) -> io::Result<()> {
    process::end_with_parent(manager)?;
    let shown: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    let mut watch = TreeWatch::new(paths)?;
    info!("watching {}", shown.join(", "));
    loop {
        flush();
        if !wait_readable(&watch, LONG)? {
            continue;
        }
        let Some(path) = take(&mut watch) else { continue };
        let began = Instant::now();
        while began.elapsed() < AT_LAST && wait_readable(&watch, QUIET)? {
            take(&mut watch);
        }
        info!("{} changed: upgrading", path.display());
        flush();
        process::signal(manager, libc::SIGHUP)?;
    }
}

fn take(watch: &mut TreeWatch) -> Option<PathBuf> {
    watch.changed().unwrap_or_else(|error| {
        warn!("not all is watched: {error}");
        None
    })
}

/// Writes what our log has, as far as somebody takes it.
fn flush() {
    if let Ok(writer) = Writer::to(stderr()) {
        // Our own way there is made anew each time.
        if ERROR.flush(&writer) == Flushed::Broken {
            ERROR.discard();
        }
    }
}
