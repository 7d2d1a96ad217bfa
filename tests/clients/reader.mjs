// Reads an event stream with `eventsource`, and prints the result of each envelope as a line of JSON.
//
// Arguments: the URL and the service key. Ends with the event `end`.

import { EventSource } from 'eventsource'

const [url, key] = process.argv.slice(2)
const authorized = (input, init) =>
  fetch(input, { ...init, headers: { ...init.headers, authorization: `Bearer ${key}` } })
const source = new EventSource(url, { fetch: authorized })
source.addEventListener('message', (event) => {
  process.stdout.write(`${JSON.stringify(JSON.parse(event.data).result)}\n`)
})
source.addEventListener('end', () => source.close())
source.addEventListener('error', (event) => process.stderr.write(`${event.code} ${event.message}\n`))
