/*-------------------------------------------------------------------------
 *
 * policy.c
 *		Built-in defaults, effective policies, and the arithmetic of time
 *
 * Everything here that computes takes the time as an argument.  Durations are
 * microseconds in int64; a day of an interval is 24 hours, whatever the time
 * zone does.  Durations are at most MAX_DURATION, so that no sum of a few of
 * them and a timestamp of our times overflows.
 *
 * The effective policies of all sources are kept in one array per session, in
 * the order of the enum's labels.  It is thrown away whenever sync_policy or
 * the enum changes: a trigger on sync_policy sends the relation's
 * invalidation, which every session sees at the latest when its next
 * transaction starts.
 *
 * src/policy.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_enum.h"
#include "commands/trigger.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/catcache.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "syncstate.h"

/*
 * What a cursor's life is planned by.  A cursor counted from its last full
 * sync is given up somewhere between these two parts of its life, each row at
 * its own, so that accounts connected together do not all need the expensive
 * full sync in one hour; and no interval sleeps past the first of them.
 */
#define TTL_LAST_VISIT		0.80
#define TTL_FULL_SYNC		0.85

/* Defaults of a source nobody has said anything about. */
static const SyncPolicy builtin_policy = {
	.sync_interval = 15 * USECS_PER_MINUTE,
	.lease_time = 10 * USECS_PER_MINUTE,
	.retry_base = 30 * USECS_PER_SEC,
	.retry_cap = USECS_PER_HOUR,
	.rate_limit_wait = 60 * USECS_PER_SEC,
	.max_failures = 30,
	.park_after = 7 * USECS_PER_DAY,
	.token_ttl = 0,
	.token_ttl_from = TTL_FROM_TOKEN,
	.jitter = 0.1,
	.paused_until = NO_TIME,
};

/*
 * Where a provider says how long a cursor lives.  Gmail: history records are
 * kept for at least a week.  People API: sync tokens expire 7 days after the
 * full sync.
 */
static const struct
{
	const char *label;
	int64		token_ttl;
	TokenTtlFrom token_ttl_from;
}			builtin_ttls[] = {
	{"google_gmail", 7 * USECS_PER_DAY, TTL_FROM_TOKEN},
	{"google_contacts", 7 * USECS_PER_DAY, TTL_FROM_FULL},
};

/* The SQL names of TokenTtlFrom. */
static const char *const ttl_words[] = {
	[TTL_FROM_TOKEN] = "token",
	[TTL_FROM_FULL] = "full",
};

/* Effective policies, ordered like the enum; NULL = to be loaded. */
static SyncPolicy *policies = NULL;
static int	npolicies = 0;
static MemoryContext policies_context = NULL;
static Oid	policies_rel = InvalidOid;
static bool policies_valid = false;
static bool callbacks_registered = false;

static void load_policies(void);
static void apply_overrides(SyncPolicy *policy, const Datum *values,
							const bool *nulls);
static int	compare_labels(const void *a, const void *b);
static void policy_rel_changed(Datum arg, Oid relid);
static void enum_changed(Datum arg, int cacheid, uint32 hashvalue);
static TimestampTz ttl_anchor(const SyncPolicy *policy, const SyncState *row);
static TimestampTz cursor_dies_at(const SyncPolicy *policy, const SyncState *row);
static void check_overrides(Oid source, HeapTupleHeader overrides);
static Datum policy_row(const SyncPolicy *policy);
static Interval *usecs_interval(int64 usecs);

PG_FUNCTION_INFO_V1(syncstate_policy_changed);
PG_FUNCTION_INFO_V1(syncstate_get_sync_policy);
PG_FUNCTION_INFO_V1(syncstate_set_sync_policy);
PG_FUNCTION_INFO_V1(syncstate_pause_sync_source);
PG_FUNCTION_INFO_V1(syncstate_resume_sync_source);

/*
 * syncstate_policy_changed() -> trigger
 *
 * Tells all sessions that policies changed.
 *
 * Errors: 39P01 if not called as a trigger.
 */
Datum
syncstate_policy_changed(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called by trigger manager",
						"policy_changed")));
	CacheInvalidateRelcache(trigdata->tg_relation);
	PG_RETURN_POINTER(NULL);
}

/*
 * syncstate_get_sync_policy(source sync_source) -> sync_policy
 *
 * The effective settings of a source: what was overridden, and the built-in
 * defaults for the rest.
 *
 * Errors: 22023 if source is null.
 */
Datum
syncstate_get_sync_policy(PG_FUNCTION_ARGS)
{
	return policy_row(syncstate_policy(syncstate_arg_source(fcinfo, 0)));
}

/*
 * syncstate_set_sync_policy(source sync_source, changes jsonb) -> sync_policy
 *
 * Overrides settings of a source: keys present change, null goes back to the
 * built-in default, keys absent stay; tells the effective settings.
 *
 *	changes	a JSON object; its keys are the columns of sync_policy
 *
 * Errors: 22023 for a bad argument; 22P02, 22007 or 22008 for a malformed value.
 */
Datum
syncstate_set_sync_policy(PG_FUNCTION_ARGS)
{
	static const char *const keys[] = {
		"sync_interval", "lease_time", "retry_base", "retry_cap",
		"rate_limit_wait", "max_failures", "park_after", "token_ttl",
		"token_ttl_from", "jitter", "paused_until",
	};
	Oid			source = syncstate_arg_source(fcinfo, 0);
	Jsonb	   *changes = syncstate_arg_object(fcinfo, 1, "changes");
	Datum		overrides;

	syncstate_check_keys("changes", &changes->root, keys, lengthof(keys));
	SPI_connect();
	overrides = syncstate_store_policy_changes(source, JsonbPGetDatum(changes));
	check_overrides(source, DatumGetHeapTupleHeader(overrides));
	syncstate_store_policy_write(source, overrides);
	SPI_finish();
	return policy_row(syncstate_policy(source));
}

/*
 * syncstate_pause_sync_source(source sync_source, until timestamptz)
 *		-> sync_policy
 *
 * Hands out no row of a source until a time; syncs in flight may finish.
 *
 *	until	'infinity': until resumed
 *
 * Replaces an earlier pause, also a longer one.
 *
 * Errors: 22023 for a bad argument.
 */
Datum
syncstate_pause_sync_source(PG_FUNCTION_ARGS)
{
	Oid			source = syncstate_arg_source(fcinfo, 0);
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
	SPI_finish();
	return policy_row(syncstate_policy(source));
}

/*
 * syncstate_resume_sync_source(source sync_source) -> sync_policy
 *
 * Ends the pause of a source; its due rows can be claimed at once.
 *
 * Errors: 22023 if source is null.
 */
Datum
syncstate_resume_sync_source(PG_FUNCTION_ARGS)
{
	Oid			source = syncstate_arg_source(fcinfo, 0);

	SPI_connect();
	syncstate_store_pause(source, NO_TIME, false);
	SPI_finish();
	syncstate_wake_workers(syncstate_policy(source));
	return policy_row(syncstate_policy(source));
}

/* The effective policy of a source; valid until the next SQL is run. */
const SyncPolicy *
syncstate_policy(Oid source)
{
	int			n;
	const SyncPolicy *all = syncstate_policies(&n);

	for (int i = 0; i < n; i++)
	{
		if (all[i].source == source)
			return &all[i];
	}
	elog(ERROR, "unexpected sync source %u", source);
	return NULL;				/* keep compiler quiet */
}

/*
 * All effective policies; valid until the next SQL is run.
 *
 * Asks for invalidations itself: in the middle of a transaction that holds its
 * locks already nobody else would, and a source that was paused meanwhile would
 * go on being handed out.
 */
const SyncPolicy *
syncstate_policies(int *n)
{
	AcceptInvalidationMessages();
	if (!policies_valid || policies_rel != syncstate_store_ids()->policy_rel)
		load_policies();
	*n = npolicies;
	return policies;
}

/*
 * Reads labels and overrides.  The table is read directly, with the newest
 * snapshot and without privileges: what is kept here serves later
 * transactions of this session, under whatever role and isolation level.
 */
static void
load_policies(void)
{
	const StoreIds *ids = syncstate_store_ids();
	CatCList   *labels;
	Relation	rel;
	Snapshot	snapshot;
	SysScanDesc scan;
	HeapTuple	tuple;
	MemoryContext context;
	SyncPolicy *loaded;
	int			nloaded;

	if (!callbacks_registered)
	{
		CacheRegisterRelcacheCallback(policy_rel_changed, (Datum) 0);
		CacheRegisterSyscacheCallback(ENUMOID, enum_changed, (Datum) 0);
		callbacks_registered = true;
	}

	/*
	 * Set before reading, so that an invalidation that arrives meanwhile is
	 * seen; with an error, "policies_rel" keeps what is there from use.
	 */
	policies_rel = InvalidOid;
	policies_valid = true;

	/* the caller's until all is read, so that an error leaks nothing */
	context = AllocSetContextCreate(CurrentMemoryContext, "syncstate policies",
									ALLOCSET_SMALL_SIZES);

	rel = table_open(ids->policy_rel, AccessShareLock);

	labels = SearchSysCacheList1(ENUMTYPOIDNAME,
								 ObjectIdGetDatum(ids->source_type));
	nloaded = labels->n_members;
	loaded = MemoryContextAllocZero(context,
									Max(nloaded, 1) * sizeof(SyncPolicy));
	{
		HeapTuple  *members = palloc(Max(nloaded, 1) * sizeof(HeapTuple));

		for (int i = 0; i < nloaded; i++)
			members[i] = &labels->members[i]->tuple;
		qsort(members, nloaded, sizeof(HeapTuple), compare_labels);
		for (int i = 0; i < nloaded; i++)
		{
			Form_pg_enum label = (Form_pg_enum) GETSTRUCT(members[i]);
			const char *name = NameStr(label->enumlabel);

			loaded[i] = builtin_policy;
			loaded[i].source = label->oid;
			loaded[i].label = label->enumlabel;
			loaded[i].label_hash =
				hash_bytes_extended((const unsigned char *) name,
									strlen(name), 0);
			for (size_t j = 0; j < lengthof(builtin_ttls); j++)
			{
				if (strcmp(name, builtin_ttls[j].label) == 0)
				{
					loaded[i].token_ttl = builtin_ttls[j].token_ttl;
					loaded[i].token_ttl_from = builtin_ttls[j].token_ttl_from;
				}
			}
		}
		pfree(members);
	}
	ReleaseCatCacheList(labels);

	snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan = systable_beginscan(rel, InvalidOid, false, snapshot, 0, NULL);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Datum	   *values = palloc(RelationGetDescr(rel)->natts * sizeof(Datum));
		bool	   *nulls = palloc(RelationGetDescr(rel)->natts * sizeof(bool));

		heap_deform_tuple(tuple, RelationGetDescr(rel), values, nulls);
		for (int i = 0; i < nloaded; i++)
		{
			if (loaded[i].source ==
				DatumGetObjectId(values[Anum_sync_policy_source - 1]))
				apply_overrides(&loaded[i], values, nulls);
		}
		pfree(values);
		pfree(nulls);
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);

	MemoryContextSetParent(context, TopMemoryContext);
	if (policies_context != NULL)
		MemoryContextDelete(policies_context);
	policies_context = context;
	policies = loaded;
	npolicies = nloaded;
	policies_rel = ids->policy_rel;
}

/* Replaces built-in settings by those of a row of sync_policy. */
static void
apply_overrides(SyncPolicy *policy, const Datum *values, const bool *nulls)
{
#define OVERRIDE(field, value) \
	do { \
		Datum		d = values[Anum_sync_policy_##field - 1]; \
		if (!nulls[Anum_sync_policy_##field - 1]) \
			policy->field = (value); \
	} while (0)

	OVERRIDE(sync_interval, syncstate_interval_usecs(DatumGetIntervalP(d)));
	OVERRIDE(lease_time, syncstate_interval_usecs(DatumGetIntervalP(d)));
	OVERRIDE(retry_base, syncstate_interval_usecs(DatumGetIntervalP(d)));
	OVERRIDE(retry_cap, syncstate_interval_usecs(DatumGetIntervalP(d)));
	OVERRIDE(rate_limit_wait, syncstate_interval_usecs(DatumGetIntervalP(d)));
	OVERRIDE(max_failures, DatumGetInt32(d));
	OVERRIDE(park_after, syncstate_interval_usecs(DatumGetIntervalP(d)));
	OVERRIDE(token_ttl, syncstate_interval_usecs(DatumGetIntervalP(d)));
	OVERRIDE(token_ttl_from,
			 strcmp(TextDatumGetCString(d), "full") == 0 ?
			 TTL_FROM_FULL : TTL_FROM_TOKEN);
	OVERRIDE(jitter, DatumGetFloat8(d));
	OVERRIDE(paused_until, DatumGetTimestampTz(d));
#undef OVERRIDE
}

/* qsort comparator: the enum's order. */
static int
compare_labels(const void *a, const void *b)
{
	float4		x = ((Form_pg_enum) GETSTRUCT(*(const HeapTuple *) a))->enumsortorder;
	float4		y = ((Form_pg_enum) GETSTRUCT(*(const HeapTuple *) b))->enumsortorder;

	return (x > y) - (x < y);
}

/* Only a flag: an invalidation may arrive in the midst of anything. */
static void
policy_rel_changed(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == policies_rel ||
		policies_rel == InvalidOid)
		policies_valid = false;
}

static void
enum_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	policies_valid = false;
}

/*
 * A number in [0, 1) that is the row's own: the same in every database and
 * after each restore, so that schedules spread and stay.
 */
double
syncstate_row_part(const SyncPolicy *policy, const SyncKey *key)
{
	uint64		hash;

	hash = hash_bytes_extended(key->user_id.data, UUID_LEN, policy->label_hash);
	hash = hash_bytes_extended((unsigned char *) VARDATA_ANY(key->resource),
							   VARSIZE_ANY_EXHDR(key->resource), hash);
	return ldexp((double) (hash >> 11), -53);
}

/*
 * An interval in microseconds, at most MAX_DURATION either way.  Months, which
 * only retry_after may have, count 30 days, as in comparisons of intervals.
 */
int64
syncstate_interval_usecs(const Interval *interval)
{
	double		usecs = (double) interval->time +
		((double) interval->day + 30.0 * interval->month) * USECS_PER_DAY;

	if (usecs >= (double) MAX_DURATION)
		return MAX_DURATION;
	if (usecs <= -(double) MAX_DURATION)
		return -MAX_DURATION;
	return (int64) usecs;		/* exact: below 2^53 */
}

/*
 * How long to wait after n failures in a row.
 *
 *	n		failures so far; 1 or more
 *	unit	random draw in [0, 1)
 *
 * Formula: d = min(cap, base * 2^(n-1)); half of d fixed, half of it random
 * ("equal jitter").  Source: "Exponential Backoff And Jitter", AWS Architecture
 * Blog, 2015.
 */
int64
syncstate_backoff(const SyncPolicy *policy, int32 n, double unit)
{
	int64		delay = policy->retry_cap;

	if (n - 1 < 62 && policy->retry_base <= (policy->retry_cap >> (n - 1)))
		delay = policy->retry_base << (n - 1);
	return delay / 2 + (int64) ((delay - delay / 2) * unit);
}

/*
 * When a row that is made now is due: at once, but less a part of a second
 * that is the row's own, so that a bulk insert does not share one due time.
 */
TimestampTz
syncstate_first_due(const SyncPolicy *policy, const SyncKey *key,
					TimestampTz now)
{
	return now - (int64) (syncstate_row_part(policy, key) * USECS_PER_SEC);
}

/*
 * When a row is due again after a completion.
 *
 * The row's interval (or the policy's), counted from start to start, and
 * shortened by between half and the whole of jitter: always a little shorter,
 * never longer, so that a cron of the same interval finds the row due at every
 * tick.  Not before a tenth of the interval has passed, and not after the last
 * visit that the cursor's life allows.
 */
TimestampTz
syncstate_next_due(const SyncPolicy *policy, const SyncState *row,
				   TimestampTz now)
{
	double		part = syncstate_row_part(policy, &row->key);
	int64		interval = row->sync_interval != NULL ?
		syncstate_interval_usecs(row->sync_interval) : policy->sync_interval;
	TimestampTz earliest = now + interval / 10;
	TimestampTz start = row->last_sync_at != NO_TIME ?
		Min(row->last_sync_at, now) : now;
	TimestampTz due = start + interval -
		(int64) (interval * policy->jitter * (0.5 + 0.5 * part));
	TimestampTz anchor = ttl_anchor(policy, row);

	if (anchor != NO_TIME)
	{
		TimestampTz visit = anchor + (int64) (policy->token_ttl * TTL_LAST_VISIT);
		TimestampTz death = cursor_dies_at(policy, row);

		/*
		 * Past the last visit, the row's own planned full sync is next.  Past
		 * that too, the cursor is not renewed by what this row does: no use in
		 * hurrying.
		 */
		if (visit <= now)
			visit = death + 1;
		if (visit > now)
		{
			due = Min(due, visit);
			earliest = Min(earliest, visit);
		}
	}
	return Max(due, earliest);
}

/*
 * The end of a rate limit of "wait" from now: never earlier than asked, and
 * later by up to a tenth of it, each row by its own part.
 */
TimestampTz
syncstate_limit_end(const SyncPolicy *policy, const SyncKey *key, int64 wait,
					TimestampTz now)
{
	return now + wait +
		(int64) (syncstate_row_part(policy, key) * (wait / 10));
}

/*
 * Whether a row has a cursor that the provider has forgotten by now, or will
 * before the row is likely to be seen again.
 */
bool
syncstate_cursor_is_dead(const SyncPolicy *policy, const SyncState *row,
						 TimestampTz now)
{
	return now > cursor_dies_at(policy, row);
}

/* The last moment of the life of the row's cursor; DT_NOEND: it lives for ever. */
static TimestampTz
cursor_dies_at(const SyncPolicy *policy, const SyncState *row)
{
	TimestampTz anchor = ttl_anchor(policy, row);
	double		part = 1.0;

	if (anchor == NO_TIME)
		return DT_NOEND;
	if (policy->token_ttl_from == TTL_FROM_FULL)
		part = TTL_FULL_SYNC - (TTL_FULL_SYNC - TTL_LAST_VISIT) *
			syncstate_row_part(policy, &row->key);
	return anchor + (int64) (policy->token_ttl * part);
}

/* What the life of the row's cursor is counted from, or NO_TIME. */
static TimestampTz
ttl_anchor(const SyncPolicy *policy, const SyncState *row)
{
	if (policy->token_ttl == 0 || !syncstate_has_cursor(row))
		return NO_TIME;
	if (policy->token_ttl_from == TTL_FROM_FULL &&
		row->last_full_sync_at != NO_TIME)
		return row->last_full_sync_at;
	return row->token_issued_at;
}

/* Whether a run of failures has reached both limits: parking is called for. */
bool
syncstate_is_hopeless(const SyncPolicy *policy, int64 failures,
					  TimestampTz failing_since, TimestampTz now)
{
	return failures >= policy->max_failures &&
		failing_since != NO_TIME &&
		now - failing_since >= policy->park_after;
}

/*
 * From when on the row's source hands it out, or NO_TIME: at once.
 *
 * After a pause, the rows come back spread over rate_limit_wait, each at its
 * own part of it, so that the first minute of a new quota is not spent in its
 * first second.  A pause until infinity has no end.
 */
TimestampTz
syncstate_source_opens(const SyncPolicy *policy, const SyncKey *key)
{
	if (policy->paused_until == NO_TIME ||
		TIMESTAMP_NOT_FINITE(policy->paused_until))
		return policy->paused_until;
	return policy->paused_until +
		(int64) (syncstate_row_part(policy, key) * policy->rate_limit_wait);
}

/*
 * Pauses a source until a time, unless it is paused for as long already.
 *
 * Many workers hit the same limit at once, each a moment later than the one
 * before.  A moment more is no change; and where another worker is writing a
 * limit just now, nobody waits for its transaction to end, unless the own
 * limit is longer by more than a tenth.
 */
void
syncstate_pause_source(Oid source, TimestampTz until, TimestampTz now)
{
	Relation	rel;
	SnapshotData dirty;
	SysScanDesc scan;
	HeapTuple	tuple;
	TimestampTz paused_until;
	bool		covered = false;

	paused_until = syncstate_policy(source)->paused_until;
	if (paused_until != NO_TIME && paused_until > until - USECS_PER_SEC)
		return;

	InitDirtySnapshot(dirty);
	rel = table_open(syncstate_store_ids()->policy_rel, AccessShareLock);
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

	if (!covered)
		syncstate_store_pause(source, until, true);
}

/* Checks what somebody wants to override, together with what stays built in. */
static void
check_overrides(Oid source, HeapTupleHeader overrides)
{
	HeapTupleData tuple;
	TupleDesc	tupdesc = lookup_rowtype_tupdesc(HeapTupleHeaderGetTypeId(overrides),
												 HeapTupleHeaderGetTypMod(overrides));
	Datum	   *values = palloc(tupdesc->natts * sizeof(Datum));
	bool	   *nulls = palloc(tupdesc->natts * sizeof(bool));
	SyncPolicy	effective = builtin_policy;

	tuple.t_len = HeapTupleHeaderGetDatumLength(overrides);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	tuple.t_data = overrides;
	heap_deform_tuple(&tuple, tupdesc, values, nulls);
	ReleaseTupleDesc(tupdesc);

#define CHECK_DURATION(field, max) \
	if (!nulls[Anum_sync_policy_##field - 1]) \
		(void) syncstate_check_duration(#field, \
										DatumGetIntervalP(values[Anum_sync_policy_##field - 1]), \
										MIN_DURATION, max)

	CHECK_DURATION(sync_interval, MAX_DURATION);
	CHECK_DURATION(lease_time, MAX_LEASE_TIME);
	CHECK_DURATION(retry_base, MAX_DURATION);
	CHECK_DURATION(retry_cap, MAX_DURATION);
	CHECK_DURATION(rate_limit_wait, MAX_RETRY_AFTER);
	CHECK_DURATION(park_after, MAX_DURATION);
	CHECK_DURATION(token_ttl, MAX_DURATION);
#undef CHECK_DURATION

	if (!nulls[Anum_sync_policy_token_ttl_from - 1])
		(void) syncstate_check_word("token_ttl_from",
									TextDatumGetCString(values[Anum_sync_policy_token_ttl_from - 1]),
									ttl_words, lengthof(ttl_words));

	apply_overrides(&effective, values, nulls);
	if (effective.max_failures < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_failures must be 1 or more"),
				 errdetail("Got %d.", effective.max_failures)));
	if (!(effective.jitter >= 0 && effective.jitter <= 0.9))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("jitter must be between 0 and 0.9"),
				 errdetail("Got %g.", effective.jitter)));
	if (effective.retry_base > effective.retry_cap)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("retry_base must be at most retry_cap"),
				 errdetail("Got %lld seconds and %lld seconds.",
						   (long long) (effective.retry_base / USECS_PER_SEC),
						   (long long) (effective.retry_cap / USECS_PER_SEC))));
	if (!nulls[Anum_sync_policy_paused_until - 1] &&
		!TIMESTAMP_IS_NOEND(effective.paused_until))
		syncstate_check_time("paused_until", effective.paused_until);
}

/* An effective policy as a row of sync_policy. */
static Datum
policy_row(const SyncPolicy *policy)
{
	TupleDesc	tupdesc = lookup_rowtype_tupdesc(syncstate_store_ids()->policy_rowtype, -1);
	Datum	   *values = palloc0(tupdesc->natts * sizeof(Datum));
	bool	   *nulls = palloc(tupdesc->natts * sizeof(bool));
	Datum		result;

	memset(nulls, true, tupdesc->natts * sizeof(bool));
#define SET(field, value) \
	do { \
		values[Anum_sync_policy_##field - 1] = (value); \
		nulls[Anum_sync_policy_##field - 1] = false; \
	} while (0)
#define SET_DURATION(field) \
	SET(field, IntervalPGetDatum(usecs_interval(policy->field)))

	SET(source, ObjectIdGetDatum(policy->source));
	SET_DURATION(sync_interval);
	SET_DURATION(lease_time);
	SET_DURATION(retry_base);
	SET_DURATION(retry_cap);
	SET_DURATION(rate_limit_wait);
	SET(max_failures, Int32GetDatum(policy->max_failures));
	SET_DURATION(park_after);
	if (policy->token_ttl != 0)
	{
		SET_DURATION(token_ttl);
		SET(token_ttl_from,
			CStringGetTextDatum(ttl_words[policy->token_ttl_from]));
	}
	SET(jitter, Float8GetDatum(policy->jitter));
	if (policy->paused_until != NO_TIME)
		SET(paused_until, TimestampTzGetDatum(policy->paused_until));
#undef SET
#undef SET_DURATION

	result = HeapTupleGetDatum(heap_form_tuple(tupdesc, values, nulls));
	ReleaseTupleDesc(tupdesc);
	return result;
}

/* Microseconds as an interval of days and time. */
static Interval *
usecs_interval(int64 usecs)
{
	Interval   *interval = palloc0(sizeof(Interval));

	interval->day = usecs / USECS_PER_DAY;
	interval->time = usecs % USECS_PER_DAY;
	return interval;
}
