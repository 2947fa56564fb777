// The extension as clients of Supabase meet it: supabase-js from npm, as it is,
// against a double of the REST layer (rest_double.mjs).  And the service in
// examples/, compiled to build/.
//
// Wants a database with the extension and Supabase's roles in PGHOST, PGPORT
// and PGDATABASE; test/t/081_supabase.pl makes it.  REST_URL is that of a REST layer
// which runs already, as startDouble() would start it: any test may then meet
// sessions that earlier tests have used.

import assert from 'node:assert/strict';
import { createHash, randomUUID } from 'node:crypto';
import { after, before, beforeEach, test } from 'node:test';
import { createClient } from '@supabase/supabase-js';
import pg from 'pg';
import WebSocket from 'ws';
import { sign, startDouble } from './rest_double.mjs';
import { keyOf, SyncStateError, SyncStateService } from './build/examples/sync-state-service.js';

const SECRET = 'a secret of at least thirty-two characters';
const now = Math.floor(Date.now() / 1000);
const token = (claims, ...more) => sign({ iss: 'supabase', iat: now - 60, exp: now + 3600, ...claims }, SECRET, ...more);
const KEYS = { anon: token({ role: 'anon' }), service_role: token({ role: 'service_role' }) };
const ada = randomUUID(), ben = randomUUID();
const userToken = (sub, more = {}) => token({ role: 'authenticated', aud: 'authenticated', sub, ...more });

const admin = new pg.Client();
let double;

// Before Node 22 there is no WebSocket for the part of supabase-js that we do
// not use, and it insists.
const options = (more = {}) => ({
  db: { schema: 'syncstate' },
  auth: { persistSession: false, autoRefreshToken: false },
  realtime: { transport: globalThis.WebSocket ?? WebSocket },
  ...more,
});
const worker = () => createClient(double.url, KEYS.service_role, options());
const anonymous = () => createClient(double.url, KEYS.anon, options());
const user = (sub, more) =>
  createClient(double.url, KEYS.anon, options({ accessToken: async () => userToken(sub, more) }));
const withToken = (text) => createClient(double.url, KEYS.anon, options({ accessToken: async () => text }));

// The row as it is in the database, bigints and all as text.
async function stored(user_id, source, resource = '', account = '') {
  const { rows } = await admin.query(
    `SELECT (SELECT json_object_agg(key, value) FROM json_each_text(row_to_json(s))) AS row FROM syncstate.sync_state AS s
     WHERE user_id = $1 AND source = $2 AND resource = $3 AND account = $4`, [user_id, source, resource, account]);
  return rows[0]?.row;
}

// The data of an answer that has to be one of success.
async function ok(answer, status = 200) {
  const { data, error, status: got } = await answer;
  assert.equal(error, null, JSON.stringify(error));
  assert.equal(got, status);
  return data;
}

// An answer that has to be this error.  postgrest-js gives all four parts.
async function refused(answer, status, code, { message, details, hint } = {}) {
  const got = await answer;
  assert.equal(got.data, null);
  assert.equal(got.error?.code, code, JSON.stringify(got));
  assert.equal(got.status, status);
  assert.deepEqual(Object.keys(got.error).filter((key) => key !== 'name').sort(), ['code', 'details', 'hint', 'message']);
  if (message !== undefined) assert.match(got.error.message, message);
  if (details !== undefined) assert.match(got.error.details ?? '', details);
  if (hint !== undefined) assert.match(got.error.hint ?? '', hint);
  return got;
}

// A request as it is, for what supabase-js does not send or does not show.
async function raw(method, path, { body, headers, key = KEYS.service_role } = {}) {
  const response = await fetch(`${double.url}/rest/v1/${path}`, {
    method, body,
    headers: { Authorization: `Bearer ${key}`, 'Accept-Profile': 'syncstate', 'Content-Profile': 'syncstate', 'Content-Type': 'application/json', ...headers },
  });
  const text = await response.text();
  return { status: response.status, headers: response.headers, body: text && JSON.parse(text) };
}

// So many rows of as many users, due now: where no session has claimed before.
const makeDue = (count) => admin.query(`INSERT INTO syncstate.sync_state (user_id, source, due_at)
  SELECT gen_random_uuid(), 'google_gmail', now() FROM generate_series(1, $1)`, [count]);

// Asks until the answer is good: a session that has claimed later rows may pass over
// a row for a second, as one whose due time was written into the past, or whose claim
// was rolled back.
async function eventually(ask, good) {
  for (const deadline = Date.now() + 120_000; ; ) {
    const answer = await ask();
    if (good(answer)) return answer;
    assert.ok(Date.now() < deadline, `still ${JSON.stringify(answer)}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

// An answer of rows, or of a row, or an error.
const found = ({ data, error }) => error || (data !== null && data.length !== 0);

const startRest = (more) => startDouble({ connection: { user: 'authenticator' }, secret: SECRET, schemas: ['public', 'syncstate'], ...more });
before(async () => {
  await admin.connect();
  double = process.env.REST_URL ? { url: process.env.REST_URL, close() {} } : await startRest();
});
after(async () => {
  await double?.close();
  await admin.end();
});
// The runs last: those in flight end with their rows.
const reset = () => admin.query(`DELETE FROM syncstate.sync_state; DELETE FROM syncstate.sync_policy;
  DELETE FROM syncstate.sync_event; DELETE FROM syncstate.sync_run; DELETE FROM syncstate.sync_channel`);
beforeEach(reset);

// ---- every function

// What each function is called with, and what has to come; the row of ada's
// Gmail is there and under lease 1, and so are two of its push channels: one that
// is to be opened, and an older one that is to be stopped.  first: a call before; kind: who may.
const state = { user_id: ada, source: 'google_gmail' };
const SECRET_HASH = `\\x${createHash('sha256').update('secret').digest('hex')}`;
const held = { ...state, lease: 1 };
const isState = (status, more = {}) => (data) => assert.deepEqual({ ...data, ...more, ...state, status }, data);
const isStates = (status) => (data) => {
  assert.equal(data.length, 1);
  isState(status)(data[0]);
};
const isPolicy = (more) => (data) => assert.deepEqual({ ...data, source: 'google_gmail', retry_base: '00:00:30', ...more }, data);
const isEvent = (more) => (data) => {
  assert.equal(data.length, 1);
  assert.deepEqual({ ...data[0], ...state, account: '', resource: '', ...more }, data[0]);
};
const is = (value) => (data) => assert.deepEqual(data, value);
const isChannel = (more) => (data) => assert.deepEqual({ ...data, ...state, account: '', resource: '', ...more }, data);
const isTime = (data) => assert.ok(Math.abs(Date.parse(data) - Date.now()) < 600_000, data);
const ROW = { ...state, account: '', resource: '', status: 'idle', lease: 0, items_synced: 0, failures: 0, token_losses: 0, due_at: '2026-01-01T00:00:00Z', created_at: '2026-01-01T00:00:00Z', updated_at: '2026-01-01T00:00:00Z', lease_required: false };
const CALLS = {
  // workers
  claim_due_syncs: { args: { source: 'google_gmail', max_rows: 10, lease_time: '1 minute', kind: 'full' }, free: true, expect: isStates('syncing') },
  mark_sync_started: { args: { ...state, lease_time: '1 minute', resource: '', account: '' }, free: true, expect: isState('syncing', { lease: 2 }) },
  mark_sync_completed: {
    args: { ...held, items_synced: 3, sync_token: null, history_id: '18446744073709551615', updated_min: null, resource: '', account: '' },
    expect: isState('idle', { items_synced: 3, history_id: '18446744073709551615' }),
  },
  mark_sync_failed: { args: { ...held, error_message: 'HTTP 503', kind: 'permanent', scope: 'row', resource: '', account: '' }, expect: isState('error', { failures: 1, error_message: 'HTTP 503' }) },
  mark_rate_limited: { args: { ...held, retry_after: '90 seconds', scope: 'account', resource: '', account: '' }, expect: isState('rate_limited') },
  clear_sync_token: { args: { ...held, resource: '', account: '' }, expect: isState('syncing', { token_losses: 1 }) },
  renew_sync_lease: { args: { ...held, lease_time: '1 hour', resource: '', account: '' }, expect: isState('syncing', { lease: 1 }) },
  checkpoint_sync: { args: { ...held, page_token: 'p2', progress_done: 5, progress_total: 9, resource: '', account: '' }, expect: isState('syncing', { page_token: 'p2', progress_done: 5, progress_total: 9 }) },
  release_sync: { args: { ...held, resource: '', account: '', delay: '5 minutes' }, expect: isState('idle', { failures: 0 }) },
  may_sweep: { args: { ...held, vanished: 11, total: 100, force: false, resource: '', account: '' }, expect: is(false) },
  report_syncs: { args: { results: [{ ...held, outcome: 'completed', items_synced: 7 }] }, expect: isStates('idle') },
  update_sync_state: { args: { ...state, changes: { history_id: '77' }, resource: '', account: '' }, expect: isState('syncing', { history_id: '77' }) },
  get_users_needing_sync: { args: { source: 'google_gmail', stale_after: '1 minute', max_rows: 5 }, free: true, expect: is([ada]) },
  next_sync_due: { args: { source: 'google_gmail' }, expect: isTime },
  claim_push_channels: {
    args: { source: 'google_gmail', max_rows: 10, lease_time: '1 minute' }, freeChannels: true,
    expect: (data) => assert.deepEqual(data.map((task) => [task.user_id, task.action, task.channel_id, task.provider_ref]).sort(),
      [[ada, 'open', null, null], [ada, 'stop', 'old', 'ref']]),
  },
  mark_channel_opened: {
    args: { ...held, channel_id: 'new', expires_at: '2999-01-01T00:00:00Z', token: 'secret', provider_ref: 'ref', resource: '', account: '' },
    expect: isChannel({ state: 'active', channel_id: 'new', lease: 1, lease_expires_at: null, expires_at: '2999-01-01T00:00:00+00:00', token_hash: SECRET_HASH }),
  },
  mark_channel_failed: { args: { ...held, error_message: 'HTTP 400', kind: 'unsupported', resource: '', account: '' }, expect: isChannel({ state: 'unsupported', error_message: 'HTTP 400' }) },
  mark_channel_stopped: { args: { ...held, lease: 2, resource: '', account: '' }, expect: isChannel({ state: 'retiring', channel_id: 'old', token_hash: SECRET_HASH }) },
  receive_push: { args: { channel_id: 'old', token: 'secret', message_number: '9007199254740993' }, expect: is(true) },
  take_sync_events: { first: ['pause_sync', state], args: { max_rows: 1 }, expect: isEvent({ event: 'parked', reason: 'paused', lease: 1, detail: null }) },
  due_from: { args: { sync_state: ROW }, expect: is('2026-01-01T00:00:00+00:00') },
  is_ahead: { args: { sync_state: ROW }, expect: is(false) },
  rebalance_syncs: { args: { source: 'google_gmail' }, expect: is([]) }, // it has no budget
  get_sync_state: { args: { ...state, resource: '', account: '' }, expect: isState('syncing') },
  get_sync_states: { args: { user_id: ada }, expect: isStates('syncing') },
  connect_sync: { args: { ...state, resource: '', account: '' }, expect: isState('syncing') },
  disconnect_sync: { args: { ...state, resource: '', account: '' }, expect: is(true) },
  pause_sync: { args: { ...state, resource: '', account: '' }, expect: isState('syncing', { parked_reason: 'paused', due_at: null }) },
  resume_sync: { args: { ...state, resource: '', account: '' }, expect: isState('syncing') },
  connect_account: { args: { user_id: ada, account: '', provider: 'google' }, expect: isStates('syncing') },
  pause_account: { args: { user_id: ada, account: '', provider: 'google' }, expect: isStates('syncing') },
  resume_account: { args: { user_id: ada, account: '', provider: 'google' }, expect: isStates('syncing') },
  disconnect_account: { args: { user_id: ada, account: '', provider: 'google' }, expect: isStates('syncing') },
  set_sync_resources: {
    args: { ...state, resources: ['b', '', 'a'], account: '' },
    expect: is([{ resource: 'a', change: 'added' }, { resource: 'b', change: 'added' }]),
  },
  get_sync_policy: { args: { source: 'google_gmail' }, expect: isPolicy({ sync_interval: '00:15:00', token_ttl: '7 days' }) },
  set_sync_policy: { args: { source: 'google_gmail', changes: { sync_interval: '5 minutes' } }, expect: isPolicy({ sync_interval: '00:05:00' }) },
  pause_sync_source: { args: { source: 'google_gmail', until: '2999-01-01T00:00:00Z' }, expect: isPolicy({ paused_until: '2999-01-01T00:00:00+00:00' }) },
  resume_sync_source: { args: { source: 'google_gmail' }, expect: isPolicy({ paused_until: null }) },
  resync_source: { args: { source: 'google_gmail', spread: '2 days' }, expect: isPolicy({ resync_spread: '2 days' }) },
  revive_syncs: { args: { source: 'google_gmail', reason: 'paused', spread: '1 minute', max_rows: 10 }, expect: is(0) },

  // workers and users
  request_sync: { kind: 'user', args: { ...state, resource: '', account: '' }, expect: is(true) },
  request_account: { kind: 'user', args: { user_id: ada, account: '', provider: 'google' }, expect: is([{ source: 'google_gmail', resource: '' }]) },
  current_user_id: { kind: 'user', args: {}, expect: is(null), expectUser: is(ada) },
  sync_clock: { kind: 'user', args: {}, expect: isTime },
  user_id_of: { kind: 'user', args: { subject: 'user_2NNEqL2nrIRdJ194ndJqAHwEfxC' }, expect: is('76e90ed7-71f9-5f2d-b4b0-b84a5164ed47') },
  is_legal: { kind: 'user', args: { sync_state: ROW }, expect: is(true) },

  // administrators
  grant_worker: { kind: 'admin', args: { role: 'authenticated' } },
  grant_user: { kind: 'admin', args: { role: 'anon' } },
  register_sync_source: { kind: 'admin', args: { label: 'outlook' } },
  watch_users: { kind: 'admin', args: { users: 'syncstate.sync_state', id_column: 'user_id' } },
  check_installation: { kind: 'admin', args: {} },
  present_objects: { kind: 'admin', args: {} },
  installed_objects: { kind: 'admin', args: {} },
};

// ada's Gmail: under lease 1, or due and not held, long enough for stale_after; and
// its channels under leases 1 and 2, or not held.
async function makeRow({ free = false, freeChannels = false } = {}) {
  await admin.query(`INSERT INTO syncstate.sync_policy (source, push_renew_before) VALUES ('google_gmail', '1 day')`);
  await admin.query(`INSERT INTO syncstate.sync_channel (user_id, account, source, resource, state, channel_id, token_hash,
    provider_ref, opened_at, renew_at, lease, lease_expires_at) VALUES
    ($1, '', 'google_gmail', '', 'opening', NULL, NULL, NULL, NULL, now(), 1, $2),
    ($1, '', 'google_gmail', '', 'retiring', 'old', sha256('secret'), 'ref', now(), now(), 2, $2)`,
    [ada, freeChannels ? null : new Date()]);
  await admin.query("SELECT syncstate.mark_sync_started($1, 'google_gmail', '10 minutes')", [ada]);
  if (free)
    await admin.query(`UPDATE syncstate.sync_state SET status = 'idle', last_sync_at = now() - interval '1 hour',
      due_at = now() - interval '1 minute' WHERE user_id = $1`, [ada]);
}

test('the list of calls is complete', async () => {
  const { rows } = await admin.query(`
    SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = 'syncstate'::regnamespace AND prorettype <> 'trigger'::regtype ORDER BY 1`);
  assert.deepEqual(Object.keys(CALLS).sort(), rows.map((row) => row.proname).sort());
});

for (const [name, { first, args, kind = 'worker', free = false, freeChannels = false, expect, expectUser = expect }] of Object.entries(CALLS)) {
  test(`${name}() by rpc()`, async () => {
    const call = async (client) => {
      await reset();
      await makeRow({ free, freeChannels });
      if (first) await ok(worker().rpc(...first));
      const before = await stored(ada, 'google_gmail');
      const answer = await eventually(() => client.rpc(name, args), (got) => !free || found(got));
      if (answer.error) assert.deepEqual(await stored(ada, 'google_gmail'), before, 'a call that fails changes nothing');
      return answer;
    };
    const denied = { message: new RegExp(`^permission denied for function ${name}$`) };

    if (kind === 'admin') await refused(call(worker()), 403, '42501', denied);
    else expect(await ok(call(worker())));
    if (kind === 'user') expectUser(await ok(call(user(ada))));
    else await refused(call(user(ada)), 403, '42501', denied);
    await refused(call(anonymous()), 401, '42501', { message: /^permission denied for schema syncstate$/ });
  });
}

test('trigger functions are not exposed', async () => {
  await refused(worker().rpc('guard'), 404, 'PGRST202');
});

// ---- arguments

test('arguments are chosen by their names', async () => {
  await ok(worker().rpc('mark_sync_started', { source: 'google_tasks', user_id: ada }));
  assert.equal((await stored(ada, 'google_tasks')).status, 'syncing');
  await refused(worker().rpc('mark_sync_started', { source: 'google_tasks' }), 404, 'PGRST202', {
    message: /^Could not find the function syncstate.mark_sync_started\(source\) in the schema cache$/,
  });
  const meant = /^Perhaps you meant to call the function syncstate.mark_sync_started\(account, lease_time, resource, source, user_id\)$/;
  await refused(worker().rpc('mark_sync_started', { ...state, seconds: 5 }), 404, 'PGRST202', {
    message: /^Could not find the function syncstate.mark_sync_started\(seconds, source, user_id\) in the schema cache$/,
    details: / with parameters seconds, source, user_id or with a single unnamed json\/jsonb parameter, but no matches/, hint: meant,
  });
  await refused(worker().rpc('mark_sync_started', { ...state, seconds: 5 }, { get: true }), 404, 'PGRST202', {
    details: / with parameters seconds, source, user_id, but no matches/, hint: meant,
  });
  await refused(worker().rpc('no_such_function', {}), 404, 'PGRST202', { hint: /^$/ });
  await refused(worker().schema('pg_catalog').rpc('now'), 406, 'PGRST106', { hint: /public, syncstate/ });
});

test('a default is not a null', async () => {
  await refused(worker().rpc('mark_sync_started', { ...state, resource: null }), 400, '22023', { message: /^resource must not be null/ });
  await refused(worker().rpc('claim_due_syncs', { max_rows: null }), 400, '22023', { message: /max_rows/ });
  assert.equal((await ok(worker().rpc('mark_sync_started', { ...state, lease_time: null }))).lease, 1);
});

test('bad arguments are 400, with what is wrong', async () => {
  await refused(worker().rpc('claim_due_syncs', { max_rows: 0 }), 400, '22023', { message: /^max_rows must be between 1 and 10000$/, details: /0/ });
  await refused(worker().rpc('claim_due_syncs', { source: 'google_mail' }), 400, '22P02', { message: /enum/ });
  await refused(worker().rpc('get_sync_states', { user_id: 'ada' }), 400, '22P02', { message: /uuid/ });
  await refused(worker().rpc('claim_due_syncs', { lease_time: 'soon' }), 400, '22007');
  await refused(worker().rpc('report_syncs', { results: { outcome: 'completed' } }), 400, '22023');
  await refused(worker().rpc('set_sync_policy', { source: 'google_gmail', changes: { interval: '1 hour' } }), 400, '22023');
});

test('what writes cannot be called by GET', async () => {
  await refused(worker().rpc('claim_due_syncs', { max_rows: 1 }, { get: true }), 405, '25006', { message: /read-only transaction/ });
  await refused(worker().rpc('mark_sync_started', state, { get: true }), 405, '25006');
  assert.equal(await stored(ada, 'google_gmail'), undefined);
  // and what only reads can, and does so read-only by POST too
  assert.deepEqual(await ok(worker().rpc('get_users_needing_sync', { source: 'google_gmail' }, { get: true })), []);
  // null when what earlier tests have deleted is gone from the indexes, too
  await eventually(async () => {
    await admin.query('VACUUM syncstate.sync_state');
    return ok(worker().rpc('next_sync_due'));
  }, (due) => due === null);
});

test('a call by GET takes its arguments from the query string, beside filters', async () => {
  await ok(worker().rpc('mark_sync_started', state));
  const get = (path) => raw('GET', `rpc/${path}`);
  const both = await get(`get_sync_states?user_id=${ada}&user_id=eq.${ada}&source=not.is.null&select=source`);
  assert.deepEqual([both.status, both.body], [200, [{ source: 'google_gmail' }]]);
  assert.deepEqual((await get(`get_sync_states?user_id=${ada}&user_id=neq.${ada}`)).body, []);
  assert.deepEqual((await get('report_syncs?results=[]')).body, []);
  const written = await get('set_sync_policy?source=google_gmail&changes={}');
  assert.deepEqual([written.status, written.body.code], [405, '25006']);
  // null is a text like any other
  await refused(worker().rpc('mark_sync_started', { ...state, lease_time: null }, { get: true }), 400, '22007', { message: /"null"/ });
  await ok(worker().rpc('connect_sync', { ...state, resource: 'null' }));
  assert.equal((await ok(worker().rpc('get_sync_state', { ...state, resource: null }, { get: true }))).resource, 'null');
});

test('an interval is text or seconds', async () => {
  const leased = async (lease_time) => {
    const row = await ok(worker().rpc('mark_sync_started', { ...state, source: 'google_tasks', lease_time }));
    await ok(worker().rpc('release_sync', { ...state, source: 'google_tasks', lease: row.lease }));
    return (Date.parse(row.lease_expires_at) - Date.parse(row.last_sync_at)) / 1000;
  };
  assert.deepEqual([await leased('5 minutes'), await leased('PT5M'), await leased(300)], [300, 300, 300]);
  assert.equal(await leased({ minutes: 5 }), 5); // not what was meant, and nobody can tell
  await refused(worker().rpc('set_sync_policy', { source: 'google_gmail', changes: { token_ttl: { days: 7 } } }), 400, '22023', { message: /^token_ttl must be an interval/ });
  await refused(worker().rpc('update_sync_state', { ...state, source: 'google_tasks', changes: { sync_interval: { hours: 1 } } }), 400, '22023', { message: /^sync_interval must be an interval/ });
});

// ---- what the layer does to answers

const leases = async () => Number((await admin.query("SELECT count(*) FROM syncstate.sync_state WHERE status = 'syncing'")).rows[0].count);
const claim = (max_rows) => worker().rpc('claim_due_syncs', { max_rows });

test('a limit on the rows of an answer cuts off what was done', async () => {
  const usual = double;
  const limited = double = await startRest({ maxRows: 5 });
  try {
    await makeDue(20);
    const claimed = await claim(12);
    assert.deepEqual([claimed.data.length, claimed.status, await leases()], [5, 200, 12]);
    assert.equal((await ok(worker().rpc('get_users_needing_sync', { source: 'google_gmail' }))).length, 5);
    const { rows } = await admin.query("SELECT user_id, source, lease FROM syncstate.sync_state WHERE status = 'syncing'");
    const reported = await ok(worker().rpc('report_syncs', { results: rows.map((row) => ({ ...row, outcome: 'completed' })) }));
    assert.deepEqual([reported.length, await leases()], [5, 0]);
    const all = await worker().from('sync_state').select('user_id', { count: 'exact' });
    assert.deepEqual([all.status, all.count, all.data.length], [206, 20, 5]);
  } finally {
    double = usual;
    await limited.close();
  }
});

test('filters and limits apply to the answer of a claim', async () => {
  await makeDue(12);
  assert.equal((await ok(claim(3).limit(1))).length, 1);
  assert.equal(await leases(), 3);
  assert.deepEqual(await ok(claim(3).eq('source', 'google_tasks')), []);
  assert.equal(await leases(), 6);
  const counted = await worker().rpc('claim_due_syncs', { max_rows: 3 }, { count: 'exact' });
  assert.deepEqual([counted.data.length, counted.count, await leases()], [3, 3, 9]);
  const [{ user_id }] = counted.data;
  const one = await worker().rpc('get_sync_states', { user_id }, { count: 'exact' }).eq('source', 'google_tasks');
  assert.deepEqual([one.data, one.count], [[], 0]);
  // behind the last row, too, the claim is there
  const behind = await worker().rpc('claim_due_syncs', { max_rows: 3 }, { count: 'exact' }).range(10, 20);
  assert.deepEqual([behind.status, behind.error.code, await leases()], [416, 'PGRST103', 12]);
});

test('a single row of a claim', async () => {
  assert.equal(await ok(claim(1).maybeSingle()), null);
  await makeDue(6);
  await refused(claim(3).single(), 406, 'PGRST116', { details: /^The result contains 3 rows$/ });
  assert.equal(await leases(), 0);
  // the client asks for all rows, and looks then
  const many = await eventually(() => claim(3).maybeSingle(), found);
  assert.deepEqual([many.data, many.error.code, await leases()], [null, 'PGRST116', 3]);
  assert.equal((await ok(eventually(() => claim(1).maybeSingle(), found))).status, 'syncing');
  assert.equal(await leases(), 4);
  // or it sets a bound: more, and nothing is done
  await refused(eventually(() => claim(2).maxAffected(1), found), 400, 'PGRST124', { message: /^Query result exceeds max-affected preference constraint$/, details: /^The query affects 2 rows$/ });
  assert.equal(await leases(), 4);
  assert.equal((await ok(eventually(() => claim(2).maxAffected(2), found))).length, 2);
});

test('rows of a call are ordered by columns that are selected', async () => {
  const sourceOnly = (query) => query.select('source').order('due_at');
  await makeDue(2);
  await refused(sourceOnly(claim(2)), 400, '42703', { message: /^column sync_state.due_at does not exist$/ });
  assert.equal(await leases(), 0);
  const rows = await eventually(() => claim(2).select('source, due_at').order('due_at').gt('lease', 0), found);
  assert.deepEqual(rows.data.map((row) => Object.keys(row)), [['source', 'due_at'], ['source', 'due_at']]);
  const insert = () => worker().from('sync_state').insert({ ...state });
  await refused(sourceOnly(insert()), 400, '42703');
  assert.deepEqual(await ok(insert().select('status').order('source'), 201), [{ status: 'idle' }]); // a column of the key
  assert.equal((await ok(sourceOnly(worker().from('sync_state')))).length, 3);
});

test('a state that is not there, as null', async () => {
  const get = () => worker().rpc('get_sync_state', state).not('user_id', 'is', null).maybeSingle();
  assert.equal(await ok(get()), null);
  await ok(worker().rpc('connect_sync', state));
  assert.equal((await ok(get())).source, 'google_gmail');
});

test('a source is paused to infinity', async () => {
  assert.equal((await ok(worker().rpc('pause_sync_source', { source: 'google_gmail' }))).paused_until, 'infinity');
  assert.ok(Number.isNaN(Date.parse('infinity')));
});

test('a call that waits too long is 500, and can be sent again', async () => {
  const { lease } = await ok(worker().rpc('mark_sync_started', state));
  const report = () => worker().rpc('mark_sync_completed', { ...state, lease });
  const usual = double;
  let impatient;
  await admin.query("ALTER ROLE service_role SET statement_timeout = '200ms'");
  try {
    impatient = double = await startRest();
    await admin.query('BEGIN');
    await admin.query('SELECT FROM syncstate.sync_state FOR UPDATE');
    await refused(report(), 500, '57014', { message: /statement timeout/ });
  } finally {
    double = usual;
    await admin.query('ROLLBACK; ALTER ROLE service_role RESET statement_timeout');
    await impatient?.close();
  }
  assert.equal((await ok(report())).status, 'idle');
});

test('an overloaded name is refused, which is why we have none', async () => {
  const twice = (args) => worker().schema('public').rpc('twice', args);
  await refused(twice({ a: 1 }), 300, 'PGRST203');
  assert.equal(await ok(twice({ a: 1, b: 2 })), 3);
  assert.equal(await ok(twice({ a: 1, c: 'x' })), '1x');
});

// ---- leases

test('a lost lease is 409, a missing row 404', async () => {
  const first = await ok(worker().rpc('mark_sync_started', state));
  await refused(worker().rpc('mark_sync_started', state), 409, 'PT409', { message: /held by another worker/, details: /lease expires at/, hint: /request_sync/ });
  await admin.query("UPDATE syncstate.sync_state SET lease_expires_at = now() - interval '1 second' WHERE user_id = $1", [ada]);
  const second = await ok(worker().rpc('mark_sync_started', state));
  assert.equal(second.lease, first.lease + 1);

  const late = { ...state, lease: first.lease };
  const before = await stored(ada, 'google_gmail');
  for (const [name, more] of Object.entries({
    mark_sync_completed: { sync_token: 'stale' }, mark_sync_failed: { error_message: 'late' }, mark_rate_limited: {},
    clear_sync_token: {}, renew_sync_lease: {}, checkpoint_sync: { page_token: 'late' }, release_sync: {},
  })) {
    const { statusText } = await refused(worker().rpc(name, { ...late, ...more }), 409, 'PT409', {
      message: /^lease on sync state is no longer held$/,
      details: /^Key \(user_id, account, source, resource\)=\([-0-9a-f]{36}, , google_\w+, \)\.  The call gave lease 1; the row is held under lease 2\.$/,
      hint: /^Drop the work and claim again\.$/,
    });
    assert.equal(statusText, 'lease on sync state is no longer held');
    await refused(worker().rpc(name, { ...late, ...more, resource: 'gone' }), 404, 'PT404');
  }
  assert.deepEqual(await ok(worker().rpc('report_syncs', { results: [{ ...late, outcome: 'completed' }] })), []);
  assert.deepEqual(await stored(ada, 'google_gmail'), before);

  // nor does a report that is sent twice
  const report = { ...state, lease: second.lease, items_synced: 3 };
  const done = await ok(worker().rpc('mark_sync_completed', report));
  await refused(worker().rpc('mark_sync_completed', report), 409, 'PT409');
  assert.deepEqual(await ok(worker().rpc('get_sync_state', state)), done);
});

test('items and cursor in one transaction, by a function of the site', async () => {
  const calendar = { user_id: ada, source: 'google_calendar' };
  const commit = (lease, items, sync_token) =>
    worker().schema('public').rpc('commit_events', { user_id: ada, lease, items, sync_token });
  const titles = async () => (await ok(worker().schema('public').from('events').select('title').eq('user_id', ada).order('id'))).map((row) => row.title);
  const { lease } = await ok(worker().rpc('mark_sync_started', calendar));
  const done = await ok(commit(lease, [{ id: 'e1', title: 'Breakfast' }, { id: 'e2', title: 'Dentist' }], 'token-1'));
  assert.deepEqual([done.status, done.sync_token, done.items_synced], ['idle', 'token-1', 2]);
  assert.deepEqual(await titles(), ['Breakfast', 'Dentist']);
  await refused(commit(lease, [{ id: 'e1', title: 'stale' }], 'stale'), 409, 'PT409');
  assert.deepEqual(await titles(), ['Breakfast', 'Dentist']);
  assert.equal((await stored(ada, 'google_calendar')).sync_token, 'token-1');
  await refused(user(ada).schema('public').rpc('commit_events', { user_id: ada, lease: 2, items: [], sync_token: 'x' }), 403, '42501');
});

test('no row is one of nulls, as of any function that returns a row', async () => {
  const none = await ok(worker().rpc('get_sync_state', state));
  assert.ok('user_id' in none && Object.values(none).every((value) => value === null), JSON.stringify(none));
  assert.deepEqual(await ok(worker().rpc('get_sync_states', { user_id: ada })), []);
});

test('workers at once never get the same row', async () => {
  await makeDue(60);
  const claims = await Promise.all(Array.from({ length: 12 }, () => ok(worker().rpc('claim_due_syncs', { max_rows: 10 }))));
  const claimed = claims.flat().map((row) => row.user_id);
  assert.equal(new Set(claimed).size, claimed.length);
  while (claimed.length < 60) {
    const more = await ok(worker().rpc('claim_due_syncs', { max_rows: 10 }));
    assert.notEqual(more.length, 0, 'rows are left that nobody can claim');
    claimed.push(...more.map((row) => row.user_id));
  }
  assert.equal(new Set(claimed).size, 60);
});

// ---- events

test('events are taken once, the oldest first', async () => {
  const take = (more) => worker().rpc('take_sync_events', more);
  assert.deepEqual(await ok(take({})), []);
  await ok(worker().rpc('mark_sync_completed', { ...state, history_id: '7' }));
  await ok(worker().rpc('mark_sync_failed', { ...state, error_message: 'invalid_grant', kind: 'auth' }));
  await ok(worker().rpc('connect_sync', state));
  await ok(worker().rpc('mark_sync_completed', state));
  await ok(worker().rpc('pause_sync_source', { source: 'google_tasks', until: '2999-01-01T00:00:00Z' }));

  const what = ({ event, user_id, source, reason, detail }) => [event, user_id, source, reason, detail];
  await refused(worker().rpc('take_sync_events', {}, { get: true }), 405, '25006');
  const [first, second] = await ok(take({ max_rows: 2 }));
  assert.deepEqual([first, second].map(what), [
    ['first_sync', ada, 'google_gmail', null, null], ['parked', ada, 'google_gmail', 'auth', 'invalid_grant']]);
  assert.notEqual(first.id, second.id);
  assert.ok(Date.parse(first.at) <= Date.parse(second.at));
  assert.deepEqual((await ok(worker().from('sync_event').select('event').order('at'))).map((row) => row.event), ['recovered', 'source_limited']);
  assert.deepEqual((await ok(take())).map(what), [
    ['recovered', ada, 'google_gmail', null, null], ['source_limited', null, 'google_tasks', 'paused', '2999-01-01T00:00:00+00:00']]);
  assert.deepEqual(await ok(take({})), []);
});

test('two never take the same event', async () => {
  await admin.query(`SELECT syncstate.mark_sync_completed(gen_random_uuid(), 'google_gmail') FROM generate_series(1, 60)`);
  const taken = (await Promise.all(Array.from({ length: 12 }, () => ok(worker().rpc('take_sync_events', { max_rows: 10 }))))).flat();
  taken.push(...await ok(worker().rpc('take_sync_events', { max_rows: 100 })));
  assert.equal(taken.length, 60);
  assert.equal(new Set(taken.map((event) => event.id)).size, 60);
});

// ---- push channels

// Claims until so many tasks have come: a session for which it takes long to compare
// channels with rows does not do so each time.
async function claimTasks(claim, count) {
  const tasks = [];
  for (const deadline = Date.now() + 120_000; tasks.length < count; ) {
    assert.ok(Date.now() < deadline, `${tasks.length} tasks, and no more`);
    tasks.push(...(await claim()));
  }
  return tasks;
}

test('a channel is opened, heard, renewed and stopped', async () => {
  const calendar = { user_id: ada, source: 'google_calendar', resource: 'c', account: 'work' };
  const claim = () => ok(worker().rpc('claim_push_channels', { source: 'google_calendar' }));
  // the lease of the one task that there is
  const claimOne = async (...task) => {
    const tasks = await claimTasks(claim, 1);
    assert.deepEqual(tasks.map(({ action, channel_id }) => [action, channel_id]), [task]);
    return tasks[0].lease;
  };
  const push = (client, args) => ok(client.rpc('receive_push', args));
  const expires_at = new Date(Date.now() + 604_800_000).toISOString();
  await ok(worker().rpc('connect_sync', calendar));
  assert.deepEqual(await claim(), []);
  await ok(worker().rpc('set_sync_policy', { source: 'google_calendar', changes: { push_renew_before: '1 day' } }));
  let lease = await claimOne('open', null);
  await refused(worker().rpc('claim_push_channels', {}, { get: true }), 405, '25006');
  await refused(worker().rpc('mark_channel_failed', { ...calendar, lease: lease + 1, error_message: 'x' }), 409, 'PT409', { message: /^lease on push channel is no longer held$/ });
  await refused(worker().rpc('mark_channel_opened', { ...calendar, lease, channel_id: 'a', expires_at: '2020-01-01', token: 's' }), 400, '22023', { message: /^expires_at must be later than now$/ });
  const opened = await ok(worker().rpc('mark_channel_opened', { ...calendar, lease, channel_id: 'a', expires_at, token: 'secret' }));
  assert.deepEqual([opened.state, opened.token_hash, Date.parse(opened.expires_at)], ['active', SECRET_HASH, Date.parse(expires_at)]);
  const row = await ok(worker().rpc('get_sync_state', calendar));
  assert.ok(Date.parse(row.push_until) > Date.now() + 80_000_000, row.push_until);

  // by workers; by others only if they are given it
  assert.equal(await push(worker(), { channel_id: 'a', token: 'secret', message_number: 1 }), true);
  assert.equal(await push(worker(), { channel_id: 'a', token: 'another', message_number: 2 }), false);
  await refused(anonymous().rpc('receive_push', { channel_id: 'a', token: 'secret' }), 401, '42501', { message: /^permission denied for schema syncstate$/ });
  await refused(worker().rpc('receive_push', { channel_id: 'a', token: 'secret' }, { get: true }), 405, '25006');
  await refused(user(ada).from('sync_channel').select('*'), 403, '42501');
  const [{ last_push_at, message_number }] = await ok(worker().from('sync_channel').select('*').eq('channel_id', 'a'));
  assert.ok(Math.abs(Date.parse(last_push_at) - Date.now()) < 600_000, last_push_at);
  assert.equal(message_number, 1);

  await admin.query('UPDATE syncstate.sync_channel SET renew_at = now()');
  lease = await claimOne('renew', 'a');
  await ok(worker().rpc('mark_channel_opened', { ...calendar, lease, channel_id: 'b', expires_at, token: 'secret' }));
  assert.equal(await push(worker(), { channel_id: 'a', token: 'secret' }), true);
  assert.equal(await push(worker(), { channel_id: 'b', token: 'secret' }), true);
  lease = await claimOne('stop', 'a');
  assert.equal((await ok(worker().rpc('mark_channel_stopped', { ...calendar, lease }))).channel_id, 'a');
  assert.equal(await push(worker(), { channel_id: 'a', token: 'secret' }), false);
  assert.deepEqual(await claim(), []);
  assert.equal((await ok(worker().from('sync_overview').select('channels_active').eq('source', 'google_calendar').single())).channels_active, 1);
});

// ---- numbers

test('large integers stay what they are', async () => {
  const history_id = '18446744073709551615';
  assert.equal((await ok(worker().rpc('mark_sync_completed', { ...state, history_id }))).history_id, history_id);
  assert.equal((await ok(worker().rpc('get_sync_state', state))).history_id, history_id);
  await ok(worker().rpc('report_syncs', { results: [{ ...(await started()), outcome: 'completed', history_id: '18446744073709551614' }] }));
  assert.equal((await stored(ada, 'google_gmail')).history_id, history_id); // never back

  // A bigint is a number in JSON, which JavaScript rounds: 2^53 + 1 goes there
  // as text, and comes back as text if asked for as text.
  const items_synced = '9007199254740993';
  const rounded = await ok(worker().rpc('mark_sync_completed', { ...state, items_synced }));
  assert.equal((await stored(ada, 'google_gmail')).items_synced, items_synced);
  assert.equal(rounded.items_synced, 9007199254740992);
  const exact = await ok(worker().rpc('get_sync_state', state).select('items_synced::text, lease::text'));
  assert.deepEqual(exact, { items_synced, lease: '1' });

  await admin.query("UPDATE syncstate.sync_state SET lease = 9007199254740992 WHERE user_id = $1", [ada]);
  const lease = (await ok(worker().rpc('mark_sync_started', state).select('lease::text'))).lease;
  assert.equal(lease, '9007199254740993');
  await refused(worker().rpc('renew_sync_lease', { ...state, lease: '9007199254740992' }), 409, 'PT409');
  await ok(worker().rpc('renew_sync_lease', { ...state, lease }));

  async function started() {
    const row = await ok(worker().rpc('mark_sync_started', state));
    return { ...state, lease: row.lease };
  }
});

test('texts of any language and length go through', async () => {
  const error_message = 'Zugriff verweigert: "ключ" \\ 鍵 \u{1F511}\n\tend';
  const resource = "team's calendar/\u{1F4C5}, (all) & more";
  await ok(worker().rpc('mark_sync_failed', { ...state, resource, error_message }));
  assert.equal((await stored(ada, 'google_gmail', resource)).error_message, error_message);
  assert.equal((await ok(user(ada).from('my_syncs').select('error_message').eq('resource', resource).single())).error_message, error_message);
  await refused(worker().rpc('mark_sync_failed', { ...state, error_message: 'a\u0000b' }), 400, '22P05');
});

// ---- users

async function makeUsers() {
  for (const [user_id, source, resource, error] of [
    [ada, 'google_contacts', '', null], [ada, 'google_calendar', 'a', 'HTTP 500'], [ada, 'google_calendar', 'b', null],
    [ada, 'google_gmail', '', null], [ben, 'google_gmail', '', 'HTTP 401'],
  ]) {
    await ok(worker().rpc('mark_sync_completed', { user_id, source, resource, items_synced: resource.length, sync_token: 'secret' }));
    if (error) await ok(worker().rpc('mark_sync_failed', { user_id, source, resource, error_message: error }));
  }
  await ok(worker().rpc('pause_sync', { user_id: ada, source: 'google_gmail' }));
}
const keys = (rows) => rows.map((row) => row.source.replace('google_', '') + (row.resource && `/${row.resource}`)).join(' ');

test('my_syncs: own rows only, by any filter and order', async () => {
  await makeUsers();
  const mine = () => user(ada).from('my_syncs').select('*');
  const all = await ok(mine());
  assert.equal(all.length, 4);
  assert.ok(all.every((row) => row.user_id === ada));
  for (const column of ['sync_token', 'history_id', 'updated_min', 'page_token', 'lease', 'lease_expires_at'])
    assert.ok(!(column in all[0]), column);

  // an enum's order is that of its labels
  assert.equal(keys(await ok(mine().order('source').order('resource', { ascending: false }))), 'calendar/b calendar/a gmail contacts');
  assert.equal(keys(await ok(mine().order('due_at', { nullsFirst: true }).limit(1))), 'gmail');
  assert.equal(keys(await ok(mine().eq('source', 'google_calendar').order('resource'))), 'calendar/a calendar/b');
  assert.equal(keys(await ok(mine().in('source', ['google_gmail', 'google_contacts']).order('source'))), 'gmail contacts');
  assert.equal(keys(await ok(mine().eq('status', 'error'))), 'calendar/a');
  assert.equal(keys(await ok(mine().gt('source', 'google_tasks').order('source'))), 'gmail contacts');
  assert.equal(keys(await ok(mine().is('due_at', null))), 'gmail');
  assert.equal(keys(await ok(mine().not('error_message', 'is', null))), 'calendar/a');
  assert.equal(keys(await ok(mine().ilike('error_message', '%http%'))), 'calendar/a');
  assert.equal(keys(await ok(mine().or('parked_reason.eq.paused,failures.gte.1').order('source'))), 'calendar/a gmail');
  assert.equal(keys(await ok(mine().lte('due_at', new Date(Date.now() + 60_000).toISOString()))), 'calendar/a');
  assert.equal((await ok(mine().eq('user_id', ben))).length, 0);
  assert.deepEqual(await ok(user(ada).from('my_syncs').select('what:source, items_synced').eq('resource', 'a').single()),
    { what: 'google_calendar', items_synced: 1 });

  const page = await user(ada).from('my_syncs').select('source', { count: 'exact' }).order('source').range(1, 2);
  assert.deepEqual([page.status, page.count, page.data.length], [206, 4, 2]);
  const behind = await user(ada).from('my_syncs').select('source', { count: 'exact' }).range(10, 20);
  assert.deepEqual([behind.status, behind.error.code, behind.error.details], [416, 'PGRST103', 'An offset of 10 was requested, but there are only 4 rows.']);
  const counted = await user(ada).from('my_syncs').select('*', { count: 'exact', head: true });
  assert.deepEqual([counted.status, counted.count], [200, 4]);
  assert.equal(await ok(mine().eq('source', 'google_tasks').maybeSingle()), null);
  await refused(mine().single(), 406, 'PGRST116');

  assert.equal((await ok(user(ben).from('my_syncs').select('*'))).length, 1);
  assert.equal((await ok(user(randomUUID()).from('my_syncs').select('*'))).length, 0);
  assert.equal((await ok(worker().from('my_syncs').select('*'))).length, 0); // a service key is nobody
});

test('users see no cursor and write nothing', async () => {
  await makeUsers();
  const before = [await stored(ada, 'google_contacts'), await stored(ben, 'google_gmail')];
  const denied = [403, '42501', { message: /^permission denied/ }];
  await refused(user(ada).from('my_syncs').select('sync_token'), 400, '42703');
  await refused(user(ada).from('sync_state').select('sync_token'), ...denied);
  await refused(user(ada).from('sync_state').select('*'), ...denied);
  await refused(user(ada).from('sync_policy').select('*'), ...denied);
  await refused(user(ada).from('sync_overview').select('*'), ...denied);
  await refused(user(ada).from('sync_state').insert({ user_id: ada, source: 'google_tasks' }), ...denied);
  await refused(user(ada).from('sync_state').update({ due_at: null }).eq('user_id', ben), ...denied);
  await refused(user(ada).from('sync_state').delete().eq('user_id', ada), ...denied);
  await refused(anonymous().from('my_syncs').select('*'), 401, '42501');
  assert.deepEqual([await stored(ada, 'google_contacts'), await stored(ben, 'google_gmail')], before);
});

test('users request syncs of their own rows', async () => {
  await makeUsers();
  assert.equal(await ok(user(ada).rpc('request_sync', { user_id: ada, source: 'google_contacts' })), true);
  assert.equal(await ok(user(ada).rpc('request_sync', { user_id: ada, source: 'google_gmail' })), false); // parked
  await refused(user(ada).rpc('request_sync', { user_id: ben, source: 'google_gmail' }), 404, 'PT404', { message: /^sync state does not exist or is not visible$/ });
  await refused(user(ada).rpc('request_sync', { user_id: ada, source: 'google_tasks' }), 404, 'PT404', { message: /^sync state does not exist or is not visible$/ });
  assert.notEqual((await stored(ada, 'google_contacts')).requested_at, null);
  assert.equal((await stored(ben, 'google_gmail')).requested_at, null);
});

test('my_sync_runs: own runs only, and no lease', async () => {
  for (const source of ['google_calendar', 'google_gmail'])
    await ok(worker().rpc('set_sync_policy', { source, changes: { keep_runs: 'all' } }));
  await makeUsers();
  for (const user_id of [ada, ben]) {
    await ok(worker().rpc('mark_sync_started', { user_id, source: 'google_gmail' }));
    await ok(worker().rpc('mark_sync_failed', { user_id, source: 'google_gmail', error_message: `of ${user_id}` }));
    await ok(worker().rpc('mark_sync_started', { user_id, source: 'google_gmail' }));
    await ok(worker().rpc('mark_sync_completed', { user_id, source: 'google_gmail', items_synced: 4 }));
  }
  const runs = () => user(ada).from('my_sync_runs').select('*');
  const mine = await ok(runs().order('ended_at', { ascending: false }));
  assert.deepEqual(mine.map((row) => [row.user_id, row.outcome, row.items, row.error_message]),
    [[ada, 'completed', 4, null], [ada, 'failed', null, `of ${ada}`]]);
  assert.ok(!('lease' in mine[0]));
  assert.equal((await ok(runs().eq('outcome', 'failed').single())).was_requested, false);
  assert.deepEqual(await ok(runs().eq('user_id', ben)), []);
  assert.equal((await ok(user(ben).from('my_sync_runs').select('*'))).length, 2);
  assert.deepEqual(await ok(user(randomUUID()).from('my_sync_runs').select('*')), []);
  assert.deepEqual(await ok(worker().from('my_sync_runs').select('*')), []);
  assert.equal((await ok(worker().from('sync_run').select('*'))).length, 4);

  // nor do users get more from the tables
  const denied = [403, '42501', { message: /^permission denied/ }];
  await refused(user(ada).from('my_sync_runs').select('lease'), 400, '42703');
  await refused(user(ada).from('sync_run').select('*'), ...denied);
  await refused(user(ada).from('sync_run').select('lease'), ...denied);
  await refused(user(ada).from('sync_run').delete().eq('user_id', ada), ...denied);
  await refused(user(ada).from('sync_event').select('id'), ...denied);
  await refused(user(ada).from('sync_event').delete().eq('user_id', ada), ...denied);
  assert.deepEqual(await ok(user(ada).from('sync_run').select('user_id').eq('user_id', ben)), []);
  for (const name of ['my_sync_runs', 'sync_run', 'sync_event'])
    await refused(anonymous().from(name).select('source'), 401, '42501');
});

test('my_syncs cannot be published, so Realtime cannot follow it', async () => {
  await assert.rejects(admin.query('CREATE PUBLICATION regress_syncstate FOR TABLE syncstate.my_syncs'), /cannot add relation "my_syncs" to publication/);
});

test('tokens that are expired, forged or none', async () => {
  await makeUsers();
  const ask = (text) => withToken(text).from('my_syncs').select('*');
  await refused(ask(userToken(ada, { exp: now - 3600 })), 401, 'PGRST303', { message: /^JWT expired$/ });
  await refused(ask(userToken(ada, { nbf: now + 3600 })), 401, 'PGRST303');
  const claims = { role: 'authenticated', sub: ada, exp: now + 3600 };
  const noKey = { message: /^No suitable key or wrong key type$/, details: /^None of the keys was able to decode the JWT$/ };
  await refused(ask(sign(claims, 'another secret of as many characters')), 401, 'PGRST301', noKey);
  await refused(ask(sign(claims, SECRET, { alg: 'none' })), 401, 'PGRST301', {
    message: /^Wrong or unsupported encoding algorithm$/, details: /^JWT is unsecured but expected 'alg' was not 'none'$/,
  });
  const [header, , signature] = userToken(ben).split('.');
  const forged = Buffer.from(JSON.stringify({ ...claims, role: 'service_role' })).toString('base64url');
  await refused(ask(`${header}.${forged}.${signature}`), 401, 'PGRST301', noKey);
  assert.equal((await raw('GET', 'my_syncs', { key: `${header}.${forged}.${signature}` })).headers.get('WWW-Authenticate'),
    'Bearer error="invalid_token", error_description="No suitable key or wrong key type"');
  await refused(withToken(`${header}.${forged}.${signature}`).rpc('claim_due_syncs'), 401, 'PGRST301');
  await refused(ask('abc'), 401, 'PGRST301');

  await refused(ask(userToken(['no subject'])), 400, '22P02');
  assert.equal((await ok(ask(userToken('user_2NNEqL2nrIRdJ194ndJqAHwEfxC')))).length, 0); // a user as any other
  await refused(ask(userToken(ada, { role: 'supabase_admin' })), 401, '22023'); // no such role here
  await refused(ask(userToken(ada, { role: 'regress_syncstate_outsider' })), 403, '42501');
  assert.equal((await ok(ask(userToken(ada)))).length, 4);
  assert.equal((await ok(ask(userToken('')))).length, 0);
});

test('nobody leaves an identity behind in a connection', async () => {
  await makeUsers();
  const turns = await Promise.all(Array.from({ length: 60 }, async (_, i) => {
    if (i % 4 === 0) return (await user(ada).from('my_syncs').select('*')).data?.length;
    if (i % 4 === 1) return (await user(ben).from('my_syncs').select('*')).data?.length;
    if (i % 4 === 2) return (await worker().rpc('current_user_id')).data;
    return (await anonymous().from('my_syncs').select('*')).status;
  }));
  turns.forEach((turn, i) => assert.equal(turn, [4, 1, null, 401][i % 4], `turn ${i}`));
});

test('settings of a role apply', async () => {
  // to show them, a function of the site's own
  assert.equal(await ok(worker().schema('public').rpc('setting', { name: 'statement_timeout' })), '0');
  assert.equal(await ok(user(ada).schema('public').rpc('setting', { name: 'statement_timeout' })), '8s');
  assert.equal(await ok(user(ada).schema('public').rpc('setting', { name: 'role' })), 'authenticated');
  assert.equal(await ok(worker().schema('syncstate').rpc('current_user_id')), null);
});

// ---- tables

test('workers write the table as if it were any other', async () => {
  const table = () => worker().from('sync_state');
  const options = { onConflict: 'user_id,account,source,resource' };
  await ok(table().upsert({ ...state, status: 'syncing' }, options), 201);
  const first = await stored(ada, 'google_gmail');
  assert.equal(first.lease, '1');
  assert.notEqual(first.lease_expires_at, null);
  const [row] = await ok(table().upsert([{ ...state, status: 'idle', history_id: '18446744073709551615' }], options).select(), 200); // 201 where a row is new
  assert.deepEqual([row.status, row.lease_expires_at, row.history_id], ['idle', null, '18446744073709551615']);
  await refused(table().insert(state), 409, '23505');
  await refused(table().upsert({ ...state, status: 'done' }, options), 400, '22P02');
  await refused(table().update({ failures: -1 }).eq('user_id', ada), 400, '23514');
  await refused(table().update({ no_such: 1 }).eq('user_id', ada), 400, 'PGRST204');
  await ok(table().update({ error_message: 'by hand' }).eq('user_id', ada).eq('source', 'google_gmail'), 204);
  assert.equal((await stored(ada, 'google_gmail')).error_message, 'by hand');
  assert.equal((await ok(worker().from('sync_overview').select('rows, idle').eq('source', 'google_gmail').single())).rows, 1);
  await ok(table().delete().eq('user_id', ada), 204);
  assert.equal(await stored(ada, 'google_gmail'), undefined);
});

test('objects with different keys', async () => {
  const table = () => worker().from('sync_state');
  const objects = [{ ...state, resource: 'a' }, { ...state, due_at: '2030-01-01T00:00:00Z' }];
  const options = { onConflict: 'user_id,account,source,resource' };
  // null where a key is missing, or the default of its column
  await refused(table().upsert(objects, options), 400, '23502', { message: /column "resource"/ });
  await ok(table().upsert(objects, { ...options, defaultToNull: false }), 201);
  await ok(table().upsert([{ ...state, resource: 'b' }, { ...objects[1], status: 'idle' }], { ...options, defaultToNull: false }), 201);
  await ok(table().upsert(objects, { ...options, defaultToNull: false }), 200);
  const one = await raw('POST', 'sync_state?columns=user_id,source,resource,status',
    { body: JSON.stringify({ ...state, resource: 'c' }), headers: { Prefer: 'missing=default' } });
  assert.equal(one.status, 201);
  // a limit is no part of a write
  assert.equal((await ok(table().upsert(objects, { ...options, defaultToNull: false }).select('source').limit(1), 200)).length, 2);
  const rows = await ok(table().select('resource, status').order('resource'));
  assert.deepEqual(rows, ['', 'a', 'b', 'c'].map((resource) => ({ resource, status: 'idle' })));
  // without columns=, which supabase-js sends with every array
  const { status, body } = await raw('POST', 'sync_state', { body: JSON.stringify(objects) });
  assert.deepEqual([status, body.code, body.message], [400, 'PGRST102', 'All object keys must match']);
});

test('a write of more rows than expected is none', async () => {
  await makeDue(3);
  const table = () => worker().from('sync_state');
  await refused(table().update({ error_message: 'x' }).eq('source', 'google_gmail').maxAffected(2), 400, 'PGRST124');
  await refused(table().delete().eq('source', 'google_gmail').maxAffected(2), 400, 'PGRST124', { details: /^The query affects 3 rows$/ });
  assert.equal((await ok(table().select('user_id').is('error_message', null))).length, 3);
  await ok(table().delete().eq('source', 'google_gmail').maxAffected(3), 204);
});

test('half of a surrogate pair is no text', async () => {
  for (const [path, column] of [['rpc/mark_sync_failed', 'error_message'], ['sync_state', 'resource']]) {
    const { status, body } = await raw('POST', path, { body: `{"user_id": "${ada}", "source": "google_gmail", "${column}": "\\ud800"}` });
    assert.deepEqual([status, body.code, body.message], [400, 'PGRST102', 'Empty or invalid json']);
  }
});

test('headers of answers', async () => {
  const shown = async (method, path, prefer, body) => {
    const { status, headers } = await raw(method, path, { body: body && JSON.stringify(body), headers: { Prefer: prefer } });
    return [status, ...['Content-Type', 'Content-Range', 'Content-Profile', 'Content-Location', 'Preference-Applied', 'Proxy-Status', 'Vary'].map((name) => headers.get(name))];
  };
  const json = 'application/json; charset=utf-8', vary = 'Accept, Prefer, Range';
  const row = (resource) => ({ ...state, resource });
  assert.deepEqual(await shown('POST', 'sync_state', 'return=minimal', row('a')), [201, null, '*/*', null, null, 'return=minimal', null, vary]);
  assert.deepEqual(await shown('POST', 'sync_state', 'return=representation, count=exact, missing=default', [row('b'), row('c')]),
    [201, json, '*/2', 'syncstate', null, 'missing=default, return=representation, count=exact', null, vary]);
  assert.deepEqual(await shown('POST', 'sync_state', 'resolution=merge-duplicates', row('c')), [200, null, '*/*', null, null, 'resolution=merge-duplicates', null, vary]);
  assert.deepEqual(await shown('PATCH', 'sync_state?resource=neq.a', 'count=exact', { error_message: 'x' }), [204, null, '0-1/2', null, null, 'count=exact', null, vary]);
  assert.deepEqual(await shown('GET', 'sync_state?select=source&order=resource&resource=eq.a', 'count=exact'),
    [200, json, '0-0/1', 'syncstate', '/sync_state?order=resource&resource=eq.a&select=source', 'count=exact', null, vary]);
  assert.deepEqual(await shown('POST', 'rpc/next_sync_due', 'timezone=UTC', {}), [200, json, '0-0/*', 'syncstate', null, 'timezone=UTC', null, vary]);
  assert.deepEqual(await shown('POST', 'rpc/renew_sync_lease', '', { ...state, resource: 'a', lease: 1 }), [409, json, null, null, null, null, 'PostgREST; error=PT409', null]);
  assert.deepEqual(await shown('DELETE', 'sync_state?resource=eq.a', ''), [204, null, '*/*', null, null, null, null, vary]);
  assert.deepEqual(await shown('DELETE', 'sync_state?resource=neq.a', 'count=exact, return=representation'),
    [200, json, '*/2', 'syncstate', null, 'return=representation, count=exact', null, vary]);
});

// ---- the service of examples/

const service = (client = worker()) => new SyncStateService(client);
const lost = (error) => error instanceof SyncStateError && error.leaseLost;

test('service: a sync from start to end', async () => {
  const states = service();
  assert.equal(await states.getState(ada, 'google_gmail'), null);
  const row = await states.markSyncStarted(ada, 'google_gmail', { leaseSeconds: 120 });
  assert.deepEqual([row.status, row.lease, row.sync_token], ['syncing', 1, null]);
  assert.equal(Date.parse(row.lease_expires_at) - Date.parse(row.last_sync_at), 120_000);
  assert.equal(await states.markSyncStarted(ada, 'google_gmail'), null); // somebody is at it
  const done = await states.markSyncCompleted(ada, 'google_gmail', 12, { historyId: '18446744073709551615' }, { lease: row.lease });
  assert.deepEqual([done.status, done.items_synced, done.history_id], ['idle', 12, '18446744073709551615']);
  assert.deepEqual(await states.getState(ada, 'google_gmail'), done);
  // a Date, and what is left out stays
  const tasks = await states.markSyncCompleted(ada, 'google_tasks', 1, { updatedMin: new Date('2026-03-02T09:00:00Z') }, { resource: 'list' });
  assert.equal(tasks.updated_min, '2026-03-02T09:00:00+00:00');
  assert.equal((await states.markSyncCompleted(ada, 'google_tasks', 0, {}, { resource: 'list' })).updated_min, tasks.updated_min);
  assert.equal((await states.getState(ada, 'google_tasks', 'list')).items_synced, 0);
  assert.equal(await states.getState(ada, 'google_tasks'), null);
});

test('service: what goes wrong', async () => {
  const states = service();
  const failed = await states.markSyncFailed(ada, 'google_gmail', new Error('HTTP 503'));
  assert.deepEqual([failed.status, failed.failures, failed.error_message], ['error', 1, 'HTTP 503']);
  assert.ok(Date.parse(failed.due_at) - Date.now() < 31_000);
  const permanent = await states.markSyncFailed(ada, 'google_gmail', 'HTTP 400', { kind: 'permanent' });
  assert.ok(Date.parse(permanent.due_at) - Date.now() > 3_500_000);
  const auth = await states.markSyncFailed(ada, 'google_gmail', 'HTTP 401', { kind: 'auth' });
  assert.deepEqual([auth.due_at, auth.parked_reason], [null, 'auth']);

  const limited = await states.markRateLimited(ada, 'google_calendar', 90, { resource: 'c' });
  assert.deepEqual([limited.status, limited.failures], ['rate_limited', 0]);
  const wait = Date.parse(limited.due_at) - Date.now();
  assert.ok(wait > 80_000 && wait < 100_000, String(wait));
  await states.markRateLimited(ben, 'google_contacts', undefined, { scope: 'source' });
  assert.notEqual((await ok(worker().rpc('get_sync_policy', { source: 'google_contacts' }))).paused_until, null);

  await states.markSyncCompleted(ada, 'google_calendar', 3, { syncToken: 'token' });
  const cleared = await states.clearSyncToken(ada, 'google_calendar');
  assert.deepEqual([cleared.sync_token, cleared.token_losses], [null, 1]);
});

test('service: a late report changes nothing', async () => {
  const states = service();
  const first = await states.markSyncStarted(ada, 'google_gmail');
  await admin.query("UPDATE syncstate.sync_state SET lease_expires_at = now() - interval '1 second' WHERE user_id = $1", [ada]);
  const second = await states.markSyncStarted(ada, 'google_gmail');
  const before = await stored(ada, 'google_gmail');
  const late = { lease: first.lease };
  await assert.rejects(states.markSyncCompleted(ada, 'google_gmail', 1, { historyId: '1' }, late), lost);
  await assert.rejects(states.markSyncFailed(ada, 'google_gmail', 'late', late), lost);
  await assert.rejects(states.markRateLimited(ada, 'google_gmail', 5, late), lost);
  await assert.rejects(states.clearSyncToken(ada, 'google_gmail', late), lost);
  assert.deepEqual(await stored(ada, 'google_gmail'), before);
  const cleared = await states.clearSyncToken(ada, 'google_gmail', { lease: second.lease });
  assert.equal(cleared.status, 'syncing'); // the run goes on, in full
  await states.markSyncFailed(ada, 'google_gmail', 'HTTP 503', { lease: second.lease });
  await ok(worker().rpc('disconnect_sync', state));
  await assert.rejects(states.markSyncCompleted(ada, 'google_gmail', 1, {}, { lease: second.lease }), lost);
});

test('service: it remembers the leases of the runs that it started', async () => {
  const [slow, quick] = [service(), service()];
  await slow.markSyncStarted(ada, 'google_gmail');
  await admin.query("UPDATE syncstate.sync_state SET lease_expires_at = now() - interval '1 second' WHERE user_id = $1", [ada]);
  const second = await quick.markSyncStarted(ada, 'google_gmail');
  const before = await stored(ada, 'google_gmail');
  // the run is another's by now, also for a report that is sent again
  for (let i = 0; i < 2; i++)
    await assert.rejects(slow.markSyncCompleted(ada, 'google_gmail', 1, { historyId: '1' }), lost);
  await assert.rejects(slow.clearSyncToken(ada, 'google_gmail'), lost);
  assert.deepEqual(await stored(ada, 'google_gmail'), before);
  // runs of other resources are other runs
  await slow.markSyncFailed(ada, 'google_gmail', 'HTTP 503', { resource: 'other' });
  assert.equal((await quick.clearSyncToken(ada, 'google_gmail')).status, 'syncing');
  const done = await quick.markSyncCompleted(ada, 'google_gmail', 1, { historyId: '2' });
  assert.deepEqual([done.status, done.lease], ['idle', second.lease]);
  // it is forgotten then: the next report is about no run
  assert.equal((await quick.markSyncFailed(ada, 'google_gmail', 'HTTP 503')).status, 'error');
  // what the application says goes over it
  await assert.rejects(slow.clearSyncToken(ada, 'google_gmail'), lost);
  assert.equal((await slow.clearSyncToken(ada, 'google_gmail', { lease: null })).token_losses, 1);
  const { lease } = await quick.markSyncStarted(ada, 'google_gmail');
  await assert.rejects(quick.markSyncCompleted(ada, 'google_gmail', 3, {}, { lease: lease - 1 }), lost);
  assert.equal((await quick.markSyncCompleted(ada, 'google_gmail', 3)).lease, lease);
  // what a claim handed out takes its lease, which this service does not know
  await admin.query('UPDATE syncstate.sync_state SET due_at = now() WHERE user_id = $1', [ada]);
  const claimed = (await ok(worker().rpc('claim_due_syncs', { source: 'google_gmail' }))).find((row) => row.resource === '');
  await assert.rejects(quick.markSyncCompleted(ada, 'google_gmail', 2), lost);
  assert.equal((await quick.markSyncCompleted(ada, 'google_gmail', 2, {}, { lease: claimed.lease })).status, 'idle');
});

test('service: accounts', async () => {
  const states = service();
  const [home, work] = [{ account: 'home' }, { account: 'work' }];
  const first = await states.markSyncStarted(ada, 'google_gmail', home);
  const second = await states.markSyncStarted(ada, 'google_gmail', { ...work, leaseSeconds: 60 });
  assert.deepEqual([first.account, second.account], ['home', 'work']);
  assert.equal(await states.markSyncStarted(ada, 'google_gmail', home), null);
  // the runs of two accounts are two runs
  assert.equal((await states.markSyncCompleted(ada, 'google_gmail', 1, { historyId: '1' }, home)).account, 'home');
  assert.equal((await states.clearSyncToken(ada, 'google_gmail', work)).status, 'syncing');
  assert.equal((await states.updateState(ada, 'google_gmail', { items_synced: 5 }, '', 'home')).items_synced, 5);
  assert.equal((await states.getState(ada, 'google_gmail', '', 'work')).items_synced, 0);
  assert.equal(await states.getState(ada, 'google_gmail'), null);

  // a limit is for the account and source, or for the row
  for (const resource of ['', 'a', 'b']) await states.markSyncCompleted(ada, 'google_calendar', 0, { syncToken: 't' }, { resource, ...home });
  const until = async (resource, account) => (await states.getState(ada, 'google_calendar', resource, account)).limited_until;
  await states.markRateLimited(ada, 'google_calendar', 90, { resource: 'a', scope: 'row', ...home });
  assert.deepEqual([await until('', 'home'), await until('b', 'home')], [null, null]);
  await states.markRateLimited(ada, 'google_calendar', 90, { resource: 'a', ...home });
  assert.ok(Date.parse(await until('b', 'home')) > Date.now() + 80_000);
  assert.equal(await until('', 'home'), await until('b', 'home'));
  assert.equal((await states.getState(ada, 'google_gmail', '', 'home')).limited_until, null);

  // and what is revoked, for the account and provider
  const reasons = async () => (await ok(worker().rpc('get_sync_states', { user_id: ada })))
    .map((row) => [row.account, row.source.slice(7) + row.resource, row.parked_reason].join(' '));
  await states.markSyncFailed(ada, 'google_gmail', 'HTTP 401', { kind: 'auth', scope: 'row', ...home });
  assert.deepEqual(await reasons(), ['home calendar ', 'home calendara ', 'home calendarb ', 'home gmail auth', 'work gmail ']);
  await states.markSyncFailed(ada, 'google_calendar', 'HTTP 401', { kind: 'auth', resource: 'b', ...home });
  assert.deepEqual(await reasons(), ['home calendar auth', 'home calendara auth', 'home calendarb auth', 'home gmail auth', 'work gmail ']);
});

test('service: any function by call()', async () => {
  const states = service();
  // without arguments, with some, and with a row as it was claimed
  assert.deepEqual(await states.call('take_sync_events'), []);
  await states.call('connect_sync', { ...state, account: 'work' });
  const [row] = await claimTasks(() => states.call('claim_due_syncs', { source: 'google_gmail', max_rows: 5, lease_time: '1 minute' }), 1);
  assert.equal((await states.call('checkpoint_sync', { ...keyOf(row), page_token: 'p2' })).page_token, 'p2');
  assert.equal((await states.call('release_sync', { ...keyOf(row), delay: '5 minutes' })).status, 'idle');
  await assert.rejects(states.call('renew_sync_lease', keyOf(row)), lost);
  await assert.rejects(states.call('request_sync', { ...state, resource: 'none' }), lost);
  await assert.rejects(states.call('set_sync_policy', { source: 'google_gmail', changes: { interval: '1 hour' } }), (error) => error.code === '22023');
  // they have no memory: a report without a lease is one of nobody's
  await admin.query('UPDATE syncstate.sync_state SET due_at = now()');
  const [again] = await claimTasks(() => states.call('claim_due_syncs'), 1);
  await assert.rejects(states.call('mark_sync_completed', { ...state, account: 'work' }), lost);
  assert.equal((await states.call('mark_sync_completed', keyOf(again))).status, 'idle');
});

test('service: push channels', async () => {
  const states = service();
  for (const resource of ['a', 'b']) await states.call('connect_sync', { user_id: ada, source: 'google_calendar', resource, account: 'work' });
  await states.call('set_sync_policy', { source: 'google_calendar', changes: { push_renew_before: '1 day' } });
  const tasks = await claimTasks(() => states.call('claim_push_channels', { source: 'google_calendar' }), 2);
  const [a, b] = tasks.sort((x, y) => (x.resource < y.resource ? -1 : 1));
  const opened = await states.call('mark_channel_opened', { ...keyOf(a), channel_id: 'channel a', expires_at: null, token: 'secret', provider_ref: 'ref' });
  assert.deepEqual([opened.state, opened.resource, opened.account], ['active', 'a', 'work']);
  assert.equal((await states.call('mark_channel_failed', { ...keyOf(b), error_message: 'HTTP 400', kind: 'unsupported' })).state, 'unsupported');
  await assert.rejects(states.call('mark_channel_stopped', keyOf(a)), lost);
  assert.equal(await states.call('receive_push', { channel_id: 'channel a', token: 'secret', message_number: '9007199254740993' }), true);
  assert.equal(await states.call('receive_push', { channel_id: 'channel a', token: 'another', message_number: 8 }), false);
});

test('service: updateState changes what is given', async () => {
  const states = service();
  await states.updateState(ada, 'google_gmail', { sync_interval: '5 minutes', history_id: '18446744073709551615' });
  const row = await states.updateState(ada, 'google_gmail', { error_message: 'by hand', sync_interval: null });
  assert.deepEqual([row.error_message, row.sync_interval, row.history_id], ['by hand', null, '18446744073709551615']);
  await assert.rejects(states.updateState(ada, 'google_gmail', { no_such: 1 }),
    (error) => error instanceof SyncStateError && !error.leaseLost && error.code === '22023' && error.status === 400);
});

test('service: who is due', async () => {
  const states = service();
  await admin.query(`INSERT INTO syncstate.sync_state (user_id, source, due_at, last_sync_at) VALUES
    ($1, 'google_gmail', now() - interval '1 minute', now() - interval '5 minutes'),
    ($2, 'google_gmail', now() - interval '1 hour', now() - interval '2 hours'),
    ($3, 'google_gmail', now() + interval '1 hour', null)`, [ada, ben, randomUUID()]);
  assert.deepEqual(await states.getUsersNeedingSync('google_gmail'), [ben, ada]);
  assert.deepEqual(await states.getUsersNeedingSync('google_gmail', { staleAfterSeconds: 3600 }), [ben]);
  assert.deepEqual(await states.getUsersNeedingSync('google_gmail', { maxRows: 1 }), [ben]);
  assert.deepEqual(await states.getUsersNeedingSync('google_calendar'), []);
});

test('service: errors are thrown with all that is known', async () => {
  await assert.rejects(service(user(ada)).getState(ada, 'google_gmail'),
    (error) => error.code === '42501' && error.status === 403 && /permission denied/.test(error.message));
  await assert.rejects(service().markRateLimited(ada, 'google_gmail', 5, { scope: 'world' }),
    (error) => error.code === '22023' && error.status === 400 && error.details !== null);
  // nothing answers
  const gone = createClient('http://127.0.0.1:9', KEYS.service_role, options());
  await assert.rejects(service(gone).markSyncFailed(ada, 'google_gmail', 'x'), (error) => error instanceof SyncStateError && error.status === 0);
});
