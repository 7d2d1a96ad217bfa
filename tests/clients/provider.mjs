// A provider that posts results with one of Node's HTTP clients, and retries as docs/providers.md says.
//
// The argument is fetch, axios or undici. Input and output are those of provider.py.

import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import axios from 'axios'
import { request } from 'undici'

const RETRYABLE = new Set([408, 429, 500, 502, 503, 504])
const TIMEOUT = 10_000

const clients = {
  async fetch (url, headers, body) {
    const reply = await fetch(url, { method: 'POST', headers, body, signal: AbortSignal.timeout(TIMEOUT) })
    return { status: reply.status, retryAfter: reply.headers.get('retry-after'), text: await reply.text() }
  },
  async axios (url, headers, body) {
    // By default it throws for each status that is not 2xx.
    const reply = await axios.post(url, body, { headers, timeout: TIMEOUT }).catch((error) => {
      if (!error.response) throw error
      return error.response
    })
    return { status: reply.status, retryAfter: reply.headers['retry-after'], text: JSON.stringify(reply.data) }
  },
  async undici (url, headers, body) {
    const options = { method: 'POST', headers, body, headersTimeout: TIMEOUT, bodyTimeout: TIMEOUT }
    const reply = await request(url, options)
    return { status: reply.statusCode, retryAfter: reply.headers['retry-after'], text: await reply.body.text() }
  }
}
const send = clients[process.argv[2]]

async function postUntil (deadline, ...callback) {
  for (let delay = 250; ; delay = Math.min(2 * delay, 8_000)) {
    const reply = await send(...callback).catch((error) => ({ status: 0, text: String(error) }))
    if (reply.status > 0 && !RETRYABLE.has(reply.status)) return reply
    const wait = Math.max(delay * (0.75 + Math.random() / 2), 1_000 * (reply.retryAfter ?? 0))
    const left = Date.parse(deadline) - Date.now() - 250
    if (left <= 0) return reply
    await sleep(Math.min(wait, left))
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const [url, token, deadline, body] = line.split('|')
  const headers = { 'content-type': 'application/json', 'x-callback-token': token }
  const reply = await postUntil(deadline, url, headers, body)
  process.stdout.write(`${reply.status}|${reply.text.replaceAll('\n', ' ')}\n`)
}
