/*
 * walk.c: walking through the lanes
 *
 * A lane is a walk through one of the two partial indexes of sync_state, in
 * index order whatever the statistics say.  The priority lane holds the rows
 * that somebody requested, the due lane all rows; parked rows are in neither.
 *
 * An index entry of a row that moved on can be removed only when no open
 * transaction could still see it.  Under one long transaction, a walk from the
 * beginning would read again, at each claim, all entries that died since that
 * transaction began.  So a session remembers two places in each lane, the mark
 * and the sweep's: see claim.c.  Both are hints: losing them costs time, never
 * correctness.  The indexes end in the rest of the key, so that a place is
 * exact among equal times too.
 */
#include "postgres.h"

#include "access/itup.h"
#include "access/relscan.h"
#include "access/skey.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "catalog/pg_collation.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "access.h"
#include "compat.h"
#include "walk.h"

/* The mark of a new session is this far back. */
#define FIRST_MARK		USECS_PER_MINUTE

/*
 * Opens the table and its lanes.  Every scan has the same three keys: the
 * source, a place to begin after, and a time to end with.
 */
void
syncstate_walk_open(Walk *walk, LOCKMODE lockmode, Snapshot snapshot)
{
	const CatalogIds *ids;

	walk->rel = syncstate_open_state(lockmode);
	ids = syncstate_ids();		/* after the wait for the lock */
	walk->index[LANE_PRIORITY] = index_open(ids->requested_index, lockmode);
	walk->index[LANE_DUE] = index_open(ids->due_index, lockmode);
	walk->snapshot = snapshot;
	walk->slot = table_slot_create(walk->rel, NULL);
	walk->visit = AllocSetContextCreate(CurrentMemoryContext, "syncstate visit",
										ALLOCSET_SMALL_SIZES);
	for (Lane lane = 0; lane < NUM_LANES; lane++)
	{
		walk->scan[lane] = syncstate_index_beginscan(walk->rel,
													 walk->index[lane],
													 snapshot, 3);

		/* places are read from the entries, dead ones too */
		walk->scan[lane]->xs_want_itup = true;
	}
}

void
syncstate_walk_close(Walk *walk, LOCKMODE lockmode)
{
	for (Lane lane = 0; lane < NUM_LANES; lane++)
	{
		index_endscan(walk->scan[lane]);
		index_close(walk->index[lane], lockmode);
	}
	ExecDropSingleTupleTableSlot(walk->slot);
	MemoryContextDelete(walk->visit);
	table_close(walk->rel, lockmode);
}

/* Begins to walk a lane of a source after a place, up to a time inclusive. */
void
syncstate_walk_from(Walk *walk, Lane lane, Oid source, const Place *after,
					TimestampTz upto)
{
	ScanKeyData keys[3];
	ScanKeyData members[4];		/* of a row comparison */
	int			nmembers = after->after == AFTER_USER ? 2 : 4;

	ScanKeyEntryInitialize(&keys[0], 0, 1, BTEqualStrategyNumber, InvalidOid,
						   InvalidOid, F_ENUM_EQ, ObjectIdGetDatum(source));
	if (after->at == NO_TIME || after->after == AFTER_TIME)
		ScanKeyEntryInitialize(&keys[1], 0, 2, BTGreaterStrategyNumber,
							   InvalidOid, InvalidOid, F_TIMESTAMPTZ_GT,
							   TimestampTzGetDatum(after->at));
	else
	{
		/* (time, user_id, account, resource) > (...), as the planner would write it */
		ScanKey		heap_members = palloc(sizeof(members));
		pg_uuid_t  *user_id = palloc(sizeof(pg_uuid_t));

		*user_id = after->user_id;
		ScanKeyEntryInitialize(&members[0], SK_ROW_MEMBER, 2,
							   BTGreaterStrategyNumber, InvalidOid, InvalidOid,
							   F_TIMESTAMPTZ_CMP, TimestampTzGetDatum(after->at));
		ScanKeyEntryInitialize(&members[1], SK_ROW_MEMBER, 3,
							   BTGreaterStrategyNumber, InvalidOid, InvalidOid,
							   F_UUID_CMP, UUIDPGetDatum(user_id));
		if (after->after == AFTER_ROW)
		{
			text	   *account = cstring_to_text_with_len(after->account,
														   after->account_len);
			text	   *resource = cstring_to_text_with_len(after->resource,
															after->resource_len);

			ScanKeyEntryInitialize(&members[2], SK_ROW_MEMBER, 4,
								   BTGreaterStrategyNumber, InvalidOid,
								   C_COLLATION_OID, F_BTTEXTCMP,
								   PointerGetDatum(account));
			ScanKeyEntryInitialize(&members[3], SK_ROW_MEMBER, 5,
								   BTGreaterStrategyNumber, InvalidOid,
								   C_COLLATION_OID, F_BTTEXTCMP,
								   PointerGetDatum(resource));
		}
		members[nmembers - 1].sk_flags |= SK_ROW_END;

		/* the scan keeps pointers to the members: until the call's end */
		memcpy(heap_members, members, nmembers * sizeof(ScanKeyData));
		MemSet(&keys[1], 0, sizeof(ScanKeyData));
		keys[1].sk_flags = SK_ROW_HEADER;
		keys[1].sk_attno = 2;
		keys[1].sk_strategy = BTGreaterStrategyNumber;
		keys[1].sk_argument = PointerGetDatum(heap_members);
	}
	ScanKeyEntryInitialize(&keys[2], 0, 2, BTLessEqualStrategyNumber,
						   InvalidOid, InvalidOid, F_TIMESTAMPTZ_LE,
						   TimestampTzGetDatum(upto));

	walk->current = walk->scan[lane];
	walk->visits = 0;
	walk->dead = 0;
	walk->direct = false;
	index_rescan(walk->current, keys, 3, NULL, 0);
}

/*
 * The next source after another one that has entries in a lane, dead ones too;
 * InvalidOid: the first, and none.
 */
Oid
syncstate_walk_next_source(Walk *walk, Lane lane, Oid after)
{
	IndexScanDesc scan = walk->scan[lane];
	ScanKeyData keys[3];
	Datum		source;
	bool		isnull;

	if (OidIsValid(after))
		ScanKeyEntryInitialize(&keys[0], 0, 1, BTGreaterStrategyNumber,
							   InvalidOid, InvalidOid, F_ENUM_GT,
							   ObjectIdGetDatum(after));
	else
		ScanKeyEntryInitialize(&keys[0], SK_ISNULL | SK_SEARCHNOTNULL, 1,
							   InvalidStrategy, InvalidOid, InvalidOid,
							   InvalidOid, (Datum) 0);

	/* the scan always has three keys */
	ScanKeyEntryInitialize(&keys[1], 0, 2, BTGreaterEqualStrategyNumber,
						   InvalidOid, InvalidOid, F_TIMESTAMPTZ_GE,
						   TimestampTzGetDatum(DT_NOBEGIN));
	ScanKeyEntryInitialize(&keys[2], 0, 2, BTLessEqualStrategyNumber,
						   InvalidOid, InvalidOid, F_TIMESTAMPTZ_LE,
						   TimestampTzGetDatum(DT_NOEND));
	index_rescan(scan, keys, lengthof(keys), NULL, 0);
	if (index_getnext_tid(scan, ForwardScanDirection) == NULL)
		return InvalidOid;
	source = index_getattr(scan->xs_itup, 1, scan->xs_itupdesc, &isnull);
	return DatumGetObjectId(source);
}

/* Moves to the next entry, whose row may be dead; false at the end. */
bool
syncstate_walk_next(Walk *walk)
{
	IndexScanDesc scan = walk->current;
	MemoryContext save;
	Datum		values[INDEX_MAX_KEYS];
	bool		nulls[INDEX_MAX_KEYS];

	CHECK_FOR_INTERRUPTS();
	if (index_getnext_tid(scan, ForwardScanDirection) == NULL)
		return false;
	walk->visits++;
	index_deform_tuple(scan->xs_itup, scan->xs_itupdesc, values, nulls);
	walk->at = DatumGetTimestampTz(values[1]);
	walk->user_id = DatumGetUUIDP(values[2]);
	MemoryContextReset(walk->visit);
	save = MemoryContextSwitchTo(walk->visit);
	walk->account = DatumGetTextPP(values[3]);
	walk->resource = DatumGetTextPP(values[4]);
	MemoryContextSwitchTo(save);
	if (VARSIZE_ANY_EXHDR(walk->account) > MAX_ACCOUNT_BYTES ||
		VARSIZE_ANY_EXHDR(walk->resource) > MAX_RESOURCE_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_CHECK_VIOLATION),
				 errmsg("account or resource of a row of \"%s\" is too long",
						"sync_state"),
				 errdetail("It is longer than constraint sync_state_is_legal allows."),
				 errhint("Delete the row, and see what check_installation() returns.")));
	return true;
}

/*
 * Reads the row of the entry; false if the snapshot sees none.  Rows that wait
 * are where their entries say, those that somebody took are not, and they come
 * in runs of batches.
 */
bool
syncstate_walk_fetch(Walk *walk)
{
	ItemPointerData tid = walk->current->xs_heaptid;
	MemoryContext save;

	if (walk->direct &&
		syncstate_fetch_version(walk->rel, tid, walk->snapshot, walk->slot))
		pgstat_count_heap_fetch(walk->current->indexRelation);	/* as index_fetch_heap() does */
	else
	{
		walk->direct = false;
		if (!index_fetch_heap(walk->current, walk->slot))
		{
			walk->dead++;
			return false;
		}
		walk->direct = ItemPointerEquals(&walk->slot->tts_tid, &tid);
	}
	save = MemoryContextSwitchTo(walk->visit);
	syncstate_state_from_slot(walk->slot, &walk->row);
	MemoryContextSwitchTo(save);
	return true;
}

/* Compares a text with the bytes of another. */
static int
compare_bytes(const text *a, const char *b, int b_len)
{
	int			a_len = VARSIZE_ANY_EXHDR(a);
	int			cmp = memcmp(VARDATA_ANY(a), b, Min(a_len, b_len));

	return cmp != 0 ? cmp : a_len - b_len;
}

/* Whether the entry comes after a place. */
bool
syncstate_walk_is_past(const Walk *walk, const Place *place)
{
	int			cmp;

	if (walk->at != place->at)
		return walk->at > place->at;
	if (place->after == AFTER_TIME)
		return false;
	cmp = memcmp(walk->user_id, &place->user_id, UUID_LEN);
	if (place->after == AFTER_USER)
		return cmp > 0;
	if (cmp == 0)
		cmp = compare_bytes(walk->account, place->account, place->account_len);
	if (cmp == 0)
		cmp = compare_bytes(walk->resource, place->resource,
							place->resource_len);
	return cmp > 0;
}

/* The place after the entry. */
void
syncstate_walk_place(const Walk *walk, Place *place)
{
	place->after = AFTER_ROW;
	place->at = walk->at;
	place->user_id = *walk->user_id;
	place->account_len = VARSIZE_ANY_EXHDR(walk->account);
	memcpy(place->account, VARDATA_ANY(walk->account), place->account_len);
	place->resource_len = VARSIZE_ANY_EXHDR(walk->resource);
	memcpy(place->resource, VARDATA_ANY(walk->resource), place->resource_len);
}

/* The place after all entries of a time; NO_TIME is the very beginning. */
void
syncstate_place_after(Place *place, TimestampTz at)
{
	place->after = AFTER_TIME;
	place->at = at;
}

/* The place after all entries of the entry's time and user. */
void
syncstate_walk_share(const Walk *walk, SharedPlace *place)
{
	place->at = walk->at;
	place->user_id = *walk->user_id;
}

/* Whether the entry is of that time and user. */
bool
syncstate_walk_is_at(const Walk *walk, const SharedPlace *place)
{
	return walk->at == place->at &&
		memcmp(walk->user_id, &place->user_id, UUID_LEN) == 0;
}

/* A shared place, as a place. */
void
syncstate_place_shared(Place *place, const SharedPlace *shared)
{
	place->after = AFTER_USER;
	place->at = shared->at;
	place->user_id = shared->user_id;
}

/* Whether a shared place comes after a place. */
bool
syncstate_place_is_before(const Place *place, const SharedPlace *shared)
{
	int			cmp;

	if (place->at != shared->at)
		return place->at < shared->at;
	if (place->after == AFTER_TIME)
		return false;
	cmp = memcmp(&place->user_id, &shared->user_id, UUID_LEN);
	return cmp < 0 || (cmp == 0 && place->after == AFTER_ROW);
}

/*
 * What this session remembers of a source, for each kind of claims by itself: what
 * one kind passes over, the other takes.  Nothing is ever removed, since a claim
 * further up may be using it; labels of a new extension are new ones.
 */
SourceHints *
syncstate_source_hints(Oid source, SyncKind kind, TimestampTz now)
{
	static HTAB *hints = NULL;
	HintsKey	key = {source, kind};
	SourceHints *found;
	bool		is_old;

	if (hints == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(HintsKey), .entrysize = sizeof(SourceHints)};

		ctl.hcxt = TopMemoryContext;
		hints = hash_create("syncstate hints", 16, &ctl,
							HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}

	found = hash_search(hints, &key, HASH_ENTER, &is_old);
	if (!is_old)
	{
		for (Lane lane = 0; lane < NUM_LANES; lane++)
		{
			LaneHints  *lh = &found->lanes[lane];

			MemSet(lh, 0, sizeof(LaneHints));
			syncstate_place_after(&lh->fronts[FRONT_MARK].place,
								  now - FIRST_MARK);
			syncstate_place_after(&lh->fronts[FRONT_SWEEP].place, NO_TIME);
			for (Front front = 0; front < NUM_FRONTS; front++)
				lh->fronts[front].alone_until = NO_TIME;
			lh->sweep_started = NO_TIME;
			lh->rests_until = NO_TIME;
		}
		/* so that sessions of one claim each keep the share together */
		found->share_carry = (uint64) now % ORDINARY_SHARE;
		found->claimed = false;
	}
	return found;
}
