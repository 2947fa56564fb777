/*
 * lifecycle.c: the SQL functions that change one row
 *
 * Each call reads its row, lets the transition change the copy in memory, and
 * writes the copy.  If somebody else has changed the row meanwhile, it locks
 * the row and does the same again.
 */
#include "postgres.h"

#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "access.h"
#include "args.h"
#include "due.h"
#include "guard.h"
#include "rate.h"
#include "schedule.h"
#include "source.h"
#include "spread.h"
#include "store.h"
#include "syncstate.h"
#include "transition.h"

/* So many items may vanish in a full sync, whatever part of all they are. */
#define SWEEP_FREELY	10

PG_FUNCTION_INFO_V1(syncstate_mark_sync_started);
PG_FUNCTION_INFO_V1(syncstate_mark_sync_completed);
PG_FUNCTION_INFO_V1(syncstate_mark_sync_failed);
PG_FUNCTION_INFO_V1(syncstate_mark_rate_limited);
PG_FUNCTION_INFO_V1(syncstate_clear_sync_token);
PG_FUNCTION_INFO_V1(syncstate_renew_sync_lease);
PG_FUNCTION_INFO_V1(syncstate_checkpoint_sync);
PG_FUNCTION_INFO_V1(syncstate_release_sync);
PG_FUNCTION_INFO_V1(syncstate_may_sweep);
PG_FUNCTION_INFO_V1(syncstate_update_sync_state);
PG_FUNCTION_INFO_V1(syncstate_connect_sync);
PG_FUNCTION_INFO_V1(syncstate_disconnect_sync);
PG_FUNCTION_INFO_V1(syncstate_pause_sync);
PG_FUNCTION_INFO_V1(syncstate_resume_sync);

/* Begins a report with the key of its row. */
static Report
read_key(FunctionCallInfo fcinfo, int resource, int account)
{
	Report		report = {.key = syncstate_arg_key(fcinfo, 0, 1, resource, account)};

	return report;
}

/*
 * Writes a row that was locked; returns it as it is now.  Row security may hide
 * a row from UPDATE: then there is no such row.
 */
static Datum
write_row(RowAccess *rows, const SyncState *row)
{
	HeapTuple	written = syncstate_rows_write(rows, row);

	if (written == NULL)
		syncstate_no_such_row(&row->key);
	return syncstate_row_datum(written);
}

Datum
syncstate_mark_sync_started(PG_FUNCTION_ARGS)
{
	Report		report = read_key(fcinfo, 3, 4);
	SyncPolicy	policy = syncstate_policy(report.key.source);
	RowAccess	rows;
	SyncState	row;
	TimestampTz now;
	Datum		result;

	report.lease_time = syncstate_arg_duration(fcinfo, 2, "lease_time",
											   MIN_DURATION, MAX_LEASE_TIME);
	SPI_connect();
	syncstate_rows_open(&rows);
	syncstate_rows_lock_or_make(&rows, &report.key, true, &row);
	now = syncstate_now();
	if (row.status == SYNC_SYNCING && row.lease_expires_at > now)
		ereport(ERROR,
				(errcode(ERRCODE_LEASE_LOST),
				 errmsg("sync state is held by another worker"),
				 errdetail("%s  Its lease expires at %s.",
						   syncstate_key_detail(&row.key),
						   timestamptz_to_str(row.lease_expires_at)),
				 errhint("Wait, or ask for another sync with request_sync().")));
	syncstate_apply(TRANSITION_START, &row, &report, &policy, now);
	result = write_row(&rows, &row);
	syncstate_rows_close(&rows);
	SPI_finish();

	/* never refused, but claims wait until it is made up for */
	if (policy.rate_per_minute != 0)
		syncstate_rate_count(&policy);
	return result;
}

/* Reads the argument "lease", which may be null. */
static void
read_lease(FunctionCallInfo fcinfo, int arg, Report *report)
{
	report->has_lease = !PG_ARGISNULL(arg);
	if (report->has_lease)
		report->lease = PG_GETARG_INT64(arg);
}

/*
 * A worker that lost its lease changes nothing.  The row was read as the caller,
 * who may therefore know what it is like.
 */
static void
lease_is_lost(const SyncState *row, int64 lease)
{
	ereport(ERROR,
			(errcode(ERRCODE_LEASE_LOST),
			 errmsg("lease on sync state is no longer held"),
			 row->status == SYNC_SYNCING ?
			 errdetail("%s  The call gave lease %lld; the row is held under lease %lld.",
					   syncstate_key_detail(&row->key), (long long) lease,
					   (long long) row->lease) :
			 errdetail("%s  The call gave lease %lld; the row is not held, its last lease was %lld.",
					   syncstate_key_detail(&row->key), (long long) lease,
					   (long long) row->lease),
			 errhint("Drop the work and claim again.")));
}

/* A run that a claim handed out is its worker's alone. */
static void
lease_is_missing(const SyncState *row)
{
	ereport(ERROR,
			(errcode(ERRCODE_LEASE_LOST),
			 errmsg("sync state is held under a lease that the call does not give"),
			 errdetail("%s  A claim handed the row out, and its lease has not ended.",
					   syncstate_key_detail(&row->key)),
			 errhint("Pass the lease of the row that claim_due_syncs() returned.")));
}

/* There is no place to remember in a sync that does not run. */
static void
nothing_runs(const SyncState *row)
{
	ereport(ERROR,
			(errcode(ERRCODE_LEASE_LOST),
			 errmsg("sync state has no sync in flight"),
			 errdetail("%s", syncstate_key_detail(&row->key)),
			 errhint("Begin one with claim_due_syncs() or mark_sync_started().")));
}

/*
 * Writes a row that is read but not locked, since the holder of a lease is
 * mostly alone with its row.  Returns false if the row has to be locked.
 */
static bool
call_without_lock(Transition transition, RowAccess *rows, const Report *report,
				  const SyncPolicy *policy, Datum *result)
{
	SyncState	row;
	HeapTuple	written;

	if (!report->has_lease)
		return false;
	syncstate_rows_look(rows);
	if (!syncstate_rows_read(rows, &report->key, &row))
		return false;

	/* a lease that was lost for good: no use in waiting for the row */
	if (syncstate_lease_is_stale(&row, report->lease))
		lease_is_lost(&row, report->lease);
	if (!syncstate_lease_is_held(&row, report->lease))
		return false;
	syncstate_apply(transition, &row, report, policy, syncstate_now());
	if (!syncstate_rows_try(rows, &row, &written))
		return false;
	*result = syncstate_row_datum(written);
	return true;
}

/* Whether a call makes a missing row. */
static bool
makes_row(Transition transition)
{
	return transition == TRANSITION_COMPLETE || transition == TRANSITION_FAIL ||
		transition == TRANSITION_RATE_LIMIT ||
		transition == TRANSITION_CLEAR_TOKEN || transition == TRANSITION_CONNECT;
}

/* Raises an error unless a call applies to its row, which is locked. */
static bool
check_call(Transition transition, const SyncState *row, const Report *report,
		   TimestampTz now)
{
	if (report->has_lease && !syncstate_lease_is_held(row, report->lease))
		lease_is_lost(row, report->lease);
	if (syncstate_lease_is_missing(transition, row, report, now))
		lease_is_missing(row);
	if (transition == TRANSITION_CHECKPOINT && row->status != SYNC_SYNCING)
		nothing_runs(row);
	return true;
}

static Datum
call_with_lock(Transition transition, RowAccess *rows, const Report *report,
			   const SyncPolicy *policy)
{
	SyncState	row;
	TimestampTz now;

	syncstate_rows_lock_or_make(rows, &report->key,
								makes_row(transition) && !report->has_lease,
								&row);
	now = syncstate_now();		/* after the wait for the lock, not before it */
	(void) check_call(transition, &row, report, now);
	syncstate_apply(transition, &row, report, policy, now);
	return write_row(rows, &row);
}

/* Applies a transition that may concern all rows of the account. */
static Datum
call_for_account(Transition transition, RowAccess *rows, const Report *report)
{
	AccountReport of_account = {.transition = transition, .report = report};
	SyncState	row;

	/* a lease that was lost for good: no use in waiting for the rows */
	syncstate_rows_look(rows);
	if (report->has_lease && syncstate_rows_read(rows, &report->key, &row) &&
		syncstate_lease_is_stale(&row, report->lease))
		lease_is_lost(&row, report->lease);
	(void) syncstate_spread(rows, &of_account, 1, check_call);
	if (of_account.result == NULL)
		syncstate_no_such_row(&report->key);
	return syncstate_row_datum(of_account.result);
}

/* Applies a transition to the row of a report; returns the row. */
static Datum
call(Transition transition, const Report *report)
{
	SyncPolicy	policy = syncstate_policy(report->key.source);
	RowAccess	rows;
	Datum		result;

	SPI_connect();
	syncstate_rows_open(&rows);
	if (syncstate_spreads(transition, report))
		result = call_for_account(transition, &rows, report);
	else if (!call_without_lock(transition, &rows, report, &policy, &result))
		result = call_with_lock(transition, &rows, report, &policy);
	syncstate_rows_close(&rows);
	if (transition == TRANSITION_RATE_LIMIT && report->scope == SCOPE_SOURCE)
	{
		TimestampTz now = syncstate_now();

		syncstate_pause_source(report->key.source,
							   now + syncstate_limit_wait(report, &policy), now);
	}
	SPI_finish();
	return result;
}

Datum
syncstate_mark_sync_completed(PG_FUNCTION_ARGS)
{
	Report		report = read_key(fcinfo, 7, 8);

	report.items_synced = syncstate_arg_count(fcinfo, 2, "items_synced", false);
	report.sync_token = syncstate_arg_text(fcinfo, 3, "sync_token",
										   MAX_TOKEN_BYTES);
	report.history_id = syncstate_arg_history_id(fcinfo, 4, "history_id");
	report.updated_min = syncstate_arg_time(fcinfo, 5, "updated_min");
	read_lease(fcinfo, 6, &report);
	return call(TRANSITION_COMPLETE, &report);
}

Datum
syncstate_mark_sync_failed(PG_FUNCTION_ARGS)
{
	Report		report = read_key(fcinfo, 5, 7);

	report.error_message = syncstate_arg_message(fcinfo, 2, "error_message");
	report.kind = syncstate_arg_word(fcinfo, 3, "kind", syncstate_failure_kinds,
									 NUM_FAILURE_KINDS);
	read_lease(fcinfo, 4, &report);
	report.scope = syncstate_arg_word(fcinfo, 6, "scope", syncstate_scopes,
									  NUM_FAILURE_SCOPES);
	return call(TRANSITION_FAIL, &report);
}

Datum
syncstate_mark_rate_limited(PG_FUNCTION_ARGS)
{
	Report		report = read_key(fcinfo, 5, 6);

	if (!PG_ARGISNULL(2))
		report.retry_after = syncstate_clamped_wait(PG_GETARG_INTERVAL_P(2));
	report.scope = syncstate_arg_word(fcinfo, 3, "scope", syncstate_scopes,
									  NUM_LIMIT_SCOPES);
	read_lease(fcinfo, 4, &report);
	return call(TRANSITION_RATE_LIMIT, &report);
}

Datum
syncstate_clear_sync_token(PG_FUNCTION_ARGS)
{
	Report		report = read_key(fcinfo, 3, 4);

	read_lease(fcinfo, 2, &report);
	return call(TRANSITION_CLEAR_TOKEN, &report);
}

Datum
syncstate_renew_sync_lease(PG_FUNCTION_ARGS)
{
	Report		report = read_key(fcinfo, 4, 5);

	report.lease = syncstate_arg_lease(fcinfo, 2);
	report.has_lease = true;
	report.lease_time = syncstate_arg_duration(fcinfo, 3, "lease_time",
											   MIN_DURATION, MAX_LEASE_TIME);
	return call(TRANSITION_RENEW, &report);
}

Datum
syncstate_checkpoint_sync(PG_FUNCTION_ARGS)
{
	Report		report = read_key(fcinfo, 6, 7);

	read_lease(fcinfo, 2, &report);
	report.page_token = syncstate_arg_text(fcinfo, 3, "page_token",
										   MAX_TOKEN_BYTES);
	report.progress_done = syncstate_arg_count(fcinfo, 4, "progress_done", true);
	report.progress_total = syncstate_arg_count(fcinfo, 5, "progress_total", true);
	return call(TRANSITION_CHECKPOINT, &report);
}

Datum
syncstate_release_sync(PG_FUNCTION_ARGS)
{
	Report		report = read_key(fcinfo, 3, 5);

	report.lease = syncstate_arg_lease(fcinfo, 2);
	report.has_lease = true;
	report.delay = syncstate_arg_duration(fcinfo, 4, "delay", 0,
										  MAX_RELEASE_DELAY);
	return call(TRANSITION_RELEASE, &report);
}

/*
 * A few items may always go: of a small calendar, one item is a large part.  An
 * event tells of what is withheld, so the call is refused where nobody may write.
 */
Datum
syncstate_may_sweep(PG_FUNCTION_ARGS)
{
	Report		report = read_key(fcinfo, 6, 7);
	int64		vanished = syncstate_arg_count(fcinfo, 3, "vanished", false);
	int64		total = syncstate_arg_count(fcinfo, 4, "total", false);
	bool		force = syncstate_arg_flag(fcinfo, 5, "force");
	SyncPolicy	policy = syncstate_policy(report.key.source);
	RowAccess	rows;
	SyncState	row;
	bool		may_sweep;

	report.lease = syncstate_arg_lease(fcinfo, 2);
	if (vanished > total)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("vanished must be at most total"),
				 errdetail("Got %lld and %lld.", (long long) vanished,
						   (long long) total)));

	PreventCommandIfReadOnly("may_sweep()");
	SPI_connect();
	syncstate_rows_open(&rows);
	syncstate_rows_look(&rows);
	if (!syncstate_rows_read(&rows, &report.key, &row))
		syncstate_no_such_row(&report.key);
	if (!syncstate_lease_is_held(&row, report.lease))
		lease_is_lost(&row, report.lease);
	may_sweep = force || vanished <= SWEEP_FREELY ||
		(double) vanished <= policy.max_vanished * (double) total;
	if (!may_sweep)
	{
		EventRow	event = {
			.event = EVENT_SWEEP_WITHHELD,
			.at = syncstate_now(),
			.key = &row.key,
			.lease = row.lease,
			.detail = cstring_to_text(psprintf("%lld of %lld items vanished",
											   (long long) vanished,
											   (long long) total)),
		};

		syncstate_news_event(&rows.news, &event);
	}
	syncstate_rows_close(&rows);
	SPI_finish();
	PG_RETURN_BOOL(may_sweep);
}

Datum
syncstate_connect_sync(PG_FUNCTION_ARGS)
{
	Report		report = read_key(fcinfo, 2, 3);
	Datum		result = call(TRANSITION_CONNECT, &report);
	SyncPolicy	policy = syncstate_policy(report.key.source);

	syncstate_wake_workers(&policy);
	return result;
}

Datum
syncstate_disconnect_sync(PG_FUNCTION_ARGS)
{
	SyncKey		key = syncstate_arg_key(fcinfo, 0, 1, 2, 3);
	bool		deleted;

	SPI_connect();
	deleted = syncstate_store_delete(&key);
	SPI_finish();
	PG_RETURN_BOOL(deleted);
}

Datum
syncstate_pause_sync(PG_FUNCTION_ARGS)
{
	Report		report = read_key(fcinfo, 2, 3);

	return call(TRANSITION_PAUSE, &report);
}

Datum
syncstate_resume_sync(PG_FUNCTION_ARGS)
{
	Report		report = read_key(fcinfo, 2, 3);
	Datum		result = call(TRANSITION_RESUME, &report);
	SyncPolicy	policy = syncstate_policy(report.key.source);

	syncstate_wake_workers(&policy);
	return result;
}

static bool
has_key(const Jsonb *object, const char *key)
{
	return getKeyJsonValueFromContainer(unconstify(JsonbContainer *, &object->root),
										key, strlen(key), NULL) != NULL;
}

/* A direct write: see syncstate_follow_write(). */
Datum
syncstate_update_sync_state(PG_FUNCTION_ARGS)
{
	static const JsonKey keys[] = {
#define KEY(name, kind, writer) KEY_##writer(name, kind)
#define KEY_KEY(name, kind)
#define KEY_STATUS(name, kind)	{#name, JSON_OF_##kind},
#define KEY_CLIENT(name, kind)	{#name, JSON_OF_##kind},
#define KEY_OURS(name, kind)
#define KEY_MADE(name, kind)
#define JSON_OF_STATUS			JSON_TEXT
#define JSON_OF_TOKEN			JSON_TEXT
#define JSON_OF_HISTORY_ID		JSON_NUMBER
#define JSON_OF_REASON			JSON_TEXT
#define JSON_OF_MESSAGE			JSON_TEXT
#define JSON_OF_TIME			JSON_TIME
#define JSON_OF_INTERVAL		JSON_INTERVAL
#define JSON_OF_NUMBER			JSON_NUMBER
#define JSON_OF_COUNT			JSON_NUMBER
#define JSON_OF_INTEGER			JSON_NUMBER
		SYNC_STATE_COLUMNS(KEY)
	};
	SyncKey		key = syncstate_arg_key(fcinfo, 0, 1, 3, 4);
	Jsonb	   *changes = syncstate_arg_object(fcinfo, 2, "changes");
	Written		written = {
		.status = has_key(changes, "status"),
		.items_synced = has_key(changes, "items_synced"),
		.sync_token = has_key(changes, "sync_token"),
		.history_id = has_key(changes, "history_id"),
		.updated_min = has_key(changes, "updated_min"),
	};
	RowAccess	rows;
	SyncState	old;
	SyncState	row;
	Datum		result;

	syncstate_check_object("changes", &changes->root, keys, lengthof(keys));

	SPI_connect();
	syncstate_rows_open(&rows);
	syncstate_rows_lock_or_make(&rows, &key, true, &old);
	syncstate_store_change(&old, JsonbPGetDatum(changes), &row);
	syncstate_state_check(&row);
	syncstate_guard_write(&old, &row, &written);
	result = write_row(&rows, &row);
	syncstate_rows_close(&rows);
	SPI_finish();
	return result;
}

