// What Node programs load first: a worker lets nobody down when it is told to go, and shares what it has for itself alone with its
// successor.
'use strict'
const cluster = require('cluster')

// A client that is about to use an idle connection again must not find it closed. From the beginning of a drain each answer says
// `Connection: close`, and idle connections stay open for the linger. Node's own `close()` closes them at once, and keeps a busy one for as
// long as its client sends requests.
function keepIdleConnectionsForTheLinger() {
  // Before the listener of `cluster`, which closes the servers. The answer to a worker that leaves by itself has a linger too.
  process.prependListener('internalMessage', message => {
    if (message.cmd === 'NODE_CLUSTER' && (message.act === 'disconnect' || message.linger >= 0)) drain(message)
  })
  const { worker } = cluster
  const disconnect = worker.disconnect
  worker.disconnect = function (...words) {
    // `cluster` tells the manager when the last connection has ended: that is too late to start a successor.
    if (!lingerAgain && process.connected) process.send({ cmd: 'NODE_CLUSTER', act: 'exitedAfterDisconnect', seq: 0 })
    drain({})
    return disconnect.apply(this, words)
  }
}

let lingerAgain

// Begins a drain, or changes the bounds of the one that has begun. Both are in milliseconds: `linger`, and `timeout` until the drain deadline.
function drain({ linger = 2000, timeout = Infinity }) {
  if (!lingerAgain) lingerAgain = beginDrain()
  // Connections that are still idle are closed in time for the worker to end before its drain deadline.
  lingerAgain(linger, Date.now() + timeout - linger)
}

function beginDrain() {
  const servers = new Map()
  let isOver = false
  let timer, linger, latest
  // A request that has arrived by now is read before this runs: its connection is not idle any more.
  const closeIdle = () => setImmediate(() => {
    isOver = true
    servers.forEach((close, server) => close.call(server))
  })
  const start = () => {
    clearTimeout(timer)
    timer = setTimeout(closeIdle, Math.max(0, Math.min(linger, latest - Date.now())))
    timer.unref()
  }

  const modules = process.versions.openssl ? ['http', 'https'] : ['http']
  for (const { Server } of modules.map(name => require(name))) {
    const close = Server.prototype.closeIdleConnections
    if (!close) continue
    Server.prototype.closeIdleConnections = function () {
      servers.set(this, close)
      if (isOver) close.call(this)
    }
  }
  const { channel } = require('diagnostics_channel')
  channel('http.server.request.start').subscribe(({ response }) => { response.shouldKeepAlive = false })
  // A request that began before the drain may have been answered without `Connection: close`: its client has a linger from then on.
  channel('http.server.response.finish').subscribe(({ response }) => { if (response.shouldKeepAlive) start() })
  return (...bounds) => {
    [linger, latest] = bounds
    start()
  }
}

// With `exclusive: true` a program binds by itself. It asks for such sockets too: they belong to its slot, and outlive the process. Where
// the kernel chooses the port nobody else can want the socket: so it is with those that dgram binds when it sends.
function askForExclusiveSockets() {
  const alone = Symbol('exclusive')
  const note = (prototype, name) => {
    const original = prototype[name]
    prototype[name] = function (...words) {
      if (words[0] && words[0].exclusive === true && +words[0].port) {
        this[alone] = true
        words[0] = { ...words[0], exclusive: false }
      }
      return original.apply(this, words)
    }
  }
  note(require('net').Server.prototype, 'listen')
  note(require('dgram').Socket.prototype, 'bind')
  const ask = cluster._getServer
  cluster._getServer = function (server, options, callback) {
    return ask.call(this, server, server[alone] ? { ...options, exclusive: true } : options, callback)
  }
}

if (cluster.isWorker) {
  keepIdleConnectionsForTheLinger()
  askForExclusiveSockets()
}
