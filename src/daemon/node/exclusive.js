// Has a program ask for the sockets that it wants for itself alone too: they belong to its slot, and outlive the process.
'use strict'
const cluster = require('cluster')
if (cluster.isWorker) {
  const alone = Symbol('exclusive')
  const noted = (prototype, name) => {
    const original = prototype[name]
    prototype[name] = function (...words) {
      if (words[0] && words[0].exclusive === true) {
        this[alone] = true
        words[0] = { ...words[0], exclusive: false }
      }
      return original.apply(this, words)
    }
  }
  noted(require('net').Server.prototype, 'listen')
  noted(require('dgram').Socket.prototype, 'bind')
  const ask = cluster._getServer
  cluster._getServer = function (server, options, callback) {
    return ask.call(this, server, server[alone] ? { ...options, exclusive: true } : options, callback)
  }
}
