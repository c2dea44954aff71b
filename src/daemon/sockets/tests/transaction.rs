//! Sockets change together, or none does.

use super::*;

#[test]
fn what_is_unchanged_keeps_its_descriptor_and_its_queue() {
    let (_folder, path) = folder();
    let mut sockets = sockets();
    let wanted = [tcp("127.0.0.1:0"), unix(&path, SocketKind::Stream)];
    let old = sockets.prepare(&wanted).unwrap().listeners;
    let mut queued = TcpStream::connect(inet(&old[0])).unwrap();
    queued.write_all(b"early").unwrap();
    let queued_unix = UnixStream::connect(&path).unwrap();
    let mut renamed = wanted.clone();
    renamed[0].spec.name = "web".into();
    renamed[0].spec.options.backlog = Some(9);
    renamed.reverse();
    let new = sockets.prepare(&renamed).unwrap().listeners;
    assert!(Rc::ptr_eq(&old[0], &new[1]) && Rc::ptr_eq(&old[1], &new[0]));
    drop(old);
    let (mut accepted, _) = TcpListener::from(workers_copy(&new[1])).accept().unwrap();
    let mut got = [0; 5];
    accepted.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"early");
    UnixListener::from(workers_copy(&new[0])).accept().unwrap();
    drop(queued_unix);
}

#[test]
fn one_that_fails_leaves_all_as_it_was() {
    let (folder, path) = folder();
    let mut sockets = sockets();
    let old = [with(tcp("127.0.0.1:0"), |o| o.backlog = Some(10))];
    let generation = sockets.prepare(&old).unwrap().listeners;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_address = taken.local_addr().unwrap();
    let free = own_address();
    let wanted = [
        with(old[0].clone(), |o| o.backlog = Some(20)),
        tcp(&free),
        unix(&folder.path().join("made/web.sock"), SocketKind::Stream),
        unix(&path, SocketKind::Datagram),
        plan("admin", &taken_address.to_string(), SocketKind::Stream, SocketOptions::default()),
    ];
    let (message, hint) = refused(&mut sockets, &wanted);
    assert_eq!(
        message,
        format!(
            "socket `admin` ({taken_address}): another program listens on this address: Address already in use \
             (os error 98)"
        )
    );
    assert_eq!(hint, format!("`ss -ltnp 'sport = :{}'`", taken_address.port()));
    assert_eq!(files(&folder), [""; 0]);
    eventually(|| TcpStream::connect(&free).err());
    assert_eq!(backlog(&generation[0]).unwrap(), 10);
    assert_eq!(*generation[0].plan(), old[0]);
    assert_eq!(sockets.listeners().len(), 1);
    serves_tcp(&generation[0]);
}

#[test]
fn an_option_that_fails_undoes_those_before_it() {
    let (_folder, path) = folder();
    let mut sockets = sockets();
    let old = [unix(&path, SocketKind::Stream), tcp("127.0.0.1:0")];
    let generation = sockets.prepare(&old).unwrap().listeners;
    let buffer = get(&generation[0], SocketOption::ReceiveBuffer).unwrap();
    let wanted = [
        with(old[0].clone(), |o| {
            o.mode = Some(0o600);
            o.backlog = Some(3);
            o.receive_buffer = Some(12_345);
        }),
        with(old[1].clone(), |o| {
            o.no_delay = Some(true);
            o.tcp_congestion = Some("nonesuch".into());
        }),
    ];
    let (message, hint) = refused(&mut sockets, &wanted);
    assert_eq!(
        message,
        "socket `http` (127.0.0.1:0): setting `tcp_congestion`: No such file or directory (os error 2)"
    );
    assert!(hint.contains("tcp_available_congestion_control"), "{hint}");
    assert_eq!(mode(&path), 0o666);
    assert!(backlog(&generation[0]).unwrap() > 3);
    assert_eq!(get(&generation[0], SocketOption::ReceiveBuffer).unwrap(), buffer);
    assert_eq!(get(&generation[1], SocketOption::NoDelay).unwrap(), Value::Number(0));
}

#[test]
fn options_change_on_a_kept_socket_and_return_when_the_upgrade_does() {
    let (_folder, path) = folder();
    let mut sockets = sockets();
    let old = [with(tcp("127.0.0.1:0"), |o| o.ip_ttl = Some(9)), unix(&path, SocketKind::Stream)];
    let generation = sockets.prepare(&old).unwrap().listeners;
    let state = || {
        let http = &generation[0];
        let options = [SocketOption::IpTtl, SocketOption::NoDelay, SocketOption::KeepAliveTime];
        (options.map(|option| get(http, option).unwrap()), backlog(http).unwrap(), mode(&path))
    };
    let before = state();
    let added = own_address();
    let wanted = [
        with(tcp("127.0.0.1:0"), |o| {
            o.no_delay = Some(true);
            o.keep_alive_time = Some(Duration::from_secs(5));
            o.backlog = Some(17);
        }),
        with(old[1].clone(), |o| o.mode = Some(0o606)),
        tcp(&added),
    ];
    let new = sockets.prepare(&wanted).unwrap().listeners;
    let (options, queue, path_mode) = state();
    assert_ne!(options[0], Value::Number(9), "an option that the file leaves out is the kernel's again");
    assert_eq!(options[1..], [Value::Number(1), Value::Number(5)]);
    assert_eq!((queue, path_mode), (17, 0o606));
    TcpStream::connect(&added).unwrap();
    drop(new);
    assert!(sockets.revert(&old).is_empty());
    assert_eq!(state(), before);
    eventually(|| TcpStream::connect(&added).err());
}

#[test]
fn a_new_tos_leaves_the_priority_alone() {
    let mut sockets = sockets();
    let first = with(tcp("127.0.0.1:0"), |o| o.priority = Some(3));
    let listener = one(&mut sockets, &first);
    let _same = one(&mut sockets, &with(first, |o| o.ip_tos = Some(0x10)));
    assert_eq!(get(&listener, SocketOption::IpTos).unwrap(), Value::Number(0x10));
    assert_eq!(get(&listener, SocketOption::Priority).unwrap(), Value::Number(3));
}

#[test]
fn a_worker_that_needs_non_blocking_sockets_keeps_them_over_an_upgrade() {
    let mut sockets = sockets();
    let listener = one(&mut sockets, &tcp("127.0.0.1:0"));
    assert_eq!(get(&listener, SocketOption::NonBlocking).unwrap(), Value::Number(0));
    set(workers_copy(&listener), SocketOption::NonBlocking, &Value::from(true)).unwrap();
    let _same = one(&mut sockets, &with(tcp("127.0.0.1:0"), |o| o.backlog = Some(8)));
    assert_eq!(get(&listener, SocketOption::NonBlocking).unwrap(), Value::Number(1));
}

#[test]
fn what_only_bind_can_change_is_refused() {
    let mut sockets = sockets();
    let first = tcp("127.0.0.1:0");
    let _listener = one(&mut sockets, &first);
    for edit in
        [(|o| o.reuse_port = true) as fn(&mut SocketOptions), |o| o.bind_to_device = Some("lo".into())]
    {
        let (message, hint) = refused(&mut sockets, &[with(first.clone(), edit)]);
        assert!(message.ends_with("cannot be changed on a bound socket"), "{message}");
        assert!(hint.contains("restart the manager"), "{hint}");
    }
    for listen in reachable(["[::]:0"]) {
        let listener = one(&mut sockets, &tcp(listen));
        let default = get(&listener, SocketOption::Ipv6Only).unwrap() == Value::Number(1);
        let _same = one(&mut sockets, &with(tcp(listen), |o| o.bind_ipv6_only = Some(default)));
        refused(&mut sockets, &[with(tcp(listen), |o| o.bind_ipv6_only = Some(!default))]);
    }
}

#[test]
fn a_socket_is_known_by_the_address_as_written_even_with_port_0() {
    let mut sockets = sockets();
    let listener = one(&mut sockets, &tcp("127.0.0.1:0"));
    let again = one(&mut sockets, &tcp("127.0.0.1:0"));
    assert!(Rc::ptr_eq(&listener, &again));
    let udp = plan("dns", "127.0.0.1:0", SocketKind::Datagram, SocketOptions::default());
    assert!(!Rc::ptr_eq(&listener, &one(&mut sockets, &udp)));
}

#[test]
fn a_socket_closes_with_the_last_generation_that_has_it() {
    let (folder, path) = folder();
    let mut sockets = sockets();
    let address = own_address();
    let first = sockets.prepare(&[tcp(&address), unix(&path, SocketKind::Stream)]).unwrap().listeners;
    let second = sockets.prepare(&[]).unwrap().listeners;
    assert!(second.is_empty());
    serves_tcp(&first[0]);
    serves_unix(&first[1], &path);
    drop(first);
    eventually(|| TcpStream::connect(&address).err());
    assert_eq!(files(&folder), [""; 0]);
    assert!(sockets.listeners().is_empty());
}

#[test]
fn errors_tell_what_to_do_next() {
    let mut sockets = sockets();
    let own = own_address();
    let _listener = one(&mut sockets, &tcp(&own));
    let port = own.rsplit_once(':').unwrap().1;
    let (message, hint) = refused(
        &mut sockets,
        &[plan("all", &format!("0.0.0.0:{port}"), SocketKind::Stream, SocketOptions::default())],
    );
    assert!(
        message.contains(&format!("socket `http` ({own}) of the running service holds this address")),
        "{message}"
    );
    assert!(hint.contains("restart the manager"), "{hint}");

    let (message, hint) = refused(&mut sockets, &[tcp("192.0.2.1:8080")]);
    assert!(message.starts_with("socket `http` (192.0.2.1:8080): binding: Cannot assign"), "{message}");
    assert!(hint.contains("free_bind"), "{hint}");
    one(&mut sockets, &with(tcp("192.0.2.1:8080"), |o| o.free_bind = Some(true)));

    let (message, _) =
        refused(&mut sockets, &[with(tcp(&own_address()), |o| o.bind_to_device = Some("nonesuch".into()))]);
    assert!(message.contains("setting `bind_to_device`"), "{message}");

    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let (message, _) =
        refused(&mut sockets, &[unix(&folder.path().join("file/web.sock"), SocketKind::Stream)]);
    assert!(message.contains("Not a directory"), "{message}");
}
