//! `liveswap unit`: a systemd unit that fits a service file.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::output;
use super::report::{self, Status};
use crate::config::spec::{Resource, ServiceSpec, SocketAddress};
use crate::daemon::{self, Source, log::wants_color};
use crate::wire::printable::is_printable;

/// What systemd lets a stop take beyond the drain. The manager asks for more where an upgrade has a longer one.
const STOP_MARGIN: Duration = Duration::from_secs(30);

/// The watchdog of a manager whose workers have none.
const WATCHDOG: Duration = Duration::from_secs(60);

/// The shortest watchdog of a manager; a machine under load may hold it up for longer than a worker's may be.
const WATCHDOG_MIN: Duration = Duration::from_secs(30);

/// How many sockets systemd may have to keep beside those of the file: upgrades bring others, and Node programs ask for some
/// (sd_notify(3), `FDSTORE=1`).
const STORED: usize = 512;

/// As many descriptors as the manager may have unless the workers want more (systemd.exec(5), `LimitNOFILE=`).
const DESCRIPTORS: (u64, u64) = (65_536, 1 << 20);

/// How it is stopped. `NAME` stands for the service: of several runtime directories, `RUNTIME_DIRECTORY` names all.
const STOP: &str = "\
# SIGTERM goes to the manager alone, which drains its workers and ends when they have gone. They outlive a manager that is
# killed, and the next one takes them over; any other KillMode= would end them.
KillMode=process
# A stop that takes too long leaves nobody behind. A start that does is no reason to end those who serve.
ExecStartPre=-+/bin/rm -f %t/liveswap/NAME/serving
ExecStartPost=-+/bin/touch %t/liveswap/NAME/serving
ExecStopPost=-+/bin/sh -c 'test \"$$SERVICE_RESULT\" != timeout || test ! -e %t/liveswap/NAME/serving || exec systemctl kill --signal=SIGKILL \"$$0\"' %n
";

/// What its processes are in, and what they cannot do.
const CONFINEMENT: &str = "\
# Each generation has a cgroup below the service's, each worker one below that: what a worker leaves behind is killed with it.
Delegate=yes
DelegateSubgroup=manager
# What no worker needs that is a network service. It holds for hooks as well.
LockPersonality=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
RestrictSUIDSGID=yes
";

/// Arguments of `liveswap unit`.
#[derive(Args, Debug)]
pub struct UnitArgs {
    /// The service file
    file: PathBuf,
}

/// Prints the unit; status 3 where the file is bad.
pub fn print(args: &UnitArgs) -> ExitCode {
    let places = daemon::absolute(&args.file).and_then(|file| Ok((file, std::env::current_exe()?)));
    let (file, program) = match places {
        Ok(places) => places,
        Err(error) => {
            report::print(&error, None);
            return Status::Failed.into();
        }
    };
    let spec = match daemon::read_spec(&Source::File(file.clone()), wants_color()) {
        Ok(spec) => spec,
        Err(refusal) => {
            report::print_details(&refusal.details);
            return Status::BadFile.into();
        }
    };
    match unit(&spec, &file, &program) {
        Ok(text) => {
            // What cannot be written is told at the end.
            let _ = output::lines(&text);
            Status::Done.into()
        }
        Err(error) => {
            report::print(&error, None);
            Status::Failed.into()
        }
    }
}

fn unit(spec: &ServiceSpec, file: &Path, program: &Path) -> io::Result<String> {
    let (name, how_to_stop) = (&spec.name, STOP.replace("NAME", &spec.name));
    let (program, file) = (word(program)?, word(file)?);
    let network = if needs_addresses(spec) {
        "# It listens on an address of this machine, which has to be there.\n\
         Wants=network-online.target\nAfter=network-online.target"
    } else {
        "After=network.target"
    };
    let directory = word(&spec.process.directory)?;
    let user = match &spec.process.identity.user {
        Some(user) => format!("# The manager is root; its workers are `{user}`, as the file says."),
        None => "# The file names no `user`: manager and workers are root unless a user stands here.\n#User="
            .into(),
    };
    let stop = seconds(spec.policy.drain_timeout + STOP_MARGIN);
    let watchdog = seconds(spec.policy.watchdog.unwrap_or(WATCHDOG).max(WATCHDOG_MIN));
    let descriptors = descriptors(spec);
    let non_blocking = non_blocking(spec);
    Ok(format!(
        "\
# Made by `liveswap unit`. Save it as /etc/systemd/system/{name}.service, then:
#   systemctl daemon-reload && systemctl enable --now {name}
# An upgrade is `systemctl reload {name}`; it fails if the release is rolled back. For systemd from 252 on.
[Unit]
Description=liveswap: {name}
Documentation=man:liveswap(1)
{network}
RequiresMountsFor={file} {directory}
# Workers serve on while there is no manager: it is to come back however often it takes.
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={program} run {argument}
# It returns when the upgrade has ended.
ExecReload={program} upgrade {name}
# Workers speak to the manager, not to systemd.
NotifyAccess=main
RuntimeDirectory=liveswap/{name}
RuntimeDirectoryMode=0711
# What the next manager goes on with, if this one is killed.
RuntimeDirectoryPreserve=restart
# Which release serves, and which was rolled back.
StateDirectory=liveswap/{name}
FileDescriptorStoreMax={stored}
{non_blocking}{user}
{how_to_stop}# The drain and some more; the manager asks for what else it needs (EXTEND_TIMEOUT_USEC).
TimeoutStopSec={stop}
# A manager that hangs is killed, and the next one takes over.
WatchdogSec={watchdog}
TimeoutAbortSec=10
Restart=on-failure
RestartSec=200ms
RestartPreventExitStatus=2 3
LimitNOFILE={descriptors}
{CONFINEMENT}
[Install]
WantedBy=multi-user.target
",
        // In a command, and only there, variables are expanded (systemd.service(5), "Command lines").
        argument = file.replace('$', "$$"),
        stored = STORED + spec.sockets.len(),
    ))
}

/// What keeps systemd from making the sockets of a socket unit blocking at each start, for workers that live on.
fn non_blocking(spec: &ServiceSpec) -> &'static str {
    let all = spec.sockets.iter().all(|socket| socket.options.non_blocking);
    if all && !spec.sockets.is_empty() {
        "# As the file says. It counts for sockets of a socket unit, which systemd would make blocking at each start of this service.\n\
         NonBlocking=yes\n"
    } else {
        ""
    }
}

/// Whether it binds an address that some interface must have got first.
fn needs_addresses(spec: &ServiceSpec) -> bool {
    spec.sockets.iter().any(|socket| match &socket.address {
        SocketAddress::Inet(address) => {
            let always = address.ip().is_loopback() || address.ip().is_unspecified();
            !always && socket.options.free_bind != Some(true)
        }
        SocketAddress::Path(_) | SocketAddress::Abstract(_) => false,
    })
}

/// The soft and hard limit of open descriptors, at least what the workers are to have: no more can be given on.
fn descriptors(spec: &ServiceSpec) -> String {
    let (soft, hard) = DESCRIPTORS;
    let wanted = spec.process.limits.get(&Resource::Nofile);
    let hard = match wanted.map_or(Some(0), |limit| limit.hard) {
        Some(wanted) => wanted.max(hard).to_string(),
        None => "infinity".into(),
    };
    format!("{soft}:{hard}")
}

fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// Writes a path as a word of a unit (systemd.syntax(7), "Quoting"; systemd.unit(5), "Specifiers").
fn word(path: &Path) -> io::Result<String> {
    let Some(text) = path.to_str().filter(|text| text.chars().all(is_printable)) else {
        return Err(io::Error::other(format!(
            "{} is a path that cannot stand in a unit: it must be UTF-8 without control or invisible characters",
            path.display()
        )));
    };
    let text = text.replace('%', "%%");
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+@%:=,~".contains(c);
    if text.chars().all(is_plain) {
        return Ok(text);
    }
    Ok(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Origin, parse};

    fn made(text: &str) -> String {
        let origin = Origin { path: "/srv/web.toml".into(), cpus: 1 };
        let spec = parse(&format!("[service]\ncommand = ['./server']\n{text}"), &origin).unwrap();
        unit(&spec, &origin.path, Path::new("/usr/bin/liveswap")).unwrap()
    }

    #[test]
    fn a_unit_says_what_its_file_needs() {
        let small = made("");
        assert!(small.contains("\nExecStart=/usr/bin/liveswap run /srv/web.toml\n"), "{small}");
        assert!(small.contains("\nAfter=network.target\nRequiresMountsFor=/srv/web.toml /srv\n"), "{small}");
        assert!(
            small.contains("\nType=notify\n")
                && small.contains("\nExecReload=/usr/bin/liveswap upgrade web\n"),
            "{small}"
        );
        assert!(small.contains("\n#User=\n") && small.contains("\nWatchdogSec=60\n"), "{small}");
        assert!(small.contains("\nTimeoutStopSec=90\n"), "{small}");

        assert!(!small.contains("NonBlocking"), "{small}");
        let open = made("[[socket]]\nlisten = '127.0.0.1:80'\nnon_blocking = true");
        assert!(open.contains("\nNonBlocking=yes\n"), "{open}");
        let mixed = made(
            "[[socket]]\nlisten = '127.0.0.1:80'\nnon_blocking = true\n[[socket]]\nlisten = '127.0.0.1:81'",
        );
        assert!(!mixed.contains("NonBlocking"), "{mixed}");

        let big = made(
            "user = 'web'\nlimits = { nofile = 'infinity' }\n[[socket]]\nlisten = '192.0.2.1:80'\n\
             [watchdog]\ntimeout = '1s'\n[drain]\ntimeout = '1500ms'",
        );
        assert!(big.contains("\nWants=network-online.target\n") && !big.contains("User="), "{big}");
        assert!(big.contains("\nLimitNOFILE=65536:infinity\n"), "{big}");
        assert!(big.contains("\nWatchdogSec=30\n") && big.contains("\nTimeoutStopSec=32\n"), "{big}");
    }

    #[test]
    fn a_path_is_one_word_of_the_unit() {
        let word = |path| word(Path::new(path)).unwrap();
        assert_eq!(word("/srv/web-1.toml"), "/srv/web-1.toml");
        assert_eq!(word("/srv/50%"), "/srv/50%%");
        assert_eq!(word("/a b\"\\"), r#""/a b\"\\""#);
        assert!(super::word(Path::new("/a\nb")).is_err());
        assert!(super::word(Path::new("/a\u{202e}b")).is_err());
    }
}
