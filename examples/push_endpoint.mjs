#!/usr/bin/env node
// Where Calendar's and Gmail's push messages arrive: a small HTTP server for doc/push.md.
//
// It needs Node 18 or newer, `pg` from npm, and in front of it what speaks https for it. A message
// becomes one call of syncstate.receive_push(), and a worker that sleeps is woken. Run as many as
// you like.
//
//   DATABASE_URL   which database; without it PGHOST, PGDATABASE and so on. As a role that may
//                  execute receive_push(), and needs nothing else
//   PUSH_TOKEN     the secret in the URL of Gmail's push subscription: ...?token=SECRET
//   HOST, PORT     where to listen
//
// The answers: 204, it is taken. 404, nobody has this channel: Calendar forgets the message. 503,
// the database is away: the provider sends it again.
import { createHash, timingSafeEqual } from 'node:crypto'
import { createServer } from 'node:http'
import pg from 'pg'

const { DATABASE_URL, PUSH_TOKEN, HOST = '127.0.0.1', PORT = '8080' } = process.env
const LARGEST = 65536       // bytes of a body; Gmail's have some hundred

const pool = new pg.Pool({
  connectionString: DATABASE_URL, max: 4, connectionTimeoutMillis: 5000, query_timeout: 10_000 })
pool.on('error', error => console.error(`database: ${error.message}`))   // of one that was idle

// False for an unknown channel, or a wrong token.
async function receivePush(channelId, token, number) {
  const { rows: [row] } = await pool.query('SELECT syncstate.receive_push($1, $2, $3) AS taken', [channelId, token, number])
  return row.taken
}

// Numbers stay text, since they do not fit into JavaScript's. Gmail's may be larger than a bigint,
// too; without a number no message is taken for a repeat.
const messageNumber = text => (/^\d{1,20}$/.test(text) && BigInt(text) < 2n ** 63n ? text : null)

class Refused extends Error {
  constructor(status, message) { super(message); this.status = status }
}

// All is in the headers. That a channel begins is told with state "sync".
async function calendar(headers) {
  if (headers['x-goog-resource-state'] === 'sync') return 204
  const taken = await receivePush(headers['x-goog-channel-id'], headers['x-goog-channel-token'] ?? null,
    messageNumber(headers['x-goog-message-number']))
  return taken ? 204 : 404
}

// The body is Pub/Sub's; the message in it says which mailbox has changed. Pub/Sub sends again, for
// days, what is not answered with success. So one of a mailbox that is not watched any more is
// taken, too.
async function gmail(request) {
  const hash = text => createHash('sha256').update(text).digest()
  const token = new URL(request.url, 'http://x').searchParams.get('token') ?? ''
  if (!PUSH_TOKEN || !timingSafeEqual(hash(token), hash(PUSH_TOKEN))) return 404
  let body = Buffer.alloc(0)
  for await (const chunk of request) {
    if (body.length + chunk.length > LARGEST) throw new Refused(413, 'too long')
    body = Buffer.concat([body, chunk])
  }
  const [address, number] = mailbox(body)
  await receivePush(address, PUSH_TOKEN, messageNumber(number))
  return 204
}

function mailbox(body) {
  try {
    const text = Buffer.from(JSON.parse(body).message.data, 'base64').toString()
    const { emailAddress } = JSON.parse(text)
    if (typeof emailAddress === 'string') return [emailAddress, /"historyId": *"?(\d+)/.exec(text)[1]]
  } catch { /* whatever it is */ }
  throw new Refused(400, 'not a message of Gmail')
}

async function answer(request) {
  try {
    if (request.method !== 'POST') return 405
    return await (request.headers['x-goog-channel-id'] ? calendar(request.headers) : gmail(request))
  } catch (error) {
    // class 22: text that the database cannot take, and never will
    const status = error.status ?? (error.code?.startsWith('22') ? 400 : 503)
    console.error(`${status}: ${error.message}`)
    return status
  }
}

const server = createServer(async (request, response) => {
  const status = await answer(request)
  // what has not been read yet never is
  response.writeHead(status, request.complete ? {} : { Connection: 'close' }).end()
})
server.requestTimeout = 10_000      // ms, so that slow senders hold no connection
server.listen(Number(PORT), HOST, () => console.log(`http://${HOST}:${server.address().port}`))
process.on('SIGTERM', () => process.exit())
