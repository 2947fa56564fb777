// Compiled, never run: what the types of examples/ let an application write,
// and what they refuse.  An @ts-expect-error that meets no error is one.

import { createClient } from '@supabase/supabase-js';
import { SyncStateService, keyOf } from '../../examples/sync-state-service.js';
import { SYNC_SOURCE_LABELS } from '../../examples/syncstate-types.js';
import type { ClaimDueSyncsArgs, Database, MySyncRuns, MySyncs, SyncChannel, SyncEvent, SyncRun, SyncSource, SyncState, TakeSyncEventsArgs } from '../../examples/syncstate-types.js';

const client = createClient<Database>('http://127.0.0.1', 'key');
const syncstate = client.schema('syncstate');
const user_id = '00000000-0000-4000-8000-000000000001';

// Whatever the application's own types: none, others, or these.
new SyncStateService(createClient('http://127.0.0.1', 'key'));
new SyncStateService(createClient<{ public: Database['syncstate'] }>('http://127.0.0.1', 'key'));
const service = new SyncStateService(client);

export async function functions(): Promise<void> {
  const claimed: SyncState[] = (await syncstate.rpc('claim_due_syncs', { source: 'google_gmail', max_rows: 5 }).throwOnError()).data;
  await syncstate.rpc('claim_due_syncs', {});
  await syncstate.rpc('claim_due_syncs', { source: null, lease_time: '5 minutes' });
  const started: SyncState = (await syncstate.rpc('mark_sync_started', { user_id, source: 'google_tasks' }).throwOnError()).data;
  const lease: number = started.lease;
  await syncstate.rpc('mark_sync_completed', { user_id, source: 'google_gmail', items_synced: '9007199254740993', lease });
  const due: string | null = (await syncstate.rpc('next_sync_due', {}).throwOnError()).data;
  const users: string[] = (await syncstate.rpc('get_users_needing_sync', { source: 'google_gmail' }).throwOnError()).data;
  const comes: boolean = (await syncstate.rpc('request_sync', { user_id, source: 'google_gmail' }).throwOnError()).data;
  const connected: SyncState[] = (await syncstate.rpc('connect_account', { user_id, account: 'work', provider: 'google' }).throwOnError()).data;
  const changes = (await syncstate.rpc('set_sync_resources', { user_id, source: 'google_calendar', resources: ['a', 'b'] }).throwOnError()).data;
  const change: string | null | undefined = changes[0]?.change;
  const interval: string | null = (await syncstate.rpc('get_sync_policy', { source: 'google_gmail' }).throwOnError()).data.sync_interval;
  const kept: string | null = (await syncstate.rpc('get_sync_policy', { source: 'google_gmail' }).throwOnError()).data.keep_runs;
  const events: SyncEvent[] = (await syncstate.rpc('take_sync_events', { max_rows: 10 }).throwOnError()).data;
  await syncstate.rpc('take_sync_events', {});
  const tasks = (await syncstate.rpc('claim_push_channels', { source: 'google_calendar', max_rows: 5, lease_time: '5 minutes' }).throwOnError()).data;
  const action: string | null | undefined = tasks[0]?.action;
  const opened: SyncChannel = (await syncstate.rpc('mark_channel_opened', {
    user_id, source: 'google_calendar', lease: 1, channel_id: 'c', expires_at: '2026-01-08T00:00:00Z', token: 'secret',
  }).throwOnError()).data;
  const known: boolean = (await syncstate.rpc('receive_push', { channel_id: 'c', token: 'secret', message_number: '7' }).throwOnError()).data;
  await syncstate.rpc('receive_push', { channel_id: 'c', token: 'secret', message_number: null });
  void [claimed, due, users, comes, connected, change, interval, kept, events, action, opened, known];

  const perhaps = (await syncstate.rpc('get_sync_state', { user_id, source: 'google_gmail' }).throwOnError()).data;
  // @ts-expect-error -- without a row, every column is null
  const id: string = perhaps.user_id;
  // @ts-expect-error -- next_sync_due() may be null
  const never_null: string = (await syncstate.rpc('next_sync_due', {}).throwOnError()).data;
  // @ts-expect-error -- no such source
  await syncstate.rpc('claim_due_syncs', { source: 'google_mail' });
  // @ts-expect-error -- no such function
  await syncstate.rpc('claim_due_sync', {});
  // @ts-expect-error -- user_id is missing
  await syncstate.rpc('mark_sync_started', { source: 'google_tasks' });
  // @ts-expect-error -- an interval is text
  await syncstate.rpc('mark_sync_started', { user_id, source: 'google_tasks', lease_time: 300 });
  // @ts-expect-error -- an array of texts
  await syncstate.rpc('set_sync_resources', { user_id, source: 'google_calendar', resources: 'a' });
  // @ts-expect-error -- a lease must be given
  await syncstate.rpc('renew_sync_lease', { user_id, source: 'google_tasks' });
  // @ts-expect-error -- so must the one of a channel
  await syncstate.rpc('mark_channel_stopped', { user_id, source: 'google_calendar' });
  // @ts-expect-error -- a channel has a token
  await syncstate.rpc('mark_channel_opened', { user_id, source: 'google_calendar', lease: 1, channel_id: 'c', expires_at: '2026-01-08T00:00:00Z' });
  // @ts-expect-error -- what is to be opened has no channel yet
  const old: string | undefined = tasks[0]?.channel_id;
  // @ts-expect-error -- max_rows has a default, but must not be null
  const claim: ClaimDueSyncsArgs = { max_rows: null };
  // @ts-expect-error -- nor here
  const take: TakeSyncEventsArgs = { max_rows: null };
  // @ts-expect-error -- an event may concern a source, and no user
  const whose: string | undefined = events[0]?.user_id;
  void [id, never_null, claim, take, whose, old];
}

export async function views(): Promise<void> {
  const mine: MySyncs[] = (await syncstate.from('my_syncs').select('*').eq('source', 'google_gmail').order('due_at').throwOnError()).data;
  const status: 'idle' | 'syncing' | 'error' | 'rate_limited' | undefined = mine[0]?.status;
  const some = (await syncstate.from('my_syncs').select('source, items_synced').throwOnError()).data;
  const items: number | undefined = some[0]?.items_synced;
  await syncstate.from('sync_state').upsert({ user_id, source: 'google_tasks', status: 'syncing' }, { onConflict: 'user_id,account,source,resource' });
  const runs: MySyncRuns[] = (await syncstate.from('my_sync_runs').select('*').order('ended_at', { ascending: false }).throwOnError()).data;
  const done: number | null | undefined = runs[0]?.items;
  const full: boolean | undefined = runs[0]?.was_full;
  const all: SyncRun[] = (await syncstate.from('sync_run').select('*').eq('outcome', 'lost').throwOnError()).data;
  const waiting: SyncEvent[] = (await syncstate.from('sync_event').select('*').throwOnError()).data;
  const channels: SyncChannel[] = (await syncstate.from('sync_channel').select('*').eq('state', 'unsupported').throwOnError()).data;
  const hash: string | null | undefined = channels[0]?.token_hash;
  const push_until: string | null | undefined = (await syncstate.from('sync_state').select('push_until').throwOnError()).data[0]?.push_until;
  const asked: { run_requested_at: string | null; troubled_at: string | null }[] =
    (await syncstate.from('sync_state').select('run_requested_at, troubled_at').throwOnError()).data;
  void [status, items, done, full, all, waiting, hash, push_until, asked];

  // @ts-expect-error -- users do not see the cursor
  void mine[0]?.sync_token;
  // @ts-expect-error -- a view that nobody writes
  await syncstate.from('my_syncs').insert({ user_id, source: 'google_tasks' });
  // @ts-expect-error -- nor the lease of a run
  void runs[0]?.lease;
  // @ts-expect-error -- nor this one
  await syncstate.from('my_sync_runs').update({ items: 1 }).eq('user_id', user_id);
  // @ts-expect-error -- no such status
  await syncstate.from('sync_state').upsert({ user_id, source: 'google_tasks', status: 'done' });
}

export async function methods(): Promise<void> {
  const state: SyncState | null = await service.getState(user_id, 'google_gmail');
  await service.updateState(user_id, 'google_gmail', { history_id: '7', sync_interval: '5 minutes', error_message: null });
  const lease = (await service.markSyncStarted(user_id, 'google_gmail'))?.lease;
  await service.markSyncCompleted(user_id, 'google_gmail', 3, { historyId: '7' });
  await service.markSyncCompleted(user_id, 'google_gmail', 3, {}, lease === undefined ? { lease: null } : { lease });
  await service.markSyncFailed(user_id, 'google_gmail', new Error('HTTP 401'), { kind: 'auth' });
  await service.markRateLimited(user_id, 'google_gmail', 30, { scope: 'source' });
  await service.markRateLimited(user_id, 'google_calendar', 30, { resource: 'a', account: 'work' });
  await service.markSyncFailed(user_id, 'google_gmail', 'HTTP 401', { kind: 'auth', scope: 'row', account: 'work' });
  await service.getState(user_id, 'google_calendar', 'a', 'work');
  for (const row of await service.call('claim_due_syncs', { source: 'google_calendar', kind: 'incremental' })) {
    const checkpoint: SyncState = await service.call('checkpoint_sync', { ...keyOf(row), page_token: 'p2', progress_done: 5 });
    await service.call('renew_sync_lease', keyOf(row));
    await service.call('release_sync', { ...keyOf(row), delay: '5 minutes' });
    void checkpoint;
  }
  const reported: SyncState[] = await service.call('report_syncs', { results: [{ user_id, source: 'google_gmail', lease: 1, outcome: 'released' }] });
  const news: SyncEvent[] = await service.call('take_sync_events');
  const change: string | undefined = (await service.call('set_sync_resources', { user_id, source: 'google_tasks', resources: ['a'] }))[0]?.change;
  const due: string | null = await service.call('next_sync_due', { source: 'google_gmail' });
  for (const task of await service.call('claim_push_channels', { source: 'google_calendar', max_rows: 5 })) {
    const channel: string = task.action === 'open' ? 'new' : task.channel_id ?? '';
    await service.call('mark_channel_opened', { ...keyOf(task), channel_id: channel, token: 'secret', expires_at: null, provider_ref: 'resource' });
    const stopped: SyncChannel = await service.call('mark_channel_stopped', keyOf(task));
    void stopped;
  }
  void [reported, news, change, due];
  const first: SyncSource = SYNC_SOURCE_LABELS[0];
  void [state, first];

  // @ts-expect-error -- no such kind
  await service.markSyncFailed(user_id, 'google_gmail', 'HTTP 401', { kind: 'fatal' });
  // @ts-expect-error -- no such scope, any more
  await service.markRateLimited(user_id, 'google_gmail', 30, { scope: 'user' });
  // @ts-expect-error -- no such function
  await service.call('claim_due_sync', {});
  // @ts-expect-error -- which policy
  await service.call('get_sync_policy');
  // @ts-expect-error -- a lease must be given
  await service.call('renew_sync_lease', { user_id, source: 'google_gmail' });
  // @ts-expect-error -- no such argument
  await service.call('release_sync', { user_id, source: 'google_gmail', lease: 1, reason: 'x' });
  // @ts-expect-error -- until when a channel is trusted follows from it
  await service.updateState(user_id, 'google_gmail', { push_until: null });
  // @ts-expect-error -- the account is part of the key
  await service.updateState(user_id, 'google_gmail', { account: 'work' });
  // @ts-expect-error -- limits are the provider's to set
  await service.updateState(user_id, 'google_gmail', { limited_until: null });
  // @ts-expect-error -- the lease is the database's to count
  await service.updateState(user_id, 'google_gmail', { lease: 7 });
  // @ts-expect-error -- and so is what was asked for
  await service.updateState(user_id, 'google_gmail', { run_requested_at: '2026-01-01T00:00:00Z' });
  // @ts-expect-error -- and what events have told
  await service.updateState(user_id, 'google_gmail', { troubled_at: null });
}
