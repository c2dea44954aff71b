// Prints what is served, once, or as soon as something is.
const patient = process.argv[2] === 'until-it-serves'

function get() {
  require('http').get('http://127.0.0.1:1337/', response => {
    response.on('data', body => process.stdout.write(`${response.statusCode} ${body}`))
  }).on('error', error => {
    if (!patient) throw error
    setTimeout(get, 20)
  })
}

get()
