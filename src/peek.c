/*
 * peek.c: looking at the lanes without taking anything
 *
 * What these functions answer is what a claim would do.  A walk knows nothing of
 * row security: where the table is not plain to the caller, each row that would
 * count is looked up by a statement as well.
 */
#include "postgres.h"

#include "access/table.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/hsearch.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "access.h"
#include "args.h"
#include "cap.h"
#include "due.h"
#include "rate.h"
#include "schedule.h"
#include "store.h"
#include "syncstate.h"
#include "walk.h"

/* A look at the lanes. */
typedef struct Peek
{
	Walk		walk;
	bool		sees_all;		/* row security hides nothing */
	Caps		caps;
	TimestampTz now;
	SyncPolicy	policy;			/* of the source at hand */
} Peek;

PG_FUNCTION_INFO_V1(syncstate_get_users_needing_sync);
PG_FUNCTION_INFO_V1(syncstate_next_sync_due);
PG_FUNCTION_INFO_V1(syncstate_due_from);
PG_FUNCTION_INFO_V1(syncstate_is_ahead);

static void
peek_open(Peek *peek)
{
	Relation	rel = syncstate_open_state(AccessShareLock);

	peek->now = syncstate_now();
	peek->sees_all = syncstate_is_plain(rel, ACL_SELECT);
	table_close(rel, NoLock);
	if (!peek->sees_all)
	{
		ItemPointerData nowhere = {0};

		/* before the walk, whose memory it owns; and a statement, to be audited */
		SPI_connect();
		(void) syncstate_store_sees(&nowhere);
	}
	syncstate_walk_open(&peek->walk, AccessShareLock, GetActiveSnapshot());
	syncstate_caps_open(&peek->caps, peek->walk.rel, false);
}

/* Reads the row of the entry; false unless a claim could take it by a time. */
static bool
peek_fetch(Peek *peek, TimestampTz by)
{
	Walk	   *walk = &peek->walk;

	return syncstate_walk_fetch(walk) &&
		syncstate_claimable_at(&walk->row, &peek->policy) <= by &&
		(peek->sees_all || syncstate_store_sees(&walk->row.ctid));
}

static void
peek_close(Peek *peek)
{
	syncstate_walk_close(&peek->walk, AccessShareLock);
	if (!peek->sees_all)
		SPI_finish();
}

/*
 * syncstate_get_users_needing_sync(source, stale_after, max_rows) -> setof uuid:
 * see doc/syncstate.md.
 */
Datum
syncstate_get_users_needing_sync(PG_FUNCTION_ARGS)
{
	Oid			source = syncstate_arg_source(fcinfo, 0);
	int64		stale_after = syncstate_arg_duration(fcinfo, 1, "stale_after",
													 0, MAX_DURATION);
	int32		max_rows = syncstate_arg_max_rows(fcinfo, 2, true);
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	HASHCTL		ctl = {.keysize = UUID_LEN, .entrysize = UUID_LEN};
	HTAB	   *users;
	Peek		peek;
	Place		beginning;

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	ctl.hcxt = CurrentMemoryContext;
	users = hash_create("syncstate users", 256, &ctl,
						HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	peek_open(&peek);
	peek.policy = syncstate_policy(source);
	syncstate_place_after(&beginning, NO_TIME);
	for (Lane lane = 0; lane < NUM_LANES; lane++)
	{
		syncstate_walk_from(&peek.walk, lane, source, &beginning,
							lane == LANE_DUE ? peek.now : DT_NOEND);
		while (max_rows != 0 && syncstate_walk_next(&peek.walk))
		{
			SyncState  *row = &peek.walk.row;
			Datum		user;
			bool		isnull = false;
			bool		found;

			if (!peek_fetch(&peek, peek.now) ||
				syncstate_would_park(row, &peek.policy, peek.now) ||
				!syncstate_cap_has_room(&peek.caps, &peek.policy, &row->key) ||
				(stale_after > 0 && row->last_sync_at != NO_TIME &&
				 row->last_sync_at >= peek.now - stale_after))
				continue;
			hash_search(users, &row->key.user_id, HASH_ENTER, &found);
			if (found)
				continue;
			user = UUIDPGetDatum(&row->key.user_id);
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, &user,
								 &isnull);
			if (max_rows > 0)
				max_rows--;
		}
	}
	peek_close(&peek);
	hash_destroy(users);
	return (Datum) 0;
}

/*
 * From when on a claim takes the row at hand.  Nobody knows when a sync of its
 * quota domain will end, which is when a row that is held back may start: soon.
 */
static TimestampTz
claimable_at(Peek *peek)
{
	const SyncState *row = &peek->walk.row;
	TimestampTz at = syncstate_claimable_at(row, &peek->policy);

	return at <= peek->now &&
		!syncstate_cap_has_room(&peek->caps, &peek->policy, &row->key) ?
		peek->now + SWEEP_PAUSE : at;
}

/* Looks at a lane from a place on, with a bounded number of visits. */
static TimestampTz
next_after(Peek *peek, Lane lane, const Place *place, TimestampTz next,
		   bool *sure)
{
	Walk	   *walk = &peek->walk;
	int64		max_visits = syncstate_clock_is_set() ? PG_INT64_MAX : SWEEP_VISITS;

	*sure = true;
	syncstate_walk_from(walk, lane, peek->policy.source, place, DT_NOEND);
	while (next > peek->now && syncstate_walk_next(walk))
	{
		/* no row further on is due before this one */
		if (lane == LANE_DUE && walk->at >= next)
			break;
		if (peek_fetch(peek, next - 1))
			next = Min(next, claimable_at(peek));
		if (walk->visits >= max_visits)
		{
			*sure = false;
			break;
		}
	}
	return next;
}

/*
 * Looks at a lane from its beginning, and from the mark if that was not enough
 * to be sure.
 */
static TimestampTz
next_in_lane(Peek *peek, Lane lane, TimestampTz next)
{
	Place		place;
	SourceHints *hints;
	bool		sure;

	syncstate_place_after(&place, NO_TIME);
	next = next_after(peek, lane, &place, next, &sure);
	if (sure)
		return next;

	next = Min(next, peek->now + SWEEP_PAUSE);
	hints = syncstate_source_hints(peek->policy.source, KIND_ANY, peek->now);
	place = hints->lanes[lane].fronts[FRONT_MARK].place;
	next = next_after(peek, lane, &place, next, &sure);

	/* each claim continues towards now, so the next is not in vain */
	if (!sure && lane == LANE_DUE && peek->walk.at <= peek->now &&
		hints->claimed)
		next = Min(next, peek->now);
	return next;
}

/* When a claim will next find a row of the source at hand or of the others. */
static TimestampTz
next_of_source(Peek *peek, TimestampTz others)
{
	TimestampTz next = others;
	TimestampTz opens = NO_TIME;

	if (TIMESTAMP_IS_NOEND(peek->policy.paused_until))
		return others;

	/* the allowance of the source may open later than a row is due */
	if (peek->policy.rate_per_minute != 0)
		opens = syncstate_rate_next(&peek->policy, peek->now);
	if (opens > peek->now)
		next = DT_NOEND;
	for (Lane lane = 0; lane < NUM_LANES; lane++)
		next = next_in_lane(peek, lane, next);
	if (opens > peek->now && next != DT_NOEND)
		next = Max(next, opens);
	return Min(next, others);
}

/*
 * syncstate_next_sync_due(source) -> timestamptz: see doc/syncstate.md.
 *
 * Looks at a bounded number of index entries.  Where that is not enough to be
 * sure, the answer is a second from now at the latest, and now where this
 * session's claims have not come to the entries of now.
 */
Datum
syncstate_next_sync_due(PG_FUNCTION_ARGS)
{
	TimestampTz next = DT_NOEND;
	SyncPolicy *all;
	int			n;
	Peek		peek;

	peek_open(&peek);
	all = syncstate_policies(&n);
	for (int i = 0; i < n && next > peek.now; i++)
	{
		if (!PG_ARGISNULL(0) && all[i].source != PG_GETARG_OID(0))
			continue;
		peek.policy = all[i];
		next = next_of_source(&peek, next);
	}
	peek_close(&peek);

	if (next == DT_NOEND)
		PG_RETURN_NULL();
	PG_RETURN_TIMESTAMPTZ(next);
}

/*
 * The row that a function is given, and the policy of its source; false if the
 * row is null.
 *
 * Such a function is not STRICT: the planner makes a STRICT call with a constant
 * null a null, without asking for the privilege.
 */
static bool
arg_row(FunctionCallInfo fcinfo, SyncState *row, SyncPolicy *policy)
{
	if (PG_ARGISNULL(0))
		return false;
	syncstate_state_from_header(PG_GETARG_HEAPTUPLEHEADER(0), row);
	*policy = syncstate_policy(row->key.source);
	return true;
}

/* syncstate_due_from(sync_state) -> timestamptz: see doc/syncstate.md. */
Datum
syncstate_due_from(PG_FUNCTION_ARGS)
{
	SyncState	row;
	SyncPolicy	policy;
	TimestampTz at;

	if (!arg_row(fcinfo, &row, &policy))
		PG_RETURN_NULL();
	policy.paused_until = NO_TIME;
	at = syncstate_claimable_at(&row, &policy);
	if (at == DT_NOEND)
		PG_RETURN_NULL();
	PG_RETURN_TIMESTAMPTZ(at);
}

/* syncstate_is_ahead(sync_state) -> boolean: see doc/syncstate.md. */
Datum
syncstate_is_ahead(PG_FUNCTION_ARGS)
{
	SyncState	row;
	SyncState	settled;
	SyncPolicy	policy;

	if (!arg_row(fcinfo, &row, &policy))
		PG_RETURN_NULL();
	settled = row;
	syncstate_settle_times(&settled, &policy, syncstate_now());
	PG_RETURN_BOOL(settled.due_at != row.due_at ||
				   settled.requested_at != row.requested_at ||
				   settled.lease_expires_at != row.lease_expires_at ||
				   settled.limited_until != row.limited_until);
}
