/*-------------------------------------------------------------------------
 *
 * store.c
 *		What is done by statements: OIDs, kept plans, and the functions that
 *		run them
 *
 * The only file with SQL text in it.  Every name in it is qualified, every
 * column listed: a kept plan is analyzed again under whatever search_path the
 * call has.  Statements run as the caller, so privileges and row security
 * decide.  The callers are connected to SPI; what a function returns in
 * pointers lives until SPI_finish(), but for a row that was written, which is
 * copied into the caller's outer context.
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
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "jit/jit.h"
#include "nodes/parsenodes.h"
#include "optimizer/cost.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/catcache.h"
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
	s ".updated_at, " s ".failing_since, " s ".changes_seen, " \
	s ".seconds_watched"

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
	PLAN_DELETE,
	PLAN_REQUEST,
	PLAN_REQUEST_LOCK,
	PLAN_CHANGE,
	PLAN_POLICY_CHANGES,
	PLAN_POLICY_MAKE,
	PLAN_POLICY_WRITE,
	PLAN_POLICY_PAUSE,
	PLAN_POLICY_TIDY,
	PLAN_BUDGET,
	PLAN_BUDGET_WRITE,
	PLAN_BUDGET_DROP,
	PLAN_RATES,
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

	/* keep in sync with syncstate_store_write() */
	[PLAN_WRITE] = {
		"UPDATE syncstate.sync_state AS s SET status = $2, sync_token = $3, "
		"history_id = $4, updated_min = $5, token_issued_at = $6, "
		"last_full_sync_at = $7, due_at = $8, requested_at = $9, "
		"parked_reason = $10, sync_interval = $11, lease = $12, "
		"lease_expires_at = $13, last_sync_at = $14, "
		"last_successful_sync_at = $15, items_synced = $16, "
		"page_token = $17, progress_done = $18, progress_total = $19, "
		"failures = $20, token_losses = $21, error_message = $22, "
		"updated_at = $23, failing_since = $24, changes_seen = $25, "
		"seconds_watched = $26 "
		"WHERE s.ctid OPERATOR(pg_catalog.=) $1 RETURNING s",
		26, {TIDOID, ARG_STATUS, TEXTOID, TEXTOID, TIMESTAMPTZOID,
			TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID,
			TEXTOID, INTERVALOID, INT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID,
			TIMESTAMPTZOID, INT8OID, TEXTOID, INT8OID, INT8OID, INT4OID,
			INT4OID, TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID, FLOAT8OID,
		FLOAT8OID}
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
		"r.error_message, r.created_at, r.updated_at, r.failing_since, "
		"r.changes_seen, r.seconds_watched, s.ctid "
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
		"jitter = ($2).jitter, paused_until = ($2).paused_until, "
		"daily_budget = ($2).daily_budget, "
		"min_interval = ($2).min_interval, "
		"max_interval = ($2).max_interval, "
		"rate_per_minute = ($2).rate_per_minute "
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
		"AND p.paused_until IS NULL AND p.daily_budget IS NULL "
		"AND p.min_interval IS NULL AND p.max_interval IS NULL "
		"AND p.rate_per_minute IS NULL",
		1, {ARG_SOURCE}
	},
	[PLAN_BUDGET] = {
		"SELECT b.source, b.multiplier, b.mean_rate, b.correction, "
		"b.expected, b.rebalanced_at, b.starts, b.rows "
		"FROM syncstate.sync_budget AS b "
		"WHERE b.source OPERATOR(pg_catalog.=) $1",
		1, {ARG_SOURCE}
	},
	[PLAN_BUDGET_WRITE] = {
		"INSERT INTO syncstate.sync_budget AS b (source, multiplier, "
		"mean_rate, correction, expected, rebalanced_at, starts, rows) "
		"VALUES ($1, $2, $3, $4, $5, $6, $7, $8) "
		"ON CONFLICT (source) DO UPDATE SET "
		"multiplier = EXCLUDED.multiplier, mean_rate = EXCLUDED.mean_rate, "
		"correction = EXCLUDED.correction, "
		"expected = EXCLUDED.expected, "
		"rebalanced_at = EXCLUDED.rebalanced_at, "
		"starts = EXCLUDED.starts, rows = EXCLUDED.rows",
		8, {ARG_SOURCE, FLOAT8OID, FLOAT8OID, FLOAT8OID, FLOAT8OID,
		TIMESTAMPTZOID, FLOAT8OID, INT8OID}
	},
	[PLAN_BUDGET_DROP] = {
		"DELETE FROM syncstate.sync_budget AS b "
		"WHERE b.source OPERATOR(pg_catalog.=) $1",
		1, {ARG_SOURCE}
	},

	/*
	 * The rates of a source, in buckets of a sixteenth of an octave; keep in
	 * sync with syncstate_change_rate().  One bucket more has the rows with
	 * their own interval, another the parked ones.
	 */
	[PLAN_RATES] = {
		"SELECT pg_catalog.min(g.kind), pg_catalog.count(*), "
		"pg_catalog.avg(g.root), pg_catalog.sum(1.0::pg_catalog.float8 "
		"OPERATOR(pg_catalog./) g.seconds), "
		"pg_catalog.sum(g.changes_seen), "
		"pg_catalog.sum(g.seconds_watched), "
		"pg_catalog.sum(g.lease::pg_catalog.float8), "
		"pg_catalog.count(*) FILTER (WHERE g.due_at "
		"OPERATOR(pg_catalog.<) $4), "
		"pg_catalog.count(*) FILTER (WHERE g.created_at "
		"OPERATOR(pg_catalog.>) $3) "
		"FROM (SELECT s.lease, s.due_at, s.created_at, s.changes_seen, "
		"s.seconds_watched, "
		"CASE WHEN s.due_at IS NULL THEN 2 "
		"WHEN s.sync_interval IS NOT NULL THEN 1 ELSE 0 END AS kind, "
		"pg_catalog.date_part('epoch', s.sync_interval) AS seconds, "
		"pg_catalog.sqrt(GREATEST((COALESCE(s.changes_seen, "
		"0.0::pg_catalog.float8) OPERATOR(pg_catalog.+) "
		"1.0::pg_catalog.float8) OPERATOR(pg_catalog./) "
		"(COALESCE(s.seconds_watched, 0.0::pg_catalog.float8) "
		"OPERATOR(pg_catalog.+) (1.0::pg_catalog.float8 "
		"OPERATOR(pg_catalog./) $2)), CASE WHEN s.changes_seen "
		"OPERATOR(pg_catalog.>=) 1.0::pg_catalog.float8 "
		"AND s.seconds_watched "
		"OPERATOR(pg_catalog.>=) 1.0::pg_catalog.float8 "
		"THEN s.changes_seen OPERATOR(pg_catalog./) s.seconds_watched "
		"END)) AS root "
		"FROM syncstate.sync_state AS s "
		"WHERE s.source OPERATOR(pg_catalog.=) $1) AS g "
		"GROUP BY g.kind, CASE WHEN g.kind OPERATOR(pg_catalog.=) 0 "
		"THEN pg_catalog.floor(pg_catalog.ln(g.root) "
		"OPERATOR(pg_catalog.*) 46.166::pg_catalog.float8) END",
		4, {ARG_SOURCE, FLOAT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID}
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
static Oid	function_oid(const char *name, Oid namespace);
static Oid	type_oid(const char *name, Oid namespace);
static Oid	relation_oid(const char *name, Oid namespace);
static SPIPlanPtr plan(PlanId id);
static uint64 run(PlanId id, Datum *values, const char *nulls, bool own_write);
static void key_args(const SyncKey *key, Datum *values);
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
	found.budget_rel = relation_oid("sync_budget", namespace);
	found.due_index = relation_oid("sync_state_due", namespace);
	found.requested_index = relation_oid("sync_state_requested", namespace);
	found.pkey_index = relation_oid("sync_state_pkey", namespace);
	found.claim_function = function_oid("claim_due_syncs", namespace);
	found.guard_function = function_oid("guard", namespace);
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

	rel = table_open(found.state_rel, AccessShareLock);
	if (rel->rd_rel->relkind != RELKIND_RELATION)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"syncstate.sync_state\" is not a plain table"),
				 errdetail_relkind_not_supported(rel->rd_rel->relkind)));

	/* columns that somebody added after ours do no harm */
	if (RelationGetDescr(rel)->natts < Natts_sync_state ||
		strcmp(NameStr(TupleDescAttr(RelationGetDescr(rel),
									 Natts_sync_state - 1)->attname),
			   "seconds_watched") != 0)
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

/* Every name of ours stands for one function. */
static Oid
function_oid(const char *name, Oid namespace)
{
	CatCList   *functions = SearchSysCacheList1(PROCNAMEARGSNSP,
												CStringGetDatum(name));
	Oid			oid = InvalidOid;

	for (int i = 0; i < functions->n_members; i++)
	{
		Form_pg_proc function = (Form_pg_proc) GETSTRUCT(&functions->members[i]->tuple);

		if (function->pronamespace == namespace)
			oid = function->oid;
	}
	ReleaseSysCacheList(functions);
	if (!OidIsValid(oid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function \"syncstate.%s\" does not exist", name)));
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
		/* the only one that reads all rows of a source */
		if (id == PLAN_RATES)
			enable_seqscan = true;
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

/* Whether the write that fired the trigger is ours. */
bool
syncstate_store_is_writing(void)
{
	return writing;
}

/* Says that the next writes are ours, or no longer; returns what was said. */
bool
syncstate_store_set_writing(bool ours)
{
	bool		was = writing;

	writing = ours;
	return was;
}

static void
key_args(const SyncKey *key, Datum *values)
{
	values[0] = UUIDPGetDatum(&key->user_id);
	values[1] = ObjectIdGetDatum(key->source);
	values[2] = PointerGetDatum(key->resource);
}

/* ------------------------------------------------------------------- rows */

/* Reads a row of all columns, ctid behind them. */
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
 * it is now, in the caller's outer context, or NULL where row security hides
 * the row from UPDATE.
 */
HeapTuple
syncstate_store_write(const SyncState *row)
{
	Datum		columns[Natts_sync_state];
	bool		column_nulls[Natts_sync_state];
	Datum		values[MAX_PLAN_ARGS];
	char		nulls[MAX_PLAN_ARGS];
	HeapTupleData tuple = {.t_tableOid = InvalidOid};
	bool		isnull;
	int			nargs = 0;

	/* the ctid, and the columns in their order but for key and created_at */
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
		return NULL;
	tuple.t_data = DatumGetHeapTupleHeader(SPI_getbinval(SPI_tuptable->vals[0],
														 SPI_tuptable->tupdesc,
														 1, &isnull));
	tuple.t_len = HeapTupleHeaderGetDatumLength(tuple.t_data);
	ItemPointerSetInvalid(&tuple.t_self);
	return SPI_copytuple(&tuple);
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
	changed->tuple = row->tuple;
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

/* ---------------------------------------------------------------- budgets */

/*
 * Reads what was learned about the budget of a source, the columns of
 * sync_budget in their order; false if nothing was.
 */
bool
syncstate_store_budget(Oid source, Datum *values, bool *nulls)
{
	Datum		args[1];

	args[0] = ObjectIdGetDatum(source);
	if (run(PLAN_BUDGET, args, NULL, false) == 0)
		return false;
	heap_deform_tuple(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, values,
					  nulls);
	return true;
}

/* Writes the same. */
void
syncstate_store_budget_write(const Datum *values)
{
	run(PLAN_BUDGET_WRITE, unconstify(Datum *, values), NULL, false);
}

/* Forgets what was learned about the budget of a source. */
void
syncstate_store_budget_drop(Oid source)
{
	Datum		args[1];

	args[0] = ObjectIdGetDatum(source);
	run(PLAN_BUDGET_DROP, args, NULL, false);
}

/*
 * Reads the whole of a source once.  Leaves in SPI_tuptable a row per bucket:
 * its kind (0 by budget, 1 with their own interval, 2 parked), the number of
 * rows, the mean square root of their rates, their syncs per second by their
 * own intervals, the sums of changes_seen, seconds_watched and lease, and how
 * many fell due before "late" and how many were made after "since".
 */
uint64
syncstate_store_rates(Oid source, double mean_rate, TimestampTz since,
					  TimestampTz late)
{
	Datum		args[4];

	args[0] = ObjectIdGetDatum(source);
	args[1] = Float8GetDatum(mean_rate);
	args[2] = TimestampTzGetDatum(since);
	args[3] = TimestampTzGetDatum(late);
	return run(PLAN_RATES, args, NULL, false);
}
