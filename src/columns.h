/*
 * columns.h: the columns of our tables, each written once
 *
 * The enums of column numbers, the structs, reading and writing, the checks
 * and each SQL text that names all columns are made from these lists.  To add
 * a column, add it here and to the install script, at the end of both.
 */
#ifndef SYNCSTATE_COLUMNS_H
#define SYNCSTATE_COLUMNS_H

/*
 * sync_state: COLUMN(name, kind, writer).
 *
 * The kind says how a column is read, written and checked: see state.c.
 *
 * The writer is
 *	KEY		nobody, after the row was made
 *	STATUS	update_sync_state() and us; the first that an UPDATE of ours sets
 *	CLIENT	update_sync_state() and us
 *	OURS	us alone
 *	MADE	the INSERT that made the row
 */
#define SYNC_KEY_COLUMNS(COLUMN) \
	COLUMN(user_id,					UUID,		KEY) \
	COLUMN(account,					NAME,		KEY) \
	COLUMN(source,					SOURCE,		KEY) \
	COLUMN(resource,				NAME,		KEY)

#define SYNC_DATA_COLUMNS(COLUMN) \
	COLUMN(status,					STATUS,		STATUS) \
	COLUMN(sync_token,				TOKEN,		CLIENT) \
	COLUMN(history_id,				HISTORY_ID,	CLIENT) \
	COLUMN(updated_min,				TIME,		CLIENT) \
	COLUMN(token_issued_at,			TIME,		CLIENT) \
	COLUMN(last_full_sync_at,		TIME,		CLIENT) \
	COLUMN(due_at,					TIME,		CLIENT) \
	COLUMN(requested_at,			TIME,		CLIENT) \
	COLUMN(parked_reason,			REASON,		CLIENT) \
	COLUMN(sync_interval,			INTERVAL,	CLIENT) \
	COLUMN(lease,					NUMBER,		OURS) \
	COLUMN(lease_expires_at,		TIME,		CLIENT) \
	COLUMN(last_sync_at,			TIME,		CLIENT) \
	COLUMN(last_successful_sync_at,	TIME,		CLIENT) \
	COLUMN(items_synced,			NUMBER,		CLIENT) \
	COLUMN(page_token,				TOKEN,		CLIENT) \
	COLUMN(progress_done,			COUNT,		CLIENT) \
	COLUMN(progress_total,			COUNT,		CLIENT) \
	COLUMN(failures,				INTEGER,	CLIENT) \
	COLUMN(token_losses,			INTEGER,	CLIENT) \
	COLUMN(error_message,			MESSAGE,	CLIENT) \
	COLUMN(created_at,				TIME,		MADE) \
	COLUMN(updated_at,				TIME,		OURS) \
	COLUMN(failing_since,			TIME,		OURS) \
	COLUMN(changes_seen,			AMOUNT,		OURS) \
	COLUMN(seconds_watched,			AMOUNT,		OURS) \
	COLUMN(full_sync_id,			COUNT,		OURS) \
	COLUMN(syncs_started,			TALLY,		OURS) \
	COLUMN(lease_required,			FLAG,		OURS) \
	COLUMN(limited_until,			TIME,		OURS) \
	COLUMN(run_requested_at,		TIME,		OURS) \
	COLUMN(troubled_at,				TIME,		OURS) \
	COLUMN(push_until,				TIME,		OURS)

#define SYNC_STATE_COLUMNS(COLUMN) \
	SYNC_KEY_COLUMNS(COLUMN) \
	SYNC_DATA_COLUMNS(COLUMN)

/* The labels of sync_status: LABEL(C name, SQL name). */
#define SYNC_STATUSES(LABEL) \
	LABEL(IDLE,			idle) \
	LABEL(SYNCING,		syncing) \
	LABEL(ERROR,		error) \
	LABEL(RATE_LIMITED,	rate_limited)

/*
 * sync_policy, but for its key: SETTING(name, kind, least, most, built-in).
 *
 * The kind says how a setting is read, written and checked: see policy.c.  A
 * kind that ends in OR_OFF is 0 where it is off, which is null in SQL.
 */
#define SYNC_POLICY_SETTINGS(SETTING) \
	SETTING(sync_interval,	DURATION,	MIN_DURATION, MAX_DURATION,	15 * USECS_PER_MINUTE) \
	SETTING(lease_time,		DURATION,	MIN_DURATION, MAX_LEASE_TIME, 10 * USECS_PER_MINUTE) \
	SETTING(retry_base,		DURATION,	MIN_DURATION, MAX_DURATION,	30 * USECS_PER_SEC) \
	SETTING(retry_cap,		DURATION,	MIN_DURATION, MAX_DURATION,	USECS_PER_HOUR) \
	SETTING(rate_limit_wait, DURATION,	MIN_DURATION, MAX_RETRY_AFTER, USECS_PER_MINUTE) \
	SETTING(max_failures,	COUNT,		1, PG_INT32_MAX,			30) \
	SETTING(park_after,		DURATION,	MIN_DURATION, MAX_DURATION,	7 * USECS_PER_DAY) \
	SETTING(token_ttl,		DURATION_OR_OFF, MIN_DURATION, MAX_DURATION, 0) \
	SETTING(token_ttl_from,	TTL_FROM,	0, 0,						TTL_FROM_TOKEN) \
	SETTING(jitter,			FRACTION,	0, 0.9,						0.1) \
	SETTING(paused_until,	PAUSE,		0, 0,						NO_TIME) \
	SETTING(daily_budget,	COUNT_OR_OFF, 1, PG_INT32_MAX,			0) \
	SETTING(min_interval,	DURATION,	MIN_DURATION, MAX_DURATION,	USECS_PER_MINUTE) \
	SETTING(max_interval,	DURATION,	MIN_DURATION, MAX_DURATION,	USECS_PER_DAY) \
	SETTING(rate_per_minute, COUNT_OR_OFF, 1, MAX_RATE_PER_MINUTE,	0) \
	SETTING(request_gap,	DURATION,	0, USECS_PER_DAY,			10 * USECS_PER_SEC) \
	SETTING(auth_failures,	COUNT,		1, PG_INT32_MAX,			1) \
	SETTING(resync_from,	TIME_OR_OFF, 0, 0,						NO_TIME) \
	SETTING(resync_spread,	DURATION,	0, MAX_DURATION,			USECS_PER_DAY) \
	SETTING(max_vanished,	FRACTION,	0, 1.0,						0.1) \
	SETTING(provider,		LABEL,		0, 0,						{{0}}) \
	SETTING(max_in_flight,	COUNT_OR_OFF, 1, PG_INT32_MAX,			0) \
	SETTING(keep_runs,		KEEP_RUNS,	0, 0,						KEEP_RUNS_NONE) \
	SETTING(keep_runs_for,	DURATION,	MIN_DURATION, MAX_DURATION,	7 * USECS_PER_DAY) \
	SETTING(push_renew_before, DURATION_OR_OFF, MIN_DURATION, MAX_DURATION, 0) \
	SETTING(push_interval,	DURATION,	MIN_DURATION, MAX_DURATION,	6 * USECS_PER_HOUR) \
	SETTING(push_silence,	DURATION,	MIN_DURATION, MAX_DURATION,	2 * USECS_PER_DAY)

/* sync_event, but for its id: COLUMN(name). */
#define SYNC_EVENT_COLUMNS(COLUMN) \
	COLUMN(at) \
	COLUMN(event) \
	COLUMN(user_id) \
	COLUMN(account) \
	COLUMN(source) \
	COLUMN(resource) \
	COLUMN(lease) \
	COLUMN(reason) \
	COLUMN(detail)

/* sync_run, but for its user_id: COLUMN(name). */
#define SYNC_RUN_COLUMNS(COLUMN) \
	COLUMN(account) \
	COLUMN(source) \
	COLUMN(resource) \
	COLUMN(lease) \
	COLUMN(started_at) \
	COLUMN(ended_at) \
	COLUMN(outcome) \
	COLUMN(was_full) \
	COLUMN(was_requested) \
	COLUMN(items) \
	COLUMN(error_message)

/* sync_channel, but for its id and its key: COLUMN(name, kind); the kind as above. */
#define SYNC_CHANNEL_COLUMNS(COLUMN) \
	COLUMN(state,			WORD) \
	COLUMN(channel_id,		TOKEN) \
	COLUMN(token_hash,		BYTES) \
	COLUMN(provider_ref,	TOKEN) \
	COLUMN(expires_at,		TIME) \
	COLUMN(renew_at,		TIME) \
	COLUMN(lease,			NUMBER) \
	COLUMN(lease_expires_at, TIME) \
	COLUMN(failures,		INTEGER) \
	COLUMN(error_message,	MESSAGE) \
	COLUMN(opened_at,		TIME) \
	COLUMN(last_push_at,	TIME) \
	COLUMN(message_number,	COUNT)

/* sync_budget, but for its key: COLUMN(name, C type, SQL type). */
#define SYNC_BUDGET_COLUMNS(COLUMN) \
	COLUMN(multiplier,		double,			Float8) \
	COLUMN(mean_rate,		double,			Float8) \
	COLUMN(correction,		double,			Float8) \
	COLUMN(expected,		double,			Float8) \
	COLUMN(rebalanced_at,	TimestampTz,	TimestampTz) \
	COLUMN(starts,			double,			Float8) \
	COLUMN(rows,			int64,			Int64)

/* How many columns name a row. */
enum
{
#define NUMBER(name, kind, writer) Key_sync_state_##name,
	SYNC_KEY_COLUMNS(NUMBER)
#undef NUMBER
	NUM_KEY_COLUMNS,
};

/* Column numbers. */
enum
{
	Anum_sync_state_none = 0,
#define NUMBER(name, kind, writer) Anum_sync_state_##name,
	SYNC_STATE_COLUMNS(NUMBER)
#undef NUMBER
	End_sync_state,
	Natts_sync_state = End_sync_state - 1,
};

enum
{
	Anum_sync_policy_source = 1,
#define NUMBER(name, kind, least, most, builtin) Anum_sync_policy_##name,
	SYNC_POLICY_SETTINGS(NUMBER)
#undef NUMBER
	End_sync_policy,
	Natts_sync_policy = End_sync_policy - 1,
};

enum
{
	Anum_sync_budget_source = 1,
#define NUMBER(name, c_type, sql_type) Anum_sync_budget_##name,
	SYNC_BUDGET_COLUMNS(NUMBER)
#undef NUMBER
	End_sync_budget,
	Natts_sync_budget = End_sync_budget - 1,
};

enum
{
	Anum_sync_event_id = 1,
#define NUMBER(name) Anum_sync_event_##name,
	SYNC_EVENT_COLUMNS(NUMBER)
#undef NUMBER
	End_sync_event,
	Natts_sync_event = End_sync_event - 1,
};

enum
{
	Anum_sync_channel_id = 1,
#define NUMBER(name, kind, writer) Anum_sync_channel_##name,
	SYNC_KEY_COLUMNS(NUMBER)
#undef NUMBER
#define NUMBER(name, kind) Anum_sync_channel_##name,
	SYNC_CHANNEL_COLUMNS(NUMBER)
#undef NUMBER
	End_sync_channel,
	Natts_sync_channel = End_sync_channel - 1,
};

enum
{
	Anum_sync_run_user_id = 1,
#define NUMBER(name) Anum_sync_run_##name,
	SYNC_RUN_COLUMNS(NUMBER)
#undef NUMBER
	End_sync_run,
	Natts_sync_run = End_sync_run - 1,
};

#endif
