/*
 * crowd.c: what the sessions tell each other of a lane
 *
 * A session that walks by itself passes the rows that the others took, and so
 * each row is passed as many times as there are sessions.  Sessions that meet
 * share two places of the lane, up to which its entries were given out; each
 * of them draws the next stretch for itself alone.
 *
 * The places are in a row of sync_lane for each source, kind of claims and
 * lane.  It is changed in place, like hint bits and with their rules: under the
 * page's lock, without WAL but for the page's image where checksums want it, and
 * without a version that a held snapshot would keep.  All columns have a fixed
 * length, so that who reads the row by SQL meanwhile sees an older, a newer or a
 * mixed place, but never something that is no value.  After a crash it is as old
 * as the page.
 *
 * Whatever is found there is a hint: if it is missing, old or wrong, entries are
 * passed once more, or are found by the sweep.  So nobody waits for it either.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "fmgr.h"
#include "storage/bufmgr.h"
#include "storage/bufpage.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"

#include "catalog.h"
#include "check.h"
#include "crowd.h"

#define Anum_sync_lane_source	6
#define Anum_sync_lane_kind		7
#define Anum_sync_lane_lane		8

/* What the fields take, without padding at the end. */
#define SHARED_LANE_SIZE		(offsetof(SharedLane, lane) + sizeof(int16))

StaticAssertDecl(offsetof(SharedLane, fronts[FRONT_SWEEP]) == 24 &&
				 offsetof(SharedLane, sweep_rests_until) == 48 &&
				 offsetof(SharedLane, lane) == 56 + NAMEDATALEN + 2,
				 "the columns of sync_lane must lie like the fields");

/*
 * Opens sync_lane, unless somebody is dropping or rewriting it.  The lock is held
 * until it is closed only: a row that is somewhere else the next time is looked
 * up again.
 */
static Relation
open_lanes(void)
{
	Oid			relid = syncstate_ids()->lane_rel;
	Relation	rel;

	if (!ConditionalLockRelationOid(relid, RowExclusiveLock))
		return NULL;
	rel = try_table_open(relid, NoLock);
	if (rel == NULL)
		UnlockRelationOid(relid, RowExclusiveLock);
	return rel;
}

static bool
is_of(const SharedLane *lane, const NameData *source, int kind, int number)
{
	return lane->kind == kind && lane->lane == number &&
		strncmp(NameStr(lane->source), NameStr(*source), NAMEDATALEN) == 0;
}

/*
 * Locks the page that a reference leads to; the row on it, or NULL with nothing
 * locked if the row is not there, or no more.
 */
static SharedLane *
lock_row(Relation rel, const CrowdRef *ref, const NameData *source, int kind,
		 int number, int mode, Buffer *buffer)
{
	ItemPointerData tid = ref->tid;
	BlockNumber block = ItemPointerGetBlockNumberNoCheck(&tid);
	OffsetNumber offset = ItemPointerGetOffsetNumberNoCheck(&tid);
	Page		page;

	if (!ref->is_known || block >= RelationGetNumberOfBlocks(rel))
		return NULL;
	*buffer = ReadBuffer(rel, block);
	LockBuffer(*buffer, mode);
	page = BufferGetPage(*buffer);
	if (offset <= PageGetMaxOffsetNumber(page))
	{
		ItemId		item = PageGetItemId(page, offset);

		if (ItemIdIsNormal(item))
		{
			HeapTupleHeader header = (HeapTupleHeader) PageGetItem(page, item);
			SharedLane *lane = (SharedLane *) ((char *) header + header->t_hoff);

			/* not one that somebody has updated, unless that was rolled back */
			if (ItemIdGetLength(item) >= header->t_hoff + SHARED_LANE_SIZE &&
				((header->t_infomask & HEAP_XMAX_INVALID) != 0 ||
				 ItemPointerEquals(&header->t_ctid, &tid)) &&
				is_of(lane, source, kind, number))
				return lane;
		}
	}
	UnlockReleaseBuffer(*buffer);
	return NULL;
}

/*
 * Looks the row up by its key, which a session does once.  Not by the index,
 * which may be replaced at any time: the table is small.
 */
static void
find_row(Relation rel, CrowdRef *ref, const NameData *source, int kind,
		 int number)
{
	ScanKeyData keys[3];
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&keys[0], Anum_sync_lane_source, BTEqualStrategyNumber,
				F_NAMEEQ, NameGetDatum(source));
	ScanKeyInit(&keys[1], Anum_sync_lane_kind, BTEqualStrategyNumber,
				F_INT2EQ, Int16GetDatum(kind));
	ScanKeyInit(&keys[2], Anum_sync_lane_lane, BTEqualStrategyNumber,
				F_INT2EQ, Int16GetDatum(number));
	scan = systable_beginscan(rel, InvalidOid, false, NULL, lengthof(keys), keys);
	tuple = systable_getnext(scan);
	ref->is_known = HeapTupleIsValid(tuple);
	if (ref->is_known)
		ref->tid = tuple->t_self;
	systable_endscan(scan);
}

/* Reads what is known of a lane; false if nothing can be. */
bool
syncstate_crowd_read(CrowdRef *ref, const NameData *source, int kind, int lane,
					 SharedLane *found)
{
	Relation	rel = open_lanes();
	SharedLane *row;
	Buffer		buffer;

	if (rel == NULL)
		return false;
	row = lock_row(rel, ref, source, kind, lane, BUFFER_LOCK_SHARE, &buffer);
	if (row == NULL)
	{
		/* the first time, or it was moved */
		find_row(rel, ref, source, kind, lane);
		row = lock_row(rel, ref, source, kind, lane, BUFFER_LOCK_SHARE, &buffer);
	}
	if (row != NULL)
	{
		memcpy(found, row, SHARED_LANE_SIZE);
		UnlockReleaseBuffer(buffer);
	}
	table_close(rel, RowExclusiveLock);
	return row != NULL;
}

/* Locks the row that was read, to change it; NULL as above. */
static SharedLane *
lock_seen(Relation rel, const CrowdRef *ref, const SharedLane *seen,
		  Buffer *buffer)
{
	return lock_row(rel, ref, &seen->source, seen->kind, seen->lane,
					BUFFER_LOCK_EXCLUSIVE, buffer);
}

static void
unlock_changed(Buffer buffer)
{
	MarkBufferDirtyHint(buffer, true);
	UnlockReleaseBuffer(buffer);
}

/*
 * Moves a place if it is where it was seen, and lets the sweep rest, if that is
 * a time; false if somebody else has moved the place since.
 */
bool
syncstate_crowd_move(CrowdRef *ref, const SharedLane *seen, Front front,
					 const SharedPlace *to, TimestampTz rests_until)
{
	Relation	rel = open_lanes();
	SharedLane *row;
	Buffer		buffer;
	bool		is_there = true;

	if (rel == NULL)
		return true;
	row = lock_seen(rel, ref, seen, &buffer);
	if (row != NULL)
	{
		is_there = memcmp(&row->fronts[front], &seen->fronts[front],
						  sizeof(SharedPlace)) == 0;
		if (is_there)
		{
			row->fronts[front] = *to;
			if (rests_until != NO_TIME)
				row->sweep_rests_until = rests_until;
		}
		unlock_changed(buffer);
	}
	table_close(rel, RowExclusiveLock);
	return is_there;
}

/*
 * Lets the sweep rest until a time, or as long as it rests already; but a longer
 * rest than there is comes of a clock that was set back.
 */
void
syncstate_crowd_rest(CrowdRef *ref, const SharedLane *seen,
					 TimestampTz rests_until)
{
	Relation	rel = open_lanes();
	SharedLane *row;
	Buffer		buffer;

	if (rel == NULL)
		return;
	row = lock_seen(rel, ref, seen, &buffer);
	if (row != NULL)
	{
		if (row->sweep_rests_until < rests_until ||
			row->sweep_rests_until > rests_until + SWEEP_PAUSE)
			row->sweep_rests_until = rests_until;
		unlock_changed(buffer);
	}
	table_close(rel, RowExclusiveLock);
}
