/* sql/syncstate--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION syncstate" to load this file. \quit

/*
 * The script runs as superuser for a database owner (trusted = true) with
 * search_path = pg_catalog, pg_temp (schema = pg_catalog in the control file).
 * It makes its own schema, which is therefore not the installer's, fails if
 * somebody planted that schema, and never replaces an object.
 */
CREATE SCHEMA syncstate;
COMMENT ON SCHEMA syncstate IS 'State of the incremental syncs of external APIs: cursors, leases, due times';

/* ------------------------------------------------------------------ types */

CREATE TYPE syncstate.sync_source AS ENUM
	('google_calendar', 'google_tasks', 'google_gmail', 'google_contacts');
COMMENT ON TYPE syncstate.sync_source IS 'Which API a row syncs from; register_sync_source() adds labels';

CREATE TYPE syncstate.sync_status AS ENUM
	('idle', 'syncing', 'error', 'rate_limited');
COMMENT ON TYPE syncstate.sync_status IS 'What happened last to a row; never decides alone whether the row is due';

/* ------------------------------------------------------------------ store */

/*
 * Column order is part of the contract.  src/columns.h has the same list: keep
 * in sync.  New columns go to the end of both.
 *
 * lease begins at the microseconds since 1970 when the row is made.  A start takes
 * longer than a microsecond, so no number is ever given again for a key, however
 * its row was deleted: a worker that still has a lease of the old row holds none
 * of the new one.
 *
 * account and resource compare bytewise: they end both lane indexes, which must
 * not change their order with a new version of the locale library.
 *
 * fillfactor: a claim and each heartbeat leave one more version of the row,
 * and all rows of a page may be claimed in one statement.  Measured with
 * 100,000 rows claimed and completed in batches of 100: see doc/performance.md.
 */
CREATE TABLE syncstate.sync_state (
	user_id uuid NOT NULL,
	account text COLLATE pg_catalog."C" NOT NULL DEFAULT '',
	source syncstate.sync_source NOT NULL,
	resource text COLLATE pg_catalog."C" NOT NULL DEFAULT '',
	status syncstate.sync_status NOT NULL DEFAULT 'idle',
	sync_token text,
	history_id text,
	updated_min timestamptz,
	token_issued_at timestamptz,
	last_full_sync_at timestamptz,
	due_at timestamptz,
	requested_at timestamptz,
	parked_reason text,
	sync_interval interval,
	lease bigint NOT NULL
		DEFAULT (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) OPERATOR(pg_catalog.*) 1000000)::bigint,
	lease_expires_at timestamptz,
	last_sync_at timestamptz,
	last_successful_sync_at timestamptz,
	items_synced bigint NOT NULL DEFAULT 0,
	page_token text,
	progress_done bigint,
	progress_total bigint,
	failures integer NOT NULL DEFAULT 0,
	token_losses integer NOT NULL DEFAULT 0,
	error_message text,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
	updated_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
	failing_since timestamptz,
	changes_seen double precision,
	seconds_watched double precision,
	full_sync_id bigint,
	syncs_started integer DEFAULT 0,
	lease_required boolean NOT NULL DEFAULT false,
	limited_until timestamptz,
	run_requested_at timestamptz,
	troubled_at timestamptz,
	push_until timestamptz,
	CONSTRAINT sync_state_pkey PRIMARY KEY (user_id, account, source, resource)
) WITH (fillfactor = 50);

/*
 * The invariants, as one CHECK with a function in C and not as a dozen with
 * expressions: the server reads the stored expressions of all CHECKs at each
 * statement, which took longer than all the rest of a single report.
 */
CREATE FUNCTION syncstate.is_legal(sync_state syncstate.sync_state) RETURNS boolean
	AS 'MODULE_PATHNAME', 'syncstate_is_legal'
	LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION syncstate.is_legal(syncstate.sync_state) IS 'Whether a row of sync_state keeps its invariants; an error says which one it breaks';
REVOKE ALL ON FUNCTION syncstate.is_legal(syncstate.sync_state) FROM PUBLIC;

ALTER TABLE syncstate.sync_state ADD CONSTRAINT sync_state_is_legal
	CHECK (syncstate.is_legal(sync_state));

/*
 * The lanes, without parked rows.  The rest of the key makes every entry of a
 * lane distinct, so that a walk can stop and continue between rows of equal due
 * time, however many.  Nothing that a claim or a heartbeat changes may be
 * indexed, or they are no longer HOT.
 */
CREATE INDEX sync_state_due ON syncstate.sync_state
	(source, due_at, user_id, account, resource) WHERE due_at IS NOT NULL;
CREATE INDEX sync_state_requested ON syncstate.sync_state
	(source, requested_at, user_id, account, resource) WHERE requested_at IS NOT NULL AND due_at IS NOT NULL;
REVOKE ALL ON TABLE syncstate.sync_state FROM PUBLIC;
SELECT pg_catalog.pg_extension_config_dump('syncstate.sync_state', '');

COMMENT ON TABLE syncstate.sync_state IS 'One row per user, account, source and resource: where its incremental sync stands, and when it is due';
COMMENT ON COLUMN syncstate.sync_state.user_id IS 'The tenant';
COMMENT ON COLUMN syncstate.sync_state.account IS 'Which account of the user at the provider; empty if users have one each; at most 255 bytes';
COMMENT ON COLUMN syncstate.sync_state.source IS 'Which API';
COMMENT ON COLUMN syncstate.sync_state.resource IS 'What within the source (a calendar, a task list); empty = the account as a whole; at most 1024 bytes';
COMMENT ON COLUMN syncstate.sync_state.status IS 'The last event';
COMMENT ON COLUMN syncstate.sync_state.sync_token IS 'Cursor of Calendar and Contacts; at most 64 kB';
COMMENT ON COLUMN syncstate.sync_state.history_id IS 'Cursor of Gmail: an unsigned 64-bit decimal, as text';
COMMENT ON COLUMN syncstate.sync_state.updated_min IS 'Cursor of Tasks';
COMMENT ON COLUMN syncstate.sync_state.token_issued_at IS 'When the cursor was last set';
COMMENT ON COLUMN syncstate.sync_state.last_full_sync_at IS 'When a sync that began without a cursor last completed';
COMMENT ON COLUMN syncstate.sync_state.due_at IS 'When the row is due; null = parked';
COMMENT ON COLUMN syncstate.sync_state.requested_at IS 'When a sync was requested; non-null = priority lane';
COMMENT ON COLUMN syncstate.sync_state.parked_reason IS 'Why the row is parked: paused, auth, failures, token_loop or gone';
COMMENT ON COLUMN syncstate.sync_state.sync_interval IS 'The row''s own interval; null = the policy''s';
COMMENT ON COLUMN syncstate.sync_state.lease IS 'Number of the lease: one more at each start; never repeated for the same key';
COMMENT ON COLUMN syncstate.sync_state.lease_expires_at IS 'Until when the running sync holds the row; null = none is running';
COMMENT ON COLUMN syncstate.sync_state.last_sync_at IS 'When a sync last started';
COMMENT ON COLUMN syncstate.sync_state.last_successful_sync_at IS 'When a sync last completed';
COMMENT ON COLUMN syncstate.sync_state.items_synced IS 'Items of the last completed sync';
COMMENT ON COLUMN syncstate.sync_state.page_token IS 'Where a long sync stands between pages; never the cursor';
COMMENT ON COLUMN syncstate.sync_state.progress_done IS 'Items done by the running sync; null = unknown';
COMMENT ON COLUMN syncstate.sync_state.progress_total IS 'Items expected by the running sync; null = unknown';
COMMENT ON COLUMN syncstate.sync_state.failures IS 'Failures in a row; rate limits do not count';
COMMENT ON COLUMN syncstate.sync_state.token_losses IS 'Cursor losses in a row, since the last completion';
COMMENT ON COLUMN syncstate.sync_state.error_message IS 'What went wrong last; null after a completion; at most 8 kB';
COMMENT ON COLUMN syncstate.sync_state.created_at IS 'When the row was created';
COMMENT ON COLUMN syncstate.sync_state.updated_at IS 'When the row was last written; set by the trigger';
COMMENT ON COLUMN syncstate.sync_state.failing_since IS 'When the present run of failures began; null = none';
COMMENT ON COLUMN syncstate.sync_state.changes_seen IS 'Changes that syncs found, at most 3 each; halved every 3 days; null = nothing learned yet';
COMMENT ON COLUMN syncstate.sync_state.seconds_watched IS 'The time in which they were found; halved every 3 days likewise';
COMMENT ON COLUMN syncstate.sync_state.full_sync_id IS 'The lease under which the full sync began that is not completed yet; null = none';
COMMENT ON COLUMN syncstate.sync_state.syncs_started IS 'How many syncs of the row were started';
COMMENT ON COLUMN syncstate.sync_state.lease_required IS 'Whether a claim handed out the running sync, so that its report needs the lease';
COMMENT ON COLUMN syncstate.sync_state.limited_until IS 'Until when the provider limits the account''s use of the source';
COMMENT ON COLUMN syncstate.sync_state.run_requested_at IS 'When the running sync was requested; null = it was not';
COMMENT ON COLUMN syncstate.sync_state.troubled_at IS 'When an event last told that the row fails or is parked; null = it has completed since';
COMMENT ON COLUMN syncstate.sync_state.push_until IS 'Until when a push channel makes frequent polls unnecessary; null = the row has none';

/* ----------------------------------------------------------------- policy */

/* Only what somebody overrode; built-in defaults are in src/columns.h. */
CREATE TABLE syncstate.sync_policy (
	source syncstate.sync_source NOT NULL,
	sync_interval interval,
	lease_time interval,
	retry_base interval,
	retry_cap interval,
	rate_limit_wait interval,
	max_failures integer,
	park_after interval,
	token_ttl interval,
	token_ttl_from text,
	jitter double precision,
	paused_until timestamptz,
	daily_budget integer,
	min_interval interval,
	max_interval interval,
	rate_per_minute integer,
	request_gap interval,
	auth_failures integer,
	resync_from timestamptz,
	resync_spread interval,
	max_vanished double precision,
	provider text,
	max_in_flight integer,
	keep_runs text,
	keep_runs_for interval,
	push_renew_before interval,
	push_interval interval,
	push_silence interval,
	CONSTRAINT sync_policy_pkey PRIMARY KEY (source),
	CONSTRAINT sync_policy_intervals_range
		CHECK (sync_interval OPERATOR(pg_catalog.>=) '1 second'::pg_catalog.interval
			   AND sync_interval OPERATOR(pg_catalog.<=) '36500 days'::pg_catalog.interval
			   AND lease_time OPERATOR(pg_catalog.>=) '1 second'::pg_catalog.interval
			   AND lease_time OPERATOR(pg_catalog.<=) '1 day'::pg_catalog.interval
			   AND retry_base OPERATOR(pg_catalog.>=) '1 second'::pg_catalog.interval
			   AND retry_base OPERATOR(pg_catalog.<=) '36500 days'::pg_catalog.interval
			   AND retry_cap OPERATOR(pg_catalog.>=) '1 second'::pg_catalog.interval
			   AND retry_cap OPERATOR(pg_catalog.<=) '36500 days'::pg_catalog.interval
			   AND rate_limit_wait OPERATOR(pg_catalog.>=) '1 second'::pg_catalog.interval
			   AND rate_limit_wait OPERATOR(pg_catalog.<=) '30 days'::pg_catalog.interval
			   AND park_after OPERATOR(pg_catalog.>=) '1 second'::pg_catalog.interval
			   AND park_after OPERATOR(pg_catalog.<=) '36500 days'::pg_catalog.interval
			   AND token_ttl OPERATOR(pg_catalog.>=) '1 second'::pg_catalog.interval
			   AND token_ttl OPERATOR(pg_catalog.<=) '36500 days'::pg_catalog.interval
			   AND min_interval OPERATOR(pg_catalog.>=) '1 second'::pg_catalog.interval
			   AND min_interval OPERATOR(pg_catalog.<=) '36500 days'::pg_catalog.interval
			   AND max_interval OPERATOR(pg_catalog.>=) '1 second'::pg_catalog.interval
			   AND max_interval OPERATOR(pg_catalog.<=) '36500 days'::pg_catalog.interval
			   AND request_gap OPERATOR(pg_catalog.>=) '0 seconds'::pg_catalog.interval
			   AND request_gap OPERATOR(pg_catalog.<=) '1 day'::pg_catalog.interval
			   AND resync_spread OPERATOR(pg_catalog.>=) '0 seconds'::pg_catalog.interval
			   AND resync_spread OPERATOR(pg_catalog.<=) '36500 days'::pg_catalog.interval
			   AND keep_runs_for OPERATOR(pg_catalog.>=) '1 second'::pg_catalog.interval
			   AND keep_runs_for OPERATOR(pg_catalog.<=) '36500 days'::pg_catalog.interval
			   AND push_renew_before OPERATOR(pg_catalog.>=) '1 second'::pg_catalog.interval
			   AND push_renew_before OPERATOR(pg_catalog.<=) '36500 days'::pg_catalog.interval
			   AND push_interval OPERATOR(pg_catalog.>=) '1 second'::pg_catalog.interval
			   AND push_interval OPERATOR(pg_catalog.<=) '36500 days'::pg_catalog.interval
			   AND push_silence OPERATOR(pg_catalog.>=) '1 second'::pg_catalog.interval
			   AND push_silence OPERATOR(pg_catalog.<=) '36500 days'::pg_catalog.interval),
	CONSTRAINT sync_policy_intervals_without_months
		CHECK (pg_catalog.date_part('year', sync_interval) OPERATOR(pg_catalog.=) 0
			   AND pg_catalog.date_part('month', sync_interval) OPERATOR(pg_catalog.=) 0
			   AND pg_catalog.date_part('year', retry_base) OPERATOR(pg_catalog.=) 0
			   AND pg_catalog.date_part('month', retry_base) OPERATOR(pg_catalog.=) 0
			   AND pg_catalog.date_part('year', retry_cap) OPERATOR(pg_catalog.=) 0
			   AND pg_catalog.date_part('month', retry_cap) OPERATOR(pg_catalog.=) 0
			   AND pg_catalog.date_part('month', rate_limit_wait) OPERATOR(pg_catalog.=) 0
			   AND pg_catalog.date_part('year', park_after) OPERATOR(pg_catalog.=) 0
			   AND pg_catalog.date_part('month', park_after) OPERATOR(pg_catalog.=) 0
			   AND pg_catalog.date_part('year', token_ttl) OPERATOR(pg_catalog.=) 0
			   AND pg_catalog.date_part('month', token_ttl) OPERATOR(pg_catalog.=) 0
			   AND pg_catalog.date_part('year', min_interval) OPERATOR(pg_catalog.=) 0
			   AND pg_catalog.date_part('month', min_interval) OPERATOR(pg_catalog.=) 0
			   AND pg_catalog.date_part('year', max_interval) OPERATOR(pg_catalog.=) 0
			   AND pg_catalog.date_part('month', max_interval) OPERATOR(pg_catalog.=) 0
			   AND pg_catalog.date_part('year', resync_spread) OPERATOR(pg_catalog.=) 0
			   AND pg_catalog.date_part('month', resync_spread) OPERATOR(pg_catalog.=) 0
			   AND pg_catalog.date_part('year', keep_runs_for) OPERATOR(pg_catalog.=) 0
			   AND pg_catalog.date_part('month', keep_runs_for) OPERATOR(pg_catalog.=) 0
			   AND pg_catalog.date_part('year', push_renew_before) OPERATOR(pg_catalog.=) 0
			   AND pg_catalog.date_part('month', push_renew_before) OPERATOR(pg_catalog.=) 0
			   AND pg_catalog.date_part('year', push_interval) OPERATOR(pg_catalog.=) 0
			   AND pg_catalog.date_part('month', push_interval) OPERATOR(pg_catalog.=) 0
			   AND pg_catalog.date_part('year', push_silence) OPERATOR(pg_catalog.=) 0
			   AND pg_catalog.date_part('month', push_silence) OPERATOR(pg_catalog.=) 0),
	CONSTRAINT sync_policy_retry_base_below_cap
		CHECK (retry_base OPERATOR(pg_catalog.<=) retry_cap),
	CONSTRAINT sync_policy_paused_until_range
		CHECK (paused_until OPERATOR(pg_catalog.=) 'infinity'::pg_catalog.timestamptz
			   OR (paused_until OPERATOR(pg_catalog.>=) '0001-01-01 00:00:00+00'::pg_catalog.timestamptz
				   AND paused_until OPERATOR(pg_catalog.<) '10000-01-01 00:00:00+00'::pg_catalog.timestamptz)),
	CONSTRAINT sync_policy_max_failures_range
		CHECK (max_failures OPERATOR(pg_catalog.>=) 1),
	CONSTRAINT sync_policy_token_ttl_from_known
		CHECK (token_ttl_from OPERATOR(pg_catalog.=) ANY (ARRAY['token', 'full'])),
	CONSTRAINT sync_policy_jitter_range
		CHECK (jitter OPERATOR(pg_catalog.>=) 0 AND jitter OPERATOR(pg_catalog.<=) 0.9),
	CONSTRAINT sync_policy_daily_budget_range
		CHECK (daily_budget OPERATOR(pg_catalog.>=) 1),
	CONSTRAINT sync_policy_min_interval_below_max
		CHECK (min_interval OPERATOR(pg_catalog.<=) max_interval),
	CONSTRAINT sync_policy_rate_per_minute_range
		CHECK (rate_per_minute OPERATOR(pg_catalog.>=) 1
			   AND rate_per_minute OPERATOR(pg_catalog.<=) 1000000),
	CONSTRAINT sync_policy_auth_failures_range
		CHECK (auth_failures OPERATOR(pg_catalog.>=) 1),
	CONSTRAINT sync_policy_resync_from_range
		CHECK (resync_from OPERATOR(pg_catalog.>=) '0001-01-01 00:00:00+00'::pg_catalog.timestamptz
			   AND resync_from OPERATOR(pg_catalog.<) '10000-01-01 00:00:00+00'::pg_catalog.timestamptz),
	CONSTRAINT sync_policy_max_vanished_range
		CHECK (max_vanished OPERATOR(pg_catalog.>=) 0 AND max_vanished OPERATOR(pg_catalog.<=) 1),
	CONSTRAINT sync_policy_provider_identifier
		CHECK (provider OPERATOR(pg_catalog.~) '^[a-z0-9_]{1,58}$'),
	CONSTRAINT sync_policy_max_in_flight_range
		CHECK (max_in_flight OPERATOR(pg_catalog.>=) 1),
	CONSTRAINT sync_policy_keep_runs_known
		CHECK (keep_runs OPERATOR(pg_catalog.=) ANY (ARRAY['none', 'failures', 'all']))
);
REVOKE ALL ON TABLE syncstate.sync_policy FROM PUBLIC;
SELECT pg_catalog.pg_extension_config_dump('syncstate.sync_policy', '');

COMMENT ON TABLE syncstate.sync_policy IS 'Overridden settings of sources; null = built-in default; get_sync_policy() returns the effective ones';
COMMENT ON COLUMN syncstate.sync_policy.source IS 'Which API';
COMMENT ON COLUMN syncstate.sync_policy.sync_interval IS 'From start to start of a row''s syncs';
COMMENT ON COLUMN syncstate.sync_policy.lease_time IS 'How long a claim holds the row; 1 second to 1 day';
COMMENT ON COLUMN syncstate.sync_policy.retry_base IS 'Wait after the first failure; doubles with each further one';
COMMENT ON COLUMN syncstate.sync_policy.retry_cap IS 'Longest wait after a failure';
COMMENT ON COLUMN syncstate.sync_policy.rate_limit_wait IS 'Wait after a rate limit that named no time; 1 second to 30 days';
COMMENT ON COLUMN syncstate.sync_policy.max_failures IS 'Failures in a row before a row may be parked';
COMMENT ON COLUMN syncstate.sync_policy.park_after IS 'How long a run of failures must have lasted before the row is parked';
COMMENT ON COLUMN syncstate.sync_policy.token_ttl IS 'How long a cursor lives; null = it does not expire';
COMMENT ON COLUMN syncstate.sync_policy.token_ttl_from IS 'What token_ttl is counted from: token (each sync renews it) or full (only a full sync does)';
COMMENT ON COLUMN syncstate.sync_policy.jitter IS 'The largest fraction by which an interval is shortened; 0 to 0.9';
COMMENT ON COLUMN syncstate.sync_policy.paused_until IS 'Until when nothing of the source is handed out; infinity = until resumed';
COMMENT ON COLUMN syncstate.sync_policy.daily_budget IS 'Syncs per day of the whole source, divided by how often rows change; null = off';
COMMENT ON COLUMN syncstate.sync_policy.min_interval IS 'Shortest interval that a budget gives a row';
COMMENT ON COLUMN syncstate.sync_policy.max_interval IS 'Longest interval that a budget gives a row';
COMMENT ON COLUMN syncstate.sync_policy.rate_per_minute IS 'Syncs of the source that may start in any minute, by all sessions together; null = off';
COMMENT ON COLUMN syncstate.sync_policy.request_gap IS 'From the start of a row''s last sync until a request may start another; 0 seconds to 1 day';
COMMENT ON COLUMN syncstate.sync_policy.auth_failures IS 'How many failures in a row it takes before one of kind auth parks the account''s rows';
COMMENT ON COLUMN syncstate.sync_policy.resync_from IS 'Each row whose last full sync began before this time gets another one; null = none is planned';
COMMENT ON COLUMN syncstate.sync_policy.resync_spread IS 'Over how long after resync_from these full syncs are spread; 0 seconds to 36500 days';
COMMENT ON COLUMN syncstate.sync_policy.max_vanished IS 'What part of a row''s items may_sweep() lets a full sync delete; 0 to 1';
COMMENT ON COLUMN syncstate.sync_policy.provider IS 'Who gives the grant for the source; sources that share one are revoked together';
COMMENT ON COLUMN syncstate.sync_policy.max_in_flight IS 'Syncs of one user, account and source that claims let run at a time; null = off';
COMMENT ON COLUMN syncstate.sync_policy.keep_runs IS 'Which ended runs sync_run keeps: none, failures (all but completed and released ones) or all';
COMMENT ON COLUMN syncstate.sync_policy.keep_runs_for IS 'How long sync_run keeps them';
COMMENT ON COLUMN syncstate.sync_policy.push_renew_before IS 'How long before its end a push channel is renewed, at the earliest; null = the source does not use push';
COMMENT ON COLUMN syncstate.sync_policy.push_interval IS 'From start to start of a row''s syncs while its push channel is healthy';
COMMENT ON COLUMN syncstate.sync_policy.push_silence IS 'How long a push channel is trusted after it was opened or a push arrived';

/*
 * What rebalance_syncs() has learned about sources with a budget; nothing else
 * writes it.  Dumped, so that a restore continues from there.
 */
CREATE TABLE syncstate.sync_budget (
	source syncstate.sync_source NOT NULL,
	multiplier double precision NOT NULL,
	mean_rate double precision NOT NULL,
	correction double precision NOT NULL,
	expected double precision NOT NULL,
	rebalanced_at timestamptz NOT NULL,
	starts double precision NOT NULL,
	rows bigint NOT NULL,
	CONSTRAINT sync_budget_pkey PRIMARY KEY (source),
	CONSTRAINT sync_budget_factors_range
		CHECK (multiplier OPERATOR(pg_catalog.>=) 1e-40::double precision
			   AND multiplier OPERATOR(pg_catalog.<=) 1e40::double precision
			   AND mean_rate OPERATOR(pg_catalog.>=) 1e-30::double precision
			   AND mean_rate OPERATOR(pg_catalog.<=) 1e30::double precision
			   AND correction OPERATOR(pg_catalog.>=) 0.0625::double precision
			   AND correction OPERATOR(pg_catalog.<=) 2::double precision),
	CONSTRAINT sync_budget_counts_range
		CHECK (expected OPERATOR(pg_catalog.>=) 0::double precision
			   AND expected OPERATOR(pg_catalog.<=) 1e40::double precision
			   AND starts OPERATOR(pg_catalog.>=) 0::double precision
			   AND starts OPERATOR(pg_catalog.<=) 1e40::double precision
			   AND rows OPERATOR(pg_catalog.>=) 0),
	CONSTRAINT sync_budget_rebalanced_at_range
		CHECK (rebalanced_at OPERATOR(pg_catalog.>=) '0001-01-01 00:00:00+00'::pg_catalog.timestamptz
			   AND rebalanced_at OPERATOR(pg_catalog.<) '10000-01-01 00:00:00+00'::pg_catalog.timestamptz)
);
REVOKE ALL ON TABLE syncstate.sync_budget FROM PUBLIC;
SELECT pg_catalog.pg_extension_config_dump('syncstate.sync_budget', '');

COMMENT ON TABLE syncstate.sync_budget IS 'What rebalance_syncs() has learned about sources with a daily_budget';
COMMENT ON COLUMN syncstate.sync_budget.source IS 'Which API';
COMMENT ON COLUMN syncstate.sync_budget.multiplier IS 'Interval in seconds = multiplier / sqrt(changes per second of the row)';
COMMENT ON COLUMN syncstate.sync_budget.mean_rate IS 'Changes per second of a row about which nothing is known: the mean of all';
COMMENT ON COLUMN syncstate.sync_budget.correction IS 'Factor of the budget to plan for, since requests and failures use some of it unplanned; at most 2';
COMMENT ON COLUMN syncstate.sync_budget.expected IS 'Syncs per day that the plan should make: the budget, or what comes nearest';
COMMENT ON COLUMN syncstate.sync_budget.rebalanced_at IS 'When all this was planned';
COMMENT ON COLUMN syncstate.sync_budget.starts IS 'Syncs ever started by the rows that there were then';
COMMENT ON COLUMN syncstate.sync_budget.rows IS 'Rows that there were then';

/*
 * The allowance of each source: a theoretical arrival time in microseconds, see
 * rate.c.  Nobody has a privilege on them.  register_sync_source() makes those
 * of further labels.  Not dumped: a minute later they are worth nothing.
 */
CREATE SEQUENCE syncstate.rate_google_calendar MINVALUE -9223372036854775808;
COMMENT ON SEQUENCE syncstate.rate_google_calendar IS 'Allowance of starts of google_calendar';
CREATE SEQUENCE syncstate.rate_google_tasks MINVALUE -9223372036854775808;
COMMENT ON SEQUENCE syncstate.rate_google_tasks IS 'Allowance of starts of google_tasks';
CREATE SEQUENCE syncstate.rate_google_gmail MINVALUE -9223372036854775808;
COMMENT ON SEQUENCE syncstate.rate_google_gmail IS 'Allowance of starts of google_gmail';
CREATE SEQUENCE syncstate.rate_google_contacts MINVALUE -9223372036854775808;
COMMENT ON SEQUENCE syncstate.rate_google_contacts IS 'Allowance of starts of google_contacts';

/*
 * What the sessions tell each other of a lane: places in it, see crowd.c, which
 * reads the columns by their order and changes them in place.  Nobody has a
 * privilege.  register_sync_source() makes the rows of further labels.  Not
 * dumped: they are hints.
 */
CREATE TABLE syncstate.sync_lane (
	mark_at timestamptz NOT NULL DEFAULT '-infinity',
	mark_user_id uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
	sweep_at timestamptz NOT NULL DEFAULT '-infinity',
	sweep_user_id uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
	sweep_rests_until timestamptz NOT NULL DEFAULT '-infinity',
	source name NOT NULL,
	kind smallint NOT NULL,
	lane smallint NOT NULL,
	CONSTRAINT sync_lane_pkey PRIMARY KEY (source, kind, lane)
);
REVOKE ALL ON TABLE syncstate.sync_lane FROM PUBLIC;
COMMENT ON TABLE syncstate.sync_lane IS 'Hints that claims leave for each other: how far they have come in the lanes of a source';
COMMENT ON COLUMN syncstate.sync_lane.mark_at IS 'Rows that fell due, or were requested, up to this time have been handed out';
COMMENT ON COLUMN syncstate.sync_lane.mark_user_id IS 'And among those of that time, up to this user''s';
COMMENT ON COLUMN syncstate.sync_lane.sweep_at IS 'The sweep has been handed out up to this time; infinity: it is at its end';
COMMENT ON COLUMN syncstate.sync_lane.sweep_user_id IS 'And among those of that time, up to this user''s';
COMMENT ON COLUMN syncstate.sync_lane.sweep_rests_until IS 'When the sweep goes on, or begins anew';
COMMENT ON COLUMN syncstate.sync_lane.source IS 'Label of the source';
COMMENT ON COLUMN syncstate.sync_lane.kind IS 'Kind of the claims: 0 any, 1 incremental, 2 full';
COMMENT ON COLUMN syncstate.sync_lane.lane IS '0: requested rows, 1: due rows';

INSERT INTO syncstate.sync_lane (source, kind, lane)
SELECT source, kind, lane
FROM pg_catalog.unnest(pg_catalog.enum_range(NULL::syncstate.sync_source)) AS source,
	pg_catalog.generate_series(0, 2) AS kind, pg_catalog.generate_series(0, 1) AS lane;

/* ---------------------------------------------------------- what happened */

/*
 * Written by src/news.c, as the owner.  src/columns.h has the same columns: keep in
 * sync.
 *
 * What is written at one end is deleted at the other.  Vacuumed when a fifth is dead,
 * as is built in, sync_run was 1.5 times as large after a simulated month as what
 * it had; when a twentieth is, 1.14 times.
 *
 * Their order is that of time, and not that of a sequence: a subscriber of logical
 * replication, which gets no sequences, can take over at once.
 */
CREATE TABLE syncstate.sync_event (
	id uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
	at timestamptz NOT NULL,
	event text NOT NULL,
	user_id uuid,
	account text COLLATE pg_catalog."C",
	source syncstate.sync_source,
	resource text COLLATE pg_catalog."C",
	lease bigint,
	reason text,
	detail text,
	CONSTRAINT sync_event_pkey PRIMARY KEY (at, id)
) WITH (autovacuum_vacuum_scale_factor = 0.05);
REVOKE ALL ON TABLE syncstate.sync_event FROM PUBLIC;
SELECT pg_catalog.pg_extension_config_dump('syncstate.sync_event', '');

/* for forget_users() */
CREATE INDEX sync_event_user ON syncstate.sync_event (user_id) WHERE user_id IS NOT NULL;

COMMENT ON TABLE syncstate.sync_event IS 'What an application must act on, until take_sync_events() takes it, at most 30 days';
COMMENT ON COLUMN syncstate.sync_event.id IS 'Never the same for two events: the key by which to act on an event only once';
COMMENT ON COLUMN syncstate.sync_event.at IS 'When it happened';
COMMENT ON COLUMN syncstate.sync_event.event IS 'What: parked, failing, recovered, first_sync, cursor_lost, gone, sweep_withheld, source_limited or source_resumed';
COMMENT ON COLUMN syncstate.sync_event.user_id IS 'The tenant; null = it concerns the source';
COMMENT ON COLUMN syncstate.sync_event.account IS 'Which account of the user at the provider';
COMMENT ON COLUMN syncstate.sync_event.source IS 'Which API; null = a call parked the account';
COMMENT ON COLUMN syncstate.sync_event.resource IS 'What within the source';
COMMENT ON COLUMN syncstate.sync_event.lease IS 'The run in which it happened; null = in none';
COMMENT ON COLUMN syncstate.sync_event.reason IS 'Of parked: paused, auth, failures or token_loop; of source_limited: rate_limited or paused';
COMMENT ON COLUMN syncstate.sync_event.detail IS 'The error of what is parked or fails; what vanished, where a sweep was withheld; until when a source is limited';

CREATE TABLE syncstate.sync_run (
	user_id uuid NOT NULL,
	account text COLLATE pg_catalog."C" NOT NULL,
	source syncstate.sync_source NOT NULL,
	resource text COLLATE pg_catalog."C" NOT NULL,
	lease bigint NOT NULL,
	started_at timestamptz,
	ended_at timestamptz NOT NULL,
	outcome text NOT NULL,
	was_full boolean NOT NULL,
	was_requested boolean NOT NULL,
	items bigint,
	error_message text,
	CONSTRAINT sync_run_pkey PRIMARY KEY (user_id, account, source, resource, lease)
) WITH (autovacuum_vacuum_scale_factor = 0.05);
REVOKE ALL ON TABLE syncstate.sync_run FROM PUBLIC;
SELECT pg_catalog.pg_extension_config_dump('syncstate.sync_run', '');

/* for the end of their time */
CREATE INDEX sync_run_ended ON syncstate.sync_run (source, ended_at);

COMMENT ON TABLE syncstate.sync_run IS 'Runs that ended, of sources whose policy keep_runs is not none, for as long as keep_runs_for';
COMMENT ON COLUMN syncstate.sync_run.user_id IS 'The tenant';
COMMENT ON COLUMN syncstate.sync_run.account IS 'Which account of the user at the provider';
COMMENT ON COLUMN syncstate.sync_run.source IS 'Which API';
COMMENT ON COLUMN syncstate.sync_run.resource IS 'What within the source';
COMMENT ON COLUMN syncstate.sync_run.lease IS 'The lease of the run';
COMMENT ON COLUMN syncstate.sync_run.started_at IS 'When it started';
COMMENT ON COLUMN syncstate.sync_run.ended_at IS 'When it ended; of a lost run, when its lease expired';
COMMENT ON COLUMN syncstate.sync_run.outcome IS 'How it ended: completed, failed, rate_limited, released, lost or revoked';
COMMENT ON COLUMN syncstate.sync_run.was_full IS 'Whether it had no cursor to begin with, or lost it';
COMMENT ON COLUMN syncstate.sync_run.was_requested IS 'Whether it was requested';
COMMENT ON COLUMN syncstate.sync_run.items IS 'How many items it synced; of a run that did not complete, its progress; null = not known';
COMMENT ON COLUMN syncstate.sync_run.error_message IS 'What went wrong; at most 8 kB';

/* ---------------------------------------------------------- push channels */

/*
 * src/columns.h has the same columns: keep in sync.
 *
 * No foreign key: a channel outlives its row, until it was stopped.  lease begins
 * as that of sync_state does, so that no two channels of a row ever have the same.
 * To lock both a channel and its row, lock the row first.
 */
CREATE TABLE syncstate.sync_channel (
	id uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
	user_id uuid NOT NULL,
	account text COLLATE pg_catalog."C" NOT NULL,
	source syncstate.sync_source NOT NULL,
	resource text COLLATE pg_catalog."C" NOT NULL,
	state text NOT NULL DEFAULT 'opening',
	channel_id text COLLATE pg_catalog."C",
	token_hash bytea,
	provider_ref text,
	expires_at timestamptz,
	renew_at timestamptz,
	lease bigint NOT NULL
		DEFAULT (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) OPERATOR(pg_catalog.*) 1000000)::bigint,
	lease_expires_at timestamptz,
	failures integer NOT NULL DEFAULT 0,
	error_message text,
	opened_at timestamptz,
	last_push_at timestamptz,
	message_number bigint,
	CONSTRAINT sync_channel_pkey PRIMARY KEY (user_id, account, source, resource, id),
	CONSTRAINT sync_channel_channel_id_key UNIQUE (channel_id),
	CONSTRAINT sync_channel_state_known
		CHECK (state OPERATOR(pg_catalog.=) ANY (ARRAY['opening', 'active', 'retiring', 'unsupported'])),
	CONSTRAINT sync_channel_opened
		CHECK ((state OPERATOR(pg_catalog.=) ANY (ARRAY['active', 'retiring'])) OPERATOR(pg_catalog.=) (channel_id IS NOT NULL)
			   AND (channel_id IS NULL) OPERATOR(pg_catalog.=) (token_hash IS NULL)
			   AND (channel_id IS NULL) OPERATOR(pg_catalog.=) (opened_at IS NULL)),
	CONSTRAINT sync_channel_sizes
		CHECK (pg_catalog.octet_length(account) OPERATOR(pg_catalog.<=) 255
			   AND pg_catalog.octet_length(resource) OPERATOR(pg_catalog.<=) 1024
			   AND pg_catalog.octet_length(channel_id) OPERATOR(pg_catalog.<=) 1024
			   AND pg_catalog.octet_length(token_hash) OPERATOR(pg_catalog.=) 32
			   AND pg_catalog.octet_length(provider_ref) OPERATOR(pg_catalog.<=) 8192
			   AND pg_catalog.octet_length(error_message) OPERATOR(pg_catalog.<=) 8192),
	CONSTRAINT sync_channel_times_range
		CHECK (expires_at OPERATOR(pg_catalog.>=) '0001-01-01 00:00:00+00'::pg_catalog.timestamptz
			   AND expires_at OPERATOR(pg_catalog.<) '10000-01-01 00:00:00+00'::pg_catalog.timestamptz
			   AND renew_at OPERATOR(pg_catalog.>=) '0001-01-01 00:00:00+00'::pg_catalog.timestamptz
			   AND lease_expires_at OPERATOR(pg_catalog.>=) '0001-01-01 00:00:00+00'::pg_catalog.timestamptz
			   AND lease_expires_at OPERATOR(pg_catalog.<) '10000-01-01 00:00:00+00'::pg_catalog.timestamptz
			   AND opened_at OPERATOR(pg_catalog.>=) '0001-01-01 00:00:00+00'::pg_catalog.timestamptz
			   AND opened_at OPERATOR(pg_catalog.<) '10000-01-01 00:00:00+00'::pg_catalog.timestamptz
			   AND last_push_at OPERATOR(pg_catalog.>=) '0001-01-01 00:00:00+00'::pg_catalog.timestamptz
			   AND last_push_at OPERATOR(pg_catalog.<) '10000-01-01 00:00:00+00'::pg_catalog.timestamptz),
	CONSTRAINT sync_channel_counts_range
		CHECK (lease OPERATOR(pg_catalog.>=) 0 AND lease OPERATOR(pg_catalog.<=) 4611686018427387904
			   AND failures OPERATOR(pg_catalog.>=) 0
			   AND message_number OPERATOR(pg_catalog.>=) 0)
) WITH (fillfactor = 90);
REVOKE ALL ON TABLE syncstate.sync_channel FROM PUBLIC;
SELECT pg_catalog.pg_extension_config_dump('syncstate.sync_channel', '');

/* a row has one channel, beside those that are to be stopped */
CREATE UNIQUE INDEX sync_channel_current ON syncstate.sync_channel
	(user_id, account, source, resource) WHERE state OPERATOR(pg_catalog.<>) 'retiring';
CREATE INDEX sync_channel_due ON syncstate.sync_channel (source, renew_at);

COMMENT ON TABLE syncstate.sync_channel IS 'Push channels of rows of sync_state: when they end, and what must be done about them';
COMMENT ON COLUMN syncstate.sync_channel.id IS 'Tells the channels of a row apart';
COMMENT ON COLUMN syncstate.sync_channel.user_id IS 'The tenant';
COMMENT ON COLUMN syncstate.sync_channel.account IS 'Which account of the user at the provider';
COMMENT ON COLUMN syncstate.sync_channel.source IS 'Which API';
COMMENT ON COLUMN syncstate.sync_channel.resource IS 'What within the source';
COMMENT ON COLUMN syncstate.sync_channel.state IS 'opening: to be opened; active; retiring: to be stopped; unsupported: the provider refused, and is asked again after a month';
COMMENT ON COLUMN syncstate.sync_channel.channel_id IS 'What the provider sends back with each push; at most 1024 bytes';
COMMENT ON COLUMN syncstate.sync_channel.token_hash IS 'SHA-256 of the secret that comes with each push';
COMMENT ON COLUMN syncstate.sync_channel.provider_ref IS 'What the provider needs to stop the channel, besides channel_id; at most 8 kB';
COMMENT ON COLUMN syncstate.sync_channel.expires_at IS 'When the channel ends; null = it does not';
COMMENT ON COLUMN syncstate.sync_channel.renew_at IS 'When a claim hands the channel out next; null = its row is parked';
COMMENT ON COLUMN syncstate.sync_channel.lease IS 'Fencing number: one more each time that the channel is handed out';
COMMENT ON COLUMN syncstate.sync_channel.lease_expires_at IS 'Until when a worker holds the channel; null = none does';
COMMENT ON COLUMN syncstate.sync_channel.failures IS 'Failures in a row to open, renew or stop it';
COMMENT ON COLUMN syncstate.sync_channel.error_message IS 'What went wrong last; at most 8 kB';
COMMENT ON COLUMN syncstate.sync_channel.opened_at IS 'When it was opened';
COMMENT ON COLUMN syncstate.sync_channel.last_push_at IS 'When a push last arrived; written at most every ten seconds';
COMMENT ON COLUMN syncstate.sync_channel.message_number IS 'Number of the last message that was recorded';

/* ------------------------------------------------- who is asking, and when */

CREATE FUNCTION syncstate.current_user_id() RETURNS uuid
	AS 'MODULE_PATHNAME', 'syncstate_current_user_id'
	LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION syncstate.current_user_id() IS 'The user that the session''s JWT claims name, or null';
REVOKE ALL ON FUNCTION syncstate.current_user_id() FROM PUBLIC;

CREATE FUNCTION syncstate.user_id_of(subject text) RETURNS uuid
	AS 'MODULE_PATHNAME', 'syncstate_user_id_of'
	LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION syncstate.user_id_of(text) IS 'The user_id of a user whose id is a text: itself if it is a uuid, else one that is computed from it';
REVOKE ALL ON FUNCTION syncstate.user_id_of(text) FROM PUBLIC;

CREATE FUNCTION syncstate.sync_clock() RETURNS timestamptz
	AS 'MODULE_PATHNAME', 'syncstate_sync_clock'
	LANGUAGE C VOLATILE PARALLEL SAFE;
COMMENT ON FUNCTION syncstate.sync_clock() IS 'The time by which the extension decides: the real time, or syncstate.clock where that is set';
REVOKE ALL ON FUNCTION syncstate.sync_clock() FROM PUBLIC;

/* -------------------------------------------------- triggers of our tables */

CREATE FUNCTION syncstate.guard() RETURNS trigger
	AS 'MODULE_PATHNAME', 'syncstate_guard'
	LANGUAGE C;
COMMENT ON FUNCTION syncstate.guard() IS 'Keeps a row of sync_state legal whichever way it is written';
REVOKE ALL ON FUNCTION syncstate.guard() FROM PUBLIC;

CREATE TRIGGER sync_state_guard BEFORE INSERT OR UPDATE ON syncstate.sync_state
	FOR EACH ROW EXECUTE FUNCTION syncstate.guard();
COMMENT ON TRIGGER sync_state_guard ON syncstate.sync_state IS 'Keeps a row legal whichever way it is written';

CREATE FUNCTION syncstate.record_revoked() RETURNS trigger
	AS 'MODULE_PATHNAME', 'syncstate_record_revoked'
	LANGUAGE C;
COMMENT ON FUNCTION syncstate.record_revoked() IS 'Records the running sync of a row that is deleted as a run';
REVOKE ALL ON FUNCTION syncstate.record_revoked() FROM PUBLIC;

CREATE TRIGGER sync_state_record_revoked AFTER DELETE ON syncstate.sync_state
	FOR EACH ROW WHEN (OLD.status OPERATOR(pg_catalog.=) 'syncing'::syncstate.sync_status)
	EXECUTE FUNCTION syncstate.record_revoked();
COMMENT ON TRIGGER sync_state_record_revoked ON syncstate.sync_state IS 'Records the running sync of a row that is deleted as a run';

CREATE FUNCTION syncstate.policy_changed() RETURNS trigger
	AS 'MODULE_PATHNAME', 'syncstate_policy_changed'
	LANGUAGE C;
COMMENT ON FUNCTION syncstate.policy_changed() IS 'Informs all sessions that policies changed';
REVOKE ALL ON FUNCTION syncstate.policy_changed() FROM PUBLIC;

CREATE TRIGGER sync_policy_changed AFTER INSERT OR UPDATE OR DELETE ON syncstate.sync_policy
	FOR EACH ROW EXECUTE FUNCTION syncstate.policy_changed();
COMMENT ON TRIGGER sync_policy_changed ON syncstate.sync_policy IS 'Informs all sessions that policies changed';

CREATE TRIGGER sync_policy_truncated AFTER TRUNCATE ON syncstate.sync_policy
	FOR EACH STATEMENT EXECUTE FUNCTION syncstate.policy_changed();
COMMENT ON TRIGGER sync_policy_truncated ON syncstate.sync_policy IS 'Informs all sessions that policies changed';

/* also where logical replication writes */
ALTER TABLE syncstate.sync_policy ENABLE ALWAYS TRIGGER sync_policy_changed;
ALTER TABLE syncstate.sync_policy ENABLE ALWAYS TRIGGER sync_policy_truncated;

CREATE TRIGGER sync_budget_changed AFTER INSERT OR UPDATE OR DELETE ON syncstate.sync_budget
	FOR EACH ROW EXECUTE FUNCTION syncstate.policy_changed();
COMMENT ON TRIGGER sync_budget_changed ON syncstate.sync_budget IS 'Informs all sessions that policies changed';

CREATE TRIGGER sync_budget_truncated AFTER TRUNCATE ON syncstate.sync_budget
	FOR EACH STATEMENT EXECUTE FUNCTION syncstate.policy_changed();
COMMENT ON TRIGGER sync_budget_truncated ON syncstate.sync_budget IS 'Informs all sessions that policies changed';

ALTER TABLE syncstate.sync_budget ENABLE ALWAYS TRIGGER sync_budget_changed;
ALTER TABLE syncstate.sync_budget ENABLE ALWAYS TRIGGER sync_budget_truncated;

/* --------------------------------------------------------------- claiming */

CREATE FUNCTION syncstate.claim_due_syncs(source syncstate.sync_source DEFAULT NULL,
										  max_rows integer DEFAULT 10,
										  lease_time interval DEFAULT NULL,
										  kind text DEFAULT 'any')
	RETURNS SETOF syncstate.sync_state
	AS 'MODULE_PATHNAME', 'syncstate_claim_due_syncs'
	LANGUAGE C VOLATILE ROWS 10;
COMMENT ON FUNCTION syncstate.claim_due_syncs(syncstate.sync_source, integer, interval, text) IS 'Claims due rows, each with a lease: requested rows first, then the oldest due';
REVOKE ALL ON FUNCTION syncstate.claim_due_syncs(syncstate.sync_source, integer, interval, text) FROM PUBLIC;

CREATE FUNCTION syncstate.mark_sync_started(user_id uuid,
											source syncstate.sync_source,
											lease_time interval DEFAULT NULL,
											resource text DEFAULT '',
											account text DEFAULT '')
	RETURNS syncstate.sync_state
	AS 'MODULE_PATHNAME', 'syncstate_mark_sync_started'
	LANGUAGE C VOLATILE;
COMMENT ON FUNCTION syncstate.mark_sync_started(uuid, syncstate.sync_source, interval, text, text) IS 'Starts the sync of one row, due or not, unless another worker holds it';
REVOKE ALL ON FUNCTION syncstate.mark_sync_started(uuid, syncstate.sync_source, interval, text, text) FROM PUBLIC;

CREATE FUNCTION syncstate.get_users_needing_sync(source syncstate.sync_source,
												 stale_after interval DEFAULT NULL,
												 max_rows integer DEFAULT NULL)
	RETURNS SETOF uuid
	AS 'MODULE_PATHNAME', 'syncstate_get_users_needing_sync'
	LANGUAGE C STABLE;
COMMENT ON FUNCTION syncstate.get_users_needing_sync(syncstate.sync_source, interval, integer) IS 'Returns the users who have a row that a claim would take now, without claiming it';
REVOKE ALL ON FUNCTION syncstate.get_users_needing_sync(syncstate.sync_source, interval, integer) FROM PUBLIC;

CREATE FUNCTION syncstate.next_sync_due(source syncstate.sync_source DEFAULT NULL)
	RETURNS timestamptz
	AS 'MODULE_PATHNAME', 'syncstate_next_sync_due'
	LANGUAGE C STABLE;
COMMENT ON FUNCTION syncstate.next_sync_due(syncstate.sync_source) IS 'Returns when a claim will next find a row, so that a worker knows how long to sleep';
REVOKE ALL ON FUNCTION syncstate.next_sync_due(syncstate.sync_source) FROM PUBLIC;

CREATE FUNCTION syncstate.take_sync_events(max_rows integer DEFAULT 100)
	RETURNS SETOF syncstate.sync_event
	AS 'MODULE_PATHNAME', 'syncstate_take_sync_events'
	LANGUAGE C VOLATILE ROWS 100;
COMMENT ON FUNCTION syncstate.take_sync_events(integer) IS 'Takes the oldest events that nobody else is taking: deletes and returns them';
REVOKE ALL ON FUNCTION syncstate.take_sync_events(integer) FROM PUBLIC;

/* -------------------------------------------------------------------- push */

CREATE FUNCTION syncstate.claim_push_channels(source syncstate.sync_source DEFAULT NULL,
											  max_rows integer DEFAULT 10,
											  lease_time interval DEFAULT NULL)
	RETURNS TABLE (user_id uuid, account text, source syncstate.sync_source, resource text,
				   action text, lease bigint, lease_expires_at timestamptz,
				   channel_id text, provider_ref text, expires_at timestamptz,
				   failures integer)
	AS 'MODULE_PATHNAME', 'syncstate_claim_push_channels'
	LANGUAGE C VOLATILE ROWS 10;
COMMENT ON FUNCTION syncstate.claim_push_channels(syncstate.sync_source, integer, interval) IS 'Claims push channels that are to be opened, renewed or stopped, each with a lease';
REVOKE ALL ON FUNCTION syncstate.claim_push_channels(syncstate.sync_source, integer, interval) FROM PUBLIC;

CREATE FUNCTION syncstate.mark_channel_opened(user_id uuid,
											  source syncstate.sync_source,
											  lease bigint,
											  channel_id text,
											  expires_at timestamptz,
											  token text,
											  provider_ref text DEFAULT NULL,
											  resource text DEFAULT '',
											  account text DEFAULT '')
	RETURNS syncstate.sync_channel
	AS 'MODULE_PATHNAME', 'syncstate_mark_channel_opened'
	LANGUAGE C VOLATILE;
COMMENT ON FUNCTION syncstate.mark_channel_opened(uuid, syncstate.sync_source, bigint, text, timestamptz, text, text, text, text) IS 'Reports that a push channel was opened, or that its successor was: the old one is to be stopped';
REVOKE ALL ON FUNCTION syncstate.mark_channel_opened(uuid, syncstate.sync_source, bigint, text, timestamptz, text, text, text, text) FROM PUBLIC;

CREATE FUNCTION syncstate.mark_channel_failed(user_id uuid,
											  source syncstate.sync_source,
											  lease bigint,
											  error_message text,
											  kind text DEFAULT 'transient',
											  resource text DEFAULT '',
											  account text DEFAULT '')
	RETURNS syncstate.sync_channel
	AS 'MODULE_PATHNAME', 'syncstate_mark_channel_failed'
	LANGUAGE C VOLATILE;
COMMENT ON FUNCTION syncstate.mark_channel_failed(uuid, syncstate.sync_source, bigint, text, text, text, text) IS 'Reports that a push channel could not be opened, renewed or stopped: it waits, or is asked for again after a month';
REVOKE ALL ON FUNCTION syncstate.mark_channel_failed(uuid, syncstate.sync_source, bigint, text, text, text, text) FROM PUBLIC;

CREATE FUNCTION syncstate.mark_channel_stopped(user_id uuid,
											   source syncstate.sync_source,
											   lease bigint,
											   resource text DEFAULT '',
											   account text DEFAULT '')
	RETURNS syncstate.sync_channel
	AS 'MODULE_PATHNAME', 'syncstate_mark_channel_stopped'
	LANGUAGE C VOLATILE;
COMMENT ON FUNCTION syncstate.mark_channel_stopped(uuid, syncstate.sync_source, bigint, text, text) IS 'Reports that a push channel was stopped, which forgets it; returns it as it was';
REVOKE ALL ON FUNCTION syncstate.mark_channel_stopped(uuid, syncstate.sync_source, bigint, text, text) FROM PUBLIC;

/*
 * Acts above its caller: whoever the web can reach may hold this privilege and no
 * other.
 */
CREATE FUNCTION syncstate.receive_push(channel_id text,
									   token text,
									   message_number bigint DEFAULT NULL)
	RETURNS boolean
	AS 'MODULE_PATHNAME', 'syncstate_receive_push'
	LANGUAGE C VOLATILE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION syncstate.receive_push(text, text, bigint) IS 'Takes a push: requests a sync of the channel''s row; returns false for an unknown channel or a wrong token';
REVOKE ALL ON FUNCTION syncstate.receive_push(text, text, bigint) FROM PUBLIC;

/* -------------------------------------------------------------- lifecycle */

CREATE FUNCTION syncstate.mark_sync_completed(user_id uuid,
											  source syncstate.sync_source,
											  items_synced bigint DEFAULT 0,
											  sync_token text DEFAULT NULL,
											  history_id text DEFAULT NULL,
											  updated_min timestamptz DEFAULT NULL,
											  lease bigint DEFAULT NULL,
											  resource text DEFAULT '',
											  account text DEFAULT '')
	RETURNS syncstate.sync_state
	AS 'MODULE_PATHNAME', 'syncstate_mark_sync_completed'
	LANGUAGE C VOLATILE;
COMMENT ON FUNCTION syncstate.mark_sync_completed(uuid, syncstate.sync_source, bigint, text, text, timestamptz, bigint, text, text) IS 'Reports that a sync completed, with its new cursor';
REVOKE ALL ON FUNCTION syncstate.mark_sync_completed(uuid, syncstate.sync_source, bigint, text, text, timestamptz, bigint, text, text) FROM PUBLIC;

CREATE FUNCTION syncstate.mark_sync_failed(user_id uuid,
										   source syncstate.sync_source,
										   error_message text,
										   kind text DEFAULT 'transient',
										   lease bigint DEFAULT NULL,
										   resource text DEFAULT '',
										   scope text DEFAULT 'account',
										   account text DEFAULT '')
	RETURNS syncstate.sync_state
	AS 'MODULE_PATHNAME', 'syncstate_mark_sync_failed'
	LANGUAGE C VOLATILE;
COMMENT ON FUNCTION syncstate.mark_sync_failed(uuid, syncstate.sync_source, text, text, bigint, text, text, text) IS 'Reports that a sync failed: the row waits, or is parked if waiting is of no use; an account whose grant has ended is parked as a whole';
REVOKE ALL ON FUNCTION syncstate.mark_sync_failed(uuid, syncstate.sync_source, text, text, bigint, text, text, text) FROM PUBLIC;

CREATE FUNCTION syncstate.mark_rate_limited(user_id uuid,
											source syncstate.sync_source,
											retry_after interval DEFAULT NULL,
											scope text DEFAULT 'account',
											lease bigint DEFAULT NULL,
											resource text DEFAULT '',
											account text DEFAULT '')
	RETURNS syncstate.sync_state
	AS 'MODULE_PATHNAME', 'syncstate_mark_rate_limited'
	LANGUAGE C VOLATILE;
COMMENT ON FUNCTION syncstate.mark_rate_limited(uuid, syncstate.sync_source, interval, text, bigint, text, text) IS 'Reports that the provider''s rate limit was hit: the rows of the account''s source wait until it ends';
REVOKE ALL ON FUNCTION syncstate.mark_rate_limited(uuid, syncstate.sync_source, interval, text, bigint, text, text) FROM PUBLIC;

CREATE FUNCTION syncstate.clear_sync_token(user_id uuid,
										   source syncstate.sync_source,
										   lease bigint DEFAULT NULL,
										   resource text DEFAULT '',
										   account text DEFAULT '')
	RETURNS syncstate.sync_state
	AS 'MODULE_PATHNAME', 'syncstate_clear_sync_token'
	LANGUAGE C VOLATILE;
COMMENT ON FUNCTION syncstate.clear_sync_token(uuid, syncstate.sync_source, bigint, text, text) IS 'Reports that the cursor has expired: a full sync is next';
REVOKE ALL ON FUNCTION syncstate.clear_sync_token(uuid, syncstate.sync_source, bigint, text, text) FROM PUBLIC;

CREATE FUNCTION syncstate.renew_sync_lease(user_id uuid,
										   source syncstate.sync_source,
										   lease bigint,
										   lease_time interval DEFAULT NULL,
										   resource text DEFAULT '',
										   account text DEFAULT '')
	RETURNS syncstate.sync_state
	AS 'MODULE_PATHNAME', 'syncstate_renew_sync_lease'
	LANGUAGE C VOLATILE;
COMMENT ON FUNCTION syncstate.renew_sync_lease(uuid, syncstate.sync_source, bigint, interval, text, text) IS 'Renews the lease of a running sync';
REVOKE ALL ON FUNCTION syncstate.renew_sync_lease(uuid, syncstate.sync_source, bigint, interval, text, text) FROM PUBLIC;

CREATE FUNCTION syncstate.checkpoint_sync(user_id uuid,
										  source syncstate.sync_source,
										  lease bigint DEFAULT NULL,
										  page_token text DEFAULT NULL,
										  progress_done bigint DEFAULT NULL,
										  progress_total bigint DEFAULT NULL,
										  resource text DEFAULT '',
										  account text DEFAULT '')
	RETURNS syncstate.sync_state
	AS 'MODULE_PATHNAME', 'syncstate_checkpoint_sync'
	LANGUAGE C VOLATILE;
COMMENT ON FUNCTION syncstate.checkpoint_sync(uuid, syncstate.sync_source, bigint, text, bigint, bigint, text, text) IS 'Saves where a long sync stands, and renews its lease';
REVOKE ALL ON FUNCTION syncstate.checkpoint_sync(uuid, syncstate.sync_source, bigint, text, bigint, bigint, text, text) FROM PUBLIC;

CREATE FUNCTION syncstate.release_sync(user_id uuid,
									   source syncstate.sync_source,
									   lease bigint,
									   resource text DEFAULT '',
									   delay interval DEFAULT '0 seconds',
									   account text DEFAULT '')
	RETURNS syncstate.sync_state
	AS 'MODULE_PATHNAME', 'syncstate_release_sync'
	LANGUAGE C VOLATILE;
COMMENT ON FUNCTION syncstate.release_sync(uuid, syncstate.sync_source, bigint, text, interval, text) IS 'Returns a claimed row unsynced, due after a delay and after all rows that are due already; counts nothing';
REVOKE ALL ON FUNCTION syncstate.release_sync(uuid, syncstate.sync_source, bigint, text, interval, text) FROM PUBLIC;

CREATE FUNCTION syncstate.may_sweep(user_id uuid,
									source syncstate.sync_source,
									lease bigint,
									vanished bigint,
									total bigint,
									force boolean DEFAULT false,
									resource text DEFAULT '',
									account text DEFAULT '')
	RETURNS boolean
	AS 'MODULE_PATHNAME', 'syncstate_may_sweep'
	LANGUAGE C VOLATILE;
COMMENT ON FUNCTION syncstate.may_sweep(uuid, syncstate.sync_source, bigint, bigint, bigint, boolean, text, text) IS 'Whether the items that a full sync did not list may be deleted: not if they are suspiciously many';
REVOKE ALL ON FUNCTION syncstate.may_sweep(uuid, syncstate.sync_source, bigint, bigint, bigint, boolean, text, text) FROM PUBLIC;

CREATE FUNCTION syncstate.report_syncs(results jsonb)
	RETURNS SETOF syncstate.sync_state
	AS 'MODULE_PATHNAME', 'syncstate_report_syncs'
	LANGUAGE C VOLATILE ROWS 10;
COMMENT ON FUNCTION syncstate.report_syncs(jsonb) IS 'Reports many syncs in one call';
REVOKE ALL ON FUNCTION syncstate.report_syncs(jsonb) FROM PUBLIC;

CREATE FUNCTION syncstate.update_sync_state(user_id uuid,
											source syncstate.sync_source,
											changes jsonb,
											resource text DEFAULT '',
											account text DEFAULT '')
	RETURNS syncstate.sync_state
	AS 'MODULE_PATHNAME', 'syncstate_update_sync_state'
	LANGUAGE C VOLATILE;
COMMENT ON FUNCTION syncstate.update_sync_state(uuid, syncstate.sync_source, jsonb, text, text) IS 'Changes columns of a row as a direct write would: keys present change, null clears, keys absent stay';
REVOKE ALL ON FUNCTION syncstate.update_sync_state(uuid, syncstate.sync_source, jsonb, text, text) FROM PUBLIC;

CREATE FUNCTION syncstate.connect_sync(user_id uuid,
									   source syncstate.sync_source,
									   resource text DEFAULT '',
									   account text DEFAULT '')
	RETURNS syncstate.sync_state
	AS 'MODULE_PATHNAME', 'syncstate_connect_sync'
	LANGUAGE C VOLATILE;
COMMENT ON FUNCTION syncstate.connect_sync(uuid, syncstate.sync_source, text, text) IS 'Starts or resumes the syncing of a row: creates it if it is missing, un-parks it unless it is paused, resets failures, and requests a sync';
REVOKE ALL ON FUNCTION syncstate.connect_sync(uuid, syncstate.sync_source, text, text) FROM PUBLIC;

CREATE FUNCTION syncstate.disconnect_sync(user_id uuid,
										  source syncstate.sync_source,
										  resource text DEFAULT '',
										  account text DEFAULT '')
	RETURNS boolean
	AS 'MODULE_PATHNAME', 'syncstate_disconnect_sync'
	LANGUAGE C VOLATILE;
COMMENT ON FUNCTION syncstate.disconnect_sync(uuid, syncstate.sync_source, text, text) IS 'Deletes the row; returns false if there was none';
REVOKE ALL ON FUNCTION syncstate.disconnect_sync(uuid, syncstate.sync_source, text, text) FROM PUBLIC;

CREATE FUNCTION syncstate.pause_sync(user_id uuid,
									 source syncstate.sync_source,
									 resource text DEFAULT '',
									 account text DEFAULT '')
	RETURNS syncstate.sync_state
	AS 'MODULE_PATHNAME', 'syncstate_pause_sync'
	LANGUAGE C VOLATILE;
COMMENT ON FUNCTION syncstate.pause_sync(uuid, syncstate.sync_source, text, text) IS 'Parks a row until it is resumed; a running sync may finish';
REVOKE ALL ON FUNCTION syncstate.pause_sync(uuid, syncstate.sync_source, text, text) FROM PUBLIC;

CREATE FUNCTION syncstate.resume_sync(user_id uuid,
									  source syncstate.sync_source,
									  resource text DEFAULT '',
									  account text DEFAULT '')
	RETURNS syncstate.sync_state
	AS 'MODULE_PATHNAME', 'syncstate_resume_sync'
	LANGUAGE C VOLATILE;
COMMENT ON FUNCTION syncstate.resume_sync(uuid, syncstate.sync_source, text, text) IS 'Un-parks a row, which is due at once, and resets its failures';
REVOKE ALL ON FUNCTION syncstate.resume_sync(uuid, syncstate.sync_source, text, text) FROM PUBLIC;

CREATE FUNCTION syncstate.request_sync(user_id uuid,
									   source syncstate.sync_source,
									   resource text DEFAULT '',
									   account text DEFAULT '')
	RETURNS boolean
	AS 'MODULE_PATHNAME', 'syncstate_request_sync'
	LANGUAGE C VOLATILE;
COMMENT ON FUNCTION syncstate.request_sync(uuid, syncstate.sync_source, text, text) IS 'Requests a sync now; returns whether one will come, which is false for a parked row';
REVOKE ALL ON FUNCTION syncstate.request_sync(uuid, syncstate.sync_source, text, text) FROM PUBLIC;

/* --------------------------------------------------------- whole accounts */

CREATE FUNCTION syncstate.connect_account(user_id uuid,
										  account text DEFAULT '',
										  provider text DEFAULT NULL)
	RETURNS SETOF syncstate.sync_state
	AS 'MODULE_PATHNAME', 'syncstate_connect_account'
	LANGUAGE C VOLATILE ROWS 10;
COMMENT ON FUNCTION syncstate.connect_account(uuid, text, text) IS 'Starts or resumes the syncing of all rows of an account, as connect_sync() does for one; returns them';
REVOKE ALL ON FUNCTION syncstate.connect_account(uuid, text, text) FROM PUBLIC;

CREATE FUNCTION syncstate.pause_account(user_id uuid,
										account text DEFAULT '',
										provider text DEFAULT NULL)
	RETURNS SETOF syncstate.sync_state
	AS 'MODULE_PATHNAME', 'syncstate_pause_account'
	LANGUAGE C VOLATILE ROWS 10;
COMMENT ON FUNCTION syncstate.pause_account(uuid, text, text) IS 'Parks all rows of an account until they are resumed; returns them';
REVOKE ALL ON FUNCTION syncstate.pause_account(uuid, text, text) FROM PUBLIC;

CREATE FUNCTION syncstate.resume_account(user_id uuid,
										 account text DEFAULT '',
										 provider text DEFAULT NULL)
	RETURNS SETOF syncstate.sync_state
	AS 'MODULE_PATHNAME', 'syncstate_resume_account'
	LANGUAGE C VOLATILE ROWS 10;
COMMENT ON FUNCTION syncstate.resume_account(uuid, text, text) IS 'Un-parks all rows of an account, which are due at once; returns them';
REVOKE ALL ON FUNCTION syncstate.resume_account(uuid, text, text) FROM PUBLIC;

CREATE FUNCTION syncstate.disconnect_account(user_id uuid,
											 account text DEFAULT '',
											 provider text DEFAULT NULL)
	RETURNS SETOF syncstate.sync_state
	AS 'MODULE_PATHNAME', 'syncstate_disconnect_account'
	LANGUAGE C VOLATILE ROWS 10;
COMMENT ON FUNCTION syncstate.disconnect_account(uuid, text, text) IS 'Deletes all rows of an account; returns them as they were';
REVOKE ALL ON FUNCTION syncstate.disconnect_account(uuid, text, text) FROM PUBLIC;

CREATE FUNCTION syncstate.request_account(user_id uuid,
										  account text DEFAULT '',
										  provider text DEFAULT NULL)
	RETURNS TABLE (source syncstate.sync_source, resource text)
	AS 'MODULE_PATHNAME', 'syncstate_request_account'
	LANGUAGE C VOLATILE ROWS 10;
COMMENT ON FUNCTION syncstate.request_account(uuid, text, text) IS 'Requests a sync of each row of an account; returns the rows for which one will come';
REVOKE ALL ON FUNCTION syncstate.request_account(uuid, text, text) FROM PUBLIC;

CREATE FUNCTION syncstate.set_sync_resources(user_id uuid,
											 source syncstate.sync_source,
											 resources text[],
											 account text DEFAULT '')
	RETURNS TABLE (resource text, change text)
	AS 'MODULE_PATHNAME', 'syncstate_set_sync_resources'
	LANGUAGE C VOLATILE ROWS 10;
COMMENT ON FUNCTION syncstate.set_sync_resources(uuid, syncstate.sync_source, text[], text) IS 'Makes the resources of an account exactly these: connects new ones, parks those that are gone, brings back those that returned';
REVOKE ALL ON FUNCTION syncstate.set_sync_resources(uuid, syncstate.sync_source, text[], text) FROM PUBLIC;

/* The bodies are bound to their objects here and now: no search_path later. */
CREATE FUNCTION syncstate.get_sync_state(user_id uuid,
										 source syncstate.sync_source,
										 resource text DEFAULT '',
										 account text DEFAULT '')
	RETURNS syncstate.sync_state
	LANGUAGE sql STABLE PARALLEL SAFE
	BEGIN ATOMIC
		SELECT s FROM syncstate.sync_state AS s
		WHERE s.user_id OPERATOR(pg_catalog.=) get_sync_state.user_id
			AND s.account OPERATOR(pg_catalog.=) get_sync_state.account
			AND s.source OPERATOR(pg_catalog.=) get_sync_state.source
			AND s.resource OPERATOR(pg_catalog.=) get_sync_state.resource;
	END;
COMMENT ON FUNCTION syncstate.get_sync_state(uuid, syncstate.sync_source, text, text) IS 'The row of a user, account, source and resource, or null';
REVOKE ALL ON FUNCTION syncstate.get_sync_state(uuid, syncstate.sync_source, text, text) FROM PUBLIC;

CREATE FUNCTION syncstate.get_sync_states(user_id uuid)
	RETURNS SETOF syncstate.sync_state
	LANGUAGE sql STABLE PARALLEL SAFE
	BEGIN ATOMIC
		SELECT s FROM syncstate.sync_state AS s
		WHERE s.user_id OPERATOR(pg_catalog.=) get_sync_states.user_id
		ORDER BY s.account, s.source, s.resource;
	END;
COMMENT ON FUNCTION syncstate.get_sync_states(uuid) IS 'All rows of a user';
REVOKE ALL ON FUNCTION syncstate.get_sync_states(uuid) FROM PUBLIC;

/* --------------------------------------------------------------- policies */

CREATE FUNCTION syncstate.get_sync_policy(source syncstate.sync_source)
	RETURNS syncstate.sync_policy
	AS 'MODULE_PATHNAME', 'syncstate_get_sync_policy'
	LANGUAGE C STABLE;
COMMENT ON FUNCTION syncstate.get_sync_policy(syncstate.sync_source) IS 'The effective settings of a source: what was overridden, and the built-in defaults for the rest';
REVOKE ALL ON FUNCTION syncstate.get_sync_policy(syncstate.sync_source) FROM PUBLIC;

CREATE FUNCTION syncstate.set_sync_policy(source syncstate.sync_source, changes jsonb)
	RETURNS syncstate.sync_policy
	AS 'MODULE_PATHNAME', 'syncstate_set_sync_policy'
	LANGUAGE C VOLATILE;
COMMENT ON FUNCTION syncstate.set_sync_policy(syncstate.sync_source, jsonb) IS 'Overrides settings of a source and returns the effective ones: keys present change, null restores the built-in default, keys absent stay';
REVOKE ALL ON FUNCTION syncstate.set_sync_policy(syncstate.sync_source, jsonb) FROM PUBLIC;

CREATE FUNCTION syncstate.pause_sync_source(source syncstate.sync_source,
											until timestamptz DEFAULT 'infinity')
	RETURNS syncstate.sync_policy
	AS 'MODULE_PATHNAME', 'syncstate_pause_sync_source'
	LANGUAGE C VOLATILE;
COMMENT ON FUNCTION syncstate.pause_sync_source(syncstate.sync_source, timestamptz) IS 'Hands out no row of a source until a time; running syncs may finish';
REVOKE ALL ON FUNCTION syncstate.pause_sync_source(syncstate.sync_source, timestamptz) FROM PUBLIC;

CREATE FUNCTION syncstate.resume_sync_source(source syncstate.sync_source)
	RETURNS syncstate.sync_policy
	AS 'MODULE_PATHNAME', 'syncstate_resume_sync_source'
	LANGUAGE C VOLATILE;
COMMENT ON FUNCTION syncstate.resume_sync_source(syncstate.sync_source) IS 'Ends the pause of a source; its due rows can be claimed at once';
REVOKE ALL ON FUNCTION syncstate.resume_sync_source(syncstate.sync_source) FROM PUBLIC;

/* --------------------------------------------------------- many rows at once */

CREATE FUNCTION syncstate.resync_source(source syncstate.sync_source,
										spread interval DEFAULT '1 day')
	RETURNS syncstate.sync_policy
	AS 'MODULE_PATHNAME', 'syncstate_resync_source'
	LANGUAGE C VOLATILE;
COMMENT ON FUNCTION syncstate.resync_source(syncstate.sync_source, interval) IS 'Plans a full sync of every row of a source, spread over a time';
REVOKE ALL ON FUNCTION syncstate.resync_source(syncstate.sync_source, interval) FROM PUBLIC;

CREATE FUNCTION syncstate.revive_syncs(source syncstate.sync_source,
									   reason text DEFAULT NULL,
									   spread interval DEFAULT '1 hour',
									   max_rows integer DEFAULT 10000)
	RETURNS integer
	AS 'MODULE_PATHNAME', 'syncstate_revive_syncs'
	LANGUAGE C VOLATILE;
COMMENT ON FUNCTION syncstate.revive_syncs(syncstate.sync_source, text, interval, integer) IS 'Un-parks rows of a source, spread over a time, and returns how many';
REVOKE ALL ON FUNCTION syncstate.revive_syncs(syncstate.sync_source, text, interval, integer) FROM PUBLIC;

/* ----------------------------------------------------------------- budgets */

CREATE FUNCTION syncstate.rebalance_syncs(INOUT source syncstate.sync_source DEFAULT NULL,
										  OUT rows bigint,
										  OUT budget integer,
										  OUT planned double precision,
										  OUT observed double precision,
										  OUT multiplier double precision,
										  OUT at_min bigint,
										  OUT at_max bigint,
										  OUT feasible boolean)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'syncstate_rebalance_syncs'
	LANGUAGE C VOLATILE ROWS 4;
COMMENT ON FUNCTION syncstate.rebalance_syncs(syncstate.sync_source) IS 'Divides the daily budget of a source among its rows, by how often each one changes';
REVOKE ALL ON FUNCTION syncstate.rebalance_syncs(syncstate.sync_source) FROM PUBLIC;

/* ---------------------------------------------------------- custom sources */

/*
 * The labels that were added to sync_source.  pg_dump does not dump labels of
 * an extension's enum, but it dumps this table, and the trigger adds the label
 * again when the row arrives.  The name sorts before sync_policy and
 * sync_state, so that a restore fills this table first.
 */
CREATE TABLE syncstate.custom_source (
	label text COLLATE pg_catalog."C" NOT NULL,
	CONSTRAINT custom_source_pkey PRIMARY KEY (label),
	CONSTRAINT custom_source_label_identifier
		CHECK (label OPERATOR(pg_catalog.~) '^[a-z0-9_]{1,58}$')
);
REVOKE ALL ON TABLE syncstate.custom_source FROM PUBLIC;
SELECT pg_catalog.pg_extension_config_dump('syncstate.custom_source', '');
COMMENT ON TABLE syncstate.custom_source IS 'Labels that register_sync_source() added to sync_source';
COMMENT ON COLUMN syncstate.custom_source.label IS 'Label of the source: 1 to 58 characters of a-z, 0-9 and _';

/*
 * Acts above its caller, who need not own the type.  Fires after the CHECK has
 * passed the label.  The sequence becomes a member of the extension: it is not
 * dumped, and goes with it.
 */
CREATE FUNCTION syncstate.add_source_label() RETURNS trigger
	LANGUAGE plpgsql SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	AS $$
DECLARE
	cell pg_catalog.name = 'rate_' OPERATOR(pg_catalog.||) NEW.label;
BEGIN
	IF NOT EXISTS (SELECT FROM pg_catalog.pg_enum AS e
				   WHERE e.enumtypid OPERATOR(pg_catalog.=) 'syncstate.sync_source'::pg_catalog.regtype
					   AND e.enumlabel OPERATOR(pg_catalog.=) NEW.label::pg_catalog.name) THEN
		EXECUTE pg_catalog.format('ALTER TYPE syncstate.sync_source ADD VALUE IF NOT EXISTS %L', NEW.label);
	END IF;
	IF pg_catalog.to_regclass(pg_catalog.format('syncstate.%I', cell)) IS NULL THEN
		EXECUTE pg_catalog.format('CREATE SEQUENCE syncstate.%I MINVALUE -9223372036854775808', cell);
		EXECUTE pg_catalog.format('COMMENT ON SEQUENCE syncstate.%I IS %L', cell, 'Allowance of starts of ' OPERATOR(pg_catalog.||) NEW.label);
		EXECUTE pg_catalog.format('ALTER EXTENSION syncstate ADD SEQUENCE syncstate.%I', cell);
		INSERT INTO syncstate.sync_lane (source, kind, lane)
			SELECT NEW.label, kind, lane
			FROM pg_catalog.generate_series(0, 2) AS kind, pg_catalog.generate_series(0, 1) AS lane
			ON CONFLICT DO NOTHING;
	END IF;
	RETURN NULL;
END
$$;
COMMENT ON FUNCTION syncstate.add_source_label() IS 'Adds a label to sync_source, its sequence and its lanes, when its row arrives in custom_source';
REVOKE ALL ON FUNCTION syncstate.add_source_label() FROM PUBLIC;

/*
 * A restore may be into a database where the labels were registered before,
 * which is what a parallel restore or one in a single transaction needs.
 */
CREATE FUNCTION syncstate.skip_known_label() RETURNS trigger
	LANGUAGE plpgsql
	SET search_path = pg_catalog, pg_temp
	AS $$
BEGIN
	IF EXISTS (SELECT FROM syncstate.custom_source AS c
			   WHERE c.label OPERATOR(pg_catalog.=) NEW.label) THEN
		RETURN NULL;
	END IF;
	RETURN NEW;
END
$$;
COMMENT ON FUNCTION syncstate.skip_known_label() IS 'Passes over a label that custom_source has';
REVOKE ALL ON FUNCTION syncstate.skip_known_label() FROM PUBLIC;

CREATE TRIGGER custom_source_skip_known BEFORE INSERT ON syncstate.custom_source
	FOR EACH ROW EXECUTE FUNCTION syncstate.skip_known_label();
COMMENT ON TRIGGER custom_source_skip_known ON syncstate.custom_source IS 'Passes over a label that is there';

CREATE TRIGGER custom_source_add_label AFTER INSERT ON syncstate.custom_source
	FOR EACH ROW EXECUTE FUNCTION syncstate.add_source_label();
COMMENT ON TRIGGER custom_source_add_label ON syncstate.custom_source IS 'Adds the label to sync_source';

/*
 * A label cannot be removed from an enum, and a dump whose labels are missing
 * cannot be restored.  So a row stays as long as its label does: to
 * empty all tables of a database, as tests do, deletes nothing here.  The first
 * four labels are built in.
 *
 * A transaction that keeps its snapshot might not see a label that was committed
 * since; enum_range() does, but refuses labels of its own transaction.
 */
CREATE FUNCTION syncstate.keep_source_labels() RETURNS trigger
	LANGUAGE plpgsql
	SET search_path = pg_catalog, pg_temp
	AS $$
BEGIN
	IF TG_OP OPERATOR(pg_catalog.=) 'TRUNCATE' THEN
		INSERT INTO syncstate.custom_source AS c (label)
			SELECT l.label FROM pg_catalog.unnest(
				CASE WHEN pg_catalog.current_setting('transaction_isolation') OPERATOR(pg_catalog.=) 'read committed'
				THEN ARRAY(SELECT e.enumlabel::pg_catalog.text FROM pg_catalog.pg_enum AS e
						   WHERE e.enumtypid OPERATOR(pg_catalog.=) 'syncstate.sync_source'::pg_catalog.regtype
						   ORDER BY e.enumsortorder)
				ELSE pg_catalog.enum_range(NULL::syncstate.sync_source)::pg_catalog.text[] END)
				WITH ORDINALITY AS l (label, place)
			WHERE l.place OPERATOR(pg_catalog.>) 4 ORDER BY l.place;
		RETURN NULL;
	END IF;
	IF TG_OP OPERATOR(pg_catalog.=) 'UPDATE' THEN
		IF NEW.label OPERATOR(pg_catalog.<>) OLD.label THEN
			RAISE feature_not_supported USING
				MESSAGE = 'the label of a source cannot be changed',
				HINT = 'Add another one with register_sync_source().';
		END IF;
		RETURN NEW;
	END IF;
	IF EXISTS (SELECT FROM pg_catalog.pg_enum AS e
			   WHERE e.enumtypid OPERATOR(pg_catalog.=) 'syncstate.sync_source'::pg_catalog.regtype
				   AND e.enumlabel OPERATOR(pg_catalog.=) OLD.label::pg_catalog.name
				   AND e.enumsortorder OPERATOR(pg_catalog.>) 4::pg_catalog.float4) THEN
		RETURN NULL;
	END IF;
	RETURN OLD;
END
$$;
COMMENT ON FUNCTION syncstate.keep_source_labels() IS 'Keeps each row of custom_source as long as its label exists';
REVOKE ALL ON FUNCTION syncstate.keep_source_labels() FROM PUBLIC;

CREATE TRIGGER custom_source_keep_label BEFORE UPDATE OR DELETE ON syncstate.custom_source
	FOR EACH ROW EXECUTE FUNCTION syncstate.keep_source_labels();
COMMENT ON TRIGGER custom_source_keep_label ON syncstate.custom_source IS 'Keeps the row of a label';

CREATE TRIGGER custom_source_keep_labels AFTER TRUNCATE ON syncstate.custom_source
	FOR EACH STATEMENT EXECUTE FUNCTION syncstate.keep_source_labels();
COMMENT ON TRIGGER custom_source_keep_labels ON syncstate.custom_source IS 'Brings the rows of all labels back';

/* also where logical replication writes: labels then come along by themselves */
ALTER TABLE syncstate.custom_source ENABLE ALWAYS TRIGGER custom_source_skip_known;
ALTER TABLE syncstate.custom_source ENABLE ALWAYS TRIGGER custom_source_add_label;
ALTER TABLE syncstate.custom_source ENABLE ALWAYS TRIGGER custom_source_keep_label;
ALTER TABLE syncstate.custom_source ENABLE ALWAYS TRIGGER custom_source_keep_labels;

CREATE FUNCTION syncstate.register_sync_source(label text) RETURNS void
	LANGUAGE plpgsql VOLATILE
	SET search_path = pg_catalog, pg_temp
	AS $$
DECLARE
	place pg_catalog.float4;
	has_row pg_catalog.bool;
BEGIN
	IF label IS NULL OR label OPERATOR(pg_catalog.!~) '^[a-z0-9_]{1,58}$' THEN
		RAISE invalid_parameter_value USING
			MESSAGE = 'label must be 1 to 58 characters of a-z, 0-9 and _',
			DETAIL = pg_catalog.format('Got %s.', COALESCE(pg_catalog.quote_ident(pg_catalog.left(label, 100)), 'null'));
	END IF;

	SELECT e.enumsortorder INTO place FROM pg_catalog.pg_enum AS e
		WHERE e.enumtypid OPERATOR(pg_catalog.=) 'syncstate.sync_source'::pg_catalog.regtype
			AND e.enumlabel OPERATOR(pg_catalog.=) label::pg_catalog.name;
	IF place OPERATOR(pg_catalog.<=) 4::pg_catalog.float4 THEN
		RETURN;		-- built in
	END IF;
	has_row = EXISTS (SELECT FROM syncstate.custom_source AS c
					  WHERE c.label OPERATOR(pg_catalog.=) register_sync_source.label);
	IF place IS NOT NULL AND has_row THEN
		RETURN;		-- registered before
	END IF;

	-- a label without its row lost it, and a row without its label came in,
	-- while triggers did not fire
	IF has_row THEN
		DELETE FROM syncstate.custom_source AS c
			WHERE c.label OPERATOR(pg_catalog.=) register_sync_source.label;
	END IF;
	INSERT INTO syncstate.custom_source AS c (label)
		VALUES (register_sync_source.label)
		ON CONFLICT ON CONSTRAINT custom_source_pkey DO NOTHING;
END
$$;
COMMENT ON FUNCTION syncstate.register_sync_source(text) IS 'Adds a label to sync_source, usable once the transaction has committed';
REVOKE ALL ON FUNCTION syncstate.register_sync_source(text) FROM PUBLIC;

/* ----------------------------------------------------------- deleted users */

/*
 * Acts above its caller: the role that deletes users need not be able to touch
 * sync_state.  It is a trigger of the application's table, whose owner may
 * change the column's type under it, or attach it by hand: only a plain uuid of
 * a real transition table is compared, so that no operator, cast or view of
 * theirs runs as the owner of this function.
 */
CREATE FUNCTION syncstate.forget_users() RETURNS trigger
	LANGUAGE plpgsql SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	AS $$
DECLARE
	rows pg_catalog.tid[];
BEGIN
	IF TG_NARGS OPERATOR(pg_catalog.<>) 1 OR TG_OP OPERATOR(pg_catalog.<>) 'DELETE'
		OR NOT EXISTS (SELECT FROM pg_catalog.pg_trigger AS t
					   WHERE t.tgrelid OPERATOR(pg_catalog.=) TG_RELID
						   AND t.tgname OPERATOR(pg_catalog.=) TG_NAME
						   AND t.tgoldtable OPERATOR(pg_catalog.=) 'deleted'::pg_catalog.name) THEN
		RAISE trigger_protocol_violated USING
			MESSAGE = 'function "forget_users" must be fired AFTER DELETE STATEMENT with the old table as "deleted" and the name of a column',
			HINT = 'Use watch_users() to make the trigger.';
	END IF;
	IF NOT EXISTS (SELECT FROM pg_catalog.pg_attribute AS a
				   WHERE a.attrelid OPERATOR(pg_catalog.=) TG_RELID
					   AND a.attname OPERATOR(pg_catalog.=) TG_ARGV[0]::pg_catalog.name
					   AND NOT a.attisdropped
					   AND a.atttypid OPERATOR(pg_catalog.=) ANY ('{uuid,text,varchar,int4,int8}'::pg_catalog.regtype[])) THEN
		RAISE undefined_column USING
			MESSAGE = pg_catalog.format('column "%s" of relation "%s" does not exist, or is not of type uuid, text, integer or bigint', TG_ARGV[0], TG_TABLE_NAME);
	END IF;

	-- Locks in the order in which batches lock, so that neither waits for the
	-- other, and then deletes what is locked, and not what came since.
	EXECUTE pg_catalog.format('SELECT pg_catalog.array_agg(l.ctid) FROM (SELECT s.ctid FROM syncstate.sync_state AS s, deleted AS d WHERE s.user_id OPERATOR(pg_catalog.=) syncstate.user_id_of(d.%I::pg_catalog.text) ORDER BY s.user_id, s.account, s.source, s.resource FOR UPDATE OF s) AS l', TG_ARGV[0]) INTO rows;
	DELETE FROM syncstate.sync_state AS s WHERE s.ctid OPERATOR(pg_catalog.=) ANY (rows);

	-- What is told of them goes too, the runs that have just ended included.
	EXECUTE pg_catalog.format('DELETE FROM syncstate.sync_event AS e USING deleted AS d WHERE e.user_id OPERATOR(pg_catalog.=) syncstate.user_id_of(d.%I::pg_catalog.text)', TG_ARGV[0]);
	EXECUTE pg_catalog.format('DELETE FROM syncstate.sync_run AS r USING deleted AS d WHERE r.user_id OPERATOR(pg_catalog.=) syncstate.user_id_of(d.%I::pg_catalog.text)', TG_ARGV[0]);
	RETURN NULL;
END
$$;
COMMENT ON FUNCTION syncstate.forget_users() IS 'Deletes the rows of deleted users; a trigger made by watch_users()';
REVOKE ALL ON FUNCTION syncstate.forget_users() FROM PUBLIC;

CREATE FUNCTION syncstate.watch_users(users regclass, id_column name DEFAULT 'id') RETURNS void
	LANGUAGE plpgsql VOLATILE
	SET search_path = pg_catalog, pg_temp
	AS $$
BEGIN
	IF users IS NULL OR id_column IS NULL THEN
		RAISE invalid_parameter_value USING
			MESSAGE = CASE WHEN users IS NULL THEN 'users' ELSE 'id_column' END OPERATOR(pg_catalog.||) ' must not be null';
	END IF;
	IF NOT EXISTS (SELECT FROM pg_catalog.pg_attribute AS a
				   WHERE a.attrelid OPERATOR(pg_catalog.=) users
					   AND a.attname OPERATOR(pg_catalog.=) id_column
					   AND NOT a.attisdropped
					   AND a.atttypid OPERATOR(pg_catalog.=) ANY ('{uuid,text,varchar,int4,int8}'::pg_catalog.regtype[])) THEN
		RAISE invalid_parameter_value USING
			MESSAGE = 'id_column must name a column of type uuid, text, integer or bigint',
			DETAIL = pg_catalog.format('Got "%s" of %s.', id_column, users);
	END IF;
	EXECUTE pg_catalog.format('CREATE OR REPLACE TRIGGER syncstate_forget_users AFTER DELETE ON %s REFERENCING OLD TABLE AS deleted FOR EACH STATEMENT EXECUTE FUNCTION syncstate.forget_users(%L)', users, id_column);
END
$$;
COMMENT ON FUNCTION syncstate.watch_users(regclass, name) IS 'Deletes the rows of users when they are deleted: puts the trigger forget_users() on the application''s table of users';
REVOKE ALL ON FUNCTION syncstate.watch_users(regclass, name) FROM PUBLIC;

/* ----------------------------------------------------------- row security */

/*
 * One policy per command.  A worker, a role that may execute claim_due_syncs(),
 * sees all rows; others see their own.  This is written as a range of users, so
 * that a user's plain SELECT goes by the primary key, and a worker's identity is
 * never asked for.  Each question is asked in a sub-select, so once per
 * statement.  What a role may do at all is a matter of its privileges:
 * grant_worker() and grant_user().
 */
ALTER TABLE syncstate.sync_state ENABLE ROW LEVEL SECURITY;

CREATE POLICY sync_state_select ON syncstate.sync_state FOR SELECT
	USING (user_id OPERATOR(pg_catalog.>=) (SELECT CASE WHEN (SELECT pg_catalog.has_function_privilege('syncstate.claim_due_syncs(syncstate.sync_source, integer, interval, text)'::pg_catalog.regprocedure, 'EXECUTE')) THEN '00000000-0000-0000-0000-000000000000'::pg_catalog.uuid ELSE (SELECT syncstate.current_user_id()) END)
		   AND user_id OPERATOR(pg_catalog.<=) (SELECT CASE WHEN (SELECT pg_catalog.has_function_privilege('syncstate.claim_due_syncs(syncstate.sync_source, integer, interval, text)'::pg_catalog.regprocedure, 'EXECUTE')) THEN 'ffffffff-ffff-ffff-ffff-ffffffffffff'::pg_catalog.uuid ELSE (SELECT syncstate.current_user_id()) END));
COMMENT ON POLICY sync_state_select ON syncstate.sync_state IS 'Users see their own rows, workers all';

CREATE POLICY sync_state_insert ON syncstate.sync_state FOR INSERT
	WITH CHECK (user_id OPERATOR(pg_catalog.>=) (SELECT CASE WHEN (SELECT pg_catalog.has_function_privilege('syncstate.claim_due_syncs(syncstate.sync_source, integer, interval, text)'::pg_catalog.regprocedure, 'EXECUTE')) THEN '00000000-0000-0000-0000-000000000000'::pg_catalog.uuid ELSE (SELECT syncstate.current_user_id()) END)
				AND user_id OPERATOR(pg_catalog.<=) (SELECT CASE WHEN (SELECT pg_catalog.has_function_privilege('syncstate.claim_due_syncs(syncstate.sync_source, integer, interval, text)'::pg_catalog.regprocedure, 'EXECUTE')) THEN 'ffffffff-ffff-ffff-ffff-ffffffffffff'::pg_catalog.uuid ELSE (SELECT syncstate.current_user_id()) END));
COMMENT ON POLICY sync_state_insert ON syncstate.sync_state IS 'Users make their own rows, workers any';

CREATE POLICY sync_state_update ON syncstate.sync_state FOR UPDATE
	USING (user_id OPERATOR(pg_catalog.>=) (SELECT CASE WHEN (SELECT pg_catalog.has_function_privilege('syncstate.claim_due_syncs(syncstate.sync_source, integer, interval, text)'::pg_catalog.regprocedure, 'EXECUTE')) THEN '00000000-0000-0000-0000-000000000000'::pg_catalog.uuid ELSE (SELECT syncstate.current_user_id()) END)
		   AND user_id OPERATOR(pg_catalog.<=) (SELECT CASE WHEN (SELECT pg_catalog.has_function_privilege('syncstate.claim_due_syncs(syncstate.sync_source, integer, interval, text)'::pg_catalog.regprocedure, 'EXECUTE')) THEN 'ffffffff-ffff-ffff-ffff-ffffffffffff'::pg_catalog.uuid ELSE (SELECT syncstate.current_user_id()) END));
COMMENT ON POLICY sync_state_update ON syncstate.sync_state IS 'Users change their own rows, workers all';

CREATE POLICY sync_state_delete ON syncstate.sync_state FOR DELETE
	USING (user_id OPERATOR(pg_catalog.>=) (SELECT CASE WHEN (SELECT pg_catalog.has_function_privilege('syncstate.claim_due_syncs(syncstate.sync_source, integer, interval, text)'::pg_catalog.regprocedure, 'EXECUTE')) THEN '00000000-0000-0000-0000-000000000000'::pg_catalog.uuid ELSE (SELECT syncstate.current_user_id()) END)
		   AND user_id OPERATOR(pg_catalog.<=) (SELECT CASE WHEN (SELECT pg_catalog.has_function_privilege('syncstate.claim_due_syncs(syncstate.sync_source, integer, interval, text)'::pg_catalog.regprocedure, 'EXECUTE')) THEN 'ffffffff-ffff-ffff-ffff-ffffffffffff'::pg_catalog.uuid ELSE (SELECT syncstate.current_user_id()) END));
COMMENT ON POLICY sync_state_delete ON syncstate.sync_state IS 'Users delete their own rows, workers all';

ALTER TABLE syncstate.sync_policy ENABLE ROW LEVEL SECURITY;

CREATE POLICY sync_policy_worker ON syncstate.sync_policy
	USING ((SELECT pg_catalog.has_function_privilege('syncstate.claim_due_syncs(syncstate.sync_source, integer, interval, text)'::pg_catalog.regprocedure, 'EXECUTE')));
COMMENT ON POLICY sync_policy_worker ON syncstate.sync_policy IS 'Workers see and change all policies';

ALTER TABLE syncstate.sync_budget ENABLE ROW LEVEL SECURITY;

CREATE POLICY sync_budget_worker ON syncstate.sync_budget
	USING ((SELECT pg_catalog.has_function_privilege('syncstate.claim_due_syncs(syncstate.sync_source, integer, interval, text)'::pg_catalog.regprocedure, 'EXECUTE')));
COMMENT ON POLICY sync_budget_worker ON syncstate.sync_budget IS 'Workers see and change all budgets';

ALTER TABLE syncstate.sync_event ENABLE ROW LEVEL SECURITY;

CREATE POLICY sync_event_worker ON syncstate.sync_event
	USING ((SELECT pg_catalog.has_function_privilege('syncstate.claim_due_syncs(syncstate.sync_source, integer, interval, text)'::pg_catalog.regprocedure, 'EXECUTE')));
COMMENT ON POLICY sync_event_worker ON syncstate.sync_event IS 'Workers see and take all events';

ALTER TABLE syncstate.sync_run ENABLE ROW LEVEL SECURITY;

CREATE POLICY sync_run_select ON syncstate.sync_run FOR SELECT
	USING (user_id OPERATOR(pg_catalog.>=) (SELECT CASE WHEN (SELECT pg_catalog.has_function_privilege('syncstate.claim_due_syncs(syncstate.sync_source, integer, interval, text)'::pg_catalog.regprocedure, 'EXECUTE')) THEN '00000000-0000-0000-0000-000000000000'::pg_catalog.uuid ELSE (SELECT syncstate.current_user_id()) END)
		   AND user_id OPERATOR(pg_catalog.<=) (SELECT CASE WHEN (SELECT pg_catalog.has_function_privilege('syncstate.claim_due_syncs(syncstate.sync_source, integer, interval, text)'::pg_catalog.regprocedure, 'EXECUTE')) THEN 'ffffffff-ffff-ffff-ffff-ffffffffffff'::pg_catalog.uuid ELSE (SELECT syncstate.current_user_id()) END));
COMMENT ON POLICY sync_run_select ON syncstate.sync_run IS 'Users see their own runs, workers all';

CREATE POLICY sync_run_insert ON syncstate.sync_run FOR INSERT
	WITH CHECK ((SELECT pg_catalog.has_function_privilege('syncstate.claim_due_syncs(syncstate.sync_source, integer, interval, text)'::pg_catalog.regprocedure, 'EXECUTE')));
COMMENT ON POLICY sync_run_insert ON syncstate.sync_run IS 'A restore by the owner of the database brings runs back';

CREATE POLICY sync_run_delete ON syncstate.sync_run FOR DELETE
	USING ((SELECT pg_catalog.has_function_privilege('syncstate.claim_due_syncs(syncstate.sync_source, integer, interval, text)'::pg_catalog.regprocedure, 'EXECUTE')));
COMMENT ON POLICY sync_run_delete ON syncstate.sync_run IS 'Workers delete runs';

ALTER TABLE syncstate.sync_channel ENABLE ROW LEVEL SECURITY;

CREATE POLICY sync_channel_select ON syncstate.sync_channel FOR SELECT
	USING (user_id OPERATOR(pg_catalog.>=) (SELECT CASE WHEN (SELECT pg_catalog.has_function_privilege('syncstate.claim_due_syncs(syncstate.sync_source, integer, interval, text)'::pg_catalog.regprocedure, 'EXECUTE')) THEN '00000000-0000-0000-0000-000000000000'::pg_catalog.uuid ELSE (SELECT syncstate.current_user_id()) END)
		   AND user_id OPERATOR(pg_catalog.<=) (SELECT CASE WHEN (SELECT pg_catalog.has_function_privilege('syncstate.claim_due_syncs(syncstate.sync_source, integer, interval, text)'::pg_catalog.regprocedure, 'EXECUTE')) THEN 'ffffffff-ffff-ffff-ffff-ffffffffffff'::pg_catalog.uuid ELSE (SELECT syncstate.current_user_id()) END));
COMMENT ON POLICY sync_channel_select ON syncstate.sync_channel IS 'Users see their own channels, workers all';

CREATE POLICY sync_channel_worker ON syncstate.sync_channel
	USING ((SELECT pg_catalog.has_function_privilege('syncstate.claim_due_syncs(syncstate.sync_source, integer, interval, text)'::pg_catalog.regprocedure, 'EXECUTE')));
COMMENT ON POLICY sync_channel_worker ON syncstate.sync_channel IS 'Workers make, change and delete all channels';

/* ------------------------------------------------------------------ views */

CREATE VIEW syncstate.my_syncs
	WITH (security_invoker = true, security_barrier = true) AS
	SELECT s.user_id, s.account, s.source, s.resource, s.status, s.due_at, s.requested_at,
		s.parked_reason, s.sync_interval, s.last_full_sync_at, s.last_sync_at,
		s.last_successful_sync_at, s.items_synced, s.progress_done,
		s.progress_total, s.failures, s.failing_since, s.token_losses,
		s.error_message, s.created_at, s.updated_at, s.limited_until
	FROM syncstate.sync_state AS s
	WHERE s.user_id OPERATOR(pg_catalog.=) (SELECT syncstate.current_user_id());
REVOKE ALL ON TABLE syncstate.my_syncs FROM PUBLIC;
COMMENT ON VIEW syncstate.my_syncs IS 'What a user may see of their own rows: no cursor, no page token, no lease';

CREATE VIEW syncstate.my_sync_runs
	WITH (security_invoker = true, security_barrier = true) AS
	SELECT r.user_id, r.account, r.source, r.resource, r.started_at, r.ended_at,
		r.outcome, r.was_full, r.was_requested, r.items, r.error_message
	FROM syncstate.sync_run AS r
	WHERE r.user_id OPERATOR(pg_catalog.=) (SELECT syncstate.current_user_id());
REVOKE ALL ON TABLE syncstate.my_sync_runs FROM PUBLIC;
COMMENT ON VIEW syncstate.my_sync_runs IS 'What a user may see of their own runs: no lease';

CREATE FUNCTION syncstate.due_from(sync_state syncstate.sync_state) RETURNS timestamptz
	AS 'MODULE_PATHNAME', 'syncstate_due_from'
	LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION syncstate.due_from(syncstate.sync_state) IS 'The earliest time at which a claim would take the row, ignoring a pause of its source; null = parked';
REVOKE ALL ON FUNCTION syncstate.due_from(syncstate.sync_state) FROM PUBLIC;

CREATE FUNCTION syncstate.is_ahead(sync_state syncstate.sync_state) RETURNS boolean
	AS 'MODULE_PATHNAME', 'syncstate_is_ahead'
	LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION syncstate.is_ahead(syncstate.sync_state) IS 'Whether the row has a time that lies further ahead than any rule allows';
REVOKE ALL ON FUNCTION syncstate.is_ahead(syncstate.sync_state) FROM PUBLIC;

/* Reads the whole table once. */
CREATE VIEW syncstate.sync_overview WITH (security_invoker = true) AS
	WITH clock AS MATERIALIZED (SELECT syncstate.sync_clock() AS now),
	state AS (
		SELECT s.*,
			syncstate.due_from(s) AS due_from,
			syncstate.is_ahead(s) AS is_ahead,
			s.lease_expires_at OPERATOR(pg_catalog.>) c.now AS is_held,
			c.now AS now
		FROM syncstate.sync_state AS s, clock AS c
	),
	counted AS (
		SELECT s.source,
			pg_catalog.count(*) AS rows,
			pg_catalog.count(*) FILTER (WHERE s.status OPERATOR(pg_catalog.=) 'idle'::syncstate.sync_status) AS idle,
			pg_catalog.count(*) FILTER (WHERE s.status OPERATOR(pg_catalog.=) 'syncing'::syncstate.sync_status) AS syncing,
			pg_catalog.count(*) FILTER (WHERE s.status OPERATOR(pg_catalog.=) 'error'::syncstate.sync_status) AS error,
			pg_catalog.count(*) FILTER (WHERE s.status OPERATOR(pg_catalog.=) 'rate_limited'::syncstate.sync_status) AS rate_limited,
			pg_catalog.count(*) FILTER (WHERE s.due_from OPERATOR(pg_catalog.<=) s.now) AS due,
			pg_catalog.max(s.now OPERATOR(pg_catalog.-) s.due_from)
				FILTER (WHERE s.due_from OPERATOR(pg_catalog.<=) s.now) AS oldest_due_age,
			pg_catalog.count(s.requested_at) AS requested,
			pg_catalog.count(*) FILTER (WHERE s.is_held) AS live_leases,
			pg_catalog.count(*) FILTER (WHERE NOT s.is_held) AS expired_leases,
			pg_catalog.count(*) FILTER (WHERE s.failures OPERATOR(pg_catalog.>) 0) AS failing,
			pg_catalog.count(*) FILTER (WHERE s.parked_reason OPERATOR(pg_catalog.=) 'paused') AS parked_paused,
			pg_catalog.count(*) FILTER (WHERE s.parked_reason OPERATOR(pg_catalog.=) 'auth') AS parked_auth,
			pg_catalog.count(*) FILTER (WHERE s.parked_reason OPERATOR(pg_catalog.=) 'failures') AS parked_failures,
			pg_catalog.count(*) FILTER (WHERE s.parked_reason OPERATOR(pg_catalog.=) 'token_loop') AS parked_token_loop,
			pg_catalog.count(*) FILTER (WHERE s.last_successful_sync_at OPERATOR(pg_catalog.=) s.last_full_sync_at
				AND s.sync_token IS NULL AND s.history_id IS NULL AND s.updated_min IS NULL
				AND s.token_losses OPERATOR(pg_catalog.=) 0) AS without_cursor,
			pg_catalog.count(*) FILTER (WHERE s.is_ahead) AS ahead,
			pg_catalog.count(*) FILTER (WHERE s.parked_reason OPERATOR(pg_catalog.=) 'gone') AS parked_gone,
			pg_catalog.count(*) FILTER (WHERE s.limited_until OPERATOR(pg_catalog.>) s.now) AS limited
		FROM state AS s
		GROUP BY s.source
	),
	channels AS (
		SELECT h.source,
			pg_catalog.count(*) FILTER (WHERE h.state OPERATOR(pg_catalog.=) 'opening') AS opening,
			pg_catalog.count(*) FILTER (WHERE h.state OPERATOR(pg_catalog.=) 'active') AS active,
			pg_catalog.count(*) FILTER (WHERE h.state OPERATOR(pg_catalog.=) 'retiring') AS retiring,
			pg_catalog.count(*) FILTER (WHERE h.state OPERATOR(pg_catalog.=) 'unsupported') AS unsupported,
			pg_catalog.count(*) FILTER (WHERE h.state OPERATOR(pg_catalog.=) 'active'
				AND h.expires_at OPERATOR(pg_catalog.<=) (c.now OPERATOR(pg_catalog.+) '1 day'::pg_catalog.interval)) AS ending,
			pg_catalog.count(*) FILTER (WHERE h.state OPERATOR(pg_catalog.=) 'active'
				AND (s.push_until OPERATOR(pg_catalog.>) c.now) IS NOT TRUE) AS silent
		FROM clock AS c, syncstate.sync_channel AS h
			LEFT JOIN syncstate.sync_state AS s ON s.user_id OPERATOR(pg_catalog.=) h.user_id
				AND s.account OPERATOR(pg_catalog.=) h.account
				AND s.source OPERATOR(pg_catalog.=) h.source
				AND s.resource OPERATOR(pg_catalog.=) h.resource
		GROUP BY h.source
	)
	SELECT l.source, COALESCE(c.rows, 0) AS rows, COALESCE(c.idle, 0) AS idle,
		COALESCE(c.syncing, 0) AS syncing, COALESCE(c.error, 0) AS error,
		COALESCE(c.rate_limited, 0) AS rate_limited, COALESCE(c.due, 0) AS due,
		c.oldest_due_age, COALESCE(c.requested, 0) AS requested,
		COALESCE(c.live_leases, 0) AS live_leases,
		COALESCE(c.expired_leases, 0) AS expired_leases,
		COALESCE(c.failing, 0) AS failing,
		COALESCE(c.parked_paused, 0) AS parked_paused,
		COALESCE(c.parked_auth, 0) AS parked_auth,
		COALESCE(c.parked_failures, 0) AS parked_failures,
		COALESCE(c.parked_token_loop, 0) AS parked_token_loop,
		COALESCE(c.without_cursor, 0) AS without_cursor, p.paused_until,
		COALESCE(c.ahead, 0) AS ahead,
		COALESCE(c.parked_gone, 0) AS parked_gone,
		COALESCE(c.limited, 0) AS limited,
		COALESCE(h.opening, 0) AS channels_opening,
		COALESCE(h.active, 0) AS channels_active,
		COALESCE(h.retiring, 0) AS channels_retiring,
		COALESCE(h.unsupported, 0) AS channels_unsupported,
		COALESCE(h.ending, 0) AS channels_ending,
		COALESCE(h.silent, 0) AS channels_silent
	FROM pg_catalog.unnest(pg_catalog.enum_range(NULL::syncstate.sync_source)) AS l (source)
		LEFT JOIN counted AS c ON c.source OPERATOR(pg_catalog.=) l.source
		LEFT JOIN channels AS h ON h.source OPERATOR(pg_catalog.=) l.source
		LEFT JOIN syncstate.sync_policy AS p ON p.source OPERATOR(pg_catalog.=) l.source
	ORDER BY l.source;
REVOKE ALL ON TABLE syncstate.sync_overview FROM PUBLIC;
COMMENT ON VIEW syncstate.sync_overview IS 'Per source: how many rows are in which state, due, held, failing and parked, and how late the oldest due one is';

/* ----------------------------------------------------------------- grants */

/*
 * role is regrole, so that an unknown name is refused, and one that needs quotes
 * is quoted.
 */
CREATE FUNCTION syncstate.grant_worker(role regrole) RETURNS void
	LANGUAGE plpgsql VOLATILE
	SET search_path = pg_catalog, pg_temp
	AS $$
DECLARE
	fn pg_catalog.regprocedure;
BEGIN
	IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.oid OPERATOR(pg_catalog.=) role) OR role IS NULL THEN
		RAISE invalid_parameter_value USING MESSAGE = 'role must be an existing role',
			DETAIL = pg_catalog.format('Got %s.', COALESCE(role::pg_catalog.text, 'null'));
	END IF;
	EXECUTE pg_catalog.format('GRANT USAGE ON SCHEMA syncstate TO %s', role);
	EXECUTE pg_catalog.format('GRANT SELECT, INSERT, UPDATE, DELETE ON syncstate.sync_state, syncstate.sync_policy, syncstate.sync_budget, syncstate.sync_channel TO %s', role);
	EXECUTE pg_catalog.format('GRANT SELECT, UPDATE, DELETE ON syncstate.sync_event TO %s', role);
	EXECUTE pg_catalog.format('GRANT SELECT, DELETE ON syncstate.sync_run TO %s', role);
	EXECUTE pg_catalog.format('GRANT SELECT ON syncstate.my_syncs, syncstate.my_sync_runs, syncstate.sync_overview TO %s', role);
	FOREACH fn IN ARRAY ARRAY[
		'syncstate.claim_due_syncs(syncstate.sync_source, integer, interval, text)',
		'syncstate.mark_sync_started(uuid, syncstate.sync_source, interval, text, text)',
		'syncstate.mark_sync_completed(uuid, syncstate.sync_source, bigint, text, text, timestamptz, bigint, text, text)',
		'syncstate.mark_sync_failed(uuid, syncstate.sync_source, text, text, bigint, text, text, text)',
		'syncstate.mark_rate_limited(uuid, syncstate.sync_source, interval, text, bigint, text, text)',
		'syncstate.clear_sync_token(uuid, syncstate.sync_source, bigint, text, text)',
		'syncstate.renew_sync_lease(uuid, syncstate.sync_source, bigint, interval, text, text)',
		'syncstate.checkpoint_sync(uuid, syncstate.sync_source, bigint, text, bigint, bigint, text, text)',
		'syncstate.release_sync(uuid, syncstate.sync_source, bigint, text, interval, text)',
		'syncstate.may_sweep(uuid, syncstate.sync_source, bigint, bigint, bigint, boolean, text, text)',
		'syncstate.report_syncs(jsonb)',
		'syncstate.update_sync_state(uuid, syncstate.sync_source, jsonb, text, text)',
		'syncstate.get_users_needing_sync(syncstate.sync_source, interval, integer)',
		'syncstate.next_sync_due(syncstate.sync_source)',
		'syncstate.take_sync_events(integer)',
		'syncstate.claim_push_channels(syncstate.sync_source, integer, interval)',
		'syncstate.mark_channel_opened(uuid, syncstate.sync_source, bigint, text, timestamptz, text, text, text, text)',
		'syncstate.mark_channel_failed(uuid, syncstate.sync_source, bigint, text, text, text, text)',
		'syncstate.mark_channel_stopped(uuid, syncstate.sync_source, bigint, text, text)',
		'syncstate.receive_push(text, text, bigint)',
		'syncstate.get_sync_policy(syncstate.sync_source)',
		'syncstate.set_sync_policy(syncstate.sync_source, jsonb)',
		'syncstate.pause_sync_source(syncstate.sync_source, timestamptz)',
		'syncstate.resume_sync_source(syncstate.sync_source)',
		'syncstate.resync_source(syncstate.sync_source, interval)',
		'syncstate.revive_syncs(syncstate.sync_source, text, interval, integer)',
		'syncstate.rebalance_syncs(syncstate.sync_source)',
		'syncstate.get_sync_state(uuid, syncstate.sync_source, text, text)',
		'syncstate.get_sync_states(uuid)',
		'syncstate.connect_sync(uuid, syncstate.sync_source, text, text)',
		'syncstate.disconnect_sync(uuid, syncstate.sync_source, text, text)',
		'syncstate.pause_sync(uuid, syncstate.sync_source, text, text)',
		'syncstate.resume_sync(uuid, syncstate.sync_source, text, text)',
		'syncstate.request_sync(uuid, syncstate.sync_source, text, text)',
		'syncstate.connect_account(uuid, text, text)',
		'syncstate.pause_account(uuid, text, text)',
		'syncstate.resume_account(uuid, text, text)',
		'syncstate.disconnect_account(uuid, text, text)',
		'syncstate.request_account(uuid, text, text)',
		'syncstate.set_sync_resources(uuid, syncstate.sync_source, text[], text)',
		'syncstate.current_user_id()',
		'syncstate.user_id_of(text)',
		'syncstate.sync_clock()',
		'syncstate.is_legal(syncstate.sync_state)',
		'syncstate.due_from(syncstate.sync_state)',
		'syncstate.is_ahead(syncstate.sync_state)']::pg_catalog.regprocedure[]
	LOOP
		EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION %s TO %s', fn, role);
	END LOOP;
END
$$;
COMMENT ON FUNCTION syncstate.grant_worker(regrole) IS 'Grants a role all that a worker needs: to claim and report, for every user';
REVOKE ALL ON FUNCTION syncstate.grant_worker(regrole) FROM PUBLIC;

CREATE FUNCTION syncstate.grant_user(role regrole) RETURNS void
	LANGUAGE plpgsql VOLATILE
	SET search_path = pg_catalog, pg_temp
	AS $$
BEGIN
	IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.oid OPERATOR(pg_catalog.=) role) OR role IS NULL THEN
		RAISE invalid_parameter_value USING MESSAGE = 'role must be an existing role',
			DETAIL = pg_catalog.format('Got %s.', COALESCE(role::pg_catalog.text, 'null'));
	END IF;
	EXECUTE pg_catalog.format('GRANT USAGE ON SCHEMA syncstate TO %s', role);

	/* what my_syncs shows, what request_sync() writes, and the CHECK asks */
	EXECUTE pg_catalog.format('GRANT SELECT (user_id, account, source, resource, status, due_at, requested_at, parked_reason, sync_interval, last_full_sync_at, last_sync_at, last_successful_sync_at, items_synced, progress_done, progress_total, failures, failing_since, token_losses, error_message, created_at, updated_at, limited_until), UPDATE (requested_at) ON syncstate.sync_state TO %s', role);
	EXECUTE pg_catalog.format('GRANT SELECT (user_id, account, source, resource, started_at, ended_at, outcome, was_full, was_requested, items, error_message) ON syncstate.sync_run TO %s', role);
	EXECUTE pg_catalog.format('GRANT SELECT ON syncstate.my_syncs, syncstate.my_sync_runs TO %s', role);
	EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION syncstate.request_sync(uuid, syncstate.sync_source, text, text), syncstate.request_account(uuid, text, text), syncstate.current_user_id(), syncstate.user_id_of(text), syncstate.sync_clock(), syncstate.is_legal(syncstate.sync_state) TO %s', role);
END
$$;
COMMENT ON FUNCTION syncstate.grant_user(regrole) IS 'Grants a role all that users need: to see their own rows and to request syncs';
REVOKE ALL ON FUNCTION syncstate.grant_user(regrole) FROM PUBLIC;

/*
 * The owner of the database may install this, and then needs to be able to use
 * it and to pass it on; the objects stay the bootstrap superuser's.
 *
 * Never TRIGGER: a trigger of theirs on our tables would run with the rights of
 * the role that fires it, forget_users() included.  Nor may they attach our internal
 * trigger functions elsewhere; a trigger fires without that.
 */
GRANT USAGE ON SCHEMA syncstate TO @extowner@ WITH GRANT OPTION;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA syncstate TO @extowner@ WITH GRANT OPTION;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA syncstate TO @extowner@ WITH GRANT OPTION;
REVOKE ALL ON FUNCTION syncstate.guard(), syncstate.record_revoked(), syncstate.policy_changed(),
	syncstate.add_source_label(), syncstate.skip_known_label(),
	syncstate.keep_source_labels() FROM @extowner@;

/* their own owner keeps them: without any privilege, pg_dump tells of a change */
GRANT EXECUTE ON FUNCTION syncstate.guard(), syncstate.record_revoked(), syncstate.policy_changed(),
	syncstate.add_source_label(), syncstate.skip_known_label(),
	syncstate.keep_source_labels() TO CURRENT_USER;

DO $$
BEGIN
	IF EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.rolname OPERATOR(pg_catalog.=) 'service_role') THEN
		PERFORM syncstate.grant_worker('service_role'::pg_catalog.regrole);
	END IF;
	IF EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.rolname OPERATOR(pg_catalog.=) 'authenticated') THEN
		PERFORM syncstate.grant_user('authenticated'::pg_catalog.regrole);
	END IF;
END
$$;

/* ------------------------------------------------------- is it as installed */

/*
 * What is in the schema now, as facts: of which object (named as
 * pg_identify_object() does), what is the matter where the definition is another
 * (null: the object is missing or changed), and the command that makes it so,
 * where there is one.  Of a fact about a role, @role@ stands for its name, which
 * may change.
 *
 * The definitions are texts that all versions of the server write alike, so they
 * outlast pg_upgrade.  Queries are not, and are compared within a version only.
 */
CREATE FUNCTION syncstate.present_objects()
	RETURNS TABLE (kind text, name text, problem text, role oid, definition text, command text)
	LANGUAGE sql STABLE
	SET search_path = pg_catalog, pg_temp
	SET datestyle = 'ISO, MDY'
	SET intervalstyle = 'postgres'
	SET timezone = 'UTC'
	SET extra_float_digits = 1
	SET quote_all_identifiers = off
	AS $$
WITH home AS (
	SELECT n.oid, n.nspowner, n.nspacl,
		pg_catalog.current_setting('server_version_num')::pg_catalog.int4 OPERATOR(pg_catalog./) 10000 AS version
	FROM pg_catalog.pg_namespace AS n
	WHERE n.nspname OPERATOR(pg_catalog.=) 'syncstate'
),
relation AS (
	SELECT c.*, c.oid::pg_catalog.regclass AS label, h.version
	FROM pg_catalog.pg_class AS c JOIN home AS h ON h.oid OPERATOR(pg_catalog.=) c.relnamespace
	WHERE c.relkind OPERATOR(pg_catalog.=) ANY ('{r,v,S}'::pg_catalog."char"[])
),
fact AS (
	SELECT i.type AS kind, i.identity AS name, o.*
	FROM (
		SELECT 'pg_catalog.pg_namespace'::pg_catalog.regclass AS class, h.oid, 0 AS attnum, h.nspowner AS owner, h.nspacl AS acl,
			NULL AS problem, '' AS definition, NULL AS command
		FROM home AS h
		UNION ALL
		SELECT 'pg_catalog.pg_type'::pg_catalog.regclass, t.oid, 0, t.typowner, NULL, f.*
		FROM pg_catalog.pg_type AS t JOIN home AS h ON h.oid OPERATOR(pg_catalog.=) t.typnamespace,
			LATERAL (
				SELECT NULL, '', NULL
				UNION ALL
				SELECT pg_catalog.format('has no label "%s"', e.enumlabel), '', NULL
				FROM pg_catalog.pg_enum AS e WHERE e.enumtypid OPERATOR(pg_catalog.=) t.oid
			) AS f
		WHERE t.typtype OPERATOR(pg_catalog.=) 'e'
		UNION ALL
		SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, r.oid, 0, r.relowner, r.relacl, f.*
		FROM relation AS r, LATERAL (VALUES
				(NULL, r.relpersistence::pg_catalog.text, pg_catalog.format('ALTER TABLE %s SET LOGGED', r.label)),
				('has no row security', CASE WHEN r.relrowsecurity THEN '' END,
					pg_catalog.format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', r.label))
			) AS f
		WHERE r.relkind OPERATOR(pg_catalog.=) 'r'
		UNION ALL
		SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, r.oid, 0, r.relowner, r.relacl,
			NULL, '', pg_catalog.format('CREATE SEQUENCE %s MINVALUE -9223372036854775808', r.label)
		FROM relation AS r WHERE r.relkind OPERATOR(pg_catalog.=) 'S'
		UNION ALL
		SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, r.oid, 0, r.relowner, r.relacl, f.*
		FROM relation AS r,
			LATERAL (SELECT pg_catalog.array_to_string(r.reloptions, ', '), pg_catalog.rtrim(pg_catalog.pg_get_viewdef(r.oid), ';')) AS v (options, query),
			LATERAL (VALUES
				(NULL, (SELECT pg_catalog.string_agg(pg_catalog.format('%I %s', a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY a.attnum)
						FROM pg_catalog.pg_attribute AS a WHERE a.attrelid OPERATOR(pg_catalog.=) r.oid),
					pg_catalog.format('CREATE VIEW %s WITH (%s) AS %s', r.label, v.options, v.query)),
				('has other options', v.options, pg_catalog.format('ALTER VIEW %s SET (%s)', r.label, v.options)),
				('has another query', pg_catalog.concat(r.version, ': ', v.query), pg_catalog.format('CREATE OR REPLACE VIEW %s WITH (%s) AS %s', r.label, v.options, v.query))
			) AS f
		WHERE r.relkind OPERATOR(pg_catalog.=) 'v'
		UNION ALL
		SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, r.oid, a.attnum, NULL, a.attacl, f.*
		FROM relation AS r JOIN pg_catalog.pg_attribute AS a ON a.attrelid OPERATOR(pg_catalog.=) r.oid
			LEFT JOIN pg_catalog.pg_attrdef AS d ON d.adrelid OPERATOR(pg_catalog.=) r.oid AND d.adnum OPERATOR(pg_catalog.=) a.attnum,
			LATERAL (SELECT pg_catalog.pg_get_expr(d.adbin, r.oid), pg_catalog.format('ALTER TABLE %s ALTER COLUMN %I SET ', r.label, a.attname)) AS l (expression, set),
			LATERAL (VALUES
				(NULL, pg_catalog.concat_ws(' ', a.attnum, pg_catalog.format_type(a.atttypid, a.atttypmod),
						NULLIF(a.attcollation, 0)::pg_catalog.regcollation, a.attidentity, a.attgenerated), NULL),
				('may be null', CASE WHEN a.attnotnull THEN '' END, l.set OPERATOR(pg_catalog.||) 'NOT NULL'),
				('has another default', l.expression, l.set OPERATOR(pg_catalog.||) 'DEFAULT ' OPERATOR(pg_catalog.||) l.expression)
			) AS f
		WHERE r.relkind OPERATOR(pg_catalog.=) 'r' AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped
		UNION ALL
		SELECT 'pg_catalog.pg_constraint'::pg_catalog.regclass, c.oid, 0, NULL, NULL,
			NULL, d.def, pg_catalog.format('ALTER TABLE %s ADD CONSTRAINT %I %s', r.label, c.conname, d.def)
		FROM relation AS r JOIN pg_catalog.pg_constraint AS c ON c.conrelid OPERATOR(pg_catalog.=) r.oid,
			LATERAL (SELECT pg_catalog.pg_get_constraintdef(c.oid)) AS d (def)
		WHERE c.contype OPERATOR(pg_catalog.=) ANY ('{c,p,u}'::pg_catalog."char"[])
		UNION ALL
		-- not the storage parameters, which a site may set
		SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, i.indexrelid, 0, NULL, NULL,
			NULL, pg_catalog.concat(d.def, CASE WHEN NOT i.indisvalid THEN ' INVALID' END), d.def
		FROM relation AS r JOIN pg_catalog.pg_index AS i ON i.indrelid OPERATOR(pg_catalog.=) r.oid,
			LATERAL (SELECT pg_catalog.regexp_replace(pg_catalog.pg_get_indexdef(i.indexrelid), ' WITH [(][^)]*[)]', '')) AS d (def)
		WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_constraint AS c WHERE c.conindid OPERATOR(pg_catalog.=) i.indexrelid)
		UNION ALL
		SELECT 'pg_catalog.pg_trigger'::pg_catalog.regclass, t.oid, 0, NULL, NULL, f.*
		FROM relation AS r JOIN pg_catalog.pg_trigger AS t ON t.tgrelid OPERATOR(pg_catalog.=) r.oid,
			LATERAL (VALUES
				(NULL, pg_catalog.pg_get_triggerdef(t.oid), pg_catalog.pg_get_triggerdef(t.oid)),
				('does not fire as it should', t.tgenabled::pg_catalog.text,
					pg_catalog.format('ALTER TABLE %s ENABLE %sTRIGGER %I', r.label, CASE t.tgenabled WHEN 'A' THEN 'ALWAYS ' END, t.tgname))
			) AS f
		WHERE NOT t.tgisinternal
		UNION ALL
		SELECT 'pg_catalog.pg_policy'::pg_catalog.regclass, p.oid, 0, NULL, NULL, NULL, d.def, d.def
		FROM relation AS r JOIN pg_catalog.pg_policy AS p ON p.polrelid OPERATOR(pg_catalog.=) r.oid,
			LATERAL (SELECT pg_catalog.format('CREATE POLICY %I ON %s AS %s FOR %s TO %s%s%s', p.polname, r.label,
				CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
				CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL' END,
				(SELECT pg_catalog.string_agg(CASE o WHEN 0 THEN 'PUBLIC' ELSE o::pg_catalog.regrole::pg_catalog.text END, ', ')
				 FROM pg_catalog.unnest(p.polroles) AS o),
				' USING (' OPERATOR(pg_catalog.||) pg_catalog.pg_get_expr(p.polqual, r.oid) OPERATOR(pg_catalog.||) ')',
				' WITH CHECK (' OPERATOR(pg_catalog.||) pg_catalog.pg_get_expr(p.polwithcheck, r.oid) OPERATOR(pg_catalog.||) ')')) AS d (def)
		UNION ALL
		SELECT 'pg_catalog.pg_proc'::pg_catalog.regclass, p.oid, 0, p.proowner,
			COALESCE(p.proacl, pg_catalog.acldefault('f', p.proowner)), f.*
		FROM pg_catalog.pg_proc AS p JOIN home AS h ON h.oid OPERATOR(pg_catalog.=) p.pronamespace
			JOIN pg_catalog.pg_language AS l ON l.oid OPERATOR(pg_catalog.=) p.prolang,
			LATERAL (SELECT pg_catalog.rtrim(pg_catalog.pg_get_functiondef(p.oid), E'\n')) AS d (def),
			LATERAL (VALUES
				(NULL, pg_catalog.md5(pg_catalog.concat_ws(' ', l.lanname, p.prosrc, p.probin, p.prosecdef, p.proleakproof,
						p.proisstrict, p.provolatile, p.proparallel, p.proconfig,
						pg_catalog.pg_get_function_arguments(p.oid), pg_catalog.pg_get_function_result(p.oid))),
					d.def OPERATOR(pg_catalog.||) pg_catalog.format('; REVOKE ALL ON FUNCTION %s FROM PUBLIC', p.oid::pg_catalog.regprocedure)),
				('has another query', pg_catalog.concat(h.version, ': ') OPERATOR(pg_catalog.||) pg_catalog.pg_get_function_sqlbody(p.oid), d.def)
			) AS f
		WHERE p.prokind OPERATOR(pg_catalog.=) 'f'
	) AS o, LATERAL pg_catalog.pg_identify_object(o.class, o.oid, o.attnum) AS i
	WHERE o.definition IS NOT NULL
)
SELECT f.kind, f.name, f.problem, NULL::pg_catalog.oid, f.definition, f.command FROM fact AS f
UNION ALL
SELECT f.kind, f.name, 'does not belong', f.owner, '', pg_catalog.format('ALTER %s %s OWNER TO @role@', pg_catalog.upper(f.kind), f.name)
FROM fact AS f WHERE f.problem IS NULL AND f.owner IS NOT NULL
UNION ALL
SELECT f.kind, f.name, 'is no member of the extension', NULL, '',
	pg_catalog.format('ALTER EXTENSION syncstate ADD %s %s', pg_catalog.upper(f.kind), f.name)
FROM fact AS f
	JOIN pg_catalog.pg_depend AS d ON d.classid OPERATOR(pg_catalog.=) f.class AND d.objid OPERATOR(pg_catalog.=) f.oid
	JOIN pg_catalog.pg_extension AS e ON e.oid OPERATOR(pg_catalog.=) d.refobjid
WHERE f.problem IS NULL AND f.owner IS NOT NULL
	AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass
	AND d.deptype OPERATOR(pg_catalog.=) 'e' AND e.extname OPERATOR(pg_catalog.=) 'syncstate'
UNION ALL
-- privileges of others than the owner; those of PUBLIC by grantor, who alone can revoke them
SELECT f.kind, f.name, v.problem OPERATOR(pg_catalog.||) v.privilege_type, v.grantee,
	CASE WHEN v.grantor IS NOT NULL THEN v.grantor::pg_catalog.text
		WHEN pg_catalog.bool_or(v.is_grantable) THEN 'with grant option' ELSE '' END,
	CASE WHEN v.grantor IS NOT NULL
		THEN pg_catalog.format('SET ROLE %s; REVOKE %s FROM PUBLIC; RESET ROLE', v.grantor::pg_catalog.regrole, v.privilege)
		ELSE pg_catalog.format('GRANT %s TO @role@%s', v.privilege,
							   CASE WHEN pg_catalog.bool_or(v.is_grantable) THEN ' WITH GRANT OPTION' END) END
FROM fact AS f, LATERAL (
	SELECT a.grantee, a.privilege_type, a.is_grantable,
		CASE a.grantee WHEN 0 THEN a.grantor END AS grantor,
		CASE a.grantee WHEN 0 THEN 'grants ' ELSE 'does not grant ' END AS problem,
		CASE f.kind
			WHEN 'table column' THEN pg_catalog.format('%s (%I) ON %s', a.privilege_type,
				(SELECT t.attname FROM pg_catalog.pg_attribute AS t
				 WHERE t.attrelid OPERATOR(pg_catalog.=) f.oid AND t.attnum OPERATOR(pg_catalog.=) f.attnum), f.oid::pg_catalog.regclass)
			ELSE pg_catalog.format('%s ON %s %s', a.privilege_type, CASE f.kind WHEN 'view' THEN 'TABLE' ELSE pg_catalog.upper(f.kind) END, f.name)
		END AS privilege
	FROM pg_catalog.aclexplode(f.acl) AS a
	WHERE a.grantee OPERATOR(pg_catalog.<>) a.grantor
) AS v
WHERE f.problem IS NULL
GROUP BY f.kind, f.name, v.problem, v.privilege_type, v.privilege, v.grantee, v.grantor
$$;
COMMENT ON FUNCTION syncstate.present_objects() IS 'What the schema syncstate has now, to be compared with installed_objects()';
REVOKE ALL ON FUNCTION syncstate.present_objects() FROM PUBLIC;

/*
 * The same as it is now: read from the catalogs, so that nothing stands twice; in
 * a function and not in a table, so that it stays whatever happens to rows.
 */
DO $$
BEGIN
	EXECUTE (
		SELECT pg_catalog.format('CREATE FUNCTION syncstate.installed_objects() RETURNS TABLE (kind text, name text, problem text, role oid, definition text, command text) LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS %L',
			'VALUES ' OPERATOR(pg_catalog.||) pg_catalog.string_agg(
				pg_catalog.format('(%L, %L, %L, %L::pg_catalog.oid, %L, %L)', p.kind, p.name, p.problem, p.role, p.definition, p.command),
				E',\n' ORDER BY p.kind, p.name, p.problem, p.role))
		FROM syncstate.present_objects() AS p
	);
END
$$;
COMMENT ON FUNCTION syncstate.installed_objects() IS 'What present_objects() returned when the extension was installed';
REVOKE ALL ON FUNCTION syncstate.installed_objects() FROM PUBLIC;

/*
 * Asks the catalogs and the statistics, and calls none of the functions that it
 * judges.
 */
CREATE FUNCTION syncstate.check_installation()
	RETURNS TABLE (object text, problem text, advice text)
	LANGUAGE sql STABLE
	SET search_path = pg_catalog, pg_temp
	AS $$
WITH present AS MATERIALIZED (SELECT * FROM syncstate.present_objects()),
-- but not what was about roles that are gone, nor queries as another version writes them
installed AS MATERIALIZED (
	SELECT i.kind, i.name, i.problem, i.role, i.definition,
		r.oid::pg_catalog.regrole::pg_catalog.text AS role_name,
		CASE WHEN i.role IS NULL THEN i.command
			ELSE pg_catalog.replace(i.command, '@role@', r.oid::pg_catalog.regrole::pg_catalog.text) END AS command
	FROM syncstate.installed_objects() AS i
		LEFT JOIN pg_catalog.pg_roles AS r ON r.oid OPERATOR(pg_catalog.=) i.role
	WHERE (i.role IS NULL OR i.role OPERATOR(pg_catalog.=) 0 OR r.oid IS NOT NULL)
		AND (i.problem OPERATOR(pg_catalog.=) 'has another query' AND NOT pg_catalog.starts_with(i.definition,
			pg_catalog.concat(pg_catalog.current_setting('server_version_num')::pg_catalog.int4 OPERATOR(pg_catalog./) 10000, ':'))) IS NOT TRUE
),
difference AS (
	SELECT i.*, p.kind IS NULL AS is_missing,
		pg_catalog.concat(i.kind, ' ', i.name) AS object,
		-- what makes it anew
		(SELECT pg_catalog.string_agg(a.command, '; ' ORDER BY a.problem NULLS FIRST, a.role) FROM installed AS a
		 WHERE a.kind OPERATOR(pg_catalog.=) i.kind AND a.name OPERATOR(pg_catalog.=) i.name
			AND (a.problem OPERATOR(pg_catalog.=) 'has another query') IS NOT TRUE) AS commands
	FROM installed AS i
		LEFT JOIN present AS p ON p.kind OPERATOR(pg_catalog.=) i.kind AND p.name OPERATOR(pg_catalog.=) i.name
			AND p.problem IS NOT DISTINCT FROM i.problem AND p.role IS NOT DISTINCT FROM i.role
	-- a role may have been granted more than at first
	WHERE (p.kind IS NULL OR p.definition OPERATOR(pg_catalog.<>) i.definition AND (i.role IS NULL OR i.definition OPERATOR(pg_catalog.<>) ''))
		AND (i.role OPERATOR(pg_catalog.=) 0) IS NOT TRUE
),
label AS (
	SELECT e.oid, e.enumlabel::pg_catalog.text AS label, e.enumsortorder OPERATOR(pg_catalog.>) 4::pg_catalog.float4 AS is_custom,
		EXISTS (SELECT FROM syncstate.custom_source AS c
				WHERE c.label OPERATOR(pg_catalog.=) e.enumlabel::pg_catalog.text) AS is_registered
	FROM pg_catalog.pg_enum AS e
	WHERE e.enumtypid OPERATOR(pg_catalog.=) 'syncstate.sync_source'::pg_catalog.regtype
),
state AS (
	SELECT c.oid, c.reloptions FROM pg_catalog.pg_class AS c
	WHERE c.oid OPERATOR(pg_catalog.=) 'syncstate.sync_state'::pg_catalog.regclass
),
clock AS (
	SELECT COALESCE(NULLIF(pg_catalog.current_setting('syncstate.clock', true), '')::pg_catalog.timestamptz, pg_catalog.now())
		OPERATOR(pg_catalog.-) '1 hour'::pg_catalog.interval AS long_ago
)

-- what is missing or changed
SELECT d.object, CASE WHEN d.is_missing THEN 'is missing' ELSE 'is not as installed' END AS problem,
	CASE
		WHEN d.kind OPERATOR(pg_catalog.=) ANY ('{schema,type,"table column"}') OR d.kind OPERATOR(pg_catalog.=) 'table' AND d.is_missing
			THEN 'No command brings it back: restore the database from a backup.'
		WHEN d.is_missing THEN d.commands
		WHEN d.kind OPERATOR(pg_catalog.=) ANY ('{table,function}') THEN d.command
		ELSE pg_catalog.concat(
			(SELECT pg_catalog.format('ALTER EXTENSION syncstate DROP %s %s; ', pg_catalog.upper(p.kind), p.name) FROM present AS p
			 WHERE p.kind OPERATOR(pg_catalog.=) d.kind AND p.name OPERATOR(pg_catalog.=) d.name
				AND p.problem OPERATOR(pg_catalog.=) 'is no member of the extension'),
			CASE d.kind
				WHEN 'table constraint' THEN pg_catalog.format('ALTER TABLE %s DROP CONSTRAINT %s',
					pg_catalog.split_part(d.name, ' on ', 2), pg_catalog.split_part(d.name, ' on ', 1))
				ELSE pg_catalog.format('DROP %s %s', pg_catalog.upper(d.kind), d.name) END,
			'; ', d.commands)
	END AS advice
FROM difference AS d WHERE d.problem IS NULL
UNION ALL
-- what is the matter with an object that is there
SELECT d.object,
	pg_catalog.concat_ws(' to ', d.problem, d.role_name),
	COALESCE(d.command, 'If it was renamed, rename it back with ALTER TYPE ... RENAME VALUE; else restore the database from a backup.')
FROM difference AS d
WHERE d.problem IS NOT NULL
	AND EXISTS (SELECT FROM present AS p
				WHERE p.kind OPERATOR(pg_catalog.=) d.kind AND p.name OPERATOR(pg_catalog.=) d.name AND p.problem IS NULL)
	-- making it anew sets that right as well
	AND (d.kind OPERATOR(pg_catalog.=) 'view' AND EXISTS (
		SELECT FROM difference AS o WHERE o.object OPERATOR(pg_catalog.=) d.object AND o.problem IS NULL)) IS NOT TRUE
UNION ALL
SELECT pg_catalog.concat(p.kind, ' ', p.name), pg_catalog.concat(p.problem, ' to PUBLIC'), p.command
FROM present AS p
WHERE p.role OPERATOR(pg_catalog.=) 0
	AND EXISTS (SELECT FROM installed AS i
				WHERE i.kind OPERATOR(pg_catalog.=) p.kind AND i.name OPERATOR(pg_catalog.=) p.name)
	AND NOT EXISTS (SELECT FROM installed AS i
					WHERE i.kind OPERATOR(pg_catalog.=) p.kind AND i.name OPERATOR(pg_catalog.=) p.name
						AND i.problem OPERATOR(pg_catalog.=) p.problem)

-- sources
UNION ALL
SELECT pg_catalog.concat('source ', s.label), s.problem, pg_catalog.format('SELECT syncstate.register_sync_source(%L)', s.label)
FROM (
	SELECT c.label, 'has no label in sync_source' AS problem FROM syncstate.custom_source AS c
	WHERE NOT EXISTS (SELECT FROM label AS l WHERE l.label OPERATOR(pg_catalog.=) c.label)
	UNION ALL
	SELECT l.label, 'is not in custom_source: a dump cannot be restored' FROM label AS l WHERE l.is_custom AND NOT l.is_registered
) AS s
UNION ALL
SELECT pg_catalog.concat('source ', l.label), 'has no sequence for rate_per_minute',
	pg_catalog.format('CREATE SEQUENCE syncstate.%1$I MINVALUE -9223372036854775808; ALTER EXTENSION syncstate ADD SEQUENCE syncstate.%1$I', q.name)
FROM label AS l, LATERAL (SELECT 'rate_' OPERATOR(pg_catalog.||) l.label) AS q (name)
WHERE l.is_registered AND pg_catalog.to_regclass(pg_catalog.format('syncstate.%I', q.name)) IS NULL
UNION ALL
SELECT pg_catalog.concat('source ', l.label), 'has no rows in sync_lane: many sessions claim slowly',
	pg_catalog.format('INSERT INTO syncstate.sync_lane (source, kind, lane) SELECT %L, k, l FROM generate_series(0, 2) AS k, generate_series(0, 1) AS l ON CONFLICT DO NOTHING', l.label)
FROM label AS l
WHERE l.is_custom OPERATOR(pg_catalog.=) l.is_registered
	AND (SELECT pg_catalog.count(*) FROM syncstate.sync_lane AS s
		 WHERE s.source OPERATOR(pg_catalog.=) l.label::pg_catalog.name) OPERATOR(pg_catalog.<) 6
UNION ALL
-- an enum is its label's OID, which is all that does not raise an error here
SELECT 'table syncstate.sync_state', 'has rows of a source whose label was deleted',
	'SET session_replication_role = replica; DELETE FROM syncstate.sync_state AS s WHERE NOT EXISTS (SELECT FROM pg_enum AS e WHERE e.enumtypid = ''syncstate.sync_source''::regtype AND hashoid(e.oid) = hashenum(s.source)); RESET session_replication_role'
FROM syncstate.sync_state AS s
WHERE NOT EXISTS (SELECT FROM label AS l WHERE pg_catalog.hashoid(l.oid) OPERATOR(pg_catalog.=) pg_catalog.hashenum(s.source))
HAVING pg_catalog.count(*) OPERATOR(pg_catalog.>) 0

-- what is in the way of the plain way of access.c
UNION ALL
SELECT w.object, 'makes writes slow: they must be SQL statements', w.advice
FROM state AS s, LATERAL (
	SELECT pg_catalog.concat('rule ', r.rulename, ' on syncstate.sync_state') AS object, 'Drop it: calls may fail under it.' AS advice
	FROM pg_catalog.pg_rewrite AS r WHERE r.ev_class OPERATOR(pg_catalog.=) s.oid
	UNION ALL
	SELECT pg_catalog.concat('trigger ', t.tgname, ' on syncstate.sync_state'),
		'Make it AFTER UPDATE FOR EACH ROW without transition tables, or accept the cost.'
	FROM pg_catalog.pg_trigger AS t
	-- bits of tgtype: 1 for each row, 2 before, 16 update
	WHERE t.tgrelid OPERATOR(pg_catalog.=) s.oid AND t.tgtype::pg_catalog.int4 OPERATOR(pg_catalog.&) 16 OPERATOR(pg_catalog.<>) 0
		AND (t.tgtype::pg_catalog.int4 OPERATOR(pg_catalog.&) 3 OPERATOR(pg_catalog.<>) 1
			 OR t.tgoldtable IS NOT NULL OR t.tgnewtable IS NOT NULL)
		AND t.tgfoid OPERATOR(pg_catalog.<>) COALESCE(pg_catalog.to_regproc('syncstate.guard')::pg_catalog.oid, 0)
	UNION ALL
	SELECT pg_catalog.concat('table column syncstate.sync_state.', a.attname), 'Compute it in a view, or accept the cost.'
	FROM pg_catalog.pg_attribute AS a
	WHERE a.attrelid OPERATOR(pg_catalog.=) s.oid AND a.attgenerated OPERATOR(pg_catalog.<>) '' AND NOT a.attisdropped
	UNION ALL
	SELECT pg_catalog.concat('table constraint ', c.conname, ' on syncstate.sync_state'), 'Drop it, or accept the cost.'
	FROM pg_catalog.pg_constraint AS c
	WHERE c.conrelid OPERATOR(pg_catalog.=) s.oid AND c.contype OPERATOR(pg_catalog.=) 'c'
		AND c.conname OPERATOR(pg_catalog.<>) 'sync_state_is_legal'
	UNION ALL
	SELECT pg_catalog.concat('policy ', p.polname, ' on syncstate.sync_state'), 'Drop it, or accept the cost.'
	FROM pg_catalog.pg_policy AS p
	WHERE p.polrelid OPERATOR(pg_catalog.=) s.oid AND NOT p.polpermissive
	UNION ALL
	SELECT 'library pgaudit', 'Do not load it, or accept the cost.'
	WHERE pg_catalog.current_setting('pgaudit.log', true) OPERATOR(pg_catalog.<>) ''
) AS w
UNION ALL
-- what is in the way of HOT updates
SELECT DISTINCT pg_catalog.concat('index ', i.indexrelid::pg_catalog.regclass),
	pg_catalog.format('makes writes slow: claims and heartbeats change column %s', a.attname), 'Drop it, or accept the cost.'
FROM state AS s
	JOIN pg_catalog.pg_index AS i ON i.indrelid OPERATOR(pg_catalog.=) s.oid
	JOIN pg_catalog.pg_depend AS d ON d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
		AND d.objid OPERATOR(pg_catalog.=) i.indexrelid AND d.refobjid OPERATOR(pg_catalog.=) s.oid
	JOIN pg_catalog.pg_attribute AS a ON a.attrelid OPERATOR(pg_catalog.=) s.oid AND a.attnum OPERATOR(pg_catalog.=) d.refobjsubid
WHERE a.attname OPERATOR(pg_catalog.=) ANY ('{status,lease,lease_expires_at,last_sync_at,page_token,progress_done,progress_total,failures,updated_at,failing_since,full_sync_id,syncs_started,lease_required,limited_until,run_requested_at}')
UNION ALL
SELECT 'table syncstate.sync_state', 'makes writes slow: its pages have no room for new versions',
	'ALTER TABLE syncstate.sync_state SET (fillfactor = 50)'
FROM state AS s
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_options_to_table(s.reloptions) AS o
				  WHERE o.option_name OPERATOR(pg_catalog.=) 'fillfactor' AND o.option_value::pg_catalog.int4 OPERATOR(pg_catalog.<) 100)

-- what keeps dead rows: an hour, or a million transactions where there is no time
UNION ALL
SELECT pg_catalog.format('session %s', a.pid), 'has an old transaction or snapshot: dead rows cannot be removed',
	pg_catalog.format('Let it commit, or end it: SELECT pg_terminate_backend(%s).', a.pid)
FROM pg_catalog.pg_stat_activity AS a, clock AS c
WHERE COALESCE(a.backend_xmin, a.backend_xid) IS NOT NULL
	AND (a.xact_start OPERATOR(pg_catalog.<) c.long_ago
		 OR a.xact_start IS NULL AND pg_catalog.age(a.backend_xmin) OPERATOR(pg_catalog.>) 1000000)
	AND (a.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()) IS NOT FALSE
	AND a.backend_type OPERATOR(pg_catalog.<>) 'autovacuum worker' AND a.pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid()
UNION ALL
SELECT pg_catalog.format('prepared transaction %L', x.gid), 'is old: dead rows cannot be removed',
	pg_catalog.format('Ask whoever prepared it which it is: COMMIT PREPARED %1$L or ROLLBACK PREPARED %1$L.', x.gid)
FROM pg_catalog.pg_prepared_xacts AS x, clock AS c
WHERE x.database OPERATOR(pg_catalog.=) pg_catalog.current_database() AND x.prepared OPERATOR(pg_catalog.<) c.long_ago
UNION ALL
SELECT pg_catalog.format('replication slot %s', r.slot_name), 'has an old xmin: dead rows cannot be removed',
	pg_catalog.format('Start its consumer, or drop it: SELECT pg_drop_replication_slot(%L).', r.slot_name)
FROM pg_catalog.pg_replication_slots AS r
WHERE pg_catalog.age(r.xmin) OPERATOR(pg_catalog.>) 1000000

-- whether autovacuum keeps up
UNION ALL
SELECT pg_catalog.concat('setting ', s.name), 'is off: nothing removes dead rows',
	pg_catalog.format('ALTER SYSTEM SET %s = on; SELECT pg_reload_conf()', s.name)
FROM pg_catalog.unnest('{autovacuum,track_counts}'::pg_catalog.text[]) AS s (name)
WHERE NOT pg_catalog.current_setting(s.name)::pg_catalog.bool
UNION ALL
SELECT pg_catalog.concat('table ', t.name), v.problem, v.advice
FROM (
	SELECT c.oid::pg_catalog.regclass AS name, a.n_dead_tup, a.vacuum_count, a.autovacuum_count,
		a.n_tup_upd OPERATOR(pg_catalog.+) a.n_tup_del OPERATOR(pg_catalog.-) a.n_tup_hot_upd AS written,
		COALESCE((o.options OPERATOR(pg_catalog.->>) 'autovacuum_enabled')::pg_catalog.bool, true) AS autovacuum,
		COALESCE(o.options OPERATOR(pg_catalog.->>) 'autovacuum_vacuum_threshold',
				 pg_catalog.current_setting('autovacuum_vacuum_threshold'))::pg_catalog.float8
			OPERATOR(pg_catalog.+) (GREATEST(c.reltuples::pg_catalog.float8, 0) OPERATOR(pg_catalog.*)
				COALESCE(o.options OPERATOR(pg_catalog.->>) 'autovacuum_vacuum_scale_factor',
						 pg_catalog.current_setting('autovacuum_vacuum_scale_factor'))::pg_catalog.float8) AS threshold
	FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_stat_all_tables AS a ON a.relid OPERATOR(pg_catalog.=) c.oid,
		LATERAL (SELECT pg_catalog.jsonb_object_agg(p.option_name, p.option_value)
				 FROM pg_catalog.pg_options_to_table(c.reloptions) AS p) AS o (options)
	WHERE c.relnamespace OPERATOR(pg_catalog.=) 'syncstate'::pg_catalog.regnamespace
) AS t, LATERAL (
	SELECT 'has autovacuum switched off' AS problem, pg_catalog.format('ALTER TABLE %s RESET (autovacuum_enabled)', t.name) AS advice
	WHERE NOT t.autovacuum
	UNION ALL
	SELECT 'has more than 10,000 dead rows, and five times what autovacuum waits for', pg_catalog.format('VACUUM %s', t.name)
	WHERE t.n_dead_tup OPERATOR(pg_catalog.>) 10000
		AND t.n_dead_tup OPERATOR(pg_catalog.>) (5 OPERATOR(pg_catalog.*) t.threshold)
	UNION ALL
	SELECT 'was never vacuumed, after more than 100,000 rows were changed or deleted', pg_catalog.format('VACUUM %s', t.name)
	WHERE t.written OPERATOR(pg_catalog.>) 100000 AND (t.vacuum_count OPERATOR(pg_catalog.+) t.autovacuum_count) OPERATOR(pg_catalog.=) 0
) AS v
ORDER BY 1, 2, 3
$$;
COMMENT ON FUNCTION syncstate.check_installation() IS 'Returns a row for each thing that is not as installed, or slows or bloats the tables, with what to do about it';
REVOKE ALL ON FUNCTION syncstate.check_installation() FROM PUBLIC;

GRANT EXECUTE ON FUNCTION syncstate.present_objects(), syncstate.installed_objects(),
	syncstate.check_installation() TO @extowner@ WITH GRANT OPTION;
