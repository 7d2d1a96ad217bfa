'use strict'

// Fastify as a gateway that keeps its connections to the service open.
// Arguments: its port, the service's address, and the directory that it writes to.

const { randomUUID } = require('node:crypto')
const { appendFileSync, writeFileSync } = require('node:fs')
const { join } = require('node:path')
const fastify = require('fastify')
const proxy = require('@fastify/http-proxy')

const [port, upstream, directory] = process.argv.slice(2)

// What it forwards, and again with what the service answered and the id in that answer.
function record (request, status, answered) {
  const line = `${request.id} ${status} ${answered} ${request.method} ${request.raw.url}\n`
  appendFileSync(join(directory, 'forwarded.log'), line)
}

const gateway = fastify({
  genReqId: () => randomUUID(),
  requestIdHeader: false,
  // Short, so that a test does not wait for what never comes.
  keepAliveTimeout: 1000,
  requestTimeout: 1000,
  http: { headersTimeout: 1000, connectionsCheckingInterval: 200 }
})

gateway.register(proxy, {
  upstream: `http://${upstream}`,
  undici: { connections: 8, pipelining: 1, keepAliveTimeout: 1000 },
  replyOptions: {
    retryDelay: () => null,
    rewriteRequestHeaders (request, headers) {
      record(request, '-', '-')
      // Node has answered an expectation already, and its client supports none.
      const { expect, ...others } = headers
      return { ...others, 'x-request-id': request.id }
    },
    onResponse (request, reply, response) {
      record(request, response.statusCode, response.headers['x-request-id'] ?? '-')
      reply.send(response.stream)
    }
  }
})

gateway.listen({ port: Number(port), host: '127.0.0.1', backlog: 1024 }).then(
  () => writeFileSync(join(directory, 'ready'), `${process.pid}\n`),
  (error) => {
    console.error(error)
    process.exit(1)
  }
)
