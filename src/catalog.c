/*
 * catalog.c: OIDs of our objects, looked up by name
 *
 * The OIDs are kept until the relation cache says that sync_state, one of its
 * indexes or its triggers may have changed.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_enum.h"
#include "catalog/pg_index.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "catalog.h"

static const char *const status_names[NUM_STATUSES] = {
#define LABEL(c_name, sql_name) [SYNC_##c_name] = #sql_name,
	SYNC_STATUSES(LABEL)
#undef LABEL
};

static const char *const state_columns[Natts_sync_state] = {
#define NAME(name, kind, writer) #name,
	SYNC_STATE_COLUMNS(NAME)
#undef NAME
};

static CatalogIds ids;
static bool ids_valid = false;

/* Counts invalidations, to see those that arrive while names are looked up. */
static uint64 invalidations = 0;

/* Sets only a flag, since an invalidation may arrive in the middle of anything. */
static void
rel_changed(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == ids.state_rel ||
		!OidIsValid(ids.state_rel))
	{
		ids_valid = false;
		invalidations++;
	}
}

/* Checks that an index is what walks and searches take it for. */
static void
check_index(Oid index, const char *name, Oid table, const int *columns,
			int ncolumns)
{
	HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(index));
	bool		matches = HeapTupleIsValid(tuple);

	if (matches)
	{
		Form_pg_index form = (Form_pg_index) GETSTRUCT(tuple);

		/* not whether it is valid: REINDEX CONCURRENTLY may just be swapping it */
		matches = form->indrelid == table && form->indnkeyatts == ncolumns &&
			form->indisready;
		for (int i = 0; matches && i < ncolumns; i++)
			matches = form->indkey.values[i] == columns[i];
		ReleaseSysCache(tuple);
	}
	if (!matches)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("index \"syncstate.%s\" is not as installed", name),
				 errhint("Drop it, and make it again as the extension's install script does.")));
}

static void
check_indexes(const CatalogIds *found)
{
	static const int key[] = {
		Anum_sync_state_user_id, Anum_sync_state_account,
		Anum_sync_state_source, Anum_sync_state_resource,
	};
	static const int due[] = {
		Anum_sync_state_source, Anum_sync_state_due_at,
		Anum_sync_state_user_id, Anum_sync_state_account,
		Anum_sync_state_resource,
	};
	static const int requested[] = {
		Anum_sync_state_source, Anum_sync_state_requested_at,
		Anum_sync_state_user_id, Anum_sync_state_account,
		Anum_sync_state_resource,
	};

	check_index(found->pkey_index, "sync_state_pkey", found->state_rel,
				key, lengthof(key));
	check_index(found->due_index, "sync_state_due", found->state_rel,
				due, lengthof(due));
	check_index(found->requested_index, "sync_state_requested",
				found->state_rel, requested, lengthof(requested));
}

/* Raises an error where a name was not found. */
static Oid
found_oid(Oid oid, int sqlstate, const char *kind, const char *name)
{
	if (!OidIsValid(oid))
		ereport(ERROR,
				(errcode(sqlstate),
				 errmsg("%s \"syncstate.%s\" does not exist", kind, name)));
	return oid;
}

static Oid
relation_oid(const char *name, Oid namespace)
{
	return found_oid(get_relname_relid(name, namespace),
					 ERRCODE_UNDEFINED_TABLE, "relation", name);
}

static Oid
type_oid(const char *name, Oid namespace)
{
	return found_oid(GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid,
									 CStringGetDatum(name),
									 ObjectIdGetDatum(namespace)),
					 ERRCODE_UNDEFINED_OBJECT, "type", name);
}

/* The function with exactly these arguments; a site may have overloads. */
static Oid
function_oid(const char *name, Oid namespace, const Oid *args, int nargs)
{
	return found_oid(GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid,
									 CStringGetDatum(name),
									 PointerGetDatum(buildoidvector(args, nargs)),
									 ObjectIdGetDatum(namespace)),
					 ERRCODE_UNDEFINED_FUNCTION, "function", name);
}

/* Checks that sync_state is the table that this library was made for. */
static void
check_table(Oid relid)
{
	Relation	rel = try_table_open(relid, AccessShareLock);
	TupleDesc	tupdesc;
	bool		matches;

	if (rel == NULL)
		return;					/* dropped meanwhile: looked up again */
	if (rel->rd_rel->relkind != RELKIND_RELATION)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"syncstate.sync_state\" is not a plain table"),
				 errdetail_relkind_not_supported(rel->rd_rel->relkind)));

	/* columns that somebody added after ours do no harm */
	tupdesc = RelationGetDescr(rel);
	matches = tupdesc->natts >= Natts_sync_state;
	for (int i = 0; matches && i < Natts_sync_state; i++)
		matches = strcmp(NameStr(TupleDescAttr(tupdesc, i)->attname),
						 state_columns[i]) == 0;
	if (!matches)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"syncstate.sync_state\" is not of this library's version"),
				 errhint("Run ALTER EXTENSION syncstate UPDATE.")));
	table_close(rel, NoLock);	/* keeps its indexes, too */
}

static void
load_ids(void)
{
	static bool callback_registered = false;
	uint64		before = invalidations;
	CatalogIds	found;
	Oid			namespace;
	Oid			claim_args[4];

	if (!callback_registered)
	{
		CacheRegisterRelcacheCallback(rel_changed, (Datum) 0);
		callback_registered = true;
	}

	namespace = get_namespace_oid("syncstate", false);
	found.state_rel = relation_oid("sync_state", namespace);
	check_table(found.state_rel);	/* first: this may wait for its lock */
	found.policy_rel = relation_oid("sync_policy", namespace);
	found.budget_rel = relation_oid("sync_budget", namespace);
	found.lane_rel = relation_oid("sync_lane", namespace);
	found.event_rel = relation_oid("sync_event", namespace);
	found.run_rel = relation_oid("sync_run", namespace);
	found.channel_rel = relation_oid("sync_channel", namespace);
	found.due_index = relation_oid("sync_state_due", namespace);
	found.requested_index = relation_oid("sync_state_requested", namespace);
	found.pkey_index = relation_oid("sync_state_pkey", namespace);
	found.state_rowtype = type_oid("sync_state", namespace);
	found.policy_rowtype = type_oid("sync_policy", namespace);
	found.event_rowtype = type_oid("sync_event", namespace);
	found.run_rowtype = type_oid("sync_run", namespace);
	found.channel_rowtype = type_oid("sync_channel", namespace);
	found.source_type = type_oid("sync_source", namespace);
	found.status_type = type_oid("sync_status", namespace);
	claim_args[0] = found.source_type;
	claim_args[1] = INT4OID;
	claim_args[2] = INTERVALOID;
	claim_args[3] = TEXTOID;
	found.claim_function = function_oid("claim_due_syncs", namespace,
										claim_args, lengthof(claim_args));
	found.guard_function = function_oid("guard", namespace, NULL, 0);
	for (int i = 0; i < NUM_STATUSES; i++)
	{
		found.status_labels[i] =
			GetSysCacheOid2(ENUMTYPOIDNAME, Anum_pg_enum_oid,
							ObjectIdGetDatum(found.status_type),
							CStringGetDatum(status_names[i]));
		if (!OidIsValid(found.status_labels[i]))
			elog(ERROR, "sync status \"%s\" is missing", status_names[i]);
	}
	check_indexes(&found);

	ids = found;
	ids_valid = before == invalidations;
}

/*
 * The OIDs of our objects.  Ask again after each lock that was waited for: the
 * pointer stays good, but what it points to changes only here.
 */
const CatalogIds *
syncstate_ids(void)
{
	if (!ids_valid)
		load_ids();
	return &ids;
}

/*
 * Opens sync_state.  With the lock held, its indexes stay: REINDEX CONCURRENTLY
 * waits for it before it drops those that it replaced.
 */
Relation
syncstate_open_state(LOCKMODE lockmode)
{
	for (;;)
	{
		Relation	rel = try_table_open(syncstate_ids()->state_rel, lockmode);

		if (rel != NULL)
			return rel;
		ids_valid = false;		/* it was dropped while we waited */
	}
}

/* The status that an enum label stands for. */
SyncStatus
syncstate_status_of(Oid label)
{
	const CatalogIds *current = syncstate_ids();

	for (int i = 0; i < NUM_STATUSES; i++)
	{
		if (current->status_labels[i] == label)
			return (SyncStatus) i;
	}
	elog(ERROR, "unexpected sync status %u", label);
	return SYNC_IDLE;			/* keep compiler quiet */
}
