// Follows the channel of a conversation in Redis, until the conversation ends. The stream's key is `channel.redisStream`
// in the response to PUT. The second argument is the id of the last processed entry:
//   REDIS_URL=redis://127.0.0.1:6379 npx tsx consume-redis.ts '{cb:17}:channel:…' 0-0
import { createClient } from 'redis'

const [stream = '', from = '0-0'] = process.argv.slice(2)
const client = createClient({ url: process.env.REDIS_URL })
client.on('error', (error) => console.error('redis:', error.message))
await client.connect()

let last = from
for (let isLive = true; isLive;) {
  const streams = await client.xRead({ key: stream, id: last }, { BLOCK: 5_000, COUNT: 100 })
  for (const { id, message } of streams?.[0]?.messages ?? []) {
    if (message.envelope) console.log(message.envelope)
    if (message.end) isLive = false
    // Store it together with the effects of the entry, to continue from here after a crash.
    last = id
  }
}
await client.close()
