// What node_worker.mjs needs to know about a source: one page of it, and what its errors mean.
export const SOURCE = 'google_calendar'
const API_URL = process.env.API_URL ?? 'https://www.googleapis.com'
const PAGE_SIZE = process.env.PAGE_SIZE ?? '250'
const AGENT = process.env.WORKER_NAME ?? 'syncstate-worker'

// Yours to write: an OAuth access token of the account; a new one if isRefused. Where the token
// endpoint says invalid_grant, throw new ApiError(401, 'invalid_grant').
async function accessToken({ user_id, account }, isRefused) {
  throw new Error('accessToken() in google_calendar.mjs is not written yet')
}

export class ApiError extends Error {
  constructor(status, text, retryAfter) {
    super(`HTTP ${status}: ${text.slice(0, 500)}`)      // users can read it in my_syncs
    this.status = status
    this.cursorIsDead = status === 410 && !/"reason": *"deleted"/.test(text)
    this.isLimit = status === 429 || (status === 403 && /"((r|userR)ateLimit|quota)Exceeded"/.test(text))
    this.retryAfter = /^\d+$/.test(retryAfter) ? `${retryAfter} seconds` : null
    this.kind = status === 401 || text.includes('"insufficientPermissions"') ? 'auth'
      : status === 0 || status === 408 || status >= 500 ? 'transient' : 'permanent'
  }
}

// Whether the items are calendars, which get rows of their own. Without such lists, this is false.
export const isList = row => !row.resource

// Returns { items: { id: item, or null if it was deleted }, next: page token, cursor: sync token }.
export async function fetchPage(row, pageToken, signal) {
  const query = new URLSearchParams({ maxResults: PAGE_SIZE })
  if (row.sync_token) query.set('syncToken', row.sync_token)
  if (pageToken) query.set('pageToken', pageToken)
  const path = row.resource ? `calendars/${encodeURIComponent(row.resource)}/events` : 'users/me/calendarList'
  const get = async isRefused => {
    const headers = { Authorization: `Bearer ${await accessToken(row, isRefused)}`, 'User-Agent': AGENT }
    const fail = error => { throw new ApiError(0, `${error} ${error.cause ?? ''}`) }     // the network
    const answer = await fetch(`${API_URL}/calendar/v3/${path}?${query}`,
      { headers, signal: AbortSignal.any([signal, AbortSignal.timeout(60_000)]) }).catch(fail)
    return { status: answer.status, text: await answer.text().catch(fail), retryAfter: answer.headers.get('Retry-After') }
  }
  let { status, text, retryAfter } = await get(false)
  if (status === 401) ({ status, text, retryAfter } = await get(true))   // once more, with a new token
  if (status !== 200) throw new ApiError(status, text, retryAfter)
  const page = JSON.parse(text)
  return {
    // an occurrence that was taken out of a series is kept: the series does not tell of it
    items: Object.fromEntries((page.items ?? []).map(item =>
      [item.id, item.status === 'cancelled' && !item.recurringEventId || item.deleted || item.hidden ? null : item])),
    next: page.nextPageToken ?? null,
    cursor: page.nextSyncToken ?? null
  }
}
