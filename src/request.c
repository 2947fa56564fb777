/*
 * request.c: somebody asks for a sync now
 *
 * Users may: so a request is written by statements that touch no column that a
 * user role may not.
 */
#include "postgres.h"

#include "executor/spi.h"
#include "fmgr.h"

#include "access.h"
#include "args.h"
#include "due.h"
#include "request.h"
#include "schedule.h"
#include "store.h"
#include "syncstate.h"

PG_FUNCTION_INFO_V1(syncstate_request_sync);

/*
 * Whether a request may make a row due earlier.  It does not while a run is in
 * flight, but it cuts the backoff short if the run was lost after earlier
 * failures.  Users may not read lease_expires_at, which would tell which it is.
 */
static bool
comes_earlier(const SyncState *row, const SyncPolicy *policy, TimestampTz now)
{
	SyncState	requested = *row;

	if (row->status == SYNC_SYNCING)
		return row->failures > 0 || row->updated_at > now;
	requested.requested_at = now;
	syncstate_settle_times(&requested, policy, now);
	return syncstate_claimable_at(&requested, policy) <
		syncstate_claimable_at(row, policy);
}

/*
 * Requests a sync of the row of a key.
 *
 * The row is locked first: a request that is there may be gone as soon as the
 * transaction of a claim commits, and then this one is needed.  A request whose
 * time lies in the future was made by a clock that was wrong, and is replaced.
 *
 * NOTIFY takes a lock that all databases share until the commit, so only a
 * request that may make its row due earlier notifies.  Workers that sleep until
 * next_sync_due() are awake for the others.
 */
RequestEnd
syncstate_request(const SyncKey *key)
{
	SyncPolicy	policy = syncstate_policy(key->source);
	SyncState	row = {.key = *key};
	TimestampTz now;

	if (!syncstate_store_lock_request(&row))
		return REQUEST_NO_ROW;
	if (row.parked_reason != NULL)
		return REQUEST_PARKED;
	now = syncstate_now();
	if ((row.requested_at == NO_TIME || row.requested_at > now ||
		 row.updated_at > now ||	/* by a clock that was wrong: maybe the lease too */
		 row.due_at != syncstate_settled_due(&policy, &row, now) ||
		 row.limited_until != syncstate_settled_limit(&row, now)) &&
		syncstate_store_request(key, now) && comes_earlier(&row, &policy, now))
		syncstate_wake_workers(&policy);
	return REQUEST_COMES;
}

/* syncstate_request_sync(...) -> boolean: see doc/syncstate.md. */
Datum
syncstate_request_sync(PG_FUNCTION_ARGS)
{
	SyncKey		key = syncstate_arg_key(fcinfo, 0, 1, 2, 3);
	RequestEnd	end;

	SPI_connect();
	end = syncstate_request(&key);
	if (end == REQUEST_NO_ROW)
		syncstate_no_such_row(&key);
	SPI_finish();
	PG_RETURN_BOOL(end == REQUEST_COMES);
}
