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
 * Plans are generic and go by key or ctid whatever the statistics and the
 * session's settings say: a plan made while the table was empty would otherwise
 * scan it from end to end for each report, until the next ANALYZE.
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
#include "jit/jit.h"
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
#include "utils/tuplestore.h"

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
	PLAN_LOCK_MANY,
	PLAN_WRITE,
	PLAN_WRITE_MANY,
	PLAN_START,
	PLAN_PARK_EXPIRED,
	PLAN_DELETE,
	PLAN_REQUEST,
	PLAN_REQUEST_LOCK,
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
#define ARG_SOURCE_ARRAY	((Oid) 4)
#define ARG_STATUS_ARRAY	((Oid) 5)

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

	/* locks in the order of the keys, so that two batches never deadlock */
	[PLAN_LOCK_MANY] = {
		"SELECT " COLUMNS("s") ", s.ctid, k.ord "
		"FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), "
		"pg_catalog.unnest($3)) WITH ORDINALITY "
		"AS k (user_id, source, resource, ord), syncstate.sync_state AS s "
		"WHERE s.user_id OPERATOR(pg_catalog.=) k.user_id "
		"AND s.source OPERATOR(pg_catalog.=) k.source "
		"AND s.resource OPERATOR(pg_catalog.=) k.resource "
		"ORDER BY k.ord FOR NO KEY UPDATE OF s",
		3, {UUIDARRAYOID, ARG_SOURCE_ARRAY, TEXTARRAYOID}
	},
	[PLAN_MAKE] = {
		"INSERT INTO syncstate.sync_state (user_id, source, resource) "
		"VALUES ($1, $2, $3) "
		"ON CONFLICT (user_id, source, resource) DO NOTHING",
		3, {UUIDOID, ARG_SOURCE, TEXTOID}
	},

	/* keep in sync with write_args(), and with the one for many rows below */
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

	/* the same for many rows; each array has a column of them */
	[PLAN_WRITE_MANY] = {
		"UPDATE syncstate.sync_state AS s SET status = w.status, "
		"sync_token = w.sync_token, history_id = w.history_id, "
		"updated_min = w.updated_min, token_issued_at = w.token_issued_at, "
		"last_full_sync_at = w.last_full_sync_at, due_at = w.due_at, "
		"requested_at = w.requested_at, parked_reason = w.parked_reason, "
		"sync_interval = w.sync_interval, lease = w.lease, "
		"lease_expires_at = w.lease_expires_at, "
		"last_sync_at = w.last_sync_at, "
		"last_successful_sync_at = w.last_successful_sync_at, "
		"items_synced = w.items_synced, page_token = w.page_token, "
		"progress_done = w.progress_done, "
		"progress_total = w.progress_total, failures = w.failures, "
		"token_losses = w.token_losses, error_message = w.error_message, "
		"updated_at = w.updated_at, failing_since = w.failing_since "
		"FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), "
		"pg_catalog.unnest($3), pg_catalog.unnest($4), "
		"pg_catalog.unnest($5), pg_catalog.unnest($6), "
		"pg_catalog.unnest($7), pg_catalog.unnest($8), "
		"pg_catalog.unnest($9), pg_catalog.unnest($10), "
		"pg_catalog.unnest($11), pg_catalog.unnest($12), "
		"pg_catalog.unnest($13), pg_catalog.unnest($14), "
		"pg_catalog.unnest($15), pg_catalog.unnest($16), "
		"pg_catalog.unnest($17), pg_catalog.unnest($18), "
		"pg_catalog.unnest($19), pg_catalog.unnest($20), "
		"pg_catalog.unnest($21), pg_catalog.unnest($22), "
		"pg_catalog.unnest($23), pg_catalog.unnest($24)) "
		"AS w (ctid, status, sync_token, history_id, updated_min, "
		"token_issued_at, last_full_sync_at, due_at, requested_at, "
		"parked_reason, sync_interval, lease, lease_expires_at, "
		"last_sync_at, last_successful_sync_at, items_synced, page_token, "
		"progress_done, progress_total, failures, token_losses, "
		"error_message, updated_at, failing_since) "
		"WHERE s.ctid OPERATOR(pg_catalog.=) w.ctid RETURNING s",
		24, {TIDARRAYOID, ARG_STATUS_ARRAY, TEXTARRAYOID, TEXTARRAYOID,
			TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID,
			TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID, TEXTARRAYOID,
			INTERVALARRAYOID, INT8ARRAYOID, TIMESTAMPTZARRAYOID,
			TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID, INT8ARRAYOID,
			TEXTARRAYOID, INT8ARRAYOID, INT8ARRAYOID, INT4ARRAYOID,
			INT4ARRAYOID, TEXTARRAYOID, TIMESTAMPTZARRAYOID,
		TIMESTAMPTZARRAYOID}
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
		"failures = CASE WHEN s.status OPERATOR(pg_catalog.=) "
		"'syncing'::syncstate.sync_status "
		"AND s.failures OPERATOR(pg_catalog.<) 2147483647 "
		"THEN s.failures OPERATOR(pg_catalog.+) 1 ELSE s.failures END, "
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
		"failures = CASE WHEN s.failures OPERATOR(pg_catalog.<) 2147483647 "
		"THEN s.failures OPERATOR(pg_catalog.+) 1 ELSE s.failures END, "
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
		"WHERE " KEY_MATCHES,
		4, {UUIDOID, ARG_SOURCE, TEXTOID, TIMESTAMPTZOID}
	},
	[PLAN_REQUEST_LOCK] = {
		"SELECT s.parked_reason IS NULL, s.requested_at IS NULL "
		"FROM syncstate.sync_state AS s "
		"WHERE " KEY_MATCHES " FOR NO KEY UPDATE",
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
		"WHERE NOT $3 OR p.paused_until IS NULL "
		"OR p.paused_until OPERATOR(pg_catalog.<) EXCLUDED.paused_until",
		3, {ARG_SOURCE, TIMESTAMPTZOID, BOOLOID}
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

/*
 * What the planner is told while it may plan a statement of ours.  No JIT: a
 * disabled kind of plan, where there is no other, counts as dear enough to be
 * compiled at each execution.
 */
static const struct
{
	bool	   *setting;
	bool		value;
}			planner_settings[] = {
	{&enable_seqscan, false},
	{&enable_hashjoin, false},
	{&enable_mergejoin, false},
	{&enable_nestloop, true},
	{&enable_indexscan, true},
	{&enable_tidscan, true},
	{&jit_enabled, false},
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
static Datum column_array(Datum *values, bool *nulls, int nvalues, Oid type);
static int	write_args(const SyncState *row, Datum *values, char *nulls);
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
			else if (args[i] == ARG_SOURCE_ARRAY)
				args[i] = get_array_type(current->source_type);
			else if (args[i] == ARG_STATUS_ARRAY)
				args[i] = get_array_type(current->status_type);
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
 * passes too, and is held by the CHECK alone.
 */
static uint64
run(PlanId id, Datum *values, const char *nulls, bool own_write)
{
	bool		save_writing = writing;
	bool		save_settings[lengthof(planner_settings)];
	SPIPlanPtr volatile prepared = plan(id);
	volatile int result = 0;

	for (size_t i = 0; i < lengthof(planner_settings); i++)
		save_settings[i] = *planner_settings[i].setting;
	PG_TRY();
	{
		writing = own_write;
		for (size_t i = 0; i < lengthof(planner_settings); i++)
			*planner_settings[i].setting = planner_settings[i].value;
		result = SPI_execute_plan(prepared, values, nulls, false, 0);
	}
	PG_FINALLY();
	{
		writing = save_writing;
		for (size_t i = 0; i < lengthof(planner_settings); i++)
			*planner_settings[i].setting = save_settings[i];
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

/* Values of one type as an array; nulls may be NULL: none is. */
static Datum
column_array(Datum *values, bool *nulls, int nvalues, Oid type)
{
	int16		typlen;
	bool		typbyval;
	char		typalign;
	int			lbound = 1;

	get_typlenbyvalalign(type, &typlen, &typbyval, &typalign);
	return PointerGetDatum(construct_md_array(values, nulls, 1, &nvalues,
											  &lbound, type, typlen, typbyval,
											  typalign));
}

static Datum
tid_array(const ItemPointerData *tids, int ntids)
{
	Datum	   *values = palloc(ntids * sizeof(Datum));

	for (int i = 0; i < ntids; i++)
		values[i] = PointerGetDatum(&tids[i]);
	return column_array(values, NULL, ntids, TIDOID);
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
 * values: none of ours has them, the CHECK sees to that.
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
	/* looked into; the long texts are only passed on, as they are stored */
	row->history_id = IS_NULL(history_id) ? NULL :
		DatumGetTextPP(VALUE(history_id));
	row->updated_min = TIME(updated_min);
	row->token_issued_at = TIME(token_issued_at);
	row->last_full_sync_at = TIME(last_full_sync_at);
	row->due_at = TIME(due_at);
	row->requested_at = TIME(requested_at);
	row->parked_reason = IS_NULL(parked_reason) ? NULL :
		DatumGetTextPP(VALUE(parked_reason));
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

/* Reads a row of all columns, ctid behind them, and perhaps one more. */
static void
read_row(HeapTuple tuple, TupleDesc tupdesc, SyncState *row)
{
	Datum		values[Natts_sync_state + 2];
	bool		nulls[Natts_sync_state + 2];

	Assert(tupdesc->natts <= Natts_sync_state + 2);
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
 * What a row is written with: its ctid, and its columns in their order but for
 * the key and created_at.  Returns the number of values.
 */
static int
write_args(const SyncState *row, Datum *values, char *nulls)
{
	Datum		columns[Natts_sync_state];
	bool		column_nulls[Natts_sync_state];
	int			nargs = 0;

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
	return nargs;
}

/*
 * Writes a row that was locked in this transaction; the result is the row as
 * it is now, in the caller's outer context.  Row security may hide the row
 * from UPDATE: then there is no such row.
 */
Datum
syncstate_store_write(const SyncState *row)
{
	Datum		values[MAX_PLAN_ARGS];
	char		nulls[MAX_PLAN_ARGS];
	bool		isnull;

	(void) write_args(row, values, nulls);
	if (run(PLAN_WRITE, values, nulls, true) != 1)
		syncstate_no_such_row();
	return SPI_datumTransfer(SPI_getbinval(SPI_tuptable->vals[0],
										   SPI_tuptable->tupdesc, 1, &isnull),
							 false, -1);
}

/*
 * Locks and reads the rows of keys, which must be distinct and in the order of
 * all batches.  Returns the number of rows found; key_of_row tells whose each
 * is.
 */
int
syncstate_store_lock_many(const SyncKey *keys, int nkeys, SyncState *rows,
						  int *key_of_row)
{
	Datum	   *columns[3];
	Datum		values[3];
	int			nrows;

	for (int i = 0; i < 3; i++)
		columns[i] = palloc(nkeys * sizeof(Datum));
	for (int k = 0; k < nkeys; k++)
	{
		Datum		key[3];

		key_args(&keys[k], key);
		for (int i = 0; i < 3; i++)
			columns[i][k] = key[i];
	}
	values[0] = column_array(columns[0], NULL, nkeys, UUIDOID);
	values[1] = column_array(columns[1], NULL, nkeys,
							 syncstate_store_ids()->source_type);
	values[2] = column_array(columns[2], NULL, nkeys, TEXTOID);

	nrows = (int) run(PLAN_LOCK_MANY, values, NULL, false);
	for (int i = 0; i < nrows; i++)
	{
		bool		isnull;

		read_row(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, &rows[i]);
		key_of_row[i] = (int) DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i],
														  SPI_tuptable->tupdesc,
														  Natts_sync_state + 2,
														  &isnull)) - 1;
	}
	return nrows;
}

/*
 * Writes rows that were locked in this transaction, by one statement, and
 * leaves the rows as they are now in SPI_tuptable, in their order.
 */
void
syncstate_store_write_many(const SyncState *rows, int nrows)
{
	int			nargs = plan_texts[PLAN_WRITE].nargs;
	Datum	   *columns[MAX_PLAN_ARGS];
	bool	   *column_nulls[MAX_PLAN_ARGS];
	Datum		values[MAX_PLAN_ARGS];
	char		nulls[MAX_PLAN_ARGS];

	for (int i = 0; i < nargs; i++)
	{
		columns[i] = palloc(nrows * sizeof(Datum));
		column_nulls[i] = palloc(nrows * sizeof(bool));
	}
	for (int r = 0; r < nrows; r++)
	{
		(void) write_args(&rows[r], values, nulls);
		for (int i = 0; i < nargs; i++)
		{
			columns[i][r] = values[i];
			column_nulls[i][r] = nulls[i] == 'n';
		}
	}
	for (int i = 0; i < nargs; i++)
	{
		Oid			type = plan_texts[PLAN_WRITE].args[i];

		if (type == ARG_STATUS)
			type = syncstate_store_ids()->status_type;
		values[i] = column_array(columns[i], column_nulls[i], nrows, type);
	}
	run(PLAN_WRITE_MANY, values, NULL, true);
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

/* Returns a row, given as a composite value, from a set-returning function. */
void
syncstate_store_return_row(ReturnSetInfo *rsinfo, Datum row)
{
	HeapTupleHeader header = DatumGetHeapTupleHeader(row);
	HeapTupleData tuple;

	tuple.t_len = HeapTupleHeaderGetDatumLength(header);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	tuple.t_data = header;
	tuplestore_puttuple(rsinfo->setResult, &tuple);
}

/* Returns all rows of SPI_tuptable, which are composite values in a column. */
void
syncstate_store_return(ReturnSetInfo *rsinfo, int column)
{
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;

		syncstate_store_return_row(rsinfo,
								   SPI_getbinval(SPI_tuptable->vals[i],
												 SPI_tuptable->tupdesc,
												 column, &isnull));
	}
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
 * The row is locked first: a request that is there may be gone as soon as the
 * transaction of a claim commits, and then this one is needed.
 *
 * Not one of our own writes: the caller may be a user, who may write no column
 * but requested_at, and the trigger sets updated_at.
 */
bool
syncstate_store_request(const SyncKey *key, TimestampTz now, bool *comes)
{
	Datum		values[4];
	bool		isnull;
	bool		is_new;

	key_args(key, values);
	values[3] = TimestampTzGetDatum(now);
	if (run(PLAN_REQUEST_LOCK, values, NULL, false) == 0)
		syncstate_no_such_row();
	*comes = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0],
										SPI_tuptable->tupdesc, 1, &isnull));
	is_new = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0],
										SPI_tuptable->tupdesc, 2, &isnull));
	return *comes && is_new &&
		run(PLAN_REQUEST, values, NULL, false) > 0;
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

	/* another session may delete the row in between, having tidied it */
	for (int try = 0; try < MAX_TRIES; try++)
	{
		run(PLAN_POLICY_MAKE, values, NULL, false);
		if (run(PLAN_POLICY_CHANGES, values, NULL, false) == 1)
			break;
	}
	if (SPI_processed != 1)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for table %s", "sync_policy")));
	return SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
						 &isnull);
}

/*
 * Pauses a source until a time; NO_TIME ends the pause.  "extend" leaves a
 * longer pause as it is.
 */
void
syncstate_store_pause(Oid source, TimestampTz until, bool extend)
{
	Datum		values[3];

	values[0] = ObjectIdGetDatum(source);
	values[1] = TimestampTzGetDatum(until);
	values[2] = BoolGetDatum(extend);
	run(PLAN_POLICY_PAUSE, values, until == NO_TIME ? " n " : NULL, false);
	if (until == NO_TIME)
		run(PLAN_POLICY_TIDY, values, NULL, false);
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
