// A hand-written callback handler with Fastify and ioredis: raw body, HMAC, JSON check, one script.
// Arguments: port of Redis, secret. Prints its address; exits at the end of its standard input.
import { createHmac, timingSafeEqual } from 'node:crypto';
import { readFileSync } from 'node:fs';
import Fastify from 'fastify';
import { Redis } from 'ioredis';

const [redisPort, secretText] = process.argv.slice(2);
const secret = Buffer.from(secretText);
const REPLAY_WINDOW_MS = 600_000;

const redis = new Redis({ host: '127.0.0.1', port: Number(redisPort) });
redis.defineCommand('settle', {
  numberOfKeys: 3,
  lua: readFileSync(new URL('callback.lua', import.meta.url), 'utf8'),
});

// `<conversation>.<sequence>.<signature>`; undefined if the signature is invalid.
function verify(token) {
  const end = token.lastIndexOf('.');
  const signed = token.slice(0, Math.max(end, 0));
  const expected = createHmac('sha256', secret).update(signed).digest();
  const given = Buffer.from(token.slice(end + 1), 'base64url');
  if (given.length !== expected.length || !timingSafeEqual(given, expected)) return undefined;
  const dot = signed.lastIndexOf('.');
  return { conversation: signed.slice(0, dot), sequence: signed.slice(dot + 1) };
}

const app = Fastify({ bodyLimit: 1024 * 1024 });
app.removeContentTypeParser('application/json');
app.addContentTypeParser('application/json', { parseAs: 'buffer' }, (_request, body, done) => done(null, body));

app.post('/api/v1/webhooks/callbacks', async (request, reply) => {
  const item = verify(request.headers['x-callback-token'] ?? '');
  if (!item) return reply.code(401).send({ error: 'CALLBACK_TOKEN_INVALID' });
  try {
    JSON.parse(request.body);
  } catch {
    return reply.code(400).send({ error: 'BODY_INVALID' });
  }
  const { conversation, sequence } = item;
  const status = await redis.settle(
    `item:${conversation}:${sequence}`,
    `answered:${conversation}:${sequence}`,
    `channel:${conversation}`,
    request.body,
    REPLAY_WINDOW_MS,
  );
  const code = { delivered: 202, repeated: 200, unknown: 404 }[status];
  return reply.code(code).send({ status, conversationId: conversation, sequence: Number(sequence) });
});

process.stdin.resume().on('end', () => process.exit());
console.log((await app.listen({ host: '127.0.0.1', port: 0 })).replace('http://', ''));
