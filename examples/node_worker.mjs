#!/usr/bin/env node
// A worker that runs CONCURRENCY syncs at a time. Needs Node 18.17 or newer, `pg` from npm,
// items.sql, and a role that was given to grant_worker() and may write the items.
import pg from 'pg'
import { SOURCE, fetchPage, isList } from './google_calendar.mjs'     // yours to change

const CONCURRENCY = Number(process.env.CONCURRENCY ?? 8)
const NAME = process.env.WORKER_NAME ?? `worker-${process.pid}`
const connectionString = process.env.DATABASE_URL               // else PGHOST, PGDATABASE...
const log = (...words) => console.log(`${NAME}:`, ...words)
const pool = new pg.Pool({ connectionString, max: CONCURRENCY })
pool.on('error', error => log('database:', error.message))
pool.on('connect', client => client.on('notice', notice => log(notice.message)))
const running = new Map()                                       // what aborts a sync -> its end
let isStopping = false, isAwake = false, wakeUp = () => {}
const wake = () => { isAwake = true; wakeUp() }
for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => {
  isStopping = true
  for (const abort of running.keys()) abort.abort()             // each releases its row
  wake()
})

// A call about a row: every argument by name, and always with the lease.
async function call(name, { user_id, account, source, resource, lease }, more = {}) {
  const values = { user_id, account, source, resource, lease, ...more }
  const names = Object.keys(values).map((key, i) => `${key} => $${i + 1}`)
  return (await pool.query(`SELECT * FROM ${name}(${names})`, Object.values(values))).rows[0]
}

// Page by page: each page's items and the place where it ends are one transaction, save_page().
async function sync(row, signal) {
  const beginning = { page: null, done: 0 }
  let place = row.page_token ? JSON.parse(row.page_token) : beginning, isResumed = place.page !== null
  do {
    signal.throwIfAborted()
    const page = await fetchPage(row, place.page, signal).catch(error => error)
    if (page.cursorIsDead || (isResumed && page.status === 400)) {      // start again
      if (page.cursorIsDead) row = await call('syncstate.clear_sync_token', row)
      if (row.status !== 'syncing') return 'cursor refused too often'
      place = beginning
    } else if (page instanceof Error) throw page
    else {
      place = { page: page.next, done: place.done + Object.keys(page.items).length }
      await call('save_page', row, { found: page.items, full_sync: row.full_sync_id, done: place.done,
        page_token: place.page && JSON.stringify(place), sync_token: page.cursor, is_list: isList(row) })
    }
    isResumed = false
  } while (place.page || place === beginning)
  return `${row.full_sync_id ? 'full' : 'incremental'} sync, ${place.done} items`
}

// Syncs a row, renews its lease meanwhile, and reports whatever comes of it.
async function serve(row, abort) {
  const heartbeat = setInterval(() => call('syncstate.renew_sync_lease', row).catch(error => {
    if (/^PT/.test(error.code)) abort.abort(error)              // the lease is lost: drop the work
  }), (row.lease_expires_at - row.last_sync_at) / 3)
  try {
    const outcome = await sync(row, abort.signal).catch(async error => {
      const cause = abort.signal.aborted ? abort.signal.reason : error
      if (/^PT/.test(cause.code)) throw cause
      if (isStopping) await call('syncstate.release_sync', row)
      else if (error.isLimit) await call('syncstate.mark_rate_limited', row, { retry_after: error.retryAfter })
      else await call('syncstate.mark_sync_failed', row, {
        error_message: error.kind ? error.message : 'the sync failed',          // users can read it
        kind: error.kind ?? (/^2[23]/.test(error.code) ? 'permanent' : 'transient') })
      return isStopping ? 'released' : error.message
    })
    log(`${row.user_id}:`, outcome)
  } catch (error) {                     // PT409, PT404; or no database, and the lease ends by itself
    log(`${row.user_id}: dropped: ${error.message}`)
  } finally {
    clearInterval(heartbeat)
    running.delete(abort)
    wake()
  }
}

// Claims as many rows as there are places, until something breaks.
async function work(listener) {
  let broken
  listener.on('notification', wake).on('error', error => { broken = error; wake() })
  await listener.connect()
  await listener.query('LISTEN syncstate')
  while (!isStopping && !broken) {
    isAwake = false
    const { rows } = await pool.query('SELECT * FROM syncstate.claim_due_syncs($1, $2)',
      [SOURCE, CONCURRENCY - running.size])
    for (const row of rows) {
      const abort = new AbortController()
      if (isStopping) abort.abort()
      running.set(abort, serve(row, abort))
    }
    if (running.size === CONCURRENCY) await Promise.race(running.values())      // ask nothing meanwhile
    else if (!rows.length) {
      const { rows: [{ ms }] } = await pool.query(`SELECT 1000 * extract(epoch FROM least(
        syncstate.next_sync_due($1), clock_timestamp() + '10 minutes') - clock_timestamp())::float8 AS ms`, [SOURCE])
      await sleep(Math.max(ms, 50))
    }
  }
  if (broken) throw broken
}

async function sleep(ms) {
  if (isAwake) return
  log('sleeps')
  let timer
  await new Promise(resolve => { wakeUp = resolve; timer = setTimeout(resolve, ms) })
  clearTimeout(timer)
}

while (!isStopping) {
  const listener = new pg.Client({ connectionString })          // LISTEN: not through a transaction pooler
  await work(listener).catch(error => { log('database:', error.message); isAwake = isStopping; return sleep(5000) })
  await listener.end().catch(() => {})
}
await Promise.all(running.values())
await pool.end()
