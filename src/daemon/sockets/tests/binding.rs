//! A socket is bound as the file has it, or not at all.

use super::*;
use crate::sys::foreign::Closers;

fn has_all_its_options(plan: &SocketPlan) {
    let listener = match Listener::bind(plan) {
        Err(Problem::Failed { step: Step::Setting(option), error })
            if [Errno::EPERM as i32, Errno::EOPNOTSUPP as i32].map(Some).contains(&error.raw_os_error()) =>
        {
            crate::skipped::add(&format!("{option}: {error}"));
            return;
        }
        other => other.unwrap(),
    };
    for (option, value) in plan.options() {
        assert_eq!(get(&listener, option).unwrap(), value, "{option}");
    }
}

#[test]
fn every_option_is_set_and_reads_back() {
    let (_folder, path) = folder();
    let ip: [fn(&mut SocketOptions); 11] = [
        |o| o.reuse_port = true,
        |o| o.free_bind = Some(true),
        |o| o.transparent = Some(true),
        |o| o.bind_to_device = Some("lo".into()),
        |o| o.receive_buffer = Some(65_536),
        |o| o.send_buffer = Some(100_000),
        |o| o.mark = Some(0xf000_0001),
        |o| o.priority = Some(4),
        |o| o.ip_tos = Some(0x20),
        |o| o.ip_ttl = Some(7),
        |o| o.non_blocking = true,
    ];
    for listen in reachable(["127.0.0.1:0", "[::1]:0"]) {
        for kind in [SocketKind::Stream, SocketKind::Datagram] {
            for edit in ip {
                has_all_its_options(&with(plan("x", listen, kind, SocketOptions::default()), edit));
            }
        }
        has_all_its_options(&with(tcp(listen), |o| {
            o.keep_alive = Some(true);
            o.keep_alive_time = Some(Duration::from_secs(11));
            o.keep_alive_interval = Some(Duration::from_secs(12));
            o.keep_alive_probes = Some(13);
            o.no_delay = Some(true);
            o.defer_accept = Some(Duration::from_secs(3));
            o.tcp_congestion = Some("reno".into());
            o.ip_tos = Some(0x10);
            o.priority = Some(2);
        }));
        let udp = plan("x", listen, SocketKind::Datagram, SocketOptions::default());
        has_all_its_options(&with(udp, |o| o.broadcast = Some(true)));
    }
    for listen in reachable(["[::]:0"]) {
        has_all_its_options(&with(tcp(listen), |o| o.bind_ipv6_only = Some(true)));
        has_all_its_options(&with(tcp(listen), |o| o.bind_ipv6_only = Some(false)));
    }
    has_all_its_options(&with(unix(&path, SocketKind::Datagram), |o| o.pass_credentials = Some(true)));
    has_all_its_options(&with(unix(&path, SocketKind::Stream), |o| o.pass_security = Some(true)));
}

#[test]
fn a_short_time_is_rounded_up_to_a_second() {
    let listener = Listener::bind(&with(tcp("127.0.0.1:0"), |o| {
        o.keep_alive_time = Some(Duration::from_millis(1));
        o.keep_alive_interval = Some(Duration::from_millis(1_001));
    }))
    .unwrap();
    assert_eq!(get(&listener, SocketOption::KeepAliveTime).unwrap(), Value::Number(1));
    assert_eq!(get(&listener, SocketOption::KeepAliveInterval).unwrap(), Value::Number(2));
}

#[test]
fn tcp_and_udp_serve_over_both_ip_versions() {
    for listen in reachable(["127.0.0.1:0", "[::1]:0", "[::]:0", "0.0.0.0:0"]) {
        let mut sockets = sockets();
        let udp = plan("dns", listen, SocketKind::Datagram, SocketOptions::default());
        let listeners = sockets.prepare(&[tcp(listen), udp]).unwrap().listeners;
        serves_tcp(&listeners[0]);
        let client =
            UdpSocket::bind(if listen.starts_with('[') { "[::1]:0" } else { "127.0.0.1:0" }).unwrap();
        let to = SocketAddr::new(client.local_addr().unwrap().ip(), inet(&listeners[1]).port());
        client.send_to(b"hello", to).unwrap();
        let mut got = [0; 16];
        let (length, from) = UdpSocket::from(workers_copy(&listeners[1])).recv_from(&mut got).unwrap();
        assert_eq!((&got[..length], from.port()), (&b"hello"[..], client.local_addr().unwrap().port()));
    }
}

#[test]
fn unix_sockets_of_every_type_tell_their_final_path() {
    let (_folder, path) = folder();
    let name = format!("@liveswap-{}-types", std::process::id());
    for kind in [SocketKind::Stream, SocketKind::Datagram, SocketKind::Seqpacket] {
        let mut sockets = sockets();
        let wanted = [unix(&path, kind), plan("abstract", &name, kind, SocketOptions::default())];
        let listeners = sockets.prepare(&wanted).unwrap().listeners;
        assert_eq!(local_address(&listeners[0]).unwrap(), Some(SocketAddress::Path(path.clone())));
        let abstract_name = SocketAddress::Abstract(name[1..].into());
        assert_eq!(local_address(&listeners[1]).unwrap(), Some(abstract_name));
        if kind == SocketKind::Stream {
            serves_unix(&listeners[0], &path);
        }
        if kind == SocketKind::Datagram {
            UnixDatagram::unbound().unwrap().send_to(b"x", &path).unwrap();
        }
    }
}

#[test]
fn a_path_has_the_mode_and_the_folders_that_were_asked_for_and_leaves_nothing_behind() {
    let (folder, _) = folder();
    let path = folder.path().join("run/web/web.sock");
    let mut sockets = sockets();
    let listener = one(&mut sockets, &unix(&path, SocketKind::Stream));
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o666, 0o755));
    assert!(path.with_file_name(".web.sock.liveswap").exists());
    drop(listener);
    assert_eq!(files(&folder), [""; 0]);
    let plan = with(unix(&path, SocketKind::Stream), |o| {
        o.mode = Some(0o620);
        o.directory_mode = Some(0o770);
    });
    let _listener = one(&mut sockets, &plan);
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o620, 0o770));
}

#[test]
fn a_path_gets_its_owner() {
    if !nix::unistd::geteuid().is_root() {
        crate::skipped::add("only root may give files away");
        return;
    }
    let (_folder, path) = folder();
    let mut plan = with(unix(&path, SocketKind::Stream), |o| o.mode = Some(0o660));
    plan.owner = Owner { uid: Some(12_345), gid: Some(54_321) };
    let mut sockets = sockets();
    let listener = one(&mut sockets, &plan);
    let owner = || std::fs::metadata(&path).map(|found| (found.uid(), found.gid())).unwrap();
    assert_eq!((owner(), mode(&path)), ((12_345, 54_321), 0o660));
    plan.owner = Owner { uid: None, gid: Some(1) };
    let kept = one(&mut sockets, &plan);
    assert!(Rc::ptr_eq(&kept, &listener));
    assert_eq!((owner(), mode(&path)), ((0, 1), 0o660));
}

#[test]
fn a_stale_path_is_replaced_and_a_live_one_refused() {
    let (folder, path) = folder();
    for kind in [SocketKind::Stream, SocketKind::Datagram, SocketKind::Seqpacket] {
        let owner = Listener::bind(&unix(&path, kind)).unwrap();
        let (message, hint) = refused(&mut sockets(), &[unix(&path, SocketKind::Stream)]);
        assert_eq!(
            message,
            format!("socket `unix` ({}): another program has this path bound", path.display())
        );
        assert!(hint.contains("ss -xlp"), "{hint}");
        // Killed: the names stay, the socket does not.
        std::fs::hard_link(&path, folder.path().join("left")).unwrap();
        drop(owner);
        Closers::default().finish();
        std::fs::rename(folder.path().join("left"), &path).unwrap();
        let plan = unix(&path, SocketKind::Stream);
        let listener = eventually(|| sockets().prepare(std::slice::from_ref(&plan)).ok()).listeners.remove(0);
        serves_unix(&listener, &path);
    }
}

#[test]
fn what_is_no_socket_is_never_removed() {
    let (_folder, path) = folder();
    std::fs::write(&path, "precious").unwrap();
    let (message, _) = refused(&mut sockets(), &[unix(&path, SocketKind::Stream)]);
    assert!(message.ends_with("what stands at this path is no socket"), "{message}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn sockets_whose_port_the_kernel_chooses_are_as_many_as_are_asked_for() {
    let named = |name: &str| plan(name, "127.0.0.1:0", SocketKind::Stream, SocketOptions::default());
    let mut sockets = Sockets::new(Vec::new());
    let wanted = [named("a"), named("b"), named("same"), named("same")];
    let first = sockets.prepare(&wanted).unwrap();
    let ports = |prepared: &Prepared| prepared.listeners.iter().map(|one| inet(one)).collect::<Vec<_>>();
    let chosen = ports(&first);
    for (index, port) in chosen.iter().enumerate() {
        assert!(!chosen[..index].contains(port), "{chosen:?}");
        assert!(first.notes[index].ends_with(&format!("listens on {port}")), "{:?}", first.notes);
        assert_eq!(first.listeners[index].listens_on(), port.to_string());
    }
    // They stay what they are in whatever order, and under another name.
    let turned = [named("same"), named("b"), named("other"), named("same")];
    let again = sockets.prepare(&turned).unwrap();
    assert_eq!(ports(&again), [chosen[2], chosen[1], chosen[0], chosen[3]]);
}

#[test]
fn a_socket_of_the_same_file_is_named_where_it_is_in_the_way() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("d")).unwrap();
    std::os::unix::fs::symlink("d", folder.path().join("l")).unwrap();
    let path = |way: &str| folder.path().join(way).to_str().unwrap().to_owned();
    let port = own_address().rsplit_once(':').unwrap().1.to_owned();
    for (one, two) in [
        (path("d/a"), path("l/a")),
        (path("d/a"), path("d/../d/a")),
        (format!("127.0.0.1:{port}"), format!("0.0.0.0:{port}")),
        (format!("0.0.0.0:{port}"), format!("[::]:{port}")),
    ] {
        if reachable(["[::1]:0"]).is_empty() && two.starts_with('[') {
            continue;
        }
        let make =
            |name: &str, listen: &str| plan(name, listen, SocketKind::Stream, SocketOptions::default());
        let plans = [make("one", &one), make("two", &two)];
        let error = Sockets::new(Vec::new()).prepare(&plans).unwrap_err();
        let said = error.to_string();
        let expected =
            format!("socket `two` ({two}): socket `one` ({one}) of the same file holds this address");
        assert_eq!(said, expected);
        assert_eq!(error.hint().unwrap().contains("bind_ipv6_only"), two.starts_with('['));
    }
}

#[test]
fn a_read_only_file_system_says_how_a_unit_opens_it() {
    let error = io::Error::from_raw_os_error(libc::EROFS);
    let plan = tcp("/run/web.sock");
    let hint = Problem::Failed { step: Step::Binding, error }.of(&plan).hint().unwrap();
    assert!(hint.contains("ProtectSystem=strict") && hint.contains("ReadWritePaths="), "{hint}");
}
