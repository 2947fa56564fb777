/*
 * due.c: who is due
 *
 * The one place that says which rows a claim takes.
 */
#include "postgres.h"

#include "due.h"
#include "schedule.h"

const char *const syncstate_sync_kinds[NUM_SYNC_KINDS] = {
	[KIND_ANY] = "any",
	[KIND_INCREMENTAL] = "incremental",
	[KIND_FULL] = "full",
};

/* Whether a sync of the row that started now would be of a kind. */
bool
syncstate_is_of_kind(const SyncState *row, const SyncPolicy *policy,
					 SyncKind kind, TimestampTz now)
{
	bool		is_incremental;

	if (kind == KIND_ANY)
		return true;
	is_incremental = syncstate_has_cursor(row) &&
		!syncstate_begins_anew(policy, row, now);
	return is_incremental == (kind == KIND_INCREMENTAL);
}

/*
 * The time from which a claim takes the row, if nothing happens to it;
 * DT_NOEND: never.
 */
TimestampTz
syncstate_claimable_at(const SyncState *row, const SyncPolicy *policy)
{
	TimestampTz at = row->due_at;

	if (at == NO_TIME)
		return DT_NOEND;		/* parked */
	if (row->status == SYNC_SYNCING)
		at = Max(at, syncstate_lease_over(policy, row));
	if (row->requested_at != NO_TIME && row->status != SYNC_RATE_LIMITED)
		at = Min(at, syncstate_request_opens(policy, row));
	if (row->status == SYNC_SYNCING)
		at = Max(at, row->lease_expires_at);
	if (policy->paused_until != NO_TIME)
		at = Max(at, syncstate_source_opens(policy, &row->key));
	return Max(at, row->limited_until);
}

/*
 * Whether a claim parks the row instead of handing it out, because its lease
 * ran out once too often.
 */
bool
syncstate_would_park(const SyncState *row, const SyncPolicy *policy,
					 TimestampTz now)
{
	return row->status == SYNC_SYNCING &&
		syncstate_is_hopeless(policy, (int64) row->failures + 1,
							  row->failing_since, now);
}
