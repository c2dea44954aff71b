// What Node programs load first: a worker lets nobody down when it is told to go, and shares what it has for itself alone with its
// successor.
'use strict'
const cluster = require('cluster')

// Node's servers close connections that are idle at the moment of a disconnect, and keep one that is not for as long as its client
// likes to ask. So whatever is still asked is answered with `Connection: close`.
function partWithBusyConnections() {
  process.on('internalMessage', message => {
    if (message.cmd !== 'NODE_CLUSTER' || message.act !== 'disconnect') return
    const requests = require('diagnostics_channel').channel('http.server.request.start')
    requests.subscribe(({ response }) => { response.shouldKeepAlive = false })
  })
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
  partWithBusyConnections()
  askForExclusiveSockets()
}
