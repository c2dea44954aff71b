//! Good files, and what they mean.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::core::spec::{
    Accept, Allowance, ControlSpec, EnvironmentFile, Hooks, Identity, Limit, Output, ProcessSpec, Protocol,
    Readiness, Resource, SocketAddress, SocketKind, SocketOptions, SocketSpec, Strategy,
};

const SECOND: Duration = Duration::from_secs(1);

fn example(name: &str) -> ServiceSpec {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name);
    let bytes = std::fs::read(&path).unwrap();
    let origin = Origin { path, cpus: 6 };
    parse(decode(&bytes, &origin).unwrap(), &origin)
        .unwrap_or_else(|problems| panic!("{}", problems.render(false)))
}

/// Returns the options of a socket that listens on `listen`.
fn options(listen: &str, keys: &str) -> SocketOptions {
    accept(&format!("{MINIMAL}[[socket]]\nlisten = \"{listen}\"\n{keys}")).sockets.remove(0).options
}

#[test]
fn every_default_is_the_documented_one() {
    let spec = accept(MINIMAL);
    let expected = ServiceSpec {
        name: "web".into(),
        process: ProcessSpec {
            command: vec!["a".into()],
            target: None,
            target_within: None,
            directory: "/srv".into(),
            protocol: Protocol::Notify,
            clear_environment: false,
            environment_files: Vec::new(),
            environment: BTreeMap::new(),
            identity: Identity::default(),
            limits: BTreeMap::new(),
            output: Output::Auto,
            ignore_sigpipe: true,
            listen_pid: true,
            messages: false,
            fd_store_max: 0,
            drain_signal: libc::SIGTERM,
        },
        sockets: Vec::new(),
        idle_timeout: None,
        policy: Policy {
            lazy: false,
            workers: 1,
            readiness: Readiness::Notify,
            ready_timeout: 60 * SECOND,
            strategy: None,
            min_ready: None,
            probation: Duration::ZERO,
            drain_timeout: 60 * SECOND,
            max_generations: 4,
            restart_initial_delay: Duration::from_millis(100),
            restart_max_delay: 30 * SECOND,
            watchdog: None,
        },
        probe: Vec::new(),
        hooks: Hooks { timeout: 300 * SECOND, ..Hooks::default() },
        control: ControlSpec::default(),
    };
    assert_eq!(spec, expected);
    let tables = "[[socket]]\nlisten = \"@a\"\n[ready]\n[upgrade]\n[drain]\n[restart]\n[control]\n";
    let socket = accept(&format!("{MINIMAL}{tables}")).sockets.remove(0);
    assert_eq!(socket.options, SocketOptions::default(), "an empty table says nothing");
    assert_eq!(socket.kind, SocketKind::Stream);
}

#[test]
fn the_example_of_a_web_service_means_what_it_says() {
    let spec = example("web.toml");
    let expected = ServiceSpec {
        name: "web".into(),
        process: ProcessSpec {
            command: vec!["./server".into(), "--quiet".into()],
            target: None,
            target_within: None,
            directory: concat!(env!("CARGO_MANIFEST_DIR"), "/config").into(),
            protocol: Protocol::Notify,
            clear_environment: false,
            environment_files: vec![EnvironmentFile { path: "/etc/web.env".into(), optional: true }],
            environment: BTreeMap::from([("RUST_LOG".into(), "info".into())]),
            identity: Identity::default(),
            limits: BTreeMap::from([(Resource::Nofile, Limit { soft: Some(65536), hard: Some(65536) })]),
            output: Output::Prefix,
            ignore_sigpipe: true,
            listen_pid: true,
            messages: false,
            fd_store_max: 0,
            drain_signal: libc::SIGTERM,
        },
        sockets: vec![SocketSpec {
            name: "http".into(),
            listen: "0.0.0.0:8080".into(),
            address: SocketAddress::Inet("0.0.0.0:8080".parse().unwrap()),
            kind: SocketKind::Stream,
            options: SocketOptions { backlog: Some(1024), no_delay: Some(true), ..SocketOptions::default() },
            accept: None,
        }],
        idle_timeout: None,
        policy: Policy {
            lazy: false,
            workers: 4,
            strategy: Some(Strategy::ROLLING),
            min_ready: Some(SECOND),
            probation: 10 * SECOND,
            watchdog: Some(30 * SECOND),
            ..accept(MINIMAL).policy
        },
        probe: Vec::new(),
        hooks: accept(MINIMAL).hooks,
        control: ControlSpec::default(),
    };
    assert_eq!(spec, expected);
}

#[test]
fn every_example_is_good() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.retain(|name| Path::new(name).extension().is_some_and(|extension| extension == "toml"));
    assert!(names.len() >= 5, "{names:?}");
    for name in names {
        example(name.to_str().unwrap());
    }
}

#[test]
fn what_is_commented_out_in_the_example_is_good_too() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/web.toml");
    let text = std::fs::read_to_string(path).unwrap();
    let uncommented: String = text
        .lines()
        .skip_while(|line| !line.starts_with('['))
        .fold(String::new(), |all, line| all + line.strip_prefix("# ").unwrap_or(line) + "\n");
    let spec = accept(&uncommented);
    assert_eq!(spec.hooks.before, ["./migrate.sh"]);
    assert_eq!(spec.process.identity.umask, Some(0o022));
}

#[test]
fn workers_auto_is_the_number_of_cpus() {
    assert_eq!(accept(&format!("{MINIMAL}workers = \"auto\"")).policy.workers, 6);
    let many = Origin { cpus: 100_000, ..origin() };
    assert_eq!(parse(&format!("{MINIMAL}workers = \"auto\""), &many).unwrap().policy.workers, 4096);
}

#[test]
fn relative_paths_start_at_the_folder_of_the_file() {
    let process = |keys: &str| accept(&format!("{MINIMAL}{keys}")).process;
    assert_eq!(process("directory = \"./app/./v1\"").directory, Path::new("/srv/app/v1"));
    assert_eq!(process("directory = \"../app\"").directory, Path::new("/srv/../app"));
    let file = |path: &str, optional| EnvironmentFile { path: path.into(), optional };
    assert_eq!(
        process("environment_files = [\"a.env\", \"-b.env\", \"-/c.env\"]").environment_files,
        [file("/srv/a.env", false), file("/srv/b.env", true), file("/c.env", true)]
    );
}

#[test]
fn identities_are_names_or_numbers() {
    let text = "user = 1000\ngroup = \"33\"\nsupplementary_groups = [\"adm\", 27]\numask = 0o027\nlisten_pid = false\nmessages = true\nignore_sigpipe = false\nclear_environment = true";
    let process = accept(&format!("{MINIMAL}{text}")).process;
    let expected = Identity {
        user: Some("1000".into()),
        group: Some("33".into()),
        supplementary_groups: Some(vec!["adm".into(), "27".into()]),
        umask: Some(0o027),
    };
    assert_eq!(process.identity, expected);
    assert!(process.messages && !process.listen_pid && !process.ignore_sigpipe && process.clear_environment);
    let none = accept(&format!("{MINIMAL}supplementary_groups = []")).process.identity;
    assert_eq!(none.supplementary_groups, Some(Vec::new()));
}

#[test]
fn addresses_of_every_family_are_read() {
    let address = |listen: &str| {
        let socket = accept(&format!("{MINIMAL}[[socket]]\nlisten = \"{listen}\"")).sockets.remove(0);
        assert_eq!(socket.listen, listen);
        (socket.name, socket.address)
    };
    let inet = |text: &str| SocketAddress::Inet(text.parse().unwrap());
    assert_eq!(address("0.0.0.0:8080"), ("0.0.0.0-8080".into(), inet("0.0.0.0:8080")));
    assert_eq!(address("[::]:8080"), ("[--]-8080".into(), inet("[::]:8080")));
    assert_eq!(address("[fe80::1%2]:80"), ("[fe80--1%2]-80".into(), inet("[fe80::1%2]:80")));
    assert_eq!(address("/run/a.sock"), ("/run/a.sock".into(), SocketAddress::Path("/run/a.sock".into())));
    assert_eq!(address("./é.sock"), ("./-.sock".into(), SocketAddress::Path("/srv/é.sock".into())));
    assert_eq!(address("@a/b"), ("@a/b".into(), SocketAddress::Abstract("a/b".into())));
    let longest = format!("/{}", "a".repeat(106));
    assert_eq!(address(&longest).1, SocketAddress::Path(longest.into()));
}

#[test]
fn the_manager_may_be_spoken_to_by_tcp() {
    let control = |keys: &str| accept(&format!("{MINIMAL}[control]\n{keys}")).control;
    for local in ["127.0.0.1:3000", "127.9.9.9:1", "[::1]:65535", "[::ffff:127.0.0.1]:3000"] {
        let expected = ControlSpec { tcp: local.parse().ok(), ..ControlSpec::default() };
        assert_eq!(control(&format!("tcp = \"{local}\"")), expected, "{local}");
    }
    let all = control("group = 7\ntcp = \"0.0.0.0:3000\"\ntoken_file = \"./secret\"");
    let expected = ControlSpec {
        group: Some("7".into()),
        tcp: "0.0.0.0:3000".parse().ok(),
        token_file: Some("/srv/secret".into()),
        local_owner: false,
        gives_way: false,
    };
    assert_eq!(all, expected);
    assert!(control("tcp = \"127.0.0.1:3000\"\nlocal_owner = true").local_owner);
}

#[test]
fn a_target_may_be_bound_to_a_folder() {
    let within = |keys: &str| accept(&format!("[service]\nname = \"web\"\n{keys}")).process.target_within;
    assert_eq!(within("target = \"a\"\ntarget_within = \"releases\""), Some("/srv/releases".into()));
    assert_eq!(within("target = \"a\"\ntarget_within = \"/a\""), Some("/a".into()));
    assert_eq!(within("target = \"a\""), None);
}

#[test]
fn all_socket_options_are_read() {
    let tcp = options(
        "[::]:80",
        "backlog = 5\nreuse_port = true\nnon_blocking = true\nno_delay = false\nkeep_alive = true\n\
         keep_alive_time = \"2h\"\nkeep_alive_interval = \"75s\"\nkeep_alive_probes = 9\ndefer_accept = \"1s\"\n\
         free_bind = true\ntransparent = true\nbind_ipv6_only = \"ipv6-only\"\nbind_to_device = \"eth0\"\n\
         receive_buffer = \"64K\"\nsend_buffer = 4096\nmark = 0xffff_ffff\npriority = 6\nip_tos = 16\nip_ttl = 64\n\
         tcp_congestion = \"bbr\"",
    );
    let expected = SocketOptions {
        backlog: Some(5),
        reuse_port: true,
        non_blocking: true,
        no_delay: Some(false),
        keep_alive: Some(true),
        keep_alive_time: Some(7200 * SECOND),
        keep_alive_interval: Some(75 * SECOND),
        keep_alive_probes: Some(9),
        defer_accept: Some(SECOND),
        free_bind: Some(true),
        transparent: Some(true),
        bind_ipv6_only: Some(true),
        bind_to_device: Some("eth0".into()),
        receive_buffer: Some(65536),
        send_buffer: Some(4096),
        mark: Some(u32::MAX),
        priority: Some(6),
        ip_tos: Some(16),
        ip_ttl: Some(64),
        tcp_congestion: Some("bbr".into()),
        ..SocketOptions::default()
    };
    assert_eq!(tcp, expected);
    let unix = options(
        "/run/a.sock",
        "type = \"seqpacket\"\nmode = \"0660\"\ndirectory_mode = 0o750\nuser = \"web\"\ngroup = 33\n\
         pass_credentials = true\npass_security = false",
    );
    let expected = SocketOptions {
        mode: Some(0o660),
        directory_mode: Some(0o750),
        user: Some("web".into()),
        group: Some("33".into()),
        pass_credentials: Some(true),
        pass_security: Some(false),
        ..SocketOptions::default()
    };
    assert_eq!(unix, expected);
    assert_eq!(options("0.0.0.0:9", "type = \"datagram\"\nbroadcast = true").broadcast, Some(true));
    assert_eq!(options("[::]:80", "bind_ipv6_only = \"both\"").bind_ipv6_only, Some(false));
    assert_eq!(options("[::]:80", "bind_ipv6_only = \"default\"").bind_ipv6_only, None);
}

#[test]
fn sockets_may_share_a_name_or_an_address_of_another_kind() {
    let text = format!(
        "{MINIMAL}[[socket]]\nname = \"dns\"\nlisten = \"[::]:53\"\n\
         [[socket]]\nname = \"dns\"\nlisten = \"[::]:53\"\ntype = \"datagram\"\n"
    );
    let names: Vec<String> = accept(&text).sockets.into_iter().map(|socket| socket.name).collect();
    assert_eq!(names, ["dns", "dns"]);
}

#[test]
fn durations_have_four_units() {
    let probation =
        |text: &str| accept(&format!("{MINIMAL}[upgrade]\nprobation = \"{text}\"")).policy.probation;
    assert_eq!(probation("1500ms"), Duration::from_millis(1500));
    assert_eq!(probation("30s"), 30 * SECOND);
    assert_eq!(probation("5min"), 300 * SECOND);
    assert_eq!(probation("1h"), 3600 * SECOND);
    assert_eq!(probation("0s"), Duration::ZERO);
    assert_eq!(probation("8760h"), 8760 * 3600 * SECOND);
}

#[test]
fn limits_are_numbers_infinity_or_a_pair() {
    let limits = "limits = { nofile = 1_024, core = \"infinity\", nproc = \"64:infinity\", stack = \"1:2\", cpu = \"7\" }";
    let limits = accept(&format!("{MINIMAL}{limits}")).process.limits;
    let pair = |soft, hard| Limit { soft, hard };
    let expected = BTreeMap::from([
        (Resource::Nofile, pair(Some(1024), Some(1024))),
        (Resource::Core, pair(None, None)),
        (Resource::Nproc, pair(Some(64), None)),
        (Resource::Stack, pair(Some(1), Some(2))),
        (Resource::Cpu, pair(Some(7), Some(7))),
    ]);
    assert_eq!(limits, expected);
}

#[test]
fn signals_are_names_or_numbers() {
    let signal = |value: &str| accept(&format!("{MINIMAL}[drain]\nsignal = {value}")).process.drain_signal;
    assert_eq!(signal("\"QUIT\""), libc::SIGQUIT);
    assert_eq!(signal("\"SIGWINCH\""), libc::SIGWINCH);
    assert_eq!(signal("10"), 10);
}

#[test]
fn readiness_follows_the_protocol_unless_it_is_chosen() {
    let readiness = |keys: &str| {
        let spec = accept(&format!("{MINIMAL}{keys}"));
        (spec.policy.readiness, spec.probe)
    };
    assert_eq!(readiness("protocol = \"plain\"").0, Readiness::Settled(SECOND));
    assert_eq!(readiness("protocol = \"plain\"\n[ready]\nsettle = \"2s\"").0, Readiness::Settled(2 * SECOND));
    assert_eq!(readiness("[ready]\nwhen = \"settled\"").0, Readiness::Settled(SECOND));
    let accepting = |keys: &str| {
        let socket = "[[socket]]\nlisten = \"127.0.0.1:80\"\n";
        readiness(&format!("protocol = \"plain\"\n{socket}[ready]\nwhen = \"accepting\"\n{keys}")).0
    };
    assert_eq!(accepting(""), Readiness::Accepting(SECOND));
    assert_eq!(accepting("settle = \"2s\""), Readiness::Accepting(2 * SECOND));
    let (probe, command) =
        readiness("protocol = \"plain\"\n[ready]\nwhen = \"probe\"\nprobe = [\"true\", \"\"]");
    assert_eq!(probe, Readiness::Probe(Duration::from_millis(500)));
    assert_eq!(command, ["true", ""]);
}

#[test]
fn each_strategy_is_read() {
    let strategy = |keys: &str| accept(&format!("{MINIMAL}workers = 4\n[upgrade]\n{keys}")).policy.strategy;
    assert_eq!(strategy(""), None);
    assert_eq!(strategy("strategy = \"auto\""), None);
    assert_eq!(strategy("strategy = \"rolling\""), Some(Strategy::ROLLING));
    assert_eq!(strategy("strategy = \"blue-green\""), Some(Strategy::BlueGreen));
    assert_eq!(strategy("strategy = \"recreate\""), Some(Strategy::Recreate));
    let rolling = |max_surge, max_unavailable| Some(Strategy::Rolling { max_surge, max_unavailable });
    assert_eq!(
        strategy("max_surge = 0\nmax_unavailable = \"50%\""),
        rolling(Allowance::Count(0), Allowance::Percent(50))
    );
    assert_eq!(strategy("max_surge = 9"), rolling(Allowance::Count(9), Allowance::Count(0)));
}

#[test]
fn how_long_new_workers_must_stay_ready_is_said_or_left_open() {
    let min_ready = |tables: &str| accept(&format!("{MINIMAL}{tables}")).policy.min_ready;
    assert_eq!(min_ready(""), None);
    assert_eq!(min_ready("[upgrade]\nmin_ready = \"5s\""), Some(5 * SECOND));
    assert_eq!(min_ready("[upgrade]\nmin_ready = \"0s\"\nstrategy = \"recreate\""), Some(Duration::ZERO));
    // To settle is the same promise.
    assert_eq!(min_ready("[ready]\nwhen = \"settled\""), Some(Duration::ZERO));
    assert_eq!(min_ready("[ready]\nwhen = \"settled\"\n[upgrade]\nmin_ready = \"2s\""), Some(2 * SECOND));
}

#[test]
fn line_ends_and_a_byte_order_mark_do_not_matter() {
    let text = format!("\u{feff}{}", MINIMAL.replace('\n', "\r\n"));
    assert_eq!(accept(&text), accept(MINIMAL));
}

#[test]
fn tables_may_be_written_inline_or_dotted() {
    let dotted = "service.command = [\"a\"]\nservice.environment.A = \"1\"\nsocket = [{ listen = \"@a\" }]\n";
    let spec = accept(dotted);
    assert_eq!(spec.process.environment["A"], "1");
    assert_eq!(spec.sockets.len(), 1);
}

#[test]
fn what_starts_on_demand() {
    let lazy = accept(&format!("{MINIMAL}lazy = true\nidle_timeout = '5min'\n[[socket]]\nlisten = '@a'"));
    assert_eq!((lazy.policy.lazy, lazy.idle_timeout), (true, Some(300 * SECOND)));
    let inetd = format!("{MINIMAL}[[socket]]\nlisten = '@a'\naccept = true\n");
    let spec = accept(&inetd);
    assert_eq!((spec.policy.workers, spec.process.protocol), (0, Protocol::Plain));
    let limits = Accept { max_connections: 64, max_connections_per_source: None };
    assert_eq!(spec.sockets[0].accept, Some(limits));
    assert!(spec.sockets[0].options.non_blocking);
    let few = accept(&format!("{inetd}max_connections = 3\nmax_connections_per_source = 2"));
    let limits = Accept { max_connections: 3, max_connections_per_source: Some(2) };
    assert_eq!(few.sockets[0].accept, Some(limits));
}
