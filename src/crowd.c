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
 * page's lock, without WAL, and without a version that a held snapshot would
 * keep.  All columns have a fixed length, so that who reads the row by SQL
 * meanwhile sees an older, a newer or a mixed place, but never something that is
 * no value.  After a crash it is as old as the page.
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
#include "crowd.h"

#define Anum_sync_lane_source	6
#define Anum_sync_lane_kind		7
#define Anum_sync_lane_lane		8

StaticAssertDecl(offsetof(SharedLane, fronts[FRONT_SWEEP]) == 24 &&
				 offsetof(SharedLane, sweep_rests_until) == 48 &&
				 offsetof(SharedLane, lane) == 56 + NAMEDATALEN + 2,
				 "the columns of sync_lane must lie like the fields");

/* Opens sync_lane, unless somebody is dropping or rewriting it. */
static Relation
open_lanes(void)
{
	Oid			relid = syncstate_ids()->lane_rel;

	if (!ConditionalLockRelationOid(relid, RowExclusiveLock))
		return NULL;
	return try_table_open(relid, NoLock);
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
	BlockNumber block = ItemPointerGetBlockNumberNoCheck(&ref->tid);
	OffsetNumber offset = ItemPointerGetOffsetNumberNoCheck(&ref->tid);
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

			if (ItemIdGetLength(item) >= header->t_hoff +
				offsetof(SharedLane, lane) + sizeof(int16) &&
				is_of(lane, source, kind, number))
				return lane;
		}
	}
	UnlockReleaseBuffer(*buffer);
	return NULL;
}

/* Looks the row up by its key. */
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
	scan = systable_beginscan(rel, syncstate_ids()->lane_pkey_index, true, NULL,
							  lengthof(keys), keys);
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
		*found = *row;
		UnlockReleaseBuffer(buffer);
	}
	table_close(rel, NoLock);
	return row != NULL;
}

/*
 * Moves a place, if it is where it was seen; false if somebody else has moved it
 * since.
 */
bool
syncstate_crowd_move(CrowdRef *ref, const SharedLane *seen, Front front,
					 const SharedPlace *to)
{
	Relation	rel = open_lanes();
	SharedLane *row;
	Buffer		buffer;
	bool		is_there;

	if (rel == NULL)
		return true;
	row = lock_row(rel, ref, &seen->source, seen->kind, seen->lane,
				   BUFFER_LOCK_EXCLUSIVE, &buffer);
	is_there = row == NULL ||
		memcmp(&row->fronts[front], &seen->fronts[front],
			   sizeof(SharedPlace)) == 0;
	if (row != NULL)
	{
		if (is_there)
		{
			row->fronts[front] = *to;
			MarkBufferDirtyHint(buffer, true);
		}
		UnlockReleaseBuffer(buffer);
	}
	table_close(rel, NoLock);
	return is_there;
}

/* Tells until when nobody needs to sweep. */
void
syncstate_crowd_rest(CrowdRef *ref, const NameData *source, int kind, int lane,
					 TimestampTz until)
{
	Relation	rel = open_lanes();
	SharedLane *row;
	Buffer		buffer;

	if (rel == NULL)
		return;
	row = lock_row(rel, ref, source, kind, lane, BUFFER_LOCK_EXCLUSIVE, &buffer);
	if (row != NULL)
	{
		row->sweep_rests_until = until;
		MarkBufferDirtyHint(buffer, true);
		UnlockReleaseBuffer(buffer);
	}
	table_close(rel, NoLock);
}
