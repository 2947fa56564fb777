// TypeScript types of the PostgreSQL extension syncstate, for supabase-js or any
// other client that reads its rows as JSON.  Made from the catalogs: `make types`.
//
// Times come as text (ISO 8601), and so do intervals ("00:15:00"; in arguments
// also "15 minutes"), and bytes ("\x00ff").  A bigint comes as a number, which
// JavaScript rounds beyond 2^53; give it as text, and read it with
// .select('lease::text'), to be exact.

export type Json = string | number | boolean | null | { [key: string]: Json | undefined } | Json[];

/** Which API a row syncs from; register_sync_source() adds labels. */
export type SyncSource =
  | 'google_calendar'
  | 'google_tasks'
  | 'google_gmail'
  | 'google_contacts';

/** What happened last to a row; never decides alone whether the row is due. */
export type SyncStatus =
  | 'idle'
  | 'syncing'
  | 'error'
  | 'rate_limited';

/** Labels that register_sync_source() added to sync_source. */
export type CustomSource = {
  /** Label of the source: 1 to 58 characters of a-z, 0-9 and _. */
  label: string;
};

/** What rebalance_syncs() has learned about sources with a daily_budget. */
export type SyncBudget = {
  /** Which API. */
  source: SyncSource;
  /** Interval in seconds = multiplier / sqrt(changes per second of the row). */
  multiplier: number;
  /** Changes per second of a row about which nothing is known: the mean of all. */
  mean_rate: number;
  /** Factor of the budget to plan for, since requests and failures use some of it unplanned; at most 2. */
  correction: number;
  /** Syncs per day that the plan should make: the budget, or what comes nearest. */
  expected: number;
  /** When all this was planned. */
  rebalanced_at: string;
  /** Syncs ever started by the rows that there were then. */
  starts: number;
  /** Rows that there were then. */
  rows: number;
};

/** Push channels of rows of sync_state: when they end, and what must be done about them. */
export type SyncChannel = {
  /** Tells the channels of a row apart. */
  id: string;
  /** The tenant. */
  user_id: string;
  /** Which account of the user at the provider. */
  account: string;
  /** Which API. */
  source: SyncSource;
  /** What within the source. */
  resource: string;
  /** opening: to be opened; active; retiring: to be stopped; unsupported: the provider refused, and is asked again after a month. */
  state: string;
  /** What the provider sends back with each push; at most 1024 bytes. */
  channel_id: string | null;
  /** SHA-256 of the secret that comes with each push. */
  token_hash: string | null;
  /** What the provider needs to stop the channel, besides channel_id; at most 8 kB. */
  provider_ref: string | null;
  /** When the channel ends; null = it does not. */
  expires_at: string | null;
  /** When a claim hands the channel out next; null = its row is parked. */
  renew_at: string | null;
  /** Fencing number: one more each time that the channel is handed out. */
  lease: number;
  /** Until when a worker holds the channel; null = none does. */
  lease_expires_at: string | null;
  /** Failures in a row to open, renew or stop it. */
  failures: number;
  /** What went wrong last; at most 8 kB. */
  error_message: string | null;
  /** When it was opened. */
  opened_at: string | null;
  /** When a push last arrived; written at most every ten seconds. */
  last_push_at: string | null;
  /** Number of the last message that was recorded. */
  message_number: number | null;
};

/** What an application must act on, until take_sync_events() takes it, at most 30 days. */
export type SyncEvent = {
  /** Never the same for two events: the key by which to act on an event only once. */
  id: string;
  /** When it happened. */
  at: string;
  /** What: parked, failing, recovered, first_sync, cursor_lost, gone, sweep_withheld, source_limited or source_resumed. */
  event: string;
  /** The tenant; null = it concerns the source. */
  user_id: string | null;
  /** Which account of the user at the provider. */
  account: string | null;
  /** Which API; null = a call parked the account. */
  source: SyncSource | null;
  /** What within the source. */
  resource: string | null;
  /** The run in which it happened; null = in none. */
  lease: number | null;
  /** Of parked: paused, auth, failures or token_loop; of source_limited: rate_limited or paused. */
  reason: string | null;
  /** The error of what is parked or fails; what vanished, where a sweep was withheld; until when a source is limited. */
  detail: string | null;
};

/** Hints that claims leave for each other: how far they have come in the lanes of a source. */
export type SyncLane = {
  /** Rows that fell due, or were requested, up to this time have been handed out. */
  mark_at: string;
  /** And among those of that time, up to this user's. */
  mark_user_id: string;
  /** The sweep has been handed out up to this time; infinity: it is at its end. */
  sweep_at: string;
  /** And among those of that time, up to this user's. */
  sweep_user_id: string;
  /** When the sweep goes on, or begins anew. */
  sweep_rests_until: string;
  /** Label of the source. */
  source: string;
  /** Kind of the claims: 0 any, 1 incremental, 2 full. */
  kind: number;
  /** 0: requested rows, 1: due rows. */
  lane: number;
};

/** Overridden settings of sources; null = built-in default; get_sync_policy() returns the effective ones. */
export type SyncPolicy = {
  /** Which API. */
  source: SyncSource;
  /** From start to start of a row's syncs. */
  sync_interval: string | null;
  /** How long a claim holds the row; 1 second to 1 day. */
  lease_time: string | null;
  /** Wait after the first failure; doubles with each further one. */
  retry_base: string | null;
  /** Longest wait after a failure. */
  retry_cap: string | null;
  /** Wait after a rate limit that named no time; 1 second to 30 days. */
  rate_limit_wait: string | null;
  /** Failures in a row before a row may be parked. */
  max_failures: number | null;
  /** How long a run of failures must have lasted before the row is parked. */
  park_after: string | null;
  /** How long a cursor lives; null = it does not expire. */
  token_ttl: string | null;
  /** What token_ttl is counted from: token (each sync renews it) or full (only a full sync does). */
  token_ttl_from: string | null;
  /** The largest fraction by which an interval is shortened; 0 to 0.9. */
  jitter: number | null;
  /** Until when nothing of the source is handed out; infinity = until resumed. */
  paused_until: string | null;
  /** Syncs per day of the whole source, divided by how often rows change; null = off. */
  daily_budget: number | null;
  /** Shortest interval that a budget gives a row. */
  min_interval: string | null;
  /** Longest interval that a budget gives a row. */
  max_interval: string | null;
  /** Syncs of the source that may start in any minute, by all sessions together; null = off. */
  rate_per_minute: number | null;
  /** From the start of a row's last sync until a request may start another; 0 seconds to 1 day. */
  request_gap: string | null;
  /** How many failures in a row it takes before one of kind auth parks the account's rows. */
  auth_failures: number | null;
  /** Each row whose last full sync began before this time gets another one; null = none is planned. */
  resync_from: string | null;
  /** Over how long after resync_from these full syncs are spread; 0 seconds to 36500 days. */
  resync_spread: string | null;
  /** What part of a row's items may_sweep() lets a full sync delete; 0 to 1. */
  max_vanished: number | null;
  /** Who gives the grant for the source; sources that share one are revoked together. */
  provider: string | null;
  /** Syncs of one user, account and source that claims let run at a time; null = off. */
  max_in_flight: number | null;
  /** Which ended runs sync_run keeps: none, failures (all but completed and released ones) or all. */
  keep_runs: string | null;
  /** How long sync_run keeps them. */
  keep_runs_for: string | null;
  /** How long before its end a push channel is renewed, at the earliest; null = the source does not use push. */
  push_renew_before: string | null;
  /** From start to start of a row's syncs while its push channel is healthy. */
  push_interval: string | null;
  /** How long a push channel is trusted after it was opened or a push arrived. */
  push_silence: string | null;
};

/** Runs that ended, of sources whose policy keep_runs is not none, for as long as keep_runs_for. */
export type SyncRun = {
  /** The tenant. */
  user_id: string;
  /** Which account of the user at the provider. */
  account: string;
  /** Which API. */
  source: SyncSource;
  /** What within the source. */
  resource: string;
  /** The lease of the run. */
  lease: number;
  /** When it started. */
  started_at: string | null;
  /** When it ended; of a lost run, when its lease expired. */
  ended_at: string;
  /** How it ended: completed, failed, rate_limited, released, lost or revoked. */
  outcome: string;
  /** Whether it had no cursor to begin with, or lost it. */
  was_full: boolean;
  /** Whether it was requested. */
  was_requested: boolean;
  /** How many items it synced; of a run that did not complete, its progress; null = not known. */
  items: number | null;
  /** What went wrong; at most 8 kB. */
  error_message: string | null;
};

/** One row per user, account, source and resource: where its incremental sync stands, and when it is due. */
export type SyncState = {
  /** The tenant. */
  user_id: string;
  /** Which account of the user at the provider; empty if users have one each; at most 255 bytes. */
  account: string;
  /** Which API. */
  source: SyncSource;
  /** What within the source (a calendar, a task list); empty = the account as a whole; at most 1024 bytes. */
  resource: string;
  /** The last event. */
  status: SyncStatus;
  /** Cursor of Calendar and Contacts; at most 64 kB. */
  sync_token: string | null;
  /** Cursor of Gmail: an unsigned 64-bit decimal, as text. */
  history_id: string | null;
  /** Cursor of Tasks. */
  updated_min: string | null;
  /** When the cursor was last set. */
  token_issued_at: string | null;
  /** When a sync that began without a cursor last completed. */
  last_full_sync_at: string | null;
  /** When the row is due; null = parked. */
  due_at: string | null;
  /** When a sync was requested; non-null = priority lane. */
  requested_at: string | null;
  /** Why the row is parked: paused, auth, failures, token_loop or gone. */
  parked_reason: string | null;
  /** The row's own interval; null = the policy's. */
  sync_interval: string | null;
  /** Number of the lease: one more at each start; never repeated for the same key. */
  lease: number;
  /** Until when the running sync holds the row; null = none is running. */
  lease_expires_at: string | null;
  /** When a sync last started. */
  last_sync_at: string | null;
  /** When a sync last completed. */
  last_successful_sync_at: string | null;
  /** Items of the last completed sync. */
  items_synced: number;
  /** Where a long sync stands between pages; never the cursor. */
  page_token: string | null;
  /** Items done by the running sync; null = unknown. */
  progress_done: number | null;
  /** Items expected by the running sync; null = unknown. */
  progress_total: number | null;
  /** Failures in a row; rate limits do not count. */
  failures: number;
  /** Cursor losses in a row, since the last completion. */
  token_losses: number;
  /** What went wrong last; null after a completion; at most 8 kB. */
  error_message: string | null;
  /** When the row was created. */
  created_at: string;
  /** When the row was last written; set by the trigger. */
  updated_at: string;
  /** When the present run of failures began; null = none. */
  failing_since: string | null;
  /** Changes that syncs found, at most 3 each; halved every 3 days; null = nothing learned yet. */
  changes_seen: number | null;
  /** The time in which they were found; halved every 3 days likewise. */
  seconds_watched: number | null;
  /** The lease under which the full sync began that is not completed yet; null = none. */
  full_sync_id: number | null;
  /** How many syncs of the row were started. */
  syncs_started: number | null;
  /** Whether a claim handed out the running sync, so that its report needs the lease. */
  lease_required: boolean;
  /** Until when the provider limits the account's use of the source. */
  limited_until: string | null;
  /** When the running sync was requested; null = it was not. */
  run_requested_at: string | null;
  /** When an event last told that the row fails or is parked; null = it has completed since. */
  troubled_at: string | null;
  /** Until when a push channel makes frequent polls unnecessary; null = the row has none. */
  push_until: string | null;
};

/** What a user may see of their own runs: no lease. */
export type MySyncRuns = {
  /** The tenant. */
  user_id: string;
  /** Which account of the user at the provider. */
  account: string;
  /** Which API. */
  source: SyncSource;
  /** What within the source. */
  resource: string;
  /** When it started. */
  started_at: string | null;
  /** When it ended; of a lost run, when its lease expired. */
  ended_at: string;
  /** How it ended: completed, failed, rate_limited, released, lost or revoked. */
  outcome: string;
  /** Whether it had no cursor to begin with, or lost it. */
  was_full: boolean;
  /** Whether it was requested. */
  was_requested: boolean;
  /** How many items it synced; of a run that did not complete, its progress; null = not known. */
  items: number | null;
  /** What went wrong; at most 8 kB. */
  error_message: string | null;
};

/** What a user may see of their own rows: no cursor, no page token, no lease. */
export type MySyncs = {
  /** The tenant. */
  user_id: string;
  /** Which account of the user at the provider; empty if users have one each; at most 255 bytes. */
  account: string;
  /** Which API. */
  source: SyncSource;
  /** What within the source (a calendar, a task list); empty = the account as a whole; at most 1024 bytes. */
  resource: string;
  /** The last event. */
  status: SyncStatus;
  /** When the row is due; null = parked. */
  due_at: string | null;
  /** When a sync was requested; non-null = priority lane. */
  requested_at: string | null;
  /** Why the row is parked: paused, auth, failures, token_loop or gone. */
  parked_reason: string | null;
  /** The row's own interval; null = the policy's. */
  sync_interval: string | null;
  /** When a sync that began without a cursor last completed. */
  last_full_sync_at: string | null;
  /** When a sync last started. */
  last_sync_at: string | null;
  /** When a sync last completed. */
  last_successful_sync_at: string | null;
  /** Items of the last completed sync. */
  items_synced: number;
  /** Items done by the running sync; null = unknown. */
  progress_done: number | null;
  /** Items expected by the running sync; null = unknown. */
  progress_total: number | null;
  /** Failures in a row; rate limits do not count. */
  failures: number;
  /** When the present run of failures began; null = none. */
  failing_since: string | null;
  /** Cursor losses in a row, since the last completion. */
  token_losses: number;
  /** What went wrong last; null after a completion; at most 8 kB. */
  error_message: string | null;
  /** When the row was created. */
  created_at: string;
  /** When the row was last written; set by the trigger. */
  updated_at: string;
  /** Until when the provider limits the account's use of the source. */
  limited_until: string | null;
};

/** Per source: how many rows are in which state, due, held, failing and parked, and how late the oldest due one is. */
export type SyncOverview = {
  source: SyncSource | null;
  rows: number | null;
  idle: number | null;
  syncing: number | null;
  error: number | null;
  rate_limited: number | null;
  due: number | null;
  oldest_due_age: string | null;
  requested: number | null;
  live_leases: number | null;
  expired_leases: number | null;
  failing: number | null;
  parked_paused: number | null;
  parked_auth: number | null;
  parked_failures: number | null;
  parked_token_loop: number | null;
  without_cursor: number | null;
  paused_until: string | null;
  ahead: number | null;
  parked_gone: number | null;
  limited: number | null;
  channels_opening: number | null;
  channels_active: number | null;
  channels_retiring: number | null;
  channels_unsupported: number | null;
  channels_ending: number | null;
  channels_silent: number | null;
};

/** Arguments of checkpoint_sync(). */
export type CheckpointSyncArgs = {
  user_id: string;
  source: SyncSource;
  lease?: number | string | null;
  page_token?: string | null;
  progress_done?: number | string | null;
  progress_total?: number | string | null;
  resource?: string;
  account?: string;
};

/** Arguments of claim_due_syncs(). */
export type ClaimDueSyncsArgs = {
  source?: SyncSource | null;
  max_rows?: number;
  lease_time?: string | null;
  kind?: string;
};

/** Arguments of claim_push_channels(). */
export type ClaimPushChannelsArgs = {
  source?: SyncSource | null;
  max_rows?: number;
  lease_time?: string | null;
};

/** Arguments of clear_sync_token(). */
export type ClearSyncTokenArgs = {
  user_id: string;
  source: SyncSource;
  lease?: number | string | null;
  resource?: string;
  account?: string;
};

/** Arguments of connect_account(). */
export type ConnectAccountArgs = {
  user_id: string;
  account?: string;
  provider?: string | null;
};

/** Arguments of connect_sync(). */
export type ConnectSyncArgs = {
  user_id: string;
  source: SyncSource;
  resource?: string;
  account?: string;
};

/** Arguments of disconnect_account(). */
export type DisconnectAccountArgs = {
  user_id: string;
  account?: string;
  provider?: string | null;
};

/** Arguments of disconnect_sync(). */
export type DisconnectSyncArgs = {
  user_id: string;
  source: SyncSource;
  resource?: string;
  account?: string;
};

/** Arguments of get_sync_policy(). */
export type GetSyncPolicyArgs = {
  source: SyncSource;
};

/** Arguments of get_sync_state(). */
export type GetSyncStateArgs = {
  user_id: string;
  source: SyncSource;
  resource?: string;
  account?: string;
};

/** Arguments of get_sync_states(). */
export type GetSyncStatesArgs = {
  user_id: string;
};

/** Arguments of get_users_needing_sync(). */
export type GetUsersNeedingSyncArgs = {
  source: SyncSource;
  stale_after?: string | null;
  max_rows?: number | null;
};

/** Arguments of mark_channel_failed(). */
export type MarkChannelFailedArgs = {
  user_id: string;
  source: SyncSource;
  lease: number | string;
  error_message: string;
  kind?: string;
  resource?: string;
  account?: string;
};

/** Arguments of mark_channel_opened(). */
export type MarkChannelOpenedArgs = {
  user_id: string;
  source: SyncSource;
  lease: number | string;
  channel_id: string;
  expires_at: string | null;
  token: string;
  provider_ref?: string | null;
  resource?: string;
  account?: string;
};

/** Arguments of mark_channel_stopped(). */
export type MarkChannelStoppedArgs = {
  user_id: string;
  source: SyncSource;
  lease: number | string;
  resource?: string;
  account?: string;
};

/** Arguments of mark_rate_limited(). */
export type MarkRateLimitedArgs = {
  user_id: string;
  source: SyncSource;
  retry_after?: string | null;
  scope?: string;
  lease?: number | string | null;
  resource?: string;
  account?: string;
};

/** Arguments of mark_sync_completed(). */
export type MarkSyncCompletedArgs = {
  user_id: string;
  source: SyncSource;
  items_synced?: number | string;
  sync_token?: string | null;
  history_id?: string | null;
  updated_min?: string | null;
  lease?: number | string | null;
  resource?: string;
  account?: string;
};

/** Arguments of mark_sync_failed(). */
export type MarkSyncFailedArgs = {
  user_id: string;
  source: SyncSource;
  error_message: string;
  kind?: string;
  lease?: number | string | null;
  resource?: string;
  scope?: string;
  account?: string;
};

/** Arguments of mark_sync_started(). */
export type MarkSyncStartedArgs = {
  user_id: string;
  source: SyncSource;
  lease_time?: string | null;
  resource?: string;
  account?: string;
};

/** Arguments of may_sweep(). */
export type MaySweepArgs = {
  user_id: string;
  source: SyncSource;
  lease: number | string;
  vanished: number | string;
  total: number | string;
  force?: boolean;
  resource?: string;
  account?: string;
};

/** Arguments of next_sync_due(). */
export type NextSyncDueArgs = {
  source?: SyncSource | null;
};

/** Arguments of pause_account(). */
export type PauseAccountArgs = {
  user_id: string;
  account?: string;
  provider?: string | null;
};

/** Arguments of pause_sync(). */
export type PauseSyncArgs = {
  user_id: string;
  source: SyncSource;
  resource?: string;
  account?: string;
};

/** Arguments of pause_sync_source(). */
export type PauseSyncSourceArgs = {
  source: SyncSource;
  until?: string;
};

/** Arguments of rebalance_syncs(). */
export type RebalanceSyncsArgs = {
  source?: SyncSource | null;
};

/** Arguments of receive_push(). */
export type ReceivePushArgs = {
  channel_id: string;
  token: string;
  message_number?: number | string | null;
};

/** Arguments of register_sync_source(). */
export type RegisterSyncSourceArgs = {
  label: string;
};

/** Arguments of release_sync(). */
export type ReleaseSyncArgs = {
  user_id: string;
  source: SyncSource;
  lease: number | string;
  resource?: string;
  delay?: string;
  account?: string;
};

/** Arguments of renew_sync_lease(). */
export type RenewSyncLeaseArgs = {
  user_id: string;
  source: SyncSource;
  lease: number | string;
  lease_time?: string | null;
  resource?: string;
  account?: string;
};

/** Arguments of report_syncs(). */
export type ReportSyncsArgs = {
  results: Json;
};

/** Arguments of request_account(). */
export type RequestAccountArgs = {
  user_id: string;
  account?: string;
  provider?: string | null;
};

/** Arguments of request_sync(). */
export type RequestSyncArgs = {
  user_id: string;
  source: SyncSource;
  resource?: string;
  account?: string;
};

/** Arguments of resume_account(). */
export type ResumeAccountArgs = {
  user_id: string;
  account?: string;
  provider?: string | null;
};

/** Arguments of resume_sync(). */
export type ResumeSyncArgs = {
  user_id: string;
  source: SyncSource;
  resource?: string;
  account?: string;
};

/** Arguments of resume_sync_source(). */
export type ResumeSyncSourceArgs = {
  source: SyncSource;
};

/** Arguments of resync_source(). */
export type ResyncSourceArgs = {
  source: SyncSource;
  spread?: string;
};

/** Arguments of revive_syncs(). */
export type ReviveSyncsArgs = {
  source: SyncSource;
  reason?: string | null;
  spread?: string;
  max_rows?: number;
};

/** Arguments of set_sync_policy(). */
export type SetSyncPolicyArgs = {
  source: SyncSource;
  changes: Json;
};

/** Arguments of set_sync_resources(). */
export type SetSyncResourcesArgs = {
  user_id: string;
  source: SyncSource;
  resources: string[];
  account?: string;
};

/** Arguments of take_sync_events(). */
export type TakeSyncEventsArgs = {
  max_rows?: number;
};

/** Arguments of update_sync_state(). */
export type UpdateSyncStateArgs = {
  user_id: string;
  source: SyncSource;
  changes: Json;
  resource?: string;
  account?: string;
};

/** Arguments of user_id_of(). */
export type UserIdOfArgs = {
  subject: string;
};

/** What createClient<Database>() of supabase-js takes. */
export type Database = {
  syncstate: {
    Tables: {
      custom_source: {
        Row: CustomSource;
        Insert: {
          label: string;
        };
        Update: {
          label?: string;
        };
        Relationships: [];
      };
      sync_budget: {
        Row: SyncBudget;
        Insert: {
          source: SyncSource;
          multiplier: number;
          mean_rate: number;
          correction: number;
          expected: number;
          rebalanced_at: string;
          starts: number;
          rows: number | string;
        };
        Update: {
          source?: SyncSource;
          multiplier?: number;
          mean_rate?: number;
          correction?: number;
          expected?: number;
          rebalanced_at?: string;
          starts?: number;
          rows?: number | string;
        };
        Relationships: [];
      };
      sync_channel: {
        Row: SyncChannel;
        Insert: {
          id?: string;
          user_id: string;
          account: string;
          source: SyncSource;
          resource: string;
          state?: string;
          channel_id?: string | null;
          token_hash?: string | null;
          provider_ref?: string | null;
          expires_at?: string | null;
          renew_at?: string | null;
          lease?: number | string;
          lease_expires_at?: string | null;
          failures?: number;
          error_message?: string | null;
          opened_at?: string | null;
          last_push_at?: string | null;
          message_number?: number | string | null;
        };
        Update: {
          id?: string;
          user_id?: string;
          account?: string;
          source?: SyncSource;
          resource?: string;
          state?: string;
          channel_id?: string | null;
          token_hash?: string | null;
          provider_ref?: string | null;
          expires_at?: string | null;
          renew_at?: string | null;
          lease?: number | string;
          lease_expires_at?: string | null;
          failures?: number;
          error_message?: string | null;
          opened_at?: string | null;
          last_push_at?: string | null;
          message_number?: number | string | null;
        };
        Relationships: [];
      };
      sync_event: {
        Row: SyncEvent;
        Insert: {
          id?: string;
          at: string;
          event: string;
          user_id?: string | null;
          account?: string | null;
          source?: SyncSource | null;
          resource?: string | null;
          lease?: number | string | null;
          reason?: string | null;
          detail?: string | null;
        };
        Update: {
          id?: string;
          at?: string;
          event?: string;
          user_id?: string | null;
          account?: string | null;
          source?: SyncSource | null;
          resource?: string | null;
          lease?: number | string | null;
          reason?: string | null;
          detail?: string | null;
        };
        Relationships: [];
      };
      sync_lane: {
        Row: SyncLane;
        Insert: {
          mark_at?: string;
          mark_user_id?: string;
          sweep_at?: string;
          sweep_user_id?: string;
          sweep_rests_until?: string;
          source: string;
          kind: number;
          lane: number;
        };
        Update: {
          mark_at?: string;
          mark_user_id?: string;
          sweep_at?: string;
          sweep_user_id?: string;
          sweep_rests_until?: string;
          source?: string;
          kind?: number;
          lane?: number;
        };
        Relationships: [];
      };
      sync_policy: {
        Row: SyncPolicy;
        Insert: {
          source: SyncSource;
          sync_interval?: string | null;
          lease_time?: string | null;
          retry_base?: string | null;
          retry_cap?: string | null;
          rate_limit_wait?: string | null;
          max_failures?: number | null;
          park_after?: string | null;
          token_ttl?: string | null;
          token_ttl_from?: string | null;
          jitter?: number | null;
          paused_until?: string | null;
          daily_budget?: number | null;
          min_interval?: string | null;
          max_interval?: string | null;
          rate_per_minute?: number | null;
          request_gap?: string | null;
          auth_failures?: number | null;
          resync_from?: string | null;
          resync_spread?: string | null;
          max_vanished?: number | null;
          provider?: string | null;
          max_in_flight?: number | null;
          keep_runs?: string | null;
          keep_runs_for?: string | null;
          push_renew_before?: string | null;
          push_interval?: string | null;
          push_silence?: string | null;
        };
        Update: {
          source?: SyncSource;
          sync_interval?: string | null;
          lease_time?: string | null;
          retry_base?: string | null;
          retry_cap?: string | null;
          rate_limit_wait?: string | null;
          max_failures?: number | null;
          park_after?: string | null;
          token_ttl?: string | null;
          token_ttl_from?: string | null;
          jitter?: number | null;
          paused_until?: string | null;
          daily_budget?: number | null;
          min_interval?: string | null;
          max_interval?: string | null;
          rate_per_minute?: number | null;
          request_gap?: string | null;
          auth_failures?: number | null;
          resync_from?: string | null;
          resync_spread?: string | null;
          max_vanished?: number | null;
          provider?: string | null;
          max_in_flight?: number | null;
          keep_runs?: string | null;
          keep_runs_for?: string | null;
          push_renew_before?: string | null;
          push_interval?: string | null;
          push_silence?: string | null;
        };
        Relationships: [];
      };
      sync_run: {
        Row: SyncRun;
        Insert: {
          user_id: string;
          account: string;
          source: SyncSource;
          resource: string;
          lease: number | string;
          started_at?: string | null;
          ended_at: string;
          outcome: string;
          was_full: boolean;
          was_requested: boolean;
          items?: number | string | null;
          error_message?: string | null;
        };
        Update: {
          user_id?: string;
          account?: string;
          source?: SyncSource;
          resource?: string;
          lease?: number | string;
          started_at?: string | null;
          ended_at?: string;
          outcome?: string;
          was_full?: boolean;
          was_requested?: boolean;
          items?: number | string | null;
          error_message?: string | null;
        };
        Relationships: [];
      };
      sync_state: {
        Row: SyncState;
        Insert: {
          user_id: string;
          account?: string;
          source: SyncSource;
          resource?: string;
          status?: SyncStatus;
          sync_token?: string | null;
          history_id?: string | null;
          updated_min?: string | null;
          token_issued_at?: string | null;
          last_full_sync_at?: string | null;
          due_at?: string | null;
          requested_at?: string | null;
          parked_reason?: string | null;
          sync_interval?: string | null;
          lease?: number | string;
          lease_expires_at?: string | null;
          last_sync_at?: string | null;
          last_successful_sync_at?: string | null;
          items_synced?: number | string;
          page_token?: string | null;
          progress_done?: number | string | null;
          progress_total?: number | string | null;
          failures?: number;
          token_losses?: number;
          error_message?: string | null;
          created_at?: string;
          updated_at?: string;
          failing_since?: string | null;
          changes_seen?: number | null;
          seconds_watched?: number | null;
          full_sync_id?: number | string | null;
          syncs_started?: number | null;
          lease_required?: boolean;
          limited_until?: string | null;
          run_requested_at?: string | null;
          troubled_at?: string | null;
          push_until?: string | null;
        };
        Update: {
          user_id?: string;
          account?: string;
          source?: SyncSource;
          resource?: string;
          status?: SyncStatus;
          sync_token?: string | null;
          history_id?: string | null;
          updated_min?: string | null;
          token_issued_at?: string | null;
          last_full_sync_at?: string | null;
          due_at?: string | null;
          requested_at?: string | null;
          parked_reason?: string | null;
          sync_interval?: string | null;
          lease?: number | string;
          lease_expires_at?: string | null;
          last_sync_at?: string | null;
          last_successful_sync_at?: string | null;
          items_synced?: number | string;
          page_token?: string | null;
          progress_done?: number | string | null;
          progress_total?: number | string | null;
          failures?: number;
          token_losses?: number;
          error_message?: string | null;
          created_at?: string;
          updated_at?: string;
          failing_since?: string | null;
          changes_seen?: number | null;
          seconds_watched?: number | null;
          full_sync_id?: number | string | null;
          syncs_started?: number | null;
          lease_required?: boolean;
          limited_until?: string | null;
          run_requested_at?: string | null;
          troubled_at?: string | null;
          push_until?: string | null;
        };
        Relationships: [];
      };
    };
    Views: {
      my_sync_runs: {
        Row: MySyncRuns;
        Relationships: [];
      };
      my_syncs: {
        Row: MySyncs;
        Relationships: [];
      };
      sync_overview: {
        Row: SyncOverview;
        Relationships: [];
      };
    };
    Functions: {
      /** Returns a row for each thing that is not as installed, or slows or bloats the tables, with what to do about it. */
      check_installation: {
        Args: Record<PropertyKey, never>;
        Returns: {
          object: string | null;
          problem: string | null;
          advice: string | null;
        }[];
      };
      /** Saves where a long sync stands, and renews its lease. */
      checkpoint_sync: {
        Args: CheckpointSyncArgs;
        Returns: SyncState;
        SetofOptions: {
          from: '*';
          to: 'sync_state';
          isOneToOne: true;
          isSetofReturn: false;
        };
      };
      /** Claims due rows, each with a lease: requested rows first, then the oldest due. */
      claim_due_syncs: {
        Args: ClaimDueSyncsArgs;
        Returns: SyncState[];
        SetofOptions: {
          from: '*';
          to: 'sync_state';
          isOneToOne: false;
          isSetofReturn: true;
        };
      };
      /** Claims push channels that are to be opened, renewed or stopped, each with a lease. */
      claim_push_channels: {
        Args: ClaimPushChannelsArgs;
        Returns: {
          user_id: string;
          account: string;
          source: SyncSource;
          resource: string;
          action: string;
          lease: number;
          lease_expires_at: string;
          channel_id: string | null;
          provider_ref: string | null;
          expires_at: string | null;
          failures: number;
        }[];
      };
      /** Reports that the cursor has expired: a full sync is next. */
      clear_sync_token: {
        Args: ClearSyncTokenArgs;
        Returns: SyncState;
        SetofOptions: {
          from: '*';
          to: 'sync_state';
          isOneToOne: true;
          isSetofReturn: false;
        };
      };
      /** Starts or resumes the syncing of all rows of an account, as connect_sync() does for one; returns them. */
      connect_account: {
        Args: ConnectAccountArgs;
        Returns: SyncState[];
        SetofOptions: {
          from: '*';
          to: 'sync_state';
          isOneToOne: false;
          isSetofReturn: true;
        };
      };
      /** Starts or resumes the syncing of a row: creates it if it is missing, un-parks it unless it is paused, resets failures, and requests a sync. */
      connect_sync: {
        Args: ConnectSyncArgs;
        Returns: SyncState;
        SetofOptions: {
          from: '*';
          to: 'sync_state';
          isOneToOne: true;
          isSetofReturn: false;
        };
      };
      /** The user that the session's JWT claims name, or null. */
      current_user_id: {
        Args: Record<PropertyKey, never>;
        Returns: string | null;
      };
      /** Deletes all rows of an account; returns them as they were. */
      disconnect_account: {
        Args: DisconnectAccountArgs;
        Returns: SyncState[];
        SetofOptions: {
          from: '*';
          to: 'sync_state';
          isOneToOne: false;
          isSetofReturn: true;
        };
      };
      /** Deletes the row; returns false if there was none. */
      disconnect_sync: {
        Args: DisconnectSyncArgs;
        Returns: boolean;
      };
      /** The effective settings of a source: what was overridden, and the built-in defaults for the rest. */
      get_sync_policy: {
        Args: GetSyncPolicyArgs;
        Returns: SyncPolicy;
        SetofOptions: {
          from: '*';
          to: 'sync_policy';
          isOneToOne: true;
          isSetofReturn: false;
        };
      };
      /** The row of a user, account, source and resource, or null. */
      get_sync_state: {
        Args: GetSyncStateArgs;
        Returns: { [Column in keyof SyncState]: SyncState[Column] | null };
        SetofOptions: {
          from: '*';
          to: 'sync_state';
          isOneToOne: true;
          isSetofReturn: false;
        };
      };
      /** All rows of a user. */
      get_sync_states: {
        Args: GetSyncStatesArgs;
        Returns: SyncState[];
        SetofOptions: {
          from: '*';
          to: 'sync_state';
          isOneToOne: false;
          isSetofReturn: true;
        };
      };
      /** Returns the users who have a row that a claim would take now, without claiming it. */
      get_users_needing_sync: {
        Args: GetUsersNeedingSyncArgs;
        Returns: string[];
      };
      /** Reports that a push channel could not be opened, renewed or stopped: it waits, or is asked for again after a month. */
      mark_channel_failed: {
        Args: MarkChannelFailedArgs;
        Returns: SyncChannel;
        SetofOptions: {
          from: '*';
          to: 'sync_channel';
          isOneToOne: true;
          isSetofReturn: false;
        };
      };
      /** Reports that a push channel was opened, or that its successor was: the old one is to be stopped. */
      mark_channel_opened: {
        Args: MarkChannelOpenedArgs;
        Returns: SyncChannel;
        SetofOptions: {
          from: '*';
          to: 'sync_channel';
          isOneToOne: true;
          isSetofReturn: false;
        };
      };
      /** Reports that a push channel was stopped, which forgets it; returns it as it was. */
      mark_channel_stopped: {
        Args: MarkChannelStoppedArgs;
        Returns: SyncChannel;
        SetofOptions: {
          from: '*';
          to: 'sync_channel';
          isOneToOne: true;
          isSetofReturn: false;
        };
      };
      /** Reports that the provider's rate limit was hit: the rows of the account's source wait until it ends. */
      mark_rate_limited: {
        Args: MarkRateLimitedArgs;
        Returns: SyncState;
        SetofOptions: {
          from: '*';
          to: 'sync_state';
          isOneToOne: true;
          isSetofReturn: false;
        };
      };
      /** Reports that a sync completed, with its new cursor. */
      mark_sync_completed: {
        Args: MarkSyncCompletedArgs;
        Returns: SyncState;
        SetofOptions: {
          from: '*';
          to: 'sync_state';
          isOneToOne: true;
          isSetofReturn: false;
        };
      };
      /** Reports that a sync failed: the row waits, or is parked if waiting is of no use; an account whose grant has ended is parked as a whole. */
      mark_sync_failed: {
        Args: MarkSyncFailedArgs;
        Returns: SyncState;
        SetofOptions: {
          from: '*';
          to: 'sync_state';
          isOneToOne: true;
          isSetofReturn: false;
        };
      };
      /** Starts the sync of one row, due or not, unless another worker holds it. */
      mark_sync_started: {
        Args: MarkSyncStartedArgs;
        Returns: SyncState;
        SetofOptions: {
          from: '*';
          to: 'sync_state';
          isOneToOne: true;
          isSetofReturn: false;
        };
      };
      /** Whether the items that a full sync did not list may be deleted: not if they are suspiciously many. */
      may_sweep: {
        Args: MaySweepArgs;
        Returns: boolean;
      };
      /** Returns when a claim will next find a row, so that a worker knows how long to sleep. */
      next_sync_due: {
        Args: NextSyncDueArgs;
        Returns: string | null;
      };
      /** Parks all rows of an account until they are resumed; returns them. */
      pause_account: {
        Args: PauseAccountArgs;
        Returns: SyncState[];
        SetofOptions: {
          from: '*';
          to: 'sync_state';
          isOneToOne: false;
          isSetofReturn: true;
        };
      };
      /** Parks a row until it is resumed; a running sync may finish. */
      pause_sync: {
        Args: PauseSyncArgs;
        Returns: SyncState;
        SetofOptions: {
          from: '*';
          to: 'sync_state';
          isOneToOne: true;
          isSetofReturn: false;
        };
      };
      /** Hands out no row of a source until a time; running syncs may finish. */
      pause_sync_source: {
        Args: PauseSyncSourceArgs;
        Returns: SyncPolicy;
        SetofOptions: {
          from: '*';
          to: 'sync_policy';
          isOneToOne: true;
          isSetofReturn: false;
        };
      };
      /** Divides the daily budget of a source among its rows, by how often each one changes. */
      rebalance_syncs: {
        Args: RebalanceSyncsArgs;
        Returns: {
          source: SyncSource | null;
          rows: number | null;
          budget: number | null;
          planned: number | null;
          observed: number | null;
          multiplier: number | null;
          at_min: number | null;
          at_max: number | null;
          feasible: boolean | null;
        }[];
      };
      /** Takes a push: requests a sync of the channel's row; returns false for an unknown channel or a wrong token. */
      receive_push: {
        Args: ReceivePushArgs;
        Returns: boolean;
      };
      /** Adds a label to sync_source, usable once the transaction has committed. */
      register_sync_source: {
        Args: RegisterSyncSourceArgs;
        Returns: undefined;
      };
      /** Returns a claimed row unsynced, due after a delay and after all rows that are due already; counts nothing. */
      release_sync: {
        Args: ReleaseSyncArgs;
        Returns: SyncState;
        SetofOptions: {
          from: '*';
          to: 'sync_state';
          isOneToOne: true;
          isSetofReturn: false;
        };
      };
      /** Renews the lease of a running sync. */
      renew_sync_lease: {
        Args: RenewSyncLeaseArgs;
        Returns: SyncState;
        SetofOptions: {
          from: '*';
          to: 'sync_state';
          isOneToOne: true;
          isSetofReturn: false;
        };
      };
      /** Reports many syncs in one call. */
      report_syncs: {
        Args: ReportSyncsArgs;
        Returns: SyncState[];
        SetofOptions: {
          from: '*';
          to: 'sync_state';
          isOneToOne: false;
          isSetofReturn: true;
        };
      };
      /** Requests a sync of each row of an account; returns the rows for which one will come. */
      request_account: {
        Args: RequestAccountArgs;
        Returns: {
          source: SyncSource;
          resource: string;
        }[];
      };
      /** Requests a sync now; returns whether one will come, which is false for a parked row. */
      request_sync: {
        Args: RequestSyncArgs;
        Returns: boolean;
      };
      /** Un-parks all rows of an account, which are due at once; returns them. */
      resume_account: {
        Args: ResumeAccountArgs;
        Returns: SyncState[];
        SetofOptions: {
          from: '*';
          to: 'sync_state';
          isOneToOne: false;
          isSetofReturn: true;
        };
      };
      /** Un-parks a row, which is due at once, and resets its failures. */
      resume_sync: {
        Args: ResumeSyncArgs;
        Returns: SyncState;
        SetofOptions: {
          from: '*';
          to: 'sync_state';
          isOneToOne: true;
          isSetofReturn: false;
        };
      };
      /** Ends the pause of a source; its due rows can be claimed at once. */
      resume_sync_source: {
        Args: ResumeSyncSourceArgs;
        Returns: SyncPolicy;
        SetofOptions: {
          from: '*';
          to: 'sync_policy';
          isOneToOne: true;
          isSetofReturn: false;
        };
      };
      /** Plans a full sync of every row of a source, spread over a time. */
      resync_source: {
        Args: ResyncSourceArgs;
        Returns: SyncPolicy;
        SetofOptions: {
          from: '*';
          to: 'sync_policy';
          isOneToOne: true;
          isSetofReturn: false;
        };
      };
      /** Un-parks rows of a source, spread over a time, and returns how many. */
      revive_syncs: {
        Args: ReviveSyncsArgs;
        Returns: number;
      };
      /** Overrides settings of a source and returns the effective ones: keys present change, null restores the built-in default, keys absent stay. */
      set_sync_policy: {
        Args: SetSyncPolicyArgs;
        Returns: SyncPolicy;
        SetofOptions: {
          from: '*';
          to: 'sync_policy';
          isOneToOne: true;
          isSetofReturn: false;
        };
      };
      /** Makes the resources of an account exactly these: connects new ones, parks those that are gone, brings back those that returned. */
      set_sync_resources: {
        Args: SetSyncResourcesArgs;
        Returns: {
          resource: string;
          change: string;
        }[];
      };
      /** The time by which the extension decides: the real time, or syncstate.clock where that is set. */
      sync_clock: {
        Args: Record<PropertyKey, never>;
        Returns: string;
      };
      /** Takes the oldest events that nobody else is taking: deletes and returns them. */
      take_sync_events: {
        Args: TakeSyncEventsArgs;
        Returns: SyncEvent[];
        SetofOptions: {
          from: '*';
          to: 'sync_event';
          isOneToOne: false;
          isSetofReturn: true;
        };
      };
      /** Changes columns of a row as a direct write would: keys present change, null clears, keys absent stay. */
      update_sync_state: {
        Args: UpdateSyncStateArgs;
        Returns: SyncState;
        SetofOptions: {
          from: '*';
          to: 'sync_state';
          isOneToOne: true;
          isSetofReturn: false;
        };
      };
      /** The user_id of a user whose id is a text: itself if it is a uuid, else one that is computed from it. */
      user_id_of: {
        Args: UserIdOfArgs;
        Returns: string;
      };
    };
    Enums: {
      sync_source: SyncSource;
      sync_status: SyncStatus;
    };
    CompositeTypes: { [_ in never]: never };
  };
};

/** The labels of SyncSource, in their order. */
export const SYNC_SOURCE_LABELS = [
  'google_calendar',
  'google_tasks',
  'google_gmail',
  'google_contacts',
] as const satisfies readonly SyncSource[];

/** The labels of SyncStatus, in their order. */
export const SYNC_STATUS_LABELS = [
  'idle',
  'syncing',
  'error',
  'rate_limited',
] as const satisfies readonly SyncStatus[];
