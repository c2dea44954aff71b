//! How PID 1 starts a manager.

use std::env;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use super::{INIT_VARIABLE, Init};
use crate::sys::exec::RUNNING;
use crate::sys::signals::early_set;
use crate::sys::spawn::Launch;
use crate::sys::strings::CStrings;

/// What the manager is told anew.
const OWN_VARIABLES: [&str; 4] = ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", INIT_VARIABLE];

/// And these, where it is told of our own socket.
const NOTIFY_VARIABLES: [&str; 2] = ["NOTIFY_SOCKET", "WATCHDOG_PID"];

impl Init {
    /// Returns how a manager is started: as this process was, with what is kept for it.
    ///
    /// # Errors
    ///
    /// A word with an embedded NUL, which this process cannot have.
    pub(super) fn launch(&self) -> io::Result<Launch<'_>> {
        let mut environment = CStrings::default();
        let of_notify = NOTIFY_VARIABLES.into_iter().filter(|_| self.notify.is_some());
        let own: Vec<_> = OWN_VARIABLES.into_iter().chain(of_notify).collect();
        let inherited = env::vars_os().filter(|(name, _)| !own.iter().any(|own| name == own));
        environment.push(&[INIT_VARIABLE.as_bytes(), b"=1"])?;
        for (name, value) in inherited {
            environment.push(&[name.as_bytes(), b"=", value.as_bytes()])?;
        }
        let mut own_pids: Vec<&'static CStr> = Vec::new();
        if let Some(notify) = &self.notify {
            environment.push(&[b"NOTIFY_SOCKET=", notify.path().as_os_str().as_bytes()])?;
            own_pids.push(c"WATCHDOG_PID");
        }
        if !self.kept.is_empty() {
            let names: Vec<_> = self.kept.iter().map(|kept| kept.name.as_str()).collect();
            environment.push(&[b"LISTEN_FDS=", names.len().to_string().as_bytes()])?;
            environment.push(&[b"LISTEN_FDNAMES=", names.join(":").as_bytes()])?;
            own_pids.push(c"LISTEN_PID");
        }
        Ok(Launch {
            pinned: None,
            programs: if self.own_program { CStrings::of([RUNNING])? } else { self.program.clone() },
            arguments: CStrings::of(env::args_os().map(|word| word.as_bytes().to_vec()))?,
            shared_environment: Rc::default(),
            environment,
            pid_variables: own_pids,
            directory: CString::from(c"."),
            credentials: None,
            umask: None,
            limits: Vec::new(),
            ignore_sigpipe: false,
            held_signals: early_set(),
            descriptors: self.kept.iter().map(|kept| kept.fd.as_fd()).collect(),
            cgroup: None,
            stdin: None,
            stdout: None,
            stderr: None,
        })
    }
}
