//! Bad files: what is said, and where the caret stands.

use super::*;

/// Checks files with one problem each: what follows [`MINIMAL`], the message, the text under the caret.
fn each_is_refused(cases: &[(&str, &str, &str)]) {
    for (keys, message, pointed) in cases {
        let text = format!("{MINIMAL}{keys}");
        let problems = refuse(&text);
        assert_eq!(said(&text, &problems), [((*message).to_owned(), *pointed)], "{keys}");
    }
}

/// As [`each_is_refused`], within a `[[socket]]`.
fn each_socket_is_refused(cases: &[(&str, &str, &str)]) {
    for (keys, message, pointed) in cases {
        let text = format!("{MINIMAL}[[socket]]\n{keys}");
        let problems = refuse(&text);
        assert_eq!(said(&text, &problems), [((*message).to_owned(), *pointed)], "{keys}");
    }
}

fn help(text: &str) -> String {
    refuse(text).problems()[0].help.clone().unwrap_or_default()
}

#[test]
fn values_of_the_wrong_type() {
    each_is_refused(&[
        ("name = 1", "`name` must be a string", "1"),
        ("workers = \"4\"", "`workers` must be an integer from 1 to 4096 or \"auto\"", "\"4\""),
        ("workers = 2.5", "`workers` must be an integer from 1 to 4096 or \"auto\"", "2.5"),
        ("directory = [\"a\"]", "`directory` must be a string", "[\"a\"]"),
        ("clear_environment = \"yes\"", "`clear_environment` must be true or false", "\"yes\""),
        ("environment = [\"A=1\"]", "`environment` must be a table", "[\"A=1\"]"),
        ("environment = { PORT = 80 }", "`environment.PORT` must be a string", "80"),
        ("environment_files = \"a\"", "`environment_files` must be an array of strings", "\"a\""),
        ("environment_files = [\"a\", true]", "`environment_files[1]` must be a string", "true"),
        ("user = false", "`user` must be a name or a number", "false"),
        ("output = 1", "`output` must be \"auto\", \"inherit\", \"prefix\" or \"copy\"", "1"),
        ("limits = { nofile = true }", "`nofile` must be a number, \"infinity\" or \"soft:hard\"", "true"),
        ("[ready]\ntimeout = 30", "`timeout` must be a duration", "30"),
        ("[ready]\ntimeout = 1979-05-27", "`timeout` must be a duration", "1979-05-27"),
        ("[drain]\nsignal = []", "`signal` must be the name or the number of a signal", "[]"),
        ("[upgrade]\nmax_surge = 0.5", "`max_surge` must be a count or a share such as \"25%\"", "0.5"),
        ("[[ready]]", "`ready` must be a table", "[[ready]]"),
        ("[socket]\nlisten = \"@a\"", "`socket` must be an array of tables", "[socket]"),
    ]);
    let text = "service = 1";
    assert_eq!(said(text, &refuse(text))[0], ("`service` must be a table".into(), "1"));
    let text = format!("socket = [1]\n{MINIMAL}");
    assert_eq!(said(&text, &refuse(&text)), [("`socket` must be an array of tables".into(), "1")]);
}

#[test]
fn values_out_of_range() {
    each_is_refused(&[
        ("workers = 0", "`workers` must be an integer from 1 to 4096 or \"auto\"", "0"),
        ("workers = 4097", "`workers` must be an integer from 1 to 4096 or \"auto\"", "4097"),
        ("umask = \"0888\"", "`umask` must be permissions in octal, \"0000\" to \"0777\"", "\"0888\""),
        ("umask = \"1777\"", "`umask` must be permissions in octal, \"0000\" to \"0777\"", "\"1777\""),
        ("umask = 22", "`umask` must be permissions in octal, \"0000\" to \"0777\"", "22"),
        ("user = 4294967295", "`user` must be an integer from 0 to 4294967294", "4294967295"),
        ("user = \"4294967295\"", "`user` must be a number up to 4294967294", "\"4294967295\""),
        ("user = \"a:b\"", "`user` must be a name or a number", "\"a:b\""),
        ("group = \"\"", "`group` must be a name or a number", "\"\""),
        ("directory = \"\"", "`directory` must not be empty", "\"\""),
        ("directory = \"a\\u0000\"", "`directory` must not contain a NUL character", "\"a\\u0000\""),
        ("environment_files = [\"-\"]", "`environment_files[0]` must be the path of a file", "\"-\""),
        ("limits = { core = \"2:1\" }", "`core` must not have a soft limit above the hard one", "\"2:1\""),
        (
            "limits = { core = \"infinity:1\" }",
            "`core` must not have a soft limit above the hard one",
            "\"infinity:1\"",
        ),
        ("limits = { core = \"1:\" }", "`core` must be a number, \"infinity\" or \"soft:hard\"", "\"1:\""),
        ("[ready]\ntimeout = \"0s\"", "`timeout` must be longer than zero", "\"0s\""),
        ("[ready]\ntimeout = \"9000h\"", "`timeout` must not be longer than a year (\"8760h\")", "\"9000h\""),
        (
            "[ready]\ntimeout = \"99999999999999999999h\"",
            "`timeout` must not be longer than a year (\"8760h\")",
            "\"99999999999999999999h\"",
        ),
        ("[upgrade]\nhook_timeout = \"0ms\"", "`hook_timeout` must be longer than zero", "\"0ms\""),
        (
            "[upgrade]\nmax_surge = \"101%\"",
            "`max_surge` must be a share from \"0%\" to \"100%\"",
            "\"101%\"",
        ),
        ("[upgrade]\nmax_surge = -1", "`max_surge` must be an integer from 0 to 4096", "-1"),
        ("[drain]\ntimeout = \"0s\"", "`timeout` must be longer than zero", "\"0s\""),
        ("[drain]\nmax_generations = 0", "`max_generations` must be an integer from 1 to 1024", "0"),
        ("[drain]\nsignal = \"KILL\"", "`signal` must be a signal that a worker can catch", "\"KILL\""),
        ("[drain]\nsignal = 19", "`signal` must be a signal that a worker can catch", "19"),
        ("[drain]\nsignal = 65", "`signal` must be an integer from 1 to 64", "65"),
        ("[restart]\ninitial_delay = \"0s\"", "`initial_delay` must be longer than zero", "\"0s\""),
        ("[watchdog]\ntimeout = \"0s\"", "`timeout` must be longer than zero", "\"0s\""),
    ]);
}

#[test]
fn names_that_cannot_be() {
    const RULE: &str = "`name` must be 1 to 50 of the characters A-Z a-z 0-9 . _ -";
    let long = format!("name = \"{}\"", "a".repeat(65));
    each_is_refused(&[
        ("name = \"a b\"", RULE, "\"a b\""),
        ("name = \"\"", RULE, "\"\""),
        ("name = \"..\"", RULE, "\"..\""),
        (&long, RULE, &long["name = ".len()..]),
        ("environment = { \"\" = \"\" }", "`environment.` must be a name for a variable", "\"\""),
        ("environment = { \"A=B\" = \"\" }", "`environment.A=B` must be a name for a variable", "\"A=B\""),
        (
            "environment = { LISTEN_FDS = \"1\" }",
            "`environment.LISTEN_FDS` must not be set here",
            "LISTEN_FDS",
        ),
        ("environment.LIVESWAP_X = \"1\"", "`environment.LIVESWAP_X` must not be set here", "LIVESWAP_X"),
        (
            "environment.WATCHDOG_PID = \"1\"",
            "`environment.WATCHDOG_PID` must not be set here",
            "WATCHDOG_PID",
        ),
    ]);
    let origin = Origin { path: "/srv/my service.toml".into(), cpus: 1 };
    let problems = parse(MINIMAL, &origin).unwrap_err();
    assert_eq!(
        problems.summary(),
        "my service.toml:1:1: the service needs a `name`, since that of its file is no name for a service"
    );
    parse(&format!("{MINIMAL}name = \"mine\""), &origin).unwrap();
}

#[test]
fn commands_that_cannot_be() {
    for (command, message, pointed) in [
        ("[]", "`command` must name a program", "[]"),
        ("[\"\", \"a\"]", "`command` must name a program first", "\"\""),
        ("[\"a\", 1]", "`command[1]` must be a string", "1"),
        ("[\"a\\u0000\"]", "`command[0]` must not contain a NUL character", "\"a\\u0000\""),
        ("\"./server -q\"", "`command` must be an array of strings", "\"./server -q\""),
    ] {
        let text = format!("[service]\ncommand = {command}\n");
        assert_eq!(said(&text, &refuse(&text)), [(message.to_owned(), pointed)]);
    }
    assert_eq!(
        help("[service]\ncommand = \"./server -q\"\n"),
        "there is no shell; write command = [\"./server\", \"-q\"]"
    );
    let text = "[service]\nname = \"a\"\n";
    assert_eq!(said(text, &refuse(text)), [("missing key `command` in [service]".into(), "[service]")]);
    let text = "[service]\nComand = [\"a\"]\n";
    assert_eq!(said(text, &refuse(text)), [("unknown key `Comand` in [service]".into(), "Comand")]);
    each_is_refused(&[
        ("[upgrade]\nbefore = []", "`before` must name a program", "[]"),
        ("[upgrade]\nafter = \"./a\"", "`after` must be an array of strings", "\"./a\""),
        ("[ready]\nwhen = \"probe\"\nprobe = [\"\"]", "`probe` must name a program first", "\"\""),
    ]);
}

#[test]
fn keys_that_contradict_each_other() {
    each_is_refused(&[
        (
            "protocol = \"plain\"\n[ready]\nwhen = \"notify\"",
            "`when = \"notify\"` contradicts `protocol = \"plain\"`",
            "\"notify\"",
        ),
        (
            "protocol = \"plain\"\n[watchdog]\ntimeout = \"1s\"",
            "[watchdog] contradicts `protocol = \"plain\"`",
            "[watchdog]",
        ),
        ("[watchdog]", "missing key `timeout` in [watchdog]", "[watchdog]"),
        (
            "[ready]\nsettle = \"1s\"",
            "`settle` is ignored unless `when = \"settled\" or \"accepting\"`",
            "settle",
        ),
        ("[ready]\nwhen = \"accepting\"", "`when = \"accepting\"` needs a [[socket]]", "\"accepting\""),
        (
            "protocol = \"node\"\n[ready]\nwhen = \"accepting\"",
            "`when = \"accepting\"` contradicts `protocol = \"node\"`",
            "\"accepting\"",
        ),
        ("[ready]\nprobe = [\"a\"]", "`probe` is ignored unless `when = \"probe\"`", "probe"),
        (
            "[ready]\nwhen = \"settled\"\ninterval = \"1s\"",
            "`interval` is ignored unless `when = \"probe\"`",
            "interval",
        ),
        ("[ready]\nwhen = \"probe\"", "`when = \"probe\"` needs the key `probe`", "\"probe\""),
        (
            "[ready]\nwhen = \"settled\"\nsettle = \"60s\"",
            "`settle` must be shorter than `timeout` (1 min)",
            "\"60s\"",
        ),
        (
            "[upgrade]\nstrategy = \"recreate\"\nmax_surge = 1",
            "`max_surge` is ignored unless `strategy = \"rolling\"`",
            "max_surge",
        ),
        (
            "[upgrade]\nstrategy = \"blue-green\"\nmax_unavailable = 1",
            "`max_unavailable` is ignored unless `strategy = \"rolling\"`",
            "max_unavailable",
        ),
        (
            "[upgrade]\nstrategy = \"recreate\"\nmin_ready = \"1s\"",
            "`min_ready` has no use with `strategy = \"recreate\"`",
            "min_ready",
        ),
        (
            "[upgrade]\nstrategy = \"auto\"\nmax_surge = 1",
            "`max_surge` is ignored unless `strategy = \"rolling\"`",
            "max_surge",
        ),
        ("[upgrade]\nmax_surge = 0", "`max_surge` and `max_unavailable` must not both be zero", "0"),
        (
            "[upgrade]\nmax_surge = \"0%\"\nmax_unavailable = \"0%\"",
            "`max_surge` and `max_unavailable` must not both be zero",
            "\"0%\"",
        ),
        (
            "[restart]\ninitial_delay = \"2s\"\nmax_delay = \"1s\"",
            "`max_delay` (1 s) must not be shorter than `initial_delay` (2 s)",
            "\"1s\"",
        ),
        (
            "[restart]\ninitial_delay = \"1min\"",
            "`max_delay` (30 s) must not be shorter than `initial_delay` (1 min)",
            "\"1min\"",
        ),
    ]);
}

#[test]
fn what_is_to_come_is_said_to_be() {
    each_is_refused(&[
        ("protocol = \"transparent\"", "`protocol` cannot be \"transparent\" yet", "\"transparent\""),
        ("protocol = \"transparent\"", "`protocol` cannot be \"transparent\" yet", "\"transparent\""),
    ]);
}

#[test]
fn addresses_that_cannot_be() {
    const ADDRESS: &str = "`listen` must be an address";
    for (listen, message, label, help) in [
        ("8080", ADDRESS, "a port alone", "\"0.0.0.0:8080\""),
        (":8080", ADDRESS, "no address before the port", "\"[::]:8080\""),
        ("*:8080", ADDRESS, "no address before the port", "\"0.0.0.0:8080\""),
        ("localhost:80", ADDRESS, "a name", "\"127.0.0.1:80\" or \"[::1]:80\""),
        ("example.org:80", ADDRESS, "a name", "not looked up"),
        ("0.0.0.0", ADDRESS, "has no port", "\"0.0.0.0:8080\""),
        ("::", ADDRESS, "has no port", "\"[::]:8080\""),
        ("[::1]", ADDRESS, "has no port", "\"[::1]:8080\""),
        ("fe80::1g:80", ADDRESS, "a name", "not looked up"),
        ("::ffff:1.2.3.4:80", ADDRESS, "an IPv6 address without brackets", "\"[::ffff:1.2.3.4]:80\""),
        ("[fe80::1%eth0]:80", ADDRESS, "the scope is not a number", "`ip link`"),
        ("0.0.0.0:99999", ADDRESS, "the port is not a number from 0 to 65535", ""),
        ("1.2.3:80", ADDRESS, "not an IPv4 address", ""),
        ("[1::x]:80", ADDRESS, "not an IPv6 address", ""),
        ("tcp://0.0.0.0:80/", ADDRESS, "has a scheme", "\"0.0.0.0:80\""),
        ("unix:/run/a", ADDRESS, "has a scheme", "\"/run/a\""),
        ("web.sock", ADDRESS, "neither address and port nor a path", "\"./web.sock\""),
        ("", "`listen` must not be empty", "empty", ""),
        ("@", "`listen` must have a name after the `@`", "no name", ""),
        ("/run/", "`listen` must be the path of a socket", "this is a folder", ""),
        ("./..", "`listen` must be the path of a socket", "this is a folder", ""),
    ] {
        let problems = refuse(&format!("{MINIMAL}[[socket]]\nlisten = \"{listen}\"\n"));
        let [problem] = problems.problems() else { panic!("{}", problems.render(false)) };
        assert_eq!((problem.message.as_str(), problem.label.as_str()), (message, label), "{listen}");
        assert!(problem.help.as_deref().unwrap_or_default().contains(help), "{listen}: {problem:?}");
    }
    let limit = "`listen` must not be longer than 107 bytes, the kernel's limit for UNIX sockets";
    for long in
        [format!("/{}", "a".repeat(107)), format!("./{}", "a".repeat(103)), format!("@{}", "a".repeat(108))]
    {
        let text = format!("{MINIMAL}[[socket]]\nlisten = \"{long}\"\n");
        assert_eq!(refuse(&text).problems()[0].message, limit, "{long}");
    }
    let port = refuse(&format!("{MINIMAL}[[socket]]\nlisten = 8080\n"));
    assert!(port.problems()[0].help.as_ref().unwrap().contains("\"0.0.0.0:8080\""));
}

#[test]
fn ways_to_the_manager_that_cannot_be() {
    const ADDRESS: &str = "`tcp` must be an IP address and a port, such as \"127.0.0.1:3000\"";
    const TOKEN: &str = "`tcp` needs the key `token_file`, as its address is not a loopback one";
    each_is_refused(&[
        ("[control]\ntcp = 3000", ADDRESS, "3000"),
        ("[control]\ntcp = \"/run/a.sock\"", ADDRESS, "\"/run/a.sock\""),
        ("[control]\ntcp = \"@a\"", ADDRESS, "\"@a\""),
        ("[control]\ntcp = \"3000\"", "`tcp` must be an address", "\"3000\""),
        ("[control]\ntcp = \"localhost:3000\"", "`tcp` must be an address", "\"localhost:3000\""),
        ("[control]\ntcp = \"127.0.0.1:0\"", "`tcp` must have a port from 1 to 65535", "\"127.0.0.1:0\""),
        ("[control]\ntcp = \"0.0.0.0:3000\"", TOKEN, "\"0.0.0.0:3000\""),
        ("[control]\ntcp = \"[::]:3000\"", TOKEN, "\"[::]:3000\""),
        ("[control]\ntcp = \"[::ffff:1.2.3.4]:3000\"", TOKEN, "\"[::ffff:1.2.3.4]:3000\""),
        ("[control]\ntcp = \"127.0.0.1:1\"\ntoken_file = \"\"", "`token_file` must not be empty", "\"\""),
        ("[control]\ntoken_file = \"a\"", "`token_file` is ignored unless `tcp` is set", "token_file"),
        ("[control]\nlocal_owner = true", "`local_owner` is ignored unless `tcp` is set", "local_owner"),
    ]);
    // What is wrong is not made worse by what follows from it.
    each_is_refused(&[
        ("[control]\ntcp = 1\ntoken_file = \"a\"", ADDRESS, "1"),
        ("[control]\ntcp = \"0.0.0.0:1\"\ntoken_file = 1", "`token_file` must be a string", "1"),
    ]);
    let text = format!("{MINIMAL}[control]\ntcp = \"0.0.0.0:3000\"");
    assert!(help(&text).contains("take 127.0.0.1 or [::1], or set token_file"), "{}", help(&text));
}

#[test]
fn sockets_that_cannot_be() {
    const NAME: &str = "`name` must be 1 to 255 printable ASCII characters without `:`";
    each_socket_is_refused(&[
        ("", "missing key `listen` in [[socket]]", "[[socket]]"),
        ("listen = \"@a\"\nname = \"a:b\"", NAME, "\"a:b\""),
        ("listen = \"@a\"\nname = \"é\"", NAME, "\"é\""),
        ("listen = \"@a\"\nname = \"\"", NAME, "\"\""),
        ("listen = \"@a\"\nname = \"stored\"", "`name` must not be a reserved name", "\"stored\""),
        (
            "listen = \"@a\"\ntype = \"raw\"",
            "`type` must be \"stream\", \"datagram\" or \"seqpacket\"",
            "\"raw\"",
        ),
        (
            "listen = \"0.0.0.0:1\"\ntype = \"seqpacket\"",
            "`type` cannot be \"seqpacket\" on an IPv4 or IPv6 address",
            "\"seqpacket\"",
        ),
        ("listen = \"[::]:1\"\nbacklog = 0", "`backlog` must be an integer from 1 to 2147483647", "0"),
        (
            "listen = \"[::]:1\"\nkeep_alive_time = \"1500ms\"",
            "`keep_alive_time` must be a whole number of seconds, \"1s\" to \"32767s\"",
            "\"1500ms\"",
        ),
        (
            "listen = \"[::]:1\"\nkeep_alive_probes = 128",
            "`keep_alive_probes` must be an integer from 1 to 127",
            "128",
        ),
        (
            "listen = \"[::]:1\"\nreceive_buffer = \"64KB\"",
            "`receive_buffer` must be a size in bytes",
            "\"64KB\"",
        ),
        (
            "listen = \"[::]:1\"\nsend_buffer = \"2G\"",
            "`send_buffer` must be a size from 1 to 2147483647 bytes",
            "\"2G\"",
        ),
        ("listen = \"[::]:1\"\nip_tos = 256", "`ip_tos` must be an integer from 0 to 255", "256"),
        ("listen = \"[::]:1\"\nmark = -1", "`mark` must be an integer from 0 to 4294967295", "-1"),
        (
            "listen = \"[::]:1\"\nbind_to_device = \"a-name-far-too-long\"",
            "`bind_to_device` must be the name of an interface",
            "\"a-name-far-too-long\"",
        ),
        (
            "listen = \"[::]:1\"\ntcp_congestion = \"b b r\"",
            "`tcp_congestion` must be the name of an algorithm",
            "\"b b r\"",
        ),
        (
            "listen = \"[::]:1\"\nbind_ipv6_only = true",
            "`bind_ipv6_only` must be \"default\", \"both\" or \"ipv6-only\"",
            "true",
        ),
        (
            "listen = \"[::]:1\"\nkeep_alive = false\nkeep_alive_probes = 3",
            "`keep_alive_probes` contradicts `keep_alive = false`",
            "keep_alive_probes",
        ),
        ("listen = \"@a\"\n[[socket]]\nlisten = \"@a\"", "two sockets listen on @a", "\"@a\""),
        (
            "listen = \"/a\"\n[[socket]]\nlisten = \"/./a\"\ntype = \"datagram\"",
            "two sockets listen on /a",
            "\"/./a\"",
        ),
    ]);
}

#[test]
fn options_of_another_kind_of_socket() {
    for (listen, kind, option, message) in [
        ("/a", "stream", "no_delay = true", "the UNIX stream socket /a"),
        ("@a", "stream", "mode = \"0660\"", "the UNIX stream socket @a"),
        ("@a", "stream", "user = \"web\"", "the UNIX stream socket @a"),
        ("0.0.0.0:1", "stream", "mode = \"0660\"", "the TCP socket 0.0.0.0:1"),
        ("0.0.0.0:1", "stream", "pass_credentials = true", "the TCP socket 0.0.0.0:1"),
        ("0.0.0.0:1", "stream", "bind_ipv6_only = \"both\"", "the TCP socket 0.0.0.0:1"),
        ("0.0.0.0:1", "stream", "broadcast = true", "the TCP socket 0.0.0.0:1"),
        ("0.0.0.0:1", "datagram", "backlog = 5", "the UDP socket 0.0.0.0:1"),
        ("[::]:1", "datagram", "keep_alive = true", "the UDP socket [::]:1"),
        ("[::]:1", "datagram", "defer_accept = \"1s\"", "the UDP socket [::]:1"),
        ("/a", "datagram", "backlog = 5", "the UNIX datagram socket /a"),
        ("/a", "seqpacket", "reuse_port = true", "the UNIX seqpacket socket /a"),
        ("/a", "stream", "mark = 1", "the UNIX stream socket /a"),
    ] {
        let text = format!("{MINIMAL}[[socket]]\nlisten = \"{listen}\"\ntype = \"{kind}\"\n{option}\n");
        let key = option.split(' ').next().unwrap();
        let message = format!("`{key}` means nothing for {message}");
        assert_eq!(said(&text, &refuse(&text)), [(message, key)]);
    }
}

#[test]
fn unknown_keys_are_answered_with_the_known() {
    for (keys, expected) in [
        ("worker = 1", "did you mean `workers`?"),
        ("WorkingDirectory = \"/\"", "did you mean `directory`?"),
        ("max_generations = 1", "`max_generations` belongs in [drain]"),
        ("limits = { nofiles = 1 }", "did you mean `nofile`?"),
        ("[redy]\n", "did you mean `ready`?"),
        ("[drain]\nbefore = [\"a\"]", "`before` belongs in [upgrade]"),
        ("[watchdog]\ntimeout = \"1s\"\nx = 1", "known here: timeout"),
        ("[ready]\nwhen = \"Settled\"", "did you mean \"settled\"?"),
        ("[drain]\nsignal = \"sigterm\"", "did you mean \"SIGTERM\"?"),
        ("[ready]\ntimeout = \"5m\"", "write \"5min\""),
        ("[ready]\ntimeout = \"5\"", "write \"5s\""),
        ("umask = 22", "write \"022\" or 0o22"),
        ("umask = 0022", "permissions are written as \"0660\" or 0o660"),
        ("name = web", "write \"web\""),
    ] {
        assert_eq!(help(&format!("{MINIMAL}{keys}")), expected, "{keys}");
    }
}

#[test]
fn every_key_is_documented() {
    let reference =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/service-file.md")).unwrap();
    let tables = [
        "",
        "limits.",
        "[[socket]]\n",
        "[ready]\n",
        "[upgrade]\n",
        "[drain]\n",
        "[restart]\n",
        "[watchdog]\n",
        "[control]\n",
    ];
    for table in tables {
        let problems = refuse(&format!("{MINIMAL}{table}qqqqqqqq = 1"));
        let help = problems.problems().iter().filter_map(|problem| problem.help.as_deref());
        let keys: Vec<&str> = help
            .filter_map(|help| help.strip_prefix("known here: "))
            .flat_map(|keys| keys.split(", "))
            .collect();
        assert!(!keys.is_empty(), "{table}");
        for key in keys {
            assert!(reference.contains(&format!("`{key}`")), "{table}{key} is not in docs/service-file.md");
        }
    }
}

#[test]
fn what_cannot_start_on_demand() {
    each_is_refused(&[
        ("lazy = true", "`lazy` needs a [[socket]]", "lazy"),
        (
            "idle_timeout = '1s'\n[[socket]]\nlisten = '@a'",
            "`idle_timeout` is ignored without `lazy = true`",
            "idle_timeout",
        ),
        (
            "lazy = true\nprotocol = 'node'\n[[socket]]\nlisten = '@a'",
            "`lazy` contradicts `protocol = \"node\"`",
            "lazy",
        ),
        (
            "workers = 2\n[[socket]]\nlisten = '@a'\naccept = true",
            "`workers` is ignored with `accept = true`",
            "workers",
        ),
        (
            "[[socket]]\nlisten = '@a'\naccept = true\n[[socket]]\nlisten = '@b'",
            "either all sockets have `accept = true` or none",
            "'@b'",
        ),
        (
            "[[socket]]\nlisten = '@a'\naccept = true\n[upgrade]\nprobation = '1s'",
            "`probation` is ignored with `accept = true`",
            "probation",
        ),
        (
            "[[socket]]\nlisten = '@a'\naccept = true\n[restart]\nmax_delay = '1s'",
            "`[restart]` is ignored with `accept = true`",
            "[restart]",
        ),
    ]);
    each_socket_is_refused(&[
        (
            "listen = '@a'\nmax_connections = 3",
            "`max_connections` is ignored without `accept = true`",
            "max_connections",
        ),
        (
            "listen = '127.0.0.1:1'\ntype = 'datagram'\naccept = true",
            "`accept` means nothing for the UDP socket 127.0.0.1:1",
            "accept",
        ),
        (
            "listen = '@a'\naccept = true\nmax_connections = 0",
            "`max_connections` must be an integer from 1 to 65536",
            "0",
        ),
    ]);
}
