#![expect(unsafe_code, reason = "descriptors are taken over by number, and the environment is changed")]
//! Descriptors that an activator handed to this process (`sd_listen_fds(3)`).
//!
//! Each is owned, and closes on exec, before anyone looks at what it is. The `listenfd` crate does not serve here: it
//! accepts a missing `LISTEN_PID`, leaves `LISTEN_FDNAMES` set and owns only what it hands out.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::process;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use thiserror::Error;

/// The first descriptor of the protocol (`SD_LISTEN_FDS_START`).
const START: RawFd = 3;
/// The name of each descriptor where the activator gave none.
const UNNAMED: &str = "unknown";
/// All that the protocol sets; none of it is meant for our own children.
const VARIABLES: [&str; 4] = ["LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// A descriptor that an activator handed over.
#[derive(Debug)]
pub struct Inherited {
    /// It closes on exec.
    pub fd: OwnedFd,
    /// Its `FDNAME`.
    pub name: String,
}

/// Why the variables of the protocol make no sense.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ActivationError {
    #[error("LISTEN_PID is {0:?}, which is no process id")]
    BadPid(OsString),
    #[error("LISTEN_FDS is {0:?}, which is no count of descriptors")]
    BadCount(OsString),
    #[error("LISTEN_FDNAMES has {names} names for {fds} descriptors")]
    CountsDiffer { names: usize, fds: usize },
    #[error("LISTEN_FDNAMES is no ASCII text")]
    BadNames,
    #[error("descriptor {fd}, promised by LISTEN_FDS, cannot be used: {source}")]
    BadDescriptor { fd: RawFd, source: io::Error },
}

/// The variables of the protocol, as the environment has them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Variables<'a> {
    /// `LISTEN_PID`.
    pub pid: Option<&'a OsStr>,
    /// `LISTEN_FDS`.
    pub fds: Option<&'a OsStr>,
    /// `LISTEN_FDNAMES`.
    pub names: Option<&'a OsStr>,
}

/// Takes over the descriptors that were handed to this process, and removes the variables from its environment.
///
/// To be called once, before the process has a second thread and before it opens any descriptor.
///
/// # Errors
/// [`ActivationError`]: the variables are meant for us but malformed, or promise a descriptor that is not open.
pub fn take() -> Result<Vec<Inherited>, ActivationError> {
    let [pid, _, fds, names] = VARIABLES.map(env::var_os);
    let variables = Variables { pid: pid.as_deref(), fds: fds.as_deref(), names: names.as_deref() };
    let parsed = names_for(process::id(), variables);
    for variable in VARIABLES {
        // SAFETY: by contract there is no other thread which could read the environment meanwhile.
        unsafe { env::remove_var(variable) };
    }
    let names = parsed?;
    let fds = fds_for(&names);
    for fd in fds.clone() {
        check(fd).map_err(|source| ActivationError::BadDescriptor { fd, source })?;
    }
    // SAFETY: every one is open, as was just checked; the activator gave them to this process, and as the variables
    // are gone no second call takes them again.
    Ok(fds.zip(names).map(|(fd, name)| Inherited { fd: unsafe { OwnedFd::from_raw_fd(fd) }, name }).collect())
}

fn fds_for(names: &[String]) -> Range<RawFd> {
    // names_for() has checked that the sum fits.
    START..START + RawFd::try_from(names.len()).unwrap_or_default()
}

/// Makes sure that a descriptor is open and closes on exec.
fn check(fd: RawFd) -> io::Result<()> {
    // SAFETY: borrowed for this call alone; where it is not open the kernel says EBADF.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(())
}

/// Returns the name of each descriptor from 3 up that is meant for process `own_pid`; none where it was not activated.
///
/// # Errors
/// [`ActivationError`], as `sd_listen_fds_with_names(3)` has it: a count that is zero or no number, or one that
/// differs from that of the names.
pub fn names_for(own_pid: u32, variables: Variables<'_>) -> Result<Vec<String>, ActivationError> {
    let (Some(pid), Some(fds)) = (variables.pid, variables.fds) else { return Ok(Vec::new()) };
    let listen_pid: u32 =
        number(pid).filter(|pid| *pid > 0).ok_or_else(|| ActivationError::BadPid(pid.to_owned()))?;
    if listen_pid != own_pid {
        return Ok(Vec::new());
    }
    // More than this no process can have open (fs.nr_open has a lower ceiling), and the sum with START fits.
    let count = number(fds)
        .filter(|count| (1..=1 << 20).contains(count))
        .and_then(|count| usize::try_from(count).ok())
        .ok_or_else(|| ActivationError::BadCount(fds.to_owned()))?;
    let Some(names) = variables.names else { return Ok(vec![UNNAMED.to_owned(); count]) };
    let names = names.to_str().filter(|names| names.is_ascii()).ok_or(ActivationError::BadNames)?;
    let names: Vec<String> = names.split(':').map(str::to_owned).collect();
    if names.len() != count {
        return Err(ActivationError::CountsDiffer { names: names.len(), fds: count });
    }
    Ok(names)
}

/// Parses decimal digits alone: std would take a leading `+` too.
fn number(text: &OsStr) -> Option<u32> {
    let text = text.to_str()?;
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::process::{Command, Stdio};

    use super::*;

    fn names(pid: &str, fds: &str, names: Option<&str>) -> Result<Vec<String>, ActivationError> {
        let variables =
            Variables { pid: Some(pid.as_ref()), fds: Some(fds.as_ref()), names: names.map(OsStr::new) };
        names_for(42, variables)
    }

    #[test]
    fn variables_that_are_missing_or_meant_for_another_are_ignored() {
        assert!(names_for(42, Variables::default()).unwrap().is_empty());
        let without_pid = Variables { fds: Some("1".as_ref()), ..Variables::default() };
        assert!(names_for(42, without_pid).unwrap().is_empty());
        let without_fds = Variables { pid: Some("42".as_ref()), ..Variables::default() };
        assert!(names_for(42, without_fds).unwrap().is_empty());
        assert!(names("43", "rubbish", None).unwrap().is_empty());
    }

    #[test]
    fn descriptors_without_names_are_unknown() {
        assert_eq!(names("42", "2", None).unwrap(), ["unknown", "unknown"]);
        assert_eq!(names("42", "2", Some("http:http")).unwrap(), ["http", "http"]);
        assert_eq!(names("42", "2", Some(":b")).unwrap(), ["", "b"]);
    }

    #[test]
    fn malformed_variables_are_errors() {
        for pid in ["", "0", "x", "-42", "+42", " 42", "99999999999"] {
            assert!(matches!(names(pid, "1", None), Err(ActivationError::BadPid(_))), "{pid:?}");
        }
        for fds in ["", "0", "-1", "+1", "1 ", "x", "2147483647", "99999999999"] {
            assert!(matches!(names("42", fds, None), Err(ActivationError::BadCount(_))), "{fds:?}");
        }
        for text in ["", "a", "a:b:c"] {
            assert!(
                matches!(names("42", "2", Some(text)), Err(ActivationError::CountsDiffer { .. })),
                "{text:?}"
            );
        }
        assert!(matches!(names("42", "1", Some("ä")), Err(ActivationError::BadNames)));
    }

    /// The other half of the test below: does nothing unless that one starts it.
    #[test]
    fn the_process_that_is_handed_descriptors() {
        if env::var_os("LIVESWAP_TEST_ACTIVATED").is_none() {
            return;
        }
        let result = take();
        for variable in VARIABLES {
            assert_eq!(env::var_os(variable), None);
        }
        match result {
            Ok(inherited) => {
                for Inherited { fd, name } in inherited {
                    let flags = fcntl(&fd, FcntlArg::F_GETFD).unwrap();
                    println!("took {} {name} cloexec={}", fd.as_raw_fd(), flags == libc::FD_CLOEXEC);
                }
                assert!(take().unwrap().is_empty());
            }
            Err(error) => println!("error: {error}"),
        }
    }

    fn activated(assignments: &str) -> String {
        let script = format!("{assignments} exec \"$0\" \"$@\" 3</dev/null 4<&3 9<&3");
        let output = Command::new("/bin/sh")
            .args(["-c", &script])
            .arg(env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "sys::activation::tests::the_process_that_is_handed_descriptors",
            ])
            .env("LIVESWAP_TEST_ACTIVATED", "1")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_real_process_owns_what_it_was_handed() {
        let said = activated("LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=web:admin");
        assert!(said.contains("took 3 web cloexec=true"), "{said}");
        assert!(said.contains("took 4 admin cloexec=true"), "{said}");
        let said = activated("LISTEN_PID=1 LISTEN_FDS=2");
        assert!(!said.contains("took") && !said.contains("error"), "{said}");
        let said = activated("LISTEN_PID=$$ LISTEN_FDS=5000");
        assert!(said.contains("promised by LISTEN_FDS, cannot be used"), "{said}");
    }
}
