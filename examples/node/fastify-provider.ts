// A provider with a language model, in Fastify. The platform posts {"callback": {…}, "prompt": "…"} to /work.
import Fastify from 'fastify'
import { postCallback, type Callback } from './callback.js'

interface Work {
  callback: Callback
  prompt: string
}

// Fastify logs paths but no bodies, so the log does not contain the token.
const app = Fastify({ logger: true })

app.post<{ Body: Work }>('/work', async (request, reply) => {
  const { callback, prompt } = request.body
  reply.code(202).send()
  // Put work that must survive a restart into a queue.
  answer(prompt)
    .catch((error: Error) => ({ error: { code: 'MODEL_FAILED', message: error.message } }))
    .then((result) => postCallback(callback, result))
    .then((receipt) => request.log.info({ receipt }, 'delivered'))
    .catch((error: Error) => request.log.error(error.message))
  return reply
})

async function answer (prompt: string): Promise<{ content: string, model: string }> {
  if (!prompt) throw new Error('the prompt is empty')
  return { content: `You asked: ${prompt}`, model: 'echo-1' }
}

await app.listen({ host: '127.0.0.1', port: Number(process.env.PORT ?? 3000) })
