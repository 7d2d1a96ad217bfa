// Fastify as a gateway in front of several instances of callback-ingress, and as a load balancer for the platform.
// docs/gateways.md lists the requirements and the matching settings of the service.
//
// INSTANCES           public listeners, separated by commas: http://10.0.0.1:8080,http://10.0.0.2:8080
// PLATFORM_INSTANCES  platform listeners of the same instances; empty: no listener for the platform
// HOST, PORT          address for providers
// PLATFORM_HOST, PLATFORM_PORT   address for the platform, on its private network

import { randomUUID } from 'node:crypto'
import { STATUS_CODES } from 'node:http'
import Fastify from 'fastify'
import { Pool } from 'undici'

const {
  INSTANCES = 'http://127.0.0.1:8080,http://127.0.0.1:8082',
  PLATFORM_INSTANCES = '',
  HOST = '0.0.0.0',
  PORT = '8000',
  PLATFORM_HOST = '127.0.0.1',
  PLATFORM_PORT = '8001'
} = process.env

// Equal to http.max_body_bytes, http.head_timeout_ms, and http.head_timeout_ms + http.body_timeout_ms.
const MAX_BODY_BYTES = 1_048_576
const HEAD_TIMEOUT_MS = 10_000
const REQUEST_TIMEOUT_MS = 20_000

const POOL = {
  connections: 64,
  connect: { timeout: 1_000 },
  headersTimeout: 10_000,
  // Without events, the service sends a comment every 15 seconds.
  bodyTimeout: 60_000,
  // Shorter than http.keep_alive_timeout_ms, so that the gateway closes idle connections first.
  keepAliveTimeout: 60_000
}

// These headers are for one connection only. Node responds to Expect, and undici sets Content-Length.
const HOP_BY_HOP = [
  'connection', 'keep-alive', 'proxy-authenticate', 'proxy-authorization', 'proxy-connection', 'te', 'trailer',
  'transfer-encoding', 'upgrade', 'expect', 'content-length'
]

function endToEnd (headers) {
  const named = String(headers.connection ?? '').toLowerCase().split(',').map((name) => name.trim())
  const isPassed = ([name]) => !HOP_BY_HOP.includes(name) && !named.includes(name)
  return Object.fromEntries(Object.entries(headers).filter(isPassed))
}

// A refusal in the format of the service.
function refuse (request, reply, status, code, message) {
  const retryable = status >= 500
  reply.code(status).header('x-request-id', request.id)
  reply.header(...(retryable ? ['retry-after', '1'] : ['webhook-delivery', 'abort-message']))
  return reply.send({ error: { code, message, requestId: request.id, retryable } })
}

// `prefix`: only paths with this prefix, and /health, are forwarded. `mayRepeat`: whether a request may be sent to a
// second instance if the first may have received it.
function gateway (prefix, origins, { mayRepeat, keepsRequestId }) {
  const instances = origins.split(',').map((origin) => new Pool(origin, POOL))
  let turn = 0

  const app = Fastify({
    bodyLimit: MAX_BODY_BYTES,
    requestTimeout: REQUEST_TIMEOUT_MS,
    http: { headersTimeout: HEAD_TIMEOUT_MS },
    genReqId: () => randomUUID(),
    requestIdHeader: keepsRequestId ? 'x-request-id' : false,
    disableRequestLogging: true,
    logger: {
      serializers: {
        // The route instead of the URL: a token can be in the path or the query.
        req: (request) => ({ method: request.method, route: request.routeOptions.url, client: request.ip }),
        // The message of an error can contain the path.
        err: (error) => ({ type: error.name, code: error.code })
      }
    }
  })

  app.addHook('onResponse', async (request, reply) => {
    request.log.info({ req: request, res: reply, responseTime: reply.elapsedTime }, 'request completed')
  })

  // Passes bodies on unchanged. A retry needs the whole body.
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('*', { parseAs: 'buffer' }, (_request, body, done) => done(null, body))

  // Sends the request to one instance. Retries with the others after a failed connection, a timeout or 503.
  async function ask (request) {
    const first = turn++
    for (let tries = 1; ; tries++) {
      const instance = instances[(first + tries) % instances.length]
      const isLast = tries >= instances.length
      try {
        const response = await instance.request({
          method: request.method,
          path: request.raw.url,
          headers: { ...endToEnd(request.headers), 'x-request-id': request.id, 'x-forwarded-for': request.ip },
          body: request.body?.length > 0 ? request.body : null
        })
        if (response.statusCode !== 503 || isLast || !mayRepeat(request)) return response
        await response.body.dump()
      } catch (error) {
        request.log.warn({ code: error.code, tries }, 'the instance did not respond')
        // Without a connection, the request was not sent.
        const isUnsent = error.code === 'ECONNREFUSED' || error.code === 'UND_ERR_CONNECT_TIMEOUT'
        if (isLast || !(isUnsent || mayRepeat(request))) throw error
      }
    }
  }

  async function forward (request, reply) {
    let response
    try {
      response = await ask(request)
    } catch {
      return refuse(request, reply, 502, 'GATEWAY_UNAVAILABLE', 'no instance responded; retry the request')
    }
    return reply.code(response.statusCode).headers(endToEnd(response.headers)).send(response.body)
  }

  app.all(`${prefix}*`, forward)
  app.get('/health', forward)
  // All other paths. Fastify's own handler would log the path.
  app.setNotFoundHandler((request, reply) => refuse(request, reply, 404, 'NOT_FOUND', 'there is no such path'))
  app.setErrorHandler((error, request, reply) => {
    if (error.code === 'FST_ERR_CTP_BODY_TOO_LARGE') {
      return refuse(request, reply, 413, 'BODY_TOO_LARGE', `the body is larger than ${MAX_BODY_BYTES} bytes`)
    }
    request.log.warn({ err: error }, 'the request was refused')
    const status = error.statusCode ?? 500
    return refuse(request, reply, status, 'GATEWAY_REFUSED', STATUS_CODES[status])
  })
  return app
}

const providers = gateway('/api/v1/webhooks/', INSTANCES, {
  // A callback that arrives twice is accepted once.
  mayRepeat: () => true,
  keepsRequestId: false
})
await providers.listen({ host: HOST, port: Number(PORT) })
const apps = [providers]

if (PLATFORM_INSTANCES) {
  const platform = gateway('/platform/v1/', PLATFORM_INSTANCES, {
    // Without an Idempotency-Key, a retry would issue the work twice.
    mayRepeat: (request) => request.method !== 'POST' || 'idempotency-key' in request.headers,
    keepsRequestId: true
  })
  await platform.listen({ host: PLATFORM_HOST, port: Number(PLATFORM_PORT) })
  apps.push(platform)
}

for (const signal of ['SIGTERM', 'SIGINT']) {
  process.once(signal, () => Promise.all(apps.map((app) => app.close())))
}
