// The state of syncs, kept by the PostgreSQL extension syncstate, for an
// application that reaches its database with supabase-js.
//
// Copy this file and syncstate-types.ts into the application.  The client needs
// a key whose role was given to grant_worker() (on Supabase: the service key),
// so this belongs on a server, never in a browser; and `syncstate` must be among
// the schemas that the REST layer exposes.
//
//   const states = new SyncStateService(createClient(url, serviceKey));
//
// A call that fails throws a SyncStateError.  A service remembers the leases of the
// runs that it started, and gives them to their reports: a report that comes too
// late changes nothing, and fails with `leaseLost`.  A run that a claim handed out
// is not one of them: give its lease.  A report is a POST and therefore never
// retried by supabase-js; it may be sent again by the application when no answer
// came.

import type { PostgrestSingleResponse, SupabaseClient } from '@supabase/supabase-js';
import type { Database, SyncChannel, SyncSource, SyncState } from './syncstate-types.js';

export type { SyncChannel, SyncSource, SyncState, SyncStatus } from './syncstate-types.js';

/** Which row of the user and source: of which resource, and of which account. */
export type RowOptions = { resource?: string; account?: string };

/** What all reports may be given: which row, and a lease, if it is not that of the run that this service started; null = none. */
export type ReportOptions = RowOptions & { lease?: number | null };

/** The columns that updateState() may change; null clears, what is left out stays. */
export type SyncStateChanges = Partial<
  Omit<
    Database['syncstate']['Tables']['sync_state']['Update'],
    | 'user_id' | 'account' | 'source' | 'resource' | 'lease' | 'lease_required' | 'full_sync_id' | 'syncs_started' | 'failing_since'
    | 'changes_seen' | 'seconds_watched' | 'limited_until' | 'run_requested_at' | 'troubled_at' | 'push_until'
    | 'created_at' | 'updated_at'
  >
>;

/** What is to be done about a push channel, and the lease under which it is reported. */
export type ChannelTask = {
  user_id: string;
  account: string;
  source: SyncSource;
  resource: string;
  action: 'open' | 'renew' | 'stop';
  lease: number;
  lease_expires_at: string;
  /** The channel to renew or to stop; null = there is none. */
  channel_id: string | null;
  provider_ref: string | null;
  expires_at: string | null;
  failures: number;
};

/** Which task a report is about. */
export type ChannelTaskKey = Pick<ChannelTask, 'user_id' | 'account' | 'source' | 'resource' | 'lease'>;

/** An answer of the database, or of the REST layer, that is an error. */
export class SyncStateError extends Error {
  constructor(
    message: string,
    /** The SQLSTATE ("PT409"), or the REST layer's code ("PGRST303"). */
    readonly code: string,
    /** The HTTP status; 0 when there was no answer. */
    readonly status: number,
    readonly details: string | null,
    readonly hint: string | null,
  ) {
    super(message);
    this.name = 'SyncStateError';
  }

  /** The row is another worker's by now, or gone: drop the work. */
  get leaseLost(): boolean {
    return this.code === 'PT409' || this.code === 'PT404';
  }
}

type ReportKey = { user_id: string; source: SyncSource; resource: string; account: string; lease: number | null };

const keyOf = (...names: string[]): string => JSON.stringify(names);

/** Seconds as an interval, or null for the default of the source. */
const seconds = (value: number | undefined): string | null => (value === undefined ? null : `${value} seconds`);

export class SyncStateService {
  private readonly db: ReturnType<SupabaseClient<Database>['schema']>;

  /** The leases of the runs that were started here and have not ended yet. */
  private readonly leases = new Map<string, number>();

  // eslint-disable-next-line @typescript-eslint/no-explicit-any -- a client of whichever database types
  constructor(client: SupabaseClient<any, any, any>) {
    this.db = (client as unknown as SupabaseClient<Database>).schema('syncstate');
  }

  /** The row of a user and source, or null. */
  async getState(userId: string, source: SyncSource, resource = '', account = ''): Promise<SyncState | null> {
    const row = await result(this.db.rpc('get_sync_state', { user_id: userId, source, resource, account }));
    // No row comes as one whose columns are all null.
    return row.user_id === null ? null : (row as SyncState);
  }

  /** Changes columns of the row as the application sees fit, and makes it if it is missing. */
  async updateState(
    userId: string,
    source: SyncSource,
    changes: SyncStateChanges,
    resource = '',
    account = '',
  ): Promise<SyncState> {
    return result(this.db.rpc('update_sync_state', { user_id: userId, source, changes, resource, account }));
  }

  /** Takes the row for this process; null if another one is at it. */
  async markSyncStarted(
    userId: string,
    source: SyncSource,
    options: RowOptions & { leaseSeconds?: number } = {},
  ): Promise<SyncState | null> {
    const { resource = '', account = '' } = options;
    const key = { user_id: userId, source, resource, account };
    try {
      const row = await result(this.db.rpc('mark_sync_started', { ...key, lease_time: seconds(options.leaseSeconds) }));
      this.leases.set(keyOf(userId, account, source, resource), row.lease);
      return row;
    } catch (error) {
      if (error instanceof SyncStateError && error.code === 'PT409') return null;
      throw error;
    }
  }

  /** Reports the end of a sync, with the cursor of its last page; what is left out stays as it was. */
  async markSyncCompleted(
    userId: string,
    source: SyncSource,
    itemsSynced: number,
    cursor: { syncToken?: string | null; historyId?: string | null; updatedMin?: string | Date | null } = {},
    options: ReportOptions = {},
  ): Promise<SyncState> {
    const { syncToken = null, historyId = null, updatedMin = null } = cursor;
    return this.report(userId, source, options, (key) =>
      this.db.rpc('mark_sync_completed', {
        ...key,
        items_synced: itemsSynced,
        sync_token: syncToken,
        history_id: historyId,
        updated_min: updatedMin instanceof Date ? updatedMin.toISOString() : updatedMin,
      }),
    );
  }

  /**
   * Reports that a sync failed.  `transient` (the network, 5xx) is tried again
   * soon, `permanent` (4xx) later, and `auth` (the grant is gone) not before the
   * user has connected the account again: that is for all rows of the account at
   * the source's provider, or (scope `row`) for this one.
   */
  async markSyncFailed(
    userId: string,
    source: SyncSource,
    error: unknown,
    options: ReportOptions & { kind?: 'transient' | 'permanent' | 'auth'; scope?: 'row' | 'account' } = {},
  ): Promise<SyncState> {
    return this.report(userId, source, options, (key) =>
      this.db.rpc('mark_sync_failed', {
        ...key,
        error_message: error instanceof Error ? error.message : String(error),
        kind: options.kind ?? 'transient',
        scope: options.scope ?? 'account',
      }),
    );
  }

  /**
   * Reports that the provider's rate limit was hit, for the account or (scope
   * `source`) for the whole project, or (scope `row`) for this row alone.
   * retryAfterSeconds is the provider's Retry-After, if it sent one.
   */
  async markRateLimited(
    userId: string,
    source: SyncSource,
    retryAfterSeconds?: number,
    options: ReportOptions & { scope?: 'row' | 'account' | 'source' } = {},
  ): Promise<SyncState> {
    return this.report(userId, source, options, (key) =>
      this.db.rpc('mark_rate_limited', {
        ...key,
        retry_after: seconds(retryAfterSeconds),
        scope: options.scope ?? 'account',
      }),
    );
  }

  /** Reports that the provider has forgotten the cursor: the next sync is a full one. */
  async clearSyncToken(userId: string, source: SyncSource, options: ReportOptions = {}): Promise<SyncState> {
    return this.report(userId, source, options, (key) => this.db.rpc('clear_sync_token', key));
  }

  /** Who is due, oldest first; nothing is taken. */
  async getUsersNeedingSync(
    source: SyncSource,
    options: { staleAfterSeconds?: number; maxRows?: number } = {},
  ): Promise<string[]> {
    return result(
      this.db.rpc('get_users_needing_sync', {
        source,
        stale_after: seconds(options.staleAfterSeconds),
        max_rows: options.maxRows ?? null,
      }),
    );
  }

  /** Push channels that are to be opened, renewed or stopped, each with a lease. */
  async claimPushChannels(
    options: { source?: SyncSource; maxRows?: number; leaseSeconds?: number } = {},
  ): Promise<ChannelTask[]> {
    const { source = null, maxRows = 10 } = options;
    return (await result(
      this.db.rpc('claim_push_channels', { source, max_rows: maxRows, lease_time: seconds(options.leaseSeconds) }),
    )) as ChannelTask[];
  }

  /**
   * Reports the channel that was opened for a task, new or in place of the one to
   * renew.  token is the secret that the provider will send along, and ref what
   * stopping the channel takes.  A lease that was lost is no error: the channel
   * comes back as `retiring`, and is to be stopped.
   */
  async markChannelOpened(
    task: ChannelTaskKey,
    channel: { id: string; token: string; expiresAt: string | Date | null; ref?: string | null },
  ): Promise<SyncChannel> {
    const { id, token, expiresAt, ref = null } = channel;
    return result(
      this.db.rpc('mark_channel_opened', {
        ...keyOfTask(task),
        channel_id: id,
        expires_at: expiresAt instanceof Date ? expiresAt.toISOString() : expiresAt,
        token,
        provider_ref: ref,
      }),
    );
  }

  /**
   * Reports that a task failed.  `transient` is tried again, `unsupported` (the
   * provider gives no channel for this resource) after a month, and `auth` (the
   * grant is gone) when the user has connected the account again.
   */
  async markChannelFailed(
    task: ChannelTaskKey,
    error: unknown,
    kind: 'transient' | 'unsupported' | 'auth' = 'transient',
  ): Promise<SyncChannel> {
    return result(
      this.db.rpc('mark_channel_failed', {
        ...keyOfTask(task),
        error_message: error instanceof Error ? error.message : String(error),
        kind,
      }),
    );
  }

  /** Reports that a channel was stopped, or was not there any more. */
  async markChannelStopped(task: ChannelTaskKey): Promise<SyncChannel> {
    return result(this.db.rpc('mark_channel_stopped', keyOfTask(task)));
  }

  /**
   * Takes a push, as a webhook does: requests the sync of the channel's row.
   * false: nobody knows the channel, or its token is another.
   */
  async receivePush(channelId: string, token: string, messageNumber?: number | string): Promise<boolean> {
    return result(
      this.db.rpc('receive_push', { channel_id: channelId, token, message_number: messageNumber ?? null }),
    );
  }

  /** A report, with the lease of the run.  A lost lease is kept: without it, the next report would end another's run. */
  private async report(
    userId: string,
    source: SyncSource,
    options: ReportOptions,
    call: (key: ReportKey) => PromiseLike<PostgrestSingleResponse<SyncState>>,
  ): Promise<SyncState> {
    const { resource = '', account = '' } = options;
    const key = keyOf(userId, account, source, resource);
    const { lease = this.leases.get(key) ?? null } = options;
    const row = await result(call({ user_id: userId, source, resource, account, lease }));
    if (row.status !== 'syncing' && this.leases.get(key) === lease) this.leases.delete(key);
    return row;
  }
}

/** A task may be given as it was claimed. */
const keyOfTask = ({ user_id, account, source, resource, lease }: ChannelTaskKey): ChannelTaskKey => ({
  user_id,
  account,
  source,
  resource,
  lease,
});

/** The data of an answer, or its error thrown. */
async function result<T>(answer: PromiseLike<PostgrestSingleResponse<T>>): Promise<T> {
  const { data, error, status } = await answer;
  if (error) throw new SyncStateError(error.message, error.code, status, error.details, error.hint);
  return data;
}
