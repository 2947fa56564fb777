/*-------------------------------------------------------------------------
 *
 * guard.c
 *		The row trigger: keeps a row legal whichever way it is written
 *
 * Clients that keep their sync state by hand write it like
 * upsert({status: 'syncing', ...}).  They get a lease, a due time and a legal
 * row too.  What a client says wins over what would follow from it; the CHECK
 * refuses what cannot be made sense of.
 *
 * On INSERT only what is missing is filled in, so that a restored row stays as
 * it was dumped.  What the lifecycle functions write is legal as it is, and
 * passes.
 *
 * src/guard.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/sysattr.h"
#include "catalog/pg_collation.h"
#include "commands/trigger.h"
#include "common/pg_prng.h"
#include "fmgr.h"
#include "nodes/bitmapset.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "syncstate.h"

pg_noreturn static void breaks(const char *invariant);
static bool is_amount(int column, const Datum *values, const bool *nulls);
static Size text_bytes(const text *value);
static void guard_insert(SyncState *row, TimestampTz now);
static void check_lease_number(const SyncState *row, int64 max);
static void tidy_cursor(SyncState *row);
static bool cursor_was_set(const SyncState *old, const SyncState *row);
static HeapTuple changed_tuple(HeapTuple tuple, TupleDesc tupdesc,
							   const SyncState *row);
static void read_tuple(HeapTuple tuple, TupleDesc tupdesc, SyncState *row);

PG_FUNCTION_INFO_V1(syncstate_is_legal);
PG_FUNCTION_INFO_V1(syncstate_guard);

/*
 * syncstate_is_legal(sync_state sync_state) -> boolean
 *
 * Whether a row of sync_state keeps its invariants; an error says which one it
 * breaks.
 *
 * The CHECK of the table.  It holds whoever writes, and where triggers do not
 * fire too.
 *
 * Errors: 23514 if it does not.
 */
Datum
syncstate_is_legal(PG_FUNCTION_ARGS)
{
	static const int not_null[] = {
		Anum_sync_state_user_id, Anum_sync_state_source,
		Anum_sync_state_resource, Anum_sync_state_status,
		Anum_sync_state_lease, Anum_sync_state_items_synced,
		Anum_sync_state_failures, Anum_sync_state_token_losses,
	};
	static const int times[] = {
		Anum_sync_state_updated_min, Anum_sync_state_token_issued_at,
		Anum_sync_state_last_full_sync_at, Anum_sync_state_due_at,
		Anum_sync_state_requested_at, Anum_sync_state_lease_expires_at,
		Anum_sync_state_last_sync_at, Anum_sync_state_last_successful_sync_at,
		Anum_sync_state_failing_since, Anum_sync_state_created_at,
		Anum_sync_state_updated_at,
	};
	HeapTupleHeader header;
	HeapTupleData tuple;
	TupleDesc	tupdesc;
	Datum	   *values;
	bool	   *nulls;
	SyncState	row;

	if (PG_ARGISNULL(0))
		PG_RETURN_BOOL(true);
	header = PG_GETARG_HEAPTUPLEHEADER(0);
	tuple.t_len = HeapTupleHeaderGetDatumLength(header);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	tuple.t_data = header;
	tupdesc = lookup_rowtype_tupdesc(HeapTupleHeaderGetTypeId(header),
									 HeapTupleHeaderGetTypMod(header));
	values = palloc(tupdesc->natts * sizeof(Datum));
	nulls = palloc(tupdesc->natts * sizeof(bool));
	heap_deform_tuple(&tuple, tupdesc, values, nulls);
	ReleaseTupleDesc(tupdesc);

	/* the server has checked this for the table, but not for other callers */
	for (size_t i = 0; i < lengthof(not_null); i++)
	{
		if (nulls[not_null[i] - 1])
			breaks("A column that is NOT NULL is null.");
	}

	for (size_t i = 0; i < lengthof(times); i++)
	{
		if (!nulls[times[i] - 1] &&
			!IS_LEGAL_TIME(DatumGetTimestampTz(values[times[i] - 1])))
			breaks("Times are of the years 1 to 9999.");
	}

	/* refused here, so that the reason is the CHECK's */
	if (nulls[Anum_sync_state_changes_seen - 1] !=
		nulls[Anum_sync_state_seconds_watched - 1] ||
		!is_amount(Anum_sync_state_changes_seen, values, nulls) ||
		!is_amount(Anum_sync_state_seconds_watched, values, nulls))
		breaks("changes_seen and seconds_watched are both null, or both from 0 to 1e+12.");
	syncstate_state_from_datums(values, nulls, &row);

	if ((row.due_at == NO_TIME) != (row.parked_reason != NULL))
		breaks("Either due_at is set or parked_reason.");
	if (row.parked_reason != NULL && !syncstate_is_parked_reason(row.parked_reason))
		breaks("parked_reason is \"paused\", \"auth\", \"failures\" or \"token_loop\".");
	if ((row.status == SYNC_SYNCING) != (row.lease_expires_at != NO_TIME))
		breaks("lease_expires_at is set exactly while status is \"syncing\".");
	if ((row.failures > 0) != (row.failing_since != NO_TIME))
		breaks("failing_since is set exactly while failures is not 0.");
	if (VARSIZE_ANY_EXHDR(row.key.resource) > MAX_RESOURCE_BYTES)
		breaks("resource is at most 1024 bytes long.");
	if (text_bytes(row.sync_token) > MAX_TOKEN_BYTES)
		breaks("sync_token is at most 65536 bytes long.");
	if (text_bytes(row.page_token) > MAX_TOKEN_BYTES)
		breaks("page_token is at most 65536 bytes long.");
	if (text_bytes(row.error_message) > MAX_ERROR_BYTES)
		breaks("error_message is at most 8192 bytes long.");
	if (row.history_id != NULL && !syncstate_is_history_id(row.history_id))
		breaks("history_id is a decimal number from 0 to 18446744073709551615, without leading zeros.");
	if (row.sync_interval != NULL &&
		!syncstate_is_duration(row.sync_interval, MIN_DURATION, MAX_DURATION))
		breaks("sync_interval is from 1 second to 36500 days, without months.");
	if (row.lease < 0 || row.items_synced < 0 || row.failures < 0 ||
		row.token_losses < 0)
		breaks("lease, items_synced, failures and token_losses are 0 or more.");
	PG_RETURN_BOOL(true);
}

/* Whether a column is null or an amount; sums of such never overflow. */
static bool
is_amount(int column, const Datum *values, const bool *nulls)
{
	double		amount;

	if (nulls[column - 1])
		return true;
	amount = DatumGetFloat8(values[column - 1]);
	return amount >= 0 && amount <= MAX_AMOUNT;
}

/* Says which invariant a row breaks, as a CHECK would with a name. */
static void
breaks(const char *invariant)
{
	ereport(ERROR,
			(errcode(ERRCODE_CHECK_VIOLATION),
			 errmsg("new row for relation \"%s\" violates check constraint \"%s\"",
					"sync_state", "sync_state_is_legal"),
			 errdetail_internal("%s", invariant),
			 err_generic_string(PG_DIAG_SCHEMA_NAME, "syncstate"),
			 err_generic_string(PG_DIAG_TABLE_NAME, "sync_state"),
			 err_generic_string(PG_DIAG_CONSTRAINT_NAME, "sync_state_is_legal")));
}

/* The size of a text, which may be stored out of line. */
static Size
text_bytes(const text *value)
{
	return value == NULL ? 0 :
		toast_raw_datum_size(PointerGetDatum(value)) - VARHDRSZ;
}

/*
 * syncstate_guard() -> trigger
 *
 * Keeps a row of sync_state legal whichever way it is written.
 *
 * Errors: 39P01 if not fired before INSERT or UPDATE for each row of it;
 *		   22023 if the key of a row is changed.
 */
Datum
syncstate_guard(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	TupleDesc	tupdesc;
	SyncState	row;
	HeapTuple	tuple;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_BEFORE(trigdata->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigdata->tg_event) ||
		TRIGGER_FIRED_BY_DELETE(trigdata->tg_event) ||
		RelationGetRelid(trigdata->tg_relation) != syncstate_store_ids()->state_rel)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be fired BEFORE INSERT OR UPDATE ROW of table \"%s\"",
						"guard", "sync_state")));

	tupdesc = RelationGetDescr(trigdata->tg_relation);
	if (TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
	{
		tuple = trigdata->tg_trigtuple;
		read_tuple(tuple, tupdesc, &row);
		guard_insert(&row, syncstate_now());
	}
	else
	{
		SyncState	old;

		tuple = trigdata->tg_newtuple;
		if (syncstate_store_is_writing())
			return PointerGetDatum(tuple);
		read_tuple(trigdata->tg_trigtuple, tupdesc, &old);
		read_tuple(tuple, tupdesc, &row);
		syncstate_guard_update(&old, &row,
							   bms_is_member(Anum_sync_state_status -
											 FirstLowInvalidHeapAttributeNumber,
											 trigdata->tg_updatedcols),
							   syncstate_now());
	}
	return PointerGetDatum(changed_tuple(tuple, tupdesc, &row));
}

/* Fills in what a new row lacks. */
static void
guard_insert(SyncState *row, TimestampTz now)
{
	const SyncPolicy *policy = syncstate_policy(row->key.source);

	check_lease_number(row, MAX_INSERTED_LEASE);
	tidy_cursor(row);
	if (syncstate_has_cursor(row) && row->token_issued_at == NO_TIME)
		row->token_issued_at = now;
	if (row->due_at == NO_TIME && row->parked_reason == NULL)
		row->due_at = syncstate_first_due(policy, &row->key, now);
	if (row->status == SYNC_SYNCING)
	{
		if (row->lease_expires_at == NO_TIME)
			row->lease_expires_at = now + policy->lease_time;
		if (row->lease == 0)
			row->lease = 1;
		if (row->last_sync_at == NO_TIME)
			row->last_sync_at = now;
	}
	if (row->failures > 0 && row->failing_since == NO_TIME)
		row->failing_since = row->last_successful_sync_at != NO_TIME ?
			row->last_successful_sync_at : now;
}

/*
 * Makes a changed row legal.
 *
 * Whatever the client left alone follows from what it changed: "status =
 * 'syncing'" alone is a start, "status = 'idle'" alone is the end of a sync,
 * "due_at = null" alone parks.
 *
 * status_written: the client wrote the status, if only to what it was; so a
 * row whose lease ran out starts again by 'syncing', but not by a request.
 */
void
syncstate_guard_update(const SyncState *old, SyncState *row,
					   bool status_written, TimestampTz now)
{
	const SyncPolicy *policy = syncstate_policy(row->key.source);
	bool		was_running = old->status == SYNC_SYNCING;
	bool		due_changed = row->due_at != old->due_at;
	bool		reason_changed = !syncstate_same_text(row->parked_reason, old->parked_reason);
	bool		lease_changed = row->lease > old->lease;
	bool		expiry_changed = row->lease_expires_at != old->lease_expires_at;
	bool		cursor_cleared;

	if (!syncstate_same_key(&row->key, &old->key))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("key columns of a sync state cannot be changed"),
				 errdetail("The key is user_id, source and resource."),
				 errhint("Delete the row and make another.")));

	row->updated_at = now;
	row->lease = Max(row->lease, old->lease);
	if (lease_changed)
		check_lease_number(row, MAX_UPDATED_LEASE);

	/* one of due_at and parked_reason is set, and not both */
	if (row->due_at == NO_TIME && row->parked_reason == NULL)
	{
		if (reason_changed)
			row->due_at = now;
		else
			row->parked_reason = cstring_to_text("paused");
	}
	else if (row->due_at != NO_TIME && row->parked_reason != NULL)
	{
		if (reason_changed)
			row->due_at = NO_TIME;
		else
			row->parked_reason = NULL;
	}

	tidy_cursor(row);
	cursor_cleared = syncstate_has_cursor(old) && !syncstate_has_cursor(row);
	if (cursor_cleared)
		syncstate_drop_cursor(row);
	else if (!syncstate_has_cursor(row))
		row->token_issued_at = NO_TIME;
	else if (row->token_issued_at == NO_TIME ||
			 (row->token_issued_at == old->token_issued_at &&
			  cursor_was_set(old, row)))
		row->token_issued_at = now;

	/* users may write this column: nobody gets ahead by an early time */
	if (row->requested_at != old->requested_at && row->requested_at != NO_TIME)
		row->requested_at = now;

	if (row->status == SYNC_SYNCING && was_running && cursor_cleared &&
		!lease_changed && !status_written)
	{
		/* the run in flight would bring the old cursor back: revoke it */
		row->status = SYNC_IDLE;
		syncstate_set_due(row, now);
	}
	else if (row->status == SYNC_SYNCING &&
			 (!was_running || lease_changed ||
			  (status_written &&
			   (cursor_cleared ||
				(!expiry_changed && old->lease_expires_at <= now)))))
	{
		/* a start; an earlier run that never reported has failed */
		if (was_running && old->lease_expires_at <= now &&
			row->failures == old->failures)
			row->failures += old->failures < PG_INT32_MAX ? 1 : 0;
		if (!lease_changed)
			row->lease = old->lease + 1;
		if (row->lease_expires_at == NO_TIME || !expiry_changed)
			row->lease_expires_at = now + policy->lease_time;
		if (row->last_sync_at == old->last_sync_at)
			row->last_sync_at = now;
		row->requested_at = NO_TIME;
		if (!due_changed && row->due_at > now)
			row->due_at = now;
	}
	else if (row->status == SYNC_SYNCING)
	{
		if (row->lease_expires_at == NO_TIME)
			row->lease_expires_at = now + policy->lease_time;
	}
	else if (was_running)
	{
		/* the end of a sync */
		if (row->status == SYNC_ERROR && row->failures == old->failures)
			row->failures += old->failures < PG_INT32_MAX ? 1 : 0;
		if (!due_changed && row->due_at != NO_TIME)
		{
			if (row->status == SYNC_ERROR)
				row->due_at = now +
					syncstate_backoff(policy, Max(row->failures, 1),
									  pg_prng_double(&pg_global_prng_state));
			else if (row->status == SYNC_RATE_LIMITED)
				row->due_at = syncstate_limit_end(policy, &row->key,
												  policy->rate_limit_wait, now);
			else
				row->due_at = syncstate_next_due(policy, row, now);
		}
	}
	if (row->status != SYNC_SYNCING)
		row->lease_expires_at = NO_TIME;

	/* a run of failures that began unseen began after the last success */
	if (row->failures <= 0)
		row->failing_since = NO_TIME;
	else if (row->failing_since == NO_TIME)
		row->failing_since = row->last_successful_sync_at != NO_TIME ?
			row->last_successful_sync_at : row->created_at;
}

static void
check_lease_number(const SyncState *row, int64 max)
{
	if (row->lease > max)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("lease must be at most %lld", (long long) max),
				 errdetail("Got %lld.", (long long) row->lease)));
}

/*
 * An empty cursor is none, and a history id has no leading zeros, so that it
 * is what Gmail would have sent.
 */
static void
tidy_cursor(SyncState *row)
{
	if (row->sync_token != NULL && VARSIZE_ANY_EXHDR(row->sync_token) == 0)
		row->sync_token = NULL;
	if (row->history_id != NULL)
		row->history_id = syncstate_tidy_history_id(row->history_id);
}

/* Whether two texts are the same bytes; NULL is the same as NULL. */
bool
syncstate_same_text(const text *a, const text *b)
{
	if (a == NULL || b == NULL)
		return a == b;
	return DatumGetBool(DirectFunctionCall2Coll(texteq, C_COLLATION_OID,
												PointerGetDatum(a),
												PointerGetDatum(b)));
}

bool
syncstate_same_key(const SyncKey *a, const SyncKey *b)
{
	return memcmp(&a->user_id, &b->user_id, UUID_LEN) == 0 &&
		a->source == b->source &&
		syncstate_same_text(a->resource, b->resource);
}

/* Whether a part of the cursor got another value, and not only lost one. */
static bool
cursor_was_set(const SyncState *old, const SyncState *row)
{
	return (row->sync_token != NULL &&
			!syncstate_same_text(row->sync_token, old->sync_token)) ||
		(row->history_id != NULL &&
		 !syncstate_same_text(row->history_id, old->history_id)) ||
		(row->updated_min != NO_TIME && row->updated_min != old->updated_min);
}

static void
read_tuple(HeapTuple tuple, TupleDesc tupdesc, SyncState *row)
{
	Datum	   *values = palloc(tupdesc->natts * sizeof(Datum));
	bool	   *nulls = palloc(tupdesc->natts * sizeof(bool));

	heap_deform_tuple(tuple, tupdesc, values, nulls);

	/* NOT NULL is checked after the triggers: say the same here */
	for (int i = 0; i < Natts_sync_state; i++)
	{
		if (nulls[i] && TupleDescAttr(tupdesc, i)->attnotnull)
			ereport(ERROR,
					(errcode(ERRCODE_NOT_NULL_VIOLATION),
					 errmsg("null value in column \"%s\" of relation \"%s\" violates not-null constraint",
							NameStr(TupleDescAttr(tupdesc, i)->attname),
							"sync_state")));
	}
	syncstate_state_from_datums(values, nulls, row);
	row->ctid = tuple->t_self;
}

/* The tuple with our columns replaced; columns of others stay. */
static HeapTuple
changed_tuple(HeapTuple tuple, TupleDesc tupdesc, const SyncState *row)
{
	Datum	   *values = palloc0(tupdesc->natts * sizeof(Datum));
	bool	   *nulls = palloc0(tupdesc->natts * sizeof(bool));
	bool	   *replace = palloc0(tupdesc->natts * sizeof(bool));

	syncstate_state_to_datums(row, values, nulls);
	memset(replace, true, Natts_sync_state * sizeof(bool));
	return heap_modify_tuple(tuple, tupdesc, values, nulls, replace);
}
