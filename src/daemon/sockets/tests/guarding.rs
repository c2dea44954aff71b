//! What workers do to a shared socket is noticed and made good.

use super::*;

/// What the manager's loop would see of a listener: events of an epoll that asks for EPOLLRDHUP alone.
fn events(listener: &Listener) -> impl Fn() -> EpollFlags + use<> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLRDHUP, 0)).unwrap();
    move || {
        let mut events = [EpollEvent::empty()];
        let count = epoll.wait(&mut events, EpollTimeout::ZERO).unwrap();
        if count == 0 { EpollFlags::empty() } else { events[0].events() }
    }
}

/// What the manager's loop would see of the watch on paths.
fn is_told(sockets: &Sockets) -> bool {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    epoll.add(sockets.watch().unwrap(), EpollEvent::new(EpollFlags::EPOLLIN, 0)).unwrap();
    epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::ZERO).unwrap() == 1
}

fn shut_down(listener: &Listener) {
    // Any stream of the standard library calls shutdown(2) on whatever descriptor it has.
    TcpStream::from(workers_copy(listener)).shutdown(Shutdown::Read).unwrap();
}

#[test]
fn a_tcp_socket_that_was_shut_down_tells_so_and_listens_again() {
    let mut sockets = sockets();
    let listener = one(&mut sockets, &tcp(&own_address()));
    let events = events(&listener);
    let _queued = TcpStream::connect(inet(&listener)).unwrap();
    assert_eq!(events(), EpollFlags::empty(), "a connection wakes nobody");
    assert!(sockets.hurts().is_empty());

    shut_down(&listener);
    assert!(events().contains(EpollFlags::EPOLLHUP));
    TcpStream::connect(inet(&listener)).unwrap_err();
    assert_eq!(listener.inspect(), [Hurt::ShutDown]);
    for _ in 0..2 {
        listener.repair(&Hurt::ShutDown).unwrap();
        assert_eq!(events(), EpollFlags::empty());
        assert!(listener.inspect().is_empty());
        serves_tcp(&listener);
    }
}

#[test]
fn a_unix_socket_that_was_shut_down_tells_so_and_is_replaced() {
    let (_folder, path) = folder();
    for kind in [SocketKind::Stream, SocketKind::Seqpacket, SocketKind::Datagram] {
        let mut sockets = sockets();
        let plan = unix(&path, kind);
        let dead = one(&mut sockets, &plan);
        let events = events(&dead);
        if kind == SocketKind::Stream {
            serves_unix(&dead, &path);
        }
        assert_eq!(events(), EpollFlags::empty(), "a connection wakes nobody");
        shut_down(&dead);
        assert!(events().contains(EpollFlags::EPOLLRDHUP));
        assert_eq!(dead.inspect(), [Hurt::ShutDownForGood]);
        assert!(Hurt::ShutDownForGood.needs_replacement());
        assert_eq!(dead.repair(&Hurt::ShutDownForGood).unwrap_err().kind(), io::ErrorKind::Unsupported);

        let replaced = sockets.replace(&dead).unwrap();
        assert_eq!(replaced.warnings, [""; 0]);
        let new = Rc::clone(&replaced.listeners[0]);
        drop((dead, replaced));
        assert!(sockets.hurts().is_empty());
        assert!(path.exists(), "the dead one did not take the path with it");
        assert!(path.with_file_name(".web.sock.liveswap").exists());
        if kind == SocketKind::Stream {
            serves_unix(&new, &path);
        }
        assert!(Rc::ptr_eq(&new, &one(&mut sockets, &plan)), "the next generation gets the new one");
    }
}

#[test]
fn a_backlog_that_shrank_grows_again_and_one_that_was_raised_stays() {
    let (_folder, path) = folder();
    let mut sockets = sockets();
    let wanted = [
        tcp("127.0.0.1:0"),
        unix(&path, SocketKind::Stream),
        unix(&path.with_extension("seq"), SocketKind::Seqpacket),
    ];
    let wanted = wanted.map(|plan| with(plan, |o| o.backlog = Some(50)));
    for listener in sockets.prepare(&wanted).unwrap().listeners {
        let copy = workers_copy(&listener);
        listen(&copy, 1).unwrap();
        assert_eq!(listener.inspect(), [Hurt::BacklogShrunk { from: 50, to: 1 }]);
        for hurt in listener.inspect() {
            listener.repair(&hurt).unwrap();
        }
        assert_eq!(backlog(&listener).unwrap(), 50);
        listen(&copy, 60).unwrap();
        assert!(listener.inspect().is_empty());
        listener.repair(&Hurt::BacklogShrunk { from: 50, to: 1 }).unwrap();
        assert_eq!(backlog(&listener).unwrap(), 60);
    }
}

#[test]
fn a_path_that_was_removed_or_replaced_tells_so_and_comes_back() {
    let (_folder, path) = folder();
    let mut sockets = sockets();
    let listener = one(&mut sockets, &unix(&path, SocketKind::Stream));
    sockets.drain_watch().unwrap();
    let is_told = || is_told(&sockets);
    let unlink = || std::fs::remove_file(&path).unwrap();
    let replace = || {
        unlink();
        drop(UnixListener::bind(&path).unwrap());
    };
    let hurts: [(&dyn Fn(), Hurt); 2] = [(&unlink, Hurt::PathGone), (&replace, Hurt::PathReplaced)];
    for (hurt_it, hurt) in hurts {
        serves_unix(&listener, &path);
        assert!(!is_told(), "a connection wakes nobody");
        hurt_it();
        assert!(is_told());
        sockets.drain_watch().unwrap();
        assert!(!is_told());
        assert_eq!(sockets.hurts().into_iter().map(|(_, hurt)| hurt).collect::<Vec<_>>(), [hurt]);
        for _ in 0..2 {
            listener.repair(&hurt).unwrap();
            serves_unix(&listener, &path);
        }
        assert!(listener.inspect().is_empty());
        sockets.drain_watch().unwrap();
    }
}

#[test]
fn a_path_whose_folder_was_removed_is_lost_and_the_socket_replaced() {
    let (folder, _) = folder();
    let path = folder.path().join("run/web.sock");
    let mut sockets = sockets();
    let lost = one(&mut sockets, &unix(&path, SocketKind::Stream));
    sockets.drain_watch().unwrap();
    std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    assert!(is_told(&sockets));
    assert_eq!(lost.inspect(), [Hurt::PathLost]);
    let new = sockets.replace(&lost).unwrap().listeners.remove(0);
    serves_unix(&new, &path);
}

#[test]
fn a_dead_socket_that_was_inherited_is_left_to_its_activator() {
    let (_folder, path) = folder();
    let mut sockets = Sockets::new(vec![handed("unix", UnixListener::bind(&path).unwrap())]);
    let listener = one(&mut sockets, &unix(&path, SocketKind::Stream));
    std::fs::remove_file(&path).unwrap();
    listener.repair(&Hurt::PathGone).unwrap();
    serves_unix(&listener, &path);
    shut_down(&listener);
    let again = unix(&path, SocketKind::Stream);
    for error in [sockets.replace(&listener).unwrap_err(), sockets.prepare(&[again]).unwrap_err()] {
        assert!(error.to_string().contains("only its activator can bind it anew"), "{error}");
    }
    assert!(path.exists());
}

/// What a client of a datagram socket has as an answer from it.
fn serves_udp(listener: &Listener) {
    let served = UdpSocket::from(workers_copy(listener));
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.send_to(b"?", inet(listener)).unwrap();
    served.set_nonblocking(true).unwrap();
    let (length, from) = served.recv_from(&mut [0; 8]).expect("the datagram has come to it");
    assert_eq!((length, from), (1, client.local_addr().unwrap()));
}

#[test]
fn a_datagram_socket_of_ip_that_was_shut_down_is_bound_anew_while_workers_have_it() {
    let mut sockets = sockets();
    for address in [own_address(), "127.0.0.1:0".to_owned()] {
        let dead = one(&mut sockets, &plan("dns", &address, SocketKind::Datagram, SocketOptions::default()));
        let at = inet(&dead);
        let workers = workers_copy(&dead);
        serves_udp(&dead);
        // The call fails, and yet it does its harm.
        TcpStream::from(workers_copy(&dead)).shutdown(Shutdown::Read).unwrap_err();
        assert_eq!(dead.inspect(), [Hurt::ShutDownForGood]);
        let new = sockets.replace(&dead).unwrap().listeners.remove(0);
        drop(dead);
        assert_eq!(inet(&new), at);
        assert!(new.inspect().is_empty());
        serves_udp(&new);
        UdpSocket::bind(at).expect_err("nobody else gets the address");
        drop(workers);
        serves_udp(&new);
    }
}

#[test]
fn a_datagram_socket_that_was_connected_or_has_lost_its_address_hears_everybody_again() {
    let (_folder, path) = folder();
    let mut sockets = sockets();
    for address in reachable(["127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"]) {
        let listener =
            one(&mut sockets, &plan("dns", address, SocketKind::Datagram, SocketOptions::default()));
        let (at, workers) = (inet(&listener), UdpSocket::from(workers_copy(&listener)));
        let nowhere = SocketAddr::new(at.ip(), 9);
        for is_disconnected in [true, false] {
            workers.connect(nowhere).unwrap();
            assert!(listener.inspect().contains(&Hurt::Connected), "{address}");
            if is_disconnected {
                // As a worker that knows better: the port that the kernel chose has gone.
                disconnect(&workers).unwrap();
                assert_eq!(listener.inspect(), [Hurt::Moved], "{address}");
            }
            for hurt in listener.inspect() {
                listener.repair(&hurt).unwrap();
            }
            assert!(listener.inspect().is_empty(), "{address}");
            assert_eq!(inet(&listener), at);
        }
        if address == "127.0.0.1:0" {
            serves_udp(&listener);
        }
    }
    let listener = one(&mut sockets, &unix(&path, SocketKind::Datagram));
    let other = UnixDatagram::bind(path.with_extension("other")).unwrap();
    UnixDatagram::from(workers_copy(&listener)).connect(path.with_extension("other")).unwrap();
    assert_eq!(listener.inspect(), [Hurt::Connected]);
    listener.repair(&Hurt::Connected).unwrap();
    assert!(listener.inspect().is_empty());
    other.send_to(b"?", &path).unwrap();
}

#[test]
fn a_filter_that_is_locked_costs_the_socket_and_not_the_address() {
    let (_folder, path) = folder();
    let plans = [
        tcp("127.0.0.1:0"),
        plan("dns", &own_address(), SocketKind::Datagram, SocketOptions::default()),
        unix(&path, SocketKind::Datagram),
    ];
    for plan in plans {
        let mut sockets = sockets();
        let mut listener = one(&mut sockets, &plan);
        let (at, workers) = (local_address(&listener).unwrap(), workers_copy(&listener));
        for times in 0..3 {
            attach_filter(&listener.fd, true);
            let [hurt @ Hurt::Option(_)] = listener.inspect()[..] else { panic!("{:?}", listener.inspect()) };
            assert_eq!(hurt.to_string(), "a filter was attached to it");
            assert!(listener.may_repair(&hurt), "{times}");
            assert_eq!(listener.repair(&hurt).unwrap_err().raw_os_error(), Some(libc::EPERM));
            listener = sockets.replace(&listener).unwrap().listeners.remove(0);
            assert!(listener.inspect().is_empty());
            assert_eq!(local_address(&listener).unwrap(), at);
        }
        if plan.spec.kind == SocketKind::Stream {
            serves_tcp(&listener);
        }
        drop(workers);
    }
}

#[test]
fn a_listener_that_became_a_connection_is_bound_anew_and_closing_it_waits_for_nothing() {
    let mut sockets = sockets();
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = one(&mut sockets, &tcp("127.0.0.1:0"));
    let at = inet(&taken);
    let workers = TcpStream::from(workers_copy(&taken));
    disconnect(&workers).unwrap();
    let is_connected = connect(&workers, elsewhere.local_addr().unwrap());
    // What is not taken over there, close(2) would wait for.
    linger(&workers, 600);
    workers.set_nonblocking(true).unwrap();
    while (&workers).write(&[0; 4096]).is_ok() {}
    assert_eq!(taken.inspect()[0], Hurt::ShutDown);
    // What is no connection can listen again, but is given up here all the same.
    assert_eq!(taken.repair(&Hurt::ShutDown).is_err(), is_connected);
    let new = sockets.replace(&taken).unwrap().listeners.remove(0);
    assert_eq!(inet(&new), at);
    serves_tcp(&new);
    drop(workers);
    drop(taken);
}

#[test]
fn keys_of_tcp_are_removed() {
    if !nix::unistd::geteuid().is_root() {
        crate::skipped::add("only root can see the keys");
        return;
    }
    let mut sockets = sockets();
    let listener = one(&mut sockets, &tcp("127.0.0.1:0"));
    let (copy, peer) = (workers_copy(&listener), inet(&listener));
    as_another_user(|| set_key(&copy, peer));
    assert_eq!(listener.inspect(), [Hurt::Keys]);
    listener.repair(&Hurt::Keys).unwrap();
    assert!(listener.inspect().is_empty());
    serves_tcp(&listener);
}

#[test]
fn what_is_done_again_and_again_is_left_alone_until_the_next_upgrade() {
    let mut sockets = sockets();
    let listener =
        one(&mut sockets, &plan("dns", &own_address(), SocketKind::Datagram, SocketOptions::default()));
    let workers = UdpSocket::from(workers_copy(&listener));
    let mut repairs = 0;
    loop {
        workers.connect("127.0.0.1:9").unwrap();
        if !listener.may_repair(&Hurt::Connected) {
            break;
        }
        repairs += 1;
        listener.repair(&Hurt::Connected).unwrap();
    }
    assert_eq!(repairs, 3);
    listener.repair(&Hurt::Connected).unwrap();
    listener.forget_repairs();
    assert!(listener.may_repair(&Hurt::Connected));
    let mut tunings = 0;
    loop {
        set(&workers, SocketOption::Broadcast, &Value::from(true)).unwrap();
        match listener.put_back_tuning()[..] {
            [("SO_BROADCAST", Ok(()))] => tunings += 1,
            [] => break,
            _ => panic!("something else was put back"),
        }
    }
    assert_eq!(tunings, 3);
    // An option of our own is no quarrel.
    let own = plan("dns", "127.0.0.1:9", SocketKind::Datagram, SocketOptions::default());
    listener.accept_tuning();
    listener.change(&with(own, |o| o.ip_ttl = Some(9))).unwrap();
    assert_eq!(listener.put_back_tuning().len(), 0);
    assert!(listener.inspect().is_empty());
    set(&workers, SocketOption::IpTtl, &Value::Number(1)).unwrap();
    assert_eq!(listener.inspect().len(), 1, "the file has it otherwise");
}
