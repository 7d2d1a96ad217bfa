// @ts-check
import { setTimeout as sleep } from 'node:timers/promises'

const RETRYABLE = [408, 429, 500, 502, 503, 504]

/**
 * The object `callback` that the platform sends with the work.
 *
 * @typedef {object} Callback
 * @property {string} url contains the token if `carrier` is `query` or `path`
 * @property {string} method
 * @property {Record<string, string>} headers contain the token if `carrier` is `header`
 * @property {string} token
 * @property {'header' | 'query' | 'body' | 'path'} carrier
 * @property {string} name of the header, the parameter or the field
 * @property {string} deadline
 */

/**
 * Posts the result of a work item, and repeats the request until the deadline.
 *
 * @param {Callback} callback
 * @param {unknown} result JSON, or `{ error: { code, message } }` to report a failure
 * @returns {Promise<unknown>} the receipt
 */
export async function postCallback (callback, result) {
  // Serialized only once, because a retry must send the same bytes.
  const body = JSON.stringify(withToken(callback, result))
  for (let pause = 250; ; pause = Math.min(2 * pause, 8_000)) {
    const reply = await send(callback, body).catch((error) => ({ status: 0, text: String(error), seconds: 0 }))
    if (reply.status >= 200 && reply.status < 300) return JSON.parse(reply.text)

    const isFinal = reply.status !== 0 && !RETRYABLE.includes(reply.status)
    const wait = Math.max(pause, 1_000 * reply.seconds) * (1 + Math.random() / 4)
    // The last attempt is just before the deadline.
    const left = Date.parse(callback.deadline) - Date.now() - 250
    if (isFinal || left <= 0) {
      throw new Error(`the result was not accepted: ${reply.status} ${reply.text}`)
    }
    await sleep(Math.min(wait, left))
  }
}

/**
 * @param {Callback} callback
 * @param {string} body
 */
async function send (callback, body) {
  const { url, method, headers } = callback
  // The service never redirects. What does would get the token, or a GET without the result.
  const signal = AbortSignal.timeout(10_000)
  const reply = await fetch(url, { method, headers, body, redirect: 'manual', signal })
  return { status: reply.status, text: await reply.text(), seconds: Number(reply.headers.get('retry-after')) || 0 }
}

/**
 * @param {Callback} callback
 * @param {unknown} result
 */
function withToken ({ carrier, name, token }, result) {
  if (carrier !== 'body') return result
  if (typeof result !== 'object' || result === null || Array.isArray(result)) {
    throw new TypeError('a token in the body needs a result that is an object')
  }
  return { ...result, [name]: token }
}
