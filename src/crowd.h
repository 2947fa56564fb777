/* crowd.h: what the sessions tell each other of a lane */
#ifndef SYNCSTATE_CROWD_H
#define SYNCSTATE_CROWD_H

#include "storage/itemptr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

/* The next sweep starts no sooner than this after the last one started. */
#define SWEEP_PAUSE		USECS_PER_SEC

/* Which of the walks through a lane. */
typedef enum Front
{
	FRONT_MARK,					/* on from the mark */
	FRONT_SWEEP,				/* over what the mark has passed */
	NUM_FRONTS,
} Front;

/* A place that is shared: after all entries of a user at a time. */
typedef struct SharedPlace
{
	TimestampTz at;				/* NO_TIME: the very beginning */
	pg_uuid_t	user_id;
} SharedPlace;

/*
 * A row of sync_lane.  The columns are those of the install script, all of them
 * of fixed length and not null.
 */
typedef struct SharedLane
{
	SharedPlace fronts[NUM_FRONTS]; /* what comes before was given out */
	TimestampTz sweep_rests_until;
	NameData	source;
	int16		kind;
	int16		lane;
} SharedLane;

/* How a session finds the row again. */
typedef struct CrowdRef
{
	bool		is_known;
	ItemPointerData tid;
} CrowdRef;

extern bool syncstate_crowd_read(CrowdRef *ref, const NameData *source,
								 int kind, int lane, SharedLane *found);
extern bool syncstate_crowd_move(CrowdRef *ref, const SharedLane *seen,
								 Front front, const SharedPlace *to,
								 TimestampTz rests_until);
extern void syncstate_crowd_rest(CrowdRef *ref, const SharedLane *seen,
								 TimestampTz rests_until);

#endif
