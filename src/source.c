/*
 * source.c: calls about a source as a whole: its settings, pauses and limits, and
 * planned full syncs
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "args.h"
#include "catalog.h"
#include "check.h"
#include "news.h"
#include "policy.h"
#include "source.h"
#include "store.h"
#include "syncstate.h"

/* What set_sync_policy() may change. */
static const JsonKey settings[] = {
#define JSON_OF_DURATION		JSON_INTERVAL
#define JSON_OF_DURATION_OR_OFF	JSON_INTERVAL
#define JSON_OF_COUNT			JSON_NUMBER
#define JSON_OF_COUNT_OR_OFF	JSON_NUMBER
#define JSON_OF_FRACTION		JSON_NUMBER
#define JSON_OF_TTL_FROM		JSON_TEXT
#define JSON_OF_PAUSE			JSON_TIME
#define JSON_OF_TIME_OR_OFF		JSON_TIME
#define JSON_OF_LABEL			JSON_TEXT
#define JSON_OF_KEEP_RUNS		JSON_TEXT

#define KEY(name, kind, least, most, builtin) {#name, JSON_OF_##kind},
	SYNC_POLICY_SETTINGS(KEY)
#undef KEY
};

PG_FUNCTION_INFO_V1(syncstate_set_sync_policy);
PG_FUNCTION_INFO_V1(syncstate_pause_sync_source);
PG_FUNCTION_INFO_V1(syncstate_resume_sync_source);
PG_FUNCTION_INFO_V1(syncstate_resync_source);

/*
 * Tells of a source that is paused now and was not, or the other way round.  The
 * end of a pause by its time is told by nobody, since nobody is there then.
 */
static SyncPolicy
tell_pause(const SyncPolicy *before, const char *reason)
{
	SyncPolicy	policy = syncstate_policy(before->source);
	TimestampTz now = syncstate_now();
	bool		was_paused = before->paused_until > now;
	bool		is_paused = policy.paused_until > now;
	NewsList	news = {.context = CurrentMemoryContext};
	EventRow	event = {
		.event = is_paused ? EVENT_SOURCE_LIMITED : EVENT_SOURCE_RESUMED,
		.at = now,
		.source = policy.source,
		.lease = NO_COUNT,
	};

	if (was_paused == is_paused)
		return policy;
	if (is_paused)
	{
		static const int utc = 0;
		char		until[MAXDATELEN + 1];

		JsonEncodeDateTime(until, TimestampTzGetDatum(policy.paused_until),
						   TIMESTAMPTZOID, &utc);
		event.reason = cstring_to_text(reason);
		event.detail = cstring_to_text(until);
	}
	syncstate_news_event(&news, &event);
	syncstate_news_write(&news);
	return policy;
}

/* syncstate_set_sync_policy(source, changes) -> sync_policy: see doc/syncstate.md. */
Datum
syncstate_set_sync_policy(PG_FUNCTION_ARGS)
{
	Oid			source = syncstate_arg_source(fcinfo, 0);
	Jsonb	   *changes = syncstate_arg_object(fcinfo, 1, "changes");
	SyncPolicy	policy = syncstate_policy(source);
	Datum		overrides;

	syncstate_check_object("changes", &changes->root, settings,
						   lengthof(settings));
	SPI_connect();
	overrides = syncstate_store_policy_changes(source, JsonbPGetDatum(changes));
	syncstate_policy_check(DatumGetHeapTupleHeader(overrides));
	syncstate_store_policy_write(source, overrides);
	policy = tell_pause(&policy, "paused");
	SPI_finish();
	return syncstate_policy_row(&policy);
}

/*
 * syncstate_pause_sync_source(source, until) -> sync_policy: see
 * doc/syncstate.md.
 */
Datum
syncstate_pause_sync_source(PG_FUNCTION_ARGS)
{
	Oid			source = syncstate_arg_source(fcinfo, 0);
	SyncPolicy	policy = syncstate_policy(source);
	TimestampTz until;

	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("until must not be null"),
				 errhint("Use resume_sync_source() to end a pause.")));
	until = PG_GETARG_TIMESTAMPTZ(1);
	if (!TIMESTAMP_IS_NOEND(until))
		syncstate_check_time("until", until);

	SPI_connect();
	syncstate_store_pause(source, until, false);
	policy = tell_pause(&policy, "paused");
	SPI_finish();
	return syncstate_policy_row(&policy);
}

/* syncstate_resume_sync_source(source) -> sync_policy: see doc/syncstate.md. */
Datum
syncstate_resume_sync_source(PG_FUNCTION_ARGS)
{
	Oid			source = syncstate_arg_source(fcinfo, 0);
	SyncPolicy	policy = syncstate_policy(source);

	SPI_connect();
	syncstate_store_pause(source, NO_TIME, false);
	policy = tell_pause(&policy, NULL);
	SPI_finish();
	syncstate_wake_workers(&policy);
	return syncstate_policy_row(&policy);
}

/* syncstate_resync_source(source, spread) -> sync_policy: see doc/syncstate.md. */
Datum
syncstate_resync_source(PG_FUNCTION_ARGS)
{
	Oid			source = syncstate_arg_source(fcinfo, 0);
	SyncPolicy	policy;

	(void) syncstate_arg_duration(fcinfo, 1, "spread", 0, MAX_DURATION);
	SPI_connect();
	syncstate_store_resync(source, syncstate_now(),
						   PG_ARGISNULL(1) ? NULL : PG_GETARG_INTERVAL_P(1));
	SPI_finish();
	policy = syncstate_policy(source);
	return syncstate_policy_row(&policy);
}

/* Whether somebody has written about the same limit, committed or not. */
static bool
limit_is_coming(Oid source, TimestampTz until, TimestampTz now)
{
	Relation	rel = table_open(syncstate_ids()->policy_rel, AccessShareLock);
	SnapshotData dirty;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		covered = false;

	InitDirtySnapshot(dirty);
	scan = systable_beginscan(rel, InvalidOid, false, &dirty, 0, NULL);
	while (!covered && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		isnull;
		Datum		value;

		value = heap_getattr(tuple, Anum_sync_policy_source,
							 RelationGetDescr(rel), &isnull);
		if (DatumGetObjectId(value) != source ||
			!TransactionIdIsValid(dirty.xmin))
			continue;
		value = heap_getattr(tuple, Anum_sync_policy_paused_until,
							 RelationGetDescr(rel), &isnull);
		covered = !isnull &&
			DatumGetTimestampTz(value) >= until - (until - now) / 10;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return covered;
}

/*
 * Pauses a source until a time, unless it is paused for as long already.
 *
 * Many workers hit the same limit at once, each a moment later than the one
 * before.  A moment more is no change; and where another worker is writing a
 * limit at this moment, nobody waits for its transaction to end, unless the own
 * limit is longer by more than a tenth.
 */
void
syncstate_pause_source(Oid source, TimestampTz until, TimestampTz now)
{
	SyncPolicy	policy = syncstate_policy(source);

	if (policy.paused_until != NO_TIME &&
		policy.paused_until > until - USECS_PER_SEC)
		return;
	if (limit_is_coming(source, until, now))
		return;
	syncstate_store_pause(source, until, true);
	(void) tell_pause(&policy, "rate_limited");
}
