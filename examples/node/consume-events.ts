// Follows the channel of a conversation over server-sent events, until the conversation ends:
//   PLATFORM_URL=http://127.0.0.1:8081 SERVICE_KEY=… npx tsx consume-events.ts call-7
import { setTimeout as sleep } from 'node:timers/promises'
import { EventSourceParserStream } from 'eventsource-parser/stream'

const { PLATFORM_URL = 'http://127.0.0.1:8081', SERVICE_KEY = '' } = process.env

interface Envelope {
  sequence: number
  kind: 'llm' | 'tool'
  outcome: 'succeeded' | 'failed' | 'timed_out' | 'cancelled'
  result?: unknown
  error?: { code: string, message: string }
}

async function * follow (conversation: string): AsyncGenerator<Envelope> {
  const url = `${PLATFORM_URL}/platform/v1/conversations/${conversation}/events?from=0`
  const headers: Record<string, string> = { authorization: `Bearer ${SERVICE_KEY}` }
  for (;;) {
    const response = await fetch(url, { headers }).catch(() => undefined)
    if (response && response.status < 500 && response.status !== 200) {
      throw new Error(`${response.status} ${await response.text()}`)
    }
    if (response?.ok && response.body) {
      const events = response.body.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream())
      try {
        for await (const { event, id, data } of events) {
          if (event === 'end') return
          // Other events with a name, such as `progress`, are not on the channel.
          if (event) continue
          yield JSON.parse(data)
          // Set after the event is processed: unprocessed events are sent again.
          headers['last-event-id'] = id ?? ''
        }
      } catch (error) {
        console.error('reconnecting:', error)
      }
    }
    // The stream was closed without `end`, for example by a deployment.
    await sleep(500)
  }
}

for await (const envelope of follow(process.argv[2] ?? '')) {
  console.log(JSON.stringify(envelope))
}
