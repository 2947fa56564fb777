/*
 * revive.c: taking many parked rows back, after an outage
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "access.h"
#include "args.h"
#include "schedule.h"
#include "store.h"
#include "syncstate.h"
#include "transition.h"

PG_FUNCTION_INFO_V1(syncstate_revive_syncs);

/* Which reasons a call takes rows back from. */
typedef struct Reasons
{
	bool		is_named[NUM_PARKED_REASONS];
} Reasons;

/*
 * A pause is the user's own, and a resource that is gone is not there: these two
 * end only where they are named.
 */
static Reasons
read_reasons(FunctionCallInfo fcinfo, int arg)
{
	Reasons		reasons = {{false}};

	if (!PG_ARGISNULL(arg))
		reasons.is_named[syncstate_arg_word(fcinfo, arg, "reason",
											syncstate_parked_reasons,
											NUM_PARKED_REASONS)] = true;
	else
	{
		for (int i = 0; i < NUM_PARKED_REASONS; i++)
			reasons.is_named[i] = i != PARKED_PAUSED && i != PARKED_GONE;
	}
	return reasons;
}

static ArrayType *
reason_array(const Reasons *reasons)
{
	Datum		words[NUM_PARKED_REASONS];
	int			nwords = 0;

	for (int i = 0; i < NUM_PARKED_REASONS; i++)
	{
		if (reasons->is_named[i])
			words[nwords++] = CStringGetTextDatum(syncstate_parked_reasons[i]);
	}
	return construct_array(words, nwords, TEXTOID, -1, false, TYPALIGN_INT);
}

/* Whether a row is still parked for one of the reasons. */
static bool
is_parked_for_any(const SyncState *row, const Reasons *reasons)
{
	for (int i = 0; i < NUM_PARKED_REASONS; i++)
	{
		if (reasons->is_named[i] && syncstate_is_parked_for(row, i))
			return true;
	}
	return false;
}

/*
 * syncstate_revive_syncs(source, reason, spread, max_rows) -> integer: see
 * doc/syncstate.md.
 *
 * The rows are locked in the order of the key, like those of every batch.
 */
Datum
syncstate_revive_syncs(PG_FUNCTION_ARGS)
{
	Oid			source = syncstate_arg_source(fcinfo, 0);
	Reasons		reasons = read_reasons(fcinfo, 1);
	int64		spread = syncstate_arg_duration(fcinfo, 2, "spread", 0,
												MAX_RELEASE_DELAY);
	int32		max_rows = syncstate_arg_max_rows(fcinfo, 3, false);
	SyncPolicy	policy = syncstate_policy(source);
	RowAccess	rows;
	SyncKey    *keys;
	int			nkeys;
	int32		revived = 0;

	SPI_connect();
	keys = syncstate_store_parked(source, reason_array(&reasons), max_rows,
								  &nkeys);
	syncstate_rows_open(&rows);
	syncstate_rows_look(&rows);
	for (int i = 0; i < nkeys; i++)
	{
		SyncState	row;
		Report		report = {
			.delay = (int64) (syncstate_row_part(&policy, &keys[i]) * spread),
		};

		if (!syncstate_rows_lock(&rows, &keys[i], &row) ||
			!is_parked_for_any(&row, &reasons))
			continue;
		syncstate_apply(TRANSITION_RESUME, &row, &report, &policy,
						syncstate_now());
		if (syncstate_rows_write(&rows, &row) != NULL)
			revived++;
	}
	syncstate_rows_close(&rows);
	SPI_finish();

	if (revived > 0)
		syncstate_wake_workers(&policy);
	PG_RETURN_INT32(revived);
}
