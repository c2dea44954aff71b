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

#[test]
fn a_datagram_socket_of_ip_that_was_shut_down_cannot_be_had_twice() {
    let mut sockets = sockets();
    let address = own_address();
    let dead = one(&mut sockets, &plan("dns", &address, SocketKind::Datagram, SocketOptions::default()));
    // The call fails, and yet it does its harm.
    TcpStream::from(workers_copy(&dead)).shutdown(Shutdown::Read).unwrap_err();
    assert_eq!(dead.inspect(), [Hurt::ShutDownForGood]);
    let again = plan("dns", &address, SocketKind::Datagram, SocketOptions::default());
    for error in [sockets.replace(&dead).unwrap_err(), sockets.prepare(&[again]).unwrap_err()] {
        assert!(error.to_string().contains("a worker shut it down"), "{error}");
        assert_eq!(error.hint().unwrap(), "stop the service and start it again");
    }
}
