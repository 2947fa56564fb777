// Google: an account's tokens, a page of its calendars, and what Google's errors mean.

import { db, env } from './database.ts';
import type { SyncState } from './syncstate-types.ts';

const API_URL = env('API_URL', 'https://www.googleapis.com');
const TOKEN_URL = env('TOKEN_URL', 'https://oauth2.googleapis.com/token');
const PAGE_SIZE = env('PAGE_SIZE', '250');

export class ApiError extends Error {
  readonly cursorIsDead: boolean;
  readonly isLimit: boolean;
  readonly retryAfter: string | null;
  readonly kind: 'transient' | 'permanent' | 'auth';

  constructor(
    readonly status: number, // 0: there was no answer
    text: string,
    retryAfter: string | null = null,
    isRefused = status === 401 || text.includes('"insufficientPermissions"'),
  ) {
    super(`HTTP ${status}: ${text.slice(0, 500)}`); // users can read it in my_syncs
    this.cursorIsDead = status === 410 && !/"reason": *"deleted"/.test(text);
    this.isLimit = status === 429 || (status === 403 && /"((r|userR)ateLimit|quota)Exceeded"/.test(text));
    this.retryAfter = retryAfter && /^\d+$/.test(retryAfter) ? `${retryAfter} seconds` : null;
    this.kind = isRefused ? 'auth' : status === 0 || status === 408 || status >= 500 ? 'transient' : 'permanent';
  }
}

async function ask(url: string, init: RequestInit) {
  const fail = (error: Error): never => {
    throw new ApiError(0, `${error} ${error.cause ?? ''}`);
  };
  const answer = await fetch(url, init).catch(fail);
  return { status: answer.status, text: await answer.text().catch(fail), retryAfter: answer.headers.get('Retry-After') };
}

export type Tokens = { access_token: string; expires_in: number; refresh_token?: string; id_token?: string; scope?: string };

/** Exchanges a code or a refresh token. Only invalid_grant is about the account: a 401 is about this application. */
export async function requestTokens(what: Record<string, string>, signal: AbortSignal): Promise<Tokens> {
  const application = { client_id: env('GOOGLE_CLIENT_ID'), client_secret: env('GOOGLE_CLIENT_SECRET') };
  const { status, text, retryAfter } = await ask(TOKEN_URL, { method: 'POST', body: new URLSearchParams({ ...application, ...what }), signal });
  if (status !== 200) throw new ApiError(status, text, retryAfter, text.includes('"invalid_grant"'));
  return JSON.parse(text);
}

/** Access tokens that are still good. */
const known = new Map<string, { token: string; until: number }>();

/** An access token of the account; a new one if the last one was refused. */
async function accessToken({ user_id, account }: SyncState, isRefused: boolean, signal: AbortSignal): Promise<string> {
  const name = `${user_id}/${account}`;
  const last = known.get(name);
  if (last && !isRefused && Date.now() < last.until) return last.token;
  const { data: grant } = await db.from('google_grants').select('refresh_token').match({ user_id, account }).maybeSingle().throwOnError();
  if (!grant) throw new ApiError(401, 'there is no grant of this account');
  const { access_token: token, expires_in } = await requestTokens({ grant_type: 'refresh_token', refresh_token: grant.refresh_token }, signal);
  known.set(name, { token, until: Date.now() + 1000 * (expires_in - 60) });
  return token;
}

type Item = { id: string; status?: string; recurringEventId?: string; deleted?: boolean; hidden?: boolean };

export type Page = {
  /** By id; null if it was deleted. */
  items: Record<string, Item | null>;
  /** Page token of the next page; null: this is the last one. */
  next: string | null;
  /** Sync token, on the last page. */
  cursor: string | null;
};

/** A page of a calendar, or (resource '') of the account's list of calendars. */
export async function fetchPage(row: SyncState, pageToken: string | null, signal: AbortSignal): Promise<Page> {
  const query = new URLSearchParams({ maxResults: PAGE_SIZE });
  if (row.sync_token) query.set('syncToken', row.sync_token);
  if (pageToken) query.set('pageToken', pageToken);
  const path = row.resource ? `calendars/${encodeURIComponent(row.resource)}/events` : 'users/me/calendarList';
  const get = async (isRefused: boolean) =>
    ask(`${API_URL}/calendar/v3/${path}?${query}`, { headers: { Authorization: `Bearer ${await accessToken(row, isRefused, signal)}` }, signal });

  let { status, text, retryAfter } = await get(false);
  if (status === 401) ({ status, text, retryAfter } = await get(true)); // once more, with a new token
  if (status !== 200) throw new ApiError(status, text, retryAfter);
  const page: { items?: Item[]; nextPageToken?: string; nextSyncToken?: string } = JSON.parse(text);
  return {
    // an occurrence that was taken out of a series is kept: the series does not tell of it
    items: Object.fromEntries((page.items ?? []).map((item) =>
      [item.id, (item.status === 'cancelled' && !item.recurringEventId) || item.deleted || item.hidden ? null : item])),
    next: page.nextPageToken ?? null,
    cursor: page.nextSyncToken ?? null,
  };
}
