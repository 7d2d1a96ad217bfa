'use strict'

// Fastify as a gateway with its default settings. Arguments: those of gateway.js.

const { writeFileSync } = require('node:fs')
const { join } = require('node:path')
const fastify = require('fastify')
const proxy = require('@fastify/http-proxy')

const [port, upstream, directory] = process.argv.slice(2)

const gateway = fastify()
gateway.register(proxy, { upstream: `http://${upstream}` })
gateway.listen({ port: Number(port) }).then(
  () => writeFileSync(join(directory, 'ready'), `${process.pid}\n`),
  (error) => {
    console.error(error)
    process.exit(1)
  }
)
