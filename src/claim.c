/*
 * claim.c: taking due rows
 *
 * A claim takes from the priority lane, then from the due lane, and in each of
 * them from two parts.  The mark is the place to which the last claim came; the
 * next one continues from there.  What the mark has passed and can be claimed
 * all the same (a late commit, an expired lease, a claim that was rolled back,
 * the backlog from before the session) is found by the sweep, which goes over
 * the lane from its very beginning to the mark, a bounded step per claim.
 *
 * Where a session passes what others took, it does not walk by itself any more:
 * it draws the next stretch, beginning where the others have come to, for as
 * many rows as it wants; see crowd.c.  The sweep then goes to the mark that they
 * share, where that is further than its own.
 *
 * A row is looked at under the statement's snapshot and started at once, unless
 * somebody has locked or changed it meanwhile: then it is skipped, or locked
 * and looked at again.
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

#include "access.h"
#include "args.h"
#include "cap.h"
#include "compat.h"
#include "crowd.h"
#include "due.h"
#include "rate.h"
#include "store.h"
#include "syncstate.h"
#include "transition.h"
#include "walk.h"

/*
 * Index entries that the walk on from the mark visits at most, dead ones
 * counted.  It matters where many syncs are in flight; the next claim continues
 * from there.
 */
#define FORWARD_VISITS	10000

/*
 * How many of either may be dead: under a held snapshot, or where nobody has
 * come by yet to mark them so.  Each is likely to be on a page of the table of
 * its own, and the first visit of a session to a page takes four times as long
 * as later ones, since the page has to be mapped.  Larger batches must get
 * proportionally further.
 */
#define DEAD_VISITS(wanted)	Max(1500, 10 * (wanted))

/* The same of the first step of a session, which reads catalogs besides. */
#define FIRST_DEAD_VISITS	500

/*
 * A claim first scans STRIDES times the average distance from the mark that
 * the last STRIDES claims covered.
 */
#define STRIDES			8

/*
 * How many entries a walk passes by itself that it cannot take, besides as many
 * as it wants, before it draws.
 */
#define CROWD			16

/*
 * How many entries a session draws at most, unless it wants more rows.  What it
 * has drawn waits for it, or for the next sweep.
 */
#define MAX_STRETCH		256

/* If so many more are of one user at one time, they cannot be drawn. */
#define MAX_TIES		2000

/* So often a session tries to draw where others do at the same moment. */
#define MAX_DRAWS		3

/*
 * While claims are full without it, a sweep rests after each step that found
 * too little, for so many times as long as the step took.
 */
#define SWEEP_REST		9

/* The pause of a sweep that met rows that were held back by max_in_flight. */
#define HELD_BACK_PAUSE	(SWEEP_PAUSE / 8)

/*
 * The mark of the priority lane stays this far in the past: a request that commits
 * this late is found at once, and not by the next sweep.
 */
#define PRIORITY_LAG	(2 * USECS_PER_SEC)

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
	Caps		caps;
	SyncPolicy	policy;			/* of the source at hand */
	SourceHints *hints;			/* of the source at hand */
	TimestampTz now;			/* what is due, is due by now */
	TimestampTz start;			/* of the syncs: not before the snapshot */
	Report		report;			/* what the claim says of each row */
	SyncKind	kind;			/* of the syncs */
	int			first;			/* rows taken of the sources before */
	int			quota;			/* rows that the source at hand may start */
	bool		drawn;			/* as many permits were drawn */
	TimestampTz drawn_at;
	int			starts;			/* of the source */
	int			ordinary;		/* of these, not requested */
	bool		keeps_share;	/* ordinary rows have their share of the quota */
	bool		no_requested;	/* and here, nobody else has */
	int			ntaken;
	Taken	   *taken;			/* room for max_rows */
	Oid		   *requested;		/* the only sources with requests; NULL: unknown */
	int			nrequested;
} Claim;

/* How a walk over a part of a lane ended. */
typedef enum WalkEnd
{
	WALK_ALL,					/* at its end */
	WALK_BOUND,					/* after as many visits as allowed */
	WALK_CROWD,					/* after as many as others may have taken */
	WALK_FULL,					/* with as many rows as wanted */
} WalkEnd;

/* What a walk may still visit. */
typedef struct Bounds
{
	int64		visits;
	int64		dead;			/* of these */
	int64		passed;			/* of these, not taken */
	TimestampTz crowd_until;	/* later entries are not counted as passed */
} Bounds;

/* What came of it when a session wanted a stretch. */
typedef enum Draw
{
	DRAW_DONE,					/* it has one */
	DRAW_LAST,					/* and that is the last one */
	DRAW_NONE,					/* there is none left */
	DRAW_RESTS,					/* the sweep rests */
	DRAW_IMPOSSIBLE,			/* it has to walk by itself */
} Draw;

PG_FUNCTION_INFO_V1(syncstate_claim_due_syncs);

/*
 * How many rows the claim may have after the lane at hand.
 *
 * One in ORDINARY_SHARE starts is kept for ordinary rows while both lanes have
 * work, so that a flood of requests slows them but never stops them.  What was
 * started is counted from claim to claim, so that this holds one by one too.
 */
static int
limit_of(const Claim *claim)
{
	int			share = (claim->hints->share_carry + claim->quota) / ORDINARY_SHARE;

	return claim->first + claim->quota - (claim->keeps_share ? share : 0);
}

/*
 * Whether the claim may start the row that it has met.  Permits of a source that
 * asks for them are drawn with its first row; what lanes share is these.
 */
static bool
has_permit(Claim *claim)
{
	if (claim->policy.rate_per_minute != 0 && !claim->drawn)
	{
		claim->quota = syncstate_rate_draw(&claim->policy, claim->quota,
										   &claim->drawn_at);
		claim->drawn = true;
	}
	return claim->ntaken < limit_of(claim);
}

/* Whether the claim wants the row at hand. */
static bool
is_wanted(Claim *claim)
{
	SyncState  *row = &claim->walk.row;

	return syncstate_claimable_at(row, &claim->policy) <= claim->now &&
		syncstate_is_of_kind(row, &claim->policy, claim->kind, claim->start);
}

/*
 * Starts the claimable row at hand, or parks it where its lease ran out once
 * too often.  Returns false if it was changed since it was read, which happens
 * to no row that is locked.
 */
static bool
take(Claim *claim, bool is_locked)
{
	SyncState	row = claim->walk.row;
	bool		hopeless = syncstate_would_park(&row, &claim->policy, claim->now);
	HeapTuple	written;
	Taken	   *taken;

	syncstate_apply(hopeless ? TRANSITION_GIVE_UP : TRANSITION_START, &row,
					&claim->report, &claim->policy, claim->start);
	if (is_locked)
		written = syncstate_rows_write(&claim->rows, &row);
	else if (!syncstate_rows_try(&claim->rows, &row, &written))
		return false;

	/* row security may have kept it from us */
	if (written == NULL || hopeless)
		return true;

	taken = &claim->taken[claim->ntaken];
	taken->order = claim->ntaken++;
	taken->requested = claim->walk.row.requested_at != NO_TIME;
	claim->starts++;
	syncstate_cap_count(&claim->caps, &claim->policy, &row.key);
	claim->ordinary += !taken->requested;
	taken->since = taken->requested ?
		claim->walk.row.requested_at : claim->walk.row.due_at;
	taken->result = written;
	return true;
}

/*
 * Takes the row that the walk is at, if it can still be claimed and nobody else
 * is using it.  A requested row is in both lanes, so a claim may meet a row that
 * it has taken already: that one cannot be claimed.
 */
static void
try_take(Claim *claim)
{
	SyncState  *row = &claim->walk.row;
	ItemPointerData tid = row->ctid;
	MemoryContext save;
	bool		is_locked;

	syncstate_injection_point("syncstate-claim-write");
	if (take(claim, false))
		return;

	/* somebody else or this transaction has changed it, or statements are needed */
	save = MemoryContextSwitchTo(claim->walk.visit);
	is_locked = syncstate_rows_lock_version(&claim->rows, tid,
											claim->walk.snapshot,
											claim->locked, row);
	MemoryContextSwitchTo(save);
	if (!is_locked || row->key.source != claim->policy.source)
		return;
	claim->start = syncstate_now();
	if (is_wanted(claim))
		(void) take(claim, true);
}

/*
 * Takes rows of a part of a lane: after "after", as far as "stop" or else the
 * present, within bounds, of which it takes what it visited.  *reached is left
 * where the walk came to.
 */
static WalkEnd
claim_part(Claim *claim, Lane lane, const Place *after, const Place *stop,
		   Bounds *bounds, Place *reached)
{
	Walk	   *walk = &claim->walk;
	TimestampTz upto = lane == LANE_DUE ? claim->now : DT_NOEND;
	int64		passed = 0;
	WalkEnd		end;

	if (stop != NULL)
		upto = stop->at;
	syncstate_walk_from(walk, lane, claim->policy.source, after, upto);
	for (;;)
	{
		int			ntaken = claim->ntaken;
		bool		is_bound = walk->visits >= bounds->visits ||
			walk->dead >= bounds->dead;

		if (ntaken >= limit_of(claim))
			end = WALK_FULL;
		else if (!syncstate_walk_next(walk) ||
				 (stop != NULL && syncstate_walk_is_past(walk, stop)))
			end = WALK_ALL;

		/* a row that was moved by its update has a dead entry before its own */
		else if ((is_bound || passed >= bounds->passed) &&
				 syncstate_walk_is_past(walk, reached))
		{
			walk->visits--;
			end = is_bound ? WALK_BOUND : WALK_CROWD;
		}
		else
		{
			bool		is_full = syncstate_cap_is_full(&claim->caps,
														&claim->policy,
														walk->user_id,
														walk->account);
			bool		wanted = !is_full && syncstate_walk_fetch(walk) &&
				!(claim->no_requested && walk->row.requested_at != NO_TIME) &&
				is_wanted(claim);

			if (wanted && !syncstate_cap_has_room(&claim->caps, &claim->policy,
												  &walk->row.key))
			{
				is_full = true;
				wanted = false;
			}
			if (is_full)
				claim->hints->lanes[lane].held_back = true;

			/* before the place: the next claim shall find the row here */
			if (wanted && !has_permit(claim))
			{
				walk->visits--;
				end = WALK_FULL;
				break;
			}
			syncstate_walk_place(walk, reached);
			if (wanted)
				try_take(claim);
			if (claim->ntaken == ntaken && walk->at <= bounds->crowd_until)
				passed++;
			continue;
		}
		break;
	}
	bounds->visits -= walk->visits;
	bounds->dead -= walk->dead;
	bounds->passed -= Min(passed, bounds->passed);
	return end;
}

/*
 * Looks how far so many entries reach, after "after" and as far as "stop"; all
 * entries of the last one's time and user are among them.  Returns how many
 * there are.
 */
static int
look_ahead(Claim *claim, Lane lane, const Place *after, const Place *stop,
		   int wanted, SharedPlace *last, bool *is_end)
{
	Walk	   *walk = &claim->walk;
	int			found = 0;

	*is_end = false;
	syncstate_walk_from(walk, lane, claim->policy.source, after, stop->at);
	while (found <= wanted + MAX_TIES)
	{
		if (!syncstate_walk_next(walk) || syncstate_walk_is_past(walk, stop))
		{
			*is_end = true;
			break;
		}
		if (found >= wanted && !syncstate_walk_is_at(walk, last))
			break;
		syncstate_walk_share(walk, last);
		found++;
	}
	return found;
}

/*
 * Whether the claim may leave rows to others, as who draws a stretch does: rows
 * that it cannot see are in there too.
 */
static bool
sees_what_others_see(const Claim *claim)
{
	return claim->rows.sees_all && !IsolationUsesXactSnapshot();
}

/*
 * Where the sweep of all sessions goes on, or begins anew; and as far as which
 * place.  Otherwise says why not.
 */
static Draw
find_sweep(Claim *claim, LaneHints *lh, const SharedLane *seen, bool rests,
		   TimestampTz now, Place *start, Place *end)
{
	const SharedPlace *shared = &seen->fronts[FRONT_SWEEP];
	const SharedPlace *mark = &seen->fronts[FRONT_MARK];
	bool		is_over = shared->at > now;

	/* a time that is further ahead is of a clock that was set back */
	if (seen->sweep_rests_until > now &&
		seen->sweep_rests_until <= now + SWEEP_PAUSE)
	{
		if (is_over)
		{
			lh->sweep_started = seen->sweep_rests_until - SWEEP_PAUSE;
			return DRAW_NONE;
		}
		if (rests)
		{
			lh->rests_until = seen->sweep_rests_until;
			return DRAW_RESTS;
		}
	}
	if (is_over)
		syncstate_place_after(start, NO_TIME);
	else
		syncstate_place_shared(start, shared);
	if (mark->at <= now && syncstate_place_is_before(end, mark))
		syncstate_place_shared(end, mark);
	return DRAW_DONE;
}

/*
 * Draws the next stretch of a lane, of what lies between the place that the
 * sessions share and "stop", and moves the shared place to the stretch's end.
 * "rests" says whether the sweep may rest.
 */
static Draw
draw_stretch(Claim *claim, Lane lane, Front front, const Place *stop, bool rests)
{
	LaneHints  *lh = &claim->hints->lanes[lane];
	FrontHints *fh = &lh->fronts[front];
	int			wanted = Max(fh->entries, limit_of(claim) - claim->ntaken);

	for (int try = 1;; try++)
	{
		Place		start = fh->place;
		Place		end = *stop;
		SharedPlace last = {0};
		TimestampTz rests_until = NO_TIME;
		SharedLane	seen;
		TimestampTz now;
		bool		is_end;
		int			found;

		if (!sees_what_others_see(claim) ||
			!syncstate_crowd_read(&lh->crowd, &claim->policy.label,
								  claim->kind, lane, &seen))
			return DRAW_IMPOSSIBLE;
		now = syncstate_now();	/* after whoever wrote it */
		if (front == FRONT_SWEEP)
		{
			Draw		draw = find_sweep(claim, lh, &seen, rests, now, &start,
										  &end);

			if (draw != DRAW_DONE)
				return draw;
		}
		else
		{
			fh->crowded = seen.fronts[front].at <= now &&
				syncstate_place_is_before(&fh->place, &seen.fronts[front]);
			if (fh->crowded)
				syncstate_place_shared(&start, &seen.fronts[front]);
		}

		found = look_ahead(claim, lane, &start, &end, wanted, &last, &is_end);
		if (found > wanted + MAX_TIES)
			return DRAW_IMPOSSIBLE;
		fh->place = start;
		fh->end = last;
		fh->left = found;
		if (front == FRONT_SWEEP && is_end)
		{
			/* one that is as short as that is not worth sharing */
			fh->crowded = start.at != NO_TIME || found > CROWD;
			MemSet(&last, 0, sizeof(last));
			last.at = DT_NOEND;
			rests_until = now + SWEEP_PAUSE;
		}
		else if (found == 0)
			return DRAW_NONE;
		if (syncstate_crowd_move(&lh->crowd, &seen, front, &last, rests_until) ||
			try == MAX_DRAWS)
			return found == 0 ? DRAW_NONE : is_end ? DRAW_LAST : DRAW_DONE;
	}
}

/*
 * Gives back what is left of a stretch after the user at hand, unless others
 * have drawn since: the oldest rows must not wait for this session.  A sweep that
 * was over with this stretch goes on.
 */
static void
give_back(Claim *claim, Lane lane, Front front)
{
	LaneHints  *lh = &claim->hints->lanes[lane];
	FrontHints *fh = &lh->fronts[front];
	SharedPlace to = {fh->place.at, fh->place.user_id};
	SharedLane	seen;
	bool		is_over;

	if (fh->place.after != AFTER_ROW ||
		!syncstate_crowd_read(&lh->crowd, &claim->policy.label, claim->kind,
							  lane, &seen))
		return;
	is_over = front == FRONT_SWEEP && seen.fronts[front].at == DT_NOEND;
	if ((is_over ||
		 memcmp(&seen.fronts[front], &fh->end, sizeof(SharedPlace)) == 0) &&
		syncstate_crowd_move(&lh->crowd, &seen, front, &to,
							 is_over ? claim->now : NO_TIME))
		fh->end = to;
}

/*
 * Takes rows of stretches that this session has drawn, one after the other.  It
 * serves each to its end before it draws another one.  *draw says what came of
 * the last try to draw; after the last stretch there is none, untried.
 */
static WalkEnd
claim_stretches(Claim *claim, Lane lane, Front front, const Place *stop,
				bool rests, Bounds *bounds, Draw *draw)
{
	FrontHints *fh = &claim->hints->lanes[lane].fronts[front];

	bounds->passed = PG_INT64_MAX;
	*draw = DRAW_DONE;
	for (;;)
	{
		Place		after;
		Place		last;
		int64		visits = bounds->visits;
		WalkEnd		end;

		if (fh->left == 0)
		{
			if (*draw == DRAW_DONE)
				*draw = draw_stretch(claim, lane, front, stop, rests);
			else
				*draw = DRAW_NONE;
			if (fh->left == 0)
				return WALK_ALL;
			fh->entries = 0;
		}
		after = fh->place;
		syncstate_place_shared(&last, &fh->end);
		end = claim_part(claim, lane, &after, &last, bounds, &fh->place);
		visits -= bounds->visits;
		fh->left -= Min(fh->left, visits);
		if (end == WALK_ALL)
			fh->left = 0;
		if (fh->left == 0)
			fh->place = last;

		/* let the next be as long as this one should have been */
		fh->entries = Min(fh->entries + visits, MAX_STRETCH);
		if (end == WALK_ALL)
			fh->entries = Min(2 * fh->entries, MAX_STRETCH);
		else if (end == WALK_FULL && fh->left > 0)
			give_back(claim, lane, front);
		if (end != WALK_ALL)
			return end;
	}
}

/* Whether a session tries to draw where it meets a crowd. */
static bool
may_draw(const Claim *claim, const FrontHints *fh)
{
	return fh->alone_until <= claim->now ||
		fh->alone_until > claim->now + SWEEP_PAUSE;
}

/*
 * Shortens the pause of a sweep of many sessions that is over, where this one has
 * met rows that were held back.
 */
static void
shorten_pause(Claim *claim, Lane lane)
{
	LaneHints  *lh = &claim->hints->lanes[lane];
	TimestampTz now = syncstate_now();
	TimestampTz until = now + HELD_BACK_PAUSE;
	SharedLane	seen;

	lh->sweep_started = now;
	if (syncstate_crowd_read(&lh->crowd, &claim->policy.label, claim->kind,
							 lane, &seen) &&
		seen.fronts[FRONT_SWEEP].at == DT_NOEND &&
		seen.sweep_rests_until > until)
		(void) syncstate_crowd_move(&lh->crowd, &seen, FRONT_SWEEP,
									&seen.fronts[FRONT_SWEEP], until);
}

/*
 * Takes rows by one more step of the sweep over a lane.  "rests" says whether it
 * may leave that to others who have just made one: WALK_CROWD then.
 */
static WalkEnd
claim_sweep(Claim *claim, Lane lane, bool rests)
{
	LaneHints  *lh = &claim->hints->lanes[lane];
	FrontHints *fh = &lh->fronts[FRONT_SWEEP];
	const Place *mark = &lh->fronts[FRONT_MARK].place;
	TimestampTz started = syncstate_now();
	int			wanted = limit_of(claim) - claim->ntaken;
	Bounds		bounds = {
		.visits = SWEEP_VISITS,
		.dead = claim->hints->claimed ? DEAD_VISITS(wanted) : FIRST_DEAD_VISITS,
		.passed = may_draw(claim, fh) ? CROWD + wanted : PG_INT64_MAX,
		.crowd_until = DT_NOEND,
	};
	Draw		draw = DRAW_IMPOSSIBLE;
	Place		after = fh->place;
	WalkEnd		end;

	if (fh->left == 0 && !(fh->crowded && may_draw(claim, fh)))
		end = claim_part(claim, lane, &after, mark, &bounds, &fh->place);
	else
		end = WALK_CROWD;
	if (end == WALK_CROWD)
	{
		if (fh->left == 0)
			fh->crowded = true;
		end = claim_stretches(claim, lane, FRONT_SWEEP, mark, rests, &bounds,
							  &draw);
		if (draw == DRAW_RESTS)
			return WALK_CROWD;
		if (draw == DRAW_IMPOSSIBLE)
		{
			fh->alone_until = claim->now + SWEEP_PAUSE;
			after = fh->place;
			end = claim_part(claim, lane, &after, mark, &bounds, &fh->place);
		}
	}

	if (end == WALK_ALL)
	{
		lh->sweeping = false;
		if (lh->held_back && draw == DRAW_NONE)
			shorten_pause(claim, lane);
	}
	else if (end == WALK_BOUND)
	{
		TimestampTz ended = syncstate_now();
		SharedLane	seen;

		lh->rests_until = ended + Min(SWEEP_REST * (ended - started),
									  SWEEP_PAUSE);
		if (draw != DRAW_IMPOSSIBLE &&
			syncstate_crowd_read(&lh->crowd, &claim->policy.label, claim->kind,
								 lane, &seen))
			syncstate_crowd_rest(&lh->crowd, &seen, lh->rests_until);
	}
	return end;
}

/*
 * Takes the rows of a lane that come after the mark, walking by itself.  A scan
 * reads all of a page that is within its bounds, which for a few rows is most of
 * the cost: so the first look goes only STRIDES times as far as the last claims
 * had to.
 */
static WalkEnd
claim_alone(Claim *claim, Lane lane, Bounds *bounds)
{
	LaneHints  *lh = &claim->hints->lanes[lane];
	Place	   *mark = &lh->fronts[FRONT_MARK].place;
	TimestampTz from = mark->at;
	Place		after = *mark;
	Place		near;
	WalkEnd		end = WALK_ALL;

	syncstate_place_after(&near, from + lh->stride);
	if (lh->stride > 0 && near.at < claim->now)
	{
		end = claim_part(claim, lane, &after, &near, bounds, mark);
		after = near;
	}
	if (end == WALK_ALL)
		end = claim_part(claim, lane, &after, NULL, bounds, mark);
	if (end == WALK_ALL)
	{
		syncstate_place_after(mark, lane == LANE_PRIORITY ?
							  claim->now - PRIORITY_LAG : claim->now);
		lh->stride = 0;
	}
	else
		lh->stride += mark->at - from - lh->stride / STRIDES;
	return end;
}

/* Takes the rows of a lane that come after the mark. */
static WalkEnd
claim_from_mark(Claim *claim, Lane lane)
{
	FrontHints *fh = &claim->hints->lanes[lane].fronts[FRONT_MARK];
	int			wanted = limit_of(claim) - claim->ntaken;
	Bounds		bounds = {
		.visits = FORWARD_VISITS,
		.dead = DEAD_VISITS(wanted),

		/* nobody has swept yet what a new session would leave behind */
		.passed = claim->hints->claimed && may_draw(claim, fh) ?
			CROWD + wanted : PG_INT64_MAX,
		.crowd_until = lane == LANE_PRIORITY ?
			claim->now - PRIORITY_LAG : claim->now,
	};
	WalkEnd		end = WALK_CROWD;

	if (fh->left == 0 && !(fh->crowded && may_draw(claim, fh)))
		end = claim_alone(claim, lane, &bounds);
	if (end == WALK_CROWD)
	{
		Place		stop;
		Draw		draw;

		syncstate_place_after(&stop, bounds.crowd_until);
		end = claim_stretches(claim, lane, FRONT_MARK, &stop, false, &bounds,
							  &draw);
		if (draw == DRAW_IMPOSSIBLE)
			fh->alone_until = claim->now + SWEEP_PAUSE;
		if (end == WALK_ALL && lane == LANE_DUE && draw == DRAW_NONE)
			fh->place = stop;
		else if (end == WALK_ALL)
			end = claim_alone(claim, lane, &bounds);
	}
	return end;
}

/*
 * How long after the beginning of a sweep the next one begins: soon, where rows
 * were held back by max_in_flight.  They can be taken as soon as others end, and
 * only a sweep finds them.
 */
static int64
sweep_pause(const LaneHints *lh)
{
	return lh->held_back ? HELD_BACK_PAUSE : SWEEP_PAUSE;
}

/* Takes rows of a lane. */
static WalkEnd
claim_lane(Claim *claim, Lane lane)
{
	LaneHints  *lh = &claim->hints->lanes[lane];
	TimestampTz now = claim->now;
	bool		resting;
	WalkEnd		end;

	/* time that is moved by hand makes hints worthless, and waiting too */
	if (syncstate_clock_is_set())
	{
		Bounds		bounds = {
			.visits = PG_INT64_MAX,
			.dead = PG_INT64_MAX,
			.passed = PG_INT64_MAX,
		};
		Place		beginning;
		Place		reached;

		syncstate_place_after(&beginning, NO_TIME);
		return claim_part(claim, lane, &beginning, NULL, &bounds, &reached);
	}

	/* the real clock may have been set back */
	if (lh->fronts[FRONT_MARK].place.at > now)
	{
		syncstate_place_after(&lh->fronts[FRONT_MARK].place, now);
		lh->fronts[FRONT_MARK].left = 0;
	}
	if (lh->sweep_started > now)
		lh->sweep_started = NO_TIME;
	if (lh->rests_until > now + SWEEP_PAUSE)
		lh->rests_until = NO_TIME;

	if (!lh->sweeping &&
		(lh->sweep_started == NO_TIME ||
		 now - lh->sweep_started >= sweep_pause(lh)))
	{
		lh->sweeping = true;
		lh->held_back = false;
		lh->sweep_started = now;
		lh->rests_until = NO_TIME;
		if (lh->fronts[FRONT_SWEEP].left == 0)
			syncstate_place_after(&lh->fronts[FRONT_SWEEP].place, NO_TIME);
	}
	resting = lh->sweeping && lh->rests_until > now;
	if (lh->sweeping && !resting)
	{
		end = claim_sweep(claim, lane, true);
		if (end == WALK_FULL)
			return WALK_FULL;
		resting = end == WALK_CROWD;
	}

	end = claim_from_mark(claim, lane);
	if (resting && end != WALK_FULL)
		end = claim_sweep(claim, lane, false);
	return end;
}

/*
 * Looks which sources have requests at all, where that is cheaper than to look at
 * the priority lane of each one: mostly there are few.
 */
static void
find_requested(Claim *claim, int nsources)
{
	Oid			source = InvalidOid;

	claim->requested = palloc(nsources * sizeof(Oid));
	while (OidIsValid(source = syncstate_walk_next_source(&claim->walk,
														  LANE_PRIORITY, source)))
	{
		if (claim->nrequested > nsources / 4)
		{
			claim->requested = NULL;
			return;
		}
		claim->requested[claim->nrequested++] = source;
	}
}

/* Whether the source at hand may have requests. */
static bool
may_have_requests(const Claim *claim)
{
	if (claim->requested == NULL)
		return true;
	for (int i = 0; i < claim->nrequested; i++)
	{
		if (claim->requested[i] == claim->policy.source)
			return true;
	}
	return false;
}

/* Takes up to "quota" rows of the source at hand; false if it has no more. */
static bool
claim_source(Claim *claim, int quota)
{
	WalkEnd		end = WALK_FULL;
	WalkEnd		due = WALK_FULL;
	int			carry;

	if (claim->policy.paused_until > claim->now)
		return false;
	claim->hints = syncstate_source_hints(claim->policy.source, claim->kind,
										  claim->now);
	claim->first = claim->ntaken;
	claim->quota = quota;
	claim->drawn = false;
	claim->starts = claim->ordinary = 0;

	claim->keeps_share = true;
	if (!may_have_requests(claim))
		end = WALK_ALL;
	else if (claim->ntaken < limit_of(claim))
		end = claim_lane(claim, LANE_PRIORITY);
	claim->keeps_share = false;
	claim->no_requested = end == WALK_FULL;
	if (claim->ntaken < limit_of(claim))
		due = claim_lane(claim, LANE_DUE);
	claim->no_requested = false;
	if (end == WALK_FULL && claim->ntaken < limit_of(claim))
		claim_lane(claim, LANE_PRIORITY);

	carry = claim->hints->share_carry + claim->starts -
		ORDINARY_SHARE * claim->ordinary;
	claim->hints->share_carry = Min(Max(carry, 0), ORDINARY_SHARE - 1);
	claim->hints->claimed = true;
	if (claim->drawn && claim->quota > claim->starts)
		syncstate_rate_give_back(&claim->policy, claim->quota - claim->starts,
								 claim->drawn_at);
	return end != WALK_ALL || due != WALK_ALL;
}

/*
 * Takes rows of several sources.  Each source gets an equal part of what is
 * left; what some leave over, a second round gives to the others.
 */
static void
claim_sources(Claim *claim, const Oid *sources, int nsources, int max_rows)
{
	int			rounds = nsources == 1 ? 1 : 2;
	bool	   *has_more = palloc0(nsources * sizeof(bool));

	if (nsources > 1)
		find_requested(claim, nsources);
	for (int round = 0; round < rounds; round++)
	{
		for (int i = 0; i < nsources && claim->ntaken < max_rows; i++)
		{
			int			left = max_rows - claim->ntaken;
			int			quota = round == 1 ? left :
				(left + nsources - i - 1) / (nsources - i);

			if (round == 1 && !has_more[i])
				continue;
			claim->policy = syncstate_policy(sources[i]);
			has_more[i] = claim_source(claim, quota);
		}
	}
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
 * syncstate_claim_due_syncs(source, max_rows, lease_time, kind) -> setof
 * sync_state: see doc/syncstate.md.
 */
Datum
syncstate_claim_due_syncs(PG_FUNCTION_ARGS)
{
	int			max_rows = syncstate_arg_max_rows(fcinfo, 1, false);
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Claim		claim = {.report.is_claim = true};
	Oid		   *sources;
	int			nsources = 0;

	claim.report.lease_time = syncstate_arg_duration(fcinfo, 2, "lease_time",
													 MIN_DURATION, MAX_LEASE_TIME);
	claim.kind = syncstate_arg_word(fcinfo, 3, "kind", syncstate_sync_kinds,
									NUM_SYNC_KINDS);
	PreventCommandIfReadOnly("claim_due_syncs()");
	PreventCommandIfParallelMode("claim_due_syncs()");
	InitMaterializedSRF(fcinfo, 0);

	/* one source, or all of them, from another one each time */
	if (!PG_ARGISNULL(0))
	{
		sources = palloc(sizeof(Oid));
		sources[nsources++] = PG_GETARG_OID(0);
	}
	else
	{
		static uint32 turn = 0;
		uint32		first = syncstate_turn(&turn);
		int			n;
		SyncPolicy *all = syncstate_policies(&n);

		sources = palloc(Max(n, 1) * sizeof(Oid));
		for (int i = 0; i < n; i++)
			sources[nsources++] = all[(first + i) % n].source;
	}

	claim.now = syncstate_now();
	SPI_connect();
	claim.taken = palloc(max_rows * sizeof(Taken));
	syncstate_rows_open(&claim.rows);
	if (!claim.rows.plain)
	{
		ItemPointerData nowhere = {0};
		SyncState	none;

		/* the caller's privileges, and an auditor, want a statement */
		(void) syncstate_store_lock_version(&nowhere, &none);
	}
	PushActiveSnapshot(GetTransactionSnapshot());
	claim.start = syncstate_now();
	syncstate_walk_open(&claim.walk, RowExclusiveLock, GetActiveSnapshot());
	claim.locked = table_slot_create(claim.walk.rel, NULL);
	syncstate_caps_open(&claim.caps, claim.walk.rel, true);

	claim_sources(&claim, sources, nsources, max_rows);

	ExecDropSingleTupleTableSlot(claim.locked);
	syncstate_walk_close(&claim.walk, NoLock);
	syncstate_rows_close(&claim.rows);
	PopActiveSnapshot();

	qsort(claim.taken, claim.ntaken, sizeof(Taken), compare_order);
	for (int i = 0; i < claim.ntaken; i++)
		tuplestore_puttuple(rsinfo->setResult, claim.taken[i].result);
	SPI_finish();
	return (Datum) 0;
}
