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
// call() calls any function of the schema; its arguments and its result are typed:
//
//   const rows = await states.call('claim_due_syncs', { source: 'google_gmail', max_rows: 20 });
//   await states.call('checkpoint_sync', { ...keyOf(rows[0]), page_token: 'p2' });
//
// The other methods are for a backend that syncs one row at a time.  They remember
// the leases of the runs that they started, and pass them to the reports: a report
// that is too late changes nothing, and fails with `leaseLost`.  For a row that a
// claim returned, pass the lease yourself.
//
// A call that fails throws a SyncStateError.  supabase-js never repeats a call that
// writes.  You may repeat a report with its lease if no answer came.

import type { PostgrestSingleResponse, SupabaseClient } from '@supabase/supabase-js';
import type { Database, SyncSource, SyncState } from './syncstate-types.js';

export type { SyncChannel, SyncEvent, SyncPolicy, SyncSource, SyncState, SyncStatus } from './syncstate-types.js';

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

type Functions = Database['syncstate']['Functions'];

/** The key of a row, and the lease under which it is held. */
export type Held = Pick<SyncState, 'user_id' | 'account' | 'source' | 'resource' | 'lease'>;

/** The arguments that name a row, or a push channel's row, as a claim returned it. */
export const keyOf = ({ user_id, account, source, resource, lease }: Held): Held => ({ user_id, account, source, resource, lease });

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

type ReportKey = Omit<Held, 'lease'> & { lease: number | null };

const nameOf = (...parts: string[]): string => JSON.stringify(parts);

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

  /** Calls a function with its named arguments; those that are left out have their defaults. */
  async call<Name extends keyof Functions>(
    name: Name,
    ...[args]: {} extends Functions[Name]['Args'] ? [args?: Functions[Name]['Args']] : [args: Functions[Name]['Args']]
  ): Promise<Functions[Name]['Returns']> {
    return result(this.db.rpc(name, args) as PromiseLike<PostgrestSingleResponse<Functions[Name]['Returns']>>);
  }

  /** The row of a user and source, or null. */
  async getState(userId: string, source: SyncSource, resource = '', account = ''): Promise<SyncState | null> {
    const row = await this.call('get_sync_state', { user_id: userId, source, resource, account });
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
    return this.call('update_sync_state', { user_id: userId, source, changes, resource, account });
  }

  /** Starts a sync of the row; null if another worker holds it. */
  async markSyncStarted(
    userId: string,
    source: SyncSource,
    options: RowOptions & { leaseSeconds?: number } = {},
  ): Promise<SyncState | null> {
    const { resource = '', account = '' } = options;
    const key = { user_id: userId, source, resource, account };
    try {
      const row = await this.call('mark_sync_started', { ...key, lease_time: seconds(options.leaseSeconds) });
      this.leases.set(nameOf(userId, account, source, resource), row.lease);
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
      this.call('mark_sync_completed', {
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
      this.call('mark_sync_failed', {
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
      this.call('mark_rate_limited', {
        ...key,
        retry_after: seconds(retryAfterSeconds),
        scope: options.scope ?? 'account',
      }),
    );
  }

  /** Reports that the provider has forgotten the cursor: the next sync is a full one. */
  async clearSyncToken(userId: string, source: SyncSource, options: ReportOptions = {}): Promise<SyncState> {
    return this.report(userId, source, options, (key) => this.call('clear_sync_token', key));
  }

  /** Who is due, oldest first; nothing is taken. */
  async getUsersNeedingSync(
    source: SyncSource,
    options: { staleAfterSeconds?: number; maxRows?: number } = {},
  ): Promise<string[]> {
    return this.call('get_users_needing_sync', {
      source,
      stale_after: seconds(options.staleAfterSeconds),
      max_rows: options.maxRows ?? null,
    });
  }

  /** A report, with the lease of the run.  A lost lease is kept: without it, the next report would end another's run. */
  private async report(
    userId: string,
    source: SyncSource,
    options: ReportOptions,
    call: (key: ReportKey) => Promise<SyncState>,
  ): Promise<SyncState> {
    const { resource = '', account = '' } = options;
    const key = nameOf(userId, account, source, resource);
    const { lease = this.leases.get(key) ?? null } = options;
    const row = await call({ user_id: userId, source, resource, account, lease });
    if (row.status !== 'syncing' && this.leases.get(key) === lease) this.leases.delete(key);
    return row;
  }
}

/** The data of an answer, or its error thrown. */
async function result<T>(answer: PromiseLike<PostgrestSingleResponse<T>>): Promise<T> {
  const { data, error, status } = await answer;
  if (error) throw new SyncStateError(error.message, error.code, status, error.details, error.hint);
  return data;
}
