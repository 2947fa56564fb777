/*-------------------------------------------------------------------------
 *
 * lifecycle.c
 *		The state machine: one table of transitions, and the SQL functions
 *		that apply them
 *
 * Each call reads its row, lets the transition change the copy in memory, and
 * writes the copy, unless somebody has been at the row meanwhile: then it locks
 * the row and does the same again.  A transition sees the row, the arguments, the effective
 * policy and the time, runs no SQL and raises no error, so that a batch of
 * reports can apply the very same ones to many rows.
 *
 * The functions that start a sync are in claim.c, the transition is here.
 *
 * src/lifecycle.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "catalog/pg_collation.h"
#include "commands/async.h"
#include "common/pg_prng.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "syncstate.h"

#define RATE_LIMIT_MESSAGE	"API rate limit exceeded"
#define LEASE_EXPIRED_MESSAGE	"lease expired without a report"
#define CUT_MARK			" [cut]"

/* From this many cursor losses in a row on, the row waits; then it is parked. */
#define LOSSES_TO_WAIT		3
#define LOSSES_TO_PARK		10

typedef enum FailureKind
{
	FAILURE_TRANSIENT,
	FAILURE_PERMANENT,
	FAILURE_AUTH,
} FailureKind;

static const char *const failure_kinds[] = {
	[FAILURE_TRANSIENT] = "transient",
	[FAILURE_PERMANENT] = "permanent",
	[FAILURE_AUTH] = "auth",
};

typedef enum LimitScope
{
	SCOPE_USER,
	SCOPE_SOURCE,
} LimitScope;

static const char *const limit_scopes[] = {
	[SCOPE_USER] = "user",
	[SCOPE_SOURCE] = "source",
};

typedef enum ParkedReason
{
	PARKED_PAUSED,
	PARKED_AUTH,
	PARKED_FAILURES,
	PARKED_TOKEN_LOOP,
} ParkedReason;

static const char *const parked_reasons[] = {
	[PARKED_PAUSED] = "paused",
	[PARKED_AUTH] = "auth",
	[PARKED_FAILURES] = "failures",
	[PARKED_TOKEN_LOOP] = "token_loop",
};

/* The arguments of a call; each transition looks at its own. */
typedef struct Report
{
	int			position;		/* in a batch */
	int			transition;		/* in a batch: a TransitionId */
	int			source_rank;	/* in a batch: the label's place in the enum */
	SyncKey		key;
	bool		has_lease;
	int64		lease;
	int64		items_synced;	/* completed */
	text	   *sync_token;		/* completed; NULL keeps */
	text	   *history_id;		/* completed; NULL keeps */
	TimestampTz updated_min;	/* completed; NO_TIME keeps */
	text	   *error_message;	/* failed */
	FailureKind kind;			/* failed */
	int64		retry_after;	/* rate limited; 0 = the policy's wait */
	LimitScope	scope;			/* rate limited */
	int64		lease_time;		/* renew; 0 = the policy's */
	text	   *page_token;		/* checkpoint; NULL keeps */
	int64		progress_done;	/* checkpoint; NO_COUNT keeps */
	int64		progress_total; /* checkpoint; NO_COUNT keeps */
} Report;

/* A report of a batch and the row it was applied to, as it is now. */
typedef struct Applied
{
	const Report *report;
	HeapTuple	result;
} Applied;

typedef void (*TransitionFunction) (SyncState *row, const Report *report,
									const SyncPolicy *policy, TimestampTz now);

typedef struct Transition
{
	TransitionFunction apply;
	bool		makes_row;		/* a missing row is made, unless a lease is given */
	bool		wakes_workers;	/* the row may be due now: NOTIFY */
} Transition;

static void complete(SyncState *row, const Report *report,
					 const SyncPolicy *policy, TimestampTz now);
static void fail(SyncState *row, const Report *report,
				 const SyncPolicy *policy, TimestampTz now);
static void rate_limit(SyncState *row, const Report *report,
					   const SyncPolicy *policy, TimestampTz now);
static void clear_token(SyncState *row, const Report *report,
						const SyncPolicy *policy, TimestampTz now);
static void renew(SyncState *row, const Report *report,
				  const SyncPolicy *policy, TimestampTz now);
static void checkpoint(SyncState *row, const Report *report,
					   const SyncPolicy *policy, TimestampTz now);
static void release(SyncState *row, const Report *report,
					const SyncPolicy *policy, TimestampTz now);
static void connect_again(SyncState *row, const Report *report,
						  const SyncPolicy *policy, TimestampTz now);
static void pause_row(SyncState *row, const Report *report,
				  const SyncPolicy *policy, TimestampTz now);
static void resume_row(SyncState *row, const Report *report,
				   const SyncPolicy *policy, TimestampTz now);

/* The table of transitions; see README, "States". */
typedef enum TransitionId
{
	COMPLETE,
	FAIL,
	RATE_LIMIT,
	CLEAR_TOKEN,
	RENEW,
	CHECKPOINT,
	RELEASE,
	CONNECT,
	PAUSE,
	RESUME,
} TransitionId;

static const Transition transitions[] = {
	[COMPLETE] = {.apply = complete, .makes_row = true},
	[FAIL] = {.apply = fail, .makes_row = true},
	[RATE_LIMIT] = {.apply = rate_limit, .makes_row = true},
	[CLEAR_TOKEN] = {.apply = clear_token, .makes_row = true},
	[RENEW] = {.apply = renew},
	[CHECKPOINT] = {.apply = checkpoint},
	[RELEASE] = {.apply = release},
	[CONNECT] = {.apply = connect_again, .makes_row = true, .wakes_workers = true},
	[PAUSE] = {.apply = pause_row},
	[RESUME] = {.apply = resume_row, .wakes_workers = true},
};

static Report *read_reports(Jsonb *results, int *nreports);
static void read_report(JsonbContainer *object, Report *report);
static char *json_text(const char *key, const JsonbValue *value);
static pg_uuid_t read_uuid(const char *word);
static int	hex_value(char c);
static text *limited_text(const char *key, const char *string, int max_bytes);
static bool apply_one_of(RowAccess *rows, const Report **reports, int nreports,
						 TimestampTz *now, Applied *applied);
static const Report *held_report(const SyncState *row, const Report **reports,
								 int nreports);
static void report_context(void *arg);
static int	compare_reports(const void *a, const void *b);
static int	compare_applied(const void *a, const void *b);
static void limit_sources(const Applied *applied, int napplied,
						  TimestampTz now);
static bool lease_is_held(const SyncState *row, int64 lease);
static void report_lease(FunctionCallInfo fcinfo, int arg, Report *report);
static Datum apply(TransitionId id, const Report *report);
static int64 clamped_wait(const Interval *retry_after);
static int64 limit_wait(const Report *report, const SyncPolicy *policy);
static void check_row(SyncState *row);
static void park(SyncState *row, ParkedReason reason);
static void check_lease(const SyncState *row, int64 lease);
static int	compare_history_ids(const text *a, const text *b);
static void count_failure(SyncState *row, TimestampTz now);
static void end_run(SyncState *row, SyncStatus status, text *error_message);
static void wait_after_failure(SyncState *row, const SyncPolicy *policy,
							   int32 n, TimestampTz now);
static text *cut_message(text *message);

PG_FUNCTION_INFO_V1(syncstate_mark_sync_completed);
PG_FUNCTION_INFO_V1(syncstate_mark_sync_failed);
PG_FUNCTION_INFO_V1(syncstate_mark_rate_limited);
PG_FUNCTION_INFO_V1(syncstate_clear_sync_token);
PG_FUNCTION_INFO_V1(syncstate_renew_sync_lease);
PG_FUNCTION_INFO_V1(syncstate_checkpoint_sync);
PG_FUNCTION_INFO_V1(syncstate_release_sync);
PG_FUNCTION_INFO_V1(syncstate_report_syncs);
PG_FUNCTION_INFO_V1(syncstate_update_sync_state);
PG_FUNCTION_INFO_V1(syncstate_connect_sync);
PG_FUNCTION_INFO_V1(syncstate_disconnect_sync);
PG_FUNCTION_INFO_V1(syncstate_pause_sync);
PG_FUNCTION_INFO_V1(syncstate_resume_sync);
PG_FUNCTION_INFO_V1(syncstate_request_sync);

/*
 * syncstate_mark_sync_completed(user_id uuid, source sync_source,
 *		items_synced int8, sync_token text, history_id text,
 *		updated_min timestamptz, lease int8, resource text) -> sync_state
 *
 * Reports that a sync completed, with its new cursor.
 *
 *	items_synced	items that the sync found; 0 or more
 *	sync_token		new cursor, at most 64 kB; null or '' keeps the old one
 *	history_id		new cursor, 0 to 2^64 - 1; null or '' keeps; never moves back
 *	updated_min		new cursor, finite; null keeps; never moves back
 *	lease			the claim's number; null: whoever holds the row
 *
 * Errors: 22023 for a bad argument; PT409 if the lease is lost; PT404 if a
 *		   lease is given and there is no such row.
 * Formula: due_at = greatest(last_sync_at + interval, now + interval / 10), the
 *		   interval shortened by jitter; see syncstate_next_due().
 */
Datum
syncstate_mark_sync_completed(PG_FUNCTION_ARGS)
{
	Report		report = {.key = syncstate_arg_key(fcinfo, 0, 1, 7)};

	report.items_synced = syncstate_arg_count(fcinfo, 2, "items_synced", false);
	report.sync_token = syncstate_arg_text(fcinfo, 3, "sync_token", MAX_TOKEN_BYTES);
	report.history_id = syncstate_arg_text(fcinfo, 4, "history_id", MAX_TOKEN_BYTES);
	if (report.history_id != NULL)
		report.history_id = syncstate_tidy_history_id(report.history_id);
	if (report.history_id != NULL)
		syncstate_check_history_id("history_id", report.history_id);
	report.updated_min = syncstate_arg_time(fcinfo, 5, "updated_min");
	report_lease(fcinfo, 6, &report);
	return apply(COMPLETE, &report);
}

/*
 * syncstate_mark_sync_failed(user_id uuid, source sync_source,
 *		error_message text, kind text, lease int8, resource text) -> sync_state
 *
 * Reports that a sync failed, and waits, or parks the row where waiting is no
 * use.
 *
 *	error_message	kept for people to read; cut at 8 kB
 *	kind			'transient': try again by backoff; 'permanent': try again
 *					after retry_cap; 'auth': park until reconnected
 *	lease			the claim's number; null: whoever holds the row
 *
 * Errors: 22023 for a bad argument; PT409 if the lease is lost; PT404 if a
 *		   lease is given and there is no such row.
 * Formula: see syncstate_backoff().
 */
Datum
syncstate_mark_sync_failed(PG_FUNCTION_ARGS)
{
	Report		report = {.key = syncstate_arg_key(fcinfo, 0, 1, 5)};

	if (PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("error_message must not be null")));
	report.error_message = cut_message(PG_GETARG_TEXT_PP(2));
	report.kind = syncstate_arg_word(fcinfo, 3, "kind", failure_kinds,
									 lengthof(failure_kinds));
	report_lease(fcinfo, 4, &report);
	return apply(FAIL, &report);
}

/*
 * syncstate_mark_rate_limited(user_id uuid, source sync_source,
 *		retry_after interval, scope text, lease int8, resource text)
 *		-> sync_state
 *
 * Reports that the provider's rate limit was hit, and waits it out.
 *
 *	retry_after	how long the provider said to wait; clamped to 1 second to 30
 *				days; null: the policy's rate_limit_wait
 *	scope		'user': the limit is this row's; 'source': it holds for every
 *				row of the source
 *	lease		the claim's number; null: whoever holds the row
 *
 * Errors: 22023 for a bad argument; PT409 if the lease is lost; PT404 if a
 *		   lease is given and there is no such row.
 */
Datum
syncstate_mark_rate_limited(PG_FUNCTION_ARGS)
{
	Report		report = {.key = syncstate_arg_key(fcinfo, 0, 1, 5)};

	if (!PG_ARGISNULL(2))
		report.retry_after = clamped_wait(PG_GETARG_INTERVAL_P(2));
	report.scope = syncstate_arg_word(fcinfo, 3, "scope", limit_scopes,
									  lengthof(limit_scopes));
	report_lease(fcinfo, 4, &report);
	return apply(RATE_LIMIT, &report);
}

/*
 * syncstate_clear_sync_token(user_id uuid, source sync_source, lease int8,
 *		resource text) -> sync_state
 *
 * Reports that the provider has forgotten the cursor: a full sync is next.
 *
 *	lease	the claim's number: the run goes on, as a full sync; null: a run in
 *			flight is revoked, and the row is due at once
 *
 * After the 3rd loss in a row the run ends and the row waits by backoff, after
 * the 10th it is parked.
 *
 * Errors: 22023 for a bad argument; PT409 if the lease is lost; PT404 if a
 *		   lease is given and there is no such row.
 */
Datum
syncstate_clear_sync_token(PG_FUNCTION_ARGS)
{
	Report		report = {.key = syncstate_arg_key(fcinfo, 0, 1, 3)};

	report_lease(fcinfo, 2, &report);
	return apply(CLEAR_TOKEN, &report);
}

/*
 * syncstate_renew_sync_lease(user_id uuid, source sync_source, lease int8,
 *		lease_time interval, resource text) -> sync_state
 *
 * Renews the lease of a sync in flight.
 *
 *	lease		the claim's number
 *	lease_time	1 second to 1 day from now; null: the policy's
 *
 * Errors: 22023 for a bad argument; PT409 if the lease is lost; PT404 if there
 *		   is no such row.
 */
Datum
syncstate_renew_sync_lease(PG_FUNCTION_ARGS)
{
	Report		report = {.key = syncstate_arg_key(fcinfo, 0, 1, 4)};

	report.lease = syncstate_arg_lease(fcinfo, 2);
	report.has_lease = true;
	report.lease_time = syncstate_arg_duration(fcinfo, 3, "lease_time",
											   MIN_DURATION, MAX_LEASE_TIME);
	return apply(RENEW, &report);
}

/*
 * syncstate_checkpoint_sync(user_id uuid, source sync_source, lease int8,
 *		page_token text, progress_done int8, progress_total int8,
 *		resource text) -> sync_state
 *
 * Remembers where a long sync stands, and renews its lease.
 *
 *	lease			the claim's number
 *	page_token		where to go on, at most 64 kB; null keeps
 *	progress_done	items done; 0 or more; null keeps
 *	progress_total	items expected; 0 or more; null keeps
 *
 * Errors: 22023 for a bad argument; PT409 if the lease is lost; PT404 if there
 *		   is no such row.
 */
Datum
syncstate_checkpoint_sync(PG_FUNCTION_ARGS)
{
	Report		report = {.key = syncstate_arg_key(fcinfo, 0, 1, 6)};

	report.lease = syncstate_arg_lease(fcinfo, 2);
	report.has_lease = true;
	report.page_token = syncstate_arg_text(fcinfo, 3, "page_token",
										   MAX_TOKEN_BYTES);
	report.progress_done = syncstate_arg_count(fcinfo, 4, "progress_done", true);
	report.progress_total = syncstate_arg_count(fcinfo, 5, "progress_total", true);
	return apply(CHECKPOINT, &report);
}

/*
 * syncstate_release_sync(user_id uuid, source sync_source, lease int8,
 *		resource text) -> sync_state
 *
 * Gives a claimed row back undone; nothing is counted.
 *
 *	lease	the claim's number
 *
 * Errors: 22023 for a bad argument; PT409 if the lease is lost; PT404 if there
 *		   is no such row.
 */
Datum
syncstate_release_sync(PG_FUNCTION_ARGS)
{
	Report		report = {.key = syncstate_arg_key(fcinfo, 0, 1, 3)};

	report.lease = syncstate_arg_lease(fcinfo, 2);
	report.has_lease = true;
	return apply(RELEASE, &report);
}

/*
 * syncstate_report_syncs(results jsonb) -> setof sync_state
 *
 * Reports what became of many syncs in one call.
 *
 *	results	an array of at most 10000 objects, each with user_id, source, lease,
 *			resource (default ''), outcome ('completed', 'failed',
 *			'rate_limited' or 'released'), and the arguments of that outcome's
 *			function by their names
 *
 * Returns the rows to which a report was applied, in the order of the array.  A
 * report whose lease is lost or whose row is gone is left out, so that the same
 * report given twice is applied once.
 *
 * Errors: 22023 for a bad argument, 22P02, 22007, 22008 or 22003 for a
 *		   malformed value: then nothing is applied.
 */
Datum
syncstate_report_syncs(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Report	   *reports;
	const Report **sorted;
	int			nreports;
	RowAccess	rows;
	Applied    *applied;
	int			napplied = 0;
	TimestampTz now;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("results must not be null")));
	reports = read_reports(PG_GETARG_JSONB_P(0), &nreports);
	InitMaterializedSRF(fcinfo, 0);
	if (nreports == 0)
		return (Datum) 0;

	SPI_connect();
	applied = palloc(nreports * sizeof(Applied));
	syncstate_rows_open(&rows);
	syncstate_rows_look(&rows);
	now = syncstate_now();

	/* each row once, in the order in which every batch locks */
	sorted = palloc(nreports * sizeof(Report *));
	for (int i = 0; i < nreports; i++)
		sorted[i] = &reports[i];
	qsort(sorted, nreports, sizeof(Report *), compare_reports);
	for (int first = 0, end; first < nreports; first = end)
	{
		for (end = first + 1; end < nreports; end++)
		{
			if (!syncstate_same_key(&sorted[end]->key, &sorted[first]->key))
				break;
		}
		if (apply_one_of(&rows, &sorted[first], end - first, &now,
						 &applied[napplied]))
			napplied++;
	}
	syncstate_rows_close(&rows);

	qsort(applied, napplied, sizeof(Applied), compare_applied);
	for (int i = 0; i < napplied; i++)
		tuplestore_puttuple(rsinfo->setResult, applied[i].result);
	limit_sources(applied, napplied, now);
	SPI_finish();
	return (Datum) 0;
}

/*
 * syncstate_connect_sync(user_id uuid, source sync_source, resource text)
 *		-> sync_state
 *
 * Starts or takes up again the syncing of an account: makes the row if it is
 * missing, un-parks it, forgets failures, and requests a sync.
 *
 * Errors: 22023 for a bad argument.
 */
Datum
syncstate_connect_sync(PG_FUNCTION_ARGS)
{
	Report		report = {.key = syncstate_arg_key(fcinfo, 0, 1, 2)};

	return apply(CONNECT, &report);
}

/*
 * syncstate_disconnect_sync(user_id uuid, source sync_source, resource text)
 *		-> boolean
 *
 * Ends the syncing of an account: deletes the row; false if there was none.
 *
 * Errors: 22023 for a bad argument.
 */
Datum
syncstate_disconnect_sync(PG_FUNCTION_ARGS)
{
	SyncKey		key = syncstate_arg_key(fcinfo, 0, 1, 2);
	bool		deleted;

	SPI_connect();
	deleted = syncstate_store_delete(&key);
	SPI_finish();
	PG_RETURN_BOOL(deleted);
}

/*
 * syncstate_pause_sync(user_id uuid, source sync_source, resource text)
 *		-> sync_state
 *
 * Parks a row until it is resumed; a sync in flight may finish.
 *
 * Errors: 22023 for a bad argument; PT404 if there is no such row.
 */
Datum
syncstate_pause_sync(PG_FUNCTION_ARGS)
{
	Report		report = {.key = syncstate_arg_key(fcinfo, 0, 1, 2)};

	return apply(PAUSE, &report);
}

/*
 * syncstate_resume_sync(user_id uuid, source sync_source, resource text)
 *		-> sync_state
 *
 * Un-parks a row, which is due at once, and forgets failures.
 *
 * Errors: 22023 for a bad argument; PT404 if there is no such row.
 */
Datum
syncstate_resume_sync(PG_FUNCTION_ARGS)
{
	Report		report = {.key = syncstate_arg_key(fcinfo, 0, 1, 2)};

	return apply(RESUME, &report);
}

/*
 * syncstate_request_sync(user_id uuid, source sync_source, resource text)
 *		-> boolean
 *
 * Asks for a sync now; tells whether one will come, which it will not for a
 * parked row.
 *
 * Errors: 22023 for a bad argument; PT404 if there is no such row, or it is not
 *		   the caller's.
 */
Datum
syncstate_request_sync(PG_FUNCTION_ARGS)
{
	SyncKey		key = syncstate_arg_key(fcinfo, 0, 1, 2);
	SyncPolicy	policy = *syncstate_policy(key.source);
	bool		comes;

	SPI_connect();
	if (syncstate_store_request(&key, syncstate_now(), &comes))
		syncstate_wake_workers(&policy);
	SPI_finish();
	PG_RETURN_BOOL(comes);
}

/*
 * syncstate_update_sync_state(user_id uuid, source sync_source, changes jsonb,
 *		resource text) -> sync_state
 *
 * Changes columns of a row as a client that keeps its state by hand would:
 * keys present change, null clears, keys absent stay.
 *
 *	changes	a JSON object; its keys are columns, but not those of the key, nor
 *			lease, failing_since, created_at or updated_at
 *
 * A missing row is made.  What follows from a change (a lease with status
 * 'syncing', a due time at its end) follows as for a direct write: guard.c.
 *
 * Errors: 22023 for a bad argument; 22P02, 22007 or 22008 for a malformed value.
 */
Datum
syncstate_update_sync_state(PG_FUNCTION_ARGS)
{
	static const char *const keys[] = {
		"status", "sync_token", "history_id", "updated_min",
		"token_issued_at", "last_full_sync_at", "due_at", "requested_at",
		"parked_reason", "sync_interval", "lease_expires_at", "last_sync_at",
		"last_successful_sync_at", "items_synced", "page_token",
		"progress_done", "progress_total", "failures", "token_losses",
		"error_message",
	};
	SyncKey		key = syncstate_arg_key(fcinfo, 0, 1, 3);
	Jsonb	   *changes = syncstate_arg_object(fcinfo, 2, "changes");
	RowAccess	rows;
	SyncState	old;
	SyncState	row;
	Datum		result;

	syncstate_check_keys("changes", &changes->root, keys, lengthof(keys));

	SPI_connect();
	syncstate_rows_open(&rows);
	syncstate_lock_row(&rows, &key, true, &old);
	syncstate_store_change(&old, JsonbPGetDatum(changes), &row);
	check_row(&row);
	syncstate_guard_update(&old, &row,
						   getKeyJsonValueFromContainer(&changes->root, "status",
														strlen("status"), NULL) != NULL,
						   syncstate_now());
	result = syncstate_write_row(&rows, &row);
	syncstate_rows_close(&rows);
	SPI_finish();
	return result;
}

/* -------------------------------------------------------------- mechanics */

/* Reads a batch of reports; an error names the report. */
static Report *
read_reports(Jsonb *results, int *nreports)
{
	Report	   *reports;
	int			n = 0;
	JsonbIterator *it;
	JsonbValue	value;
	JsonbIteratorToken token;
	ErrorContextCallback context;

	if (!JB_ROOT_IS_ARRAY(results) || JB_ROOT_IS_SCALAR(results))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("results must be a JSON array")));
	if (JB_ROOT_COUNT(results) > MAX_BATCH_ROWS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("results must have at most %d reports", MAX_BATCH_ROWS),
				 errdetail("Got %d.", JB_ROOT_COUNT(results))));
	reports = palloc0(Max(JB_ROOT_COUNT(results), 1) * sizeof(Report));

	context.callback = report_context;
	context.arg = &n;
	context.previous = error_context_stack;
	error_context_stack = &context;

	it = JsonbIteratorInit(&results->root);
	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		if (token != WJB_ELEM)
			continue;
		if (value.type != jbvBinary ||
			!JsonContainerIsObject(value.val.binary.data))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("a report must be a JSON object")));
		read_report(value.val.binary.data, &reports[n]);
		reports[n].position = n;
		n++;
	}

	error_context_stack = context.previous;
	*nreports = n;
	return reports;
}

/* Reads one report, with the checks of the single calls. */
static void
read_report(JsonbContainer *object, Report *report)
{
	enum
	{
		USER_ID, SOURCE, RESOURCE, LEASE, OUTCOME, ITEMS_SYNCED, SYNC_TOKEN,
		HISTORY_ID, UPDATED_MIN, ERROR_MESSAGE, KIND, RETRY_AFTER, SCOPE,
		NUM_KEYS,
	};
	static const char *const keys[NUM_KEYS] = {
		[USER_ID] = "user_id",
		[SOURCE] = "source",
		[RESOURCE] = "resource",
		[LEASE] = "lease",
		[OUTCOME] = "outcome",
		[ITEMS_SYNCED] = "items_synced",
		[SYNC_TOKEN] = "sync_token",
		[HISTORY_ID] = "history_id",
		[UPDATED_MIN] = "updated_min",
		[ERROR_MESSAGE] = "error_message",
		[KIND] = "kind",
		[RETRY_AFTER] = "retry_after",
		[SCOPE] = "scope",
	};
	enum
	{
		COMPLETED, FAILED, RATE_LIMITED, RELEASED,
	};
	static const char *const outcomes[] = {
		[COMPLETED] = "completed",
		[FAILED] = "failed",
		[RATE_LIMITED] = "rate_limited",
		[RELEASED] = "released",
	};

	/* the keys up to "outcome" belong to all, these to an outcome each */
	static const struct
	{
		TransitionId transition;
		int			first;
		int			end;
	}			arguments[] = {
		[COMPLETED] = {COMPLETE, ITEMS_SYNCED, UPDATED_MIN + 1},
		[FAILED] = {FAIL, ERROR_MESSAGE, KIND + 1},
		[RATE_LIMITED] = {RATE_LIMIT, RETRY_AFTER, SCOPE + 1},
		[RELEASED] = {RELEASE, NUM_KEYS, NUM_KEYS},
	};
	static const int required[] = {USER_ID, SOURCE, LEASE, OUTCOME};
	JsonbIterator *it = JsonbIteratorInit(object);
	JsonbIteratorToken token;
	JsonbValue	value;
	const char *known[NUM_KEYS];
	int			nknown = 0;
	bool		present[NUM_KEYS] = {false};
	char	   *words[NUM_KEYS] = {NULL};	/* NULL: null or absent */
	bool		all_known = true;
	int			key = NUM_KEYS;
	const SyncPolicy *policies;
	int			npolicies;
	int			outcome;

	/* one pass over the object, in whatever order it keeps its keys */
	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
		{
			for (key = 0; key < NUM_KEYS; key++)
			{
				if (strlen(keys[key]) == (size_t) value.val.string.len &&
					memcmp(keys[key], value.val.string.val,
						   value.val.string.len) == 0)
					break;
			}
			all_known = all_known && key < NUM_KEYS;
		}
		else if (token == WJB_VALUE && key < NUM_KEYS)
		{
			present[key] = true;
			words[key] = json_text(keys[key], &value);
		}
	}

	for (size_t i = 0; i < lengthof(required); i++)
	{
		if (words[required[i]] == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("%s must not be null", keys[required[i]])));
	}
	outcome = syncstate_check_word(keys[OUTCOME], words[OUTCOME],
								   outcomes, lengthof(outcomes));
	for (key = 0; key < NUM_KEYS; key++)
	{
		if (key <= OUTCOME || (key >= arguments[outcome].first &&
							   key < arguments[outcome].end))
			known[nknown++] = keys[key];
		else
			all_known = all_known && !present[key];
	}
	if (!all_known)
		syncstate_check_keys("report", object, known, nknown);

	report->transition = arguments[outcome].transition;
	report->key.user_id = read_uuid(words[USER_ID]);
	report->key.source =
		DatumGetObjectId(DirectFunctionCall2(enum_in,
											 CStringGetDatum(words[SOURCE]),
											 ObjectIdGetDatum(syncstate_store_ids()->source_type)));
	policies = syncstate_policies(&npolicies);
	while (report->source_rank < npolicies &&
		   policies[report->source_rank].source != report->key.source)
		report->source_rank++;
	report->key.resource = limited_text(keys[RESOURCE], words[RESOURCE],
										MAX_RESOURCE_BYTES);
	if (report->key.resource == NULL)
		report->key.resource = cstring_to_text("");
	report->has_lease = true;
	report->lease =
		DatumGetInt64(DirectFunctionCall1(int8in, CStringGetDatum(words[LEASE])));

	switch (outcome)
	{
		case COMPLETED:
			if (words[ITEMS_SYNCED] != NULL)
				report->items_synced =
					DatumGetInt64(DirectFunctionCall1(int8in,
													  CStringGetDatum(words[ITEMS_SYNCED])));
			syncstate_check_count(keys[ITEMS_SYNCED], report->items_synced);
			report->sync_token = limited_text(keys[SYNC_TOKEN],
											  words[SYNC_TOKEN],
											  MAX_TOKEN_BYTES);
			report->history_id = limited_text(keys[HISTORY_ID],
											  words[HISTORY_ID],
											  MAX_TOKEN_BYTES);
			if (report->history_id != NULL)
				report->history_id = syncstate_tidy_history_id(report->history_id);
			if (report->history_id != NULL)
				syncstate_check_history_id(keys[HISTORY_ID], report->history_id);
			report->updated_min = NO_TIME;
			if (words[UPDATED_MIN] != NULL)
			{
				report->updated_min =
					DatumGetTimestampTz(DirectFunctionCall3(timestamptz_in,
															CStringGetDatum(words[UPDATED_MIN]),
															ObjectIdGetDatum(InvalidOid),
															Int32GetDatum(-1)));
				syncstate_check_time(keys[UPDATED_MIN], report->updated_min);
			}
			break;
		case FAILED:
			if (words[ERROR_MESSAGE] == NULL)
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("%s must not be null", keys[ERROR_MESSAGE])));
			report->error_message = cut_message(cstring_to_text(words[ERROR_MESSAGE]));
			if (words[KIND] != NULL)
				report->kind = syncstate_check_word(keys[KIND], words[KIND],
													failure_kinds,
													lengthof(failure_kinds));
			break;
		case RATE_LIMITED:
			if (words[RETRY_AFTER] != NULL)
				report->retry_after =
					clamped_wait(DatumGetIntervalP(DirectFunctionCall3(interval_in,
																	   CStringGetDatum(words[RETRY_AFTER]),
																	   ObjectIdGetDatum(InvalidOid),
																	   Int32GetDatum(-1))));
			if (words[SCOPE] != NULL)
				report->scope = syncstate_check_word(keys[SCOPE], words[SCOPE],
													 limit_scopes,
													 lengthof(limit_scopes));
			break;
	}
}

/* The text of a JSON string or number; NULL if null. */
static char *
json_text(const char *key, const JsonbValue *value)
{
	if (value->type == jbvNull)
		return NULL;
	if (value->type == jbvString)
		return pnstrdup(value->val.string.val, value->val.string.len);
	if (value->type != jbvNumeric)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be a JSON string or number", key)));
	return DatumGetCString(DirectFunctionCall1(numeric_out,
											   NumericGetDatum(value->val.numeric)));
}

/*
 * A uuid.  The spelling that all libraries use is read here, since uuid_in()
 * calls strtoul() for each byte; any other, and what is none, is left to it.
 */
static pg_uuid_t
read_uuid(const char *word)
{
	pg_uuid_t	uuid;
	const char *c = word;
	int			i;

	for (i = 0; i < UUID_LEN; i++)
	{
		int			high;
		int			low;

		if ((i == 4 || i == 6 || i == 8 || i == 10) && *c++ != '-')
			break;
		if ((high = hex_value(c[0])) < 0 || (low = hex_value(c[1])) < 0)
			break;
		uuid.data[i] = high << 4 | low;
		c += 2;
	}
	if (i == UUID_LEN && *c == '\0')
		return uuid;
	return *DatumGetUUIDP(DirectFunctionCall1(uuid_in, CStringGetDatum(word)));
}

/* The value of a hexadecimal digit; -1 of anything else. */
static int
hex_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

static text *
limited_text(const char *key, const char *string, int max_bytes)
{
	if (string == NULL)
		return NULL;
	syncstate_check_size(key, strlen(string), max_bytes);
	return cstring_to_text(string);
}

/*
 * Applies to a row the first report of it whose lease is held: at most one is,
 * since each ends the run.  Returns false if none is.  *now moves on when there
 * was a lock to wait for.
 */
static bool
apply_one_of(RowAccess *rows, const Report **reports, int nreports,
			 TimestampTz *now, Applied *applied)
{
	const SyncKey *key = &reports[0]->key;
	const SyncPolicy *policy = syncstate_policy(key->source);
	SyncState	row;
	const Report *report;

	if (syncstate_rows_read(rows, key, &row) &&
		(report = held_report(&row, reports, nreports)) != NULL)
	{
		transitions[report->transition].apply(&row, report, policy, *now);
		row.updated_at = *now;
		applied->report = report;
		if (syncstate_rows_try(rows, &row, &applied->result) == TM_Ok)
			return true;
	}

	if (!syncstate_rows_lock(rows, key, &row) ||
		(report = held_report(&row, reports, nreports)) == NULL)
		return false;
	*now = syncstate_now();
	transitions[report->transition].apply(&row, report, policy, *now);
	row.updated_at = *now;
	applied->report = report;
	applied->result = syncstate_rows_write(rows, &row);
	return applied->result != NULL;
}

/* The first of the reports of a row whose lease is held; NULL if none is. */
static const Report *
held_report(const SyncState *row, const Report **reports, int nreports)
{
	for (int i = 0; i < nreports; i++)
	{
		if (lease_is_held(row, reports[i]->lease))
			return reports[i];
	}
	return NULL;
}

/* Error context: which report of a batch is being read. */
static void
report_context(void *arg)
{
	errcontext("report %d of results", *(int *) arg + 1);
}

/*
 * qsort comparator: the order in which all batches lock, then as given.  It is
 * that of the primary key: forget_users() locks in it too.
 */
static int
compare_reports(const void *a, const void *b)
{
	const Report *x = *(const Report *const *) a;
	const Report *y = *(const Report *const *) b;
	int			cmp = memcmp(&x->key.user_id, &y->key.user_id, UUID_LEN);

	if (cmp == 0)
		cmp = x->source_rank - y->source_rank;
	if (cmp == 0)
		cmp = DatumGetInt32(DirectFunctionCall2Coll(bttextcmp, C_COLLATION_OID,
													PointerGetDatum(x->key.resource),
													PointerGetDatum(y->key.resource)));
	if (cmp == 0)
		cmp = x->position - y->position;
	return cmp;
}

/* qsort comparator: as given. */
static int
compare_applied(const void *a, const void *b)
{
	return ((const Applied *) a)->report->position -
		((const Applied *) b)->report->position;
}

/* Reads the argument "lease", which may be null. */
static void
report_lease(FunctionCallInfo fcinfo, int arg, Report *report)
{
	report->has_lease = !PG_ARGISNULL(arg);
	if (report->has_lease)
		report->lease = PG_GETARG_INT64(arg);
}

/* Applies a transition to the row of a report; returns the row. */
static Datum
apply(TransitionId id, const Report *report)
{
	const Transition *transition = &transitions[id];
	SyncPolicy	policy = *syncstate_policy(report->key.source);
	RowAccess	rows;
	SyncState	row;
	HeapTuple	written;
	TimestampTz now;
	Datum		result = (Datum) 0;

	SPI_connect();
	syncstate_rows_open(&rows);

	/* who holds the lease is mostly alone with the row */
	if (report->has_lease)
	{
		syncstate_rows_look(&rows);
		if (syncstate_rows_read(&rows, &report->key, &row) &&
			lease_is_held(&row, report->lease))
		{
			now = syncstate_now();
			transition->apply(&row, report, &policy, now);
			row.updated_at = now;
			if (syncstate_rows_try(&rows, &row, &written) == TM_Ok)
				result = syncstate_row_datum(written);
		}
	}
	if (result == (Datum) 0)
	{
		syncstate_lock_row(&rows, &report->key,
						   transition->makes_row && !report->has_lease, &row);
		if (report->has_lease)
			check_lease(&row, report->lease);

		/* the time after the wait for the lock, not before it */
		now = syncstate_now();
		transition->apply(&row, report, &policy, now);
		row.updated_at = now;
		result = syncstate_write_row(&rows, &row);
	}
	syncstate_rows_close(&rows);

	if (id == RATE_LIMIT)
	{
		Applied		applied = {.report = report};

		limit_sources(&applied, 1, now);
	}
	SPI_finish();
	if (transition->wakes_workers)
		syncstate_wake_workers(&policy);
	return result;
}

/* Locks and reads the row of a key, and makes it where that is asked for. */
void
syncstate_lock_row(RowAccess *rows, const SyncKey *key, bool make,
				   SyncState *row)
{
	for (int try = 0; try < MAX_TRIES; try++)
	{
		syncstate_rows_look(rows);
		if (syncstate_rows_lock(rows, key, row))
			return;
		if (!make)
			break;
		syncstate_store_make(key);
	}
	syncstate_no_such_row();
}

/*
 * Writes a row that was locked; returns it as it is now.  Row security may hide
 * a row from UPDATE: then there is no such row.
 */
Datum
syncstate_write_row(RowAccess *rows, const SyncState *row)
{
	HeapTuple	written = syncstate_rows_write(rows, row);

	if (written == NULL)
		syncstate_no_such_row();
	return syncstate_row_datum(written);
}

/* The same words for a row that is not there and one that is not shown. */
void
syncstate_no_such_row(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_NO_SUCH_ROW),
			 errmsg("sync state does not exist or is not visible")));
}

/*
 * Pauses sources whose limit was hit as a whole: each once, for the longest
 * wait of all reports, in the order of the enum, so that no two batches wait
 * for each other.
 */
static void
limit_sources(const Applied *applied, int napplied, TimestampTz now)
{
	int			nsources;
	const SyncPolicy *policies = syncstate_policies(&nsources);
	Oid		   *sources = palloc(Max(nsources, 1) * sizeof(Oid));
	int64	   *waits = palloc0(Max(nsources, 1) * sizeof(int64));

	for (int i = 0; i < nsources; i++)
	{
		sources[i] = policies[i].source;
		for (int a = 0; a < napplied; a++)
		{
			if (applied[a].report->scope == SCOPE_SOURCE &&
				applied[a].report->key.source == sources[i])
				waits[i] = Max(waits[i],
							   limit_wait(applied[a].report, &policies[i]));
		}
	}
	for (int i = 0; i < nsources; i++)
	{
		if (waits[i] > 0)
			syncstate_pause_source(sources[i], now + waits[i], now);
	}
}

/* An expired lease that nobody took over is still good. */
static bool
lease_is_held(const SyncState *row, int64 lease)
{
	return row->status == SYNC_SYNCING && row->lease == lease;
}

/* Whoever lost its lease changes nothing. */
static void
check_lease(const SyncState *row, int64 lease)
{
	if (lease_is_held(row, lease))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_LEASE_LOST),
			 errmsg("lease on sync state is no longer held"),
			 row->status == SYNC_SYNCING ?
			 errdetail("The call gave lease %lld; the row is held under lease %lld.",
					   (long long) lease, (long long) row->lease) :
			 errdetail("The call gave lease %lld; the row is not held, its last lease was %lld.",
					   (long long) lease, (long long) row->lease),
			 errhint("Drop the work and claim again.")));
}

/* Tells listening workers of work that became available; once per transaction. */
void
syncstate_wake_workers(const SyncPolicy *policy)
{
	Async_Notify("syncstate", NameStr(policy->label));
}

/* ------------------------------------------------------------ transitions */

/*
 * A start, by a claim or by name.  A row that is 'syncing' here has a lease
 * that ran out unreported, which counts as a failure.  A cursor that the
 * provider has forgotten by now is not handed out.
 *
 *	lease_time	microseconds; 0 = the policy's
 */
void
syncstate_start(SyncState *row, const SyncPolicy *policy, int64 lease_time,
				TimestampTz now)
{
	if (row->status == SYNC_SYNCING)
		count_failure(row, now);
	if (syncstate_cursor_is_dead(policy, row, now))
		syncstate_drop_cursor(row);
	row->status = SYNC_SYNCING;
	row->lease++;
	row->lease_expires_at = now +
		(lease_time != 0 ? lease_time : policy->lease_time);
	row->last_sync_at = now;
	row->requested_at = NO_TIME;
	row->error_message = NULL;
	row->updated_at = now;

	/* a run that crashes comes back when its lease ends, not later */
	if (row->due_at != NO_TIME)
		row->due_at = Min(row->due_at, now);
}

/* The end of a row whose lease ran out once too often. */
void
syncstate_give_up(SyncState *row, TimestampTz now)
{
	count_failure(row, now);
	end_run(row, SYNC_ERROR, cstring_to_text(LEASE_EXPIRED_MESSAGE));
	park(row, PARKED_FAILURES);
	row->updated_at = now;
}

static void
complete(SyncState *row, const Report *report, const SyncPolicy *policy,
		 TimestampTz now)
{
	bool		was_full = !syncstate_has_cursor(row);
	bool		given = false;

	if (report->sync_token != NULL && VARSIZE_ANY_EXHDR(report->sync_token) > 0)
	{
		row->sync_token = report->sync_token;
		given = true;
	}
	if (report->history_id != NULL &&
		(row->history_id == NULL ||
		 compare_history_ids(report->history_id, row->history_id) >= 0))
	{
		row->history_id = report->history_id;
		given = true;
	}
	if (report->updated_min != NO_TIME &&
		(row->updated_min == NO_TIME || report->updated_min >= row->updated_min))
	{
		row->updated_min = report->updated_min;
		given = true;
	}

	/* a cursor given again was confirmed by the provider: it is as good as new */
	if (given)
		row->token_issued_at = now;
	if (was_full)
		row->last_full_sync_at = now;

	end_run(row, SYNC_IDLE, NULL);
	row->page_token = NULL;
	row->progress_done = NO_COUNT;
	row->progress_total = NO_COUNT;
	row->items_synced = report->items_synced;

	/* a full sync tells what there is, not what changed */
	if (!was_full)
		syncstate_learn(row, now);
	row->last_successful_sync_at = now;
	row->failures = 0;
	row->failing_since = NO_TIME;
	row->token_losses = 0;
	syncstate_set_due(row, syncstate_next_due(policy, row, now));
}

static void
fail(SyncState *row, const Report *report, const SyncPolicy *policy,
	 TimestampTz now)
{
	count_failure(row, now);
	end_run(row, SYNC_ERROR, report->error_message);
	if (report->kind == FAILURE_AUTH)
		park(row, PARKED_AUTH);
	else if (syncstate_is_hopeless(policy, row->failures, row->failing_since, now))
		park(row, PARKED_FAILURES);
	else if (report->kind == FAILURE_PERMANENT)
		syncstate_set_due(row, now + policy->retry_cap);
	else
		wait_after_failure(row, policy, row->failures, now);
}

static void
rate_limit(SyncState *row, const Report *report, const SyncPolicy *policy,
		   TimestampTz now)
{
	TimestampTz end = syncstate_limit_end(policy, &row->key,
										  limit_wait(report, policy), now);

	/* a limit that is running already is not cut short */
	if (row->status == SYNC_RATE_LIMITED)
		end = Max(end, row->due_at);
	end_run(row, SYNC_RATE_LIMITED, cstring_to_text(RATE_LIMIT_MESSAGE));
	syncstate_set_due(row, end);
}

static void
clear_token(SyncState *row, const Report *report, const SyncPolicy *policy,
			TimestampTz now)
{
	syncstate_drop_cursor(row);
	if (row->token_losses < PG_INT32_MAX)
		row->token_losses++;

	if (row->token_losses >= LOSSES_TO_WAIT)
	{
		/* the provider takes no cursor that it gave: full syncs are costly */
		end_run(row, SYNC_ERROR,
				cstring_to_text(psprintf("cursor lost %d times in a row",
										 row->token_losses)));
		if (row->token_losses >= LOSSES_TO_PARK)
			park(row, PARKED_TOKEN_LOOP);
		else
			wait_after_failure(row, policy, row->token_losses, now);
	}
	else if (!report->has_lease)
	{
		if (row->status == SYNC_SYNCING)
			end_run(row, SYNC_IDLE, row->error_message);
		syncstate_set_due(row, now);
	}
}

static void
renew(SyncState *row, const Report *report, const SyncPolicy *policy,
	  TimestampTz now)
{
	row->lease_expires_at = now + (report->lease_time != 0 ?
								   report->lease_time : policy->lease_time);
}

static void
checkpoint(SyncState *row, const Report *report, const SyncPolicy *policy,
		   TimestampTz now)
{
	if (report->page_token != NULL)
		row->page_token = report->page_token;
	if (report->progress_done != NO_COUNT)
		row->progress_done = report->progress_done;
	if (report->progress_total != NO_COUNT)
		row->progress_total = report->progress_total;

	/* a lease that was claimed for longer is not cut short */
	row->lease_expires_at = Max(row->lease_expires_at, now + policy->lease_time);
}

static void
release(SyncState *row, const Report *report, const SyncPolicy *policy,
		TimestampTz now)
{
	/* the claim left it due: due_at is not moved */
	end_run(row, SYNC_IDLE, NULL);
}

static void
connect_again(SyncState *row, const Report *report, const SyncPolicy *policy,
			  TimestampTz now)
{
	resume_row(row, report, policy, now);
	if (row->requested_at == NO_TIME)
		row->requested_at = now;
}

static void
pause_row(SyncState *row, const Report *report, const SyncPolicy *policy,
	  TimestampTz now)
{
	park(row, PARKED_PAUSED);
}

static void
resume_row(SyncState *row, const Report *report, const SyncPolicy *policy,
	   TimestampTz now)
{
	if (row->due_at == NO_TIME)
	{
		row->parked_reason = NULL;
		row->due_at = now;
	}
	row->failures = 0;
	row->failing_since = NO_TIME;
	row->token_losses = 0;
	if (row->status == SYNC_ERROR)
		end_run(row, SYNC_IDLE, NULL);
}

/* ------------------------------------------------------ what they share */

bool
syncstate_has_cursor(const SyncState *row)
{
	return row->sync_token != NULL || row->history_id != NULL ||
		row->updated_min != NO_TIME;
}

/* What a full sync begins with: no cursor, and from the first page. */
void
syncstate_drop_cursor(SyncState *row)
{
	row->sync_token = NULL;
	row->history_id = NULL;
	row->updated_min = NO_TIME;
	row->token_issued_at = NO_TIME;
	row->page_token = NULL;
	row->progress_done = NO_COUNT;
	row->progress_total = NO_COUNT;
}

/* Makes a row due at a time, unless it is parked. */
void
syncstate_set_due(SyncState *row, TimestampTz due_at)
{
	if (row->parked_reason == NULL)
		row->due_at = due_at;
}

/* Takes a row out of the lanes, until it is resumed or connected. */
static void
park(SyncState *row, ParkedReason reason)
{
	row->due_at = NO_TIME;
	row->parked_reason = cstring_to_text(parked_reasons[reason]);
}

bool
syncstate_is_parked_reason(const text *reason)
{
	for (size_t i = 0; i < lengthof(parked_reasons); i++)
	{
		if (strlen(parked_reasons[i]) == VARSIZE_ANY_EXHDR(reason) &&
			memcmp(parked_reasons[i], VARDATA_ANY(reason),
				   VARSIZE_ANY_EXHDR(reason)) == 0)
			return true;
	}
	return false;
}

/* One more failure of the present run of them. */
static void
count_failure(SyncState *row, TimestampTz now)
{
	if (row->failures < PG_INT32_MAX)
		row->failures++;
	if (row->failing_since == NO_TIME)
		row->failing_since = now;
}

/* Nobody holds the row any more. */
static void
end_run(SyncState *row, SyncStatus status, text *error_message)
{
	row->status = status;
	row->lease_expires_at = NO_TIME;
	row->error_message = error_message;
}

static void
wait_after_failure(SyncState *row, const SyncPolicy *policy, int32 n,
				   TimestampTz now)
{
	syncstate_set_due(row, now +
					  syncstate_backoff(policy, n,
										pg_prng_double(&pg_global_prng_state)));
}

/* What a provider says to wait, taken with a grain of salt. */
static int64
clamped_wait(const Interval *retry_after)
{
	return Min(Max(syncstate_interval_usecs(retry_after), MIN_DURATION),
			   MAX_RETRY_AFTER);
}

/* How long a rate limit lasts. */
static int64
limit_wait(const Report *report, const SyncPolicy *policy)
{
	return report->retry_after != 0 ? report->retry_after :
		policy->rate_limit_wait;
}

/* Compares tidy history ids as numbers. */
static int
compare_history_ids(const text *a, const text *b)
{
	Size		a_len = VARSIZE_ANY_EXHDR(a);
	Size		b_len = VARSIZE_ANY_EXHDR(b);

	if (a_len != b_len)
		return a_len < b_len ? -1 : 1;
	return memcmp(VARDATA_ANY(a), VARDATA_ANY(b), a_len);
}

/* A message of at most MAX_ERROR_BYTES, marked where it was cut. */
static text *
cut_message(text *message)
{
	StringInfoData cut;
	int			len;

	if (VARSIZE_ANY_EXHDR(message) <= MAX_ERROR_BYTES)
		return message;
	len = pg_mbcliplen(VARDATA_ANY(message), VARSIZE_ANY_EXHDR(message),
					   MAX_ERROR_BYTES - strlen(CUT_MARK));
	initStringInfo(&cut);
	appendBinaryStringInfo(&cut, VARDATA_ANY(message), len);
	appendStringInfoString(&cut, CUT_MARK);
	return cstring_to_text_with_len(cut.data, cut.len);
}

/* Checks a row that a client made up, so that it is told what is wrong. */
static void
check_row(SyncState *row)
{
#define CHECK_TEXT(column, max) \
	if (row->column != NULL) \
		syncstate_check_size(#column, \
							 toast_raw_datum_size(PointerGetDatum(row->column)) - VARHDRSZ, \
							 max)
#define CHECK_TIME(column) \
	if (row->column != NO_TIME) \
		syncstate_check_time(#column, row->column)

	CHECK_TEXT(sync_token, MAX_TOKEN_BYTES);
	CHECK_TEXT(page_token, MAX_TOKEN_BYTES);
	CHECK_TEXT(history_id, MAX_TOKEN_BYTES);
	if (row->history_id != NULL)
		row->history_id = syncstate_tidy_history_id(row->history_id);
	if (row->history_id != NULL)
		syncstate_check_history_id("history_id", row->history_id);
	CHECK_TIME(updated_min);
	CHECK_TIME(token_issued_at);
	CHECK_TIME(last_full_sync_at);
	CHECK_TIME(due_at);
	CHECK_TIME(requested_at);
	CHECK_TIME(lease_expires_at);
	CHECK_TIME(last_sync_at);
	CHECK_TIME(last_successful_sync_at);
	if (row->parked_reason != NULL)
		syncstate_check_word("parked_reason", text_to_cstring(row->parked_reason),
							 parked_reasons, lengthof(parked_reasons));
	if (row->sync_interval != NULL)
		syncstate_check_duration("sync_interval", row->sync_interval,
								 MIN_DURATION, MAX_DURATION);
	syncstate_check_count("items_synced", row->items_synced);
	syncstate_check_count("failures", row->failures);
	syncstate_check_count("token_losses", row->token_losses);
	if (row->error_message != NULL)
		row->error_message = cut_message(row->error_message);
#undef CHECK_TEXT
#undef CHECK_TIME
}
