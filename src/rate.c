/*
 * rate.c: the allowance of starts per minute of a source, shared by all sessions
 *
 * The allowance is one number per source: the theoretical arrival time of the
 * next start, see take_permits().  It lives in a sequence, because a
 * sequence is a cell that PostgreSQL changes in place: no dead versions pile up
 * under a held snapshot, nobody waits for the end of a transaction, and what a
 * transaction that is rolled back has drawn stays drawn, as a call to a
 * provider stays made.
 *
 * A session reads and writes the cell under a lock that it holds for that long
 * only.  The sequences belong to the owner of the extension and nobody has a
 * privilege on them: the cell is read and written as its owner, as a foreign
 * key's trigger reads the other table.  A role that may start syncs may draw permits.
 */
#include "postgres.h"

#include <math.h>

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "check.h"
#include "rate.h"
#include "syncstate.h"

/*
 * How many starts a source that was idle may make at once, as time: 5 % of a
 * minute's.  Any minute then has at most 105 % of its allowance.
 */
#define RATE_BURST			(3 * USECS_PER_SEC)

/* How far ahead of its allowance starts that are never refused may put it. */
#define RATE_DEBT			USECS_PER_MINUTE

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

/* The time that one start takes of the allowance, in microseconds. */
static double
permit_time(const SyncPolicy *policy)
{
	return (double) USECS_PER_MINUTE / policy->rate_per_minute;
}

/* The time that so many starts take of the allowance. */
static int64
permits_time(const SyncPolicy *policy, int permits)
{
	return (int64) ceil(permits * permit_time(policy));
}

/*
 * The theoretical arrival time to count from: an idle source has saved up no
 * more than a burst; and a time that no source can have reached is one of a
 * clock that was set back since, and says nothing.
 */
static TimestampTz
arrival_base(const SyncPolicy *policy, TimestampTz arrival, TimestampTz now)
{
	int64		burst = Max(RATE_BURST, permits_time(policy, 1));

	if (arrival > now + RATE_DEBT + USECS_PER_SEC)
		return now - burst;
	return Max(arrival, now - burst);
}

/*
 * Takes up to "wanted" permits to start a sync; returns how many there are.
 *
 *	arrival	when the next start would come, were all evenly spread; NO_TIME:
 *			there was none
 *
 * Formula: tat <- max(tat, now - burst) + n T, with T = 60 s / rate and as many
 * n as leave tat <= now.  Source: the generic cell rate algorithm, ITU-T
 * Recommendation I.371, annex A (virtual scheduling).
 */
static int
take_permits(const SyncPolicy *policy, TimestampTz *arrival,
				  TimestampTz now, int wanted)
{
	TimestampTz base = arrival_base(policy, *arrival, now);
	double		there = floor((now - base) / permit_time(policy));
	int			permits = there >= wanted ? wanted : Max((int) there, 0);

	*arrival = base + permits_time(policy, permits);
	return permits;
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
	permits = take_permits(policy, &arrival, *drawn_at, wanted);
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
	unused = permits_time(policy, permits) -
		Max(syncstate_now() - drawn_at, 0);
	arrival = read_cell(cell);
	if (arrival != NO_TIME && unused > 0)
		write_cell(cell, arrival - unused);
	UnlockDatabaseObject(RelationRelationId, cell, 0, ExclusiveLock);
}

/* Counts a start that is never refused; its debt has an end. */
static void
count_start(const SyncPolicy *policy, TimestampTz *arrival, TimestampTz now)
{
	*arrival = Min(arrival_base(policy, *arrival, now) +
				   permits_time(policy, 1), now + RATE_DEBT);
}

/* Counts a start that asks for no permit. */
void
syncstate_rate_count(const SyncPolicy *policy)
{
	Oid			cell = cell_of(policy);
	TimestampTz arrival;

	LockDatabaseObject(RelationRelationId, cell, 0, ExclusiveLock);
	arrival = read_cell(cell);
	count_start(policy, &arrival, syncstate_now());
	write_cell(cell, arrival);
	UnlockDatabaseObject(RelationRelationId, cell, 0, ExclusiveLock);
}

/* From when on there is a permit. */
static TimestampTz
opens_at(const SyncPolicy *policy, TimestampTz arrival,
					 TimestampTz now)
{
	return arrival_base(policy, arrival, now) + permits_time(policy, 1);
}

/* From when on there is a permit; "now" or earlier: there is one. */
TimestampTz
syncstate_rate_next(const SyncPolicy *policy, TimestampTz now)
{
	return opens_at(policy, read_cell(cell_of(policy)), now);
}

