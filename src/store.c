/*-------------------------------------------------------------------------
 *
 * store.c
 *		The table behind everything: OIDs, kept plans, reading and writing rows
 *
 * The only file with SQL text in it.  Every name in it is qualified, every
 * column listed: a kept plan is analyzed again under whatever search_path the
 * call has.  Statements run as the caller, so privileges and row security
 * decide.  The callers are connected to SPI; what a function returns in
 * pointers lives until SPI_finish(), but for the Datum of a result row, which
 * is made in the caller's outer context.
 *
 * Plans are generic and made with sequential scans, hash and merge joins
 * switched off: a plan made while the table was empty would otherwise scan it
 * from end to end for each report, until the next ANALYZE.
 *
 * src/store.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_enum.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "nodes/parsenodes.h"
#include "optimizer/cost.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "syncstate.h"

/* All columns, in order, of the row called s (or r). */
#define COLUMNS(s) \
	s ".user_id, " s ".source, " s ".resource, " s ".status, " \
	s ".sync_token, " s ".history_id, " s ".updated_min, " \
	s ".token_issued_at, " s ".last_full_sync_at, " s ".due_at, " \
	s ".requested_at, " s ".parked_reason, " s ".sync_interval, " \
	s ".lease, " s ".lease_expires_at, " s ".last_sync_at, " \
	s ".last_successful_sync_at, " s ".items_synced, " s ".page_token, " \
	s ".progress_done, " s ".progress_total, " s ".failures, " \
	s ".token_losses, " s ".error_message, " s ".created_at, " \
	s ".updated_at, " s ".failing_since"

/* The key of row s is in $1, $2, $3. */
#define KEY_MATCHES \
	"s.user_id OPERATOR(pg_catalog.=) $1 " \
	"AND s.source OPERATOR(pg_catalog.=) $2 " \
	"AND s.resource OPERATOR(pg_catalog.=) $3"

typedef enum PlanId
{
	PLAN_LOCK,
	PLAN_MAKE,
	PLAN_WRITE,
	PLAN_START,
	PLAN_PARK_EXPIRED,
	PLAN_DELETE,
	PLAN_REQUEST,
	PLAN_REQUEST_LOOK,
	PLAN_CHANGE,
	PLAN_POLICY_CHANGES,
	PLAN_POLICY_MAKE,
	PLAN_POLICY_WRITE,
	PLAN_POLICY_PAUSE,
	PLAN_POLICY_TIDY,
	NUM_PLANS,
} PlanId;

/* Parameter types of ours, whose OIDs are not constants. */
#define ARG_SOURCE		((Oid) 1)
#define ARG_STATUS		((Oid) 2)
#define ARG_POLICY		((Oid) 3)

#define MAX_PLAN_ARGS	30

typedef struct PlanText
{
	const char *sql;
	int			nargs;
	Oid			args[MAX_PLAN_ARGS];
} PlanText;

static const PlanText plan_texts[NUM_PLANS] = {
	[PLAN_LOCK] = {
		"SELECT " COLUMNS("s") ", s.ctid FROM syncstate.sync_state AS s "
		"WHERE " KEY_MATCHES " FOR NO KEY UPDATE",
		3, {UUIDOID, ARG_SOURCE, TEXTOID}
	},
	[PLAN_MAKE] = {
		"INSERT INTO syncstate.sync_state (user_id, source, resource) "
		"VALUES ($1, $2, $3) "
		"ON CONFLICT (user_id, source, resource) DO NOTHING",
		3, {UUIDOID, ARG_SOURCE, TEXTOID}
	},

	/* keep in sync with write_args() */
	[PLAN_WRITE] = {
		"UPDATE syncstate.sync_state AS s SET status = $2, sync_token = $3, "
		"history_id = $4, updated_min = $5, token_issued_at = $6, "
		"last_full_sync_at = $7, due_at = $8, requested_at = $9, "
		"parked_reason = $10, sync_interval = $11, lease = $12, "
		"lease_expires_at = $13, last_sync_at = $14, "
		"last_successful_sync_at = $15, items_synced = $16, "
		"page_token = $17, progress_done = $18, progress_total = $19, "
		"failures = $20, token_losses = $21, error_message = $22, "
		"updated_at = $23, failing_since = $24 "
		"WHERE s.ctid OPERATOR(pg_catalog.=) $1 RETURNING s",
		24, {TIDOID, ARG_STATUS, TEXTOID, TEXTOID, TIMESTAMPTZOID,
			TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID,
			TEXTOID, INTERVALOID, INT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID,
			TIMESTAMPTZOID, INT8OID, TEXTOID, INT8OID, INT8OID, INT4OID,
		INT4OID, TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID}
	},

	/*
	 * A start.  A row that is 'syncing' here has a lease that ran out
	 * unreported, which counts as a failure.
	 */
	[PLAN_START] = {
		"UPDATE syncstate.sync_state AS s SET "
		"status = 'syncing'::syncstate.sync_status, "
		"lease = s.lease OPERATOR(pg_catalog.+) 1, "
		"lease_expires_at = $2, last_sync_at = $3, requested_at = NULL, "
		"error_message = NULL, updated_at = $3, "
		"due_at = CASE WHEN s.due_at OPERATOR(pg_catalog.>) $3 THEN $3 "
		"ELSE s.due_at END, "
		"failures = s.failures OPERATOR(pg_catalog.+) "
		"CASE WHEN s.status OPERATOR(pg_catalog.=) "
		"'syncing'::syncstate.sync_status THEN 1 ELSE 0 END, "
		"failing_since = CASE WHEN s.failing_since IS NULL "
		"AND s.status OPERATOR(pg_catalog.=) 'syncing'::syncstate.sync_status "
		"THEN $3 ELSE s.failing_since END, "
		"sync_token = CASE WHEN $4 THEN NULL ELSE s.sync_token END, "
		"history_id = CASE WHEN $4 THEN NULL ELSE s.history_id END, "
		"updated_min = CASE WHEN $4 THEN NULL ELSE s.updated_min END, "
		"token_issued_at = CASE WHEN $4 THEN NULL ELSE s.token_issued_at END, "
		"page_token = CASE WHEN $4 THEN NULL ELSE s.page_token END, "
		"progress_done = CASE WHEN $4 THEN NULL ELSE s.progress_done END, "
		"progress_total = CASE WHEN $4 THEN NULL ELSE s.progress_total END "
		"WHERE s.ctid OPERATOR(pg_catalog.=) ANY ($1) "
		"RETURNING s.user_id, s.source, s.resource, s",
		4, {TIDARRAYOID, TIMESTAMPTZOID, TIMESTAMPTZOID, BOOLOID}
	},
	[PLAN_PARK_EXPIRED] = {
		"UPDATE syncstate.sync_state AS s SET "
		"status = 'error'::syncstate.sync_status, lease_expires_at = NULL, "
		"due_at = NULL, parked_reason = 'failures', "
		"failures = s.failures OPERATOR(pg_catalog.+) 1, "
		"failing_since = CASE WHEN s.failing_since IS NULL THEN $3 "
		"ELSE s.failing_since END, "
		"error_message = $2, updated_at = $3 "
		"WHERE s.ctid OPERATOR(pg_catalog.=) ANY ($1)",
		3, {TIDARRAYOID, TEXTOID, TIMESTAMPTZOID}
	},
	[PLAN_DELETE] = {
		"DELETE FROM syncstate.sync_state AS s WHERE " KEY_MATCHES,
		3, {UUIDOID, ARG_SOURCE, TEXTOID}
	},

	/* touches no column that a user role may not */
	[PLAN_REQUEST] = {
		"UPDATE syncstate.sync_state AS s SET requested_at = $4 "
		"WHERE " KEY_MATCHES " AND s.requested_at IS NULL "
		"AND s.parked_reason IS NULL",
		4, {UUIDOID, ARG_SOURCE, TEXTOID, TIMESTAMPTZOID}
	},
	[PLAN_REQUEST_LOOK] = {
		"SELECT s.parked_reason IS NULL FROM syncstate.sync_state AS s "
		"WHERE " KEY_MATCHES,
		3, {UUIDOID, ARG_SOURCE, TEXTOID}
	},
	[PLAN_CHANGE] = {
		"SELECT r.user_id, r.source, r.resource, "
		"COALESCE(r.status, 'idle'::syncstate.sync_status), r.sync_token, "
		"r.history_id, r.updated_min, r.token_issued_at, "
		"r.last_full_sync_at, r.due_at, r.requested_at, r.parked_reason, "
		"r.sync_interval, r.lease, r.lease_expires_at, r.last_sync_at, "
		"r.last_successful_sync_at, "
		"COALESCE(r.items_synced, 0::pg_catalog.int8), r.page_token, "
		"r.progress_done, r.progress_total, "
		"COALESCE(r.failures, 0), COALESCE(r.token_losses, 0), "
		"r.error_message, r.created_at, r.updated_at, r.failing_since, s.ctid "
		"FROM syncstate.sync_state AS s, "
		"LATERAL pg_catalog.jsonb_populate_record(s, $2) AS r "
		"WHERE s.ctid OPERATOR(pg_catalog.=) $1",
		2, {TIDOID, JSONBOID}
	},

	/* the row as it would be; locks what is there */
	[PLAN_POLICY_CHANGES] = {
		"SELECT r FROM (SELECT p FROM syncstate.sync_policy AS p "
		"WHERE p.source OPERATOR(pg_catalog.=) $1 FOR NO KEY UPDATE) AS l, "
		"LATERAL pg_catalog.jsonb_populate_record(l.p, $2) AS r",
		2, {ARG_SOURCE, JSONBOID}
	},
	[PLAN_POLICY_MAKE] = {
		"INSERT INTO syncstate.sync_policy (source) VALUES ($1) "
		"ON CONFLICT (source) DO NOTHING",
		1, {ARG_SOURCE}
	},
	[PLAN_POLICY_WRITE] = {
		"UPDATE syncstate.sync_policy AS p SET "
		"sync_interval = ($2).sync_interval, lease_time = ($2).lease_time, "
		"retry_base = ($2).retry_base, retry_cap = ($2).retry_cap, "
		"rate_limit_wait = ($2).rate_limit_wait, "
		"max_failures = ($2).max_failures, park_after = ($2).park_after, "
		"token_ttl = ($2).token_ttl, token_ttl_from = ($2).token_ttl_from, "
		"jitter = ($2).jitter, paused_until = ($2).paused_until "
		"WHERE p.source OPERATOR(pg_catalog.=) $1",
		2, {ARG_SOURCE, ARG_POLICY}
	},
	[PLAN_POLICY_PAUSE] = {
		"INSERT INTO syncstate.sync_policy AS p (source, paused_until) "
		"VALUES ($1, $2) ON CONFLICT (source) DO UPDATE "
		"SET paused_until = EXCLUDED.paused_until "
		"WHERE p.paused_until IS NULL "
		"OR p.paused_until OPERATOR(pg_catalog.<) EXCLUDED.paused_until",
		2, {ARG_SOURCE, TIMESTAMPTZOID}
	},
	[PLAN_POLICY_TIDY] = {
		"DELETE FROM syncstate.sync_policy AS p "
		"WHERE p.source OPERATOR(pg_catalog.=) $1 "
		"AND p.sync_interval IS NULL AND p.lease_time IS NULL "
		"AND p.retry_base IS NULL AND p.retry_cap IS NULL "
		"AND p.rate_limit_wait IS NULL AND p.max_failures IS NULL "
		"AND p.park_after IS NULL AND p.token_ttl IS NULL "
		"AND p.token_ttl_from IS NULL AND p.jitter IS NULL "
		"AND p.paused_until IS NULL",
		1, {ARG_SOURCE}
	},
};

static SPIPlanPtr plans[NUM_PLANS];

static StoreIds ids;
static bool ids_valid = false;
static uint64 generation = 0;

/* Whether the trigger may trust what is being written. */
static bool writing = false;

/* The SQL names of SyncStatus. */
static const char *const status_names[NUM_STATUSES] = {
	[SYNC_IDLE] = "idle",
	[SYNC_SYNCING] = "syncing",
	[SYNC_ERROR] = "error",
	[SYNC_RATE_LIMITED] = "rate_limited",
};

static void load_ids(void);
static void state_rel_changed(Datum arg, Oid relid);
static Oid	type_oid(const char *name, Oid namespace);
static Oid	relation_oid(const char *name, Oid namespace);
static SPIPlanPtr plan(PlanId id);
static uint64 run(PlanId id, Datum *values, const char *nulls, bool own_write);
static void key_args(const SyncKey *key, Datum *values);
static Datum tid_array(const ItemPointerData *tids, int ntids);
static SyncStatus status_of(Oid label);
static TimestampTz time_of(Datum value, const char *column);
static int64 count_of(Datum value, const char *column);
static void read_row(HeapTuple tuple, TupleDesc tupdesc, SyncState *row);

/* ------------------------------------------------------------ identifiers */

/* The OIDs of our objects; valid until the next invalidation. */
const StoreIds *
syncstate_store_ids(void)
{
	if (!ids_valid)
		load_ids();
	return &ids;
}

/* Changes when the extension was made anew: OIDs and hints are void then. */
uint64
syncstate_store_generation(void)
{
	return generation;
}

/*
 * Looks the names up.  An invalidation may only mean that statistics changed:
 * plans are thrown away only where an OID is another.
 */
static void
load_ids(void)
{
	static bool callback_registered = false;
	StoreIds	found;
	Oid			namespace;
	Relation	rel;

	if (!callback_registered)
	{
		CacheRegisterRelcacheCallback(state_rel_changed, (Datum) 0);
		callback_registered = true;
	}

	MemSet(&found, 0, sizeof(found));
	namespace = get_namespace_oid("syncstate", false);
	found.state_rel = relation_oid("sync_state", namespace);
	found.policy_rel = relation_oid("sync_policy", namespace);
	found.due_index = relation_oid("sync_state_due", namespace);
	found.requested_index = relation_oid("sync_state_requested", namespace);
	found.state_rowtype = type_oid("sync_state", namespace);
	found.policy_rowtype = type_oid("sync_policy", namespace);
	found.source_type = type_oid("sync_source", namespace);
	found.status_type = type_oid("sync_status", namespace);
	for (int i = 0; i < NUM_STATUSES; i++)
	{
		found.status_labels[i] =
			GetSysCacheOid2(ENUMTYPOIDNAME, Anum_pg_enum_oid,
							ObjectIdGetDatum(found.status_type),
							CStringGetDatum(status_names[i]));
		if (!OidIsValid(found.status_labels[i]))
			elog(ERROR, "sync status \"%s\" is missing", status_names[i]);
	}

	/* columns that somebody added after ours do no harm */
	rel = table_open(found.state_rel, AccessShareLock);
	if (RelationGetDescr(rel)->natts < Natts_sync_state ||
		strcmp(NameStr(TupleDescAttr(RelationGetDescr(rel),
									 Natts_sync_state - 1)->attname),
			   "failing_since") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"syncstate.sync_state\" is not of this library's version"),
				 errhint("Run ALTER EXTENSION syncstate UPDATE.")));
	table_close(rel, AccessShareLock);

	if (memcmp(&found, &ids, sizeof(ids)) != 0)
	{
		ids = found;
		generation++;
		for (int i = 0; i < NUM_PLANS; i++)
		{
			SPIPlanPtr	old = plans[i];

			plans[i] = NULL;
			if (old != NULL)
				SPI_freeplan(old);
		}
	}
	ids_valid = true;
}

/* Only a flag: an invalidation may arrive in the midst of anything. */
static void
state_rel_changed(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == ids.state_rel)
		ids_valid = false;
}

static Oid
relation_oid(const char *name, Oid namespace)
{
	Oid			oid = get_relname_relid(name, namespace);

	if (!OidIsValid(oid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation \"syncstate.%s\" does not exist", name)));
	return oid;
}

static Oid
type_oid(const char *name, Oid namespace)
{
	Oid			oid = GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid,
									  CStringGetDatum(name),
									  ObjectIdGetDatum(namespace));

	if (!OidIsValid(oid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("type \"syncstate.%s\" does not exist", name)));
	return oid;
}

/* ------------------------------------------------------------- statements */

/* The kept plan; caller must be connected to SPI. */
static SPIPlanPtr
plan(PlanId id)
{
	const StoreIds *current = syncstate_store_ids();

	if (plans[id] == NULL)
	{
		const PlanText *text = &plan_texts[id];
		Oid			args[MAX_PLAN_ARGS];
		SPIPlanPtr	prepared;

		for (int i = 0; i < text->nargs; i++)
		{
			args[i] = text->args[i];
			if (args[i] == ARG_SOURCE)
				args[i] = current->source_type;
			else if (args[i] == ARG_STATUS)
				args[i] = current->status_type;
			else if (args[i] == ARG_POLICY)
				args[i] = current->policy_rowtype;
		}
		prepared = SPI_prepare_cursor(text->sql, text->nargs, args,
									  CURSOR_OPT_GENERIC_PLAN);
		if (prepared == NULL || SPI_keepplan(prepared) != 0)
			elog(ERROR, "could not prepare statement %d: %s", id,
				 SPI_result_code_string(SPI_result));
		plans[id] = prepared;
	}
	return plans[id];
}

/*
 * Runs a kept plan; returns the number of rows.
 *
 * own_write: the rows written are legal as they are, and the trigger lets them
 * pass.  A write of somebody else's, made by a trigger of theirs during ours,
 * passes too, and is held by the CHECKs alone.
 */
static uint64
run(PlanId id, Datum *values, const char *nulls, bool own_write)
{
	bool		save_writing = writing;
	bool		save_seqscan = enable_seqscan;
	bool		save_hashjoin = enable_hashjoin;
	bool		save_mergejoin = enable_mergejoin;
	SPIPlanPtr volatile prepared = plan(id);
	int			result;

	PG_TRY();
	{
		writing = own_write;
		enable_seqscan = enable_hashjoin = enable_mergejoin = false;
		result = SPI_execute_plan(prepared, values, nulls, false, 0);
	}
	PG_FINALLY();
	{
		writing = save_writing;
		enable_seqscan = save_seqscan;
		enable_hashjoin = save_hashjoin;
		enable_mergejoin = save_mergejoin;
	}
	PG_END_TRY();

	if (result < 0)
		elog(ERROR, "could not run statement %d: %s", id,
			 SPI_result_code_string(result));
	return SPI_processed;
}

/* Whether the statement that fired the trigger is ours. */
bool
syncstate_store_is_writing(void)
{
	return writing;
}

static void
key_args(const SyncKey *key, Datum *values)
{
	values[0] = UUIDPGetDatum(&key->user_id);
	values[1] = ObjectIdGetDatum(key->source);
	values[2] = PointerGetDatum(key->resource);
}

static Datum
tid_array(const ItemPointerData *tids, int ntids)
{
	Datum	   *elems = palloc(ntids * sizeof(Datum));

	for (int i = 0; i < ntids; i++)
		elems[i] = PointerGetDatum(&tids[i]);
	return PointerGetDatum(construct_array(elems, ntids, TIDOID,
										   sizeof(ItemPointerData), false,
										   TYPALIGN_SHORT));
}

/* ------------------------------------------------------------------- rows */

/* The status that an enum label stands for. */
static SyncStatus
status_of(Oid label)
{
	const StoreIds *current = syncstate_store_ids();

	for (int i = 0; i < NUM_STATUSES; i++)
	{
		if (current->status_labels[i] == label)
			return (SyncStatus) i;
	}
	elog(ERROR, "unexpected sync status %u", label);
	return SYNC_IDLE;			/* keep compiler quiet */
}

/*
 * The values that stand for null are refused where somebody writes them as
 * values: none of ours has them, the CHECKs see to that.
 */
static TimestampTz
time_of(Datum value, const char *column)
{
	if (DatumGetTimestampTz(value) == NO_TIME)
		syncstate_check_time(column, NO_TIME);
	return DatumGetTimestampTz(value);
}

static int64
count_of(Datum value, const char *column)
{
	syncstate_check_count(column, DatumGetInt64(value));
	return DatumGetInt64(value);
}

/* Reads a row from the values of its columns; all but ctid. */
void
syncstate_state_from_datums(const Datum *values, const bool *nulls,
							SyncState *row)
{
#define VALUE(column)	values[Anum_sync_state_##column - 1]
#define IS_NULL(column)	nulls[Anum_sync_state_##column - 1]
#define TIME(column) \
	(IS_NULL(column) ? NO_TIME : time_of(VALUE(column), #column))
#define TEXT(column) \
	(IS_NULL(column) ? NULL : (text *) DatumGetPointer(VALUE(column)))
#define COUNT(column) \
	(IS_NULL(column) ? NO_COUNT : count_of(VALUE(column), #column))

	row->key.user_id = *DatumGetUUIDP(VALUE(user_id));
	row->key.source = DatumGetObjectId(VALUE(source));
	row->key.resource = DatumGetTextPP(VALUE(resource));
	row->status = status_of(DatumGetObjectId(VALUE(status)));
	row->sync_token = TEXT(sync_token);
	row->history_id = TEXT(history_id);
	row->updated_min = TIME(updated_min);
	row->token_issued_at = TIME(token_issued_at);
	row->last_full_sync_at = TIME(last_full_sync_at);
	row->due_at = TIME(due_at);
	row->requested_at = TIME(requested_at);
	row->parked_reason = TEXT(parked_reason);
	row->sync_interval = IS_NULL(sync_interval) ? NULL :
		DatumGetIntervalP(VALUE(sync_interval));
	row->lease = DatumGetInt64(VALUE(lease));
	row->lease_expires_at = TIME(lease_expires_at);
	row->last_sync_at = TIME(last_sync_at);
	row->last_successful_sync_at = TIME(last_successful_sync_at);
	row->items_synced = DatumGetInt64(VALUE(items_synced));
	row->page_token = TEXT(page_token);
	row->progress_done = COUNT(progress_done);
	row->progress_total = COUNT(progress_total);
	row->failures = DatumGetInt32(VALUE(failures));
	row->token_losses = DatumGetInt32(VALUE(token_losses));
	row->error_message = TEXT(error_message);
	row->created_at = TIME(created_at);
	row->updated_at = TIME(updated_at);
	row->failing_since = TIME(failing_since);

#undef VALUE
#undef IS_NULL
#undef TIME
#undef TEXT
#undef COUNT
}

/* The values of a row's columns; keep in sync with the function above. */
void
syncstate_state_to_datums(const SyncState *row, Datum *values, bool *nulls)
{
#define SET(column, is_null, value) \
	do { \
		nulls[Anum_sync_state_##column - 1] = (is_null); \
		values[Anum_sync_state_##column - 1] = \
			nulls[Anum_sync_state_##column - 1] ? (Datum) 0 : (value); \
	} while (0)
#define SET_TIME(column) \
	SET(column, row->column == NO_TIME, TimestampTzGetDatum(row->column))
#define SET_TEXT(column) \
	SET(column, row->column == NULL, PointerGetDatum(row->column))
#define SET_COUNT(column) \
	SET(column, row->column == NO_COUNT, Int64GetDatum(row->column))

	SET(user_id, false, UUIDPGetDatum(&row->key.user_id));
	SET(source, false, ObjectIdGetDatum(row->key.source));
	SET(resource, false, PointerGetDatum(row->key.resource));
	SET(status, false,
		ObjectIdGetDatum(syncstate_store_ids()->status_labels[row->status]));
	SET_TEXT(sync_token);
	SET_TEXT(history_id);
	SET_TIME(updated_min);
	SET_TIME(token_issued_at);
	SET_TIME(last_full_sync_at);
	SET_TIME(due_at);
	SET_TIME(requested_at);
	SET_TEXT(parked_reason);
	SET(sync_interval, row->sync_interval == NULL,
		IntervalPGetDatum(row->sync_interval));
	SET(lease, false, Int64GetDatum(row->lease));
	SET_TIME(lease_expires_at);
	SET_TIME(last_sync_at);
	SET_TIME(last_successful_sync_at);
	SET(items_synced, false, Int64GetDatum(row->items_synced));
	SET_TEXT(page_token);
	SET_COUNT(progress_done);
	SET_COUNT(progress_total);
	SET(failures, false, Int32GetDatum(row->failures));
	SET(token_losses, false, Int32GetDatum(row->token_losses));
	SET_TEXT(error_message);
	SET_TIME(created_at);
	SET_TIME(updated_at);
	SET_TIME(failing_since);

#undef SET
#undef SET_TIME
#undef SET_TEXT
#undef SET_COUNT
}

/* Reads a row of all columns, and ctid behind them. */
static void
read_row(HeapTuple tuple, TupleDesc tupdesc, SyncState *row)
{
	Datum		values[Natts_sync_state + 1];
	bool		nulls[Natts_sync_state + 1];

	Assert(tupdesc->natts == Natts_sync_state + 1);
	heap_deform_tuple(tuple, tupdesc, values, nulls);
	syncstate_state_from_datums(values, nulls, row);
	row->ctid = *(ItemPointer) DatumGetPointer(values[Natts_sync_state]);
}

/* Locks and reads the row of a key; false if there is none to be seen. */
bool
syncstate_store_lock(const SyncKey *key, SyncState *row)
{
	Datum		values[3];

	key_args(key, values);
	if (run(PLAN_LOCK, values, NULL, false) == 0)
		return false;
	read_row(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, row);
	return true;
}

/* Makes the row of a key, as the defaults have it, unless it is there. */
void
syncstate_store_make(const SyncKey *key)
{
	Datum		values[3];

	key_args(key, values);
	run(PLAN_MAKE, values, NULL, false);
}

/*
 * Writes a row that was locked in this transaction; the result is the row as
 * it is now, in the caller's outer context.  Row security may hide the row
 * from UPDATE: then there is no such row.
 */
Datum
syncstate_store_write(const SyncState *row)
{
	Datum		columns[Natts_sync_state];
	bool		column_nulls[Natts_sync_state];
	Datum		values[MAX_PLAN_ARGS];
	char		nulls[MAX_PLAN_ARGS];
	int			nargs = 0;
	bool		isnull;

	/* the columns in their order, but for the key and created_at */
	syncstate_state_to_datums(row, columns, column_nulls);
	values[nargs] = PointerGetDatum(&row->ctid);
	nulls[nargs++] = ' ';
	for (int i = Anum_sync_state_status - 1; i < Natts_sync_state; i++)
	{
		if (i == Anum_sync_state_created_at - 1)
			continue;
		values[nargs] = columns[i];
		nulls[nargs++] = column_nulls[i] ? 'n' : ' ';
	}
	Assert(nargs == plan_texts[PLAN_WRITE].nargs);

	if (run(PLAN_WRITE, values, nulls, true) != 1)
		syncstate_no_such_row();
	return SPI_datumTransfer(SPI_getbinval(SPI_tuptable->vals[0],
										   SPI_tuptable->tupdesc, 1, &isnull),
							 false, -1);
}

/*
 * Starts syncs of locked rows.  Leaves in SPI_tuptable, in the order of the
 * ctids, the three columns of the key, and behind them the row as a whole.
 */
void
syncstate_store_start(const ItemPointerData *tids, int ntids,
					  TimestampTz expires, TimestampTz now, bool clear_cursor)
{
	Datum		values[4];

	values[0] = tid_array(tids, ntids);
	values[1] = TimestampTzGetDatum(expires);
	values[2] = TimestampTzGetDatum(now);
	values[3] = BoolGetDatum(clear_cursor);
	run(PLAN_START, values, NULL, true);
}

/* Parks locked rows whose lease ran out once too often. */
void
syncstate_store_park_expired(const ItemPointerData *tids, int ntids,
							 const char *message, TimestampTz now)
{
	Datum		values[3];

	values[0] = tid_array(tids, ntids);
	values[1] = CStringGetTextDatum(message);
	values[2] = TimestampTzGetDatum(now);
	run(PLAN_PARK_EXPIRED, values, NULL, true);
}

/* Deletes the row of a key; false if there is none to be seen. */
bool
syncstate_store_delete(const SyncKey *key)
{
	Datum		values[3];

	key_args(key, values);
	return run(PLAN_DELETE, values, NULL, false) > 0;
}

/*
 * Puts the row of a key into the priority lane, unless it is there or parked.
 * Returns whether this wrote; *comes tells whether a sync will come.
 *
 * Not one of our own writes: the caller may be a user, who may write no column
 * but requested_at, and the trigger sets updated_at.
 */
bool
syncstate_store_request(const SyncKey *key, TimestampTz now, bool *comes)
{
	Datum		values[4];
	bool		isnull;

	key_args(key, values);
	values[3] = TimestampTzGetDatum(now);
	*comes = true;
	if (run(PLAN_REQUEST, values, NULL, false) > 0)
		return true;
	if (run(PLAN_REQUEST_LOOK, values, NULL, false) == 0)
		syncstate_no_such_row();
	*comes = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0],
										SPI_tuptable->tupdesc, 1, &isnull));
	return false;
}

/* What a locked row would be with the changes of a JSON object. */
void
syncstate_store_change(const SyncState *row, Datum changes, SyncState *changed)
{
	Datum		values[2];

	values[0] = PointerGetDatum(&row->ctid);
	values[1] = changes;
	if (run(PLAN_CHANGE, values, NULL, false) != 1)
		elog(ERROR, "locked sync state is gone");
	read_row(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, changed);
}

/* --------------------------------------------------------------- policies */

/*
 * Makes and locks the overrides of a source; returns what they would be with
 * the changes of a JSON object.
 */
Datum
syncstate_store_policy_changes(Oid source, Datum changes)
{
	Datum		values[2];
	bool		isnull;

	values[0] = ObjectIdGetDatum(source);
	values[1] = changes;
	run(PLAN_POLICY_MAKE, values, NULL, false);
	if (run(PLAN_POLICY_CHANGES, values, NULL, false) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for table %s", "sync_policy")));
	return SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
						 &isnull);
}

/* Pauses a source until a time, unless it is paused for longer already. */
void
syncstate_store_pause(Oid source, TimestampTz until)
{
	Datum		values[2];

	values[0] = ObjectIdGetDatum(source);
	values[1] = TimestampTzGetDatum(until);
	run(PLAN_POLICY_PAUSE, values, NULL, false);
}

/* Writes the overrides of a source; none left, no row. */
void
syncstate_store_policy_write(Oid source, Datum policy)
{
	Datum		values[2];

	values[0] = ObjectIdGetDatum(source);
	values[1] = policy;
	run(PLAN_POLICY_WRITE, values, NULL, false);
	run(PLAN_POLICY_TIDY, values, NULL, false);
}
