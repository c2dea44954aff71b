"""A web server that liveswap can swap under load; Python's standard library alone.

It takes its socket from the manager, says READY=1, and on SIGTERM stops accepting, finishes what it has and exits 0.
"""

import http.server
import os
import select
import signal
import socket
import threading
import time

# How long idle connections stay open in a drain, for clients that are about to use them again.
LINGER = float(os.environ.get("LINGER", "1"))

draining = threading.Event()
lingered = threading.Event()
idle = set()  # connections on which no request is under way


def inherited_socket():
    """Returns the socket that the manager passed: descriptor 3 (sd_listen_fds(3))."""
    if os.environ.get("LISTEN_PID", str(os.getpid())) != str(os.getpid()):
        raise SystemExit("LISTEN_PID names another process: does a wrapper lack its `exec`?")
    if os.environ.get("LISTEN_FDS") != "1":
        raise SystemExit("one socket was expected; start this by `liveswap run service.toml`")
    # The socket is bound and listens already. A second listen() would change the backlog for all who share it.
    return socket.socket(fileno=3)


def notify(message):
    """Tells the manager something (sd_notify(3)); without a manager it tells nobody."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        if address.startswith("@"):
            address = "\0" + address[1:]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(message.encode(), address)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keep-alive
    wbufsize = -1  # an answer goes out in one piece

    def do_GET(self):
        number = os.environ.get
        body = f"generation {number('LIVESWAP_GENERATION')} slot {number('LIVESWAP_SLOT')} pid {os.getpid()}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        if draining.is_set() or self.close_connection:
            # The client is told to go elsewhere next, and this handler ends after the answer.
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def parse_request(self):
        idle.discard(self.connection)
        return super().parse_request()

    def handle_one_request(self):
        idle.add(self.connection)
        if lingered.is_set():
            self.close_connection = True
        else:
            super().handle_one_request()

    def finish(self):
        idle.discard(self.connection)
        super().finish()

    def log_message(self, *_):
        pass


def converse(connection, address):
    """Serves one connection to its end."""
    with connection:
        try:
            Handler(connection, address, None)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the client went away


def accept_until_asked_to_drain(listener):
    """Accepts connections until SIGTERM; returns the threads that serve those still open.

    A signal alone could arrive between accept() and what is done with its connection. As a byte in a pipe it is seen
    between two connections and never within one.
    """
    asked, asker = socket.socketpair()
    asker.setblocking(False)
    signal.set_wakeup_fd(asker.fileno())
    signal.signal(signal.SIGTERM, lambda *_: None)
    notify("READY=1")
    threads = []
    while True:
        readable, _, _ = select.select([asked, listener], [], [])
        if asked in readable:
            return threads
        try:
            connection, address = listener.accept()
        except BlockingIOError:
            continue  # another worker was faster
        threads = [thread for thread in threads if thread.is_alive()]
        threads.append(threading.Thread(target=converse, args=(connection, address)))
        threads[-1].start()


def drain(threads):
    """Waits for the connections; at the end of the linger those that are idle are told to end."""
    deadline = time.monotonic() + LINGER
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    lingered.set()
    for connection in idle.copy():
        try:
            connection.shutdown(socket.SHUT_RD)
        except OSError:
            pass  # it has just ended
    for thread in threads:
        thread.join()


listener = inherited_socket()
threads = accept_until_asked_to_drain(listener)
draining.set()
listener.close()  # never shutdown(): what waits in the queue is for the other workers
drain(threads)
