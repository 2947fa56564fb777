/*-------------------------------------------------------------------------
 *
 * rate.c
 *		The allowance of starts per minute of a source, shared by all sessions
 *
 * The allowance is one number per source: the theoretical arrival time of the
 * next start, see syncstate_permits().  It lives in a sequence, because a
 * sequence is a cell that PostgreSQL changes in place: no dead versions pile up
 * under a held snapshot, nobody waits for the end of a transaction, and what a
 * transaction that is rolled back has drawn stays drawn, as a call to a
 * provider stays made.
 *
 * A session reads and writes the cell under a lock that it holds for that long
 * only.  The sequences belong to the owner of the extension and nobody has a
 * privilege on them: the cell is read and written as its owner, as a foreign
 * key's trigger reads the other table.  Who may start syncs may draw permits.
 *
 * src/rate.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "syncstate.h"

static Oid	cell_of(const SyncPolicy *policy);
static Oid	become_owner(Oid cell, int *save_context);
static TimestampTz read_cell(Oid cell);
static void write_cell(Oid cell, TimestampTz arrival);

/*
 * Draws up to "wanted" permits to start syncs of a source; returns how many
 * there are.
 */
int
syncstate_rate_draw(const SyncPolicy *policy, int wanted, TimestampTz *drawn_at)
{
	Oid			cell = cell_of(policy);
	TimestampTz arrival;
	int			permits;

	LockDatabaseObject(RelationRelationId, cell, 0, ExclusiveLock);
	*drawn_at = syncstate_now();
	arrival = read_cell(cell);
	permits = syncstate_permits(policy, &arrival, *drawn_at, wanted);
	if (permits > 0)
		write_cell(cell, arrival);
	UnlockDatabaseObject(RelationRelationId, cell, 0, ExclusiveLock);
	return permits;
}

/*
 * Gives back permits that were not used, less the time that they were held:
 * so much may have been forgiven to others meanwhile, who found the source
 * idle.
 */
void
syncstate_rate_give_back(const SyncPolicy *policy, int permits,
						 TimestampTz drawn_at)
{
	Oid			cell = cell_of(policy);
	TimestampTz arrival;
	int64		unused;

	LockDatabaseObject(RelationRelationId, cell, 0, ExclusiveLock);
	unused = syncstate_permits_time(policy, permits) -
		Max(syncstate_now() - drawn_at, 0);
	arrival = read_cell(cell);
	if (arrival != NO_TIME && unused > 0)
		write_cell(cell, arrival - unused);
	UnlockDatabaseObject(RelationRelationId, cell, 0, ExclusiveLock);
}

/* Counts a start that asks for no permit. */
void
syncstate_rate_count(const SyncPolicy *policy)
{
	Oid			cell = cell_of(policy);
	TimestampTz arrival;

	LockDatabaseObject(RelationRelationId, cell, 0, ExclusiveLock);
	arrival = read_cell(cell);
	syncstate_charge(policy, &arrival, syncstate_now());
	write_cell(cell, arrival);
	UnlockDatabaseObject(RelationRelationId, cell, 0, ExclusiveLock);
}

/* From when on there is a permit; "now" or earlier: there is one. */
TimestampTz
syncstate_rate_next(const SyncPolicy *policy, TimestampTz now)
{
	return syncstate_rate_opens(policy, read_cell(cell_of(policy)), now);
}

/* The sequence of a source. */
static Oid
cell_of(const SyncPolicy *policy)
{
	char		name[NAMEDATALEN + sizeof("rate_")];
	Oid			cell;

	snprintf(name, sizeof(name), "rate_%s", NameStr(policy->label));
	cell = get_relname_relid(name, get_namespace_oid("syncstate", false));
	if (!OidIsValid(cell))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("sync source \"%s\" cannot have a rate_per_minute",
						NameStr(policy->label)),
				 errdetail("There is no sequence \"syncstate.%s\".", name),
				 errhint("Labels are added by register_sync_source().")));
	return cell;
}

/*
 * Switches to the owner of the sequence; returns who the user was.  An error
 * switches back by itself.
 */
static Oid
become_owner(Oid cell, int *save_context)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(cell));
	Oid			save_user;
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", cell);
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	GetUserIdAndSecContext(&save_user, save_context);
	SetUserIdAndSecContext(owner, *save_context | SECURITY_LOCAL_USERID_CHANGE);
	return save_user;
}

/* The value of the cell; NO_TIME: never written. */
static TimestampTz
read_cell(Oid cell)
{
	LOCAL_FCINFO(fcinfo, 1);
	int			save_context;
	Oid			save_user = become_owner(cell, &save_context);
	Datum		value;

	InitFunctionCallInfoData(*fcinfo, NULL, 1, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = ObjectIdGetDatum(cell);
	fcinfo->args[0].isnull = false;
	value = pg_sequence_last_value(fcinfo);
	SetUserIdAndSecContext(save_user, save_context);
	return fcinfo->isnull ? NO_TIME : DatumGetTimestampTz(value);
}

static void
write_cell(Oid cell, TimestampTz arrival)
{
	int			save_context;
	Oid			save_user = become_owner(cell, &save_context);

	DirectFunctionCall2(setval_oid, ObjectIdGetDatum(cell),
						Int64GetDatum(arrival));
	SetUserIdAndSecContext(save_user, save_context);
}
