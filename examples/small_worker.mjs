#!/usr/bin/env node
// A small worker for Google Calendar, to read or to start from, in one file: a whole sync in
// memory, then into the database. See node_worker.mjs for checkpoints and many syncs at a time.
// It needs Node 18 or newer, `pg` from npm, items.sql, and a login role that was given to
// syncstate.grant_worker() and may write the items. Run as many as you like. DATABASE_URL names the
// database, or PGHOST, PGDATABASE and so on; not through a transaction pooler, because of LISTEN.
import pg from 'pg'

const SOURCE = 'google_calendar', PAGE_SIZE = process.env.PAGE_SIZE ?? '250'
const API_URL = process.env.API_URL ?? 'https://www.googleapis.com'
const NAME = process.env.WORKER_NAME ?? `worker-${process.pid}`
const log = (...words) => console.log(`${NAME}:`, ...words)
async function accessToken(row, isRefused) {      // yours to write: the account's OAuth access token; isRefused: a new one
  throw new Error('accessToken() in small_worker.mjs is not written yet')
}

class ApiError extends Error {
  constructor(status, text, retryAfter) {
    super(`HTTP ${status}: ${text.slice(0, 500)}`)
    this.cursorIsDead = status === 410 && !/"reason": *"deleted"/.test(text)
    this.isRateLimit = status === 429 || (status === 403 && /"((r|userR)ateLimit|quota)Exceeded"/.test(text))
    this.retryAfter = /^\d+$/.test(retryAfter) ? `${retryAfter} seconds` : null
    this.kind = status === 401 || text.includes('"insufficientPermissions"') ? 'auth'
      : status === 0 || status === 408 || status >= 500 ? 'transient' : 'permanent'
  }
}

async function fetchPage(row, pageToken) {
  const query = new URLSearchParams({ maxResults: PAGE_SIZE })
  if (row.sync_token) query.set('syncToken', row.sync_token)
  if (pageToken) query.set('pageToken', pageToken)
  const path = row.resource ? `calendars/${encodeURIComponent(row.resource)}/events` : 'users/me/calendarList'
  const fail = error => { throw new ApiError(0, `${error} ${error.cause ?? ''}`) }   // the network
  for (const isRefused of [false, true]) {
    const answer = await fetch(`${API_URL}/calendar/v3/${path}?${query}`, { signal: AbortSignal.timeout(60_000),
      headers: { Authorization: `Bearer ${await accessToken(row, isRefused)}`, 'User-Agent': NAME } }).catch(fail)
    const text = await answer.text().catch(fail)
    if (answer.ok) return JSON.parse(text)
    if (answer.status !== 401 || isRefused) throw new ApiError(answer.status, text, answer.headers.get('Retry-After'))
  }
}

let stopped = false, notified = false, wake = () => {}
for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => { stopped = true; wake() })
const sleep = ms => new Promise(resolve => { const timer = setTimeout(resolve, ms); wake = () => { clearTimeout(timer); resolve() }; log('sleeps') })

// A call with the row's lease; a lifecycle call returns the row as it is then.
async function call(db, name, { user_id, account, source, resource, lease }, more = {}) {
  const values = { user_id, account, source, resource, lease, ...more }
  const names = Object.keys(values).map((key, i) => `${key} => $${i + 1}`)
  return (await db.query(`SELECT * FROM ${name}(${names})`, Object.values(values))).rows[0]
}

// All pages; then items and cursor in one transaction: both or neither.
async function sync(db, row) {
  const found = {}
  const heartbeat = setInterval(() => call(db, 'syncstate.renew_sync_lease', row).catch(() => {}),
    (row.lease_expires_at - row.last_sync_at) / 3)      // if it is lost, the report says so
  let page
  try {
    do {
      if (stopped) return `released: ${(await call(db, 'syncstate.release_sync', row)).status}`
      page = await fetchPage(row, page?.nextPageToken)
      for (const item of page.items ?? [])      // events (also those taken out of a series), or calendars
        found[item.id] = item.status === 'cancelled' && !item.recurringEventId || item.deleted || item.hidden ? null : item
    } while (page.nextPageToken)
  } finally {
    clearInterval(heartbeat)
  }
  const count = Object.keys(found).length
  await db.query('BEGIN')
  await call(db, 'write_items', row, { found, is_full: !row.sync_token, is_list: !row.resource })
  await call(db, 'syncstate.mark_sync_completed', row, { items_synced: count, sync_token: page.nextSyncToken })
  await db.query('COMMIT')
  return `${row.sync_token ? 'incremental' : 'full'} sync, ${count} items`
}

// Syncs a row, and reports whatever comes of it.
async function serve(db, row) {
  try {
    log(`${row.user_id}:`, await sync(db, row).catch(async error => {
      if (error instanceof pg.DatabaseError) await db.query('ROLLBACK')
      if (/^PT/.test(error.code)) throw error
      if (error.cursorIsDead) {
        row = await call(db, 'syncstate.clear_sync_token', row)
        if (row.status === 'syncing') await call(db, 'syncstate.release_sync', row)   // due at once, in full
      } else if (error.isRateLimit) await call(db, 'syncstate.mark_rate_limited', row, { retry_after: error.retryAfter })
      else await call(db, 'syncstate.mark_sync_failed', row, { kind: error.kind ?? 'permanent',
        error_message: error.kind ? error.message : 'the sync failed' })         // users can read it
      return error.message
    }))
  } catch (error) {
    if (!/^PT/.test(error.code)) throw error    // without a database, the lease ends by itself
    log(`${row.user_id}: dropped: ${error.message}`)    // somebody else has the row, or it is gone
  }
}

async function work(db) {
  await db.connect()
  db.on('notification', () => { notified = true; wake() }).on('notice', notice => log(notice.message))
  await db.query('LISTEN syncstate')
  while (!stopped) {
    notified = false
    const { rows: [row] } = await db.query('SELECT * FROM syncstate.claim_due_syncs($1, 1)', [SOURCE])
    if (row) await serve(db, row)
    else {
      const { rows: [{ ms }] } = await db.query(`SELECT 1000 * extract(epoch FROM least(
        syncstate.next_sync_due($1), clock_timestamp() + '10 minutes') - clock_timestamp())::float8 AS ms`, [SOURCE])
      if (!notified && !stopped) await sleep(Math.max(ms, 50))
    }
  }
}

while (!stopped) {
  const db = new pg.Client({ connectionString: process.env.DATABASE_URL })
  db.on('error', () => wake())
  await work(db).catch(error => { log('database:', error.message); return sleep(5000) })
  await db.end().catch(() => {})
}
