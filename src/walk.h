/* walk.h: walking through the lanes, and what a session remembers of them */
#ifndef SYNCSTATE_WALK_H
#define SYNCSTATE_WALK_H

#include "access/genam.h"
#include "crowd.h"
#include "due.h"
#include "state.h"
#include "utils/snapshot.h"

/* Index entries that one step of a sweep visits at most, dead ones counted. */
#define SWEEP_VISITS	2000

/* One in so many starts is an ordinary row's, while both lanes have work. */
#define ORDINARY_SHARE	4

typedef enum Lane
{
	LANE_PRIORITY,				/* by requested_at */
	LANE_DUE,					/* by due_at */
	NUM_LANES,
} Lane;

/* After which entries a place is. */
typedef enum PlaceAfter
{
	AFTER_TIME,					/* all of its time */
	AFTER_USER,					/* and of these, all up to its user's */
	AFTER_ROW,					/* and of these, all up to its row's */
} PlaceAfter;

/* A place in a lane. */
typedef struct Place
{
	PlaceAfter	after;
	TimestampTz at;				/* NO_TIME: the very beginning */
	pg_uuid_t	user_id;
	int			account_len;
	int			resource_len;
	char		account[MAX_ACCOUNT_BYTES];
	char		resource[MAX_RESOURCE_BYTES];
} Place;

/* Where a session is in one of its walks through a lane. */
typedef struct FrontHints
{
	Place		place;
	bool		crowded;		/* others are where it is: it draws stretches */
	int			left;			/* entries as far as "end" that it has drawn: so many
								 * when it drew them, less what it visited */
	SharedPlace end;
	int			entries;		/* how many it draws next, at least */
	TimestampTz alone_until;	/* it need not try to draw; at most SWEEP_PAUSE
								 * ahead */
} FrontHints;

/* What a session remembers of a lane. */
typedef struct LaneHints
{
	FrontHints	fronts[NUM_FRONTS];
	CrowdRef	crowd;
	bool		sweeping;
	bool		held_back;		/* a row could not be taken for max_in_flight */
	TimestampTz sweep_started;
	TimestampTz rests_until;	/* at most SWEEP_PAUSE ahead */
	int64		stride;			/* how far from the mark a claim looks first; 0: all
								 * the way */
} LaneHints;

/* Whose hints they are; without padding, since it is hashed. */
typedef struct HintsKey
{
	Oid			source;
	uint32		kind;
} HintsKey;

/* What a session remembers of a source. */
typedef struct SourceHints
{
	HintsKey	key;
	LaneHints	lanes[NUM_LANES];
	int			share_carry;	/* starts since the last ordinary one */
	bool		claimed;		/* it has claimed before */
} SourceHints;

/* An index scan over a lane, and the entry that it is at. */
typedef struct Walk
{
	Relation	rel;
	Relation	index[NUM_LANES];
	IndexScanDesc scan[NUM_LANES];
	Snapshot	snapshot;
	TupleTableSlot *slot;
	MemoryContext visit;		/* what the entry and its row take, until the next */
	IndexScanDesc current;		/* the lane being walked */
	int64		visits;			/* of this walk over this lane */
	int64		dead;			/* of these */
	bool		direct;			/* the last row was where its entry says */
	TimestampTz at;				/* the entry's time and rest of its key */
	pg_uuid_t  *user_id;
	text	   *account;
	text	   *resource;
	SyncState	row;			/* the row, once fetched */
} Walk;

extern void syncstate_walk_open(Walk *walk, LOCKMODE lockmode,
								Snapshot snapshot);
extern void syncstate_walk_close(Walk *walk, LOCKMODE lockmode);
extern void syncstate_walk_from(Walk *walk, Lane lane, Oid source,
								const Place *after, TimestampTz upto);
extern Oid	syncstate_walk_next_source(Walk *walk, Lane lane, Oid after);
extern bool syncstate_walk_next(Walk *walk);
extern bool syncstate_walk_fetch(Walk *walk);
extern bool syncstate_walk_is_past(const Walk *walk, const Place *place);
extern void syncstate_walk_place(const Walk *walk, Place *place);
extern bool syncstate_walk_is_at(const Walk *walk, const SharedPlace *place);
extern void syncstate_walk_share(const Walk *walk, SharedPlace *place);
extern void syncstate_place_after(Place *place, TimestampTz at);
extern void syncstate_place_shared(Place *place, const SharedPlace *shared);
extern bool syncstate_place_is_before(const Place *place,
									  const SharedPlace *shared);
extern SourceHints *syncstate_source_hints(Oid source, SyncKind kind,
										   TimestampTz now);

#endif
