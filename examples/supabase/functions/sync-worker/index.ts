// A worker that lives for less than a minute. The job of examples/cron/edge_function.sql calls it
// when work is due. It syncs until WORK_SECONDS of its life are over, releases what it has not
// finished, and answers with how much it did. Calls may overlap.
//
//   SYNC_WORKER_KEY  what the caller must send: `Authorization: Bearer KEY`
//   WORK_SECONDS     after how much of its life an instance begins no further page
//   STEP_SECONDS     how long Google may take for a page, tokens included
//   ANSWER_SECONDS   after how long it answers all the same, and works on; the job waits for 5
//
// Self-hosted Supabase ends an instance after 60 seconds (workerTimeoutMs), so WORK_SECONDS and
// STEP_SECONDS together must stay well below that. A row that is cut off all the same comes back
// when its lease ends, and is resumed at its page.
//
// It serves rows that have a cursor. Where no other worker does the full syncs, call it with
// ?kind=any: then it does them too, in slices.

import { db, env, hmac, syncstate } from '../_shared/database.ts';
import { ApiError, fetchPage } from '../_shared/google.ts';
import type { SyncState } from '../_shared/syncstate-types.ts';

const SOURCE = 'google_calendar';
const CONCURRENCY = 4;
const KEY = env('SYNC_WORKER_KEY');
const STEP_SECONDS = Number(env('STEP_SECONDS', '15'));
const LEASE = `${2 * STEP_SECONDS + 10} seconds`; // a page, and time to write it
const ANSWER_SECONDS = Number(env('ANSWER_SECONDS', '4'));
const end = Date.now() + 1000 * Number(env('WORK_SECONDS', '30'));

type Outcome = 'synced' | 'released' | 'limited' | 'failed' | 'dropped';

const keyOf = ({ user_id, account, source, resource, lease }: SyncState) => ({ user_id, account, source, resource, lease });

/** Page by page: each page's items and the place where it ends are one transaction, save_page(), which renews the lease. */
async function sync(row: SyncState): Promise<Outcome> {
  const beginning = { page: null as string | null, done: 0 };
  let place: typeof beginning = row.page_token ? JSON.parse(row.page_token) : beginning;
  let isResumed = place !== beginning;
  do {
    if (Date.now() >= end) {
      await syncstate.rpc('release_sync', keyOf(row)).throwOnError();
      return 'released';
    }
    const page = await fetchPage(row, place.page, AbortSignal.timeout(1000 * STEP_SECONDS)).catch((error: unknown) => {
      if (error instanceof ApiError && (error.cursorIsDead || (isResumed && error.status === 400))) return error;
      throw error;
    });
    if (page instanceof ApiError) { // start again
      if (page.cursorIsDead) row = (await syncstate.rpc('clear_sync_token', keyOf(row)).throwOnError()).data;
      if (row.status !== 'syncing') return 'failed'; // lost too often: it waits
      place = beginning;
    } else {
      place = { page: page.next, done: place.done + Object.keys(page.items).length };
      await db.rpc('save_page', {
        ...keyOf(row), found: page.items, full_sync: row.full_sync_id, done: place.done,
        page_token: place.page && JSON.stringify(place), sync_token: page.cursor, is_list: !row.resource,
      }).throwOnError();
    }
    isResumed = false;
  } while (place.page || place === beginning);
  return 'synced';
}

/** Reports what went wrong. A lost lease is not reported. */
async function report(row: SyncState, error: unknown): Promise<Outcome> {
  const code = String((error as { code?: unknown }).code);
  if (code === 'PT409' || code === 'PT404') throw error;
  if (error instanceof ApiError && error.isLimit) {
    await syncstate.rpc('mark_rate_limited', { ...keyOf(row), retry_after: error.retryAfter }).throwOnError();
    return 'limited';
  }
  if (!(error instanceof ApiError)) console.error(`${row.user_id}: ${(error as Error).message}`);
  await syncstate.rpc('mark_sync_failed', {
    ...keyOf(row), error_message: error instanceof ApiError ? error.message : 'the sync failed', // users can read it
    kind: error instanceof ApiError ? error.kind : /^2[23]/.test(code) ? 'permanent' : 'transient',
  }).throwOnError();
  return 'failed';
}

async function serve(row: SyncState): Promise<Outcome> {
  try {
    return await sync(row).catch((error: unknown) => report(row, error));
  } catch (error) { // PT409, PT404; or no database, and the lease ends by itself
    console.error(`${row.user_id}: dropped: ${(error as Error).message}`);
    return 'dropped';
  }
}

/** Claims one row after the other, in CONCURRENCY places, while there are any. */
async function work(kind: string) {
  const counts: Record<Outcome, number> = { synced: 0, released: 0, limited: 0, failed: 0, dropped: 0 };
  await Promise.all(Array.from({ length: CONCURRENCY }, async () => {
    while (Date.now() < end) {
      const claim = { source: SOURCE, max_rows: 1, lease_time: LEASE, kind } as const;
      const { data: [row] } = await syncstate.rpc('claim_due_syncs', claim).throwOnError();
      if (!row) break;
      counts[await serve(row)]++;
    }
  }));
  console.log(JSON.stringify(counts));
  return counts;
}

Deno.serve(async (request) => {
  // of MACs, so that the time of the comparison reveals nothing about the key
  if ((await hmac(KEY, request.headers.get('Authorization') ?? '')) !== (await hmac(KEY, `Bearer ${KEY}`)))
    return Response.json({ error: 'not allowed' }, { status: 401 });

  const done = work(new URL(request.url).searchParams.get('kind') ?? 'incremental').then(
    (counts) => Response.json(counts),
    (error: Error) => Response.json({ error: error.message }, { status: 503 }));
  EdgeRuntime.waitUntil(done); // also when the caller no longer waits
  const late = new Promise<Response>((resolve) => {
    setTimeout(() => resolve(Response.json({ working: true }, { status: 202 })), 1000 * ANSWER_SECONDS);
  });
  return Promise.race([done, late]);
});
