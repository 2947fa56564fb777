/*-------------------------------------------------------------------------
 *
 * claim.c
 *		Finding due rows: lanes, mark, sweep; starting syncs
 *
 * A lane is a walk through one of the two partial indexes of sync_state, in
 * index order whatever the statistics say.  The priority lane holds the rows
 * that somebody requested, the due lane all that are not parked.
 *
 * The trouble with such a walk: an index entry of a row that moved on can be
 * removed only when no open transaction could still see it.  Under one long
 * transaction, a walk from the beginning would read again, at each claim, all
 * entries that died since that transaction began.  So a session remembers two
 * places in each lane.  The mark is where the walk of the last claim came to;
 * the next one goes on from there.  What the mark has passed and is claimable
 * all the same (a late commit, an expired lease, a claim that was rolled back,
 * the backlog from before the session) is found by the sweep, which goes over
 * the lane from its very beginning to the mark, a bounded step per claim.
 * Both are hints: losing them costs time, never correctness.  The indexes end
 * in user_id and resource, so that a place is exact among equal times too.
 *
 * A row is looked at under the statement's snapshot and started at once, unless
 * somebody has locked or changed it meanwhile: then it is skipped, or locked
 * and looked at again.
 *
 * src/claim.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/itup.h"
#include "access/relscan.h"
#include "access/skey.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_collation.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "syncstate.h"

/* Index entries that one step of a sweep visits at most, dead ones counted. */
#define SWEEP_VISITS	2000

/*
 * Index entries that the walk on from the mark visits at most, dead ones
 * counted.  It matters where many syncs are in flight; the next claim goes on
 * from there.
 */
#define FORWARD_VISITS	10000

/*
 * How many of either may be dead: under a held snapshot, or where nobody has
 * come by yet to mark them so.  Each is likely to be a page of the table of its
 * own, and the first visit of a session to a page takes four times as long as
 * later ones: the page has to be mapped.  Who wants many rows at a time has to
 * come as much further each time.
 */
#define DEAD_VISITS(wanted)	Max(1500, 10 * (wanted))

/* The same of the first step of a session, which reads catalogs besides. */
#define FIRST_DEAD_VISITS	500

/*
 * How many times as far as the last claims had to go from the mark, on
 * average, the next one looks at first; and of how many claims the average is.
 */
#define STRIDES			8

/* The next sweep starts no sooner than this after the last one started. */
#define SWEEP_PAUSE		USECS_PER_SEC

/*
 * While claims are full without it, a sweep rests after each step that found
 * too little for so many times as long as the step took.
 */
#define SWEEP_REST		9

/* Where the mark of a new session stands. */
#define FIRST_MARK		USECS_PER_MINUTE

/*
 * How far the mark of the priority lane stays behind the time: a request that
 * commits this late is found at once, and not by the next sweep.
 */
#define PRIORITY_LAG	(2 * USECS_PER_SEC)

/*
 * One in so many rows of a claim is kept for the due lane while both lanes have
 * work, so that a flood of requests slows ordinary rows but never stops them.
 */
#define ORDINARY_SHARE	4

typedef enum Lane
{
	LANE_PRIORITY,				/* by requested_at */
	LANE_DUE,					/* by due_at */
	NUM_LANES,
} Lane;

/* A place in a lane: behind one entry, or behind all entries of a time. */
typedef struct Place
{
	TimestampTz at;				/* NO_TIME: the very beginning */
	bool		whole;			/* behind all entries of this time */
	pg_uuid_t	user_id;		/* else behind this row's */
	int			resource_len;
	char		resource[MAX_RESOURCE_BYTES];
} Place;

/* What a session remembers of a lane. */
typedef struct LaneHints
{
	Place		mark;
	Place		sweep;
	bool		sweeping;
	TimestampTz sweep_started;
	TimestampTz rests_until;	/* at most SWEEP_PAUSE ahead */
	int64		stride;			/* how far from the mark a claim looks first; 0: all
								 * the way */
} LaneHints;

/* What a session remembers of a source. */
typedef struct SourceHints
{
	Oid			source;			/* hash key */
	LaneHints	lanes[NUM_LANES];
	int			share_carry;	/* rows taken, modulo ORDINARY_SHARE */
	bool		claimed;		/* it has claimed before */
} SourceHints;

/* An index scan over a lane, and the entry that it stands at. */
typedef struct Walk
{
	Relation	rel;
	Relation	index[NUM_LANES];
	IndexScanDesc scan[NUM_LANES];
	Snapshot	snapshot;
	TupleTableSlot *slot;
	IndexScanDesc current;		/* the lane being walked */
	int64		visits;			/* of this walk over this lane */
	int64		dead;			/* of these */
	bool		direct;			/* the last row was where its entry says */
	TimestampTz at;				/* the entry's time and rest of its key */
	pg_uuid_t  *user_id;
	text	   *resource;
	SyncState	row;			/* the row, once fetched */
} Walk;

/* A row that a claim has started. */
typedef struct Taken
{
	bool		requested;
	TimestampTz since;			/* when it was requested, or fell due */
	int			order;			/* in which it was found */
	HeapTuple	result;			/* the started row */
} Taken;

typedef struct Claim
{
	Walk		walk;
	RowAccess	rows;
	TupleTableSlot *locked;
	SyncPolicy	policy;			/* of the source at hand */
	SourceHints *hints;			/* of the source at hand */
	TimestampTz now;			/* what is due, is due by now */
	TimestampTz start;			/* of the syncs: not before the snapshot */
	int64		lease_time;		/* 0 = the policy's */
	int			permits;		/* drawn for the source at hand, if it asks */
	int			starts;			/* of the source at hand */
	TimestampTz drawn_at;
	int			ntaken;
	Taken	   *taken;			/* room for max_rows */
} Claim;

/* How a walk over a part of a lane ended. */
typedef enum WalkEnd
{
	WALK_ALL,					/* at its end */
	WALK_BOUND,					/* after as many visits as allowed */
	WALK_FULL,					/* with as many rows as wanted */
} WalkEnd;

static HTAB *hints = NULL;
static uint64 hints_generation = 0;
static uint32 first_source = 0;

static void walk_open(Walk *walk, LOCKMODE lockmode, Snapshot snapshot);
static void walk_close(Walk *walk, LOCKMODE lockmode);
static void walk_from(Walk *walk, Lane lane, Oid source, const Place *after,
					  TimestampTz upto);
static bool walk_next(Walk *walk);
static bool walk_fetch(Walk *walk);
static bool walk_is_past(const Walk *walk, const Place *place);
static void walk_place(const Walk *walk, Place *place);
static void place_behind(Place *place, TimestampTz at);
static SourceHints *source_hints(Oid source, TimestampTz now);
static TimestampTz claimable_at(const SyncState *row, const SyncPolicy *policy);
static bool would_park(const SyncState *row, const SyncPolicy *policy,
					   TimestampTz now);
static void claim_source(Claim *claim, int quota);
static WalkEnd claim_lane(Claim *claim, Lane lane, int limit);
static WalkEnd claim_sweep(Claim *claim, Lane lane, int limit);
static WalkEnd claim_from_mark(Claim *claim, Lane lane, int limit);
static WalkEnd claim_part(Claim *claim, Lane lane, const Place *after,
						  const Place *stop, int64 max_visits,
						  int64 max_dead, int limit, Place *reached);
static bool has_permit(Claim *claim, int limit);
static void try_take(Claim *claim);
static TM_Result take(Claim *claim, bool try);
static int	compare_order(const void *a, const void *b);
static void check_privileges(AclMode mode);

PG_FUNCTION_INFO_V1(syncstate_claim_due_syncs);
PG_FUNCTION_INFO_V1(syncstate_mark_sync_started);
PG_FUNCTION_INFO_V1(syncstate_get_users_needing_sync);
PG_FUNCTION_INFO_V1(syncstate_next_sync_due);

/*
 * syncstate_claim_due_syncs(source sync_source, max_rows int4,
 *		lease_time interval) -> setof sync_state
 *
 * Takes due rows, each with a lease; requested ones first, then the oldest due.
 *
 *	source		null: all sources share the batch fairly
 *	max_rows	1 to 10000
 *	lease_time	1 second to 1 day; null: the policy's
 *
 * Errors: 22023 for a bad argument; 42501 without the privileges of a worker.
 */
Datum
syncstate_claim_due_syncs(PG_FUNCTION_ARGS)
{
	int			max_rows = syncstate_arg_max_rows(fcinfo, 1, false);
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Claim		claim = {.ntaken = 0};
	const SyncPolicy *all;
	Oid		   *sources;
	int			nsources = 0;
	int			n;

	claim.lease_time = syncstate_arg_duration(fcinfo, 2, "lease_time",
											  MIN_DURATION, MAX_LEASE_TIME);
	PreventCommandIfReadOnly("claim_due_syncs()");
	PreventCommandIfParallelMode("claim_due_syncs()");
	check_privileges(ACL_SELECT | ACL_UPDATE);

	InitMaterializedSRF(fcinfo, 0);

	/* one source, or all of them, from another one each time */
	all = syncstate_policies(&n);
	sources = palloc(Max(n, 1) * sizeof(Oid));
	if (!PG_ARGISNULL(0))
		sources[nsources++] = PG_GETARG_OID(0);
	else
	{
		for (int i = 0; i < n; i++)
			sources[nsources++] = all[(first_source + i) % n].source;
		first_source++;
	}

	claim.now = syncstate_now();
	SPI_connect();
	claim.taken = palloc(max_rows * sizeof(Taken));
	syncstate_rows_open(&claim.rows);
	PushActiveSnapshot(GetTransactionSnapshot());
	claim.start = syncstate_now();
	walk_open(&claim.walk, RowExclusiveLock, GetActiveSnapshot());
	claim.locked = table_slot_create(claim.walk.rel, NULL);

	/*
	 * Each source gets an equal part of what is left; what some leave over, a
	 * second round gives to the others.
	 */
	for (int round = 0; round < 2 && claim.ntaken < max_rows; round++)
	{
		for (int i = 0; i < nsources && claim.ntaken < max_rows; i++)
		{
			int			left = max_rows - claim.ntaken;
			int			quota = round == 1 ? left :
				(left + nsources - i - 1) / (nsources - i);

			claim.policy = *syncstate_policy(sources[i]);
			claim_source(&claim, quota);
		}
		if (nsources == 1)
			break;
	}

	ExecDropSingleTupleTableSlot(claim.locked);
	walk_close(&claim.walk, NoLock);
	syncstate_rows_close(&claim.rows);
	PopActiveSnapshot();

	qsort(claim.taken, claim.ntaken, sizeof(Taken), compare_order);
	for (int i = 0; i < claim.ntaken; i++)
		tuplestore_puttuple(rsinfo->setResult, claim.taken[i].result);
	SPI_finish();
	return (Datum) 0;
}

/*
 * syncstate_mark_sync_started(user_id uuid, source sync_source,
 *		lease_time interval, resource text) -> sync_state
 *
 * Takes one row, due or not, unless somebody else holds it.
 *
 *	lease_time	1 second to 1 day; null: the policy's
 *
 * A missing row is made.
 *
 * Errors: 22023 for a bad argument; PT409 if the row is held under a live
 *		   lease.
 */
Datum
syncstate_mark_sync_started(PG_FUNCTION_ARGS)
{
	SyncKey		key = syncstate_arg_key(fcinfo, 0, 1, 3);
	int64		lease_time = syncstate_arg_duration(fcinfo, 2, "lease_time",
													MIN_DURATION, MAX_LEASE_TIME);
	SyncPolicy	policy = *syncstate_policy(key.source);
	RowAccess	rows;
	SyncState	row;
	TimestampTz now;
	Datum		result;

	SPI_connect();
	syncstate_rows_open(&rows);
	syncstate_lock_row(&rows, &key, true, &row);
	now = syncstate_now();
	if (row.status == SYNC_SYNCING && row.lease_expires_at > now)
		ereport(ERROR,
				(errcode(ERRCODE_LEASE_LOST),
				 errmsg("sync state is held by another worker"),
				 errdetail("Its lease expires at %s.",
						   timestamptz_to_str(row.lease_expires_at)),
				 errhint("Wait, or ask for another sync with request_sync().")));
	syncstate_start(&row, &policy, lease_time, now);
	result = syncstate_write_row(&rows, &row);
	syncstate_rows_close(&rows);
	SPI_finish();

	/* never refused, but claims wait until it is made up for */
	if (policy.rate_per_minute != 0)
		syncstate_rate_count(&policy);
	return result;
}

/*
 * syncstate_get_users_needing_sync(source sync_source, stale_after interval,
 *		max_rows int4) -> setof uuid
 *
 * Tells which users have a row that a claim would take now, and takes nothing.
 *
 *	stale_after	only rows whose last start is longer ago than this, or that
 *				never started; null: all
 *	max_rows	1 to 10000; null: all
 *
 * Each user once, requested ones first, then the oldest due.
 *
 * Errors: 22023 for a bad argument; 42501 without the privileges of a worker.
 */
Datum
syncstate_get_users_needing_sync(PG_FUNCTION_ARGS)
{
	Oid			source = syncstate_arg_source(fcinfo, 0);
	int64		stale_after = syncstate_arg_duration(fcinfo, 1, "stale_after",
													 0, MAX_DURATION);
	int32		max_rows = syncstate_arg_max_rows(fcinfo, 2, true);
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	SyncPolicy	policy = *syncstate_policy(source);
	TimestampTz now = syncstate_now();
	HASHCTL		ctl = {.keysize = UUID_LEN, .entrysize = UUID_LEN};
	HTAB	   *users;
	Walk		walk;
	Place		beginning;

	check_privileges(ACL_SELECT);
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);

	ctl.hcxt = CurrentMemoryContext;
	users = hash_create("syncstate users", 256, &ctl,
						HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	place_behind(&beginning, NO_TIME);
	walk_open(&walk, AccessShareLock, GetActiveSnapshot());
	for (Lane lane = 0; lane < NUM_LANES; lane++)
	{
		walk_from(&walk, lane, source, &beginning,
				  lane == LANE_DUE ? now : DT_NOEND);
		while (max_rows != 0 && walk_next(&walk))
		{
			Datum		user;
			bool		isnull = false;
			bool		found;

			if (!walk_fetch(&walk) ||
				claimable_at(&walk.row, &policy) > now ||
				would_park(&walk.row, &policy, now) ||
				(stale_after > 0 && walk.row.last_sync_at != NO_TIME &&
				 walk.row.last_sync_at >= now - stale_after))
				continue;
			hash_search(users, &walk.row.key.user_id, HASH_ENTER, &found);
			if (found)
				continue;
			user = UUIDPGetDatum(&walk.row.key.user_id);
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, &user,
								 &isnull);
			if (max_rows > 0)
				max_rows--;
		}
	}
	walk_close(&walk, AccessShareLock);
	hash_destroy(users);
	return (Datum) 0;
}

/*
 * syncstate_next_sync_due(source sync_source) -> timestamptz
 *
 * Tells when a claim will next find a row: how long a worker may sleep.
 *
 *	source	null: any
 *
 * A time that is past means that there is work now; null, that there is none
 * to wait for.  Looks at a bounded number of index entries; where that is not
 * enough to be sure, the answer is a second from now at the latest, and now
 * where this session's claims have not come to the entries of now.
 *
 * Errors: 42501 without the privileges of a worker.
 */
Datum
syncstate_next_sync_due(PG_FUNCTION_ARGS)
{
	TimestampTz now = syncstate_now();
	int64		max_visits = syncstate_clock_is_set() ? PG_INT64_MAX : SWEEP_VISITS;
	TimestampTz next = DT_NOEND;
	SyncPolicy *all;
	int			n;
	Walk		walk;

	check_privileges(ACL_SELECT);
	{
		const SyncPolicy *kept = syncstate_policies(&n);

		all = palloc(Max(n, 1) * sizeof(SyncPolicy));
		memcpy(all, kept, n * sizeof(SyncPolicy));
	}

	walk_open(&walk, AccessShareLock, GetActiveSnapshot());
	for (int i = 0; i < n; i++)
	{
		TimestampTz others = next;
		TimestampTz opens = NO_TIME;

		if (!PG_ARGISNULL(0) && all[i].source != PG_GETARG_OID(0))
			continue;
		if (TIMESTAMP_IS_NOEND(all[i].paused_until))
			continue;

		/* the allowance of the source may open later than a row is due */
		if (all[i].rate_per_minute != 0)
			opens = syncstate_rate_next(&all[i], now);
		if (opens > now)
			next = DT_NOEND;
		for (Lane lane = 0; lane < NUM_LANES; lane++)
		{
			Place		place;

			/* from the beginning, and if that was not enough, from the mark */
			place_behind(&place, NO_TIME);
			for (int look = 0; look < 2; look++)
			{
				SourceHints *hint;
				bool		sure = true;

				walk_from(&walk, lane, all[i].source, &place, DT_NOEND);
				while (next > now && walk_next(&walk))
				{
					/* no row further on is due before this one */
					if (lane == LANE_DUE && walk.at >= next)
						break;
					if (walk_fetch(&walk))
						next = Min(next, claimable_at(&walk.row, &all[i]));
					if (walk.visits >= max_visits)
					{
						sure = false;
						break;
					}
				}
				if (sure)
					break;
				next = Min(next, now + SWEEP_PAUSE);

				/* each claim goes on towards now, so the next is not in vain */
				hint = source_hints(all[i].source, now);
				if (look == 1 && lane == LANE_DUE && walk.at <= now &&
					hint->claimed)
					next = Min(next, now);
				place = hint->lanes[lane].mark;
			}
		}
		if (opens > now && next != DT_NOEND)
			next = Max(next, opens);
		next = Min(next, others);
	}
	walk_close(&walk, AccessShareLock);

	if (next == DT_NOEND)
		PG_RETURN_NULL();
	PG_RETURN_TIMESTAMPTZ(next);
}

/* ------------------------------------------------------ walking a lane */

/*
 * Opens the table and its lanes.  Every scan has the same three keys: the
 * source, a place to begin behind, and a time to end with.
 */
static void
walk_open(Walk *walk, LOCKMODE lockmode, Snapshot snapshot)
{
	const StoreIds *ids = syncstate_store_ids();

	walk->rel = table_open(ids->state_rel, lockmode);
	walk->index[LANE_PRIORITY] = index_open(ids->requested_index, lockmode);
	walk->index[LANE_DUE] = index_open(ids->due_index, lockmode);
	walk->snapshot = snapshot;
	walk->slot = table_slot_create(walk->rel, NULL);
	for (Lane lane = 0; lane < NUM_LANES; lane++)
	{
		walk->scan[lane] = index_beginscan(walk->rel, walk->index[lane],
										   snapshot, 3, 0);

		/* places are read from the entries, dead ones too */
		walk->scan[lane]->xs_want_itup = true;
	}
}

static void
walk_close(Walk *walk, LOCKMODE lockmode)
{
	for (Lane lane = 0; lane < NUM_LANES; lane++)
	{
		index_endscan(walk->scan[lane]);
		index_close(walk->index[lane], lockmode);
	}
	ExecDropSingleTupleTableSlot(walk->slot);
	table_close(walk->rel, lockmode);
}

/* Begins to walk a lane of a source behind a place, up to a time inclusive. */
static void
walk_from(Walk *walk, Lane lane, Oid source, const Place *after,
		  TimestampTz upto)
{
	ScanKeyData keys[3];
	ScanKeyData members[3];		/* of a row comparison; read by rescan only */

	ScanKeyEntryInitialize(&keys[0], 0, 1, BTEqualStrategyNumber, InvalidOid,
						   InvalidOid, F_ENUM_EQ, ObjectIdGetDatum(source));
	if (after->at == NO_TIME || after->whole)
		ScanKeyEntryInitialize(&keys[1], 0, 2, BTGreaterStrategyNumber,
							   InvalidOid, InvalidOid, F_TIMESTAMPTZ_GT,
							   TimestampTzGetDatum(after->at));
	else
	{
		/* (time, user_id, resource) > (...), as the planner would write it */
		text	   *resource = cstring_to_text_with_len(after->resource,
														after->resource_len);
		pg_uuid_t  *user_id = palloc(sizeof(pg_uuid_t));
		ScanKey		heap_members = palloc(sizeof(members));

		*user_id = after->user_id;
		ScanKeyEntryInitialize(&members[0], SK_ROW_MEMBER, 2,
							   BTGreaterStrategyNumber, InvalidOid, InvalidOid,
							   F_TIMESTAMPTZ_CMP, TimestampTzGetDatum(after->at));
		ScanKeyEntryInitialize(&members[1], SK_ROW_MEMBER, 3,
							   BTGreaterStrategyNumber, InvalidOid, InvalidOid,
							   F_UUID_CMP, UUIDPGetDatum(user_id));
		ScanKeyEntryInitialize(&members[2], SK_ROW_MEMBER | SK_ROW_END, 4,
							   BTGreaterStrategyNumber, InvalidOid,
							   C_COLLATION_OID, F_BTTEXTCMP,
							   PointerGetDatum(resource));

		/* the scan keeps pointers to the members: until the call's end */
		memcpy(heap_members, members, sizeof(members));
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

/* Goes on to the next entry, whose row may be dead; false at the end. */
static bool
walk_next(Walk *walk)
{
	IndexScanDesc scan = walk->current;
	bool		isnull;

	CHECK_FOR_INTERRUPTS();
	if (index_getnext_tid(scan, ForwardScanDirection) == NULL)
		return false;
	walk->visits++;
	walk->at = DatumGetTimestampTz(index_getattr(scan->xs_itup, 2,
												 scan->xs_itupdesc, &isnull));
	walk->user_id = DatumGetUUIDP(index_getattr(scan->xs_itup, 3,
												scan->xs_itupdesc, &isnull));
	walk->resource = DatumGetTextPP(index_getattr(scan->xs_itup, 4,
												  scan->xs_itupdesc, &isnull));
	return true;
}

/*
 * Reads the row of the entry; false if the snapshot sees none.  Rows that wait
 * are where their entries say, those that somebody took are not, and they come
 * in runs of batches.
 */
static bool
walk_fetch(Walk *walk)
{
	ItemPointerData tid = walk->current->xs_heaptid;

	if (!walk->direct ||
		!syncstate_fetch_version(walk->rel, tid, walk->snapshot, walk->slot))
	{
		walk->direct = false;
		if (!index_fetch_heap(walk->current, walk->slot))
		{
			walk->dead++;
			return false;
		}
		walk->direct = ItemPointerEquals(&walk->slot->tts_tid, &tid);
	}
	syncstate_row_from_slot(walk->slot, &walk->row);
	return true;
}

/* Whether the entry lies behind a place. */
static bool
walk_is_past(const Walk *walk, const Place *place)
{
	int			cmp;
	int			len = VARSIZE_ANY_EXHDR(walk->resource);

	if (walk->at != place->at)
		return walk->at > place->at;
	if (place->whole)
		return false;
	cmp = memcmp(walk->user_id, &place->user_id, UUID_LEN);
	if (cmp == 0)
		cmp = memcmp(VARDATA_ANY(walk->resource), place->resource,
					 Min(len, place->resource_len));
	if (cmp == 0)
		cmp = len - place->resource_len;
	return cmp > 0;
}

/* The place behind the entry. */
static void
walk_place(const Walk *walk, Place *place)
{
	place->at = walk->at;
	place->whole = false;
	place->user_id = *walk->user_id;
	place->resource_len = VARSIZE_ANY_EXHDR(walk->resource);
	memcpy(place->resource, VARDATA_ANY(walk->resource), place->resource_len);
}

/* The place behind all entries of a time; NO_TIME is the very beginning. */
static void
place_behind(Place *place, TimestampTz at)
{
	place->at = at;
	place->whole = true;
}

/* What this session remembers of a source. */
static SourceHints *
source_hints(Oid source, TimestampTz now)
{
	SourceHints *found;
	bool		is_old;

	if (hints != NULL && hints_generation != syncstate_store_generation())
	{
		hash_destroy(hints);
		hints = NULL;
	}
	if (hints == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(Oid), .entrysize = sizeof(SourceHints)};

		ctl.hcxt = TopMemoryContext;
		hints = hash_create("syncstate hints", 16, &ctl,
							HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
		hints_generation = syncstate_store_generation();
	}

	found = hash_search(hints, &source, HASH_ENTER, &is_old);
	if (!is_old)
	{
		for (Lane lane = 0; lane < NUM_LANES; lane++)
		{
			place_behind(&found->lanes[lane].mark, now - FIRST_MARK);
			place_behind(&found->lanes[lane].sweep, NO_TIME);
			found->lanes[lane].sweeping = false;
			found->lanes[lane].sweep_started = NO_TIME;
			found->lanes[lane].rests_until = NO_TIME;
			found->lanes[lane].stride = 0;
		}
		found->share_carry = 0;
		found->claimed = false;
	}
	return found;
}

/* ------------------------------------------------------ taking rows */

/*
 * From when on a claim takes the row, if nothing happens to it: the one place
 * that says who is due.  DT_NOEND: never.
 */
static TimestampTz
claimable_at(const SyncState *row, const SyncPolicy *policy)
{
	TimestampTz at = row->due_at;

	if (at == NO_TIME)
		return DT_NOEND;		/* parked */
	if (row->requested_at != NO_TIME && row->status != SYNC_RATE_LIMITED)
		at = Min(at, row->requested_at);
	if (row->status == SYNC_SYNCING)
		at = Max(at, row->lease_expires_at);
	if (policy->paused_until != NO_TIME)
		at = Max(at, syncstate_source_opens(policy, &row->key));
	return at;
}

/* Whether the row's lease ran out once too often to hand it out again. */
static bool
would_park(const SyncState *row, const SyncPolicy *policy, TimestampTz now)
{
	return row->status == SYNC_SYNCING &&
		syncstate_is_hopeless(policy, (int64) row->failures + 1,
							  row->failing_since, now);
}

/* Takes up to "quota" rows of the source at hand. */
static void
claim_source(Claim *claim, int quota)
{
	int			limit = claim->ntaken + quota;
	int			reserve;
	WalkEnd		end = WALK_FULL;

	if (claim->policy.paused_until > claim->now)
		return;
	claim->hints = source_hints(claim->policy.source, claim->now);
	claim->permits = 0;
	claim->starts = 0;

	reserve = (claim->hints->share_carry + quota) / ORDINARY_SHARE;
	claim->hints->share_carry =
		(claim->hints->share_carry + quota) % ORDINARY_SHARE;

	if (limit - reserve > claim->ntaken)
		end = claim_lane(claim, LANE_PRIORITY, limit - reserve);
	if (claim->ntaken < limit)
		claim_lane(claim, LANE_DUE, limit);
	if (end == WALK_FULL && claim->ntaken < limit)
		claim_lane(claim, LANE_PRIORITY, limit);
	claim->hints->claimed = true;
	if (claim->permits > claim->starts)
		syncstate_rate_give_back(&claim->policy,
								 claim->permits - claim->starts,
								 claim->drawn_at);
}

/* Takes rows of a lane, until the claim has "limit" of them. */
static WalkEnd
claim_lane(Claim *claim, Lane lane, int limit)
{
	LaneHints  *lh = &claim->hints->lanes[lane];
	TimestampTz now = claim->now;
	bool		resting;
	WalkEnd		end;

	/* time that is moved by hand makes hints worthless, and waiting too */
	if (syncstate_clock_is_set())
	{
		Place		beginning;
		Place		reached;

		place_behind(&beginning, NO_TIME);
		return claim_part(claim, lane, &beginning, NULL, PG_INT64_MAX,
						  PG_INT64_MAX, limit, &reached);
	}

	/* the real clock may have been set back */
	if (lh->mark.at > now)
		place_behind(&lh->mark, now);
	if (lh->sweep_started > now)
		lh->sweep_started = NO_TIME;
	if (lh->rests_until > now + SWEEP_PAUSE)
		lh->rests_until = NO_TIME;

	if (!lh->sweeping &&
		(lh->sweep_started == NO_TIME || now - lh->sweep_started >= SWEEP_PAUSE))
	{
		lh->sweeping = true;
		lh->sweep_started = now;
		lh->rests_until = NO_TIME;
		place_behind(&lh->sweep, NO_TIME);
	}
	resting = lh->sweeping && lh->rests_until > now;
	if (lh->sweeping && !resting &&
		claim_sweep(claim, lane, limit) == WALK_FULL)
		return WALK_FULL;

	end = claim_from_mark(claim, lane, limit);
	if (resting && end != WALK_FULL)
		end = claim_sweep(claim, lane, limit);
	return end;
}

/* Takes rows by one more step of the sweep over a lane. */
static WalkEnd
claim_sweep(Claim *claim, Lane lane, int limit)
{
	LaneHints  *lh = &claim->hints->lanes[lane];
	TimestampTz started = syncstate_now();
	Place		after = lh->sweep;
	WalkEnd		end;

	end = claim_part(claim, lane, &after, &lh->mark, SWEEP_VISITS,
					 claim->hints->claimed ?
					 DEAD_VISITS(limit - claim->ntaken) : FIRST_DEAD_VISITS,
					 limit, &lh->sweep);

	if (end == WALK_ALL)
		lh->sweeping = false;
	else if (end == WALK_BOUND)
	{
		TimestampTz ended = syncstate_now();

		lh->rests_until = ended + Min(SWEEP_REST * (ended - started),
									  SWEEP_PAUSE);
	}
	return end;
}

/*
 * Takes the rows of a lane that lie behind the mark.  A scan reads all of a
 * page that lies within its bounds, which for a few rows is most of the cost:
 * so the first look goes only some times as far as the last claims had to.
 */
static WalkEnd
claim_from_mark(Claim *claim, Lane lane, int limit)
{
	LaneHints  *lh = &claim->hints->lanes[lane];
	TimestampTz from = lh->mark.at;
	Place		after = lh->mark;
	Place		near;
	int64		visits = FORWARD_VISITS;
	int64		dead = DEAD_VISITS(limit - claim->ntaken);
	WalkEnd		end = WALK_ALL;

	place_behind(&near, from + lh->stride);
	if (lh->stride > 0 && near.at < claim->now)
	{
		end = claim_part(claim, lane, &after, &near, visits, dead, limit,
						 &lh->mark);
		visits -= claim->walk.visits;
		dead -= claim->walk.dead;
		after = near;
	}
	if (end == WALK_ALL)
		end = claim_part(claim, lane, &after, NULL, visits, dead, limit,
						 &lh->mark);
	if (end == WALK_ALL)
	{
		place_behind(&lh->mark, lane == LANE_PRIORITY ?
					 claim->now - PRIORITY_LAG : claim->now);
		lh->stride = 0;
	}
	else
		lh->stride += lh->mark.at - from - lh->stride / STRIDES;
	return end;
}

/*
 * Takes rows of a part of a lane: behind "after", as far as "stop" or else as
 * the time that is now, with so many visits at most and so many of dead entries,
 * until the claim has "limit" rows.  *reached is left where the walk came to.
 */
static WalkEnd
claim_part(Claim *claim, Lane lane, const Place *after, const Place *stop,
		   int64 max_visits, int64 max_dead, int limit, Place *reached)
{
	Walk	   *walk = &claim->walk;
	TimestampTz upto = lane == LANE_DUE ? claim->now : DT_NOEND;

	if (stop != NULL)
		upto = stop->at;
	walk_from(walk, lane, claim->policy.source, after, upto);
	for (;;)
	{
		if (claim->ntaken >= limit)
			return WALK_FULL;
		if (walk->visits >= max_visits || walk->dead >= max_dead)
			return WALK_BOUND;
		if (!walk_next(walk) || (stop != NULL && walk_is_past(walk, stop)))
			return WALK_ALL;
		if (walk_fetch(walk) &&
			claimable_at(&walk->row, &claim->policy) <= claim->now)
		{
			/* before the place: the next claim shall find the row here */
			if (!has_permit(claim, limit))
				return WALK_FULL;
			walk_place(walk, reached);
			try_take(claim);
		}
		else
			walk_place(walk, reached);
	}
}

/*
 * Whether the source allows one more start this minute.  Permits are drawn for
 * the whole claim when it meets its first row, and again where that was not
 * enough.
 */
static bool
has_permit(Claim *claim, int limit)
{
	if (claim->policy.rate_per_minute == 0 || claim->starts < claim->permits)
		return true;
	claim->permits += syncstate_rate_draw(&claim->policy,
										  limit - claim->ntaken,
										  &claim->drawn_at);
	return claim->starts < claim->permits;
}

/*
 * Takes the row that the walk stands at, if it is still claimable and nobody is
 * at it.  A row that this claim has taken already is not: a claim may meet a
 * row twice, since a requested one stands in both lanes.
 */
static void
try_take(Claim *claim)
{
	SyncState  *row = &claim->walk.row;
	ItemPointerData tid = row->ctid;
	TM_Result	result;

	if (claim->rows.plain && take(claim, true) == TM_Ok)
		return;

	/*
	 * It has to be locked anyway, or somebody is or was at it, which may be
	 * this very transaction.
	 */
	result = syncstate_rows_lock_tid(&claim->rows, tid, claim->walk.snapshot,
									 claim->locked, LockWaitSkip, row);
	if (result != TM_Ok || row->key.source != claim->policy.source ||
		claimable_at(row, &claim->policy) > claim->now)
		return;
	claim->start = syncstate_now();
	(void) take(claim, false);
}

/*
 * Starts the claimable row at hand, or parks it where its lease ran out once
 * too often.
 *
 * try: it is not locked, and may have been changed since it was read
 */
static TM_Result
take(Claim *claim, bool try)
{
	SyncState	row = claim->walk.row;
	bool		hopeless = would_park(&row, &claim->policy, claim->now);
	TM_Result	result = TM_Ok;
	HeapTuple	written;
	Taken	   *taken;

	if (hopeless)
		syncstate_give_up(&row, claim->start);
	else
		syncstate_start(&row, &claim->policy, claim->lease_time, claim->start);
	if (try)
		result = syncstate_rows_try(&claim->rows, &row, &written);
	else
		written = syncstate_rows_write(&claim->rows, &row);

	/* row security may have kept it from us */
	if (result != TM_Ok || written == NULL || hopeless)
		return result;

	taken = &claim->taken[claim->ntaken];
	taken->order = claim->ntaken++;
	claim->starts++;
	taken->requested = claim->walk.row.requested_at != NO_TIME;
	taken->since = taken->requested ?
		claim->walk.row.requested_at : claim->walk.row.due_at;
	taken->result = written;
	return TM_Ok;
}

/* qsort comparator: requested ones first, then the oldest, of all sources. */
static int
compare_order(const void *a, const void *b)
{
	const Taken *x = a;
	const Taken *y = b;

	if (x->requested != y->requested)
		return x->requested ? -1 : 1;
	if (x->since != y->since)
		return x->since < y->since ? -1 : 1;
	return x->order - y->order;
}

/*
 * Checks the caller's privileges on the table before a walk, which does not
 * ask for them.  Row security is not asked either: who may execute these
 * functions is a worker, and sees all rows.
 */
static void
check_privileges(AclMode mode)
{
	Oid			rel = syncstate_store_ids()->state_rel;

	if (pg_class_aclmask(rel, GetUserId(), mode, ACLMASK_ALL) != mode)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE, "sync_state");
}
