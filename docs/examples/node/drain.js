// Has a worker that was told to leave answer whatever it is still asked with `Connection: close`: Node's own servers keep
// a connection that was not idle at that moment for as long as its client likes.
process.on('internalMessage', (message) => {
  if (message.cmd !== 'NODE_CLUSTER' || message.act !== 'disconnect') return
  const requests = require('diagnostics_channel')
  requests.subscribe('http.server.request.start', ({ response }) => { response.shouldKeepAlive = false })
})
