"""A server whose connections outlive it: what is open in an upgrade is handed over, with what is known of it.

Each line that a client sends is answered with who answers, and how many lines this connection has sent. A worker leaves one
end of a pair of sockets in its slot's store (sd_pid_notify_with_fds(3)); the worker after it inherits that end, and is sent
every connection through it when this one is told to drain.
"""

import json
import os
import select
import signal
import socket

RELAY = "relay"


def inherited():
    """Returns what the manager passed, by name (sd_listen_fds_with_names(3))."""
    names = os.environ["LISTEN_FDNAMES"].split(":")
    return {name: socket.socket(fileno=3 + place) for place, name in enumerate(names)}


def notify(message, *descriptors):
    """Tells the manager something, perhaps with descriptors (sd_notify(3))."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(os.environ["NOTIFY_SOCKET"])
        socket.send_fds(sender, [message.encode()], [descriptor.fileno() for descriptor in descriptors])


def leave_relay():
    """Puts an end of a new pair in store, in place of what was there, and returns the other."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    notify(f"FDSTOREREMOVE=1\nFDNAME={RELAY}")
    # Kept beyond our own end: what was sent into it is yet to be read then.
    notify(f"FDSTORE=1\nFDNAME={RELAY}\nFDPOLL=0", theirs)
    theirs.close()
    return ours


class Talk:
    """A connection, and what is known of it."""

    def __init__(self, connection, lines=0, rest=""):
        self.connection, self.lines, self.rest = connection, lines, rest

    def hear(self):
        """Answers what has come; returns whether more may come."""
        data = self.connection.recv(4096)
        *lines, self.rest = (self.rest + data.decode()).split("\n")
        for _ in lines:
            self.lines += 1
            who = f"generation {os.environ['LIVESWAP_GENERATION']}"
            self.connection.sendall(f"{who}, line {self.lines}\n".encode())
        return bool(data)

    def send(self, relay):
        """Hands it over to the worker that comes after this one."""
        state = json.dumps({"lines": self.lines, "rest": self.rest})
        socket.send_fds(relay, [state.encode()], [self.connection.fileno()])

    @classmethod
    def receive(cls, relay):
        """Takes one over; none where the worker of before has ended."""
        state, descriptors, _, _ = socket.recv_fds(relay, 8192, 1)
        return cls(socket.socket(fileno=descriptors[0]), **json.loads(state)) if descriptors else None


def serve(listener, before):
    """Serves until SIGTERM; returns the relay and what is open then."""
    asked, asker = socket.socketpair()
    asker.setblocking(False)
    signal.set_wakeup_fd(asker.fileno())
    signal.signal(signal.SIGTERM, lambda *_: None)
    # As long as the worker of before may hand over, its relay is the one in store: if this worker fails, the next one inherits it.
    relay = None if before else leave_relay()
    talks = {}
    notify("READY=1")
    while True:
        readable, _, _ = select.select([asked, listener, *filter(None, [before]), *talks], [], [])
        if before in readable:
            if talk := Talk.receive(before):
                talks[talk.connection] = talk
            else:
                before.close()
                before, relay = None, leave_relay()
        elif asked in readable and relay:
            return relay, talks.values()
        elif listener in readable:
            connection, _ = listener.accept()
            talks[connection] = Talk(connection)
        for connection in talks.keys() & set(readable):
            if not talks[connection].hear():
                del talks[connection]
                connection.close()


sockets = inherited()
relay, talks = serve(sockets["lines"], sockets.get(RELAY))
for talk in talks:
    talk.send(relay)
