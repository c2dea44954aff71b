//! An activator's descriptors are used for what they are.

use super::*;

#[test]
fn inherited_sockets_are_matched_by_name_then_by_address() {
    let (folder, path) = folder();
    let (one, other) = (own_address(), own_address());
    let unix_listener = UnixListener::bind(&path).unwrap();
    let second = TcpListener::bind(&other).unwrap();
    second.set_nonblocking(true).unwrap();
    let inherited = vec![
        handed("web", second),
        handed("web", TcpListener::bind(&one).unwrap()),
        handed("web.socket", unix_listener),
    ];
    let mut sockets = Sockets::new(inherited);
    let queued = TcpStream::connect(&other).unwrap();
    let wanted = [
        unix(&path, SocketKind::Stream),
        plan("web", &one, SocketKind::Stream, SocketOptions::default()),
        with(plan("web", &other, SocketKind::Stream, SocketOptions::default()), |o| {
            o.backlog = Some(6);
            o.no_delay = Some(true);
        }),
    ];
    let listeners = sockets.prepare(&wanted).unwrap().listeners;
    assert!(listeners.iter().all(|listener| listener.is_inherited()));
    assert_eq!(inet(&listeners[1]).to_string(), one);
    assert_eq!(inet(&listeners[2]).to_string(), other);
    assert_eq!(get(&listeners[2], SocketOption::NoDelay).unwrap(), Value::Number(1));
    assert_eq!(get(&listeners[2], SocketOption::NonBlocking).unwrap(), Value::Number(0));
    assert_eq!(backlog(&listeners[2]).unwrap(), 6);
    TcpListener::from(workers_copy(&listeners[2])).accept().unwrap();
    drop(queued);

    let again = sockets.prepare(&wanted).unwrap().listeners;
    assert!(listeners.iter().zip(&again).all(|(one, other)| Rc::ptr_eq(one, other)));
    drop((listeners, again));
    assert_eq!(files(&folder), ["web.sock"], "the path is its activator's, the spare name ours");
}

#[test]
fn an_inherited_descriptor_that_matches_nothing_is_named() {
    let address = own_address();
    let inherited = vec![handed("admin", TcpListener::bind(&address).unwrap())];
    let mut sockets = Sockets::new(inherited);
    let (message, hint) = refused(&mut sockets, &[tcp("127.0.0.1:0")]);
    assert_eq!(
        message,
        format!("inherited descriptor `admin` ({address}, stream) matches no socket of the service file")
    );
    assert!(hint.contains("[[socket]]"), "{hint}");
    assert!(sockets.listeners().is_empty());
    let listener = one(&mut sockets, &tcp(&address));
    assert!(listener.is_inherited(), "a refusal leaves it to the next file");

    let udp = UdpSocket::bind(&address).unwrap();
    let (message, _) = refused(&mut Sockets::new(vec![handed("http", udp)]), &[tcp(&address)]);
    assert_eq!(
        message,
        format!(
            "inherited descriptor `http` is {address}, datagram, but the service file's socket `http` is {address}, \
             stream"
        )
    );

    let file = std::fs::File::open("/dev/null").unwrap();
    let (message, _) = refused(&mut Sockets::new(vec![handed("log", file)]), &[]);
    assert!(message.contains("`log` (Socket operation on non-socket"), "{message}");
}

#[test]
fn a_refused_file_leaves_an_inherited_socket_as_its_activator_made_it() {
    let address = own_address();
    let listener = TcpListener::bind(&address).unwrap();
    let mut sockets = Sockets::new(vec![handed("http", listener.try_clone().unwrap())]);
    let before = backlog(&listener).unwrap();
    let wanted = with(tcp(&address), |o| {
        o.no_delay = Some(true);
        o.tcp_congestion = Some("nonesuch".into());
        o.backlog = Some(2);
    });
    refused(&mut sockets, &[wanted]);
    assert_eq!(get(&listener, SocketOption::NoDelay).unwrap(), Value::Number(0));
    assert_eq!(backlog(&listener).unwrap(), before);
}

#[test]
fn what_an_inherited_socket_cannot_become_is_a_warning() {
    let address = own_address();
    let mut sockets = Sockets::new(vec![handed("http", TcpListener::bind(&address).unwrap())]);
    let wanted = [with(tcp(&address), |o| o.reuse_port = true)];
    let prepared = sockets.prepare(&wanted).unwrap();
    let expected = format!("socket `http` ({address}): it was inherited, so `reuse_port` stays as it is");
    assert_eq!(prepared.warnings, [expected]);
    assert!(sockets.prepare(&wanted).unwrap().warnings.is_empty());
}
