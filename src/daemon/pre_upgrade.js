// Calls a module that exports `function (data, callback)`, and writes what it calls back to descriptor 3 as a line of JSON.
const [module, target] = process.argv.slice(1)

function callback(error, value) {
  // A line has room for so much.
  const text = String(error ? error.message || error : value).slice(0, 2000)
  const said = error ? { error: text } : value == null ? {} : { value: text }
  require('fs').writeSync(3, JSON.stringify(said) + '\n')
  process.exit(error ? 1 : 0)
}

function call(exported) {
  const hook = typeof exported === 'function' ? exported : exported.default
  hook({ cmd: 'upgrade', value: target, toString: () => target }, callback)
}

process.on('uncaughtException', callback)
try {
  call(require(module))
} catch (error) {
  if (error.code !== 'ERR_REQUIRE_ESM') callback(error)
  import(require('url').pathToFileURL(require.resolve(module))).then(call).catch(callback)
}
