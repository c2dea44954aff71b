// A web server that liveswap can swap under load; Node's own modules alone.
//
// It takes its socket from the manager, shows that it is ready, and on SIGTERM stops accepting, finishes what it has
// and exits 0.
'use strict';

const http = require('node:http');
const net = require('node:net');

// How long idle connections stay open in a drain, for clients that are about to use them again.
const LINGER_MS = 1000 * (process.env.LINGER || 1);

if ((process.env.LISTEN_PID || String(process.pid)) !== String(process.pid)) {
  throw new Error('LISTEN_PID names another process: does a wrapper lack its `exec`?');
}
if (process.env.LISTEN_FDS !== '1') {
  throw new Error('one socket was expected; start this by `liveswap run service.toml`');
}

let draining = false;

const server = http.createServer((request, response) => {
  if (draining) {
    response.setHeader('Connection', 'close'); // the client is told to go elsewhere next
  }
  const { LIVESWAP_GENERATION: generation, LIVESWAP_SLOT: slot } = process.env;
  response.end(`generation ${generation} slot ${slot} pid ${process.pid}\n`);
});

process.on('SIGTERM', () => {
  draining = true;
  // http's own close() would close idle connections at once, and a client that is just sending on one would be reset.
  // The one beneath it only stops accepting: what waits in the queue is for the other workers.
  net.Server.prototype.close.call(server);
  setTimeout(() => server.closeIdleConnections(), LINGER_MS).unref();
  // The process ends by itself with its last connection.
});

// The manager's socket is descriptor 3 (sd_listen_fds(3)). Node calls listen() on it once more, with a backlog of 511
// unless one is given, and that changes it for all who share the socket.
server.listen({ fd: 3 }, 4096, () => {
  // Node cannot send a datagram to NOTIFY_SOCKET, so readiness is shown in the process's name, where the probe of the
  // service file finds it.
  process.title = 'web-ready';
});
