/* state.h: a row of sync_state in memory */
#ifndef SYNCSTATE_STATE_H
#define SYNCSTATE_STATE_H

#include "access/htup.h"
#include "access/tupdesc.h"
#include "catalog.h"
#include "check.h"
#include "columns.h"
#include "executor/tuptable.h"
#include "storage/itemptr.h"
#include "utils/uuid.h"

/* The C types of the kinds of columns. */
typedef pg_uuid_t SyncUUID;
typedef Oid SyncSOURCE;
typedef text *SyncNAME;		/* never null */
typedef SyncStatus SyncSTATUS;
typedef text *SyncTOKEN;
typedef text *SyncHISTORY_ID;
typedef text *SyncREASON;
typedef text *SyncMESSAGE;
typedef TimestampTz SyncTIME;
typedef Interval *SyncINTERVAL;
typedef int64 SyncNUMBER;
typedef int64 SyncCOUNT;
typedef int32 SyncINTEGER;
typedef int32 SyncTALLY;		/* null in a row of a client's is 0 */
typedef double SyncAMOUNT;
typedef bool SyncFLAG;

#define FIELD(name, kind, writer) Sync##kind name;

/* What names a row. */
typedef struct SyncKey
{
	SYNC_KEY_COLUMNS(FIELD)
} SyncKey;

/* What an application is told of, and whoever looks for what went wrong. */
typedef enum Event
{
	EVENT_PARKED,
	EVENT_FAILING,
	EVENT_RECOVERED,
	EVENT_FIRST_SYNC,
	EVENT_CURSOR_LOST,
	EVENT_GONE,
	EVENT_SWEEP_WITHHELD,
	EVENT_SOURCE_LIMITED,
	EVENT_SOURCE_RESUMED,
	NUM_EVENTS,
} Event;

/* How a run ends; the first ones are reported, the others found. */
typedef enum Outcome
{
	OUTCOME_COMPLETED,
	OUTCOME_FAILED,
	OUTCOME_RATE_LIMITED,
	OUTCOME_RELEASED,
	OUTCOME_LOST,
	OUTCOME_REVOKED,
	NUM_OUTCOMES,
	NUM_REPORTED_OUTCOMES = OUTCOME_LOST,
} Outcome;

/* A run that has ended. */
typedef struct Run
{
	Outcome		outcome;
	int64		lease;
	TimestampTz started_at;
	TimestampTz ended_at;
	bool		was_full;
	bool		was_requested;
	int64		items;			/* NO_COUNT: not known */
	text	   *error_message;
} Run;

/* What a transition made of a row, beside the row: see news.c. */
typedef struct News
{
	int			events;			/* a bit for each */
	TimestampTz at;
	int64		lease;			/* of the run in which it happened, or NO_COUNT */
	bool		has_run;
	Run			run;
} News;

/*
 * A row.  Pointers belong to whatever the row was read from; a null column is
 * NULL, NO_TIME, NO_COUNT or NO_AMOUNT.
 */
typedef struct SyncState
{
	/* the version that was read; not columns */
	ItemPointerData ctid;
	HeapTuple	tuple;			/* NULL: was read by a statement */
	News		news;			/* of what became of it since it was read */

	SyncKey		key;
	SYNC_DATA_COLUMNS(FIELD)
} SyncState;

#undef FIELD

/* Why a row is parked. */
typedef enum ParkedReason
{
	PARKED_PAUSED,
	PARKED_AUTH,
	PARKED_FAILURES,
	PARKED_TOKEN_LOOP,
	PARKED_GONE,
	NUM_PARKED_REASONS,
} ParkedReason;

extern const char *const syncstate_parked_reasons[NUM_PARKED_REASONS];

extern void syncstate_state_from_datums(const Datum *values, const bool *nulls,
										SyncState *row);
extern void syncstate_state_to_datums(const SyncState *row,
									  Datum *values, bool *nulls);
extern void syncstate_state_from_slot(TupleTableSlot *slot, SyncState *row);
extern void syncstate_state_from_tuple(HeapTuple tuple, TupleDesc tupdesc,
									   SyncState *row);
extern void syncstate_state_from_header(HeapTupleHeader header, SyncState *row);
extern HeapTuple syncstate_state_into_tuple(const SyncState *row,
											HeapTuple tuple, TupleDesc tupdesc);
extern void syncstate_state_check(SyncState *row);
extern void syncstate_state_keep(const SyncState *old, const SyncState *derived,
								 SyncState *row);

extern bool syncstate_is_parked_for(const SyncState *row, ParkedReason reason);
extern bool syncstate_same_text(const text *a, const text *b);
extern bool syncstate_same_key(const SyncKey *a, const SyncKey *b);
extern int	syncstate_compare_text(const text *a, const text *b);

#endif
