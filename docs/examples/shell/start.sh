#!/bin/sh
# Prepares things, then becomes the server.
set -eu

# Whatever has to be in place before the server starts; each generation has a folder of its own.
mkdir -p "state/$LIVESWAP_GENERATION"

# `exec`: the server takes this shell's place and its pid. So LISTEN_PID is right, and the signal to drain reaches the
# server and not a shell that knows nothing of it. The sockets, from descriptor 3 up, and NOTIFY_SOCKET come along.
exec python3 ../python/worker.py
