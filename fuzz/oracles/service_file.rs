//! The service file: read, lowered to a specification, or refused with all that is wrong with it.

use std::path::Path;

use liveswap::config::{Diagnostics, Origin, decode, parse};
use liveswap::core::spec::{Allowance, Readiness, ServiceSpec, SocketAddress, Strategy};

/// Reads `bytes` as a service file, and checks whatever comes out.
///
/// # Panics
///
/// Where the reader breaks its word.
pub fn check(bytes: &[u8]) {
    let origin = Origin { path: "/srv/web.toml".into(), cpus: 6 };
    let text = match decode(bytes, &origin) {
        Ok(text) => text,
        Err(problems) => {
            assert!(str::from_utf8(bytes).is_err(), "UTF-8 is refused as none");
            return check_problems(&String::from_utf8_lossy(bytes), &problems);
        }
    };
    let outcome = parse(text, &origin);
    assert_eq!(outcome, parse(text, &origin), "read twice, it means two things");
    // The reader goes on after syntax errors; whether there are any, the TOML parser by itself must agree.
    let sound = toml::from_str::<toml::Table>(text).is_ok();
    match outcome {
        Ok(spec) => {
            assert!(sound, "accepted, but it is no TOML");
            check_spec(&spec);
            check_appendices(text, &origin, &spec);
        }
        Err(problems) => {
            let syntax = problems.problems().iter().any(|one| one.message.starts_with("syntax error"));
            assert!(!(sound && syntax), "sound TOML has {}", problems.summary());
            check_problems(text, &problems);
        }
    }
}

/// Every problem has a place in the file and can be shown.
fn check_problems(text: &str, problems: &Diagnostics) {
    assert!(!problems.problems().is_empty(), "refused for nothing");
    let mut last = 0;
    for problem in problems.problems() {
        let span = problem.span.clone();
        assert!(text.get(span.clone()).is_some(), "{span:?} is no place in the file: {}", problem.message);
        assert!(last <= span.start, "not in the order of the file");
        last = span.start;
        assert!(!problem.message.is_empty());
        let words = [&problem.message, &problem.label, problem.help.as_ref().unwrap_or(&problem.label)];
        assert!(!words.iter().any(|words| words.chars().any(char::is_control)), "unprintable: {words:?}");
    }
    let summary = problems.summary();
    assert!(summary.starts_with("web.toml:") && !summary.contains(char::is_control), "{summary:?}");
    if text.len() < 4096 {
        assert!(problems.render(false).starts_with("error: "));
    }
}

/// What is accepted is all that the rooms behind rely on without looking again.
fn check_spec(spec: &ServiceSpec) {
    let sent = serde_json::to_vec(spec).expect("it travels through a pipe");
    assert_eq!(
        serde_json::from_slice::<ServiceSpec>(&sent).ok().as_ref(),
        Some(spec),
        "it arrives as another"
    );

    let is_name = |name: &str| !name.is_empty() && !name.contains(['/', '\0', '\n']);
    assert!(is_name(&spec.name), "{:?}", spec.name);
    let process = &spec.process;
    assert!(process.directory.is_absolute());
    assert!(process.environment_files.iter().all(|file| file.path.is_absolute()));
    assert!((1..=64).contains(&process.drain_signal));
    assert!(!process.command.is_empty() && !process.command[0].is_empty());
    // Each becomes a C string.
    let commands = [&process.command, &spec.probe, &spec.hooks.before, &spec.hooks.after];
    assert!(!commands.into_iter().flatten().any(|word| word.contains('\0')));
    let nul = |(name, value): (&String, &String)| name.contains(['=', '\0']) || value.contains('\0');
    assert!(!process.environment.iter().any(nul), "{:?}", process.environment);
    assert!(
        process.limits.values().all(|limit| limit.soft.unwrap_or(u64::MAX) <= limit.hard.unwrap_or(u64::MAX))
    );

    for socket in &spec.sockets {
        let legal = |c: char| matches!(c, ' '..='~') && c != ':';
        assert!(
            socket.name.len() <= 255 && socket.name.chars().all(legal),
            "LISTEN_FDNAMES: {:?}",
            socket.name
        );
        if let SocketAddress::Path(path) = &socket.address {
            assert!(Path::new(path).is_absolute() && path.as_os_str().len() <= 107);
        }
    }
    let names: Vec<_> = spec.sockets.iter().map(|socket| (&socket.address, socket.kind)).collect();
    assert!(names.iter().enumerate().all(|(index, name)| !names[..index].contains(name)), "bound twice");

    let policy = &spec.policy;
    let accepts = spec.sockets.iter().filter(|socket| socket.accept.is_some()).count();
    assert!(accepts == 0 || accepts == spec.sockets.len(), "some accept, some do not");
    assert_eq!(policy.workers == 0, accepts > 0, "who has connections has no workers");
    assert!(!policy.lazy || policy.workers > 0 && !spec.sockets.is_empty(), "nothing would ever wake it");
    assert!(spec.idle_timeout.is_none_or(|timeout| policy.lazy && !timeout.is_zero()));
    assert!(policy.max_generations >= 1);
    assert!(
        !policy.ready_timeout.is_zero() && !policy.drain_timeout.is_zero() && !spec.hooks.timeout.is_zero()
    );
    assert!(
        !policy.restart_initial_delay.is_zero() && policy.restart_initial_delay <= policy.restart_max_delay
    );
    assert!(policy.watchdog.is_none_or(|timeout| !timeout.is_zero()));
    match policy.readiness {
        Readiness::Notify => {}
        Readiness::Settled(settle) => assert!(settle < policy.ready_timeout),
        Readiness::Probe(pause) => assert!(!pause.is_zero() && !spec.probe.is_empty()),
        Readiness::Accepting(settle) => {
            assert!(settle < policy.ready_timeout && !spec.sockets.is_empty(), "it could never be ready");
        }
    }
    if let Some(Strategy::Rolling { max_surge, max_unavailable }) = policy.strategy {
        let of = |allowance: Allowance| allowance.of(policy.workers);
        let is_stuck = policy.workers > 0 && of(max_surge) + of(max_unavailable) == 0;
        assert!(!is_stuck, "no worker could ever be replaced");
    }
}

/// What says nothing changes nothing, and what makes no sense is refused for that alone.
fn check_appendices(text: &str, origin: &Origin, spec: &ServiceSpec) {
    assert_eq!(parse(&format!("{text}\n# a comment\n"), origin).as_ref(), Ok(spec), "a comment matters");
    let refused = parse(&format!("{text}\n[no-such-table]\n"), origin).expect_err("an unknown table");
    assert_eq!(refused.problems().len(), 1, "{}", refused.summary());
    assert!(refused.problems()[0].message.contains("no-such-table"), "{}", refused.summary());
}
