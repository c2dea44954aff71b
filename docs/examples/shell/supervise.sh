#!/bin/sh
# For a wrapper that has something to do after the server, and so cannot `exec`.
set -u

# A shell gives a background command /dev/null as standard input, and keeps descriptors from 3 up for it.
python3 ../python/worker.py &
server=$!

# The signal to drain goes to this shell, the main process; it is up to us to pass it on.
trap 'kill -TERM "$server"' TERM

# A signal ends `wait` as well as the server does; the server has ended once it is no more.
status=0
while kill -0 "$server" 2>/dev/null; do
    wait "$server"
    status=$?
done

echo "generation $LIVESWAP_GENERATION, slot $LIVESWAP_SLOT: the server ended with status $status" >&2
exit "$status"
